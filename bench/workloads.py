"""What clients do through a proxy: each gives one figure, or None where the proxy stalled."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.bulk import BLOCK, SILENCE
from bench.program import BenchError, python
from bench.topology import SERVER, Topology

_PORT = 5001
#: Seconds that a workload may take before its proxy is said to stall.
_LONGEST = 40.0


@dataclass(frozen=True, slots=True)
class Workload:
    """unit: of the figure. lower: less is better. prepare: starts what it needs in the servers' namespaces."""

    name: str
    unit: str
    lower: bool
    prepare: Callable[[Topology], None]
    measure: Callable[[Topology, float], float | None]


def greet(topology: Topology) -> None:
    """The client speaks first, so that both servers know its MAC."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        program = topology.start("cli", ["ping", "-q", "-c", "1", "-W", "1", SERVER])
        if program.wait() == 0:
            return
    raise BenchError("the client can't reach the servers")


def _serve_bulk(topology: Topology) -> None:
    for server in ("srv", "srv2"):
        topology.start(server, [*python("bench.bulk"), "serve", SERVER, str(_PORT)])
    time.sleep(0.7)


def _fetch(topology: Topology, scale: float) -> float | None:
    """MB a second (10**6 bytes)."""
    size = max(1, round(96 * scale)) * BLOCK
    said = topology.run("cli", [*python("bench.bulk"), "fetch", SERVER, str(_PORT), str(size)], _LONGEST)
    return None if said is None or said.startswith("stalled") else size / float(said) / 1e6


def _serve_redis(topology: Topology) -> None:
    quiet = ["--save", "", "--appendonly", "no", "--protected-mode", "no", "--bind", SERVER]
    for server in ("srv", "srv2"):
        topology.start(server, ["redis-server", *quiet])
    time.sleep(0.7)


def _redis_set(clients: int, requests: int) -> Callable[[Topology, float], float | None]:
    def measure(topology: Topology, scale: float) -> float | None:
        """SET requests a second."""
        count = str(max(100, round(requests * scale)))
        command = ["redis-benchmark", "-h", SERVER, "-t", "set", "-c", str(clients), "-n", count, "--csv"]
        said = topology.run("cli", command, SILENCE + 20)
        return None if said is None else float(said.splitlines()[-1].split(",")[1].strip('"'))

    return measure


def _nothing(topology: Topology) -> None:
    """Kernels answer pings themselves."""


def _ping(topology: Topology, scale: float) -> float | None:
    """Milliseconds of a round trip, on average."""
    count = str(max(20, round(400 * scale)))
    said = topology.run("cli", ["ping", "-q", "-c", count, "-i", "0.005", SERVER], _LONGEST)
    found = re.search(r"= [\d.]+/([\d.]+)/", said or "")
    return float(found[1]) if found else None


WORKLOADS = (
    Workload("download", "MB/s", False, _serve_bulk, _fetch),
    Workload("redis-set-1", "1/s", False, _serve_redis, _redis_set(1, 8_000)),
    Workload("redis-set-32", "1/s", False, _serve_redis, _redis_set(32, 60_000)),
    Workload("ping", "ms", True, _nothing, _ping),
)
