"""UDP, ICMP and everything else that is no stream: compared by payload, in order per flow.

A primary frame leaves when the secondary has said the same payload among the next `WINDOW` it has
to say. What the secondary said in front of the match stays, for a primary frame that was overtaken.
"""

from __future__ import annotations

from collections import deque

from lockstep.batch import Buffer
from lockstep.wire import frame, icmp, ipv4, ipv6
from lockstep.wire.frame import Frame
from services.comparer.flow import DIFFERS, RELEASE, WAIT, Finding, Flow
from services.comparer.said import first_difference

#: Payloads of the secondary that are looked through for a match: how far the two sides may reorder.
WINDOW = 32
#: Bytes before and after a difference in a report.
CONTEXT = 16
#: Payloads of the secondary kept at most; the oldest go first, which can only hold, never release.
MOST_SAID = 1024


class DatagramFlow(Flow):
    """One direction of a flow of datagrams."""

    __slots__ = ("lifetime", "said", "said_bytes")

    def __init__(self, key: bytes, now: float, lifetime: float) -> None:
        super().__init__(key, now)
        #: Seconds until a payload that the primary never said is forgotten.
        self.lifetime = lifetime
        self.said: deque[tuple[float, bytes]] = deque()
        self.said_bytes = 0

    def verdict(self, buf: Buffer, kind: int, l4: int, payload: int, end: int) -> int:
        """See Flow."""
        if not self.said:
            return WAIT
        if self._find(content(buf, kind, l4, payload, end)) is not None:
            return RELEASE
        return DIFFERS if len(self.said) >= WINDOW else WAIT

    def _find(self, wanted: bytes) -> int | None:
        for index, (_, said) in enumerate(self.said):
            if index == WINDOW:
                break
            if said == wanted:
                return index
        return None

    def released(self, buf: Buffer, kind: int, l4: int, payload: int, end: int) -> None:
        """See Flow."""
        index = self._find(content(buf, kind, l4, payload, end))
        if index is not None:
            self.said_bytes -= len(self.said[index][1])
            del self.said[index]

    def finding(self, buf: Buffer, kind: int, l4: int, payload: int, end: int) -> Finding:
        """See Flow."""
        wanted = content(buf, kind, l4, payload, end)
        if not self.said:
            return Finding("unmatched", None, wanted[: 2 * CONTEXT])
        said = self.said[0][1]
        size = min(len(said), len(wanted))
        at = first_difference(said[:size], wanted[:size])
        begin = max(0, at - CONTEXT)
        reason = "data" if len(self.said) >= WINDOW else "unmatched"
        return Finding(reason, at, wanted[begin : at + CONTEXT], said[begin : at + CONTEXT])

    def secondary(self, f: Frame, buf: Buffer, now: float) -> Finding | None:
        """See Flow."""
        self._age(now)
        said = content(buf, f.kind, f.l4, f.payload, f.payload_end)
        self.said.append((now, said))
        self.said_bytes += len(said)
        if len(self.said) > MOST_SAID:
            self.said_bytes -= len(self.said.popleft()[1])
        return None

    def _age(self, now: float) -> None:
        while self.said and self.said[0][0] + self.lifetime < now:
            self.said_bytes -= len(self.said.popleft()[1])

    def kept(self) -> int:
        """See Flow."""
        return self.held_bytes + self.said_bytes

    def relax(self, now: float) -> None:
        """See Flow."""
        self._age(now)

    def committed(self) -> None:
        """See Flow."""
        self.said.clear()
        self.said_bytes = 0

    def restart(self) -> None:
        """See Flow."""
        self.committed()


def content(buf: Buffer, kind: int, l4: int, payload: int, end: int) -> bytes:
    """What is compared: the payload. For ICMP all but the checksum; for its errors what `_quoted` says."""
    if kind in (frame.ICMP, frame.ICMPV6):
        if buf[l4] in (icmp.V4_ERRORS if kind == frame.ICMP else icmp.V6_ERRORS):
            return bytes(buf[l4 : l4 + icmp.CHECKSUM]) + bytes(buf[l4 + 4 : payload]) + _quoted(buf, payload, end)
        return bytes(buf[l4 : l4 + icmp.CHECKSUM]) + bytes(buf[l4 + icmp.CHECKSUM + 2 : end])
    return bytes(buf[payload:end])


def _quoted(buf: Buffer, at: int, end: int) -> bytes:
    """The packet that an ICMP error quotes, without what differs on its way to each replica.

    TTL, identification and checksums may differ; of TCP only ports and seq stay, since the rewriter
    moved the client's ack. What can't be read is compared as it is.
    """
    if end - at >= ipv4.HEADER and buf[at] >> 4 == 4:
        l4 = at + ((buf[at] & 0xF) << 2)
        protocol, ends = buf[at + ipv4.PROTOCOL], bytes(buf[at + ipv4.SOURCE : at + ipv4.HEADER])
    elif end - at >= ipv6.HEADER and buf[at] >> 4 == 6:
        l4 = at + ipv6.HEADER
        protocol, ends = buf[at + ipv6.NEXT_HEADER], bytes(buf[at + ipv6.SOURCE : at + ipv6.HEADER])
    else:
        return bytes(buf[at:end])
    kept = bytes(buf[l4 : min(l4 + 8, end)]) if protocol == frame.IPPROTO_TCP else bytes(buf[l4:end])
    return bytes((protocol,)) + ends + kept
