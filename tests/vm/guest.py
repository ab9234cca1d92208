"""A running guest: QEMU as a child process, its serial line for commands, its monitor (QMP)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vm.image import image

PATIENCE = 60.0
MAC = "52:54:00:12:34:56"


class Guest:
    """One virtual machine, with one processor, emulated.

    folder: for its sockets. network: QEMU's arguments for the network. address: of its only card.
    mebibytes: of the pattern that it serves. qemu: how QEMU is called.
    """

    def __init__(
        self,
        folder: Path,
        network: Sequence[str],
        *,
        name: str = "guest",
        address: str = "10.77.0.2",
        mebibytes: int = 0,
        memory: int = 160,
        more: Sequence[str] = (),
        incoming: bool = False,
        qemu: Sequence[str] = ("qemu-system-x86_64",),
        kernel: Path | None = None,
        initrd: Path | None = None,
    ) -> None:
        made = image()
        self.name = name
        self._said = ""
        self._qmp_path = folder / f"{name}.qmp"
        self._qmp: Any = None
        words = f"console=ttyS0 quiet loglevel=0 panic=-1 ipv6.disable=1 guest.address={address} guest.mib={mebibytes}"
        self._log = open(folder / f"{name}.log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                *qemu, "-name", name, "-accel", "tcg", "-M", "pc", "-smp", "1", "-m", f"{memory}M",
                "-object", f"memory-backend-memfd,id=mem,size={memory}M,share=on", "-machine", "memory-backend=mem",
                "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
                "-qmp", f"unix:{self._qmp_path},server=on,wait=off",
                "-kernel", str(kernel or made.kernel), "-initrd", str(initrd or made.initrd), "-append", words,
                *network, *more, *(("-incoming", "defer") if incoming else ()),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def ready(self) -> None:
        """Wait until it has booted."""
        self._until(r"@@ ready\s")

    def run(self, command: str) -> str:
        """What a command prints that is run in the guest; raises AssertionError unless it succeeds."""
        said, code = self.status(command)
        assert code == 0, f"{self.name}: {command}: {code}: {said}"
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
            assert self.process.poll() is None, f"{self.name} ended: {self.complaint()}"
            left = end - time.monotonic()
            assert left > 0, f"{self.name} said only {self._said[-2000:]!r} {self.complaint()}"
            if select.select([self.process.stdout], [], [], left)[0]:
                self._said += os.read(self.process.stdout.fileno(), 65536).decode(errors="replace")
        before, self._said = self._said[: found.start()], self._said[found.end() :]
        return before.strip(), found[1] if found.groups() else ""

    def complaint(self) -> str:
        """What QEMU said to its standard error."""
        return Path(self._log.name).read_text(errors="replace")[-2000:]

    def qmp(self, execute: str, **arguments: Any) -> Any:
        """Carry out a command of QEMU's monitor."""
        if self._qmp is None:
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(PATIENCE)
            end = time.monotonic() + PATIENCE
            while made.connect_ex(str(self._qmp_path)):
                assert time.monotonic() < end
                time.sleep(0.05)
            self._qmp = made.makefile("rw")
            made.close()
            json.loads(self._qmp.readline())
            self.qmp("qmp_capabilities")
        self._qmp.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
        self._qmp.flush()
        while True:
            answer = json.loads(self._qmp.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

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


def vhost_user(path: Path, *, server: bool = False, queues: int = 1, options: str = "") -> list[str]:
    """QEMU's arguments for a card on the `vhost-user` frontend.

    Without interrupt vectors: an emulated guest that uses them with vhost-user crashes QEMU, which
    then calls for KVM's irqfd (seen in 7.2.22).
    """
    how = "server=on,wait=off" if server else "reconnect=1"
    multi = ",mq=on" if queues > 1 else ""
    return [
        "-chardev", f"socket,id=vu,path={path},{how}",
        "-netdev", f"vhost-user,id=net0,chardev=vu,queues={queues}",
        "-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile=,vectors=0{multi}{options}",
    ]  # fmt: skip


def tap(device: str) -> list[str]:
    """QEMU's arguments for a card on a TAP device that exists."""
    return [
        "-netdev", f"tap,id=net0,ifname={device},script=no,downscript=no,vhost=off",
        "-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile=",
    ]  # fmt: skip
