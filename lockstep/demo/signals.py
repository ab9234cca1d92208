"""Signals that end the demo by an exception, wherever it is, and however often Python drops that."""

from __future__ import annotations

import signal
import weakref
from types import FrameType, TracebackType
from typing import Any

#: Seconds between two looks at whether the exception is still on its way.
_PERIOD = 0.05


class Ended(KeyboardInterrupt):
    """A signal asked us to end; nobody's to catch on the way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """A `with` that SIGINT, SIGTERM and SIGHUP end with `Ended`; a further one changes nothing.

    What a signal's handler raises comes up wherever the program is. In a finalizer, in a callback of
    a weak reference (imports have those) or in one around a fork Python prints the exception and goes
    on. So it is looked after: one that nobody holds any more is raised again.
    """

    def __enter__(self) -> Signals:
        self._before: dict[int, Any] = {}
        self._number = 0
        self._raised: weakref.ref[Ended] | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._number:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _first(self, number: int, frame: FrameType | None) -> None:
        if not self._number:
            self._number = number
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._again)
            signal.setitimer(signal.ITIMER_REAL, _PERIOD, _PERIOD)
            self._raise()

    def _again(self, number: int, frame: FrameType | None) -> None:
        if self._raised is None or self._raised() is None:
            self._raise()

    def _raise(self) -> None:
        ended = Ended(self._number)
        self._raised = weakref.ref(ended)
        try:
            raise ended
        finally:
            del ended  # else its traceback would hold this frame, and this frame it
