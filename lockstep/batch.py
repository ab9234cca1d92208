"""A batch: Ethernet frames end to end in one buffer, and their lengths.

This is the only shape in which frames move: from a port into a core, from a core into a link.
A batch holds what was waiting, up to `MAX_BATCH` bytes; nobody waits to fill one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

Buffer = bytes | bytearray | memoryview

#: Most bytes of frames in a batch that we send.
MAX_BATCH = 1 << 20
#: Longest Ethernet frame without its virtio-net header: 64 KiB of IP, Ethernet, two VLAN tags.
MAX_FRAME = 65536 + 14 + 8
#: Allowed sizes of the virtio-net header in front of each frame.
VNET_SIZES = (0, 10, 12)


class Batch:
    """Frames in one buffer.

    data: the frames end to end, each with its `vnet` bytes of virtio-net header first. It never changes,
    unless it is a writable memoryview: that is a port's buffer, valid until the port's next `read`.
    lengths: bytes of each, virtio-net header included, as `array('I')`.
    vnet: 0, 10 or 12.
    epoch: the epoch its producer stamped, for a batch that came over a link.
    """

    __slots__ = ("data", "epoch", "lengths", "vnet")

    def __init__(self, data: Buffer, lengths: array[int], vnet: int = 0, epoch: int = 0) -> None:
        self.data = data
        self.lengths = lengths
        self.vnet = vnet
        self.epoch = epoch

    @classmethod
    def of(cls, frames: Iterable[Buffer], vnet: int = 0, epoch: int = 0) -> Batch:
        """A batch of separate frames, each with its virtio-net header if `vnet` says so."""
        parts = list(frames)
        return cls(b"".join(parts), array("I", map(len, parts)), vnet, epoch)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def stable(self) -> bool:
        """Whether `data` never changes, so that it can be kept without a copy."""
        return not isinstance(self.data, memoryview) or self.data.readonly

    def __repr__(self) -> str:
        return f"Batch({len(self.lengths)} frames, {len(self.data)} bytes, vnet={self.vnet}, epoch={self.epoch})"

    def spans(self) -> Iterator[tuple[int, int]]:
        """`(start, end)` of each frame in `data`, virtio-net header included."""
        start = 0
        for length in self.lengths:
            end = start + length
            yield start, end
            start = end

    def frames(self) -> list[bytes]:
        """Every frame as bytes of its own, virtio-net header included. For tests and files."""
        return [bytes(self.data[start:end]) for start, end in self.spans()]


class BatchBuilder:
    """Collects frames into batches: a new batch where the virtio-net size changes or one is full."""

    __slots__ = ("_batches", "_data", "_lengths", "_vnet")

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._data = bytearray()
        self._lengths = array("I")
        self._vnet = 0

    def __bool__(self) -> bool:
        return bool(self._lengths or self._batches)

    def append(self, frame: Buffer, vnet: int) -> None:
        """Add one frame; `vnet` bytes of it are its virtio-net header."""
        if vnet != self._vnet or len(self._data) + len(frame) > MAX_BATCH:
            self._close()
            self._vnet = vnet
        self._data += frame
        self._lengths.append(len(frame))

    def extend(self, batch: Batch, first: int, last: int) -> None:
        """Add frames `first` to `last` (excluded) of a batch, in one copy where they fit."""
        if first >= last:
            return
        start = sum(batch.lengths[:first])
        self.extend_from(batch, first, last, start, start + sum(batch.lengths[first:last]))

    def extend_from(self, batch: Batch, first: int, last: int, start: int, end: int) -> None:
        """`extend` for frames that are known to lie at `start` to `end` of the batch's data."""
        if batch.vnet != self._vnet or len(self._data) + end - start > MAX_BATCH:
            self._close()
            self._vnet = batch.vnet
        self._data += batch.data[start:end]
        self._lengths.extend(batch.lengths[first:last])

    def take(self) -> list[Batch]:
        """What was collected, in order; the builder is empty after it."""
        self._close()
        batches, self._batches = self._batches, []
        return batches

    def _close(self) -> None:
        if self._lengths:
            self._batches.append(Batch(self._data, self._lengths, self._vnet))
            self._data = bytearray()
            self._lengths = array("I")
