"""Choosing the theatre, what is printed, and the exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from lockstep import exits
from lockstep.demo import DemoOptions, conductor, run_demo
from lockstep.demo.namespaces import Obstacle

SIZE = 200_000


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise Obstacle("/dev/net/tun may not be opened by this user: run as root", exits.NOPERM)

    monkeypatch.setattr(conductor, "prepare", refuse)


@pytest.mark.usefixtures("no_namespaces")
def test_without_namespaces_it_runs_in_memory_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(DemoOptions(scenario="diverge", size=SIZE)) == 0
    out = capsys.readouterr().out
    assert out.startswith("In memory, with guests in this process instead of real kernels: /dev/net/tun may not")
    assert out.splitlines()[-1].endswith("in memory, without a kernel between")


@pytest.mark.usefixtures("no_namespaces")
def test_who_insists_on_namespaces_is_told_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(DemoOptions(scenario="diverge", capture="tap")) == exits.NOPERM
    assert capsys.readouterr().err == "lockstep demo: /dev/net/tun may not be opened by this user: run as root\n"


def test_json_is_one_object_on_stdout_and_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(DemoOptions(scenario="diverge", capture="memory", size=SIZE, json=True)) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["scenario"], result["mode"], result["ok"]) == ("diverge", "memory", True)
    assert result["found_offset"] == result["planted_offset"]
    assert "ok: diverge" in err


def test_all_scenarios_stand_side_by_side_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(DemoOptions(capture="memory", size=SIZE, network="ipv4", json=True)) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["scenarios"]) == ["serve", "diverge", "failover"]
    assert result["ok"] is True
    assert result["seconds"] > 0


def test_a_bad_verdict_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lockstep.demo import scenarios

    monkeypatch.setitem(scenarios._RULES, "diverge", lambda run: False)
    assert run_demo(DemoOptions(scenario="diverge", capture="memory", size=SIZE)) == 1
    assert "BAD: diverge" in capsys.readouterr().out


_LOSES_ONE = """
import os, signal, sys, time
from lockstep.demo import DemoOptions, conductor

class Deaf:
    def __del__(self):
        os.kill(os.getpid(), {number})
        [None for _ in range(100)]  # somewhere here the signal's exception comes up, and is gone

def play(options):
    Deaf()
    try:
        time.sleep(20)
    finally:
        time.sleep(0.3)
        print("cleaned up")

conductor._conduct = play
sys.exit(conductor.conduct(DemoOptions()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_whose_exception_python_drops_ends_it_all_the_same(number: signal.Signals) -> None:
    """As it does in finalizers, in callbacks of weak references, and in those around a fork."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _LOSES_ONE.format(number=int(number))], capture_output=True, text=True, timeout=15
    )
    assert "Exception ignored in" in done.stderr
    assert (done.returncode, done.stdout) == (128 + number, "cleaned up\n")
    assert time.monotonic() - started < 10
