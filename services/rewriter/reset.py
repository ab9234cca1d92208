"""Resets for connections that the secondary can't carry on: made from a segment of the connection."""

from __future__ import annotations

from lockstep.batch import Buffer
from lockstep.wire import ethernet, frame, ipv4, ipv6, tcp
from lockstep.wire.checksum import checksum, ones_sum
from lockstep.wire.frame import Frame


def reset(f: Frame, buf: Buffer, *, back: bool, seq: int, ack: int) -> bytes:
    """An Ethernet frame with RST and ACK in the direction of this segment, or `back` to where it came from."""
    start, l3, l4 = f.start, f.l3, f.l4
    destination, source = bytes(buf[start : start + 6]), bytes(buf[start + 6 : start + 12])
    ports = bytes(buf[l4 : l4 + 2]), bytes(buf[l4 + 2 : l4 + 4])
    at, size = (l3 + ipv4.SOURCE, 4) if f.version == 4 else (l3 + ipv6.SOURCE, 16)
    ends = bytes(buf[at : at + size]), bytes(buf[at + size : at + 2 * size])
    if back:
        destination, source = source, destination
        ports, ends = ports[::-1], ends[::-1]
    segment = (
        b"".join(ports) + seq.to_bytes(4, "big") + ack.to_bytes(4, "big") + bytes((0x50, tcp.RST | tcp.ACK)) + b"\0" * 6
    )
    pseudo = b"".join(ends) + tcp.HEADER.to_bytes(4, "big") + frame.IPPROTO_TCP.to_bytes(4, "big")
    summed = checksum(segment, ones_sum(pseudo)).to_bytes(2, "big")
    segment = segment[: tcp.CHECKSUM] + summed + segment[tcp.CHECKSUM + 2 :]
    if f.version == 4:
        total = ipv4.HEADER + tcp.HEADER
        header = (
            b"\x45\0"
            + total.to_bytes(2, "big")
            + b"\0\0\x40\0"
            + bytes((64, frame.IPPROTO_TCP))
            + b"\0\0"
            + b"".join(ends)
        )
        header = header[: ipv4.CHECKSUM] + checksum(header).to_bytes(2, "big") + header[ipv4.CHECKSUM + 2 :]
    else:
        header = b"\x60\0\0\0" + tcp.HEADER.to_bytes(2, "big") + bytes((frame.IPPROTO_TCP, 64)) + b"".join(ends)
    link = destination + source + bytes(buf[start + 2 * 6 : l3])
    return (link + header + segment).ljust(ethernet.HEADER + 46, b"\0")
