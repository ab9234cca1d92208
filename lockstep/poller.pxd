cimport cython

cdef class Poller:
    cdef object _epoll
    cdef dict _acts
    cdef set _again, _resting

    @cython.locals(again=set, ready=list, fd=cython.int)
    cpdef list wait(self, timeout)
    cpdef act(self, fd, double now)
