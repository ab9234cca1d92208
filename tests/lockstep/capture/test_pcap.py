"""The frontend `pcap`: a port between two files."""

from __future__ import annotations

import os
import select
import struct
import time
from array import array
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

import pytest

from lockstep.batch import MAX_BATCH, MAX_FRAME, Batch
from lockstep.capture import pcap
from lockstep.capture.base import PortError, PortPermissionError
from lockstep.capture.pcap import PcapPort
from lockstep.capture.pcapfile import Packet, PcapngWriter, PcapWriter, read_packets

FRAME = bytes.fromhex("ffffffffffff 525400123456 88b5") + bytes(range(46))


def capture(path: Path, frames: Iterable[bytes], linktype: int = 1, snaplen: int = 262_144) -> Path:
    with path.open("wb") as file:
        writer = PcapngWriter if path.suffix == ".pcapng" else PcapWriter
        to = writer(file, linktype, snaplen)
        for number, frame in enumerate(frames):
            to.write(frame, number)
    return path


def frames_of(port: PcapPort) -> list[bytes]:
    """Everything the port has, until it is exhausted."""
    frames = []
    while not port.exhausted():
        batch = port.read()
        frames += batch.frames() if batch else []
    return frames


def readable(port: PcapPort) -> bool:
    return bool(select.select([port], [], [], 0)[0])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# Reading.


@pytest.mark.parametrize("name", ["in.pcap", "in.pcapng"])
def test_frames_come_in_the_files_order(tmp_path: Path, name: str) -> None:
    frames = [FRAME + bytes([number]) * number for number in range(50)]
    assert frames_of(PcapPort("mirror.network", capture(tmp_path / name, frames), None)) == frames


def test_batches_have_no_virtio_header(tmp_path: Path) -> None:
    port = PcapPort("mirror.network", capture(tmp_path / "in.pcap", [FRAME, b""]), None)
    batch = port.read()
    assert batch is not None
    assert (bytes(batch.data), batch.lengths, batch.vnet, port.vnet) == (FRAME, array("I", [60, 0]), 0, 0)


def test_a_read_gives_at_most_256_frames(tmp_path: Path) -> None:
    port = PcapPort("mirror.network", capture(tmp_path / "in.pcap", [FRAME] * 600), None)
    assert [len(port.read() or ()) for _ in range(4)] == [256, 256, 88, 0]


def test_a_read_gives_at_most_max_batch_bytes(tmp_path: Path) -> None:
    """Frames of 64 KiB: 16 fill a batch to the byte."""
    port = PcapPort("mirror.network", capture(tmp_path / "in.pcap", [bytes(1 << 16)] * 20), None)
    batches = [port.read(), port.read()]
    assert [len(batch.data) for batch in batches if batch] == [MAX_BATCH, 4 << 16]


def test_frames_and_bytes_read_are_counted(tmp_path: Path) -> None:
    port = PcapPort("mirror.network", capture(tmp_path / "in.pcap", [FRAME] * 3), None)
    frames_of(port)
    assert (port.counters["frames_in"], port.counters["bytes_in"], port.counters["dropped_in"]) == (3, 180, 0)


def test_frames_over_max_frame_are_dropped_and_counted(tmp_path: Path) -> None:
    frames = [bytes(MAX_FRAME + 1), bytes(MAX_FRAME), FRAME]
    port = PcapPort("mirror.network", capture(tmp_path / "in.pcap", frames), None)
    assert frames_of(port) == frames[1:]
    assert port.counters["dropped_in"] == 1


def test_frames_captured_in_part_are_dropped_and_counted(tmp_path: Path) -> None:
    path = capture(tmp_path / "in.pcap", [FRAME, FRAME[:59], FRAME], snaplen=59)
    port = PcapPort("mirror.network", path, None)
    assert frames_of(port) == [FRAME[:59]]
    assert port.counters["dropped_in"] == 2


def test_a_long_run_of_dropped_frames_ends_the_read_not_the_file(tmp_path: Path) -> None:
    path = capture(tmp_path / "in.pcap", [FRAME] * 300 + [b"whole"], snaplen=10)
    port = PcapPort("mirror.network", path, None)
    assert port.read() is None
    assert readable(port)
    assert frames_of(port) == [b"whole"]


def test_readable_until_the_last_frame_was_read(tmp_path: Path) -> None:
    port = PcapPort("mirror.network", capture(tmp_path / "in.pcap", [FRAME] * 257), None)
    seen = [(readable(port), port.exhausted())]
    for _ in range(2):
        port.read()
        seen.append((readable(port), port.exhausted()))
    assert seen == [(True, False), (True, False), (False, True)]


def test_nothing_comes_after_the_end(tmp_path: Path) -> None:
    port = PcapPort("mirror.network", capture(tmp_path / "in.pcap", [FRAME]), None)
    assert port.read() is not None
    assert [port.read(), port.read()] == [None, None]


def test_a_capture_without_packets_is_exhausted_at_once(tmp_path: Path) -> None:
    port = PcapPort("mirror.network", capture(tmp_path / "in.pcap", []), None)
    assert (port.read(), port.exhausted(), readable(port)) == (None, True, False)


def test_without_a_file_to_read_nothing_will_come(tmp_path: Path) -> None:
    port = PcapPort("mirror.network", None, tmp_path / "out.pcap")
    assert (port.read(), port.exhausted(), readable(port)) == (None, True, False)


# Faults of the file that is read.


def test_another_linktype_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = capture(tmp_path / "in.pcap", [FRAME], linktype=113)
    with pytest.raises(PortError) as caught:
        PcapPort("mirror.network", path, None)
    assert str(caught.value) == (
        f"mirror.network.read = {path}: packet 1 has link type 113, not Ethernet (1). "
        "Name a capture of one Ethernet interface, not of `any`."
    )


def test_another_linktype_later_is_raised_after_the_frames_before_it(tmp_path: Path) -> None:
    path = capture(tmp_path / "in.pcapng", [FRAME])
    cooked = capture(tmp_path / "cooked.pcapng", [FRAME], linktype=113)
    path.write_bytes(path.read_bytes() + cooked.read_bytes())  # a second section
    port = PcapPort("mirror.network", path, None)
    batch = port.read()
    assert batch is not None
    assert batch.frames() == [FRAME]
    assert readable(port)
    with pytest.raises(PortError, match=r"mirror\.network\.read = .*: packet 2 has link type 113"):
        port.read()


def test_a_fault_in_the_file_is_raised_once_after_the_frames_before_it(tmp_path: Path) -> None:
    path = capture(tmp_path / "in.pcap", [FRAME, FRAME])
    path.write_bytes(path.read_bytes()[:-1])
    port = PcapPort("mirror.network", path, None)
    batch = port.read()
    assert batch is not None
    assert (batch.frames(), port.exhausted(), readable(port)) == ([FRAME], False, True)
    with pytest.raises(PortError, match=r"\.network\.read = .*: byte 100: cut off: 75 of 76 bytes\. Name a"):
        port.read()
    assert (port.read(), port.exhausted(), readable(port)) == (None, True, False)


@pytest.mark.parametrize("data", [b"", b"no capture at all"])
def test_what_is_no_capture_is_refused_at_once(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "in.pcap"
    path.write_bytes(data)
    with pytest.raises(PortError, match=r"mirror\.network\.read = .*: byte 0: .* Name a whole pcap or pcapng file\."):
        PcapPort("mirror.network", path, None)


def test_a_missing_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(PortError, match=r"mirror\.network\.read = .*/none: No such file .* Name an existing pcap"):
        PcapPort("mirror.network", tmp_path / "none", None)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PortError, match=r"mirror\.network\.read = .*: Is a directory"):
        PcapPort("mirror.network", tmp_path, None)


@pytest.fixture
def unprivileged(forbidden: Path) -> Iterator[None]:
    """Root opens everything, so be nobody for a while, once `forbidden` is made."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


@pytest.fixture
def forbidden(tmp_path: Path) -> Path:
    """A file that nobody else may open."""
    path = capture(tmp_path / "secret.pcap", [FRAME])
    path.chmod(0)
    return path


@pytest.mark.usefixtures("unprivileged")
def test_a_file_that_may_not_be_read_is_a_permission_error(forbidden: Path) -> None:
    with pytest.raises(PortPermissionError, match=r"\.network\.read = .*: Permission denied\. Let this process read"):
        PcapPort("mirror.network", forbidden, None)


@pytest.mark.usefixtures("unprivileged")
def test_a_file_that_may_not_be_written_is_a_permission_error(forbidden: Path) -> None:
    with pytest.raises(PortPermissionError, match=r"\.guest\.write = .*: Permission denied\. Let this process write"):
        PcapPort("mirror.guest", None, forbidden)


# Writing.


@pytest.mark.parametrize(
    ("name", "magic"),
    [("out.pcap", 0xA1B23C4D), ("out.pcapng", 0x0A0D0D0A), ("out", 0xA1B23C4D), ("out.cap", 0xA1B23C4D)],
)
def test_the_suffix_chooses_the_format(tmp_path: Path, name: str, magic: int) -> None:
    PcapPort("mirror.guest", None, tmp_path / name).close()
    assert struct.unpack("<I", (tmp_path / name).read_bytes()[:4]) == (magic,)


@pytest.mark.parametrize("name", ["out.pcap", "out.pcapng"])
def test_written_batches_follow_one_another_in_the_file_at_once(tmp_path: Path, name: str) -> None:
    """Nothing is kept back: the file is read while the port is open."""
    port = PcapPort("mirror.guest", None, tmp_path / name)
    port.write(Batch.of([FRAME, b"second"]))
    port.write(Batch.of([]))
    port.write(Batch.of([b"third"]))
    assert [p.data for p in read_packets(tmp_path / name)] == [FRAME, b"second", b"third"]


def test_virtio_headers_are_taken_off(tmp_path: Path) -> None:
    port = PcapPort("mirror.guest", None, tmp_path / "out.pcap")
    port.write(Batch.of([bytes(12) + FRAME, bytes(12) + b"x"], vnet=12))
    assert [p.data for p in read_packets(tmp_path / "out.pcap")] == [FRAME, b"x"]


def test_a_partial_checksum_is_finished(tmp_path: Path) -> None:
    """NEEDS_CSUM, field at 0 of a sum from 0: of 0000 1234 it is ~1234 = edcb."""
    header = struct.pack("<BBHHHH", 1, 0, 0, 0, 0, 0)
    port = PcapPort("mirror.guest", None, tmp_path / "out.pcap")
    port.write(Batch.of([header + b"\x00\x00\x12\x34"], vnet=10))
    assert [p.data for p in read_packets(tmp_path / "out.pcap")] == [b"\xed\xcb\x12\x34"]


@pytest.mark.parametrize("name", ["out.pcap", "out.pcapng"])
def test_a_batch_has_one_time_of_the_wall_clock(tmp_path: Path, name: str) -> None:
    port = PcapPort("mirror.guest", None, tmp_path / name)
    before = time.time_ns()
    port.write(Batch.of([FRAME] * 100))
    after = time.time_ns()
    times = {packet.time_ns for packet in read_packets(tmp_path / name)}
    assert len(times) == 1
    assert before <= times.pop() <= after


def test_a_batch_is_one_write_to_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []

    class Watched(FileIO):
        def write(self, data: memoryview) -> int:  # type: ignore[override]
            writes.append(len(data))
            return super().write(data)

    monkeypatch.setattr(pcap, "FileIO", Watched)
    port = PcapPort("mirror.guest", None, tmp_path / "out.pcap")
    port.write(Batch.of([FRAME] * 10_000))
    assert writes == [24, 10_000 * 76]


def test_a_short_write_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(FileIO):
        def write(self, data: memoryview) -> int:  # type: ignore[override]
            return super().write(data[:25])

    monkeypatch.setattr(pcap, "FileIO", Short)
    port = PcapPort("mirror.guest", None, tmp_path / "out.pcap")
    port.write(Batch.of([FRAME] * 3))
    assert [p.data for p in read_packets(tmp_path / "out.pcap")] == [FRAME] * 3


def test_frames_and_bytes_written_are_counted_without_their_headers(tmp_path: Path) -> None:
    port = PcapPort("mirror.guest", None, tmp_path / "out.pcap")
    port.write(Batch.of([bytes(10) + FRAME] * 3, vnet=10))
    assert (port.counters["frames_out"], port.counters["bytes_out"], port.counters["dropped_out"]) == (3, 180, 0)


def test_without_a_file_to_write_frames_are_dropped_and_counted(tmp_path: Path) -> None:
    port = PcapPort("mirror.guest", capture(tmp_path / "in.pcap", []), None)
    port.write(Batch.of([FRAME] * 3))
    assert (port.counters["frames_out"], port.counters["dropped_out"]) == (0, 3)


def test_a_file_from_before_is_made_anew(tmp_path: Path) -> None:
    path = capture(tmp_path / "out.pcap", [FRAME] * 9)
    PcapPort("mirror.guest", None, path).write(Batch.of([b"new"]))
    assert [(p.number, p.data) for p in read_packets(path)] == [(1, b"new")]


def test_the_file_that_is_read_is_not_overwritten(tmp_path: Path) -> None:
    path = capture(tmp_path / "in.pcap", [FRAME])
    link = tmp_path / "link.pcap"
    link.symlink_to(path)
    with pytest.raises(PortError, match=r"mirror\.guest\.write = .*: the file that is read\. Name another"):
        PcapPort("mirror.guest", path, link)
    assert list(read_packets(path)) == [Packet(1, 0, 1, FRAME, 60)]


def test_a_file_in_no_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(PortError, match=r"\.guest\.write = .*: No such file .* Name a file in an existing"):
        PcapPort("mirror.guest", None, tmp_path / "none" / "out.pcap")


def test_a_full_disk_is_a_port_error() -> None:
    with pytest.raises(PortError, match=r"mirror\.guest\.write = /dev/full: No space left on device"):
        PcapPort("mirror.guest", None, Path("/dev/full"))


def test_a_write_that_fails_later_is_a_port_error_and_counts_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "out.pcap"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    port = PcapPort("mirror.guest", None, pipe)
    os.close(reader)
    with pytest.raises(PortError, match=r"mirror\.guest\.write = .*: Broken pipe"):
        port.write(Batch.of([FRAME]))
    assert port.counters["frames_out"] == 0
    port.close()


# Closing.


def test_closing_twice_gives_everything_back(tmp_path: Path) -> None:
    before = open_files()
    port = PcapPort("mirror.network", capture(tmp_path / "in.pcap", [FRAME] * 9), tmp_path / "out.pcap")
    assert open_files() == before + 3
    port.close()
    port.close()
    assert (open_files(), port.fileno(), port.read(), port.exhausted()) == (before, -1, None, True)


def test_a_port_that_could_not_be_opened_holds_nothing(tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(PortError):
        PcapPort("mirror.network", capture(tmp_path / "in.pcap", [FRAME]), Path("/dev/full"))
    with pytest.raises(PortError):
        PcapPort("mirror.network", capture(tmp_path / "in.pcap", [FRAME], linktype=0), tmp_path / "out.pcap")
    assert open_files() == before
