"""Capture frontends: where frames come from and go to. One interface, one file each.

Which one a port uses is a setting (`capture = "tap"`) or a flag (`--capture pcap`).
"""

from __future__ import annotations

from lockstep.capture.base import Port, PortError
from lockstep.config import Faults, Node


def open_port(node: Node, service: str, name: str) -> Port:
    """Open one port of a service as the node configures it, decorators included; raises PortError."""
    settings = node.port(service, name)
    port = _open(node, service, name)
    try:
        if settings.faults != Faults(seed=settings.faults.seed):
            from lockstep.capture.faults import FaultsPort, Rates

            port = FaultsPort(port, Rates(**settings.faults.model_dump(exclude={"seed"})), settings.faults.seed)
        if settings.trace is not None:
            from lockstep.capture.trace import TracePort

            port = TracePort(port, settings.trace, settings.trace_bytes)
    except BaseException:
        port.close()
        raise
    return port


def _open(node: Node, service: str, name: str) -> Port:
    settings = node.port(service, name)
    frontend = node.frontend(service, name)
    label = f"{service}.{name}"
    if frontend == "tap" or frontend == "packet":
        if settings.device is None:
            raise PortError(f"{label}.device is missing, and capture is `{frontend}`; name the interface")
        if frontend == "tap":
            from lockstep.capture.tap import TapPort

            return TapPort(
                label, settings.device, settings.netns, settings.mtu,
                multi_queue=settings.multi_queue, persistent=settings.persistent,
            )  # fmt: skip
        from lockstep.capture.packet import PacketPort

        return PacketPort(label, settings.device, settings.netns, settings.mtu, settings.fanout)
    if frontend == "qemu":
        from lockstep.capture.qemu import QemuPort
        from lockstep.qemu.address import Address

        if settings.address is None:
            raise PortError(f"{label}.address is missing, and capture is `qemu`; say where the socket is")
        return QemuPort(label, Address.parse(settings.address), settings.server, settings.vnet_hdr)
    if frontend == "vhost-user":
        from lockstep.capture.vhost_user import VhostUserPort
        from lockstep.qemu.address import Address

        if settings.address is None:
            raise PortError(f"{label}.address is missing, and capture is `vhost-user`; say where the socket is")
        return VhostUserPort(label, Address.parse(settings.address), settings.server, settings.queues)
    if frontend == "pcap":
        from lockstep.capture.pcap import PcapPort

        return PcapPort(label, settings.read, settings.write)
    if frontend == "memory":
        way_out = "it joins cores inside one process (tests, `lockstep demo`); choose another"
        raise PortError(f"{label}: capture `memory` has no other end in a process of its own; {way_out}")
    raise AssertionError(f"no such frontend: {frontend}")
