"""What guests on `vhost-user` go through, with the whole pipeline around them.

The primary has two queue pairs and its QEMU connects to us; the secondary's QEMU listens, and we connect
to it. Both have to answer the client, so both go through everything.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.vm.guest import PATIENCE, QEMU
from bench.vm.rig import SERVER, Services
from vm.pattern import downloaded

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs(QEMU[0], "curl", "ping", "apt-get", "dpkg-deb"),
    pytest.mark.timeout(200),
]


@pytest.fixture(scope="module")
def rig() -> Iterator[Services]:
    with (
        tempfile.TemporaryDirectory(prefix="ls-", dir="/tmp") as folder,
        Services(Path(folder), "vhost-user", "vhost-user", 4, queues=2, listens=True) as made,
    ):
        yield made


def test_a_download_arrives_whole_whoever_connects_and_however_many_queues(rig: Services) -> None:
    assert rig.guests[1].run("ls /sys/class/net/eth0/queues").split() == ["rx-0", "rx-1", "tx-0", "tx-1"]
    downloaded(rig)


def test_a_ping_goes_on_over_a_restart_of_all_services(rig: Services) -> None:
    """At once, or once a time-out has ended the wait for a reply that the secondary can't give: the first request
    may come when the primary's QEMU is back already and the secondary's isn't.
    """
    rig.answered()
    numbers: list[int] = []

    def note() -> None:
        for line in rig.ping(5000, 0.05):
            if found := re.search(r"icmp_seq=(\d+) ttl", line):
                numbers.append(int(found[1]))

    def more(count: int) -> None:
        wanted, end = len(numbers) + count, time.monotonic() + PATIENCE
        while len(numbers) < wanted:
            assert time.monotonic() < end, f"only these were answered: {numbers}"
            time.sleep(0.05)

    pinging = threading.Thread(target=note)
    pinging.start()
    try:
        more(5)
        rig.stop_services()
        time.sleep(0.5)  # for what was on its way
        silent = len(numbers)
        time.sleep(1)
        assert len(numbers) == silent, "nobody is there who could have passed it on"
        rig.start_services()
        more(20)
    finally:
        rig.stop_ping()
        pinging.join()


def test_a_guest_whose_driver_is_unbound_and_bound_goes_on(rig: Services) -> None:
    for guest in rig.guests.values():
        guest.run("dev=$(basename $(readlink /sys/class/net/eth0/device)); driver=/sys/bus/virtio/drivers/virtio_net")
        guest.run("echo $dev >$driver/unbind")
        guest.run("echo $dev >$driver/bind")
        guest.run(f"ip addr add {SERVER}/24 dev eth0; ip link set eth0 up")
    rig.answered()


def test_a_guest_that_reboots_goes_on(rig: Services) -> None:
    for guest in rig.guests.values():
        guest.send("reboot -f")
    for guest in rig.guests.values():
        guest.ready()
    rig.answered()
    for service in ("mirror", "rewriter"):
        port = rig.status(service)["ports"]["guest"]
        assert (port["refused_sessions"], port["broken_rings"]) == (0, 0)
