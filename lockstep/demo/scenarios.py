"""The three scenarios: which runs each has, what its verdict rests on, and its sentence.

A *theatre* carries a run out, in namespaces (`live`) or in memory (`memory`), and gives its figures;
here they become a verdict. Figures of a run, by name, as they stand in the JSON:

    serve     network, download, upload (each: bytes, sha256_ok, seconds, mb_per_s), sha256_ok,
              divergences, released, reconnects, longest_pause_ms, wrong_bytes_delivered
    diverge   network, planted_offset, found_offset, reason, flow, bytes, divergences, held,
              wrong_bytes_delivered, released
    failover  network, direction, opened_by, bytes, sha256_ok, reconnects, longest_pause_ms,
              failover_ms, wrong_bytes_delivered, seconds, mb_per_s, divergences, released
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from lockstep.demo import DemoOptions
from lockstep.demo.display import Display
from lockstep.demo.namespaces import Obstacle

Scenario = Literal["serve", "diverge", "failover"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
NETWORKS = ("ipv4", "ipv6", "vlan")
DIRECTIONS = ("download", "upload")
OPENERS = ("client", "guest")

#: A pause longer than this and people notice.
LONGEST_PAUSE_MS = 1000.0

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One request: over which network, which way its body goes, who opens the connection, how long it is."""

    network: str
    direction: str
    opened_by: str
    size: int

    def __str__(self) -> str:
        opened = "" if self.opened_by == "client" else ", the guest opened it"
        return f"{self.direction} over {self.network}{opened}"


class Theatre(Protocol):
    """Where runs are carried out."""

    mode: str
    #: Networks that are not to be had there, and why.
    missing: Mapping[str, str]
    #: Bytes of a download and of an upload of each scenario, where nobody asks for others.
    sizes: Mapping[Scenario, Mapping[str, int]]

    def serve(self, legs: list[Transfer], display: Display) -> Figures:
        """Carry out each transfer; the figures of each stand under its direction."""

    def diverge(self, transfer: Transfer, display: Display) -> Figures:
        """Have the secondary say one wrong byte, about an eighth into the body."""

    def failover(self, transfer: Transfer, display: Display) -> Figures:
        """Kill the primary and its mirror after a third of the body."""


def play(theatre: Theatre, scenario: Scenario, options: DemoOptions, display: Display) -> Figures:
    """All runs of a scenario, its verdict and the figures that count."""
    started = time.monotonic()
    runs: list[Figures] = []
    networks = _networks(theatre, scenario, options)
    skipped = {network: theatre.missing[network] for network in networks if network in theatre.missing}
    for network, reason in skipped.items():
        display.note(f"{scenario}: not over {network}: {reason}")
    networks = [network for network in networks if network not in skipped]
    for number in range(options.repeat):
        for legs in _runs(theatre, scenario, networks, options):
            again = f" ({number + 1} of {options.repeat})" if options.repeat > 1 else ""
            display.stage(f"{scenario}: {legs[0] if scenario != 'serve' else legs[0].network}{again}")
            run = _carry_out(theatre, scenario, legs, display)
            runs.append({"ok": _RULES[scenario](run), **_rounded(run)})
    result = {
        "scenario": scenario,
        "mode": theatre.mode,
        "ok": all(run["ok"] for run in runs),
        **_together(runs),
        **({"skipped": skipped} if skipped else {}),
        "runs": runs,
        "seconds": round(time.monotonic() - started, 3),
    }
    display.verdict(scenario, result["ok"], _SENTENCES[scenario](result))
    return result


def _carry_out(theatre: Theatre, scenario: Scenario, legs: list[Transfer], display: Display) -> Figures:
    if scenario == "serve":
        return theatre.serve(legs, display)
    if scenario == "diverge":
        return theatre.diverge(legs[0], display)
    return theatre.failover(legs[0], display)


def _chosen(choice: str | None, everything: tuple[str, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    return own if choice is None else everything if choice == "all" else (choice,)


def _networks(theatre: Theatre, scenario: Scenario, options: DemoOptions) -> list[str]:
    """Over which networks; raises Obstacle where the one that was asked for is not to be had."""
    if options.network is not None and options.network in theatre.missing:
        raise Obstacle(f"--network {options.network}: {theatre.missing[options.network]}")
    return list(_chosen(options.network, NETWORKS, NETWORKS if scenario == "serve" else ("ipv4",)))


def _runs(theatre: Theatre, scenario: Scenario, networks: list[str], options: DemoOptions) -> Iterator[list[Transfer]]:
    """The transfers of each run. In `serve` a run has one of each direction, else just one transfer."""

    def size(direction: str) -> int:
        return options.size or theatre.sizes[scenario][direction]

    openers = _chosen(options.opened_by, OPENERS, OPENERS if scenario == "failover" else ("client",))
    directions = _chosen(options.direction, DIRECTIONS, DIRECTIONS)
    for network in networks:
        for opener in openers:
            if scenario == "serve":
                yield [Transfer(network, direction, opener, size(direction)) for direction in directions]
            elif scenario == "diverge":
                # The planted byte is one that the guest sends.
                yield [Transfer(network, "download", opener, size("download"))]
            else:
                yield from ([Transfer(network, direction, opener, size(direction))] for direction in directions)


def _rounded(run: Figures) -> Figures:
    """Times to a tenth of a millisecond; finer is noise."""
    return {name: round(value, 1) if name in _WORST else value for name, value in run.items()}


def _serve_ok(run: Figures) -> bool:
    return bool(run["sha256_ok"] and run["divergences"] == 0 and run["released"] > 0)


def _diverge_ok(run: Figures) -> bool:
    found = run["divergences"] == 1 and run["found_offset"] == run["planted_offset"]
    return bool(found and run["wrong_bytes_delivered"] == 0 and 0 < run["bytes"] <= run["planted_offset"])


def _failover_ok(run: Figures) -> bool:
    whole = run["sha256_ok"] and run["wrong_bytes_delivered"] == 0
    return bool(whole and run["reconnects"] == 0 and run["longest_pause_ms"] < LONGEST_PAUSE_MS)


_RULES = {"serve": _serve_ok, "diverge": _diverge_ok, "failover": _failover_ok}

_SUMS = ("divergences", "released", "reconnects", "wrong_bytes_delivered")
_WORST = ("longest_pause_ms", "failover_ms")
_FIRST = ("planted_offset", "found_offset", "reason", "flow")


def _together(runs: list[Figures]) -> Figures:
    """The figures of all runs: sums, the worst of the times, and whether all checksums are right."""
    result: Figures = {}
    if all("sha256_ok" in run for run in runs):
        result["sha256_ok"] = all(run["sha256_ok"] for run in runs)
    for names, merge in ((_SUMS, sum), (_WORST, max), (_FIRST, lambda values: values[0])):
        for name in names:
            values = [run[name] for run in runs if name in run]
            if values:
                result[name] = merge(values)
    return result


def _speeds(legs: list[Figures]) -> str:
    rates = [leg["mb_per_s"] for leg in legs]
    return f"{min(rates):.0f} to {max(rates):.0f} MB/s" if len(rates) > 1 else f"{rates[0]:.0f} MB/s"


def _serve_sentence(result: Figures) -> str:
    runs = result["runs"]
    legs = [run[direction] for run in runs for direction in DIRECTIONS if direction in run]
    total = sum(leg["bytes"] for leg in legs) / (1 << 20)
    networks = ", ".join(dict.fromkeys(run["network"] for run in runs))
    arrived = "arrived whole" if result["sha256_ok"] else "did NOT all arrive whole"
    return (
        f"{total:.0f} MiB over {networks} {arrived} at {_speeds(legs)}; "
        f"{result['released']} frames released, {result['divergences']} divergences"
    )


def _diverge_sentence(result: Figures) -> str:
    wrong = result["wrong_bytes_delivered"]
    where = f"planted at byte {result['planted_offset']}"
    if result["found_offset"] is None:
        return f"the wrong byte {where} was NOT found; {wrong} wrong bytes reached the client"
    return (
        f"the wrong byte {where} was found at {result['found_offset']} ({result['divergences']} divergence, "
        f"{result['reason']}); {wrong} wrong bytes reached the client"
    )


def _failover_sentence(result: Figures) -> str:
    runs = result["runs"]
    went_on = sum(run["ok"] for run in runs)
    return (
        f"the primary killed in the middle of {len(runs)} transfers, {went_on} went on from the secondary on the same "
        f"connection; {result['reconnects']} reconnects, longest pause {result['longest_pause_ms']:.0f} ms, "
        f"take-over {result['failover_ms']:.0f} ms"
    )


_SENTENCES = {"serve": _serve_sentence, "diverge": _diverge_sentence, "failover": _failover_sentence}
