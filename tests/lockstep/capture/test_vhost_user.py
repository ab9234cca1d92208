"""The `vhost-user` frontend over a real socket, with a front-end and a driver written from the specifications."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from packets import CLIENT_MAC, GUEST_MAC, SYN, from_client

from bench.vhost_frontend import (
    GUEST_CSUM,
    GUEST_START,
    GUEST_TSO4,
    GUEST_USO4,
    GUEST_USO6,
    HOST_USO,
    LOG_ALL,
    PAGE,
    USUAL,
    WRITE,
    Arena,
    Driver,
    FrontEnd,
)
from lockstep.batch import Batch
from lockstep.capture import vhost_user
from lockstep.capture.base import PortError
from lockstep.capture.vhost_user import VhostUserPort
from lockstep.qemu.address import Address
from lockstep.streams import Event
from lockstep.vhost.log import atomic

DATA = GUEST_START + 0x10000
RECEIVE, TRANSMIT = GUEST_START, GUEST_START + 0x4000
FRAME = GUEST_MAC + CLIENT_MAC + b"\x88\xb5" + bytes(range(46))
NEED_REPLY = 1 | 8

Item = Batch | Event


class Guest:
    """A port, and a guest at its other end."""

    def __init__(self, folder: Path, queues: int = 1) -> None:
        self.path = folder / "vm"
        self.queues = queues
        self.arena = Arena()
        self.items: list[bytes | Event] = []
        self.restart()

    def restart(self) -> None:
        self.port = VhostUserPort("mirror.guest", Address.parse(f"unix://{self.path}"), True, self.queues)

    def turn(self) -> None:
        """Let the port do all that there is to do."""
        while select.select([self.port], [], [], 0)[0]:
            self.take(self.port.read())

    def take(self, item: Item | None) -> None:
        if isinstance(item, Batch):
            assert item.vnet in (10, 12)
            self.items += item.frames()
        elif item is not None:
            self.items.append(item)

    def connect(self, features: int = USUAL, base: int = 0) -> FrontEnd:
        front = FrontEnd(self.path, self.turn)
        front.begin(self.arena, features)
        self.receive, self.transmit = Driver(self.arena, RECEIVE, base=base), Driver(self.arena, TRANSMIT, base=base)
        front.start(0, self.receive, base)
        front.start(1, self.transmit, base)
        return front

    def say(self, *frames: bytes) -> None:
        """Put frames into the transmitting ring, without a kick."""
        self.say_with_headers(*(bytes(12) + frame for frame in frames))

    def say_with_headers(self, *frames: bytes) -> None:
        """The same, with virtio-net headers."""
        at = DATA
        for n, frame in enumerate(frames):
            self.arena.write(at, frame)
            self.transmit.describe(n, at, len(frame))
            at += len(frame)
        self.transmit.offer(*range(len(frames)))

    def offer_room(self, count: int, size: int = 2048) -> None:
        for n in range(count):
            self.receive.describe(n, DATA + 0x40000 + n * size, size, WRITE)
        self.receive.offer(*range(count))

    def heard(self) -> list[bytes]:
        """Frames in the receiving ring, one buffer each, with headers."""
        return [self.arena.read(DATA + 0x40000 + head * 2048, size) for head, size in self.receive.returned()]

    def close(self) -> None:
        self.port.close()
        self.arena.close()


@pytest.fixture
def guest(run_dir: Path) -> Iterator[Guest]:
    made = Guest(run_dir)
    yield made
    made.close()


def started() -> Event:
    return Event("guest_started", {"port": "mirror.guest"})


def stopped(why: str = "stopped") -> Event:
    return Event("guest_stopped", {"port": "mirror.guest", "why": why})


def test_frames_go_both_ways_and_are_counted(guest: Guest) -> None:
    front = guest.connect()
    guest.say(FRAME, FRAME[:60])
    front.kick(1)
    guest.turn()
    assert guest.items == [started(), bytes(12) + FRAME, bytes(12) + FRAME[:60]]
    assert front.called(1)
    guest.offer_room(2)
    guest.port.write(Batch.of([FRAME]))
    assert guest.heard() == [bytes(10) + b"\x01\0" + FRAME]
    assert front.called(0)
    counters = guest.port.counters
    assert (counters["frames_in"], counters["frames_out"], counters["dropped_out"]) == (2, 1, 0)
    front.close()


def test_what_was_transmitted_before_a_stop_is_read_before_the_stop(guest: Guest) -> None:
    front = guest.connect()
    guest.say(FRAME, FRAME)
    assert front.stop(1) == 2
    assert guest.items == [started(), bytes(12) + FRAME, bytes(12) + FRAME, stopped()]
    guest.items.clear()
    guest.say(FRAME)
    guest.turn()
    assert guest.items == [], "a stopped ring was read"
    front.start(1, guest.transmit, 2)
    guest.turn()
    assert guest.items == [started(), bytes(12) + FRAME]
    front.close()


def test_frames_wait_for_buffers_and_then_for_their_turn(guest: Guest) -> None:
    front = guest.connect()
    guest.port.write(Batch.of([FRAME, FRAME + b"2"]))
    assert (guest.heard(), guest.port.counters["waiting"]) == ([], 2)
    guest.offer_room(3)
    front.kick(0)
    guest.turn()
    assert [frame[12:] for frame in guest.heard()] == [FRAME, FRAME + b"2"]
    assert guest.port.counters["waiting"] == 0
    front.close()


def test_more_frames_than_may_wait_are_dropped(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhost_user, "MOST_WAITING", 3)
    front = guest.connect()
    guest.port.write(Batch.of([FRAME] * 5))
    assert (guest.port.counters["waiting"], guest.port.counters["dropped_out"]) == (3, 2)
    front.close()
    guest.turn()
    assert (guest.port.counters["waiting"], guest.port.counters["dropped_out"]) == (0, 5)


def test_without_a_guest_frames_are_dropped(guest: Guest) -> None:
    guest.port.write(Batch.of([FRAME]))
    assert guest.port.counters["dropped_out"] == 1


def test_a_ring_that_is_switched_off_is_emptied_and_its_frames_dropped(guest: Guest) -> None:
    front = guest.connect()
    front.send(18, struct.pack("<II", 1, 0))
    guest.say(FRAME)
    front.kick(1)
    guest.turn()
    assert guest.items == [started(), stopped()]
    assert guest.transmit.returned() == [(0, 0)]
    assert guest.port.counters["dropped_in"] == 1
    front.close()


def test_a_guest_that_cheats_loses_its_ring_and_gets_it_back_when_its_driver_starts_again(guest: Guest) -> None:
    front = guest.connect()
    guest.transmit.describe(0, 0, 60)
    guest.transmit.offer(0)
    front.kick(1)
    guest.turn()
    refused = guest.items[1]
    assert isinstance(refused, Event)
    assert (refused.name, refused.fields["ring"]) == ("guest_refused", 1)
    assert "not guest memory" in refused.fields["why"]
    assert guest.items[2:] == [stopped("refused")]
    assert guest.port.counters["broken_rings"] == 1
    guest.items.clear()
    assert front.stop(1) == 0
    guest.transmit = Driver(guest.arena, TRANSMIT)
    front.start(1, guest.transmit)
    guest.say(FRAME)
    front.kick(1)
    guest.turn()
    assert guest.items == [started(), bytes(12) + FRAME]
    front.close()


def test_a_successor_goes_on_where_the_used_index_stands(guest: Guest) -> None:
    front = guest.connect()
    guest.say(FRAME)
    front.kick(1)
    guest.turn()
    guest.port.close()
    assert front.ended()
    front.close()
    guest.items.clear()
    guest.arena.write(DATA, bytes(12) + FRAME[:59] + b"2")
    guest.transmit.offer(0)
    guest.restart()
    front = FrontEnd(guest.path, guest.turn)
    front.begin(guest.arena)
    front.start(1, guest.transmit, guest.transmit.used_index())
    guest.turn()
    assert guest.items == [started(), bytes(12) + FRAME[:59] + b"2"], "read again, or not at all"
    assert guest.transmit.returned() == [(0, 0), (0, 0)]
    front.close()


def test_a_front_end_that_goes_takes_its_guest_along(guest: Guest, open_files: Callable[[], int]) -> None:
    before = open_files()
    for _ in range(3):
        front = guest.connect()
        front.close()
        guest.turn()
    assert guest.items == [started(), stopped("disconnected")] * 3
    assert open_files() == before, "descriptors leak"


def test_as_a_client_it_connects_once_somebody_listens(run_dir: Path) -> None:
    path = run_dir / "late"
    port = VhostUserPort("mirror.guest", Address.parse(f"unix://{path}"), False)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.setblocking(False)
        for _ in range(100):
            if select.select([server], [], [], 0)[0]:
                break
            select.select([port], [], [], 0.1)
            port.read()
        made, _ = server.accept()
        made.send(struct.pack("<III", 1, 1, 0))
        port.read()
        assert made.recv(100)[:12] == struct.pack("<III", 1, 5, 8)
        made.close()
    port.close()


def test_two_queue_pairs_share_the_work(run_dir: Path) -> None:
    guest = Guest(run_dir, queues=2)
    front = guest.connect(USUAL | 1 << 22)
    assert front.ask(17) == struct.pack("<Q", 2)
    second = Driver(guest.arena, GUEST_START + 0xC000)
    front.start(3, second)
    guest.say(FRAME)
    guest.arena.write(DATA + 0x1000, bytes(12) + FRAME[::-1])
    second.describe(0, DATA + 0x1000, 72)
    second.offer(0)
    front.kick(3)
    front.kick(1)
    guest.turn()
    assert sorted(map(str, guest.items)) == sorted(map(str, [started(), bytes(12) + FRAME, bytes(12) + FRAME[::-1]]))
    front.close()
    guest.close()


def test_frames_of_one_flow_choose_the_same_ring() -> None:
    one = from_client(SYN, 1, payload=b"a")
    other = from_client(SYN, 9, payload=b"bcd")
    assert vhost_user.steer(memoryview(one), 0, len(one)) == vhost_user.steer(memoryview(other), 0, len(other))


def test_a_guest_without_offloads_gets_finished_segments(guest: Guest) -> None:
    front = guest.connect(USUAL & ~(1 << GUEST_CSUM | 1 << GUEST_TSO4))
    guest.offer_room(4)
    frame = from_client(SYN, 1, payload=bytes(range(250)))
    field = 14 + 20 + 16
    whole = bytearray(frame)
    whole[field : field + 2] = struct.pack(">H", _pseudo_sum(frame))
    guest.port.write(Batch.of([struct.pack("<BBHHHHH", 1, 1, 54, 100, 34, 16, 0) + whole], 12))
    heard = guest.heard()
    assert [frame[:12] for frame in heard] == [bytes(10) + b"\x01\0"] * 3
    payload = b""
    for part in heard:
        assert _sum(_pseudo(part[12:]) + part[12 + 34 :]) == 0xFFFF, "a wrong checksum"
        payload += part[12 + 54 :]
    assert payload == bytes(range(250))
    front.close()


USO = 1 << GUEST_USO4 | 1 << GUEST_USO6 | 1 << HOST_USO


def test_udp_super_frames_are_cut_as_the_guest_transmits_them(guest: Guest) -> None:
    front = guest.connect(USUAL | USO)
    whole = super_datagram(bytes(range(250)))
    guest.say_with_headers(bytes(12) + FRAME, USO_HEADER + whole, bytes(12) + FRAME)
    front.kick(1)
    guest.turn()
    begun, first, *parts, last = guest.items
    assert (begun, first, last) == (started(), bytes(12) + FRAME, bytes(12) + FRAME)
    assert [len(part) for part in parts] == [12 + 42 + 100, 12 + 42 + 100, 12 + 42 + 50]
    assert b"".join(bytes(part)[54:] for part in parts) == bytes(range(250))
    for number, part in enumerate(map(bytes, parts)):
        assert part[:12] == struct.pack("<BBHHHHH", 1, 0, 42, 0, 34, 6, 0)
        frame = part[12:]
        assert struct.unpack_from(">HH", frame, 16) == (len(frame) - 14, number), "length and identification"
        assert _sum(frame[14:34]) == 0xFFFF
        assert struct.unpack_from(">H", frame, 38)[0] == len(frame) - 34
        assert struct.unpack_from(">H", frame, 40)[0] == _pseudo_sum(frame), "no partial checksum"
    front.close()


def test_a_super_frame_that_can_not_be_cut_is_dropped_and_many_small_datagrams_are_many_batches(guest: Guest) -> None:
    front = guest.connect(USUAL | USO)
    guest.items.clear()
    frames = [
        struct.pack("<BBHHHHH", 1, 5, 42, size, 34, 6, 0) + super_datagram(bytes(60_000)) for size in (0, 1, 30, 40, 50)
    ]
    guest.say_with_headers(*frames)
    front.kick(1)
    guest.turn()
    assert guest.port.counters["dropped_in"] == 2  # no size at all, and 60,000 datagrams of one byte
    sizes = [len(frame) - 54 for frame in guest.items if isinstance(frame, bytes)]
    assert (sizes.count(30), sizes.count(40), sizes.count(50), sum(sizes)) == (2000, 1500, 1200, 180_000)
    front.close()


@pytest.mark.parametrize("features", [USUAL | USO, USUAL])
def test_udp_super_frames_reach_a_guest_that_takes_them_whole_and_others_cut(guest: Guest, features: int) -> None:
    front = guest.connect(features)
    guest.offer_room(4)
    guest.port.write(Batch.of([USO_HEADER + super_datagram(bytes(range(250)))], 12))
    heard = guest.heard()
    if features & USO:
        assert [frame[:10] for frame in heard] == [USO_HEADER[:10]]
    else:
        assert [len(frame) - 54 for frame in heard] == [100, 100, 50]
        assert {frame[:2] for frame in heard} == {b"\1\0"}
    front.close()


USO_HEADER = struct.pack("<BBHHHHH", 1, 5, 42, 100, 34, 6, 0)


def super_datagram(payload: bytes) -> bytes:
    """Many datagrams of the guest's in one, as its kernel hands them over: the checksum is the pseudo-header's."""
    udp = struct.pack(">HHHH", 5000, 6000, 8 + len(payload), 0)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0, b"\x0a\x4d\0\2", b"\x0a\x4d\0\1")
    ip = ip[:10] + struct.pack(">H", _sum(ip) ^ 0xFFFF) + ip[12:]
    frame = CLIENT_MAC + GUEST_MAC + b"\x08\0" + ip + udp + payload
    return frame[:40] + struct.pack(">H", _pseudo_sum(frame)) + frame[42:]


def test_what_came_before_a_broken_chain_arrives_whole(guest: Guest) -> None:
    front = guest.connect()
    guest.say(FRAME, FRAME)
    guest.transmit.describe(1, 0xDEAD_0000, 100)
    front.kick(1)
    guest.turn()
    begun, frame, refused, *_ = guest.items
    assert (begun, frame) == (started(), bytes(12) + FRAME)
    assert isinstance(refused, Event)
    assert refused.name == "guest_refused"
    front.close()


def _pseudo(frame: bytes) -> bytes:
    return frame[26:34] + b"\0" + frame[23:24] + struct.pack(">H", len(frame) - 34)


def _sum(data: bytes) -> int:
    """The sum of RFC 1071, word by word."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _pseudo_sum(frame: bytes) -> int:
    return _sum(_pseudo(frame))


def test_an_announcement_comes_behind_what_the_guest_transmitted(guest: Guest) -> None:
    front = guest.connect()
    guest.say(FRAME)
    front.kick(1)
    front.send(19, GUEST_MAC + b"\0\0")
    *_, before, said = guest.items
    assert before == bytes(12) + FRAME
    arp = bytes.fromhex("0001080006040003") + GUEST_MAC + bytes(4) + GUEST_MAC + bytes(4)
    assert said == bytes(12) + (b"\xff" * 6 + GUEST_MAC + b"\x80\x35" + arp).ljust(60, b"\0")
    front.close()


# --- the dirty log


@pytest.mark.skipif(not atomic(), reason="plain Python has no atomic OR, so it offers no dirty log")
def test_every_page_that_is_written_is_logged_and_no_other(guest: Guest) -> None:
    front = guest.connect(USUAL | 1 << LOG_ALL)
    pages = (GUEST_START + guest.arena.size) // PAGE
    with os.fdopen(os.memfd_create("log"), "r+b") as log:
        log.truncate(pages // 8)
        front.ask(6, struct.pack("<QQ", pages // 8, 0), (log.fileno(),))
        for index, driver in ((0, guest.receive), (1, guest.transmit)):
            front.place(index, driver, log=driver.used)
        guest.receive.describe(0, DATA + PAGE - 20, 2 * PAGE, WRITE)
        guest.receive.offer(0)
        guest.port.write(Batch.of([FRAME + bytes(PAGE)]))
        guest.say(FRAME)
        front.kick(1)
        guest.turn()
        bits = os.pread(log.fileno(), pages // 8, 0)
    dirty = {n for n in range(pages) if bits[n // 8] >> n % 8 & 1}
    data = DATA // PAGE
    rings = {(driver.used + 4) // PAGE for driver in (guest.receive, guest.transmit)}
    assert dirty == {data, data + 1, data + 2} | rings | {(guest.transmit.used + 4 + 8 * 64) // PAGE}
    front.close()


@pytest.mark.skipif(not atomic(), reason="plain Python has no atomic OR, so it offers no dirty log")
def test_a_write_that_can_not_be_logged_breaks_the_ring(guest: Guest) -> None:
    front = guest.connect(USUAL | 1 << LOG_ALL)
    with os.fdopen(os.memfd_create("log"), "r+b") as log:
        log.truncate(64)
        front.ask(6, struct.pack("<QQ", 64, 0), (log.fileno(),))
    guest.offer_room(1)
    guest.port.write(Batch.of([FRAME]))
    guest.turn()
    assert guest.port.counters["broken_rings"] == 1
    front.close()


@pytest.mark.skipif(atomic(), reason="compiled code has what it takes to log")
def test_plain_python_offers_no_log(guest: Guest) -> None:
    front = FrontEnd(guest.path, guest.turn)
    assert not struct.unpack("<Q", front.ask(1))[0] >> LOG_ALL & 1
    assert not struct.unpack("<Q", front.ask(15))[0] >> 1 & 1
    front.close()


# --- what a front-end must not do

REGION = struct.pack("<QQQQ", GUEST_START, PAGE, 0x1000, 0)
BAD = {
    "unknown request": (99, b"", 0, 1),
    "another version": (1, b"", 0, 2),
    "a reply": (1, b"", 0, 5),
    "payload too short": (2, b"1234567", 0, 1),
    "payload too long": (1, b"12345678", 0, 1),
    "features never offered": (2, struct.pack("<Q", 1 << 63), 0, 1),
    "protocol features never offered": (16, struct.pack("<Q", 1 << 40), 0, 1),
    "table with too few descriptors": (5, struct.pack("<II", 2, 0) + REGION * 2, 1, 1),
    "table of another size": (5, struct.pack("<II", 1, 0) + REGION * 2, 1, 1),
    "descriptors nobody asked for": (1, b"", 2, 1),
    "memory behind the file's end": (5, struct.pack("<IIQQQQ", 1, 0, GUEST_START, PAGE, 0, 2 << 20), 1, 1),
    "memory over the last address": (5, struct.pack("<IIQQQQ", 1, 0, 2**64 - PAGE, 2 * PAGE, 0, 0), 1, 1),
    "overlapping memory": (5, struct.pack("<II", 2, 0) + REGION * 2, 2, 1),
    "a region that isn't there": (38, bytes(8) + REGION, 0, 1),
    "ring of 3": (8, struct.pack("<II", 0, 3), 0, 1),
    "ring of 2048": (8, struct.pack("<II", 0, 2048), 0, 1),
    "no such ring": (8, struct.pack("<II", 2, 64), 0, 1),
    "kick of no such ring": (12, struct.pack("<Q", 200), 1, 1),
    "kick without addresses": (12, struct.pack("<Q", 0), 1, 1),
    "polling": (12, struct.pack("<Q", 0x100), 0, 1),
    "kick without descriptor": (12, struct.pack("<Q", 0), 0, 1),
    "call of no such ring": (13, struct.pack("<Q", 9), 1, 1),
    "call by a file": (13, struct.pack("<Q", 0), 1, 1),
    "error by a file": (14, struct.pack("<Q", 0), 1, 1),
    "index of 17 bits": (10, struct.pack("<II", 0, 0x10000), 0, 1),
    "log behind the file's end": (6, struct.pack("<QQ", 1 << 40, 0), 1, 1),
}


@pytest.mark.parametrize("deed", BAD)
def test_a_front_end_that_breaks_the_protocol_is_let_go(guest: Guest, deed: str, open_files: Callable[[], int]) -> None:
    before = open_files()
    request, payload, fds, flags = BAD[deed]
    front = FrontEnd(guest.path, guest.turn)
    front.send(3)
    front.send(request, payload, (guest.arena.fd,) * fds, flags)
    assert front.ended()
    front.close()
    guest.turn()
    assert [item.name for item in guest.items if isinstance(item, Event)] == ["guest_refused"]
    assert guest.port.counters["refused_sessions"] == 1
    assert open_files() == before, "descriptors leak"
    again = guest.connect()
    assert guest.items[-1] == started()
    again.close()


def test_a_fault_in_memory_is_told_to_whoever_wants_an_answer(guest: Guest) -> None:
    front = guest.connect()
    answer = front.ask(37, bytes(8) + REGION, (guest.arena.fd,), NEED_REPLY)
    assert answer == struct.pack("<Q", 1), "it overlaps"
    assert front.ask(3, flags=NEED_REPLY) == struct.pack("<Q", 0)
    front.close()


def test_memory_may_come_and_go_while_rings_run(guest: Guest) -> None:
    front = guest.connect()
    more = Arena(PAGE)
    region = struct.pack("<QQQQ", GUEST_START + 0x10_0000_0000, PAGE, 0x1000, more.offset)
    assert struct.unpack("<Q", front.ask(36))[0] >= 8
    assert front.ask(37, bytes(8) + region, (more.fd,), NEED_REPLY) == bytes(8)
    more.write(GUEST_START, bytes(12) + FRAME)
    guest.transmit.describe(0, GUEST_START + 0x10_0000_0000, 72)
    guest.transmit.offer(0)
    front.kick(1)
    guest.turn()
    assert guest.items == [started(), bytes(12) + FRAME]
    assert front.ask(38, bytes(8) + region, (), NEED_REPLY) == bytes(8)
    guest.transmit.offer(0)
    front.kick(1)
    guest.turn()
    assert guest.port.counters["broken_rings"] == 1
    more.close()
    front.close()


def test_a_region_that_is_told_for_each_queue_pair_stays_until_the_last_takes_it_back(guest: Guest) -> None:
    """As QEMU before 9.2 does. Another file at the same addresses is another region."""
    front = guest.connect()
    more = Arena(PAGE)
    region = struct.pack("<QQQQ", GUEST_START + 0x10_0000_0000, PAGE, 0x1000, more.offset)
    more.write(GUEST_START, bytes(12) + FRAME)
    guest.transmit.describe(0, GUEST_START + 0x10_0000_0000, 72)
    for _ in range(2):
        assert front.ask(37, bytes(8) + region, (more.fd,), NEED_REPLY) == bytes(8)
    assert front.ask(37, bytes(8) + region, (guest.arena.fd,), NEED_REPLY) == struct.pack("<Q", 1)
    for _ in range(2):
        guest.transmit.offer(0)
        front.kick(1)
        guest.turn()
        assert front.ask(38, bytes(8) + region, (), NEED_REPLY) == bytes(8)
    assert guest.items == [started(), bytes(12) + FRAME, bytes(12) + FRAME]
    guest.transmit.offer(0)
    front.kick(1)
    guest.turn()
    assert guest.port.counters["broken_rings"] == 1
    more.close()
    front.close()


def test_a_message_may_come_in_pieces(guest: Guest) -> None:
    front = FrontEnd(guest.path, guest.turn)
    for byte in struct.pack("<III", 1, 1, 0):
        front.socket.send(bytes([byte]))
        guest.turn()
    assert front.socket.recv(100)[:4] == b"\x01\0\0\0"
    front.close()


def test_a_path_over_tcp_is_refused() -> None:
    with pytest.raises(PortError, match="memory can't be shared"):
        VhostUserPort("mirror.guest", Address.parse("tcp://127.0.0.1:1"), True)


MESSAGES = st.tuples(
    st.one_of(st.integers(1, 41), st.integers(0, 2**32 - 1)),
    st.one_of(
        st.binary(max_size=64),
        st.builds(struct.Struct("<II").pack, st.integers(0, 4), st.sampled_from([0, 1, 2, 64, 128, 0x10000])),
        st.builds(struct.Struct("<Q").pack, st.one_of(st.integers(0, 3), st.just(USUAL), st.integers(0, 2**64 - 1))),
        st.just(struct.pack("<IIQQQQ", 1, 0, GUEST_START, 1 << 20, 0x7F00_0000_0000, PAGE)),
        st.builds(
            struct.Struct("<IIQQQQ").pack,
            st.integers(0, 3), st.integers(0, 1), *[st.sampled_from([0x7F00_0000_0000, 0x7F00_0000_4000, 1])] * 3,
            st.integers(0, 2**64 - 1),
        ),
    ),
    st.integers(0, 2),
    st.sampled_from([1, 1, 1, 9, 0]),
)  # fmt: skip


@fuzz(100)
@given(st.lists(MESSAGES, max_size=12), st.booleans())
def test_no_messages_whatever_they_are_bring_the_port_down(
    guest: Guest, messages: list[tuple[int, bytes, int, int]], whole: bool
) -> None:
    front = guest.connect() if whole else FrontEnd(guest.path, guest.turn)
    try:
        for request, payload, fds, flags in messages:
            front.send(request, payload, (guest.arena.fd,) * fds, flags)
            guest.port.write(Batch.of([FRAME]))
    except (BrokenPipeError, ConnectionResetError):
        assert front.ended()
    finally:
        front.close()
    guest.turn()
    assert guest.arena.untouched()
    assert guest.port.counters["waiting"] == 0
    guest.items.clear()


HEADS = st.builds(struct.Struct("<III").pack, st.integers(0, 41), st.sampled_from([1, 9]), st.integers(0, 300))


@fuzz(100)
@given(pieces=st.lists(st.tuples(HEADS | st.binary(min_size=1, max_size=80), st.integers(0, 9)), max_size=12))
def test_no_bytes_however_they_are_cut_bring_the_port_down(
    guest: Guest, pieces: list[tuple[bytes, int]], open_files: Callable[[], int]
) -> None:
    """Descriptors come along with any of them, more than any message may have as well."""
    before = open_files()
    front = FrontEnd(guest.path, guest.turn)
    try:
        for data, fds in pieces:
            socket.send_fds(front.socket, [data], [guest.arena.fd] * fds)
            guest.turn()
    except (BrokenPipeError, ConnectionResetError):
        assert front.ended()
    finally:
        front.close()
    guest.turn()
    assert guest.arena.untouched()
    assert open_files() == before, "descriptors leak"
    guest.items.clear()
