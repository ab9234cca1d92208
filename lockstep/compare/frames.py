"""From a captured packet to an Ethernet frame that `wire.frame` can dissect.

Other link types get an Ethernet header of their own making. What a capture leaves out is filled in as far
as the headers tell: a frame cut by the snap length is padded with zeros to what its IP header claims, and
the length 0 that a card's segmentation offload leaves in an IP header becomes what is there.
"""

from __future__ import annotations

from lockstep.capture.pcapfile import LINKTYPE_ETHERNET, Packet
from lockstep.flow.key import describe, flow_key
from lockstep.wire import ethernet, frame, ipv4, ipv6, udp
from lockstep.wire.frame import Frame, dissect

#: Link types (tcpdump.org/linktypes.html). Files hold 12 and 14 where their writer took its DLT_RAW for one.
_NULL, _LOOP, _SLL, _SLL2 = 0, 108, 113, 276
_RAW = frozenset({12, 14, 101, 228, 229})

_IPV4, _IPV6 = b"\x08\0", b"\x86\xdd"
#: Address families of the loopback's header: AF_INET, and AF_INET6 of Linux and the BSDs.
_FAMILIES = {2: _IPV4, 10: _IPV6, 24: _IPV6, 28: _IPV6, 30: _IPV6}
_NOBODY = bytes(6)

#: First byte of a key of our own; `flow_key` begins with the number of VLAN tags.
UNREADABLE = b"\xff"
#: ARPHRD_ETHER and ARPHRD_LOOPBACK: their cooked header holds an ethertype, whatever its number.
_ETHERNET_LIKE = frozenset({1, 772})
_LARGEST = 0xFFFF


def as_ethernet(packet: Packet) -> bytes | None:
    """The packet as an Ethernet frame; None if its link type is a stranger, or its link header isn't all there."""
    data, linktype = packet.data, packet.linktype
    if linktype == LINKTYPE_ETHERNET:
        return data
    if linktype in _RAW:
        kind = {4: _IPV4, 6: _IPV6}.get(data[0] >> 4) if data else None
        return None if kind is None else _NOBODY + _NOBODY + kind + data
    if linktype == _SLL and len(data) >= 16:
        return _cooked(data[14:16], data[2:4], data[4:6], data[6:12], data[16:])
    if linktype == _SLL2 and len(data) >= 20:
        return _cooked(data[0:2], data[8:10], data[10:12], data[12:18], data[20:])
    if linktype in (_NULL, _LOOP) and len(data) >= 4:
        # NULL is in the byte order of the machine that captured; the other half of the word is zero.
        family = int.from_bytes(data[:4], "little" if data[0] else "big")
        kind = _FAMILIES.get(family)
        return None if kind is None else _NOBODY + _NOBODY + kind + data[4:]
    return None


def key_of(f: Frame, packet: Packet, data: bytes | None, kind: int, whole: bytes) -> bytes:
    """The flow of a packet: `flow_key`, or a key of our own for what can't be read.

    data: what `as_ethernet` made of it. kind, whole: what `dissected` said of that.
    """
    if data is None:
        return UNREADABLE + packet.linktype.to_bytes(2, "big")
    return UNREADABLE + data[6:12] + data[:6] if kind == frame.MALFORMED else flow_key(f, whole)


def name_of(key: bytes) -> str:
    """A flow as it is told: `SRC:PORT DST:PORT`, MAC addresses where there is no IP, or what kind of link it is."""
    if not key.startswith(UNREADABLE):
        return str(describe(key)["flow"])
    if len(key) == 3:
        return f"link type {int.from_bytes(key[1:], 'big')}"
    return f"{key[1:7].hex(':')} {key[7:].hex(':')}".strip() or "frames without an address"


def _cooked(protocol: bytes, hardware: bytes, length: bytes, sender: bytes, rest: bytes) -> bytes | None:
    kind = int.from_bytes(protocol, "big")
    if kind < ethernet.SMALLEST_TYPE and int.from_bytes(hardware, "big") not in _ETHERNET_LIKE:
        return None  # netlink, CAN and others have their own numbers there
    mac = sender if length.endswith(b"\x06") else _NOBODY
    return _NOBODY + mac + protocol + rest


def dissected(f: Frame, data: bytes, missing: int) -> tuple[int, bytes, int]:
    """Fill `f` for a frame of which `missing` bytes were not captured: its kind, the frame to read by it, and
    how many bytes of that one were captured; padding follows. MALFORMED if a header isn't all there.
    """
    f.ethertype = 0
    kind = dissect(f, data, 0, len(data))
    if kind != frame.MALFORMED and missing <= 0:
        return kind, data, len(data)
    mended, there = _true_ip(f, data, max(missing, 0))
    if mended is not data:
        kind = dissect(f, mended, 0, len(mended))
    if kind == frame.MALFORMED and f.version and f.protocol == frame.IPPROTO_UDP and f.payload_end - f.l4 >= udp.HEADER:
        field = f.l4 + udp.LENGTH
        mended = mended[:field] + min(f.payload_end - f.l4, _LARGEST).to_bytes(2, "big") + mended[field + 2 :]
        kind = dissect(f, mended, 0, len(mended))
    if kind not in (frame.MALFORMED, frame.CHATTER) and f.payload > there:
        f.kind = kind = frame.MALFORMED
    return kind, mended, there


def _true_ip(f: Frame, data: bytes, missing: int) -> tuple[bytes, int]:
    """The frame with an IP length that is true of what was on the wire, and how much of it was captured."""
    at, there = f.l3, len(data)
    room = there - at
    if f.ethertype == ethernet.IPV4 and room >= ipv4.HEADER:
        field, before = at + ipv4.TOTAL_LENGTH, 0
    elif f.ethertype == ethernet.IPV6 and room >= ipv6.HEADER:
        field, before = at + ipv6.PAYLOAD_LENGTH, ipv6.HEADER
    else:
        return data, there
    claimed = int.from_bytes(data[field : field + 2], "big")
    length = room + missing - before
    if claimed and claimed <= length:
        length = claimed
    padding = bytes(max(0, before + length - room))
    if length <= _LARGEST:
        if length == claimed and not padding:
            return data, there
        return data[:field] + length.to_bytes(2, "big") + data[field + 2 :] + padding, there
    if not before or data[at + ipv6.NEXT_HEADER] == ipv6.HOP_BY_HOP:
        return data, there
    # A super-frame without the header of a jumbogram (RFC 2675): `dissect` reads it with one.
    jumbo = data[at + ipv6.NEXT_HEADER : at + ipv6.NEXT_HEADER + 1] + bytes((0, ipv6.JUMBO, 4))
    jumbo += (length + 8).to_bytes(4, "big")
    head = data[:field] + bytes((0, 0, ipv6.HOP_BY_HOP)) + data[field + 3 : at + ipv6.HEADER]
    return head + jumbo + data[at + ipv6.HEADER :] + padding, there + len(jumbo)
