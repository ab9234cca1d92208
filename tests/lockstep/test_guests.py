"""A comparer of many guests behind real links: one loop, two bound sockets, and each guest's mirror and redirector."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from packets import PSH, says_something, segment, udp

from lockstep.batch import Batch
from lockstep.capture.memory import pair
from lockstep.config import Node
from lockstep.control import ControlRefused
from lockstep.link.zmq import Receiver, Sender
from lockstep.service import core_of
from lockstep.shell import Shell
from lockstep.streams import DIGESTS, EVENTS, Event
from services.redirector.digest import Digester, new_secret

PATIENCE = 30.0
NAMES = tuple(f"guest-{number}" for number in range(100))
#: Frames as large as a message gets.
FLOOD = Batch.of([udp(bytes(60_000), sport=9)] * 17)


class Town:
    """The comparer's process, and the other ends of every guest's links."""

    def __init__(self, run_dir: Path, names: tuple[str, ...], secondary: str = "frames") -> None:
        guests = [{"name": name, "released": f"ipc://{run_dir}/{name}"} for name in names]
        self.node = Node.model_validate(
            {
                "run_dir": str(run_dir),
                "guests": guests,
                "comparer": {"on_divergence": "hold", "secondary": secondary},
            }
        )
        self.shell = Shell(self.node, {"comparer": core_of("comparer", self.node)})
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.LINGER, 0)
        streams = {"primary": "primary", "secondary": DIGESTS if secondary == "digest" else "secondary"}
        self.senders = {
            (side, name): Sender(
                self._context, stream, self.node.link(stream).endpoint, f"{side[0]}{name[-2:]:>7}".encode(), guest=name
            )
            for side, stream in streams.items()
            for name in names
        }
        #: In digest mode, what stands for each guest's redirector.
        self.digesters = {name: Digester(new_secret("blake2b")) for name in names if secondary == "digest"}
        self.mirrors = {
            name: Receiver(self._context, "released", f"ipc://{run_dir}/{name}", guest=name) for name in names
        }
        self.heard: dict[str, list[bytes]] = {name: [] for name in names}

    def say(self, side: str, name: str, *frames: bytes) -> None:
        batch = Batch.of(frames)
        if side == "secondary" and name in self.digesters:
            batch = self.digesters[name].records(batch)
        assert self.senders[side, name].send(batch, 0)

    def until(self, done: Callable[[], object]) -> None:
        """Step until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, f"in vain; heard {self.heard}"
            self.shell.step(0.01)
            for name, mirror in self.mirrors.items():
                for item in mirror.receive() or []:
                    self.heard[name] += item.frames() if isinstance(item, Batch) else []

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        with self._context.socket(zmq.REQ) as asker:
            asker.connect(self.node.control_endpoint("comparer"))
            asker.send(msgpack.packb({"op": op, **arguments}))
            self.until(lambda: asker.poll(0))
            answer: dict[str, Any] = msgpack.unpackb(asker.recv())
            return answer

    def close(self) -> None:
        self.shell.close()
        for mirror in self.mirrors.values():
            mirror.close()
        self._context.destroy(linger=0)


@pytest.fixture
def town(run_dir: Path) -> Iterator[Callable[..., Town]]:
    made: list[Town] = []

    def make(*names: str, **more: Any) -> Town:
        made.append(Town(run_dir, names, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_hundred_guests_share_a_process_and_each_mirror_gets_its_own_frames(town: Callable[..., Town]) -> None:
    """All of them have the same addresses and ports. One diverges, one loses a message."""
    here = town(*NAMES)
    for name in NAMES:
        here.say("primary", name, udp(f"of {name}".encode()), udp(b"and more"))
    here.senders["secondary", "guest-8"]._take_number()
    for name in NAMES:
        here.say("secondary", name, udp(b"wrong" if name == "guest-7" else f"of {name}".encode()))
        here.say("secondary", name, udp(b"and more"))
    here.until(lambda: sum(map(len, here.heard.values())) == 2 * 99)
    assert here.heard == {
        name: [] if name == "guest-7" else [udp(f"of {name}".encode()), udp(b"and more")] for name in NAMES
    }
    said = here.ask("status")
    assert set(said["guests"]) == set(NAMES)
    assert said["counters"]["gaps_secondary"] == said["links"]["secondary"]["gaps"] == 1
    assert said["guests"]["guest-8"]["counters"]["gaps_secondary"] == 1
    assert {name for name in NAMES if said["guests"][name]["held"]} == {"guest-7"}
    assert said["links"]["released@guest-9"]["frames"] == 2


def test_many_guests_send_digests_each_by_its_own_key(town: Callable[..., Town]) -> None:
    """All of them have the same connection, with other bytes. One differs, one's redirector starts anew."""
    names = NAMES[:10]
    here = town(*names, secondary="digest")
    said = {name: [segment(1 + 400 * place, 7, name.encode() * 44, flags=PSH) for place in range(2)] for name in names}
    for name in names:
        here.say("primary", name, *said[name])
        here.say("secondary", name, said["guest-3"][0] if name == "guest-7" else said[name][0])

    def heard() -> dict[str, list[bytes]]:
        return {name: [*filter(says_something, frames)] for name, frames in here.heard.items()}

    here.until(lambda: sum(map(len, heard().values())) == 9)
    here.digesters["guest-4"] = Digester(new_secret("xxh3"))
    for name in names:
        here.say("secondary", name, said[name][1])
    here.until(lambda: sum(map(len, heard().values())) == 18)
    assert heard() == {name: [] if name == "guest-7" else said[name] for name in names}
    status = here.ask("status")
    assert {name for name in names if status["guests"][name]["held"]} == {"guest-7"}
    assert status["counters"]["mismatched"] == status["guests"]["guest-7"]["counters"]["mismatched"] == 1


def test_one_guests_flood_leaves_the_others_their_turn(town: Callable[..., Town]) -> None:
    """Its producer never stops, and nobody reads what is released to it."""
    here = town("noisy", "quiet")
    noisy, quiet = here.senders["primary", "noisy"], here.senders["primary", "quiet"]
    here.ask("failover", guest="noisy")
    here.mirrors.pop("noisy").close()
    sent = 0
    for number in range(50):
        while noisy.send(FLOOD, 0) and not noisy.blocked:
            sent += 1
        frame = udp(f"{number}".encode())
        assert quiet.send(Batch.of([frame]), 0)
        here.say("secondary", "quiet", frame)
        here.until(lambda number=number: len(here.heard["quiet"]) == number + 1)  # type: ignore[misc]
    assert here.heard["quiet"] == [udp(f"{number}".encode()) for number in range(50)]
    said = here.ask("status")["guests"]
    assert "dropped_full" not in said["quiet"]["counters"]
    assert sent > 32
    assert said["noisy"]["counters"]["primary_frames"] >= len(FLOOD), "nothing of it had its turn"


def test_a_guest_that_is_not_configured_is_refused_and_counted(town: Callable[..., Town]) -> None:
    here = town("a")
    stranger = Sender(here._context, "primary", here.node.link("primary").endpoint, b"stranger", guest="b")
    stranger.send(Batch.of([udp(b"x")]), 0)
    here.until(lambda: here.ask("status")["links"]["primary"]["rejected_guest"] == 1)
    assert here.ask("status")["counters"]["primary_frames"] == 0


def test_a_restarted_comparer_tells_each_guest_of_its_gap(town: Callable[..., Town]) -> None:
    here = town("a", "b")
    for sender in here.senders.values():
        sender._take_number()
    here.say("primary", "a", udp(b"x"))
    here.until(lambda: here.ask("status")["guests"]["a"]["counters"].get("gaps_primary") == 1)
    assert "gaps_primary" not in here.ask("status")["guests"]["b"]["counters"]


def test_commands_need_a_guest_and_events_name_theirs(town: Callable[..., Town]) -> None:
    here = town("a", "b")
    with here._context.socket(zmq.SUB) as watcher:
        watcher.setsockopt(zmq.SUBSCRIBE, b"")
        watcher.connect(here.node.events_endpoint("comparer"))

        def heard() -> bool:
            here.ask("checkpoint", guest="b")
            return bool(watcher.poll(10))

        here.until(heard)
        name, fields = watcher.recv_multipart()
    assert (name, msgpack.unpackb(fields)["guest"]) == (b"checkpoint_requested", "b")
    refused = here.ask("failover")
    assert (refused["ok"], refused["error"].partition(";")[0]) == (False, "`failover` needs a `guest`")


# A process of one guest, among others that have the same flows.


class Noting:
    """A core that notes the events it hears."""

    def __init__(self) -> None:
        self.epoch, self.counters = 0, {"pushes": 0}
        self.heard: list[Any] = []
        self.tells: list[Event] = []

    def push(self, stream: str, item: Any, now: float) -> list[Event]:
        if stream == EVENTS:
            self.heard.append(item.fields)
        return []

    def tick(self, now: float, heard: float | None = None) -> list[Event]:
        tells, self.tells = self.tells, []
        return tells

    def next_deadline(self) -> float | None:
        return 0.0 if self.tells else None

    def command(self, op: str, arguments: Any, now: float) -> tuple[dict[str, Any], list[Event]]:
        return {"done": op}, []

    def status(self) -> dict[str, Any]:
        return {}


def test_a_service_of_one_guest_hears_no_event_of_another_and_names_its_own(run_dir: Path) -> None:
    shells, cores = {}, {}
    for name in ("a", "b"):
        events = [f"ipc://{run_dir}/{other}/rewriter.events" for other in ("a", "b") if other != name]
        node = Node.model_validate({"run_dir": f"{run_dir}/{name}", "guest": {"name": name}, "events": events})
        cores[name] = Noting()
        shells[name] = Shell(node, {"rewriter": cores[name]}, ports={"rewriter.guest": pair("rewriter.guest")[0]})  # type: ignore[dict-item]
    deadline = time.monotonic() + PATIENCE
    try:
        while not cores["b"].heard:
            cores["a"].tells = [
                Event("unprotected", {"key": b"k"}), Event("unprotected", {"key": b"l", "guest": "b"}),
            ]  # fmt: skip
            for shell in shells.values():
                shell.step(0.01)
            assert time.monotonic() < deadline
    finally:
        for shell in shells.values():
            shell.close()
    assert all(fields == {"key": b"l", "guest": "b"} for fields in cores["b"].heard)


def test_a_command_for_another_guest_is_refused(run_dir: Path) -> None:
    node = Node.model_validate({"run_dir": str(run_dir), "guest": {"name": "a"}})
    shell = Shell(node, {"comparer": Noting()})  # type: ignore[dict-item]
    try:
        with pytest.raises(ControlRefused, match="this is the comparer of guest a, not of b"):
            shell._command("comparer", "failover", {"guest": "b"}, 0.0)
        assert shell._command("comparer", "failover", {"guest": "a"}, 0.0) == {"done": "failover"}
    finally:
        shell.close()
