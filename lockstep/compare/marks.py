"""SYN, FIN and RST in one direction of one TCP connection: which file has said which, and in which frame.

A *mark* is a flag, the number at which it stands, and for a SYN what it says. Like bytes it may be said any
number of times, and is settled once both files have said it.
"""

from __future__ import annotations

from lockstep.compare.ledger import COST, PRIMARY

#: Settled marks that are remembered, at least; twice as many at most.
MOST_SETTLED = 64

#: A flag of `wire.tcp` (0 for a segment that says nothing at all), its number, and a SYN's flags and options.
Mark = tuple[int, int, bytes]


class Marks:
    """See the module. costs: of what each file alone has said, in bytes; a list shared with others."""

    __slots__ = ("_costs", "_seen", "_settled")

    def __init__(self, costs: list[int]) -> None:
        self._seen: dict[Mark, list[int]] = {}
        self._settled: list[Mark] = []
        self._costs = costs

    def say(self, side: int, mark: Mark, frame: int) -> None:
        """One file has this mark in this frame."""
        frames = self._seen.get(mark)
        if frames is None:
            self._seen[mark] = [frame, 0] if side == PRIMARY else [0, frame]
            self._costs[side] += COST
        elif not frames[side]:
            frames[side] = frame
            self._costs[1 - side] -= COST
            self._settled.append(mark)
            if len(self._settled) > 2 * MOST_SETTLED:
                for old in self._settled[:MOST_SETTLED]:
                    del self._seen[old]
                del self._settled[:MOST_SETTLED]

    def leftover(self) -> list[tuple[Mark, list[int]]]:
        """Every mark that one file alone has said, with its frames."""
        return [(mark, frames) for mark, frames in self._seen.items() if not all(frames)]
