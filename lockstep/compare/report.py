"""The report: a pcapng file with the frames of each divergence, a little of their flow around them, and comments.

The files are read a second time for it, so that comparing them keeps no frame for its sake.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from lockstep.capture.pcapfile import LINKTYPE_ETHERNET, Packet, PcapngWriter
from lockstep.compare.comparison import Divergence
from lockstep.compare.frames import as_ethernet, dissected, key_of
from lockstep.compare.ledger import PRIMARY, SECONDARY
from lockstep.wire.frame import Frame

NAMES = ("primary", "secondary")
#: Frames of the flow that are shown before and behind the one that differs.
CONTEXT = 3
_LATEST = (1 << 64) - 1
#: Ethertype of a frame whose own link type has no place in the report (IEEE 802, local experiments).
_STRANGER = bytes(12) + b"\x88\xb5"


def write_report(
    file: BinaryIO, packets: Callable[[int], Iterator[Packet]], divergences: Sequence[Divergence], linktypes: set[int]
) -> None:
    """Write the frames that differ, in the order of their captures' clocks.

    packets: reads the file of a side, from its start. linktypes: those of both files; if there is one, the
    frames are written as they are. Raises what the readers and the file raise.
    """
    linktype = next(iter(linktypes)) if len(linktypes) == 1 else LINKTYPE_ETHERNET
    writer = PcapngWriter(file, linktype, interfaces=NAMES)
    if not divergences:
        return
    chosen = [_chosen(side, packets(side), divergences) for side in (PRIMARY, SECONDARY)]
    for _, side, packet, comment in heapq.merge(*chosen, key=lambda entry: entry[0]):
        data = packet.data
        if packet.linktype != linktype:
            data = as_ethernet(packet) or _STRANGER + packet.data
        writer.write(data, min(max(0, packet.time_ns), _LATEST), comment, side)


def _chosen(
    side: int, packets: Iterator[Packet], divergences: Sequence[Divergence]
) -> Iterator[tuple[int, int, Packet, str]]:
    """What of one file belongs into the report: `(time since its start, side, packet, comment)`."""
    wanted: dict[int, list[Divergence]] = {}
    before: dict[bytes, deque[Packet]] = {}
    behind: dict[bytes, int] = {}
    for found in divergences:
        number = _frames(found)[side]
        if number:
            wanted.setdefault(number, []).append(found)
            before[found.key] = deque(maxlen=CONTEXT)
    f = Frame()
    start = None
    for packet in packets:
        start = packet.time_ns if start is None else start
        if not wanted and not behind:
            return
        data = as_ethernet(packet)
        kind, whole, _ = (
            dissected(f, data, packet.original_length - len(packet.data)) if data is not None else (0, b"", 0)
        )
        key = key_of(f, packet, data, kind, whole)
        hits = wanted.pop(packet.number, None)
        if hits is not None:
            for found in hits:
                for earlier in before.pop(found.key, ()):
                    yield earlier.time_ns - start, side, earlier, f"before: {found.flow}"
                behind[found.key] = CONTEXT
            yield packet.time_ns - start, side, packet, "; ".join(_comment(found, side) for found in hits)
        elif key in before:
            before[key].append(packet)
        elif key in behind:
            yield packet.time_ns - start, side, packet, "behind"
            behind[key] -= 1
            if not behind[key]:
                del behind[key]


def _frames(found: Divergence) -> tuple[int, int]:
    return found.finding.primary_frame, found.finding.secondary_frame


def _comment(found: Divergence, side: int) -> str:
    finding, other = found.finding, _frames(found)[1 - side]
    against = f"{NAMES[1 - side]} frame {other}" if other else f"nothing in the {NAMES[1 - side]}'s file"
    return f"{finding.reason} at byte {finding.offset} of {found.flow}: frame {_frames(found)[side]}, against {against}"
