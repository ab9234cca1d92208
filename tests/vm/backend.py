"""Back-ends alone, in this process, with a real guest each: no service, no client."""

from __future__ import annotations

import re
import select
import struct
import threading
import time
from pathlib import Path

from bench.vm.image import block
from lockstep.batch import Batch
from lockstep.capture.vhost_user import VhostUserPort
from lockstep.qemu.address import Address
from lockstep.streams import Event

#: An echo request carries this many blocks of so many bytes, each unlike every other: some of the guest's buffers.
BLOCKS, BLOCK = 32, 256
_TAG = b"lockstep %08d %02d "
#: Seconds between two requests.
_PACE = 0.015


class BackEnd:
    """A port, what it told, and the frames that the guest sent."""

    def __init__(self, path: Path, *, server: bool = True, queues: int = 1) -> None:
        self.port = VhostUserPort("mirror.guest", Address.parse(f"unix://{path}"), server, queues)
        self.events: list[str] = []
        self.frames: list[bytes] = []

    def turn(self) -> None:
        """Take all that is there."""
        while select.select([self.port], [], [], 0)[0]:
            item = self.port.read()
            if isinstance(item, Event):
                self.events.append(item.name)
            elif item is not None:
                self.frames += (frame[item.vnet :] for frame in item.frames())

    def answered(self) -> set[int]:
        """Numbers of the echo requests that the guest has answered."""
        found = (re.search(rb"lockstep (\d{8}) 00 ", frame) for frame in tuple(self.frames))
        return {int(one[1]) for one in found if one}


class Traffic(threading.Thread):
    """Turns back-ends, and once `flowing` gives whichever guest runs a numbered echo request now and then.

    `first_late` is the first number that was given after `late`. With `forgetful`, what is written into
    buffers is not logged, as a broken back-end would.
    untouched: guest-physical address and length of memory that nobody writes. While `holding`, the back-end
    logs it again and again, and so keeps a migration from coming to its end.
    """

    def __init__(self, *ends: BackEnd, forgetful: bool = False) -> None:
        super().__init__()
        self.ends, self.forgetful = ends, forgetful
        self.flowing, self.late, self.holding, self.ending = (threading.Event() for _ in range(4))
        self.untouched = (0, 0)
        self.given = 0
        self.first_late: int | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        due = time.monotonic()
        try:
            while not self.ending.is_set():
                select.select([end.port for end in self.ends], [], [], max(0.0, due - time.monotonic()))
                for end in self.ends:
                    end.turn()
                if time.monotonic() >= due:
                    due = time.monotonic() + _PACE
                    self._go_on()
        except BaseException as error:
            self.error = error

    def _go_on(self) -> None:
        for end in self.ends:
            session = end.port._session
            if session is None or end.events[-1:] != ["guest_started"]:
                continue
            if self.forgetful:
                session.memory.logging = False
            if self.holding.is_set():
                session.memory.mark(*self.untouched)
            if self.flowing.is_set():
                self._give(end)

    def _give(self, end: BackEnd) -> None:
        if self.late.is_set() and self.first_late is None:
            self.first_late = self.given
        end.port.write(Batch.of([echo(self.given)]))
        self.given += 1

    def end(self) -> None:
        self.ending.set()
        self.join()
        if self.error is not None:
            raise self.error


def tagged(number: int, n: int) -> bytes:
    """Block `n` of echo request `number`."""
    return (_TAG % (number, n) + block())[:BLOCK]


def echo(number: int, source: int = 1) -> bytes:
    """An ICMP echo request from 10.77.0.`source` to the guest."""
    payload = b"".join(tagged(number, n) for n in range(BLOCKS))
    icmp = bytearray(struct.pack(">BBHHH", 8, 0, 0, 1, number & 0xFFFF) + payload)
    icmp[2:4] = _checksum(icmp)
    header = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0x4000, 64, 1, 0))
    header += bytes([10, 77, 0, source, 10, 77, 0, 2])
    header[10:12] = _checksum(header)
    return bytes.fromhex("525400123456525400000001") + b"\x08\0" + bytes(header + icmp)


def _checksum(data: bytes | bytearray) -> bytes:
    """RFC 1071, of an even number of bytes that are not all zero."""
    return struct.pack(">H", ~(sum(struct.unpack(f">{len(data) // 2}H", data)) % 0xFFFF) & 0xFFFF)
