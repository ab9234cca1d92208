"""`recvmmsg` and `sendmmsg`: many frames with one system call, in memory that is laid out once.

Source: recvmmsg(2), sendmmsg(2), `struct mmsghdr`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from itertools import accumulate
from typing import Literal

from lockstep.batch import Batch, Buffer

_MSG_DONTWAIT = 0x40
MSG_TRUNC = 0x20
#: UIO_MAXIOV: messages in one call.
MOST_MESSAGES = 1024


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint32))


_POINTER = ctypes.sizeof(ctypes.c_void_p)
_IOVEC = 2 * _POINTER
_MMSGHDR = ctypes.sizeof(_Mmsghdr)
_WORDS = _MMSGHDR // 4
_LENGTH = _Mmsghdr.length.offset // 4
_FLAGS = _Msghdr.flags.offset // 4
_CONTROLLEN = _Msghdr.controllen.offset // _POINTER
_SIZE_T: Literal["Q", "I"] = "Q" if _POINTER == 8 else "I"

_libc = ctypes.CDLL(None, use_errno=True)
_recvmmsg = _libc.recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_sendmmsg = _libc.sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Receiving:
    """`slots` places of `slot` bytes for frames, and of `control` bytes for what the kernel says about each."""

    def __init__(self, slots: int, slot: int, control: int) -> None:
        self.slots, self.slot, self._control = slots, slot, control
        self.data = bytearray(slots * slot)
        self.about = bytearray(slots * control)
        self._headers = bytearray(slots * _MMSGHDR)
        self._vectors = bytearray(slots * _IOVEC)
        self._at = _address(self._headers)
        data, about, vectors = _address(self.data), _address(self.about), _address(self._vectors)
        addresses = memoryview(self._vectors).cast(_SIZE_T)
        for number in range(slots):
            addresses[2 * number], addresses[2 * number + 1] = data + number * slot, slot
            header = _Mmsghdr.from_buffer(self._headers, number * _MMSGHDR).header
            header.iov, header.iovlen = vectors + number * _IOVEC, 1
            header.control, header.controllen = about + number * control, control
        words = memoryview(self._headers).cast("I")
        self._lengths, self._flags = words[_LENGTH::_WORDS], words[_FLAGS::_WORDS]
        self._controllens = memoryview(self._headers).cast(_SIZE_T)[_CONTROLLEN :: _MMSGHDR // _POINTER]
        self._full = array(_SIZE_T, [control]) * slots

    def receive(self, fd: int, first: int, most: int) -> int:
        """Fill at most `most` slots from number `first` on; how many were filled. Raises OSError."""
        # The kernel leaves there how much it wrote.
        self._controllens[first : first + most] = memoryview(self._full)[:most]
        got: int = _recvmmsg(fd, self._at + first * _MMSGHDR, most, _MSG_DONTWAIT, None)
        if got < 0:
            code = ctypes.get_errno()
            if code in (errno.EAGAIN, errno.EINTR):
                return 0
            raise OSError(code, os.strerror(code))
        return got

    def lengths(self, count: int) -> list[int]:
        """Bytes in each of the first `count` slots."""
        return self._lengths[:count].tolist()

    def truncated(self, count: int) -> list[int]:
        """`MSG_TRUNC` of each: the frame was longer than its slot."""
        return [flags & MSG_TRUNC for flags in self._flags[:count]]


class Sending:
    """The headers of as many messages as one call takes."""

    def __init__(self) -> None:
        self._headers = bytearray(MOST_MESSAGES * _MMSGHDR)
        self._vectors = bytearray(MOST_MESSAGES * _IOVEC)
        self._at = _address(self._headers)
        vectors = _address(self._vectors)
        for number in range(MOST_MESSAGES):
            header = _Mmsghdr.from_buffer(self._headers, number * _MMSGHDR).header
            header.iov, header.iovlen = vectors + number * _IOVEC, 1
        addresses = memoryview(self._vectors).cast(_SIZE_T)
        self._bases, self._sizes = addresses[::2], addresses[1::2]

    def send(self, fd: int, batch: Batch) -> tuple[int, int]:
        """Send the frames in order, each as one message; `(frames, bytes)` that were taken.

        A frame that is refused costs the others nothing; a socket that is full or down costs the rest.
        """
        taken = size = first = 0
        lengths = batch.lengths
        if not lengths:
            return 0, 0
        address, holder = _readable(batch.data)
        starts = array(_SIZE_T, accumulate(lengths, initial=address))
        while first < len(lengths):
            count = min(len(lengths) - first, MOST_MESSAGES)
            self._bases[:count] = memoryview(starts)[first : first + count]
            self._sizes[:count] = memoryview(array(_SIZE_T, lengths[first : first + count]))
            done, more = self._send(fd, count, lengths[first : first + count])
            taken += done[0]
            size += done[1]
            first += count
            if not more:
                break
        del holder
        return taken, size

    def _send(self, fd: int, count: int, lengths: array[int]) -> tuple[tuple[int, int], bool]:
        """One table full: what was taken, and whether it is worth going on."""
        at = taken = size = 0
        while at < count:
            sent: int = _sendmmsg(fd, self._at + at * _MMSGHDR, count - at, _MSG_DONTWAIT)
            if sent > 0:
                taken += sent
                size += sum(lengths[at : at + sent])
                at += sent
                continue
            code = ctypes.get_errno()
            if code == errno.EINTR:
                continue
            if code in _ENOUGH:
                return (taken, size), False
            if code not in _REFUSED:
                raise OSError(code, os.strerror(code))
            at += 1
        return (taken, size), True


#: The socket's buffer is full, or the interface is down or gone.
_ENOUGH = frozenset({errno.EAGAIN, errno.ENETDOWN, errno.ENXIO})
#: This frame alone: too long, malformed, or its virtio-net header is; or no room in the interface's queue.
_REFUSED = frozenset({errno.EMSGSIZE, errno.EINVAL, errno.ENOBUFS, errno.ENOMEM, errno.EPROTONOSUPPORT, errno.EPERM})


def _readable(data: Buffer) -> tuple[int, object]:
    """The address of the bytes, and what has to be kept while it is used."""
    if isinstance(data, memoryview) and data.readonly:
        data = bytes(data)
    if isinstance(data, bytes):
        pointer = ctypes.c_char_p(data)
        return ctypes.cast(pointer, ctypes.c_void_p).value or 0, pointer
    first = ctypes.c_char.from_buffer(data)
    return ctypes.addressof(first), first
