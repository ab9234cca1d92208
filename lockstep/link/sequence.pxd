cimport cython

@cython.final
cdef class Sequence:
    cdef bytes _boot
    cdef public unsigned long long expected

    cpdef object follow(self, bytes boot, unsigned long long number)
