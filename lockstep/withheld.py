"""Frames that come between a cut's `prepare` and its `commit` or `abort`, and wait for that.

Until then nobody knows of which epoch they are. Whoever makes checkpoints may let the primary go on before it
has told the commit: the secondary that the comparer has heard may be gone by then, with all that it had said.
And what the secondary is to hear behind the cut has its numbers only once it is known whose copy it is.
"""

from __future__ import annotations

from collections import deque

from lockstep.batch import Batch

#: Bytes that wait at most.
MOST_BYTES = 4 << 20


class Withheld:
    """Batches that wait while `active`, oldest first. frames, bytes: of them. due: when none shall wait longer."""

    def __init__(self) -> None:
        self.active = False
        self.frames = self.bytes = 0
        self.due: float | None = None
        self._batches: deque[Batch] = deque()

    def add(self, batch: Batch, due: float) -> bool:
        """Keep a copy of a batch, until `due` if it is the first; False if there is no room for it."""
        if self.bytes + len(batch.data) > MOST_BYTES:
            return False
        if self.due is None:
            self.due = due
        self._batches.append(Batch(bytes(batch.data), batch.lengths[:], batch.vnet, batch.epoch))
        self.frames += len(batch)
        self.bytes += len(batch.data)
        return True

    def end(self) -> deque[Batch]:
        """The cut is decided: what waited for that."""
        self.active, self.due = False, None
        self.frames = self.bytes = 0
        batches, self._batches = self._batches, deque()
        return batches
