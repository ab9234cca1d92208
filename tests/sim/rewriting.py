"""Invariant 5: the rewriter moves the numbers of a connection by one constant, and changes nothing else."""

from __future__ import annotations

from typing import Any

from sim.habits import Key
from sim.lives import Life, Violation
from sim.state import State
from sim.wire import ACK, MASK, RST, SYN, Packet, distance


class Rewriting(State):
    """Of the rewriter, and of what the secondary says through it."""

    def _at_rewriter(self, what: str, said: Any, out: list[Any], events: list[Any]) -> None:
        if what == "to_guest" and isinstance(said, tuple) and self.withholds:
            self.withheld += [(raw, said[0]) for raw in said[2]]
            said = ()
        elif what in ("guest", "to_guest") and isinstance(said, tuple):
            self._goes_through(what, [(raw, said[0]) for raw in said[2]], out)
            return
        self._told_rewriter(what, said)
        if any(where == "guest" for where, item in out if isinstance(item, tuple)) and self.withheld:
            came, self.withheld = self.withheld, []
            self.withholds = getattr(said, "phase", None) == "prepare"
            self._goes_through("to_guest", came, [(where, item) for where, item in out if isinstance(item, tuple)])
            return
        for _, item in out:
            for raw in item[2] if isinstance(item, tuple) else ():
                q = self.reader.read(raw, item[0])
                if not self.speaking or not q.flags & RST or q.checksum != "right":
                    raise Violation(5, f"the rewriter made a frame of {what}: {q}")

    def _told_rewriter(self, what: str, said: Any) -> None:
        """Cuts, gaps and events."""
        phase = getattr(said, "phase", None)
        lost = type(said).__name__ == "Gap"
        if what == "events" and said.name == "unprotected" and not self.rewriter_speaking:
            self.doomed.add(said.fields["flow"])
            if said.fields["reason"] == "passthrough":
                self.doomed_by_rule.add(said.fields["flow"])
        if what == "events" and said.name == "failover" and said.fields["survivor"] == "secondary":
            self.rewriter_speaking = lost = True
        if what == "events" and said.name == "gap" and said.fields["stream"] == "ingress":
            lost = True
        if phase == "commit":
            self._forget()
        if phase is not None or lost:
            self.withholds = phase == "prepare" and not self.rewriter_speaking

    def _goes_through(self, what: str, came: list[tuple[bytes, int]], out: list[Any]) -> None:
        """Frames on their way through it, in one direction."""
        main = "from_guest" if what == "guest" else "guest"
        given = [(item[0], raw) for where, item in out if where == main for raw in item[2]]
        other = [(item[0], raw) for where, item in out if where != main for raw in item[2]]
        at = 0
        for raw, vnet in came:
            p = self.reader.read(raw, vnet)
            if what == "guest":
                self._secondary_says(p)
            q = self.reader.read(given[at][1], given[at][0]) if at < len(given) else None
            if (
                q is None
                or given[at][0] != vnet
                or not _same_but_numbers(p, raw, q, given[at][1], vnet, what == "guest")
            ):
                if self.speaking and p.kind == "tcp":
                    continue  # replaced by resets, which are looked at below
                raise Violation(5, f"the rewriter changed, dropped or added a frame on {what}: {p}")
            at += 1
            if what == "guest" and not self.rewriter_speaking:
                self.under_way.append(given[at - 1][1])
            if p.quoted and what == "to_guest" and q.quoted:
                self._moved_quotation(p, q)
            if p.kind == "tcp":
                (self._moved_back if what == "guest" else self._moved)(p, q)
                if what == "guest" and q.flags & RST:
                    self._says_reset(q)
        for size, raw in given[at:] + other:
            q = self.reader.read(raw, size)
            if not self.speaking or q.kind != "tcp" or not q.flags & RST or q.checksum != "right":
                raise Violation(5, f"the rewriter made a frame of its own: {q}")

    def _forget(self) -> None:
        """The guest has become a copy: distances are nought, of the connections that were known as well."""
        was, self.learned = self.learned, {}
        for key, life in was.items():
            copy = self._counterpart(life, self.lives["secondary"])
            if copy is not None:
                copy.echoed = life.echoed
                self.learned[key] = copy
        self.doomed &= self.doomed_by_rule
        self.followed = self.lives["secondary"]
        self.commit_lost = False
        for lives in self.followed.values():
            for life in lives:
                life.waiting = False
                life.shift = None
        for life in self.learned.values():
            life.shift = 0

    def _moved_back(self, p: Packet, q: Packet) -> None:
        """A segment of the secondary on its way into the primary's space."""
        key = p.version, p.dport, p.sport
        moved = (q.seq - p.seq) & MASK
        life = self._life_among(self.followed, p)
        learned = self.learned.get(key)
        if p.flags & SYN and (self.rewriter_speaking or self._name(p) not in self.doomed_by_rule):
            self.doomed.discard(self._name(p))
        if p.flags & SYN and life is not None:
            if not life.waiting:
                life.waiting = True
                life.first_stamp = p.stamps[0] if p.stamps else None
            if learned is not life:
                learned = None
        self._constant(key, moved, learned, "seq")
        if p.stamps and q.stamps:
            self._clock(learned, (q.stamps[0] - p.stamps[0]) & MASK, key)
            echoed = learned.echoed if self.rewriter_speaking and learned is not None else None
            if echoed is not None and key not in self.loose and distance(q.stamps[0], echoed) < 0:
                raise Violation(5, f"after the failover the clock of {key} steps back: {echoed} to {q.stamps[0]}")

    def _moved(self, p: Packet, q: Packet) -> None:
        """A segment of the client on its way into the secondary's space."""
        key = p.version, p.sport, p.dport
        moved = (p.ack - q.ack) & MASK
        if not p.flags & ACK:
            if moved or p.stamps != q.stamps or p.sack != q.sack:
                raise Violation(5, "numbers of a segment without ACK were moved")
            return
        learned = self.learned.get(key)
        lives = self.followed.get(key, ())
        newest = lives[-1] if lives else None
        if newest is not None and newest is not learned and newest.waiting and self._answers(newest, p):
            learned = self.learned[key] = newest
            newest.waiting = False
            newest.shift = None
        if p.flags & RST and newest is not None and newest.waiting and self._refuses(newest, p, q):
            return
        self._constant(key, moved, learned, "ack")
        for (a, b), (c, d) in zip(p.sack, q.sack, strict=True):
            if (a - c) & MASK != moved or (b - d) & MASK != moved:
                raise Violation(5, f"SACK edges were not moved as the ack was: {p.sack} → {q.sack}, ack by {moved}")
        if p.stamps and q.stamps:
            self._clock(learned, (p.stamps[1] - q.stamps[1]) & MASK, key)
            if learned is not None and (learned.echoed is None or distance(p.stamps[1], learned.echoed) > 0):
                learned.echoed = p.stamps[1]

    def _refuses(self, life: Life, p: Packet, q: Packet) -> bool:
        """Whether the client refuses the SYN with which the guest opens; the secondary must hear that of its own."""
        if any(flags & ACK for flags, _, _ in life.syns):
            return False
        if q.ack == (life.iss + 1) & MASK:
            return True
        primary = self._counterpart(life, self.lives["primary"])
        if primary is not None and primary.place(p.ack) == 0 and life.key not in self.loose and not self.commit_lost:
            raise Violation(5, f"a refusal of {life.key} answers {q.ack}, and the secondary's SYN is {life.iss}")
        return False

    def _moved_quotation(self, p: Packet, q: Packet) -> None:
        """An ICMP error that quotes the guest's segment, whose seq is of the primary's space."""
        assert p.quoted is not None
        assert q.quoted is not None
        key = p.version, p.quoted[1], p.quoted[0]
        learned, lives = self.learned.get(key), self.followed.get(key, ())
        if lives and lives[-1].waiting and q.quoted[2] == lives[-1].iss:
            return  # of its SYN, which is all that it has said
        if learned is None and lives and lives[-1].waiting:
            if q.quoted[2] != lives[-1].iss:
                raise Violation(5, f"an error about a SYN of {key} quotes {q.quoted[2]} instead of {lives[-1].iss}")
        else:
            self._constant(key, (p.quoted[2] - q.quoted[2]) & MASK, learned, "quoted seq")

    def _answers(self, life: Life, p: Packet) -> bool:
        """Whether this segment of the client is an answer to a life's SYN."""
        if p.flags & RST:
            return False
        accepted = [ack for flags, ack, _ in life.syns if flags & ACK]
        if not accepted and not p.flags & SYN and not self.rewriter_speaking:
            return False
        if accepted and not -1 <= distance(p.seq + bool(p.flags & SYN), accepted[0]) < 1 << 24:
            return False
        primary = self._counterpart(life, self.lives["primary"])
        if primary is None or primary.place(p.ack) != 0:
            # Not the answer that a rewriter can learn from: nothing can be said about this connection.
            self.loose.add(life.key)
        return True

    def _constant(self, key: Key, moved: int, learned: Life | None, what: str) -> None:
        if key in self.loose or self.commit_lost:
            return
        right = self._distance(learned) if learned is not None else 0
        if right is not None and moved != right:
            raise Violation(5, f"{what} of {key} moved by {moved}, and the distance is {right}")

    def _clock(self, learned: Life | None, moved: int, key: Key) -> None:
        if key in self.loose or self.commit_lost:
            return
        if learned is None:
            if moved:
                raise Violation(5, f"a timestamp of {key} moved by {moved} before its distance was known")
            return
        if learned.shift is None:
            learned.shift = moved
            stamp = None if learned.first_stamp is None else (learned.first_stamp + moved) & MASK
            primary = self._counterpart(learned, self.lives["primary"])
            if primary is not None and stamp is not None and stamp not in primary.stamps and not self.speaking:
                raise Violation(5, f"the clock of {key} moved to {stamp}, which the primary never said")
        elif moved != learned.shift:
            if not self.speaking or distance(moved, learned.shift) < 0:
                raise Violation(5, f"a timestamp of {key} moved by {moved}, and before by {learned.shift}")
            learned.shift = moved

    def _secondary_says(self, p: Packet) -> None:
        if p.kind == "tcp":
            life = self._life("secondary", p)
            if life is not None:
                life.say(p)
        elif p.kind in ("udp", "icmp", "other"):
            self.datagrams[p.flow, p.body] += 1
        elif p.kind == "fragment":
            self._piece(p)

    def _says_reset(self, q: Packet) -> None:
        self.resets_said[q.flow, q.seq] += 1
        self.resets.setdefault(q.flow, set()).add((q.seq, q.ack if q.flags & ACK else None))

    def _piece(self, p: Packet) -> None:
        assert p.fragment is not None
        self.pieces.add((p.flow[:-1], *p.fragment, p.payload))


def _same_but_numbers(p: Packet, a: bytes, q: Packet, b: bytes, vnet: int, from_guest: bool) -> bool:
    """Whether two frames differ in nothing but the numbers that a rewriter moves, and the checksum."""
    if a == b:
        return True
    if p.kind not in ("tcp", "icmp") or p.kind != q.kind or len(a) != len(b) or (p.kind == "icmp" and not p.quoted):
        return False
    if p.checksum != q.checksum:
        raise Violation(5, f"a checksum that was {p.checksum} became {q.checksum}: {p} {q}")
    places = [(p.l4 + 16, 2), (p.l4 + (4 if from_guest else 8), 4)]
    if p.quoted:
        places = [(p.l4 + 2, 2), (p.quoted[3], 4)]
    if p.stamps_at:
        places.append((p.stamps_at + (2 if from_guest else 6), 4))
    if p.sack_at and not from_guest:
        places.append((p.sack_at + 2, 8 * len(p.sack)))
    one, two = bytearray(a), bytearray(b)
    for at, size in places:
        at += vnet
        one[at : at + size] = two[at : at + size] = bytes(size)
    if p.checksum == "partial" and a[vnet + p.l4 + 16 : vnet + p.l4 + 18] != b[vnet + p.l4 + 16 : vnet + p.l4 + 18]:
        raise Violation(5, "a partial checksum was changed")
    return one == two
