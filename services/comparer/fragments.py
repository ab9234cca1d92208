"""IP fragments: put together by datagram, compared as a whole, released as they came.

A datagram whose fragments overlap is refused (RFC 5722 §3 for IPv6; nobody sends such IPv4 either),
as is one that is larger than IP allows. The identification differs between replicas and tells
nothing beyond which fragments belong together on one side.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lockstep.batch import Buffer
from lockstep.wire import ipv4, ipv6
from lockstep.wire.frame import Frame

#: Datagrams and bytes that are put together at once, on each side.
MOST_DATAGRAMS = 1024
MOST_BYTES = 8 << 20
#: Fragments of one datagram (RFC 8200: at least 8 bytes each; 64 KiB in 1280-byte packets are 52).
MOST_FRAGMENTS = 1024


@dataclass(slots=True)
class _Partial:
    since: float
    size: int = 0
    total: int | None = None
    pieces: dict[int, bytes] = field(default_factory=dict)
    originals: list[tuple[bytes, int]] = field(default_factory=list)
    first: bytes = b""
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Whole:
    """A datagram put together: `frame` is Ethernet with one unfragmented IP packet; the rest as it came.

    originals: each fragment's frame with its virtio-net header, and that header's size.
    """

    frame: bytes
    originals: tuple[tuple[bytes, int], ...]


class Reassembly:
    """Datagrams of one side that are not yet whole. `given_up` is how many frames of such were dropped."""

    def __init__(self, lifetime: float) -> None:
        self.lifetime = lifetime
        self.given_up = 0
        self.waiting = 0
        self._bytes = 0
        self._partial: dict[bytes, _Partial] = {}

    def take(self, f: Frame, data: Buffer, start: int, now: float) -> Whole | None:
        """Take the fragment of a dissected frame that begins (with its virtio-net header) at `start`."""
        self.expire(now)
        key, offset, more = _place(f, data)
        payload = bytes(data[f.l4 : f.payload_end])
        partial = self._partial.get(key)
        if partial is None:
            self._room()
            partial = self._partial[key] = _Partial(now)
        original = bytes(data[start : f.end])
        partial.originals.append((original, f.start - start))
        self.waiting += 1
        self._bytes += len(original)
        if partial.refused or not _add(partial, offset, payload, more):
            partial.refused = True
            partial.pieces.clear()
            return None
        if offset == 0:
            partial.first = _unfragmented(f, data)
        if partial.total is None or partial.size < partial.total:
            return None
        self._remove(key)
        body = b"".join(piece for _, piece in sorted(partial.pieces.items()))
        return Whole(_lengthened(partial.first, f, len(body)) + body, tuple(partial.originals))

    def expire(self, now: float) -> None:
        """Give up datagrams that have waited too long for their other fragments."""
        while self._partial:
            key = next(iter(self._partial))
            if self._partial[key].since + self.lifetime > now:
                return
            self._give_up(key)

    def next_deadline(self) -> float | None:
        """When `expire` has something to do."""
        return next(iter(self._partial.values())).since + self.lifetime if self._partial else None

    def clear(self) -> list[tuple[bytes, int]]:
        """Let everything go; the frames that waited, oldest datagram first."""
        frames = [original for partial in self._partial.values() for original in partial.originals]
        self._partial.clear()
        self.waiting = self._bytes = 0
        return frames

    def _room(self) -> None:
        while len(self._partial) >= MOST_DATAGRAMS or self._bytes > MOST_BYTES:
            self._give_up(next(iter(self._partial)))

    def _give_up(self, key: bytes) -> None:
        self.given_up += len(self._remove(key).originals)

    def _remove(self, key: bytes) -> _Partial:
        partial = self._partial.pop(key)
        self.waiting -= len(partial.originals)
        self._bytes -= sum(len(original) for original, _ in partial.originals)
        return partial


def _place(f: Frame, data: Buffer) -> tuple[bytes, int, bool]:
    """The datagram of a fragment, the fragment's offset in bytes, and whether more follow."""
    field = data[f.payload] << 8 | data[f.payload + 1]
    tags = bytes(data[f.start + 12 : f.l3 - 2])
    if f.version == 4:
        at = f.l3
        key = bytes(data[at + ipv4.IDENT : at + ipv4.IDENT + 2]) + bytes(data[at + ipv4.SOURCE : at + ipv4.SOURCE + 8])
        return tags + bytes((4, f.protocol)) + key, (field & ipv4.OFFSET_MASK) << 3, bool(field & ipv4.MORE_FRAGMENTS)
    addresses = bytes(data[f.l3 + ipv6.SOURCE : f.l3 + ipv6.SOURCE + 32])
    return tags + b"\6" + bytes(data[f.payload + 2 : f.payload + 6]) + addresses, field & 0xFFF8, bool(field & 1)


def _add(partial: _Partial, offset: int, payload: bytes, more: bool) -> bool:
    """Add one piece; False for what no sender does: overlaps, odd sizes, two ends."""
    end = offset + len(payload)
    if not payload or (more and len(payload) % 8) or end > 0xFFFF or len(partial.pieces) == MOST_FRAGMENTS:
        return False
    if any(offset < at + len(piece) and at < end for at, piece in partial.pieces.items()):
        return False
    if not more:
        if partial.total is not None:
            return False
        partial.total = end
    if partial.total is not None and (end > partial.total or any(at >= partial.total for at in partial.pieces)):
        return False
    partial.pieces[offset] = payload
    partial.size += len(payload)
    return True


def _unfragmented(f: Frame, data: Buffer) -> bytes:
    """Ethernet and IP header of a first fragment, as if it had never been one."""
    if f.version == 4:
        header = bytearray(data[f.start : f.l4])
        at = f.l3 - f.start + ipv4.FRAGMENT
        header[at : at + 2] = b"\0\0"
        return bytes(header)
    # Without the fragment header; what pointed to it points to what it pointed to.
    header = bytearray(data[f.start : f.payload - 2])
    at = f.l3 - f.start + ipv6.HEADER
    pointer = f.l3 - f.start + ipv6.NEXT_HEADER
    while header[pointer] != ipv6.FRAGMENT:
        pointer, at = at, at + ((header[at + 1] + 1) << 3)
    header[pointer] = f.protocol
    return bytes(header)


def _lengthened(header: bytes, f: Frame, size: int) -> bytes:
    """The headers with the length field of the whole datagram."""
    at = f.l3 - f.start
    if f.version == 4:
        field, total = at + ipv4.TOTAL_LENGTH, len(header) - at + size
    else:
        field, total = at + ipv6.PAYLOAD_LENGTH, len(header) - at - ipv6.HEADER + size
    return header[:field] + (total & 0xFFFF).to_bytes(2, "big") + header[field + 2 :]
