"""What the scenarios share: a watched transfer, guests' programs on both replicas, and what was counted.

The transfers are the demo's own client and server: every byte is checked at its place, over one
connection, and nothing is asked twice.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from lockstep.demo import payload
from lockstep.demo.addresses import ADDRESSES, CLIENTS_PORT, GUESTS_SOURCE_PORT, PORT
from lockstep.demo.namespaces import Namespace
from lockstep.demo.stage import Stage, wait_for

MIB = 1 << 20
HERE = Path(__file__).parent
#: Seconds in which anything that works has long happened, on the slowest machine.
LONG = 30.0
#: What `who` is answered by the guests of `answerers`.
PRIMARY, SECONDARY = "replica1", "replica2"

Program = subprocess.Popen[Any]


class Transfer:
    """A download or upload of `size` bytes; a context manager that ends the servers it started.

    `until(done)` returns once `done` bytes went over, `finish()` once it has ended.
    """

    def __init__(
        self,
        stage: Stage,
        direction: str = "download",
        size: int = 64 * MIB,
        *,
        network: str = "ipv4",
        opened_by: str = "client",
        give_up: float = LONG,
    ) -> None:
        self.stage, self.direction, self.size = stage, direction, size
        self._subnet = ADDRESSES[network]
        self._opened_by, self._give_up = opened_by, give_up
        self._result: dict[str, Any] | None = None
        self.done = 0

    def __enter__(self) -> Transfer:
        stage, subnet = self.stage, self._subnet
        if self._opened_by == "client":
            self.servers = self._start_servers("--port", PORT)
            where = ("--connect", subnet.guest, "--port", PORT)
        else:
            where = ("--listen", subnet.client, "--port", CLIENTS_PORT)
        size = (f"--{self.direction}", self.size, "--give-up", self._give_up)
        self._client = stage.python(
            stage.client_ns, "lockstep.demo.client", *map(str, (*where, *size)), stdout=subprocess.PIPE
        )
        if self._opened_by == "guest":
            assert "ready" in said(self._client)
            there = ("--connect", subnet.client, "--port", CLIENTS_PORT)
            self.servers = self._start_servers(*there, "--source-port", GUESTS_SOURCE_PORT)
        return self

    def __exit__(self, *_: object) -> None:
        end(self._client, *self.servers)

    def _start_servers(self, *arguments: str | int) -> list[Program]:
        stage = self.stage
        servers = [
            stage.python(namespace, "lockstep.demo.server", *arguments, stdout=subprocess.PIPE)
            for namespace in (stage.srv_ns, stage.srv2_ns)
        ]
        for server in servers:
            assert "ready" in said(server)
        return servers

    def until(self, done: int) -> None:
        """Wait until `done` bytes went over; fails if it ended before."""
        while self.done < done:
            assert self._result is None, f"it ended after {self.done} bytes: {self._result}"
            message = said(self._client)
            self._result = message.get("result")
            self.done = message.get("progress", self.done)

    def running(self) -> bool:
        """Whether it goes on, as far as is known without waiting."""
        return self._client.poll() is None

    def finish(self) -> dict[str, Any]:
        """Wait for its end; fails unless every byte went over the one connection, and is right."""
        while self._result is None:
            self._result = said(self._client).get("result")
        result = self._result
        figures = {name: result[name] for name in ("error", "bytes", "wrong_bytes_delivered", "reconnects")}
        assert figures == {"error": None, "bytes": self.size, "wrong_bytes_delivered": 0, "reconnects": 0}, result
        assert result["sha256"] == payload.digest(self.size)
        return result


def said(program: Program) -> dict[str, Any]:
    """The next JSON line of a program that prints nothing else."""
    assert program.stdout is not None
    line = program.stdout.readline()
    assert line, f"{program.args!r} ended with {program.wait()} before it was done"
    message: dict[str, Any] = json.loads(line)
    return message


def end(*programs: Program) -> None:
    """SIGKILL, and wait until they are gone."""
    for program in programs:
        program.kill()
        program.wait()


@contextmanager
def replicated(stage: Stage, *argv: Sequence[str | Path], port: int, **options: Any) -> Iterator[list[Program]]:
    """A program on both guests: `argv[0]` on the primary, `argv[-1]` on the secondary; it listens on TCP `port`."""
    namespaces = (stage.srv_ns, stage.srv2_ns)
    programs = [
        stage.popen(namespace, line, **options) for namespace, line in zip(namespaces, (argv[0], argv[-1]), strict=True)
    ]
    try:
        for namespace, program in zip(namespaces, programs, strict=True):
            wait_for(lambda n=namespace, p=program: p.poll() is not None or listens(n, port), "a guest", LONG)  # type: ignore[misc]
            assert program.poll() is None, f"{program.args!r} ended with {program.returncode}"
        yield programs
    finally:
        end(*programs)


def listens(namespace: Namespace, port: int) -> bool:
    """Whether somebody in the namespace listens on this TCP port. Asks the kernel, not the port."""
    with namespace.entered():
        tables = Path("/proc/thread-self/net/tcp").read_text() + Path("/proc/thread-self/net/tcp6").read_text()
    return any(f":{port:04X} " in fields and " 0A " in fields for fields in tables.splitlines())


def answerers(stage: Stage, *options: str) -> AbstractContextManager[list[Program]]:
    """The guest of `answerer.py` on both replicas, under names of one length."""
    argv = [[sys.executable, HERE / "answerer.py", name, *options] for name in (PRIMARY, SECONDARY)]
    return replicated(stage, *argv, port=7)


def connect(stage: Stage, port: int, network: str = "ipv4") -> socket.socket:
    """A TCP connection from the client to the guest."""
    with stage.client_ns.entered():
        connection = socket.create_connection((ADDRESSES[network].guest, port), timeout=LONG)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ask(connection: socket.socket, line: str) -> str:
    """Send a line and read the one that answers it."""
    connection.sendall(f"{line}\n".encode())
    answer = b""
    while not answer.endswith(b"\n"):
        part = connection.recv(4096)
        if not part:
            raise ConnectionError("the guest closed the connection")
        answer += part
    return answer.decode().removesuffix("\n")


def fail_over(stage: Stage, *guests: Program) -> None:
    """Kill the mirror, then the primary's programs, so that no FIN of theirs gets through; the secondary takes over."""
    stage.services["mirror"].kill()
    end(*guests)
    assert stage.failover(timeout=LONG)["survivor"] == "secondary"


def counters(stage: Stage, service: str = "comparer") -> dict[str, int]:
    """What a service has counted."""
    counted: dict[str, int] = stage.status(service, timeout=LONG)["counters"]
    return counted


def settled(stage: Stage) -> dict[str, int]:
    """What the comparer has counted, once no frame is held any more: all verdicts have fallen."""
    quiet = 0

    def decided() -> bool:
        nonlocal quiet
        quiet = quiet + 1 if stage.status("comparer", timeout=LONG)["held"] == 0 else 0
        return quiet == 3

    wait_for(decided, "the comparer to decide on what it holds", LONG, pause=0.05)
    return counters(stage)


def assert_protected(stage: Stage) -> dict[str, int]:
    """Nothing diverged, and everything was compared."""
    counted = settled(stage)
    divergences = stage.status("comparer")["divergences"]
    assert (counted["divergences"], counted["unprotected_flows"]) == (0, 0), divergences
    return counted


def show(**figures: object) -> None:
    """Figures for whoever runs pytest with -s or -rP."""
    print(time.strftime("%H:%M:%S"), ", ".join(f"{name} {value}" for name, value in figures.items()))
