cimport cython

from lockstep.vhost.log cimport DirtyLog

cdef extern from *:
    """
    #include <string.h>

    /* Guest memory is written, or read into memory of ours that `read` takes as writable. */
    static inline void lockstep_copy(unsigned char *guest, const unsigned char *ours, size_t size, int write)
    {
        if (write)
            memcpy(guest, ours, size);
        else
            memcpy((unsigned char *)ours, guest, size);
    }
    """
    void copy "lockstep_copy"(unsigned char *guest, const unsigned char *ours, size_t size, int write) noexcept

cdef unsigned long long _LAST_ADDRESS

cdef class Region:
    cdef object _map, _source
    cdef public object told
    cdef readonly unsigned long long guest, size, user
    cdef readonly unsigned char[::1] view

cdef class Memory:
    cdef readonly list regions
    cdef readonly DirtyLog log
    cdef public bint logging
    cdef Region _last

    cpdef bint read(self, unsigned long long address, unsigned long long length, unsigned char[::1] out, Py_ssize_t at) except -1
    cpdef bint write(self, unsigned long long address, unsigned long long length, const unsigned char[::1] data, Py_ssize_t at) except -1
    @cython.locals(region=Region, start=cython.ulonglong, size=cython.ulonglong)
    cdef bint _copy(self, unsigned long long address, unsigned long long length, const unsigned char[::1] ours, Py_ssize_t at, bint write) except -1
    cpdef bint mark(self, unsigned long long address, unsigned long long length) except -1
    @cython.locals(last=Region, region=Region)
    cdef Region _region(self, unsigned long long address)
