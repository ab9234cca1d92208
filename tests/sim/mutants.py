"""Takes the guards of the cores out, one at a time, and asks the simulator whether it notices.

    python tests/sim/mutants.py [--only WORD] [--seconds S] [--jobs J] [--record]

The guards stand in `guards.py`. Each is taken out in a process of its own, before anything of the cores is
imported: the import finds other text for one module, no file is written. Where that module is one of the
compiled ones, all of those are run from their source, since they are bound to each other when compiled.
First the seeds that found it out before are run (`caught.json`; `--record` writes it), then others, until
one complains or the time is up. A mutant that nobody complains about has survived: then the guard is not
needed, or the simulator does not look at it.

Exit 0: all were caught. 1: one survived, or the list is out of date, or a named seed complains of the
cores as they are.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
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
CAUGHT = Path(__file__).with_name("caught.json")
#: Seconds that a mutant gets, before it counts as a survivor.
SECONDS = 20.0
#: Seconds after which a core that never comes back counts as caught.
HANGS = 30
#: Seeds of a guard that `--record` keeps.
MOST_RECORDED = 2


@dataclass(frozen=True)
class Verdict:
    """What came of a mutant. seeds: those that complained, of `tried`. wrong: why it could not be tried."""

    name: str
    tried: int
    seeds: tuple[int, ...]
    said: str
    wrong: bool = False


class Source(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Finds modules by their source, one of them with other text than lies on the disk."""

    def __init__(self, guard: Guard) -> None:
        self.texts = {module_of(guard.file): mutated(guard)}
        if (ROOT / guard.file).with_suffix(".pxd").exists():
            for found in (*ROOT.glob("lockstep/**/*.pxd"), *ROOT.glob("services/**/*.pxd")):
                source = found.with_suffix(".py")
                name = module_of(str(source.relative_to(ROOT)))
                self.texts.setdefault(name, source.read_text(encoding="utf-8"))
        self.loaded: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See MetaPathFinder."""
        return importlib.util.spec_from_loader(fullname, self) if fullname in self.texts else None

    def get_filename(self, fullname: str) -> str:
        """See SourceLoader."""
        return str(ROOT / (fullname.replace(".", "/") + ".py"))

    def get_data(self, path: str) -> bytes:
        """See SourceLoader."""
        return self.texts[module_of(str(Path(path).relative_to(ROOT)))].encode()

    def get_code(self, fullname: str) -> CodeType:
        """The text as it is in memory; no cache of the real one."""
        self.loaded.add(fullname)
        return compile(self.texts[fullname], self.get_filename(fullname), "exec")


def module_of(file: str) -> str:
    """The name of the module that lies in this file."""
    return file.removesuffix(".py").replace("/", ".")


def mutated(guard: Guard) -> str:
    """The text of a guard's file without the guard."""
    return (ROOT / guard.file).read_text(encoding="utf-8").replace(guard.old, guard.new)


def stale(guard: Guard) -> str | None:
    """Why a guard no longer fits the sources; None if it does."""
    text = (ROOT / guard.file).read_text(encoding="utf-8")
    if (count := text.count(guard.old)) != 1:
        return f"its old text stands {count} times in {guard.file}"
    try:
        compile(mutated(guard), guard.file, "exec")
    except SyntaxError as error:
        return f"without it {guard.file} is no Python: {error}"
    return None


def recorded() -> dict[str, list[int]]:
    """Seeds that have complained, by guard."""
    known: dict[str, list[int]] = json.loads(CAUGHT.read_text(encoding="utf-8")) if CAUGHT.exists() else {}
    return known


def candidates(guard: Guard) -> Iterator[int]:
    """The seeds whose scenarios can show that this guard is missing."""
    from sim import scenario

    return (seed for seed in itertools.count() if guard.where is None or guard.where(scenario.of(seed)))


def tried(job: tuple[int, list[int], float, int]) -> Verdict:
    """Run seeds with a guard taken out until enough complain. In a process of its own: it changes what is imported."""
    index, before, seconds, enough = job
    guard = GUARDS[index]
    why = stale(guard)
    if why is not None:
        return Verdict(guard.name, 0, (), why, wrong=True)
    source = Source(guard)
    sys.meta_path.insert(0, source)
    from sim import cli

    def too_long(*_: Any) -> None:
        raise TimeoutError("a core that never comes back")

    signal.signal(signal.SIGALRM, too_long)
    began = time.monotonic()
    end = began + seconds
    ran, seeds, said = 0, [], "nothing said"
    for seed in itertools.chain(before, candidates(guard)):
        if ran > len(before) and time.monotonic() > end:
            break
        if seed in seeds:
            continue
        signal.alarm(HANGS)
        outcome = cli.run(seed)
        signal.alarm(0)
        ran += 1
        if module_of(guard.file) not in source.loaded:
            return Verdict(guard.name, ran, (), f"{guard.file} is not run in the simulator", wrong=True)
        if outcome.failure is not None:
            seeds.append(seed)
            said = outcome.failure.strip().splitlines()[-1]
            if "NameError: " in said:
                return Verdict(guard.name, ran, (), f"what stands in its place is no sense: {said}", wrong=True)
            if len(seeds) == enough:
                break
            end = min(end, 2 * time.monotonic() - began + 1)  # not much longer for another
    return Verdict(guard.name, ran, tuple(seeds), said)


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
    parser.add_argument("--record", action="store_true", help="look for seeds that complain, and write them down")
    asked = parser.parse_args()
    chosen = [index for index, guard in enumerate(GUARDS) if asked.only in guard.name or asked.only in guard.file]
    known = recorded()
    enough = MOST_RECORDED if asked.record else 1
    began = time.monotonic()
    fork = multiprocessing.get_context("fork")
    bad = caught = 0
    used: set[int] = set()
    with fork.Pool(asked.jobs, maxtasksperchild=1) as pool:
        jobs = [(index, known.get(GUARDS[index].name, []), asked.seconds, enough) for index in chosen]
        for verdict in pool.imap(tried, jobs, chunksize=1):
            caught += bool(verdict.seeds)
            bad += not verdict.seeds
            used.update(verdict.seeds)
            every = dict.fromkeys((*verdict.seeds, *known.get(verdict.name, [])))
            known[verdict.name] = list(every)[:MOST_RECORDED]
            print(_line(verdict), flush=True)
            if asked.record:
                _write({guard.name: known.get(guard.name, []) for guard in GUARDS})
        for seed, failure in zip(sorted(used), pool.imap(unharmed, sorted(used), chunksize=8), strict=True):
            if failure is not None:
                bad += 1
                print(f"UNSOUND   seed {seed} complains of the cores as they are: {failure}", flush=True)
    print(f"{caught} of {len(chosen)} caught, in {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


def _write(known: dict[str, list[int]]) -> None:
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(seeds)}" for name, seeds in known.items() if seeds)
    CAUGHT.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def _line(verdict: Verdict) -> str:
    if verdict.wrong:
        return f"OUTDATED  {verdict.name}: {verdict.said}"
    if not verdict.seeds:
        return f"SURVIVED  {verdict.name}: {verdict.tried} seeds"
    return f"caught    {verdict.name}: seed {verdict.seeds[0]}, {verdict.tried} tried: {verdict.said[:90]}"


if __name__ == "__main__":
    sys.exit(main())
