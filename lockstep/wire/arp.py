"""ARP over Ethernet for IPv4 (RFC 826): offsets from the start of its header."""

SIZE = 28
OPERATION = 6
SENDER_MAC = 8
SENDER_ADDRESS = 14

REQUEST = b"\0\1"
