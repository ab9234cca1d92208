"""Digest mode, the secondary's half: what it said, without the bytes.

Of a TCP segment with payload the headers are kept, all of them, and in place of the payload stands a keyed
hash of it. So a record says: at this place in the stream stand this many bytes, and they hash to this. It
stands for itself: nothing needs to have come before it, and none of it depends on how the stream was cut,
on what was repeated, or on the order. Everything else (SYN, FIN and RST without data, pure ACKs, short
segments, UDP, fragments, link chatter) travels whole.

    WHOLE    (1 byte), the frame
    DIGEST   (1 byte), bytes of a chunk and of the headers (2 each, big-endian), the frame up to its payload,
             and the hash (16 bytes) of each chunk of the payload; the last may be shorter
    KEY      (1 byte), the key (32 bytes): the first of each batch

A frame keeps its virtio-net header. How long the payload was, its IP header says; one that is too long for
that field (BIG TCP) travels whole. A chunk is a segment as it goes on the wire: a super-frame has many. One
hash for all of it would be proven only once the primary has said all of it, and the primary may not be
allowed to before the first of it was acknowledged.

The hash is BLAKE2b with a key, 128 bits of it. A guest that would have its replica say something else
unnoticed needs two payloads of one hash, and it doesn't know the key, which is drawn anew at each start and
never leaves the link between the nodes. BLAKE2b is made to be keyed and is proven as a PRF, so 128 bits of
it are 2**-128 for each try. xxh3-128 is faster by a factor of ten, but its seed is no key: collisions that
hold for every seed are known for its kind, and who can watch what is released can look for them.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

from lockstep.batch import Batch, Buffer
from lockstep.wire import ipv4, ipv6, tcp
from lockstep.wire.frame import TCP, Frame, dissect

WHOLE, DIGEST, KEY = range(3)
KEY_BYTES, HASH_BYTES = 32, 16
#: Kind, bytes of a chunk, bytes of the headers.
DIGEST_HEAD = struct.Struct(">BHH")
#: A shorter payload travels as it is: the hash would be no shorter.
SHORTEST = 32
#: Payload of the longest frame that is no super-frame, and the chunk where nothing says how one is cut.
LONGEST_SEGMENT, CHUNK = 9216, 1448
#: Of the virtio-net header.
GSO_SIZE = 4


def hashed(payload: Buffer, key: bytes) -> bytes:
    """The hash of a payload: what both halves must agree on."""
    return blake2b(payload, digest_size=HASH_BYTES, key=key).digest()


def digest(batch: Batch, key: bytes, f: Frame) -> Batch:
    """A batch's frames as records. `f` is filled again and again."""
    data, vnet = batch.data, batch.vnet
    records = [bytes((KEY,)) + key]
    for start, end in batch.spans():
        kind = dissect(f, data, start + vnet, end)
        if kind == TCP and _has_digest(f, data):
            head = bytes(data[start : f.payload])
            chunk = _chunk(data, start, vnet, f.payload_end - f.payload)
            hashes = [
                hashed(data[at : min(at + chunk, f.payload_end)], key) for at in range(f.payload, f.payload_end, chunk)
            ]
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
