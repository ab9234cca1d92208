"""A host without I/O: TCP, UDP, ping and ARP, well-behaved but with habits of its own.

    host.push(frame, vnet, now)    a frame came in          host.due()     when `tick` has something to do
    host.tick(now)                 time-outs, agenda        host.take()    frames to send

Two guests run the same agenda and the same scripts and so say the same bytes; `Habits` and the seed
make everything else differ: initial numbers, clocks, segmentation, pacing, acks, order of answers.
TCP is in `connection`. A host has a clock of its own: it stands still while the host
is stopped, and a copy (`copy_of`) goes on with the original's.
"""

from __future__ import annotations

import copy
import heapq
import random
from collections.abc import Callable

from sim.connection import CLOSED, OPEN, TIME_WAIT, Connection
from sim.habits import CLIENT_PORTS, FRAGMENT, GUEST_PORTS, LONG_PORT, UDP_PORTS, Habits, Key
from sim.plans import Plan, Plans
from sim.wire import (
    ACK,
    FIN,
    MASK,
    PROTO_ICMP,
    PROTO_ICMP6,
    PROTO_UDP,
    RST,
    SYN,
    Link,
    Packet,
    Reader,
    arp,
    distance,
    echo,
    ip_frame,
    tcp_frame,
    udp_payload,
)


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
        for name in ("wrong", "wrong_datagrams", "other_options", "other_urgent"):
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
        elif kind == "forged":
            way, payload = what  # type: ignore[misc]
            if self.name == "primary":
                self._forge(way, udp_payload(self.own[4], self.other[4], 7000, 514, payload))
            else:
                self.send_udp(4, 7000, 514, payload)
        elif kind == "stray":
            key, offset = what  # type: ignore[misc]
            connection = self.connections.get(key)
            if connection is not None and connection.state == OPEN:
                connection.stray_reset(offset)
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
        urgent: int = 0,
    ) -> None:
        """Send a TCP segment."""
        self.ident = (self.ident + 1) & 0xFFFF
        spoiled = bool(self.habits.spoil) and self.whim.random() < self.habits.spoil
        self._out.append(
            tcp_frame(
                self.link, self.own[version], self.other[version], ports, numbers, flags, window, options, payload,
                self.ident, self.habits.offload, gso_size, spoiled, urgent,
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

    def _forge(self, way: str, whole: bytes) -> None:
        """A datagram in three fragments, one of which stands where it must not."""
        self.ident = (self.ident + 1) & 0xFFFF
        pieces = [whole[:FRAGMENT], whole[FRAGMENT : 2 * FRAGMENT], whole[2 * FRAGMENT :]]
        places = [(0, True), (FRAGMENT, True), (2 * FRAGMENT, False)]
        if way == "overlap":
            places[1] = (8, True)
        elif way == "two ends":
            places[1] = (FRAGMENT, False)
            pieces, places = pieces[1:] + pieces[:1], places[1:] + places[:1]
        elif way == "beyond the end":
            places[1:] = (FRAGMENT, False), (2 * FRAGMENT, True)
            pieces, places = pieces[1:] + pieces[:1], places[1:] + places[:1]
        elif way == "hole":
            places[2] = (4 * FRAGMENT, False)
        for piece, (at, more) in zip(pieces, places, strict=True):
            if way == "two datagrams":
                self.ident = (self.ident + 1) & 0xFFFF
            place = at // 8 | (0x2000 if more else 0)
            self._raw(ip_frame(self.link, self.own[4], self.other[4], PROTO_UDP, piece, self.ident, place))

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
