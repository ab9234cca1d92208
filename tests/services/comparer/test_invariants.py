"""What must always hold of the comparer, by property: scripts of both sides, every interleaving.

A small model follows what the secondary has said and acked, byte by byte, on its own. Whatever
the comparer lets out is held against the model.
"""

from __future__ import annotations

import itertools
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from packets import FIN, PSH, SYN, segment

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import Event
from services.comparer.core import Core

STREAM = bytes((i * 7 + i // 256) & 0xFF for i in range(600))
MASK = 0xFFFFFFFF


class Side:
    """One replica's view of the connection: where it cuts the stream, and what it has acked."""

    def __init__(self, isn: int, client_isn: int) -> None:
        self.isn, self.client_isn = isn, client_isn

    def segment(self, place: int, size: int, acked: int, flip: int | None = None) -> bytes:
        payload = bytearray(STREAM[place : place + size])
        if flip is not None and payload:
            payload[flip % len(payload)] ^= 1
        return segment(self.isn + 1 + place, self.client_isn + 1 + acked, bytes(payload), flags=PSH)

    def syn_ack(self, isn: int) -> bytes:
        return segment(isn, self.client_isn + 1, flags=SYN, options=b"\x02\x04\x05\xb4")

    def fin(self, place: int, acked: int) -> bytes:
        return segment(self.isn + 1 + place, self.client_isn + 1 + acked, flags=FIN)


#: (who, place, size, acked, flipped byte of a primary's segment)
STEPS = st.lists(
    st.tuples(
        st.sampled_from("pps"),
        st.integers(0, 500),
        st.integers(0, 100),
        st.integers(0, 300),
        st.one_of(st.none(), st.none(), st.integers(0, 99)),
    ),
    max_size=60,
)
ISNS = st.one_of(st.integers(0, MASK), st.sampled_from([0, 1, MASK, MASK - 300, 0x7FFFFFFF, 0x80000000]))


def left(outputs: list[object]) -> list[bytes]:
    return [frame for output in outputs if not isinstance(output, Event) for frame in output[1].frames()]


@given(STEPS, ISNS, ISNS)
@settings(max_examples=300, deadline=None)
def test_no_byte_and_no_ack_leaves_that_the_secondary_has_not_said(
    steps: list[tuple[str, int, int, int, int | None]], isn: int, client_isn: int
) -> None:
    """Invariants 1 (data), 2 (acks), 3 (order) and 4 (conservation)."""
    core = Core(Node.model_validate({"comparer": {"on_divergence": "hold"}}))
    side = Side(isn, client_isn)
    core.push("primary", Batch.of([side.syn_ack(isn)]), 0.0)
    assert left(core.push("secondary", Batch.of([side.syn_ack(isn ^ 0x5555)]), 0.0)) == [side.syn_ack(isn)]
    said: set[int] = set()
    acked = 0
    order: list[bytes] = []
    released: list[bytes] = []
    for who, place, size, ack, flip in steps:
        if who == "p":
            frame = side.segment(place, size, ack, flip)
            order.append(frame)
            out = left(core.push("primary", Batch.of([frame]), 1.0))
        else:
            said.update(range(place, min(place + size, len(STREAM))))
            acked = max(acked, ack)
            out = left(core.push("secondary", Batch.of([side.segment(place, size, ack)]), 1.0))
        for frame in out:
            seq, number = struct.unpack_from(">II", frame, 38)
            at = (seq - isn - 1) & MASK
            payload = frame[54:]
            assert payload == STREAM[at : at + len(payload)], "a byte left that the secondary never said"
            assert said.issuperset(range(at, at + len(payload)))
            assert (number - client_isn - 1) & MASK <= acked, "an ack left ahead of the secondary's"
        released += out
    assert released == order[: len(released)]
    counters = core.counters
    dropped = sum(count for name, count in counters.items() if name.startswith("dropped_"))
    assert counters["primary_frames"] == counters["released"] + dropped + core.status()["held"]


CUTS = st.lists(st.integers(1, len(STREAM) - 1), max_size=12, unique=True).map(
    lambda cuts: sorted([0, *cuts, len(STREAM)])
)


@given(CUTS, CUTS, ISNS, st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=200, deadline=None)
def test_equal_streams_leave_whole_however_they_are_cut_doubled_and_reordered(
    primary_cuts: list[int], secondary_cuts: list[int], isn: int, random: object, with_fin: bool
) -> None:
    """Invariant 10: ISN, segmentation, duplicates and legal reordering change no verdict."""
    core = Core(Node.model_validate({"comparer": {"on_divergence": "hold"}}))
    side = Side(isn, 77)
    core.push("primary", Batch.of([side.syn_ack(isn)]), 0.0)
    core.push("secondary", Batch.of([side.syn_ack(1)]), 0.0)

    def frames(cuts: list[int]) -> list[bytes]:
        made = [side.segment(a, b - a, 0) for a, b in itertools.pairwise(cuts)]
        if with_fin:
            made.append(side.fin(len(STREAM), 0))
        made += random.sample(made, min(3, len(made)))  # type: ignore[attr-defined]
        return made

    primary, secondary = frames(primary_cuts), frames(secondary_cuts)
    random.shuffle(secondary)  # type: ignore[attr-defined]
    events, out = [], []
    pushes = [("primary", frame) for frame in primary]
    for frame in secondary:
        pushes.insert(random.randint(0, len(pushes)), ("secondary", frame))  # type: ignore[attr-defined]
    for stream, frame in pushes:
        outputs = core.push(stream, Batch.of([frame]), 1.0)
        events += [output for output in outputs if isinstance(output, Event)]
        out += left(outputs)
    sent = [frame for stream, frame in pushes if stream == "primary"]
    assert not events
    assert out == sent


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=120)), max_size=20), st.sampled_from([0, 10, 12]))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_never_raise_and_never_leave_unless_both_said_them(
    frames: list[tuple[bool, bytes]], vnet: int
) -> None:
    """Invariant 8: totality."""
    core = Core(Node.model_validate({"comparer": {"on_divergence": "hold"}}))
    for primary, raw in frames:
        frame = b"\0" * vnet + raw + b"\1"
        core.push("primary" if primary else "secondary", Batch.of([frame], vnet), 1.0)
    core.tick(100.0)
    counters = core.counters
    dropped = sum(count for name, count in counters.items() if name.startswith("dropped_"))
    assert counters["primary_frames"] == counters["released"] + dropped + core.status()["held"]
    if not any(not primary for primary, _ in frames):
        assert counters["released"] == counters["unchecked"]
