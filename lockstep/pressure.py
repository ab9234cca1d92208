"""Back-pressure: who fills a link rests while that link is full, as long as its consumer goes on reading.

What waits in the pipeline makes the secondary late, and what is dropped there makes it different. What
waits in the kernel's queue in front of the mirror, or is lost in it, reaches neither guest: they stay
alike, and TCP slows its sender down. So load is turned away where it enters. `wiring.Wiring.rests`
says which links keep a source waiting; nothing waits in a circle.

A consumer that doesn't read at all must not stop the guest: after `STALLED` its producers go on, and the
link drops what it must.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

#: Seconds without any progress after which a full link keeps nobody waiting any more.
STALLED = 1.0

Source = TypeVar("Source")


class Pressure:
    """Which sources of a shell rest. `rest` and `wake` are told of each that begins and ends to.

    links: of each source, the links that keep it waiting while they are full.
    """

    def __init__(
        self,
        links: Mapping[Source, tuple[str, ...]],
        rest: Callable[[Source], None],
        wake: Callable[[Source], None],
    ) -> None:
        self._links = links
        self._rest, self._wake = rest, wake
        self._resting: set[Source] = set()
        #: Full links, and until when they are believed to move.
        self._full: dict[str, float] = {}
        self._next: float | None = None

    def moved(self, stream: str, now: float) -> None:
        """A link is full: it took something just now, or this is when it became full."""
        self._full[stream] = now + STALLED
        self._settle(now)

    def free(self, stream: str, now: float) -> None:
        """A link is full no longer."""
        if self._full.pop(stream, None) is not None:
            self._settle(now)

    def tick(self, now: float) -> None:
        """Wake those that wait for a link which has stalled."""
        if self._next is not None and self._next <= now:
            self._settle(now)

    def next_deadline(self) -> float | None:
        """When the first of the links that keep anybody waiting has stalled."""
        return self._next

    def resting(self, source: Source) -> bool:
        """Whether this source waits: there may be unread what it has."""
        return source in self._resting

    def _settle(self, now: float) -> None:
        moving = {stream: until for stream, until in self._full.items() if now < until}
        self._next = min(moving.values(), default=None)
        for source, links in self._links.items():
            waits = any(link in moving for link in links)
            if waits and source not in self._resting:
                self._resting.add(source)
                self._rest(source)
            elif not waits and source in self._resting:
                self._resting.discard(source)
                self._wake(source)
