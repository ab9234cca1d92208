"""The scenarios with the four cores in memory: what `lockstep demo` falls back to."""

from __future__ import annotations

import io

import pytest

from lockstep.demo.display import Display
from lockstep.demo.memory import Exchange, Memory
from lockstep.demo.scenarios import Transfer

SIZE = 300_000


@pytest.fixture
def display() -> Display:
    return Display(io.StringIO())


@pytest.mark.parametrize("network", ["ipv4", "ipv6", "vlan"])
@pytest.mark.parametrize("opened_by", ["client", "guest"])
def test_both_directions_arrive_whole(network: str, opened_by: str, display: Display) -> None:
    legs = [Transfer(network, direction, opened_by, SIZE) for direction in ("download", "upload")]
    run = Memory().serve(legs, display)
    assert run["sha256_ok"]
    assert run["divergences"] == run["reconnects"] == run["wrong_bytes_delivered"] == 0
    assert run["released"] > 2 * SIZE // 1500


@pytest.mark.parametrize("network", ["ipv4", "ipv6", "vlan"])
def test_the_planted_byte_is_found_where_it_is_and_never_leaves(network: str, display: Display) -> None:
    run = Memory().diverge(Transfer(network, "download", "client", SIZE), display)
    assert run["divergences"] == 1
    assert run["found_offset"] == run["planted_offset"]
    assert run["wrong_bytes_delivered"] == 0
    assert 0 < run["bytes"] <= SIZE // 8


@pytest.mark.parametrize("network", ["ipv4", "ipv6", "vlan"])
@pytest.mark.parametrize("opened_by", ["client", "guest"])
@pytest.mark.parametrize("direction", ["download", "upload"])
def test_the_transfer_goes_on_from_the_secondary(
    network: str, opened_by: str, direction: str, display: Display
) -> None:
    run = Memory().failover(Transfer(network, direction, opened_by, SIZE), display)
    assert run["sha256_ok"]
    assert run["reconnects"] == run["wrong_bytes_delivered"] == 0
    assert run["longest_pause_ms"] < 1000


def test_without_a_failover_the_killed_primary_is_missed(display: Display) -> None:
    exchange = Exchange(Transfer("ipv4", "download", "client", SIZE), "unprotect", display)
    exchange.run(lambda: exchange.done >= SIZE // 3)
    exchange.dead |= {"mirror", "primary"}
    exchange.run_to_its_end()
    assert exchange.failures == 1
    assert exchange.done < SIZE


def test_the_replicas_live_in_different_number_spaces(display: Display) -> None:
    exchange = Exchange(Transfer("ipv4", "download", "client", SIZE), "unprotect", display)
    exchange.run_to_its_end()
    una = [next(iter(exchange.hosts[name].connections.values())).una for name in ("primary", "secondary")]
    assert una[0] != una[1]
    for host in exchange.hosts.values():
        spoiled = ("bad_checksums", "old_timestamps", "wrong_sacks")
        assert [host.counters[name] for name in spoiled] == [0, 0, 0]
