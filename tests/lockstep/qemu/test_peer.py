"""One connection to a QEMU, over real sockets: whoever comes first, whatever breaks, nothing blocks."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockstep.qemu import peer as module
from lockstep.qemu.address import Address
from lockstep.qemu.peer import MOST_PENDING, Peer, PeerError, PeerPermissionError

PATIENCE = 20.0


def work_until(done: Callable[[], object], *peers: Peer) -> None:
    """Let peers do what they have to whenever their descriptors are readable."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        for peer in select.select(peers, [], [], 0.05)[0]:
            peer.work()


def received(peer: Peer, count: int) -> bytes:
    got = b""

    def more() -> bool:
        nonlocal got
        room = memoryview(bytearray(1 << 16))
        got += bytes(room[: peer.receive(room)])
        return len(got) >= count

    work_until(more, peer)
    return got


def parted(peer: Peer, times: int = 1) -> None:
    """Wait until a peer has seen its connection end, `times` times in all."""

    def ended() -> bool:
        peer.receive(memoryview(bytearray(10)))
        return peer.counters["disconnects"] == times

    work_until(ended, peer)


@pytest.fixture(params=["unix", "tcp", "tcp6"])
def address(request: pytest.FixtureRequest, run_dir: Path) -> Address:
    if request.param == "unix":
        return Address.parse(f"unix://{run_dir}/qemu.sock")
    host = "127.0.0.1" if request.param == "tcp" else "[::1]"
    family = socket.AF_INET if request.param == "tcp" else socket.AF_INET6
    with socket.socket(family) as probe:
        try:
            probe.bind((host.strip("[]"), 0))
        except OSError as error:
            pytest.skip(f"no {host} here: {error}")
        return Address.parse(f"tcp://{host}:{probe.getsockname()[1]}")


@pytest.fixture
def pair(address: Address) -> Iterator[tuple[Peer, Peer]]:
    """A server and a client that are connected."""
    with contextlib.closing(Peer(address, True)) as server, contextlib.closing(Peer(address, False)) as client:
        work_until(lambda: server.connected and client.connected, server, client)
        yield server, client


def test_bytes_go_both_ways(pair: tuple[Peer, Peer]) -> None:
    server, client = pair
    assert server.send(b"from the server")
    assert client.send(b"from the client")
    assert received(client, 15) == b"from the server"
    assert received(server, 15) == b"from the client"
    assert server.counters == {"connections": 1, "disconnects": 0, "lost_bytes": 0}


def test_a_client_that_comes_first_waits_for_its_server(address: Address) -> None:
    with contextlib.closing(Peer(address, False)) as client:
        assert not client.send(b"to nobody")
        work_until(lambda: client._pause > 3 * module.FIRST_PAUSE, client)  # it tried again, and again
        with contextlib.closing(Peer(address, True)) as server:
            work_until(lambda: server.connected and client.connected, server, client)


def test_either_end_comes_back(address: Address) -> None:
    with contextlib.closing(Peer(address, True)) as server:
        for number in range(1, 4):
            with contextlib.closing(Peer(address, False)) as client:
                work_until(lambda n=number: server.connection == n and client.connected, server, client)  # type: ignore[misc]
                client.send(b"hello")
                assert received(server, 5) == b"hello"
            parted(server, number)
    with contextlib.closing(Peer(address, False)) as client:
        for number in range(1, 4):
            with contextlib.closing(Peer(address, True)) as server:
                work_until(lambda n=number: client.connection == n, server, client)  # type: ignore[misc]
            parted(client, number)


def test_a_second_client_waits_until_the_first_has_gone(address: Address) -> None:
    with contextlib.closing(Peer(address, True)) as server, contextlib.closing(Peer(address, False)) as second:
        work_until(lambda: server.connected, server, second)
        family, where = address.resolve()
        with socket.socket(family, socket.SOCK_STREAM) as other:
            other.settimeout(PATIENCE)
            other.connect(where)
            other.sendall(b"second")
            server.work()
            assert server.connection == 1
            second.drop()
            parted(server)
            work_until(lambda: server.connection == 2, server)
            assert received(server, 6) == b"second"


def test_what_a_slow_peer_does_not_take_waits_within_bounds_and_in_order(pair: tuple[Peer, Peer]) -> None:
    server, client = pair
    chunk = bytes(range(256)) * 256
    taken = 0
    while server.send(chunk):
        taken += 1
        assert taken * len(chunk) < MOST_PENDING + (64 << 20)
    assert taken * len(chunk) > MOST_PENDING
    assert not server.send(b"x")
    got = bytearray()
    room = memoryview(bytearray(1 << 20))

    def more() -> bool:
        got.extend(room[: client.receive(room)])
        return len(got) == taken * len(chunk)

    work_until(more, server, client)
    assert got == chunk * taken
    assert server.send(b"x")
    assert not select.select([server], [], [], 0)[0]  # nothing is left to do: the loop can sleep


def test_what_waited_when_the_peer_went_is_counted(pair: tuple[Peer, Peer]) -> None:
    server, client = pair
    while server.send(bytes(1 << 20)):
        pass
    client.close()
    parted(server)
    assert server.counters["lost_bytes"] > MOST_PENDING
    assert not server.send(b"x")


def test_a_server_that_was_killed_leaves_a_path_that_is_taken_over(run_dir: Path) -> None:
    path = run_dir / "qemu.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    server = Peer(Address.parse(f"unix://{path}"), True)
    server.close()
    server.close()
    assert not path.exists()


def test_an_address_that_another_has_is_not_taken(address: Address) -> None:
    with contextlib.closing(Peer(address, True)):
        with pytest.raises(PeerError, match=r"Address already in use; choose another address, or stop who has it"):
            Peer(address, True)
        with contextlib.closing(Peer(address, False)):  # and the one who has it still has it
            pass


def test_a_file_that_is_no_socket_is_not_removed(run_dir: Path) -> None:
    (run_dir / "file").write_text("mine")
    with pytest.raises(PeerError, match="already in use"):
        Peer(Address.parse(f"unix://{run_dir}/file"), True)
    assert (run_dir / "file").read_text() == "mine"


def test_a_folder_that_may_not_be_written_is_a_permission_error(run_dir: Path, nobody: None) -> None:
    with pytest.raises(PeerPermissionError, match="Permission denied"):
        Peer(Address.parse(f"unix://{run_dir}/qemu.sock"), True)


def test_a_host_that_nobody_knows_is_named() -> None:
    with pytest.raises(PeerError, match=r"tcp://no-such-host\.invalid:1: .*name a host that is known here"):
        Peer(Address.parse("tcp://no-such-host.invalid:1"), False)


@pytest.mark.parametrize("server", [True, False])
def test_closing_gives_everything_back(run_dir: Path, open_files: Callable[[], int], server: bool) -> None:
    before = open_files()
    peer = Peer(Address.parse(f"unix://{run_dir}/qemu.sock"), server)
    assert open_files() > before
    peer.close()
    peer.close()
    assert open_files() == before


@pytest.mark.parametrize(
    "text", ["unix://relative", "unix:///" + "x" * 108, "tcp://host", "tcp://host:0", "ipc:///x", ""]
)
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="socket"):
        Address.parse(text)
