"""Addresses of QEMU's sockets, as settings write them: `unix:///PATH` or `tcp://HOST:PORT`."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

_TCP = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
#: sockaddr_un.sun_path, without its closing zero.
_LONGEST_PATH = 107

SocketAddress = str | tuple[str, int]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a socket is: a path, or a host and a port."""

    text: str
    path: str | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ValueError with what is wrong."""
        if text.startswith("unix://"):
            path = text.removeprefix("unix://")
            if not path.startswith("/") or len(path.encode()) > _LONGEST_PATH:
                raise ValueError(f"a unix socket has an absolute path of {_LONGEST_PATH} bytes at most")
            return cls(text, path)
        found = _TCP.fullmatch(text)
        if not found or not 0 < int(found["port"]) < 65536:
            raise ValueError("a socket of QEMU is unix:///ABSOLUTE/PATH or tcp://HOST:PORT")
        return cls(text, None, found["host"].strip("[]"), int(found["port"]))

    def resolve(self) -> tuple[socket.AddressFamily, SocketAddress]:
        """Family and address for a socket; raises OSError for a name that nobody knows."""
        if self.path is not None:
            return socket.AF_UNIX, self.path
        family, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
        return family, (str(address[0]), self.port)
