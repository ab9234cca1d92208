"""Letting out the proven part of a head that is stuck.

Two replicas that lost different things can wait for each other for good: the secondary repeats
one segment and the primary's super-frame needs many; the secondary acks one and the primary's ack
is ahead by many. So a head that has waited a while leaves as far as it is proven: a super-frame
up to a segment's edge, an ack lowered to the secondary's, and what stands in front of a FIN whose
ack is ahead without that FIN. And while a head waits for an ack, the
secondary's own pure ACKs leave, if with the head's clock: they tell the client, by SACK, exactly what is missing.
Where the secondary repeats what has long left (its SYN-ACK, or data), it lacks an ack that the
client gave once: the SYN-ACK leaves again, or a keep-alive, and the client repeats it, to both.
Where the secondary says nothing for long, it may have no more room in its congestion window than the
acks give that reached it, while more of them, or others, reached the primary: again a keep-alive.
Nothing unproven leaves with any of it.
"""

from __future__ import annotations

import struct

from lockstep.batch import Buffer
from lockstep.wire import frame, gso, tcp, vnet
from lockstep.wire.checksum import moved16, moved32, ones_sum
from lockstep.wire.frame import Frame, dissect
from lockstep.wire.seqnum import add, diff
from services.comparer.flow import Held
from services.comparer.tcp import TcpFlow
from services.comparer.window import bare_segment

_ACK = struct.Struct(">I")
_CLOCK = struct.Struct(">I")  # TSval
_NUMBERS = struct.Struct(">II")  # seq, ack
_WINDOW = struct.Struct(">HH")  # and the checksum
_CHECKSUM = struct.Struct(">H")

#: Seconds that a head waits before it is eased, and between two tries.
STALL = 0.02
#: How far the clocks of both sides may be apart, in units of TSval: a minute at most (RFC 7323 §5.4).
CLOCKS_APART = 60_000
#: Seconds that a head waits for the secondary to repeat what was lost or forgotten, before it is dropped.
STALE = 0.1
#: Seconds that a head waits before the client is asked for its ack, whatever the secondary says.
SILENCE = 0.2


def can_be_eased(head: Held) -> bool:
    """Whether anything but the secondary's word can ever move this head: no SYN, nothing but TCP."""
    return head.kind == frame.TCP and not head.data[head.l4 + tcp.FLAGS] & tcp.SYN


def ease(flow: TcpFlow, head: Held, f: Frame, *, patient: bool = False) -> tuple[bytes, bytes] | None:
    """What of the head may leave, and what of it stays (b"" for nothing); None if nothing may leave.

    patient: it has waited so long that less than a segment leaves as well. In front of a closing window the
    replicas cut differently, and each then repeats its own last piece until the client acknowledges it.
    """
    if not can_be_eased(head):
        return None
    if head.data[head.l4 + tcp.FLAGS] & tcp.RST:
        return _lowered_reset(flow, head)
    if not flow.urgent_matches(head.data, head.l4):
        return None
    leaving, staying = head.data, b""
    size = head.payload_end - head.payload
    proven = flow.proven(head.data, head.l4, head.payload, head.payload_end)
    if proven < size:
        if head.data[head.l4 + tcp.FLAGS] & tcp.URG:
            return None  # the urgent pointer counts from the whole segment's seq
        step = gso.segment_size(head.data, head.vnet) or gso.cuttable(head.data, head.vnet)
        if not step or not proven or (proven < step and not patient):
            return None
        dissect(f, head.data, head.vnet, len(head.data))
        leaving, staying = gso.split(f, head.data, head.vnet, proven // step * step or proven)
    elif head.data[head.l4 + tcp.FLAGS] & tcp.FIN:
        if not flow.fin_matches(head.data, head.l4, size):
            return None
        if _is_ahead(flow, head):  # the client's answer would close the primary, and all that could repeat that ack
            if head.data[head.l4 + tcp.FLAGS] & tcp.URG:
                return None
            leaving, staying = _without_fin(head, f)
    lowered = _lowered(flow, leaving, head, alone=not size)
    return None if lowered is None else (lowered, staying)


def speaks_for_itself(flow: TcpFlow, f: Frame, buf: Buffer) -> bool:
    """Whether this pure ACK of the secondary may leave: the ack of the head, which is stuck, is ahead of it."""
    head = flow.held[0]
    if f.payload != f.payload_end or buf[f.l4 + tcp.FLAGS] != tcp.ACK:
        return False
    if not head.data[head.l4 + tcp.FLAGS] & tcp.ACK or head.data[head.l4 + tcp.FLAGS] & (tcp.SYN | tcp.RST):
        return False
    ack = _ACK.unpack_from(buf, f.l4 + tcp.ACK_NUMBER)[0]
    if diff(_ACK.unpack_from(head.data, head.l4 + tcp.ACK_NUMBER)[0], ack) <= 0:
        return False
    if flow.primary_acked is not None and diff(ack, flow.primary_acked) < 0:
        return False
    return flow.reached(buf, f.l4) and _clocks_agree(head, f, buf)


def spoken(head: Held, f: Frame, buf: Buffer, start: int) -> bytes:
    """That ACK, which begins at `start`, as it leaves: with a clock value that is no newer than the head's.

    A client that has seen a newer one refuses the head, and all that is made of it (PAWS, RFC 7323 §5.3).
    """
    ack = bytearray(buf[start : f.end])
    own = tcp.find_options(head.data, head.l4 + tcp.HEADER, head.payload)[0]
    other = tcp.find_options(buf, f.l4 + tcp.HEADER, f.payload)[0]
    if own and other:
        told, clock = _CLOCK.unpack_from(head.data, own + 2)[0], _CLOCK.unpack_from(buf, other + 2)[0]
        if diff(clock, told) > 0:
            _CLOCK.pack_into(ack, other + 2 - start, told)
            if not (f.start > start and ack[0] & vnet.NEEDS_CSUM):
                field, odd = f.l4 + tcp.CHECKSUM - start, bool((other - f.l4) & 1)
                _CHECKSUM.pack_into(ack, field, moved32(_CHECKSUM.unpack_from(ack, field)[0], clock, told, odd))
    return bytes(ack)


def _clocks_agree(head: Held, f: Frame, buf: Buffer) -> bool:
    """Whether the secondary's clock is near the head's: another one would have the client refuse all else (PAWS).

    It is not where the rewriter has lost its distance, and the two initial numbers happen to be neighbours.
    """
    own = tcp.find_options(head.data, head.l4 + tcp.HEADER, head.payload)[0]
    other = tcp.find_options(buf, f.l4 + tcp.HEADER, f.payload)[0]
    if not own or not other:
        return not own and not other
    moved = diff(_ACK.unpack_from(buf, other + 2)[0], _ACK.unpack_from(head.data, own + 2)[0])
    return abs(moved) < CLOCKS_APART


def _lowered_reset(flow: TcpFlow, head: Held) -> tuple[bytes, bytes] | None:
    """A RST where the secondary's stands, with an ack that it has said: once reset, it says no other."""
    if not flow.reset_matches(head.data, head.l4):
        return None
    lowered = _lowered(flow, head.data, head, alone=False)
    return None if lowered is None else (lowered, b"")


def _is_ahead(flow: TcpFlow, head: Held) -> bool:
    """Whether the head's ack is ahead of the secondary's."""
    if not head.data[head.l4 + tcp.FLAGS] & tcp.ACK:
        return False
    return flow.acked is None or diff(_ACK.unpack_from(head.data, head.l4 + tcp.ACK_NUMBER)[0], flow.acked) > 0


def _without_fin(head: Held, f: Frame) -> tuple[bytes, bytes]:
    """All of a segment but its FIN, and that FIN alone."""
    dissect(f, head.data, head.vnet, len(head.data))
    size = head.payload_end - head.payload
    if head.vnet and head.data[0] & vnet.NEEDS_CSUM:
        return gso.split(f, head.data, head.vnet, size)
    seq, ack = _NUMBERS.unpack_from(head.data, head.l4 + tcp.SEQ)
    window, was = _WINDOW.unpack_from(head.data, head.l4 + tcp.WINDOW)
    flags, field = head.data[head.l4 + tcp.FLAGS], head.l4 + tcp.CHECKSUM
    frame = bytearray(head.data)
    frame[head.l4 + tcp.FLAGS] = flags & ~(tcp.FIN | tcp.PSH)
    _CHECKSUM.pack_into(frame, field, moved16(was, flags, frame[head.l4 + tcp.FLAGS]))
    fin = bytearray(bare_segment(head.data, head.vnet, add(seq, size), ack, window, flags))
    # Moved, not made anew: a wrong checksum stays wrong.
    shorter = moved16(was, head.payload_end - head.l4, head.payload - head.l4)
    moved = moved32(shorter, seq, add(seq, size))
    _CHECKSUM.pack_into(fin, field, moved16(moved, ones_sum(head.data[head.payload : head.payload_end]), 0))
    return bytes(frame), bytes(fin)


def _lowered(flow: TcpFlow, data: bytes, head: Held, *, alone: bool) -> bytes | None:
    """The frame with an ack that the secondary has said. `alone`: without payload it must be news to the client."""
    if not data[head.l4 + tcp.FLAGS] & tcp.ACK:
        return data
    at = head.l4 + tcp.ACK_NUMBER
    ack = _ACK.unpack_from(data, at)[0]
    if flow.acked is None:
        return None
    if diff(ack, flow.acked) <= 0:
        return data
    if alone and flow.primary_acked is not None and diff(flow.acked, flow.primary_acked) <= 0:
        return None
    frame = bytearray(data)
    _ACK.pack_into(frame, at, flow.acked)
    if not (head.vnet and frame[0] & vnet.NEEDS_CSUM):
        field = head.l4 + tcp.CHECKSUM
        _CHECKSUM.pack_into(frame, field, moved32(_CHECKSUM.unpack_from(frame, field)[0], ack, flow.acked))
    return bytes(frame)
