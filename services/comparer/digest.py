"""Digest mode, off the lane: what the secondary said, with the bytes that it must have said.

In the lane a chunk that the secondary hashed is compared where it lies (`lane.py`). Of the flows that take the
careful path, the primary's payload is kept by place. A record of the secondary's (`services/redirector/digest.py`)
names a place, a length and a hash; once the primary has said all of that place, its bytes are hashed. If the hash is
the same, the secondary said these very bytes there, and its frame is put together again: the record's headers,
and the primary's bytes. From there on it is compared like any frame. If the hash is another, the two have
said different things somewhere in that segment. Nothing else ever becomes a frame of the secondary's: a byte
that no record covers stays unsaid, and what is unsaid is never released.

A record waits for the primary's bytes; the primary's bytes wait for records. Both are bounded, and what is
given up can only be missed: it proves nothing.
"""

from __future__ import annotations

import heapq
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from lockstep.batch import Buffer
from lockstep.flow.key import flow_key
from lockstep.wire import ipv4, ipv6, tcp
from lockstep.wire.frame import Frame
from lockstep.wire.seqnum import add, diff
from services.comparer.flow import Held
from services.comparer.record import Reader
from services.comparer.tcp import TcpFlow
from services.redirector.digest import DIGEST, HASH_BYTES, WHOLE, Hasher

#: Bytes of the primary, and records of the secondary, that are kept for one flow; and behind what is proven.
MOST_BYTES = 4 << 20
MOST_RECORDS = 4096
HISTORY = 256 << 10
#: Bytes kept for all flows, each counted with what it costs besides; the one that was silent longest goes first.
MOST_KEPT = 256 << 20
OVERHEAD = 1024
#: What a record that waits is counted as.
RECORD = 512

#: Counters of a comparer in digest mode. digests: chunks that came; the others tell what became of them.
COUNTERS = ("digests", "matched", "mismatched", "given_up", "malformed_records")

_SEQ = struct.Struct(">4xI")
_U16 = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class Record:
    """A segment of the secondary's, or a chunk of one, without its payload.

    head: its frame up to there, virtio-net header first. seq, size, hash: of the payload.
    """

    head: bytes
    key: bytes
    seq: int
    size: int
    hash: bytes
    vnet: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The primary said something else somewhere in the `size` bytes from `seq` on of the flow `key`."""

    key: bytes
    seq: int
    size: int


#: What follows from a frame or a record: frames of the secondary with their virtio-net header's size, and mismatches.
Told = list["tuple[bytes, int] | Mismatch"]


@dataclass(slots=True)
class _Flow:
    """The primary's segments that are kept, oldest first, and the records that wait for more of them.

    Places count bytes of the stream, from wherever it was first heard of.
    """

    segments: deque[tuple[int, bytes]] = field(default_factory=deque)
    #: The newest segment at each number.
    at: dict[int, bytes] = field(default_factory=dict)
    size: int = 0
    #: The number and the place behind the last byte that the primary has said; `said`: it has said any.
    end: int | None = None
    end_place: int = 0
    said: bool = False
    #: Records by the place of their end: of what the primary has not said yet, and (few) of what is missing here.
    early: list[tuple[int, int, Record]] = field(default_factory=list)
    stuck: list[Record] = field(default_factory=list)
    told: bool = False

    def kept(self) -> int:
        return self.size + RECORD * self.waiting() + OVERHEAD

    def waiting(self) -> int:
        return len(self.early) + len(self.stuck)

    def keep(self, seq: int, payload: bytes) -> None:
        self.segments.append((seq, payload))
        self.at[seq] = payload
        self.size += len(payload)
        place = self._place(add(seq, len(payload)))
        if place > self.end_place or not self.said:
            self.end, self.end_place, self.said = add(seq, len(payload)), place, True
        while self.size > MOST_BYTES:
            self._drop_oldest()

    def _place(self, seq: int) -> int:
        if self.end is None:
            self.end = seq
        return self.end_place + diff(seq, self.end)

    def _drop_oldest(self) -> None:
        seq, payload = self.segments.popleft()
        self.size -= len(payload)
        if self.at.get(seq) is payload:
            del self.at[seq]

    def proven(self, end: int) -> None:
        """Give up segments that end long before a place that was proven: only a repetition could ask for them."""
        while self.segments and diff(end, add(self.segments[0][0], len(self.segments[0][1]))) > HISTORY:
            self._drop_oldest()

    def wait(self, record: Record, tie: int) -> None:
        """Keep a record until the primary has said its place."""
        heapq.heappush(self.early, (self._place(add(record.seq, record.size)), tie, record))

    def due(self) -> list[Record]:
        """The records that wait, and whose place the primary has said by now."""
        due, self.stuck = self.stuck, []
        while self.said and self.early and self.early[0][0] <= self.end_place:
            due.append(heapq.heappop(self.early)[2])
        return due

    def give_up(self, most: int) -> int:
        """Give up records until no more than these wait; how many."""
        given = 0
        while self.waiting() > most:
            if self.stuck:
                del self.stuck[0]
            else:
                heapq.heappop(self.early)
            given += 1
        return given

    def read(self, seq: int, size: int) -> bytes | None:
        """The bytes that the primary said last at this place; None where some are missing."""
        found = bytearray(size)
        missing = [(0, size)]
        for at, payload in reversed(self.segments):
            start = diff(at, seq)
            end = start + len(payload)
            rest = []
            for low, high in missing:
                a, b = max(low, start), min(high, end)
                if a >= b:
                    rest.append((low, high))
                    continue
                found[a:b] = payload[a - start : b - start]
                rest += [part for part in ((low, a), (b, high)) if part[0] < part[1]]
            missing = rest
            if not missing:
                return bytes(found)
        return None


class Undigest:
    """Turns records into frames, as the primary's bytes allow. Counts in `counters`."""

    def __init__(self, counters: dict[str, int], most_bytes: int) -> None:
        """most_bytes: of all flows together, but never more than MOST_KEPT."""
        self.counters = counters
        self._most = min(MOST_KEPT, most_bytes)
        counters.update(dict.fromkeys(COUNTERS, 0))
        self._hashed: Hasher | None = None
        self._frame, self._reader = Frame(), Reader()
        #: The flow that said something last is the last.
        self._flows: dict[bytes, _Flow] = {}
        self._kept = self._ties = 0

    def primary(self, key: bytes, f: Frame, data: Buffer) -> Told:
        """Keep what a segment of the primary says, dissected in `f`, and give what that proves of the secondary."""
        if data[f.l4 + tcp.FLAGS] & tcp.SYN:
            self.drop(key)  # another stream, with numbers of its own
        if f.payload_end == f.payload:
            return []
        flow, before = self._of(key)
        flow.keep(_SEQ.unpack_from(data, f.l4)[0], bytes(data[f.payload : f.payload_end]))
        told = self._settled(flow)
        self._count(flow, before)
        return told

    def secondary(self, data: Buffer, start: int, end: int, vnet: int) -> Told:
        """What the record `data[start:end]` gives at once. One that nobody makes is counted, and proves nothing."""
        kind = self._reader.read(self._frame, data, start, end, vnet)
        if kind == WHOLE:
            return [(bytes(data[self._reader.at : end]), vnet)]
        if kind != DIGEST or self._hashed is None:
            self.counters["malformed_records"] += 1
            return []
        read = self._chunks(data, vnet)
        self.counters["digests"] += len(read)
        flow, before = self._of(read[0].key)
        for chunk in read:
            self._ties += 1
            flow.wait(chunk, self._ties)
        told = self._settled(flow)
        self.counters["given_up"] += flow.give_up(MOST_RECORDS)
        self._count(flow, before)
        return told

    def adopt(self, flow: TcpFlow, held: Iterable[Held]) -> None:
        """Take over from the lane what the primary said in a flow: its history, and what waits."""
        one, before = self._of(flow.key)
        for place, run in flow.said.runs():
            one.keep(add(flow.frontier_seq, place - flow.frontier), run)
        for head in held:
            if head.payload_end > head.payload:
                one.keep(_SEQ.unpack_from(head.data, head.l4)[0], head.data[head.payload : head.payload_end])
        self._count(one, before)

    def release(self, flow: TcpFlow) -> bool:
        """Give up what is kept of a flow that goes into the lane; False if records wait for what is yet to come."""
        one = self._flows.get(flow.key)
        if one is None:
            return True
        if one.early or any(diff(add(record.seq, record.size), flow.frontier_seq) > 0 for record in one.stuck):
            return False
        self.drop(flow.key)
        return True

    def drop(self, key: bytes) -> None:
        """Give up all that is kept of a flow."""
        flow = self._flows.pop(key, None)
        if flow is not None:
            self._kept -= flow.kept()
            self.counters["given_up"] += flow.waiting()

    def clear(self) -> None:
        """Know no flow any more."""
        self._flows.clear()
        self._kept = 0

    def forget_secondary(self) -> None:
        """What the secondary has said so far proves nothing any more."""
        for flow in self._flows.values():
            before = flow.kept()
            self.counters["given_up"] += flow.give_up(0)
            flow.told = False
            self._kept += flow.kept() - before

    def new_key(self, hashed: Hasher) -> None:
        """Records are hashed by this from now on; those that wait were hashed otherwise."""
        self._hashed = hashed
        self.forget_secondary()

    def _of(self, key: bytes) -> tuple[_Flow, int]:
        """A flow, which is the last from now on, and how much is kept of it."""
        flow = self._flows.pop(key, None)
        if flow is None:
            flow = _Flow()
            self._kept += flow.kept()
        self._flows[key] = flow
        return flow, flow.kept()

    def _count(self, flow: _Flow, before: int) -> None:
        self._kept += flow.kept() - before
        while self._kept > self._most:
            self.drop(next(iter(self._flows)))

    def _settled(self, flow: _Flow) -> Told:
        told: Told = []
        for record in flow.due():
            said = flow.at.get(record.seq)
            if said is None or not self._is_said(said, record):
                said = flow.read(record.seq, record.size)
            if said is None:
                flow.stuck.append(record)
            elif self._is_said(said, record):
                self.counters["matched"] += 1
                told.append((record.head + said, record.vnet))
                flow.proven(add(record.seq, record.size))
            else:
                self.counters["mismatched"] += 1
                if not flow.told:
                    flow.told = True
                    told.append(Mismatch(record.key, record.seq, record.size))
        return told

    def _is_said(self, payload: bytes, record: Record) -> bool:
        """Whether a payload of the primary's is what the secondary said in this record."""
        return len(payload) == record.size and self._hashed is not None and self._hashed(payload) == record.hash

    def _chunks(self, data: Buffer, vnet: int) -> list[Record]:
        """The chunks of the digest that was read last."""
        f, reader = self._frame, self._reader
        head = bytes(data[reader.at : reader.hashes])
        key, seq = flow_key(f, data), _SEQ.unpack_from(data, f.l4)[0]
        chunks = []
        for number, at in enumerate(range(0, reader.size, reader.chunk)):
            part = min(reader.chunk, reader.size - at)
            own = _head_of_chunk(head, f, reader.at, at, part, last=at + part == reader.size)
            hashed = reader.hashes + number * HASH_BYTES
            chunks.append(Record(own, key, add(seq, at), part, bytes(data[hashed : hashed + HASH_BYTES]), vnet))
        return chunks


def _head_of_chunk(head: bytes, f: Frame, shift: int, at: int, size: int, *, last: bool) -> bytes:
    """The headers of `size` bytes, `at` bytes into a segment's payload. Checksums stay: nobody looks at them.

    f: of the segment's headers, `shift` bytes further than in `head`.
    """
    own = bytearray(head)
    l3, l4 = f.l3 - shift, f.l4 - shift
    struct.pack_into(">I", own, l4 + tcp.SEQ, add(_SEQ.unpack_from(head, l4)[0], at))
    if not last:
        own[l4 + tcp.FLAGS] &= ~(tcp.FIN | tcp.PSH)
    if f.version == 4:
        _U16.pack_into(own, l3 + ipv4.TOTAL_LENGTH, len(head) - l3 + size)
    else:
        _U16.pack_into(own, l3 + ipv6.PAYLOAD_LENGTH, len(head) - l3 - ipv6.HEADER + size)
    return bytes(own)
