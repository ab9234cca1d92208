"""A small TCP/IP host without I/O: guests and clients for the demo in memory, and for simulations.

    host.push(frame, now)      a frame came in
    host.tick(now)             time-outs: retransmission
    host.next_deadline()       when `tick` has something to do
    host.take()                frames to send

RFC 9293 as far as two well-behaved ends of a lossy wire need it: handshake, window, cumulative acks,
retransmission (time-out and three duplicate acks), FIN; of the options MSS, window scale, timestamps
with PAWS (RFC 7323) and one SACK block (RFC 2018). No congestion control, no resets of its own. The
same seed and the same `now` give the same frames. What a real stack would throw away is thrown away
and counted: `bad_checksums`, `old_timestamps`, `wrong_sacks`, `strays`.
"""

from __future__ import annotations

import ipaddress
import random
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lockstep.wire import checksum, ethernet, ipv4, seqnum, tcp
from lockstep.wire.frame import IPPROTO_TCP, TCP, Frame, dissect

MSS = 1428  # 1500 less IPv6, TCP and timestamps
WINDOW = 256 << 10
SCALE = 7
RTO, LONGEST_RTO = 0.2, 5.0

#: MSS, window scale, SACK permitted; an established connection's timestamps follow.
_SYN_OPTIONS = struct.pack("!BBH", 2, 4, MSS) + bytes((1, 3, 3, SCALE)) + b"\x01\x01\x04\x02"


class App(Protocol):
    """What a connection is for. Both directions are pulled and pushed by the connection."""

    def received(self, data: bytes, now: float) -> None:
        """Bytes arrived, in order."""

    def produce(self, most: int) -> bytes:
        """The next bytes to send, `most` at most; nothing if there are none now."""

    def finished(self) -> bool:
        """Nothing will ever be produced again: the connection may be closed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection, and our own port."""

    address: str
    port: int
    own_port: int


class Host:
    """One host on one wire, with an IPv4 and an IPv6 address.

    own, gateway: MAC addresses, ours and the one that all frames go to. vlan: tag of every frame.
    seed: decides initial sequence numbers, timestamp offsets and IP identifications.
    """

    def __init__(self, own: str, gateway: str, addresses: tuple[str, str], seed: int, vlan: int | None = None) -> None:
        tag = b"" if vlan is None else struct.pack("!HH", ethernet.VLAN, vlan)
        self._link = bytes.fromhex((gateway + own).replace(":", "")) + tag
        self._addresses: dict[int, bytes] = {ip.version: ip.packed for ip in map(ipaddress.ip_address, addresses)}
        self._random = random.Random(seed)
        self._ident = self._random.getrandbits(16)
        self._frame = Frame()
        self._out: list[bytes] = []
        self._listeners: dict[int, Callable[[], App]] = {}
        self.connections: dict[Peer, Connection] = {}
        self.counters = dict.fromkeys(("frames_in", "bad_checksums", "old_timestamps", "wrong_sacks", "strays"), 0)

    def listen(self, port: int, app: Callable[[], App]) -> None:
        """Take connections on a port, each with an app of its own."""
        self._listeners[port] = app

    def connect(self, address: str, port: int, own_port: int, app: App, now: float) -> Connection:
        """Open a connection."""
        peer = Peer(address, port, own_port)
        connection = self.connections[peer] = Connection(self, peer, app, self._random)
        connection.open(now)
        return connection

    def push(self, frame: bytes, now: float) -> None:
        """Take one whole Ethernet frame, without a virtio-net header."""
        self.counters["frames_in"] += 1
        f = self._frame
        if dissect(f, frame, 0, len(frame)) != TCP or self._other_link(frame) or self._other_address(f, frame):
            self.counters["strays"] += 1
        elif checksum.ones_sum(frame[f.l4 : f.payload_end], self._pseudo(f, frame)) != 0xFFFF:
            self.counters["bad_checksums"] += 1
        else:
            self._segment(f, frame, now)

    def tick(self, now: float) -> None:
        """Retransmit what is due, and send what apps have produced meanwhile."""
        for connection in self.connections.values():
            connection.tick(now)

    def next_deadline(self) -> float | None:
        """When the first retransmission is due."""
        return min((c.deadline for c in self.connections.values() if c.deadline is not None), default=None)

    def take(self) -> list[bytes]:
        """The frames to send; they are taken once."""
        out, self._out = self._out, []
        return out

    def send(self, peer: Peer, segment: bytes) -> None:
        """Put a TCP segment (its checksum 0) into a frame."""
        to = ipaddress.ip_address(peer.address)
        own = self._addresses[to.version]
        total = checksum.checksum(segment, checksum.ones_sum(own + to.packed) + IPPROTO_TCP + len(segment))
        segment = segment[: tcp.CHECKSUM] + struct.pack("!H", total) + segment[tcp.CHECKSUM + 2 :]
        if to.version == 6:
            head = struct.pack("!IHBB", 6 << 28, len(segment), IPPROTO_TCP, 64) + own + to.packed
        else:
            self._ident = (self._ident + 1) & 0xFFFF
            length = ipv4.HEADER + len(segment)
            head = struct.pack("!BBHHHBBH", 0x45, 0, length, self._ident, 0x4000, 64, IPPROTO_TCP, 0) + own + to.packed
            head = head[: ipv4.CHECKSUM] + struct.pack("!H", checksum.checksum(head)) + head[ipv4.CHECKSUM + 2 :]
        kind = ethernet.IPV6 if to.version == 6 else ethernet.IPV4
        self._out.append(self._link + struct.pack("!H", kind) + head + segment)

    def _other_link(self, frame: bytes) -> bool:
        return frame[:6] != self._link[6:12] or frame[12 : len(self._link)] != self._link[12:]

    def _other_address(self, f: Frame, frame: bytes) -> bool:
        own = self._addresses[f.version]
        return frame[f.l4 - len(own) : f.l4] != own

    def _pseudo(self, f: Frame, frame: bytes) -> int:
        addresses = frame[f.l4 - (8 if f.version == 4 else 32) : f.l4]
        return checksum.ones_sum(addresses) + IPPROTO_TCP + f.payload_end - f.l4

    def _segment(self, f: Frame, frame: bytes, now: float) -> None:
        size = len(self._addresses[f.version])
        source = ipaddress.ip_address(frame[f.l4 - 2 * size : f.l4 - size])
        port, own_port = struct.unpack_from("!HH", frame, f.l4)
        peer = Peer(str(source), port, own_port)
        connection = self.connections.get(peer)
        if connection is None:
            if own_port not in self._listeners or frame[f.l4 + tcp.FLAGS] & (tcp.SYN | tcp.ACK) != tcp.SYN:
                self.counters["strays"] += 1
                return
            app = self._listeners[own_port]()
            connection = self.connections[peer] = Connection(self, peer, app, self._random)
        connection.push(frame[f.l4 : f.payload], frame[f.payload : f.payload_end], now)


class Connection:
    """One end of a TCP connection. `una`, `nxt`, `rcv` are the RFC's SND.UNA, SND.NXT and RCV.NXT."""

    def __init__(self, host: Host, peer: Peer, app: App, chance: random.Random) -> None:
        self.host, self.peer, self.app = host, peer, app
        self.una = self.nxt = self._first = chance.getrandbits(32)
        self._clock = chance.getrandbits(32)
        self.rcv: int | None = None
        self.established = self.reset = self.closed = False
        self.deadline: float | None = None
        self.retransmissions = 0
        self._unacked: deque[tuple[int, int, bytes]] = deque()
        self._early: dict[int, bytes] = {}
        self._recent = self._window = self._duplicates = 0
        self._rto = RTO
        self._fin_sent = self._fin_received = self._ack_due = False

    @property
    def acked(self) -> int:
        """Bytes that the peer has acknowledged (of less than 2 GiB)."""
        return max(0, seqnum.diff(self.una, self._first) - 1)

    def open(self, now: float) -> None:
        """Send the SYN."""
        self._emit(tcp.SYN, b"", now)

    def push(self, header: bytes, payload: bytes, now: float) -> None:
        """Take a segment whose addresses and checksum are right."""
        seq, ack, flags, window = struct.unpack_from("!IIxBH", header, tcp.SEQ)
        timestamps, sack, _ = tcp.find_options(header, tcp.HEADER, len(header))
        stamp = struct.unpack_from("!I", header, timestamps + 2)[0] if timestamps else self._recent
        if flags & tcp.RST:
            self.reset = self.closed = True
            self.deadline = None
            return
        if self.rcv is None or flags & tcp.SYN:
            if not flags & tcp.SYN:
                return
            self._handshake(seq, flags, now)
        elif seqnum.lt(stamp, self._recent):
            self.host.counters["old_timestamps"] += 1
            self._ack_due = True
        if seqnum.le(self._recent, stamp) or flags & tcp.SYN:
            self._recent = stamp
            if sack and not self._sane(struct.unpack_from("!II", header, sack + 2)):
                self.host.counters["wrong_sacks"] += 1
            if flags & tcp.ACK:
                bare = not payload and not flags & (tcp.SYN | tcp.FIN)
                self._acked(ack, window if flags & tcp.SYN else window << SCALE, bare, now)
            if not flags & tcp.SYN:
                self._data(seq, payload, bool(flags & tcp.FIN), now)
        self._flush(now)

    def tick(self, now: float) -> None:
        """After the retransmission time-out everything unacknowledged goes again."""
        if self.deadline is not None and now >= self.deadline:
            self._rto = min(self._rto * 2, LONGEST_RTO)
            for seq, flags, payload in self._unacked:
                self._transmit(seq, flags, payload, now)
            self.retransmissions += len(self._unacked)
            self.deadline = now + self._rto
        self._flush(now)

    def _handshake(self, seq: int, flags: int, now: float) -> None:
        first = self.rcv is None
        self.rcv = seqnum.add(seq, 1) if self.rcv is None else self.rcv
        self._ack_due = self._ack_due or bool(flags & tcp.ACK)
        if first and not flags & tcp.ACK:
            self._emit(tcp.SYN | tcp.ACK, b"", now)

    def _sane(self, block: tuple[int, ...]) -> bool:
        """A block of what we sent and the peer holds lies within what is unacknowledged."""
        return seqnum.lt(block[0], block[1]) and seqnum.le(block[1], self.nxt)

    def _acked(self, ack: int, window: int, bare: bool, now: float) -> None:
        if not seqnum.le(ack, self.nxt) or seqnum.lt(ack, self.una):
            return
        self.established = True
        self._window = window
        if ack != self.una:
            self.una, self._duplicates, self._rto = ack, 0, RTO
            while self._unacked and seqnum.le(self._end(self._unacked[0]), ack):
                self._unacked.popleft()
            self.deadline = now + self._rto if self._unacked else None
        elif self._unacked and bare:
            self._duplicates += 1
            if self._duplicates == 3:
                self.retransmissions += 1
                self._transmit(*self._unacked[0], now)

    def _data(self, seq: int, payload: bytes, fin: bool, now: float) -> None:
        assert self.rcv is not None
        if payload or fin:
            self._ack_due = True
        if payload and seqnum.diff(seq, self.rcv) < WINDOW:
            self._early[seq] = max(payload, self._early.get(seq, b""), key=len)
        for start in sorted(self._early, key=lambda start: seqnum.diff(start, seq)):
            skip = seqnum.diff(self.rcv, start)
            if skip < 0:
                break
            part = self._early.pop(start)[skip:]
            if part:
                self.rcv = seqnum.add(self.rcv, len(part))
                self.app.received(part, now)
        if fin and self.rcv == seqnum.add(seq, len(payload)) and not self._fin_received:
            self._fin_received = True
            self.rcv = seqnum.add(self.rcv, 1)

    def _flush(self, now: float) -> None:
        """Send new data as far as the window goes, then a bare ack if one is still owed."""
        if self.established and not self._fin_sent:
            room = min(self._window, WINDOW) - seqnum.diff(self.nxt, self.una)
            while room > 0 and (part := self.app.produce(min(MSS, room))):
                self._emit(tcp.ACK | tcp.PSH, part, now)
                room -= len(part)
            if room > 0 and self.app.finished():
                self._fin_sent = True
                self._emit(tcp.ACK | tcp.FIN, b"", now)
        if self._ack_due:
            self._transmit(self.nxt, tcp.ACK, b"", now)
        self.closed |= self._fin_received and self._fin_sent and not self._unacked

    def _emit(self, flags: int, payload: bytes, now: float) -> None:
        """Send something that takes place in the stream, and remember it until it is acknowledged."""
        entry = (self.nxt, flags, payload)
        self.nxt = self._end(entry)
        self._unacked.append(entry)
        self.deadline = self.deadline or now + self._rto
        self._transmit(*entry, now)

    @staticmethod
    def _end(entry: tuple[int, int, bytes]) -> int:
        seq, flags, payload = entry
        return seqnum.add(seq, len(payload) + bool(flags & (tcp.SYN | tcp.FIN)))

    def _transmit(self, seq: int, flags: int, payload: bytes, now: float) -> None:
        clock = (self._clock + int(now * 1000)) & seqnum.MASK
        options = tcp.USUAL_TIMESTAMPS + struct.pack("!II", clock, self._recent)
        window = WINDOW >> SCALE
        if flags & tcp.SYN:
            options = _SYN_OPTIONS + options
            window = min(WINDOW, 0xFFFF)
        elif self._early and self.rcv is not None and not payload:
            rcv = self.rcv
            start = min(self._early, key=lambda start: seqnum.diff(start, rcv))
            end = seqnum.add(start, len(self._early[start]))
            options += b"\x01\x01" + struct.pack("!BBII", tcp.SACK, 10, start, end)
        offset = (tcp.HEADER + len(options)) << 2
        ports = (self.peer.own_port, self.peer.port)
        header = struct.pack("!HHIIBBHHH", *ports, seq, self.rcv or 0, offset, flags, window, 0, 0)
        self._ack_due = False
        self.host.send(self.peer, header + options + payload)
