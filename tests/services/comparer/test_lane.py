"""The fast lane: what it decides is what the careful path would, and it decides nothing but that a frame is proven."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import ACK, PSH, arp_reply, segment

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import Cut, Event
from services.comparer.core import MADE, Core
from services.comparer.lane import BACKLOG_STALL, FEW, MANY, MOST_BYTES, PRIMARY_STALL
from services.comparer.side import RING

ISN, CLIENT_ISN = 0xFFFFFF00, 900  # data begins shortly before the wrap
STREAM = bytes((i * 7 + i // 256) & 0xFF for i in range(1200))


def piece(place: int, size: int, *, ack: int = 0, port: int = 40000, flip: bool = False, **more: object) -> bytes:
    """A segment in the middle of a connection, which nobody has seen begin."""
    payload = bytearray(STREAM[place : place + size])
    if flip and payload:
        payload[-1] ^= 0x80
    return segment(ISN + place, CLIENT_ISN + ack, bytes(payload), flags=ACK, dport=port, **more)  # type: ignore[arg-type]


class Comparer:
    """A core, and what has come of it."""

    def __init__(self, *, careful: bool = False, **config: object) -> None:
        config.setdefault("on_divergence", "hold")
        if careful:  # any rule has every new flow looked at; this one matches none
            config["passthrough"] = [{"protocol": 99, "action": "compare"}]
        self.core = Core(Node.model_validate({"comparer": config}))
        self.careful = careful
        self.now = 100.0
        self.left: list[bytes] = []
        self.events: list[Event] = []
        self.outputs: list[object] = []

    def push(self, stream: str, *frames: bytes, epoch: int = 0) -> None:
        self.take(self.core.push(stream, Batch.of(frames, 0, epoch), self.now))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.core.tick(self.now))

    def take(self, outputs: list[object]) -> None:
        self.outputs = list(outputs)
        for output in outputs:
            if isinstance(output, Event):
                self.events.append(output)
            else:
                self.left += output[1].frames()  # type: ignore[index]

    def in_the_lane(self) -> int:
        return int(self.core.status()["flows_in_the_lane"])

    def divergences(self) -> list[tuple[object, object]]:
        told = [event.fields for event in self.events if event.name == "divergence"]
        return sorted((str(fields["flow"]), str(fields["reason"])) for fields in told)

    def conserved(self) -> bool:
        c = self.core.counters
        dropped = sum(count for name, count in c.items() if name.startswith("dropped_"))
        return (
            c["primary_frames"] + sum(c[name] for name in MADE) == c["released"] + dropped + self.core.status()["held"]
        )


def test_a_batch_that_leaves_whole_is_the_one_that_came() -> None:
    comparer = Comparer()
    frames = [piece(at * 10, 10, port=port) for at in range(3) for port in (1, 2, 3)]
    batch = Batch.of(frames)
    assert comparer.core.push("primary", batch, comparer.now) == []
    assert comparer.core.status()["held"] == 9
    (output,) = comparer.core.push("secondary", Batch.of(frames), comparer.now)
    assert output[1] is batch  # type: ignore[index]
    assert comparer.in_the_lane() == 3


def test_what_is_proven_of_a_batch_leaves_in_order_and_the_rest_later() -> None:
    comparer = Comparer()
    a = [piece(at * 10, 10, port=1) for at in range(3)]
    b = [piece(at * 10, 10, port=2) for at in range(3)]
    comparer.push("primary", a[0], b[0], a[1], b[1], a[2], b[2])
    comparer.push("secondary", *b)
    assert comparer.left == b
    comparer.push("secondary", *a)
    assert comparer.left == b + a
    assert comparer.in_the_lane() == 2


def test_much_that_lies_together_leaves_where_it_lies() -> None:
    """The rest of the batch waits, and so do the bytes: nobody writes to them."""
    half = bytes(range(256)) * 80  # 20 KiB
    frames = [segment(ISN + place, CLIENT_ISN, half, flags=ACK) for place in range(0, 4 * len(half), len(half))]
    comparer = Comparer()
    comparer.push("primary", *frames)
    comparer.push("secondary", frames[0])
    comparer.push("secondary", *frames[1:3])
    ((stream, batch),) = comparer.outputs  # type: ignore[misc]
    assert (stream, batch.frames(), batch.vnet) == ("released", frames[1:3], 0)
    assert isinstance(batch.data, memoryview)
    assert (batch.data.readonly, batch.stable) == (True, True)
    assert batch.data.obj == b"".join(frames)
    comparer.push("secondary", frames[3])
    assert comparer.left == frames
    assert comparer.conserved()


def test_segments_are_matched_however_they_are_cut() -> None:
    comparer = Comparer()
    comparer.push("primary", piece(0, 300), piece(300, 1), piece(301, 399))
    for at in range(0, 700, 70):
        comparer.push("secondary", piece(at, 70))
    assert comparer.left == [piece(0, 300), piece(300, 1), piece(301, 399)]
    assert comparer.in_the_lane() == 1


def test_a_reused_buffer_changes_nothing() -> None:
    comparer = Comparer()
    frame = piece(0, 100)
    buffer = bytearray(frame)
    comparer.take(comparer.core.push("primary", Batch(memoryview(buffer), array("I", [len(frame)])), comparer.now))
    buffer[:] = bytes(len(frame))
    comparer.push("secondary", frame)
    assert comparer.left == [frame]


def test_an_ack_waits_for_the_secondary_s() -> None:
    comparer = Comparer()
    comparer.push("primary", piece(0, 10, ack=5))
    comparer.push("secondary", piece(0, 10, ack=4))
    assert comparer.left == []
    comparer.push("secondary", piece(10, 0, ack=5))
    assert comparer.left == [piece(0, 10, ack=5)]
    assert comparer.in_the_lane() == 1


def test_a_different_byte_takes_the_careful_path_and_is_found_there() -> None:
    comparer = Comparer()
    comparer.push("primary", piece(0, 100), piece(100, 100, flip=True))
    comparer.push("secondary", piece(0, 100), piece(100, 100))
    assert comparer.left == [piece(0, 100)]
    (divergence,) = [event.fields for event in comparer.events if event.name == "divergence"]
    assert (divergence["reason"], divergence["offset"]) == ("data", 199)
    assert comparer.in_the_lane() == 0


def test_a_repetition_is_checked_against_what_has_left() -> None:
    comparer = Comparer()
    comparer.push("primary", piece(0, 100), piece(100, 100))
    comparer.push("secondary", piece(0, 200))
    comparer.push("primary", piece(50, 100))
    assert comparer.left[2:] == [piece(50, 100)]
    comparer.push("primary", piece(50, 100, flip=True))
    assert len(comparer.left) == 3
    assert comparer.divergences()[0][1] == "data"


def test_a_flow_goes_back_into_the_lane_with_its_history() -> None:
    comparer = Comparer()
    comparer.push("secondary", piece(0, 10))
    comparer.wait(0.5)  # its bytes have waited long: the careful path
    assert comparer.in_the_lane() == 0
    comparer.push("primary", piece(0, 10))
    for at in range(10, 500, 10):
        comparer.push("secondary", piece(at, 10))
        comparer.push("primary", piece(at, 10))
    assert comparer.in_the_lane() == 1
    comparer.push("primary", piece(0, 100))
    assert comparer.left[-1] == piece(0, 100)


def test_a_head_that_waits_takes_the_careful_path() -> None:
    comparer = Comparer()
    comparer.push("primary", piece(0, 10))
    comparer.wait(PRIMARY_STALL / 2)
    assert comparer.in_the_lane() == 1
    assert comparer.core.next_deadline() == 100.0 + PRIMARY_STALL
    comparer.wait(PRIMARY_STALL / 2)
    assert comparer.in_the_lane() == 0
    assert comparer.conserved()
    comparer.push("secondary", piece(0, 10))
    assert comparer.left == [piece(0, 10)]


def test_a_secondary_that_is_late_with_much_is_given_more_time() -> None:
    comparer = Comparer()
    comparer.push("primary", *(piece(0, 10, port=port) for port in range(1, FEW + 100)))
    comparer.wait(PRIMARY_STALL)
    assert comparer.in_the_lane() == FEW + 99
    assert comparer.core.next_deadline() == 100.0 + BACKLOG_STALL
    comparer.wait(BACKLOG_STALL)
    assert comparer.in_the_lane() < FEW + 99
    assert comparer.conserved()


def test_frames_leave_in_order_when_a_flow_leaves_the_lane_in_a_batch() -> None:
    comparer = Comparer()
    comparer.push("secondary", piece(0, 30), piece(30, 20))
    comparer.push("primary", piece(0, 10), piece(10, 20), piece(0, 10), piece(30, 20))
    assert comparer.left == [piece(0, 10), piece(10, 20), piece(0, 10), piece(30, 20)]


@pytest.mark.parametrize("phase", ["commit", "abort"])
def test_a_cut_finds_what_waits_in_the_lane(phase: str) -> None:
    comparer = Comparer()
    before, behind = piece(0, 10), piece(10, 10)
    comparer.push("primary", before)
    comparer.take(comparer.core.push("primary", Cut(1, "prepare"), comparer.now))
    comparer.push("primary", behind)
    assert comparer.left == []
    comparer.take(comparer.core.push("primary", Cut(1, phase), comparer.now))  # type: ignore[arg-type]
    assert comparer.left == ([before] if phase == "commit" else [])
    comparer.push(
        "secondary", piece(10, 10) if phase == "commit" else piece(0, 20), epoch=1 if phase == "commit" else 0
    )
    assert comparer.left == [before, behind]
    assert comparer.conserved()


def test_a_commit_voids_what_the_secondary_said_in_the_lane() -> None:
    comparer = Comparer()
    comparer.push("secondary", piece(0, 10))
    comparer.take(comparer.core.push("primary", Cut(1, "prepare"), comparer.now))
    comparer.take(comparer.core.push("primary", Cut(1, "commit"), comparer.now))
    comparer.push("primary", piece(0, 10), epoch=1)
    assert comparer.left == []
    comparer.push("secondary", piece(0, 10), epoch=1)
    assert comparer.left == [piece(0, 10)]


def test_a_commit_voids_the_secondary_s_acks_in_the_lane() -> None:
    comparer = Comparer()
    comparer.push("primary", piece(0, 10))
    comparer.push("secondary", piece(0, 10), piece(10, 0, ack=50))
    comparer.take(comparer.core.push("primary", Cut(1, "prepare"), comparer.now))
    comparer.take(comparer.core.push("primary", Cut(1, "commit"), comparer.now))
    assert comparer.in_the_lane() == 1
    comparer.push("primary", piece(10, 0, ack=50))
    assert comparer.left == [piece(0, 10)]
    comparer.push("secondary", piece(10, 0, ack=50), epoch=1)
    assert comparer.left == [piece(0, 10), piece(10, 0, ack=50)]


def test_without_the_secondary_everything_leaves_and_no_flow_is_known() -> None:
    comparer = Comparer()
    comparer.push("primary", piece(0, 10))
    _, outputs = comparer.core.command("failover", {}, comparer.now)
    comparer.take(outputs)
    assert comparer.left == [piece(0, 10)]
    assert comparer.in_the_lane() == 0
    assert comparer.conserved()


def test_more_than_a_ring_holds_takes_the_careful_path() -> None:
    """Two batches of frames without payload fill the primary's ring; what came first makes way, and nothing is lost."""
    comparer = Comparer()
    batch = Batch.of([piece(0, 0, ack=1, port=port) for port in range(1, 101)] * (RING // 200))
    for _ in range(3):
        comparer.take(comparer.core.push("primary", batch, comparer.now))
    assert comparer.conserved()
    assert comparer.core.status()["held"] == 3 * len(batch)
    for port in range(1, 101):
        comparer.push("secondary", piece(0, 0, ack=1, port=port))
    assert len(comparer.left) == 3 * len(batch)
    assert comparer.conserved()


def test_among_many_flows_each_is_found() -> None:
    """More of them than from which on records are fetched ahead, and among their frames some that are no TCP."""
    comparer = Comparer()
    ports = range(1, MANY + 1000)
    for turn in range(2):
        frames = [piece(turn * 2, 2, port=port) for port in ports]
        frames.insert(5, arp_reply())
        comparer.push("primary", *frames)
        comparer.push("secondary", *frames[6:], *frames[:6])
    assert len(comparer.left) == 2 * (len(ports) + 1)
    assert comparer.in_the_lane() == len(ports)


def test_bytes_that_wait_are_bounded() -> None:
    comparer = Comparer()
    large = bytes(60_000)
    for port in range(1, MOST_BYTES // 60_000 + 10):
        comparer.push("secondary", segment(1, 1, large, flags=PSH, dport=port))
    assert comparer.core.status()["flows"] > comparer.in_the_lane()
    for port in range(1, MOST_BYTES // 60_000 + 10):
        comparer.push("primary", segment(1, 1, large, flags=PSH, dport=port))
    assert len(comparer.left) == MOST_BYTES // 60_000 + 9


#: (who, flow, place, size, ack, flipped): most are in order, so that flows stay in the lane for a while.
STEPS = st.lists(
    st.tuples(
        st.sampled_from("pps"),
        st.integers(0, 2),
        st.one_of(st.none(), st.none(), st.none(), st.integers(0, 400)),
        st.integers(0, 60),
        st.integers(0, 30),
        st.sampled_from([False] * 12 + [True]),
        st.sampled_from([0.0] * 6 + [0.01, 0.03, 0.2]),
    ),
    max_size=80,
)


@given(STEPS, st.integers(1, 4), st.sampled_from([None, "prepare", "failover"]))
@settings(max_examples=300, deadline=None)
def test_the_lane_releases_nothing_that_was_not_said(
    steps: list[tuple[str, int, int | None, int, int, bool, float]], together: int, ending: str | None
) -> None:
    """Invariants 1, 2, 3 and 4 for flows picked up in their middle, several frames to a batch."""
    comparer = Comparer()
    following = {("p", flow): 0 for flow in range(3)} | {("s", flow): 0 for flow in range(3)}
    said: list[set[int]] = [set() for _ in range(3)]
    acked = [0, 0, 0]
    sent: list[list[bytes]] = [[] for _ in range(3)]
    groups: list[tuple[str, list[bytes], float]] = []
    heard: list[list[tuple[int, int, int, int]]] = []
    for who, flow, place, size, ack, flipped, pause in steps:
        at = following[who, flow] if place is None else place
        following[who, flow] = max(following[who, flow], at + size)
        frame = piece(at, size, ack=ack, port=flow + 1, flip=flipped and who == "p")
        if who == "p":
            sent[flow].append(frame)
        if groups and groups[-1][0] == who and len(groups[-1][1]) < together and not pause:
            groups[-1][1].append(frame)
            heard[-1].append((flow, at, size, ack))
        else:
            groups.append((who, [frame], pause))
            heard.append([(flow, at, size, ack)])
    for (who, frames, pause), told in zip(groups, heard, strict=True):
        if pause:
            comparer.wait(pause)
        if who == "s":
            for flow, at, size, ack in told:
                said[flow].update(range(at, min(at + size, len(STREAM))))
                acked[flow] = max(acked[flow], ack)
        before = len(comparer.left)
        comparer.push("primary" if who == "p" else "secondary", *frames)
        for frame in comparer.left[before:]:
            flow = int.from_bytes(frame[36:38], "big") - 1
            at = (int.from_bytes(frame[38:42], "big") - ISN) & 0xFFFFFFFF
            payload = frame[54:]
            assert payload == STREAM[at : at + len(payload)], "a byte left that the secondary never said"
            assert said[flow].issuperset(range(at, at + len(payload)))
            assert (int.from_bytes(frame[42:46], "big") - CLIENT_ISN) & 0xFFFFFFFF <= acked[flow]
        assert comparer.conserved()
    if ending == "failover":
        comparer.take(comparer.core.command("failover", {}, comparer.now)[1])
    elif ending:
        comparer.take(comparer.core.push("primary", Cut(1, "prepare"), comparer.now))
        comparer.take(comparer.core.push("primary", Cut(1, "commit"), comparer.now))
    assert comparer.conserved()


@given(st.integers(0, 1 << 32), st.integers(1, 30), st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_lane_and_the_careful_path_agree(seed: int, together: int, differs: bool) -> None:
    """Equal streams, cut, doubled and interleaved at will, with or without one different byte: the same leaves, in the
    same order in each flow, and the same is found, whether flows are in the lane or not."""
    length, seeded = 400, random.Random(seed)
    frames: dict[str, list[bytes]] = {"primary": [], "secondary": []}
    for side, made in frames.items():
        for port in (1, 2, 3):
            at, flow = 0, []
            while at < length:
                size = min(seeded.choice([0, 1, 10, 60, 200]), length - at)
                flow.append(piece(at, size, port=port))
                at += size
            for _ in range(seeded.randint(0, 2)):
                index = seeded.randrange(len(flow))
                flow.insert(seeded.randint(index, len(flow)), flow[index])
            if differs and port == 2 and side == "primary":
                index = seeded.randrange(len(flow))
                flow[index] = flow[index][:-1] + bytes((flow[index][-1] ^ 1,)) if len(flow[index]) > 54 else flow[index]
            made.append(flow)  # type: ignore[arg-type]
    results = []
    order = seeded.getstate()
    for careful in (False, True):
        seeded.setstate(order)
        comparer = Comparer(careful=careful, compare_timeout=1)
        if careful:
            comparer.core._into_the_lane = lambda flow: None  # type: ignore[method-assign]
        queues = [(side, list(flow)) for side, flows in frames.items() for flow in flows]
        while queues:
            side = seeded.choice(queues)[0]
            batch = []
            for _ in range(seeded.randint(1, together)):
                mine = [queue for name, queue in queues if name == side]
                if not mine:
                    break
                queue = seeded.choice(mine)
                batch.append(queue.pop(0))
                queues = [(name, rest) for name, rest in queues if rest]
            comparer.push(side, *batch)  # type: ignore[arg-type]
            if seeded.random() < 0.1:
                comparer.wait(0.03)
        for _ in range(20):
            comparer.wait(0.2)
        assert comparer.conserved()
        flows: dict[bytes, list[bytes]] = {}
        for frame in comparer.left:
            flows.setdefault(frame[34:38], []).append(frame)
        results.append((flows, comparer.divergences()))
    assert results[0] == results[1]
