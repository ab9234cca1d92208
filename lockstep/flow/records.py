# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Flow records: one of 128 bytes for each TCP flow, in one mapping, found by the fields of a frame.

The key takes the first 40 bytes: five 64-bit words (one of VLAN ids and ports, four of addresses, in
the order in which they lie in the frame). The other fields are its owner's 32-bit numbers. Records are
numbered from 1; 0 is none. Memory is touched only as records are used, and none ever moves.

The hash is seeded anew in each process, so nobody outside can choose flows that collide.
"""

from __future__ import annotations

import mmap
import os
import sys

from lockstep.batch import Buffer
from lockstep.wire import frame, ipv4, ipv6
from lockstep.wire.bytes import load64
from lockstep.wire.frame import Frame

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: Bytes of records that are mapped in small pages, so that a table with few of them is small.
HUGE = 1 << 20
#: Numbers of a record: 32 fields of 32 bits, which are also 16 words of 64.
FIELDS, WORDS = 32, 16
#: Fields that every record has; an owner's own begin at OWN.
CHAIN, FLAGS, OWN = 10, 11, 12

_FIELDS, _WORDS, _CHAIN = FIELDS, WORDS, CHAIN
_SOURCE4, _SOURCE6 = ipv4.SOURCE, ipv6.SOURCE
_MASK32, _MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_TCP = frame.IPPROTO_TCP

#: Fields of a cache line.
_LINE = 16
#: VLAN tags that a key has room for; flows with more have no record.
MOST_TAGS = 2
_MOST_TAGS = MOST_TAGS


class Records:
    """A table of at most `capacity` records.

    used: how many there are. fields, words: the mapping, as 32-bit and as 64-bit numbers.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._made = 0
        self._free = 0
        buckets = 1 << max(4, (capacity - 1).bit_length())
        self._shift = 64 - (buckets.bit_length() - 1)
        # NORESERVE is the default of an anonymous private mapping as far as memory goes: pages come when touched.
        self._memory = mmap.mmap(-1, (capacity + 1) * FIELDS * 4, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._bucket_memory = mmap.mmap(-1, buckets * 4, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if len(self._memory) > 2 * HUGE:
            # Where records are looked up at random, most of the time would go into walking page tables.
            self._memory.madvise(mmap.MADV_HUGEPAGE, HUGE)
        self._see(
            memoryview(self._memory).cast("I"),
            memoryview(self._memory).cast("Q"),
            memoryview(self._bucket_memory).cast("I"),
        )
        seeds = [int.from_bytes(os.urandom(8), "little") | 1 for _ in range(4)]
        self._seed, self._first, self._second, self._third = seeds
        # The key of the frame or flow at hand.
        self._k0 = self._k1 = self._k2 = self._k3 = self._k4 = 0
        self._bucket = 0

    def _see(self, fields: memoryview, words: memoryview, heads: memoryview) -> None:
        """Keep the mappings, as plain pointers where this is compiled."""
        if cython.compiled:
            self.fields = cython.address(fields[0])
            self.words = cython.address(words[0])
            self._heads = cython.address(heads[0])
        else:
            self.fields, self.words, self._heads = fields, words, heads

    def find(self, f: Frame, buf: Buffer) -> int:
        """The record of a dissected TCP segment's flow; 0 if there is none."""
        if f.tags > _MOST_TAGS:
            return 0
        self._read(f, buf)
        return self._found()

    def approach(self, f: Frame, buf: Buffer) -> int:
        """Have the bucket of this segment's flow fetched from memory; its number, for `come_near`."""
        self._read(f, buf)
        if cython.compiled:
            lockstep_prefetch(cython.address(self._heads[self._bucket]))  # type: ignore[name-defined]  # noqa: F821
        return self._bucket

    def come_near(self, bucket: int) -> None:
        """Have the first record in a bucket fetched from memory."""
        if cython.compiled:
            at = self._heads[bucket] * _FIELDS
            lockstep_prefetch(cython.address(self.fields[at]))  # type: ignore[name-defined]  # noqa: F821
            lockstep_prefetch(cython.address(self.fields[at + _LINE]))  # type: ignore[name-defined]  # noqa: F821

    def claim(self, f: Frame, buf: Buffer) -> int:
        """A new record, its fields 0, for this segment's flow, which has none; 0 if there can be no more."""
        if f.tags > _MOST_TAGS:
            return 0
        self._read(f, buf)
        return self._made_one()

    def find_key(self, key: bytes) -> int:
        """The record of a flow by its key (`lockstep.flow.key`), which is one of TCP; 0 if there is none."""
        if key[0] > _MOST_TAGS:
            return 0
        self._parse(key)
        return self._found()

    def claim_key(self, key: bytes) -> int:
        """`claim`, by key."""
        if key[0] > _MOST_TAGS:
            return 0
        self._parse(key)
        return self._made_one()

    def key(self, record: int) -> bytes:
        """The key of a record's flow, as `lockstep.flow.key` makes it."""
        at = record * _WORDS
        k0 = self.words[at]
        tags, version = k0 >> 56 & 0xF, k0 >> 60
        ids = [k0 >> 44 & 0xFFF, k0 >> 32 & 0xFFF][:tags]
        words = [self.words[at + i] for i in range(1, 2 if version == 4 else 5)]
        parts = [bytes((tags, version, _TCP)), *(vid.to_bytes(2, "big") for vid in ids)]
        parts += [word.to_bytes(8, sys.byteorder) for word in words]
        return b"".join([*parts, (k0 & 0xFFFFFFFF).to_bytes(4, "big")])

    def forget(self, record: int) -> None:
        """Give a record back."""
        at = record * _WORDS
        self._k0, self._k1, self._k2 = self.words[at], self.words[at + 1], self.words[at + 2]
        self._k3, self._k4 = self.words[at + 3], self.words[at + 4]
        self._hash()
        following = self._heads[self._bucket]
        if following == record:
            self._heads[self._bucket] = self.fields[record * _FIELDS + _CHAIN]
        else:
            while self.fields[following * _FIELDS + _CHAIN] != record:
                following = self.fields[following * _FIELDS + _CHAIN]
            self.fields[following * _FIELDS + _CHAIN] = self.fields[record * _FIELDS + _CHAIN]
        for field in range(_FIELDS):
            self.fields[record * _FIELDS + field] = 0
        self.fields[record * _FIELDS + _CHAIN] = self._free
        self._free = record
        self.used -= 1

    def highest(self) -> int:
        """No record has a number above this."""
        return self._made

    def _found(self) -> int:
        record: int = self._heads[self._bucket]
        while record:
            at = record * _WORDS
            if (
                self.words[at] == self._k0
                and self.words[at + 1] == self._k1
                and self.words[at + 2] == self._k2
                and self.words[at + 3] == self._k3
                and self.words[at + 4] == self._k4
            ):
                return record
            record = self.fields[record * _FIELDS + _CHAIN]
        return 0

    def _made_one(self) -> int:
        record = self._free
        if record:
            self._free = self.fields[record * _FIELDS + _CHAIN]
        elif self._made < self.capacity:
            self._made += 1
            record = self._made
        else:
            return 0
        at = record * _WORDS
        self.words[at], self.words[at + 1], self.words[at + 2] = self._k0, self._k1, self._k2
        self.words[at + 3], self.words[at + 4] = self._k3, self._k4
        self.fields[record * _FIELDS + _CHAIN] = self._heads[self._bucket]
        self._heads[self._bucket] = record
        self.used += 1
        return record

    def _read(self, f: Frame, buf: Buffer) -> None:
        """The key of a dissected TCP segment."""
        l4 = f.l4
        ports = (buf[l4] << 24 | buf[l4 + 1] << 16 | buf[l4 + 2] << 8 | buf[l4 + 3]) & _MASK32
        ids = 0
        if f.tags:
            at = f.start + 14
            ids = (buf[at] << 8 | buf[at + 1]) & 0xFFF
            ids <<= 12
            if f.tags > 1:
                ids |= (buf[at + 4] << 8 | buf[at + 5]) & 0xFFF
        version, tags = f.version, f.tags
        self._k0 = version << 60 | tags << 56 | ids << 32 | ports
        if version == 4:
            self._k1 = load64(buf, f.l3 + _SOURCE4)
            self._k2 = self._k3 = self._k4 = 0
        else:
            at = f.l3 + _SOURCE6
            self._k1, self._k2 = load64(buf, at), load64(buf, at + 8)
            self._k3, self._k4 = load64(buf, at + 16), load64(buf, at + 24)
        self._hash()

    def _parse(self, key: bytes) -> None:
        tags, version, at = key[0], key[1], 3 + 2 * key[0]
        ids = 0
        for tag in range(tags):
            ids |= int.from_bytes(key[3 + 2 * tag : 5 + 2 * tag], "big") << (12 * (1 - tag))
        ports = int.from_bytes(key[len(key) - 4 :], "big")
        self._k0 = version << 60 | tags << 56 | ids << 32 | ports
        words = [
            int.from_bytes(key[at + 8 * i : at + 8 * i + 8], sys.byteorder) for i in range(1 if version == 4 else 4)
        ]
        self._k1, self._k2, self._k3, self._k4 = (*words, 0, 0, 0)[:4]
        self._hash()

    def _hash(self) -> None:
        """Seeded multiplicative mixing; IPv4 has nothing in the last three words."""
        h = (self._k0 ^ self._seed) * self._first & _MASK64
        h = ((h ^ (h >> 29)) ^ self._k1) * self._second & _MASK64
        if self._k2 | self._k3 | self._k4:
            h = ((h ^ (h >> 32)) ^ self._k2) * self._first & _MASK64
            h = ((h ^ (h >> 29)) ^ self._k3) * self._second & _MASK64
            h = ((h ^ (h >> 32)) ^ self._k4) * self._first & _MASK64
        self._bucket = ((h ^ (h >> 32)) * self._third & _MASK64) >> self._shift
