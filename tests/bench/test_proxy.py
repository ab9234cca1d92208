"""`python -m bench proxy` with little work: every proxy passes frames, and the document says so."""

import json
import subprocess
from pathlib import Path

import pytest

from bench.program import python
from bench.proxy import _result, _Seen
from bench.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
BY_NAME = {workload.name: workload for workload in WORKLOADS}


def bench(*arguments: str) -> dict:
    command = [*python("bench"), "proxy", "--json", "--runs", "1", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.root
def test_a_download_and_a_ping_pass_ours_whole():
    document = bench("--scale", "0.02", "--only", "download", "--only", "ping")
    assert [(run["name"], run["peer"]) for run in document["runs"]] == [("download", None), ("ping", None)]
    assert all(run["ours"] > 0 and run["bridge"] > 0 for run in document["runs"])
    assert document["findings"] == []
    assert set(document["idle_rss_mb"]) == {"mirror", "redirector", "rewriter", "comparer"}


@pytest.mark.root
@pytest.mark.needs("qemu-system-x86_64")
def test_qemu_stands_in_the_same_place():
    (run,) = bench("--scale", "0.02", "--only", "ping", "--peer", "qemu")["runs"]
    assert run["peer"] > 0
    assert run["ratio"] == pytest.approx(run["peer"] / run["ours"], rel=1e-3)


@pytest.mark.root
def test_fused_services_stand_in_the_same_place():
    (run,) = bench("--scale", "0.02", "--only", "ping", "--fused")["runs"]
    assert {name: set(fused["cpu_s"]) for name, fused in run["fused"].items()} == {
        "fused": {"comparer+mirror", "redirector+rewriter"},
        "all fused": {"comparer+mirror+redirector+rewriter"},
    }
    for fused in run["fused"].values():
        assert fused["ratio_to_bridge"] == pytest.approx(run["bridge"] / fused["figure"], rel=1e-3)


def test_a_ratio_is_one_of_speed_whatever_the_unit():
    seen = {"ours": _Seen([2.0]), "peer": _Seen([8.0]), "bridge": _Seen([4.0])}
    assert _result(BY_NAME["ping"], seen)["ratio"] == 4.0
    assert _result(BY_NAME["download"], seen)["ratio"] == 0.25


def test_a_peer_that_stalled_has_no_figure():
    result = _result(BY_NAME["redis-set-32"], {"ours": _Seen([2.0]), "peer": _Seen(stalls=1), "bridge": _Seen([4.0])})
    assert (result["peer"], result["ratio"], result["ratio_to_bridge"]) == (None, None, 0.5)
