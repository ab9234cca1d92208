"""Invariants 1, 3 and 10 at the comparer: what goes in, what it tells, and what comes out in which order."""

from __future__ import annotations

from collections import deque
from typing import Any

from sim.lives import Violation
from sim.proof import Proof
from sim.scenario import FOREVER
from sim.state import Entry
from sim.wire import ACK, MASK, PROTO_TCP, RST, SYN, Packet, distance

#: Divergences that only different guests, or lost offsets, can give.
HARD = ("data", "fin", "syn", "secondary_contradicts_itself")


class Releasing(Proof):
    """Of the comparer."""

    def _at_comparer(self, what: str, said: Any, out: list[Any], events: list[Any]) -> None:
        self.standing = frozenset(self.diverged)
        self.emptied = None
        if what == "undelivered":
            # The link was full: these frames were let out, and never came to the mirror.
            for _ in said[1][2]:
                self.to_mirror.pop()
                self.let_out -= 1
            return
        frames = said.__class__.__name__ == "Frames"
        if frames:
            self.largest = max(self.largest, sum(map(len, said[2])))
        if what == "primary" and frames:
            self._goes_in(said)
        elif what == "secondary" and frames:
            for raw in said[2]:
                self.longest = max(self.longest, len(raw))
                p = self.reader.read(raw, said[0])
                if p.kind == "chatter" and p.asks:
                    self.asked.append(raw)
                elif p.kind == "tcp" and p.flags == ACK and not p.payload:
                    self.acks.append((self._timeless(p, raw, said[0]), p.stamps))
        for event in events:
            self._comparer_tells(event)
        for where, item in out:
            if where != "released":
                raise Violation(8, f"the comparer gave frames to {where}")
            for raw in item[2]:
                self.let_out += 1
                self.to_mirror.append((raw, item[0]))
                self._comes_out(raw, item[0])
        for flow, parts in self.parts.items():
            reached = 0
            for at, _, size in sorted(parts):
                reached = reached + size if at == reached else -1
            if reached < 0 or [more for _, more, _ in sorted(parts)] != [True] * (len(parts) - 1) + [False]:
                raise Violation(1, f"fragments left that are no whole datagram: {flow} {sorted(parts)}")
        self.parts.clear()

    def _goes_in(self, said: Any) -> None:
        for raw in said[2]:
            sent = self._find(
                self.to_comparer, (raw, said[0]), "the comparer was given a frame that the mirror did not send"
            )
            p = self.reader.read(raw, said[0])
            self.taken_in += 1
            entry = Entry(raw, said[0], p, sent[2], self.now)
            name = self._name(p)
            self.named.setdefault(name, set()).add(p.flow)
            if p.kind == "tcp" and p.flags & SYN:
                self.unprotected.discard(name)
            entry.free = self.alone or self._passes(p) or name in self.unprotected or name in self.unprotected_pairs
            self.inside.setdefault(p.flow, deque()).append(entry)
            if p.kind == "chatter":
                self.voices.add(p.source_mac)

    def _passes(self, p: Packet) -> bool:
        """Whether a rule lets this flow leave unchecked."""
        for rule in self.scenario.passthrough:
            if p.kind == "fragment" and rule["protocol"] == "udp":
                return True  # its datagram may be of that port
            if (
                p.kind == rule["protocol"]
                and rule["port"] in (p.sport, p.dport)
                and (p.version == 4 or "guest" not in rule)
            ):
                return True
        return False

    def _comparer_tells(self, event: Any) -> None:
        if event.name == "unprotected":
            name = event.fields["flow"]
            pair = " ".join(end.rpartition(":")[0].strip("[]") for end in name.split())
            self.unprotected.add(name)
            for flow in self.named.get(name, ()):
                self.scaled.pop(flow, None)
            self.unprotected_pairs.add(pair)
            self.ever_unprotected.add(name)
            for entries in self.inside.values():
                for entry in entries:
                    entry.free = entry.free or self._name(entry.packet) in (name, pair)
            for key, lives in self.lives["secondary"].items():
                if lives and self._name_of(key) == name:
                    self.loose.add(key)
        elif event.name == "divergence":
            self._diverges(dict(event.fields))
        elif event.name == "cut" and event.fields["phase"] == "prepare":
            self.prepared = event.fields["epoch"]
        elif event.name == "cut" and event.fields["phase"] == "commit":
            self.emptied = self.prepared if self.prepared == event.fields["epoch"] else None
            self.standing = frozenset()
            self.alone = False
            self.unprotected.clear()
            self.unprotected_pairs.clear()
            self.diverged.clear()

    def _diverges(self, report: dict[str, Any]) -> None:
        name, reason = f"{report['protocol']} {report['flow']}", report["reason"]
        self.divergences.append((self.now, report))
        evicted = self.scenario.limited
        if (
            name in self.diverged
            and report["protocol"] == "tcp"
            and not evicted
            and self.scenario.on_divergence != "unprotect"
        ):
            raise Violation(10, f"{name} was reported twice in one epoch")
        self.diverged[name] = reason
        s = self.scenario
        noise = s.noisy and report["protocol"] != "tcp"
        if s.differs or reason == "limit" or noise:
            return
        if reason in HARD and not self._offsets_doubtful():
            raise Violation(10, f"equal guests, and {name} diverges: {report}")
        if any(
            name.endswith(self._name_of((p.version, p.port, p.service)))
            for p in s.plans
            if p.shape in ("client_aborts", "guest_gives_up")
        ):
            return  # what the secondary had not yet said when a RST ended it, nobody will say
        patient = s.compare_timeout >= (FOREVER if s.one_sided or s.failover is not None else 1.0)
        if reason not in HARD and patient and not s.limited:
            raise Violation(10, f"equal guests, nothing lost on one side, and {name} waits in vain: {report}")

    def _comes_out(self, raw: bytes, vnet: int) -> None:
        p = self.reader.read(raw, vnet)
        self._left(p, raw, vnet)
        if p.kind == "tcp":
            self._tell(p)
        if p.kind == "tcp" and not p.flags & RST and (p.payload or p.flags & SYN):
            end = (p.seq + len(p.payload) + bool(p.flags & SYN)) & MASK
            if p.payload and not self.alone:
                self.established.add(self._key(p))
            front = self.front.get(p.flow)
            if front is None or p.flags & SYN or distance(end, front) > 0:
                self.front[p.flow] = end

    def _key(self, p: Packet) -> bytes:
        """A TCP segment's flow as `lockstep.flow.key` writes it."""
        ids = b"".join(tag.to_bytes(2) for tag in self.scenario.tags)
        head = bytes((len(self.scenario.tags), p.version, PROTO_TCP))
        return head + ids + p.source + p.destination + p.sport.to_bytes(2) + p.dport.to_bytes(2)

    def _tell(self, p: Packet) -> None:
        """The client is told of room."""
        life = self._life("primary", p)
        if life is not None and p.flags & ACK and not p.flags & RST:
            edge, told = life.told(p), self.told.get(p.flow)
            if told is None or p.flags & SYN or distance(edge, told) > 0:
                self.told[p.flow] = edge
            if p.flags & SYN and not self.alone and self._name(p) not in self.unprotected:
                self.scaled[p.flow] = self._key(p)  # one that leaves unchecked is not looked at

    def _left(self, p: Packet, raw: bytes, vnet: int) -> None:
        if p.kind == "chatter" and not any(entry.raw == raw for entry in self.inside.get(p.flow, ())):
            if raw not in self.asked or p.source_mac not in self.voices:
                raise Violation(1, f"chatter left that the primary did not say: {raw.hex()}")
            return
        entry, part = self._entry(p, raw, vnet)
        if entry is None:
            front = self.front.get(p.flow)
            # A comparer that came later knows a stream from where it came in.
            if (
                self._says_secondary(p, raw, vnet)
                and p.flow in self.scaled
                and front is not None
                and distance(p.seq, front) > 1
            ):
                raise Violation(1, f"an ACK left that stands behind bytes that have not: {p}, they end at {front}")
            if self._life("primary", p) is not None or not self._offsets_doubtful():
                self._proven(part)
            return
        if entry.free or p.kind == "chatter":
            return
        still = not self.scenario.limited and self.scenario.on_divergence != "unprotect"
        if still and p.kind == "tcp" and f"tcp {self._name(p)}" in self.standing and entry.epoch == self.epoch:
            raise Violation(1, f"{self._name(p)} has diverged, no checkpoint was committed, and this left: {p}")
        if p.kind == "bad":
            raise Violation(8, f"a frame that nobody can read left: {raw.hex()}")
        if entry.epoch < self.epoch:
            return  # a cut was committed behind it
        if p.kind == "tcp":
            self._proven(part)
        elif p.kind == "fragment":
            assert p.fragment is not None
            if (p.flow[:-1], *p.fragment, p.payload) not in self.pieces:
                raise Violation(1, f"a fragment left that the secondary has not said: {p}")
            self.parts.setdefault(p.flow, []).append((*p.fragment, len(p.payload)))
        else:
            which = p.flow, p.body
            self.datagrams_out[which] += 1
            if self.datagrams_out[which] > self.datagrams[which]:
                raise Violation(1, f"a datagram left that the secondary has not said: {p}")
