"""IP fragments of one file, put together again, so that a datagram counts and not the way it was cut.

Fragments that overlap without saying the same, that leave a hole, or that make up more than IP can carry
are given back as they came, to be compared one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lockstep.wire import ipv4, ipv6
from lockstep.wire.frame import Frame

#: Datagrams in pieces that are kept at once, and finished ones whose fragments are known when they come again.
MOST_OPEN = 256
MOST_DONE = 256
MOST_FRAGMENTS = 1024
_LARGEST = 0xFFFF


#: Where the bytes of a frame's payload came in, as `(offset, number of the frame)`.
Parts = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Fragment:
    """One fragment: its frame's number and bytes, and the flow that it belongs to by its addresses."""

    frame: int
    key: bytes
    start: int
    more: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Whole:
    """A datagram put together: a frame, and its fragments in order, of which the first begins at `start`."""

    data: bytes
    start: int
    fragments: tuple[Fragment, ...]

    @property
    def parts(self) -> Parts:
        """Which of the frame's bytes came in which frame."""
        return tuple((self.start + part.start, part.frame) for part in self.fragments)


@dataclass(slots=True)
class _Datagram:
    """One that isn't whole. header: the first fragment's frame up to its data; in it the IP header begins at `l3`."""

    fragments: dict[int, Fragment] = field(default_factory=dict)
    header: bytes = b""
    l3: int = 0
    size: int | None = None
    held: int = 0

    def add(self, fragment: Fragment) -> bool:
        """Take a fragment that is clear of the others, or one of them again; False for any other."""
        again = self.fragments.get(fragment.start)
        if again is not None:
            return (again.more, again.data) == (fragment.more, fragment.data)
        end = fragment.start + len(fragment.data)
        if len(self.fragments) == MOST_FRAGMENTS or not fragment.data:
            return False
        if self.size is not None and (not fragment.more or end > self.size):
            return False
        for other in self.fragments.values():
            if fragment.start < other.start + len(other.data) and other.start < end:
                return False
        self.fragments[fragment.start] = fragment
        self.held += len(fragment.data)
        if not fragment.more:
            self.size = end
        return self.size is None or self.held <= self.size

    def joined(self, version: int) -> Whole | None:
        """The whole of it; None where that is more than IP can carry."""
        parts = sorted(self.fragments.values(), key=lambda part: part.start)
        frame = bytearray(self.header + b"".join(part.data for part in parts))
        length = len(frame) - self.l3 - (ipv6.HEADER if version == 6 else 0)
        if length > _LARGEST:
            return None
        field_at = self.l3 + (ipv6.PAYLOAD_LENGTH if version == 6 else ipv4.TOTAL_LENGTH)
        frame[field_at : field_at + 2] = length.to_bytes(2, "big")
        return Whole(bytes(frame), len(self.header), tuple(parts))


class Reassembly:
    """The fragments of one file that wait for others."""

    def __init__(self) -> None:
        self._open: dict[bytes, _Datagram] = {}
        self._done: dict[bytes, frozenset[tuple[int, int]]] = {}

    def take(self, f: Frame, data: bytes, key: bytes, number: int) -> tuple[Whole | None, list[Fragment]]:
        """Add a fragment: the datagram that it completes, if any, and fragments that are given up for it."""
        ident, start, more = _place(f, data)
        name = key + ident
        fragment = Fragment(number, key, start, more, data[f.l4 : f.payload_end])
        if (start, hash(fragment.data)) in self._done.get(name, ()):
            return None, []
        known = self._open.get(name)
        given_up = []
        if known is None:
            if len(self._open) == MOST_OPEN:
                given_up = [*self._open.pop(next(iter(self._open))).fragments.values()]
            known = self._open[name] = _Datagram()
        if not known.add(fragment):
            del self._open[name]
            return None, [*given_up, *known.fragments.values(), fragment]
        if not start:
            known.header, known.l3 = _unfragmented(f, data), f.l3
        if known.held != known.size:
            return None, given_up
        del self._open[name]
        whole = known.joined(f.version)
        if whole is None:
            return None, [*given_up, *known.fragments.values()]
        self._done[name] = frozenset((part.start, hash(part.data)) for part in known.fragments.values())
        if len(self._done) > MOST_DONE:
            del self._done[next(iter(self._done))]
        return whole, given_up

    def rest(self) -> Iterator[Fragment]:
        """What never became whole."""
        for known in self._open.values():
            yield from known.fragments.values()
        self._open.clear()


def _place(f: Frame, data: bytes) -> tuple[bytes, int, bool]:
    """Identification, offset in bytes, and whether more follow (RFC 791 §3.1, RFC 8200 §4.5)."""
    word = data[f.payload] << 8 | data[f.payload + 1]
    if f.version == 4:
        ident = data[f.l3 + ipv4.IDENT : f.l3 + ipv4.IDENT + 2]
        return ident, (word & ipv4.OFFSET_MASK) << 3, bool(word & ipv4.MORE_FRAGMENTS)
    return data[f.payload + 2 : f.payload + 6], word & 0xFFF8, bool(word & 1)


def _unfragmented(f: Frame, data: bytes) -> bytes:
    """The frame's headers without the sign of a fragment."""
    if f.version == 4:
        header = bytearray(data[: f.l4])
        header[f.l3 + ipv4.FRAGMENT : f.l3 + ipv4.FRAGMENT + 2] = b"\0\0"
        return bytes(header)
    # Of IPv6's fragment header offset and flag go, and what is left is an atomic fragment (RFC 6946).
    return data[: f.payload] + b"\0\0" + data[f.payload + 2 : f.l4]
