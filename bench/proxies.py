"""What stands between the client and the servers: our services, fused or not, QEMU's filters, or but a bridge."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.program import START, BenchError, python
from bench.qemu import QEMU
from bench.topology import Topology
from bench.usage import cpu_seconds, rss_mb
from lockstep.control import ControlError, request
from lockstep.demo.stage import ALL_IN_ONE, NODE_BY_NODE, Groups
from lockstep.wiring import SERVICES

#: Seconds in which QEMU's chardevs find each other.
_SETTLE = 1.5


class Proxy:
    """Stands in a topology until that ends. `programs`: its processes by name."""

    name = ""

    def __init__(self, topology: Topology) -> None:
        self.programs: dict[str, subprocess.Popen[bytes]] = {}
        self._topology = topology
        self._folder = tempfile.TemporaryDirectory(prefix="lockstep-bench-")
        self.folder = Path(self._folder.name)
        self.start()

    def start(self) -> None:
        """Start, and return once frames can pass."""
        raise NotImplementedError

    def _start(self, name: str, argv: list[str]) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.programs[name] = self._topology.start("hyp", argv, log)

    def alive(self) -> None:
        """Raises BenchError if one of its programs has ended."""
        for name, program in self.programs.items():
            if program.poll() is not None:
                words = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                raise BenchError(f"{self.name}: {name} ended with {program.returncode}\n{words}")

    def cpu(self) -> dict[str, float]:
        """CPU seconds used so far, by process."""
        return {name: cpu_seconds(program.pid) for name, program in self.programs.items()}

    def memory(self) -> dict[str, float]:
        """Resident MB, by process."""
        return {name: round(rss_mb(program.pid), 1) for name, program in self.programs.items()}

    def complaints(self) -> list[str]:
        """What it says itself that must not be."""
        return []

    def close(self) -> None:
        """Forget its files; its programs end with the topology."""
        self._folder.cleanup()


class Bridge(Proxy):
    """The client and the primary server in one bridge."""

    name = "bridge"

    def start(self) -> None:
        """See Proxy."""
        self._topology.bridge_through()


class Ours(Proxy):
    """Mirror, redirector, rewriter and comparer, each a process, joined over ipc. fuse: as the setting of that name.

    Each process stays on one CPU (`cpus`), in turn, and ipc links are direct, as `docs/performance.md` advises.
    """

    name = "ours"
    fuse: Groups = ()

    def start(self) -> None:
        """See Proxy."""
        config = self.folder / "node.toml"
        alone = [(service,) for service in SERVICES if not any(service in group for group in self.fuse)]
        groups = [*self.fuse, *alone]
        config.write_text(
            f'run_dir = "{self.folder}/run"\nfuse = {json.dumps(self.fuse)}\nipc = "direct"\n[cpus]\n{_cpus(groups)}'
            '[comparer]\non_divergence = "hold"\n[log]\nlevel = "warning"\n'
            '[mirror]\nnetwork.device = "tapw"\nguest.device = "tapg"\n'
            '[redirector]\nuplink.device = "tapd"\n[rewriter]\nguest.device = "tapg2"\n'
        )
        for group in groups:
            # The others of a group come with its first.
            self._start("+".join(group), [*python(f"services.{group[0]}"), "-c", str(config)])
        until = time.monotonic() + START
        for service in SERVICES:
            while True:
                self.alive()
                try:
                    self.status(service)
                    break
                except ControlError as error:
                    if time.monotonic() > until:
                        raise BenchError(f"the {service} does not answer: {error}") from error

    def status(self, service: str) -> dict[str, Any]:
        """What a service says of itself."""
        return request(f"ipc://{self.folder}/run/{service}.control", "status", 0.5)

    def complaints(self) -> list[str]:
        """Divergences, and whatever left unchecked besides ARP."""
        counters = self.status("comparer")["counters"]
        return [f"{name} = {counters[name]}" for name in ("divergences", "unprotected_flows") if counters[name]]


def _cpus(groups: Sequence[Sequence[str]]) -> str:
    """Each group's process on the next of the CPUs that there are, neighbours on two; one alone goes where it likes."""
    if len(groups) == 1:
        return ""
    cpus = sorted(os.sched_getaffinity(0))
    return "".join(f"{group[0]} = {cpus[number % len(cpus)]}\n" for number, group in enumerate(groups))


class FusedByNode(Ours):
    """The services of each node in one process: two processes, joined over ipc."""

    name = "fused"
    fuse = NODE_BY_NODE


class AllFused(Ours):
    """All four services in one process."""

    name = "all fused"
    fuse = ALL_IN_ONE


class QemuFilters(Proxy):
    """filter-mirror, filter-redirector, colo-compare and filter-rewriter in two QEMUs without a guest."""

    name = "peer"
    pinned = False

    def start(self) -> None:
        """See Proxy."""
        nothing = [QEMU, "-machine", "none", "-nodefaults", "-display", "none"]
        primary = [
            *_tap("w", "tapw"), *_tap("g", "tapg"),
            *_server("mirror0", 9003), *_server("compare1", 9004), *_server("compare0", 9001), *_server("out", 9005),
            *_client("compare0-0", 9001), *_client("out0", 9005),
            *_objects(
                "filter-mirror,id=m0,netdev=w,queue=tx,outdev=mirror0",
                "filter-redirector,id=r0,netdev=w,queue=rx,indev=out",
                "filter-redirector,id=r1,netdev=w,queue=rx,outdev=compare0",
                "iothread,id=io",
                "colo-compare,id=c0,primary_in=compare0-0,secondary_in=compare1,outdev=out0,iothread=io",
            ),
        ]  # fmt: skip
        secondary = [
            *_tap("g", "tapg2"), *_tap("w", "tapd"), *_client("red0", 9003), *_client("red1", 9004),
            *_objects(
                "filter-redirector,id=f1,netdev=w,queue=tx,indev=red0",
                "filter-redirector,id=f2,netdev=w,queue=rx,outdev=red1",
                "filter-rewriter,id=rew0,netdev=w,queue=all",
            ),
        ]  # fmt: skip
        cpus = sorted(os.sched_getaffinity(0))
        for number, (name, arguments) in enumerate((("primary", primary), ("secondary", secondary))):
            pin = ["taskset", "-c", str(cpus[number % len(cpus)])] if self.pinned else []
            self._start(name, [*pin, *nothing, *arguments])
            time.sleep(_SETTLE)
        self.alive()


class PinnedQemuFilters(QemuFilters):
    """The same, each QEMU on one CPU."""

    pinned = True


def _tap(name: str, device: str) -> list[str]:
    tap = f"tap,id={name},ifname={device},script=no,downscript=no,vnet_hdr=on"
    return ["-netdev", tap, "-netdev", f"hubport,id=h{name},hubid=0,netdev={name}"]


def _server(name: str, port: int) -> list[str]:
    return ["-chardev", f"socket,id={name},host=127.0.0.1,port={port},server=on,wait=off"]


def _client(name: str, port: int) -> list[str]:
    return ["-chardev", f"socket,id={name},host=127.0.0.1,port={port}"]


def _objects(*objects: str) -> list[str]:
    return [part for text in objects for part in ("-object", text)]
