"""Which frontend a port gets, by its configuration."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from lockstep.capture import open_port
from lockstep.capture.base import PortError
from lockstep.capture.pcap import PcapPort
from lockstep.capture.vhost_user import VhostUserPort
from lockstep.config import Node


def test_a_port_of_capture_pcap_reads_and_writes_its_files(tmp_path: Path) -> None:
    ports = {"guest": {"write": str(tmp_path / "out.pcap")}}
    with closing(open_port(Node.model_validate({"capture": "pcap", "mirror": ports}), "mirror", "guest")) as port:
        assert isinstance(port, PcapPort)
        assert port.name == "mirror.guest"
    assert (tmp_path / "out.pcap").exists()


@pytest.mark.parametrize("frontend", ["tap", "packet"])
def test_a_port_without_its_device_names_the_setting(frontend: str) -> None:
    with pytest.raises(PortError, match=rf"mirror\.guest\.device is missing, and capture is `{frontend}`"):
        open_port(Node.model_validate({"capture": frontend}), "mirror", "guest")


def test_memory_has_no_other_end_outside_a_process() -> None:
    with pytest.raises(PortError, match=r"mirror\.guest: capture `memory` .*choose another"):
        open_port(Node(capture="memory"), "mirror", "guest")


def test_vhost_user_listens_at_its_address(run_dir: Path) -> None:
    settings = {"address": f"unix://{run_dir}/vm", "server": True, "queues": 2}
    node = Node.model_validate({"mirror": {"guest": {"capture": "vhost-user", **settings}}})
    with closing(open_port(node, "mirror", "guest")) as port:
        assert isinstance(port, VhostUserPort)
        assert (run_dir / "vm").is_socket()


def test_vhost_user_without_an_address_names_the_setting() -> None:
    with pytest.raises(PortError, match=r"mirror\.guest\.address is missing, and capture is `vhost-user`"):
        open_port(Node(capture="vhost-user"), "mirror", "guest")
