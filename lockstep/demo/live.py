"""The scenarios in network namespaces: real kernels at every end, the four services between."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lockstep import control
from lockstep.demo import devices, payload, scenarios
from lockstep.demo.addresses import ADDRESSES, CLIENTS_PORT, GUESTS_SOURCE_PORT, PORT
from lockstep.demo.display import PERIOD, Display
from lockstep.demo.namespaces import Namespace
from lockstep.demo.scenarios import Figures, Transfer
from lockstep.demo.server import header
from lockstep.demo.stage import NODE_BY_NODE, Stage, StageError

_MIB = 1 << 20
#: Seconds after which the client of `diverge` believes that nothing more will come.
_PATIENCE = 1.0
#: A transfer shorter than this is held down to a second, so that there is a middle to fail over in.
_UNPACED = 64 * _MIB

Watch = Callable[[int], None]


class Namespaces:
    """A theatre with a fresh stage for each run."""

    mode = "namespaces"
    sizes: Mapping[scenarios.Scenario, Mapping[str, int]] = {
        "serve": {"download": 256 * _MIB, "upload": 64 * _MIB},
        "diverge": {"download": 8 * _MIB},
        "failover": {"download": 128 * _MIB, "upload": 128 * _MIB},
    }

    def __init__(self, keep_logs: Path | None, fuse: bool, capture: str) -> None:
        self._more: dict[str, Any] = {
            "keep_logs": keep_logs, "fuse": NODE_BY_NODE if fuse else (), "capture": capture
        }  # fmt: skip
        self.missing: Mapping[str, str] = devices.probe()

    def serve(self, legs: list[Transfer], display: Display) -> Figures:
        """See Theatre."""
        run: Figures = {"network": legs[0].network, "opened_by": legs[0].opened_by}
        results = []
        with self._stage("unprotect") as stage:
            for number, leg in enumerate(legs):
                # A port of its own for each connection: the guest that closes first keeps it in TIME_WAIT.
                with _Guests(stage, leg, source_port=GUESTS_SOURCE_PORT + number) as guests:
                    result = guests.transfer(lambda done, leg=leg: _show(display, stage, done, leg))  # type: ignore[misc]
                results.append(result)
                run[leg.direction] = _leg(result, leg)
            counters = stage.status("comparer")["counters"]
        return run | _counted(counters) | {
            "sha256_ok": all(run[leg.direction]["sha256_ok"] for leg in legs),
            "reconnects": sum(result["reconnects"] for result in results),
            "longest_pause_ms": max(result["longest_pause_ms"] for result in results),
            "wrong_bytes_delivered": sum(result["wrong_bytes_delivered"] for result in results),
        }  # fmt: skip

    def diverge(self, transfer: Transfer, display: Display) -> Figures:
        """See Theatre."""
        place = transfer.size // 8
        with self._stage("hold") as stage, _Guests(stage, transfer, flip=place) as guests:
            result = guests.transfer(lambda done: _show(display, stage, done, transfer), give_up=_PATIENCE)
            status = stage.status("comparer")
        found = status["divergences"][-1] if status["divergences"] else {}
        return {
            "network": transfer.network,
            "planted_offset": len(header(transfer.size)) + place,
            "found_offset": found.get("offset"),
            "reason": found.get("reason"),
            "flow": found.get("flow"),
            "bytes": result["bytes"],
            "held": status.get("held"),
            "wrong_bytes_delivered": result["wrong_bytes_delivered"],
            **_counted(status["counters"]),
        }

    def failover(self, transfer: Transfer, display: Display) -> Figures:
        """See Theatre."""
        counters: Mapping[str, int] = {}
        failover_ms = None

        def watch(done: int) -> None:
            nonlocal counters, failover_ms
            _show(display, stage, done, transfer)
            if failover_ms is None and done >= transfer.size // 3:
                counters = stage.status("comparer")["counters"]
                started = time.monotonic()
                # The mirror first, so that no FIN of the dying server gets through.
                stage.services["mirror"].process.send_signal(signal.SIGKILL)
                guests.kill_primary()
                stage.failover()
                failover_ms = (time.monotonic() - started) * 1000

        with self._stage("unprotect") as stage, _Guests(stage, transfer) as guests:
            pace = transfer.size if transfer.size < _UNPACED else None
            result = guests.transfer(watch, pace=pace)
        if failover_ms is None:
            early = f"it ended after {result['bytes']} bytes, before the primary was killed"
            raise StageError(f"{transfer}: {early}: {result['error']}")
        return {
            "network": transfer.network,
            "direction": transfer.direction,
            "opened_by": transfer.opened_by,
            **_leg(result, transfer),
            "reconnects": result["reconnects"],
            "longest_pause_ms": result["longest_pause_ms"],
            "failover_ms": round(failover_ms, 1),
            "wrong_bytes_delivered": result["wrong_bytes_delivered"],
            **_counted(counters),
            "error": result["error"],
        }

    @contextmanager
    def _stage(self, on_divergence: str) -> Iterator[Stage]:
        with Stage(comparer={"on_divergence": on_divergence}, **self._more) as stage:
            try:
                yield stage
            except control.ControlError as error:
                raise stage.explained(error) from error


class _Guests:
    """The two replicas of the guest's server, and the client's request to them."""

    def __init__(
        self, stage: Stage, transfer: Transfer, flip: int | None = None, source_port: int = GUESTS_SOURCE_PORT
    ) -> None:
        self._stage, self._transfer, self._flip, self._source_port = stage, transfer, flip, source_port
        self._servers: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> _Guests:
        if self._transfer.opened_by == "client":
            self._start_servers("--port", PORT)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.kill()
            server.wait()

    def kill_primary(self) -> None:
        """SIGKILL to the primary's server."""
        self._servers[0].send_signal(signal.SIGKILL)

    def transfer(self, watch: Watch, give_up: float = 20.0, pace: int | None = None) -> Figures:
        """Have the client make its request, and give its result. `watch` is told how many bytes went over."""
        transfer = self._transfer
        subnet = ADDRESSES[transfer.network]
        where: tuple[str | int, ...] = ("--connect", subnet.guest, "--port", PORT)
        if transfer.opened_by == "guest":
            where = ("--listen", subnet.client, "--port", CLIENTS_PORT)
        arguments: tuple[str | float, ...] = (*where, f"--{transfer.direction}", transfer.size, "--give-up", give_up)
        if pace:
            arguments = (*arguments, "--pace", pace)
        client = self._stage.python(
            self._stage.client_ns, "lockstep.demo.client", *map(str, arguments), stdout=subprocess.PIPE
        )
        lines = _Lines(client)
        done = 0
        while True:
            message = lines.next(PERIOD)
            if "result" in message:
                result: Figures = message["result"]
                return result
            if "ready" in message:
                there = ("--connect", subnet.client, "--port", CLIENTS_PORT)
                self._start_servers(*there, "--source-port", self._source_port)
            done = message.get("progress", done)
            watch(done)

    def _start_servers(self, *arguments: str | int) -> None:
        stage = self._stage
        self._servers = [
            self._server(stage.srv_ns, *arguments),
            self._server(stage.srv2_ns, *arguments, *(() if self._flip is None else ("--flip", self._flip))),
        ]
        for server in self._servers:
            _Lines(server).next(None)

    def _server(self, namespace: Namespace, *arguments: str | int) -> subprocess.Popen[Any]:
        return self._stage.python(namespace, "lockstep.demo.server", *arguments, stdout=subprocess.PIPE)


class _Lines:
    """The lines of a program's output, each a JSON object."""

    def __init__(self, program: subprocess.Popen[Any]) -> None:
        assert program.stdout is not None
        self._program, self._pipe = program, program.stdout
        self._rest = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)

    def next(self, timeout: float | None) -> dict[str, Any]:
        """The next object, or an empty one after `timeout`; raises StageError where none will ever come."""
        while b"\n" not in self._rest:
            if not self._selector.select(timeout):
                return {}
            got = os.read(self._pipe.fileno(), 65536)
            if not got:
                code = self._program.wait()
                raise StageError(f"{self._program.args!r} ended with {code} before it was done")
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def _show(display: Display, stage: Stage, done: int, transfer: Transfer) -> None:
    def counters() -> Mapping[str, Any]:
        try:
            status = stage.status("comparer", timeout=0.2)
        except control.ControlError:
            return {}
        return {**status["counters"], "held": status.get("held")}

    display.progress(done, transfer.size, counters)


def _leg(result: Figures, transfer: Transfer) -> Figures:
    seconds = result["seconds"]
    return {
        "bytes": result["bytes"],
        "sha256_ok": result["sha256"] == payload.digest(transfer.size),
        "seconds": round(seconds, 3),
        "mb_per_s": round(result["bytes"] / seconds / 1e6, 1) if seconds else 0.0,
    }


def _counted(counters: Mapping[str, int]) -> Figures:
    return {name: counters[name] for name in ("divergences", "released")}
