"""Links to filters of a real QEMU: byte-exact delivery, status off and on, reconnect.

The equivalents of QEMU's own tests/qtest/test-filter-mirror.c and test-filter-redirector.c.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packets import udp

from bench.vm.monitor import Monitor
from lockstep.batch import Batch
from lockstep.capture.qemu import QemuPort
from lockstep.link.qemu import QemuReceiver, QemuSender
from lockstep.link.zmq import LinkError
from lockstep.qemu.address import Address
from lockstep.streams import Cut, Gap

PATIENCE = 20.0
FRAMES = [b"Hello!" * 9, udp(b"x"), udp(bytes(1400)), bytes(range(256)) * 5]


class End:
    """Anything with a descriptor that needs care, and what it has received."""

    def __init__(self, end: QemuPort | QemuReceiver | QemuSender) -> None:
        self.end = end
        self.frames: list[bytes] = []
        self.gaps: list[Gap] = []

    def fileno(self) -> int:
        return self.end.fileno() if isinstance(self.end, QemuPort) else self.end.socket

    def work(self) -> None:
        if isinstance(self.end, QemuSender):
            self.end.flush()
            return
        items: Any = [self.end.read()] if isinstance(self.end, QemuPort) else self.end.receive() or []
        for item in items:
            if isinstance(item, Batch):
                self.frames += item.frames()
            elif isinstance(item, Gap):
                self.gaps.append(item)


def until(done: Callable[[], object], *ends: End) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        for end in select.select(ends, [], [], 0.05)[0]:
            end.work()


class Qemu:
    """A QEMU without a machine: a hub with two netdevs, `n` to our `port` and one to `beyond`; filters on `n`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.port = End(QemuPort("mirror.network", Address.parse(f"unix://{folder}/net"), True, 0))
        self.beyond = End(QemuPort("mirror.guest", Address.parse(f"unix://{folder}/beyond"), True, 0))
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"),
                *("-netdev", f"stream,id=n,server=off,addr.type=unix,addr.path={folder}/net"),
                *("-netdev", "hubport,id=h,hubid=0,netdev=n"),
                *("-netdev", f"stream,id=m,server=off,addr.type=unix,addr.path={folder}/beyond"),
                *("-netdev", "hubport,id=i,hubid=0,netdev=m"),
                *("-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
                *arguments,
            ],
            stderr=subprocess.DEVNULL,
        )
        for port in (self.port, self.beyond):
            until(lambda one=port: one.end.counters["connections"], port)  # type: ignore[misc]
        self._monitor = Monitor(folder / "qmp")
        self._monitor.wait_for_netdevs()

    def turn(self, name: str, status: str) -> None:
        """Set a filter's status."""
        self._monitor.command("qom-set", path=f"/objects/{name}", property="status", value=status)

    def say(self, frames: list[bytes]) -> None:
        """Frames come in from the network."""
        assert isinstance(self.port.end, QemuPort)
        self.port.end.write(Batch.of(frames))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._monitor.close()
        self.port.end.close()
        self.beyond.end.close()


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Qemu]:
    with contextlib.closing(Qemu(folder, *arguments)) as made:
        yield made


@contextlib.contextmanager
def receiving(folder: Path, vnet_hdr: int = 0, epoch: int = 0) -> Iterator[End]:
    """The consumer of `primary`, listening."""
    address = Address.parse(f"unix://{folder}/chardev")
    with contextlib.closing(QemuReceiver("primary", address, True, vnet_hdr, lambda: epoch)) as made:
        yield End(made)


@pytest.mark.needs("qemu-system-x86_64")
@pytest.mark.parametrize("vnet_hdr", [0, 10])
@pytest.mark.parametrize("kind", ["filter-mirror", "filter-redirector"])
def test_what_a_filter_gives_out_arrives_byte_for_byte_while_its_status_is_on(
    run_dir: Path, kind: str, vnet_hdr: int
) -> None:
    with (
        receiving(run_dir, vnet_hdr) as ours,
        running(
            run_dir,
            *("-chardev", f"socket,id=c,path={run_dir}/chardev"),
            *("-object", f"{kind},id=f,netdev=n,queue=tx,outdev=c,vnet_hdr_support={'on' if vnet_hdr else 'off'}"),
        ) as qemu,
    ):
        until(lambda: ours.end.counters["connections"], ours)
        qemu.say(FRAMES)
        until(lambda: len(ours.frames) == len(FRAMES), ours)
        assert ours.frames == FRAMES
        qemu.turn("f", "off")
        qemu.say([b"not to be seen" * 5])
        until(lambda: b"not to be seen" * 5 in qemu.beyond.frames, qemu.beyond)
        # A mirror copies what it sees, a redirector takes it away.
        assert qemu.beyond.frames[:-1] == (FRAMES if kind == "filter-mirror" else [])
        qemu.turn("f", "on")
        qemu.say([b"seen again" * 6])
        until(lambda: len(ours.frames) > len(FRAMES), ours)
        assert ours.frames[len(FRAMES) :] == [b"seen again" * 6]
        assert ours.gaps == []


@pytest.mark.needs("qemu-system-x86_64")
def test_what_goes_into_a_redirector_comes_out_of_the_netdev(run_dir: Path) -> None:
    """Queue rx is what a netdev gets from the guest: so it leaves towards the network."""
    sender = QemuSender("released", Address.parse(f"unix://{run_dir}/chardev"), False, 0)
    ours = End(sender)
    with (
        contextlib.closing(sender),
        running(
            run_dir,
            *("-chardev", f"socket,id=c,path={run_dir}/chardev,server=on,wait=off"),
            *("-object", "filter-redirector,id=f,netdev=n,queue=rx,indev=c"),
        ) as qemu,
    ):
        until(lambda: sender.counters["connections"], ours)
        assert sender.send(Batch.of(FRAMES), 0)
        until(lambda: len(qemu.port.frames) == len(FRAMES), ours, qemu.port)
        assert qemu.port.frames == FRAMES


@pytest.mark.needs("qemu-system-x86_64")
def test_a_link_outlives_either_end(run_dir: Path) -> None:
    """A new connection is a gap; what is said after it arrives. `reconnect` is QEMU's own setting."""
    chardev = ("-chardev", f"socket,id=c,path={run_dir}/chardev,reconnect=1")
    mirror = ("-object", "filter-mirror,id=f,netdev=n,queue=tx,outdev=c")
    with receiving(run_dir) as ours:
        for number in range(2):
            with running(run_dir, *chardev, *mirror) as qemu:
                until(lambda n=number: ours.end.counters["connections"] == n + 1, ours)  # type: ignore[misc]
                until(lambda n=number: b"hello %d" % n * 10 in ours.frames or qemu.say([b"hello %d" % n * 10]), ours)  # type: ignore[misc]
        assert set(ours.frames) == {b"hello 0" * 10, b"hello 1" * 10}
        assert ours.gaps == [Gap("restarted")]
    with running(run_dir, *chardev, *mirror) as qemu:
        for _ in range(2):
            with receiving(run_dir) as ours:
                until(lambda: ours.end.counters["connections"], ours)
                # QEMU learns that it is connected some time after we do.
                until(lambda: ours.frames or qemu.say([b"again" * 10]), ours)
                assert set(ours.frames) == {b"again" * 10}


# Without a QEMU.


def joined(run_dir: Path, epoch: int = 0) -> tuple[contextlib.ExitStack, End, End]:
    stack = contextlib.ExitStack()
    address = Address.parse(f"unix://{run_dir}/chardev")
    consumer = QemuReceiver("secondary", address, True, 0, lambda: epoch)
    stack.callback(consumer.close)
    producer = QemuSender("secondary", address, False, 0)
    stack.callback(producer.close)
    ends = End(producer), End(consumer)
    until(lambda: producer.counters["connections"] and consumer.counters["connections"], *ends)
    return stack, *ends


def test_frames_are_of_the_epoch_that_the_consumer_is_in_and_cuts_are_not_carried(run_dir: Path) -> None:
    stack, producer, consumer = joined(run_dir, epoch=7)
    with stack:
        assert isinstance(producer.end, QemuSender)
        assert isinstance(consumer.end, QemuReceiver)
        assert not producer.end.send(Cut(8, "commit"), 7)
        assert producer.end.counters["dropped_cuts"] == 1
        assert producer.end.send(Batch.of([b"frame" * 12]), 3)
        assert select.select([consumer], [], [], PATIENCE)[0]
        (item,) = consumer.end.receive() or []
        assert isinstance(item, Batch)
        assert (item.frames(), item.epoch) == ([b"frame" * 12], 7)
        assert not select.select([consumer], [], [], 0)[0]
        assert consumer.end.receive() is None


def test_a_producer_without_its_consumer_drops_and_says_so(run_dir: Path) -> None:
    stack, producer, consumer = joined(run_dir)
    with stack:
        consumer.end.close()
        until(lambda: producer.end.counters["disconnects"], producer)
        assert isinstance(producer.end, QemuSender)
        assert not producer.end.send(Batch.of([b"lost" * 20, b"too" * 20]), 0)
        assert producer.end.counters["dropped_frames"] == 2


def test_garbage_is_rejected_with_its_reason_and_the_next_connection_is_a_gap(run_dir: Path) -> None:
    stack, producer, consumer = joined(run_dir)
    with stack:
        assert isinstance(producer.end, QemuSender)
        assert isinstance(consumer.end, QemuReceiver)
        producer.end._peer.send(b"\xff\xff\xff\xffgarbage")
        until(lambda: consumer.end.rejected, consumer)
        assert "a frame of 4294967295 bytes" in consumer.end.last_rejection
        until(lambda: producer.end.counters["connections"] == 2, producer, consumer)
        producer.end.send(Batch.of([b"good" * 20]), 0)
        until(lambda: consumer.frames, producer, consumer)
        assert (consumer.frames, consumer.gaps) == ([b"good" * 20], [Gap("restarted")])


def test_an_address_that_can_not_be_had_names_the_setting(run_dir: Path) -> None:
    with pytest.raises(LinkError, match=r"links\.primary = qemu\+unix://.*No such file"):
        QemuReceiver("primary", Address.parse(f"unix://{run_dir}/none/x"), True, 0, lambda: 0)
