"""The `qemu` frontend: frames over a socket, in QEMU's own framing. It needs no privilege at all.

The other end is a guest's `-netdev stream` (or `socket`), or the chardev of one of QEMU's filters.
Either end may be the server, and either may come back: meanwhile frames are lost, as on a wire that
is unplugged. `-netdev stream` carries no virtio-net headers, so super-frames are cut for it.
"""

from __future__ import annotations

from lockstep.batch import Batch
from lockstep.capture.base import Port, PortError, PortPermissionError
from lockstep.qemu.address import Address
from lockstep.qemu.framing import Deframer, FramingError, framed
from lockstep.qemu.peer import Peer, PeerError, PeerPermissionError
from lockstep.wire.vnet import convert


class QemuPort(Port):
    """A port whose other end is a QEMU; raises PortError.

    vnet_hdr: bytes of virtio-net header before each frame that is sent; 0 where QEMU's side has none.
    counters: besides the usual, those of `Peer`, and `framing_errors`: connections dropped for bytes
    that were no frames.
    """

    def __init__(self, name: str, address: Address, server: bool, vnet_hdr: int) -> None:
        super().__init__(name, vnet_hdr)
        try:
            self._peer = Peer(address, server)
        except PeerError as error:
            kind = PortPermissionError if isinstance(error, PeerPermissionError) else PortError
            raise kind(f"{name}.address = {error}") from error
        self.counters |= {"framing_errors": 0, **self._peer.counters}
        self._deframer = Deframer(bool(vnet_hdr))
        self._connection = 0

    def fileno(self) -> int:
        """An epoll descriptor of everything that goes on; readable also where only the connection needs care."""
        return self._peer.fileno()

    def read(self) -> Batch | None:
        """The frames that came; does what the connection needs as well."""
        peer = self._peer
        peer.work()
        if self._connection != peer.connection:
            self._connection = peer.connection
            self._deframer.reset()
        got = peer.receive(self._deframer.room())
        batches = []
        try:
            batches = [convert(batch, self.vnet) for batch in self._deframer.filled(got)]
        except FramingError:
            self.counters["framing_errors"] += 1
            peer.drop()
        self.counters |= peer.counters
        if len(batches) > 1:  # QEMU changed the size of its header in between
            return self.count_in(Batch.of([frame for batch in batches for frame in batch.frames()], self.vnet))
        return self.count_in(batches[0]) if batches else None

    def write(self, batch: Batch) -> None:
        """Give the frames to the peer; without one, or where too much waits, they are dropped."""
        data, lost = framed(batch, self.vnet)
        if self._peer.send(data):
            self.counters["frames_out"] += len(batch) - lost
            self.counters["bytes_out"] += len(data)
            self.counters["dropped_out"] += lost
        else:
            self.counters["dropped_out"] += len(batch)

    def close(self) -> None:
        """End the connection; a server's path goes with it."""
        self._peer.close()
