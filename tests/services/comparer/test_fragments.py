"""Fragments: datagrams are compared whole, and leave as they came."""

from __future__ import annotations

import itertools
import struct

import packets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import Event
from services.comparer.core import Core
from services.comparer.fragments import MOST_DATAGRAMS

PAYLOAD = bytes(i & 0xFF for i in range(3000))
UDP = struct.pack(">HHHH", 53, 40000, 8 + len(PAYLOAD), 0) + PAYLOAD


def fragment(ident: int, start: int, end: int, *, v6: bool = False, body: bytes = UDP) -> bytes:
    """`body[start:end]` as a fragment; the last one if `end` is the end."""
    more = end < len(body)
    if v6:
        header = struct.pack(">BBHI", 17, 0, start | more, ident)
        return packets.ethernet(packets.ip(packets.GUEST6, packets.CLIENT6, 44, header + body[start:end]))
    field = start >> 3 | (0x2000 if more else 0)
    return packets.ethernet(packets.ip(packets.GUEST, packets.CLIENT, 17, body[start:end], ident=ident, fragment=field))


def cut(ident: int, *at: int, v6: bool = False, body: bytes = UDP) -> list[bytes]:
    edges = [0, *at, len(body)]
    return [fragment(ident, a, b, v6=v6, body=body) for a, b in itertools.pairwise(edges)]


class Sides:
    def __init__(self) -> None:
        self.core = Core(Node.model_validate({"comparer": {"on_divergence": "hold", "compare_timeout": 1}}))
        self.events: list[Event] = []

    def say(self, stream: str, *frames: bytes, now: float = 1.0) -> list[bytes]:
        return self._left(self.core.push(stream, Batch.of(frames), now))

    def tick(self, now: float) -> list[bytes]:
        return self._left(self.core.tick(now))

    def _left(self, outputs: list[object]) -> list[bytes]:
        self.events += [o for o in outputs if isinstance(o, Event)]
        return [frame for o in outputs if not isinstance(o, Event) for frame in o[1].frames()]  # type: ignore[index]

    def conserved(self) -> bool:
        c, status = self.core.counters, self.core.status()
        dropped = sum(n for name, n in c.items() if name.startswith("dropped_"))
        return c["primary_frames"] == c["released"] + dropped + status["held"]


@pytest.mark.parametrize("v6", [False, True])
def test_fragments_leave_as_they_came_once_the_secondary_said_the_datagram(v6: bool) -> None:
    sides = Sides()
    frames = cut(1, 1480, v6=v6)
    assert sides.say("primary", *frames) == []
    other = cut(99, 1024, 2048, v6=v6)
    assert sides.say("secondary", *other[:2]) == []
    assert sides.say("secondary", other[2]) == frames
    assert sides.conserved()


def test_a_fragmented_datagram_equals_a_whole_one() -> None:
    sides = Sides()
    frames = cut(1, 1480)
    sides.say("primary", *frames)
    assert sides.say("secondary", packets.udp(PAYLOAD)) == frames


def test_fragments_out_of_order() -> None:
    sides = Sides()
    frames = cut(1, 1000, 2000)[::-1]
    sides.say("secondary", *cut(2, 1480))
    assert sides.say("primary", *frames) == frames


def test_another_byte_in_any_fragment_does_not_leave() -> None:
    sides = Sides()
    sides.say("primary", *cut(1, 1480))
    wrong = bytearray(UDP)
    wrong[2500] ^= 1
    assert sides.say("secondary", *cut(2, 1480, body=bytes(wrong))) == []
    sides.tick(3.0)
    (report,) = [e.fields for e in sides.events if e.name == "divergence"]
    assert report["offset"] == 2500 - 8


@pytest.mark.parametrize("v6", [False, True])
def test_overlapping_fragments_are_refused_and_counted(v6: bool) -> None:
    """RFC 5722: the whole datagram is dropped, the fragments still to come included."""
    sides = Sides()
    sides.say("secondary", *cut(2, 1480, v6=v6))
    overlapping = [fragment(1, 0, 1480, v6=v6), fragment(1, 1472, 2000, v6=v6), fragment(1, 1480, len(UDP), v6=v6)]
    assert sides.say("primary", *overlapping) == []
    assert sides.tick(3.0) == []
    assert sides.core.counters["dropped_fragments"] == 3
    assert sides.conserved()


def test_an_incomplete_datagram_is_given_up_after_the_time_out() -> None:
    sides = Sides()
    sides.say("primary", cut(1, 1480)[0])
    assert sides.core.next_deadline() == pytest.approx(2.0)
    assert sides.core.status()["held"] == 1
    sides.tick(2.0)
    assert sides.core.status()["held"] == 0
    assert sides.conserved()


def test_datagrams_with_one_id_but_other_ends_are_kept_apart() -> None:
    sides = Sides()
    a, b = cut(1, 1480), cut(1, 1480)
    b = [frame[:26] + b"\x0a\x4d\x00\x09" + frame[30:] for frame in b]
    sides.say("primary", a[0], b[0], b[1])
    assert sides.core.status()["held"] == 3
    assert sides.say("secondary", *a) == []
    assert sides.say("primary", a[1]) == a


def test_a_flood_of_fragments_is_bounded() -> None:
    sides = Sides()
    for ident in range(MOST_DATAGRAMS + 50):
        sides.say("primary", fragment(ident, 0, 8))
    assert sides.core.status()["held"] == MOST_DATAGRAMS
    assert sides.conserved()


def test_a_tcp_segment_in_fragments_is_compared_as_tcp() -> None:
    sides = Sides()
    whole = packets.segment(5, 9, b"x" * 2000)
    body = whole[34:]
    edges = [(0, 1024), (1024, len(body))]
    frames = [
        packets.ethernet(
            packets.ip(packets.GUEST, packets.CLIENT, 6, body[a:b], fragment=a >> 3 | (0x2000 if b < len(body) else 0))
        )
        for a, b in edges
    ]
    assert sides.say("primary", *frames) == []
    assert sides.say("secondary", whole) == frames


def test_a_syn_in_fragments_said_again_with_other_data_does_not_leave() -> None:
    """What is proven of a SYN is all of it: fragments leave as they came, data included."""
    sides = Sides()

    def syn(ident: int, data: bytes) -> list[bytes]:
        body = packets.segment(5000, None, data, flags=packets.SYN)[34:]
        pieces = [(0, 24), (24, len(body))]
        fields = [a >> 3 | (0x2000 if b < len(body) else 0) for a, b in pieces]
        return [
            packets.ethernet(packets.ip(packets.GUEST, packets.CLIENT, 6, body[a:b], ident=ident, fragment=field))
            for (a, b), field in zip(pieces, fields, strict=True)
        ]

    assert sides.say("primary", *syn(1, b"what both say")) == []
    assert sides.say("secondary", *syn(2, b"what both say")) == syn(1, b"what both say")
    assert sides.say("primary", *syn(3, b"something else")) == []
    assert sides.say("primary", *syn(4, b"what both say")) == []  # behind the one that waits
    assert sides.conserved()


@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(1, 30), st.booleans(), st.booleans()), max_size=30),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_pieces_are_held_dropped_or_proven(pieces: list[tuple[int, int, bool, bool]], v6: bool) -> None:
    """Whatever pieces come, nothing leaves that the other side did not say, and every frame is accounted for."""
    sides = Sides()
    for start, size, primary, last in pieces:
        body = UDP[: (start + size) * 8] if last else UDP
        frame = fragment(7, start * 8, (start + size) * 8, v6=v6, body=body)
        left = sides.say("primary" if primary else "secondary", frame)
        if not any(not p for _, _, p, _ in pieces):
            assert left == []
    assert sides.conserved()
