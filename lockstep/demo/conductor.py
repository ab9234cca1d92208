"""Carries the demo out: chooses the theatre, plays the scenarios, prints and judges."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from lockstep import exits
from lockstep.demo import DemoOptions, scenarios
from lockstep.demo.display import Display
from lockstep.demo.namespaces import Obstacle, prepare
from lockstep.demo.signals import Ended, Signals


def conduct(options: DemoOptions) -> int:
    """See `lockstep.demo.run_demo`."""
    try:
        with Signals():
            return _conduct(options)
    except Ended as ended:
        print("interrupted; nothing is left behind", file=sys.stderr)
        return 128 + ended.number


def _conduct(options: DemoOptions) -> int:
    from lockstep.demo.stage import StageError

    started = time.monotonic()
    with Display(sys.stderr if options.json else sys.stdout) as display:
        try:
            theatre = _theatre(options, display)
            wanted = [name for name in scenarios.SCENARIOS if options.scenario in (name, "all")]
            results = {name: scenarios.play(theatre, name, options, display) for name in wanted}
        except Obstacle as obstacle:
            print(f"lockstep demo: {obstacle}", file=sys.stderr)
            return obstacle.exit_code
        except StageError as error:
            print(f"lockstep demo: {error}", file=sys.stderr)
            return exits.SOFTWARE
        ok = all(result["ok"] for result in results.values())
        seconds = round(time.monotonic() - started, 3)
        good = sum(result["ok"] for result in results.values())
        display.note(f"{good} of {len(results)} verdicts good, in {seconds:.1f} s, {_WHERE[theatre.mode]}")
    if options.json:
        whole: dict[str, Any] = {"scenarios": results, "ok": ok, "seconds": seconds}
        print(json.dumps(whole if options.scenario == "all" else results[wanted[0]], indent=2))
    return exits.OK if ok else exits.FOUND


_WHERE = {"namespaces": "in network namespaces of this machine", "memory": "in memory, without a kernel between"}


def _theatre(options: DemoOptions, display: Display) -> scenarios.Theatre:
    """Namespaces where they are to be had or insisted on, else memory."""
    if options.capture != "memory":
        try:
            prepare()
            from lockstep.demo.live import Namespaces

            return Namespaces(options.keep_logs, options.fuse, options.capture or "tap")
        except ModuleNotFoundError as missing:
            obstacle = Obstacle(f"the Python package {missing.name} is missing: pip install {missing.name}")
        except Obstacle as found:
            obstacle = found
        if options.capture is not None:
            raise obstacle
        display.note(f"In memory, with guests in this process instead of real kernels: {obstacle}.")
    else:
        display.note("In memory, as asked: guests in this process instead of real kernels, time simulated.")
    from lockstep.demo.memory import Memory

    return Memory()
