"""The stream that the demo's guests and clients speak: the same on every run, different at every place.

One random mebibyte, followed by another, is made once; block `k` of the stream is a window of them
that begins at a place of its own. So any part of the stream is a slice without a copy, while bytes
that are lost, doubled or moved by less than a tebibyte never look right.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator

BLOCK = 1 << 20
#: Odd, so that 2**20 blocks begin at 2**20 different places.
_STEP = 0x9E3B1
_BASE = memoryview(hashlib.shake_256(b"lockstep demo").digest(2 * BLOCK))


def window(position: int, most: int) -> memoryview:
    """The stream from `position` on: at most `most` bytes, fewer where a block ends."""
    block, place = divmod(position, BLOCK)
    start = block * _STEP % BLOCK + place
    return _BASE[start : start + min(most, BLOCK - place)]


def windows(size: int, start: int = 0, step: int = BLOCK) -> Iterator[memoryview]:
    """The stream from `start` to `size`, in windows of `step` bytes at most."""
    while start < size:
        part = window(start, min(step, size - start))
        yield part
        start += len(part)


@functools.lru_cache(maxsize=16)
def digest(size: int) -> str:
    """SHA-256 of the first `size` bytes, in hexadecimal."""
    total = hashlib.sha256()
    for part in windows(size):
        total.update(part)
    return total.hexdigest()


def count_wrong(received: bytes | bytearray | memoryview, position: int) -> tuple[int, int | None]:
    """How many bytes differ from the stream at `position`, and where the first of them is."""
    wrong, first, done = 0, None, 0
    while done < len(received):
        right = window(position + done, len(received) - done)
        part = bytes(received[done : done + len(right)])
        if not part.startswith(right):
            places = [at for at, (a, b) in enumerate(zip(part, right, strict=True)) if a != b]
            wrong += len(places)
            first = position + done + places[0] if first is None else first
        done += len(right)
    return wrong, first
