"""Records of digest mode read in place: as they were made, and by every byte of theirs that doesn't fit."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import CLIENT6, FIN, GUEST6, PSH, RST, SYN, URG, ethernet, ip, segment, timestamps

from lockstep.wire.frame import TCP, Frame, dissect
from services.comparer.record import NO_RECORD, Reader
from services.redirector.digest import DIGEST, KEY, WHOLE

VNETS = st.sampled_from([0, 10, 12])
ENDS6 = {"source": GUEST6, "destination": CLIENT6}


def hashes(count: int) -> bytes:
    return bytes(range(16)) * count


def record(head: bytes, chunk: int, said: bytes) -> bytes:
    return struct.pack(">BHH", 1, chunk, len(head)) + head + said


@st.composite
def cut_segments(draw: st.DrawFn) -> tuple[bytes, int, int]:
    """A segment, its payload's size, and the size of its virtio-net header."""
    size, vnet = draw(st.integers(1, 3000)), draw(VNETS)
    options = draw(st.sampled_from([b"", timestamps(1, 2), b"\1" * 40]))
    vlan = draw(st.sampled_from([(), (5,), (7, 8)]))
    ends = draw(st.sampled_from([{}, ENDS6]))
    flags = draw(st.sampled_from([0, PSH, PSH | FIN]))
    return segment(1, 2, bytes(size), flags=flags, options=options, vlan=vlan, vnet=vnet, **ends), size, vnet


def told(reader: Reader, f: Frame, shift: int) -> tuple[int, ...]:
    places = f.start, f.end, f.l3, f.l4, f.payload, reader.at, reader.hashes
    return (f.tags, f.version, reader.size, reader.chunk, reader.chunks, *(place - shift for place in places))


@given(cut_segments(), st.integers(1, 0xFFFF), st.binary(max_size=50), st.binary(max_size=50))
def test_a_digest_is_the_segments_headers_wherever_it_lies(
    cut: tuple[bytes, int, int], chunk: int, before: bytes, behind: bytes
) -> None:
    whole, size, vnet = cut
    head = whole[:-size]
    count = -(-size // chunk)
    one = record(head, chunk, hashes(count))
    f, reader, start = Frame(), Reader(), len(before)
    assert reader.read(f, before + one + behind, start, start + len(one), vnet) == DIGEST
    assert (reader.at, reader.hashes) == (start + 5, start + 5 + len(head))
    assert (reader.size, reader.chunk, reader.chunks) == (size, chunk, count)
    of_whole = Frame()
    assert dissect(of_whole, whole, vnet, len(whole)) == TCP
    for field in ("start", "l3", "l4", "payload"):
        assert getattr(f, field) == getattr(of_whole, field) + reader.at
    assert (f.tags, f.version, f.protocol, f.ethertype) == (of_whole.tags, of_whole.version, 6, of_whole.ethertype)


def expected(one: bytes, vnet: int) -> tuple[int, ...] | None:
    """The same by another way: the headers, with as many zeros behind them as the IP header's length wants."""
    chunk, length = struct.unpack_from(">HH", one, 1)
    head = one[5 : 5 + length]
    l3 = vnet + 14
    while head[l3 - 2 : l3] in (b"\x81\x00", b"\x88\xa8"):
        l3 += 4
    field, more = (l3 + 2, 0) if head[l3 - 2 : l3] == b"\x08\x00" else (l3 + 4, 40)
    size = l3 + more + int.from_bytes(head[field : field + 2], "big") - len(head)
    f = Frame()
    if len(head) != length or length < l3 + 20 or not chunk or size <= 0:
        return None
    if dissect(f, head + bytes(size), vnet, length + size) != TCP or f.payload != length:
        return None
    if len(one) != 5 + length + 16 * -(-size // chunk) or head[f.l4 + 13] & (SYN | RST | URG):
        return None
    return (f.tags, f.version, size, chunk, -(-size // chunk), vnet + 5, length + 5, f.l3 + 5, f.l4 + 5, f.payload + 5,
            5, length + 5)  # fmt: skip


@given(cut_segments(), st.data(), st.binary(max_size=90), st.binary(max_size=90))
@settings(max_examples=500)
def test_whatever_is_changed_in_a_digest_nothing_is_read_but_what_is_there(
    cut: tuple[bytes, int, int], data: st.DataObject, before: bytes, behind: bytes
) -> None:
    """Changed where lengths and kinds stand, and cut off anywhere; what lies around makes no difference."""
    whole, size, vnet = cut
    head = whole[:-size]
    chunk = data.draw(st.sampled_from([size, 1, 100, 1448]))
    broken = bytearray(record(head, chunk, hashes(-(-size // chunk))))
    for _ in range(data.draw(st.integers(0, 3))):
        broken[data.draw(st.integers(1, 5 + len(head) - 1))] = data.draw(st.integers(0, 255))
    one = bytes(broken[: data.draw(st.just(len(broken)) | st.integers(5, len(broken)))])
    f, reader = Frame(), Reader()
    kind = reader.read(f, one, 0, len(one), vnet)
    assert (told(reader, f, 0) if kind == DIGEST else None) == expected(one, vnet)
    start = len(before)
    assert reader.read(f, before + one + behind, start, start + len(one), vnet) == kind
    if kind == DIGEST:
        assert told(reader, f, start) == expected(one, vnet)


@given(st.binary(max_size=100), VNETS)
def test_arbitrary_bytes_are_no_digest(raw: bytes, vnet: int) -> None:
    kinds = {0: WHOLE, 2: KEY}
    assert Reader().read(Frame(), raw, 0, len(raw), vnet) == (kinds.get(raw[0], NO_RECORD) if len(raw) > 1 else -1)


@pytest.mark.parametrize("one", [b"", b"\0", b"\1", b"\2", b"\3frame", b"\1\0\1\0"])
def test_what_is_too_short_or_of_no_kind_is_no_record(one: bytes) -> None:
    assert Reader().read(Frame(), one, 0, len(one), 0) == NO_RECORD


@pytest.mark.parametrize("what", ["syn", "rst", "urg", "fragment", "udp", "no payload", "no chunk", "a hash too many"])
def test_what_no_redirector_makes_is_no_record(what: str) -> None:
    flags = {"syn": SYN, "rst": RST, "urg": URG}.get(what, 0)
    size = 0 if what == "no payload" else 100
    whole = segment(1, 2, bytes(size), flags=flags)
    if what == "fragment":
        whole = whole[:20] + b"\x20\0" + whole[22:]
    elif what == "udp":
        whole = ethernet(ip("10.77.0.2", "10.77.0.1", 17, whole[34:]))
    head = whole[: len(whole) - size]
    one = record(head, 0 if what == "no chunk" else 100, hashes(2 if what == "a hash too many" else 1))
    assert Reader().read(Frame(), one, 0, len(one), 0) == NO_RECORD
    sound = record(segment(1, 2, bytes(100))[:-100], 100, hashes(1))
    assert Reader().read(Frame(), sound, 0, len(sound), 0) == DIGEST


def test_a_place_outside_the_buffer_is_our_own_bug() -> None:
    for start, end in ((-1, 5), (0, 6)):
        with pytest.raises(IndexError):
            Reader().read(Frame(), bytes(5), start, end, 0)
