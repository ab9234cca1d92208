"""A connection over which descriptors come with the bytes."""

from __future__ import annotations

import os
import socket

from lockstep.qemu.peer import Peer


class DescriptorPeer(Peer):
    """A `Peer` at a unix socket."""

    def receive_with_fds(self, size: int, most: int) -> tuple[bytes, list[int]]:
        """At most `size` bytes, and at most `most` descriptors that came with them; nothing where none wait.

        The connection is dropped at its end, and where more descriptors came.
        """
        if self._socket is None or self._connecting:
            return b"", []
        try:
            got, fds, flags, _ = socket.recv_fds(self._socket, size, most, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return b"", []
        except OSError:
            got, fds, flags = b"", [], 0
        if not got or flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            self.drop()
            return b"", []
        return got, fds
