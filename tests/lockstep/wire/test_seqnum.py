"""Sequence numbers wrap at 2**32, and order is a matter of the shorter way round (RFC 1982, RFC 9293 §3.4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.wire.seqnum import add, diff, le, lt

numbers = st.integers(0, 2**32 - 1)
#: Distances of which each has one sign alone: half the circle is as far one way as the other.
distances = st.integers(-(2**31) + 1, 2**31 - 1)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (0, 1, -1),
        (0, 0xFFFFFFFF, 1),
        (0xFFFFFFFF, 0, -1),
        (0x7FFFFFFF, 0, 2**31 - 1),
        (0x80000000, 0, -(2**31)),
        (0, 0x80000000, -(2**31)),
        (0x80000000, 0x7FFFFFFF, 1),
        (5, 0xFFFFFFFB, 10),
    ],
)
def test_the_distance_is_signed_the_shorter_way_round_and_order_is_its_sign(a: int, b: int, distance: int) -> None:
    assert diff(a, b) == distance
    assert (lt(a, b), le(a, b)) == (distance < 0, distance <= 0)


@given(numbers, distances)
def test_a_number_moved_on_by_n_is_n_away(a: int, n: int) -> None:
    moved = (a + n) % 2**32
    assert add(a, n) == moved
    assert diff(moved, a) == n


@given(numbers, distances)
def test_order_is_the_sign_of_the_distance(a: int, n: int) -> None:
    moved = (a + n) % 2**32
    assert lt(moved, a) == (n < 0)
    assert le(moved, a) == (n <= 0)


@given(numbers, numbers, numbers)
def test_shifting_both_numbers_changes_no_order(a: int, b: int, shift: int) -> None:
    moved_a, moved_b = (a + shift) % 2**32, (b + shift) % 2**32
    assert (diff(a, b), lt(a, b), le(a, b)) == (diff(moved_a, moved_b), lt(moved_a, moved_b), le(moved_a, moved_b))


@given(numbers, st.integers(-(2**40), 2**40))
def test_a_sum_stays_within_32_bits(a: int, n: int) -> None:
    assert add(a, n) == (a + n) % 2**32
