"""A live migration between two back-ends of ours takes along what they wrote into the guest's memory."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.vm.guest import PATIENCE, QEMU, Guest, vhost_user
from lockstep.vhost.log import atomic
from vm.backend import BLOCK, BackEnd, Traffic, tagged

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs(QEMU[0], "apt-get", "dpkg-deb"),
    pytest.mark.timeout(200),
    pytest.mark.skipif(not atomic(), reason="plain Python offers no dirty log, and QEMU migrates nothing without one"),
]

#: Bytes of a guest's memory.
MEMORY = 160 << 20
#: Writes the same mebibyte again and again.
BUSY = "while :; do dd if=/block of=/scratch bs=1M conv=notrunc 2>/dev/null; done"
#: A second migration, which goes wrong on purpose.
FORGETFUL = [True] if os.environ.get("LOCKSTEP_VM_MIB") else []


@pytest.mark.parametrize("forgetful", [False, *FORGETFUL], ids=lambda one: "forgetful" if one else "logged")
def test_what_a_guest_received_while_it_migrated_is_there_afterwards(run_dir: Path, forgetful: bool) -> None:
    """The target doesn't run at first, so what the back-end wrote must be the same in both. QEMU copied every
    page once before the late datagrams came: what was written then and not logged is stale there, as the
    forgetful one shows. Pages that the guest alone wrote aren't compared: an emulator that is busy loses one
    now and then by itself.
    """
    here, there = BackEnd(run_dir / "a"), BackEnd(run_dir / "b")
    with ExitStack() as stack:
        for one in (here, there):
            stack.callback(one.port.close)
        traffic = Traffic(here, there, forgetful=forgetful)
        stack.callback(traffic.end)
        source = Guest(run_dir, vhost_user(run_dir / "a"), name="from")
        stack.callback(source.close)
        target = Guest(run_dir, vhost_user(run_dir / "b"), name="to", incoming=True, more=["-S"])
        stack.callback(target.close)
        source.ready()
        # Pages that the guest itself writes, faster than they are copied: so it runs on until it is told to stop.
        source.run(f"({BUSY}) & true")
        traffic.flowing.set()
        target.qmp("migrate-incoming", uri=f"unix:{run_dir}/migration")
        migrate(source, target, f"unix:{run_dir}/migration", traffic)
        assert here.events == ["guest_started", "guest_stopped"]
        before, after = memory(source, run_dir), memory(target, run_dir)
        late = received(before, traffic.first_late or 0)
        assert len(late) > 100, f"{len(late)} blocks are too few to show anything"
        stale = [which for which, at in late.items() if after[at : at + BLOCK] != tagged(*which)]
        if forgetful:
            assert stale, "it would have been copied without a log as well"
            return
        assert stale == []
        assert here.port._session is not None
        for ring in (queue.ring for queue in here.port._session.queues):
            used = slice(ring.log_address, ring.log_address + 6 + 8 * ring.size)
            assert ring.log_address
            assert before[used] == after[used]
        target.qmp("cont")
        end = time.monotonic() + PATIENCE
        while not there.events:
            assert time.monotonic() < end
            time.sleep(0.1)
        traffic.end()
        assert there.events == ["guest_started"]


def received(memory: bytes, first: int) -> dict[tuple[int, int], int]:
    """Where whole blocks of datagrams lie, by `(datagram, block)`, from datagram `first` on."""
    found = (((int(one[1]), int(one[2])), one.start()) for one in re.finditer(rb"lockstep (\d{8}) (\d\d) ", memory))
    return {which: at for which, at in found if which[0] >= first and memory[at : at + BLOCK] == tagged(*which)}


def memory(guest: Guest, folder: Path) -> bytes:
    """All of a guest's memory; it stands still."""
    path = folder / f"{guest.name}.memory"
    guest.qmp("pmemsave", val=0, size=MEMORY, filename=str(path))
    return path.read_bytes()


def migrate(source: Guest, target: Guest, uri: str, traffic: Traffic) -> None:
    """Move the guest, and let it run on after all of its memory was copied once, until it was given more."""
    source.qmp("migrate-set-parameters", **{"max-bandwidth": 24 << 20, "downtime-limit": 1})
    source.qmp("migrate", uri=uri)
    end = time.monotonic() + PATIENCE
    while (state := source.qmp("query-migrate")).get("status") != "completed":
        assert state.get("status") != "failed", (state, source.complaint(), target.complaint())
        assert time.monotonic() < end, state
        if state.get("ram", {}).get("dirty-sync-count", 0) >= 2:
            traffic.late.set()
        if traffic.first_late is not None and traffic.given > traffic.first_late + 80:
            source.qmp("migrate-set-parameters", **{"downtime-limit": 2000})
        time.sleep(0.1)
    while target.qmp("query-status")["status"] == "inmigrate":
        assert time.monotonic() < end
        time.sleep(0.1)
