"""A timer that is a descriptor: readable once its time has come, so that a poll loop needs no time-outs for it."""

from __future__ import annotations

import contextlib
import ctypes
import os

_CLOCK_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class Timer:
    """timerfd(2) on the monotonic clock."""

    def __init__(self) -> None:
        self._fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._fd

    def set(self, seconds: float) -> None:
        """Fire once in that time, instead of when it would have; at the earliest in a nanosecond."""
        whole, rest = divmod(max(round(seconds * 1e9), 1), 1_000_000_000)
        # struct itimerspec: no interval, then the time until it fires.
        _libc.timerfd_settime(self._fd, 0, (ctypes.c_long * 4)(0, 0, whole, rest), None)

    def take(self) -> None:
        """Note that it has fired."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        """Give the descriptor back. Closing twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
