"""What the secondary has said in one direction of one TCP connection: bytes by place in the stream.

Places are plain integers (sequence numbers unwrapped by the flow), so nothing wraps here. Bytes
lie in *runs*, sorted, without overlap and never touching; nearly always there is one.
"""

from __future__ import annotations

from collections.abc import Iterator

from lockstep.batch import Buffer

#: Answers of `check` besides the place of a difference.
EQUAL, MISSING, DIFFERENT = range(3)

#: Runs kept apart before the oldest place is given up.
MOST_RUNS = 64


class Said:
    """Bytes by place. `size` is how many are kept."""

    __slots__ = ("_runs", "_starts", "place", "size")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._runs: list[bytearray] = []
        self.size = 0
        #: Where the last `check` or `add` found a difference.
        self.place = 0

    def add(self, place: int, data: Buffer) -> bool:
        """Keep `data` at `place`. False if other bytes were said there before, at `self.place`; those stay."""
        if not len(data):
            return True
        starts, runs = self._starts, self._runs
        if starts and place == starts[-1] + len(runs[-1]):
            runs[-1] += data
            self.size += len(data)
            return True
        return self._insert(place, bytes(data))

    def _insert(self, place: int, data: bytes) -> bool:
        """The general case: merge with every run that overlaps or touches."""
        starts, runs = self._starts, self._runs
        end = place + len(data)
        first = 0
        while first < len(starts) and starts[first] + len(runs[first]) < place:
            first += 1
        last = first
        agreed = True
        while last < len(starts) and starts[last] <= end:
            agreed = self._agrees(last, place, data) and agreed
            last += 1
        if not agreed:
            return False
        if first == last:
            starts.insert(first, place)
            runs.insert(first, bytearray(data))
            self.size += len(data)
        else:
            self._merge(first, last, place, data)
        if len(starts) > MOST_RUNS:
            self.size -= len(runs[0])
            del starts[0], runs[0]
        return True

    def _agrees(self, index: int, place: int, data: bytes) -> bool:
        start, run = self._starts[index], self._runs[index]
        low, high = max(start, place), min(start + len(run), place + len(data))
        old, new = run[low - start : high - start], data[low - place : high - place]
        if old == new:
            return True
        self.place = low + first_difference(old, new)
        return False

    def _merge(self, first: int, last: int, place: int, data: bytes) -> None:
        starts, runs = self._starts, self._runs
        begin = min(starts[first], place)
        whole = bytearray(max(starts[last - 1] + len(runs[last - 1]), place + len(data)) - begin)
        whole[place - begin : place - begin + len(data)] = data
        for index in range(first, last):
            at = starts[index] - begin
            whole[at : at + len(runs[index])] = runs[index]
            self.size -= len(runs[index])
        self.size += len(whole)
        starts[first:last] = [begin]
        runs[first:last] = [whole]

    def check(self, place: int, data: Buffer, start: int, end: int) -> int:
        """EQUAL if all of `data[start:end]` was said at `place`, MISSING if some was not, DIFFERENT at `self.place`."""
        size = end - start
        for index in range(len(self._starts) - 1, -1, -1):
            begin, run = self._starts[index], self._runs[index]
            if begin <= place and place + size <= begin + len(run):
                said = run[place - begin : place - begin + size]
                if said == data[start:end]:
                    return EQUAL
                self.place = place + first_difference(said, data[start:end])
                return DIFFERENT
        return MISSING

    def read(self, place: int, size: int) -> bytes:
        """Up to `size` bytes said from `place` on, for a report."""
        for start, run in zip(self._starts, self._runs, strict=True):
            if start <= place < start + len(run):
                return bytes(run[place - start : place - start + size])
        return b""

    def runs(self) -> Iterator[tuple[int, bytes]]:
        """All that is kept, as `(place, bytes)`, in order."""
        return ((start, bytes(run)) for start, run in zip(self._starts, self._runs, strict=True))

    def end(self) -> int | None:
        """The place behind the last byte said; None if nothing is kept."""
        return self._starts[-1] + len(self._runs[-1]) if self._starts else None

    def forget(self, before: int, *, every_run: bool) -> None:
        """Give up bytes below `before`: of the last run alone, or of every run."""
        index = 0 if every_run else len(self._starts) - 1
        while 0 <= index < len(self._starts):
            start, run = self._starts[index], self._runs[index]
            if start + len(run) <= before:
                self.size -= len(run)
                del self._starts[index], self._runs[index]
                continue
            if start < before:
                del run[: before - start]
                self.size -= before - start
                self._starts[index] = before
            index += 1

    def clear(self) -> None:
        """Give up everything."""
        self._starts.clear()
        self._runs.clear()
        self.size = 0


def first_difference(a: Buffer, b: Buffer) -> int:
    """Index of the first byte in which two buffers of one length differ; their length if none."""
    low, high = 0, len(a)
    while low < high:
        middle = (low + high) // 2
        if a[low : middle + 1] == b[low : middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low
