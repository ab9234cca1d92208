"""QEMU's colo-compare alone, without any guest: three unix sockets, each frame behind its length."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.program import START, BenchError
from bench.subject import SILENCE, STALL, Fed, Subject
from bench.traffic import Traffic

QEMU = "qemu-system-x86_64"
#: Bytes given to one input before the other gets its turn, and how far one may run ahead.
_CHUNK, _AHEAD = 64 << 10, 256 << 10
#: SS_CONNECTED, as /proc/net/unix has it.
_CONNECTED = "03"


class ColoCompare(Subject):
    """`-object colo-compare` with the queue wide enough that nothing is dropped for its sake."""

    def __init__(self) -> None:
        super().__init__()
        self._sockets: list[socket.socket] = []
        self._buffered = bytearray()
        self._came = 0

    def command(self) -> Sequence[str | Path]:
        """See Program."""
        chardevs = [
            part
            for name in ("p", "s", "o")
            for part in ("-chardev", f"socket,id={name},path={self.folder}/{name},server=on,wait=off")
        ]
        compare = "colo-compare,id=c0,primary_in=p,secondary_in=s,outdev=o,iothread=io"
        limits = "compare_timeout=60000,max_queue_size=100000"
        nothing = ("-machine", "none", "-nodefaults", "-display", "none", "-object", "iothread,id=io")
        return [QEMU, *nothing, *chardevs, "-object", f"{compare},{limits}"]

    def connect(self) -> None:
        """See Program."""
        paths = [self.folder / name for name in ("p", "s", "o")]
        if not all(path.exists() for path in paths):
            raise ConnectionError("it has not bound its sockets yet")
        self._sockets = []
        for path in paths:
            end = socket.socket(socket.AF_UNIX)
            self._sockets.append(end)
            end.connect(str(path))
            end.setblocking(False)
        # Until QEMU has accepted, what it wants to send is dropped.
        until = time.monotonic() + START
        while not all(_accepted(path) for path in paths):
            if time.monotonic() > until:
                raise BenchError("QEMU does not accept connections")
            time.sleep(0.01)

    def disconnect(self) -> None:
        """See Program."""
        for end in self._sockets:
            end.close()

    @classmethod
    def prepare(cls, traffic: Traffic, most: int) -> tuple[bytes, bytes]:
        """The bytes for both inputs."""
        return traffic.framed(traffic.opening), traffic.framed(traffic.measured)

    @classmethod
    def wanted(cls, traffic: Traffic) -> tuple[bytes, bytes]:
        """See Subject."""
        return cls.prepare(traffic, 0)

    def feed(self, prepared: bytes, expected: int) -> Fed:
        """See Subject."""
        ins, out = self._sockets[:2], self._sockets[2]
        data, size = memoryview(prepared), len(prepared)
        output = bytearray()
        buffer = memoryview(bytearray(1 << 20))
        done = [0, 0]
        writing = [False, False]
        ended = began = time.perf_counter()
        with select.epoll() as poller:
            poller.register(out, select.EPOLLIN)
            while True:
                for which, end in enumerate(ins):
                    may = done[which] < size and done[which] <= done[1 - which] + _AHEAD
                    if may != writing[which]:
                        (poller.register(end, select.EPOLLOUT) if may else poller.unregister(end))
                        writing[which] = may
                ready = poller.poll(STALL if len(output) < expected else SILENCE)
                if not ready:
                    return Fed(ended - began, output, len(output) < expected, partial(_split, output))
                for fd, _ in ready:
                    if fd == out.fileno():
                        more = out.recv_into(buffer)
                        if not more:
                            raise BenchError("QEMU closed its output")
                        output += buffer[:more]
                        ended = time.perf_counter()
                        continue
                    which = 0 if fd == ins[0].fileno() else 1
                    at = done[which]
                    done[which] += ins[which].send(data[at : at + _CHUNK])

    def singles(self, traffic: Traffic, each: int, *, opening: bool = False) -> list[bytes]:
        """See Subject."""
        framed = traffic.framed(traffic.opening if opening else traffic.measured)
        step = each * (4 + traffic.size)
        return [framed[at : at + step] for at in range(0, len(framed), step)]

    def put(self, side: int, group: bytes) -> None:
        """See Subject."""
        view = memoryview(group)
        while view:
            try:
                view = view[self._sockets[side].send(view) :]
            except BlockingIOError:
                select.select([], [self._sockets[side]], [], STALL)

    def take(self, size: int, timeout: float) -> int:
        """See Subject. Lengths don't count."""
        out = self._sockets[2]
        while select.select([out], [], [], timeout if self._came < size else 0)[0]:
            self._buffered += out.recv(1 << 20)
            while len(self._buffered) >= 4:
                end = 4 + int.from_bytes(self._buffered[:4], "big")
                if len(self._buffered) < end:
                    break
                del self._buffered[:end]
                self._came += end - 4
            if 0 < size <= self._came:
                break
        came, self._came = (self._came, 0) if self._came >= size else (0, self._came)
        return came


def _split(framed: bytearray) -> list[bytes]:
    """The frames in what a chardev gave."""
    frames = []
    at = 0
    while at + 4 <= len(framed):
        end = at + 4 + int.from_bytes(framed[at : at + 4], "big")
        frames.append(bytes(framed[at + 4 : end]))
        at = end
    return frames


def _accepted(path: Path) -> bool:
    """Whether the server behind this path has accepted a connection: before, its end is no file (inode 0)."""
    ends = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(end[-1] == str(path) and end[5] == _CONNECTED and end[6] != "0" for end in ends)
