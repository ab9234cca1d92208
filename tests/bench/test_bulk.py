"""The bulk transfer: all bytes come, and a wrong one is found."""

import socket
import threading

import pytest

from bench.bulk import BLOCK, block, fetch, serve


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def answer_with(stream: bytes, port: int) -> None:
    server = socket.create_server(("127.0.0.1", port))

    def once() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(100)
            connection.sendall(stream)

    threading.Thread(target=once, daemon=True).start()


def test_what_is_served_is_what_is_fetched(port):
    threading.Thread(target=serve, args=("127.0.0.1", port), daemon=True).start()
    for attempt in range(100):
        try:
            seconds = fetch("127.0.0.1", port, 3 * BLOCK)
            break
        except ConnectionRefusedError:
            threading.Event().wait(0.02)
            assert attempt < 99
    assert seconds is not None
    assert seconds > 0


def test_a_wrong_byte_is_found(port):
    wrong = bytearray(block() * 2)
    wrong[BLOCK + 77] ^= 1
    answer_with(bytes(wrong), port)
    assert fetch("127.0.0.1", port, 2 * BLOCK) is None


def test_an_early_end_is_an_error(port):
    answer_with(block(), port)
    with pytest.raises(ConnectionError, match="ended early"):
        fetch("127.0.0.1", port, 2 * BLOCK)
