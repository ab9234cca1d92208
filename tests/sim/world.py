"""One run: the real cores behind the real ends of links, three hosts, and a clock that is a number.

    client ── network ──▶ mirror, redirector      primary ── port ──▶ mirror      secondary ── port ──▶ rewriter

A process holds one core, or two that are fused, as `lockstep.shell` runs them: it wakes, drains what
waits at its ports and links into batches, pushes, sends. Links are `lockstep.link.zmq`'s `Sender` and
`Receiver` over a `Wire`, which stands in for the two sockets: messages are encoded, numbered, queued
and decoded for real. Whatever happens is written to the trace, and the checker reads along.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.link import zmq as links
from lockstep.service import core_of
from lockstep.streams import EVENTS, FROM_GUEST, GUEST, NETWORK, UPLINK, Core, Cut, Event, Gap, Item
from lockstep.wiring import SERVICES
from services.comparer import core as comparer
from sim.checker import Checker, Violation
from sim.host import Host
from sim.known import KNOWN
from sim.plans import REFUSED, RESET, Plans
from sim.scenario import CALM, END, Scenario, Way
from sim.wire import PROTO_ICMP, PROTO_ICMP6, Link, Reader, icmp_error, ip_frame

CLIENT_MAC, GUEST_MAC = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
CLIENT = {4: bytes((10, 77, 0, 1)), 6: bytes.fromhex("fd77" + "00" * 13 + "01")}
GUEST_IP = {4: bytes((10, 77, 0, 2)), 6: bytes.fromhex("fd77" + "00" * 13 + "02")}

#: Messages that a process takes from a link at once.
MOST_MESSAGES = 64
#: Seconds after which the checkpointer looks itself whether a guest still stands.
FALLBACK = 0.5
#: Seconds that a run goes on after everything is done.
QUIET = 0.3
#: Ticks of a core in a row that leave it overdue, at most.
MOST_OVERDUE = 200
#: Events of a run, at most: more means that something goes round in circles.
MOST_EVENTS = 60_000


@dataclass(frozen=True, slots=True)
class Part:
    """Stands in for a zmq.Frame."""

    bytes: bytes
    more: bool

    def __len__(self) -> int:
        return len(self.bytes)

    @property
    def buffer(self) -> memoryview:
        """See zmq.Frame."""
        return memoryview(self.bytes)


class Wire:
    """The two sockets of a link: `Sender` and `Receiver` take it for theirs."""

    def __init__(self, world: World, stream: str) -> None:
        self.world, self.faults = world, world.scenario.links[stream]
        self.queue: deque[tuple[float, tuple[bytes, bytes]]] = deque()
        self.last = 0.0
        self.first = b""
        self.rest: bytes | None = None
        self.producer: Process | None = None
        self.consumer: Process | None = None

    def socket(self, kind: int) -> Wire:
        """Stands in for a ZeroMQ context as well."""
        return self

    def setsockopt(self, *_: object) -> None:
        """See zmq.Socket."""

    connect = bind = close = setsockopt

    def send(self, part: Any, flags: int, copy: bool = True) -> None:
        """Queue the two parts of a message, or raise Again at the first if the link is full."""
        if flags & zmq.SNDMORE:
            if len(self.queue) >= self.faults.hwm:
                raise zmq.Again
            self.first = bytes(part)
            return
        now = self.world.now
        when = max(self.last, now + self.faults.delay + self.world.chance.random() * self.faults.jitter)
        for begin, end in self.faults.stalls:
            if begin <= when < end:
                when = end
        self.last = when
        self.queue.append((when, (self.first, bytes(part))))
        if self.consumer is not None:
            self.consumer.wake(when)

    def recv(self, flags: int, copy: bool = True) -> Part:
        """The parts of the next message that has arrived, one by one, or Again."""
        if self.rest is not None:
            part, self.rest = Part(self.rest, more=False), None
            return part
        if not self.queue or self.queue[0][0] > self.world.now:
            raise zmq.Again
        if self.producer is not None and len(self.queue) == self.faults.hwm:
            self.producer.wake(self.world.now)
        first, self.rest = self.queue.popleft()[1]
        return Part(first, more=True)

    def arrives(self) -> float | None:
        """When the next message does."""
        return self.queue[0][0] if self.queue else None

    def producer_dies(self) -> None:
        """What had not yet left the producer is lost: the end of the queue."""
        for _ in range(self.world.chance.randint(0, len(self.queue))):
            self.queue.pop()

    def consumer_dies(self) -> None:
        """What had already reached the consumer is lost: the beginning of the queue."""
        for _ in range(self.world.chance.randint(0, len(self.queue))):
            self.queue.popleft()


# They call libzmq's functions directly; here a `Wire` is what they are called with.
links._send, links._receive = Wire.send, Wire.recv


class Pipe:
    """Frames on their way between a host and a port."""

    def __init__(self, world: World, way: Way, arrive: Callable[[bytes, int], None]) -> None:
        self.world, self.way, self.arrive = world, way, arrive
        self.under_way: dict[int, tuple[bytes, int]] = {}
        self._next = 0
        self._last = 0.0

    def send(self, raw: bytes, vnet: int) -> None:
        """Lose it, double it, delay it."""
        way, chance = self.way, self.world.chance
        copies = 1
        faulty = self.world.now < CALM
        if faulty:
            if way.loss and chance.random() < way.loss:
                return
            copies += bool(way.twice) and chance.random() < way.twice
        for _ in range(copies):
            delay = way.delay + (way.jitter * chance.random() if way.jitter else 0.0)
            when = max(self.world.now + delay, self._last)
            if faulty and way.late and chance.random() < way.late:
                when += chance.random() * 0.03  # and others overtake it
            else:
                self._last = when
            self._next += 1
            self.under_way[self._next] = raw, vnet
            self.world.at(when, self._arrived, self._next)

    def _arrived(self, number: int) -> None:
        frame = self.under_way.pop(number, None)
        if frame is not None:
            self.arrive(*frame)

    def drain(self) -> None:
        """Everything arrives now."""
        for number in list(self.under_way):
            self._arrived(number)

    def clear(self) -> None:
        """Nothing of it arrives."""
        self.under_way.clear()


class Process:
    """One process: cores, its ends of links, and the ports that wait to be read."""

    def __init__(self, world: World, name: str, services: tuple[str, ...]) -> None:
        self.world, self.name, self.services = world, name, services
        self.alive = False
        self.cores: dict[str, Core] = {}
        self.senders: dict[str, links.Sender] = {}
        self.receivers: dict[str, links.Receiver] = {}
        self.ports: dict[tuple[str, str], list[tuple[bytes, int]]] = {}
        self.heard: list[tuple[str, Event]] = []
        self._inner: deque[tuple[str, str, Item]] = deque()
        self._wake_at: float | None = None
        #: Ticks in a row after which a core was as overdue as before.
        self._overdue = 0
        self._consumes = {stream: service for service in services for stream in SERVICES[service].takes}

    # --- life

    def start(self) -> None:
        """New cores, a new boot id, nothing remembered."""
        world = self.world
        self.alive = True
        self.cores = {service: core_of(service, world.node) for service in self.services}  # type: ignore[arg-type]
        boot = world.chance.randbytes(8)
        given = {stream for service in self.services for stream in SERVICES[service].gives}
        self.senders, self.receivers = {}, {}
        for stream in sorted(given - self._consumes.keys()):
            wire = world.wires[stream]
            wire.producer = self
            self.senders[stream] = links.Sender(wire, stream, "tcp://127.0.0.1:1", boot)  # type: ignore[arg-type]
        for stream in sorted(self._consumes.keys() - given):
            wire = world.wires[stream]
            wire.consumer = self
            self.receivers[stream] = links.Receiver(wire, stream, "tcp://127.0.0.1:1")  # type: ignore[arg-type]
        self.ports = {(service, port): [] for service in self.services for port in SERVICES[service].ports}
        self.heard = []
        self._wake_at = None
        world.record("start", self.name)
        self.wake(world.now)

    def crash(self) -> None:
        """Everything in it is gone."""
        self.alive = False
        self._wake_at = None
        self.ports = {}
        self.heard = []
        self._inner.clear()
        for stream in self.senders:
            self.world.wires[stream].producer_dies()
            self.world.wires[stream].producer = None
        for stream in self.receivers:
            self.world.wires[stream].consumer_dies()
            self.world.wires[stream].consumer = None
        self.world.record("crash", self.name)

    # --- what it waits for

    def arrive(self, service: str, port: str, raw: bytes, vnet: int) -> None:
        """A frame came to a port."""
        if self.alive:
            self.ports[service, port].append((raw, vnet))
            self.wake(self.world.now + self.world.chance.random() * self.world.scenario.wake)

    def hear(self, service: str, event: Event) -> None:
        """An event of another process came."""
        if self.alive:
            self.heard.append((service, event))
            self.wake(self.world.now)

    def wake(self, when: float) -> None:
        """Run at this moment, or sooner."""
        if self.alive and (self._wake_at is None or when < self._wake_at):
            self._wake_at = when
            self.world.at(when, self._woken, when)

    def _woken(self, when: float) -> None:
        if self.alive and when == self._wake_at:
            self.run()

    def run(self) -> None:
        """One round of the shell's loop."""
        self._wake_at = None
        sources: list[Any] = [place for place, waiting in self.ports.items() if waiting]
        sources += [stream for stream in self.receivers if self.world.wires[stream].queue]
        if len(sources) > 1:
            self.world.chance.shuffle(sources)
        for source in sources:
            if not self.alive:
                return
            if isinstance(source, tuple):
                self.read_port(*source)
            else:
                self._read_link(source)
        while self.heard and self.alive:
            service, event = self.heard.pop(0)
            self._push(service, EVENTS, event)
        for sender in self.senders.values():
            if sender.blocked:
                sender.flush()
        deadlines = []
        for service, core in self.cores.items():
            due = core.next_deadline()
            if due is not None and due <= self.world.now:
                self._called(service, "tick", None, lambda core=core: core.tick(self.world.now))
                self._drain_inner()
                due = core.next_deadline()
                if due is not None and due <= self.world.now:
                    due = self.world.now + 0.001
                    self._overdue += 1
                    if self._overdue > MOST_OVERDUE:
                        raise Violation(9, f"{service} does nothing of what is due, and will not let go of it")
                else:
                    self._overdue = 0
            if due is not None:
                deadlines.append(due)
        for stream in self.receivers:
            arrives = self.world.wires[stream].arrives()
            if arrives is not None:
                deadlines.append(max(arrives, self.world.now))
        if deadlines and self.alive:
            self.wake(min(deadlines))

    def read_port(self, service: str, port: str) -> None:
        """Push what waits at a port, in batches of one size of virtio-net header."""
        waiting, self.ports[service, port] = self.ports[service, port], []
        start = 0
        for index in range(1, len(waiting) + 1):
            if index == len(waiting) or waiting[index][1] != waiting[start][1]:
                batch = Batch.of([raw for raw, _ in waiting[start:index]], waiting[start][1])
                self._push(service, port, batch)
                start = index

    def _read_link(self, stream: str) -> None:
        receiver, service = self.receivers[stream], self._consumes[stream]
        for _ in range(MOST_MESSAGES):
            items = receiver.receive()
            if items is None:
                break
            if receiver.rejected:
                raise Violation(8, f"{stream}: a message of ours was refused: {receiver.last_rejection}")
            for item in items:
                if stream == "to_guest" or (stream == "ingress" and len(self.services) > 1):
                    self.world.before_rewriter(item)
                self._push(service, stream, item)

    # --- pushing

    def command(self, service: str, op: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A control request."""
        answer: dict[str, Any] = {}

        def ask() -> Any:
            said, outputs = self.cores[service].command(op, arguments, self.world.now)
            answer.update(said)
            return outputs

        self._called(service, "command", (op, arguments), ask)
        self._drain_inner()
        deadline = self.cores[service].next_deadline()
        if deadline is not None:
            self.wake(max(deadline, self.world.now))
        return answer

    def _push(self, service: str, stream: str, item: Item) -> None:
        now = self.world.now
        self._called(service, stream, item, lambda: self.cores[service].push(stream, item, now))
        self._drain_inner()

    def _drain_inner(self) -> None:
        while self._inner:
            service, stream, item = self._inner.popleft()
            if stream == "to_guest":
                self.world.before_rewriter(item)
            now = self.world.now
            self._called(
                service, stream, item, lambda s=service, t=stream, i=item: self.cores[s].push(t, i, now)
            )  # fmt: skip

    def _called(self, service: str, what: str, item: Any, call: Callable[[], Any]) -> None:
        """Call into a core; whatever it raises is its fault."""
        try:
            outputs = list(call())
        except Exception as error:
            self.world.record("call", service, what, snapshot(item), ())
            raise Violation(8, f"{service} raised {type(error).__name__} on {what}: {error}") from error
        self.world.called(service, what, item, outputs, self.cores[service])
        for output in outputs:
            self._carry_out(service, output)

    def _carry_out(self, service: str, output: Any) -> None:
        """As the shell does."""
        if isinstance(output, Event):
            for other, wiring in SERVICES.items():
                if service in wiring.hears:
                    if other in self.cores:
                        self._inner.append((other, EVENTS, output))
                    else:
                        self.world.tell(other, output)
            self.world.heard(service, output)
            return
        where, item = output
        if where in SERVICES[service].ports and isinstance(item, Batch):
            start = 0
            for length in item.lengths:
                self.world.leave(service, where, bytes(item.data[start : start + length]), item.vnet)
                start += length
        elif where in self.senders:
            if not self.senders[where].send(item, self.cores[service].epoch):
                core = self.cores[service]
                self._called(
                    service, "undelivered", (where, item), lambda: core.undelivered(where, item, self.world.now)
                )  # fmt: skip
        elif where in self._consumes:
            if isinstance(item, Batch):
                item = Batch(item.data, item.lengths, item.vnet, self.cores[service].epoch)
            self._inner.append((self._consumes[where], where, item))
        else:
            raise Violation(8, f"{service} gave {type(item).__name__} to {where!r}, which is not wired")
        if service == "rewriter" and where == FROM_GUEST and isinstance(item, Cut):
            self.world.passed_rewriter(item)


class World:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario, excused: frozenset[str] = frozenset(KNOWN)) -> None:
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
                },
                "redirector": {"announcements": scenario.announcements},
            }
        )
        # Smaller limits than a configuration may name, so that small traffic reaches them.
        self.node = plain.model_copy(update={"comparer": plain.comparer.model_copy(update=scenario.comparer)})
        self.checker = Checker(scenario, self.reader, self.node.comparer, excused)
        self.plans = Plans(lambda host, plan, what: self.record("complaint", host, plan, what))
        links.MOST_PENDING = scenario.most_pending
        comparer.CALM, comparer.AGITATED = scenario.calm
        self.wires = {stream: Wire(self, stream) for stream in scenario.links}
        self._build_hosts()
        groups = [("mirror",), ("comparer",)]
        groups += [("redirector", "rewriter")] if scenario.fused else [("redirector",), ("rewriter",)]
        self.processes = [Process(self, "+".join(group), group) for group in groups]
        self._of = {service: process for process in self.processes for service in process.services}
        self.parked: dict[str, list[tuple[bytes, int]]] = {"primary": [], "secondary": []}
        self._ticks: dict[str, float] = {}
        self.primary_dead = self.secondary_dead = self.failed_over = False
        self._commanded: set[str] = set()
        #: Who has opened, of the plans that both ends open.
        self._both: dict[int, set[str]] = {}
        # The checkpointer.
        self.epoch = 0
        self.preparing: int | None = None
        self._wanted = False
        self._not_yet_loaded = False
        self._prepare_passed = False
        self._stands = 0
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

    # --- clock and trace

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

    # --- hosts and ports

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

    # --- events and faults

    def tell(self, service: str, event: Event) -> None:
        """An event travels to another process."""
        self.at(self.now + self.scenario.events_delay, self._of[service].hear, service, event)

    def heard(self, service: str, event: Event) -> None:
        """The checkpointer hears every event."""
        if event.name == "checkpoint_requested" or (event.name == "cut_lost" and event.fields["phase"] != "abort"):
            self._wanted = True
            self.at(self.now + self.scenario.reaction * self.chance.uniform(0.3, 1.0), self._asked)

    def _asked(self) -> None:
        if self._wanted and self.scenario.on_divergence == "checkpoint":
            committed = self.chance.random() >= self.scenario.aborts
            self._prepare(committed, self.chance.uniform(0.001, 0.05))

    def _crash(self, service: str, down: float) -> None:
        process = self._of[service]
        if process.alive:
            process.crash()
            self.at(self.now + down, self._restart, process)

    def _restart(self, process: Process) -> None:
        dead = self.primary_dead and "mirror" in process.services
        dead = dead or (self.secondary_dead and {"redirector", "rewriter"} & set(process.services))
        dead = dead or (self.scenario.comparer_dies and self.primary_dead and "comparer" in process.services)
        if not process.alive and not dead:
            process.start()
            # Whoever promotes tells a new process again.
            for service in process.services:
                if service in self._commanded:
                    self._fail_over(service)

    def _primary_dies(self) -> None:
        self.primary_dead = True
        self.preparing = None
        for name in ("mirror", *(("comparer",) if self.scenario.comparer_dies else ())):
            if self._of[name].alive:
                self._of[name].crash()
        self._in["primary"].clear()
        self._out["primary"].clear()
        self.record("primary dies")
        self.at(self.now + self.scenario.detection, self._fail_over, "redirector")

    def _fail_over(self, service: str) -> None:
        self._commanded.add(service)
        process = self._of[service]
        if not process.alive:
            return  # told when it is back
        if service == "redirector":
            self.failed_over = True
        self.record("failover", service)
        process.command(service, "failover", {"epoch": self.epoch})
        if service == "redirector":
            self._not_yet_loaded = False
            self._resume("secondary")

    def _secondary_dies(self) -> None:
        self.secondary_dead = True
        for service in ("redirector", "rewriter"):
            if self._of[service].alive:
                self._of[service].crash()
        self._in["secondary"].clear()
        self._out["secondary"].clear()
        self.parked["secondary"].clear()
        self.record("secondary dies")
        self.at(self.now + self.scenario.detection, self._fail_over, "comparer")

    def _secondary_is_back(self) -> None:
        """Its processes run again; its guest needs a checkpoint."""
        if "comparer" not in self._commanded or not self._of["comparer"].alive:
            self.at(self.now + 0.05, self._secondary_is_back)
            return
        for process in self.processes:
            if {"redirector", "rewriter"} & set(process.services) and not process.alive:
                process.start()
        self.secondary_dead = False
        self._not_yet_loaded = True
        self.hosts["secondary"].stop(self.now)
        self._prepare(True, 0.02)

    # --- the checkpointer

    def _prepare(self, committed: bool, seconds: float) -> None:
        mirror = self._of["mirror"]
        if self.primary_dead or self.secondary_dead:
            return
        if self.preparing is not None or not mirror.alive or self._awaiting():
            self.at(self.now + 0.05, self._prepare, committed, seconds)
            return
        primary = self.hosts["primary"]
        if self.scenario.drained:
            self._in["primary"].drain()
        primary.stop(self.now)
        self._out["primary"].drain()
        mirror.read_port("mirror", GUEST)
        self.preparing = self.epoch + 1
        self._prepare_passed = False
        self.record("prepare", self.epoch + 1)
        mirror.command("mirror", "cut", {"epoch": self.preparing, "phase": "prepare"})
        self.at(self.now + seconds, self._finish, committed, mirror.senders["primary"])

    def _awaiting(self) -> bool:
        """The secondary stands and waits for the last cut."""
        return self.hosts["secondary"].stopped_at is not None and not self._not_yet_loaded

    def _finish(self, committed: bool, sender: object) -> None:
        epoch, self.preparing = self.preparing, None
        if self.primary_dead:
            return
        mirror = self._of["mirror"]
        same = mirror.alive and mirror.senders["primary"] is sender
        if not same or self.secondary_dead:
            committed = False
        if committed:
            self._load()
        self.record("commit" if committed else "abort", self.epoch)
        phase = "commit" if committed else "abort"
        if committed and self.scenario.eager:
            self._resume("primary")
            self.at(self.now + self.scenario.eager, self._tell, mirror, sender, {"epoch": epoch, "phase": phase})
        elif same:
            mirror.command("mirror", "cut", {"epoch": epoch, "phase": phase})
        if committed:
            self._wanted = False
        elif self._wanted or self._not_yet_loaded:
            self.at(self.now + 0.05, self._prepare, True, 0.02)
        self._resume("primary")
        self._stands += 1
        self.at(self.now + FALLBACK, self._look_after_secondary, self._stands)

    def _tell(self, mirror: Process, sender: object, cut: dict[str, Any]) -> None:
        """The cut, some time after the guest has gone on."""
        if not self.primary_dead and mirror.alive and mirror.senders["primary"] is sender:
            mirror.command("mirror", "cut", cut)

    def _look_after_secondary(self, stands: int) -> None:
        """The cut for which the secondary stands may be lost."""
        if stands == self._stands:
            self._resume("secondary")

    def _load(self) -> None:
        """The secondary guest becomes a copy of the primary, and stands until the commit reaches the rewriter."""
        secondary = self.hosts["secondary"]
        secondary.stop(self.now)
        self._out["secondary"].drain()
        self._read_secondary()
        secondary.copy_of(self.hosts["primary"], self.now)
        self.plans.copied("primary", "secondary")
        self._not_yet_loaded = False
        self.epoch += 1
        if not self._prepare_passed:
            self._empty_secondary()
        self.record("copy", self.epoch)

    def _read_secondary(self) -> None:
        rewriter = self._of["rewriter"]
        if rewriter.alive:
            rewriter.read_port("rewriter", GUEST)

    def _empty_secondary(self) -> None:
        """What waits for the secondary is from before the cut: the copy has it already."""
        self._in["secondary"].clear()
        self.parked["secondary"].clear()

    def before_rewriter(self, item: Item) -> None:
        """A cut is about to reach the rewriter: the secondary stands, and its port is drained."""
        if not isinstance(item, Cut) or item.phase != "prepare" or self.failed_over or self.secondary_dead:
            return
        secondary = self.hosts["secondary"]
        self._prepare_passed = True
        if secondary.stopped_at is not None:
            self._empty_secondary()
        elif self.preparing is not None:
            self._in["secondary"].drain()
            secondary.stop(self.now)
            self._out["secondary"].drain()
            self._read_secondary()

    def passed_rewriter(self, cut: Cut) -> None:
        """A cut has passed the rewriter: what comes after it is said in the epoch that it begins."""
        if cut.phase != "prepare":
            self._resume("secondary")

    def _resume(self, name: str) -> None:
        host = self.hosts[name]
        if host.stopped_at is None or self._is_dead(name):
            return
        if name == "secondary" and (self._not_yet_loaded or self.preparing is not None):
            return
        host.resume(self.now)
        self.record("resumes", name)
        self._ticks.pop(name, None)
        parked, self.parked[name] = self.parked[name], []
        for raw, vnet in parked:
            self._in[name].arrive(raw, vnet)
        self._schedule(name)


def snapshot(item: Any) -> Any:
    """What an item says, in a form that stays as it is."""
    if isinstance(item, Batch):
        return Frames(item.vnet, item.epoch, tuple(item.frames()))
    if isinstance(item, Cut | Gap | Event):
        return item
    if isinstance(item, tuple):
        return tuple(snapshot(part) for part in item)
    return item


class Frames(tuple[int, int, tuple[bytes, ...]]):
    """`(vnet, epoch, frames)` of a batch."""

    __slots__ = ()

    def __new__(cls, vnet: int, epoch: int, frames: tuple[bytes, ...]) -> Frames:
        return tuple.__new__(cls, (vnet, epoch, frames))


__all__ = ["REFUSED", "RESET", "Process", "World"]
