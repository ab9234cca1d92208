"""Real captures, and malformed ones, of the folder that LOCKSTEP_CORPUS names: no traceback, the right verdict."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import mutate
import pytest
from against import compared, told

from lockstep.capture.pcapfile import CaptureFileError
from lockstep.compare import CompareOptions, compare_captures

#: Captures in which one order of contradicting IP fragments is as right as another.
UNORDERED = ("fragmented-4",)


def corpus() -> list[Path]:
    folder = os.environ.get("LOCKSTEP_CORPUS")
    if not folder:
        pytest.skip("LOCKSTEP_CORPUS names no folder of captures")
    return [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.suffix != ".md"]


def readable() -> Iterator[tuple[Path, list[mutate.Record]]]:
    for path in corpus():
        try:
            yield path, mutate.read(path)
        except CaptureFileError:
            continue


def test_each_file_is_equal_to_itself_or_can_not_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    bad = []
    for path in corpus():
        code = compare_captures(CompareOptions(path, path, json=True))
        printed = capsys.readouterr()
        if code not in (0, 65) or (code == 65 and not printed.err.startswith(str(path))):
            bad.append((path.name, code, printed.out))
    assert not bad


@pytest.mark.parametrize("name", ["recut", "shifted", "doubled", "reordered", "disguised"])
def test_each_file_is_equal_to_its_disguises(name: str) -> None:
    bad = []
    for path, records in readable():
        if any(word in path.name for word in UNORDERED):
            continue
        other = getattr(mutate, name)(records, Random(1))
        found = compared(records, other).divergences
        if found:
            bad.append((path.name, told(found[0])))
    assert not bad


def test_one_wrong_byte_of_each_file_is_found() -> None:
    """Flow and offset are exact; the frame too, unless the file itself says other things at that place."""
    random = Random(1)
    bad = []
    for path, records in readable():
        flip = mutate.flipped(records, random)
        if flip is None:
            continue
        found = [told(divergence) for divergence in compared(records, flip.records).divergences]
        if found != [(flip.flow, "data", flip.offset, flip.frame, flip.frame)]:
            bad.append((path.name, found, (flip.flow, flip.offset, flip.frame)))
    assert not bad
