"""Two files, read side by side."""

from __future__ import annotations

from collections.abc import Iterator

from lockstep.capture.pcapfile import Packet
from lockstep.compare.feed import SKEW, feed


class Sink:
    def __init__(self, ahead: tuple[int, int] = (0, 0)) -> None:
        self.ahead = ahead
        self.order: list[tuple[int, int]] = []

    def push(self, side: int, packet: Packet) -> None:
        self.order.append((side, packet.number))


def packets(*times: int) -> Iterator[Packet]:
    for number, time in enumerate(times, 1):
        yield Packet(number, time, 1, b"", 0)


def order(a: Iterator[Packet], b: Iterator[Packet], sink: Sink | None = None) -> list[int]:
    sink = sink or Sink()
    for _ in feed(sink, a, b):
        pass
    return [side for side, _ in sink.order]


def test_a_file_against_itself_goes_by_turns() -> None:
    """Whatever its clock does: stands, runs back, or leaps."""
    for times in ((5, 6, 7), (0, 0, 0), (9, 1, 5), (1, 1 << 60, 2), (-5, 7, -9)):
        assert order(packets(*times), packets(*times)) == [0, 1, 0, 1, 0, 1]


def test_each_clock_begins_with_its_file() -> None:
    """The second was captured an hour later, and has one frame more at the first instant."""
    assert order(packets(0, 10, 20), packets(3600, 3600, 3610, 3620)) == [0, 1, 1, 0, 1, 0, 1]


def test_one_file_may_be_empty_or_end_first() -> None:
    assert order(packets(), packets(1, 2)) == [1, 1]
    assert order(packets(1, 2, 3), packets(1)) == [0, 1, 0, 0]
    assert order(packets(), packets()) == []


def test_who_is_far_ahead_waits_whatever_the_clock_says() -> None:
    """The primary has said more than SKEW bytes that the secondary hasn't: the secondary goes on."""
    assert order(packets(1, 2), packets(1, 500, 501), Sink((SKEW + 1, 0))) == [1, 1, 1, 0, 0]
    assert order(packets(1, 2), packets(1, 500, 501), Sink((0, SKEW + 1))) == [0, 0, 1, 1, 1]
