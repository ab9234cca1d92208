"""Digest mode between real kernels: the secondary's payloads never cross the link, and everything else is as ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scenarios.traffic import MIB, Transfer, answerers, ask, assert_protected, connect, counters, fail_over, show

from lockstep.demo.stage import NODE_BY_NODE, Groups, Stage, StageError

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


def staged(tmp_path: Path, fuse: Groups = (), **comparer: Any) -> Stage:
    return Stage(
        comparer={"secondary": "digest", **comparer},
        settings={"redirector": {"secondary": "digest"}},
        fuse=fuse,
        keep_logs=tmp_path,
    )


@pytest.mark.parametrize("network", ["ipv4", "ipv6", "vlan"])
@pytest.mark.parametrize("fuse", [(), NODE_BY_NODE], ids=["separate", "fused"])
def test_a_download_is_compared_whole_by_its_hashes(network: str, fuse: Groups, tmp_path: Path) -> None:
    """The link from the secondary carries a tenth of it at most."""
    with staged(tmp_path, fuse) as stage:
        with Transfer(stage, "download", 48 * MIB, network=network) as transfer:
            result = transfer.finish()
        counted = assert_protected(stage)
        carried = stage.status("comparer")["links"]["digests"]["bytes"]
    assert counted["matched"] * 65536 > 48 * MIB
    assert carried < 4.8 * MIB
    show(network=network, seconds=round(result["seconds"], 2), carried_mib=round(carried / MIB, 2))


def test_an_upload_is_compared_whole(tmp_path: Path) -> None:
    with staged(tmp_path) as stage:
        with Transfer(stage, "upload", 48 * MIB) as transfer:
            transfer.finish()
        assert_protected(stage)


def test_several_workers_compare_a_download_by_its_hashes(tmp_path: Path) -> None:
    """A flow is one worker's: by far the most of it is proven there, by the key that came with its share."""
    with staged(tmp_path, workers=3) as stage:
        with Transfer(stage, "download", 48 * MIB) as transfer:
            transfer.finish()
        counted = assert_protected(stage)
        status = stage.status("comparer")
    assert counted["matched"] * 65536 > 48 * MIB
    assert status["links"]["digests"]["bytes"] < 4.8 * MIB
    matched = [status["workers"][name]["counters"].get("matched", 0) for name in ("0", "1", "2")]
    assert max(matched) > 0.9 * sum(matched)


def test_a_download_goes_on_from_the_secondary(tmp_path: Path) -> None:
    with staged(tmp_path) as stage, Transfer(stage, "download", 48 * MIB) as transfer:
        transfer.until(16 * MIB)
        fail_over(stage, transfer.servers[0])
        transfer.finish()


def test_a_wrong_answer_never_leaves(tmp_path: Path) -> None:
    """Answers long enough to be hashed; the one that differs is found in the segment where it begins."""
    with staged(tmp_path, on_divergence="hold", compare_timeout=0.5) as stage, answerers(stage):
        with connect(stage, 7) as session:
            same = "the same " * 20
            assert ask(session, same) == same
            session.settimeout(1)
            with pytest.raises(TimeoutError):
                ask(session, "who")
        assert counters(stage)["divergences"] == 1


def test_a_redirector_that_does_not_send_digests_is_refused_and_counted(tmp_path: Path) -> None:
    """One half alone is a mistake that releases nothing."""
    stage = Stage(comparer={"secondary": "digest", "on_divergence": "hold"}, keep_logs=tmp_path)
    with pytest.raises(StageError, match="can't reach the guests"), stage:
        pass
    (status,) = tmp_path.glob("*/comparer.status.json")
    said = json.loads(status.read_text())
    assert said["links"]["digests"]["rejected_stream"] > 0
    assert said["counters"]["released"] == said["counters"]["unchecked"]
