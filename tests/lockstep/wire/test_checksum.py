"""The Internet checksum against RFC 1071's and RFC 1624's own examples, impacket, and word-by-word sums."""

from __future__ import annotations

import struct

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from impacket import ImpactPacket
from impacket.ImpactDecoder import EthDecoder
from packets import inet_checksum, inet_sum, segment

from lockstep.wire.checksum import checksum, moved16, moved32, ones_sum

words = st.integers(0, 0xFFFF)


def test_the_sum_of_rfc_1071s_example() -> None:
    """RFC 1071 §3: 00 01 f2 03 f4 f5 f6 f7 sum to dd f2."""
    assert ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


def test_rfc_1624s_example_where_the_older_equation_is_wrong() -> None:
    """RFC 1624 §4: checksum DD2F, a field from 5555 to 3285, gives 0000, not FFFF."""
    assert moved16(0xDD2F, 0x5555, 0x3285) == 0x0000


@pytest.mark.parametrize(
    ("data", "total"),
    [
        (b"", 0),
        (b"\0", 0),
        (b"\0\0" * 700, 0),
        (b"\xff\xff", 0xFFFF),
        (b"\xff\xff\xff\xff", 0xFFFF),
        (b"\0\0\xff\xff\0\0", 0xFFFF),
        (b"\x80\0\x7f\xff", 0xFFFF),
        (b"\x80\0\x80\0", 1),
        (b"\xff\xff\0\1", 1),
        (b"\1", 0x0100),
        (b"\xff", 0xFF00),
        (b"\0\0\1", 0x0100),
        (b"\xff\xff\xff", 0xFF00),
    ],
)
def test_edges_of_the_sum(data: bytes, total: int) -> None:
    """Only zeros sum to 0; every other multiple of ffff is ffff; an odd byte is a word's upper half."""
    assert ones_sum(data) == total


@given(st.binary(max_size=1600))
def test_the_sum_is_the_sum_of_the_words(data: bytes) -> None:
    assert ones_sum(data) == inet_sum(data)
    assert checksum(data) == inet_checksum(data)


@given(st.binary(max_size=400).filter(lambda data: len(data) % 2 == 0), st.binary(max_size=401))
def test_a_sum_goes_on_from_another(head: bytes, tail: bytes) -> None:
    assert ones_sum(tail, ones_sum(head)) == inet_sum(head + tail)


@given(st.binary(max_size=401))
def test_every_kind_of_buffer_sums_alike(data: bytes) -> None:
    assert ones_sum(bytearray(data)) == ones_sum(memoryview(data)) == inet_sum(data)


@given(st.binary(min_size=2, max_size=201))
def test_the_checksum_is_impackets(data: bytes) -> None:
    assume(any(data))
    assert checksum(data) == ImpactPacket.Header().compute_checksum(data)


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@given(st.binary(min_size=40, max_size=120), st.integers(0, 19), words)
def test_moving_a_16_bit_word_is_summing_again(data: bytes, word: int, new: int) -> None:
    changed = replaced(data, 2 * word, struct.pack(">H", new))
    assume(any(changed))  # a packet has its addresses in the sum
    old = int.from_bytes(data[2 * word : 2 * word + 2], "big")
    assert moved16(inet_checksum(data), old, new) == inet_checksum(changed)


@given(st.binary(min_size=40, max_size=121), st.integers(0, 36), st.integers(0, 2**32 - 1))
def test_moving_a_32_bit_field_at_any_offset_is_summing_again(data: bytes, at: int, new: int) -> None:
    changed = replaced(data, at, struct.pack(">I", new))
    assume(any(changed))
    old = int.from_bytes(data[at : at + 4], "big")
    assert moved32(inet_checksum(data), old, new, odd=bool(at % 2)) == inet_checksum(changed)


edges = st.sampled_from([0, 1, 0xFF, 0xFFFF, 0x10000, 0xFFFF0000, 0xFFFFFFFE, 0xFFFFFFFF])


@given(edges, edges, words, st.booleans())
def test_edge_values_move_like_any_other(old: int, new: int, rest: int, odd: bool) -> None:
    before, after = (
        (b"\x0a" if odd else b"") + struct.pack(">I", value) + (b"\x0b" if odd else b"") + struct.pack(">H", rest)
        for value in (old, new)
    )
    assume(any(after))
    assert moved32(inet_checksum(before), old, new, odd) == inet_checksum(after)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=99))
def test_a_moved_segment_is_the_one_that_impacket_sums_up(seq: int, ack: int, payload: bytes) -> None:
    frame = segment(1000, 2000, payload)
    theirs = EthDecoder().decode(frame)
    tcp = theirs.child().child()
    tcp.set_th_seq(seq)
    tcp.set_th_ack(ack)
    tcp.auto_checksum = 1
    whole = theirs.get_packet()
    moved = moved32(moved32(int.from_bytes(frame[50:52], "big"), 1000, seq), 2000, ack)
    assert moved == int.from_bytes(whole[50:52], "big")
