"""Where a connection's numbers begin in each file, and how far the two files' numbers are apart.

The rewriter learns that distance from a SYN. A capture may begin in the middle of a connection, lack the
SYN, or have it behind the data, and one pair of ports may see many connections. So each side of a flow has
its *origins*: a SYN opens one, and so does a segment far from everything before. The secondary's segments
wait until its origin has a *mate* on the primary's side:
  - at once where a distance that is known already (or none) makes the two fit,
  - with both SYNs, once either side goes on behind its own,
  - without, once either side has said `ENOUGH`, or nothing more can come: the distance under which most
    edges of the secondary's segments fall on edges of the primary's. Cutting leaves edges in place.
"""

from __future__ import annotations

from collections.abc import Iterable

from lockstep.compare.segment import Segment
from lockstep.wire.seqnum import MASK, add, diff

#: A segment farther than this from what its side has said belongs to another connection.
JUMP = 1 << 26
#: Segments from which a distance is judged, where there are no SYNs.
ENOUGH = 8
#: Edges that are remembered of the beginning.
MOST_EDGES = 24
OPENING = 64


class Origin:
    """One connection, as one file numbers it.

    isn: its SYN's number, None without one. first: its first segment's number, and `opening` that one's
    first bytes. mated: whether its mate is known, and syn_due: where that one's SYN would have this one's
    (None without one). shift: what leads to the primary's numbers; None where that isn't known yet. behind: the
    connection that came before on this side, if any.
    """

    __slots__ = (
        "count", "edges", "first", "isn",
        "mated", "opening", "over", "shift", "syn_due", "top", "top_place", "waiting",
    )  # fmt: skip

    def __init__(self, segment: Segment, shift: int | None, behind: Origin | None = None) -> None:
        self.first = segment.seq
        self.opening = segment.data[:OPENING]
        self.isn = segment.seq if segment.syn else None
        self.mated = False
        self.syn_due: int | None = None
        #: Another connection has begun on this side.
        self.over = False
        self.shift = shift
        self.count = 0
        #: Numbers at which segments begin and end, until this origin has a mate.
        self.edges: dict[int, None] = {}
        #: The secondary's segments that wait for `shift`.
        self.waiting: list[Segment] = []
        # Places are numbers that do not wrap. The byte behind the SYN, or the first number seen, stands at 0.
        self.top = add(segment.seq, 1) if segment.syn else segment.seq
        # Without a SYN, and far from what was before, it counts on: a capture may lack any part of a stream.
        self.top_place = 0
        if behind is not None and self.isn is None:
            self.top_place = behind.top_place & ~MASK | behind.top_place + self.top - behind.top & MASK

    def place(self, number: int) -> int:
        """Where a number of this side's stands in its stream."""
        return self.top_place + diff(number, self.top)

    def fits(self, segment: Segment) -> bool:
        """Whether a segment can belong to this connection: it is no other's SYN, and not far away."""
        if segment.syn:
            return segment.seq == self.isn
        near = diff(segment.seq, self.top)
        if not -JUMP < near < JUMP:
            return False
        # Before the SYN stands at most a keep-alive's byte.
        return self.isn is None or self.top_place + near >= -1

    def near(self, segment: Segment) -> bool:
        """Whether a segment stands where this connection's could, were it not before its SYN."""
        return -JUMP < diff(segment.seq, self.top) < JUMP

    def adopt(self, segment: Segment) -> bool:
        """Take a SYN that came behind its connection's first segments."""
        if self.isn is not None or self.count > MOST_EDGES:
            return False
        begin = add(segment.seq, 1)
        if self.mated:
            if segment.seq != self.syn_due:
                return False
        elif not -1 <= diff(_lowest(self.edges), begin) < JUMP:
            return False
        self.isn = segment.seq
        self.top_place = diff(self.top, begin)
        self.first, self.opening = segment.seq, segment.data[:OPENING]
        return True

    def note(self, segment: Segment) -> None:
        """Follow a segment of this connection."""
        self.count += 1
        seq = segment.seq
        begin = add(seq, 1) if segment.syn else seq
        end = add(begin, segment.size)
        place = self.top_place + diff(end, self.top)
        if place > self.top_place:
            self.top, self.top_place = end, place
        if not self.mated and len(self.edges) < MOST_EDGES:
            self.edges[seq] = self.edges[begin] = self.edges[end] = None


def ready(primary: Origin, secondary: Origin) -> bool:
    """Whether enough was seen of both to judge their distance; of one that is over that is what there is."""
    if (primary.isn is None) != (secondary.isn is None):
        return primary.count >= ENOUGH and secondary.count >= ENOUGH
    enough = ENOUGH if primary.isn is None else 2
    return all(origin.over or origin.count >= enough for origin in (primary, secondary))


def agree(primary: Origin, secondary: Origin, shift: int, *, known: bool) -> bool:
    """Whether a distance makes two origins one beyond doubt. known: it did so for others of this flow."""
    if primary.isn is not None and secondary.isn is not None:
        return primary.isn == add(secondary.isn, shift)
    if known:
        return add(secondary.first, shift) in primary.edges
    # Small numbers coincide easily; the bytes behind them do not.
    size = min(len(primary.opening), len(secondary.opening))
    return primary.first == secondary.first and size > 0 and primary.opening[:size] == secondary.opening[:size]


def distance(primary: Origin, secondary: Origin) -> tuple[int, int]:
    """How many edges fall together under the best distance, and that distance."""
    candidates = []
    if primary.isn is not None and secondary.isn is not None:
        candidates.append(add(primary.isn, -secondary.isn))
    candidates.append(_lowest(primary.edges) - _lowest(secondary.edges) & MASK)
    return best_shift(primary.edges, secondary.edges, candidates)


def best_shift(primary: Iterable[int], secondary: Iterable[int], candidates: Iterable[int] = ()) -> tuple[int, int]:
    """The distance from the secondary's numbers to the primary's under which most fall together, and how many do.

    Where several do, `candidates` come first, then none, then what joins the earliest numbers.
    """
    ours, theirs = dict.fromkeys(primary), list(secondary)
    tried = dict.fromkeys([*candidates, 0, *(a - b & MASK for a in ours for b in theirs)])
    best = (-1, 0)
    for shift in tried:
        score = sum(add(b, shift) in ours for b in theirs)
        if score > best[0]:
            best = (score, shift)
            if score == len(theirs):
                break
    return best


def _lowest(numbers: Iterable[int]) -> int:
    """The lowest of numbers that lie near each other, whatever wraps."""
    first, *others = numbers
    return add(first, min([0, *(diff(other, first) for other in others)]))
