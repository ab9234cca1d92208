"""Dissection: fields of frames worked out while building them, impacket and tshark as second sources, and garbage."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impacket.ImpactDecoder import EthDecoder
from packets import CLIENT, CLIENT6, GUEST, GUEST6, arp_reply, ethernet, ip, segment, udp

from lockstep.wire import frame
from lockstep.wire.frame import (
    CHATTER,
    FRAGMENT,
    ICMP,
    ICMPV6,
    MALFORMED,
    OTHER_IP,
    TCP,
    UDP,
    UNKNOWN,
    Frame,
    dissect,
    dissect_cut_at,
)

MACS = bytes.fromhex("525400000001 525400000002")
#: Kinds with a payload; of the others only the kind is promised.
WITH_PAYLOAD = {TCP, UDP, ICMP, ICMPV6, OTHER_IP, FRAGMENT, UNKNOWN}


@dataclass(frozen=True)
class Known:
    """A frame and where its fields lie, added up while it was built."""

    data: bytes
    kind: int
    tags: int
    ethertype: int
    version: int
    protocol: int
    l3: int
    l4: int
    payload: int
    payload_end: int

    def fields(self, shift: int = 0) -> tuple[int, ...]:
        return (
            self.kind, self.tags, self.ethertype, self.version, self.protocol,
            self.l3 + shift, self.l4 + shift, self.payload + shift, self.payload_end + shift,
        )  # fmt: skip


def fields(f: Frame) -> tuple[int, ...]:
    return (f.kind, f.tags, f.ethertype, f.version, f.protocol, f.l3, f.l4, f.payload, f.payload_end)


def dissected(data: bytes, start: int = 0, end: int | None = None) -> Frame:
    f = Frame()
    assert dissect(f, data, start, len(data) if end is None else end) == f.kind
    return f


def kind_of(data: bytes) -> str:
    return frame.KIND_NAMES[dissected(data).kind]


def ethernet_of(tags: list[tuple[int, int]], ethertype: int, packet: bytes) -> bytes:
    return MACS + b"".join(struct.pack(">HH", *tag) for tag in tags) + struct.pack(">H", ethertype) + packet


def tcp_segment(options: bytes, payload: bytes) -> bytes:
    offset = (20 + len(options)) // 4 << 4
    return struct.pack(">HHIIBBHHH", 80, 40000, 1, 2, offset, 0x18, 1000, 0, 0) + options + payload


def extension(protocol: int, words: int, following: int) -> bytes:
    """One extension header of IPv6; `words` of its own data beyond the smallest."""
    if protocol == 51:  # AH counts 4 bytes, less 2 (RFC 4302 §2.2)
        return bytes([following, 2 * words + 1]) + bytes(2 + 8 + 8 * words)
    if protocol == 44:  # an atomic fragment (RFC 6946)
        return bytes([following, 0, 0, 0]) + b"\0\0\0\7"
    return bytes([following, words]) + bytes(6 + 8 * words)


tag = st.tuples(st.sampled_from([0x8100, 0x88A8]), st.integers(0, 0xFFFF))


@st.composite
def known_frames(draw: st.DrawFn) -> Known:
    """Valid frames of every kind that has fields, tagged or not, with options, extensions and padding."""
    tags = draw(st.lists(tag, max_size=4))
    payload = draw(st.binary(max_size=60))
    version = draw(st.sampled_from([4, 6]))
    kind = draw(st.sampled_from([TCP, UDP, ICMP if version == 4 else ICMPV6, OTHER_IP, FRAGMENT]))
    rest = b""  # of the IP packet, behind what the transport says is its own
    if kind == TCP:
        options = bytes(4 * draw(st.integers(0, 10)))
        protocol, header, body = 6, 20 + len(options), tcp_segment(options, payload)
    elif kind == UDP:
        rest = draw(st.binary(max_size=5))
        protocol, header, body = 17, 8, struct.pack(">HHHH", 53, 40000, 8 + len(payload), 0) + payload
    elif kind == ICMP:
        protocol, header, body = 1, 8, struct.pack(">BBHHH", draw(st.sampled_from([0, 3, 8, 11])), 0, 0, 7, 1) + payload
    elif kind == ICMPV6:
        protocol, header, body = 58, 8, struct.pack(">BBHHH", draw(st.sampled_from([1, 2, 128, 129])), 0, 0, 7, 1)
        body += payload
    else:
        protocol, header, body = draw(st.sampled_from([47, 50, 132])), 0, payload
    l3 = 14 + 4 * len(tags)
    fragment = draw(st.integers(1, 0x1FFF) | st.just(0x2000)) if kind == FRAGMENT else 0x4000
    if version == 4:
        options4 = bytes(4 * draw(st.integers(0, 10)))
        l4 = l3 + 20 + len(options4)
        packet = ip(GUEST, CLIENT, protocol, options4 + body + rest, fragment=fragment)
        packet = bytes([0x45 + len(options4) // 4]) + packet[1:]
        field = l3 + 6
    else:
        chain = draw(st.lists(st.sampled_from([0, 43, 51, 60, 44]), max_size=7))
        headers = b""
        following = protocol
        if kind == FRAGMENT:
            place = (fragment & 0x1FFF) << 3 | fragment >> 13
            headers = bytes([protocol, 0]) + struct.pack(">H", place) + b"\0\0\0\7"
            following = 44
        for one in chain:
            headers = extension(one, draw(st.integers(0, 2)), following) + headers
            following = one
        l4 = l3 + 40 + len(headers)
        field = l4 - 6
        packet = ip(GUEST6, CLIENT6, following, headers + body + rest)
    data = ethernet_of(tags, 0x0800 if version == 4 else 0x86DD, packet)
    end = len(data) - len(rest)
    return Known(
        data + bytes(draw(st.integers(0, 20))),  # Ethernet's padding
        kind, len(tags), 0x0800 if version == 4 else 0x86DD, version, protocol,
        l3, l4, field if kind == FRAGMENT else l4 + header, end,
    )  # fmt: skip


@given(known_frames())
def test_every_field_is_where_it_was_put(known: Known) -> None:
    assert fields(dissected(known.data)) == known.fields()


@given(known_frames(), st.binary(max_size=40), st.binary(max_size=40))
def test_what_lies_around_a_frame_changes_nothing(known: Known, before: bytes, behind: bytes) -> None:
    f = dissected(before + known.data + behind, len(before), len(before) + len(known.data))
    assert (f.start, f.end) == (len(before), len(before) + len(known.data))
    assert fields(f) == known.fields(len(before))


@given(known_frames(), known_frames() | st.binary(max_size=80).map(lambda data: Known(data, *[0] * 9)))
def test_what_was_dissected_before_changes_nothing(known: Known, before: Known) -> None:
    f = Frame()
    dissect(f, before.data, 0, len(before.data))
    dissect(f, known.data, 0, len(known.data))
    assert fields(f) == known.fields()


@given(known_frames())
def test_every_kind_of_buffer_reads_alike(known: Known) -> None:
    f = Frame()
    for buffer in (bytearray(known.data), memoryview(known.data), memoryview(bytearray(known.data))):
        dissect(f, buffer, 0, len(buffer))
        assert fields(f) == known.fields()


@given(known_frames())
def test_a_frame_cut_off_inside_its_packet_is_malformed(known: Known) -> None:
    """At every single byte; Ethernet's padding alone may be missing."""
    f = Frame()
    length = packet_end(known)
    for cut in range(len(known.data)):
        kind = dissect(f, known.data[:cut], 0, cut)
        if cut < length:
            assert kind == MALFORMED
        else:
            assert fields(f) == known.fields()


@given(known_frames())
def test_a_segment_cut_off_at_its_payload_or_later_is_dissected_and_tells_what_is_missing(known: Known) -> None:
    """Cut off in front of it, it is malformed: nothing behind the cut is read."""
    f = Frame()
    length = packet_end(known)
    for cut in range(len(known.data)):
        kind = dissect_cut_at(f, known.data[:cut], 0, cut)
        assert kind == known.kind or kind == MALFORMED
        if known.kind == TCP:
            assert (kind == TCP) == (cut >= known.payload)
        if kind == TCP:
            assert fields(f) == (*known.fields()[:-1], min(cut, length))
            assert f.missing == max(0, length - cut)
    assert dissect(f, known.data, 0, length - 1) == MALFORMED  # the next is not taken for one that was cut off


def packet_end(known: Known) -> int:
    """Where the IP packet ends, by its own length field."""
    if known.version == 4:
        return known.l3 + int.from_bytes(known.data[known.l3 + 2 : known.l3 + 4], "big")
    return known.l3 + 40 + int.from_bytes(known.data[known.l3 + 4 : known.l3 + 6], "big")


def within_bounds(f: Frame, start: int, end: int) -> bool:
    if f.kind not in WITH_PAYLOAD:
        return f.kind in (MALFORMED, CHATTER)
    if f.kind == FRAGMENT:
        return start < f.l3 < f.payload < f.l4 <= f.payload_end <= end
    return start < f.l3 <= f.l4 <= f.payload <= f.payload_end <= end


@given(known_frames(), st.data())
def test_flipped_bytes_raise_nothing_and_leave_the_payload_inside(known: Known, data: st.DataObject) -> None:
    broken = bytearray(known.data)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(12, min(len(broken) - 1, 90)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(broken)))
    f = dissected(bytes(broken[:cut]))
    assert within_bounds(f, 0, cut)


@given(
    st.sampled_from(["", "0800", "86dd", "8100", "88a8", "8100000186dd", "0806", "080045", "86dd60"])
    | st.just("86dd600000000000" + "0040" + "00" * 32 + "0600c204"),
    st.binary(max_size=120),
)
def test_arbitrary_bytes_raise_nothing_and_leave_the_payload_inside(head: str, tail: bytes) -> None:
    data = MACS + bytes.fromhex(head) + tail
    assert within_bounds(dissected(data), 0, len(data))
    assert within_bounds(dissected(tail), 0, len(tail))


# Second sources.


@pytest.mark.parametrize("tags", [[], [(0x8100, 7)], [(0x88A8, 7), (0x8100, 8)]])
@pytest.mark.parametrize("options", [b"", b"\1\1\x08\x0a\0\0\0\1\0\0\0\2"])
@pytest.mark.parametrize("v6", [False, True])
def test_a_tcp_segments_fields_are_impackets(tags: list[tuple[int, int]], options: bytes, v6: bool) -> None:
    ends = {"source": GUEST6, "destination": CLIENT6} if v6 else {}
    plain = segment(0xCAFEBABE, 0xDEADBEEF, b"what it carries", options=options, **ends)
    data = plain[:12] + b"".join(struct.pack(">HH", *tag) for tag in tags) + plain[12:]
    theirs = EthDecoder().decode(data).child().child()
    f = dissected(data)
    assert f.kind == TCP
    assert data[f.l4 : f.l4 + 2] == struct.pack(">H", theirs.get_th_sport())
    assert data[f.l4 + 2 : f.l4 + 4] == struct.pack(">H", theirs.get_th_dport())
    assert data[f.l4 + 4 : f.l4 + 8] == struct.pack(">I", theirs.get_th_seq())
    assert data[f.l4 + 8 : f.l4 + 12] == struct.pack(">I", theirs.get_th_ack())
    assert f.payload - f.l4 == theirs.get_header_size()
    assert data[f.payload : f.payload_end] == bytes(theirs.child().get_buffer_as_string())


@pytest.mark.parametrize("v6", [False, True])
def test_a_datagrams_fields_are_impackets(v6: bool) -> None:
    ends = {"source": GUEST6, "destination": CLIENT6} if v6 else {}
    data = udp(b"question", **ends) + bytes(9)
    theirs = EthDecoder().decode(data).child().child()
    f = dissected(data)
    assert f.kind == UDP
    assert data[f.l4 : f.l4 + 4] == struct.pack(">HH", theirs.get_uh_sport(), theirs.get_uh_dport())
    assert f.payload_end - f.l4 == theirs.get_uh_ulen() == 16
    assert data[f.payload : f.payload_end] == b"question"


def chained(*chain: int, protocol: int = 6, body: bytes | None = None) -> bytes:
    """An IPv6 packet with these extension headers in front of a TCP segment that carries `payload`."""
    headers, following = b"", protocol
    for one in reversed(chain):
        headers = extension(one, 1, following) + headers
        following = one
    return ip(GUEST6, CLIENT6, following, headers + (tcp_segment(b"", b"payload") if body is None else body))


@pytest.mark.needs("tshark")
def test_tshark_finds_the_same_tags_payloads_and_fragments(tmp_path: Path) -> None:
    """Where impacket gives up: stacked tags, chains of extension headers, atomic and real fragments."""
    later = struct.pack(">BBHI", 6, 0, 1232, 7)
    samples = [
        ethernet_of([(0x88A8, 0x6007), (0x8100, 0x0FFE)], 0x0800, ip(GUEST, CLIENT, 6, tcp_segment(bytes(8), b"abc"))),
        ethernet_of([], 0x86DD, chained(0, 60, 43)),
        ethernet_of([(0x8100, 5)], 0x86DD, chained(51, 60)),
        ethernet_of([], 0x86DD, chained(44)),
        ethernet_of([], 0x86DD, ip(GUEST6, CLIENT6, 44, later + bytes(100))),
        udp(b"twelve bytes") + bytes(6),
    ]
    capture = tmp_path / "samples.pcap"
    records = b"".join(struct.pack("<IIII", 0, 0, len(data), len(data)) + data for data in samples)
    capture.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1) + records)
    command = ["tshark", "-r", capture, "-o", "ipv6.defragment:FALSE", "-T", "fields"]
    for field in ("ieee8021ad.id", "vlan.id", "tcp.payload", "udp.payload", "ipv6.fraghdr.offset"):
        command += ["-e", field]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    for data, line in zip(samples, said.splitlines(), strict=True):
        outer, inner, tcp_payload, udp_payload, offset = line.split("\t")
        f = dissected(data)
        assert f.tags == bool(outer) + bool(inner)
        if f.kind == FRAGMENT:
            assert int.from_bytes(data[f.payload : f.payload + 2], "big") >> 3 == int(offset)
            assert (tcp_payload, udp_payload) == ("", "")
        else:
            assert data[f.payload : f.payload_end].hex() == {TCP: tcp_payload, UDP: udp_payload}[f.kind]


# Kinds by hand.


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("arp", arp_reply()),
        ("tagged arp", arp_reply()[:12] + b"\x81\0\0\7" + arp_reply()[12:]),
        ("rarp", ethernet(bytes(28), ethertype=0x8035)),
        ("lldp", ethernet(bytes(20), ethertype=0x88CC)),
        ("spanning tree, 802.3 with a length", ethernet(b"\x42\x42\x03" + bytes(35), ethertype=38)),
        ("the longest 802.3 length field", ethernet(bytes(1500), ethertype=0x05FF)),
        ("igmp", ethernet(ip(GUEST, "224.0.0.22", 2, bytes(8)))),
        *(
            (f"icmpv6 type {kind}", ethernet(ip(GUEST6, "ff02::1", 58, bytes([kind]) + bytes(23))))
            for kind in (130, 131, 132, 133, 134, 135, 136, 137, 143)
        ),
    ],
)
def test_frames_that_keep_the_link_going_are_chatter(name: str, data: bytes) -> None:
    assert kind_of(data) == "chatter"


@pytest.mark.parametrize(
    ("name", "packet"),
    [
        ("ICMP in IPv6", ip(GUEST6, CLIENT6, 1, bytes(8))),
        ("ICMPv6 in IPv4", ip(GUEST, CLIENT, 58, bytes([135]) + bytes(23))),
        ("IGMP in IPv6", ip(GUEST6, CLIENT6, 2, bytes(8))),
        ("no next header", ip(GUEST6, CLIENT6, 59, b"")),
        ("ESP", ip(GUEST6, CLIENT6, 50, bytes(40))),
        ("AH in IPv4", ip(GUEST, CLIENT, 51, bytes(24))),
        ("an empty packet", ip(GUEST, CLIENT, 132, b"")),
    ],
)
def test_other_protocols_are_ip_with_all_they_carry_as_payload(name: str, packet: bytes) -> None:
    f = dissected(ethernet(packet))
    assert f.kind == OTHER_IP
    assert f.payload == f.l4 == 14 + (40 if f.version == 6 else 20)
    assert f.payload_end == 14 + len(packet)


def test_an_unknown_ethertype_carries_everything_behind_it() -> None:
    f = dissected(ethernet(b"experimental", ethertype=0x88B5))
    assert (f.kind, f.version, f.payload, f.payload_end) == (UNKNOWN, 0, 14, 26)


def test_the_smallest_ethertype_is_a_type_and_no_length() -> None:
    assert kind_of(ethernet(bytes(46), ethertype=0x0600)) == "unknown"


def test_four_tags_are_walked_and_five_refused() -> None:
    packet = ip(GUEST, CLIENT, 17, struct.pack(">HHHH", 1, 2, 8, 0))
    assert kind_of(ethernet_of([(0x8100, 1)] * 4, 0x0800, packet)) == "udp"
    assert kind_of(ethernet_of([(0x8100, 1)] * 5, 0x0800, packet)) == "malformed"


def test_eight_extension_headers_are_walked_and_nine_refused() -> None:
    assert kind_of(ethernet(chained(*[60] * 8))) == "tcp"
    assert kind_of(ethernet(chained(*[60] * 9))) == "malformed"


@pytest.mark.parametrize("field", [0x2000, 0x0001, 0x1FFF, 0x3000, 0x6000])
def test_an_ipv4_packet_with_more_fragments_or_an_offset_is_a_fragment(field: int) -> None:
    f = dissected(ethernet(ip(GUEST, CLIENT, 6, b"8 bytes!", fragment=field)))
    assert (f.kind, f.protocol, f.l4, f.payload_end) == (FRAGMENT, 6, 34, 42)


def test_dont_fragment_is_no_fragment() -> None:
    assert kind_of(ethernet(ip(GUEST, CLIENT, 6, tcp_segment(b"", b"x"), fragment=0x4000))) == "tcp"


def test_a_fragment_needs_no_whole_transport_header() -> None:
    assert kind_of(ethernet(ip(GUEST, CLIENT, 6, b"tail", fragment=185))) == "fragment"
    assert kind_of(ethernet(chained(44, body=b"tail"))) == "malformed"  # atomic, so it must be whole


@pytest.mark.parametrize(("place", "kind"), [(0x0000, "tcp"), (0x0006, "tcp"), (0x0001, "fragment"), (8, "fragment")])
def test_an_ipv6_fragment_header_with_neither_offset_nor_more_is_a_whole_datagram(place: int, kind: str) -> None:
    """RFC 6946; bits 1 and 2 are reserved and ignored (RFC 8200 §4.5)."""
    header = struct.pack(">BBHI", 6, 0, place, 7)
    assert kind_of(ethernet(ip(GUEST6, CLIENT6, 44, header + tcp_segment(b"", b"x")))) == kind


@pytest.mark.parametrize("at", [13, 0])
def test_a_frame_shorter_than_its_header_is_malformed(at: int) -> None:
    assert kind_of(segment(1)[:at]) == "malformed"


def patched(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


V4, V6 = segment(1, 2, b"hello"), segment(1, 2, b"hello", source=GUEST6, destination=CLIENT6)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("version 6 behind the type of IPv4", patched(V4, 14, 0x65)),
        ("version 4 behind the type of IPv6", patched(V6, 14, 0x40)),
        ("a header of 4 words", patched(V4, 14, 0x44)),
        ("a header longer than the packet", patched(patched(V4, 14, 0x4F), 17, 50)),
        ("a total length below the header", patched(V4, 17, 19)),
        ("a total length beyond the frame", patched(V4, 17, 46)),
        ("a payload length beyond the frame", patched(V6, 19, 26)),
        ("a TCP header of 4 words", patched(V4, 46, 0x40)),
        ("a TCP header beyond the packet", patched(V4, 46, 0x70)),
        ("a TCP header cut off", patched(V4, 17, 39)),
        ("a UDP length of 7", patched(udp(b"x"), 39, 7)),
        ("a UDP length beyond the packet", patched(udp(b"x"), 39, 10)),
        ("a UDP header cut off", ethernet(ip(GUEST, CLIENT, 17, bytes(7)))),
        ("an ICMP header cut off", ethernet(ip(GUEST, CLIENT, 1, bytes(7)))),
        ("an ICMPv6 header cut off", ethernet(ip(GUEST6, CLIENT6, 58, bytes(7)))),
        ("an extension header cut off", ethernet(ip(GUEST6, CLIENT6, 60, bytes([6, 0, 0, 0, 0, 0, 0])))),
        ("an extension header beyond the packet", ethernet(ip(GUEST6, CLIENT6, 60, bytes([59, 1]) + bytes(13)))),
        ("an authentication header beyond the packet", ethernet(ip(GUEST6, CLIENT6, 51, bytes([59, 1]) + bytes(9)))),
    ],
)
def test_what_cannot_be_read_to_its_end_is_malformed(name: str, data: bytes) -> None:
    assert kind_of(data) == "malformed"


def test_ethernets_padding_is_no_payload() -> None:
    data = segment(1, 2, b"x")
    f = dissected(data.ljust(60, b"\xee"))
    assert data[f.payload : f.payload_end] == b"x"


def test_a_super_frame_of_64_kib_is_read_whole() -> None:
    data = segment(1, 2, bytes(65535 - 40))
    f = dissected(data)
    assert (f.kind, f.payload, f.payload_end) == (TCP, 54, 14 + 65535)


def test_an_ipv4_super_frame_too_long_for_its_length_field_has_a_zero_there() -> None:
    """Linux's BIG TCP: the packet then ends where the frame does; nothing but TCP is written so."""
    data = segment(1, 2, bytes(70_000 % 65_536))
    big = patched(patched(data + bytes(65_536), 16, 0), 17, 0)
    f = dissected(big)
    assert (f.kind, f.payload, f.payload_end) == (TCP, 54, len(big))
    assert kind_of(patched(patched(udp(b"x"), 16, 0), 17, 0)) == "malformed"


def jumbogram(length: int, payload: bytes, option: int = 0xC2) -> bytes:
    """RFC 2675: payload length 0, and a hop-by-hop header with the jumbo option."""
    header = bytes([6, 0, option, 4]) + struct.pack(">I", length)
    packet = ip(GUEST6, CLIENT6, 0, b"")
    return ethernet(packet + header + tcp_segment(b"", payload))


def test_a_jumbogram_is_as_long_as_its_option_says() -> None:
    payload = bytes(70_000)
    f = dissected(jumbogram(8 + 20 + len(payload), payload) + b"padding")
    assert (f.kind, f.payload, f.payload_end) == (TCP, 14 + 40 + 8 + 20, 14 + 40 + 8 + 20 + 70_000)


@pytest.mark.parametrize(
    ("length", "option"), [(70_029, 0xC2), (0xFFFFFFFF, 0xC2), (70_028, 0x05), (0, 0xC2), (7, 0xC2), (8, 0xC2)]
)
def test_a_jumbogram_that_is_none_is_malformed(length: int, option: int) -> None:
    assert kind_of(jumbogram(length, bytes(70_000), option)) == "malformed"
