"""Which build runs: the tests of `tox -e unit` prove the compiled one, those of `tox -e plain` the other."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lockstep import build

SETUP = Path(__file__).parents[2] / "setup.py"


def listed() -> list[str]:
    """`HOT` of setup.py."""
    for statement in ast.parse(SETUP.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "HOT":
            return list(ast.literal_eval(statement.value))
    raise AssertionError("setup.py has no HOT")


def test_every_module_with_types_beside_it_is_compiled_and_no_other() -> None:
    assert sorted(listed()) == list(build.hot_modules())


@pytest.mark.skipif("LOCKSTEP_BUILD" not in os.environ, reason="LOCKSTEP_BUILD (set by tox) doesn't say which build")
def test_this_is_the_build_that_tox_asked_for(requires: Callable[..., None]) -> None:
    if os.environ["LOCKSTEP_BUILD"] == "compiled":
        requires("cc")
    assert build.describe() == os.environ["LOCKSTEP_BUILD"]


def test_a_source_tree_tells_of_compiled_modules_that_are_older_than_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, compiled = tmp_path / "hot.py", tmp_path / "hot.so"
    for at, path in enumerate((compiled, source)):
        path.touch()
        os.utime(path, (at, at))
    (tmp_path / "setup.py").touch()
    monkeypatch.setattr(build, "_ROOT", tmp_path)
    monkeypatch.setattr(build, "compiled", lambda: ("hot",))
    monkeypatch.setattr(build, "_origin", lambda name: compiled)
    assert build.stale() == ("hot",)
    advice = build.advice()
    assert advice is not None
    assert "hot" in advice
    os.utime(compiled, (2, 2))
    assert build.stale() == ()
