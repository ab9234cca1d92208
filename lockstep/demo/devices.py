"""Interfaces, addresses and bridges, through netlink (pyroute2).

    client ──eth0══veth══cli── br0 ── ls-net ◀─ mirror ─▶ eth0 ── srv
                                 │
                                 └─── ls-up  ◀─ redirector … rewriter ─▶ eth0 ── srv2

The devices marked with arrows are TAPs. They are made here, so that they outlive the services. For the
frontend `packet` each is one end of a veth pair; the other end, `ls-net0` beside `ls-net`, is a service's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lockstep.demo import vlan
from lockstep.demo.addresses import ADDRESSES, CLIENT_MAC, GUEST_MAC, VLAN_ID
from lockstep.demo.namespaces import Namespace, Obstacle, add_tap

#: Ports → their devices, and the namespace of each, for the frontends that have devices.
Place = tuple[str, str]
PORTS: dict[str, dict[str, Place]] = {
    "tap": {
        "mirror.network": ("ls-net", "network"),
        "mirror.guest": ("eth0", "srv"),
        "redirector.uplink": ("ls-up", "network"),
        "rewriter.guest": ("eth0", "srv2"),
    },
    "packet": {
        "mirror.network": ("ls-net0", "network"),
        "mirror.guest": ("ls-srv", "network"),
        "redirector.uplink": ("ls-up0", "network"),
        "rewriter.guest": ("ls-srv2", "network"),
    },
}

_QUEUE = 5000
_NODAD = 0x02  # IFA_F_NODAD, <linux/if_addr.h>
_ADDR_GEN_NONE = 1  # IN6_ADDR_GEN_MODE_NONE, <linux/if_link.h>

#: Chatter of IPv6 that would only make traces longer.
_QUIET = {"accept_dad": 0, "accept_ra": 0, "autoconf": 0, "router_solicitations": 0}


def build(network: Namespace, client: Namespace, guests: Sequence[Namespace], capture: str = "tap") -> dict[str, str]:
    """Everything in the picture above, up and with its addresses.

    Returns the networks that can't be had here, and why. Raises Obstacle where nothing can be had.
    """
    try:
        return _build(network, client, guests, capture)
    except (NetlinkError, OSError) as error:
        why = "bridge, veth and TAP devices can't be made here"
        raise Obstacle(f"{why} ({error}): run as root, on a kernel with bridge, veth and tun") from error


def probe() -> dict[str, str]:
    """The same, for a moment, to see what can be had."""
    namespaces = [Namespace(name) for name in ("network", "client", "srv", "srv2")]
    try:
        return build(namespaces[0], namespaces[1], namespaces[2:])
    finally:
        for namespace in namespaces:
            namespace.close()


def _build(network: Namespace, client: Namespace, guests: Sequence[Namespace], capture: str) -> dict[str, str]:
    for namespace in (network, client, *guests):
        with namespace.entered():
            _quieten()
    with network.entered(), IPRoute() as ip:
        for name in ("ls-net", "ls-up"):
            if capture == "tap":
                add_tap(name)
            else:
                ip.link("add", ifname=name, kind="veth", peer={"ifname": f"{name}0"})
        ip.link("add", ifname="cli", kind="veth", peer={"ifname": "eth0", "net_ns_fd": client.fd})
        ip.link("add", ifname="br0", kind="bridge", br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0)
        bridge = _index(ip, "br0")
        for name in ("cli", "ls-net", "ls-up"):
            ip.link("set", index=_index(ip, name), master=bridge)
        _up(ip, "lo", "cli", "ls-net", "ls-up", "br0")
        if capture == "packet":
            for guest, name in zip(guests, ("ls-srv", "ls-srv2"), strict=True):
                ip.link("add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": guest.fd})
            _up(ip, "ls-net0", "ls-up0", "ls-srv", "ls-srv2")
    with client.entered():
        missing = _inhabit(CLIENT_MAC, guest=False)
    for namespace in guests:
        with namespace.entered():
            if capture == "tap":
                add_tap("eth0")
            _inhabit(GUEST_MAC, guest=True)
    return missing


def _has_ipv6() -> bool:
    """Whether this kernel speaks IPv6."""
    return Path("/proc/net/if_inet6").exists()


def _inhabit(mac: str, *, guest: bool) -> dict[str, str]:
    """Give eth0 of the client or of a guest its addresses, and its VLAN; tell what it can't have."""
    missing = {}
    with IPRoute() as ip:
        eth0 = _index(ip, "eth0")
        ip.link("set", index=eth0, address=mac)
        _up(ip, "lo", "eth0")
        for network, subnet in ADDRESSES.items():
            address, prefix = subnet.guest if guest else subnet.client, subnet.prefix
            if network == "vlan":
                try:
                    vlan.add(ip, eth0, VLAN_ID, address, prefix)
                except (NetlinkError, OSError) as error:
                    missing[network] = f"this kernel has no 8021q, and eBPF instead of it is not to be had ({error})"
            elif network == "ipv4":
                ip.addr("add", index=eth0, address=address, prefixlen=prefix)
            elif _has_ipv6():
                ip.addr("add", index=eth0, address=address, prefixlen=prefix, flags=_NODAD)
            else:
                missing[network] = "this kernel has no IPv6"
    return missing


def _up(ip: Any, *names: str) -> None:
    for name in names:
        index = _index(ip, name)
        if name != "lo":
            ip.link("set", index=index, txqlen=_QUEUE)
            if _has_ipv6():
                # No link-local address: its duplicate detection and MLD reports are frames too.
                mode = ["IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_NONE]
                ip.link("set", index=index, IFLA_AF_SPEC={"attrs": [["AF_INET6", {"attrs": [mode]}]]})
        ip.link("set", index=index, state="up")


def _index(ip: Any, name: str) -> int:
    found: int = ip.link_lookup(ifname=name)[0]
    return found


def _quieten() -> None:
    for place in ("all", "default"):
        for setting, value in _QUIET.items():
            file = Path(f"/proc/sys/net/ipv6/conf/{place}/{setting}")
            # In a container /proc/sys can be read-only; then there is just a little more chatter.
            if file.exists():
                try:
                    file.write_text(str(value))
                except OSError:
                    return
