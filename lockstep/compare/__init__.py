"""`lockstep compare`: two captures against each other, by the rules by which the comparer compares.

PRIMARY ───▶ feed ──▶ comparison ──▶ verdict, JSON, report
SECONDARY ─▶           │
                       ├─ stream (TCP):   origin (whose numbers are how far apart), ledger (bytes), marks (flags)
                       └─ datagrams (the rest)
"""

from lockstep.compare.command import CompareOptions, compare_captures
from lockstep.compare.comparison import Limits

__all__ = ["HELP", "CompareOptions", "Limits", "compare_captures"]

#: What `lockstep compare --help` says, besides its options.
HELP = """Compare two captures of a guest's replicas, as the comparer would.

The same bytes at the same places of every flow are equal, however they are cut, doubled or reordered,
whatever their initial sequence numbers and timestamps. Captures are pcap or pcapng, gzip or not, of
Ethernet, raw IP, Linux cooked or loopback frames. Exit code 0 equal, 1 a divergence, 64 usage, 65 a file that
can't be read.

A file that ends inside a record can't be read to its end, so it is unreadable as well; with `--partial` it counts
as ending in front of that record. tcpdump leaves such files when it is killed.

**Offsets** count the payload bytes of one direction of a flow from 0. In TCP, 0 is the byte behind the SYN, or
without one the first that the file has. In UDP and the rest the payloads of all datagrams count, one after another.
Frames are numbered from 1, as in Wireshark. Link chatter (ARP, neighbour discovery and the like) is unchecked.
Frames of other link types are compared as the bytes they are, in order.
"""
