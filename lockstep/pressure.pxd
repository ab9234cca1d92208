cimport cython

cdef class Pressure:
    cdef object _links, _rest, _wake
    cdef set _resting
    cdef dict _full
    cdef object _next

    cpdef tick(self, double now)
    cpdef next_deadline(self)
