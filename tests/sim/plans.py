"""What client and guests do: the connections and datagrams of a run, and how each connection ended.

A *plan* is one TCP connection: what each end says (`client_bytes`, `guest_bytes`), and when, as a
script. Both guests run the same scripts. Steps: ("send", bytes) · ("recv", bytes in all) · ("eof", 0)
the other end's FIN · ("acked", 0) · ("pause", seconds) · ("fin", 0) · ("rst", 0).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Step = tuple[str, float]
Script = tuple[Step, ...]

#: How a plan is meant to end.
COMPLETE, RESET, REFUSED = "complete", "reset", "refused"

SHAPES = (
    "download", "download", "upload", "upload", "requests", "requests", "banner", "both", "guest_opens", "guest_opens",
    "half_close", "client_aborts", "guest_aborts", "guest_gives_up", "refused", "guest_refused", "idle", "both_open",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Plan:
    """One connection. port: the client's. service: the guest's. at: when it is opened."""

    number: int
    shape: str
    version: int
    opener: str
    port: int
    service: int
    at: float
    client: Script
    guest: Script
    client_bytes: bytes
    guest_bytes: bytes
    stamps: bool
    sack: bool
    multipath: bool
    fate: str
    #: Explicit congestion notification; the place behind an urgent byte that the guest says.
    ecn: bool = False
    urgent: int | None = None

    @property
    def up(self) -> int:
        """Bytes that the client says."""
        return len(self.client_bytes)

    @property
    def down(self) -> int:
        """Bytes that the guest says."""
        return len(self.guest_bytes)


def scripts(shape: str, chance: random.Random, big: int) -> tuple[Script, Script, str, str]:
    """Client's and guest's script, who opens, and how it ends."""
    small, large = chance.randint(1, 400), chance.randint(1, big)
    up, down = (0, 0)
    if shape == "download":
        up, down = small, large
        last: Script = (("fin", 0), ("eof", 0)) if chance.random() < 0.5 else (("eof", 0), ("fin", 0))
        client: Script = (("send", up), ("recv", down), *last)
        guest: Script = (("recv", up), ("send", down), *((("fin", 0),) if last[0][0] == "eof" else ()), ("eof", 0))
        guest += (("fin", 0),)
        return client, guest, "client", COMPLETE
    if shape == "upload":
        up, down = large, small
        client = (("send", up), ("fin", 0), ("recv", down), ("eof", 0))
        guest = (("recv", up), ("send", down), ("eof", 0), ("fin", 0))
        return client, guest, "client", COMPLETE
    if shape == "half_close":  # the guest closes first, the client goes on sending
        up, down = large, small
        client = (("recv", down), ("eof", 0), ("send", up), ("fin", 0))
        guest = (("send", down), ("fin", 0), ("recv", up), ("eof", 0))
        return client, guest, "client", COMPLETE
    if shape in ("requests", "idle", "guest_opens"):
        rounds = chance.randint(1, 5)
        client_steps: list[Step] = []
        guest_steps: list[Step] = []
        for index in range(rounds):
            asked, answered = chance.randint(1, 600), chance.randint(1, big // 2)
            if shape == "idle" and index:
                client_steps.append(("pause", chance.uniform(0.5, 2.5)))
            client_steps += (("send", asked), ("recv", down + answered))
            guest_steps += (("recv", up + asked), ("send", answered))
            up, down = up + asked, down + answered
        if shape == "guest_opens" and chance.random() < 0.5:
            client_steps, guest_steps, up, down = guest_steps, client_steps, down, up
        ends: list[list[Step]] = [[("fin", 0), ("eof", 0)], [("eof", 0), ("fin", 0)]]
        chance.shuffle(ends)
        opener = "guest" if shape == "guest_opens" else "client"
        return (*client_steps, *ends[0]), (*guest_steps, *ends[1]), opener, COMPLETE
    if shape == "banner":
        up, down = small, large
        client = (("recv", 3), ("send", up), ("recv", down + 3), ("fin", 0), ("eof", 0))
        guest = (("send", 3), ("recv", up), ("send", down), ("eof", 0), ("fin", 0))
        return client, guest, "client", COMPLETE
    if shape in ("both", "both_open"):
        client = (("send", large), ("fin", 0), ("eof", 0))
        guest = (("send", large), ("fin", 0), ("eof", 0))
        return client, guest, "client" if shape == "both" else "both", COMPLETE
    if shape == "client_aborts":
        client = (("send", small), ("recv", max(1, large // 2)), ("rst", 0))
        guest = (("recv", small), ("send", large), ("eof", 0), ("fin", 0))
        return client, guest, "client", RESET
    if shape == "guest_aborts":
        client = (("send", small), ("recv", large), ("eof", 0), ("fin", 0))
        guest = (("recv", small), ("send", large), ("acked", 0), ("rst", 0))
        return client, guest, "client", RESET
    if shape == "guest_gives_up":  # in the middle of what the client says
        client = (("send", large), ("fin", 0), ("eof", 0))
        return client, (("recv", max(1, large // 3)), ("rst", 0)), "client", RESET
    if shape == "refused":
        return (("send", small),), (), "client", REFUSED
    if shape == "guest_refused":
        return (), (("send", small),), "guest", REFUSED
    raise AssertionError(shape)


def said_by(script: Script) -> int:
    """Bytes that a script sends."""
    return int(sum(number for kind, number in script if kind == "send"))


class Plans:
    """The plans of a run by what a host sees of them, and how each ended where.

    complain: told of what must never be, as `(host, plan, what)`.
    """

    def __init__(self, complain: Callable[[str, int, str], None]) -> None:
        self.all: dict[int, Plan] = {}
        self.endings: dict[tuple[int, str], str] = {}
        self.complain = complain
        self._by_number: dict[tuple[int, int, int, int], Plan] = {}
        self._by_ports: dict[tuple[int, int, int], Plan] = {}

    def add(self, plan: Plan) -> None:
        """One more."""
        self.all[plan.number] = plan

    def opened(self, plan: Plan, host: str, iss: int) -> None:
        """The SYN of this plan leaves a host."""
        if plan.opener == "client":
            self._by_number[plan.version, plan.port, plan.service, iss] = plan
        else:
            self._by_ports[plan.version, plan.service, plan.port] = plan

    def of(self, version: int, sport: int, dport: int, seq: int, at_client: bool) -> Plan | None:
        """The plan whose SYN arrives."""
        if at_client:
            return self._by_ports.get((version, sport, dport))
        return self._by_number.get((version, sport, dport, seq))

    @staticmethod
    def stream(plan: Plan, of_client: bool, wrong: dict[int, int]) -> bytes:
        """What an end says; a guest may have one byte of it wrong."""
        if of_client:
            return plan.client_bytes
        at = wrong.get(plan.number)
        if at is None or at >= plan.down:
            return plan.guest_bytes
        return plan.guest_bytes[:at] + bytes((plan.guest_bytes[at] ^ 0x20,)) + plan.guest_bytes[at + 1 :]

    def ended(self, number: int, host: str, how: str) -> None:
        """A connection is over at a host: finished, reset, refused, aborted, timed out, not opened."""
        if self.endings.get((number, host)) != "finished":
            self.endings[number, host] = how

    def copied(self, original: str, copy: str) -> None:
        """A host has become a copy of another: what is over there is over here."""
        for number in self.all:
            self.endings.pop((number, copy), None)
            if (how := self.endings.get((number, original))) is not None:
                self.endings[number, copy] = how
