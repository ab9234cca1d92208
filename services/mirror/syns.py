# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""A limit on the SYNs that come in, so that a flood of them can't crowd out what is established.

Both guests must see the same, so what is too much is best lost in front of both; and a queue that overflows
there loses a flow's acks as readily as a stranger's SYN. Here it is the SYN that makes way: a client sends it
again. Compiled (syns.pxd) it makes no object per frame.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from lockstep.batch import Batch, Buffer
from lockstep.wire import frame, tcp
from lockstep.wire.frame import Frame, dissect_at
from lockstep.wire.view import View

if TYPE_CHECKING:
    Numbers = array[int] | memoryview

# The same as C integers, where this is compiled.
_TCP, _FLAGS, _SYN, _ACK = frame.TCP, tcp.FLAGS, tcp.SYN, tcp.ACK


def count(f: Frame, buf: Buffer, lengths: Numbers, vnet: int) -> int:
    """How many of the frames are SYNs that open a connection. lengths: of the frames, as 32-bit numbers."""
    view, sizes = View(buf), View(lengths)
    found = end = 0
    for index in range(len(lengths)):
        start = end
        end = start + sizes.words[index]
        if _opens(f, view.data, start + vnet, end):
            found += 1
    return found


def keep(
    f: Frame, buf: Buffer, lengths: Numbers, vnet: int, allowed: int, into: bytearray | memoryview, kept: Numbers
) -> int:
    """Copy all frames but the SYNs behind the first `allowed`, and their lengths; returns how many those are."""
    view = View(buf)
    frames = at = end = 0
    for index in range(len(lengths)):
        start = end
        end = start + lengths[index]
        if _opens(f, view.data, start + vnet, end):
            if not allowed:
                continue
            allowed -= 1
        into[at : at + end - start] = buf[start:end]
        at += end - start
        kept[frames] = end - start
        frames += 1
    return frames


def _opens(f: Frame, buf: Buffer, start: int, end: int) -> bool:
    return dissect_at(f, buf, start, end) == _TCP and buf[f.l4 + _FLAGS] & (_SYN | _ACK) == _SYN


class SynLimit:
    """Lets `rate` SYNs a second pass, and a quarter of a second's worth at once; 0: all of them."""

    def __init__(self, rate: int) -> None:
        self._frame = Frame()
        self._rate = self._most = self._left = 0.0
        self._at = 0.0
        self.set_rate(rate)

    def set_rate(self, rate: int) -> None:
        """Another limit from now on."""
        self._rate = float(rate)
        self._most = self._left = max(1.0, rate / 4)

    def admit(self, batch: Batch, now: float) -> Batch:
        """The batch without the SYNs that are too many; itself, if there are none."""
        if not self._rate:
            return batch
        found = count(self._frame, batch.data, batch.lengths, batch.vnet)
        if not found:
            return batch
        self._left = min(self._most, self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        allowed = min(found, int(self._left))
        self._left -= allowed
        if allowed == found:
            return batch
        into, kept = bytearray(len(batch.data)), array("I", bytes(4 * len(batch.lengths)))
        frames = keep(self._frame, batch.data, batch.lengths, batch.vnet, allowed, into, kept)
        del kept[frames:]
        return Batch(into[: sum(kept)], kept, batch.vnet, batch.epoch)
