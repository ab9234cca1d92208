"""Every limit of the comparer, reached: it asks for a checkpoint or refuses, and nothing unmatched leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from packets import SYN, segment, udp

from tests.services.comparer.test_core import CLIENT_ISN, ISN, ISN2, MSS_WS, Sides, data

MIB = 1 << 20


def opened(sides: Sides, port: int) -> None:
    """An open connection to this port of the client."""
    syn_ack = segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS, dport=port)
    sides.primary(syn_ack)
    assert sides.secondary(segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=MSS_WS, dport=port)) == [syn_ack]


def many_flows(sides: Sides) -> list[bytes]:
    return [frame for port in range(40) for frame in sides.primary(udp(b"a", dport=port + 1))]


def many_half_open(sides: Sides) -> list[bytes]:
    return [frame for port in range(40) for frame in sides.primary(segment(ISN, 1, flags=SYN, dport=port + 1))]


def one_long_flow(sides: Sides) -> list[bytes]:
    return [frame for place in range(10) for frame in sides.primary(data(place * 60_000, b"x" * 60_000))]


def many_long_flows(sides: Sides) -> list[bytes]:
    return [
        frame
        for port in range(1, 31)
        for place in range(2)
        for frame in sides.primary(data(place * 60_000, b"x" * 60_000, dport=port))
    ]


REACHED: dict[str, tuple[dict[str, int], Callable[[Sides], list[bytes]], str]] = {
    "max_flows": ({"max_flows": 16}, many_flows, "dropped_limit"),
    "max_half_open": ({"max_half_open": 16}, many_half_open, "dropped_evicted"),
    "max_flow_bytes": ({"max_flow_bytes": 131_072}, one_long_flow, "dropped_limit"),
    "max_bytes": ({"max_bytes": MIB}, many_long_flows, "dropped_limit"),
}


@pytest.mark.parametrize("on_divergence", ["hold", "checkpoint"])
@pytest.mark.parametrize("limit", REACHED)
def test_at_a_limit_nothing_unmatched_leaves(limit: str, on_divergence: str) -> None:
    settings, reach, counter = REACHED[limit]
    sides = Sides(on_divergence=on_divergence, **settings)
    assert reach(sides) == []
    assert sides.wait(10) == []
    assert sides.core.counters[counter] > 0
    assert sides.core.counters["released"] == 0
    assert sides.core.status()["kept_bytes"] <= settings.get("max_bytes", settings.get("max_flow_bytes", MIB))
    # A flow that has no place can't diverge, so the checkpoint is asked for in any case.
    asks = on_divergence == "checkpoint" or limit == "max_flows"
    assert len(sides.named("checkpoint_requested")) == asks
    assert sides.conserved()


@pytest.mark.parametrize("on_divergence", ["hold", "checkpoint"])
def test_a_secondary_that_says_too_much_is_a_divergence(on_divergence: str) -> None:
    sides = Sides(on_divergence=on_divergence, max_flow_bytes=131_072)
    sides.handshake()
    for place in range(10):
        assert sides.secondary(data(place * 60_000, b"x" * 60_000)) == []
    assert [report["reason"] for report in sides.named("divergence")] == ["limit"]
    assert sides.core.status()["kept_bytes"] <= 131_072
    assert sides.primary(data(0, b"x")) == []


def test_history_makes_way_before_any_flow_diverges() -> None:
    """What has left is kept to check repetitions: worth less than another flow's protection."""
    sides = Sides(max_bytes=MIB)
    for port in range(1, 31):
        opened(sides, port)
        for place in range(2):
            frame = data(place * 60_000, b"x" * 60_000, dport=port)
            sides.secondary(frame)
            assert sides.primary(frame) == [frame]
            sides.now += 0.01
    assert sides.named("divergence") == []
    assert sides.core.status()["kept_bytes"] <= MIB


def test_where_history_does_not_suffice_flows_diverge() -> None:
    sides = Sides(max_bytes=MIB)
    for port in range(1, 31):
        opened(sides, port)
    for port in range(1, 31):
        for place in range(2):
            sides.secondary(data(place * 60_000, b"x" * 60_000, dport=port))
    assert {report["reason"] for report in sides.named("divergence")} == {"limit"}
    assert sides.core.status()["kept_bytes"] <= MIB


def test_a_flow_that_was_forgotten_leaves_only_with_the_secondarys_word() -> None:
    sides = Sides(idle_timeout=10, compare_timeout=3600)
    sides.handshake()
    for _ in range(20):
        sides.wait(1.5)
    assert sides.core.status()["flows"] == 0
    later = data(0, b"later")
    assert sides.primary(later) == []
    assert sides.secondary(data(0, b"later")) == [later]
