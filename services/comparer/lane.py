# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The fast lane: in-order segments of both sides are matched in place, without an object for any of them.

A TCP flow is in the lane while nothing about it is out of the ordinary: segments with ACK (and PSH) and
in order on each side, however they are cut. It is then a record of 128 bytes (`lockstep.flow.records`),
and its frames that wait are entries of a ring that point into the batches they came in:

    record ── primary's queue ──▶ entry ──▶ entry        entry: batch, frame, offset, size
           └─ secondary's queue ─▶ entry

As soon as both queues have bytes they are compared where they lie. A primary frame all of whose bytes are
equal, whose ack is not ahead of the secondary's, and whose window need not be lowered is marked to leave.
A batch in which every frame left at once is passed on as it came.

Whatever is not ordinary takes the careful path: the flow is *promoted*, that is, its record and its queues
become a `TcpFlow` with held frames, and `Core` judges it frame by frame until it is ordinary again. So the
lane decides one thing alone: that a frame is proven. Differences, time-outs and limits are found by the other path.

What left lately is kept by reference for a while: a promoted flow is given its history, with which the
primary's retransmissions are compared.

In digest mode (`services/redirector/digest.py`) the secondary's queue has an entry for each chunk that it hashed.
Once the primary has said all of a chunk its bytes are hashed; if the hash is the same, they are what the
secondary said, and need not be compared any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockstep.batch import Batch, BatchBuilder, Buffer
from lockstep.flow.records import FIELDS, FLAGS, MOST_TAGS, OWN, Records
from lockstep.wire import frame, tcp
from lockstep.wire.bytes import equal, number32
from lockstep.wire.frame import Frame, dissect, dissect_at
from services.comparer.flow import Held
from services.comparer.record import Reader
from services.comparer.said import Said
from services.comparer.side import (
    E_INDEX,
    E_L4,
    E_NEXT,
    E_PREVIOUS,
    E_RECORD,
    E_SIZE,
    E_START,
    RING,
    Kept,
    Side,
)  # fmt: skip
from services.comparer.tcp import HISTORY, TcpFlow
from services.comparer.window import Window
from services.redirector.digest import DIGEST, HASH_BYTES, KEY, WHOLE, Hasher, hasher

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

if TYPE_CHECKING:
    from services.comparer.core import Core

#: Seconds that a primary frame waits in the lane, and that the secondary's bytes do, before they go the careful way.
PRIMARY_STALL, SECONDARY_STALL = 0.02, 0.1
#: With more frames than FEW waiting, the secondary is late rather than a few heads stuck: the primary's wait so long.
FEW, BACKLOG_STALL = 1024, 0.25
#: Frames that take it at once; the others at the next turn of the loop.
MOST_AT_ONCE = 256
#: Bytes of a side that wait in the lane; beyond that the oldest flows take the careful path.
MOST_BYTES = 32 << 20
#: Bytes and batches that have left and are still kept, as history.
RECENT_BYTES, RECENT_BATCHES = 8 << 20, 4096
#: Bytes of histories that flows brought with them into the lane, and seconds until they are given up.
BROUGHT_BYTES, BROUGHT_AGE = 8 << 20, 5.0

#: With more flows than MANY, so many frames (a power of 2) are looked at ahead, to have their records on the way.
MANY, AHEAD = 16_384, 32
#: Records looked at in one sweep.
SWEPT = 65_536

#: Of the secondary's entries in digest mode, E_PREVIOUS is where the hash lies. PROVEN: the bytes are the primary's.
PROVEN = 1
#: What a record is that tells of no frame, beside the kinds of frames.
NO_FRAME = -2
#: Entries of one batch at most: a record can have many chunks.
MOST_ENTRIES = RING // 2

#: Bits of FLAGS. CAREFUL: a `TcpFlow` stands for this flow. The shift of the window scale is in bits 8 to 11.
CAREFUL, P_SEEN, S_SEEN, ACKED_SET, LEFT_SET, SCALED, EDGE_SET, TOLD_SET = (1 << bit for bit in range(8))
SYN_KNOWN, MATCHED_KNOWN = 1 << 12, 1 << 13
SHIFT_AT = 8
#: Fields of a record, each side's in its own sequence numbers mapped to the primary's.
#: P_SEQ, S_SEQ: what is expected next. FRONT: the first number that has not left. ACKED: the secondary's highest
#: ack, LEFT_ACK the highest that left. P_USED, S_USED: bytes of the queues' heads that are compared already.
#: EDGE, TOLD: see window.py. SYN_*: see tcp.py. PLACE: of FRONT in the stream, 64 bits.
(
    TOUCHED, P_SEQ, S_SEQ, ACKED, LEFT_ACK, P_HEAD, P_TAIL, S_HEAD, S_TAIL, P_USED, S_USED, FRONT, EDGE, TOLD,
    SYN_SEQ, SYN_MATCHED, SYN_MARK, SYN_MARK_HIGH, PLACE, PLACE_HIGH,
) = range(OWN, OWN + 20)  # fmt: skip
_FIELDS, _FLAGS = FIELDS, FLAGS
_CAREFUL, _P_SEEN, _S_SEEN, _ACKED_SET, _LEFT_SET = CAREFUL, P_SEEN, S_SEEN, ACKED_SET, LEFT_SET
_SCALED, _EDGE_SET, _TOLD_SET, _SHIFT_AT = SCALED, EDGE_SET, TOLD_SET, SHIFT_AT
_TOUCHED, _P_SEQ, _S_SEQ, _ACKED, _LEFT_ACK, _P_HEAD, _P_TAIL = TOUCHED, P_SEQ, S_SEQ, ACKED, LEFT_ACK, P_HEAD, P_TAIL
_S_HEAD, _S_TAIL, _P_USED, _S_USED, _FRONT, _EDGE, _TOLD = S_HEAD, S_TAIL, P_USED, S_USED, FRONT, EDGE, TOLD
_PLACE, _PLACE_HIGH = PLACE, PLACE_HIGH
_E_INDEX, _E_START, _E_L4 = E_INDEX, E_START, E_L4
_E_SIZE, _E_NEXT, _E_PREVIOUS, _E_RECORD = E_SIZE, E_NEXT, E_PREVIOUS, E_RECORD
_TCP, _CHATTER = frame.TCP, frame.CHATTER
_SEQ, _ACK_NUMBER, _FLAGS_AT, _WINDOW = tcp.SEQ, tcp.ACK_NUMBER, tcp.FLAGS, tcp.WINDOW
_ACK = tcp.ACK
_ORDINARY = tcp.ACK | tcp.SYN | tcp.FIN | tcp.RST | tcp.URG
_MANY, _AHEAD = MANY, AHEAD
_PROVEN, _MOST_ENTRIES = PROVEN, MOST_ENTRIES
_WHOLE, _DIGEST, _KEY, _HASH_BYTES = WHOLE, DIGEST, KEY, HASH_BYTES
_MALFORMED, _NO_FRAME = frame.MALFORMED, NO_FRAME
_MASK, _HALF = 0xFFFFFFFF, 0x80000000


class Lane:
    """The flows in the lane, and the batches of both sides that they wait in. `core` does all that is careful."""

    def __init__(self, core: Core, capacity: int, most_bytes: int, *, digests: bool = False) -> None:
        self.core = core
        self._digests = digests
        #: The record at work; of a digest, the bytes of a chunk, and 0 of anything else.
        self._reader = Reader()
        self._chunk = 0
        #: Chunks that came for the lane, those that were proven there, and keys, since somebody last looked.
        self.chunks = self.matched = self.keys = 0
        self._secret = b""
        self._hasher: Hasher | None = None
        self._most_bytes = min(MOST_BYTES, most_bytes)
        self.records = Records(capacity)
        self.fields = self.records.fields
        self.capacity = capacity
        #: Flows in the lane, and how many more may come.
        self.count = self.room = 0
        #: New flows are to be looked at by the careful path first.
        self.ask = False
        self.waiting = 0
        self._frame, self._held_frame = Frame(), Frame()
        if not cython.compiled:
            self._ahead = [0] * AHEAD  # compiled, it lies in this object
        self._now = 0.0
        self._primary, self._secondary = Side(), Side()
        self._touched: list[Kept] = []
        self._builder = BatchBuilder()
        #: What flows brought with them, by record, oldest first: (when, bytes by place).
        self._brought: dict[int, tuple[float, Said]] = {}
        self._brought_bytes = 0
        self._swept = 0

    # --- what arrives

    def primary(self, batch: Batch, now: float, number: int) -> None:
        """Take a batch of the primary, whose first frame has this number; `leaving` tells what of it may leave."""
        if not batch.lengths:
            return
        self._now = now
        self._make_room(self._primary, len(batch.lengths), _P_HEAD)
        self._take_primary(self._primary.take(batch, number, now), batch.vnet)
        self._primary.let_go(RECENT_BYTES, RECENT_BATCHES)

    def _take_primary(self, kept: Kept, vnet: int) -> None:
        f, data, fields, side = self._frame, kept.data, self.fields, self._primary
        seconds = int(self._now)
        end = 0
        for index in range(kept.count):
            start = end
            end += kept.lengths[index]
            if cython.compiled and not index & _AHEAD - 1 and self.count > _MANY:
                self._look_ahead(kept, vnet, index, start)
            kind = dissect_at(f, data, start + vnet, end)
            if kind != _TCP:
                if kind == _CHATTER:
                    self.leave(kept, index, start)
                    self.core.primary_chatter(kept.batch.data, f)
                else:
                    self._careful_primary(kept, index, start, end)
                continue
            l4 = f.l4
            record = self.records.find(f, data)
            at = record * _FIELDS
            if data[l4 + _FLAGS_AT] & _ORDINARY != _ACK or (record and fields[at + _FLAGS] & _CAREFUL):
                if record and not fields[at + _FLAGS] & _CAREFUL:
                    self.promote(record)
                self._careful_primary(kept, index, start, end)
                continue
            if not record:
                record = self._open(f, data)
                if not record:
                    self._careful_primary(kept, index, start, end)
                    continue
                at = record * _FIELDS
            size = f.payload_end - f.payload
            seq = number32(data, l4 + _SEQ)
            if not fields[at + _FLAGS] & _P_SEEN:
                if fields[at + _FLAGS] & _S_SEEN and seq != fields[at + _FRONT]:
                    self.promote(record)  # the sides don't begin at one place
                    self._careful_primary(kept, index, start, end)
                    continue
                fields[at + _FLAGS] |= _P_SEEN
                fields[at + _FRONT] = fields[at + _P_SEQ] = seq
            if size and seq != fields[at + _P_SEQ]:
                self.promote(record)
                self._careful_primary(kept, index, start, end)
                continue
            fields[at + _TOUCHED] = seconds
            if size:
                fields[at + _P_SEQ] = (seq + size) & _MASK
            entry = side.add(kept, index, start, l4, size, record)
            last = fields[at + _P_TAIL]
            side.ring[entry + _E_PREVIOUS] = last
            if fields[at + _P_HEAD]:
                side.ring[side.at(last) + _E_NEXT] = side.entry
            else:
                fields[at + _P_HEAD] = side.entry
            fields[at + _P_TAIL] = side.entry
            self.waiting += 1
            self._match(record)

    def secondary(self, batch: Batch, now: float) -> None:
        """Take a batch of the secondary: of frames, or in digest mode of records."""
        if not batch.lengths:
            return
        self._now = now
        most = len(batch.lengths) + (len(batch.data) // _HASH_BYTES if self._digests else 0)
        self._make_room(self._secondary, most, _S_HEAD)
        self._take_secondary(self._secondary.take(batch, 0, now), batch.vnet)
        self._secondary.let_go(0, 0)

    def _take_secondary(self, kept: Kept, vnet: int) -> None:
        f, data, fields = self._frame, kept.data, self.fields
        seconds = int(self._now)
        end = 0
        for index in range(kept.count):
            start = end
            end += kept.lengths[index]
            if cython.compiled and not self._digests and not index & _AHEAD - 1 and self.count > _MANY:
                self._look_ahead(kept, vnet, index, start)
            if self._digests:
                kind = self._open_record(kept, start, end, vnet)
            else:
                kind = dissect_at(f, data, start + vnet, end)
            if kind == _NO_FRAME:
                continue
            if kind != _TCP:
                self._careful_secondary(kept, start, end)
                continue
            l4 = f.l4
            record = self.records.find(f, data)
            at = record * _FIELDS
            if (
                data[l4 + _FLAGS_AT] & _ORDINARY != _ACK
                or (record and fields[at + _FLAGS] & _CAREFUL)
                or (self._chunk and kept.entries + self._reader.chunks > _MOST_ENTRIES)
            ):
                if record and not fields[at + _FLAGS] & _CAREFUL:
                    self.promote(record)
                self._careful_secondary(kept, start, end)
                continue
            if not record:
                record = self._open(f, data)
                if not record:
                    self._careful_secondary(kept, start, end)
                    continue
                at = record * _FIELDS
            size = self._reader.size if self._chunk else f.payload_end - f.payload
            seq = number32(data, l4 + _SEQ)
            if not fields[at + _FLAGS] & _S_SEEN:
                if fields[at + _FLAGS] & _P_SEEN and seq != fields[at + _FRONT]:
                    self.promote(record)
                    self._careful_secondary(kept, start, end)
                    continue
                fields[at + _FLAGS] |= _S_SEEN
                fields[at + _S_SEQ] = seq
                if not fields[at + _FLAGS] & _P_SEEN:
                    fields[at + _FRONT] = seq
            if size and seq != fields[at + _S_SEQ]:
                self.promote(record)
                self._careful_secondary(kept, start, end)
                continue
            fields[at + _TOUCHED] = seconds
            self._hear(at, data, l4)
            if size:
                fields[at + _S_SEQ] = (seq + size) & _MASK
                if self._chunk:
                    self._queue_chunks(kept, index, start, l4, size, record)
                else:
                    self._queue_secondary(kept, index, start, l4, size, record)
            if fields[at + _P_HEAD]:
                self._match(record)

    def _queue_secondary(self, kept: Kept, index: int, start: int, l4: int, size: int, record: int) -> int:
        """Bytes of the secondary that wait, behind its flow's others; the entry's place in the ring."""
        fields, side, at = self.fields, self._secondary, record * _FIELDS
        entry = side.add(kept, index, start, l4, size, record)
        if fields[at + _S_HEAD]:
            side.ring[side.at(fields[at + _S_TAIL]) + _E_NEXT] = side.entry
        else:
            fields[at + _S_HEAD] = side.entry
        fields[at + _S_TAIL] = side.entry
        return entry

    def _careful_secondary(self, kept: Kept, start: int, end: int) -> None:
        if self._digests:
            self.core.careful_record(kept.batch, start, end, self._now)
        else:
            self.core.careful_secondary(kept.batch, start, end, self._now)

    # --- digest mode

    def _open_record(self, kept: Kept, start: int, end: int, vnet: int) -> int:
        """The kind of the frame that a record tells of, dissected; MALFORMED where the careful path is to judge,
        NO_FRAME for a key. Of a digest, the chunks are in `_reader` and `_chunk` is not 0.
        """
        f, data, reader = self._frame, kept.data, self._reader
        self._chunk = 0
        kind = reader.read_at(f, data, start, end, vnet)
        if kind == _WHOLE:
            return dissect_at(f, data, reader.at + vnet, end)
        if kind == _KEY:
            return _NO_FRAME if self._take_key(bytes(kept.batch.data[reader.at : end])) else _MALFORMED
        if kind != _DIGEST or self._hasher is None:
            return _MALFORMED
        self._chunk = reader.chunk
        return _TCP

    def _take_key(self, secret: bytes) -> bool:
        """What was hashed with another key proves nothing any more: it goes the careful way, and is given up there.

        False if it is no key.
        """
        if secret == self._secret:
            self.keys += 1
            return True
        made = hasher(secret)
        if made is None:
            return False
        for kept in self._secondary.waiting():
            self._promote_waiting(self._secondary, kept, _S_HEAD)
        self.keys += 1
        self._secret, self._hasher = secret, made
        self.core.new_key(made)
        return True

    def _queue_chunks(self, kept: Kept, index: int, start: int, l4: int, size: int, record: int) -> None:
        hashes = self._reader.hashes
        while size > 0:
            part = min(self._chunk, size)
            entry = self._queue_secondary(kept, index, start, l4, part, record)
            self._secondary.ring[entry + _E_PREVIOUS] = hashes
            hashes += _HASH_BYTES
            size -= part
            self.chunks += 1

    def _has_hash(self, record: int, kept: Kept, payload: int, rest: int, other: Kept, s: int) -> bool:
        """Whether the primary's bytes from `payload` on, `rest` of which lie there, have the hash of entry `s`."""
        ring = self._secondary.ring
        size, at = ring[s + _E_SIZE], ring[s + _E_PREVIOUS]
        said = kept.view[payload : payload + size] if rest >= size else self._gathered(record, size)
        made: Buffer = self._hasher(said)  # type: ignore[misc]
        return equal(made, 0, other.data, at, _HASH_BYTES)

    def _gathered(self, record: int, size: int) -> bytearray:
        """Bytes of the primary that wait, from the first that is not compared yet; so many must wait."""
        fields, ring = self.fields, self._primary.ring
        number, skipped = fields[record * _FIELDS + _P_HEAD], fields[record * _FIELDS + _P_USED]
        gathered = bytearray()
        while len(gathered) < size:
            entry = self._primary.at(number)
            gathered += memoryview(self._payload(self._primary.holder(entry), entry))[skipped:]
            number, skipped = ring[entry + _E_NEXT], 0
        del gathered[size:]
        return gathered

    def _look_ahead(self, kept: Kept, vnet: int, first: int, end: int) -> None:
        """Have the records of the next frames fetched from memory, all at once instead of one after the other."""
        if cython.compiled:
            count = min(_AHEAD, kept.count - first)
            for index in range(count):
                start = end
                end += kept.lengths[first + index]
                kind = dissect_at(self._frame, kept.data, start + vnet, end)
                # Bucket 0 stands for none as well: it is fetched for nothing.
                self._ahead[index] = self.records.approach(self._frame, kept.data) if kind == _TCP else 0
            for index in range(count):
                self.records.come_near(self._ahead[index])

    def _open(self, f: Frame, data: Buffer) -> int:
        """A record for a new flow, picked up in its middle; 0 if the careful path is to decide."""
        if self.ask or self.room <= 0:
            return 0
        record = self.records.claim(f, data)
        if record:
            self.count += 1
            self.room -= 1
        return record

    def _hear(self, at: int, data: Buffer, l4: int) -> None:
        """The secondary's ack, and its window."""
        fields = self.fields
        ack = number32(data, l4 + _ACK_NUMBER)
        if not fields[at + _FLAGS] & _ACKED_SET or after(ack, fields[at + _ACKED]):
            fields[at + _ACKED] = ack
            fields[at + _FLAGS] |= _ACKED_SET
        if fields[at + _FLAGS] & _SCALED:
            edge = self._edge(at, data, l4)
            if not fields[at + _FLAGS] & _EDGE_SET or after(edge, fields[at + _EDGE]):
                fields[at + _EDGE] = edge
                fields[at + _FLAGS] |= _EDGE_SET

    def _edge(self, at: int, data: Buffer, l4: int) -> int:
        """The right edge of the window that a segment offers."""
        shift = self.fields[at + _FLAGS] >> _SHIFT_AT & 0xF
        window = data[l4 + _WINDOW] << 8 | data[l4 + _WINDOW + 1]
        edge: int = (number32(data, l4 + _ACK_NUMBER) + (window << shift)) & _MASK
        return edge

    # --- matching

    def _match(self, record: int) -> None:
        """Compare the heads of both queues, and mark what is proven, as far as that goes."""
        fields, p_ring, s_ring = self.fields, self._primary.ring, self._secondary.ring
        at = record * _FIELDS
        while fields[at + _P_HEAD]:
            p = self._primary.at(fields[at + _P_HEAD])
            kept = self._primary.holder(p)
            data, l4, size = kept.data, p_ring[p + _E_L4], p_ring[p + _E_SIZE]
            payload = l4 + (data[l4 + 12] >> 4 << 2)
            while fields[at + _P_USED] < size and fields[at + _S_HEAD]:
                s = self._secondary.at(fields[at + _S_HEAD])
                other = self._secondary.holder(s)
                other_l4, other_size = s_ring[s + _E_L4], s_ring[s + _E_SIZE]
                other_payload = other_l4 + (other.data[other_l4 + 12] >> 4 << 2)
                part = size - fields[at + _P_USED]
                hashed = s_ring[s + _E_PREVIOUS]
                if hashed > _PROVEN:
                    if (fields[at + _P_SEQ] - fields[at + _FRONT] - fields[at + _P_USED]) & _MASK < other_size:
                        return  # the primary has not said all of it
                    if not self._has_hash(record, kept, payload + fields[at + _P_USED], part, other, s):
                        self.promote(record)
                        return
                    s_ring[s + _E_PREVIOUS] = hashed = _PROVEN
                    self.matched += 1
                if other_size - fields[at + _S_USED] < part:
                    part = other_size - fields[at + _S_USED]
                if hashed != _PROVEN and not equal(
                    data, payload + fields[at + _P_USED], other.data, other_payload + fields[at + _S_USED], part
                ):
                    self.promote(record)
                    return
                fields[at + _P_USED] += part
                fields[at + _S_USED] += part
                if fields[at + _S_USED] == other_size:
                    fields[at + _S_USED] = 0
                    fields[at + _S_HEAD] = s_ring[s + _E_NEXT]
                    other.left -= 1
            if fields[at + _P_USED] < size:
                return
            ack = number32(data, l4 + _ACK_NUMBER)
            if not fields[at + _FLAGS] & _ACKED_SET or after(ack, fields[at + _ACKED]):
                return
            if fields[at + _FLAGS] & _SCALED and not self._as_it_is(at, data, l4):
                self.promote(record)
                return
            self.leave(kept, p_ring[p + _E_INDEX], p_ring[p + _E_START])
            kept.left -= 1
            self.waiting -= 1
            if not fields[at + _FLAGS] & _LEFT_SET or after(ack, fields[at + _LEFT_ACK]):
                fields[at + _LEFT_ACK] = ack
                fields[at + _FLAGS] |= _LEFT_SET
            if size:
                fields[at + _FRONT] = (fields[at + _FRONT] + size) & _MASK
                low = (fields[at + _PLACE] + size) & _MASK
                if low < size:
                    fields[at + _PLACE_HIGH] += 1
                fields[at + _PLACE] = low
            fields[at + _P_USED] = 0
            fields[at + _P_HEAD] = p_ring[p + _E_NEXT]

    def _as_it_is(self, at: int, data: Buffer, l4: int) -> bool:
        """Whether a frame may leave with its own window (see window.py), which is then what the client was told."""
        fields = self.fields
        edge = self._edge(at, data, l4)
        if fields[at + _FLAGS] & _EDGE_SET and after(edge, fields[at + _EDGE]):
            return bool(fields[at + _FLAGS] & _TOLD_SET) and not after(edge, fields[at + _TOLD])
        if not fields[at + _FLAGS] & _TOLD_SET or after(edge, fields[at + _TOLD]):
            fields[at + _TOLD] = edge
            fields[at + _FLAGS] |= _TOLD_SET
        return True

    # --- what leaves

    def leave(self, kept: Kept, index: int, start: int) -> None:
        """Mark a frame of a batch, which begins at `start`, to leave in its place there."""
        if not kept.fresh:
            self._touched.append(kept)
        kept.leave(index, start)

    def _careful_primary(self, kept: Kept, index: int, start: int, end: int) -> None:
        kept.gone(index)
        self.core.careful_primary(kept, index, start, end, self._now)

    def leaving(self) -> list[Batch]:
        """What is proven and has not left, in the primary's order; a batch that leaves whole is the one that came."""
        if len(self._touched) > 1:
            self._touched.sort(key=_order)
        elif self._touched:
            kept = self._touched[0]
            part = kept.part()
            if part is not None:
                self._touched.clear()
                return [part]
        batches: list[Batch] = []
        builder = self._builder
        for kept in self._touched:
            if kept.gather(builder):
                continue
            if builder:
                batches += builder.take()
            batches.append(kept.batch)
        self._touched.clear()
        return batches + builder.take() if builder else batches

    # --- what is kept

    def _make_room(self, side: Side, frames: int, head: int) -> None:
        """Send the oldest flows of a side the careful way if it holds too much, or its ring can't take so many more."""
        while not side.has_room(frames, self._most_bytes):
            self._promote_waiting(side, side.batches[0], head)
            side.drop_oldest()

    def tick(self, now: float, heard: float) -> None:
        """Send the careful way what has waited long by what was `heard` (Core in lockstep.streams), or very long."""
        self._now = now
        budget = MOST_AT_ONCE
        for side, head, patience in (
            (self._primary, _P_HEAD, self._patience()),
            (self._secondary, _S_HEAD, SECONDARY_STALL),
        ):
            for kept in side.waiting():
                if (kept.at + patience > heard and kept.at + BACKLOG_STALL > now) or budget <= 0:
                    break
                budget -= self._promote_waiting(side, kept, head, budget)
        self._primary.let_go(RECENT_BYTES, RECENT_BATCHES)
        self._secondary.let_go(0, 0)
        while self._brought:
            record, (when, _) = next(iter(self._brought.items()))
            if when + BROUGHT_AGE > now:
                break
            self._give_up_brought(record)

    def _patience(self) -> float:
        return PRIMARY_STALL if self.waiting <= FEW else BACKLOG_STALL

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        primary, secondary = self._primary.oldest(), self._secondary.oldest()
        first: float | None = None if primary is None else primary + self._patience()
        if secondary is not None and (first is None or secondary + SECONDARY_STALL < first):
            first = secondary + SECONDARY_STALL
        return first

    def kept(self) -> int:
        """Bytes of the batches in which frames wait, and of the histories that flows brought with them."""
        waiting = [len(kept.batch.data) for side in (self._primary, self._secondary) for kept in side.waiting()]
        return sum(waiting) + self._brought_bytes

    def _promote_waiting(self, side: Side, kept: Kept, head: int, most: int = RING) -> int:
        """Flows with frames that wait in this batch take the careful path, until `most` are gone; how many are.

        head: the field of a record with the first of that side's entries.
        """
        before, fields, ring = kept.left, self.fields, side.ring
        for number in range(kept.first_entry + 1, kept.first_entry + kept.entries + 2):  # 0 is none: it was left out
            if not kept.left or before - kept.left >= most:
                break
            record = ring[side.at(number & _MASK) + _E_RECORD]
            if record and not fields[record * _FIELDS + _FLAGS] & _CAREFUL and fields[record * _FIELDS + head]:
                self.promote(record, late=True)
        gone: int = before - kept.left
        return gone

    def promote_waiting(self, now: float) -> None:
        """Every flow with anything that waits takes the careful path (a cut, or a failover)."""
        self._now = now
        for side, head in ((self._primary, _P_HEAD), (self._secondary, _S_HEAD)):
            for kept in side.waiting():
                self._promote_waiting(side, kept, head)

    # --- from the lane to the careful path, and back

    def promote(self, record: int, late: bool = False) -> None:
        """Hand a flow, with all that waits of it, to the careful path. `late`: for nothing but having waited long."""
        flow = self._flow_of(record)
        said, held = self._said(record), self._held(record)
        at = record * _FIELDS
        for field in range(_FLAGS + 1, _FIELDS):
            self.fields[at + field] = 0
        self.fields[at + _FLAGS] = _CAREFUL
        self.count -= 1
        self.core.promoted(flow, said, held, self._now, late)

    def _flow_of(self, record: int) -> TcpFlow:
        """The flow that a record stands for, with its history, and with nothing that waits."""
        fields, at = self.fields, record * _FIELDS
        flags = fields[at + _FLAGS]
        flow = TcpFlow(self.records.key(record), self._now, self.core.flow_limit())
        flow.anchored = True
        flow.primary_seen = bool(flags & P_SEEN)
        flow.near = bool(flags & S_SEEN)
        high = fields[at + _PLACE_HIGH]
        flow.frontier = high << 32 | fields[at + _PLACE]
        flow.frontier_seq = fields[at + _FRONT]
        flow.acked = fields[at + _ACKED] if flags & ACKED_SET else None
        flow.primary_acked = fields[at + _LEFT_ACK] if flags & LEFT_SET else None
        if flags & SYN_KNOWN:
            high = fields[at + SYN_MARK_HIGH]
            flow.syn = fields[at + SYN_SEQ], high << 32 | fields[at + SYN_MARK]
            flow.syn_matched = fields[at + SYN_MATCHED] if flags & MATCHED_KNOWN else None
        if flags & SCALED:
            edge = fields[at + _EDGE] if flags & EDGE_SET else None
            flow.window = Window(flags >> SHIFT_AT & 0xF, edge, fields[at + _TOLD] if flags & TOLD_SET else None)
        if record in self._brought:
            flow.said = self._give_up_brought(record)
        history = self._history(record)
        flow.said.add(flow.frontier - len(history), history)
        if fields[at + _P_USED]:
            # Bytes of the head that are proven: the secondary's batch with them may be gone.
            head = self._primary.at(fields[at + _P_HEAD])
            proven = self._payload(self._primary.holder(head), head)[: fields[at + _P_USED]]
            flow.said.add(flow.frontier, proven)
        return flow

    def _payload(self, kept: Kept, entry: int) -> Buffer:
        """What a primary frame carries."""
        ring = self._primary.ring
        l4 = ring[entry + _E_L4]
        payload = l4 + (kept.batch.data[l4 + 12] >> 4 << 2)
        carried: Buffer = kept.batch.data[payload : payload + ring[entry + _E_SIZE]]
        return carried

    def _history(self, record: int) -> bytes:
        """Bytes in front of FRONT that are still kept, at most HISTORY."""
        fields, ring, at = self.fields, self._primary.ring, record * _FIELDS
        following = fields[at + _FRONT]
        number = fields[at + _P_TAIL]
        if fields[at + _P_HEAD]:
            number = ring[self._primary.at(fields[at + _P_HEAD]) + _E_PREVIOUS]
        parts: list[bytes] = []
        size = 0
        while number and size < HISTORY:
            kept = self._primary.recent(number, record)
            if kept is None:
                break
            entry = self._primary.at(number)
            number = ring[entry + _E_PREVIOUS]
            if not ring[entry + _E_SIZE]:
                continue
            at = ring[entry + _E_L4] + _SEQ
            seq = int.from_bytes(kept.batch.data[at : at + 4], "big")
            if (seq + ring[entry + _E_SIZE]) & _MASK != following:
                break
            following = seq
            parts.append(bytes(self._payload(kept, entry)))
            size += ring[entry + _E_SIZE]
        parts.reverse()
        return b"".join(parts)

    def _said(self, record: int) -> list[tuple[Batch, int, int]]:
        """The secondary's frames (or records) that wait: batch, where each begins there, and its end."""
        fields, ring, at = self.fields, self._secondary.ring, record * _FIELDS
        frames: list[tuple[Batch, int, int]] = []
        number = fields[at + _S_HEAD]
        while number:
            entry = self._secondary.at(number)
            kept = self._secondary.holder(entry)
            start, index = ring[entry + _E_START], ring[entry + _E_INDEX]
            one = kept.batch, start, start + kept.batch.lengths[index]
            if not frames or frames[len(frames) - 1] != one:  # the chunks of one record come once
                frames.append(one)
            kept.left -= 1
            number = ring[entry + _E_NEXT]
        return frames

    def _held(self, record: int) -> list[Held]:
        """The primary's frames that wait, in order."""
        fields, ring, at = self.fields, self._primary.ring, record * _FIELDS
        held = []
        number = fields[at + _P_HEAD]
        while number:
            entry = self._primary.at(number)
            kept = self._primary.holder(entry)
            start, index = ring[entry + _E_START], ring[entry + _E_INDEX]
            data = bytes(kept.batch.data[start : start + kept.batch.lengths[index]])
            f = self._held_frame
            dissect(f, data, kept.batch.vnet, len(data))
            held.append(
                Held(data, kept.batch.vnet, f.l4, f.payload, f.payload_end, f.kind, kept.at, kept.first + index)
            )
            kept.gone(index)
            kept.left -= 1
            self.waiting -= 1
            number = ring[entry + _E_NEXT]
        return held

    def demote(self, flow: TcpFlow) -> bool:
        """Take a flow into the lane that has become ordinary; its bytes and frames are all dealt with."""
        record = self.records.find_key(flow.key)
        if not record:
            return False
        fields, at = self.fields, record * _FIELDS
        flags = P_SEEN | S_SEEN
        fields[at + _TOUCHED] = int(flow.touched)
        fields[at + _P_SEQ] = fields[at + _S_SEQ] = fields[at + _FRONT] = flow.frontier_seq
        fields[at + _PLACE], fields[at + _PLACE_HIGH] = flow.frontier & _MASK, flow.frontier >> 32 & _MASK
        if flow.acked is not None:
            flags |= ACKED_SET
            fields[at + _ACKED] = flow.acked
        if flow.primary_acked is not None:
            flags |= LEFT_SET
            fields[at + _LEFT_ACK] = flow.primary_acked
        if flow.syn is not None:
            flags |= SYN_KNOWN
            fields[at + SYN_SEQ] = flow.syn[0]
            fields[at + SYN_MARK], fields[at + SYN_MARK_HIGH] = flow.syn[1] & _MASK, flow.syn[1] >> 32
        if flow.syn_matched is not None:
            flags |= MATCHED_KNOWN
            fields[at + SYN_MATCHED] = flow.syn_matched
        if flow.window is not None:
            flags |= SCALED | flow.window.shift << SHIFT_AT
            if flow.window.edge is not None:
                flags |= EDGE_SET
                fields[at + _EDGE] = flow.window.edge
            if flow.window.told is not None:
                flags |= TOLD_SET
                fields[at + _TOLD] = flow.window.told
        fields[at + _FLAGS] = flags
        self.count += 1
        if flow.said.size:
            self._brought[record] = self._now, flow.said
            self._brought_bytes += flow.said.size
            while self._brought_bytes > BROUGHT_BYTES:
                self._give_up_brought(next(iter(self._brought)))
        return True

    def _give_up_brought(self, record: int) -> Said:
        said = self._brought.pop(record)[1]
        self._brought_bytes -= said.size
        return said

    def claim(self, key: bytes) -> bool:
        """Note that a careful flow stands for this key; False if the table is full."""
        record = self.records.find_key(key) or self.records.claim_key(key)
        if record:
            self.fields[record * _FIELDS + _FLAGS] = _CAREFUL
        return bool(record) or key[0] > MOST_TAGS

    def forget(self, key: bytes) -> None:
        """A careful flow is gone."""
        record = self.records.find_key(key)
        if record:
            self.records.forget(record)  # `_brought` has nothing of a careful flow

    def knows(self, key: bytes) -> bool:
        """Whether this flow is in the lane."""
        return key[2] == frame.IPPROTO_TCP and self._in_the_lane(key) > 0

    def promote_key(self, key: bytes, now: float) -> None:
        """Send this flow the careful way, if it is in the lane."""
        record = self._in_the_lane(key)
        if record:
            self._now = now
            self.promote(record)

    def _in_the_lane(self, key: bytes) -> int:
        record = self.records.find_key(key)
        return 0 if self.fields[record * _FIELDS + _FLAGS] & _CAREFUL else record

    def committed(self) -> None:
        """A checkpoint was committed, and nothing waits: what the secondary said is void."""
        for record in range(1, self.records.highest() + 1):
            at = record * _FIELDS
            flags = self.fields[at + _FLAGS]
            if not flags or flags & _CAREFUL:
                continue
            self.fields[at + _ACKED] = self.fields[at + _LEFT_ACK]
            flags &= ~(_ACKED_SET | _EDGE_SET)
            self.fields[at + _FLAGS] = flags | (_ACKED_SET if flags & _LEFT_SET else 0)
            self.fields[at + _S_SEQ] = self.fields[at + _FRONT]

    def clear(self) -> None:
        """Nothing waits; know no flow of the lane any more."""
        for record in range(1, self.records.highest() + 1):
            flags = self.fields[record * _FIELDS + _FLAGS]
            if flags and not flags & _CAREFUL:
                self._forget(record)

    def _forget(self, record: int) -> None:
        if record in self._brought:
            self._give_up_brought(record)
        self.records.forget(record)
        self.count -= 1

    def sweep(self, now: float, idle: float) -> None:
        """Forget flows of the lane that are idle; a part of the table each time."""
        highest = self.records.highest()
        for _ in range(min(SWEPT, highest)):
            self._swept = self._swept + 1 if self._swept < highest else 1
            at = self._swept * _FIELDS
            flags = self.fields[at + _FLAGS]
            if not flags or flags & _CAREFUL or self.fields[at + _P_HEAD] or self.fields[at + _S_HEAD]:
                continue
            if now - self.fields[at + _TOUCHED] > idle:
                self._forget(self._swept)


def after(a: int, b: int) -> bool:
    """`a` comes after `b` in sequence (lockstep.wire.seqnum, where both are known to be numbers of 32 bits)."""
    return 0 < (a - b & _MASK) < _HALF


def _order(kept: Kept) -> int:
    return kept.first
