"""Holds the trace of a run against the design's invariants 1 to 10; it shares no code with the cores.

What it knows beyond the frames comes from the hosts themselves: each connection's initial number
(`opened`), and the bytes that applications were given (`got`). From that it says for every frame that
the comparer lets out whether the secondary had said the same.

    state.py      what was read so far             rewriting.py  of the rewriter
    lives.py      what each guest has said         releasing.py  of the comparer: proof.py for one frame
    voices.py     of mirror and redirector         accounts.py   counters, limits, the end
"""

from __future__ import annotations

from typing import Any

from sim.accounts import Accounts
from sim.habits import Key
from sim.lives import Life, Violation
from sim.plans import Plans
from sim.releasing import Releasing
from sim.rewriting import Rewriting
from sim.snapshot import Frames
from sim.voices import KEY, Voices
from sim.wire import ACK, RST, SYN


class Checker(Voices, Rewriting, Releasing, Accounts):
    """See the module. `take` reads one record of the trace."""

    def take(self, record: tuple[Any, ...]) -> None:
        """Read on."""
        self.now = record[0]
        getattr(self, "_" + record[1].replace(" ", "_"))(*record[2:])

    def _emits(self, host: str, raw: bytes, vnet: int) -> None:
        if host == "primary":
            p = self.reader.read(raw, vnet)
            life = self._life("primary", p) if p.kind == "tcp" else None
            if life is not None:
                life.say(p)

    def _hears(self, host: str, raw: bytes, vnet: int) -> None:
        """A copy hears of numbers that it has: those of the primary."""
        p = self.reader.read(raw, vnet)
        if host != "secondary" or p.kind != "tcp" or p.flags & (ACK | SYN | RST) != ACK or self._offsets_doubtful():
            return
        key = p.version, p.sport, p.dport
        lives = self.lives["secondary"].get(key, ())
        known = any(not life.copied or life.place(p.ack) is not None for life in lives)
        if lives and not known and key not in self.loose:
            raise Violation(5, f"the copy hears of a number that it does not know: {p}")

    def _opened(self, host: str, label: int, iss: int, key: Key) -> None:
        if host in self.lives:
            lives = self.lives[host].setdefault(key, [])
            life = Life(label, iss, key, sum(other.label == label for other in lives))
            lives.append(life)
            if host == "secondary":
                if key not in self.learned:  # else the rewriter goes by what it had learned until the client answers
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
            self.doomed_by_rule.clear()
            self.withholds, self.withheld = False, []
            for lives in self.followed.values():
                for life in lives:
                    life.waiting = False
                    life.shift = None

    def _resumes(self, host: str) -> None:
        """The guest goes on; a copy whose commit has not reached the rewriter speaks in wrong numbers."""
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

    def _call(self, service: str, what: str, said: Any, out: tuple[Any, ...]) -> None:
        events = [item for where, item in out if where == "event"]
        frames = [(where, item) for where, item in out if where != "event"]
        for event in events:
            self.events.append((self.now, service, event))
        if what == "digests":
            what = "secondary"
            if isinstance(said, tuple):
                # In its place, what the redirector was given when it made these records.
                said = Frames(said[0], said[1], tuple(self.recorded[one] for one in said[2] if one[0] != KEY))
        getattr(self, "_at_" + service)(what, said, frames, events)


__all__ = ["Checker", "Violation"]
