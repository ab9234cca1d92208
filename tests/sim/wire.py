"""Frames to fields and back, for the simulator's hosts and its checker.

It shares no code with `lockstep.wire`: what the cores read wrongly must not be read wrongly here as
well. Only what the simulator sends is understood in full; everything else has kind `bad` or `other`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80
MASK = 0xFFFFFFFF
HALF = 0x80000000

PROTO_ICMP, PROTO_TCP, PROTO_UDP, PROTO_ICMP6 = 1, 6, 17, 58
ETH_IPV4, ETH_ARP, ETH_VLAN, ETH_IPV6 = 0x0800, 0x0806, 0x8100, 0x86DD

NEEDS_CSUM = 1
GSO_TCPV4, GSO_TCPV6 = 1, 4

_FLAGS = ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (ACK, "A"))

Flow = tuple[object, ...]

_TCP = struct.Struct(">HHIIBBHHH")
_VNET = struct.Struct("<BBHHHH")


def distance(a: int, b: int) -> int:
    """From sequence number `b` to `a`, signed."""
    return ((a - b + HALF) & MASK) - HALF


def inet_sum(data: bytes) -> int:
    """RFC 1071's sum, not yet complemented; 0xFFFF where the data sums to zero but isn't all zero."""
    if len(data) % 2:
        data += b"\0"
    total = int.from_bytes(data, "big")
    return (total % 0xFFFF or 0xFFFF) if total else 0


@dataclass(slots=True, repr=False)
class Packet:
    """A frame that was read. `flow` goes in the frame's own direction; `body` is what two replicas must agree on.

    checksum: right, partial (a virtio-net header says so, and the pseudo-header's sum is in the field), bad, none.
    l4: offset of the transport header, in the frame without its virtio-net header.
    """

    kind: str
    flow: Flow = ()
    source_mac: bytes = b""
    version: int = 0
    source: bytes = b""
    destination: bytes = b""
    sport: int = 0
    dport: int = 0
    seq: int = 0
    ack: int = 0
    flags: int = 0
    window: int = 0
    urgent: int = 0
    stamps: tuple[int, int] | None = None
    sack: tuple[tuple[int, int], ...] = ()
    mss: int = 0
    scale: int | None = None
    options: tuple[bytes, ...] = ()
    payload: bytes = b""
    body: bytes = b""
    checksum: str = "none"
    ident: int = 0
    l3: int = 0
    l4: int = 0
    stamps_at: int = 0
    sack_at: int = 0
    header_end: int = 0
    gso_size: int = 0
    fragment: tuple[int, bool] | None = None
    #: Of an ICMP error: the ports and seq of the TCP segment that it quotes, and where that seq lies.
    quoted: tuple[int, int, int, int] | None = None
    asks: bool = False

    def __repr__(self) -> str:
        if self.kind != "tcp":
            return f"{self.kind} {self.sport}>{self.dport} +{len(self.body or self.payload)}"
        flags = "".join(name for bit, name in _FLAGS if self.flags & bit)
        ack = f" ack {self.ack}" if self.flags & ACK else ""
        numbers = f"{self.seq}+{len(self.payload)}{ack} window {self.window}"
        return f"{self.sport}>{self.dport} {flags} {numbers} {self.checksum}"


BAD = Packet("bad")


def parse(raw: bytes, vnet: int) -> Packet:
    """Read one frame whose first `vnet` bytes are a virtio-net header."""
    frame = raw[vnet:]
    if len(frame) < 14:
        return BAD
    at, tags = 12, []
    kind = frame[at] << 8 | frame[at + 1]
    while kind == ETH_VLAN:
        if len(frame) < at + 6:
            return BAD
        tags.append((frame[at + 2] << 8 | frame[at + 3]) & 0xFFF)
        at += 4
        kind = frame[at] << 8 | frame[at + 1]
    at += 2
    mac = frame[6:12]
    if kind == ETH_ARP:
        return Packet("chatter", ("arp",), mac, asks=frame[at + 6 : at + 8] == b"\0\1" and len(frame) >= at + 28)
    if kind == ETH_IPV4:
        return _ipv4(raw, frame, vnet, at, tuple(tags), mac)
    if kind == ETH_IPV6:
        return _ipv6(raw, frame, vnet, at, tuple(tags), mac)
    if kind < 0x600:
        return Packet("chatter", ("llc",), mac)
    return Packet("other", ("ether", kind, *tags, frame[:12]), mac, body=frame[at:])


def _ipv4(raw: bytes, frame: bytes, vnet: int, at: int, tags: tuple[int, ...], mac: bytes) -> Packet:
    if len(frame) < at + 20 or frame[at] != 0x45:
        return BAD
    total, ident, place = struct.unpack_from(">HHH", frame, at + 2)
    if total < 20 or at + total > len(frame):
        return BAD
    end = at + total
    source, destination, protocol = frame[at + 12 : at + 16], frame[at + 16 : at + 20], frame[at + 9]
    p = Packet("other", (4, *tags, protocol, source, destination), mac, 4, source, destination, l3=at, ident=ident)
    p.l4 = at + 20
    if place & 0x3FFF:
        p.kind, p.flow = "fragment", (*p.flow, "fragment", ident)
        p.fragment = ((place & 0x1FFF) * 8, bool(place & 0x2000))
        p.payload = frame[at + 20 : end]
        return p
    return _transport(p, raw, frame, vnet, protocol, end)


def _ipv6(raw: bytes, frame: bytes, vnet: int, at: int, tags: tuple[int, ...], mac: bytes) -> Packet:
    if len(frame) < at + 40 or frame[at] >> 4 != 6:
        return BAD
    end = at + 40 + (frame[at + 4] << 8 | frame[at + 5])
    if end > len(frame):
        return BAD
    source, destination, protocol = frame[at + 8 : at + 24], frame[at + 24 : at + 40], frame[at + 6]
    p = Packet("other", (6, *tags, protocol, source, destination), mac, 6, source, destination, l3=at)
    p.l4 = at + 40
    return _transport(p, raw, frame, vnet, protocol, end)


def _transport(p: Packet, raw: bytes, frame: bytes, vnet: int, protocol: int, end: int) -> Packet:
    at = p.l4
    segment = frame[at:end]
    if protocol == PROTO_TCP:
        return _tcp(p, raw, vnet, segment)
    if protocol == PROTO_UDP:
        if len(segment) < 8:
            return BAD
        p.kind = "udp"
        p.sport, p.dport, length, field = struct.unpack_from(">HHHH", segment)
        if not 8 <= length <= len(segment):
            return BAD
        p.payload = p.body = segment[8:length]
        p.flow = (*p.flow, p.sport, p.dport)
        p.checksum = _checksum(p, raw, vnet, segment[:length], PROTO_UDP, field) if field else "none"
        return p
    if (protocol, p.version) in ((PROTO_ICMP, 4), (PROTO_ICMP6, 6)):
        if len(segment) < 8:
            return BAD
        if p.version == 6 and segment[0] in (133, 134, 135, 136):
            p.kind, p.asks = "chatter", segment[0] == 135
            return p
        p.kind = "icmp"
        if segment[0] in (0, 8, 128, 129):
            p.flow = (*p.flow, segment[4:6])
        p.payload, p.body = segment, segment[:2] + segment[4:]
        if segment[0] in ((3, 11) if p.version == 4 else (1, 2, 3)):
            p.quoted = _quoted(segment, p.l4, 20 if p.version == 4 else 40)
        over = segment if p.version == 4 else _pseudo(p, len(segment), PROTO_ICMP6) + segment
        p.checksum = "right" if inet_sum(over) == 0xFFFF else "bad"
        return p
    p.body = p.payload = segment
    return p


def _quoted(segment: bytes, l4: int, header: int) -> tuple[int, int, int, int] | None:
    at = 8 + header
    if len(segment) < at + 8 or segment[8 + (9 if header == 20 else 6)] != PROTO_TCP:
        return None
    return (*struct.unpack_from(">HHI", segment, at), l4 + at + 4)


def icmp_error(source: bytes, destination: bytes, packet: bytes) -> bytes:
    """An ICMP or ICMPv6 error that quotes the beginning of an IP packet: too big."""
    six = len(source) == 16
    body = bytes((2 if six else 3, 0 if six else 4, 0, 0, 0, 0, 5, 0)) + packet[: (40 if six else 20) + 8]
    over = (source + destination + struct.pack(">II", len(body), PROTO_ICMP6) if six else b"") + body
    return body[:2] + (~inet_sum(over) & 0xFFFF).to_bytes(2) + body[4:]


def _tcp(p: Packet, raw: bytes, vnet: int, segment: bytes) -> Packet:
    if len(segment) < 20:
        return BAD
    p.kind = "tcp"
    p.sport, p.dport, p.seq, p.ack, offset, p.flags, p.window, field, p.urgent = _TCP.unpack_from(segment)
    header = (offset >> 4) * 4
    if not 20 <= header <= len(segment):
        return BAD
    p.flow = (*p.flow, p.sport, p.dport)
    p.header_end = p.l4 + header
    p.payload = segment[header:]
    if header > 20:
        _options(p, segment, header)
    p.checksum = _checksum(p, raw, vnet, segment, PROTO_TCP, field)
    if vnet and raw[1] & 0x7F in (GSO_TCPV4, GSO_TCPV6):
        p.gso_size = raw[4] | raw[5] << 8
    return p


def _options(p: Packet, segment: bytes, end: int) -> None:
    at, options = 20, []
    while at < end and segment[at] != 0:
        if segment[at] == 1:
            at += 1
            continue
        length = segment[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            break
        kind, option = segment[at], segment[at : at + length]
        if kind == 8 and length == 10:
            p.stamps = struct.unpack_from(">II", option, 2)
            p.stamps_at = p.l4 + at
            option = option[:2]
        elif kind == 5:
            edges = struct.unpack_from(f">{(length - 2) // 4}I", option, 2)
            p.sack = tuple(zip(edges[::2], edges[1::2], strict=True))
            p.sack_at = p.l4 + at
        elif kind == 2:
            p.mss = option[2] << 8 | option[3]
        elif kind == 3:
            p.scale = option[2]
        options.append(option)
        at += length
    p.options = tuple(options)


def _pseudo(p: Packet, length: int, protocol: int) -> bytes:
    return p.source + p.destination + struct.pack(">II", length, protocol)


def _checksum(p: Packet, raw: bytes, vnet: int, segment: bytes, protocol: int, field: int) -> str:
    pseudo = _pseudo(p, len(segment), protocol)
    if vnet and raw[0] & NEEDS_CSUM:
        return "partial" if inet_sum(pseudo) % 0xFFFF == field % 0xFFFF else "bad"
    return "right" if inet_sum(pseudo + segment) == 0xFFFF else "bad"


class Reader:
    """Reads frames, each of them once."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], Packet] = {}

    def read(self, raw: bytes, vnet: int) -> Packet:
        """See `parse`. The packet is shared; nobody changes it."""
        known = self._known.get((raw, vnet))
        if known is None:
            known = self._known[raw, vnet] = parse(raw, vnet)
        return known


# --- frames


@dataclass(frozen=True, slots=True)
class Link:
    """What every frame of a host begins with."""

    own: bytes
    other: bytes
    tags: tuple[int, ...] = ()

    def header(self, kind: int) -> bytes:
        """Ethernet and VLAN tags in front of an `kind`."""
        return (
            self.other + self.own + b"".join(struct.pack(">HH", ETH_VLAN, tag) for tag in self.tags) + kind.to_bytes(2)
        )


@dataclass(frozen=True, slots=True)
class Offload:
    """How a port gives its frames: bytes of virtio-net header, partial checksums, super-frames of a segment size."""

    vnet: int = 0
    partial: bool = False
    gso: bool = False


def ip_frame(
    link: Link, source: bytes, destination: bytes, protocol: int, payload: bytes, ident: int = 0, fragment: int = 0
) -> bytes:
    """An IP packet in an Ethernet frame."""
    if len(source) == 16:
        head = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64)
        return link.header(ETH_IPV6) + head + source + destination + payload
    head = struct.pack(">BBHHHBB", 0x45, 0, 20 + len(payload), ident, fragment or 0x4000, 64, protocol)
    addresses = source + destination
    checksum = ~inet_sum(head + addresses) & 0xFFFF
    return link.header(ETH_IPV4) + head + checksum.to_bytes(2) + addresses + payload


def tcp_frame(
    link: Link,
    source: bytes,
    destination: bytes,
    ports: tuple[int, int],
    numbers: tuple[int, int],
    flags: int,
    window: int,
    options: bytes,
    payload: bytes,
    ident: int,
    offload: Offload,
    gso_size: int = 0,
    spoiled: bool = False,
    urgent: int = 0,
) -> bytes:
    """A TCP segment, or a super-frame, with its virtio-net header. spoiled: its checksum is wrong."""
    header = 20 + len(options)
    head = _TCP.pack(*ports, numbers[0], numbers[1] if flags & ACK else 0, header << 2, flags, window, 0, urgent)
    segment = head + options + payload
    pseudo = source + destination + struct.pack(">II", len(segment), PROTO_TCP)
    partial = bool(offload.vnet and (offload.partial or gso_size))
    checksum = inet_sum(pseudo) if partial else ~inet_sum(pseudo + segment) & 0xFFFF
    if spoiled:
        checksum ^= 0x0101
    segment = segment[:16] + checksum.to_bytes(2) + segment[18:]
    frame = ip_frame(link, source, destination, PROTO_TCP, segment, ident)
    if not offload.vnet:
        return frame
    start = len(frame) - len(segment)
    kind = (GSO_TCPV4 if len(source) == 4 else GSO_TCPV6) if gso_size else 0
    vnet = _VNET.pack(partial, kind, start + header, gso_size, start if partial else 0, 16 if partial else 0)
    return vnet.ljust(offload.vnet, b"\0") + frame


def udp_payload(source: bytes, destination: bytes, sport: int, dport: int, payload: bytes) -> bytes:
    """A UDP datagram, checksum included."""
    head = struct.pack(">HHHH", sport, dport, 8 + len(payload), 0)
    pseudo = source + destination + struct.pack(">II", len(head) + len(payload), PROTO_UDP)
    checksum = ~inet_sum(pseudo + head + payload) & 0xFFFF or 0xFFFF
    return head[:6] + checksum.to_bytes(2) + payload


def echo(source: bytes, destination: bytes, reply: bool, rest: bytes) -> bytes:
    """An ICMP or ICMPv6 echo; `rest` is identifier, number and data."""
    six = len(source) == 16
    kind = (129 if reply else 128) if six else (0 if reply else 8)
    body = bytes((kind, 0, 0, 0)) + rest
    over = (source + destination + struct.pack(">II", len(body), PROTO_ICMP6) if six else b"") + body
    return body[:2] + (~inet_sum(over) & 0xFFFF).to_bytes(2) + body[4:]


def arp(link: Link, operation: int, sender: bytes, target: bytes) -> bytes:
    """An ARP request (1) or answer (2)."""
    other = b"\0" * 6 if operation == 1 else link.other
    body = b"\0\1\x08\0\6\4" + operation.to_bytes(2) + link.own + sender + other + target
    return link.header(ETH_ARP) + body
