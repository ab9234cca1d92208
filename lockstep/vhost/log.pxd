cimport cython

cdef extern from *:
    """
    /* The front-end takes whole words out of the log by atomic exchange while we set bits in it. */
    static inline void lockstep_fetch_or(unsigned char *at, unsigned char bits)
    {
        __atomic_fetch_or(at, bits, __ATOMIC_SEQ_CST);
    }
    """
    void fetch_or "lockstep_fetch_or"(unsigned char *at, unsigned char bits) noexcept

cdef class DirtyLog:
    cdef object _map
    cdef unsigned char[::1] _view
    cdef readonly unsigned long long size

    @cython.locals(page=cython.ulonglong, last=cython.ulonglong)
    cpdef bint mark(self, unsigned long long address, unsigned long long length) except -1
