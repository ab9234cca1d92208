"""Events of several workers, told as one comparer's."""

from __future__ import annotations

from lockstep.streams import Event
from services.comparer.merge import SPLITTER, Merge


def test_what_concerns_one_flow_is_told_as_it_is() -> None:
    merge = Merge(3)
    for name in ("divergence", "unprotected"):
        event = Event(name, {"flow": "a b"})
        assert merge.take("2", event) == [event]


def test_a_gap_is_the_splitters_to_tell() -> None:
    merge, gap = Merge(2), Event("gap", {"stream": "primary"})
    assert merge.take("0", gap) == merge.take("1", gap) == []
    assert merge.take(SPLITTER, gap) == [gap]


def test_a_cut_is_told_once_all_have_followed_it() -> None:
    merge, cut = Merge(3), Event("cut", {"epoch": 4, "phase": "commit"})
    assert merge.take("0", cut) == merge.take("2", cut) == []
    assert merge.take("1", Event("cut", {"epoch": 5, "phase": "prepare"})) == []
    assert merge.take("1", cut) == [cut]


def test_nobody_waits_for_a_worker_that_is_gone() -> None:
    merge, cut = Merge(2), Event("cut", {"epoch": 4, "phase": "prepare"})
    assert merge.take("0", cut) == []
    assert merge.lost("1") == [cut]
    assert merge.lost("1") == []


def test_a_checkpoint_is_asked_for_once_until_the_next_commit() -> None:
    merge, asked = Merge(2), Event("checkpoint_requested", {"reason": "data"})
    assert merge.take("0", asked) == [asked]
    assert merge.take("1", asked) == []
    for worker in ("0", "1"):
        told = merge.take(worker, Event("cut", {"epoch": 1, "phase": "commit"}))
    assert told == [Event("cut", {"epoch": 1, "phase": "commit"})]
    assert merge.take("1", asked) == [asked]


def test_a_prepared_cut_answers_no_request() -> None:
    merge, asked = Merge(1), Event("checkpoint_requested", {})
    merge.take("0", asked)
    merge.take("0", Event("cut", {"epoch": 1, "phase": "prepare"}))
    assert merge.take("0", asked) == []


def test_a_failover_is_told_by_who_was_asked() -> None:
    assert Merge(2).take("0", Event("failover", {"survivor": "primary"})) == []
