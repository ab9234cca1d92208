"""One direction of TCP: whose numbers are how far apart, and what is told."""

from __future__ import annotations

from random import Random

import pytest

from lockstep.compare.finding import DATA, SYN, UNMATCHED, Finding
from lockstep.compare.finding import FIN as FIN_DIFFERS
from lockstep.compare.ledger import PRIMARY, SECONDARY
from lockstep.compare.segment import Segment
from lockstep.compare.stream import Stream

FIN, SYN_FLAG, RST, ACK, URG = 1, 2, 4, 16, 32
MASK = 0xFFFFFFFF
#: Of the stream that comes back: it ends at the primary's 1500, the secondary's 500.
BACK = ((1500, 1000),)


class Script:
    """Feeds a stream with segments, each file's numbered from 1."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.frames = [0, 0]

    def say(
        self, side: int, seq: int, data: bytes = b"", flags: int = ACK, *, ack: int = 9, options: bytes = b""
    ) -> None:
        self.frames[side] += 1
        self.stream.take(side, Segment(self.frames[side], seq & MASK, ack, flags, len(data), data, options))

    def both(self, shift: int, seq: int, data: bytes = b"", flags: int = ACK, *, ack: int = 9) -> None:
        self.say(PRIMARY, seq, data, flags, ack=ack)
        self.say(SECONDARY, seq + shift, data, flags, ack=ack)


@pytest.mark.parametrize("shift", [0, 1, 1000, 1 << 31, MASK, MASK - 50])
@pytest.mark.parametrize("with_syn", [True, False])
def test_a_constant_distance_is_found(shift: int, with_syn: bool) -> None:
    script = Script()
    if with_syn:
        script.both(shift, 5, flags=SYN_FLAG)
    for number in range(20):
        script.both(shift, 6 + 10 * number, bytes((number,)) * 10)
    assert script.stream.conclude() is None


def test_each_incarnation_has_a_distance_of_its_own() -> None:
    """Three connections of one pair of ports; a real replica draws each ISN anew."""
    random = Random(1)
    script = Script()
    for incarnation in range(3):
        isn, shift = random.randrange(1 << 32), random.randrange(1 << 32)
        script.both(shift, isn, flags=SYN_FLAG)
        for number in range(3):
            script.both(shift, isn + 1 + 5 * number, bytes((incarnation, number)) * 2 + b"!")
        script.both(shift, isn + 16, flags=FIN | ACK)
    assert script.stream.conclude() is None


def test_each_incarnation_without_a_syn_has_one_too() -> None:
    random = Random(4)
    script = Script()
    for incarnation in range(3):
        start, shift = random.randrange(1 << 32), random.randrange(1 << 32)
        for number in range(12):
            script.both(shift, start + 5 * number, bytes((incarnation, number)) * 2 + b"!")
    assert script.stream.conclude() is None


def test_syns_behind_their_data() -> None:
    """The secondary's capture has the handshake after the first segments."""
    script = Script()
    script.say(PRIMARY, 100, flags=SYN_FLAG)
    script.say(PRIMARY, 101, b"first")
    script.say(PRIMARY, 106, b"second")
    script.say(SECONDARY, 7106, b"second")
    script.say(SECONDARY, 7101, b"first")
    script.say(SECONDARY, 7100, flags=SYN_FLAG)
    assert script.stream.conclude() is None


class TestTwoConnectionsOfTheSamePorts:
    """The secondary's file has the end of one and the beginning of the next in another order."""

    OLD, NEW = 500_000_000, 900_000_000  # the primary's numbers
    OLD_SHIFT, NEW_SHIFT = 77_000, 2_000_000_000

    def primary(self) -> Script:
        """The end of a connection whose beginning nobody saw, and then another one."""
        script = Script()
        script.say(PRIMARY, self.OLD, b"o")
        script.say(PRIMARY, self.NEW, flags=SYN_FLAG)
        script.say(PRIMARY, self.NEW + 1, b"new")
        script.say(PRIMARY, self.NEW + 4, b"newer")
        return script

    def old(self, script: Script, byte: bytes = b"o") -> None:
        script.say(SECONDARY, self.OLD + self.OLD_SHIFT, byte)

    def new(self, script: Script, at: int, data: bytes = b"", flags: int = ACK) -> None:
        script.say(SECONDARY, self.NEW + at + self.NEW_SHIFT, data, flags)

    def test_a_segment_before_its_syn_and_before_the_last_one_of_the_old_connection(self) -> None:
        """It is the new one's, though the primary's old connection had no mate when it came."""
        script = self.primary()
        self.new(script, 1, b"new")
        self.old(script)
        self.new(script, 0, flags=SYN_FLAG)
        self.new(script, 4, b"newer")
        assert script.stream.conclude() is None

    def test_a_segment_of_the_old_connection_behind_the_new_ones_syn(self) -> None:
        """It stays the old one's."""
        script = self.primary()
        self.new(script, 0, flags=SYN_FLAG)
        self.new(script, 1, b"new")
        self.old(script)
        self.new(script, 4, b"newer")
        assert script.stream.conclude() is None

    def test_a_wrong_byte_of_either_is_told_once_and_at_its_place(self) -> None:
        script = self.primary()
        self.new(script, 1, b"nEw")
        self.old(script)
        self.new(script, 0, flags=SYN_FLAG)
        self.new(script, 4, b"newer")
        assert script.stream.conclude() == Finding(DATA, 1, 3, 1)
        script = self.primary()
        self.new(script, 0, flags=SYN_FLAG)
        self.new(script, 1, b"new")
        self.old(script, b"O")
        self.new(script, 4, b"newer")
        assert script.stream.conclude() == Finding(DATA, 0, 1, 3)

    @pytest.mark.parametrize("said", [b"said", b""])
    def test_two_syns_in_another_order(self, said: bytes) -> None:
        """The first connection is its SYN alone, so it fits both; the second one says something, or has a FIN."""
        script = Script()
        script.say(PRIMARY, self.OLD, flags=SYN_FLAG)
        self.new(script, 0, flags=SYN_FLAG)
        script.say(SECONDARY, self.OLD + self.OLD_SHIFT, flags=SYN_FLAG)
        script.say(PRIMARY, self.NEW, flags=SYN_FLAG)
        script.say(PRIMARY, self.NEW + 1, said, FIN | ACK)
        self.new(script, 1, said, FIN | ACK)
        assert script.stream.conclude() is None

    def test_a_wrong_byte_in_one_and_a_fin_in_the_other(self) -> None:
        """They stand at the same place behind their SYNs: those that end alike are mates."""
        script = Script()
        for side, byte, old, new in ((PRIMARY, b"o", 0, 0), (SECONDARY, b"O", self.OLD_SHIFT, self.NEW_SHIFT)):
            script.say(side, self.OLD + old, flags=SYN_FLAG)
            script.say(side, self.OLD + old + 1, byte)
            script.say(side, self.NEW + new, flags=SYN_FLAG)
            script.say(side, self.NEW + new + 1, flags=FIN | ACK)
        assert script.stream.conclude() == Finding(DATA, 0, 2, 2)

    def test_the_last_segments_of_the_old_connection_around_the_new_ones_syn(self) -> None:
        """Where the distance can't be told from the one that came first: its mate begins before that."""
        script = Script()
        script.say(PRIMARY, self.OLD, b"0123456789")
        script.say(PRIMARY, self.NEW, flags=SYN_FLAG)
        script.say(SECONDARY, self.OLD + self.OLD_SHIFT + 4, b"456789")
        self.new(script, 0, flags=SYN_FLAG)
        script.say(SECONDARY, self.OLD + self.OLD_SHIFT, b"0123")
        assert script.stream.conclude() is None

    def test_a_connection_is_over_once_enough_was_said_behind_it(self) -> None:
        """Its end waits for no more: what the files have ahead of each other stays small."""
        script = self.primary()
        self.old(script)
        self.new(script, 0, flags=SYN_FLAG)
        self.new(script, 1, b"newnewer")
        for number in range(20):
            script.both(self.NEW_SHIFT, self.NEW + 9 + number, b"+")
        script.say(PRIMARY, self.OLD + (1 << 30), b"another")
        script.say(SECONDARY, self.OLD + (1 << 30) + 5, b"another")
        assert script.stream.costs[PRIMARY] < 600 > script.stream.costs[SECONDARY]


def test_pure_acks_wait_for_nothing() -> None:
    """They say nothing that has a place: a file of them costs nothing, however long its distance stays unknown."""
    script = Script()
    for number in range(10_000):
        script.say(SECONDARY, 5, ack=number)
    assert script.stream.costs == [0, 0, 0]


def test_the_first_segments_of_a_capture_in_the_middle_may_be_reordered() -> None:
    """The distance is that under which most edges fall together, not that of the first segments."""
    script = Script()
    for number in range(10):
        script.say(PRIMARY, 1000 * number, bytes((65 + number,)) * 1000)
    for number in (1, 0, 3, 2, 4, 5, 6, 7, 9, 8):
        script.say(SECONDARY, 77_000 + 1000 * number, bytes((65 + number,)) * 1000)
    assert script.stream.conclude() is None


def test_offsets_count_from_behind_the_syn_and_beyond_the_wrap() -> None:
    """The byte behind the SYN is 0, wherever the numbers wrap."""
    script = Script()
    isn = MASK - 5
    script.both(0, isn, flags=SYN_FLAG)
    script.both(0, isn + 1, b"0123456789")
    script.say(PRIMARY, isn + 11, b"abcdef")
    script.say(SECONDARY, isn + 11, b"abcxef")
    assert script.stream.conclude() == Finding(DATA, 13, 3, 3)


def test_offsets_go_on_where_a_capture_lacks_gigabytes() -> None:
    """From the SYN 3 GiB on, in two leaps that a signed distance could not span."""
    script = Script()
    script.both(0, 1, flags=SYN_FLAG)
    script.both(0, 2, b"begin")
    script.both(0, 2 + (3 << 30), b"then ")
    script.say(PRIMARY, 7 + (3 << 30), b"wrong")
    script.say(SECONDARY, 7 + (3 << 30), b"wRong")
    assert script.stream.conclude() == Finding(DATA, (3 << 30) + 6, 4, 4)


class TestWhatIsTold:
    """Reasons, places and frames."""

    def both(self) -> Script:
        script = Script()
        script.both(50, 0, flags=SYN_FLAG)
        script.both(50, 1, b"hello")
        return script

    def test_bytes_that_one_file_lacks(self) -> None:
        script = self.both()
        script.say(PRIMARY, 6, b"more")
        assert script.stream.conclude() == Finding(UNMATCHED, 5, 3, 0)
        script = self.both()
        script.say(SECONDARY, 56, b"more")
        assert script.stream.conclude() == Finding(UNMATCHED, 5, 0, 3)

    def test_the_lowest_of_several(self) -> None:
        """The first differing byte is the first in the stream, not in time."""
        script = self.both()
        script.say(PRIMARY, 26, b"later")
        script.say(SECONDARY, 76, b"LATER")
        script.both(50, 16, b"fine")
        script.say(PRIMARY, 6, b"sooner")
        script.say(SECONDARY, 56, b"soOner")
        assert script.stream.conclude() == Finding(DATA, 7, 5, 5)

    def test_fins_at_different_places(self) -> None:
        script = self.both()
        script.say(PRIMARY, 6, b"more", FIN | ACK)
        script.say(SECONDARY, 56, b"", FIN | ACK)
        assert script.stream.conclude() == Finding(FIN_DIFFERS, 5, 3, 3)

    def test_a_fin_that_one_file_lacks(self) -> None:
        script = self.both()
        script.say(SECONDARY, 56, b"", FIN | ACK)
        assert script.stream.conclude() == Finding(UNMATCHED, 5, 0, 3)

    def test_a_reset_elsewhere(self) -> None:
        script = self.both()
        script.both(50, 6, flags=RST)
        assert script.stream.conclude() is None
        script.say(PRIMARY, 8, flags=RST)
        assert script.stream.conclude() == Finding(UNMATCHED, 7, 4, 0)

    def test_syns_that_say_different_things(self) -> None:
        script = Script()
        script.say(PRIMARY, 0, flags=SYN_FLAG, options=b"mss 1460")
        script.say(SECONDARY, 50, flags=SYN_FLAG, options=b"mss 1400")
        assert script.stream.conclude() == Finding(SYN, 0, 1, 1)

    def test_another_urgent_byte(self) -> None:
        """The urgent pointer counts from its segment's number, so cutting moves it; it names one place all the same."""
        script = self.both()
        script.stream.take(PRIMARY, Segment(9, 6, 9, ACK | URG, 6, b"urgent", urgent=5))
        script.stream.take(SECONDARY, Segment(9, 56, 9, ACK, 3, b"urg"))
        script.stream.take(SECONDARY, Segment(10, 59, 9, ACK | URG, 3, b"ent", urgent=2))
        assert script.stream.conclude() is None
        script.stream.take(SECONDARY, Segment(11, 59, 9, ACK | URG, 3, b"ent", urgent=3))
        assert script.stream.conclude() == Finding(UNMATCHED, 11, 0, 11)

    def test_a_byte_in_the_syn(self) -> None:
        """TCP Fast Open: the first payload byte is 0."""
        script = Script()
        script.say(PRIMARY, 0, b"GET /", SYN_FLAG)
        script.say(SECONDARY, 50, b"GOT /", SYN_FLAG)
        assert script.stream.conclude() == Finding(DATA, 1, 1, 1)

    def test_a_connection_that_one_file_lacks(self) -> None:
        """Told by its first frame."""
        script = Script()
        script.say(PRIMARY, 0, flags=SYN_FLAG)
        script.say(PRIMARY, 1, b"data")
        assert script.stream.conclude() == Finding(UNMATCHED, 0, 1, 0)


class TestAcks:
    """Neither file acks what the other doesn't."""

    def test_an_ack_ahead_of_the_others_last(self) -> None:
        script = Script()
        for ack in (100, 200, 300):
            script.both(50, 7, ack=ack)
        script.say(PRIMARY, 7, ack=400)
        assert script.stream.conclude() == Finding(UNMATCHED, 0, 4, 0)
        script.say(SECONDARY, 57, ack=500)
        assert script.stream.conclude() == Finding(UNMATCHED, 0, 0, 4)

    def test_acks_are_in_the_numbers_of_what_comes_back(self) -> None:
        """The other direction's distance is 1000; by it the two are level."""
        script = Script()
        script.say(PRIMARY, 7, ack=1500)
        script.say(SECONDARY, 57, ack=500)
        assert script.stream.conclude(BACK) is None
        assert script.stream.conclude(((1500, 900),)) == Finding(UNMATCHED, 0, 1, 0)

    def second(self, ack: int) -> Script:
        """Two connections of the same ports: the files are level in the first one, and 1000 apart in what it acks."""
        script = Script()
        script.say(PRIMARY, 7, b"first", ack=1500)
        script.say(SECONDARY, 57, b"first", ack=500)
        script.say(PRIMARY, 900_000_000, b"second", ack=2_000_000_000)
        script.say(SECONDARY, 800_000_000, b"second", ack=ack)
        return script

    def test_the_distance_of_another_connection_says_nothing(self) -> None:
        """Nothing comes back on the second one, so its acks may be anything apart."""
        assert self.second(100).stream.conclude(BACK) is None
        assert self.second(1_400_000_000).stream.conclude(BACK) is None

    def test_each_connection_has_a_distance_of_its_own_for_acks_too(self) -> None:
        back = (*BACK, (2_000_000_000, 600_000_000))
        assert self.second(1_400_000_000).stream.conclude(back) is None
        assert self.second(1_399_999_999).stream.conclude(back) == Finding(UNMATCHED, 899_999_999, 2, 0)
        assert self.second(1_400_000_001).stream.conclude(back) == Finding(UNMATCHED, 899_999_999, 0, 2)

    def test_a_connection_that_one_file_never_acks(self) -> None:
        """It comes back in both files; the SYN alone acks nothing."""
        script = Script()
        script.both(50, 7, ack=1500)
        script.both(50, 900_000_000, flags=SYN_FLAG)
        script.say(PRIMARY, 900_000_001, ack=2_000_000_000)
        assert script.stream.conclude(((2_000_000_000, 600_000_000),)) == Finding(UNMATCHED, 0, 3, 0)

    def test_as_many_connections_as_are_remembered(self) -> None:
        """Each file has forgotten another one of nine: that the secondary acked it can't be seen, and is believed."""
        script = Script()
        spread = 1 << 28
        for number in range(9):
            script.say(PRIMARY, spread * number, ack=spread * number)
        for number in (1, 0, *range(2, 9)):
            script.say(SECONDARY, spread * number + 50, ack=spread * number + 1000)
        back = tuple((spread * number, -1000 & MASK) for number in range(1, 9))
        assert script.stream.conclude(back) is None

    def test_connections_whose_acks_are_near(self) -> None:
        """The one that nothing comes back on acks nearly the same numbers as the other one, in the primary alone."""
        script = Script()
        script.say(PRIMARY, 900_000_000, b"quiet", ack=1000)
        script.say(SECONDARY, 800_000_000, b"quiet", ack=3_000_000_000)
        script.say(PRIMARY, 7, b"heard", ack=1500)
        script.say(SECONDARY, 57, b"heard", ack=500)
        assert script.stream.conclude(BACK) is None

    def test_a_direction_that_goes_on_while_another_connection_comes_back(self) -> None:
        """By its numbers it is one connection; what is acked tells of two, and each is judged by its own distance."""
        script = Script()
        for side, acks in ((PRIMARY, (2_500_000_000, 300_000_000)), (SECONDARY, (2_400_000_000, 2_000_000_000))):
            for ack in acks:
                script.say(side, 7, ack=ack)
        known = ((2_500_000_000, 100_000_000),)
        assert script.stream.conclude(known) is None
        assert script.stream.conclude((*known, (300_000_000, 300_000_000 - 2_000_000_000 & MASK))) is None
        further = ((2_500_000_000, 99_999_999),)
        assert script.stream.conclude(further) == Finding(UNMATCHED, 0, 1, 0)

    def test_a_file_that_acks_only_the_beginning(self) -> None:
        """One direction alone, of a long download: the secondary's file ends a gigabyte before the primary's."""
        script = Script()
        for number in range(20):
            script.say(PRIMARY, 7, ack=50_000_000 * number)
            if number < 3:
                script.say(SECONDARY, 57, ack=50_000_000 * number + 900)
        assert script.stream.conclude() == Finding(UNMATCHED, 0, 20, 0)

    def test_without_anything_to_go_by_acks_are_believed(self) -> None:
        """One direction alone, one ack each: the distance may be anything."""
        script = Script()
        script.say(PRIMARY, 7, ack=1500)
        script.say(SECONDARY, 57, ack=123)
        assert script.stream.conclude() is None

    def test_fewer_acks_for_the_same_bytes_are_equal(self) -> None:
        script = Script()
        for ack in (100, 200, 300, 400):
            script.say(PRIMARY, 7, ack=ack)
        for ack in (100, 400):
            script.say(SECONDARY, 57, ack=ack)
        assert script.stream.conclude() is None


def test_a_stream_of_contradictions_is_given_up_in_time() -> None:
    """Other bytes at the same place again and again, in one file: the window stays small, and it ends."""
    random = Random(3)
    script = Script()
    for _ in range(3000):
        script.say(PRIMARY, random.randrange(2000), random.randbytes(500))
        if script.stream.hopeless:
            break
    assert script.stream.hopeless
    assert sum(script.stream.costs) < 8 << 20
