"""IP fragments of one file, put together again, so that a datagram counts and not the way it was cut.

The comparer's reassembly refuses fragments that overlap. Here they may, as long as they agree: captures show
fragments twice. Those that contradict each other, that leave a hole, or that make up more than IP can carry
are given back as they came, to be compared one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lockstep.wire import ipv4, ipv6
from lockstep.wire.frame import Frame

#: Datagrams in pieces that are kept at once, and finished ones whose fragments are known when they come again.
MOST_OPEN = 256
MOST_DONE = 64
MOST_FRAGMENTS = 128
#: Bytes of those in pieces.
MOST_BYTES = 16 << 20
_LARGEST = 0xFFFF

#: Where the bytes of a frame came in, as `(offset, number of the frame)`.
Parts = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Fragment:
    """One fragment.

    frame: number of its frame. key: its flow, by its addresses. start, more: its place in the datagram.
    header: of a first fragment, the frame up to `data`, without the sign of a fragment; in it the IP
    header begins at `l3`. protocol: what the datagram carries.
    """

    frame: int
    key: bytes
    version: int
    protocol: int
    start: int
    more: bool
    data: bytes
    header: bytes = b""
    l3: int = 0

    @property
    def end(self) -> int:
        """Place behind its data."""
        return self.start + len(self.data)

    def alone(self) -> Whole | None:
        """A first fragment as if there were no others; None for a later one."""
        return _joined([self]) if self.header else None


@dataclass(frozen=True, slots=True)
class Whole:
    """A datagram put together: a frame, and its fragments in order, of which the first begins at `start`."""

    data: bytes
    start: int
    fragments: tuple[Fragment, ...]

    @property
    def protocol(self) -> int:
        """What it carries."""
        return self.fragments[0].protocol

    @property
    def parts(self) -> Parts:
        """Which of the frame's bytes came in which frame."""
        return tuple((self.start + part.start, part.frame) for part in self.fragments)


@dataclass(slots=True)
class _Datagram:
    """One that isn't whole. fragments: in order, none that says nothing new. seen: all of them, as they came."""

    fragments: list[Fragment] = field(default_factory=list)
    seen: list[Fragment] = field(default_factory=list)

    def agrees(self, fragment: Fragment) -> bool:
        """Whether a fragment says nothing else than those before it."""
        if not fragment.data or len(self.seen) == MOST_FRAGMENTS:
            return False
        for other in self.fragments:
            low, high = max(fragment.start, other.start), min(fragment.end, other.end)
            if (
                low < high
                and fragment.data[low - fragment.start : high - fragment.start]
                != other.data[low - other.start : high - other.start]
            ):
                return False
            for last, any_other in ((fragment, other), (other, fragment)):
                if not last.more and (any_other.end > last.end or (not any_other.more and any_other.end != last.end)):
                    return False
        return True

    def add(self, fragment: Fragment) -> Whole | None:
        """Take a fragment that agrees; the whole, if this completes it."""
        self.seen.append(fragment)
        if not any(other.start <= fragment.start and fragment.end <= other.end for other in self.fragments):
            self.fragments.append(fragment)
            self.fragments.sort(key=lambda part: part.start)
        at = 0
        for part in self.fragments:
            if part.start > at:
                return None
            at = max(at, part.end)
        if all(part.more for part in self.fragments) or not self.fragments[0].header:
            return None
        return _joined(self.fragments)


class Reassembly:
    """The fragments of one file that wait for others."""

    def __init__(self) -> None:
        self._open: dict[bytes, _Datagram] = {}
        self._bytes = 0
        self._done: dict[bytes, _Datagram] = {}

    def take(self, f: Frame, data: bytes, key: bytes, number: int) -> tuple[Whole | None, list[Fragment]]:
        """Add the fragment of a dissected frame: the datagram that it completes, if any, and what is given up."""
        name, fragment = _fragment(f, data, key, number)
        done = self._done.get(name)
        if done is not None and _holds(done, fragment):
            return None, []
        given_up: list[Fragment] = []
        known = self._open.get(name)
        if known is None:
            while len(self._open) == MOST_OPEN or self._bytes > MOST_BYTES:
                given_up += self._take_out(next(iter(self._open))).seen
            known = self._open[name] = _Datagram()
        if not known.agrees(fragment):
            self._take_out(name)
            return None, [*given_up, *known.seen, fragment]
        self._bytes += len(fragment.data)
        whole = known.add(fragment)
        if whole is not None:
            self._take_out(name)
            self._done[name] = known
            if len(self._done) > MOST_DONE:
                del self._done[next(iter(self._done))]
        return whole, given_up

    def rest(self) -> Iterator[Fragment]:
        """What never became whole."""
        for known in self._open.values():
            yield from known.seen
        self._open.clear()
        self._bytes = 0

    def _take_out(self, name: bytes) -> _Datagram:
        known = self._open.pop(name)
        self._bytes -= sum(len(fragment.data) for fragment in known.seen)
        return known


def _holds(done: _Datagram, fragment: Fragment) -> bool:
    """Whether a finished datagram says what this fragment does."""
    last = done.fragments[-1].end
    return done.agrees(fragment) and fragment.end <= last and fragment.more == (fragment.end < last)


def _fragment(f: Frame, data: bytes, key: bytes, number: int) -> tuple[bytes, Fragment]:
    """The name of its datagram, and the fragment (RFC 791 §3.1, RFC 8200 §4.5)."""
    word = data[f.payload] << 8 | data[f.payload + 1]
    if f.version == 4:
        ident = data[f.l3 + ipv4.IDENT : f.l3 + ipv4.IDENT + 2]
        start, more = (word & ipv4.OFFSET_MASK) << 3, bool(word & ipv4.MORE_FRAGMENTS)
    else:
        ident, start, more = data[f.payload + 2 : f.payload + 6], word & 0xFFF8, bool(word & 1)
    header = b"" if start else unfragmented(f, data)[: f.l4]
    return key + ident, Fragment(
        number, key, f.version, f.protocol, start, more, data[f.l4 : f.payload_end], header, f.l3
    )


def unfragmented(f: Frame, data: bytes) -> bytes:
    """The frame of a first fragment without the sign of one (of IPv6, an atomic one, RFC 6946); others as they are."""
    place = data[f.payload] << 8 | data[f.payload + 1]
    if place & (ipv4.OFFSET_MASK if f.version == 4 else 0xFFF8):
        return data
    return data[: f.payload] + b"\0\0" + data[f.payload + 2 :]


def _joined(fragments: list[Fragment]) -> Whole | None:
    """Fragments in order and without a hole as one frame; None if that is more than IP can carry."""
    first = fragments[0]
    frame = bytearray(first.header)
    for part in fragments:
        frame[len(first.header) + part.start : len(first.header) + part.end] = part.data
    length = len(frame) - first.l3
    at = first.l3 + ipv4.TOTAL_LENGTH
    if first.version == 6:
        length -= ipv6.HEADER
        at = first.l3 + ipv6.PAYLOAD_LENGTH
    if length > _LARGEST:
        return None
    frame[at : at + 2] = length.to_bytes(2, "big")
    return Whole(bytes(frame), len(first.header), tuple(fragments))
