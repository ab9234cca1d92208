"""QEMU's own COLO filters between the stage's namespaces, without a guest: two TAPs on a hub.

    primary:    ls-net ══ hub ══ eth0 of srv      filter-mirror, two filter-redirectors, colo-compare
    secondary:  a dead end ══ hub ══ eth0 of srv2     two filter-redirectors, filter-rewriter

Their chardevs are unix sockets in the stage's folder, called as in QEMU's docs/COLO-FT.txt.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from scenarios.traffic import LONG, connect

from lockstep.capture import tap
from lockstep.demo.namespaces import Namespace
from lockstep.demo.stage import Stage, Value, wait_for

QEMU = ("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none")
#: Until colo-compare gives a frame up: long, since after that nothing makes a checkpoint here.
PATIENCE_MS = 60_000
#: Of the client, in bytes, where colo-compare compares.
WINDOW = 65_536


class MixedStage(Stage):
    """A stage where QEMU's filters are in place of some of our services.

    sides: which of `primary` and `secondary` QEMU runs; compares: whether the primary's colo-compare does.
    links: our services' ends, stream → (socket, whether we listen).
    """

    def __init__(
        self,
        services: tuple[str, ...],
        sides: tuple[str, ...],
        links: dict[str, tuple[str, bool]],
        keep_logs: Path,
        *,
        compares: bool = False,
    ) -> None:
        self._sides, self._links, self._compares = sides, links, compares
        super().__init__(services=services, keep_logs=keep_logs, comparer={"on_divergence": "hold"})

    def _write_configuration(self) -> None:
        for stream, (name, server) in self._links.items():
            link: dict[str, Value] = {"endpoint": f"qemu+unix://{self.socket(name)}", "server": server}
            self._settings[f"links.{stream}"] = link
        super()._write_configuration()

    def socket(self, name: str) -> Path:
        """The path of a chardev."""
        return self.run_dir / f"{name}.sock"

    def _greet(self) -> None:
        """Start QEMU's filters, and see that the way is open; over IPv4, since they know nothing else."""
        for side in self._sides:
            getattr(self, f"_{side}")()
        wait_for(self._all_connected, "QEMU's chardevs and our links to be connected", LONG)
        if self._compares:
            self._bound_the_window()
            return  # colo-compare never releases the reset of a refused connection: its number is 0
        try:
            connect(self, 9).close()
        except ConnectionRefusedError:
            return
        raise AssertionError("somebody listens where nobody does")

    def _bound_the_window(self) -> None:
        """Let the client offer less than what fills colo-compare's queue of 1,024 frames.

        Of more it drops some and lets others out of order; two servers that then repeat different segments
        now and then leave it with what it never matches, for good (in one of 30 such downloads).
        """
        window = f"net.ipv4.tcp_rmem=4096 {WINDOW} {WINDOW}"
        done = self.run(self.client_ns, ["sysctl", "-w", window])
        assert done.returncode == 0, done.stderr

    def _all_connected(self) -> bool:
        links = [self.status(service)["links"] for service in self.services]
        return all(one[stream]["connections"] for one in links for stream in self._links if stream in one)

    def _primary(self) -> None:
        arguments = [
            *self._chardev("mirror0", server=True),
            *self._chardev("out", server=True),
            *("-object", "filter-mirror,id=m0,netdev=w,queue=tx,outdev=mirror0"),
            *("-object", "filter-redirector,id=r0,netdev=w,queue=rx,indev=out"),
            *("-object", "filter-redirector,id=r1,netdev=w,queue=rx,outdev=compare0"),
        ]
        made = ["mirror0", "out"]
        if self._compares:
            arguments = [
                *self._chardev("compare0", server=True), *self._chardev("compare1", server=True),
                *self._chardev("compare0-0", at="compare0"), *self._chardev("out0", at="out"),
                *("-object", "iothread,id=io"), *arguments,
                "-object", "colo-compare,id=c0,primary_in=compare0-0,secondary_in=compare1,outdev=out0,"
                f"iothread=io,compare_timeout={PATIENCE_MS}",
            ]  # fmt: skip
            # A chardev connects to a server that must be there before it.
            arguments = _servers_first(arguments)
            made += ["compare0", "compare1"]
        else:
            arguments = [*self._chardev("compare0"), *arguments]
        self._qemu("primary", (self.network_ns, "ls-net"), (self.srv_ns, "eth0"), arguments)
        for name in made:
            wait_for(self.socket(name).is_socket, f"QEMU's chardev {name}", LONG)

    def _secondary(self) -> None:
        arguments = [
            *self._chardev("red0", at="mirror0"),
            *self._chardev("red1", at="compare1"),
            *("-object", "filter-redirector,id=f1,netdev=w,queue=tx,indev=red0"),
            *("-object", "filter-redirector,id=f2,netdev=w,queue=rx,outdev=red1"),
            *("-object", "filter-rewriter,id=rew0,netdev=w,queue=all"),
        ]
        self._qemu("secondary", (self.network_ns, "ls-up"), (self.srv2_ns, "eth0"), arguments)

    def _chardev(self, name: str, *, at: str | None = None, server: bool = False) -> tuple[str, str]:
        how = ",server=on,wait=off" if server else ""
        return "-chardev", f"socket,id={name},path={self.socket(at or name)}{how}"

    def _qemu(self, name: str, wire: tuple[Namespace, str], guest: tuple[Namespace, str], more: list[str]) -> None:
        descriptors = [open_tap(*wire), open_tap(*guest)]
        taps = []
        for label, descriptor in zip("wg", descriptors, strict=True):
            taps += ["-netdev", f"tap,id={label},fd={descriptor}"]
            taps += ["-netdev", f"hubport,id=h{label},hubid=0,netdev={label}"]
        log = (self._directory.path / f"qemu-{name}.log").open("ab")
        with log:
            self.popen(None, [*QEMU, *taps, *more], pass_fds=descriptors, stdout=log, stderr=log)
        for descriptor in descriptors:
            os.close(descriptor)


def _servers_first(arguments: list[str]) -> list[str]:
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    pairs.sort(key=lambda pair: (pair[0] != "-chardev", "server=on" not in pair[1]))
    return [word for pair in pairs for word in pair]


def open_tap(namespace: Namespace, device: str) -> int:
    """A TAP of the stage, as QEMU takes it over."""
    with namespace.entered():
        descriptor = os.open(tap.DEVICE, os.O_RDWR | os.O_NONBLOCK)
        flags = tap.IFF_TAP | tap.IFF_NO_PI | tap.IFF_VNET_HDR
        fcntl.ioctl(descriptor, tap.TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
    return descriptor
