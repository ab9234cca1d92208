"""The `vhost-user` frontend: a guest's own rings, read and written in the memory that its QEMU shares.

    qemu-system-x86_64 … -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem \\
        -chardev socket,id=c,path=/run/lockstep/guest,reconnect=1 -netdev vhost-user,id=n,chardev=c \\
        -device virtio-net-pci,netdev=n

Events stand among the frames, at their place: `guest_started` when the guest can transmit, and
`guest_stopped` when it no longer can (`why`: `stopped` by its QEMU or driver, or `disconnected`),
after everything that it had transmitted until then. `guest_refused` tells that a guest or its QEMU
did what it must not: a ring is left alone until its driver sets it up again, a session ends.

Frames for a guest that offers no buffers wait, `MOST_WAITING` of them; further ones are dropped, as
are those for a guest whose QEMU isn't there.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import sys
import zlib
from array import array
from collections import deque

from lockstep.batch import Batch, BatchBuilder
from lockstep.capture.base import Port, PortError, PortPermissionError
from lockstep.qemu.address import Address
from lockstep.qemu.peer import PeerError, PeerPermissionError
from lockstep.streams import Event
from lockstep.vhost import protocol
from lockstep.vhost.log import atomic
from lockstep.vhost.peer import DescriptorPeer
from lockstep.vhost.protocol import Feature, Message, ProtocolError
from lockstep.vhost.ring import GATHER_ROOM, PLAIN_MACHINES, RingError
from lockstep.vhost.session import Queue, Session, signal
from lockstep.wire import ethernet, gso, ipv4, vnet
from lockstep.wire.frame import Frame, dissect

#: Frames, and their bytes, that wait for a guest without buffers.
MOST_WAITING = 1024
MOST_WAITING_BYTES = 8 << 20
#: Requests carried out in one turn.
MOST_REQUESTS = 64
#: Batches taken from a ring that stops: a full ring of 64 KiB frames makes 64.
MOST_TURNS = 80


class VhostUserPort(Port):
    """A guest's network card; raises PortError.

    address: a unix socket. server: whether we listen there, or connect to a QEMU that does.
    queues: most queue pairs that the guest may use.
    counters: besides the usual, `sessions`, `refused_sessions` (they broke the protocol), `broken_rings`,
    `dropped_in` (no frames at all, or sent by a ring that is switched off), `waiting` (now).
    """

    def __init__(self, name: str, address: Address, server: bool, queues: int = 1) -> None:
        super().__init__(name, 12)
        _check_machine(name)
        if address.path is None:
            raise PortError(f"{name}.address = {address.text}: memory can't be shared over it; name a unix:///PATH")
        self.counters |= {"sessions": 0, "refused_sessions": 0, "broken_rings": 0, "dropped_in": 0, "waiting": 0}
        self._pairs = queues
        try:
            self._peer = DescriptorPeer(address, server)
        except PeerError as error:
            kind = PortPermissionError if isinstance(error, PeerPermissionError) else PortError
            raise kind(f"{name}.address = {error}") from error
        #: Readable while `read` has something to give that no descriptor tells of.
        self._more = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._told = False
        self._epoll = select.epoll()
        for descriptor in (self._peer.fileno(), self._more):
            self._epoll.register(descriptor, select.EPOLLIN)
        self._session: Session | None = None
        self._connection = 0
        self._running = False
        #: The request that is being received, its descriptors, and how much of it is missing.
        self._header = self._payload = b""
        self._request: Message | None = None
        self._fds: list[int] = []
        self._missing = 0
        self._kicks: dict[int, Queue] = {}
        #: Transmitting rings that may have something.
        self._pending: dict[int, Queue] = {}
        self._items: deque[Batch | Event] = deque()
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._waiting_bytes = 0
        self._buffer = memoryview(bytearray(GATHER_ROOM))
        self._frame = Frame()

    def fileno(self) -> int:
        """An epoll descriptor: connection, kicks, and what is left over."""
        return self._epoll.fileno()

    def read(self) -> Batch | Event | None:
        """The next event, or what the guest transmitted. The batch lies in a buffer that the next `read` fills."""
        if not self._items:
            self._work()
        item = self._items.popleft() if self._items else self._gather()
        self._tell(bool(self._items or self._pending))
        return self.count_in(item) if isinstance(item, Batch) else item

    def write(self, batch: Batch) -> None:
        """Put frames into the guest's buffers, behind those that wait already."""
        data = memoryview(batch.data)
        if self._session is None:
            self.counters["dropped_out"] += len(batch)
            return
        self._deliver_waiting()
        queues = self._session.receiving()
        for start, end in batch.spans():
            for part, first, last, size in self._deliverable(data, start, end, batch.vnet):
                if self._waiting or not self._deliver(queues, part, first, last, size):
                    self._wait(part, first, last, size)
        self._call(queues)

    def close(self) -> None:
        """End the session; the guest's QEMU goes on without us. Closing twice is allowed."""
        if self._more < 0:
            return
        self._end_session()
        self._peer.close()
        self._epoll.close()
        os.close(self._more)
        self._more = -1

    # --- what a session asks of its host

    def watch(self, queue: Queue) -> None:
        """A ring was started, or switched on or off."""
        if queue.kick not in self._kicks:
            self._kicks[queue.kick] = queue
            self._epoll.register(queue.kick, select.EPOLLIN)
        self._look(queue)
        # Whoever served the ring before may have ended between using a buffer and saying so.
        signal(queue.call)

    def unwatch(self, queue: Queue) -> None:
        """A ring stops: what the guest put into it comes first."""
        if queue.kick in self._kicks:
            del self._kicks[queue.kick]
            self._epoll.unregister(queue.kick)
        # With the session gone its ring is left to the next one as it is.
        if queue.transmits and self._session is not None:
            self._take_all((queue,))
        self._pending.pop(queue.index, None)

    def inject(self, frame: bytes) -> None:
        """A frame in the guest's name, behind all that it transmitted."""
        assert self._session is not None
        self._take_all(tuple(self._pending.values()))
        header = self._session.header
        self._items.append(Batch.of([bytes(header) + frame], header))

    # --- the connection

    def _work(self) -> None:
        """Do whatever became possible: kicks first, since what they tell of came before the next request."""
        ready = [descriptor for descriptor, _ in self._epoll.poll(0)]
        for descriptor in ready:
            queue = self._kicks.get(descriptor)
            if queue is not None:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(descriptor)
                self._look(queue)
        if self._peer.fileno() in ready:
            self._peer.work()
            self._follow_peer()
            self._converse()
            self._follow_peer()

    def _look(self, queue: Queue) -> None:
        if queue.transmits:
            self._pending[queue.index] = queue
        else:
            self._deliver_waiting()

    def _follow_peer(self) -> None:
        """Begin and end sessions as connections come and go."""
        peer = self._peer
        if self._session is not None and (not peer.connected or self._connection != peer.connection):
            self._end_session()
        if self._session is None and peer.connected:
            self._connection = peer.connection
            self._session = Session(self, self._pairs)
            self._forget_message()
            self.counters["sessions"] += 1

    def _converse(self) -> None:
        """Carry out the requests that came."""
        for _ in range(MOST_REQUESTS):
            if self._session is None or not self._peer.connected:
                return
            try:
                message = self._receive()
                if message is None:
                    return
                try:
                    answer = self._session.handle(message)
                finally:
                    _close_all(message.fds)
            except ProtocolError as error:
                self.counters["refused_sessions"] += 1
                self._items.append(Event("guest_refused", {"port": self.name, "why": str(error)}))
                self._peer.drop()
                return
            self._follow_guest("stopped")
            if answer and not self._peer.send(answer):
                self._peer.drop()

    def _receive(self) -> Message | None:
        """The next request, once all of it is there."""
        if self._request is None:
            got, fds = self._peer.receive_with_fds(protocol.HEADER.size - len(self._header), protocol.MOST_REGIONS)
            self._header += got
            self._fds += fds
            if len(self._header) < protocol.HEADER.size:
                return None
            request, need_reply, self._missing = protocol.parse_header(self._header)
            self._request = Message(request, b"", need_reply)
        if self._missing:
            got, fds = self._peer.receive_with_fds(self._missing, protocol.MOST_REGIONS)
            self._payload += got
            self._missing -= len(got)
            self._fds += fds
            if self._missing:
                return None
        message = self._request
        message.payload, message.fds = self._payload, self._fds
        self._request, self._header, self._payload, self._fds = None, b"", b"", []
        return message

    def _forget_message(self) -> None:
        _close_all(self._fds)
        self._request, self._header, self._payload, self._missing = None, b"", b"", 0

    def _end_session(self) -> None:
        session, self._session = self._session, None
        self._forget_message()
        if session is None:
            return
        session.close()
        self.counters["dropped_out"] += len(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = self.counters["waiting"] = 0
        self._follow_guest("disconnected")

    def _follow_guest(self, why: str) -> None:
        """Tell when the guest begins or ceases to transmit."""
        running = self._session is not None and self._session.running
        if running != self._running:
            self._running = running
            if running:
                self._items.append(Event("guest_started", {"port": self.name}))
            else:
                self._items.append(Event("guest_stopped", {"port": self.name, "why": why}))

    def _tell(self, more: bool) -> None:
        if more != self._told:
            self._told = more
            if more:
                os.eventfd_write(self._more, 1)
            else:
                os.eventfd_read(self._more)

    # --- guest → us

    def _gather(self) -> Batch | None:
        batches = self._take(tuple(self._pending.values())) if self._pending else None
        if not batches:
            return None
        self._items.extendleft(reversed(batches[1:]))
        return batches[0]

    def _take_all(self, queues: tuple[Queue, ...]) -> None:
        """Queue what these rings hold as items; no more than a few times that, of a guest that goes on and on."""
        for _ in range(len(queues) * MOST_TURNS):
            batches = self._take(queues)
            if batches is None:
                return
            self._items += [Batch(bytes(batch.data), batch.lengths, batch.vnet) for batch in batches]

    def _take(self, queues: tuple[Queue, ...]) -> list[Batch] | None:
        """What these rings hold, as far as it fits one batch, or None; a ring with nothing left is no longer pending.

        It is more than one batch, or fewer, where UDP super-frames were cut.
        """
        lengths = array("I")
        end = super_datagrams = 0
        for queue in queues:
            if not queue.started or queue.broken is not None or queue.enabled is None:
                self._pending.pop(queue.index, None)
                continue
            before, dropped = len(lengths), queue.ring.dropped
            start = end
            super_datagrams -= queue.ring.super_datagrams
            try:
                queue.ring.quiet()
                end = queue.ring.gather(self._buffer, end, lengths)
                if not queue.ring.listen():
                    self._pending.pop(queue.index, None)
                if queue.ring.must_call():
                    signal(queue.call)
            except RingError as error:
                end = start + sum(lengths[before:])
                self._break(queue, error)
            self.counters["dropped_in"] += queue.ring.dropped - dropped
            super_datagrams += queue.ring.super_datagrams
            if not queue.enabled:
                self.counters["dropped_in"] += len(lengths) - before
                end = start
                del lengths[before:]
        if not lengths:
            return None
        batch = Batch(self._buffer[:end], lengths, queues[0].ring.header)
        return self._cut(batch) if super_datagrams else [batch]

    def _cut(self, batch: Batch) -> list[Batch]:
        """The batch with its UDP super-frames cut; without those that can't be."""
        builder = BatchBuilder()
        for start, end in batch.spans():
            parts = gso.datagrams(self._frame, batch.data[start:end], batch.vnet)
            self.counters["dropped_in"] += not parts
            for part in parts:
                builder.append(part, batch.vnet)
        return builder.take()

    def _break(self, queue: Queue, error: RingError) -> None:
        queue.break_(str(error))
        self._pending.pop(queue.index, None)
        self.counters["broken_rings"] += 1
        told = {"port": self.name, "ring": queue.index, "why": str(error)}
        self._items.append(Event("guest_refused", told))
        self._follow_guest("refused")

    # --- us → guest

    def _deliverable(self, data: memoryview, start: int, end: int, size: int) -> list[tuple[memoryview, int, int, int]]:
        """The frame as this guest can take it: as it is, finished, or cut into segments."""
        session = self._session
        assert session is not None
        if not size or not (data[start] | data[start + 1]):
            return [(data, start, end, size)]
        kind = data[start + 1]
        whole = kind == vnet.GSO_NONE or (
            kind & ~vnet.GSO_ECN in _NEEDS
            and all(session.has(feature) for feature in _NEEDS[kind & ~vnet.GSO_ECN])
            and (not kind & vnet.GSO_ECN or session.has(Feature.GUEST_ECN))
        )
        if whole and session.has(Feature.GUEST_CSUM):
            return [(data, start, end, size)]
        one = bytes(data[start:end])
        parts = [one]
        if not whole:
            dissect(self._frame, one, size, len(one))
            parts = gso.segments(self._frame, one, size)
            if not parts:
                self.counters["dropped_out"] += 1
        if session.has(Feature.GUEST_CSUM):
            return [(memoryview(part), 0, len(part), size) for part in parts]
        plain = [vnet.finished(part, 0, len(part), size) for part in parts]
        return [(memoryview(part), 0, len(part), 0) for part in plain]

    def _deliver(self, queues: list[Queue], data: memoryview, start: int, end: int, size: int) -> bool:
        """Whether the frame went into the guest's buffers, or never will."""
        if not queues:
            return False
        queue = queues[steer(data, start + size, end) % len(queues)] if len(queues) > 1 else queues[0]
        dropped = queue.ring.dropped
        try:
            done = queue.ring.scatter(data, start, end, size)
            if not done and queue.ring.listen():
                done = queue.ring.scatter(data, start, end, size)
        except RingError as error:
            self._break(queue, error)
            self._tell(True)
            self.counters["dropped_out"] += 1
            queues.remove(queue)
            return True
        if queue.ring.dropped > dropped:
            self.counters["dropped_out"] += queue.ring.dropped - dropped
        elif done:
            self.counters["frames_out"] += 1
            self.counters["bytes_out"] += end - start
        return done

    def _wait(self, data: memoryview, start: int, end: int, size: int) -> None:
        if len(self._waiting) >= MOST_WAITING or self._waiting_bytes + end - start > MOST_WAITING_BYTES:
            self.counters["dropped_out"] += 1
            return
        self._waiting.append((bytes(data[start:end]), size))
        self._waiting_bytes += end - start
        self.counters["waiting"] = len(self._waiting)

    def _deliver_waiting(self) -> None:
        if not self._waiting or self._session is None:
            return
        queues = self._session.receiving()
        while self._waiting:
            data, size = self._waiting[0]
            if not self._deliver(queues, memoryview(data), 0, len(data), size):
                break  # its kick brings us back
            self._waiting.popleft()
            self._waiting_bytes -= len(data)
        self.counters["waiting"] = len(self._waiting)
        self._call(queues)

    def _call(self, queues: list[Queue]) -> None:
        for queue in queues:
            if queue.ring.must_call():
                signal(queue.call)


#: What a guest must have negotiated to be given a super-frame.
_NEEDS = {
    vnet.GSO_TCPV4: (Feature.GUEST_TSO4,),
    vnet.GSO_TCPV6: (Feature.GUEST_TSO6,),
    vnet.GSO_UDP_L4: (Feature.GUEST_USO4, Feature.GUEST_USO6),
}


def steer(data: memoryview, start: int, end: int) -> int:
    """A number that all frames of one flow share, for the choice of a ring."""
    if end - start < ethernet.HEADER + ipv4.HEADER:
        return 0
    ethertype = data[start + 12] << 8 | data[start + 13]
    if ethertype == ethernet.IPV4:
        return zlib.crc32(data[start + 26 : start + 34])
    if ethertype == ethernet.IPV6:
        return zlib.crc32(data[start + 22 : start + 54])
    return 0


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()


def _check_machine(name: str) -> None:
    if sys.byteorder != "little":
        raise PortError(f"{name}: capture `vhost-user` works on little-endian machines; choose another frontend")
    if not atomic() and platform.machine() not in PLAIN_MACHINES:
        way_out = "install with a C compiler, or choose another frontend"
        raise PortError(f"{name}: capture `vhost-user` needs compiled code on {platform.machine()}; {way_out}")
