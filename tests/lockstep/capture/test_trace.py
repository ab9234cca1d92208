"""The decorator `trace`: what passes, read back by a reader of its own, and never more of it than allowed."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from packets import segment, udp

from lockstep.batch import Batch
from lockstep.capture.base import PortError, PortPermissionError
from lockstep.capture.memory import pair
from lockstep.capture.pcapfile import read_packets
from lockstep.capture.trace import TracePort

MIB = 1 << 20


def test_both_directions_stand_in_it_as_on_a_wire(tmp_path: Path) -> None:
    near, far = pair("mirror.guest", 10)
    path = tmp_path / "trace.pcapng"
    with contextlib.closing(TracePort(near, path, MIB)) as port, contextlib.closing(far):
        far.write(Batch.of([segment(1, 2, b"in", partial=True, vnet=10)], 10))
        batch = port.read()
        assert isinstance(batch, Batch)
        assert batch.frames() == [segment(1, 2, b"in", partial=True, vnet=10)]
        assert port.read() is None
        port.write(Batch.of([udp(b"out")]))
        assert far.read() is not None
        assert port.counters["traced"] == 2
    assert [packet.data for packet in read_packets(path)] == [segment(1, 2, b"in"), udp(b"out")]


@pytest.mark.needs("tshark")
def test_wireshark_reads_it(tmp_path: Path) -> None:
    near, far = pair("mirror.guest")
    path = tmp_path / "trace.pcapng"
    with contextlib.closing(TracePort(near, path, MIB)) as port, contextlib.closing(far):
        far.write(Batch.of([udp(b"in")]))
        port.read()
        port.write(Batch.of([udp(b"out")]))
    fields = ["-T", "fields", "-e", "frame.interface_name", "-e", "udp.length"]
    shown = subprocess.run(["tshark", "-r", path, *fields], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == ["mirror.guest in\t10", "mirror.guest out\t11"]


def test_it_never_takes_more_than_its_bytes_and_keeps_the_newest(tmp_path: Path) -> None:
    near, far = pair("mirror.guest")
    path = tmp_path / "trace.pcapng"
    with contextlib.closing(TracePort(near, path, MIB)) as port, contextlib.closing(far):
        for number in range(4000):
            port.write(Batch.of([udp(b"%04d" % number + bytes(1000))]))
            assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= MIB
    assert sorted(file.name for file in tmp_path.iterdir()) == ["trace.pcapng", "trace.pcapng.old"]
    numbers = [int(packet.data[42:46]) for name in (".old", "") for packet in read_packets(Path(f"{path}{name}"))]
    assert numbers == list(range(numbers[0], 4000))
    assert len(numbers) > 450


def test_a_file_that_can_not_be_made_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(PortError, match=r"mirror\.guest\.trace = .*No such file or directory; choose another"):
        TracePort(pair("mirror.guest")[0], tmp_path / "none" / "trace.pcapng", MIB)


def test_a_folder_that_may_not_be_written_is_a_permission_error(run_dir: Path, nobody: None) -> None:
    with pytest.raises(PortPermissionError, match=r"mirror\.guest\.trace"):
        TracePort(pair("mirror.guest")[0], run_dir / "trace.pcapng", MIB)


def test_a_disk_that_is_full_ends_the_trace_alone() -> None:
    near, far = pair("mirror.guest")
    with contextlib.closing(far), contextlib.suppress(PortError):
        port = TracePort(near, Path("/dev/full"), MIB)
        with contextlib.closing(port):
            port.write(Batch.of([udp(b"x")]))
            assert far.read() is not None
            assert port.counters["trace_failed"] == 1
