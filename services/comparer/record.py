# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""A record of digest mode (`services/redirector/digest.py`), read where it lies in its batch.

One reader for all who take records: the lane, the careful path, and the splitter. Nothing is believed here:
a record whose parts don't fit each other, to the byte, is one that nobody makes.
"""

from __future__ import annotations

from lockstep.batch import Buffer
from lockstep.wire import frame, tcp
from lockstep.wire.bytes import number16
from lockstep.wire.frame import Frame, dissect_cut_at
from services.redirector.digest import DIGEST, HASH_BYTES, HEAD_BYTES, KEY, NEVER_CUT, WHOLE

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: What is no record, beside WHOLE, DIGEST and KEY.
NO_RECORD = -1

# The same as C integers, where this is compiled.
_WHOLE, _DIGEST, _KEY, _NO_RECORD = WHOLE, DIGEST, KEY, NO_RECORD
_HEAD_BYTES, _HASH_BYTES = HEAD_BYTES, HASH_BYTES
_TCP, _FLAGS, _NEVER_CUT = frame.TCP, tcp.FLAGS, NEVER_CUT


class Reader:
    """Offsets into a buffer, for the record that was read last.

    at: where the frame, its headers, or the secret begin. Of a digest besides: size: bytes of the payload that the
    headers announce; chunk: of each part of it, but that the last may be shorter; chunks: how many; hashes: where
    theirs lie, end to end, which is also where the headers end.
    """

    __slots__ = ("at", "chunk", "chunks", "hashes", "size")

    def __init__(self) -> None:
        self.at = self.size = self.chunk = self.chunks = self.hashes = 0

    def read(self, f: Frame, buf: Buffer, start: int, end: int, vnet: int) -> int:
        """The kind of the record `buf[start:end]`; of a digest the headers are dissected in `f`. Never raises.

        vnet: bytes of virtio-net header in front of the frame.
        """
        if start < 0 or end > len(buf):
            raise IndexError(f"no record lies at {start} to {end} in a buffer of {len(buf)} bytes")
        if end <= start:
            return _NO_RECORD
        if cython.compiled:
            return self.read_at(f, cython.address(buf[0]), start, end, vnet)
        else:  # noqa: RET505  (a compiler leaves it out only like this)
            return self.read_at(f, buf, start, end, vnet)

    def read_at(self, f: Frame, buf: Buffer, start: int, end: int, vnet: int) -> int:
        """`read` where `buf[start:end]` is known to exist; compiled, `buf` is a plain pointer."""
        if end - start <= 1:
            return _NO_RECORD
        self.at = start + 1
        if buf[start] in (_WHOLE, _KEY):
            return buf[start]
        if buf[start] != _DIGEST or end - start < _HEAD_BYTES:
            return _NO_RECORD
        self.chunk = number16(buf, start + 1)
        self.at = start + _HEAD_BYTES
        self.hashes = self.at + number16(buf, start + 3)
        if not self.chunk or self.hashes > end:
            return _NO_RECORD
        # Headers that go on where the hashes begin are none of a segment that was cut at its payload.
        if dissect_cut_at(f, buf, self.at + vnet, self.hashes) != _TCP or f.payload != self.hashes:
            return _NO_RECORD
        self.size = f.missing
        self.chunks = (self.size + self.chunk - 1) // self.chunk
        if not self.size or end - self.hashes != self.chunks * _HASH_BYTES or buf[f.l4 + _FLAGS] & _NEVER_CUT:
            return _NO_RECORD
        return _DIGEST
