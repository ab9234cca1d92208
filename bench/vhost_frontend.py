"""What stands at the other end of vhost-user in tests and measurements: a front-end, and its guest's driver.

Both are written from the specifications (virtio 1.2 §2.7, QEMU's `docs/interop/vhost-user.rst`), byte by
byte, and share no code with what they test.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

GUEST_START = 0x1_0000_0000
USER_START = 0x7F00_0000_0000
SIZE = 1 << 20
RING_SIZE = 64
PAGE = 4096

CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF = 0, 1, 7, 11, 15
LOG_ALL, INDIRECT, EVENT_IDX, PROTOCOL, VERSION_1 = 26, 28, 29, 30, 32
GUEST_USO4, GUEST_USO6, HOST_USO = 54, 55, 56
USUAL = sum(
    1 << bit for bit in (CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF, INDIRECT, EVENT_IDX, PROTOCOL, VERSION_1)
)

NEXT, WRITE, IS_INDIRECT = 1, 2, 4


class Arena:
    """Memory that is shared, with a canary on both sides in the same file."""

    def __init__(self, size: int = SIZE) -> None:
        self.fd = os.memfd_create("arena")
        self.size = size
        os.ftruncate(self.fd, size + 2 * PAGE)
        self.whole = mmap.mmap(self.fd, size + 2 * PAGE)
        self.whole[:PAGE] = self.whole[PAGE + size :] = b"\xa5" * PAGE
        self.offset = PAGE

    def write(self, address: int, data: bytes) -> None:
        at = PAGE + address - GUEST_START
        self.whole[at : at + len(data)] = data

    def read(self, address: int, size: int) -> bytes:
        at = PAGE + address - GUEST_START
        return self.whole[at : at + size]

    def untouched(self) -> bool:
        """Whether both canaries live."""
        return self.whole[:PAGE] == self.whole[PAGE + self.size :] == b"\xa5" * PAGE

    def close(self) -> None:
        self.whole.close()
        os.close(self.fd)


class Driver:
    """The guest's half of one split virtqueue, of `size` descriptors at `start`."""

    def __init__(self, arena: Arena, start: int, size: int = RING_SIZE, base: int = 0) -> None:
        self.arena, self.size = arena, size
        self.desc = start
        self.avail = start + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) & ~3
        self.index = self.seen = base
        arena.write(self.avail, bytes(6 + 2 * size))
        arena.write(self.used, bytes(6 + 8 * size))
        arena.write(self.avail + 2, struct.pack("<H", base))
        arena.write(self.used + 2, struct.pack("<H", base))

    def describe(self, n: int, address: int, size: int, flags: int = 0, following: int = 0) -> None:
        self.arena.write(self.desc + 16 * n, struct.pack("<QIHH", address, size, flags, following))

    def offer(self, *heads: int) -> None:
        for head in heads:
            self.arena.write(self.avail + 4 + 2 * (self.index % self.size), struct.pack("<H", head))
            self.index = (self.index + 1) & 0xFFFF
        self.show(self.index)

    def show(self, index: int) -> None:
        self.arena.write(self.avail + 2, struct.pack("<H", index))

    def used_index(self) -> int:
        return int(struct.unpack("<H", self.arena.read(self.used + 2, 2))[0])

    def flags(self) -> int:
        return int(struct.unpack("<H", self.arena.read(self.used, 2))[0])

    def avail_event(self) -> int:
        return int(struct.unpack("<H", self.arena.read(self.used + 4 + 8 * self.size, 2))[0])

    def want_interrupt_at(self, index: int) -> None:
        self.arena.write(self.avail + 4 + 2 * self.size, struct.pack("<H", index))

    def returned(self) -> list[tuple[int, int]]:
        """`(head, bytes written)` of what was used since this was last asked."""
        found = []
        while self.seen != self.used_index():
            place = self.used + 4 + 8 * (self.seen % self.size)
            found.append(struct.unpack("<II", self.arena.read(place, 8)))
            self.seen = (self.seen + 1) & 0xFFFF
        return found

    def parts(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Address and bytes of descriptors, available and used ring."""
        return (self.desc, 16 * self.size), (self.avail, 6 + 2 * self.size), (self.used, 6 + 8 * self.size)


class FrontEnd:
    """A connection to a back-end; `turn` lets the back-end do what was asked."""

    def __init__(self, path: Path, turn: Callable[[], object]) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.setblocking(False)
        self._turn = turn
        self.kicks: dict[int, int] = {}
        self.calls: dict[int, int] = {}
        turn()

    def send(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 1) -> None:
        message = struct.pack("<III", request, flags, len(payload)) + payload
        socket.send_fds(self.socket, [message], list(fds))
        self._turn()

    def ask(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 1) -> bytes:
        """The payload of the answer."""
        self.send(request, payload, fds, flags)
        answer = self.socket.recv(4096)
        number, said, size = struct.unpack_from("<III", answer)
        assert (number, said, size) == (request, 5, len(answer) - 12)
        return answer[12:]

    def ended(self) -> bool:
        """Whether the back-end has hung up."""
        try:
            while self.socket.recv(4096):  # answers that nobody asked for
                pass
            return True
        except ConnectionResetError:
            return True
        except BlockingIOError:
            return False

    def begin(self, arena: Arena, features: int = USUAL, protocol: int = 1 << 3) -> None:
        """Features, protocol features and memory."""
        self.send(3)
        if features >> PROTOCOL & 1:
            self.send(16, struct.pack("<Q", protocol))
        self.send(2, struct.pack("<Q", features))
        self.share(arena)

    def share(self, arena: Arena) -> None:
        region = struct.pack("<QQQQ", GUEST_START, arena.size, USER_START, arena.offset)
        self.send(5, struct.pack("<II", 1, 0) + region, (arena.fd,))

    def start(self, index: int, driver: Driver, base: int = 0, log: int | None = None) -> None:
        """Set a ring up, and switch it on."""
        self.send(8, struct.pack("<II", index, driver.size))
        self.send(10, struct.pack("<II", index, base))
        self.place(index, driver, log)
        self.kicks[index] = os.eventfd(0, os.EFD_NONBLOCK)
        self.calls[index] = os.eventfd(0, os.EFD_NONBLOCK)
        self.send(13, struct.pack("<Q", index), (self.calls[index],))
        self.send(12, struct.pack("<Q", index), (self.kicks[index],))
        self.send(18, struct.pack("<II", index, 1))

    def place(self, index: int, driver: Driver, log: int | None = None) -> None:
        user = [USER_START + address - GUEST_START for address in (driver.desc, driver.used, driver.avail)]
        self.send(9, struct.pack("<IIQQQQ", index, log is not None, *user, log or 0))

    def stop(self, index: int) -> int:
        """GET_VRING_BASE: the ring's next index."""
        number, base = struct.unpack("<II", self.ask(11, struct.pack("<II", index, 0)))
        assert number == index
        return int(base)

    def kick(self, index: int) -> None:
        os.eventfd_write(self.kicks[index], 1)

    def called(self, index: int) -> bool:
        """Whether the guest was interrupted since this was last asked."""
        try:
            return os.eventfd_read(self.calls[index]) > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.socket.close()
        for fd in (*self.kicks.values(), *self.calls.values()):
            os.close(fd)
        self.kicks.clear()
        self.calls.clear()
