"""Network namespaces of a test's own, for tests marked `root`."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace that lives as long as its child process; nothing of the machine is in it."""

    def __init__(self) -> None:
        # `cat` ends when this process does, whatever way that goes, and takes the namespace with it.
        self._child = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == b"ready\n"
        self.pid = self._child.pid
        self.path = f"/proc/{self.pid}/ns/net"
        # What a new device would otherwise say about itself (router solicitations, MLD) is not what a test sends.
        self.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1", "net.ipv6.conf.all.disable_ipv6=1")
        self.run("ip", "link", "set", "lo", "up")

    def inside(self, function: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """Call a function in a thread that is in the namespace: sockets made there stay there."""
        result: list[Any] = []
        error: list[BaseException] = []

        def enter() -> None:
            try:
                descriptor = os.open(self.path, os.O_RDONLY)
                assert _libc.setns(descriptor, _CLONE_NEWNET) == 0
                os.close(descriptor)
                result.append(function(*arguments, **more))
            except BaseException as problem:
                error.append(problem)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if error:
            raise error[0]
        made: T = result[0]
        return made

    def run(self, *command: str) -> str:
        """What a command prints that is run in the namespace."""
        done = self.inside(subprocess.run, command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def ip(self, command: str) -> str:
        """`ip` in the namespace."""
        return self.run("ip", *command.split())

    def close(self) -> None:
        self._child.communicate()


@pytest.fixture
def namespace(requires: Callable[..., None]) -> Iterator[Callable[[], Namespace]]:
    """Make namespaces."""
    requires(rights=True)
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    yield make
    for one in made:
        one.close()
