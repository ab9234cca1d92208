"""Frames through a descriptor that keeps them apart: a pair of datagram sockets stands in for a TAP."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from array import array
from collections.abc import Iterator

import pytest

from lockstep.capture.frames import Frames

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in (near, far):
        end.setblocking(False)
    yield near, far
    near.close()
    far.close()


def reader(end: socket.socket, most_bytes: int = 1000, most_frames: int = 8, shortest: int = 3) -> Frames:
    return Frames(end.fileno(), most_bytes, most_frames, 100, shortest)


def brought(frames: Frames) -> list[bytes]:
    """What a read brings, frame by frame."""
    lengths = frames.lengths[: frames.read()].tolist()
    assert sum(lengths) == frames.size
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    return [bytes(frames.buffer[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def test_what_waits_is_read_end_to_end_and_what_is_too_short_is_passed_over(pair: Pair) -> None:
    near, far = pair
    for datagram in (b"first", b"no", b"the second", b"", b"3rd"):
        far.send(datagram)
    frames = reader(near)
    assert brought(frames) == [b"first", b"the second", b"3rd"]
    assert frames.read() == 0
    far.send(b"again")
    assert brought(frames) == [b"again"]


def test_a_read_ends_with_as_many_bytes_or_frames_as_are_wanted(pair: Pair) -> None:
    near, far = pair
    sent = [bytes((number,)) * 90 for number in range(6)]
    for datagram in sent:
        far.send(datagram)
    frames = reader(near, most_bytes=100)
    assert brought(frames) == sent[:2]
    assert brought(reader(near, most_frames=3)) == sent[2:5]
    assert brought(frames) == sent[5:]


def test_nothing_to_read_is_no_error_and_an_error_is_told(pair: Pair) -> None:
    near, far = pair
    assert reader(near).read() == 0
    far.send(b"last words")
    frames = reader(near)
    assert brought(frames) == [b"last words"]
    gone = os.dup(near.fileno())
    os.close(gone)
    assert Frames(gone, 1000, 8, 100, 1).read() == -errno.EBADF


def test_frames_are_written_in_order_and_those_that_are_refused_are_not_counted(pair: Pair) -> None:
    near, far = pair
    frames = reader(near)
    data = memoryview(b"onetwothree")
    assert (frames.write(data, array("I", (3, 3, 5))), frames.taken) == (3, 11)
    assert [far.recv(100) for _ in range(3)] == [b"one", b"two", b"three"]
    with contextlib.suppress(BlockingIOError):
        while near.send(b"x"):
            pass
    assert (frames.write(data, array("I", (3, 8))), frames.taken) == (0, 0)
    far.recv(1)
    assert (frames.write(data, array("I", (3, 8))), frames.taken) == (1, 3)


def test_an_error_that_is_not_about_a_frame_is_raised(pair: Pair) -> None:
    near, far = pair
    frames = reader(near)
    far.close()
    with pytest.raises(ConnectionRefusedError):
        frames.write(b"onetwo", array("I", (3, 3)))
    assert frames.write(b"", array("I")) == 0
