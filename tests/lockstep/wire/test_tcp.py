"""TCP options: places worked out by hand and while building, impacket's reading, and garbage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impacket import ImpactPacket
from impacket.ImpactDecoder import EthDecoder
from packets import segment

from lockstep.wire.tcp import find_options, has_option, options_signature, stripped, window_scale

NOP, END = b"\1", b"\0"
MSS, WINDOW_SCALE, SACK_PERMITTED = b"\2\4\5\xb4", b"\3\3\7", b"\4\2"
TIMESTAMPS = b"\x08\x0a\0\0\0\1\0\0\0\2"


def sack(blocks: int) -> bytes:
    return bytes([5, 2 + 8 * blocks]) + bytes(8 * blocks)


def found(options: bytes) -> tuple[int | None, int | None, int]:
    """Offsets in the options; around them lies what looks like more of them."""
    decoy = TIMESTAMPS * 2
    timestamps, blocks_at, blocks = find_options(decoy + options + decoy, 20, 20 + len(options))
    return timestamps - 20 if timestamps else None, blocks_at - 20 if blocks_at else None, blocks


@pytest.mark.parametrize(
    ("options", "places"),
    [
        (b"", (None, None, 0)),
        (TIMESTAMPS, (0, None, 0)),
        (NOP + NOP + TIMESTAMPS, (2, None, 0)),
        (NOP + NOP + TIMESTAMPS + NOP + NOP + sack(2), (2, 14, 2)),
        (sack(3) + NOP + TIMESTAMPS, (27, 0, 3)),
        (MSS + SACK_PERMITTED + TIMESTAMPS + NOP + WINDOW_SCALE, (6, None, 0)),
        (NOP + sack(4), (None, 1, 4)),
        (NOP + b"\x63\2" + TIMESTAMPS, (3, None, 0)),
        # Of two the first counts; one of another length is none.
        (NOP + TIMESTAMPS + TIMESTAMPS, (1, None, 0)),
        (NOP + b"\x08\x09" + bytes(7) + TIMESTAMPS, (10, None, 0)),
        (NOP + b"\x05\x0b" + bytes(9), (None, None, 0)),
        # Behind the end of options, or a malformed one, nothing exists.
        (NOP + END + TIMESTAMPS, (None, None, 0)),
        (NOP + TIMESTAMPS[:-1], (None, None, 0)),
        (NOP + b"\x08", (None, None, 0)),
        (NOP + b"\x63\0" + TIMESTAMPS, (None, None, 0)),
        (NOP + b"\x63\1" + TIMESTAMPS, (None, None, 0)),
        (NOP + b"\x63\x63" + TIMESTAMPS, (None, None, 0)),
    ],
)
def test_places_of_timestamps_and_sack_blocks(options: bytes, places: tuple[int | None, int | None, int]) -> None:
    assert found(options) == places


whole_options = st.one_of(
    st.just(NOP),
    st.just(MSS),
    st.just(WINDOW_SCALE),
    st.just(SACK_PERMITTED),
    st.builds(lambda a, b: b"\x08\x0a" + struct.pack(">II", a, b), *[st.integers(0, 2**32 - 1)] * 2),
    st.integers(1, 4).map(sack),
    st.builds(lambda kind, data: bytes([kind, 2 + len(data)]) + data, st.integers(9, 255), st.binary(max_size=6)),
    st.just(b"\x1e\x0c\x01" + b"k" * 9),
)


@given(st.lists(whole_options, max_size=10))
def test_the_first_of_each_is_found_wherever_it_lies(parts: list[bytes]) -> None:
    at, first = 20, {}
    for part in parts:
        first.setdefault(part[0], (at, part))
        at += len(part)
    blocks = (len(first[5][1]) - 2) // 8 if 5 in first else 0
    expected = (first[8][0] if 8 in first else 0, first[5][0] if 5 in first else 0, blocks)
    assert find_options(bytes(20) + b"".join(parts), 20, at) == expected


@given(st.binary(max_size=60), st.binary(max_size=8), st.binary(max_size=8))
def test_any_options_are_read_within_their_bounds(options: bytes, before: bytes, behind: bytes) -> None:
    start = 20 + len(before)
    end = start + len(options)
    timestamps, blocks_at, blocks = find_options(bytes(20) + before + options + behind, start, end)
    assert timestamps == 0 or start <= timestamps <= end - 10
    assert blocks_at == 0 or start <= blocks_at <= blocks_at + 2 + 8 * blocks <= end
    alone = find_options(bytes(start) + options, start, end)
    assert alone == (timestamps, blocks_at, blocks)


@given(st.binary(max_size=60), st.integers(0, 255), st.binary(max_size=8), st.binary(max_size=8))
def test_any_options_can_be_signed_searched_and_stripped(
    options: bytes, kind: int, before: bytes, behind: bytes
) -> None:
    """Within their bounds, and stripping makes no option but the one that it takes out."""
    data = bytearray(before + options + behind)
    start, end = len(before), len(before) + len(options)
    assert len(options_signature(data, start, end)) <= len(options)
    there = has_option(data, start, end, kind)
    stripped(data, start, end, kind)
    assert (bytes(data) != before + options + behind) == there
    assert (bytes(data[:start]), bytes(data[end:])) == (before, behind)
    assert not has_option(data, start, end, kind)


@given(st.lists(whole_options, max_size=10), st.sampled_from([2, 3, 4, 5, 8, 30]))
def test_an_option_is_stripped_to_nops_wherever_it_lies(parts: list[bytes], kind: int) -> None:
    data = bytearray(b"".join(parts))
    assert has_option(data, 0, len(data), kind) == any(part[0] == kind and part != NOP for part in parts)
    stripped(data, 0, len(data), kind)
    assert bytes(data) == b"".join(NOP * len(part) if part[0] == kind else part for part in parts)


def test_one_of_several_kinds_is_enough() -> None:
    options = MSS + NOP + TIMESTAMPS
    assert has_option(options, 0, len(options), 30, 8)
    assert not has_option(options, 0, len(options), 30, 5)
    assert not has_option(options, 0, len(options))


@pytest.mark.parametrize("kind", [0, 1])
def test_padding_is_no_option(kind: int) -> None:
    assert not has_option(NOP + NOP + END, 0, 3, kind)


def test_impacket_reads_the_same_timestamps() -> None:
    options = NOP + NOP + b"\x08\x0a" + struct.pack(">II", 0x01020304, 0xF1F2F3F4)
    data = segment(1, 2, b"x", options=options)
    (theirs,) = [
        option
        for option in EthDecoder().decode(data).child().child().get_options()
        if option.get_kind() == ImpactPacket.TCPOption.TCPOPT_TIMESTAMP
    ]
    at = find_options(data, 54, 66)[0]
    assert struct.unpack(">II", data[at + 2 : at + 10]) == (theirs.get_ts(), theirs.get_ts_echo())


@pytest.mark.parametrize(
    ("options", "shift"),
    [
        (b"", 0),
        (MSS + NOP + WINDOW_SCALE, 7),
        (b"\3\3\0", 0),
        (b"\3\3\x0e", 14),
        (b"\3\3\x0f", 14),  # RFC 7323 §2.3: use 14 instead
        (b"\3\3\xff", 14),
        (b"\3\3", 0),
        (b"\3\4\7\7" + WINDOW_SCALE, 7),
        (b"\3\3\2" + WINDOW_SCALE, 2),
        (END + WINDOW_SCALE, 0),
    ],
)
def test_a_window_is_scaled_by_14_bits_at_most(options: bytes, shift: int) -> None:
    assert window_scale(b"\3\3\5" + options + b"\3\3\5", 3, 3 + len(options)) == shift


def signature(options: bytes) -> bytes:
    return options_signature(options, 0, len(options))


def test_a_signature_is_without_padding_and_clock_values() -> None:
    assert signature(MSS + SACK_PERMITTED + TIMESTAMPS + NOP + WINDOW_SCALE) == bytes.fromhex(
        "020405b4 0402 080a 030307"
    )


@pytest.mark.parametrize(
    "other",
    [
        MSS + NOP + NOP + b"\x08\x0a" + bytes(8) + WINDOW_SCALE,
        NOP + MSS + TIMESTAMPS + WINDOW_SCALE + END,
        MSS + TIMESTAMPS + WINDOW_SCALE + END + END + END,
    ],
)
def test_options_that_differ_in_padding_or_clocks_agree(other: bytes) -> None:
    assert signature(other) == signature(MSS + TIMESTAMPS + WINDOW_SCALE)


@pytest.mark.parametrize(
    "other",
    [
        b"\2\4\5\xb5" + TIMESTAMPS + WINDOW_SCALE,
        MSS + TIMESTAMPS + b"\3\3\x08",
        MSS + WINDOW_SCALE,
        MSS + TIMESTAMPS + WINDOW_SCALE + SACK_PERMITTED,
    ],
)
def test_options_with_another_meaning_disagree(other: bytes) -> None:
    assert signature(other) != signature(MSS + TIMESTAMPS + WINDOW_SCALE)


COOKIE, OTHER_COOKIE = b"\x22\x0aCOOKIE#1", b"\x22\x0aCOOKIE#2"
MULTIPATH, OTHER_MULTIPATH = b"\x1e\x0c\x01" + b"k" * 9, b"\x1e\x0c\x01" + b"K" * 9


@pytest.mark.parametrize(("one", "other"), [(COOKIE, OTHER_COOKIE), (MULTIPATH, OTHER_MULTIPATH), (MULTIPATH, b"")])
def test_what_each_replica_draws_on_its_own_is_not_compared(one: bytes, other: bytes) -> None:
    """Fast Open cookies (RFC 7413) and all of MPTCP (RFC 8684)."""
    assert signature(MSS + one + WINDOW_SCALE) == signature(MSS + other + WINDOW_SCALE)


def test_that_a_fast_open_cookie_is_there_is_compared() -> None:
    assert signature(MSS + COOKIE) != signature(MSS)


@pytest.mark.parametrize("tail", [b"\2", MSS[:-1], b"\2\0\5\xb4", b"\2\1", b"\x63\x63"])
def test_what_stands_behind_a_malformed_option_is_compared_as_it_is(tail: bytes) -> None:
    assert signature(WINDOW_SCALE + tail + b"\x77") == signature(NOP + WINDOW_SCALE + tail + b"\x77")
    assert signature(WINDOW_SCALE + tail + b"\x77") != signature(WINDOW_SCALE + tail + b"\x78")
