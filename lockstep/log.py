"""Logging: structlog, events in past tense, one line each; JSON where no person is looking."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from lockstep.config import Log


def configure(settings: Log, **bound: Any) -> None:
    """Set up logging to standard error; `bound` stands in every line."""
    text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if text else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(**bound)


class RateLimit:
    """Lets `burst` lines a second through and counts the rest."""

    def __init__(self, burst: int) -> None:
        self._burst = burst
        self._second = 0
        self._spent = 0
        self.suppressed = 0

    def allows(self, now: float) -> bool:
        """Whether one more line may be logged at `now` (monotonic seconds)."""
        if int(now) != self._second:
            self._second, self._spent = int(now), 0
        self._spent += 1
        if self._spent > self._burst:
            self.suppressed += 1
            return False
        return True

    def take_suppressed(self) -> int:
        """How many lines were kept back since the last call."""
        count, self.suppressed = self.suppressed, 0
        return count
