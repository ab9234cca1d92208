"""A table is looked through a part at a time, and every entry gets its turn."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.flow.sweep import ENTRIES, EVERY, Sweep


def keys(count: int, offset: int = 0) -> dict[bytes, None]:
    return dict.fromkeys(number.to_bytes(4, "big") for number in range(offset, offset + count))


def started(now: float = 100.0) -> Sweep:
    sweep = Sweep()
    sweep.start(now)
    return sweep


def looks(sweep: Sweep, table: dict[bytes, None], count: int) -> list[list[bytes]]:
    """What each of the next looks gives, each when it is due."""
    parts = []
    for _ in range(count):
        assert sweep.next is not None
        parts.append(sweep.due(table, sweep.next))
    return parts


def test_nothing_is_due_before_it_started() -> None:
    sweep = Sweep()
    assert sweep.next is None
    assert sweep.due(keys(3), 1e9) == []


def test_the_first_look_is_due_one_interval_after_the_start() -> None:
    assert started(100.0).next == 100.0 + EVERY


def test_starting_again_changes_nothing() -> None:
    sweep = started(100.0)
    sweep.start(500.0)
    assert sweep.next == 100.0 + EVERY


def test_a_look_that_is_not_due_gives_nothing_and_moves_nothing() -> None:
    sweep, table = started(100.0), keys(3)
    looks(sweep, table, 1)
    due = sweep.next
    assert sweep.due(table, due - 0.001) == []
    assert sweep.next == due


def test_the_next_look_is_due_one_interval_after_this_one() -> None:
    sweep = started(100.0)
    sweep.due({}, 250.0)
    assert sweep.next == 250.0 + EVERY


def test_no_look_takes_more_than_its_part() -> None:
    parts = looks(started(), keys(3 * ENTRIES + 7), 6)
    assert max(map(len, parts)) == ENTRIES


@settings(max_examples=20)
@given(st.sampled_from([0, 1, ENTRIES - 1, ENTRIES, ENTRIES + 1, 2 * ENTRIES, 2 * ENTRIES + 3]))
def test_every_entry_is_looked_at_once_a_round(count: int) -> None:
    table = keys(count)
    rounds = count // ENTRIES + 2  # one look more finds the end, or begins
    first = [key for part in looks(started(), table, rounds) for key in part]
    assert sorted(first) == sorted(table)


def test_the_rounds_go_on_for_ever() -> None:
    table = keys(ENTRIES + 3)
    seen = Counter(key for part in looks(started(), table, 20) for key in part)
    assert min(seen[key] for key in table) >= 5


def test_a_table_may_change_between_two_looks() -> None:
    """Entries that went may still be named; those that came get their turn in the next round."""
    sweep, table = started(), keys(2 * ENTRIES)
    looks(sweep, table, 2)
    table.clear()
    table.update(keys(10, offset=1_000_000))
    later = {key for part in looks(sweep, table, 4) for key in part}
    assert set(table) <= later
