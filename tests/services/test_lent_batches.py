"""A batch is lent to a core: its buffer is filled anew once the outputs are carried out.

Each script is played twice: with buffers that stay as they are, and with ones that are overwritten
as soon as the outputs of their push were copied, as a port's next `read` does in the same process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import packets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packets import FIN, PSH, SYN, arp_reply, from_client, segment, timestamps, udp

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.service import core_of
from lockstep.streams import Core, Cut, Event, Item

ISN, ISN2, CLIENT_ISN = 5000, 0xFFFFFF00, 900
#: One moment: (stream or "tick", frames or a cut, epoch, now).
Moment = tuple[str, list[bytes] | Cut | None, int, float]


def said(outputs: Any) -> list[Any]:
    """Outputs as values that no buffer can change any more."""
    return [
        (output.name, dict(output.fields)) if isinstance(output, Event)
        else (output[0], output[1].frames() if isinstance(output[1], Batch) else output[1])
        for output in outputs
    ]  # fmt: skip


def play(core: Core, script: list[Moment], lend: bool) -> list[Any]:
    """What the core says to each moment."""
    told = []
    for stream, what, epoch, now in script:
        if stream == "tick":
            told.append(said(core.tick(now)))
            continue
        if not isinstance(what, list):
            told.append(said(core.push(stream, what, now)))  # type: ignore[arg-type]
            continue
        batch: Item = Batch.of(what, 0, epoch)
        buffer = bytearray(batch.data)
        if lend:
            batch.data = memoryview(buffer)
        told.append(said(core.push(stream, batch, now)))
        buffer[:] = bytes((~byte & 0xFF) for byte in buffer)
        for index in range(len(batch.lengths)):
            batch.lengths[index] = 0xFFFF if lend else batch.lengths[index]
    return [*told, core.counters, core.status()]


def both(service: Any, script: list[Moment], **settings: Any) -> list[Any]:
    """Play it both ways, and give what was said, which is the same."""
    node = Node.model_validate({"capture": "memory", **settings})
    kept, lent = (play(core_of(service, node), script, lend) for lend in (False, True))
    assert kept == lent
    return lent


def fragments(payload: bytes, ident: int) -> list[bytes]:
    """A UDP datagram in two fragments."""
    whole = udp(payload)[34:]
    return [
        packets.ethernet(packets.ip(packets.GUEST, packets.CLIENT, 17, whole[:16], ident=ident, fragment=0x2000)),
        packets.ethernet(packets.ip(packets.GUEST, packets.CLIENT, 17, whole[16:], ident=ident, fragment=2)),
    ]


def data(isn: int, place: int, payload: bytes) -> bytes:
    return segment(isn + 1 + place, CLIENT_ISN + 1, payload, flags=PSH)


def test_what_the_comparer_holds_and_remembers_is_its_own(tmp_path: Any) -> None:
    """Held segments, what the secondary said, SYNs, fragments, datagrams, early frames, and the evidence."""
    options = b"\x02\x04\x05\xb4\x01\x03\x03\x07"
    first, second = fragments(b"x" * 40, 7), fragments(b"x" * 40, 8)
    script: list[Moment] = [
        ("primary", [segment(ISN, CLIENT_ISN + 1, flags=SYN, options=options), arp_reply()], 0, 1.0),
        ("secondary", [segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=options)], 0, 1.0),
        ("primary", [data(ISN, 0, b"held until it is said"), data(ISN, 21, b" too")], 0, 1.1),
        ("secondary", [data(ISN, 0, b"held until")], 0, 1.15),
        ("secondary", [data(ISN, 10, b" it is said t"), data(ISN, 23, b"oo"), data(ISN, 25, b"more")], 0, 1.2),
        ("primary", [data(ISN, 25, b"more"), first[1], udp(b"a datagram")], 0, 1.3),
        ("primary", [first[0]], 0, 1.3),
        ("secondary", [second[0], udp(b"a datagram")], 0, 1.4),
        ("secondary", [second[1]], 0, 1.4),
        ("secondary", [data(ISN, 29, b"said in the next epoch"), udp(b"early")], 1, 1.5),
        ("primary", Cut(1, "prepare"), 0, 1.5),
        ("primary", [data(ISN, 29, b"said in the next epoch"), udp(b"early")], 0, 1.5),
        ("primary", Cut(1, "commit"), 0, 1.6),
        ("primary", [data(ISN, 51, b"right")], 1, 1.7),
        ("secondary", [data(ISN, 51, b"wrong")], 1, 1.8),
        ("tick", None, 0, 99.0),
    ]
    said = both("comparer", script, comparer={"on_divergence": "unprotect", "capture_dir": str(tmp_path)})
    assert [len(frames) for what in said[:16] for name, frames in what if name == "released"]
    counters = said[-2]
    assert (counters["commits"], counters["divergences"], counters["dropped_fragments"]) == (1, 1, 0)


def test_what_the_rewriter_learns_is_its_own() -> None:
    stamps = timestamps(7, 8)
    script: list[Moment] = [
        ("guest", [segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=stamps)], 0, 1.0),
        ("to_guest", [from_client(CLIENT_ISN + 1, ISN + 1, options=timestamps(8, 99))], 0, 1.0),
        ("guest", [segment(ISN2 + 1, CLIENT_ISN + 1, b"hello", options=timestamps(9, 8)), arp_reply()], 0, 1.1),
        ("to_guest", [from_client(CLIENT_ISN + 1, ISN + 6, b"answer", options=timestamps(9, 101))], 0, 1.1),
        ("to_guest", [from_client(CLIENT_ISN + 7, ISN + 6, flags=FIN, options=timestamps(10, 101))], 0, 1.2),
    ]
    assert both("rewriter", script)[-2]["learned"] == 1


@pytest.mark.parametrize("service", ["mirror", "redirector"])
def test_what_passes_on_at_once_may_be_lent(service: str) -> None:
    streams = {"mirror": ["network", "guest", "released"], "redirector": ["ingress", "from_guest", "uplink"]}
    script: list[Moment] = [(stream, [udp(b"first"), arp_reply()], 0, 1.0) for stream in streams[service]]
    both(service, script * 2)


Script = Callable[[], list[Moment]]

#: Segments of one flow as (side, place, bytes), so that they meet, overlap, differ and wait.
STEPS = st.lists(
    st.tuples(st.sampled_from(["primary", "secondary"]), st.integers(0, 40), st.integers(1, 20), st.booleans()),
    min_size=1,
    max_size=40,
)


@given(STEPS)
def test_whatever_is_said_on_a_flow_is_compared_as_it_was_said(steps: list[tuple[str, int, int, bool]]) -> None:
    stream = bytes(range(64))
    opened: list[Moment] = [
        ("primary", [segment(ISN, CLIENT_ISN + 1, flags=SYN)], 0, 1.0),
        ("secondary", [segment(ISN2, CLIENT_ISN + 1, flags=SYN)], 0, 1.0),
    ]
    script: list[Moment] = []
    for number, (side, place, size, datagram) in enumerate(steps):
        payload = stream[place : place + size]
        script.append((side, [udp(payload) if datagram else data(ISN, place, payload)], 0, 1.0 + number * 0.01))
    both("comparer", [*opened, *script, ("tick", None, 0, 60.0)], comparer={"on_divergence": "hold"})
