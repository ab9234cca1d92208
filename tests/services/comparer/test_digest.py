"""Digest mode, both halves: hashes in place of payloads come to what the payloads come to, and to nothing more."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import CLIENT6, FIN, GUEST6, PSH, SYN, arp_reply, segment, udp

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.flow.key import flow_key
from lockstep.streams import Core, Cut, Event, Gap
from lockstep.wire.frame import Frame, dissect
from services.comparer.core import Core as Comparer
from services.redirector.digest import HASH_BYTES, KEY, KEY_BYTES, SEED_BYTES, Digester, hasher, new_secret

SECRET = bytes(range(32))
SEED = bytes(range(16))
ISN, ISN2, CLIENT_ISN = 0xFFFFFF80, 77, 900
STREAM = random.Random(7).randbytes(4000)


def node(secondary: str = "digest") -> Node:
    return Node.model_validate({"comparer": {"secondary": secondary, "on_divergence": "hold"}})


def hashed(payload: bytes, secret: bytes) -> bytes:
    return Digester(secret).hashed(payload)


def digested(batch: Batch, secret: bytes = SECRET) -> Batch:
    return Digester(secret).records(batch)


class Pair:
    """A comparer that is given digests, and beside it one that is given the frames."""

    def __init__(self, secret: bytes = SECRET) -> None:
        self.secret = secret
        self.cores: list[Any] = [Comparer(node()), Comparer(node("frames"))]
        self.left: list[list[bytes]] = [[], []]
        self.events: list[list[Event]] = [[], []]
        self.now = 1.0

    def primary(self, *frames: bytes, vnet: int = 0) -> list[bytes]:
        """What leaves of the first."""
        before = len(self.left[0])
        for side in (0, 1):
            self._take(side, self.cores[side].push("primary", Batch.of(frames, vnet), self.now))
        return self.left[0][before:]

    def secondary(self, *frames: bytes, vnet: int = 0, epoch: int = 0) -> list[bytes]:
        before = len(self.left[0])
        batch = Batch.of(frames, vnet, epoch)
        self._take(0, self.cores[0].push("digests", digested(batch, self.secret), self.now))
        self._take(1, self.cores[1].push("secondary", batch, self.now))
        return self.left[0][before:]

    def cut(self, epoch: int, phase: str) -> None:
        for side in (0, 1):
            self._take(side, self.cores[side].push("primary", Cut(epoch, phase), self.now))  # type: ignore[arg-type]

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for side in (0, 1):
            self._take(side, self.cores[side].tick(self.now))

    def handshake(self, **more: Any) -> None:
        syn = segment(ISN, CLIENT_ISN + 1, flags=SYN, **more)
        self.primary(syn)
        assert self.secondary(segment(ISN2, CLIENT_ISN + 1, flags=SYN, **more)) == [syn]

    def divergences(self, side: int = 0) -> list[dict[str, Any]]:
        return [dict(event.fields) for event in self.events[side] if event.name == "divergence"]

    def _take(self, side: int, outputs: Any) -> None:
        for output in outputs:
            if isinstance(output, Event):
                self.events[side].append(output)
            else:
                assert output[0] == "released"
                self.left[side] += output[1].frames()


def data(place: int, size: int, ack: int = 0, wrong: int | None = None, **more: Any) -> bytes:
    payload = bytearray(STREAM[place : place + size])
    if wrong is not None and size:
        payload[wrong % size] ^= 0x20
    return segment(ISN + 1 + place, CLIENT_ISN + 1 + ack, bytes(payload), flags=PSH, **more)


@pytest.fixture
def pair() -> Pair:
    pair = Pair()
    pair.handshake()
    return pair


def test_it_is_a_core() -> None:
    assert isinstance(Comparer(node()), Core)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["primary", "secondary", "secondary"]),
        st.integers(0, 900), st.integers(0, 300), st.integers(0, 400),
        st.sampled_from([0, 10, 12]), st.sampled_from("tttttuf"),
    ),
    max_size=50,
)  # fmt: skip


@given(STEPS, st.one_of(st.none(), st.integers(0, 900)), st.booleans(), st.sampled_from([SECRET, SEED]))
@settings(max_examples=300)
def test_digests_come_to_what_the_frames_come_to(
    steps: list[Any], flaw: int | None, opened: bool, secret: bytes
) -> None:
    """Any cut on either side, repetitions, reordering, FINs; the same leaves, and what leaves was said.

    flaw: a byte of the stream that the secondary has otherwise. opened: with a handshake, so not in the lane at first.
    """
    pair = Pair(secret)
    if opened:
        pair.handshake()
    said: set[int] = set()
    for who, place, size, ack, vnet, kind in steps:
        wrong = None
        if kind == "u":
            frame = udp(STREAM[place : place + 3], sport=size + 1)
        elif kind == "f":
            frame = segment(ISN + 1 + 1200, CLIENT_ISN + 1 + ack, flags=FIN)
        else:
            if who == "secondary" and flaw is not None and place <= flaw < place + size:
                wrong = flaw - place
            frame = data(place, size, ack, wrong)
        if who == "secondary" and kind == "t" and wrong is None:
            said.update(range(place, place + size))
        (pair.primary if who == "primary" else pair.secondary)(bytes(vnet) + frame, vnet=vnet)
        for frame in pair.left[0]:
            frame = frame[len(frame) - frame_bytes(frame) :]
            if frame[23] == 6 and len(frame) > 54:
                at = (struct.unpack_from(">I", frame, 38)[0] - ISN - 1) & 0xFFFFFFFF
                assert said.issuperset(range(at, at + len(frame) - 54)), "a byte left that no digest covers"
    if flaw is None:
        # A record is proven once the primary has said all of its place: so let it, to the end.
        for place in (*range(0, 1200, 100), 0):
            pair.primary(data(place, 100))
        pair.secondary(data(0, 1200, ack=400))
        pair.wait(0.03)
        pair.secondary(data(0, 1200, ack=400))
        assert by_flow(pair.left[0]) == by_flow(pair.left[1])
        assert not pair.divergences() or pair.divergences(1)


def frame_bytes(frame: bytes) -> int:
    """Of a frame behind a virtio-net header of 0, 10 or 12 zeros: its own length."""
    for vnet in (0, 10, 12):
        if frame[vnet + 12 : vnet + 14] == b"\x08\x00" and frame[vnet : vnet + 2] == b"\x52\x54":
            return len(frame) - vnet
    raise AssertionError(frame)


def by_flow(frames: list[bytes]) -> dict[bytes, list[bytes]]:
    f, flows = Frame(), {}
    for frame in frames:
        dissect(f, frame, len(frame) - frame_bytes(frame), len(frame))
        flows.setdefault(flow_key(f, frame), []).append(frame)
    return flows


@pytest.mark.parametrize("order", ["primary first", "secondary first"])
def test_either_side_may_be_first(pair: Pair, order: str) -> None:
    frames = [data(place, 100) for place in range(0, 1000, 100)]
    ways = (pair.primary, pair.secondary) if order == "primary first" else (pair.secondary, pair.primary)
    assert ways[0](*frames) == []
    assert ways[1](*frames) == frames


def test_a_super_frame_is_proven_by_many_segments_and_the_other_way_round(pair: Pair) -> None:
    whole = data(0, 2000)
    assert pair.primary(whole) == []
    assert pair.secondary(*(data(place, 250) for place in range(0, 2000, 250))) == [whole]
    parts = [data(place, 250) for place in range(2000, 4000, 250)]
    assert pair.primary(*parts[:-1]) == []
    assert pair.secondary(data(2000, 2000)) == []
    assert pair.primary(parts[-1]) == parts


def test_in_the_lane_a_chunk_is_proven_across_the_primarys_segments_and_many_chunks_by_one() -> None:
    pair = Pair()
    frames = [data(place, 250) for place in range(0, 2000, 250)]
    assert pair.primary(*frames[:5]) == []
    assert pair.secondary(data(0, 600)) == frames[:2]
    assert pair.secondary(data(600, 1400)) == []
    assert pair.primary(*frames[5:-1]) == []
    assert pair.primary(frames[-1]) == frames[2:]
    assert pair.primary(data(2000, 1500)) == []
    super_frame = data(2000, 1500, vnet=10, gso_size=400, partial=True)
    assert pair.secondary(super_frame, vnet=10) == [data(2000, 1500)]
    assert pair.cores[0].status()["flows_in_the_lane"] == 1
    assert pair.cores[0].counters["matched"] == pair.cores[0].counters["digests"] == 2 + 4
    assert pair.left[0] == pair.left[1]


def test_a_chunk_proven_in_the_lane_goes_the_careful_way_with_its_flow() -> None:
    """Its first segment is ahead with its ack and waits, though its bytes are proven; then the flow leaves the lane."""
    pair = Pair()
    pair.secondary(data(0, 0))
    ahead, behind = data(0, 100, ack=50), data(100, 100, ack=50)
    pair.primary(ahead, behind)
    assert pair.secondary(data(0, 200)) == []
    assert pair.cores[0].counters["matched"] == 1
    pair.wait(0.03)
    assert pair.cores[0].status()["flows_in_the_lane"] == 0
    assert pair.secondary(data(200, 0, ack=50)) == [ahead, behind]
    assert pair.left[0] == pair.left[1]


def test_keys_are_no_frames_and_what_leaves_the_lane_is_counted_once() -> None:
    """A link that was full joins batches, so a key may stand anywhere; records that waited long are judged again."""
    pair = Pair()
    core = pair.cores[0]
    key, one, two = digested(Batch.of([data(0, 100), data(100, 100)])).frames()
    core.push("digests", Batch.of([key, one, key, two, b"\2no key"]), pair.now)
    pair.wait(0.2)
    assert core.status()["flows_in_the_lane"] == 0
    assert (core.counters["secondary_frames"], core.counters["digests"]) == (3, 2)
    assert core.counters["malformed_records"] == 1
    left = core.push("primary", Batch.of([data(0, 100), data(100, 100)]), pair.now)
    assert [frame for _, batch in left for frame in batch.frames()] == [data(0, 100), data(100, 100)]
    assert core.counters["matched"] == 2


def test_in_the_lane_another_key_proves_nothing_of_what_waits() -> None:
    pair = Pair()
    pair.secondary(data(0, 100))
    assert pair.cores[0].status()["flows_in_the_lane"] == 1
    pair.secret = SEED
    pair.secondary(data(100, 100))
    assert pair.primary(data(0, 100), data(100, 100)) == []
    assert pair.secondary(data(0, 100)) == [data(0, 100), data(100, 100)]
    assert pair.cores[0].counters["mismatched"] == 0  # what waited is given up, not judged by the wrong key


def test_a_batch_with_more_chunks_than_the_lane_takes_is_proven_all_the_same() -> None:
    """The flow takes the careful path with what waits of it. 65,536 chunks of one batch are the lane's."""
    long = STREAM * 17
    first = segment(ISN + 1, CLIENT_ISN + 1, long[:65_000], flags=PSH)
    second = segment(ISN + 65_001, CLIENT_ISN + 1, long[65_000:65_600], flags=PSH)
    core = Comparer(node())
    core.push("primary", Batch.of([first, second]), 1.0)
    records = [b"\2" + SEED]
    for frame in (first, second):
        hashes = [hashed(frame[at : at + 1], SEED) for at in range(54, len(frame))]
        records.append(b"\1\0\1\0\66" + frame[:54] + b"".join(hashes))
    left = [frame for _, batch in core.push("digests", Batch.of(records), 1.0) for frame in batch.frames()]
    assert left == [first, second]
    assert core.counters["matched"] == 65_600


def test_a_byte_that_no_record_covers_holds_its_segment(pair: Pair) -> None:
    frames = [data(0, 100), data(100, 100), data(200, 100)]
    pair.primary(*frames)
    assert pair.secondary(data(0, 100), data(101, 199)) == frames[:1]
    assert pair.secondary(data(90, 40)) == frames[1:]


@pytest.mark.parametrize("flawed", [0, 57, 99])
@pytest.mark.parametrize("opened", [True, False], ids=["careful", "lane"])
def test_a_difference_is_found_in_the_right_segment(flawed: int, opened: bool) -> None:
    """At the first byte of the segment that the secondary said otherwise: nothing of it is known to be the same."""
    pair = Pair()
    if opened:
        pair.handshake()
    frames = [data(place, 100) for place in range(0, 500, 100)]
    pair.primary(*frames)
    said = [data(place, 100, wrong=flawed if place == 300 else None) for place in range(0, 500, 100)]
    assert pair.secondary(*said) == frames[:3]
    (told,) = [event.fields for event in pair.events[0] if event.name == "digest_mismatch"]
    assert (told["seq"], told["size"]) == ((ISN + 301) & 0xFFFFFFFF, 100)
    pair.wait(4)
    (divergence,) = pair.divergences()
    assert (divergence["reason"], divergence["offset"]) == ("unmatched", 300)
    assert pair.cores[0].counters["mismatched"] == 1
    assert pair.left[0] == pair.left[1]


def test_a_repetition_is_proven_again_and_a_lost_record_by_its_repetition(pair: Pair) -> None:
    frames = [data(0, 100), data(100, 100)]
    pair.primary(*frames)
    assert pair.secondary(data(100, 100)) == []
    assert pair.secondary(data(0, 100)) == frames
    assert pair.primary(data(0, 200)) == [data(0, 200)]
    pair.secondary(data(0, 200))
    assert pair.cores[0].counters["mismatched"] == 0


def test_acks_are_those_of_the_records_headers(pair: Pair) -> None:
    """Invariant 2: what a digest proves of the payload says nothing of an ack that is ahead."""
    ahead = data(0, 100, ack=50)
    pair.primary(ahead)
    assert pair.secondary(data(0, 100, ack=49)) == []
    assert pair.secondary(segment(ISN + 101, CLIENT_ISN + 51)) == [ahead]


def test_epochs_hold_for_records_too(pair: Pair) -> None:
    """A record that waits for the primary's bytes over a commit proves nothing after it."""
    pair.secondary(data(0, 100), epoch=0)
    for phase in ("prepare", "commit"):
        pair.cut(1, phase)
    assert pair.primary(data(0, 100)) == []
    assert pair.secondary(data(0, 100), epoch=0) == []
    assert pair.secondary(data(0, 100), epoch=1) == [data(0, 100)]
    assert pair.left[0] == pair.left[1]


def test_a_record_that_is_ahead_of_the_commit_waits_for_it(pair: Pair) -> None:
    pair.primary(data(0, 100))
    assert pair.secondary(data(100, 100), epoch=1) == []
    for phase in ("prepare", "commit"):
        pair.cut(1, phase)
    assert pair.primary(data(100, 100)) == [data(100, 100)]


def test_a_redirector_that_restarted_has_another_key(pair: Pair) -> None:
    pair.secondary(data(0, 100))
    core = pair.cores[0]
    other = digested(Batch.of([data(100, 100)]), bytes(32))
    core.push("digests", other, pair.now)
    assert pair.primary(data(0, 100), data(100, 100)) == []
    assert core.counters["given_up"] == 1
    again = core.push("digests", digested(Batch.of([data(0, 100)]), bytes(32)), pair.now)
    assert [frame for _, batch in again for frame in batch.frames()] == [data(0, 100), data(100, 100)]


def test_a_new_connection_on_old_ports_forgets_the_old_ones_bytes(pair: Pair) -> None:
    pair.primary(data(0, 100))
    pair.secondary(data(0, 100))
    pair.handshake(options=b"\x02\x04\x05\xb4")
    assert pair.secondary(data(0, 100)) == []
    assert pair.cores[0].counters["matched"] == 1


def test_gaps_and_events_reach_the_comparer() -> None:
    core = Comparer(node())
    (told,) = core.push("digests", Gap("lost", 2), 1.0)
    assert isinstance(told, Event)
    assert told.fields["stream"] == "secondary"
    assert core.counters["gaps_secondary"] == 1


RECORDS = st.lists(
    st.tuples(st.sampled_from("ahr"), st.binary(min_size=1, max_size=140), st.integers(0, 60)), max_size=12
)


@given(RECORDS, st.sampled_from([0, 10]), st.booleans())
@settings(max_examples=500)
def test_arbitrary_records_never_raise_and_never_prove(
    records: list[tuple[str, bytes, int]], vnet: int, opened: bool
) -> None:
    """Invariant 8. What is a record by accident has no hash that fits: `a`: any bytes; `h`, `r`: a record with another
    hash, or with any bytes somewhere in it.
    """
    core = Comparer(node())
    frames = [segment(ISN, 1, flags=SYN, vnet=vnet)] * opened + [data(0, 200, vnet=vnet)]
    core.push("primary", Batch.of(frames, vnet), 1.0)
    real = digested(Batch.of([data(0, 200, vnet=vnet)], vnet)).frames()[1]
    for how, raw, at in records:
        record = raw
        if how == "h" and real[-len(raw[:HASH_BYTES]) :] != raw[:HASH_BYTES]:
            record = real[: -len(raw[:HASH_BYTES])] + raw[:HASH_BYTES]
        elif how == "r" and at + len(raw) <= len(real) - HASH_BYTES:
            record = real[:at] + raw + real[at + len(raw) : -1] + bytes((real[-1] ^ 1,))
        core.push("digests", Batch.of([bytes((KEY,)) + SECRET, record], vnet), 1.0)
    assert core.counters["matched"] == 0


@pytest.mark.parametrize("vnet", [0, 10, 12])
@pytest.mark.parametrize("v6", [False, True])
def test_a_record_is_the_headers_and_a_keyed_hash(vnet: int, v6: bool) -> None:
    """For TCP over IPv4 and IPv6, with tags and options; everything else is whole."""
    ends = {"source": GUEST6, "destination": CLIENT6} if v6 else {}
    frame = segment(5, 6, b"p" * 900, flags=PSH, options=b"\1\1\1\1", vlan=(5,), vnet=vnet, **ends)
    short, chatter = segment(5, 6, b"short", vnet=vnet, **ends), bytes(vnet) + arp_reply()
    key, one, two, three = digested(Batch.of([frame, short, chatter], vnet, 3)).frames()
    assert key == bytes((2,)) + SECRET
    head = frame[:-900]
    assert one == b"\1" + (900).to_bytes(2, "big") + len(head).to_bytes(2, "big") + head + hashed(b"p" * 900, SECRET)
    assert (two, three) == (b"\0" + short, b"\0" + chatter)


def test_a_super_frame_has_a_hash_for_each_segment_that_it_is_on_the_wire(pair: Pair) -> None:
    """So the primary's first segments leave though it may say no more before they are acknowledged."""
    whole = data(0, 3000, vnet=10, gso_size=1000, partial=True)
    (_, record) = digested(Batch.of([whole], 10)).frames()
    assert len(record) == 5 + len(whole) - 3000 + 3 * HASH_BYTES
    frames = [data(0, 700), data(700, 700)]
    pair.primary(*frames)
    pair.secondary(whole, vnet=10)
    assert pair.left[0][1:] == frames[:1]
    assert pair.primary(data(1400, 1600)) == [frames[1], data(1400, 1600)]


def test_a_large_frame_without_a_virtio_net_header_is_cut_all_the_same(pair: Pair) -> None:
    long = STREAM * 3
    frames = [segment(ISN + 1 + at, CLIENT_ISN + 1, long[at : at + 1000], flags=PSH) for at in range(0, 12000, 1000)]
    pair.primary(*frames[:4])
    assert pair.secondary(segment(ISN + 1, CLIENT_ISN + 1, long[:12000], flags=PSH | FIN)) == frames[:2]
    assert pair.primary(*frames[4:]) == frames[2:]
    fin = segment(ISN + 1 + 12000, CLIENT_ISN + 1, flags=FIN)
    assert pair.primary(fin) == [fin]


@pytest.mark.parametrize("flags", [0x20 | PSH, 0x04])
def test_what_a_cut_would_change_travels_whole(flags: int) -> None:
    frame = segment(5, 6, b"p" * 100, flags=flags)
    assert digested(Batch.of([frame])).frames()[1] == b"\0" + frame


def test_what_a_secret_is_for_its_length_tells() -> None:
    import xxhash

    assert hashed(b"abc", SEED) == xxhash.xxh3_128(b"abc", seed=0x0001020304050607).digest()
    assert (len(new_secret("blake2b")), len(new_secret("xxh3"))) == (KEY_BYTES, SEED_BYTES)
    assert new_secret("xxh3") != new_secret("xxh3")
    assert [hasher(bytes(size)) for size in (0, 8, 15, 17, 31, 33)] == [None] * 6


def test_the_hash_is_blake2b_with_the_key() -> None:
    """RFC 7693's algorithm, by another implementation of it (`b2sum` has no key; this is Python's reference call)."""
    import hashlib

    assert hashed(b"abc", SECRET) == hashlib.blake2b(b"abc", key=SECRET, digest_size=16).digest()
    assert hashed(b"abc", SECRET) != hashed(b"abc", bytes(32))
    assert (len(hashed(b"", SECRET)), len(SECRET)) == (HASH_BYTES, KEY_BYTES)


def test_traffic_shrinks_by_more_than_an_order_of_magnitude() -> None:
    frames = [data(0, 1460)] * 500
    batch = Batch.of(frames)
    assert len(batch.data) > 20 * len(digested(batch).data)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.comparer import digest as module

    monkeypatch.setattr(module, "MOST_KEPT", 100_000)
    monkeypatch.setattr(module, "MOST_BYTES", 20_000)
    monkeypatch.setattr(module, "MOST_RECORDS", 5)
    core = Comparer(node())
    for port in range(200):
        # A connection that opens takes the careful path.
        core.push("primary", Batch.of([segment(ISN - 1, 1, flags=SYN, dport=port + 1)]), 1.0)
        for place in range(0, 30_000, 1000):
            frame = segment(ISN + place, 1, bytes(1000), dport=port + 1)
            core.push("primary", Batch.of([frame]), 1.0)
            assert core._undigest._kept <= 100_000
    assert max(flow.size for flow in core._undigest._flows.values()) <= 20_000
    for place in range(0, 9000, 1000):
        said = segment(ISN + 90_000 + place, 1, bytes(1000), dport=7)
        core.push("digests", digested(Batch.of([said])), 1.0)
    assert core.counters["given_up"] == 4
    counted = sum(flow.kept() for flow in core._undigest._flows.values())
    assert counted == core._undigest._kept
