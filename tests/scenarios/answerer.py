"""A guest that answers each line with the same line, and `who` with its name, in which replicas differ.

python answerer.py NAME [--port PORT] [--keepalive]

With `--keepalive` its connections are probed after each idle second.
"""

import argparse
import socket
import sys
import threading


def serve(connection: socket.socket, name: str, keepalive: bool) -> None:
    if keepalive:
        probe(connection)
    with connection, connection.makefile("rb") as lines:
        try:
            for line in lines:
                connection.sendall(f"{name}\n".encode() if line == b"who\n" else line)
        except OSError as error:
            print(error, file=sys.stderr)


def probe(connection: socket.socket) -> None:
    """Ask the other end after each idle second whether it is still there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--port", type=int, default=7)
    parser.add_argument("--keepalive", action="store_true")
    options = parser.parse_args()
    with socket.create_server(("::", options.port), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        while True:
            connection, _ = listener.accept()
            arguments = (connection, options.name, options.keepalive)
            threading.Thread(target=serve, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main()
