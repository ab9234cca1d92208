"""`python -m bench cores`: what each core takes to push a batch, alone in this process, without ports and links.

The batches: one small segment of an open connection, 64 of them, one super-frame of 64 KiB. The quickest of several
rounds counts, since everything but the core only ever adds. For the comparer a push is that of both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bench import figures
from bench.traffic import HEADERS, Traffic
from lockstep.batch import Batch
from lockstep.config import Node, Service
from lockstep.service import core_of
from lockstep.streams import FROM_GUEST, GUEST, INGRESS, NETWORK, PRIMARY, RELEASED, SECONDARY, TO_GUEST, Core
from lockstep.wire import ethernet, ipv4, tcp

#: (frames in a batch, bytes of payload)
SHAPES = {"1 frame": (1, 10), "64 frames": (64, 10), "1 super-frame": (1, 65_000)}
#: Where a batch is pushed: it comes from a port, whose buffer it lies in, or over a link.
PUSHES: list[tuple[Service, str, bool]] = [
    ("mirror", NETWORK, True), ("mirror", GUEST, True), ("mirror", RELEASED, False), ("redirector", INGRESS, False),
    ("redirector", FROM_GUEST, False), ("rewriter", TO_GUEST, False), ("rewriter", GUEST, True),
]  # fmt: skip
_ROUNDS = 40
_NOW = 1.0
_L4 = ethernet.HEADER + ipv4.HEADER


def measure(*, pushes: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Every core with every shape; the document that `--json` prints. pushes: in each round."""
    node = Node.model_validate({"capture": "memory"})
    results = []
    for shape, (frames, payload) in SHAPES.items():
        count = max(1, pushes // (frames if payload < HEADERS else 16))
        made = Traffic.make(1, payload, frames * count)
        batches = made.batches(made.measured, frames * made.size)
        for service, stream, lent in PUSHES:
            turned = [_of(batch, lent, back=stream in (NETWORK, INGRESS, TO_GUEST)) for batch in batches]
            script = [(stream, batch) for batch in turned]
            seconds = _quickest(partial(_core, service, node, made), script)
            results.append(_row(f"{service}, {stream}", shape, seconds))
        both = [(stream, batch) for batch in batches for stream in (PRIMARY, SECONDARY)]
        results.append(_row("comparer, both", shape, 2 * _quickest(partial(core_of, "comparer", node), both)))
        say(f"{shape}: {[run['us'] for run in results if run['batch'] == shape]}")
    return {"runs": results, "findings": [], "machine": figures.machine()}


def _row(name: str, shape: str, seconds: float) -> dict[str, Any]:
    return {"name": name, "batch": shape, "us": figures.rounded(seconds * 1e6)}


def _quickest(make: Callable[[], Core], script: list[tuple[str, Batch]]) -> float:
    """Seconds for a push."""
    return figures.quickest(lambda: partial(_push_all, make().push, script), _ROUNDS) / len(script)


def _push_all(push: Callable[[str, Batch, float], object], script: list[tuple[str, Batch]]) -> None:
    for stream, batch in script:
        push(stream, batch, _NOW)


def _of(batch: Batch, lent: bool, *, back: bool) -> Batch:
    """The batch in a buffer as a port or a link gives it; `back`: of the client to the guest."""
    data = bytearray(batch.data)
    for start, _ in batch.spans() if back else ():
        _turn(data, start)
    return Batch(memoryview(data) if lent else memoryview(bytes(data)), batch.lengths)


def _turn(data: bytearray, start: int) -> None:
    """Have a segment go the other way. Its checksum stays right: that is a sum."""
    for at, size in ((0, 6), (ethernet.HEADER + ipv4.SOURCE, 4), (_L4, 2)):
        one, other, end = start + at, start + at + size, start + at + 2 * size
        data[one:end] = data[other:end] + data[one:other]


def _core(service: Service, node: Node, made: Traffic) -> Core:
    """A core; if it is the rewriter, it knows the distance of the one connection."""
    core = core_of(service, node)
    if service != "rewriter":
        return core
    accepts = bytearray(made.opening[:HEADERS])
    accepts[ethernet.HEADER + ipv4.TOTAL_LENGTH : ethernet.HEADER + ipv4.TOTAL_LENGTH + 2] = bytes((0, HEADERS - 14))
    accepts[_L4 + tcp.FLAGS] = tcp.SYN | tcp.ACK
    answer = bytearray(accepts)
    _turn(answer, 0)
    answer[_L4 + tcp.FLAGS] = tcp.ACK
    answer[_L4 + tcp.SEQ : _L4 + tcp.SEQ + 8] = accepts[_L4 + tcp.ACK_NUMBER : _L4 + tcp.ACK_NUMBER + 4] + b"far "
    for stream, segment in ((GUEST, accepts), (TO_GUEST, answer)):
        core.push(stream, Batch.of([bytes(segment)]), _NOW)
    assert core.status()["connections"] == core.counters["learned"] == 1
    return core


def show(document: dict[str, Any]) -> None:
    """The same for people."""
    names = list(dict.fromkeys(run["name"] for run in document["runs"]))
    taken = {(run["name"], run["batch"]): run["us"] for run in document["runs"]}
    rows = [(name, *(taken[name, shape] for shape in SHAPES)) for name in names]
    figures.show("µs of a core for a push", ("core, stream", *SHAPES), rows)
