"""The `qemu` frontend, over real sockets and with a real QEMU at the other end."""

from __future__ import annotations

import contextlib
import select
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packets import segment, udp

from bench.vm.monitor import Monitor
from lockstep.batch import Batch
from lockstep.capture.base import PortError
from lockstep.capture.qemu import QemuPort
from lockstep.qemu.address import Address
from lockstep.qemu.peer import Peer

PATIENCE = 20.0
GOOD = [udp(b"one"), udp(b"two"), udp(bytes(1400))]


def read(port: QemuPort, *others: QemuPort, count: int = 1) -> list[bytes]:
    """The next `count` frames that come to a port; the others do what they have to meanwhile."""
    frames: list[bytes] = []
    deadline = time.monotonic() + PATIENCE
    while len(frames) < count:
        assert time.monotonic() < deadline, "waited in vain"
        for one in select.select([port, *others], [], [], 0.05)[0]:
            batch = one.read()
            if one is port and batch is not None:
                frames += batch.frames()
    assert len(frames) == count
    return frames


def until(done: Callable[[], object], *ports: QemuPort) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        for port in select.select(ports, [], [], 0.05)[0]:
            assert port.read() is None


@pytest.fixture(params=[0, 10, 12])
def pair(request: pytest.FixtureRequest, run_dir: Path) -> Iterator[tuple[QemuPort, QemuPort]]:
    """A server and a client, of one size of virtio-net header."""
    address = Address.parse(f"unix://{run_dir}/net.sock")
    with contextlib.ExitStack() as stack:
        made = [QemuPort("mirror.guest", address, server, request.param) for server in (True, False)]
        for port in made:
            stack.callback(port.close)
        until(lambda: all(port.counters["connections"] for port in made), *made)
        yield made[0], made[1]


def test_frames_go_both_ways_and_are_counted(pair: tuple[QemuPort, QemuPort]) -> None:
    here, there = pair
    size = here.vnet
    for one, other in ((here, there), (there, here)):
        one.write(Batch.of(GOOD))
        assert read(other, one, count=3) == [bytes(size) + frame for frame in GOOD]
        assert (one.counters["frames_out"], one.counters["dropped_out"]) == (3, 0)
        assert other.counters["frames_in"] == 3
    assert here.read() is None


def test_a_super_frame_passes_whole_only_with_its_header(pair: tuple[QemuPort, QemuPort]) -> None:
    here, there = pair
    here.write(Batch.of([segment(1, 2, bytes(250), partial=True, vnet=10, gso_size=100)], 10))
    if here.vnet:
        whole = segment(1, 2, bytes(250), partial=True, vnet=here.vnet, gso_size=100)
        assert read(there, here) == [whole]
    else:
        assert read(there, here, count=3)[2] == segment(201, 2, bytes(50), ident=3)


def test_without_a_peer_frames_are_dropped_and_counted(run_dir: Path) -> None:
    with contextlib.closing(QemuPort("mirror.guest", Address.parse(f"unix://{run_dir}/x"), False, 0)) as port:
        port.write(Batch.of(GOOD))
        assert (port.counters["frames_out"], port.counters["dropped_out"]) == (0, 3)


@pytest.mark.parametrize("bad", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n"])
def test_bytes_that_are_no_frames_end_the_connection_alone(run_dir: Path, bad: bytes) -> None:
    """They are counted; a beginning of a frame from before is not glued to what a new peer says."""
    address = Address.parse(f"unix://{run_dir}/net.sock")
    with contextlib.closing(QemuPort("mirror.guest", address, True, 0)) as port:
        for number, last in enumerate((bad, struct.pack(">I", 60) + b"cut off", struct.pack(">I", 4) + b"good")):
            with contextlib.closing(Peer(address, False)) as peer:
                until(lambda n=number: port.counters["connections"] == n + 1, port)  # type: ignore[misc]
                peer.work()
                assert peer.send(last)
                if number == 2:
                    assert read(port) == [b"good"]
                elif number == 0:
                    until(lambda: port.counters["framing_errors"], port)
            until(lambda n=number: port.counters["disconnects"] == n + 1, port)  # type: ignore[misc]
        assert port.counters["framing_errors"] == 1


def test_frames_with_headers_of_any_size_come_with_the_ports_own(run_dir: Path) -> None:
    """QEMU's header changes its size when the guest's driver is there."""
    address = Address.parse(f"unix://{run_dir}/net.sock")
    with (
        contextlib.closing(QemuPort("mirror.guest", address, True, 10)) as port,
        contextlib.closing(Peer(address, False)) as peer,
    ):
        until(lambda: port.counters["connections"], port)
        peer.work()
        peer.send(b"".join(struct.pack(">II", 5 + size, size) + bytes(size) + b"frame" for size in (0, 12, 10)))
        assert read(port, count=3) == [bytes(10) + b"frame"] * 3


def test_an_address_that_can_not_be_had_names_the_setting(run_dir: Path) -> None:
    address = Address.parse(f"unix://{run_dir}/none/net.sock")
    with pytest.raises(PortError, match=r"mirror\.guest\.address = unix://.*No such file"):
        QemuPort("mirror.guest", address, True, 0)


@pytest.mark.needs("qemu-system-x86_64")
@pytest.mark.parametrize("kind", ["stream", "socket"])
@pytest.mark.parametrize("server", [True, False])
def test_two_netdevs_of_a_real_qemu(run_dir: Path, kind: str, server: bool) -> None:
    """A hub in QEMU between two netdevs: what goes into one comes out of the other, byte for byte, both ways."""
    ports = {}
    arguments = []
    for number, name in enumerate("ab"):
        if kind == "stream":
            address = f"unix://{run_dir}/{name}.sock"
            how = f"server={'off' if server else 'on'},addr.type=unix,addr.path={run_dir}/{name}.sock"
        else:
            port = free_port()
            address = f"tcp://127.0.0.1:{port}"
            how = f"{'connect' if server else 'listen'}=127.0.0.1:{port}"
        arguments += ["-netdev", f"{kind},id={name},{how}"]
        arguments += ["-netdev", f"hubport,id=h{number},hubid=0,netdev={name}"]
        ports[name] = QemuPort(f"mirror.{name}", Address.parse(address), server, 0)
    with contextlib.ExitStack() as stack:
        for made in ports.values():
            stack.callback(made.close)
        qemu = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", *arguments),
                *("-qmp", f"unix:{run_dir}/qmp,server=on,wait=off"),
            ],
            stderr=subprocess.DEVNULL,
        )
        stack.callback(qemu.wait)
        stack.callback(qemu.kill)
        until(lambda: all(made.counters["connections"] for made in ports.values()), *ports.values())
        with contextlib.closing(Monitor(run_dir / "qmp")) as monitor:
            monitor.wait_for_netdevs()
        frames = [udp(bytes([number]) * (1 + number)) for number in range(200)]
        for one, other in (("a", "b"), ("b", "a")):
            ports[one].write(Batch.of(frames))
            assert read(ports[other], ports[one], count=200) == frames
        assert ports["a"].counters["framing_errors"] == 0


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number
