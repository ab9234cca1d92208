"""Link types, and frames that their captures cut or their cards left unfinished."""

from __future__ import annotations

import struct

import pytest
from packets import CLIENT, CLIENT6, GUEST, GUEST6, GUEST_MAC, ethernet, ip, segment, udp

from lockstep.capture.pcapfile import Packet
from lockstep.compare.frames import as_ethernet, dissected, name_of
from lockstep.flow.key import flow_key
from lockstep.wire import frame
from lockstep.wire.frame import Frame

V4, V6 = segment(1, 2, b"payload")[14:], segment(1, 2, b"payload", source=GUEST6, destination=CLIENT6)[14:]


def sll(protocol: int, packet: bytes, hardware: int = 1) -> bytes:
    return struct.pack(">HHH6s2xH", 0, hardware, 6, GUEST_MAC, protocol) + packet


def sll2(protocol: int, packet: bytes) -> bytes:
    return struct.pack(">HHIHBB6s2x", protocol, 0, 2, 1, 0, 6, GUEST_MAC) + packet


@pytest.mark.parametrize(
    ("linktype", "data", "flow"),
    [
        (1, ethernet(V4), "10.77.0.2:80 10.77.0.1:40000"),
        (101, V4, "10.77.0.2:80 10.77.0.1:40000"),
        (12, V6, "[fd77::2]:80 [fd77::1]:40000"),
        (14, V4, "10.77.0.2:80 10.77.0.1:40000"),
        (228, V4, "10.77.0.2:80 10.77.0.1:40000"),
        (229, V6, "[fd77::2]:80 [fd77::1]:40000"),
        (113, sll(0x0800, V4), "10.77.0.2:80 10.77.0.1:40000"),
        (113, sll(0x86DD, V6), "[fd77::2]:80 [fd77::1]:40000"),
        (276, sll2(0x0800, V4), "10.77.0.2:80 10.77.0.1:40000"),
        (0, b"\2\0\0\0" + V4, "10.77.0.2:80 10.77.0.1:40000"),
        (0, b"\0\0\0\x1e" + V6, "[fd77::2]:80 [fd77::1]:40000"),
        (108, b"\0\0\0\2" + V4, "10.77.0.2:80 10.77.0.1:40000"),
    ],
)
def test_link_types(linktype: int, data: bytes, flow: str) -> None:
    made = as_ethernet(Packet(1, 0, linktype, data, len(data)))
    assert made is not None
    f = Frame()
    kind, whole, there = dissected(f, made, 0)
    assert kind == frame.TCP
    assert there == len(made)
    assert whole[f.payload : f.payload_end] == b"payload"
    assert name_of(flow_key(f, whole)) == flow


def test_a_cooked_frame_has_its_senders_mac() -> None:
    """For --guest."""
    made = as_ethernet(Packet(1, 0, 113, sll(0x0800, V4), 100))
    assert made is not None
    assert made[6:12] == GUEST_MAC


@pytest.mark.parametrize(
    ("linktype", "data"),
    [(105, b"802.11"), (101, b""), (101, b"\x50"), (113, b"short"), (276, b"short"), (0, b"\2\0"), (0, b"\7\0\0\0?"),
     (113, sll(0, b"netlink", hardware=824)), (99999, b"")],
)  # fmt: skip
def test_strangers(linktype: int, data: bytes) -> None:
    assert as_ethernet(Packet(1, 0, linktype, data, len(data))) is None


def of(data: bytes, original: int = 0) -> tuple[int, bytes, int, int]:
    """Kind, known payload, its size on the wire, and captured bytes of the frame."""
    f = Frame()
    kind, whole, there = dissected(f, data, original - len(data))
    return kind, whole[f.payload : min(f.payload_end, there)], f.payload_end - f.payload, there


def test_cut_by_the_snap_length() -> None:
    """96 of 1514 bytes: 42 of 1460 of payload are known; without room for the TCP header nothing is."""
    data = segment(1, 2, bytes(1460))
    assert of(data[:96], len(data)) == (frame.TCP, bytes(42), 1460, 96)
    assert of(data[:53], len(data))[0] == frame.MALFORMED
    assert of(data[:54], len(data)) == (frame.TCP, b"", 1460, 54)
    data = udp(bytes(1000))
    assert of(data[:60], len(data)) == (frame.UDP, bytes(18), 1000, 60)


def test_padding_is_no_payload_however_short_the_capture() -> None:
    data = segment(1, 2, b"abc") + bytes(20)
    assert of(data) == (frame.TCP, b"abc", 3, len(data))
    assert of(data[:58], len(data)) == (frame.TCP, b"abc", 3, 58)


def test_total_length_0_is_segmentation_offload() -> None:
    """The card fills it in; what was captured is all there is."""
    for data, field in (
        (segment(1, 2, bytes(3000)), 16),
        (segment(1, 2, bytes(3000), source=GUEST6, destination=CLIENT6), 18),
    ):
        zeroed = data[:field] + b"\0\0" + data[field + 2 :]
        assert of(zeroed) == (frame.TCP, bytes(3000), 3000, len(data))
        assert of(zeroed[:100], len(data)) == (frame.TCP, bytes(100 - (len(data) - 3000)), 3000, 100)


def test_super_frames_beyond_64_kib() -> None:
    """BIG TCP: IPv4 with length 0; IPv6 with length 0, with and without the jumbogram's header."""
    payload = bytes(100_000)
    four = ethernet(ip(GUEST, CLIENT, 6, b""))
    four = four[:16] + b"\0\0" + four[18:] + segment(1, 2)[34:] + payload
    six = segment(1, 2, b"", source=GUEST6, destination=CLIENT6)
    six = six[:18] + b"\0\0" + six[20:] + payload
    assert of(four)[:3] == (frame.TCP, payload, 100_000)
    assert of(six)[:3] == (frame.TCP, payload, 100_000)


def test_a_length_that_is_more_than_there_was_on_the_wire_is_not_believed() -> None:
    """The IP header claims 35,000 bytes; the frame had 66."""
    data = segment(1, 2, bytes(12))
    assert of(data[:16] + b"\x88\xb8" + data[18:]) == (frame.TCP, bytes(12), 12, 66)
    data = udp(bytes(12))
    assert of(data[:38] + b"\x88\xb8" + data[40:]) == (frame.UDP, bytes(12), 12, 54)


@pytest.mark.parametrize("size", range(60))
def test_any_beginning_of_a_frame_is_something(size: int) -> None:
    for data in (
        segment(1, 2, bytes(60)),
        segment(1, 2, source=GUEST6, destination=CLIENT6),
        udp(bytes(9), vlan=(1, 2)),
    ):
        for original in (0, len(data), 1 << 17, 1 << 31):
            of(data[:size], original)


def test_names() -> None:
    """Flows that have no addresses of IP."""
    assert name_of(b"\xff" + bytes(range(12))) == "00:01:02:03:04:05 06:07:08:09:0a:0b"
    assert name_of(b"\xff\0\x69") == "link type 105"
    assert name_of(b"\xff") == "frames without an address"
