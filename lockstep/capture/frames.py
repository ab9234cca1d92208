# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Frames from and to a descriptor that takes and gives one with each system call, such as a TAP's."""

from __future__ import annotations

import errno
import os
from array import array

from lockstep.batch import Buffer
from lockstep.wire.view import View

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: The descriptor is full or down, or the kernel refuses the frame: it is lost, as on a wire.
LOST = frozenset((errno.EAGAIN, errno.EIO, errno.EINVAL, errno.ENOBUFS, errno.ENOMEM, errno.EBADFD, errno.EFAULT))
_EAGAIN = errno.EAGAIN


class Frames:
    """The two loops, over memory that is laid out once. The descriptor doesn't block, and is its owner's to close.

    buffer: the frames that `read` brought, end to end; lengths: theirs; size: bytes of all of them.
    taken: bytes of the frames that `write` gave away.
    """

    def __init__(self, fd: int, most_bytes: int, most_frames: int, slot: int, shortest: int) -> None:
        """most_bytes, most_frames: with so many, a read ends. slot: bytes of the longest frame.

        shortest: what has fewer bytes is no frame, and is passed over.
        """
        self._fd = fd
        self._most_bytes, self._most_frames, self._slot, self._shortest = most_bytes, most_frames, slot, shortest
        self.buffer = bytearray(most_bytes + slot)
        self.lengths = array("I", bytes(4 * most_frames))
        self.size = self.taken = 0
        self._buffer, self._lengths = View(self.buffer), View(self.lengths)

    def read(self) -> int:
        """Read what waits; how many frames there are. Where none is, 0 or minus the errno that tells why."""
        count = 0
        self.size = 0
        while self.size < self._most_bytes and count < self._most_frames:
            got = self._read_one()
            if got < 0:
                return count if count or got == -_EAGAIN else got
            if got >= self._shortest:
                self._lengths.words[count] = got
                count += 1
                self.size += got
        return count

    def write(self, data: Buffer, lengths: array[int]) -> int:
        """Write each frame; how many were taken. Raises OSError for what is not in LOST."""
        view, sizes = View(data), View(lengths)
        taken = self.taken = end = 0
        for index in range(len(lengths)):
            start = end
            end += sizes.words[index]
            gone = self._write_one(view, start, end)
            if gone >= 0:
                taken += 1
                self.taken += end - start
            elif -gone not in LOST:
                raise OSError(-gone, os.strerror(-gone))
        return taken

    def _read_one(self) -> int:
        """Bytes that were read behind what is there, or minus the errno."""
        if cython.compiled:
            return lockstep_read(self._fd, self._buffer.data + self.size, self._slot)  # type: ignore[name-defined, no-any-return]  # noqa: F821
        else:  # noqa: RET505  (a compiler leaves it out only like this)
            try:
                return os.readv(self._fd, (memoryview(self.buffer)[self.size : self.size + self._slot],))
            except OSError as error:
                return -(error.errno or errno.EIO)

    def _write_one(self, view: View, start: int, end: int) -> int:
        """Bytes that were written, or minus the errno."""
        if cython.compiled:
            return lockstep_write(self._fd, view.data + start, end - start)  # type: ignore[name-defined, no-any-return]  # noqa: F821
        else:  # noqa: RET505  (a compiler leaves it out only like this)
            try:
                return os.write(self._fd, memoryview(view.data)[start:end])
            except OSError as error:
                return -(error.errno or errno.EIO)
