"""The decorator `faults`: a bad wire, the same each time."""

from __future__ import annotations

import contextlib
import select
import time
from typing import Any

import pytest
from packets import segment, udp

from lockstep.batch import Batch
from lockstep.capture import open_port
from lockstep.capture.faults import OVERTAKEN, FaultsPort, Rates, Wire
from lockstep.capture.memory import pair
from lockstep.config import Node
from lockstep.streams import Event

FRAMES = [udp(b"%04d" % number) for number in range(1000)]
COUNTERS = ("faults_lost", "faults_duplicated", "faults_reordered", "faults_corrupted")


def through(seed: str = "1", **rates: float) -> tuple[list[bytes], dict[str, int]]:
    """All frames, half a millisecond apart; what comes out, and what was counted."""
    now = 0.0
    counters = dict.fromkeys(COUNTERS, 0)
    wire = Wire(Rates(**rates), seed, counters)
    out = []
    for frame in FRAMES:
        wire.put(Batch.of([frame]), now)
        now += 0.0005
        batch = wire.due(now)
        out += batch.frames() if batch else []
    while batch := wire.due(1e9):
        out += batch.frames()
    assert wire.next() is None
    return out, counters


def test_without_faults_everything_passes_in_order() -> None:
    assert through() == (FRAMES, dict.fromkeys(COUNTERS, 0))


def test_the_same_seed_gives_the_same_faults_and_another_one_others() -> None:
    rates = {"loss": 0.1, "duplicate": 0.1, "reorder": 0.1, "corrupt": 0.1}
    assert through(**rates) == through(**rates)
    assert through(**rates) != through("2", **rates)


def test_loss_takes_its_share() -> None:
    out, counters = through(loss=0.1)
    assert 60 < counters["faults_lost"] < 140
    assert len(out) == 1000 - counters["faults_lost"]
    assert out == [frame for frame in FRAMES if frame in set(out)]


def test_duplicates_follow_each_other() -> None:
    out, counters = through(duplicate=0.1)
    assert len(out) == 1000 + counters["faults_duplicated"]
    assert [frame for number, frame in enumerate(out) if not number or out[number - 1] != frame] == FRAMES


def test_reordered_frames_come_after_later_ones_and_none_is_missing() -> None:
    out, counters = through(reorder=0.1)
    assert sorted(out) == sorted(FRAMES)
    assert out != FRAMES
    late = [number for number in range(1, 1000) if out[number][-4:] < out[number - 1][-4:]]
    assert 0 < len(late) <= counters["faults_reordered"]


@pytest.mark.parametrize("vnet", [0, 10])
def test_one_bit_is_wrong_and_the_checksum_shows_it(vnet: int) -> None:
    """Of a partial checksum it would not: so it is completed first."""
    counters = dict.fromkeys(COUNTERS, 0)
    wire = Wire(Rates(corrupt=1.0), "1", counters)
    whole = segment(7, 5, bytes(250), partial=bool(vnet), vnet=vnet, gso_size=100 if vnet else 0)
    parts = [segment(7 + at, 5, bytes(min(100, 250 - at)), ident=1 + at // 100) for at in (0, 100, 200)]
    right = parts if vnet else [whole]
    wire.put(Batch.of([whole], vnet), 0.0)
    batch = wire.due(0.0)
    assert batch is not None
    assert batch.vnet == vnet
    out = [frame[vnet:] for frame in batch.frames()]
    wrong = [
        int.from_bytes(bytes(a ^ b for a, b in zip(one, other, strict=True)), "big").bit_count()
        for one, other in zip(out, right, strict=True)
    ]
    assert sorted(wrong) == [0] * (len(right) - 1) + [1]
    assert [one[:14] for one in out] == [one[:14] for one in right]


def test_a_delay_holds_each_frame_for_its_time() -> None:
    wire = Wire(Rates(delay=0.5), "1", dict.fromkeys(COUNTERS, 0))
    wire.put(Batch.of(FRAMES[:2]), 10.0)
    wire.put(Batch.of(FRAMES[2:3]), 10.1)
    assert wire.next() == 10.5
    assert wire.due(10.49) is None
    batch = wire.due(10.5)
    assert batch is not None
    assert batch.frames() == FRAMES[:2]
    assert wire.next() == 10.6


def test_a_port_is_readable_when_a_late_frame_is_due_each_way() -> None:
    near, far = pair("mirror.guest")
    with contextlib.closing(FaultsPort(near, Rates(delay=0.05), 1)) as port, contextlib.closing(far):
        far.write(Batch.of(FRAMES[:1]))
        port.write(Batch.of(FRAMES[1:2]))
        assert select.select([port], [], [], 0)[0]
        assert port.read() is None
        assert far.read() is None
        got: list[Any] = []
        deadline = time.monotonic() + 20
        while len(got) < 2 and time.monotonic() < deadline:
            if select.select([port], [], [], 0.5)[0]:
                got += [item for item in (port.read(), far.read()) if item is not None]
        assert {batch.frames()[0] for batch in got} == set(FRAMES[:2])
        assert not select.select([port], [], [], 4 * OVERTAKEN)[0]


def test_an_event_keeps_its_place() -> None:
    near, far = pair("mirror.guest")
    said: list[Any] = [Batch.of(FRAMES[:1]), Event("stop"), Batch.of(FRAMES[1:2])]
    near.read = lambda: said.pop(0) if said else None  # type: ignore[method-assign]
    with contextlib.closing(FaultsPort(near, Rates(delay=9.0), 1)) as port, contextlib.closing(far):
        assert port.read() is None
        first = port.read()
        assert isinstance(first, Batch)
        assert first.frames() == FRAMES[:1]
        assert select.select([port], [], [], 20)[0]
        assert port.read() == Event("stop")
        assert port.read() is None


def test_closing_gives_everything_back(open_files: Any) -> None:
    before = open_files()
    near, far = pair("mirror.guest")
    port = FaultsPort(near, Rates(loss=0.5), 1)
    port.close()
    port.close()
    far.close()
    assert open_files() == before


def test_they_are_settings_of_any_port(tmp_path: Any) -> None:
    guest = {"write": str(tmp_path / "out.pcap"), "faults": {"loss": 1.0}, "trace": str(tmp_path / "trace.pcapng")}
    node = Node.model_validate({"capture": "pcap", "mirror": {"guest": guest}})
    with contextlib.closing(open_port(node, "mirror", "guest")) as port:
        port.write(Batch.of(FRAMES))
        assert (port.counters["faults_lost"], port.counters["traced"], port.counters["frames_out"]) == (1000, 1000, 0)
