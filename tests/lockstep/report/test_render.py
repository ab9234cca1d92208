"""A whole report as text."""

from __future__ import annotations

import string
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from packets import PSH, SYN, segment

from lockstep.report.recorder import capture
from lockstep.report.render import render
from lockstep.report.report import ReportError, parse

FIELDS: dict[str, Any] = {
    "time": "2026-07-30T10:15:00.100000+00:00",
    "flow": "10.77.0.2:80 10.77.0.1:40000",
    "protocol": "tcp",
    "reason": "data",
    "offset": 5,
    "primary": b"hello world".hex(),
    "secondary": b"hello_world".hex(),
    "epoch": 0,
}

BY_HAND = """\
10.77.0.2:80 → 10.77.0.1:40000 (tcp), epoch 0
2026-07-30 10:15:00.100000 UTC

The two replicas sent different bytes at one place. The place is byte 5 of what this side of the
connection sends, counted from 0. The primary has 0x20 ' ', the secondary 0x5f '_'.

        byte  primary                              secondary
           0  68 65 6c 6c 6f[20]77 6f  hello wo    68 65 6c 6c 6f[5f]77 6f  hello_wo
           8  72 6c 64                 rld         72 6c 64                 rld

primary, frame 2, 0.4 ms before, 65 bytes:
  Ethernet 52:54:00:00:00:02 → 52:54:00:00:00:01
  IPv4 10.77.0.2 → 10.77.0.1, 51 bytes, ttl 64, id 1
  TCP 80 → 40000 [PSH ACK] seq 5001 ack 901 window 1000
          54  68 65 6c 6c 6f[20]77 6f 72 6c 64                 hello world

secondary, frame 3, 0.0 ms before, 65 bytes:
  Ethernet 52:54:00:00:00:02 → 52:54:00:00:00:01
  IPv4 10.77.0.2 → 10.77.0.1, 51 bytes, ttl 64, id 1
  TCP 80 → 40000 [PSH ACK] seq 5001 ack 901 window 1000
          54  68 65 6c 6c 6f[5f]77 6f 72 6c 64                 hello_world

Other frames of this flow, oldest first:
  primary           1  1,234.0 ms before      54 bytes  TCP 80 → 40000 [SYN ACK] seq 5000 ack 901 window 1000"""


def entry(frame: bytes, time: str, number: int, place: int | None = None) -> dict[str, Any]:
    told = {"frame": frame.hex(), "time": time, "number": number, "size": len(frame), "payload": 54}
    return told if place is None else told | {"place": place}


def test_a_report() -> None:
    primary = [
        entry(segment(5001, 901, b"hello world", flags=PSH), "2026-07-30T10:15:00.099600Z", 2, 59),
        entry(segment(5000, 901, flags=SYN), "2026-07-30T10:14:58.866000Z", 1),
    ]
    secondary = [entry(segment(5001, 901, b"hello_world", flags=PSH), "2026-07-30T10:15:00.100000Z", 3, 59)]
    assert render(parse(FIELDS | {"primary_frames": primary, "secondary_frames": secondary})) == BY_HAND


def test_without_packets_the_bytes_that_the_comparer_told_are_shown() -> None:
    head, _, _ = BY_HAND.partition("\n\nprimary, frame 2")
    assert render(parse(FIELDS)) == head


def test_a_byte_that_one_side_lacks_is_marked() -> None:
    text = render(parse(FIELDS | {"reason": "unmatched", "primary": "616263", "secondary": ""}))
    assert "\n           5 [61]62 63                 abc        [--]\n" in text + "\n"


def test_a_difference_that_was_not_kept_is_said_to_lie_behind() -> None:
    text = render(parse(FIELDS | {"protocol": "udp", "offset": 40, "primary": "00" * 32, "secondary": "00" * 32}))
    assert "[" not in text
    assert text.endswith("the difference lies behind what was kept of them.")


def test_of_syns_it_is_said_what_the_bytes_are() -> None:
    text = render(parse(FIELDS | {"reason": "syn", "offset": None, "primary": "12", "secondary": "02"}))
    assert "[12]" in text
    assert "SYNs' flags, ack, length of options" in text


def test_of_a_long_packet_only_what_is_around_the_place_is_shown() -> None:
    frame = segment(5001, 901, bytes(range(256)) * 4)
    text = render(parse(FIELDS | {"primary_frames": [entry(frame, "2026-07-30T10:15:00Z", 1, 54 + 300)]}))
    rows = [line for line in text.splitlines() if line.startswith("  ") and "Other" not in line][-4:]
    assert [row.split()[0] for row in rows] == ["330", "346", "362", "378"]
    assert "[2c]" in rows[1]


def test_a_fin_at_the_end_and_a_place_that_was_not_kept() -> None:
    frame = segment(5001, 901, b"bye", flags=1)
    late = entry(frame, "2026-07-30T10:15:00Z", 1, len(frame))
    assert "The place is behind its last byte." in render(parse(FIELDS | {"primary_frames": [late]}))
    late |= {"place": 9000, "size": 9500}
    assert "The place is byte 9,000; 57 were kept." in render(parse(FIELDS | {"primary_frames": [late]}))


def test_a_frame_that_nobody_can_decode_is_shown_in_hex() -> None:
    text = render(parse(FIELDS | {"primary_frames": [{"frame": "0102", "place": 1}, {"frame": "0304"}]}))
    assert "           0  01[02]" in text
    assert text.endswith("03 04 …")


# --- anything

numbers = st.integers(-(2**64), 2**64) | st.integers(-2, 100)
texts = (
    st.text(max_size=20) | st.text(string.hexdigits, max_size=40) | st.sampled_from(["tcp", "udp", "a b", "2026-07-30"])
)
values = st.none() | st.booleans() | numbers | st.floats() | texts
packet_fields = st.dictionaries(
    st.sampled_from(["frame", "time", "number", "size", "payload", "payload_end", "place", "cut"]), values
)
hexes = st.binary(max_size=120).map(bytes.hex)
places = st.integers(0, 130) | st.integers(0, 2**63 - 1)
some_packets = st.lists(
    st.fixed_dictionaries(
        {"frame": hexes | st.just(segment(5001, 901, b"hello").hex())},
        optional={
            "number": places,
            "size": places,
            "payload": places,
            "payload_end": places,
            "place": places,
            "cut": places,
            "time": st.datetimes().map(lambda moment: moment.isoformat()),
        },
    ),
    max_size=4,
)
reports = st.fixed_dictionaries(
    {
        "flow": st.text(max_size=50),
        "protocol": st.sampled_from(["tcp", "udp", "icmp", "\x1b[31m"]),
        "reason": st.sampled_from(["data", "fin", "syn", "unmatched", "limit", "secondary_contradicts_itself", "\n"]),
        "primary": hexes,
        "secondary": hexes,
    },
    optional={
        "offset": st.none() | st.integers(-(2**63), 2**63 - 1),
        "epoch": places,
        "vlan": st.lists(st.integers(0, 4095), max_size=5),
        "time": st.datetimes().map(lambda moment: moment.isoformat()),
        "primary_frames": some_packets,
        "secondary_frames": some_packets,
    },
)
garbage = st.dictionaries(
    st.sampled_from([*FIELDS, "vlan", "version", "primary_frames", "secondary_frames"]),
    values | st.lists(values | packet_fields, max_size=3) | packet_fields,
)


@given(reports)
def test_any_report_is_rendered_and_drives_no_terminal(fields: dict[str, Any]) -> None:
    text = render(parse(fields))
    assert all(char == "\n" or char.isprintable() for char in text)


@given(garbage | st.builds(lambda base, spoilt: base | spoilt, reports, garbage))
def test_anything_is_a_report_or_is_refused(fields: dict[str, Any]) -> None:
    try:
        report = parse(fields)
    except ReportError:
        return
    assert render(report)


@given(reports)
def test_any_report_from_1970_on_becomes_a_capture(fields: dict[str, Any]) -> None:
    report = parse(fields)
    moments = [moment for packet in report.packets if (moment := packet.time or report.time)]
    if all(1970 <= moment.year <= 2500 for moment in moments):
        assert capture(report).count(b"\6\0\0\0") >= len(report.packets)
