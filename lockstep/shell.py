"""The one loop that runs any core: wait, drain what is there into batches, push, send.

The shell owns everything a core must not: sockets, ports, the clock, signals and the log. Several
cores can share one shell: a stream between two of them is then a function call.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import structlog
import zmq

from lockstep import build
from lockstep import config as configuration
from lockstep.batch import MAX_BATCH, Batch
from lockstep.capture import open_port
from lockstep.capture.base import Port
from lockstep.config import Node, Service
from lockstep.control import ControlRefused, Listener, Server
from lockstep.link import curve as keys
from lockstep.link.qemu import QemuReceiver, QemuSender
from lockstep.link.zmq import Curve, Receiver, Sender
from lockstep.log import RateLimit
from lockstep.poller import Act, Poller
from lockstep.pressure import Pressure
from lockstep.qemu.address import Address
from lockstep.qemu.notify import Notify
from lockstep.report import FRAMES
from lockstep.report.recorder import Recorder
from lockstep.streams import (
    EVENTS,
    GUEST,
    PRIMARY,
    CommandError,
    Core,
    Cut,
    Event,
    Gap,
    Item,
    Output,
    share,
    stream_and_share,
)
from lockstep.wiring import Wiring
from lockstep.wiring import of as wiring_of

#: Messages, and frames, taken from one link before the others get their turn.
MOST_MESSAGES, MOST_FRAMES = 64, 2048
#: A guest answers what it is given, and its answers wait in a queue of a thousand frames. So that none is lost
#: it is given about this many frames in one turn; and a port is read that often as long as each time brings many.
MOST_GIVEN, MOST_READS, MANY_FRAMES = 256, 4, 128
#: Requests and events taken before the frames get their turn.
MOST_REQUESTS = 8
#: Seconds for which a time-out is put off, at most, while there is unread what may make it needless.
MOST_PUT_OFF = 5.0
#: Log lines a second about events and about refused messages.
LOG_BURST = 20

log = structlog.get_logger()

#: A service, and the name of its port or of a stream that comes over a link.
Source = tuple[Service, str]


class Way:
    """Where an output goes: to one of a port, a link, a link of QEMU's, and a service in the same shell."""

    __slots__ = ("port", "qemu", "sender", "to")

    def __init__(
        self,
        *,
        port: Port | None = None,
        sender: Sender | None = None,
        qemu: QemuSender | None = None,
        to: Service | None = None,
    ) -> None:
        self.port, self.sender, self.qemu, self.to = port, sender, qemu, to


class Shell:
    """Runs the cores of `services` until it is told to stop.

    path, capture: where the configuration came from, for `reload`.
    ports: opened ports by `service.port`, for those that are not opened from the configuration.
    wiring: of these services, where it is another than the node's.
    view: of a configuration that is read again, what these cores are to see.
    record: whether divergences are written to `comparer.capture_dir`.
    """

    def __init__(
        self,
        node: Node,
        cores: Mapping[Service, Core],
        *,
        path: Path | None = None,
        capture: str | None = None,
        ports: Mapping[str, Port] | None = None,
        wiring: Mapping[Service, Wiring] | None = None,
        view: Callable[[Node], Node] = lambda node: node,
        record: bool = True,
    ) -> None:
        self._node = node
        self._wiring = wiring or {service: wiring_of(node, service) for service in cores}
        self._view, self._record = view, record
        self._path, self._capture = path, capture
        self._cores = dict(cores)
        self._stack = ExitStack()
        self._poller = Poller()
        self._stack.callback(self._poller.close)
        #: What is polled for each port and link that is read.
        self._sources: dict[Source, Any] = {}
        self._boot = os.urandom(8)
        self._started = time.monotonic()
        #: When the next thing is due, as of the end of the last turn.
        self._due: float | None = 0.0
        self._events_allowed, self._rejections_allowed = RateLimit(LOG_BURST), RateLimit(1)
        self.stopping = False
        #: What is still to be pushed into a core of this shell: (service, stream, item).
        self._inner: deque[tuple[Service, str, Item]] = deque()
        self._consumers: dict[str, Service] = {s: service for service in cores for s in self._wiring[service].takes}
        self._producers: dict[str, Service] = {s: service for service in cores for s in self._wiring[service].gives}
        self._ports: dict[tuple[Service, str], Port] = {}
        self._senders: dict[str, Sender | QemuSender] = {}
        #: Streams whose sender waits for its socket to take messages again.
        self._blocked: set[str] = set()
        self._receivers: dict[str, Receiver | QemuReceiver] = {}
        #: Streams that were not read to their end in the last turn, and since when.
        self._unread: dict[str, float] = {}
        #: Of each service, by the name of a port, or of a stream that it gives.
        self._ways: dict[Service, dict[str, Way]] = {service: {} for service in cores}
        self._servers: dict[Service, Server] = {}
        self._allowed: keys.AllowList | None = None
        self._recorder: Recorder | None = None
        self._notify: Notify | None = None
        try:
            self._open(ports or {})
        except BaseException:
            self._stack.close()
            raise
        self._pressure = Pressure(
            {source: self._keep_waiting(*source) for source in self._sources}, self._rest, self._wake
        )

    # --- set-up

    def _open(self, given: Mapping[str, Port]) -> None:
        node = self._node
        context = self._stack.enter_context(zmq.Context())
        curve = self._curve(context)
        if "comparer" in self._cores and self._record and node.comparer.capture_dir is not None:
            comparer = node.comparer
            self._recorder = Recorder(node.comparer.capture_dir, comparer.capture_files, comparer.capture_bytes)
            self._stack.callback(self._recorder.close)
        for service in self._cores:
            for name in self._wiring[service].ports:
                port = given.get(f"{service}.{name}") or open_port(node, service, name)
                self._stack.callback(port.close)
                self._ports[service, name] = port
                self._ways[service][name] = Way(port=port)
                self._sources[service, name] = port.fileno()
                self._poller.watch(port.fileno(), self._port_act(service, name, port))
        for label, service in self._consumers.items():
            if label not in self._producers:
                stream, _ = stream_and_share(label)
                names = [guest.name for guest in node.guests] if service == "comparer" else []
                receiver = self._receiver(context, service, label, names, curve)
                self._stack.callback(receiver.close)
                self._receivers[label] = receiver
                self._sources[service, label] = receiver.socket
                shares = {name: share(stream, name) for name in names}
                self._poller.watch(receiver.socket, self._link_act(service, label, receiver, shares))
        for label, service in self._producers.items():
            if label in self._consumers:
                self._ways[service][label] = Way(to=self._consumers[label])
                continue
            sender = self._sender(context, label, curve)
            self._stack.callback(sender.close)
            self._senders[label] = sender
            if isinstance(sender, Sender) and sender.watched:
                self._poller.watch(sender.socket, self._work_act(label, sender))
            way = Way(sender=sender) if isinstance(sender, Sender) else Way(qemu=sender)
            self._ways[service][label] = way
        for service in self._cores:
            server = Server(context, node.control_endpoint(service), node.events_endpoint(service), curve)
            self._stack.callback(server.close)
            self._servers[service] = server
            self._poller.watch(server.socket, self._control_act(service, server))
            # Those in this shell are heard without a socket; those of this node have this node's key.
            here = [other for other in self._wiring[service].hears if other not in self._cores]
            local = [configuration.reachable(node.events_endpoint(other)) for other in here]
            remote = list(node.events) if self._wiring[service].hears else []
            own = None if curve is None else Curve(curve.public, curve.secret, curve.public)
            for endpoints, there in ((local, own), (remote, self._towards(curve, None))):
                listener = Listener(context, endpoints, there)
                self._stack.callback(listener.close)
                for socket in listener.sockets:
                    self._poller.watch(socket, self._event_act(service, listener, socket))
        if "comparer" in self._cores and node.comparer.notify is not None:
            self._notify = Notify(Address.parse(node.comparer.notify), node.comparer.notify_server)
            self._stack.callback(self._notify.close)
            self._poller.watch(self._notify.fileno(), self._notify_act(self._notify))

    def _receiver(
        self, context: zmq.Context[zmq.Socket[bytes]], service: Service, label: str, guests: list[str],
        curve: Curve | None,
    ) -> Receiver | QemuReceiver:  # fmt: skip
        """The consuming end of a link."""
        link, (stream, _) = self._node.link(label), stream_and_share(label)
        qemu = link.qemu()
        if qemu is not None:
            core = self._cores[service]
            return QemuReceiver(stream, qemu, link.server is not False, link.vnet_hdr, lambda: core.epoch)
        return Receiver(
            context, stream, link.endpoint, hwm=link.hwm, guest=None if guests else self._node.guest.name,
            guests=guests, curve=curve, direct=self._node.ipc == "direct",
        )  # fmt: skip

    def _sender(self, context: zmq.Context[zmq.Socket[bytes]], label: str, curve: Curve | None) -> Sender | QemuSender:
        """The producing end of a link."""
        link, (stream, name) = self._node.link(label), stream_and_share(label)
        guest = name if self._node.guests else self._node.guest.name
        qemu = link.qemu()
        if qemu is not None:
            made = QemuSender(stream, qemu, link.server is True, link.vnet_hdr)
            self._poller.watch(made.socket, self._care_act(made))
            return made
        return Sender(
            context, stream, link.endpoint, self._boot, hwm=link.hwm, guest=guest,
            curve=self._towards(curve, link.key), direct=self._node.ipc == "direct",
        )  # fmt: skip

    def _curve(self, context: zmq.Context[zmq.Socket[bytes]]) -> Curve | None:
        if self._node.security.secret_key is None:
            return None
        own = keys.load(self._node.security.secret_key)
        # `lockstep status` and services of this node come with its own key.
        self._allowed = keys.AllowList(context, (*self._node.security.peers, own.public.decode()))
        self._stack.callback(self._allowed.close)
        return own

    def _towards(self, curve: Curve | None, key: str | None) -> Curve | None:
        """This node's keys, with the key of the node that a connection leads to."""
        if curve is None:
            return None
        return Curve(curve.public, curve.secret, (key or self._node.security.peers[0]).encode())

    def _keep_waiting(self, service: Service, source: str) -> tuple[str, ...]:
        """The links of this shell that a source of a service can fill, be it through other services in here.

        A comparer of many guests waits for none of their links: its own are shared by all of them.
        """
        found: list[str] = []
        for stream in self._wiring[service].rests.get(source, ()):
            inner = stream in self._consumers and stream in self._producers
            found += self._keep_waiting(self._consumers[stream], stream) if inner else [stream]
        return tuple(found)

    def _rest(self, source: Source) -> None:
        if source[1] in self._receivers:
            self._unread.setdefault(source[1], time.monotonic())
        if source in self._sources:
            self._poller.rest(self._sources[source])

    def _wake(self, source: Source) -> None:
        if source in self._sources:
            self._poller.wake(self._sources[source])

    # --- what happens when a source is readable

    def _port_act(self, service: Service, name: str, port: Port) -> Act:
        def act(now: float) -> None:
            guest = self._ports.get((service, GUEST), port)
            given = guest.counters["frames_out"]
            for _ in range(MOST_READS):
                item = port.read()
                if item is None:
                    if port.exhausted():
                        self._poller.forget(self._sources.pop((service, name)))
                    break
                self._push(service, name, item, now)
                if isinstance(item, Batch) and len(item) < MANY_FRAMES:
                    break
                if name != GUEST and guest.counters["frames_out"] - given >= MOST_GIVEN // 2:
                    break

        return act

    def _link_act(
        self, service: Service, label: str, receiver: Receiver | QemuReceiver, shares: Mapping[str, str]
    ) -> Act:
        """shares: on a link of many guests, what each guest's share of the stream is called."""
        most = MOST_GIVEN if GUEST in self._wiring[service].ports else MOST_FRAMES

        def act(now: float) -> bool:
            taken = frames = 0
            rejected = receiver.rejected
            for _ in range(MOST_MESSAGES):
                items = receiver.receive()
                if items is None:
                    break
                stream = shares.get(receiver.guest or "", label)
                for item in items:
                    if isinstance(item, Batch):
                        taken += len(item.data)
                        frames += len(item)
                    self._push(service, stream, item, now)
                if taken > MAX_BATCH or frames > most:
                    break
            more = items is not None
            if more:
                self._unread.setdefault(label, now)
            else:
                self._unread.pop(label, None)
            if receiver.rejected > rejected and self._rejections_allowed.allows(now):
                suppressed = self._rejections_allowed.take_suppressed()
                log.warning(
                    "message_rejected", stream=label, why=receiver.last_rejection,
                    total=receiver.rejected, suppressed=suppressed,
                )  # fmt: skip
            return more

        return act

    def _care_act(self, sender: QemuSender) -> Act:
        def act(now: float) -> None:
            sender.flush()

        return act

    def _notify_act(self, notify: Notify) -> Act:
        """A checkpoint that the peer has made: the guest stands still, so everything before it has come."""

        def act(now: float) -> None:
            for _ in range(notify.checkpoints()):
                epoch = self._cores["comparer"].epoch + 1
                self._push("comparer", PRIMARY, Cut(epoch, "prepare"), now)
                self._push("comparer", PRIMARY, Cut(epoch, "commit"), now)

        return act

    def _work_act(self, where: str, sender: Sender) -> Act:
        """For a sender that is watched as long as it is there."""

        def act(now: float) -> None:
            self._flush(where, sender, now)

        return act

    def _flush_act(self, where: str, sender: Sender) -> Act:
        """For a sender that libzmq looks after: it is watched while it is blocked."""

        def act(now: float) -> None:
            # Asking for its events has libzmq look at its news; a send alone may put that off.
            events: Any = sender.socket.getsockopt(zmq.EVENTS)
            if events & zmq.POLLOUT and self._flush(where, sender, now):
                self._poller.forget(sender.socket)

        return act

    def _flush(self, where: str, sender: Sender, now: float) -> bool:
        """Send what waits; whether nothing does any more."""
        before = sender.counters["messages"]
        done = sender.flush()
        if where in self._blocked:
            if done:
                self._blocked.discard(where)
                self._pressure.free(where, now)
            elif sender.counters["messages"] > before:
                self._pressure.moved(where, now)
        return done

    def _control_act(self, service: Service, server: Server) -> Act:
        def act(now: float) -> bool:
            for _ in range(MOST_REQUESTS):
                if not server.serve(lambda op, arguments: self._command(service, op, arguments, now)):
                    return False
            return True

        return act

    def _event_act(self, service: Service, listener: Listener, socket: zmq.Socket[bytes]) -> Act:
        def act(now: float) -> bool:
            for _ in range(MOST_REQUESTS):
                events = listener.receive(socket)
                if events is None:
                    return False
                for event in filter(self._concerns, events):
                    self._push(service, EVENTS, event, now)
            return True

        return act

    def _concerns(self, event: Event) -> bool:
        """Whether an event is about a guest of this process, as far as both say which."""
        own, other = self._node.guest.name, event.fields.get("guest")
        return own is None or other is None or own == other

    # --- pushing, and carrying out what a core gives back

    def _push(self, service: Service, stream: str, item: Item, now: float) -> None:
        """Push an item from outside, and all that follows from it inside.

        When this returns nobody looks at the item's buffer any more: a port fills it again at its next read.
        """
        self._carry_out(service, self._cores[service].push(stream, item, now), now)
        self._settle(now)

    def _settle(self, now: float) -> None:
        """Push what the cores of this shell have given each other, until none has anything left to say."""
        while self._inner:
            service, stream, item = self._inner.popleft()
            self._carry_out(service, self._cores[service].push(stream, item, now), now)

    def _carry_out(self, service: Service, outputs: Iterable[Output], now: float) -> None:
        """The one place that interprets outputs."""
        ways = self._ways[service]
        for output in outputs:
            if isinstance(output, Event):
                self._tell(service, output, now)
                continue
            where, item = output
            way = ways.get(where)
            if way is not None and way.sender is not None:
                self._send(service, where, way.sender, item, now)
            elif way is not None and way.to is not None:
                if isinstance(item, Batch):
                    item = Batch(item.data, item.lengths, item.vnet, self._cores[service].epoch)
                self._inner.append((way.to, where, item))
            elif way is not None and way.port is not None and isinstance(item, Batch):
                way.port.write(item)
            elif way is not None and way.qemu is not None:
                if not isinstance(item, Gap) and not way.qemu.send(item, self._cores[service].epoch):
                    self._carry_out(service, self._cores[service].undelivered(where, item, now), now)
            else:
                raise AssertionError(f"{service} gave {type(item).__name__} to {where!r}, which is not wired")

    def _send(self, service: Service, where: str, sender: Sender, item: Batch | Cut | Gap, now: float) -> None:
        core = self._cores[service]
        if isinstance(item, Gap):
            sender.skip(core.epoch)
        elif not sender.send(item, core.epoch):
            self._carry_out(service, core.undelivered(where, item, now), now)
        if sender.blocked and where not in self._blocked:
            self._blocked.add(where)
            if not sender.watched:
                self._poller.watch(sender.socket, self._flush_act(where, sender))
            self._pressure.moved(where, now)

    def _tell(self, service: Service, event: Event, now: float) -> None:
        if self._node.guest.name is not None:
            event = Event(event.name, {"guest": self._node.guest.name, **event.fields})
        self._servers[service].publish(event)
        for other in self._cores:
            if service in self._wiring[other].hears:
                self._inner.append((other, EVENTS, event))
        if self._recorder is not None and event.name == "divergence":
            self._recorder.take(event.fields, now)
        if self._notify is not None and event.name == "checkpoint_requested":
            self._notify.ask()
        if self._events_allowed.allows(now):
            told = {name: value for name, value in event.fields.items() if name not in FRAMES}
            shown = {name: value.hex() if isinstance(value, bytes) else value for name, value in told.items()}
            suppressed = self._events_allowed.take_suppressed()
            more = {"suppressed": suppressed} if suppressed else {}
            log.info("event_published", service=service, name=event.name, **shown, **more)

    # --- control

    def _command(self, service: Service, op: str, arguments: Mapping[str, Any], now: float) -> dict[str, Any]:
        core = self._cores[service]
        if op == "status":
            return self._status(service, now)
        if op == "drain":
            self.stopping = True
            return {"stopping": True}
        if op == "reload":
            return self._reload(core, service)
        own, other = self._node.guest.name, arguments.get("guest")
        if own is not None and other is not None and own != other:
            raise ControlRefused(f"this is the {service} of guest {own}, not of {other}")
        try:
            answer, outputs = core.command(op, arguments, now)
        except CommandError as error:
            raise ControlRefused(f"{error}; it has status, reload, drain and what its README names") from error
        self._carry_out(service, outputs, now)
        self._settle(now)
        log.info("command_carried_out", service=service, op=op)
        return answer

    def _reload(self, core: Core, service: Service) -> dict[str, Any]:
        if self._path is None:
            raise ControlRefused("this process was not started from a file, so there is nothing to read again")
        try:
            node = configuration.load(self._path, services=(service,), capture=self._capture)
        except configuration.ConfigError as error:
            raise ControlRefused(str(error)) from error
        core.reload(self._view(node))
        return {"reloaded": str(self._path)}

    def _status(self, service: Service, now: float) -> dict[str, Any]:
        core, wiring = self._cores[service], self._wiring[service]
        links = {s: self._receivers[s].counters for s in wiring.takes if s in self._receivers}
        links |= {s: self._senders[s].counters for s in wiring.gives if s in self._senders}
        return {
            "service": service,
            "node": self._node.node,
            "build": build.describe(),
            "pid": os.getpid(),
            "fused": list(self._cores) if len(self._cores) > 1 else [],
            "epoch": core.epoch,
            "uptime_s": round(now - self._started, 3),
            "counters": core.counters,
            "links": links,
            "ports": {name: port.counters for (owner, name), port in self._ports.items() if owner == service},
            "control": self._servers[service].counters,
            "refused_peers": self._allowed.refused if self._allowed else 0,
            **core.status(),
            **({"reports": self._recorder.counters} if self._recorder and service == "comparer" else {}),
            **({"notify": self._notify.counters} if self._notify and service == "comparer" else {}),
        }

    # --- the loop

    def step(self, timeout: float | None = None) -> None:
        """Wait for something to do, `timeout` seconds at most, and do it."""
        if self._due is not None:
            wait = max(0.0, self._due - time.monotonic())
            timeout = wait if timeout is None else min(wait, timeout)
        ready = self._poller.wait(timeout)
        now = time.monotonic()
        for source in ready:
            self._poller.act(source, now)
        self._pressure.tick(now)
        self._due = self._pressure.next_deadline()
        for service, core in self._cores.items():
            deadline = core.next_deadline()
            if deadline is not None and deadline <= now:
                self._carry_out(service, core.tick(now, self._heard(service, now)), now)
                self._settle(now)
                deadline = now  # what is due may be another's by now: the next turn looks again, and doesn't wait
            if deadline is not None and (self._due is None or deadline < self._due):
                self._due = deadline

    def _heard(self, service: Service, now: float) -> float:
        """The moment before which all that came over a service's links was read, as far as this is waited for."""
        unread = [self._unread[stream] for stream in self._wiring[service].takes if stream in self._unread]
        return max(min(unread, default=now), now - MOST_PUT_OFF)

    def run(self) -> None:
        """Loop until SIGTERM, SIGINT or `drain`; then close everything."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def stop(number: int, frame: object) -> None:
            self.stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._poller.watch(reader, lambda now: None)
        try:
            log.info("service_started", services=list(self._cores))
            while not self.stopping:
                self.step()
            log.info("service_stopped", services=list(self._cores))
        finally:
            self._poller.forget(reader)
            self.close()
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def close(self) -> None:
        """Close ports, links and control sockets. Closing twice is allowed."""
        self._stack.close()
