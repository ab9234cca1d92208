# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The fast lane: ordinary segments of connections whose distance is known are moved in one pass over a batch.

Ordinary is a segment without SYN and RST. Everything else that concerns the rewriter, frame by frame, is
for `Core.careful`: those two, segments of half-open connections or of doomed ones, ICMP, and what is malformed.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from lockstep.batch import Buffer
from lockstep.wire import ethernet, frame, ipv4, ipv6, tcp, vlan, vnet
from lockstep.wire.frame import Frame, dissect_at
from lockstep.wire.view import View
from services.rewriter.connection import Connection

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython

if TYPE_CHECKING:
    from services.rewriter.core import Core
    from services.rewriter.table import ConnectionTable

#: Room for a key: see `lockstep.flow.key`.
KEY_ROOM = 64

_TCP, _MALFORMED, _ICMP, _ICMPV6 = frame.TCP, frame.MALFORMED, frame.ICMP, frame.ICMPV6
_IPPROTO_TCP = frame.IPPROTO_TCP
_FLAGS, _SYN_OR_RST = tcp.FLAGS, tcp.SYN | tcp.RST
_NEEDS_CSUM = vnet.NEEDS_CSUM
_ETHERNET, _TAG, _VID_HIGH = ethernet.HEADER, vlan.TAG, vlan.VID_MASK >> 8
_SOURCE4, _SOURCE6 = ipv4.SOURCE, ipv6.SOURCE


class Lane:
    """See the module. `core` does all that is careful, with the connections of `table`.

    speaking: after a failover. Doomed connections are reset then.
    """

    def __init__(self, core: Core, table: ConnectionTable, doomed: dict[bytes, bool]) -> None:
        self.core = core
        self.speaking = False
        self._open, self._half_open, self._doomed = table.open, table.half_open, doomed
        self._frame = Frame()
        if not cython.compiled:
            self._key = bytearray(KEY_ROOM)  # compiled, it lies in this object

    def move(self, data: bytearray, lengths: array[int], vnet: int, from_guest: bool, now: float) -> None:
        """Move the numbers of every frame in `data`, in place."""
        view, sizes = View(data), View(lengths)
        f, buf, speaking = self._frame, view.data, self.speaking
        end = 0
        for index in range(len(lengths)):
            start = end
            end += sizes.words[index]
            kind = dissect_at(f, buf, start + vnet, end)
            if kind != _TCP:
                if kind in (_MALFORMED, _ICMP, _ICMPV6):
                    self.core.careful(data, start, end, vnet, from_guest, now)
                continue
            flags = buf[f.l4 + _FLAGS]
            found = None if flags & _SYN_OR_RST else self._open.get(self._key_of(f, buf, from_guest))
            if found is None:
                if flags & _SYN_OR_RST or self._half_open or (speaking and self._doomed):
                    self.core.careful(data, start, end, vnet, from_guest, now)
                continue
            connection: Connection = found
            if connection.waiting or not connection.known or (speaking and connection.doomed):
                self.core.careful(data, start, end, vnet, from_guest, now)
                continue
            connection.touched = now
            partial = vnet > 0 and buf[start] & _NEEDS_CSUM
            if from_guest:
                connection.guest_says(flags)
                connection.to_primary_space(buf, f.l4, f.payload, partial, speaking)
            else:
                connection.client_says(flags)
                connection.to_guest_space(buf, f.l4, f.payload, partial)

    def _key_of(self, f: Frame, buf: Buffer, from_guest: bool) -> bytes:
        """The key of the connection of a TCP segment, in the guest's direction."""
        key = self._key
        key[0], key[1], key[2] = f.tags, f.version, _IPPROTO_TCP
        at = 3
        tag = f.start + _ETHERNET
        for _ in range(f.tags):
            key[at], key[at + 1] = buf[tag] & _VID_HIGH, buf[tag + 1]
            at += 2
            tag += _TAG
        size, source = 4, f.l3 + _SOURCE4
        if f.version == 6:
            size, source = 16, f.l3 + _SOURCE6
        destination, source_port, destination_port = source + size, f.l4, f.l4 + 2
        if not from_guest:  # the client's segment has them the other way round
            source, destination = destination, source
            source_port, destination_port = destination_port, source_port
        for index in range(size):
            key[at + index], key[at + size + index] = buf[source + index], buf[destination + index]
        at += 2 * size
        for index in range(2):
            key[at + index], key[at + 2 + index] = buf[source_port + index], buf[destination_port + index]
        if cython.compiled:
            return key[: at + 4]  # type: ignore[return-value]
        else:  # noqa: RET505  (a compiler leaves it out only like this)
            return bytes(key[: at + 4])
