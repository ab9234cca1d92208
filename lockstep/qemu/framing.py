"""QEMU's framing of a byte stream, without the stream: bytes in, frames out, and back.

Each frame is its length (u32, big-endian), then, where both ends agreed on `vnet_hdr`, the bytes of its
virtio-net header (u32, big-endian), then the frame, that header first and counted in the length.
Source: QEMU `net/net.c` (`net_fill_rstate`), `net/filter-mirror.c`.
"""

from __future__ import annotations

import struct

from lockstep.batch import MAX_BATCH, MAX_FRAME, VNET_SIZES, Batch, Buffer
from lockstep.wire import gso, vnet

_U32 = struct.Struct(">I")
_TWO = struct.Struct(">II")
#: Longest frame that is taken, its virtio-net header included.
LONGEST = MAX_FRAME + max(VNET_SIZES)


class FramingError(Exception):
    """Bytes that are no frames of QEMU's. Where the next frame would begin can't be known any more."""


class Deframer:
    """Collects the bytes of one connection, and cuts them into frames.

    Use: fill `room()` from its start, then tell `filled(n)` and take the batches it gives.
    vnet_hdr: whether the length of a virtio-net header is told before each frame.
    """

    def __init__(self, vnet_hdr: bool) -> None:
        self._vnet_hdr = vnet_hdr
        self._buffer = bytearray(MAX_BATCH + _TWO.size + LONGEST)
        self._view = memoryview(self._buffer)
        self._end = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._view[self._end :]

    def reset(self) -> None:
        """Forget the beginning of a frame: its end was lost with its connection."""
        self._end = 0

    def filled(self, count: int) -> list[Batch]:
        """Take `count` bytes more; the frames that are whole now, as batches of one header size each.

        Raises FramingError at a length that can't be. Its frames are copies: `room` may be filled again.
        """
        self._end += count
        at, end, view, told = 0, self._end, self._view, self._vnet_hdr
        head = _TWO.size if told else _U32.size
        batches: list[Batch] = []
        frames: list[memoryview] = []
        size = 0
        while end - at >= head:
            (length,) = _U32.unpack_from(view, at)
            before, size = size, _U32.unpack_from(view, at + 4)[0] if told else 0
            if size not in VNET_SIZES:
                raise FramingError(f"a virtio-net header of {size} bytes; both ends must have vnet_hdr on, or both off")
            if not size < length <= MAX_FRAME + size:
                raise FramingError(f"a frame of {length} bytes; both ends must have vnet_hdr on, or both off")
            if end - at < head + length:
                size = before
                break
            if size != before and frames:
                batches.append(Batch.of(frames, before))
                frames = []
            frames.append(view[at + head : at + head + length])
            at += head + length
        if frames:
            batches.append(Batch.of(frames, size))
        rest = end - at
        self._buffer[:rest] = bytes(view[at:end])
        self._end = rest
        return batches


def framed(batch: Batch, vnet_hdr: int) -> tuple[bytes, int]:
    """The bytes that carry the batch, and how many of its frames could not be carried.

    vnet_hdr: bytes of virtio-net header that go along, told before each frame; with 0 nothing is told,
    checksums are completed, and super-frames cut.
    """
    lost = 0
    if vnet_hdr:
        batch = vnet.convert(batch, vnet_hdr)
    else:
        batch, lost = gso.plain(batch)
    data = memoryview(batch.data)
    parts: list[Buffer] = []
    for start, end in batch.spans():
        parts.append(_TWO.pack(end - start, vnet_hdr) if vnet_hdr else _U32.pack(end - start))
        parts.append(data[start:end])
    return b"".join(parts), lost
