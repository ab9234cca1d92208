"""Running services in this process: from a configuration to a loop, and from errors to exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import structlog

from lockstep import __version__, build, config, exits
from lockstep.capture.base import PortError, PortPermissionError
from lockstep.config import ConfigError, Node, Service
from lockstep.link.zmq import LinkError, LinkPermissionError
from lockstep.streams import Core


def core_of(service: Service, node: Node) -> Core:
    """A new core of a service; of the comparer with `guests`, one over the cores of all of them."""
    if service == "comparer" and node.guests:
        return cast(Core, importlib.import_module("services.comparer.guests").Guests(node))
    return cast(Core, importlib.import_module(f"services.{service}.core").Core(node))


def run(services: tuple[Service, ...], path: Path | None, capture: str | None = None) -> int:
    """Run services, and those fused with them, in this process until they are told to stop; returns the exit code."""
    from lockstep import log
    from lockstep.shell import Shell

    try:
        node = config.load(path, services=services, capture=capture)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return exits.CONFIG
    log.configure(node.log, node=node.node)
    try:
        cores = {service: core_of(service, node) for service in node.with_fused(services)}
        shell = Shell(node, cores, path=path, capture=capture)
    except (PortPermissionError, LinkPermissionError) as error:
        print(f"not permitted: {error}", file=sys.stderr)
        return exits.NOPERM
    except (PortError, LinkError) as error:
        print(f"can't start: {error}", file=sys.stderr)
        return exits.UNAVAILABLE
    advice = build.advice()
    if advice is not None:
        structlog.get_logger().warning("build_is_slow", why=advice)
    try:
        shell.run()
    except PortError as error:
        print(f"can't go on: {error}", file=sys.stderr)
        return exits.UNAVAILABLE
    return exits.OK


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
    parser.add_argument("--version", action="version", version=f"lockstep {__version__}")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as error:
        return exits.USAGE if error.code else exits.OK
    named = os.environ.get("LOCKSTEP_CONFIG")
    return run((service,), arguments.config or (Path(named) if named else None), arguments.capture)
