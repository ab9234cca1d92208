"""One connection of bytes to a QEMU, kept up: as a server, one client after another; as a client, again and again.

Everything is done without blocking, whenever the one descriptor `fileno()` is readable: accepting,
connecting, trying again later, and sending what a slow peer did not take at once.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from pathlib import Path

from lockstep.batch import Buffer
from lockstep.qemu.address import Address, SocketAddress
from lockstep.timer import Timer

#: Bytes that wait for a slow peer before further ones are refused.
MOST_PENDING = 4 << 20
#: Seconds before the first further try to connect, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
#: Seconds of silence after which a dead host is looked for, as on every other link.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 6))


class PeerError(Exception):
    """The socket can't be had. Its text says why, and the way out."""


class PeerPermissionError(PeerError):
    """The socket may not be had by this process."""


class Peer:
    """One end of a connection; raises PeerError where a server can't have its address.

    counters: `connections` that were made, `disconnects`, `lost_bytes` that a broken connection had
    not taken. `connection` is the number of the current one, from 1; `connected` whether it stands.
    """

    def __init__(self, address: Address, server: bool) -> None:
        self._address = address
        # Asking a name server would block, so it is done once.
        self._family, self._where = _resolved(address)
        self.counters = {"connections": 0, "disconnects": 0, "lost_bytes": 0}
        self._epoll = select.epoll()
        self._socket: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._connecting = False
        self._pending = bytearray()
        self._pause = FIRST_PAUSE
        self._timer: Timer | None = None
        try:
            if server:
                self._listener = _listen(address, self._family, self._where)
                self._epoll.register(self._listener, select.EPOLLIN)
            else:
                self._timer = Timer()
                self._epoll.register(self._timer, select.EPOLLIN)
                self._connect()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """An epoll descriptor: readable while there is something to do."""
        return self._epoll.fileno()

    @property
    def connection(self) -> int:
        """Which connection this is."""
        return self.counters["connections"]

    @property
    def connected(self) -> bool:
        """Whether bytes can be sent."""
        return self._socket is not None and not self._connecting

    def work(self) -> None:
        """Accept, connect or send what waits, as far as that goes without waiting."""
        for descriptor, events in self._epoll.poll(0):
            if self._timer is not None and descriptor == self._timer.fileno():
                self._timer.take()
                self._connect()
            elif self._listener is not None and descriptor == self._listener.fileno():
                self._accept()
            elif self._socket is None or descriptor != self._socket.fileno():
                continue  # gone meanwhile
            elif self._connecting:
                self._finish_connecting()
            elif events & select.EPOLLOUT:
                self._flush()

    def receive(self, room: memoryview) -> int:
        """Bytes that came, into `room`; 0 where none wait, or where there is no connection."""
        if self._socket is None or self._connecting:
            return 0
        try:
            got = self._socket.recv_into(room)
        except BlockingIOError:
            return 0
        except OSError:
            got = 0
        if not got:
            self.drop()
        return got

    def send(self, data: Buffer) -> bool:
        """Send all of it, now or later; False where it was refused: no connection, or too much waits."""
        if self._pending and self._socket is not None:
            self._flush()
        if self._socket is None or self._connecting or len(self._pending) > MOST_PENDING:
            return False
        if self._pending:
            self._pending += data
            return True
        sent = self._try(data)
        if sent < 0:
            return False
        if sent < len(data):
            self._pending += memoryview(data)[sent:]
            self._epoll.modify(self._socket, select.EPOLLIN | select.EPOLLOUT)
        return True

    def drop(self) -> None:
        """End this connection, and be ready for the next."""
        if self._socket is None:
            return
        self.counters["disconnects"] += not self._connecting
        self.counters["lost_bytes"] += len(self._pending)
        self._pending.clear()
        self._epoll.unregister(self._socket)
        self._socket.close()
        self._socket = None
        self._connecting = False
        if self._listener is not None:
            self._epoll.register(self._listener, select.EPOLLIN)
        else:
            self._try_later()

    def close(self) -> None:
        """Close everything; a server's path goes with it. Closing twice is allowed."""
        for one in (self._socket, self._listener):
            if one is not None:
                one.close()
        if self._listener is not None and self._address.path is not None:
            Path(self._address.path).unlink(missing_ok=True)
        self._socket = self._listener = None
        if self._timer is not None:
            self._timer.close()
        self._epoll.close()

    # --- connections

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            made, _ = self._listener.accept()
        except OSError:  # it went away before it was let in
            return
        # One at a time, as QEMU's own servers do: the next waits in the backlog.
        self._epoll.unregister(self._listener)
        self._take(made)
        self._connected()

    def _connect(self) -> None:
        made = socket.socket(self._family, socket.SOCK_STREAM)
        self._take(made)
        self._connecting = True
        code = made.connect_ex(self._where)
        if code == 0:
            self._connected()
        elif code == errno.EINPROGRESS:
            self._epoll.modify(made, select.EPOLLOUT)
        else:
            self.drop()

    def _take(self, made: socket.socket) -> None:
        made.setblocking(False)
        if made.family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                made.setsockopt(socket.IPPROTO_TCP, option, value)
        self._socket = made
        self._epoll.register(made, select.EPOLLIN)

    def _finish_connecting(self) -> None:
        assert self._socket is not None
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.drop()
        else:
            self._connected()

    def _connected(self) -> None:
        assert self._socket is not None
        self._connecting = False
        self._pause = FIRST_PAUSE
        self.counters["connections"] += 1
        self._epoll.modify(self._socket, select.EPOLLIN)

    def _try_later(self) -> None:
        """Set the timer, and wait twice as long the next time."""
        assert self._timer is not None
        self._timer.set(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    # --- sending

    def _flush(self) -> None:
        sent = self._try(self._pending)
        if sent > 0:
            del self._pending[:sent]
        if not self._pending and self._socket is not None:
            self._epoll.modify(self._socket, select.EPOLLIN)

    def _try(self, data: Buffer) -> int:
        """Bytes that were taken; -1 where the connection broke."""
        assert self._socket is not None
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.drop()
            return -1


def _resolved(address: Address) -> tuple[socket.AddressFamily, SocketAddress]:
    try:
        return address.resolve()
    except OSError as error:
        raise PeerError(f"{address.text}: {error.strerror}; name a host that is known here") from error


def _listen(address: Address, family: socket.AddressFamily, where: SocketAddress) -> socket.socket:
    way_out = "choose another address, or stop who has it"
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if address.path is not None:
            _clear(address.path)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.listen(1)
    except OSError as error:
        made.close()
        kind = PeerPermissionError if isinstance(error, PermissionError) else PeerError
        raise kind(f"{address.text}: {error.strerror}; {way_out}") from error
    return made


def _clear(path: str) -> None:
    """Remove the socket that a server left behind; raises OSError (EADDRINUSE) while one lives."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    Path(path).unlink()
