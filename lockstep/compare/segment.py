"""What one frame says in a TCP stream, free of the frame it came in."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.wire import tcp


@dataclass(slots=True)
class Segment:
    """A TCP segment.

    frame: its number in its file, from 1. options: what a SYN must agree in (`tcp.options_signature`).
    data: the payload that was captured, the beginning of `size` bytes. parts: of a segment that came in
    fragments, the frames its payload came in, as `(offset, frame)`. urgent: its urgent pointer, None without URG.
    """

    frame: int
    seq: int
    ack: int
    flags: int
    size: int
    data: bytes
    options: bytes = b""
    parts: tuple[tuple[int, int], ...] = ()
    urgent: int | None = None

    @property
    def syn(self) -> bool:
        """Whether it opens a connection."""
        return bool(self.flags & tcp.SYN)

    @property
    def idle(self) -> bool:
        """Whether it says nothing that has a place in the stream: it acks, or tells of a window."""
        flags = self.flags & (tcp.SYN | tcp.FIN | tcp.RST | tcp.ACK)
        return flags == tcp.ACK and not self.size and self.urgent is None
