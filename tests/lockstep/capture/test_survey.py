"""`lockstep capture list`: what works is what can be opened, and what is missing is named as at start."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from lockstep.capture import survey, tap
from lockstep.config import Frontend

PR_CAPBSET_DROP = 24  # <linux/prctl.h>
CODE = "import sys; from lockstep.cli import main; sys.argv[0] = 'lockstep'; main()"


def test_every_frontend_is_in_the_list() -> None:
    assert {one.frontend for one in survey.survey()} == set(get_args(Frontend))


@pytest.mark.root
def test_as_root_everything_works_and_nothing_is_left_behind() -> None:
    before = Path("/proc/net/dev").read_text().count(":")
    shown = subprocess.run([sys.executable, "-c", CODE, "capture", "list", "--json"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    said = json.loads(shown.stdout)
    assert {one["frontend"]: one["lacks"] for one in said["frontends"]} == dict.fromkeys(get_args(Frontend), "")
    assert said["netns"] == {"lacks": ""}
    assert Path("/proc/net/dev").read_text().count(":") == before


@pytest.mark.root
def test_without_rights_each_says_which_it_lacks() -> None:
    """A process without any capability; qemu, pcap and memory need none."""
    libc = ctypes.CDLL(None)

    def give_all_up() -> None:
        for capability in range(64):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)

    command = [sys.executable, "-c", CODE, "capture", "list", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, preexec_fn=give_all_up)
    assert shown.returncode == 0, shown.stderr
    said = json.loads(shown.stdout)
    lacks = {one["frontend"]: one["lacks"] for one in said["frontends"]}
    assert "CAP_NET_ADMIN" in lacks["tap"]
    assert "CAP_NET_RAW" in lacks["packet"]
    assert "CAP_SYS_ADMIN" in said["netns"]["lacks"]
    assert {name for name, why in lacks.items() if not why} == {"qemu", "pcap", "memory", "vhost-user"}


def test_a_missing_module_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tap, "DEVICE", str(tmp_path / "tun"))
    (found,) = [one for one in survey.survey() if one.frontend == "tap"]
    assert not found.works
    assert "load the `tun` module" in found.lacks
    assert not found.lacks.startswith("capture list")


def test_people_get_a_table() -> None:
    shown = subprocess.run([sys.executable, "-c", CODE, "capture", "list"], capture_output=True, text=True, check=True)
    for name in get_args(Frontend):
        assert f"{name} " in shown.stdout
