"""The rewriter: moves TCP numbers between the secondary guest's space and the primary's.

    to_guest ──▶ guest     ack, SACK edges and TSecr into the guest's own space
    guest ──▶ from_guest   seq and TSval into the primary's space

Connections it doesn't know pass untouched: those of before its start, and, after a failover, new
ones. A committed checkpoint makes the guest a copy of the primary, so every offset is nought. What comes for
the guest behind a cut's `prepare` waits for its end, since only then it is known whose numbers it needs.
After a failover, connections that were released unchecked are reset: the guest can't carry them on.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from typing import Any

from lockstep.batch import Batch, BatchBuilder
from lockstep.config import Node
from lockstep.flow.key import describe, flow_key, quoted_tcp, reversed_key
from lockstep.streams import EVENTS, FROM_GUEST, GUEST, INGRESS, TO_GUEST, CommandError, Cut, Event, Gap, Item, Output
from lockstep.wire import frame, icmp, tcp, vnet
from lockstep.wire.frame import Frame, dissect
from lockstep.withheld import Withheld
from services.rewriter.connection import Connection, set_quoted_seq
from services.rewriter.lane import Lane
from services.rewriter.reset import reset, segment_of
from services.rewriter.table import ConnectionTable

#: Seconds after a failover in which an event may still arrive that the comparer published before it.
EVENTS_UNDER_WAY = 0.25
#: Seconds that the guest's input waits at most for the end of a cut.
CUT_TAKES = 3.0
#: Pairs of MAC addresses that are kept once for all connections between them.
MOST_PAIRS = 4096
#: Unprotected connections of unknown numbers that are remembered for a reset, at most.
MOST_DOOMED = 65_536


class Core:
    """See the module."""

    def __init__(self, config: Node) -> None:
        self.epoch = 0
        #: After a start the first message tells which epoch this is.
        self._epoch_known = False
        self.counters = dict.fromkeys(
            (
                "to_guest_frames", "from_guest_frames", "malformed", "learned", "refused_connections",
                "evicted_half_open", "forgotten", "resets", "gaps_to_guest", "dropped_from_guest", "dropped_limit",
            ),
            0,
        )  # fmt: skip
        self._table = ConnectionTable(config.rewriter, self.counters)
        #: What is released unchecked, oldest first: by a rule (True), or unknown. Known connections are marked.
        self._doomed: dict[bytes, bool] = {}
        self._macs: dict[bytes, bytes] = {}
        self._lane = Lane(self, self._table, self._doomed)
        # Of the batch at work: where frames lie that make way for resets, these (where to, frame), and what is told.
        self._dropped: list[tuple[int, int]] = []
        self._resets: list[tuple[str, bytes]] = []
        self._events: list[Event] = []
        self._heard_until = 0.0
        self._frame = Frame()
        self._withheld = Withheld()

    def push(self, stream: str, item: Item, now: float) -> list[Output]:
        """Take a batch or cut, or an event of the comparer or the redirector."""
        self._table.start(now)
        if isinstance(item, Batch):
            if stream == GUEST:
                self.counters["from_guest_frames"] += len(item)
                return self._rewritten(item, now, from_guest=True)
            if stream == TO_GUEST:
                self.counters["to_guest_frames"] += len(item)
                if not self._epoch_known and len(item):
                    self._epoch_known = True
                    self.epoch = max(self.epoch, item.epoch)
                if not self._withheld.active:
                    return self._rewritten(item, now, from_guest=False)
                if not self._withheld.add(item, now + CUT_TAKES):
                    self.counters["dropped_limit"] += len(item)
                return []
        elif isinstance(item, Cut) and stream == TO_GUEST:
            return self._cut(item, now)
        elif isinstance(item, Gap) and stream == TO_GUEST:
            self.counters["gaps_to_guest"] += 1
            return [
                Event("gap", {"stream": stream, "reason": item.reason, "lost": item.lost}),
                *self._decided(now),
            ]
        elif isinstance(item, Event) and stream == EVENTS:
            return self._hear(item, now)
        elif isinstance(item, Event) and stream == GUEST:
            return [item]
        raise AssertionError(f"the rewriter takes no {type(item).__name__} on {stream}")

    def _cut(self, cut: Cut, now: float) -> list[Output]:
        """Pass a cut on; whatever it decides, what was withheld follows it."""
        if cut.phase == "commit":
            self.epoch = max(self.epoch, cut.epoch)
            self._epoch_known = True
            self._table.become_copies()
            self._spare_copies()
        outputs = [(FROM_GUEST, cut), *self._decided(now)]
        self._withheld.active = cut.phase == "prepare" and not self._lane.speaking
        return outputs

    def _decided(self, now: float) -> list[Output]:
        """Give the guest what was withheld."""
        return [output for batch in self._withheld.end() for output in self._rewritten(batch, now, from_guest=False)]

    def _hear(self, event: Event, now: float) -> list[Output]:
        """Follow what the comparer and the redirector say.

        Some time after a failover the comparer has not heard the secondary for `compare_timeout`, and
        gives up its flows: that says nothing about the connections that went on here.
        """
        key = event.fields.get("key")
        if event.name == "unprotected" and isinstance(key, bytes):
            if self._lane.speaking and now > self._heard_until:
                return []
            self._doom(key, by_rule=event.fields.get("reason") == "passthrough")
            return self._reset_silent([key]) if self._lane.speaking else []
        if event.name == "protected" and isinstance(key, bytes):
            self._spare(key)
            return []
        if event.name == "failover" and event.fields.get("survivor") == "secondary" and not self._lane.speaking:
            self._lane.speaking = True
            self._heard_until = now + EVENTS_UNDER_WAY
            return [*self._decided(now), *self._reset_silent(self._table.doomed_keys())]
        if event.name == "gap" and event.fields.get("stream") == INGRESS:
            return self._decided(now)  # the end of a cut may be what was lost
        return []

    def _doom(self, key: bytes, by_rule: bool) -> None:
        """Remember that this connection is released unchecked: with what is known of it, or else among the latest.

        Where a rule says so, that is told once, and goes for whatever follows with the same addresses and ports.
        """
        connection = self._table.get(key)
        if connection is not None:
            connection.doomed = True
            if not by_rule:
                return
        self._doomed[key] = by_rule
        if len(self._doomed) > MOST_DOOMED:
            del self._doomed[next(iter(self._doomed))]

    def _spare(self, key: bytes) -> None:
        """A new connection took the place of a doomed one."""
        self._doomed.pop(key, None)
        connection = self._table.get(key)
        if connection is not None:
            connection.doomed = False

    def _spare_copies(self) -> None:
        """The guest is a copy: what left unchecked before the cut is its own as well."""
        for key in [key for key, by_rule in self._doomed.items() if not by_rule]:
            del self._doomed[key]
        for key in self._doomed:
            connection = self._table.get(key)
            if connection is not None:
                connection.doomed = True

    def _is_doomed(self, key: bytes) -> bool:
        connection = self._table.get(key)
        return key in self._doomed or (connection is not None and connection.doomed)

    def _reset_silent(self, keys: list[bytes]) -> list[Output]:
        """Reset doomed connections whose ends may both be waiting, so that no segment would bring it about.

        A client that has since said more answers with a challenge ACK, which brings the exact reset.
        """
        f = self._frame
        frames = []
        for key in keys:
            connection = self._table.get(key)
            if connection is None or connection.client_ack is None:
                continue
            made = segment_of(key, connection.macs)
            dissect(f, made, 0, len(made))
            frames.append(reset(f, made, back=False, seq=connection.client_ack, ack=0))
        self.counters["resets"] += len(frames)
        return [(FROM_GUEST, batch) for batch in _batches(frames)]

    def _rewritten(self, batch: Batch, now: float, *, from_guest: bool) -> list[Output]:
        """The batch with its numbers moved; resets replace what a doomed connection says."""
        data = bytearray(batch.data)
        self._lane.move(data, batch.lengths, batch.vnet, from_guest, now)
        moved = Batch(data, batch.lengths, batch.vnet)
        where = FROM_GUEST if from_guest else GUEST
        if not (self._dropped or self._resets or self._events):
            return [(where, moved)] if batch.lengths else []
        dropped, resets, events = set(self._dropped), self._resets, self._events
        self._dropped, self._resets, self._events = [], [], []
        if dropped:
            moved = Batch.of([data[s:e] for s, e in moved.spans() if (s, e) not in dropped], batch.vnet)
        outputs: list[Output] = [(where, moved)] if len(moved) else []
        outputs += [(end, Batch(raw, array("I", (len(raw),)))) for end, raw in resets]
        return [*outputs, *events]

    def careful(self, data: bytearray, start: int, end: int, size: int, from_guest: bool, now: float) -> None:
        """Deal with a frame that is not for the lane; it begins at `start`, with its virtio-net header of `size`."""
        f = self._frame
        kind = dissect(f, data, start + size, end)
        if kind != frame.TCP:
            self.counters["malformed"] += kind == frame.MALFORMED
            if kind in (frame.ICMP, frame.ICMPV6) and not from_guest:
                self._move_quoted(data)
            return
        key = flow_key(f, data) if from_guest else reversed_key(f, data)
        syn = data[f.l4 + tcp.FLAGS] & tcp.SYN
        if self._lane.speaking and not syn and self._is_doomed(key):
            self._reset(f, data, self._table.get(key), from_guest)
            self._dropped.append((start, end))
            return
        partial = bool(size and data[start] & vnet.NEEDS_CSUM)
        if from_guest:
            self._from_guest(key, data, partial, bool(syn), now)
        else:
            self._to_guest(key, data, partial, now)

    def _from_guest(self, key: bytes, data: bytearray, partial: bool, syn: bool, now: float) -> None:
        f = self._frame
        if syn:
            if tcp.has_option(data, f.l4 + tcp.HEADER, f.payload, tcp.MD5, tcp.AUTHENTICATION):
                self._table.forget(key)  # its numbers are signed: they can't be moved
                return
            connection = self._table.of_syn(key, now)
            if not connection.macs:
                macs = bytes(data[f.start : f.start + 12])
                connection.macs = self._macs.setdefault(macs, macs) if len(self._macs) < MOST_PAIRS else macs
            connection.guest_syn(data, f.l4, f.payload)
            if self._lane.speaking:
                self._spare(key)
            elif key in self._doomed:
                connection.doomed = True
        else:
            found = self._table.get(key)
            if found is None:
                return
            connection = found
        connection.touched = now
        flags = data[f.l4 + tcp.FLAGS]
        connection.guest_says(flags)
        if connection.waiting and not flags & (tcp.SYN | tcp.RST):
            connection.goes_on(data, f.l4, f.payload_end - f.payload)
        if connection.known and not (syn and connection.waiting):
            connection.to_primary_space(data, f.l4, f.payload, partial, self._lane.speaking)

    def _to_guest(self, key: bytes, data: bytearray, partial: bool, now: float) -> None:
        f = self._frame
        connection = self._table.get(key)
        if connection is None:
            return
        flags = data[f.l4 + tcp.FLAGS]
        if connection.waiting and connection.client_answers(data, f.l4, f.payload, self._lane.speaking):
            self.counters["learned"] += 1
            if not self._table.opened(key):
                return
        if connection.known:
            connection.touched = now
            connection.client_says(flags)
        if connection.refuses(flags):
            connection.refuse(data, f.l4, f.payload, partial)
        elif connection.known:
            connection.to_guest_space(data, f.l4, f.payload, partial)
        if flags & tcp.RST and not connection.reset_told:
            # The guest will say no more: the comparer need not wait for it.
            connection.reset_told = True
            self._events.append(Event("reset_by_client", describe(key) | {"key": key}))

    def _move_quoted(self, data: bytearray) -> None:
        """An ICMP error to the guest quotes its segment in the primary's space (RFC 5927 §4 has the guest check it)."""
        f = self._frame
        quoted = quoted_tcp(f, data)
        if quoted is None:
            return
        key, at = quoted
        connection = self._table.get(key)
        if connection is not None:
            set_quoted_seq(data, at, f.l4 + icmp.CHECKSUM, connection)

    def _reset(self, f: Frame, data: bytearray, connection: Connection | None, from_guest: bool) -> None:
        """Reset both ends of the connection of this segment; the client at the number it expects (RFC 5961 §3)."""
        seq, ack = struct.unpack_from(">II", data, f.l4 + tcp.SEQ)
        following = (seq + f.payload_end - f.payload) & 0xFFFFFFFF
        self.counters["resets"] += 1
        if not from_guest:
            self._resets.append((FROM_GUEST, reset(f, data, back=True, seq=ack, ack=following)))
            self._resets.append((GUEST, reset(f, data, back=False, seq=seq, ack=0)))
            return
        self._resets.append((GUEST, reset(f, data, back=True, seq=ack, ack=following)))
        if connection is not None and connection.client_ack is not None:
            self._resets.append((FROM_GUEST, reset(f, data, back=False, seq=connection.client_ack, ack=ack)))

    def tick(self, now: float, heard: float | None = None) -> list[Output]:
        """Forget connections that are silent."""
        self._table.sweep(now)
        return self._decided(now) if self._withheld.due is not None and self._withheld.due <= now else []

    def next_deadline(self) -> float | None:
        """See Core in lockstep.streams."""
        moments = (self._table.next_sweep(), self._withheld.due)
        return min((moment for moment in moments if moment is not None), default=None)

    def command(self, op: str, arguments: Mapping[str, Any], now: float) -> tuple[dict[str, Any], list[Output]]:
        """It takes no requests of its own: a failover reaches it as the redirector's event."""
        raise CommandError(f"the rewriter has no `{op}`")

    def reload(self, config: Node) -> None:
        """Take new limits."""
        self._table.config = config.rewriter

    def undelivered(self, stream: str, item: Batch | Cut, now: float) -> list[Output]:
        """A full link lost frames; the guest sends them again."""
        if isinstance(item, Cut):
            return [Event("cut_lost", {"stream": stream, "epoch": item.epoch, "phase": item.phase})]
        name = f"dropped_{stream}"
        self.counters[name] = self.counters.get(name, 0) + len(item)
        return []

    def status(self) -> dict[str, Any]:
        """How many connections it knows, and how many it will reset."""
        return {
            "connections": len(self._table),
            "half_open": len(self._table.half_open),
            "doomed": len(self._doomed.keys() | self._table.doomed_keys()),
            "speaking": self._lane.speaking,
        }


def _batches(frames: list[bytes]) -> list[Batch]:
    builder = BatchBuilder()
    for made in frames:
        builder.append(made, 0)
    return builder.take()
