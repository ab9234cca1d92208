"""`python -m bench comparer`: our comparer and QEMU's colo-compare on the same frames, in turns."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench import figures
from bench.ours import Blake2bComparer, Comparer, DigestComparer, Relay
from bench.qemu import ColoCompare
from bench.subject import Run, Subject, run
from bench.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Case:
    """What both are given. peer_flows: QEMU's number of flows, where it can't follow ours. ours: as what we run."""

    name: str
    payload: int
    flows: int
    peer_flows: int
    ours: type[Comparer] = Comparer

    @property
    def kind(self) -> str:
        """`small`, `full`, `digest` or `blake2b`."""
        return self.name.partition("-")[0]

    def frames(self, small: int) -> int:
        """How many frames are measured, where `small` are of the smallest kind; each flow has at least one."""
        return max(small if self.payload < 100 else small // 8, self.flows)


CASES = tuple(
    Case(f"{name}-{flows}", payload, flows, peer_flows, ours)
    for name, payload, ours, kinds in (
        ("small", 10, Comparer, ((1, 1), (64, 64), (4096, 4096), (1_000_000, 10_000))),
        ("full", 1460, Comparer, ((1, 1), (64, 64), (4096, 4096))),
        ("digest", 1460, DigestComparer, ((1, 1), (64, 64), (4096, 4096))),
        ("blake2b", 1460, Blake2bComparer, ((1, 1), (64, 64), (4096, 4096))),
    )
    for flows, peer_flows in kinds
)


def measure(
    cases: tuple[Case, ...], *, peer: bool, runs: int, frames: int, most: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Every case, `runs` times each, in turns; the document that `--json` prints."""
    results, findings = [], []
    for case in cases:
        figures_of, found = _case(case, peer=peer, runs=runs, frames=case.frames(frames), most=most, say=say)
        results.append(figures_of)
        findings += [f"{case.name}, {text}" for text in found]
    return {"runs": results, "limits": [limit(payload, frames, most) for payload in sorted({c.payload for c in cases})],
            "findings": findings, "machine": figures.machine()}  # fmt: skip


def _case(
    case: Case, *, peer: bool, runs: int, frames: int, most: int, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[str]]:
    say(f"{case.name}: {frames:,} frames of {case.payload} bytes payload over {case.flows:,} flows")
    traffic = Traffic.make(case.flows, case.payload, frames)
    sides: dict[str, Callable[[], Run]] = {"ours": _runner(case.ours, traffic, most)}
    if peer:
        same = traffic if case.peer_flows == case.flows else Traffic.make(case.peer_flows, case.payload, frames)
        sides["peer"] = _runner(ColoCompare, same, most)
    measured: dict[str, list[Run]] = {side: [] for side in sides}
    for number in range(runs):
        for side, once in sides.items():
            measured[side].append(result := once())
            say(f"  run {number + 1}, {side}: {result.frames_per_s:,.0f} frames/s{_remark(result)}")
    said = {side: _medians(of) for side, of in measured.items()}
    document = {"name": case.name, "flows": case.flows, "payload": case.payload, "ours": said["ours"],
                "peer": said.get("peer"), "ratio": None}  # fmt: skip
    if peer:
        document["ratio"] = figures.ratio(said["ours"]["frames_per_s"], said["peer"]["frames_per_s"])
    return document, list(_findings(measured))


def _runner(kind: type[Subject], traffic: Traffic, most: int) -> Callable[[], Run]:
    prepared, wanted = kind.prepare(traffic, most), kind.wanted(traffic)
    return lambda: run(kind(), traffic, prepared, wanted)


def _medians(runs: list[Run]) -> dict[str, float]:
    return {
        "frames_per_s": figures.median(run.frames_per_s for run in runs),
        "cpu_us_per_frame": figures.median(run.cpu_us_per_frame for run in runs),
        "rss_mb": figures.median(run.rss_mb for run in runs),
    }


def _remark(result: Run) -> str:
    return f" ({'; '.join(result.wrong)})" if result.wrong else ""


def _findings(measured: dict[str, list[Run]]) -> Iterator[str]:
    for side, runs in measured.items():
        for number, result in enumerate(runs):
            for text in result.wrong:
                yield f"{side}, run {number + 1}: {text}"


def limit(payload: int, frames: int, most: int) -> dict[str, Any]:
    """What ZeroMQ alone (a bare relay in the comparer's place) and memcpy do with the same messages."""
    traffic = Traffic.make(1, payload, Case("", payload, 1, 1).frames(frames))
    relayed = _runner(Relay, traffic, most)()
    return {
        "payload": payload,
        "relay_frames_per_s": figures.rounded(relayed.frames_per_s),
        "relay_cpu_us_per_frame": figures.rounded(relayed.cpu_us_per_frame),
        "memcpy_frames_per_s": figures.rounded(_memcpy(traffic, most)),
    }


def _memcpy(traffic: Traffic, most: int) -> float:
    """Frames a second that one core copies, a message at a time, source and target out of the cache."""
    source = traffic.measured
    target = ctypes.create_string_buffer(len(source))
    at = ctypes.addressof(target)
    ctypes.memset(at, 1, len(source))  # its pages are there
    base = ctypes.cast(ctypes.c_char_p(source), ctypes.c_void_p).value or 0
    began = time.perf_counter()
    for start in range(0, len(source), most):
        ctypes.memmove(at + start, base + start, min(most, len(source) - start))
    return traffic.frames / (time.perf_counter() - began)


def show(document: dict[str, Any]) -> None:
    """The same for people."""
    rows = [
        (
            one["name"],
            *_beside(one, "frames_per_s"),
            one["ratio"],
            *_beside(one, "cpu_us_per_frame"),
            *_beside(one, "rss_mb"),
        )
        for one in document["runs"]
    ]
    columns = ("case", "ours frames/s", "QEMU", "ratio", "ours CPU µs/frame", "QEMU", "ours MB", "QEMU")
    figures.show("comparer", columns, rows, document["findings"])
    rows = [tuple(one.values()) for one in document["limits"]]
    figures.show("the machine", ("payload", "ZeroMQ relay frames/s", "CPU µs/frame", "memcpy frames/s"), rows)


def _beside(one: dict[str, Any], figure: str) -> tuple[float, float | None]:
    return one["ours"][figure], one["peer"] and one["peer"][figure]


def tell(text: str) -> None:
    """Progress, where it disturbs no output."""
    print(text, file=sys.stderr, flush=True)
