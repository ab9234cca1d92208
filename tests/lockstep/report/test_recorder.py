"""Divergences on disk: what is in the files, how many there are, and that nothing gets in the way."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packets import PSH, segment

from lockstep.capture.pcapfile import read_packets
from lockstep.report import SNAP, recorder
from lockstep.report.recorder import QUEUE, Recorder, as_json, flow_name, nanoseconds, whole_reports
from lockstep.report.report import parse, read

OURS, THEIRS = segment(5001, 901, b"hello world", flags=PSH), segment(5001, 901, b"hello_world", flags=PSH)
LONG = segment(5012, 901, bytes(range(256)) * 20)[:SNAP]

#: What the comparer tells at the monotonic time 1000.5.
FIELDS: dict[str, Any] = {
    "flow": "10.77.0.2:80 10.77.0.1:40000",
    "protocol": "tcp",
    "reason": "data",
    "offset": 5,
    "primary": b"hello world".hex(),
    "secondary": b"hello_world".hex(),
    "epoch": 0,
    "primary_frames": [
        {"frame": OURS, "at": 1000.0, "number": 7, "size": 65, "payload": 54, "payload_end": 65, "place": 59},
        {"frame": LONG, "at": 1000.25, "number": 8, "size": 5174, "payload": 54, "payload_end": 5174},
    ],
    "secondary_frames": [
        {"frame": THEIRS, "at": 1000.5, "number": 3, "size": 65, "payload": 54, "payload_end": 65, "place": 59}
    ],
}
WALL = 1_785_406_500.5  # 2026-07-30 10:15:00.5 UTC


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what time it is for the recorder."""

    def set_to(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: seconds)

    set_to(WALL)
    return set_to


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Recorder]]:
    made: list[Recorder] = []

    def make(folder: Path | None = None, most_files: int = 100, most_bytes: int = 1 << 20) -> Recorder:
        made.append(Recorder(folder or tmp_path / "captures", most_files, most_bytes))
        return made[-1]

    yield make
    for one in made:
        one.close()


def settled(one: Recorder, count: int) -> dict[str, int]:
    """Its counters once it is done with as many."""
    deadline = time.monotonic() + 10
    while sum(one.counters[name] for name in ("written", "failed", "dropped")) < count:
        assert time.monotonic() < deadline, one.counters
        time.sleep(0.005)
    return one.counters


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what is written


def test_a_divergence_becomes_two_files_for_their_owner_alone(
    make: Callable[..., Recorder], clock: Callable[[float], None], tmp_path: Path
) -> None:
    one = make()
    one.take(FIELDS, 1000.5)
    assert settled(one, 1) == {"written": 1, "dropped": 0, "failed": 0, "removed": 0}
    stem = "20260730T101500.500000Z-10.77.0.2_80-10.77.0.1_40000"
    assert files(tmp_path / "captures") == [f"{stem}.json", f"{stem}.pcapng"]
    for path in (tmp_path / "captures").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "captures").stat().st_mode) == 0o700


def test_the_report_has_the_frames_in_hex_and_times_of_the_day(
    make: Callable[..., Recorder], clock: Callable[[float], None], tmp_path: Path
) -> None:
    one = make()
    one.take(FIELDS, 1000.5)
    settled(one, 1)
    (path,) = (tmp_path / "captures").glob("*.json")
    told = read(path)
    assert told["time"] == "2026-07-30T10:15:00.500000+00:00"
    assert told["primary_frames"][0] == {
        "frame": OURS.hex(),
        "time": "2026-07-30T10:15:00.000000+00:00",
        "number": 7,
        "size": 65,
        "payload": 54,
        "payload_end": 65,
        "place": 59,
    }
    assert {name: told[name] for name in FIELDS if not name.endswith("_frames")} == {
        name: value for name, value in FIELDS.items() if not name.endswith("_frames")
    }


@pytest.mark.needs("tshark")
def test_wireshark_shows_both_sides_and_what_differs(
    make: Callable[..., Recorder], clock: Callable[[float], None], tmp_path: Path
) -> None:
    one = make()
    one.take(FIELDS, 1000.5)
    settled(one, 1)
    (path,) = (tmp_path / "captures").glob("*.pcapng")
    names = ("frame.interface_name", "frame.time_epoch", "frame.len", "frame.cap_len", "tcp.seq_raw", "frame.comment")
    arguments = [argument for name in names for argument in ("-e", name)]
    shown = subprocess.run(
        ["tshark", "-r", path, "-T", "fields", "-E", "separator=|", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines() == [
        "primary|1785406500.000000000|65|65|5001|primary, frame 7, 500.0 ms before: DIVERGENCE (data) at byte 59 of "
        "this frame, byte 5 of the stream. The two replicas sent different bytes at one place. The place is byte 5 of "
        "what this side of the connection sends, counted from 0. The primary has 0x20 ' ', the secondary 0x5f '_'.",
        "primary|1785406500.250000000|5174|2048|5012|primary, frame 8, 250.0 ms before: context of the divergence.",
        "secondary|1785406500.500000000|65|65|5001|secondary, frame 3, 0.0 ms before: DIVERGENCE (data) at byte 59 of "
        "this frame, byte 5 of the stream. The two replicas sent different bytes at one place. The place is byte 5 of "
        "what this side of the connection sends, counted from 0. The primary has 0x20 ' ', the secondary 0x5f '_'.",
    ]
    raw = subprocess.run(
        ["tshark", "-r", path, "-T", "fields", "-e", "tcp.payload"], capture_output=True, text=True, check=True
    )
    assert raw.stdout.splitlines()[::2] == [b"hello world".hex(), b"hello_world".hex()]
    clean = subprocess.run(
        ["tshark", "-r", path, "-Y", "_ws.malformed || _ws.unreassembled"], capture_output=True, text=True, check=True
    )
    assert clean.stdout == ""


def test_the_capture_holds_the_frames_as_they_were_told(
    make: Callable[..., Recorder], clock: Callable[[float], None], tmp_path: Path
) -> None:
    one = make()
    one.take(FIELDS, 1000.5)
    settled(one, 1)
    (path,) = (tmp_path / "captures").glob("*.pcapng")
    read_back = [(packet.interface, packet.data, packet.original_length) for packet in read_packets(path)]
    assert read_back == [(0, OURS, 65), (0, LONG, 5174), (1, THEIRS, 65)]


@pytest.mark.parametrize(
    ("flow", "name"),
    [
        ("10.77.0.2:80 10.77.0.1:40000", "10.77.0.2_80-10.77.0.1_40000"),
        ("[fd77::2]:80 [fd77::1]:40000", "fd77__2_80-fd77__1_40000"),
        ("52:54:00:00:00:02 52:54:00:00:00:01", "52_54_00_00_00_02-52_54_00_00_00_01"),
        ("../../etc/\0é", ".._.._etc___"),
        ("", ""),
    ],
)
def test_a_flow_in_a_files_name(flow: str, name: str) -> None:
    assert flow_name(flow) == name
    assert len(flow_name(flow * 100)) <= 120


def test_times_are_exact() -> None:
    told = as_json(FIELDS, 1000.5, WALL)
    moment = parse(told).time
    assert moment is not None
    assert nanoseconds(moment) == 1_785_406_500_500_000_000


# --- bounds


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_at_most_as_many_files_are_kept_and_the_oldest_go(
    make: Callable[..., Recorder], clock: Callable[[float], None], tmp_path: Path
) -> None:
    one = make(most_files=6)
    for number in range(10):
        clock(WALL + number)
        one.take(FIELDS, 1000.5)
        settled(one, number + 1)
        assert len(files(tmp_path / "captures")) == min(2 * number + 2, 6)
    assert one.counters == {"written": 10, "dropped": 0, "failed": 0, "removed": 7}
    seconds = {name[13:15] for name in files(tmp_path / "captures")}
    assert seconds == {"07", "08", "09"}


def test_at_most_as_many_bytes_are_kept_and_the_oldest_go(
    make: Callable[..., Recorder], clock: Callable[[float], None], tmp_path: Path
) -> None:
    most = 40_000
    one = make(most_bytes=most)
    for number in range(12):
        clock(WALL + number)
        one.take(FIELDS, 1000.5)
        settled(one, number + 1)
        assert bytes_in(tmp_path / "captures") <= most
    assert one.counters["removed"] > 0
    assert most - bytes_in(tmp_path / "captures") < 2 * most / (12 - one.counters["removed"])
    assert any("T101511" in name for name in files(tmp_path / "captures"))


def test_files_of_others_are_left_alone_and_do_not_count(
    make: Callable[..., Recorder], clock: Callable[[float], None], tmp_path: Path
) -> None:
    folder = tmp_path / "captures"
    folder.mkdir()
    others = [
        "mine.json",
        "20200101T000000Z-x.json",
        "20200101T000000.000000Z-x.txt",
        "x20200101T000000.000000Z-x.json",
    ]
    for name in others:
        (folder / name).write_bytes(bytes(1 << 20))
    (folder / "20200101T000000.000000Z-x").mkdir()
    one = make(most_files=2)
    for number in range(3):
        clock(WALL + number)
        one.take(FIELDS, 1000.5)
    settled(one, 3)
    assert set(others) < set(files(folder))
    assert len(files(folder)) == len(others) + 1 + 2


def test_what_a_killed_writer_left_goes_with_the_oldest(
    make: Callable[..., Recorder], clock: Callable[[float], None], tmp_path: Path
) -> None:
    folder = tmp_path / "captures"
    folder.mkdir()
    for suffix in (".pcapng.part", ".json.part", ".pcapng"):
        (folder / f"20200101T000000.000000Z-x{suffix}").write_bytes(b"half")
    one = make(most_files=4)
    one.take(FIELDS, 1000.5)
    settled(one, 1)
    assert len(files(folder)) == 2


def test_a_report_larger_than_all_that_is_allowed_is_not_written(
    make: Callable[..., Recorder], clock: Callable[[float], None], tmp_path: Path
) -> None:
    one = make(most_bytes=1000)
    one.take(FIELDS, 1000.5)
    assert settled(one, 1)["failed"] == 1
    assert files(tmp_path / "captures") == []


# --- nothing gets in the way


def test_a_queue_that_is_full_drops_and_counts(make: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(recorder, "capture", lambda report: bytes(go.wait(20)))
    one = make()
    for _ in range(QUEUE + 11):
        one.take(FIELDS, 1000.5)
    # One may be at work already; the rest waits, or was dropped.
    assert one.counters["dropped"] in (10, 11)
    go.set()
    counted = settled(one, QUEUE + 11)
    assert counted["written"] == QUEUE + 11 - counted["dropped"]


def test_a_divergence_without_packets_is_counted_and_not_written(make: Callable[..., Recorder], tmp_path: Path) -> None:
    one = make()
    one.take({name: value for name, value in FIELDS.items() if not name.endswith("_frames")}, 1000.5)
    assert one.counters["dropped"] == 1
    assert not (tmp_path / "captures").exists()


def logged(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    return [line for line in (out + err).splitlines() if "report_not_written" in line]


def test_a_folder_that_may_not_be_written_is_counted_and_logged_once(
    make: Callable[..., Recorder], capsys: pytest.CaptureFixture[str], nobody: None
) -> None:
    one = make(Path("/proc/1/lockstep"))
    for _ in range(3):
        one.take(FIELDS, 1000.5)
    assert settled(one, 3)["failed"] == 3
    assert len(logged(capsys)) == 1


def test_after_it_worked_again_the_next_failure_is_logged_again(
    make: Callable[..., Recorder], clock: Callable[[float], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "captures"
    one = make()
    for number, broken in enumerate((True, True, False, True)):
        if broken:
            folder.write_text("a file, not a folder")
        one.take(FIELDS, 1000.5)
        settled(one, number + 1)
        folder.unlink() if folder.is_file() else subprocess.run(["rm", "-r", folder], check=True)
    assert (one.counters["failed"], one.counters["written"]) == (3, 1)
    assert len(logged(capsys)) == 2


FULL_DISK = """
import subprocess, sys, time
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", sys.argv[1]], check=True)
sys.path.insert(0, sys.argv[2])
from lockstep.report.recorder import Recorder
one = Recorder(Path(sys.argv[1]), 100, 1 << 20)
fields = {"flow": "a b", "protocol": "tcp", "reason": "data", "primary": "", "secondary": ""}
fields["primary_frames"] = [{"frame": bytes(2000), "at": 1.0, "number": n} for n in range(8)]
for _ in range(3):
    one.take(fields, 1.0)
one.close()
print(one.counters, [path.name for path in Path(sys.argv[1]).iterdir()])
"""


@pytest.mark.root
@pytest.mark.needs("mount", "unshare")
def test_a_full_disk_is_counted_and_nothing_of_half_a_report_stays(tmp_path: Path) -> None:
    tree = Path(__file__).resolve().parents[3]
    ran = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", FULL_DISK, tmp_path, tree], capture_output=True, text=True
    )
    *logs, told = ran.stdout.splitlines()
    assert told == "{'written': 0, 'dropped': 0, 'failed': 3, 'removed': 0} []", ran.stderr
    assert len([line for line in logs if "No space left on device" in line]) == 1


def test_a_log_that_fails_too_stops_nothing(make: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def warning(self, *_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder, "log", Broken())
    one = make(Path("/dev/null/x"))
    one.take(FIELDS, 1000.5)
    one.take(FIELDS, 1000.5)
    assert settled(one, 2)["failed"] == 2


def test_fields_that_make_no_report_are_counted(make: Callable[..., Recorder]) -> None:
    one = make()
    one.take({"primary_frames": [{}]}, 1000.5)
    one.take(FIELDS | {"flow": None}, 1000.5)
    assert settled(one, 2)["failed"] == 2


def test_no_thread_is_started_before_a_divergence_and_none_stays(make: Callable[..., Recorder]) -> None:
    before = threading.active_count()
    one = make()
    assert threading.active_count() == before
    one.take(FIELDS, 1000.5)
    one.close()
    assert (threading.active_count(), one.counters["written"]) == (before, 1)


def test_a_machine_without_threads_to_spare_is_counted(
    make: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    one = make()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        one.take(FIELDS, 1000.5)
    assert one.counters["failed"] == 1
    one.take(FIELDS, 1000.5)
    settled(one, 2)


def test_a_disk_that_hangs_holds_the_end_of_the_process_up_for_a_moment_only(
    make: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    written: list[bool] = []
    monkeypatch.setattr(recorder, "capture", lambda report: written.append(go.wait(20)) or b"")
    monkeypatch.setattr(recorder, "PATIENCE", 0.1)
    one = make()
    for _ in range(QUEUE + 5):
        one.take(FIELDS, 1000.5)
    one.close()
    assert written == []  # the disk still hangs
    go.set()


# --- found again


def test_a_divergence_of_the_status_is_found_with_its_packets(
    make: Callable[..., Recorder], clock: Callable[[float], None], tmp_path: Path
) -> None:
    one = make()
    for number, offset in enumerate((5, 6, 5)):
        clock(WALL + number)
        one.take(FIELDS | {"offset": offset}, 1000.5)
        settled(one, number + 1)
    known = {name: value for name, value in FIELDS.items() if not name.endswith("_frames")}
    (found,) = whole_reports(tmp_path / "captures", [known])
    assert found["time"] == "2026-07-30T10:15:02.500000+00:00"
    assert len(parse(found).packets) == 3
    assert whole_reports(tmp_path / "captures", [known | {"offset": 7}]) == [known | {"offset": 7}]


def test_files_that_are_no_reports_are_passed_over(tmp_path: Path) -> None:
    known = {name: value for name, value in FIELDS.items() if not name.endswith("_frames")}
    name = flow_name(FIELDS["flow"])
    (tmp_path / f"20990101T000000.000000Z-{name}.json").write_text("{")
    (tmp_path / f"20980101T000000.000000Z-{name}.json").mkdir()
    (tmp_path / f"20970101T000000.000000Z-{name}.json").write_text(json.dumps(as_json(FIELDS, 1000.5, WALL)))
    (found,) = whole_reports(tmp_path, [known])
    assert "primary_frames" in found
    assert whole_reports(tmp_path / "missing", [known]) == [known]


def test_many_fds_are_not_held(make: Callable[..., Recorder], tmp_path: Path) -> None:
    one = make()
    one.take(FIELDS, 1000.5)
    settled(one, 1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        one.take(FIELDS, 1000.5)
        settled(one, number + 2)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert os.path.isdir(tmp_path / "captures")  # noqa: PTH112
