"""Two real guests behind the whole pipeline: what the client downloads is right, and nothing diverges.

The guests are emulated, so this takes its time: `LOCKSTEP_VM_MIB=64 pytest tests/vm` downloads 64 MiB
through every frontend; without it one mixed run of a few MiB has to do, and one in `test_survival.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.vm.guest import QEMU
from bench.vm.rig import Services
from vm.pattern import downloaded

LONG = int(os.environ.get("LOCKSTEP_VM_MIB", "0"))
MEBIBYTES = LONG or 4

pytestmark = [pytest.mark.root, pytest.mark.needs(QEMU[0], "curl", "apt-get", "dpkg-deb")]

RUNS = [
    ("vhost-user", "tap"),
    *([(one, one) for one in ("vhost-user", "tap", "packet", "qemu")] if LONG else []),
]


@pytest.mark.timeout(280)
@pytest.mark.parametrize(("primary", "secondary"), RUNS, ids=["-".join(run) for run in RUNS])
def test_a_download_through_two_real_guests_arrives_whole(run_dir: Path, primary: str, secondary: str) -> None:
    with Services(run_dir, primary, secondary, MEBIBYTES) as rig:
        downloaded(rig)
