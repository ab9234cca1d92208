"""The `tap` frontend against a real kernel, in network namespaces of the test's own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import CLIENT, CLIENT6, CLIENT_MAC, GUEST, GUEST6, GUEST_MAC, SYN, from_client, inet_sum, pseudo, udp

from lockstep.batch import Batch
from lockstep.capture import tap
from lockstep.capture.base import PortError, PortPermissionError
from lockstep.capture.tap import TapPort
from lockstep.wire.vnet import convert

pytestmark = pytest.mark.root

PATIENCE = 20.0
MSS = b"\x02\x04\x05\xb4"  # 1460

MakeNamespace = Callable[[], Any]


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def mac(raw: bytes) -> str:
    return raw.hex(":")


class Wire:
    """A TAP device in a namespace with the guest's addresses; the test plays the client at its other end."""

    def __init__(self, namespace: Any, device: str = "tap0") -> None:
        self.namespace = namespace
        self.device = device
        self.port = TapPort("mirror.guest", device, namespace.path)
        for command in (
            f"link set {device} address {mac(GUEST_MAC)}",
            f"addr add {GUEST}/24 dev {device}",
            f"neigh add {CLIENT} lladdr {mac(CLIENT_MAC)} dev {device}",
        ):
            namespace.ip(command)

    def with_ipv6(self) -> None:
        self.namespace.run("sysctl", "-qw", f"net.ipv6.conf.{self.device}.disable_ipv6=0")
        self.namespace.ip(f"addr add {GUEST6}/64 dev {self.device} nodad")
        self.namespace.ip(f"neigh add {CLIENT6} lladdr {mac(CLIENT_MAC)} dev {self.device}")
        # The kernel sees to that a moment later, and until then it answers nobody.
        until(lambda: not self.namespace.ip(f"-6 addr show dev {self.device} to {GUEST6} tentative"))

    def socket(self, kind: int, address: tuple[str, int] | None = None) -> socket.socket:
        """A socket of the guest's kernel."""
        family = socket.AF_INET6 if address and ":" in address[0] else socket.AF_INET
        made: socket.socket = self.namespace.inside(socket.socket, family, kind)
        made.settimeout(PATIENCE)
        if address:
            made.bind(address)
        return made

    def frames(self) -> Iterator[bytes]:
        """What the guest's kernel sends, with virtio-net headers."""
        while select.select([self.port], [], [], PATIENCE)[0]:
            batch = self.port.read()
            if batch is not None:
                yield from batch.frames()
        pytest.fail("nothing came any more")

    def tcp(self) -> Iterator[tuple[bytes, int, int, int, bytes]]:
        """TCP segments among them: virtio-net header, seq, ack, flags, payload."""
        for raw in self.frames():
            header, frame = raw[:10], raw[10:]
            ethertype = frame[12:14]
            if ethertype == b"\x08\0" and frame[23] == 6:
                at, end = 14 + 4 * (frame[14] & 15), 14 + int.from_bytes(frame[16:18], "big")
            elif ethertype == b"\x86\xdd" and frame[20] == 6:
                at, end = 54, 54 + int.from_bytes(frame[18:20], "big")
            else:
                continue
            seq, ack, offset, flags = struct.unpack_from(">IIBB", frame, at + 4)
            yield header, seq, ack, flags, frame[at + (offset >> 4) * 4 : end]

    def close(self) -> None:
        self.port.close()


@pytest.fixture
def wire(namespace: MakeNamespace) -> Iterator[Wire]:
    with contextlib.closing(Wire(namespace())) as made:
        yield made


def links(namespace: Any) -> str:
    return str(namespace.ip("-o link"))


# Frames through the kernel.


@pytest.mark.parametrize("vnet", [0, 10, 12])
def test_a_frame_that_is_written_is_received_by_the_kernel(wire: Wire, vnet: int) -> None:
    """Whatever the size of its virtio-net header."""
    with wire.socket(socket.SOCK_DGRAM, (GUEST, 5300)) as listening:
        frame = udp(b"a question", source=CLIENT, destination=GUEST, sport=40000, dport=5300)
        wire.port.write(Batch.of([bytes(vnet) + frame], vnet))
        assert listening.recvfrom(100) == (b"a question", (CLIENT, 40000))
    assert wire.port.counters["frames_out"] == 1
    assert wire.port.counters["dropped_out"] == 0


def test_frames_of_a_batch_arrive_in_its_order(wire: Wire) -> None:
    texts = [b"%d" % number for number in range(100)]
    with wire.socket(socket.SOCK_DGRAM, (GUEST, 5300)) as listening:
        wire.port.write(Batch.of([udp(text, source=CLIENT, destination=GUEST, dport=5300) for text in texts]))
        assert [listening.recv(100) for _ in texts] == texts


def test_what_the_kernel_sends_is_read_with_its_virtio_header(wire: Wire) -> None:
    """Its checksum is partial, as the header says; without the header it is finished."""
    with wire.socket(socket.SOCK_DGRAM, (GUEST, 5300)) as sending:
        sending.sendto(b"an answer", (CLIENT, 40000))
        raw = next(wire.frames())
    assert wire.port.vnet == 10
    flags, gso_type, _, _, start, offset = struct.unpack_from("<BBHHHH", raw)
    assert (flags & 1, gso_type, start, offset) == (1, 0, 34, 6)
    assert raw[10:16] == CLIENT_MAC
    assert raw[-9:] == b"an answer"
    (frame,) = convert(Batch.of([raw], 10), 0).frames()
    assert inet_sum(pseudo(GUEST, CLIENT, 17, 17) + frame[34:]) == 0xFFFF
    assert wire.port.counters["frames_in"] == 1


def test_a_batch_holds_what_was_waiting_in_order(wire: Wire) -> None:
    with wire.socket(socket.SOCK_DGRAM, (GUEST, 5300)) as sending:
        for number in range(600):
            sending.sendto(b"%03d" % number, (CLIENT, 40000))
    sizes, texts = [], []
    while (batch := wire.port.read()) is not None:
        sizes.append(len(batch))
        texts += [frame[-3:] for frame in batch.frames()]
    assert texts == [b"%03d" % number for number in range(600)]
    assert sizes == [256, 256, 88]


def test_a_port_is_readable_while_frames_wait(wire: Wire) -> None:
    assert not select.select([wire.port], [], [], 0)[0]
    assert wire.port.read() is None
    with wire.socket(socket.SOCK_DGRAM, (GUEST, 5300)) as sending:
        sending.sendto(b"x", (CLIENT, 40000))
    assert select.select([wire.port], [], [], PATIENCE)[0]
    assert wire.port.read() is not None
    assert not select.select([wire.port], [], [], 0)[0]


# Super-frames.


class Client:
    """A TCP connection of the test, by hand, to the guest's kernel."""

    def __init__(self, wire: Wire, v6: bool) -> None:
        self.wire, self.v6 = wire, v6
        if v6:
            wire.with_ipv6()
        with wire.socket(socket.SOCK_STREAM, (GUEST6 if v6 else GUEST, 80)) as listening:
            listening.listen()
            self.say(1000, None, flags=SYN, options=MSS)
            self.incoming = wire.tcp()
            _, seq, ack, flags, _ = next(self.incoming)
            assert (ack, flags & 0x3F) == (1001, 0x12)
            self.theirs = seq + 1
            self.say(1001, self.theirs)
            self.connection, _ = listening.accept()
        self.connection.settimeout(PATIENCE)

    def say(self, seq: int, ack: int | None, payload: bytes = b"", **more: Any) -> None:
        raw = from_client(seq, ack, payload, v6=self.v6, vnet=10, window=65535, **more)
        self.wire.port.write(Batch.of([raw], 10))


@pytest.fixture(params=[False, True], ids=["ipv4", "ipv6"])
def client(request: pytest.FixtureRequest, wire: Wire) -> Iterator[Client]:
    made = Client(wire, request.param)
    yield made
    made.connection.close()


def test_a_super_frame_that_is_written_is_received_whole(client: Client) -> None:
    """Its partial checksum and its size are no matter to the kernel: the virtio-net header says so."""
    payload = os.urandom(30_000)
    client.say(1001, client.theirs, payload, partial=True, gso_size=1448)
    got = b""
    while len(got) < len(payload):
        got += client.connection.recv(65_536)
    assert got == payload


def test_a_super_frame_that_the_kernel_sends_is_read_whole(client: Client) -> None:
    payload = os.urandom(60_000)
    client.connection.sendall(payload)
    header, seq, _, _, sent = next(segment for segment in client.incoming if segment[4])
    flags, gso_type, _, gso_size, _, _ = struct.unpack("<BBHHHH", header)
    assert seq == client.theirs
    assert len(sent) > 2 * 1460
    assert sent == payload[: len(sent)]
    assert (flags & 1, gso_type, gso_size) == (1, 4 if client.v6 else 1, 1440 if client.v6 else 1460)


def test_a_stream_between_two_kernels_passes_through_two_ports(namespace: MakeNamespace) -> None:
    """Both ways at once, every byte, in super-frames."""
    here, there = Wire(namespace()), Wire(namespace())
    for wire, own, other in ((here, CLIENT, GUEST), (there, GUEST, CLIENT)):
        wire.namespace.ip("addr flush dev tap0")
        wire.namespace.ip("neigh flush dev tap0")
        wire.namespace.ip(f"addr add {own}/24 dev tap0")
        wire.namespace.ip(f"neigh replace {other} lladdr {mac(GUEST_MAC)} dev tap0")
    payload = os.urandom(1 << 20) * 4
    digests: list[bytes] = []
    problems: list[BaseException] = []

    def receive(connection: socket.socket) -> None:
        digest = hashlib.sha256()
        while data := connection.recv(1 << 16):
            digest.update(data)
        digests.append(digest.digest())

    def speak(connection: socket.socket) -> None:
        try:
            receiving = threading.Thread(target=receive, args=(connection,))
            receiving.start()
            connection.sendall(payload)
            connection.shutdown(socket.SHUT_WR)
            receiving.join()
            connection.close()
        except BaseException as problem:
            problems.append(problem)

    def serve(listening: socket.socket) -> None:
        with listening:
            speak(listening.accept()[0])

    listening = there.socket(socket.SOCK_STREAM, (GUEST, 80))
    listening.listen()
    calling = here.socket(socket.SOCK_STREAM)

    def call() -> None:
        calling.connect((GUEST, 80))
        speak(calling)

    threads = [threading.Thread(target=serve, args=(listening,)), threading.Thread(target=call)]
    for thread in threads:
        thread.start()
    longest = 0
    deadline = time.monotonic() + 2 * PATIENCE
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        for port in select.select([here.port, there.port], [], [], 0.05)[0]:
            batch = port.read()
            if batch is not None:
                longest = max(longest, *batch.lengths)
                (there.port if port is here.port else here.port).write(batch)
    for thread in threads:
        thread.join(1)
    here.close()
    there.close()
    assert problems == []
    assert digests == [hashlib.sha256(payload).digest()] * 2
    assert longest > 10 + 14 + 1500


# Frames that the kernel refuses.


def test_any_frame_is_sent_or_dropped_and_counted(wire: Wire) -> None:
    """Garbage in a frame or in its virtio-net header raises nothing."""
    given_frames = 0

    @settings(max_examples=300)
    @given(
        st.binary(min_size=10, max_size=10)
        | st.builds(bytes.__add__, st.just(b"\1\1"), st.binary(min_size=8, max_size=8)),
        st.binary(min_size=1, max_size=200) | st.just(from_client(1, 2, bytes(3000))),
    )
    def write(header: bytes, frame: bytes) -> None:
        nonlocal given_frames
        given_frames += 1
        wire.port.write(Batch.of([header + frame], 10))

    write()
    counted = wire.port.counters
    assert counted["frames_out"] + counted["dropped_out"] == given_frames
    assert counted["dropped_out"] > 0


def test_a_frame_that_the_kernel_refuses_costs_the_others_nothing(wire: Wire) -> None:
    good = udp(b"good", source=CLIENT, destination=GUEST, dport=5300)
    with wire.socket(socket.SOCK_DGRAM, (GUEST, 5300)) as listening:
        wire.port.write(Batch.of([b"short", good, b"\xff", good]))
        assert [listening.recv(100), listening.recv(100)] == [b"good", b"good"]
    assert (wire.port.counters["frames_out"], wire.port.counters["dropped_out"]) == (2, 2)


def test_frames_for_a_device_that_is_down_are_dropped_and_counted_as_that_alone(wire: Wire) -> None:
    wire.namespace.ip("link set tap0 down")
    frame = udp(b"x", source=CLIENT, destination=GUEST)
    wire.port.write(Batch.of([frame, frame]))
    assert wire.port.counters["dropped_out"] == 2
    assert (wire.port.counters["frames_out"], wire.port.counters["bytes_out"]) == (0, 0)


def test_a_device_that_comes_up_again_goes_on(wire: Wire) -> None:
    wire.namespace.ip("link set tap0 down")
    assert wire.port.read() is None
    wire.namespace.ip("link set tap0 up")
    with wire.socket(socket.SOCK_DGRAM, (GUEST, 5300)) as listening:
        wire.port.write(Batch.of([udp(b"again", source=CLIENT, destination=GUEST, dport=5300)]))
        assert listening.recv(100) == b"again"


def test_a_device_that_was_deleted_ends_the_port_with_an_error(namespace: MakeNamespace) -> None:
    """Its descriptor wakes whoever polls it, for ever: without an end the loop would spin."""
    home = namespace()
    port = TapPort("mirror.guest", "tap0", home.path)
    home.ip("link del tap0")
    with contextlib.closing(port), pytest.raises(PortError, match=r"mirror\.guest.*tap0"):
        port.read()
    port.close()


# Opening.


def test_a_device_that_does_not_exist_is_made_brought_up_and_goes_with_the_port(namespace: MakeNamespace) -> None:
    home = namespace()
    assert "tap9" not in links(home)
    port = TapPort("mirror.guest", "tap9", home.path)
    (line,) = [line for line in links(home).splitlines() if "tap9" in line]
    assert ",UP" in line
    port.close()
    until(lambda: "tap9" not in links(home))


def test_a_device_that_exists_is_attached_to_and_keeps_its_addresses(namespace: MakeNamespace) -> None:
    home = namespace()
    home.ip("tuntap add dev tap0 mode tap vnet_hdr")
    home.ip(f"addr add {GUEST}/24 dev tap0")
    home.ip(f"link set tap0 address {mac(GUEST_MAC)}")
    for number in range(2):
        port = TapPort("mirror.guest", "tap0", home.path)
        with home.inside(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as listening:
            listening.settimeout(PATIENCE)
            listening.bind((GUEST, 5300))
            port.write(Batch.of([udp(b"%d" % number, source=CLIENT, destination=GUEST, dport=5300)]))
            assert listening.recv(100) == b"%d" % number
        port.close()
        assert f"inet {GUEST}/24" in home.ip("addr show dev tap0")
        assert mac(GUEST_MAC) in links(home)


def test_a_port_closed_twice_is_closed_once(namespace: MakeNamespace) -> None:
    port = TapPort("mirror.guest", "tap0", namespace().path)
    number = port.fileno()
    port.close()
    reader, writer = os.pipe()  # takes the number, maybe
    port.close()
    for descriptor in (reader, writer):
        os.fstat(descriptor)
        os.close(descriptor)
    assert port.fileno() == -1
    assert number >= 0


def test_the_device_lies_in_the_namespace_alone(namespace: MakeNamespace) -> None:
    here, there = namespace(), namespace()
    port = here.inside(TapPort, "mirror.guest", "ls-tap5", there.path)
    assert "ls-tap5" in links(there)
    assert "ls-tap5" not in links(here)
    assert not Path("/sys/class/net/ls-tap5").exists()
    port.close()


def test_without_a_namespace_it_lies_in_this_one(namespace: MakeNamespace) -> None:
    here = namespace()
    port = here.inside(TapPort, "mirror.guest", "tap5")
    assert "tap5" in links(here)
    port.close()


def test_a_namespace_may_be_given_by_pid(namespace: MakeNamespace) -> None:
    home = namespace()
    port = TapPort("mirror.guest", "tap0", str(home.pid))
    assert "tap0" in links(home)
    port.close()


def test_the_mtu_is_set(namespace: MakeNamespace) -> None:
    home = namespace()
    port = TapPort("mirror.guest", "tap0", home.path, 9000)
    assert "mtu 9000 " in links(home)
    port.close()


def test_an_mtu_that_the_kernel_refuses_names_it_and_holds_nothing(
    namespace: MakeNamespace, open_files: Callable[[], int]
) -> None:
    home = namespace()
    before = open_files()
    with pytest.raises(PortError, match=r"mirror\.guest\.device = tap0: .*mtu"):
        TapPort("mirror.guest", "tap0", home.path, 65_535)
    assert open_files() == before
    until(lambda: "tap0" not in links(home))


def test_a_device_that_another_has_names_the_setting_and_a_way_out(
    namespace: MakeNamespace, open_files: Callable[[], int]
) -> None:
    home = namespace()
    first = TapPort("mirror.guest", "tap0", home.path)
    before = open_files()
    with pytest.raises(PortError, match=r"rewriter\.guest\.device = tap0 in .*another process has it; stop that one"):
        TapPort("rewriter.guest", "tap0", home.path)
    assert open_files() == before
    first.close()


@pytest.mark.parametrize("device", ["lo", "tun0", "many0"])
def test_a_device_that_is_no_tap_names_the_setting_and_a_way_out(namespace: MakeNamespace, device: str) -> None:
    """Another kind of device, a TUN, and a TAP with many queues."""
    home = namespace()
    home.ip("tuntap add dev tun0 mode tun")
    home.ip("tuntap add dev many0 mode tap multi_queue")
    way_out = r"it exists and is no TAP with vnet_hdr; remake it with `ip tuntap add mode tap vnet_hdr`, or set"
    with pytest.raises(PortError, match=rf"mirror\.guest\.device = {device} in .*{way_out}"):
        TapPort("mirror.guest", device, home.path)


def test_a_device_with_many_queues_gives_each_flow_to_one_port(namespace: MakeNamespace) -> None:
    """The kernel spreads by hash, and writes of both arrive."""
    home = namespace()
    home.ip("tuntap add dev tap0 mode tap vnet_hdr multi_queue")
    ports = [TapPort("mirror.guest", "tap0", home.path, multi_queue=True) for _ in range(2)]
    home.ip(f"link set tap0 address {mac(GUEST_MAC)}")
    for command in (f"addr add {GUEST}/24 dev tap0", f"neigh add {CLIENT} lladdr {mac(CLIENT_MAC)} dev tap0"):
        home.ip(command)
    for flow in range(64):
        with home.inside(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.bind((GUEST, 20000 + flow))
            for number in range(3):
                sending.sendto(bytes([flow, number]), (CLIENT, 40000))
    seen = []
    for port in ports:
        batch = port.read()
        assert batch is not None
        seen.append([(frame[-2], frame[-1]) for frame in batch.frames()])
    assert sorted(seen[0] + seen[1]) == [(flow, number) for flow in range(64) for number in range(3)]
    assert not {flow for flow, _ in seen[0]} & {flow for flow, _ in seen[1]}
    with home.inside(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.settimeout(PATIENCE)
        listening.bind((GUEST, 5300))
        for port in ports:
            port.write(Batch.of([udp(b"hello", source=CLIENT, destination=GUEST, dport=5300)]))
            assert listening.recv(100) == b"hello"
            port.close()


def test_a_persistent_device_outlives_its_port(namespace: MakeNamespace) -> None:
    home = namespace()
    TapPort("mirror.guest", "tap0", home.path, persistent=True).close()
    home.ip(f"addr add {GUEST}/24 dev tap0")
    TapPort("mirror.guest", "tap0", home.path).close()
    assert f"inet {GUEST}/24" in home.ip("addr show dev tap0")


def test_a_device_with_one_queue_is_none_of_many(namespace: MakeNamespace) -> None:
    home = namespace()
    home.ip("tuntap add dev tap0 mode tap vnet_hdr")
    with pytest.raises(PortError, match=r"remake it with `ip tuntap add mode tap vnet_hdr multi_queue`"):
        TapPort("mirror.guest", "tap0", home.path, multi_queue=True)


def test_a_machine_without_the_tun_module_is_told_to_load_it(
    monkeypatch: pytest.MonkeyPatch, namespace: MakeNamespace, tmp_path: Path
) -> None:
    monkeypatch.setattr(tap, "DEVICE", str(tmp_path / "tun"))
    with pytest.raises(PortError, match=r"mirror\.guest: .*No such file or directory; load the `tun` module"):
        TapPort("mirror.guest", "tap0", namespace().path)


def test_a_device_file_that_may_not_be_opened_is_a_permission_error(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path, nobody: None
) -> None:
    monkeypatch.setattr(tap, "DEVICE", "/proc/1/mem")
    with pytest.raises(PortPermissionError, match=r"mirror\.guest: .*Permission denied; run as root, or give this"):
        TapPort("mirror.guest", "ls-tap6")


def test_a_device_that_may_not_be_made_is_a_permission_error(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path, request: pytest.FixtureRequest
) -> None:
    """Whoever may open the file still needs CAP_NET_ADMIN."""
    open_to_all = run_dir / "tun"
    os.mknod(open_to_all, 0o666 | stat.S_IFCHR, os.makedev(10, 200))
    open_to_all.chmod(0o666)
    monkeypatch.setattr(tap, "DEVICE", str(open_to_all))
    request.getfixturevalue("nobody")
    with pytest.raises(PortPermissionError, match=r"mirror\.guest\.device = ls-tap6: .*CAP_NET_ADMIN"):
        TapPort("mirror.guest", "ls-tap6")
