"""Whatever comes on whatever stream, a core gives what it may give, counts it, and goes on: never an exception.

Frames are arbitrary bytes, or good ones with some bytes changed, cut off, or behind a virtio-net header that lies.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    URG,
    arp_reply,
    echo_reply,
    ethernet,
    from_client,
    ip,
    segment,
    timestamps,
    udp,
)  # fmt: skip

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.service import core_of
from lockstep.streams import EVENTS, CommandError, Cut, Event, Gap
from lockstep.wiring import SERVICES
from services.comparer.core import MADE

GRE, FRAGMENT6 = 47, 44
SACK = b"\1\1\5\x0a" + bytes(8)
GOOD = [
    segment(5000, flags=SYN, options=b"\x02\x04\x05\xb4\x01\x03\x03\x07" + timestamps(1, 0)),
    segment(5000, 901, flags=SYN, options=b"\x02\x04\x05\xb4\x1e\x0c" + bytes(10)),
    segment(5001, 901, b"payload", flags=PSH, options=timestamps(2, 1)),
    segment(5001, 901, b"payload", flags=PSH | URG),
    segment(5008, 901, b"tail", flags=FIN | PSH, vlan=(5, 6)),
    segment(5001, 901, flags=RST),
    segment(5001, flags=RST),
    segment(1, 2, b"six", source="fd77::2", destination="fd77::1"),
    from_client(900, flags=SYN, options=timestamps(7, 0)),
    from_client(901, 5001, options=timestamps(8, 1)),
    from_client(901, 5001, b"question", flags=PSH | ACK, options=SACK),
    from_client(901, 5001, v6=True),
    udp(b"datagram"),
    echo_reply(1, 1),
    arp_reply(),
    ethernet(ip("10.77.0.2", "10.77.0.1", GRE, b"tunnel")),
    ethernet(ip("10.77.0.2", "10.77.0.1", 17, bytes(24), fragment=0x2000)),
    ethernet(ip("10.77.0.2", "10.77.0.1", 17, bytes(24), fragment=3)),
    ethernet(ip("fd77::2", "fd77::1", FRAGMENT6, b"\6\0\0\1\0\0\0\7" + bytes(24))),
    ethernet(ip("10.77.0.2", "10.77.0.1", 1, b"\3\3\0\0\0\0\0\0" + segment(5001, 901)[14:])),
    ethernet(ip("fd77::2", "fd77::1", 58, b"\1\0\0\0\0\0\0\0" + ip("fd77::1", "fd77::2", 6, bytes(20)))),
]  # fmt: skip

EDITS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=3)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=100))
    frame = bytearray(draw(st.sampled_from(GOOD)))
    for at, value in draw(EDITS):
        if at < len(frame):
            frame[at] = value
    return bytes(frame[: draw(st.integers(0, len(frame)))]) if draw(st.integers(0, 9)) == 0 else bytes(frame)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    vnet = draw(st.sampled_from([0, 10, 12]))
    headers = st.one_of(st.just(bytes(vnet)), st.binary(min_size=vnet, max_size=vnet))
    made = [draw(headers) + frame for frame in draw(st.lists(frames(), max_size=4))]
    return Batch.of([frame for frame in made if len(frame) > vnet], vnet, draw(st.integers(0, 3)))


CUTS = st.builds(Cut, st.integers(0, 4), st.sampled_from(["prepare", "commit", "abort"]))
GAPS = st.sampled_from([Gap("lost", 3), Gap("restarted")])
KEYS = st.one_of(
    st.binary(max_size=50), st.just(b"\0\4\6\n\x4d\0\2\n\x4d\0\1\0\x50\x9c\x40"), st.text(max_size=3), st.none()
)
HEARD = st.builds(
    lambda name, key: Event(name, {"key": key, "survivor": "secondary"}),
    st.sampled_from(["unprotected", "protected", "failover", "reset_by_client", "divergence", "anything"]), KEYS,
)  # fmt: skip
ARGUMENTS = st.dictionaries(
    st.sampled_from(["epoch", "phase", "guest", "key"]),
    st.one_of(
        st.integers(), st.sampled_from(["prepare", "commit", "abort"]), st.text(max_size=3), st.none(), st.binary()
    ),
)
OPS = st.sampled_from(["cut", "failover", "checkpoint", "nothing", ""])


def steps(service: str) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """What the shell may do with this core: push on its ports and streams, tick, command, refuse what it gave."""
    wiring = SERVICES[service]
    kinds = [st.tuples(st.sampled_from(wiring.ports + wiring.takes), batches())] * 4
    kinds.append(st.tuples(st.sampled_from(wiring.takes), st.one_of(CUTS, GAPS)))
    kinds.append(st.tuples(st.just("tick"), st.floats(0, 4)))
    kinds.append(st.tuples(st.just("command"), OPS, ARGUMENTS))
    kinds.append(st.tuples(st.just("undelivered"), st.sampled_from(wiring.gives), st.one_of(batches(), CUTS)))
    if service in ("rewriter", "comparer"):
        kinds.append(st.tuples(st.just(EVENTS), HEARD))
    return st.lists(st.one_of(kinds), max_size=12)


@pytest.mark.parametrize("settings_of", [{}, {"on_divergence": "unprotect", "mptcp": "unprotect", "max_flows": 1000}])
@pytest.mark.parametrize("service", ["mirror", "redirector", "rewriter", "comparer"])
@given(data=st.data())
@settings(max_examples=80)
def test_anything_on_any_stream(service: str, settings_of: dict[str, object], data: st.DataObject) -> None:
    """Outputs go where the wiring leads; counters count up from 0; of the comparer's, every frame has one end."""
    core = core_of(service, Node.model_validate({"comparer": settings_of}))
    wiring = SERVICES[service]
    now = 100.0
    for step in data.draw(steps(service)):
        outputs: Any
        match step:
            case ("tick", seconds):
                now += seconds
                outputs = core.tick(now)
            case ("command", op, arguments):
                try:
                    _, outputs = core.command(op, arguments, now)
                except CommandError:
                    continue
            case ("undelivered", stream, item):
                if service == "comparer":
                    continue  # what it never gave would upset its sums
                outputs = core.undelivered(stream, item, now)
            case (stream, item):
                outputs = core.push(stream, item, now)
        for output in outputs:
            if isinstance(output, Event):
                assert isinstance(output.name, str)
                continue
            stream, item = output
            assert stream in wiring.ports + wiring.gives
            assert isinstance(item, Cut) or sum(item.lengths) == len(item.data)
        deadline = core.next_deadline()
        assert deadline is None or deadline == deadline
    core.status()
    assert all(type(count) is int and count >= 0 for count in core.counters.values())
    if service == "comparer":
        c = core.counters
        dropped = sum(count for name, count in c.items() if name.startswith("dropped_"))
        made = sum(c[name] for name in MADE)
        assert c["primary_frames"] + made == c["released"] + dropped + core.status()["held"]
