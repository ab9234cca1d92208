"""deploy/supervisor, read by supervisor's own parser."""

from __future__ import annotations

import io
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from supervisor.datatypes import RestartUnconditionally
from supervisor.options import ServerOptions
from typer.testing import CliRunner

from lockstep.cli import app

SUPERVISOR = Path(__file__).parents[2] / "deploy" / "supervisor"
NODES = {"primary": ["mirror"], "secondary": ["redirector", "rewriter"], "comparer": ["comparer"]}
ENVIRONMENT = {
    "LOCKSTEP_CONFIG": "/etc/lockstep/node.toml",
    "RUNTIME_DIRECTORY": "/run/lockstep",
    "LOGS_DIRECTORY": "/var/log/lockstep",
}


@pytest.fixture(params=NODES)
def node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Each node; its environment is set, with folders that exist (the parser looks)."""
    monkeypatch.setenv("LOCKSTEP_CONFIG", ENVIRONMENT["LOCKSTEP_CONFIG"])
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("LOGS_DIRECTORY", str(tmp_path))
    return str(request.param)


def parsed(node: str, errors: io.StringIO | None = None) -> ServerOptions:
    options = ServerOptions()
    options.stderr = errors or io.StringIO()
    options.realize(["-n", "-c", str(SUPERVISOR / f"{node}.conf")])
    return options


def programs(node: str) -> dict[str, Any]:
    return {program.name: program for group in parsed(node).process_group_configs for program in group.process_configs}


def test_it_runs_the_services_of_its_node(node: str) -> None:
    assert sorted(programs(node)) == sorted(NODES[node])


def test_a_program_is_a_command_that_lockstep_understands(node: str) -> None:
    for service, program in programs(node).items():
        command = shlex.split(program.command)
        assert command == ["lockstep", "run", service, "-c", ENVIRONMENT["LOCKSTEP_CONFIG"]]
        assert CliRunner().invoke(app, [*command[1:], "--help"]).exit_code == 0


def test_a_service_is_always_started_again_and_asked_to_end_by_sigterm(node: str) -> None:
    for program in programs(node).values():
        assert program.autostart
        assert program.autorestart is RestartUnconditionally
        assert program.stopsignal == signal.SIGTERM
        # Tries after 1, 2, 3 … seconds: long enough for an address or a device to come up after a boot.
        assert sum(range(program.startretries + 1)) >= 180


def test_its_log_is_one_file_that_is_rotated(node: str, tmp_path: Path) -> None:
    for service, program in programs(node).items():
        assert program.redirect_stderr
        assert program.stdout_logfile == str(tmp_path / f"{service}.log")
        assert program.stdout_logfile_maxbytes == 20 << 20
        assert program.stdout_logfile_backups == 5


def test_its_control_socket_is_the_owners_alone(node: str, tmp_path: Path) -> None:
    (server,) = parsed(node).server_configs
    assert server["section"] == "unix_http_server"
    assert server["file"] == str(tmp_path / f"{node}.supervisor")
    assert server["chmod"] == 0o700


@pytest.mark.parametrize("variable", ENVIRONMENT)
def test_a_variable_that_is_missing_is_named_at_start(
    node: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable)
    errors = io.StringIO()
    with pytest.raises(SystemExit) as end:
        parsed(node, errors)
    assert end.value.code == 2
    assert f"contains names ('ENV_{variable}') which cannot be expanded" in errors.getvalue()


def test_the_unit_sets_the_variables_that_the_files_want() -> None:
    unit = (SUPERVISOR / "lockstep@.service").read_text(encoding="utf-8")
    wanted = {name for file in SUPERVISOR.glob("*.conf") for name in re.findall(r"%\(ENV_(\w+)\)s", file.read_text())}
    # systemd.exec(5): RuntimeDirectory= and LogsDirectory= set the variables of these names.
    settings = {"RUNTIME_DIRECTORY": "RuntimeDirectory=lockstep", "LOGS_DIRECTORY": "LogsDirectory=lockstep"}
    settings["LOCKSTEP_CONFIG"] = "Environment=LOCKSTEP_CONFIG=/etc/lockstep/%i.toml"
    assert wanted == set(settings)
    assert all(line in unit.splitlines() for line in settings.values())
