"""The splitter: deals the comparer's two streams out to several workers, and joins what they release.

    primary ───▶┐              ┌──▶ primary@0, secondary@0      the comparer of worker 0 ──▶ released@0
                ├── by flow ──▶┤
    secondary ─▶┘              └──▶ primary@1, secondary@1      the comparer of worker 1 ──▶ released@1

    released@0, released@1 ──▶ released

A flow is one worker's, on both sides, so what a worker releases is in order. Cuts and gaps go to every
worker at their place in the stream. The splitter judges nothing, and keeps nothing.

In digest mode `digests` is in the place of `secondary`: a record is dealt out by the flow that its headers
name, and every share has the key in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import (
    DIGESTS,
    PRIMARY,
    RELEASED,
    CommandError,
    Cut,
    Event,
    Gap,
    Item,
    Output,
    share,
    side_of,
    stream_and_share,
)
from lockstep.wire.frame import Frame
from services.comparer.record import Reader
from services.comparer.split import split


class Splitter:
    """See the module. A core like any other.

    seed: 64 bits by which flows are dealt out. Who doesn't know them can't aim at one worker.
    """

    def __init__(self, config: Node, seed: int) -> None:
        self._workers = config.comparer.workers
        self._seed = seed
        self._frame, self._reader = Frame(), Reader()
        #: The epoch that the batch at work was stamped with: it is passed on as it came.
        self.epoch = 0
        self.counters = dict.fromkeys(
            (
                "primary_frames", "secondary_frames", "released", "dropped_primary", "dropped_secondary",
                "dropped_full", "gaps_primary", "gaps_secondary", "gaps_released",
            ),
            0,
        )  # fmt: skip
        streams = (PRIMARY, config.comparer.said)
        self._ways = {stream: [share(stream, str(number)) for number in range(self._workers)] for stream in streams}

    def push(self, stream: str, item: Item, now: float) -> list[Output]:
        """Pass an item on, as the picture above shows."""
        plain, _ = stream_and_share(stream)
        if isinstance(item, Batch):
            self.epoch = item.epoch
            if plain == RELEASED:
                self.counters["released"] += len(item)
                return [(RELEASED, item)]
            if plain in self._ways:
                reader = self._reader if plain == DIGESTS else None
                self.counters[f"{side_of(plain)}_frames"] += len(item) - (reader is not None)  # a key is none
                ways, shares = self._ways[plain], split(item, self._workers, self._seed, self._frame, reader)
                return [(ways[worker], part) for worker, part in shares]
        elif isinstance(item, Gap):
            self.counters[f"gaps_{side_of(plain)}"] += 1
            told = Event("gap", {"stream": side_of(plain), "reason": item.reason, "lost": item.lost})
            return [*((way, item) for way in self._ways.get(plain, ())), told]
        elif isinstance(item, Cut) and plain in self._ways:
            return [(way, item) for way in self._ways[plain]]
        raise AssertionError(f"the splitter takes no {type(item).__name__} on {stream}")

    def tick(self, now: float, heard: float | None = None) -> list[Output]:
        """Nothing is ever due here."""
        return []

    def next_deadline(self) -> float | None:
        """See Core in lockstep.streams."""
        return None

    def command(self, op: str, arguments: Mapping[str, Any], now: float) -> tuple[dict[str, Any], list[Output]]:
        """It takes no requests of its own: the workers do."""
        raise CommandError(f"the splitter has no `{op}`")

    def reload(self, config: Node) -> None:
        """Nothing can change while it runs."""

    def undelivered(self, stream: str, item: Batch | Cut, now: float) -> list[Output]:
        """A worker that doesn't keep up sees a gap, and releases nothing for it; what it had released is lost."""
        plain, number = stream_and_share(stream)
        if isinstance(item, Cut):
            told = {"stream": side_of(plain), "worker": number, "epoch": item.epoch, "phase": item.phase}
            return [Event("cut_lost", told)]
        if plain == RELEASED:
            self.counters["released"] -= len(item)
            self.counters["dropped_full"] += len(item)
        else:
            self.counters[f"dropped_{side_of(plain)}"] += len(item)
        return []

    def status(self) -> dict[str, Any]:
        """Nothing besides the counters."""
        return {}
