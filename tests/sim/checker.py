"""Holds the trace of a run against the design's invariants 1 to 10; it shares no code with the cores.

What it knows beyond the frames comes from the hosts themselves: each connection's initial number
(`opened`), and the bytes that applications were given (`got`). From that it says for every frame that
the comparer lets out whether the secondary had said the same.

*Places* count the bytes of a stream from 0. A *life* is one connection in one guest. The secondary's
lives are those of its present epoch: at a commit they become copies of the primary's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sim.plans import COMPLETE, REFUSED, RESET, Plans
from sim.scenario import FOREVER, Scenario, floods
from sim.wire import ACK, CWR, FIN, MASK, PROTO_TCP, PSH, RST, SYN, URG, Flow, Packet, Reader, distance

if TYPE_CHECKING:
    from sim.world import World

Key = tuple[int, int, int]

#: Endings of a plan at the client that are what it was meant to be.
MEANT = {COMPLETE: ("finished",), RESET: ("aborted", "reset"), REFUSED: ("refused",)}
#: Divergences that only different guests, or lost offsets, can give.
HARD = ("data", "fin", "syn", "secondary_contradicts_itself")
#: The option of MPTCP, which is taken out of SYNs.
MULTIPATH = 30
#: Counters of frames that leave the comparer and never went in.
MADE = ("split_frames", "window_updates", "secondary_acks", "secondary_asked", "repeated_syns", "probes")
#: How far from its beginning a stream may be believed to reach.
REACH = 1 << 20


class Violation(Exception):
    """An invariant does not hold. rule: its number in the design."""

    def __init__(self, rule: int, what: str) -> None:
        self.rule = rule
        super().__init__(f"invariant {rule}: {what}")


class Life:
    """A connection in a guest, and what it has said by now."""

    def __init__(self, label: int, iss: int, key: Key, turn: int = 0) -> None:
        #: A late duplicate of a SYN can open the same connection twice; `turn` tells the two apart.
        self.label, self.iss, self.key, self.turn = label, iss, key, turn
        self.said = bytearray()
        self.have = bytearray()
        self.ack: int | None = None
        self.top = 0
        self.fins: set[int] = set()
        #: Places of urgent pointers, and single bytes said again: a keep-alive carries any.
        self.urgent: set[int] = set()
        self.probes: set[tuple[int, bytes]] = set()
        self.syns: set[tuple[int, int, tuple[bytes, ...]]] = set()
        self.stamps: set[int] = set()
        #: Said by the primary before the cut that made this copy: place, ack, FIN, SYN.
        self.covered = 0
        self.covered_ack: int | None = None
        self.covered_fins: set[int] = set()
        self.copied = False
        #: Its receive window's right edge, as it has told.
        self.edge: int | None = None
        #: Its SYN went through the rewriter that lives now, with this clock value.
        self.waiting = False
        self.first_stamp: int | None = None
        self.shift: int | None = None
        #: The newest timestamp that the client has echoed.
        self.echoed: int | None = None

    def copy(self) -> Life:
        """What the secondary knows of it as a copy."""
        other = Life(self.label, self.iss, self.key, self.turn)
        other.covered, other.covered_ack, other.covered_fins = self.top, self.ack, set(self.fins)
        other.urgent, other.probes = set(self.urgent), set(self.probes)
        other.top, other.stamps, other.copied = self.top, self.stamps, True
        other.syns = set(self.syns)
        return other

    def place(self, seq: int) -> int | None:
        """Of a sequence number, if it can belong to this life; -1 is the SYN, or a keep-alive."""
        place = distance(seq, self.iss + 1)
        return place if -1 <= place <= max(self.top, self.covered) + REACH else None

    def say(self, p: Packet) -> None:
        """It says this segment."""
        if p.flags & SYN:
            self.syns.add(syn_said(p))
        place = distance(p.seq, self.iss + 1)
        if p.flags & URG:
            self.urgent.add(place + p.urgent)
        if len(p.payload) == 1 and place < self.top:
            self.probes.add((place, p.payload))
        elif p.payload and place >= 0:
            end = place + len(p.payload)
            if len(self.said) < end:
                self.said.extend(bytes(end - len(self.said)))
                self.have.extend(bytes(end - len(self.have)))
            for at, byte in enumerate(p.payload, place):
                if not self.have[at]:
                    self.have[at], self.said[at] = 1, byte
            self.top = max(self.top, end)
        if p.flags & FIN:
            self.fins.add(place + len(p.payload))
            self.top = max(self.top, place + len(p.payload) + 1)
        if p.flags & ACK and (self.ack is None or distance(p.ack, self.ack) > 0):
            self.ack = p.ack
        if p.flags & ACK and not p.flags & (SYN | RST):
            edge = self.told(p)
            if self.edge is None or distance(edge, self.edge) > 0:
                self.edge = edge
        if p.stamps:
            self.stamps.add(p.stamps[0])

    def told(self, p: Packet) -> int:
        """The right edge of the window that a segment offers."""
        scales = [option[2] for _, _, options in self.syns for option in options if option[0] == 3]
        scale = scales[0] if scales and not p.flags & SYN else 0
        return (p.ack + (p.window << scale)) & MASK

    def has_said(self, place: int, payload: bytes) -> int | None:
        """The first place of these bytes that it has neither said nor was given by a cut."""
        if place + len(payload) <= self.covered:
            return None
        begin = max(place, min(self.covered, place + len(payload)))
        wanted = payload[begin - place :]
        end = begin + len(wanted)
        if self.said[begin:end] == wanted and self.have.count(1, begin, end) == len(wanted):
            return None
        for at in range(begin, end):
            if at >= len(self.have) or not self.have[at] or self.said[at] != payload[at - place]:
                return at
        return None


def syn_said(p: Packet) -> tuple[int, int, tuple[bytes, ...]]:
    """What a SYN says, in which two replicas must agree."""
    options = tuple(option for option in p.options if option[0] != MULTIPATH)
    return p.flags & ~PSH, p.ack if p.flags & ACK else 0, options


class Entry:
    """A primary frame that went into the comparer and has not left it."""

    __slots__ = ("epoch", "free", "packet", "raw", "taken", "vnet", "when")

    def __init__(self, raw: bytes, vnet: int, packet: Packet, epoch: int, when: float) -> None:
        self.raw, self.vnet, self.packet, self.epoch, self.when = raw, vnet, packet, epoch, when
        self.free = False
        self.taken = 0


class Checker:
    """See the module. `take` reads one record of the trace; `excused` names known faults that are not reported."""

    def __init__(self, scenario: Scenario, reader: Reader, limits: Any, excused: frozenset[str]) -> None:
        self.scenario, self.reader, self.limits, self.excused = scenario, reader, limits, excused
        self.now = 0.0
        self.epoch = 0
        self.lives: dict[str, dict[Key, list[Life]]] = {"primary": {}, "secondary": {}}
        #: The secondary's lives as the rewriter knows them: until a commit has reached it, those from before the cut.
        self.followed = self.lives["secondary"]
        #: What the secondary says that is no stream, in this epoch, and how often it left.
        self.datagrams: Counter[tuple[Flow, bytes]] = Counter()
        self.datagrams_out: Counter[tuple[Flow, bytes]] = Counter()
        #: Of each datagram the fragments that have left in this call: offset, whether more follow, size.
        self.parts: dict[Flow, list[tuple[int, bool, int]]] = {}
        #: Fragments of it: the datagram's flow, offset, whether more follow, and what they carry.
        self.pieces: set[tuple[Flow, int, bool, bytes]] = set()
        self.resets: dict[Flow, set[tuple[int, int | None]]] = {}
        #: How many RSTs of the secondary stood at a number, and how many have left there.
        self.resets_said: Counter[tuple[Flow, int]] = Counter()
        self.resets_out: Counter[tuple[Flow, int]] = Counter()
        #: Frames on their way: mirror → comparer, comparer → mirror.
        self.to_comparer: deque[tuple[bytes, int, int]] = deque()
        self.to_mirror: deque[tuple[bytes, int]] = deque()
        self.inside: dict[Flow, deque[Entry]] = {}
        self.asked: deque[bytes] = deque(maxlen=64)
        #: Pure ACKs of the secondary that reached the comparer, and of each flow the last frame that left lowered.
        self.acks: deque[bytes] = deque(maxlen=256)
        self.lowered: dict[Flow, Packet] = {}
        self.last_syn: dict[Flow, bytes] = {}
        #: Keys of flows of which payload has left, as `lockstep.flow.key` writes them.
        self.established: set[bytes] = set()
        #: Of each flow the number behind the last byte that left.
        self.front: dict[Flow, int] = {}
        self.told: dict[Flow, int] = {}
        #: Flows whose SYN the comparer has let out, and their keys: it knows their window's scale.
        self.scaled: dict[Flow, bytes] = {}
        self.voices: set[bytes] = set()
        self.alone = False
        self.unprotected: set[str] = set()
        self.ever_unprotected: set[str] = set()
        #: Addresses of unprotected flows: a fragment doesn't name its ports.
        self.unprotected_pairs: set[str] = set()
        self.named: dict[str, set[Flow]] = {}
        self.diverged: dict[str, str] = {}
        #: Those that had diverged before the call at hand.
        self.standing: frozenset[str] = frozenset()
        self.divergences: list[tuple[float, dict[str, Any]]] = []
        #: Bytes of the comparer's longest frame and largest batch.
        self.longest = self.largest = 0
        self.taken_in = self.let_out = 0
        self.speaking = self.primary_dead = False
        #: Offsets that the living rewriter has learned, and ports about which nothing can be said.
        self.learned: dict[Key, Life] = {}
        self.loose: set[Key] = set()
        self.offsets_lost: set[str] = set()
        self.rewriter_lost_at: float | None = None
        self.commit_lost = self.commit_ever_lost = False
        self.cut_at = -1.0
        #: The cut that the comparer has seen prepared, and the one that it has just seen committed.
        self.prepared: int | None = None
        self.emptied: int | None = None
        self.client_got: dict[int, float] = {}
        #: Flows of which the rewriter heard that they left unchecked, before it heard of the failover.
        self.doomed: set[str] = set()
        self.rewriter_speaking = False
        #: A cut is prepared at the rewriter; what came for the guest since then, and has not gone on.
        self.withholds = False
        self.withheld: list[tuple[bytes, int]] = []
        self.events: list[tuple[float, str, Any]] = []

    def take(self, record: tuple[Any, ...]) -> None:
        """Read on."""
        self.now = record[0]
        getattr(self, "_" + record[1].replace(" ", "_"))(*record[2:])

    # --- hosts

    def _emits(self, host: str, raw: bytes, vnet: int) -> None:
        if host == "primary":
            p = self.reader.read(raw, vnet)
            life = self._life("primary", p) if p.kind == "tcp" else None
            if life is not None:
                life.say(p)

    def _hears(self, host: str, raw: bytes, vnet: int) -> None:
        pass

    def _opened(self, host: str, label: int, iss: int, key: Key) -> None:
        if host in self.lives:
            lives = self.lives[host].setdefault(key, [])
            life = Life(label, iss, key, sum(other.label == label for other in lives))
            lives.append(life)
            if host == "secondary":
                self.loose.discard(key)
                if any(rule["port"] in key[1:] for rule in self.scenario.passthrough):
                    self.loose.add(key)
                if self.followed is not self.lives["secondary"]:
                    self.followed.setdefault(key, []).append(life)

    def _got(self, host: str, label: int, at: int, data: bytes) -> None:
        plan = next((plan for plan in self.scenario.plans if plan.number == label), None)
        if plan is None:
            return
        if host != "client":
            if plan.client_bytes[at : at + len(data)] != data:
                raise Violation(5, f"the {host} was given wrong bytes on connection {label} at {at}")
            return
        self.client_got.setdefault(label, self.now)
        right = [Plans.stream(plan, False, self.scenario.primary.wrong)]
        if self.speaking:
            right.append(Plans.stream(plan, False, self.scenario.secondary.wrong))
        if not any(stream[at : at + len(data)] == data for stream in right):
            raise Violation(1, f"the client was given wrong bytes on connection {label} at {at}")

    def _complaint(self, host: str, label: int, what: str) -> None:
        if not self._is_loose(label):
            raise Violation(5, f"the {host} on connection {label}: {what}")

    def _is_loose(self, label: int) -> bool:
        return any(
            life.label == label and key in self.loose for key, all_ in self.lives["secondary"].items() for life in all_
        )

    # --- what happens to processes

    def _start(self, process: str) -> None:
        pass

    def _crash(self, process: str) -> None:
        if "comparer" in process:
            self.inside.clear()
            self.prepared = None
            self.alone = False
            self.unprotected.clear()
            self.unprotected_pairs.clear()
            self.diverged.clear()
            self.taken_in = self.let_out = 0
            self.voices.clear()
            self.established.clear()
            self.scaled.clear()
        if "rewriter" in process:
            self.learned.clear()
            self.rewriter_lost_at = self.now
            self.rewriter_speaking = False
            self.doomed.clear()
            self.withholds, self.withheld = False, []
            for lives in self.followed.values():
                for life in lives:
                    life.waiting = False
                    life.shift = None

    def _resumes(self, host: str) -> None:
        """The guest goes on; a copy that does so without its commit having reached the rewriter speaks in wrong numbers."""
        if host == "secondary" and self.followed is not self.lives["secondary"]:
            self.commit_lost = self.commit_ever_lost = True

    def _primary_dies(self) -> None:
        self.primary_dead = True

    def _secondary_dies(self) -> None:
        pass

    def _failover(self, service: str) -> None:
        if service == "comparer":
            self.alone = True
            self.scaled.clear()
            self.established.clear()  # no flow is known any more: what leaves is unchecked
            for entries in self.inside.values():
                for entry in entries:
                    entry.free = True
        else:
            self.speaking = True

    def _prepare(self, epoch: int) -> None:
        pass

    def _abort(self, epoch: int) -> None:
        pass

    def _commit(self, epoch: int) -> None:
        pass

    def _copy(self, epoch: int) -> None:
        """The secondary holds the primary's state from here on."""
        self.epoch = epoch
        self.cut_at = self.now
        primary = self.lives["primary"]
        self.lives["secondary"] = {key: [life.copy() for life in lives] for key, lives in primary.items()}
        self.datagrams.clear()
        self.datagrams_out.clear()
        self.pieces.clear()
        self.resets.clear()
        self.resets_said.clear()
        self.resets_out.clear()
        self.loose.clear()

    # --- cores

    def _call(self, service: str, what: str, said: Any, out: tuple[Any, ...]) -> None:
        events = [item for where, item in out if where == "event"]
        frames = [(where, item) for where, item in out if where != "event"]
        for event in events:
            self.events.append((self.now, service, event))
        getattr(self, "_at_" + service)(what, said, frames, events)

    def _at_mirror(self, what: str, said: Any, out: list[Any], events: list[Any]) -> None:
        if what == "network":
            if [where for where, _ in out] != ["guest", "ingress"] or any(item != said for _, item in out):
                raise Violation(10, "the mirror did not give both guests what came in")
        elif what == "guest":
            if out != [("primary", said)]:
                raise Violation(1, "the mirror gave the guest's frames elsewhere than to the comparer")
            for raw in said[2]:
                self.to_comparer.append((raw, said[0], self.epoch))
        elif what == "released":
            for where, item in out:
                if where != "network" or item != said:
                    raise Violation(3, "the mirror sends something else than what was released")
            if isinstance(said, tuple):
                for raw in said[2]:
                    self._find(
                        self.to_mirror, (raw, said[0]), "the mirror sent a frame that the comparer did not release"
                    )
        elif any(where == "network" for where, _ in out):
            raise Violation(1, f"the mirror sent frames on {what}")
        if out and self.primary_dead:
            raise Violation(7, "the mirror of the dead primary speaks")

    def _find(self, queue: deque[Any], wanted: tuple[Any, ...], what: str) -> Any:
        """The next entry of a queue that begins with `wanted`; what stands in front was lost."""
        while queue:
            entry = queue.popleft()
            if entry[: len(wanted)] == wanted:
                return entry
        raise Violation(3, what)

    # --- the redirector: one voice

    def _at_redirector(self, what: str, said: Any, out: list[Any], events: list[Any]) -> None:
        for where, item in out:
            frames = isinstance(item, tuple)
            if where == "uplink" and not self.speaking:
                raise Violation(7, "the redirector speaks before the failover")
            if where == "to_guest":
                if what == "uplink" and not self.speaking:
                    raise Violation(7, "the uplink is heard before the failover")
                if what == "ingress" and self.speaking:
                    raise Violation(7, "the primary's input is heard after the failover")
            if where == "secondary" and self.speaking and frames:
                raise Violation(7, "the secondary is compared after the failover")
            if what in ("ingress", "uplink", "from_guest") and item != said:
                raise Violation(5, f"the redirector changed what came on {what}")
            if where == "uplink" and what == "from_guest":
                self._speaks(item)

    def _speaks(self, item: Any) -> None:
        """What the secondary says to the world after the failover."""
        for raw in item[2]:
            p = self.reader.read(raw, item[0])
            if p.kind == "tcp" and p.payload and self._name(p) in self.doomed and not p.flags & (RST | SYN):
                raise Violation(1, f"bytes of {self._name(p)}, which left unchecked before, go on after the failover")

    # --- the rewriter

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
        self.doomed.clear()
        self.followed = self.lives["secondary"]
        self.commit_lost = False
        for lives in self.followed.values():
            for life in lives:
                life.waiting = False
                life.shift = None
        for life in self.learned.values():
            life.shift = 0

    def _distance(self, life: Life) -> int | None:
        """From the secondary's numbers to the primary's."""
        other = self._counterpart(life, self.lives["primary"])
        return None if other is None else (other.iss - life.iss) & MASK

    @staticmethod
    def _counterpart(life: Life, lives: dict[Key, list[Life]]) -> Life | None:
        """The same connection in the other guest."""
        for other in lives.get(life.key, ()):
            if (other.label, other.turn) == (life.label, life.turn):
                return other
        return None

    def _moved_back(self, p: Packet, q: Packet) -> None:
        """A segment of the secondary on its way into the primary's space."""
        key = p.version, p.dport, p.sport
        moved = (q.seq - p.seq) & MASK
        life = self._life_among(self.followed, p)
        learned = self.learned.get(key)
        if p.flags & SYN:
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
            if self.rewriter_speaking and learned is not None and learned.echoed is not None and key not in self.loose:
                if distance(q.stamps[0], learned.echoed) < 0:
                    raise Violation(
                        5, f"after the failover the clock of {key} steps back: {learned.echoed} to {q.stamps[0]}"
                    )

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
            if learned is not None:
                if learned.echoed is None or distance(p.stamps[1], learned.echoed) > 0:
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

    # --- what the secondary says

    def _life(self, host: str, p: Packet) -> Life | None:
        """The life to which a guest's segment belongs; its numbers are the guest's own."""
        return self._life_among(self.lives[host], p)

    @staticmethod
    def _life_among(lives: dict[Key, list[Life]], p: Packet) -> Life | None:
        for life in reversed(lives.get((p.version, p.dport, p.sport), ())):
            if life.place(p.seq) is not None:
                return life
        return None

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

    # --- the comparer

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
                    self.acks.append(raw)
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

    def _name(self, p: Packet) -> str:
        """A flow's name as the comparer's events give it."""
        if p.version == 0:
            ends = p.flow[-1] if p.kind == "other" else b""
            return f"{ends[6:].hex(':')} {ends[:6].hex(':')}" if isinstance(ends, bytes) else ""
        ends = [_address(p.source), _address(p.destination)]
        if p.kind in ("tcp", "udp"):
            ends = [
                f"{f'[{end}]' if p.version == 6 else end}:{port}"
                for end, port in zip(ends, (p.sport, p.dport), strict=True)
            ]
        return " ".join(ends)

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

    def _name_of(self, key: Key) -> str:
        version, port, service = key
        guest, client = ("10.77.0.2", "10.77.0.1") if version == 4 else ("[fd77::2]", "[fd77::1]")
        return f"{guest}:{service} {client}:{port}"

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

    def _offsets_doubtful(self) -> bool:
        """The rewriter may not know the distances: it is new, or never heard of the last commit."""
        if self.rewriter_lost_at is not None and self.rewriter_lost_at >= self.cut_at:
            return True
        return self.commit_ever_lost or self.scenario.stress or bool(self.scenario.crashes)

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
            if raw in self.acks and front is not None and distance(p.seq, front) > 1:
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

    def _entry(self, p: Packet, raw: bytes, vnet: int) -> tuple[Entry | None, Packet]:
        """The frame that went in, and what is to be proven of it; what it overtook is gone.

        None for a frame that the comparer made, or that is a pure ACK of the secondary.
        """
        entries = self.inside.get(p.flow, ())
        again = raw in self.acks or self.last_syn.get(p.flow) == raw
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
        if changed is not None:
            raise Violation(5, f"the checksum was {changed.checksum} and became {p.checksum}: {p}")
        if p.kind == "tcp" and self._probes(p, anywhere=True):
            return None, p
        raise Violation(3, f"a frame left that the primary did not say, or said before another that left: {p}")

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
        return of.checksum == "partial" and not p.flags & FIN and bool(part)

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
            if syn_said(p) not in life.syns:
                raise Violation(1, f"a SYN left that the secondary has not said: {syn_said(p)} {life.syns}")
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

    # --- counters and limits

    def after(self, service: str, core: Any) -> None:
        """What must hold of a core's own counters whenever it was called."""
        if service != "comparer":
            return
        c = core.counters
        status = core.status()
        held = status["held"]
        dropped = sum(count for name, count in c.items() if name.startswith("dropped_"))
        made = sum(c.get(name, 0) for name in MADE)
        if c["primary_frames"] + made != c["released"] + held + dropped:
            raise Violation(4, f"frames are not conserved: {c}, held {held}")
        if c["primary_frames"] != self.taken_in:
            raise Violation(4, f"{self.taken_in} frames went in, and {c['primary_frames']} are counted")
        if c["released"] != self.let_out:
            raise Violation(4, f"{self.let_out} frames came out, and {c['released']} are counted")
        if min(c.values()) < 0 or held < 0 or status["kept_bytes"] < 0:
            raise Violation(4, f"a counter is below zero: {c}, {status}")
        if self.emptied is not None:
            self._emptied(held)
        self._evictions(core)
        limits = self.limits
        if status["flows"] > limits.max_flows or status["half_open"] > limits.max_half_open:
            raise Violation(9, f"{status['flows']} flows, {status['half_open']} half open, and more than is allowed")
        # A flow takes the secondary's frame that passes the limit, and then diverges.
        slack = self.longest * sum(report["reason"] == "limit" for _, report in self.divergences)
        # The lane has as many of its own, and takes a batch while it has not passed them.
        most = 2 * limits.max_bytes + self.largest + slack
        if status["kept_bytes"] > most:
            raise Violation(9, f"{status['kept_bytes']} bytes kept, and {most} are allowed")

    def _emptied(self, held: int) -> None:
        """After a commit nothing is held that stood in front of the cut, but for datagrams that are not whole."""
        assert self.emptied is not None
        may = sum(
            entry.epoch >= self.emptied or entry.packet.kind == "fragment"
            for entries in self.inside.values()
            for entry in entries
        )
        if held > may:
            raise Violation(3, f"a cut was committed, and {held} frames are held; {may} at most stand behind it")

    def _evictions(self, core: Any) -> None:
        """A flow of which more than SYNs has left, and that was not idle, is still followed."""
        if not self.scenario.limited and "idle_timeout" not in self.scenario.comparer:
            return
        # What was forgotten, half open or idle, is picked up in its middle: nobody knows the scale any more.
        self.scaled = {flow: key for flow, key in self.scaled.items() if core.follows(key)}
        for key in self.established if "idle_timeout" not in self.scenario.comparer else ():
            if not core.follows(key):
                raise Violation(9, f"an established flow was evicted: {key.hex()}")

    # --- the end

    def end(self, world: World) -> None:
        """What must have come about when everything is over."""
        for number, plan in world.plans.all.items():
            how = world.ended(number)
            if how in MEANT[plan.fate] or how == "not opened":
                continue
            excuse = self._excuse(number, world)
            if excuse is None:
                raise Violation(
                    10, f"connection {number} ({plan.shape}) {how or 'never ended'}, and should have been {plan.fate}"
                )  # fmt: skip
        self._books(world)

    def _excuse(self, number: int, world: World) -> str | None:
        """Why a connection may have failed."""
        s, plan = self.scenario, world.plans.all[number]
        name = self._name_of((plan.version, plan.port, plan.service))
        reported = any(report["flow"] == name for _, report in self.divergences)
        if s.on_divergence == "hold" and reported:
            return "held"
        if s.limited:
            flood = [at for at, kind, what in s.client_agenda if floods(kind, what)]
            if not flood or self.client_got.get(number, FOREVER) > min(flood):
                return "a limit"
        if s.failover is not None:
            if name in self.ever_unprotected:
                return "it was unprotected"
            if self.rewriter_lost_at is not None and self.rewriter_lost_at >= self.cut_at:
                return "the rewriter is newer than the connection"
        if plan.shape in ("guest_aborts", "guest_gives_up") and world.ended(number) is None:
            return "a RST is never repeated"
        if s.compare_timeout == FOREVER and s.one_sided:
            if any(p.port == plan.port and p is not plan for p in s.plans) or plan.fate != COMPLETE:
                return "a reset that one guest has not seen, and nobody's patience ends"
        if s.compare_timeout == FOREVER and (s.crashes or s.stress):
            return "a cut or offsets may be lost, and nobody's patience ends"
        if s.on_divergence == "hold" and (s.crashes or s.stress):
            return "a cut or offsets may be lost, and nobody makes a checkpoint"
        return None

    def _books(self, world: World) -> None:
        """With nothing lost on one side, everything has left in the end."""
        s = self.scenario
        if any(plan.shape in ("client_aborts", "guest_gives_up") for plan in s.plans) or s.compare_timeout < 1.0:
            return
        if s.differs or s.one_sided or s.limited or s.failover is not None or s.noisy:
            return
        core = world._of["comparer"].cores["comparer"]
        held = core.status()["held"]
        if held:
            raise Violation(10, f"equal guests, nothing lost on one side, and {held} frames are still held")


def _address(raw: bytes) -> str:
    if len(raw) == 4:
        return ".".join(map(str, raw))
    return f"{raw[:2].hex()}::{raw[15]}"


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
