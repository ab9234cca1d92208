"""A host without I/O: TCP, UDP, ping and ARP, well-behaved but with habits of its own.

    host.push(frame, vnet, now)    a frame came in          host.due()     when `tick` has something to do
    host.tick(now)                 time-outs, agenda        host.take()    frames to send

Two guests run the same agenda and the same scripts and so say the same bytes; `Habits` and the seed
make everything else differ: initial numbers, clocks, segmentation, pacing, acks, order of answers.
TCP follows RFC 9293 with RFC 7323 (timestamps, PAWS), RFC 2018 (SACK), RFC 5961 (challenge acks)
and TIME-WAIT; no congestion control. A host has a clock of its own: it stands still while the host
is stopped, and a copy (`copy_of`) goes on with the original's.
"""

from __future__ import annotations

import copy
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from sim.plans import Plan, Plans
from sim.wire import (
    ACK,
    FIN,
    MASK,
    PROTO_ICMP,
    PROTO_ICMP6,
    PROTO_UDP,
    PSH,
    RST,
    SYN,
    Link,
    Offload,
    Packet,
    Reader,
    arp,
    distance,
    echo,
    ip_frame,
    tcp_frame,
    udp_payload,
)

RTO, LONGEST_RTO, MOST_TRIES = 0.2, 1.6, 14
SCALE = 2
#: Listening ports of a guest, and of the client; the rest answers with RST.
GUEST_PORTS, CLIENT_PORTS = range(80, 90), range(9000, 9010)
#: UDP: ports that answer, and the one whose answers are long enough to be fragmented.
UDP_PORTS, LONG_PORT = range(50, 60), 59
FRAGMENT = 1400

SYN_SENT, SYN_RECEIVED, OPEN, TIME_WAIT, CLOSED = range(5)

#: (IP version, peer's port, own port): there is one peer.
Key = tuple[int, int, int]


@dataclass
class Habits:
    """In what two machines with the same program differ."""

    offload: Offload = Offload()
    #: Segments are cut to this share of what fits, at random.
    cut: tuple[float, float] = (1.0, 1.0)
    #: Acks: one for so many segments, or after so many seconds.
    ack_every: int = 2
    ack_delay: float = 0.02
    #: Seconds between bursts of so many segments; seconds that an application thinks.
    burst: int = 8
    pace: float = 0.001
    think: float = 0.0
    fin_alone: bool = False
    #: Bytes of receive buffer; an application that reads slowly takes so many seconds for a thousand bytes.
    window: int = 24_000
    reading: float = 0.0
    #: Share of segments sent with a wrong checksum.
    spoil: float = 0.0
    #: Bytes that its streams have wrong: plan → offset; datagrams that differ; SYNs without window scaling.
    wrong: dict[int, int] = field(default_factory=dict)
    wrong_datagrams: frozenset[int] = frozenset()
    other_options: bool = False
    time_wait: float = 0.5
    keepalive: float = 0.0


class Host:
    """See the module.

    own, other: addresses by IP version. got: told `(plan, offset, data)` when an application receives bytes.
    opened: told `(plan, initial number, clock offset)` of every connection.
    """

    def __init__(
        self,
        name: str,
        link: Link,
        own: dict[int, bytes],
        other: dict[int, bytes],
        seed: int,
        habits: Habits,
        plans: Plans,
        reader: Reader,
        got: Callable[[str, int, int, bytes], None],
        opened: Callable[[str, int, int, Key], None],
    ) -> None:
        self.name, self.link, self.own, self.other = name, link, own, other
        self.habits, self.plans, self.reader, self.got, self.opened = habits, plans, reader, got, opened
        self.is_client = name == "client"
        self.chance = random.Random(seed)
        self.whim = random.Random(seed + 1)  # habits; not copied
        self.shift = 0.0
        self.stopped_at: float | None = None
        self.connections: dict[Key, Connection] = {}
        self.ident = self.chance.getrandbits(16)
        self.agenda: list[tuple[float, int, str, object]] = []
        self.counters = dict.fromkeys(("bad_checksums", "strays", "old_stamps", "acks_ahead"), 0)
        self.last_iss: dict[Key, int] = {}
        self.ties = 0
        self._out: list[bytes] = []

    # --- clock, stop and copy

    def local(self, now: float) -> float:
        """This host's own clock."""
        return now + self.shift

    def stop(self, now: float) -> None:
        """Its clock and everything in it stand still."""
        if self.stopped_at is None:
            self.stopped_at = now

    def resume(self, now: float) -> None:
        """Go on where it stopped."""
        if self.stopped_at is not None:
            self.shift -= now - self.stopped_at
            self.stopped_at = None

    def copy_of(self, original: Host, now: float) -> None:
        """Become the original, with habits of our own; stopped as it is."""
        self.shift = original.shift
        self.stopped_at = original.stopped_at if original.stopped_at is not None else now
        self.chance = copy.deepcopy(original.chance)
        self.ident = original.ident
        self.agenda = list(original.agenda)
        self.last_iss = dict(original.last_iss)
        self.ties = original.ties
        # What an application says is state as well: the copy has the original's wrong bytes.
        self.habits = copy.copy(self.habits)
        for name in ("wrong", "wrong_datagrams", "other_options"):
            setattr(self.habits, name, getattr(original.habits, name))
        self.connections = {key: connection.copy_for(self) for key, connection in original.connections.items()}
        self._out = []

    # --- what happens

    def push(self, raw: bytes, vnet: int, now: float) -> None:
        """Take one frame."""
        p = self.reader.read(raw, vnet)
        if p.kind == "chatter":
            if p.asks and raw[vnet + 12 : vnet + 14] != b"\x86\xdd":
                self._answer_arp(raw[vnet:])
            return
        if p.version not in self.own or p.destination != self.own[p.version] or p.source != self.other[p.version]:
            self.counters["strays"] += 1
            return
        if p.checksum == "bad":
            self.counters["bad_checksums"] += 1
        elif p.kind == "tcp":
            self._tcp(p, self.local(now))
        elif p.kind == "udp":
            self._udp(p, self.local(now))
        elif p.kind == "icmp" and p.payload[0] in (8, 128):
            self.send_ip(p.version, PROTO_ICMP6 if p.version == 6 else PROTO_ICMP, self._echo(p.version, p.payload[4:]))

    def tick(self, now: float) -> None:
        """Do what is due."""
        local = self.local(now) + 1e-9
        while self.agenda and self.agenda[0][0] <= local:
            _, _, kind, what = heapq.heappop(self.agenda)
            self._act(kind, what, local)
        for connection in list(self.connections.values()):
            due = connection.due()
            if due is not None and due <= local:
                connection.tick(local)

    def due(self) -> float | None:
        """When `tick` has something to do; None for never, or while it is stopped."""
        if self.stopped_at is not None:
            return None
        moments = [due for connection in self.connections.values() if (due := connection.due()) is not None]
        if self.agenda:
            moments.append(self.agenda[0][0])
        return min(moments) - self.shift if moments else None

    def take(self) -> list[bytes]:
        """The frames to send, each with its virtio-net header."""
        out, self._out = self._out, []
        return out

    def plan_for(self, at: float, kind: str, what: object) -> None:
        """Put something on the agenda, at a moment of this host's clock."""
        self.ties += 1
        heapq.heappush(self.agenda, (at, self.ties, kind, what))

    def _act(self, kind: str, what: object, local: float) -> None:
        if kind == "open":
            assert isinstance(what, Plan)
            self.open(what, local)
        elif kind == "udp":
            version, sport, dport, payload = what  # type: ignore[misc]
            self.send_udp(version, sport, dport, payload)
        elif kind == "ping":
            version, rest = what  # type: ignore[misc]
            body = echo(self.own[version], self.other[version], False, rest)
            self.send_ip(version, PROTO_ICMP6 if version == 6 else PROTO_ICMP, body)
        elif kind == "arp":
            self._raw(arp(self.link, 1, self.own[4], self.other[4]))
        elif kind == "raw":
            assert isinstance(what, bytes)
            self._raw(what)
        elif kind == "flood":
            version, sport, dport, seq = what  # type: ignore[misc]
            self.segment(version, (sport, dport), (seq, 0), SYN, 4000, b"\2\4\5\xb4", b"")
        else:
            raise AssertionError(kind)

    # --- sending

    def _raw(self, frame: bytes) -> None:
        self._out.append(b"\0" * self.habits.offload.vnet + frame)

    def segment(
        self,
        version: int,
        ports: tuple[int, int],
        numbers: tuple[int, int],
        flags: int,
        window: int,
        options: bytes,
        payload: bytes,
        gso_size: int = 0,
    ) -> None:
        """Send a TCP segment."""
        self.ident = (self.ident + 1) & 0xFFFF
        spoiled = bool(self.habits.spoil) and self.whim.random() < self.habits.spoil
        self._out.append(
            tcp_frame(
                self.link, self.own[version], self.other[version], ports, numbers, flags, window, options, payload,
                self.ident, self.habits.offload, gso_size, spoiled,
            )
        )  # fmt: skip

    def send_ip(self, version: int, protocol: int, payload: bytes) -> None:
        """Send an IP packet, in fragments if it is long."""
        self.ident = (self.ident + 1) & 0xFFFF
        parts = [payload]
        if version == 4 and len(payload) > FRAGMENT:
            parts = [payload[at : at + FRAGMENT] for at in range(0, len(payload), FRAGMENT)]
        for index, part in enumerate(parts):
            place = index * FRAGMENT // 8 | (0x2000 if index + 1 < len(parts) else 0)
            ends = self.own[version], self.other[version]
            self._raw(ip_frame(self.link, *ends, protocol, part, self.ident, place))

    def send_udp(self, version: int, sport: int, dport: int, payload: bytes) -> None:
        """Send a datagram."""
        body = udp_payload(self.own[version], self.other[version], sport, dport, payload)
        self.send_ip(version, PROTO_UDP, body)

    def _echo(self, version: int, rest: bytes) -> bytes:
        return echo(self.own[version], self.other[version], True, rest)

    # --- datagrams and neighbours

    def _answer_arp(self, frame: bytes) -> None:
        at = 14 + 4 * len(self.link.tags)
        if frame[at + 24 : at + 28] == self.own[4]:
            self._raw(arp(self.link, 2, self.own[4], frame[at + 14 : at + 18]))

    def _udp(self, p: Packet, local: float) -> None:
        """A guest answers every question, the client takes the answers."""
        if self.is_client or p.dport not in UDP_PORTS:
            return
        number = int.from_bytes(p.payload[:4])
        answer = p.payload[:4] + bytes(b ^ 0x5A for b in p.payload[4:]) + b"answer"
        if p.dport == LONG_PORT:
            answer += bytes(range(256)) * 12
        if number in self.habits.wrong_datagrams:
            answer = answer[:-1] + b"X"
        what = p.version, p.dport, p.sport, answer
        self.plan_for(local + self.whim.random() * self.habits.think, "udp", what)

    # --- TCP

    def open(self, plan: Plan, local: float) -> None:
        """Open the connection of a plan."""
        own, peer = (plan.port, plan.service) if self.is_client else (plan.service, plan.port)
        key = plan.version, peer, own
        old = self.connections.pop(key, None)
        if old is not None and old.state not in (TIME_WAIT, CLOSED):
            self.plans.ended(plan.number, self.name, "not opened")
            self.connections[key] = old
            return
        connection = Connection(self, key, plan)
        self.plans.opened(plan, self.name, connection.iss)
        self.connections[key] = connection
        connection.open(local)

    def initial_number(self, key: Key) -> int:
        """At random, often next to a wrap; the next one of the same ports is far from the last."""
        last = self.last_iss.get(key)
        while True:
            iss = self.chance.getrandbits(32)
            if self.chance.random() < 0.4:
                iss = self.chance.choice((MASK, 0x7FFFFFFF, 0)) - self.chance.randrange(2000) & MASK
            if self.is_client and last is not None and self.chance.random() < 0.8:
                iss = last + self.chance.randrange(1 << 25, 1 << 28) & MASK
            if last is None or abs(distance(iss, last)) >= 1 << 24:
                break
        self.last_iss[key] = iss
        return iss

    def _tcp(self, p: Packet, local: float) -> None:
        key = p.version, p.sport, p.dport
        connection = self.connections.get(key)
        if connection is not None and connection.state == TIME_WAIT and connection.gives_way(p):
            del self.connections[key]
            connection = None
        if connection is None:
            listening = p.dport in (CLIENT_PORTS if self.is_client else GUEST_PORTS)
            if p.flags & RST:
                return
            if not listening or p.flags & (SYN | ACK) != SYN:
                self._refuse(p)
                return
            plan = self.plans.of(p.version, p.sport, p.dport, p.seq, self.is_client)
            connection = self.connections[key] = Connection(self, key, plan)
            connection.accept(p, local)
        else:
            connection.push(p, local)
        if connection.state == CLOSED and self.connections.get(key) is connection:
            del self.connections[key]

    def _refuse(self, p: Packet) -> None:
        ports = p.dport, p.sport
        if p.flags & ACK:
            self.segment(p.version, ports, (p.ack, 0), RST, 0, b"", b"")
        else:
            end = p.seq + len(p.payload) + bool(p.flags & SYN) + bool(p.flags & FIN)
            self.segment(p.version, ports, (0, end & MASK), RST | ACK, 0, b"", b"")


class Connection:
    """One end of a TCP connection. Places (`una`, `nxt`, `rcv`) count bytes of the streams; 0 is the first.

    top: the highest place ever sent. queued: how much the script has said so far; with `closing` the FIN
    stands at this place. early: what came out of order.
    """

    def __init__(self, host: Host, key: Key, plan: Plan | None) -> None:
        self.host, self.key, self.plan = host, key, plan
        self.label = plan.number if plan else -1
        self.script = (plan.client if host.is_client else plan.guest) if plan else ()
        self.stream = host.plans.stream(plan, host.is_client, host.habits.wrong) if plan else b""
        self.step = 0
        self.state = SYN_SENT
        self.iss = host.initial_number(key)
        self.irs = 0
        self.una = self.nxt = self.top = self.queued = self.rcv = self.read = 0
        self.edge = host.habits.window
        self.read_at: float | None = None
        self.challenge_at = 0.0
        self.closing = self.eof = self.closed_first = False
        self.early: dict[int, bytes] = {}
        self.peer_fin: int | None = None
        self.window, self.mss, self.peer_scale = 4000, 536, 0
        self.stamps = plan.stamps if plan else False
        self.sack = plan.sack if plan else False
        self.multipath = plan.multipath if plan else False
        self.scaling = not host.habits.other_options
        self.clock = host.chance.getrandbits(32)
        if host.chance.random() < 0.3:
            self.clock = (host.chance.choice((0, 1 << 31)) - host.chance.randrange(3000)) & MASK
        self.recent = 0
        self.first_stamp = 0
        self.rto = RTO
        self.tries = self.duplicates = self.unacked = 0
        self.rto_at: float | None = None
        self.ack_at: float | None = None
        self.pace_at: float | None = None
        self.wake_at: float | None = None
        self.end_at: float | None = None
        self.probe_at: float | None = None
        self.ack_now = False
        host.opened(host.name, self.label, self.iss, key)

    def copy_for(self, host: Host) -> Connection:
        """The same connection in another host."""
        other = copy.copy(self)
        other.host = host
        other.early = dict(self.early)
        if not host.habits.keepalive:
            other.probe_at = None
        return other

    # --- time

    def due(self) -> float | None:
        """When `tick` has something to do."""
        first = None
        for moment in (
            self.rto_at, self.ack_at, self.pace_at, self.wake_at, self.end_at, self.probe_at, self.read_at
        ):  # fmt: skip
            if moment is not None and (first is None or moment < first):
                first = moment
        return first

    def tick(self, now: float) -> None:
        """Time-outs."""
        if self.end_at is not None and now >= self.end_at:
            self._end()
            return
        if self.rto_at is not None and now >= self.rto_at:
            self.tries += 1
            if self.tries > MOST_TRIES:
                self.host.plans.ended(self.label, self.host.name, "timed out")
                self._end()
                return
            self.rto = min(self.rto * 2, LONGEST_RTO)
            self.rto_at = now + self.rto
            if self.state in (SYN_SENT, SYN_RECEIVED):
                self._syn(now)
                return
            self.nxt = self.una
            self.pace_at = None
            if self.una == self.top:
                self.tries = 0  # the peer's window is closed, and it lives
                self._emit(ACK, self.top - 1, b"", now)
            elif self.window == 0:
                # What was sent before the window closed asks as well (RFC 9293 §3.8.6.1).
                self.nxt = self._transmit(self.una, now)
            self._send_data(now, burst=2)
        if self.pace_at is not None and now >= self.pace_at:
            self.pace_at = None
        if self.probe_at is not None and now >= self.probe_at:
            self.probe_at = now + self.host.habits.keepalive
            if self.una == self.top:
                self._emit(ACK, self.nxt - 1, b"", now)
        if self.ack_at is not None and now >= self.ack_at:
            self.ack_now = True
        if self.read_at is not None and now >= self.read_at:
            self._reads(now)
        self._flush(now)

    # --- opening and closing

    def open(self, now: float) -> None:
        """Send the SYN."""
        self._syn(now)
        self.rto_at = now + self.rto

    def _syn(self, now: float) -> None:
        options = b"\2\4" + (536 if self.plan and self.plan.number % 3 == 0 else 1400).to_bytes(2)
        if self.scaling:
            options += bytes((1, 3, 3, SCALE))
        if self.sack:
            options += b"\1\1\4\2"
        if self.multipath:
            options += b"\x1e\x0c\x01\x81" + self.host.chance.randbytes(8)  # RFC 8684 §3.1: a key of one's own
        if self.stamps:
            self.first_stamp = self.first_stamp or self._clock(now)
            options += b"\1\1\x08\x0a" + self._clock(now).to_bytes(4) + self.recent.to_bytes(4)
        flags = SYN if self.state == SYN_SENT else SYN | ACK
        ports = self.key[2], self.key[1]
        numbers = self.iss, (self.irs + 1) & MASK
        self.host.segment(self.key[0], ports, numbers, flags, self.host.habits.window, options, b"")

    def _end(self) -> None:
        self.state = CLOSED
        self.rto_at = self.ack_at = self.pace_at = self.wake_at = self.end_at = self.probe_at = self.read_at = None
        if self.host.connections.get(self.key) is self:
            del self.host.connections[self.key]

    def _reset_it(self, now: float) -> None:
        self.host.plans.ended(self.label, self.host.name, "aborted")
        self._emit(RST | ACK, self.top, b"", now)
        self._end()

    def gives_way(self, p: Packet) -> bool:
        """A new SYN in TIME-WAIT (RFC 6191)."""
        if p.flags & (SYN | ACK | RST) != SYN:
            return False
        newer = self.stamps and p.stamps is not None and distance(p.stamps[0], self.recent) > 0
        return newer or distance(p.seq, self._peer_seq(self.rcv)) > 0

    def _peer_seq(self, place: int) -> int:
        return (self.irs + 1 + place) & MASK

    def _clock(self, now: float) -> int:
        return (self.clock + int(now * 1000)) & MASK

    # --- receiving

    def push(self, p: Packet, now: float) -> None:
        """Take a segment."""
        if self.state == SYN_SENT:
            self._unopened(p, now)
        elif self.state == SYN_RECEIVED and p.flags & (SYN | ACK) == SYN and p.seq == self.irs:
            self._syn(now)
        else:
            self._established(p, now)

    def _unopened(self, p: Packet, now: float) -> None:
        if not p.flags & ACK:
            return  # a simultaneous open: nobody here does it
        if (p.ack - self.iss) & MASK != 1:
            if not p.flags & RST:
                self.host.segment(self.key[0], (self.key[2], self.key[1]), (p.ack, 0), RST, 0, b"", b"")
        elif p.flags & RST:
            self.host.plans.ended(self.label, self.host.name, "refused")
            self._end()
        elif p.flags & SYN:
            self._answered(p, now)

    def accept(self, p: Packet, now: float) -> None:
        """The first SYN of a connection that the peer opens."""
        self.state = SYN_RECEIVED
        self._take_syn(p)
        self._syn(now)
        self.rto_at = now + self.rto

    def _take_syn(self, p: Packet) -> None:
        self.irs = p.seq
        self.stamps = p.stamps is not None
        if p.stamps:
            self.recent = p.stamps[0]
        self.sack = b"\4\2" in p.options
        self.multipath = self.multipath and any(option[0] == 30 for option in p.options)
        self.scaling = self.scaling and p.scale is not None
        self.peer_scale = (p.scale or 0) if self.scaling else 0
        self.mss = (p.mss or 536) - (12 if self.stamps else 0)
        self.window = p.window

    def _answered(self, p: Packet, now: float) -> None:
        """SYN and ACK to our SYN."""
        if self.stamps and p.stamps is not None:
            # Linux refuses an answer whose echo it never sent (tcp_rcv_synsent_state_process).
            echoed = p.stamps[1]
            if distance(echoed, self.first_stamp) < 0 or distance(echoed, self._clock(now)) > 0:
                self.host.plans.complain(self.host.name, self.label, f"echoed stamp {echoed:#x} was never sent")
                return
        self._take_syn(p)
        self.state = OPEN
        self._alive(now)
        self.tries, self.rto, self.rto_at = 0, RTO, None
        self.ack_now = True
        self._flush(now)

    def _alive(self, now: float) -> None:
        if self.host.habits.keepalive:
            self.probe_at = now + self.host.habits.keepalive

    def _established(self, p: Packet, now: float) -> None:
        place = self.rcv + distance(p.seq, self._peer_seq(self.rcv))
        if self.stamps and p.stamps is not None and not p.flags & RST and distance(p.stamps[0], self.recent) < 0:
            self.host.counters["old_stamps"] += 1
            self._challenge(now)
            return
        if p.flags & RST:
            if place == self.rcv:
                over = self.closing and self.una == self.queued + 1 and self._peer_closed()
                self.host.plans.ended(self.label, self.host.name, "finished" if over else "reset")
                self._end()
            elif 0 < place - self.rcv < self.edge - self.rcv:
                self._challenge(now)
            return
        if p.flags & SYN:
            self._challenge(now)
            return
        if not p.flags & ACK:
            return
        if place + len(p.payload) < self.rcv - 60_000 or place > max(self.rcv, self.edge):
            self._challenge(now)
            return
        if p.stamps is not None and place <= self.rcv:
            self.recent = p.stamps[0]
        acked = self.una + distance(p.ack, self.iss + 1 + self.una)
        if self.state == SYN_RECEIVED:
            if acked != 0:
                self.host.segment(self.key[0], (self.key[2], self.key[1]), (p.ack, 0), RST, 0, b"", b"")
                return
            self.state = OPEN
            self._alive(now)
            self.tries, self.rto, self.rto_at = 0, RTO, None
        if acked > self.top:
            self.host.counters["acks_ahead"] += 1
            self._challenge(now)
            return
        self._acked(p, acked, now)
        self._data(p, place, now)
        self._flush(now)

    def _challenge(self, now: float) -> None:
        """Say where we are; not often, since two ends that disagree would never stop (RFC 5961 §7)."""
        if now < self.challenge_at:
            return
        self.challenge_at = now + 0.1
        self._emit(ACK, self.top, b"", now)

    def _acked(self, p: Packet, acked: int, now: float) -> None:
        if acked < self.una:
            return
        self.window = p.window << self.peer_scale
        if acked > self.una:
            self.una = acked
            self.nxt = max(self.nxt, acked)
            self.duplicates = self.tries = 0
            self.rto = RTO
            self.rto_at = now + self.rto if acked < self.top else None
        elif self.una < self.top and not p.payload and not p.flags & FIN:
            self.duplicates += 1
            if self.duplicates == 3:
                self._transmit(self.una, now)

    def _data(self, p: Packet, place: int, now: float) -> None:
        data = p.payload
        if p.flags & FIN:
            self.peer_fin = place + len(data)
        if not data and not p.flags & FIN:
            if place < self.rcv:
                self.ack_now = True  # a keep-alive, or a repetition
            return
        self.unacked += 1 + (len(data) > 1000)
        if place != self.rcv or self.early or p.flags & FIN or self.unacked >= self.host.habits.ack_every:
            self.ack_now = True
        elif self.ack_at is None:
            self.ack_at = now + self.host.habits.ack_delay
        if place + len(data) > self.edge:
            data = data[: max(0, self.edge - place)]
            self.ack_now = True
        if data:
            self._take(place, data)
        if self.peer_fin is not None and self.rcv == self.peer_fin:
            self.rcv = self.peer_fin + 1
            self.edge = max(self.edge, self.rcv)
            self.eof = not self.host.habits.reading
        if not self.host.habits.reading:
            self._reads(now)
        elif self.read_at is None and self.read < self.rcv:
            self.read_at = now + self.host.habits.reading

    def _peer_closed(self) -> bool:
        return self.peer_fin is not None and self.rcv > self.peer_fin

    def _take(self, place: int, data: bytes) -> None:
        if place > self.rcv:
            if len(data) > len(self.early.get(place, b"")):
                self.early[place] = data
            return
        self._received(data[self.rcv - place :])
        while self.early:
            first = min(self.early)
            if first > self.rcv:
                break
            self._received(self.early.pop(first)[self.rcv - first :])

    def _received(self, data: bytes) -> None:
        if data and (self.peer_fin is None or self.rcv < self.peer_fin):
            self.host.got(self.host.name, self.label, self.rcv, data)
            self.rcv += len(data)

    def _reads(self, now: float) -> None:
        """The application takes what is there, or the next thousand bytes; the window opens again."""
        slow = self.host.habits.reading
        self.read = min(self.rcv, self.read + 1000) if slow else self.rcv
        self.read_at = now + slow if self.read < self.rcv else None
        if self.peer_fin is not None and self.read > self.peer_fin:
            self.eof = True
        opened = self.read + self.host.habits.window
        if opened > self.edge:
            # A small opening is told with the next ack, a large one at once (RFC 9293 §3.8.6.2.2).
            told = self.edge
            self.edge = opened
            if slow and opened - told >= min(2 * self.mss, self.host.habits.window // 2):
                self.ack_now = True

    # --- sending

    def _flush(self, now: float) -> None:
        if self.state == TIME_WAIT:
            if self.ack_now:
                self._emit(ACK, self.top, b"", now)
            return
        if self.state != OPEN:
            return
        self._run(now)
        if self.state != OPEN:
            return
        self._send_data(now, self.host.habits.burst)
        if self.ack_now:
            self._emit(ACK, self.nxt, b"", now)
        if self.closing and self.una == self.queued + 1 and self.eof:
            self.host.plans.ended(self.label, self.host.name, "finished")
            if self.closed_first:
                self.state = TIME_WAIT
                self.end_at = now + self.host.habits.time_wait
                self.rto_at = self.pace_at = self.wake_at = self.ack_at = self.probe_at = None
            else:
                self._end()

    def _run(self, now: float) -> None:
        """Go on with the script."""
        while self.step < len(self.script):
            kind, number = self.script[self.step]
            if kind == "send":
                self.queued += int(number)
            elif kind == "recv":
                if self.read < number:
                    return
                if self._thinks(now):
                    return
            elif kind == "eof":
                if not self.eof:
                    return
            elif kind == "acked":
                if self.una < self.queued:
                    return
            elif kind == "pause":
                if self.wake_at is None:
                    self.wake_at = now + number
                if now < self.wake_at:
                    return
                self.wake_at = None
            elif kind == "fin":
                if not self.closing:
                    self.closed_first = not self._peer_closed()
                self.closing = True
            elif kind == "rst":
                self._reset_it(now)
                return
            self.step += 1

    def _thinks(self, now: float) -> bool:
        """The application takes its time before it goes on."""
        if self.wake_at is None:
            if not self.host.habits.think:
                return False
            self.wake_at = now + self.host.whim.random() * self.host.habits.think
        if now < self.wake_at:
            return True
        self.wake_at = None
        return False

    def _send_data(self, now: float, burst: int) -> None:
        if self.pace_at is not None:
            return
        sent = 0
        while self._has_more():
            if sent == burst:
                self.pace_at = now + self.host.habits.pace
                break
            if self.nxt - self.una >= self.window:
                if self.rto_at is None:
                    self.rto_at = now + self.rto  # to ask for room
                break
            self.nxt = self._transmit(self.nxt, now)
            self.top = max(self.top, self.nxt)
            sent += 1
        if sent and self.rto_at is None:
            self.rto_at = now + self.rto

    def _has_more(self) -> bool:
        return self.nxt < self.queued or (self.closing and self.nxt == self.queued)

    def _transmit(self, place: int, now: float) -> int:
        """Send a segment from `place` on, and return where it ends."""
        habits = self.host.habits
        left = self.queued - place
        low, high = habits.cut
        step = max(1, int(self.mss * (low + (high - low) * self.host.whim.random())))
        size = min(step, left, max(1, self.una + self.window - place))
        gso = 0
        if habits.offload.gso and left > step and self.window > 2 * step:
            size = min(step * self.host.whim.randint(2, 5), left, self.una + self.window - place)
            gso = step if size > step else 0
        flags = ACK | (PSH if place + size == self.queued else 0)
        end = place + size
        if self.closing and end == self.queued and (not size or not habits.fin_alone):
            flags |= FIN
            end += 1
        self._emit(flags, place, self.stream[place : place + size], now, gso)
        return end

    def _emit(self, flags: int, place: int, payload: bytes, now: float, gso_size: int = 0) -> None:
        options = b""
        if self.stamps and not flags & RST:
            options = b"\1\1\x08\x0a" + self._clock(now).to_bytes(4) + self.recent.to_bytes(4)
        if self.early and self.sack and not payload:
            options += self._sack()
        numbers = (self.iss + 1 + place) & MASK, self._peer_seq(self.rcv)
        self.ack_now = False
        self.ack_at = None
        self.unacked = 0
        ports = self.key[2], self.key[1]
        window = max(0, self.edge - self.rcv) >> (SCALE if self.scaling else 0)
        self.host.segment(self.key[0], ports, numbers, flags, window, options, payload, gso_size)

    def _sack(self) -> bytes:
        blocks: list[list[int]] = []
        for place in sorted(self.early):
            end = place + len(self.early[place])
            if blocks and place <= blocks[-1][1]:
                blocks[-1][1] = max(end, blocks[-1][1])
            else:
                blocks.append([place, end])
        blocks = blocks[-3:]
        edges = b"".join(self._peer_seq(edge).to_bytes(4) for block in blocks for edge in block)
        return b"\1\1" + bytes((5, 2 + len(edges))) + edges
