"""Our comparer as users run it: a process of its own, fed over ipc. And, for scale, a bare relay in its place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Literal

import zmq

from bench.program import python
from bench.subject import SILENCE, STALL, Fed, Subject
from bench.traffic import Traffic
from lockstep.batch import Batch
from lockstep.control import ControlError, request
from lockstep.link.envelope import BOOT_BYTES, Message, decode, encode
from lockstep.streams import DIGESTS, PRIMARY, RELEASED, SECONDARY
from services.comparer.core import MADE
from services.redirector.digest import Digester, new_secret

#: Bytes of frames that are under way at most: neither side runs ahead of the other by more.
WINDOW = 8 << 20

Pair = tuple[tuple[zmq.Frame, zmq.Frame], tuple[zmq.Frame, zmq.Frame]]


class ZmqSubject(Subject):
    """Takes `primary` and `secondary`, gives `released`."""

    def __init__(self) -> None:
        super().__init__()
        self._context = zmq.Context()
        self._primary = self._context.socket(zmq.PUSH)
        self._secondary = self._context.socket(zmq.PUSH)
        self._released = self._context.socket(zmq.PULL)
        for socket in (self._primary, self._secondary, self._released):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDTIMEO, round(STALL * 1000))
        self._released.bind(self.endpoint(RELEASED))
        self._primary.connect(self.endpoint(PRIMARY))
        self._secondary.connect(self.endpoint(SECONDARY))

    def endpoint(self, stream: str) -> str:
        """Where a stream's link lies."""
        return f"ipc://{self.folder}/{stream}"

    def disconnect(self) -> None:
        """See Program."""
        self._context.destroy(linger=0)

    @classmethod
    def prepare(cls, traffic: Traffic, most: int) -> tuple[list[Pair], list[Pair]]:
        """Messages for both inputs, as the mirror and the redirector send them."""
        boot, numbers = os.urandom(BOOT_BYTES), count()
        said = cls.said()
        opening, measured = (
            [_pair(boot, next(numbers), batch, *said(batch)) for batch in traffic.batches(frames, most)]
            for frames in (traffic.opening, traffic.measured)
        )
        return opening, measured

    @classmethod
    def said(cls) -> Callable[[Batch], tuple[str, Batch]]:
        """What the redirector sends of a batch, and as which stream."""
        return lambda batch: (SECONDARY, batch)

    def feed(self, prepared: Sequence[Pair], expected: int) -> Fed:
        """See Subject."""
        messages: list[list[zmq.Frame]] = []
        sent = came = 0
        waiting = iter(prepared)
        following = next(waiting, None)
        ended = began = time.perf_counter()
        while True:
            while following is not None and sent - came < WINDOW:
                primary, secondary = following
                self._primary.send_multipart(primary, copy=False)
                self._secondary.send_multipart(secondary, copy=False)
                sent += len(primary[1])
                following = next(waiting, None)
            if not self._released.poll(round(1000 * (STALL if came < expected else SILENCE))):
                output = b"".join(frames.buffer for _, frames in messages)
                return Fed(ended - began, output, came < expected, lambda: _split(messages))
            while self._released.poll(0):
                messages.append(self._released.recv_multipart(copy=False))
                came += len(messages[-1][1])
            ended = time.perf_counter()

    def singles(self, traffic: Traffic, each: int, *, opening: bool = False) -> list[Pair]:
        """See Subject."""
        if opening:
            self._prepared = self.prepare(traffic, each * traffic.size)
        return self._prepared[0 if opening else 1]

    def put(self, side: int, group: Pair) -> None:
        """See Subject."""
        (self._primary, self._secondary)[side].send_multipart(group[side], copy=False)

    def take(self, size: int, timeout: float) -> int:
        """See Subject."""
        came = 0
        while self._released.poll(round(timeout * 1000) if came < size else 0):
            came += len(self._released.recv_multipart(copy=False)[1])
            if 0 < size <= came:
                break
        return came if came >= size else 0


def _split(messages: list[list[zmq.Frame]]) -> list[bytes]:
    """The frames in these messages."""
    items = (decode([part.bytes for part in message]).item for message in messages)
    return [each for item in items if isinstance(item, Batch) for each in item.frames()]


def _pair(boot: bytes, number: int, batch: Batch, stream: str, said: Batch) -> Pair:
    sides = ((PRIMARY, batch), (stream, said))
    both = (encode(Message(stream, boot, 0, number, item)) for stream, item in sides)
    primary, secondary = (tuple(zmq.Frame(part, copy=False) for part in parts) for parts in both)
    return primary, secondary  # type: ignore[return-value]


class Comparer(ZmqSubject):
    """The comparer service. A divergence holds its flow, so whatever was released was proven."""

    secondary = "frames"

    def command(self) -> Sequence[str | Path]:
        """See Program."""
        config = self.folder / "node.toml"
        config.write_text(
            f'run_dir = "{self.folder}"\nservices = ["comparer"]\n'
            f'[comparer]\nsecondary = "{self.secondary}"\non_divergence = "hold"\ncompare_timeout = 60.0\n'
            '[log]\nlevel = "warning"\n'
        )
        return [*python("services.comparer"), "-c", config]

    def connect(self) -> None:
        """See Program."""
        self._status()

    def _status(self) -> dict[str, object]:
        try:
            return request(f"ipc://{self.folder}/comparer.control", "status", 1.0)
        except ControlError as error:
            raise ConnectionError(str(error)) from error

    def complaints(self) -> list[str]:
        """Its own counters of what must not happen here, and of frames it made."""
        counters = self._status()["counters"]
        assert isinstance(counters, dict)
        return [f"{name} = {counters[name]:,}" for name in ("divergences", "unchecked", *MADE) if counters.get(name)]


class DigestComparer(Comparer):
    """The same in digest mode."""

    secondary = "digest"
    hash: Literal["blake2b", "xxh3"] = "xxh3"

    @classmethod
    def said(cls) -> Callable[[Batch], tuple[str, Batch]]:
        """See ZmqSubject."""
        digester = Digester(new_secret(cls.hash))
        return lambda batch: (DIGESTS, digester.records(batch))


class Blake2bComparer(DigestComparer):
    """With the hash that is the default."""

    hash = "blake2b"


class Relay(ZmqSubject):
    """Nothing but ZeroMQ: `python -m bench.relay` passes on what it gets on `primary`."""

    first = 1

    def command(self) -> Sequence[str | Path]:
        """See Program."""
        return [*python("bench.relay"), *(self.endpoint(stream) for stream in (PRIMARY, SECONDARY, RELEASED))]

    def connect(self) -> None:
        """See Program."""
        if not (self.folder / SECONDARY).exists():
            raise ConnectionError("it has not bound its sockets yet")
