"""The demo's client: one request over exactly one connection, every byte checked at its place.

    python -m lockstep.demo.client (--connect HOST | --listen HOST) --port PORT (--download N | --upload N)
        [--give-up SECONDS] [--pace BYTES_A_SECOND]

Prints JSON lines: `{"ready": true}` once it listens, `{"progress": BYTES}` while it runs, and at the
end `{"result": {...}}` with

    bytes                  of the body that went over, in the direction of the transfer
    sha256                 download: of what came; upload: what the guest says that it got
    header_bytes           of the guest's answer, before its body
    seconds                from the request to the last byte
    longest_pause_ms       the longest time without progress between the first byte and the last
    reconnects             failures of its one connection (it never opens a second one): 0 is good
    wrong_bytes_delivered  bytes of the body that are not what stands at that place of the payload
    first_wrong            the place of the first of those, or null
    error                  what ended it early, or null
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import time
from typing import TYPE_CHECKING, Any

from lockstep.demo import payload
from lockstep.demo.server import CHUNK, END_OF_HEAD, content_length, read_head, request_head

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

#: Least seconds between two lines of progress.
_REPORT = 0.02


def say(**message: Any) -> None:
    """One JSON line to whoever started us."""
    print(json.dumps(message), flush=True)


class Meter:
    """Counts what went over, and the longest time in which nothing did.

    pace: bytes a second that it holds the transfer down to; None for as fast as it goes.
    """

    def __init__(self, pace: int | None = None) -> None:
        self.pace = pace
        #: Most bytes in one call of the kernel: with a pace, a hundredth of a second's.
        self.step = CHUNK if pace is None else max(1, min(CHUNK, pace // 100))
        self.bytes = 0
        self.longest_pause = 0.0
        self.started = self.last = time.monotonic()
        self._reported = 0.0

    def progress(self, count: int) -> None:
        """`count` bytes have just gone over (0: something else that counts as a sign of life)."""
        now = time.monotonic()
        if self.bytes:
            self.longest_pause = max(self.longest_pause, now - self.last)
        self.last = now
        self.bytes += count
        if now - self._reported > _REPORT:
            self._reported = now
            say(progress=self.bytes)
        if self.pace:
            time.sleep(max(0.0, self.started + self.bytes / self.pace - now))


class Transfer:
    """One download or upload; `result` holds what is known so far, whatever becomes of it."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.result: dict[str, Any] = {"sha256": None, "header_bytes": 0}
        self.result |= {"wrong_bytes_delivered": 0, "first_wrong": None}

    def run(self, options: argparse.Namespace) -> dict[str, Any]:
        """Connect, transfer and report."""
        error = None
        try:
            with connect(options) as connection:
                self.meter = Meter(options.pace)
                if options.download is not None:
                    self.download(connection, options.download)
                else:
                    self.upload(connection, options.upload)
        except TimeoutError:
            error = f"nothing went over for {options.give_up:g} s"
        except (OSError, ValueError) as failure:
            error = str(failure)
        return self.result | {
            "bytes": self.meter.bytes,
            "seconds": self.meter.last - self.meter.started,
            "longest_pause_ms": self.meter.longest_pause * 1000,
            "reconnects": int(error is not None),
            "error": error,
        }

    def download(self, connection: socket.socket, size: int) -> None:
        """Ask for `size` bytes and check each of them."""
        connection.sendall(request_head("GET", f"/{size}", 0))
        head, rest = read_head(connection)
        self.result["header_bytes"] = len(head) + len(END_OF_HEAD)
        total = hashlib.sha256()
        self._check(rest, total)
        buffer = memoryview(bytearray(self.meter.step))
        while self.meter.bytes < size:
            got = connection.recv_into(buffer)
            if not got:
                raise ConnectionError(f"the guest closed the connection {size - self.meter.bytes} bytes too early")
            self._check(buffer[:got], total)
        self.result["sha256"] = total.hexdigest()

    def upload(self, connection: socket.socket, size: int) -> None:
        """Send `size` bytes and take the guest's word for what it got."""
        connection.sendall(request_head("POST", "/", size))
        for part in payload.windows(size, step=self.meter.step):
            while part:
                sent = connection.send(part)
                self.meter.progress(sent)
                part = part[sent:]
        head, answer = read_head(connection)
        self.result["header_bytes"] = len(head) + len(END_OF_HEAD)
        while len(answer) < content_length(head):
            more = connection.recv(CHUNK)
            if not more:
                raise ConnectionError("the guest closed the connection within its answer")
            answer += more
        self.meter.progress(0)
        self.result["sha256"] = answer.decode("latin-1")
        right = payload.digest(size).encode()
        wrong = sum(a != b for a, b in zip(answer, right, strict=False)) + abs(len(answer) - len(right))
        self.result["wrong_bytes_delivered"] = wrong

    def _check(self, part: memoryview | bytes, total: Hash) -> None:
        if not part:
            return
        total.update(part)
        wrong, first = payload.count_wrong(part, self.meter.bytes)
        self.result["wrong_bytes_delivered"] += wrong
        if self.result["first_wrong"] is None:
            self.result["first_wrong"] = first
        self.meter.progress(len(part))


def connect(options: argparse.Namespace) -> socket.socket:
    """The one connection: opened by us, or by the guest."""
    if options.connect:
        return socket.create_connection((options.connect, options.port), timeout=options.give_up)
    family = socket.AF_INET6 if ":" in options.listen else socket.AF_INET
    with socket.create_server((options.listen, options.port), family=family) as listener:
        say(ready=True)
        listener.settimeout(options.give_up)
        connection, _ = listener.accept()
    connection.settimeout(options.give_up)
    return connection


def main() -> None:
    parser = argparse.ArgumentParser(prog="lockstep.demo.client")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--connect", metavar="HOST", help="open the connection")
    way.add_argument("--listen", metavar="HOST", help="wait for the guest to open it")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--give-up", type=float, default=20.0, help="seconds without progress until it gives up")
    parser.add_argument("--pace", type=int, metavar="N", help="bytes a second at most")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--download", type=int, metavar="N")
    size.add_argument("--upload", type=int, metavar="N")
    say(result=Transfer().run(parser.parse_args()))


if __name__ == "__main__":
    main()
