"""A comparer of several processes between real kernels; one of them killed in the middle of transfers."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from scenarios.traffic import LONG, MIB, Transfer, answerers, ask, assert_protected, connect, settled, show

from lockstep.demo.stage import Stage, wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_transfer_is_compared_whole(direction: str, tmp_path: Path) -> None:
    with Stage(comparer={"workers": 3}, keep_logs=tmp_path) as stage:
        with Transfer(stage, direction, 48 * MIB) as transfer:
            result = transfer.finish()
        counted = assert_protected(stage)
    show(direction=direction, seconds=round(result["seconds"], 2), released=counted["released"])


def test_one_connections_divergence_is_not_the_others(tmp_path: Path) -> None:
    with (
        Stage(comparer={"workers": 2, "on_divergence": "hold"}, keep_logs=tmp_path) as stage,
        answerers(stage),
        ExitStack() as stack,
    ):
        sessions = [stack.enter_context(connect(stage, 7)) for _ in range(12)]
        assert [ask(session, "the same") for session in sessions] == ["the same"] * 12
        sessions[0].settimeout(1)
        with pytest.raises(TimeoutError):
            ask(sessions[0], "who")
        assert [ask(session, "goes on") for session in sessions[1:]] == ["goes on"] * 11
        status = stage.status("comparer")
        assert status["counters"]["divergences"] == 1
        assert all(status["workers"][name]["counters"]["released"] for name in ("0", "1"))


def test_a_worker_killed_in_the_middle_costs_no_connection(tmp_path: Path) -> None:
    """What it held is lost and sent again; its connections are picked up, and new ones are compared."""
    comparer = {"workers": 2, "compare_timeout": 1.0}
    with Stage(comparer=comparer, keep_logs=tmp_path) as stage:  # type: ignore[arg-type]
        with Transfer(stage, "download", 256 * MIB, give_up=3 * LONG) as transfer:
            transfer.until(64 * MIB)
            workers = stage.status("comparer")["workers"]
            busy = max(("0", "1"), key=lambda name: workers[name]["counters"].get("released", 0))
            os.kill(workers[busy]["pid"], signal.SIGKILL)
            assert transfer.running()
            result = transfer.finish()
        wait_for(lambda: stage.status("comparer", LONG)["workers"][busy]["restarts"] == 1, "the worker", LONG)
        counted = settled(stage)
        with answerers(stage), connect(stage, 7) as session:
            assert [ask(session, str(number)) for number in range(50)] == [str(number) for number in range(50)]
        assert settled(stage)["divergences"] == counted["divergences"]
    show(longest_pause_ms=round(result["longest_pause_ms"]), divergences=counted["divergences"])
