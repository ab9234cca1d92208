"""The scenarios in memory: the four cores, two guests and a client in this process, in simulated time.

No kernel, no sockets, no root. Frames go from end to end as `lockstep.wiring` says, each hop taking
`HOP` simulated seconds. Pauses are simulated time; `seconds` and rates are the real clock's.
"""

from __future__ import annotations

import hashlib
import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, count
from types import MappingProxyType

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.demo import payload, scenarios
from lockstep.demo.addresses import (
    ADDRESSES,
    CLIENT_MAC,
    CLIENTS_PORT,
    GUEST_MAC,
    GUESTS_SOURCE_PORT,
    PORT,
    VLAN_ID,
)
from lockstep.demo.display import Display
from lockstep.demo.guests import Connection, Host
from lockstep.demo.scenarios import Figures, Transfer
from lockstep.demo.server import END_OF_HEAD, content_length, flipped, header, request_head
from lockstep.service import core_of
from lockstep.streams import EVENTS, GUEST, NETWORK, UPLINK, Core, Event, Item, Outputs
from lockstep.wire import vnet
from lockstep.wiring import SERVICES

#: Simulated seconds that a frame needs from one end to the next.
HOP = 50e-6
#: Simulated seconds without progress after which a run is given up; in `diverge` that is its end.
PATIENCE = 5.0

_MIB = 1 << 20
#: (service, port) → the host at its other end; the network's ports lead to the client.
_ENDS = {
    ("mirror", NETWORK): "client",
    ("redirector", UPLINK): "client",
    ("mirror", GUEST): "primary",
    ("rewriter", GUEST): "secondary",
}


class Memory:
    """A theatre without a kernel."""

    mode = "memory"
    missing: Mapping[str, str] = MappingProxyType({})
    sizes: Mapping[scenarios.Scenario, Mapping[str, int]] = {
        "serve": {"download": 4 * _MIB, "upload": _MIB},
        "diverge": {"download": 2 * _MIB},
        "failover": {"download": 4 * _MIB, "upload": 4 * _MIB},
    }

    def serve(self, legs: list[Transfer], display: Display) -> Figures:
        """See Theatre."""
        run: Figures = {"network": legs[0].network, "opened_by": legs[0].opened_by}
        exchanges = []
        for leg in legs:
            exchange = Exchange(leg, "unprotect", display)
            exchange.run_to_its_end()
            run[leg.direction] = exchange.leg()
            exchanges.append(exchange)
        return run | {
            "sha256_ok": all(run[leg.direction]["sha256_ok"] for leg in legs),
            "divergences": sum(exchange.counter("divergences") for exchange in exchanges),
            "released": sum(exchange.counter("released") for exchange in exchanges),
            "reconnects": sum(exchange.failures for exchange in exchanges),
            "longest_pause_ms": max(exchange.longest_pause_ms for exchange in exchanges),
            "wrong_bytes_delivered": sum(exchange.client.wrong for exchange in exchanges),
        }

    def diverge(self, transfer: Transfer, display: Display) -> Figures:
        """See Theatre."""
        place = transfer.size // 8
        exchange = Exchange(transfer, "hold", display, flip=place)
        exchange.run_to_its_end()
        status = exchange.cores["comparer"].status()
        found = status["divergences"][-1] if status["divergences"] else {}
        return {
            "network": transfer.network,
            "planted_offset": len(header(transfer.size)) + place,
            "found_offset": found.get("offset"),
            "reason": found.get("reason"),
            "flow": found.get("flow"),
            "bytes": exchange.client.bytes,
            "held": status["held"],
            "wrong_bytes_delivered": exchange.client.wrong,
            "divergences": exchange.counter("divergences"),
            "released": exchange.counter("released"),
        }

    def failover(self, transfer: Transfer, display: Display) -> Figures:
        """See Theatre."""
        exchange = Exchange(transfer, "unprotect", display)
        exchange.run(lambda: exchange.done >= transfer.size // 3)
        counted = {name: exchange.counter(name) for name in ("divergences", "released")}
        killed = exchange.now
        exchange.dead |= {"mirror", "primary"}
        exchange.command("redirector", "failover")
        failover_ms = (exchange.now - killed) * 1000
        exchange.run_to_its_end()
        return {
            "network": transfer.network,
            "direction": transfer.direction,
            "opened_by": transfer.opened_by,
            **exchange.leg(),
            "reconnects": exchange.failures,
            "longest_pause_ms": exchange.longest_pause_ms,
            "failover_ms": failover_ms,
            "wrong_bytes_delivered": exchange.client.wrong,
            **counted,
        }


class Exchange:
    """One transfer: cores and hosts, what is under way between them, and the simulated clock.

    now: simulated seconds. done: bytes of the body that went over. dead: cores and hosts that hear and
    say nothing any more. over: nothing more will happen, for better or worse.
    """

    def __init__(self, transfer: Transfer, on_divergence: str, display: Display, flip: int | None = None) -> None:
        node = Node.model_validate({"capture": "memory", "comparer": {"on_divergence": on_divergence}})
        self.transfer, self._display = transfer, display
        self.now, self.done, self.longest_pause_ms = 1.0, 0, 0.0
        self.dead: set[str] = set()
        self.cores: dict[str, Core] = {name: core_of(name, node) for name in SERVICES}  # type: ignore[arg-type]
        self._consumers = {stream: name for name, wiring in SERVICES.items() for stream in wiring.takes}
        self._under_way: list[tuple[float, int, str, str, Item | Event]] = []
        self._ties = count()
        self._progressed = self.now
        self._started = time.monotonic()
        self._build(flip)

    def _build(self, flip: int | None) -> None:
        transfer = self.transfer
        tag = VLAN_ID if transfer.network == "vlan" else None
        v4 = "vlan" if tag else "ipv4"
        client = ADDRESSES[v4].client, ADDRESSES["ipv6"].client
        guest = ADDRESSES[v4].guest, ADDRESSES["ipv6"].guest
        self.hosts = {
            "client": Host(CLIENT_MAC, GUEST_MAC, client, 1, tag),
            "primary": Host(GUEST_MAC, CLIENT_MAC, guest, 2, tag),
            "secondary": Host(GUEST_MAC, CLIENT_MAC, guest, 3, tag),
        }
        self.client = ClientApp(transfer)
        apps = {"primary": GuestApp(None), "secondary": GuestApp(flip)}
        subnet = ADDRESSES[transfer.network]
        self._connection: Connection | None = None
        if transfer.opened_by == "guest":
            self.hosts["client"].listen(CLIENTS_PORT, lambda: self.client)
            for name, app in apps.items():
                self.hosts[name].connect(subnet.client, CLIENTS_PORT, GUESTS_SOURCE_PORT, app, self.now)
        else:
            for name, app in apps.items():
                self.hosts[name].listen(PORT, lambda app=app: app)  # type: ignore[misc]
            self.hosts["client"].connect(subnet.guest, PORT, GUESTS_SOURCE_PORT, self.client, self.now)
        for name in self.hosts:
            self._collect(name)

    # --- figures

    @property
    def over(self) -> bool:
        """The answer is complete, the connection is lost, or nothing went over for too long."""
        lost = any(connection.reset for connection in self.hosts["client"].connections.values())
        return self.client.finished() or lost or self.now - self._progressed > PATIENCE

    @property
    def failures(self) -> int:
        """Of the one connection."""
        return int(not self.client.finished())

    def counter(self, name: str) -> int:
        """One of the comparer's."""
        return self.cores["comparer"].counters[name]

    def leg(self) -> Figures:
        """The figures of the transfer."""
        seconds = time.monotonic() - self._started
        return {
            "bytes": self.done,
            "sha256_ok": self.client.digest() == payload.digest(self.transfer.size),
            "seconds": round(seconds, 3),
            "mb_per_s": round(self.done / seconds / 1e6, 1),
        }

    # --- what happens

    def command(self, service: str, op: str) -> None:
        """A control request."""
        _, outputs = self.cores[service].command(op, {}, self.now)
        self._carry_out(service, outputs)

    def run_to_its_end(self) -> None:
        """Until the transfer is over."""
        self.run(lambda: False)

    def run(self, until: Callable[[], bool]) -> None:
        """Let things happen in order, until `until` or until nothing is left to happen."""
        while not until() and not self.over:
            moment = min((moment for moment, _ in self._deadlines()), default=None)
            if self._under_way and (moment is None or self._under_way[0][0] <= moment):
                self.now, _, target, stream, item = heapq.heappop(self._under_way)
                if target not in self.dead:
                    self._deliver(target, stream, item)
            elif moment is not None:
                self.now = max(self.now, moment)
                for name in [name for due, name in self._deadlines() if due <= self.now]:
                    self._tick(name)
            else:
                return
            self._measure()

    def _deadlines(self) -> Iterator[tuple[float, str]]:
        everyone: dict[str, Core | Host] = {**self.cores, **self.hosts}
        for name, one in everyone.items():
            moment = one.next_deadline()
            if moment is not None and name not in self.dead:
                yield moment, name

    def _tick(self, name: str) -> None:
        if name in self.cores:
            self._carry_out(name, self.cores[name].tick(self.now))
        else:
            self.hosts[name].tick(self.now)
            self._collect(name)

    def _deliver(self, target: str, stream: str, item: Item | Event) -> None:
        if target in self.cores:
            self._carry_out(target, self.cores[target].push(stream, item, self.now))
        elif isinstance(item, Batch):
            for frame in vnet.convert(item, 0).frames():
                self.hosts[target].push(frame, self.now)
            self._collect(target)

    def _collect(self, name: str) -> None:
        """What a host has to say goes to every port at its wire."""
        frames = self.hosts[name].take()
        if frames:
            for (service, port), host in _ENDS.items():
                if host == name:
                    self._send(service, port, Batch.of(frames))

    def _carry_out(self, service: str, outputs: Outputs) -> None:
        for output in outputs:
            if isinstance(output, Event):
                for other, wiring in SERVICES.items():
                    if service in wiring.hears:
                        self._send(other, EVENTS, output)
                continue
            where, item = output
            if (service, where) in _ENDS and isinstance(item, Batch):
                self._send(_ENDS[service, where], where, item)
            elif where in self._consumers:
                if isinstance(item, Batch):
                    item = Batch(item.data, item.lengths, item.vnet, self.cores[service].epoch)
                self._send(self._consumers[where], where, item)
            else:
                raise AssertionError(f"{service} gave {type(item).__name__} to {where!r}, which is not wired")

    def _send(self, target: str, stream: str, item: Item | Event) -> None:
        heapq.heappush(self._under_way, (self.now + HOP, next(self._ties), target, stream, item))

    def _measure(self) -> None:
        done = self.client.bytes
        if self.transfer.direction == "upload":
            self._connection = self._connection or next(iter(self.hosts["client"].connections.values()), None)
            sent = self._connection.acked if self._connection else 0
            done = min(max(0, sent - self.client.head_bytes), self.transfer.size)
        if done > self.done or (self.client.finished() and self.done):
            if self.done:
                self.longest_pause_ms = max(self.longest_pause_ms, (self.now - self._progressed) * 1000)
            self.done, self._progressed = done, self.now
            self._display.progress(done, self.transfer.size, lambda: self.cores["comparer"].counters)


class Speaker:
    """The half of an app that speaks: parts, one after the other, cut to what the connection has room for."""

    def __init__(self) -> None:
        self._parts: Iterator[memoryview] = iter(())
        self._part = memoryview(b"")

    def say(self, head: bytes, body: Iterable[memoryview] = ()) -> None:
        """Queue a head and a body."""
        self._parts = chain(self._parts, (memoryview(head),), body)

    def produce(self, most: int) -> bytes:
        """See guests.App."""
        if not self._part:
            self._part = next(self._parts, self._part)
        now, self._part = self._part[:most], self._part[most:]
        return bytes(now)


class GuestApp(Speaker):
    """`lockstep.demo.server` for one connection."""

    def __init__(self, flip: int | None) -> None:
        super().__init__()
        self._flip = flip
        self._head: bytes | None = None
        self._got = b""
        self._total = hashlib.sha256()
        self._left = 0
        self._answered = False

    def received(self, data: bytes, now: float) -> None:
        """See guests.App."""
        if self._head is None:
            self._got += data
            if END_OF_HEAD not in self._got:
                return
            self._head, _, data = self._got.partition(END_OF_HEAD)
            self._left = content_length(self._head)
        self._total.update(data)
        self._left -= len(data)
        if self._left == 0 and not self._answered:
            self._answer(self._head)

    def _answer(self, head: bytes) -> None:
        self._answered = True
        method, path, _ = head.split(b" ", 2)
        if method == b"POST":
            answer = self._total.hexdigest().encode()
            self.say(header(len(answer)) + answer)
            return
        size = int(path.lstrip(b"/"))
        places = range(0, size, payload.BLOCK)
        body = (flipped(part, at, self._flip) for at, part in zip(places, payload.windows(size), strict=True))
        self.say(header(size), body)

    def finished(self) -> bool:
        """See guests.App. Asked only when there was nothing to produce."""
        return self._answered and not self._part


class ClientApp(Speaker):
    """`lockstep.demo.client` for one connection; every byte is checked at its place."""

    def __init__(self, transfer: Transfer) -> None:
        super().__init__()
        self._size = transfer.size
        self._download = transfer.direction == "download"
        head = request_head("GET", f"/{self._size}", 0) if self._download else request_head("POST", "/", self._size)
        self.head_bytes = len(head)
        self.say(head, () if self._download else payload.windows(self._size))
        self._got = b""
        self._head: bytes | None = None
        self._total = hashlib.sha256()
        self._body = b""
        #: Bytes of the answer's body; those of them that are wrong.
        self.bytes = self.wrong = 0

    def received(self, data: bytes, now: float) -> None:
        """See guests.App."""
        if self._head is None:
            self._got += data
            if END_OF_HEAD not in self._got:
                return
            self._head, _, data = self._got.partition(END_OF_HEAD)
        if self._download:
            self.wrong += payload.count_wrong(data, self.bytes)[0]
            self._total.update(data)
        else:
            self._body += data
        self.bytes += len(data)

    def finished(self) -> bool:
        """See guests.App."""
        return self._head is not None and self.bytes >= content_length(self._head)

    def digest(self) -> str:
        """SHA-256 of what came, or what the guest says that it got."""
        return self._total.hexdigest() if self._download else self._body.decode("latin-1")
