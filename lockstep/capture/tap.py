"""The `tap` frontend: a TAP device with virtio-net headers, so that super-frames pass whole.

The device may lie in another network namespace (`netns`), for example as the `eth0` of a
container. One that exists is attached to; one that doesn't is made, and lives as long as this
process, or with `persistent` until somebody deletes it. Such a one, and one made beforehand
(`ip tuntap add … vnet_hdr`), keeps its addresses over a restart.
Source: Linux `Documentation/networking/tuntap.rst`, `include/uapi/linux/if_tun.h`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from lockstep.batch import MAX_BATCH, MAX_FRAME, Batch
from lockstep.capture.base import Port, PortError, PortPermissionError
from lockstep.capture.frames import Frames
from lockstep.capture.interface import bring_up
from lockstep.capture.netns import entered
from lockstep.wire.vnet import convert

DEVICE = "/dev/net/tun"

TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 0x01, 0x02, 0x04, 0x08

#: `struct virtio_net_hdr`. With Ethernet's 14 bytes it puts the IP header on a multiple of 4.
VNET = 10
#: Most frames in one batch: a bound on how long one port keeps the loop.
MOST_FRAMES = 256
_SLOT = MAX_FRAME + VNET


class TapPort(Port):
    """A TAP device, opened and brought up by the constructor; raises PortError.

    multi_queue: the device has several queues, and this port is one of them: each flow's frames come to
    one queue. persistent: the device stays when nobody has it open any more.
    """

    def __init__(
        self,
        name: str,
        device: str,
        netns: str | None = None,
        mtu: int | None = None,
        *,
        multi_queue: bool = False,
        persistent: bool = False,
    ) -> None:
        super().__init__(name, VNET)
        self._fd = -1
        self._device = device
        with entered(netns, name):
            self._fd = open_device(name, device, netns, multi_queue)
            try:
                bring_up(name, device, mtu)
                if persistent:
                    fcntl.ioctl(self._fd, TUNSETPERSIST, 1)
            except PortError:
                self.close()
                raise
        self._frames = Frames(self._fd, MAX_BATCH, MOST_FRAMES, _SLOT, VNET + 1)
        self._view = memoryview(self._frames.buffer)

    def fileno(self) -> int:
        """The device's descriptor."""
        return self._fd

    def read(self) -> Batch | None:
        """The frames waiting in the device's queue. The batch lies in a buffer that the next `read` fills again."""
        frames = self._frames
        count = frames.read()
        if count > 0:
            return self.count_in(Batch(self._view[: frames.size], frames.lengths[:count], VNET))
        if count == -errno.EBADFD:
            raise PortError(
                f"{self.name}.device = {self._device} was deleted; make it again, and start the service again"
            )
        if count not in (0, -errno.EIO):  # EIO: the device is down
            raise OSError(-count, os.strerror(-count))
        return None

    def write(self, batch: Batch) -> None:
        """Give the frames to the kernel, in order."""
        batch = convert(batch, VNET)
        taken = self._frames.write(batch.data, batch.lengths)
        self.counters["frames_out"] += taken
        self.counters["bytes_out"] += self._frames.taken
        self.counters["dropped_out"] += len(batch.lengths) - taken

    def close(self) -> None:
        """Detach from the device; one that isn't persistent goes with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_device(name: str, device: str, netns: str | None, multi_queue: bool) -> int:
    """A descriptor of the device in the namespace where this thread is; raises PortError. `netns`: for errors."""
    where = f"{device}{f' in {netns}' if netns else ''}"
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            way_out = "run as root, or give this user the device"
            raise PortPermissionError(f"{name}: {DEVICE}: {error.strerror}; {way_out}") from error
        raise PortError(f"{name}: {DEVICE}: {error.strerror}; load the `tun` module (modprobe tun)") from error
    try:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi_queue else 0)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET))
        fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EPERM:
            way_out = "run as root or with CAP_NET_ADMIN in that namespace"
            raise PortPermissionError(f"{name}.device = {where}: {error.strerror}; {way_out}") from error
        ways_out = {
            errno.EBUSY: "another process has it; stop that one, or name another device",
            errno.EINVAL: "it exists and is no TAP with vnet_hdr; remake it with `ip tuntap add mode tap vnet_hdr"
            f"{' multi_queue' if multi_queue else ''}`"
            f"{'' if multi_queue else ', or set `multi_queue = true` where it has many queues'}",
            errno.E2BIG: "all its queues are taken; stop a reader, or name another device",
        }
        way_out = ways_out.get(error.errno or 0, "name another device")
        raise PortError(f"{name}.device = {where}: {error.strerror}; {way_out}") from error
    return fd
