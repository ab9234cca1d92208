"""`python -m bench latency`: how long a frame takes from a comparer's second input to its output."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench import figures
from bench.ours import Comparer, Relay
from bench.program import BenchError
from bench.qemu import ColoCompare
from bench.subject import STALL, Subject
from bench.traffic import Traffic

#: Seconds in which the first input has surely arrived.
_ARRIVED = 0.0005
#: Frames that are given at once under load, and how many a second.
_GROUP, _RATE = 100, 100_000


def measure(*, peer: bool, runs: int, count: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Each in turn, `runs` times: `count` single frames, and `seconds` of load; the document that `--json` prints."""
    kinds: list[type[Subject]] = [Relay, *([ColoCompare] if peer else []), Comparer]
    single = Traffic.make(1, 10, count)
    load = Traffic.make(1, 10, max(_GROUP, round(_RATE * seconds) // _GROUP * _GROUP))
    seen: dict[str, dict[str, list[float]]] = {kind.__name__: {"median": [], "p999": []} for kind in kinds}
    findings = []
    for number in range(runs):
        for kind in kinds:
            alone = one_by_one(kind(), single)
            groups, lost = under_load(kind(), load)
            of = seen[kind.__name__]
            of["median"].append(statistics.median(alone) * 1e6)
            if lost:
                findings.append(f"{kind.__name__}, run {number + 1}: {lost:,} frames never came out under load")
            of["p999"].append(percentile(groups, 0.999) * 1e6 if groups else float("inf"))
            median, worst = of["median"][-1], of["p999"][-1]
            say(f"run {number + 1}, {kind.__name__}: {median:.0f} µs, under load p99.9 {worst:,.0f} µs")
    figure = {name: {kind: figures.median(values) for kind, values in of.items()} for name, of in seen.items()}
    relay, ours = figure["Relay"], figure["Comparer"]
    return {
        "unit": "µs",
        "relay": relay,
        "ours": ours,
        "peer": figure.get("ColoCompare"),
        "ratio_to_relay": figures.ratio(ours["median"], relay["median"]),
        "findings": findings,
        "machine": figures.machine(),
    }


def percentile(values: list[float], part: float) -> float:
    """The smallest value that at least `part` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-part * len(ordered) // 1) - 1))]


def one_by_one(subject: Subject, traffic: Traffic) -> list[float]:
    """Seconds of each frame, alone: from its second input to its output."""
    took = []
    with subject:
        _open(subject, traffic, 1)
        for single in subject.singles(traffic, 1):
            subject.put(subject.first, single)
            time.sleep(_ARRIVED)
            began = time.perf_counter()
            subject.put(1 - subject.first, single)
            if not subject.take(traffic.size, STALL):
                raise BenchError(f"{type(subject).__name__} stalled")
            took.append(time.perf_counter() - began)
    return took[len(took) // 10 :]  # the first are slower: caches, and Python's own


def under_load(subject: Subject, traffic: Traffic) -> tuple[list[float], int]:
    """Seconds of each group at `_RATE` frames a second, and how many frames never came."""
    took: list[float] = []
    given: list[float] = []
    came = 0
    with subject:
        _open(subject, traffic, _GROUP)
        groups = subject.singles(traffic, _GROUP)
        whole = _GROUP * traffic.size
        quiet = began = time.perf_counter()
        while len(took) < len(groups):
            now = time.perf_counter()
            if len(given) < len(groups) and now >= began + len(given) * _GROUP / _RATE:
                subject.put(subject.first, groups[len(given)])
                given.append(time.perf_counter())
                subject.put(1 - subject.first, groups[len(given) - 1])
            more = subject.take(0, 0.0)
            now = time.perf_counter()
            if more:
                came += more
                quiet = now
            while len(took) < len(given) and came >= (len(took) + 1) * whole:
                took.append(now - given[len(took)])
            if now - quiet > STALL:
                break
    return took[len(took) // 10 :], traffic.frames - came // traffic.size


def _open(subject: Subject, traffic: Traffic, each: int) -> None:
    (opening,) = subject.singles(traffic, each, opening=True)
    for side in (0, 1):
        subject.put(side, opening)
    if not subject.take(traffic.size, STALL):
        raise BenchError(f"{type(subject).__name__} stalled at its first frame")


def show(document: dict[str, Any]) -> None:
    """The same for people."""
    rows = [(name, of["median"], of["p999"]) for name in ("relay", "peer", "ours") if (of := document[name])]
    columns = ("", "one frame alone, median", f"{_RATE:,} frames/s, p99.9")
    figures.show("µs from the second input to the output", columns, rows, document["findings"])
    print(f"ours / relay, one frame alone: {document['ratio_to_relay']}")
