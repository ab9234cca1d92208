"""Captures changed as replicas differ: cut elsewhere, other numbers and clocks, doubled, reordered, or one byte wrong.

It reads frames on its own and knows nothing of the code under test. Every function takes and gives a list
of `Record`s and draws from the `Random` it is given.
"""

from __future__ import annotations

import gzip
import ipaddress
import itertools
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from random import Random

from packets import ACK, FIN, PSH, RST, SYN, inet_checksum, pseudo

from lockstep.capture.pcapfile import PcapngWriter, PcapWriter, read_packets

MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Record:
    """A captured frame."""

    data: bytes
    time_ns: int = 0
    linktype: int = 1
    original: int = 0

    @property
    def whole(self) -> bool:
        return self.original <= len(self.data)


@dataclass(frozen=True)
class View:
    """Where a segment or datagram lies in its frame. `end` is what its IP header claims."""

    version: int
    protocol: int
    l3: int
    l4: int
    payload: int
    end: int
    fragment: bool = False

    def flow(self, data: bytes) -> str:
        """As `lockstep compare` names it."""
        ends = []
        for at, port in zip(self.addresses(), (self.l4, self.l4 + 2), strict=True):
            size = 4 if self.version == 4 else 16
            host = str(ipaddress.ip_address(data[at : at + size]))
            ends.append(f"{f'[{host}]' if self.version == 6 else host}:{int.from_bytes(data[port : port + 2], 'big')}")
        return " ".join(ends)

    def addresses(self) -> tuple[int, int]:
        return (self.l3 + 12, self.l3 + 16) if self.version == 4 else (self.l3 + 8, self.l3 + 24)


def view(record: Record) -> View | None:
    """The TCP segment or UDP datagram of a frame; None if there is none, or its header is not all there."""
    data, link = record.data, record.linktype
    if link == 1:
        at = 14
        while data[at - 2 : at] in (b"\x81\0", b"\x88\xa8") and at < 30:
            at += 4
        kind = data[at - 2 : at]
    elif link == 113:
        at, kind = 16, data[14:16]
    elif link == 276:
        at, kind = 20, data[0:2]
    elif link in (101, 12, 14, 228, 229):
        at = 0
        kind = {4: b"\x08\0", 6: b"\x86\xdd"}.get(data[0] >> 4 if data else 0, b"")
    else:
        return None
    if kind == b"\x08\0" and len(data) >= at + 20 and data[at] >> 4 == 4:
        total = int.from_bytes(data[at + 2 : at + 4], "big") or max(record.original, len(data)) - at  # 0 by offload
        l4, end, protocol = at + (data[at] & 15) * 4, at + total, data[at + 9]
        place = int.from_bytes(data[at + 6 : at + 8], "big") & 0x3FFF
        if l4 < at + 20 or place & 0x1FFF:
            return None
        fragment = bool(place)
    elif kind == b"\x86\xdd" and len(data) >= at + 40 and data[at] >> 4 == 6:
        l4, end, protocol, fragment = (
            at + 40,
            at + 40 + int.from_bytes(data[at + 4 : at + 6], "big"),
            data[at + 6],
            False,
        )
        if end == at + 40:  # 0 by offload
            end = max(record.original, len(data))
        while protocol in (0, 43, 44, 60) and l4 + 8 <= min(len(data), end):
            if protocol == 44:
                if data[l4 + 2 : l4 + 4] != b"\0\0":
                    return None
                protocol, l4 = data[l4], l4 + 8
            else:
                protocol, l4 = data[l4], l4 + (data[l4 + 1] + 1) * 8
    else:
        return None
    if protocol == 6 and min(len(data), end) >= l4 + 20:
        payload = l4 + (data[l4 + 12] >> 4) * 4
        if payload < l4 + 20 or payload > min(len(data), end):
            return None
    elif protocol == 17 and min(len(data), end) >= l4 + 8:
        payload = l4 + 8
        length = int.from_bytes(data[l4 + 4 : l4 + 6], "big")
        if length < 8 or (l4 + length > end and not fragment):
            return None
        end = min(end, l4 + length)
    else:
        return None
    return View(data[at] >> 4, protocol, at, l4, payload, end, fragment)


def tcp(record: Record, *, whole: bool = True) -> View | None:
    """The view of a TCP segment. `whole`: all of it is there, in one piece."""
    v = view(record)
    if v is None or v.protocol != 6 or (whole and (v.fragment or v.end > len(record.data) or not record.whole)):
        return None
    return v


def numbers(data: bytes, v: View) -> tuple[int, int, int]:
    """seq, ack, flags."""
    seq, ack = struct.unpack_from(">II", data, v.l4 + 4)
    return seq, ack, data[v.l4 + 13]


def direction(data: bytes, v: View) -> tuple[bytes, bytes]:
    """Both ends, the sender first. VLANs are left out: they see the same connection."""
    a, b = v.addresses()
    size = 4 if v.version == 4 else 16
    return data[a : a + size] + data[v.l4 : v.l4 + 2], data[b : b + size] + data[v.l4 + 2 : v.l4 + 4]


def sealed(data: bytearray, v: View) -> bytes:
    """The frame with right lengths and checksums."""
    if v.version == 4:
        if v.end - v.l3 <= 0xFFFF:  # else 0, as offload leaves it
            struct.pack_into(">H", data, v.l3 + 2, v.end - v.l3)
        data[v.l3 + 10 : v.l3 + 12] = b"\0\0"
        struct.pack_into(">H", data, v.l3 + 10, inet_checksum(bytes(data[v.l3 : v.l4])))
    elif v.end - v.l3 - 40 <= 0xFFFF:
        struct.pack_into(">H", data, v.l3 + 4, v.end - v.l3 - 40)
    if not v.fragment and v.end <= len(data):
        a, b = (str(ipaddress.ip_address(bytes(data[at : at + (4 if v.version == 4 else 16)]))) for at in v.addresses())
        data[v.l4 + 16 : v.l4 + 18] = b"\0\0"
        over = pseudo(a, b, 6, v.end - v.l4)
        struct.pack_into(">H", data, v.l4 + 16, inet_checksum(over + bytes(data[v.l4 : v.end])))
    return bytes(data)


# What changes no verdict.


def recut(records: Iterable[Record], random: Random, *, often: float = 0.5) -> list[Record]:
    """TCP payload cut into pieces, or neighbours of one stream joined."""
    out: list[Record] = []
    for record in records:
        v = tcp(record)
        if v is None:
            out.append(record)
            continue
        joined = _joined(out[-1], record, v) if out and random.random() < often else None
        if joined is not None:
            out[-1] = joined
            continue
        size = v.end - v.payload
        seq, _, flags = numbers(record.data, v)
        if size < 2 or flags & (SYN | RST) or random.random() > often:
            out.append(record)
            continue
        cuts = sorted({0, size, *(random.randrange(1, size) for _ in range(random.randint(1, 3)))})
        for start, end in itertools.pairwise(cuts):
            data = bytearray(record.data[: v.payload] + record.data[v.payload + start : v.payload + end])
            struct.pack_into(">I", data, v.l4 + 4, (seq + start) & MASK)
            if end != size:
                data[v.l4 + 13] &= ~(FIN | PSH) & 0xFF
            piece = replace(v, end=v.payload + end - start)
            out.append(replace(record, data=sealed(data, piece), original=len(data)))
    return out


def _joined(first: Record, second: Record, w: View) -> Record | None:
    v = tcp(first)
    if v is None or first.linktype != second.linktype or (v.l3, v.l4, v.payload) != (w.l3, w.l4, w.payload):
        return None
    if direction(first.data, v) != direction(second.data, w) or first.data[: v.l3] != second.data[: w.l3]:
        return None
    (seq, ack, flags), (seq2, ack2, flags2) = numbers(first.data, v), numbers(second.data, w)
    size = v.end - v.payload
    if not size or w.end == w.payload or (seq + size) & MASK != seq2 or (flags | flags2) & (SYN | RST) or flags & FIN:
        return None
    if size + w.end - w.payload > 60_000 or (ack2 - ack) & MASK >= 1 << 31:
        return None
    data = bytearray(second.data[: w.payload] + first.data[v.payload : v.end] + second.data[w.payload : w.end])
    struct.pack_into(">I", data, w.l4 + 4, seq)
    return replace(second, data=sealed(data, replace(w, end=len(data))), original=len(data))


class _Shifts:
    """One constant for each direction of two ends; `anew`: for each of their connections, as a replica draws ISNs.

    A connection begins with a SYN of another number, and where a segment is far from all that were before; and it
    stays far from them: nearer, and without a SYN, it would be the same connection going on.
    """

    def __init__(self, random: Random, *, anew: bool) -> None:
        self._random, self._anew = random, anew
        #: Of each connection its first number, its last one and the constant.
        self._known: dict[tuple[bytes, bytes], list[list[int]]] = {}

    def of(self, ends: tuple[bytes, bytes], number: int, *, syn: bool = False) -> int:
        known = self._known.setdefault(ends, [])
        for connection in reversed(known):
            first, last, shift = connection
            if not self._anew or (number == first if syn else not _far(number, last)):
                connection[1] = number
                return shift
        shift = self._random.randrange(1 << 32)
        while not all(_far(number + shift, last + other) for _, last, other in known):
            shift = self._random.randrange(1 << 32)
        known.append([number, number, shift])
        return shift


def _far(a: int, b: int) -> bool:
    return 1 << 27 <= (a - b) & MASK <= (1 << 32) - (1 << 27)


def shifted(records: Iterable[Record], random: Random, *, anew: bool = False) -> list[Record]:
    """Other ISNs and other clocks: a constant for each (`_Shifts`), wraps included."""
    isns, clocks = _Shifts(random, anew=anew), _Shifts(random, anew=False)
    out = []
    for record in records:
        v = tcp(record, whole=False)
        if v is None:
            out.append(record)
            continue
        data = bytearray(record.data)
        a, b = direction(record.data, v)
        seq, ack, flags = numbers(record.data, v)
        struct.pack_into(">I", data, v.l4 + 4, (seq + isns.of((a, b), seq, syn=bool(flags & SYN))) & MASK)
        if flags & ACK:
            struct.pack_into(">I", data, v.l4 + 8, (ack + isns.of((b, a), ack)) & MASK)
        at = v.l4 + 20
        while at + 1 < v.payload and data[at] != 0:
            if data[at] == 1:
                at += 1
                continue
            size = data[at + 1]
            if size < 2 or at + size > v.payload:
                break
            moves: list[tuple[int, int]] = []
            if data[at] == 8 and size == 10:
                moves = [(at + 2, clocks.of((a, b), 0)), (at + 6, clocks.of((b, a), 0))]
            elif data[at] == 5 and (size - 2) % 8 == 0:
                moves = [(edge, isns.of((b, a), ack)) for edge in range(at + 2, at + size, 4)]
            for field, delta in moves:
                struct.pack_into(">I", data, field, (struct.unpack_from(">I", data, field)[0] + delta) & MASK)
            at += size
        out.append(replace(record, data=sealed(data, v) if record.whole and v.end <= len(data) else bytes(data)))
    return out


def renumbered(records: Iterable[Record], random: Random) -> list[Record]:
    """Other ISNs for each of the connections that two ports have one after the other."""
    return shifted(records, random, anew=True)


def doubled(records: Iterable[Record], random: Random, *, often: float = 0.1, window: int = 8) -> list[Record]:
    """TCP segments sent again, a little later."""
    keyed: list[tuple[int, int, Record]] = []
    for index, record in enumerate(records):
        keyed.append((index, 0, record))
        if tcp(record) is not None and random.random() < often:
            keyed.append((index + random.randint(0, window), 1, record))
    return [record for _, _, record in sorted(keyed, key=lambda entry: entry[:2])]


def reordered(records: Iterable[Record], random: Random, *, window: int = 8) -> list[Record]:
    """Every frame may be overtaken by the next `window`."""
    keyed = [(index + random.uniform(0, window), record) for index, record in enumerate(records)]
    return [record for _, record in sorted(keyed, key=lambda entry: entry[0])]


def disguised(records: Iterable[Record], random: Random, *, window: int = 8) -> list[Record]:
    """All of it at once: what the other replica of the same guest might have sent."""
    return reordered(doubled(shifted(recut(records, random), random), random, window=window), random, window=window)


# What does.


@dataclass(frozen=True)
class Flip:
    """One wrong payload byte: the capture with it, and what is to be said of it."""

    records: list[Record]
    flow: str
    offset: int
    frame: int
    #: The byte as it was, and as it is.
    byte: tuple[int, int]


def flipped(records: list[Record], random: Random, *, protocols: tuple[int, ...] = (6, 17)) -> Flip | None:
    """Change one payload byte of a segment or datagram. None if the capture has none."""
    places = []
    torn = {_key(r.data, v)[:2] for r in records if (v := view(r)) is not None and v.fragment}
    for index, record in enumerate(records):
        v = view(record)
        if v is not None and _key(record.data, v)[:2] in torn:
            continue  # its datagrams' sizes are not to be had from single frames
        if v is not None and not v.fragment and v.protocol in protocols and min(v.end, len(record.data)) > v.payload:
            places.append((index, v))
    if not places:
        return None
    index, v = random.choice(places)
    record = records[index]
    at = random.randrange(v.payload, min(v.end, len(record.data)))
    data = bytearray(record.data)
    data[at] ^= 1 << random.randrange(8)
    changed = list(records)
    changed[index] = replace(record, data=bytes(data))
    return Flip(changed, v.flow(record.data), place(records, index, at), index + 1, (record.data[at], data[at]))


def place(records: list[Record], index: int, at: int) -> int:
    """Where byte `at` of a frame stands in its direction's stream, by the rules in the command's help."""
    v = view(records[index])
    assert v is not None
    base = 0
    origins: list[int] = []
    if v.protocol == 6 and numbers(records[index].data, v)[2] & SYN:
        return at - v.payload
    for record in records[: index + 1]:
        w = view(record)
        if w is None or w.protocol != v.protocol or _key(record.data, w) != _key(records[index].data, v):
            continue
        if v.protocol == 17:
            base += 0 if record is records[index] else w.end - w.payload
            continue
        seq, _, flags = numbers(record.data, w)
        if flags & SYN or not origins:
            origins.append(seq + bool(flags & SYN))
    if v.protocol == 17:
        return base + at - v.payload
    seq = numbers(records[index].data, v)[0]
    distance = (seq - origins[-1]) & MASK
    # Only a little before the origin is before it; else a leap is one forward.
    return at - v.payload + (distance if distance < (1 << 32) - (1 << 26) else distance - (1 << 32))


def _key(data: bytes, v: View) -> tuple[object, ...]:
    tags = tuple(int.from_bytes(data[i : i + 2], "big") & 0xFFF for i in range(14, v.l3 - 2, 4)) if v.l3 >= 18 else ()
    return (*direction(data, v), tags)


# Files.


def read(path: Path) -> list[Record]:
    return [Record(p.data, p.time_ns, p.linktype, p.original_length) for p in read_packets(path)]


def write(path: Path, records: list[Record]) -> Path:
    """A pcap or pcapng file, as the suffix says; `.gz` behind it for gzip. One link type."""
    made = BytesIO()
    kind = records[0].linktype if records else 1
    assert all(record.linktype == kind for record in records), "one link type a file here"
    writer: PcapWriter | PcapngWriter
    writer = PcapngWriter(made, kind) if ".pcapng" in path.suffixes else PcapWriter(made, kind)
    for record in records:
        raw = bytearray(writer.record(record.data, max(0, record.time_ns)))
        if record.original > len(record.data):
            field = 24 if isinstance(writer, PcapngWriter) else 12
            struct.pack_into("<I", raw, field, record.original)
        made.write(bytes(raw))
    body = made.getvalue()
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path
