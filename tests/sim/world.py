"""One run: the real cores behind the real ends of links, three hosts, and a clock that is a number.

    client ── network ──▶ mirror, redirector      primary ── port ──▶ mirror      secondary ── port ──▶ rewriter

Whatever happens is written to the trace, and the checker reads along.

    wires.py   links and ways    process.py   cores in processes    checkpointer.py   cuts    faults.py   crashes
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Any

from lockstep.config import Node
from lockstep.link import zmq as links
from lockstep.streams import DIGESTS, GUEST, NETWORK, SECONDARY, UPLINK, Core, Event
from services.comparer import core as comparer
from services.redirector import core as redirector
from sim.checker import Checker, Violation
from sim.faults import Faults
from sim.host import Host
from sim.known import KNOWN
from sim.plans import Plans
from sim.process import Process
from sim.scenario import CALM, END, Scenario
from sim.snapshot import snapshot
from sim.wire import PROTO_ICMP, PROTO_ICMP6, Link, Reader, icmp_error, ip_frame
from sim.wires import Pipe, Wire

CLIENT_MAC, GUEST_MAC = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
CLIENT = {4: bytes((10, 77, 0, 1)), 6: bytes.fromhex("fd77" + "00" * 13 + "01")}
GUEST_IP = {4: bytes((10, 77, 0, 2)), 6: bytes.fromhex("fd77" + "00" * 13 + "02")}

#: Seconds that a run goes on after everything is done.
QUIET = 0.3
#: Events of a run, at most: more means that something goes round in circles.
MOST_EVENTS = 60_000


class World(Faults):
    """One run of a scenario."""

    def __init__(self, scenario: Scenario, excused: frozenset[str] = frozenset(KNOWN)) -> None:
        super().__init__()
        self.scenario, self.excused = scenario, excused
        self.now = 0.0
        self.chance = random.Random(f"fate {scenario.seed}")
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._ties = 0
        self.trace: list[tuple[Any, ...]] = []
        self.reader = Reader()
        plain = Node.model_validate(
            {
                "capture": "memory",
                "comparer": {
                    "on_divergence": scenario.on_divergence,
                    "compare_timeout": scenario.compare_timeout,
                    "passthrough": scenario.passthrough,
                    "secondary": scenario.said_as[0],
                },
                "redirector": {
                    "announcements": scenario.announcements,
                    "secondary": scenario.said_as[0],
                    "hash": scenario.said_as[1],
                },
            }
        )
        # Smaller limits than a configuration may name, so that small traffic reaches them.
        self.node = plain.model_copy(update={"comparer": plain.comparer.model_copy(update=scenario.comparer)})
        self.checker = Checker(scenario, self.reader, self.node.comparer, excused)
        self.plans = Plans(lambda host, plan, what: self.record("complaint", host, plan, what))
        links.MOST_PENDING = scenario.most_pending
        comparer.CALM, comparer.AGITATED = scenario.calm
        redirector.new_secret = lambda name: self.chance.randbytes(16 if name == "xxh3" else 32)
        self.wires = {stream: Wire(self, stream) for stream in scenario.links}
        self.wires[DIGESTS] = self.wires[SECONDARY]
        self._build_hosts()
        groups = [("mirror",), ("comparer",)]
        groups += [("redirector", "rewriter")] if scenario.fused else [("redirector",), ("rewriter",)]
        self.processes = [Process(self, "+".join(group), group) for group in groups]
        self._of = {service: process for process in self.processes for service in process.services}
        self.parked: dict[str, list[tuple[bytes, int]]] = {"primary": [], "secondary": []}
        self._ticks: dict[str, float] = {}
        #: Who has opened, of the plans that both ends open.
        self._both: dict[int, set[str]] = {}
        self._done_at: float | None = None
        for process in self.processes:
            process.start()
        self._agenda()

    def _build_hosts(self) -> None:
        s = self.scenario
        habits = {"client": s.client, "primary": s.primary, "secondary": s.secondary}
        self.hosts: dict[str, Host] = {}
        for index, (name, its) in enumerate(habits.items()):
            client = name == "client"
            own, other = (CLIENT_MAC, GUEST_MAC) if client else (GUEST_MAC, CLIENT_MAC)
            self.hosts[name] = Host(
                name, Link(own, other, s.tags), CLIENT if client else GUEST_IP, GUEST_IP if client else CLIENT,
                s.seed * 10 + index, its, self.plans, self.reader,
                lambda host, plan, at, data: self.record("got", host, plan, at, data),
                self._opened,
            )  # fmt: skip
        self._in = {name: Pipe(self, s.ways[name, "in"], self._deliver(name)) for name in self.hosts}
        self._out = {
            "client": Pipe(self, s.ways["client", "out"], self._from_client),
            "primary": Pipe(self, s.ways["primary", "out"], self._to_port("mirror", GUEST)),
            "secondary": Pipe(self, s.ways["secondary", "out"], self._to_port("rewriter", GUEST)),
        }

    def _agenda(self) -> None:
        s = self.scenario
        for plan in s.plans:
            self.plans.add(plan)
            if plan.opener == "client":
                self.hosts["client"].plan_for(plan.at, "open", plan)
            elif plan.opener == "both":
                for name in ("primary", "secondary"):
                    self.hosts[name].plan_for(plan.at, "open", plan)  # and the client as soon as both have
            else:
                self.hosts["primary"].plan_for(plan.at, "open", plan)
                self.hosts["secondary"].plan_for(plan.at + self.chance.uniform(-0.02, 0.05), "open", plan)
        for at, kind, what in s.client_agenda:
            self.hosts["client"].plan_for(at, kind, what)
        for at, late, kind, what in s.guest_agenda:
            self.hosts["primary"].plan_for(at, kind, what)
            if kind != "raw":
                self.hosts["secondary"].plan_for(at + late, kind, what)
        for name in self.hosts:
            self._schedule(name)
        for at, committed, seconds in s.cuts:
            self.at(at, self._prepare, committed, seconds)
        for at, service, down in s.crashes:
            self.at(at, self._crash, service, down)
        if s.failover is not None:
            self.at(s.failover, self._primary_dies)
        if s.lost is not None:
            self.at(s.lost[0], self._secondary_dies)
            self.at(s.lost[1], self._secondary_is_back)

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        """Let something happen."""
        self._ties += 1
        heapq.heappush(self._heap, (when, self._ties, call, arguments))

    def record(self, kind: str, *fields: Any) -> None:
        """Write to the trace; the checker reads along."""
        record = (self.now, kind, *fields)
        self.trace.append(record)
        self.checker.take(record)

    def called(self, service: str, what: str, item: Any, outputs: list[Any], core: Core) -> None:
        """A core was called."""
        said = snapshot(item)
        out = []
        for output in outputs:
            if isinstance(output, Event):
                out.append(("event", output))
            else:
                # Most cores pass on the very batch that they were given.
                out.append((output[0], said if output[1] is item else snapshot(output[1])))
        self.record("call", service, what, said, tuple(out))
        self.checker.after(service, core)

    def digest(self) -> str:
        """The trace in one number."""
        return hashlib.blake2b(repr(self.trace).encode(), digest_size=16).hexdigest()

    def run(self) -> None:
        """Until everything is done, or nothing can happen any more; raises Violation."""
        events = 0
        while self._heap and self._heap[0][0] < END:
            self.now, _, call, arguments = heapq.heappop(self._heap)
            call(*arguments)
            events += 1
            if events > MOST_EVENTS:
                raise Violation(10, f"{events} events, and no end of it")
            if events & 15 == 0 and self._over():
                break
        self.checker.end(self)

    def _over(self) -> bool:
        if self._done_at is None:
            last = max((plan.at for plan in self.scenario.plans), default=0)
            if self.now > max(1.6, last) and all(self.ended(number) for number in self.plans.all):
                self._done_at = self.now
        return self._done_at is not None and self.now > self._done_at + QUIET

    def ended(self, number: int) -> str | None:
        """How a plan ended at the client."""
        how = self.plans.endings.get((number, "client"))
        if how is None and self.plans.all[number].opener == "guest":
            return self.plans.endings.get((number, "secondary" if self.primary_dead else "primary"))
        return how

    def _schedule(self, name: str) -> None:
        due = self.hosts[name].due()
        if due is not None:
            due = max(due, self.now)
            if name not in self._ticks or due < self._ticks[name]:
                self._ticks[name] = due
                self.at(due, self._tick, name, due)

    def _tick(self, name: str, when: float) -> None:
        if self._ticks.get(name) != when:
            return
        del self._ticks[name]
        host = self.hosts[name]
        if host.stopped_at is None and not self._is_dead(name):
            host.tick(self.now)
            self._collect(name)

    def _is_dead(self, name: str) -> bool:
        return (name == "primary" and self.primary_dead) or (name == "secondary" and self.secondary_dead)

    def _collect(self, name: str) -> None:
        host = self.hosts[name]
        vnet = host.habits.offload.vnet
        for raw in host.take():
            self.record("emits", name, raw, vnet)
            self._out[name].send(raw, vnet)
        self._schedule(name)

    def _deliver(self, name: str) -> Callable[[bytes, int], None]:
        def arrive(raw: bytes, vnet: int) -> None:
            host = self.hosts[name]
            if self._is_dead(name):
                return
            if any(who == name and begin <= self.now < end for who, begin, end in self.scenario.deaf):
                return
            if host.stopped_at is not None:
                self.parked[name].append((raw, vnet))
                return
            self.record("hears", name, raw, vnet)
            host.push(raw, vnet, self.now)
            self._collect(name)

        return arrive

    def _to_port(self, service: str, port: str) -> Callable[[bytes, int], None]:
        def arrive(raw: bytes, vnet: int) -> None:
            self._of[service].arrive(service, port, raw, vnet)

        return arrive

    def _from_client(self, raw: bytes, vnet: int) -> None:
        if not self.primary_dead:
            self._of["mirror"].arrive("mirror", NETWORK, raw, vnet)
            if self.scenario.flooded and self.chance.random() < self.scenario.flooded and not self.secondary_dead:
                self._of["redirector"].arrive("redirector", UPLINK, raw, vnet)
        elif self.failed_over:
            self._of["redirector"].arrive("redirector", UPLINK, raw, vnet)

    def leave(self, service: str, port: str, raw: bytes, vnet: int) -> None:
        """A frame goes out of a port."""
        name = {"mirror": "primary", "rewriter": "secondary"}[service] if port == GUEST else "client"
        self._in[name].send(raw, vnet)
        if name == "client" and self.scenario.complaints and self.now < CALM:
            self._complain(raw, vnet)

    def _complain(self, raw: bytes, vnet: int) -> None:
        """A router on the way to the client finds a segment too big, and tells the guest."""
        p = self.reader.read(raw, vnet)
        if p.kind == "tcp" and self.chance.random() < self.scenario.complaints:
            body = icmp_error(p.destination, p.source, raw[vnet + p.l3 :])
            link = Link(CLIENT_MAC, GUEST_MAC, self.scenario.tags)
            protocol = PROTO_ICMP6 if p.version == 6 else PROTO_ICMP
            self._from_client(ip_frame(link, p.destination, p.source, protocol, body), 0)

    def _opened(self, host: str, number: int, iss: int, key: tuple[int, int, int]) -> None:
        """A host has a new connection. Where both ends are to open at once, the client's open crosses the guests'."""
        self.record("opened", host, number, iss, key)
        plan = self.plans.all.get(number)
        if plan is not None and plan.opener == "both" and host != "client":
            opened = self._both.setdefault(number, set())
            opened.add(host)
            if len(opened) == 2:
                opened.add("client")
                self.hosts["client"].plan_for(self.now + self.chance.uniform(0, 0.008), "open", plan)
                self._schedule("client")

    def tell(self, service: str, event: Event) -> None:
        """An event travels to another process."""
        self.at(self.now + self.scenario.events_delay, self._of[service].hear, service, event)
