"""What every capture frontend is: a port, the two-way end through which frames come and go."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lockstep.batch import Batch
from lockstep.streams import Event


class PortError(Exception):
    """A port can't be opened or used as configured. Its text names the setting and the way out."""


class PortPermissionError(PortError):
    """The port exists but this process may not open it (exit code 77)."""


class Port(ABC):
    """A capture frontend's two-way end.

    name: whose port it is, as in the configuration: `mirror.guest`.
    vnet: bytes of virtio-net header in front of each frame that `read` gives. `write` takes any.
    counters: `frames_in`, `bytes_in`, `frames_out`, `bytes_out`, `dropped_out`; plain integers.
    """

    def __init__(self, name: str, vnet: int = 0) -> None:
        self.name = name
        self.vnet = vnet
        self.counters = {"frames_in": 0, "bytes_in": 0, "frames_out": 0, "bytes_out": 0, "dropped_out": 0}

    @abstractmethod
    def fileno(self) -> int:
        """A descriptor that is readable while `read` has something to give."""

    @abstractmethod
    def read(self) -> Batch | Event | None:
        """The frames that are waiting, at most `MAX_BATCH` bytes of them; None when there is none.

        An event stands at its exact place among the frames: those read before it came before it.
        """

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Send frames out, in order, without blocking. What can't be sent is dropped and counted."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the port holds. Closing twice is allowed."""

    def exhausted(self) -> bool:
        """True once nothing will ever be read again (the end of a file)."""
        return False

    def count_in(self, batch: Batch) -> Batch:
        """Count a batch that was read, and hand it on."""
        self.counters["frames_in"] += len(batch.lengths)
        self.counters["bytes_in"] += len(batch.data)
        return batch
