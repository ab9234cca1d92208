"""Datagrams: whole, in order, within a window."""

from __future__ import annotations

from random import Random

from lockstep.compare.datagrams import Datagram, Datagrams
from lockstep.compare.finding import DATA, UNMATCHED, Finding
from lockstep.compare.ledger import PRIMARY, SECONDARY

WINDOW = 8


def datagram(frame: int, data: bytes, *, head: bytes = b"", size: int | None = None, essence: bytes = b"") -> Datagram:
    return Datagram(frame, head, data, len(data) if size is None else size, essence=essence)


def said(primary: list[bytes], secondary: list[bytes]) -> Datagrams:
    """Both files' datagrams, by turns; frames count from 1."""
    flow = Datagrams(WINDOW)
    for index in range(max(len(primary), len(secondary))):
        for side, words in ((PRIMARY, primary), (SECONDARY, secondary)):
            if index < len(words):
                flow.take(side, datagram(index + 1, words[index]))
    return flow


def words(count: int) -> list[bytes]:
    return [f"word {number}".encode() for number in range(count)]


def test_a_wrong_byte_is_told_by_its_place_in_all_payloads() -> None:
    """Payloads of 6 bytes: byte 5 of the third is byte 17."""
    other = words(10)
    other[2] = b"word x"
    assert said(words(10), other).conclude() == Finding(DATA, 17, 3, 3)


def test_a_wrong_byte_among_equals_is_told_at_its_own_place() -> None:
    other = [b"same"] * 10
    other[4] = b"sAme"
    assert said([b"same"] * 10, other).conclude() == Finding(DATA, 17, 5, 5)


def test_a_lost_one_shifts_its_equals_and_is_still_found() -> None:
    """Behind a datagram that the secondary lacks, the equals find each other."""
    primary = [b"lost", *[b"same"] * 20]
    secondary = [b"same"] * 20
    assert said(primary, secondary).conclude() == Finding(UNMATCHED, 0, 1, 0)


def test_reordering_within_the_window_changes_nothing() -> None:
    random = Random(1)
    other = [
        word for _, word in sorted((index + random.uniform(0, WINDOW), word) for index, word in enumerate(words(200)))
    ]
    flow = said(words(200), other)
    assert not flow.hopeless
    assert flow.conclude() is None
    assert flow.costs == [0, 0, 0]


def test_one_that_too_many_overtook_is_not_waited_for() -> None:
    late = words(40)
    late.append(late.pop(0))
    assert said(words(40), late).hopeless


def test_a_doubled_datagram_is_a_difference() -> None:
    assert said(words(3), [*words(3), b"word 2"]).conclude() == Finding(UNMATCHED, 18, 0, 4)


def test_empty_datagrams_count_too() -> None:
    assert said([b"", b""], [b"", b""]).conclude() is None
    assert said([b"", b""], [b""]).conclude() == Finding(UNMATCHED, 0, 2, 0)


def test_what_is_no_payload_is_compared_and_does_not_count() -> None:
    flow = Datagrams(WINDOW)
    flow.take(PRIMARY, datagram(1, b"abc", head=b"\0\0"))
    flow.take(SECONDARY, datagram(1, b"abc", head=b"\0\1"))
    assert flow.conclude() == Finding(DATA, 0, 1, 1)


def test_captured_in_part_it_is_compared_in_part() -> None:
    """With other snap lengths the two say the same as far as both go, and never with another length on the wire."""
    for mine, theirs, equal in ((b"abc", b"abcde", True), (b"abx", b"abcde", False), (b"", b"abcde", True)):
        flow = Datagrams(WINDOW)
        flow.take(PRIMARY, datagram(1, mine, size=100))
        flow.take(SECONDARY, datagram(1, theirs, size=100))
        assert (flow.conclude() is None) is equal
    flow = Datagrams(WINDOW)
    flow.take(PRIMARY, datagram(1, b"abc", size=100))
    flow.take(SECONDARY, datagram(1, b"abcde", size=101))
    assert flow.conclude() is not None


def test_a_flow_of_parts_longer_than_the_window_is_matched_on_the_way() -> None:
    flow = Datagrams(WINDOW)
    for index in range(100):
        flow.take(PRIMARY, datagram(index + 1, b"%04d" % index, size=200))
        flow.take(SECONDARY, datagram(index + 1, b"%04d and more" % index, size=200))
        assert not flow.hopeless
    assert flow.conclude() is None


def test_an_essence_is_enough() -> None:
    """An ICMP error: the quoted packet's TTL and checksums may differ (`services.comparer.datagram.content`)."""
    flow = Datagrams(WINDOW)
    flow.take(PRIMARY, datagram(1, b"ttl 64, quoted", essence=b"quoted"))
    flow.take(SECONDARY, datagram(1, b"ttl 63, quoted", essence=b"quoted"))
    assert flow.conclude() is None


def test_the_frame_of_a_fragment() -> None:
    """Byte 30 of a datagram in two fragments of 24 and 16 bytes came in the second one's frame."""
    flow = Datagrams(WINDOW)
    body = bytes(40)
    flow.take(PRIMARY, Datagram(1, b"", body, 40, parts=((0, 1), (24, 2))))
    flow.take(SECONDARY, Datagram(3, b"", body[:30] + b"x" + body[31:], 40, parts=((0, 3), (24, 4))))
    assert flow.conclude() == Finding(DATA, 30, 2, 4)
