"""Part 1 without msgpack: what is written is what `envelope` writes, what is read is what it reads."""

from __future__ import annotations

import struct
from array import array
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lockstep.batch import MAX_FRAME, Batch
from lockstep.link.envelope import Encoder, EnvelopeError, Message, decode
from lockstep.link.head import Head

BOOT = bytes(range(8))
numbers = st.integers(0, 2**63 - 1) | st.integers(0, 300) | st.sampled_from([1 << 16, 1 << 32, (1 << 16) - 1])
names = st.none() | st.text(max_size=40)


def encoder(guest: str | None = None) -> Encoder:
    return Encoder("primary", BOOT, guest)


def decoded(header: bytes, total: int) -> Message | None:
    """What `envelope` makes of it in front of so many bytes of frames; None if it refuses it."""
    try:
        return decode([header, bytes(total)], "primary")
    except EnvelopeError:
        return None


def agrees(head: Head, header: bytes) -> bool:
    """Whether it is read; if so, `envelope` reads the same."""
    if not head.parse(header):
        return False
    message = decoded(header, head.total)
    assert message is not None
    assert isinstance(message.item, Batch)
    assert (message.epoch, message.number) == (head.epoch, head.number)
    lengths = array("I", header[head.at :])
    assert (message.item.vnet, message.item.lengths) == (head.vnet, lengths)
    assert (head.count, head.total) == (len(lengths), sum(lengths))
    assert Encoder("primary", message.boot, message.guest).prefix == head.prefix
    return True


@given(names, numbers, numbers, st.sampled_from([0, 10, 12]), st.lists(st.integers(13, MAX_FRAME), max_size=5))
@example(None, 0, 0, 0, [60] * 63)
@example(None, 0, 0, 10, [60] * 64)
@example(None, 0, 0, 12, [60] * 20_000)
def test_it_writes_what_the_encoder_writes_and_reads_it(
    guest: str | None, epoch: int, number: int, vnet: int, lengths: list[int]
) -> None:
    batch = Batch(b"", array("I", lengths), vnet)
    header, _ = encoder(guest).encode(batch, epoch, number)
    head = Head(encoder(guest).prefix)
    assert head.made(epoch, number, vnet, struct.pack(f"<{len(lengths)}I", *lengths)) == header
    assert agrees(head, header)
    assert (head.epoch, head.number, head.vnet, head.count) == (epoch, number, vnet, len(lengths))


@settings(max_examples=1000)
@given(st.data())
def test_flipped_cut_and_longer_headers_are_read_as_the_decoder_reads_them_or_not_at_all(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 70_000), max_size=3))
    header, _ = encoder().encode(Batch(b"", array("I", lengths), 0), data.draw(numbers), data.draw(numbers))
    spoiled = bytearray(header)
    for _ in range(data.draw(st.integers(0, 2))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del spoiled[data.draw(st.integers(0, len(spoiled))) :]
    spoiled += data.draw(st.binary(max_size=2))
    agrees(Head(encoder().prefix), bytes(spoiled))


@given(st.binary(max_size=80))
def test_any_bytes_behind_the_prefix(rest: bytes) -> None:
    prefix = encoder().prefix
    agrees(Head(prefix), prefix + rest)


def test_another_producer_is_not_read() -> None:
    header, _ = Encoder("primary", b"other id").encode(Batch.of([b"frame"]), 0, 0)
    assert not Head(encoder().prefix).parse(header)


def test_a_cut_is_not_read() -> None:
    whole = msgpack.unpackb(encoder().encode(Batch(b"", array("I")), 0, 0)[0])
    cut: dict[str, Any] = {**whole, "c": {"epoch": 1, "phase": "commit"}}
    assert not Head(encoder().prefix).parse(msgpack.packb(cut))


@pytest.mark.parametrize("vnet", [0, 10, 12])
def test_a_frame_has_a_byte_and_64_kib_at_most(vnet: int) -> None:
    head = Head(encoder().prefix)

    def takes(length: int) -> bool:
        return head.parse(head.made(0, 0, vnet, struct.pack("<I", length)))

    assert [takes(length) for length in (vnet, vnet + 1, vnet + MAX_FRAME, vnet + MAX_FRAME + 1)] == [
        False, True, True, False,
    ]  # fmt: skip


def test_numbers_from_2_to_the_63_on_are_not_read() -> None:
    prefix, rest = encoder().prefix, b"\0\xa1h\0\xa1l\xc4\0"
    head = Head(prefix)
    assert head.parse(prefix + b"\xcf" + (2**63 - 1).to_bytes(8) + b"\xa1n" + rest)
    assert head.epoch == 2**63 - 1
    assert not head.parse(prefix + b"\xcf" + (2**63).to_bytes(8) + b"\xa1n" + rest)
