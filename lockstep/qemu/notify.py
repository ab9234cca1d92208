"""What colo-compare says over its `notify_dev`, so that Xen's COLO can use our comparer.

    peer: COLO_USERSPACE_PROXY_INIT       comparer: COLO_COMPARE_GET_XEN_INIT
    comparer: DO_CHECKPOINT               the peer stops the guest and copies it
    peer: COLO_CHECKPOINT                 the copy is made: what was held leaves

Each is a text in QEMU's framing, without a virtio-net header.
Source: QEMU `net/colo-compare.c`, `docs/COLO-FT.txt`.
"""

from __future__ import annotations

import struct

from lockstep.link.zmq import LinkError, LinkPermissionError
from lockstep.qemu.address import Address
from lockstep.qemu.framing import Deframer, FramingError
from lockstep.qemu.peer import Peer, PeerError, PeerPermissionError

INIT, INIT_ANSWER = b"COLO_USERSPACE_PROXY_INIT", b"COLO_COMPARE_GET_XEN_INIT"
ASK, DONE = b"DO_CHECKPOINT", b"COLO_CHECKPOINT"


class Notify:
    """Our end of the conversation; raises LinkError.

    counters: those of `Peer`; `asked` and `checkpoints`; `unknown` words, and `framing_errors`, each of
    which ended the connection.
    """

    def __init__(self, address: Address, server: bool) -> None:
        try:
            self._peer = Peer(address, server)
        except PeerError as error:
            kind = LinkPermissionError if isinstance(error, PeerPermissionError) else LinkError
            raise kind(f"comparer.notify = {error}") from error
        self._deframer = Deframer(False)
        self._connection = 0
        #: A checkpoint that was asked for and has not come. A peer that is new is asked again.
        self._wanted = False
        self.counters = {"asked": 0, "checkpoints": 0, "unknown": 0, "framing_errors": 0, **self._peer.counters}

    def fileno(self) -> int:
        """A descriptor that is readable while there is something to do."""
        return self._peer.fileno()

    def ask(self) -> None:
        """Ask for a checkpoint; at once, or when there is a peer."""
        self._wanted = True
        self._ask()

    def checkpoints(self) -> int:
        """Do what the connection needs; how many checkpoints the peer has told of."""
        peer = self._peer
        peer.work()
        if self._connection != peer.connection:
            self._connection = peer.connection
            self._deframer.reset()
            self._ask()
        got = peer.receive(self._deframer.room())
        done = 0
        try:
            for batch in self._deframer.filled(got):
                done += sum(self._hear(word) for word in batch.frames())
        except FramingError:
            self.counters["framing_errors"] += 1
            peer.drop()
        self.counters["checkpoints"] += done
        self.counters |= peer.counters
        return done

    def _hear(self, word: bytes) -> int:
        """Answer a word; 1 if it tells of a checkpoint."""
        if word == DONE:
            self._wanted = False
            return 1
        if word == INIT:
            self._say(INIT_ANSWER)
        else:
            self.counters["unknown"] += 1
        return 0

    def _ask(self) -> None:
        if self._wanted and self._say(ASK):
            self.counters["asked"] += 1

    def _say(self, word: bytes) -> bool:
        return self._peer.send(struct.pack(">I", len(word)) + word)

    def close(self) -> None:
        """End the connection."""
        self._peer.close()
