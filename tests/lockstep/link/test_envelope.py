"""The format of a message: what is put in comes out, and nothing else than a message does."""

from __future__ import annotations

import struct
from array import array
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.batch import MAX_BATCH, MAX_FRAME, Batch
from lockstep.link.envelope import MAX_PART, REASONS, EnvelopeError, Message, decode, encode
from lockstep.streams import PHASES, STREAMS, Cut

BOOT = bytes(range(8))
FRAMES = b"first frame  second frame "
HEADER: dict[str, Any] = {"v": 1, "s": "primary", "b": BOOT, "e": 3, "n": 5, "h": 0, "l": struct.pack("<II", 13, 13)}
CUT = {**HEADER, "l": b"", "c": {"epoch": 4, "phase": "commit"}}


def packed(header: Any, frames: bytes = FRAMES) -> list[bytes]:
    return [msgpack.packb(header), frames]


def without(header: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in header.items() if name != key}


def reason_of(parts: Any, stream: str | None = "primary", guest: str | None = None) -> str:
    with pytest.raises(EnvelopeError) as refused:
        decode(parts, stream, guest)
    assert str(refused.value)
    return refused.value.reason


# What it looks like.


def test_a_batch_is_a_map_with_little_endian_lengths_and_the_frames() -> None:
    batch = Batch.of([b"first frame  ", b"second frame "])
    header, frames = encode(Message("primary", BOOT, 3, 5, batch))
    assert (msgpack.unpackb(header), bytes(frames)) == (HEADER, FRAMES)


def test_a_cut_is_a_map_without_frames() -> None:
    header, frames = encode(Message("primary", BOOT, 3, 5, Cut(4, "commit")))
    assert (msgpack.unpackb(header), bytes(frames)) == (CUT, b"")


def test_the_guests_name_is_there_only_where_it_has_one() -> None:
    named = encode(Message("primary", BOOT, 3, 5, Batch.of([b"first frame  ", b"second frame "]), "web-1"))
    assert msgpack.unpackb(named[0]) == {**HEADER, "g": "web-1"}


def test_encoding_copies_no_frames() -> None:
    data = memoryview(bytearray(b"x" * 100))
    assert encode(Message("primary", BOOT, 0, 0, Batch(data, array("I", [100]))))[1] is data


def test_a_message_written_by_hand_is_understood() -> None:
    """The bytes of msgpack's specification: fixmap 7, fixstr, bin 8, fixint."""
    head = bytes.fromhex(
        "87 a176 01 a173 a77072696d617279 a162 c4080001020304050607 a165 03 a16e 05 a168 00 a16c c4080d0000000d000000"
    )
    message = decode([head, FRAMES], "primary")
    assert (message.stream, message.boot, message.epoch, message.number) == ("primary", BOOT, 3, 5)
    assert isinstance(message.item, Batch)
    assert message.item.frames() == [b"first frame  ", b"second frame "]
    assert (message.item.vnet, message.item.epoch, message.guest) == (0, 3, None)


# There and back.

numbers = st.integers(0, 2**63 - 1)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    epoch = draw(numbers)
    item: Batch | Cut
    if draw(st.booleans()):
        item = Cut(draw(numbers), draw(st.sampled_from(PHASES)))
    else:
        vnet = draw(st.sampled_from([0, 10, 12]))
        frames = draw(st.lists(st.binary(min_size=vnet + 1, max_size=60), max_size=8))
        item = Batch.of(frames, vnet, epoch)
    guest = draw(st.none() | st.text(max_size=20))
    boot = draw(st.binary(min_size=8, max_size=8))
    return Message(draw(st.sampled_from(STREAMS)), boot, epoch, draw(numbers), item, guest)


def values(message: Message) -> tuple[Any, ...]:
    item = message.item
    shown = (item.frames(), item.vnet, item.epoch) if isinstance(item, Batch) else item
    return message.stream, message.boot, message.epoch, message.number, message.guest, shown


@given(messages())
def test_what_was_encoded_is_decoded(message: Message) -> None:
    parts = encode(message)
    assert values(decode(parts)) == values(message)
    assert values(decode(parts, message.stream, message.guest)) == values(message)


@given(messages(), st.dictionaries(st.text(min_size=2), st.integers(-(2**63), 2**64 - 1) | st.text(), max_size=3))
def test_unknown_keys_are_ignored(message: Message, more: dict[str, Any]) -> None:
    header, frames = encode(message)
    richer = msgpack.packb({**more, **msgpack.unpackb(header)})
    assert values(decode([richer, frames])) == values(message)


@given(messages())
def test_parts_may_be_any_buffers(message: Message) -> None:
    header, frames = encode(message)
    assert values(decode([memoryview(header), bytearray(frames)])) == values(message)


def test_the_longest_frame_passes_with_each_size_of_header() -> None:
    for vnet in (0, 10, 12):
        message = Message("primary", BOOT, 0, 0, Batch.of([bytes(MAX_FRAME + vnet)], vnet))
        assert values(decode(encode(message))) == values(message)


def test_parts_of_the_largest_size_pass() -> None:
    size = MAX_PART // 64
    message = Message("primary", BOOT, 0, 0, Batch.of([bytes(size)] * 64))
    assert values(decode(encode(message))) == values(message)


def test_a_full_batch_of_the_shortest_ethernet_frames_passes() -> None:
    count = MAX_BATCH // 14
    item = decode(encode(Message("primary", BOOT, 0, 0, Batch.of([bytes(14)] * count)))).item
    assert isinstance(item, Batch)
    assert len(item) == count


def test_a_message_without_a_guest_is_taken_where_one_is_wanted() -> None:
    assert decode(packed(HEADER), "primary", "web-1").guest is None


def test_a_guest_is_taken_where_none_is_wanted() -> None:
    assert decode(packed({**HEADER, "g": "web-1"}), "primary").guest == "web-1"


def test_a_c_of_nil_is_no_cut() -> None:
    assert isinstance(decode(packed({**HEADER, "c": None})).item, Batch)


# What is refused, and why.


@pytest.mark.parametrize("parts", [[], packed(HEADER)[:1], [*packed(HEADER), b""], packed(HEADER) * 500])
def test_a_message_has_two_parts(parts: list[bytes]) -> None:
    assert reason_of(parts) == "parts"


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_has_two_mebibytes_at_most(part: int) -> None:
    parts: list[bytes] = packed(HEADER)
    parts[part] = bytes(MAX_PART + 1)
    assert reason_of(parts) == "size"


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("nothing", b""),
        ("a number", b"\x01"),
        ("a list", msgpack.packb([1, 2])),
        ("a string", msgpack.packb("primary")),
        ("nil", b"\xc0"),
        ("a reserved byte", b"\xc1"),
        ("a map cut off", msgpack.packb(HEADER)[:-1]),
        ("bytes behind the map", msgpack.packb(HEADER) + b"\x00"),
        ("two maps", msgpack.packb(HEADER) * 2),
        ("numbers as keys", msgpack.packb({**HEADER, 7: 1})),
        ("nil as key", msgpack.packb({**HEADER, None: 1})),
        ("a list as key", b"\x81\x91\x01\x01"),
        ("text that isn't UTF-8", b"\x81\xa2\xff\xfe\x01"),
        ("lists within lists", b"\x91" * 100_000),
        ("maps within maps", b"\x81\xa1v" * 100_000),
        ("lists within lists in an unknown key", b"\x82\xa1v\x01\xa1x" + b"\x91" * 5000 + b"\xc0"),
        ("a list of 4 billion", b"\xdd\xff\xff\xff\xff"),
        ("a map of 4 billion", b"\xdf\xff\xff\xff\xff"),
        ("a string of 4 GB", b"\x81\xa1s\xdb\xff\xff\xff\xff"),
        ("bytes of 4 GB", b"\x81\xa1b\xc6\xff\xff\xff\xff"),
        ("an extension of 4 GB", b"\x81\xa1b\xc9\xff\xff\xff\xff\x05"),
        ("an extension as a whole", msgpack.packb(msgpack.ExtType(5, b"x"))),
        ("an extension as key", b"\x81\xd4\x05\x00\x01"),
        ("a timestamp as a whole", msgpack.packb(msgpack.Timestamp(1, 2))),
        ("a timestamp of 3 bytes", b"\x81\xa1x\xc7\x03\xff\x00\x00\x00"),
        ("a timestamp with too many nanoseconds", b"\x81\xa1x\xd7\xff" + b"\xff" * 8),
    ],
)
def test_part_1_is_one_map_with_names_for_keys(name: str, head: bytes) -> None:
    assert reason_of([head, FRAMES]) == "map"


#: Of every type that msgpack has.
OTHERS: list[Any] = [
    None, True, False, 0, 1, -1, 2**63, 2**64 - 1, 1.0, "1", b"1", "", b"", [], [1], {}, {"a": 1},
    msgpack.ExtType(5, b"12345678"), msgpack.Timestamp(1, 0),
]  # fmt: skip


def of_type(*types: type) -> list[Any]:
    return [value for value in OTHERS if type(value) not in types]


@pytest.mark.parametrize("key", ["v", "e", "n", "h"])
@pytest.mark.parametrize("value", [value for value in OTHERS if type(value) is not int or not 0 <= value < 2**63])
def test_numbers_are_whole_and_below_2_to_the_63(key: str, value: Any) -> None:
    """A bool is no number here, nor is 1.0."""
    assert reason_of(packed({**HEADER, key: value})) == "type"


@pytest.mark.parametrize("value", of_type(str))
def test_the_streams_name_is_a_string(value: Any) -> None:
    assert reason_of(packed({**HEADER, "s": value})) == "type"


@pytest.mark.parametrize("value", [*of_type(bytes), b"", bytes(7), bytes(9), "12345678"])
def test_the_boot_id_is_8_bytes(value: Any) -> None:
    assert reason_of(packed({**HEADER, "b": value})) == "type"


@pytest.mark.parametrize("value", [*of_type(bytes), "\0\0\0\1"])
def test_the_lengths_are_bytes(value: Any) -> None:
    assert reason_of(packed({**HEADER, "l": value})) == "type"


@pytest.mark.parametrize("value", [value for value in of_type(str) if value is not None])
def test_the_guests_name_is_a_string(value: Any) -> None:
    assert reason_of(packed({**HEADER, "g": value})) == "type"


@pytest.mark.parametrize("key", ["v", "s", "b", "e", "n", "h", "l"])
def test_each_of_them_must_be_there(key: str) -> None:
    assert reason_of(packed(without(HEADER, key))) == "type"


@pytest.mark.parametrize("version", [0, 2, 255, 2**40])
def test_another_version_is_refused(version: int) -> None:
    assert reason_of(packed({**HEADER, "v": version})) == "version"


def test_another_version_is_refused_before_anything_else_is_looked_at() -> None:
    assert reason_of(packed({"v": 2, "new": "ways"})) == "version"


@pytest.mark.parametrize("name", ["secondary", "Primary", "primary ", "", "x" * 100_000])
def test_another_streams_name_is_refused(name: str) -> None:
    assert reason_of(packed({**HEADER, "s": name})) == "stream"


def test_a_stream_that_does_not_exist_is_refused_wherever_any_is_taken() -> None:
    assert reason_of(packed({**HEADER, "s": "tertiary"}), stream=None) == "stream"


def test_another_guests_name_is_refused() -> None:
    assert reason_of(packed({**HEADER, "g": "web-2"}), guest="web-1") == "guest"


@pytest.mark.parametrize("vnet", [1, 9, 11, 13, 14, 2**32, 2**63 - 1])
def test_a_virtio_header_has_0_10_or_12_bytes(vnet: int) -> None:
    assert reason_of(packed({**HEADER, "h": vnet})) == "vnet"


@pytest.mark.parametrize("extra", [1, 2, 3, 5])
def test_the_lengths_are_4_bytes_each(extra: int) -> None:
    assert reason_of(packed({**HEADER, "l": HEADER["l"] + bytes(extra)})) == "length"


@pytest.mark.parametrize(
    ("lengths", "frames"),
    [
        ([13, 13], FRAMES + b"x"),
        ([13, 13], FRAMES[:-1]),
        ([13, 13], b""),
        ([], FRAMES),
        ([26, 26], FRAMES),
        ([0xFFFFFFFF, 27], FRAMES),  # 26 modulo 2**32
        ([0xFFFFFFFF] * 100, FRAMES),
    ],
)
def test_the_lengths_add_up_to_part_2(lengths: list[int], frames: bytes) -> None:
    raw = struct.pack(f"<{len(lengths)}I", *lengths)
    assert reason_of(packed({**HEADER, "l": raw}, frames)) == "length"


@pytest.mark.parametrize(
    ("vnet", "lengths"),
    [
        (0, [0, 26]),
        (0, [13, 0, 13]),
        (0, [0]),
        (10, [16, 10]),
        (12, [14, 12]),
        (12, [25, 1]),
        (0, [MAX_FRAME + 1]),
        (10, [MAX_FRAME + 11]),
        (12, [MAX_FRAME + 13]),
        (0, [20, MAX_PART - 20]),
    ],
)
def test_a_frame_has_at_least_a_byte_and_64_kib_at_most_besides_its_header(vnet: int, lengths: list[int]) -> None:
    raw = struct.pack(f"<{len(lengths)}I", *lengths)
    assert reason_of(packed({**HEADER, "h": vnet, "l": raw}, bytes(sum(lengths)))) == "frame"


@pytest.mark.parametrize(
    "cut",
    [
        True, False, 0, 1, "", "commit", b"", [], ["commit"], {}, {"epoch": 4}, {"epoch": 4, "phase": None},
        {"epoch": 4, "phase": "Commit"}, {"epoch": 4, "phase": b"commit"}, {"epoch": 4, "phase": ["commit"]},
        {"epoch": 4, "phase": {}}, msgpack.ExtType(5, b""),
    ],
)  # fmt: skip
def test_a_cut_is_a_map_with_one_of_three_phases(cut: Any) -> None:
    assert reason_of(packed({**CUT, "c": cut}, b"")) == "cut"


@pytest.mark.parametrize("epoch", [None, True, -1, 2**63, 4.0, "4", b"4", [4]])
def test_a_cuts_epoch_is_a_number(epoch: Any) -> None:
    assert reason_of(packed({**CUT, "c": {"epoch": epoch, "phase": "commit"}}, b"")) == "type"


@pytest.mark.parametrize(("lengths", "frames"), [(HEADER["l"], FRAMES), (b"", FRAMES), (b"\0", b""), (bytes(4), b"")])
def test_a_cut_carries_no_frames(lengths: bytes, frames: bytes) -> None:
    assert reason_of(packed({**CUT, "l": lengths}, frames)) == "cut"


# Anything at all.


def reason_or_message(parts: list[bytes]) -> str | Message:
    """One of the two; anything else that is raised is a failure."""
    try:
        return decode(parts, "primary", "web-1")
    except EnvelopeError as error:
        return error.reason


def judged(parts: list[bytes]) -> str:
    """The reason, or "" for a message whose numbers hold together."""
    found = reason_or_message(parts)
    if isinstance(found, str):
        assert found in REASONS
        return found
    assert found.stream == "primary"
    assert len(found.boot) == 8
    if isinstance(found.item, Batch):
        assert sum(found.item.lengths) == len(parts[1])
        assert all(found.item.vnet < length <= MAX_FRAME + found.item.vnet for length in found.item.lengths)
    else:
        assert found.item.phase in PHASES
        assert parts[1] == b""
    return ""


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_arbitrary_bytes_are_refused_with_a_reason(parts: list[bytes]) -> None:
    assert judged(parts) in REASONS


anything = st.recursive(
    st.sampled_from(OTHERS)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(
    st.sampled_from([HEADER, CUT]),
    st.dictionaries(st.sampled_from("vsbenhlgcx"), anything, min_size=1, max_size=3),
    st.sampled_from([FRAMES, b"", b"x"]),
)
def test_any_value_in_any_place_is_taken_or_refused_with_a_reason(
    header: dict[str, Any], changes: dict[str, Any], frames: bytes
) -> None:
    judged(packed({**header, **changes}, frames))


@settings(max_examples=300)
@given(st.sampled_from([HEADER, CUT]), st.data())
def test_flipped_bytes_are_taken_or_refused_with_a_reason(header: dict[str, Any], data: st.DataObject) -> None:
    head = bytearray(msgpack.packb(header))
    for _ in range(data.draw(st.integers(1, 4))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    judged([bytes(head), FRAMES if header is HEADER else b""])
