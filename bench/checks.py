"""Whether what came out is what went in: count, bytes, and the order within each flow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from lockstep.wire import ethernet, ipv4

#: Where a frame says which flow it belongs to: both addresses and both ports.
_FLOW = slice(ethernet.HEADER + ipv4.SOURCE, ethernet.HEADER + ipv4.HEADER + 4)


def differences(wanted: Sequence[bytes], came: Sequence[bytes]) -> list[str]:
    """What is wrong with the frames that came, in words; nothing if they are `wanted`, each flow in its order."""
    left, right = _by_flow(wanted), _by_flow(came)
    missing = added = displaced = 0
    for flow in left.keys() | right.keys():
        went, got = left[flow], right[flow]
        if went != got:
            missing += _without(went, got)
            added += _without(got, went)
            displaced += _late(went, got)
    said = []
    if missing:
        said.append(f"{missing:,} of {len(wanted):,} frames never came out")
    if added:
        said.append(f"{added:,} frames came out that did not go in")
    if displaced:
        said.append(f"{displaced:,} frames left behind a later one of their flow")
    return said


def _by_flow(frames: Iterable[bytes]) -> defaultdict[bytes, list[bytes]]:
    flows: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for each in frames:
        flows[each[_FLOW]].append(each)
    return flows


def _without(these: list[bytes], those: list[bytes]) -> int:
    """How many of `these` are not among `those`, each counted as often as it stands there."""
    left: defaultdict[bytes, int] = defaultdict(int)
    for one in those:
        left[one] += 1
    missing = 0
    for one in these:
        if left[one]:
            left[one] -= 1
        else:
            missing += 1
    return missing


def _late(went: list[bytes], got: list[bytes]) -> int:
    """How many of `got` came behind one that went in after it."""
    place = {one: index for index, one in enumerate(went)}
    latest = -1
    late = 0
    for one in got:
        index = place.get(one, -1)
        late += 0 <= index < latest
        latest = max(latest, index)
    return late
