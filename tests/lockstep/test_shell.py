"""The one loop, with a fake core in it: what it is given, where its outputs go, who may ask, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import pytest
import structlog
import zmq
from packets import udp

from lockstep import config
from lockstep.batch import Batch
from lockstep.capture.base import Port, PortError
from lockstep.capture.memory import MemoryPort, pair
from lockstep.config import Log, Node, Service
from lockstep.control import ControlError, Listener, request
from lockstep.link.curve import generate
from lockstep.link.zmq import Curve, LinkError, Receiver, Sender
from lockstep.log import configure
from lockstep.service import core_of
from lockstep.shell import MOST_PUT_OFF, Shell
from lockstep.streams import EVENTS, CommandError, Core, Cut, Event, Gap, Item, Output

#: Seconds until a wait is in vain.
PATIENCE = 20.0

Context = zmq.Context[zmq.Socket[bytes]]


class FakeCore:
    """Notes what it is given, and gives what the test says: `answers` by stream, `due` at a tick."""

    def __init__(self) -> None:
        self.epoch = 0
        self.counters = {"pushes": 0}
        self.pushed: list[tuple[str, object]] = []
        self.answers: dict[str, Callable[[Item], Iterable[Output]]] = {}
        self.deadline: float | None = None
        self.ticks: list[float] = []
        self.heard: float | None = None
        self.due: list[Output] = []
        self.when_ticked: Callable[[], object] = lambda: None
        self.lost: list[tuple[str, Batch | Cut]] = []
        self.reloaded: Node | None = None

    def push(self, stream: str, item: Item, now: float) -> Iterable[Output]:
        self.counters["pushes"] += 1
        self.pushed.append((stream, item.frames() if isinstance(item, Batch) else item))
        return self.answers.get(stream, lambda item: [])(item)

    def tick(self, now: float, heard: float | None = None) -> Iterable[Output]:
        self.ticks.append(now)
        self.heard = heard
        self.deadline = None
        self.when_ticked()
        return self.due

    def next_deadline(self) -> float | None:
        return self.deadline

    def command(self, op: str, arguments: Mapping[str, Any], now: float) -> tuple[dict[str, Any], Iterable[Output]]:
        if op != "say":
            raise CommandError(f"the fake has no `{op}`")
        return {"said": arguments["text"]}, [("network", Batch.of([arguments["text"].encode()]))]

    def reload(self, node: Node) -> None:
        self.reloaded = node

    def status(self) -> dict[str, Any]:
        return {"mood": "fine"}

    def undelivered(self, stream: str, item: Batch | Cut, now: float) -> Iterable[Output]:
        self.lost.append((stream, item))
        return [Event("lost", {"stream": stream})]


def test_the_fake_is_a_core() -> None:
    assert isinstance(FakeCore(), Core)


class Stage:
    """A shell with fake cores, and the other ends of their ports."""

    def __init__(self, node: Node, *services: Service, **more: Any) -> None:
        self.node = node
        self.cores = {service: FakeCore() for service in services}
        self.far: dict[str, MemoryPort] = {}
        near: dict[str, Port] = dict(more.pop("ports", {}))
        for service in services:
            for name in config.SERVICES[service].ports:
                if f"{service}.{name}" not in near:
                    near[f"{service}.{name}"], self.far[name] = pair(f"{service}.{name}")
        self.near = near
        self.shell = Shell(node, self.cores, ports=near, **more)  # type: ignore[arg-type]

    def until(self, done: Callable[[], object]) -> None:
        """Step until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, "stepped in vain"
            self.shell.step(0.01)

    def ask(self, service: Service, op: str, **arguments: Any) -> dict[str, Any]:
        """A request, served by stepping."""
        with zmq.Context() as context, context.socket(zmq.REQ) as asker:
            asker.setsockopt(zmq.LINGER, 0)
            asker.connect(self.node.control_endpoint(service))
            asker.send(msgpack.packb({"op": op, **arguments}))
            self.until(lambda: asker.poll(0))
            answer: dict[str, Any] = msgpack.unpackb(asker.recv())
            return answer


@pytest.fixture
def node(run_dir: Path) -> Node:
    return Node.model_validate({"run_dir": str(run_dir), "node": "here"})


@pytest.fixture
def stage(node: Node) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(*services: Service, node: Node = node, **more: Any) -> Stage:
        made.append(Stage(node, *services, **more))
        return made[-1]

    yield make
    for one in made:
        one.shell.close()
        for port in one.far.values():
            port.close()


@pytest.fixture
def context() -> Iterator[Context]:
    made: Context = zmq.Context()
    made.setsockopt(zmq.LINGER, 0)
    yield made
    made.destroy(linger=0)


@pytest.fixture
def sender(context: Context, node: Node) -> Callable[..., Sender]:
    def make(stream: str, boot: bytes = b"sender#1") -> Sender:
        return Sender(context, stream, node.link(stream).endpoint, boot)

    return make


@pytest.fixture
def receiver(context: Context, node: Node) -> Iterator[Callable[[str], Receiver]]:
    made: list[Receiver] = []

    def make(stream: str) -> Receiver:
        made.append(Receiver(context, stream, node.link(stream).endpoint))
        return made[-1]

    yield make
    for one in made:
        one.close()


def one(text: str) -> Batch:
    return Batch.of([text.encode()])


# In.


def test_what_a_port_reads_is_pushed_under_the_ports_name(stage: Callable[..., Stage]) -> None:
    here = stage("mirror")
    here.far["network"].write(one("from the network"))
    here.far["guest"].write(Batch.of([b"from", b"the guest"]))
    core = here.cores["mirror"]
    here.until(lambda: len(core.pushed) == 2)
    assert sorted(core.pushed) == [("guest", [b"from", b"the guest"]), ("network", [b"from the network"])]


def test_what_a_link_brings_is_pushed_under_the_streams_name(
    stage: Callable[..., Stage], sender: Callable[..., Sender]
) -> None:
    here, there = stage("mirror"), sender("released")
    there.send(one("a frame"), 3)
    there.send(Cut(4, "commit"), 3)
    core = here.cores["mirror"]
    here.until(lambda: len(core.pushed) == 2)
    assert core.pushed == [("released", [b"a frame"]), ("released", Cut(4, "commit"))]


def test_a_gap_is_pushed_in_front_of_what_came_behind_it(
    stage: Callable[..., Stage], sender: Callable[..., Sender]
) -> None:
    here = stage("mirror")
    core = here.cores["mirror"]
    sender("released").send(one("of the first"), 0)
    here.until(lambda: core.pushed)
    sender("released", b"sender#2").send(one("of the second"), 0)
    here.until(lambda: len(core.pushed) == 3)
    assert core.pushed[1:] == [("released", Gap("restarted")), ("released", [b"of the second"])]


def test_a_refused_message_reaches_no_core(
    stage: Callable[..., Stage], context: Context, sender: Callable[..., Sender], node: Node
) -> None:
    here = stage("mirror")
    push = context.socket(zmq.PUSH)
    push.connect(node.link("released").endpoint)
    push.send_multipart([b"garbage", b""])

    def refused() -> int:
        count: int = here.ask("mirror", "status")["links"]["released"]["rejected_map"]
        return count

    here.until(refused)
    assert refused() == 1
    assert here.cores["mirror"].pushed == []


def test_now_is_monotonic_seconds(stage: Callable[..., Stage]) -> None:
    here = stage("comparer")
    core = here.cores["comparer"]
    before = time.monotonic()
    core.deadline = before
    here.until(lambda: core.ticks)
    assert before <= core.ticks[0] <= time.monotonic()


# Out.


def test_an_output_for_a_port_is_written_to_it(stage: Callable[..., Stage]) -> None:
    here = stage("mirror")
    here.cores["mirror"].answers["network"] = lambda item: [("guest", item), ("network", one("an answer"))]
    here.far["network"].write(one("a question"))
    here.until(lambda: here.cores["mirror"].pushed)
    to_guest, to_network = here.far["guest"].read(), here.far["network"].read()
    assert to_guest is not None
    assert to_network is not None
    assert (to_guest.frames(), to_network.frames()) == ([b"a question"], [b"an answer"])


def test_an_output_for_a_stream_is_sent_with_the_cores_epoch(
    stage: Callable[..., Stage], receiver: Callable[[str], Receiver]
) -> None:
    here, there = stage("mirror"), receiver("primary")
    core = here.cores["mirror"]
    core.epoch = 41
    core.answers["guest"] = lambda item: [("primary", item), ("primary", Cut(42, "prepare"))]
    here.far["guest"].write(one("a frame"))
    here.until(lambda: there.socket.poll(0))
    (batch,) = there.receive() or []
    assert isinstance(batch, Batch)
    assert (batch.frames(), batch.epoch) == ([b"a frame"], 41)
    here.until(lambda: there.socket.poll(0))
    assert there.receive() == [Cut(42, "prepare")]


def test_outputs_are_carried_out_in_order(stage: Callable[..., Stage], receiver: Callable[[str], Receiver]) -> None:
    here, there = stage("mirror"), receiver("primary")
    core = here.cores["mirror"]
    core.answers["guest"] = lambda item: [("primary", one(str(number))) for number in range(200)]
    here.far["guest"].write(one("go"))
    arrived: list[bytes] = []

    def all_there() -> bool:
        for item in there.receive() or []:
            assert isinstance(item, Batch)
            arrived.extend(item.frames())
        return len(arrived) == 200

    here.until(all_there)
    assert arrived == [str(number).encode() for number in range(200)]


@pytest.mark.parametrize("output", [("nowhere", one("x")), ("released", one("x")), ("network", Cut(1, "commit"))])
def test_an_output_for_what_is_not_wired_is_a_bug_that_stops_the_process(
    stage: Callable[..., Stage], output: Output
) -> None:
    here = stage("mirror")
    here.cores["mirror"].answers["network"] = lambda item: [output]
    here.far["network"].write(one("go"))
    with pytest.raises(AssertionError, match="not wired"):
        here.until(lambda: False)


def test_a_full_link_tells_the_core_and_what_waits_is_sent_when_there_is_room(
    stage: Callable[..., Stage], receiver: Callable[[str], Receiver], node: Node, context: Context
) -> None:
    """Nothing else has to happen for it: the loop itself waits for the socket."""
    here = stage("mirror")
    core = here.cores["mirror"]
    core.answers["guest"] = lambda item: [("primary", Batch.of([bytes(1 << 16)] * 16)) for _ in range(64)]
    here.far["guest"].write(one("go"))
    here.until(lambda: core.lost)
    assert {stream for stream, _ in core.lost} == {"primary"}
    assert here.ask("mirror", "status")["links"]["primary"]["full"] == len(core.lost)
    there = receiver("primary")
    arrived = 0

    def all_there() -> bool:
        nonlocal arrived
        arrived += len([item for item in there.receive() or [] if isinstance(item, Batch)])
        return arrived == 64 - len(core.lost)

    here.until(all_there)
    assert 16 < arrived < 64


def test_what_a_core_says_to_a_loss_is_carried_out_too(stage: Callable[..., Stage]) -> None:
    here = stage("mirror")
    core = here.cores["mirror"]
    core.answers["guest"] = lambda item: [("primary", Batch.of([bytes(1 << 16)] * 16)) for _ in range(64)]
    here.far["guest"].write(one("go"))
    here.until(lambda: core.lost)
    assert here.ask("mirror", "status")["control"]["events"] == len(core.lost)


# Several cores in one shell.


def test_a_stream_between_two_cores_of_one_shell_is_no_socket(stage: Callable[..., Stage], run_dir: Path) -> None:
    here = stage("redirector", "rewriter")
    names = {path.name for path in run_dir.iterdir()}
    assert "ingress" in names
    assert not names & {"to_guest", "from_guest"}
    here.cores["redirector"].answers["uplink"] = lambda item: [("to_guest", item), ("to_guest", Cut(1, "commit"))]
    here.far["uplink"].write(one("a frame"))
    here.until(lambda: here.cores["rewriter"].pushed)
    assert here.cores["rewriter"].pushed == [("to_guest", [b"a frame"]), ("to_guest", Cut(1, "commit"))]


def test_a_batch_between_two_cores_carries_the_producers_epoch(stage: Callable[..., Stage]) -> None:
    here = stage("redirector", "rewriter")
    here.cores["redirector"].epoch = 7
    epochs = []
    here.cores["redirector"].answers["uplink"] = lambda item: [("to_guest", item)]
    here.cores["rewriter"].answers["to_guest"] = lambda item: epochs.append(item.epoch) or []  # type: ignore[func-returns-value, union-attr]
    here.far["uplink"].write(one("x"))
    here.until(lambda: epochs)
    assert epochs == [7]


def test_what_goes_round_between_two_cores_comes_back(stage: Callable[..., Stage]) -> None:
    here = stage("redirector", "rewriter")
    here.cores["redirector"].answers["uplink"] = lambda item: [("to_guest", one("1")), ("to_guest", one("2"))]
    here.cores["rewriter"].answers["to_guest"] = lambda item: [("from_guest", item), ("guest", item)]
    here.far["uplink"].write(one("go"))
    here.until(lambda: len(here.cores["redirector"].pushed) == 3)
    assert here.cores["redirector"].pushed[1:] == [("from_guest", [b"1"]), ("from_guest", [b"2"])]
    batches = here.far["guest"].read(), here.far["guest"].read()
    assert [batch.frames() for batch in batches if batch] == [[b"1"], [b"2"]]


def test_outputs_of_a_tick_reach_the_other_core(stage: Callable[..., Stage]) -> None:
    here = stage("redirector", "rewriter")
    here.cores["redirector"].due = [("to_guest", one("due"))]
    here.cores["redirector"].deadline = 0.0
    here.until(lambda: here.cores["rewriter"].pushed)
    assert here.cores["rewriter"].pushed == [("to_guest", [b"due"])]


def test_what_a_command_gives_comes_before_what_arrives_after_it(stage: Callable[..., Stage]) -> None:
    """A cut lies where it was asked for, though a frame waits at a port already."""
    here = stage("mirror", "comparer")
    mirror = here.cores["mirror"]
    mirror.command = lambda op, arguments, now: ({}, [("primary", Cut(1, "prepare"))])  # type: ignore[method-assign]
    mirror.answers["guest"] = lambda item: [("primary", item)]
    answered = here.ask("mirror", "cut")
    here.far["guest"].write(one("after"))
    here.until(lambda: len(here.cores["comparer"].pushed) == 2)
    assert answered["ok"] is True
    assert here.cores["comparer"].pushed == [("primary", Cut(1, "prepare")), ("primary", [b"after"])]


class LendingPort(Port):
    """A port whose batches lie in one buffer, filled anew by each read, as those of a TAP do."""

    def __init__(self, inner: MemoryPort) -> None:
        super().__init__(inner.name, inner.vnet)
        self._inner = inner
        self._buffer = bytearray(1 << 16)
        self.lent = 0

    def fileno(self) -> int:
        return self._inner.fileno()

    def read(self) -> Batch | None:
        self._buffer[:] = bytes((self.lent & 0xFF,)) * len(self._buffer)
        batch = self._inner.read()
        if batch is None:
            return None
        self.lent += 1
        self._buffer[: len(batch.data)] = batch.data
        return Batch(memoryview(self._buffer)[: len(batch.data)], batch.lengths, batch.vnet)

    def write(self, batch: Batch) -> None:
        self._inner.write(batch)

    def close(self) -> None:
        self._inner.close()


def test_the_four_services_in_one_process_keep_nothing_of_a_ports_buffer(node: Node) -> None:
    """The real cores: what the primary says is held, while its port's buffer is filled again and again."""
    near, far = {}, {}
    for label in ("mirror.network", "mirror.guest", "redirector.uplink", "rewriter.guest"):
        inner, far[label] = pair(label)
        near[label] = LendingPort(inner)
    cores = {service: core_of(service, node) for service in config.all_services()}
    shell = Shell(node, cores, ports=near)
    said = [udp(f"datagram {number}".encode(), sport=number % 3 + 1) for number in range(60)]
    heard: list[bytes] = []

    def hear(wanted: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(heard) < wanted:
            assert time.monotonic() < deadline, f"{len(heard)} of {wanted} left"
            shell.step(0.01)
            batch = far["mirror.network"].read()
            heard.extend(batch.frames() if batch is not None else [])

    try:
        for frame in said:
            far["mirror.guest"].write(Batch.of([frame]))
        while near["mirror.guest"].lent < len(said):
            shell.step(0.01)
        assert far["mirror.network"].read() is None
        far["mirror.network"].write(one("the network says something as well"))
        for frame in said:
            far["rewriter.guest"].write(Batch.of([frame]))
        hear(len(said))
        copied = far["rewriter.guest"].read()
    finally:
        shell.close()
        for port in far.values():
            port.close()
    for sport in (1, 2, 3):  # in order, each flow
        assert [frame for frame in heard if frame[35] == sport] == [frame for frame in said if frame[35] == sport]
    assert copied is not None
    assert copied.frames() == [b"the network says something as well"]


# Time.


def test_a_core_without_a_deadline_is_never_ticked(stage: Callable[..., Stage]) -> None:
    here = stage("comparer")
    for _ in range(5):
        here.shell.step(0)
    assert here.cores["comparer"].ticks == []


def test_a_core_is_not_ticked_before_its_deadline(stage: Callable[..., Stage]) -> None:
    here = stage("comparer")
    here.cores["comparer"].deadline = time.monotonic() + 3600
    for _ in range(5):
        here.shell.step(0)
    assert here.cores["comparer"].ticks == []


def test_a_step_without_a_timeout_ends_at_the_deadline(stage: Callable[..., Stage]) -> None:
    """Or this test never would."""
    here = stage("comparer")
    core = here.cores["comparer"]
    core.deadline = deadline = time.monotonic() + 0.05
    while not core.ticks:
        here.shell.step()
    assert core.ticks[0] >= deadline


def test_outputs_of_a_tick_are_carried_out(stage: Callable[..., Stage]) -> None:
    here = stage("mirror")
    core = here.cores["mirror"]
    core.due = [("network", one("due"))]
    core.deadline = 0.0
    here.until(lambda: core.ticks)
    batch = here.far["network"].read()
    assert batch is not None
    assert batch.frames() == [b"due"]
    assert len(core.ticks) == 1


def test_a_tick_is_told_until_when_everything_was_read(
    stage: Callable[..., Stage], sender: Callable[..., Sender]
) -> None:
    """What the secondary said a while ago may lie in the link; a turn takes little more than a MiB of it."""
    here, secondary = stage("comparer"), sender("secondary")
    core = here.cores["comparer"]
    for _ in range(5):
        secondary.send(Batch.of([bytes(60_000)] * 10), 0)
    told: list[bool] = []

    def the_next_has_come(item: Item) -> list[Output]:
        if len(core.pushed) < 5:
            here.shell._receivers["secondary"].socket.poll(PATIENCE * 1000)
        core.deadline = 0.0
        return []

    def ticked() -> None:
        assert core.heard is not None
        told.append(core.heard < core.ticks[-1])

    core.answers["secondary"], core.when_ticked = the_next_has_come, ticked
    here.until(lambda: len(core.pushed) == 5 and told and not told[-1])
    core.deadline = 0.0
    here.until(lambda: core.deadline is None)
    # The first turn ends with something unread, at whose beginning everything had been; the last one reads all.
    assert (told[0], told[-1]) == (False, False)
    assert True in told


def full(here: Stage, node: Node) -> int:
    """Have the mirror's `ingress` full; returns how many frames of the network were read for that."""
    here.cores["mirror"].answers["network"] = lambda item: [("ingress", item)]

    def one_more() -> bool:
        here.far["network"].write(Batch.of([bytes(60_000)] * 16))
        here.shell.step(0)
        return here.shell._senders["ingress"].blocked

    here.until(one_more)
    return len(here.cores["mirror"].pushed)


@pytest.fixture
def narrow(run_dir: Path) -> Node:
    """A node whose `ingress` takes few messages."""
    links = {"ingress": {"endpoint": f"ipc://{run_dir}/ingress", "hwm": 1}}
    return Node.model_validate({"run_dir": str(run_dir), "node": "here", "links": links})


def test_who_fills_a_link_rests_until_its_consumer_has_read(
    stage: Callable[..., Stage], narrow: Node, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockstep.pressure.STALLED", PATIENCE)
    there = Receiver(context, "ingress", narrow.link("ingress").endpoint, hwm=1)
    with closing(there):
        here = stage("mirror", node=narrow)
        before = full(here, narrow)
        here.far["network"].write(one("later"))
        here.far["guest"].write(one("elsewhere"))
        here.until(lambda: ("guest", [b"elsewhere"]) in here.cores["mirror"].pushed)
        for _ in range(5):
            here.shell.step(0.01)
        assert len(here.cores["mirror"].pushed) == before + 1
        here.until(lambda: there.receive() is None and ("network", [b"later"]) in here.cores["mirror"].pushed)


def test_nobody_rests_for_a_consumer_that_does_not_read(stage: Callable[..., Stage], narrow: Node) -> None:
    """The secondary's end must not stop the primary."""
    here = stage("mirror", node=narrow)
    full(here, narrow)
    here.far["network"].write(one("later"))
    here.until(lambda: ("network", [b"later"]) in here.cores["mirror"].pushed)


def test_in_one_process_sources_rest_for_the_links_that_leave_it(stage: Callable[..., Stage]) -> None:
    here = stage("redirector", "rewriter")
    assert {source: here.shell._keep_waiting(*source) for source in here.shell._sources} == {
        ("redirector", "uplink"): ("secondary",),
        ("redirector", "ingress"): ("secondary", "secondary"),
        ("rewriter", "guest"): ("secondary",),
    }


def test_a_timeout_is_not_put_off_for_ever(stage: Callable[..., Stage]) -> None:
    here = stage("comparer")
    core = here.cores["comparer"]
    here.shell.step(0)
    here.shell._unread["secondary"] = time.monotonic() - 2 * MOST_PUT_OFF
    core.deadline = 0.0
    here.shell.step(0)
    assert core.heard == core.ticks[0] - MOST_PUT_OFF


# Control.


def test_status_shows_who_what_and_how_much(stage: Callable[..., Stage], sender: Callable[..., Sender]) -> None:
    here = stage("mirror")
    core = here.cores["mirror"]
    core.epoch = 5
    here.far["network"].write(Batch.of([b"12345", b"67"]))
    sender("released").send(one("abc"), 0)
    here.until(lambda: len(core.pushed) == 2)
    said = here.ask("mirror", "status")
    assert said["ok"] is True
    assert (said["service"], said["node"], said["pid"], said["epoch"]) == ("mirror", "here", os.getpid(), 5)
    assert said["counters"] == {"pushes": 2}
    assert said["mood"] == "fine"
    assert set(said["links"]) == {"released", "ingress", "primary"}
    assert {name: said["links"]["released"][name] for name in ("messages", "frames", "bytes")} == {
        "messages": 1, "frames": 1, "bytes": 3,
    }  # fmt: skip
    assert set(said["ports"]) == {"network", "guest"}
    assert (said["ports"]["network"]["frames_in"], said["ports"]["network"]["bytes_in"]) == (2, 7)
    assert said["control"]["requests"] == 1
    assert said["uptime_s"] >= 0


def test_status_of_one_of_two_services_shows_its_own_ends(stage: Callable[..., Stage]) -> None:
    here = stage("redirector", "rewriter")
    redirector, rewriter = here.ask("redirector", "status"), here.ask("rewriter", "status")
    assert (set(redirector["ports"]), set(redirector["links"])) == ({"uplink"}, {"ingress", "secondary"})
    assert (set(rewriter["ports"]), set(rewriter["links"])) == ({"guest"}, set())


def test_a_command_is_the_cores_and_its_outputs_are_carried_out(stage: Callable[..., Stage]) -> None:
    here = stage("mirror")
    assert here.ask("mirror", "say", text="hello") == {"ok": True, "said": "hello"}
    batch = here.far["network"].read()
    assert batch is not None
    assert batch.frames() == [b"hello"]


def test_what_the_core_refuses_is_refused_with_its_words(stage: Callable[..., Stage]) -> None:
    said = stage("mirror").ask("mirror", "dance")
    assert said["ok"] is False
    assert said["error"].startswith("the fake has no `dance`; it has status, reload, drain")


def test_garbage_at_the_control_socket_reaches_no_core(stage: Callable[..., Stage]) -> None:
    here = stage("mirror")
    assert here.ask("mirror", 7)["ok"] is False  # type: ignore[arg-type]
    assert here.ask("mirror", "status")["control"]["garbage"] == 1


def test_drain_is_answered_and_ends_the_loop(stage: Callable[..., Stage]) -> None:
    here = stage("mirror")
    assert here.ask("mirror", "drain") == {"ok": True, "stopping": True}
    assert here.shell.stopping


def test_reload_without_a_file_is_refused(stage: Callable[..., Stage]) -> None:
    here = stage("mirror")
    assert here.ask("mirror", "reload")["ok"] is False
    assert here.cores["mirror"].reloaded is None


def test_reload_reads_the_file_again_as_it_was_read_at_the_start(stage: Callable[..., Stage], run_dir: Path) -> None:
    """With the command line's capture, too: a port's own settings may be those of another frontend."""
    path = run_dir / "node.toml"
    here = stage("mirror", path=path, capture="memory")
    path.write_text("[comparer]\ncompare_timeout = 0.25\n")
    assert here.ask("mirror", "reload") == {"ok": True, "reloaded": str(path)}
    reloaded = here.cores["mirror"].reloaded
    assert reloaded is not None
    assert reloaded.comparer.compare_timeout == 0.25
    assert reloaded.frontend("mirror", "guest") == "memory"


@pytest.mark.parametrize("text", ["[comparer]\ncompare_timeout = 0\n", "not = = toml", None])
def test_reload_of_a_faulty_file_is_refused_with_its_faults(
    stage: Callable[..., Stage], run_dir: Path, text: str | None
) -> None:
    path = run_dir / "node.toml"
    here = stage("comparer", path=path)
    if text is not None:
        path.write_text(text)
    said = here.ask("comparer", "reload")
    assert said["ok"] is False
    assert "fault(s)" in said["error"]
    assert here.cores["comparer"].reloaded is None


# Events.


def test_an_event_is_published(stage: Callable[..., Stage], context: Context, node: Node) -> None:
    here = stage("mirror")
    core = here.cores["mirror"]
    core.answers["network"] = lambda item: [Event("gap", {"stream": "released", "lost": 3, "key": b"\0\1"})]
    with closing(Listener(context, [node.events_endpoint("mirror")])) as listener:

        def heard() -> bool:
            here.far["network"].write(one("go"))
            return bool(listener.sockets[0].poll(0))

        here.until(heard)
        (heard,) = listener.receive(listener.sockets[0]) or []
        assert heard == Event("gap", {"stream": "released", "lost": 3, "key": b"\0\1"})


def test_an_event_is_logged_with_its_fields(
    stage: Callable[..., Stage], capsys: pytest.CaptureFixture[str], structlog_restored: None
) -> None:
    configure(Log(format="json"), node="here")
    here = stage("mirror")
    here.cores["mirror"].answers["network"] = lambda item: [Event("gap", {"stream": "released", "key": b"\0\1"})]
    here.far["network"].write(one("go"))
    here.until(lambda: here.cores["mirror"].pushed)
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (line["event"], line["name"], line["service"], line["node"]) == ("event_published", "gap", "mirror", "here")
    assert (line["stream"], line["key"]) == ("released", "0001")


@pytest.fixture
def structlog_restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_core_hears_the_events_of_a_service_that_it_is_wired_to_hear(
    stage: Callable[..., Stage], context: Context
) -> None:
    """In another process over ipc: here in another shell."""
    redirector, rewriter = stage("redirector"), stage("rewriter")
    redirector.cores["redirector"].answers["uplink"] = lambda item: [Event("failover", {"survivor": "secondary"})]

    def heard() -> bool:
        redirector.far["uplink"].write(one("go"))
        redirector.shell.step(0.01)
        return bool(rewriter.cores["rewriter"].pushed)

    rewriter.until(heard)
    assert rewriter.cores["rewriter"].pushed[0] == (EVENTS, Event("failover", {"survivor": "secondary"}))


def test_a_core_hears_each_event_of_another_in_its_shell_once(stage: Callable[..., Stage]) -> None:
    """By function call alone, also when there was time to connect sockets."""
    here = stage("redirector", "rewriter")
    here.cores["redirector"].answers["uplink"] = lambda item: [Event("failover", {"number": len(heard)})]
    heard = here.cores["rewriter"].pushed
    for number in range(1, 51):
        here.far["uplink"].write(one("go"))
        here.until(lambda number=number: len(heard) >= number)  # type: ignore[misc]
        here.shell.step(0.005)
    assert heard == [(EVENTS, Event("failover", {"number": number})) for number in range(50)]


def test_a_core_hears_the_endpoints_of_other_nodes(
    stage: Callable[..., Stage], context: Context, run_dir: Path
) -> None:
    elsewhere = context.socket(zmq.XPUB)
    elsewhere.bind(f"ipc://{run_dir}/elsewhere")
    node = Node.model_validate({"run_dir": str(run_dir), "events": [f"ipc://{run_dir}/elsewhere"]})
    here = stage("rewriter", node=node)
    here.until(lambda: elsewhere.poll(0))
    elsewhere.send_multipart([b"garbage"])
    elsewhere.send_multipart([b"unprotected", msgpack.packb({"key": b"k"})])
    here.until(lambda: here.cores["rewriter"].pushed)
    assert here.cores["rewriter"].pushed == [(EVENTS, Event("unprotected", {"key": b"k"}))]


# Keys.


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def public(run_dir: Path) -> dict[str, str]:
    """The public keys of two nodes, whose secrets lie in `run_dir`, and of one that nobody has."""
    there = {name: generate(run_dir / name) for name in ("a", "b")}
    return {**there, "nobody": zmq.curve_keypair()[0].decode()}


def node_with_keys(run_dir: Path, name: str, peers: list[str], **more: Any) -> Node:
    return Node.model_validate(
        {
            "run_dir": f"{run_dir}/{name}.d",
            "security": {"secret_key": f"{run_dir}/{name}", "peers": peers},
            **more,
        }
    )


@pytest.mark.parametrize(
    ("peers", "key"), [(["nobody", "b"], "b"), (["b", "nobody"], None)], ids=["named", "first of the peers"]
)
def test_a_link_leads_to_the_node_whose_key_it_names_or_to_the_first_of_the_peers(
    stage: Callable[..., Stage], run_dir: Path, public: dict[str, str], peers: list[str], key: str | None
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    far = stage("comparer", node=node_with_keys(run_dir, "b", [public["a"]], links={"primary": endpoint}))
    link = {"endpoint": endpoint, "key": public[key]} if key else endpoint
    keys = [public[name] for name in peers]
    near = stage("mirror", node=node_with_keys(run_dir, "a", keys, links={"primary": link}))
    near.cores["mirror"].answers["guest"] = lambda item: [("primary", item)]
    near.far["guest"].write(one("a frame"))

    def arrived() -> object:
        near.shell.step(0.005)
        return far.cores["comparer"].pushed

    far.until(arrived)
    assert far.cores["comparer"].pushed == [("primary", [b"a frame"])]


def test_events_of_this_node_over_tcp_are_heard_with_its_own_key(
    stage: Callable[..., Stage], run_dir: Path, public: dict[str, str]
) -> None:
    publish = {"redirector": f"tcp://127.0.0.1:{free_port()}"}
    node = node_with_keys(run_dir, "b", [public["a"]], publish=publish)
    redirector, rewriter = stage("redirector", node=node), stage("rewriter", node=node)
    redirector.cores["redirector"].answers["uplink"] = lambda item: [Event("failover", {"survivor": "secondary"})]

    def heard() -> bool:
        redirector.far["uplink"].write(one("go"))
        redirector.shell.step(0.005)
        return bool(rewriter.cores["rewriter"].pushed)

    rewriter.until(heard)


def test_refused_peers_are_counted_in_the_status(
    stage: Callable[..., Stage], run_dir: Path, public: dict[str, str], context: Context
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    here = stage("comparer", node=node_with_keys(run_dir, "b", [public["a"]], links={"primary": endpoint}))
    secret, stranger = (key for key in reversed(zmq.curve_keypair()))
    towards = Curve(stranger, secret, public["b"].encode())
    refused = Sender(context, "primary", endpoint, b"stranger", curve=towards)
    refused.send(one("x"), 0)
    here.until(lambda: here.ask("comparer", "status")["refused_peers"] > 0)
    assert here.cores["comparer"].pushed == []


# Beginning and end.


class ScriptedPort(Port):
    """A port that is always readable, and answers `read` as the test says."""

    def __init__(self, answer: Callable[[], Batch | None], ended: bool = False) -> None:
        super().__init__("mirror.network")
        self._reader, self._writer = os.pipe()
        os.write(self._writer, b"x")
        self._answer = answer
        self._ended = ended
        self.reads = 0
        self.closed = False

    def fileno(self) -> int:
        return self._reader

    def read(self) -> Batch | None:
        self.reads += 1
        return self._answer()

    def write(self, batch: Batch) -> None: ...

    def exhausted(self) -> bool:
        return self._ended

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._reader)
            os.close(self._writer)


def test_a_port_that_is_exhausted_is_looked_at_no_more(stage: Callable[..., Stage]) -> None:
    port = ScriptedPort(lambda: None, ended=True)
    here = stage("mirror", ports={"mirror.network": port})
    for _ in range(5):
        here.shell.step(0)
    assert port.reads == 1
    here.far["guest"].write(one("still served"))
    here.until(lambda: here.cores["mirror"].pushed)


def test_a_port_that_can_not_go_on_ends_the_process_with_its_error(stage: Callable[..., Stage]) -> None:
    def gone() -> Batch | None:
        raise PortError("mirror.network.device = tap0: it is gone; make it again")

    port = ScriptedPort(gone)
    here = stage("mirror", ports={"mirror.network": port})
    with pytest.raises(PortError, match="it is gone"):
        here.shell.run()
    assert port.closed


def test_a_shell_that_can_not_start_holds_nothing(
    stage: Callable[..., Stage], run_dir: Path, open_files: Callable[[], int]
) -> None:
    first = stage("mirror")
    before = open_files()
    port = ScriptedPort(lambda: None)
    with pytest.raises(LinkError, match=f"ipc://{run_dir}/released is already bound"):
        stage("mirror", ports={"mirror.network": port, "mirror.guest": ScriptedPort(lambda: None)})
    assert port.closed
    assert open_files() == before
    assert first.ask("mirror", "status")["ok"] is True


def test_a_port_that_can_not_be_opened_is_a_port_error(run_dir: Path) -> None:
    node = Node.model_validate({"run_dir": str(run_dir), "capture": "memory"})
    with pytest.raises(PortError, match=r"mirror\.network: capture `memory` has no other end"):
        Shell(node, {"mirror": FakeCore()})


def test_closing_twice_is_allowed_and_gives_everything_back(stage: Callable[..., Stage]) -> None:
    here = stage("mirror")
    here.shell.close()
    here.shell.close()
    assert here.near["mirror.network"].fileno() == -1
    again = stage("mirror")
    assert again.ask("mirror", "status")["ok"] is True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_loop_and_closes_everything(stage: Callable[..., Stage], number: signal.Signals) -> None:
    """And whoever had the signal before has it again."""
    before = signal.getsignal(number)
    here = stage("mirror")
    here.cores["mirror"].deadline = 0.0
    here.cores["mirror"].when_ticked = lambda: os.kill(os.getpid(), number)
    here.shell.run()
    assert signal.getsignal(number) is before
    assert here.near["mirror.network"].fileno() == -1


def test_a_signal_ends_a_loop_that_waits_for_nothing(stage: Callable[..., Stage]) -> None:
    here = stage("mirror")
    main = threading.get_ident()
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGTERM))
    here.cores["mirror"].deadline = 0.0
    here.cores["mirror"].when_ticked = timer.start  # in the loop, so whoever gets the signal is there
    here.shell.run()
    timer.join()
    assert here.shell.stopping


def test_drain_from_outside_is_answered_before_the_end(stage: Callable[..., Stage], node: Node) -> None:
    here = stage("mirror")
    answers: list[dict[str, Any]] = []

    def drain() -> None:
        answers.append(request(node.control_endpoint("mirror"), "drain", PATIENCE))

    thread = threading.Thread(target=drain)
    thread.start()
    here.shell.run()
    thread.join()
    assert answers == [{"stopping": True}]
    with pytest.raises(ControlError):
        request(node.control_endpoint("mirror"), "status", 0.1)
