"""Two real guests behind the whole pipeline: what the client downloads is right, and nothing diverges.

The guests are emulated, so this takes its time: `LOCKSTEP_VM_MIB=64 pytest tests/vm` downloads 64 MiB
through every frontend; without it one run and one mixed run of a few MiB have to do.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from vm.image import pattern
from vm.rig import Rig

LONG = int(os.environ.get("LOCKSTEP_VM_MIB", "0"))
MEBIBYTES = LONG or 4

pytestmark = [pytest.mark.root, pytest.mark.needs("qemu-system-x86_64", "curl", "apt-get", "dpkg-deb")]

RUNS = [
    ("vhost-user", "vhost-user"),
    ("vhost-user", "tap"),
    *([("tap", "tap"), ("packet", "packet"), ("qemu", "qemu")] if LONG else []),
]


def expected() -> str:
    digest = hashlib.sha256()
    for block in pattern(MEBIBYTES):
        digest.update(block)
    return digest.hexdigest()


@pytest.mark.timeout(280)
@pytest.mark.parametrize(("primary", "secondary"), RUNS, ids=["-".join(run) for run in RUNS])
def test_a_download_through_two_real_guests_arrives_whole(run_dir: Path, primary: str, secondary: str) -> None:
    with Rig(run_dir, primary, secondary, MEBIBYTES) as rig:
        digest, size = rig.download(200.0)
        assert size == MEBIBYTES << 20
        assert digest == expected()
        comparer = rig.status("comparer")["counters"]
        assert comparer["divergences"] == 0
        assert comparer["released"] > MEBIBYTES << 20 >> 16, "what arrived wasn't compared"
