"""QEMU's framing: any cut of the stream gives the same frames, and no length makes us wait for nonsense."""

from __future__ import annotations

import struct

import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from packets import segment, udp

from lockstep.batch import MAX_BATCH, MAX_FRAME, Batch
from lockstep.qemu.framing import Deframer, FramingError, framed


def fed(deframer: Deframer, data: bytes, step: int = 1 << 20) -> list[tuple[int, bytes]]:
    """Feed in pieces; (virtio-net header size, frame) of each frame that came out."""
    out = []
    while data:
        room = deframer.room()
        count = min(step, len(room), len(data))
        assert count
        room[:count], data = data[:count], data[count:]
        out += [(batch.vnet, frame) for batch in deframer.filled(count) for frame in batch.frames()]
    return out


def wire(frames: list[tuple[int, bytes]], told: bool) -> bytes:
    """The format, by hand: big-endian length, then with `told` the header's size, then the frame."""
    return b"".join(
        struct.pack(">I", len(frame)) + (struct.pack(">I", size) if told else b"") + frame for size, frame in frames
    )


SIZED = st.sampled_from([0, 10, 12]).flatmap(lambda n: st.tuples(st.just(n), st.binary(min_size=n + 1, max_size=90)))


@given(st.lists(SIZED, max_size=30), st.integers(1, 300))
def test_any_cut_of_the_stream_gives_the_same_frames_with_headers(frames: list[tuple[int, bytes]], step: int) -> None:
    assert fed(Deframer(True), wire(frames, True), step) == frames


@given(st.lists(st.binary(min_size=1, max_size=90), max_size=30), st.integers(1, 300))
def test_any_cut_of_the_stream_gives_the_same_frames_without(frames: list[bytes], step: int) -> None:
    plain = [(0, frame) for frame in frames]
    assert fed(Deframer(False), wire(plain, False), step) == plain


def test_more_than_the_buffer_holds_comes_through() -> None:
    frames = [(10, bytes([number]) * (MAX_FRAME + 10)) for number in range(40)]
    assert fed(Deframer(True), wire(frames, True)) == frames


@pytest.mark.parametrize(
    ("told", "head", "why"),
    [
        (False, struct.pack(">I", 0), "a frame of 0 bytes"),
        (False, struct.pack(">I", MAX_FRAME + 1), "a frame of 65559 bytes"),
        (False, b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (True, struct.pack(">II", 60, 11), "a virtio-net header of 11 bytes"),
        (True, struct.pack(">II", 10, 10), "a frame of 10 bytes"),
        (True, struct.pack(">II", MAX_FRAME + 11, 10), "a frame of 65569 bytes"),
        (True, struct.pack(">II", 60, 0xFFFFFFFF), "a virtio-net header of 4294967295 bytes"),
    ],
)
def test_a_length_that_can_not_be_is_refused_before_its_frame_comes(told: bool, head: bytes, why: str) -> None:
    with pytest.raises(FramingError, match=rf"{why}; both ends must have vnet_hdr"):
        fed(Deframer(told), head)


def test_the_longest_frames_are_taken() -> None:
    assert fed(Deframer(False), wire([(0, bytes(MAX_FRAME))], False)) == [(0, bytes(MAX_FRAME))]
    assert fed(Deframer(True), wire([(12, bytes(MAX_FRAME + 12))], True)) == [(12, bytes(MAX_FRAME + 12))]


def test_after_a_reset_a_new_stream_begins() -> None:
    deframer = Deframer(False)
    assert fed(deframer, wire([(0, b"whole"), (0, b"cut off")], False)[:-1]) == [(0, b"whole")]
    deframer.reset()
    assert fed(deframer, wire([(0, b"new")], False)) == [(0, b"new")]


@fuzz(2000)
@given(
    st.booleans(),
    st.lists(st.binary(max_size=60) | st.integers(0, 70).map(lambda n: struct.pack(">I", n)), max_size=20),
)
def test_any_bytes_give_frames_or_a_refusal(told: bool, pieces: list[bytes]) -> None:
    """Every frame that comes out is one that went in; after a refusal the connection is gone."""
    deframer, data = Deframer(told), b"".join(pieces)
    try:
        for size, frame in fed(deframer, data, 7):
            assert size in (0, 10, 12)
            assert size < len(frame) <= MAX_FRAME + size
            assert frame in data
    except FramingError:
        deframer.reset()
    assert len(deframer.room()) > MAX_BATCH


# Out.


@given(st.lists(st.binary(min_size=15, max_size=90), max_size=20), st.sampled_from([10, 12]))
def test_frames_go_out_with_the_header_that_was_agreed(frames: list[bytes], size: int) -> None:
    data, lost = framed(Batch.of(frames), size)
    assert (data, lost) == (wire([(size, bytes(size) + frame) for frame in frames], True), 0)


def test_without_headers_checksums_are_completed_and_super_frames_cut() -> None:
    payload = bytes(range(250))
    batch = Batch.of(
        [
            segment(1, 2, b"partial", partial=True, vnet=10),
            segment(7, 2, payload, partial=True, vnet=10, gso_size=100, ident=9),
            bytes(10) + udp(b"plain"),
        ],
        10,
    )
    parts = [segment(7 + at, 2, payload[at : at + 100], ident=9 + at // 100) for at in (0, 100, 200)]
    whole = [segment(1, 2, b"partial"), *parts, udp(b"plain")]
    assert framed(batch, 0) == (wire([(0, frame) for frame in whole], False), 0)


def test_a_super_frame_that_can_not_be_cut_is_missing_and_counted() -> None:
    strange = b"\1\7" + bytes(8) + udp(b"x")
    assert framed(Batch.of([strange, bytes(10) + udp(b"y")], 10), 0) == (wire([(0, udp(b"y"))], False), 1)
