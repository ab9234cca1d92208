"""A real kernel behind the rewriter answers every script exactly as one without it.

Each case is a script of raw segments (see `wire.py`). It is run once against the bare kernel, and then through the
rewriter with a primary of other numbers: what is heard, relative to where the numbers began, has to be the same.
The scripts' own expectations are what RFC 9293, 5961, 7323, 2018 and 2883 ask for, or what Linux does.
"""

from __future__ import annotations

import errno
import functools
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel.wire import MASK, Peer, Way, Wire, pattern, readable, received

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

BARE = Way("bare", rewriter=False)
WAYS = [
    # The primary's numbers wrap within the first segments, and so does its clock; so do the client's.
    Way("wraps", True, lambda own: 0xFFFFFC00, lambda own: 0xFFFFFFFE, client_isn=0xFFFFFF00),
    Way("half", True, lambda own: own + 0x80000000, lambda own: own + 0x80000000, offloads=False),
    Way("one", True, lambda own: own + 1, lambda own: own - 1, client_isn=0),
    Way("zero", True, lambda own: 0, lambda own: 0, offloads=False),
]

Case = Callable[[Wire], None]
CASES: dict[str, tuple[Case, dict[str, int]]] = {}


def case(**settings: int) -> Callable[[Case], Case]:
    """Registers a script. settings: sysctls of the guest, with `__` for a slash."""

    def register(script: Case) -> Case:
        CASES[script.__name__] = script, {name.replace("__", "/"): value for name, value in settings.items()}
        return script

    return register


def heard(name: str, way: Way, *, v6: bool) -> list[tuple[object, ...]]:
    """Run a script; what the guest said, relative to where the numbers began."""
    script, settings = CASES[name]
    with Wire(way, v6=v6, settings=settings) as wire:
        script(wire)
        return wire.heard


@functools.cache
def heard_bare(name: str, *, v6: bool) -> list[tuple[object, ...]]:
    return heard(name, BARE, v6=v6)


# --- data


@case()
def data_both_ways(wire: Wire) -> None:
    """Handshake, a request, an answer of three segments, and the guest's FIN."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    peer.send("AP", 1, 1, b"request")
    peer.expect("A", 1, 8)
    assert received(guest, 7) == b"request"
    guest.send(answer := pattern(3 * wire.mss))
    for at in range(0, len(answer), wire.mss):
        peer.expect("A", 1 + at, 8, answer[at : at + wire.mss])
    end = 1 + len(answer)
    peer.send("A", 8, end)
    guest.close()
    peer.expect("FA", end, 8)
    peer.send("FA", 8, end + 1)
    peer.expect("A", end + 1, 9)


@case(net__ipv4__tcp_syncookies=2)
def syn_cookies(wire: Wire) -> None:
    """The kernel keeps nothing of the SYN: the ack and TSecr that come back must be its own cookies."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    peer.send("A", 1, 1, b"request")
    peer.expect("A", 1, 8)
    assert received(guest, 7) == b"request"
    # What the cookie's timestamp says of the SYN's options has come back: SACK works.
    peer.send("A", 9, 1, b"beyond a hole")
    peer.expect("A", 1, 8, sack=((9, 22),))


@case()
def syn_ack_said_again(wire: Wire) -> None:
    """The SYN-ACK was lost on its way to the client, and is said again a second later by the same numbers."""
    listener, peer = wire.listen(), Peer(wire)
    peer.send("S", 0)
    peer.expect("SA", 0, 1)
    peer.expect("SA", 0, 1)
    peer.send("A", 1, 1)
    guest = wire.accept(listener)
    guest.send(b"at last")
    peer.expect("A", 1, 1, b"at last")


@case()
def retransmission_time_out(wire: Wire) -> None:
    """What nobody acknowledges is said again, the same."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    guest.send(b"anybody there?")
    peer.expect("A", 1, 1, b"anybody there?")
    peer.expect("A", 1, 1, b"anybody there?")
    peer.send("A", 1, 15)
    peer.nothing_more(15, 1, 15)


# --- SACK


@case()
def sack_recovery(wire: Wire) -> None:
    """The guest sends exactly the two segments again that the script's SACKs leave out."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    mss = wire.mss
    guest.send(sent := pattern(10 * mss))
    for at in range(0, len(sent), mss):
        peer.expect("A", 1 + at, 1, sent[at : at + mss])

    def place(number: int) -> int:
        return 1 + number * mss

    peer.send("A", 1, place(1))
    peer.send("A", 1, place(1), sack=((place(2), place(5)),))
    peer.expect("A", place(1), 1, sent[mss : 2 * mss])
    peer.send("A", 1, place(1), sack=((place(6), place(9)), (place(2), place(5))))
    peer.send("A", 1, place(1), sack=((place(6), place(10)), (place(2), place(5))))
    peer.expect("A", place(5), 1, sent[5 * mss : 6 * mss])
    peer.send("A", 1, place(10))
    guest.send(b"more")
    peer.expect("A", place(10), 1, b"more")
    peer.send("A", 1, place(10) + 4)
    peer.nothing_more(place(10) + 4, 1, place(10) + 4)


@case()
def holes_of_the_script(wire: Wire) -> None:
    """The guest tells the holes by SACK and the doubles by DSACK (RFC 2883), in the script's numbers."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    peer.send("A", 1, 1, pattern(100))
    peer.expect("A", 1, 101)
    peer.send("A", 201, 1, pattern(100, 200))
    peer.expect("A", 1, 101, sack=((201, 301),))
    peer.send("A", 401, 1, pattern(100, 400))
    peer.expect("A", 1, 101, sack=((401, 501), (201, 301)))
    peer.send("A", 101, 1, pattern(100, 100))
    peer.expect("A", 1, 301, sack=((401, 501),))
    peer.send("A", 1, 1, pattern(100))
    peer.expect("A", 1, 301, sack=((1, 101), (401, 501)))
    peer.send("A", 301, 1, pattern(100, 300))
    peer.expect("A", 1, 501)
    assert received(guest, 500) == pattern(500)


# --- what doesn't belong


@case()
def paws(wire: Wire) -> None:
    """A TSval of the past is answered by an ACK and dropped (RFC 7323 §5); a newer one is taken."""
    listener, peer = wire.listen(), Peer(wire)
    peer.clock = 1000
    guest = peer.open(listener)
    peer.send("A", 1, 1, b"first")
    assert peer.expect("A", 1, 6).tsecr == 1003
    peer.send("A", 6, 1, b"of old", clock=500)
    assert peer.expect("A", 1, 6).tsecr == 1003
    peer.send("A", 6, 1, b"new")
    assert peer.expect("A", 1, 9).tsecr == 1005
    assert received(guest, 8) == b"firstnew"
    peer.send("A", 9, 1, b"last", clock=0x7FFF0000)  # the farthest future is no past
    assert peer.expect("A", 1, 13).tsecr == 0x7FFF0000


@case()
def reset_in_window(wire: Wire) -> None:
    """A RST in the window is challenged, one beyond it ignored, the exact one obeyed (RFC 5961 §3)."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    peer.send("R", 100)
    peer.expect("A", 1, 1)
    peer.send("RA", 100, 1)
    peer.expect("A", 1, 1)
    peer.send("R", 1 + (1 << 29))
    peer.send("R", -1)
    peer.nothing_more(1, 1, 1)
    guest.send(b"alive")
    peer.expect("A", 1, 1, b"alive")
    peer.send("A", 1, 6)
    peer.send("R", 1)
    readable(guest)
    with pytest.raises(ConnectionResetError):
        guest.recv(1)
    peer.send("A", 1, 6)
    peer.expect("R", 6)


@case()
def syn_in_window(wire: Wire) -> None:
    """A SYN or SYN-ACK on an open connection is challenged (RFC 5961 §4), wherever it stands."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    peer.send("S", 100)
    peer.expect("A", 1, 1)
    peer.send("S", -100000)
    peer.expect("A", 1, 1)
    peer.send("SA", 100, 1)
    peer.expect("A", 1, 1)
    peer.send("A", 1, 1, b"still open")
    peer.expect("A", 1, 11)
    assert received(guest, 10) == b"still open"


@case()
def acks_of_the_unsaid(wire: Wire) -> None:
    """An ack of what was not yet said, or long ago, is challenged and its data dropped (RFC 5961 §5)."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    guest.send(b"said")
    peer.expect("A", 1, 1, b"said")
    peer.send("A", 1, 6, b"bad")  # one more than was said
    peer.expect("A", 5, 1)
    peer.send("A", 1, 5 - (1 << 30))
    peer.expect("A", 5, 1)
    peer.send("A", 1, 5, b"good")
    peer.expect("A", 5, 5)
    assert received(guest, 4) == b"good"


@case()
def segment_without_a_connection(wire: Wire) -> None:
    """Nobody listens: a SYN is refused, and a stray ACK reset at the number it brought."""
    peer = Peer(wire)
    peer.send("S", 0)
    raw = wire.next()
    assert (raw.flags, raw.seq, raw.ack) == (0x14, 0, (peer.isn + 1) & MASK)
    other = Peer(wire, port=40001)
    other.send("A", 500, absolute_ack=0xFFFFFFF0)
    other.expect_absolute_reset(0xFFFFFFF0)


# --- opening


@case()
def guest_opens(wire: Wire) -> None:
    """A connection that the guest opens."""
    peer = Peer(wire, port=8080, guest_port=40000)
    guest = wire.connect(40000, 8080)
    peer.expect("S", 0)
    peer.send("SA", 0, 1)
    peer.expect("A", 1, 1)
    guest.send(b"hello")
    peer.expect("A", 1, 1, b"hello")
    peer.send("A", 1, 6, b"welcome")
    peer.expect("A", 6, 8)
    assert received(guest, 7) == b"welcome"
    guest.close()
    peer.expect("FA", 6, 8)


@case()
def guest_opens_twice(wire: Wire) -> None:
    """The guest's SYN is said again, and both are answered: the numbers don't change by the second answer."""
    peer = Peer(wire, port=8080, guest_port=40000)
    guest = wire.connect(40000, 8080)
    peer.expect("S", 0)
    peer.expect("S", 0)
    peer.send("SA", 0, 1)
    peer.expect("A", 1, 1)
    peer.send("SA", 0, 1)
    peer.expect("A", 1, 1)
    guest.send(b"hello")
    peer.expect("A", 1, 1, b"hello")


@case()
def guest_is_refused(wire: Wire) -> None:
    """A RST that answers the guest's SYN: connect() fails at once."""
    peer = Peer(wire, port=8080, guest_port=40000)
    guest = wire.connect(40000, 8080)
    peer.expect("S", 0)
    peer.send("RA", 0, 1)
    assert refusal(guest, seconds=3) == errno.ECONNREFUSED


@case()
def guest_finds_nobody(wire: Wire) -> None:
    """`Port Unreachable` for the guest's SYN, quoted with the primary's number: connect() fails at once."""
    peer = Peer(wire, port=8080, guest_port=40000)
    guest = wire.connect(40000, 8080)
    peer.expect("S", 0)
    peer.unreachable(wire.way.isn(peer.base) & MASK)
    assert refusal(guest, seconds=3) == errno.ECONNREFUSED


def second_life(wire: Wire) -> tuple[Peer, socket.socket]:
    """The guest has had a connection from the same port, which was reset, and opens another."""
    old = Peer(wire, port=8080, guest_port=40000)
    guest = wire.connect(40000, 8080)
    old.expect("S", 0)
    old.send("SA", 0, 1)
    old.expect("A", 1, 1)
    old.send("R", 1)
    readable(guest)
    with pytest.raises(ConnectionResetError):
        guest.recv(1)
    guest.close()
    new = Peer(wire, port=8080, guest_port=40000, isn=5_000_000)
    new.clock = 5000
    guest = wire.connect(40000, 8080)
    new.expect("S", 0)
    return new, guest


@case()
def guest_opens_a_second_life(wire: Wire) -> None:
    """The second connection of the same ports has numbers of its own."""
    peer, guest = second_life(wire)
    peer.send("SA", 0, 1)
    peer.expect("A", 1, 1)
    guest.send(b"again")
    peer.expect("A", 1, 1, b"again")


@case()
def second_life_is_refused(wire: Wire) -> None:
    """A RST for the second SYN is not taken for one of the first connection."""
    peer, guest = second_life(wire)
    peer.send("RA", 0, 1)
    assert refusal(guest, seconds=0.5) == errno.ECONNREFUSED


@case()
def second_life_finds_nobody(wire: Wire) -> None:
    """Nor is an ICMP error for it."""
    peer, guest = second_life(wire)
    peer.unreachable(wire.way.isn(peer.base) & MASK)
    assert refusal(guest, seconds=0.5) == errno.ECONNREFUSED


def refusal(guest: socket.socket, seconds: float) -> int:
    """The error with which a connect() has ended by then; 0 while it goes on."""
    select.select([], [guest], [], seconds)
    return guest.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@case()
def half_open_at_the_client(wire: Wire) -> None:
    """The client still has an old connection: it challenges the guest's SYN, and the guest resets that (RFC 9293)."""
    peer = Peer(wire, port=8080, guest_port=40000)
    guest = wire.connect(40000, 8080)
    peer.expect("S", 0)
    peer.send("A", 70000, absolute_ack=0x12345678, tsecr=1)
    peer.expect_absolute_reset(0x12345678)
    peer.expect("S", 0)  # again, after a second
    peer.send("SA", 0, 1)
    peer.expect("A", 1, 1)
    guest.send(b"hello")
    peer.expect("A", 1, 1, b"hello")


def simultaneous(wire: Wire, answer: str, seq: int) -> None:
    peer = Peer(wire, port=8080, guest_port=40000)
    guest = wire.connect(40000, 8080)
    peer.expect("S", 0)
    peer.send("S", 0)
    peer.expect("SA", 0, 1)
    peer.send(answer, seq, 1)
    if "S" in answer:
        peer.expect("A", 1, 1, sack=((0, 1),))
    guest.send(b"crossed")
    peer.expect("A", 1, 1, b"crossed")
    peer.send("A", 1, 8, b"so it did")
    peer.expect("A", 8, 10)
    assert received(guest, 9) == b"so it did"


@case()
def simultaneous_open(wire: Wire) -> None:
    """The SYNs cross (RFC 9293 §3.5), and the script's SYN-ACK ends it."""
    simultaneous(wire, "SA", 0)


@case()
def simultaneous_open_ended_by_ack(wire: Wire) -> None:
    """The SYNs cross, and an ACK ends it."""
    simultaneous(wire, "A", 1)


# --- closing, and opening again


@case()
def client_closes_first(wire: Wire) -> None:
    """The guest goes on sending behind the client's FIN."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    peer.send("FA", 1, 1, b"the end")
    peer.expect("A", 1, 9)
    assert received(guest, 7) == b"the end"
    readable(guest)
    assert guest.recv(1) == b""
    guest.send(b"not mine")
    peer.expect("A", 1, 9, b"not mine")
    peer.send("A", 9, 9)
    guest.close()
    peer.expect("FA", 9, 9)
    peer.send("A", 9, 10)
    peer.send("A", 9, 10)  # and now nothing is left
    peer.expect("R", 10)


@case()
def guest_closes_first(wire: Wire) -> None:
    """The client goes on sending behind the guest's FIN; the guest remembers the connection in TIME_WAIT."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    guest.send(b"enough")
    peer.expect("A", 1, 1, b"enough")
    guest.shutdown(socket.SHUT_WR)
    peer.expect("FA", 7, 1)
    peer.send("A", 1, 8)
    peer.send("A", 1, 8, b"not yet")
    peer.expect("A", 8, 8)
    assert received(guest, 7) == b"not yet"
    peer.send("FA", 8, 8)
    peer.expect("A", 8, 9)
    peer.send("FA", 8, 8)
    peer.expect("A", 8, 9)


@case()
def both_close_at_once(wire: Wire) -> None:
    """The FINs cross."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    guest.close()
    peer.expect("FA", 1, 1)
    peer.send("FA", 1, 1)
    peer.expect("A", 2, 2)
    peer.send("A", 2, 2)
    peer.send("FA", 1, 2)
    peer.expect("A", 2, 2)


@case()
def guest_resets(wire: Wire) -> None:
    """A program that closes with unread bytes resets the connection."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    peer.send("A", 1, 1, b"unread")
    peer.expect("A", 1, 7)
    readable(guest)
    guest.close()
    peer.expect("RA", 1, 7)


@case()
def port_reuse_from_time_wait(wire: Wire) -> None:
    """A SYN of the past gets the old connection's ACK; one with a higher number opens a new connection."""
    listener, old = wire.listen(), Peer(wire)
    old.clock = 1000
    guest = old.open(listener)
    guest.close()
    old.expect("FA", 1, 1)
    old.send("FA", 1, 2)
    old.expect("A", 2, 2)
    old.send("S", -5000, clock=10)  # of the past: the old numbers still hold
    old.expect("A", 2, 2)
    new = Peer(wire, isn=(old.isn + 1_000_000) & MASK)
    new.clock = 2000
    new.send("S", 0)
    new.expect("SA", 0, 1)
    new.send("A", 1, 1)
    guest = wire.accept(listener)
    new.send("A", 1, 1, b"anew")
    new.expect("A", 1, 5)
    guest.send(b"indeed")
    new.expect("A", 1, 5, b"indeed")
    new.send("A", 5, 7)
    # A late segment of the old connection is far behind the new one's window.
    old.send("A", 2, 2, b"late", clock=1500)
    new.expect("A", 7, 5, sack=((2 - 1_000_000, 6 - 1_000_000),))


@case()
def new_syn_before_its_answer(wire: Wire) -> None:
    """While the new connection's SYN-ACK is on its way, what the client sends is still of the old numbers."""
    listener, old = wire.listen(), Peer(wire)
    guest = old.open(listener)
    guest.send(b"first life")
    old.expect("A", 1, 1, b"first life")
    old.send("A", 1, 11)
    old.send("R", 1)
    readable(guest)
    with pytest.raises(ConnectionResetError):
        guest.recv(1)
    new = Peer(wire, isn=(old.isn + 1_000_000) & MASK)
    new.clock = 5000
    new.send("S", 0)
    new.expect("SA", 0, 1)
    old.send("A", 1, 11, clock=1)  # a duplicate of the past must teach nobody the new numbers
    new.expect_absolute_reset((old.base + 11) & MASK)
    new.send("A", 1, 1, b"second life")
    new.expect("A", 1, 12)
    assert received(wire.accept(listener), 11) == b"second life"


# --- timers


@case()
def keep_alive(wire: Wire) -> None:
    """An idle connection is probed one place below (RFC 9293 §3.8.4), and lives on by the answer."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.expect("A", 0, 1)
    peer.send("A", 1, 1)
    guest.send(b"well")
    peer.expect("A", 1, 1, b"well")


@case(net__ipv4__tcp_rto_min_us=300_000)
def zero_window(wire: Wire) -> None:
    """A closed window is probed, and what waits goes out when it opens."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    guest.send(b"some")
    peer.expect("A", 1, 1, b"some")
    peer.window = 0
    peer.send("A", 1, 5)
    guest.send(b"more")
    peer.expect("A", 4, 1)  # a probe has nothing in it, one place below
    peer.send("A", 1, 5)
    peer.expect("A", 4, 1)
    peer.window = 65535
    peer.send("A", 1, 5)
    peer.expect("A", 5, 1, b"more")


@case()
def window_of_the_guest(wire: Wire) -> None:
    """What is beyond the guest's window is answered by an ACK and not taken."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    peer.send("A", 1 + (1 << 24), 1, b"too far")
    peer.expect("A", 1, 1)
    peer.send("A", 1, 1, b"right here")
    peer.expect("A", 1, 11)
    assert received(guest, 10) == b"right here"


# --- the rest


@case()
def urgent_byte(wire: Wire) -> None:
    """The urgent pointer stays where it is, in both directions."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    guest.send(b"now!", socket.MSG_OOB)
    peer.expect("AU", 1, 1, b"now!", urgent=4)
    peer.send("A", 1, 5)
    peer.send("AU", 1, 5, b"abcd", urgent=4)
    peer.expect("A", 5, 5)
    assert received(guest, 3) == b"abc"
    assert guest.recv(1, socket.MSG_OOB) == b"d"


@case()
def path_mtu(wire: Wire) -> None:
    """An ICMP error that quotes a number in flight makes the segments smaller (RFC 1191, 8201); no other does."""
    listener, peer = wire.listen(), Peer(wire)
    guest = peer.open(listener)
    mss, small = wire.mss, wire.mss - 200
    guest.send(sent := pattern(4 * mss))
    for at in range(0, len(sent), mss):
        peer.expect("A", 1 + at, 1, sent[at : at + mss])
    peer.too_big(1300, 1 + len(sent) + 100_000)  # never said: nobody believes it (RFC 5927 §4)
    peer.nothing_more(1 + len(sent), 1, 1)
    peer.too_big(1300, 1)
    said = peer.hear()
    assert (said.seq, said.data) == (1, sent[:small])
    # One segment is sent again, and the ack of it brings on the others.
    before = len(wire.heard)
    at = small
    peer.send("A", 1, 1 + at)
    while at < len(sent):
        said = peer.hear()
        assert said.seq == 1 + at
        assert 0 < len(said.data) <= small
        assert said.data == sent[at : at + len(said.data)]
        at += len(said.data)
        peer.send("A", 1, 1 + at)
    del wire.heard[before:]  # where it cuts those, and so how many acks they bring, depends on time
    peer.clock = 1000
    peer.send("A", 1, 1 + at)
    guest.send(pattern(2 * small))
    peer.expect("A", 1 + len(sent), 1, pattern(small))
    peer.expect("A", 1 + len(sent) + small, 1, pattern(small, small))


# --- the tests


@pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("name", CASES)
def test_same_with_and_without_the_rewriter(name: str, way: Way, v6: bool) -> None:
    """What the guest says to a script, with the rewriter between, is what it says without."""
    if v6 and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")
    bare = heard_bare(name, v6=v6)
    assert heard(name, way, v6=v6) == bare
