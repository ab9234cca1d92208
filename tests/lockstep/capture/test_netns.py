"""Entering another network namespace, and coming back."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lockstep.capture.base import PortError, PortPermissionError
from lockstep.capture.netns import entered, namespace_path

MakeNamespace = Callable[[], Any]


def here() -> int:
    """Which network namespace this thread is in."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


@pytest.mark.parametrize(
    ("netns", "path"),
    [("4711", "/proc/4711/ns/net"), ("web", "/run/netns/web"), ("/var/run/x", "/var/run/x"), ("./x", "x")],
)
def test_a_namespace_is_a_pid_a_name_or_a_path(netns: str, path: str) -> None:
    assert namespace_path(netns) == Path(path)


def test_no_namespace_is_this_one() -> None:
    before = here()
    with entered(None, "mirror.guest"):
        assert here() == before


@pytest.mark.root
def test_a_namespace_is_entered_by_pid_and_by_path_and_left_again(namespace: MakeNamespace) -> None:
    other, before = namespace(), here()
    inode = Path(other.path).stat().st_ino
    assert inode != before
    for netns in (str(other.pid), other.path):
        with entered(netns, "mirror.guest"):
            assert here() == inode
        assert here() == before


@pytest.fixture
def named(namespace: MakeNamespace) -> Iterator[tuple[str, int]]:
    """A namespace with a name, as `ip netns add` makes it."""
    name = f"lockstep-test-{os.getpid()}"
    other = namespace()
    subprocess.run(["ip", "netns", "attach", name, str(other.pid)], check=True)
    yield name, Path(other.path).stat().st_ino
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.root
def test_a_namespace_is_entered_by_name(named: tuple[str, int]) -> None:
    name, inode = named
    with entered(name, "mirror.guest"):
        assert here() == inode


@pytest.mark.root
def test_only_this_thread_goes_there(namespace: MakeNamespace) -> None:
    before = here()
    seen: list[int] = []
    look = threading.Event()
    other = threading.Thread(target=lambda: look.wait() and seen.append(here()))  # type: ignore[func-returns-value]
    other.start()
    with entered(namespace().path, "mirror.guest"):
        look.set()
        other.join()
        assert here() != before
    assert seen == [before]


@pytest.mark.root
def test_an_error_inside_leads_back_too(namespace: MakeNamespace) -> None:
    before = here()
    with pytest.raises(ZeroDivisionError), entered(namespace().path, "mirror.guest"):
        raise ZeroDivisionError
    assert here() == before


@pytest.mark.root
def test_what_was_opened_inside_stays_there(namespace: MakeNamespace) -> None:
    other = namespace()
    other.ip("tuntap add dev ls-tap7 mode tap")
    with entered(other.path, "mirror.guest"):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with opened, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"ls-tap7\0")
        with pytest.raises(OSError, match="No such device"):
            outside.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"ls-tap7\0")


@pytest.mark.root
def test_coming_and_going_leaves_no_descriptor_behind(namespace: MakeNamespace, open_files: Callable[[], int]) -> None:
    other = namespace()
    before = open_files()
    for _ in range(10):
        with entered(other.path, "mirror.guest"):
            pass
        with pytest.raises(PortError), entered("/nowhere/at/all", "mirror.guest"):
            pass
        with pytest.raises(PortError), entered("/etc/hostname", "mirror.guest"):
            pass
    assert open_files() == before


@pytest.mark.parametrize("netns", ["no-such-namespace", "/nowhere/at/all", "4194304999"])
def test_a_namespace_that_does_not_exist_names_the_setting_and_a_way_out(netns: str) -> None:
    with (
        pytest.raises(PortError, match=rf"mirror\.guest\.netns = {netns}: .*No such file.*ip netns list") as error,
        entered(netns, "mirror.guest"),
    ):
        pass
    assert not isinstance(error.value, PortPermissionError)


@pytest.mark.root
def test_a_file_that_is_no_namespace_is_not_a_matter_of_permission() -> None:
    with (
        pytest.raises(PortError, match=r"mirror\.guest\.netns = /etc/hostname") as error,
        entered("/etc/hostname", "mirror.guest"),
    ):
        pass
    assert not isinstance(error.value, PortPermissionError)


@pytest.mark.root
def test_a_namespace_that_may_not_be_entered_is_a_permission_error(namespace: MakeNamespace, nobody: None) -> None:
    """setns needs CAP_SYS_ADMIN; the file of one's own namespace can be opened by anybody."""
    with (
        pytest.raises(PortPermissionError, match=r"mirror\.guest\.netns = /proc/self/ns/net: .*CAP_SYS_ADMIN"),
        entered("/proc/self/ns/net", "mirror.guest"),
    ):
        pass


@pytest.mark.root
def test_a_namespace_whose_file_may_not_be_opened_is_a_permission_error(namespace: MakeNamespace, nobody: None) -> None:
    with (
        pytest.raises(PortPermissionError, match=r"mirror\.guest\.netns = 1: .*Permission denied"),
        entered("1", "mirror.guest"),
    ):
        pass
