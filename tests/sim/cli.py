"""The command line: run seeds, on all cores, until they or the time are used up."""

from __future__ import annotations

import argparse
import datetime
import itertools
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim import scenario, show
from sim.checker import Violation
from sim.known import KNOWN
from sim.world import World

#: Lines of the trace that a failure shows.
LAST_LINES = 60


@dataclass(frozen=True)
class Outcome:
    """What came of a seed. failure: the invariant that does not hold, and the trace's last lines; None if all do."""

    seed: int
    failure: str | None = None
    invariant: int = 0
    last: tuple[str, ...] = ()


def run(seed: int, strict: bool = False) -> Outcome:
    """Run one seed."""
    world = World(scenario.of(seed), frozenset() if strict else frozenset(KNOWN))
    try:
        world.run()
    except Violation as violation:
        return Outcome(seed, str(violation), violation.rule, tuple(show.lines(world.trace[-LAST_LINES:]))[-LAST_LINES:])
    except Exception:  # a fault of the simulator itself is told like one of the cores, with its place
        return Outcome(seed, traceback.format_exc(), 0, tuple(show.lines(world.trace[-LAST_LINES:]))[-LAST_LINES:])
    return Outcome(seed)


def _run(job: tuple[int, bool]) -> Outcome:
    return run(*job)


def outcomes(seeds: Iterator[int], strict: bool, jobs: int) -> Iterator[Outcome]:
    """Run seeds in order of arrival, some at once."""
    if jobs == 1:
        for seed in seeds:
            yield run(seed, strict)
        return
    with multiprocessing.Pool(jobs) as pool:
        while chunk := list(itertools.islice(seeds, 16 * jobs)):
            yield from pool.imap(_run, [(seed, strict) for seed in chunk], chunksize=4)


def main(argv: Sequence[str] | None = None) -> int:
    """See `--help`."""
    parser = argparse.ArgumentParser(prog="tests/sim/run.py", description=__doc__)
    parser.add_argument("--seeds", type=int, metavar="N", help="run N seeds (default: 200, without --seconds)")
    parser.add_argument("--start", type=int, default=0, metavar="K", help="begin with seed K (default: 0)")
    parser.add_argument("--today", type=int, default=0, metavar="N", help="and N seeds more, other ones each day")
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after so many seconds")
    parser.add_argument("--seed", type=int, metavar="K", help="run this seed alone")
    parser.add_argument("--verbose", action="store_true", help="print the scenario and the whole trace of --seed")
    parser.add_argument("--strict", action="store_true", help="report the known faults of known.py as well")
    parser.add_argument("--stop", action="store_true", help="stop at the first failure")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="processes (default: all)")
    asked = parser.parse_args(argv)
    if asked.seed is not None:
        return _single(asked.seed, asked.strict, asked.verbose)
    end = time.monotonic() + (asked.seconds if asked.seconds is not None else float("inf"))
    most = asked.seeds if asked.seeds is not None else 200 if asked.seconds is None else None
    numbers = itertools.count(asked.start) if most is None else iter(range(asked.start, asked.start + most))
    if asked.today:
        first = datetime.date.today().toordinal() * 1000
        numbers = itertools.chain(numbers, range(first, first + asked.today))
    in_time = itertools.takewhile(lambda _: time.monotonic() < end, numbers)
    began = told = time.monotonic()
    passed = failed = 0
    for outcome in outcomes(in_time, asked.strict, asked.jobs):
        if outcome.failure is None:
            passed += 1
        else:
            failed += 1
            _tell(outcome, asked.strict)
            if asked.stop:
                break
        if time.monotonic() - told > 5:
            told = time.monotonic()
            print(
                f"{passed + failed} seeds, {failed} failed, {(passed + failed) / (told - began):.0f} a second",
                flush=True,
            )
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def _single(seed: int, strict: bool, verbose: bool) -> int:
    if verbose:
        one = scenario.of(seed)
        print(f"scenario of seed {seed}:\n{one.describe()}")
        world = World(one, frozenset() if strict else frozenset(KNOWN))
        failure = None
        try:
            world.run()
        except Violation as violation:
            failure = str(violation)
        print("\n".join(show.lines(world.trace)))
        print(f"trace {world.digest()}")
        if failure is not None:
            print(f"seed {seed}: {failure}")
        print("0 passed, 1 failed" if failure else "1 passed, 0 failed")
        return 1 if failure else 0
    outcome = run(seed, strict)
    if outcome.failure is not None:
        _tell(outcome, strict)
    print("0 passed, 1 failed" if outcome.failure else "1 passed, 0 failed")
    return 1 if outcome.failure else 0


def _tell(outcome: Outcome, strict: bool) -> None:
    for line in outcome.last:
        print(f"    {line[:220]}")
    print(f"seed {outcome.seed}: {outcome.failure}")
    print(f"replay: python tests/sim/run.py --seed {outcome.seed} --verbose{' --strict' if strict else ''}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
