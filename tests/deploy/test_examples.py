"""deploy/examples: each file is valid as it stands, and the three nodes' files fit together."""

from __future__ import annotations

import ipaddress
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep import config, exits
from lockstep.config import Node, all_services
from lockstep.wiring import LOCAL, SERVICES

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
FILES = sorted(EXAMPLES.glob("*.toml"))
NODES = ("primary", "secondary", "comparer")
#: RFC 5737 and RFC 3849: addresses for documents, that nobody has.
DOCUMENTATION = [ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]
DOCUMENTATION_6 = ipaddress.ip_network("2001:db8::/32")


@pytest.fixture
def nodes() -> dict[str, Node]:
    return {name: config.load(EXAMPLES / f"{name}.toml", environ={}) for name in NODES}


def key_of(node: str) -> str:
    """What stands in the examples for a node's public key."""
    return f"PUBLIC-KEY-OF-THE-{node.upper()}".ljust(40, ".")


def test_there_is_one_file_for_each_node_one_for_all_and_one_for_many_guests() -> None:
    assert [file.stem for file in FILES] == ["comparer", "many-guests", "one-machine", "primary", "secondary"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_check_config_accepts_it_before_its_key_exists(file: Path) -> None:
    command = [sys.executable, "-m", "lockstep.cli", "check-config", "-c", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin"})
    assert (checked.returncode, checked.stderr) == (exits.OK, "")


@pytest.mark.parametrize("name", ["one-machine", "secondary"])
def test_its_services_are_fused_once_the_line_that_says_so_is_no_comment(name: str, tmp_path: Path) -> None:
    text = (EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")
    path = tmp_path / "node.toml"
    path.write_text(text.replace("# fuse = ", "fuse = "), encoding="utf-8")
    node = config.load(path, environ={})
    assert node.processes() == [node.services]


def test_every_service_runs_on_exactly_one_of_the_three_nodes(nodes: dict[str, Node]) -> None:
    assert sorted(service for node in nodes.values() for service in node.services) == sorted(all_services())


@pytest.mark.parametrize("stream", ["ingress", "primary", "secondary", "released"])
def test_both_ends_of_a_link_between_nodes_agree_on_address_and_keys(nodes: dict[str, Node], stream: str) -> None:
    producer = next(name for name in NODES for service in nodes[name].services if stream in SERVICES[service].gives)
    consumer = next(name for name in NODES for service in nodes[name].services if stream in SERVICES[service].takes)
    assert nodes[producer].link(stream).endpoint == nodes[consumer].link(stream).endpoint
    assert nodes[producer].link(stream).endpoint.startswith("tcp://")
    assert nodes[producer].link(stream).key == key_of(consumer)
    assert key_of(producer) in nodes[consumer].security.peers


@pytest.mark.parametrize("stream", LOCAL)
def test_links_within_the_secondary_node_need_no_line(nodes: dict[str, Node], stream: str) -> None:
    assert nodes["secondary"].link(stream).endpoint == f"ipc:///run/lockstep/{stream}"


def test_the_rewriter_hears_the_comparer_whose_key_is_the_first_of_its_peers(nodes: dict[str, Node]) -> None:
    assert nodes["secondary"].events == (nodes["comparer"].events_endpoint("comparer"),)
    assert nodes["secondary"].security.peers[0] == key_of("comparer")


def test_no_two_sockets_share_an_address(nodes: dict[str, Node]) -> None:
    endpoints = {link.endpoint for node in nodes.values() for link in node.links.values()}
    assert len(endpoints | {nodes["comparer"].events_endpoint("comparer")}) == 5


def test_a_node_lets_in_both_others_and_not_itself(nodes: dict[str, Node]) -> None:
    for name, node in nodes.items():
        assert set(node.security.peers) == {key_of(other) for other in NODES if other != name}


def test_the_comparer_of_many_guests_takes_the_place_of_the_one() -> None:
    node = config.load(EXAMPLES / "many-guests.toml", environ={})
    alone = config.load(EXAMPLES / "comparer.toml", environ={})
    assert [guest.name for guest in node.guests] == ["web", "database"]
    assert [node.link(stream) for stream in ("primary", "secondary")] == [
        alone.link(stream) for stream in ("primary", "secondary")
    ]
    web, database = (node.of_guest(name) for name in ("web", "database"))
    assert web.link("released").endpoint == alone.link("released").endpoint
    assert (web.comparer.compare_timeout, database.comparer.compare_timeout) == (3.0, 0.5)
    assert {guest.released.key for guest in node.guests} < set(node.security.peers)


def test_all_name_the_same_guest(nodes: dict[str, Node]) -> None:
    assert {node.guest.name for node in nodes.values()} == {"web"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_addresses_are_those_for_documents(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for address in re.findall(r"\d+\.\d+\.\d+\.\d+", text):
        assert any(ipaddress.ip_address(address) in net for net in DOCUMENTATION)
    for address in re.findall(r'"([0-9a-f]+:[0-9a-f:]*::[0-9a-f]*)"', text):
        assert ipaddress.ip_address(address) in DOCUMENTATION_6
