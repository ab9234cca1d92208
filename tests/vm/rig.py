"""A whole pipeline around two real guests: a client's namespace, the four services, two QEMUs.

    client's eth0 = mirror.network        mirror.guest ── primary        rewriter.guest ── secondary

The client's namespace and the one in which the guests' devices lie are this rig's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lockstep.control import request
from vm.guest import MAC, PATIENCE, Guest, tap, vhost_user

CLIENT, SERVER = "10.77.0.1", "10.77.0.2"

CONFIG = """
services = ["mirror", "comparer", "redirector", "rewriter"]
run_dir = "{folder}"
[mirror.network]
capture = "tap"
device = "eth0"
netns = "{client}"
[redirector.uplink]
capture = "tap"
device = "up"
netns = "{host}"
[mirror.guest]
capture = "{primary}"
device = "g1"
netns = "{host}"
address = "unix://{folder}/vm1"
server = true
[rewriter.guest]
capture = "{secondary}"
device = "g2"
netns = "{host}"
address = "unix://{folder}/vm2"
server = true
[comparer]
on_divergence = "hold"
compare_timeout = 30.0
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


class Rig:
    """Set up on entry, taken down on exit.

    primary, secondary: the frontend of each guest's port. mebibytes: of the pattern that both serve.
    """

    def __init__(self, folder: Path, primary: str, secondary: str, mebibytes: int = 0) -> None:
        self.folder = folder
        self.frontends = {1: primary, 2: secondary}
        self.mebibytes = mebibytes
        self.client, self.host = f"lsvm{os.getpid()}c", f"lsvm{os.getpid()}h"
        self.config = folder / "node.toml"
        self.guests: dict[int, Guest] = {}
        self._stack = contextlib.ExitStack()
        self._services: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Rig:
        try:
            for name in (self.client, self.host):
                ip("netns", "add", name)
                self._stack.callback(ip, "netns", "del", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("netns", "exec", self.client, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
            ip("netns", "exec", self.host, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
            self._tap(self.client, "eth0")
            ip("-n", self.client, "addr", "add", f"{CLIENT}/24", "dev", "eth0")
            for n, frontend in self.frontends.items():
                self._wire(n, frontend)
            names = {"primary": self.frontends[1], "secondary": self.frontends[2]}
            self.config.write_text(
                CONFIG.format(folder=self.folder, client=self.client, host=self.host, **names), encoding="utf-8"
            )
            self.start_services()
            self._stack.callback(self.stop_services)
            for n, frontend in self.frontends.items():
                self.guests[n] = self._guest(n, frontend)
                self._stack.callback(self.guests[n].close)
            for guest in self.guests.values():
                guest.ready()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _tap(self, namespace: str, device: str) -> None:
        ip("netns", "exec", namespace, "ip", "tuntap", "add", "dev", device, "mode", "tap", "vnet_hdr")
        ip("-n", namespace, "link", "set", device, "up")

    def _wire(self, n: int, frontend: str) -> None:
        """`tap` has a device of its own, in a bridge with QEMU's; `packet` looks at QEMU's itself."""
        if frontend in ("tap", "packet"):
            self._tap(self.host, f"g{n}")
        if frontend == "tap":
            self._tap(self.host, f"q{n}")
            ip("-n", self.host, "link", "add", f"b{n}", "type", "bridge")
            for device in (f"g{n}", f"q{n}"):
                ip("-n", self.host, "link", "set", device, "master", f"b{n}")
            ip("-n", self.host, "link", "set", f"b{n}", "up")

    def _guest(self, n: int, frontend: str) -> Guest:
        path = self.folder / f"vm{n}"
        network = {
            "tap": tap(f"q{n}"),
            "packet": tap(f"g{n}"),
            "vhost-user": vhost_user(path),
            "qemu": [
                "-netdev", f"stream,id=net0,server=off,addr.type=unix,addr.path={path}",
                "-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile=",
            ],
        }[frontend]  # fmt: skip
        qemu = ("ip", "netns", "exec", self.host, "qemu-system-x86_64")
        # The guest's RAM disk takes half of its memory at most.
        memory = 160 + 2 * self.mebibytes
        return Guest(self.folder, network, name=f"guest{n}", mebibytes=self.mebibytes, memory=memory, qemu=qemu)

    # --- the services

    def start_services(self) -> None:
        """Start them, and wait until all four answer."""
        with open(self.folder / "services.log", "ab") as log:
            self._services = subprocess.Popen(
                [sys.executable, "-c", "import lockstep.cli; lockstep.cli.main()", "up", "-c", str(self.config)],
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE
        for service in ("mirror", "comparer", "redirector", "rewriter"):
            while not (self.folder / f"{service}.control").exists():
                assert self._services.poll() is None, (self.folder / "services.log").read_text()
                assert time.monotonic() < end
                time.sleep(0.05)

    def stop_services(self) -> None:
        """End them as `kill` would, and wait."""
        assert self._services is not None
        self._services.terminate()
        self._services.wait(PATIENCE)

    def status(self, service: str) -> dict[str, Any]:
        """What a service says of itself."""
        return request(f"ipc://{self.folder}/{service}.control", "status", 10.0)

    # --- the client

    def client_command(self, *command: str) -> Sequence[str]:
        """A command as it is run in the client's namespace."""
        return ("ip", "netns", "exec", self.client, *command)

    def download(self, limit: float) -> tuple[str, int]:
        """SHA-256 and bytes of the pattern, as the client gets it."""
        digest, size = hashlib.sha256(), 0
        url = f"http://{SERVER}/cgi-bin/pattern"
        command = self.client_command("curl", "-sS", "--fail", "--max-time", str(limit), url)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            for chunk in iter(lambda: curl.stdout.read(1 << 20), b""):  # type: ignore[union-attr]
                digest.update(chunk)
                size += len(chunk)
        return digest.hexdigest(), size

    def ping(self, count: int, interval: float = 0.2) -> Iterator[str]:
        """ping's lines."""
        command = self.client_command("ping", "-n", "-c", str(count), "-i", str(interval), SERVER)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ping:
            assert ping.stdout is not None
            yield from ping.stdout
