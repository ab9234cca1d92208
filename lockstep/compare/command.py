"""`lockstep compare`: two capture files, a verdict, and an exit code."""

from __future__ import annotations

import gc
import ipaddress
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lockstep import exits
from lockstep.capture.pcapfile import CaptureCutError, CaptureFileError, Packet, read_packets
from lockstep.compare.comparison import Comparison, Guests, Limits
from lockstep.compare.display import Progressing, show
from lockstep.compare.feed import feed
from lockstep.compare.ledger import PRIMARY, SECONDARY
from lockstep.compare.report import write_report

_MAC = re.compile(r"(?:[0-9a-f]{1,2}[:-]){5}[0-9a-f]{1,2}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What `lockstep compare` is asked for.

    primary, secondary: pcap or pcapng files, gzip or not. guests: IP or MAC addresses; what they sent is
    compared, or everything if there are none. json: one JSON object on stdout. report: a pcapng file
    to write. partial: a file that ends inside a record ends before it. limits: what it may cost.
    """

    primary: Path
    secondary: Path
    guests: tuple[str, ...] = ()
    json: bool = False
    report: Path | None = None
    partial: bool = False
    limits: Limits = field(default_factory=Limits)


class _UnreadableError(Exception):
    """A file can't be read; the text says which, where and why."""


class _Captures:
    """Both files, to be read any number of times. cut: of files that end inside a record, where and why."""

    def __init__(self, options: CompareOptions) -> None:
        self.paths = (options.primary, options.secondary)
        self.cut: dict[Path, str] = {}
        self._partial = options.partial

    def packets(self, side: int) -> Iterator[Packet]:
        """The packets of one; raises _UnreadableError."""
        path = self.paths[side]
        try:
            yield from read_packets(path)
        except CaptureCutError as error:
            if not self._partial or not error.offset:  # a file without its header is none
                raise _UnreadableError(f"{error} (--partial compares what stands before)") from error
            self.cut[path] = f"{error}; compared up to there"
        except CaptureFileError as error:
            raise _UnreadableError(str(error)) from error
        except OSError as error:
            raise _UnreadableError(f"{path}: {error.strerror or error}") from error


def compare_captures(options: CompareOptions) -> int:
    """Compare, print what was found, and return the exit code: 0 equal, 1 a divergence, 64 usage, 65 unreadable."""
    try:
        guests = parse_guests(options.guests)
    except ValueError as error:
        return _failed(exits.USAGE, f"--guest: {error}")
    captures = _Captures(options)
    paths = captures.paths
    started = time.monotonic()
    comparison = Comparison(options.limits, guests)
    with ExitStack() as stack:
        report: BinaryIO | None = None
        if options.report is not None:
            try:
                report = stack.enter_context(_opened(options.report, paths))
            except OSError as error:
                return _failed(exits.USAGE, f"--report: {options.report}: {error.strerror or error}")
        try:
            with Progressing(paths) as progress, _uncollected():
                for packet in feed(comparison, captures.packets(PRIMARY), captures.packets(SECONDARY)):
                    progress.step(len(packet.data))
                comparison.finish()
            if report is not None:
                write_report(report, captures.packets, comparison.divergences, comparison.linktypes)
                report.flush()
        except _UnreadableError as error:
            return _failed(exits.DATA, str(error))
        except OSError as error:
            if report is not None:
                with suppress(OSError):
                    report.close()  # which tries to write once more
            return _failed(exits.USAGE, f"--report: {options.report}: {error.strerror or error}")
    for where in captures.cut.values():
        print(where, file=sys.stderr)
    seconds = time.monotonic() - started
    if options.json:
        print(json.dumps(result(comparison, seconds)))
    else:
        show(comparison, paths, seconds, options.report)
    return exits.FOUND if comparison.divergences else exits.OK


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: nothing here makes cycles, and walking all flows again and again takes time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def parse_guests(texts: tuple[str, ...]) -> Guests:
    """IP and MAC addresses as text; raises ValueError for what is neither."""
    macs, addresses = set(), set()
    for text in texts:
        if _MAC.fullmatch(text):
            macs.add(bytes(int(part, 16) for part in re.split("[:-]", text)))
            continue
        try:
            addresses.add(ipaddress.ip_address(text.strip("[]")).packed)
        except ValueError:
            raise ValueError(f"{text!r} is neither an IP nor a MAC address") from None
    return Guests(frozenset(macs), frozenset(addresses))


def result(comparison: Comparison, seconds: float) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "frames": {"primary": comparison.frames[0], "secondary": comparison.frames[1]},
        "flows": comparison.flows,
        "released": comparison.released,
        "unchecked": comparison.unchecked,
        "held": comparison.held,
        "divergences": [
            {
                "flow": found.flow,
                "reason": found.finding.reason,
                "offset": found.finding.offset,
                "primary_frame": found.finding.primary_frame or None,
                "secondary_frame": found.finding.secondary_frame or None,
            }
            for found in comparison.divergences
        ],
        "seconds": round(seconds, 3),
    }


def _opened(report: Path, paths: tuple[Path, Path]) -> BinaryIO:
    """The report's file, made anew. The captures must be others, and such as can be read twice."""
    for path in paths:
        if path.exists() and not path.is_file():
            raise OSError(f"{path} is no file that could be read a second time")
        if report.exists() and path.exists() and report.samefile(path):
            raise OSError("that is one of the captures")
    return report.open("wb")


def _failed(code: int, why: str) -> int:
    print(why, file=sys.stderr)
    return code
