"""Batches, and the builder that collects frames into them."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.batch import MAX_BATCH, MAX_FRAME, Batch, BatchBuilder


def test_a_batch_of_frames_lays_them_end_to_end() -> None:
    batch = Batch.of(iter([b"one", b"three", bytearray(b"seventh"), memoryview(b"4")]), vnet=0, epoch=9)
    assert bytes(batch.data) == b"onethreeseventh4"
    assert list(batch.lengths) == [3, 5, 7, 1]
    assert (len(batch), batch.epoch) == (4, 9)
    assert list(batch.spans()) == [(0, 3), (3, 8), (8, 15), (15, 16)]
    assert batch.frames() == [b"one", b"three", b"seventh", b"4"]


def test_a_batch_without_frames_is_empty() -> None:
    batch = Batch.of([])
    assert (len(batch), bytes(batch.data), batch.frames(), list(batch.spans())) == (0, b"", [], [])


def test_the_longest_frame_is_64_kib_of_ip_with_ethernet_and_two_tags() -> None:
    assert MAX_FRAME == 65536 + 14 + 4 + 4


def test_a_batch_describes_itself_without_its_bytes() -> None:
    assert repr(Batch.of([b"one", b"three"], vnet=10, epoch=2)) == "Batch(2 frames, 8 bytes, vnet=10, epoch=2)"


def test_a_builder_without_frames_gives_no_batch() -> None:
    assert BatchBuilder().take() == []


def test_frames_of_one_size_of_header_share_a_batch() -> None:
    builder = BatchBuilder()
    for frame in (b"a" * 14, b"b" * 15):
        builder.append(frame, 0)
    (batch,) = builder.take()
    assert batch.frames() == [b"a" * 14, b"b" * 15]


def test_taking_empties_the_builder_and_leaves_what_was_taken_alone() -> None:
    builder = BatchBuilder()
    builder.append(b"first", 0)
    (first,) = builder.take()
    assert builder.take() == []
    builder.append(b"second", 0)
    (second,) = builder.take()
    assert (first.frames(), second.frames()) == ([b"first"], [b"second"])


@pytest.mark.parametrize("size", [1, 1000, MAX_FRAME + 12])
def test_batches_fill_up_to_the_limit_and_not_beyond(size: int) -> None:
    """The next frame would not have fitted: otherwise it would be in there."""
    builder = BatchBuilder()
    count = min(3 * MAX_BATCH // size, 2000) if size > 1 else 10
    for _ in range(count):
        builder.append(bytes(size), 0)
    batches = builder.take()
    assert sum(map(len, batches)) == count
    assert all(len(batch.data) <= MAX_BATCH for batch in batches)
    assert all(len(batch.data) + size > MAX_BATCH for batch in batches[:-1])


def test_a_frame_that_exactly_fills_the_batch_is_in_it() -> None:
    builder = BatchBuilder()
    for size in (MAX_BATCH - 1000, 1000, 1):
        builder.append(bytes(size), 0)
    assert [len(batch.data) for batch in builder.take()] == [MAX_BATCH, 1]


def test_a_range_that_does_not_fit_begins_a_batch() -> None:
    source = Batch.of([bytes(1000)] * 600)
    builder = BatchBuilder()
    builder.extend(source, 0, 600)
    builder.extend(source, 0, 600)
    assert [len(batch) for batch in builder.take()] == [600, 600]


@pytest.mark.parametrize(("first", "last"), [(0, 0), (2, 2), (2, 1)])
def test_an_empty_range_adds_nothing(first: int, last: int) -> None:
    builder = BatchBuilder()
    builder.extend(Batch.of([b"a", b"b", b"c"]), first, last)
    assert builder.take() == []


steps = st.lists(
    st.tuples(
        st.sampled_from([0, 10, 12]),
        st.lists(st.binary(min_size=1, max_size=30), max_size=6),
        st.integers(0, 6),
        st.integers(0, 6),
        st.booleans(),
    ),
    max_size=12,
)


@given(steps)
def test_appending_and_extending_keep_every_frame_its_header_and_the_order(
    steps: list[tuple[int, list[bytes], int, int, bool]],
) -> None:
    """And a batch holds one size of header alone."""
    builder = BatchBuilder()
    wanted: list[tuple[int, bytes]] = []
    for vnet, frames, first, last, one_by_one in steps:
        frames = [bytes(vnet) + frame for frame in frames]
        if one_by_one:
            for frame in frames:
                builder.append(memoryview(frame), vnet)
            wanted += [(vnet, frame) for frame in frames]
        else:
            builder.extend(Batch(memoryview(b"".join(frames)), array("I", map(len, frames)), vnet), first, last)
            wanted += [(vnet, frame) for frame in frames[first:last]]
    batches = builder.take()
    assert [(batch.vnet, frame) for batch in batches for frame in batch.frames()] == wanted
    assert all(len(batch) for batch in batches)
