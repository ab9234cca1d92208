"""IPv6 (RFC 8200): offsets from the start of its header, and the extension headers we walk."""

HEADER = 40
PAYLOAD_LENGTH = 4
NEXT_HEADER = 6
SOURCE = 8
DESTINATION = 24

HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT = 44
AUTHENTICATION = 51
DESTINATION_OPTIONS = 60

#: Hop-by-hop option of a jumbogram (RFC 2675).
JUMBO = 0xC2

#: Extension headers walked before a frame is refused (RFC 8504 §5.3 allows a host such a bound).
MOST_EXTENSIONS = 8
