"""A divergence on its whole way: over real links into a comparer, to its watchers, its folder, `lockstep explain`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import zmq
from packets import PSH, segment

from lockstep import config, control
from lockstep.batch import Batch
from lockstep.link.zmq import Sender
from lockstep.report import FRAMES
from lockstep.shell import Shell
from lockstep.streams import Event
from services.comparer.core import Core

OURS, THEIRS = segment(5001, 901, b"hello world", flags=PSH), segment(5001, 901, b"hello_world", flags=PSH)
FLOW = "10.77.0.2:80 10.77.0.1:40000"


class Comparer:
    """A comparer's shell in a thread, links into it, and a watcher of its events."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.path = folder / "node.toml"
        self.path.write_text(f'run_dir = "{folder}"\n[comparer]\non_divergence = "hold"\n{settings}')
        node = config.load(self.path, services=("comparer",))
        self.endpoint = node.control_endpoint("comparer")
        self.shell = Shell(node, {"comparer": Core(node)})
        self.context = zmq.Context()
        self.links = [
            Sender(self.context, stream, node.link(stream).endpoint, stream.encode()[:8].ljust(8))
            for stream in ("primary", "secondary")
        ]
        self.listener = control.Listener(self.context, [node.events_endpoint("comparer")])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.shell.step(0.02)

    def status(self) -> dict[str, Any]:
        return control.request(self.endpoint, "status")

    def diverge(self) -> Event:
        """Plant a difference; what a watcher hears of it."""
        deadline = time.monotonic() + 10
        for link, frame in zip(self.links, (OURS, THEIRS), strict=True):
            link.send(Batch.of([frame]), 0)
        while time.monotonic() < deadline:
            if self.listener.sockets[0].poll(20):
                for event in self.listener.receive(self.listener.sockets[0]) or ():
                    if event.name == "divergence":
                        return event
        raise AssertionError(self.status())

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.shell.close()
        self.listener.close()
        for link in self.links:
            link.close()
        self.context.term()


@pytest.fixture
def comparer(run_dir: Path) -> Iterator[Callable[..., Comparer]]:
    started: list[Comparer] = []

    def start(settings: str = "") -> Comparer:
        started.append(Comparer(run_dir, settings))
        started[-1].listener.sockets[0].poll(100)  # until the subscription is there
        return started[-1]

    yield start
    for one in started:
        one.close()


def explain(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lockstep.cli", "explain", *map(str, arguments)], capture_output=True, text=True
    )


def written(folder: Path, suffix: str) -> Path:
    deadline = time.monotonic() + 10
    while not (found := list(folder.glob(f"*{suffix}"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[0]


def test_without_a_divergence_there_is_nothing_to_explain(comparer: Callable[..., Comparer]) -> None:
    told = explain("-c", comparer().path)
    assert (told.returncode, told.stdout) == (0, "no divergence\n")


def test_without_a_capture_dir_the_bytes_of_the_status_are_explained(comparer: Callable[..., Comparer]) -> None:
    one = comparer()
    event = one.diverge()
    assert not any(name in event.fields for name in FRAMES)
    told = explain("-c", one.path)
    assert told.returncode == 1, told.stderr
    assert told.stdout.startswith("10.77.0.2:80 → 10.77.0.1:40000 (tcp), epoch 0\n")
    assert "The primary has 0x20 ' ', the secondary 0x5f '_'." in told.stdout
    assert "reports" not in one.status()


def test_with_a_capture_dir_watchers_hear_the_packets_and_the_log_and_the_status_stay_short(
    comparer: Callable[..., Comparer], run_dir: Path
) -> None:
    with structlog.testing.capture_logs() as lines:
        one = comparer(f'capture_dir = "{run_dir}/captures"')
        event = one.diverge()
        written(run_dir / "captures", ".json")
        status = one.status()  # by now the line is logged as well
    assert [entry["frame"] for name in FRAMES for entry in event.fields[name]] == [OURS, THEIRS]
    (line,) = [line for line in lines if line.get("name") == "divergence"]
    assert not any(name in line for name in FRAMES)
    assert (line["flow"], line["offset"]) == (FLOW, 5)
    assert len(json.dumps(line)) < 500
    assert not any(name in status["divergences"][0] for name in FRAMES)
    assert status["reports"] == {"written": 1, "dropped": 0, "failed": 0, "removed": 0}


def test_with_a_capture_dir_the_packets_are_explained_from_the_status_and_from_the_file(
    comparer: Callable[..., Comparer], run_dir: Path
) -> None:
    one = comparer(f'capture_dir = "{run_dir}/captures"')
    one.diverge()
    path = written(run_dir / "captures", ".json")
    told = explain("-c", one.path)
    assert told.returncode == 1, told.stderr
    assert "TCP 80 → 40000 [PSH ACK] seq 5001 ack 901 window 1000" in told.stdout
    assert explain(path).stdout == told.stdout
    assert explain(path).returncode == 1
    assert list((run_dir / "captures").glob("*.pcapng"))


def test_a_program_reads_json(comparer: Callable[..., Comparer], run_dir: Path) -> None:
    one = comparer(f'capture_dir = "{run_dir}/captures"')
    assert json.loads(explain("-c", one.path, "--json").stdout) == {"divergences": []}
    one.diverge()
    path = written(run_dir / "captures", ".json")
    for told in (explain("-c", one.path, "--json"), explain(path, "--json")):
        (divergence,) = json.loads(told.stdout)["divergences"]
        assert told.returncode == 1
        assert (divergence["flow"], divergence["reason"]) == (FLOW, "data")
        assert divergence["primary_frames"][0]["frame"] == OURS.hex()
        assert divergence["summary"].startswith("The two replicas sent different bytes")


def test_the_last_ones_are_told_the_newest_last(comparer: Callable[..., Comparer]) -> None:
    one = comparer("compare_timeout = 0.05")
    one.links[0].send(Batch.of([segment(1, 2, b"xy", dport=port) for port in (1, 2, 3)]), 0)
    deadline = time.monotonic() + 10
    while len(one.status()["divergences"]) < 3:
        assert time.monotonic() < deadline
    told = explain("-c", one.path, "--last", 2).stdout
    assert [line.partition(" (")[0] for line in told.splitlines() if "→" in line] == [
        "10.77.0.2:80 → 10.77.0.1:2",
        "10.77.0.2:80 → 10.77.0.1:3",
    ]


def test_a_comparer_that_is_not_there_is_unavailable(run_dir: Path) -> None:
    (run_dir / "node.toml").write_text(f'run_dir = "{run_dir}"\n')
    told = explain("-c", run_dir / "node.toml", "--timeout", 0.2)
    assert (told.returncode, told.stdout) == (69, "")
    assert "is the service running?" in told.stderr


def test_a_file_that_is_no_report_is_bad_data(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    for path in (tmp_path / "x.json", tmp_path / "missing.json", tmp_path):
        told = explain(path)
        assert (told.returncode, told.stdout) == (65, "")
        assert str(path) in told.stderr


def test_a_bad_configuration_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("[comparer]\ncapture_files = 1\ncapture_bytes = 5\n")
    told = explain("-c", tmp_path / "node.toml")
    assert told.returncode == 78
    assert "comparer.capture_files" in told.stderr
    assert "comparer.capture_bytes" in told.stderr


def test_a_folder_that_cannot_be_written_stops_no_packet(comparer: Callable[..., Comparer]) -> None:
    one = comparer('capture_dir = "/dev/null/captures"')
    one.diverge()
    deadline = time.monotonic() + 10
    while one.status()["reports"]["failed"] == 0:
        assert time.monotonic() < deadline
    more = segment(5001, 901, b"same", dport=7)
    for link in one.links:
        link.send(Batch.of([more]), 0)
    while one.status()["counters"]["released"] == 0:
        assert time.monotonic() < deadline
    told = explain("-c", one.path)
    assert (told.returncode, told.stdout.count("The primary has 0x20")) == (1, 1)
