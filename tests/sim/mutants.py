"""Takes the guards of the cores out, one at a time, and asks the simulator whether it notices.

    python tests/sim/mutants.py [--only WORD] [--seconds S] [--jobs J]

The guards stand in `guards.py`. Each is taken out in a process of its own, before anything of the cores
is imported: the import finds other text for one module, no file is written. First the seeds that found it
out the last time are run, then 0, 1, 2 … until one complains or the time is up. A mutant that nobody
complains about has survived: then the guard is not needed, or the simulator does not look at it.

Exit 0: all were caught. 1: one survived, or the list is out of date, or a named seed complains of the
cores as they are.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2]))

from sim.guards import GUARDS, Guard

# Imported once, for all processes that are forked: what the cores stand on, and nothing of them.
for _name in ("msgpack", "pydantic", "structlog", "zmq"):
    importlib.import_module(_name)

ROOT = Path(__file__).resolve().parents[2]
#: Seconds that a mutant gets, before it counts as a survivor.
SECONDS = 20.0
#: Seconds after which a core that never comes back counts as caught.
HANGS = 30


@dataclass(frozen=True)
class Verdict:
    """What came of a mutant. seed: the one that complained; None if none did. wrong: why it could not be tried."""

    guard: Guard
    seeds: int
    seed: int | None
    said: str
    wrong: bool = False


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Finds one module with other text than lies on the disk."""

    def __init__(self, guard: Guard) -> None:
        self.name = guard.file.removesuffix(".py").replace("/", ".")
        self.file = str(ROOT / guard.file)
        self.text = Path(self.file).read_text(encoding="utf-8").replace(guard.old, guard.new)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See MetaPathFinder."""
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def get_filename(self, fullname: str) -> str:
        """See SourceLoader."""
        return self.file

    def get_data(self, path: str) -> bytes:
        """See SourceLoader."""
        return self.text.encode()

    def get_code(self, fullname: str) -> CodeType:
        """The text as it is in memory; no cache of the real one."""
        return compile(self.text, self.file, "exec")


def stale(guard: Guard) -> str | None:
    """Why a guard no longer fits the sources; None if it does."""
    text = (ROOT / guard.file).read_text(encoding="utf-8")
    if (count := text.count(guard.old)) != 1:
        return f"its old text stands {count} times in {guard.file}"
    try:
        compile(text.replace(guard.old, guard.new), guard.file, "exec")
    except SyntaxError as error:
        return f"without it {guard.file} is no Python: {error}"
    return None


def tried(job: tuple[Guard, float]) -> Verdict:
    """Run seeds with a guard taken out until one complains. In a process of its own: it changes what is imported."""
    guard, seconds = job
    why = stale(guard)
    if why is not None:
        return Verdict(guard, 0, None, why, wrong=True)
    sys.meta_path.insert(0, Replaced(guard))
    from sim import cli

    def too_long(*_: Any) -> None:
        raise TimeoutError("a core that never comes back")

    signal.signal(signal.SIGALRM, too_long)
    end = time.monotonic() + seconds
    ran = 0
    for seed in itertools.chain(guard.seeds, itertools.count()):
        signal.alarm(HANGS)
        outcome = cli.run(seed)
        signal.alarm(0)
        ran += 1
        if outcome.failure is not None:
            return Verdict(guard, ran, seed, outcome.failure.strip().splitlines()[-1])
        if time.monotonic() > end:
            break
    return Verdict(guard, ran, None, "nothing said")


def unharmed(seed: int) -> str | None:
    """The complaint of a seed about the cores as they are: it would prove nothing about a mutant."""
    from sim import cli

    return cli.run(seed).failure


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="only guards whose name or file has this in it")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help=f"for each mutant ({SECONDS:.0f})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="at once (default: all)")
    asked = parser.parse_args()
    chosen = [guard for guard in GUARDS if asked.only in guard.name or asked.only in guard.file]
    began = time.monotonic()
    fork = multiprocessing.get_context("fork")
    bad = caught = 0
    with fork.Pool(asked.jobs, maxtasksperchild=1) as pool:
        for verdict in pool.imap(tried, [(guard, asked.seconds) for guard in chosen], chunksize=1):
            caught += verdict.seed is not None
            bad += verdict.seed is None
            print(_line(verdict), flush=True)
        seeds = sorted({seed for guard in chosen for seed in guard.seeds})
        for seed, failure in zip(seeds, pool.imap(unharmed, seeds, chunksize=8), strict=True):
            if failure is not None:
                bad += 1
                print(f"UNSOUND   seed {seed} complains of the cores as they are: {failure}", flush=True)
    print(f"{caught} of {len(chosen)} caught, in {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


def _line(verdict: Verdict) -> str:
    if verdict.wrong:
        return f"OUTDATED  {verdict.guard.name}: {verdict.said}"
    if verdict.seed is None:
        return f"SURVIVED  {verdict.guard.name}: {verdict.seeds} seeds"
    return f"caught    {verdict.guard.name}: seed {verdict.seed}, the {verdict.seeds}. one: {verdict.said[:90]}"


if __name__ == "__main__":
    sys.exit(main())
