"""`python -m bench comparer` with few frames: the document it prints, and that everything came out."""

import json
import subprocess
from pathlib import Path

import pytest

from bench.program import python

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*python("bench"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_ours_alone():
    done = bench("comparer", "--json", "--runs", "1", "--frames", "400", "--only", "small-64")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (run,) = document["runs"]
    assert (run["name"], run["flows"], run["payload"], run["peer"], run["ratio"]) == ("small-64", 64, 10, None, None)
    assert set(run["ours"]) == {"frames_per_s", "cpu_us_per_frame", "rss_mb"}
    assert all(value > 0 for value in run["ours"].values())
    # Where this machine was too busy for 20 ms, the comparer asks the client with frames of its own.
    assert not [said for said in document["findings"] if "never came" in said or "behind" in said or "diverg" in said]
    (limit,) = document["limits"]
    assert min(limit.values()) > 0


@pytest.mark.needs("qemu-system-x86_64")
def test_beside_qemu():
    done = bench("comparer", "--peer", "qemu", "--json", "--runs", "1", "--frames", "400", "--only", "full-1")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert set(run["peer"]) == set(run["ours"])
    assert run["ratio"] == pytest.approx(run["ours"]["frames_per_s"] / run["peer"]["frames_per_s"], rel=1e-3)


def test_an_unknown_case_is_named():
    done = bench("comparer", "--only", "huge")
    assert done.returncode == 2
    assert "small-1000000" in done.stderr
