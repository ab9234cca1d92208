"""Cutting a TCP super-frame in two, as a network card would (virtio 1.2 §5.1.6.2, `VIRTIO_NET_HDR_GSO_TCPV4/6`)."""

from __future__ import annotations

import struct

from lockstep.wire import checksum, ipv4, ipv6, tcp, vnet
from lockstep.wire.frame import Frame
from lockstep.wire.seqnum import add

_CWR = 0x80

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


def segment_size(data: bytes, size: int) -> int:
    """`gso_size` of a frame whose virtio-net header has `size` bytes; 0 if it is no TCP super-frame."""
    if not size or not data[0] & vnet.NEEDS_CSUM:
        return 0
    if data[1] & ~vnet.GSO_ECN not in (vnet.GSO_TCPV4, vnet.GSO_TCPV6):
        return 0
    return data[4] | data[5] << 8


def cuttable(data: bytes, size: int) -> int:
    """1 if a plain segment can be cut at any byte, since its checksum is partial; else 0."""
    return 1 if size and data[0] & vnet.NEEDS_CSUM and data[1] == vnet.GSO_NONE else 0


def split(f: Frame, data: bytes, size: int, at: int) -> tuple[bytes, bytes]:
    """Two frames that say what the super-frame `data` says: its first `at` bytes of payload, and the rest.

    f: the dissected frame. size: of its virtio-net header. at: a multiple of `segment_size`, less
    than the payload. Flags go where a network card puts them: FIN and PSH to the last, CWR to the first.
    """
    headers = data[: f.payload]
    payload = data[f.payload : f.payload_end]
    step = segment_size(data, size)
    first = _part(f, headers, payload[:at], 0, 0, tcp.FIN | tcp.PSH, step)
    rest = _part(f, headers, payload[at:], at, at // step if step else 1, _CWR, step)
    return first, rest


def _part(f: Frame, headers: bytes, payload: bytes, moved: int, packets: int, without: int, step: int) -> bytes:
    part = bytearray(headers)
    part += payload
    if step and len(payload) <= step:
        part[1] = vnet.GSO_NONE
        part[4:6] = b"\0\0"
    length = len(part) - f.l4
    # The partial checksum is the pseudo-header's sum, in which the TCP length takes part.
    before = f.payload_end - f.l4
    field = f.l4 + tcp.CHECKSUM
    partial = _U16.unpack_from(part, field)[0]
    _U16.pack_into(part, field, checksum.ones_sum(struct.pack(">HHH", partial, ~before & 0xFFFF, length)))
    seq = _U32.unpack_from(part, f.l4 + tcp.SEQ)[0]
    _U32.pack_into(part, f.l4 + tcp.SEQ, add(seq, moved))
    part[f.l4 + tcp.FLAGS] &= ~without
    if f.version == 4:
        _U16.pack_into(part, f.l3 + ipv4.TOTAL_LENGTH, len(part) - f.l3)
        ident = _U16.unpack_from(part, f.l3 + ipv4.IDENT)[0]
        _U16.pack_into(part, f.l3 + ipv4.IDENT, (ident + packets) & 0xFFFF)
        _U16.pack_into(part, f.l3 + ipv4.CHECKSUM, 0)
        _U16.pack_into(part, f.l3 + ipv4.CHECKSUM, checksum.checksum(part[f.l3 : f.l4]))
    else:
        _U16.pack_into(part, f.l3 + ipv6.PAYLOAD_LENGTH, len(part) - f.l3 - ipv6.HEADER)
    return bytes(part)
