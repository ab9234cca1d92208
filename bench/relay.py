"""A bare ZeroMQ relay in a comparer's place: what it gets on `primary` leaves, what it gets on `secondary` is dropped.

    python -m bench.relay PRIMARY SECONDARY RELEASED     (ZeroMQ endpoints)

It bounds what any comparer can do over these links.
"""

from __future__ import annotations

import sys

import zmq


def relay(primary: str, secondary: str, released: str) -> None:
    """Run until killed. The first two are bound, the third is connected to."""
    context = zmq.Context()
    out = context.socket(zmq.PUSH)
    out.connect(released)
    ins = []
    poller = zmq.Poller()
    for endpoint in (primary, secondary):
        socket = context.socket(zmq.PULL)
        socket.bind(endpoint)
        poller.register(socket, zmq.POLLIN)
        ins.append(socket)
    while True:
        for socket, _ in poller.poll():
            parts = socket.recv_multipart(copy=False)
            if socket is ins[0]:
                out.send_multipart(parts, copy=False)


if __name__ == "__main__":
    relay(*sys.argv[1:])
