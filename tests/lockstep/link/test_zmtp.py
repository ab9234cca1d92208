"""Links without libzmq: beside libzmq's own sockets, cut anywhere, and with peers that send anything.

What a link does whoever carries it is in `test_zmq.py`.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.batch import Batch
from lockstep.link.envelope import MAX_PART, Message, encode
from lockstep.link.zmq import Receiver, Sender
from lockstep.link.zmtp import COMMAND, GREETING, LARGE, LONG, MORE, MOST_PEERS, Incoming, Spare, front, ready
from lockstep.streams import Cut, Gap

PATIENCE = 20.0
BOOT = b"boot id1"
HELLO = GREETING + ready("PUSH")
ITEMS: list[Any] = [
    Batch.of([b"small"]),
    Batch.of([bytes([at]) * 1500 for at in range(200)], vnet=10),
    Cut(3, "prepare"),
    Batch.of([bytes([at]) * 65_000 for at in range(15)], vnet=12),
    Batch.of([b"last"]),
]


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def path(run_dir: Path) -> str:
    return f"{run_dir}/primary"


Ends = Callable[..., Any]


@pytest.fixture
def receiver(context: zmq.Context[zmq.Socket[bytes]], path: str) -> Iterator[Callable[[bool], Receiver]]:
    made: list[Receiver] = []

    def make(direct: bool) -> Receiver:
        made.append(Receiver(context, "primary", f"ipc://{path}", direct=direct))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def sender(context: zmq.Context[zmq.Socket[bytes]], path: str) -> Iterator[Callable[[bool], Sender]]:
    made: list[Sender] = []

    def make(direct: bool, hwm: int = 8) -> Sender:
        made.append(Sender(context, "primary", f"ipc://{path}", BOOT, direct=direct, hwm=hwm))
        return made[-1]

    yield make
    for one in made:
        one.socket.close(linger=0)


@pytest.fixture
def far(receiver: Callable[[bool], Receiver]) -> Receiver:
    return receiver(True)


@pytest.fixture
def peer(far: Receiver, path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(path)
        made.settimeout(PATIENCE)
        yield made


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def shown(items: list[Any]) -> list[Any]:
    """Of batches what is in them."""
    return [(item.frames(), item.vnet) if isinstance(item, Batch) else item for item in items]


def taken(far: Receiver, count: int, work: Callable[[], object] = bool) -> list[Any]:
    items: list[Any] = []

    def enough() -> bool:
        work()
        items.extend(shown(far.receive() or []))
        return len(items) >= count

    until(enough)
    return items


def message(number: int, *frames: bytes) -> bytes:
    """A message as it goes over the socket."""
    header, data = encode(Message("primary", BOOT, 0, number, Batch.of(frames)))
    return front(len(header), MORE) + header + front(len(data), 0) + bytes(data)


def ended(peer: socket.socket) -> bool:
    """Whether the other end has closed this connection."""
    try:
        while peer.recv(4096, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


# Beside libzmq.


@pytest.mark.parametrize("ours", ["sender", "receiver", "both"])
def test_the_two_ends_may_differ(
    sender: Callable[..., Sender], receiver: Callable[[bool], Receiver], ours: str
) -> None:
    near, far = sender(ours != "receiver"), receiver(ours != "sender")
    for item in ITEMS:
        assert near.send(item, 0)
    assert taken(far, len(ITEMS), near.flush) == shown(ITEMS)
    assert far.rejected == far.counters["gaps"] == 0


def test_many_producers_of_both_kinds_are_heard(path: str, far: Receiver, context: zmq.Context[Any]) -> None:
    push = context.socket(zmq.PUSH)
    push.connect(f"ipc://{path}")
    push.send_multipart([b"garbage"])
    near = Sender(context, "primary", f"ipc://{path}", BOOT, direct=True)
    near.send(ITEMS[0], 0)
    assert taken(far, 1, near.flush) == shown(ITEMS[:1])
    until(lambda: far.receive() == [] or far.rejected)
    assert far.counters["rejected_parts"] == 1
    near.close()


def test_a_producer_takes_no_other_kind_of_socket(
    path: str, sender: Callable[..., Sender], context: zmq.Context[Any]
) -> None:
    """It tries again, and finds the right one when that is there."""
    wrong = context.socket(zmq.SUB)
    wrong.setsockopt(zmq.SUBSCRIBE, b"")
    wrong.bind(f"ipc://{path}")
    near = sender(True)
    near.send(ITEMS[0], 0)
    for _ in range(20):
        near.flush()
        assert not wrong.poll(5)
    wrong.close(linger=0)
    right = Receiver(context, "primary", f"ipc://{path}", direct=True)
    assert taken(right, 1, near.flush) == shown(ITEMS[:1])
    right.close()


# Cut anywhere, and large parts.


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([0, 1, 200, 255, 256, 5000, LARGE - 1, LARGE, LARGE + 1, 300_000]), min_size=1, max_size=8
    ),
    st.lists(st.integers(1, 200_000), min_size=1, max_size=30),
)
def test_messages_are_whole_wherever_the_stream_is_cut(sizes: list[int], cuts: list[int]) -> None:
    here, there = socket.socketpair()
    there.setblocking(False)
    incoming = Incoming(there, Spare())
    wanted = [[bytes([at % 256]) * size, bytes([~at % 256]) * (size // 2)] for at, size in enumerate(sizes)]
    data = HELLO + b"".join(
        part for first, second in wanted
        for part in (front(len(first), MORE), first, front(len(second), 0), second)
    )  # fmt: skip
    got: list[list[bytes]] = []
    sent = pieces = 0
    with here:
        here.setblocking(False)
        while len(got) < len(wanted):
            with contextlib.suppress(BlockingIOError):
                size = cuts[pieces % len(cuts)] if pieces < 100 else len(data)
                sent += here.send(data[sent : sent + size]) if sent < len(data) else 0
                pieces += 1
            incoming.drained = False
            while (parts := incoming.take()) is not None:
                got.append([bytes(part) for part in parts])
            assert incoming.descriptor >= 0
    incoming.end("")
    assert got == wanted


def test_what_is_still_looked_at_is_never_written_over(sender: Callable[..., Sender], far: Receiver) -> None:
    near = sender(True)
    kept: list[tuple[int, Any]] = []
    for number in range(60):
        near.send(Batch.of([bytes([number]) * 65_000] * 4), 0)
        came: list[Any] = []

        def one(came: list[Any] = came) -> bool:
            near.flush()
            came.extend(far.receive() or [])
            return bool(came)

        until(one)
        (item,) = came
        if number % 3:
            kept.append((number, item.data[65_000:65_010]))  # a view of a view
    for number, view in kept:
        assert bytes(view) == bytes([number]) * 10


def test_a_buffer_that_nobody_looks_at_is_used_again() -> None:
    spare = Spare()
    first = spare.get(100_000)
    address = id(first)
    view = memoryview(first)[:10].toreadonly()
    del first
    assert id(spare.get(100_000)) != address
    del view
    assert id(spare.get(100_000)) == address


def test_a_slow_consumer_gets_everything_in_order(sender: Callable[..., Sender], far: Receiver) -> None:
    """More than the kernel and the high-water mark hold: it waits in the producer, in part within a message."""
    near = sender(True, hwm=1)
    wanted = [[bytes([number]) * 60_000] * 17 for number in range(12)]
    given = iter(wanted)
    near.flush()
    far.receive()
    until(lambda: near.flush() and not near.socket.poll(0))
    for frames in given:
        assert near.send(Batch.of(frames), 0)
    assert near.blocked
    got = taken(far, len(wanted), near.flush)
    assert [frames for frames, _ in got] == wanted


# Connections that end.


def test_half_a_message_is_no_message_and_the_next_connection_starts_anew(
    far: Receiver, path: str, peer: socket.socket
) -> None:
    peer.sendall(HELLO + message(0, b"whole") + message(1, b"x" * 200_000)[:150_000])
    assert taken(far, 1) == [([b"whole"], 0)]
    peer.close()
    with socket.socket(socket.AF_UNIX) as again:
        again.connect(path)
        again.sendall(HELLO + message(2, b"next"))
        assert taken(far, 2) == [Gap("lost", 1), ([b"next"], 0)]


def test_a_producer_whose_consumer_dies_within_a_message_loses_that_one_alone(
    path: str, sender: Callable[..., Sender]
) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    near = sender(True)
    connection, _ = listener.accept()
    connection.sendall(GREETING + ready("PULL"))
    until(lambda: near.flush() and not near.socket.poll(0))
    sent = 0
    while not near.blocked:
        near.send(Batch.of([bytes([sent]) * 60_000] * 17), 0)
        sent += 1
    connection.close()
    listener.close()
    Path(path).unlink()
    until(lambda: near.flush() or near.socket.poll(0))
    with zmq.Context() as context:
        far = Receiver(context, "primary", f"ipc://{path}", direct=True)
        until(near.flush)
        near.send(Batch.of([b"end"]), 0)
        items: list[Any] = []

        def over() -> bool:
            near.flush()
            items.extend(far.receive() or [])
            return isinstance(items[-1] if items else None, Batch) and items[-1].frames() == [b"end"]

        until(over)
        far.close()
    assert items[0] == Gap("restarted")
    numbers = [item.data[0] for item in items[1:-1]]
    assert numbers == list(range(sent - len(numbers), sent))
    assert len(numbers) >= 8


# Peers that send anything.


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n".ljust(64),
        b"\xff" + bytes(8) + b"\x7f" + b"\xff" * 54,
        bytes(100),
        GREETING.replace(b"NULL", b"PLAIN"[:4]) + ready("PUSH"),
        GREETING + b"\x04\xff" + b"\xff" * 255,
        GREETING + ready("SUB"),
        GREETING + front(3, 0) + b"abc",
        HELLO + b"\x80\x01x",
        HELLO + front(MAX_PART + 1, 0),
        HELLO + front(LARGE + 1, COMMAND),
        HELLO + bytes((LONG,)) + b"\xff" * 8,
    ],
)
def test_who_breaks_the_protocol_loses_the_connection_and_is_counted(
    far: Receiver, peer: socket.socket, garbage: bytes, sender: Callable[..., Sender]
) -> None:
    peer.sendall(garbage)
    until(lambda: far.receive() == [])
    assert far.counters["rejected_peer"] == 1
    until(lambda: ended(peer))
    near = sender(True)
    near.send(ITEMS[0], 0)
    assert taken(far, 1, near.flush) == shown(ITEMS[:1])


def test_commands_are_passed_over(far: Receiver, peer: socket.socket) -> None:
    ping = b"\x04PING\x00\x00"
    peer.sendall(HELLO + front(len(ping), COMMAND) + ping + message(0, b"x"))
    assert taken(far, 1) == [([b"x"], 0)]


def test_a_message_of_endless_parts_takes_no_memory_and_is_counted_when_it_ends(
    far: Receiver, peer: socket.socket
) -> None:
    peer.setblocking(False)
    data = HELLO + (front(1000, MORE) + bytes(1000)) * 5000 + front(0, 0) + message(0, b"after")
    sent = 0
    items: list[Any] = []

    def over() -> bool:
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            sent += peer.send(data[sent:]) if sent < len(data) else 0
        items.extend(shown(far.receive() or []))
        return bool(items)

    until(over)
    assert items == [([b"after"], 0)]
    assert far.counters["rejected_parts"] == 1


def test_connections_are_bounded(far: Receiver, path: str, peer: socket.socket) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_PEERS + 3):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(path)
            far.receive()
        until(lambda: far.receive() is None and far.counters["rejected_peer"] == 4)
    assert far.last_rejection == f"more than {MOST_PEERS} connections"
    peer.sendall(HELLO + message(0, b"x"))
    assert taken(far, 1) == [([b"x"], 0)]


def test_closing_leaves_no_descriptor_and_no_path(
    context: zmq.Context[Any], path: str, open_files: Callable[[], int]
) -> None:
    before = open_files()
    far = Receiver(context, "primary", f"ipc://{path}", direct=True)
    near = Sender(context, "primary", f"ipc://{path}", BOOT, direct=True)
    near.send(ITEMS[0], 0)
    taken(far, 1, near.flush)
    near.close()
    far.close()
    assert open_files() == before
    assert not Path(path).exists()
