"""The `packet` frontend against a real kernel: one end of a veth pair is the port's, the other a guest's."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fuzzing import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import CLIENT, CLIENT_MAC, GUEST, GUEST_MAC, from_client, inet_sum, pseudo, segment, udp

from lockstep.batch import MAX_BATCH, MAX_FRAME, Batch
from lockstep.capture import packet
from lockstep.capture.base import PortError, PortPermissionError
from lockstep.capture.mmsg import MSG_TRUNC, Receiving, Sending
from lockstep.capture.packet import PacketPort, with_tag
from lockstep.wire.vnet import convert

root = pytest.mark.root
PATIENCE = 20.0
UDP_SEGMENT = 103  # <linux/udp.h>

MakeNamespace = Callable[[], Any]


def mac(raw: bytes) -> str:
    return raw.hex(":")


def waiting(port: PacketPort, count: int) -> list[bytes]:
    """The next `count` frames, with their virtio-net headers."""
    frames: list[bytes] = []
    while len(frames) < count and select.select([port], [], [], PATIENCE)[0]:
        batch = port.read()
        frames += batch.frames() if batch is not None else []
    assert len(frames) == count
    return frames


def until_up(home: Any) -> None:
    """The kernel tells an end that the other is up, and has it send again, a little later: till then it drops."""
    deadline = time.monotonic() + PATIENCE
    while not all("state UP" in home.ip(f"-o link show {name}") for name in ("eth0", "far")):
        assert time.monotonic() < deadline, home.ip("-o link")
        time.sleep(0.01)


@pytest.fixture
def home(namespace: MakeNamespace) -> Any:
    """A namespace with a veth pair `eth0` (the guest's) and `far` (the port's)."""
    made = namespace()
    made.ip("link add eth0 type veth peer name far")
    for command in (
        f"link set eth0 address {mac(GUEST_MAC)} up",
        f"addr add {GUEST}/24 dev eth0",
        f"neigh add {CLIENT} lladdr {mac(CLIENT_MAC)} dev eth0",
    ):
        made.ip(command)
    return made


@pytest.fixture
def port(home: Any) -> Iterator[PacketPort]:
    with contextlib.closing(PacketPort("mirror.guest", "far", home.path)) as made:
        until_up(home)
        yield made


@pytest.fixture
def two(home: Any, port: PacketPort) -> Iterator[tuple[PacketPort, PacketPort]]:
    """A port at each end."""
    with contextlib.closing(PacketPort("mirror.network", "eth0", home.path)) as other:
        yield port, other


def guest_socket(home: Any, kind: int, address: tuple[str, int] | None = None) -> socket.socket:
    made: socket.socket = home.inside(socket.socket, socket.AF_INET, kind)
    made.settimeout(PATIENCE)
    if address:
        made.bind(address)
    return made


# Frames through the kernel.


@root
@pytest.mark.parametrize("vnet", [0, 10, 12])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_what_is_written_is_received_by_the_kernel(
    home: Any, port: PacketPort, vnet: int, kind: Callable[[bytes], Any]
) -> None:
    """Whatever buffer it lies in, whatever the size of its virtio-net header."""
    frame = udp(b"a question", source=CLIENT, destination=GUEST, sport=40000, dport=5300)
    with guest_socket(home, socket.SOCK_DGRAM, (GUEST, 5300)) as listening:
        batch = Batch.of([bytes(vnet) + frame] * 2, vnet)
        port.write(Batch(kind(batch.data), batch.lengths, vnet))
        assert [listening.recvfrom(100) for _ in range(2)] == [(b"a question", (CLIENT, 40000))] * 2
    assert (port.counters["frames_out"], port.counters["dropped_out"]) == (2, 0)


@root
def test_what_the_kernel_sends_is_read_with_its_partial_checksum(home: Any, port: PacketPort) -> None:
    with guest_socket(home, socket.SOCK_DGRAM, (GUEST, 5300)) as sending:
        sending.sendto(b"an answer", (CLIENT, 40000))
    (raw,) = waiting(port, 1)
    assert port.vnet == 10
    flags, gso_type, _, _, start, offset = struct.unpack_from("<BBHHHH", raw)
    assert (flags & 1, gso_type, start, offset) == (1, 0, 34, 6)
    assert raw[-9:] == b"an answer"
    (frame,) = convert(Batch.of([raw], 10), 0).frames()
    assert inet_sum(pseudo(GUEST, CLIENT, 17, 17) + frame[34:]) == 0xFFFF


@root
def test_frames_for_other_stations_are_seen(two: tuple[PacketPort, PacketPort]) -> None:
    port, other = two
    frame = bytes.fromhex("02aaaaaaaaaa02bbbbbbbbbb") + b"\x88\xb5" + bytes(50)
    other.write(Batch.of([frame]))
    assert waiting(port, 1) == [bytes(10) + frame]


@root
@pytest.mark.parametrize("by_another", [False, True])
def test_what_leaves_is_not_seen_again(home: Any, two: tuple[PacketPort, PacketPort], by_another: bool) -> None:
    """Neither our own frames nor what others send through the interface; plain, partial and super-frames alike."""
    port, other = two
    sender = PacketPort("other", "far", home.path) if by_another else port
    frames = [
        bytes(10) + udp(b"plain"),
        segment(1, 2, b"partial", partial=True, vnet=10),
        segment(1, 2, bytes(30_000), partial=True, vnet=10, gso_size=1448),
    ]
    for frame in frames:
        sender.write(Batch.of([frame], 10))
    seen = waiting(other, 3)
    assert [frame[10:] for frame in seen] == [frame[10:] for frame in frames]
    # The super-frame's header says how to cut it and where its checksum goes.
    assert seen[2][:10] == frames[2][:10]
    assert seen[1][0] & 1 == 1
    assert port.read() is None
    sender.close()


@root
@pytest.mark.parametrize("vlan", [(), (77,), (77, 88)], ids=["untagged", "tagged", "double"])
@pytest.mark.parametrize("gso_size", [0, 1448])
def test_a_vlan_tag_is_put_back_and_the_header_moves_along(
    two: tuple[PacketPort, PacketPort], vlan: tuple[int, ...], gso_size: int
) -> None:
    """The kernel takes the outer tag off before a packet socket sees the frame."""
    port, other = two
    frame = segment(1, 2, bytes(20_000 if gso_size else 100), partial=True, vnet=10, gso_size=gso_size, vlan=vlan)
    port.write(Batch.of([frame], 10))
    (seen,) = waiting(other, 1)
    assert seen[10:] == frame[10:]
    assert struct.unpack_from("<HH", seen, 6) == struct.unpack_from("<HH", frame, 6)
    if gso_size:
        assert seen[:10] == frame[:10]


@root
def test_the_priority_in_a_tag_and_the_other_type_of_tag_survive(two: tuple[PacketPort, PacketPort]) -> None:
    port, other = two
    plain = udp(b"x")
    for tag in (b"\x81\x00\xe0\x4d", b"\x88\xa8\x20\x4d"):
        tagged = plain[:12] + tag + plain[12:]
        port.write(Batch.of([tagged]))
        assert waiting(other, 1)[0][10:] == tagged


def test_a_tag_moves_only_what_lies_behind_it() -> None:
    """csum_start 34 and hdr_len 54 become 38 and 58; csum_offset counts from csum_start."""
    before = struct.pack("<BBHHHH", 1, 1, 54, 1448, 34, 16) + bytes(12) + b"\x08\x00rest"
    after = struct.pack("<BBHHHH", 1, 1, 58, 1448, 38, 16) + bytes(12) + b"\x81\x00\x00\x4d\x08\x00rest"
    assert with_tag(before, 0x8100, 77) == after
    assert with_tag(bytes(10) + before[10:], 0x8100, 77) == bytes(10) + after[10:]


@root
def test_a_stream_of_the_kernel_comes_in_super_frames(home: Any, port: PacketPort) -> None:
    with guest_socket(home, socket.SOCK_STREAM, (GUEST, 80)) as listening:
        listening.listen()
        port.write(Batch.of([from_client(1000, None, flags=2, options=b"\2\4\5\xb4", vnet=10, window=65535)], 10))
        answer = waiting(port, 1)[0][10:]
        theirs = int.from_bytes(answer[38:42], "big") + 1
        port.write(Batch.of([from_client(1001, theirs, vnet=10, window=65535)], 10))
        connection, _ = listening.accept()
        payload = os.urandom(14_600)
        connection.sendall(payload)  # ten segments: as many as the first window has
        segments = waiting(port, 2)
        connection.close()
    assert b"".join(raw[10 + 54 :] for raw in segments) == payload
    flags, gso_type, _, gso_size, _, _ = struct.unpack_from("<BBHHHH", segments[0])
    assert (flags & 1, gso_type, gso_size) == (1, 1, 1460)


@root
def test_a_super_frame_of_datagrams_is_read_as_its_datagrams(home: Any, port: PacketPort) -> None:
    """UDP_SEGMENT, as QUIC servers use it: 2,500 bytes in thousands are three datagrams."""
    payload = os.urandom(2500)
    with guest_socket(home, socket.SOCK_DGRAM, (GUEST, 4430)) as sending:
        sending.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sending.sendto(payload, (CLIENT, 40000))
    frames = convert(Batch.of(waiting(port, 3), 10), 0).frames()
    assert [frame[42:] for frame in frames] == [payload[:1000], payload[1000:2000], payload[2000:]]
    for frame in frames:
        assert int.from_bytes(frame[16:18], "big") == len(frame) - 14
        assert int.from_bytes(frame[38:40], "big") == len(frame) - 34
        assert inet_sum(frame[14:34]) == 0xFFFF
        assert inet_sum(pseudo(GUEST, CLIENT, 17, len(frame) - 34) + frame[34:]) == 0xFFFF


@root
def test_order_holds_and_batches_are_bounded(two: tuple[PacketPort, PacketPort]) -> None:
    """600 small frames come 256 at a time; 40 of 60,000 bytes stay below MAX_BATCH."""
    port, other = two
    small = [udp(b"%03d" % number) for number in range(600)]
    port.write(Batch.of(small))
    sizes, frames = [], []
    while (batch := other.read()) is not None:
        sizes.append(len(batch))
        frames += [frame[10:] for frame in batch.frames()]
    assert frames == small
    assert max(sizes) <= 256
    large = [segment(number, 2, bytes(60_000), partial=True, vnet=10, gso_size=1448) for number in range(40)]
    port.write(Batch.of(large, 10))
    seen = []
    while (batch := other.read()) is not None:
        assert len(batch.data) <= MAX_BATCH
        seen += batch.frames()
    assert seen == large


@root
def test_frames_that_the_kernel_refuses_cost_the_others_nothing(two: tuple[PacketPort, PacketPort]) -> None:
    port, other = two
    good = udp(b"good")
    port.write(Batch.of([b"short", good, bytes(5000), good, b"\xff", good]))
    assert [frame[10:] for frame in waiting(other, 3)] == [good] * 3
    assert (port.counters["frames_out"], port.counters["dropped_out"]) == (3, 3)


@root
def test_any_frame_is_sent_or_dropped_and_counted(port: PacketPort) -> None:
    """Garbage in a frame or in its virtio-net header raises nothing."""
    given_frames = 0

    @settings(max_examples=500)
    @given(
        st.binary(min_size=10, max_size=10)
        | st.builds(bytes.__add__, st.just(b"\1\1"), st.binary(min_size=8, max_size=8)),
        st.binary(min_size=1, max_size=200) | st.just(from_client(1, 2, bytes(3000))),
    )
    def write(header: bytes, frame: bytes) -> None:
        nonlocal given_frames
        given_frames += 1
        port.write(Batch.of([header + frame], 10))

    write()
    assert port.counters["frames_out"] + port.counters["dropped_out"] == given_frames
    assert port.counters["dropped_out"] > 0


TOLD = st.tuples(
    st.sampled_from([0, 1, 1 << 3, 1 << 4, 1 << 4 | 1 << 6]) | st.integers(0, 2**32 - 1), st.integers(0, 65535)
)
VIRTIO = st.binary(min_size=10, max_size=10) | st.builds(
    struct.Struct("<BBHHHH").pack,
    st.integers(0, 3), st.sampled_from([0, 1, 3, 4, 5, 0x81]), *[st.integers(0, 100) | st.integers(0, 65535)] * 4,
)  # fmt: skip
CARRIED = st.binary(max_size=80) | st.sampled_from(
    [udp(bytes(300)), segment(1, 2, bytes(300)), segment(1, 2, bytes(9), vlan=(5,)), bytes(MAX_FRAME)]
)


@root
@fuzz(300)
@given(st.lists(st.tuples(TOLD, VIRTIO, CARRIED, st.booleans()), min_size=1, max_size=8))
def test_whatever_the_kernel_hands_over_gives_frames_or_is_counted(
    port: PacketPort, slots: list[tuple[tuple[int, int], bytes, bytes, bool]]
) -> None:
    """Status, VLAN tag, virtio-net header, frame and MSG_TRUNC of each slot are made up."""
    kept = 0
    for n, ((status, tag), header, frame, cut) in enumerate(slots):
        data = header + frame
        port._in.data[n * packet.SLOT : n * packet.SLOT + len(data)] = data
        port._in._lengths[n], port._in._flags[n] = len(data), MSG_TRUNC if cut else 0
        packet._AUXDATA.pack_into(port._in.about, n * packet._AUXDATA.size, status, 0, 0, 0, 0, tag, tag)
        too_long = status & 1 << 4 and len(frame) + 4 > MAX_FRAME
        kept += header[1] != 5 and len(frame) >= 14 and not cut and not too_long
    before = port.counters["dropped_in"]
    frames = port._taken(len(slots))
    assert all(packet.VNET + 14 <= len(frame) <= packet.VNET + MAX_FRAME for frame in frames)
    datagrams = sum(header[1] == 5 for _, header, _, _ in slots)
    assert len(frames) >= kept
    if not datagrams:
        assert len(frames) == kept == len(slots) - (port.counters["dropped_in"] - before)


@root
def test_what_found_no_room_is_counted(two: tuple[PacketPort, PacketPort]) -> None:
    """Frames that come faster than they are read are lost in the kernel, and not silently."""
    port, other = two
    other._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 300_000)
    for _ in range(8):
        port.write(Batch.of([udp(b"x")] * 256))
    read = 0
    while (batch := other.read()) is not None:
        read += len(batch)
    assert read < 8 * 256
    assert read + other.counters["dropped_in"] == port.counters["frames_out"] == 8 * 256


@root
def test_a_fanout_group_shares_the_flows_and_hears_nothing_twice(home: Any, two: tuple[PacketPort, PacketPort]) -> None:
    sender, neighbour = two
    workers = [PacketPort("mirror.network", "eth0", home.path, fanout=7) for _ in range(2)]
    frames = [udp(bytes([flow, number]), sport=1000 + flow) for number in range(4) for flow in range(64)]
    sender.write(Batch.of(frames))
    seen = []
    for worker in workers:
        batch = worker.read()
        assert batch is not None
        seen.append([frame[10:] for frame in batch.frames()])
    assert sorted(seen[0] + seen[1]) == sorted(frames)
    flows = [{frame[-2] for frame in one} for one in seen]
    assert not flows[0] & flows[1]
    for one in seen:
        for flow in {frame[-2] for frame in one}:
            assert [frame[-1] for frame in one if frame[-2] == flow] == [0, 1, 2, 3]
    workers[0].write(Batch.of(frames))
    neighbour.write(Batch.of(frames))
    assert [worker.read() for worker in workers] == [None, None]
    for worker in workers:
        worker.close()


# Interfaces that come and go.


@root
def test_an_interface_that_goes_down_and_up_goes_on(home: Any, two: tuple[PacketPort, PacketPort]) -> None:
    port, other = two
    frame = udp(b"again")
    home.ip("link set far down")
    assert port.read() is None
    port.write(Batch.of([frame, frame]))
    assert port.counters["dropped_out"] == 2
    home.ip("link set far up")
    until_up(home)
    other.write(Batch.of([frame]))
    assert waiting(port, 1)[0][10:] == frame


@root
def test_an_interface_that_was_deleted_ends_the_port_with_an_error(home: Any, port: PacketPort) -> None:
    home.ip("link del eth0")
    with pytest.raises(PortError, match=r"mirror\.guest\.device = far was deleted; make it again"):
        port.read()


@root
def test_it_is_brought_up_and_its_mtu_set(home: Any) -> None:
    port = PacketPort("mirror.guest", "far", home.path, 9000)
    (line,) = [line for line in home.ip("-o link").splitlines() if ": far" in line]
    assert ",UP" in line
    assert "mtu 9000 " in line
    port.close()


@root
@pytest.mark.parametrize(
    ("device", "why"), [("none0", "No such device; .*`ip link`"), ("lo", "carries no Ethernet"), ("tun0", "carries no")]
)
def test_an_interface_that_is_missing_or_of_another_kind(
    home: Any, open_files: Callable[[], int], device: str, why: str
) -> None:
    home.ip("tuntap add dev tun0 mode tun")
    before = open_files()
    with pytest.raises(PortError, match=rf"mirror\.guest\.device = {device}.*{why}"):
        PacketPort("mirror.guest", device, home.path)
    assert open_files() == before


@root
def test_a_fanout_number_that_another_has_names_it(home: Any) -> None:
    first = PacketPort("mirror.guest", "far", home.path, fanout=7)
    with pytest.raises(PortError, match=r"mirror\.network\.fanout = 7: another program .*; choose another number"):
        PacketPort("mirror.network", "eth0", home.path, fanout=7)
    first.close()


@root
@pytest.mark.parametrize("missing", ["PACKET_IGNORE_OUTGOING", "PACKET_VNET_HDR"])
def test_a_kernel_that_lacks_what_is_needed_is_refused(
    home: Any, missing: str, monkeypatch: pytest.MonkeyPatch, open_files: Callable[[], int]
) -> None:
    """A number that no kernel knows stands for an option that this one doesn't have."""
    monkeypatch.setattr(packet, "NEEDED", {9999: packet.NEEDED[getattr(packet, missing)]})
    before = open_files()
    with pytest.raises(PortError, match=rf'^mirror\.guest: this kernel .*{missing}.*; choose `capture = "tap"`$'):
        PacketPort("mirror.guest", "far", home.path)
    assert open_files() == before


def test_a_user_without_the_right_is_told_which(nobody: None) -> None:
    if os.geteuid() == 0:
        pytest.skip("nobody else to be")
    with pytest.raises(PortPermissionError, match=r"mirror\.guest\.device = lo: .*CAP_NET_RAW"):
        PacketPort("mirror.guest", "lo")


# The memory that the kernel writes to.


def test_a_message_longer_than_its_slot_is_known_as_cut() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        receiving = Receiving(4, 8, 16)
        assert receiving.receive(there.fileno(), 0, 4) == 0
        for message in (b"12345678", b"123456789", b"1"):
            here.send(message)
        assert receiving.receive(there.fileno(), 1, 2) == 2
        assert receiving.receive(there.fileno(), 3, 1) == 1
        assert receiving.lengths(4)[1:] == [8, 8, 1]
        assert [bool(cut) for cut in receiving.truncated(4)][1:] == [False, True, False]
        assert receiving.data[8:25] == b"12345678123456781"


def test_a_socket_that_is_full_takes_a_beginning() -> None:
    """3,000 messages are more than one call takes, and than a socket takes."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        here.setblocking(False)
        taken, size = Sending().send(here.fileno(), Batch.of([b"%04d" % number for number in range(3000)]))
        assert 0 < taken < 3000
        assert size == 4 * taken
        assert [there.recv(10) for _ in range(taken)] == [b"%04d" % number for number in range(taken)]
        assert Sending().send(here.fileno(), Batch.of([])) == (0, 0)


def test_a_closed_socket_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        Sending().send(-1, Batch.of([b"x"]))
    with pytest.raises(OSError, match="Bad file descriptor"):
        Receiving(1, MAX_FRAME, 16).receive(-1, 0, 1)
