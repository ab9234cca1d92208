"""What the primary says between a cut's `prepare` and its `commit` or `abort`.

Whoever makes checkpoints may let the guest go on before it has told the commit. Until then nobody knows of
which epoch such a frame is: the secondary that was heard so far may be gone, with all that it had said. So
these batches wait, and are judged once the cut is decided.
"""

from __future__ import annotations

from collections import deque

from lockstep.batch import Batch

#: Bytes that are withheld at most.
MOST_BYTES = 4 << 20


class Withheld:
    """Batches that wait, oldest first. frames, bytes: of all of them. due: when the cut should be decided."""

    def __init__(self) -> None:
        self.active = False
        self.frames = self.bytes = 0
        self.due: float | None = None
        self._batches: deque[Batch] = deque()

    def add(self, batch: Batch, due: float) -> bool:
        """Keep a copy of a batch; False if there is no room for it."""
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
