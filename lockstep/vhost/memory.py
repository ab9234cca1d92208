"""Guest memory as the front-end shares it: regions of files, mapped, and every access checked.

Addresses come in two kinds. The guest's descriptors hold guest-physical ones (`read`, `write`); where
the rings lie is told in the front-end's own (`ring_part`). A buffer may straddle regions that adjoin.
"""

from __future__ import annotations

import mmap
import os

from lockstep.vhost.log import DirtyLog
from lockstep.vhost.protocol import MEMORY_SLOTS, RegionAddress

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

_LAST_ADDRESS = 0xFFFF_FFFF_FFFF_FFFF


class MemoryFault(Exception):
    """A memory region that can't be taken: it overlaps another, or its file is too small."""


class Region:
    """A mapped region: `size` bytes at the guest's address `guest`, at the front-end's `user`.

    told: how often it was added. QEMU before 9.2 adds and removes it once for each queue pair.
    """

    __slots__ = ("_map", "_source", "guest", "size", "told", "user", "view")

    def __init__(self, where: RegionAddress, fd: int) -> None:
        end = where.offset + where.size
        for address in (where.guest, where.user):
            if not where.size or address + where.size - 1 > _LAST_ADDRESS:
                raise MemoryFault(f"{where.size} bytes at {address:#x} are no range of addresses")
        found = os.fstat(fd).st_size
        if end > found:
            # Behind a file's end there is nothing to map: an access would kill this process.
            raise MemoryFault(f"a region ends at byte {end} of a file of {found}")
        ahead = where.offset % mmap.ALLOCATIONGRANULARITY
        try:
            self._map = mmap.mmap(fd, ahead + where.size, offset=where.offset - ahead)
        except OSError as error:
            raise MemoryFault(f"a region of {where.size} bytes can't be mapped: {error.strerror}") from error
        self.told = 1
        self._source = _source(where, fd)
        self.guest = where.guest
        self.size = where.size
        self.user = where.user
        self.view = memoryview(self._map)[ahead:]

    def overlaps(self, other: Region) -> bool:
        """Whether any byte is in both, by either kind of address."""
        return any(a < b + other.size and b < a + self.size for a, b in self._starts(other))

    def _starts(self, other: Region) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.guest, other.guest), (self.user, other.user)

    def is_at(self, where: RegionAddress) -> bool:
        """Whether this is that region."""
        return (self.guest, self.size, self.user) == (where.guest, where.size, where.user)

    def is_of(self, where: RegionAddress, fd: int) -> bool:
        """Whether this is that region, of that file."""
        return self.is_at(where) and self._source == _source(where, fd)

    def close(self) -> None:
        """Unmap it, or let it go with the last ring that still lies in it."""
        self.view = None  # type: ignore[assignment]
        self._map = None  # type: ignore[assignment]


def _source(where: RegionAddress, fd: int) -> tuple[int, int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, where.offset


class Memory:
    """All regions of one guest, and the log of what was written to them.

    logging: whether writes are marked in `log`.
    """

    __slots__ = ("_last", "log", "logging", "regions")

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self._last: Region | None = None
        self.log: DirtyLog | None = None
        self.logging = False

    def set_table(self, table: list[RegionAddress], fds: list[int]) -> None:
        """Replace every region; raises MemoryFault and keeps none where one is at fault."""
        self.drop_regions()
        try:
            for where, fd in zip(table, fds, strict=True):
                self._add(where, fd)
        except MemoryFault:
            self.drop_regions()
            raise

    def add(self, where: RegionAddress, fd: int) -> None:
        """Map one more region, or note that it was added again; raises MemoryFault. `fd` stays the caller's."""
        known = next((region for region in self.regions if region.is_of(where, fd)), None)
        if known is None:
            self._add(where, fd)
        else:
            known.told += 1

    def _add(self, where: RegionAddress, fd: int) -> None:
        if len(self.regions) == MEMORY_SLOTS:
            raise MemoryFault(f"more than {MEMORY_SLOTS} regions")
        region = Region(where, fd)
        if any(region.overlaps(other) for other in self.regions):
            region.close()
            raise MemoryFault(f"{where.size} bytes at {where.guest:#x} overlap another region")
        self.regions.append(region)

    def remove(self, where: RegionAddress) -> None:
        """Unmap a region once it was removed as often as it was added; raises MemoryFault if there is none like it."""
        found = next((region for region in self.regions if region.is_at(where)), None)
        if found is None:
            raise MemoryFault(f"there is no region of {where.size} bytes at {where.guest:#x}")
        found.told -= 1
        if found.told:
            return
        self.regions.remove(found)
        self._last = None
        found.close()

    def set_log(self, log: DirtyLog | None) -> None:
        """Put a log in place of the one before, or none."""
        if self.log is not None:
            self.log.close()
        self.log = log

    def drop_regions(self) -> None:
        """Unmap every region."""
        self._last = None
        for region in self.regions:
            region.close()
        self.regions.clear()

    def close(self) -> None:
        """Unmap everything."""
        self.drop_regions()
        self.set_log(None)

    def ring_part(self, user: int, size: int) -> memoryview:
        """`size` bytes at one of the front-end's addresses, in place; raises MemoryFault."""
        for region in self.regions:
            at = user - region.user
            if at >= 0 and at + size <= region.size:
                return memoryview(region.view)[at : at + size]
        raise MemoryFault(f"{size} bytes of a ring at {user:#x} are not in one shared region")

    def read(self, address: int, length: int, out: memoryview, at: int) -> bool:
        """Copy guest memory to `out[at:at + length]`; False, and nothing said of `out`, if not all of it is shared."""
        return self._copy(address, length, out, at, False)

    def write(self, address: int, length: int, data: memoryview, at: int) -> bool:
        """Copy `data[at:at + length]` to guest memory and log it; False if not all of it is shared, or loggable."""
        return self._copy(address, length, data, at, True)

    def _copy(self, address: int, length: int, ours: memoryview, at: int, write: bool) -> bool:
        if length > _LAST_ADDRESS - address:
            return False
        if at + length > len(ours):
            raise AssertionError(f"{length} bytes at {at} of {len(ours)}")
        while length:
            region = self._region(address)
            if region is None:
                return False
            start = address - region.guest
            size = min(length, region.size - start)
            if cython.compiled:
                copy(cython.address(region.view[start]), cython.address(ours[at]), size, write)  # type: ignore[name-defined]  # noqa: F821
            elif write:
                region.view[start : start + size] = ours[at : at + size]
            else:
                ours[at : at + size] = region.view[start : start + size]
            # After the write: whoever clears the bit before it copies the page copies what we wrote.
            if write and self.logging and not self.mark(address, size):
                return False
            address += size
            at += size
            length -= size
        return True

    def mark(self, address: int, length: int) -> bool:
        """Log a write of `length` bytes, at least 1, at a guest-physical address; False where the log ends before."""
        return self.log is not None and self.log.mark(address, length)

    def _region(self, address: int) -> Region | None:
        last = self._last
        if last is not None and last.guest <= address and address - last.guest < last.size:
            return last
        for region in self.regions:
            if region.guest <= address and address - region.guest < region.size:
                self._last = region
                return region
        return None
