"""UDP (RFC 768): offsets from the start of its header."""

HEADER = 8
LENGTH = 4
CHECKSUM = 6
