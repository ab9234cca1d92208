"""Dissection of one frame: where its fields lie, without copying any of them."""

from __future__ import annotations

from lockstep.batch import Buffer
from lockstep.wire import ethernet, icmp, ipv4, ipv6, tcp, udp, vlan

#: Kinds of frames. MALFORMED can't be read to its end; CHATTER belongs to the link, not to a flow.
MALFORMED, CHATTER, TCP, UDP, ICMP, ICMPV6, OTHER_IP, FRAGMENT, UNKNOWN = range(9)

KIND_NAMES = ("malformed", "chatter", "tcp", "udp", "icmp", "icmpv6", "ip", "fragment", "unknown")

IPPROTO_ICMP, IPPROTO_IGMP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMPV6 = 1, 2, 6, 17, 58


class Frame:
    """Offsets into a buffer; one instance is filled again and again by `dissect`.

    kind: what `dissect` found.
    start, end: the Ethernet header's first byte, and the end of the frame in the buffer.
    tags: number of VLAN tags. ethertype: of what lies behind them, at offset `l3`.
    version: 4 or 6, or 0 where there is no IP. protocol: of what lies at `l4` (IANA number).
    payload, payload_end: what the transport carries, without Ethernet's padding. Of a FRAGMENT,
    `l4` is its first byte of data and `payload` the 16-bit field with its offset and flags.
    """

    __slots__ = (
        "end",
        "ethertype",
        "kind",
        "l3",
        "l4",
        "payload",
        "payload_end",
        "protocol",
        "start",
        "tags",
        "version",
    )

    def __init__(self) -> None:
        self.kind = MALFORMED
        self.start = self.end = self.tags = self.ethertype = self.l3 = self.l4 = 0
        self.version = self.protocol = self.payload = self.payload_end = 0


def dissect(f: Frame, buf: Buffer, start: int, end: int) -> int:
    """Fill `f` for the Ethernet frame `buf[start:end]` and return its kind. Never raises."""
    f.start = start
    f.end = end
    f.version = f.protocol = f.tags = 0
    f.kind = _link(f, buf, start, end)
    return f.kind


def _link(f: Frame, buf: Buffer, start: int, end: int) -> int:
    if end - start < ethernet.HEADER:
        return MALFORMED
    at = start + ethernet.HEADER
    ethertype = buf[at - 2] << 8 | buf[at - 1]
    while ethertype in (ethernet.VLAN, ethernet.QINQ):
        if f.tags == vlan.MOST_TAGS or end - at < vlan.TAG:
            return MALFORMED
        f.tags += 1
        at += vlan.TAG
        ethertype = buf[at - 2] << 8 | buf[at - 1]
    f.ethertype = ethertype
    f.l3 = at
    if ethertype == ethernet.IPV4:
        return _ipv4(f, buf, at, end)
    if ethertype == ethernet.IPV6:
        return _ipv6(f, buf, at, end)
    if ethertype in ethernet.CHATTER or ethertype < ethernet.SMALLEST_TYPE:
        return CHATTER
    f.l4 = f.payload = at
    f.payload_end = end
    return UNKNOWN


def _ipv4(f: Frame, buf: Buffer, at: int, end: int) -> int:
    if end - at < ipv4.HEADER or buf[at] >> 4 != 4:
        return MALFORMED
    header = (buf[at] & 0xF) << 2
    total = buf[at + 2] << 8 | buf[at + 3]
    if not total and buf[at + ipv4.PROTOCOL] == IPPROTO_TCP:
        total = end - at  # a super-frame too long for the field (BIG TCP)
    if header < ipv4.HEADER or total < header or total > end - at:
        return MALFORMED
    f.version = 4
    f.protocol = buf[at + ipv4.PROTOCOL]
    f.l4 = at + header
    f.payload_end = at + total
    if (buf[at + 6] << 8 | buf[at + 7]) & (ipv4.MORE_FRAGMENTS | ipv4.OFFSET_MASK):
        f.payload = at + ipv4.FRAGMENT
        return FRAGMENT
    return _transport(f, buf)


def _ipv6(f: Frame, buf: Buffer, at: int, end: int) -> int:
    if end - at < ipv6.HEADER or buf[at] >> 4 != 6:
        return MALFORMED
    total = ipv6.HEADER + (buf[at + 4] << 8 | buf[at + 5])
    if total == ipv6.HEADER:
        total += _jumbo_length(buf, at, end)
    if total > end - at:
        return MALFORMED
    f.version = 6
    f.payload_end = end = at + total
    following = buf[at + ipv6.NEXT_HEADER]
    at += ipv6.HEADER
    walked = 0
    while following in (
        ipv6.HOP_BY_HOP,
        ipv6.ROUTING,
        ipv6.DESTINATION_OPTIONS,
        ipv6.AUTHENTICATION,
        ipv6.FRAGMENT,
    ):
        walked += 1
        if walked > ipv6.MOST_EXTENSIONS or end - at < 8:
            return MALFORMED
        if following == ipv6.FRAGMENT:
            if (buf[at + 2] << 8 | buf[at + 3]) & 0xFFF9:
                f.protocol = buf[at]
                f.payload = at + 2
                f.l4 = at + 8
                return FRAGMENT
            length = 8  # an atomic fragment is a whole datagram (RFC 6946)
        elif following == ipv6.AUTHENTICATION:
            length = (buf[at + 1] + 2) << 2
        else:
            length = (buf[at + 1] + 1) << 3
        if length > end - at:
            return MALFORMED
        following = buf[at]
        at += length
    f.protocol = following
    f.l4 = at
    return _transport(f, buf)


def _jumbo_length(buf: Buffer, at: int, end: int) -> int:
    """Payload length of a jumbogram (RFC 2675), as BIG TCP writes it: a hop-by-hop header with that option first."""
    options = at + ipv6.HEADER
    if buf[at + ipv6.NEXT_HEADER] != ipv6.HOP_BY_HOP or end - options < 8 or buf[options + 2] != ipv6.JUMBO:
        return 0
    return int.from_bytes(buf[options + 4 : options + 8], "big")


def _transport(f: Frame, buf: Buffer) -> int:
    at = f.l4
    room = f.payload_end - at
    protocol = f.protocol
    if protocol == IPPROTO_TCP:
        if room < tcp.HEADER:
            return MALFORMED
        header = (buf[at + tcp.DATA_OFFSET] >> 4) << 2
        if header < tcp.HEADER or header > room:
            return MALFORMED
        f.payload = at + header
        return TCP
    if protocol == IPPROTO_UDP:
        if room < udp.HEADER:
            return MALFORMED
        length = buf[at + udp.LENGTH] << 8 | buf[at + udp.LENGTH + 1]
        if length < udp.HEADER or length > room:
            return MALFORMED
        f.payload = at + udp.HEADER
        f.payload_end = at + length
        return UDP
    if protocol == IPPROTO_ICMP and f.version == 4:
        if room < icmp.HEADER:
            return MALFORMED
        f.payload = at + icmp.HEADER
        return ICMP
    if protocol == IPPROTO_ICMPV6 and f.version == 6:
        if room < icmp.HEADER:
            return MALFORMED
        f.payload = at + icmp.HEADER
        return CHATTER if buf[at] in icmp.V6_CHATTER else ICMPV6
    if protocol == IPPROTO_IGMP and f.version == 4:
        return CHATTER
    f.payload = at
    return OTHER_IP
