# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""One side of the fast lane: its batches, and the ring of entries for the frames that wait in them.

    batches   oldest ──▶ newest, each with marks for its frames; kept while a frame waits, and as history
    ring      one entry for each frame: its batch, where it lies there, and the next of the same flow

Batches and entries are numbered; numbers wrap at 32 bits. 0 is no entry.
"""

from __future__ import annotations

import mmap

from lockstep.batch import Batch, BatchBuilder
from lockstep.wire.view import View

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: Entries of a ring: more than the frames of two messages.
RING = 1 << 17
#: Batches of a side that are kept at most.
MOST_BATCHES = 8192
#: Fields of an entry, 32 bits each. E_PREVIOUS: of the same flow, for its history.
ENTRY = 8
E_BATCH, E_INDEX, E_START, E_L4, E_SIZE, E_NEXT, E_PREVIOUS, E_RECORD = range(ENTRY)

#: A part of a batch with as many bytes leaves without being copied.
LARGE = 32 << 10

#: Marks of a batch's frames.
WAITS, LEAVES, GONE = range(3)

_ENTRY, _RING_MASK, _MASK = ENTRY, RING - 1, 0xFFFFFFFF
_E_BATCH, _E_INDEX, _E_START, _E_L4 = E_BATCH, E_INDEX, E_START, E_L4
_E_SIZE, _E_NEXT, _E_PREVIOUS, _E_RECORD = E_SIZE, E_NEXT, E_PREVIOUS, E_RECORD
_LEAVES, _GONE, _LARGE = LEAVES, GONE, LARGE


class Kept:
    """A batch of one side. Its bytes never change.

    number: of the batch, on its side. first: number of its first frame. at: when it came.
    left: frames that wait in the lane. fresh: those marked to leave since `gather` last looked.
    first_entry, entries: the ring's entries for it come behind the first of these, so many.
    """

    def __init__(self, batch: Batch, number: int, first: int, at: float, first_entry: int) -> None:
        if not batch.stable:
            batch = Batch(bytes(batch.data), batch.lengths[:], batch.vnet, batch.epoch)
        self.batch = batch
        self.number = number
        self.first = first
        self.at = at
        self.count = len(batch.lengths)
        self.left = self.fresh = self.low = self.low_start = self.high = self.entries = 0
        self.first_entry = first_entry
        self._see(batch)

    def _see(self, batch: Batch) -> None:
        self.view = memoryview(batch.data)
        # Views, so that nobody can resize what the pointers lead to.
        data, lengths, marks = View(batch.data), View(batch.lengths), View(bytearray(self.count))
        self._views = data, lengths, marks
        self.data, self.lengths, self.marks = data.data, lengths.words, marks.data

    def leave(self, index: int, start: int) -> None:
        """Mark a frame, which begins at `start`, to leave."""
        self.marks[index] = _LEAVES
        if not self.fresh:
            self.low, self.low_start, self.high = index, start, index
        elif index < self.low:
            self.low, self.low_start = index, start
        elif index > self.high:
            self.high = index
        self.fresh += 1

    def gone(self, index: int) -> None:
        """Mark a frame as dealt with elsewhere."""
        self.marks[index] = _GONE

    def gather(self, builder: BatchBuilder) -> bool:
        """Copy what is marked to leave, run by run; False, and nothing copied, if that is the whole batch."""
        whole: bool = self.fresh == self.count
        run = run_start = -1
        end = self.low_start
        for index in range(self.low, self.high + 1):
            start = end
            end += self.lengths[index]
            if self.marks[index] == _LEAVES:
                self.marks[index] = _GONE
                if run < 0:
                    run, run_start = index, start
            elif run >= 0:
                builder.extend_from(self.batch, run, index, run_start, start)
                run = -1
        if run >= 0 and not whole:
            builder.extend_from(self.batch, run, self.high + 1, run_start, end)
        self.fresh = 0
        return not whole

    def part(self) -> Batch | None:
        """What is marked to leave, as it lies there, if it is a run of many bytes; None, and nothing done, if not."""
        if self.fresh == self.count or self.fresh != self.high - self.low + 1:
            return None
        end = self.low_start
        for index in range(self.low, self.high + 1):
            end += self.lengths[index]
        if end - self.low_start < _LARGE:
            return None
        for index in range(self.low, self.high + 1):
            self.marks[index] = _GONE
        self.fresh = 0
        data = memoryview(self.batch.data).toreadonly()[self.low_start : end]
        return Batch(data, self.batch.lengths[self.low : self.high + 1], self.batch.vnet)


class Side:
    """See the module.

    bytes: of all its batches. entry: number of the newest. done: how many batches in front nothing waits in.
    """

    def __init__(self) -> None:
        self.batches: list[Kept] = []
        self.bytes = self.done = self._first = 0
        self.entry = 0
        self._memory = mmap.mmap(-1, RING * ENTRY * 4, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._see(memoryview(self._memory).cast("I"))

    def _see(self, ring: memoryview) -> None:
        if cython.compiled:
            self.ring = cython.address(ring[0])
        else:
            self.ring = ring

    def take(self, batch: Batch, first: int, at: float) -> Kept:
        """Keep a batch."""
        kept = Kept(batch, (self._first + len(self.batches)) & _MASK, first, at, self.entry)
        self.batches.append(kept)
        self.bytes += len(batch.data)
        return kept

    def add(self, kept: Kept, index: int, start: int, l4: int, size: int, record: int) -> int:
        """An entry for a frame of the newest batch; its offset in the ring. Its number is `entry` from now on."""
        self.entry = (self.entry + 1) & _MASK or 1
        at = (self.entry & _RING_MASK) * _ENTRY
        ring = self.ring
        ring[at + _E_BATCH] = kept.number
        ring[at + _E_INDEX] = index
        ring[at + _E_START] = start
        ring[at + _E_L4] = l4
        ring[at + _E_SIZE] = size
        ring[at + _E_NEXT] = 0
        ring[at + _E_PREVIOUS] = 0
        ring[at + _E_RECORD] = record
        kept.entries += 1
        kept.left += 1
        return at

    def at(self, number: int) -> int:
        """Where an entry lies in the ring."""
        return (number & _RING_MASK) * _ENTRY

    def holder(self, at: int) -> Kept:
        """The batch of an entry that waits."""
        kept: Kept = self.batches[(self.ring[at + _E_BATCH] - self._first) & _MASK]
        return kept

    def recent(self, number: int, record: int) -> Kept | None:
        """The batch of an entry of this record's past, if both are still there."""
        at = self.at(number)
        index = (self.ring[at + _E_BATCH] - self._first) & _MASK
        there = (self.entry - number) & _MASK < RING - 1 and self.ring[at + _E_RECORD] == record
        return self.batches[index] if there and index < len(self.batches) else None

    def has_room(self, frames: int, most_bytes: int) -> bool:
        """Whether a batch of so many frames can come without the oldest one going."""
        if not self.batches:
            return True
        oldest = self.batches[0]
        used = (self.entry - oldest.first_entry) & _MASK
        return self.bytes <= most_bytes and len(self.batches) < MOST_BATCHES and used + frames < RING - 2

    def drop_oldest(self) -> None:
        """Give up the oldest batch, in which nothing waits."""
        self._drop(1)

    def let_go(self, most_bytes: int, most_batches: int) -> None:
        """Give up batches in front where nothing waits, down to these limits."""
        count = len(self.batches)
        while self.done < count and not self.first_left(self.done):
            self.done += 1
        dropped, size = 0, self.bytes
        while dropped < self.done and (size > most_bytes or count - dropped > most_batches):
            size -= len(self.batches[dropped].batch.data)
            dropped += 1
        if dropped:
            self._drop(dropped)

    def first_left(self, index: int) -> int:
        """Frames that wait in a batch."""
        kept = self.batches[index]
        return kept.left

    def _drop(self, count: int) -> None:
        for kept in self.batches[:count]:
            self.bytes -= len(kept.batch.data)
        del self.batches[:count]
        self.done = max(0, self.done - count)
        self._first = (self._first + count) & _MASK

    def waiting(self) -> list[Kept]:
        """The batches in which frames wait, oldest first."""
        return [kept for kept in self.batches[self.done :] if kept.left]

    def oldest(self) -> float | None:
        """When the oldest batch came in which frames wait."""
        for index in range(self.done, len(self.batches)):
            kept = self.batches[index]
            if kept.left:
                return kept.at
        return None
