"""The limit on SYNs: what it drops, and that everything else passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packets import FIN, RST, SYN, from_client

from lockstep.batch import Batch
from lockstep.config import Node
from services.mirror.core import Core
from services.mirror.syns import SynLimit

#: Frames that open nothing: data, a SYN-ACK, a FIN, a RST, what is no IP, and what is no frame.
OTHERS = [
    from_client(1, 2, b"data"),
    from_client(1, 2, flags=SYN),
    from_client(1, 2, flags=FIN),
    from_client(1, flags=RST),
    bytes(12) + b"\x08\x06" + bytes(46),
    b"\0" * 9,
]


def syn(number: int) -> bytes:
    return from_client(number, flags=SYN)


def test_so_many_pass_at_once_and_so_many_a_second() -> None:
    limit = SynLimit(40)
    assert limit.admit(Batch.of(map(syn, range(30))), 5.0).frames() == [syn(number) for number in range(10)]
    assert limit.admit(Batch.of([syn(30)]), 5.0).frames() == []
    assert limit.admit(Batch.of(map(syn, range(31, 40))), 5.125).frames() == [syn(number) for number in range(31, 36)]
    assert len(limit.admit(Batch.of(map(syn, range(30))), 1000.0)) == 10


def test_a_clock_that_steps_back_brings_none() -> None:
    limit = SynLimit(40)
    limit.admit(Batch.of(map(syn, range(10))), 5.0)
    assert len(limit.admit(Batch.of([syn(1)]), 4.0)) == 0


@given(
    st.lists(st.one_of(st.sampled_from(OTHERS), st.builds(syn, st.integers(0, 9)), st.binary(min_size=1, max_size=90))),
    st.sampled_from([0, 10, 12]),
    st.integers(1, 40),
)
def test_nothing_but_syns_is_dropped_and_the_order_stays(frames: list[bytes], vnet: int, rate: int) -> None:
    padded = [bytes(vnet) + frame for frame in frames]
    batch = Batch.of(padded, vnet)
    found = SynLimit(rate).admit(batch, 1.0)
    left, expected = max(1, int(rate / 4)), []
    for frame in padded:
        opens = frame[vnet:] in [syn(number) for number in range(10)]
        if not opens or left:
            expected.append(frame)
        left -= opens and left > 0
    assert found.frames() == expected
    assert found.vnet == vnet
    assert (found is batch) == (expected == padded)


def test_the_mirror_counts_them_and_neither_guest_sees_them() -> None:
    mirror = Core(Node.model_validate({"mirror": {"max_syns": 4}}))
    outputs = mirror.push("network", Batch.of([syn(1), OTHERS[0], syn(2)]), 0.0)
    assert [(stream, batch.frames()) for stream, batch in outputs] == [
        ("guest", [syn(1), OTHERS[0]]),
        ("ingress", [syn(1), OTHERS[0]]),
    ]
    assert mirror.push("network", Batch.of([syn(3)]), 0.0) == []
    assert mirror.counters["network_frames"] == 4
    assert mirror.counters["dropped_syns"] == 2
    mirror.reload(Node.model_validate({"mirror": {"max_syns": 0}}))
    assert len(mirror.push("network", Batch.of(map(syn, range(100))), 0.0)[0][1]) == 100


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_syns"):
        Node.model_validate({"mirror": {"max_syns": -1}})
