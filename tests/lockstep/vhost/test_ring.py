"""Split rings, against a guest's driver that is written from the specification."""

from __future__ import annotations

import contextlib
import struct
from array import array
from collections.abc import Callable, Iterator

import pytest
from fuzzing import fuzz
from hypothesis import example, given
from hypothesis import strategies as st

from bench.vhost_frontend import (
    GUEST_START,
    IS_INDIRECT,
    NEXT,
    PAGE,
    RING_SIZE,
    SIZE,
    USER_START,
    WRITE,
    Arena,
    Driver,
)
from lockstep.vhost.memory import Memory
from lockstep.vhost.protocol import RegionAddress
from lockstep.vhost.ring import GATHER_ROOM, Ring, RingError

DATA = GUEST_START + 0x4000
HEADER = bytes(12)
FRAME = bytes(range(60))


class Rig:
    """A ring between a driver and the code under test."""

    def __init__(self, base: int = 0, **features: bool) -> None:
        self.arena = Arena()
        self.memory = Memory()
        self.memory.add(RegionAddress(GUEST_START, SIZE, USER_START, self.arena.offset), self.arena.fd)
        self.driver = Driver(self.arena, GUEST_START, base=base)
        self.ring = Ring(self.memory)
        self.ring.size = RING_SIZE
        self.ring.base = base
        for name, value in ({"indirect": True, "event_idx": True, "mergeable": True} | features).items():
            setattr(self.ring, name, value)
        self.ring.attach(*(self.memory.ring_part(a - GUEST_START + USER_START, n) for a, n in self.driver.parts()))
        self.ring.start()
        self.room = memoryview(bytearray(GATHER_ROOM))

    def gather(self) -> list[bytes]:
        lengths = array("I")
        end = self.ring.gather(self.room, 0, lengths)
        data, frames = bytes(self.room[:end]), []
        for length in lengths:
            frames.append(data[:length])
            data = data[length:]
        assert not data
        return frames

    def scatter(self, frame: bytes, vnet: int = 0) -> bool:
        return bool(self.ring.scatter(memoryview(frame), 0, len(frame), vnet))

    def offer_room(self, *sizes: int) -> None:
        """One buffer a chain, end to end from DATA, zeroed."""
        at = DATA
        for n, size in enumerate(sizes):
            self.driver.describe(n, at, size, WRITE)
            self.arena.write(at, bytes(size))
            at += size
        self.driver.offer(*range(len(sizes)))

    def close(self) -> None:
        self.ring.detach()
        self.memory.close()
        self.arena.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def test_a_chain_becomes_one_frame_whatever_its_buffers(rig: Rig) -> None:
    rig.arena.write(DATA, HEADER + FRAME)
    rig.driver.describe(3, DATA, 12, NEXT, 1)
    rig.driver.describe(1, DATA + 12, 1, NEXT, 2)
    rig.driver.describe(2, DATA + 13, 59)
    rig.driver.offer(3)
    assert rig.gather() == [HEADER + FRAME]
    assert rig.driver.returned() == [(3, 0)]


def test_an_indirect_table_may_follow_direct_buffers(rig: Rig) -> None:
    table = DATA + 0x1000
    rig.arena.write(DATA, HEADER + FRAME)
    rig.arena.write(table, struct.pack("<QIHH", DATA + 12, 20, NEXT, 1) + struct.pack("<QIHH", DATA + 32, 40, 0, 0))
    rig.driver.describe(0, DATA, 12, NEXT, 1)
    rig.driver.describe(1, table, 32, IS_INDIRECT)
    rig.driver.offer(0)
    assert rig.gather() == [HEADER + FRAME]


def test_indexes_wrap_at_65536() -> None:
    rig = Rig(base=0xFFFE)
    rig.arena.write(DATA, HEADER + FRAME)
    for n in range(4):
        rig.driver.describe(n, DATA, 72)
    rig.driver.offer(0, 1, 2, 3)
    assert rig.gather() == [HEADER + FRAME] * 4
    assert rig.ring.base == rig.driver.used_index() == 2
    assert rig.driver.returned() == [(0, 0), (1, 0), (2, 0), (3, 0)]
    rig.close()


def test_a_buffer_may_straddle_two_regions() -> None:
    rig = Rig()
    more = Arena(PAGE)
    rig.memory.add(RegionAddress(GUEST_START + SIZE, PAGE, USER_START + 2 * SIZE, more.offset), more.fd)
    rig.arena.write(GUEST_START + SIZE - 20, (HEADER + FRAME)[:20])
    more.write(GUEST_START, (HEADER + FRAME)[20:])
    rig.driver.describe(0, GUEST_START + SIZE - 20, 72)
    rig.driver.offer(0)
    assert rig.gather() == [HEADER + FRAME]
    rig.driver.describe(0, GUEST_START + SIZE - 20, 72, WRITE)
    rig.driver.offer(0)
    assert rig.scatter(FRAME)
    assert rig.arena.read(GUEST_START + SIZE - 8, 8) == FRAME[:8]
    assert more.read(GUEST_START, 52) == FRAME[8:]
    rig.close()
    more.close()


def test_a_frame_is_spread_over_buffers_and_says_over_how_many(rig: Rig) -> None:
    rig.offer_room(20, 30, 100)
    assert rig.scatter(FRAME)
    assert rig.arena.read(DATA, 72) == bytes(10) + b"\x03\0" + FRAME
    assert rig.driver.returned() == [(0, 20), (1, 30), (2, 22)]


def test_the_header_of_the_frame_goes_to_the_guest(rig: Rig) -> None:
    rig.offer_room(200)
    header = bytes([1, 1, 54, 0, 0xA8, 5, 34, 0, 16, 0])
    assert rig.scatter(header + FRAME, 10)
    assert rig.arena.read(DATA, 72) == header + b"\x01\0" + FRAME


def test_too_few_buffers_take_nothing(rig: Rig) -> None:
    rig.offer_room(20, 30)
    assert not rig.scatter(FRAME)
    assert rig.driver.returned() == []
    assert rig.arena.read(DATA, 50) == bytes(50)


def test_without_mergeable_buffers_a_frame_that_is_too_long_is_dropped_and_its_buffer_stays() -> None:
    rig = Rig(mergeable=False)
    rig.offer_room(71, 200)
    assert rig.scatter(FRAME)
    assert rig.ring.dropped == 1
    assert rig.driver.returned() == []
    assert rig.scatter(FRAME[:59])
    assert rig.driver.returned() == [(0, 71)]
    rig.close()


def test_a_frame_shorter_than_ethernet_is_dropped_and_its_chain_given_back(rig: Rig) -> None:
    rig.driver.describe(0, DATA, 25)
    rig.driver.offer(0)
    assert rig.gather() == []
    assert (rig.ring.dropped, rig.driver.returned()) == (1, [(0, 0)])


def test_kicks_are_asked_for_by_event_index_or_by_flag(rig: Rig) -> None:
    rig.driver.describe(0, DATA, 72)
    rig.driver.offer(0, 0, 0)
    rig.gather()
    assert not rig.ring.listen()
    assert rig.driver.avail_event() == 3
    rig.driver.offer(0)
    assert rig.ring.listen()
    plain = Rig(event_idx=False)
    plain.ring.quiet()
    assert plain.driver.flags() == 1
    assert not plain.ring.listen()
    assert plain.driver.flags() == 0
    plain.close()


@pytest.mark.parametrize(("wanted", "called"), [(0, True), (1, True), (2, False), (0xFFFF, False)])
def test_the_guest_is_called_when_its_event_index_is_passed(rig: Rig, wanted: int, called: bool) -> None:
    rig.driver.want_interrupt_at(wanted)
    rig.driver.describe(0, DATA, 72)
    rig.driver.offer(0, 0)
    rig.gather()
    assert rig.ring.must_call() is called
    assert not rig.ring.must_call()


def test_without_event_index_a_flag_silences_us() -> None:
    rig = Rig(event_idx=False)
    rig.driver.describe(0, DATA, 72)
    rig.driver.offer(0)
    rig.gather()
    assert rig.ring.must_call()
    rig.arena.write(rig.driver.avail, b"\x01\0")
    rig.driver.offer(0)
    rig.gather()
    assert not rig.ring.must_call()
    rig.close()


def _direct(rig: Rig, address: int, size: int, flags: int = 0, following: int = 0) -> None:
    rig.driver.describe(0, address, size, flags, following)
    rig.driver.offer(0)


def _table(rig: Rig, *entries: tuple[int, int, int, int], size: int | None = None, flags: int = 0) -> None:
    data = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
    rig.arena.write(DATA, data)
    _direct(rig, DATA, len(data) if size is None else size, IS_INDIRECT | flags)


#: Deeds, with the flag of a buffer in the ring's own direction.
HOSTILE: dict[str, Callable[[Rig, int], None]] = {
    "outside": lambda rig, w: _direct(rig, GUEST_START + SIZE, 72, w),
    "before": lambda rig, w: _direct(rig, GUEST_START - 1, 72, w),
    "over the end": lambda rig, w: _direct(rig, GUEST_START + SIZE - 71, 72, w),
    "wrapping": lambda rig, w: _direct(rig, 2**64 - 36, 72, w),
    "4 GiB": lambda rig, w: _direct(rig, DATA, 0xFFFF_FFFF, w),
    "to itself": lambda rig, w: _direct(rig, DATA, 1, NEXT | w, 0),
    "empty loop": lambda rig, w: _direct(rig, DATA, 0, NEXT | w, 0),
    "next outside": lambda rig, w: _direct(rig, DATA, 1, NEXT | w, RING_SIZE),
    "head outside": lambda rig, w: rig.driver.offer(RING_SIZE),
    "head far outside": lambda rig, w: rig.driver.offer(0xFFFF),
    "index too far": lambda rig, w: rig.driver.show(RING_SIZE + 1),
    "index backwards": lambda rig, w: rig.driver.show(0xFFFF),
    "odd table": lambda rig, w: _table(rig, (DATA, 72, w, 0), (DATA, 72, w, 0), size=17),
    "empty table": lambda rig, w: _table(rig, (DATA, 72, w, 0), size=0),
    "huge table": lambda rig, w: _table(rig, (DATA, 72, w, 0), size=16 * 1025),
    "table outside": lambda rig, w: _direct(rig, GUEST_START + SIZE - 8, 16, IS_INDIRECT),
    "table and next": lambda rig, w: _table(rig, (DATA, 72, w, 0), flags=NEXT),
    "nested table": lambda rig, w: _table(rig, (DATA, 16, IS_INDIRECT, 0)),
    "loop in table": lambda rig, w: _table(rig, (DATA, 1, NEXT | w, 1), (DATA, 1, NEXT | w, 0)),
    "next outside table": lambda rig, w: _table(rig, (DATA, 1, NEXT | w, 1)),
}


@pytest.mark.parametrize("deed", HOSTILE)
def test_a_hostile_transmitter_is_refused(rig: Rig, deed: str) -> None:
    HOSTILE[deed](rig, 0)
    with pytest.raises(RingError):
        rig.gather()
    assert rig.driver.used_index() == 0


@pytest.mark.parametrize("deed", HOSTILE)
def test_a_hostile_receiver_is_refused(rig: Rig, deed: str) -> None:
    HOSTILE[deed](rig, WRITE)
    with pytest.raises(RingError):
        rig.scatter(FRAME)
    assert rig.driver.used_index() == 0
    assert rig.arena.untouched()


def test_the_longest_frame_is_taken_and_one_byte_more_refused(rig: Rig) -> None:
    longest = 65536 + 14 + 8 + 12
    _direct(rig, DATA, longest)
    assert [len(frame) for frame in rig.gather()] == [longest]
    _direct(rig, DATA, longest + 1)
    with pytest.raises(RingError, match="a chain of 65571 bytes"):
        rig.gather()


def test_buffers_of_the_wrong_direction_are_refused(rig: Rig) -> None:
    _direct(rig, DATA, 72, WRITE)
    with pytest.raises(RingError, match="written"):
        rig.gather()
    other = Rig()
    _direct(other, DATA, 72)
    with pytest.raises(RingError, match="read"):
        other.scatter(FRAME)
    other.close()


def test_a_table_that_was_not_negotiated_is_refused() -> None:
    rig = Rig(indirect=False)
    _table(rig, (DATA, 72, 0, 0))
    with pytest.raises(RingError, match="not negotiated"):
        rig.gather()
    rig.close()


def test_an_index_that_steps_back_among_buffers_already_looked_at_is_refused(rig: Rig) -> None:
    rig.offer_room(20, 20)
    assert not rig.scatter(FRAME)
    rig.driver.show(1)
    with pytest.raises(RingError, match="went from 2 to 1"):
        rig.scatter(FRAME)


def test_what_came_before_the_hostile_chain_is_taken(rig: Rig) -> None:
    rig.arena.write(DATA, HEADER + FRAME)
    rig.driver.describe(0, DATA, 72)
    rig.driver.describe(1, 0, 72)
    rig.driver.offer(0, 1)
    lengths = array("I")
    with pytest.raises(RingError):
        rig.ring.gather(rig.room, 0, lengths)
    assert list(lengths) == [72]
    assert rig.driver.returned() == [(0, 0)]


ADDRESSES = st.one_of(
    st.integers(0, 2**64 - 1),
    st.just(DATA),
    st.integers(GUEST_START - 64, GUEST_START + 0x5000),
    st.integers(GUEST_START + SIZE - 80, GUEST_START + SIZE + 16),
)
DESCRIPTORS = st.tuples(
    ADDRESSES,
    st.one_of(st.integers(0, 200), st.integers(0, 0xFFFF_FFFF), st.sampled_from([16, 32, 1024])),
    st.integers(0, 7),
    st.one_of(st.integers(0, RING_SIZE), st.integers(0, 0xFFFF)),
)


#: What an indirect table at DATA holds.
TABLES = st.lists(DESCRIPTORS, max_size=8).map(lambda many: b"".join(struct.pack("<QIHH", *one) for one in many))


@fuzz(200)
@given(
    st.lists(DESCRIPTORS, min_size=1, max_size=RING_SIZE),
    st.lists(st.integers(0, RING_SIZE), max_size=RING_SIZE),
    st.one_of(st.none(), st.integers(0, 0xFFFF)),
    st.one_of(st.binary(max_size=256), TABLES),
    st.booleans(),
    st.integers(14, 3000),
)
@example([(GUEST_START, 16, IS_INDIRECT, 0)], [0], None, b"", True, 60)
@example([(DATA, 16 * 1024, IS_INDIRECT, 0)], [0], None, struct.pack("<QIHH", DATA, 1, NEXT, 1024), True, 60)
def test_no_ring_whatever_is_in_it_reaches_outside_of_what_is_shared(
    descriptors: list[tuple[int, int, int, int]],
    heads: list[int],
    shown: int | None,
    data: bytes,
    features: bool,
    size: int,
) -> None:
    for receiving in (False, True):
        rig = Rig(indirect=features, event_idx=features, mergeable=features)
        rig.arena.write(DATA, data)
        for n, one in enumerate(descriptors):
            rig.driver.describe(n, *one)
        rig.driver.offer(*heads)
        if shown is not None:
            rig.driver.show(shown)
        with contextlib.suppress(RingError):
            for _ in range(4):
                if receiving:
                    rig.scatter(bytes(size))
                else:
                    assert all(26 <= len(frame) <= 65536 + 34 for frame in rig.gather())
                rig.ring.must_call()
        assert rig.arena.untouched()
        rig.close()
