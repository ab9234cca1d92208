"""Resets for connections that the secondary can't carry on: made from a segment of the connection."""

from __future__ import annotations

from lockstep.batch import Buffer
from lockstep.wire import ethernet, frame, ipv4, ipv6, tcp
from lockstep.wire.checksum import checksum, ones_sum
from lockstep.wire.frame import Frame


def segment_of(key: bytes, macs: bytes) -> bytes:
    """An empty segment of the flow with this key (`lockstep.flow.key`), for `reset` to work on.

    macs: destination and source, 12 bytes.
    """
    tags, version = key[0], key[1]
    at, size = 3 + 2 * tags, 4 if version == 4 else 16
    ends, ports = key[at : at + 2 * size], key[at + 2 * size :]
    link = macs + b"".join(ethernet.VLAN.to_bytes(2, "big") + key[3 + 2 * i : 5 + 2 * i] for i in range(tags))
    segment = ports + bytes(8) + bytes((0x50, 0)) + bytes(6)
    if version == 4:
        return link + ethernet.IPV4.to_bytes(2, "big") + _ipv4(ends) + segment
    return link + ethernet.IPV6.to_bytes(2, "big") + _ipv6(ends) + segment


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
    header = _ipv4(b"".join(ends)) if f.version == 4 else _ipv6(b"".join(ends))
    link = destination + source + bytes(buf[start + 2 * 6 : l3])
    return (link + header + segment).ljust(ethernet.HEADER + 46, b"\0")


def _ipv4(ends: bytes) -> bytes:
    """The header of an IPv4 packet that carries a TCP header alone; `ends`: source and destination."""
    total = ipv4.HEADER + tcp.HEADER
    header = b"\x45\0" + total.to_bytes(2, "big") + b"\0\0\x40\0" + bytes((64, frame.IPPROTO_TCP)) + b"\0\0" + ends
    return header[: ipv4.CHECKSUM] + checksum(header).to_bytes(2, "big") + header[ipv4.CHECKSUM + 2 :]


def _ipv6(ends: bytes) -> bytes:
    return b"\x60\0\0\0" + tcp.HEADER.to_bytes(2, "big") + bytes((frame.IPPROTO_TCP, 64)) + ends
