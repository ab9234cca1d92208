"""The bytes of both sides around a place, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from lockstep.report.place import Sides, first_difference, sides
from lockstep.report.report import parse


def report(**fields: Any) -> Any:
    least = {"flow": "a b", "protocol": "tcp", "reason": "data", "offset": None, "primary": "", "secondary": ""}
    for name in ("primary", "secondary"):
        if name in fields:
            fields[name] = fields[name].hex()
    return parse(least | fields)


def packet(frame: bytes, place: int | None, payload: int = 4, **more: Any) -> dict[str, Any]:
    return {"frame": frame.hex(), "payload": payload, **({} if place is None else {"place": place}), **more}


@pytest.mark.parametrize(
    ("left", "right", "at"),
    [(b"", b"", None), (b"ab", b"ab", None), (b"ab", b"ac", 1), (b"ab", b"a", 1), (b"", b"a", 0), (b"abc", b"xbx", 0)],
)
def test_the_first_difference(left: bytes, right: bytes, at: int | None) -> None:
    assert first_difference(left, right) == at


def test_of_tcp_the_comparer_tells_from_before_the_difference_on() -> None:
    found = sides(report(offset=1000, primary=b"hello world", secondary=b"hello_world"))
    assert found == Sides(("primary", "secondary"), b"hello world", b"hello_world", 995, 5)
    assert found.differing() == (0x20, 0x5F)


def test_of_an_unmatched_segment_only_one_side_has_bytes() -> None:
    found = sides(report(reason="unmatched", offset=1000, primary=b"abc"))
    assert (found.begin, found.mark, found.differing()) == (1000, 0, None)


def test_of_a_datagram_the_comparer_tells_from_the_beginning_on() -> None:
    found = sides(report(protocol="udp", offset=4, primary=b"answer", secondary=b"answxr"))
    assert (found.begin, found.mark, found.differing()) == (0, 4, (0x65, 0x78))


def test_a_difference_behind_what_was_told_of_a_datagram_has_no_mark() -> None:
    found = sides(report(protocol="udp", offset=40, primary=bytes(32), secondary=bytes(32)))
    assert (found.begin, found.mark) == (0, None)


def test_syns_have_no_place() -> None:
    found = sides(report(reason="syn", primary=b"\x12ab", secondary=b"\x12ac"))
    assert (found.begin, found.mark) == (None, 2)


def test_packets_at_the_place_tell_more_than_the_comparer() -> None:
    """The payloads begin at 4 and 6; 3 and 1 bytes of them lie in front of the place, so 1 is shown."""
    ours, theirs = packet(b"HEADabcdEF", 7), packet(b"HEADERcXEF", 7, payload=6)
    found = sides(
        report(
            offset=3, primary=b"d", secondary=b"X", primary_frames=[ours], secondary_frames=[theirs, packet(b"", None)]
        )
    )
    assert found == Sides(("primary", "secondary"), b"cdEF", b"cXEF", 2, 1)


def test_padding_behind_the_payload_is_not_shown() -> None:
    ours, theirs = packet(b"HEADabcd\0\0", 7, payload_end=8), packet(b"HEADabcX\0\0", 7, payload_end=8)
    found = sides(report(offset=3, primary_frames=[ours], secondary_frames=[theirs]))
    assert (found.left, found.right) == (b"abcd", b"abcX")


def test_a_fin_is_a_byte_that_one_side_lacks() -> None:
    ours, theirs = packet(b"HEADabc", 7), packet(b"HEADabcde", 7)
    found = sides(report(reason="fin", offset=3, primary_frames=[ours], secondary_frames=[theirs]))
    assert (found.left, found.right, found.begin, found.mark) == (b"abc", b"abcde", 0, 3)
    assert found.differing() is None


def test_of_packets_sent_again_the_last_is_shown() -> None:
    ours = [packet(b"HEADold", 4, number=1), packet(b"HEADnew", 4, number=2)]
    found = sides(report(offset=0, primary_frames=ours, secondary_frames=[packet(b"HEADxxx", 4)]))
    assert found.left == b"new"


def test_a_contradiction_is_between_two_packets_of_the_secondary() -> None:
    theirs = [packet(b"HEADabc", 5, number=1), packet(b"HEADx", 4, number=2)]
    found = sides(
        report(reason="secondary_contradicts_itself", offset=1, secondary=b"x", secondary_frames=theirs, primary=b"")
    )
    assert found == Sides(("secondary, before", "secondary, now"), b"bc", b"x", 1, 0)


@pytest.mark.parametrize("place", [100, 1 << 62])
def test_a_place_behind_what_was_kept_falls_back_to_what_was_told(place: int) -> None:
    ours, theirs = packet(b"HEADsame", place), packet(b"HEADsame", place)
    found = sides(report(offset=3, primary=b"a", secondary=b"b", primary_frames=[ours], secondary_frames=[theirs]))
    assert (found.left, found.right) == (b"a", b"b")
