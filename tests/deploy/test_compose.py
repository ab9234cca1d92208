"""deploy/compose and deploy/docker, as compose itself reads them: version 2 where it is installed, else 1.29."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lockstep import config

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
NODES = {"primary": ["mirror"], "secondary": ["redirector", "rewriter"], "comparer": ["comparer"]}
WITH_PORT = ("mirror", "redirector", "rewriter")
SETTINGS = {"LOCKSTEP_IMAGE": "lockstep:test", "LOCKSTEP_DIR": "/etc/lockstep", "LOCKSTEP_CAPTURE": "pcap"}
SERVICES = [(node, service) for node, services in NODES.items() for service in services]


@cache
def command() -> tuple[str, ...] | None:
    """How compose is called here, or None."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ("docker", "compose")
    return ("docker-compose",) if shutil.which("docker-compose") else None


def compose(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    found = command()
    assert found
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LOCKSTEP_", "COMPOSE_"))}
    environment |= {"COMPOSE_PROJECT_NAME": "lockstep-test"} | settings
    return subprocess.run([*found, *words], env=environment, cwd=COMPOSE, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def _compose_is_installed(requires: Callable[..., None]) -> None:
    if command() is None:
        requires("docker-compose")


@cache
def resolved(*files: str) -> dict[str, Any]:
    """A node's file, with what is laid over it, as compose understands it, with SETTINGS."""
    named = [word for file in files for word in ("-f", f"{file}.yml")]
    done = compose(*named, "config", **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower()
    if command() == ("docker", "compose"):
        return json.loads(compose(*named, "config", "--format", "json", **SETTINGS).stdout)
    # 1.29 prints YAML alone; the Python that it runs on has the parser.
    python = Path(shutil.which("docker-compose") or "").read_text(encoding="utf-8").splitlines()[0].removeprefix("#!")
    script = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"
    converted = subprocess.run([*python.split(), "-c", script], input=done.stdout, capture_output=True, text=True)
    assert converted.returncode == 0, converted.stderr
    return json.loads(converted.stdout)


@pytest.mark.parametrize("node", NODES)
def test_there_is_one_container_a_service(node: str) -> None:
    assert sorted(resolved(node)["services"]) == NODES[node]


@pytest.mark.parametrize(("node", "service"), SERVICES)
def test_a_container_runs_its_service_with_the_one_capture_variable(node: str, service: str) -> None:
    it = resolved(node)["services"][service]
    assert it["image"] == "lockstep:test"
    capture = ["--capture", "pcap"] if service in WITH_PORT else []
    assert it["command"] == ["run", service, *capture]
    assert it["environment"]["LOCKSTEP_CONFIG"] == f"/etc/lockstep/{node}.toml"


@pytest.mark.parametrize(("node", "service"), SERVICES)
def test_its_health_is_the_answer_of_its_own_service_alone(node: str, service: str) -> None:
    it = resolved(node)["services"][service]
    assert it["healthcheck"]["test"] == ["CMD", "lockstep", "status", service]
    assert it["healthcheck"]["interval"] == "15s"


@pytest.mark.parametrize(("node", "service"), SERVICES)
def test_only_a_service_with_a_port_has_a_device_and_a_capability(node: str, service: str) -> None:
    it = resolved(node)["services"][service]
    devices = [device["source"] if isinstance(device, dict) else device for device in it.get("devices", [])]
    granted = (it["user"], it.get("cap_add", []), [device.partition(":")[0] for device in devices])
    needed = ("0:0", ["NET_ADMIN"], ["/dev/net/tun"]) if service in WITH_PORT else ("10001:10001", [], [])
    assert granted == needed


@pytest.mark.parametrize(("node", "service"), SERVICES)
def test_all_else_is_taken_from_it(node: str, service: str) -> None:
    it = resolved(node)["services"][service]
    assert it["cap_drop"] == ["ALL"]
    assert it["read_only"] is True
    assert it["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "ulimits", "ports", "pid", "ipc"} & it.keys()


@pytest.mark.parametrize(("node", "service"), SERVICES)
def test_it_comes_back_and_its_log_is_bounded(node: str, service: str) -> None:
    it = resolved(node)["services"][service]
    # A mirror that came back with its machine could speak beside a secondary that has taken over.
    assert it["restart"] == ("on-failure" if service == "mirror" else "unless-stopped")
    assert it["stop_grace_period"] == "5s"
    assert it["logging"] == {"driver": "json-file", "options": {"max-size": "20m", "max-file": "5"}}


@pytest.mark.parametrize("node", NODES)
def test_services_of_a_node_share_one_run_dir_in_memory_and_its_files_read_only(node: str) -> None:
    it = resolved(node)
    (name,) = it["volumes"]
    assert it["volumes"][name]["driver_opts"]["type"] == "tmpfs"
    for service in it["services"].values():
        files, sockets = service["volumes"]
        assert (sockets["source"], sockets["target"]) == (name, "/run/lockstep")
        if isinstance(files, dict):
            files = f"{files['source']}:{files['target']}:{'ro' if files['read_only'] else 'rw'}"
        assert files == "/etc/lockstep:/etc/lockstep:ro"


def test_fused_there_is_one_container_for_both_services() -> None:
    it = resolved("secondary", "secondary.fused")["services"]
    assert config.load(None, environ={"LOCKSTEP_FUSE": it["redirector"]["environment"]["LOCKSTEP_FUSE"]}).fuse == (
        ("redirector", "rewriter"),
    )
    assert it["redirector"]["healthcheck"]["test"] == ["CMD", "lockstep", "status"]
    assert it["redirector"]["command"] == resolved("secondary")["services"]["redirector"]["command"]
    # Version 1.29 names what it would not start; version 2 doesn't.
    assert it.get("rewriter", {"profiles": ["separate"]})["profiles"] == ["separate"]


def test_two_nodes_of_one_machine_are_one_project() -> None:
    done = compose("config", "--services", COMPOSE_FILE="primary.yml:comparer.yml", **SETTINGS)
    assert sorted(done.stdout.split()) == ["comparer", "mirror"]


@pytest.mark.parametrize("variable", SETTINGS)
def test_a_variable_that_is_missing_is_named(variable: str) -> None:
    done = compose("-f", "primary.yml", "config", **{**SETTINGS, variable: ""})
    assert done.returncode != 0
    assert variable in done.stderr
    assert ".env.example" in done.stderr


def test_the_example_of_env_sets_every_variable() -> None:
    done = compose("--env-file", ".env.example", "config", "--services")
    assert (done.returncode, done.stdout.split()) == (0, ["mirror"])
    wanted = {name for file in COMPOSE.glob("*.yml") for name in re.findall(r"\$\{(\w+)", file.read_text())}
    given = set(re.findall(r"^(\w+)=", (COMPOSE / ".env.example").read_text(), re.MULTILINE))
    assert given == wanted | {"COMPOSE_FILE", "COMPOSE_PROJECT_NAME"}
