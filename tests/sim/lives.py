"""What a guest has said on one connection: the checker's own memory of it.

*Places* count the bytes of a stream from 0. A *life* is one connection in one guest. The secondary's
lives are those of its present epoch: at a commit they become copies of the primary's.
"""

from __future__ import annotations

from sim.habits import Key
from sim.wire import ACK, FIN, MASK, PSH, RST, SYN, URG, Packet, distance

#: The option of MPTCP, which is taken out of SYNs.
MULTIPATH = 30
#: How far from its beginning a stream may be believed to reach.
REACH = 1 << 20


class Violation(Exception):
    """An invariant does not hold. rule: its number in the design."""

    def __init__(self, rule: int, what: str) -> None:
        self.rule = rule
        super().__init__(f"invariant {rule}: {what}")


class Life:
    """A connection in a guest, and what it has said by now."""

    def __init__(self, label: int, iss: int, key: Key, turn: int = 0) -> None:
        #: A late duplicate of a SYN can open the same connection twice; `turn` tells the two apart.
        self.label, self.iss, self.key, self.turn = label, iss, key, turn
        self.said = bytearray()
        self.have = bytearray()
        self.ack: int | None = None
        self.top = 0
        self.fins: set[int] = set()
        #: Places of urgent pointers, and single bytes said again: a keep-alive carries any.
        self.urgent: set[int] = set()
        self.probes: set[tuple[int, bytes]] = set()
        self.syns: set[tuple[int, int, tuple[bytes, ...]]] = set()
        self.stamps: set[int] = set()
        #: Said by the primary before the cut that made this copy: place, ack, FIN, SYN.
        self.covered = 0
        self.covered_ack: int | None = None
        self.covered_fins: set[int] = set()
        self.copied = False
        #: Its receive window's right edge, as it has told.
        self.edge: int | None = None
        #: Its SYN went through the rewriter that lives now, with this clock value.
        self.waiting = False
        self.first_stamp: int | None = None
        self.shift: int | None = None
        #: The newest timestamp that the client has echoed.
        self.echoed: int | None = None

    def copy(self) -> Life:
        """What the secondary knows of it as a copy."""
        other = Life(self.label, self.iss, self.key, self.turn)
        other.covered, other.covered_ack, other.covered_fins = self.top, self.ack, set(self.fins)
        other.urgent, other.probes = set(self.urgent), set(self.probes)
        other.top, other.stamps, other.copied = self.top, self.stamps, True
        other.syns = set(self.syns)
        return other

    def place(self, seq: int) -> int | None:
        """Of a sequence number, if it can belong to this life; -1 is the SYN, or a keep-alive."""
        place = distance(seq, self.iss + 1)
        return place if -1 <= place <= max(self.top, self.covered) + REACH else None

    def say(self, p: Packet) -> None:
        """It says this segment."""
        if p.flags & SYN:
            self.syns.add(syn_said(p))
        place = distance(p.seq, self.iss + 1)
        if p.flags & URG:
            self.urgent.add(place + p.urgent)
        if len(p.payload) == 1 and place < self.top:
            self.probes.add((place, p.payload))
        elif p.payload and place >= 0:
            end = place + len(p.payload)
            if len(self.said) < end:
                self.said.extend(bytes(end - len(self.said)))
                self.have.extend(bytes(end - len(self.have)))
            for at, byte in enumerate(p.payload, place):
                if not self.have[at]:
                    self.have[at], self.said[at] = 1, byte
            self.top = max(self.top, end)
        if p.flags & FIN:
            self.fins.add(place + len(p.payload))
            self.top = max(self.top, place + len(p.payload) + 1)
        if p.flags & ACK and (self.ack is None or distance(p.ack, self.ack) > 0):
            self.ack = p.ack
        if p.flags & ACK and not p.flags & (SYN | RST):
            edge = self.told(p)
            if self.edge is None or distance(edge, self.edge) > 0:
                self.edge = edge
        if p.stamps:
            self.stamps.add(p.stamps[0])

    def told(self, p: Packet) -> int:
        """The right edge of the window that a segment offers."""
        scales = [option[2] for _, _, options in self.syns for option in options if option[0] == 3]
        scale = scales[0] if scales and not p.flags & SYN else 0
        return (p.ack + (p.window << scale)) & MASK

    def has_said(self, place: int, payload: bytes) -> int | None:
        """The first place of these bytes that it has neither said nor was given by a cut."""
        if place + len(payload) <= self.covered:
            return None
        begin = max(place, min(self.covered, place + len(payload)))
        wanted = payload[begin - place :]
        end = begin + len(wanted)
        if self.said[begin:end] == wanted and self.have.count(1, begin, end) == len(wanted):
            return None
        for at in range(begin, end):
            if at >= len(self.have) or not self.have[at] or self.said[at] != payload[at - place]:
                return at
        return None


def syn_said(p: Packet) -> tuple[int, int, tuple[bytes, ...]]:
    """What a SYN says, in which two replicas must agree."""
    options = tuple(option for option in p.options if option[0] != MULTIPATH)
    return p.flags & ~PSH, p.ack if p.flags & ACK else 0, options
