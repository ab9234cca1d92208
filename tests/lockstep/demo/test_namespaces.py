"""Namespaces that nobody can find afterwards, and children that nobody survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lockstep import exits
from lockstep.demo import namespaces
from lockstep.demo.namespaces import Namespace, Obstacle, add_tap, prepare

HERE = Path("/proc/thread-self/ns/net")


def devices() -> list[str]:
    """Interfaces of the namespace that this thread is in."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return sorted(line.split(":")[0].strip() for line in lines)


@pytest.mark.root
def test_inside_is_another_network_and_after_it_the_old_one() -> None:
    before = devices()
    namespace = Namespace("test")
    assert devices() == before
    with namespace.entered():
        add_tap("ls-test")
        assert devices() == ["lo", "ls-test"]
    assert devices() == before
    namespace.close()


@pytest.mark.root
def test_an_error_inside_leads_back_home() -> None:
    home = str(HERE.readlink())
    namespace = Namespace("test")
    with pytest.raises(ZeroDivisionError), namespace.entered():
        raise ZeroDivisionError
    assert str(HERE.readlink()) == home
    namespace.close()


@pytest.mark.root
def test_another_process_finds_it_by_its_path_until_it_is_closed() -> None:
    namespace = Namespace("test")
    path = namespace.path
    inside = subprocess.run(
        ["nsenter", f"--net={path}", "readlink", "/proc/self/ns/net"], capture_output=True, text=True
    )
    with namespace.entered():
        assert inside.stdout.strip() == str(HERE.readlink())
    namespace.close()
    assert not Path(path).exists()


def test_without_the_device_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(namespaces, "TUN", tmp_path / "tun")
    with pytest.raises(Obstacle, match="load the `tun` module") as caught:
        prepare()
    assert caught.value.exit_code == exits.UNAVAILABLE


def test_a_device_that_may_not_be_opened_is_not_permitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(namespaces, "TUN", tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(Obstacle, match="run as root") as caught:
        prepare()
    assert caught.value.exit_code == exits.NOPERM


PARENT = """
import os, subprocess, sys, time
from lockstep.children import die_with_parent
parent = os.getpid()
child = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: die_with_parent(parent))
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_is_killed_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
