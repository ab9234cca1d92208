"""What the secondary said, by place, against a plain dictionary of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.comparer.said import DIFFERENT, EQUAL, MISSING, MOST_RUNS, Said, first_difference

STREAM = bytes(range(256)) * 2
PIECES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 100)), max_size=40)


@given(PIECES, st.integers(0, 400), st.integers(1, 100))
def test_pieces_in_any_order_prove_exactly_what_they_cover(
    pieces: list[tuple[int, int]], start: int, size: int
) -> None:
    said, known = Said(), set()
    for place, length in pieces:
        assert said.add(place - 200, STREAM[place : place + length])
        known.update(range(place, place + length))
    assert said.size == len(known)
    wanted = STREAM[start : start + size]
    expected = EQUAL if known.issuperset(range(start, start + size)) else MISSING
    assert said.check(start - 200, b"\0" + wanted + b"\0", 1, 1 + size) == expected
    assert said.end() == (max(known) + 1 - 200 if known else None)


@given(PIECES, st.integers(0, 400), st.integers(1, 100), st.data())
def test_a_flipped_byte_is_found_at_its_place(
    pieces: list[tuple[int, int]], start: int, size: int, data: st.DataObject
) -> None:
    said = Said()
    for place, length in [*pieces, (start, size)]:
        said.add(place, STREAM[place : place + length])
    flipped = bytearray(STREAM[start : start + size])
    at = data.draw(st.integers(0, size - 1))
    flipped[at] ^= 0x40
    assert said.check(start, flipped, 0, size) == DIFFERENT
    assert said.place == start + at
    assert not said.add(start, flipped)
    assert said.place == start + at
    assert said.check(start, STREAM, start, start + size) == EQUAL


@given(PIECES, st.integers(-10, 500))
def test_forgetting_every_run_keeps_exactly_what_is_not_below(pieces: list[tuple[int, int]], before: int) -> None:
    said, known = Said(), set()
    for place, length in pieces:
        said.add(place, STREAM[place : place + length])
        known.update(range(place, place + length))
    said.forget(before, every_run=True)
    kept = {place for place in known if place >= before}
    assert said.size == len(kept)
    for place in range(500):
        assert said.check(place, STREAM, place, place + 1) == (EQUAL if place in kept else MISSING)


def test_forgetting_of_the_last_run_spares_the_others() -> None:
    said = Said()
    said.add(0, b"retransmitted")
    said.add(100, b"x" * 50)
    said.forget(140, every_run=False)
    assert said.check(0, b"retransmitted", 0, 13) == EQUAL
    assert said.size == 13 + 10


def test_the_number_of_runs_is_bounded() -> None:
    said = Said()
    for place in range(0, 4 * MOST_RUNS, 2):
        said.add(place, b"x")
    assert said.size == MOST_RUNS


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_first_difference(a: bytes, b: bytes) -> None:
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    expected = next((i for i in range(size) if a[i] != b[i]), size)
    assert first_difference(a, b) == expected
