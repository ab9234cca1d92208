# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The two ends of an ipc link, without libzmq: ZMTP 3.0 (RFC 23) on a Unix socket, spoken by the service's own thread.

libzmq hands every message to a thread of its own and takes it from another: for a frame that travels alone
that is most of what a link costs. Here sending is one `sendmsg`, and receiving one `recv`. Any ZeroMQ socket
can be at the other end. What needs more of libzmq (CURVE, tcp) goes through libzmq.

Nothing happens behind the service's back: each end has one descriptor, readable while there is something to
do. `Push.work` is then to be called, or `Pull.take`.
"""

# ruff: noqa: F821 (names of the .pxd)
# mypy: disable-error-code="name-defined,attr-defined"

from __future__ import annotations

import contextlib
import os
import select
import socket as sockets
import sys
import time
from array import array
from collections import deque
from pathlib import Path
from typing import Any

from lockstep.batch import Batch, Buffer
from lockstep.link.envelope import MAX_PART
from lockstep.link.head import IN_PLACE, MOST, NOBODY, Head
from lockstep.link.sequence import Sequence
from lockstep.timer import Timer

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: First bits of a frame: more parts follow, its length has 8 bytes, it is a command.
MORE, LONG, COMMAND = 1, 2, 4
#: Bytes in front of a frame, at most.
_MOST_FRONT = 9
GREETING_SIZE = 64
#: Signature, version 3.0, the mechanism NULL, not as its server.
GREETING = (b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0")).ljust(GREETING_SIZE, b"\0")
#: What a peer's greeting must have: where, and what.
_SIGNATURE, _MECHANISM = ((0, 0xFF), (9, 0x7F)), slice(12, 32)

#: Bytes that are read at once.
_ROOM = 128 << 10
#: Parts from this size on are read to where they stay, not copied there.
LARGE = 64 << 10
_MORE, _LONG, _COMMAND, _MAX_PART, _LARGE = MORE, LONG, COMMAND, MAX_PART, LARGE
#: Buffers of large parts that are kept to be used again.
_SPARE = 16
#: Bytes that the kernel keeps for a slow consumer, beside the messages of the high-water mark. A consumer that dies
#: takes them along. Of a whole window of TCP it should not be all: what comes behind the loss tells of it at once,
#: where retransmission time-outs, one segment each, would take a minute over it.
_KERNEL_BUFFER = 256 << 10
#: Connections to one consumer.
MOST_PEERS = 1024
#: Messages that are taken before the kernel is asked again who else has something.
_TURN = 8
#: Seconds between two tries to connect, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5


def ready(kind: str) -> bytes:
    """The command READY of a socket of this kind, `PUSH` or `PULL`."""
    name, value = b"Socket-Type", kind.encode()
    body = b"\x05READY" + bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
    return bytes((COMMAND, len(body))) + body


def socket_type(body: bytes) -> bytes | None:
    """The socket's kind as this READY tells it; None for anything else."""
    if body[:6] != b"\x05READY":
        return None
    at, kind = 6, None
    while at < len(body):
        name = body[at + 1 : at + 1 + body[at]]
        at += 1 + body[at]
        size = int.from_bytes(body[at : at + 4], "big")
        if at + 4 + size > len(body):
            return None
        if name.lower() == b"socket-type":
            kind = bytes(body[at + 4 : at + 4 + size])
        at += 4 + size
    return kind


def front(size: int, flags: int) -> bytes:
    """What stands in front of a frame of so many bytes."""
    return bytes((flags, size)) if size < 256 else bytes((flags | LONG,)) + size.to_bytes(8, "big")


class Handshake:
    """What a peer says before its first message. kinds: of the sockets that are taken."""

    __slots__ = ("_greeted", "_kinds", "done")

    def __init__(self, *kinds: bytes) -> None:
        self._kinds = kinds
        self._greeted = False
        self.done = False

    def take(self, data: bytes) -> int:
        """How many of these bytes it has taken; -1: they are none of ZMTP 3, or of a socket that doesn't fit."""
        taken = 0
        if not self._greeted:
            if any(at < len(data) and data[at] != wanted for at, wanted in _SIGNATURE):
                return -1
            if len(data) < GREETING_SIZE:
                return 0
            if data[10] < 3 or data[_MECHANISM].rstrip(b"\0") != b"NULL":
                return -1
            self._greeted = True
            taken = GREETING_SIZE
        if len(data) < taken + 2:
            return taken
        size = data[taken + 1]
        if data[taken] != COMMAND:
            return -1
        if len(data) < taken + 2 + size:
            return taken
        if socket_type(data[taken + 2 : taken + 2 + size]) not in self._kinds:
            return -1
        self.done = True
        return taken + 2 + size


def _nonblocking() -> sockets.socket:
    made = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    made.setblocking(False)
    return made


def _widen(made: sockets.socket) -> None:
    """Let the kernel keep more, as far as it lets this process."""
    force = getattr(sockets, "SO_SNDBUFFORCE", 32)
    try:
        made.setsockopt(sockets.SOL_SOCKET, force, _KERNEL_BUFFER)
    except OSError:
        made.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, _KERNEL_BUFFER)


# --- receiving


class Spare:
    """Buffers for large parts. One whose last view is gone is used again."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: list[bytearray] = []

    def get(self, size: int) -> bytearray:
        """A buffer of at least this many bytes."""
        for at in range(len(self._kept)):
            if len(self._kept[at]) >= size and self.references(at) == _ALONE:
                return self._kept[at]
        made = bytearray(1 << max(size - 1, 1).bit_length())
        if len(self._kept) >= _SPARE:
            del self._kept[0]
        self._kept.append(made)
        return made

    def references(self, at: int) -> int:
        """How many there are of a buffer, with those that asking makes."""
        return sys.getrefcount(self._kept[at])


def _alone() -> int:
    """What `references` says of a buffer that nobody else has: compiled code makes fewer of its own."""
    spare = Spare()
    spare.get(1)
    return spare.references(0)


_ALONE = _alone()


class Incoming:
    """One connection of a consumer: bytes in, parts out. `descriptor`: -1 once it has ended.

    drained: everything that the kernel had was read. due: it is among those that `Pull` takes in turn.
    """

    __slots__ = (
        "_body", "_end", "_filled", "_handshake", "_in", "_more", "_parts", "_size", "_spare", "_start",
        "descriptor", "drained", "due", "socket", "why",
    )  # fmt: skip

    def __init__(self, socket: sockets.socket, spare: Spare) -> None:
        self.socket = socket
        self.descriptor = socket.fileno()
        self.drained = self.due = False
        #: Why it was ended, if that was the peer's fault.
        self.why = ""
        self._spare = spare
        self._handshake: Handshake | None = Handshake(b"PUSH")
        self._in = bytearray(_ROOM)
        self._start = self._end = 0
        #: Of a message that has come in part: its parts, and the large one that is being read.
        self._parts: list[Any] = []
        self._body: bytearray | None = None
        self._size = self._filled = 0
        self._more = False

    def take(self) -> list[Any] | None:
        """The parts of the next message; None if it is not there yet."""
        while self.descriptor >= 0:
            if self._handshake is not None:
                self._greet()
                if self._handshake is None:
                    continue
            else:
                parts = self._message()
                if parts is not None:
                    return parts
            if self.descriptor < 0 or self.drained or not self._read():
                return None
        return None

    def _greet(self) -> None:
        handshake = self._handshake
        taken = handshake.take(bytes(self._in[self._start : self._end]))  # type: ignore[union-attr]
        if taken < 0:
            self.end("its greeting is none of ZMTP 3 with a PUSH socket and no encryption")
            return
        self._start += taken
        if handshake.done:  # type: ignore[union-attr]
            self._handshake = None

    def _read(self) -> bool:
        """Have more bytes; False if there are none now."""
        if self._body is not None:
            wanted = self._size - self._filled
            got = _receive(self.descriptor, self._body, self._filled, wanted)
            if got > 0:
                self._filled += got
        else:
            if self._start == self._end:
                self._start = self._end = 0
            elif self._start and _ROOM - self._end < _LARGE + _MOST_FRONT:
                rest = self._end - self._start
                self._in[:rest] = self._in[self._start : self._end]
                self._start, self._end = 0, rest
            wanted = _ROOM - self._end
            got = _receive(self.descriptor, self._in, self._end, wanted)
            if got > 0:
                self._end += got
        if got == 0:
            self.end("")
            return False
        self.drained = got < wanted
        return got > 0

    def _message(self) -> list[Any] | None:
        """The parts of the next message as far as it has been read."""
        data = self._in
        while True:
            if self._body is not None:
                if self._filled < self._size:
                    return None
                part: Buffer = memoryview(self._body)[: self._size].toreadonly()
                self._body = None
                more = self._more
            else:
                at = self._start
                have = self._end - at
                if have < 2:
                    return None
                flags = data[at]
                size = data[at + 1]
                fore = 2
                if flags & _LONG:
                    fore = _MOST_FRONT
                    if have < fore:
                        return None
                    size = 0
                    for index in range(8):
                        if size > _MAX_PART:
                            break
                        size = size << 8 | data[at + 1 + index]
                most = _LARGE if flags & _COMMAND else _MAX_PART
                if flags & ~(_MORE | _LONG | _COMMAND) or size > most:
                    self.end("a part is too large, or no frame of ZMTP")
                    return None
                more = bool(flags & _MORE)
                if size >= _LARGE and not flags & _COMMAND:
                    self._begin(at + fore, size, more)
                    continue
                if have < fore + size:
                    return None
                self._start = at + fore + size
                if flags & _COMMAND:
                    continue  # none is of use here
                part = bytes(data[at + fore : at + fore + size])
            if len(self._parts) < 3:  # more than two are refused anyway
                self._parts.append(part)
            if not more:
                parts, self._parts = self._parts, []
                return parts

    def _begin(self, at: int, size: int, more: bool) -> None:
        """Read a large part to where it stays; what has come of it begins at `at`."""
        body = self._spare.get(size)
        here = min(self._end - at, size)
        body[:here] = self._in[at : at + here]
        self._start = at + here
        self._body, self._size, self._filled, self._more = body, size, here, more

    def end(self, why: str) -> None:
        """Close the connection. why: what its peer did wrong, if anything."""
        self.descriptor = -1
        self.why = why
        self.socket.close()


def _receive(descriptor: int, buffer: bytearray, at: int, size: int) -> int:
    """Read so many bytes at most to there: how many came, 0 at the end of the stream, -1 if none wait."""
    if cython.compiled:
        place = buffer
        return receive_into(descriptor, place + at, size)  # type: ignore[operator,no-any-return]
    try:
        return os.readv(descriptor, [memoryview(buffer)[at : at + size]])
    except (BlockingIOError, InterruptedError):
        return -1
    except OSError:
        return 0


class Pull:
    """The consuming end: listens on `path`, which must be this process's alone, and takes the messages of many peers.

    head, sequence: of the producer whose message is expected next. refused: connections that were ended for what
    they sent, `why` the last one. Raises OSError where the path can't be bound.
    """

    def __init__(self, path: str) -> None:
        self.head = NOBODY
        self.sequence = Sequence()
        self.refused = 0
        self.why = ""
        self._path = path
        self._spare = Spare()
        self._peers: dict[int, Incoming] = {}
        #: The one peer, where there are no others.
        self._only: Incoming | None = None
        #: Peers that had something when last asked, the next one first; messages taken since then.
        self._due: deque[Incoming] = deque()
        self._taken = 0
        self._epoll = select.epoll()
        self._listener = _nonblocking()
        try:
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
            self._listener.bind(path)
            self._listener.listen(MOST_PEERS)
        except BaseException:
            self._listener.close()
            self._epoll.close()
            raise
        self._epoll.register(self._listener, select.EPOLLIN)
        self.closed = False

    def fileno(self) -> int:
        """Readable while a message may wait."""
        return self._epoll.fileno()

    def take(self) -> Any:
        """The batch of the next message, if it is the one that is expected; of any other its parts, three at most.

        None: no message waits.
        """
        due = self._due
        guessed = False
        if self._taken >= _TURN:
            self._look()
        elif not due:
            # Something waits: most likely a message of the one peer.
            only = self._only
            guessed = only is not None
            if only is None:
                self._look()
            else:
                self._owe(only)
        while due:
            peer = due[0]
            parts = peer.take()
            if parts is not None:
                self._taken += 1
                if len(due) > 1:
                    due.rotate(-1)
                return self._expected(parts)
            due.popleft()
            peer.due = False
            if peer.descriptor < 0:
                self._forget(peer)
            if guessed:
                guessed = False
                self._look()
        return None

    def _look(self) -> None:
        """Ask the kernel who has something: they take turns, message by message."""
        self._taken = 0
        for descriptor, _ in self._epoll.poll(0):
            peer = self._peers.get(descriptor)
            if peer is None:
                self._accept()
            else:
                self._owe(peer)

    def _owe(self, peer: Incoming) -> None:
        """It has its turn, if it hasn't already."""
        peer.drained = False
        if not peer.due:
            peer.due = True
            self._due.append(peer)

    def _expected(self, parts: list[Any]) -> Any:
        """The batch of a message that is wholly as expected, else its parts."""
        head = self.head
        if not IN_PLACE or len(parts) != 2:
            return parts
        header: bytes = parts[0]
        if not isinstance(header, bytes) or not head.read(header, len(header)):
            return parts
        if head.number != self.sequence.expected or head.total != len(parts[1]):
            return parts
        self.sequence.expected += 1
        return Batch(parts[1], array("I", header[head.at :]), head.vnet, head.epoch)

    def _accept(self) -> None:
        try:
            made, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        if len(self._peers) >= MOST_PEERS:
            self.refused += 1
            self.why = f"more than {MOST_PEERS} connections"
            made.close()
            return
        made.setblocking(False)
        peer = Incoming(made, self._spare)
        self._peers[made.fileno()] = peer
        self._only = peer if len(self._peers) == 1 else None
        self._epoll.register(made, select.EPOLLIN)
        hello = GREETING + ready("PULL")
        with contextlib.suppress(OSError):  # if it has gone, that is seen where it is read
            made.send(hello)
        self._owe(peer)

    def _forget(self, peer: Incoming) -> None:
        """An ended connection: the kernel has taken its descriptor out of the epoll."""
        self._peers = {descriptor: one for descriptor, one in self._peers.items() if one is not peer}
        self._only = next(iter(self._peers.values())) if len(self._peers) == 1 else None
        if peer.why:
            self.refused += 1
            self.why = peer.why

    def poll(self, milliseconds: int | None = None) -> bool:
        """Whether a message waits, or something else that `take` looks after, after this time at most."""
        if self._due:
            return True
        return bool(select.select([self._epoll], [], [], None if milliseconds is None else milliseconds / 1000)[0])

    def close(self, linger: int | None = None) -> None:
        """Close all connections, and give the path back. Closing twice is allowed."""
        if self.closed:
            return
        self.closed = True
        for peer in self._peers.values():
            peer.end("")
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            Path(self._path).unlink()
        self._epoll.close()


# --- sending


class Push:
    """The producing end: connects to `path`, again and again, and sends the messages of one producer.

    prefix: of its part 1, as `Head` has it. hwm: messages that wait here, besides what the kernel takes.
    """

    def __init__(self, path: str, prefix: bytes, hwm: int) -> None:
        self._path = path
        self._hwm = hwm
        self._head = Head(prefix)
        self._grow(64)
        #: What the connection has not taken yet: of each message what stands in front of its frames, and those.
        self._waiting: deque[tuple[Buffer, Buffer]] = deque()
        #: Bytes of the first of them that are sent.
        self._sent = 0
        self._socket: sockets.socket | None = None
        self._descriptor = -1
        self._handshake: Handshake | None = None
        self._said = b""
        self._pause = _FIRST_PAUSE
        self._epoll = select.epoll()
        self._timer = Timer()
        self._epoll.register(self._timer, select.EPOLLIN)
        self.closed = False
        self._connect()

    def fileno(self) -> int:
        """Readable while `work` has something to do."""
        return self._epoll.fileno()

    @property
    def free(self) -> bool:
        """Whether a message would be taken."""
        return len(self._waiting) < self._hwm

    # --- messages

    def _grow(self, count: int) -> None:
        """Have room for part 1 of a message of so many frames, and for what stands in front of both parts."""
        self._room = count
        self._buffer = bytearray(2 * _MOST_FRONT + len(self._head.prefix) + MOST + 4 * count)

    def send(self, batch: Batch, epoch: int, number: int) -> bool:
        """Send a batch, or keep it to be sent; False if too much waits already. For compiled code alone."""
        lengths = batch.lengths
        count = len(lengths)
        if count > self._room:
            self._grow(count)
        out: Any = self._buffer
        at = cython.cast("const unsigned char *", cython.address(lengths[0])) if count else cython.NULL
        size = self._head.write(out + _MOST_FRONT, epoch, number, batch.vnet, at, 4 * count)
        begin = _MOST_FRONT - put_front(out, _MOST_FRONT, size, _MORE)
        # What stands in front of part 2 has its place behind part 1.
        end = _MOST_FRONT + size
        data = batch.data
        length = len(data)
        end += append_front(out + end, length, 0)
        if self._descriptor < 0 or self._waiting or self._handshake is not None:
            return self._keep(bytes(self._buffer[begin:end]), data if batch.stable else bytes(data))
        frames = data
        sent = send_both(
            self._descriptor, out + begin, end - begin, cython.address(frames[0]) if length else cython.NULL, length
        )
        if sent == end - begin + length:
            return True
        return self._rest(sent, bytes(self._buffer[begin:end]), data if batch.stable else bytes(data))

    def send_parts(self, header: bytes, frames: Buffer, stable: bool) -> bool:
        """Send a message, or keep it to be sent; False if too much waits already. stable: the frames never change."""
        fore = front(len(header), MORE) + header + front(len(frames), 0)
        if self._descriptor >= 0 and not self._waiting and self._handshake is None:
            sent = self._write(fore, frames, 0)
            if sent == len(fore) + len(frames):
                return True
            return self._rest(sent, fore, frames if stable else bytes(frames))
        return self._keep(fore, frames if stable else bytes(frames))

    def _keep(self, fore: bytes, frames: Buffer) -> bool:
        if len(self._waiting) >= self._hwm:
            return False
        self._waiting.append((fore, frames))
        return True

    def _rest(self, sent: int, fore: bytes, frames: Buffer) -> bool:
        """The connection took a part of a message, or none, or has ended."""
        if sent < 0:
            self._disconnect()
            return self._keep(fore, frames)
        self._waiting.append((fore, frames))
        self._sent = sent
        self._epoll.modify(self._descriptor, select.EPOLLIN | select.EPOLLOUT)
        return True

    def _write(self, fore: Buffer, frames: Buffer, begin: int) -> int:
        """How much of a message the connection took from `begin` on; -1 if it has ended."""
        views = [memoryview(fore)[begin:], memoryview(frames)[max(begin - len(fore), 0) :]]
        try:
            return os.writev(self._descriptor, [view for view in views if len(view)])
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return -1

    def _flush(self) -> None:
        """Send what waits, as far as the connection takes it."""
        while self._waiting:
            fore, frames = self._waiting[0]
            sent = self._write(fore, frames, self._sent)
            if sent < 0:
                self._disconnect()
                return
            self._sent += sent
            if self._sent < len(fore) + len(frames):
                self._epoll.modify(self._descriptor, select.EPOLLIN | select.EPOLLOUT)
                return
            self._waiting.popleft()
            self._sent = 0
        self._epoll.modify(self._descriptor, select.EPOLLIN)

    # --- the connection

    def work(self) -> None:
        """Connect, listen to the peer, send what waits: as far as that goes without waiting."""
        for descriptor, events in self._epoll.poll(0):
            if descriptor == self._timer.fileno():
                self._timer.take()
                self._connect()
            elif descriptor == self._descriptor:
                if events & ~select.EPOLLOUT:
                    self._hear()
                if self._descriptor >= 0 and self._handshake is None:
                    self._flush()

    def _connect(self) -> None:
        if self._descriptor >= 0:
            return
        made = _nonblocking()
        try:
            made.connect(self._path)
            _widen(made)
            made.send(GREETING + ready("PUSH"))
        except OSError:
            made.close()
            self._try_later()
            return
        self._socket, self._descriptor = made, made.fileno()
        self._handshake, self._said = Handshake(b"PULL"), b""
        self._epoll.register(made, select.EPOLLIN)

    def _try_later(self) -> None:
        self._timer.set(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _hear(self) -> None:
        """The peer's greeting; nothing that comes behind it is of use."""
        try:
            data = self._socket.recv(4096)  # type: ignore[union-attr]
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._disconnect()
            return
        if self._handshake is None:
            return
        self._said += data
        taken = self._handshake.take(self._said)
        if taken < 0:
            self._disconnect()
            return
        self._said = self._said[taken:]
        if self._handshake.done:
            self._handshake = None
            self._pause = _FIRST_PAUSE

    def _disconnect(self) -> None:
        """The connection has ended; a message that went in part is lost with it."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._descriptor, self._handshake = None, -1, None
        if self._sent:
            self._waiting.popleft()
            self._sent = 0
        self._try_later()

    def poll(self, milliseconds: int | None = None, events: int = 0) -> bool:
        """Whether there is something for `work` after this time at most."""
        return bool(select.select([self._epoll], [], [], None if milliseconds is None else milliseconds / 1000)[0])

    def close(self, linger: int | None = 0) -> None:
        """Deliver what waits for `linger` milliseconds at most, and end. Closing twice is allowed."""
        if self.closed:
            return
        until = time.monotonic() + (linger or 0) / 1000
        while self._waiting and (left := until - time.monotonic()) > 0:
            self.poll(round(left * 1000))
            self.work()
        self.closed = True
        if self._socket is not None:
            self._socket.close()
        self._descriptor = -1
        self._timer.close()
        self._epoll.close()
