"""Running services in this process: from a configuration to a loop, and from errors to exit codes."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import structlog

from lockstep import __version__, build, config, exits
from lockstep.capture.base import PortError, PortPermissionError
from lockstep.config import ConfigError, Node, Service
from lockstep.link.zmq import LinkError, LinkPermissionError
from lockstep.streams import Core
from lockstep.wiring import of_splitter

if TYPE_CHECKING:
    from lockstep.shell import Shell


class CpuError(Exception):
    """A CPU that this process may not use. Its text names the setting and the way out."""


def core_of(service: Service, node: Node) -> Core:
    """A new core of a service; of the comparer with `guests`, one over the cores of all of them."""
    if service == "comparer" and node.guests:
        return cast(Core, importlib.import_module("services.comparer.guests").Guests(node))
    return cast(Core, importlib.import_module(f"services.{service}.core").Core(node))


def run(services: tuple[Service, ...], path: Path | None, capture: str | None = None, worker: str | None = None) -> int:
    """Run services, and those fused with them, in this process until they are told to stop; returns the exit code.

    worker: which process of a comparer with several workers this is; see `lockstep.workers`.
    """
    from lockstep import log

    try:
        node = config.load(path, services=services, capture=capture)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return exits.CONFIG
    log.configure(node.log, node=node.node)
    together = node.with_fused(services)
    if worker is not None and worker not in node.workers():
        print(f"--worker {worker}: this comparer has {', '.join(node.workers()) or 'none'}", file=sys.stderr)
        return exits.USAGE
    try:
        _stay_on_cpu(node, together)
        if worker is None and node.comparer.workers > 1 and "comparer" in together:
            from lockstep.workers import Workers

            if len(together) > 1:
                print("a comparer with `workers` has processes of its own; run it alone", file=sys.stderr)
                return exits.USAGE
            return Workers(node, path, capture).run()
        shell = _worker(node, worker, path, capture) if worker else _shell(node, together, path, capture)
    except (PortPermissionError, LinkPermissionError) as error:
        print(f"not permitted: {error}", file=sys.stderr)
        return exits.NOPERM
    except (PortError, LinkError, CpuError) as error:
        print(f"can't start: {error}", file=sys.stderr)
        return exits.UNAVAILABLE
    advice = build.advice()
    if advice is not None:
        structlog.get_logger().warning("build_is_slow", why=advice)
    gc.freeze()  # what was made so far stays: looking through it again and again would stop the loop
    try:
        shell.run()
    except PortError as error:
        print(f"can't go on: {error}", file=sys.stderr)
        return exits.UNAVAILABLE
    return exits.OK


def _stay_on_cpu(node: Node, services: Sequence[Service]) -> None:
    """Run where `cpus` says, before any thread is started: ZeroMQ's and the loop then wake each other without a
    detour over another CPU, which costs more than all else that a message does on its way.
    """
    cpu = node.cpu_of(services)
    if cpu is None:
        return
    allowed = os.sched_getaffinity(0)
    if cpu not in allowed:
        way_out = f"name one of {', '.join(map(str, sorted(allowed)))}"
        raise CpuError(f"cpus = {cpu} for {' and '.join(services)}: this process may not use that one; {way_out}")
    os.sched_setaffinity(0, {cpu})


def _shell(node: Node, services: Sequence[Service], path: Path | None, capture: str | None) -> Shell:
    from lockstep.shell import Shell

    return Shell(node, {service: core_of(service, node) for service in services}, path=path, capture=capture)


def _worker(node: Node, name: str, path: Path | None, capture: str | None) -> Shell:
    """One process of a comparer with several workers: a worker, by its number, or the splitter."""
    from lockstep.shell import Shell
    from services.comparer.merge import SPLITTER
    from services.comparer.splitter import Splitter

    own = node.of_worker(name)
    if name == SPLITTER:
        core = cast(Core, Splitter(node, int.from_bytes(os.urandom(8))))
        wiring = of_splitter(node.comparer.workers, node.comparer.said)
        return Shell(own, {"comparer": core}, wiring={"comparer": wiring}, record=False)
    return Shell(
        own,
        {"comparer": core_of("comparer", own)},
        path=path,
        capture=capture,
        view=lambda read: read.of_worker(name),
        record=False,
    )


def main(service: Service, description: str | None, argv: Sequence[str] | None = None) -> int:
    """`python -m services.NAME`: the same as `lockstep run NAME`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{service}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c", "--config", type=Path, metavar="NODE.TOML", help="this node's configuration (or LOCKSTEP_CONFIG)"
    )
    parser.add_argument(
        "--capture", choices=get_args(config.Frontend), help="frontend of every port, instead of the file's"
    )
    if service == "comparer":
        parser.add_argument("--worker", help="for `comparer.workers`: which of its processes this is")
    parser.add_argument("--version", action="version", version=f"lockstep {__version__}")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as error:
        return exits.USAGE if error.code else exits.OK
    named = os.environ.get("LOCKSTEP_CONFIG")
    path = arguments.config or (Path(named) if named else None)
    return run((service,), path, arguments.capture, getattr(arguments, "worker", None))
