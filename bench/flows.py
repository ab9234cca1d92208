"""`python -m bench flows`: what the comparer costs as flows become many: CPU for each frame, bytes for each flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import figures
from bench.ours import Comparer
from bench.subject import Fed
from bench.traffic import Traffic
from bench.usage import cpu_seconds, rss_mb

COUNTS = (1, 1_000, 10_000, 100_000, 1_000_000)


def measure(counts: tuple[int, ...], *, frames: int, most: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The document that `--json` prints."""
    results, findings = [], []
    for flows in counts:
        result, wrong = one(flows, max(frames, flows), most)
        results.append(result)
        findings += [f"{flows:,} flows: {text}" for text in wrong]
        say(f"{flows:,} flows: {result}")
    return {"runs": results, "findings": findings, "machine": figures.machine()}


def one(flows: int, frames: int, most: int) -> tuple[dict[str, float | None], list[str]]:
    """Open `flows` flows, look at the memory, then measure `frames` frames over them, in turns."""
    traffic = Traffic.make(flows, 10, frames)
    opening, measured = Comparer.prepare(traffic, most)
    with Comparer() as subject:
        began, idle = cpu_seconds(subject.pid), rss_mb(subject.pid)
        wrong = _wrong(subject.feed(opening, len(traffic.opening)), traffic, traffic.opening)
        opened, filled = cpu_seconds(subject.pid), rss_mb(subject.pid)
        fed = subject.feed(measured, len(traffic.measured))
        used = cpu_seconds(subject.pid) - opened
        wrong += _wrong(fed, traffic, traffic.measured) + subject.complaints()
    return {
        "flows": flows,
        "frames_per_s": figures.rounded(frames / fed.seconds),
        "cpu_us_per_frame": figures.rounded(used / frames * 1e6),
        "cpu_us_per_opening": figures.rounded((opened - began) / flows * 1e6),
        # With few flows the table's own size would be spread over them.
        "bytes_per_flow": figures.rounded((filled - idle) * 1e6 / flows) if flows >= 10_000 else None,
        "rss_mb_before": figures.rounded(idle),
    }, wrong


def _wrong(fed: Fed, traffic: Traffic, wanted: bytes) -> list[str]:
    return fed.wrong(wanted, lambda: traffic.split(wanted))


def show(document: dict[str, Any]) -> None:
    """The same for people."""
    columns = ("flows", "frames/s", "CPU µs/frame", "CPU µs/opening", "bytes/flow", "MB before")
    rows = [(f"{run['flows']:,}", *list(run.values())[1:]) for run in document["runs"]]
    figures.show("comparer", columns, rows, document["findings"])
