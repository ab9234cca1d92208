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
that field (BIG TCP) travels whole. A chunk is a segment as it goes on the wire: a super-frame has many. One
hash for all of it would be proven only once the primary has said all of it, and the primary may not be
allowed to before the first of it was acknowledged.

Which hash is the setting `redirector.hash`. A guest that would have its replica say something else unnoticed
needs two payloads of one hash. It doesn't know the key, which is drawn anew at each start and never leaves the
link between the nodes. BLAKE2b is made to be keyed, so 128 bits of it are 2**-128 for each try, whatever the
guest has seen before. xxh3-128 takes a tenth of the time, and finds what goes wrong by itself just as surely; but its
seed is no key: collisions that hold for every seed are known for its kind. It is for guests that are trusted
not to work against their own protection.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import Literal

from xxhash import xxh3_128_digest

from lockstep.batch import Batch, Buffer
from lockstep.wire import ipv4, ipv6, tcp
from lockstep.wire.frame import TCP, Frame, dissect

WHOLE, DIGEST, KEY = range(3)
KEY_BYTES, SEED_BYTES, HASH_BYTES = 32, 16, 16
#: Kind, bytes of a chunk, bytes of the headers.
DIGEST_HEAD = struct.Struct(">BHH")
HEAD_BYTES = DIGEST_HEAD.size
#: A shorter payload travels as it is: the hash would be no shorter.
SHORTEST = 32
#: Payload of the longest frame that is no super-frame, and the chunk where nothing says how one is cut.
LONGEST_SEGMENT, CHUNK = 9216, 1448
#: Of the virtio-net header.
GSO_SIZE = 4

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
        self._frame = Frame()

    def records(self, batch: Batch) -> Batch:
        """A batch's frames as records, with the key in front."""
        data, vnet, f = batch.data, batch.vnet, self._frame
        view = memoryview(data)
        records = [bytes((KEY,)) + self.secret]
        for start, end in batch.spans():
            kind = dissect(f, data, start + vnet, end)
            if kind == TCP and _has_digest(f, data):
                head = bytes(data[start : f.payload])
                chunk = _chunk(data, start, vnet, f.payload_end - f.payload)
                payload = view[f.payload : f.payload_end]
                hashes = [self.hashed(payload[at : at + chunk]) for at in range(0, len(payload), chunk)]
                records.append(b"".join((DIGEST_HEAD.pack(DIGEST, chunk, len(head)), head, *hashes)))
            else:
                records.append(bytes((WHOLE,)) + bytes(data[start:end]))
        return Batch.of(records, vnet, batch.epoch)


def _has_digest(f: Frame, data: Buffer) -> bool:
    """Whether a segment travels as a digest: with a payload worth it, and nothing that a cut would change."""
    plain = not data[f.l4 + tcp.FLAGS] & (tcp.SYN | tcp.RST | tcp.URG)
    return plain and f.payload_end - f.payload >= SHORTEST and f.payload_end == f.end == f.l3 + _length(f, data)


def _chunk(data: Buffer, start: int, vnet: int, size: int) -> int:
    """Bytes of a chunk of a payload of `size` bytes: what the virtio-net header says, or all if it is one segment."""
    gso_size = data[start + GSO_SIZE] | data[start + GSO_SIZE + 1] << 8 if vnet else 0
    return gso_size or (size if size <= LONGEST_SEGMENT else CHUNK)


def _length(f: Frame, data: Buffer) -> int:
    """Bytes of a dissected IP packet, as its header says."""
    if f.version == 4:
        return data[f.l3 + ipv4.TOTAL_LENGTH] << 8 | data[f.l3 + ipv4.TOTAL_LENGTH + 1]
    return ipv6.HEADER + (data[f.l3 + ipv6.PAYLOAD_LENGTH] << 8 | data[f.l3 + ipv6.PAYLOAD_LENGTH + 1])
