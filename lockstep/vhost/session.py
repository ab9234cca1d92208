"""One front-end's session: what it has set up, and what its next request makes of that. Without I/O.

A ring is *started* by SET_VRING_KICK and stopped by GET_VRING_BASE; in between SET_VRING_ENABLE turns
it on and off. It *serves* while it is started, enabled and not broken. A transmitting ring that was
switched off is emptied all the same, and its frames are dropped, since the guest waits for them.

Even rings receive, odd ones transmit (virtio 1.2 §5.1.2): ring 2n and 2n + 1 are queue pair n.
Source: QEMU `docs/interop/vhost-user.rst`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

from lockstep.vhost import protocol
from lockstep.vhost.log import DirtyLog, atomic
from lockstep.vhost.memory import Memory, MemoryFault
from lockstep.vhost.protocol import Feature, Message, ProtocolError, ProtocolFeature, Request
from lockstep.vhost.ring import Ring

#: What a guest may use. CTRL_VQ and what needs it is served by QEMU itself, if the back-end lets it.
FEATURES = protocol.mask(
    Feature.CSUM, Feature.GUEST_CSUM, Feature.GUEST_TSO4, Feature.GUEST_TSO6, Feature.GUEST_ECN,
    Feature.HOST_TSO4, Feature.HOST_TSO6, Feature.HOST_ECN, Feature.MRG_RXBUF, Feature.STATUS,
    Feature.CTRL_VQ, Feature.CTRL_RX, Feature.CTRL_MAC_ADDR, Feature.GUEST_ANNOUNCE,
    Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.PROTOCOL_FEATURES, Feature.VERSION_1,
    Feature.GUEST_USO4, Feature.GUEST_USO6, Feature.HOST_USO,
)  # fmt: skip
PROTOCOL_FEATURES = protocol.mask(
    ProtocolFeature.RARP, ProtocolFeature.REPLY_ACK, ProtocolFeature.CONFIGURE_MEM_SLOTS, ProtocolFeature.STATUS
)

_U64_ZERO = protocol.U64.pack(0)


class Host(Protocol):
    """What a session needs of whoever owns the descriptors."""

    def watch(self, queue: Queue) -> None:
        """A ring was started: hear its kicks from now on, and look at it once."""

    def unwatch(self, queue: Queue) -> None:
        """A ring is about to be stopped: take what is still in it, and hear it no more."""

    def inject(self, frame: bytes) -> None:
        """A frame that the front-end wants sent in the guest's name."""


class Queue:
    """A ring with its descriptors and its state."""

    def __init__(self, index: int, memory: Memory) -> None:
        self.index = index
        self.ring = Ring(memory)
        self.addresses: tuple[int, int, int] | None = None
        self.kick = self.call = self.err = -1
        self.started = False
        #: None until the front-end has said: what is in the ring then waits for that.
        self.enabled: bool | None = None
        #: Why the ring is broken; None while it isn't.
        self.broken: str | None = None

    @property
    def transmits(self) -> bool:
        """Whether the guest sends by this ring."""
        return bool(self.index & 1)

    @property
    def serves(self) -> bool:
        """Whether frames go through it."""
        return self.started and bool(self.enabled) and self.broken is None

    def attach(self, memory: Memory) -> None:
        """Find the ring in guest memory; raises MemoryFault."""
        if self.addresses is None or not self.ring.size:
            raise MemoryFault(f"ring {self.index} has no addresses or no size")
        desc, avail, used = self.addresses
        if desc % 16 or avail % 2 or used % 4:
            raise MemoryFault(f"ring {self.index} is not aligned")
        size = self.ring.size
        self.ring.attach(
            memory.ring_part(desc, 16 * size),
            memory.ring_part(avail, 6 + 2 * size),
            memory.ring_part(used, 6 + 8 * size),
        )

    def break_(self, why: str) -> None:
        """Touch the ring no more, and tell the front-end if it wants to know."""
        self.broken = why
        signal(self.err)


def signal(fd: int) -> None:
    """Count an eventfd up, if there is one."""
    if fd >= 0:
        # A counter that is full wakes its reader all the same.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(fd, 1)


class Session:
    """The state of one connection; `handle` takes its requests in order.

    pairs: most queue pairs that the front-end may use.
    """

    def __init__(self, host: Host, pairs: int = 1) -> None:
        self._host = host
        self._pairs = pairs
        self._offered = FEATURES
        self._protocol_offered = PROTOCOL_FEATURES
        if pairs > 1:
            self._offered |= protocol.mask(Feature.MQ)
            self._protocol_offered |= protocol.mask(ProtocolFeature.MQ)
        if atomic():
            self._offered |= protocol.mask(Feature.LOG_ALL)
            self._protocol_offered |= protocol.mask(ProtocolFeature.LOG_SHMFD)
        self.features = 0
        self.protocol_features = 0
        self.status = 0
        self.memory = Memory()
        self.queues = [Queue(index, self.memory) for index in range(2 * pairs)]

    def has(self, feature: Feature) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.features >> feature & 1)

    @property
    def header(self) -> int:
        """Bytes of virtio-net header (virtio 1.2 §5.1.6.1)."""
        return 12 if self.has(Feature.VERSION_1) or self.has(Feature.MRG_RXBUF) else 10

    @property
    def running(self) -> bool:
        """Whether the guest can transmit."""
        return any(queue.serves for queue in self.queues if queue.transmits)

    def receiving(self) -> list[Queue]:
        """The rings by which the guest receives now."""
        return [queue for queue in self.queues if not queue.transmits and queue.serves]

    def handle(self, message: Message) -> bytes:
        """Carry out a request; returns what is to be sent back, if anything. Raises ProtocolError.

        Descriptors that stay in `message.fds` are the caller's to close.
        """
        protocol.check_fds(message)
        wanted = message.need_reply and bool(self.protocol_features >> ProtocolFeature.REPLY_ACK & 1)
        try:
            answer = _HANDLERS[message.request](self, message)
        except MemoryFault as fault:
            if not wanted:
                raise ProtocolError(f"{message.request.name}: {fault}") from fault
            return protocol.reply(message.request, protocol.U64.pack(1))
        if answer is not None:
            return protocol.reply(message.request, answer)
        return protocol.reply(message.request, _U64_ZERO) if wanted else b""

    def close(self) -> None:
        """The front-end is gone: give back its memory and descriptors."""
        for queue in self.queues:
            self._stop(queue)
            queue.call = _replaced(queue.call, None)
            queue.err = _replaced(queue.err, None)
        self.memory.close()

    # --- features

    def _get_features(self, message: Message) -> bytes:
        return protocol.U64.pack(self._offered)

    def _set_features(self, message: Message) -> None:
        features = message.u64()
        if features & ~self._offered:
            raise ProtocolError(f"SET_FEATURES: {features & ~self._offered:#x} were not offered")
        self.features = features
        self.memory.logging = self.has(Feature.LOG_ALL)
        for queue in self.queues:
            ring = queue.ring
            ring.header = self.header
            ring.event_idx = self.has(Feature.EVENT_IDX)
            ring.indirect = self.has(Feature.INDIRECT_DESC)
            ring.mergeable = self.has(Feature.MRG_RXBUF)

    def _get_protocol_features(self, message: Message) -> bytes:
        return protocol.U64.pack(self._protocol_offered)

    def _set_protocol_features(self, message: Message) -> None:
        features = message.u64()
        if features & ~self._protocol_offered:
            raise ProtocolError(f"SET_PROTOCOL_FEATURES: {features & ~self._protocol_offered:#x} were not offered")
        self.protocol_features = features

    def _get_queue_num(self, message: Message) -> bytes:
        return protocol.U64.pack(self._pairs)

    def _set_owner(self, message: Message) -> None:
        """There is one front-end to a session, so it is its owner."""

    def _reset_owner(self, message: Message) -> None:
        """Not used any more; the specification lets a back-end disable every ring."""
        for queue in self.queues:
            self._stop(queue)
            queue.enabled = False

    def _set_status(self, message: Message) -> None:
        self.status = message.u64()
        if not self.status:  # the driver reset the device
            for queue in self.queues:
                self._stop(queue)

    def _get_status(self, message: Message) -> bytes:
        return protocol.U64.pack(self.status)

    # --- memory

    def _set_mem_table(self, message: Message) -> None:
        self.memory.set_table(message.regions(), message.fds)
        self._find_rings()

    def _get_max_mem_slots(self, message: Message) -> bytes:
        return protocol.U64.pack(protocol.MEMORY_SLOTS)

    def _add_mem_reg(self, message: Message) -> None:
        self.memory.add(message.region(), message.fds[0])
        self._find_rings()

    def _rem_mem_reg(self, message: Message) -> None:
        self.memory.remove(message.region())
        self._find_rings()

    def _find_rings(self) -> None:
        """Look for the started rings in the memory of now."""
        for queue in self.queues:
            if queue.started:
                try:
                    queue.attach(self.memory)
                except MemoryFault as fault:
                    queue.ring.detach()
                    queue.break_(str(fault))

    def _set_log_base(self, message: Message) -> bytes:
        if not atomic():
            raise ProtocolError("SET_LOG_BASE: a log was not offered")
        size, offset = protocol.LOG.unpack(message.payload)
        try:
            self.memory.set_log(DirtyLog(message.fds[0], size, offset))
        except (OSError, ValueError, OverflowError) as error:
            raise ProtocolError(f"SET_LOG_BASE: {error}") from error
        return _U64_ZERO

    def _set_log_fd(self, message: Message) -> None:
        """It would tell us that the log was written; front-ends read the log on their own."""

    def _send_rarp(self, message: Message) -> None:
        self._host.inject(rarp(message.payload[:6]))

    # --- rings

    def _queue(self, index: int, request: Request) -> Queue:
        if index >= len(self.queues):
            raise ProtocolError(f"{request.name}: ring {index} of {len(self.queues)}")
        return self.queues[index]

    def _stopped(self, index: int, request: Request) -> Queue:
        queue = self._queue(index, request)
        if queue.started:
            raise ProtocolError(f"{request.name}: ring {index} is running")
        return queue

    def _set_vring_num(self, message: Message) -> None:
        index, size = message.state()
        if not 0 < size <= protocol.MOST_DESCRIPTORS or size & (size - 1):
            raise ProtocolError(f"SET_VRING_NUM: {size} descriptors, of {protocol.MOST_DESCRIPTORS} at most")
        self._stopped(index, message.request).ring.size = size

    def _set_vring_addr(self, message: Message) -> None:
        index, flags, desc, used, avail, log = message.addresses()
        queue = self._queue(index, message.request)
        queue.addresses = (desc, avail, used)
        queue.ring.log_used = bool(flags & protocol.VRING_F_LOG) and atomic()
        queue.ring.log_address = log
        if log > _LAST_LOGGED:
            raise ProtocolError(f"SET_VRING_ADDR: the used ring is logged at {log:#x}")
        if queue.started:
            queue.attach(self.memory)

    def _set_vring_base(self, message: Message) -> None:
        index, base = message.state()
        if base > 0xFFFF:
            raise ProtocolError(f"SET_VRING_BASE: {base} doesn't fit 16 bits")
        self._stopped(index, message.request).ring.base = base

    def _get_vring_base(self, message: Message) -> bytes:
        index, _ = message.state()
        queue = self._queue(index, message.request)
        self._stop(queue)
        return protocol.STATE.pack(index, queue.ring.base)

    def _set_vring_kick(self, message: Message) -> None:
        queue, fd = self._eventfd(message)
        if fd is None:
            raise ProtocolError(f"SET_VRING_KICK: ring {queue.index} without kicks would have to be polled")
        self._stop(queue)
        queue.attach(self.memory)
        queue.ring.start()
        queue.kick = fd
        message.fds.clear()
        queue.started = True
        if not self.has(Feature.PROTOCOL_FEATURES):
            queue.enabled = True
        self._host.watch(queue)

    def _set_vring_call(self, message: Message) -> None:
        queue, fd = self._eventfd(message)
        queue.call = _replaced(queue.call, fd)
        message.fds.clear()

    def _set_vring_err(self, message: Message) -> None:
        queue, fd = self._eventfd(message)
        queue.err = _replaced(queue.err, fd)
        message.fds.clear()

    def _eventfd(self, message: Message) -> tuple[Queue, int | None]:
        """A ring and the eventfd that is meant for it, which stays the message's until it is taken out."""
        index, fd = message.vring()
        queue = self._queue(index, message.request)
        if fd is not None:
            _check_eventfd(message.request, fd)
        return queue, fd

    def _set_vring_enable(self, message: Message) -> None:
        index, enabled = message.state()
        queue = self._queue(index, message.request)
        queue.enabled = bool(enabled)
        if queue.started:
            self._host.watch(queue)

    def _stop(self, queue: Queue) -> None:
        if queue.started:
            self._host.unwatch(queue)
            queue.started = False
            queue.ring.detach()
        queue.broken = None
        queue.kick = _replaced(queue.kick, None)


def _check_eventfd(request: Request, fd: int) -> None:
    """Raise ProtocolError for anything else: writing to it could block us, or change what isn't ours."""
    if str(Path(f"/proc/self/fd/{fd}").readlink()) != "anon_inode:[eventfd]":
        raise ProtocolError(f"{request.name}: the descriptor is no eventfd")
    os.set_blocking(fd, False)


def _replaced(old: int, new: int | None) -> int:
    """Close the descriptor `old`, if it is one, and go on with `new`."""
    if old >= 0:
        os.close(old)
    return -1 if new is None else new


#: The used ring may not be logged where adding its length would leave 64 bits.
_LAST_LOGGED = 0xFFFF_FFFF_FFFF_FFFF - (6 + 8 * protocol.MOST_DESCRIPTORS)

_HANDLERS = {request: getattr(Session, f"_{request.name.lower()}") for request in Request}


def rarp(mac: bytes) -> bytes:
    """The broadcast by which switches learn where `mac` lives now (RFC 903, request reverse)."""
    arp = b"\0\x01\x08\0\x06\x04\0\x03" + mac + bytes(4) + mac + bytes(4)
    return (b"\xff" * 6 + mac + b"\x80\x35" + arp).ljust(60, b"\0")
