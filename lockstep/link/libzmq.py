# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""A link's socket without pyzmq in between: libzmq's own functions, called by their addresses.

For a message that travels alone, pyzmq's objects, and the exception that says "nothing waits", cost more
than all that libzmq does. Only compiled code can call an address: `usable` tells whether this is so.
"""

# ruff: noqa: F821 (names of the .pxd)
# mypy: disable-error-code="name-defined,attr-defined"

from __future__ import annotations

import ctypes
import errno
import sys
from array import array

import zmq

from lockstep.batch import Batch, Buffer
from lockstep.link.envelope import MAX_PART
from lockstep.link.head import IN_PLACE, MOST, NOBODY, Head
from lockstep.link.sequence import Sequence

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

#: In the order in which `found` in the .pxd takes them.
_FUNCTIONS = ("errno", "send", "msg_init", "msg_recv", "msg_more", "msg_data", "msg_close")
_AGAIN, _DONTWAIT, _SNDMORE = errno.EAGAIN, int(zmq.DONTWAIT), int(zmq.SNDMORE)
_MAX_PART = MAX_PART


def _addresses() -> list[int]:
    """Where libzmq's functions lie in this process; [] if they can't be found."""
    try:
        # Through the very module that pyzmq calls them from: this is the same copy of the library.
        library = ctypes.CDLL(sys.modules[zmq.backend.Socket.__module__].__file__)
        functions = [getattr(library, f"zmq_{name}") for name in _FUNCTIONS]
    except (AttributeError, OSError):
        return []
    return [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]


_usable = False
if IN_PLACE:
    _all = _addresses()
    if _all:
        found(_all[0], _all[1], _all[2], _all[3], _all[4], _all[5], _all[6])
        _usable = True


def usable(socket: object) -> bool:
    """Whether `Pull` and `Push` can be had for this socket."""
    return _usable and isinstance(socket, zmq.Socket)


class Pull:
    """Takes messages from a PULL socket. most: bytes of frames that are taken here at most.

    head, sequence: of the producer whose message is expected. more: parts of the message that was taken
    last still wait in the socket.
    """

    __slots__ = ("_first", "_second", "_socket", "head", "more", "most", "sequence")

    def __init__(self, socket: zmq.Socket[bytes], most: int) -> None:
        self._socket = cython.cast("void *", cython.cast("size_t", socket.underlying))
        self.most = most
        self.more = False
        self.head = NOBODY
        self.sequence = Sequence()

    def take(self) -> Batch | list[bytes] | None:
        """The batch of the next message, if it is the one that is expected. None: no message waits.

        Of any other, the parts that were taken from the socket, one or two. Raises zmq.ZMQError as pyzmq does.
        """
        size = receive(self._socket, cython.address(self._first))
        if size == -_AGAIN:
            return None
        if size < 0:
            raise zmq.ZMQError(-size)
        self.more = more_of(cython.address(self._first))
        header = data_of(cython.address(self._first))
        if not self.more or not self._expects(header, size):
            parts = [header[:size]]
            close_part(cython.address(self._first))
            return parts
        length = receive(self._socket, cython.address(self._second))
        if length < 0:
            close_part(cython.address(self._first))
            raise zmq.ZMQError(-length)
        return self._batch(header, size, length)

    def _expects(self, header: bytes, size: int) -> bool:
        head = self.head
        if size > _MAX_PART or not head.read(header, size) or head.total > self.most:
            return False
        return bool(head.number == cython.cast("long long", self.sequence.expected))

    def _batch(self, header: bytes, size: int, length: int) -> Batch | list[bytes]:
        """Of the two parts that were received."""
        head = self.head
        self.more = more_of(cython.address(self._second))
        frames = data_of(cython.address(self._second))[:length]
        fits = not self.more and length == head.total
        rest = header[head.at : size] if fits else header[:size]
        close_part(cython.address(self._first))
        close_part(cython.address(self._second))
        if not fits:
            return [rest, frames]
        self.sequence.expected += 1
        return Batch(frames, array("I", rest), head.vnet, head.epoch)

    def close(self) -> None:
        """The socket is about to be closed."""
        self._socket = cython.NULL


class Push:
    """Sends the batches of one producer to a PUSH socket, until that is closed. prefix: as `Head` has it."""

    __slots__ = ("_buffer", "_head", "_out", "_room", "_socket")

    def __init__(self, socket: zmq.Socket[bytes], prefix: bytes) -> None:
        self._socket = cython.cast("void *", cython.cast("size_t", socket.underlying))
        self._head = Head(prefix)
        self._grow(64)

    def _grow(self, count: int) -> None:
        """Have room for part 1 of a message of so many frames."""
        self._room = count
        self._buffer = bytearray(len(self._head.prefix) + MOST + 4 * count)
        self._out = self._buffer

    def send(self, batch: Batch, epoch: int, number: int, whole: bool) -> bool:
        """Send a batch; False if the link is full. Not `whole`: part 1 alone, and the frames must follow as part 2.

        Raises zmq.ZMQError as pyzmq does.
        """
        lengths = batch.lengths
        count = len(lengths)
        if count > self._room:
            self._grow(count)
        at = cython.cast("const unsigned char *", cython.address(lengths[0])) if count else cython.NULL
        size = self._head.write(self._out, epoch, number, batch.vnet, at, 4 * count)
        if not self._part(self._out, size, _DONTWAIT | _SNDMORE):
            return False
        if whole:
            frames = batch.data
            size = len(frames)
            self._part(cython.address(frames[0]) if size else cython.NULL, size, _DONTWAIT)
        return True

    def _part(self, data: Buffer, size: int, flags: int) -> bool:
        sent = send_part(self._socket, data, size, flags)
        if sent >= 0:
            return True
        if sent != -_AGAIN:
            raise zmq.ZMQError(-sent)
        return False

    def close(self) -> None:
        """The socket is about to be closed."""
        self._socket = cython.NULL
