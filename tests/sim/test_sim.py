"""The simulator: seeds hold, a seed is one trace, and the checker complains where it must."""

from __future__ import annotations

import pytest

from lockstep.batch import Batch
from services.comparer.core import Core as Comparer
from services.redirector.core import Core as Redirector
from sim import cli, scenario
from sim.checker import Violation
from sim.conftest import USUAL
from sim.world import World


def test_seeds_hold(request: pytest.FixtureRequest) -> None:
    """Every invariant of the design holds in every run."""
    count = request.config.getoption("--seeds", USUAL)
    failed = [outcome for outcome in cli.outcomes(iter(range(count)), False, 2) if outcome.failure is not None]
    assert not failed, "\n".join(f"seed {outcome.seed}: {outcome.failure}" for outcome in failed)


@pytest.mark.parametrize("seed", [1, 5, 23])
def test_a_seed_is_one_trace(seed: int) -> None:
    """The same seed gives the same trace, to the byte; another seed another one."""

    def digest(number: int) -> str:
        world = World(scenario.of(number))
        world.run()
        return world.digest()

    assert digest(seed) == digest(seed)
    assert digest(seed) != digest(seed + 1)


def _complaints(seeds: range) -> set[int]:
    return {outcome.invariant for seed in seeds if (outcome := cli.run(seed)).failure is not None}


def test_a_comparer_that_lets_everything_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 1 and 2: what nobody compared breaks output commit."""
    real = Comparer.push

    def push(self: Comparer, stream: str, item: object, now: float) -> list[object]:
        if stream == "primary" and isinstance(item, Batch):
            self.counters["primary_frames"] += len(item)
            self.counters["released"] += len(item)
            return [("released", item)]
        return real(self, stream, item, now)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(Comparer, "push", push)
    assert 1 in _complaints(range(10))


def test_a_core_that_raises_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 8: whatever comes out of a core as an exception is its fault."""

    def tick(self: Comparer, now: float) -> list[object]:
        raise ValueError("of a core")

    monkeypatch.setattr(Comparer, "tick", tick)
    assert _complaints(range(3)) == {8}


def test_two_voices_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 7: a redirector that speaks from the start."""
    real = Redirector.__init__

    def speaking(self: Redirector, config: object) -> None:
        real(self, config)  # type: ignore[arg-type]
        self._speaking = True

    monkeypatch.setattr(Redirector, "__init__", speaking)
    with pytest.raises(Violation, match="invariant 7"):
        World(scenario.of(0)).run()
