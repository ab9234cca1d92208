"""Looking through a table for what is idle, a part at a time, so that a large one never stops the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

#: Seconds of silence until what has ended, or never opened, is forgotten.
SHORT_IDLE = 60.0
#: Seconds between two looks, and entries looked at each time.
EVERY = 1.0
ENTRIES = 5_000


class Sweep:
    """Walks the keys of a table round and round."""

    __slots__ = ("_keys", "next")

    def __init__(self) -> None:
        self._keys: Iterator[bytes] = iter(())
        #: When the next part is due (monotonic seconds); None until `start`.
        self.next: float | None = None

    def start(self, now: float) -> None:
        """Begin, if it hasn't begun: the clock is first known with the first push."""
        if self.next is None:
            self.next = now + EVERY

    def is_due(self, now: float) -> bool:
        """Whether `due` would look at anything now."""
        return self.next is not None and now >= self.next

    def due(self, table: Mapping[bytes, object], now: float) -> list[bytes]:
        """The keys to look at now: none before the next part is due. Some may be gone from the table."""
        if not self.is_due(now):
            return []
        self.next = now + EVERY
        part = list(islice(self._keys, ENTRIES))
        if len(part) < ENTRIES:
            self._keys = iter(list(table))
        return part
