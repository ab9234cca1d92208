"""The demo's guest: a small HTTP/1.1 server whose every byte is known beforehand.

`GET /SIZE` answers with the first SIZE bytes of the payload, `POST` with the SHA-256 of what it got.
No date, no randomness, one connection a request: two replicas say the same, byte for byte.

    python -m lockstep.demo.server --port 80 [--connect HOST --source-port PORT] [--flip POSITION]

With `--connect` the guest opens the connection itself, from a source port that both replicas share,
and serves one request over it. `--flip` spoils one byte of every body: what a divergence looks like.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import threading

from lockstep.demo import payload

CHUNK = 256 << 10
END_OF_HEAD = b"\r\n\r\n"
#: Longest request head that is read.
_LONGEST_HEAD = 8192


def header(size: int) -> bytes:
    """The head of an answer with a body of `size` bytes."""
    return f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode()


def request_head(method: str, path: str, size: int) -> bytes:
    """The head of a request."""
    return f"{method} {path} HTTP/1.1\r\nHost: guest\r\nContent-Length: {size}\r\n\r\n".encode()


def content_length(head: bytes) -> int:
    """How long the body is that follows a head; raises ValueError where the head does not say."""
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return int(value)
    raise ValueError("a head without Content-Length")


def flipped(part: memoryview, position: int, flip: int | None) -> memoryview:
    """The part of the body at `position`, with the byte at `flip` spoiled if it lies in there."""
    if flip is None or not position <= flip < position + len(part):
        return part
    spoiled = bytearray(part)
    spoiled[flip - position] ^= 1
    return memoryview(spoiled)


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """A message's head without its closing blank line, and what came after it."""
    got = b""
    while END_OF_HEAD not in got:
        part = connection.recv(CHUNK)
        if not part or len(got) > _LONGEST_HEAD:
            raise ConnectionError("the connection ended before the head of the message did")
        got += part
    head, _, rest = got.partition(END_OF_HEAD)
    return head, rest


def serve(connection: socket.socket, flip: int | None) -> None:
    """Answer one request and close."""
    with connection:
        head, rest = read_head(connection)
        method, path, _ = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if method == "POST":
            answer = _swallow(connection, rest, content_length(head)).encode()
            connection.sendall(header(len(answer)) + answer)
        else:
            size, position = int(path.lstrip("/")), 0
            connection.sendall(header(size))
            for part in payload.windows(size):
                connection.sendall(flipped(part, position, flip))
                position += len(part)


def _swallow(connection: socket.socket, rest: bytes, size: int) -> str:
    total = hashlib.sha256(rest)
    left = size - len(rest)
    buffer = memoryview(bytearray(CHUNK))
    while left > 0:
        got = connection.recv_into(buffer, min(left, CHUNK))
        if not got:
            raise ConnectionError("the connection ended before the body did")
        total.update(buffer[:got])
        left -= got
    return total.hexdigest()


def _serve_or_report(connection: socket.socket, flip: int | None) -> None:
    try:
        serve(connection, flip)
    except (OSError, ValueError) as error:
        print(f"request failed: {error!r}", flush=True)


def _open(host: str, port: int, source_port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.bind(("", source_port))
    _say_ready()
    connection.connect((host, port))
    return connection


def _say_ready() -> None:
    print(json.dumps({"ready": True}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="lockstep.demo.server")
    parser.add_argument("--port", type=int, required=True, help="listen here, or connect to this port")
    parser.add_argument("--connect", metavar="HOST", help="open the connection instead of waiting for one")
    parser.add_argument("--source-port", type=int, default=0, help="with --connect: the same on both replicas")
    parser.add_argument("--flip", type=int, metavar="POSITION", help="spoil this byte of each body")
    options = parser.parse_args()
    if options.connect:
        _serve_or_report(_open(options.connect, options.port, options.source_port), options.flip)
        return
    with socket.create_server(("::", options.port), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        _say_ready()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve_or_report, args=(connection, options.flip), daemon=True).start()


if __name__ == "__main__":
    main()
