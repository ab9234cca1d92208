"""Waits for descriptors and ZeroMQ sockets at once, with one system call a turn.

`zmq.Poller` asks every socket before and after it waits, some dozen system calls a turn. Here each
socket is watched by its one descriptor (`ZMQ_FD`), which is readable while libzmq has *news* for the
socket, and says nothing about messages: one may wait although its news was taken by some other call.
So whoever is called for a socket takes messages until there are none (`zmq.Again`: libzmq has then
looked at its news), or returns True to be called again, without a wait, in the next turn.
"""

# ruff: noqa: F821 (names of the .pxd)
# mypy: disable-error-code="name-defined,attr-defined"

from __future__ import annotations

import math
import select
from collections.abc import Callable

import zmq

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: Milliseconds of a wait at most: far more fits into no `int`.
_LONGEST = 1 << 30
#: Called with the time; True if it stopped before everything was taken.
Act = Callable[[float], bool | None]


class Poller:
    """Calls an `Act` for each source that is ready, in the order in which they were given."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._fd = self._epoll.fileno()
        self._acts: dict[int, Act] = {}
        #: Descriptors whose act is to be called in any case, and those that rest.
        self._again: set[int] = set()
        self._resting: set[int] = set()

    def watch(self, source: int | zmq.Socket[bytes], act: Act) -> None:
        """Have `act` called when a descriptor is readable, or a socket has news; once in any case."""
        fd = _descriptor(source)
        self._epoll.register(fd, select.EPOLLIN)
        self._acts[fd] = act
        self._again.add(fd)

    def forget(self, source: int | zmq.Socket[bytes]) -> None:
        """Call for this source no more."""
        fd = _descriptor(source)
        if fd not in self._resting:
            self._epoll.unregister(fd)
        del self._acts[fd]
        self._again.discard(fd)
        self._resting.discard(fd)

    def rest(self, source: int | zmq.Socket[bytes]) -> None:
        """Do not call for this source until `wake`."""
        fd = _descriptor(source)
        self._epoll.unregister(fd)
        self._again.discard(fd)
        self._resting.add(fd)

    def wake(self, source: int | zmq.Socket[bytes]) -> None:
        """Call for a source that rested; once in any case."""
        fd = _descriptor(source)
        self._resting.discard(fd)
        self._epoll.register(fd, select.EPOLLIN)
        self._again.add(fd)

    def wait(self, timeout: float | None) -> list[int]:
        """Wait `timeout` seconds at most (None: for ever), and return what is to be given to `act`."""
        again = self._again
        ready = self._ready(0 if again else timeout)
        if not again and len(ready) < 2:
            return ready
        due = again.union(ready)
        again.clear()
        return [fd for fd in self._acts if fd in due]

    def _ready(self, timeout: float | None) -> list[int]:
        """The descriptors that are readable; in plain Python by way of objects that cost more than the system call."""
        if not cython.compiled:
            return [fd for fd, _ in self._epoll.poll(timeout)]
        milliseconds = -1 if timeout is None else min(math.ceil(timeout * 1000), _LONGEST)
        count = wait_for(self._fd, cython.address(self._events), milliseconds)
        return [descriptor(cython.address(self._events), n) for n in range(count)]

    def act(self, fd: int, now: float) -> None:
        """Call for one of those that `wait` returned, unless it was forgotten, or sent to rest, in the meantime."""
        act = self._acts.get(fd)
        if act is not None and fd not in self._resting and act(now) and fd not in self._resting:
            self._again.add(fd)

    def close(self) -> None:
        """Give the descriptor back."""
        self._epoll.close()


def _descriptor(source: int | zmq.Socket[bytes]) -> int:
    return source if isinstance(source, int) else int(source.fileno())
