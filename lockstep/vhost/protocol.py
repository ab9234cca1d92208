"""The messages of vhost-user: bytes ↔ values, strictly checked, without sockets.

Every message is a header of three 32-bit numbers (request, flags, bytes of payload), a payload, and
the descriptors that came with it. What a front-end may send stands in `SHAPES`, size by size.
Source: QEMU `docs/interop/vhost-user.rst`; virtio 1.2 for the feature bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum

HEADER = struct.Struct("<III")
U64 = struct.Struct("<Q")
STATE = struct.Struct("<II")
ADDRESSES = struct.Struct("<IIQQQQ")
REGION = struct.Struct("<QQQQ")
LOG = struct.Struct("<QQ")

VERSION = 1
VERSION_MASK = 3
REPLY = 1 << 2
NEED_REPLY = 1 << 3

#: Most memory regions in one SET_MEM_TABLE, and so most descriptors with one message.
MOST_REGIONS = 8
#: Memory regions that may be added one by one (CONFIGURE_MEM_SLOTS); each costs a descriptor.
MEMORY_SLOTS = 128
#: Longest ring, as in QEMU and virtio-net's drivers.
MOST_DESCRIPTORS = 1024

VRING_INDEX = 0xFF
VRING_NO_FD = 1 << 8
VRING_F_LOG = 1 << 0


class Feature(IntEnum):
    """Bits of GET_FEATURES (virtio 1.2 §5.1.3 and §6; the last two are vhost's own)."""

    CSUM = 0
    GUEST_CSUM = 1
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    HOST_TSO4 = 11
    HOST_TSO6 = 12
    HOST_ECN = 13
    MRG_RXBUF = 15
    STATUS = 16
    CTRL_VQ = 17
    CTRL_RX = 18
    GUEST_ANNOUNCE = 21
    MQ = 22
    CTRL_MAC_ADDR = 23
    LOG_ALL = 26
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    PROTOCOL_FEATURES = 30
    VERSION_1 = 32
    GUEST_USO4 = 54
    GUEST_USO6 = 55
    HOST_USO = 56


class ProtocolFeature(IntEnum):
    """Bits of GET_PROTOCOL_FEATURES."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16


class Request(IntEnum):
    """What a front-end may ask of a back-end that offers the features above."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class ProtocolError(Exception):
    """The front-end broke the protocol; its session ends."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a request must look: bytes of payload and number of descriptors, least and most."""

    least: int
    most: int
    fds: tuple[int, int] = (0, 0)


_NOTHING, _U64, _STATE = Shape(0, 0), Shape(8, 8), Shape(8, 8)
_VRING_FD = Shape(8, 8, (0, 1))

SHAPES = {
    Request.GET_FEATURES: _NOTHING,
    Request.SET_FEATURES: _U64,
    Request.SET_OWNER: _NOTHING,
    Request.RESET_OWNER: _NOTHING,
    Request.SET_MEM_TABLE: Shape(8, 8 + MOST_REGIONS * REGION.size, (0, MOST_REGIONS)),
    Request.SET_LOG_BASE: Shape(16, 16, (1, 1)),
    Request.SET_LOG_FD: Shape(0, 8, (1, 1)),
    Request.SET_VRING_NUM: _STATE,
    Request.SET_VRING_ADDR: Shape(ADDRESSES.size, ADDRESSES.size),
    Request.SET_VRING_BASE: _STATE,
    Request.GET_VRING_BASE: _STATE,
    Request.SET_VRING_KICK: _VRING_FD,
    Request.SET_VRING_CALL: _VRING_FD,
    Request.SET_VRING_ERR: _VRING_FD,
    Request.GET_PROTOCOL_FEATURES: _NOTHING,
    Request.SET_PROTOCOL_FEATURES: _U64,
    Request.GET_QUEUE_NUM: _NOTHING,
    Request.SET_VRING_ENABLE: _STATE,
    Request.SEND_RARP: _U64,
    Request.GET_MAX_MEM_SLOTS: _NOTHING,
    Request.ADD_MEM_REG: Shape(8 + REGION.size, 8 + REGION.size, (1, 1)),
    # Some front-ends send the region's descriptor along; it isn't needed.
    Request.REM_MEM_REG: Shape(8 + REGION.size, 8 + REGION.size, (0, 1)),
    Request.SET_STATUS: _U64,
    Request.GET_STATUS: _NOTHING,
}


@dataclass(frozen=True, slots=True)
class RegionAddress:
    """A stretch of guest memory: guest-physical address, bytes, the front-end's own address, place in the file."""

    guest: int
    size: int
    user: int
    offset: int


@dataclass(slots=True)
class Message:
    """A request, whole. Who keeps one of its descriptors takes it out of `fds`; the others are closed."""

    request: Request
    payload: bytes = b""
    need_reply: bool = False
    fds: list[int] = field(default_factory=list)

    def u64(self) -> int:
        """The payload of requests with one number."""
        return int(U64.unpack(self.payload)[0])

    def state(self) -> tuple[int, int]:
        """`(ring, number)`."""
        index, number = STATE.unpack(self.payload)
        return index, number

    def addresses(self) -> tuple[int, int, int, int, int, int]:
        """`(ring, flags, descriptors, used, available, log)`."""
        index, flags, desc, used, avail, log = ADDRESSES.unpack(self.payload)
        return index, flags, desc, used, avail, log

    def vring(self) -> tuple[int, int | None]:
        """`(ring, descriptor)` of the three vring descriptors; None where the front-end sends none."""
        value = self.u64()
        if value & ~(VRING_INDEX | VRING_NO_FD):
            raise ProtocolError(f"{self.request.name}: unknown bits in {value:#x}")
        if bool(value & VRING_NO_FD) == bool(self.fds):
            raise ProtocolError(f"{self.request.name}: {len(self.fds)} descriptors, and its payload is {value:#x}")
        return value & VRING_INDEX, self.fds[0] if self.fds else None

    def regions(self) -> list[RegionAddress]:
        """The regions of SET_MEM_TABLE, one for each descriptor."""
        count, _ = STATE.unpack_from(self.payload)
        if count > MOST_REGIONS or len(self.payload) != 8 + count * REGION.size or len(self.fds) != count:
            sizes = f"{len(self.payload)} bytes and {len(self.fds)} descriptors"
            raise ProtocolError(f"SET_MEM_TABLE: {count} regions in {sizes}")
        return [RegionAddress(*REGION.unpack_from(self.payload, 8 + n * REGION.size)) for n in range(count)]

    def region(self) -> RegionAddress:
        """The region of ADD_MEM_REG and REM_MEM_REG."""
        return RegionAddress(*REGION.unpack_from(self.payload, 8))


def parse_header(header: bytes) -> tuple[Request, bool, int]:
    """`(request, whether a reply is wanted, bytes of payload)`; raises ProtocolError."""
    number, flags, size = HEADER.unpack(header)
    try:
        request = Request(number)
    except ValueError:
        raise ProtocolError(f"request {number}, of a feature that was not offered") from None
    if flags & VERSION_MASK != VERSION or flags & ~(VERSION_MASK | NEED_REPLY):
        raise ProtocolError(f"{request.name}: flags {flags:#x}")
    shape = SHAPES[request]
    if not shape.least <= size <= shape.most:
        raise ProtocolError(f"{request.name}: {size} bytes of payload")
    return request, bool(flags & NEED_REPLY), size


def check_fds(message: Message) -> None:
    """Raise ProtocolError unless the message has as many descriptors as its request needs."""
    least, most = SHAPES[message.request].fds
    if not least <= len(message.fds) <= most:
        raise ProtocolError(f"{message.request.name}: {len(message.fds)} descriptors")


def encode(request: int, payload: bytes = b"", flags: int = VERSION) -> bytes:
    """A message as it goes over the socket."""
    return HEADER.pack(request, flags, len(payload)) + payload


def reply(request: Request, payload: bytes) -> bytes:
    """The answer to a request."""
    return encode(request, payload, VERSION | REPLY)


def mask(*bits: int) -> int:
    """The number in which these bits are set."""
    return sum(1 << bit for bit in bits)
