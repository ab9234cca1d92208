"""The scenarios on real kernels, with small transfers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lockstep.demo import DemoOptions, run_demo
from lockstep.demo.stage import environment

pytestmark = pytest.mark.root

SIZE = 24 << 20


def demo(capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[int, dict[str, Any]]:
    code = run_demo(DemoOptions(json=True, capture="tap", **options))
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, result


def test_connections_that_the_guest_opens(capsys: pytest.CaptureFixture[str]) -> None:
    """The other way round; tests/scenarios/test_demo.py has the demo as it comes."""
    code, result = demo(capsys, scenario="serve", size=SIZE, opened_by="guest")
    assert (code, result["mode"], result["sha256_ok"], result["divergences"]) == (0, "namespaces", True, 0)
    assert result["released"] > 100
    assert [run["network"] for run in result["runs"] if run["ok"]] + list(result.get("skipped", {})) == [
        "ipv4", "ipv6", "vlan",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.3, 1.5])
def test_a_signal_ends_it_at_once_and_leaves_nothing(number: signal.Signals, delay: float) -> None:
    code = "import sys; from lockstep.demo import *; print(flush=True); sys.exit(run_demo(DemoOptions()))"
    mark = f"TEST_OF_THE_DEMO={os.getpid()}-{number}-{delay}"
    env = environment() | dict([mark.split("=")])
    process = subprocess.Popen(
        # What runs in the background of a script ignores SIGINT, and so does what that starts.
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(number)
        assert process.wait(20) in (128 + number, -number)  # -number: it had not even begun
    # If it had no time to remove its folder, a process that outlives it does that a second later.
    deadline = time.monotonic() + 20
    while left := _processes_with(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _processes_with(mark: str) -> list[str]:
    """Command lines of all processes that have this in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found
