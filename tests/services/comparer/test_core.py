"""The comparer by script: what the two sides say, and what leaves."""

from __future__ import annotations

import packets
import pytest
from packets import FIN, PSH, RST, SYN, URG, arp_reply, echo_reply, segment, udp

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import RELEASED, Cut, Event, Gap
from services.comparer.core import MADE, Core

ISN, ISN2 = 5000, 0xFFFFFF00  # the primary's and the secondary's initial sequence numbers
CLIENT_ISN = 900
MSS_WS = b"\x02\x04\x05\xb4\x01\x03\x03\x07"


class Sides:
    """A comparer, and the two sides talking to it."""

    def __init__(self, **settings: object) -> None:
        settings.setdefault("on_divergence", "hold")
        self.core = Core(Node.model_validate({"comparer": settings}))
        self.now = 100.0
        self.events: list[Event] = []

    def primary(self, *frames: bytes, vnet: int = 0) -> list[bytes]:
        """What leaves when the primary says this."""
        return self.left(self.core.push("primary", Batch.of(frames, vnet), self.now))

    def secondary(self, *frames: bytes, vnet: int = 0, epoch: int = 0) -> list[bytes]:
        """What leaves when the secondary says this."""
        return self.left(self.core.push("secondary", Batch.of(frames, vnet, epoch), self.now))

    def cut(self, epoch: int, phase: str) -> list[bytes]:
        return self.left(self.core.push("primary", Cut(epoch, phase), self.now))  # type: ignore[arg-type]

    def wait(self, seconds: float) -> list[bytes]:
        self.now += seconds
        return self.left(self.core.tick(self.now))

    def left(self, outputs: list[object]) -> list[bytes]:
        frames = []
        for output in outputs:
            if isinstance(output, Event):
                self.events.append(output)
            else:
                stream, batch = output  # type: ignore[misc]
                assert stream == RELEASED
                frames += batch.frames()
        return frames

    def named(self, name: str) -> list[dict[str, object]]:
        return [dict(event.fields) for event in self.events if event.name == name]

    def handshake(self) -> None:
        """A client's connection is accepted by both, with initial numbers of their own."""
        syn_ack = segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS)
        assert self.primary(syn_ack) == []
        assert self.secondary(segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=MSS_WS)) == [syn_ack]

    def conserved(self) -> bool:
        c = self.core.counters
        dropped = sum(n for name, n in c.items() if name.startswith("dropped_"))
        made = sum(c[name] for name in MADE)
        return c["primary_frames"] + made == c["released"] + dropped + self.core.status()["held"]


def data(place: int, payload: bytes, ack: int = CLIENT_ISN + 1, **more: object) -> bytes:
    return segment(ISN + 1 + place, ack, payload, flags=PSH, **more)  # type: ignore[arg-type]


@pytest.fixture
def sides() -> Sides:
    """An open connection."""
    sides = Sides()
    sides.handshake()
    return sides


# --- data


def test_payload_leaves_once_the_secondary_said_it(sides: Sides) -> None:
    frame = data(0, b"hello")
    assert sides.primary(frame) == []
    assert sides.secondary(data(0, b"hello")) == [frame]


def test_payload_leaves_at_once_if_the_secondary_was_first(sides: Sides) -> None:
    assert sides.secondary(data(0, b"hello")) == []
    frame = data(0, b"hello")
    assert sides.primary(frame) == [frame]


def test_an_equal_batch_is_passed_on_without_a_copy(sides: Sides) -> None:
    sides.secondary(data(0, b"helloworld"))
    batch = Batch.of([data(0, b"hello"), data(5, b"world")])
    (output,) = sides.core.push("primary", batch, sides.now)
    assert output == (RELEASED, batch)


def test_segmentation_does_not_matter(sides: Sides) -> None:
    first, second = data(0, b"abcdef"), data(6, b"ghi")
    assert sides.primary(first, second) == []
    assert sides.secondary(data(0, b"ab"), data(2, b"cde")) == []
    assert sides.secondary(data(5, b"fgh")) == [first]
    assert sides.secondary(data(8, b"i")) == [second]


def test_the_secondary_may_say_it_out_of_order(sides: Sides) -> None:
    frame = data(0, b"abcdef")
    sides.primary(frame)
    assert sides.secondary(data(3, b"def")) == []
    assert sides.secondary(data(0, b"abc")) == [frame]


def test_a_different_byte_is_a_divergence_at_its_offset(sides: Sides) -> None:
    sides.primary(data(0, b"hello world"))
    assert sides.secondary(data(0, b"hello_world")) == []
    (report,) = sides.named("divergence")
    assert (report["reason"], report["offset"]) == ("data", 5)
    assert report["flow"] == "10.77.0.2:80 10.77.0.1:40000"
    assert bytes.fromhex(str(report["primary"])) == b"hello world"
    assert bytes.fromhex(str(report["secondary"])) == b"hello_world"


def test_after_a_divergence_nothing_of_the_flow_leaves(sides: Sides) -> None:
    sides.primary(data(0, b"x"))
    sides.secondary(data(0, b"y"))
    sides.secondary(data(1, b"z"))
    assert sides.primary(data(1, b"z")) == []
    assert len(sides.named("divergence")) == 1
    assert sides.conserved()


def test_a_retransmission_of_released_bytes_leaves(sides: Sides) -> None:
    sides.secondary(data(0, b"hello"))
    sides.primary(data(0, b"hello"))
    again = data(2, b"llo")
    assert sides.primary(again) == [again]


def test_a_retransmission_with_other_bytes_does_not_leave(sides: Sides) -> None:
    sides.secondary(data(0, b"hello"))
    sides.primary(data(0, b"hello"))
    assert sides.primary(data(0, b"jello")) == []
    assert sides.named("divergence")[0]["offset"] == 0


def test_a_retransmission_of_forgotten_bytes_waits_for_the_secondarys(sides: Sides) -> None:
    sides.secondary(data(0, b"hello"))
    sides.primary(data(0, b"hello"))
    for _ in range(8):
        sides.wait(1.5)
    again = data(0, b"hello")
    assert sides.primary(again) == []
    sides.wait(0.05)
    assert sides.secondary(data(0, b"hello")) == [again]


def test_a_retransmission_of_forgotten_bytes_that_the_secondary_does_not_repeat_is_dropped(sides: Sides) -> None:
    """A spurious one: the client has the bytes, so the secondary heard their ack, too."""
    sides.secondary(data(0, b"hello"))
    sides.primary(data(0, b"hello"))
    for _ in range(8):
        sides.wait(1.5)
    behind = data(5, b"!")
    sides.primary(data(0, b"hello"), behind)
    sides.secondary(data(5, b"!"))
    assert sides.wait(0.05) == []
    assert sides.wait(0.06) == [behind]
    assert sides.core.counters["dropped_stale"] == 1
    assert not sides.named("divergence")
    assert sides.conserved()


def test_a_missing_primary_segment_is_made_up_by_its_retransmission(sides: Sides) -> None:
    sides.secondary(data(0, b"abcdef"))
    late, first = data(3, b"def"), data(0, b"abc")
    assert sides.primary(late) == [late]
    assert sides.primary(first) == [first]


def test_a_secondary_that_contradicts_itself_is_a_divergence(sides: Sides) -> None:
    sides.secondary(data(0, b"abc"))
    sides.secondary(data(1, b"x"))
    (report,) = sides.named("divergence")
    assert (report["reason"], report["offset"]) == ("secondary_contradicts_itself", 1)


def test_ethernet_padding_is_not_compared(sides: Sides) -> None:
    frame = data(0, b"a") + b"\0" * 5
    sides.secondary(data(0, b"a") + b"padding")
    assert sides.primary(frame) == [frame]


def test_ip_id_ttl_window_and_timestamps_are_not_compared(sides: Sides) -> None:
    frame = data(0, b"a", ident=7, window=10, options=packets.timestamps(1, 2))
    sides.secondary(data(0, b"a", ident=9, window=99, options=packets.timestamps(3, 2)))
    assert sides.primary(frame) == [frame]


def test_virtio_net_headers_may_differ_in_size(sides: Sides) -> None:
    frame = data(0, b"a", vnet=10, partial=True)
    assert sides.primary(frame, vnet=10) == []
    assert sides.secondary(data(0, b"a", vnet=12), vnet=12) == [frame]


@pytest.mark.parametrize("vlan", [(77,), (5, 77)])
def test_a_vlan_is_a_flow_of_its_own(vlan: tuple[int, ...]) -> None:
    sides = Sides()
    sides.secondary(data(0, b"a"))
    assert sides.primary(data(0, b"a", vlan=vlan)) == []
    frame = data(0, b"a")
    assert sides.primary(frame) == [frame]


def test_ipv6() -> None:
    sides = Sides()
    ends = {"source": packets.GUEST6, "destination": packets.CLIENT6}
    frame = data(0, b"a", **ends)
    assert sides.primary(frame) == []
    assert sides.secondary(data(0, b"a", **ends)) == [frame]
    sides.primary(data(1, b"b", **ends))
    sides.secondary(data(1, b"c", **ends))
    assert sides.named("divergence")[0]["flow"] == "[fd77::2]:80 [fd77::1]:40000"


def test_a_connection_is_picked_up_in_its_middle() -> None:
    sides = Sides()
    frame = data(70_000, b"mid")
    assert sides.primary(frame) == []
    assert sides.secondary(data(70_000, b"mid")) == [frame]


# --- acks


def test_an_ack_ahead_of_the_secondarys_waits(sides: Sides) -> None:
    ack = segment(ISN + 1, CLIENT_ISN + 101)
    assert sides.primary(ack) == []
    assert sides.secondary(segment(ISN + 1, CLIENT_ISN + 100)) == []
    assert sides.secondary(segment(ISN + 1, CLIENT_ISN + 101)) == [ack]


def test_data_with_an_ack_ahead_of_the_secondarys_waits(sides: Sides) -> None:
    frame = data(0, b"a", ack=CLIENT_ISN + 2)
    sides.secondary(data(0, b"a"))
    assert sides.primary(frame) == []
    assert sides.secondary(segment(ISN + 2, CLIENT_ISN + 2)) == [frame]


def test_an_older_ack_leaves_at_once(sides: Sides) -> None:
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 500))
    ack = segment(ISN + 1, CLIENT_ISN + 400)
    assert sides.primary(ack) == [ack]


def test_a_fin_with_an_ack_ahead_waits(sides: Sides) -> None:
    fin = segment(ISN + 1, CLIENT_ISN + 9, flags=FIN)
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, flags=FIN))
    assert sides.primary(fin) == []
    assert sides.secondary(segment(ISN + 2, CLIENT_ISN + 9)) == [fin]


def test_a_rst_with_an_ack_ahead_waits(sides: Sides) -> None:
    rst = segment(ISN + 1, CLIENT_ISN + 9, flags=RST)
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, flags=RST))
    assert sides.primary(rst) == []


# --- windows


def test_the_client_is_never_told_of_more_room_than_the_secondary_has(sides: Sides) -> None:
    """The SYN's scale is 7: windows are in units of 128 bytes."""
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, window=100))
    assert sides.primary(segment(ISN + 1, CLIENT_ISN + 1, window=300)) == [segment(ISN + 1, CLIENT_ISN + 1, window=100)]
    within = segment(ISN + 1, CLIENT_ISN + 1, window=100)
    assert sides.primary(within) == [within]


def test_a_lowered_window_counts_from_the_ack(sides: Sides) -> None:
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1 + 12_800, window=100))
    assert sides.primary(segment(ISN + 1, CLIENT_ISN + 1 + 6_400, window=300)) == [
        segment(ISN + 1, CLIENT_ISN + 1 + 6_400, window=150)
    ]


def test_the_edge_that_the_client_was_told_is_never_taken_back(sides: Sides) -> None:
    """RFC 9293 §3.8.6.2.1. The secondary has not spoken since the SYN, so the first one leaves as it is."""
    told = segment(ISN + 1, CLIENT_ISN + 1, window=300)
    assert sides.primary(told) == [told]
    assert sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, window=100)) == []
    assert sides.primary(segment(ISN + 1, CLIENT_ISN + 1, window=400)) == [told]


def test_the_client_is_told_when_the_secondarys_window_opens(sides: Sides) -> None:
    sides.secondary(data(0, b"abc", window=100))
    assert sides.primary(data(0, b"abc", window=300)) == [data(0, b"abc", window=100)]
    assert sides.secondary(segment(ISN + 4, CLIENT_ISN + 1, window=110)) == []
    assert sides.secondary(segment(ISN + 4, CLIENT_ISN + 1, window=200)) == [
        segment(ISN + 4, CLIENT_ISN + 1, window=200)
    ]
    assert sides.secondary(segment(ISN + 4, CLIENT_ISN + 1, window=900)) == [
        segment(ISN + 4, CLIENT_ISN + 1, window=300)
    ]
    assert sides.secondary(segment(ISN + 4, CLIENT_ISN + 1, window=1900)) == []
    assert sides.core.counters["window_updates"] == 2
    assert sides.conserved()


def test_a_window_update_is_not_needed_after_a_later_segment(sides: Sides) -> None:
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, window=100))
    sides.primary(segment(ISN + 1, CLIENT_ISN + 1, window=300))
    sides.primary(segment(ISN + 1, CLIENT_ISN + 1, window=90))
    assert sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, window=900)) == []


def test_what_the_secondary_offered_before_the_scale_was_known_counts() -> None:
    """Its SYN-ACK and its first data come before the primary's SYN-ACK, which has the scale that is compared."""
    sides = Sides()
    sides.secondary(segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=MSS_WS))
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, window=100))
    sides.primary(segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS))
    lowered = segment(ISN + 1, CLIENT_ISN + 1, window=100)
    assert sides.primary(segment(ISN + 1, CLIENT_ISN + 1, window=300)) == [lowered]


def test_a_syn_ack_sent_again_forgets_no_window(sides: Sides) -> None:
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, window=100))
    sides.primary(segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS))
    lowered = segment(ISN + 1, CLIENT_ISN + 1, window=100)
    assert sides.primary(segment(ISN + 1, CLIENT_ISN + 1, window=300)) == [lowered]


def test_the_window_of_an_earlier_connection_is_forgotten(sides: Sides) -> None:
    """Port reuse: the new connection's numbers have nothing to do with the old one's right edge."""
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, window=100))
    sides.primary(segment(ISN + 700_000, CLIENT_ISN - 70_000, flags=SYN, options=MSS_WS))
    sides.secondary(segment(ISN2 + 700_000, CLIENT_ISN - 70_000, flags=SYN, options=MSS_WS))
    wide = segment(ISN + 700_001, CLIENT_ISN - 70_000, window=900)
    assert sides.primary(wide) == [wide]


@pytest.mark.parametrize("vlan", [(), (77,)])
def test_a_window_update_over_ipv6_behind_a_super_frame(vlan: tuple[int, ...]) -> None:
    ends = {"source": packets.GUEST6, "destination": packets.CLIENT6, "vlan": vlan}
    sides = Sides()
    sides.primary(segment(ISN, 1, flags=SYN, options=MSS_WS, **ends))
    sides.secondary(segment(ISN2, 1, flags=SYN, options=MSS_WS, **ends))
    large = {"partial": True, "vnet": 12, "gso_size": 100, **ends}
    sides.secondary(segment(ISN + 1, 1, b"x" * 300, window=10, **large), vnet=12)
    assert sides.primary(segment(ISN + 1, 1, b"x" * 300, window=500, **large), vnet=12) == [
        segment(ISN + 1, 1, b"x" * 300, window=10, **large)
    ]
    assert sides.secondary(segment(ISN + 301, 1, window=900, **ends)) == [
        bytes(12) + segment(ISN + 301, 1, window=500, **ends)
    ]


# --- SYN, FIN, RST


def test_a_syn_ack_waits_for_the_secondarys() -> None:
    Sides().handshake()


def test_a_syn_ack_that_acks_another_number_is_not_the_same() -> None:
    sides = Sides()
    sides.secondary(segment(ISN2, CLIENT_ISN + 2, flags=SYN, options=MSS_WS))
    assert sides.primary(segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS)) == []


def test_a_syn_ack_that_waited_beside_one_of_another_connection_is_unmatched() -> None:
    sides = Sides()
    sides.primary(segment(ISN, 901, flags=SYN, options=MSS_WS))
    sides.secondary(segment(ISN2, 700, flags=SYN, options=MSS_WS))
    sides.wait(3.1)
    assert sides.named("divergence")[0]["reason"] == "unmatched"


def test_other_options_on_a_syn_are_a_divergence() -> None:
    sides = Sides()
    sides.primary(segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS))
    assert sides.secondary(segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=b"\x02\x04\x05\xb4\x01\x03\x03\x08")) == []
    assert sides.named("divergence")[0]["reason"] == "syn"


def test_clock_values_and_padding_on_a_syn_do_not_matter() -> None:
    sides = Sides()
    syn = segment(ISN, CLIENT_ISN + 1, flags=SYN, options=packets.timestamps(1, 2) + MSS_WS)
    sides.primary(syn)
    assert sides.secondary(segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=packets.timestamps(8, 9) + MSS_WS)) == [syn]


def test_a_syn_ack_sent_again_leaves_without_a_second_one_of_the_secondary(sides: Sides) -> None:
    again = segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS)
    assert sides.primary(again) == [again]


def test_the_syn_ack_leaves_again_if_the_secondary_still_waits_for_the_clients_answer(sides: Sides) -> None:
    """The client has answered, to the primary; the secondary's copy of that answer was lost."""
    syn_ack = segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS)
    again = segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=MSS_WS)
    assert sides.secondary(again) == []
    banner = data(0, b"220 ready")
    sides.primary(banner)
    assert sides.secondary(again) == []
    sides.wait(1)
    assert sides.secondary(again) == [syn_ack]
    assert sides.secondary(data(0, b"220 ready")) == [banner]
    assert sides.core.counters["repeated_syns"] == 1
    assert sides.conserved()


def test_what_the_primary_said_last_before_the_clients_rst_is_no_divergence() -> None:
    sides = Sides(compare_timeout=1)
    sides.handshake()
    sides.primary(data(0, b"more than the secondary came to say"))
    key = next(iter(sides.core._table.flows))
    sides.left(sides.core.push("events", Event("reset_by_client", {"key": key}), sides.now))
    sides.secondary(data(0, b"more"))  # on its way when the RST came
    sides.wait(1.1)
    assert not sides.named("divergence")
    assert sides.core.counters["dropped_reset"] == 1
    assert sides.conserved()


def test_a_primary_that_goes_on_after_the_clients_rst_diverges_if_it_is_alone() -> None:
    """A RST that is in the window, and not exact, is not taken (RFC 5961 §3.2)."""
    sides = Sides()
    sides.handshake()
    event = Event("reset_by_client", {"key": next(iter(sides.core._table.flows))})
    sides.core.push("events", event, sides.now)
    sides.now += 2
    sides.primary(data(0, b"abc"))
    sides.wait(3.1)
    assert sides.named("divergence")[0]["reason"] == "unmatched"


def test_what_was_dropped_after_a_rst_that_nobody_took_is_never_taken_for_stale() -> None:
    """It has not left, though what stands behind it has: the client lacks it, and it may be different."""
    sides = Sides(compare_timeout=0.3)
    sides.handshake()
    key = next(iter(sides.core._table.flows))
    sides.left(sides.core.push("events", Event("reset_by_client", {"key": key}), sides.now))
    lost, behind = data(0, b"lost"), data(4, b"behind")
    sides.secondary(behind)
    assert sides.primary(lost, behind) == []
    assert sides.wait(0.31) == [behind]
    assert sides.core.counters["dropped_reset"] == 1
    sides.now += 2
    sides.secondary(segment(ISN + 11, CLIENT_ISN + 1))
    assert sides.primary(lost, data(4, b"be")) == []
    assert sides.secondary(data(0, b"lo")) == []
    assert sides.wait(0.15) == []
    assert sides.core.counters["dropped_stale"] == 0
    assert sides.secondary(data(0, b"lost")) == [lost, data(4, b"be")]
    assert sides.primary(lost) == [lost]
    assert sides.conserved()


def test_a_rst_that_the_secondary_did_not_take_changes_nothing() -> None:
    sides = Sides(compare_timeout=3)
    sides.handshake()
    key = next(iter(sides.core._table.flows))
    sides.left(sides.core.push("events", Event("reset_by_client", {"key": key}), sides.now))
    sides.wait(1.5)
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1))
    sides.primary(data(0, b"x"))
    sides.wait(3.1)
    assert len(sides.named("divergence")) == 1


def test_port_reuse_begins_a_new_incarnation(sides: Sides) -> None:
    sides.secondary(data(0, b"old"))
    sides.primary(data(0, b"old"))
    syn = segment(9000, 7001, flags=SYN, options=MSS_WS)
    assert sides.primary(syn) == []
    assert sides.secondary(segment(1, 7001, flags=SYN, options=MSS_WS)) == [syn]
    new = segment(9001, 7001, b"new")
    assert sides.primary(new) == []
    assert sides.secondary(segment(9001, 7001, b"new")) == [new]


def test_a_guests_own_syn_sent_again_by_the_secondary_proves_no_later_connection() -> None:
    sides = Sides()
    syn = segment(ISN, flags=SYN, options=MSS_WS)
    sides.primary(syn)
    assert sides.secondary(segment(ISN2, flags=SYN, options=MSS_WS)) == [syn]
    sides.secondary(segment(ISN2, flags=SYN, options=MSS_WS))
    assert sides.primary(segment(ISN + 77_777, flags=SYN, options=MSS_WS)) == []


def test_a_fin_leaves_at_the_secondarys_place(sides: Sides) -> None:
    fin = segment(ISN + 1, CLIENT_ISN + 1, b"bye", flags=FIN)
    assert sides.primary(fin) == []
    assert sides.secondary(data(0, b"bye")) == []
    assert sides.secondary(segment(ISN + 4, CLIENT_ISN + 1, flags=FIN)) == [fin]


@pytest.mark.parametrize(("primary_end", "secondary_end"), [(3, 5), (5, 3)])
def test_a_fin_at_another_place_is_a_divergence(sides: Sides, primary_end: int, secondary_end: int) -> None:
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, b"abcde"[:secondary_end], flags=FIN))
    assert sides.primary(segment(ISN + 1, CLIENT_ISN + 1, b"abcde"[:primary_end], flags=FIN)) == []
    (report,) = sides.named("divergence")
    assert (report["reason"], report["offset"]) == ("fin", 3)


def test_a_rst_waits_for_one_of_the_secondary_at_the_same_place(sides: Sides) -> None:
    rst = segment(ISN + 1, flags=RST)
    assert sides.primary(rst) == []
    assert sides.secondary(segment(ISN + 2, flags=RST)) == []
    assert sides.secondary(segment(ISN + 1, flags=RST)) == [rst]


def test_a_refused_connection() -> None:
    sides = Sides()
    rst = segment(0, CLIENT_ISN + 1, flags=RST)
    assert sides.primary(rst) == []
    assert sides.secondary(segment(0, CLIENT_ISN + 1, flags=RST)) == [rst]


def test_a_rst_where_one_has_left_is_no_divergence(sides: Sides) -> None:
    """An end that is gone answers each segment with a RST, and the other one may have read two at once."""
    rst = segment(ISN + 1, flags=RST)
    sides.secondary(rst)
    assert sides.primary(rst, rst) == [rst]
    sides.wait(3.1)
    assert not sides.named("divergence")
    assert sides.core.counters["dropped_reset"] == 1
    sides.primary(segment(ISN + 2, flags=RST))
    sides.wait(3.1)
    assert sides.named("divergence")[0]["reason"] == "unmatched"


def test_a_keep_alive_with_a_byte_of_garbage_waits_for_one_alike(sides: Sides) -> None:
    """RFC 1122 §4.2.3.6: one octet at SND.NXT-1."""
    sides.secondary(data(0, b"hello"))
    sides.primary(data(0, b"hello"))
    probe = data(4, b"\0")
    assert sides.primary(probe) == []
    assert sides.secondary(data(4, b"\1")) == []
    assert sides.secondary(data(4, b"\0")) == [probe]
    assert sides.primary(data(4, b"\0")) == [probe]
    assert not sides.named("divergence")


def test_a_keep_alive_behind_a_fin_is_no_divergence(sides: Sides) -> None:
    """Its number is the FIN's own; a byte there that comes instead of the FIN is another matter."""
    fin = segment(ISN + 1, CLIENT_ISN + 1, b"abc", flags=FIN)
    sides.secondary(fin)
    assert sides.primary(fin) == [fin]
    assert sides.primary(data(3, b"\0")) == []
    assert not sides.named("divergence")
    assert sides.secondary(data(3, b"\0")) == [data(3, b"\0")]
    sides.primary(data(3, b"de"))
    assert sides.named("divergence")[0]["reason"] == "fin"


def test_a_keep_alive_of_another_place_proves_none(sides: Sides) -> None:
    sides.secondary(data(0, b"abc"), data(2, b"\0"))
    sides.primary(data(0, b"abc"))
    sides.secondary(data(3, b"def"))
    sides.primary(data(3, b"def"))
    assert sides.primary(data(5, b"\0")) == []
    assert sides.secondary(data(5, b"\0")) == [data(5, b"\0")]


def test_a_keep_alive_that_nobody_matches_is_dropped_and_is_no_divergence() -> None:
    sides = Sides(compare_timeout=0.5)
    sides.handshake()
    sides.secondary(data(0, b"hello"))
    sides.primary(data(0, b"hello"))
    sides.primary(data(4, b"\0"))
    behind = data(5, b"!")
    sides.primary(behind)
    sides.secondary(data(5, b"!"))
    assert sides.wait(0.6) == [behind]
    assert not sides.named("divergence")
    assert sides.core.counters["dropped_keep_alive"] == 1
    assert sides.conserved()


def test_an_empty_keep_alive_leaves_at_once(sides: Sides) -> None:
    sides.secondary(data(0, b"hello"))
    sides.primary(data(0, b"hello"))
    probe = segment(ISN + 5, CLIENT_ISN + 1)
    assert sides.primary(probe) == [probe]


def urgent(place: int, payload: bytes, pointer: int) -> bytes:
    frame = bytearray(segment(ISN + 1 + place, CLIENT_ISN + 1, payload, flags=0x20))
    frame[52:54] = pointer.to_bytes(2, "big")
    return bytes(frame)


def test_an_urgent_pointer_waits_for_the_secondarys_at_the_same_place(sides: Sides) -> None:
    frame = urgent(0, b"abcd", 3)
    sides.secondary(data(0, b"abcd"))
    assert sides.primary(frame) == []
    assert sides.secondary(urgent(2, b"cd", 2)) == []
    assert sides.secondary(urgent(2, b"cd", 1)) == [frame]


@pytest.mark.parametrize("kind", [19, 29])
def test_an_authenticated_connection_is_unprotected_from_its_syn_on(kind: int) -> None:
    """MD5 (RFC 2385) and TCP-AO (RFC 5925) cover the numbers that the rewriter would have to move."""
    sides = Sides()
    syn = segment(ISN, CLIENT_ISN + 1, flags=SYN, options=bytes((kind, 18)) + bytes(16))
    assert sides.primary(syn) == [syn]
    assert sides.primary(data(0, b"a")) == [data(0, b"a")]
    assert sides.named("unprotected")[0]["reason"] == "authenticated"
    assert sides.conserved()


MP_CAPABLE = b"\x1e\x0c\x01\x01" + bytes(range(8))


def test_mptcp_is_stripped_from_the_syn() -> None:
    sides = Sides()
    sides.primary(segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS + MP_CAPABLE))
    other = segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=MSS_WS + b"\x1e\x0c\x01\x01" + bytes(8))
    assert sides.secondary(other) == [segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS + b"\1" * 12)]
    assert sides.core.counters["stripped_mptcp"] == 1


def test_mptcp_can_be_left_unprotected() -> None:
    sides = Sides(mptcp="unprotect")
    syn = segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS + MP_CAPABLE)
    assert sides.primary(syn) == [syn]
    assert sides.named("unprotected")[0]["reason"] == "mptcp"


@pytest.mark.parametrize("vnet", [0, 10])
def test_a_syn_that_opens_leaves_without_its_data_which_follows_as_a_segment(vnet: int) -> None:
    """The client's ack must tell the rewriter where the primary's numbers begin."""
    sides = Sides()
    cookie = b"\x22\x0a" + b"8 bytes."
    at = {"sport": 50000, "dport": 80, "vnet": vnet, "partial": bool(vnet)}
    with_data = segment(ISN, None, b"GET / HTTP/1.1", flags=SYN, options=cookie, **at)  # type: ignore[arg-type]
    bare = bytes(vnet) + segment(ISN, None, flags=SYN, options=cookie, sport=50000, dport=80)
    other = segment(ISN2, None, b"GET / HTTP/1.1", flags=SYN, options=cookie, **at)  # type: ignore[arg-type]
    assert sides.primary(with_data, vnet=vnet) == []
    assert sides.secondary(other, vnet=vnet) == [bare]
    assert sides.primary(with_data, vnet=vnet) == [bare]  # said again
    again = segment(ISN + 1, CLIENT_ISN + 1, b"GET / HTTP/1.1", sport=50000, dport=80)
    assert sides.primary(again) == []
    assert sides.secondary(again) == [again]
    assert sides.conserved()


def test_both_ends_opened_at_once_and_the_secondary_s_syn_was_overtaken() -> None:
    """Its SYN-ACK comes first, and is not said again once the client has answered it."""
    sides = Sides()
    at = {"sport": 50000, "dport": 9004}
    syn, syn_ack = segment(ISN, flags=SYN, **at), segment(ISN, CLIENT_ISN + 1, flags=SYN, **at)  # type: ignore[arg-type]
    assert sides.primary(syn, syn_ack) == []
    assert sides.secondary(segment(ISN2, CLIENT_ISN + 1, flags=SYN, **at)) == []  # type: ignore[arg-type]
    assert sides.secondary(segment(ISN2, flags=SYN, **at)) == [syn, syn_ack]  # type: ignore[arg-type]
    assert sides.conserved()


def test_fast_open_cookies_are_each_guests_own() -> None:
    sides = Sides()
    syn = segment(ISN, CLIENT_ISN + 1, flags=SYN, options=b"\x22\x0aAAAAAAAA" + MSS_WS)
    sides.primary(syn)
    assert sides.secondary(segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=b"\x22\x0aBBBBBBBB" + MSS_WS)) == [syn]


def test_data_on_a_syn_is_compared() -> None:
    sides = Sides()
    syn = segment(ISN, CLIENT_ISN + 1, b"early", flags=SYN, options=MSS_WS)
    sides.primary(syn)
    assert sides.secondary(segment(ISN2, CLIENT_ISN + 1, b"early", flags=SYN, options=MSS_WS)) == [syn]
    assert sides.secondary(segment(ISN + 6, CLIENT_ISN + 1, b"then")) == []
    assert len(sides.primary(segment(ISN + 6, CLIENT_ISN + 1, b"then"))) == 1


def test_a_simultaneous_open() -> None:
    sides = Sides()
    syn, syn_ack = segment(ISN, flags=SYN, options=MSS_WS), segment(ISN, 901, flags=SYN, options=MSS_WS)
    sides.primary(syn, syn_ack)
    assert sides.secondary(segment(ISN2, flags=SYN, options=MSS_WS)) == [syn]
    assert sides.secondary(segment(ISN2, 901, flags=SYN, options=MSS_WS)) == [syn_ack]


CROSSED, ANSWER = segment(ISN, flags=SYN, options=MSS_WS), segment(ISN, CLIENT_ISN + 1, flags=SYN, options=MSS_WS)


@pytest.fixture
def crossing() -> Sides:
    """Both guests have opened, and the client too; the client's SYN is lost on its way to one of them."""
    sides = Sides()
    sides.primary(CROSSED)
    assert sides.secondary(segment(ISN2, flags=SYN, options=MSS_WS)) == [CROSSED]
    return sides


def test_a_crossed_syn_ack_leaves_once_the_secondary_has_acked_as_far_in_other_segments(crossing: Sides) -> None:
    """Its own SYN is the one that has left, and the client's SYN-ACK was the first that it heard."""
    assert crossing.primary(ANSWER) == []
    hello = data(0, b"hello")
    assert crossing.secondary(hello) == [ANSWER]
    assert crossing.primary(hello) == [hello]
    assert crossing.primary(ANSWER, CROSSED) == [ANSWER, CROSSED]
    assert crossing.core.counters["dropped_overtaken"] == 0
    assert crossing.conserved()


def test_a_crossed_syn_ack_leaves_at_once_if_the_secondary_was_first(crossing: Sides) -> None:
    crossing.secondary(data(0, b"hello", ack=CLIENT_ISN + 5))
    assert crossing.primary(ANSWER) == [ANSWER]
    assert crossing.primary(segment(ISN + 1, CLIENT_ISN + 5)) == [segment(ISN + 1, CLIENT_ISN + 5)]


@pytest.mark.parametrize(
    "answer",
    [
        segment(ISN, CLIENT_ISN + 2, flags=SYN, options=MSS_WS),
        segment(ISN + 1, CLIENT_ISN + 1, flags=SYN, options=MSS_WS),
        segment(ISN, CLIENT_ISN + 1, flags=SYN, options=b"\x02\x04\x05\xb4\x01\x03\x03\x08"),
        segment(ISN, CLIENT_ISN + 1, flags=SYN, options=b"\x02\x04\x05\xb0\x01\x03\x03\x07"),
        segment(ISN, CLIENT_ISN + 1, flags=SYN, options=b"\x02\x04\x05\xb4"),
        segment(ISN, CLIENT_ISN + 1, flags=SYN | 0x40, options=MSS_WS),
        segment(ISN, CLIENT_ISN + 1, b"early", flags=SYN, options=MSS_WS),
    ],
    ids=["ack beyond", "other number", "other scale", "other MSS", "option less", "other flag", "data"],
)
def test_a_crossed_syn_ack_that_says_more_than_syn_and_acks_of_the_secondary_stays(
    crossing: Sides, answer: bytes
) -> None:
    assert crossing.primary(answer) == []
    assert crossing.secondary(segment(ISN + 1, CLIENT_ISN + 1)) == []
    assert crossing.wait(0.5) == []
    assert crossing.conserved()


def test_a_crossed_syn_ack_stays_if_the_secondary_has_acked_nothing_or_another_syn() -> None:
    sides = Sides()
    sides.handshake()  # an older connection, in which much was acked
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 500))
    sides.primary(segment(7000, flags=SYN, options=MSS_WS))
    assert len(sides.secondary(segment(8000, flags=SYN, options=MSS_WS))) == 1
    answer = segment(7000, CLIENT_ISN + 400, flags=SYN, options=MSS_WS)
    assert sides.primary(answer) == []
    assert sides.secondary(segment(7001, CLIENT_ISN + 400)) == [answer]


def test_a_crossed_syn_ack_to_which_the_secondarys_own_has_other_options_is_a_divergence(crossing: Sides) -> None:
    crossing.secondary(segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=b"\x02\x04\x05\xb4"))
    crossing.secondary(segment(ISN + 1, CLIENT_ISN + 1))
    assert crossing.primary(ANSWER) == []
    assert [found["reason"] for found in crossing.named("divergence")] == ["syn"]


def test_what_the_secondary_has_said_when_a_crossed_syn_ack_leaves_counts_on(crossing: Sides) -> None:
    """Each order: its own SYN-ACK first or none, and its data before or behind the primary's SYN-ACK."""
    hello = data(0, b"hello", ack=CLIENT_ISN + 9)
    assert crossing.secondary(segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=MSS_WS), hello) == []
    assert crossing.primary(ANSWER, hello) == [ANSWER, hello]


def test_a_syn_ack_that_the_secondary_alone_needed_is_in_nobodys_way(crossing: Sides) -> None:
    """The primary has heard the client's SYN-ACK first. The secondary's SYN-ACK proves no ack of another kind:

    the client repeats its own until both have got it.
    """
    own = segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=MSS_WS)
    ack, hello = segment(ISN + 1, CLIENT_ISN + 1), data(0, b"hello")
    assert crossing.secondary(own) == []
    assert crossing.primary(ack, hello) == []
    assert crossing.secondary(ack) == [ack]
    assert crossing.secondary(own) == []  # late on its way
    assert crossing.secondary(hello) == [hello]
    for place in range(5, 25):
        assert crossing.secondary(data(place, b"x")) == []
        assert crossing.primary(data(place, b"x")) == [data(place, b"x")]
    assert crossing.core.status()["flows_in_the_lane"] == 1


@pytest.mark.parametrize("again", [0, 1])
@pytest.mark.parametrize("secondary_first", [False, True])
def test_a_crossed_syn_is_overtaken_by_its_syn_ack_if_the_secondarys_own_was_lost(
    again: int, secondary_first: bool
) -> None:
    """The secondary has answered the client's SYN since, and repeats nothing but its SYN-ACK."""
    sides = Sides()
    own = segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=MSS_WS)
    if secondary_first:
        sides.secondary(own)
    assert sides.primary(CROSSED, *[CROSSED] * again, ANSWER) == []
    if not secondary_first:
        assert sides.secondary(own) == []
    assert sides.wait(0.05) == []
    assert [frame for _ in range(4) for frame in sides.wait(0.03)] == [ANSWER]
    assert sides.core.counters["dropped_overtaken"] == 1 + again
    hello = data(0, b"hello")
    sides.secondary(hello)
    assert sides.primary(hello) == [hello]
    assert sides.conserved()


@pytest.mark.parametrize(
    ("syn", "answer"),
    [
        (CROSSED, segment(ISN, CLIENT_ISN + 2, flags=SYN, options=MSS_WS)),
        (CROSSED, segment(ISN, CLIENT_ISN + 1, flags=SYN, options=b"\x02\x04\x05\xb4")),
        (segment(ISN - 1, flags=SYN, options=MSS_WS), ANSWER),
    ],
    ids=["other ack", "other options", "other number"],
)
def test_a_syn_is_not_overtaken_by_a_syn_ack_that_the_secondary_has_not_said_or_of_another_connection(
    syn: bytes, answer: bytes
) -> None:
    sides = Sides()
    sides.secondary(segment(ISN2, CLIENT_ISN + 1, flags=SYN, options=MSS_WS))
    sides.primary(syn, answer)
    assert [frame for _ in range(10) for frame in sides.wait(0.1)] == []
    assert sides.core.counters["dropped_overtaken"] == 0


def test_a_crossed_syn_ack_behind_its_syn_is_looked_at_in_time() -> None:
    """The SYN's own look would come only after `compare_timeout`. ECN's flags differ on a SYN-ACK (RFC 3168 §6.1.1)."""
    sides = Sides()
    syn = segment(ISN, flags=SYN | 0xC0, options=MSS_WS)
    sides.primary(syn, segment(ISN, CLIENT_ISN + 1, flags=SYN | 0x40, options=MSS_WS))
    assert sides.secondary(segment(ISN2, flags=SYN | 0xC0, options=MSS_WS)) == [syn]
    assert sides.core.next_deadline() == pytest.approx(sides.now + 0.02)


# --- passthrough


@pytest.mark.parametrize(
    ("rule", "passes"),
    [
        ({}, True),
        ({"protocol": "udp"}, True),
        ({"protocol": 17}, True),
        ({"protocol": "tcp"}, False),
        ({"port": 53}, True),
        ({"port": 40000}, True),
        ({"port": 54}, False),
        ({"network": "10.77.0.0/24"}, True),
        ({"network": "10.77.0.1"}, True),
        ({"network": "10.77.0.2"}, False),
        ({"network": "fd77::/64"}, False),
        ({"guest": "10.77.0.2/32"}, True),
        ({"guest": "10.77.0.1/32"}, False),
        ({"action": "compare"}, False),
    ],
)
def test_a_passthrough_rule(rule: dict[str, object], passes: bool) -> None:
    sides = Sides(passthrough=[rule])
    assert (sides.primary(udp(b"x")) == [udp(b"x")]) is passes
    assert sides.conserved()


def test_the_first_rule_that_matches_decides_and_is_counted() -> None:
    sides = Sides(passthrough=[{"port": 1}, {"port": 53, "action": "compare"}, {"protocol": "udp"}])
    assert sides.primary(udp(b"x"), udp(b"x", sport=99)) == [udp(b"x", sport=99)]
    assert sides.core.status()["passthrough"] == [0, 1, 1]


def test_a_connection_that_passes_by_rule_is_told_to_the_rewriter() -> None:
    sides = Sides(passthrough=[{"port": 80}])
    assert sides.primary(data(0, b"x")) == [data(0, b"x")]
    assert sides.named("unprotected")[0]["reason"] == "passthrough"


# --- order and time


def test_frames_of_a_flow_leave_in_the_primarys_order(sides: Sides) -> None:
    frames = [data(0, b"a"), segment(ISN + 2, CLIENT_ISN + 1), data(1, b"b")]
    assert sides.primary(*frames) == []
    assert sides.secondary(data(1, b"b")) == []
    assert sides.secondary(data(0, b"a")) == frames


def test_another_flow_is_not_held_up(sides: Sides) -> None:
    sides.primary(data(0, b"held"))
    reply = udp(b"x")
    sides.secondary(udp(b"x"))
    assert sides.primary(reply) == [reply]


def test_an_unmatched_frame_is_a_divergence_after_compare_timeout() -> None:
    sides = Sides(compare_timeout=0.5)
    sides.handshake()
    sides.primary(data(0, b"abc"))
    sides.secondary(data(0, b"ab"))
    while sides.now < 100.49:
        assert not sides.named("divergence")
        deadline = sides.core.next_deadline()
        assert deadline is not None
        assert sides.now < deadline <= 100.5
        sides.wait(deadline - sides.now)
    sides.wait(0.02)
    (report,) = sides.named("divergence")
    assert (report["reason"], report["offset"]) == ("unmatched", 2)


def test_the_time_out_counts_from_the_heads_own_arrival() -> None:
    sides = Sides(compare_timeout=1)
    sides.handshake()
    sides.primary(data(0, b"a"))
    sides.wait(0.9)
    sides.primary(data(1, b"b"))
    sides.secondary(data(0, b"a"))
    sides.wait(0.5)
    assert not sides.named("divergence")
    sides.wait(0.5)
    assert len(sides.named("divergence")) == 1


def test_a_head_is_not_overdue_before_all_is_heard_that_came_in_time() -> None:
    """Its counterpart may lie in a link, unread; meanwhile the head is eased and the client asked for its ack."""
    sides = Sides(compare_timeout=1)
    sides.handshake()
    sides.primary(data(0, b"a"))
    sides.now += 5
    sides.left(sides.core.tick(sides.now, heard=sides.now - 4.001))
    assert not sides.named("divergence")
    deadline = sides.core.next_deadline()
    assert deadline is not None
    assert deadline > sides.now
    sides.now += 1
    sides.left(sides.core.tick(sides.now, heard=sides.now - 4.001))
    assert len(sides.named("divergence")) == 1


def test_the_client_is_asked_for_its_ack_while_a_head_waits_long(sides: Sides) -> None:
    """The secondary may wait for acks that were lost, or reached the primary alone."""
    ack = segment(ISN + 1, CLIENT_ISN + 1, window=1024)
    sides.secondary(ack)
    assert sides.primary(ack) == [ack]
    sides.primary(data(0, b"abc"))
    asked = 0
    while not sides.named("divergence"):
        deadline = sides.core.next_deadline()
        assert deadline is not None
        sent = sides.wait(deadline - sides.now)
        assert sent in ([], [segment(ISN, CLIENT_ISN + 1, window=1024)])
        assert not sent or sides.now - 100 >= 0.2
        asked += len(sent)
    assert 5 < asked < 20
    assert sides.conserved()


# --- heads that are stuck


def super_frame(place: int, size: int, ack: int = CLIENT_ISN + 1, flags: int = PSH) -> bytes:
    payload = bytes((place + i) & 0xFF for i in range(size))
    return segment(ISN + 1 + place, ack, payload, flags=flags, partial=True, vnet=10, gso_size=100)


def test_a_stuck_super_frame_leaves_up_to_the_last_proven_segment(sides: Sides) -> None:
    sides.primary(super_frame(0, 450, flags=PSH | FIN), vnet=10)
    sides.secondary(super_frame(0, 250)[10:])
    assert sides.wait(0.01) == []
    first = segment(ISN + 1, CLIENT_ISN + 1, super_frame(0, 200)[64:], partial=True, vnet=10, gso_size=100)
    assert sides.wait(0.01) == [first]
    assert sides.secondary(super_frame(200, 250, flags=FIN)[10:]) != []
    assert sides.core.status()["held"] == 0
    assert sides.conserved()


def test_less_than_a_segment_leaves_of_a_super_frame_that_waited_long(sides: Sides) -> None:
    """In front of a closing window the secondary's last piece may be shorter, and it repeats that alone."""
    sides.primary(super_frame(0, 250), vnet=10)
    sides.secondary(super_frame(0, 60)[10:])
    assert sides.wait(0.19) == []
    first = segment(ISN + 1, CLIENT_ISN + 1, super_frame(0, 60)[64:], partial=True, vnet=10)
    assert sides.wait(0.05) == [first]
    (rest,) = sides.secondary(super_frame(60, 190)[10:])
    payload = super_frame(60, 190)[64:]
    assert rest == segment(ISN + 61, CLIENT_ISN + 1, payload, flags=PSH, partial=True, vnet=10, gso_size=100, ident=2)
    assert sides.conserved()


def test_a_stuck_plain_segment_leaves_up_to_the_proven_byte(sides: Sides) -> None:
    whole = segment(ISN + 1, CLIENT_ISN + 1, bytes(range(100)), flags=PSH, partial=True, vnet=10)
    sides.primary(whole, vnet=10)
    sides.secondary(data(0, bytes(range(60))))
    first = segment(ISN + 1, CLIENT_ISN + 1, bytes(range(60)), partial=True, vnet=10)
    assert sides.wait(0.03) == [first]
    rest = segment(ISN + 61, CLIENT_ISN + 1, bytes(range(60, 100)), flags=PSH, partial=True, vnet=10, ident=2)
    assert sides.secondary(data(60, bytes(range(60, 100)))) == [rest]
    assert sides.conserved()


def test_a_stuck_super_frame_with_less_than_a_segment_proven_stays(sides: Sides) -> None:
    sides.primary(super_frame(0, 450), vnet=10)
    sides.secondary(super_frame(0, 99)[10:])
    assert sides.wait(0.1) == []


def test_a_stuck_super_frame_never_leaves_beyond_a_difference(sides: Sides) -> None:
    sides.primary(super_frame(0, 450), vnet=10)
    wrong = bytearray(super_frame(0, 250)[10:])
    wrong[54 + 150] ^= 1
    sides.secondary(bytes(wrong))
    (leaving,) = sides.wait(0.1)
    assert leaving[64:] == super_frame(0, 100)[64:]


def test_a_stuck_pure_ack_leaves_lowered_to_the_secondarys(sides: Sides) -> None:
    sides.primary(segment(ISN + 1, CLIENT_ISN + 1001), segment(ISN + 1, CLIENT_ISN + 2001))
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 501))
    assert sides.wait(0.03) == [segment(ISN + 1, CLIENT_ISN + 501)]
    assert sides.wait(0.03) == []
    assert sides.core.status()["held"] == 1
    assert sides.conserved()


def test_a_stuck_pure_ack_without_news_stays(sides: Sides) -> None:
    sides.primary(segment(ISN + 1, CLIENT_ISN + 1001))
    assert sides.wait(0.03) == []


def test_while_an_ack_is_stuck_the_secondarys_own_acks_leave() -> None:
    sides = Sides()
    sides.handshake()
    sack = b"\1\1\5\x0a" + (CLIENT_ISN + 801).to_bytes(4, "big") + (CLIENT_ISN + 901).to_bytes(4, "big")
    hole = segment(ISN + 1, CLIENT_ISN + 501, options=sack)
    sides.primary(segment(ISN + 1, CLIENT_ISN + 1001))
    assert sides.secondary(hole) == []
    assert len(sides.wait(0.03)) == 1  # the head, lowered
    sides.primary(segment(ISN + 1, CLIENT_ISN + 1001))
    sides.now += 0.03
    assert sides.secondary(hole) == [hole]
    assert sides.secondary(segment(ISN + 1, CLIENT_ISN + 401)) == []  # an old one
    assert sides.secondary(segment(ISN + 2, CLIENT_ISN + 501)) == []  # behind data that was not proven
    assert sides.secondary(segment(ISN + 1, CLIENT_ISN + 501, flags=FIN)) == []
    assert sides.core.counters["secondary_acks"] == 1
    assert sides.conserved()


@pytest.mark.parametrize("vnet", [0, 10])
def test_the_secondarys_own_ack_has_no_newer_clock_than_what_still_waits(sides: Sides, vnet: int) -> None:
    """Else the client would refuse that, and all that is made of it (PAWS, RFC 7323 §5.3)."""

    def said(ack: int, clock: int) -> bytes:
        options = packets.timestamps(clock, 4) + b"\1" + b"\2\4\5\xb4"  # not where they usually stand
        return segment(ISN + 1, CLIENT_ISN + ack, options=b"\1" + options, partial=bool(vnet), vnet=vnet)

    sides.primary(said(1001, 0xFFFFFFFE), vnet=vnet)
    sides.now += 0.03
    assert sides.secondary(said(501, 3), vnet=vnet) == [said(501, 0xFFFFFFFE)]
    assert sides.secondary(said(502, 0xFFFFFFFD), vnet=vnet) == [said(502, 0xFFFFFFFD)]
    assert sides.core.counters["secondary_acks"] == 2


def test_a_secondary_that_repeats_old_bytes_makes_the_client_repeat_its_ack(sides: Sides) -> None:
    """It lost the client's last ack, and so never gets to the bytes that the primary has gone on to."""
    sides.secondary(data(0, b"hello"))
    sides.primary(data(0, b"hello"))
    ends = {"partial": True, "vnet": 10, "gso_size": 100, "options": packets.timestamps(7, 8), "window": 2000}
    sides.primary(segment(ISN + 6, CLIENT_ISN + 1, b"x" * 300, flags=PSH, **ends), vnet=10)
    assert sides.secondary(data(0, b"hello")) == []
    sides.now += 0.03
    probe = bytes(10) + segment(ISN + 5, CLIENT_ISN + 1, options=packets.timestamps(7, 8))
    assert sides.secondary(data(0, b"hello")) == [probe]
    assert sides.core.counters["probes"] == 1
    assert sides.conserved()


def test_what_makes_the_client_repeat_its_ack_is_never_made_of_another_connections_syn(sides: Sides) -> None:
    """Its clock is the new connection's; the client would refuse it, or take the old one's numbers for the new."""
    sides.secondary(data(0, b"hello"))
    sides.primary(data(0, b"hello"))
    sides.primary(segment(ISN + 70_000, CLIENT_ISN + 70_000, flags=SYN, options=MSS_WS + packets.timestamps(7, 8)))
    sides.now += 0.03
    assert sides.secondary(data(0, b"hello")) == []
    assert sides.core.counters["probes"] == 0


def test_what_makes_the_client_repeat_its_ack_ignores_the_window_of_a_rst(sides: Sides) -> None:
    """A RST has no window to tell of (RFC 9293 §3.10.7): the client is told again what it was told before."""
    sides.secondary(data(0, b"hello", window=100))
    sides.primary(data(0, b"hello", window=60))
    sides.primary(segment(ISN + 6, CLIENT_ISN + 1, flags=RST, window=5000))
    sides.now += 0.03
    assert sides.secondary(data(0, b"hello", window=100)) == [segment(ISN + 5, CLIENT_ISN + 1, window=60)]


def test_a_stuck_segment_with_urgent_data_is_not_cut(sides: Sides) -> None:
    """Its urgent pointer counts from its own seq: in two parts it would name two places."""
    whole = bytearray(segment(ISN + 1, CLIENT_ISN + 1, bytes(range(100)), flags=PSH | URG, partial=True, vnet=10))
    whole[10 + 34 + 18 : 10 + 34 + 20] = (80).to_bytes(2, "big")
    sides.primary(bytes(whole), vnet=10)
    sides.secondary(data(0, bytes(range(60))))
    assert sides.wait(0.03) == []


def test_a_stuck_segment_whose_urgent_byte_is_another_stays(sides: Sides) -> None:
    """Its payload is proven, its urgent pointer is not; what the secondary says again proves it."""
    whole = bytearray(data(0, b"abc"))
    whole[14 + 20 + 13] |= URG
    whole[14 + 20 + 18 : 14 + 20 + 20] = (2).to_bytes(2, "big")
    sides.secondary(data(0, b"abc"))
    assert sides.primary(bytes(whole)) == []
    assert sides.wait(0.03) == []
    assert sides.secondary(bytes(whole)) == [bytes(whole)]


def test_proven_data_with_an_ack_ahead_leaves_with_the_ack_lowered(sides: Sides) -> None:
    sides.primary(data(0, b"abc", ack=CLIENT_ISN + 1001))
    sides.secondary(data(0, b"abc"))
    assert sides.wait(0.03) == [data(0, b"abc")]


@pytest.mark.parametrize("vnet", [0, 10], ids=["complete", "partial"])
def test_a_stuck_fin_stays_while_its_ack_is_ahead_and_its_data_leave(sides: Sides, vnet: int) -> None:
    """The client's answer to it would close the primary, which then could not say again what it has acked."""
    how = {"vnet": vnet, "partial": bool(vnet)}
    sides.primary(segment(ISN + 1, CLIENT_ISN + 9, b"abc", flags=FIN | PSH, **how), vnet=vnet)
    sides.secondary(data(0, b"abc"))
    assert sides.wait(0.03) == []
    sides.secondary(segment(ISN + 4, CLIENT_ISN + 1, flags=FIN))
    assert sides.wait(0.03) == [segment(ISN + 1, CLIENT_ISN + 1, b"abc", **how)]
    assert sides.wait(0.03) == []
    sides.secondary(segment(ISN + 5, CLIENT_ISN + 5))
    # Without an ACK in front of the FIN the client would never learn that it may go on.
    (told,) = sides.wait(0.05)
    ident = {"ident": 2} if vnet else {}
    assert told == segment(ISN + 4, CLIENT_ISN + 5, **how, **ident)
    assert sides.core.status()["held"] == 1
    (fin,) = sides.secondary(segment(ISN + 5, CLIENT_ISN + 9))
    ident = {"ident": 3} if vnet else {}
    assert fin == segment(ISN + 4, CLIENT_ISN + 9, flags=FIN | PSH, **how, **ident)
    assert sides.conserved()


def test_a_wrong_checksum_is_as_wrong_in_both_parts_of_a_stuck_fin(sides: Sides) -> None:
    """By how much does not change, whatever is moved in the segment."""

    def wrong_by(raw: bytes, right: bytes) -> int:
        assert raw[:50] + raw[52:] == right[:50] + right[52:]
        return (int.from_bytes(raw[50:52], "big") - int.from_bytes(right[50:52], "big")) % 0xFFFF

    numbers = ISN + 1, CLIENT_ISN + 9, b"abc"
    whole = segment(*numbers, flags=FIN, bad=True)
    sides.primary(whole)
    sides.secondary(data(0, b"abc"), segment(ISN + 4, CLIENT_ISN + 1, flags=FIN))
    (first,) = sides.wait(0.03)
    (fin,) = sides.secondary(segment(ISN + 5, CLIENT_ISN + 9))
    by = wrong_by(whole, segment(*numbers, flags=FIN))
    assert by
    assert wrong_by(first, segment(ISN + 1, CLIENT_ISN + 1, b"abc")) == by
    assert wrong_by(fin, segment(ISN + 4, CLIENT_ISN + 9, flags=FIN)) == by


def test_a_rst_whose_ack_is_ahead_leaves_with_the_secondarys(sides: Sides) -> None:
    """A guest that was reset acks nothing any more: what the other had read beyond, it never will."""
    sides.primary(segment(ISN + 1, CLIENT_ISN + 9, flags=RST))
    assert sides.secondary(segment(ISN + 1, CLIENT_ISN + 5, flags=RST)) == []
    assert sides.wait(0.03) == [segment(ISN + 1, CLIENT_ISN + 5, flags=RST)]
    assert sides.conserved()


def test_a_rst_overtakes_acks_that_the_secondary_will_never_say(sides: Sides) -> None:
    ece = 0x40
    sides.primary(segment(ISN + 1, CLIENT_ISN + 7), segment(ISN + 1, CLIENT_ISN + 9, flags=ece))
    sides.primary(segment(ISN + 1, CLIENT_ISN + 9, flags=RST))
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, flags=RST))
    assert sides.wait(0.05) == []
    sides.wait(0.06)
    assert sides.core.counters["dropped_overtaken"] == 2
    assert sides.wait(0.03) == [segment(ISN + 1, CLIENT_ISN + 1, flags=RST)]
    assert sides.core.status()["held"] == 0
    assert sides.conserved()


def test_a_rst_overtakes_no_data_and_none_that_the_secondary_has_not_said(sides: Sides) -> None:
    sides.primary(segment(ISN + 1, CLIENT_ISN + 9), data(0, b"abc"), segment(ISN + 4, CLIENT_ISN + 9, flags=RST))
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, flags=RST))
    for _ in range(10):
        assert all(not p[13 + 34] & RST for p in sides.wait(0.05))
    assert sides.core.status()["held"] == 3
    other = Sides()
    other.handshake()
    other.primary(segment(ISN + 1, CLIENT_ISN + 9), segment(ISN + 1, CLIENT_ISN + 9, flags=RST))
    other.secondary(segment(ISN + 2, CLIENT_ISN + 1, flags=RST))
    other.wait(0.15)
    assert other.core.status()["held"] == 2


def test_each_refusal_is_proven_by_one_of_its_own() -> None:
    """Two SYNs of one client port to a closed port: both answers have seq 0."""
    sides = Sides()
    first, second = segment(0, CLIENT_ISN + 1, flags=RST), segment(0, CLIENT_ISN - 70, flags=RST)
    sides.secondary(first)
    assert sides.primary(first, second, first) == [first]
    assert sides.secondary(second) == [second]
    assert sides.secondary(first) == [first]


def test_a_head_that_the_primary_itself_goes_back_behind_is_dropped() -> None:
    """A comparer that restarted has lost what the secondary said; both repeat from the client's last ack on."""
    sides = Sides()
    ahead, back = data(5000, b"ahead"), data(2000, b"back")
    sides.primary(ahead, data(5005, b"more"), back)
    sides.secondary(data(2000, b"back"))
    assert sides.wait(0.05) == []
    assert sides.wait(0.06) == [back]
    assert sides.core.counters["dropped_overtaken"] == 2
    sides.secondary(data(2004, bytes(2996) + b"aheadmore"))
    assert sides.primary(ahead) == [ahead]
    assert sides.conserved()


def test_a_syn_ack_that_only_one_of_two_crossing_opens_needed_is_overtaken() -> None:
    """The secondary has heard the client's SYN-ACK first, and so never said one itself (RFC 9293 §3.5).

    It says what the secondary's SYN did not: that ECN is accepted (RFC 3168 §6.1.1).
    """
    sides = Sides()
    sides.secondary(segment(ISN2, flags=SYN | 0xC0, options=MSS_WS))
    assert len(sides.primary(segment(ISN, flags=SYN | 0xC0, options=MSS_WS))) == 1
    hello = data(0, b"hello")
    assert sides.primary(segment(ISN, CLIENT_ISN + 1, flags=SYN | 0x40, options=MSS_WS), hello) == []
    assert sides.wait(0.15) == []
    sides.secondary(hello)
    left = [frame for _ in range(10) for frame in sides.wait(0.05)]
    assert left == [hello]
    assert sides.core.counters["dropped_overtaken"] == 1
    assert sides.conserved()


def test_a_connection_may_be_picked_up_at_a_keep_alive_with_a_byte() -> None:
    """Its byte is garbage (RFC 1122 §4.2.3.6), and the secondary need not say one."""
    sides = Sides()
    hello = data(0, b"hello")
    sides.primary(data(-1, b"x"), hello)
    sides.secondary(hello)
    assert sides.wait(0.05) == []
    assert sides.wait(0.06) == [hello]
    assert sides.core.counters["dropped_keep_alive"] == 1


def test_a_first_byte_that_differs_is_no_keep_alive() -> None:
    sides = Sides(compare_timeout=1)
    sides.primary(data(0, b"x"))
    sides.secondary(data(0, b"y"))
    sides.wait(1.1)
    assert [found["reason"] for found in sides.named("divergence")] == ["data"]


def test_a_repetition_is_not_stale_while_the_secondary_speaks_in_other_numbers(sides: Sides) -> None:
    """Its offset was lost: it will never repeat what the client may lack, so that has to be told."""
    sides.secondary(data(0, b"hello"))
    sides.primary(data(0, b"hello"))
    for _ in range(8):
        sides.wait(1.5)
    sides.secondary(segment(ISN + 6 + 1_000_000_000, CLIENT_ISN + 1))
    sides.primary(data(0, b"hello"))
    sides.wait(0.2)
    assert sides.core.counters["dropped_stale"] == 0
    sides.wait(3)
    assert sides.named("divergence")[0]["reason"] == "unmatched"


def test_a_repetition_that_is_half_forgotten_is_stale_too(sides: Sides) -> None:
    sides.secondary(data(0, b"hello"))
    sides.primary(data(0, b"hello"))
    for _ in range(8):
        sides.wait(1.5)
    sides.secondary(data(0, b"hel"))
    behind = data(5, b"!")
    sides.primary(data(0, b"hello"), behind)
    sides.secondary(data(5, b"!"))
    assert sides.wait(0.11) == [behind]


def test_a_stuck_rst_at_another_place_or_syn_stays(sides: Sides) -> None:
    sides.primary(segment(ISN + 1, CLIENT_ISN + 9, flags=RST), segment(ISN + 7, CLIENT_ISN + 9, flags=SYN))
    sides.secondary(segment(ISN + 2, CLIENT_ISN + 1, flags=RST))
    assert sides.wait(0.1) == []


# --- datagrams and the rest


def test_udp_is_compared_by_payload(sides: Sides) -> None:
    reply = udp(b"answer", ident=1)
    assert sides.primary(reply) == []
    assert sides.secondary(udp(b"answer", ident=2)) == [reply]


def test_udp_with_another_payload_is_held_and_then_a_divergence() -> None:
    sides = Sides(compare_timeout=1)
    sides.primary(udp(b"answer"))
    assert sides.secondary(udp(b"answxr")) == []
    sides.wait(1.1)
    assert sides.named("divergence")[0]["offset"] == 4


def test_udp_reordered_by_the_secondary_leaves_in_the_primarys_order() -> None:
    sides = Sides()
    one, two = udp(b"1"), udp(b"2")
    assert sides.primary(one, two) == []
    assert sides.secondary(udp(b"2")) == []
    assert sides.secondary(udp(b"1")) == [one, two]


def test_one_datagram_of_the_secondary_releases_one() -> None:
    sides = Sides()
    sides.secondary(udp(b"1"))
    frame = udp(b"1")
    assert sides.primary(frame, frame) == [frame]


def test_ping() -> None:
    sides = Sides()
    reply = echo_reply(5, 1, ip_ident=3)
    assert sides.primary(reply) == []
    assert sides.secondary(echo_reply(5, 2)) == []
    assert sides.secondary(echo_reply(5, 1, ip_ident=4)) == [reply]


def test_arp_passes_unchecked_and_is_counted() -> None:
    sides = Sides()
    assert sides.primary(arp_reply()) == [arp_reply()]
    assert sides.core.counters["unchecked"] == 1


def arp_request(mac: bytes = packets.GUEST_MAC) -> bytes:
    body = b"\0\1\x08\0\6\4\0\1" + mac + bytes([10, 77, 0, 2]) + b"\0" * 6 + bytes([10, 77, 0, 1])
    return b"\xff" * 6 + mac + b"\x08\x06" + body


def test_what_the_secondary_asks_its_neighbours_leaves_in_the_primarys_name_only() -> None:
    sides = Sides()
    assert sides.secondary(arp_request()) == []
    sides.primary(arp_reply())
    assert sides.secondary(arp_request()) == [arp_request()]
    assert sides.secondary(arp_reply()) == []
    assert sides.secondary(arp_request(b"\x52\x54\0\0\0\x99")) == []
    assert sides.core.counters["secondary_asked"] == 1
    assert sides.conserved()


def error(quoted: bytes, *, kind: int = 3, code: int = 3) -> bytes:
    body = bytes((kind, code, 0, 0, 0, 0, 0, 0)) + quoted
    body = body[:2] + packets.inet_checksum(body).to_bytes(2, "big") + body[4:]
    return packets.ethernet(packets.ip(packets.GUEST, packets.CLIENT, 1, body))


def test_icmp_errors_are_compared_by_the_flow_they_quote() -> None:
    """The rewriter moved the client's ack on its way to the secondary, and the TTL and id may differ."""
    sides = Sides()
    said = packets.from_client(900, 5001, b"x" * 20)[14:]
    heard = packets.from_client(900, 77_001, b"x" * 20, ident=9)[14:]
    frame = error(said)
    assert sides.primary(frame) == []
    assert sides.secondary(error(packets.from_client(901, 5001, b"x" * 20)[14:])) == []
    assert sides.secondary(error(heard)) == [frame]


def test_icmp_errors_about_udp_are_compared_with_what_they_quote() -> None:
    sides = Sides()
    ends = {"source": packets.CLIENT, "destination": packets.GUEST}
    frame = error(udp(b"question", **ends)[14:])
    sides.secondary(error(udp(b"another!", **ends)[14:]))
    assert sides.primary(frame) == []
    assert sides.secondary(error(udp(b"question", ident=7, **ends)[14:])) == [frame]


def test_an_unknown_ethertype_is_compared() -> None:
    sides = Sides()
    frame = packets.ethernet(b"whatever it says" * 4, ethertype=0x9999)
    assert sides.primary(frame) == []
    assert sides.secondary(frame) == [frame]


def test_a_malformed_frame_is_dropped_and_counted(sides: Sides) -> None:
    whole = data(0, b"hello")
    for size in range(14, len(whole)):
        assert sides.primary(whole[:size]) == []
    assert sides.core.counters["dropped_malformed"] == len(whole) - 14
    assert sides.conserved()


# --- what follows a divergence


def test_unprotect_releases_what_was_held_and_all_that_follows() -> None:
    sides = Sides(on_divergence="unprotect")
    sides.handshake()
    held, later = data(0, b"a"), data(1, b"b")
    sides.primary(held)
    assert sides.secondary(data(0, b"x")) == [held]
    assert sides.primary(later) == [later]
    assert len(sides.named("unprotected")) == 1
    assert sides.conserved()


def test_an_unprotected_flow_is_protected_again_from_its_next_incarnation_on() -> None:
    sides = Sides(on_divergence="unprotect")
    sides.handshake()
    sides.primary(data(0, b"a"))
    sides.secondary(data(0, b"x"))
    assert sides.primary(segment(9000, 7001, flags=SYN, options=MSS_WS)) == []
    assert [event["key"] for event in sides.named("protected")] == [
        event["key"] for event in sides.named("unprotected")
    ]


def test_checkpoint_is_asked_for_once_until_the_commit() -> None:
    sides = Sides(on_divergence="checkpoint", compare_timeout=1)
    sides.primary(udp(b"a"), udp(b"b", dport=2))
    sides.wait(2)
    assert len(sides.named("divergence")) == 2
    assert len(sides.named("checkpoint_requested")) == 1
    assert sides.core.counters["checkpoint_requests"] == 1


def test_a_commit_releases_what_was_before_the_cut_in_the_primarys_order() -> None:
    sides = Sides(on_divergence="checkpoint")
    before = [udp(b"a"), udp(b"b", dport=2), udp(b"c")]
    behind = udp(b"d", dport=2)
    sides.primary(*before)
    assert sides.cut(1, "prepare") == []
    assert sides.primary(behind) == []
    assert sides.cut(1, "commit") == before
    assert sides.core.epoch == 1
    assert sides.secondary(udp(b"d", dport=2), epoch=0) == []
    assert sides.secondary(udp(b"d", dport=2), epoch=1) == [behind]


def test_an_abort_leaves_everything_as_it_was() -> None:
    sides = Sides()
    held = udp(b"a")
    sides.primary(held)
    sides.cut(1, "prepare")
    assert sides.cut(1, "abort") == []
    assert sides.core.epoch == 0
    assert sides.secondary(udp(b"a")) == [held]


@pytest.mark.parametrize("phase", ["commit", "abort"])
def test_what_the_old_secondary_said_proves_nothing_behind_a_prepared_cut(phase: str) -> None:
    """A guest may go on before its commit is told: the secondary may be gone by then, with all that it had said."""
    sides = Sides()
    sides.secondary(udp(b"a"))
    sides.cut(1, "prepare")
    assert sides.primary(udp(b"a")) == []
    assert sides.core.status()["held"] == 1
    assert sides.cut(1, phase) == ([] if phase == "commit" else [udp(b"a")])
    assert sides.secondary(udp(b"a"), epoch=1) == ([udp(b"a")] if phase == "commit" else [])
    assert sides.conserved()


def test_what_is_withheld_leaves_in_order_behind_what_the_commit_lets_out(sides: Sides) -> None:
    before, after, more = data(0, b"abc"), data(3, b"def"), data(6, b"ghi")
    sides.primary(before)
    sides.cut(1, "prepare")
    sides.primary(after)
    sides.primary(more)
    assert sides.secondary(data(3, b"defghi"), epoch=1) == []
    assert sides.cut(1, "commit") == [before, after, more]
    assert sides.conserved()


def test_a_gap_ends_no_withholding_since_a_commit_may_be_lost() -> None:
    sides = Sides()
    sides.secondary(udp(b"a"))
    sides.cut(1, "prepare")
    sides.primary(udp(b"a"))
    assert sides.left(sides.core.push("primary", Gap("lost", 1), sides.now)) == []
    assert sides.cut(1, "abort") == []  # too late: since the gap only time tells
    assert sides.wait(3.1) == []
    assert sides.secondary(udp(b"a")) == [udp(b"a")]
    assert sides.conserved()


def test_the_end_of_a_cut_tells_nothing_of_one_before_it() -> None:
    """The commit of the first may be lost: then what the old secondary said proves nothing."""
    sides = Sides()
    sides.secondary(udp(b"a"))
    sides.cut(1, "prepare")
    sides.primary(udp(b"a"))
    assert sides.cut(2, "prepare") == []
    assert sides.cut(2, "abort") == []
    assert sides.primary(udp(b"a")) == []
    assert sides.cut(3, "commit") == []
    assert sides.secondary(udp(b"a"), epoch=3) == [udp(b"a")]
    assert sides.conserved()


def test_a_commit_lets_out_what_was_withheld_in_front_of_its_own_prepare(sides: Sides) -> None:
    first, second, third = data(0, b"abc"), data(3, b"def"), data(6, b"ghi")
    sides.cut(1, "prepare")
    sides.primary(first, second)
    sides.cut(2, "prepare")
    sides.primary(third)
    assert sides.cut(2, "commit") == [first, second]
    assert sides.secondary(data(6, b"ghi"), epoch=2) == [third]
    assert sides.conserved()


def test_without_the_secondary_what_was_withheld_leaves() -> None:
    sides = Sides()
    sides.cut(1, "prepare")
    sides.primary(udp(b"a"))
    assert sides.left(sides.core.command("failover", {}, sides.now)[1]) == [udp(b"a")]
    assert sides.conserved()


def test_a_cut_that_is_never_decided_asks_for_another_and_withholds_so_much() -> None:
    sides = Sides(on_divergence="checkpoint", compare_timeout=1)
    sides.cut(1, "prepare")
    sides.primary(udp(b"a"))
    assert sides.wait(1.1) == []
    assert sides.named("checkpoint_requested") == [{"reason": "cut", "epoch": 0}]
    big = udp(b"x" * 60_000)
    for _ in range(80):
        sides.primary(big)
    assert sides.core.status()["kept_bytes"] <= 4 << 20
    assert sides.core.counters["dropped_limit"] == 80 - (4 << 20) // len(big)
    assert sides.conserved()


def test_a_primary_of_a_later_epoch_tells_of_a_commit_that_was_lost() -> None:
    """The mirror stamps what it sends; what the old secondary said proves nothing any more."""
    sides = Sides()
    sides.primary(udp(b"a"))
    sides.secondary(udp(b"b"))
    sides.cut(1, "prepare")
    assert sides.left(sides.core.push("primary", Batch.of([udp(b"b")], 0, 1), sides.now)) == [udp(b"a")]
    assert sides.core.epoch == 1
    assert sides.named("cut")[-1] == {"epoch": 1, "phase": "commit"}


@pytest.mark.parametrize("payload", [b"", b"bye"])
def test_a_keep_alive_behind_a_fin_that_a_commit_has_covered_is_known_as_one(sides: Sides, payload: bytes) -> None:
    """It carries a byte of its own at the FIN's number (RFC 1122 §4.2.3.6), and hides nothing behind it."""
    sides.primary(segment(ISN + 1, CLIENT_ISN + 1, payload, flags=FIN))
    sides.cut(1, "prepare")
    assert len(sides.cut(1, "commit")) == 1
    at = ISN + 1 + len(payload)
    behind = segment(at + 1, CLIENT_ISN + 9)
    assert sides.primary(segment(at, CLIENT_ISN + 1, b"x"), behind) == []
    sides.secondary(behind, epoch=1)
    assert sides.wait(0.05) == []
    assert sides.wait(0.06) == [behind]
    assert sides.core.counters["dropped_keep_alive"] == 1
    assert not sides.named("divergence")
    assert sides.conserved()


def test_a_keep_alives_byte_at_a_fins_number_is_no_part_of_the_stream(sides: Sides) -> None:
    """So what the comparer asks the client with stands in front of the FIN, as the primary's own does."""
    bye = segment(ISN + 1, CLIENT_ISN + 1, b"bye", flags=FIN)
    sides.secondary(bye)
    assert sides.primary(bye) == [bye]
    garbage = data(3, b"x")
    sides.secondary(garbage)
    assert sides.primary(garbage) == [garbage]
    sides.primary(segment(ISN + 5, CLIENT_ISN + 9))
    assert [frame for _ in range(6) for frame in sides.wait(0.05)] == [segment(ISN + 3, CLIENT_ISN + 1)]


def test_a_byte_behind_a_fin_that_no_commit_has_covered_is_no_keep_alive(sides: Sides) -> None:
    sides.primary(data(0, b"bye"))
    sides.cut(1, "prepare")
    assert len(sides.cut(1, "commit")) == 1
    assert sides.primary(data(3, b"x")) == []
    sides.wait(0.5)
    assert sides.core.counters["dropped_keep_alive"] == 0


def test_a_commit_without_its_prepare_releases_nothing() -> None:
    sides = Sides()
    sides.primary(udp(b"a"))
    assert sides.cut(1, "commit") == []
    assert sides.core.epoch == 1
    assert sides.core.status()["held"] == 1


def test_a_commit_of_a_past_epoch_forgets_what_the_secondary_said() -> None:
    """A restarted mirror counts anew; the secondary was replaced all the same."""
    sides = Sides()
    sides.cut(3, "prepare")
    sides.cut(3, "commit")
    sides.secondary(udp(b"a"), epoch=3)
    assert sides.cut(1, "commit") == []
    assert sides.core.epoch == 3
    assert sides.primary(udp(b"a")) == []


def test_an_ack_behind_a_fin_that_nobody_matches_is_unmatched(sides: Sides) -> None:
    sides.secondary(segment(ISN + 1, CLIENT_ISN + 1, flags=FIN))
    sides.primary(segment(ISN + 1, CLIENT_ISN + 1, flags=FIN), segment(ISN + 2, CLIENT_ISN + 9))
    sides.wait(4)
    assert sides.named("divergence")[0]["reason"] == "unmatched"


def test_a_pure_ack_with_a_number_from_another_space_does_not_leave(sides: Sides) -> None:
    """The rewriter restarted, and no longer moves the secondary's numbers."""
    sides.primary(segment(ISN + 1, CLIENT_ISN + 1001))
    sides.now += 0.03
    assert sides.secondary(segment(ISN + 1 - 1_000_000, CLIENT_ISN + 501)) == []


def test_what_the_secondary_says_early_in_a_coming_epoch_waits_for_the_commit() -> None:
    sides = Sides()
    sides.cut(1, "prepare")
    behind = udp(b"a")
    sides.primary(behind)
    assert sides.secondary(udp(b"a"), epoch=1) == []
    assert sides.cut(1, "commit") == [behind]


def test_a_commit_is_told_in_front_of_what_follows_from_it() -> None:
    """Who keeps a list of unprotected flows clears it at a commit: what is in doubt since then must not be lost."""
    sides = Sides(on_divergence="unprotect")
    sides.cut(1, "prepare")
    sides.primary(data(0, b"abc"))
    sides.secondary(data(0, b"abx"), epoch=1)
    sides.cut(1, "commit")
    told = [(event.name, event.fields.get("phase")) for event in sides.events]
    assert told.index(("cut", "commit")) < told.index(("unprotected", None))


def test_acks_of_before_the_cut_are_known_to_the_secondary_after_it(sides: Sides) -> None:
    sides.primary(segment(ISN + 1, CLIENT_ISN + 300))
    sides.cut(1, "prepare")
    assert len(sides.cut(1, "commit")) == 1
    again = segment(ISN + 1, CLIENT_ISN + 300)
    assert sides.primary(again) == [again]
    assert sides.primary(segment(ISN + 1, CLIENT_ISN + 301)) == []


def test_without_the_secondary_everything_leaves() -> None:
    sides = Sides()
    held, later = udp(b"a"), data(0, b"x")
    sides.primary(held)
    _, outputs = sides.core.command("failover", {}, sides.now)
    assert sides.left(outputs) == [held]
    assert sides.primary(later) == [later]
    assert sides.conserved()


# --- gaps and limits


def test_a_gap_releases_nothing(sides: Sides) -> None:
    sides.primary(data(0, b"a"))
    assert sides.left(sides.core.push("secondary", Gap("lost", 3), sides.now)) == []
    assert sides.core.counters["gaps_secondary"] == 1
    assert sides.named("gap") == [{"stream": "secondary", "reason": "lost", "lost": 3}]


@pytest.mark.parametrize("gaps", [[0.5], [0.9], [0.5, 0.9, 1.3]])
def test_a_gap_gives_heads_as_long_anew_once(gaps: list[float]) -> None:
    """What was lost in it comes again at the sender's own time-out, which grows with the outage."""
    sides = Sides(compare_timeout=1)
    sides.handshake()
    sides.primary(data(0, b"a"))
    for at in gaps:
        sides.now = 100 + at
        sides.left(sides.core.push("secondary", Gap("restarted"), sides.now))
    first = gaps[0]
    sides.now = 100 + first + 0.98
    sides.wait(0)
    assert not sides.named("divergence")
    for _ in range(3):
        sides.wait(0.02)
    assert len(sides.named("divergence")) == 1


def test_a_gap_asks_for_a_checkpoint_where_there_are_any() -> None:
    sides = Sides(on_divergence="checkpoint")
    sides.primary(udp(b"a"))
    sides.left(sides.core.push("primary", Gap("restarted"), sides.now))
    assert sides.named("checkpoint_requested") == [{"reason": "gap", "epoch": 0}]


def test_a_flow_over_its_bytes_is_a_divergence_and_is_not_released() -> None:
    sides = Sides(max_flow_bytes=131_072)
    sides.handshake()
    for index in range(3):
        assert sides.primary(data(index * 60_000, b"x" * 60_000)) == []
    assert sides.named("divergence")[0]["reason"] == "limit"
    assert sides.core.counters["dropped_limit"] == 1
    assert sides.conserved()


def test_a_full_table_refuses_new_flows_and_keeps_the_established() -> None:
    sides = Sides(max_flows=16)
    for port in range(20):
        sides.primary(udp(b"a", dport=port + 1))
    assert sides.core.counters["refused_flows"] == 4
    assert sides.secondary(udp(b"a", dport=1)) == [udp(b"a", dport=1)]
    assert sides.conserved()


def test_a_syn_flood_evicts_no_established_flow() -> None:
    sides = Sides(max_flows=64, max_half_open=16)
    sides.handshake()
    sides.secondary(data(0, b"a"))
    sides.primary(data(0, b"a"))
    for port in range(1000):
        sides.primary(segment(1, 1, flags=SYN, dport=port + 1))
    assert sides.core.status()["half_open"] == 16
    sides.secondary(data(1, b"b"))
    assert sides.primary(data(1, b"b")) == [data(1, b"b")]
    assert sides.conserved()


def test_refusals_of_a_flood_evict_no_established_flow() -> None:
    """The guest answers each SYN to a closed port with a RST, from a flow that nobody hears of again."""
    sides = Sides(max_flows=64, max_half_open=16)
    sides.handshake()
    for port in range(1000):
        sides.primary(segment(0, 1, flags=RST, dport=port + 1))
    assert sides.core.status()["half_open"] == 16
    assert sides.core.counters["refused_flows"] == 0
    sides.secondary(data(0, b"a"))
    assert sides.primary(data(0, b"a")) == [data(0, b"a")]
    assert sides.conserved()


def test_a_syn_that_waits_is_looked_at_once_not_every_few_milliseconds() -> None:
    """Else the SYN-ACKs of a flood keep the comparer from everything else."""
    sides = Sides(compare_timeout=0.5)
    for port in range(100):
        sides.primary(segment(1, 1, flags=SYN, dport=port + 1))
    assert sides.core.next_deadline() == sides.now + 0.5


def test_a_head_that_is_stuck_for_long_is_looked_at_less_and_less(sides: Sides) -> None:
    sides.primary(data(0, b"a"))
    looks = []
    while not sides.named("divergence"):
        deadline = sides.core.next_deadline()
        assert deadline is not None
        looks.append(deadline)
        sides.wait(deadline - sides.now)
    assert looks[0] - looks[-1] == pytest.approx(0.02 - 3.0)
    assert len(looks) < 30


def test_a_head_behind_a_syn_is_looked_at_in_time(sides: Sides) -> None:
    """The SYN's own look would come only after `compare_timeout`."""
    sides.primary(data(0, b"a"))
    assert sides.core.next_deadline() == pytest.approx(sides.now + 0.02)


def test_an_evicted_flow_does_not_come_back_at_its_time_out() -> None:
    sides = Sides(max_flows=64, max_half_open=16, on_divergence="unprotect", compare_timeout=1)
    for port in range(100):
        sides.primary(segment(1, 1, flags=SYN, dport=port + 1))
    assert len(sides.wait(2)) == 16
    assert sides.core.status()["held"] == 0
    assert sides.core.status()["kept_bytes"] == 0
    assert sides.conserved()


def test_idle_flows_give_their_memory_back() -> None:
    sides = Sides(idle_timeout=10)
    sides.handshake()
    sides.secondary(data(0, b"a" * 1000))
    sides.primary(data(0, b"a" * 1000))
    assert sides.core.status()["kept_bytes"] == 1000
    for _ in range(8):
        sides.wait(1.5)
    assert sides.core.status()["kept_bytes"] == 0
    for _ in range(10):
        sides.wait(1.5)
    assert sides.core.status()["flows"] == 0


def test_frames_that_a_full_link_refused_are_counted(sides: Sides) -> None:
    sides.secondary(data(0, b"a"))
    batch = Batch.of([data(0, b"a")])
    sides.core.push("primary", batch, sides.now)
    sides.core.undelivered("released", batch, sides.now)
    assert sides.core.counters["dropped_full"] == 1
    assert sides.conserved()


# What a comparer that was just started takes for the epoch.


def test_a_batch_without_frames_tells_no_epoch() -> None:
    """It stands behind a gap, and whoever sent it may not know the epoch either."""
    sides = Sides()
    sides.core.push("primary", Batch.of([], 0, 0), sides.now)
    sides.core.push("primary", Batch.of([udp(b"x")], 0, 4), sides.now)
    assert sides.core.epoch == 4
    assert sides.secondary(udp(b"x"), epoch=4) == [udp(b"x")]


def test_a_commit_tells_the_epoch_to_a_comparer_that_knew_none() -> None:
    sides = Sides()
    sides.cut(6, "commit")
    sides.core.push("primary", Batch.of([udp(b"x")], 0, 0), sides.now)
    assert sides.core.epoch == 6


def test_what_the_secondary_said_before_the_epoch_was_known_counts() -> None:
    """A comparer that restarted hears the secondary first."""
    sides = Sides()
    assert sides.secondary(udp(b"x"), epoch=4) == []
    assert sides.left(sides.core.push("primary", Batch.of([udp(b"x")], 0, 4), sides.now)) == [udp(b"x")]
