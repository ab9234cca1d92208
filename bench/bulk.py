"""A bulk transfer whose bytes both ends know.

    python -m bench.bulk serve ADDRESS PORT          sends to whoever connects and asks for N bytes
    python -m bench.bulk fetch ADDRESS PORT N        prints seconds; exit code 1 if a byte is wrong

The same stream whoever sends it: a block of 1 MiB again and again, so that two replicas agree.
"""

from __future__ import annotations

import random
import socket
import sys
import tempfile
import time

BLOCK = 1 << 20
#: Seconds without a byte after which a transfer is given up.
SILENCE = 8.0


def block() -> bytes:
    """What is sent again and again."""
    return random.Random(0).randbytes(BLOCK)


def serve(address: str, port: int) -> None:
    """Serve one connection after another, until killed. The file is sent without a copy in user space."""
    with tempfile.TemporaryFile() as file, socket.create_server((address, port)) as server:
        file.write(block())
        file.flush()
        while True:
            connection, _ = server.accept()
            with connection:
                left = int(connection.makefile("rb").readline())
                while left:
                    left -= connection.sendfile(file, 0, min(left, BLOCK))


def fetch(address: str, port: int, size: int) -> float | None:
    """Seconds for `size` bytes (a multiple of BLOCK); None if one of them was wrong. Raises OSError, TimeoutError."""
    wanted = block()
    got = bytearray(BLOCK)
    began = time.perf_counter()
    with socket.create_connection((address, port), timeout=SILENCE) as connection:
        connection.sendall(b"%d\n" % size)
        for _ in range(size // BLOCK):
            view = memoryview(got)
            while view:
                count = connection.recv_into(view)
                if not count:
                    raise ConnectionError("the transfer ended early")
                view = view[count:]
            if got != wanted:
                return None
    return time.perf_counter() - began


def main(argv: list[str]) -> int:
    """See the module."""
    if argv[0] == "serve":
        serve(argv[1], int(argv[2]))
    try:
        seconds = fetch(argv[1], int(argv[2]), int(argv[3]))
    except OSError as error:
        print(f"stalled: {error}")
        return 0
    if seconds is None:
        return 1
    print(seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
