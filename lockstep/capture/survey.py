"""Which frontends work on this machine, found out by trying, and what each lacks."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lockstep.capture import netns, packet, tap
from lockstep.capture.base import PortError
from lockstep.vhost.log import atomic

#: The kernel replaces %d by the next free number.
_PROBE = "lsprobe%d"
_CAP_SYS_ADMIN = 21


@dataclass(frozen=True, slots=True)
class Finding:
    """One frontend: whether it works here, what it lacks (with the way out), and what it can't do as it is."""

    frontend: str
    works: bool
    lacks: str = ""
    note: str = ""


def survey() -> list[Finding]:
    """Try every frontend. A TAP is made for it, and goes at once."""
    return [
        _tried("tap", _try_tap),
        _tried("packet", _try_packet),
        _tried("vhost-user", _try_vhost_user),
        Finding("qemu", True),
        Finding("pcap", True),
        Finding("memory", True, note="joins the services of one process alone"),
    ]


def other_namespaces() -> str:
    """What `netns` lacks here; nothing where it can be used."""
    if not Path("/proc/self/ns/net").exists():
        return "this kernel has no network namespaces (CONFIG_NET_NS)"
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    if not effective >> _CAP_SYS_ADMIN & 1:
        return "entering another network namespace needs CAP_SYS_ADMIN; run as root"
    with netns.entered("/proc/self/ns/net", "capture list"):
        return ""


def _tried(frontend: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding(frontend, True, note=attempt())
    except PortError as error:
        return Finding(frontend, False, lacks=str(error).removeprefix("capture list: ").removeprefix("capture list."))


def _try_tap() -> str:
    os.close(tap.open_device("capture list", _PROBE, None, False))
    return ""


def _try_packet() -> str:
    with packet.open_socket("capture list", "any interface", None) as made:
        packet.prepare(made, "capture list")
    return ""


def _try_vhost_user() -> str:
    try:
        os.close(os.memfd_create("lockstep", os.MFD_CLOEXEC))
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close()
    except OSError as error:
        raise PortError(f"{error.strerror}: this kernel has no memfd or no unix sockets") from error
    return "" if atomic() else "plain build: its guest can't be migrated; install a C compiler, then Lockstep again"
