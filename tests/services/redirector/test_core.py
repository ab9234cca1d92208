"""The redirector by script: following, speaking, and how it tells the network."""

from __future__ import annotations

import ipaddress

import packets
import pytest
from packets import GUEST_MAC, arp_reply, from_client, segment

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import CommandError, Cut, Event, Gap
from services.redirector.announce import announcements
from services.redirector.core import Core

CLIENTS = Batch.of([from_client(1, 2)])
GUESTS = Batch.of([segment(1, 2)])


def spoken(core: Core, now: float) -> list[bytes]:
    """Announcements that are due."""
    return [frame for where, batch in core.tick(now) for frame in batch.frames()]


@pytest.fixture
def redirector() -> Core:
    return Core(Node())


def test_it_follows_the_primary(redirector: Core) -> None:
    assert redirector.push("ingress", CLIENTS, 0.0) == [("to_guest", CLIENTS)]
    assert redirector.push("from_guest", GUESTS, 0.0) == [("secondary", GUESTS)]


def test_the_uplink_is_deaf_and_silent_until_failover(redirector: Core) -> None:
    assert redirector.push("uplink", CLIENTS, 0.0) == []
    assert redirector.counters["uplink_ignored"] == 1
    assert redirector.next_deadline() is None


def test_after_failover_the_guest_speaks_through_the_uplink_and_hears_nothing_else(redirector: Core) -> None:
    redirector.command("failover", {}, 5.0)
    assert redirector.push("uplink", CLIENTS, 5.0) == [("to_guest", CLIENTS)]
    assert redirector.push("from_guest", GUESTS, 5.0) == [("uplink", GUESTS)]
    assert redirector.push("ingress", CLIENTS, 5.0) == []
    assert redirector.counters["ingress_ignored"] == 1


def test_failover_brings_a_commit_that_died_with_the_primary(redirector: Core) -> None:
    answer, outputs = redirector.command("failover", {"epoch": 3}, 5.0)
    assert outputs[0] == ("to_guest", Cut(3, "commit"))
    assert answer["epoch"] == 3


def test_a_failover_into_no_epoch_is_refused(redirector: Core) -> None:
    with pytest.raises(CommandError, match="epoch"):
        redirector.command("failover", {"epoch": "3"}, 5.0)
    assert redirector.push("from_guest", GUESTS, 5.0) == [("secondary", GUESTS)]


def test_failover_tells_the_rewriter_by_an_event(redirector: Core) -> None:
    answer, outputs = redirector.command("failover", {}, 5.0)
    assert answer["survivor"] == "secondary"
    assert [o for o in outputs if isinstance(o, Event)] == [Event("failover", {"survivor": "secondary", "epoch": 0})]


def test_addresses_learned_from_the_guest_are_announced_at_once_and_again() -> None:
    core = Core(Node.model_validate({"redirector": {"announcements": 3}}))
    core.push("from_guest", GUESTS, 0.0)
    core.push("from_guest", Batch.of([segment(1, 2, source=packets.GUEST6, destination=packets.CLIENT6)]), 0.0)
    _, outputs = core.command("failover", {}, 5.0)
    first = [frame for o in outputs if not isinstance(o, Event) for frame in o[1].frames()]
    assert [frame[12:14] for frame in first] == [b"\x08\x06", b"\x86\xdd"]
    assert core.next_deadline() == pytest.approx(5.1)
    assert spoken(core, 5.2) == first
    assert spoken(core, 5.4) == first
    assert core.next_deadline() is None


def test_an_address_learned_in_a_vlan_is_announced_there() -> None:
    core = Core(Node())
    core.push("from_guest", Batch.of([segment(1, 2, vlan=(77,))]), 0.0)
    _, outputs = core.command("failover", {}, 5.0)
    (frame,) = outputs[1][1].frames()
    assert frame[12:18] == b"\x81\x00\x00\x4d\x08\x06"
    assert core.status()["guest"] == [{"mac": "52:54:00:00:00:02", "vlan": [77], "addresses": ["10.77.0.2"]}]


def test_an_address_is_learned_from_arp() -> None:
    core = Core(Node())
    core.push("from_guest", Batch.of([arp_reply()]), 0.0)
    assert core.status()["guest"][0]["addresses"] == ["10.77.0.2"]


def test_a_configured_guest_is_announced_without_having_been_heard() -> None:
    core = Core(Node.model_validate({"guest": {"mac": "52:54:00:aa:bb:cc", "addresses": ["192.0.2.7"]}}))
    core.push("from_guest", GUESTS, 0.0)
    _, outputs = core.command("failover", {}, 5.0)
    (frame,) = outputs[1][1].frames()
    assert frame[6:12] == bytes.fromhex("525400aabbcc")
    assert frame[28:32] == ipaddress.ip_address("192.0.2.7").packed


def test_what_is_learned_is_bounded() -> None:
    core = Core(Node())
    for n in range(500):
        frame = bytearray(segment(1, 2, source=f"10.77.{n // 250}.{n % 250 + 3}"))
        frame[7:9] = n.to_bytes(2, "big")
        core.push("from_guest", Batch.of([bytes(frame)]), 0.0)
    assert len(core.status()["guest"]) == 64


def test_the_new_epoch_is_stamped_once_the_cut_came_back_from_the_rewriter(redirector: Core) -> None:
    assert redirector.push("ingress", Cut(1, "commit"), 0.0) == [("to_guest", Cut(1, "commit"))]
    assert redirector.epoch == 0
    assert redirector.push("from_guest", Cut(1, "commit"), 0.0) == [("secondary", Cut(1, "commit"))]
    assert redirector.epoch == 1


def test_a_redirector_that_starts_later_learns_the_epoch_from_the_primarys_side(redirector: Core) -> None:
    redirector.push("ingress", Batch.of([from_client(1, 2)], epoch=4), 0.0)
    redirector.push("ingress", Batch.of([from_client(1, 2)], epoch=5), 0.0)
    assert redirector.epoch == 4


def test_gaps_are_counted_and_told(redirector: Core) -> None:
    (event,) = redirector.push("ingress", Gap("restarted"), 0.0)
    assert isinstance(event, Event)
    assert redirector.counters["gaps_ingress"] == 1


def test_announcements_read_right_to_impacket() -> None:
    """The second source: impacket's decoders."""
    from impacket import ImpactDecoder

    arp, advert, rarp = (
        *announcements(GUEST_MAC, b"", [ipaddress.ip_address("10.77.0.2"), ipaddress.ip_address("fd77::2")]),
        *announcements(GUEST_MAC, b"", []),
    )
    said = ImpactDecoder.EthDecoder().decode(arp).child()
    assert (said.get_ar_op(), bytes(said.get_ar_spa()), bytes(said.get_ar_tpa())) == (1, b"\x0aM\0\2", b"\x0aM\0\2")
    assert bytes(said.get_ar_sha()) == GUEST_MAC
    six = ImpactDecoder.EthDecoder().decode(advert).child()
    assert six.get_ip_src().as_string().lower() == "fd77::2"
    assert advert[54] == 136
    body = advert[54:]
    assert packets.inet_sum(advert[22:54] + len(body).to_bytes(4, "big") + b"\0\0\0\x3a" + body) == 0xFFFF
    assert rarp[12:14] == b"\x80\x35"
    assert rarp[20:22] == b"\0\3"


def test_what_the_uplink_tells_of_its_guest_is_published(redirector: Core) -> None:
    stopped = Event("guest_stopped", {"port": "redirector.uplink", "why": "stopped"})
    assert redirector.push("uplink", stopped, 0.0) == [stopped]


def test_what_was_said_before_a_commit_is_not_stamped_with_its_epoch(redirector: Core) -> None:
    """It starts in the middle of a cut: `ingress` tells of the commit, `from_guest` still has what was said before."""
    redirector.push("ingress", Cut(5, "commit"), 0.0)
    redirector.push("ingress", Batch.of([from_client(1, 2)], epoch=5), 0.0)
    assert redirector.push("from_guest", Batch.of([segment(1, 2)], epoch=4), 0.0) == []
    assert redirector.counters["stale_from_guest"] == 1
    redirector.push("from_guest", Cut(5, "commit"), 0.0)
    said = Batch.of([segment(1, 2)], epoch=5)
    assert redirector.push("from_guest", said, 0.0) == [("secondary", said)]
    assert redirector.epoch == 5
