"""The virtio-net header: sizes converted, partial checksums finished, super-frames left whole."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packets import CLIENT6, GUEST6, inet_checksum, pseudo, segment, udp

from lockstep.batch import MAX_BATCH, Batch
from lockstep.wire.vnet import convert, finished

#: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
HEADER = struct.pack("<BBHHHH", 1, 1, 54, 1448, 34, 16)
PLAIN = segment(7, 8, b"payload")

frames = st.lists(st.binary(min_size=14, max_size=40), max_size=6)


def test_the_same_size_is_the_same_batch() -> None:
    batch = Batch.of([HEADER + PLAIN], vnet=10)
    assert convert(batch, 10) is batch


@pytest.mark.parametrize(("size", "header"), [(10, bytes(10)), (12, bytes(12))])
def test_a_frame_without_a_header_gets_one_that_promises_nothing(size: int, header: bytes) -> None:
    converted = convert(Batch.of([PLAIN, PLAIN[:60]]), size)
    assert converted.frames() == [header + PLAIN, header + PLAIN[:60]]
    assert converted.vnet == size


def test_growing_a_header_appends_the_number_of_buffers() -> None:
    assert convert(Batch.of([HEADER + PLAIN], vnet=10), 12).frames() == [HEADER + b"\0\0" + PLAIN]


def test_shrinking_a_header_drops_the_number_of_buffers() -> None:
    assert convert(Batch.of([HEADER + b"\1\0" + PLAIN], vnet=12), 10).frames() == [HEADER + PLAIN]


@given(frames, st.sampled_from([10, 12]))
def test_there_and_back_is_the_identity(raw: list[bytes], size: int) -> None:
    assert convert(convert(Batch.of(raw), size), 0).frames() == raw


def test_an_empty_batch_converts_to_an_empty_one() -> None:
    converted = convert(Batch.of([]), 12)
    assert (len(converted), bytes(converted.data), converted.vnet) == (0, b"", 12)


def test_a_full_batch_keeps_every_frame_when_headers_grow() -> None:
    raw = [bytes([number % 256]) * 1024 for number in range(MAX_BATCH // 1024)]
    converted = convert(Batch.of(raw), 12)
    assert converted.frames() == [bytes(12) + data for data in raw]


@pytest.mark.parametrize("vnet", [10, 12])
@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("vlan", [(), (7,)])
def test_a_partial_checksum_is_finished(vnet: int, v6: bool, vlan: tuple[int, ...]) -> None:
    ends = {"source": GUEST6, "destination": CLIENT6} if v6 else {}
    partial = segment(1, 2, b"odd payload", partial=True, vnet=vnet, vlan=vlan, **ends)
    assert convert(Batch.of([partial], vnet), 0).frames() == [segment(1, 2, b"odd payload", vlan=vlan, **ends)]


@pytest.mark.parametrize("bad", [False, True])
def test_a_checksum_that_is_not_partial_is_left_as_it_is(bad: bool) -> None:
    raw = segment(1, 2, b"x", bad=bad)
    assert convert(Batch.of([bytes(10) + raw], 10), 0).frames() == [raw]


def test_a_super_frame_stays_whole_with_the_checksum_of_the_whole() -> None:
    payload = bytes(range(256)) * 200
    partial = segment(1, 2, payload, partial=True, vnet=10, gso_size=1448)
    assert convert(Batch.of([partial], 10), 0).frames() == [segment(1, 2, payload)]


def test_a_udp_checksum_of_zero_is_written_as_ffff() -> None:
    """RFC 768: zero says that there is none."""
    rest = udp(b"\0\0")
    payload = rest[40:42]  # with its own checksum as payload the sum becomes ffff, so the checksum 0
    whole = udp(payload)
    body = whole[34:40] + b"\0\0" + payload
    assert inet_checksum(pseudo("10.77.0.2", "10.77.0.1", 17, 10) + body) == 0
    sum_of_pseudo = ~inet_checksum(pseudo("10.77.0.2", "10.77.0.1", 17, 10)) & 0xFFFF
    partial = whole[:40] + struct.pack(">H", sum_of_pseudo) + payload
    header = struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 6)
    assert finished(header + partial, 0, 10 + len(partial), 10)[40:42] == b"\xff\xff"


@given(
    st.binary(min_size=10, max_size=10) | st.builds(lambda tail: b"\1" + tail, st.binary(min_size=9, max_size=9)),
    st.binary(min_size=1, max_size=80),
    st.binary(max_size=20),
)
def test_any_header_changes_two_bytes_at_most(header: bytes, raw: bytes, before: bytes) -> None:
    """A header of lies raises nothing, and touches nothing but the field that it names."""
    data = before + header + raw
    result = bytes(finished(data, len(before), len(data), 10))
    assert len(result) == len(raw)
    start, offset = struct.unpack_from("<HH", header, 6)
    field = start + offset
    if not header[0] & 1 or field + 2 > len(raw):
        assert result == raw
    else:
        assert result[:field] + result[field + 2 :] == raw[:field] + raw[field + 2 :]
        assert result[field : field + 2] == struct.pack(">H", inet_checksum(raw[start:]) or 0xFFFF)
