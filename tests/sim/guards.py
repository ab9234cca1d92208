"""The guards of the cores, and what stands in their place when `mutants.py` takes them out.

Each is exact text of one file, which stands there once, and other text for it. `seeds` are such as have
found it out before; they are only a short cut, and others are tried where they no longer do.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """One guard, and how it is taken out."""

    name: str
    file: str
    old: str
    new: str
    seeds: tuple[int, ...] = ()


_TCP = "services/comparer/tcp.py"
_SAID = "services/comparer/said.py"
_CORE = "services/comparer/core.py"
_TABLE = "services/comparer/table.py"
_EASE = "services/comparer/ease.py"
_WINDOW = "services/comparer/window.py"
_DATAGRAM = "services/comparer/datagram.py"
_REWRITER = "services/rewriter/core.py"
_CONNECTION = "services/rewriter/connection.py"
_REDIRECTOR = "services/redirector/core.py"
_MIRROR = "services/mirror/core.py"

#: The rule that no ack leaves ahead of the secondary's.
_ACK_RULE = "(self.acked is None or diff(ack, self.acked) > 0):\n            return WAIT"

GUARDS = (
    # 1: data
    Guard("data is not compared", _TCP, "found = self.said.check(place, buf, payload, end)", "found = EQUAL", seeds=(0,)),
    Guard("a different byte is let out", _SAID, "                if said == data[start:end]:", "                if True:", seeds=(1,)),
    Guard("a missing byte is let out", _SAID, "        return MISSING", "        return EQUAL", seeds=(0,)),
    Guard("the place of a FIN is ignored", _TCP, "                if self.fin != place:", "                if False:", seeds=(0,)),
    Guard("a RST needs no RST", _TCP, "            if self._reset_alike(seq, ack, flags) is None:", "            if False:", seeds=(0,)),
    Guard("a RST proves more than one", _TCP, "            if used is not None:", "            if False:", seeds=(8,)),
    Guard(
        "options of a SYN are not compared", _TCP,
        "        if any(other == said for _, other in self.syn_said):", "        if any(other[:5] == said[:5] for _, other in self.syn_said):",
        seeds=(68,)),
    Guard("a payload is not compared", _DATAGRAM, "            if said == wanted:", "            if True:", seeds=(13,)),
    Guard("a payload proves more than one", _DATAGRAM, "            del self.said[index]", "            pass", seeds=(2,)),
    Guard("what the secondary answers its neighbours leaves", _CORE, "if asks(f, data) and bytes", "if bytes", seeds=(0,)),
    Guard(
        "the secondary asks in any name", _CORE,
        "bytes(data[f.start + 6 : f.start + 12]) in self._voices:", "True:",
        seeds=(8,)),
    Guard("half of a fragmented datagram leaves", _CORE, "        if whole is None:\n            return\n        f = self._frame",
           "        if whole is None:\n            self._append(self._primary_fragments.clear())\n            return\n        f = self._frame", seeds=(15,)),
    Guard("after a difference the flow goes on", _CORE, "if flow.held or flow.state == DIVERGED:", "if flow.held:"),
    Guard("a flow is unprotected in silence", _CORE, 'self._events.append(Event("unprotected", describe(flow.key) | {"key": flow.key, "reason": reason}))', "pass", seeds=(24,)),
    Guard("a new connection stays unprotected", _CORE, "flow.state = PROTECTED  # a new connection", "pass", seeds=(24,)),
    Guard("a lost secondary is never found again", _CORE, "        self._alone = False\n        self.counters", "        self.counters", seeds=(37,)),
    # 2: acks and windows
    Guard("no ack is checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}", f"if False and {_ACK_RULE}", seeds=(3,)),
    Guard("the ack of a pure ACK is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and (end > payload or flags & (tcp.FIN | tcp.RST)) and {_ACK_RULE}", seeds=(3,)),
    Guard("the ack of data is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and end == payload and {_ACK_RULE}", seeds=(29,)),
    Guard("the ack of a FIN is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and not flags & tcp.FIN and {_ACK_RULE}", seeds=(200,)),
    Guard("the ack of a RST is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and not flags & tcp.RST and {_ACK_RULE}", seeds=(90,)),
    Guard("acks are compared unsigned", _TCP, _ACK_RULE, "(self.acked is None or ack > self.acked):\n            return WAIT", seeds=(9,)),
    Guard("the ack of a FIN is lowered", _EASE, "        return None  # the client's answer would close", "        pass  # the client's answer would close"),
    Guard("an ack is lowered too little", _EASE, "    _ACK.pack_into(frame, at, flow.acked)", "    _ACK.pack_into(frame, at, (flow.acked + 1) & 0xFFFFFFFF)", seeds=(48,)),
    Guard("the checksum of a lowered ack stays", _EASE, "moved32(_CHECKSUM.unpack_from(frame, field)[0], ack, flow.acked)", "_CHECKSUM.unpack_from(frame, field)[0]", seeds=(48,)),
    Guard("the window is not lowered", _WINDOW, "return lowered if lowered < window else None", "return None", seeds=(1,)),
    Guard("unproven parts leave with the proven", _EASE, "head.vnet, proven // step * step or proven)", "head.vnet, (proven // step + 1) * step)"),
    Guard("a stuck head leaves unproven", _EASE, "    if proven < size:", "    if False:", seeds=(0,)),
    Guard("a FIN leaves with the first part", "lockstep/wire/gso.py", "payload[:at], 0, 0, tcp.FIN | tcp.PSH, step)", "payload[:at], 0, 0, 0, step)", seeds=(200,)),
    Guard("the secondary's ACKs leave wherever they stand", _EASE, "    return flow.reached(buf, f.l4)", "    return True", seeds=(159,)),
    # 3: order
    Guard("what is proven overtakes the head", _CORE, "if flow.held or flow.state == DIVERGED:", "if flow.state == DIVERGED:", seeds=(10,)),
    # 4: conservation
    Guard("frames that a full link refused stay counted", _CORE, '            self.counters["released"] -= len(item)', "            pass", seeds=(200,)),
    Guard("evicted frames are not counted", _TABLE, '        self._counters["dropped_evicted"] += dropped', "        pass", seeds=(5,)),
    # 5: rewriting
    Guard("seq is not moved", _CONNECTION, "            _move(buf, l4, l4 + tcp.SEQ, self.delta, partial)", "            pass", seeds=(0,)),
    Guard("ack is not moved", _CONNECTION, "            _move(buf, l4, l4 + tcp.ACK_NUMBER, -self.delta, partial)", "            pass", seeds=(0,)),
    Guard("TSval is not moved", _CONNECTION, "_move(buf, l4, timestamps + 2, self.delta_ts, partial)", "pass", seeds=(0,)),
    Guard("TSecr is not moved", _CONNECTION, "_move(buf, l4, timestamps + 6, -self.delta_ts, partial)", "pass", seeds=(0,)),
    Guard("SACK edges are not moved", _CONNECTION, "for edge in range(2 * blocks):", "for edge in range(0):", seeds=(11,)),
    Guard("the first SACK block alone is moved", _CONNECTION, "for edge in range(2 * blocks):", "for edge in range(2 * min(blocks, 1)):", seeds=(17,)),
    Guard("the checksum is not moved", _CONNECTION, "    if not partial:", "    if False:", seeds=(0,)),
    Guard("a partial checksum is moved", _CONNECTION, "    if not partial:", "    if True:", seeds=(0,)),
    Guard("the clock steps back at the failover", _CONNECTION, "if speaking and self.client_tsecr is not None:", "if False:"),
    Guard("an error's quotation is not moved", _CONNECTION, "    if new is not None and new != old:", "    if False:"),
    Guard("a refusal does not reach the secondary", _CONNECTION, "        return self.waiting and self.opened_by_guest and flags", "        return False and flags"),
    Guard("a released connection is not reset at failover", _REWRITER, "if self._speaking and not syn and self._is_doomed(key):", "if False:"),
    # 6: epochs
    Guard("frames of another epoch are heard", _CORE, "        elif batch.epoch == self.epoch:", "        elif True:"),
    Guard("what the old secondary said counts on", _TCP, "        self.said.clear()\n        self.acked = self.primary_acked\n", "        self.acked = self.primary_acked\n"),
    Guard("what the old secondary acked counts on", _TCP, "        self.acked = self.primary_acked\n        self.fin = None", "        self.fin = None"),
    Guard("the old secondary's SYN counts on", _TCP, "        self.probe = None\n        self.syn_said = ()", "        self.probe = None"),
    Guard("a commit lets out what is behind the cut", _CORE, "while flow.held and flow.held[0].number < before:", "while flow.held:"),
    Guard("a commit lets nothing out", _CORE, "while flow.held and flow.held[0].number < before:", "while False:"),
    Guard("an abort counts as a commit", _CORE, '        elif cut.phase == "commit":', '        elif cut.phase in ("commit", "abort"):'),
    Guard("offsets outlive a commit", _REWRITER, "                self._table.become_copies()", "                pass"),
    # 7: one voice
    Guard("the uplink is heard before the failover", _REDIRECTOR, "            if not self._speaking:", "            if False:"),
    Guard("the ingress is heard after the failover", _REDIRECTOR, 'if self._speaking:\n            self.counters["ingress_ignored"]', 'if False:\n            self.counters["ingress_ignored"]'),
    Guard("the secondary speaks before the failover", _REDIRECTOR, 'if self._speaking:\n            self.counters["uplink_frames_out"]', 'if True:\n            self.counters["uplink_frames_out"]'),
    Guard("the guest's frames go to the network", _MIRROR, "return [(PRIMARY, item)]", "return [(PRIMARY, item), (NETWORK, item)]"),
    Guard("the secondary gets no input", _MIRROR, "return [(GUEST, item), (INGRESS, item)]", "return [(GUEST, item)]"),
    # 9: bounds
    Guard("bytes have no limit", _TABLE, "        return flow.kept() + more > self.config.max_flow_bytes or self.kept + more > self.config.max_bytes", "        return False"),
    Guard("flows have no limit", _TABLE, "        full = len(self.flows) + self._lane.count >= self.config.max_flows", "        full = False"),
    Guard("half-open flows have no limit", _TABLE, "(opening and len(self.half_open) >= self.config.max_half_open)", "False"),
    Guard("a flood evicts established flows", _TABLE, "            self._forget(next(iter(self.half_open)))", "            self._forget(next(iter(self.flows)))"),
    # 10: invariance, and the arithmetic under all of it
    Guard("sequence numbers do not wrap", "lockstep/wire/seqnum.py", "    return ((a - b + 0x80000000) & MASK) - 0x80000000", "    return a - b"),
    Guard("bytes of the last connection stay", _TCP, "        self.said.clear()\n        self.fin = self.reset_at = self.reset_left = None", "        self.fin = self.reset_at = self.reset_left = None"),
    Guard("nobody waits too long", _CORE, "            if self._due_at(flow.held[0]) <= heard:", "            if False:"),
    Guard("a stuck head is never eased", _CORE, "if isinstance(flow, TcpFlow) and flow.held[0].arrived + STALL <= now:", "if False:"),
)  # fmt: skip
