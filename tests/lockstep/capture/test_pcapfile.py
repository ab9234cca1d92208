"""Capture files: hand-worked bytes, other programs' files, ours read by other programs, and garbage."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from lockstep.capture import pcapfile
from lockstep.capture.pcapfile import (
    MAX_INTERFACES,
    MAX_RECORD,
    CaptureFileError,
    Packet,
    PcapngWriter,
    PcapWriter,
    read_packets,
)

#: 2026-11-23 12:00:00.123456789 UTC.
NOON = 1_795_435_200_123_456_789
#: A packet as the tests write it by hand: ticks of its clock, bytes captured, bytes on the wire.
Raw = tuple[int, bytes, int]

SHB, IDB, PB, SPB, NRB, ISB, EPB = 0x0A0D0D0A, 1, 2, 3, 4, 5, 6


def run(tool: str, *arguments: str | Path, stdin: bytes = b"", check: bool = True) -> bytes:
    """What another program prints; without it the test is skipped, or fails where everything is required."""
    if not shutil.which(tool):
        if os.environ.get("LOCKSTEP_REQUIRE") == "all":
            pytest.fail(f"{tool} is missing, and LOCKSTEP_REQUIRE=all")
        pytest.skip(f"{tool} is missing")
    return subprocess.run([tool, *arguments], input=stdin, capture_output=True, check=check, timeout=60).stdout


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], list[Packet]]:
    """Read bytes as a file."""
    path = tmp_path_factory.mktemp("pcapfile") / "file"

    def read_bytes(data: bytes) -> list[Packet]:
        path.write_bytes(data)
        return list(read_packets(path))

    return read_bytes


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], tuple[int, int, str]]:
    """Read bytes that don't fit: packets before the fault, its offset and why."""
    path = tmp_path_factory.mktemp("fault") / "file"

    def read_fault(data: bytes) -> tuple[int, int, str]:
        path.write_bytes(data)
        packets: list[Packet] = []
        with pytest.raises(CaptureFileError) as caught:
            packets.extend(read_packets(path))
        assert caught.value.path == path
        assert str(caught.value) == f"{path}: at byte {caught.value.offset}: {caught.value.why}"
        return len(packets), caught.value.offset, caught.value.why

    return read_fault


Read = Callable[[bytes], list[Packet]]
Fault = Callable[[bytes], tuple[int, int, str]]


# Files by hand, in either byte order.


def pcap_header(
    order: str = "<", magic: int = 0xA1B2C3D4, linktype: int = 1, version: tuple[int, int] = (2, 4)
) -> bytes:
    return struct.pack(order + "IHHiIII", magic, *version, 0, 0, 65535, linktype)


def pcap_record(order: str, seconds: int, fraction: int, data: bytes, original: int) -> bytes:
    return struct.pack(order + "IIII", seconds, fraction, len(data), original) + data


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str = "<", version: tuple[int, int] = (1, 0)) -> bytes:
    return block(order, SHB, struct.pack(order + "IHHq", 0x1A2B3C4D, *version, -1))


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def interface(order: str = "<", linktype: int = 1, snaplen: int = 0, options: bytes = b"") -> bytes:
    return block(order, IDB, struct.pack(order + "HHI", linktype, 0, snaplen) + options)


def enhanced(order: str, index: int, ticks: int, data: bytes, original: int, options: bytes = b"") -> bytes:
    head = struct.pack(order + "IIIII", index, ticks >> 32, ticks & 0xFFFFFFFF, len(data), original)
    return block(order, EPB, head + data + bytes(-len(data) % 4) + options)


PREFIX = section() + interface()
A_PACKET = enhanced("<", 0, 7, b"abcde", 9)


# Reading pcap.


def test_pcap_by_hand(read: Read) -> None:
    """One record, byte for byte: 5 s and 7 µs, 3 of 5 bytes captured."""
    text = """d4c3b2a1 0200 0400 00000000 00000000 00000400 01000000
              05000000 07000000 03000000 05000000 aabbcc"""
    assert read(bytes.fromhex(text)) == [Packet(1, 5_000_007_000, 1, b"\xaa\xbb\xcc", 5, 0)]


@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap_fractions_are_micro_or_nanoseconds_in_either_order(read: Read, order: str, magic: int, unit: int) -> None:
    packets = read(pcap_header(order, magic) + pcap_record(order, 0xFFFFFFFF, 999_999, b"xy", 2))
    assert packets == [Packet(1, 4_294_967_295_000_000_000 + 999_999 * unit, 1, b"xy", 2)]


@pytest.mark.parametrize("order", ["<", ">"])
def test_kuznetzov_records_have_eight_bytes_more(read: Read, order: str) -> None:
    record = struct.pack(order + "IIIIIHBB", 1, 2, 4, 4, 3, 0x800, 0, 0) + b"data"
    packets = read(pcap_header(order, 0xA1B2CD34) + record * 2)
    assert [(packet.time_ns, packet.data) for packet in packets] == [(1_000_002_000, b"data")] * 2


def test_pcap_linktype_is_the_lower_half(read: Read) -> None:
    """The upper half holds the length of the frame check sequence (here: known, two words)."""
    data = pcap_header(linktype=0x24000000 | 113) + pcap_record("<", 0, 0, b"x", 1)
    assert read(data)[0].linktype == 113


def test_pcap_without_packets_is_empty(read: Read) -> None:
    assert read(pcap_header()) == []


def test_packets_are_numbered_from_one(read: Read) -> None:
    data = pcap_header() + pcap_record("<", 0, 0, b"", 0) * 3
    assert [packet.number for packet in read(data)] == [1, 2, 3]


# Reading pcapng.


def test_pcapng_by_hand(read: Read) -> None:
    """Section, interface in nanoseconds, one packet of 3 bytes at 0x1_00000002 ns."""
    text = """0a0d0d0a 1c000000 4d3c2b1a 0100 0000 ffffffffffffffff 1c000000
              01000000 20000000 0100 0000 00000000 0900 0100 09000000 0000 0000 20000000
              06000000 24000000 00000000 01000000 02000000 03000000 05000000 aabbcc00 24000000"""
    assert read(bytes.fromhex(text)) == [Packet(1, 0x1_0000_0002, 1, b"\xaa\xbb\xcc", 5, 0)]


def test_default_resolution_is_microseconds(read: Read) -> None:
    assert read(PREFIX + A_PACKET)[0].time_ns == 7000


@pytest.mark.parametrize(
    ("tsresol", "ticks", "time_ns"),
    [
        (0, 3, 3_000_000_000),
        (3, 1500, 1_500_000_000),
        (9, 123, 123),
        (12, 1999, 1),  # picoseconds, rounded down
        (0x80 | 1, 3, 1_500_000_000),
        (0x80 | 10, 1, 976_562),  # 1/1024 s, rounded down
        (0x80 | 32, 0x1_8000_0000, 1_500_000_000),
        (0x80 | 64, 1 << 63, 500_000_000),
        (127, 5, 0),
        (255, 5, 0),
    ],
)
def test_if_tsresol(read: Read, tsresol: int, ticks: int, time_ns: int) -> None:
    data = section() + interface(options=option("<", 9, bytes([tsresol]))) + enhanced("<", 0, ticks, b"", 0)
    assert read(data)[0].time_ns == time_ns


@pytest.mark.parametrize("order", ["<", ">"])
def test_if_tsoffset_adds_seconds_and_may_be_negative(read: Read, order: str) -> None:
    options = option(order, 14, struct.pack(order + "q", -2))
    data = section(order) + interface(order, options=options) + enhanced(order, 0, 1, b"", 0)
    assert read(data)[0].time_ns == -1_999_999_000


def test_options_after_the_end_are_not_read(read: Read) -> None:
    options = option("<", 0, b"") + option("<", 9, b"\x00")
    assert read(section() + interface(options=options) + A_PACKET)[0].time_ns == 7000


def test_obsolete_packet_block(read: Read) -> None:
    body = struct.pack("<HHIIII", 0, 0xFFFF, 1, 0, 3, 8) + b"abc"
    assert read(PREFIX + block("<", PB, body)) == [Packet(1, 0x1_0000_0000 * 1000, 1, b"abc", 8)]


@pytest.mark.parametrize(("snaplen", "captured"), [(0, b"abcdefgh"), (3, b"abc"), (100, b"abcdefgh")])
def test_simple_packet_block_is_cut_by_snaplen_and_has_no_time(read: Read, snaplen: int, captured: bytes) -> None:
    data = section() + interface(snaplen=snaplen) + block("<", SPB, struct.pack("<I", 8) + b"abcdefgh"[: len(captured)])
    assert read(data) == [Packet(1, 0, 1, captured, 8)]


def test_interfaces_differ_in_linktype_and_clock(read: Read) -> None:
    data = PREFIX + interface(linktype=113, options=option("<", 9, b"\x09"))
    packets = read(data + enhanced("<", 1, 5, b"", 0) + enhanced("<", 0, 5, b"", 0))
    assert [(p.interface, p.linktype, p.time_ns) for p in packets] == [(1, 113, 5), (0, 1, 5000)]


def test_sections_have_their_own_order_and_interfaces_and_one_count(read: Read) -> None:
    second = section(">", (1, 2)) + interface(">", linktype=101) + enhanced(">", 0, 1, b"z", 1)
    packets = read(PREFIX + A_PACKET + second)
    assert [(p.number, p.linktype, p.data) for p in packets] == [(1, 1, b"abcde"), (2, 101, b"z")]


def test_other_blocks_are_skipped(read: Read) -> None:
    others = b"".join(block("<", kind, bytes(12)) for kind in (NRB, ISB, 0xA, 0x7777))
    assert [p.number for p in read(PREFIX + others + A_PACKET)] == [1]


# The journal's, a custom and sysdig's block.
@pytest.mark.parametrize("kind", [0x9, 0xBAD, 0x40000BAD, 0x204, 0x216, 0x221])
def test_blocks_that_are_frames_to_wireshark_take_a_number(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "a.pcapng"
    journal = b"__REALTIME_TIMESTAMP=1\nMESSAGE=what tshark takes, whatever the type\n\n"
    path.write_bytes(PREFIX + A_PACKET + block("<", kind, journal) + A_PACKET)
    shown = run("tshark", "-r", path, "-T", "fields", "-e", "frame.number").split()
    assert [p.number for p in read_packets(path)] == [1, 3] == [int(shown[0]), int(shown[-1])]


# Compressed files.


@pytest.mark.parametrize("data", [PREFIX + A_PACKET, pcap_header() + pcap_record("<", 0, 7, b"abcde", 9)])
def test_gzip_is_known_by_its_magic(read: Read, data: bytes) -> None:
    assert read(gzip.compress(data)) == [Packet(1, 7000, 1, b"abcde", 9)]


def test_gzip_of_several_members_is_one_file(read: Read) -> None:
    assert len(read(gzip.compress(PREFIX) + gzip.compress(A_PACKET))) == 1


def test_cut_gzip_names_the_place_in_the_uncompressed_file(fault: Fault) -> None:
    whole = PREFIX + A_PACKET
    zipped = gzip.compress(whole + enhanced("<", 0, 0, os.urandom(5000), 5000))
    before, offset, why = fault(zipped[:-100])
    assert (before, offset) == (1, len(whole))
    assert why == "cut off: the gzip data has no end"


def test_wrong_gzip_checksum_is_a_fault(fault: Fault) -> None:
    zipped = bytearray(gzip.compress(PREFIX + A_PACKET))
    zipped[-8] ^= 1
    assert fault(bytes(zipped))[:2] == (1, len(PREFIX + A_PACKET))


def test_gzip_that_does_not_inflate_is_a_fault(fault: Fault) -> None:
    assert fault(gzip.compress(b"")[:10] + b"\xff" * 20)[:2] == (0, 0)


# Faults. Each names the offset of its record, after what stood before it was given.


@pytest.mark.parametrize("data", [b"", b"\xd4", b"GIF89a", gzip.compress(b"", mtime=0)])
def test_what_is_no_capture_fails_at_its_start(fault: Fault, data: bytes) -> None:
    assert fault(data)[:2] == (0, 0)


@pytest.mark.parametrize("cut", range(1, 16 + 5))
def test_pcap_cut_inside_a_record(fault: Fault, cut: int) -> None:
    whole = pcap_header() + pcap_record("<", 0, 0, b"abcde", 5)
    last = pcap_record("<", 0, 0, b"abcde", 5)[:cut]
    before, offset, why = fault(whole + last)
    assert (before, offset) == (1, len(whole))
    assert why == f"cut off: {cut} of {16 if cut < 16 else 21} bytes"


@pytest.mark.parametrize("cut", range(1, len(A_PACKET)))
def test_pcapng_cut_inside_a_block(fault: Fault, cut: int) -> None:
    before, offset, why = fault(PREFIX + A_PACKET + A_PACKET[:cut])
    assert (before, offset) == (1, len(PREFIX + A_PACKET))
    assert why.startswith(f"cut off: {cut} of ")


@pytest.mark.parametrize("size", [4, 23])
def test_pcap_cut_inside_its_header(fault: Fault, size: int) -> None:
    assert fault(pcap_header()[:size]) == (0, 0, f"cut off: {size} of 24 bytes")


@pytest.mark.parametrize(
    "data",
    [pcap_header(version=(2, 3)), pcap_header(version=(1, 4)), section(version=(1, 1)), section(version=(2, 0))],
)
def test_unknown_versions_are_refused(fault: Fault, data: bytes) -> None:
    before, offset, why = fault(data)
    assert (before, offset) == (0, 0)
    assert "version" in why


def test_section_without_byte_order_magic(fault: Fault) -> None:
    second = bytearray(section())
    second[8:12] = b"oops"
    assert fault(PREFIX + bytes(second)) == (0, len(PREFIX), "no byte-order magic: 6f 6f 70 73")


# A block that lies → what the error says of it.
LIES = [
    (struct.pack("<III", 0x7777, 8, 8), "type 0x7777 can't have 8 bytes"),
    (struct.pack("<III", 0x7777, 0, 0), "can't have 0 bytes"),
    (struct.pack("<IIxI", 0x7777, 13, 13), "can't have 13 bytes"),
    (struct.pack("<III", 0x7777, MAX_RECORD + 4, 0), f"can't have {MAX_RECORD + 4} bytes"),
    (struct.pack("<III", 0x7777, 0xFFFFFFFC, 0), "can't have 4294967292 bytes"),
    (block("<", IDB, bytes(4)), "type 0x1 can't have 16 bytes"),
    (block("<", EPB, bytes(16)), "type 0x6 can't have 28 bytes"),
    (block("<", PB, bytes(16)), "type 0x2 can't have 28 bytes"),
    (block("<", SPB, b""), "type 0x3 can't have 12 bytes"),
    (A_PACKET[:-4] + struct.pack("<I", 44), "a block of 40 bytes that ends as one of 44"),
    (block("<", EPB, struct.pack("<IIIII", 0, 0, 0, 5, 5) + b"abcd"), "a packet of 5 bytes in a block of 36"),
    (block("<", EPB, struct.pack("<IIIII", 0, 0, 0, 0xFFFFFFFF, 5)), "a packet of 4294967295 bytes in a block of 32"),
    (block("<", SPB, struct.pack("<I", 5) + b"abcd"), "a packet of 5 bytes in a block of 20"),
    (enhanced("<", 1, 0, b"", 0), "a packet of interface 1; the section has 1"),
    (interface(options=struct.pack("<HHI", 99, 5, 0)), "an option of 5 bytes that leaves its block"),
    (interface(options=option("<", 9, b"ab")), "if_tsresol of 2 bytes"),
    (interface(options=option("<", 14, b"abcd")), "if_tsoffset of 4 bytes"),
]


@pytest.mark.parametrize(("lie", "why"), LIES, ids=[why for _, why in LIES])
def test_pcapng_block_that_lies(fault: Fault, lie: bytes, why: str) -> None:
    before, offset, said = fault(PREFIX + A_PACKET + lie + A_PACKET)
    assert (before, offset) == (1, len(PREFIX + A_PACKET))
    assert said.endswith(why)


@pytest.mark.parametrize("kind", [EPB, SPB, PB])
def test_packet_before_any_interface(fault: Fault, kind: int) -> None:
    assert fault(section() + block("<", kind, bytes(20)))[:2] == (0, len(section()))


def test_a_new_section_forgets_the_interfaces(fault: Fault) -> None:
    assert fault(PREFIX + section() + A_PACKET)[:2] == (0, len(PREFIX + section()))


def test_too_many_interfaces(fault: Fault) -> None:
    one = interface()
    before, offset, _ = fault(section() + one * (MAX_INTERFACES + 1))
    assert (before, offset) == (0, len(section() + one * MAX_INTERFACES))


def test_pcap_record_over_the_most(fault: Fault) -> None:
    data = pcap_header() + struct.pack("<IIII", 0, 0, MAX_RECORD + 1, 9)
    assert fault(data) == (0, 24, f"a packet of {MAX_RECORD + 1} bytes; {MAX_RECORD} is the most")


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        next(read_packets(tmp_path / "none"))


# Memory.


def peak_while_reading(path: Path) -> int:
    tracemalloc.start()
    try:
        for _ in read_packets(path):
            pass
        return tracemalloc.get_traced_memory()[1]
    except CaptureFileError:
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "file"
    path.write_bytes(pack(pcap_header() + pcap_record("<", 0, 0, bytes(60_000), 60_000) * 400))  # 24 MB
    assert peak_while_reading(path) < 6 << 20


@pytest.mark.parametrize(
    "data",
    [
        pcap_header() + struct.pack("<IIII", 0, 0, MAX_RECORD, MAX_RECORD),
        PREFIX + struct.pack("<II", EPB, MAX_RECORD) + bytes(20),
        gzip.compress(PREFIX + struct.pack("<II", EPB, MAX_RECORD) + bytes(20), mtime=0),
    ],
)
def test_a_length_allocates_nothing_before_its_bytes_are_there(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert peak_while_reading(path) < 3 << 20


def test_a_record_longer_than_the_window_is_whole(read: Read) -> None:
    data = os.urandom((3 << 20) + 1)
    assert read(pcap_header() + pcap_record("<", 1, 2, data, len(data)) * 2)[1].data == data


# There and back.

CLOCK = st.integers(0, (1 << 32) * 1_000_000_000 - 1)
RAW = st.tuples(CLOCK, st.binary(max_size=300), st.just(0))


def written(writer: PcapWriter | PcapngWriter, file: BytesIO, packets: Iterable[Raw]) -> bytes:
    for time_ns, data, _ in packets:
        writer.write(data, time_ns)
    return file.getvalue()


@given(packets=st.lists(RAW), nanosecond=st.booleans(), snaplen=st.integers(1, 300), linktype=st.integers(0, 65535))
def test_pcap_there_and_back(read: Read, packets: list[Raw], nanosecond: bool, snaplen: int, linktype: int) -> None:
    file = BytesIO()
    unit = 1 if nanosecond else 1000
    assert read(written(PcapWriter(file, linktype, snaplen, nanosecond), file, packets)) == [
        Packet(number, time_ns // unit * unit, linktype, data[:snaplen], len(data))
        for number, (time_ns, data, _) in enumerate(packets, 1)
    ]


@given(
    packets=st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.binary(max_size=300), st.integers(0, 2))),
    comments=st.lists(st.none() | st.text(), min_size=1),
    snaplen=st.integers(1, 300),
    linktype=st.integers(0, 65535),
)
def test_pcapng_there_and_back(
    read: Read, packets: list[Raw], comments: list[str | None], snaplen: int, linktype: int
) -> None:
    file = BytesIO()
    writer = PcapngWriter(file, linktype, snaplen, ["a", "b", "c"])
    for number, (time_ns, data, index) in enumerate(packets):
        writer.write(data, time_ns, comments[number % len(comments)], index)
    assert read(file.getvalue()) == [
        Packet(number, time_ns, linktype, data[:snaplen], len(data), index)
        for number, (time_ns, data, index) in enumerate(packets, 1)
    ]


MICROSECONDS = st.integers(0, (1 << 32) * 1_000_000 - 1)
BY_HAND = st.lists(st.tuples(MICROSECONDS, st.binary(max_size=60), st.integers(0, 0xFFFFFFFF)), max_size=20)


@given(packets=BY_HAND, order=st.sampled_from("<>"), chunk=st.integers(1, 40), zipped=st.booleans())
def test_hand_made_pcap_reads_back_through_any_window(
    read: Read, packets: list[Raw], order: str, chunk: int, zipped: bool
) -> None:
    data = pcap_header(order) + b"".join(
        pcap_record(order, *divmod(ticks, 1_000_000), data, original) for ticks, data, original in packets
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pcapfile, "_CHUNK", chunk)
        got = read(gzip.compress(data) if zipped else data)
    assert [(p.time_ns // 1000, p.data, p.original_length) for p in got] == packets


@given(packets=BY_HAND, order=st.sampled_from("<>"), chunk=st.integers(1, 40), zipped=st.booleans())
def test_hand_made_pcapng_reads_back_through_any_window(
    read: Read, packets: list[Raw], order: str, chunk: int, zipped: bool
) -> None:
    data = section(order) + interface(order) + b"".join(enhanced(order, 0, *packet) for packet in packets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pcapfile, "_CHUNK", chunk)
        got = read(gzip.compress(data) if zipped else data)
    assert [(p.time_ns // 1000, p.data, p.original_length) for p in got] == packets


# Garbage: packets or a CaptureFileError, nothing else.

VALID = [
    pcap_header() + pcap_record("<", 1, 2, b"abcdef", 6) * 3,
    pcap_header(">", 0xA1B23C4D) + pcap_record(">", 1, 2, b"abcdef", 6) * 3,
    pcap_header("<", 0xA1B2CD34) + struct.pack("<IIIIIHBB", 1, 2, 4, 4, 3, 0x800, 0, 0) + b"data",
    section() + interface(options=option("<", 9, b"\x06") + option("<", 14, bytes(8))) + A_PACKET * 2,
    section(">") + interface(">", snaplen=3) + block(">", SPB, struct.pack(">I", 4) + b"abc") + PREFIX + A_PACKET,
    PREFIX + block("<", PB, struct.pack("<HHIIII", 0, 0, 1, 0, 3, 8) + b"abc") + block("<", NRB, bytes(4)) + A_PACKET,
]
KINDS = st.sampled_from(["set", "insert", "cut", "word"])
EDIT = st.tuples(st.floats(0, 1, exclude_max=True), KINDS, st.binary(min_size=1))


def edited(data: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    for where, kind, value in edits:
        at = int(where * len(data))
        if kind == "set":
            data = data[:at] + value[:1] + data[at + 1 :]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "cut":
            data = data[:at]
        else:  # a length, a type or a count
            at -= at % 4
            data = data[:at] + value[:4].ljust(4, b"\0") + data[at + 4 :]
    return data


def survives(read: Read, data: bytes) -> None:
    with contextlib.suppress(CaptureFileError):
        read(data)


@fuzz(100)
@given(data=st.binary(max_size=400))
def test_any_bytes(read: Read, data: bytes) -> None:
    survives(read, data)


@fuzz(100)
@given(start=st.sampled_from([*pcapfile._PCAP, pcap_header(), section(), PREFIX, b"\x1f\x8b\x08"]), rest=st.binary())
def test_any_bytes_after_a_right_start(read: Read, start: bytes, rest: bytes) -> None:
    survives(read, start + rest)


@fuzz(100)
@given(data=st.sampled_from(VALID), edits=st.lists(EDIT, min_size=1, max_size=5))
def test_mutated_files(read: Read, data: bytes, edits: list[tuple[float, str, bytes]]) -> None:
    survives(read, edited(data, edits))


@fuzz(100)
@given(data=st.sampled_from(VALID), edits=st.lists(EDIT, min_size=1, max_size=3))
def test_mutated_gzip(read: Read, data: bytes, edits: list[tuple[float, str, bytes]]) -> None:
    survives(read, edited(gzip.compress(data), edits))


# Writing.


def test_pcap_written_by_hand() -> None:
    file = BytesIO()
    PcapWriter(file, snaplen=4).write(b"abcdef", 3_000_000_005)
    text = """4d3cb2a1 0200 0400 00000000 00000000 04000000 01000000
              03000000 05000000 04000000 06000000 61626364"""
    assert file.getvalue() == bytes.fromhex(text)


def test_pcapng_packet_written_by_hand() -> None:
    """A block of 48 bytes with the comment `hi!`; interface, time in two halves, 2 bytes."""
    record = PcapngWriter(BytesIO()).record(b"\xaa\xbb", 0x1_0000_0002, "hi!")
    text = """06000000 30000000 00000000 01000000 02000000 02000000 02000000 aabb0000
              0100 0300 68692100 0000 0000 30000000"""
    assert record == bytes.fromhex(text)


def test_comment_is_cut_at_a_character() -> None:
    """Of 3-byte characters 21845 make 65535 bytes; one of 2 bytes before them leaves no room for the last."""
    record = PcapngWriter(BytesIO()).record(b"", 0, "é" + "€" * 21845)
    assert struct.unpack_from("<HH", record, 28) == (1, 2 + 3 * 21844)


@pytest.mark.parametrize("time_ns", [-1, (1 << 32) * 1_000_000_000])
def test_pcap_refuses_times_it_cannot_hold(time_ns: int) -> None:
    with pytest.raises(ValueError, match="can't hold the time"):
        PcapWriter(BytesIO()).write(b"", time_ns)


@pytest.mark.parametrize("time_ns", [-1, 1 << 64])
def test_pcapng_refuses_times_it_cannot_hold(time_ns: int) -> None:
    with pytest.raises(ValueError, match="can't hold the time"):
        PcapngWriter(BytesIO()).write(b"", time_ns)


@pytest.mark.parametrize("index", [-1, 2])
def test_pcapng_refuses_interfaces_it_does_not_have(index: int) -> None:
    with pytest.raises(ValueError, match="there is no interface"):
        PcapngWriter(BytesIO(), interfaces=["a", "b"]).write(b"", 0, interface=index)


def test_a_refused_packet_writes_nothing() -> None:
    file = BytesIO()
    writer = PcapngWriter(file)
    before = file.getvalue()
    with pytest.raises(ValueError, match="time"):
        writer.write(b"abc", -1)
    assert file.getvalue() == before


# Against other programs.

FRAME = bytes.fromhex("ffffffffffff 525400123456 88b5") + bytes(range(46))
PACKETS = [(NOON, FRAME), (NOON + 1, FRAME + b"odd"), (NOON + 5_000_000_000, FRAME[:60])]


def ours(path: Path, comments: bool = False) -> Path:
    with path.open("wb") as file:
        writer = PcapngWriter(file) if path.suffix == ".pcapng" else PcapWriter(file)
        for number, (time_ns, data) in enumerate(PACKETS):
            writer.write(data, time_ns, f"Grüße {number}" if comments and number else None)
    return path


def fields(path: Path, *names: str) -> list[list[str]]:
    """What tshark makes of each packet."""
    wanted = [part for name in names for part in ("-e", name)]
    lines = run("tshark", "-n", "-r", path, "-T", "fields", *wanted).decode().splitlines()
    return [line.split("\t") for line in lines]


@pytest.mark.parametrize("suffix", [".pcap", ".pcapng"])
def test_tshark_reads_our_times_and_lengths(tmp_path: Path, suffix: str) -> None:
    shown = fields(ours(tmp_path / f"a{suffix}"), "frame.number", "frame.time_epoch", "frame.cap_len", "frame.len")
    assert shown == [
        ["1", "1795435200.123456789", "60", "60"],
        ["2", "1795435200.123456790", "63", "63"],
        ["3", "1795435205.123456789", "60", "60"],
    ]


@pytest.mark.parametrize("suffix", [".pcap", ".pcapng"])
def test_tshark_reads_our_bytes(tmp_path: Path, suffix: str) -> None:
    shown = json.loads(run("tshark", "-n", "-r", ours(tmp_path / f"a{suffix}"), "-T", "json", "-x"))
    assert [bytes.fromhex(p["_source"]["layers"]["frame_raw"][0]) for p in shown] == [data for _, data in PACKETS]


def test_tshark_reads_our_comments(tmp_path: Path) -> None:
    shown = fields(ours(tmp_path / "a.pcapng", comments=True), "frame.number", "frame.comment")
    assert shown == [["1", ""], ["2", "Grüße 1"], ["3", "Grüße 2"]]


def test_tshark_reads_our_cut_packets(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with path.open("wb") as file:
        PcapngWriter(file, snaplen=20).write(FRAME, NOON)
    assert fields(path, "frame.cap_len", "frame.len") == [["20", "60"]]


def test_tshark_reads_our_interfaces(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with path.open("wb") as file:
        writer = PcapngWriter(file, interfaces=["primary", "secondary"])
        writer.write(FRAME, NOON, interface=1)
        writer.write(FRAME, NOON, interface=0)
    shown = fields(path, "frame.interface_id", "frame.interface_name")
    assert shown == [["1", "secondary"], ["0", "primary"]]


def test_capinfos_names_the_program_that_wrote(tmp_path: Path) -> None:
    lines = run("capinfos", ours(tmp_path / "a.pcapng")).decode().splitlines()
    assert "Capture application: lockstep" in lines


@pytest.mark.parametrize("suffix", [".pcap", ".pcapng"])
@pytest.mark.parametrize(("precision", "unit"), [("micro", 1000), ("nano", 1)])
def test_tcpdump_reads_ours_and_we_read_tcpdump(
    tmp_path: Path, read: Read, suffix: str, precision: str, unit: int
) -> None:
    source = ours(tmp_path / f"a{suffix}").read_bytes()
    copy = run("tcpdump", f"--time-stamp-precision={precision}", "-r", "-", "-w", "-", stdin=source)
    assert [(p.time_ns, p.data) for p in read(copy)] == [(at // unit * unit, data) for at, data in PACKETS]


@pytest.mark.parametrize(("kind", "unit"), [("pcap", 1000), ("nsecpcap", 1), ("modpcap", 1000), ("pcapng", 1)])
def test_what_editcap_writes(tmp_path: Path, kind: str, unit: int) -> None:
    copy = tmp_path / "copy"
    run("editcap", "-F", kind, ours(tmp_path / "a.pcapng"), copy)
    assert [(p.time_ns, p.data) for p in read_packets(copy)] == [(at // unit * unit, data) for at, data in PACKETS]


def test_what_editcap_cuts(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    run("editcap", "-s", "20", ours(tmp_path / "a.pcap"), copy)
    assert [(p.data, p.original_length) for p in read_packets(copy)] == [(data[:20], len(data)) for _, data in PACKETS]


def test_what_mergecap_joins(tmp_path: Path) -> None:
    """Two files become two interfaces of one section, in the order of time."""
    copy = tmp_path / "copy"
    run("mergecap", "-I", "none", "-F", "pcapng", "-w", copy, ours(tmp_path / "a.pcapng"), ours(tmp_path / "b.pcap"))
    packets = list(read_packets(copy))
    assert [p.time_ns for p in packets] == sorted(at for at, _ in PACKETS * 2)
    assert {p.interface for p in packets} == {0, 1}


def test_what_text2pcap_writes(tmp_path: Path, read: Read) -> None:
    """A file none of whose bytes come from us."""
    dump = tmp_path / "dump"
    dump.write_text("1795435200.123456789\n0000 " + FRAME.hex(" ") + "\n")
    copy = tmp_path / "copy"
    run("text2pcap", "-q", "-t", "%s.%f", "-F", "pcapng", dump, copy)
    assert list(read_packets(copy)) == [Packet(1, NOON, 1, FRAME, 60)]


def test_the_corpus_reads_as_capinfos_reads_it() -> None:
    """Number of packets and of their bytes, of every Ethernet capture that capinfos takes."""
    corpus = os.environ.get("LOCKSTEP_CORPUS")
    if not corpus:
        pytest.skip("LOCKSTEP_CORPUS names no folder of captures")
    # capinfos fails where it doesn't know a link type, after telling of all the others.
    paths = [path for path in sorted(Path(corpus).glob("*/*")) if path.is_file()]
    lines = run("capinfos", "-T", "-r", "-M", "-c", "-d", "-K", *paths, check=False).decode().splitlines()
    ours, theirs = {}, {}
    for name, count, size in (line.split("\t") for line in lines):
        packets = list(read_packets(Path(name)))
        if all(packet.linktype == 1 for packet in packets):
            ours[name] = (len(packets), sum(packet.original_length for packet in packets))
            theirs[name] = (int(count), int(size))
    assert ours
    assert ours == theirs
