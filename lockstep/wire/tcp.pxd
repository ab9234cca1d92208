cimport cython

cdef int _END_OF_OPTIONS, _NO_OPERATION, _SACK, _TIMESTAMPS, _TIMESTAMPS_LENGTH

cpdef (long, long, long) find_options(const unsigned char[::1] buf, long start, long end) except *
@cython.locals(timestamps=cython.long, sack=cython.long, blocks=cython.long, at=cython.long, kind=cython.int, length=cython.int)
cpdef (long, long, long) options_at(const unsigned char* buf, long start, long end) noexcept
