cimport cython
from lockstep.wire.bytes cimport number16
from lockstep.wire.frame cimport Frame, dissect_cut_at

cdef int _WHOLE, _DIGEST, _KEY, _NO_RECORD, _HEAD_BYTES, _HASH_BYTES, _TCP, _FLAGS, _NEVER_CUT

@cython.final
cdef class Reader:
    cdef public int at, size, chunk, chunks, hashes

    cpdef int read(self, Frame f, const unsigned char[::1] buf, int start, int end, int vnet) except -2
    cdef int read_at(self, Frame f, const unsigned char* buf, int start, int end, int vnet) noexcept
