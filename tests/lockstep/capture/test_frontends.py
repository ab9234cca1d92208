"""Which frontend a port gets, by its configuration."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from lockstep.capture import open_port
from lockstep.capture.base import PortError
from lockstep.capture.pcap import PcapPort
from lockstep.config import Node


def test_a_port_of_capture_pcap_reads_and_writes_its_files(tmp_path: Path) -> None:
    ports = {"guest": {"write": str(tmp_path / "out.pcap")}}
    with closing(open_port(Node.model_validate({"capture": "pcap", "mirror": ports}), "mirror", "guest")) as port:
        assert isinstance(port, PcapPort)
        assert port.name == "mirror.guest"
    assert (tmp_path / "out.pcap").exists()


def test_a_tap_without_a_device_names_the_setting() -> None:
    with pytest.raises(PortError, match=r"mirror\.guest\.device is missing, and capture is `tap`"):
        open_port(Node(), "mirror", "guest")


def test_memory_has_no_other_end_outside_a_process() -> None:
    with pytest.raises(PortError, match=r"mirror\.guest: capture `memory` .*choose tap or pcap"):
        open_port(Node(capture="memory"), "mirror", "guest")
