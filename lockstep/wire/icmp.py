"""ICMP (RFC 792) and ICMPv6 (RFC 4443): offsets and the types that matter here."""

HEADER = 8
CHECKSUM = 2
IDENT = 4

ECHO_REPLY = 0
ECHO_REQUEST = 8
V6_ECHO_REQUEST = 128
V6_ECHO_REPLY = 129

#: Errors: they quote the packet that they answer (RFC 792, RFC 4443 §2.1).
V4_ERRORS = frozenset({3, 4, 5, 11, 12})
V6_ERRORS = frozenset({1, 2, 3, 4})

#: Neighbour discovery (RFC 4861) and multicast listener discovery (RFC 2710, RFC 3810): link chatter.
V6_CHATTER = frozenset({130, 131, 132, 133, 134, 135, 136, 137, 143})
NEIGHBOUR_SOLICITATION = 135
NEIGHBOUR_ADVERTISEMENT = 136
