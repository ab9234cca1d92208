"""What a seed decides: traffic, the habits of the hosts, settings, faults, cuts and failovers.

Everything random about a run that is not a single frame's fate is drawn here, so that a scenario can
be read (`run.py --verbose` prints it), and changed by a test.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields, replace

from sim.habits import FORGERIES, FRAGMENT, GUEST_PORTS, LONG_PORT, UDP_PORTS, Habits
from sim.plans import COMPLETE, REFUSED, SHAPES, Plan, said_by, scripts
from sim.wire import Offload

#: No frame waits for so long: with it, every wait for the secondary must end by itself.
FOREVER = 1000.0
#: Ports of the client from which a flood of datagrams comes.
FLOOD_PORT = 20_000
#: Faults stop at this moment at the latest, and a run ends at this one.
CALM, END = 3.0, 60.0


@dataclass
class Way:
    """What happens to frames between a host and a port. Shares of frames, seconds."""

    delay: float = 0.002
    jitter: float = 0.0
    loss: float = 0.0
    twice: float = 0.0
    late: float = 0.0


@dataclass
class LinkFaults:
    """A link's delay, and how much fits into it: messages queued, bytes that its sender keeps."""

    delay: float = 0.0005
    jitter: float = 0.0
    hwm: int = 32
    stalls: tuple[tuple[float, float], ...] = ()


@dataclass
class Scenario:
    """See the module. Times are seconds of simulated time; the traffic begins at 0.1."""

    seed: int
    on_divergence: str = "checkpoint"
    #: `secondary` of both ends: `frames` or `digest`, and with which hash.
    said_as: tuple[str, str] = ("frames", "blake2b")
    compare_timeout: float = FOREVER
    comparer: dict[str, int | float] = field(default_factory=dict)
    fused: bool = False
    tags: tuple[int, ...] = ()
    client: Habits = field(default_factory=Habits)
    primary: Habits = field(default_factory=Habits)
    secondary: Habits = field(default_factory=Habits)
    #: Of (host, "in" or "out").
    ways: dict[tuple[str, str], Way] = field(default_factory=dict)
    #: (host, from, to): it hears nothing in between.
    deaf: list[tuple[str, float, float]] = field(default_factory=list)
    links: dict[str, LinkFaults] = field(default_factory=dict)
    most_pending: int = 16 << 20
    #: Frames until a flow goes into the comparer's lane, and how many more when it has come from there.
    calm: tuple[int, int] = (16, 512)
    #: (when, process, seconds until it is back)
    crashes: list[tuple[float, str, float]] = field(default_factory=list)
    #: (when, committed, seconds from prepare on)
    cuts: list[tuple[float, bool, float]] = field(default_factory=list)
    #: Seconds from a request to its prepare; share of prepared checkpoints that are aborted.
    reaction: float = 0.05
    aborts: float = 0.0
    #: The guest's port is drained before a cut, in both directions.
    drained: bool = True
    #: Seconds after which a guest that goes on already has its commit told.
    eager: float = 0.0
    #: When the primary node dies, whether the comparer dies with it, and seconds until the failover.
    failover: float | None = None
    comparer_dies: bool = False
    detection: float = 0.1
    #: When the secondary node dies, and when it is back.
    lost: tuple[float, float] | None = None
    plans: list[Plan] = field(default_factory=list)
    #: (when, secondary's lateness, kind, what) on the guests' agenda; the client's has no lateness.
    guest_agenda: list[tuple[float, float, str, object]] = field(default_factory=list)
    client_agenda: list[tuple[float, str, object]] = field(default_factory=list)
    #: Share of frames that also come to the uplink's port, as a switch floods them.
    flooded: float = 0.0
    announcements: int = 2
    #: `comparer.passthrough` of the configuration.
    passthrough: tuple[dict[str, str | int], ...] = ()
    #: Share of the segments to the client that a router on the way complains about.
    complaints: float = 0.0
    events_delay: float = 0.002
    #: A process wakes at most so long after something arrived.
    wake: float = 0.0004

    @property
    def differs(self) -> bool:
        """The guests are not equal: divergences are expected."""
        return any(
            habits.wrong or habits.wrong_datagrams or habits.other_options or habits.fickle or habits.other_urgent
            for habits in (self.primary, self.secondary)
        )  # fmt: skip

    @property
    def one_sided(self) -> bool:
        """Something may reach, or come from, one guest alone."""
        guests = any(
            way.loss or way.twice or way.late for (host, _), way in self.ways.items() if host != "client"
        )  # fmt: skip
        spoilt = self.primary.spoil or self.secondary.spoil
        return bool(guests or self.deaf or self.stress or self.crashes or not self.drained or self.lost or spoilt)

    @property
    def stress(self) -> bool:
        """Links may be full."""
        return self.most_pending < 1 << 20

    @property
    def noisy(self) -> bool:
        """The primary says what makes no sense, and the secondary does not."""
        return any(kind in ("raw", "forged") for _, _, kind, _ in self.guest_agenda)

    @property
    def limited(self) -> bool:
        """Limits of the comparer may be reached."""
        return any(name.startswith("max") for name in self.comparer)

    def describe(self) -> str:
        """What differs from the defaults, a line each."""
        plain = Scenario(self.seed)
        said = []
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "plans":
                value = [(p.number, p.shape, f"v{p.version}", p.port, p.service, p.at, p.up, p.down) for p in value]
            if value != getattr(plain, one.name):
                said.append(f"  {one.name} = {value!r}"[:600])
        return "\n".join(said)


def of(seed: int) -> Scenario:
    """The scenario of a seed."""
    chance = random.Random(f"scenario {seed}")
    s = Scenario(seed)

    def maybe(share: float) -> bool:
        return chance.random() < share

    if seed % 3 == 1:
        s.said_as = "digest", ("blake2b", "xxh3")[seed % 2]
    s.on_divergence = chance.choice(("checkpoint", "checkpoint", "unprotect", "hold"))
    s.fused = maybe(0.4)
    s.tags = chance.choice(((), (), (), (5,), (5, 9)))
    s.client, s.primary, s.secondary = _habits(chance), _habits(chance), _habits(chance)
    s.client.think = 0.0
    s.announcements = chance.randint(1, 3)
    s.calm = chance.choice(((16, 512), (2, 4), (1, 8)))
    network = Way(chance.uniform(0.0005, 0.01), chance.uniform(0, 0.004))
    for direction in ("in", "out"):
        s.ways["client", direction] = Way(network.delay, network.jitter)
        s.ways["primary", direction] = Way(chance.uniform(0.00001, 0.0005))
        s.ways["secondary", direction] = Way(chance.uniform(0.00001, 0.002))
        if maybe(0.5):
            s.ways["client", direction].loss = chance.uniform(0, 0.06)
            s.ways["client", direction].twice = chance.uniform(0, 0.05)
            s.ways["client", direction].late = chance.uniform(0, 0.08)
    for stream in ("ingress", "to_guest", "from_guest", "primary", "secondary", "released"):
        s.links[stream] = LinkFaults(chance.uniform(0.0001, 0.004), chance.uniform(0, 0.003))
    s.flooded = chance.choice((0, 0, 0.2))

    sick = chance.random()
    if sick < 0.35:
        pass  # whatever happens here happens to both guests
    else:
        _one_sided_faults(s, chance, maybe)
    if maybe(0.4):
        for _ in range(chance.randint(1, 3)):
            s.cuts.append((chance.uniform(0.1, CALM), maybe(0.75), chance.uniform(0.001, 0.1)))
        s.cuts.sort()
        s.drained = maybe(0.8)
        if s.crashes and maybe(0.5):
            # As a cut is on its way.
            at, _, seconds = chance.choice(s.cuts)
            moment = at + chance.choice((0.0, seconds)) + chance.uniform(0.0, 0.008)
            s.crashes[0] = (moment, *s.crashes[0][1:])
            s.crashes.sort()
    s.aborts = chance.choice((0, 0, 0.3))
    s.reaction = chance.uniform(0.001, 0.2)
    if maybe(0.3):
        s.failover = chance.uniform(0.1, 1.5)
        s.comparer_dies = maybe(0.3)
        s.detection = chance.choice((0.0005, chance.uniform(0.01, 0.3)))
    elif maybe(0.08):
        at = chance.uniform(0.2, 1.5)
        s.lost = (at, at + chance.uniform(0.1, 1.0))
    s.compare_timeout = chance.choice((FOREVER, FOREVER, 3.0, 3.0, 1.0, 0.3))
    _traffic(s, chance, maybe)
    if maybe(0.2):
        _differences(s, chance)
    if s.differs and s.compare_timeout == FOREVER:
        s.compare_timeout = 3.0
    if maybe(0.06):
        _flood(s, chance)
    elif maybe(0.05):
        s.comparer |= {"max_flow_bytes": chance.randint(2_000, 20_000), "max_bytes": chance.randint(10_000, 60_000)}
    if maybe(0.05):
        s.comparer["idle_timeout"] = 1.0
    if maybe(0.08):
        services = [plan.service for plan in s.plans]
        s.passthrough = (
            {"protocol": "tcp", "port": chance.choice(services)},
            {"protocol": "udp", "port": chance.choice(UDP_PORTS), "guest": "10.77.0.0/24"},
        )
    if maybe(0.15):
        s.complaints = chance.uniform(0.05, 0.3)
    if maybe(0.1):
        _noise(s, chance)
    if maybe(0.3):
        s.eager = chance.uniform(0.0002, 0.01)
    if s.limited and "max_flows" in s.comparer and maybe(0.6):
        _flood_of_datagrams(s, chance)
    if maybe(0.15):
        s.plans = [replace(plan, guest_bytes=bytes(plan.down)) for plan in s.plans]
    if maybe(0.25):
        s.wake = chance.uniform(0.001, 0.006)
    if maybe(0.12):
        _long_datagrams(s, chance)
    if "max_bytes" in s.comparer and maybe(0.5):
        s.comparer["max_bytes"] = chance.randint(2_000, 8_000)
    if s.failover is None and maybe(0.05):
        _fickle(s, chance)
    if maybe(0.06):
        _crowd(s, chance)
    if s.differs and any(plan.urgent for plan in s.plans):
        s.secondary.other_urgent = chance.randint(0, 2)
    return s


def _habits(chance: random.Random) -> Habits:
    h = Habits()
    vnet = chance.choice((0, 0, 10, 12))
    partial = bool(vnet) and chance.random() < 0.5
    h.offload = Offload(vnet, partial, partial and chance.random() < 0.7)
    low = chance.choice((1.0, 0.4, 0.15))
    h.cut = (low, chance.uniform(low, 1.0))
    h.ack_every = chance.choice((1, 2, 2, 4))
    h.ack_delay = chance.uniform(0.0, 0.04)
    h.burst = chance.choice((2, 4, 10))
    h.pace = chance.uniform(0.0002, 0.008)
    h.think = chance.choice((0.0, 0.0, chance.uniform(0, 0.05)))
    h.fin_alone = chance.random() < 0.5
    h.time_wait = 1.5
    h.window = chance.choice((24_000, 24_000, 24_000, 5_000, 1_500))
    h.reading = chance.choice((0.0, 0.0, 0.0, chance.uniform(0.001, 0.06)))
    h.keepalive = chance.choice((0.0, 0.0, 0.0, 0.4))
    h.probe_byte = chance.random() < 0.5
    return h


def _one_sided_faults(s: Scenario, chance: random.Random, maybe: object) -> None:
    for host in ("primary", "secondary"):
        for direction in ("in", "out"):
            if chance.random() < 0.4:
                way = s.ways[host, direction]
                way.loss = chance.uniform(0, 0.08)
                way.twice = chance.uniform(0, 0.06)
                way.late = chance.uniform(0, 0.1)
    if chance.random() < 0.25:
        for _ in range(chance.randint(1, 3)):
            begin = chance.uniform(0.1, 2.0)
            s.deaf.append(
                (chance.choice(("primary", "secondary", "secondary")), begin, begin + chance.uniform(0.02, 0.6))
            )
    for stream in s.links:
        if chance.random() < 0.15:
            begin = chance.uniform(0.1, 2.0)
            s.links[stream].stalls = ((begin, begin + chance.uniform(0.05, 0.5)),)
    if chance.random() < 0.15:
        s.most_pending = chance.randint(0, 12_000)
        for link in s.links.values():
            link.hwm = chance.randint(1, 6)
    if chance.random() < 0.35:
        for _ in range(chance.randint(1, 2)):
            process = chance.choice(("mirror", "comparer", "redirector", "rewriter"))
            s.crashes.append((chance.uniform(0.1, 2.5), process, chance.choice((0.0, 0.02, chance.uniform(0.05, 0.5)))))
        s.crashes.sort()
    if chance.random() < 0.1:
        chance.choice((s.primary, s.secondary)).spoil = 0.03


def _traffic(s: Scenario, chance: random.Random, maybe: object) -> None:
    big = chance.choice((600, 2500, 2500, 6000))
    ports = iter(range(40000, 50000, 7))
    for number in range(chance.randint(2, 5)):
        shape = chance.choice(SHAPES)
        at = round(chance.uniform(0.1, 1.2), 4)
        port = next(ports)
        service = chance.choice(GUEST_PORTS)
        repeats = chance.randint(1, 3) if chance.random() < 0.25 else 1
        version = chance.choice((4, 4, 6))
        for again in range(repeats):
            plan = _plan(chance, number * 10 + again, shape, version, port, service, at, big)
            s.plans.append(plan)
            if plan.opener != "client":
                break
            at = round(at + chance.uniform(0.15, 1.0), 4)
            shape = chance.choice((*SHAPES[:6], "refused", "client_aborts", "banner"))
    for plan in s.plans if chance.random() < 0.15 else ():
        if plan.opener == "client" and plan.fate == COMPLETE:
            what = (plan.version, plan.service, plan.port), chance.randint(1, 1000)
            s.client_agenda.append((plan.at + chance.uniform(0.01, 0.1), "stray", what))
    for _ in range(chance.randint(0, 6)):
        number = chance.randint(1, 1 << 31)
        version, port = chance.choice((4, 4, 6)), chance.choice(UDP_PORTS)
        if port == LONG_PORT:
            version = 4
        payload = number.to_bytes(4) + chance.randbytes(chance.randint(0, 200))
        what = version, chance.choice((5000, 5001)), port, payload
        s.client_agenda.append((chance.uniform(0.1, 1.5), "udp", what))
    for _ in range(chance.randint(0, 3)):
        what = chance.choice((4, 6)), chance.randbytes(4 + chance.randint(0, 100))
        s.client_agenda.append((chance.uniform(0.1, 1.5), "ping", what))
    for _ in range(chance.randint(0, 2)):
        what = chance.choice((4, 6)), 7000, 514, chance.randbytes(chance.randint(1, 300))
        s.guest_agenda.append((chance.uniform(0.1, 1.5), chance.uniform(-0.02, 0.05), "udp", what))
    for _ in range(chance.randint(0, 2)):
        s.guest_agenda.append((chance.uniform(0.1, 1.5), chance.uniform(-0.02, 0.05), "arp", None))
        s.client_agenda.append((chance.uniform(0.1, 1.5), "arp", None))


def _plan(
    chance: random.Random, number: int, shape: str, version: int, port: int, service: int, at: float, big: int
) -> Plan:
    client, guest, opener, fate = scripts(shape, chance, big)
    if opener != "client":
        port, service = 8999 if fate == REFUSED else chance.choice(range(9000, 9010)), 50000 + number
    if shape == "refused":
        service = 79
    return Plan(
        number, shape, version, opener, port, service, at, client, guest,
        chance.randbytes(said_by(client)), chance.randbytes(said_by(guest)),
        stamps=chance.random() < 0.7, sack=chance.random() < 0.8, multipath=chance.random() < 0.08, fate=fate,
        ecn=chance.random() < 0.15, urgent=chance.randint(1, 400) if chance.random() < 0.1 else None,
    )  # fmt: skip


def _differences(s: Scenario, chance: random.Random) -> None:
    habits = chance.choice((s.primary, s.secondary, s.secondary))
    for plan in s.plans:
        if plan.down and chance.random() < 0.5:
            habits.wrong[plan.number] = chance.randrange(plan.down)
    numbers = [int.from_bytes(what[3][:4]) for _, kind, what in s.client_agenda if kind == "udp"]  # type: ignore[index]
    habits.wrong_datagrams = frozenset(n for n in numbers if chance.random() < 0.5)
    habits.other_options = chance.choice(("scale", "mss")) if chance.random() < 0.15 else ""
    if habits is s.secondary and s.failover is None and chance.random() < 0.3:
        habits.fickle = {plan.number: chance.randrange(plan.down) for plan in s.plans if plan.down}


def _crowd(s: Scenario, chance: random.Random) -> None:
    """Many connections that speak at the same time, so that a batch has frames of several."""
    s.calm, s.wake = (1, 8), chance.uniform(0.003, 0.01)
    at = chance.uniform(0.1, 1.0)
    for index in range(chance.randint(5, 9)):
        shape = chance.choice(("upload", "download", "requests", "both"))
        port, service = 45_000 + index, chance.choice(GUEST_PORTS)
        s.plans.append(_plan(chance, 100 + 10 * index, shape, 4, port, service, at, 6000))
    if chance.random() < 0.3:
        # One byte over and over: nothing but its place tells one from another.
        s.plans = [replace(plan, guest_bytes=bytes(plan.down)) for plan in s.plans]
        s.ways["primary", "out"].loss = chance.uniform(0.02, 0.08)
        s.crashes.append((at + chance.uniform(0.02, 0.4), "comparer", 0.0))
        s.crashes.sort()


def _fickle(s: Scenario, chance: random.Random) -> None:
    """A secondary that says again, and otherwise, what has left long ago."""
    s.secondary.fickle = {plan.number: chance.randrange(plan.down) for plan in s.plans if plan.down}
    s.ways["secondary", "in"].loss = chance.uniform(0.05, 0.15)
    if s.compare_timeout == FOREVER:
        s.compare_timeout = 3.0


def _flood(s: Scenario, chance: random.Random) -> None:
    s.comparer |= {"max_flows": chance.randint(16, 40), "max_half_open": chance.randint(4, 16)}
    begin = chance.uniform(0.2, 1.0)
    for index in range(chance.randint(20, 60)):
        what = chance.choice((4, 6)), 10_000 + index, chance.choice(GUEST_PORTS), chance.getrandbits(32)
        s.client_agenda.append((begin + index * 0.004, "flood", what))


def _flood_of_datagrams(s: Scenario, chance: random.Random) -> None:
    """Questions from ever new ports: each answer is a flow that is open from its first frame."""
    begin = chance.uniform(0.2, 1.2)
    for index in range(chance.randint(10, 60)):
        what = chance.choice((4, 6)), FLOOD_PORT + index, UDP_PORTS[0], chance.randbytes(8)
        s.client_agenda.append((begin + index * 0.004, "udp", what))


def floods(kind: str, what: object) -> bool:
    """Whether an entry of the client's agenda is one of a flood."""
    return kind == "flood" or (kind == "udp" and what[1] >= FLOOD_PORT)  # type: ignore[index]


def _long_datagrams(s: Scenario, chance: random.Random) -> None:
    """Answers in fragments, close together; and fragments of the primary that no sender would make."""
    begin = chance.uniform(0.1, 1.2)
    for _ in range(chance.randint(2, 6)):
        what = 4, 5000, LONG_PORT, chance.randbytes(chance.randint(4, 200))
        s.client_agenda.append((begin + chance.uniform(0, 0.02), "udp", what))
    for _ in range(chance.randint(0, 3)):
        forged = chance.choice(FORGERIES), chance.randbytes(2 * FRAGMENT + 8 * chance.randint(1, 40) - 8)
        s.guest_agenda.append((chance.uniform(0.1, 1.5), 0.0, "forged", forged))


def _noise(s: Scenario, chance: random.Random) -> None:
    """Frames that make no sense, of the client and of the primary alone."""
    for index in range(chance.randint(1, 8)):
        raw = bytearray(
            chance.randbytes(12) + chance.choice((b"\x08\0", b"\x86\xdd", b"\x81\0", b"\x08\x06", b"\x88\xb5"))
        )
        raw += chance.randbytes(chance.randint(0, 90))
        if len(raw) > 15 and chance.random() < 0.6:
            raw[14] = 0x45 if raw[12:14] == b"\x08\0" else 0x60
        if index % 2:
            s.client_agenda.append((chance.uniform(0.1, 1.5), "raw", bytes(raw)))
        else:
            s.guest_agenda.append((chance.uniform(0.1, 1.5), FOREVER, "raw", bytes(raw)))
