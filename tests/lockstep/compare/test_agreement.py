"""`lockstep compare` and the comparer's own core, given the same frames: they never disagree.

The guest's side of some conversations, said by two replicas who cut, double and reorder it as they like, with one
fault or none. The secondary's numbers are the primary's, as the rewriter would have made them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from random import Random

import pytest
from against import compared, told
from hypothesis import given, settings
from hypothesis import strategies as st
from mutate import Record
from packets import ACK, CLIENT, CLIENT6, FIN, GUEST, GUEST6, PSH, SYN, URG, segment, udp

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import Event
from services.comparer.core import Core

MSS, OTHER_MSS = b"\x02\x04\x05\xb4", b"\x02\x04\x05\x50"
ISNS = (0, 5000, (1 << 31) - 100, (1 << 32) - 100)


@dataclass(frozen=True)
class Talk:
    """What the guest says on one connection; `said` from behind the SYN, then a FIN if `ends`."""

    port: int
    isn: int
    said: bytes
    v6: bool = False
    options: bytes = MSS
    ends: bool = True
    urgent: int | None = None

    def frame(self, seq: int, payload: bytes = b"", flags: int = ACK, options: bytes = b"", urgent: int = 0) -> bytes:
        frame = segment(
            seq, 901, payload, flags=flags, options=options, dport=self.port,
            source=GUEST6 if self.v6 else GUEST, destination=CLIENT6 if self.v6 else CLIENT,
        )  # fmt: skip
        at = 14 + (40 if self.v6 else 20) + 18
        return frame[:at] + urgent.to_bytes(2, "big") + frame[at + 2 :]

    def frames(self, random: Random, *, tidy: bool = False) -> list[bytes]:
        """As one replica says it: cut somewhere, some of it twice, and not quite in order; `tidy`: just cut."""
        cuts = sorted({0, len(self.said), *(random.randint(0, len(self.said)) for _ in range(random.randrange(6)))})
        segments = []
        for start, end in itertools.pairwise(cuts):
            flags, pointer = PSH, 0
            if self.urgent is not None and start <= self.urgent < end:
                flags, pointer = PSH | URG, self.urgent - start
            segments.append(self.frame(self.isn + 1 + start, self.said[start:end], flags, urgent=pointer))
        if self.ends:
            segments.append(self.frame(self.isn + 1 + len(self.said), flags=FIN))
        syn = self.frame(self.isn, flags=SYN, options=self.options)
        if tidy:
            return [syn, *segments]
        keyed = [(index + random.uniform(0, 2), frame) for index, frame in enumerate(segments)]
        keyed += [
            (index + random.uniform(0, 4), frame) for index, frame in enumerate(segments) if random.random() < 0.2
        ]
        ordered = [frame for _, frame in sorted(keyed, key=lambda entry: entry[0])]
        return [syn, *ordered]


def flow(talk: Talk) -> str:
    return f"[{GUEST6}]:80 [{CLIENT6}]:{talk.port}" if talk.v6 else f"{GUEST}:80 {CLIENT}:{talk.port}"


def _is_syn(frame: bytes) -> bool:
    return (frame[12:14] == b"\x08\0" and frame[23] == 6 and bool(frame[47] & SYN)) or (
        frame[12:14] == b"\x86\xdd" and bool(frame[67] & SYN)
    )


def online(primary: list[bytes], secondary: list[bytes], random: Random) -> list[tuple[str, str, int | None]]:
    """What the comparer's core finds: flow, reason and offset of each divergence.

    SYNs come first: neither replica goes on before the client has answered the primary's.
    """
    core = Core(Node.model_validate({"comparer": {"on_divergence": "hold"}}))
    queues = {"primary": list(reversed(primary)), "secondary": list(reversed(secondary))}
    outputs = []
    now = 0.0
    for queue in queues.values():
        queue.sort(key=_is_syn)
    while any(queues.values()):
        among = [name for name, queue in queues.items() if queue]
        stream = random.choice([name for name in among if _is_syn(queues[name][-1])] or among)
        now += 0.0001
        outputs += core.push(stream, Batch.of([queues[stream].pop()]), now)
    for _ in range(400):
        now += 0.01
        outputs += core.tick(now)
    found = [output.fields for output in outputs if isinstance(output, Event) and output.name == "divergence"]
    assert core.status()["held"] == 0 or found, "held, and nobody was told"
    return [(fields["flow"], fields["reason"], fields["offset"]) for fields in found]


def offline(primary: list[bytes], secondary: list[bytes]) -> list[tuple[str, str, int]]:
    """What `lockstep compare` finds of the same."""
    a, b = ([Record(frame, number) for number, frame in enumerate(side)] for side in (primary, secondary))
    return [told(found)[:3] for found in compared(a, b).divergences]


def talks(random: Random) -> list[Talk]:
    return [
        Talk(
            40000 + number, random.choice(ISNS), random.randbytes(random.randrange(1, 3000)),
            v6=random.random() < 0.3, ends=random.random() < 0.7,
            urgent=random.choice((None, 0)),
        )
        for number in range(random.randint(1, 3))
    ]  # fmt: skip


def woven(lists: list[list[bytes]], random: Random) -> list[bytes]:
    queues = [list(reversed(frames)) for frames in lists if frames]
    out = []
    while queues:
        queue = random.choice(queues)
        out.append(queue.pop())
        queues = [queue for queue in queues if queue]
    return out


def wrong_byte(talk: Talk, random: Random) -> Talk:
    at = random.randrange(len(talk.said))
    return replace(talk, said=talk.said[:at] + bytes((talk.said[at] ^ 1,)) + talk.said[at + 1 :])


#: What a secondary may do wrong.
FAULTS = {
    "a wrong byte": wrong_byte,
    "it says less": lambda talk, random: replace(talk, said=talk.said[: random.randrange(len(talk.said))]),
    "it says no FIN": lambda talk, random: replace(talk, ends=False),
    "another MSS": lambda talk, random: replace(talk, options=OTHER_MSS),
    "another urgent byte": lambda talk, random: replace(talk, urgent=len(talk.said) - 1),
}


@given(st.integers(0, 1 << 32))
@settings(max_examples=60)
def test_equal_sides_are_equal_to_both(seed: int) -> None:
    random = Random(seed)
    mine = talks(random)
    primary, secondary = (woven([talk.frames(random) for talk in mine], random) for _ in range(2))
    assert online(primary, secondary, random) == []
    assert offline(primary, secondary) == []


@pytest.mark.parametrize("fault", FAULTS)
@given(st.integers(0, 1 << 32))
@settings(max_examples=30)
def test_a_fault_of_the_secondary_is_found_by_both_in_the_same_flow(fault: str, seed: int) -> None:
    """A wrong byte by both at the same place, and for the same reason.

    The primary says everything once and in order: online, a FIN that it repeats older data behind is dropped, since
    it is going to say that again as well, and a capture has no such sequel.
    """
    random = Random(seed)
    mine = talks(random)
    which = random.randrange(len(mine))
    if fault == "it says no FIN":
        mine[which] = replace(mine[which], ends=True)
    if fault == "another urgent byte":
        mine[which] = replace(mine[which], urgent=0, said=mine[which].said + b"!")
    theirs = [*mine[:which], FAULTS[fault](mine[which], random), *mine[which + 1 :]]
    primary = woven([talk.frames(random, tidy=True) for talk in mine], random)
    secondary = woven([talk.frames(random) for talk in theirs], random)
    found, told_of = online(primary, secondary, random), offline(primary, secondary)
    assert [name for name, _, _ in found] == [flow(mine[which])]
    assert [name for name, _, _ in told_of] == [flow(mine[which])]
    if fault == "a wrong byte":
        assert found == told_of


@given(st.integers(0, 1 << 32), st.booleans())
@settings(max_examples=60)
def test_datagrams_are_found_equal_or_different_by_both(seed: int, wrong: bool) -> None:
    """Within a window they may be reordered; one that only the primary said is a divergence."""
    random = Random(seed)
    payloads = [bytes((number,)) * random.randint(1, 40) for number in range(random.randint(1, 40))]
    primary = [udp(payload) for payload in payloads]
    said = [payload for _, payload in sorted((index + random.uniform(0, 8), p) for index, p in enumerate(payloads))]
    if wrong:
        said[random.randrange(len(said))] += b"!"
    secondary = [udp(payload) for payload in said]
    found = [f"{GUEST}:53 {CLIENT}:40000"] if wrong else []
    assert [name for name, _, _ in online(primary, secondary, random)] == found
    assert [name for name, _, _ in offline(primary, secondary)] == found


def test_what_the_secondary_alone_said_is_told_offline_alone() -> None:
    """Online nothing leaves for it, and the primary may yet say it; a file has an end."""
    primary, secondary = [udp(b"first")], [udp(b"first"), udp(b"second")]
    assert online(primary, secondary, Random(1)) == []
    assert offline(primary, secondary) == [(f"{GUEST}:53 {CLIENT}:40000", "unmatched", 5)]


def test_a_primary_that_contradicts_itself_is_told_online_alone() -> None:
    """Two segments with other bytes at one place: online one of them is never proven; a capture equals itself."""
    frames = [segment(5, 1, b"first", flags=PSH), segment(5, 1, b"fIrst", flags=PSH)]
    assert [name for name, _, _ in online(frames, frames, Random(1))] == [f"{GUEST}:80 {CLIENT}:40000"]
    assert offline(frames, frames) == []
