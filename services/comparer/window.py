"""The receive window that the client is told: never more than the secondary offers as well.

A client that sends what only the primary has room for would leave a hole at the secondary, and the
primary's acks beyond that hole could not leave. So the window of a frame that leaves is lowered to
the secondary's right edge, but never below what the client was told before (RFC 9293 §3.8.6.2.1).
Where the secondary's window opens later, and the primary has nothing to say, a window update is made
of the last frame that left lowered.
"""

from __future__ import annotations

import struct

from lockstep.batch import Buffer
from lockstep.wire import ipv4, ipv6, tcp
from lockstep.wire.checksum import checksum, moved16, ones_sum
from lockstep.wire.frame import IPPROTO_TCP, Frame, dissect
from lockstep.wire.seqnum import add, diff
from lockstep.wire.vnet import NEEDS_CSUM

_SEGMENT = struct.Struct(">4xIIBBH")  # ports, seq, ack, data offset, flags, window
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_NUMBERS = struct.Struct(">II")  # seq, ack
_TAIL = struct.Struct(">HHH")  # window, checksum, urgent pointer

#: Bytes by which the window must have opened for an update of its own (RFC 9293 §3.8.6.2.2).
WORTH_TELLING = 8192


class Window:
    """Right edges of one connection, in the client's sequence space.

    shift: the guest's window scale (RFC 7323), the same in both replicas' SYNs.
    """

    __slots__ = ("_lowered", "_lowered_edge", "edge", "shift", "told")

    def __init__(self, shift: int, edge: int | None = None, told: int | None = None) -> None:
        self.shift = shift
        #: The secondary's right edge, and the one that the client was told.
        self.edge = edge
        self.told = told
        #: The last frame that left, if it left lowered (frame, virtio-net size, seq behind it), and its own edge.
        self._lowered: tuple[bytes, int, int] | None = None
        self._lowered_edge = 0

    def secondary(self, ack: int, window: int) -> None:
        """The secondary offers this much."""
        edge = add(ack, window << self.shift)
        if self.edge is None or diff(edge, self.edge) > 0:
            self.edge = edge

    def allowed(self, buf: Buffer, l4: int) -> int | None:
        """The window field with which a primary segment may leave, if that is less than its own."""
        _, ack, _, flags, window = _SEGMENT.unpack_from(buf, l4)
        if self.edge is None or not flags & tcp.ACK or flags & (tcp.SYN | tcp.RST):
            return None
        limit = self.edge
        if diff(add(ack, window << self.shift), limit) <= 0:
            return None
        if self.told is not None and diff(self.told, limit) > 0:
            limit = self.told
        lowered = max(0, diff(limit, ack)) >> self.shift
        return lowered if lowered < window else None

    def told_field(self, ack: int) -> int:
        """The window field that, with this ack, tells the client of no more and no less than it was told."""
        return max(0, diff(self.told, ack)) >> self.shift if self.told is not None else 0

    def left(self, buf: Buffer, l4: int) -> None:
        """A primary segment left with the window it has now."""
        _, ack, _, flags, window = _SEGMENT.unpack_from(buf, l4)
        if not flags & tcp.ACK or flags & (tcp.SYN | tcp.RST):
            return
        edge = add(ack, window << self.shift)
        if self.told is None or diff(edge, self.told) > 0:
            self.told = edge
        self._lowered = None

    def remember(self, data: bytes, vnet: int, l4: int, payload: int, end: int) -> None:
        """This primary segment was the last to leave, and it left lowered: it may need an update."""
        _, ack, _, _, window = _SEGMENT.unpack_from(data, l4)
        fin = bool(data[l4 + tcp.FLAGS] & tcp.FIN)
        seq = _U32.unpack_from(data, l4 + tcp.SEQ)[0]
        self._lowered = data, vnet, add(seq, end - payload + fin)
        self._lowered_edge = add(ack, window << self.shift)

    @property
    def owes(self) -> bool:
        """Whether the last frame left lowered, so that an update may follow."""
        return self._lowered is not None

    def update(self) -> tuple[bytes, int] | None:
        """A window update that is worth telling, and the size of its virtio-net header."""
        if self._lowered is None or self.edge is None or self.told is None:
            return None
        edge = self.edge if diff(self.edge, self._lowered_edge) < 0 else self._lowered_edge
        if diff(edge, self.told) < WORTH_TELLING and edge != self._lowered_edge:
            return None
        again = self._lowered
        data, vnet, seq = again
        ack = _SEGMENT.unpack_from(data, vnet_l4(data, vnet))[1]
        frame = bare_segment(data, vnet, seq, ack, max(0, diff(edge, ack)) >> self.shift)
        self.left(frame, vnet_l4(frame, vnet))
        if edge != self._lowered_edge:
            self._lowered = again
        return frame, vnet


def with_window(data: bytes, vnet: int, l4: int, window: int) -> bytes:
    """The segment with another window, its checksum moved with it."""
    frame = bytearray(data)
    own = _U16.unpack_from(frame, l4 + tcp.WINDOW)[0]
    _U16.pack_into(frame, l4 + tcp.WINDOW, window)
    if not (vnet and frame[0] & NEEDS_CSUM):
        field = _U16.unpack_from(frame, l4 + tcp.CHECKSUM)[0]
        _U16.pack_into(frame, l4 + tcp.CHECKSUM, moved16(field, own, window))
    return bytes(frame)


def vnet_l4(data: bytes, vnet: int) -> int:
    """Where the TCP header of a frame begins that is known to be one."""
    f = Frame()
    dissect(f, data, vnet, len(data))
    return f.l4


def bare_segment(data: bytes, vnet: int, seq: int, ack: int, window: int, flags: int = tcp.ACK) -> bytes:
    """A segment without data, with these numbers; all else as in the TCP segment `data`, and its checksum complete."""
    f = Frame()
    dissect(f, data, vnet, len(data))
    frame = bytearray(data[: f.payload])
    frame[:vnet] = bytes(vnet)
    if f.version == 4:
        _U16.pack_into(frame, f.l3 + ipv4.TOTAL_LENGTH, f.payload - f.l3)
        _U16.pack_into(frame, f.l3 + ipv4.CHECKSUM, 0)
        _U16.pack_into(frame, f.l3 + ipv4.CHECKSUM, checksum(frame[f.l3 : f.l4]))
        at, size = f.l3 + ipv4.SOURCE, 8
    else:
        _U16.pack_into(frame, f.l3 + ipv6.PAYLOAD_LENGTH, f.payload - f.l3 - ipv6.HEADER)
        at, size = f.l3 + ipv6.SOURCE, 32
    _NUMBERS.pack_into(frame, f.l4 + tcp.SEQ, seq, ack)
    frame[f.l4 + tcp.FLAGS] = flags
    _TAIL.pack_into(frame, f.l4 + tcp.WINDOW, window, 0, 0)
    pseudo = bytes(frame[at : at + size]) + struct.pack(">II", f.payload - f.l4, IPPROTO_TCP)
    _U16.pack_into(frame, f.l4 + tcp.CHECKSUM, checksum(frame[f.l4 :], ones_sum(pseudo)))
    return bytes(frame)
