"""A real guest kernel at one end, a script at the other: raw frames, with or without the rewriter between.

    script ── Peer ── Wire ──(rewriter's core)── TAP eth0 ── a kernel in a namespace of its own

The script plays the client of a *primary*. Without the rewriter that is the kernel itself. With it the
primary's numbers differ from the kernel's: as soon as the kernel's SYN is known, `Way` says what the primary's
would have been, and from the script's first answer on nothing but those may be seen.

A script names places relative to the two initial sequence numbers, and so does what is heard: `heard` of two
runs of a script can be compared, whatever the numbers were. Nothing here reads frames with the project's code.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import TracebackType

import packets
from packets import CLIENT, CLIENT6, GUEST, GUEST6, inet_checksum, inet_sum
from pyroute2 import IPRoute

from lockstep.batch import Batch
from lockstep.capture.tap import TUNSETOFFLOAD, TapPort
from lockstep.config import Node
from lockstep.demo.namespaces import Namespace
from lockstep.streams import FROM_GUEST, TO_GUEST, Event
from lockstep.streams import GUEST as GUEST_PORT
from services.rewriter.core import Core

MASK = 0xFFFFFFFF
#: Seconds in which whatever is going to happen has happened, on the slowest machine.
LONG = 10.0
#: Milliseconds by which the guest's clock may run ahead of what we saw of it. (SYN cookies set theirs back by 63.)
SLACK = 100
FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32}
VNET = 10
#: MTU of the guest's interface, and the segment size that the script announces.
MTU, MSS = 1500, 1460

#: So that nothing is said for reasons of time alone, and every stray segment is answered.
SETTINGS = {
    "net/ipv4/tcp_early_retrans": 0,  # no tail loss probes
    "net/ipv4/tcp_rto_min_us": 1_000_000,
    "net/ipv4/tcp_invalid_ratelimit": 0,
    "net/ipv4/tcp_challenge_ack_limit": 0x7FFFFFFF,
    "net/ipv6/conf/all/accept_dad": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/default/router_solicitations": 0,
    "net/ipv6/conf/default/addr_gen_mode": 1,
}

_NUD_PERMANENT, _IFA_F_NODAD = 0x80, 0x02


@dataclass(frozen=True)
class Way:
    """What is between script and kernel.

    isn, clock: the primary's initial sequence number, and its TSval in its SYN, for those of the guest.
    offloads: the guest's frames have partial checksums and may be super-frames, and so have the script's.
    client_isn: the script's own.
    """

    name: str
    rewriter: bool
    isn: Callable[[int], int] = lambda own: own
    clock: Callable[[int], int] = lambda own: own
    offloads: bool = True
    client_isn: int = 1000


@dataclass(frozen=True)
class Said:
    """A segment of the guest: `seq` and `sack` of it, `ack` and `tsecr` relative to what the other end began with."""

    flags: str
    seq: int
    ack: int | None
    data: bytes
    sack: tuple[tuple[int, int], ...]
    tsecr: int | None
    urgent: int
    options: bytes

    def heard(self) -> tuple[object, ...]:
        """For a comparison of two runs: the bytes are there as their number and their sum."""
        return (*astuple(replace(self, data=b"")), len(self.data), zlib.crc32(self.data))

    def __repr__(self) -> str:
        more = [f"{name} {value}" for name in ("sack", "tsecr", "urgent") if (value := getattr(self, name))]
        return " ".join([self.flags, f"{self.seq}+{len(self.data)}", f"ack {self.ack}", *more, self.options.hex()])


@dataclass(frozen=True)
class Raw:
    """A TCP segment as it is on the wire."""

    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    window: int
    urgent: int
    options: bytes
    data: bytes


class Wire:
    """The guest's kernel and everything before it; a context manager."""

    def __init__(self, way: Way, *, v6: bool, settings: dict[str, int] | None = None) -> None:
        self.way, self.v6 = way, v6
        #: Payload of the guest's full segments, which have timestamps.
        self.mss = MTU - (40 if v6 else 20) - 20 - 12
        self.guest, self.client = (GUEST6, CLIENT6) if v6 else (GUEST, CLIENT)
        self.core = Core(Node.model_validate({})) if way.rewriter else None
        self._settings = SETTINGS | (settings or {})
        self._segments: deque[Raw] = deque()
        self._sockets: list[socket.socket] = []
        #: Everything that a script has taken from the guest, in order.
        self.heard: list[tuple[object, ...]] = []

    def __enter__(self) -> Wire:
        self._namespace = Namespace("guest")
        try:
            with self._namespace.entered():
                for name, value in self._settings.items():
                    if (file := Path("/proc/sys", name)).exists():
                        file.write_text(str(value))
            self._port = TapPort("guest", "eth0", self._namespace.path)
            if not self.way.offloads:
                fcntl.ioctl(self._port.fileno(), TUNSETOFFLOAD, 0)
            with self._namespace.entered(), IPRoute() as ip:
                eth0 = ip.link_lookup(ifname="eth0")[0]
                ip.link("set", index=eth0, address=packets.GUEST_MAC.hex(":"), mtu=MTU, state="up")
                more = {"flags": _IFA_F_NODAD} if self.v6 else {}
                ip.addr("add", index=eth0, address=self.guest, prefixlen=64 if self.v6 else 24, **more)
                mac = packets.CLIENT_MAC.hex(":")
                ip.neigh("add", dst=self.client, lladdr=mac, ifindex=eth0, state=_NUD_PERMANENT)
            self._wake()
        except BaseException:
            self._namespace.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for one in self._sockets:
            one.close()
        self._port.close()
        self._namespace.close()

    # --- the guest's programs

    def socket(self) -> socket.socket:
        """A TCP socket of the guest, which never blocks."""
        with self._namespace.entered():
            one = socket.socket(socket.AF_INET6 if self.v6 else socket.AF_INET, socket.SOCK_STREAM)
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.own(one)

    def own(self, one: socket.socket) -> socket.socket:
        """Close a socket at the end at the latest."""
        self._sockets.append(one)
        return one

    def listen(self, port: int = 80) -> socket.socket:
        """The guest listens."""
        listener = self.socket()
        listener.bind((self.guest, port))
        listener.listen()
        return listener

    def accept(self, listener: socket.socket) -> socket.socket:
        """The next connection that the guest accepted."""
        readable(listener)
        connection, _ = listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.own(connection)

    def connect(self, source_port: int, port: int) -> socket.socket:
        """The guest begins to connect to the script."""
        one = self.socket()
        one.bind((self.guest, source_port))
        one.connect_ex((self.client, port))
        return one

    # --- frames

    def send(self, frame: bytes, vnet: int = 0) -> None:
        """A frame for the guest."""
        for batch in self._through(TO_GUEST, GUEST_PORT, Batch.of([frame], vnet)):
            self._port.write(batch)

    def _through(self, stream: str, to: str, batch: Batch) -> list[Batch]:
        """What a batch of a stream becomes on its way."""
        if self.core is None:
            return [batch]
        batches = []
        for output in self.core.push(stream, batch, time.monotonic()):
            if isinstance(output, Event):
                continue
            where, item = output
            assert where == to, f"{stream} led to {where}"
            assert isinstance(item, Batch)
            batches.append(item)
        return batches

    def next(self) -> Raw:
        """The next TCP segment of the guest; a super-frame comes as the segments that it stands for."""
        deadline = time.monotonic() + LONG
        while not self._segments:
            assert time.monotonic() < deadline, f"the guest said nothing more; before: {self.heard[-5:]}"
            select.select([self._port.fileno()], [], [], 0.5)
            for frame in self._read():
                self._segments += parsed(frame, self.guest, self.client)
        return self._segments.popleft()

    def _read(self) -> list[bytes]:
        batch = self._port.read()
        if batch is None:
            return []
        return [frame for one in self._through(GUEST_PORT, FROM_GUEST, batch) for frame in one.frames()]

    def _wake(self) -> None:
        """Wait until the guest answers a ping: the kernel makes its IPv6 routes when it finds the time."""
        kind = 129 if self.v6 else 0
        deadline = time.monotonic() + LONG
        while not any(frame[VNET:][54 if self.v6 else 34] == kind for frame in self._read()):
            assert time.monotonic() < deadline, "the guest's kernel doesn't come up"
            self._port.write(Batch.of([ping(self)]))
            select.select([self._port.fileno()], [], [], 0.02)


class Peer:
    """One connection of the script. Places are relative: 0 is the SYN, 1 the first byte behind it."""

    def __init__(self, wire: Wire, port: int = 40000, guest_port: int = 80, isn: int | None = None) -> None:
        self.wire, self.port, self.guest_port = wire, port, guest_port
        self.isn = wire.way.client_isn if isn is None else isn
        #: TSval of the next segment, relative to `_CLOCK`; the guest's last TSval.
        self.clock = 0
        self.tsecr = 0
        #: Where the guest's numbers begin, as they are seen on the wire, and when they did.
        self.base = self.ts_base = 0
        self._began = 0.0
        self._last_tsval = 0
        self._answered = False
        self.window = 65535

    def send(
        self,
        flags: str,
        seq: int,
        ack: int | None = None,
        data: bytes = b"",
        *,
        sack: tuple[tuple[int, int], ...] = (),
        clock: int | None = None,
        urgent: int = 0,
        absolute_ack: int | None = None,
        tsecr: int | None = None,
    ) -> None:
        """A segment of the client, at these places. clock: another TSval than the next."""
        if ack is not None and not self._answered:
            self._answer()
        self.clock += 1
        tsval = _CLOCK + (self.clock if clock is None else clock)
        options = packets.timestamps(tsval, (self.tsecr if tsecr is None else tsecr) if "A" in flags else 0)
        if "S" in flags:
            options = struct.pack(">BBH", 2, 4, MSS) + b"\4\2" + options[2:] + b"\1\3\3\0"
        if sack:
            edges = b"".join(struct.pack(">II", *((self.base + edge) & MASK for edge in block)) for block in sack)
            options += struct.pack(">BBBB", 1, 1, 5, 2 + len(edges)) + edges
        number = absolute_ack if absolute_ack is not None else (None if ack is None else self.base + ack)
        bits = sum(FLAGS[flag] for flag in flags)
        offloads = self.wire.way.offloads
        frame = packets.from_client(
            self.isn + seq, number, data, v6=self.wire.v6, flags=bits, options=options, sport=self.port,
            dport=self.guest_port, window=self.window, partial=offloads, vnet=VNET if offloads else 0,
        )  # fmt: skip
        if urgent:
            frame = with_urgent(frame, VNET if offloads else 0, 40 if self.wire.v6 else 20, urgent, partial=offloads)
        self.wire.send(frame, VNET if offloads else 0)

    def _answer(self) -> None:
        """From the first answer on, the numbers on the wire are the primary's."""
        self._answered = True
        way = self.wire.way
        self.base = way.isn(self.base) & MASK
        self.ts_base = way.clock(self.ts_base) & MASK
        self.tsecr = self._last_tsval = self.ts_base

    def hear(self) -> Said:
        """What the guest says next, on this connection."""
        raw = self.wire.next()
        assert (raw.sport, raw.dport) == (self.guest_port, self.port), raw
        flags = "".join(name for name, bit in FLAGS.items() if raw.flags & bit and name != "P")
        found = options_of(raw.options)
        stamps = found.pop(8, None)
        if raw.flags & FLAGS["S"] and not self._began:
            self.base = raw.seq
            if stamps is not None:
                self.ts_base = self._last_tsval = struct.unpack(">I", stamps[:4])[0]
            self._began = time.monotonic()
        tsecr = None
        if stamps is not None:
            tsval, tsecr = struct.unpack(">II", stamps)
            self._check_clock(tsval)
            self.tsecr = tsval
            tsecr = relative(tsecr, _CLOCK) if tsecr else 0
        sack = struct.unpack(f">{len(found.get(5, b'')) // 4}I", found.pop(5, b""))
        edges = [relative(edge, self.isn) for edge in sack]
        said = Said(
            flags,
            relative(raw.seq, self.base),
            relative(raw.ack, self.isn) if raw.flags & FLAGS["A"] else None,
            raw.data,
            tuple(zip(edges[::2], edges[1::2], strict=True)),
            tsecr,
            raw.urgent,
            b"".join(bytes((kind, *value)) for kind, value in found.items()),
        )
        self.wire.heard.append(said.heard())
        return said

    def _check_clock(self, tsval: int) -> None:
        """The guest's clock goes on from that of its SYN, as fast as ours and never back."""
        passed = (time.monotonic() - self._began) * 1000
        assert 0 <= relative(tsval, self.ts_base) <= passed + SLACK, (tsval, self.ts_base, passed)
        assert relative(tsval, self._last_tsval) >= 0
        self._last_tsval = tsval

    def expect(
        self,
        flags: str,
        seq: int,
        ack: int | None = None,
        data: bytes = b"",
        *,
        sack: tuple[tuple[int, int], ...] = (),
        urgent: int = 0,
    ) -> Said:
        """What the guest says next is exactly this (PSH, timestamps and the options of a SYN apart)."""
        said = self.hear()
        got = (said.flags, said.seq, said.ack, said.data, said.sack, said.urgent)
        assert got == (flags, seq, ack, data, sack, urgent), said
        return said

    def expect_absolute_reset(self, seq: int) -> None:
        """The guest resets at a number that came from us."""
        raw = self.wire.next()
        assert (raw.sport, raw.dport, raw.flags, raw.seq) == (self.guest_port, self.port, FLAGS["R"], seq), raw
        self.wire.heard.append(("reset",))

    def nothing_more(self, seq: int, ack: int, ours: int) -> None:
        """The guest said nothing since: what comes next is its answer to a segment from behind its window.

        seq, ack: where guest and script stand. ours: the ack that it has from us.
        """
        self.send("A", ack - 1, ours)  # a keep-alive
        self.expect("A", seq, ack)

    # --- whole phrases

    def open(self, listener: socket.socket) -> socket.socket:
        """The script opens the connection; returns the guest's socket."""
        self.send("S", 0)
        self.expect("SA", 0, 1)
        self.send("A", 1, 1)
        return self.wire.accept(listener)

    def too_big(self, mtu: int, seq: int) -> None:
        """An ICMP error that quotes the guest's segment at `seq`: it needs fragmentation, or is too big."""
        self.wire.send(icmp_error(self.wire, mtu, self._quotation((self.base + seq) & MASK)))

    def unreachable(self, seq: int) -> None:
        """An ICMP error that quotes the guest's segment at an absolute `seq`: nobody is there."""
        self.wire.send(icmp_error(self.wire, None, self._quotation(seq)))

    def _quotation(self, seq: int) -> bytes:
        quoted = struct.pack(">HHIIBBHHH", self.guest_port, self.port, seq, 0, 0x50, FLAGS["A"], 0, 0, 0)
        return packets.ip(self.wire.guest, self.wire.client, 6, quoted)


#: The script's clock at its start.
_CLOCK = 0x10000000


def pattern(size: int, start: int = 0) -> bytes:
    """Bytes that are different at every place."""
    whole = b"".join(struct.pack(">I", number) for number in range(start // 4, (start + size) // 4 + 1))
    return whole[start % 4 :][:size]


def relative(number: int, base: int) -> int:
    """The distance between two 32-bit numbers, with its sign."""
    return ((number - base + 0x80000000) & MASK) - 0x80000000


def readable(one: socket.socket) -> None:
    """Wait until there is something to read, or to accept."""
    assert select.select([one], [], [], LONG)[0], "the guest's program waits in vain"


def received(one: socket.socket, size: int) -> bytes:
    """The next `size` bytes that the guest's program reads."""
    got = b""
    while len(got) < size:
        readable(one)
        part = one.recv(size - len(got))
        assert part, f"the connection ended after {got!r}"
        got += part
    return got


def options_of(raw: bytes) -> dict[int, bytes]:
    """TCP options by kind; of those without a length, nothing."""
    found = {}
    at = 0
    while at < len(raw) and raw[at]:
        if raw[at] == 1:
            at += 1
            continue
        found[raw[at]] = raw[at + 2 : at + raw[at + 1]]
        at += raw[at + 1]
    return found


def parsed(frame: bytes, guest: str, client: str) -> list[Raw]:
    """The guest's TCP segments in a frame with virtio-net header, each with a right checksum; [] for anything else."""
    needs_csum, gso_type, _, gso_size, start, offset = struct.unpack_from("<BBHHHH", frame)
    raw = frame[VNET:]
    v6 = raw[12:14] == b"\x86\xdd"
    if (raw[20] if v6 else raw[23]) != 6 or raw[12:14] not in (b"\x86\xdd", b"\x08\x00"):
        return []
    l4, end = (54, 54 + (raw[18] << 8 | raw[19])) if v6 else (34, 14 + (raw[16] << 8 | raw[17]))
    assert v6 or raw[14] == 0x45
    body = raw[l4:end]
    over = packets.pseudo(guest, client, 6, len(body))
    if needs_csum & packets.NEEDS_CSUM:
        assert (start, offset) == (l4, 16)
        assert body[16:18] == struct.pack(">H", inet_sum(over)), "the partial checksum is not the pseudo-header's sum"
    else:
        assert inet_sum(over + body) == 0xFFFF, "a wrong checksum"
    sport, dport, seq, ack, length, flags, window, _, urgent = struct.unpack_from(">HHIIBBHHH", body)
    head = (length >> 4) * 4
    options, data = body[20:head], body[head:]
    if not gso_type:
        return [Raw(sport, dport, seq, ack, flags, window, urgent, options, data)]
    parts = [data[at : at + gso_size] for at in range(0, len(data), gso_size)]
    last = FLAGS["F"] | FLAGS["P"]
    return [
        Raw(sport, dport, (seq + number * gso_size) & MASK, ack, flags & (~0 if number + 1 == len(parts) else ~last),
            window, urgent, options, part)
        for number, part in enumerate(parts)
    ]  # fmt: skip


def with_urgent(frame: bytes, vnet: int, header: int, urgent: int, *, partial: bool) -> bytes:
    """The frame with an urgent pointer."""
    at = vnet + 14 + header + 18
    changed = bytearray(frame)
    changed[at : at + 2] = struct.pack(">H", urgent)
    if not partial:
        old = struct.unpack_from(">H", frame, at - 2)[0]
        changed[at - 2 : at] = struct.pack(">H", ~inet_sum(struct.pack(">HH", ~old & 0xFFFF, urgent)) & 0xFFFF)
    return bytes(changed)


def icmp_error(wire: Wire, mtu: int | None, quoted: bytes) -> bytes:
    """`Fragmentation Needed` or `Packet Too Big` with an MTU; without one, `Port Unreachable`."""
    if wire.v6:
        return icmp(wire, (struct.pack(">BBHI", 2, 0, 0, mtu) if mtu else struct.pack(">BBHI", 1, 4, 0, 0)) + quoted)
    return icmp(wire, struct.pack(">BBHHH", 3, 4 if mtu else 3, 0, 0, mtu or 0) + quoted)


def ping(wire: Wire) -> bytes:
    """An echo request for the guest."""
    return icmp(wire, struct.pack(">BBHHH", 128 if wire.v6 else 8, 0, 0, 1, 1) + b"anybody there?")


def icmp(wire: Wire, body: bytes) -> bytes:
    """An ICMP or ICMPv6 message to the guest; its checksum field is 0."""
    protocol = 58 if wire.v6 else 1
    over = packets.pseudo(wire.client, wire.guest, protocol, len(body)) if wire.v6 else b""
    body = body[:2] + struct.pack(">H", inet_checksum(over + body)) + body[4:]
    return packets.ethernet(packets.ip(wire.client, wire.guest, protocol, body), to_client=False)
