"""One process: it holds one core, or two that are fused, as `lockstep.shell` runs them.

It wakes, drains what waits at its ports and links into batches, pushes, sends. Links are `lockstep.link.zmq`'s
`Sender` and `Receiver` over a `Wire`: messages are encoded, numbered, queued and decoded for real.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lockstep.batch import Batch
from lockstep.link import zmq as links
from lockstep.service import core_of
from lockstep.streams import EVENTS, FROM_GUEST, Core, Cut, Event, Item
from lockstep.wiring import SERVICES, of
from sim.lives import Violation
from sim.snapshot import snapshot

if TYPE_CHECKING:
    from sim.world import World

#: Messages that a process takes from a link at once.
MOST_MESSAGES = 64
#: Ticks of a core in a row that leave it overdue, at most.
MOST_OVERDUE = 200


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
        self._wirings = {service: of(world.node, service) for service in services}
        self._consumes = {stream: service for service in services for stream in self._wirings[service].takes}

    # --- life

    def start(self) -> None:
        """New cores, a new boot id, nothing remembered."""
        world = self.world
        self.alive = True
        self.cores = {service: core_of(service, world.node) for service in self.services}  # type: ignore[arg-type]
        boot = world.chance.randbytes(8)
        given = {stream for service in self.services for stream in self._wirings[service].gives}
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
            self._called(
                service, stream, item, lambda s=service, t=stream, i=item: self.cores[s].push(t, i, self.world.now)
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
