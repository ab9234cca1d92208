"""The whole proxy on one machine: four services, two guests, a client, in namespaces of their own.

    with Stage(comparer={"on_divergence": "hold"}) as stage:
        stage.popen(stage.srv_ns, ["nginx", ...])
        stage.popen(stage.srv2_ns, ["nginx", ...])
        stage.run(stage.client_ns, ["curl", "http://10.77.0.2/"])
        stage.services["rewriter"].kill()
        stage.restart("rewriter")
        stage.status("comparer")["counters"]["released"]
        stage.failover()

Whatever ends the `with`, and whatever ends this process, ends everything in it: programs are killed
with their parent, namespaces go with the last descriptor, and a small shell that outlives a SIGKILL
removes the directory.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lockstep import control
from lockstep.children import die_with_parent
from lockstep.demo import devices
from lockstep.demo.addresses import ADDRESSES
from lockstep.demo.namespaces import Namespace

#: service → the node it runs on.
NODES = {"comparer": "primary", "mirror": "primary", "redirector": "secondary", "rewriter": "secondary"}

Groups = Sequence[Sequence[str]]
#: Values of a stage's `fuse`: a process for each node, and one for both of them.
NODE_BY_NODE: Groups = (("comparer", "mirror"), ("redirector", "rewriter"))
ALL_IN_ONE: Groups = (tuple(NODES),)

_ROOT = Path(__file__).parents[2]
#: Longest directory for which every socket's path in it still fits `sun_path`.
_LONGEST_DIRECTORY = 60
_GRACE = 2.0
#: A port where nobody listens.
_DISCARD = 9

Value = str | int | float | bool | list[str] | list[list[str]]


class StageError(Exception):
    """Something on the stage did not do what it must. Its text holds the program's last words."""


class Service:
    """One service's process and its log."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def last_words(self, lines: int = 5) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Stage:
    """A fresh topology with running services; a context manager.

    comparer: settings of `[comparer]`, on top of `on_divergence = "unprotect"`.
    settings: more settings of both nodes, table by table: `{"rewriter": {"max_flows": 16}}`.
    services: those of ours that run; the others' place is taken by somebody else.
    fuse: services that share a process, as in the setting of that name: NODE_BY_NODE, ALL_IN_ONE.
    ipc: who carries the links, as in the setting of that name.
    capture: the frontend of every port, one of `devices.PORTS`.
    keep_logs: directory that takes the logs and the configuration at the end.
    log_level: of the services.

    client_ns, srv_ns, srv2_ns, network_ns: the namespaces of the client, of the primary and of the
    secondary guest, and of the bridge between them. Addresses stand in `addresses`.
    missing: networks that this machine can't have, and why.
    """

    def __init__(
        self,
        *,
        comparer: Mapping[str, Value] | None = None,
        settings: Mapping[str, Mapping[str, Value]] | None = None,
        services: Sequence[str] = tuple(NODES),
        fuse: Groups = (),
        ipc: str = "libzmq",
        capture: str = "tap",
        keep_logs: Path | None = None,
        log_level: str = "info",
    ) -> None:
        self._running = tuple(services)
        self._capture, self._ipc = capture, ipc
        self._settings: dict[str, dict[str, Value]] = {
            "comparer": {"on_divergence": "unprotect", **(comparer or {})},
            "log": {"level": log_level, "format": "json"},
        }
        for table, values in (settings or {}).items():
            self._settings.setdefault(table, {}).update(values)
        #: service → all that run in its process.
        self._process = {name: next((tuple(g) for g in fuse if name in g), (name,)) for name in NODES}
        self._keep_logs = keep_logs
        self._programs: list[subprocess.Popen[Any]] = []
        self._undo = ExitStack()
        self.services: dict[str, Service] = {}
        self.config_paths: dict[str, Path] = {}

    def __enter__(self) -> Stage:
        with ExitStack() as undo:
            self._directory = undo.enter_context(_Directory())
            self.run_dir = self._directory.path / "run"
            self.run_dir.mkdir(mode=0o700)
            undo.callback(self._save_logs)
            self.network_ns, self.client_ns, self.srv_ns, self.srv2_ns = (
                self._namespace(name, undo) for name in ("network", "client", "srv", "srv2")
            )
            self.missing = devices.build(self.network_ns, self.client_ns, (self.srv_ns, self.srv2_ns), self._capture)
            self._write_configuration()
            undo.callback(self._end_programs)
            for group in dict.fromkeys(self._process[name] for name in self._running):
                self._start(group)
            self._wait_until_ready(self._running)
            undo.callback(self._save_status)
            self._greet()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._undo.close()

    def popen(self, namespace: Namespace | None, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in a namespace (None: where we are). It ends with the stage at the latest.

        options: of `subprocess.Popen`; `env` defaults to ours without `LOCKSTEP_…`.
        """
        parent = os.getpid()

        def prepare_child() -> None:
            die_with_parent(parent)
            if namespace is not None:
                namespace.enter()

        options.setdefault("env", environment())
        options.setdefault("stdin", subprocess.DEVNULL)
        # A session of its own, so that Ctrl-C comes to us alone and we end things in order.
        program = subprocess.Popen([*map(str, argv)], preexec_fn=prepare_child, start_new_session=True, **options)
        self._programs.append(program)
        return program

    def run(
        self, namespace: Namespace | None, argv: Sequence[str | Path], timeout: float = 60.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end and take what it printed; raises subprocess.TimeoutExpired."""
        program = self.popen(namespace, argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        try:
            out, err = program.communicate(timeout=timeout)
        finally:
            program.kill()
        return subprocess.CompletedProcess(list(argv), program.returncode, out, err)

    def python(self, namespace: Namespace, module: str, *arguments: str | int, **options: Any) -> subprocess.Popen[Any]:
        """Start one of our own modules in a namespace."""
        return self.popen(namespace, [sys.executable, "-m", module, *map(str, arguments)], **options)

    def restart(self, name: str) -> Service:
        """Kill a service (and what is fused with it) if it still runs, start it again and wait until it answers."""
        self.services[name].kill()
        self._start(self._process[name])
        self._wait_until_ready(self._process[name])
        return self.services[name]

    def endpoint(self, service: str) -> str:
        """Where a service takes control requests."""
        return f"ipc://{self.run_dir}/{service}.control"

    def status(self, service: str, timeout: float = 2.0) -> dict[str, Any]:
        """What a service says of itself; raises control.ControlError."""
        return control.request(self.endpoint(service), "status", timeout=timeout)

    def failover(self, timeout: float = 5.0) -> dict[str, Any]:
        """Have the secondary take over; the redirector tells the rewriter in-band."""
        return control.request(self.endpoint("redirector"), "failover", timeout=timeout)

    def explained(self, error: Exception) -> StageError:
        """An error of the stage's, with the last words of the services that are no more."""
        gone = [f"the {name} is gone: {one.last_words()}" for name, one in self.services.items() if not one.alive()]
        return StageError("\n".join([str(error), *gone]))

    def _namespace(self, name: str, undo: ExitStack) -> Namespace:
        namespace = Namespace(name)
        undo.callback(namespace.close)
        return namespace

    def _write_configuration(self) -> None:
        ports: dict[str, dict[str, dict[str, Value]]] = {"primary": {}, "secondary": {}}
        paths = {"network": self.network_ns.path, "srv": self.srv_ns.path, "srv2": self.srv2_ns.path}
        for port, (device, place) in devices.PORTS[self._capture].items():
            ports[NODES[port.split(".")[0]]][port] = {"device": device, "netns": paths[place]}
        for node, tables in ports.items():
            services = [service for service, place in NODES.items() if place == node]
            groups = {self._process[service] for service in services if len(self._process[service]) > 1}
            if any(NODES[service] != node for group in groups for service in group):
                services, tables = list(NODES), {**ports["primary"], **ports["secondary"]}
            top: dict[str, Value] = {
                "node": node, "services": services, "run_dir": str(self.run_dir), "capture": self._capture,
                "ipc": self._ipc, "fuse": [list(group) for group in groups],
            }  # fmt: skip
            path = self._directory.path / f"{node}.toml"
            path.write_text(_toml({"": top, **self._settings, **tables}), encoding="utf-8")
            self.config_paths[node] = path

    def _start(self, group: Sequence[str]) -> None:
        """Start one process; the first of its services gives the name of its log."""
        first = group[0]
        log = self._directory.path / f"{first}.log"
        with log.open("ab") as out:
            config = str(self.config_paths[NODES[first]])
            argv = [sys.executable, "-m", f"services.{first}", "-c", config]
            process = self.popen(None, argv, stdout=out, stderr=out)
        self.services.update({name: Service(name, process, log) for name in group})

    def _wait_until_ready(self, names: Sequence[str], timeout: float = 20.0) -> None:
        def ready(name: str) -> bool:
            service = self.services[name]
            if not service.alive():
                code = service.process.returncode
                raise StageError(f"the {name} ended with {code} before it was ready:\n{service.last_words()}")
            try:
                self.status(name, timeout=0.5)
            except control.ControlError:
                return False
            return True

        for name in names:
            wait_for(lambda name=name: ready(name), f"the {name} to answer", timeout)  # type: ignore[misc]

    def _greet(self) -> None:
        """Have the client speak to the guests once over each network.

        Both then know its MAC. A guest that spoke first would ask for it, and what the secondary asks
        never leaves. It also shows that the whole way is open: the refusal is compared like any segment.
        """
        for network, subnet in ADDRESSES.items():
            if network in self.missing:
                continue
            with self.client_ns.entered():
                try:
                    socket.create_connection((subnet.guest, _DISCARD), timeout=5).close()
                except ConnectionRefusedError:
                    continue
                except OSError as error:
                    raise StageError(f"the client can't reach the guests over {network}: {error}") from error

    def _end_programs(self) -> None:
        """Ask everything to end, then see to it."""
        left = [program for program in self._programs if program.poll() is None]
        for program in left:
            program.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE
        for program in left:
            try:
                program.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        for program in self._programs:
            for pipe in (program.stdin, program.stdout, program.stderr):
                if pipe is not None:
                    pipe.close()

    def _save_status(self) -> None:
        """Beside the logs: what each service has counted."""
        if self._keep_logs is None:
            return
        for name in (name for name in self._running if self.services[name].alive()):
            try:
                text = json.dumps(self.status(name), indent=2, default=repr)
            except control.ControlError as error:
                text = str(error)
            (self._directory.path / f"{name}.status.json").write_text(text, encoding="utf-8")

    def _save_logs(self) -> None:
        if self._keep_logs is not None:
            target = self._keep_logs / time.strftime(f"%Y%m%d-%H%M%S-{self._directory.path.name}")
            target.mkdir(parents=True)
            for file in self._directory.path.iterdir():
                if file.is_file():
                    shutil.copy(file, target)


class _Directory:
    """A private temporary directory that is removed even if this process gets SIGKILL."""

    def __enter__(self) -> _Directory:
        base = Path(tempfile.gettempdir())
        base = base if len(str(base)) < _LONGEST_DIRECTORY else Path("/tmp")
        self.path = base / f"lockstep-{secrets.token_hex(4)}"
        # It waits until our end of the pipe is closed, and then until our children are dead. It is there
        # before the directory is, so that no moment is left in which a SIGKILL would leave something.
        script = 'read -r _; sleep 1; rm -rf -- "$1"'
        self._janitor: subprocess.Popen[bytes] = subprocess.Popen(
            ["/bin/sh", "-c", script, "lockstep-janitor", str(self.path)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/",
        )  # fmt: skip
        self.path.mkdir(mode=0o700)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._janitor.kill()
        self._janitor.wait()
        pipe: IO[bytes] | None = self._janitor.stdin
        if pipe is not None:
            pipe.close()


def environment() -> dict[str, str]:
    """Ours without settings of Lockstep, and with the way to its modules."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
    path = [str(_ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def wait_for(condition: Callable[[], bool], what: str, timeout: float, pause: float = 0.02) -> None:
    """Look until `condition` holds; raises StageError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise StageError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(pause)


def _toml(tables: Mapping[str, Mapping[str, Value]]) -> str:
    """The tables as TOML; the one without a name first."""
    parts = []
    for name, table in tables.items():
        lines = [f"{key} = {_toml_value(value)}" for key, value in table.items()]
        parts.append("\n".join([*([f"[{name}]"] if name else []), *lines]))
    return "\n\n".join(parts) + "\n"


def _toml_value(value: Value) -> str:
    # JSON's text, numbers, booleans and lists are also TOML's.
    return json.dumps(value, ensure_ascii=False)
