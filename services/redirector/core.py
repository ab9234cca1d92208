"""The redirector: the secondary node's switch between following and speaking.

    following:    ingress ──▶ to_guest      from_guest ──▶ secondary      uplink: silent
    speaking:     uplink ──▶ to_guest       from_guest ──▶ uplink         ingress: not heard

`failover` turns it from the first to the second, for good, and announces the guest's addresses.
"""

from __future__ import annotations

import ipaddress
from array import array
from collections.abc import Mapping
from typing import Any

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import (
    DIGESTS,
    FROM_GUEST,
    INGRESS,
    SECONDARY,
    TO_GUEST,
    UPLINK,
    CommandError,
    Cut,
    Event,
    Gap,
    Item,
    Output,
)
from lockstep.wire import arp, ethernet, frame, ipv4, ipv6, vlan
from lockstep.wire.frame import Frame, dissect
from services.redirector.announce import Address, announcements
from services.redirector.digest import Digester, new_secret

#: Addresses of the guest that are learned from its frames, at most.
MOST_LEARNED = 64
#: Seconds between two rounds of announcements.
ANNOUNCE_EVERY = 0.1


class Core:
    """See the module."""

    def __init__(self, config: Node) -> None:
        self.epoch = 0
        self.counters = dict.fromkeys(
            (
                "ingress_frames", "guest_frames", "uplink_frames_in", "uplink_frames_out", "uplink_ignored",
                "ingress_ignored", "dropped_to_guest", "dropped_secondary", "gaps_ingress", "gaps_from_guest",
                "stale_from_guest", "announcements",
            ),
            0,
        )  # fmt: skip
        #: After a start the first message of the primary's side tells which epoch this is.
        self._epoch_known = False
        self._speaking = False
        self._rounds = config.redirector.announcements
        self._rounds_left = 0
        self._next_round = 0.0
        self._frame = Frame()
        digests = config.redirector.secondary == "digest"
        #: In digest mode, with the key of this start.
        self._digester = Digester(new_secret(config.redirector.hash)) if digests else None
        #: (MAC, VLAN tags as they lie in the frame) → the addresses it speaks for.
        self._learned: dict[tuple[bytes, bytes], list[Address]] = {}
        #: What was learned last: most batches say the same again.
        self._noted = b"", b""
        self._configured = bool(config.guest.mac)
        if config.guest.mac:
            mac = bytes.fromhex(config.guest.mac.replace(":", ""))
            self._learned[mac, b""] = [ipaddress.ip_address(address) for address in config.guest.addresses]

    def push(self, stream: str, item: Item, now: float) -> list[Output]:
        """Pass a batch on, as the picture above shows."""
        if isinstance(item, Gap) and stream in (INGRESS, FROM_GUEST):
            self.counters[f"gaps_{stream}"] += 1
            return [Event("gap", {"stream": stream, "reason": item.reason, "lost": item.lost})]
        if stream == INGRESS and isinstance(item, Batch | Cut):
            return self._ingress(item)
        if stream == FROM_GUEST and isinstance(item, Batch | Cut):
            return self._from_guest(item)
        if stream == UPLINK and isinstance(item, Event):
            return [item]
        if stream == UPLINK and isinstance(item, Batch):
            if not self._speaking:
                self.counters["uplink_ignored"] += len(item)
                return []
            self.counters["uplink_frames_in"] += len(item)
            return [(TO_GUEST, item)]
        raise AssertionError(f"the redirector takes no {type(item).__name__} on {stream}")

    def _ingress(self, item: Batch | Cut) -> list[Output]:
        if self._speaking:
            self.counters["ingress_ignored"] += len(item) if isinstance(item, Batch) else 1
            return []
        if isinstance(item, Batch):
            self.counters["ingress_frames"] += len(item)
            if not self._epoch_known:
                self._epoch_known = True
                self.epoch = max(self.epoch, item.epoch)
        return [(TO_GUEST, item)]

    def _from_guest(self, item: Batch | Cut) -> list[Output]:
        if isinstance(item, Cut):
            # The cut has been through the rewriter: what follows it is said in the new epoch.
            if item.phase == "commit":
                self.epoch = max(self.epoch, item.epoch)
            return [] if self._speaking else [(SECONDARY if self._digester is None else DIGESTS, item)]
        self.counters["guest_frames"] += len(item)
        self._learn(item)
        if self._speaking:
            self.counters["uplink_frames_out"] += len(item)
            return [(UPLINK, item)]
        if item.epoch < self.epoch:
            # Said before a commit that has come in by now: after a start here, `ingress` may have told of it first.
            self.counters["stale_from_guest"] += len(item)
            return []
        if self._digester is not None:
            return [(DIGESTS, self._digester.records(item))]
        return [(SECONDARY, item)]

    def _learn(self, batch: Batch) -> None:
        """Note whose frames these are; the first of each batch is enough, since idle guests send single ones."""
        if self._configured or not batch.lengths:
            return
        f, data, start = self._frame, batch.data, batch.vnet
        kind = dissect(f, data, start, batch.lengths[0])
        if kind == frame.MALFORMED:
            return
        at, size = 0, 0
        if f.version == 4:
            at, size = f.l3 + ipv4.SOURCE, 4
        elif f.version == 6:
            at, size = f.l3 + ipv6.SOURCE, 16
        elif f.ethertype == ethernet.ARP and f.end - f.l3 >= arp.SIZE:
            at, size = f.l3 + arp.SENDER_ADDRESS, 4
        said = bytes(data[start + 6 : f.l3]), bytes(data[at : at + size])
        if said != self._noted:
            self._noted = said
            self._note(*said)

    def _note(self, link: bytes, address: bytes) -> None:
        """Remember who speaks for an address. link: its MAC, tags and an ethertype; no address: none is told."""
        source, tags = link[:6], link[6:-2]
        if (source, tags) not in self._learned:
            if len(self._learned) == MOST_LEARNED or source[0] & 1:
                return
            self._learned[source, tags] = []
        known = self._learned[source, tags]
        if not any(address) or len(known) == MOST_LEARNED:
            return
        spoken_for = ipaddress.ip_address(address)
        if spoken_for not in known:
            known.append(spoken_for)

    def tick(self, now: float, heard: float | None = None) -> list[Output]:
        """Send the announcements that are due."""
        if not self._rounds_left or now < self._next_round:
            return []
        self._rounds_left -= 1
        self._next_round = now + ANNOUNCE_EVERY
        frames = [f for (mac, tags), known in self._learned.items() for f in announcements(mac, tags, known)]
        self.counters["announcements"] += len(frames)
        if not frames:
            return []
        return [(UPLINK, Batch(b"".join(frames), array("I", map(len, frames))))]

    def next_deadline(self) -> float | None:
        """See Core in lockstep.streams."""
        return self._next_round if self._rounds_left else None

    def command(self, op: str, arguments: Mapping[str, Any], now: float) -> tuple[dict[str, Any], list[Output]]:
        """`failover`: the secondary guest speaks to the world from now on. Asking twice is allowed.

        epoch: optional, the last checkpoint that the asker knows to be committed.
        """
        if op != "failover":
            raise CommandError(f"the redirector has no `{op}`")
        epoch = arguments.get("epoch", self.epoch)
        if type(epoch) is not int or epoch < 0:
            raise CommandError("a failover's `epoch` is the number of the last committed checkpoint")
        outputs: list[Output] = []
        if epoch > self.epoch:
            # The commit died with the primary: the guest is a copy of it all the same.
            self.epoch = epoch
            outputs.append((TO_GUEST, Cut(epoch, "commit")))
        if not self._speaking:
            self._speaking = True
            self._rounds_left = self._rounds
            self._next_round = now
        said = {"survivor": "secondary", "epoch": self.epoch}
        return said, [*outputs, Event("failover", said), *self.tick(now)]

    def reload(self, config: Node) -> None:
        """Nothing can change while it runs."""

    def undelivered(self, stream: str, item: Batch | Cut, now: float) -> list[Output]:
        """A full link lost frames; the gap in its numbers tells the consumer."""
        if isinstance(item, Cut):
            return [Event("cut_lost", {"stream": stream, "epoch": item.epoch, "phase": item.phase})]
        name = f"dropped_{stream}"
        self.counters[name] = self.counters.get(name, 0) + len(item)
        return []

    def status(self) -> dict[str, Any]:
        """Who speaks, and for which addresses."""
        return {
            "speaking": self._speaking,
            "guest": [
                {"mac": mac.hex(":"), "vlan": _vlan_ids(tags), "addresses": [str(address) for address in known]}
                for (mac, tags), known in self._learned.items()
            ],
        }


def _vlan_ids(tags: bytes) -> list[int]:
    return [int.from_bytes(tags[at + 2 : at + 4], "big") & vlan.VID_MASK for at in range(0, len(tags), vlan.TAG)]
