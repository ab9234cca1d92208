# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""TCP (RFC 9293): offsets from the start of its header, flags and options."""

from __future__ import annotations

from collections.abc import Iterator

from lockstep.batch import Buffer

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

HEADER = 20
SEQ = 4
ACK_NUMBER = 8
DATA_OFFSET = 12
FLAGS = 13
WINDOW = 14
CHECKSUM = 16
URGENT_POINTER = 18

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

END_OF_OPTIONS = 0
NO_OPERATION = 1
WINDOW_SCALE = 3  # RFC 7323
SACK = 5  # RFC 2018
MD5 = 19  # RFC 2385
AUTHENTICATION = 29  # TCP-AO, RFC 5925
MULTIPATH = 30  # RFC 8684
FAST_OPEN = 34  # RFC 7413
TIMESTAMPS = 8  # RFC 7323
TIMESTAMPS_LENGTH = 10

#: NOP NOP TS: how nearly every stack lays out an established connection's options (RFC 7323 App. A).
USUAL_TIMESTAMPS = b"\x01\x01\x08\x0a"

_END_OF_OPTIONS, _NO_OPERATION, _SACK = END_OF_OPTIONS, NO_OPERATION, SACK
_TIMESTAMPS, _TIMESTAMPS_LENGTH = TIMESTAMPS, TIMESTAMPS_LENGTH


def find_options(buf: Buffer, start: int, end: int) -> tuple[int, int, int]:
    """Where timestamps and SACK blocks lie in the options `buf[start:end]`.

    Returns `(timestamps, sack, blocks)`: offsets of the two options' kind bytes, 0 where missing,
    and the number of SACK blocks. Options behind a malformed one don't exist.
    """
    if start >= end:
        return 0, 0, 0
    if end > len(buf):
        raise IndexError(f"no options lie at {start} to {end} in a buffer of {len(buf)} bytes")
    if cython.compiled:
        return options_at(cython.address(buf[0]), start, end)
    else:  # noqa: RET505  (a compiler leaves it out only like this)
        return options_at(buf, start, end)


def options_at(buf: Buffer, start: int, end: int) -> tuple[int, int, int]:
    """The same, by pointer where this is compiled."""
    timestamps = sack = blocks = 0
    at = start
    while at < end:
        kind = buf[at]
        if kind == _NO_OPERATION:
            at += 1
            continue
        if kind == _END_OF_OPTIONS or at + 1 >= end:
            break
        length = buf[at + 1]
        if length < 2 or at + length > end:
            break
        if kind == _TIMESTAMPS and length == _TIMESTAMPS_LENGTH and not timestamps:
            timestamps = at
        elif kind == _SACK and (length - 2) % 8 == 0 and not sack:
            sack, blocks = at, (length - 2) >> 3
        at += length
    return timestamps, sack, blocks


def has_option(buf: Buffer, start: int, end: int, *kinds: int) -> bool:
    """Whether one of these kinds stands in the options `buf[start:end]`."""
    return any(kind in kinds for kind, _, _ in _walk(buf, start, end))


def window_scale(buf: Buffer, start: int, end: int) -> int:
    """The shift of a SYN's window scale option, at most 14 (RFC 7323 §2.3); 0 without one."""
    for kind, at, length in _walk(buf, start, end):
        if kind == WINDOW_SCALE and length == 3:
            return min(buf[at + 2], 14)
    return 0


def stripped(buf: bytearray, start: int, end: int, kind: int) -> None:
    """Replace an option by NOPs. The checksum is the caller's."""
    for found, at, length in list(_walk(buf, start, end)):
        if found == kind:
            buf[at : at + length] = bytes((NO_OPERATION,)) * length


def _walk(buf: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """`(kind, offset, length)` of each option; ends in front of a malformed one."""
    at = start
    while at < end:
        kind = buf[at]
        if kind == NO_OPERATION:
            at += 1
            continue
        if kind == END_OF_OPTIONS or at + 1 >= end:
            return
        length = buf[at + 1]
        if length < 2 or at + length > end:
            return
        yield kind, at, length
        at += length


def options_signature(buf: Buffer, start: int, end: int) -> bytes:
    """The options of a SYN in the form in which two replicas must agree.

    Without padding, and without what each draws on its own: clock values, Fast Open cookies, and all
    of MPTCP. What stands behind a malformed option belongs to the signature as it is.
    """
    parts = []
    done = start
    for kind, at, length in _walk(buf, start, end):
        done = at + length
        if kind in _OWN_VALUES:
            parts.append(bytes(buf[at : at + 2]))
        elif kind != MULTIPATH:
            parts.append(bytes(buf[at:done]))
    return b"".join(parts) + bytes(buf[done:end]).strip(b"\0\1")


_OWN_VALUES = frozenset({TIMESTAMPS, FAST_OPEN})
