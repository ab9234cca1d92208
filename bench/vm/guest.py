"""A running guest: QEMU as a child process, its serial line for commands, its monitor (QMP)."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.program import BenchError
from bench.vm.image import image
from bench.vm.monitor import Monitor, MonitorError
from lockstep.children import die_with_parent

PATIENCE = 60.0
MAC = "52:54:00:12:34:56"
#: How QEMU is called: another one than the machine's by this variable.
QEMU = shlex.split(os.environ.get("LOCKSTEP_VM_QEMU", "qemu-system-x86_64"))


class GuestError(BenchError):
    """A guest that ended, is silent, or failed in what it was told to do."""


class Guest:
    """One virtual machine, emulated.

    folder: for its sockets. network: QEMU's arguments for the network. address: of its only card.
    mebibytes: of the pattern that it serves. memory: KiB. prefix: in front of QEMU's command (`ip netns exec …`).
    """

    def __init__(
        self,
        folder: Path,
        network: Sequence[str],
        *,
        name: str = "guest",
        address: str = "10.77.0.2",
        mebibytes: int = 0,
        memory: int = 160 << 10,
        processors: int = 1,
        more: Sequence[str] = (),
        incoming: bool = False,
        prefix: Sequence[str] = (),
    ) -> None:
        made = image()
        self.name = name
        self._said = ""
        self._qmp_path = folder / f"{name}.qmp"
        self._qmp: Monitor | None = None
        words = f"console=ttyS0 quiet loglevel=0 panic=-1 ipv6.disable=1 guest.address={address} guest.mib={mebibytes}"
        parent = os.getpid()
        self._log = open(folder / f"{name}.log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                *prefix, *QEMU, "-name", name, "-accel", "tcg", "-M", "pc", "-smp", str(processors), "-m", f"{memory}K",
                "-object", f"memory-backend-memfd,id=mem,size={memory}K,share=on", "-machine", "memory-backend=mem",
                "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
                "-qmp", f"unix:{self._qmp_path},server=on,wait=off",
                "-kernel", str(made.kernel), "-initrd", str(made.initrd), "-append", words,
                *network, *more, *(("-incoming", "defer") if incoming else ()),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            preexec_fn=lambda: die_with_parent(parent),
        )  # fmt: skip

    def ready(self) -> None:
        """Wait until it has booted; raises GuestError."""
        self._until(r"@@ ready\s")

    def run(self, command: str) -> str:
        """What a command prints that is run in the guest; raises GuestError unless it succeeds."""
        said, code = self.status(command)
        if code:
            raise GuestError(f"{self.name}: {command}: {code}: {said}")
        return said

    def status(self, command: str) -> tuple[str, int]:
        """The same with its exit code."""
        self.send(command)
        said, code = self._until(r"@@ (\d+)\s")
        return said, int(code)

    def send(self, command: str) -> None:
        """Begin a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def _until(self, expression: str) -> tuple[str, str]:
        assert self.process.stdout is not None
        end = time.monotonic() + PATIENCE
        while not (found := re.search(expression, self._said)):
            if self.process.poll() is not None:
                raise GuestError(f"{self.name} ended: {self.complaint()}")
            left = end - time.monotonic()
            if left <= 0:
                raise GuestError(f"{self.name} said only {self._said[-2000:]!r} {self.complaint()}")
            if select.select([self.process.stdout], [], [], left)[0]:
                self._said += os.read(self.process.stdout.fileno(), 65536).decode(errors="replace")
        before, self._said = self._said[: found.start()], self._said[found.end() :]
        return before.strip(), found[1] if found.groups() else ""

    def complaint(self) -> str:
        """What QEMU said to its standard error."""
        return Path(self._log.name).read_text(errors="replace")[-2000:]

    def qmp(self, execute: str, **arguments: Any) -> Any:
        """Carry out a command of QEMU's monitor; raises GuestError."""
        try:
            if self._qmp is None:
                self._qmp = Monitor(self._qmp_path)
            return self._qmp.command(execute, **arguments)
        except MonitorError as error:
            raise GuestError(f"{self.name}: {error} {self.complaint()}") from error

    def close(self) -> None:
        """End it at once."""
        if self._qmp is not None:
            with contextlib.suppress(OSError):
                self._qmp.close()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._log):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@cache
def version() -> tuple[int, int]:
    """Major and minor version of QEMU; raises GuestError."""
    try:
        said = subprocess.run([*QEMU, "--version"], capture_output=True, text=True, timeout=PATIENCE).stdout
    except FileNotFoundError as error:
        raise GuestError(f"{QEMU[0]} is not installed (Debian: apt-get install qemu-system-x86)") from error
    found = re.search(r"version (\d+)\.(\d+)", said)
    if found is None:
        raise GuestError(f"{QEMU[0]} is no QEMU: {said}")
    return int(found[1]), int(found[2])


def vhost_user(path: Path, *, server: bool = False, queues: int = 1) -> list[str]:
    """QEMU's arguments for a card on the `vhost-user` frontend. server: QEMU listens there, and we connect.

    QEMU 7.2 gets no interrupt vectors: an emulated guest that uses them with vhost-user crashes it, since it
    then calls for KVM's irqfd. 10.0 and 11.1 don't.
    """
    again = "reconnect-ms=1000" if version() >= (9, 2) else "reconnect=1"
    how = "server=on,wait=off" if server else again
    more = (",mq=on" if queues > 1 else "") + (",vectors=0" if version() < (10, 0) else "")
    return [
        "-chardev", f"socket,id=vu,path={path},{how}",
        "-netdev", f"vhost-user,id=net0,chardev=vu,queues={queues}",
        "-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile={more}",
    ]  # fmt: skip


def tap(device: str) -> list[str]:
    """QEMU's arguments for a card on a TAP device that exists."""
    return [
        "-netdev", f"tap,id=net0,ifname={device},script=no,downscript=no,vhost=off",
        "-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile=",
    ]  # fmt: skip


def stream(path: Path) -> list[str]:
    """QEMU's arguments for a card on a unix socket, in QEMU's framing."""
    return [
        "-netdev", f"stream,id=net0,server=off,addr.type=unix,addr.path={path}",
        "-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile=",
    ]  # fmt: skip
