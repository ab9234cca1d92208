"""The two ends of a link to one of QEMU's filters: its socket chardev instead of ZeroMQ.

Same use as the ends in `lockstep.link.zmq`, with less in it: QEMU's framing has no message numbers, so
only a new connection is known as a gap, and no epochs, so what arrives is of the epoch that this
service is in. A cut can't be carried.
"""

from __future__ import annotations

from collections.abc import Callable

from lockstep.batch import Batch
from lockstep.link.zmq import LinkError, LinkPermissionError
from lockstep.qemu.address import Address
from lockstep.qemu.framing import Deframer, FramingError, framed
from lockstep.qemu.peer import Peer, PeerError, PeerPermissionError
from lockstep.streams import Cut, Gap


def _peer(stream: str, address: Address, server: bool) -> Peer:
    try:
        return Peer(address, server)
    except PeerError as error:
        kind = LinkPermissionError if isinstance(error, PeerPermissionError) else LinkError
        raise kind(f"links.{stream} = qemu+{error}") from error


class QemuSender:
    """The producing end of a stream. Watch `socket` for reading, and call `flush` when it is readable."""

    def __init__(self, stream: str, address: Address, server: bool, vnet_hdr: int) -> None:
        self.stream = stream
        self._vnet_hdr = vnet_hdr
        self._peer = _peer(stream, address, server)
        self.counters = {"batches": 0, "frames": 0, "bytes": 0, "dropped_frames": 0, "dropped_cuts": 0}
        self.counters |= self._peer.counters
        self._nothing = memoryview(bytearray(4096))

    @property
    def socket(self) -> int:
        """A descriptor that is readable while the connection needs care."""
        return self._peer.fileno()

    def send(self, item: Batch | Cut, epoch: int) -> bool:
        """Send a batch; False if it was dropped, or is a cut."""
        if isinstance(item, Cut):
            self.counters["dropped_cuts"] += 1
            return False
        data, lost = framed(item, self._vnet_hdr)
        if not self._peer.send(data):
            self.counters["dropped_frames"] += len(item)
            return False
        self.counters["batches"] += 1
        self.counters["frames"] += len(item) - lost
        self.counters["bytes"] += len(data)
        self.counters["dropped_frames"] += lost
        return True

    def flush(self) -> bool:
        """Do what the connection needs. Nothing is expected from the peer but its end."""
        self._peer.work()
        self._peer.receive(self._nothing)
        self.counters |= self._peer.counters
        return True

    def close(self) -> None:
        """End the connection."""
        self._peer.close()


class QemuReceiver:
    """The consuming end of a stream. epoch: gives the epoch that this service is in."""

    def __init__(self, stream: str, address: Address, server: bool, vnet_hdr: int, epoch: Callable[[], int]) -> None:
        self.stream = stream
        self._epoch = epoch
        self._peer = _peer(stream, address, server)
        self._deframer = Deframer(bool(vnet_hdr))
        self._connection = 0
        self.counters = {"batches": 0, "frames": 0, "bytes": 0, "gaps": 0, "rejected_framing": 0}
        self.counters |= self._peer.counters
        self.last_rejection = ""
        #: Whose frames the last ones were: QEMU's framing names no guest.
        self.guest: str | None = None

    @property
    def socket(self) -> int:
        """A descriptor that is readable while something waits, or the connection needs care."""
        return self._peer.fileno()

    def receive(self) -> list[Batch | Cut | Gap] | None:
        """The frames that came, a gap in front where this is a new connection; None if nothing waits."""
        peer = self._peer
        peer.work()
        items: list[Batch | Cut | Gap] = []
        if self._connection != peer.connection:
            if self._connection:
                items.append(Gap("restarted"))
                self.counters["gaps"] += 1
            self._connection = peer.connection
            self._deframer.reset()
        got = peer.receive(self._deframer.room())
        try:
            for batch in self._deframer.filled(got):
                batch.epoch = self._epoch()
                items.append(batch)
                self.counters["batches"] += 1
                self.counters["frames"] += len(batch)
                self.counters["bytes"] += len(batch.data)
        except FramingError as error:
            self.counters["rejected_framing"] += 1
            self.last_rejection = str(error)
            peer.drop()
        self.counters |= peer.counters
        return items or ([] if got else None)

    @property
    def rejected(self) -> int:
        """How many connections were dropped because their bytes were no frames."""
        return self.counters["rejected_framing"]

    def close(self) -> None:
        """End the connection."""
        self._peer.close()
