"""TCP (RFC 9293): offsets from the start of its header, flags and options."""

from __future__ import annotations

from lockstep.batch import Buffer

HEADER = 20
SEQ = 4
ACK_NUMBER = 8
DATA_OFFSET = 12
FLAGS = 13
WINDOW = 14
CHECKSUM = 16

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

END_OF_OPTIONS = 0
NO_OPERATION = 1
SACK = 5  # RFC 2018
TIMESTAMPS = 8  # RFC 7323
TIMESTAMPS_LENGTH = 10

#: NOP NOP TS: how nearly every stack lays out an established connection's options (RFC 7323 App. A).
USUAL_TIMESTAMPS = b"\x01\x01\x08\x0a"


def find_options(buf: Buffer, start: int, end: int) -> tuple[int, int, int]:
    """Where timestamps and SACK blocks lie in the options `buf[start:end]`.

    Returns `(timestamps, sack, blocks)`: offsets of the two options' kind bytes, 0 where missing,
    and the number of SACK blocks. Options behind a malformed one don't exist.
    """
    timestamps = sack = blocks = 0
    at = start
    while at < end:
        kind = buf[at]
        if kind == NO_OPERATION:
            at += 1
            continue
        if kind == END_OF_OPTIONS or at + 1 >= end:
            break
        length = buf[at + 1]
        if length < 2 or at + length > end:
            break
        if kind == TIMESTAMPS and length == TIMESTAMPS_LENGTH and not timestamps:
            timestamps = at
        elif kind == SACK and (length - 2) % 8 == 0 and not sack:
            sack, blocks = at, (length - 2) >> 3
        at += length
    return timestamps, sack, blocks


def options_signature(buf: Buffer, start: int, end: int) -> bytes | None:
    """The options of a SYN in the form in which two replicas must agree: no padding, no clock values.

    None if they are malformed.
    """
    parts = []
    at = start
    while at < end:
        kind = buf[at]
        if kind == NO_OPERATION:
            at += 1
            continue
        if kind == END_OF_OPTIONS:
            break
        if at + 1 >= end:
            return None
        length = buf[at + 1]
        if length < 2 or at + length > end:
            return None
        parts.append(bytes(buf[at : at + 2] if kind == TIMESTAMPS else buf[at : at + length]))
        at += length
    return b"".join(parts)
