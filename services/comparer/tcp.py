"""TCP, compared as a byte stream, whatever the segmentation.

Both sides are in the primary's sequence space: the rewriter has moved the secondary's `seq`. Only
SYNs come with the secondary's own number, since no offset is known yet; they are matched by what
they say. `ack` is in the client's space and the same for both.

A primary segment leaves when
  - every payload byte of it was said by the secondary at the same place,
  - its ack is not ahead of what the secondary has acked (RST, FIN and pure ACK included),
  - its FIN and its urgent pointer stand where the secondary's stand; a RST, where one of its RSTs stood,
  - its SYN says what the secondary's SYN says: flags, ack, options, data. Where both ends open at once
    (RFC 9293 §3.5), a guest may never need a SYN-ACK: the primary's, which says no more than its SYN that was
    proven and an ack, leaves once the secondary has acked as far.

Sequence numbers are unwrapped to *places*: 0 is the first payload byte behind the primary's SYN,
or, for a connection picked up in the middle, the first number seen. The *frontier* is the first
place not yet proven equal. What was said below it is kept for a while: a retransmission is
checked again, against that, or against the secondary's own retransmission. A keep-alive may carry
one byte of garbage below the frontier (RFC 1122 §4.2.3.6): it leaves if the secondary's carried it too.
"""

from __future__ import annotations

import os
import struct
from hashlib import blake2b
from itertools import islice

from lockstep.batch import Buffer
from lockstep.wire import checksum, tcp
from lockstep.wire.frame import Frame
from lockstep.wire.seqnum import MASK, diff
from lockstep.wire.vnet import NEEDS_CSUM
from services.comparer.flow import DIFFERS, PROTECTED, RELEASE, WAIT, Finding, Flow, Held
from services.comparer.said import DIFFERENT, EQUAL, MISSING, Said, first_difference
from services.comparer.window import Window, bare_segment, with_window

_SEGMENT = struct.Struct(">4xIIBB")  # ports, seq, ack, data offset, flags
_OPENING = struct.Struct(">4xIIBBH")  # ports, seq, ack, data offset, flags, window
_CHECKSUM = struct.Struct(">H")
_MARK_KEY = os.urandom(16)

#: Bytes below the frontier that an active flow keeps, and seconds until an idle one gives them up.
HISTORY = 256 << 10
HISTORY_AGE = 5.0
#: RSTs and urgent pointers of the secondary that are remembered.
MOST_PLACES = 32
#: Seconds in which segments may still arrive that the secondary sent before the client's RST reached it.
RESET_UNDER_WAY = 1.0
#: Bytes before and after a difference in a report.
CONTEXT = 16


class TcpFlow(Flow):
    """One direction of a TCP connection."""

    __slots__ = (
        "acked",
        "anchored",
        "calm",
        "fin",
        "fin_left",
        "frontier",
        "frontier_seq",
        "hole",
        "limit",
        "near",
        "offered",
        "primary_acked",
        "primary_seen",
        "probe",
        "reset_left",
        "resets",
        "said",
        "syn",
        "syn_frame",
        "syn_matched",
        "syn_said",
        "urgent",
        "window",
    )

    def __init__(self, key: bytes, now: float, limit: int) -> None:
        super().__init__(key, now)
        #: Farthest from the frontier that a place is believed.
        self.limit = limit
        #: Frames dealt with since the last that was out of the ordinary; the core counts them.
        self.calm = 0
        self.anchored = self.primary_seen = False
        #: What the secondary said last was in the primary's space, or as good as that.
        self.near = False
        self.frontier = 0
        self.frontier_seq = 0
        self.said = Said()
        #: Below the frontier, the first place that never left: it was dropped after the client's RST.
        self.hole: int | None = None
        #: Highest ack the secondary has said; the highest the primary has been allowed to.
        self.acked: int | None = None
        self.primary_acked: int | None = None
        #: Place of the secondary's FIN, and of the primary's that has left.
        self.fin: int | None = None
        self.fin_left: int | None = None
        #: (seq, ack) of the secondary's RSTs; each proves one of the primary's.
        self.resets: tuple[tuple[int, int | None], ...] = ()
        #: Number of the last RST of this connection that has left.
        self.reset_left: int | None = None
        #: Places of its urgent pointers, and its last keep-alive with a byte: (place, byte).
        self.urgent: tuple[int, ...] = ()
        self.probe: tuple[int, int] | None = None
        #: What the client may be told of the receive window; None until the scale is known.
        self.window: Window | None = None
        #: The secondary's last ack and window field since its last SYN, until the scale is known.
        self.offered: tuple[int, int] | None = None
        #: The secondary's SYNs that wait for the primary's: (seq, signature), the latest first. Two where both ends
        #: opened at once (RFC 9293 §3.5): its SYN and its SYN-ACK, in whatever order they came.
        self.syn_said: tuple[tuple[int, bytes], ...] = ()
        #: The pair that was proven equal: the primary's (seq, `mark` of its signature), and the secondary's seq.
        self.syn: tuple[int, int] | None = None
        self.syn_matched: int | None = None
        #: The primary's SYN-ACK as it left, until the secondary has got the client's answer.
        self.syn_frame: tuple[bytes, int] | None = None

    # --- places

    def _anchor(self, seq: int) -> None:
        if not self.anchored:
            self.anchored = True
            self.frontier = 0
            self.frontier_seq = seq

    def _anchor_primary(self, seq: int) -> None:
        """The primary's word on where the stream is outweighs what the secondary said before it."""
        if not self.primary_seen:
            self.primary_seen = True
            if self.anchored and abs(self._place(seq)) > self.limit:
                self.anchored = self.near = False
                self.said.clear()
            self._anchor(seq)

    def _place(self, seq: int) -> int:
        return self.frontier + diff(seq, self.frontier_seq)

    # --- primary

    def verdict(self, buf: Buffer, kind: int, l4: int, payload: int, end: int) -> int:
        """See Flow."""
        seq, ack, _, flags = _SEGMENT.unpack_from(buf, l4)
        if flags & tcp.SYN:
            return self._verdict_on_syn(seq, signature(buf, l4, payload, end))
        if flags & tcp.RST:
            if self._reset_alike(seq, ack, flags) is None:
                return WAIT
        else:
            self._anchor_primary(seq)
            place = self._place(seq)
            if end > payload:
                found = self.said.check(place, buf, payload, end)
                if found != EQUAL and not self._probes_alike(place, buf, payload, end):
                    if self._is_probe(place, end - payload):
                        return WAIT
                    return DIFFERS if found == DIFFERENT or self._past_fin(place + end - payload) else WAIT
            if flags & tcp.URG and not self.urgent_matches(buf, l4):
                return WAIT
            if flags & tcp.FIN:
                place += end - payload
                if self.fin != place:
                    return DIFFERS if self._says_more(place) or self._past_fin(place) else WAIT
        if flags & tcp.ACK and (self.acked is None or diff(ack, self.acked) > 0):
            return WAIT
        return RELEASE

    def proven(self, buf: Buffer, l4: int, payload: int, end: int) -> int:
        """How many of a segment's first payload bytes the secondary has said."""
        place = self._place(_SEGMENT.unpack_from(buf, l4)[0])
        said = self.said.read(place, end - payload)
        return first_difference(said, buf[payload : payload + len(said)])

    def is_stale(self, head: Held) -> bool:
        """Whether a held segment repeats bytes that were proven, released, and by now forgotten.

        The secondary repeats them only if the client lacks them, and then the primary does so again. One whose
        offset was lost repeats nothing that could be known.
        """
        if not self.near:
            return False
        seq, _, _, flags = _SEGMENT.unpack_from(head.data, head.l4)
        place, size = self._place(seq), head.payload_end - head.payload
        if flags & (tcp.SYN | tcp.RST) or not size or place >= self.frontier:
            return False
        if self.hole is not None and place + size > self.hole:
            return False
        if self.said.check(place, head.data, head.payload, head.payload_end) != MISSING:
            return False
        return place + size <= self.frontier or not self.said.read(place, 1)

    def dropped(self, head: Held) -> None:
        """A head is dropped that was neither proven nor repeats what has left."""
        place = self._place(_SEGMENT.unpack_from(head.data, head.l4)[0])
        if head.payload_end > head.payload and self.anchored and (self.hole is None or place < self.hole):
            self.hole = place

    def overtaking(self) -> Held | None:
        """A held segment in front of which the secondary will say nothing any more, and the client needs nothing."""
        return self._goes_back_to() or self._reset_behind() or self._behind_crossed_syn() or self._answer_behind()

    def _goes_back_to(self) -> Held | None:
        """The first held segment that stands before the head in the stream: the primary repeats from there.

        What the secondary said of the head was lost, and it too repeats from there; the head is in the way.
        """
        head = self.held[0]
        seq, _, _, flags = _SEGMENT.unpack_from(head.data, head.l4)
        if flags & (tcp.SYN | tcp.RST):
            return None
        for held in islice(self.held, 1, None):
            if held.payload_end > held.payload and diff(_SEGMENT.unpack_from(held.data, held.l4)[0], seq) < 0:
                return held
        return None

    def _reset_behind(self) -> Held | None:
        """The first held RST that the secondary has said as well, if nothing but ACKs stands in front of it.

        Once reset, it acks nothing any more; and nobody needs those ACKs.
        """
        for held in self.held if self.resets else ():
            flags = held.data[held.l4 + tcp.FLAGS]
            if flags & tcp.RST:
                return held if held is not self.held[0] and self.reset_matches(held.data, held.l4) else None
            if held.payload_end > held.payload or flags & (tcp.SYN | tcp.FIN | tcp.URG):
                return None
        return None

    def crosses(self) -> bool:
        """Whether the head may be overtaken though it is a SYN, since both ends open at once (RFC 9293 §3.5)."""
        return self._is_crossed(self.held[0]) or self._answer_behind() is not None

    def _is_crossed(self, head: Held) -> bool:
        """Whether this is a SYN-ACK with the number of a SYN that has left."""
        seq, _, _, flags = _SEGMENT.unpack_from(head.data, head.l4)
        return flags & (tcp.SYN | tcp.ACK) == tcp.SYN | tcp.ACK and self.syn is not None and seq == self.syn[0]

    def _behind_crossed_syn(self) -> Held | None:
        """What stands behind such a SYN-ACK, if the secondary never needed one and has acked the client's SYN."""
        if len(self.held) == 1 or not self._is_crossed(self.held[0]) or self.acked is None:
            return None
        ack = _SEGMENT.unpack_from(self.held[0].data, self.held[0].l4)[1]
        return self.held[1] if diff(ack, self.acked) <= 0 else None

    def _answer_behind(self) -> Held | None:
        """A held SYN-ACK that the secondary has said as well, behind its own SYN, of which the client needs no more.

        What the secondary said of that SYN was lost, and it has answered the client's since: it says no other.
        """
        head = self.held[0]
        number, _, _, flags = _SEGMENT.unpack_from(head.data, head.l4)
        for held in islice(self.held, 1, None) if flags & (tcp.SYN | tcp.ACK) == tcp.SYN else ():
            seq, _, _, flags = _SEGMENT.unpack_from(held.data, held.l4)
            if seq != number or not flags & tcp.SYN:
                return None
            if flags & tcp.ACK:
                verdict = self.verdict(held.data, held.kind, held.l4, held.payload, held.payload_end)
                return held if verdict == RELEASE else None
        return None

    def reset_matches(self, buf: Buffer, l4: int) -> bool:
        """Whether a RST of a connection that is known stands where one of the secondary's does."""
        seq, ack, _, flags = _SEGMENT.unpack_from(buf, l4)
        return self.syn is not None and self._reset_alike(seq, ack, flags) is not None

    def reached(self, buf: Buffer, l4: int) -> bool:
        """Whether a segment begins at the frontier, or so little before it that its number is to be believed."""
        return -HISTORY <= self._place(_SEGMENT.unpack_from(buf, l4)[0]) - self.frontier <= 0

    def fin_matches(self, buf: Buffer, l4: int, size: int) -> bool:
        """Whether the FIN behind a segment's `size` bytes stands where the secondary's does."""
        return self.fin == self._place(_SEGMENT.unpack_from(buf, l4)[0]) + size

    def _reset_alike(self, seq: int, ack: int, flags: int) -> tuple[int, int | None] | None:
        """The secondary's RST that proves this one. Without a known connection the ack tells which SYN it refuses."""
        for reset in self.resets:
            if reset[0] == seq and (self.syn is not None or reset[1] == (ack if flags & tcp.ACK else None)):
                return reset
        return None

    def _is_probe(self, place: int, size: int) -> bool:
        # Behind a FIN that has left, the number of the FIN is the last one that was said.
        return size == 1 and (place == self.frontier - 1 or (self.closed and place == self.fin))

    def _probes_alike(self, place: int, buf: Buffer, payload: int, end: int) -> bool:
        return self._is_probe(place, end - payload) and self.probe == (place, buf[payload])

    def not_missed(self, head: Held) -> str | None:
        """Under which name a held segment is dropped that nobody misses if it never leaves; None for all others.

        A keep-alive with a byte of its own; and a RST where one has left, since an end that is gone answers
        each segment with one.
        """
        seq, _, _, flags = _SEGMENT.unpack_from(head.data, head.l4)
        if flags & tcp.RST:
            return "dropped_reset" if self.syn is not None and seq == self.reset_left else None
        if flags & (tcp.SYN | tcp.FIN) or not self.anchored:
            return None
        place, size = self._place(seq), head.payload_end - head.payload
        # Picked up in its middle, a connection may begin with one.
        first = self.syn is None and size == 1 and place == self.frontier == 0 and not self.said.read(place, 1)
        return "dropped_keep_alive" if first or self._is_probe(place, size) else None

    def urgent_matches(self, buf: Buffer, l4: int) -> bool:
        """Whether a segment is not urgent, or its urgent pointer stands where one of the secondary's does."""
        seq, _, _, flags = _SEGMENT.unpack_from(buf, l4)
        return not flags & tcp.URG or self._urgent_place(buf, l4, seq) in self.urgent

    def _urgent_place(self, buf: Buffer, l4: int, seq: int) -> int:
        return self._place(seq) + (buf[l4 + tcp.URGENT_POINTER] << 8 | buf[l4 + tcp.URGENT_POINTER + 1])

    def _past_fin(self, end: int) -> bool:
        return self.fin is not None and end > self.fin

    def _says_more(self, fin: int) -> bool:
        said = self.said.end()
        return said is not None and said > fin

    def _verdict_on_syn(self, seq: int, said: bytes) -> int:
        if self.syn == (seq, mark(said)):
            return RELEASE
        if any(other == said for _, other in self.syn_said):
            return RELEASE
        if any(same_handshake(other, said) for _, other in self.syn_said):
            return DIFFERS
        return RELEASE if self._adds_an_ack(seq, said) and self._has_acked(said) else WAIT

    def _adds_an_ack(self, seq: int, said: bytes) -> bool:
        """Whether a SYN-ACK of the primary says nothing but an ack beyond its SYN that was proven."""
        return bool(said[0] & tcp.ACK) and self.syn == (seq, mark(without_ack(said)))

    def _has_acked(self, said: bytes) -> bool:
        """Whether the secondary has acked as far as this SYN-ACK, in segments other than a SYN."""
        return self.acked is not None and diff(acked_by(said), self.acked) <= 0

    def released(self, buf: Buffer, kind: int, l4: int, payload: int, end: int) -> None:
        """See Flow."""
        seq, ack, _, flags = _SEGMENT.unpack_from(buf, l4)
        if flags & tcp.SYN:
            self._opened(seq, signature(buf, l4, payload, end), 0 if opens_with_data(buf, l4) else end - payload)
            if self.window is None:
                self._scaled(tcp.window_scale(buf, l4 + tcp.HEADER, payload))
        elif flags & tcp.RST:
            self.closed, self.reset_left = True, seq
            used = self._reset_alike(seq, ack, flags)
            if used is not None:
                at = self.resets.index(used)
                self.resets = self.resets[:at] + self.resets[at + 1 :]
        elif end > payload:
            self._anchor_primary(seq)
            place = self._place(seq) + end - payload
            if self.hole is not None and place > self.hole >= place - (end - payload):
                self.hole = place if place < self.frontier else None
            if place > self.frontier and (self.fin_left is None or place <= self.fin_left):
                self.frontier = place  # a keep-alive's byte at a FIN's number is no part of the stream
                self.frontier_seq = (seq + end - payload) & MASK
                if self.said.size > 2 * HISTORY:
                    self.said.forget(place - HISTORY, every_run=False)
        if flags & tcp.FIN:
            self.closed = True
            if self.anchored and not flags & tcp.SYN:
                self.fin_left = self._place(seq) + end - payload
        if flags & tcp.ACK and (self.primary_acked is None or diff(ack, self.primary_acked) > 0):
            self.primary_acked = ack
        if self.window is not None:
            self.window.left(buf, l4)

    def as_it_is(self, buf: Buffer, l4: int) -> bool:
        """See Flow."""
        return self.window is None or self.window.allowed(buf, l4) is None

    def leaves(self, head: Held) -> bytes:
        """See Flow."""
        if head.data[head.l4 + tcp.FLAGS] & (tcp.SYN | tcp.ACK) == tcp.SYN | tcp.ACK and not head.originals:
            self.syn_frame = head.data, head.vnet
        if head.payload_end > head.payload and opens_with_data(head.data, head.l4) and not head.originals:
            super().leaves(head)
            return without_data(head)
        window = self.window.allowed(head.data, head.l4) if self.window is not None else None
        if self.window is None or window is None or head.originals:
            return super().leaves(head)
        lowered = with_window(head.data, head.vnet, head.l4, window)
        self.released(lowered, head.kind, head.l4, head.payload, head.payload_end)
        self.window.remember(head.data, head.vnet, head.l4, head.payload, head.payload_end)
        return lowered

    def spoke(self, buf: Buffer, l4: int) -> None:
        """A pure ACK of the secondary left."""
        self.primary_acked = _SEGMENT.unpack_from(buf, l4)[1]
        if self.window is not None:
            self.window.left(buf, l4)

    def window_update(self) -> tuple[bytes, int] | None:
        """A frame that tells the client of a window that opened at the secondary, if it is worth one."""
        return self.window.update() if self.window is not None else None

    def repeats(self, f: Frame, buf: Buffer) -> bool:
        """Whether this segment of the secondary says nothing but what has left already."""
        end = self._place(_SEGMENT.unpack_from(buf, f.l4)[0]) + f.payload_end - f.payload
        return f.payload_end > f.payload and self.frontier - HISTORY <= end <= self.frontier

    def probe_of(self, head: Held) -> tuple[bytes, int] | None:
        """A keep-alive to the client (RFC 1122 §4.2.3.6), without payload: it answers with an ACK for both guests.

        It tells of no more room than the client knows of. A SYN has the clock of another connection.
        """
        flags = head.data[head.l4 + tcp.FLAGS]
        if self.primary_acked is None or flags & tcp.SYN:
            return None
        if self.window is not None:
            if self.window.told is None:
                return None
            window = self.window.told_field(self.primary_acked)
        elif flags & tcp.RST:
            return None  # its window field says nothing
        else:
            window = head.data[head.l4 + tcp.WINDOW] << 8 | head.data[head.l4 + tcp.WINDOW + 1]
        return bare_segment(head.data, head.vnet, (self.frontier_seq - 1) & MASK, self.primary_acked, window), head.vnet

    def _opened(self, seq: int, said: bytes, size: int) -> None:
        """The primary's SYN was proven: a new incarnation begins, unless it is the same SYN again, or answers in it."""
        if self.syn == (seq, mark(said)):
            return
        if self._adds_an_ack(seq, said):
            if not self._has_acked(said):
                self.acked = acked_by(said)  # the secondary's SYN-ACK was the proof
            self.syn_said = ()
            return
        self.syn_matched = next((number for number, other in self.syn_said if other == said), None)
        self.syn, self.window = (seq, mark(said)), None
        # Its SYN-ACK, if it has come already, is still to be matched.
        self.syn_said = () if said[0] & tcp.ACK else tuple(each for each in self.syn_said if each[1][0] & tcp.ACK)
        self.anchored = self.primary_seen = True
        self.frontier = size
        self.frontier_seq = (seq + 1 + size) & MASK
        self.said.clear()
        self.hole = None
        self.fin = self.fin_left = self.reset_at = self.reset_left = None
        self.resets = self.urgent = ()
        self.probe = None
        self.closed = False
        self.acked = self.primary_acked = acked_by(said) if said[0] & tcp.ACK else None

    def finding(self, buf: Buffer, kind: int, l4: int, payload: int, end: int) -> Finding:
        """See Flow."""
        seq, _, _, flags = _SEGMENT.unpack_from(buf, l4)
        if flags & tcp.SYN:
            own = signature(buf, l4, payload, end)
            others = [other for _, other in self.syn_said]
            other = next((other for other in others if same_handshake(own, other)), others[0] if others else b"")
            return Finding("syn" if same_handshake(own, other) else "unmatched", None, own, other)
        if flags & tcp.RST:
            return Finding("unmatched", self._place(seq) if self.anchored else None)
        place = self._place(seq)
        said = self.said.read(place, end - payload)
        same = first_difference(said, buf[payload : payload + len(said)])
        if same < len(said):
            at = place + same
            begin = max(at - CONTEXT, place)
            primary = bytes(buf[payload + begin - place : min(payload + at - place + CONTEXT, end)])
            return Finding("data", at, primary, self.said.read(begin, at - begin + CONTEXT))
        if (end > payload and self._past_fin(place + end - payload)) or (
            flags & tcp.FIN and self._says_more(place + end - payload)
        ):
            return Finding("fin", min(p for p in (self.fin, place + end - payload) if p is not None))
        if end > payload:
            begin = payload + len(said)
            return Finding("unmatched", place + begin - payload, bytes(buf[begin : min(begin + CONTEXT, end)]))
        return Finding("unmatched", place)

    # --- secondary

    def secondary(self, f: Frame, buf: Buffer, now: float) -> Finding | None:
        """See Flow."""
        seq, ack, _, flags = _SEGMENT.unpack_from(buf, f.l4)
        payload, end = f.payload, f.payload_end
        if flags & tcp.SYN:
            self._secondary_syn(seq, signature(buf, f.l4, payload, end))
            return None
        self.syn_frame = None
        if self.reset_at is not None and now - self.reset_at > RESET_UNDER_WAY and not flags & tcp.RST:
            self.reset_at = None  # it was no RST that the guest took
        if flags & tcp.ACK and (self.acked is None or diff(ack, self.acked) > 0):
            self.acked = ack
            if self.syn_said:
                self.syn_said = tuple(each for each in self.syn_said if not self._outlived(*each))
        if flags & tcp.ACK and not flags & tcp.RST:
            self._offers(ack, buf[f.l4 + tcp.WINDOW] << 8 | buf[f.l4 + tcp.WINDOW + 1])
        if flags & tcp.RST:
            self.resets = (*self.resets, (seq, ack if flags & tcp.ACK else None))[-MOST_PLACES:]
            return None
        self._anchor(seq)
        place = self._place(seq)
        self.near = abs(place - self.frontier) <= self.limit
        if not self.near:
            return None  # not in the primary's space: its offset was lost; time-out will tell
        if flags & tcp.URG:
            urgent = self._urgent_place(buf, f.l4, seq)
            if urgent not in self.urgent:
                self.urgent = (*self.urgent, urgent)[-MOST_PLACES:]
        found = None
        if end - payload == 1 and place == self.fin:
            self.probe = place, buf[payload]
            return None
        if end > payload and not self.said.add(place, buf[payload:end]):
            if end - payload == 1 and place + 1 == self.said.end():
                self.probe = place, buf[payload]
                return None
            at = self.said.place
            context = bytes(buf[payload + at - place : min(payload + at - place + CONTEXT, end)])
            found = Finding("secondary_contradicts_itself", at, b"", context)
        elif self._is_probe(place, end - payload):
            self.probe = place, buf[payload]
        if flags & tcp.FIN:
            self.fin = place + end - payload
        return found

    def _secondary_syn(self, seq: int, said: bytes) -> None:
        if self.syn is not None and self.syn[1] == mark(said) and seq in (self.syn_matched, self.syn[0]):
            return  # the one that was matched, again
        if self._outlived(seq, said):
            return
        of_this = [each for each in self.syn_said if each[0] == seq]
        if not of_this:
            self.offered = None
        self.syn_said = ((seq, said), *(each for each in of_this if (each[1][0] ^ said[0]) & tcp.ACK))

    def _outlived(self, seq: int, said: bytes) -> bool:
        """Whether a SYN-ACK of the secondary, with the number of its SYN that was matched, proves nothing more.

        It goes on, so whatever SYN-ACK of the primary this would prove is proven by that SYN and what it has acked.
        """
        if self.syn is None or seq not in (self.syn_matched, self.syn[0]):
            return False
        return self._adds_an_ack(self.syn[0], said) and self._has_acked(said)

    # --- windows

    def _offers(self, ack: int, window: int) -> None:
        """The secondary offers this much: to the connection that is known, or to one whose SYN is not yet proven."""
        if self.window is None or self.syn_said:
            self.offered = ack, window
        if self.window is not None:
            self.window.secondary(ack, window)

    def _scaled(self, shift: int) -> None:
        """The scale is known; so is what the secondary offered before it was."""
        self.window = Window(shift)
        if self.offered is not None:
            self.window.secondary(*self.offered)
            self.offered = None

    # --- the rest

    def is_ordinary(self) -> bool:
        """Whether nothing waits or is remembered of this flow but its numbers, its window and its history."""
        end = self.said.end()
        return (
            self.state == PROTECTED
            and self.primary_seen
            and not self.held
            and (end is None or end <= self.frontier)
            and self.fin is None
            and not self.closed
            and not self.resets
            and not self.urgent
            and self.reset_at is None
            and not self.syn_said
            and self.syn_frame is None
            and (self.window is None or not self.window.owes)
        )

    def kept(self) -> int:
        """See Flow."""
        return self.held_bytes + self.said.size

    def relax(self, now: float) -> None:
        """See Flow."""
        if now - self.touched > HISTORY_AGE:
            self.forget_history()

    def forget_history(self) -> None:
        """See Flow."""
        self.said.forget(self.frontier, every_run=True)

    def committed(self) -> None:
        """See Flow."""
        self.said.clear()
        self.acked = self.primary_acked
        self.fin = self.fin_left
        self.resets = self.urgent = ()
        self.probe = None
        self.syn_said = ()
        self.offered = None
        if self.window is not None:
            self.window.edge = None

    def restart(self) -> None:
        """See Flow."""
        self.committed()
        self.anchored = self.primary_seen = False
        self.frontier = 0
        self.acked = self.primary_acked = None
        self.fin = self.fin_left = self.hole = None
        self.syn = self.syn_matched = self.syn_frame = None
        self.window = None


def opens_with_data(buf: Buffer, l4: int) -> bool:
    """Whether a segment with data is the first of a connection that the guest opens (Fast Open, RFC 7413)."""
    return buf[l4 + tcp.FLAGS] & (tcp.SYN | tcp.ACK) == tcp.SYN


def without_data(head: Held) -> bytes:
    """A SYN without its data, which the guest then sends once the connection is open (RFC 7413 §4.2).

    The client may take the data or not, and its ack alone doesn't tell which: the rewriter, which learns
    from that ack where the primary's numbers begin, would be wrong by so much.
    """
    seq, ack, _, flags, window = _OPENING.unpack_from(head.data, head.l4)
    return bare_segment(head.data, head.vnet, seq, ack, window, flags & ~tcp.PSH)


def mark(said: bytes) -> int:
    """64 bits that stand for the signature of a SYN that was proven, to know it again; keyed, so not to be forged."""
    return int.from_bytes(blake2b(said, digest_size=8, key=_MARK_KEY).digest(), "big")


def signature(buf: Buffer, l4: int, payload: int, end: int) -> bytes:
    """What a SYN says, in which replicas must agree: flags, ack (if any), options without clock values, data."""
    flags = buf[l4 + tcp.FLAGS] & ~tcp.PSH
    ack = bytes(buf[l4 + tcp.ACK_NUMBER : l4 + tcp.ACK_NUMBER + 4]) if flags & tcp.ACK else b"\0\0\0\0"
    options = tcp.options_signature(buf, l4 + tcp.HEADER, payload)
    return bytes((flags,)) + ack + len(options).to_bytes(2, "big") + options + bytes(buf[payload:end])


def acked_by(said: bytes) -> int:
    """The ack in a signature."""
    return int.from_bytes(said[1:5], "big")


def without_ack(said: bytes) -> bytes:
    """The signature of a SYN-ACK as if it acked nothing."""
    return bytes((said[0] & ~tcp.ACK,)) + bytes(4) + said[5:]


def same_handshake(a: bytes, b: bytes) -> bool:
    """Whether two signatures have the same flags and the same ack: one handshake, if with other options."""
    return a[:5] == b[:5]


def without_multipath(data: bytes, vnet: int, l4: int, payload: int) -> bytes:
    """A SYN without its MPTCP option, which both ends then take for plain TCP (RFC 8684 §3.7)."""
    frame = bytearray(data)
    before = checksum.ones_sum(frame[l4 + tcp.HEADER : payload])
    tcp.stripped(frame, l4 + tcp.HEADER, payload, tcp.MULTIPATH)
    if not (vnet and data[0] & NEEDS_CSUM):
        after = checksum.ones_sum(frame[l4 + tcp.HEADER : payload])
        _CHECKSUM.pack_into(
            frame,
            l4 + tcp.CHECKSUM,
            checksum.moved16(_CHECKSUM.unpack_from(frame, l4 + tcp.CHECKSUM)[0], before, after),
        )
    return bytes(frame)
