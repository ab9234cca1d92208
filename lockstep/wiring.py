"""What is joined to what. This table is the picture of `docs/design.md`; the shell builds from it.

PRIMARY NODE                                   SECONDARY NODE
network ──▶ mirror ── ingress ──────────────▶ redirector ── to_guest ──▶ rewriter ──▶ guest'
   ▲         │  ▲                              │  ▲                         │
   │         ▼  │                              │  └────────── from_guest ────┘
   │       guest│                              │
   │            └── primary ──▶ comparer ◀── secondary
   └──────────────────────────── released
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from lockstep.streams import (
    DIGESTS,
    FROM_GUEST,
    GUEST,
    INGRESS,
    NETWORK,
    PRIMARY,
    RELEASED,
    SECONDARY,
    TO_GUEST,
    UPLINK,
    share,
)

if TYPE_CHECKING:
    from lockstep.config import Node


@dataclass(frozen=True, slots=True)
class Wiring:
    """The ends of one service: its ports, the streams it takes and the streams it gives."""

    ports: tuple[str, ...]
    takes: tuple[str, ...]
    #: In the order in which they are sent when several are due: released frames go first.
    gives: tuple[str, ...]
    #: Services of the same node whose events it listens to, besides the `events` of its configuration.
    hears: tuple[Literal["redirector", "rewriter", "comparer"], ...] = ()
    #: Of a port or stream that it takes: the links that keep it waiting while they are full (`pressure`).
    rests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


SERVICES: dict[str, Wiring] = {
    "mirror": Wiring(
        ports=(NETWORK, GUEST),
        takes=(RELEASED,),
        gives=(INGRESS, PRIMARY),
        # `released` always goes on, else all could wait for each other.
        rests={NETWORK: (INGRESS, PRIMARY), GUEST: (PRIMARY,)},
    ),
    "redirector": Wiring(
        ports=(UPLINK,),
        takes=(INGRESS, FROM_GUEST),
        gives=(TO_GUEST, SECONDARY),
        rests={INGRESS: (TO_GUEST, SECONDARY), UPLINK: (TO_GUEST,), FROM_GUEST: (SECONDARY,)},
    ),
    "rewriter": Wiring(
        ports=(GUEST,),
        takes=(TO_GUEST,),
        gives=(FROM_GUEST,),
        hears=("redirector", "comparer"),
        rests={TO_GUEST: (FROM_GUEST,), GUEST: (FROM_GUEST,)},
    ),
    "comparer": Wiring(
        ports=(),
        takes=(PRIMARY, SECONDARY),
        gives=(RELEASED,),
        hears=("rewriter",),
        rests={PRIMARY: (RELEASED,), SECONDARY: (RELEASED,)},
    ),
}

#: Streams that stay on the secondary node, and so need no endpoint from the user.
LOCAL = (TO_GUEST, FROM_GUEST)


def of(node: Node, service: str) -> Wiring:
    """A service's wiring on this node: a comparer of many guests gives each of them its own `released`."""
    wiring = SERVICES[service]
    digests = {"redirector": node.redirector.secondary, "comparer": node.comparer.secondary}
    if digests.get(service) == "digest":
        wiring = _with_digests(wiring)
    if service != "comparer" or not node.guests:
        return wiring
    gives = tuple(share(stream, guest.name) for stream in wiring.gives for guest in node.guests)
    return replace(wiring, gives=gives)


def _with_digests(wiring: Wiring) -> Wiring:
    """The same, with `digests` in place of `secondary`."""

    def other(streams: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(DIGESTS if stream == SECONDARY else stream for stream in streams)

    rests = {other((source,))[0]: other(links) for source, links in wiring.rests.items()}
    return replace(wiring, takes=other(wiring.takes), gives=other(wiring.gives), rests=rests)


def of_splitter(workers: int, secondary: str = SECONDARY) -> Wiring:
    """The wiring of what stands before the workers of a comparer: each has its share of the streams.

    secondary: the stream in which the secondary's frames come, or in digest mode its records.
    """
    names = [str(number) for number in range(workers)]
    ways = {stream: tuple(share(stream, name) for name in names) for stream in (PRIMARY, secondary, RELEASED)}
    return Wiring(
        ports=(),
        takes=(*ways[RELEASED], PRIMARY, secondary),
        gives=(RELEASED, *ways[PRIMARY], *ways[secondary]),
        rests={PRIMARY: ways[PRIMARY], secondary: ways[secondary], **dict.fromkeys(ways[RELEASED], (RELEASED,))},
    )
