"""What frames and messages travel on: a link's two sockets, and the way between a host and a port."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zmq

from lockstep.link import zmq as links
from sim.scenario import CALM, Way

if TYPE_CHECKING:
    from sim.process import Process
    from sim.world import World


@dataclass(frozen=True, slots=True)
class Part:
    """Stands in for a zmq.Frame."""

    bytes: bytes
    more: bool

    def __len__(self) -> int:
        return len(self.bytes)

    @property
    def buffer(self) -> memoryview:
        """See zmq.Frame."""
        return memoryview(self.bytes)


class Wire:
    """The two sockets of a link: `Sender` and `Receiver` take it for theirs."""

    def __init__(self, world: World, stream: str) -> None:
        self.world, self.faults = world, world.scenario.links[stream]
        self.queue: deque[tuple[float, tuple[bytes, bytes]]] = deque()
        self.last = 0.0
        self.first = b""
        self.rest: bytes | None = None
        self.producer: Process | None = None
        self.consumer: Process | None = None

    def socket(self, kind: int) -> Wire:
        """Stands in for a ZeroMQ context as well."""
        return self

    def setsockopt(self, *_: object) -> None:
        """See zmq.Socket."""

    connect = bind = close = setsockopt

    def send(self, part: Any, flags: int, copy: bool = True) -> None:
        """Queue the two parts of a message, or raise Again at the first if the link is full."""
        if flags & zmq.SNDMORE:
            if len(self.queue) >= self.faults.hwm:
                raise zmq.Again
            self.first = bytes(part)
            return
        now = self.world.now
        when = max(self.last, now + self.faults.delay + self.world.chance.random() * self.faults.jitter)
        for begin, end in self.faults.stalls:
            if begin <= when < end:
                when = end
        self.last = when
        self.queue.append((when, (self.first, bytes(part))))
        if self.consumer is not None:
            self.consumer.wake(when)

    def recv(self, flags: int, copy: bool = True) -> Part:
        """The parts of the next message that has arrived, one by one, or Again."""
        if self.rest is not None:
            part, self.rest = Part(self.rest, more=False), None
            return part
        if not self.queue or self.queue[0][0] > self.world.now:
            raise zmq.Again
        if self.producer is not None and len(self.queue) == self.faults.hwm:
            self.producer.wake(self.world.now)
        first, self.rest = self.queue.popleft()[1]
        return Part(first, more=True)

    def arrives(self) -> float | None:
        """When the next message does."""
        return self.queue[0][0] if self.queue else None

    def producer_dies(self) -> None:
        """What had not yet left the producer is lost: the end of the queue."""
        for _ in range(self.world.chance.randint(0, len(self.queue))):
            self.queue.pop()

    def consumer_dies(self) -> None:
        """What had already reached the consumer is lost: the beginning of the queue."""
        for _ in range(self.world.chance.randint(0, len(self.queue))):
            self.queue.popleft()


# They call libzmq's functions directly; here a `Wire` is what they are called with.
links._send, links._receive = Wire.send, Wire.recv


class Pipe:
    """Frames on their way between a host and a port."""

    def __init__(self, world: World, way: Way, arrive: Callable[[bytes, int], None]) -> None:
        self.world, self.way, self.arrive = world, way, arrive
        self.under_way: dict[int, tuple[bytes, int]] = {}
        self._next = 0
        self._last = 0.0

    def send(self, raw: bytes, vnet: int) -> None:
        """Lose it, double it, delay it."""
        way, chance = self.way, self.world.chance
        copies = 1
        faulty = self.world.now < CALM
        if faulty:
            if way.loss and chance.random() < way.loss:
                return
            copies += bool(way.twice) and chance.random() < way.twice
        for _ in range(copies):
            delay = way.delay + (way.jitter * chance.random() if way.jitter else 0.0)
            when = max(self.world.now + delay, self._last)
            if faulty and way.late and chance.random() < way.late:
                when += chance.random() * 0.03  # and others overtake it
            else:
                self._last = when
            self._next += 1
            self.under_way[self._next] = raw, vnet
            self.world.at(when, self._arrived, self._next)

    def _arrived(self, number: int) -> None:
        frame = self.under_way.pop(number, None)
        if frame is not None:
            self.arrive(*frame)

    def drain(self) -> None:
        """Everything arrives now."""
        for number in list(self.under_way):
            self._arrived(number)

    def clear(self) -> None:
        """Nothing of it arrives."""
        self.under_way.clear()
