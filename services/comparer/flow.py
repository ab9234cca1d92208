"""What every followed flow has: its held primary frames, its state, and the verdict on a frame."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from lockstep.batch import Buffer
from lockstep.wire.frame import Frame

#: Verdicts on a primary frame.
RELEASE, WAIT, DIFFERS = range(3)


@dataclass(slots=True)
class Held:
    """A primary frame that waits. Offsets are into `data`, which begins with the virtio-net header.

    originals: what leaves instead, for a datagram that came in fragments: (frame, its virtio-net header's size).
    """

    data: bytes
    vnet: int
    l4: int
    payload: int
    payload_end: int
    kind: int
    arrived: float
    number: int
    originals: tuple[tuple[bytes, int], ...] = ()

    def frames(self) -> int:
        """How many of the primary's frames this is."""
        return len(self.originals) or 1


#: States of a flow. DIVERGED: held until a checkpoint is committed. UNPROTECTED: leaves unchecked until
#: then, or until a new connection takes its place. PASSED: leaves unchecked, by a rule.
PROTECTED, DIVERGED, UNPROTECTED, PASSED = "protected", "diverged", "unprotected", "passed"

_NOTHING: deque[Held] = deque(maxlen=0)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is different, and where: `offset` in the stream (TCP) or the payload, where there is one."""

    reason: str
    offset: int | None = None
    primary: bytes = b""
    secondary: bytes = b""


class Flow:
    """One direction of one flow: what the guest sends. TCP and datagrams build on it."""

    __slots__ = ("closed", "held", "held_bytes", "key", "reset_at", "state", "timed", "touched")

    def __init__(self, key: bytes, now: float) -> None:
        self.key = key
        self.state = PROTECTED
        #: Frames that wait, oldest first. Idle flows share one empty queue; `hold` gives a flow its own.
        self.held: deque[Held] = _NOTHING
        self.held_bytes = 0
        self.touched = now
        #: When the core looks at this flow's head next (an entry in its heap); inf: not.
        self.timed = math.inf
        #: When the client's RST passed to the secondary, which has been silent since.
        self.reset_at: float | None = None
        #: The flow has ended; it is forgotten sooner.
        self.closed = False

    def hold(self, held: Held) -> None:
        """Queue a frame behind the others."""
        if self.held is _NOTHING:
            self.held = deque()
        self.held.append(held)
        self.held_bytes += len(held.data)

    def take_head(self) -> Held:
        """The head, no longer queued."""
        head = self.held.popleft()
        self.held_bytes -= len(head.data)
        if not self.held:
            self.held = _NOTHING
        return head

    def drop_held(self) -> int:
        """Give up what is held; returns how many of the primary's frames that was."""
        frames = sum(head.frames() for head in self.held)
        self.held = _NOTHING
        self.held_bytes = 0
        return frames

    def verdict(self, buf: Buffer, kind: int, l4: int, payload: int, end: int) -> int:
        """Whether the secondary has said what this primary frame says: RELEASE, WAIT or DIFFERS."""
        raise NotImplementedError

    def as_it_is(self, buf: Buffer, l4: int) -> bool:
        """Whether a proven frame may leave without a change."""
        return True

    def leaves(self, head: Held) -> bytes:
        """A proven head as it leaves; takes what follows from it, as `released` does."""
        self.released(head.data, head.kind, head.l4, head.payload, head.payload_end)
        return head.data

    def finding(self, buf: Buffer, kind: int, l4: int, payload: int, end: int) -> Finding:
        """What a frame with verdict DIFFERS, or one that waited too long, has to report."""
        raise NotImplementedError

    def released(self, buf: Buffer, kind: int, l4: int, payload: int, end: int) -> None:
        """A primary frame was proven and leaves; take what follows from it."""
        raise NotImplementedError

    def secondary(self, f: Frame, buf: Buffer, now: float) -> Finding | None:
        """Take what the secondary said. A Finding if that alone is a divergence."""
        raise NotImplementedError

    def kept(self) -> int:
        """Bytes kept for this flow: held frames, and what the secondary said."""
        raise NotImplementedError

    def relax(self, now: float) -> None:
        """Give back memory that a flow without held frames does not need."""
        raise NotImplementedError

    def forget_history(self) -> None:
        """Give up what is kept beyond the need of held frames and of those to come."""

    def committed(self) -> None:
        """A checkpoint was committed: the secondary is now a copy of the primary at the cut."""
        raise NotImplementedError

    def restart(self) -> None:
        """Frames have left that were not followed: know nothing, as of a flow picked up in its middle."""
        raise NotImplementedError
