"""A report as text: what happened, both sides' bytes side by side, and each packet decoded."""

from __future__ import annotations

from textwrap import fill

from lockstep.report import words
from lockstep.report.decode import decoded
from lockstep.report.place import BEFORE, BEHIND, sides
from lockstep.report.report import Packet, Report
from lockstep.report.words import clean

WIDTH = 100
#: Bytes in a row of two sides, and in a row of one packet.
_PAIR, _ROW = 8, 16


def render(report: Report) -> str:
    """The whole report, for a person; it ends without a line feed. Never raises."""
    head = words.title(report)
    if report.time is not None:
        head += f"\n{report.time.isoformat(sep=' ', timespec='microseconds')[:26]} UTC"
    parts = [head, fill(words.describe(report), WIDTH), _side_by_side(report)]
    parts += [_packet(report, packet) for side in ("primary", "secondary") for packet in report.here(side)]
    parts.append(_context(report))
    return "\n\n".join(part for part in parts if part)


def _side_by_side(report: Report) -> str:
    """Both sides' bytes in rows, the first difference in brackets."""
    pair = sides(report)
    if not pair.left and not pair.right:
        return ""
    rows = [f"{'byte':>12}  {pair.names[0]:<{_PAIR * 4 + 4}} {pair.names[1]}"]
    for at in range(0, max(len(pair.left), len(pair.right)), _PAIR):
        left, right = (_cells(side, at, _PAIR, pair.mark) for side in (pair.left, pair.right))
        rows.append(f"{(pair.begin or 0) + at:>12,} {left}   {right}".rstrip())
    if pair.begin is None:
        rows.append("These are the SYNs' flags, ack, length of options, options without clock values, and data.")
    if pair.mark is None:
        rows.append("These bytes are the same on both sides; the difference lies behind what was kept of them.")
    return "\n".join(rows)


def _cells(data: bytes, at: int, count: int, mark: int | None) -> str:
    """` 68 65[6c]6c 6f  hello`, in a width that depends on `count` alone."""
    row = data[at : at + count]
    cells = " " + " ".join(f"{value:02x}" for value in row).ljust(3 * count)
    if mark is not None and at <= mark < at + count:
        left = 3 * (mark - at)
        shown = cells[left + 1 : left + 3] if mark < len(data) else "--"
        cells = f"{cells[:left]}[{shown}]{cells[left + 4 :]}"
    text = "".join(chr(value) if 0x20 <= value < 0x7F else "." for value in row)
    return f"{cells} {text:<{count}}"


def _packet(report: Report, packet: Packet) -> str:
    """A packet at the place: a line for each header, and its bytes around the place."""
    place, kept = packet.place or 0, len(packet.frame)
    lines = [f"{packet.side}, frame {packet.number}, {words.distance(report, packet)}, {packet.size:,} bytes:"]
    lines += [f"  {clean(line)}" for line in ([words.cut(packet)] if packet.cut else []) + decoded(packet.frame)]
    if place > kept:
        lines.append(f"  The place is byte {place:,}; {kept:,} were kept.")
    elif place == kept:
        lines.append("  The place is behind its last byte.")
    first = max(packet.payload if packet.payload <= place else 0, place - BEFORE)
    for at in range(first, min(kept, place + BEHIND), _ROW):
        lines.append(f"  {at:>10,} {_cells(packet.frame, at, _ROW, place if place < kept else None)}".rstrip())
    return "\n".join(lines)


def _context(report: Report) -> str:
    """The packets that are not at the place, one line each."""
    others = [packet for packet in report.packets if packet.place is None]
    if not others:
        return ""
    lines = ["Other frames of this flow, oldest first:"]
    for packet in others:
        layers = decoded(packet.frame)
        inner = clean(layers[-1]) if layers else f"{packet.frame[:_ROW].hex(' ')} …"
        told = f"{packet.side:<9} {packet.number:>9} {words.distance(report, packet):>18} {packet.size:>7,} bytes"
        lines.append(f"  {told}  {inner}")
    return "\n".join(lines)
