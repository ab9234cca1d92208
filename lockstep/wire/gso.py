"""Cutting a super-frame, in two or into all it stands for, as a network card would.

virtio 1.2 §5.1.6.2, `VIRTIO_NET_HDR_GSO_TCPV4`, `_TCPV6` and `_UDP_L4`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from lockstep.batch import Batch, Buffer
from lockstep.wire import checksum, ipv4, ipv6, tcp, udp, vnet
from lockstep.wire import frame as kinds
from lockstep.wire.frame import Frame, dissect
from lockstep.wire.seqnum import add

#: More segments than this are refused: a frame of 64 KiB would become many megabytes.
MOST_SEGMENTS = 2048

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

    f: the dissected frame. size: of its virtio-net header. at: a multiple of `segment_size`, or less than
    one, and less than the payload. Flags go where a network card puts them: FIN and PSH to the last, CWR to the first.
    """
    headers = data[: f.payload]
    payload = data[f.payload : f.payload_end]
    step = segment_size(data, size)
    first = _part(f, headers, payload[:at], 0, 0, tcp.FIN | tcp.PSH, step)
    rest = _part(f, headers, payload[at:], at, max(1, at // step) if step else 1, _CWR, step)
    return first, rest


def segments(f: Frame, data: bytes, size: int) -> list[bytes]:
    """Every frame that the super-frame `data` stands for, with partial checksums; none if it can't be cut.

    f: the dissected frame. size: of its virtio-net header, at least 10.
    """
    step = data[4] | data[5] << 8
    total = f.payload_end - f.payload
    if not data[0] & vnet.NEEDS_CSUM or not step or not 0 < total <= step * MOST_SEGMENTS:
        return []
    kind = data[1] & ~vnet.GSO_ECN
    headers = data[: f.payload]
    places = range(f.payload, f.payload_end, step)
    payloads = [data[at : min(at + step, f.payload_end)] for at in places]
    if f.kind == kinds.TCP and kind in (vnet.GSO_TCPV4, vnet.GSO_TCPV6):
        without = [_CWR | tcp.FIN | tcp.PSH] * len(payloads)
        without[0] &= ~_CWR
        without[-1] &= ~(tcp.FIN | tcp.PSH)
        return [
            _part(f, headers, payload, n * step, n, flags, step)
            for n, (payload, flags) in enumerate(zip(payloads, without, strict=True))
        ]
    if f.kind == kinds.UDP and kind == vnet.GSO_UDP_L4:
        return [_datagram(f, headers, payload, n) for n, payload in enumerate(payloads)]
    return []


def datagrams(f: Frame, data: Buffer, size: int) -> Sequence[Buffer]:
    """`data` alone, or the datagrams of a UDP super-frame; none if that can't be cut.

    Datagrams are compared one by one, so they are cut where a guest's frames come in. f: takes what is dissected.
    size: of its virtio-net header, at least 10.
    """
    if data[1] != vnet.GSO_UDP_L4:
        return [data]
    whole = bytes(data)
    dissect(f, whole, size, len(whole))
    return segments(f, whole, size)


def plain(batch: Batch) -> tuple[Batch, int]:
    """The frames as they are on a wire: no virtio-net header, checksums complete, super-frames cut.

    With it, how many super-frames were of a kind that can't be cut, and are missing.
    """
    data, size = batch.data, batch.vnet
    if not size or all(data[start + 1] == vnet.GSO_NONE for start, _ in batch.spans()):
        return vnet.convert(batch, 0), 0
    f, lost = Frame(), 0
    frames: list[Buffer] = []
    for start, end in batch.spans():
        if data[start + 1] == vnet.GSO_NONE:
            frames.append(vnet.finished(data, start, end, size))
            continue
        whole = bytes(data[start:end])
        dissect(f, whole, size, len(whole))
        parts = segments(f, whole, size)
        lost += not parts
        frames += [vnet.finished(part, 0, len(part), size) for part in parts]
    return Batch.of(frames), lost


def _datagram(f: Frame, headers: bytes, payload: bytes, packets: int) -> bytes:
    part = bytearray(headers)
    part += payload
    part[1] = vnet.GSO_NONE
    part[4:6] = b"\0\0"
    _U16.pack_into(part, f.l4 + udp.LENGTH, len(part) - f.l4)
    _shorten(f, part, udp.CHECKSUM, packets)
    return bytes(part)


def _part(f: Frame, headers: bytes, payload: bytes, moved: int, packets: int, without: int, step: int) -> bytes:
    part = bytearray(headers)
    part += payload
    if step and len(payload) <= step:
        part[1] = vnet.GSO_NONE
        part[4:6] = b"\0\0"
    seq = _U32.unpack_from(part, f.l4 + tcp.SEQ)[0]
    _U32.pack_into(part, f.l4 + tcp.SEQ, add(seq, moved))
    part[f.l4 + tcp.FLAGS] &= ~without
    _shorten(f, part, tcp.CHECKSUM, packets)
    return bytes(part)


def _shorten(f: Frame, part: bytearray, field: int, packets: int) -> None:
    """Correct the lengths and the partial checksum of a part; `packets` came before it."""
    # The partial checksum is the pseudo-header's sum, in which the transport's length takes part.
    before, length = f.payload_end - f.l4, len(part) - f.l4
    field += f.l4
    partial = _U16.unpack_from(part, field)[0]
    _U16.pack_into(part, field, checksum.ones_sum(struct.pack(">HHH", partial, ~before & 0xFFFF, length & 0xFFFF)))
    if f.version == 4:
        _U16.pack_into(part, f.l3 + ipv4.TOTAL_LENGTH, len(part) - f.l3)
        ident = _U16.unpack_from(part, f.l3 + ipv4.IDENT)[0]
        _U16.pack_into(part, f.l3 + ipv4.IDENT, (ident + packets) & 0xFFFF)
        _U16.pack_into(part, f.l3 + ipv4.CHECKSUM, 0)
        _U16.pack_into(part, f.l3 + ipv4.CHECKSUM, checksum.checksum(part[f.l3 : f.l4]))
    else:
        _U16.pack_into(part, f.l3 + ipv6.PAYLOAD_LENGTH, len(part) - f.l3 - ipv6.HEADER)
