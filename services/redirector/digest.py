# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Digest mode, the secondary's half: what it said, without the bytes.

Of a TCP segment with payload the headers are kept, all of them, and in place of the payload stands a keyed
hash of it. So a record says: at this place in the stream stand this many bytes, and they hash to this. It
stands for itself: nothing needs to have come before it, and none of it depends on how the stream was cut,
on what was repeated, or on the order. Everything else (SYN, FIN and RST without data, pure ACKs, short
segments, UDP, fragments, link chatter) travels whole.

    WHOLE    (1 byte), the frame
    DIGEST   (1 byte), bytes of a chunk and of the headers (2 each, big-endian), the frame up to its payload,
             and the hash (16 bytes) of each chunk of the payload; the last may be shorter
    KEY      (1 byte), the secret (32 bytes: a key of BLAKE2b; 16 bytes: the first 8 are a seed of xxh3-128, and the
             others are there since no record is as short as a virtio-net header): the first of each batch

A frame keeps its virtio-net header. How long the payload was, its IP header says; one that is too long for
that field (BIG TCP) travels whole, and so does one whose hashes would be no shorter than what they stand for.
A chunk is a segment as it goes on the wire: a super-frame has many. One hash for all of it would be proven only
once the primary has said all of it, and the primary may not be allowed to before the first of it was acknowledged.

Which hash is the setting `redirector.hash`. A guest that would have its replica say something else unnoticed
needs two payloads of one hash. It doesn't know the key, which is drawn anew at each start and never leaves the
link between the nodes. BLAKE2b is made to be keyed, so 128 bits of it are 2**-128 for each try, whatever the
guest has seen before. xxh3-128 takes a tenth of the time, and finds what goes wrong by itself just as surely; but its
seed is no key: collisions that hold for every seed are known for its kind. It is for guests that are trusted
not to work against their own protection.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from hashlib import blake2b
from typing import Literal

from xxhash import xxh3_128_digest

from lockstep.batch import Batch, Buffer
from lockstep.wire import frame, ipv4, ipv6, tcp
from lockstep.wire.bytes import number16, set16
from lockstep.wire.frame import Frame, dissect_at
from lockstep.wire.view import View

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

WHOLE, DIGEST, KEY = range(3)
KEY_BYTES, SEED_BYTES, HASH_BYTES = 32, 16, 16
#: In front of a digest's headers: kind, bytes of a chunk, bytes of the headers.
HEAD_BYTES = 5
#: A shorter payload travels as it is: the hash would be no shorter.
SHORTEST = 32
#: Payload of the longest frame that is no super-frame, and the chunk where nothing says how one is cut.
LONGEST_SEGMENT, CHUNK = 9216, 1448
#: Of the virtio-net header.
GSO_SIZE = 4
#: Flags of what travels whole.
NEVER_CUT = tcp.SYN | tcp.RST | tcp.URG

# The same as C integers, where this is compiled.
_WHOLE, _DIGEST, _KEY = WHOLE, DIGEST, KEY
_HASH_BYTES, _HEAD_BYTES, _SHORTEST, _LONGEST_SEGMENT, _CHUNK = HASH_BYTES, HEAD_BYTES, SHORTEST, LONGEST_SEGMENT, CHUNK
_GSO_SIZE, _TCP, _FLAGS, _NEVER_CUT = GSO_SIZE, frame.TCP, tcp.FLAGS, NEVER_CUT
_TOTAL_LENGTH, _PAYLOAD_LENGTH, _IPV6_HEADER = ipv4.TOTAL_LENGTH, ipv6.PAYLOAD_LENGTH, ipv6.HEADER

#: Hashes a payload; both halves must agree on it.
Hasher = Callable[[Buffer], bytes]


def new_secret(name: Literal["blake2b", "xxh3"]) -> bytes:
    """A key or a seed for the hash of this name."""
    return os.urandom(KEY_BYTES if name == "blake2b" else SEED_BYTES)


def hasher(secret: bytes) -> Hasher | None:
    """What hashes with this secret, whose length tells which hash it is for; None if it is for none."""
    if len(secret) == SEED_BYTES:
        seed = int.from_bytes(secret[:8], "big")
        return lambda payload: xxh3_128_digest(payload, seed)
    if len(secret) != KEY_BYTES:
        return None
    keyed = blake2b(digest_size=HASH_BYTES, key=secret)

    def hashed(payload: Buffer) -> bytes:
        one = keyed.copy()
        one.update(payload)
        return one.digest()

    return hashed


class Digester:
    """Makes records of frames. Raises ValueError for a secret that is for no hash."""

    def __init__(self, secret: bytes) -> None:
        hashed = hasher(secret)
        if hashed is None:
            raise ValueError(f"{len(secret)} bytes are no secret of any hash")
        self.secret, self.hashed = secret, hashed
        self._key = bytes((KEY,)) + secret
        self._frame = Frame()
        self._make_room(0)

    def _make_room(self, size: int) -> None:
        """Have a place for so many bytes of records."""
        self._records = bytearray(size)
        self._into = View(self._records)

    def records(self, batch: Batch) -> Batch:
        """A batch's frames as records, with the key in front."""
        # A record is longer than its frame by its kind at most.
        most = len(self._key) + len(batch.data) + len(batch.lengths)
        if len(self._records) < most:
            self._make_room(most)
        self._records[: len(self._key)] = self._key
        lengths = array("I", bytes(4 * (len(batch.lengths) + 1)))
        lengths[0] = len(self._key)
        size = self._write(batch, View(batch.data), View(batch.lengths), View(lengths))
        return Batch(bytes(memoryview(self._records)[:size]), lengths, batch.vnet, batch.epoch)

    def _write(self, batch: Batch, frames: View, lengths: View, written: View) -> int:
        """Write the records behind the key, and each one's length into `written`; where they end."""
        f, data, into, vnet = self._frame, frames.data, self._into.data, batch.vnet
        at: int = written.words[0]
        end = 0
        for index in range(len(batch.lengths)):
            start = end
            end += lengths.words[index]
            before = at
            chunk = self._chunk(data, start, vnet) if dissect_at(f, data, start + vnet, end) == _TCP else 0
            if chunk:
                into[at] = _DIGEST
                set16(into, at + 1, chunk)
                set16(into, at + 3, f.payload - start)
                copy(into, at + _HEAD_BYTES, data, start, f.payload - start)
                at = self._hash(data, chunk, at + _HEAD_BYTES + f.payload - start)
            else:
                into[at] = _WHOLE
                copy(into, at + 1, data, start, end - start)
                at += 1 + end - start
            written.words[index + 1] = at - before
        return at

    def _chunk(self, data: Buffer, start: int, vnet: int) -> int:
        """Bytes of a chunk of the payload of the segment in `_frame`; 0 if it travels whole.

        A digest is for a payload that is worth it, in a segment of which a cut would change nothing else. A chunk is
        what the virtio-net header says, or all if it is one segment.
        """
        f = self._frame
        size = f.payload_end - f.payload
        if size < _SHORTEST or f.payload_end != f.end or data[f.l4 + _FLAGS] & _NEVER_CUT:
            return 0
        if f.version == 4:
            length = number16(data, f.l3 + _TOTAL_LENGTH)
        else:
            length = _IPV6_HEADER + number16(data, f.l3 + _PAYLOAD_LENGTH)
        if f.l3 + length != f.end:
            return 0
        chunk = size if size <= _LONGEST_SEGMENT else _CHUNK
        if vnet and (data[start + _GSO_SIZE] or data[start + _GSO_SIZE + 1]):
            chunk = data[start + _GSO_SIZE] | data[start + _GSO_SIZE + 1] << 8
        # With chunks that are too small the hashes would be longer than the payload.
        return chunk if _HEAD_BYTES + (size + chunk - 1) // chunk * _HASH_BYTES <= size else 0

    def _hash(self, data: Buffer, chunk: int, at: int) -> int:
        """Write the hash of each chunk of the payload in `_frame`; where they end."""
        low, high = self._frame.payload, self._frame.payload_end
        while low < high:
            made = self.hashed(part(data, low, min(chunk, high - low)))
            copy(self._into.data, at, made, 0, _HASH_BYTES)
            at += _HASH_BYTES
            low += chunk
        return at


def part(data: Buffer, at: int, size: int) -> memoryview:
    """The bytes `data[at:at + size]` in place, for one call: nobody keeps them alive."""
    if cython.compiled:
        return lent(data, at, size)  # type: ignore[name-defined,no-any-return]  # noqa: F821
    else:  # noqa: RET505  (a compiler leaves it out only like this)
        return memoryview(data)[at : at + size]


def copy(into: bytearray, at: int, data: Buffer, start: int, size: int) -> None:
    """Copy `data[start:start + size]` to `into[at:]`."""
    if cython.compiled:
        memcpy(cython.address(into[at]), cython.address(data[start]), size)  # type: ignore[name-defined]  # noqa: F821
    else:
        into[at : at + size] = data[start : start + size]
