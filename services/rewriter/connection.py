# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""What the rewriter knows of one TCP connection, and how it moves the numbers of a segment.

Two spaces: the *primary's*, in which the client lives, and the guest's own. `delta` leads from
the guest's sequence numbers to the primary's, `delta_ts` from its timestamps to the primary's.

    guest' ──▶ client   seq += delta, TSval += delta_ts
    client ──▶ guest'   ack -= delta, SACK edges -= delta, TSecr -= delta_ts

The deltas are learned when the client first acknowledges the guest's SYN: `ack - 1` is then the
primary's initial sequence number, and TSecr the primary's clock at its SYN.
"""

from __future__ import annotations

from lockstep.batch import Buffer
from lockstep.wire import tcp
from lockstep.wire.bytes import number16, number32, set16, set32
from lockstep.wire.checksum import moved32
from lockstep.wire.seqnum import MASK, add, diff
from lockstep.wire.tcp import options_at

_SEQ, _ACK_NUMBER, _FLAGS, _CHECKSUM, _HEADER = tcp.SEQ, tcp.ACK_NUMBER, tcp.FLAGS, tcp.CHECKSUM, tcp.HEADER
_FIN, _SYN, _RST, _ACK = tcp.FIN, tcp.SYN, tcp.RST, tcp.ACK
_USUAL_TIMESTAMPS = int.from_bytes(tcp.USUAL_TIMESTAMPS)
_MASK = MASK

#: A client's first ack stands at most this far behind its SYN, or one in front of that if it is a keep-alive
#: (RFC 1122 §4.2.3.6); anything else belongs to another connection.
_FIRST_ACK_WINDOW = 1 << 24
#: Bytes in front of a client's last ack that an ICMP error may still quote.
_MOST_ON_ITS_WAY = 1 << 20

#: How a connection ends: a FIN of each side, or a RST.
_GUESTS_FIN, _CLIENTS_FIN, _RESET = 1, 2, 4
_BOTH_FINS = _GUESTS_FIN | _CLIENTS_FIN


class Connection:
    """One connection, keyed by the guest's direction."""

    __slots__ = (
        "client_ack",
        "client_tsecr",
        "delta",
        "delta_ts",
        "doomed",
        "ends",
        "isn",
        "known",
        "macs",
        "opened_by_guest",
        "peer_next",
        "reset_told",
        "touched",
        "tsval",
        "unanswered",
        "waiting",
    )

    def __init__(self, now: float) -> None:
        self.touched = now
        #: Destination and source of the guest's SYN; one object for all connections of a pair.
        self.macs = b""
        #: The deltas may be used.
        self.known = False
        self.delta = self.delta_ts = 0
        #: A SYN of the guest waits for the client's answer: its number, its TSval, and the client's next number.
        self.waiting = False
        self.opened_by_guest = False
        #: This incarnation is released unchecked, so it is reset at a failover.
        self.doomed = False
        #: Of the ways in which a connection ends, those that were seen.
        self.ends = 0
        #: The client's RST passed, and was told.
        self.reset_told = False
        self.isn = self.peer_next = 0
        #: How far the guest went on behind that SYN while it waited.
        self.unanswered = 0
        self.tsval: int | None = None
        #: What the client said last, in the primary's space: for resets, and for a clock that never steps back.
        self.client_ack: int | None = None
        self.client_tsecr: int | None = None

    @property
    def closed(self) -> bool:
        """Nothing but repetitions is to be expected."""
        return self.ends & _BOTH_FINS == _BOTH_FINS or bool(self.ends & _RESET)

    def guest_says(self, flags: int) -> None:
        """Note what a segment of the guest says about the end."""
        if flags & _FIN:
            self.ends |= _GUESTS_FIN
        if flags & _RST:
            self.ends |= _RESET
        elif self.ends & _RESET:
            self.ends &= ~_RESET  # it goes on, so it has not taken the client's RST (RFC 5961 §3.2)

    def client_says(self, flags: int) -> None:
        """Note what a segment of the client says about the end."""
        if flags & _FIN:
            self.ends |= _CLIENTS_FIN
        if flags & _RST:
            self.ends |= _RESET

    def guest_syn(self, buf: Buffer, l4: int, payload: int) -> None:
        """The guest opens or accepts. Old deltas stay in use until the client answers this SYN."""
        seq, ack = number32(buf, l4 + _SEQ), number32(buf, l4 + _ACK_NUMBER)
        accepts = bool(buf[l4 + _FLAGS] & _ACK)
        if (self.waiting or self.known) and seq == self.isn:
            if accepts:  # of the client's SYN that crossed this guest's own (RFC 9293 §3.5)
                self.opened_by_guest, self.peer_next = False, ack
            return  # sent again; the first one's clock is kept, so that the mapped one never lags
        self.isn = seq
        self.waiting = True
        self.reset_told = self.doomed = False
        self.opened_by_guest = not accepts
        self.peer_next = ack
        self.unanswered = 0
        timestamps, _, _ = options(buf, l4, payload)
        self.tsval = number32(buf, timestamps + 2) if timestamps else None

    def goes_on(self, buf: Buffer, l4: int, size: int) -> None:
        """The guest says `size` bytes more before the client has answered its SYN."""
        fin = bool(buf[l4 + _FLAGS] & _FIN)
        end = diff(number32(buf, l4 + _SEQ), self.isn) - 1 + size + fin
        if self.unanswered < end < _FIRST_ACK_WINDOW:
            self.unanswered = end

    def becomes_copy(self) -> None:
        """A checkpoint was committed: the guest has the primary's numbers and clock."""
        self.isn = add(self.isn, self.delta)
        self.delta = self.delta_ts = 0
        self.doomed = self.reset_told = False

    def client_answers(self, buf: Buffer, l4: int, payload: int, speaking: bool) -> bool:
        """Learn the deltas from the client's answer to the waiting SYN; False if this is none.

        A guest of which the client acks what it said behind its SYN has the primary's numbers: it is a
        copy that repeats a SYN of before the checkpoint.
        speaking: after a failover a client that has answered the primary's SYN meets this guest's
        with a challenge ACK, which names the primary's number as well.
        """
        flags = buf[l4 + _FLAGS]
        syn = flags & _SYN
        if not flags & _ACK or flags & _RST or (self.opened_by_guest and not syn and not speaking):
            return False
        seq, ack = number32(buf, l4 + _SEQ), number32(buf, l4 + _ACK_NUMBER)
        if not self.opened_by_guest and not -1 <= diff(seq + bool(syn), self.peer_next) < _FIRST_ACK_WINDOW:
            return False
        copied = 0 < diff(ack, add(self.isn, 1)) <= self.unanswered
        self.delta = 0 if copied else add(ack, -1 - self.isn)
        timestamps, _, _ = options(buf, l4, payload)
        self.delta_ts = 0
        if not copied and timestamps and self.tsval is not None:
            self.delta_ts = add(number32(buf, timestamps + 6), -self.tsval)
        self.known, self.waiting = True, False
        self.ends = 0
        self.client_ack = self.client_tsecr = None
        return True

    def refuses(self, flags: int) -> bool:
        """Whether a segment of the client with these flags refuses the guest's waiting SYN."""
        return self.waiting and self.opened_by_guest and flags & (_RST | _ACK) == _RST | _ACK

    def refuse(self, buf: bytearray, l4: int, payload: int, partial: bool) -> None:
        """Make the client's RST, which answers the primary's SYN, answer the guest's: its number, and its clock."""
        ack = number32(buf, l4 + _ACK_NUMBER)
        _move(buf, l4, l4 + _ACK_NUMBER, self.isn + 1 - ack, partial)
        timestamps, _, _ = options(buf, l4, payload)
        if timestamps and self.tsval is not None:
            tsecr = number32(buf, timestamps + 6)
            _move(buf, l4, timestamps + 6, self.tsval - tsecr, partial)

    def quoted_seq(self, seq: int) -> int | None:
        """The guest's own number for `seq` in an ICMP error: of its SYN, if that waits for an answer.

        Unless it lies where the connection that the ports had before may have had something on its way.
        """
        if self.waiting and not (self.client_ack is not None and 0 <= diff(seq, self.client_ack) < _MOST_ON_ITS_WAY):
            return self.isn
        return add(seq, -self.delta) if self.known else None

    def to_primary_space(self, buf: bytearray, l4: int, payload: int, partial: bool, speaking: bool) -> None:
        """Move a segment of the guest. `speaking`: after failover its clock must not step back (RFC 7323 §5)."""
        if self.delta:
            _move(buf, l4, l4 + _SEQ, self.delta, partial)
        timestamps, _, _ = options(buf, l4, payload)
        if not timestamps:
            return
        if speaking and self.client_tsecr is not None:
            behind = diff(self.client_tsecr, add(number32(buf, timestamps + 2), self.delta_ts))
            if behind > 0:
                self.delta_ts = add(self.delta_ts, behind)
        if self.delta_ts:
            _move(buf, l4, timestamps + 2, self.delta_ts, partial)

    def to_guest_space(self, buf: bytearray, l4: int, payload: int, partial: bool) -> None:
        """Move a segment of the client."""
        if not buf[l4 + _FLAGS] & _ACK:
            return
        self.client_ack = number32(buf, l4 + _ACK_NUMBER)
        timestamps, sack, blocks = options(buf, l4, payload)
        if timestamps:
            tsecr = number32(buf, timestamps + 6)
            if self.client_tsecr is None or diff(tsecr, self.client_tsecr) > 0:
                self.client_tsecr = tsecr
        if self.delta:
            _move(buf, l4, l4 + _ACK_NUMBER, -self.delta, partial)
            for edge in range(2 * blocks):
                _move(buf, l4, sack + 2 + 4 * edge, -self.delta, partial)
        if timestamps and self.delta_ts:
            _move(buf, l4, timestamps + 6, -self.delta_ts, partial)


def options(buf: Buffer, l4: int, payload: int) -> tuple[int, int, int]:
    """Offsets of the timestamps and the SACK option, and the number of SACK blocks (`tcp.find_options`)."""
    start = l4 + _HEADER
    if payload - start == 12 and number32(buf, start) == _USUAL_TIMESTAMPS:
        return start + 2, 0, 0
    return options_at(buf, start, payload)


def set_quoted_seq(buf: bytearray, quoted: int, field: int, connection: Connection) -> None:
    """Give an ICMP error's quotation (TCP header at `quoted`) the guest's own number; its checksum is at `field`."""
    at = quoted + _SEQ
    old = number32(buf, at)
    new = connection.quoted_seq(old)
    if new is not None and new != old:
        set32(buf, at, new)
        set16(buf, field, moved32(number16(buf, field), old, new))


def _move(buf: bytearray, l4: int, at: int, delta: int, partial: bool) -> None:
    """Move the 32-bit number at `at`, and the checksum with it; a partial checksum does not cover it."""
    old = number32(buf, at)
    new = (old + delta) & _MASK
    set32(buf, at, new)
    if not partial:
        field = l4 + _CHECKSUM
        set16(buf, field, moved32(number16(buf, field), old, new, bool(at - l4 & 1)))
