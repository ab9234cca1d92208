"""The control socket and the events, over real sockets: who asks rightly, and who sends anything."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from lockstep.control import (
    MAX_REQUEST,
    ControlError,
    ControlRefused,
    Listener,
    Server,
    request,
    unpacked_map,
)
from lockstep.link.zmq import LinkError
from lockstep.streams import Event

#: Milliseconds until a wait is in vain.
PATIENCE = 20_000

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


def handler(op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    if op == "refuse":
        raise ControlRefused("not today")
    return {"op_was": op, "arguments": dict(arguments)}


@pytest.fixture
def context() -> Iterator[Context]:
    made: Context = zmq.Context()
    made.setsockopt(zmq.LINGER, 0)
    yield made
    made.destroy(linger=0)


@pytest.fixture
def control(run_dir: Path) -> str:
    return f"ipc://{run_dir}/mirror.control"


@pytest.fixture
def events(run_dir: Path) -> str:
    return f"ipc://{run_dir}/mirror.events"


@pytest.fixture
def server(context: Context, control: str, events: str) -> Iterator[Server]:
    with closing(Server(context, control, events)) as made:
        yield made


@pytest.fixture
def client(context: Context, control: str) -> Callable[[int], Socket]:
    """A socket of one kind, connected to the control socket."""

    def make(kind: int) -> Socket:
        made = context.socket(kind)
        made.connect(control)
        return made

    return make


def serve(server: Server) -> None:
    """Answer the next request."""
    assert server.socket.poll(PATIENCE), "no request came"
    assert server.serve(handler)


def answer(asker: Socket) -> dict[str, Any]:
    assert asker.poll(PATIENCE), "no answer came"
    said: dict[str, Any] = msgpack.unpackb(asker.recv_multipart()[-1])
    return said


@contextmanager
def serving(server: Server) -> Iterator[None]:
    """Answer requests in a thread of its own, as a service would."""
    done = threading.Event()

    def loop() -> None:
        while not done.is_set():
            if server.socket.poll(10):
                server.serve(handler)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# Requests.


@pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER])
def test_a_req_and_a_dealer_are_answered(server: Server, client: Callable[[int], Socket], kind: int) -> None:
    asker = client(kind)
    asker.send(msgpack.packb({"op": "cut", "epoch": 1}))
    serve(server)
    assert answer(asker) == {"ok": True, "op_was": "cut", "arguments": {"epoch": 1}}
    assert server.counters == {"requests": 1, "refused": 0, "garbage": 0, "events": 0}


def test_a_dealer_with_an_empty_delimiter_gets_it_back(server: Server, client: Callable[[int], Socket]) -> None:
    asker = client(zmq.DEALER)
    asker.send_multipart([b"", msgpack.packb({"op": "status"})])
    serve(server)
    assert asker.poll(PATIENCE)
    delimiter, said = asker.recv_multipart()
    assert delimiter == b""
    assert msgpack.unpackb(said)["ok"] is True


def test_nothing_is_served_where_nobody_asked(server: Server) -> None:
    assert server.serve(handler) is False


def test_a_refused_request_says_no_and_why_and_is_counted(server: Server, client: Callable[[int], Socket]) -> None:
    asker = client(zmq.REQ)
    asker.send(msgpack.packb({"op": "refuse"}))
    serve(server)
    assert answer(asker) == {"ok": False, "error": "not today"}
    assert server.counters == {"requests": 1, "refused": 1, "garbage": 0, "events": 0}


def test_two_askers_get_their_own_answers(server: Server, client: Callable[[int], Socket]) -> None:
    one, other = client(zmq.REQ), client(zmq.DEALER)
    one.send(msgpack.packb({"op": "one"}))
    other.send(msgpack.packb({"op": "other"}))
    serve(server)
    serve(server)
    assert (answer(one)["op_was"], answer(other)["op_was"]) == ("one", "other")


def test_a_bug_in_a_handler_is_not_an_answer(server: Server, client: Callable[[int], Socket]) -> None:
    """Our own fault stops the process; only a refusal is said to the asker."""

    def broken(op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError

    asker = client(zmq.REQ)
    asker.send(msgpack.packb({"op": "status"}))
    assert server.socket.poll(PATIENCE)
    with pytest.raises(ZeroDivisionError):
        server.serve(broken)


GARBAGE = [
    b"",
    b"\xc1",
    b"garbage",
    random.Random(1).randbytes(500),
    msgpack.packb("status"),
    msgpack.packb(["op", "status"]),
    msgpack.packb({}),
    msgpack.packb({"epoch": 1}),
    msgpack.packb({"op": None}),
    msgpack.packb({"op": 1}),
    msgpack.packb({"op": b"status"}),
    msgpack.packb({"op": ["status"]}),
    msgpack.packb({"op": "status", 7: 1}),
    msgpack.packb({"op": "status", b"raw": 1}),
    msgpack.packb({"op": "status"}) + b"\x00",
    msgpack.packb({"op": "status"})[:-1],
    b"\x91" * 60_000,
    b"\xdf\xff\xff\xff\xff",
]


@pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER])
@pytest.mark.parametrize("body", GARBAGE, ids=lambda body: body[:12].hex())
def test_garbage_is_answered_and_counted(
    server: Server, client: Callable[[int], Socket], kind: int, body: bytes
) -> None:
    asker = client(kind)
    asker.send(body)
    serve(server)
    assert answer(asker) == {"ok": False, "error": "a request is one msgpack map with a string `op`"}
    assert server.counters == {"requests": 1, "refused": 0, "garbage": 1, "events": 0}


def test_a_request_of_a_thousand_parts_is_answered_and_counted(server: Server, client: Callable[[int], Socket]) -> None:
    asker = client(zmq.DEALER)
    asker.send_multipart([b"x"] * 999 + [msgpack.packb({"op": "status"})])
    serve(server)
    assert answer(asker)["ok"] is False
    assert server.counters["garbage"] == 1


def test_who_asked_and_left_disturbs_nobody(server: Server, client: Callable[[int], Socket], control: str) -> None:
    gone, patient = client(zmq.DEALER), client(zmq.REQ)
    gone.send(msgpack.packb({"op": "status"}))
    assert server.socket.poll(PATIENCE)
    gone.close(linger=0)
    serve(server)
    patient.send(msgpack.packb({"op": "status"}))
    serve(server)
    assert answer(patient)["ok"] is True


def test_who_asks_and_never_reads_does_not_block_the_server(server: Server, client: Callable[[int], Socket]) -> None:
    """Beyond its high-water mark its answers are lost, and the next asker gets one."""
    deaf = client(zmq.DEALER)
    deaf.setsockopt(zmq.RCVHWM, 1)
    for _ in range(3000):
        deaf.send(msgpack.packb({"op": "status", "padding": "x" * 1000}))
        serve(server)
    patient = client(zmq.REQ)
    patient.send(msgpack.packb({"op": "status"}))
    serve(server)
    assert answer(patient)["ok"] is True


def test_a_request_over_the_limit_costs_its_sender_the_connection(
    server: Server, client: Callable[[int], Socket]
) -> None:
    huge, patient = client(zmq.DEALER), client(zmq.REQ)
    monitor = huge.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    huge.send(bytes(MAX_REQUEST + 1))
    assert monitor.poll(PATIENCE), "it was taken"
    monitor.close()
    patient.send(msgpack.packb({"op": "status"}))
    serve(server)
    assert answer(patient)["ok"] is True
    assert server.counters == {"requests": 1, "refused": 0, "garbage": 0, "events": 0}


def test_a_request_of_the_largest_size_is_served(server: Server, client: Callable[[int], Socket]) -> None:
    asker = client(zmq.REQ)
    body = msgpack.packb({"op": "x", "padding": bytes(MAX_REQUEST - 17)})
    assert len(body) == MAX_REQUEST
    asker.send(body)
    serve(server)
    assert server.counters["garbage"] == 0


def test_bytes_that_are_no_zeromq_disturb_nobody(server: Server, client: Callable[[int], Socket], control: str) -> None:
    """Some of it libzmq takes for a request in the first version of its protocol: that is garbage like any other."""
    for raw in (b"GET / HTTP/1.1\r\n\r\n", random.Random(1).randbytes(4096), bytes(4096)):
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(control.removeprefix("ipc://"))
            plain.sendall(raw)
    asker = client(zmq.REQ)
    asker.send(msgpack.packb({"op": "status"}))
    with serving(server):
        assert answer(asker)["ok"] is True
    assert server.counters["garbage"] == server.counters["requests"] - 1


def test_a_second_server_on_the_same_paths_is_refused_and_holds_nothing(
    context: Context, run_dir: Path, server: Server, control: str, events: str
) -> None:
    free = f"ipc://{run_dir}/free"
    with pytest.raises(LinkError, match="already bound"):
        Server(context, control, free)
    with pytest.raises(LinkError, match="already bound"):
        Server(context, free, events)
    Server(context, free, f"{free}.events").close()


# `request`.


def test_request_gives_the_answer_without_ok(server: Server, control: str) -> None:
    with serving(server):
        assert request(control, "cut", epoch=3, phase="prepare") == {
            "op_was": "cut",
            "arguments": {"epoch": 3, "phase": "prepare"},
        }


def test_request_raises_what_the_service_refuses(server: Server, control: str) -> None:
    with serving(server), pytest.raises(ControlRefused, match=r"^not today$"):
        request(control, "refuse")


def test_request_raises_where_nobody_answers(control: str) -> None:
    with pytest.raises(ControlError, match=rf"no answer from {control} within 0\.1 s; is the service running\?"):
        request(control, "status", 0.1)


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        (b"\xc1", ControlError, "answered something else than a map"),
        (msgpack.packb([1]), ControlError, "answered something else than a map"),
        (msgpack.packb({}), ControlRefused, "refused without a reason"),
        (msgpack.packb({"ok": 1}), ControlRefused, "refused without a reason"),
        (msgpack.packb({"ok": "true", "error": 7}), ControlRefused, "7"),
    ],
)
def test_request_takes_ok_true_alone_for_a_yes(
    context: Context, control: str, body: bytes, error: type[Exception], text: str
) -> None:
    router = context.socket(zmq.ROUTER)
    router.bind(control)

    def reply() -> None:
        route, _ = router.recv_multipart()
        router.send_multipart([route, body])

    thread = threading.Thread(target=reply)
    thread.start()
    with pytest.raises(error, match=text):
        request(control, "status", PATIENCE / 1000)
    thread.join()


# Events.


@contextmanager
def listening(context: Context, server: Server, *endpoints: str) -> Iterator[Listener]:
    """A listener that is known to hear the server."""
    with closing(Listener(context, endpoints)) as listener:
        heard = listener.sockets[-1]
        while not heard.poll(10):
            server.publish(Event("hello"))
        server.publish(Event("ready"))
        while listener.receive(heard) != [Event("ready", {})]:
            pass
        yield listener


def test_a_published_event_is_heard(context: Context, server: Server, events: str) -> None:
    with listening(context, server, events) as listener:
        before = server.counters["events"]
        server.publish(Event("divergence", {"flow": "a b", "key": b"\0\1", "offset": None, "epoch": 3}))
        assert listener.sockets[0].poll(PATIENCE)
        heard = listener.receive(listener.sockets[0])
        assert heard == [Event("divergence", {"flow": "a b", "key": b"\0\1", "offset": None, "epoch": 3})]
        assert listener.receive(listener.sockets[0]) is None
        assert server.counters["events"] == before + 1


def test_an_event_is_its_name_and_a_map(context: Context, server: Server, events: str) -> None:
    """As docs/links.md has it, for listeners that are not ours."""
    raw = context.socket(zmq.SUB)
    raw.setsockopt(zmq.SUBSCRIBE, b"cut")
    raw.connect(events)
    while not raw.poll(10):
        server.publish(Event("other", {}))
        server.publish(Event("cut", {"epoch": 1, "phase": "commit"}))
    name, fields = raw.recv_multipart()
    assert (name, msgpack.unpackb(fields)) == (b"cut", {"epoch": 1, "phase": "commit"})


def test_events_that_nobody_hears_cost_nothing(server: Server) -> None:
    for _ in range(5000):
        server.publish(Event("gap", {"stream": "primary"}))
    assert server.counters["events"] == 5000


def test_a_listener_may_start_before_who_it_listens_to(context: Context, control: str, events: str) -> None:
    with closing(Listener(context, [events])) as listener, closing(Server(context, control, events)) as server:
        while not listener.sockets[0].poll(10):
            server.publish(Event("hello"))
        assert listener.receive(listener.sockets[0]) == [Event("hello", {})]


def test_garbage_is_counted_and_the_next_event_is_heard(
    context: Context, server: Server, events: str, run_dir: Path
) -> None:
    """A listener hears anything from the endpoints that it was given."""
    endpoint = f"ipc://{run_dir}/garbage"
    publisher = context.socket(zmq.XPUB)
    publisher.bind(endpoint)
    with listening(context, server, endpoint, events) as listener:
        assert publisher.poll(PATIENCE)  # the subscription came
        garbage = [
            [b"alone"],
            [b""],
            [b"three", msgpack.packb({}), b""],
            [b"cut", b"\xc1"],
            [b"cut", msgpack.packb([1])],
            [b"cut", msgpack.packb({1: 2})],
            [b"x"] * 1000,
        ]
        for parts in garbage:
            publisher.send_multipart(parts)
        publisher.send_multipart([b"\xff\xfe", msgpack.packb({"fine": True})])
        assert listener.sockets[0].poll(PATIENCE)
        heard: list[Event] | None = None
        while not heard:
            heard = listener.receive(listener.sockets[0])
        assert heard == [Event("\ufffd\ufffd", {"fine": True})]
        assert listener.garbage == len(garbage)
        server.publish(Event("after"))
        assert listener.sockets[1].poll(PATIENCE)
        assert listener.receive(listener.sockets[1]) == [Event("after", {})]


# What is a map.


@given(st.binary(max_size=100))
def test_any_bytes_are_a_map_with_names_or_nothing(body: bytes) -> None:
    found = unpacked_map(body)
    assert found is None or all(isinstance(name, str) for name in found)


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()


@given(st.dictionaries(st.text(), plain))
def test_a_map_is_itself(value: dict[str, Any]) -> None:
    assert unpacked_map(msgpack.packb(value)) == value
