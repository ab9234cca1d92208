"""A network interface as `tap` and `packet` find it: brought up, its MTU set, its kind known."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct

from lockstep.capture.base import PortError, PortPermissionError

# <linux/sockios.h>, <linux/if.h>
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU = 0x8913, 0x8914, 0x8922
IFF_UP = 0x1


def bring_up(name: str, device: str, mtu: int | None) -> None:
    """Set the MTU and IFF_UP of `device`, from within its namespace. `name` is the port's, for errors."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH22x", device.encode(), 0)
        try:
            if mtu is not None:
                fcntl.ioctl(control, SIOCSIFMTU, struct.pack("16si20x", device.encode(), mtu))
            flags = struct.unpack_from("H", fcntl.ioctl(control, SIOCGIFFLAGS, request), 16)[0]
            if not flags & IFF_UP:
                fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", device.encode(), flags | IFF_UP))
        except PermissionError as error:
            way_out = "run with CAP_NET_ADMIN, or bring it up (and set its MTU) beforehand"
            raise PortPermissionError(f"{name}.device = {device}: {error.strerror}; {way_out}") from error
        except OSError as error:
            way_out = "name an existing interface (`ip link`)" if error.errno == errno.ENODEV else "check `mtu`"
            raise PortError(f"{name}.device = {device}: {error.strerror}; {way_out}") from error
