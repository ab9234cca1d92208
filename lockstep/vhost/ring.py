"""A split virtqueue in guest memory (virtio 1.2 §2.7), from the device's side.

    guest  ──available──▶  device        heads of descriptor chains, in a ring of 16-bit numbers
    guest  ◀────used─────  device        the same heads, with how many bytes were written

A guest that *transmits* offers chains to be read (`gather`), one that *receives* offers chains to be
written (`scatter`). Chains are used up in the order in which they were offered, and nothing is kept
between two calls, so the used index alone tells where a successor goes on.

Everything here may be rewritten by the guest while we look at it. Each of its fields is therefore
read once, into a variable of ours, and checked there. What doesn't fit raises `RingError`: the ring
is *broken*, and nobody touches it until the guest's driver sets it up again.
"""

from __future__ import annotations

import struct
from array import array
from threading import Lock

from lockstep.batch import MAX_BATCH, MAX_FRAME
from lockstep.vhost.memory import Memory
from lockstep.vhost.protocol import MOST_DESCRIPTORS
from lockstep.wire import vnet

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: `struct virtq_desc`: address, bytes, flags, next.
_DESCRIPTOR = struct.Struct("<QIHH")
_DESCRIPTOR_SIZE = 16
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
#: Flags of the available and of the used ring.
_NO_INTERRUPT, _NO_NOTIFY = 1, 1

#: Most frames that one call of `gather` takes: a bound on how long one port keeps the loop.
MOST_FRAMES = 512
#: Longest chain taken from a guest: a frame and its virtio-net header.
MOST_BYTES = MAX_FRAME + 12
#: Room that `gather` needs: it begins a chain while there is less than a full batch.
GATHER_ROOM = MAX_BATCH + MOST_BYTES

# The same, and others, as numbers that compiled code keeps to itself.
_FULL, _FRAMES, _BYTES, _ROOM, _TABLE = MAX_BATCH, MOST_FRAMES, MOST_BYTES, GATHER_ROOM, MOST_DESCRIPTORS
_ETHERNET = 14
_UDP_L4 = vnet.GSO_UDP_L4
_MOST_PIECES = 4096
#: Longest chain that a guest offers for receiving.
_MOST_ROOM = 1 << 20
_LAST_ADDRESS = 0xFFFF_FFFF_FFFF_FFFF

#: Where plain Python can work a ring: x86-64 keeps the order of loads and of stores. A store before a
#: load alone needs a barrier, and taking a lock is one there.
PLAIN_MACHINES = ("x86_64", "AMD64")
_barrier = Lock()


class RingError(Exception):
    """What a guest put into a ring can't be."""


class Ring:
    """One ring. Its attributes are set first, then it is attached and started.

    size: descriptors. base: the next place in the available ring, 16 bits. header: bytes of virtio-net
    header. event_idx, indirect, mergeable: features that were negotiated. log_used: the used ring is
    logged, at guest-physical address `log_address`.
    dropped: frames too short to be any, or too long for the guest's buffers. super_datagrams: UDP
    super-frames among what was gathered.
    """

    __slots__ = (
        "_available", "_called", "_chains", "_descriptors", "_offset", "_piece", "_piece_address", "_piece_size",
        "_pieces", "_scratch", "_seen", "_table", "_used", "_used16", "_used_index", "base", "dropped", "event_idx",
        "header", "indirect", "log_address", "log_used", "memory", "mergeable", "size", "super_datagrams",
    )  # fmt: skip

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.size = self.base = self.dropped = self.super_datagrams = self.log_address = 0
        self.header = 12
        self.event_idx = self.indirect = self.mergeable = self.log_used = False
        #: The used index as it is, and as it was when the guest was last called.
        self._used_index = self._called = 0
        #: The available index as it was last read.
        self._seen = 0
        #: Buffers of the chains that are looked at, and a place in them.
        self._piece_address = memoryview(array("Q", bytes(8 * _MOST_PIECES)))
        self._piece_size = memoryview(array("I", bytes(4 * _MOST_PIECES)))
        self._pieces = self._piece = self._offset = 0
        #: Head of each chain that one frame is spread over, and the room up to its end.
        self._chains = memoryview(array("I", bytes(4 * 2 * MOST_DESCRIPTORS)))
        self._table = memoryview(bytearray(_DESCRIPTOR_SIZE * MOST_DESCRIPTORS))
        self._scratch = memoryview(bytearray(12))
        self.detach()

    # --- set-up

    def attach(self, descriptors: memoryview, available: memoryview, used: memoryview) -> None:
        """Use these parts of guest memory: 16, 2 and 8 bytes a descriptor, and 6 more for the latter two."""
        self._descriptors = descriptors
        self._available = available.cast("H")
        self._used = used[: len(used) - 2].cast("I")
        self._used16 = used.cast("H")

    def start(self) -> None:
        """Begin at `base`. The used index is what whoever served the ring before left there."""
        self._used_index = self._called = self._used16[1]
        self._seen = self.base

    def detach(self) -> None:
        """Let go of guest memory."""
        self._descriptors = memoryview(b"")
        self._available = self._used16 = memoryview(bytearray(4)).cast("H")
        self._used = memoryview(bytearray(4)).cast("I")

    # --- notifications, both ways (virtio 1.2 §2.7.7, §2.7.10)

    def quiet(self) -> None:
        """Ask for no kicks: we look again on our own."""
        if not self.event_idx:
            self._set_used16(0, _NO_NOTIFY)

    def listen(self) -> bool:
        """Ask for a kick with the next chain; True where one is there already, for which no kick may come."""
        if self.event_idx:
            self._set_used16(2 + 4 * self.size, self.base)
        else:
            self._set_used16(0, 0)
        _fence()
        return self._get_available(1) != self.base

    def must_call(self) -> bool:
        """Whether the guest wants to be interrupted for what was used since this was last asked."""
        new, old = self._used_index, self._called
        if new == old:
            return False
        self._called = new
        _fence()
        if self.event_idx:
            event = self._get_available(2 + self.size)
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._get_available(0) & _NO_INTERRUPT

    # --- guest → us

    def gather(self, out: memoryview, at: int, lengths: array[int]) -> int:
        """Move what the guest transmits to `out[at:]`, virtio-net headers included; returns where that ends.

        out: `GATHER_ROOM` bytes. lengths: takes the bytes of each frame.
        Raises RingError; what came before stays taken.
        """
        if len(out) < _ROOM:
            raise AssertionError(f"{len(out)} bytes of room")
        done = 0
        try:
            while at < _FULL and len(lengths) < _FRAMES and done < self.size and self._offered(self.base):
                head = self._get_available(2 + (self.base & (self.size - 1)))
                self._pieces = 0
                total = self._walk(head, False)
                self._collect(out, at)
                self.base = (self.base + 1) & 0xFFFF
                self._use(head, 0, done)
                done += 1
                if total < self.header + _ETHERNET:
                    self.dropped += 1
                    continue
                if out[at + 1] == _UDP_L4:
                    self.super_datagrams += 1
                lengths.append(total)
                at += total
        finally:
            self._publish(done)
        return at

    def _collect(self, out: memoryview, at: int) -> None:
        for n in range(self._pieces):
            size = self._piece_size[n]
            if not self.memory.read(self._piece_address[n], size, out, at):
                raise RingError(f"{size} bytes at {self._piece_address[n]:#x} are not guest memory")
            at += size

    # --- us → guest

    def scatter(self, data: memoryview, start: int, end: int, vnet: int) -> bool:
        """Put the frame `data[start:end]` into the guest's buffers; False where there are too few of them now.

        vnet: bytes of virtio-net header in front of the frame: 0, 10 or 12. A frame that could never fit
        is `dropped`. Raises RingError.
        """
        if not 0 <= start <= start + vnet <= end <= len(data):
            raise AssertionError(f"a frame at {start} to {end} of {len(data)}")
        need = self.header + end - start - vnet
        chains = room = 0
        self._pieces = 0
        while room < need:
            place = (self.base + chains) & 0xFFFF
            if chains == self.size or (chains and not self.mergeable):
                self.dropped += 1
                return True
            if not self._offered(place):
                return False
            head = self._get_available(2 + (place & (self.size - 1)))
            room += self._walk(head, True)
            self._chains[2 * chains] = head
            self._chains[2 * chains + 1] = room
            chains += 1
        self._spread(data, start, end, vnet, chains)
        before = 0
        for n in range(chains):
            upto = min(self._chains[2 * n + 1], need)
            self._use(self._chains[2 * n], upto - before, n)
            before = upto
        self.base = (self.base + chains) & 0xFFFF
        self._publish(chains)
        return True

    def _spread(self, data: memoryview, start: int, end: int, vnet: int, chains: int) -> None:
        """Write header and frame over the buffers that were walked."""
        for n in range(10):
            self._scratch[n] = data[start + n] if vnet else 0
        self._scratch[10] = chains & 0xFF
        self._scratch[11] = chains >> 8
        self._piece = self._offset = 0
        self._put(self._scratch, 0, self.header)
        self._put(data, start + vnet, end - start - vnet)

    def _put(self, data: memoryview, at: int, length: int) -> None:
        while length:
            room = self._piece_size[self._piece] - self._offset
            if not room:
                self._piece += 1
                self._offset = 0
                continue
            size = min(room, length)
            address = self._piece_address[self._piece] + self._offset
            if not self.memory.write(address, size, data, at):
                raise RingError(f"{size} bytes at {address:#x} are not guest memory, or outside its log")
            self._offset += size
            at += size
            length -= size

    # --- the rings themselves

    def _offered(self, place: int) -> bool:
        """Whether the guest has offered the chain at `place`, which is not before `base`."""
        if place != self._seen:
            return True
        seen = self._get_available(1)
        ahead = (seen - self.base) & 0xFFFF
        if ahead > self.size or ahead < (place - self.base) & 0xFFFF:
            raise RingError(f"the available index went from {self._seen} to {seen}, in a ring of {self.size}")
        self._seen = seen
        return seen != place

    def _walk(self, head: int, write: bool) -> int:
        """Note the buffers of a chain, all to be written or all to be read; returns their bytes."""
        table = self._descriptors
        limit = self.size
        at = head
        steps = total = address = size = flags = following = 0
        inside = False
        while True:
            if at >= limit:
                raise RingError(f"descriptor {at} of a table of {limit}")
            if steps == limit:
                raise RingError(f"a chain longer than its table of {limit}")
            steps += 1
            if cython.compiled:
                fetch(  # type: ignore[name-defined]  # noqa: F821
                    cython.address(table[at * _DESCRIPTOR_SIZE]),
                    cython.address(address),
                    cython.address(size),
                    cython.address(flags),
                    cython.address(following),
                )
            else:
                address, size, flags, following = _DESCRIPTOR.unpack_from(table, at * _DESCRIPTOR_SIZE)
            if flags & _INDIRECT:
                if inside or not self.indirect or flags & _NEXT:
                    raise RingError("an indirect table that is nested, not negotiated, or not a chain's end")
                if not size or size % _DESCRIPTOR_SIZE or size > _TABLE * _DESCRIPTOR_SIZE:
                    raise RingError(f"an indirect table of {size} bytes")
                # A copy of ours: the guest can't change it while it is walked.
                if not self.memory.read(address, size, self._table, 0):
                    raise RingError(f"an indirect table at {address:#x} is not in guest memory")
                table, limit = self._table, size // _DESCRIPTOR_SIZE
                at = steps = 0
                inside = True
                continue
            if bool(flags & _WRITE) != write:
                raise RingError(f"a buffer to be {'read' if write else 'written'} where there can be none")
            if size > _LAST_ADDRESS - address or self._pieces == _MOST_PIECES:
                raise RingError(f"{size} bytes at {address:#x}, buffer {self._pieces}")
            if size:
                self._piece_address[self._pieces] = address
                self._piece_size[self._pieces] = size
                self._pieces += 1
                total += size
            if total > (_MOST_ROOM if write else _BYTES):
                raise RingError(f"a chain of {total} bytes")
            if not flags & _NEXT:
                return total
            at = following

    def _use(self, head: int, written: int, n: int) -> None:
        """Note a chain as used, `n` places behind the used index."""
        slot = (self._used_index + n) & (self.size - 1)
        self._used[1 + 2 * slot] = head
        self._used[2 + 2 * slot] = written
        self._log(4 + 8 * slot, 8)

    def _publish(self, count: int) -> None:
        """Let the guest see what was noted as used."""
        if count:
            self._used_index = (self._used_index + count) & 0xFFFF
            self._set_used16(1, self._used_index)

    def _log(self, offset: int, length: int) -> None:
        if self.log_used and not self.memory.mark(self.log_address + offset, length):
            raise RingError(f"the used ring at {self.log_address:#x} lies outside the log")

    def _get_available(self, index: int) -> int:
        """One of the guest's 16-bit numbers, and nothing that is read after it is older."""
        if cython.compiled:
            return load(cython.address(self._available[index]))  # type: ignore[name-defined,no-any-return]  # noqa: F821
        else:  # noqa: RET505  (a compiler leaves it out only like this)
            return int(self._available[index])

    def _set_used16(self, index: int, value: int) -> None:
        """One of ours, which the guest sees after all that was written before it."""
        if cython.compiled:
            store(cython.address(self._used16[index]), value)  # type: ignore[name-defined]  # noqa: F821
        else:
            self._used16[index] = value
        self._log(2 * index, 2)


def _fence() -> None:
    """What was written before is seen by others before anything is read after."""
    if cython.compiled:
        barrier()  # type: ignore[name-defined]  # noqa: F821
    else:
        with _barrier:
            pass
