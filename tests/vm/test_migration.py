"""A live migration between two back-ends of ours takes along all of the guest's memory, and the guest goes on."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.vm.guest import PATIENCE, QEMU, Guest, vhost_user
from lockstep.vhost.log import PAGE, atomic
from vm.backend import BLOCK, BackEnd, Traffic, tagged

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs(QEMU[0], "apt-get", "dpkg-deb"),
    pytest.mark.timeout(200),
    pytest.mark.skipif(not atomic(), reason="plain Python offers no dirty log, and QEMU migrates nothing without one"),
]

#: KiB of a guest's memory; no multiple of 256. Where it is one, QEMU before 9.0 reads its dirty bits by whole
#: words, and there its emulator forgets to note the guest's own writes (QEMU's commit 03bfc2188f06): pages by
#: the dozen differ, whatever the card is, and many a target crashes.
MEMORY = (160 << 10) + 128
#: Echo requests that are given after all memory was copied once: more than there are buffers posted at a time.
LATE = 100
#: A second migration, which goes wrong on purpose.
FORGETFUL = [True] if os.environ.get("LOCKSTEP_VM_MIB") else []


@pytest.mark.parametrize("forgetful", [False, *FORGETFUL], ids=lambda one: "forgetful" if one else "logged")
def test_a_guest_that_migrates_under_traffic_takes_all_its_memory_along_and_goes_on(
    run_dir: Path, forgetful: bool
) -> None:
    """The target doesn't run at first, so every byte of memory must be the same in both. QEMU copied every page
    once before the late requests came: what was written then and not logged is stale, as the forgetful one shows.
    """
    here, there = BackEnd(run_dir / "a"), BackEnd(run_dir / "b")
    with ExitStack() as stack:
        for one in (here, there):
            stack.callback(one.port.close)
        traffic = Traffic(here, there, forgetful=forgetful)
        stack.callback(traffic.end)
        source = Guest(run_dir, vhost_user(run_dir / "a"), name="from", memory=MEMORY)
        stack.callback(source.close)
        target = Guest(run_dir, vhost_user(run_dir / "b"), name="to", memory=MEMORY, incoming=True, more=["-S"])
        stack.callback(target.close)
        source.ready()
        source.run("arp -s 10.77.0.1 52:54:00:00:00:01")
        source.run("head -c 1M /dev/urandom >/file; sum=$(sha256sum </file)")
        source.run("boot=$(cat /proc/sys/kernel/random/boot_id)")
        traffic.untouched = kernel_code(source)
        traffic.holding.set()
        traffic.flowing.set()
        migrate(source, target, f"unix:{run_dir}/migration", traffic)
        assert here.events == ["guest_started", "guest_stopped"]
        before, after = memory(source, run_dir), memory(target, run_dir)
        late = received(before, traffic.first_late or 0)
        assert len(late) > 100, f"{len(late)} blocks are too few to show anything"
        pages = range(0, len(before), PAGE)
        stale = [hex(at) for at in pages if before[at : at + PAGE] != after[at : at + PAGE]]
        if forgetful:
            assert set(late) - set(received(after, 0)), "it would have been copied without a log as well"
            return
        assert stale == []
        assert len(after) == MEMORY << 10
        given = traffic.given
        target.qmp("cont")
        target.run('[ "$sum" = "$(sha256sum </file)" ]')
        target.run('[ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ]')
        until(lambda: len([n for n in there.answered() if n >= given]) > 20, "the ping doesn't go on")
        traffic.flowing.clear()
        until(
            lambda: echo_requests(target) == sum(one.port.counters["frames_out"] for one in (here, there)),
            "the guest didn't see all that was put into its buffers",
        )
        traffic.end()
        assert there.events == ["guest_started"]


def echo_requests(guest: Guest) -> int:
    """How many the guest has received, by its own account."""
    names, values = guest.run("grep ^Icmp: /proc/net/snmp").splitlines()
    return int(values.split()[names.split().index("InEchos")])


def kernel_code(guest: Guest) -> tuple[int, int]:
    """Address and length of memory that a guest doesn't write any more: 14 MiB, so copying it takes a while."""
    found = re.search(r"([0-9a-f]+)-([0-9a-f]+) : Kernel code", guest.run("cat /proc/iomem"))
    assert found
    first, last = (int(text, 16) for text in found.groups())
    return first, last - first


def received(memory: bytes, first: int) -> set[tuple[int, int]]:
    """Whole blocks of echo requests that lie in memory, by `(request, block)`, from request `first` on."""
    found = (((int(one[1]), int(one[2])), one.start()) for one in re.finditer(rb"lockstep (\d{8}) (\d\d) ", memory))
    return {which for which, at in found if which[0] >= first and memory[at : at + BLOCK] == tagged(*which)}


def memory(guest: Guest, folder: Path) -> bytes:
    """All of a guest's memory; it stands still."""
    path = folder / f"{guest.name}.memory"
    guest.qmp("pmemsave", val=0, size=MEMORY << 10, filename=str(path))
    return path.read_bytes()


def migrate(source: Guest, target: Guest, uri: str, traffic: Traffic) -> None:
    """Move the guest, and hold it back after all of its memory was copied once, until it was given more."""
    target.qmp("migrate-incoming", uri=uri)
    source.qmp("migrate-set-parameters", **{"max-bandwidth": 48 << 20, "downtime-limit": 1})
    source.qmp("migrate", uri=uri)

    def done() -> bool:
        state = source.qmp("query-migrate")
        assert state.get("status") != "failed", (state, source.complaint(), target.complaint())
        if state.get("ram", {}).get("dirty-sync-count", 0) >= 2:
            traffic.late.set()
        if traffic.first_late is not None and traffic.given > traffic.first_late + LATE:
            traffic.holding.clear()
            source.qmp("migrate-set-parameters", **{"downtime-limit": 300})
        return bool(state.get("status") == "completed")

    until(done, "it doesn't come to its end")
    until(lambda: target.qmp("query-status")["status"] != "inmigrate", "the target doesn't see it")


def until(what: Callable[[], bool], else_: str) -> None:
    """Wait for it."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, else_
        time.sleep(0.03)
