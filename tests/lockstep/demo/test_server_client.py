"""The guest's and the client's programs, joined over the loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lockstep.demo import payload
from lockstep.demo.server import content_length, flipped, header

SIZE = 3_000_000


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def program(module: str, *arguments: str | float) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", f"lockstep.demo.{module}", *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout is not None
    line: dict[str, object] = json.loads(process.stdout.readline())
    return line


def result_of(process: subprocess.Popen[str]) -> dict[str, object]:
    out, _ = process.communicate(timeout=30)
    result: dict[str, object] = json.loads(out.splitlines()[-1])["result"]
    return result


@pytest.mark.parametrize(
    ("direction", "host"), [("download", "127.0.0.1"), ("upload", "127.0.0.1"), ("download", "::1")]
)
def test_a_good_transfer_is_reported_as_good(direction: str, host: str) -> None:
    port = free_port()
    with program("server", "--port", port) as server:
        assert first_line(server) == {"ready": True}
        with program("client", "--connect", host, "--port", port, f"--{direction}", SIZE) as client:
            result = result_of(client)
    assert result["sha256"] == payload.digest(SIZE)
    assert (result["bytes"], result["wrong_bytes_delivered"], result["reconnects"], result["error"]) == (
        SIZE,
        0,
        0,
        None,
    )


def test_a_flipped_byte_is_seen_at_its_place() -> None:
    port = free_port()
    with program("server", "--port", port, "--flip", 2_000_000) as server:
        first_line(server)
        with program("client", "--connect", "127.0.0.1", "--port", port, "--download", SIZE) as client:
            result = result_of(client)
    assert result["sha256"] != payload.digest(SIZE)
    assert (result["wrong_bytes_delivered"], result["first_wrong"]) == (1, 2_000_000)
    assert result["header_bytes"] == len(header(SIZE))


def test_the_guest_opens_the_connection_from_the_port_it_is_told() -> None:
    port, source = free_port(), free_port()
    with program("client", "--listen", "127.0.0.1", "--port", port, "--download", SIZE) as client:
        assert first_line(client) == {"ready": True}
        with program("server", "--connect", "127.0.0.1", "--port", port, "--source-port", source):
            result = result_of(client)
    assert result["sha256"] == payload.digest(SIZE)


def test_a_guest_that_dies_is_one_failure_and_not_tried_again() -> None:
    port = free_port()
    with program("server", "--port", port) as server:
        first_line(server)
        with program("client", "--connect", "127.0.0.1", "--port", port, "--download", 1 << 40) as client:
            assert "progress" in first_line(client)
            server.kill()
            result = result_of(client)
    assert result["reconnects"] == 1
    assert result["wrong_bytes_delivered"] == 0
    assert result["error"]


def test_silence_is_given_up_and_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with program("client", "--connect", "127.0.0.1", "--port", port, "--download", 1, "--give-up", 0.2) as client:
            result = result_of(client)
    assert result["error"] == "nothing went over for 0.2 s"


def test_only_the_part_that_holds_the_place_is_spoiled() -> None:
    part = memoryview(b"abcd")
    assert flipped(part, 10, None) is part
    assert flipped(part, 10, 14) is part
    assert bytes(flipped(part, 10, 12)) == b"abbd"


def test_a_head_without_content_length_is_an_error() -> None:
    assert content_length(header(5)[:-4]) == 5
    with pytest.raises(ValueError, match="Content-Length"):
        content_length(b"GET / HTTP/1.1\r\nHost: x")
