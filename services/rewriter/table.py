"""The rewriter's connections: open ones, and half-open ones in a pool of their own.

A connection is half-open from the guest's SYN until the client has answered it. A flood of SYNs fills
that pool and turns it over, oldest first; no open connection ever makes way. What is forgotten passes
untouched, and so is never matched: a limit costs protection, and lets nothing out.
"""

from __future__ import annotations

from collections import OrderedDict

from lockstep.config import Rewriter
from lockstep.flow.sweep import SHORT_IDLE, Sweep
from services.rewriter.connection import Connection


class ConnectionTable:
    """Connections by the key of the guest's direction.

    counters: of the rewriter; `refused_connections`, `evicted_half_open` and `forgotten` are counted here.
    """

    def __init__(self, config: Rewriter, counters: dict[str, int]) -> None:
        self.config = config
        self.open: dict[bytes, Connection] = {}
        #: The one whose SYN was said last is at the end.
        self.half_open: OrderedDict[bytes, Connection] = OrderedDict()  # a dict takes long to find its first key
        self._counters = counters
        self._sweep = Sweep()

    def __len__(self) -> int:
        return len(self.open) + len(self.half_open)

    def get(self, key: bytes) -> Connection | None:
        """The connection, whatever its state."""
        return self.open.get(key) or self.half_open.get(key)

    def of_syn(self, key: bytes, now: float) -> Connection:
        """The connection of a SYN of the guest; if it isn't open, it is the youngest half-open one."""
        connection = self.open.get(key)
        if connection is not None:
            return connection
        connection = self.half_open.pop(key, None)
        if connection is None:
            connection = Connection(now)
            if len(self.half_open) >= self.config.max_half_open:
                del self.half_open[next(iter(self.half_open))]
                self._counters["evicted_half_open"] += 1
        self.half_open[key] = connection
        return connection

    def opened(self, key: bytes) -> bool:
        """The client has answered. False if there is no room for one more: it is forgotten."""
        connection = self.half_open.pop(key, None)
        if connection is None:
            return True  # an open one, in its next incarnation
        if len(self.open) >= self.config.max_flows:
            self._counters["refused_connections"] += 1
            return False
        self.open[key] = connection
        return True

    def doomed_keys(self) -> list[bytes]:
        """The connections that are released unchecked."""
        return [key for pool in (self.open, self.half_open) for key, connection in pool.items() if connection.doomed]

    def forget(self, key: bytes) -> None:
        """The numbers of this one can't be moved."""
        self.open.pop(key, None)
        self.half_open.pop(key, None)

    def become_copies(self) -> None:
        """A checkpoint was committed: every distance is nought. What waits for an answer has other numbers now."""
        waiting = [key for key, connection in self.open.items() if connection.waiting]
        self._counters["forgotten"] += len(waiting) + len(self.half_open)
        self.half_open.clear()
        for key in waiting:
            del self.open[key]
        for connection in self.open.values():
            connection.becomes_copy()

    def sweep(self, now: float) -> None:
        """Forget what was silent for too long: a little while if it has ended or never opened."""
        half_open = self.half_open
        while half_open and now - next(iter(half_open.values())).touched > self._short():
            del half_open[next(iter(half_open))]
            self._counters["forgotten"] += 1
        for key in self._sweep.due(self.open, now):
            connection = self.open.get(key)
            if connection is None:
                continue
            if now - connection.touched > (self._short() if connection.closed else self.config.idle_timeout):
                del self.open[key]
                self._counters["forgotten"] += 1

    def _short(self) -> float:
        return min(SHORT_IDLE, self.config.idle_timeout)

    def start(self, now: float) -> None:
        """Begin to sweep: the clock is first known with the first push."""
        self._sweep.start(now)

    def next_sweep(self) -> float | None:
        """When there is something to look at."""
        return self._sweep.next if self.open or self.half_open else None
