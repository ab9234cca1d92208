"""The flows that are followed, and the limits on them.

At `max_flows` a new flow is refused; only half-open ones (of which nothing but SYNs was seen) make
way, the oldest first, and they have a pool of their own, so a flood of SYNs evicts no established flow.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from lockstep.batch import Buffer
from lockstep.config import Comparer
from lockstep.flow.key import flow_key
from lockstep.flow.sweep import SHORT_IDLE, Sweep
from lockstep.wire import frame, tcp
from lockstep.wire.frame import Frame
from services.comparer.datagram import DatagramFlow
from services.comparer.flow import Flow
from services.comparer.lane import Lane
from services.comparer.tcp import HISTORY_AGE, TcpFlow

#: Seconds between two walks over all flows for what they could give up.
RECLAIM_EVERY = 0.1


class FlowTable:
    """Flows by key. `kept` is the bytes and `held` the frames kept for all of them.

    Half-open flows, of which nothing but SYNs and RSTs was seen, have a pool of their own: a flood fills it
    and turns it over, oldest first. No other flow ever makes way for a new one.

    counters: of the comparer; `dropped_evicted` counts held frames of flows that had to make way.
    """

    def __init__(self, config: Comparer, counters: dict[str, int], lane: Lane) -> None:
        self.config = config
        self.flows: dict[bytes, Flow] = {}
        self.half_open: OrderedDict[bytes, None] = OrderedDict()  # a dict takes long to find its first key
        self.kept = 0
        self.held = 0
        self._counters = counters
        self._lane = lane
        self._sweep = Sweep()
        self._reclaimed = -math.inf

    def of(self, f: Frame, data: Buffer, now: float) -> Flow | None:
        """The flow of a dissected frame, made if it is new; None where a limit refuses it."""
        key = flow_key(f, data)
        flow = self.flows.get(key)
        opening = opens(f, data)
        if flow is not None:
            if not opening and key in self.half_open:
                del self.half_open[key]
            return flow
        if not self._room(opening):
            return None
        if f.kind == frame.TCP:
            if not self._lane.claim(key):
                return None
            flow = TcpFlow(key, now, self.config.max_flow_bytes)
            if opening:
                self.half_open[key] = None
        else:
            flow = DatagramFlow(key, now, self.config.compare_timeout)
        self.flows[key] = flow
        return flow

    def _room(self, opening: bool) -> bool:
        """Make room for one more flow, if there can be any."""
        full = len(self.flows) + self._lane.count >= self.config.max_flows
        if (full or (opening and len(self.half_open) >= self.config.max_half_open)) and self.half_open:
            self._forget(next(iter(self.half_open)))
            return True
        return not full

    def _forget(self, key: bytes) -> None:
        flow = self.flows.pop(key)
        self.half_open.pop(key, None)
        if isinstance(flow, TcpFlow):
            self._lane.forget(key)
        self.kept -= flow.kept()
        dropped = flow.drop_held()
        self.held -= dropped
        self._counters["dropped_evicted"] += dropped

    def take_out(self, flow: Flow) -> None:
        """A flow went into the lane."""
        del self.flows[flow.key]
        self.half_open.pop(flow.key, None)
        self.kept -= flow.kept()

    def sweep(self, now: float) -> None:
        """Look at some flows each time: give memory back, forget what is idle."""
        if self._sweep.is_due(now):
            self._lane.sweep(now, self.config.idle_timeout)
        for key in self._sweep.due(self.flows, now):
            flow = self.flows.get(key)
            if flow is None or flow.held:
                continue
            if isinstance(flow, TcpFlow) and self._goes_to_the_lane(flow, now):
                continue
            before = flow.kept()
            flow.relax(now)
            self.kept += flow.kept() - before
            short = flow.closed or not isinstance(flow, TcpFlow) or key in self.half_open
            idle = min(SHORT_IDLE, self.config.idle_timeout) if short else self.config.idle_timeout
            if now - flow.touched > idle:
                self._forget(key)

    def _goes_to_the_lane(self, flow: TcpFlow, now: float) -> bool:
        """An idle flow needs but a record."""
        if now - flow.touched <= HISTORY_AGE or not flow.is_ordinary() or not self._lane.demote(flow):
            return False
        self.take_out(flow)
        return True

    def start(self, now: float) -> None:
        """Begin to sweep: the clock is first known with the first push."""
        self._sweep.start(now)

    def next_sweep(self) -> float | None:
        """When there is something to look at."""
        return self._sweep.next if self.flows or self._lane.count else None

    def over(self, flow: Flow, more: int, now: float) -> bool:
        """Whether a limit on bytes is passed, with `more` bytes for this flow; history makes way first."""
        if self.kept + more > self.config.max_bytes and now >= self._reclaimed + RECLAIM_EVERY:
            self._reclaimed = now
            for other in self.flows.values():
                other.forget_history()
            self.recount()
        return flow.kept() + more > self.config.max_flow_bytes or self.kept + more > self.config.max_bytes

    def recount(self) -> None:
        """Count `kept` anew, after every flow has changed."""
        self.kept = sum(flow.kept() for flow in self.flows.values())


def is_syn(f: Frame, data: Buffer) -> bool:
    """Whether a dissected frame is a TCP segment with SYN."""
    return f.kind == frame.TCP and bool(data[f.l4 + tcp.FLAGS] & tcp.SYN)


def opens(f: Frame, data: Buffer) -> bool:
    """Whether a flow of which only this was seen is half-open: a SYN, or the RST that refuses one."""
    return f.kind == frame.TCP and bool(data[f.l4 + tcp.FLAGS] & (tcp.SYN | tcp.RST))
