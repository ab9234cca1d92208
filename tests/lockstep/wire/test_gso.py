"""Cutting super-frames: what a card would send for the two parts is what it would have sent for the whole."""

from __future__ import annotations

import packets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packets import ACK, FIN, PSH, segment

from lockstep.wire import gso, vnet
from lockstep.wire.frame import TCP, Frame, dissect


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("vlan", [(), (77,)])
@given(size=st.integers(201, 900), cut=st.integers(1, 8), seq=st.integers(0, 0xFFFFFFFF))
def test_the_parts_say_what_the_whole_says(v6: bool, vlan: tuple[int, ...], size: int, cut: int, seq: int) -> None:
    ends = {"source": packets.GUEST6, "destination": packets.CLIENT6} if v6 else {}
    payload = bytes(i & 0xFF for i in range(size))
    at = min(cut, (size - 1) // 100) * 100

    def made(place: int, part: bytes, flags: int, ident: int) -> bytes:
        step = 100 if len(part) > 100 else 0
        return segment(
            seq + place, 5, part, flags=flags, partial=True, vnet=12, gso_size=step, vlan=vlan, ident=ident, **ends
        )

    whole = segment(
        seq, 5, payload, flags=PSH | FIN | 0x80, partial=True, vnet=12, gso_size=100, vlan=vlan, ident=9, **ends
    )
    f = Frame()
    assert dissect(f, whole, 12, len(whole)) == TCP
    first, rest = gso.split(f, whole, 12, at)
    assert first == made(0, payload[:at], ACK | 0x80, 9)
    assert rest == made(at, payload[at:], ACK | PSH | FIN, 9 + at // 100)


def test_the_checksum_of_a_part_can_be_finished() -> None:
    whole = segment(7, 5, bytes(range(250)), partial=True, vnet=10, gso_size=100)
    f = Frame()
    dissect(f, whole, 10, len(whole))
    first, _ = gso.split(f, whole, 10, 100)
    assert vnet.finished(first, 0, len(first), 10) == segment(7, 5, bytes(range(100)))


def test_only_a_tcp_super_frame_has_a_segment_size() -> None:
    assert gso.segment_size(segment(1, 1, b"x" * 300, partial=True, vnet=10, gso_size=100), 10) == 100
    assert gso.segment_size(segment(1, 1, b"x", partial=True, vnet=10), 10) == 0
    assert gso.segment_size(segment(1, 1, b"x"), 0) == 0


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("vlan", [(), (77,)])
@given(size=st.integers(1, 900), step=st.integers(1, 300), seq=st.integers(0, 0xFFFFFFFF))
def test_all_segments_say_what_the_whole_says(v6: bool, vlan: tuple[int, ...], size: int, step: int, seq: int) -> None:
    ends = {"source": packets.GUEST6, "destination": packets.CLIENT6} if v6 else {}
    more = {"partial": True, "vnet": 10, "vlan": vlan, **ends}
    payload = bytes(i & 0xFF for i in range(size))
    places = range(0, size, step)
    flags = [0] * len(places)
    flags[0] |= 0x80
    flags[-1] |= FIN | PSH
    whole = segment(seq, 5, payload, flags=PSH | FIN | 0x80, gso_size=step, ident=9, **more)
    f = Frame()
    assert dissect(f, whole, 10, len(whole)) == TCP
    assert gso.segments(f, whole, 10) == [
        segment(seq + at, 5, payload[at : at + step], flags=flag, ident=9 + n, **more)
        for n, (at, flag) in enumerate(zip(places, flags, strict=True))
    ]


@pytest.mark.parametrize("step", [0, 7])
def test_a_super_frame_of_nothing_or_of_too_many_segments_is_not_cut(step: int) -> None:
    whole = segment(1, 5, bytes(7 * gso.MOST_SEGMENTS + 1), partial=True, vnet=10, gso_size=1)
    whole = whole[:4] + step.to_bytes(2, "little") + whole[6:]
    f = Frame()
    dissect(f, whole, 10, len(whole))
    assert gso.segments(f, whole, 10) == []
    exact = segment(1, 5, bytes(7 * gso.MOST_SEGMENTS), partial=True, vnet=10, gso_size=7)
    dissect(f, exact, 10, len(exact))
    assert len(gso.segments(f, exact, 10)) == gso.MOST_SEGMENTS


@given(header=st.binary(min_size=10, max_size=10), body=st.binary(max_size=120))
def test_any_header_before_any_frame_is_cut_or_refused(header: bytes, body: bytes) -> None:
    f = Frame()
    for frame in (header + body, b"\1\1" + header[2:] + segment(1, 2, body), b"\1\5" + header[2:] + packets.udp(body)):
        dissect(f, frame, 10, len(frame))
        for part in gso.segments(f, frame, 10):
            assert len(part) <= len(frame)
