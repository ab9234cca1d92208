# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""Which worker compares a frame, and a batch cut into the workers' shares.

Both sides of a flow must come to the same worker, in order. So a frame is dealt by what is the same
in all of its flow's frames, whatever becomes of them on the way: the addresses, and for TCP the ports.
A fragment has no ports that can be relied on, so datagrams and whatever else may be fragmented go by
their addresses alone, fragments or not. TCP in fragments, which no rewriter moves, goes the same way.
What belongs to no flow (link chatter, malformed frames) is the first worker's.

A record of digest mode is dealt by the frame that it tells of, and the key in front of them goes with every share.

Everything here is arithmetic on fields in place; compiled (split.pxd) it makes no object per frame.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from lockstep.batch import Batch, Buffer
from lockstep.wire import ipv4, ipv6
from lockstep.wire.frame import FRAGMENT, ICMP, ICMPV6, OTHER_IP, TCP, UDP, Frame, dissect
from services.comparer.record import Reader
from services.redirector.digest import DIGEST, KEY, WHOLE

if TYPE_CHECKING:
    Numbers = array[int] | memoryview
    Writable = bytearray | memoryview

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: Most workers, so that a worker's number is one byte.
MOST_WORKERS = 64

# The same as C integers, where this is compiled.
_TCP, _UDP, _ICMP, _ICMPV6, _OTHER_IP, _FRAGMENT = TCP, UDP, ICMP, ICMPV6, OTHER_IP, FRAGMENT
_SOURCE4, _SOURCE6 = ipv4.SOURCE, ipv6.SOURCE
_WHOLE, _DIGEST = WHOLE, DIGEST

_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
#: Fractional part of the golden ratio, as Fibonacci hashing has it.
_FACTOR = 0x9E3779B97F4A7C15


def worker_of(f: Frame, buf: Buffer, workers: int, seed: int) -> int:
    """The worker, from 0 to `workers` - 1, of a dissected frame. `seed`: 64 bits that its senders can't know."""
    kind = f.kind
    if kind < _TCP or kind > _FRAGMENT:
        return 0
    words = 2 if f.version == 4 else 8
    at = f.l3 + (_SOURCE4 if f.version == 4 else _SOURCE6)
    h = seed
    for _ in range(words):
        h = _mixed(h, buf[at] << 24 | buf[at + 1] << 16 | buf[at + 2] << 8 | buf[at + 3])
        at += 4
    if kind == _TCP:
        at = f.l4
        h = _mixed(h, buf[at] << 24 | buf[at + 1] << 16 | buf[at + 2] << 8 | buf[at + 3])
    return (h & _MASK32) * workers >> 32


def _mixed(h: int, word: int) -> int:
    h = ((h ^ (word & _MASK32)) * _FACTOR) & _MASK64
    return h ^ h >> 32


def _of_record(f: Frame, reader: Reader, buf: Buffer, start: int, end: int, vnet: int, workers: int, seed: int) -> int:
    """The worker of the frame that the record `buf[start:end]` tells of; the first for what is no such record."""
    kind = reader.read(f, buf, start, end, vnet)
    if kind == _WHOLE:
        dissect(f, buf, reader.at + vnet, end)
    elif kind != _DIGEST:
        return 0
    return worker_of(f, buf, workers, seed)


def deal(
    f: Frame, reader: Reader | None, buf: Buffer, lengths: Numbers, vnet: int, workers: int, seed: int, dealt: Writable
) -> int:
    """Write each frame's worker into `dealt`, a byte each; returns the worker if it is one for all, else -1.

    reader: where they are records. lengths: of each, as 32-bit numbers.
    """
    end = 0
    one = -2
    for index in range(len(lengths)):
        start = end
        end = start + lengths[index]
        if reader is None:
            dissect(f, buf, start + vnet, end)
            worker = worker_of(f, buf, workers, seed)
        else:
            worker = _of_record(f, reader, buf, start, end, vnet, workers, seed)
        dealt[index] = worker
        if one == -2:
            one = worker
        elif one != worker:
            one = -1
    return one


def gather(
    buf: Buffer,
    lengths: Numbers,
    dealt: Buffer,
    places: Numbers,
    firsts: Numbers,
    into: Writable,
    sorted_lengths: Numbers,
) -> None:
    """Copy each frame, and its length, to its worker's share. In a share the frames keep their order.

    places: where each worker's share begins in `into`. firsts: the same in `sorted_lengths`, counted in
    frames. Both are moved on to the ends of the shares.
    """
    end = 0
    for index in range(len(lengths)):
        size = lengths[index]
        start = end
        end = start + size
        worker = dealt[index]
        at = places[worker]
        if cython.compiled:
            memcpy(cython.address(into[at]), cython.address(buf[start]), size)  # type: ignore[name-defined]  # noqa: F821
        else:
            into[at : at + size] = buf[start:end]
        places[worker] = at + size
        sorted_lengths[firsts[worker]] = size
        firsts[worker] += 1


def measure(lengths: Numbers, dealt: Buffer, sizes: Numbers, counts: Numbers) -> None:
    """Add up the bytes and the frames of each worker's share."""
    for index in range(len(lengths)):
        worker = dealt[index]
        sizes[worker] += lengths[index]
        counts[worker] += 1


def split(batch: Batch, workers: int, seed: int, f: Frame, reader: Reader | None = None) -> list[tuple[int, Batch]]:
    """The workers' shares of a batch, as (worker, share); a batch that is one worker's is passed on as it is.

    reader: where it is a batch of records. The key in front of them is in front of every share.
    """
    data, lengths, key = memoryview(batch.data), batch.lengths, 0
    if reader is not None and lengths and data[0] == KEY:
        key, lengths = lengths[0], lengths[1:]
    secret, data = data[:key], data[key:]
    count = len(lengths)
    if not count:
        return []
    dealt = bytearray(count)
    one = deal(f, reader, data, lengths, batch.vnet, workers, seed, dealt)
    if one >= 0:
        return [(one, batch)]
    sizes, counts = array("q", bytes(8 * workers)), array("q", bytes(8 * workers))
    measure(lengths, dealt, sizes, counts)
    having = [worker for worker in range(workers) if counts[worker]]
    if key:
        for worker in having:
            sizes[worker] += key
            counts[worker] += 1
    into, sorted_lengths = bytearray(sum(sizes)), array("I", bytes(4 * sum(counts)))
    places, firsts = array("q", sizes), array("q", counts)
    size = first = 0
    for worker in range(workers):
        places[worker], firsts[worker] = size, first
        if key and counts[worker]:
            into[size : size + key] = secret
            sorted_lengths[first] = key
            places[worker], firsts[worker] = size + key, first + 1
        size, first = size + sizes[worker], first + counts[worker]
    gather(data, lengths, dealt, places, firsts, into, sorted_lengths)
    view = memoryview(into).toreadonly()  # it stays as it is, so nobody has to copy it again
    return [
        (
            worker,
            Batch(
                view[places[worker] - sizes[worker] : places[worker]],
                sorted_lengths[firsts[worker] - counts[worker] : firsts[worker]],
                batch.vnet,
                batch.epoch,
            ),
        )
        for worker in having
    ]
