"""A divergence report: from a JSON file, or from the comparer's status, to values that can be relied on.

A file holds what the event said: flow, protocol, reason, offset, both sides' bytes in hex, epoch; and
`version`, `time` (UTC, ISO 8601) and `primary_frames` and `secondary_frames`, a list each of
    frame    its bytes in hex, at most the first 2,048 of `size`
    time     when it came
    number   its number on that side, counted from 1
    size     bytes of the whole frame
    payload, payload_end    where its payload lies in the whole frame
    place    where the place of the divergence lies in it, for the frames that are there
    cut      for a segment cut out of a super-frame: bytes of payload left out in front of it
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lockstep.report import PRIMARY_FRAMES, SECONDARY_FRAMES

VERSION = 1
#: Largest file that is read: a full report has a tenth of it.
MOST_BYTES = 1 << 20
#: Most packets of one side, and bytes of one, that are believed.
MOST_PACKETS = 64
MOST_FRAME = 1 << 17

_LARGEST = 1 << 63


class ReportError(Exception):
    """Something that is no report. Its text says why."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A frame of the flow. See the module; `side` is `primary` or `secondary`."""

    side: str
    number: int
    frame: bytes
    size: int
    time: datetime | None = None
    payload: int = 0
    payload_end: int = 0
    place: int | None = None
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What diverged, where and how, and the packets that were kept of it, oldest first."""

    flow: str
    protocol: str
    reason: str
    offset: int | None
    primary: bytes
    secondary: bytes
    epoch: int
    vlan: tuple[int, ...] = ()
    time: datetime | None = None
    packets: tuple[Packet, ...] = ()

    def here(self, side: str) -> list[Packet]:
        """That side's packets at the place of the divergence, oldest first."""
        return [packet for packet in self.packets if packet.side == side and packet.place is not None]

    def is_of(self, fields: Mapping[str, Any]) -> bool:
        """Whether this is the whole report of a divergence that the comparer's status names."""
        other = parse(fields)
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("flow", "protocol", "reason", "offset", "primary", "secondary", "epoch", "vlan")
        )


def read(path: Path) -> dict[str, Any]:
    """The fields of a report's file, checked; raises ReportError."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror or error}") from error
    if len(text) > MOST_BYTES:
        raise ReportError(f"{path}: more than {MOST_BYTES} bytes; no report is that large")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: not JSON; name the .json file of a report") from error
    if not isinstance(fields, dict):
        raise ReportError(f"{path}: not a JSON object; name the .json file of a report")
    try:
        parse(fields)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from error
    return fields


def parse(fields: Mapping[str, Any]) -> Report:
    """The report in these fields; raises ReportError. Fields it does not know are ignored."""
    version = _number(fields, "version", VERSION)
    if version != VERSION:
        raise ReportError(f"a report of version {version}; only {VERSION} is known")
    vlan = fields.get("vlan", [])
    if not isinstance(vlan, list) or not all(type(tag) is int and 0 <= tag <= 0xFFF for tag in vlan):
        raise ReportError("`vlan` is no list of VLAN ids")
    packets = _packets(fields, PRIMARY_FRAMES, "primary") + _packets(fields, SECONDARY_FRAMES, "secondary")
    return Report(
        flow=_text(fields, "flow"),
        protocol=_text(fields, "protocol"),
        reason=_text(fields, "reason"),
        offset=None if fields.get("offset") is None else _number(fields, "offset", signed=True),
        primary=_hex(fields, "primary"),
        secondary=_hex(fields, "secondary"),
        epoch=_number(fields, "epoch", 0),
        vlan=tuple(vlan),
        time=_time(fields),
        packets=tuple(sorted(packets, key=lambda packet: (packet.time or _NEVER, packet.side, packet.number))),
    )


_NEVER = datetime.min.replace(tzinfo=UTC)


def _packets(fields: Mapping[str, Any], name: str, side: str) -> list[Packet]:
    entries = fields.get(name, [])
    if not isinstance(entries, list) or len(entries) > MOST_PACKETS or not all(isinstance(e, dict) for e in entries):
        raise ReportError(f"`{name}` is no list of packets")
    packets = []
    for entry in entries:
        frame = _hex(entry, "frame")
        packets.append(
            Packet(
                side=side,
                number=_number(entry, "number", 0),
                frame=frame,
                size=max(len(frame), min(_number(entry, "size", len(frame)), MOST_FRAME)),
                time=_time(entry),
                payload=_number(entry, "payload", 0),
                payload_end=_number(entry, "payload_end", len(frame)),
                place=None if entry.get("place") is None else _number(entry, "place"),
                cut=_number(entry, "cut", 0),
            )
        )
    return packets


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ReportError(f"`{name}` is missing or no text")
    return value


def _number(fields: Mapping[str, Any], name: str, default: int | None = None, *, signed: bool = False) -> int:
    value = fields.get(name, default)
    if type(value) is not int or not (-_LARGEST if signed else 0) <= value < _LARGEST:  # a bool is no number here
        raise ReportError(f"`{name}` is missing or no number")
    return value


def _hex(fields: Mapping[str, Any], name: str) -> bytes:
    try:
        value = bytes.fromhex(_text(fields, name))
    except ValueError as error:
        raise ReportError(f"`{name}` is not hex") from error
    if len(value) > MOST_FRAME:
        raise ReportError(f"`{name}` has more than {MOST_FRAME} bytes")
    return value


def _time(fields: Mapping[str, Any]) -> datetime | None:
    if fields.get("time") is None:
        return None
    try:
        moment = datetime.fromisoformat(_text(fields, "time"))
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ReportError("`time` is no time of ISO 8601") from error
