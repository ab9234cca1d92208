"""What stands between a client and real guests: the four services, QEMU's own filters, or nothing at all.

    client's eth0 ── (services | filters | nothing) ── primary, and for the first two a secondary

The client's namespace and the one in which the other devices lie are the rig's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bench.program import BenchError
from bench.vm.guest import PATIENCE, Guest, stream, tap, vhost_user
from lockstep.control import request

CLIENT, SERVER = "10.77.0.1", "10.77.0.2"
_numbers = itertools.count()

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
queues = {queues}
[rewriter.guest]
capture = "{secondary}"
device = "g2"
netns = "{host}"
address = "unix://{folder}/vm2"
server = {server}
[comparer]
on_divergence = "unprotect"
compare_timeout = 20.0
"""


def ip(*words: str) -> None:
    """Run `ip`; raises BenchError."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise BenchError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Rig:
    """Set up on entry, taken down on exit. mebibytes: of the pattern that the guests serve."""

    def __init__(self, folder: Path, mebibytes: int = 0) -> None:
        self.folder = folder
        self.mebibytes = mebibytes
        number = next(_numbers)
        self.client, self.host = (f"lsvm{os.getpid()}{side}{number}" for side in "ch")
        self.guests: dict[int, Guest] = {}
        self._stack = contextlib.ExitStack()
        self._pinging: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            for name in (self.client, self.host):
                ip("netns", "add", name)
                self._stack.callback(ip, "netns", "del", name)
                ip("-n", name, "link", "set", "lo", "up")
                ip("netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
            self._tap(self.client, "eth0")
            ip("-n", self.client, "addr", "add", f"{CLIENT}/24", "dev", "eth0")
            self._build()
            for guest in self.guests.values():
                guest.ready()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _build(self) -> None:
        """Make what stands between, and start the guests."""
        raise NotImplementedError

    def _tap(self, namespace: str, device: str) -> None:
        ip("netns", "exec", namespace, "ip", "tuntap", "add", "dev", device, "mode", "tap", "vnet_hdr")
        ip("-n", namespace, "link", "set", device, "up")

    def _start(self, n: int, namespace: str, network: Sequence[str], processors: int = 1) -> None:
        # The guest's RAM disk takes half of its memory at most.
        memory = 160 + 2 * self.mebibytes << 10
        self.guests[n] = Guest(
            self.folder, network, name=f"guest{n}", mebibytes=self.mebibytes, memory=memory, processors=processors,
            prefix=("ip", "netns", "exec", namespace),
        )  # fmt: skip
        self._stack.callback(self.guests[n].close)

    # --- the client

    def client_command(self, *command: str) -> Sequence[str]:
        """A command as it is run in the client's namespace."""
        return ("ip", "netns", "exec", self.client, *command)

    def download(self, limit: float) -> tuple[str, int]:
        """SHA-256 and bytes of the pattern, as the client gets it within `limit` seconds."""
        digest, size = hashlib.sha256(), 0
        url = f"http://{SERVER}/cgi-bin/pattern"
        command = self.client_command("curl", "-sS", "--fail", "--max-time", str(limit), url)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            for chunk in iter(lambda: _read(curl.stdout), b""):
                digest.update(chunk)
                size += len(chunk)
        return digest.hexdigest(), size

    def ping(self, count: int, interval: float = 0.2) -> Iterator[str]:
        """ping's lines, until `count` were sent or somebody calls `stop_ping`."""
        command = self.client_command("ping", "-n", "-c", str(count), "-i", str(interval), "-W", "1", SERVER)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as self._pinging:
            assert self._pinging.stdout is not None
            yield from self._pinging.stdout

    def stop_ping(self) -> None:
        """End the ping that runs."""
        assert self._pinging is not None
        self._pinging.terminate()

    def answered(self) -> None:
        """Wait until a ping comes back; raises BenchError."""
        end = time.monotonic() + PATIENCE
        while "1 received" not in "".join(self.ping(1)):
            if time.monotonic() > end:
                raise BenchError("no ping is answered")


def _read(source: IO[bytes] | None) -> bytes:
    assert source is not None
    return source.read(1 << 20)


class Bare(Rig):
    """The client's eth0 is the TAP of the guest's QEMU: nobody in between, and no secondary."""

    def _build(self) -> None:
        self._start(1, self.client, tap("eth0"))


class Filters(Rig):
    """QEMU's filter-mirror, filter-redirectors, colo-compare and filter-rewriter, in the guests' own QEMUs."""

    def _build(self) -> None:
        self._tap(self.host, "dead")
        names = ("mirror0", "compare1", "compare0", "out")
        primary = [
            *tap("eth0"),
            *(part for name in names for part in _chardev(name, self.folder / name, server=True)),
            *_chardev("compare0-0", self.folder / "compare0"), *_chardev("out0", self.folder / "out"),
            *_objects(
                "filter-mirror,id=m0,netdev=net0,queue=tx,outdev=mirror0,vnet_hdr_support=on",
                "filter-redirector,id=r0,netdev=net0,queue=rx,indev=out,vnet_hdr_support=on",
                "filter-redirector,id=r1,netdev=net0,queue=rx,outdev=compare0,vnet_hdr_support=on",
                "iothread,id=io",
                "colo-compare,id=c0,primary_in=compare0-0,secondary_in=compare1,outdev=out0,iothread=io,"
                "vnet_hdr_support=on",
            ),
        ]  # fmt: skip
        secondary = [
            *tap("dead"), *_chardev("red0", self.folder / "mirror0"), *_chardev("red1", self.folder / "compare1"),
            *_objects(
                "filter-redirector,id=f1,netdev=net0,queue=tx,indev=red0,vnet_hdr_support=on",
                "filter-redirector,id=f2,netdev=net0,queue=rx,outdev=red1,vnet_hdr_support=on",
                "filter-rewriter,id=rew0,netdev=net0,queue=all,vnet_hdr_support=on",
            ),
        ]  # fmt: skip
        self._start(1, self.client, primary)
        end = time.monotonic() + PATIENCE
        while not all((self.folder / name).exists() for name in names):
            if time.monotonic() > end:
                raise BenchError(f"QEMU has not bound its filters' sockets: {self.guests[1].complaint()}")
            time.sleep(0.05)
        self._start(2, self.host, secondary)


def _chardev(name: str, path: Path, server: bool = False) -> list[str]:
    return ["-chardev", f"socket,id={name},path={path}{',server=on,wait=off' if server else ''}"]


def _objects(*objects: str) -> list[str]:
    return [part for text in objects for part in ("-object", text)]


class Services(Rig):
    """The four services, and two guests.

    primary, secondary: the frontend of each guest's port. queues: queue pairs of the primary, which has as
    many processors. listens: the secondary's QEMU listens, and the rewriter connects (vhost-user alone).
    """

    def __init__(
        self, folder: Path, primary: str, secondary: str, mebibytes: int = 0, *, queues: int = 1, listens: bool = False
    ) -> None:
        super().__init__(folder, mebibytes)
        self.frontends = {1: primary, 2: secondary}
        self.config = folder / "node.toml"
        self._queues, self._listens = queues, listens
        self._services: subprocess.Popen[bytes] | None = None

    def _build(self) -> None:
        for n, frontend in self.frontends.items():
            self._wire(n, frontend)
        self.config.write_text(
            CONFIG.format(
                folder=self.folder, client=self.client, host=self.host, primary=self.frontends[1],
                secondary=self.frontends[2], queues=self._queues, server=str(not self._listens).lower(),
            ),
            encoding="utf-8",
        )  # fmt: skip
        self.start_services()
        self._stack.callback(self.stop_services)
        self._start(1, self.host, self._card(1), self._queues)
        self._start(2, self.host, self._card(2))

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

    def _card(self, n: int) -> list[str]:
        path = self.folder / f"vm{n}"
        if self.frontends[n] == "vhost-user":
            return vhost_user(path, server=n == 2 and self._listens, queues=self._queues if n == 1 else 1)
        return {"tap": tap(f"q{n}"), "packet": tap(f"g{n}"), "qemu": stream(path)}[self.frontends[n]]

    def start_services(self) -> None:
        """Start them, and wait until all four have begun; raises BenchError."""
        with open(self.folder / "services.log", "ab") as log:
            self._services = subprocess.Popen(
                [sys.executable, "-c", "import lockstep.cli; lockstep.cli.main()", "up", "-c", str(self.config)],
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE
        for service in ("mirror", "comparer", "redirector", "rewriter"):
            while not (self.folder / f"{service}.control").exists():
                if self._services.poll() is not None or time.monotonic() > end:
                    raise BenchError(f"the services didn't start: {(self.folder / 'services.log').read_text()}")
                time.sleep(0.05)

    def stop_services(self) -> None:
        """End them as `kill` would, and wait."""
        assert self._services is not None
        self._services.terminate()
        self._services.wait(PATIENCE)

    def status(self, service: str) -> dict[str, Any]:
        """What a service says of itself."""
        return request(f"ipc://{self.folder}/{service}.control", "status", 10.0)
