"""Back-ends alone, in this process, with a real guest each: no service, no client."""

from __future__ import annotations

import select
import struct
import threading
from pathlib import Path

from bench.vm.image import block
from lockstep.batch import Batch
from lockstep.capture.vhost_user import VhostUserPort
from lockstep.qemu.address import Address
from lockstep.streams import Event

#: A datagram is this many blocks of so many bytes, each unlike every other. That is some of the guest's buffers:
#: of the first its kernel writes to the end, into the others nobody but we.
BLOCKS, BLOCK = 32, 256
_TAG = b"lockstep %08d %02d "


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


class Traffic(threading.Thread):
    """Turns back-ends, and gives whichever guest runs a numbered datagram now and then, once `flowing`.

    Few enough that buffers posted long before are filled: pages that the guest itself writes all the
    time would be copied again without any log of ours. `first_late` is the first number that was given
    after `late`. With `forgetful`, what is written into buffers is not logged, as a broken back-end would.
    """

    def __init__(self, *ends: BackEnd, forgetful: bool = False) -> None:
        super().__init__()
        self.ends, self.forgetful = ends, forgetful
        self.flowing, self.late, self.ending = threading.Event(), threading.Event(), threading.Event()
        self.given = 0
        self.first_late: int | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self.ending.wait(0.03):
                for end in self.ends:
                    end.turn()
                    if self.flowing.is_set() and end.events[-1:] == ["guest_started"]:
                        self._give(end)
        except BaseException as error:
            self.error = error

    def _give(self, end: BackEnd) -> None:
        session = end.port._session
        if session is None:
            return
        if self.forgetful:
            session.memory.logging = False
        if self.late.is_set() and self.first_late is None:
            self.first_late = self.given
        end.port.write(Batch.of([datagram(self.given)]))
        self.given += 1

    def end(self) -> None:
        self.ending.set()
        self.join()
        if self.error is not None:
            raise self.error


def tagged(number: int, n: int) -> bytes:
    """Block `n` of datagram `number`."""
    return (_TAG % (number, n) + block())[:BLOCK]


def datagram(number: int, source: int = 1) -> bytes:
    """A UDP datagram from 10.77.0.`source` to the guest's port 9, where nobody listens, without a checksum."""
    payload = b"".join(tagged(number, n) for n in range(BLOCKS))
    udp = struct.pack(">HHHH", 9999, 9, 8 + len(payload), 0) + payload
    header = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0))
    header += bytes([10, 77, 0, source, 10, 77, 0, 2])
    header[10:12] = struct.pack(">H", ~(sum(struct.unpack(">10H", header)) % 0xFFFF) & 0xFFFF)
    return bytes.fromhex("525400123456525400000001") + b"\x08\0" + bytes(header) + udp
