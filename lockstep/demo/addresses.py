"""Who has which address in the demo's little network."""

from __future__ import annotations

from typing import NamedTuple

CLIENT_MAC = "52:54:00:00:00:01"
#: Both replicas have the same: there is one guest, for all that anybody can see.
GUEST_MAC = "52:54:00:00:00:02"
VLAN_ID = 77


class Subnet(NamedTuple):
    """The client's and the guest's address, and the length of their prefix."""

    client: str
    guest: str
    prefix: int


ADDRESSES = {
    "ipv4": Subnet("10.77.0.1", "10.77.0.2", 24),
    "ipv6": Subnet("fd77::1", "fd77::2", 64),
    "vlan": Subnet("10.78.0.1", "10.78.0.2", 24),
}

#: Where the guest listens; where the client does, for connections that the guest opens; and from which
#: port it opens them, one for both replicas.
PORT, CLIENTS_PORT, GUESTS_SOURCE_PORT = 80, 8080, 40000
