"""What is said about a divergence, and on its packets."""

from __future__ import annotations

from typing import Any

import pytest

from lockstep.report.report import parse
from lockstep.report.words import byte, clean, comment, describe, title

LEAST: dict[str, Any] = {
    "flow": "10.77.0.2:80 10.77.0.1:40000",
    "protocol": "tcp",
    "reason": "data",
    "offset": None,
    "primary": "",
    "secondary": "",
    "epoch": 3,
}


def said(**fields: Any) -> str:
    return describe(parse(LEAST | fields))


def test_the_title_has_ends_protocol_vlans_and_epoch() -> None:
    assert title(parse(LEAST)) == "10.77.0.2:80 → 10.77.0.1:40000 (tcp), epoch 3"
    assert title(parse(LEAST | {"vlan": [5, 77]})).endswith("(tcp, VLAN 5, VLAN 77), epoch 3")
    assert title(parse(LEAST | {"flow": "odd", "protocol": "ethertype 0x88b5"})) == "odd (ethertype 0x88b5), epoch 3"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"offset": 1_048_639, "primary": "6120", "secondary": "615f"}, "byte 1,048,639 of what this side"),
        ({"offset": 1, "primary": "6120", "secondary": "615f"}, "The primary has 0x20 ' ', the secondary 0x5f '_'."),
        ({"protocol": "udp", "offset": 4}, "byte 4 of the payload"),
        ({"reason": "fin", "offset": 3}, "One replica ended"),
        ({"reason": "syn"}, "opened the connection in different ways"),
        ({"reason": "unmatched", "offset": 3, "primary": "61"}, "nothing else at this place"),
        ({"reason": "unmatched", "offset": 3}, "every byte of the packet that waits"),
        ({"reason": "unmatched", "protocol": "udp", "primary": "61"}, "nothing else at this place"),
        ({"reason": "limit"}, "says nothing about what the replicas sent"),
        ({"reason": "secondary_contradicts_itself"}, "at which it had spoken before"),
        ({"reason": "odd\x1b[2J"}, "`odd\ufffd[2J`"),
        ({"primary_frames": [{"frame": "00"}]}, "None of the secondary's latest packets belongs to this flow."),
    ],
)
def test_each_reason_in_words(fields: dict[str, Any], words: str) -> None:
    assert words in said(**fields)


def test_a_contradiction_says_what_it_was_and_is() -> None:
    frames = [{"frame": "61", "place": 0, "number": 1}, {"frame": "62", "place": 0, "number": 2}]
    words = said(reason="secondary_contradicts_itself", offset=0, secondary_frames=frames)
    assert "It was 0x61 'a' and is now 0x62 'b'." in words


def test_syns_are_not_compared_byte_by_byte_in_words() -> None:
    assert "0x" not in said(reason="syn", primary="12", secondary="02")


def test_the_comment_of_a_packet_at_the_place_says_what_differs_where() -> None:
    entry = {"frame": "0061", "number": 9, "place": 1, "time": "2026-07-30T10:00:00.000Z"}
    fields = LEAST | {"offset": 70, "primary": "61", "secondary": "62", "time": "2026-07-30T10:00:00.0125Z"}
    report = parse(fields | {"primary_frames": [entry]})
    words = comment(report, report.packets[0])
    assert words.startswith(
        "primary, frame 9, 12.5 ms before: DIVERGENCE (data) at byte 1 of this frame, byte 70 of the"
    )
    assert "The primary has 0x61 'a', the secondary 0x62 'b'." in words


def test_the_comment_of_another_packet_says_that_it_is_context() -> None:
    report = parse(LEAST | {"secondary_frames": [{"frame": "00", "number": 4}]})
    assert comment(report, report.packets[0]) == "secondary, frame 4, at an unknown time: context of the divergence."


def test_the_comment_of_a_segment_says_what_it_was_cut_out_of() -> None:
    report = parse(LEAST | {"secondary_frames": [{"frame": "00", "size": 60_054, "cut": 29_000}]})
    assert "out of a super-frame of 60,054 bytes, its payload from byte 29,000 on" in comment(report, report.packets[0])


@pytest.mark.parametrize(("value", "words"), [(0x41, "0x41 'A'"), (0x7F, "0x7f"), (0x0A, "0x0a"), (0xE9, "0xe9")])
def test_a_byte(value: int, words: str) -> None:
    assert byte(value) == words


def test_what_drives_a_terminal_is_taken_out() -> None:
    assert clean("a\x1b]0;x\x07\r\n\x9b é→") == "a\ufffd]0;x\ufffd\ufffd\ufffd\ufffd é→"
