"""What befalls processes and nodes: crashes, restarts, the death of either side, and failovers."""

from __future__ import annotations

from sim.checkpointer import Checkpointer
from sim.process import Process


class Faults(Checkpointer):
    """The part of a world that goes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.primary_dead = self.secondary_dead = self.failed_over = False
        self._commanded: set[str] = set()

    def _crash(self, service: str, down: float) -> None:
        process = self._of[service]
        if process.alive:
            process.crash()
            self.at(self.now + down, self._restart, process)

    def _restart(self, process: Process) -> None:
        dead = self.primary_dead and "mirror" in process.services
        dead = dead or (self.secondary_dead and {"redirector", "rewriter"} & set(process.services))
        dead = dead or (self.scenario.comparer_dies and self.primary_dead and "comparer" in process.services)
        if not process.alive and not dead:
            process.start()
            # Whoever promotes tells a new process again.
            for service in process.services:
                if service in self._commanded:
                    self._fail_over(service)

    def _primary_dies(self) -> None:
        self.primary_dead = True
        self.preparing = None
        for name in ("mirror", *(("comparer",) if self.scenario.comparer_dies else ())):
            if self._of[name].alive:
                self._of[name].crash()
        self._in["primary"].clear()
        self._out["primary"].clear()
        self.record("primary dies")
        self.at(self.now + self.scenario.detection, self._fail_over, "redirector")

    def _fail_over(self, service: str) -> None:
        self._commanded.add(service)
        process = self._of[service]
        if not process.alive:
            return  # told when it is back
        if service == "redirector":
            self.failed_over = True
        self.record("failover", service)
        process.command(service, "failover", {"epoch": self.epoch})
        if service == "redirector":
            self._not_yet_loaded = False
            self._resume("secondary")

    def _secondary_dies(self) -> None:
        self.secondary_dead = True
        for service in ("redirector", "rewriter"):
            if self._of[service].alive:
                self._of[service].crash()
        self._in["secondary"].clear()
        self._out["secondary"].clear()
        self.parked["secondary"].clear()
        self.record("secondary dies")
        self.at(self.now + self.scenario.detection, self._fail_over, "comparer")

    def _secondary_is_back(self) -> None:
        """Its processes run again; its guest needs a checkpoint."""
        if "comparer" not in self._commanded or not self._of["comparer"].alive:
            self.at(self.now + 0.05, self._secondary_is_back)
            return
        for process in self.processes:
            if {"redirector", "rewriter"} & set(process.services) and not process.alive:
                process.start()
        self.secondary_dead = False
        self._not_yet_loaded = True
        self.hosts["secondary"].stop(self.now)
        self._prepare(True, 0.02)
