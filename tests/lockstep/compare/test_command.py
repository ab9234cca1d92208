"""`lockstep compare` as it is called: exit codes, JSON, and words."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import mutate
import pytest
from captures import conversations
from mutate import Record, write
from packets import GUEST, GUEST_MAC, segment, udp

from lockstep.compare import CompareOptions, Limits, compare_captures
from lockstep.compare.command import parse_guests


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two captures that differ in byte 3 of the second segment, and in a datagram that the second lacks."""
    a = [segment(0, 5, b"first "), segment(6, 5, b"second"), udp(b"only here")]
    b = [segment(0, 5, b"first "), segment(6, 5, b"secOnd")]
    return (
        write(tmp_path / "a.pcap", [Record(frame, 1000 * n) for n, frame in enumerate(a)]),
        write(tmp_path / "b.pcapng.gz", [Record(frame, 1000 * n) for n, frame in enumerate(b)]),
    )


def test_json(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_captures(CompareOptions(*pair, json=True)) == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert isinstance(found.pop("seconds"), float)
    assert found == {
        "frames": {"primary": 3, "secondary": 2},
        "flows": 2,
        "released": 1,
        "unchecked": 0,
        "held": 2,
        "divergences": [
            {
                "flow": "10.77.0.2:80 10.77.0.1:40000", "reason": "data", "offset": 9,
                "primary_frame": 2, "secondary_frame": 2,
            },
            {
                "flow": "10.77.0.2:53 10.77.0.1:40000", "reason": "unmatched", "offset": 0,
                "primary_frame": 3, "secondary_frame": None,
            },
        ],
    }  # fmt: skip


def test_words(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_captures(CompareOptions(*pair)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "10.77.0.2:80 10.77.0.1:40000: data at byte 9, primary frame 2, secondary frame 2",
        "10.77.0.2:53 10.77.0.1:40000: unmatched at byte 0, primary frame 3",
    ]
    assert lines[2].startswith(
        f"different in 2 flows: 3 frames of {pair[0]} and 2 of {pair[1]} in 2 flows, 0 unchecked, "
    )
    assert compare_captures(CompareOptions(pair[0], pair[0])) == 0
    assert capsys.readouterr().out.startswith("equal: 3 frames of ")


@pytest.mark.parametrize("suffix", ["pcap", "pcapng", "pcap.gz", "pcapng.gz"])
def test_any_format_against_any(tmp_path: Path, suffix: str) -> None:
    records = conversations(5)
    a, b = write(tmp_path / "a.pcap", records), write(tmp_path / f"b.{suffix}", records)
    assert compare_captures(CompareOptions(a, b)) == 0
    assert compare_captures(CompareOptions(b, a)) == 0


def test_guests(pair: tuple[Path, Path]) -> None:
    for guest in ("10.77.0.1", "fd77::9", "52:54:00:00:00:01", "52-54-0-0-0-1"):
        assert compare_captures(CompareOptions(*pair, guests=(guest,))) == 0
    for guest in (GUEST, GUEST_MAC.hex(":"), GUEST_MAC.hex("-").upper()):
        assert compare_captures(CompareOptions(*pair, guests=("10.9.9.9", guest))) == 1


@pytest.mark.parametrize("text", ["", "10.0.0", "52:54:00", "nobody", "10.0.0.1/8"])
def test_no_guest(text: str, pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="neither an IP nor a MAC address"):
        parse_guests((text,))
    assert compare_captures(CompareOptions(*pair, guests=(text,))) == 64
    assert capsys.readouterr().err == f"--guest: {text!r} is neither an IP nor a MAC address\n"


def test_files_that_cannot_be_read(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file, the offset and why, in one line; and nothing of what was compared before."""
    bad = tmp_path / "bad.pcap"
    bad.write_bytes(pair[0].read_bytes()[:-3])
    empty = tmp_path / "empty"
    empty.touch()
    for path, why in (
        (bad, "at byte 176: cut off: 64 of 67 bytes (--partial compares what stands before)"),
        (empty, "at byte 0: the file is empty"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (Path(__file__), "at byte 0: neither pcap nor pcapng: it starts with 22 22 22 60"),
    ):
        for options in (CompareOptions(path, pair[0], json=True), CompareOptions(pair[0], path)):
            assert compare_captures(options) == 65
            printed = capsys.readouterr()
            assert printed.out == ""
            assert printed.err == f"{path}: {why}\n"


def test_a_file_that_ends_inside_a_record_counts_as_ending_before_it(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `--partial`. What is cut is told on stderr; a file without its header is none."""
    whole = pair[0].read_bytes()
    cut, zipped, header = (tmp_path / name for name in ("cut.pcap", "cut.pcap.gz", "header.pcap"))
    cut.write_bytes(whole[:-3])
    zipped.write_bytes(gzip.compress(whole)[:-12])
    header.write_bytes(whole[:23])
    assert compare_captures(CompareOptions(cut, cut, json=True, partial=True)) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["frames"] == {"primary": 2, "secondary": 2}
    assert printed.err == f"{cut}: at byte 176: cut off: 64 of 67 bytes; compared up to there\n"
    made = tmp_path / "report.pcapng"
    assert compare_captures(CompareOptions(cut, pair[1], partial=True, report=made)) == 1
    assert compare_captures(CompareOptions(zipped, zipped, partial=True)) == 0
    assert compare_captures(CompareOptions(zipped, zipped)) == 65
    assert compare_captures(CompareOptions(header, header, partial=True)) == 65


def test_a_report(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "report.pcapng"
    assert compare_captures(CompareOptions(*pair, report=made)) == 1
    assert made.stat().st_size > 400
    assert f"report: {made}" in capsys.readouterr().out


def test_reports_that_cannot_be_written(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """No folder, a capture itself, and a capture that can't be read twice."""
    before = pair[0].read_bytes()
    assert compare_captures(CompareOptions(*pair, report=tmp_path / "none" / "r.pcapng")) == 64
    assert compare_captures(CompareOptions(*pair, report=pair[0])) == 64
    assert compare_captures(CompareOptions(*pair, report=Path("/dev/full"))) == 64
    assert pair[0].read_bytes() == before
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert compare_captures(CompareOptions(pair[0], pipe, report=tmp_path / "r.pcapng")) == 64


def test_a_name_that_is_no_text_is_printed_all_the_same(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes that are no UTF-8 can't be written to a strict stdout as they are."""
    odd = pair[0].rename(tmp_path / os.fsdecode(b"\xff.pcap"))
    assert compare_captures(CompareOptions(odd, odd)) == 0
    assert "\\udcff.pcap" in capsys.readouterr().out


def test_limits_are_settings(tmp_path: Path) -> None:
    a = write(tmp_path / "a.pcap", [Record(udp(bytes(500), dport=port), port) for port in range(1, 50)])
    b = write(tmp_path / "b.pcap", [])
    assert compare_captures(CompareOptions(a, b, limits=Limits(max_flows=4))) == 1


def test_disguised_files(tmp_path: Path) -> None:
    """The whole way, through files."""
    from random import Random

    records = conversations(11, evil=False)
    a = write(tmp_path / "a.pcapng", records)
    b = write(tmp_path / "b.pcap.gz", mutate.disguised(records, Random(1)))
    assert compare_captures(CompareOptions(a, b)) == 0
