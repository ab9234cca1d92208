"""The guards of the cores, and what stands in their place when `mutants.py` takes them out.

Each is exact text of one file, which stands there once, and other text for it. `where` tells of a scenario
whether it can show that the guard is missing; without it, any may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim.habits import LONG_PORT
from sim.scenario import FOREVER, Scenario


@dataclass(frozen=True)
class Guard:
    """One guard, and how it is taken out."""

    name: str
    file: str
    old: str
    new: str
    where: Callable[[Scenario], object] | None = None


def _cut(s: Scenario) -> object:
    return s.cuts or s.on_divergence == "checkpoint"


def _shapes(*shapes: str) -> Callable[[Scenario], object]:
    return lambda s: any(plan.shape in shapes for plan in s.plans)


def _in_the_lane(s: Scenario) -> object:
    return s.calm[0] <= 2


def _hashes(s: Scenario) -> bool:
    return s.said_as[0] == "digest"


def _prepare_lost(s: Scenario) -> object:
    """The comparer is started anew in the middle of a cut, after which the guest goes on early."""
    restarts = [when for when, who, _ in s.crashes if who == "comparer"]
    return s.eager and any(at < when < at + size for at, committed, size in s.cuts for when in restarts if committed)


def _crossing(s: Scenario) -> object:
    return s.ways["secondary", "in"].loss > 0.02 and _shapes("both", "both_open")(s)


def _of_one_byte(s: Scenario) -> object:
    return s.calm[0] <= 2 and s.one_sided and any(p.down and not any(p.guest_bytes) for p in s.plans)


def _forged(s: Scenario) -> object:
    return any(kind == "forged" for _, _, kind, _ in s.guest_agenda)


def _long_datagram(s: Scenario) -> object:
    return any(kind == "udp" and what[2] == LONG_PORT for _, kind, what in s.client_agenda)  # type: ignore[index]


_TCP = "services/comparer/tcp.py"
_SAID = "services/comparer/said.py"
_CORE = "services/comparer/core.py"
_TABLE = "services/comparer/table.py"
_EASE = "services/comparer/ease.py"
_WINDOW = "services/comparer/window.py"
_DATAGRAM = "services/comparer/datagram.py"
_REWRITER = "services/rewriter/core.py"
_MOVER = "services/rewriter/lane.py"
_CONNECTION = "services/rewriter/connection.py"
_REDIRECTOR = "services/redirector/core.py"
_MIRROR = "services/mirror/core.py"
_LANE = "services/comparer/lane.py"
_DIGEST = "services/comparer/digest.py"
_SIDE = "services/comparer/side.py"
_FRAGMENTS = "services/comparer/fragments.py"

#: The rule that no ack leaves ahead of the secondary's.
_ACK_RULE = "(self.acked is None or diff(ack, self.acked) > 0):\n            return WAIT"

GUARDS = (
    # 1: data
    Guard("data is not compared", _TCP, "found = self.said.check(place, buf, payload, end)", "found = EQUAL"),
    Guard("a different byte is let out", _SAID, "                if said == data[start:end]:", "                if True:"),
    Guard("a missing byte is let out", _SAID, "        return MISSING", "        return EQUAL"),
    Guard("the place of a FIN is ignored", _TCP, "                if self.fin != place:", "                if False:"),
    Guard("a RST needs no RST", _TCP, "            if self._reset_alike(seq, ack, flags) is None:", "            if False:"),
    Guard("a RST proves more than one", _TCP, "            if used is not None:", "            if False:"),
    Guard(
        "options of a SYN are not compared", _TCP,
        "        if any(other == said for _, other in self.syn_said):", "        if any(other[:5] == said[:5] for _, other in self.syn_said):"),
    Guard("a crossed SYN-ACK may say more than its SYN", _TCP, "self.syn == (seq, mark(without_ack(said)))", "self.syn is not None and self.syn[0] == seq", _shapes("both_open")),
    Guard("a payload is not compared", _DATAGRAM, "            if said == wanted:", "            if True:"),
    Guard("a payload proves more than one", _DATAGRAM, "            del self.said[index]", "            pass"),
    Guard("what the secondary answers its neighbours leaves", _CORE, "if asks(f, data) and bytes", "if bytes"),
    Guard(
        "the secondary asks in any name", _CORE,
        "bytes(data[f.start + 6 : f.start + 12]) in self._voices:", "True:"),
    Guard("half of a fragmented datagram leaves", _CORE, "        if whole is None:\n            return\n        f = self._frame",
           "        if whole is None:\n            self._append(self._primary_fragments.clear())\n            return\n        f = self._frame"),
    Guard("after a difference the flow goes on", _CORE, "if flow.held or flow.state == DIVERGED:", "if flow.held:", lambda s: s.secondary.fickle and s.on_divergence != "unprotect" and s.ways["secondary", "in"].loss >= 0.05),
    Guard("a flow is unprotected in silence", _CORE, 'self._events.append(Event("unprotected", describe(flow.key) | {"key": flow.key, "reason": reason}))', "pass"),
    Guard("a new connection stays unprotected", _CORE, "flow.state = PROTECTED  # a new connection", "pass"),
    Guard("a lost secondary is never found again", _CORE, "        self._alone = False\n        self.counters", "        self.counters"),
    # 2: acks and windows
    Guard("no ack is checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}", f"if False and {_ACK_RULE}"),
    Guard("the ack of a pure ACK is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and (end > payload or flags & (tcp.FIN | tcp.RST)) and {_ACK_RULE}"),
    Guard("the ack of data is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and end == payload and {_ACK_RULE}"),
    Guard("the ack of a FIN is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and not flags & tcp.FIN and {_ACK_RULE}", _crossing),
    Guard("the ack of a RST is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and not flags & tcp.RST and {_ACK_RULE}"),
    Guard("the ack of a crossed SYN-ACK is not checked", _TCP, "if self._adds_an_ack(seq, said) and self._has_acked(said) else", "if self._adds_an_ack(seq, said) else", _shapes("both_open")),
    Guard("acks are compared unsigned", _TCP, _ACK_RULE, "(self.acked is None or ack > self.acked):\n            return WAIT"),
    Guard("the ack of a FIN is lowered", _EASE, "        if _is_ahead(flow, head):  # the client's", "        if False:  # the client's", _crossing),
    Guard("what stands in front of a FIN waits for its ack", _EASE, "            leaving, staying = _without_fin(head, f)", "            return None", lambda s: _crossing(s) and s.compare_timeout == FOREVER),
    Guard("a stuck RST leaves where the secondary has none", _EASE, "    if not flow.reset_matches(head.data, head.l4):\n        return None", "    pass", _shapes("guest_gives_up", "guest_aborts")),
    Guard("the ack of a stuck RST is not lowered", _EASE, "        return _lowered_reset(flow, head)", "        return head.data, b\"\"", _shapes("guest_gives_up")),
    Guard("an ack is lowered too little", _EASE, "    _ACK.pack_into(frame, at, flow.acked)", "    _ACK.pack_into(frame, at, (flow.acked + 1) & 0xFFFFFFFF)"),
    Guard("the checksum of a lowered ack stays", _EASE, "moved32(_CHECKSUM.unpack_from(frame, field)[0], ack, flow.acked)", "_CHECKSUM.unpack_from(frame, field)[0]"),
    Guard("the window is not lowered", _WINDOW, "return lowered if lowered < window else None", "return None"),
    Guard("unproven parts leave with the proven", _EASE, "head.vnet, proven // step * step or proven)", "head.vnet, (proven // step + 1) * step)", lambda s: s.primary.offload.partial and s.one_sided),
    Guard("a stuck head leaves unproven", _EASE, "    if proven < size:", "    if False:"),
    Guard("a FIN leaves with the first part", "lockstep/wire/gso.py", "payload[:at], 0, 0, tcp.FIN | tcp.PSH, step)", "payload[:at], 0, 0, 0, step)", lambda s: s.primary.offload.gso and s.one_sided),
    Guard("the secondary's ACKs leave wherever they stand", _EASE, "    return flow.reached(buf, f.l4)", "    return True"),
    # 3: order
    Guard("what is proven overtakes the head", _CORE, "if flow.held or flow.state == DIVERGED:", "if flow.state == DIVERGED:"),
    # 4: conservation
    Guard("frames that a full link refused stay counted", _CORE, '            self.counters["released"] -= len(item)', "            pass", lambda s: s.stress),
    Guard("evicted frames are not counted", _TABLE, '        self._counters["dropped_evicted"] += dropped', "        pass"),
    # 5: rewriting
    Guard("seq is not moved", _CONNECTION, "            _move(buf, l4, l4 + _SEQ, self.delta, partial)", "            pass"),
    Guard("ack is not moved", _CONNECTION, "            _move(buf, l4, l4 + _ACK_NUMBER, -self.delta, partial)", "            pass"),
    Guard("TSval is not moved", _CONNECTION, "_move(buf, l4, timestamps + 2, self.delta_ts, partial)", "pass"),
    Guard("TSecr is not moved", _CONNECTION, "_move(buf, l4, timestamps + 6, -self.delta_ts, partial)", "pass"),
    Guard("SACK edges are not moved", _CONNECTION, "for edge in range(2 * blocks):", "for edge in range(0):"),
    Guard("the first SACK block alone is moved", _CONNECTION, "for edge in range(2 * blocks):", "for edge in range(2 * min(blocks, 1)):"),
    Guard("the checksum is not moved", _CONNECTION, "    if not partial:", "    if False:"),
    Guard("a partial checksum is moved", _CONNECTION, "    if not partial:", "    if True:"),
    Guard("the clock steps back at the failover", _CONNECTION, "if speaking and self.client_tsecr is not None:", "if False:", lambda s: s.failover is not None and s.detection < 0.001 and any(p.stamps for p in s.plans)),
    Guard("an error's quotation is not moved", _CONNECTION, "    if new is not None and new != old:", "    if False:", lambda s: s.complaints),
    Guard("a refusal does not reach the secondary", _CONNECTION, "        return self.waiting and self.opened_by_guest and flags", "        return False and flags", _shapes("guest_refused")),
    Guard("a released connection is not reset at failover", _REWRITER, "if self._lane.speaking and not syn and self._is_doomed(key):", "if False:", lambda s: s.failover is not None and s.on_divergence == "unprotect"),
    Guard("a connection that waits for its answer is ordinary", _MOVER, "            if connection.waiting or not connection.known", "            if not connection.known"),
    Guard("a connection that is to be reset is ordinary", _MOVER, " or (speaking and connection.doomed):", ":", lambda s: s.failover is not None and s.on_divergence == "unprotect"),
    Guard("answers to half-open connections are ordinary", _MOVER, "or self._half_open or (speaking", "or (speaking"),
    Guard("SYNs and RSTs are ordinary", _MOVER, "found = None if flags & _SYN_OR_RST else self._open", "found = self._open"),
    # 6: epochs
    Guard("frames of another epoch are heard", _CORE, "        elif batch.epoch == self.epoch:", "        elif True:", _cut),
    Guard("what the old secondary said counts on", _TCP, "        self.said.clear()\n        self.acked = self.primary_acked\n", "        self.acked = self.primary_acked\n", _cut),
    Guard("what the old secondary acked counts on", _TCP, "        self.acked = self.primary_acked\n        self.fin = self.fin_left", "        self.fin = self.fin_left", _cut),
    Guard("the old secondary's FIN counts on", _TCP, "        self.fin = self.fin_left\n        self.resets", "        self.resets", _cut),
    Guard("a FIN that a commit has covered is forgotten", _TCP, "        self.fin = self.fin_left\n        self.resets", "        self.fin = None\n        self.resets", _cut),
    Guard("the old secondary's SYN counts on", _TCP, "        self.probe = None\n        self.syn_said = ()", "        self.probe = None", _cut),
    Guard("a commit lets out what is behind the cut", _CORE, "while flow.held and flow.held[0].number < before:", "while flow.held:", _prepare_lost),
    Guard("a commit lets nothing out", _CORE, "while flow.held and flow.held[0].number < before:", "while False:", _cut),
    Guard("an abort counts as a commit", _CORE, '        elif cut.phase == "commit":', '        elif cut.phase in ("commit", "abort"):'),
    Guard("offsets outlive a commit", _REWRITER, "            self._table.become_copies()", "            pass"),
    Guard("what the primary says behind a prepared cut is judged at once", _CORE, "        if self._withheld.active:", "        if False:", lambda s: s.cuts and s.eager and s.one_sided),
    Guard("what comes behind a prepared cut has the old numbers", _REWRITER, "                if not self._withheld.active:", "                if True:", lambda s: s.cuts and not s.crashes and not s.stress),
    # 7: one voice
    Guard("the uplink is heard before the failover", _REDIRECTOR, "            if not self._speaking:", "            if False:", lambda s: s.flooded),
    Guard("the ingress is heard after the failover", _REDIRECTOR, 'if self._speaking:\n            self.counters["ingress_ignored"]', 'if False:\n            self.counters["ingress_ignored"]', lambda s: s.failover is not None and s.detection < 0.001),
    Guard("the secondary speaks before the failover", _REDIRECTOR, 'if self._speaking:\n            self.counters["uplink_frames_out"]', 'if True:\n            self.counters["uplink_frames_out"]'),
    Guard("the guest's frames go to the network", _MIRROR, "return [(PRIMARY, item)]", "return [(PRIMARY, item), (NETWORK, item)]"),
    Guard("the secondary gets no input", _MIRROR, "return [(GUEST, admitted), (INGRESS, admitted)] if", "return [(GUEST, admitted)] if"),
    # 9: bounds
    Guard("bytes have no limit", _TABLE, "        return flow.kept() + more > self.config.max_flow_bytes or self.kept + more > self.config.max_bytes", "        return False", lambda s: "max_bytes" in s.comparer),
    Guard("flows have no limit", _TABLE, "        full = len(self.flows) + self._lane.count >= self.config.max_flows", "        full = False", lambda s: "max_flows" in s.comparer),
    Guard("half-open flows have no limit", _TABLE, "(opening and len(self.half_open) >= self.config.max_half_open)", "False", lambda s: "max_flows" in s.comparer),
    Guard("a flood evicts established flows", _TABLE, "            self._forget(next(iter(self.half_open)))", "            self._forget(next(iter(self.flows)))", lambda s: "max_flows" in s.comparer),
    # the fast lane
    Guard("the lane compares no bytes", _LANE, "                if hashed != _PROVEN and not equal(\n", "                if False and not equal(\n", lambda s: s.differs and s.calm[0] <= 2 and not _hashes(s)),
    Guard("the lane believes any hash", _LANE, "if not self._has_hash(record, kept, payload + fields[at + _P_USED], part, other, s):", "if False:", lambda s: s.differs and s.calm[0] <= 2 and _hashes(s)),
    Guard("off the lane any hash is believed", _DIGEST, "return len(payload) == record.size and self._hashed is not None and self._hashed(payload) == record.hash", "return len(payload) == record.size", lambda s: s.differs and _hashes(s)),
    Guard("records outlive a commit", _CORE, "            self._undigest.forget_secondary()", "            pass", lambda s: s.cuts and _hashes(s)),
    Guard("the lane checks no ack", _LANE, "            if not fields[at + _FLAGS] & _ACKED_SET or after(ack, fields[at + _ACKED]):\n                return", "            pass", _in_the_lane),
    Guard("the lane compares acks unsigned", _LANE, "    return 0 < (a - b & _MASK) < _HALF", "    return a > b", _in_the_lane),
    Guard("the lane lowers no window", _LANE, "            if fields[at + _FLAGS] & _SCALED and not self._as_it_is(at, data, l4):", "            if False:", _in_the_lane),
    Guard("the lane takes a FIN", _LANE, "_ORDINARY = tcp.ACK | tcp.SYN | tcp.FIN | tcp.RST | tcp.URG", "_ORDINARY = tcp.ACK | tcp.SYN | tcp.RST | tcp.URG", _in_the_lane),
    Guard("the lane takes a RST", _LANE, "_ORDINARY = tcp.ACK | tcp.SYN | tcp.FIN | tcp.RST | tcp.URG", "_ORDINARY = tcp.ACK | tcp.SYN | tcp.FIN | tcp.URG", _shapes("guest_aborts", "guest_gives_up")),
    Guard("the lane takes urgent data", _LANE, "_ORDINARY = tcp.ACK | tcp.SYN | tcp.FIN | tcp.RST | tcp.URG", "_ORDINARY = tcp.ACK | tcp.SYN | tcp.FIN | tcp.RST", lambda s: s.secondary.other_urgent),
    Guard("the primary's segments are in order for the lane", _LANE, "            if size and seq != fields[at + _P_SEQ]:", "            if False:", lambda s: _of_one_byte(s) and s.ways["primary", "out"].loss),
    Guard("the secondary's segments are in order for the lane", _LANE, "            if size and seq != fields[at + _S_SEQ]:", "            if False:", _of_one_byte),
    Guard("the sides may begin at two places in the lane", _LANE, "                if fields[at + _FLAGS] & _S_SEEN and seq != fields[at + _FRONT]:", "                if False:", lambda s: _of_one_byte(s) and any(who == "comparer" for _, who, _ in s.crashes)),
    Guard("what waits of a frame in the lane was said", _LANE, "            if fields[at + _P_USED] < size:\n                return", "            pass", _in_the_lane),
    Guard("what waits in the lane is never looked at", _LANE, "                budget -= self._promote_waiting(side, kept, head, budget)", "                pass", _in_the_lane),
    Guard("what was acked before the cut counts on in the lane", _LANE, "            self.fields[at + _ACKED] = self.fields[at + _LEFT_ACK]\n", "", lambda s: s.cuts and s.calm[0] <= 2 and s.ways["primary", "in"].loss > 0.02),
    Guard("a commit passes the lane by", _CORE, "        self._lane.promote_waiting(now)\n        leaving = []\n        for flow in self._table.flows.values():\n            while flow.held and flow.held[0].number < before:", "        leaving = []\n        for flow in self._table.flows.values():\n            while flow.held and flow.held[0].number < before:", lambda s: s.calm[0] <= 2 and any(committed and seconds < 0.02 for _, committed, seconds in s.cuts)),
    Guard("what waits leaves with its batch", _SIDE, "            if self.marks[index] == _LEAVES:\n                self.marks[index] = _GONE", "            if self.marks[index] != _GONE:\n                self.marks[index] = _GONE", lambda s: s.wake > 0.006),
    Guard("a batch always leaves whole", _SIDE, "whole: bool = self.fresh == self.count", "whole: bool = self.fresh > 0", _in_the_lane),
    Guard("what has left of a batch leaves again", _SIDE, "                self.marks[index] = _GONE\n                if run < 0:", "                if run < 0:", lambda s: s.wake > 0.006),
    Guard("batches of the lane leave in any order", _LANE, "            self._touched.sort(key=_order)", "            self._touched.reverse()", lambda s: s.wake > 0.006),
    Guard("batches go in which frames wait", _SIDE, "        while self.done < count and not self.first_left(self.done):", "        while self.done < count:", _in_the_lane),
    # fragments
    Guard("pieces of two datagrams are one", _FRAGMENTS, "        key = bytes(data[at + ipv4.IDENT : at + ipv4.IDENT + 2]) + bytes", "        key = bytes", _forged),
    Guard("a datagram is whole before all of it is there", _FRAGMENTS, "        if partial.total is None or partial.size < partial.total:", "        if partial.total is None:", _forged),
    Guard("fragments may overlap", _FRAGMENTS, "    if any(offset < at + len(piece) and at < end for at, piece in partial.pieces.items()):\n        return False", "    pass", _forged),
    Guard("a datagram may have two ends", _FRAGMENTS, "        if partial.total is not None:\n            return False\n        partial.total = end", "        partial.total = end", _forged),
    Guard("a datagram may go beyond its end", _FRAGMENTS, "    if partial.total is not None and (end > partial.total or any(at >= partial.total for at in partial.pieces)):\n        return False", "    pass", _forged),
    Guard("half a datagram waits for good", _FRAGMENTS, "            if self._partial[key].since + self.lifetime > now:\n                return", "            return", _long_datagram),
    Guard("fragments that are given up are not counted", _FRAGMENTS, "        self.given_up += len(self._remove(key).originals)", "        self._remove(key)", _long_datagram),
    # 10: invariance, and the arithmetic under all of it
    Guard("sequence numbers do not wrap", "lockstep/wire/seqnum.py", "    return ((a - b + 0x80000000) & MASK) - 0x80000000", "    return a - b"),
    Guard("bytes of the last connection stay", _TCP, "        self.said.clear()\n        self.hole = None\n        self.fin = self.fin_left = self.reset_at = self.reset_left = None", "        self.hole = None\n        self.fin = self.fin_left = self.reset_at = self.reset_left = None", lambda s: len({(p.version, p.port) for p in s.plans}) < len(s.plans)),
    Guard("nobody waits too long", _CORE, "            if self._due_at(flow.held[0]) <= heard:", "            if False:", lambda s: s.compare_timeout < FOREVER and s.on_divergence == "checkpoint" and any(who == "rewriter" for _, who, _ in s.crashes)),
    Guard("a SYN that its SYN-ACK needs no more waits for good", _TCP, " or self._answer_behind()\n", "\n", lambda s: s.compare_timeout == FOREVER and s.ways["secondary", "out"].loss > 0.02 and _shapes("both_open")(s)),
    Guard("what never left is stale", _TCP, "        if self.hole is not None and place + size > self.hole:\n            return False\n", "", lambda s: s.differs and s.compare_timeout < 1.0),
    Guard("the secondary's ACKs leave with their own clock", _EASE, "        if diff(clock, told) > 0:", "        if False:", lambda s: s.compare_timeout == FOREVER and any(p.stamps for p in s.plans) and s.ways["secondary", "in"].loss > 0.02),
    Guard("a stuck head is never eased", _CORE, "if isinstance(flow, TcpFlow) and flow.held[0].arrived + STALL <= now:", "if False:", lambda s: s.compare_timeout == FOREVER and s.ways["secondary", "in"].loss > 0.02),
)  # fmt: skip
