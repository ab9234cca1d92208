"""The mirror: the guest's input is copied to the secondary, its output leaves only when released.

network ──▶ guest, ingress          guest ──▶ primary          released ──▶ network
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import (
    GUEST,
    INGRESS,
    NETWORK,
    PHASES,
    PRIMARY,
    RELEASED,
    CommandError,
    Cut,
    Event,
    Gap,
    Item,
    Output,
)
from services.mirror.syns import SynLimit


class Core:
    """See the module. It keeps no state but the epoch, and how many SYNs came lately."""

    def __init__(self, config: Node) -> None:
        self.epoch = 0
        self._syns = SynLimit(config.mirror.max_syns)
        self.counters = dict.fromkeys(
            (
                "network_frames",
                "guest_frames",
                "released_frames",
                "dropped_ingress",
                "dropped_primary",
                "dropped_syns",
                "gaps_released",
            ),
            0,
        )

    def push(self, stream: str, item: Item, now: float) -> list[Output]:
        """Pass a batch on, as the picture above shows."""
        if isinstance(item, Batch):
            if stream == NETWORK:
                self.counters["network_frames"] += len(item)
                admitted = self._syns.admit(item, now)
                self.counters["dropped_syns"] += len(item) - len(admitted)
                return [(GUEST, admitted), (INGRESS, admitted)] if len(admitted) else []
            if stream == GUEST:
                self.counters["guest_frames"] += len(item)
                return [(PRIMARY, item)]
            if stream == RELEASED:
                self.counters["released_frames"] += len(item)
                return [(NETWORK, item)]
        elif isinstance(item, Gap) and stream == RELEASED:
            self.counters["gaps_released"] += 1
            return [Event("gap", {"stream": stream, "reason": item.reason, "lost": item.lost})]
        elif isinstance(item, Cut) and stream == RELEASED:
            return []
        elif isinstance(item, Event) and stream in (NETWORK, GUEST):
            return [item]
        raise AssertionError(f"the mirror takes no {type(item).__name__} on {stream}")

    def tick(self, now: float, heard: float | None = None) -> list[Output]:
        """Nothing is ever due here."""
        return []

    def next_deadline(self) -> float | None:
        """See Core in lockstep.streams."""
        return None

    def command(self, op: str, arguments: Mapping[str, Any], now: float) -> tuple[dict[str, Any], list[Output]]:
        """`cut` with `epoch` and `phase`: put that cut into `primary` and `ingress`, at this very place.

        The checkpointer owns the number; a mirror that restarted doesn't know what it was.
        """
        if op != "cut":
            raise CommandError(f"the mirror has no `{op}`")
        epoch, phase = arguments.get("epoch"), arguments.get("phase")
        if type(epoch) is not int or phase not in PHASES:
            raise CommandError(f"a cut needs a number `epoch` and a `phase` of {', '.join(PHASES)}")
        if phase != "abort" and epoch <= self.epoch:
            raise CommandError(f"epoch {epoch} can't follow epoch {self.epoch}; choose a later one")
        if phase == "commit":
            self.epoch = epoch
        cut = Cut(epoch, phase)
        event = Event("cut", {"epoch": epoch, "phase": phase})
        return {"epoch": self.epoch}, [(PRIMARY, cut), (INGRESS, cut), event]

    def reload(self, config: Node) -> None:
        """Take another limit."""
        self._syns.set_rate(config.mirror.max_syns)

    def undelivered(self, stream: str, item: Batch | Cut, now: float) -> list[Output]:
        """A full link lost frames: TCP's retransmission brings them again."""
        if isinstance(item, Cut):
            return [Event("cut_lost", {"stream": stream, "epoch": item.epoch, "phase": item.phase})]
        name = f"dropped_{stream}"
        self.counters[name] = self.counters.get(name, 0) + len(item)
        return []

    def status(self) -> dict[str, Any]:
        """Nothing besides the counters."""
        return {}
