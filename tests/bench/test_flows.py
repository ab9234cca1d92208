"""`python -m bench flows`, `cores`, `digest` and `capture`, with few frames."""

import json
import subprocess
from pathlib import Path

import pytest

from bench.program import python

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> dict:
    done = subprocess.run(
        [*python("bench"), *arguments, "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_flows_are_opened_and_measured():
    document = bench("flows", "--frames", "300", "--most", "1000")
    assert [run["flows"] for run in document["runs"]] == [1, 1000]
    assert all(run["cpu_us_per_frame"] > 0 and run["bytes_per_flow"] is None for run in document["runs"])
    assert not [said for said in document["findings"] if "never came" in said or "diverg" in said]


def test_every_core_is_measured_with_every_shape():
    document = bench("cores", "--pushes", "20")
    services = {run["name"].split(",")[0] for run in document["runs"]}
    assert services == {"mirror", "redirector", "rewriter", "comparer"}
    assert len(document["runs"]) == 3 * 8
    assert all(run["us"] > 0 for run in document["runs"])


def test_records_are_of_their_frames_and_shorter_where_there_is_a_payload():
    document = bench("digest", "--frames", "100")
    assert not document["findings"]
    assert len(document["runs"]) == 3 * 2
    assert all(run["us_per_frame"] > 0 for run in document["runs"])
    carried = {run["name"]: run["record_bytes"] for run in document["runs"] if run["hash"] == "xxh3"}
    # Headers are 54 bytes, a hash 16; in front of them 5 bytes of a digest or 1, and a key of 17 for each batch.
    assert carried["pure ACKs"] == 55 + 17 / 100
    assert carried["1460 bytes"] == 75 + 17 / 100
    assert carried["super-frames"] == 59 + 45 * 16 + 17 / 2


@pytest.mark.root
def test_every_frontend_passes_every_frame():
    document = bench("capture", "--frames", "300")
    assert {run["name"] for run in document["runs"]} == {"memory", "tap", "packet", "qemu", "vhost-user"}
    assert [run["lost"] for run in document["runs"]] == [0] * 10
    assert document["findings"] == []
