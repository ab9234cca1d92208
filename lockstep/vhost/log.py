"""The dirty log: a bit for every page of guest memory that we wrote, read by a live migration.

The front-end clears bits while we set them, so each is set by one atomic OR; plain Python has none,
and `ATOMIC` says whether this build can. Source: QEMU `docs/interop/vhost-user.rst`, "Migration".
"""

from __future__ import annotations

import mmap
import os

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: Bytes of guest memory for each bit, whatever the guest's page size is.
PAGE = 4096


def atomic() -> bool:
    """Whether bits can be set while the front-end clears others: compiled code alone has the instruction."""
    return bool(cython.compiled)


class DirtyLog:
    """The bitmap that the front-end shares.

    size: its bytes. offset: where it begins in the file `fd`, which stays the caller's.
    Raises ValueError where the file is too small, OSError where it can't be mapped.
    """

    __slots__ = ("_map", "_view", "size")

    def __init__(self, fd: int, size: int, offset: int) -> None:
        if not size or offset + size > os.fstat(fd).st_size:
            raise ValueError(f"a log of {size} bytes at {offset} in a file of {os.fstat(fd).st_size}")
        ahead = offset % mmap.ALLOCATIONGRANULARITY
        self._map = mmap.mmap(fd, ahead + size, offset=offset - ahead)
        self._view = memoryview(self._map)[ahead:]
        self.size = size

    def mark(self, address: int, length: int) -> bool:
        """Set the bits of `length` bytes (at least 1) at a guest-physical address; False if some lie behind the log.

        The caller has checked that `address + length` stays within 64 bits.
        """
        page = address // PAGE
        last = (address + length - 1) // PAGE
        if last // 8 >= self.size:
            return False
        while page <= last:
            if cython.compiled:
                fetch_or(cython.address(self._view[page // 8]), 1 << page % 8)  # type: ignore[name-defined]  # noqa: F821
            else:
                self._view[page // 8] |= 1 << page % 8
            page += 1
        return True

    def close(self) -> None:
        """Unmap it; nothing can be marked any more. Closing twice is allowed."""
        self._view = None  # type: ignore[assignment]
        self._map = None  # type: ignore[assignment]
        self.size = 0
