cimport cython
from libc.string cimport memcpy

from lockstep.vhost.log cimport DirtyLog

cdef unsigned long long _LAST_ADDRESS

cdef class Region:
    cdef object _map
    cdef readonly unsigned long long guest, size, user
    cdef readonly unsigned char[::1] view

cdef class Memory:
    cdef readonly list regions
    cdef readonly DirtyLog log
    cdef public bint logging
    cdef Region _last

    @cython.locals(region=Region, start=cython.ulonglong, size=cython.ulonglong)
    cpdef bint read(self, unsigned long long address, unsigned long long length, unsigned char[::1] out, Py_ssize_t at) except -1
    @cython.locals(region=Region, start=cython.ulonglong, size=cython.ulonglong)
    cpdef bint write(self, unsigned long long address, unsigned long long length, const unsigned char[::1] data, Py_ssize_t at) except -1
    cpdef bint mark(self, unsigned long long address, unsigned long long length) except -1
    @cython.locals(last=Region, region=Region)
    cdef Region _region(self, unsigned long long address)
