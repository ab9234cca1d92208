"""CURVE: key files, and who gets through a link that leaves the machine."""

from __future__ import annotations

import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zmq

from lockstep.batch import Batch
from lockstep.control import ControlError, Server, request
from lockstep.link.curve import AllowList, generate, load
from lockstep.link.envelope import Message, encode
from lockstep.link.zmq import Curve, LinkError, Receiver, Sender

PATIENCE = 20.0

Context = zmq.Context[zmq.Socket[bytes]]


def keys(server: bytes | None = None) -> Curve:
    public, secret = zmq.curve_keypair()
    return Curve(public, secret, server)


# Key files.


def test_a_new_keys_file_is_its_owners_alone(tmp_path: Path) -> None:
    generate(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_what_was_generated_is_loaded(tmp_path: Path) -> None:
    public = generate(tmp_path / "key")
    pair = load(tmp_path / "key")
    assert (pair.public.decode(), pair.server) == (public, None)
    assert zmq.curve_public(pair.secret).decode() == public
    assert public not in (tmp_path / "key").read_text()


def test_two_keys_differ(tmp_path: Path) -> None:
    assert generate(tmp_path / "one") != generate(tmp_path / "other")


def test_a_key_in_use_is_not_overwritten(tmp_path: Path) -> None:
    generate(tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(FileExistsError):
        generate(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o700 | 0o001])
def test_a_key_that_others_can_read_is_refused_with_a_way_out(tmp_path: Path, mode: int) -> None:
    generate(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(LinkError, match=rf"security\.secret_key = {tmp_path}/key: .*; chmod 600 {tmp_path}/key"):
        load(tmp_path / "key")


def test_a_missing_key_is_named_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=rf"{tmp_path}/key: No such file or directory; make one with `lockstep keygen`"):
        load(tmp_path / "key")


@pytest.mark.parametrize(
    "text", [b"", b"x", b"'" * 40, b"a" * 39, b"a" * 41, b"\xff" * 40, b"a" * 40 + b"\n" + b"a" * 40]
)
def test_a_file_without_a_key_is_named_with_a_way_out(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "key").write_bytes(text)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(LinkError, match=rf"{tmp_path}/key: not a key; make one with `lockstep keygen`"):
        load(tmp_path / "key")


# Links.


@pytest.fixture
def contexts() -> Iterator[Callable[[], Context]]:
    made: list[Context] = []

    def make() -> Context:
        made.append(zmq.Context())
        made[-1].setsockopt(zmq.LINGER, 0)
        return made[-1]

    yield make
    for context in made:
        context.destroy(linger=0)


class Guarded:
    """A consumer on tcp that lets in who is on its list."""

    def __init__(self, context: Context, *allowed: Curve) -> None:
        self.keys = keys()
        self.list = AllowList(context, tuple(peer.public.decode() for peer in allowed))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self.receiver = Receiver(context, "primary", self.endpoint, curve=self.keys)

    def close(self) -> None:
        self.receiver.close()
        self.list.close()

    def next_frames(self) -> list[bytes]:
        """The next message that got through."""
        assert self.receiver.socket.poll(round(PATIENCE * 1000)), "nothing got through"
        items = self.receiver.receive()
        assert items is not None
        (batch,) = items
        assert isinstance(batch, Batch)
        return batch.frames()


@pytest.fixture
def friend() -> Curve:
    return keys()


@pytest.fixture
def guarded(contexts: Callable[[], Context], friend: Curve) -> Iterator[Guarded]:
    with closing(Guarded(contexts(), friend)) as made:
        yield made


@pytest.fixture
def friendly(contexts: Callable[[], Context], friend: Curve, guarded: Guarded) -> Iterator[Sender]:
    towards = Curve(friend.public, friend.secret, guarded.keys.public)
    sender = Sender(contexts(), "primary", guarded.endpoint, b"a friend", curve=towards)
    yield sender
    sender.socket.close(linger=0)


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def intruding(context: Context, endpoint: str, curve: Curve | None) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """A peer that has a perfectly good message to send, and the events of its connection."""
    push = context.socket(zmq.PUSH)
    if curve is not None:
        push.curve_publickey, push.curve_secretkey, push.curve_serverkey = curve.public, curve.secret, curve.server
    monitor = push.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_DISCONNECTED
    )
    push.connect(endpoint)
    push.send_multipart(encode(Message("primary", b"intruder", 0, 0, Batch.of([b"intruder"]))))
    return push, monitor


def turned_away(monitor: zmq.Socket[bytes]) -> bool:
    return bool(monitor.poll(round(PATIENCE * 1000)))


def test_an_allowed_key_passes(guarded: Guarded, friendly: Sender) -> None:
    friendly.send(Batch.of([b"hello"]), 0)
    assert guarded.next_frames() == [b"hello"]
    assert guarded.list.refused == 0


def test_an_unknown_key_gets_nothing_through_and_is_counted(
    guarded: Guarded, friendly: Sender, contexts: Callable[[], Context]
) -> None:
    push, monitor = intruding(contexts(), guarded.endpoint, keys(guarded.keys.public))
    until(lambda: guarded.list.refused > 0)
    assert turned_away(monitor)
    monitor.close()
    push.close()
    friendly.send(Batch.of([b"hello"]), 0)
    assert guarded.next_frames() == [b"hello"]
    assert guarded.receiver.rejected == 0
    assert guarded.receiver.counters["messages"] == 1


def test_a_plain_peer_gets_nothing_through(guarded: Guarded, friendly: Sender, contexts: Callable[[], Context]) -> None:
    _, monitor = intruding(contexts(), guarded.endpoint, None)
    assert turned_away(monitor)
    monitor.close()
    friendly.send(Batch.of([b"hello"]), 0)
    assert guarded.next_frames() == [b"hello"]
    assert guarded.receiver.counters["messages"] == 1


def test_a_peer_that_takes_another_for_the_server_gets_nothing_through(
    guarded: Guarded, friend: Curve, friendly: Sender, contexts: Callable[[], Context]
) -> None:
    """An allowed key, but the wrong key of the server: nobody is fooled by who answers in its place."""
    _, monitor = intruding(contexts(), guarded.endpoint, Curve(friend.public, friend.secret, keys().public))
    assert turned_away(monitor)
    monitor.close()
    friendly.send(Batch.of([b"hello"]), 0)
    assert guarded.next_frames() == [b"hello"]
    assert guarded.receiver.counters["messages"] == 1


def test_a_producer_with_keys_sends_nothing_to_a_consumer_without(
    contexts: Callable[[], Context], friend: Curve, run_dir: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    plain = Receiver(contexts(), "primary", endpoint)
    _, monitor = intruding(contexts(), endpoint, Curve(friend.public, friend.secret, keys().public))
    assert turned_away(monitor)
    monitor.close()
    assert plain.receive() is None
    plain.close()


def test_keys_are_no_matter_on_ipc(contexts: Callable[[], Context], friend: Curve, run_dir: Path) -> None:
    """The file's mode guards it; no handshake could."""
    endpoint = f"ipc://{run_dir}/primary"
    receiver = Receiver(contexts(), "primary", endpoint, curve=keys())
    sender = Sender(contexts(), "primary", endpoint, b"whatever", curve=friend)
    sender.send(Batch.of([b"hello"]), 0)
    assert receiver.socket.poll(round(PATIENCE * 1000))
    assert len(receiver.receive() or []) == 1
    receiver.close()


# The control socket.


@pytest.fixture
def server(contexts: Callable[[], Context], friend: Curve) -> Iterator[tuple[Server, str, Curve, AllowList]]:
    context = contexts()
    own = keys()
    allowed = AllowList(context, (friend.public.decode(),))
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        control, events = (f"tcp://127.0.0.1:{probe.getsockname()[1]}" for probe in (one, other))
    made = Server(context, control, events, own)
    yield made, control, own, allowed
    made.close()
    allowed.close()


def test_a_control_socket_on_tcp_answers_allowed_keys_alone(
    server: tuple[Server, str, Curve, AllowList], friend: Curve
) -> None:
    import threading

    made, control, own, allowed = server
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            if made.socket.poll(20):
                made.serve(lambda op, arguments: {"asked": op})

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert request(control, "status", PATIENCE, curve=Curve(friend.public, friend.secret, own.public)) == {
            "asked": "status"
        }
        for stranger in (keys(own.public), None):
            with pytest.raises(ControlError, match="no answer"):
                request(control, "failover", 0.2, curve=stranger)
    finally:
        done.set()
        thread.join()
    assert made.counters["requests"] == 1
    assert allowed.refused > 0
