"""Comparing bytes of two buffers in place."""

from __future__ import annotations

import sys

from lockstep.batch import Buffer

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython


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
