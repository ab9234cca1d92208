"""`python -m bench guest`: a real guest on vhost-user behind the four services, beside a TAP and QEMU's filters."""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import figures
from bench.vm.guest import QEMU
from bench.vm.image import pattern
from bench.vm.rig import Bare, Filters, Rig, Services

#: Seconds that a download or the pings may take before what stands between is said to stall.
_LONGEST = 60.0
_PINGS, _INTERVAL = 200, 0.02

RIGS: dict[str, Callable[[Path, int], Rig]] = {
    "tap": Bare,
    "filters": Filters,
    "ours": lambda folder, mebibytes: Services(folder, "vhost-user", "vhost-user", mebibytes),
}


def measure(*, runs: int, mebibytes: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Each rig in turn, `runs` times; the document that `--json` prints."""
    wanted = hashlib.sha256()
    for block in pattern(mebibytes):
        wanted.update(block)
    seen: dict[str, dict[str, list[float]]] = {name: {"download": [], "ping": []} for name in RIGS}
    findings: list[str] = []
    for number in range(1, runs + 1):
        for name in RIGS:
            with _rig(name, mebibytes) as rig:
                for workload, said in (("ping", _ping(rig)), ("download", _download(rig, wanted.hexdigest()))):
                    if isinstance(said, str):
                        findings.append(f"{workload}, run {number}, {name}: {said}")
                    else:
                        seen[name][workload].append(said)
                    say(f"{workload}, run {number}, {name}: {said if isinstance(said, str) else figures.rounded(said)}")
                findings += [f"run {number}, {name}: {text}" for text in _complaints(rig)]
    results = [_result(workload, unit, seen) for workload, unit in (("download", "MB/s"), ("ping", "ms"))]
    return {"runs": results, "findings": findings, "qemu": QEMU, "machine": figures.machine()}


@contextmanager
def _rig(name: str, mebibytes: int) -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="ls-", dir="/tmp") as folder, RIGS[name](Path(folder), mebibytes) as rig:
        rig.answered()
        yield rig


def _download(rig: Rig, digest: str) -> float | str:
    """MB (10**6 bytes) a second, or what went wrong."""
    began = time.monotonic()
    got, size = rig.download(_LONGEST)
    seconds = time.monotonic() - began
    if size != rig.mebibytes << 20:
        return f"stalled after {size / 1e6:.1f} MB"
    return size / seconds / 1e6 if got == digest else "the bytes are wrong"


def _ping(rig: Rig) -> float | str:
    """Milliseconds of a round trip, the median; or what went wrong."""
    times = [float(found[1]) for line in rig.ping(_PINGS, _INTERVAL) if (found := re.search(r"time=([\d.]+) ms", line))]
    if len(times) < _PINGS * 0.99:
        return f"{_PINGS - len(times)} of {_PINGS} pings were not answered"
    return figures.median(times)


def _complaints(rig: Rig) -> list[str]:
    if not isinstance(rig, Services):
        return []
    counters = rig.status("comparer")["counters"]
    return [f"{name} = {counters[name]}" for name in ("divergences", "unprotected_flows") if counters[name]]


def _result(workload: str, unit: str, seen: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    tap, filters, ours = (figures.median(seen[name][workload] or [0.0]) or None for name in RIGS)
    speed = (lambda one, other: figures.ratio(other, one)) if unit == "ms" else figures.ratio
    return {
        "name": workload,
        "unit": unit,
        "tap": tap,
        "filters": filters,
        "ours": ours,
        "ratio": speed(ours, filters),
        "ratio_to_tap": speed(ours, tap),
    }


def show(document: dict[str, Any]) -> None:
    """The same for people."""
    columns = ("workload", "unit", "TAP alone", "QEMU's filters", "ours", "× filters", "× TAP")
    rows = [tuple(run.values()) for run in document["runs"]]
    figures.show("a guest (ratios of speed: more is better)", columns, rows, document["findings"])
