"""The packets that a divergence carries: which ones, what of them, and how many at most."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import packets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packets import FIN, PSH, RST, SYN, echo_reply, ethernet, inet_checksum, ip, segment, udp

from lockstep.batch import MAX_BATCH, Batch
from lockstep.config import Node
from lockstep.control import MAX_REQUEST
from lockstep.report import FRAMES
from lockstep.report.recorder import as_json
from lockstep.report.render import render
from lockstep.report.report import parse
from lockstep.streams import Cut, Event
from services.comparer.core import Core
from services.comparer.evidence import MOST_BYTES, MOST_FRAMES, MOST_SEARCHES, Evidence

SNAP = 2048
#: Where the payload of a plain segment begins: 14 bytes Ethernet, 20 IPv4, 20 TCP; of IPv6 20 more.
PAYLOAD, PAYLOAD6 = 54, 74
SIX = {"source": packets.GUEST6, "destination": packets.CLIENT6}


class Sides:
    """A comparer that keeps evidence, and the two sides talking to it."""

    def __init__(self, **settings: object) -> None:
        settings = {"on_divergence": "hold", "capture_dir": Path("/nowhere"), **settings}
        self.core = Core(Node.model_validate({"comparer": settings}))
        self.now = 100.0
        self.divergences: list[dict[str, Any]] = []

    def primary(self, *frames: bytes, vnet: int = 0, epoch: int = 0) -> None:
        self.push("primary", Batch.of(frames, vnet, epoch))

    def secondary(self, *frames: bytes, vnet: int = 0, epoch: int = 0) -> None:
        self.push("secondary", Batch.of(frames, vnet, epoch))

    def push(self, stream: str, item: Batch | Cut) -> None:
        self.take(self.core.push(stream, item, self.now))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.core.tick(self.now))

    def take(self, outputs: list[Any]) -> None:
        events = [output for output in outputs if isinstance(output, Event)]
        self.divergences += [dict(event.fields) for event in events if event.name == "divergence"]

    def frames(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The packets of the only divergence."""
        (divergence,) = self.divergences
        return divergence["primary_frames"], divergence["secondary_frames"]


def data(place: int, payload: bytes, **more: Any) -> bytes:
    return segment(5001 + place, 901, payload, flags=PSH, **more)


def here(frames: list[dict[str, Any]]) -> list[tuple[bytes, int]]:
    return [(entry["frame"], entry["place"]) for entry in frames if "place" in entry]


# --- which frames, and where


def test_both_packets_come_first_with_the_byte_that_differs() -> None:
    sides = Sides()
    before, ours, theirs = data(0, b"same"), data(4, b"hello world"), data(4, b"hello_world")
    sides.primary(before)
    sides.secondary(before)
    sides.now = 100.5
    sides.primary(ours, data(15, b"later"))
    sides.now = 101.0
    sides.secondary(theirs)
    primary, secondary = sides.frames()
    common = {"size": PAYLOAD + 11, "payload": PAYLOAD, "payload_end": PAYLOAD + 11, "place": PAYLOAD + 5}
    assert primary[0] == {"frame": ours, "at": 100.5, "number": 2, **common}
    assert secondary[0] == {"frame": theirs, "at": 101.0, "number": 2, **common}
    assert [(entry["number"], "place" in entry) for entry in primary] == [(2, True), (3, False), (1, False)]
    assert [(entry["number"], entry["frame"]) for entry in secondary[1:]] == [(1, before)]


def test_without_a_capture_dir_nothing_is_kept_and_nothing_is_told() -> None:
    sides = Sides(capture_dir=None)
    sides.primary(data(0, b"a"))
    sides.secondary(data(0, b"b"))
    assert not any(name in sides.divergences[0] for name in FRAMES)


def test_the_status_carries_no_packets() -> None:
    sides = Sides()
    sides.primary(data(0, b"a"))
    sides.secondary(data(0, b"b"))
    (remembered,) = sides.core.status()["divergences"]
    assert remembered == {name: value for name, value in sides.divergences[0].items() if name not in FRAMES}


@pytest.mark.parametrize(("ours", "theirs"), [(0, 10), (10, 0), (12, 10)])
def test_virtio_net_headers_are_left_out(ours: int, theirs: int) -> None:
    sides = Sides()
    sides.primary(data(0, b"ab", vnet=ours), vnet=ours)
    sides.secondary(data(0, b"ax", vnet=theirs), vnet=theirs)
    primary, secondary = sides.frames()
    assert here(primary) == [(data(0, b"ab"), PAYLOAD + 1)]
    assert here(secondary) == [(data(0, b"ax"), PAYLOAD + 1)]


def test_packets_of_other_flows_are_not_given() -> None:
    sides = Sides()
    others = [data(0, b"b", dport=40001), data(0, b"b", vlan=(7,)), data(0, b"b", **SIX), udp(b"b", sport=80)]
    sides.primary(*others, data(0, b"a"))
    sides.secondary(*others, data(0, b"b"))
    primary, secondary = sides.frames()
    assert [entry["number"] for entry in primary + secondary] == [5, 5]


def test_the_nearest_are_given_when_there_are_many() -> None:
    """The secondary is far ahead: its segment at the place is the tenth, and fifty follow it."""
    sides = Sides()
    sides.secondary(*(data(at, b"x") for at in range(60)))
    sides.primary(*(data(at, b"x") for at in range(9)), data(9, b"y"))
    primary, secondary = sides.frames()
    assert [entry["number"] for entry in secondary] == [10, 11, 9, 12, 8, 13, 7, 14]
    assert [entry["number"] for entry in primary] == [10, 9, 8, 7, 6, 5, 4, 3]
    assert here(secondary) == [(data(9, b"x"), PAYLOAD)]


def test_a_place_inside_a_differently_cut_segment() -> None:
    sides = Sides()
    sides.secondary(data(0, b"abcdefgh"))
    sides.primary(data(0, b"abc"), data(3, b"dXf"))
    primary, secondary = sides.frames()
    assert here(primary) == [(data(3, b"dXf"), PAYLOAD + 1)]
    assert here(secondary) == [(data(0, b"abcdefgh"), PAYLOAD + 4)]


def test_a_wrap_of_the_sequence_numbers_lies_between() -> None:
    sides = Sides()
    sides.primary(segment(0xFFFFFFFE, 1, b"abcdef"))
    sides.secondary(segment(0xFFFFFFFE, 1, b"abc"), segment(1, 1, b"dXf"))
    primary, secondary = sides.frames()
    assert here(primary) == [(segment(0xFFFFFFFE, 1, b"abcdef"), PAYLOAD + 4)]
    assert here(secondary) == [(segment(1, 1, b"dXf"), PAYLOAD + 1)]


def test_a_fin_stands_behind_the_last_byte() -> None:
    sides = Sides()
    long, short = segment(5001, 901, b"abcde", flags=FIN), segment(5001, 901, b"abc", flags=FIN)
    sides.secondary(long)
    sides.primary(short)
    primary, secondary = sides.frames()
    assert sides.divergences[0]["reason"] == "fin"
    assert here(primary) == [(short, PAYLOAD + 3)] == [(short, len(short))]
    assert here(secondary) == [(long, PAYLOAD + 3)]


def test_syns_are_matched_by_their_flag() -> None:
    """Byte 47: 14 Ethernet, 20 IPv4, and the flags are the 14th byte of TCP."""
    sides = Sides()
    ours = segment(5000, 901, flags=SYN, options=b"\x02\x04\x05\xb4")
    theirs = segment(77, 901, flags=SYN, options=b"\x02\x04\x05\xb0")
    sides.primary(ours)
    sides.secondary(theirs)
    primary, secondary = sides.frames()
    assert sides.divergences[0]["reason"] == "syn"
    assert (here(primary), here(secondary)) == ([(ours, 47)], [(theirs, 47)])


def test_an_unmatched_reset_is_there_alone() -> None:
    sides = Sides(compare_timeout=0.5)
    sides.primary(segment(5001, flags=RST))
    sides.secondary(segment(5002, flags=RST))
    sides.wait(1)
    primary, secondary = sides.frames()
    assert (len(here(primary)), here(secondary), len(secondary)) == (1, [], 1)


def test_a_secondary_that_contradicts_itself_shows_both_of_its_packets() -> None:
    sides = Sides()
    sides.primary(data(90, b"held"))
    sides.secondary(data(0, b"abc"), data(1, b"x"))
    primary, secondary = sides.frames()
    assert here(primary) == []
    assert here(secondary) == [(data(1, b"x"), PAYLOAD), (data(0, b"abc"), PAYLOAD + 1)]


def test_a_limit_has_no_place() -> None:
    sides = Sides(max_flow_bytes=131_072)
    sides.primary(*(data(at * 60_000, b"x" * 60_000) for at in range(3)))
    sides.wait(0.02)  # until then it waits in the lane, whose batches are bounded
    primary, secondary = sides.frames()
    assert sides.divergences[0]["reason"] == "limit"
    assert (len(primary), here(primary), secondary) == (3, [], [])


def test_udp_is_matched_by_the_payload_that_it_was_compared_with() -> None:
    sides = Sides(compare_timeout=0.5)
    sides.primary(udp(b"first"), udp(b"answer"))
    sides.secondary(udp(b"first"), udp(b"answxr", ident=7), udp(b"after"))
    sides.wait(1)
    primary, secondary = sides.frames()
    assert here(primary) == [(udp(b"answer"), 42 + 4)]
    assert here(secondary) == [(udp(b"answxr", ident=7), 42 + 4)]


def test_of_datagrams_that_are_all_the_same_the_newest_is_there() -> None:
    sides = Sides(compare_timeout=0.5)
    sides.primary(udp(b"other"))
    sides.secondary(*(udp(b"same", ident=ident) for ident in (1, 2, 3)))
    sides.wait(1)
    _, secondary = sides.frames()
    assert here(secondary) == [(udp(b"same", ident=3), 42)]


def test_icmp_is_compared_without_its_checksum_and_the_place_is_behind_it() -> None:
    """`type code ident seq payload`: offset 7 is the second byte of the payload, at 14 + 20 + 8 + 1."""
    sides = Sides(compare_timeout=0.5)
    sides.primary(echo_reply(5, 1, b"ping"))
    sides.secondary(echo_reply(5, 1, b"pXng"))
    sides.wait(1)
    primary, secondary = sides.frames()
    assert sides.divergences[0]["offset"] == 7
    assert here(primary) == [(echo_reply(5, 1, b"ping"), 43)]
    assert here(secondary) == [(echo_reply(5, 1, b"pXng"), 43)]


def fragments(payload: bytes, ident: int) -> list[bytes]:
    """A UDP datagram in two fragments, the first with 16 bytes behind IP."""
    whole = struct.pack(">HHHH", 53, 40000, 8 + len(payload), 0) + payload
    first = ip(packets.GUEST, packets.CLIENT, 17, whole[:16], ident=ident, fragment=0x2000)
    return [ethernet(first), ethernet(ip(packets.GUEST, packets.CLIENT, 17, whole[16:], ident=ident, fragment=2))]


def test_fragments_are_given_and_the_datagram_that_the_primary_has_held() -> None:
    sides = Sides(compare_timeout=0.5)
    sides.primary(*fragments(b"0123456789", 1))
    sides.secondary(*fragments(b"01234567X9", 2))
    sides.wait(1)
    primary, secondary = sides.frames()
    ((whole, place),) = here(primary)
    assert whole[place:] == b"89"
    assert [entry["frame"] for entry in secondary] == fragments(b"01234567X9", 2)[::-1]


def with_options(payload: bytes) -> bytes:
    """A UDP datagram behind an IPv4 header with four NOPs."""
    plain = udp(payload)
    header = bytearray(b"\x46" + plain[15:34] + b"\1\1\1\1")
    header[2:4] = (24 + 8 + len(payload)).to_bytes(2, "big")
    header[10:12] = b"\0\0"
    header[10:12] = inet_checksum(bytes(header)).to_bytes(2, "big")
    return plain[:14] + bytes(header) + plain[34:]


def test_a_flow_whose_headers_are_not_plain_is_found_too() -> None:
    sides = Sides(compare_timeout=0.5)
    sides.primary(with_options(b"ab"))
    sides.secondary(with_options(b"ax"), data(0, b"another flow of the same hosts"))
    sides.wait(1)
    primary, secondary = sides.frames()
    assert here(primary) == [(with_options(b"ab"), 47)]
    assert here(secondary) == [(with_options(b"ax"), 47)]


def test_what_is_no_ip_is_found_by_its_addresses() -> None:
    sides = Sides(compare_timeout=0.5)
    sides.primary(ethernet(b"one", ethertype=0x88B5))
    sides.secondary(ethernet(b"two", ethertype=0x88B5), ethernet(b"one", ethertype=0x88B6))
    sides.wait(1)
    primary, secondary = sides.frames()
    assert here(primary) == [(ethernet(b"one", ethertype=0x88B5), 14)]
    assert here(secondary) == [(ethernet(b"two", ethertype=0x88B5), 14)]
    assert len(secondary) == 1


def test_what_the_secondary_said_in_another_epoch_is_not_shown() -> None:
    sides = Sides()
    sides.secondary(data(0, b"old"))
    sides.push("primary", Cut(1, "prepare"))
    sides.push("primary", Cut(1, "commit"))
    sides.primary(data(0, b"abc"), epoch=1)
    sides.secondary(data(0, b"old"), epoch=0)
    sides.secondary(data(0, b"abX"), epoch=1)
    _, secondary = sides.frames()
    assert [entry["frame"] for entry in secondary] == [data(0, b"abX")]


def test_the_flow_is_looked_at_before_it_is_unprotected() -> None:
    sides = Sides(on_divergence="unprotect")
    sides.primary(data(0, b"ab"))
    sides.secondary(data(0, b"aX"))
    primary, secondary = sides.frames()
    assert (here(primary), here(secondary)) == ([(data(0, b"ab"), 55)], [(data(0, b"aX"), 55)])


# --- super-frames


@pytest.mark.parametrize("at", [2500, 30_000, 59_999])
@pytest.mark.parametrize("six", [False, True])
def test_of_a_super_frame_the_segment_around_the_place_is_given(at: int, six: bool) -> None:
    ends = SIX if six else {}
    headers = PAYLOAD6 if six else PAYLOAD
    ours = bytes(index % 251 for index in range(60_000))
    theirs = ours[:at] + bytes((ours[at] ^ 1,)) + ours[at + 1 :]
    sides = Sides()
    sides.primary(data(0, ours, partial=True, vnet=10, gso_size=1448, **ends), vnet=10)
    sides.secondary(data(0, theirs, **ends))
    primary, secondary = sides.frames()
    for (entry,), payload in ((primary, ours), (secondary, theirs)):
        frame, place, cut = entry["frame"], entry["place"], entry["cut"]
        assert (len(frame), entry["size"], entry["payload"]) == (SNAP, headers + 60_000, headers)
        assert entry["payload_end"] == SNAP
        assert frame[headers:] == payload[cut : cut + SNAP - headers]
        assert (frame[place], place - headers + cut) == (payload[at], at)
        assert struct.unpack_from(">I", frame, headers - 16)[0] == 5001 + cut
        if six:
            assert struct.unpack_from(">H", frame, 18)[0] == SNAP - 14 - 40
        else:
            assert struct.unpack_from(">H", frame, 16)[0] == SNAP - 14
            assert inet_checksum(frame[14:34]) == 0
        assert bool(frame[headers - 7] & PSH) == (cut + SNAP - headers == 60_000)


def test_of_a_super_frame_with_an_early_place_the_beginning_is_given() -> None:
    sides = Sides()
    ours, theirs = data(0, bytes(60_000)), data(0, bytes(1000) + b"\1" + bytes(58_999))
    sides.primary(ours)
    sides.secondary(theirs)
    (entry,), _ = sides.frames()
    assert (entry["frame"], entry["place"], entry["size"]) == (ours[:SNAP], PAYLOAD + 1000, len(ours))
    assert "cut" not in entry


# --- how much is kept, and how often it is looked for


def test_a_head_that_waited_long_is_found_though_its_batch_is_gone() -> None:
    sides = Sides(compare_timeout=3)
    sides.secondary(data(0, b"said"))
    sides.primary(data(0, b"said and more"))
    for _ in range(MOST_BYTES // MAX_BATCH + 1):
        sides.primary(*(udp(bytes(1400), dport=9) for _ in range(700)))
        sides.secondary(*(udp(bytes(1400), dport=9) for _ in range(700)))
    sides.wait(4)
    primary, secondary = sides.frames()
    assert here(primary) == [(data(0, b"said and more"), PAYLOAD + 4)]
    assert (primary[0]["number"], primary[0]["at"]) == (1, 100.0)
    assert secondary == []


@pytest.mark.parametrize(("size", "count"), [(55, 10_000), (60_000, 400)])
def test_what_is_kept_is_bounded_in_memory(size: int, count: int) -> None:
    evidence = Evidence()
    tracemalloc.start()
    try:
        for _ in range(count):
            evidence.note("primary", Batch.of([bytes(size)]), 1.0)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1.25 * MOST_BYTES


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_buffer_that_is_used_again_is_copied(kind: type) -> None:
    sides = Sides()
    buffer = bytearray(data(0, b"abc"))
    batch = Batch.of([buffer])
    batch.data = kind(buffer)
    sides.push("secondary", batch)
    buffer[:] = bytes(len(buffer))
    sides.primary(data(0, b"abX"))
    _, secondary = sides.frames()
    assert here(secondary) == [(data(0, b"abc"), PAYLOAD + 2)]


def test_only_a_few_divergences_a_second_are_looked_for() -> None:
    sides = Sides()
    for port in range(10):
        sides.primary(data(0, b"a", dport=port + 1))
        sides.secondary(data(0, b"b", dport=port + 1))
    assert sum("primary_frames" in divergence for divergence in sides.divergences) == MOST_SEARCHES
    sides.now += 1
    sides.primary(data(0, b"a", dport=99))
    sides.secondary(data(0, b"b", dport=99))
    assert "primary_frames" in sides.divergences[-1]


# --- the event's size


def packed(divergence: dict[str, Any]) -> int:
    return len(msgpack.packb(divergence))


def test_the_largest_event_fits_a_control_message() -> None:
    """Eight super-frames a side, with the longest addresses and all VLAN tags."""
    more = {**SIX, "vlan": (4094, 4093, 4092, 4091), "sport": 60000, "dport": 60001}
    ends = ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff1"]
    more |= dict(zip(("source", "destination"), ends, strict=True))
    sides = Sides()
    for at in range(MOST_FRAMES):
        sides.primary(data(at * 60_000, bytes(60_000), **more))
        sides.secondary(data((at + 20) * 60_000, bytes(60_000), **more))
    sides.secondary(data(0, bytes(59_000) + b"\1" + bytes(999), **more))
    (divergence,) = sides.divergences
    assert [len(divergence[name]) for name in FRAMES] == [MOST_FRAMES, MOST_FRAMES]
    assert {len(entry["frame"]) for name in FRAMES for entry in divergence[name]} == {SNAP}
    assert 2 * MOST_FRAMES * SNAP < packed(divergence) < MAX_REQUEST


def test_syns_with_much_data_make_no_large_event_and_no_large_status() -> None:
    sides = Sides()
    for port in range(40):
        sides.primary(segment(5000, 901, bytes(60_000), flags=SYN, dport=port + 1))
        sides.secondary(segment(77, 901, bytes(59_999) + b"\1", flags=SYN, dport=port + 1))
    assert {divergence["reason"] for divergence in sides.divergences} == {"syn"}
    assert max(map(packed, sides.divergences)) < MAX_REQUEST
    assert len(msgpack.packb(sides.core.status())) < MAX_REQUEST


# --- anything


def spoilt(frame: bytes, at: int, value: int, size: int) -> bytes:
    at %= len(frame)
    frame = frame[:at] + bytes((value,)) + frame[at + 1 :]
    return frame[: max(1, len(frame) - size)]


some_frames = st.one_of(
    st.builds(
        data,
        st.integers(0, 20),
        st.sampled_from([b"", b"abcdefgh", b"abcXefgh", bytes(3000)]),
        options=st.sampled_from([b"", packets.timestamps(1, 2), b"\2\0\0\0"]),
    ),
    st.builds(segment, st.integers(5000, 5010), st.integers(901, 905), flags=st.integers(0, 63)),
    st.builds(udp, st.sampled_from([b"", b"a", b"b", bytes(2100)])),
    st.builds(echo_reply, st.integers(0, 1), st.integers(0, 1)),
    st.builds(with_options, st.sampled_from([b"a", b"b"])),
    st.sampled_from(fragments(b"0123456789", 1) + fragments(b"01234567X9", 1)),
    st.binary(min_size=1, max_size=80),
)
spoilt_frames = st.builds(spoilt, some_frames, st.integers(0, 99), st.integers(0, 255), st.integers(0, 30))


@given(
    st.lists(
        st.tuples(st.sampled_from(["primary", "secondary"]), st.lists(some_frames | spoilt_frames, max_size=4)),
        max_size=12,
    ),
    st.sampled_from(["hold", "unprotect", "checkpoint"]),
)
def test_whatever_is_sent_every_divergence_fits_and_is_a_report(
    said: list[tuple[str, list[bytes]]], on_divergence: str
) -> None:
    sides = Sides(on_divergence=on_divergence, compare_timeout=0.5)
    for stream, frames in said:
        sides.push(stream, Batch.of(frames))
        sides.wait(0.3)
    sides.wait(1)
    for divergence in sides.divergences:
        assert packed(divergence) < MAX_REQUEST
        assert render(parse(as_json(divergence, sides.now, 1.8e9)))
        for name in FRAMES:
            frames = divergence.get(name, [])
            assert len(frames) <= MOST_FRAMES
            numbers = [entry["number"] for entry in frames]
            assert len(set(numbers)) == len(numbers)
            places = ["place" in entry for entry in frames]
            assert places == sorted(places, reverse=True)
            assert all(entry.get("place", 0) <= entry["size"] for entry in frames)
