"""Sends garbage to every socket of a running proxy, as long as it is told to, and says how much of it.

python garbage.py KIND RUN_DIR SEED

KIND  envelopes  messages to each stream that fit the format in no way that counts
      control    requests that are none, to each control socket
      frames     messages that fit, from another producer, with frames that are random or nearly right
      raw        bytes to every socket that are no ZMTP, or stop being it; connections that say nothing

It goes on until a line comes on its standard input, MOST rounds at most, and prints one JSON line: how many
messages went to each stream or service. It stays connected until its standard input ends: of a peer that leaves,
ZeroMQ forgets what it has not read yet.
"""

from __future__ import annotations

import json
import random
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import zmq

from lockstep.demo.addresses import ADDRESSES, CLIENT_MAC, GUEST_MAC
from lockstep.streams import STREAMS
from lockstep.wiring import SERVICES

MOST = 2_000
#: Longest that a message waits to be taken, and that the last ones are delivered, in milliseconds.
PATIENCE = 60_000

Parts = list[bytes]
Send = Callable[[], dict[str, int]]


class Host(NamedTuple):
    """The addresses of one end, as they lie in a frame."""

    mac: bytes
    ipv4: bytes
    ipv6: bytes


CLIENT, GUEST = (
    Host(bytes.fromhex(mac.replace(":", "")), socket.inet_aton(ipv4), socket.inet_pton(socket.AF_INET6, ipv6))
    for mac, ipv4, ipv6 in zip((CLIENT_MAC, GUEST_MAC), ADDRESSES["ipv4"], ADDRESSES["ipv6"], strict=False)
)


# --- messages that don't fit


def envelope(stream: str, **changed: object) -> bytes:
    """Part 1 for one frame of 60 bytes, with some entries changed; `None` takes one out."""
    entries: dict[str, object] = {
        "v": 1,
        "s": stream,
        "b": b"stranger",
        "e": 0,
        "n": 0,
        "h": 0,
        "l": struct.pack("<I", 60),
    }
    entries |= changed
    packed: bytes = msgpack.packb({name: value for name, value in entries.items() if value is not None})
    return packed


def misfits(stream: str, rng: random.Random) -> Iterator[Parts]:
    """One of each kind. Every one has to be rejected."""
    frame = rng.randbytes(60)
    right = envelope(stream)
    noise = rng.randbytes
    # Parts.
    yield [right]
    yield [right, frame, b""]
    yield [b""]
    yield [noise(rng.randrange(1, 64)) for _ in range(100)]
    # Part 1 is no map. 0xc1 is no msgpack at all.
    yield [b"", frame]
    yield [b"\xc1" + noise(rng.randrange(2000)), frame]
    yield [b"\x91" * 5000, frame]  # nested too deeply
    yield [b"\xdf\xff\xff\xff\xff" + noise(50), frame]  # a map of 2**32 - 1 entries
    yield [b"\xdd\xff\xff\xff\xff", frame]
    yield [b"\xc6\xff\xff\xff\xff", frame]
    yield [right[: rng.randrange(len(right))], frame]  # cut off
    yield [right + noise(1), frame]
    for value in (None, 7, [1, 2], "text", {1: 2}, {b"v": 1}, msgpack.ExtType(5, b"x")):
        yield [msgpack.packb(value), frame]
    # Entries.
    for version in (None, 0, 2, -1, 1.0, "1", True, 2**64 - 1):
        yield [envelope(stream, v=version), frame]
    others = [name for name in STREAMS if name != stream]
    for name in (rng.choice(others), "", "x" * 10_000, stream.encode(), 7, "\0", "network"):
        yield [envelope(stream, s=name), frame]
    for boot in (b"", b"short", b"a boot id of 22 bytes!", "stranger", 8):
        yield [envelope(stream, b=boot), frame]
    for number in (-1, 2**63, 1.5, "0", True, [0]):
        yield [envelope(stream, e=number), frame]
        yield [envelope(stream, n=number), frame]
    for vnet in (1, 9, 11, 13, 4096, -10, "10"):
        yield [envelope(stream, h=vnet), frame]
    yield [envelope(stream, g=7), frame]
    # Lengths and frames.
    yield [envelope(stream, l=b"\x3c\0\0"), frame]
    yield [envelope(stream, l="<"), frame]
    yield [envelope(stream, l=b""), frame]
    yield [envelope(stream, l=b"\xff\xff\xff\xff" * 1000), frame]
    yield [right, frame[: rng.randrange(60)]]  # a truncated payload
    yield [right, frame + noise(rng.randrange(1, 60))]
    yield [envelope(stream, l=struct.pack("<II", 60, 0)), frame]  # an empty frame
    yield [envelope(stream, h=12, l=struct.pack("<II", 12, 48)), frame]  # nothing behind the header
    yield [envelope(stream, l=struct.pack("<I", 70_000)), noise(70_000)]  # too long
    # Cuts.
    for cut in (
        7,
        [],
        {"epoch": 1},
        {"epoch": 1, "phase": "now"},
        {"epoch": -1, "phase": "commit"},
        {"phase": "commit"},
    ):
        yield [envelope(stream, l=b"", c=cut), b""]
    yield [envelope(stream, c={"epoch": 1, "phase": "commit"}), frame]


def send_envelopes(run_dir: Path, rng: random.Random, context: zmq.Context[Any]) -> Send:
    senders = {stream: connected(context, zmq.PUSH, run_dir / stream) for stream in STREAMS}

    def send() -> dict[str, int]:
        sent = {}
        for stream, sender in senders.items():
            parts = list(misfits(stream, rng))
            for one in parts:
                sender.send_multipart(one)
            sent[stream] = len(parts)
        return sent

    return send


# --- requests that are none


def send_control(run_dir: Path, rng: random.Random, context: zmq.Context[Any]) -> Send:
    askers = {service: connected(context, zmq.DEALER, run_dir / f"{service}.control") for service in SERVICES}

    def send() -> dict[str, int]:
        wanted = msgpack.packb({"op": "drain"})  # would end it, if one of these were taken for a request
        requests: list[Parts] = [
            [b""],
            [b"", b"", b"", wanted],
            [b"a", b"b", wanted],
            [rng.randbytes(9) for _ in range(50)],
            [b"\xc1" + rng.randbytes(rng.randrange(100))],
            [b"\x91" * 9000],
            [wanted[:-1]],
            [wanted + b"\0"],
            *(
                [msgpack.packb(value)]
                for value in (None, 1, "drain", ["op", "drain"], {}, {"op": None}, {"op": ["drain"]})
            ),
            *([msgpack.packb(value)] for value in ({"op": b"drain"}, {b"op": "drain"}, {"op": "drain", 1: 2})),
        ]
        for asker in askers.values():
            for request in requests:
                asker.send_multipart(request)
            while asker.poll(0):
                asker.recv_multipart()
        return dict.fromkeys(SERVICES, len(requests))

    return send


# --- frames of a stranger


def strange_frame(stream: str, rng: random.Random) -> bytes:
    """Random bytes, or headers that are right up to some place and random behind it.

    Its addresses are those of the stream's direction: a frame that says that the client sits where
    the guest does would be believed by the bridge, whoever brought it there.
    """
    if rng.random() < 0.2:
        return rng.randbytes(rng.choice((1, 13, 14, 15, 33, 34, 60, 1514, 9000, 60_000)))
    source, destination = (CLIENT, GUEST) if stream in ("ingress", "to_guest") else (GUEST, CLIENT)
    tags = b"".join(b"\x81\0" + rng.randbytes(2) for _ in range(rng.choice((0, 0, 0, 1, 2, 9))))
    body = rng.choice(
        (
            _ipv4(rng, source.ipv4 + destination.ipv4),
            _ipv6(rng, source.ipv6 + destination.ipv6),
            b"\x08\x06\0\1\x08\0\6\4\0" + rng.randbytes(1) + b"\0" * rng.randrange(40),  # ARP, of nobody
        )
    )
    frame = destination.mac + source.mac + tags + body
    return frame if rng.random() < 0.7 else frame[: rng.randrange(1, len(frame))]


def _transport(rng: random.Random) -> tuple[int, bytes]:
    protocol = rng.choice((1, 2, 6, 6, 6, 17, 47, 58, rng.randrange(256)))
    ports = struct.pack("!HH", rng.choice((80, rng.randrange(65536))), rng.randrange(65536))
    return protocol, ports + rng.randbytes(rng.choice((0, 4, 16, 16, 36, 56, 1400)))


def _ipv4(rng: random.Random, ends: bytes) -> bytes:
    protocol, rest = _transport(rng)
    first = rng.choice((0x45, 0x45, 0x45, 0x46, 0x4F, rng.randrange(256)))
    total = rng.choice((20 + len(rest), 20 + len(rest), 20, rng.randrange(65536)))
    fragment = rng.choice((0, 0, 0x4000, 0x2000, rng.randrange(65536)))
    return b"\x08\0" + struct.pack("!BBHHHBBH", first, 0, total, 7, fragment, 64, protocol, 0) + ends + rest


def _ipv6(rng: random.Random, ends: bytes) -> bytes:
    protocol, rest = _transport(rng)
    for _ in range(rng.choice((0, 0, 1, 3, 20))):
        rest = bytes((protocol, rng.choice((0, 0, 1, 255)))) + rng.randbytes(6) + rest
        protocol = rng.choice((0, 43, 44, 51, 60))
    size = rng.choice((len(rest), len(rest), 0, rng.randrange(65536)))
    return b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, size, protocol, 64) + ends + rest


def send_frames(run_dir: Path, rng: random.Random, context: zmq.Context[Any]) -> Send:
    senders = {stream: connected(context, zmq.PUSH, run_dir / stream) for stream in STREAMS}
    number = 0

    def send() -> dict[str, int]:
        nonlocal number
        for stream, sender in senders.items():
            vnet = rng.choice((0, 10, 12))
            frames = [
                rng.choice((bytes(vnet), rng.randbytes(vnet))) + strange_frame(stream, rng)
                for _ in range(rng.randrange(1, 4))
            ]
            lengths = struct.pack(f"<{len(frames)}I", *map(len, frames))
            boot = b"stranger" if rng.random() < 0.8 else rng.randbytes(8)
            epoch = rng.choice((0, 0, 0, 1, rng.randrange(1 << 62)))
            sender.send_multipart([envelope(stream, b=boot, n=number, e=epoch, h=vnet, l=lengths), b"".join(frames)])
        number += rng.choice((1, 1, 1, 5))
        return dict.fromkeys(STREAMS, 1)

    return send


# --- no ZMTP

#: A greeting and a READY of ZMTP 3.0 with the NULL mechanism (ZeroMQ RFC 23).
GREETING = b"\xff" + b"\0" * 8 + b"\x7f\3\0" + b"NULL".ljust(20, b"\0") + b"\0" * 32


def ready(kind: bytes) -> bytes:
    body = b"\x05READY" + b"\x0bSocket-Type" + struct.pack("!I", len(kind)) + kind
    return b"\x04" + bytes((len(body),)) + body


def no_zmtp(rng: random.Random) -> bytes:
    """Bytes for one connection."""
    noise = rng.randbytes(rng.randrange(1, 5000))
    handshake = GREETING + ready(rng.choice((b"PUSH", b"DEALER", b"SUB", b"PULL", b"", b"nothing")))
    return rng.choice(
        (
            noise,
            b"\xff" + noise,
            b"\0" + noise,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            GREETING[: rng.randrange(1, 64)],
            GREETING[:10] + b"\x09\xff" + GREETING[12:] + noise,  # a version to come
            GREETING[:12] + b"CURVE".ljust(20, b"\0") + GREETING[32:] + noise,
            GREETING + noise,
            GREETING + b"\x04\xff" + noise,
            GREETING + b"\x06" + b"\x7f" + b"\xff" * 7,  # a command of 2**63 - 1 bytes
            handshake + noise,
            handshake + b"\x02" + b"\x7f" + b"\xff" * 7 + noise,  # a frame of 2**63 - 1 bytes
            handshake + b"\x02" + (3 << 20).to_bytes(8, "big") + noise,  # more than is allowed
            handshake + b"\x03" + (1 << 20).to_bytes(8, "big") + noise,  # an end that never comes
            handshake + b"\x01\x00" * 500,  # many parts, and no last one
            handshake + b"\x04\x05\x04PING",
            handshake + b"\xff" * 100,
        )
    )


def send_raw(run_dir: Path, rng: random.Random, context: zmq.Context[Any]) -> Send:
    names = [*STREAMS, *(f"{service}.{what}" for service in SERVICES for what in ("control", "events"))]
    left: list[socket.socket] = []

    def send() -> dict[str, int]:
        for name in names:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(10)
            try:
                connection.connect(str(run_dir / name))
                connection.sendall(b"" if rng.random() < 0.1 else no_zmtp(rng))
            except OSError:
                pass  # it had heard enough, or has no room for one more now
            left.append(connection)
        while len(left) > 20 * len(names):
            left.pop(rng.randrange(len(left))).close()
        return dict.fromkeys(names, 1)

    return send


# --- the rest

KINDS = {"envelopes": send_envelopes, "control": send_control, "frames": send_frames, "raw": send_raw}


def connected(context: zmq.Context[Any], kind: int, path: Path) -> zmq.Socket[bytes]:
    connection: zmq.Socket[bytes] = context.socket(kind)
    connection.setsockopt(zmq.LINGER, PATIENCE)
    connection.setsockopt(zmq.SNDTIMEO, PATIENCE)
    connection.connect(f"ipc://{path}")
    return connection


def main() -> None:
    kind, run_dir, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    total: dict[str, int] = {}
    with zmq.Context() as context:
        send = KINDS[kind](run_dir, random.Random(seed), context)
        for _ in range(MOST):
            for name, count in send().items():
                total[name] = total.get(name, 0) + count
            if select.select([sys.stdin], [], [], 0)[0]:
                break
        print(json.dumps(total), flush=True)
        sys.stdin.read()
        context.destroy()


if __name__ == "__main__":
    main()
