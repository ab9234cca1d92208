"""Comparing records without files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mutate import Record

from lockstep.capture.pcapfile import Packet
from lockstep.compare.comparison import Comparison, Divergence, Guests, Limits
from lockstep.compare.feed import feed


def packets(records: Sequence[Record]) -> Iterator[Packet]:
    """As a reader gives them."""
    for number, record in enumerate(records, 1):
        yield Packet(number, record.time_ns, record.linktype, record.data, max(record.original, len(record.data)))


def compared(
    primary: Sequence[Record], secondary: Sequence[Record], limits: Limits | None = None, guests: Guests | None = None
) -> Comparison:
    """What comes of two captures."""
    comparison = Comparison(limits or Limits(), guests)
    for _ in feed(comparison, packets(primary), packets(secondary)):
        pass
    comparison.finish()
    assert comparison.frames == [len(primary), len(secondary)]
    assert comparison.ahead == (0, 0)
    assert guests or comparison.released + comparison.held == len(primary)
    return comparison


def told(found: Divergence) -> tuple[str, str, int, int, int]:
    """Flow, reason, offset and both frames."""
    finding = found.finding
    return found.flow, finding.reason, finding.offset, finding.primary_frame, finding.secondary_frame


def differences(primary: Sequence[Record], secondary: Sequence[Record]) -> list[tuple[str, str, int, int, int]]:
    """Every divergence of two captures."""
    return [told(found) for found in compared(primary, secondary).divergences]
