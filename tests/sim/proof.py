"""Invariants 1 and 2: the secondary has said what leaves, or a cut was committed behind it."""

from __future__ import annotations

from collections.abc import Sequence

from sim.lives import REACH, Life, Violation, syn_said
from sim.state import Entry, State
from sim.wire import ACK, CWR, FIN, MASK, NEEDS_CSUM, PSH, RST, SYN, URG, Packet, distance


class Proof(State):
    """Which primary's frame it is that leaves, whole or in part, and whether it is proven."""

    def _entry(self, p: Packet, raw: bytes, vnet: int) -> tuple[Entry | None, Packet]:
        """The frame that went in, and what is to be proven of it; what it overtook is gone.

        None for a frame that the comparer made, or that is a pure ACK of the secondary.
        """
        entries = self.inside.get(p.flow, ())
        again = self._says_secondary(p, raw, vnet) or self.last_syn.get(p.flow) == raw
        again = again or (p.kind == "tcp" and (self._updates(p) or self._probes(p)))
        if again and not self._is_head(entries, p, raw):
            return None, p
        changed = None
        for index, entry in enumerate(entries):
            if entry.vnet != vnet:
                continue
            if entry.raw == raw and not entry.taken:
                for _ in range(index + 1):
                    entries.popleft()  # type: ignore[union-attr]
                if p.flags & SYN:
                    self.last_syn[p.flow] = raw
                return entry, p
            if p.kind == "tcp" and self._derived(entry, p):
                if p.checksum != entry.packet.checksum:
                    changed = entry.packet  # this frame with a wrong checksum, or another
                    continue
                entry.taken += len(p.payload)
                whole = entry.taken >= len(entry.packet.payload) and p.flags & FIN == entry.packet.flags & FIN
                if p.flags & SYN:
                    self.last_syn[p.flow] = raw
                for _ in range(index + whole):
                    entries.popleft()  # type: ignore[union-attr]
                if p.window < entry.packet.window:
                    self.lowered[p.flow] = p
                if p.flags & FIN and p.ack != entry.packet.ack:
                    raise Violation(2, f"a FIN left with a lowered ack: the client's answer closes the primary: {p}")
                return entry, p
        if p.kind == "tcp" and self._probes(p, anywhere=True):
            return None, p
        if changed is not None:
            raise Violation(5, f"the checksum was {changed.checksum} and became {p.checksum}: {p}")
        raise Violation(3, f"a frame left that the primary did not say, or said before another that left: {p}")

    @staticmethod
    def _timeless(p: Packet, raw: bytes, vnet: int) -> tuple[bytes, str]:
        """A segment without its clock value, and without the checksum over it but whether that is right."""
        timeless = bytearray(raw)
        for at, size in ((p.stamps_at + 2, 4 if p.stamps else 0), (p.l4 + 16, 2)):
            timeless[vnet + at : vnet + at + size] = bytes(size)
        return bytes(timeless), p.checksum

    def _says_secondary(self, p: Packet, raw: bytes, vnet: int) -> bool:
        """Whether this is a pure ACK of the secondary, with its own clock value or that of a frame that waits."""
        if p.kind != "tcp":
            return False
        said = self._timeless(p, raw, vnet)
        return any(said == ack and (p.stamps == stamps or self._waits_since(p, stamps)) for ack, stamps in self.acks)

    def _waits_since(self, p: Packet, stamps: tuple[int, int] | None) -> bool:
        """Whether an ACK of the secondary has the clock value of a frame that waits, which is older than its own."""
        if p.stamps is None or stamps is None or distance(p.stamps[0], stamps[0]) > 0:
            return False
        return any(e.packet.stamps and e.packet.stamps[0] == p.stamps[0] for e in self.inside.get(p.flow, ()))

    def _is_head(self, entries: Sequence[Entry], p: Packet, raw: bytes) -> bool:
        """Whether a frame like one that the comparer makes, or passes on, is the primary's own all the same."""
        if not entries:
            return False
        if entries[0].raw == raw:
            return True
        if p.flags & SYN:
            # Two SYNs of one connection are the same frame once MPTCP, with a key for each, is taken out of them.
            return self._derived(entries[0], p)
        # What stands in front of it here may have been dropped there.
        front = self.front.get(p.flow)
        ahead = front is not None and distance(p.seq, front) > 1
        return ahead and any(entry.raw == raw or self._derived(entry, p) for entry in entries)

    def _derived(self, entry: Entry, p: Packet) -> bool:
        """Whether this is a primary's segment with a lower ack, or its next part up to a segment's edge."""
        of = entry.packet
        if p.flags & SYN and (p.seq, syn_said(p), p.payload) == (of.seq, syn_said(of), of.payload):
            return p.options != of.options  # MPTCP was taken out
        if (p.seq - of.seq) & MASK != entry.taken or p.options != of.options or p.stamps != of.stamps:
            return False
        part = of.payload[entry.taken : entry.taken + len(p.payload)]
        if (
            part != p.payload
            or p.flags & ~of.flags
            or (p.flags ^ of.flags) & ~(FIN | PSH | (CWR if entry.taken else 0))
        ):
            return False
        if (p.flags & ACK and distance(p.ack, of.ack) > 0) or p.window > of.window:
            return False
        last = entry.taken + len(part) == len(of.payload)
        if last:
            # A FIN whose ack is ahead stays behind; what leaves without it has a lower one.
            return p.flags & FIN == of.flags & FIN or p.ack != of.ack
        partial = entry.vnet and entry.raw[0] & NEEDS_CSUM  # right or wrong, it can be cut
        return bool(partial and part and not p.flags & FIN)

    def _probes(self, p: Packet, anywhere: bool = False) -> bool:
        """Whether this is a keep-alive that the comparer made of the head, to have the client say what it has got.

        It names the last byte that left. anywhere: or another one, since a comparer that is
        new knows the stream from where it came in; without a byte in it, that does no harm.
        """
        front, entries = self.front.get(p.flow), self.inside.get(p.flow)
        if p.flags != ACK or p.payload or p.checksum != "right" or front is None or not entries:
            return False
        behind = distance(p.seq + 1, front)
        return (behind == 0 or (anywhere and abs(behind) < REACH)) and any(
            entry.packet.stamps == p.stamps and entry.packet.options == p.options for entry in entries
        )

    def _updates(self, p: Packet) -> bool:
        """Whether this is a window update, made of the last frame that left with a lowered window."""
        of = self.lowered.get(p.flow)
        if of is None or p.flags != ACK or p.payload or p.checksum != "right":
            return False
        end = (of.seq + len(of.payload) + bool(of.flags & FIN)) & MASK
        return (p.seq, p.ack, p.stamps) == (end, of.ack, of.stamps)

    def _proven(self, p: Packet) -> None:
        """Invariants 1 and 2 for a segment in the primary's space."""
        primary = self._life("primary", p)
        if p.flags & RST:
            self._proven_reset(p, primary)
            return
        if primary is None:
            raise Violation(1, f"a segment left that belongs to no connection of the primary: {p}")
        life = self._counterpart(primary, self.lives["secondary"])
        if life is None:
            raise Violation(1, f"a segment left of a connection that the secondary does not know: {p}")
        if p.flags & SYN:
            self._proven_syn(p, life)
            return
        place = distance(p.seq, primary.iss + 1)
        if p.payload and place >= 0:
            missing = life.has_said(place, p.payload)
            if missing is not None and (place, p.payload) not in life.probes:
                raise Violation(
                    1, f"connection {life.label}: byte {missing} left and the secondary has not said it: {p}"
                )
        if p.flags & URG and place + p.urgent not in life.urgent:
            raise Violation(1, f"connection {life.label}: urgent data at {place + p.urgent}, not at {life.urgent}")
        if p.flags & FIN:
            at = place + len(p.payload)
            if at not in life.fins and at not in life.covered_fins:
                raise Violation(1, f"connection {life.label}: a FIN left at {at}, the secondary's are {life.fins}")
        self._proven_ack(p, life)
        if p.flags & ACK and life.edge is not None and p.flow in self.scaled:
            edge, told = life.told(p), self.told.get(p.flow)
            if distance(edge, life.edge) > 0 and (told is None or distance(edge, told) > 0):
                raise Violation(
                    2, f"connection {life.label}: the client is told of more room than the secondary has: {p}"
                )

    def _proven_syn(self, p: Packet, life: Life) -> None:
        """The secondary's SYN says the same. Where both ends open at once, that and its acks may say it together."""
        said = syn_said(p)
        if said in life.syns:
            return
        if not p.flags & ACK or (said[0] & ~ACK, 0, said[2]) not in life.syns:
            raise Violation(1, f"a SYN left that the secondary has not said: {said} {life.syns}")
        self._proven_ack(p, life)

    def _proven_ack(self, p: Packet, life: Life) -> None:
        if p.flags & ACK:
            highest = [ack for ack in (life.ack, life.covered_ack) if ack is not None]
            if all(distance(p.ack, ack) > 0 for ack in highest):
                ahead = [distance(p.ack, ack) for ack in highest]
                raise Violation(2, f"connection {life.label}: an ack left {ahead} ahead of the secondary's: {p}")

    def _proven_reset(self, p: Packet, primary: Life | None) -> None:
        said = self.resets.get(p.flow, set())
        self.resets_out[p.flow, p.seq] += 1
        if self.resets_out[p.flow, p.seq] > self.resets_said[p.flow, p.seq]:
            raise Violation(1, f"a RST left where the secondary has said none: {p}, it has said {said}")
        life = None
        if primary is not None:
            life = self._counterpart(primary, self.lives["secondary"])
        if life is not None and p.flags & ACK and (p.seq, p.ack) not in said:
            self._proven_ack(p, life)
        elif p.flags & ACK and (p.seq, p.ack) not in said:
            raise Violation(2, f"a RST left with an ack that the secondary has not said: {p}, it has said {said}")
