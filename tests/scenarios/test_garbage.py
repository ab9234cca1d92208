"""Garbage on every socket of the proxy, in the middle of a transfer: counted, and of no consequence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scenarios.traffic import (
    HERE,
    LONG,
    MIB,
    Transfer,
    answerers,
    ask,
    assert_protected,
    connect,
    counters,
    said,
    settled,
    show,
)

from lockstep.demo.stage import NODES, Stage, wait_for
from lockstep.wiring import SERVICES

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

SIZE = 96 * MIB

#: stream → the service that takes it.
CONSUMERS = {stream: service for service, wiring in SERVICES.items() for stream in wiring.takes}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(keep_logs=tmp_path) as stage:
        yield stage
        assert {name: service.alive() for name, service in stage.services.items()} == dict.fromkeys(NODES, True)


@contextmanager
def garbage(stage: Stage, *kinds: str) -> Iterator[Callable[[], dict[str, int]]]:
    """Garbage of these kinds, until `stop` is called, which returns how many messages of it went where."""
    sources = [
        stage.popen(
            None, [sys.executable, HERE / "garbage.py", kind, stage.run_dir, 1],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for kind in kinds
    ]  # fmt: skip

    def stop() -> dict[str, int]:
        sent: dict[str, int] = {}
        for source in sources:
            source.stdin.write(b"\n")
            source.stdin.flush()
        for source in sources:
            sent |= said(source)
        return sent

    yield stop
    for source in sources:
        source.stdin.close()
    for source in sources:
        assert source.wait() == 0


@contextmanager
def through_garbage(stage: Stage, direction: str, *kinds: str) -> Iterator[dict[str, int]]:
    """A transfer, from an eighth on with garbage: whole, and by the processes that were there before.

    Yields how many messages went where, while those who sent them are still connected.
    """
    pids = {name: service.pid for name, service in stage.services.items()}
    with Transfer(stage, direction, SIZE) as transfer:
        transfer.until(SIZE // 8)
        with garbage(stage, *kinds) as stop:
            result = transfer.finish()
            sent = stop()
            show(direction=direction, MB_per_s=round(SIZE / result["seconds"] / 1e6), **sent)
            yield sent
    assert {name: stage.status(name, timeout=LONG)["pid"] for name in NODES} == pids


def rejected(stage: Stage, stream: str) -> int:
    """How many messages of a stream its consumer refused."""
    links = stage.status(CONSUMERS[stream], timeout=LONG)["links"][stream]
    return sum(count for name, count in links.items() if name.startswith("rejected_"))


def refused(stage: Stage, service: str) -> int:
    """How many requests a service found to be none. None of ours is one that it understands and refuses."""
    control = stage.status(service, timeout=LONG)["control"]
    assert control["refused"] == 0
    garbage: int = control["garbage"]
    return garbage


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_messages_and_requests_that_do_not_fit(stage: Stage, direction: str) -> None:
    """Each of them is counted, and none of them is felt: everything stays compared and equal."""
    with through_garbage(stage, direction, "envelopes", "control") as sent:
        for stream in CONSUMERS:
            wait_for(lambda s=stream: rejected(stage, s) >= sent[s], f"all garbage on {stream}", LONG)  # type: ignore[misc]
            assert rejected(stage, stream) == sent[stream] > 0
        for service in NODES:
            wait_for(lambda s=service: refused(stage, s) >= sent[s], f"all garbage for the {service}", LONG)  # type: ignore[misc]
            assert refused(stage, service) == sent[service] > 0
    assert_protected(stage)


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_bytes_that_are_no_zmtp(stage: Stage, direction: str) -> None:
    """Connections that speak something else, or nothing, or lie about a length, are not felt either."""
    with through_garbage(stage, direction, "raw"):
        pass
    assert_protected(stage)


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_frames_of_a_stranger(stage: Stage, direction: str) -> None:
    """Frames that are random, or nearly right, bring gaps and divergences, and neither wrong bytes nor a crash."""
    with through_garbage(stage, direction, "frames"):
        pass
    counted = settled(stage)
    assert counted["gaps_primary"] > 0
    assert counted["gaps_secondary"] > 0
    assert counted["dropped_malformed"] > 0
    # A batch of the primary that says it is of a later epoch ends this one, whoever sent it.
    assert counted["secondary_malformed"] + counted["secondary_other_epoch"] > 0
    assert counters(stage, "rewriter")["malformed"] > 0
    with answerers(stage), connect(stage, 7) as connection:
        assert [ask(connection, str(number)) for number in range(100)] == [str(number) for number in range(100)]
