"""The virtio-net header in front of a frame (virtio 1.2 §5.1.6, `struct virtio_net_hdr`).

10 bytes, little-endian: flags u8, gso_type u8, hdr_len u16, gso_size u16, csum_start u16,
csum_offset u16; with 12 bytes, num_buffers u16 follows. With `NEEDS_CSUM` the checksum field
holds the pseudo-header's sum alone (a *partial* checksum) and whoever sends the frame finishes it.
"""

from __future__ import annotations

from lockstep.batch import Batch, BatchBuilder, Buffer
from lockstep.wire import checksum

NEEDS_CSUM = 1
DATA_VALID = 2

GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 3, 4, 5
GSO_ECN = 0x80


def convert(batch: Batch, vnet: int) -> Batch:
    """The same frames with another size of virtio-net header.

    Towards 0 partial checksums are finished, since nobody downstream would know that they are
    partial; a super-frame stays whole.
    """
    if batch.vnet == vnet:
        return batch
    builder = BatchBuilder()
    data, old = batch.data, batch.vnet
    for start, end in batch.spans():
        if vnet == 0:
            builder.append(finished(data, start, end, old), 0)
        else:
            header = bytes(data[start : start + min(old, 10)]).ljust(vnet, b"\0")
            builder.append(header + bytes(data[start + old : end]), vnet)
    # Growing headers can make one full batch into two; ports and links take frames, so join them.
    batches = builder.take()
    if len(batches) == 1:
        return batches[0]
    return Batch.of([frame for part in batches for frame in part.frames()], vnet)


def finished(data: Buffer, start: int, end: int, vnet: int) -> bytearray:
    """The frame of `data[start:end]` without its header, its checksum complete."""
    frame = bytearray(data[start + vnet : end])
    if vnet and data[start] & NEEDS_CSUM:
        begin = data[start + 6] | data[start + 7] << 8
        field = begin + (data[start + 8] | data[start + 9] << 8)
        if field + 2 <= len(frame):
            # The field's partial sum is part of what is summed: that is how the pseudo-header gets in.
            total = checksum.checksum(frame[begin:])
            frame[field : field + 2] = (total or 0xFFFF).to_bytes(2, "big")
    return frame
