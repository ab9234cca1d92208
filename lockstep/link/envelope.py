"""The two parts of a message, to and from bytes; no sockets.

Part 1 is a msgpack map (see `docs/links.md`), part 2 the frames end to end. Decoding is strict:
what doesn't fit raises `EnvelopeError` with a reason from `REASONS`, before it touches any state.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from lockstep.batch import MAX_BATCH, MAX_FRAME, VNET_SIZES, Batch, Buffer
from lockstep.link.lengths import extent
from lockstep.streams import CARRIED, PHASES, Cut

VERSION = 1
BOOT_BYTES = 8
#: Most bytes that a part of a message may have: a full batch and a frame that just didn't fit.
MAX_PART = 2 * MAX_BATCH

REASONS = ("parts", "size", "map", "version", "type", "stream", "guest", "vnet", "length", "frame", "cut")

_LARGEST = 1 << 63
#: msgpack's first byte of a map with up to 15 entries.
_MAP = 0x80


class EnvelopeError(Exception):
    """A message that doesn't fit the format. `reason` is one of `REASONS`."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


@dataclass(slots=True)
class Message:
    """One message of a stream: `item` is its batch or its cut."""

    stream: str
    boot: bytes
    epoch: int
    number: int
    item: Batch | Cut
    guest: str | None = None


class Encoder:
    """Makes the messages of one producer; what stands in all of them is packed once.

    stream, boot, guest: as in `Message`. prefix: what stands before the epoch, in front of a batch.
    """

    __slots__ = ("_cut", "_pack", "prefix")

    def __init__(self, stream: str, boot: bytes, guest: str | None = None) -> None:
        self._pack = msgpack.Packer().pack
        always: dict[str, Any] = {"v": VERSION, "s": stream, "b": boot}
        if guest is not None:
            always["g"] = guest
        fixed = b"".join(self._pack(part) for entry in always.items() for part in entry)
        # A map's first byte says how many entries follow: here e, n, h, l and, for a cut, c.
        self.prefix = bytes((_MAP | len(always) + 4,)) + fixed + b"\xa1e"
        self._cut = bytes((_MAP | len(always) + 5,)) + fixed + b"\xa1e"

    def encode(self, item: Batch | Cut, epoch: int, number: int) -> tuple[bytes, Buffer]:
        """The two parts of a message. The frames are not copied."""
        pack = self._pack
        if isinstance(item, Cut):
            cut = pack({"epoch": item.epoch, "phase": item.phase})
            return self._cut + pack(epoch) + b"\xa1n" + pack(number) + b"\xa1h\0\xa1l\xc4\0\xa1c" + cut, b""
        lengths = pack(_little_endian(item.lengths).tobytes())
        header = self.prefix + pack(epoch) + b"\xa1n" + pack(number) + b"\xa1h" + pack(item.vnet) + b"\xa1l" + lengths
        return header, item.data


def encode(message: Message) -> tuple[bytes, Buffer]:
    """The two parts of a message. The frames are not copied."""
    return Encoder(message.stream, message.boot, message.guest).encode(message.item, message.epoch, message.number)


def decode(parts: Sequence[Buffer], stream: str | None = None, guest: str | None = None) -> Message:
    """The message in these parts; raises EnvelopeError.

    stream: the only stream that is taken here. guest: the only guest's name, where one is set; a
    message that names no guest is taken.
    """
    if len(parts) != 2:
        raise EnvelopeError("parts", f"{len(parts)} parts instead of 2")
    if len(parts[0]) > MAX_PART or len(parts[1]) > MAX_PART:
        raise EnvelopeError("size", f"a part has more than {MAX_PART} bytes")
    try:
        header = msgpack.unpackb(parts[0], strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise EnvelopeError("map", "part 1 is not msgpack") from error
    if not isinstance(header, dict):
        raise EnvelopeError("map", "part 1 is not a map")
    if _integer(header, "v") != VERSION:
        raise EnvelopeError("version", f"version {header['v']} instead of {VERSION}")
    name, boot, lengths = header.get("s"), header.get("b"), header.get("l")
    if not isinstance(name, str) or not isinstance(boot, bytes) or not isinstance(lengths, bytes):
        raise EnvelopeError("type", "s, b or l is missing or of another type")
    if name not in CARRIED or (stream is not None and name != stream):
        raise EnvelopeError("stream", f"stream {name[:32]!r} instead of {stream!r}")
    if len(boot) != BOOT_BYTES:
        raise EnvelopeError("type", f"b has {len(boot)} bytes instead of {BOOT_BYTES}")
    epoch, number, vnet = _integer(header, "e"), _integer(header, "n"), _integer(header, "h")
    named = header.get("g")
    if named is not None and not isinstance(named, str):
        raise EnvelopeError("type", "g is not a string")
    if guest is not None and named is not None and named != guest:
        raise EnvelopeError("guest", f"guest {named[:32]!r} instead of {guest!r}")
    item: Batch | Cut
    if header.get("c") is not None:
        item = _cut(header["c"], lengths, parts[1])
    else:
        item = _batch(parts[1], lengths, vnet, epoch)
    return Message(name, boot, epoch, number, item, named)


def _integer(header: dict[Any, Any], key: str) -> int:
    value = header.get(key)
    if type(value) is not int or not 0 <= value < _LARGEST:  # a bool is no number here
        raise EnvelopeError("type", f"{key} is missing or no number from 0 to 2**63-1")
    return value


def _cut(value: object, lengths: bytes, frames: Buffer) -> Cut:
    if not isinstance(value, dict) or value.get("phase") not in PHASES:
        raise EnvelopeError("cut", f"c is no map with a phase of {', '.join(PHASES)}")
    if lengths or len(frames):
        raise EnvelopeError("cut", "a cut carries no frames")
    return Cut(_integer(value, "epoch"), value["phase"])


def _batch(frames: Buffer, lengths: bytes, vnet: int, epoch: int) -> Batch:
    if vnet not in VNET_SIZES:
        raise EnvelopeError("vnet", f"a virtio-net header of {vnet} bytes")
    if len(lengths) % 4:
        raise EnvelopeError("length", "l is no list of 32-bit numbers")
    counted = array("I")
    counted.frombytes(lengths)
    counted = _little_endian(counted)
    total, smallest, largest = extent(counted)
    if total != len(frames):
        raise EnvelopeError("length", f"lengths add up to {total} and part 2 has {len(frames)} bytes")
    if counted and (smallest <= vnet or largest > MAX_FRAME + vnet):
        raise EnvelopeError("frame", f"a frame has no byte, or more than {MAX_FRAME}")
    return Batch(frames, counted, vnet, epoch)


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers
