# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Dissection of one frame: where its fields lie, without copying any of them."""

from __future__ import annotations

from lockstep.batch import Buffer
from lockstep.wire import ethernet, icmp, ipv4, ipv6, tcp, udp, vlan

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: Kinds of frames. MALFORMED can't be read to its end; CHATTER belongs to the link, not to a flow.
MALFORMED, CHATTER, TCP, UDP, ICMP, ICMPV6, OTHER_IP, FRAGMENT, UNKNOWN = range(9)

KIND_NAMES = ("malformed", "chatter", "tcp", "udp", "icmp", "icmpv6", "ip", "fragment", "unknown")

IPPROTO_ICMP, IPPROTO_IGMP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMPV6 = 1, 2, 6, 17, 58


# The same as C integers, where this is compiled (frame.pxd).
_KIND_MALFORMED, _KIND_CHATTER, _KIND_TCP, _KIND_UDP = MALFORMED, CHATTER, TCP, UDP
_KIND_ICMP, _KIND_ICMPV6, _KIND_OTHER_IP, _KIND_FRAGMENT = ICMP, ICMPV6, OTHER_IP, FRAGMENT
_KIND_UNKNOWN = UNKNOWN
_IPPROTO_ICMP, _IPPROTO_IGMP, _IPPROTO_TCP, _IPPROTO_UDP = IPPROTO_ICMP, IPPROTO_IGMP, IPPROTO_TCP, IPPROTO_UDP
_IPPROTO_ICMPV6 = IPPROTO_ICMPV6
_ETH_HEADER, _ETH_VLAN, _ETH_QINQ, _ETH_IPV4 = ethernet.HEADER, ethernet.VLAN, ethernet.QINQ, ethernet.IPV4
_ETH_IPV6, _ETH_SMALLEST_TYPE = ethernet.IPV6, ethernet.SMALLEST_TYPE
_VLAN_MOST_TAGS, _VLAN_TAG = vlan.MOST_TAGS, vlan.TAG
_IPV4_HEADER, _IPV4_PROTOCOL, _IPV4_MORE_FRAGMENTS, _IPV4_OFFSET_MASK = (
    ipv4.HEADER,
    ipv4.PROTOCOL,
    ipv4.MORE_FRAGMENTS,
    ipv4.OFFSET_MASK,
)
_IPV4_FRAGMENT = ipv4.FRAGMENT
_IPV6_HEADER, _IPV6_NEXT_HEADER, _IPV6_HOP_BY_HOP, _IPV6_ROUTING = (
    ipv6.HEADER,
    ipv6.NEXT_HEADER,
    ipv6.HOP_BY_HOP,
    ipv6.ROUTING,
)
_IPV6_DESTINATION_OPTIONS, _IPV6_AUTHENTICATION, _IPV6_FRAGMENT, _IPV6_MOST_EXTENSIONS = (
    ipv6.DESTINATION_OPTIONS,
    ipv6.AUTHENTICATION,
    ipv6.FRAGMENT,
    ipv6.MOST_EXTENSIONS,
)
_IPV6_JUMBO = ipv6.JUMBO
_TCP_HEADER, _TCP_DATA_OFFSET = tcp.HEADER, tcp.DATA_OFFSET
_UDP_HEADER, _UDP_LENGTH = udp.HEADER, udp.LENGTH
_ICMP_HEADER = icmp.HEADER
_MASK32 = 0xFFFFFFFF


class Frame:
    """Offsets into a buffer; one instance is filled again and again by `dissect`.

    kind: what `dissect` found.
    start, end: the Ethernet header's first byte, and the end of the frame in the buffer.
    tags: number of VLAN tags. ethertype: of what lies behind them, at offset `l3`.
    version: 4 or 6, or 0 where there is no IP. protocol: of what lies at `l4` (IANA number).
    payload, payload_end: what the transport carries, without Ethernet's padding. Of a FRAGMENT,
    `l4` is its first byte of data and `payload` the 16-bit field with its offset and flags.
    missing: bytes behind `end` that the IP header announces, of a frame that was cut off there (`dissect_cut`).
    """

    __slots__ = (
        "cut",
        "end",
        "ethertype",
        "kind",
        "l3",
        "l4",
        "missing",
        "payload",
        "payload_end",
        "protocol",
        "start",
        "tags",
        "version",
    )

    def __init__(self) -> None:
        self.kind = _KIND_MALFORMED
        self.start = self.end = self.tags = self.ethertype = self.l3 = self.l4 = 0
        self.version = self.protocol = self.payload = self.payload_end = 0
        self.cut = self.missing = 0


def dissect(f: Frame, buf: Buffer, start: int, end: int) -> int:
    """Fill `f` for the Ethernet frame `buf[start:end]` and return its kind. Never raises."""
    if start < 0 or end > len(buf):
        raise IndexError(f"no frame lies at {start} to {end} in a buffer of {len(buf)} bytes")
    if cython.compiled:
        return dissect_at(f, cython.address(buf[0]), start, end)
    else:  # noqa: RET505  (a compiler leaves it out only like this)
        return dissect_at(f, buf, start, end)


def dissect_at(f: Frame, buf: Buffer, start: int, end: int) -> int:
    """`dissect` where `buf[start:end]` is known to exist; compiled, `buf` is a plain pointer."""
    f.start = start
    f.end = end
    f.version = f.protocol = f.tags = 0
    f.kind = _link(f, buf, start, end)
    return f.kind


def dissect_cut_at(f: Frame, buf: Buffer, start: int, end: int) -> int:
    """`dissect_at` for a frame that was cut off at `end`, which is what `missing` tells. Nothing behind it is read.

    One that announces its length elsewhere than in its IP header (BIG TCP) has nothing missing.
    """
    f.missing = 0
    f.cut = 1
    kind = dissect_at(f, buf, start, end)
    f.cut = 0
    return kind


def _link(f: Frame, buf: Buffer, start: int, end: int) -> int:
    if end - start < _ETH_HEADER:
        return _KIND_MALFORMED
    at = start + _ETH_HEADER
    ethertype = buf[at - 2] << 8 | buf[at - 1]
    while ethertype in (_ETH_VLAN, _ETH_QINQ):
        if f.tags == _VLAN_MOST_TAGS or end - at < _VLAN_TAG:
            return _KIND_MALFORMED
        f.tags += 1
        at += _VLAN_TAG
        ethertype = buf[at - 2] << 8 | buf[at - 1]
    f.ethertype = ethertype
    f.l3 = at
    if ethertype == _ETH_IPV4:
        return _ipv4(f, buf, at, end)
    if ethertype == _ETH_IPV6:
        return _ipv6(f, buf, at, end)
    if ethertype in ethernet.CHATTER or ethertype < _ETH_SMALLEST_TYPE:
        return _KIND_CHATTER
    f.l4 = f.payload = at
    f.payload_end = end
    return _KIND_UNKNOWN


def _ipv4(f: Frame, buf: Buffer, at: int, end: int) -> int:
    if end - at < _IPV4_HEADER or buf[at] >> 4 != 4:
        return _KIND_MALFORMED
    header = (buf[at] & 0xF) << 2
    total = buf[at + 2] << 8 | buf[at + 3]
    if not total and buf[at + _IPV4_PROTOCOL] == _IPPROTO_TCP:
        total = end - at  # a super-frame too long for the field (BIG _KIND_TCP)
    if total > end - at:
        if not f.cut:
            return _KIND_MALFORMED
        f.missing = total - (end - at)
        total = end - at
    if header < _IPV4_HEADER or total < header:
        return _KIND_MALFORMED
    f.version = 4
    f.protocol = buf[at + _IPV4_PROTOCOL]
    f.l4 = at + header
    f.payload_end = at + total
    if (buf[at + 6] << 8 | buf[at + 7]) & (_IPV4_MORE_FRAGMENTS | _IPV4_OFFSET_MASK):
        f.payload = at + _IPV4_FRAGMENT
        return _KIND_FRAGMENT
    return _transport(f, buf)


def _ipv6(f: Frame, buf: Buffer, at: int, end: int) -> int:
    if end - at < _IPV6_HEADER or buf[at] >> 4 != 6:
        return _KIND_MALFORMED
    total = _IPV6_HEADER + (buf[at + 4] << 8 | buf[at + 5])
    if total == _IPV6_HEADER and not f.cut:
        total += _jumbo_length(buf, at, end)
    if total > end - at:
        if not f.cut:
            return _KIND_MALFORMED
        f.missing = total - (end - at)
        total = end - at
    f.version = 6
    f.payload_end = end = at + total
    following = buf[at + _IPV6_NEXT_HEADER]
    at += _IPV6_HEADER
    walked = 0
    while following in (
        _IPV6_HOP_BY_HOP,
        _IPV6_ROUTING,
        _IPV6_DESTINATION_OPTIONS,
        _IPV6_AUTHENTICATION,
        _IPV6_FRAGMENT,
    ):
        walked += 1
        if walked > _IPV6_MOST_EXTENSIONS or end - at < 8:
            return _KIND_MALFORMED
        if following == _IPV6_FRAGMENT:
            if (buf[at + 2] << 8 | buf[at + 3]) & 0xFFF9:
                f.protocol = buf[at]
                f.payload = at + 2
                f.l4 = at + 8
                return _KIND_FRAGMENT
            length = 8  # an atomic fragment is a whole datagram (RFC 6946)
        elif following == _IPV6_AUTHENTICATION:
            length = (buf[at + 1] + 2) << 2
        else:
            length = (buf[at + 1] + 1) << 3
        if length > end - at:
            return _KIND_MALFORMED
        following = buf[at]
        at += length
    f.protocol = following
    f.l4 = at
    return _transport(f, buf)


def _jumbo_length(buf: Buffer, at: int, end: int) -> int:
    """Payload length of a jumbogram (RFC 2675), as BIG TCP writes it: a hop-by-hop header with that option first."""
    options = at + _IPV6_HEADER
    if buf[at + _IPV6_NEXT_HEADER] != _IPV6_HOP_BY_HOP or end - options < 8 or buf[options + 2] != _IPV6_JUMBO:
        return 0
    return (buf[options + 4] << 24 | buf[options + 5] << 16 | buf[options + 6] << 8 | buf[options + 7]) & _MASK32


def _transport(f: Frame, buf: Buffer) -> int:
    at = f.l4
    room = f.payload_end - at
    protocol = f.protocol
    if protocol == _IPPROTO_TCP:
        if room < _TCP_HEADER:
            return _KIND_MALFORMED
        header = (buf[at + _TCP_DATA_OFFSET] >> 4) << 2
        if header < _TCP_HEADER or header > room:
            return _KIND_MALFORMED
        f.payload = at + header
        return _KIND_TCP
    if protocol == _IPPROTO_UDP:
        if room < _UDP_HEADER:
            return _KIND_MALFORMED
        length = buf[at + _UDP_LENGTH] << 8 | buf[at + _UDP_LENGTH + 1]
        if length < _UDP_HEADER or length > room:
            return _KIND_MALFORMED
        f.payload = at + _UDP_HEADER
        f.payload_end = at + length
        return _KIND_UDP
    if protocol == _IPPROTO_ICMP and f.version == 4:
        if room < _ICMP_HEADER:
            return _KIND_MALFORMED
        f.payload = at + _ICMP_HEADER
        return _KIND_ICMP
    if protocol == _IPPROTO_ICMPV6 and f.version == 6:
        if room < _ICMP_HEADER:
            return _KIND_MALFORMED
        f.payload = at + _ICMP_HEADER
        return _KIND_CHATTER if buf[at] in icmp.V6_CHATTER else _KIND_ICMPV6
    if protocol == _IPPROTO_IGMP and f.version == 4:
        return _KIND_CHATTER
    f.payload = at
    return _KIND_OTHER_IP
