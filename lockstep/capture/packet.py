"""The `packet` frontend: an AF_PACKET socket on any Ethernet interface, be it a network card, one end
of a veth pair, or the TAP of a running QEMU.

What arrives at the interface is read, whoever it is for; what is written leaves through it. What
others send through the interface is not seen, nor are our own frames. The interface's own kernel
stack gets a copy of everything that is read: `docs/capture.md` says how to keep it silent.

Super-frames and partial checksums pass whole, by virtio-net headers (PACKET_VNET_HDR). A VLAN tag,
which the kernel keeps beside the frame, is put back. A UDP super-frame is cut into the datagrams it
stands for: where an application's datagrams are joined says nothing about what it sent.

Source: packet(7), Linux `include/uapi/linux/if_packet.h`, `net/packet/af_packet.c`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence

from lockstep.batch import MAX_BATCH, MAX_FRAME, Batch, Buffer
from lockstep.capture.base import Port, PortError, PortPermissionError
from lockstep.capture.interface import bring_up
from lockstep.capture.mmsg import Receiving, Sending
from lockstep.capture.netns import entered
from lockstep.wire import ethernet, gso, vlan
from lockstep.wire.frame import Frame
from lockstep.wire.vnet import GSO_NONE, GSO_UDP_L4, NEEDS_CSUM, convert

# <linux/if_packet.h>, <linux/if_ether.h>, <linux/if_arp.h>, <asm-generic/socket.h>
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_STATISTICS, PACKET_AUXDATA, PACKET_VNET_HDR = 1, 6, 8, 15
PACKET_FANOUT, PACKET_IGNORE_OUTGOING = 18, 23
PACKET_MR_PROMISC = 1
PACKET_FANOUT_HASH, PACKET_FANOUT_FLAG_IGNORE_OUTGOING = 0, 0x4000
TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 1 << 4, 1 << 6
ETH_P_ALL = 3
ARPHRD_ETHER = 1
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33

#: `struct virtio_net_hdr`, as long as the kernel has always known it.
VNET = 10
#: Most frames in one batch, and bytes that each may have.
SLOTS = 256
SLOT = MAX_FRAME + VNET
#: `struct cmsghdr`, then `struct tpacket_auxdata`: status, length, captured length, mac, net, TCI, TPID.
_AUXDATA = struct.Struct("=16xIIIHHHH4x")
_TAG = struct.Struct(">HH")
#: Bytes of frames, with the kernel's overhead, that wait for us, or for the interface.
BUFFER = 32 << 20


class PacketPort(Port):
    """An AF_PACKET socket, bound to an interface that is brought up; raises PortError.

    fanout: a number from 1 to 65535 that other ports on the same interface share: each flow's frames
    come to one of them, by the flow's hash.
    """

    def __init__(
        self, name: str, device: str, netns: str | None = None, mtu: int | None = None, fanout: int | None = None
    ) -> None:
        super().__init__(name, VNET)
        self.counters["dropped_in"] = 0
        self._device = device
        with entered(netns, name):
            self._socket = open_socket(name, device, netns)
            try:
                bring_up(name, device, mtu)
                _set_up(self._socket, name, device, fanout)
            except BaseException:
                self.close()
                raise
        self._fd = self._socket.fileno()
        self._in = Receiving(SLOTS, SLOT, _AUXDATA.size)
        self._view = memoryview(self._in.data)
        self._words = memoryview(self._in.about).cast("I")[4 :: _AUXDATA.size // 4]
        self._out = Sending()
        self._frame = Frame()

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self._socket.fileno()

    def read(self) -> Batch | None:
        """The frames that wait in the socket. Raises PortError once the interface is gone."""
        first, room = 0, MAX_BATCH
        while (asked := min(SLOTS - first, room // SLOT)) > 0:
            try:
                got = self._in.receive(self._fd, first, asked)
            except OSError as error:
                self._failed(error)
                break
            first += got
            if got < asked:
                break
            room = MAX_BATCH - sum(self._in.lengths(first))
        else:  # so much waited that some may not have found room
            self._count_lost()
        if not first:
            return None
        frames = self._taken(first)
        return self.count_in(Batch.of(frames, self.vnet)) if frames else None

    def _taken(self, count: int) -> list[Buffer]:
        """The frames in the first `count` slots, as they were on the wire."""
        view, lengths = self._view, self._in.lengths(count)
        frames: list[Buffer] = [
            view[start : start + length] for start, length in zip(range(0, SLOT * count, SLOT), lengths, strict=True)
        ]
        if (
            min(lengths) < VNET + ethernet.HEADER
            or any(self._in.truncated(count))
            or any(status & TP_STATUS_VLAN_VALID for status in self._words[:count])
        ):
            frames = [made for number, frame in enumerate(frames) if (made := self._mended(number, frame))]
        if GSO_UDP_L4 in self._in.data[1 : SLOT * count : SLOT]:
            frames = [part for frame in frames for part in self._datagrams(frame)]
        return frames

    def _mended(self, number: int, frame: Buffer) -> Buffer | None:
        """The frame of a slot with its VLAN tag in its place; None if it is not whole."""
        status, _, _, _, _, tci, tpid = _AUXDATA.unpack_from(self._in.about, number * _AUXDATA.size)
        if len(frame) < VNET + ethernet.HEADER or self._in.truncated(number + 1)[number]:
            self.counters["dropped_in"] += 1
            return None
        if not status & TP_STATUS_VLAN_VALID:
            return frame
        if len(frame) - VNET + vlan.TAG > MAX_FRAME:
            self.counters["dropped_in"] += 1
            return None
        return with_tag(frame, tpid if status & TP_STATUS_VLAN_TPID_VALID else ethernet.VLAN, tci)

    def _datagrams(self, frame: Buffer) -> Sequence[Buffer]:
        parts = gso.datagrams(self._frame, frame, VNET)
        self.counters["dropped_in"] += not parts
        return parts

    def _failed(self, error: OSError) -> None:
        """What a receive that failed means: the end, or one frame less."""
        if error.errno == errno.EINVAL:  # a kind of super-frame that a virtio-net header can't describe
            self.counters["dropped_in"] += 1
        elif error.errno != errno.ENETDOWN:
            raise error
        elif not self._socket.getsockname()[0]:
            why = f"{self.name}.device = {self._device} was deleted; make it again, and start the service again"
            raise PortError(why) from error

    def _count_lost(self) -> None:
        """Add what the kernel had no room for since it was last asked."""
        self.counters["dropped_in"] += struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]

    def write(self, batch: Batch) -> None:
        """Give the frames to the interface, in order."""
        batch = convert(batch, self.vnet)
        sent, size = self._out.send(self._fd, batch)
        self.counters["frames_out"] += sent
        self.counters["bytes_out"] += size
        self.counters["dropped_out"] += len(batch.lengths) - sent

    def close(self) -> None:
        """Close the socket; the interface stays as it is."""
        self._socket.close()


def with_tag(frame: Buffer, tpid: int, tci: int) -> bytes:
    """The frame with one more VLAN tag in front, and its virtio-net header moved along."""
    header = bytearray(frame[:VNET])
    if header[0] & NEEDS_CSUM or header[1] != GSO_NONE:
        hdr_len, gso_size, csum_start = struct.unpack_from("<HHH", header, 2)
        start = csum_start + vlan.TAG if header[0] & NEEDS_CSUM else csum_start
        struct.pack_into("<HHH", header, 2, (hdr_len + vlan.TAG) & 0xFFFF, gso_size, start & 0xFFFF)
    macs = VNET + 12
    return b"".join((header, frame[VNET:macs], _TAG.pack(tpid, tci), frame[macs:]))


def open_socket(name: str, device: str, netns: str | None) -> socket.socket:
    """A socket that receives nothing yet; raises PortError. `device`, `netns`: for errors."""
    try:
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError as error:
        where = f"{device}{f' in {netns}' if netns else ''}"
        way_out = "run as root or with CAP_NET_RAW in that namespace"
        raise PortPermissionError(f"{name}.device = {where}: {error.strerror}; {way_out}") from error
    except OSError as error:
        way_out = 'this kernel has no AF_PACKET (CONFIG_PACKET); choose `capture = "tap"`'
        raise PortError(f"{name}: {error.strerror}; {way_out}") from error


def prepare(made: socket.socket, name: str) -> None:
    """Set what the socket needs before it is bound; raises PortError."""
    for forced, usual in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            made.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
        except PermissionError:  # without CAP_NET_ADMIN, as much as net.core.rmem_max allows
            made.setsockopt(socket.SOL_SOCKET, usual, BUFFER)
    made.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    for option, why in NEEDED.items():
        try:
            made.setsockopt(SOL_PACKET, option, 1)
        except OSError as error:
            raise PortError(f'{name}: this kernel {why}; choose `capture = "tap"`') from error


#: Options of a packet socket, and what a kernel does without them.
NEEDED = {
    PACKET_IGNORE_OUTGOING: "shows a socket its own frames again (PACKET_IGNORE_OUTGOING, Linux 4.20, is missing)",
    # Without it nothing tells a checksum that is still to be computed from a wrong one, or where to cut a super-frame.
    PACKET_VNET_HDR: "gives frames without virtio-net headers (PACKET_VNET_HDR is missing)",
}


def _set_up(made: socket.socket, name: str, device: str, fanout: int | None) -> None:
    """Prepare the socket, and bind it."""
    prepare(made, name)
    made.bind((device, ETH_P_ALL))
    if made.getsockname()[3] != ARPHRD_ETHER:
        raise PortError(f"{name}.device = {device} carries no Ethernet frames; name another interface")
    membership = struct.pack("iHH8x", socket.if_nametoindex(device), PACKET_MR_PROMISC, 0)
    made.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
    if fanout is not None:
        _join(made, name, fanout)


def _join(made: socket.socket, name: str, fanout: int) -> None:
    # A group has a flag of its own for what PACKET_IGNORE_OUTGOING says of one socket.
    how = PACKET_FANOUT_HASH | PACKET_FANOUT_FLAG_IGNORE_OUTGOING
    try:
        made.setsockopt(SOL_PACKET, PACKET_FANOUT, fanout | how << 16)
    except OSError as error:
        ways_out = {
            errno.EINVAL: "another program has that number with other rules, or this kernel is older than 6.2",
            errno.EALREADY: "another program has that number on another interface",
        }
        why = ways_out.get(error.errno or 0, os.strerror(error.errno or 0))
        raise PortError(f"{name}.fanout = {fanout}: {why}; choose another number, or leave it out") from error
