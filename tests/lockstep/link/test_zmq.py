"""Links over real ZeroMQ: between contexts, between processes, and with peers that send anything.

Every wait ends with what it waits for, or after `PATIENCE` seconds with a failure.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
import zmq

from lockstep.batch import MAX_BATCH, Batch
from lockstep.link.envelope import MAX_PART, Message, encode
from lockstep.link.zmq import MOST_PENDING, LinkError, Receiver, Sender
from lockstep.streams import Cut, Gap

PATIENCE = 20.0
BOOT, OTHER_BOOT = b"boot id1", b"boot id2"

Context = zmq.Context[zmq.Socket[bytes]]
MakeSender = Callable[..., Sender]
MakeReceiver = Callable[..., Receiver]


@pytest.fixture
def contexts() -> Iterator[Callable[[], Context]]:
    """New contexts, one for each end; what is left open in them is closed at the end."""
    made: list[Context] = []

    def make() -> Context:
        made.append(zmq.Context())
        made[-1].setsockopt(zmq.LINGER, 0)
        return made[-1]

    yield make
    for context in made:
        context.destroy(linger=0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(params=["ipc", "tcp"])
def endpoint(request: pytest.FixtureRequest, run_dir: Path) -> str:
    return f"ipc://{run_dir}/primary" if request.param == "ipc" else f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def ipc(run_dir: Path) -> str:
    return f"ipc://{run_dir}/primary"


@pytest.fixture(params=[False, True], ids=["libzmq", "direct"])
def direct(request: pytest.FixtureRequest) -> bool:
    """Whether ipc links go without libzmq."""
    return bool(request.param)


#: A direct producer works when it is called, as its service does whenever there is something to do.
PRODUCERS: list[Sender] = []


@pytest.fixture
def sender(contexts: Callable[[], Context], direct: bool) -> Iterator[MakeSender]:
    made: list[Sender] = []

    def make(endpoint: str, boot: bytes = BOOT, stream: str = "primary", **settings: object) -> Sender:
        settings.setdefault("direct", direct)
        made.append(Sender(contexts(), stream, endpoint, boot, **settings))  # type: ignore[arg-type]
        PRODUCERS.append(made[-1])
        return made[-1]

    yield make
    PRODUCERS.clear()
    for one in made:
        one.socket.close(linger=0)


@pytest.fixture
def receiver(contexts: Callable[[], Context], direct: bool) -> Iterator[MakeReceiver]:
    made: list[Receiver] = []

    def make(endpoint: str, stream: str = "primary", *, again: bool = False, **settings: object) -> Receiver:
        def bound() -> bool:
            try:
                settings.setdefault("direct", direct)
                made.append(Receiver(contexts(), stream, endpoint, **settings))  # type: ignore[arg-type]
            except LinkError:
                if not again:
                    raise
                return False  # the one before it was closed, and gives its port back a little later
            return True

        until(bound)
        return made[-1]

    yield make
    for one in made:
        one.close()


def work() -> None:
    """Let the producers look after their connections."""
    for producer in PRODUCERS:
        if not producer.socket.closed:
            producer.flush()


def until(done: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        work()
        time.sleep(0.005)


def arriving(link: Receiver) -> Iterator[Batch | Cut | Gap]:
    """What arrives, for as long as something does."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        work()
        if link.socket.poll(5):
            for item in link.receive() or []:
                yield item
                deadline = time.monotonic() + PATIENCE
    pytest.fail("nothing came any more")


def take(link: Receiver, count: int) -> list[object]:
    """The next items: of a batch its frames."""
    items = arriving(link)
    taken = [next(items) for _ in range(count)]
    return [item.frames() if isinstance(item, Batch) else item for item in taken]


def rejections(link: Receiver) -> dict[str, int]:
    return {
        name.removeprefix("rejected_"): count
        for name, count in link.counters.items()
        if name.startswith("rejected_") and count
    }


def one(text: str) -> Batch:
    return Batch.of([text.encode()])


#: As large as a batch gets, so that few of them fill a link and nothing is joined to them.
FULL = 1 << 20


def large(number: int) -> Batch:
    return Batch.of([number.to_bytes(4, "big") * (FULL // 64)] * 16)


def fill(link: Sender) -> int:
    """Send until it is full; how many messages it took, those that wait in the producer included."""
    for number in range(10_000):
        if not link.send(large(number), 0):
            return number
    pytest.fail("it never fills")


def numbers(items: list[object]) -> list[object]:
    """The numbers of large batches, in place of their frames."""
    return [int.from_bytes(item[0][:4], "big") if isinstance(item, list) else item for item in items]


# What goes in comes out.


def test_batches_and_cuts_arrive_in_order_and_whole(endpoint: str, sender: MakeSender, receiver: MakeReceiver) -> None:
    near, far = sender(endpoint), receiver(endpoint)
    assert near.send(Batch.of([b"x" * 60, b"y" * 1514], vnet=10), epoch=7)
    assert near.send(Cut(8, "prepare"), epoch=7)
    assert near.send(Batch.of([b"z" * 65_000], vnet=12), epoch=7)
    items = arriving(far)
    first, cut, last = next(items), next(items), next(items)
    assert isinstance(first, Batch)
    assert isinstance(last, Batch)
    assert (first.frames(), first.vnet, first.epoch) == ([b"x" * 60, b"y" * 1514], 10, 7)
    assert cut == Cut(8, "prepare")
    assert (last.frames(), last.vnet, last.epoch) == ([b"z" * 65_000], 12, 7)


def test_both_ends_count_what_passed(endpoint: str, sender: MakeSender, receiver: MakeReceiver) -> None:
    near, far = sender(endpoint), receiver(endpoint)
    near.send(Batch.of([b"12345", b"67"]), 0)
    near.send(Cut(1, "prepare"), 0)
    take(far, 2)
    passed = {"messages": 2, "frames": 2, "bytes": 7, "cuts": 1}
    assert near.counters == {**passed, "full": 0, "dropped_frames": 0}
    assert {name: count for name, count in far.counters.items() if count} == passed


def test_a_full_batch_passes(endpoint: str, sender: MakeSender, receiver: MakeReceiver) -> None:
    near, far = sender(endpoint), receiver(endpoint)
    near.send(Batch.of([bytes([number]) * 4096 for number in range(256)]), 0)
    assert take(far, 1) == [[bytes([number]) * 4096 for number in range(256)]]
    assert MAX_BATCH == 256 * 4096


def test_parts_of_the_largest_size_that_decodes_pass(endpoint: str, sender: MakeSender, receiver: MakeReceiver) -> None:
    near, far = sender(endpoint), receiver(endpoint)
    near.send(Batch.of([bytes(65_536)] * (MAX_PART // 65_536)), 0)
    assert take(far, 1) == [[bytes(65_536)] * 32]


def test_a_buffer_may_be_filled_again_once_it_was_sent(
    endpoint: str, sender: MakeSender, receiver: MakeReceiver
) -> None:
    """A TAP port reads its next frames into the same buffer."""
    near, far = sender(endpoint), receiver(endpoint)
    buffer = bytearray(b"a" * 60_000)
    batch = Batch(memoryview(buffer), array("I", [60_000]))
    near.send(batch, 0)
    buffer[:] = b"b" * 60_000
    near.send(batch, 0)
    buffer[:] = bytes(60_000)
    assert take(far, 2) == [[b"a" * 60_000], [b"b" * 60_000]]


def test_on_a_link_of_many_guests_each_producers_messages_are_numbered_for_themselves(
    ipc: str, sender: MakeSender, receiver: MakeReceiver
) -> None:
    there = receiver(ipc, guests=("a", "b"))
    a, b = sender(ipc, guest="a"), sender(ipc, OTHER_BOOT, guest="b")
    took: list[tuple[str | None, object]] = []

    def takes(count: int) -> bool:
        for item in there.receive() or []:
            took.append((there.guest, item.frames() if isinstance(item, Batch) else item))
        return len(took) == count

    for number, link in enumerate((a, b, b, a)):
        link.send(one(str(number)), 0)
        until(lambda number=number: takes(number + 1))  # type: ignore[misc]
    assert took == [("a", [b"0"]), ("b", [b"1"]), ("b", [b"2"]), ("a", [b"3"])]
    a._take_number()
    a.send(one("4"), 0)
    until(lambda: takes(6))
    b.send(one("5"), 0)
    until(lambda: takes(7))
    assert took[4:] == [("a", Gap("lost", 1)), ("a", [b"4"]), ("b", [b"5"])]


@pytest.mark.parametrize("guest", ["c", "", None])
def test_a_guest_that_is_not_served_is_counted_and_leaves_the_others_numbers_alone(
    ipc: str, sender: MakeSender, receiver: MakeReceiver, guest: str | None
) -> None:
    there = receiver(ipc, guests=("a", "b"))
    good, stranger = sender(ipc, guest="a"), sender(ipc, OTHER_BOOT, guest=guest)
    stranger.send(one("x"), 0)
    until(lambda: there.receive() == [])
    good.send(one("0"), 0)
    assert take(there, 1) == [[b"0"]]
    assert rejections(there) == {"guest": 1}


def test_a_gap_that_the_producer_wants_is_seen_at_its_place(
    ipc: str, sender: MakeSender, receiver: MakeReceiver
) -> None:
    """At once, and though messages still wait in the producer."""
    there, link = receiver(ipc), sender(ipc)
    link.send(one("0"), 0)
    link.skip(0)
    assert take(there, 3) == [[b"0"], Gap("lost", 1), []]
    full = sender(ipc, OTHER_BOOT)
    while not full.blocked:
        full.send(large(0), 0)
    full.skip(0)
    full.send(one("behind"), 0)
    seen: list[object] = []

    def arrived() -> bool:
        full.flush()
        seen.extend(item.frames() if isinstance(item, Batch) else item for item in there.receive() or [])
        return seen[-1:] == [[b"behind"]]

    until(arrived)
    assert seen.count(Gap("lost", 1)) == 1
    assert seen[seen.index(Gap("lost", 1)) + 1 :] in ([[], [b"behind"]], [[b"behind"]])


def test_nothing_waits_where_nothing_was_sent(ipc: str, receiver: MakeReceiver) -> None:
    assert receiver(ipc).receive() is None


# Start order and restarts.


def test_the_producer_may_start_first(endpoint: str, sender: MakeSender, receiver: MakeReceiver) -> None:
    near = sender(endpoint)
    near.send(one("early"), 0)
    assert take(receiver(endpoint), 1) == [[b"early"]]


def test_the_consumer_may_start_first(endpoint: str, sender: MakeSender, receiver: MakeReceiver) -> None:
    far = receiver(endpoint)
    sender(endpoint).send(one("late"), 0)
    assert take(far, 1) == [[b"late"]]


def test_a_restarted_consumer_is_told_that_messages_went_before_it(
    endpoint: str, sender: MakeSender, receiver: MakeReceiver
) -> None:
    near, far = sender(endpoint), receiver(endpoint)
    near.send(one("first"), 0)
    take(far, 1)
    far.close()
    again = receiver(endpoint, again=True)
    until(lambda: near.send(one("later"), 0) and bool(again.socket.poll(20)))
    gap, item, *_ = take(again, 2)
    assert gap == Gap("restarted")
    assert item == [b"later"]
    assert again.counters["gaps"] == 1


def test_a_restarted_producer_is_told_by_its_boot_id(endpoint: str, sender: MakeSender, receiver: MakeReceiver) -> None:
    far, near = receiver(endpoint), sender(endpoint)
    near.send(one("first"), 0)
    take(far, 1)
    near.close()
    sender(endpoint, OTHER_BOOT).send(one("second"), 0)
    assert take(far, 2) == [Gap("restarted"), [b"second"]]
    assert (far.counters["gaps"], far.counters["lost_messages"]) == (1, 0)


def test_what_a_closing_producer_had_is_still_delivered(
    endpoint: str, sender: MakeSender, receiver: MakeReceiver
) -> None:
    far, near = receiver(endpoint), sender(endpoint)
    for number in range(30):
        near.send(one(f"frame {number}"), 0)
    PRODUCERS.remove(near)
    closing = threading.Thread(target=near.close)
    closing.start()
    assert take(far, 30) == [[f"frame {number}".encode()] for number in range(30)]
    closing.join()


# Loss.


def test_a_full_link_drops_and_counts_and_the_number_is_used_up(
    endpoint: str, sender: MakeSender, receiver: MakeReceiver
) -> None:
    """So the consumer learns how many messages never came, and where: behind those that waited."""
    near = sender(endpoint, hwm=4)
    taken = fill(near)
    assert near.send(Batch.of([bytes(FULL // 16)] * 16), 0) is False
    assert (near.counters["full"], near.counters["dropped_frames"]) == (2, 32)
    far = receiver(endpoint)
    arrived: list[object] = []

    def drained() -> bool:
        arrived.extend(item.frames() if isinstance(item, Batch) else item for item in far.receive() or [])
        return near.flush() and len(arrived) >= taken

    until(drained)
    assert near.send(large(77), 0)
    assert numbers(arrived) == list(range(taken))
    assert numbers(take(far, 2)) == [Gap("lost", 2), 77]
    assert (far.counters["gaps"], far.counters["lost_messages"]) == (1, 2)
    assert near.counters["messages"] == taken + 1


def test_what_a_full_link_does_not_take_waits_in_order_up_to_a_limit(ipc: str, sender: MakeSender) -> None:
    """16 MiB of it; `blocked` says so."""
    near = sender(ipc, hwm=2)
    assert not near.blocked
    taken = fill(near)
    assert near.blocked
    assert near.counters["messages"] == 2
    assert taken == 2 + MOST_PENDING // FULL


def test_what_waits_is_joined_into_larger_batches(ipc: str, sender: MakeSender, receiver: MakeReceiver) -> None:
    """Of one epoch and one size of header; a cut keeps its place."""
    near = sender(ipc, hwm=1)
    assert near.send(one("taken"), 0)
    for number in range(100):
        near.send(one(f"a{number}"), 0)
    near.send(Cut(1, "commit"), 0)
    for number in range(100):
        near.send(one(f"b{number}"), 1)
    for number in range(100):
        near.send(Batch.of([b"virtio" + bytes(6) + b"c%d" % number], vnet=12), 1)
    assert near.counters["messages"] == 1
    far = receiver(ipc)
    items: list[object] = []

    def drained() -> bool:
        items.extend(far.receive() or [])
        return near.flush() and len(items) >= 5

    until(drained)
    first, a, cut, b, c = items
    assert isinstance(first, Batch)
    assert isinstance(a, Batch)
    assert isinstance(b, Batch)
    assert isinstance(c, Batch)
    assert (a.frames(), a.epoch) == ([b"a%d" % number for number in range(100)], 0)
    assert cut == Cut(1, "commit")
    assert (b.frames(), b.epoch, b.vnet) == ([b"b%d" % number for number in range(100)], 1, 0)
    assert (c.frames(), c.epoch, c.vnet) == ([b"virtio" + bytes(6) + b"c%d" % n for n in range(100)], 1, 12)


def test_what_waits_is_a_copy(ipc: str, sender: MakeSender, receiver: MakeReceiver) -> None:
    near = sender(ipc, hwm=1)
    near.send(one("taken"), 0)
    buffer = bytearray(b"a" * 60)
    batch = Batch(memoryview(buffer), array("I", [60]))
    near.send(batch, 0)
    buffer[:] = b"b" * 60
    near.send(batch, 0)
    batch.lengths[0] = 59
    buffer[:] = bytes(60)
    far = receiver(ipc)
    assert take(far, 1) == [[b"taken"]]
    until(near.flush)
    assert take(far, 1) == [[b"a" * 60, b"b" * 60]]


def test_what_waits_in_a_closing_producer_is_counted(ipc: str, sender: MakeSender) -> None:
    """Every frame that it was given was sent or dropped, and counted as that."""
    near = sender(ipc, hwm=1)
    given = 16 * (fill(near) + 1)
    near.close()
    assert near.counters["frames"] + near.counters["dropped_frames"] == given


def test_messages_lost_on_the_way_are_counted(
    ipc: str, contexts: Callable[[], Context], receiver: MakeReceiver
) -> None:
    far = receiver(ipc)
    push = contexts().socket(zmq.PUSH)
    push.connect(ipc)
    for number in (0, 1, 9, 10):
        push.send_multipart(encode(Message("primary", BOOT, 0, number, one("x"))))
    assert take(far, 5) == [[b"x"], [b"x"], Gap("lost", 7), [b"x"], [b"x"]]
    assert (far.counters["gaps"], far.counters["lost_messages"], far.counters["messages"]) == (1, 7, 4)


# Paths.


def test_a_second_bind_of_a_path_is_refused(ipc: str, receiver: MakeReceiver, sender: MakeSender) -> None:
    """libzmq itself would let the second steal it from the first."""
    far = receiver(ipc)
    with pytest.raises(LinkError, match=rf"{ipc} is already bound by another process; stop it, or choose another"):
        receiver(ipc)
    sender(ipc).send(one("still mine"), 0)
    assert take(far, 1) == [[b"still mine"]]


def test_a_second_bind_of_a_tcp_port_is_refused_with_the_stream_and_a_way_out(receiver: MakeReceiver) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    receiver(endpoint)
    with pytest.raises(LinkError, match=rf"links\.secondary can't bind {endpoint}: .*; choose another endpoint, or"):
        receiver(endpoint, stream="secondary")


def test_a_closed_path_can_be_bound_again(ipc: str, receiver: MakeReceiver, sender: MakeSender) -> None:
    receiver(ipc).close()
    far = receiver(ipc)
    sender(ipc).send(one("x"), 0)
    assert take(far, 1) == [[b"x"]]


def test_a_refused_bind_leaves_no_descriptor_behind(
    ipc: str, contexts: Callable[[], Context], open_files: Callable[[], int]
) -> None:
    context = contexts()
    far = Receiver(context, "primary", ipc)
    before = open_files()
    for _ in range(5):
        with pytest.raises(LinkError):
            Receiver(context, "primary", ipc)
    until(lambda: open_files() <= before)
    far.close()


def test_a_socket_is_its_users_alone(run_dir: Path, receiver: MakeReceiver) -> None:
    path = run_dir / "made" / "here" / "primary"
    receiver(f"ipc://{path}")
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_binding_leaves_the_processs_umask_alone(ipc: str, receiver: MakeReceiver) -> None:
    before = os.umask(0o027)
    try:
        receiver(ipc)
        with pytest.raises(LinkError):
            receiver(ipc)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_folder_that_cannot_be_made_is_named_with_a_way_out(run_dir: Path, receiver: MakeReceiver) -> None:
    (run_dir / "file").write_text("")
    with pytest.raises(LinkError, match=rf"{run_dir}/file/primary.*set `run_dir` to a folder that this user may"):
        receiver(f"ipc://{run_dir}/file/primary")


def test_an_endpoint_that_cannot_be_connected_names_its_stream(sender: MakeSender) -> None:
    with pytest.raises(LinkError, match=r"links\.primary can't connect to tcp://\*:5000"):
        sender("tcp://*:5000")


# Peers that send anything.


def good_then_garbage_then_good(
    ipc: str, sender: MakeSender, receiver: MakeReceiver, send_garbage: Callable[[Receiver], None]
) -> Receiver:
    """A good stream, garbage in its middle, and nothing of the good stream lost."""
    far, near = receiver(ipc), sender(ipc)
    near.send(one("before"), 0)
    assert take(far, 1) == [[b"before"]]
    send_garbage(far)
    near.send(one("after"), 0)
    assert take(far, 1) == [[b"after"]]
    return far


HEADER = msgpack.unpackb(encode(Message("primary", OTHER_BOOT, 0, 0, one("garbage")))[0])
GARBAGE = {
    "parts": [b"garbage"],
    "map": [b"\xc1", b""],
    "version": [msgpack.packb({**HEADER, "v": 2}), b"garbage"],
    "type": [msgpack.packb({**HEADER, "b": "boot id2"}), b"garbage"],
    "stream": [msgpack.packb({**HEADER, "s": "secondary"}), b"garbage"],
    "vnet": [msgpack.packb({**HEADER, "h": 11}), b"garbage"],
    "length": [msgpack.packb(HEADER), b"garbag"],
    "frame": [msgpack.packb({**HEADER, "l": struct.pack("<II", 0, 7)}), b"garbage"],
    "cut": [msgpack.packb({**HEADER, "c": {"epoch": 1, "phase": "commit"}}), b"garbage"],
    "guest": [msgpack.packb({**HEADER, "g": "web-2"}), b"garbage"],
}


def test_a_garbage_peer_is_counted_by_reason_and_the_good_one_is_not_disturbed(
    endpoint: str, sender: MakeSender, receiver: MakeReceiver, contexts: Callable[[], Context]
) -> None:
    far, near = receiver(endpoint, guest="web-1"), sender(endpoint, guest="web-1")
    near.send(one("before"), 0)
    assert take(far, 1) == [[b"before"]]
    push = contexts().socket(zmq.PUSH)
    push.connect(endpoint)
    for parts in GARBAGE.values():
        push.send_multipart(parts)
    push.send_multipart([b"x"] * 1000)
    push.send_multipart([b"", b""])
    wanted = dict.fromkeys(GARBAGE, 1) | {"parts": 2, "map": 2}

    def all_counted() -> bool:
        assert far.receive() in (None, [])
        return far.rejected == len(GARBAGE) + 2

    until(all_counted)
    assert rejections(far) == wanted
    near.send(one("after"), 0)
    assert take(far, 1) == [[b"after"]]
    assert far.counters["gaps"] == 0
    assert far.counters["messages"] == 2


def test_a_rejected_message_says_why(ipc: str, receiver: MakeReceiver, contexts: Callable[[], Context]) -> None:
    far = receiver(ipc)
    push = contexts().socket(zmq.PUSH)
    push.connect(ipc)
    push.send_multipart(GARBAGE["stream"])
    until(lambda: far.receive() == [])
    assert far.last_rejection == "stream 'secondary' instead of 'primary'"


def test_a_message_that_came_twice_is_stale(ipc: str, receiver: MakeReceiver, contexts: Callable[[], Context]) -> None:
    far = receiver(ipc)
    push = contexts().socket(zmq.PUSH)
    push.connect(ipc)
    for number in (0, 1, 0, 1, 2):
        push.send_multipart(encode(Message("primary", BOOT, 0, number, one(str(number)))))
    assert take(far, 3) == [[b"0"], [b"1"], [b"2"]]
    assert rejections(far) == {"stale": 2}


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_over_the_limit_costs_its_sender_the_connection_and_nobody_else(
    ipc: str, sender: MakeSender, receiver: MakeReceiver, contexts: Callable[[], Context], part: int
) -> None:
    context = contexts()
    push = context.socket(zmq.PUSH)
    monitor = push.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    def send_garbage(far: Receiver) -> None:
        parts = [b"", b""]
        parts[part] = bytes(MAX_PART + 1)
        push.connect(ipc)
        push.send_multipart(parts)
        until(lambda: far.receive() in (None, []) and bool(monitor.poll(5)))

    far = good_then_garbage_then_good(ipc, sender, receiver, send_garbage)
    monitor.close()
    assert far.counters["messages"] == 2


@pytest.mark.parametrize(
    "raw", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f" + b"\xff" * 54, bytes(10_000), b"\xff" * 10_000]
)
def test_bytes_that_are_no_zeromq_disturb_nobody(
    ipc: str, sender: MakeSender, receiver: MakeReceiver, raw: bytes
) -> None:
    def send_garbage(far: Receiver) -> None:
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(ipc.removeprefix("ipc://"))
            plain.sendall(raw)

    far = good_then_garbage_then_good(ipc, sender, receiver, send_garbage)
    assert far.counters["messages"] == 2


# Real processes.

PRODUCER = """
import select, signal, sys, zmq
from lockstep.batch import Batch
from lockstep.link.zmq import Sender
endpoint, boot, count, then, direct = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3]), *sys.argv[4:6]
with zmq.Context() as context:
    sender = Sender(context, "primary", endpoint, boot, hwm=1000, direct=direct == "True")
    for number in range(count):
        assert sender.send(Batch.of([b"frame %d" % number]), 0)
    print("sent", flush=True)
    while then == "stay":
        select.select([sender.socket], [], [], None if sender.watched else 0.1)
        sender.flush()
    sender.close()
"""

CONSUMER = """
import sys, zmq
from lockstep.link.zmq import Receiver
context = zmq.Context()
receiver = Receiver(context, "primary", sys.argv[1], direct=sys.argv[2] == "True")
print("bound", flush=True)
while True:
    receiver.socket.poll()
    for item in receiver.receive() or []:
        print(item.frames()[0].decode(), flush=True)
"""


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    made: list[subprocess.Popen[str]] = []

    def make(script: str, *arguments: str) -> subprocess.Popen[str]:
        made.append(subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True))
        return made[-1]

    yield make
    for process in made:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes_speak_in_any_start_order_and_survive_each_others_death(
    endpoint: str, direct: bool, spawn: Callable[..., subprocess.Popen[str]], receiver: MakeReceiver
) -> None:
    producer = spawn(PRODUCER, endpoint, "boot id1", "100", "stay", str(direct))
    assert said(producer) == "sent"
    far = receiver(endpoint)
    assert take(far, 100) == [[b"frame %d" % number] for number in range(100)]
    producer.send_signal(signal.SIGKILL)
    producer.wait(PATIENCE)
    again = spawn(PRODUCER, endpoint, "boot id2", "1", "stay", str(direct))
    assert said(again) == "sent"
    assert take(far, 2) == [Gap("restarted"), [b"frame 0"]]


def test_a_process_that_ends_delivers_what_it_had(
    endpoint: str, direct: bool, spawn: Callable[..., subprocess.Popen[str]], receiver: MakeReceiver
) -> None:
    """As long as its consumer's queue has room for it: on ipc libzmq loses the rest."""
    far = receiver(endpoint)
    producer = spawn(PRODUCER, endpoint, "boot id1", "30", "end", str(direct))
    assert take(far, 30) == [[b"frame %d" % number] for number in range(30)]
    assert producer.wait(PATIENCE) == 0


def test_the_socket_file_of_a_killed_process_is_used_again(
    ipc: str, direct: bool, spawn: Callable[..., subprocess.Popen[str]], sender: MakeSender, receiver: MakeReceiver
) -> None:
    consumer = spawn(CONSUMER, ipc, str(direct))
    assert said(consumer) == "bound"
    near = sender(ipc)
    near.send(one("to the first"), 0)
    if direct:
        assert near.socket.poll(round(PATIENCE * 1000))  # the consumer's greeting
        near.flush()
    assert said(consumer) == "to the first"
    with pytest.raises(LinkError, match="already bound by another process"):
        receiver(ipc)
    consumer.send_signal(signal.SIGKILL)
    consumer.wait(PATIENCE)
    assert Path(ipc.removeprefix("ipc://")).is_socket()
    far = receiver(ipc)
    until(lambda: near.send(one("to the second"), 0) and bool(far.socket.poll(20)))
    assert take(far, 2) == [Gap("restarted"), [b"to the second"]]


def test_what_was_received_in_one_piece_can_be_sent_on_whole_or_in_part(
    run_dir: Path, sender: MakeSender, receiver: MakeReceiver
) -> None:
    """A large part stays where ZeroMQ has put it. Half of its frames are half of them, not all."""
    first, second = f"ipc://{run_dir}/first", f"ipc://{run_dir}/second"
    taking, onward = receiver(first), receiver(second)
    sender(first).send(Batch.of([bytes([at]) * 1000 for at in range(1, 201)]), 0)
    came = next(arriving(taking))
    assert isinstance(came, Batch)
    assert isinstance(came.data, memoryview)
    passing = sender(second)
    passing.send(came, 0)
    passing.send(Batch(came.data[:100_000], came.lengths[:100]), 0)
    whole, half = take(onward, 2)
    assert whole == came.frames() == [bytes([at]) * 1000 for at in range(1, 201)]
    assert half == came.frames()[:100]
