"""Keys of flows, written down by hand, and what must and must not tell two flows apart."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packets import CLIENT, CLIENT6, GUEST, GUEST6, echo_reply, ethernet, from_client, ip, segment, udp

from lockstep.flow.key import describe, flow_key, is_tcp_key, quoted_tcp, reversed_key
from lockstep.wire.frame import Frame, dissect

GUEST_TO_CLIENT = "0a4d0002 0a4d0001"
GUEST6_TO_CLIENT6 = "fd77000000000000 0000000000000002 fd77000000000000 0000000000000001"


def dissected(data: bytes) -> Frame:
    f = Frame()
    dissect(f, data, 0, len(data))
    return f


def key(data: bytes) -> bytes:
    return flow_key(dissected(data), data)


def tagged(data: bytes, *tags: int) -> bytes:
    return data[:12] + b"".join(struct.pack(">HH", 0x8100, tag) for tag in tags) + data[12:]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (segment(1), f"00 04 06 {GUEST_TO_CLIENT} 0050 9c40"),
        (segment(1, source=GUEST6, destination=CLIENT6), f"00 06 06 {GUEST6_TO_CLIENT6} 0050 9c40"),
        (udp(b"x"), f"00 04 11 {GUEST_TO_CLIENT} 0035 9c40"),
        (segment(1, vlan=(7,)), f"01 04 06 0007 {GUEST_TO_CLIENT} 0050 9c40"),
        (segment(1, vlan=(0xFFE, 7)), f"02 04 06 0ffe 0007 {GUEST_TO_CLIENT} 0050 9c40"),
        (echo_reply(0xABCD, 1), f"00 04 01 {GUEST_TO_CLIENT} abcd"),
        (ethernet(ip(GUEST, CLIENT, 1, bytes([3, 1, 0, 0, 9, 9, 9, 9]))), f"00 04 01 {GUEST_TO_CLIENT}"),
        (ethernet(ip(GUEST6, CLIENT6, 58, bytes([129, 0, 0, 0, 1, 2, 0, 9]))), f"00 06 3a {GUEST6_TO_CLIENT6} 0102"),
        (ethernet(ip(GUEST, CLIENT, 132, bytes(12))), f"00 04 84 {GUEST_TO_CLIENT}"),
        (ethernet(ip(GUEST, CLIENT, 6, bytes(8), fragment=0x2000)), f"00 04 06 {GUEST_TO_CLIENT}"),
        (ethernet(bytes(46), ethertype=0x88B5), "00 00 00 88b5 525400000002 525400000001"),
    ],
)
def test_a_key_is_tags_version_protocol_addresses_and_ports(data: bytes, expected: str) -> None:
    assert key(data) == bytes.fromhex(expected)


def test_ip_options_and_extension_headers_make_no_other_flow() -> None:
    plain = segment(1)
    with_options = bytearray(plain[:34] + bytes(8) + plain[34:])
    with_options[14] = 0x47
    with_options[16:18] = struct.pack(">H", 48)
    assert key(bytes(with_options)) == key(plain)
    body = segment(1, source=GUEST6, destination=CLIENT6)[54:]
    extended = ethernet(ip(GUEST6, CLIENT6, 60, bytes([6, 0]) + bytes(6) + body))
    assert key(extended) == key(segment(1, source=GUEST6, destination=CLIENT6))


@given(st.integers(0, 4095), st.integers(0, 15), st.integers(0, 15))
def test_a_frames_priority_makes_no_other_flow(vid: int, priority: int, other: int) -> None:
    assert key(tagged(segment(1), priority << 12 | vid)) == key(tagged(segment(1), other << 12 | vid))


def test_what_tells_flows_apart_does_so() -> None:
    """VLAN and its depth, version, protocol, either address, either port, the identifier of an echo."""
    base = segment(1)
    others = [
        base,
        tagged(base, 7),
        tagged(base, 8),
        tagged(base, 7, 7),
        segment(1, source=GUEST6, destination=CLIENT6),
        udp(b"x", sport=80),
        segment(1, source=CLIENT, destination=GUEST),
        segment(1, source="10.77.0.3"),
        segment(1, destination="10.77.0.3"),
        segment(1, sport=81),
        segment(1, dport=40001),
        echo_reply(1, 1),
        echo_reply(2, 1),
    ]
    assert len({key(data) for data in others}) == len(others)


def test_fragments_of_one_datagram_share_a_key() -> None:
    first = ethernet(ip(GUEST, CLIENT, 17, struct.pack(">HHHH", 53, 40000, 1000, 0) + bytes(8), fragment=0x2000))
    later = ethernet(ip(GUEST, CLIENT, 17, b"anything", fragment=2))
    assert key(first) == key(later)


def test_the_key_lies_where_the_frame_does_and_is_bytes_of_its_own() -> None:
    data = bytearray(b"\xee" * 10 + segment(1) + b"\xee" * 10)
    f = Frame()
    dissect(f, memoryview(data), 10, len(data) - 10)
    found = flow_key(f, memoryview(data))
    data[:] = bytes(len(data))
    assert found == key(segment(1))
    assert hash(found) == hash(key(segment(1)))


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("tags", [(), (7,), (7, 8)])
def test_a_reversed_key_is_the_key_of_what_the_other_end_sends(v6: bool, tags: tuple[int, ...]) -> None:
    ends = {"source": GUEST6, "destination": CLIENT6} if v6 else {}
    there, back = segment(1, vlan=tags, **ends), from_client(1, vlan=tags, v6=v6)
    assert reversed_key(dissected(back), back) == key(there)
    assert reversed_key(dissected(there), there) == key(back)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (segment(1), {"flow": "10.77.0.2:80 10.77.0.1:40000", "protocol": "tcp"}),
        (
            segment(1, source=GUEST6, destination=CLIENT6),
            {"flow": "[fd77::2]:80 [fd77::1]:40000", "protocol": "tcp"},
        ),
        (udp(b"x"), {"flow": "10.77.0.2:53 10.77.0.1:40000", "protocol": "udp"}),
        (
            segment(1, vlan=(4094, 7)),
            {"flow": "10.77.0.2:80 10.77.0.1:40000", "protocol": "tcp", "vlan": [4094, 7]},
        ),
        (echo_reply(5, 1), {"flow": "10.77.0.2 10.77.0.1", "protocol": "icmp"}),
        (
            ethernet(ip(GUEST6, CLIENT6, 58, bytes([129, 0, 0, 0, 1, 2, 0, 9]))),
            {"flow": "fd77::2 fd77::1", "protocol": "icmpv6"},
        ),
        (ethernet(ip(GUEST, CLIENT, 132, bytes(12))), {"flow": "10.77.0.2 10.77.0.1", "protocol": "ip 132"}),
        (
            ethernet(bytes(46), ethertype=0x88B5),
            {"flow": "52:54:00:00:00:02 52:54:00:00:00:01", "protocol": "ethertype 0x88b5"},
        ),
    ],
)
def test_a_key_in_words(data: bytes, said: dict[str, object]) -> None:
    assert describe(key(data)) == said


def icmp_error(quoted: bytes, *, v6: bool = False, kind: int | None = None, vlan: tuple[int, ...] = ()) -> bytes:
    """The guest's complaint about a packet that the client sent."""
    kind = kind if kind is not None else 1 if v6 else 3
    source, destination = (GUEST6, CLIENT6) if v6 else (GUEST, CLIENT)
    return ethernet(ip(source, destination, 58 if v6 else 1, bytes([kind, 0]) + bytes(6) + quoted), vlan=vlan)


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("tags", [(), (7,)])
def test_an_icmp_error_quotes_the_flow_that_it_complains_about(v6: bool, tags: tuple[int, ...]) -> None:
    quoted = from_client(0xAABBCCDD, v6=v6)[14:]
    data = icmp_error(quoted, v6=v6, vlan=tags)
    found = quoted_tcp(dissected(data), data)
    assert found is not None
    assert found[0] == key(from_client(1, v6=v6, vlan=tags))
    assert data[found[1] + 4 : found[1] + 8] == b"\xaa\xbb\xcc\xdd"


def test_a_quotation_of_8_bytes_of_tcp_is_enough_and_of_7_is_not() -> None:
    """RFC 792: the IP header and 64 bits of data."""
    for length, enough in ((28, True), (27, False)):
        data = icmp_error(from_client(1)[14:][:length])
        assert (quoted_tcp(dissected(data), data) is not None) == enough


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("an echo", icmp_error(from_client(1)[14:], kind=8)),
        ("a datagram", icmp_error(udp(b"question", source=CLIENT, destination=GUEST)[14:])),
        ("no IP header", icmp_error(b"E" + bytes(18))),
        ("an IPv6 echo", icmp_error(from_client(1, v6=True)[14:], v6=True, kind=128)),
        ("TCP itself", segment(1)),
        ("an IP header of 1 word", icmp_error(b"\x41" + from_client(1)[15:])),
        ("IPv6 in ICMP", icmp_error(from_client(1, v6=True)[14:])),
    ],
)
def test_what_quotes_no_tcp_segment_quotes_none(name: str, data: bytes) -> None:
    assert quoted_tcp(dissected(data), data) is None


@given(st.sampled_from([False, True]), st.integers(0, 255), st.binary(max_size=80))
def test_any_quotation_is_read_within_its_frame(v6: bool, kind: int, quoted: bytes) -> None:
    data = icmp_error(quoted, v6=v6, kind=kind)
    found = quoted_tcp(dissected(data), data)
    assert found is None or found[1] + 8 <= len(data)


@pytest.mark.parametrize(
    ("said", "is_one"),
    [
        (key(segment(1)), True),
        (key(segment(1, vlan=(5, 6))), True),
        (key(segment(1, source=GUEST6, destination=CLIENT6)), True),
        (key(udp(b"x")), False),
        (key(segment(1))[:-1], False),
        (key(segment(1)) + b"\0", False),
        (b"\xff" + key(segment(1))[1:] + bytes(2 * 255), False),
        (b"\0\4", False),
        (b"", False),
        ("a text", False),
        (None, False),
    ],
)
def test_keys_that_other_processes_send_are_checked(said: object, is_one: bool) -> None:
    """A key of TCP has the length that its first two bytes say, and nothing else is one."""
    assert is_tcp_key(said) is is_one
