"""`python -m bench digest`: what digest mode costs the redirector, a record for each frame, alone in this process.

The quickest of several rounds counts, as in `cores`. Before that, every record is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from bench import figures
from bench.traffic import HEADERS, Traffic
from lockstep.batch import MAX_BATCH, Batch
from services.redirector.digest import Digester, hasher, new_secret

#: Bytes of payload, and how many frames are measured where `frames` are of the ordinary kind.
SHAPES: dict[str, tuple[int, float]] = {"pure ACKs": (0, 1), "1460 bytes": (1460, 1), "super-frames": (65_000, 0.02)}
HASHES: tuple[Literal["xxh3", "blake2b"], ...] = ("xxh3", "blake2b")
_FLOWS, _ROUNDS = 64, 10


def measure(*, frames: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Both hashes with every shape; the document that `--json` prints."""
    results, findings = [], []
    for shape, (payload, share) in SHAPES.items():
        traffic = Traffic.make(_FLOWS, payload, max(1, round(frames * share)))
        batches = traffic.batches(traffic.measured, MAX_BATCH)
        count = sum(map(len, batches))
        for name in HASHES:
            digester = Digester(new_secret(name))
            wrong = sum(_wrong(batch, digester, payload) for batch in batches)
            findings += [f"{shape}, {name}: {wrong:,} records are not of their frames"] if wrong else []
            taken = figures.quickest(lambda: partial(_take_all, digester.records, batches), _ROUNDS)  # noqa: B023
            carried = sum(len(digester.records(batch).data) for batch in batches) / count
            run = {"name": shape, "hash": name, "us_per_frame": figures.rounded(taken / count * 1e6),
                   "bytes": traffic.size,
                   "record_bytes": figures.rounded(carried)}  # fmt: skip
            results.append(run)
            say(f"{shape}, {name}: {run['us_per_frame']} µs a frame")
    return {"runs": results, "findings": findings, "machine": figures.machine()}


def _take_all(take: Callable[[Batch], object], batches: list[Batch]) -> None:
    for batch in batches:
        take(batch)


def _wrong(batch: Batch, digester: Digester, payload: int) -> int:
    """How many records are not their frame's headers and hashes, or the frame as it is where that is short."""
    again = hasher(digester.secret)
    assert again is not None
    _, *records = digester.records(batch).frames()
    wrong = 0
    for record, frame in zip(records, batch.frames(), strict=True):
        head, said = frame[:HEADERS], frame[HEADERS:]
        chunk = int.from_bytes(record[1:3], "big")
        hashes = b"".join(again(said[at : at + chunk]) for at in range(0, len(said), chunk or 1))
        wrong += record[5:] != head + hashes if payload else record != b"\0" + frame
    return wrong


def show(document: dict[str, Any]) -> None:
    """The same for people."""
    columns = ("frames, hash", "µs a frame", "bytes", "bytes of a record")
    fields = ("us_per_frame", "bytes", "record_bytes")
    rows = [(f"{run['name']}, {run['hash']}", *(run[field] for field in fields)) for run in document["runs"]]
    figures.show("The redirector's records in digest mode", columns, rows, document["findings"])
