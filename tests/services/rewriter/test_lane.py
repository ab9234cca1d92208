"""The lane does what the careful way does: whatever comes, the same leaves, is counted, told and remembered."""

from __future__ import annotations

from array import array
from typing import Any

import packets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packets import ACK, FIN, PSH, RST, SYN, arp_reply, from_client, segment, timestamps, udp

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.flow.key import flow_key
from lockstep.streams import EVENTS, FROM_GUEST, GUEST, TO_GUEST, Cut, Event
from lockstep.wire.frame import Frame, dissect
from services.rewriter.core import Core

GUEST_ISN, PRIMARY_ISN, CLIENT_ISN = 0xFFFFFFF0, 5000, 900
NUMBERS = st.one_of(st.integers(-3, 40), st.integers(-(2**31), 2**31))
OPTIONS = st.sampled_from(
    [
        b"",
        timestamps(20, 30),
        timestamps(0xFFFFFFFF, 1),
        b"\1\x08\x0a" + bytes(8) + b"\1",  # at an odd offset
        b"\1\1\5\x0a\0\0\x13\x99\0\0\x13\xa0",
        b"\1\5\x12" + bytes(range(16)) + b"\0",
        b"\5\x0a" + bytes(8) + timestamps(7, 8) + b"\0\0",
        b"\x08\x0a\0\0",  # cut off
        b"\x13\x12" + bytes(18),  # MD5
    ]
)
WAYS: list[dict[str, Any]] = [{"port": 1}, {"port": 2}, {"port": 1, "v6": True}, {"port": 1, "vlan": (5, 0x123)}]


class Careful:
    """Takes the lane's place, and sends every frame the careful way."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.speaking = False

    def move(self, data: bytearray, lengths: array[int], vnet: int, from_guest: bool, now: float) -> None:
        end = 0
        for length in lengths:
            start, end = end, end + length
            self.core.careful(data, start, end, vnet, from_guest, now)


def guest_says(seq: int, ack: int, flags: int, options: bytes, payload: bytes, way: dict[str, Any]) -> bytes:
    ends = {"source": packets.GUEST6, "destination": packets.CLIENT6} if way.get("v6") else {}
    return segment(
        (GUEST_ISN + seq) % 2**32, CLIENT_ISN + ack if flags & ACK else None, payload, flags=flags & ~ACK,
        options=options, dport=way["port"], vlan=way.get("vlan", ()), **ends,
    )  # fmt: skip


def client_says(seq: int, ack: int, flags: int, options: bytes, payload: bytes, way: dict[str, Any]) -> bytes:
    return from_client(
        (CLIENT_ISN + seq) % 2**32, (PRIMARY_ISN + ack) % 2**32 if flags & ACK else None, payload, flags=flags & ~ACK,
        options=options, sport=way["port"], vlan=way.get("vlan", ()), v6=way.get("v6", False),
    )  # fmt: skip


FLAGS = st.one_of(st.sampled_from([ACK, ACK | PSH, ACK, FIN | ACK, RST, RST | ACK, SYN, SYN | ACK]), st.integers(0, 63))


@st.composite
def frames(draw: st.DrawFn, from_guest: bool) -> bytes:
    if draw(st.integers(0, 7)) == 0:
        return draw(st.sampled_from([arp_reply(), udp(b"x"), b"short", b"", segment(1)[:50]]))
    said = guest_says if from_guest else client_says
    made = bytearray(
        said(
            draw(NUMBERS), draw(NUMBERS) % 2**31, draw(FLAGS), draw(OPTIONS), draw(st.binary(max_size=5)),
            draw(st.sampled_from(WAYS)),
        )
    )  # fmt: skip
    for at, value in draw(st.lists(st.tuples(st.integers(12, 80), st.integers(0, 255)), max_size=1)):
        if at < len(made):
            made[at] = value
    return bytes(made)


@st.composite
def batches(draw: st.DrawFn) -> tuple[str, Batch]:
    from_guest = draw(st.booleans())
    vnet = draw(st.sampled_from([0, 10, 12]))
    header = bytes((draw(st.integers(0, 1)),)) + bytes(11)
    made = draw(st.lists(frames(from_guest), max_size=6))
    return GUEST if from_guest else TO_GUEST, Batch.of([header[:vnet] + frame for frame in made], vnet)


KEY = b"\0\4\6\x0a\x4d\0\2\x0a\x4d\0\1\0\x50\0\1"
HEARD = st.sampled_from(
    [
        (EVENTS, Event("unprotected", {"key": KEY})),
        (EVENTS, Event("protected", {"key": KEY})),
        (EVENTS, Event("failover", {"survivor": "secondary"})),
        (TO_GUEST, Cut(1, "commit")),
    ]
)


def opened(core: Core, way: dict[str, Any]) -> None:
    """Have the distance learned of one connection."""
    syn = guest_says(0, 1, SYN | ACK, timestamps(10, 1), b"", way)
    core.push(GUEST, Batch.of([syn]), 1.0)
    core.push(TO_GUEST, Batch.of([client_says(1, 1, ACK, timestamps(2, 1000), b"", way)]), 1.0)


def outcome(core: Core, steps: list[tuple[str, Any]]) -> list[Any]:
    told: list[Any] = []
    for number, (stream, item) in enumerate(steps):
        for output in core.push(stream, item, 2.0 + number):
            if isinstance(output, Event) or isinstance(output[1], Cut):
                told.append(output)
            else:
                told.append((output[0], output[1].frames(), output[1].vnet))  # type: ignore[union-attr]
    return [told, core.counters, core.status(), remembered(core)]


def remembered(core: Core) -> dict[bytes, list[Any]]:
    pools = core._table.open, core._table.half_open
    fields = (
        "touched", "known", "delta", "delta_ts", "waiting", "opened_by_guest", "doomed", "ends", "reset_told", "isn",
        "peer_next", "unanswered", "tsval", "client_ack", "client_tsecr", "macs",
    )  # fmt: skip
    return {key: [getattr(one, name) for name in fields] for pool in pools for key, one in pool.items()}


def twins(**settings: Any) -> tuple[Core, Core]:
    node = Node.model_validate({"rewriter": settings})
    quick, careful = Core(node), Core(node)
    careful._lane = Careful(careful)  # type: ignore[assignment]
    return quick, careful


STEPS = st.lists(st.one_of(batches(), batches(), batches(), HEARD), max_size=12)
LOST = [(EVENTS, Event("unprotected", {"key": KEY})), (EVENTS, Event("failover", {"survivor": "secondary"}))]


@pytest.mark.parametrize("lost", [False, True])
@given(steps=STEPS, known=st.sets(st.integers(0, 3)))
def test_the_lane_and_the_careful_way_are_one(lost: bool, steps: list[tuple[str, Any]], known: set[int]) -> None:
    """lost: the primary is, and the first connection was released unchecked."""
    quick, careful = twins()
    steps, known = ([*LOST, *steps], known | {0}) if lost else (steps, known)
    for core in (quick, careful):
        for number in known:
            opened(core, WAYS[number])
        assert core.counters["learned"] == len(known)
    assert outcome(quick, steps) == outcome(careful, steps)


@pytest.mark.parametrize("way", WAYS)
def test_ordinary_segments_take_the_lane(way: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    quick, _ = twins()
    opened(quick, way)
    monkeypatch.setattr(Core, "careful", None)  # whoever calls it is told so
    mine = guest_says(1, 1, ACK | PSH, timestamps(12, 2), b"data", way)
    theirs = client_says(1, 5, ACK, timestamps(3, 1002), b"", way)
    [(where, batch)] = quick.push(GUEST, Batch.of([mine] * 3 + [arp_reply()]), 3.0)
    # The guest's clock was 10 where the primary's was 1000.
    moved = bytearray(mine)
    f = Frame()
    dissect(f, mine, 0, len(mine))
    assert (where, batch.frames()[3]) == (FROM_GUEST, arp_reply())  # type: ignore[union-attr]
    moved[:] = batch.frames()[0]  # type: ignore[union-attr]
    assert int.from_bytes(moved[f.l4 + 4 : f.l4 + 8]) == PRIMARY_ISN + 1
    assert int.from_bytes(moved[f.l4 + 24 : f.l4 + 28]) == 1002
    [(where, batch)] = quick.push(TO_GUEST, Batch.of([theirs]), 3.0)
    heard = batch.frames()[0]  # type: ignore[union-attr]
    assert where == GUEST
    assert int.from_bytes(heard[f.l4 + 8 : f.l4 + 12]) == (GUEST_ISN + 5) % 2**32
    assert int.from_bytes(heard[f.l4 + 28 : f.l4 + 32]) == 12
    assert quick._table.open[flow_key(f, mine)].touched == 3.0
