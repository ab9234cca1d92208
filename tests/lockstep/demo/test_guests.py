"""The small TCP/IP host: two of them over a wire that loses, reorders and spoils frames."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable

import pytest
from impacket import ImpactDecoder

from lockstep.demo import payload
from lockstep.demo.guests import RTO, Connection, Host

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
A_IP, B_IP = ("10.0.0.1", "fd00::1"), ("10.0.0.2", "fd00::2")


class Sink:
    """Takes everything and says nothing."""

    def __init__(self) -> None:
        self.got = bytearray()

    def received(self, data: bytes, now: float) -> None:
        self.got += data

    def produce(self, most: int) -> bytes:
        return b""

    def finished(self) -> bool:
        return True


class Source(Sink):
    """Says the first `size` bytes of the payload."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.at, self.size = 0, size

    def produce(self, most: int) -> bytes:
        part = bytes(payload.window(self.at, min(most, self.size - self.at))) if self.at < self.size else b""
        self.at += len(part)
        return part

    def finished(self) -> bool:
        return self.at == self.size


class Wire:
    """Carries frames between two hosts in simulated time; `spoil` decides what becomes of each."""

    def __init__(self, seed: int = 1, *, version: int = 4, vlan: int | None = None, size: int = 200_000) -> None:
        self.now = 0.0
        self.a, self.b = Host(A, B, A_IP, seed, vlan), Host(B, A, B_IP, seed + 1, vlan)
        self.source, self.sink = Source(size), Sink()
        self.b.listen(80, lambda: self.source)
        self.connection = self.a.connect(B_IP[version == 6], 80, 4000, self.sink, 0.0)
        self.log: list[bytes] = []

    @property
    def other(self) -> Connection:
        """The connection at its other end."""
        return next(iter(self.b.connections.values()))

    def run(self, spoil: Callable[[list[bytes]], list[bytes]] = lambda frames: frames) -> None:
        """Until both ends have closed."""
        for _ in range(200_000):
            if self.connection.closed and self.other.closed:
                return
            there, back = self.a.take(), self.b.take()
            self.log += there + back
            if not there and not back:
                moments = [host.next_deadline() for host in (self.a, self.b)]
                due = min((moment for moment in moments if moment is not None), default=None)
                assert due is not None, "both wait for the other"
                self.now = max(self.now, due)
                self.a.tick(self.now)
                self.b.tick(self.now)
                continue
            self.now += 0.0001
            for frame in spoil(there):
                self.b.push(frame, self.now)
            for frame in spoil(back):
                self.a.push(frame, self.now)
        raise AssertionError("it never ended")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("vlan", [None, 77])
def test_everything_arrives_over_a_good_wire_and_nothing_is_sent_twice(version: int, vlan: int | None) -> None:
    wire = Wire(version=version, vlan=vlan)
    wire.run()
    assert payload.count_wrong(wire.sink.got, 0) == (0, None)
    assert len(wire.sink.got) == wire.source.size
    assert wire.other.retransmissions == 0
    assert set(wire.a.counters.values()) == {wire.a.counters["frames_in"], 0}


@pytest.mark.parametrize("loss", [0.02, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_everything_arrives_over_a_wire_that_loses_and_reorders(loss: float, seed: int) -> None:
    chance = random.Random(seed)

    def spoil(frames: list[bytes]) -> list[bytes]:
        left = [frame for frame in frames if chance.random() >= loss]
        if chance.random() < 0.2:
            chance.shuffle(left)
        return left

    wire = Wire(seed)
    wire.run(spoil)
    assert payload.count_wrong(wire.sink.got, 0) == (0, None)
    assert len(wire.sink.got) == wire.source.size
    assert wire.other.retransmissions > 0
    assert wire.a.counters["wrong_sacks"] == wire.b.counters["wrong_sacks"] == 0


def test_a_spoiled_byte_is_thrown_away_and_sent_again() -> None:
    rounds = 0

    def spoil(frames: list[bytes]) -> list[bytes]:
        nonlocal rounds
        rounds += 1
        if frames and 4 < rounds < 10:
            frame = bytearray(frames[0])
            frame[-1] ^= 0x40
            return [bytes(frame), *frames[1:]]
        return frames

    wire = Wire()
    wire.run(spoil)
    assert payload.count_wrong(wire.sink.got, 0) == (0, None)
    assert wire.a.counters["bad_checksums"] + wire.b.counters["bad_checksums"] > 0


def test_the_same_seed_gives_the_same_frames_and_another_seed_others() -> None:
    logs = []
    for seed in (5, 5, 6):
        wire = Wire(seed, size=20_000)
        wire.run()
        logs.append(wire.log)
    assert logs[0] == logs[1] != logs[2]


def test_a_lost_syn_is_repeated_after_the_time_out_that_then_doubles() -> None:
    host = Host(A, B, A_IP, 1)
    host.connect(B_IP[0], 80, 4000, Sink(), 10.0)
    assert len(host.take()) == 1
    assert host.next_deadline() == pytest.approx(10.0 + RTO)
    host.tick(10.0 + RTO)
    assert len(host.take()) == 1
    assert host.next_deadline() == pytest.approx(10.0 + RTO + 2 * RTO)


def test_impacket_reads_the_syn_as_it_is_meant() -> None:
    host = Host(A, B, A_IP, 1)
    host.connect(B_IP[0], 80, 4000, Sink(), 0.0)
    (frame,) = host.take()
    ip = ImpactDecoder.EthDecoder().decode(frame).child()
    tcp = ip.child()
    assert (ip.get_ip_src(), ip.get_ip_dst(), tcp.get_th_sport(), tcp.get_th_dport()) == (
        "10.0.0.1",
        "10.0.0.2",
        4000,
        80,
    )
    assert (tcp.get_SYN(), tcp.get_ACK()) == (1, 0)
    assert [option.get_kind() for option in tcp.get_options()] == [2, 1, 3, 1, 1, 4, 1, 1, 8]
    pseudo = ip.get_pseudo_header() + array("B", frame[34:])
    assert ip.compute_checksum(array("B", frame[14:34])) == 0
    assert tcp.compute_checksum(pseudo) == 0


@pytest.mark.parametrize(
    "garbage", [b"", b"\0" * 13, b"\xff" * 60, bytes.fromhex("02000000000a02000000000b0800") + b"\x45" * 40]
)
def test_garbage_is_a_stray(garbage: bytes) -> None:
    host = Host(A, B, A_IP, 1)
    host.push(garbage, 0.0)
    assert host.counters["strays"] == 1
    assert host.take() == []
