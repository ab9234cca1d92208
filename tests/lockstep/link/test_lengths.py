"""Sum, smallest and largest."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from lockstep.link.lengths import extent


@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1))
def test_all_three_are_what_python_says(lengths: list[int]) -> None:
    assert extent(array("I", lengths)) == (sum(lengths), min(lengths), max(lengths))


def test_of_nothing_they_are_zero() -> None:
    assert extent(array("I")) == (0, 0, 0)
