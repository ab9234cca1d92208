"""Two files, read side by side, so that memory holds what one is ahead of the other and never a file.

The one whose clock stands further back goes next, each clock counted from its file's first frame. Clocks
that don't tell the same story (or tell none) let one file run ahead: from `SKEW` bytes on that have no
match yet, the other one goes next whatever its clock says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from lockstep.capture.pcapfile import Packet
from lockstep.compare.ledger import PRIMARY, SECONDARY

SKEW = 4 << 20


class Sink(Protocol):
    """What is fed; `ahead` is how many bytes each file has said that the other hasn't."""

    @property
    def ahead(self) -> tuple[int, int]: ...

    def push(self, side: int, packet: Packet) -> None:
        """Take a file's next packet."""
        ...


class _Reader:
    """One file's packets, and where it stands: its clock, and frames that were taken."""

    __slots__ = ("_packets", "_start", "clock", "head", "taken")

    def __init__(self, packets: Iterator[Packet]) -> None:
        self._packets = packets
        self.head = next(packets, None)
        self._start = self.head.time_ns if self.head else 0
        self.clock = self.taken = 0

    def take(self) -> Packet:
        packet = self.head
        assert packet is not None
        self.taken += 1
        self.head = head = next(self._packets, None)
        if head is not None and head.time_ns - self._start > self.clock:
            self.clock = head.time_ns - self._start
        return packet


def feed(sink: Sink, primary: Iterator[Packet], secondary: Iterator[Packet]) -> Iterator[Packet]:
    """Push both files into `sink`, and give every packet that was.

    Raises what the readers raise.
    """
    a, b = _Reader(primary), _Reader(secondary)
    while a.head is not None or b.head is not None:
        side = PRIMARY if b.head is None or (a.head is not None and _first(sink, a, b)) else SECONDARY
        packet = (a if side == PRIMARY else b).take()
        sink.push(side, packet)
        yield packet


def _first(sink: Sink, a: _Reader, b: _Reader) -> bool:
    """Whether the primary goes next."""
    ours, theirs = sink.ahead
    if not -SKEW <= ours - theirs <= SKEW:
        return ours < theirs
    return a.clock < b.clock or (a.clock == b.clock and a.taken <= b.taken)
