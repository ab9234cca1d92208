"""Invariants 4, 9 and 10: the comparer's counters and limits, and what has become of everything at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.lives import Violation
from sim.plans import COMPLETE, REFUSED, RESET
from sim.scenario import FOREVER, floods
from sim.state import State

if TYPE_CHECKING:
    from sim.world import World

#: Endings of a plan at the client that are what it was meant to be.
MEANT = {COMPLETE: ("finished",), RESET: ("aborted", "reset"), REFUSED: ("refused",)}
#: Counters of frames that leave the comparer and never went in.
MADE = ("split_frames", "window_updates", "secondary_acks", "secondary_asked", "repeated_syns", "probes")


class Accounts(State):
    """Of counters, limits and the end."""

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
        slack = self.longest * sum(reason == "limit" for reason in self.diverged.values())
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
        again = any(p.port == plan.port and p is not plan for p in s.plans)
        if s.compare_timeout == FOREVER and s.one_sided and (again or plan.fate != COMPLETE):
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
