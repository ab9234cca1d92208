"""The stage: services as processes, killed and restarted one by one, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep import config
from lockstep.demo.stage import NODES, Stage, StageError, environment, wait_for

pytestmark = pytest.mark.root


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage(comparer={"compare_timeout": 1.5}, settings={"rewriter": {"max_flows": 99}}) as stage:
        yield stage


def pings(stage: Stage) -> bool:
    return stage.run(stage.client_ns, ["ping", "-c1", "-W2", "10.77.0.2"], timeout=10).returncode == 0


def test_every_service_answers_with_its_own_settings(stage: Stage) -> None:
    assert {name: stage.status(name)["service"] for name in NODES} == {name: name for name in NODES}
    primary = config.load(stage.config_paths["primary"], environ={})
    assert primary.comparer.compare_timeout == 1.5
    assert config.load(stage.config_paths["secondary"], environ={}).rewriter.max_flows == 99
    assert Path(stage.run_dir).stat().st_mode & 0o777 == 0o700


@pytest.mark.needs("ping")
def test_a_service_that_was_killed_and_restarted_does_its_work_again(stage: Stage) -> None:
    assert pings(stage)
    for name in NODES:
        before = stage.services[name].pid
        stage.services[name].kill()
        assert not stage.services[name].alive()
        stage.restart(name)
        assert stage.services[name].pid != before
        wait_for(lambda: pings(stage), f"the way after a new {name}", 10)


@pytest.mark.needs("ping")
def test_after_a_failover_the_secondary_answers(stage: Stage) -> None:
    stage.services["mirror"].kill()
    assert not pings(stage)
    assert stage.failover()["survivor"] == "secondary"
    wait_for(lambda: pings(stage), "the secondary", 5)


def test_a_program_sees_its_namespace_and_ends_with_the_stage() -> None:
    with Stage() as stage:
        shown = stage.run(stage.srv_ns, ["ip", "-br", "addr", "show", "eth0"]).stdout
        sleeper = stage.popen(stage.srv2_ns, ["sleep", "60"])
        directory, pids = stage.run_dir.parent, [service.pid for service in stage.services.values()]
    assert "10.77.0.2/24" in shown
    assert sleeper.returncode is not None
    assert not directory.exists()
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()


def test_a_service_that_can_not_start_is_quoted() -> None:
    with (
        pytest.raises(StageError, match=r"the comparer ended with 78(.|\n)*compare_timeout"),
        Stage(comparer={"compare_timeout": -1}),
    ):
        raise AssertionError("it started")


def test_logs_and_counters_are_kept_where_asked(tmp_path: Path) -> None:
    with Stage(keep_logs=tmp_path):
        pass
    (kept,) = tmp_path.iterdir()
    names = {file.name for file in kept.iterdir()}
    assert {f"{name}.log" for name in NODES} | {"primary.toml", "secondary.toml", "mirror.status.json"} <= names


def test_settings_of_the_caller_do_not_reach_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_COMPARER__COMPARE_TIMEOUT", "77")
    assert not any(name.startswith("LOCKSTEP_") for name in environment())


KILLED = """
import os, signal
from lockstep.demo.stage import Stage
with Stage() as stage:
    print(stage.run_dir.parent, *[service.pid for service in stage.services.values()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_sigkill_there_are_no_processes_and_no_files() -> None:
    links = os.listdir("/sys/class/net")  # noqa: PTH208
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, env=environment())
    directory, *pids = done.stdout.split()
    assert len(pids) == 4
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the services to be gone", 5)
    wait_for(lambda: not Path(directory).exists(), "the directory to be gone", 5)
    assert os.listdir("/sys/class/net") == links  # noqa: PTH208
