"""Where a connection's numbers begin in each file, and how far the two files' numbers are apart.

The rewriter learns that distance from a SYN. A capture may begin in the middle of a connection, lack the
SYN, or have it behind the data, and one pair of ports may see many connections. So each side of a flow has
its *origins*: a SYN opens one, and so does a segment far from everything before. The secondary's segments
wait until its origin has a *mate* on the primary's side:
  - at once where a distance that is known already (or none) makes the two fit,
  - with both SYNs, once both files say the same behind them,
  - else once both sides have said `ENOUGH` of it, or it is over, or nothing more can come: the distance under
    which most edges of the secondary's segments fall on edges of the primary's, and begin no other bytes there.
    Cutting leaves edges in place.

A connection is over once its side has said `ENOUGH` of others, and not when the next one begins: where ports
are used again, a capture may have the two interleaved, or a segment in front of its SYN.
"""

from __future__ import annotations

from lockstep.compare.acks import Acks
from lockstep.compare.edges import JUMP, MOST_BEHIND, MOST_EDGES, best_shift, lowest, same, score, together
from lockstep.compare.segment import Segment
from lockstep.wire import tcp
from lockstep.wire.seqnum import MASK, add, diff

#: A SYN belongs to segments that came before it if they stand no farther behind it than a few of the largest reach.
SYN_REACH = 1 << 20
#: Segments from which a distance is judged, and behind which a connection is over.
ENOUGH = 8


class Origin:
    """One connection, as one file numbers it.

    isn: its SYN's number, None without one. first: its first segment's number. count: its segments, and `words`
    those that say something. last: how many segments its side had said with its last one. mated: whether its
    mate is known, and syn_due: where that one's SYN would have this one's (None without one). mate: the secondary's,
    if this is the primary's and has one. closed: whether it said FIN. acks: how far it acked. shift: what leads to
    the primary's numbers; None where that isn't known yet. behind: the connection that came before on this side,
    if any.
    """

    __slots__ = (
        "acks", "closed", "count", "edges", "first", "isn", "last",
        "mate", "mated", "shift", "syn_due", "top", "top_place", "waiting", "words",
    )  # fmt: skip

    def __init__(self, segment: Segment, shift: int | None, behind: Origin | None = None) -> None:
        self.first = segment.seq
        self.isn = segment.seq if segment.syn else None
        self.mated = self.closed = False
        self.mate: Origin | None = None
        self.acks = Acks()
        self.syn_due: int | None = None
        self.shift = shift
        self.count = self.words = self.last = 0
        #: Numbers at which segments begin and end, and the first bytes there, until this origin has a mate.
        self.edges: dict[int, bytes] = {}
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
        elif not -1 <= diff(lowest(self.edges), begin) < SYN_REACH:
            return False
        self.first = self.isn = segment.seq
        self.top_place = diff(self.top, begin)
        return True

    def note(self, segment: Segment, said: int) -> None:
        """Follow a segment of this connection. said: how many its side has said with it."""
        self.count += 1
        self.words += not segment.idle
        self.last = said
        self.closed |= bool(segment.flags & tcp.FIN)
        if segment.flags & (tcp.ACK | tcp.RST) == tcp.ACK:  # a RST's ack often says nothing
            self.acks.take(segment)
        seq = segment.seq
        begin = add(seq, 1) if segment.syn else seq
        end = add(begin, segment.size)
        place = self.top_place + diff(end, self.top)
        if place > self.top_place:
            self.top, self.top_place = end, place
        if not self.mated and len(self.edges) < MOST_EDGES:
            for edge in (seq, end, add(end, bool(segment.flags & tcp.FIN))):
                self.edges.setdefault(edge, b"")
            self.edges[begin] = self.edges.get(begin) or segment.data[:MOST_BEHIND]

    def settled(self, said: int, *, silence: bool) -> bool:
        """Whether enough was seen of it to judge distances by; `silence`: that it is over is enough, too.

        said: how many segments its side has said.
        """
        return self.words >= ENOUGH or (silence and said - self.last >= ENOUGH)


def agree(primary: Origin, secondary: Origin, shift: int, *, known: bool) -> bool:
    """Whether a distance makes two origins one beyond doubt. known: it did so for others of this flow."""
    if primary.isn is not None and secondary.isn is not None:
        return primary.isn == add(secondary.isn, shift)
    at = add(secondary.first, shift)
    # Small numbers coincide easily; the bytes behind them do not.
    return at in primary.edges and (known or same(primary.edges[at], secondary.edges[secondary.first]))


def begin_alike(primary: Origin, secondary: Origin) -> int | None:
    """The distance of two SYNs, if both files say the same bytes behind them."""
    if primary.isn is None or secondary.isn is None:
        return None
    shift = add(primary.isn, -secondary.isn)
    return shift if any(same(a, b) for a, b in together(primary.edges, secondary.edges, shift)) else None


def distance(primary: Origin, secondary: Origin) -> tuple[int, int]:
    """How many edges fall together under the best distance, and that distance. Two SYNs leave one alone."""
    if primary.isn is not None and secondary.isn is not None:
        shift = add(primary.isn, -secondary.isn)
        return score(primary.edges, secondary.edges, shift), shift
    return best_shift(primary.edges, secondary.edges, [lowest(primary.edges) - lowest(secondary.edges) & MASK])
