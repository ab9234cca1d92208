"""The two ends of a link: a PUSH that connects and a PULL that binds.

What libzmq does not tell, and what is done about it here:

- A peer's death loses what was in flight without an error: every message is numbered (`sequence`).
- A second bind on an ipc path steals it silently: each path is guarded by a lock file.
- The kernel's buffers defeat the high-water mark on tcp: SNDBUF and RCVBUF are set.
- ZMTP heartbeats and TCP_MAXRT cut a link that is only back-pressured: neither is set.
"""

from __future__ import annotations

import fcntl
import os
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import zmq
from zmq.backend import Socket

from lockstep.batch import MAX_BATCH, Batch, Buffer
from lockstep.config import parse_endpoint
from lockstep.link import zmtp
from lockstep.link.envelope import MAX_PART, REASONS, Encoder, EnvelopeError, Message, decode
from lockstep.link.head import IN_PLACE, Head
from lockstep.link.libzmq import Pull, Push, usable
from lockstep.link.sequence import Sequence, StaleMessage
from lockstep.streams import Cut, Gap

#: Kernel buffer of a tcp link at each end; together with the high-water mark this bounds what a stalled peer absorbs.
TCP_BUFFER = 1 << 20
#: Bytes that wait in a producer whose link is full: about what one TCP connection has in flight at most.
MOST_PENDING = 16 << 20
#: Frames of waiting batches that are joined in one message: a consumer does nothing else before it is done with it.
MOST_JOINED = 512
#: Message parts from this size on are not copied where they are received, nor if they are passed on as they came.
LARGE = 64 << 10
#: Others from this size on. Below it a copy is cheaper: pyzmq has a thread wake up to let go of what it didn't copy.
UNCOPIED = 512 << 10
#: How long a closing producer goes on delivering what it has, in milliseconds.
LINGER = 500


Taken = TypeVar("Taken")

# libzmq's own calls: pyzmq's `send_multipart` and `recv_multipart` look at every part several times more.
_send, _receive = Socket.send, Socket.recv
_FIRST, _LAST = int(zmq.DONTWAIT | zmq.SNDMORE), int(zmq.DONTWAIT)


class LinkError(Exception):
    """An endpoint can't be bound or connected. Its text names the stream and the way out."""


class LinkPermissionError(LinkError):
    """A folder or file of a link exists, but this process may not use it (exit code 77)."""


@dataclass(frozen=True, slots=True)
class Curve:
    """CURVE keys (Z85) of this node; `server` is the other end's public key where this end connects."""

    public: bytes
    secret: bytes
    server: bytes | None = None


class IpcLock:
    """Keeps an ipc path for this process alone, as long as it is held."""

    def __init__(self, endpoint: str) -> None:
        self._file = None
        transport, path = parse_endpoint(endpoint)
        if transport != "ipc":
            return
        try:
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = open(f"{path}.lock", "w")  # noqa: SIM115 (held until close)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LinkError(
                f"{endpoint} is already bound by another process; stop it, or choose another path"
            ) from error
        except OSError as error:
            way_out = "set `run_dir` to a folder that this user may write"
            kind = LinkPermissionError if isinstance(error, PermissionError) else LinkError
            raise kind(f"{endpoint}: {error.strerror} ({error.filename}); {way_out}") from error

    def close(self) -> None:
        """Let the path go."""
        if self._file is not None:
            self._file.close()
            self._file = None


def bind(socket: zmq.Socket[bytes], endpoint: str, what: str) -> IpcLock:
    """Bind a socket whose ipc path nobody else has, readable and writable for this user alone."""
    return _taken(endpoint, what, lambda: socket.bind(endpoint))[1]


def _taken(endpoint: str, what: str, take: Callable[[], Taken]) -> tuple[Taken, IpcLock]:
    """What `take` makes of an endpoint whose ipc path nobody else has: readable and writable for this user alone."""
    lock = IpcLock(endpoint)
    mask = os.umask(0o177)
    try:
        return take(), lock
    except (zmq.ZMQError, OSError) as error:
        lock.close()
        raise LinkError(
            f"{what} can't bind {endpoint}: {error}; choose another endpoint, or stop who has it"
        ) from error
    finally:
        os.umask(mask)


def _socket(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str, hwm: int, curve: Curve | None
) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, hwm)
    socket.setsockopt(zmq.LINGER, LINGER)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    if parse_endpoint(endpoint)[0] == "tcp":
        socket.setsockopt(zmq.SNDBUF, TCP_BUFFER)
        socket.setsockopt(zmq.RCVBUF, TCP_BUFFER)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 6)
        socket.setsockopt(zmq.IPV6, 1)
        if curve is not None:
            socket.curve_secretkey = curve.secret
            socket.curve_publickey = curve.public
            if curve.server is not None:
                socket.curve_serverkey = curve.server
            else:
                socket.curve_server = True
                socket.zap_domain = b"lockstep"
    return socket


class Sender:
    """The producing end of a stream.

    Sending never blocks. What a full link doesn't take waits here, merged into larger batches, up
    to MOST_PENDING bytes; call `flush` when the socket takes messages again. Beyond that a message
    is dropped and counted. Its number is used up, so the consumer sees a gap and knows that its
    flows are in doubt. direct: as for `Receiver`; then `flush` whenever `socket` is readable, see `watched`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        stream: str,
        endpoint: str,
        boot: bytes,
        *,
        hwm: int = 32,
        guest: str | None = None,
        curve: Curve | None = None,
        direct: bool = False,
    ) -> None:
        self.stream = stream
        self._messages = self._frames = self._bytes = self._cuts = self._full = self._dropped_frames = 0
        encoder = Encoder(stream, boot, guest)
        self._encode = encoder.encode
        self._number = 0
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        transport, path = parse_endpoint(endpoint)
        self._direct = zmtp.Push(path, encoder.prefix, hwm) if direct and transport == "ipc" else None
        self._push: Push | None = None
        if self._direct is not None:
            self.socket: Any = self._direct
            return
        self.socket = _socket(context, zmq.PUSH, endpoint, hwm, curve)
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise LinkError(f"links.{stream} can't connect to {endpoint}: {error}") from error
        if usable(self.socket):
            self._push = Push(self.socket, encoder.prefix)

    @property
    def counters(self) -> dict[str, int]:
        """What passed, and what did not."""
        return {
            "messages": self._messages,
            "frames": self._frames,
            "bytes": self._bytes,
            "cuts": self._cuts,
            "full": self._full,
            "dropped_frames": self._dropped_frames,
        }

    def send(self, item: Batch | Cut, epoch: int) -> bool:
        """Send a batch or a cut, or keep it for `flush`; False if it was dropped."""
        if self._send_waiting():
            number = self._take_number()
            if not self._send(item, epoch, number):
                self._keep(item, epoch, number)
            return True
        size = len(item.data) if isinstance(item, Batch) else 0
        if self._pending_bytes + size > MOST_PENDING:
            self._take_number()
            self._full += 1
            self._count_dropped(item)
            return False
        last = self._pending[-1]
        if isinstance(item, Batch) and _joins(last, item, epoch, self._number):
            last.item.data += item.data  # type: ignore[union-attr, operator]
            last.item.lengths.extend(item.lengths)  # type: ignore[union-attr]
            self._pending_bytes += size
        else:
            self._keep(item, epoch, self._take_number())
        return True

    def skip(self, epoch: int) -> None:
        """Let the consumer see a gap here: a number that is used up, and a message without frames behind it."""
        self._take_number()
        self.send(Batch(b"", array("I")), epoch)

    def _take_number(self) -> int:
        self._number += 1
        return self._number - 1

    def _keep(self, item: Batch | Cut, epoch: int, number: int) -> None:
        """Queue a copy."""
        if isinstance(item, Batch):
            self._pending_bytes += len(item.data)
            item = Batch(bytearray(item.data), item.lengths[:], item.vnet)
        self._pending.append(_Pending(item, epoch, number))

    @property
    def watched(self) -> bool:
        """Whether `flush` must be called whenever `socket` is readable: nobody else looks after the connection."""
        return self._direct is not None

    def flush(self) -> bool:
        """Look after the connection, and send what waits; True if nothing waits here any more."""
        if self._direct is not None:
            self._direct.work()
        return self._send_waiting()

    def _send_waiting(self) -> bool:
        while self._pending:
            waiting = self._pending[0]
            if not self._send(waiting.item, waiting.epoch, waiting.number):
                return False
            self._pending.popleft()
            self._pending_bytes -= len(waiting.item.data) if isinstance(waiting.item, Batch) else 0
        return True

    @property
    def blocked(self) -> bool:
        """Something waits for the socket to take messages again."""
        return bool(self._pending)

    def _send(self, item: Batch | Cut, epoch: int, number: int) -> bool:
        if isinstance(item, Cut):
            if not self._send_parts(*self._encode(item, epoch, number), large=False):
                return False
            self._cuts += 1
        else:
            if not self._send_batch(item, epoch, number):
                return False
            self._frames += len(item.lengths)
            self._bytes += len(item.data)
        self._messages += 1
        return True

    def _send_batch(self, batch: Batch, epoch: int, number: int) -> bool:
        if self._direct is not None:
            if IN_PLACE:
                return self._direct.send(batch, epoch, number)
            return self._direct.send_parts(*self._encode(batch, epoch, number), batch.stable)
        # Copied before this returns, so that a reused buffer is safe; unless it is large and stays as it is.
        large = len(batch.data) >= LARGE and batch.stable and (len(batch.data) >= UNCOPIED or _is_whole(batch.data))
        if self._push is None:
            return self._send_parts(*self._encode(batch, epoch, number), large)
        if not self._push.send(batch, epoch, number, not large):
            return False
        if large:
            _send(self.socket, _whole(batch.data), _LAST, False)
        return True

    def _send_parts(self, header: bytes, frames: Buffer, large: bool) -> bool:
        if self._direct is not None:
            return self._direct.send_parts(header, frames, True)
        try:
            _send(self.socket, header, _FIRST)
            _send(self.socket, _whole(frames) if large else frames, _LAST, not large)  # type: ignore[arg-type]
        except zmq.Again:
            return False
        return True

    def _count_dropped(self, item: Batch | Cut) -> None:
        if isinstance(item, Batch):
            self._dropped_frames += len(item.lengths)

    def close(self) -> None:
        """Deliver what waits, for LINGER milliseconds at most, count what could not be, and close the socket.

        On ipc libzmq throws away what a back-pressured consumer had not read yet; it sees a new boot id.
        """
        until = time.monotonic() + LINGER / 1000
        while not self.socket.closed and not self.flush() and time.monotonic() < until:
            self.socket.poll(max(0, round((until - time.monotonic()) * 1000)), zmq.POLLOUT)
        while self._pending:
            self._count_dropped(self._pending.popleft().item)
        if self._push is not None:
            self._push.close()
        self.socket.close(max(0, round((until - time.monotonic()) * 1000)) if self._direct is not None else None)


@dataclass(slots=True)
class _Pending:
    """A message that waits in a producer."""

    item: Batch | Cut
    epoch: int
    number: int


def _joins(last: _Pending, batch: Batch, epoch: int, following: int) -> bool:
    """Whether a batch can go into the same message as the last one that waits.

    following: the next message number; if one was used up in between, a message was dropped there.
    """
    return (
        isinstance(last.item, Batch)
        and last.number + 1 == following
        and (last.item.vnet, last.epoch) == (batch.vnet, epoch)
        and len(last.item.data) + len(batch.data) <= MAX_BATCH
        and len(last.item.lengths) + len(batch.lengths) <= MOST_JOINED
    )


def _is_whole(frames: Buffer) -> bool:
    """Whether this is all of a message part that was received."""
    return isinstance(frames, memoryview) and isinstance(frames.obj, zmq.Frame) and len(frames.obj) == frames.nbytes


def _whole(frames: Buffer) -> Any:
    """What was received, and is sent on as it came, as the message part that it is."""
    return frames.obj if _is_whole(frames) else frames  # type: ignore[union-attr]


def _bytes_of(part: zmq.Frame) -> bytes | memoryview:
    """A message part: a copy, or a large one as it lies in ZeroMQ's memory."""
    return part.bytes if len(part) < LARGE else memoryview(part.buffer).toreadonly()


class Receiver:
    """The consuming end of a stream: it binds, checks every message and reports gaps.

    guest: the one whose messages are taken, where there is one; those that name none are taken too.
    guests: those of a link that many producers share. Each message must name one of them.
    direct: on ipc, ZMTP by this thread itself (`zmtp`) instead of libzmq. Of any link the other end may be either.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        stream: str,
        endpoint: str,
        *,
        hwm: int = 32,
        guest: str | None = None,
        guests: Iterable[str] = (),
        curve: Curve | None = None,
        direct: bool = False,
    ) -> None:
        self.stream = stream
        #: Of a link of many guests: whose message `receive` took last.
        self.guest: str | None = None
        self._messages = self._frames = self._bytes = self._cuts = self._gaps = self._lost_messages = 0
        self._rejections = {f"rejected_{reason}": 0 for reason in (*REASONS, "stale", "peer")}
        #: How many messages were dropped because they didn't fit, and why the last one.
        self.rejected = 0
        self.last_rejection = ""
        self._guest = guest
        self._sequence = Sequence()
        #: Each guest's producer counts its own messages.
        self._sequences = {name: Sequence() for name in guests}
        self._pull: Pull | None = None
        self._direct: zmtp.Pull | None = None
        if direct and parse_endpoint(endpoint)[0] == "ipc":
            path = parse_endpoint(endpoint)[1]
            self._direct, self._lock = _taken(endpoint, f"links.{stream}", lambda: zmtp.Pull(path))
            self.socket: Any = self._direct
        else:
            self.socket = _socket(context, zmq.PULL, endpoint, hwm, curve)
            self._lock = bind(self.socket, endpoint, f"links.{stream}")
            if usable(self.socket):
                self._pull = Pull(self.socket, LARGE - 1)
        #: Of the producer whose messages `_pull` takes: its boot id, and its guest where there are many.
        self._expected_boot: bytes | None = None
        self._expected_guest: str | None = None

    @property
    def counters(self) -> dict[str, int]:
        """What came, what was missing, and what was rejected, by reason."""
        return {
            "messages": self._messages,
            "frames": self._frames,
            "bytes": self._bytes,
            "cuts": self._cuts,
            "gaps": self._gaps,
            "lost_messages": self._lost_messages,
            **self._rejections,
        }

    def receive(self) -> list[Batch | Cut | Gap] | None:
        """What the next message brings, a gap in front of it first; [] if it was rejected, None if none waits."""
        more = False
        if self._direct is not None:
            taken = self._direct.take()
            if taken is None and self._direct.refused > self._rejections["rejected_peer"]:
                return self._reject("peer", self._direct.why)
        elif self._pull is not None:
            taken = self._pull.take()
            more = self._pull.more
        else:
            return self._receive_parts([])
        if taken is None:
            return None
        if isinstance(taken, Batch):
            self.guest = self._expected_guest
            self._count(taken)
            return [taken]
        return self._receive_parts(taken, more)

    def _receive_parts(self, parts: list[Any], more: bool = True) -> list[Batch | Cut | Gap] | None:
        """`receive`, for a message of which these parts were already taken; `more` are to come."""
        try:
            while more:  # a message comes whole: once its first part is there, all are
                part = _receive(self.socket, _LAST, False)
                parts.append(_bytes_of(part))
                more = part.more
        except zmq.Again:
            return None
        try:
            message = decode(parts, self.stream, self._guest)
            sequence = self._sequence_of(message)
            gap = sequence.follow(message.boot, message.number)
        except EnvelopeError as error:
            return self._reject(error.reason, str(error))
        except StaleMessage:
            return self._reject("stale", "a message number came twice")
        short: Any = self._pull if self._direct is None else self._direct
        if short is not None and (message.boot != self._expected_boot or sequence is not short.sequence):
            # Most likely the next message comes from the same producer: that is taken the short way.
            short.head = Head(Encoder(message.stream, message.boot, message.guest).prefix)
            short.sequence = sequence
            self._expected_boot, self._expected_guest = message.boot, self.guest
        self._count(message.item)
        if gap is None:
            return [message.item]
        self._gaps += 1
        self._lost_messages += gap.lost or 0
        return [gap, message.item]

    def _count(self, item: Batch | Cut) -> None:
        self._messages += 1
        if isinstance(item, Cut):
            self._cuts += 1
        else:
            self._frames += len(item.lengths)
            self._bytes += len(item.data)

    def _sequence_of(self, message: Message) -> Sequence:
        """The one that this message belongs to; raises EnvelopeError for a guest that is not served here."""
        if not self._sequences:
            return self._sequence
        sequence = self._sequences.get(message.guest or "")
        if sequence is None:
            raise EnvelopeError("guest", f"guest {message.guest and message.guest[:32]!r} is not served here")
        self.guest = message.guest
        return sequence

    def _reject(self, reason: str, why: str) -> list[Batch | Cut | Gap]:
        self._rejections[f"rejected_{reason}"] += 1
        self.rejected += 1
        self.last_rejection = why
        return []

    def close(self) -> None:
        """Close the socket and give its path back."""
        if self._pull is not None:
            self._pull.close()
        self.socket.close()
        self._lock.close()
