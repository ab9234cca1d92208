"""Frames in impacket's words. What a line says is compared with what the frame was made of."""

from __future__ import annotations

import subprocess
import sys
import threading

import packets
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packets import ACK, FIN, PSH, SYN, arp_reply, echo_reply, ethernet, ip, segment, timestamps, udp

from lockstep.report.decode import LONGEST, decoded

ETHERNET = "Ethernet 52:54:00:00:00:02 → 52:54:00:00:00:01"


def test_a_tcp_segment() -> None:
    assert decoded(segment(5001, 901, b"hello", flags=PSH, ident=7)) == [
        ETHERNET,
        "IPv4 10.77.0.2 → 10.77.0.1, 45 bytes, ttl 64, id 7",
        "TCP 80 → 40000 [PSH ACK] seq 5001 ack 901 window 1000",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (timestamps(1, 0xFFFFFFFF), "nop, nop, timestamps 1 4294967295"),
        (b"\2\4\5\xb4\4\2\3\3\7", "mss 1460, sack permitted, window scale 7, end"),
        (b"\1\1\5\x12" + bytes.fromhex("00000001000000020000000300000004"), "nop, nop, sack 1-2 3-4"),
        (b"\x1e\4\x01\x02", "kind 30 0102"),
        (b"\x22\2\1\1", "kind 34, nop, nop"),
    ],
)
def test_tcp_options(options: bytes, words: str) -> None:
    assert decoded(segment(1, 2, options=options))[-1].partition(", options: ")[2] == words


def test_flags_and_the_urgent_pointer() -> None:
    frame = bytearray(segment(1, 2, flags=FIN | SYN | ACK | 0x20))
    frame[52:54] = b"\0\5"
    assert "[FIN SYN ACK URG]" in decoded(bytes(frame))[-1]
    assert decoded(bytes(frame))[-1].endswith("urgent 5")


def test_ipv6_and_vlans() -> None:
    frame = segment(1, 2, b"x", source=packets.GUEST6, destination=packets.CLIENT6, vlan=(5, 77))
    assert decoded(frame) == [
        f"{ETHERNET}, VLAN 5, VLAN 77",
        "IPv6 fd77::2 → fd77::1, 21 bytes behind its header, hop limit 64",
        "TCP 80 → 40000 [ACK] seq 1 ack 2 window 1000",
    ]


def test_udp_icmp_and_arp() -> None:
    assert decoded(udp(b"answer"))[-1] == "UDP 53 → 40000, 14 bytes"
    assert decoded(echo_reply(5, 6))[-1] == "ICMP type 0 (ECHOREPLY), code 0, id 5, seq 6"
    echo6 = ethernet(ip(packets.GUEST6, packets.CLIENT6, 58, bytes((129, 0, 0, 0, 0, 5, 0, 6))))
    assert decoded(echo6)[-1] == "ICMPv6 type 129, code 0, id 5, seq 6"
    assert "10.77.0.2 -> 10.77.0.1" in decoded(arp_reply())[-1]


def test_an_icmp_error_and_what_it_quotes() -> None:
    quoted = udp(b"", source=packets.CLIENT, destination=packets.GUEST)[14:]
    frame = ethernet(ip(packets.GUEST, packets.CLIENT, 1, b"\3\3\0\0\0\0\0\0" + quoted))
    assert decoded(frame)[2:] == [
        "ICMP type 3 (UNREACH), code 3",
        "IPv4 10.77.0.1 → 10.77.0.2, 28 bytes, ttl 64, id 1",
        "UDP 53 → 40000, 8 bytes",
    ]


def test_the_middle_of_a_datagram_has_no_header_of_its_own() -> None:
    frame = ethernet(ip(packets.GUEST, packets.CLIENT, 6, bytes(40), fragment=0x2000 | 3))
    assert decoded(frame) == [ETHERNET, "IPv4 10.77.0.2 → 10.77.0.1, 60 bytes, ttl 64, id 1, MF, at 24"]


def test_a_frame_that_was_cut_off_says_what_is_there() -> None:
    assert decoded(segment(5001, 901, bytes(3000))[:2048])[-1].startswith("TCP 80 → 40000 [ACK] seq 5001")


@pytest.mark.parametrize("frame", [b"", bytes(13), ethernet(b"x", ethertype=0x88B5), ethernet(b"x" * 9, ethertype=9)])
def test_what_is_no_ip_and_no_arp_is_left_to_the_bytes(frame: bytes) -> None:
    assert decoded(frame) == []


def test_where_impacket_gives_up_the_lines_before_stay() -> None:
    frame = bytearray(segment(1, 2, options=b"\1\1\1\1"))
    frame[46] = 0xF0  # a header of 60 bytes
    lines = decoded(bytes(frame))
    assert lines[:2] == decoded(segment(1, 2, options=b"\1\1\1\1"))[:2]
    assert lines[2:] == ["impacket can't read on: ImpactPacketException: 'Cannot load options from truncated packet'"]


def ipv4_with_options(options: bytes, protocol: int = 17, payload: bytes = b"") -> bytes:
    header = bytearray(ip(packets.GUEST, packets.CLIENT, protocol, options + payload))
    header[0] = 0x45 + len(options) // 4
    return bytes(header)


@pytest.mark.parametrize("kind", [7, 68, 131, 137])
@pytest.mark.parametrize("quoted", [False, True])
def test_an_option_that_impacket_would_read_for_ever(kind: int, quoted: bool) -> None:
    packet = ipv4_with_options(bytes((1, kind, 0, 0)))
    if quoted:
        packet = ip(packets.GUEST, packets.CLIENT, 1, b"\3\3\0\0\0\0\0\0" + packet)
    lines: list[str] = []
    thread = threading.Thread(target=lambda: lines.extend(decoded(ethernet(packet))), daemon=True)
    thread.start()
    thread.join(5)
    assert lines == ["an IPv4 option of length 0, which impacket can't read"]


def test_options_that_end_well_are_read() -> None:
    assert decoded(ethernet(ipv4_with_options(b"\1\1\1\0", payload=bytes(8))))[1].startswith("IPv4")
    assert decoded(ethernet(ipv4_with_options(b"\x07\x07\x04" + bytes(4) + b"\0", payload=bytes(8))))[1].startswith(
        "IPv4"
    )


def test_a_service_never_imports_impacket() -> None:
    code = "import sys, lockstep.shell, services.comparer.core, lockstep.cli; sys.exit('impacket' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


frames = st.one_of(
    st.binary(max_size=120),
    st.builds(
        lambda rest, kind: ethernet(rest, ethertype=kind),
        st.binary(max_size=120),
        st.sampled_from([0x800, 0x86DD, 0x806]),
    ),
    st.builds(
        lambda options, protocol, rest: ethernet(ipv4_with_options(options, protocol, rest)),
        st.binary(max_size=40).map(lambda options: options[: len(options) // 4 * 4]),
        st.sampled_from([1, 2, 6, 17, 50]),
        st.binary(max_size=100),
    ),
    st.builds(
        lambda following, rest: ethernet(ip(packets.GUEST6, packets.CLIENT6, following, rest)),
        st.sampled_from([0, 6, 17, 43, 44, 51, 58, 60]),
        st.binary(max_size=100),
    ),
    st.builds(
        lambda quoted: ethernet(ip(packets.GUEST, packets.CLIENT, 1, b"\3\3\0\0\0\0\0\0" + quoted)),
        st.builds(
            ipv4_with_options, st.sampled_from([b"", b"\7\0\1\1", b"\1\1\1\1"]), st.just(17), st.binary(max_size=30)
        ),
    ),
)


@given(frames)
@example(ethernet(ip(packets.GUEST6, packets.CLIENT6, 0, b"\0\0\1\4\0\0\0\0" * 8000)))
@example(ethernet(ip(packets.GUEST, packets.CLIENT, 1, bytes(60_000))))
def test_any_frame_gives_short_lines_and_no_exception(frame: bytes) -> None:
    for line in decoded(frame):
        assert len(line) <= LONGEST
        assert "\n" not in line
