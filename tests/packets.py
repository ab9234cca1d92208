"""Frames made by hand, for tests: independent of the code that reads them."""

from __future__ import annotations

import ipaddress
import struct

CLIENT_MAC = bytes.fromhex("525400000001")
GUEST_MAC = bytes.fromhex("525400000002")
CLIENT, GUEST = "10.77.0.1", "10.77.0.2"
CLIENT6, GUEST6 = "fd77::1", "fd77::2"

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NEEDS_CSUM = 1


def inet_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def inet_checksum(data: bytes) -> int:
    return ~inet_sum(data) & 0xFFFF


def ip(
    source: str, destination: str, protocol: int, payload: bytes, *, ident: int = 1, ttl: int = 64, fragment: int = 0
) -> bytes:
    """An IPv4 or IPv6 packet."""
    a, b = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if a.version == 6:
        return struct.pack(">IHBB", 0x60000000, len(payload), protocol, ttl) + a.packed + b.packed + payload
    header = (
        struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), ident, fragment, ttl, protocol, 0) + a.packed + b.packed
    )
    return header[:10] + struct.pack(">H", inet_checksum(header)) + header[12:] + payload


def pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    a, b = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    return a.packed + b.packed + struct.pack(">II", length, protocol)


def ethernet(
    packet: bytes, *, to_client: bool = True, vlan: tuple[int, ...] = (), ethertype: int | None = None
) -> bytes:
    """An Ethernet frame around an IP packet (or anything, with `ethertype`)."""
    ends = CLIENT_MAC + GUEST_MAC if to_client else GUEST_MAC + CLIENT_MAC
    if ethertype is None:
        ethertype = 0x86DD if packet[0] >> 4 == 6 else 0x0800
    tags = b"".join(struct.pack(">HH", 0x8100, vid) for vid in vlan)
    return ends + tags + struct.pack(">H", ethertype) + packet


def timestamps(tsval: int, tsecr: int) -> bytes:
    return b"\1\1\x08\x0a" + struct.pack(">II", tsval & 0xFFFFFFFF, tsecr & 0xFFFFFFFF)


def says_something(frame: bytes) -> bool:
    """Whether it is none of the comparer's own segments, which acknowledge what waits a while and carry no payload."""
    return frame[23] != 6 or len(frame) > 54


def segment(
    seq: int,
    ack: int | None = None,
    payload: bytes = b"",
    *,
    flags: int = 0,
    options: bytes = b"",
    sport: int = 80,
    dport: int = 40000,
    source: str = GUEST,
    destination: str = CLIENT,
    window: int = 1000,
    vlan: tuple[int, ...] = (),
    partial: bool = False,
    bad: bool = False,
    ident: int = 1,
    vnet: int = 0,
    gso_size: int = 0,
) -> bytes:
    """A TCP segment of the guest to the client (or the other way: name the addresses and ports).

    partial: a virtio-net header says NEEDS_CSUM and the checksum field holds the pseudo-header's sum.
    """
    if ack is not None:
        flags |= ACK
    options += b"\0" * (-len(options) % 4)
    offset = (20 + len(options)) // 4 << 4
    head = struct.pack(
        ">HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, (ack or 0) & 0xFFFFFFFF, offset, flags, window, 0, 0
    )
    body = head + options + payload
    over = pseudo(source, destination, 6, len(body))
    checksum = inet_sum(over) if partial else inet_checksum(over + body)
    if bad:
        checksum ^= 0x5555
    body = body[:16] + struct.pack(">H", checksum) + body[18:]
    frame = ethernet(ip(source, destination, 6, body, ident=ident), to_client=source in (GUEST, GUEST6), vlan=vlan)
    if not vnet:
        return frame
    start = 14 + 4 * len(vlan) + (40 if ":" in source else 20)
    gso_type = (4 if ":" in source else 1) if gso_size else 0
    header = struct.pack(
        "<BBHHHH", NEEDS_CSUM if partial else 0, gso_type, start + 20 + len(options), gso_size, start, 16
    )
    return header.ljust(vnet, b"\0") + frame


def from_client(seq: int, ack: int | None = None, payload: bytes = b"", **more: object) -> bytes:
    """A TCP segment of the client to the guest."""
    v6 = more.pop("v6", False)
    more = {
        "sport": 40000,
        "dport": 80,
        "source": CLIENT6 if v6 else CLIENT,
        "destination": GUEST6 if v6 else GUEST,
        **more,
    }
    return segment(seq, ack, payload, **more)  # type: ignore[arg-type]


def udp(
    payload: bytes,
    *,
    sport: int = 53,
    dport: int = 40000,
    source: str = GUEST,
    destination: str = CLIENT,
    ident: int = 1,
    vlan: tuple[int, ...] = (),
) -> bytes:
    body = struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload
    checksum = inet_checksum(pseudo(source, destination, 17, len(body)) + body) or 0xFFFF
    body = body[:6] + struct.pack(">H", checksum) + body[8:]
    return ethernet(ip(source, destination, 17, body, ident=ident), to_client=source in (GUEST, GUEST6), vlan=vlan)


def echo_reply(ident: int, seq: int, payload: bytes = b"ping", *, ip_ident: int = 1) -> bytes:
    body = struct.pack(">BBHHH", 0, 0, 0, ident, seq) + payload
    body = body[:2] + struct.pack(">H", inet_checksum(body)) + body[4:]
    return ethernet(ip(GUEST, CLIENT, 1, body, ident=ip_ident))


def arp_reply() -> bytes:
    body = (
        b"\0\1\x08\0\6\4\0\2"
        + GUEST_MAC
        + ipaddress.ip_address(GUEST).packed
        + CLIENT_MAC
        + ipaddress.ip_address(CLIENT).packed
    )
    return ethernet(body, ethertype=0x0806)
