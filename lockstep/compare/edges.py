"""The numbers at which one file's pieces begin and end, beside the other's: how far the two files are apart.

Edges are a mapping from such numbers to the first bytes behind them (b"" where there are none, or it is not known).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lockstep.wire.seqnum import MASK, add, diff

#: A number farther than this from what was said, or acked, belongs to another connection.
JUMP = 1 << 26
#: Edges that are remembered of the beginning, and how many bytes behind each.
MOST_EDGES = 24
MOST_BEHIND = 16


def best_shift(
    primary: Mapping[int, bytes], secondary: Mapping[int, bytes], candidates: Iterable[int] = ()
) -> tuple[int, int]:
    """The distance from the secondary's numbers to the primary's under which most fall together, and how many do.

    Numbers behind which the two say other bytes do not count. Where several distances do, `candidates` come
    first, then none, then what joins the earliest numbers.
    """
    tried = dict.fromkeys([*candidates, 0, *(a - b & MASK for a in primary for b in secondary)])
    best = (-1, 0)
    for shift in tried:
        found = score(primary, secondary, shift)
        if found > best[0]:
            best = (found, shift)
            if found == len(secondary):
                break
    return best


def score(primary: Mapping[int, bytes], secondary: Mapping[int, bytes], shift: int) -> int:
    """How many numbers fall together under a distance, without those behind which the two say other bytes."""
    return sum(same(a, b) or not (a and b) for a, b in together(primary, secondary, shift))


def together(primary: Mapping[int, bytes], secondary: Mapping[int, bytes], shift: int) -> list[tuple[bytes, bytes]]:
    """What either says behind the numbers that fall together under a distance."""
    return [(primary[at], data) for edge, data in secondary.items() if (at := edge + shift & MASK) in primary]


def same(a: bytes, b: bytes) -> bool:
    """Whether both begin with the same bytes."""
    size = min(len(a), len(b))
    return size > 0 and a[:size] == b[:size]


def lowest(numbers: Iterable[int]) -> int:
    """The lowest of numbers that lie near each other, whatever wraps."""
    first, *others = numbers
    return add(first, min([0, *(diff(other, first) for other in others)]))
