"""A kernel and an initial RAM disk for small guests, made of Debian's packages and kept in a cache.

The packages are downloaded (`apt-get download`) and unpacked, never installed. In the guest: busybox,
the modules of virtio-net, one static address, a web server, and a command line on the serial port.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.program import BenchError

KERNEL_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"

#: In the order in which they need each other.
MODULES = (
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/net/virtio_net",
)

BLOCK = 1 << 20

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr
for module in /modules/*; do insmod $module; done
for word in $(cat /proc/cmdline); do
    case $word in guest.*=*) eval "${word#guest.}" ;; esac
done
ip link set lo up
ip addr add $address/24 dev eth0
ip link set eth0 up
n=0
while [ $n -lt ${mib:-0} ]; do
    printf %08d $n
    tail -c +9 /block
    n=$((n + 1))
done >/pattern
httpd -h /www
echo "@@ ready"
while read -r command; do
    eval "$command"
    echo "@@ $?"
done
poweroff -f
"""

#: httpd's own answers carry a Date, which two guests would never agree on; a CGI program's don't.
CGI = """#!/bin/sh
printf 'Content-Type: application/octet-stream\\r\\n\\r\\n'
exec cat /pattern
"""


@dataclass(frozen=True)
class Image:
    """Files that boot a guest."""

    kernel: Path
    initrd: Path


class ImageError(BenchError):
    """The packages can't be had; the text says why."""


@cache
def block() -> bytes:
    """A mebibyte that looks random and never changes."""
    return b"".join(hashlib.sha256(b"lockstep %d" % n).digest() for n in range(BLOCK // 32))


def pattern(mebibytes: int) -> Iterator[bytes]:
    """What a guest serves, block by block: each begins with its number."""
    for n in range(mebibytes):
        yield b"%08d" % n + block()[8:]


@cache
def image() -> Image:
    """The guest's files, from the cache where they are there; raises ImageError."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lockstep" / "vm"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = hashlib.sha256("\0".join((*MODULES, INIT, CGI, KERNEL_PACKAGE, BUSYBOX_PACKAGE)).encode()).hexdigest()[:16]
    made = Image(folder / f"{recipe}.vmlinuz", folder / f"{recipe}.initrd")
    if not (made.kernel.exists() and made.initrd.exists()):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _build(Path(scratch), made)
    return made


def _build(scratch: Path, made: Image) -> None:
    kernel = _unpacked(_kernel_package(), scratch)
    busybox = next(path for path in _unpacked(BUSYBOX_PACKAGE, scratch).glob("**/bin/busybox"))
    vmlinuz = next((kernel / "boot").glob("vmlinuz-*"))
    modules = next((kernel / "lib" / "modules").iterdir()) / "kernel"
    files: dict[str, tuple[int, bytes]] = {
        "init": (stat.S_IFREG | 0o755, INIT.encode()),
        "block": (stat.S_IFREG | 0o644, block()),
        "bin/busybox": (stat.S_IFREG | 0o755, busybox.read_bytes()),
        "www/cgi-bin/pattern": (stat.S_IFREG | 0o755, CGI.encode()),
    }
    for n, module in enumerate(MODULES):
        files[f"modules/{n}"] = (stat.S_IFREG | 0o644, (modules / f"{module}.ko").read_bytes())
    # Renamed last, and at once: a build that was cut off leaves nothing behind that looks whole.
    for path, data in ((made.kernel, vmlinuz.read_bytes()), (made.initrd, gzip.compress(_cpio(files), 1))):
        part = scratch / path.name
        part.write_bytes(data)
        part.rename(path)


def _kernel_package() -> str:
    """The package that the one for the newest kernel depends on."""
    found = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", KERNEL_PACKAGE))
    if not found:
        raise ImageError(f"{KERNEL_PACKAGE} is no package here (apt-get update?)")
    return found[1]


def _unpacked(package: str, scratch: Path) -> Path:
    target = scratch / package
    target.mkdir()
    _run("apt-get", "download", "-qq", package, cwd=target)
    for archive in target.glob("*.deb"):
        _run("dpkg-deb", "-x", str(archive), str(target))
    return target


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    if done.returncode:
        raise ImageError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive in the "newc" format (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`)."""
    entries: dict[str, tuple[int, bytes]] = {"dev/console": (stat.S_IFCHR | 0o600, b"")}
    entries |= files
    folders = {"proc", "sys"} | {str(parent) for name in entries for parent in Path(name).parents} - {"."}
    whole = bytearray()
    for name, (mode, data) in [*((f, (stat.S_IFDIR | 0o755, b"")) for f in sorted(folders)), *entries.items()]:
        whole += _entry(name, mode, data, (5, 1) if stat.S_ISCHR(mode) else (0, 0))
    return bytes(whole + _entry("TRAILER!!!", 0, b"", (0, 0)))


def _entry(name: str, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
