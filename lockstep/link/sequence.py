"""Gap detection: what the message numbers of a stream say about messages that never came."""

from __future__ import annotations

from lockstep.streams import Gap


class StaleMessage(Exception):
    """A message number that this stream has already passed."""


class Sequence:
    """Follows `(boot, number)` of one stream.

    The first message ever seen is taken as it is if it is number 0; any later number means that
    messages went before this consumer was there.
    """

    __slots__ = ("_boot", "expected")

    def __init__(self) -> None:
        self._boot: bytes | None = None
        self.expected = 0

    def follow(self, boot: bytes, number: int) -> Gap | None:
        """The gap in front of this message, if there is one. Raises StaleMessage for a repeated number."""
        gap: Gap | None = None
        if boot != self._boot:
            if self._boot is not None or number:
                gap = Gap("restarted")
            self._boot = boot
        elif number > self.expected:
            gap = Gap("lost", number - self.expected)
        elif number < self.expected:
            raise StaleMessage
        self.expected = number + 1
        return gap
