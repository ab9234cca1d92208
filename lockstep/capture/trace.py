"""The decorator `trace`: what passes a port, in both directions, as a pcapng file of bounded size.

The file has two interfaces, `NAME in` and `NAME out`. Frames stand in it as on a wire, without
virtio-net headers; super-frames stay whole. Half of the bytes are for the file being written, half
for the one before it, with `.old` behind its name.
"""

from __future__ import annotations

import time
from io import FileIO
from pathlib import Path

from lockstep.batch import Batch
from lockstep.capture.base import Port, PortError, PortPermissionError
from lockstep.capture.pcapfile import PcapngWriter
from lockstep.streams import Event
from lockstep.wire.vnet import convert

_IN, _OUT = 0, 1


class TracePort(Port):
    """A port around another; raises PortError where the file can't be made.

    A disk that is full ends the trace, and nothing else.
    """

    def __init__(self, inner: Port, path: Path, most_bytes: int) -> None:
        super().__init__(inner.name, inner.vnet)
        self._inner = inner
        self.counters = inner.counters
        self.counters |= {"traced": 0, "trace_failed": 0}
        self._path, self._most = path, most_bytes // 2
        self._file: FileIO | None = None
        try:
            self._begin()
        except OSError as error:
            kind = PortPermissionError if isinstance(error, PermissionError) else PortError
            raise kind(f"{inner.name}.trace = {path}: {error.strerror}; choose another file") from error

    def _begin(self) -> None:
        if self._file is not None:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.old"))
        self._file = FileIO(self._path, "w")
        self._writer = PcapngWriter(self._file, interfaces=(f"{self.name} in", f"{self.name} out"))
        self._size = self._file.tell()

    def _note(self, batch: Batch, interface: int) -> None:
        if self._file is None:
            return
        plain, now = convert(batch, 0), time.time_ns()
        data = memoryview(plain.data)
        try:
            for start, end in plain.spans():
                record = self._writer.record(data[start:end], now, interface=interface)
                if self._size + len(record) > self._most:
                    self._begin()
                self._file.write(record)
                self._size += len(record)
                self.counters["traced"] += 1
        except OSError:
            self.counters["trace_failed"] += 1
            self._file.close()
            self._file = None

    def fileno(self) -> int:
        """The inner port's."""
        return self._inner.fileno()

    def read(self) -> Batch | Event | None:
        """See Port."""
        item = self._inner.read()
        if isinstance(item, Batch):
            self._note(item, _IN)
        return item

    def write(self, batch: Batch) -> None:
        """See Port."""
        self._note(batch, _OUT)
        self._inner.write(batch)

    def exhausted(self) -> bool:
        """See Port."""
        return self._inner.exhausted()

    def close(self) -> None:
        """Close both."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._inner.close()
