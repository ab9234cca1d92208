"""A comparer of several processes: what goes in comes out, one control surface, and a worker that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from packets import PSH, says_something, segment, udp

from lockstep import config, control
from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.control import ControlRefused, Listener
from lockstep.link.zmq import Receiver, Sender
from lockstep.streams import DIGESTS, Cut, Event
from services.redirector.digest import Digester, new_secret

PATIENCE = 30.0
CLIENTS = [f"10.77.1.{number}" for number in range(1, 41)]


class Comparer:
    """The comparer's processes, and the mirror's and the redirector's ends of its links."""

    def __init__(self, run_dir: Path, workers: int, settings: str) -> None:
        path = run_dir / "node.toml"
        path.write_text(f'run_dir = "{run_dir}/s"\n[comparer]\nworkers = {workers}\n{settings}\n')
        self.path = path
        self._workers = workers
        self.node: Node = config.load(path, environ={}, services=("comparer",))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.comparer", "-c", str(path)],
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=subprocess.DEVNULL,
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.LINGER, 0)
        self.mirror = Receiver(self._context, "released", self.node.link("released").endpoint)
        #: In digest mode, what stands for the redirector. A new one has a new key.
        self.digester = Digester(new_secret("blake2b")) if self.node.comparer.secondary == "digest" else None
        streams = {"primary": "primary", "secondary": DIGESTS if self.digester else "secondary"}
        self._senders = {
            side: Sender(self._context, stream, self.node.link(stream).endpoint, side.ljust(8)[:8].encode())
            for side, stream in streams.items()
        }
        self._listener = Listener(self._context, [self.node.events_endpoint("comparer")])
        #: All that was released to the mirror.
        self.arrived: list[bytes] = []
        self.events: list[Event] = []

    def start(self) -> None:
        """Wait until it answers and its events are heard: a subscription takes its time."""
        self.until(lambda: self.answers() is not None)
        for cuts in range(1, 1000):
            self.send("primary", Cut(1, "commit"))
            # One that a worker had yet to follow would make it forget what the secondary says from here on.
            self.until(lambda: self.ask("status")["counters"]["commits"] == cuts * self._workers)  # noqa: B023
            self.take()
            if self.named("cut"):
                return
        raise AssertionError("its events are never heard")

    def send(self, side: str, item: Batch | Cut) -> None:
        assert self._senders[side].send(item, 1)

    def say(self, side: str, *frames: bytes) -> None:
        batch = Batch.of(frames)
        if side == "secondary" and self.digester is not None:
            batch = self.digester.records(batch)
        self.send(side, batch)

    def take(self) -> None:
        """What has arrived until now."""
        for sender in self._senders.values():
            sender.flush()
        while (items := self.mirror.receive()) is not None:
            for item in items:
                self.arrived += item.frames() if isinstance(item, Batch) else []
        while (events := self._listener.receive(self._listener.sockets[0])) is not None:
            self.events += events

    @property
    def left(self) -> list[bytes]:
        """The guest's frames among it."""
        return [*filter(says_something, self.arrived)]

    def until(self, done: Callable[[], object]) -> None:
        """Take what arrives until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, f"in vain; {len(self.left)} frames left, events {self.events[-3:]}"
            assert self.process.poll() is None
            self.take()
            time.sleep(0.005)

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        return control.request(self.node.control_endpoint("comparer"), op, PATIENCE, **arguments)

    def status(self) -> dict[str, Any]:
        """The status with all processes in it: on a busy machine one may be too late for the sums."""
        said: list[dict[str, Any]] = []

        def whole() -> bool:
            said[:] = [self.ask("status")]
            return not any("error" in process for process in said[0]["workers"].values())

        self.until(whole)
        return said[0]

    def answers(self) -> dict[str, Any] | None:
        try:
            return control.request(self.node.control_endpoint("comparer"), "status", 0.3)
        except control.ControlError:
            return None

    def pids(self) -> dict[str, int]:
        return {name: said["pid"] for name, said in self.ask("status")["workers"].items()}

    def named(self, name: str) -> list[dict[str, Any]]:
        return [dict(event.fields) for event in self.events if event.name == name]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE)
        self.mirror.close()
        self._listener.close()
        self._context.destroy(linger=0)


@pytest.fixture
def comparer(run_dir: Path) -> Iterator[Callable[..., Comparer]]:
    made: list[Comparer] = []

    def make(workers: int = 3, settings: str = 'on_divergence = "hold"') -> Comparer:
        made.append(Comparer(run_dir, workers, settings))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()


def words(number: int) -> list[bytes]:
    """One frame of each client."""
    return [udp(f"{number} for {client}".encode(), destination=client) for client in CLIENTS]


def segments(place: int, size: int) -> list[bytes]:
    """One segment of each client's connection, as long as is worth a hash."""
    said = bytes(range(place & 0xFF, 256)) * (size // 256 + 2)
    return [segment(1000 + place, 7, said[:size], flags=PSH, destination=client) for client in CLIENTS]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_all_workers_compare_and_status_is_their_sum(comparer: Callable[..., Comparer]) -> None:
    here = comparer()
    for number in range(20):
        here.say("primary", *words(number))
        here.say("secondary", *words(number))
    here.until(lambda: len(here.left) == 20 * len(CLIENTS))
    for client in CLIENTS:
        wanted = [udp(f"{number} for {client}".encode(), destination=client) for number in range(20)]
        assert [frame for frame in here.left if frame[30:34] == wanted[0][30:34]] == wanted
    said = here.status()
    assert (said["service"], said["counters"]["released"], said["flows"]) == ("comparer", 800, len(CLIENTS))
    assert said["links"]["primary"]["frames"] == said["links"]["released"]["frames"] == 800
    shares = [said["workers"][name]["counters"]["primary_frames"] for name in ("0", "1", "2")]
    assert sum(shares) == 800
    assert all(shares)
    assert len({*here.pids().values(), said["pid"]}) == 5


DIGEST = 'on_divergence = "hold"\nsecondary = "digest"'


def test_in_digest_mode_every_worker_reads_the_hashes_of_its_flows(comparer: Callable[..., Comparer]) -> None:
    """TCP by its hashes, datagrams as they are; one flow differs, and only its segment stays."""
    here = comparer(settings=DIGEST)
    for number in range(10):
        here.say("primary", *segments(1000 * number, 1000), *words(number))
        here.say("secondary", *segments(1000 * number, 1000), *words(number))
    here.until(lambda: len(here.left) == 20 * len(CLIENTS))
    last = segments(10_000, 1000)
    wrong = segment(11_000, 7, b"other" * 200, flags=PSH, destination=CLIENTS[-1])
    here.say("primary", *last)
    here.say("secondary", *last[:-1], wrong)
    here.until(lambda: here.named("digest_mismatch"))
    here.until(lambda: len(here.left) == 21 * len(CLIENTS) - 1)
    for client in CLIENTS[:-1]:
        address = segments(0, 1)[CLIENTS.index(client)][30:34]
        theirs = [frame for frame in here.left if frame[30:34] == address and frame[23] == 6]
        assert theirs == [segments(1000 * number, 1000)[CLIENTS.index(client)] for number in range(11)]
    assert last[-1] not in here.left
    said = here.status()
    counted = said["counters"]
    assert (counted["mismatched"], counted["secondary_frames"]) == (1, 21 * len(CLIENTS))
    assert counted["matched"] >= 11 * len(CLIENTS) - 1
    assert said["links"]["digests"]["frames"] == 21 * len(CLIENTS) + 11
    assert all(said["workers"][name]["counters"]["matched"] for name in ("0", "1", "2"))


def test_a_new_key_reaches_every_worker_with_its_flows(comparer: Callable[..., Comparer]) -> None:
    """What was hashed with the key of before is given up where the new one has come; what is said again is proven."""
    here = comparer(settings=DIGEST)
    here.say("secondary", *segments(0, 500))
    here.until(lambda: here.ask("status")["counters"]["secondary_frames"] == len(CLIENTS))
    here.digester = Digester(new_secret("xxh3"))
    here.say("secondary", *segments(0, 500))
    here.until(lambda: here.ask("status")["counters"]["secondary_frames"] == 2 * len(CLIENTS))
    here.say("primary", *segments(0, 500))
    here.until(lambda: len(here.left) == len(CLIENTS))
    assert sorted(here.left) == sorted(segments(0, 500))
    assert here.status()["counters"]["mismatched"] == 0


def test_a_worker_that_died_reads_the_key_again(comparer: Callable[..., Comparer]) -> None:
    here = comparer(2, DIGEST)
    here.say("primary", *segments(0, 500))
    here.say("secondary", *segments(0, 500))
    here.until(lambda: len(here.left) == len(CLIENTS))
    os.kill(here.pids()["1"], signal.SIGKILL)
    here.until(lambda: here.ask("status")["workers"]["1"].get("restarts") == 1)
    here.until(lambda: "error" not in here.ask("status")["workers"]["1"])

    def all_leave() -> bool:
        here.arrived.clear()
        here.say("primary", *segments(500, 500))
        here.say("secondary", *segments(500, 500))
        time.sleep(0.05)
        here.take()
        return set(segments(500, 500)) <= set(here.left)

    here.until(all_leave)


def test_records_that_nobody_makes_are_counted_and_prove_nothing(comparer: Callable[..., Comparer]) -> None:
    here = comparer(settings=DIGEST)
    here.say("primary", *segments(0, 500))
    assert here.digester is not None
    key, *records = here.digester.records(Batch.of(segments(0, 500))).frames()
    here.send("secondary", Batch.of([key, *(record[:-1] for record in records), b"\3", b"\7garbage", b"\2no key"]))
    here.until(lambda: here.ask("status")["counters"]["malformed_records"] == len(records) + 3)
    assert (here.status()["held"], here.arrived) == (len(CLIENTS), [])


def test_a_divergence_is_told_once_and_holds_one_flow(comparer: Callable[..., Comparer]) -> None:
    here = comparer(settings='on_divergence = "hold"\ncompare_timeout = 0.2')
    here.say("primary", *words(0))
    here.say("secondary", *words(0)[:-1], udp(b"wrong", destination=CLIENTS[-1]))
    here.until(lambda: here.named("divergence"))
    here.until(lambda: len(here.left) == len(CLIENTS) - 1)
    (divergence,) = here.named("divergence")
    assert divergence["flow"] == f"10.77.0.2:53 {CLIENTS[-1]}:40000"
    said = here.status()
    assert (said["counters"]["divergences"], said["held"]) == (1, 1)
    assert [one["flow"] for one in said["divergences"]] == [divergence["flow"]]


def test_a_committed_cut_releases_what_every_worker_held_and_is_told_once(comparer: Callable[..., Comparer]) -> None:
    here = comparer()
    here.events.clear()
    here.say("primary", *words(0))
    here.send("primary", Cut(5, "prepare"))
    here.say("primary", *words(1))
    here.send("primary", Cut(5, "commit"))
    here.until(lambda: len(here.left) == len(CLIENTS))
    assert sorted(here.left) == sorted(words(0))

    def phases() -> list[str]:
        return [cut["phase"] for cut in here.named("cut") if cut["epoch"] == 5]

    here.until(lambda: len(phases()) == 2)
    assert phases() == ["prepare", "commit"]
    said = here.status()
    assert (said["epoch"], said["held"]) == (5, len(CLIENTS))


def test_a_gap_reaches_every_worker_and_is_told_once(comparer: Callable[..., Comparer]) -> None:
    here = comparer()
    here.say("secondary", *words(0))
    here._senders["secondary"]._take_number()
    here.say("secondary", *words(1)[:1])

    def gaps() -> list[int]:
        workers = here.ask("status")["workers"]
        return [workers[name]["counters"].get("gaps_secondary", 0) for name in ("0", "1", "2")]

    here.until(lambda: gaps() == [1, 1, 1])
    here.until(lambda: here.named("gap"))
    (told,) = here.named("gap")
    assert (told["stream"], told["reason"], told["lost"]) == ("secondary", "lost", 1)


def test_a_failover_is_every_workers_and_also_that_of_one_that_comes_later(comparer: Callable[..., Comparer]) -> None:
    here = comparer()
    here.say("primary", *words(0))
    here.until(lambda: here.ask("status")["held"] == len(CLIENTS))
    assert here.ask("failover") == {"survivor": "primary", "epoch": 1}
    here.until(lambda: len(here.left) == len(CLIENTS))
    here.until(lambda: here.named("failover"))
    assert len(here.named("failover")) == 1
    os.kill(here.pids()["1"], signal.SIGKILL)
    here.until(lambda: here.ask("status")["workers"]["1"].get("restarts") == 1)
    here.until(lambda: "error" not in here.ask("status")["workers"]["1"])

    def all_leave() -> bool:
        here.arrived.clear()
        here.say("primary", *words(1))
        time.sleep(0.05)
        here.take()
        return set(words(1)) <= set(here.left)

    here.until(all_leave)


def test_what_a_dead_worker_held_never_leaves_and_its_flows_are_compared_again(
    comparer: Callable[..., Comparer],
) -> None:
    here = comparer(settings='on_divergence = "checkpoint"\ncompare_timeout = 25')
    here.events.clear()
    here.say("primary", *words(0))
    here.until(lambda: here.ask("status")["held"] == len(CLIENTS))
    before = here.ask("status")["workers"]
    os.kill(before["1"]["pid"], signal.SIGKILL)
    here.until(lambda: here.named("worker_lost"))
    (lost,) = here.named("worker_lost")
    assert (lost["worker"], lost["code"], lost["restarts"]) == ("1", -signal.SIGKILL, 0)
    here.until(lambda: here.named("checkpoint_requested"))
    assert [asked["reason"] for asked in here.named("checkpoint_requested")] == ["worker"]
    here.until(lambda: "error" not in here.ask("status")["workers"]["1"])
    after = here.ask("status")["workers"]
    assert after["1"]["pid"] != before["1"]["pid"]
    assert after["0"]["pid"] == before["0"]["pid"]
    here.say("secondary", *words(0))
    here.until(lambda: here.ask("status")["held"] == 0)
    theirs = len(CLIENTS) - before["1"]["counters"]["primary_frames"]
    here.until(lambda: len(here.left) == theirs)
    assert 0 < theirs < len(CLIENTS)
    # The guests send again what was lost.
    missing = [frame for frame in words(0) if frame not in here.left]
    here.say("primary", *missing)
    here.until(lambda: len(here.left) == len(CLIENTS))
    assert sorted(here.left) == sorted(words(0))


def test_a_dead_splitter_is_started_again(comparer: Callable[..., Comparer]) -> None:
    here = comparer()
    os.kill(here.pids()["splitter"], signal.SIGKILL)
    here.until(lambda: here.named("worker_lost"))

    def passes() -> bool:
        here.arrived.clear()
        here.say("primary", *words(0))
        here.say("secondary", *words(0))
        time.sleep(0.05)
        here.take()
        return set(words(0)) <= set(here.left)

    here.until(passes)
    assert here.ask("status")["workers"]["splitter"]["restarts"] == 1


def test_reload_reaches_every_worker_with_its_share_of_the_limits(comparer: Callable[..., Comparer]) -> None:
    here = comparer(settings='on_divergence = "hold"')
    here.path.write_text(here.path.read_text() + "compare_timeout = 0.1\nmax_flows = 48\n")
    assert here.ask("reload") == {"reloaded": str(here.path)}
    clients = [f"10.78.{number >> 8}.{number & 255}" for number in range(300)]
    here.say("primary", *(udp(b"x", destination=client) for client in clients))
    here.until(lambda: len(here.named("divergence")) == 48)
    assert here.ask("status")["flows"] == 48
    here.path.write_text("nonsense = 1\n")
    with pytest.raises(ControlRefused, match="nonsense"):
        here.ask("reload")


def test_what_a_worker_refuses_is_refused_with_its_name(comparer: Callable[..., Comparer]) -> None:
    with pytest.raises(ControlRefused, match="worker 0: the comparer has no `dance`"):
        comparer(2).ask("dance")


@pytest.mark.parametrize("way", ["drain", "SIGTERM", "SIGKILL"])
def test_when_it_ends_nobody_is_left(comparer: Callable[..., Comparer], way: str) -> None:
    here = comparer(2)
    pids = here.pids()
    if way == "drain":
        assert here.ask("drain") == {"stopping": True}
    else:
        here.process.send_signal(getattr(signal, way))
    assert here.process.wait(PATIENCE) == (-signal.SIGKILL if way == "SIGKILL" else 0)
    deadline = time.monotonic() + PATIENCE
    while not all(map(gone, pids.values())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_that_can_not_start_ends_the_comparer_with_its_code(run_dir: Path) -> None:
    path = run_dir / "node.toml"
    path.write_text(f'run_dir = "{run_dir}/s"\n[comparer]\nworkers = 2\n')
    (run_dir / "s").mkdir()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    taken = Receiver(context, "primary", f"ipc://{run_dir}/s/primary@1")
    done = subprocess.run(
        [sys.executable, "-m", "services.comparer", "-c", str(path)],
        capture_output=True, text=True, timeout=PATIENCE, env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    taken.close()
    context.destroy(linger=0)
    assert done.returncode == 69
    assert "primary@1 is already bound" in done.stderr
