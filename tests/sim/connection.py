"""One end of a TCP connection, as a host has it.

RFC 9293 with RFC 7323 (timestamps, PAWS), RFC 2018 (SACK), RFC 2883 (DSACK), RFC 5961 (challenge
acks), RFC 3168 (ECN), RFC 7413 (data on a SYN), urgent data and TIME-WAIT; no congestion control.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from sim.habits import LONGEST_RTO, MOST_TRIES, RTO, SCALE, Key
from sim.plans import Plan
from sim.wire import ACK, CWR, ECE, FIN, MASK, PSH, RST, SYN, URG, Packet, distance

if TYPE_CHECKING:
    from sim.host import Host

SYN_SENT, SYN_RECEIVED, OPEN, TIME_WAIT, CLOSED = range(5)


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
        self.scaling = host.habits.other_options != "scale"
        self.ecn = plan.ecn if plan else False
        self.urgent = plan.urgent + host.habits.other_urgent if plan and plan.urgent and not host.is_client else None
        self.duplicate: tuple[int, int] | None = None
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
                self._emit(ACK, self.nxt - 1, b"\0" if self.host.habits.probe_byte and self.nxt > 0 else b"", now)
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
        mss = 536 if self.plan and self.plan.number % 3 == 0 else 1400
        options = b"\2\4" + (mss - 4 * (self.host.habits.other_options == "mss")).to_bytes(2)
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
        if self.ecn:
            flags |= ECE | CWR if self.state == SYN_SENT else ECE
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

    def stray_reset(self, offset: int) -> None:
        """Send a RST that is in the window, and not exact (RFC 5961 §3.2): it must do nothing."""
        numbers = (self.iss + 1 + self.top + offset) & MASK, 0
        self.host.segment(self.key[0], (self.key[2], self.key[1]), numbers, RST, 0, b"", b"")

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
        elif self.state == SYN_RECEIVED and p.flags & SYN and p.seq == self.irs:
            if p.flags & ACK and (p.ack - self.iss) & MASK == 1:
                self._opens(now)  # both have opened (RFC 9293 §3.5)
            else:
                self._syn(now)
        else:
            self._established(p, now)

    def _unopened(self, p: Packet, now: float) -> None:
        if not p.flags & ACK:
            if p.flags & SYN:
                self.state = SYN_RECEIVED  # both open at once (RFC 9293 §3.5)
                self._take_syn(p)
                self._syn(now)
            return
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
        self.ecn = self.ecn and bool(p.flags & ECE)
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
        self._opens(now)

    def _opens(self, now: float) -> None:
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
                # With both FINs said nobody is told of it (RFC 9293 §3.10.7.4: LAST-ACK, CLOSING, TIME-WAIT).
                over = self.closing and self.una >= self.queued and self.top > self.queued and self._peer_closed()
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
        if data and place + len(data) <= self.rcv:
            self.duplicate = place, place + len(data)
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
        urgent = self.urgent - place if self.urgent is not None and self.urgent > place else 0
        if habits.offload.gso and left > step and self.window > 2 * step and not urgent:
            size = min(step * self.host.whim.randint(2, 5), left, self.una + self.window - place)
            gso = step if size > step else 0
        flags = ACK | (PSH if place + size == self.queued else 0)
        end = place + size
        if self.closing and end == self.queued and (not size or not habits.fin_alone):
            flags |= FIN
            end += 1
        self._emit(flags, place, self._bytes(place, size), now, gso, urgent)
        return end

    def _bytes(self, place: int, size: int) -> bytes:
        """What is said at a place; a fickle host says another byte the second time."""
        at = self.host.habits.fickle.get(self.label)
        if at is None or not place <= at < place + size or self.top <= at:
            return self.stream[place : place + size]
        wrong = bytes((self.stream[at] ^ 0x11,))
        return self.stream[place:at] + wrong + self.stream[at + 1 : place + size]

    def _emit(self, flags: int, place: int, payload: bytes, now: float, gso_size: int = 0, urgent: int = 0) -> None:
        options = b""
        if self.stamps and not flags & RST:
            options = b"\1\1\x08\x0a" + self._clock(now).to_bytes(4) + self.recent.to_bytes(4)
        if (self.early or self.duplicate) and self.sack and not payload and not flags & RST:
            options += self._sack()
        if urgent:
            flags |= URG
        if self.ecn and not flags & RST and self.host.whim.random() < 0.2:
            flags |= self.host.whim.choice((ECE, CWR, ECE | CWR))
        numbers = (self.iss + 1 + place) & MASK, self._peer_seq(self.rcv)
        self.ack_now = False
        self.ack_at = None
        self.unacked = 0
        ports = self.key[2], self.key[1]
        window = max(0, self.edge - self.rcv) >> (SCALE if self.scaling else 0)
        self.host.segment(self.key[0], ports, numbers, flags, window, options, payload, gso_size, urgent)

    def _sack(self) -> bytes:
        blocks: list[list[int]] = []
        for place in sorted(self.early):
            end = place + len(self.early[place])
            if blocks and place <= blocks[-1][1]:
                blocks[-1][1] = max(end, blocks[-1][1])
            else:
                blocks.append([place, end])
        if self.duplicate is not None:
            blocks.insert(0, list(self.duplicate))  # RFC 2883: the first block tells of a duplicate
            self.duplicate = None
            blocks = blocks[:3]
        blocks = blocks[-3:]
        edges = b"".join(self._peer_seq(edge).to_bytes(4) for block in blocks for edge in block)
        return b"\1\1" + bytes((5, 2 + len(edges))) + edges
