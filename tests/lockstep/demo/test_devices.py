"""The demo's network, looked at from outside: what is on the wire, and what this kernel can't have."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from lockstep.demo import devices
from lockstep.demo.addresses import ADDRESSES, GUEST_MAC, VLAN_ID
from lockstep.demo.namespaces import Namespace

pytestmark = pytest.mark.root

ETH_P_ALL = 0x0003


@pytest.fixture
def network() -> Iterator[dict[str, Namespace]]:
    with ExitStack() as stack:
        made = {name: stack.enter_context(closing(Namespace(name))) for name in ("network", "client", "srv", "srv2")}
        devices.build(made["network"], made["client"], [made["srv"], made["srv2"]])
        yield made


def test_both_guests_look_the_same(network: dict[str, Namespace]) -> None:
    for name in ("srv", "srv2"):
        with network[name].entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((ADDRESSES["ipv4"].guest, 0))
            hardware = fcntl.ioctl(probe, 0x8927, struct.pack("16s24x", b"eth0"))[18:24]  # SIOCGIFHWADDR
            assert hardware.hex(":") == GUEST_MAC


def test_frames_of_the_vlan_are_tagged_on_the_wire_and_others_are_not(network: dict[str, Namespace]) -> None:
    if "vlan" in devices.probe():
        pytest.skip("neither 8021q nor eBPF here")
    with network["network"].entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with closing(wire):
        wire.bind(("br0", 0))
        wire.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: a tag may be told beside the frame
        wire.settimeout(2)
        asked = {}
        for name in ("ipv4", "vlan"):
            with network["client"].entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", (ADDRESSES[name].guest, 9))
            asked[name] = _tag_of_arp_for(wire, ADDRESSES[name].guest)
    assert asked == {"ipv4": None, "vlan": VLAN_ID}


def _tag_of_arp_for(wire: socket.socket, address: str) -> int | None:
    """The VLAN of the ARP request for an address, as the frame or the kernel's note beside it says."""
    while True:
        frame, notes, _, _ = wire.recvmsg(2000, 100)
        tag = None
        if frame[12:14] == b"\x81\x00":
            tag, frame = int.from_bytes(frame[14:16], "big") & 0xFFF, frame[:12] + frame[16:]
        for level, kind, data in notes:
            # struct tpacket_auxdata: status at 0, vlan_tci at 16; TP_STATUS_VLAN_VALID is 0x10.
            if (level, kind) == (263, 8) and struct.unpack_from("I", data)[0] & 0x10:
                tag = struct.unpack_from("H", data, 16)[0] & 0xFFF
        if frame[12:14] == b"\x08\x06" and frame[38:42] == socket.inet_aton(address):
            return tag


def test_building_twice_leaves_nothing_of_the_first_time() -> None:
    assert devices.probe() == devices.probe()
