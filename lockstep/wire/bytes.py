"""Bytes of buffers, compared and read as numbers in place. Whoever calls has looked that they are there."""

from __future__ import annotations

import sys

from lockstep.batch import Buffer

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

_MASK = 0xFFFFFFFF


def equal(a: Buffer, i: int, b: Buffer, j: int, size: int) -> bool:
    """Whether `a[i:i + size]` and `b[j:j + size]` are the same. Both must have that many bytes."""
    if cython.compiled:
        return memcmp(cython.address(a[i]), cython.address(b[j]), size) == 0  # type: ignore[name-defined,no-any-return]  # noqa: F821
    else:  # noqa: RET505  (a compiler leaves it out only like this)
        return a[i : i + size] == b[j : j + size]


def load64(buf: Buffer, at: int) -> int:
    """The 8 bytes at `buf[at]` as a number in this machine's order: equal numbers, equal bytes."""
    if cython.compiled:
        value: int = 0
        memcpy(cython.address(value), cython.address(buf[at]), 8)  # type: ignore[name-defined]  # noqa: F821
        return value
    else:  # noqa: RET505
        return int.from_bytes(buf[at : at + 8], sys.byteorder)


def number32(buf: Buffer, at: int) -> int:
    """The 32-bit number at `buf[at]`, in network order."""
    return (buf[at] << 24 | buf[at + 1] << 16 | buf[at + 2] << 8 | buf[at + 3]) & _MASK


def number16(buf: Buffer, at: int) -> int:
    """The 16-bit number at `buf[at]`, in network order."""
    return buf[at] << 8 | buf[at + 1]


def set32(buf: bytearray, at: int, value: int) -> None:
    """Put a 32-bit number there."""
    buf[at], buf[at + 1], buf[at + 2], buf[at + 3] = value >> 24, value >> 16 & 0xFF, value >> 8 & 0xFF, value & 0xFF


def set16(buf: bytearray, at: int, value: int) -> None:
    """Put a 16-bit number there."""
    buf[at], buf[at + 1] = value >> 8, value & 0xFF
