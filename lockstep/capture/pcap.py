"""The frontend `pcap`: frames come from one capture file and go to another.

Frames are read as fast as they are asked for, whatever their times; written ones get the time of
their batch. With it a whole run is replayed from captures, without a network or a privilege.
"""

from __future__ import annotations

import os
import time
from io import FileIO
from pathlib import Path

from lockstep.batch import MAX_BATCH, MAX_FRAME, Batch
from lockstep.capture.base import Port, PortError, PortPermissionError
from lockstep.capture.pcapfile import (
    LINKTYPE_ETHERNET,
    CaptureFileError,
    Packet,
    PcapngWriter,
    PcapWriter,
    read_packets,
)
from lockstep.wire import vnet

#: Most packets that one `read` takes from the file.
MAX_FRAMES = 256


class PcapPort(Port):
    """A port whose network is two files. Either may be missing: nothing comes, or what goes is dropped.

    read: a pcap or pcapng file of Ethernet frames, gzip or not. A frame that was captured in part, or
    is longer than `MAX_FRAME`, can't be compared: it is dropped and counted in `dropped_in`.
    write: made anew; pcapng if its suffix is `.pcapng`, else pcap.
    Raises PortError (PortPermissionError) for files that can't be opened, read or written.
    """

    def __init__(self, name: str, read: Path | None, write: Path | None) -> None:
        super().__init__(name)
        self.counters["dropped_in"] = 0
        self._read_path = read
        self._write_path = write
        self._packets = read_packets(read) if read else None
        self._next: Packet | None = None
        self._failure: PortError | None = None
        self._file: FileIO | None = None
        self._writer: PcapWriter | PcapngWriter
        self._event = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._exhausted = False
        try:
            self._advance()
            if self._failure:
                raise self._failure
            if write:
                self._open_output(write)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """An eventfd, readable until the file is exhausted; -1 once closed."""
        return self._event

    def exhausted(self) -> bool:
        """True after the file's end or fault, and without a file to read."""
        return self._exhausted

    def read(self) -> Batch | None:
        """The next frames of the file, from `MAX_FRAMES` packets and `MAX_BATCH` bytes at most.

        None also where all those packets were dropped. Raises PortError, once, at a fault of the
        file, after the frames before it were given.
        """
        if self._failure:
            failure, self._failure = self._failure, None
            self._exhaust()
            raise failure
        frames = []
        room = MAX_BATCH
        for _ in range(MAX_FRAMES):
            packet = self._next
            if packet is None:
                break
            size = len(packet.data)
            if size > MAX_FRAME or size < packet.original_length:
                self.counters["dropped_in"] += 1
            elif size > room:
                break
            else:
                frames.append(packet.data)
                room -= size
            self._advance()
        return self.count_in(Batch.of(frames)) if frames else None

    def write(self, batch: Batch) -> None:
        """Append the frames, without virtio-net headers, in one write; raises PortError if the disk won't."""
        if self._file is None:
            self.counters["dropped_out"] += len(batch)
            return
        plain = vnet.convert(batch, 0)
        data = memoryview(plain.data)
        now = time.time_ns()
        record = self._writer.record
        try:
            _write_all(self._file, b"".join([record(data[start:end], now) for start, end in plain.spans()]))
        except OSError as error:
            raise self._error("write", error) from error
        self.counters["frames_out"] += len(plain)
        self.counters["bytes_out"] += len(data)

    def close(self) -> None:
        """Close both files. What was written is in the file already."""
        self._next = self._failure = None
        self._exhausted = True
        if self._packets:
            self._packets.close()
        if self._file:
            self._file.close()
            self._file = None
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    def _open_output(self, path: Path) -> None:
        try:
            # Opening empties the file, which would be the end of the one that is read.
            if self._read_path and path.exists() and path.samefile(self._read_path):
                raise PortError(f"{self.name}.write = {path}: the file that is read. Name another file.")
            self._file = FileIO(path, "w")
            self._writer = PcapngWriter(self._file) if path.suffix == ".pcapng" else PcapWriter(self._file)
        except OSError as error:
            raise self._error("write", error) from error

    def _advance(self) -> None:
        """Look at the next packet, so that the file's end is known with its last frame."""
        self._next = None
        try:
            packet = next(self._packets, None) if self._packets else None
        except (CaptureFileError, OSError) as error:
            self._failure = self._error("read", error)
            self._failure.__cause__ = error
            return
        if packet is None:
            self._exhaust()
        elif packet.linktype != LINKTYPE_ETHERNET:
            self._failure = PortError(
                f"{self.name}.read = {self._read_path}: packet {packet.number} has link type {packet.linktype}, not "
                f"Ethernet ({LINKTYPE_ETHERNET}). Name a capture of one Ethernet interface, not of `any`."
            )
        else:
            self._next = packet

    def _exhaust(self) -> None:
        if not self._exhausted:
            self._exhausted = True
            os.eventfd_read(self._event)

    def _error(self, setting: str, error: CaptureFileError | OSError) -> PortError:
        path = self._read_path if setting == "read" else self._write_path
        place = f"{self.name}.{setting} = {path}"
        if isinstance(error, CaptureFileError):
            return PortError(f"{place}: byte {error.offset}: {error.why}. Name a whole pcap or pcapng file.")
        why = error.strerror or str(error)
        if isinstance(error, PermissionError):
            return PortPermissionError(f"{place}: {why}. Let this process {setting} it, or name another file.")
        if setting == "read":
            return PortError(f"{place}: {why}. Name an existing pcap or pcapng file.")
        return PortError(f"{place}: {why}. Name a file in an existing directory with room for it.")


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
