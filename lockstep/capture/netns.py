"""Entering another network namespace for as long as it takes to open something there."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lockstep.capture.base import PortError, PortPermissionError

CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def namespace_path(netns: str) -> Path:
    """The file of a namespace given as a name (`ip netns`), a path, or a process's id."""
    if netns.isdigit():
        return Path(f"/proc/{netns}/ns/net")
    return Path(netns) if "/" in netns else Path("/run/netns") / netns


@contextmanager
def entered(netns: str | None, setting: str) -> Iterator[None]:
    """Put this thread into a network namespace, and back. `setting` names who asked, for errors."""
    if netns is None:
        yield
        return
    path = namespace_path(netns)
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise PortPermissionError(f"{setting}.netns = {netns}: {path}: {error.strerror}; run as root") from error
    except OSError as error:
        way_out = "name an existing one (`ip netns list`), a path or a pid"
        raise PortError(f"{setting}.netns = {netns}: {path}: {error.strerror}; {way_out}") from error
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(target, f"{setting}.netns = {netns}")
        try:
            yield
        finally:
            _setns(home, "the way back from another network namespace")
    finally:
        os.close(target)
        os.close(home)


def _setns(descriptor: int, what: str) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        code = ctypes.get_errno()
        if code != errno.EPERM:
            raise PortError(f"{what}: {os.strerror(code)}; that is no network namespace")
        raise PortPermissionError(f"{what}: {os.strerror(code)}; entering needs CAP_SYS_ADMIN (run as root)")
