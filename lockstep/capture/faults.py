"""The decorator `faults`: a bad wire on purpose, by a seed, where the kernel has no netem.

Each frame, in either direction, may be lost, come late, come twice, come after later ones, or have one
bit turned over. The same seed and the same frames give the same faults. A frame with a wrong bit goes
as it would on a wire: its checksum complete before the bit turns, and a super-frame cut.
"""

from __future__ import annotations

import heapq
import math
import random
import select
import time
from dataclasses import dataclass

from lockstep.batch import MAX_BATCH, Batch
from lockstep.capture.base import Port
from lockstep.streams import Event
from lockstep.timer import Timer
from lockstep.wire import ethernet, gso

#: Seconds that a frame which is overtaken comes later.
OVERTAKEN = 0.002
#: Frames that wait in one direction, at most; further ones are lost.
MOST_WAITING = 16_384


@dataclass(frozen=True, slots=True)
class Rates:
    """Probabilities from 0 to 1 for each frame, and the seconds by which every frame is late."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0


class Wire:
    """One direction, without clock or port: frames in, frames out when they are due."""

    def __init__(self, rates: Rates, seed: str, counters: dict[str, int]) -> None:
        self._rates, self._random, self._counters = rates, random.Random(seed), counters
        #: (when, number, frame, its virtio-net header's size)
        self._waiting: list[tuple[float, int, bytes, int]] = []
        self._number = 0

    def put(self, batch: Batch, now: float) -> None:
        """Take frames, with what befalls each."""
        for frame in batch.frames():
            if self._befalls(self._rates.loss, "faults_lost"):
                continue
            parts = [frame]
            if self._befalls(self._rates.corrupt, "faults_corrupted"):
                parts = self._corrupted(frame, batch.vnet)
            copies = 2 if self._befalls(self._rates.duplicate, "faults_duplicated") else 1
            late = OVERTAKEN if self._befalls(self._rates.reorder, "faults_reordered") else 0.0
            for part in parts * copies:
                if len(self._waiting) >= MOST_WAITING:
                    self._counters["faults_lost"] += 1
                    continue
                heapq.heappush(self._waiting, (now + self._rates.delay + late, self._number, part, batch.vnet))
                self._number += 1

    def due(self, now: float) -> Batch | None:
        """Frames whose time has come, of one size of header, MAX_BATCH bytes at most."""
        frames: list[bytes] = []
        size = kept = 0
        while self._waiting and self._waiting[0][0] <= now:
            _, _, frame, vnet = self._waiting[0]
            if frames and (vnet != kept or size + len(frame) > MAX_BATCH):
                break
            kept = vnet
            frames.append(frame)
            size += len(frame)
            heapq.heappop(self._waiting)
        return Batch.of(frames, kept) if frames else None

    def next(self) -> float | None:
        """When the next frame is due."""
        return self._waiting[0][0] if self._waiting else None

    def _befalls(self, rate: float, counter: str) -> bool:
        hit = self._random.random() < rate
        self._counters[counter] += hit
        return hit

    def _corrupted(self, frame: bytes, vnet: int) -> list[bytes]:
        """The frame, or the segments of a super-frame, one bit of it turned over behind the Ethernet header."""
        parts = [bytearray(part) for part in gso.plain(Batch.of([frame], vnet))[0].frames()]
        if not parts:
            return []
        part = self._random.choice(parts)
        bits = range(8 * min(ethernet.HEADER, len(part) - 1), 8 * len(part))
        bit = self._random.choice(bits)
        part[bit // 8] ^= 1 << bit % 8
        return [bytes(vnet) + bytes(one) for one in parts]


class FaultsPort(Port):
    """A port around another, with a bad wire each way."""

    def __init__(self, inner: Port, rates: Rates, seed: int) -> None:
        super().__init__(inner.name, inner.vnet)
        self._inner = inner
        self.counters = inner.counters
        names = ("lost", "duplicated", "reordered", "corrupted")
        self.counters |= dict.fromkeys((f"faults_{name}" for name in names), 0)
        self._in = Wire(rates, f"{seed} {inner.name} in", self.counters)
        self._out = Wire(rates, f"{seed} {inner.name} out", self.counters)
        #: Something of the inner port's that all frames before it go in front of.
        self._event: Event | None = None
        self._timer = Timer()
        self._epoll = select.epoll()
        self._epoll.register(inner.fileno(), select.EPOLLIN)
        self._epoll.register(self._timer, select.EPOLLIN)

    def fileno(self) -> int:
        """Readable when the inner port is, and when a frame is due."""
        return self._epoll.fileno()

    def read(self) -> Batch | Event | None:
        """Frames that came and are due. Sends those that are due the other way as well.

        An event keeps its exact place: what came before it is due at once.
        """
        now = time.monotonic()
        self._timer.take()
        if self._event is None:
            item = self._inner.read()
            if isinstance(item, Event):
                self._event = item
            elif item is not None:
                self._in.put(item, now)
        self._send(now)
        due: Batch | Event | None = self._in.due(now if self._event is None else math.inf)
        if due is None:
            due, self._event = self._event, None
        self._rewind(now)
        return due

    def write(self, batch: Batch) -> None:
        """Send frames, now or when they are due."""
        now = time.monotonic()
        self._out.put(batch, now)
        self._send(now)
        self._rewind(now)

    def _send(self, now: float) -> None:
        while (batch := self._out.due(now)) is not None:
            self._inner.write(batch)

    def _rewind(self, now: float) -> None:
        moments = [moment for wire in (self._in, self._out) if (moment := wire.next()) is not None]
        if self._event is not None:
            moments.append(now)
        if moments:
            self._timer.set(min(moments) - now)

    def exhausted(self) -> bool:
        """See Port; what still waits comes first."""
        return self._inner.exhausted() and self._in.next() is None

    def close(self) -> None:
        """Close both; what still waits is lost."""
        if not self._epoll.closed:
            self._epoll.close()
            self._timer.close()
            self._inner.close()
