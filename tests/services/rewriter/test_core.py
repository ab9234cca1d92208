"""The rewriter by script and by property. G is the guest's own space, P the primary's."""

from __future__ import annotations

import ipaddress
import struct

import packets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import ACK, FIN, RST, SYN, from_client, segment, timestamps

from lockstep.batch import Batch
from lockstep.config import Node
from lockstep.streams import Cut, Event, Gap
from services.rewriter.core import MOST_DOOMED, Core

MASK = 0xFFFFFFFF
U32 = st.one_of(st.integers(0, MASK), st.sampled_from([0, 1, MASK, 0x7FFFFFFF, 0x80000000, 0xFFFF, 0xFFFF0000]))


class Node2:
    """A rewriter between a guest and the redirector."""

    def __init__(self, **settings: object) -> None:
        self.core = Core(Node.model_validate({"rewriter": settings}))
        self.elsewhere: list[tuple[str, bytes]] = []
        self.now = 0.0

    def guest(self, frame: bytes, vnet: int = 0) -> bytes:
        """What the comparer hears when the guest says this."""
        return self._pass("guest", "from_guest", frame, vnet)

    def client(self, frame: bytes, vnet: int = 0) -> bytes:
        """What the guest hears when the client says this."""
        return self._pass("to_guest", "guest", frame, vnet)

    def _pass(self, stream: str, way: str, frame: bytes, vnet: int) -> bytes:
        outputs = self.core.push(stream, Batch.of([frame], vnet), 0.0)
        sent = [output for output in outputs if not isinstance(output, Event)]
        through = [f for where, batch in sent if where == way for f in batch.frames()]
        self.elsewhere = [(where, f) for where, batch in sent for f in batch.frames()]
        return through[0] if len(through) == 1 else b""

    def accept(
        self, guest_isn: int, primary_isn: int, client_isn: int = 100, ts: tuple[int, int] | None = None
    ) -> None:
        """A client's connection; `ts`: the guest's and the primary's clock at their SYN-ACKs."""
        mine = timestamps(ts[0], 7) if ts else b""
        theirs = timestamps(8, ts[1]) if ts else b""
        syn_ack = segment(guest_isn, client_isn + 1, flags=SYN, options=mine)
        assert self.guest(syn_ack) == syn_ack
        self.client(from_client(client_isn + 1, primary_isn + 1, options=theirs))


def valid(frame: bytes) -> bool:
    """Whether the TCP checksum is right, summed anew."""
    v6 = frame[12:14] == b"\x86\xdd"
    l4 = 14 + (40 if v6 else 20)
    body = frame[l4:]
    ends = frame[22:54] if v6 else frame[26:34]
    return packets.inet_sum(ends + struct.pack(">II", len(body), 6) + body) == 0xFFFF


@pytest.mark.parametrize("v6", [False, True])
@given(guest_isn=U32, primary_isn=U32, payload=st.binary(max_size=7), seq=U32)
@settings(max_examples=60, deadline=None)
def test_seq_of_the_guest_is_moved_and_nothing_else_but_the_checksum(
    v6: bool, guest_isn: int, primary_isn: int, payload: bytes, seq: int
) -> None:
    ends = {"source": packets.GUEST6, "destination": packets.CLIENT6} if v6 else {}
    node = Node2()
    node.guest(segment(guest_isn, 101, flags=SYN, **ends))
    node.client(from_client(101, primary_isn + 1, v6=v6))
    moved = node.guest(segment(seq, 101, payload, **ends))
    expected = segment(seq + primary_isn - guest_isn, 101, payload, **ends)
    assert moved == expected or (valid(moved) and moved[:50] == expected[:50] and moved[-6:] == expected[-6:])
    assert valid(moved)


@given(guest_isn=U32, primary_isn=U32, ack=U32, edges=st.lists(U32, min_size=0, max_size=6), odd=st.booleans())
@settings(max_examples=150, deadline=None)
def test_ack_and_sack_edges_of_the_client_are_moved(
    guest_isn: int, primary_isn: int, ack: int, edges: list[int], odd: bool
) -> None:
    edges = edges[: len(edges) // 2 * 2]
    node = Node2()
    node.accept(guest_isn, primary_isn)
    delta = guest_isn - primary_isn

    def said(ack: int, edges: list[int]) -> bytes:
        sack = bytes((5, 2 + 4 * len(edges))) + b"".join(struct.pack(">I", e & MASK) for e in edges)
        return from_client(101, ack, b"x", options=(b"\1" if odd else b"\1\1") + sack if edges else b"")

    assert node.client(said(ack, edges)) == said(ack + delta, [edge + delta for edge in edges])


@given(guest_ts=U32, primary_ts=U32, tsval=U32, tsecr=U32, odd=st.booleans())
@settings(max_examples=150, deadline=None)
def test_tsval_and_tsecr_are_moved_by_one_constant(
    guest_ts: int, primary_ts: int, tsval: int, tsecr: int, odd: bool
) -> None:
    node = Node2()
    node.accept(5, 5, ts=(guest_ts, primary_ts))
    delta = primary_ts - guest_ts
    pad = b"\1\1\1" if odd else b""
    assert node.guest(segment(6, 101, options=pad + timestamps(tsval, 3))) == segment(
        6, 101, options=pad + timestamps(tsval + delta, 3)
    )
    assert node.client(from_client(101, 6, options=pad + timestamps(3, tsecr))) == from_client(
        101, 6, options=pad + timestamps(3, tsecr - delta)
    )


@given(guest_isn=U32, primary_isn=U32, seq=U32, ts=st.tuples(U32, U32), tsval=U32)
@settings(max_examples=100, deadline=None)
def test_there_and_back_is_the_identity(
    guest_isn: int, primary_isn: int, seq: int, ts: tuple[int, int], tsval: int
) -> None:
    """What one rewriter moves, one with the ISNs swapped moves back, checksum included."""
    there, back = Node2(), Node2()
    there.accept(guest_isn, primary_isn, ts=ts)
    back.accept(primary_isn, guest_isn, ts=ts[::-1])
    frame = segment(seq, 101, b"payload", options=timestamps(tsval, 1))
    assert back.guest(there.guest(frame)) == frame
    frame = from_client(101, seq, b"payload", options=timestamps(1, tsval))
    assert back.client(there.client(frame)) == frame


@pytest.mark.parametrize("vnet", [10, 12])
def test_a_partial_checksum_is_left_as_it_is(vnet: int) -> None:
    node = Node2()
    node.accept(1000, 5000)
    moved = node.guest(segment(1001, 101, b"abc", partial=True, vnet=vnet), vnet)
    assert moved == segment(5001, 101, b"abc", partial=True, vnet=vnet)


def test_a_bad_checksum_stays_bad_by_the_same_amount() -> None:
    node = Node2()
    node.accept(1000, 5000)
    assert not valid(node.guest(segment(1001, 101, b"abc", bad=True)))


def test_a_connection_that_the_guest_opens() -> None:
    node = Node2()
    syn = segment(1000, flags=SYN, options=timestamps(50, 0))
    assert node.guest(syn) == syn
    heard = node.client(from_client(900, 5001, flags=SYN, options=timestamps(7, 450)))
    assert heard == from_client(900, 1001, flags=SYN, options=timestamps(7, 50))
    assert node.guest(segment(1001, 901, b"x")) == segment(5001, 901, b"x")


def test_a_simultaneous_open() -> None:
    """Both sent a SYN; the guest answers the client's with a SYN-ACK of the same number."""
    for answer in ({"flags": SYN}, {}):
        node = Node2()
        node.guest(segment(1000, flags=SYN))
        crossing = from_client(900, None, flags=SYN)
        assert node.client(crossing) == crossing
        assert node.guest(segment(1000, 901, flags=SYN)) == segment(1000, 901, flags=SYN)
        seq = 900 if answer else 901
        assert node.client(from_client(seq, 5001, **answer)) == from_client(seq, 1001, **answer)
        assert node.guest(segment(1001, 901)) == segment(5001, 901)


@pytest.mark.parametrize("kind", [19, 29])
def test_a_connection_with_signed_numbers_is_left_alone(kind: int) -> None:
    node = Node2()
    node.guest(segment(1000, 101, flags=SYN, options=bytes((kind, 18)) + bytes(16)))
    node.client(from_client(101, 5001))
    assert node.guest(segment(1001, 101)) == segment(1001, 101)


@pytest.mark.parametrize("v6", [False, True])
def test_an_icmp_error_quotes_the_guests_own_number_to_it(v6: bool) -> None:
    """Or the guest would ignore it as forged, and not learn the path's MTU."""
    ends = {"source": packets.GUEST6, "destination": packets.CLIENT6} if v6 else {}
    node = Node2()
    node.guest(segment(1000, 101, flags=SYN, **ends))
    node.client(from_client(101, 5001, v6=v6))

    def too_big(quoted: bytes) -> bytes:
        body = bytes((2, 0, 0, 0) if v6 else (3, 4, 0, 0)) + b"\0\0\5\0" + quoted[14:]
        a, b = (packets.CLIENT6, packets.GUEST6) if v6 else (packets.CLIENT, packets.GUEST)
        over = packets.pseudo(a, b, 58, len(body)) if v6 else b""
        body = body[:2] + struct.pack(">H", packets.inet_checksum(over + body)) + body[4:]
        return packets.ethernet(packets.ip(a, b, 58 if v6 else 1, body), to_client=False)

    said = segment(5001, 101, b"payload", **ends)
    heard = node.client(too_big(said))
    at = len(heard) - len(said) + 14 + (40 if v6 else 20) + 4
    assert struct.unpack_from(">I", heard, at)[0] == 1001
    l4 = 14 + (40 if v6 else 20)
    over = packets.pseudo(packets.CLIENT6, packets.GUEST6, 58, len(heard) - l4) if v6 else b""
    assert packets.inet_sum(over + heard[l4:]) == 0xFFFF


def test_a_connection_half_open_at_failover_learns_from_the_clients_challenge() -> None:
    """The client has answered the primary's SYN; the guest's own SYN, repeated, gets a challenge ACK."""
    node = Node2()
    node.guest(segment(1000, flags=SYN))
    challenge = from_client(901, 5001)
    assert node.client(challenge) == challenge
    node.core.push("events", Event("failover", {"survivor": "secondary"}), 0.0)
    assert node.client(challenge) == from_client(901, 1001)
    assert node.guest(segment(1000, flags=SYN)) == segment(5000, flags=SYN)


def test_a_refusal_of_the_guests_syn_reaches_it() -> None:
    node = Node2()
    node.guest(segment(1000, flags=SYN))
    assert node.client(from_client(0, 5001, flags=RST)) == from_client(0, 1001, flags=RST)


def test_a_syn_ack_sent_again_is_moved_once_the_distance_is_known() -> None:
    node = Node2()
    node.accept(1000, 5000)
    assert node.guest(segment(1000, 101, flags=SYN)) == segment(5000, 101, flags=SYN)


def test_an_old_ack_teaches_nothing() -> None:
    node = Node2()
    node.guest(segment(1000, 101, flags=SYN))
    stale = from_client(90, 77)
    assert node.client(stale) == stale
    node.client(from_client(101, 5001))
    assert node.guest(segment(1001, 101, b"x")) == segment(5001, 101, b"x")


def test_the_old_distance_stays_until_the_client_answers_a_new_syn() -> None:
    node = Node2()
    node.accept(1000, 5000)
    node.guest(segment(2000, 701, flags=SYN))
    assert node.guest(segment(1001, 101, flags=ACK)) == segment(5001, 101, flags=ACK)
    node.client(from_client(701, 8001))
    assert node.guest(segment(2001, 701, flags=ACK)) == segment(8001, 701, flags=ACK)


def test_a_rst_of_the_client_is_told_once_for_each_connection() -> None:
    node = Node2()
    node.accept(1000, 5000)
    rst = Batch.of([from_client(101, 5001, flags=RST)])
    told = [o for _ in range(2) for o in node.core.push("to_guest", rst, 0.0) if isinstance(o, Event)]
    assert [(event.name, event.fields["flow"]) for event in told] == [
        ("reset_by_client", "10.77.0.2:80 10.77.0.1:40000")
    ]


def test_a_keep_alive_as_the_clients_first_segment_teaches_the_distance() -> None:
    node = Node2()
    node.guest(segment(1000, 101, flags=SYN))
    node.client(from_client(100, 5001))
    assert node.guest(segment(1001, 101)) == segment(5001, 101)


def test_unknown_connections_pass_untouched() -> None:
    node = Node2()
    frame = segment(1, 2, b"x", options=timestamps(3, 4))
    assert node.guest(frame) == frame
    assert node.client(from_client(1, 2)) == from_client(1, 2)


def test_a_rst_of_the_client_without_ack_is_not_moved() -> None:
    node = Node2()
    node.accept(1000, 5000)
    rst = from_client(101, None, flags=RST)
    assert node.client(rst) == rst


def test_a_commit_forgets_every_distance_and_is_passed_on() -> None:
    node = Node2()
    node.accept(1000, 5000)
    assert node.core.push("to_guest", Cut(1, "prepare"), 0.0) == [("from_guest", Cut(1, "prepare"))]
    assert node.guest(segment(1001, 101)) == segment(5001, 101)
    assert node.core.push("to_guest", Cut(1, "commit"), 0.0) == [("from_guest", Cut(1, "commit"))]
    assert node.guest(segment(5001, 101)) == segment(5001, 101)
    assert node.core.epoch == 1


def test_a_copy_that_repeats_its_syn_ack_has_the_primarys_numbers() -> None:
    """It got the client's first ack unmoved, so it goes on; the client's next ack names no initial number."""
    node = Node2()
    node.core.push("to_guest", Cut(1, "commit"), 0.0)
    syn_ack = segment(5000, 101, flags=SYN, options=timestamps(900, 7))
    node.guest(syn_ack)
    said = segment(5001, 101, b"x" * 20, flags=FIN, options=timestamps(905, 7))
    assert node.guest(said) == said
    acked = from_client(101, 5022, options=timestamps(8, 880))
    assert node.client(acked) == acked
    assert node.guest(said) == said


@pytest.mark.parametrize(("ack", "moved"), [(5020, 1019), (5001, 1000)])
def test_another_guest_that_went_on_before_the_answer_is_no_copy(ack: int, moved: int) -> None:
    """Fast Open: it may say data behind its SYN-ACK at once (RFC 7413 §4.2); the client acks the primary's SYN-ACK."""
    node = Node2()
    node.guest(segment(1000, 101, flags=SYN))
    node.guest(segment(1001, 101, b"x" * 20))
    node.client(from_client(101, 5001))
    assert node.client(from_client(101, ack)) == from_client(101, moved + 1)


def test_a_copy_that_repeats_its_syn_ack_later_waits_for_no_answer() -> None:
    """Its initial number is the primary's, which the rewriter has known since the handshake."""
    node = Node2()
    node.accept(1000, 5000)
    node.core.push("to_guest", Cut(1, "commit"), 0.0)
    node.guest(segment(5000, 101, flags=SYN))
    acked = from_client(101, 5077)
    assert node.client(acked) == acked
    said = segment(5001, 101, b"x")
    assert node.guest(said) == said


def test_the_clock_of_a_copy_never_steps_back_after_a_failover() -> None:
    """It stood still while it was copied: the client has seen the primary's later clock."""
    node = Node2()
    node.accept(1000, 5000, ts=(100, 8100))
    node.core.push("to_guest", Cut(1, "commit"), 0.0)
    node.client(from_client(101, 5001, options=timestamps(1, 9000)))
    node.core.push("events", Event("failover", {"survivor": "secondary"}), 0.0)
    assert node.guest(segment(5001, 101, options=timestamps(8990, 1))) == segment(
        5001, 101, options=timestamps(9000, 1)
    )


def test_the_guests_clock_never_steps_back_after_a_failover() -> None:
    """The client has seen the primary's clock at 9,000; the guest's is mapped to 8,990."""
    node = Node2()
    node.accept(5, 5, ts=(100, 8100))
    node.client(from_client(101, 6, options=timestamps(1, 9000)))
    node.client(from_client(101, 6, options=timestamps(1, 8995)))  # an older one, overtaken
    node.core.push("events", Event("failover", {"survivor": "secondary"}), 0.0)
    assert node.guest(segment(6, 101, options=timestamps(990, 1))) == segment(6, 101, options=timestamps(9000, 1))
    assert node.guest(segment(6, 101, options=timestamps(991, 1))) == segment(6, 101, options=timestamps(9001, 1))


def unprotected(node: Node2, name: str = "unprotected", reason: str = "data") -> None:
    flow = bytes((0, 4, 6)) + bytes([10, 77, 0, 2, 10, 77, 0, 1]) + struct.pack(">HH", 80, 40000)
    node.core.push("events", Event(name, {"key": flow, "reason": reason}), node.now)


def speaks(node: Node2, seq: int) -> bytes:
    """What the client hears from the guest after a failover."""
    node.core.push("events", Event("failover", {"survivor": "secondary"}), 0.0)
    return node.guest(segment(seq, 101, b"x"))


def test_a_connection_whose_release_was_told_before_its_syn_is_reset_at_failover() -> None:
    node = Node2()
    unprotected(node)
    node.accept(1000, 5000)
    assert speaks(node, 1001)[47] == RST | ACK


def test_what_a_rule_releases_is_reset_at_failover_in_any_incarnation_and_after_any_cut() -> None:
    """The comparer tells it once; the copy goes on unchecked as well."""
    node = Node2()
    node.accept(1000, 5000)
    unprotected(node, reason="passthrough")
    node.core.push("to_guest", Cut(1, "commit"), 0.0)
    node.accept(7000, 9000, client_isn=100)
    assert speaks(node, 7001)[47] == RST | ACK


def test_what_left_unchecked_before_a_cut_goes_on_after_it() -> None:
    node = Node2()
    node.accept(1000, 5000)
    unprotected(node)
    node.core.push("to_guest", Cut(1, "commit"), 0.0)
    assert speaks(node, 5001) == segment(5001, 101, b"x")


def test_an_unprotected_connection_is_reset_at_failover_and_not_before() -> None:
    node = Node2()
    node.accept(1000, 5000)
    unprotected(node)
    node.client(from_client(101, 5050))
    assert node.guest(segment(1001, 101, b"x")) == segment(5001, 101, b"x")
    node.core.push("events", Event("failover", {"survivor": "secondary"}), 0.0)
    node.guest(segment(1001, 101, b"x"))
    (to_guest, guests), (to_client, clients) = node.elsewhere
    assert (to_guest, to_client) == ("guest", "from_guest")
    assert valid(guests[:54])
    assert valid(clients[:54])
    assert struct.unpack_from(">IIBB", clients, 38) == (5050, 101, 0x50, RST | ACK)
    assert clients[:6] == packets.CLIENT_MAC
    assert struct.unpack_from(">IIBB", guests, 38) == (101, 1002, 0x50, RST | ACK)
    assert guests[:6] == packets.GUEST_MAC


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("vlan", [(), (77,), (5, 77)])
def test_an_unprotected_connection_on_which_both_ends_wait_is_reset_at_failover(
    v6: bool, vlan: tuple[int, ...]
) -> None:
    ends = {"source": packets.GUEST6, "destination": packets.CLIENT6} if v6 else {}
    node = Node2()
    node.guest(segment(1000, 101, flags=SYN, vlan=vlan, **ends))
    node.client(from_client(101, 5001, v6=v6, vlan=vlan))
    a, b = (packets.GUEST6, packets.CLIENT6) if v6 else (packets.GUEST, packets.CLIENT)
    key = bytes((len(vlan), 6 if v6 else 4, 6)) + b"".join(struct.pack(">H", vid) for vid in vlan)
    key += ipaddress.ip_address(a).packed + ipaddress.ip_address(b).packed + struct.pack(">HH", 80, 40000)
    assert node.core.push("events", Event("unprotected", {"key": key}), 0.0) == []
    ((where, batch),) = node.core.push("events", Event("failover", {"survivor": "secondary"}), 0.0)
    assert where == "from_guest"
    (frame,) = batch.frames()
    expected = segment(5001, 0, flags=RST, window=0, vlan=vlan, **ends)
    if not v6:  # the id is 0, and so may be the rest of the header's sum
        l3 = 14 + 4 * len(vlan)
        assert packets.inet_sum(frame[l3 : l3 + 20]) == 0xFFFF
        assert frame[l3 + 12 :][:28] == expected[l3 + 12 :]
    else:
        assert frame[: len(expected)] == expected


def test_what_the_comparer_gives_up_after_a_failover_resets_nothing() -> None:
    """It no longer hears this guest, so every head it still holds is unmatched in the end."""
    node = Node2()
    node.accept(1000, 5000)
    node.client(from_client(101, 5050))
    node.core.push("events", Event("failover", {"survivor": "secondary"}), 10.0)
    node.now = 13.0
    unprotected(node)
    assert node.guest(segment(1001, 101, b"x")) == segment(5001, 101, b"x")
    assert node.core.counters["resets"] == 0


def test_a_connection_that_was_given_up_just_before_a_failover_is_reset_though_heard_behind_it() -> None:
    node = Node2()
    node.accept(1000, 5000)
    node.client(from_client(101, 5050))
    node.core.push("events", Event("failover", {"survivor": "secondary"}), 10.0)
    node.now = 10.1
    unprotected(node)
    assert node.core.counters["resets"] == 1


def test_a_client_that_speaks_on_an_unprotected_connection_is_answered_with_a_reset() -> None:
    node = Node2()
    node.accept(1000, 5000)
    unprotected(node)
    node.core.push("events", Event("failover", {"survivor": "secondary"}), 0.0)
    node.client(from_client(101, 5050, b"abc"))
    (to_client, clients), (to_guest, _) = node.elsewhere
    assert (to_client, to_guest) == ("from_guest", "guest")
    assert struct.unpack_from(">IIBB", clients, 38) == (5050, 104, 0x50, RST | ACK)


def test_a_new_incarnation_is_no_longer_reset() -> None:
    node = Node2()
    node.accept(1000, 5000)
    unprotected(node)
    node.core.push("events", Event("failover", {"survivor": "secondary"}), 0.0)
    syn = segment(3000, 701, flags=SYN)
    assert node.guest(syn) == syn
    assert node.guest(segment(3001, 701, flags=FIN)) != b""


def opened(node: Node2, port: int) -> None:
    """Connection number `port`, whose deltas are 4000."""
    node.guest(segment(1000, 101, flags=SYN, dport=port))
    node.client(from_client(101, 5001, sport=port))


def moves(node: Node2, port: int) -> bool:
    return node.guest(segment(1001, 101, dport=port)) == segment(5001, 101, dport=port)


def test_a_full_table_refuses_new_connections_and_counts_them() -> None:
    node = Node2(max_flows=16)
    for port in range(1, 21):
        opened(node, port)
    assert node.core.counters["refused_connections"] == 4
    assert [moves(node, port) for port in range(1, 21)] == [True] * 16 + [False] * 4


def test_what_a_full_table_refused_passes_untouched() -> None:
    node = Node2(max_flows=16)
    for port in range(1, 17):
        opened(node, port)
    node.guest(segment(1000, 101, flags=SYN, dport=17))
    answer = from_client(101, 5001, sport=17)
    assert node.client(answer) == answer


def test_a_flood_of_syns_evicts_no_open_connection_and_the_oldest_half_open_first() -> None:
    node = Node2(max_half_open=16)
    opened(node, 1)
    for port in range(2, 1002):
        node.guest(segment(1000, 101, flags=SYN, dport=port))
    status = node.core.status()
    assert (status["connections"], status["half_open"]) == (17, 16)
    assert node.core.counters["evicted_half_open"] == 984
    assert moves(node, 1)
    opened(node, 986)
    assert moves(node, 986)
    node.client(from_client(101, 5001, sport=985))
    assert not moves(node, 985)


def test_a_syn_that_is_said_again_makes_a_half_open_connection_young() -> None:
    node = Node2(max_half_open=16)
    for port in range(1, 17):
        node.guest(segment(1000, 101, flags=SYN, dport=port))
    node.guest(segment(1000, 101, flags=SYN, dport=1))
    node.guest(segment(1000, 101, flags=SYN, dport=17))
    node.client(from_client(101, 5001, sport=1))
    assert moves(node, 1)


def silent(node: Node2, seconds: float) -> int:
    """How many connections are left after this time."""
    for second in range(1, round(seconds) + 1):
        node.core.tick(second)
    left: int = node.core.status()["connections"]
    return left


def test_half_open_connections_are_forgotten_after_a_minute() -> None:
    node = Node2()
    node.guest(segment(1000, 101, flags=SYN))
    assert silent(node, 60) == 1
    assert silent(node, 61) == 0


@pytest.mark.parametrize(
    ("guests", "clients", "minutes"),
    [(FIN, FIN, 1), (FIN, 0, 1440), (0, FIN, 1440), (RST, 0, 1), (0, RST, 1)],
)
def test_a_connection_that_has_ended_is_forgotten_after_a_minute(guests: int, clients: int, minutes: int) -> None:
    node = Node2()
    node.accept(1000, 5000)
    if guests:
        node.guest(segment(1001, 101, flags=guests))
    if clients:
        node.client(from_client(101, 5001, flags=clients))
    assert silent(node, 60) == 1
    assert silent(node, 70) == (0 if minutes == 1 else 1)


def test_a_guest_that_speaks_on_has_not_taken_a_reset() -> None:
    """RFC 5961: a RST out of place is answered with a challenge ACK."""
    node = Node2()
    node.accept(1000, 5000)
    node.client(from_client(700, 5001, flags=RST))
    node.guest(segment(1001, 101))
    assert silent(node, 70) == 1


def test_a_flood_of_unprotected_flows_does_not_save_a_known_one_from_its_reset() -> None:
    node = Node2()
    node.accept(1000, 5000)
    unprotected(node)
    for number in range(MOST_DOOMED + 1):
        key = bytes((0, 4, 6, 198, 18)) + struct.pack(">IHH", number, 1, 2)[1:] + bytes(3)
        node.core.push("events", Event("unprotected", {"key": key}), node.now)
    assert node.core.status()["doomed"] == MOST_DOOMED + 1
    node.core.push("events", Event("failover", {"survivor": "secondary"}), 0.0)
    node.client(from_client(101, 5001))
    assert [frame[47] for _, frame in node.elsewhere] == [RST | ACK, RST | ACK]


def test_a_syn_said_again_saves_no_connection_from_its_reset() -> None:
    node = Node2()
    syn = segment(1000, 101, flags=SYN)
    node.guest(syn)
    unprotected(node)
    node.guest(syn)
    assert node.core.status()["doomed"] == 1
    node.guest(segment(2000, 101, flags=SYN))
    assert node.core.status()["doomed"] == 0


@pytest.mark.parametrize("known", [True, False])
def test_a_flow_that_the_comparer_protects_again_is_not_reset(known: bool) -> None:
    node = Node2()
    if known:
        node.accept(1000, 5000)
    unprotected(node)
    assert node.core.status()["doomed"] == 1
    unprotected(node, "protected")
    assert node.core.status()["doomed"] == 0


def test_idle_connections_are_forgotten() -> None:
    node = Node2(idle_timeout=5)
    node.accept(1000, 5000)
    for now in range(1, 12):
        node.core.tick(float(now))
    assert node.core.status()["connections"] == 0


def test_a_gap_is_counted_and_told() -> None:
    node = Node2()
    (event,) = node.core.push("to_guest", Gap("lost", 2), 0.0)
    assert isinstance(event, Event)
    assert event.name == "gap"
    assert node.core.counters["gaps_to_guest"] == 1


@given(
    st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=120)), max_size=15), st.sampled_from([0, 10, 12])
)
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_never_raise_and_keep_their_length(frames: list[tuple[bool, bytes]], vnet: int) -> None:
    node = Node2()
    for from_guest, raw in frames:
        frame = b"\0" * vnet + raw
        moved = node.guest(frame, vnet) if from_guest else node.client(frame, vnet)
        assert len(moved) == len(frame)


def test_what_the_port_tells_of_its_guest_is_published() -> None:
    stopped = Event("guest_stopped", {"port": "rewriter.guest", "why": "stopped"})
    assert Core(Node()).push("guest", stopped, 0.0) == [stopped]


# What comes for the guest between a cut's prepare and its end.

OPEN = 1000, 5000  # the guest's and the primary's initial numbers of the connection below


def prepared() -> Node2:
    """A connection is open, and a cut is prepared."""
    node = Node2()
    node.accept(*OPEN)
    cut = Cut(1, "prepare")
    assert node.core.push("to_guest", cut, node.now) == [("from_guest", cut)]
    return node


def heard(node: Node2, outputs: list[object]) -> list[bytes]:
    """What of these outputs the guest hears."""
    batches = [output[1] for output in outputs if isinstance(output, tuple) and output[0] == "guest"]
    return [frame for batch in batches for frame in batch.frames()]


def test_what_comes_behind_a_prepared_cut_has_the_numbers_of_the_copy() -> None:
    """The primary hears it after the checkpoint, so the copy has to; its space is the primary's."""
    node = prepared()
    ack = from_client(101, 5001)
    assert node.client(ack) == b""
    outputs = node.core.push("to_guest", Cut(1, "commit"), node.now)
    assert outputs[0] == ("from_guest", Cut(1, "commit"))
    assert heard(node, outputs) == [ack]
    assert node.client(ack) == ack


def test_what_comes_behind_a_cut_that_is_aborted_has_the_numbers_of_before() -> None:
    node = prepared()
    node.client(from_client(101, 5001))
    assert heard(node, node.core.push("to_guest", Cut(1, "abort"), node.now)) == [from_client(101, 1001)]


@pytest.mark.parametrize(
    ("stream", "item"),
    [
        ("to_guest", Gap("lost", 1)),
        ("events", Event("gap", {"stream": "ingress", "reason": "lost", "lost": 1})),
        ("events", Event("failover", {"survivor": "secondary", "epoch": 0})),
        ("to_guest", Cut(2, "prepare")),
    ],
    ids=["gap", "gap in front of the redirector", "failover", "another cut"],
)
def test_where_the_end_of_a_cut_may_be_lost_the_guest_hears_what_came(stream: str, item: Gap | Event | Cut) -> None:
    node = prepared()
    node.client(from_client(101, 5001))
    assert heard(node, node.core.push(stream, item, node.now)) == [from_client(101, 1001)]


def test_the_guests_input_waits_for_the_end_of_a_cut_so_long_and_no_longer() -> None:
    node = prepared()
    node.client(from_client(101, 5001))
    assert heard(node, node.core.tick(2.9)) == []
    assert node.core.next_deadline() == 3.0
    assert heard(node, node.core.tick(3.0)) == [from_client(101, 1001)]
    assert node.client(from_client(101, 5001)) == from_client(101, 1001)


def test_behind_a_prepared_cut_so_many_bytes_wait_and_no_more() -> None:
    node = prepared()
    frame = from_client(101, 5001, b"x" * 60_000)
    for _ in range(80):
        node.client(frame)
    assert node.core.counters["dropped_limit"] == 80 - (4 << 20) // len(frame)
    assert len(heard(node, node.core.push("to_guest", Cut(1, "commit"), node.now))) == (4 << 20) // len(frame)


def test_a_rewriter_that_starts_later_learns_the_epoch_from_the_first_message() -> None:
    core = Core(Node())
    core.push("to_guest", Batch.of([from_client(1, 2)], epoch=4), 0.0)
    core.push("to_guest", Batch.of([from_client(1, 2)], epoch=9), 0.0)
    assert core.epoch == 4
    core.push("to_guest", Cut(5, "commit"), 0.0)
    assert core.epoch == 5
