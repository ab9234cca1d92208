"""How frames are dealt out to workers: whole flows, in order, every frame once."""

from __future__ import annotations

import struct
from collections import Counter

import packets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packets import CLIENT, CLIENT6, GUEST, GUEST6, SYN, arp_reply, echo_reply, segment, udp

from lockstep.batch import Batch
from lockstep.wire.frame import Frame, dissect
from services.comparer.record import Reader
from services.comparer.split import MOST_WORKERS, split, worker_of
from services.redirector.digest import Digester

SEED = 0x0123456789ABCDEF
SEEDS = st.integers(0, (1 << 64) - 1)
WORKERS = st.integers(1, MOST_WORKERS)


def worker(frame: bytes, workers: int = 16, seed: int = SEED) -> int:
    f = Frame()
    dissect(f, frame, 0, len(frame))
    return worker_of(f, frame, workers, seed)


def fragments(payload: bytes, ident: int, protocol: int = 17, v6: bool = False) -> list[bytes]:
    """A datagram's fragments, the last one first."""
    whole = struct.pack(">HHHH", 53, 40000, 8 + len(payload), 0) + payload
    parts = [(0, whole[:16], 1), (16, whole[16:32], 1), (32, whole[32:], 0)]
    if v6:
        frames = []
        for offset, body, more in parts:
            header = struct.pack(">BBHI", protocol, 0, offset | more, ident)
            frames.append(packets.ethernet(packets.ip(GUEST6, CLIENT6, 44, header + body)))
        return frames[::-1]
    return [
        packets.ethernet(packets.ip(GUEST, CLIENT, protocol, body, ident=ident, fragment=offset >> 3 | more << 13))
        for offset, body, more in parts
    ][::-1]


FRAMES = st.one_of(
    st.builds(
        lambda sport, payload, vlan: segment(1, 2, payload, sport=sport, vlan=vlan),
        st.integers(1, 40), st.binary(max_size=40), st.sampled_from([(), (5,), (5, 6)]),
    ),
    st.builds(lambda sport, payload: udp(payload, sport=sport), st.integers(1, 9), st.binary(max_size=40)),
    st.builds(lambda sport: segment(1, 2, sport=sport, source=GUEST6, destination=CLIENT6), st.integers(1, 40)),
    st.just(arp_reply()),
    st.binary(min_size=1, max_size=80),
)  # fmt: skip


@given(st.lists(FRAMES, max_size=60), WORKERS, SEEDS, st.sampled_from([0, 10, 12]))
def test_every_frame_is_in_one_share_and_in_order(frames: list[bytes], workers: int, seed: int, vnet: int) -> None:
    """The shares, as the frames' own workers say."""
    wanted: dict[int, list[bytes]] = {}
    for frame in frames:
        wanted.setdefault(worker(frame, workers, seed), []).append(bytes(vnet) + frame)
    batch = Batch.of([bytes(vnet) + frame for frame in frames], vnet, 7)
    shares = split(batch, workers, seed, Frame())
    assert {number: part.frames() for number, part in shares} == wanted
    assert [number for number, _ in shares] == sorted(wanted)
    assert all((part.vnet, part.epoch) == (vnet, 7) for _, part in shares)


RECORDED = st.builds(
    lambda sport, size, vnet: segment(1, 2, bytes(size), sport=sport, vnet=vnet),
    st.integers(1, 40), st.integers(0, 3000), st.just(0),
)  # fmt: skip


@given(st.lists(FRAMES | RECORDED, max_size=40), WORKERS, SEEDS, st.sampled_from([0, 10, 12]), st.booleans())
def test_every_record_is_where_its_frame_would_be_behind_the_key(
    frames: list[bytes], workers: int, seed: int, vnet: int, keyed: bool
) -> None:
    """Digest mode: the key is in front of every share, and of none where it is missing in the batch."""
    batch = Batch.of([bytes(vnet) + frame for frame in frames], vnet, 7)
    key, *records = Digester(bytes(16)).records(batch).frames()
    first = [key] if keyed else []
    wanted: dict[int, list[bytes]] = {}
    for frame, record in zip(frames, records, strict=True):
        wanted.setdefault(worker(frame, workers, seed), [*first]).append(record)
    shares = split(Batch.of([*first, *records], vnet, 7), workers, seed, Frame(), Reader())
    assert {number: part.frames() for number, part in shares} == wanted
    assert [number for number, _ in shares] == sorted(wanted)
    assert all((part.vnet, part.epoch) == (vnet, 7) for _, part in shares)


@given(st.lists(st.binary(min_size=1, max_size=90), max_size=20), WORKERS, SEEDS, st.sampled_from([0, 10]))
def test_any_records_are_each_in_one_share(raws: list[bytes], workers: int, seed: int, vnet: int) -> None:
    """What nobody makes is the first worker's, who counts it; a key that is not in front as well."""
    records = [b"\2key", *raws]
    shares = split(Batch.of(records, vnet), workers, seed, Frame(), Reader())
    parts = dict(shares)
    assert all(part.frames()[0] == b"\2key" for part in parts.values())
    assert sorted(raw for part in parts.values() for raw in part.frames()[1:]) == sorted(raws)
    kept = parts[0].frames()[1:] if 0 in parts else []
    assert [raw for raw in kept if raw[0]] == [raw for raw in raws if raw[0]]


def test_a_batch_of_records_that_are_one_workers_is_passed_on_as_it_is() -> None:
    batch = Digester(bytes(16)).records(Batch.of([segment(number, 2, bytes(100)) for number in range(9)]))
    ((_, part),) = split(batch, 8, SEED, Frame(), Reader())
    assert part is batch
    key_alone = Digester(bytes(16)).records(Batch.of([]))
    assert split(key_alone, 8, SEED, Frame(), Reader()) == []


def test_a_batch_of_one_worker_is_passed_on_as_it_is() -> None:
    batch = Batch.of([segment(number, 2, b"x") for number in range(9)])
    ((_, part),) = split(batch, 8, SEED, Frame())
    assert part is batch
    assert split(Batch.of([]), 8, SEED, Frame()) == []


def test_a_share_is_no_view_of_the_batch() -> None:
    """Its buffer is filled again while a share still waits in a link."""
    frames = [segment(1, 2, b"x", sport=number) for number in range(1, 20)]
    batch = Batch.of(frames)
    buffer = bytearray(batch.data)
    shares = split(Batch(memoryview(buffer), batch.lengths), 4, SEED, Frame())
    buffer[:] = bytes(len(buffer))
    assert len(shares) == 4
    assert sorted(frame for _, part in shares for frame in part.frames()) == sorted(frames)


@given(WORKERS, SEEDS, st.integers(0, 0xFFFFFFFF), st.binary(max_size=60), st.integers(0, 0xFFFF))
def test_all_frames_of_a_flow_go_to_one_worker(workers: int, seed: int, seq: int, payload: bytes, ident: int) -> None:
    """Whatever is said, on whichever side: the replicas' numbers, options and IP identification differ."""
    first = worker(segment(1, 2, flags=SYN, options=b"\x02\x04\x05\xb4"), workers, seed)
    assert worker(segment(seq, seq ^ 5, payload, ident=ident, window=ident), workers, seed) == first
    assert worker(segment(1, 2, vlan=(7,)), workers, seed) == first
    assert 0 <= first < workers


@pytest.mark.parametrize("v6", [False, True])
def test_a_datagrams_fragments_go_where_the_whole_one_goes(v6: bool) -> None:
    """Also those that have no ports, and in any order; so a flow of datagrams keeps its order."""
    source, destination = (GUEST6, CLIENT6) if v6 else (GUEST, CLIENT)
    whole = worker(udp(b"small", source=source, destination=destination))
    for ident in range(20):
        assert {worker(frame) for frame in fragments(bytes(40), ident, v6=v6)} == {whole}


def test_datagrams_go_by_their_addresses_alone() -> None:
    assert len({worker(udp(b"x", sport=number)) for number in range(1, 50)}) == 1
    assert len({worker(echo_reply(number, 1)) for number in range(50)}) == 1
    clients = [f"10.77.1.{number}" for number in range(50)]
    assert len({worker(udp(b"x", destination=client)) for client in clients}) > 8


@pytest.mark.parametrize("frame", [arp_reply(), b"\1" * 7, b"\1" * 200, packets.ethernet(b"\x45", ethertype=0x0800)])
def test_what_is_of_no_flow_is_the_first_workers(frame: bytes) -> None:
    for seed in range(20):
        assert worker(frame, 16, seed) == 0


@pytest.mark.parametrize("workers", [2, 3, 4, 16])
def test_connections_spread_over_all_workers(workers: int) -> None:
    """Ports, or clients, in a row: each worker gets its share, within a half."""
    flows = 400 * workers
    by_port = Counter(worker(segment(1, 2, dport=1024 + number), workers) for number in range(flows))
    clients = [f"10.77.{number >> 8}.{number & 0xFF}" for number in range(flows)]
    by_client = Counter(worker(segment(1, 2, destination=client), workers) for client in clients)
    for counted in (by_port, by_client):
        assert len(counted) == workers
        assert all(200 < count < 600 for count in counted.values()), counted


def test_who_does_not_know_the_seed_does_not_know_the_worker() -> None:
    assert len({worker(segment(1, 2), 16, seed * SEED & (1 << 64) - 1) for seed in range(1, 100)}) == 16
