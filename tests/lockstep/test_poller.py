"""Every source that has something is called for, also where libzmq's descriptor no longer says so."""

import os
from collections.abc import Iterator
from contextlib import closing

import pytest
import zmq

from lockstep.poller import Poller

Context = zmq.Context[zmq.Socket[bytes]]


@pytest.fixture
def context() -> Iterator[Context]:
    context: Context = zmq.Context()
    yield context
    context.destroy(linger=0)


def pair(context: Context, kind: int = zmq.PAIR, other: int = zmq.PAIR) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    near, far = context.socket(kind), context.socket(other)
    far.bind("inproc://here")
    near.connect("inproc://here")
    return near, far


def turn(poller: Poller, timeout: float | None = 5.0) -> None:
    for fd in poller.wait(timeout):
        poller.act(fd, 0.0)


def test_a_readable_descriptor_is_called_for_until_it_is_read():
    reader, writer = os.pipe()
    calls = []
    with closing(Poller()) as poller:
        poller.watch(reader, calls.append)
        turn(poller)  # once in any case
        calls.clear()
        assert poller.wait(0) == []
        os.write(writer, b"xy")
        turn(poller)
        turn(poller)
        assert len(calls) == 2
        os.read(reader, 2)
        assert poller.wait(0) == []
    os.close(reader)
    os.close(writer)


def test_a_message_is_called_for(context: Context):
    near, far = pair(context)
    got = []

    def take(now: float) -> bool:
        try:
            while True:
                got.append(far.recv(zmq.DONTWAIT))
        except zmq.Again:
            return False

    with closing(Poller()) as poller:
        poller.watch(far, take)
        turn(poller)
        near.send(b"one")
        while not got:
            turn(poller)
        assert got == [b"one"]
        while poller.wait(0):
            turn(poller, 0)


def test_messages_that_no_descriptor_tells_of_are_called_for(context: Context):
    """An act that stops early says so; libzmq tells of news only once."""
    near, far = pair(context)
    got = []

    def take_one(now: float) -> bool:
        try:
            got.append(far.recv(zmq.DONTWAIT))
        except zmq.Again:
            return False
        return True

    for number in range(5):
        near.send(b"%d" % number)
    with closing(Poller()) as poller:
        poller.watch(far, take_one)
        while len(got) < 5:
            turn(poller, 5.0)
        assert got == [b"0", b"1", b"2", b"3", b"4"]


def test_sources_are_called_for_in_the_order_in_which_they_were_given():
    pipes = [os.pipe() for _ in range(3)]
    with closing(Poller()) as poller:
        called: list[int] = []
        for number in (2, 0, 1):
            poller.watch(pipes[number][0], lambda now, number=number: called.append(number))
        for _, writer in pipes:
            os.write(writer, b"x")
        turn(poller)
        turn(poller)
        assert called == [2, 0, 1, 2, 0, 1]
    for ends in pipes:
        for end in ends:
            os.close(end)


def test_one_that_was_forgotten_in_the_same_turn_is_not_called():
    pipes = [os.pipe() for _ in range(2)]
    called = []
    with closing(Poller()) as poller:
        poller.watch(pipes[0][0], lambda now: poller.forget(pipes[1][0]))
        poller.watch(pipes[1][0], called.append)
        turn(poller)
        os.write(pipes[1][1], b"x")
        assert pipes[1][0] not in poller.wait(0)
    assert called == []
    for ends in pipes:
        for end in ends:
            os.close(end)


def test_a_blocked_sender_is_called_for_once_there_is_room(context: Context):
    push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    for socket in (push, pull):
        socket.setsockopt(zmq.SNDHWM, 1)
        socket.setsockopt(zmq.RCVHWM, 1)
    pull.bind("inproc://narrow")
    push.connect("inproc://narrow")
    sent = 0
    try:
        while True:
            push.send(b"x", zmq.DONTWAIT)
            sent += 1
    except zmq.Again:
        pass
    room = []

    def look(now: float) -> None:
        if push.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
            room.append(now)

    with closing(Poller()) as poller:
        poller.watch(push, look)
        turn(poller)
        assert room == []
        for _ in range(sent):
            pull.recv()
        while not room:
            turn(poller)


def test_one_that_rests_is_called_for_when_it_wakes():
    reader, writer = os.pipe()
    os.write(writer, b"x")
    called = []

    def never_done(now: float) -> bool:
        called.append(now)
        return True

    with closing(Poller()) as poller:
        poller.watch(reader, never_done)
        turn(poller)
        poller.rest(reader)
        assert poller.wait(0) == []
        poller.wake(reader)
        os.read(reader, 1)
        assert poller.wait(0) == [reader]
        poller.rest(reader)
        poller.act(reader, 0.0)
        assert len(called) == 1
        poller.forget(reader)
    os.close(reader)
    os.close(writer)
