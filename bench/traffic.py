"""Frames to measure with: TCP segments of one guest, the same bytes whoever is measured.

Every frame is right in all its fields and unlike every other; flows take turns, one frame each, which
is the least friendly order for a cache. The first round opens the flows and is not measured.
"""

from __future__ import annotations

import ipaddress
import random
import struct
from array import array
from dataclasses import dataclass

from lockstep.batch import Batch
from lockstep.wire import ethernet, frame, ipv4, tcp
from lockstep.wire.checksum import checksum, ones_sum

HEADERS = ethernet.HEADER + ipv4.HEADER + tcp.HEADER
_MACS = bytes.fromhex("525400000001 525400000002")
_GUEST = ipaddress.IPv4Address("10.77.0.2").packed
_FIRST_CLIENT = int(ipaddress.IPv4Address("10.78.0.1"))
_FIRST_PORT, _PORTS = 1024, 50_000
_ACK, _WINDOW = 0x1234_5678, 1000
#: Different payloads; a prime, so that a flow's neighbours and its own next frames differ.
_PAYLOADS = 61

_SEQ = struct.Struct(">I")
_SUM = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Frames of one size, end to end.

    opening: one frame of each flow. measured: `frames` more. size: bytes of a frame.
    """

    flows: int
    payload: int
    frames: int
    size: int
    opening: bytes
    measured: bytes

    @classmethod
    def make(cls, flows: int, payload: int, frames: int) -> Traffic:
        """flows: how many take turns. payload: bytes in each segment. frames: measured ones, in all."""
        made = _frames(flows, payload, flows + frames)
        size = HEADERS + payload
        cut = flows * size
        return cls(flows, payload, frames, size, made[:cut], made[cut:])

    def batches(self, frames: bytes, most: int) -> list[Batch]:
        """These frames in batches of `most` bytes at most."""
        each = max(1, most // self.size) * self.size
        view = memoryview(frames)
        chunks = [view[at : at + each] for at in range(0, len(frames), each)]
        return [Batch(chunk, array("I", (self.size,)) * (len(chunk) // self.size)) for chunk in chunks]

    def split(self, frames: bytes) -> list[bytes]:
        """These frames, each by itself."""
        return [frames[at : at + self.size] for at in range(0, len(frames), self.size)]

    def framed(self, frames: bytes) -> bytes:
        """These frames as QEMU's socket chardevs take them: each behind its length, a big-endian uint32."""
        length = self.size.to_bytes(4, "big")
        return b"".join(part for each in self.split(frames) for part in (length, each))


def _frames(flows: int, payload: int, count: int) -> bytes:
    pool = random.Random(payload)
    payloads = [pool.randbytes(payload) for _ in range(_PAYLOADS)]
    sums = [ones_sum(body) for body in payloads]
    heads = [_head(flow, payload) for flow in range(flows)]
    behind_seq = struct.pack(">IBBH", _ACK, 0x50, tcp.ACK, _WINDOW)
    parts: list[bytes] = []
    add, seq_of, sum_of = parts.append, _SEQ.pack, _SUM.pack
    for index in range(count):
        turn, flow = divmod(index, flows)
        head, fixed = heads[flow]
        seq = (flow * 2_654_435_761 + turn * payload) & 0xFFFFFFFF
        which = (flow + turn) % _PAYLOADS
        total = fixed + sums[which] + (seq >> 16) + (seq & 0xFFFF)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        add(head)
        add(seq_of(seq))
        add(behind_seq)
        add(sum_of(~total & 0xFFFF))
        add(b"\0\0")
        add(payloads[which])
    return b"".join(parts)


def _head(flow: int, payload: int) -> tuple[bytes, int]:
    """Everything in front of a flow's sequence number, and the sum of what else its TCP checksum covers."""
    client = (_FIRST_CLIENT + flow // _PORTS).to_bytes(4, "big")
    ports = struct.pack(">HH", 80, _FIRST_PORT + flow % _PORTS)
    length = tcp.HEADER + payload
    header = struct.pack(">BBHHHBBH", 0x45, 0, ipv4.HEADER + length, 1, 0x4000, 64, frame.IPPROTO_TCP, 0)
    header += _GUEST + client
    header = header[: ipv4.CHECKSUM] + checksum(header).to_bytes(2, "big") + header[ipv4.CHECKSUM + 2 :]
    pseudo = _GUEST + client + struct.pack(">HH", frame.IPPROTO_TCP, length)
    fixed = ones_sum(pseudo + ports + struct.pack(">IBBH", _ACK, 0x50, tcp.ACK, _WINDOW))
    return _MACS + ethernet.IPV4.to_bytes(2, "big") + header + ports, fixed
