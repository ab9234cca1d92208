"""The services as deploy/supervisor runs them: a killed one comes back, and the connection goes on.

supervisord and its control command are the real ones, and so are the configuration files of deploy/:
what differs here from a machine's own comes from environment variables alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

import pytest
from pyroute2 import IPRoute
from supervisor.xmlrpc import SupervisorTransport

from lockstep import exits
from lockstep.control import ControlError
from lockstep.demo import payload
from lockstep.demo.addresses import ADDRESSES, PORT
from lockstep.demo.namespaces import Namespace
from lockstep.demo.stage import Stage, environment, wait_for
from lockstep.link import curve

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRIPTS = Path(sys.executable).parent
#: deploy/supervisor/NODE.conf → the services in it.
NODES = {"primary": ("mirror",), "secondary": ("redirector", "rewriter"), "comparer": ("comparer",)}
SIZE = 256 << 20
#: What each service counts of a download, and how many of those make sure that it was in its way again.
COUNTED = {
    "mirror": "released_frames",
    "comparer": "released",
    "redirector": "ingress_frames",
    "rewriter": "to_guest_frames",
}
IN_THE_WAY = 100
#: `supervisorctl status`, as LSB has it: a program is not running.
NOT_RUNNING = 3

pytestmark = [pytest.mark.root, pytest.mark.needs("unshare")]


class Supervisor:
    """One node's supervisord."""

    def __init__(
        self, stage: Stage, node: str, folder: Path, settings: Mapping[str, str], netns: Namespace | None = None
    ) -> None:
        self.services = NODES[node]
        self.logs = folder / "log" / node
        self.logs.mkdir(parents=True)
        sockets = folder / "sockets"
        sockets.mkdir(exist_ok=True)
        self._socket = sockets / f"{node}.supervisor"
        self._file = DEPLOY / "supervisor" / f"{node}.conf"
        self.environment = environment() | {
            "RUNTIME_DIRECTORY": str(sockets),
            "LOGS_DIRECTORY": str(self.logs),
            "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
            **settings,
        }
        # It is the first process of a namespace of process ids: whatever ends it ends all that it started.
        alone = ["unshare", "--pid", "--fork", "--kill-child"]
        self.process = stage.popen(
            netns,
            [*alone, SCRIPTS / "supervisord", "-n", "-c", self._file],
            env=self.environment,
            stdout=subprocess.DEVNULL,
        )

    def control(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `supervisorctl` with these words."""
        command = [SCRIPTS / "supervisorctl", "-c", self._file, *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30)

    def lockstep(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `lockstep` where the node's services run."""
        command = [SCRIPTS / "lockstep", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30)

    def pid(self, service: str) -> str:
        """The service's process, as supervisord numbers it."""
        return self.control("pid", service).stdout.strip()

    def kill(self, service: str) -> None:
        """SIGKILL to a service, at once: `supervisorctl signal KILL` would first take its time to start."""
        with ServerProxy("http://supervisord", SupervisorTransport(serverurl=f"unix://{self._socket}")) as server:
            server.supervisor.signalProcess(service, "KILL")

    def close(self) -> None:
        """Have it stop its services, and end."""
        self.control("shutdown")
        self.process.wait(timeout=20)


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Namespaces, devices and guests, with nothing between them."""
    with Stage() as stage:
        for service in stage.services.values():
            service.process.terminate()
            service.process.wait()
        for guest in (stage.srv_ns, stage.srv2_ns):
            server = stage.python(guest, "lockstep.demo.server", "--port", PORT, stdout=subprocess.PIPE)
            assert server.stdout is not None
            server.stdout.readline()
        yield stage


@contextmanager
def supervised(stage: Stage, folder: Path) -> Iterator[dict[str, Supervisor]]:
    """All three supervisord, with the stage's own configuration; by service."""
    with ExitStack() as undo:
        found = {}
        for node, services in NODES.items():
            config = stage.config_paths["secondary" if node == "secondary" else "primary"]
            supervisor = Supervisor(stage, node, folder, {"LOCKSTEP_CONFIG": str(config)})
            undo.callback(supervisor.close)
            found |= dict.fromkeys(services, supervisor)
        for service in found:
            wait_for(lambda service=service: answers(stage, service), f"the {service} to answer", 20)
        yield found


@contextmanager
def supervised_examples(stage: Stage, folder: Path) -> Iterator[dict[str, Supervisor]]:
    """All three supervisord, with deploy/examples: their addresses, CURVE on every link, new keys; by service."""
    taps = {
        "MIRROR__NETWORK": ("ls-net", stage.network_ns),
        "MIRROR__GUEST": ("eth0", stage.srv_ns),
        "REDIRECTOR__UPLINK": ("ls-up", stage.network_ns),
        "REWRITER__GUEST": ("eth0", stage.srv2_ns),
    }
    ports = {f"LOCKSTEP_{port}__DEVICE": device for port, (device, _) in taps.items()}
    ports |= {f"LOCKSTEP_{port}__NETNS": netns.path for port, (_, netns) in taps.items()}
    public = {node: curve.generate(folder / f"{node}.key") for node in NODES}
    between = Namespace("between")
    with ExitStack() as undo:
        undo.callback(between.close)
        with between.entered(), IPRoute() as ip:
            lo = ip.link_lookup(ifname="lo")[0]
            ip.link("set", index=lo, state="up")
            for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
                ip.addr("add", index=lo, address=address, prefixlen=32)
        found = {}
        for node, services in NODES.items():
            file = DEPLOY / "examples" / f"{node}.toml"
            example = tomllib.loads(file.read_text(encoding="utf-8"))
            keys = {f"LOCKSTEP_LINKS__{stream.upper()}__KEY": public[whose(link["key"])]
                    for stream, link in example["links"].items() if "key" in link}  # fmt: skip
            settings = {
                "LOCKSTEP_CONFIG": str(file),
                "LOCKSTEP_RUN_DIR": str(folder / f"run-{node}"),
                "LOCKSTEP_SECURITY__SECRET_KEY": str(folder / f"{node}.key"),
                "LOCKSTEP_SECURITY__PEERS": json.dumps([public[whose(key)] for key in example["security"]["peers"]]),
            }
            supervisor = Supervisor(stage, node, folder, settings | keys | ports, between)
            undo.callback(supervisor.close)
            found |= dict.fromkeys(services, supervisor)
        for supervisor in found.values():
            wait_for(lambda it=supervisor: it.lockstep("status").returncode == exits.OK, "the services to answer", 20)
        yield found


def whose(placeholder: str) -> str:
    """The node whose public key the examples mean."""
    return placeholder.removeprefix("PUBLIC-KEY-OF-THE-").rstrip(".").lower()


def answers(stage: Stage, service: str) -> bool:
    try:
        stage.status(service, timeout=0.5)
    except ControlError:
        return False
    return True


def download(stage: Stage, half_way: Callable[[], None]) -> dict[str, Any]:
    """The demo's client takes SIZE bytes over one connection; `half_way` is called when it has a third of them."""
    client = stage.python(
        stage.client_ns, "lockstep.demo.client", "--connect", ADDRESSES["ipv4"].guest, "--port", PORT,
        "--download", SIZE, "--give-up", 30, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert client.stdout is not None
    called = False
    for line in client.stdout:
        message = json.loads(line)
        if "result" in message:
            assert called, f"it ended before half_way: {message['result']}"
            return message["result"]
        if not called and message["progress"] > SIZE // 3:
            called = True
            half_way()
    raise AssertionError(f"the client ended with {client.wait()} and no result")


def assert_whole(result: Mapping[str, Any]) -> None:
    assert result["error"] is None
    assert result["reconnects"] == 0
    assert result["wrong_bytes_delivered"] == 0
    assert result["sha256"] == payload.digest(SIZE)


def test_downloads_survive_sigkill_of_each_service_that_supervisord_brings_back(stage: Stage, run_dir: Path) -> None:
    with supervised(stage, run_dir) as supervisors:
        for service, supervisor in supervisors.items():
            assert_a_download_survives(stage, supervisor, service)
        for service, supervisor in supervisors.items():
            log = (supervisor.logs / f"{service}.log").read_text(encoding="utf-8").splitlines()
            starts = [line for line in map(json.loads, log) if line["event"] == "service_started"]
            assert len(starts) == 2


def assert_a_download_survives(stage: Stage, supervisor: Supervisor, service: str) -> None:
    """SIGKILL to a service in its middle; it is back, and in the way."""
    before = supervisor.pid(service)
    lost_before = stage.status("comparer")["counters"]["unprotected_flows"]
    result = download(stage, lambda: supervisor.kill(service))
    assert_whole(result)
    wait_for(lambda: answers(stage, service), f"the {service} to be back", 20)
    assert supervisor.pid(service) not in (before, "0")
    assert stage.status(service)["counters"][COUNTED[service]] > IN_THE_WAY
    lost = stage.status("comparer")["counters"]["unprotected_flows"] - (0 if service == "comparer" else lost_before)
    # For the table in deploy/README.md.
    print(f"\nSIGKILL to {service}: pause {result['longest_pause_ms']:.0f} ms, protection lost: {lost > 0}")


def test_a_service_that_does_not_run_shows_in_both_status_commands(stage: Stage, run_dir: Path) -> None:
    with supervised(stage, run_dir) as supervisors:
        supervisor = supervisors["redirector"]
        assert supervisor.control("status").returncode == 0
        assert supervisor.lockstep("status").returncode == exits.OK
        supervisor.control("stop", "redirector")
        assert supervisor.control("status").returncode == NOT_RUNNING
        assert supervisor.lockstep("status", "--timeout", "0.5").returncode == exits.UNAVAILABLE


def test_the_examples_join_three_nodes_over_curve_and_the_secondary_takes_over(stage: Stage, run_dir: Path) -> None:
    with supervised_examples(stage, run_dir) as supervisors:

        def primary_dies() -> None:
            answer = supervisors["comparer"].lockstep("status", "--json")
            assert answer.returncode == exits.OK, answer.stdout + answer.stderr
            status = json.loads(answer.stdout)["comparer"]
            assert status["divergences"] == []
            assert status["counters"]["released"] > status["counters"]["unchecked"]
            supervisors["mirror"].process.kill()
            answer = supervisors["redirector"].lockstep("failover")
            assert answer.stdout == "the secondary goes on alone, epoch 0\n"

        assert_whole(download(stage, primary_dies))
