"""`python -m bench capture`: what a frame costs each capture frontend, written at one end and read at the other.

Delay is from the write until the read has returned, one frame at a time, the median. `vhost-user` is one port,
and a guest that sends back what it receives; what the guest takes for that is left out.
"""

from __future__ import annotations

import select
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import figures
from bench.traffic import Traffic
from bench.vhost_frontend import GUEST_START, WRITE, Arena, Driver, FrontEnd
from lockstep.batch import Batch
from lockstep.capture import memory, tap
from lockstep.capture.base import Port, PortError
from lockstep.capture.packet import PacketPort
from lockstep.capture.qemu import QemuPort
from lockstep.capture.vhost_user import VhostUserPort
from lockstep.demo.namespaces import Namespace
from lockstep.qemu.address import Address

#: Where frames are written, where they are read, and what has to happen in between.
Ends = tuple[Port, Port, Callable[[], None]]
#: Frames in one batch: what a device's queue holds without loss.
_BATCH = 128
#: Seconds without a frame after which the rest is lost.
_SILENCE = 0.3
#: Frames that are sent one at a time.
_SINGLE = 2000
_TAPS = ("tapa", "tapb")


def measure(*, frames: int, payloads: tuple[int, ...], say: Callable[[str], None]) -> dict[str, Any]:
    """Every frontend that can be had here; the document that `--json` prints."""
    results, findings = [], []
    for name, opened in FRONTENDS.items():
        for payload in payloads:
            traffic = Traffic.make(1, payload, frames)
            try:
                with opened() as ends:
                    results.append({"name": name, "payload": payload} | _passed(ends, traffic))
            except (OSError, PortError, subprocess.CalledProcessError) as error:
                findings.append(f"{name}: {error}")
                break
            say(f"{name}: {results[-1]}")
    return {"runs": results, "findings": findings, "machine": figures.machine()}


def _passed(ends: Ends, traffic: Traffic) -> dict[str, float]:
    """CPU microseconds of this process for each frame written and read, and how many were lost."""
    near, far, between = ends
    writing = reading = 0.0
    came = 0
    with select.epoll() as poller:
        poller.register(far.fileno(), select.EPOLLIN)
        for batch in traffic.batches(traffic.measured, _BATCH * traffic.size):
            writing += _timed(near.write, batch)
            between()
            wanted = came + len(batch)
            while came < wanted and poller.poll(_SILENCE):
                began = time.process_time()
                got = far.read()
                reading += time.process_time() - began
                if not isinstance(got, Batch):
                    break
                came += sum(length - got.vnet == traffic.size for length in got.lengths)
            came = min(came, wanted)
    return {
        "write_us": figures.rounded(writing / traffic.frames * 1e6),
        "read_us": figures.rounded(reading / max(came, 1) * 1e6),
        "delay_us": figures.rounded(_delay(ends, traffic) * 1e6),
        "lost": traffic.frames - came,
    }


def _delay(ends: Ends, traffic: Traffic) -> float:
    """Seconds from a write until the read has returned, the median."""
    near, far, between = ends
    seen = []
    while far.read() is not None:
        pass
    for single in traffic.batches(traffic.measured[: _SINGLE * traffic.size], traffic.size):
        began = time.perf_counter()
        near.write(single)
        written = time.perf_counter() - began
        between()
        began = time.perf_counter()
        while far.read() is None and select.select([far], [], [], _SILENCE)[0]:
            pass
        seen.append(written + time.perf_counter() - began)
    return statistics.median(seen)


def _timed(write: Callable[[Batch], None], batch: Batch) -> float:
    began = time.process_time()
    write(batch)
    return time.process_time() - began


def _nothing() -> None:
    """What was written is on its way."""


@contextmanager
def _memory() -> Iterator[Ends]:
    near, far = memory.pair("bench")
    yield near, far, _nothing
    near.close()
    far.close()


@contextmanager
def _taps() -> Iterator[Ends]:
    """Two TAPs in one bridge, in a namespace of their own."""
    with _namespace() as namespace, ExitStack() as stack:
        ends = []
        for device in _TAPS:
            ends.append(tap.TapPort(f"bench.{device}", device, namespace.path))
            stack.callback(ends[-1].close)
        _ip(
            namespace,
            "link add br0 type bridge",
            "link set br0 up",
            "link set tapa master br0",
            "link set tapb master br0",
        )
        yield ends[0], ends[1], _nothing


@contextmanager
def _packets() -> Iterator[Ends]:
    """Both ends of a veth pair."""
    with _namespace() as namespace, ExitStack() as stack:
        _ip(namespace, "link add va type veth peer name vb", "link set va up", "link set vb up")
        ends = []
        for device in ("va", "vb"):
            ends.append(PacketPort(f"bench.{device}", device, namespace.path))
            stack.callback(ends[-1].close)
        yield ends[0], ends[1], _nothing


@contextmanager
def _qemus() -> Iterator[Ends]:
    """Two of our ends of a unix socket, in QEMU's framing."""
    with tempfile.TemporaryDirectory(prefix="ls-", dir="/tmp") as folder, ExitStack() as stack:
        ends = []
        for server in (True, False):
            ends.append(QemuPort("bench.qemu", Address.parse(f"unix://{folder}/s"), server, 10))
            stack.callback(ends[-1].close)
        while not all(end.counters["connections"] for end in ends):
            for end in ends:
                end.read()
        yield ends[0], ends[1], _nothing


@contextmanager
def _vhost_users() -> Iterator[Ends]:
    with tempfile.TemporaryDirectory(prefix="ls-", dir="/tmp") as folder, ExitStack() as stack:
        port = VhostUserPort("bench.vhost", Address.parse(f"unix://{folder}/s"), True)
        stack.callback(port.close)
        guest = _Echo(Path(folder) / "s", lambda: _drain(port))
        stack.callback(guest.close)
        yield port, port, guest.turn


def _drain(port: Port) -> None:
    while select.select([port], [], [], 0)[0]:
        port.read()


class _Echo:
    """A guest that sends back whatever it receives, out of the buffers in which it was received."""

    _RING, _BUFFER, _BUFFERS = 256, 2048, GUEST_START + (64 << 10)

    def __init__(self, path: Path, turn: Callable[[], None]) -> None:
        self._arena = Arena((64 << 10) + self._RING * self._BUFFER)
        self._front = FrontEnd(path, turn)
        self._front.begin(self._arena)
        self._receive, self._transmit = (
            Driver(self._arena, start, self._RING) for start in (GUEST_START, GUEST_START + (16 << 10))
        )
        for head in range(self._RING):
            self._receive.describe(head, self._address(head), self._BUFFER, WRITE)
        self._receive.offer(*range(self._RING))
        for index, driver in enumerate((self._receive, self._transmit)):
            self._front.start(index, driver)

    def _address(self, head: int) -> int:
        return self._BUFFERS + head * self._BUFFER

    def turn(self) -> None:
        """Offer again what has been sent, and send what has come in, with one kick."""
        self._receive.offer(*(head for head, _ in self._transmit.returned()))
        received = self._receive.returned()
        for head, size in received:
            self._transmit.describe(head, self._address(head), size)
        self._transmit.offer(*(head for head, _ in received))
        for driver in (self._receive, self._transmit):
            driver.want_interrupt_at(driver.seen)
        self._front.kick(1)

    def close(self) -> None:
        self._front.close()
        self._arena.close()


@contextmanager
def _namespace() -> Iterator[Namespace]:
    namespace = Namespace("bench")
    try:
        with namespace.entered():
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        yield namespace
    finally:
        namespace.close()


def _ip(namespace: Namespace, *commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, preexec_fn=namespace.enter)


FRONTENDS: dict[str, Callable[[], Any]] = {
    "memory": _memory,
    "tap": _taps,
    "packet": _packets,
    "qemu": _qemus,
    "vhost-user": _vhost_users,
}


def show(document: dict[str, Any]) -> None:
    """The same for people."""
    rows = [tuple(run.values()) for run in document["runs"]]
    columns = ("frontend", "payload", "CPU µs/frame written", "CPU µs/frame read", "delay µs", "lost")
    figures.show("capture frontends", columns, rows, document["findings"])
