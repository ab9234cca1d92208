"""What both sides sent lately, so that a divergence can be shown with its packets.

The core notes every batch: a reference, without a look inside. Only at a divergence, and a few times
a second at most, are the frames of its flow looked for: the ones at the place of the difference
first, then those nearest to them. A frame of the secondary that came long before a time-out may be
gone by then; what the primary has held is found however old it is.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, NamedTuple

from lockstep.batch import Batch, Buffer
from lockstep.flow.key import flow_key
from lockstep.log import RateLimit
from lockstep.report import PRIMARY_FRAMES, SECONDARY_FRAMES, SNAP
from lockstep.streams import PRIMARY
from lockstep.wire import checksum, frame, icmp, ipv4, ipv6, tcp
from lockstep.wire.frame import Frame, dissect
from lockstep.wire.seqnum import add, diff
from services.comparer.datagram import DatagramFlow, content
from services.comparer.flow import Finding, Flow, Held
from services.comparer.tcp import TcpFlow

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")

#: Of a dissected frame, the index in its buffer at which the place of a divergence lies, if it does.
PlaceOf = Callable[[Frame, Buffer], int | None]

#: Bytes of batches kept of each side, each counted with what it costs besides its frames.
MOST_BYTES = 4 << 20
OVERHEAD = 512
#: Divergences a second that are given their packets.
MOST_SEARCHES = 4
#: Frames of each side that a search dissects, and that it gives.
MOST_LOOKED = 1024
MOST_FRAMES = 8

#: Findings that are not about the flow's head.
_NOT_THE_HEAD = ("limit", "secondary_contradicts_itself")


class _Noted(NamedTuple):
    batch: Batch
    at: float
    first: int  # number of its first frame


@dataclass(slots=True)
class _Sighting:
    """A frame of the flow: `data[start:end]` without virtio-net header. place: index in `data`, if it is there."""

    kind: int
    number: int
    at: float
    data: Buffer
    start: int
    end: int
    place: int | None


class Evidence:
    """The latest batches of the two sides."""

    def __init__(self) -> None:
        self._primary, self._secondary = _Side(), _Side()
        self._allowed = RateLimit(MOST_SEARCHES)
        self._now = 0.0

    def note(self, stream: str, batch: Batch, now: float) -> None:
        """Keep a batch of `primary` or `secondary` for a while. Its data is copied only if it could change."""
        self._now = now
        (self._primary if stream == PRIMARY else self._secondary).note(batch, now)

    def of(self, flow: Flow, found: Finding, epoch: int) -> dict[str, Any]:
        """The event's fields with the packets of a divergence; none where there were too many just now.

        epoch: that of the secondary's frames; others never took part.
        """
        if not self._allowed.allows(self._now):
            return {}
        place = _Place(flow, found)
        primary = {sighting.number: sighting for sighting in self._primary.of(flow.key, place.primary)}
        primary |= {held.number: place.held(held) for held in islice(flow.held, MOST_FRAMES)}
        newest_first = sorted(primary.values(), key=lambda sighting: -sighting.number)
        return {
            PRIMARY_FRAMES: [_told(sighting) for sighting in _nearest(newest_first)],
            SECONDARY_FRAMES: [
                _told(sighting) for sighting in _nearest(self._secondary.of(flow.key, place.secondary, epoch))
            ],
        }


class _Side:
    """The latest batches of one side. Its frames are numbered from 1."""

    def __init__(self) -> None:
        self._noted: deque[_Noted] = deque()
        self._bytes = 0
        self._frames = 0

    def note(self, batch: Batch, now: float) -> None:
        if type(batch.data) is not bytes:
            batch = Batch(bytes(batch.data), batch.lengths[:], batch.vnet, batch.epoch)
        self._noted.append(_Noted(batch, now, self._frames + 1))
        self._frames += len(batch)
        self._bytes += len(batch.data) + OVERHEAD
        while self._bytes > MOST_BYTES:
            self._bytes -= len(self._noted.popleft().batch.data) + OVERHEAD

    def of(self, key: bytes, place: PlaceOf, epoch: int | None = None) -> list[_Sighting]:
        """The latest frames of a flow, newest first."""
        found: list[_Sighting] = []
        for needle in _needles(key):
            found = list(self._search(key, needle, place, epoch))
            if found and all(sighting.kind != frame.FRAGMENT for sighting in found):
                break  # else there are fragments without ports
        return found

    def _search(self, key: bytes, needle: bytes, place: PlaceOf, epoch: int | None) -> Iterator[_Sighting]:
        f = Frame()
        looked = 0
        for batch, at, first in reversed(self._noted):
            if epoch is not None and batch.epoch != epoch:
                continue
            for index, start, end in _holding(needle, batch):
                looked += 1
                if looked > MOST_LOOKED:
                    return
                start += batch.vnet
                kind = dissect(f, batch.data, start, end)
                if kind in (frame.MALFORMED, frame.CHATTER):
                    continue
                # Without its ports a fragment's key is the beginning of the datagram's.
                found = flow_key(f, batch.data)
                if found == key or (kind == frame.FRAGMENT and key.startswith(found)):
                    yield _Sighting(kind, first + index, at, batch.data, start, end, place(f, batch.data))


def _needles(key: bytes) -> tuple[bytes, ...]:
    """What to look for to find a flow's frames and dissect no others: where headers are plain, then anywhere."""
    at = 3 + 2 * key[0]
    if not key[1]:  # ethertype, source, destination
        return (key[at + 8 : at + 14] + key[at + 2 : at + 8],)
    addresses = key[at : at + (8 if key[1] == 4 else 32)]
    return (key[at:], addresses) if key[2] in (frame.IPPROTO_TCP, frame.IPPROTO_UDP) else (addresses,)


def _holding(needle: bytes, batch: Batch) -> Iterator[tuple[int, int, int]]:
    """`(index, start, end)` of the frames in which the needle lies, the last first."""
    data = batch.data
    assert isinstance(data, bytes)
    at = data.rfind(needle)
    if at < 0:
        return
    starts = list(accumulate(batch.lengths, initial=0))
    while at >= 0:
        index = bisect_right(starts, at) - 1
        yield index, starts[index], starts[index + 1]
        at = data.rfind(needle, 0, starts[index])


class _Place:
    """Where a divergence lies, and which frames are there.

    `primary` and `secondary` give, for a dissected frame of that side, the index at which the place
    lies in its buffer, or None. A byte that stands behind the last one (a FIN) is at the end.
    """

    def __init__(self, flow: Flow, found: Finding) -> None:
        self._head = flow.held[0] if flow.held and found.reason not in _NOT_THE_HEAD else None
        self._offset = found.offset
        self._seq: int | None = None
        self._syn = False
        #: The datagram that the head was compared with, and where it was found: the newest one alone.
        self._said: bytes | None = None
        self._matched: tuple[int, int] | None = None
        if isinstance(flow, TcpFlow):
            self._syn = self._head is not None and bool(self._head.data[self._head.l4 + tcp.FLAGS] & tcp.SYN)
            if found.offset is not None:
                self._seq = add(flow.frontier_seq, found.offset - flow.frontier)
        elif isinstance(flow, DatagramFlow) and self._head is not None and flow.said:
            self._said = flow.said[0][1]

    def primary(self, f: Frame, buf: Buffer) -> int | None:
        return self._in_segment(f, buf) if f.kind == frame.TCP else None

    def secondary(self, f: Frame, buf: Buffer) -> int | None:
        if f.kind == frame.TCP:
            if self._syn:
                return f.l4 + tcp.FLAGS if buf[f.l4 + tcp.FLAGS] & tcp.SYN else None
            return self._in_segment(f, buf)
        if self._said is None or f.kind == frame.FRAGMENT:
            return None
        if content(buf, f.kind, f.l4, f.payload, f.payload_end) != self._said:
            return None
        if self._matched is None:
            self._matched = id(buf), f.start
        return self._in_datagram(f) if self._matched == (id(buf), f.start) else None

    def held(self, held: Held) -> _Sighting:
        """A frame that waits, as it would leave; the head is at the place whatever it says."""
        f = Frame()
        dissect(f, held.data, held.vnet, len(held.data))
        place = self.primary(f, held.data)
        if held is self._head:
            place = self._in_head(f, held.data) if place is None else place
        return _Sighting(f.kind, held.number, held.arrived, held.data, held.vnet, len(held.data), place)

    def _in_head(self, f: Frame, buf: Buffer) -> int:
        if self._syn:
            return f.l4 + tcp.FLAGS
        if f.kind != frame.TCP:
            return self._in_datagram(f)
        into = diff(self._seq, _U32.unpack_from(buf, f.l4 + tcp.SEQ)[0]) if self._seq is not None else 0
        return f.payload + max(0, min(into, f.payload_end - f.payload))

    def _in_segment(self, f: Frame, buf: Buffer) -> int | None:
        flags = buf[f.l4 + tcp.FLAGS]
        if self._seq is None or flags & (tcp.SYN | tcp.RST):
            return None
        into = diff(self._seq, _U32.unpack_from(buf, f.l4 + tcp.SEQ)[0])
        size = f.payload_end - f.payload
        return f.payload + into if 0 <= into < size + bool(flags & tcp.FIN) else None

    def _in_datagram(self, f: Frame) -> int:
        """`content` leaves ICMP's checksum out."""
        offset = self._offset or 0
        begin = f.payload
        if f.kind in (frame.ICMP, frame.ICMPV6):
            begin = f.l4 + 2 if offset >= icmp.CHECKSUM else f.l4
        return min(begin + offset, f.payload_end)


def _nearest(newest_first: list[_Sighting]) -> list[_Sighting]:
    """Those at the place, then those nearest to the newest of them; without any, the newest."""
    centre = next((sighting.number for sighting in newest_first if sighting.place is not None), None)
    if centre is None:
        return newest_first[:MOST_FRAMES]
    return sorted(newest_first, key=lambda s: (s.place is None, abs(s.number - centre)))[:MOST_FRAMES]


def _told(sighting: _Sighting) -> dict[str, Any]:
    """A frame as the event tells it.

    frame: its first bytes, or for a super-frame whose place lies behind them a segment cut out of it.
    at: when it came. number: on its side, from 1. size: of the whole frame. payload, payload_end: where
    its payload lies in it. place: index of the place of the divergence, for the frames that are there.
    cut: bytes of payload left out in front of a segment.
    """
    f = Frame()
    data, start = sighting.data, sighting.start
    kind = dissect(f, data, start, sighting.end)
    told: dict[str, Any] = {
        "frame": bytes(data[start : min(sighting.end, start + SNAP)]),
        "at": sighting.at,
        "number": sighting.number,
        "size": sighting.end - start,
    }
    if kind != frame.FRAGMENT:
        told |= {"payload": f.payload - start, "payload_end": f.payload_end - start}
    if sighting.place is not None:
        told["place"] = sighting.place - start
        headers = f.payload - start
        if kind == frame.TCP and told["place"] >= SNAP > 2 * headers:
            room = SNAP - headers
            cut = min(sighting.place - f.payload - room // 2, f.payload_end - f.payload - room)
            told |= {"frame": _segment(f, data, cut, room), "place": told["place"] - cut, "cut": cut}
            told["payload_end"] = SNAP
    return told


def _segment(f: Frame, data: Buffer, cut: int, size: int) -> bytes:
    """`size` bytes of a super-frame's payload behind the first `cut`, as a segment; its TCP checksum is not right."""
    part = bytearray(data[f.start : f.payload]) + data[f.payload + cut : f.payload + cut + size]
    l3, l4 = f.l3 - f.start, f.l4 - f.start
    _U32.pack_into(part, l4 + tcp.SEQ, add(_U32.unpack_from(part, l4 + tcp.SEQ)[0], cut))
    if f.payload + cut + size < f.payload_end:
        part[l4 + tcp.FLAGS] &= ~(tcp.FIN | tcp.PSH)
    if f.version == 4:
        _U16.pack_into(part, l3 + ipv4.TOTAL_LENGTH, len(part) - l3)
        _U16.pack_into(part, l3 + ipv4.CHECKSUM, 0)
        _U16.pack_into(part, l3 + ipv4.CHECKSUM, checksum.checksum(part[l3:l4]))
    else:
        _U16.pack_into(part, l3 + ipv6.PAYLOAD_LENGTH, len(part) - l3 - ipv6.HEADER)
    return bytes(part)
