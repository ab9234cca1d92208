"""Two captures against each other, frame by frame; no I/O and no clock.

    primary ──▶┐
               ├──▶ figures, and for each flow that differs the first place at which it does
    secondary ▶┘

The comparer's rules say what is compared (`services/comparer`). But online it judges the primary alone, in
the order of its frames, against a secondary that says one thing at one place; here neither file comes
first, both may contradict themselves, and both must be used up. So what it asks of a head of a queue is
asked here of a flow as a whole: nothing that one file says may be left without the other's.

`docs/compare.md` says why the core itself can't do it; tests hold the two against each other.

A flow costs memory for what one file alone has said, and for a window behind that. A flow that differs is
told once and then forgotten, but for its key.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass, replace

from lockstep.capture.pcapfile import Packet
from lockstep.compare.datagrams import Datagram, Datagrams
from lockstep.compare.finding import LIMIT, UNMATCHED, Finding
from lockstep.compare.fragments import Fragment, Parts, Reassembly, Whole, unfragmented
from lockstep.compare.frames import as_ethernet, dissected, key_of, name_of
from lockstep.compare.ledger import KEPT, PRIMARY, SECONDARY
from lockstep.compare.segment import Segment
from lockstep.compare.stream import Level, Stream
from lockstep.flow.key import flow_key
from lockstep.wire import frame, icmp, ipv4, ipv6, tcp
from lockstep.wire.frame import Frame, dissect
from services.comparer.datagram import content

_SEGMENT = struct.Struct(">4xIIBB")  # ports, seq, ack, data offset, flags
_URGENT = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a comparison may cost.

    max_flows: flows followed at once. max_flow_bytes, max_bytes: what one file may say before the other
    does, of one flow and of all. max_history: bytes kept for retransmissions. window: datagrams of a flow
    that may be reordered. max_divergences: flows that differ, before the rest is not told any more.
    """

    max_flows: int = 65_536
    max_flow_bytes: int = 16 << 20
    max_bytes: int = 128 << 20
    max_history: int = 64 << 20
    window: int = 64
    max_divergences: int = 10_000


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a flow differs. key: as the flow is known in here. Frames are numbered from 1; 0 for none."""

    key: bytes
    flow: str
    finding: Finding


class Guests:
    """The addresses whose frames are compared; none stands for all."""

    def __init__(self, macs: frozenset[bytes] = frozenset(), addresses: frozenset[bytes] = frozenset()) -> None:
        self._macs = macs
        self._addresses = addresses
        self.anyone = not macs and not addresses

    def sent(self, f: Frame, data: bytes) -> bool:
        """Whether one of them sent this frame."""
        if data[6:12] in self._macs:
            return True
        at = f.l3
        if f.version == 4:
            return data[at + ipv4.SOURCE : at + ipv4.SOURCE + 4] in self._addresses
        return f.version == 6 and data[at + ipv6.SOURCE : at + ipv6.SOURCE + 16] in self._addresses


class Comparison:
    """See the module.

    frames: of each file so far. flows: that were followed. unchecked, held: the primary's frames that are
    link chatter, and that the secondary didn't match. linktypes: those that were seen. ahead: what each
    file has said and the other hasn't, in bytes.
    """

    def __init__(self, limits: Limits, guests: Guests | None = None) -> None:
        self.limits = limits
        self.frames = [0, 0]
        self.flows = self.unchecked = self.held = 0
        self.linktypes: set[int] = set()
        self.divergences: list[Divergence] = []
        self._compared = 0
        self._guests = guests or Guests()
        self._frame = Frame()
        self._reassemblies = (Reassembly(), Reassembly())
        #: The one that was silent for longest comes first.
        self._flows: OrderedDict[bytes, Stream | Datagrams] = OrderedDict()
        self._costs = [0, 0, 0]
        #: At the end, where each stream's connections stand: the acks that come back are in their numbers.
        self._levels: dict[bytes, tuple[Level, ...]] = {}
        #: Flows that were told and are not looked at again.
        self._told: set[bytes] = set()

    @property
    def released(self) -> int:
        """The primary's frames that the secondary matched, or that are unchecked."""
        return self._compared - self.held

    @property
    def ahead(self) -> tuple[int, int]:
        """See the class."""
        return self._costs[PRIMARY], self._costs[SECONDARY]

    def push(self, side: int, packet: Packet) -> None:
        """Take a file's next frame."""
        self.frames[side] += 1
        self.linktypes.add(packet.linktype)
        f = self._frame
        data = as_ethernet(packet)
        if data is None:
            if self._guests.anyone:
                self._compared += side == PRIMARY
                self._unreadable(side, packet, None)
            return
        missing = packet.original_length - len(packet.data)
        kind, whole, there = dissected(f, data, missing)
        if not (self._guests.anyone or self._guests.sent(f, whole)):
            return
        self._compared += side == PRIMARY
        if kind == frame.CHATTER:
            self.unchecked += side == PRIMARY
        elif kind == frame.MALFORMED:
            self._unreadable(side, packet, data)
        elif kind == frame.FRAGMENT and f.payload_end <= there:
            self._fragment(side, f, whole, packet.number)
        else:
            if kind == frame.FRAGMENT and f.protocol == frame.IPPROTO_TCP:
                whole = self._begun(f, whole)
            self._readable(side, f, whole, there, missing, packet.number)

    def finish(self) -> None:
        """Both files are at their end."""
        for side, reassembly in enumerate(self._reassemblies):
            for fragment in reassembly.rest():
                self._loose(side, fragment)
        for key, flow in self._flows.items():
            if isinstance(flow, Stream):
                before = [*flow.costs]
                flow.settle()
                self._account(flow, before)
                self._levels[key] = flow.levels
        for key in list(self._flows):
            self._conclude(key, limit=False)
        self.divergences.sort(key=lambda found: found.finding.primary_frame or found.finding.secondary_frame)

    # --- frames into flows

    def _readable(
        self, side: int, f: Frame, data: bytes, there: int, missing: int, number: int, parts: Parts = ()
    ) -> None:
        """Take a dissected frame of which the first `there` bytes were captured, and `missing` were not."""
        payload = f.payload
        size = f.payload_end - payload
        known = data[payload : min(f.payload_end, there)]
        if parts:
            parts = tuple((max(0, start - payload), of) for start, of in parts)
        if f.kind == frame.TCP:
            at = f.l4
            seq, ack, _, flags = _SEGMENT.unpack_from(data, at)
            options = _options(data, at, payload) if flags & tcp.SYN else b""
            urgent = _URGENT.unpack_from(data, at + tcp.URGENT_POINTER)[0] if flags & tcp.URG else None
            segment = Segment(number, seq, ack, flags, size, known, options, parts, urgent)
            self._take(side, flow_key(f, data), segment)
            return
        head = essence = b""
        if f.kind in (frame.ICMP, frame.ICMPV6):
            head = data[f.l4 : f.l4 + icmp.CHECKSUM] + data[f.l4 + icmp.CHECKSUM + 2 : payload]
            if data[f.l4] in (icmp.V4_ERRORS if f.kind == frame.ICMP else icmp.V6_ERRORS):
                essence = content(data[: payload + len(known)], f.kind, f.l4, payload, payload + len(known))
        elif f.kind == frame.FRAGMENT:  # one that was cut by the snap length
            head, known, size = data[payload : payload + 2], data[f.l4 : there], f.payload_end - f.l4
        elif f.kind == frame.UNKNOWN:
            size += max(0, missing)
        self._take(side, flow_key(f, data), Datagram(number, head, known, size, parts, essence))

    def _unreadable(self, side: int, packet: Packet, data: bytes | None) -> None:
        """Take a frame as the bytes it has."""
        key = key_of(self._frame, packet, data, frame.MALFORMED, b"")
        size = max(packet.original_length, len(packet.data))
        self._take(side, key, Datagram(packet.number, b"", packet.data, size))

    def _fragment(self, side: int, f: Frame, data: bytes, number: int) -> None:
        whole, given_up = self._reassemblies[side].take(f, data, flow_key(f, data), number)
        for fragment in given_up:
            self._loose(side, fragment)
        if whole is not None and not self._whole(side, whole):
            for fragment in whole.fragments:
                self._loose(side, fragment)

    def _whole(self, side: int, whole: Whole) -> bool:
        """Take a datagram that came in fragments; False if it can't be read."""
        f, data = self._frame, whole.data
        kind = dissect(f, data, 0, len(data))
        if kind not in (frame.CHATTER, frame.MALFORMED):
            self._readable(side, f, data, len(data), 0, whole.fragments[0].frame, whole.parts)
        return kind != frame.MALFORMED

    def _begun(self, f: Frame, data: bytes) -> bytes:
        """A first fragment that was cut by the snap length, as the segment that it begins; any other as it is."""
        alone = unfragmented(f, data)
        if dissect(f, alone, 0, len(alone)) == frame.TCP:
            return alone
        dissect(f, data, 0, len(data))
        return data

    def _loose(self, side: int, fragment: Fragment) -> None:
        """Take a fragment without its others: as a segment if it begins one, else as it is."""
        alone = fragment.alone()
        if alone is not None and alone.protocol == frame.IPPROTO_TCP and self._whole(side, alone):
            return
        head = fragment.start.to_bytes(2, "big") + bytes((fragment.more,))
        self._take(side, fragment.key, Datagram(fragment.frame, head, fragment.data, len(fragment.data)))

    # --- flows

    def _take(self, side: int, key: bytes, said: Segment | Datagram) -> None:
        flow = self._flows.get(key)
        if flow is None:
            if key in self._told or len(self._told) >= self.limits.max_divergences:
                self.held += side == PRIMARY
                return
            if len(self._flows) >= self.limits.max_flows:
                self._conclude(next(iter(self._flows)), limit=True)
            flow = Stream() if isinstance(said, Segment) else Datagrams(self.limits.window)
            self._flows[key] = flow
            self.flows += 1
        else:
            self._flows.move_to_end(key)
        before = [*flow.costs]
        if isinstance(flow, Stream):
            assert isinstance(said, Segment)
            flow.take(side, said)
        else:
            assert isinstance(said, Datagram)
            flow.take(side, said)
        self._account(flow, before)
        total = self._costs
        if flow.hopeless:
            self._conclude(key, limit=False)
        elif flow.costs[side] > self.limits.max_flow_bytes:
            self._conclude(key, limit=True)
        if total[side] > self.limits.max_bytes or total[KEPT] > self.limits.max_history:
            self._make_room()

    def _account(self, flow: Stream | Datagrams, before: list[int]) -> None:
        """Follow what a flow costs."""
        total, costs = self._costs, flow.costs
        total[PRIMARY] += costs[PRIMARY] - before[PRIMARY]
        total[SECONDARY] += costs[SECONDARY] - before[SECONDARY]
        total[KEPT] += costs[KEPT] - before[KEPT]

    def _make_room(self) -> None:
        """Give up what is settled, or flows that wait, those that were silent for longest first."""
        total = self._costs
        if total[KEPT] > self.limits.max_history:
            for flow in self._flows.values():
                total[KEPT] -= flow.costs[KEPT]
                flow.relax()
                total[KEPT] += flow.costs[KEPT]
                if total[KEPT] <= self.limits.max_history // 2:
                    break
        while self._flows and max(self.ahead) > self.limits.max_bytes:
            self._conclude(next(iter(self._flows)), limit=True)

    def _conclude(self, key: bytes, *, limit: bool) -> None:
        """Forget a flow, and tell of it if it differs. `limit`: there is no room to wait for what it lacks."""
        flow = self._flows.pop(key)
        for index, cost in enumerate(flow.costs):
            self._costs[index] -= cost
        if isinstance(flow, Stream):
            back = self._flows.get(_reversed(key))
            levels = back.levels if isinstance(back, Stream) else self._levels.get(_reversed(key), ())
            found = flow.conclude(levels)
        else:
            found = flow.conclude()
        if found is None:
            return
        held = flow.unmatched()
        if found.reason == UNMATCHED:
            held |= {found.primary_frame} - {0}
            found = replace(found, reason=LIMIT) if limit else found
        self.held += len(held)
        if len(self._told) >= self.limits.max_divergences:
            return
        self._told.add(key)
        if len(self._told) == self.limits.max_divergences:
            found = replace(found, reason=LIMIT)
        self.divergences.append(Divergence(key, name_of(key), found))


def _reversed(key: bytes) -> bytes:
    """The key of the stream that goes the other way (`flow_key`)."""
    at = 3 + 2 * key[0]
    size = 4 if key[1] == 4 else 16
    a, b, ports = key[at : at + size], key[at + size : at + 2 * size], key[at + 2 * size :]
    return key[:at] + b + a + ports[2:] + ports[:2]


def _options(data: bytes, l4: int, payload: int) -> bytes:
    """What a SYN says besides its ack: its flags, and options without clock values and without acks (SACK)."""
    options = bytearray(data[l4 + tcp.HEADER : payload])
    _, sack, blocks = tcp.find_options(options, 0, len(options))
    if blocks:
        options[sack + 2 : sack + 2 + 8 * blocks] = bytes(8 * blocks)
    return bytes((data[l4 + tcp.FLAGS] & ~tcp.PSH,)) + tcp.options_signature(options, 0, len(options))
