"""The comparer: the primary's frames leave once the secondary has said the same.

    primary ──▶┐
               ├──▶ released, and the events `divergence`, `checkpoint_requested`, `unprotected`
    secondary ▶┘

Frames of one flow leave in the primary's order: a flow's held frames are a queue, and only its
head is ever judged. What a head waits for comes from the secondary alone, so nothing can wait in
a circle. A head that waited `compare_timeout` is a divergence, as is a difference or a limit.

ARP and neighbour discovery pass unchecked. What the secondary asks its neighbours leaves as well:
the answer reaches both guests, and without it the secondary could not send once it has forgotten
an address that the primary still knows.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lockstep.batch import Batch, BatchBuilder, Buffer
from lockstep.config import Node
from lockstep.flow.key import describe, is_tcp_key
from lockstep.streams import DIGESTS, EVENTS, PRIMARY, RELEASED, SECONDARY, CommandError, Cut, Event, Gap, Item, Output
from lockstep.wire import arp, ethernet, frame, icmp, tcp
from lockstep.wire.frame import Frame, dissect
from lockstep.withheld import Withheld
from services.comparer.digest import Mismatch, Told, Undigest
from services.comparer.ease import SILENCE, STALE, STALL, can_be_eased, ease, speaks_for_itself, spoken
from services.comparer.evidence import Evidence
from services.comparer.flow import (
    DIFFERS,
    DIVERGED,
    PASSED,
    PROTECTED,
    RELEASE,
    UNPROTECTED,
    Finding,
    Flow,
    Held,
)
from services.comparer.fragments import Reassembly
from services.comparer.lane import Lane
from services.comparer.passthrough import Rules
from services.comparer.side import Kept
from services.comparer.table import FlowTable, is_syn
from services.comparer.tcp import RESET_UNDER_WAY, TcpFlow, without_multipath
from services.comparer.window import with_window
from services.redirector.digest import Hasher

#: Divergences that `status` shows.
MOST_REMEMBERED = 32
#: Bytes of each side that a divergence shows.
MOST_SHOWN = 128
#: MAC addresses of the primary that are remembered.
MOST_VOICES = 64
#: Frames dealt with carefully before a flow goes into the lane, and how many more once it has come from there.
CALM, AGITATED = 16, 512
#: Bytes of a coming epoch that wait for its commit.
MOST_EARLY = 4 << 20


_NO_DATAGRAM = (frame.MALFORMED, frame.FRAGMENT, frame.CHATTER)

#: `primary_frames + MADE == released + held + every dropped_…`, always.
MADE = ("split_frames", "window_updates", "secondary_acks", "secondary_asked", "repeated_syns", "probes")
COUNTERS = (
    "primary_frames",
    "secondary_frames",
    "released",
    "unchecked",
    "held_frames",
    "split_frames",
    "lowered_acks",
    "window_updates",
    "secondary_acks",
    "repeated_syns",
    "probes",
    "divergences",
    "unprotected_flows",
    "passed_flows",
    "stripped_mptcp",
    "checkpoint_requests",
    "commits",
    "dropped_malformed",
    "dropped_limit",
    "dropped_evicted",
    "dropped_fragments",
    "dropped_full",
    "dropped_keep_alive",
    "dropped_stale",
    "dropped_reset",
    "dropped_overtaken",
    "refused_flows",
    "secondary_malformed",
    "secondary_other_epoch",
    "secondary_asked",
    "gaps_primary",
    "gaps_secondary",
    "ignored_cuts",
)


class Core:
    """See the module. No I/O; `now` is monotonic seconds."""

    def __init__(self, config: Node) -> None:
        self._config = config.comparer
        self._rules = Rules(self._config.passthrough)
        self.counters = dict.fromkeys(COUNTERS, 0)
        digests = self._config.secondary == "digest"
        self._undigest = Undigest(self.counters, self._config.max_bytes) if digests else None
        self._lane = Lane(self, self._config.max_flows, self._config.max_bytes, digests=digests)
        self._lane.ask = self._rules.any
        self._table = FlowTable(self._config, self.counters, self._lane)
        self._primary_fragments = Reassembly(self._config.compare_timeout)
        self._secondary_fragments = Reassembly(self._config.compare_timeout)
        self.epoch = 0
        self._frame = Frame()
        self._number = 0
        #: (when to look at its head, tie-breaker, flow); only the earliest entry of a flow counts.
        self._due: list[tuple[float, int, Flow]] = []
        self._ties = 0
        #: A prepared cut: (its epoch, number of the first frame behind it).
        self._prepared: tuple[int, int] | None = None
        #: The end of that cut, or of one before it, may have been lost, and may have been a commit.
        self._undecided = False
        #: When the end of a gap was seen; of several within `compare_timeout`, the first.
        self._lost_at = -math.inf
        self._epoch_known = False
        self._early: deque[Batch] = deque()
        self._early_bytes = 0
        self._withheld = Withheld()
        self._checkpoint_asked = False
        #: The secondary is lost: everything leaves unchecked until a checkpoint makes a new one.
        self._alone = False
        #: MAC addresses in whose name the primary has spoken to its neighbours.
        self._voices: set[bytes] = set()
        self._recent: deque[dict[str, Any]] = deque(maxlen=MOST_REMEMBERED)
        self._evidence = Evidence() if self._config.capture_dir is not None else None
        # Of the push at work: what leaves, what is to be told, and of the batch the frames not yet dealt with.
        self._out = BatchBuilder()
        self._ready: list[Batch] = []
        self._events: list[Event] = []
        #: Frames that hashes have proven are heard: until all are, their flow stays on the careful path.
        self._hearing = False
        self._calmed: TcpFlow | None = None

    # --- the core's interface

    def push(self, stream: str, item: Item, now: float) -> list[Output]:
        """Take a batch, cut or gap of `primary` or `secondary`; in digest mode `digests` is in its place."""
        self._table.start(now)
        if stream == DIGESTS and self._undigest is not None:
            stream = SECONDARY
        if isinstance(item, Batch):
            if self._evidence is not None and (stream == PRIMARY or self._undigest is None):
                self._evidence.note(stream, item, now)
            if stream == PRIMARY:
                return self._primary(item, now)
            if stream == SECONDARY:
                self._secondary_of_epoch(item, now)
                return self._outputs()
        elif isinstance(item, Cut):
            if stream == PRIMARY:
                self._cut(item, now)
                return self._outputs()
            if stream == SECONDARY:
                return []  # the epoch that its messages carry says the same
        elif isinstance(item, Event) and stream == EVENTS:
            self._told(item, now)
            return []
        elif isinstance(item, Gap) and stream in (PRIMARY, SECONDARY):
            self._gap(stream, item, now)
            return self._outputs()
        raise AssertionError(f"the comparer takes no {type(item).__name__} on {stream}")

    def tick(self, now: float, heard: float | None = None) -> list[Output]:
        """Find heads that waited too long, and flows that are idle."""
        heard = now if heard is None else heard
        self._lane.tick(now, heard)
        while self._due and self._due[0][0] <= now:
            when, _, flow = heapq.heappop(self._due)
            if when != flow.timed:
                continue  # an earlier look has taken its place
            flow.timed = math.inf
            if not flow.held or flow.state != PROTECTED:
                continue
            if self._due_at(flow.held[0]) <= heard:
                self._overdue(flow)
                if flow.held and flow.state == PROTECTED:
                    self._watch(flow, now)
                continue
            if isinstance(flow, TcpFlow) and flow.held[0].arrived + STALL <= now:
                self._ease(flow, now)
            if flow.held and flow.state == PROTECTED:
                # It may be due, and not be judged before more is heard.
                self._watch(flow, now, looked=True)
        if self._withheld.due is not None and self._withheld.due <= now:
            self._withheld.due = None
            if self._undecided:
                self._judge_anew(now)
                self._prepared, self._undecided = None, False
            self._ask_for_checkpoint("cut")
        self._table.sweep(now)
        self._primary_fragments.expire(now)
        self._secondary_fragments.expire(now)
        return self._outputs()

    def _overdue(self, flow: Flow) -> None:
        """A head that nobody matched is a divergence; a keep-alive, or a RST again, is not missed."""
        head = flow.held[0]
        if flow.reset_at is not None and head.arrived <= flow.reset_at + RESET_UNDER_WAY:
            if isinstance(flow, TcpFlow):
                flow.dropped(head)
            self._drop_head(flow, "dropped_reset")  # a primary that goes on has not taken the client's RST
        elif isinstance(flow, TcpFlow) and (counter := flow.not_missed(head)) is not None:
            self._drop_head(flow, counter)
        else:
            self._diverge(flow, self._finding(flow))

    def _told(self, event: Event, now: float) -> None:
        """The rewriter passed a client's RST on: what the primary said last may have no counterpart."""
        key = event.fields.get("key")
        if event.name != "reset_by_client" or not is_tcp_key(key):
            return
        self._lane.promote_key(key, now)
        flow = self._table.flows.get(key)
        if flow is not None:
            flow.reset_at = now

    def _drop_head(self, flow: Flow, counter: str) -> None:
        """Drop a head that nobody will miss; the others go on."""
        before = flow.kept()
        frames = flow.take_head().frames()
        self._table.held -= frames
        self._table.kept += flow.kept() - before
        self.counters[counter] += frames
        self._drain(flow)

    def next_deadline(self) -> float | None:
        """See Core in lockstep.streams."""
        first = self._due[0][0] if self._due else None
        for moment in (
            self._lane.next_deadline(),
            self._table.next_sweep(),
            self._primary_fragments.next_deadline(),
            self._secondary_fragments.next_deadline(),
            self._withheld.due,
        ):
            if moment is not None and (first is None or moment < first):
                first = moment
        return first

    def command(self, op: str, arguments: Mapping[str, Any], now: float) -> tuple[dict[str, Any], list[Output]]:
        """`checkpoint`: ask for one. `failover`: the secondary is lost; release everything, unprotected."""
        if op == "checkpoint":
            self._ask_for_checkpoint("asked for")
            return {"requested": True}, self._outputs()
        if op == "failover":
            self._alone = True
            self._release_all(now)
            self._decided(now)
            self._events.append(Event("failover", {"survivor": "primary", "epoch": self.epoch}))
            return {"survivor": "primary", "epoch": self.epoch}, self._outputs()
        raise CommandError(f"the comparer has no `{op}`")

    def reload(self, config: Node) -> None:
        """Take new limits, time-outs and rules; rules are asked for new flows."""
        self._config = self._table.config = config.comparer
        self._rules = Rules(self._config.passthrough)
        self._lane.ask = self._rules.any
        self._primary_fragments.lifetime = self._secondary_fragments.lifetime = self._config.compare_timeout

    def undelivered(self, stream: str, item: Batch | Cut, now: float) -> list[Output]:
        """Released frames that the full link refused are lost, and counted; TCP sends them again."""
        if isinstance(item, Batch):
            self.counters["released"] -= len(item)
            self.counters["dropped_full"] += len(item)
        return []

    def status(self) -> dict[str, Any]:
        """Gauges, and the last divergences."""
        return {
            "held": self._table.held + self._lane.waiting + self._primary_fragments.waiting + self._withheld.frames,
            "kept_bytes": self._table.kept + self._lane.kept() + self._withheld.bytes,
            "flows": len(self._table.flows) + self._lane.count,
            "flows_in_the_lane": self._lane.count,
            "half_open": len(self._table.half_open),
            "passthrough": self._rules.counts,
            "on_divergence": self._config.on_divergence,
            "divergences": list(self._recent),
        }

    def follows(self, key: bytes) -> bool:
        """Whether the flow of this key (`lockstep.flow.key`) is known, in the lane or out of it."""
        return key in self._table.flows or self._lane.knows(key)

    # --- primary

    def _primary(self, batch: Batch, now: float) -> list[Output]:
        """Judge each frame. A batch that leaves as it came is passed on without a copy."""
        if not self._epoch_known and len(batch):  # one without frames marks a gap, and nothing else
            self._epoch_known = True
            self.epoch = batch.epoch
            self._hear_early(now)
        self.counters["primary_frames"] += len(batch)
        if len(batch) and batch.epoch > self.epoch:
            self._cut(Cut(batch.epoch, "commit"), now)  # the mirror has told it, and it was lost on the way
        if self._withheld.active:
            self._withhold(batch, now)
        else:
            self._judge(batch, now)
        return self._outputs()

    def _withhold(self, batch: Batch, now: float) -> None:
        """Keep a batch until it is known of which epoch it is."""
        if not len(batch):
            return
        if self._withheld.add(batch, now + self._config.compare_timeout):
            self.counters["held_frames"] += len(batch)
        else:
            self.counters["dropped_limit"] += len(batch)
            self._ask_for_checkpoint("limit")

    def _decided(self, now: float) -> None:
        """Judge what was withheld."""
        for batch in self._withheld.end():
            # Behind what has left by now.
            self._ready += [*self._lane.leaving(), *self._out.take()]
            self._judge(batch, now)

    def _judge_anew(self, now: float) -> None:
        """Judge what was withheld by nothing that the secondary has said so far."""
        self._lane.promote_waiting(now)
        self._forget_secondary()
        self._decided(now)

    def _judge(self, batch: Batch, now: float) -> None:
        """Let out what is proven of a batch, and hold the rest; all of it, if nobody is left to compare with."""
        if self._alone:
            self._number += len(batch)
            self.counters["unchecked"] += len(batch)
            self._ready.append(batch)
            return
        first = self._number + 1
        waiting = self._lane.waiting
        self._lane.room = self._config.max_flows - len(self._table.flows) - self._lane.count
        self._lane.primary(batch, now, first)
        self._number = first + len(batch) - 1
        self.counters["held_frames"] += max(0, self._lane.waiting - waiting)

    def primary_chatter(self, data: Buffer, f: Frame) -> None:
        """Link chatter of the primary leaves unchecked; its neighbours may be asked in the name it gives."""
        self.counters["unchecked"] += 1
        if len(self._voices) < MOST_VOICES:
            self._voices.add(bytes(data[f.start + 6 : f.start + 12]))

    def careful_primary(self, kept: Kept, index: int, start: int, end: int, now: float) -> None:
        """Judge a primary frame that is not for the lane. It begins, with its virtio-net header, at `start`."""
        f, data, vnet = self._frame, kept.batch.data, kept.batch.vnet
        self._number = kept.first + index
        kind = dissect(f, data, start + vnet, end)
        if kind == frame.MALFORMED:
            self.counters["dropped_malformed"] += 1
        elif kind == frame.FRAGMENT:
            self._primary_fragment(data, start, now)
        else:
            flow = self._followed(f, data, now)
            if flow is None:
                return
            if not self._leaves(flow, f, data, now):
                self._hold(flow, f, bytes(data[start:end]), vnet, now)
            elif self._out:
                self._out.append(data[start:end], vnet)  # behind what has left of this flow just now
            else:
                self._lane.leave(kept, index, start)
            if self._undigest is not None and kind == frame.TCP and flow.state in (PROTECTED, DIVERGED):
                dissect(f, data, start + vnet, end)
                self._hear_told(self._undigest.primary(flow.key, f, data), now)
                if self._table.flows.get(flow.key) is not flow:
                    return  # it went into the lane
            self._calm(flow)

    def promoted(
        self, flow: TcpFlow, said: list[tuple[Batch, int, int]], held: list[Held], now: float, late: bool
    ) -> None:
        """Go on carefully with a flow of the lane: what the secondary said, and what of the primary waits."""
        self._table.flows[flow.key] = flow
        flow.calm = CALM if late else -AGITATED
        flow.touched = now
        self._table.kept += flow.kept()
        if self._undigest is not None:
            self._undigest.adopt(flow, held)
            said = self._frames_of(said, now)
        for batch, start, end in said:
            dissect(self._frame, batch.data, start + batch.vnet, end)
            if flow.state == PROTECTED:
                self._note(flow, self._frame, batch.data, now)
        for head in held:
            self._queue(flow, head, now)

    def flow_limit(self) -> int:
        """Bytes kept for one flow."""
        return self._config.max_flow_bytes

    def _calm(self, flow: Flow) -> None:
        """Count a frame that was dealt with carefully; after enough of them an ordinary flow goes into the lane.

        What has left carefully goes first: frames of one flow leave in order.
        """
        if not isinstance(flow, TcpFlow):
            return
        flow.calm += 1
        if self._hearing:
            self._calmed = flow
        elif flow.calm >= CALM and flow.is_ordinary():
            self._into_the_lane(flow)

    def _into_the_lane(self, flow: TcpFlow) -> None:
        if self._undigest is not None and not self._undigest.release(flow):
            return
        if self._lane.demote(flow):
            self._ready += [*self._lane.leaving(), *self._out.take()]
            self._table.take_out(flow)

    def _primary_fragment(self, data: Buffer, start: int, now: float) -> None:
        """Hold a fragment until its datagram is whole; that is judged, and leaves as it came."""
        whole = self._primary_fragments.take(self._frame, data, start, now)
        if whole is None:
            return
        f = self._frame
        if dissect(f, whole.frame, 0, len(whole.frame)) in (frame.MALFORMED, frame.FRAGMENT):
            self.counters["dropped_malformed"] += len(whole.originals)
            return
        if f.kind == frame.CHATTER:
            self.counters["unchecked"] += len(whole.originals)
            self._append(whole.originals)
            return
        flow = self._followed(f, whole.frame, now, len(whole.originals))
        if flow is None:
            return
        if self._leaves(flow, f, whole.frame, now):
            if flow.state != PROTECTED:
                self.counters["unchecked"] += len(whole.originals) - 1
            self._append(whole.originals)
        else:
            self._hold(flow, f, whole.frame, 0, now, whole.originals)

    def _followed(self, f: Frame, data: Buffer, now: float, frames: int = 1) -> Flow | None:
        """The flow of a primary frame; None if it was refused, and these frames dropped."""
        known = len(self._table.flows)
        flow = self._table.of(f, data, now)
        if flow is None:
            self.counters["refused_flows"] += 1
            self.counters["dropped_limit"] += frames
            self._ask_for_checkpoint("limit")
        elif len(self._table.flows) != known and self._rules.pass_unchecked(flow.key):
            self._pass(flow)
        return flow

    def _pass(self, flow: Flow) -> None:
        """Let a flow leave unchecked, by rule. The rewriter resets a connection of this kind at failover."""
        flow.state = PASSED
        self.counters["passed_flows"] += 1
        if isinstance(flow, TcpFlow):
            self._events.append(Event("unprotected", describe(flow.key) | {"key": flow.key, "reason": "passthrough"}))

    def _leaves(self, flow: Flow, f: Frame, data: Buffer, now: float) -> bool:
        """Whether this frame may leave at once."""
        flow.touched = now
        syn = is_syn(f, data)
        if flow.state == UNPROTECTED and syn:
            flow.state = PROTECTED  # a new connection
            self._events.append(Event("protected", describe(flow.key) | {"key": flow.key}))
        if flow.state in (UNPROTECTED, PASSED):
            self.counters["unchecked"] += 1
            return True
        if flow.held or flow.state == DIVERGED:
            return False
        if syn:
            return False  # `_hold` looks at its options, and the flow keeps it
        if flow.verdict(data, f.kind, f.l4, f.payload, f.payload_end) != RELEASE or not flow.as_it_is(data, f.l4):
            return False
        before = flow.kept()
        flow.released(data, f.kind, f.l4, f.payload, f.payload_end)
        self._table.kept += flow.kept() - before
        return True

    def _hold(
        self,
        flow: Flow,
        f: Frame,
        data: bytes,
        vnet: int,
        now: float,
        originals: tuple[tuple[bytes, int], ...] = (),
    ) -> None:
        """Queue a frame behind the flow's others, within the limits, and let out what may leave."""
        base = f.start - vnet
        held = Held(
            data, vnet, f.l4 - base, f.payload - base, f.payload_end - base, f.kind, now, self._number, originals
        )
        if flow.state == PROTECTED and f.kind == frame.TCP and data[held.l4 + tcp.FLAGS] & tcp.SYN:
            self._special_syn(flow, held)
        self.counters["held_frames"] += self._queue(flow, held, now)

    def _queue(self, flow: Flow, held: Held, now: float) -> int:
        """Queue a head-to-be, within the limits, and let out what may leave; how many frames were queued."""
        size = len(held.data)
        if self._table.over(flow, size, now):
            self._diverge(flow, Finding("limit"))
            if flow.state != UNPROTECTED:
                self.counters["dropped_limit"] += held.frames()
                return 0
        if flow.state == UNPROTECTED:
            self.counters["unchecked"] += held.frames()
            self._append(held.originals or ((held.data, held.vnet),))
            return 0
        flow.hold(held)
        self._table.kept += size
        self._table.held += held.frames()
        if flow.state == PROTECTED and len(flow.held) == 1:
            self._drain(flow)
            if flow.held and flow.state == PROTECTED:
                self._watch(flow, now)
        elif flow.state == PROTECTED and held.kind == frame.TCP and held.data[held.l4 + tcp.FLAGS] & tcp.SYN:
            self._watch(flow, now)  # it may answer for a SYN in front of it
        return held.frames()

    def _special_syn(self, flow: Flow, held: Held) -> None:
        """Options that the rewriter can't serve: authenticated segments, and MPTCP with its own numbers."""
        options = held.data, held.l4 + tcp.HEADER, held.payload
        if tcp.has_option(*options, tcp.MD5, tcp.AUTHENTICATION):
            self._unprotect(flow, "authenticated")
        elif tcp.has_option(*options, tcp.MULTIPATH):
            if self._config.mptcp == "unprotect":
                self._unprotect(flow, "mptcp")
            else:
                held.data = without_multipath(held.data, held.vnet, held.l4, held.payload)
                self.counters["stripped_mptcp"] += 1

    def _due_at(self, head: Held) -> float:
        """When a head is overdue. Once it gets as long anew: from the end of a gap on, what was lost may come again."""
        timeout = self._config.compare_timeout
        return max(head.arrived, min(self._lost_at, head.arrived + timeout)) + timeout

    def _watch(self, flow: Flow, now: float, *, looked: bool = False) -> None:
        """Look at this flow again when its head is stuck, and when it is due. `looked`: not at once."""
        head = flow.held[0]
        when = self._due_at(head)
        if looked and when <= now:
            when = now + STALL
        if can_be_eased(head) or (isinstance(flow, TcpFlow) and flow.crosses()):
            # The longer it is stuck the rarer: many flows that wait for long must not be much work.
            when = min(when, max(head.arrived, now) + max(STALL, (now - head.arrived) / 4))
        if when < flow.timed:
            flow.timed = when
            self._ties += 1
            heapq.heappush(self._due, (when, self._ties, flow))

    def _ease(self, flow: TcpFlow, now: float) -> None:
        """Let out what is proven of a head that is stuck, drop what is stale, and let out whatever that frees."""
        head = flow.held[0]
        if head.arrived + STALE <= now and (counter := flow.not_missed(head)) is not None:
            self._drop_head(flow, counter)
            return
        if head.arrived + STALE <= now and len(flow.held) > 1 and flow.is_stale(head):
            self._drop_head(flow, "dropped_stale")
            return
        if head.arrived + STALE <= now and (by := flow.overtaking()) is not None:
            self._overtake(flow, by)
            return
        eased = ease(flow, head, self._frame, patient=head.arrived + SILENCE <= now)
        if eased is None:
            if head.arrived + SILENCE <= now:
                self._probe(flow)
            return
        leaving, staying = eased
        before = flow.kept()
        window = flow.window.allowed(leaving, head.l4) if flow.window is not None else None
        if window is not None:
            leaving = with_window(leaving, head.vnet, head.l4, window)
        self._out.append(leaving, head.vnet)
        end = head.payload_end - max(0, len(staying) - head.payload)
        flow.released(leaving, head.kind, head.l4, head.payload, end)
        if staying:
            self.counters["split_frames"] += 1
            flow.held_bytes -= len(head.data) - len(staying)
            head.data, head.payload_end = staying, len(staying)
        else:
            self.counters["lowered_acks"] += 1
            flow.take_head()
            self._table.held -= 1
        self._table.kept += flow.kept() - before
        self._drain(flow)

    def _overtake(self, flow: TcpFlow, by: Held) -> None:
        """Drop what stands in front of a held segment; the others go on."""
        before = flow.kept()
        while flow.held[0] is not by:
            frames = flow.take_head().frames()
            self._table.held -= frames
            self.counters["dropped_overtaken"] += frames
        self._table.kept += flow.kept() - before
        self._drain(flow)

    # --- secondary

    def _secondary_of_epoch(self, batch: Batch, now: float) -> None:
        """Take what belongs to this epoch, keep what belongs to the next, drop what is past."""
        if self._alone:
            self.counters["secondary_other_epoch"] += len(batch)
        elif batch.epoch == self.epoch:
            self._secondary(batch, now)
        elif batch.epoch > self.epoch and self._early_bytes + len(batch.data) <= MOST_EARLY:
            self._early.append(Batch(bytes(batch.data), batch.lengths[:], batch.vnet, batch.epoch))
            self._early_bytes += len(batch.data)
        else:
            self.counters["secondary_other_epoch"] += len(batch)

    def _secondary(self, batch: Batch, now: float) -> None:
        self._lane.room = self._config.max_flows - len(self._table.flows) - self._lane.count
        self._lane.secondary(batch, now)
        self.counters["secondary_frames"] += len(batch) - self._lane.keys
        self._lane.keys = 0

    def careful_secondary(self, batch: Batch, start: int, end: int, now: float) -> None:
        """Take a frame of the secondary that is not for the lane. It begins, with its virtio-net header, at `start`."""
        f, data, vnet = self._frame, batch.data, batch.vnet
        kind = dissect(f, data, start + vnet, end)
        if kind == frame.CHATTER:
            if asks(f, data) and bytes(data[f.start + 6 : f.start + 12]) in self._voices:
                self.counters["secondary_asked"] += 1
                self._out.append(data[start:end], vnet)
        elif kind == frame.MALFORMED:
            self.counters["secondary_malformed"] += 1
        elif kind == frame.FRAGMENT:
            whole = self._secondary_fragments.take(f, data, start, now)
            if whole is not None and dissect(f, whole.frame, 0, len(whole.frame)) not in _NO_DATAGRAM:
                self._hear(f, whole.frame, 0, now)
        else:
            self._hear(f, data, start, now)

    def new_key(self, hashed: Hasher) -> None:
        """The secondary's records are hashed by this from now on."""
        assert self._undigest is not None
        self._undigest.new_key(hashed)

    def careful_record(self, batch: Batch, start: int, end: int, now: float) -> None:
        """Take a record of the secondary (digest mode) that is not for the lane; it begins at `start`."""
        assert self._undigest is not None
        self._hear_told(self._undigest.secondary(batch.data, start, end, batch.vnet), now)

    def _hear_told(self, told: Told, now: float) -> None:
        """Take the secondary's frames that hashes have proven."""
        self._hearing = True
        for batch in self._proven(told, now):
            self.careful_secondary(batch, 0, batch.lengths[0], now)
        self._hearing = False
        flow, self._calmed = self._calmed, None
        if flow is not None and flow.calm >= CALM and flow.is_ordinary():
            self._into_the_lane(flow)

    def _frames_of(self, records: list[tuple[Batch, int, int]], now: float) -> list[tuple[Batch, int, int]]:
        """The frames that records of the lane give at once, likewise as batch, start and end."""
        assert self._undigest is not None
        frames, came = [], self.counters["digests"]
        for records_of, start, end in records:
            told = self._undigest.secondary(records_of.data, start, end, records_of.vnet)
            frames += [(batch, 0, batch.lengths[0]) for batch in self._proven(told, now)]
        self.counters["digests"] = came  # the lane has counted them
        return frames

    def _proven(self, told: Told, now: float) -> Iterator[Batch]:
        """Each frame that hashes have proven, in a batch of its own; what differs is told."""
        for one in told:
            if isinstance(one, Mismatch):
                self._events.append(Event("digest_mismatch", describe(one.key) | {"seq": one.seq, "size": one.size}))
                continue
            batch = Batch.of([one[0]], one[1], self.epoch)
            if self._evidence is not None:
                self._evidence.note(SECONDARY, batch, now)
            yield batch

    def _hear(self, f: Frame, data: Buffer, start: int, now: float) -> None:
        """Take what the secondary said in the frame that begins at `start`, and let out what that proves."""
        known = len(self._table.flows)
        flow = self._table.of(f, data, now)
        if flow is None:
            self.counters["refused_flows"] += 1
            self._ask_for_checkpoint("limit")
            return
        if len(self._table.flows) != known and self._rules.pass_unchecked(flow.key):
            self._pass(flow)
        if flow.state != PROTECTED:
            return
        flow.touched = now
        self._note(flow, f, data, now)
        if flow.held:
            head = flow.held[0]
            self._drain(flow)
            if flow.held and flow.state == PROTECTED and (flow.held[0] is not head or is_syn(f, data)):
                self._watch(flow, now)  # a SYN was to be looked at much later
        if not isinstance(flow, TcpFlow) or flow.state != PROTECTED:
            return
        if flow.held and flow.held[0].arrived + STALL <= now:
            self._stir(flow, f, data, start, now)
            return
        if (update := flow.window_update()) is not None:
            self.counters["window_updates"] += 1
            self._append([update])
        self._calm(flow)

    def _note(self, flow: Flow, f: Frame, data: Buffer, now: float) -> None:
        """Note what the secondary said, within the limits."""
        size = f.payload_end - f.payload
        if size and self._table.over(flow, size, now):
            self._diverge(flow, Finding("limit"))
            return
        before = flow.kept()
        found = flow.secondary(f, data, now)
        self._table.kept += flow.kept() - before
        if found is not None:
            self._diverge(flow, found)

    def _stir(self, flow: TcpFlow, f: Frame, data: Buffer, start: int, now: float) -> None:
        """The head is stuck, and the secondary speaks all the same: have the client say what it lacks (`ease`)."""
        if speaks_for_itself(flow, f, data):
            self.counters["secondary_acks"] += 1
            flow.spoke(data, f.l4)
            self._append([(spoken(flow.held[0], f, data, start), f.start - start)])
        elif is_syn(f, data):
            if flow.syn_frame is not None:
                self.counters["repeated_syns"] += 1
                self._append([flow.syn_frame])
        elif flow.repeats(f, data):
            self._probe(flow)

    def _probe(self, flow: TcpFlow) -> None:
        """Have the client repeat its ack, to both guests."""
        probe = flow.probe_of(flow.held[0])
        if probe is not None:
            self.counters["probes"] += 1
            self._append([probe])

    def _drain(self, flow: Flow) -> None:
        """Release held frames from the head on, as far as they are proven."""
        while flow.held and flow.state == PROTECTED:
            head = flow.held[0]
            verdict = flow.verdict(head.data, head.kind, head.l4, head.payload, head.payload_end)
            if verdict == DIFFERS:
                self._diverge(flow, self._finding(flow))
            if verdict != RELEASE:
                return
            before = flow.kept()
            flow.take_head()
            self._table.held -= head.frames()
            data = flow.leaves(head)
            self._append(head.originals or ((data, head.vnet),))
            self._table.kept += flow.kept() - before

    def _release_head(self, flow: Flow) -> None:
        """Move the head to what leaves. The caller keeps `kept`."""
        head = flow.take_head()
        self._table.held -= head.frames()
        self._append(head.originals or ((head.data, head.vnet),))

    def _append(self, frames: Iterable[tuple[bytes, int]]) -> None:
        for data, vnet in frames:
            self._out.append(data, vnet)

    # --- divergence

    def _finding(self, flow: Flow) -> Finding:
        head = flow.held[0]
        return flow.finding(head.data, head.kind, head.l4, head.payload, head.payload_end)

    def _diverge(self, flow: Flow, found: Finding) -> None:
        """Report a flow, once until the next commit, and do what `on_divergence` says."""
        if flow.state != PROTECTED:
            return
        self.counters["divergences"] += 1
        report = describe(flow.key) | {
            "reason": found.reason,
            "offset": found.offset,
            "primary": found.primary[:MOST_SHOWN].hex(),
            "secondary": found.secondary[:MOST_SHOWN].hex(),
            "epoch": self.epoch,
        }
        self._recent.append(report)
        packets = self._evidence.of(flow, found, self.epoch) if self._evidence is not None else {}
        self._events.append(Event("divergence", report | packets))
        if self._config.on_divergence == "unprotect":
            self._unprotect(flow, found.reason)
            return
        flow.state = DIVERGED
        if self._config.on_divergence == "checkpoint":
            self._ask_for_checkpoint(found.reason)

    def _unprotect(self, flow: Flow, reason: str) -> None:
        """Release a flow unchecked from now on. The rewriter hears of it and resets it at failover."""
        self._table.kept -= flow.kept()
        flow.state = UNPROTECTED
        self.counters["unprotected_flows"] += 1
        while flow.held:
            self.counters["unchecked"] += flow.held[0].frames()
            self._release_head(flow)
        flow.restart()
        self._table.kept += flow.kept()
        self._events.append(Event("unprotected", describe(flow.key) | {"key": flow.key, "reason": reason}))

    def _ask_for_checkpoint(self, reason: str) -> None:
        """One request at a time; the next commit answers it."""
        if not self._checkpoint_asked:
            self._checkpoint_asked = True
            self.counters["checkpoint_requests"] += 1
            self._events.append(Event("checkpoint_requested", {"reason": reason, "epoch": self.epoch}))

    def _gap(self, stream: str, gap: Gap, now: float) -> None:
        """Lost messages put flows in doubt: a checkpoint where there are any, else the time-out tells."""
        self.counters[f"gaps_{stream}"] += 1
        self._events.append(Event("gap", {"stream": stream, "reason": gap.reason, "lost": gap.lost}))
        if now >= self._lost_at + self._config.compare_timeout:
            self._lost_at = now
        if stream == PRIMARY and self._withheld.active and not self._undecided:
            # The cut's end may be what was lost. If nothing tells, what was withheld is to be proven anew.
            self._undecided = True
            self._withheld.due = now + self._config.compare_timeout
        if self._config.on_divergence == "checkpoint" and (self._table.flows or self._lane.count):
            self._ask_for_checkpoint("gap")

    # --- epochs

    def _cut(self, cut: Cut, now: float) -> None:
        """Follow prepare, commit and abort of the next epoch in the primary's stream."""
        if cut.phase == "prepare" and cut.epoch > self.epoch:
            # If nothing was heard of the end of the one before it, that may have been a commit.
            self._undecided = self._prepared is not None
            self._prepared = (cut.epoch, self._number + self._withheld.frames + 1)
            self._withheld.active = True
        elif cut.phase == "commit":
            self._commit(cut, now)
            return
        elif cut.phase == "abort" and self._prepared is not None and cut.epoch == self._prepared[0]:
            if not self._undecided:
                self._prepared = None
                self._decided(now)
        else:
            self.counters["ignored_cuts"] += 1
            return
        self._events.append(Event("cut", {"epoch": cut.epoch, "phase": cut.phase}))

    def _commit(self, cut: Cut, now: float) -> None:
        """Release, in the primary's order, what was said before the cut; the secondary is its copy now.

        Without its prepare the place of the cut is unknown, so nothing is released for it. The same
        goes for an epoch that has passed already (a mirror that restarted counts anew): the secondary
        was replaced all the same, and what the old one said proves nothing any more.
        """
        epoch = max(cut.epoch, self.epoch)
        before = self._prepared[1] if self._prepared is not None and self._prepared[0] == epoch else 0
        if self._undecided:
            # What was withheld in front of this cut is held now, and leaves with all else that stands there.
            self._judge_anew(now)
        self._lane.promote_waiting(now)
        leaving = []
        for flow in self._table.flows.values():
            while flow.held and flow.held[0].number < before:
                leaving.append(self._take_head(flow))
            if flow.state == UNPROTECTED:
                flow.restart()
            if flow.state != PASSED:
                flow.state = PROTECTED
            for head in flow.held:
                head.arrived = now
        self._forget_secondary()
        self._leave_in_order(leaving)
        self._alone = False
        self.counters["commits"] += 1
        self._checkpoint_asked = False
        self._prepared = None
        self._undecided = False
        self.epoch = epoch
        self._epoch_known = True
        # In front of what is told of the new epoch: who follows forgets here what was told of the old one.
        self._events.append(Event("cut", {"epoch": cut.epoch, "phase": cut.phase}))
        for flow in self._table.flows.values():
            if flow.held:
                self._watch(flow, now)
        self._decided(now)
        self._hear_early(now)

    def _forget_secondary(self) -> None:
        """What the secondary has said so far proves nothing any more."""
        for flow in self._table.flows.values():
            flow.committed()
        self._lane.committed()
        self._secondary_fragments.clear()
        if self._undigest is not None:
            self._undigest.forget_secondary()

    def _hear_early(self, now: float) -> None:
        """Take what the secondary has said in an epoch that begins, or becomes known, only now."""
        early, self._early, self._early_bytes = self._early, deque(), 0
        for batch in early:
            self._secondary_of_epoch(batch, now)

    def _take_head(self, flow: Flow) -> Held:
        """Take a head that leaves unproven, and follow the stream past it."""
        head = flow.take_head()
        self._table.held -= head.frames()
        flow.released(head.data, head.kind, head.l4, head.payload, head.payload_end)
        return head

    def _leave_in_order(self, leaving: list[Held]) -> None:
        """Send heads of several flows in the order in which the primary sent them."""
        leaving.sort(key=lambda head: head.number)
        for head in leaving:
            self._append(head.originals or ((head.data, head.vnet),))
        self._table.recount()

    def _release_all(self, now: float) -> None:
        """Nobody is left to compare with: what is held leaves, and no flow is known any more."""
        self._lane.promote_waiting(now)
        leaving = []
        for flow in self._table.flows.values():
            while flow.held:
                leaving.append(self._take_head(flow))
            flow.restart()
        self._lane.clear()
        self.counters["unchecked"] += sum(head.frames() for head in leaving)
        self._leave_in_order(leaving)
        fragments = self._primary_fragments.clear()
        self.counters["unchecked"] += len(fragments)
        self._append(fragments)
        if self._undigest is not None:
            self._undigest.clear()

    # --- outputs

    def _outputs(self) -> list[Output]:
        """What the push at work has to send: released frames first."""
        self.counters["dropped_fragments"] = self._primary_fragments.given_up
        if self._lane.chunks:
            self.counters["digests"] += self._lane.chunks
            self._lane.chunks = 0
        if self._lane.matched:
            self.counters["matched"] += self._lane.matched
            self._lane.matched = 0
        batches = self._lane.leaving()
        if self._ready or self._out:
            batches = [*self._ready, *batches, *self._out.take()]
            self._ready = []
        outputs: list[Output] = []
        for batch in batches:
            self.counters["released"] += len(batch.lengths)
            outputs.append((RELEASED, batch))
        if self._events:
            outputs += self._events
            self._events = []
        return outputs


def asks(f: Frame, data: Buffer) -> bool:
    """Whether a frame of link chatter asks a neighbour for its address: an ARP request, a neighbour solicitation."""
    if f.ethertype == ethernet.ARP:
        return f.end - f.l3 >= arp.SIZE and bytes(data[f.l3 + arp.OPERATION : f.l3 + arp.OPERATION + 2]) == arp.REQUEST
    return f.version == 6 and f.protocol == frame.IPPROTO_ICMPV6 and data[f.l4] == icmp.NEIGHBOUR_SOLICITATION
