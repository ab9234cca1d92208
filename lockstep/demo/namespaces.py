"""Network namespaces that live as long as a descriptor of this process, and no longer.

A namespace gets no name in /run/netns: it is made by `unshare`, held open by one descriptor, and
known to children as `/proc/PID/fd/N`. However this process ends, the kernel takes it down, with all
that is in it. A plain user first becomes root of a user namespace of their own.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lockstep import exits
from lockstep.capture import tap
from lockstep.capture.netns import CLONE_NEWNET

TUN = Path(tap.DEVICE)

# <linux/sched.h>, <linux/prctl.h>, <linux/if_tun.h>
_CLONE_NEWUSER = 0x10000000
_PR_SET_DUMPABLE = 4

_libc = ctypes.CDLL(None, use_errno=True)


class Obstacle(Exception):
    """The demo can't run here as asked. Its text names what is missing and the way out.

    exit_code: 69 where something is missing, 77 where it is not permitted (sysexits.h).
    """

    def __init__(self, text: str, exit_code: int = exits.UNAVAILABLE) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def _call(function: str, *arguments: int) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


class Namespace:
    """A network namespace, held by a descriptor."""

    def __init__(self, name: str) -> None:
        """Make a fresh one; raises OSError."""
        self.name = name
        with _home():
            _call("unshare", CLONE_NEWNET)
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """Where other processes of this machine find it, while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in the namespace, and after it where it was before."""
        with _home():
            _call("setns", self.fd, CLONE_NEWNET)
            yield

    def enter(self) -> None:
        """Go there for good. For a child between fork and exec."""
        _call("setns", self.fd, CLONE_NEWNET)

    def close(self) -> None:
        """Let go of it; what still runs inside keeps it alive."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextmanager
def _home() -> Iterator[None]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _call("setns", home, CLONE_NEWNET)
        os.close(home)


def add_tap(device: str) -> None:
    """Make a TAP in the namespace where this thread is; it stays when nobody has it open."""
    with open(TUN, "r+b", buffering=0) as tun:
        flags = tap.IFF_TAP | tap.IFF_NO_PI | tap.IFF_VNET_HDR
        fcntl.ioctl(tun, tap.TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
        fcntl.ioctl(tun, tap.TUNSETPERSIST, 1)


def prepare() -> None:
    """Make sure that this process may make namespaces and TAPs; raises Obstacle.

    Where it is not root, it moves into a user namespace of its own, for the rest of its life.
    """
    if not TUN.exists():
        raise Obstacle(f"{TUN} is missing: load the `tun` module, or give the container --device {TUN}")
    if not os.access(TUN, os.R_OK | os.W_OK):
        raise Obstacle(f"{TUN} may not be opened by this user: run as root, or chmod 0666 {TUN}", exits.NOPERM)
    try:
        if os.geteuid() != 0:
            _become_root_of_own()
        Namespace("probe").close()
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS, errno.EINVAL):
            raise
        way_out = "run as root, give the container --cap-add SYS_ADMIN,NET_ADMIN, or allow user namespaces"
        raise Obstacle(
            f"network namespaces may not be made here ({error.strerror}): {way_out}", exits.NOPERM
        ) from error


def _become_root_of_own() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER | CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    # The new credentials made this process undumpable, and then its children can't open /proc/PID/fd/N.
    _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
