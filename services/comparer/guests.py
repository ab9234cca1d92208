"""The comparer of many guests: a core for each, behind the same two streams.

    primary@NAME ──▶┐
                    ├── the core of NAME ──▶ released@NAME, and its events, with `guest`
    secondary@NAME ▶┘

The guests share a process and nothing else: each has flows, limits, time-outs and an epoch of its own.
`released@NAME` is a link of its own too, so a mirror that doesn't read is its own guest's trouble.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import EVENTS, CommandError, Cut, Event, Item, Output, share, stream_and_share
from services.comparer.core import MOST_REMEMBERED, Core

#: Names that an error lists.
MOST_NAMED = 10


class Guests:
    """A core like any other, over those of the guests that the configuration names. See the module."""

    def __init__(self, config: Node) -> None:
        self._cores = {guest.name: Core(config.of_guest(guest.name)) for guest in config.guests}
        #: Names of all counters: in digest mode there are more.
        self._counters = tuple(dict.fromkeys(name for core in self._cores.values() for name in core.counters))
        #: Epoch of the guest whose outputs were last given.
        self.epoch = 0
        #: Events of no guest that is known here: the rewriter that sent them has no `guest.name`, or another.
        self._strangers = 0
        #: When each core has something to do, as it last said; and the same as a heap that may be behind.
        self._due: dict[str, float | None] = {}
        self._heap: list[tuple[float, str]] = []

    @property
    def counters(self) -> dict[str, int]:
        """The sums over all guests."""
        return {name: sum(core.counters[name] for core in self._cores.values()) for name in self._counters}

    def push(self, stream: str, item: Item, now: float) -> list[Output]:
        """Take an item of one guest's streams, or an event that names its guest."""
        if isinstance(item, Event):
            guest = item.fields.get("guest")
        else:
            stream, guest = stream_and_share(stream)
        if not isinstance(guest, str) or guest not in self._cores:
            if stream != EVENTS:
                raise AssertionError(f"the comparer takes no {type(item).__name__} on {stream} of {guest!r}")
            self._strangers += 1
            return []
        return self._said(guest, self._cores[guest].push(stream, item, now))

    def tick(self, now: float, heard: float | None = None) -> list[Output]:
        """Do what is due for the guest that has waited longest; the others follow at the next."""
        deadline = self.next_deadline()
        if deadline is None or deadline > now:
            return []
        _, guest = heapq.heappop(self._heap)
        self._due[guest] = None
        return self._said(guest, self._cores[guest].tick(now, heard))

    def next_deadline(self) -> float | None:
        """See Core in lockstep.streams. What a guest no longer waits for is dropped from the heap here."""
        heap, due = self._heap, self._due
        while heap and due[heap[0][1]] != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def command(self, op: str, arguments: Mapping[str, Any], now: float) -> tuple[dict[str, Any], list[Output]]:
        """What a guest's own comparer does, for the one that `guest` names."""
        guest = arguments.get("guest")
        if not isinstance(guest, str) or guest not in self._cores:
            names = list(self._cores)
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            raise CommandError(f"`{op}` needs a `guest`; here are {', '.join(names[:MOST_NAMED])}{more}")
        answer, outputs = self._cores[guest].command(op, arguments, now)
        return {"guest": guest, **answer}, self._said(guest, outputs)

    def reload(self, config: Node) -> None:
        """Every guest takes its new limits, time-outs and rules. New guests need a restart, as links do."""
        named = {guest.name for guest in config.guests}
        for guest, core in self._cores.items():
            if guest in named:
                core.reload(config.of_guest(guest))

    def undelivered(self, stream: str, item: Batch | Cut, now: float) -> list[Output]:
        """See Core in lockstep.streams."""
        stream, guest = stream_and_share(stream)
        if guest is None:
            raise AssertionError(f"the comparer gives {stream} for one of its guests alone")
        return self._said(guest, self._cores[guest].undelivered(stream, item, now))

    def status(self) -> dict[str, Any]:
        """The sums, what each guest's core says of itself (counters that are not 0), and the last divergences."""
        guests = {guest: core.status() for guest, core in self._cores.items()}
        divergences = [
            {"guest": guest, **divergence} for guest, said in guests.items() for divergence in said.pop("divergences")
        ]
        sums = {
            name: sum(said[name] for said in guests.values()) for name in ("held", "kept_bytes", "flows", "half_open")
        }
        for guest, core in self._cores.items():
            told = {name: count for name, count in core.counters.items() if count}
            guests[guest] |= {"epoch": core.epoch, "counters": told}
        return {
            "epoch": max(core.epoch for core in self._cores.values()),
            **sums,
            "events_of_strangers": self._strangers,
            "guests": guests,
            "divergences": divergences[-MOST_REMEMBERED:],
        }

    def _said(self, guest: str, outputs: Iterable[Output]) -> list[Output]:
        """A core's outputs as the guest's; and note when it wants to be called again."""
        core = self._cores[guest]
        self.epoch = core.epoch
        deadline = core.next_deadline()
        if deadline is not None and deadline != self._due.get(guest):
            heapq.heappush(self._heap, (deadline, guest))
        self._due[guest] = deadline
        return [
            Event(output.name, {**output.fields, "guest": guest}) if isinstance(output, Event)
            else (share(output[0], guest), output[1])
            for output in outputs
        ]  # fmt: skip
