"""`python -m bench latency`, with few frames, and its percentile."""

import json
import subprocess
from pathlib import Path

from bench.latency import percentile
from bench.program import python

ROOT = Path(__file__).parents[2]


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed():
    values = [float(value) for value in range(1000, 0, -1)]
    assert percentile(values, 0.999) == 999.0
    assert percentile(values, 0.5) == 500.0
    assert percentile(values, 1.0) == 1000.0
    assert percentile([7.0], 0.999) == 7.0


def test_single_frames_and_load_pass_the_relay_and_ours():
    command = [*python("bench"), "latency", "--json", "--runs", "1", "--count", "20", "--seconds", "0.05"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["peer"] is None
    assert all(document[name][figure] > 0 for name in ("relay", "ours") for figure in ("median", "p999"))
    assert not [said for said in document["findings"] if "never came" in said]
