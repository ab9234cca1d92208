"""In what two machines with the same program differ, and what all hosts of the simulator have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from sim.wire import Offload

RTO, LONGEST_RTO, MOST_TRIES = 0.2, 1.6, 14
SCALE = 2
#: Listening ports of a guest, and of the client; the rest answers with RST.
GUEST_PORTS, CLIENT_PORTS = range(80, 90), range(9000, 9010)
#: UDP: ports that answer, and the one whose answers are long enough to be fragmented.
UDP_PORTS, LONG_PORT = range(50, 60), 59
FRAGMENT = 1400
#: Fragments that a receiver must not put together, though end to end they say what was said.
FORGERIES = ("overlap", "two ends", "beyond the end", "hole", "two datagrams")

#: (IP version, peer's port, own port): there is one peer.
Key = tuple[int, int, int]


@dataclass
class Habits:
    """In what two machines with the same program differ."""

    offload: Offload = field(default_factory=Offload)
    #: Segments are cut to this share of what fits, at random.
    cut: tuple[float, float] = (1.0, 1.0)
    #: Acks: one for so many segments, or after so many seconds.
    ack_every: int = 2
    ack_delay: float = 0.02
    #: Seconds between bursts of so many segments; seconds that an application thinks.
    burst: int = 8
    pace: float = 0.001
    think: float = 0.0
    fin_alone: bool = False
    #: Bytes of receive buffer; an application that reads slowly takes so many seconds for a thousand bytes.
    window: int = 24_000
    reading: float = 0.0
    #: Share of segments sent with a wrong checksum.
    spoil: float = 0.0
    #: Bytes that its streams have wrong: plan → offset; bytes that are wrong when they are said again;
    #: datagrams that differ; the option of its SYNs that differs: scale, mss.
    wrong: dict[int, int] = field(default_factory=dict)
    fickle: dict[int, int] = field(default_factory=dict)
    wrong_datagrams: frozenset[int] = frozenset()
    other_options: str = ""
    #: How much further its urgent byte stands.
    other_urgent: int = 0
    time_wait: float = 0.5
    #: Seconds between keep-alives, and whether they carry a byte (RFC 1122 §4.2.3.6).
    keepalive: float = 0.0
    probe_byte: bool = False
