"""One comparer of many guests: each has its own flows, limits, time-outs, epoch and link."""

from __future__ import annotations

from typing import Any

import pytest
from packets import PSH, SYN, segment, udp

from lockstep import config
from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.service import core_of
from lockstep.streams import EVENTS, CommandError, Core, Cut, Event, Gap
from services.comparer.guests import Guests
from services.redirector.digest import Digester

ISN, ISN2, CLIENT_ISN = 5000, 0xFFFFFF00, 900


def node(*names: str, **more: Any) -> Node:
    guests = [{"name": name, "released": f"ipc:///run/{name}", "comparer": more.get(name, {})} for name in names]
    return Node.model_validate({"guests": guests, "comparer": more.get("comparer", {"on_divergence": "hold"})})


class Many:
    """The comparer, and the two sides of each guest."""

    def __init__(self, configured: Node) -> None:
        self.core = Guests(configured)
        self.now = 100.0
        self.events: list[Event] = []

    def say(self, side: str, guest: str, *frames: bytes, epoch: int = 0) -> dict[str, list[bytes]]:
        """What leaves, by stream, when a side of a guest says this."""
        return self.left(self.core.push(f"{side}@{guest}", Batch.of(frames, 0, epoch), self.now))

    def both(self, guest: str, *frames: bytes) -> list[bytes]:
        """What leaves of that guest when both its sides say this."""
        left = self.say("primary", guest, *frames)
        assert set(left) <= {f"released@{guest}"}
        then = self.say("secondary", guest, *frames)
        assert set(then) <= {f"released@{guest}"}
        return [*left.get(f"released@{guest}", []), *then.get(f"released@{guest}", [])]

    def wait(self, seconds: float) -> None:
        """Tick as a shell does: whenever something is due, until nothing is."""
        self.now += seconds
        for _ in range(10_000):
            deadline = self.core.next_deadline()
            if deadline is None or deadline > self.now:
                return
            self.left(self.core.tick(self.now))
        pytest.fail("it is always due")

    def left(self, outputs: list[Any]) -> dict[str, list[bytes]]:
        left: dict[str, list[bytes]] = {}
        for output in outputs:
            if isinstance(output, Event):
                self.events.append(output)
            else:
                left.setdefault(output[0], []).extend(output[1].frames())
        return left

    def named(self, name: str) -> list[str]:
        """The guests of the events of that name."""
        return [str(event.fields["guest"]) for event in self.events if event.name == name]

    def counted(self, guest: str) -> dict[str, Any]:
        said: dict[str, Any] = self.core.status()["guests"][guest]["counters"]
        return said

    def handshake(self, guest: str) -> None:
        syn = segment(ISN, CLIENT_ISN + 1, flags=SYN)
        self.say("primary", guest, syn)
        assert self.say("secondary", guest, segment(ISN2, CLIENT_ISN + 1, flags=SYN)) == {f"released@{guest}": [syn]}


def data(place: int, payload: bytes) -> bytes:
    return segment(ISN + 1 + place, CLIENT_ISN + 1, payload, flags=PSH)


NAMES = tuple(f"guest-{number}" for number in range(100))


def test_it_is_a_core_and_made_where_guests_are_configured() -> None:
    assert isinstance(core_of("comparer", node("a")), Guests)
    assert isinstance(Guests(node("a")), Core)
    assert not isinstance(core_of("comparer", Node()), Guests)


def test_a_hundred_guests_with_the_same_addresses_are_kept_apart() -> None:
    """One of them diverges, another loses messages, a third floods: each of the others is compared as if alone."""
    many = Many(node(*NAMES, **{"guest-3": {"max_flows": 16}}))
    for guest in NAMES:
        many.handshake(guest)
    for guest in NAMES:
        assert many.say("primary", guest, data(0, guest.ljust(10).encode())) == {}
    many.left(many.core.push("secondary@guest-2", Gap("lost", 3), many.now))
    for number in range(2000):
        many.say("primary", "guest-3", udp(b"flood", sport=number + 1))
    for guest in NAMES:
        said = b"wrong byte" if guest == "guest-1" else guest.ljust(10).encode()
        left = many.say("secondary", guest, data(0, said))
        assert left == ({} if guest == "guest-1" else {f"released@{guest}": [data(0, said)]})
    assert many.named("divergence") == ["guest-1"]
    assert many.named("gap") == ["guest-2"]
    assert many.counted("guest-3")["dropped_limit"] == 2000 - 15
    for guest in NAMES:
        assert many.both(guest, data(10, b"goes on")) == ([] if guest == "guest-1" else [data(10, b"goes on")])
    sums = many.core.counters
    assert (sums["divergences"], sums["gaps_secondary"]) == (1, 1)
    assert sums["released"] == 100 + 99 + 99
    many.wait(10)
    assert sorted(set(many.named("divergence"))) == ["guest-1", "guest-3"]


def test_time_outs_are_each_guests_own() -> None:
    many = Many(node("slow", "fast", fast={"compare_timeout": 0.5}, comparer={"on_divergence": "unprotect"}))
    for guest in ("slow", "fast"):
        many.say("primary", guest, udp(b"unmatched"))
    many.wait(0.6)
    assert many.named("divergence") == ["fast"]
    many.wait(3)
    assert many.named("divergence") == ["fast", "slow"]


def test_a_deadline_is_the_earliest_of_all_and_gone_with_what_it_was_for() -> None:
    many = Many(node("a", "b", a={"compare_timeout": 1.0}))
    assert many.core.next_deadline() is None
    for guest in ("b", "a"):
        many.say("primary", guest, udp(b"x"))
    assert many.core.next_deadline() == min(core.next_deadline() or 0 for core in many.core._cores.values()) > 0
    for guest in ("a", "b"):
        many.say("secondary", guest, udp(b"x"))
    many.wait(200)  # the flows are forgotten
    for _ in range(200):
        many.wait(1)
    assert many.core.next_deadline() is None
    assert many.core.status()["flows"] == 0


def test_epochs_are_each_guests_own() -> None:
    many = Many(node("a", "b"))
    for guest in ("a", "b"):
        many.say("primary", guest, udp(b"held"))
    for phase in ("prepare", "commit"):
        left = many.left(many.core.push("primary@a", Cut(1, phase), many.now))  # type: ignore[arg-type]
    assert left == {"released@a": [udp(b"held")]}
    assert many.named("cut") == ["a", "a"]
    said = many.core.status()["guests"]
    assert {guest: said[guest]["epoch"] for guest in said} == {"a": 1, "b": 0}
    assert many.say("secondary", "a", udp(b"old"), epoch=0) == {}
    assert many.counted("a")["secondary_other_epoch"] == 1
    assert many.say("secondary", "b", udp(b"held"), epoch=0) == {"released@b": [udp(b"held")]}


def test_outputs_are_stamped_with_the_epoch_of_the_guest_they_are_of() -> None:
    many = Many(node("a", "b"))
    many.core.push("primary@a", Cut(7, "commit"), many.now)
    assert many.core.epoch == 7
    many.say("primary", "b", udp(b"x"))
    assert many.core.epoch == 0


def test_a_command_is_for_one_guest() -> None:
    many = Many(node("a", "b"))
    for guest in ("a", "b"):
        many.say("primary", guest, udp(b"held"))
    answer, outputs = many.core.command("failover", {"guest": "b"}, many.now)
    assert answer == {"guest": "b", "survivor": "primary", "epoch": 0}
    assert many.left(outputs) == {"released@b": [udp(b"held")]}  # type: ignore[arg-type]
    assert many.named("failover") == ["b"]
    assert many.say("primary", "b", udp(b"alone")) == {"released@b": [udp(b"alone")]}
    assert many.say("primary", "a", udp(b"not")) == {}


@pytest.mark.parametrize("arguments", [{}, {"guest": "c"}, {"guest": 7}, {"guest": b"a"}])
def test_a_command_without_a_guest_names_those_that_there_are(arguments: dict[str, Any]) -> None:
    core = Guests(node("a", "b"))
    for op in ("failover", "checkpoint"):
        with pytest.raises(CommandError, match="needs a `guest`; here are a, b"):
            core.command(op, arguments, 1.0)
    with pytest.raises(CommandError, match="guest-9 and 90 more"):
        Guests(node(*NAMES)).command("failover", arguments, 1.0)


def test_an_event_reaches_the_guest_that_it_names_and_no_other() -> None:
    """The same flow key exists with both guests."""
    many = Many(node("a", "b", comparer={"on_divergence": "unprotect"}))
    for guest in ("a", "b"):
        many.handshake(guest)
        many.say("primary", guest, data(0, b"to a client that is gone"))
    key = next(iter(many.core._cores["a"]._table.flows))
    for fields in ({"guest": "a"}, {"guest": "c"}, {}, {"guest": ["a"]}):
        assert many.core.push(EVENTS, Event("reset_by_client", {"key": key, **fields}), many.now) == []
    many.wait(4)
    assert many.named("divergence") == ["b"]
    assert many.core.status()["events_of_strangers"] == 3


def test_what_a_full_link_refused_is_the_guests_own_loss() -> None:
    many = Many(node("a", "b"))
    many.both("a", udp(b"x"))
    many.core.undelivered("released@a", Batch.of([udp(b"x")]), many.now)
    assert many.counted("a")["dropped_full"] == 1
    assert "dropped_full" not in many.counted("b")


def test_reload_brings_each_guest_its_own_settings() -> None:
    many = Many(node("a", "b"))
    many.core.reload(node("a", "c", comparer={"on_divergence": "unprotect"}, a={"compare_timeout": 0.25}))
    for guest in ("a", "b"):
        many.say("primary", guest, udp(b"unmatched"))
    many.wait(0.3)
    assert many.named("divergence") == ["a"]
    assert many.named("unprotected") == ["a"]


def test_status_shows_each_guest_and_the_divergences_of_all() -> None:
    many = Many(node("a", "b"))
    for guest in ("a", "b"):
        many.handshake(guest)
    many.say("primary", "b", data(0, b"this"))
    many.say("secondary", "b", data(0, b"that"))
    said = many.core.status()
    assert list(said["guests"]) == ["a", "b"]
    assert (said["flows"], said["guests"]["a"]["flows"], said["held"]) == (2, 1, 1)
    assert said["guests"]["a"]["counters"] == {
        "primary_frames": 1, "secondary_frames": 1, "released": 1, "held_frames": 1,
    }  # fmt: skip
    (divergence,) = said["divergences"]
    assert (divergence["guest"], divergence["reason"], divergence["offset"]) == ("b", "data", 2)


@pytest.mark.parametrize("stream", ["primary", "primary@c", "secondary@", "nonsense@a"])
def test_a_stream_of_nobody_is_a_bug(stream: str) -> None:
    with pytest.raises(AssertionError, match="the comparer takes no"):
        Guests(node("a")).push(stream, Batch.of([udp(b"x")]), 1.0)


def test_a_guests_settings_are_laid_over_those_of_all() -> None:
    configured = node("a", "b", a={"max_flows": 99}, comparer={"compare_timeout": 0.5, "max_flows": 50})
    assert configured.of_guest("a").comparer.max_flows == 99
    assert configured.of_guest("a").comparer.compare_timeout == 0.5
    assert configured.of_guest("b").comparer.max_flows == 50
    assert configured.of_guest("b").link("released").endpoint == "ipc:///run/b"
    assert config.Node().guests == ()


def test_in_digest_mode_each_guest_has_its_own_key_and_bytes() -> None:
    """The same connection in each, with other bytes, by other hashes; one guest's redirector starts anew."""
    many = Many(node("a", "b", comparer={"on_divergence": "hold", "secondary": "digest"}))
    digesters = {"a": Digester(bytes(16)), "b": Digester(b"k" * 32)}

    def tell(guest: str, *frames: bytes) -> dict[str, list[bytes]]:
        return many.left(many.core.push(f"digests@{guest}", digesters[guest].records(Batch.of(frames)), many.now))

    said = {guest: [data(0, guest.encode() * 500), data(500, guest.encode() * 500)] for guest in "ab"}
    for guest in "ab":
        assert many.say("primary", guest, *said[guest]) == {}
    assert tell("a", said["b"][0]) == {}  # b's bytes prove nothing for a
    assert many.named("digest_mismatch") == ["a"]
    assert tell("b", said["b"][0]) == {"released@b": said["b"][:1]}
    digesters["b"] = Digester(bytes(16))
    assert tell("a", *said["a"]) == {"released@a": said["a"]}
    assert tell("b", said["b"][1]) == {"released@b": said["b"][1:]}
    assert (many.counted("a")["mismatched"], many.counted("a")["matched"], many.counted("b")["matched"]) == (1, 2, 2)
    assert many.core.counters["matched"] == 4
    many.left(many.core.push("digests@a", Gap("lost", 1), many.now))
    assert (many.named("gap"), many.core.counters["gaps_secondary"]) == (["a"], 1)
    many.left(many.core.push("digests@b", Batch.of([b"\1\0\1no record"]), many.now))
    assert many.counted("b")["malformed_records"] == 1
    assert "malformed_records" not in many.counted("a")
