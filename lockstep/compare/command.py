"""`lockstep compare`: two capture files, a verdict, and an exit code."""

from __future__ import annotations

import ipaddress
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lockstep import exits
from lockstep.capture.pcapfile import CaptureFileError, Packet, read_packets
from lockstep.compare.comparison import Comparison, Guests, Limits
from lockstep.compare.display import Progressing, show
from lockstep.compare.feed import feed
from lockstep.compare.report import write_report

_MAC = re.compile(r"(?:[0-9a-f]{1,2}[:-]){5}[0-9a-f]{1,2}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What `lockstep compare` is asked for.

    primary, secondary: pcap or pcapng files, gzip or not. guests: IP or MAC addresses; what they sent is
    compared, or everything if there are none. json: one JSON object on stdout. report: a pcapng file
    to write. limits: what it may cost.
    """

    primary: Path
    secondary: Path
    guests: tuple[str, ...] = ()
    json: bool = False
    report: Path | None = None
    limits: Limits = field(default_factory=Limits)


class _UnreadableError(Exception):
    """A file can't be read; the text says which, where and why."""


def compare_captures(options: CompareOptions) -> int:
    """Compare, print what was found, and return the exit code: 0 equal, 1 a divergence, 64 usage, 65 unreadable."""
    try:
        guests = parse_guests(options.guests)
    except ValueError as error:
        return _failed(exits.USAGE, f"--guest: {error}")
    paths = (options.primary, options.secondary)
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
            with Progressing(paths) as progress:
                for packet in feed(comparison, _packets(paths[0]), _packets(paths[1])):
                    progress.step(len(packet.data))
                comparison.finish()
            if report is not None:
                write_report(report, paths, comparison.divergences, comparison.linktypes)
        except _UnreadableError as error:
            return _failed(exits.DATA, str(error))
    seconds = time.monotonic() - started
    if options.json:
        print(json.dumps(result(comparison, seconds)))
    else:
        show(comparison, paths, seconds, options.report)
    return exits.FOUND if comparison.divergences else exits.OK


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


def _packets(path: Path) -> Iterator[Packet]:
    try:
        yield from read_packets(path)
    except CaptureFileError as error:
        raise _UnreadableError(str(error)) from error
    except OSError as error:
        raise _UnreadableError(f"{path}: {error.strerror or error}") from error


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
