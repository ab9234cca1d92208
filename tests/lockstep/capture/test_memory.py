"""The `memory` frontend: two ports back to back."""

from __future__ import annotations

import select
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packets import segment

from lockstep.batch import Batch
from lockstep.capture.memory import QUEUE, MemoryPort, pair


@pytest.fixture
def ports() -> Iterator[tuple[MemoryPort, MemoryPort]]:
    made = pair("mirror.network")
    yield made
    for port in made:
        port.close()


Ports = tuple[MemoryPort, MemoryPort]


def readable(port: MemoryPort) -> bool:
    return bool(select.select([port], [], [], 0)[0])


def frames(port: MemoryPort) -> list[bytes] | None:
    batch = port.read()
    return batch.frames() if batch else None


def test_what_is_written_at_one_end_is_read_at_the_other(ports: Ports) -> None:
    near, far = ports
    near.write(Batch.of([b"one", b"two"]))
    far.write(Batch.of([b"back"]))
    assert frames(far) == [b"one", b"two"]
    assert frames(near) == [b"back"]
    assert frames(far) is frames(near) is None


def test_batches_come_in_order_and_apart(ports: Ports) -> None:
    near, far = ports
    for text in (b"1", b"2", b"3"):
        near.write(Batch.of([text]))
    assert [frames(far) for _ in range(4)] == [[b"1"], [b"2"], [b"3"], None]


def test_an_end_is_readable_while_batches_wait(ports: Ports) -> None:
    near, far = ports
    assert not readable(far)
    near.write(Batch.of([b"1"]))
    near.write(Batch.of([b"2"]))
    assert readable(far)
    assert not readable(near)
    far.read()
    assert readable(far)
    far.read()
    assert not readable(far)
    near.write(Batch.of([b"3"]))
    assert readable(far)


@given(st.lists(st.booleans(), max_size=50))
def test_an_end_is_readable_exactly_when_it_has_something(writes: list[bool]) -> None:
    near, far = pair("mirror.network")
    waiting = 0
    for write in writes:
        if write:
            near.write(Batch.of([b"x"]))
            waiting += 1
        else:
            assert (far.read() is not None) == (waiting > 0)
            waiting = max(0, waiting - 1)
        assert readable(far) == (waiting > 0)
    near.close()
    far.close()


def test_what_was_written_is_a_copy(ports: Ports) -> None:
    near, far = ports
    data = bytearray(b"before")
    batch = Batch.of([data])
    batch.data = memoryview(data)
    near.write(batch)
    data[:] = b"behind"
    batch.lengths[0] = 1
    assert frames(far) == [b"before"]


def test_both_ends_count(ports: Ports) -> None:
    near, far = ports
    near.write(Batch.of([b"123", b"4567"]))
    far.read()
    assert near.counters == {"frames_in": 0, "bytes_in": 0, "frames_out": 2, "bytes_out": 7, "dropped_out": 0}
    assert far.counters == {"frames_in": 2, "bytes_in": 7, "frames_out": 0, "bytes_out": 0, "dropped_out": 0}


def test_a_full_queue_drops_and_counts_as_a_device_would(ports: Ports) -> None:
    near, far = ports
    for number in range(QUEUE + 3):
        near.write(Batch.of([b"%d" % number, b"x"]))
    assert near.counters["dropped_out"] == 6
    assert near.counters["frames_out"] == 2 * QUEUE
    assert frames(far) == [b"0", b"x"]
    near.write(Batch.of([b"room again"]))
    assert near.counters["dropped_out"] == 6


def test_frames_for_an_end_that_is_gone_are_dropped_and_counted(ports: Ports) -> None:
    near, far = ports
    far.close()
    near.write(Batch.of([b"1", b"2"]))
    assert near.counters["dropped_out"] == 2
    assert near.counters["frames_out"] == 0


def test_what_waits_can_be_read_after_the_other_end_went(ports: Ports) -> None:
    near, far = ports
    near.write(Batch.of([b"last words"]))
    near.close()
    assert frames(far) == [b"last words"]
    assert frames(far) is None


def test_closing_twice_is_allowed_and_gives_the_descriptor_back(open_files: Callable[[], int]) -> None:
    before = open_files()
    near, far = pair("mirror.network")
    for port in (near, near, far, far):
        port.close()
    assert open_files() == before


def test_the_two_ends_are_named(ports: Ports) -> None:
    assert [port.name for port in ports] == ["mirror.network", "mirror.network'"]


def test_a_memory_port_is_never_exhausted(ports: Ports) -> None:
    assert not ports[0].exhausted()


@pytest.mark.parametrize("own", [0, 10, 12])
@pytest.mark.parametrize("given_", [0, 10, 12])
def test_a_port_takes_any_virtio_header_and_gives_its_own(own: int, given_: int) -> None:
    near, far = pair("mirror.network", own)
    plain = segment(1, 2, b"payload")
    near.write(Batch.of([bytes(given_) + plain], given_))
    batch = far.read()
    assert batch is not None
    assert (batch.frames(), batch.vnet, far.vnet) == ([bytes(own) + plain], own, own)
    near.close()
    far.close()


def test_a_super_frame_passes_whole_with_its_header() -> None:
    near, far = pair("mirror.network", 10)
    super_frame = segment(1, 2, bytes(60_000), partial=True, vnet=10, gso_size=1448)
    near.write(Batch.of([super_frame], 10))
    assert frames(far) == [super_frame]
    assert struct.unpack_from("<BBHH", super_frame) == (1, 1, 54, 1448)
    near.close()
    far.close()
