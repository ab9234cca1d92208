cimport cython
from lockstep.wire.frame cimport Frame, dissect_at
from lockstep.wire.view cimport View
from services.rewriter.connection cimport Connection

cdef int _TCP, _MALFORMED, _ICMP, _ICMPV6, _IPPROTO_TCP, _FLAGS, _SYN_OR_RST, _NEEDS_CSUM
cdef int _ETHERNET, _TAG, _VID_HIGH, _SOURCE4, _SOURCE6

@cython.final
cdef class Lane:
    cdef public object core
    cdef public bint speaking
    cdef dict _open, _doomed
    cdef object _half_open
    cdef Frame _frame
    cdef unsigned char _key[64]

    @cython.locals(view=View, sizes=View, f=Frame, buf="unsigned char*", speaking=cython.bint, end=cython.int, start=cython.int,
                   index=cython.long, kind=cython.int, flags=cython.int, connection=Connection, partial=cython.bint)
    cpdef move(self, bytearray data, lengths, int vnet, bint from_guest, double now)
    @cython.locals(key="unsigned char*", at=cython.int, tag=cython.int, size=cython.int, source=cython.int, destination=cython.int,
                   source_port=cython.int, destination_port=cython.int, index=cython.int)
    cdef bytes _key_of(self, Frame f, const unsigned char* buf, bint from_guest)
