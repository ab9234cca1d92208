"""Captures made up for these tests: what a wire shows of some conversations, with all that goes wrong on one."""

from __future__ import annotations

import itertools
from random import Random

from mutate import Record
from packets import (
    ACK,
    CLIENT,
    CLIENT6,
    FIN,
    GUEST,
    GUEST6,
    PSH,
    RST,
    SYN,
    arp_reply,
    echo_reply,
    ethernet,
    ip,
    segment,
    timestamps,
    udp,
)  # fmt: skip

MSS_OPTION = b"\x02\x04\x05\xb4"
TICK = 1_000_000


class Wire:
    """Collects frames, a millisecond apart."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, data: bytes, original: int = 0) -> None:
        self.records.append(Record(data, (len(self.records) + 1) * TICK, 1, original or len(data)))


class Talk:
    """One TCP connection, seen from the middle: 0 is the client, 1 the guest."""

    def __init__(self, wire: Wire, random: Random, *, port: int, v6: bool = False, vlan: tuple[int, ...] = ()) -> None:
        self.wire, self.random, self.port, self.vlan = wire, random, port, vlan
        self.ends = (CLIENT6, GUEST6) if v6 else (CLIENT, GUEST)
        self.next = [random.randrange(1 << 32), random.randrange(1 << 32)]
        #: What each side said last: (number, payload).
        self.last: list[tuple[int, bytes]] = [(0, b""), (0, b"")]

    def send(
        self, who: int, payload: bytes = b"", flags: int = ACK, *, at: int | None = None, options: bytes = b""
    ) -> None:
        seq = self.next[who] if at is None else at
        self.wire.add(
            segment(
                seq, self.next[1 - who] if flags & ACK else None, payload, flags=flags,
                options=options or timestamps(7, 9),
                sport=80 if who else self.port, dport=self.port if who else 80,
                source=self.ends[who], destination=self.ends[1 - who], vlan=self.vlan,
            )
        )  # fmt: skip
        if at is None:
            self.next[who] = (seq + len(payload) + bool(flags & SYN) + bool(flags & FIN)) & 0xFFFFFFFF
            if payload:
                self.last[who] = (seq, payload)

    def open(self) -> None:
        self.send(0, flags=SYN, options=MSS_OPTION)
        self.send(1, flags=SYN | ACK, options=MSS_OPTION)
        self.send(0)

    def speak(self, rounds: int) -> None:
        random = self.random
        for _ in range(rounds):
            who = random.randrange(2)
            self.send(who, random.randbytes(random.choice((1, 7, 100, 536, 1448))), PSH | ACK)
            if random.random() < 0.7:
                self.send(1 - who)
            seq, payload = self.last[who]
            if random.random() < 0.1:  # again, whole or in part
                cut = random.randrange(len(payload))
                self.send(who, payload[cut:], PSH | ACK, at=seq + cut)

    def close(self) -> None:
        self.send(1, flags=FIN | ACK)
        self.send(0, flags=FIN | ACK)
        self.send(1)

    def misbehave(self, kinds: int) -> None:
        """What no sender should do, and captures show; `kinds` of it, at most 6."""
        who = self.random.randrange(2)
        seq, payload = self.last[who]
        kind = self.random.randrange(kinds)
        if kind == 0 and payload:  # other bytes at the same place
            self.send(who, self.random.randbytes(len(payload)), PSH | ACK, at=seq)
        elif kind == 1:  # a keep-alive's garbage byte
            self.send(who, b"\0", at=self.next[who] - 1)
        elif kind == 2:
            self.send(who, flags=RST | ACK)
        elif kind == 3:
            self.send(who, flags=RST, at=0)
        elif kind == 4:  # data behind the FIN
            self.send(who, b"late", FIN | ACK)
            self.send(who, b"later", PSH | ACK)
        else:  # the same SYN with another number
            self.send(who, flags=SYN, at=self.random.randrange(1 << 32), options=MSS_OPTION)


def conversations(seed: int, *, evil: bool = True, strays: bool = True) -> list[Record]:
    """A capture of a few flows of every sort. evil: with what no sender should do; strays: SYNs that begin nothing."""
    random = Random(seed)
    wires = []
    for number in range(random.randint(1, 4)):
        wire = Wire()
        vlan = random.choice(((), (), (5,), (5, 6)))
        talk = Talk(wire, random, port=40000 + number, v6=random.random() < 0.3, vlan=vlan)
        for incarnation in range(random.choice((1, 1, 1, 2, 3))):
            if incarnation:
                # Far from the last one: nearer, and without a SYN, it would be the same connection going on.
                talk.next = [at + random.randrange(1 << 28, 1 << 31) & 0xFFFFFFFF for at in talk.next]
            if random.random() < 0.7:
                talk.open()
            talk.speak(random.randint(0, 25))
            if evil and random.random() < 0.5:
                talk.misbehave(6 if strays else 5)
                talk.speak(random.randint(0, 5))
            if random.random() < 0.6:
                talk.close()
        wires.append(wire)
    wires.append(_datagrams(random, evil))
    return woven([wire.records for wire in wires], random)


def woven(lists: list[list[Record]], random: Random) -> list[Record]:
    """Several captures as one: each keeps its order."""
    queues = [list(reversed(records)) for records in lists if records]
    out: list[Record] = []
    while queues:
        queue = random.choice(queues)
        record = queue.pop()
        out.append(Record(record.data, (len(out) + 1) * TICK, record.linktype, record.original))
        if not queue:
            queues.remove(queue)
    return out


def _datagrams(random: Random, evil: bool) -> Wire:
    wire = Wire()
    for number in range(random.randint(0, 20)):
        kind = random.randrange(8 if evil else 5)
        if kind < 2:
            wire.add(udp(random.randbytes(random.choice((0, 1, 30, 500))), dport=5000 + random.randrange(2)))
        elif kind == 2:
            wire.add(echo_reply(1, number))
        elif kind == 3:
            wire.add(arp_reply())
        elif kind == 4:
            for data in fragments(random.randbytes(64), number):
                wire.add(data)
        elif kind == 5:
            wire.add(random.randbytes(random.randrange(40)))
        elif kind == 6:
            wire.add(ethernet(random.randbytes(30), ethertype=0x88B5))
        else:
            wire.add(udp(random.randbytes(50))[: random.randrange(14, 60)], original=92)
    return wire


def fragments(payload: bytes, ident: int, cuts: tuple[int, ...] = (24, 48)) -> list[bytes]:
    """A UDP datagram in IPv4 fragments."""
    body = udp(payload)[34:]
    edges = [0, *cuts, len(body)]
    return [
        ethernet(ip(GUEST, CLIENT, 17, body[a:b], ident=ident, fragment=a // 8 | (0x2000 if b < len(body) else 0)))
        for a, b in itertools.pairwise(edges)
    ]
