"""The short way through a link and the careful one: the same results, counters and bytes.

Where nothing is compiled there is the careful way alone, and it is held against itself.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.batch import Batch
from lockstep.link import zmq as links
from lockstep.link.envelope import Encoder
from lockstep.link.libzmq import usable
from lockstep.link.zmq import LARGE, Receiver, Sender
from lockstep.streams import Cut, Gap

PATIENCE = 20_000
BOOTS = (b"boot id1", b"boot id2")
GUESTS = (None, "web-1", "web-2")


@pytest.fixture(scope="module")
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


#: Part 1 and frames of small messages, many of which belong together; some spoiled.
@st.composite
def messages(draw: st.DrawFn) -> list[bytes]:
    encode = Encoder("primary", draw(st.sampled_from(BOOTS)), draw(st.sampled_from(GUESTS))).encode
    item: Batch | Cut = Cut(1, "prepare")
    if draw(st.integers(0, 5)):
        vnet = draw(st.sampled_from([0, 10, 12]))
        item = Batch.of(draw(st.lists(st.binary(min_size=13, max_size=20), max_size=3)), vnet)
    parts = [bytes(part) for part in encode(item, draw(st.integers(0, 2)), draw(st.integers(0, 3)))]
    kind = draw(st.integers(0, 11))
    if kind == 0:
        at = draw(st.integers(0, len(parts[0]) - 1))
        parts[0] = parts[0][:at] + draw(st.binary(min_size=1, max_size=1)) + parts[0][at + 1 :]
    elif kind == 1:
        parts[1] += b"x"
    elif kind == 2:
        parts = parts[: draw(st.integers(1, 2))] + [b"more"] * draw(st.integers(0, 2))
    elif kind == 3:
        parts = draw(st.lists(st.binary(max_size=40), min_size=1, max_size=3))
    elif kind == 4:
        parts = [bytes(part) for part in encode(Batch.of([b"x" * draw(st.integers(LARGE - 1, LARGE + 1))]), 0, 0)]
    return parts


def shown(items: list[Batch | Cut | Gap] | None) -> Any:
    assert items is not None
    return [(i.frames(), i.vnet, i.epoch, i.stable) if isinstance(i, Batch) else i for i in items]


class Both:
    """Two receivers of the same messages: one may take the short way, the other may not."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path, **settings: Any) -> None:
        self.pushes, self.receivers = [], []
        for name, short in (("short", usable), ("careful", lambda socket: False)):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(links, "usable", short)
                endpoint = f"ipc://{folder}/{name}"
                self.receivers.append(Receiver(context, "primary", endpoint, **settings))
            self.pushes.append(context.socket(zmq.PUSH))
            self.pushes[-1].connect(endpoint)

    def take(self, parts: list[bytes]) -> list[Any]:
        took = []
        for push, receiver in zip(self.pushes, self.receivers, strict=True):
            push.send_multipart(parts)
            assert receiver.socket.poll(PATIENCE)
            items = shown(receiver.receive())
            took.append((items, receiver.guest, receiver.rejected, receiver.last_rejection, receiver.counters))
            assert receiver.receive() is None
        return took

    def close(self) -> None:
        for end in (*self.pushes, *self.receivers):
            end.close()


@settings(max_examples=150, deadline=None)
@given(sent=st.lists(messages(), min_size=1, max_size=8), guest=st.sampled_from(GUESTS), many=st.booleans())
def test_both_ways_take_the_same_from_any_messages(
    sent: list[list[bytes]], guest: str | None, many: bool, context: zmq.Context[zmq.Socket[bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("links", numbered=True)
    both = Both(context, folder, **({"guests": ("web-1", "web-2")} if many else {"guest": guest}))
    try:
        for parts in sent:
            short, careful = both.take(parts)
            assert short == careful
    finally:
        both.close()


def test_the_common_case_takes_the_short_way(run_dir: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """From the second message of a producer on nothing is decoded with care."""
    if not _compiled():
        assert not usable(context)
        return
    both = Both(context, run_dir)
    with pytest.MonkeyPatch.context() as patched:
        decoded: list[object] = []
        decode = links.decode
        patched.setattr(links, "decode", lambda *args: decoded.append(args) or decode(*args))
        for number in range(4):
            header, frames = Encoder("primary", BOOTS[0]).encode(Batch.of([b"one frame"]), 0, number)
            both.take([header, bytes(frames)])
    both.close()
    assert len(decoded) == 1 + 4


def _compiled() -> bool:
    from lockstep import build

    return "lockstep.link.libzmq" in build.compiled()


def test_a_closed_socket_raises_as_pyzmq_does(run_dir: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    receiver = Receiver(context, "primary", f"ipc://{run_dir}/primary")
    receiver.close()
    with pytest.raises(zmq.ZMQError) as raised:
        receiver.receive()
    assert raised.value.errno == zmq.ENOTSOCK


BATCHES = [
    Batch(b"", array("I")),
    Batch.of([b"a frame", b"another"]),
    Batch.of([b"vnet header and frame"], 10),
    Batch.of([b"x" * 60] * 300, 12),
    Batch(memoryview(bytearray(b"lent by a port")), array("I", [14])),
    Batch(memoryview(bytearray(LARGE)), array("I", [LARGE])),
    Batch(bytes(LARGE), array("I", [LARGE])),
    Batch(memoryview(bytes(LARGE + 9))[9:], array("I", [LARGE])),
]


def test_both_ways_send_the_same_bytes(run_dir: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    sent: list[list[list[bytes]]] = []
    for way in (usable, lambda socket: False):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(links, "usable", way)
            there = context.socket(zmq.PULL)
            there.bind(f"ipc://{run_dir}/{len(sent)}")
            here = Sender(context, "primary", f"ipc://{run_dir}/{len(sent)}", BOOTS[0], guest="web-1")
        for epoch, item in itertools.product((0, 1 << 40), (*BATCHES, Cut(3, "abort"))):
            assert here.send(item, epoch)
        wanted = 2 * (len(BATCHES) + 1)
        sent.append([])
        while len(sent[-1]) < wanted:
            assert there.poll(PATIENCE)
            sent[-1].append(there.recv_multipart())
        assert here.counters["messages"] == wanted
        here.close()
        there.close()
    assert sent[0] == sent[1]
