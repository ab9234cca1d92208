"""What is no stream (UDP, ICMP, other IP, other ethertypes, frames that can't be read): whole, in order, per flow.

Either file's datagram is looked for among the next `window` that the other has to say, so the two may be
reordered that far. One that was overtaken by more is not going to be matched. Of several that say the same,
the one is taken that stands where it should: then what is left over is the one that differs, not the last.
"""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.compare.finding import DATA, UNMATCHED, Finding
from lockstep.compare.ledger import COST, PRIMARY, SECONDARY
from services.comparer.said import first_difference


@dataclass(slots=True, eq=False)
class Datagram:
    """What one frame says.

    frame: its number in its file. head: what is compared but is no payload (ICMP's type and the like).
    data: the payload that was captured, the beginning of `size` bytes. parts: of one that came in
    fragments, the frames its payload came in, as `(offset, frame)`. essence: of an ICMP error, what the
    comparer compares of it; to say the same in that is enough.
    """

    frame: int
    head: bytes
    data: bytes
    size: int
    parts: tuple[tuple[int, int], ...] = ()
    essence: bytes = b""
    index: int = 0
    offset: int = 0
    overtaken: int = 0

    def says(self, other: Datagram) -> bool:
        """Whether the two say the same."""
        if self.essence and self.essence == other.essence:
            return True
        return self.size == other.size and self.data == other.data and self.head == other.head

    def might_say(self, other: Datagram) -> bool:
        """Whether the two say the same as far as both were captured."""
        size = min(len(self.data), len(other.data))
        return self.size == other.size and self.head == other.head and self.data[:size] == other.data[:size]

    def frame_at(self, index: int) -> int:
        """The frame that holds the payload's byte at `index`."""
        return next((frame for start, frame in reversed(self.parts) if start <= index), self.frame)


class Datagrams:
    """One direction of one flow. costs: of what each file alone has said, in bytes; what both have costs nothing."""

    __slots__ = ("_count", "_lag", "_open", "_said", "_window", "costs", "hopeless")

    def __init__(self, window: int) -> None:
        self._window = window
        #: What either file has said and the other hasn't, oldest first.
        self._open: tuple[list[Datagram], list[Datagram]] = ([], [])
        #: Payload bytes of either file so far.
        self._said = [0, 0]
        #: Datagrams of either file so far, and how far ahead the primary's count stood at the last match.
        self._count = [0, 0]
        self._lag = 0
        self.costs = [0, 0, 0]
        self.hopeless = False

    def take(self, side: int, said: Datagram) -> None:
        """One file has this datagram next."""
        said.offset, said.index = self._said[side], self._count[side]
        self._said[side] += said.size
        self._count[side] += 1
        own, others = self._open[side], self._open[1 - side]
        index = self._find(side, said)
        if index is None:
            own.append(said)
            self.costs[side] += _cost(said)
        else:
            other = others[index]
            del others[index]
            self._lag = other.index - said.index if side == SECONDARY else said.index - other.index
            self.costs[1 - side] -= _cost(other)
            for passed in (others[0] if index else None, own[0] if own else None):
                if passed is not None:
                    passed.overtaken += 1
        if self._is_hopeless():
            self._excuse()
            self.hopeless = self._is_hopeless()

    def _is_hopeless(self) -> bool:
        window = self._window
        return min(map(len, self._open)) > window or any(queue and queue[0].overtaken > window for queue in self._open)

    def _excuse(self) -> None:
        """Match those that were not captured to the same length, as far as they were."""
        ours, theirs = self._open
        for mine in [said for said in ours if said.size]:
            for other in theirs[: self._window + 1]:
                if len(mine.data) != len(other.data) and mine.might_say(other):
                    ours.remove(mine)
                    theirs.remove(other)
                    self.costs[PRIMARY] -= _cost(mine)
                    self.costs[SECONDARY] -= _cost(other)
                    break

    def _find(self, side: int, said: Datagram) -> int | None:
        """Which of the other file's datagrams says the same: the one nearest to where the last ones matched."""
        expected = said.index + (self._lag if side == SECONDARY else -self._lag)
        found, least = None, 0
        for index, other in enumerate(self._open[1 - side]):
            if index > self._window:
                break
            away = abs(other.index - expected)
            if (found is None or away < least) and other.says(said):
                found, least = index, away
                if not away:
                    break
        return found

    def relax(self) -> None:
        """There is nothing to give up."""

    def conclude(self) -> Finding | None:
        """The first difference, if nothing more comes. None if the files are equal."""
        self._excuse()
        ours, theirs = self._open
        if not ours and not theirs:
            return None
        if not ours or not theirs:
            alone = (ours or theirs)[0]
            frames = (alone.frame_at(0), 0) if ours else (0, alone.frame_at(0))
            return Finding(UNMATCHED, alone.offset, *frames)
        first = ours[0]
        likeness, other = max(
            ((_likeness(first, other), other) for other in theirs[: self._window]), key=lambda pair: pair[0]
        )
        if not likeness and len(theirs) + len(ours) > 2:
            return Finding(UNMATCHED, first.offset, first.frame_at(0))
        at = _common(first.head + first.data, other.head + other.data) - len(first.head)
        at = max(at, 0)
        return Finding(DATA, first.offset + at, first.frame_at(at), other.frame_at(at))

    def unmatched(self) -> set[int]:
        """The primary's frames that are pending."""
        return {said.frame_at(start) for said in self._open[PRIMARY] for start, _ in said.parts or ((0, 0),)}


def _cost(said: Datagram) -> int:
    return len(said.data) + len(said.head) + COST


def _likeness(a: Datagram, b: Datagram) -> int:
    """How many bytes two datagrams have in common at their beginnings and, if they are as long, at their ends."""
    mine, theirs = a.head + a.data, b.head + b.data
    start = _common(mine, theirs)
    if len(mine) != len(theirs) or start == len(mine):
        return start
    return start + 1 + _common(mine[:start:-1], theirs[:start:-1])


def _common(a: bytes, b: bytes) -> int:
    """How many first bytes two have in common."""
    size = min(len(a), len(b))
    return first_difference(a[:size], b[:size])
