"""The `memory` frontend: two ports joined back to back inside one process, for tests and fused runs."""

from __future__ import annotations

import os
from collections import deque

from lockstep.batch import Batch
from lockstep.capture.base import Port
from lockstep.wire.vnet import convert

#: Batches that wait at one end before further ones are dropped, as a device's queue would.
QUEUE = 1024


class MemoryPort(Port):
    """One end; what is written to it is read at the other. Make both with `pair`."""

    def __init__(self, name: str, vnet: int = 0) -> None:
        super().__init__(name, vnet)
        self._waiting: deque[Batch] = deque()
        self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._peer: MemoryPort | None = None

    def fileno(self) -> int:
        """An eventfd that is readable while batches wait."""
        return self._signal

    def read(self) -> Batch | None:
        """The oldest waiting batch."""
        if not self._waiting:
            return None
        batch = self._waiting.popleft()
        if not self._waiting:
            os.eventfd_read(self._signal)
        return self.count_in(batch)

    def write(self, batch: Batch) -> None:
        """Hand a copy to the other end, or drop it where nobody reads."""
        peer = self._peer
        if peer is None or len(peer._waiting) >= QUEUE:
            self.counters["dropped_out"] += len(batch)
            return
        batch = convert(batch, peer.vnet)
        if not peer._waiting:
            os.eventfd_write(peer._signal, 1)
        peer._waiting.append(Batch(bytes(batch.data), batch.lengths[:], batch.vnet))
        self.counters["frames_out"] += len(batch)
        self.counters["bytes_out"] += len(batch.data)

    def close(self) -> None:
        """Part the two ends."""
        if self._peer is not None:
            self._peer._peer = None
            self._peer = None
        if self._signal >= 0:
            os.close(self._signal)
            self._signal = -1


def pair(name: str, vnet: int = 0) -> tuple[MemoryPort, MemoryPort]:
    """Two ports, `name` and `name'`; what goes into one comes out of the other."""
    near, far = MemoryPort(name, vnet), MemoryPort(f"{name}'", vnet)
    near._peer, far._peer = far, near
    return near, far
