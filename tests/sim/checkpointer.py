"""Who makes checkpoints: stops the primary, copies it to the secondary, and tells the mirror of the cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lockstep.streams import GUEST, Cut, Event, Item
from sim.host import Host
from sim.plans import Plans
from sim.scenario import Scenario

if TYPE_CHECKING:
    from sim.process import Process
    from sim.wires import Pipe

#: Seconds after which the checkpointer looks itself whether a guest still stands.
FALLBACK = 0.5


class Checkpointer:
    """The part of a world that knows of epochs."""

    scenario: Scenario
    hosts: dict[str, Host]
    plans: Plans
    now: float
    primary_dead: bool
    secondary_dead: bool
    failed_over: bool
    parked: dict[str, list[tuple[bytes, int]]]
    _of: dict[str, Process]
    _in: dict[str, Pipe]
    _out: dict[str, Pipe]

    def __init__(self) -> None:
        self.epoch = 0
        self.preparing: int | None = None
        self._wanted = False
        self._not_yet_loaded = False
        self._prepare_passed = False
        self._stands = 0

    def heard(self, service: str, event: Event) -> None:
        """The checkpointer hears every event."""
        if event.name == "checkpoint_requested" or (event.name == "cut_lost" and event.fields["phase"] != "abort"):
            self._wanted = True
            self.at(self.now + self.scenario.reaction * self.chance.uniform(0.3, 1.0), self._asked)

    def _asked(self) -> None:
        if self._wanted and self.scenario.on_divergence == "checkpoint":
            committed = self.chance.random() >= self.scenario.aborts
            self._prepare(committed, self.chance.uniform(0.001, 0.05))

    def _prepare(self, committed: bool, seconds: float) -> None:
        mirror = self._of["mirror"]
        if self.primary_dead or self.secondary_dead:
            return
        if self.preparing is not None or not mirror.alive or self._awaiting():
            self.at(self.now + 0.05, self._prepare, committed, seconds)
            return
        primary = self.hosts["primary"]
        if self.scenario.drained:
            self._in["primary"].drain()
        primary.stop(self.now)
        self._out["primary"].drain()
        mirror.read_port("mirror", GUEST)
        self.preparing = self.epoch + 1
        self._prepare_passed = False
        self.record("prepare", self.epoch + 1)
        mirror.command("mirror", "cut", {"epoch": self.preparing, "phase": "prepare"})
        self.at(self.now + seconds, self._finish, committed, mirror.senders["primary"])

    def _awaiting(self) -> bool:
        """The secondary stands and waits for the last cut."""
        return self.hosts["secondary"].stopped_at is not None and not self._not_yet_loaded

    def _finish(self, committed: bool, sender: object) -> None:
        epoch, self.preparing = self.preparing, None
        if self.primary_dead:
            return
        mirror = self._of["mirror"]
        same = mirror.alive and mirror.senders["primary"] is sender
        if not same or self.secondary_dead:
            committed = False
        if committed:
            self._load()
        self.record("commit" if committed else "abort", self.epoch)
        phase = "commit" if committed else "abort"
        if committed and self.scenario.eager:
            self._resume("primary")
            self.at(self.now + self.scenario.eager, self._tell, mirror, sender, {"epoch": epoch, "phase": phase})
        elif same:
            mirror.command("mirror", "cut", {"epoch": epoch, "phase": phase})
        if committed:
            self._wanted = False
        elif self._wanted or self._not_yet_loaded:
            self.at(self.now + 0.05, self._prepare, True, 0.02)
        self._resume("primary")
        self._stands += 1
        self.at(self.now + FALLBACK, self._look_after_secondary, self._stands)

    def _tell(self, mirror: Process, sender: object, cut: dict[str, Any]) -> None:
        """The cut, some time after the guest has gone on."""
        if not self.primary_dead and mirror.alive and mirror.senders["primary"] is sender:
            mirror.command("mirror", "cut", cut)

    def _look_after_secondary(self, stands: int) -> None:
        """The cut for which the secondary stands may be lost."""
        if stands == self._stands:
            self._resume("secondary")

    def _load(self) -> None:
        """The secondary guest becomes a copy of the primary, and stands until the commit reaches the rewriter."""
        secondary = self.hosts["secondary"]
        secondary.stop(self.now)
        self._out["secondary"].drain()
        self._read_secondary()
        secondary.copy_of(self.hosts["primary"], self.now)
        self.plans.copied("primary", "secondary")
        self._not_yet_loaded = False
        self.epoch += 1
        if not self._prepare_passed:
            self._empty_secondary()
        self.record("copy", self.epoch)

    def _read_secondary(self) -> None:
        rewriter = self._of["rewriter"]
        if rewriter.alive:
            rewriter.read_port("rewriter", GUEST)

    def _empty_secondary(self) -> None:
        """What waits for the secondary is from before the cut: the copy has it already."""
        self._in["secondary"].clear()
        self.parked["secondary"].clear()

    def before_rewriter(self, item: Item) -> None:
        """A cut is about to reach the rewriter: the secondary stands, and its port is drained."""
        if not isinstance(item, Cut) or item.phase != "prepare" or self.failed_over or self.secondary_dead:
            return
        secondary = self.hosts["secondary"]
        self._prepare_passed = True
        if secondary.stopped_at is not None:
            self._empty_secondary()
        elif self.preparing is not None:
            self._in["secondary"].drain()
            secondary.stop(self.now)
            self._out["secondary"].drain()
            self._read_secondary()

    def passed_rewriter(self, cut: Cut) -> None:
        """A cut has passed the rewriter: what comes after it is said in the epoch that it begins."""
        if cut.phase != "prepare":
            self._resume("secondary")

    def _resume(self, name: str) -> None:
        host = self.hosts[name]
        if host.stopped_at is None or self._is_dead(name):
            return
        if name == "secondary" and (self._not_yet_loaded or self.preparing is not None):
            return
        host.resume(self.now)
        self.record("resumes", name)
        self._ticks.pop(name, None)
        parked, self.parked[name] = self.parked[name], []
        for raw, vnet in parked:
            self._in[name].arrive(raw, vnet)
        self._schedule(name)
