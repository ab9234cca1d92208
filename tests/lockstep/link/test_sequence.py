"""Gaps: what a stream's numbers say about messages that never came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.link.sequence import Sequence, StaleMessage
from lockstep.streams import Gap

A, B = b"boot id1", b"boot id2"


def followed(*messages: tuple[bytes, int]) -> list[Gap | None]:
    sequence = Sequence()
    return [sequence.follow(*message) for message in messages]


def test_a_stream_from_its_beginning_has_no_gap() -> None:
    assert followed((A, 0), (A, 1), (A, 2)) == [None, None, None]


def test_a_stream_that_is_met_in_its_middle_begins_with_a_gap_of_unknown_length() -> None:
    """A consumer that restarted can't know what went before it."""
    assert followed((A, 7), (A, 8)) == [Gap("restarted"), None]


def test_numbers_that_were_skipped_are_lost_messages() -> None:
    assert followed((A, 0), (A, 1), (A, 5), (A, 6)) == [None, None, Gap("lost", 3), None]


def test_another_boot_id_is_a_restart_whatever_its_number() -> None:
    assert followed((A, 0), (B, 0), (B, 1), (A, 9)) == [None, Gap("restarted"), None, Gap("restarted")]


def test_a_restarted_producers_numbers_count_from_its_own() -> None:
    assert followed((A, 100), (B, 0), (B, 3)) == [Gap("restarted"), Gap("restarted"), Gap("lost", 2)]


@pytest.mark.parametrize("number", [0, 3, 4])
def test_a_number_that_was_passed_is_stale(number: int) -> None:
    sequence = Sequence()
    sequence.follow(A, 0)
    sequence.follow(A, 4)
    with pytest.raises(StaleMessage):
        sequence.follow(A, number)


def test_a_stale_message_changes_nothing() -> None:
    sequence = Sequence()
    sequence.follow(A, 0)
    with pytest.raises(StaleMessage):
        sequence.follow(A, 0)
    assert sequence.follow(A, 1) is None


@given(st.lists(st.booleans(), max_size=60))
def test_every_lost_message_is_counted_once_in_front_of_the_next_that_came(came: list[bool]) -> None:
    arrived = [number for number, there in enumerate([True, *came, True]) if there]
    gaps = followed(*[(A, number) for number in arrived])
    assert sum(gap.lost or 0 for gap in gaps if gap) == came.count(False)
    for before, number, gap in zip([-1, *arrived], arrived, gaps, strict=False):
        assert gap == (None if number == before + 1 else Gap("lost", number - before - 1))
