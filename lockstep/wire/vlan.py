"""VLAN tags (IEEE 802.1Q, 802.1ad): 2 bytes TCI, 2 bytes type of what follows."""

TAG = 4
VID_MASK = 0x0FFF
#: Tags walked before a frame is refused: QinQ has two, nobody stacks more than a few.
MOST_TAGS = 4
