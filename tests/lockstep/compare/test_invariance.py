"""What changes no verdict, and what does: made-up captures against disguised copies of themselves.

Any capture is equal to itself; to a copy with its streams cut elsewhere, its numbers and clocks shifted, and
its segments doubled and reordered; and never to one with a wrong byte, whose flow and place are told.
"""

from __future__ import annotations

from random import Random

import mutate
import pytest
from against import compared, differences
from captures import Talk, Wire, conversations
from hypothesis import given, settings
from hypothesis import strategies as st

SEEDS = st.integers(0, 1 << 32)
MUTATIONS = [
    mutate.recut, mutate.shifted, mutate.renumbered, mutate.doubled, mutate.reordered, mutate.disguised,
]  # fmt: skip


@given(SEEDS)
@settings(max_examples=30)
def test_a_capture_is_equal_to_itself(seed: int) -> None:
    capture = conversations(seed)
    comparison = compared(capture, capture)
    assert not comparison.divergences
    assert comparison.released == len(capture)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
@given(seed=SEEDS)
@settings(max_examples=25)
def test_a_capture_is_equal_to_its_disguises(mutation: object, seed: int) -> None:
    """Both ways round. With what only attackers send, one order of it can be as right as another: left out."""
    capture = conversations(seed, evil=mutation in (mutate.recut, mutate.doubled))
    other = mutation(capture, Random(seed + 1))  # type: ignore[operator]
    assert differences(capture, other) == []
    assert differences(other, capture) == []


@given(SEEDS)
@settings(max_examples=30)
def test_one_wrong_byte_is_found_at_its_place(seed: int) -> None:
    """In the file as it is: its flow, its offset, and the same frame in both."""
    capture = conversations(seed, strays=False)
    flip = mutate.flipped(capture, Random(seed))
    if flip is None:
        return
    assert differences(capture, flip.records) == [(flip.flow, "data", flip.offset, flip.frame, flip.frame)]


@given(SEEDS)
@settings(max_examples=30)
def test_one_wrong_byte_is_found_under_a_disguise(seed: int) -> None:
    """Cut, shifted, doubled and reordered around it: TCP, where nothing of that hides a place."""
    capture = conversations(seed, evil=False)
    random = Random(seed)
    flip = mutate.flipped(capture, random, protocols=(6,))
    if flip is None:
        return
    other = mutate.disguised(flip.records, random)
    ((flow, reason, offset, primary, secondary),) = differences(capture, other)
    assert (flow, reason, offset) == (flip.flow, "data", flip.offset)
    assert _says(capture[primary - 1].data, flip.byte[0])
    assert _says(other[secondary - 1].data, flip.byte[1])


def _says(data: bytes, byte: int) -> bool:
    return byte in data[54:]


@given(SEEDS)
@settings(max_examples=30)
def test_one_wrong_byte_in_the_primary_is_found_too(seed: int) -> None:
    capture = conversations(seed, evil=False)
    flip = mutate.flipped(capture, Random(seed))
    if flip is None:
        return
    assert differences(flip.records, capture) == [(flip.flow, "data", flip.offset, flip.frame, flip.frame)]


@given(SEEDS)
@settings(max_examples=10)
def test_a_lost_ack_is_found_where_ports_are_used_again(seed: int) -> None:
    """Each connection numbered anew; the last ack of the last one, and nothing else, is the primary's alone."""
    wire, random = Wire(), Random(seed)
    talk = Talk(wire, random, port=40000)
    for _ in range(3):
        talk.next = [at + random.randrange(1 << 28, 1 << 31) & mutate.MASK for at in talk.next]
        talk.open()
        talk.send(1, b"said")
        talk.send(0)
    capture, other = wire.records, mutate.renumbered(wire.records[:-1], random)
    assert differences(capture, other) == [("10.77.0.1:40000 10.77.0.2:80", "unmatched", 0, 15, 0)]
    assert differences(other, capture) == [("10.77.0.1:40000 10.77.0.2:80", "unmatched", 0, 0, 15)]


@given(SEEDS)
@settings(max_examples=30)
def test_a_lost_tail_is_found(seed: int) -> None:
    """What is unmatched at the end of either file."""
    capture = conversations(seed, evil=False)
    kept = len(capture) * 2 // 3
    lost = {v.flow(r.data) for r in capture[kept:] if (v := mutate.view(r)) is not None and v.end > v.payload}
    for found in (differences(capture, capture[:kept]), differences(capture[:kept], capture)):
        assert lost - {flow for flow, *_ in found} <= _repeated(capture, kept)


def _repeated(capture: list[mutate.Record], kept: int) -> set[str]:
    """Flows whose tail may say nothing new: retransmissions alone."""
    spans: dict[str, set[tuple[int, int]]] = {}
    for record in capture[:kept]:
        v = mutate.tcp(record)
        if v is not None:
            seq = mutate.numbers(record.data, v)[0]
            spans.setdefault(v.flow(record.data), set()).update(
                (seq + i, record.data[v.payload + i]) for i in range(v.end - v.payload)
            )
    quiet: dict[str, bool] = {}
    for record in capture[kept:]:
        v = mutate.tcp(record)
        if v is not None and v.end > v.payload:
            seq, flow = mutate.numbers(record.data, v)[0], v.flow(record.data)
            said = {(seq + i, record.data[v.payload + i]) for i in range(v.end - v.payload)}
            quiet[flow] = quiet.get(flow, True) and said <= spans.get(flow, set())
    return {flow for flow, repeated in quiet.items() if repeated}
