"""The bytes of both sides around the place of a divergence, put side by side."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.report.report import Packet, Report

#: Bytes taken from packets before the place, and from it on.
BEFORE, BEHIND = 24, 40

CONTRADICTION = "secondary_contradicts_itself"


@dataclass(frozen=True, slots=True)
class Sides:
    """Two pieces that begin at one place.

    names: whose they are. begin: place of their first byte; None where they are no part of a stream or
    payload (SYNs). mark: index of the first byte that differs, or that one of them lacks; None if the
    difference lies behind what was kept.
    """

    names: tuple[str, str]
    left: bytes
    right: bytes
    begin: int | None
    mark: int | None

    def differing(self) -> tuple[int, int] | None:
        """The two bytes that differ, where both have one."""
        if self.mark is None or self.mark >= min(len(self.left), len(self.right)):
            return None
        return self.left[self.mark], self.right[self.mark]


def sides(report: Report) -> Sides:
    """What is known of both sides' bytes: from the packets at the place, else from what the comparer told."""
    names = ("primary", "secondary")
    ours, theirs = report.here("primary"), report.here("secondary")
    if report.reason == CONTRADICTION:
        names = ("secondary, before", "secondary, now")
        ours, theirs = theirs[-2:-1], theirs[-1:]
    if ours and theirs and report.offset is not None:
        before = min(BEFORE, _in_front(ours[-1]), _in_front(theirs[-1]))
        left, right = _around(ours[-1], before), _around(theirs[-1], before)
        mark = first_difference(left, right)
        if mark is not None:
            return Sides(names, left, right, report.offset - before, mark)
    mark = first_difference(report.primary, report.secondary)
    begin: int | None = 0
    if report.offset is None and report.protocol == "tcp":
        begin = None
    elif report.offset is not None and (report.protocol == "tcp" or mark is not None):
        # The comparer tells what begins shortly before the difference; of a datagram perhaps only what comes earlier.
        begin = report.offset - (mark or 0)
    return Sides(names, report.primary, report.secondary, begin, mark)


def first_difference(left: bytes, right: bytes) -> int | None:
    """Where two pieces differ first, or one ends; None if they are the same."""
    for at, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return at
    return None if len(left) == len(right) else min(len(left), len(right))


def _in_front(packet: Packet) -> int:
    """Bytes of payload in front of the place."""
    return max(0, (packet.place or 0) - packet.payload)


def _around(packet: Packet, before: int) -> bytes:
    place = packet.place or 0
    return packet.frame[place - before : min(place + BEHIND, packet.payload_end)]
