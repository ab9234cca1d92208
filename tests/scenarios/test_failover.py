"""The primary dies; its connections go on from the secondary, and no client can tell."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenarios.traffic import (
    LONG,
    MIB,
    PRIMARY,
    SECONDARY,
    Program,
    Transfer,
    answerers,
    ask,
    assert_protected,
    connect,
    fail_over,
    replicated,
    settled,
    show,
)

from lockstep.demo.addresses import ADDRESSES
from lockstep.demo.stage import Stage, wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(keep_logs=tmp_path) as stage:
        yield stage


@pytest.mark.parametrize("opened_by", ["client", "guest"])
@pytest.mark.parametrize("direction", ["download", "upload"])
@pytest.mark.parametrize("network", ["ipv4", "ipv6", "vlan"])
def test_transfer_goes_on(stage: Stage, network: str, direction: str, opened_by: str) -> None:
    """The same connection, every byte right."""
    with Transfer(stage, direction, 48 * MIB, network=network, opened_by=opened_by) as transfer:
        transfer.until(16 * MIB)
        assert transfer.running()
        fail_over(stage, transfer.servers[0])
        result = transfer.finish()
    show(network=network, direction=direction, opened_by=opened_by, longest_pause_ms=round(result["longest_pause_ms"]))


# --- redis: every command carried out once


class Counting(threading.Thread):
    """A redis client that increments one counter, a request at a time, over one connection."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self.value = 0
        self.longest_pause = 0.0
        self.error: str | None = None
        self.stopping = False

    def run(self) -> None:
        """Until told to stop, or until a reply is not the number after the last."""
        try:
            while not self.stopping and self.error is None:
                started = time.monotonic()
                reply = self._incremented()
                self.longest_pause = max(self.longest_pause, time.monotonic() - started)
                if reply != b":%d\r\n" % (self.value + 1):
                    self.error = f"{reply!r} after {self.value}"
                self.value += 1
        except OSError as error:
            self.error = f"{error!r} after {self.value}"

    def _incremented(self) -> bytes:
        self._connection.sendall(b"*2\r\n$4\r\nINCR\r\n$7\r\ncounter\r\n")
        reply = b""
        while not reply.endswith(b"\r\n"):
            part = self._connection.recv(4096)
            if not part:
                raise ConnectionError("redis closed the connection")
            reply += part
        return reply

    def passes(self, value: int) -> bool:
        """Whether it is past a value; fails where it will never be."""
        assert self.error is None, self.error
        return self.value >= value


@pytest.mark.needs("redis-server", "redis-cli")
def test_counter_misses_no_step(stage: Stage, tmp_path: Path) -> None:
    """Each reply is the one before plus one, also across the failover, and the survivor's counter is the last reply."""
    argv = ["redis-server", "--bind", "* -::*", "--protected-mode", "no", "--save", "", "--appendonly", "no"]
    with (
        replicated(stage, [*argv, "--dir", tmp_path], port=6379, stdout=subprocess.DEVNULL) as guests,
        connect(stage, 6379) as connection,
    ):
        client = Counting(connection)
        client.start()
        wait_for(lambda: client.passes(300), "the counter to reach 300", LONG)
        fail_over(stage, guests[0])
        there = client.value
        wait_for(lambda: client.passes(there + 300), "the counter to go on", LONG)
        client.stopping = True
        client.join(LONG)
        assert (client.is_alive(), client.error) == (False, None)
        survivor = stage.run(stage.srv2_ns, ["redis-cli", "get", "counter"]).stdout
    assert int(survivor) == client.value
    show(killed_after=there, replies=client.value, longest_pause_ms=round(client.longest_pause * 1000))


# --- afterwards


@pytest.mark.needs("nginx", "curl", "ping")
def test_new_connections(stage: Stage, tmp_path: Path) -> None:
    """The survivor answers pings and serves new connections over every network, from nginx to curl."""
    (tmp_path / "file").write_bytes(content := hashlib.shake_128(b"file").digest(8 * MIB))
    argv = []
    for replica in ("primary", "secondary"):
        conf = tmp_path / f"{replica}.conf"
        conf.write_text(
            f"daemon off; master_process off; error_log stderr; pid {tmp_path}/{replica}.pid; user root;"
            f"events {{}} http {{ access_log off; client_body_temp_path {tmp_path}/body;"
            f"server {{ listen 80; listen [::]:80; root {tmp_path}; }} }}"
        )
        argv.append(["nginx", "-p", tmp_path, "-c", conf])
    with replicated(stage, *argv, port=80, stderr=subprocess.DEVNULL) as guests:
        fail_over(stage, guests[0])
        for network, subnet in ADDRESSES.items():
            ping = stage.run(stage.client_ns, ["ping", "-q", "-n", "-i", "0.01", "-c", "50", "-W", "20", subnet.guest])
            assert "50 packets transmitted, 50 received" in ping.stdout, (network, ping.stdout)
            host = f"[{subnet.guest}]" if network == "ipv6" else subnet.guest
            into = tmp_path / network
            argv_ = [
                "curl",
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "30",
                "-o",
                into,
                f"http://{host}/file",
            ]
            done = stage.run(stage.client_ns, argv_)
            assert done.returncode == 0, done.stderr
            assert into.read_bytes() == content


def test_idle_connection_goes_on(stage: Stage) -> None:
    """A connection on which nothing happened during the failover is answered by the survivor."""
    with answerers(stage) as guests, connect(stage, 7) as session:
        assert ask(session, "before") == "before"
        assert_protected(stage)
        fail_over(stage, guests[0])
        for number in range(100):
            assert ask(session, str(number)) == str(number)
        assert ask(session, "who") == SECONDARY


# --- what the survivor can't carry on


@pytest.fixture
def unprotected(stage: Stage) -> Iterator[tuple[Stage, socket.socket, Program]]:
    """A connection on which the replicas have said different things, and the primary's server."""
    with answerers(stage) as guests, connect(stage, 7) as session:
        assert ask(session, "the same") == "the same"
        assert ask(session, "who") == PRIMARY
        counted = settled(stage)
        assert (counted["divergences"], counted["unprotected_flows"]) == (1, 1)
        yield stage, session, guests[0]


def test_unprotected_connection_is_reset_when_it_speaks(unprotected: tuple[Stage, socket.socket, Program]) -> None:
    """A client that sends on a connection that diverged learns at once that it is gone."""
    stage, session, guest = unprotected
    fail_over(stage, guest)
    session.settimeout(5)
    with pytest.raises(ConnectionResetError):
        ask(session, "still there?")


def test_unprotected_connection_is_reset_while_it_waits(unprotected: tuple[Stage, socket.socket, Program]) -> None:
    """A client that only waits on a connection that diverged is told as well."""
    stage, session, guest = unprotected
    fail_over(stage, guest)
    session.settimeout(5)
    with pytest.raises(ConnectionResetError):
        session.recv(1)


def test_protected_connection_beside_an_unprotected_one(unprotected: tuple[Stage, socket.socket, Program]) -> None:
    """Only the connection that diverged is reset."""
    stage, _, guest = unprotected
    with connect(stage, 7) as other:
        assert ask(other, "before") == "before"
        settled(stage)
        fail_over(stage, guest)
        assert ask(other, "after") == "after"
        assert ask(other, "who") == SECONDARY
