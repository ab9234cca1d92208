"""How far each file has acked in one connection: neither may be ahead of the other.

Acks stand in the numbers of the stream that comes back. How far the files are apart there need not be known: a
file may hold one direction alone. So any distance will do under which the two are level, and only one that
something speaks for can tell that they aren't: that of the connection that comes back, and never another's on the
same ports.
"""

from __future__ import annotations

from collections.abc import Sequence

from lockstep.compare.edges import JUMP, MOST_EDGES, best_shift
from lockstep.compare.segment import Segment
from lockstep.wire.seqnum import add, diff

#: Runs whose highest acks are remembered.
MOST_FRONTS = 8


class Acks:
    """The acks of one connection in one file. fronts: the highest of each run, and its frame; the latest last.

    Acks farther apart than `JUMP` are of different runs: what comes back is another connection, though this direction
    goes on; or a capture lacks much.
    """

    __slots__ = ("_first", "fronts")

    def __init__(self) -> None:
        self.fronts: list[tuple[int, int]] = []
        self._first: dict[int, bytes] = {}

    def take(self, segment: Segment) -> None:
        """Follow a segment that acks."""
        ack = segment.ack
        if len(self._first) < MOST_EDGES:
            self._first[ack] = b""
        fronts = self.fronts
        for index in range(len(fronts) - 1, -1, -1):
            ahead = diff(ack, fronts[index][0])
            if -JUMP < ahead <= 0:
                return
            if 0 < ahead < JUMP:
                fronts[index] = (ack, segment.frame)
                return
        fronts.append((ack, segment.frame))
        del fronts[:-MOST_FRONTS]

    def near(self, number: int) -> int:
        """The frame of a front near a number of the stream that comes back; 0 if there is none."""
        return next((frame for front, frame in self.fronts if -JUMP < diff(front, number) < JUMP), 0)

    def ahead_of(self, other: Acks, known: Sequence[int]) -> int:
        """The frame of an ack that the other file did not reach; 0 if there is none.

        known: distances from the other file's numbers to this one's that were found where the connection comes back.
        """
        common, found = best_shift(self._first, other._first)
        shifts = [*known, found] if common > 1 else [*known]
        if any(front in self._first for front, _ in other.fronts) or any(
            front in other._first for front, _ in self.fronts
        ):
            shifts.append(0)
        for front, frame in reversed(self.fronts):
            reached = [diff(add(theirs, shift), front) for theirs, _ in other.fronts for shift in shifts]
            if len(self.fronts) + len(other.fronts) > 2:  # those far away are of other runs
                reached = [ahead for ahead in reached if -JUMP < ahead < JUMP]
            if reached and max(reached) < 0:
                return frame
        return 0
