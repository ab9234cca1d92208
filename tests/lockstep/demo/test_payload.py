"""The stream that guests and clients agree on."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.demo import payload


def stream(size: int) -> bytes:
    return b"".join(map(bytes, payload.windows(size)))


def test_any_cut_of_the_stream_gives_the_same_bytes() -> None:
    whole = stream(3 * payload.BLOCK + 17)
    for step in (1000, 65536, payload.BLOCK - 1, payload.BLOCK):
        assert b"".join(map(bytes, payload.windows(len(whole), step=step))) == whole


@given(st.integers(0, 1 << 40), st.integers(1, 5000))
def test_a_window_says_the_same_wherever_it_begins(position: int, size: int) -> None:
    part = bytes(payload.window(position, size))
    assert part
    assert bytes(payload.window(position + len(part) - 1, 1)) == part[-1:]


def test_the_digest_is_that_of_the_bytes() -> None:
    size = payload.BLOCK + 3
    assert payload.digest(size) == hashlib.sha256(stream(size)).hexdigest()


def test_no_two_blocks_are_the_same() -> None:
    blocks = {bytes(payload.window(index * payload.BLOCK, 64)) for index in range(4096)}
    assert len(blocks) == 4096


def test_right_bytes_are_not_counted_as_wrong() -> None:
    whole = stream(2 * payload.BLOCK)
    assert payload.count_wrong(whole[1000:], 1000) == (0, None)
    assert payload.count_wrong(memoryview(whole)[payload.BLOCK - 5 : payload.BLOCK + 5], payload.BLOCK - 5) == (0, None)


def test_one_flipped_byte_is_counted_once_and_named() -> None:
    received = bytearray(stream(2 * payload.BLOCK))
    received[payload.BLOCK + 7] ^= 1
    received[payload.BLOCK + 9] ^= 1
    assert payload.count_wrong(received, 0) == (2, payload.BLOCK + 7)


@pytest.mark.parametrize("distance", [1, 1448, payload.BLOCK])
def test_bytes_at_the_wrong_place_are_nearly_all_wrong(distance: int) -> None:
    wrong, first = payload.count_wrong(stream(distance + 10_000)[distance:], 0)
    assert wrong > 9_800
    assert first is not None
