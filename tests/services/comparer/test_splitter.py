"""The splitter in front of several comparers, in memory: they come to what one comparer comes to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import PSH, SYN, arp_reply, segment, udp

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.flow.key import flow_key
from lockstep.streams import CommandError, Core, Cut, Event, Gap, Item, stream_and_share
from lockstep.wire.frame import Frame, dissect
from services.comparer.core import Core as Comparer
from services.comparer.splitter import Splitter
from services.redirector.digest import Digester

SEED = 0xFEDCBA9876543210
ISN, ISN2, CLIENT_ISN = 5000, 0xFFFFFF00, 900


def node(workers: int, **comparer: Any) -> Node:
    return Node.model_validate({"comparer": {"workers": workers, "on_divergence": "hold", **comparer}})


def said(item: Item, secret: bytes | None) -> tuple[str, Item]:
    """An item of the secondary as the redirector gives it: in digest mode there is a secret."""
    if secret is None:
        return "secondary", item
    return "digests", Digester(secret).records(item) if isinstance(item, Batch) else item


class Split:
    """A splitter and its workers, joined as the links join them."""

    def __init__(self, workers: int, **comparer: Any) -> None:
        configured = node(workers, **comparer)
        self.splitter = Splitter(configured, SEED)
        self.workers = [Comparer(configured.of_worker(str(number))) for number in range(workers)]
        self.left: list[bytes] = []
        self.events: list[tuple[str, Event]] = []

    def push(self, stream: str, item: Item, now: float) -> None:
        for output in self.splitter.push(stream, item, now):
            if isinstance(output, Event):
                self.events.append(("splitter", output))
                continue
            plain, name = stream_and_share(output[0])
            if name is None:
                assert isinstance(output[1], Batch)
                self.left += output[1].frames()
            else:
                self._from(int(name), self.workers[int(name)].push(plain, output[1], now), now)

    def tick(self, now: float) -> None:
        for number, worker in enumerate(self.workers):
            self._from(number, worker.tick(now), now)

    def _from(self, number: int, outputs: Iterable[Any], now: float) -> None:
        for output in outputs:
            if isinstance(output, Event):
                self.events.append((str(number), output))
            else:
                self.push(f"released@{number}", output[1], now)

    def divergences(self) -> set[str]:
        return {str(event.fields["flow"]) for _, event in self.events if event.name == "divergence"}


class Alone(Split):
    """One comparer, to compare with."""

    def __init__(self, **comparer: Any) -> None:
        self.worker = Comparer(node(1, **comparer))
        self.left, self.events = [], []

    def push(self, stream: str, item: Item, now: float) -> None:
        self._take(self.worker.push(stream, item, now))

    def tick(self, now: float) -> None:
        self._take(self.worker.tick(now))

    def _take(self, outputs: Iterable[Any]) -> None:
        for output in outputs:
            if isinstance(output, Event):
                self.events.append(("0", output))
            else:
                self.left += output[1].frames()


def by_flow(frames: list[bytes]) -> dict[bytes, list[bytes]]:
    f, flows = Frame(), {}
    for frame in frames:
        dissect(f, frame, 0, len(frame))
        flows.setdefault(flow_key(f, frame), []).append(frame)
    return flows


def data(port: int, place: int, payload: bytes) -> bytes:
    return segment(ISN + 1 + place, CLIENT_ISN + 1, payload, flags=PSH, dport=port)


STREAM = bytes(range(200))
PORTS = range(1, 13)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["primary", "secondary", "secondary", "cut", "gap"]),
        st.lists(
            st.tuples(st.sampled_from(PORTS), st.integers(0, 60), st.integers(1, 90), st.sampled_from("tttux")),
            min_size=1, max_size=12,
        ),
    ),
    max_size=30,
)  # fmt: skip


def frame_of(port: int, place: int, size: int, kind: str) -> bytes:
    payload = STREAM[place : place + size]
    if kind == "u":
        return udp(payload[:3], sport=port)
    return data(port, place, payload if kind == "t" else payload[:-1] + b"!")


SECRETS = st.sampled_from([None, bytes(16), bytes(32)])


@given(STEPS, st.integers(2, 5), SECRETS)
@settings(max_examples=200)
def test_several_workers_come_to_what_one_comparer_comes_to(
    steps: list[Any], workers: int, secret: bytes | None
) -> None:
    """The same frames leave, each flow's in the same order; the same flows diverge; cuts and gaps included.

    secret: None, or of digest mode.
    """
    mode = {"secondary": "frames" if secret is None else "digest"}
    split, alone = Split(workers, **mode), Alone(**mode)
    both: tuple[Split, ...] = (split, alone)
    now, epoch = 1.0, 0
    for one in both:
        for port in PORTS:
            one.push("primary", Batch.of([segment(ISN, CLIENT_ISN + 1, flags=SYN, dport=port)]), now)
            one.push(*said(Batch.of([segment(ISN2, CLIENT_ISN + 1, flags=SYN, dport=port)]), secret), now)
    for what, frames in steps:
        now += 0.001
        if what == "cut":
            epoch += 1
            items: list[tuple[str, Item]] = [("primary", Cut(epoch, "prepare")), ("primary", Cut(epoch, "commit"))]
        elif what == "gap":
            items = [said(Gap("lost", 1), secret)]
        else:
            batch = Batch.of([frame_of(*frame) for frame in frames], 0, epoch)
            items = [said(batch, secret) if what == "secondary" else (what, batch)]
        for one in both:
            for stream, item in items:
                one.push(stream, item, now)
    for one in both:
        one.tick(now + 100)
    assert by_flow(split.left) == by_flow(alone.left)
    assert split.divergences() == alone.divergences()


def test_it_is_a_core() -> None:
    assert isinstance(Splitter(node(2), SEED), Core)


def test_cuts_and_gaps_reach_every_worker_at_their_place() -> None:
    splitter = Splitter(node(3), SEED)
    for item in (Cut(4, "prepare"), Gap("lost", 2)):
        outputs = [output for output in splitter.push("primary", item, 1.0) if not isinstance(output, Event)]
        assert outputs == [(f"primary@{number}", item) for number in range(3)]
    (event,) = [output for output in splitter.push("secondary", Gap("restarted"), 1.0) if isinstance(output, Event)]
    assert (event.name, event.fields["stream"]) == ("gap", "secondary")
    assert splitter.counters["gaps_primary"] == splitter.counters["gaps_secondary"] == 1


def test_in_digest_mode_records_are_the_secondarys_frames() -> None:
    """Every share has the key; gaps, counters and losses are told of the secondary."""
    splitter = Splitter(node(3, secondary="digest"), SEED)
    frames = [data(port, 0, bytes(100)) for port in PORTS]
    key, *records = Digester(bytes(16)).records(Batch.of(frames)).frames()
    outputs = splitter.push("digests", Batch.of([key, *records], 0, 4), 1.0)
    shares = {str(stream): part.frames() for stream, part in outputs}  # type: ignore[misc, union-attr]
    assert set(shares) == {"digests@0", "digests@1", "digests@2"}
    assert all(share[0] == key for share in shares.values())
    assert sorted(one for share in shares.values() for one in share[1:]) == sorted(records)
    assert (splitter.epoch, splitter.counters["secondary_frames"]) == (4, len(frames))
    *ways, event = splitter.push("digests", Gap("lost", 2), 1.0)
    assert ways == [(f"digests@{number}", Gap("lost", 2)) for number in range(3)]
    assert isinstance(event, Event)
    assert (event.fields["stream"], splitter.counters["gaps_secondary"]) == ("secondary", 1)
    splitter.undelivered("digests@1", Batch.of(records), 1.0)
    assert splitter.counters["dropped_secondary"] == len(records)
    for mode, stream in (("digest", "secondary"), ("frames", "digests")):
        with pytest.raises(AssertionError, match="takes no"):
            Splitter(node(2, secondary=mode), SEED).push(stream, Batch.of(frames), 1.0)


def test_what_a_worker_releases_is_passed_on_as_it_is() -> None:
    splitter = Splitter(node(3), SEED)
    batch = Batch.of([udp(b"x")], 0, 9)
    ((stream, passed),) = splitter.push("released@2", batch, 1.0)
    assert (stream, passed) == ("released", batch)
    assert splitter.counters["released"] == 1


def test_batches_keep_the_epoch_they_came_with() -> None:
    """The shell stamps what the core says: the secondary's epoch may be behind the primary's."""
    splitter = Splitter(node(2), SEED)
    splitter.push("primary", Batch.of([udp(b"x")], 0, 5), 1.0)
    assert splitter.epoch == 5
    splitter.push("secondary", Batch.of([udp(b"x")], 0, 4), 1.0)
    assert splitter.epoch == 4


def test_frames_that_a_worker_did_not_take_are_counted_by_stream() -> None:
    splitter = Splitter(node(2), SEED)
    splitter.push("released@0", Batch.of([udp(b"x")] * 3), 1.0)
    for stream, frames in (("primary@1", 2), ("secondary@0", 5), ("released", 3)):
        assert splitter.undelivered(stream, Batch.of([arp_reply()] * frames), 1.0) == []
    counted = splitter.counters
    assert (counted["dropped_primary"], counted["dropped_secondary"]) == (2, 5)
    assert (counted["dropped_full"], counted["released"]) == (3, 0)
    (event,) = splitter.undelivered("primary@1", Cut(3, "commit"), 1.0)
    assert isinstance(event, Event)
    assert (event.name, event.fields["worker"]) == ("cut_lost", "1")


@pytest.mark.parametrize(("stream", "item"), [("ingress", Batch.of([b"x"])), ("released@0", Cut(1, "commit"))])
def test_what_it_is_not_wired_for_is_a_bug(stream: str, item: Item) -> None:
    with pytest.raises(AssertionError, match="takes no"):
        Splitter(node(2), SEED).push(stream, item, 1.0)


def test_it_has_no_commands() -> None:
    with pytest.raises(CommandError):
        Splitter(node(2), SEED).command("failover", {}, 1.0)
