"""TCP sequence numbers: arithmetic modulo 2**32 (RFC 9293 §3.4, RFC 1982)."""

from __future__ import annotations

MASK = 0xFFFFFFFF


def diff(a: int, b: int) -> int:
    """Signed distance from `b` to `a`, in -2**31 … 2**31-1."""
    return ((a - b + 0x80000000) & MASK) - 0x80000000


def add(a: int, n: int) -> int:
    """`a` moved on by `n` (which may be negative)."""
    return (a + n) & MASK


def lt(a: int, b: int) -> bool:
    """`a` comes before `b`."""
    return diff(a, b) < 0


def le(a: int, b: int) -> bool:
    """`a` comes before `b`, or is `b`."""
    return diff(a, b) <= 0
