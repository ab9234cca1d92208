"""What the checker has read of the trace so far, and names for it that its parts share."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from sim.habits import Key
from sim.lives import Life, Violation
from sim.scenario import Scenario
from sim.wire import MASK, Flow, Packet, Reader


class Entry:
    """A primary frame that went into the comparer and has not left it."""

    __slots__ = ("epoch", "free", "packet", "raw", "taken", "vnet", "when")

    def __init__(self, raw: bytes, vnet: int, packet: Packet, epoch: int, when: float) -> None:
        self.raw, self.vnet, self.packet, self.epoch, self.when = raw, vnet, packet, epoch, when
        self.free = False
        self.taken = 0


class State:
    """What all parts of the checker know. `excused` names known faults that are not reported."""

    def __init__(self, scenario: Scenario, reader: Reader, limits: Any, excused: frozenset[str]) -> None:
        self.scenario, self.reader, self.limits, self.excused = scenario, reader, limits, excused
        self.now = 0.0
        self.epoch = 0
        self.lives: dict[str, dict[Key, list[Life]]] = {"primary": {}, "secondary": {}}
        #: The secondary's lives as the rewriter knows them: until a commit has reached it, those from before the cut.
        self.followed = self.lives["secondary"]
        #: What the secondary says that is no stream, in this epoch, and how often it left.
        self.datagrams: Counter[tuple[Flow, bytes]] = Counter()
        self.datagrams_out: Counter[tuple[Flow, bytes]] = Counter()
        #: Of each datagram the fragments that have left in this call: offset, whether more follow, size.
        self.parts: dict[Flow, list[tuple[int, bool, int]]] = {}
        #: Fragments of it: the datagram's flow, offset, whether more follow, and what they carry.
        self.pieces: set[tuple[Flow, int, bool, bytes]] = set()
        self.resets: dict[Flow, set[tuple[int, int | None]]] = {}
        #: How many RSTs of the secondary stood at a number, and how many have left there.
        self.resets_said: Counter[tuple[Flow, int]] = Counter()
        self.resets_out: Counter[tuple[Flow, int]] = Counter()
        #: Frames on their way: mirror → comparer, comparer → mirror.
        self.to_comparer: deque[tuple[bytes, int, int]] = deque()
        self.to_mirror: deque[tuple[bytes, int]] = deque()
        self.inside: dict[Flow, deque[Entry]] = {}
        self.asked: deque[bytes] = deque(maxlen=64)
        #: Pure ACKs of the secondary that reached the comparer, and of each flow the last frame that left lowered.
        self.acks: deque[tuple[tuple[bytes, str], tuple[int, int] | None]] = deque(maxlen=256)
        self.lowered: dict[Flow, Packet] = {}
        self.last_syn: dict[Flow, bytes] = {}
        #: Keys of flows of which payload has left, as `lockstep.flow.key` writes them.
        self.established: set[bytes] = set()
        #: Of each flow the number behind the last byte that left.
        self.front: dict[Flow, int] = {}
        self.told: dict[Flow, int] = {}
        #: Flows whose SYN the comparer has let out, and their keys: it knows their window's scale.
        self.scaled: dict[Flow, bytes] = {}
        self.voices: set[bytes] = set()
        #: In digest mode, the frame of each record.
        self.recorded: dict[bytes, bytes] = {}
        self.alone = False
        self.unprotected: set[str] = set()
        self.ever_unprotected: set[str] = set()
        #: Addresses of unprotected flows: a fragment doesn't name its ports.
        self.unprotected_pairs: set[str] = set()
        self.named: dict[str, set[Flow]] = {}
        self.diverged: dict[str, str] = {}
        #: Those that had diverged before the call at hand.
        self.standing: frozenset[str] = frozenset()
        self.divergences: list[tuple[float, dict[str, Any]]] = []
        #: Bytes of the comparer's longest frame and largest batch.
        self.longest = self.largest = 0
        self.taken_in = self.let_out = 0
        self.speaking = self.primary_dead = False
        #: Offsets that the living rewriter has learned, and ports about which nothing can be said.
        self.learned: dict[Key, Life] = {}
        self.loose: set[Key] = set()
        self.offsets_lost: set[str] = set()
        self.rewriter_lost_at: float | None = None
        self.commit_lost = self.commit_ever_lost = False
        self.cut_at = -1.0
        #: The cut that the comparer has seen prepared, and the one that it has just seen committed.
        self.prepared: int | None = None
        self.emptied: int | None = None
        self.client_got: dict[int, float] = {}
        #: Flows of which the rewriter heard that they left unchecked, before it heard of the failover.
        self.doomed: set[str] = set()
        self.doomed_by_rule: set[str] = set()
        #: What it passed on before that: some of it may be under way when the redirector begins to speak.
        self.under_way: deque[bytes] = deque(maxlen=256)
        self.rewriter_speaking = False
        #: A cut is prepared at the rewriter; what came for the guest since then, and has not gone on.
        self.withholds = False
        self.withheld: list[tuple[bytes, int]] = []
        self.events: list[tuple[float, str, Any]] = []

    def _life(self, host: str, p: Packet) -> Life | None:
        """The life to which a guest's segment belongs; its numbers are the guest's own."""
        return self._life_among(self.lives[host], p)

    @staticmethod
    def _life_among(lives: dict[Key, list[Life]], p: Packet) -> Life | None:
        for life in reversed(lives.get((p.version, p.dport, p.sport), ())):
            if life.place(p.seq) is not None:
                return life
        return None

    @staticmethod
    def _counterpart(life: Life, lives: dict[Key, list[Life]]) -> Life | None:
        """The same connection in the other guest."""
        for other in lives.get(life.key, ()):
            if (other.label, other.turn) == (life.label, life.turn):
                return other
        return None

    def _distance(self, life: Life) -> int | None:
        """From the secondary's numbers to the primary's."""
        other = self._counterpart(life, self.lives["primary"])
        return None if other is None else (other.iss - life.iss) & MASK

    def _find(self, queue: deque[Any], wanted: tuple[Any, ...], what: str) -> Any:
        """The next entry of a queue that begins with `wanted`; what stands in front was lost."""
        while queue:
            entry = queue.popleft()
            if entry[: len(wanted)] == wanted:
                return entry
        raise Violation(3, what)

    def _name(self, p: Packet) -> str:
        """A flow's name as the comparer's events give it."""
        if p.version == 0:
            ends = p.flow[-1] if p.kind == "other" else b""
            return f"{ends[6:].hex(':')} {ends[:6].hex(':')}" if isinstance(ends, bytes) else ""
        ends = [_address(p.source), _address(p.destination)]
        if p.kind in ("tcp", "udp"):
            ends = [
                f"{f'[{end}]' if p.version == 6 else end}:{port}"
                for end, port in zip(ends, (p.sport, p.dport), strict=True)
            ]
        return " ".join(ends)

    def _name_of(self, key: Key) -> str:
        version, port, service = key
        guest, client = ("10.77.0.2", "10.77.0.1") if version == 4 else ("[fd77::2]", "[fd77::1]")
        return f"{guest}:{service} {client}:{port}"

    def _offsets_doubtful(self) -> bool:
        """The rewriter may not know the distances: it is new, or never heard of the last commit."""
        if self.rewriter_lost_at is not None and self.rewriter_lost_at >= self.cut_at:
            return True
        return self.commit_ever_lost or self.scenario.stress or bool(self.scenario.crashes)


def _address(raw: bytes) -> str:
    if len(raw) == 4:
        return ".".join(map(str, raw))
    return f"{raw[:2].hex()}::{raw[15]}"
