"""Services that share a process: the same transfers, the same verdicts, the same failover."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios.test_demo import check, demo
from scenarios.traffic import (
    MIB,
    PRIMARY,
    SECONDARY,
    Transfer,
    answerers,
    ask,
    assert_protected,
    connect,
    fail_over,
    settled,
    show,
)

from lockstep.demo.stage import ALL_IN_ONE, NODE_BY_NODE, NODES, Groups, Stage

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

PAIR: Groups = (("redirector", "rewriter"),)


@pytest.mark.parametrize("fuse", [PAIR, NODE_BY_NODE, ALL_IN_ONE], ids=["pair", "nodes", "all"])
@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_transfer_is_compared_whole(fuse: Groups, direction: str, tmp_path: Path) -> None:
    """No divergence, no gap; and each service answers for itself."""
    with Stage(fuse=fuse, keep_logs=tmp_path) as stage:
        with Transfer(stage, direction, 48 * MIB) as transfer:
            result = transfer.finish()
        counted = assert_protected(stage)
        assert counted["gaps_primary"] == counted["gaps_secondary"] == 0
        processes = {name: stage.status(name)["pid"] for name in NODES}
    assert len(set(processes.values())) == {PAIR: 3, NODE_BY_NODE: 2, ALL_IN_ONE: 1}[fuse]
    show(fuse=len(fuse), direction=direction, seconds=round(result["seconds"], 2), released=counted["released"])


@pytest.mark.parametrize("fuse", [NODE_BY_NODE, ALL_IN_ONE], ids=["nodes", "all"])
def test_a_wrong_byte_never_leaves(fuse: Groups, tmp_path: Path) -> None:
    """Replicas that answer differently: that one connection diverges, and is released by rule alone."""
    with Stage(fuse=fuse, comparer={"on_divergence": "hold"}, keep_logs=tmp_path) as stage, answerers(stage):
        with connect(stage, 7) as session, connect(stage, 7) as other:
            assert ask(session, "the same") == "the same"
            session.settimeout(1)
            with pytest.raises(TimeoutError):
                ask(session, "who")
            assert ask(other, "goes on") == "goes on"
        status = stage.status("comparer")
    assert status["counters"]["divergences"] == 1
    assert status["divergences"][0]["reason"] == "data"


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_transfer_goes_on_from_a_fused_secondary(direction: str, tmp_path: Path) -> None:
    """The primary node is one process, and dies as one."""
    with Stage(fuse=NODE_BY_NODE, keep_logs=tmp_path) as stage:
        with Transfer(stage, direction, 48 * MIB) as transfer:
            transfer.until(16 * MIB)
            assert transfer.running()
            fail_over(stage, transfer.servers[0])
            assert not stage.services["comparer"].alive()
            result = transfer.finish()
        show(direction=direction, longest_pause_ms=round(result["longest_pause_ms"]))


def test_what_was_released_unchecked_is_reset_though_no_event_crosses_a_socket(tmp_path: Path) -> None:
    """Comparer and rewriter share the process: the one hears the other all the same."""
    fuse = (("comparer", "redirector", "rewriter"),)
    with Stage(fuse=fuse, keep_logs=tmp_path) as stage, answerers(stage) as guests, connect(stage, 7) as session:
        assert ask(session, "who") == PRIMARY
        assert settled(stage)["unprotected_flows"] == 1
        fail_over(stage, guests[0])
        session.settimeout(5)
        with pytest.raises(ConnectionResetError):
            session.recv(1)
        with connect(stage, 7) as again:
            assert ask(again, "who") == SECONDARY


def test_a_process_that_is_restarted_brings_all_its_services_back(tmp_path: Path) -> None:
    with Stage(fuse=NODE_BY_NODE, comparer={"compare_timeout": 1.0}, keep_logs=tmp_path) as stage:
        for name in ("rewriter", "comparer"):
            stage.restart(name)
            with answerers(stage), connect(stage, 7) as session:
                assert ask(session, "compared again") == "compared again"
        assert len({service.pid for service in stage.services.values()}) == 2


def test_the_demo_shows_the_same_with_fused_nodes() -> None:
    options = ["--scenario", "serve", "--size", 4 * MIB, "--network", "ipv4", "--opened-by", "client", "--fuse"]
    check(demo(*options, "--capture", "tap"), "serve", "namespaces")
