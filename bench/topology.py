"""Network namespaces with a client, a primary and a secondary server, and the devices where a proxy goes.

    cli ── brw ── tapw     tapg ── brg ── srv     tapg2 ── brg2 ── srv2     tapd: a dead end

Everything but the three ends lies in `hyp`, where proxies run. Both servers have the same MAC and
address. Namespaces without names: they go with this process.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bench.program import END, ROOT, BenchError
from lockstep.children import die_with_parent
from lockstep.demo.namespaces import Namespace

CLIENT, SERVER = "10.77.0.1", "10.77.0.2"
_CLIENT_MAC, _SERVER_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
#: namespace: its bridge, its TAP, its address, its MAC.
_SIDES = {
    "cli": ("brw", "tapw", CLIENT, _CLIENT_MAC),
    "srv": ("brg", "tapg", SERVER, _SERVER_MAC),
    "srv2": ("brg2", "tapg2", SERVER, _SERVER_MAC),
}


class Topology:
    """A context manager."""

    def __enter__(self) -> Self:
        self._programs: list[subprocess.Popen[Any]] = []
        with ExitStack() as undo:
            self._namespaces = {name: Namespace(name) for name in (*_SIDES, "hyp")}
            for namespace in self._namespaces.values():
                undo.callback(namespace.close)
            undo.callback(self.end_programs)
            for name in self._namespaces:
                self._ip(name, "link set lo up")
            for name in _SIDES:
                self._build(name)
            self._ip("hyp", "tuntap add dev tapd mode tap vnet_hdr")
            self._ip("hyp", "link set tapd up")
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _build(self, name: str) -> None:
        bridge, tap, address, mac = _SIDES[name]
        self._ip("hyp", f"link add h{name} type veth peer name eth0 netns {self._namespaces[name].path}")
        self._ip("hyp", f"link add {bridge} type bridge")
        self._ip("hyp", f"tuntap add dev {tap} mode tap vnet_hdr")
        for device in (f"h{name}", tap, bridge):
            if device != bridge:
                self._ip("hyp", f"link set {device} master {bridge}")
            self._quiet("hyp", device)
            self._ip("hyp", f"link set {device} up")
        self._quiet(name, "eth0")
        self._ip(name, f"link set eth0 address {mac}")
        self._ip(name, f"addr add {address}/24 dev eth0")
        self._ip(name, "link set eth0 up")

    def _quiet(self, name: str, device: str) -> None:
        """No IPv6: its chatter would only blur what is measured."""
        with self._namespaces[name].entered():
            Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1")

    def _ip(self, name: str, arguments: str) -> None:
        self.run(name, ["ip", *arguments.split()], timeout=10)

    def bridge_through(self) -> None:
        """The client and the primary server in one bridge: no proxy at all."""
        self._ip("hyp", "link set hsrv master brw")

    def start(
        self, name: str, argv: Sequence[str | Path], output: IO[bytes] | int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Start a program in a namespace; it ends with the topology at the latest."""
        parent, namespace = os.getpid(), self._namespaces[name]

        def prepare_child() -> None:
            die_with_parent(parent)
            namespace.enter()

        try:
            program = subprocess.Popen(
                [*map(str, argv)], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
                preexec_fn=prepare_child,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise BenchError(f"{error.filename} is not installed") from error
        self._programs.append(program)
        return program

    def run(self, name: str, argv: Sequence[str | Path], timeout: float) -> str | None:
        """Run a program to its end and return what it printed; None if it had not ended in time."""
        program = self.start(name, argv, subprocess.PIPE)
        try:
            out, _ = program.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            program.kill()
            program.communicate()
            return None
        finally:
            self._programs.remove(program)
        if program.returncode:
            raise BenchError(f"{' '.join(map(str, argv))} ended with {program.returncode}: {out.decode()[-500:]}")
        return out.decode()

    def end_programs(self) -> None:
        """End everything that was started here."""
        for program in self._programs:
            program.terminate()
        until = time.monotonic() + END
        for program in self._programs:
            try:
                program.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        self._programs.clear()
