"""The mirror by script."""

from __future__ import annotations

import pytest
from packets import from_client, segment

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import CommandError, Cut, Event, Gap
from services.mirror.core import Core

CLIENTS = Batch.of([from_client(1, 2)])
GUESTS = Batch.of([segment(1, 2)])


@pytest.fixture
def mirror() -> Core:
    return Core(Node())


def test_what_the_network_says_reaches_the_guest_and_is_copied_to_ingress(mirror: Core) -> None:
    assert mirror.push("network", CLIENTS, 0.0) == [("guest", CLIENTS), ("ingress", CLIENTS)]


def test_what_the_guest_says_goes_to_the_comparer_alone(mirror: Core) -> None:
    assert mirror.push("guest", GUESTS, 0.0) == [("primary", GUESTS)]


def test_what_was_released_leaves_to_the_network(mirror: Core) -> None:
    assert mirror.push("released", GUESTS, 0.0) == [("network", GUESTS)]


def test_a_gap_in_what_was_released_is_counted_and_told(mirror: Core) -> None:
    (event,) = mirror.push("released", Gap("lost", 2), 0.0)
    assert event == Event("gap", {"stream": "released", "reason": "lost", "lost": 2})
    assert mirror.counters["gaps_released"] == 1


def test_a_cut_goes_into_primary_and_ingress(mirror: Core) -> None:
    answer, outputs = mirror.command("cut", {"epoch": 1, "phase": "prepare"}, 0.0)
    assert outputs[:2] == [("primary", Cut(1, "prepare")), ("ingress", Cut(1, "prepare"))]
    assert answer == {"epoch": 0}
    assert mirror.command("cut", {"epoch": 1, "phase": "commit"}, 0.0)[0] == {"epoch": 1}
    assert mirror.epoch == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"epoch": 0, "phase": "prepare"},
        {"epoch": 0, "phase": "commit"},
        {"epoch": True, "phase": "prepare"},
        {"epoch": 1, "phase": "begin"},
        {},
    ],
)
def test_a_cut_that_does_not_follow_is_refused(mirror: Core, arguments: dict[str, object]) -> None:
    with pytest.raises(CommandError):
        mirror.command("cut", arguments, 0.0)
    assert mirror.epoch == 0


def test_a_restarted_mirror_takes_the_checkpointers_number(mirror: Core) -> None:
    assert mirror.command("cut", {"epoch": 7, "phase": "commit"}, 0.0)[0] == {"epoch": 7}


def test_an_unknown_request_is_refused(mirror: Core) -> None:
    with pytest.raises(CommandError, match="no `failover`"):
        mirror.command("failover", {}, 0.0)


def test_frames_that_a_full_link_refused_are_counted(mirror: Core) -> None:
    mirror.undelivered("ingress", CLIENTS, 0.0)
    assert mirror.counters["dropped_ingress"] == 1


def test_a_stream_that_is_not_wired_is_our_bug(mirror: Core) -> None:
    with pytest.raises(AssertionError):
        mirror.push("secondary", CLIENTS, 0.0)


@pytest.mark.parametrize("port", ["guest", "network"])
def test_what_a_port_tells_of_its_guest_is_published(mirror: Core, port: str) -> None:
    stopped = Event("guest_stopped", {"port": f"mirror.{port}", "why": "stopped"})
    assert mirror.push(port, stopped, 0.0) == [stopped]
