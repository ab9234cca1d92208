"""A SYN flood beside ten downloads: they finish, right and protected, and nobody's memory grows without end.

LOCKSTEP_FLOOD: how many SYNs, each from an address and port of its own; 40,000 by default.
LOCKSTEP_FLOOD_RATE: how many of them a second; 20,000 by default. The mirror lets 4,000 of them pass; what is more
than it can read is lost in the kernel's queue in front of it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import zmq
from kernel.flood import SOURCES
from pyroute2 import IPRoute
from scenarios.traffic import LONG, Program, assert_protected, counters, end, said, settled, show

from lockstep.control import Listener
from lockstep.demo import payload
from lockstep.demo.addresses import ADDRESSES, PORT
from lockstep.demo.stage import Stage, wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

SYNS = int(os.environ.get("LOCKSTEP_FLOOD", "40000"))
RATE = int(os.environ.get("LOCKSTEP_FLOOD_RATE", "20000"))
DOWNLOADS = 10
#: Bytes a second of each download, so that it lasts longer than the flood.
PACE = 400_000
#: Most MiB that a service may ever have had in memory, whatever the flood.
MOST_MIB = {"mirror": 80, "redirector": 80, "rewriter": 120, "comparer": 120}
HERE = Path(__file__).parent
#: A port of its own for SYNs that must not disturb the queue of the server.
FLOODED = 81


class Download(threading.Thread):
    """One download, watched."""

    def __init__(self, stage: Stage, size: int) -> None:
        super().__init__(daemon=True)
        self.size = size
        arguments = ("--connect", ADDRESSES["ipv4"].guest, "--port", PORT, "--download", size, "--give-up", 60)
        self.program: Program = stage.python(
            stage.client_ns, "lockstep.demo.client", *map(str, (*arguments, "--pace", PACE)), stdout=subprocess.PIPE
        )
        self.done = 0
        self.result: dict[str, object] = {}
        self.start()

    def run(self) -> None:
        while not self.result:
            message = said(self.program)
            self.done = message.get("progress", self.done)
            self.result = message.get("result", {})

    def assert_right(self) -> None:
        """Every byte went over its one connection, and is right."""
        done = -1
        while self.is_alive() and done != self.done:
            done = self.done
            self.join(LONG)
        found = {name: self.result.get(name) for name in ("error", "bytes", "wrong_bytes_delivered", "reconnects")}
        assert found == {"error": None, "bytes": self.size, "wrong_bytes_delivered": 0, "reconnects": 0}, self.result
        assert self.result["sha256"] == payload.digest(self.size)


class Unprotected(threading.Thread):
    """Hears which flows of the client itself the comparer gives up; `flood`: how many of the flood's."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(daemon=True)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._listener = Listener(self._context, [f"ipc://{stage.run_dir}/comparer.events"])
        self._client = f" {ADDRESSES['ipv4'].client}:"
        self.flows: list[dict[str, object]] = []
        self.flood = 0
        self.stopping = False
        self.start()

    def run(self) -> None:
        (socket,) = self._listener.sockets
        while not self.stopping:
            if not socket.poll(100):
                continue
            for event in self._listener.receive(socket) or ():
                if event.name == "divergence" and self._client in str(event.fields["flow"]):
                    self.flows.append(dict(event.fields))
                elif event.name == "divergence":
                    self.flood += 1

    def stop(self) -> None:
        """Hear no more."""
        self.stopping = True
        self.join(LONG)
        self._listener.close()
        self._context.term()


def peak(pid: int) -> int:
    """Most MiB that a process has had in memory."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) >> 10


def flood(stage: Stage, count: int, port: int = PORT) -> dict[str, float]:
    """Send the SYNs."""
    argv = [HERE / "flood.py", ADDRESSES["ipv4"].guest, port, "--count", count, "--rate", RATE]
    done = stage.run(stage.client_ns, [sys.executable, *map(str, argv)], timeout=count / RATE + 120)
    assert done.returncode == 0, done.stderr
    result: dict[str, float] = json.loads(done.stdout)
    return result


def lost(stage: Stage) -> dict[str, int]:
    """Frames that each guest's kernel dropped because nobody read its TAP in time."""
    found = {}
    for name, namespace in (("primary", stage.srv_ns), ("secondary", stage.srv2_ns), ("network", stage.network_ns)):
        with namespace.entered(), IPRoute() as ip:
            links = [link for link in ip.get_links() if link.get_attr("IFLA_LINKINFO")]
            found[name] = sum(link.get_attr("IFLA_STATS64")["tx_dropped"] for link in links)
    return found


@pytest.fixture
def servers() -> Iterator[list[Program]]:
    """Servers that the test has started."""
    started: list[Program] = []
    yield started
    end(*started)


def inhabit(stage: Stage, servers: list[Program]) -> None:
    """A server on both guests, and a way back to the sources of the flood: through the client, who drops it."""
    for namespace in (stage.srv_ns, stage.srv2_ns):
        with namespace.entered(), IPRoute() as ip:
            ip.route("add", dst=SOURCES, gateway=ADDRESSES["ipv4"].client)
        servers.append(stage.python(namespace, "lockstep.demo.server", "--port", PORT, stdout=subprocess.PIPE))
        assert "ready" in said(servers[-1])


def test_ten_downloads_beside_a_flood(tmp_path: Path, servers: list[Program]) -> None:
    """All ten finish with right checksums and stay protected; memory stays under the limit."""
    with Stage(keep_logs=tmp_path) as stage:
        inhabit(stage, servers)
        unprotected = Unprotected(stage)
        before = {name: peak(service.pid) for name, service in stage.services.items()}
        size = max(4 << 20, int(PACE * SYNS / RATE * 1.3))
        downloads = [Download(stage, size) for _ in range(DOWNLOADS)]
        wait_for(lambda: all(one.done for one in downloads), "ten downloads to begin", LONG)
        began = time.monotonic()
        figures = flood(stage, SYNS)
        behind = stage.status("comparer", timeout=LONG)["held"]
        running = sum(not one.result for one in downloads)
        for one in downloads:
            one.assert_right()
        seconds = time.monotonic() - began
        status = stage.status("comparer", timeout=LONG)
        counted = settled(stage)
        unprotected.stop()
        after = {name: peak(service.pid) for name, service in stage.services.items()}
        arrived = stage.status("mirror", timeout=LONG)["ports"]["network"]["frames_in"]
        rewriter = stage.status("rewriter", timeout=LONG)
        dropped = lost(stage)
    show(
        flood=figures,
        running_at_its_end=running,
        held_at_its_end=behind,
        seconds=round(seconds, 1),
        arrived=arrived,
        dropped=dropped,
    )
    show(
        mib_before=before,
        mib_peak=after,
        half_open=status["half_open"],
        flows=status["flows"],
        given_up=len(unprotected.flows),
    )
    show(connections=rewriter["connections"], **{name: value for name, value in counted.items() if value})
    assert running == DOWNLOADS
    # A SYN-ACK of the flood that is said again by one guest alone counts as a divergence of its own flow.
    assert unprotected.flows == []
    assert unprotected.flood == counted["divergences"] == counted["unprotected_flows"]
    assert status["half_open"] <= 16_384
    assert rewriter["half_open"] <= 16_384
    assert all(after[name] <= most for name, most in MOST_MIB.items()), after


@contextmanager
def long_queues(stage: Stage, port: int) -> Iterator[None]:
    """On both guests a listener that takes every SYN without a cookie.

    Namespaces of one kernel share the key of their SYN cookies: the same SYN would get the same number from
    both guests, so that a connection which the rewriter does not know would need no rewriting.
    """
    with ExitStack() as stack:
        for namespace in (stage.srv_ns, stage.srv2_ns):
            with namespace.entered():
                Path("/proc/sys/net/core/somaxconn").write_text("8192")
                Path("/proc/sys/net/ipv4/tcp_max_syn_backlog").write_text("8192")
                stack.enter_context(socket.create_server(("0.0.0.0", port), backlog=8192))
        yield


def test_connection_after_a_flood(tmp_path: Path, servers: list[Program]) -> None:
    """A flood that filled the rewriter's pool of half-open connections leaves room for those that are meant."""
    with (
        Stage(keep_logs=tmp_path, settings={"rewriter": {"max_half_open": 1024}}) as stage,
        long_queues(stage, FLOODED),
    ):
        inhabit(stage, servers)
        flood(stage, 4000, FLOODED)
        settled(stage)
        download = Download(stage, 2 << 20)
        download.assert_right()
        show(rewriter=counters(stage, "rewriter"))
        assert_protected(stage)
