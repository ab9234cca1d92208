"""Putting IP fragments together again."""

from __future__ import annotations

import itertools

import pytest
from captures import fragments
from packets import CLIENT, CLIENT6, GUEST, GUEST6, ethernet, ip, segment, udp

from lockstep.compare.fragments import MOST_OPEN, Fragment, Reassembly, Whole
from lockstep.flow.key import flow_key
from lockstep.wire import frame
from lockstep.wire.frame import Frame, dissect

PAYLOAD = bytes(range(64))


def take(reassembly: Reassembly, data: bytes, number: int) -> tuple[Whole | None, list[Fragment]]:
    f = Frame()
    assert dissect(f, data, 0, len(data)) == frame.FRAGMENT
    return reassembly.take(f, data, flow_key(f, data), number)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_any_order_makes_the_same_whole(order: tuple[int, ...]) -> None:
    """What comes out is the frame that was cut, but for identification and checksums, and says what came where."""
    parts = fragments(PAYLOAD, 7)
    reassembly = Reassembly()
    results = [take(reassembly, parts[index], index + 1) for index in order]
    assert [given_up for _, given_up in results] == [[], [], []]
    whole = results[-1][0]
    assert whole is not None
    assert whole.data[34:] == udp(PAYLOAD)[34:]
    assert whole.parts == ((34, 1), (58, 2), (82, 3))
    assert not [*reassembly.rest()]


def test_fragments_that_come_twice_are_the_same_fragments() -> None:
    """Before the datagram is whole, and after."""
    a, b, c = fragments(PAYLOAD, 7)
    reassembly = Reassembly()
    wholes = [take(reassembly, data, number)[0] for number, data in enumerate((a, a, b, c, b, a, c), 1)]
    assert [whole is not None for whole in wholes] == [False, False, False, True, False, False, False]
    assert not [*reassembly.rest()]


def test_fragments_that_contradict_each_other_are_given_back_as_they_came() -> None:
    a, b, c = fragments(PAYLOAD, 7)
    other = b[:-1] + b"!"
    reassembly = Reassembly()
    assert take(reassembly, a, 1) == (None, [])
    assert take(reassembly, b, 2) == (None, [])
    whole, given_up = take(reassembly, other, 3)
    assert whole is None
    assert [fragment.frame for fragment in given_up] == [1, 2, 3]
    assert take(reassembly, c, 4) == (None, [])
    assert [fragment.frame for fragment in reassembly.rest()] == [4]


def test_overlapping_fragments_that_agree_are_put_together() -> None:
    """Cut in two ways, as two paths might: the whole is what both say."""
    body = udp(PAYLOAD)[34:]
    pieces = [(0, 32, True), (24, 48, True), (40, 72, False)]
    reassembly = Reassembly()
    whole = None
    for number, (start, end, more) in enumerate(pieces, 1):
        data = ethernet(ip(GUEST, CLIENT, 17, body[start:end], ident=3, fragment=start // 8 | (0x2000 if more else 0)))
        whole, _ = take(reassembly, data, number)
    assert whole is not None
    assert whole.data[34:] == body


def test_more_datagrams_than_there_is_room_for_push_the_oldest_out() -> None:
    reassembly = Reassembly()
    for ident in range(MOST_OPEN):
        assert take(reassembly, fragments(PAYLOAD, ident)[0], ident + 1) == (None, [])
    _, given_up = take(reassembly, fragments(PAYLOAD, 9999)[0], 1000)
    assert [fragment.frame for fragment in given_up] == [1]


def test_too_many_bytes_give_up_the_oldest() -> None:
    """Each first fragment five times, 60,000 bytes long: 16 MiB hold 56 such datagrams."""
    reassembly = Reassembly()
    given_up: list[Fragment] = []
    for number in range(60 * 5):
        data = ethernet(ip(GUEST, CLIENT, 1, bytes(60_000), ident=number // 5, fragment=0x2000))
        given_up += take(reassembly, data, number)[1]
    assert [fragment.frame for fragment in given_up] == [*range(4 * 5)]
    assert len([*reassembly.rest()]) == 56 * 5


def test_ipv6() -> None:
    """The whole dissects as the datagram in it (an atomic fragment is left: RFC 6946)."""
    body = segment(5, 6, PAYLOAD, source=GUEST6, destination=CLIENT6)[54:]
    reassembly = Reassembly()
    whole = None
    for number, (start, end) in enumerate(((0, 32), (32, len(body))), 1):
        head = bytes((6, 0)) + (start | (end < len(body))).to_bytes(2, "big") + b"\0\0\0\7"
        whole, _ = take(reassembly, ethernet(ip(GUEST6, CLIENT6, 44, head + body[start:end])), number)
    assert whole is not None
    f = Frame()
    assert dissect(f, whole.data, 0, len(whole.data)) == frame.TCP
    assert whole.data[f.payload : f.payload_end] == PAYLOAD


def test_more_than_ip_can_carry_is_no_datagram() -> None:
    """The last fragment of a ping of death ends behind byte 65535."""
    reassembly = Reassembly()
    for number, start in enumerate(range(0, 66_000, 1480), 1):
        more = 0x2000 if start + 1480 < 66_000 else 0
        data = ethernet(ip(GUEST, CLIENT, 1, bytes(1480), ident=3, fragment=start // 8 | more))
        assert take(reassembly, data, number) == (None, [])
    assert len([*reassembly.rest()]) == 45
