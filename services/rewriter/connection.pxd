cimport cython
from lockstep.wire.bytes cimport number16, number32, set16, set32
from lockstep.wire.checksum cimport moved32
from lockstep.wire.seqnum cimport add, diff
from lockstep.wire.tcp cimport options_at

cdef long _SEQ, _ACK_NUMBER, _FLAGS, _CHECKSUM, _HEADER
cdef int _FIN, _SYN, _RST, _ACK, _GUESTS_FIN, _CLIENTS_FIN, _RESET, _BOTH_FINS
cdef unsigned int _USUAL_TIMESTAMPS, _MASK
cdef long long _FIRST_ACK_WINDOW, _MOST_ON_ITS_WAY

@cython.final
cdef class Connection:
    cdef public double touched
    cdef public bytes macs
    cdef public bint known, waiting, opened_by_guest, doomed, reset_told
    cdef public int ends
    cdef public unsigned int delta, delta_ts, isn, peer_next
    cdef public long long unanswered
    cdef public object tsval, client_ack, client_tsecr

    cpdef void guest_says(self, int flags) noexcept
    cpdef void client_says(self, int flags) noexcept
    @cython.locals(seq=cython.uint, ack=cython.uint, accepts=cython.bint, timestamps=cython.long)
    cpdef guest_syn(self, const unsigned char* buf, long l4, long payload)
    @cython.locals(fin=cython.bint, end=cython.longlong)
    cpdef goes_on(self, const unsigned char* buf, long l4, long size)
    cpdef becomes_copy(self)
    @cython.locals(flags=cython.int, syn=cython.int, seq=cython.uint, ack=cython.uint, copied=cython.bint, timestamps=cython.long)
    cpdef bint client_answers(self, const unsigned char* buf, long l4, long payload, bint speaking) except -1
    cpdef bint refuses(self, int flags) noexcept
    @cython.locals(ack=cython.uint, tsecr=cython.uint, timestamps=cython.long)
    cpdef refuse(self, unsigned char* buf, long l4, long payload, bint partial)
    cpdef quoted_seq(self, long long seq)
    @cython.locals(timestamps=cython.long, behind=cython.longlong)
    cpdef to_primary_space(self, unsigned char* buf, long l4, long payload, bint partial, bint speaking)
    @cython.locals(timestamps=cython.long, sack=cython.long, blocks=cython.long, tsecr=cython.uint, edge=cython.long)
    cpdef to_guest_space(self, unsigned char* buf, long l4, long payload, bint partial)

@cython.locals(start=cython.long)
cdef (long, long, long) options(const unsigned char* buf, long l4, long payload) noexcept
@cython.locals(at=cython.long, old=cython.uint)
cpdef set_quoted_seq(unsigned char* buf, long quoted, long field, Connection connection)
@cython.locals(old=cython.uint, new=cython.uint, field=cython.long)
cdef void _move(unsigned char* buf, long l4, long at, long long delta, bint partial) noexcept
