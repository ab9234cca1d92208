"""One direction of the TCP connections between two ports, as both files have it.

What counts is what the comparer counts: the bytes and where they stand; SYN by its flags and options, FIN
and RST by their place; and that neither file acks what the other doesn't. Its order does not count, so the
two files are equal once everything said by one was said by the other. All numbers of the secondary are
moved into the primary's (`origin`), and then never unwrapped: where two captures disagree on the order of
a connection's pieces, they agree on its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

from lockstep.compare.acks import Acks
from lockstep.compare.finding import DATA, FIN, SYN, UNMATCHED, Finding
from lockstep.compare.ledger import COST, PRIMARY, SECONDARY, Ledger, Piece
from lockstep.compare.marks import Mark, Marks
from lockstep.compare.origin import Origin, agree, begin_alike, distance
from lockstep.compare.segment import Segment
from lockstep.wire import tcp
from lockstep.wire.seqnum import MASK, add

#: The primary's last number of a connection, and the distance from the secondary's numbers to it.
Level = tuple[int, int]

#: Connections that are remembered of one pair of ports and one file.
MOST_ORIGINS = 8


class Stream:
    """See the module. costs: of what each file alone has said, and of what both have, in bytes."""

    __slots__ = ("_ledger", "_marks", "_origins", "_said", "_shifts", "costs")

    def __init__(self) -> None:
        self._origins: tuple[list[Origin], list[Origin]] = ([], [])
        #: Segments of either file.
        self._said = [0, 0]
        #: Distances that were found, the latest last.
        self._shifts: tuple[int, ...] = ()
        self.costs = [0, 0, 0]
        self._ledger = Ledger(self.costs)
        self._marks = Marks(self.costs)

    # --- what comes in

    def take(self, side: int, segment: Segment) -> None:
        """One file has this segment next."""
        origins = self._origins[side]
        origin = origins[-1] if origins else None
        if origin is None or not origin.fits(segment):
            origin = self._origin(side, segment)
        self._said[side] += 1
        origin.note(segment, self._said[side])
        if segment.idle:
            return
        if origin.shift is None:
            origin.waiting.append(segment)
            self.costs[SECONDARY] += COST + segment.size
            self._join()
            return
        self._say(side, origin.shift, segment)
        if not origin.mated and side == PRIMARY:
            self._join()

    def _origin(self, side: int, segment: Segment) -> Origin:
        """The connection of a segment that isn't the latest one's; a new one if it is nobody's."""
        origins = self._origins[side]
        for origin in reversed(origins):
            if origin.fits(segment):
                return origin
        for origin in reversed(origins):
            if origin.adopt(segment) if segment.syn else origin.near(segment):
                return origin
        if len(origins) == MOST_ORIGINS:
            self._join(force=True)
            del origins[0]
        origins.append(Origin(segment, 0 if side == PRIMARY else None, origins[-1] if origins else None))
        return origins[-1]

    def _join(self, *, force: bool = False) -> None:
        """Find mates for the secondary's origins, those first that are beyond doubt; `force`: now or never."""
        for origin in self._waiting():
            if (found := self._agreeing(origin)) is not None:
                self._pair(origin, *found)
        while nearest := self._nearest(force=force):
            for ours, theirs, shift in nearest:
                if not ours.mated and not theirs.mated:
                    self._pair(theirs, ours, shift)
        if force:
            for origin in self._waiting():
                self._pair(origin, None, self._likely(origin))

    def _pair(self, origin: Origin, mate: Origin | None, shift: int) -> None:
        """The secondary's origin has its distance now, and its segments wait no longer."""
        origin.shift = shift
        if mate is not None:
            mate.mated = origin.mated = True
            mate.mate = origin
            mate.edges, origin.edges = {}, {}
            if origin.isn is not None:
                mate.syn_due = add(origin.isn, shift)
            elif mate.isn is not None:
                origin.syn_due = add(mate.isn, -shift)
            if shift not in self._shifts:
                self._shifts = (*self._shifts[1 - MOST_ORIGINS :], shift)
        waiting, origin.waiting = origin.waiting, []
        for segment in waiting:
            self.costs[SECONDARY] -= COST + segment.size
            self._say(SECONDARY, shift, segment)

    def _waiting(self) -> list[Origin]:
        return [origin for origin in self._origins[SECONDARY] if origin.shift is None]

    def _free(self) -> list[Origin]:
        return [origin for origin in self._origins[PRIMARY] if not origin.mated]

    def _agreeing(self, origin: Origin) -> tuple[Origin, int] | None:
        """A mate beyond doubt."""
        free = self._free()
        for shift in dict.fromkeys([*reversed(self._shifts), 0]):
            for other in free:
                if agree(other, origin, shift, known=shift in self._shifts):
                    return other, shift
        for other in free:
            if (found := begin_alike(other, origin)) is not None:
                return other, found
        return None

    def _nearest(self, *, force: bool) -> list[tuple[Origin, Origin, int]]:
        """The primary's and the secondary's origins that may be one, those first for whom most edges fall together.

        One with a SYN for one with a SYN, as long as there are such. And none before enough was seen of all: one
        that was not seen enough of may be it, however well another does.
        """
        pairs = [(ours, theirs) for theirs in self._waiting() for ours in self._free()]
        alike = [(ours, theirs) for ours, theirs in pairs if (ours.isn is None) == (theirs.isn is None)]
        among, silence = alike or pairs, bool(alike)
        said, heard = self._said
        if not force and not all(
            ours.settled(said, silence=silence) and theirs.settled(heard, silence=silence) for ours, theirs in among
        ):
            return []
        scored = [(distance(ours, theirs), ours, theirs) for ours, theirs in among]
        scored.sort(key=lambda entry: (-entry[0][0], entry[1].closed != entry[2].closed))
        return [(ours, theirs, shift) for (_, shift), ours, theirs in scored]

    def _likely(self, origin: Origin) -> int:
        """For an origin without a mate: a distance under which it says what the primary alone has said."""
        shifts = [*dict.fromkeys([*reversed(self._shifts), 0])]
        for shift in shifts:
            for segment in origin.waiting:
                if segment.size and self._ledger.expects(SECONDARY, add(segment.seq, shift), segment.data):
                    return shift
        return shifts[0]

    def _say(self, side: int, shift: int, segment: Segment) -> None:
        number = (segment.seq + shift) & MASK
        flags = segment.flags
        if flags & tcp.SYN:
            self._marks.say(side, (tcp.SYN, number, segment.options), segment.frame)
            number = add(number, 1)
        size = segment.size
        if size:
            data = segment.data
            if segment.parts:
                self._say_parts(side, number, segment)
            elif data:
                self._ledger.say(side, number, data, len(data), segment.frame)
            if len(data) < size:
                self._ledger.say(side, add(number, len(data)), None, size - len(data), segment.frame)
        if flags & tcp.FIN:
            self._marks.say(side, (tcp.FIN, add(number, size), b""), segment.frame)
        if segment.urgent is not None and not flags & (tcp.SYN | tcp.RST):
            self._marks.say(side, (tcp.URG, add(number, segment.urgent), b""), segment.frame)
        if flags & tcp.RST:
            self._marks.say(side, (tcp.RST, number, b""), segment.frame)
        elif not flags & (tcp.SYN | tcp.FIN | tcp.ACK) and not size:
            self._marks.say(side, (0, number, b""), segment.frame)

    def _say_parts(self, side: int, number: int, segment: Segment) -> None:
        starts = [*(start for start, _ in segment.parts), len(segment.data)]
        for (start, frame), end in zip(segment.parts, starts[1:], strict=True):
            if start < end:
                self._ledger.say(side, add(number, start), segment.data[start:end], end - start, frame)

    @property
    def hopeless(self) -> bool:
        """The two files differ in so much that the rest need not be looked at."""
        return self._ledger.hopeless

    def relax(self) -> None:
        """Give up what is settled."""
        self._ledger.forget(0, 0)

    # --- what it comes to

    def settle(self) -> None:
        """Nothing more comes: what waits for the primary waits no longer."""
        self._join(force=True)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Where the connections stand that both files have, and how far the files are apart there."""
        return tuple((ours.top, theirs.shift or 0) for ours, theirs in self._pairs())

    def conclude(self, back: tuple[Level, ...] = ()) -> Finding | None:
        """The first difference, if nothing more comes; None if there is none. back: what is acked (`levels`)."""
        self.settle()
        found = [*self._differences()] or [*self._unacked(back)]
        return min(found, key=_order, default=None)

    def unmatched(self) -> set[int]:
        """The primary's frames of which something is pending."""
        frames = {piece.frames[PRIMARY] for piece in self._ledger.leftover()}
        frames |= {frames[PRIMARY] for _, frames in self._marks.leftover()}
        return frames - {0}

    def _differences(self) -> Iterator[Finding]:
        for piece in self._ledger.leftover():
            yield self._difference(piece)
        yield from self._odd_marks()

    def _odd_marks(self) -> Iterator[Finding]:
        """Marks of one file alone. Both files' first SYN of one number, and first FIN, are a pair."""
        pairs: dict[Mark, list[int]] = {}
        for (flag, number, _), frames in self._marks.leftover():
            begin = add(number, 1) if flag == tcp.SYN else number
            pair = (flag, number, b"") if flag == tcp.SYN else (flag, 0, b"")
            seen = pairs.setdefault(pair, frames)
            reason = UNMATCHED
            if flag in (tcp.SYN, tcp.FIN) and bool(seen[PRIMARY]) != bool(frames[PRIMARY]):
                reason = SYN if flag == tcp.SYN else FIN
                frames = [a or b for a, b in zip(frames, seen, strict=True)]
            yield Finding(reason, self._offset(begin), *frames)

    def _difference(self, piece: Piece) -> Finding:
        frames = list(piece.frames)
        other = SECONDARY if frames[PRIMARY] else PRIMARY
        frames[other] = self._ledger.facing(piece)
        return Finding(DATA if frames[other] else UNMATCHED, self._offset(piece.start), *frames)

    def _pairs(self) -> list[tuple[Origin, Origin]]:
        return [(ours, ours.mate) for ours in self._origins[PRIMARY] if ours.mate is not None]

    def _unacked(self, back: tuple[Level, ...]) -> Iterator[Finding]:
        """Where one file has acked farther than the other: told at the end of its stream, since it is at no byte."""
        end = max((origin.top_place for origin in self._origins[PRIMARY] or self._origins[SECONDARY]), default=0)
        pairs = [(ours.acks, theirs.acks) for ours, theirs in self._pairs()]
        if frame := self._ahead(PRIMARY, pairs, back):
            yield Finding(UNMATCHED, end, frame)
        mirrored = [(theirs, ours) for ours, theirs in pairs]
        if frame := self._ahead(SECONDARY, mirrored, tuple((add(top, -shift), -shift & MASK) for top, shift in back)):
            yield Finding(UNMATCHED, end, 0, frame)

    def _ahead(self, side: int, pairs: list[tuple[Acks, Acks]], back: tuple[Level, ...]) -> int:
        """The frame of an ack of this file that the other did not reach; 0 if there is none.

        A connection's acks are judged by the distance of what comes back on it alone, which is what both files ack.
        """
        mine, others = (
            [origin.acks for origin in origins] for origins in (self._origins[side], self._origins[1 - side])
        )
        if not any(acks.fronts for acks in others):
            return max((frame for acks in mine for _, frame in acks.fronts), default=0)
        if len(others) < MOST_ORIGINS:  # of as many, some may be forgotten
            for top, shift in back:
                frame = max((acks.near(top) for acks in mine), default=0)
                if frame and not any(acks.near(add(top, -shift)) for acks in others):
                    return frame
        for one, other in pairs:
            known = [shift for top, shift in back if one.near(top) and other.near(add(top, -shift))]
            if frame := one.ahead_of(other, known):
                return frame
        return 0

    def _offset(self, number: int) -> int:
        """Where a number of the primary's stands in its stream."""
        origins = [(origin, number) for origin in self._origins[PRIMARY]]
        origins = origins or [(origin, add(number, -(origin.shift or 0))) for origin in self._origins[SECONDARY]]
        places = [(origin.place(at), origin) for origin, at in origins]
        inside = [place for place, origin in places if 0 <= place <= origin.top_place]
        behind = [place for place, _ in places if place >= 0]
        return min(inside or behind) if behind else max((place for place, _ in places), default=0)


def _order(finding: Finding) -> tuple[int, bool, int]:
    """By place; of one place what both files tell of, and then what came first."""
    return finding.offset, finding.reason == UNMATCHED, finding.primary_frame or finding.secondary_frame
