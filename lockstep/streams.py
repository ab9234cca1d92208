"""The words of the pipeline: its streams, what travels in them, and what a core is.

A *stream* is a named, one-way, ordered way for frames. Between services a stream is carried by a
link (ZeroMQ PUSH/PULL); inside one process it is a function call. What travels in it is a `Batch`
of frames or a `Cut`, the marker that separates two epochs. A consumer's own link also reports a
`Gap` in the stream: messages that were sent and never came.

A *core* is a service without its I/O. It is given what arrived and the time, and gives back what
is to be sent. `lockstep.shell` runs any core; `lockstep.wiring` says what is joined to what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from lockstep.batch import Batch

if TYPE_CHECKING:
    from lockstep.config import Node

INGRESS = "ingress"
TO_GUEST = "to_guest"
FROM_GUEST = "from_guest"
PRIMARY = "primary"
SECONDARY = "secondary"
RELEASED = "released"
#: What takes the place of `secondary` in digest mode (`services/redirector/digest.py`).
DIGESTS = "digests"

#: Events that other services published, for a core that listens to them.
EVENTS = "events"

#: Every stream of the pipeline.
STREAMS = (INGRESS, TO_GUEST, FROM_GUEST, PRIMARY, SECONDARY, RELEASED)
#: What a message may name: a stream, or what takes the place of one.
CARRIED = (*STREAMS, DIGESTS)


def share(stream: str, name: str) -> str:
    """What one guest's share of a stream is called in a service of many guests, or one worker's: `primary@web`."""
    return f"{stream}@{name}"


def side_of(stream: str) -> str:
    """The stream in whose place another travels in digest mode: the link is the same, and so is what is counted."""
    return SECONDARY if stream == DIGESTS else stream


def stream_and_share(label: str) -> tuple[str, str | None]:
    """The two parts of such a name; the second is None for a whole stream."""
    stream, _, name = label.partition("@")
    return stream, name or None


NETWORK = "network"
GUEST = "guest"
UPLINK = "uplink"

Phase = Literal["prepare", "commit", "abort"]
PHASES: tuple[Phase, ...] = ("prepare", "commit", "abort")


@dataclass(frozen=True, slots=True)
class Cut:
    """The place in a stream where epoch `epoch` begins (or, with `abort`, does not)."""

    epoch: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages of a stream that were lost before they reached this consumer.

    `lost` is how many, or None where it can't be known (the producer, or this process, is new).
    """

    reason: Literal["lost", "restarted"]
    lost: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that people or other services want to know; never one per frame."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)


Item = Batch | Cut | Gap | Event
Output = tuple[str, Batch | Cut | Gap] | Event
Outputs = Iterable[Output]


class CommandError(Exception):
    """A control request that the service understood and refuses; its text goes to the asker."""


@runtime_checkable
class Core(Protocol):
    """What the shell asks of a service. No sockets, clocks, threads or logging in here.

    `now` is monotonic seconds. Outputs are `(stream or port name, Batch or Cut)`, or an `Event`. A `Gap`
    may be given to a stream: its consumer is told that something is missing there.
    """

    epoch: int
    counters: dict[str, int]

    def push(self, stream: str, item: Item, now: float) -> Outputs:
        """Take what arrived on a stream or a port.

        A batch is lent: once its outputs are carried out, its buffer is filled anew. What is kept, is copied.
        """
        ...

    def tick(self, now: float, heard: float | None = None) -> Outputs:
        """Do what is due by `now`. All time-outs live here.

        heard: what came before this moment has been read; what came later may make a time-out needless. None: `now`.
        """
        ...

    def next_deadline(self) -> float | None:
        """When `tick` has something to do next; None for never."""
        ...

    def command(self, op: str, arguments: Mapping[str, Any], now: float) -> tuple[dict[str, Any], Outputs]:
        """Carry out a control request of this service's own; raises `CommandError` to refuse."""
        ...

    def reload(self, config: Node) -> None:
        """Take what may change while the service runs from a newly read configuration."""
        ...

    def status(self) -> dict[str, Any]:
        """What `lockstep status` shows besides the counters."""
        ...

    def undelivered(self, stream: str, item: Batch | Cut, now: float) -> Outputs:
        """Hear that an output could not be sent: its link is full, or its port refused it."""
        ...
