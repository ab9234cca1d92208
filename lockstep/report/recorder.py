"""Keeps divergences on disk: a report to read and a capture for Wireshark, bounded and out of the way.

The loop hands an event over and goes on; a thread of its own writes. A queue that is full drops, a
disk that refuses is counted and logged once, and the oldest files make room for new ones. The files
hold what the guest said, so nobody but their owner may read them.
"""

from __future__ import annotations

import contextvars
import json
import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import structlog

from lockstep.capture.pcapfile import LINKTYPE_ETHERNET, PcapngWriter
from lockstep.report import FRAMES, SNAP
from lockstep.report.report import VERSION, Report, ReportError, parse, read
from lockstep.report.words import comment

#: Divergences that wait to be written before further ones are dropped.
QUEUE = 16
#: Seconds that the end of the process waits for them.
PATIENCE = 2.0

SIDES = ("primary", "secondary")

#: Our own files, among which the oldest go first: `20260730T101500.123456Z-FLOW.json`; `.part` while it is written.
_OWN = re.compile(r"(?P<report>[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-[A-Za-z0-9._-]*)\.(?:json|pcapng)(?:\.part)?")
_MILLION, _BILLION = 10**6, 10**9

log = structlog.get_logger()


class Recorder:
    """Writes each divergence that carries packets to two files in `folder`.

    most_files, most_bytes: bounds on our files there, the new ones included.
    """

    def __init__(self, folder: Path, most_files: int, most_bytes: int) -> None:
        self.counters = {"written": 0, "dropped": 0, "failed": 0, "removed": 0}
        self._folder, self._most_files, self._most_bytes = folder, most_files, most_bytes
        self._queue: queue.Queue[tuple[Mapping[str, Any], float, float] | None] = queue.Queue(QUEUE)
        self._thread: threading.Thread | None = None
        self._closing = self._failing = False

    def take(self, fields: Mapping[str, Any], now: float) -> None:
        """Have the fields of a `divergence` written. Never waits and never raises.

        now: monotonic seconds, as the times in it. Without packets (the comparer was too busy to look
        for them) it is dropped.
        """
        if not any(name in fields for name in FRAMES):
            self.counters["dropped"] += 1
            return
        try:
            self._queue.put_nowait((fields, now, time.time()))
            if self._thread is None:
                run = contextvars.copy_context().run  # what is bound to every log line
                self._thread = threading.Thread(target=run, args=(self._work,), name="recorder", daemon=True)
                self._thread.start()
        except queue.Full:
            self.counters["dropped"] += 1
        except RuntimeError as error:  # no thread can be started
            self._thread = None
            self._fail(error)

    def close(self) -> None:
        """Write what waits, for `PATIENCE` seconds at most."""
        self._closing = True
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        if self._thread is not None:
            self._thread.join(PATIENCE)

    def _work(self) -> None:
        while (taken := self._queue.get()) is not None:
            try:
                self._write(*taken)
                self._failing = False
            except Exception as error:  # whatever it is, the packets go on
                self._fail(error)
            if self._closing and self._queue.empty():
                return

    def _fail(self, error: Exception) -> None:
        self.counters["failed"] += 1
        if not self._failing:
            self._failing = True
            with suppress(OSError, ValueError):  # the log may be on the same full disk
                log.warning("report_not_written", capture_dir=str(self._folder), why=f"{type(error).__name__}: {error}")

    def _write(self, fields: Mapping[str, Any], now: float, wall: float) -> None:
        told = as_json(fields, now, wall)
        report = parse(told)
        contents = {".pcapng": capture(report), ".json": (json.dumps(told, indent=1) + "\n").encode()}
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_room(len(contents), sum(map(len, contents.values())))
        stem = f"{datetime.fromtimestamp(wall, UTC):%Y%m%dT%H%M%S.%fZ}-{flow_name(report.flow)}"
        made: list[Path] = []
        try:
            for suffix, content in contents.items():
                made.append(self._folder / f"{stem}{suffix}.part")
                _write_new(made[-1], content)
            for part in list(made):
                whole = part.with_suffix("")
                part.replace(whole)
                made.append(whole)
        except OSError:
            for path in made:
                with suppress(OSError):
                    path.unlink()
            raise
        self.counters["written"] += 1

    def _make_room(self, files: int, size: int) -> None:
        """Remove our oldest reports until the new one fits, and files of a writer that was killed with them."""
        if size > self._most_bytes:
            raise OSError(f"a report of {size} bytes; capture_bytes allows {self._most_bytes}")
        with os.scandir(self._folder) as entries:
            own = [
                (found["report"], Path(entry.path), entry.stat(follow_symlinks=False).st_size)
                for entry in entries
                if (found := _OWN.fullmatch(entry.name))
            ]
        files += len(own)
        size += sum(used for _, _, used in own)
        for _, report in groupby(sorted(own), key=lambda file: file[0]):
            if files <= self._most_files and size <= self._most_bytes:
                return
            for _, path, used in report:
                path.unlink(missing_ok=True)
                files, size = files - 1, size - used
            self.counters["removed"] += 1


def _write_new(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)


def flow_name(flow: str) -> str:
    """A flow as part of a file's name: `10.77.0.2_80-10.77.0.1_40000`."""
    plain = flow.translate(str.maketrans(": ", "_-", "[]"))
    return re.sub(r"[^A-Za-z0-9._-]", "_", plain)[:120]


def as_json(fields: Mapping[str, Any], now: float, wall: float) -> dict[str, Any]:
    """An event's fields as a report's file has them; `now` and `wall` are one moment, monotonic and since 1970."""
    told = {"version": VERSION, "time": _iso(wall)}
    told |= {name: value for name, value in fields.items() if name not in FRAMES}
    for name in FRAMES:
        told[name] = [
            {"frame": entry["frame"].hex(), "time": _iso(wall - now + entry["at"])}
            | {key: value for key, value in entry.items() if key not in ("frame", "at")}
            for entry in fields.get(name, ())
        ]
    return told


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def capture(report: Report) -> bytes:
    """A report's packets as a pcapng file: an interface for each side, a comment on each packet."""
    file = BytesIO()
    writer = PcapngWriter(file, LINKTYPE_ETHERNET, SNAP, SIDES)
    for packet in report.packets:
        # The writer keeps SNAP bytes and notes how many there were, so there have to be as many.
        frame = packet.frame if packet.cut else packet.frame.ljust(packet.size, b"\0")
        moment = packet.time or report.time
        at = nanoseconds(moment) if moment is not None else 0
        writer.write(frame, at, comment(report, packet), SIDES.index(packet.side))
    return file.getvalue()


def nanoseconds(moment: datetime) -> int:
    """Nanoseconds since 1970, exactly."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * _BILLION + since.microseconds * (_BILLION // _MILLION)


def whole_reports(folder: Path, divergences: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """These divergences, each with its packets where its newest file in the folder can be read."""
    found = []
    for divergence in divergences:
        name = flow_name(str(divergence.get("flow", "")))
        whole = divergence
        with suppress(OSError):
            for path in sorted(folder.glob(f"*Z-{name}.json"), reverse=True):
                with suppress(ReportError):
                    fields = read(path)
                    if parse(fields).is_of(divergence):
                        whole = fields
                        break
        found.append(whole)
    return found
