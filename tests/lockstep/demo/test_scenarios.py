"""Which runs a scenario has, and on what its verdict rests. The theatre is a stub."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest

from lockstep.demo import DemoOptions, parse_size, scenarios
from lockstep.demo.display import Display
from lockstep.demo.namespaces import Obstacle
from lockstep.demo.scenarios import Scenario, Transfer, play

GOOD = {"sha256_ok": True, "divergences": 0, "released": 10, "reconnects": 0, "wrong_bytes_delivered": 0}
LEG = {"bytes": 1 << 20, "sha256_ok": True, "seconds": 0.01, "mb_per_s": 100.0}


class Stub:
    """Gives the figures it was made with, and remembers what it was asked for."""

    mode = "memory"
    sizes: Mapping[Scenario, Mapping[str, int]] = {
        name: {"download": 1000, "upload": 500} for name in scenarios.SCENARIOS
    }

    def __init__(self, missing: Mapping[str, str] | None = None, **figures: Any) -> None:
        self.missing: Mapping[str, str] = missing or {}
        self.figures = figures
        self.asked: list[Transfer] = []

    def serve(self, legs: list[Transfer], display: Display) -> dict[str, Any]:
        self.asked += legs
        return GOOD | {"network": legs[0].network, "longest_pause_ms": 1.234, "download": LEG} | self.figures

    def diverge(self, transfer: Transfer, display: Display) -> dict[str, Any]:
        self.asked.append(transfer)
        found = {"planted_offset": 900, "found_offset": 900, "reason": "data", "flow": "a b", "bytes": 800}
        return found | {"divergences": 1, "wrong_bytes_delivered": 0, "released": 5, "held": 3} | self.figures

    def failover(self, transfer: Transfer, display: Display) -> dict[str, Any]:
        self.asked.append(transfer)
        return GOOD | LEG | {"longest_pause_ms": 20.0, "failover_ms": 5.0} | self.figures


def played(scenario: Scenario, stub: Stub, **options: Any) -> tuple[dict[str, Any], str]:
    out = io.StringIO()
    return play(stub, scenario, DemoOptions(**options), Display(out)), out.getvalue()


def test_serve_goes_over_every_network_in_both_directions() -> None:
    stub = Stub()
    played("serve", stub)
    assert [(t.network, t.direction, t.size) for t in stub.asked] == [
        (network, direction, size)
        for network in ("ipv4", "ipv6", "vlan")
        for direction, size in (("download", 1000), ("upload", 500))
    ]


def test_failover_tries_both_directions_and_both_openers() -> None:
    stub = Stub()
    played("failover", stub)
    assert [(t.network, t.direction, t.opened_by) for t in stub.asked] == [
        ("ipv4", direction, opener) for opener in ("client", "guest") for direction in ("download", "upload")
    ]


def test_options_limit_the_runs_and_repeat_them() -> None:
    stub = Stub()
    played("failover", stub, network="ipv6", direction="upload", opened_by="guest", size=77, repeat=3)
    assert stub.asked == [Transfer("ipv6", "upload", "guest", 77)] * 3


def test_sums_and_the_worst_stand_at_the_top() -> None:
    result, _ = played("failover", Stub())
    assert (result["released"], result["longest_pause_ms"], result["failover_ms"]) == (40, 20.0, 5.0)
    assert (result["ok"], result["sha256_ok"], len(result["runs"])) == (True, True, 4)


@pytest.mark.parametrize(
    ("scenario", "figures"),
    [
        ("serve", {"sha256_ok": False}),
        ("serve", {"divergences": 1}),
        ("serve", {"released": 0}),
        ("diverge", {"divergences": 0, "found_offset": None}),
        ("diverge", {"divergences": 2}),
        ("diverge", {"found_offset": 901}),
        ("diverge", {"wrong_bytes_delivered": 1}),
        ("diverge", {"bytes": 901}),
        ("diverge", {"bytes": 0}),
        ("failover", {"sha256_ok": False}),
        ("failover", {"reconnects": 1}),
        ("failover", {"longest_pause_ms": 1000.0}),
        ("failover", {"wrong_bytes_delivered": 1}),
    ],
)
def test_each_bad_figure_makes_a_bad_verdict(scenario: Scenario, figures: dict[str, Any]) -> None:
    result, out = played(scenario, Stub(**figures))
    assert result["ok"] is False
    assert f"BAD: {scenario}:" in out


@pytest.mark.parametrize("scenario", scenarios.SCENARIOS)
def test_good_figures_make_a_good_verdict_in_one_line(scenario: Scenario) -> None:
    result, out = played(scenario, Stub())
    assert result["ok"] is True
    assert out.splitlines()[-1].startswith(f"ok: {scenario}: ")


def test_a_network_that_is_not_to_be_had_is_skipped_and_said() -> None:
    result, out = played("serve", Stub(missing={"vlan": "no 8021q"}))
    assert result["skipped"] == {"vlan": "no 8021q"}
    assert "serve: not over vlan: no 8021q" in out
    assert [run["network"] for run in result["runs"]] == ["ipv4", "ipv6"]


def test_a_network_that_was_asked_for_is_not_skipped() -> None:
    with pytest.raises(Obstacle, match="no 8021q"):
        played("serve", Stub(missing={"vlan": "no 8021q"}), network="vlan")


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("4 MiB", 4 << 20), ("256MiB", 256 << 20), ("1.5kB", 1500), ("1g", 10**9)]
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "0", "4 XiB", "4 MiB!"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)
