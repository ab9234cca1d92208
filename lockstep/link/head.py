# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Part 1 of one producer's messages without msgpack: what they all begin with is known, numbers follow.

    prefix │ epoch  a1 "n" number  a1 "h" vnet  a1 "l" lengths

`read` takes what every decoder of msgpack would read there in the same way, and nothing else: of what it
refuses `envelope.decode` says what it is. `write` makes the very bytes that `envelope.Encoder` makes.
"""

from __future__ import annotations

import sys

from lockstep.batch import MAX_FRAME, VNET_SIZES

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: Whether lengths are left as they lie in memory: little-endian, as on the wire, and by compiled code.
IN_PLACE = bool(cython.compiled) and sys.byteorder == "little"

_MAX_FRAME = MAX_FRAME
_WITHOUT, _SHORT, _LONG = VNET_SIZES
#: Bytes of part 1 besides prefix and lengths, at most: two numbers of 9, the vnet, three keys, a length of 5.
MOST = 2 * 9 + 1 + 3 * 2 + 5


class Head:
    """Part 1 of the messages of one producer. prefix: what stands before the epoch, as in `envelope.Encoder`.

    After `read`: epoch, number, vnet; count: how many lengths; at: where they begin; total: their sum.
    """

    __slots__ = ("_place", "_prefix", "_size", "at", "count", "epoch", "number", "prefix", "total", "vnet")

    def __init__(self, prefix: bytes) -> None:
        self.prefix = self._prefix = prefix
        self._size = len(prefix)
        self.epoch = self.number = self.vnet = self.count = self.at = self.total = self._place = 0

    def parse(self, header: bytes) -> bool:
        """`read` for bytes."""
        return self.read(header, len(header))

    def made(self, epoch: int, number: int, vnet: int, lengths: bytes) -> bytes:
        """`write` for bytes. lengths: little-endian, 32 bits each."""
        out = bytearray(self._size + MOST + len(lengths))
        return bytes(out[: self._write(out, epoch, number, vnet, lengths, len(lengths))])

    def _write(self, out: bytearray, epoch: int, number: int, vnet: int, lengths: bytes, size: int) -> int:
        return self.write(out, epoch, number, vnet, lengths, size)

    def read(self, header: bytes, size: int) -> bool:
        """Whether these `size` bytes are a part 1 with frames, in the common form; its values are then set."""
        place = self._size
        if size < place:
            return False
        for index in range(place):
            if header[index] != self._prefix[index]:
                return False
        self._place = place
        self.epoch = self._number(header, size)
        if self.epoch < 0 or not self._key(header, size, 0x6E):
            return False
        self.number = self._number(header, size)
        if self.number < 0 or not self._key(header, size, 0x68):
            return False
        self.vnet = self._number(header, size)
        if self.vnet not in (_WITHOUT, _SHORT, _LONG) or not self._key(header, size, 0x6C):
            return False
        return self._lengths(header, size)

    def _key(self, header: bytes, size: int, name: int) -> bool:
        """Whether this one-letter key comes next."""
        place = self._place
        self._place = place + 2
        return place + 2 <= size and header[place] == 0xA1 and header[place + 1] == name

    def _number(self, header: bytes, size: int) -> int:
        """The number that comes next; -1 for anything else, or one of 2**63 and more."""
        place = self._place
        if place >= size:
            return -1
        kind = header[place]
        self._place = place + 1
        if kind < 0x80:
            return kind
        if kind < 0xCC or kind > 0xCF:
            return -1
        return self._big_endian(header, size, 1 << (kind - 0xCC))

    def _big_endian(self, header: bytes, size: int, width: int) -> int:
        place = self._place
        self._place = place + width
        if place + width > size or (width == 8 and header[place] & 0x80):
            return -1
        value = 0
        for index in range(place, place + width):
            value = value << 8 | header[index]
        return value

    def _lengths(self, header: bytes, size: int) -> bool:
        """Whether well-formed lengths come next, up to the end."""
        place = self._place
        if place >= size:
            return False
        kind = header[place]
        if kind < 0xC4 or kind > 0xC6:
            return False
        self._place = place + 1
        extent = self._big_endian(header, size, 1 << (kind - 0xC4))
        place = self._place
        if extent < 0 or extent & 3 or place + extent != size:
            return False
        self.at, self.count = place, extent >> 2
        total = 0
        most = _MAX_FRAME + self.vnet
        while place < size:
            length = header[place] | header[place + 1] << 8 | header[place + 2] << 16 | header[place + 3] << 24
            if length <= self.vnet or length > most:
                return False
            total += length
            place += 4
        self.total = total
        return True

    def write(self, out: bytearray, epoch: int, number: int, vnet: int, lengths: bytes, size: int) -> int:
        """Put part 1 into `out`, which has room for the prefix, `MOST` and `size` bytes of lengths; how long it is."""
        place = self._size
        for index in range(place):
            out[index] = self._prefix[index]
        place = self._put(out, place, epoch)
        out[place], out[place + 1] = 0xA1, 0x6E
        place = self._put(out, place + 2, number)
        out[place], out[place + 1], out[place + 2] = 0xA1, 0x68, vnet
        out[place + 3], out[place + 4] = 0xA1, 0x6C
        place += 5
        if size < 1 << 8:
            place = self._put_big_endian(out, place, 0xC4, size, 1)
        elif size < 1 << 16:
            place = self._put_big_endian(out, place, 0xC5, size, 2)
        else:
            place = self._put_big_endian(out, place, 0xC6, size, 4)
        for index in range(size):
            out[place + index] = lengths[index]
        return place + size

    def _put(self, out: bytearray, place: int, value: int) -> int:
        """Put a number, as short as it goes; where what follows it stands."""
        if value < 0x80:
            out[place] = value
            return place + 1
        if value < 1 << 8:
            return self._put_big_endian(out, place, 0xCC, value, 1)
        if value < 1 << 16:
            return self._put_big_endian(out, place, 0xCD, value, 2)
        if value < 1 << 32:
            return self._put_big_endian(out, place, 0xCE, value, 4)
        return self._put_big_endian(out, place, 0xCF, value, 8)

    def _put_big_endian(self, out: bytearray, place: int, kind: int, value: int, width: int) -> int:
        out[place] = kind
        for index in range(width):
            out[place + 1 + index] = value >> (8 * (width - 1 - index)) & 0xFF
        return place + 1 + width


#: Of no producer: no msgpack begins with this byte.
NOBODY = Head(b"\xc1")
