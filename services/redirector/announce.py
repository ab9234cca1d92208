"""Frames that tell a network where a guest is now: gratuitous ARP, unsolicited NA and RARP."""

from __future__ import annotations

import ipaddress

from lockstep.wire import ethernet, frame, icmp
from lockstep.wire.checksum import checksum, ones_sum

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def announcements(mac: bytes, tags: bytes, addresses: list[Address]) -> list[bytes]:
    """One frame for each address, or a RARP where none is known.

    mac: 6 bytes. tags: the VLAN tags as they lie in a frame (4 bytes each, `type TCI`), or nothing.
    """
    if not addresses:
        return [rarp(mac, tags)]
    return [
        gratuitous_arp(mac, tags, address) if address.version == 4 else neighbour_advertisement(mac, tags, address)
        for address in addresses
    ]


def _padded(raw: bytes) -> bytes:
    return raw.ljust(60, b"\0")


def gratuitous_arp(mac: bytes, tags: bytes, address: ipaddress.IPv4Address) -> bytes:
    """ARP announcement (RFC 5227 §3): a request whose sender and target are the guest."""
    ip = address.packed
    body = b"\0\1\x08\0\6\4\0\1" + mac + ip + b"\0" * 6 + ip
    return _padded(ethernet.BROADCAST + mac + tags + ethernet.ARP.to_bytes(2, "big") + body)


def rarp(mac: bytes, tags: bytes) -> bytes:
    """Reverse ARP request (RFC 903) as QEMU's `announce-self` sends it: it teaches switches the MAC alone."""
    body = b"\0\1\x08\0\6\4\0\3" + mac + b"\0" * 4 + mac + b"\0" * 4
    return _padded(ethernet.BROADCAST + mac + tags + ethernet.RARP.to_bytes(2, "big") + body)


def neighbour_advertisement(mac: bytes, tags: bytes, address: ipaddress.IPv6Address) -> bytes:
    """Unsolicited NA with the override flag (RFC 4861 §7.2.6) to all nodes."""
    group = ipaddress.IPv6Address("ff02::1").packed
    override = (0x20000000).to_bytes(4, "big")
    body = bytes((icmp.NEIGHBOUR_ADVERTISEMENT, 0, 0, 0)) + override + address.packed + b"\2\1" + mac
    pseudo = address.packed + group + len(body).to_bytes(4, "big") + frame.IPPROTO_ICMPV6.to_bytes(4, "big")
    summed = checksum(body, ones_sum(pseudo))
    body = body[:2] + summed.to_bytes(2, "big") + body[4:]
    header = b"\x60\0\0\0" + len(body).to_bytes(2, "big") + bytes((frame.IPPROTO_ICMPV6, 255)) + address.packed + group
    return b"\x33\x33\0\0\0\1" + mac + tags + ethernet.IPV6.to_bytes(2, "big") + header + body
