"""`lockstep demo`: the whole proxy on this machine, on real kernels, under a minute.

It makes network namespaces for a client and two replicas of a guest, starts the four services as
processes between them, and shows three things: `serve` (every byte arrives while every byte is
compared), `diverge` (a planted wrong byte is found, and never leaves) and `failover` (the primary is
killed in the middle of a transfer; the same connection goes on). Where namespaces are not to be had,
the same cores run in memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ScenarioChoice = Literal["serve", "diverge", "failover", "all"]
NetworkChoice = Literal["ipv4", "ipv6", "vlan", "all"]
DirectionChoice = Literal["download", "upload", "all"]
OpenedByChoice = Literal["client", "guest", "all"]
CaptureChoice = Literal["tap", "packet", "memory"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", re.IGNORECASE)
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What `lockstep demo` is asked for; None is each scenario's own choice.

    scenario: which of the three, or all. json: one JSON object on stdout, progress on stderr.
    network, direction, opened_by: limit the runs to those. repeat: times that everything is run.
    size: bytes of each transfer. capture: `tap` and `packet` insist on namespaces, `memory` on none of
    them; None takes namespaces and `tap` where they are to be had. keep_logs: directory that takes each run's logs.
    fuse: the services of each node share a process (in memory they always do).
    """

    scenario: ScenarioChoice = "all"
    json: bool = False
    network: NetworkChoice | None = None
    direction: DirectionChoice | None = None
    opened_by: OpenedByChoice | None = None
    repeat: int = 1
    size: int | None = None
    capture: CaptureChoice | None = None
    keep_logs: Path | None = None
    fuse: bool = False


def parse_size(text: str) -> int:
    """`256MiB`, `4 MB`, `1000` as bytes; raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _FACTORS[(found[2] or "").lower()]) if found else 0
    if size <= 0:
        raise ValueError(f"{text!r} is no size; write it as 256MiB, 4MB or 1000")
    return size


def run_demo(options: DemoOptions) -> int:
    """Run it, print what it showed, and return the exit code.

    0: every verdict is good. 1: one is bad. 69: something is missing. 70: a program of the demo's
    failed, so that there is no verdict. 77: not permitted.
    130, 143: ended by Ctrl-C or SIGTERM; nothing is left behind.
    """
    from lockstep.demo.conductor import conduct  # the guests' own processes need none of what it imports

    return conduct(options)
