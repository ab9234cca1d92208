"""Digest mode, the comparer's half: what the secondary said, with the bytes that it must have said.

The primary's payload is kept by place. A record of the secondary's (`services/redirector/digest.py`) names a
place, a length and a hash; once the primary has said all of that place, its bytes are hashed. If the hash is
the same, the secondary said these very bytes there, and its frame is put together again: the record's headers,
and the primary's bytes. From there on it is compared like any frame. If the hash is another, the two have
said different things somewhere in that segment. Nothing else ever becomes a frame of the secondary's: a byte
that no record covers stays unsaid, and what is unsaid is never released.

A record waits for the primary's bytes; the primary's bytes wait for records. Both are bounded, and what is
given up can only be missed: it proves nothing.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from lockstep.batch import Batch, Buffer
from lockstep.config import Node
from lockstep.flow.key import describe, flow_key
from lockstep.streams import DIGESTS, PRIMARY, SECONDARY, Cut, Event, Item, Output
from lockstep.wire import ipv4, ipv6, tcp
from lockstep.wire.frame import TCP, Frame, dissect
from lockstep.wire.seqnum import add, diff
from services.comparer.core import Core
from services.redirector.digest import DIGEST, DIGEST_HEAD, HASH_BYTES, KEY, KEY_BYTES, WHOLE, hashed

#: Bytes of the primary, and records of the secondary, that are kept for one flow; and behind what is proven.
MOST_BYTES = 4 << 20
MOST_RECORDS = 4096
HISTORY = 256 << 10
#: Bytes kept for all flows, each counted with what it costs besides; the one that was silent longest goes first.
MOST_KEPT = 256 << 20
OVERHEAD = 1024

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
    epoch: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The primary said something else somewhere in the `size` bytes from `seq` on of the flow `key`."""

    key: bytes
    seq: int
    size: int


#: What follows from a frame or a record: frames of the secondary with `(vnet, epoch)`, and mismatches.
Told = list["tuple[bytes, int, int] | Mismatch"]


@dataclass(slots=True)
class _Flow:
    """The primary's segments that are kept, oldest first, and the records that wait for more of them."""

    segments: deque[tuple[int, bytes]] = field(default_factory=deque)
    size: int = 0
    #: The number behind the last byte that the primary has said.
    end: int | None = None
    waiting: deque[Record] = field(default_factory=deque)
    told: bool = False

    def keep(self, seq: int, payload: bytes) -> None:
        self.segments.append((seq, payload))
        self.size += len(payload)
        end = add(seq, len(payload))
        if self.end is None or diff(end, self.end) > 0:
            self.end = end
        while self.size > MOST_BYTES:
            self.size -= len(self.segments.popleft()[1])

    def proven(self, end: int) -> None:
        """Give up segments that end long before a place that was proven: only a repetition could ask for them."""
        while self.segments and diff(end, add(self.segments[0][0], len(self.segments[0][1]))) > HISTORY:
            self.size -= len(self.segments.popleft()[1])

    def read(self, seq: int, size: int) -> bytes | None:
        """The bytes that the primary said last at this place; None where some are missing."""
        if self.end is None or diff(add(seq, size), self.end) > 0:
            return None
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
    """Turns records into frames, as the primary's bytes allow."""

    def __init__(self) -> None:
        self._secret = b""
        self._frame = Frame()
        #: The flow that said something last is the last.
        self._flows: dict[bytes, _Flow] = {}
        self._kept = 0
        self.counters = {"digests": 0, "matched": 0, "mismatched": 0, "given_up": 0, "malformed_records": 0}

    def primary(self, data: Buffer, start: int, end: int) -> Told:
        """Keep what a primary frame (without virtio-net header) says, and give what that proves of the secondary."""
        f = self._frame
        if dissect(f, data, start, end) != TCP:
            return []
        key = flow_key(f, data)
        if data[f.l4 + tcp.FLAGS] & tcp.SYN:
            self._drop(key)  # another stream, with numbers of its own
        if f.payload_end == f.payload:
            return []
        flow = self._of(key)
        before = flow.size
        flow.keep(_SEQ.unpack_from(data, f.l4)[0], bytes(data[f.payload : f.payload_end]))
        told = self._settled(flow)
        self._kept += flow.size - before
        while self._kept > MOST_KEPT:
            self._drop(next(iter(self._flows)))
        return told

    def secondary(self, record: bytes, vnet: int, epoch: int) -> Told:
        """What a record gives at once. One that nobody makes is counted, and proves nothing."""
        kind = record[0]
        if kind == WHOLE and len(record) > 1:
            return [(record[1:], vnet, epoch)]
        if kind == KEY and len(record) == 1 + KEY_BYTES:
            if record[1:] != self._secret:
                self._secret = record[1:]
                for flow in self._flows.values():
                    self.counters["given_up"] += len(flow.waiting)
                    flow.waiting.clear()
            return []
        read = self._read(record, vnet, epoch) if kind == DIGEST and self._secret else []
        if not read:
            self.counters["malformed_records"] += 1
            return []
        self.counters["digests"] += len(read)
        flow = self._of(read[0].key)
        flow.waiting.extend(read)
        while len(flow.waiting) > MOST_RECORDS:
            flow.waiting.popleft()
            self.counters["given_up"] += 1
        before = flow.size
        told = self._settled(flow)
        self._kept += flow.size - before
        return told

    def committed(self, epoch: int) -> None:
        """What was said in an epoch before this one proves nothing any more."""
        for flow in self._flows.values():
            flow.waiting = deque(record for record in flow.waiting if record.epoch >= epoch)
            flow.told = False

    def _of(self, key: bytes) -> _Flow:
        flow = self._flows.pop(key, None)
        if flow is None:
            flow = _Flow()
            self._kept += OVERHEAD
        self._flows[key] = flow
        return flow

    def _drop(self, key: bytes) -> None:
        flow = self._flows.pop(key, None)
        if flow is not None:
            self._kept -= flow.size + OVERHEAD
            self.counters["given_up"] += len(flow.waiting)

    def _settled(self, flow: _Flow) -> Told:
        told: Told = []
        waiting, flow.waiting = flow.waiting, deque()
        for record in waiting:
            said = flow.read(record.seq, record.size)
            if said is None:
                flow.waiting.append(record)
            elif hashed(said, self._secret) == record.hash:
                self.counters["matched"] += 1
                told.append((record.head + said, record.vnet, record.epoch))
                flow.proven(add(record.seq, record.size))
            else:
                self.counters["mismatched"] += 1
                if not flow.told:
                    flow.told = True
                    told.append(Mismatch(record.key, record.seq, record.size))
        return told

    def _read(self, record: bytes, vnet: int, epoch: int) -> list[Record]:
        """Its chunks, if its headers are those of a TCP segment with the payload cut off; none otherwise."""
        if len(record) < DIGEST_HEAD.size:
            return []
        _, chunk, length = DIGEST_HEAD.unpack_from(record)
        head, said = record[DIGEST_HEAD.size :][:length], record[DIGEST_HEAD.size + length :]
        size, f = _missing(head, vnet), self._frame
        if size <= 0 or not chunk or len(said) != -(-size // chunk) * HASH_BYTES:
            return []
        # The headers with as many zeros as the payload had: dissected like any frame.
        if dissect(f, head + bytes(size), vnet, len(head) + size) != TCP or f.payload != len(head):
            return []
        if head[f.l4 + tcp.FLAGS] & (tcp.SYN | tcp.RST | tcp.URG):
            return []
        key, seq = flow_key(f, head), _SEQ.unpack_from(head, f.l4)[0]
        chunks = []
        for number, at in enumerate(range(0, size, chunk)):
            part = min(chunk, size - at)
            own = _head_of_chunk(head, f, at, part, last=at + part == size)
            one = said[number * HASH_BYTES : (number + 1) * HASH_BYTES]
            chunks.append(Record(own, key, add(seq, at), part, one, vnet, epoch))
        return chunks


def _head_of_chunk(head: bytes, f: Frame, at: int, size: int, *, last: bool) -> bytes:
    """The headers of `size` bytes, `at` bytes into a segment's payload. Checksums stay: nobody looks at them."""
    own = bytearray(head)
    struct.pack_into(">I", own, f.l4 + tcp.SEQ, add(_SEQ.unpack_from(head, f.l4)[0], at))
    if not last:
        own[f.l4 + tcp.FLAGS] &= ~(tcp.FIN | tcp.PSH)
    if f.version == 4:
        _U16.pack_into(own, f.l3 + ipv4.TOTAL_LENGTH, len(head) - f.l3 + size)
    else:
        _U16.pack_into(own, f.l3 + ipv6.PAYLOAD_LENGTH, len(head) - f.l3 - ipv6.HEADER + size)
    return bytes(own)


def _missing(head: bytes, vnet: int) -> int:
    """How many bytes of payload a frame's IP header announces beyond the end of `head`; 0 where there is none."""
    at = vnet + 14
    if len(head) < at:
        return 0
    while head[at - 2 : at] in (b"\x81\x00", b"\x88\xa8") and len(head) >= at + 4:
        at += 4
    ethertype = head[at - 2 : at]
    if ethertype == b"\x08\x00" and len(head) >= at + ipv4.HEADER:
        return int(at + _U16.unpack_from(head, at + ipv4.TOTAL_LENGTH)[0] - len(head))
    if ethertype == b"\x86\xdd" and len(head) >= at + ipv6.HEADER:
        return int(at + ipv6.HEADER + _U16.unpack_from(head, at + ipv6.PAYLOAD_LENGTH)[0] - len(head))
    return 0


class Digested:
    """The comparer of a secondary in digest mode: a core like any other, around the comparer's own.

    primary ───▶┬──────────────────────▶ the comparer ──▶ released
                ▼                              ▲
    digests ──▶ Undigest ── frames ────────────┘
    """

    def __init__(self, config: Node) -> None:
        self._core = Core(config)
        self._undigest = Undigest()

    @property
    def epoch(self) -> int:
        """The comparer's."""
        return self._core.epoch

    @property
    def counters(self) -> dict[str, int]:
        """The comparer's, and those of the records."""
        return self._core.counters | self._undigest.counters

    def push(self, stream: str, item: Item, now: float) -> list[Output]:
        """Take an item of `primary` or `digests`, or an event."""
        if stream != DIGESTS:
            outputs = list(self._core.push(stream, item, now))
            if stream == PRIMARY and isinstance(item, Batch):
                data, vnet = item.data, item.vnet
                for start, end in item.spans():
                    outputs += self._hear(self._undigest.primary(data, start + vnet, end), now)
            elif isinstance(item, Cut) and item.phase == "commit":
                self._undigest.committed(self._core.epoch)
            return outputs
        if not isinstance(item, Batch):
            return list(self._core.push(SECONDARY, item, now))
        told: Told = []
        for start, end in item.spans():
            told += self._undigest.secondary(bytes(item.data[start:end]), item.vnet, item.epoch)
        return self._hear(told, now)

    def _hear(self, told: Told, now: float) -> list[Output]:
        """Give the comparer the secondary's frames, in order, and tell of what differs."""
        outputs: list[Output] = []
        frames = [one for one in told if not isinstance(one, Mismatch)]
        for (vnet, epoch), group in groupby(frames, key=lambda frame: frame[1:]):
            outputs += self._core.push(SECONDARY, Batch.of([frame for frame, _, _ in group], vnet, epoch), now)
        for one in told:
            if isinstance(one, Mismatch):
                outputs.append(Event("digest_mismatch", describe(one.key) | {"seq": one.seq, "size": one.size}))
        return outputs

    def tick(self, now: float, heard: float | None = None) -> list[Output]:
        """See Core in lockstep.streams."""
        return list(self._core.tick(now, heard))

    def next_deadline(self) -> float | None:
        """See Core in lockstep.streams."""
        return self._core.next_deadline()

    def command(self, op: str, arguments: Mapping[str, Any], now: float) -> tuple[dict[str, Any], list[Output]]:
        """What the comparer does."""
        return self._core.command(op, arguments, now)

    def reload(self, config: Node) -> None:
        """See Core in lockstep.streams."""
        self._core.reload(config)

    def undelivered(self, stream: str, item: Batch | Cut, now: float) -> list[Output]:
        """See Core in lockstep.streams."""
        return self._core.undelivered(stream, item, now)

    def status(self) -> dict[str, Any]:
        """The comparer's."""
        return self._core.status()
