"""Two captures against each other, without files."""

from __future__ import annotations

import ipaddress
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from against import compared, differences, packets
from captures import Wire, fragments
from hypothesis import given
from hypothesis import strategies as st
from mutate import Record
from packets import (
    ACK,
    CLIENT,
    CLIENT_MAC,
    FIN,
    GUEST,
    GUEST6,
    GUEST_MAC,
    PSH,
    RST,
    SYN,
    arp_reply,
    echo_reply,
    ethernet,
    from_client,
    ip,
    segment,
    udp,
)  # fmt: skip

from lockstep.capture.pcapfile import Packet
from lockstep.compare.comparison import Comparison, Guests, Limits
from lockstep.compare.feed import feed

GUEST_FLOW = "10.77.0.2:80 10.77.0.1:40000"
CLIENT_FLOW = "10.77.0.1:40000 10.77.0.2:80"


def wire(*frames: bytes) -> list[Record]:
    made = Wire()
    for frame in frames:
        made.add(frame)
    return made.records


def test_both_directions_are_flows() -> None:
    a = wire(
        from_client(1, None, flags=SYN),
        segment(5, 2, flags=SYN),
        from_client(2, 6, b"question"),
        segment(6, 10, b"answer"),
    )
    b = wire(
        from_client(1, None, flags=SYN),
        segment(5, 2, flags=SYN),
        from_client(2, 6, b"qUestion"),
        segment(6, 10, b"ansWer"),
    )
    assert differences(a, b) == [(CLIENT_FLOW, "data", 1, 3, 3), (GUEST_FLOW, "data", 3, 4, 4)]
    comparison = compared(a, b)
    assert (comparison.flows, comparison.released, comparison.held, comparison.unchecked) == (2, 2, 2, 0)


def test_chatter_is_unchecked_and_released() -> None:
    comparison = compared(wire(arp_reply(), udp(b"x")), wire(udp(b"x")))
    assert not comparison.divergences
    assert (comparison.released, comparison.unchecked, comparison.flows) == (2, 1, 1)


class TestGuests:
    """`--guest`: only what it sent."""

    A = wire(from_client(1, None, b"from the client"), segment(5, 2, b"from the guest"), udp(b"datagram"))

    @pytest.mark.parametrize(
        "guests",
        [Guests(addresses=frozenset({ipaddress.ip_address(GUEST).packed})), Guests(macs=frozenset({GUEST_MAC}))],
    )
    def test_what_others_sent_may_differ(self, guests: Guests) -> None:
        other = wire(from_client(1, None, b"something else"), segment(5, 2, b"from the guest"), udp(b"datagram"))
        comparison = compared(self.A, other, guests=guests)
        assert not comparison.divergences
        assert (comparison.frames, comparison.released, comparison.flows) == ([3, 3], 2, 2)
        other = wire(from_client(1, None, b"something else"), segment(5, 2, b"from the Guest"), udp(b"datagram"))
        assert [found.flow for found in compared(self.A, other, guests=guests).divergences] == [GUEST_FLOW]

    def test_ipv6_and_several(self) -> None:
        guests = Guests(frozenset({CLIENT_MAC}), frozenset({ipaddress.ip_address(GUEST6).packed}))
        a = wire(
            segment(1, 2, b"six", source=GUEST6, destination="fd77::1"), from_client(1, 2, b"mac"), segment(1, 2, b"no")
        )
        comparison = compared(a, [], guests=guests)
        assert [found.flow for found in comparison.divergences] == ["[fd77::2]:80 [fd77::1]:40000", CLIENT_FLOW]


class TestKinds:
    """Everything that is no stream."""

    def test_udp_by_all_its_payloads(self) -> None:
        a = wire(udp(b"first"), udp(b"second"), udp(b"third"))
        b = wire(udp(b"first"), udp(b"secOnd"), udp(b"third"))
        assert differences(a, b) == [("10.77.0.2:53 10.77.0.1:40000", "data", 8, 2, 2)]

    def test_icmp_without_its_checksum(self) -> None:
        """The payload is what stands behind the first eight bytes."""
        a = wire(echo_reply(1, 1, b"ping"), echo_reply(1, 2, b"ping"))
        b = wire(echo_reply(1, 1, b"ping"), echo_reply(1, 2, b"pinG"))
        assert differences(a, b) == [("10.77.0.2 10.77.0.1", "data", 7, 2, 2)]
        assert differences(a[1:], b[:1]) == [("10.77.0.2 10.77.0.1", "data", 0, 1, 1)]

    def test_other_protocols_by_their_ip_payload(self) -> None:
        a, b = (
            wire(ethernet(ip(GUEST, CLIENT, 47, b"gre tunnel"))),
            wire(ethernet(ip(GUEST, CLIENT, 47, b"gre tUnnel"))),
        )
        assert differences(a, b) == [("10.77.0.2 10.77.0.1", "data", 5, 1, 1)]

    def test_other_ethertypes_by_mac(self) -> None:
        a, b = wire(ethernet(b"who knows", ethertype=0x88B5)), wire(ethernet(b"who Knows", ethertype=0x88B5))
        assert differences(a, b) == [("52:54:00:00:00:02 52:54:00:00:00:01", "data", 4, 1, 1)]

    def test_what_cannot_be_read_by_its_bytes(self) -> None:
        """A TCP header that ends before its options do."""
        bad = bytearray(segment(1, 2))
        bad[14 + 20 + 12] = 0xF0
        other = bytearray(bad)
        other[-1] ^= 1
        assert differences(wire(bytes(bad)), wire(bytes(bad))) == []
        assert differences(wire(bytes(bad)), wire(bytes(other))) == [
            ("52:54:00:00:00:02 52:54:00:00:00:01", "data", 53, 1, 1)
        ]
        assert differences(wire(b"", b"x"), wire(b"", b"x")) == []
        assert len(differences(wire(b"", b"x"), wire(b"x"))) == 1

    def test_fragments_by_datagram(self) -> None:
        """Cut elsewhere and in another order it is equal; a wrong byte has its place in the datagram, and its frame."""
        payload = bytes(range(64))
        a = wire(*fragments(payload, 1), udp(b"next"))
        b = wire(*reversed(fragments(payload, 900, (16, 40, 56))), udp(b"next"))
        assert differences(a, b) == []
        wrong = bytearray(payload)
        wrong[50] ^= 1
        b = wire(udp(b""), *fragments(bytes(wrong), 900, (16, 40, 56)))
        # Byte 50 is byte 58 of the datagram with its header: in the third of (0-24, 24-48, 48-72), the fourth of the
        # others.
        found = differences(wire(udp(b""), *fragments(payload, 1)), b)
        assert found == [("10.77.0.2:53 10.77.0.1:40000", "data", 50, 4, 5)]

    def test_a_missing_fragment(self) -> None:
        parts = fragments(bytes(64), 1)
        assert differences(wire(*parts), wire(*parts)) == []
        assert differences(wire(*parts[:2]), wire(*parts[:2])) == []
        assert len(differences(wire(*parts), wire(*parts[:2]))) == 2

    def test_vlans_are_flows_of_their_own(self) -> None:
        a = wire(udp(b"one", vlan=(5,)), udp(b"two", vlan=(6,)))
        assert differences(a, list(reversed(a))) == []
        assert len(differences(a[:1], a[1:])) == 2


def test_two_link_types_are_one_capture() -> None:
    """The same packets, once with Ethernet and once raw."""
    a = wire(segment(1, 2, b"hello"), udp(b"x"))
    b = [replace(record, data=record.data[14:], linktype=101, original=0) for record in a]
    assert differences(a, b) == []


def test_a_capture_cut_by_its_snap_length_against_a_whole_one() -> None:
    frames = [segment(100 * number, 5, bytes((number,)) * 100, flags=PSH | ACK) for number in range(30)]
    whole = wire(*frames, udp(bytes(200)), udp(bytes(90)))
    cut = [replace(record, data=record.data[:80], original=len(record.data)) for record in whole]
    assert differences(cut, cut) == []
    assert differences(whole, cut) == []
    assert differences(cut, whole) == []
    wrong = list(whole)
    wrong[3] = replace(wrong[3], data=wrong[3].data[:60] + b"!" + wrong[3].data[61:])
    assert differences(wrong, cut) == [(GUEST_FLOW, "data", 306, 4, 4)]
    assert len(differences(whole, cut[:-2])) == 1
    assert len(differences(whole[:20], cut)) == 2


class TestOneFileTwice:
    """What captures show, and what must be no difference of a file from itself."""

    @pytest.mark.parametrize(
        "frames",
        [
            [segment(10, 1, b"abc"), segment(10, 1, b"xyz"), segment(10, 1, b"abc")],
            [segment(10, 1, b"abcdef"), segment(12, 1, b"!!"), segment(8, 1, b"12345678")],
            [segment(10, 1, b"abc"), segment(12, 1, b"\0"), segment(13, 1, b"d")],
            [segment(7, flags=SYN), segment(9000, flags=SYN), segment(7, flags=SYN), segment(9001, 1, b"x")],
            [
                segment(7, flags=SYN), segment(8, 1, b"a"), segment(7, flags=SYN), segment(8, 1, b"b"),
                segment(1, flags=RST),
            ],
            [segment(0, flags=RST), segment(5, 1, flags=RST), segment(1 << 31, flags=RST), segment(3, 1, b"data")],
            [segment(5, 1, b"x", flags=FIN), segment(6, 1, b"beyond"), segment(9, 1, flags=FIN)],
            [
                segment(5, None), segment(5, None, flags=FIN | PSH), segment(5, 1, b"data", flags=RST),
                segment(1, None, b"!"),
            ],
            [segment(n << 29, 1, b"far") for n in range(40)],
            [segment(1 << 31, 1, b"x" * 100), segment(0, 1, b"y" * 100), segment(0xFFFFFFF0, 1, b"z" * 100)],
            [from_client(1, flags=SYN), segment(9, flags=SYN), from_client(1, 10, flags=SYN), segment(9, 2, flags=SYN)],
            [segment(1, 2, b"bad sum", bad=True), segment(1, 2, b"partial", partial=True)],
            [ethernet(ip(GUEST, CLIENT, protocol, b"what it carries")) for protocol in (132, 50, 6)],
        ],
    )  # fmt: skip
    def test_it_is_equal(self, frames: list[bytes]) -> None:
        a = wire(*frames)
        comparison = compared(a, a)
        assert not comparison.divergences
        assert comparison.released == len(frames)
        for index in range(len(a)):
            if frames.count(frames[index]) == 1 and frames[index][54:]:
                assert differences(a, a[:index] + a[index + 1 :]), "a frame that nothing repeats is missed"

    @given(st.lists(st.binary(max_size=120), max_size=20), st.sampled_from((1, 0, 101, 113, 276, 105)))
    def test_arbitrary_bytes(self, frames: list[bytes], linktype: int) -> None:
        a = [replace(record, linktype=linktype) for record in wire(*frames)]
        assert not compared(a, a).divergences

    @given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 1 << 17), st.binary(max_size=60)), max_size=20))
    def test_arbitrary_ends_of_good_frames(self, cuts: list[tuple[int, int, bytes]]) -> None:
        good = (segment(5, 6, bytes(100)), udp(bytes(100)), *fragments(bytes(64), 3), echo_reply(1, 2))
        a = [
            Record((good[index % len(good)][:cut] + tail)[:200], index, 1, original)
            for index, (cut, original, tail) in enumerate(cuts)
        ]
        assert not compared(a, a).divergences


class TestLimits:
    """Memory does not grow with the files."""

    def test_what_one_file_may_say_before_the_other(self) -> None:
        """A flow that is only in one file is told as `limit` once it is too long to wait for."""
        frames = [segment(1000 * number, 1, bytes(1000)) for number in range(300)]
        limits = Limits(max_flow_bytes=100_000)
        comparison = compared(wire(*frames), [], limits)
        (found,) = comparison.divergences
        assert (found.finding.reason, found.finding.offset, found.finding.primary_frame) == ("limit", 0, 1)
        assert comparison.held == 300

    def test_all_flows_together(self) -> None:
        frames = [udp(bytes(1000), dport=1000 + number) for number in range(300)]
        comparison = compared(wire(*frames), [], Limits(max_bytes=100_000))
        reasons = [found.finding.reason for found in comparison.divergences]
        assert len(reasons) == 300
        assert reasons.count("limit") > 200

    def test_many_flows_that_are_equal_need_no_room(self) -> None:
        """One after another: those that have nothing pending make way."""
        frames = [udp(b"x", dport=number) for number in range(2000)]
        frames += [
            segment(number, 5, b"data", dport=number, flags=flags) for number in range(2000) for flags in (SYN, ACK)
        ]
        a = wire(*frames)
        comparison = compared(a, a, Limits(max_flows=16))
        assert not comparison.divergences
        assert comparison.flows == 4000

    def test_flows_that_wait_for_the_other_file_do_not_make_way_quietly(self) -> None:
        frames = [udp(b"x", dport=number) for number in range(100)]
        comparison = compared(wire(*frames), [], Limits(max_flows=16))
        assert [found.finding.reason for found in comparison.divergences].count("limit") == 84
        assert len(comparison.divergences) == 100

    def test_more_divergences_than_are_told(self) -> None:
        """The last that is told is a `limit`."""
        frames = [udp(b"x", dport=number) for number in range(100)]
        comparison = compared(wire(*frames), [], Limits(max_divergences=10))
        assert len(comparison.divergences) == 10
        assert [found.finding.reason for found in comparison.divergences].count("limit") == 1
        assert comparison.held == 100

    def test_a_long_capture_keeps_a_window(self) -> None:
        """15 MB in 200 flows against itself, cut in two, at no more than a few bytes of each."""

        def records(pieces: int) -> Iterator[Packet]:
            number = 0
            for index in range(10_000):
                flow, turn = index % 200, index // 200
                data = turn.to_bytes(4, "big") * 375
                for piece in range(pieces):
                    number += 1
                    at = piece * 1500 // pieces
                    part = data[at : at + 1500 // pieces]
                    raw = HEAD[flow] + (1500 * turn + at).to_bytes(4, "big") + REST + part
                    raw = raw[:16] + (40 + len(part)).to_bytes(2, "big") + raw[18:]
                    yield Packet(number, index, 1, raw, len(raw))

        head = segment(0, 1, bytes(1500))
        HEAD = [head[:34] + (80).to_bytes(2, "big") + (1000 + flow).to_bytes(2, "big") for flow in range(200)]
        REST = head[42:54]
        tracemalloc.start()
        comparison = Comparison(Limits(max_history=1 << 20))
        for _ in feed(comparison, records(1), records(2)):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        comparison.finish()
        assert not comparison.divergences
        assert most < 8 << 20

    def test_a_stream_beyond_4_gib(self) -> None:
        """The numbers wrap, and the place of a wrong byte counts on. Super-frames keep this short."""
        size, count = 1 << 20, 4200
        wrong_at = 4150

        def records(wrong: bool) -> Iterator[Packet]:
            head = segment(0, 1, b"", flags=ACK)
            body = bytes(size - 1)
            for index in range(count):
                raw = head[:38] + (index * size & 0xFFFFFFFF).to_bytes(4, "big") + head[42:54]
                raw = raw[:16] + b"\0\0" + raw[18:] + body + (b"!" if wrong and index == wrong_at else b"\0")
                yield Packet(index + 1, index, 1, raw, len(raw))

        comparison = Comparison(Limits())
        for _ in feed(comparison, records(False), records(True)):
            pass
        comparison.finish()
        (found,) = comparison.divergences
        place = (wrong_at + 1) * size - 1
        assert place > 1 << 32
        assert (found.finding.offset, found.finding.primary_frame) == (place, wrong_at + 1)


def test_what_has_been_told_is_told_once() -> None:
    """However much more differs in it."""
    random = Random(1)
    a = wire(*[udp(random.randbytes(8)) for _ in range(500)])
    b = wire(*[udp(random.randbytes(8)) for _ in range(500)])
    comparison = compared(a, b)
    assert len(comparison.divergences) == 1
    assert comparison.held == 500


def test_packets_are_as_readers_give_them() -> None:
    """The helper of these tests counts from 1."""
    assert [packet.number for packet in packets(wire(b"a", b"b"))] == [1, 2]
