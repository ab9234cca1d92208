"""The command `lockstep`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lockstep import __version__, config, exits
from lockstep.compare import HELP as COMPARE_HELP
from lockstep.config import ConfigError, Frontend, Node, Service
from lockstep.control import ControlError, ControlRefused, request
from lockstep.demo import (
    CaptureChoice,
    DemoOptions,
    DirectionChoice,
    NetworkChoice,
    OpenedByChoice,
    ScenarioChoice,
    parse_size,
    run_demo,
)
from lockstep.link.zmq import Curve, LinkError

#: What typer exits with when it doesn't understand its arguments.
_TYPER_USAGE = 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="A COLO network proxy: two replicas of a guest run side by side, and the primary's output leaves only "
    "once the secondary has said the same. When the primary dies the secondary goes on, mid-connection.",
    epilog="Exit codes: 0 fine, 1 a divergence was found, 64 usage, 65 an unreadable file, "
    "69 a peer, device or socket is missing, 77 not permitted, 78 bad configuration.",
)

capture_app = typer.Typer(no_args_is_help=True, help="Capture frontends: where frames come from and go to.")
app.add_typer(capture_app, name="capture")

ConfigFile = Annotated[
    Path | None,
    typer.Option("-c", "--config", envvar="LOCKSTEP_CONFIG", help="This node's configuration.", metavar="NODE.TOML"),
]
Capture = Annotated[Frontend | None, typer.Option(help="Frontend of every port, instead of the configuration's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for a program to read.")]
WhichGuest = Annotated[str | None, typer.Option(help="Which of a comparer's guests, where it serves many.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for each service's answer.", min=0.1)]


@app.callback(invoke_without_command=True)
def lockstep(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Shared options."""
    if version:
        print(f"lockstep {__version__}")
        raise typer.Exit


def _named(names: list[str]) -> list[str]:
    """Typer takes a list of strings, not of services."""
    known = config.all_services()
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}")
    return names


@app.command()
def run(
    services: Annotated[
        list[str],
        typer.Argument(help="Which; several share the process.", metavar="SERVICE...", callback=_named),
    ],
    config_file: ConfigFile = None,
    capture: Capture = None,
) -> None:
    """Run one process in the foreground: a service (as `python -m services.NAME` does) and those fused with it.

    What is fused is said by `fuse` in the configuration; services named here are fused as well.
    """
    from lockstep import service as process

    raise typer.Exit(process.run(cast(tuple[Service, ...], tuple(dict.fromkeys(services))), config_file, capture))


@app.command()
def up(config_file: ConfigFile = None, capture: Capture = None) -> None:
    """Run all services of this node in the foreground, each a process of its own, or as `fuse` groups them.

    When one of them ends the others are stopped too. To have them restarted, use supervisord
    (deploy/supervisor) or compose (deploy/compose).
    """
    node = _load(config_file, capture)
    if not node.services:
        _fail(exits.CONFIG, 'this node has no services; add `services = ["mirror", "comparer"]` or the like')
    extra = ["--capture", capture] if capture else []
    arguments = ["-c", str(config_file), *extra] if config_file else extra
    root = str(Path(__file__).parents[1])
    # -P: a file called services.py where we were started is not our package.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.set())
    children = [
        subprocess.Popen([sys.executable, "-P", "-m", f"services.{group[0]}", *arguments], env=environment)
        for group in node.processes()
    ]
    while not asked.wait(0.1) and all(child.poll() is None for child in children):
        pass
    ended = [code for child in children if (code := child.poll()) is not None]
    for child in children:
        child.terminate()
    for child in children:
        child.wait()
    code = exits.OK if asked.is_set() or not ended else ended[0]
    raise typer.Exit(code if code >= 0 else exits.SOFTWARE)


@app.command()
def demo(
    scenario: Annotated[ScenarioChoice, typer.Option(help="What to show.")] = "all",
    as_json: AsJson = False,
    network: Annotated[NetworkChoice | None, typer.Option(help="Over which network.")] = None,
    direction: Annotated[DirectionChoice | None, typer.Option(help="failover: which way the transfer goes.")] = None,
    opened_by: Annotated[OpenedByChoice | None, typer.Option(help="failover: who opens the connection.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="How often everything is run.")] = 1,
    size: Annotated[str | None, typer.Option(help="Bytes of each transfer, as in 256MiB.")] = None,
    capture: Annotated[
        CaptureChoice | None,
        typer.Option(help="tap, packet: in namespaces; memory: without; default: tap where allowed."),
    ] = None,
    keep_logs: Annotated[Path | None, typer.Option(help="Folder that takes logs and configurations.")] = None,
    fuse: Annotated[bool, typer.Option("--fuse", help="The services of each node in one process.")] = False,
) -> None:
    """Show the whole proxy on this machine: real kernels in namespaces of their own, under a minute.

    serve: a download and an upload, every byte compared. diverge: a planted wrong byte is found, and
    never reaches the client. failover: the primary is killed in the middle of a transfer, and the
    same connection goes on. Nothing is left behind. Exit code 1 if a verdict is bad.
    """
    try:
        wanted = parse_size(size) if size else None
    except ValueError as error:
        _fail(exits.USAGE, f"--size: {error}")
    options = DemoOptions(scenario, as_json, network, direction, opened_by, repeat, wanted, capture, keep_logs, fuse)
    raise typer.Exit(run_demo(options))


@app.command()
def status(
    service: Annotated[Service | None, typer.Argument(help="One service; default: all of this node.")] = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
    timeout: Timeout = 2.0,
) -> None:
    """Show what each service of this node is doing; exit code 69 if one doesn't answer."""
    node = _load(config_file)
    answers: dict[str, dict[str, Any]] = {}
    missing = False
    for name in (service,) if service else node.services or config.all_services():
        try:
            answers[name] = _ask(node, name, "status", timeout)
        except (ControlError, LinkError) as error:
            missing = True
            answers[name] = {"error": str(error)}
    if as_json:
        print(json.dumps(answers))
    else:
        Console().print(_table(answers))
    raise typer.Exit(exits.UNAVAILABLE if missing else exits.OK)


@app.command()
def failover(
    config_file: ConfigFile = None,
    as_json: AsJson = False,
    timeout: Timeout = 2.0,
    epoch: Annotated[int | None, typer.Option(min=0, help="The last checkpoint known to be committed.")] = None,
    guest: WhichGuest = None,
) -> None:
    """Let this node's replica go on alone.

    On the secondary node the guest takes over the connections and speaks to the world. Be sure
    that the primary is dead, or cut off: two nodes must never speak for one guest. On the primary
    node (where its comparer runs) the primary's output leaves unchecked from now on.
    """
    node = _load(config_file)
    service: Service = "redirector" if "redirector" in node.services or "comparer" not in node.services else "comparer"
    arguments = {"epoch": epoch, "guest": guest}
    answer = _asked(node, service, "failover", timeout, **arguments)
    print(json.dumps(answer) if as_json else f"the {answer['survivor']} goes on alone, epoch {answer['epoch']}")


@app.command()
def checkpoint(
    config_file: ConfigFile = None, as_json: AsJson = False, timeout: Timeout = 2.0, guest: WhichGuest = None
) -> None:
    """Ask for a checkpoint: a copy of the primary's state to the secondary."""
    answer = _asked(_load(config_file), "comparer", "checkpoint", timeout, guest=guest)
    print(json.dumps(answer) if as_json else "a checkpoint was asked for")


@app.command()
def explain(
    file: Annotated[
        Path | None,
        typer.Argument(help="A report: one of the .json files in `comparer.capture_dir`.", metavar="FILE"),
    ] = None,
    config_file: ConfigFile = None,
    last: Annotated[int, typer.Option(min=1, help="How many of the comparer's divergences, the newest last.")] = 1,
    as_json: AsJson = False,
    timeout: Timeout = 2.0,
) -> None:
    """Say what diverged: a report, or without one the comparer's last divergence.

    With `comparer.capture_dir` set the packets are shown too, decoded. Exit code 1 if there is a divergence.
    """
    from lockstep.report.recorder import whole_reports
    from lockstep.report.render import render
    from lockstep.report.report import ReportError, parse, read
    from lockstep.report.words import describe

    divergences: Sequence[Mapping[str, Any]]
    try:
        if file is not None:
            divergences = [read(file)]
        else:
            node = _load(config_file)
            divergences = _asked(node, "comparer", "status", timeout).get("divergences", [])[-last:]
            if node.comparer.capture_dir is not None:
                divergences = whole_reports(node.comparer.capture_dir, divergences)
        reports = [parse(divergence) for divergence in divergences]
    except ReportError as error:
        _fail(exits.DATA, str(error))
    if as_json:
        told = [{**fields, "summary": describe(report)} for fields, report in zip(divergences, reports, strict=True)]
        print(json.dumps({"divergences": told}))
    else:
        print(f"\n\n{'─' * 40}\n\n".join(map(render, reports)) or "no divergence")
    raise typer.Exit(exits.FOUND if reports else exits.OK)


@app.command()
def reload(config_file: ConfigFile = None, timeout: Timeout = 2.0) -> None:
    """Let the services of this node read their configuration again.

    Limits and time-outs change at once; ports and links need a restart.
    """
    node = _load(config_file)
    for service in node.services:
        _asked(node, service, "reload", timeout)
        print(f"{service}: reloaded")


@app.command(help=COMPARE_HELP)
def compare(
    primary: Annotated[Path, typer.Argument(help="Capture of what the primary said.")],
    secondary: Annotated[Path, typer.Argument(help="Capture of what the secondary said.")],
    guest: Annotated[
        list[str] | None,
        typer.Option(help="Compare only what this IP or MAC address sent; repeatable.", metavar="ADDR"),
    ] = None,
    as_json: AsJson = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the frames of each divergence here.", metavar="FILE.pcapng")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Take a file that ends inside a record.")] = False,
) -> None:
    """See COMPARE_HELP."""
    from lockstep.compare import CompareOptions, compare_captures

    options = CompareOptions(primary, secondary, tuple(guest or ()), as_json, report, partial)
    raise typer.Exit(compare_captures(options))


@capture_app.command("list")
def capture_list(as_json: AsJson = False) -> None:
    """Say which capture frontends work on this machine, and what each of the others lacks."""
    from lockstep.capture.survey import other_namespaces, survey

    found, namespaces = survey(), other_namespaces()
    if as_json:
        print(json.dumps({"frontends": [asdict(one) for one in found], "netns": {"lacks": namespaces}}))
        return
    table = Table("frontend", "works", "lacks, or can't do", box=None, header_style="bold")
    for one in found:
        table.add_row(one.frontend, "yes" if one.works else "no", escape(one.lacks or one.note))
    table.add_row("(netns)", "no" if namespaces else "yes", escape(namespaces))
    Console().print(table)


@app.command("check-config")
def check_config(
    config_file: ConfigFile = None,
    as_json: AsJson = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="List every setting, its default and its meaning.")
    ] = False,
) -> None:
    """Check a configuration, with the environment's LOCKSTEP_… variables laid over it."""
    if explain:
        table = Table("setting", "default", "meaning", box=None, header_style="bold")
        for name, default, meaning in config.explain():
            table.add_row(name, escape(default), escape(meaning))
        Console().print(table)
        return
    try:
        node = config.load(config_file)
    except ConfigError as error:
        if as_json:
            faults = [
                {"setting": f.setting, "value": f.value, "why": f.why, "way_out": f.way_out} for f in error.faults
            ]
            print(json.dumps({"ok": False, "faults": faults}))
        else:
            print(error, file=sys.stderr)
        raise typer.Exit(exits.CONFIG) from error
    print(
        json.dumps({"ok": True, "config": node.model_dump(mode="json")})
        if as_json
        else f"{config_file or 'the environment'}: fine"
    )


@app.command()
def keygen(path: Annotated[Path, typer.Argument(help="The file that takes the secret key (mode 0600).")]) -> None:
    """Make this node's key, and print the public key that the other nodes list under `security.peers`."""
    from lockstep.link import curve

    try:
        print(curve.generate(path))
    except FileExistsError:
        _fail(exits.USAGE, f"{path} exists; a key in use is not overwritten")
    except OSError as error:
        _fail(exits.NOPERM if isinstance(error, PermissionError) else exits.UNAVAILABLE, f"{path}: {error.strerror}")


# --- shared by the commands


def _load(path: Path | None, capture: str | None = None) -> Node:
    try:
        return config.load(path, capture=capture)
    except ConfigError as error:
        _fail(exits.CONFIG, str(error))


def _curve(node: Node) -> Curve | None:
    if node.security.secret_key is None:
        return None
    from lockstep.link import curve

    own = curve.load(node.security.secret_key)
    # The control socket is a service of this node, and so has this node's key.
    return Curve(own.public, own.secret, own.public)


def _ask(node: Node, service: Service, op: str, timeout: float, **arguments: Any) -> dict[str, Any]:
    endpoint = config.reachable(node.control_endpoint(service))
    given = {name: value for name, value in arguments.items() if value is not None}
    return request(endpoint, op, timeout, curve=_curve(node), **given)


def _asked(node: Node, service: Service, op: str, timeout: float, **arguments: Any) -> dict[str, Any]:
    """Ask, and end this command if the answer is none or no."""
    try:
        return _ask(node, service, op, timeout, **arguments)
    except ControlRefused as error:
        _fail(exits.USAGE, f"{service}: {error}")
    except (ControlError, LinkError) as error:
        _fail(exits.UNAVAILABLE, f"{service}: {error}")


def _fail(code: int, why: str) -> NoReturn:
    print(why, file=sys.stderr)
    raise typer.Exit(code)


def _table(answers: dict[str, dict[str, Any]]) -> Table:
    table = Table("service", "epoch", "up", "state", box=None, header_style="bold")
    for service, answer in answers.items():
        if "error" in answer:
            table.add_row(service, "-", "-", f"[red]{answer['error']}[/red]")
            continue
        table.add_row(service, str(answer["epoch"]), f"{answer['uptime_s']:.0f} s", _state(answer))
        for guest, said in answer.get("guests", {}).items():
            table.add_row(f"  {guest}", str(said["epoch"]), "", _state(said))
    return table


def _state(said: Mapping[str, Any]) -> str:
    shown = {**said["counters"], **{k: v for k, v in said.items() if isinstance(v, bool | int)}}
    hidden = ("pid", "epoch", "ok")
    return "  ".join(f"{name} {value:,}" for name, value in shown.items() if value and name not in hidden)


def main() -> None:
    """Entry point: typer's code for wrong usage becomes ours."""
    try:
        app()
    except SystemExit as end:
        sys.exit(exits.USAGE if end.code == _TYPER_USAGE else end.code)


if __name__ == "__main__":
    main()
