"""The Internet checksum (RFC 1071) and its incremental update (RFC 1624)."""

from __future__ import annotations

from lockstep.batch import Buffer


def ones_sum(data: Buffer, initial: int = 0) -> int:
    """Ones' complement sum of big-endian 16-bit words, folded to 16 bits; odd data is padded with 0."""
    size = len(data)
    # A big integer modulo 0xFFFF is the ones' complement sum: 2**16 is 1 there.
    total = int.from_bytes(data, "big")
    if size & 1:
        total <<= 8
    total += initial
    folded = total % 0xFFFF
    # 0 and 0xFFFF are both zero in ones' complement; only all-zero words sum to plain 0.
    return 0xFFFF if total and not folded else folded


def checksum(data: Buffer, initial: int = 0) -> int:
    """What belongs in the checksum field of `data` (whose field is zero)."""
    return ~ones_sum(data, initial) & 0xFFFF


def moved16(field: int, old: int, new: int) -> int:
    """The checksum `field` after one 16-bit word changed from `old` to `new` (RFC 1624, eqn. 3)."""
    total = (~field & 0xFFFF) + (~old & 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def moved32(field: int, old: int, new: int, odd: bool = False) -> int:
    """The same for a 32-bit field. `odd`: it begins at an odd offset, so its bytes pair the other way."""
    if odd:
        old = ((old >> 8) & 0x00FF00FF) | ((old & 0x00FF00FF) << 8)
        new = ((new >> 8) & 0x00FF00FF) | ((new & 0x00FF00FF) << 8)
    total = (~field & 0xFFFF) + (~(old >> 16) & 0xFFFF) + (~old & 0xFFFF) + (new >> 16) + (new & 0xFFFF)
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
