"""Any one process is killed in the middle of a transfer; the transfer ends whole, on its one connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scenarios.traffic import (
    LONG,
    MIB,
    PRIMARY,
    SECONDARY,
    Transfer,
    answerers,
    ask,
    connect,
    counters,
    end,
    fail_over,
    settled,
    show,
)

from lockstep import control
from lockstep.demo.stage import NODES, Stage

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

SIZE = 256 * MIB
#: What a guest sends while its device has nobody at the other end is lost, and its time-out doubles each time.
PATIENCE = 3 * LONG


#: Downloads go over ZeroMQ's own links, uploads over direct ones.
IPC = {"download": "libzmq", "upload": "direct"}


@pytest.fixture(params=sorted(IPC))
def direction(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stage(tmp_path: Path, direction: str) -> Iterator[Stage]:
    """A stage on which flows that lost their match go on soon."""
    with Stage(comparer={"compare_timeout": 1.0}, keep_logs=tmp_path, ipc=IPC[direction]) as stage:
        yield stage


@pytest.mark.parametrize("name", sorted(NODES))
def test_service_killed_and_restarted(stage: Stage, name: str, direction: str) -> None:
    """The transfer ends whole; a new connection is compared again, and goes on from the secondary after a failover."""
    with Transfer(stage, direction, SIZE, give_up=PATIENCE) as transfer:
        transfer.until(SIZE // 4)
        stage.services[name].kill()
        assert transfer.running()
        stage.restart(name)
        result = transfer.finish()
    counted = settled(stage)
    show(
        killed=name, direction=direction, seconds=round(result["seconds"], 1),
        longest_pause_ms=round(result["longest_pause_ms"]), divergences=counted["divergences"],
        gaps=counted["gaps_primary"] + counted["gaps_secondary"],
    )  # fmt: skip
    with answerers(stage) as guests, connect(stage, 7) as connection:
        assert [ask(connection, str(number)) for number in range(100)] == [str(number) for number in range(100)]
        after = settled(stage)
        for figure in ("divergences", "unprotected_flows"):
            assert after[figure] == counted[figure], stage.status("comparer")["divergences"]
        fail_over(stage, guests[0])
        assert ask(connection, "who") == SECONDARY


def test_secondary_node_lost(stage: Stage, direction: str) -> None:
    """Redirector, rewriter and secondary guest die at once; told so, the comparer lets the primary go on alone."""
    with Transfer(stage, direction, SIZE, give_up=PATIENCE) as transfer:
        transfer.until(SIZE // 4)
        stage.services["redirector"].kill()
        stage.services["rewriter"].kill()
        end(transfer.servers[1])
        answer = control.request(stage.endpoint("comparer"), "failover", timeout=LONG)
        assert answer["survivor"] == "primary"
        assert transfer.running()
        result = transfer.finish()
    counted = counters(stage)
    assert counted["unchecked"] > 0
    show(
        direction=direction, seconds=round(result["seconds"], 1),
        longest_pause_ms=round(result["longest_pause_ms"]), unchecked=counted["unchecked"],
    )  # fmt: skip
    with answerers(stage), connect(stage, 7) as connection:
        assert ask(connection, "who") == PRIMARY
