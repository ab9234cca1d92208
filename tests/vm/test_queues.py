"""A guest with two queue pairs uses both."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.vm.guest import PATIENCE, QEMU, Guest, vhost_user
from lockstep.batch import Batch
from vm.backend import BackEnd, Traffic, echo

pytestmark = [pytest.mark.root, pytest.mark.needs(QEMU[0], "apt-get", "dpkg-deb"), pytest.mark.timeout(120)]


def test_every_ring_of_two_pairs_is_used_both_ways(run_dir: Path) -> None:
    """QEMU listens here, and we connect. Each of the guest's processors sends by a queue of its own; what the
    guest receives is spread by address.
    """
    end = BackEnd(run_dir / "card", server=False, queues=2)
    with ExitStack() as stack:
        stack.callback(end.port.close)
        traffic = Traffic(end)
        stack.callback(traffic.end)
        guest = Guest(run_dir, vhost_user(run_dir / "card", server=True, queues=2), processors=2)
        stack.callback(guest.close)
        guest.ready()
        assert guest.run("ls /sys/class/net/eth0/queues").split() == ["rx-0", "rx-1", "tx-0", "tx-1"]
        for processor in (1, 2):
            guest.run(f"arp -s 10.77.0.{9 + processor} 52:54:00:00:00:0{processor}")
            guest.status(f"taskset {processor} ping -c 1 -W 1 10.77.0.{9 + processor}")
        traffic.end()
        end.port.write(Batch.of([echo(n, source=n) for n in range(20, 40)]))
        rings = {queue.index: queue.ring.base for queue in end.port._session.queues}
        assert min(rings.values()) > 0, rings
        assert rings[0] + rings[2] >= 20
        deadline = time.monotonic() + PATIENCE
        while int(guest.run("cat /sys/class/net/eth0/statistics/rx_packets")) < 20:
            assert time.monotonic() < deadline
        sent = {frame[:6].hex() for frame in end.frames if frame[12:14] == b"\x08\0"}
        assert {"525400000001", "525400000002"} <= sent
