"""Which build this is: compiled, plain, or one whose compiled modules are older than their source."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_ROOT = Path(__file__).parent.parent


@cache
def hot_modules() -> tuple[str, ...]:
    """Names of the modules that can be compiled: those with a `.pxd` beside them."""
    found = (path for package in ("lockstep", "services") for path in (_ROOT / package).rglob("*.pxd"))
    modules = (path.relative_to(_ROOT).with_suffix("") for path in found if path.with_suffix(".py").exists())
    return tuple(sorted(".".join(module.parts) for module in modules))


@cache
def compiled() -> tuple[str, ...]:
    """Those of `hot_modules` that an import finds compiled."""
    return tuple(name for name in hot_modules() if _origin(name).name.endswith(tuple(EXTENSION_SUFFIXES)))


def stale() -> tuple[str, ...]:
    """Compiled modules of a source tree whose source was changed since."""
    if not (_ROOT / "setup.py").exists():
        return ()
    return tuple(
        name for name in compiled()
        if _source(name).stat().st_mtime > _origin(name).stat().st_mtime
    )  # fmt: skip


def describe() -> str:
    """For `--version` and the log: `compiled`, `plain`, or which modules are compiled."""
    done = compiled()
    if not done:
        return "plain"
    rest = sorted(set(hot_modules()) - set(done))
    return "compiled" if not rest else f"compiled but for {', '.join(rest)}"


def advice() -> str | None:
    """What is to be said once at start; None for a compiled build that is up to date."""
    old = stale()
    if old:
        return f"older than their source: {', '.join(old)}; install again (pip install -e .)"
    if describe() != "compiled":
        return f"this build is {describe()}, and slower: install a C compiler and Python's headers, then Lockstep again"
    return None


def _origin(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def _source(name: str) -> Path:
    return (_ROOT / Path(*name.split("."))).with_suffix(".py")
