"""Ethernet II: 6 bytes destination, 6 bytes source, 2 bytes type (IEEE 802.3)."""

HEADER = 14
TYPE = 12

IPV4 = 0x0800
ARP = 0x0806
RARP = 0x8035
VLAN = 0x8100  # IEEE 802.1Q
QINQ = 0x88A8  # IEEE 802.1ad
IPV6 = 0x86DD
LLDP = 0x88CC
#: Below this the field is a length: 802.3 with LLC, which carries STP and the like.
SMALLEST_TYPE = 0x0600

#: Frames that keep a link going and belong to no flow; they pass unchecked.
CHATTER = frozenset({ARP, RARP, LLDP})

BROADCAST = b"\xff" * 6
