"""The key of a flow: VLAN stack, addresses, protocol and ports, as bytes that can be hashed.

Layout: 1 byte number of VLAN tags, 1 byte IP version (0: none), 1 byte protocol, then 2 bytes VLAN
id per tag, source and destination address (4 or 16 bytes each), and what the protocol tells flows
apart by: source and destination port (TCP, UDP), or the identifier of an ICMP echo. Without IP:
the ethertype and the two MAC addresses.
"""

from __future__ import annotations

import ipaddress
from typing import TypeGuard

from lockstep.batch import Buffer
from lockstep.wire import ethernet, frame, icmp, ipv4, ipv6, vlan
from lockstep.wire.frame import Frame

_PLAIN_TCP4 = bytes((0, 4, frame.IPPROTO_TCP))
_ECHOES = frozenset({icmp.ECHO_REQUEST, icmp.ECHO_REPLY, icmp.V6_ECHO_REQUEST, icmp.V6_ECHO_REPLY})


def flow_key(f: Frame, buf: Buffer) -> bytes:
    """The key of a dissected frame, in the direction in which it travels."""
    if f.kind == frame.TCP and f.version == 4 and not f.tags and f.l4 - f.l3 == ipv4.HEADER:
        return _PLAIN_TCP4 + bytes(buf[f.l3 + ipv4.SOURCE : f.l4 + 4])
    if f.version == 4:
        addresses = bytes(buf[f.l3 + ipv4.SOURCE : f.l3 + ipv4.SOURCE + 8])
    elif f.version == 6:
        addresses = bytes(buf[f.l3 + ipv6.SOURCE : f.l3 + ipv6.SOURCE + 32])
    else:
        start = f.start
        kind = bytes(buf[f.l3 - 2 : f.l3])
        return (
            bytes((f.tags, 0, 0))
            + _tags(f, buf)
            + kind
            + bytes(buf[start + 6 : start + 12])
            + bytes(buf[start : start + 6])
        )
    return bytes((f.tags, f.version, f.protocol)) + _tags(f, buf) + addresses + _ports(f, buf)


def reversed_key(f: Frame, buf: Buffer) -> bytes:
    """The key of the TCP flow that goes the other way: what the receiver of this frame sends."""
    l4 = f.l4
    ports = bytes(buf[l4 + 2 : l4 + 4]) + bytes(buf[l4 : l4 + 2])
    if f.version == 4:
        at, size = f.l3 + ipv4.SOURCE, 4
    else:
        at, size = f.l3 + ipv6.SOURCE, 16
    addresses = bytes(buf[at + size : at + 2 * size]) + bytes(buf[at : at + size])
    return bytes((f.tags, f.version, f.protocol)) + _tags(f, buf) + addresses + ports


def quoted_tcp(f: Frame, buf: Buffer) -> tuple[bytes, int] | None:
    """Of an ICMP error that quotes a TCP segment: that segment's key, and where its header begins.

    None for anything else, and where the quotation ends before the sequence number does.
    """
    at, end = f.payload, f.payload_end
    if f.kind == frame.ICMP and buf[f.l4] in icmp.V4_ERRORS and end - at >= ipv4.HEADER and buf[at] >> 4 == 4:
        header = (buf[at] & 0xF) << 2
        later = (buf[at + ipv4.FRAGMENT] << 8 | buf[at + ipv4.FRAGMENT + 1]) & ipv4.OFFSET_MASK
        if header < ipv4.HEADER or later:
            return None
        l4, size, source, protocol = at + header, 4, at + ipv4.SOURCE, buf[at + ipv4.PROTOCOL]
    elif f.kind == frame.ICMPV6 and buf[f.l4] in icmp.V6_ERRORS and end - at >= ipv6.HEADER and buf[at] >> 4 == 6:
        l4, size, source, protocol = at + ipv6.HEADER, 16, at + ipv6.SOURCE, buf[at + ipv6.NEXT_HEADER]
    else:
        return None
    if protocol != frame.IPPROTO_TCP or end - l4 < 8:
        return None
    head = bytes((f.tags, f.version, protocol)) + _tags(f, buf)
    return head + bytes(buf[source : source + 2 * size]) + bytes(buf[l4 : l4 + 4]), l4


def _tags(f: Frame, buf: Buffer) -> bytes:
    if not f.tags:
        return b""
    ids = bytearray()
    at = f.start + ethernet.HEADER
    for _ in range(f.tags):
        ids += ((buf[at] << 8 | buf[at + 1]) & vlan.VID_MASK).to_bytes(2, "big")
        at += vlan.TAG
    return bytes(ids)


def _ports(f: Frame, buf: Buffer) -> bytes:
    if f.kind in (frame.TCP, frame.UDP):
        return bytes(buf[f.l4 : f.l4 + 4])
    if f.kind in (frame.ICMP, frame.ICMPV6) and buf[f.l4] in _ECHOES:
        return bytes(buf[f.l4 + icmp.IDENT : f.l4 + icmp.IDENT + 2])
    return b""


def is_tcp_key(key: object) -> TypeGuard[bytes]:
    """Whether anything that another process sent is the key of a TCP flow."""
    if not isinstance(key, bytes) or len(key) < 3 or key[2] != frame.IPPROTO_TCP or key[1] not in (4, 6):
        return False
    return key[0] <= vlan.MOST_TAGS and len(key) == 3 + 2 * key[0] + (8 if key[1] == 4 else 32) + 4


def describe(key: bytes) -> dict[str, object]:
    """A key in words: `flow` as `SRC:PORT DST:PORT` (brackets around IPv6), `protocol`, and `vlan` if tagged."""
    tags, version, protocol = key[0], key[1], key[2]
    at = 3 + 2 * tags
    said: dict[str, object] = {"flow": "", "protocol": _protocol_name(version, protocol)}
    if tags:
        said["vlan"] = [int.from_bytes(key[3 + 2 * i : 5 + 2 * i], "big") for i in range(tags)]
    if version == 0:
        said["protocol"] = f"ethertype 0x{key[at : at + 2].hex()}"
        said["flow"] = f"{key[at + 2 : at + 8].hex(':')} {key[at + 8 : at + 14].hex(':')}"
        return said
    size = 4 if version == 4 else 16
    ends = [str(ipaddress.ip_address(key[at + size * i : at + size * (i + 1)])) for i in range(2)]
    ports = key[at + 2 * size :]
    if len(ports) == 4:
        ends = [
            f"{f'[{end}]' if version == 6 else end}:{int.from_bytes(ports[2 * i : 2 * i + 2], 'big')}"
            for i, end in enumerate(ends)
        ]
    said["flow"] = " ".join(ends)
    return said


def _protocol_name(version: int, protocol: int) -> str:
    if protocol == frame.IPPROTO_ICMPV6 and version == 6:
        return "icmpv6"
    names = {frame.IPPROTO_ICMP: "icmp", frame.IPPROTO_TCP: "tcp", frame.IPPROTO_UDP: "udp"}
    return names.get(protocol, f"ip {protocol}")
