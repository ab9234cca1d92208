"""What is a report, and what is not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lockstep.report.report import MOST_BYTES, ReportError, parse, read

LEAST: dict[str, Any] = {
    "flow": "10.77.0.2:80 10.77.0.1:40000",
    "protocol": "tcp",
    "reason": "data",
    "offset": 5,
    "primary": "6162",
    "secondary": "",
    "epoch": 3,
}


def test_what_the_status_tells_is_a_report() -> None:
    report = parse(LEAST)
    assert (report.flow, report.protocol, report.reason) == ("10.77.0.2:80 10.77.0.1:40000", "tcp", "data")
    assert (report.offset, report.primary, report.secondary, report.epoch) == (5, b"ab", b"", 3)
    assert (report.vlan, report.time, report.packets) == ((), None, ())


def test_a_place_can_lie_before_the_first_number_seen_or_nowhere() -> None:
    assert parse(LEAST | {"offset": -7}).offset == -7
    assert parse(LEAST | {"offset": None}).offset is None


def test_packets_come_in_the_order_in_which_they_arrived() -> None:
    times = ["2026-07-30T10:00:00.000002+00:00", "2026-07-30T10:00:00.000001Z", "2026-07-30T12:00:00.000003+02:00"]
    ours = [{"frame": "00", "number": number, "time": time} for number, time in enumerate(times)]
    theirs = [{"frame": "01", "number": 9, "time": times[0], "place": 0, "size": 500}]
    report = parse(LEAST | {"primary_frames": ours, "secondary_frames": theirs})
    assert [(p.side, p.number) for p in report.packets] == [
        ("primary", 1),
        ("primary", 0),
        ("secondary", 9),
        ("primary", 2),
    ]
    assert report.packets[3].time == datetime(2026, 7, 30, 10, 0, 0, 3, tzinfo=UTC)
    assert [(p.frame, p.size) for p in report.here("secondary")] == [(b"\1", 500)]
    assert report.here("primary") == []


def test_a_whole_report_is_of_the_divergence_with_the_same_words() -> None:
    whole = parse(LEAST | {"primary_frames": [{"frame": "00"}], "time": "2026-07-30T10:00:00Z"})
    assert whole.is_of(LEAST)
    for name, value in (("offset", 6), ("primary", "6163"), ("epoch", 4), ("vlan", [5]), ("flow", "x")):
        assert not whole.is_of(LEAST | {name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"flow": None},
        {"reason": 7},
        {"protocol": b"tcp"},
        {"offset": "5"},
        {"offset": True},
        {"offset": 1 << 63},
        {"offset": 1.5},
        {"epoch": -1},
        {"primary": "6"},
        {"primary": "zz"},
        {"secondary": None},
        {"primary": "00" * ((1 << 17) + 1)},
        {"vlan": 5},
        {"vlan": [5000]},
        {"vlan": ["5"]},
        {"time": "yesterday"},
        {"time": 1785405600},
        {"time": "0001-01-01T00:00:00+14:00"},
        {"version": 2},
        {"version": None},
        {"primary_frames": {}},
        {"primary_frames": [[]]},
        {"secondary_frames": [{}]},
        {"secondary_frames": [{"frame": "0"}]},
        {"secondary_frames": [{"frame": "00", "place": -1}]},
        {"secondary_frames": [{"frame": "00", "number": "1"}]},
        {"secondary_frames": [{"frame": "00"}] * 65},
    ],
)
def test_what_does_not_fit_is_no_report(wrong: dict[str, Any]) -> None:
    with pytest.raises(ReportError):
        parse(LEAST | wrong)


@pytest.mark.parametrize("name", list(LEAST))
def test_every_field_of_the_status_is_needed_but_a_place(name: str) -> None:
    fields = {key: value for key, value in LEAST.items() if key != name}
    if name in ("offset", "epoch"):
        parse(fields)
    else:
        with pytest.raises(ReportError, match=name):
            parse(fields)


def test_unknown_fields_are_ignored() -> None:
    assert parse(LEAST | {"more": {}, "key": 1}) == parse(LEAST)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\r\r\n pcapng",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"offset": ' + b"9" * 5000 + b"}",
        b" " * (MOST_BYTES + 1),
    ],
)
def test_a_file_that_is_no_report_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ReportError, match=r"x\.json"):
        read(path)


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="No such file"):
        read(tmp_path / "missing.json")
    with pytest.raises(ReportError, match="Is a directory"):
        read(tmp_path)


def test_a_file_gives_its_fields(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(LEAST))
    assert read(tmp_path / "x.json") == LEAST
