"""What a guest on `vhost-user` goes through, with the whole pipeline around it, or between two back-ends."""

from __future__ import annotations

import re
import select
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lockstep.batch import Batch
from lockstep.capture.vhost_user import VhostUserPort
from lockstep.qemu.address import Address
from lockstep.streams import Event
from lockstep.vhost.log import atomic
from vm.guest import PATIENCE, Guest, vhost_user
from vm.image import block
from vm.rig import SERVER, Rig

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("qemu-system-x86_64", "ping", "apt-get", "dpkg-deb"),
    pytest.mark.timeout(200),
]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with (
        tempfile.TemporaryDirectory(prefix="ls-", dir="/tmp") as folder,
        Rig(Path(folder), "vhost-user", "tap") as made,
    ):
        yield made


def answered(rig: Rig) -> None:
    """Wait until a ping comes back."""
    end = time.monotonic() + PATIENCE
    while "1 received" not in "".join(rig.ping(1)):
        assert time.monotonic() < end, "no ping is answered any more"


def test_a_ping_goes_on_over_a_restart_of_all_services(rig: Rig) -> None:
    answered(rig)
    lines: list[str] = []
    pinging = threading.Thread(target=lambda: lines.extend(rig.ping(60)))
    pinging.start()
    time.sleep(2)
    rig.stop_services()
    rig.start_services()
    pinging.join()
    numbers = [int(found[1]) for line in lines if (found := re.search(r"icmp_seq=(\d+) ttl", line))]
    assert numbers, lines
    assert numbers[0] < 5, "it was answered before"
    assert numbers[-1] > 50, f"and to the end: {numbers}"


def test_a_guest_whose_driver_is_unbound_and_bound_goes_on(rig: Rig) -> None:
    """The secondary does the same, since both have to answer."""
    for guest in rig.guests.values():
        guest.run("dev=$(basename $(readlink /sys/class/net/eth0/device)); driver=/sys/bus/virtio/drivers/virtio_net")
        guest.run("echo $dev >$driver/unbind")
        guest.run("echo $dev >$driver/bind")
        guest.run(f"ip addr add {SERVER}/24 dev eth0; ip link set eth0 up")
    answered(rig)


def test_a_guest_that_reboots_goes_on(rig: Rig) -> None:
    for guest in rig.guests.values():
        guest.send("reboot -f")
    for guest in rig.guests.values():
        guest.ready()
    answered(rig)
    ports = rig.status("mirror")["ports"]["guest"]
    assert (ports["refused_sessions"], ports["broken_rings"]) == (0, 0)


class Host:
    """A back-end alone."""

    def __init__(self, path: Path) -> None:
        self.port = VhostUserPort("mirror.guest", Address.parse(f"unix://{path}"), True)
        self.events: list[str] = []

    def turn(self) -> None:
        while select.select([self.port], [], [], 0)[0]:
            item = self.port.read()
            if isinstance(item, Event):
                self.events.append(item.name)


#: Bytes of a guest's memory.
MEMORY = 160 << 20
PAYLOAD = block()[:1024]


def datagram() -> bytes:
    """A UDP datagram to the guest's port 9, where nobody listens, without a checksum."""
    udp = struct.pack(">HHHH", 9999, 9, 8 + len(PAYLOAD), 0) + PAYLOAD
    header = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0))
    header += bytes([10, 77, 0, 1, 10, 77, 0, 2])
    header[10:12] = struct.pack(">H", ~(sum(struct.unpack(">10H", header)) % 0xFFFF) & 0xFFFF)
    return bytes.fromhex("525400123456525400000001") + b"\x08\0" + bytes(header) + udp


class Traffic(threading.Thread):
    """Turns both back-ends, and gives whichever guest runs a datagram now and then, once `flowing`.

    Few enough that buffers posted long before are filled: pages that the guest itself writes all the
    time would be copied again without any log of ours.
    """

    def __init__(self, *hosts: Host) -> None:
        super().__init__()
        self.hosts = hosts
        self.flowing, self.ending = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self.ending.wait(0.03):
                for host in self.hosts:
                    host.turn()
                    if self.flowing.is_set() and host.events[-1:] == ["guest_started"]:
                        host.port.write(Batch.of([datagram()]))
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.ending.set()
        self.join()
        if self.error is not None:
            raise self.error


@pytest.mark.skipif(not atomic(), reason="plain Python offers no dirty log, and QEMU migrates nothing without one")
def test_a_guest_that_migrates_under_traffic_takes_all_that_it_received_along(run_dir: Path) -> None:
    """The target doesn't run at first, so its memory must be the source's to the last byte. What the back-end
    wrote and didn't log would be stale there, since QEMU copied that page before.
    """
    here, there = Host(run_dir / "a"), Host(run_dir / "b")
    with ExitStack() as stack:
        for host in (here, there):
            stack.callback(host.port.close)
        traffic = Traffic(here, there)
        stack.callback(traffic.end)
        source = Guest(run_dir, vhost_user(run_dir / "a"), name="from")
        stack.callback(source.close)
        target = Guest(run_dir, vhost_user(run_dir / "b"), name="to", incoming=True, more=["-S"])
        stack.callback(target.close)
        source.ready()
        received = "cat /sys/class/net/eth0/statistics/rx_packets"
        before = int(source.run(received))
        traffic.flowing.set()
        source.run("sleep 1")
        target.qmp("migrate-incoming", uri=f"unix:{run_dir}/migration")
        migrate(source, target, f"unix:{run_dir}/migration")
        assert here.events == ["guest_started", "guest_stopped"]
        assert stale_pages(source, target, run_dir) == []
        target.qmp("cont")
        assert int(target.run(received)) > before + 40, "too little came to show anything"
        traffic.end()
        assert there.events == ["guest_started"]


def stale_pages(source: Guest, target: Guest, folder: Path) -> list[int]:
    """Numbers of the pages that differ between two guests that stand still."""
    for guest in (source, target):
        guest.qmp("pmemsave", val=0, size=MEMORY, filename=str(folder / f"{guest.name}.memory"))
    files = [(folder / f"{guest.name}.memory").read_bytes() for guest in (source, target)]
    assert len(files[0]) == len(files[1]) == MEMORY
    pages = range(0, MEMORY, 4096)
    return [at // 4096 for at in pages if files[0][at : at + 4096] != files[1][at : at + 4096]]


def migrate(source: Guest, target: Guest, uri: str) -> None:
    """Move the guest, and let it run for some seconds after all of its memory was copied once."""
    source.qmp("migrate-set-parameters", **{"max-bandwidth": 24 << 20, "downtime-limit": 1})
    source.qmp("migrate", uri=uri)
    copied = None
    end = time.monotonic() + PATIENCE
    while (state := source.qmp("query-migrate")).get("status") != "completed":
        assert state.get("status") != "failed", (state, source.complaint(), target.complaint())
        assert time.monotonic() < end, state
        if copied is None and state.get("ram", {}).get("dirty-sync-count", 0) >= 2:
            copied = time.monotonic()
        if copied is not None and time.monotonic() > copied + 3:
            source.qmp("migrate-set-parameters", **{"downtime-limit": 2000})
        time.sleep(0.1)
    while target.qmp("query-status")["status"] == "inmigrate":
        assert time.monotonic() < end
        time.sleep(0.1)
