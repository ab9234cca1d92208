cimport cython

from lockstep.vhost.memory cimport Memory

cdef extern from *:
    """
    #include <string.h>

    static inline unsigned short lockstep_load(const unsigned short *at)
    {
        return __atomic_load_n(at, __ATOMIC_ACQUIRE);
    }

    static inline void lockstep_store(unsigned short *at, unsigned short value)
    {
        __atomic_store_n(at, value, __ATOMIC_RELEASE);
    }

    static inline void lockstep_barrier(void)
    {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }

    /* One copy of a descriptor; the compiler may not look at the original again. */
    static inline void lockstep_fetch(const unsigned char *at, unsigned long long *address, unsigned int *size,
                                      unsigned short *flags, unsigned short *following)
    {
        unsigned char copy[16];
        memcpy(copy, at, sizeof copy);
        __asm__ __volatile__("" ::: "memory");
        memcpy(address, copy, 8);
        memcpy(size, copy + 8, 4);
        memcpy(flags, copy + 12, 2);
        memcpy(following, copy + 14, 2);
    }
    """
    unsigned short load "lockstep_load"(const unsigned short *at) noexcept
    void store "lockstep_store"(unsigned short *at, unsigned short value) noexcept
    void barrier "lockstep_barrier"() noexcept
    void fetch "lockstep_fetch"(
        const unsigned char *at, unsigned long long *address, unsigned int *size, unsigned short *flags,
        unsigned short *following
    ) noexcept

cdef int _DESCRIPTOR_SIZE, _NEXT, _WRITE, _INDIRECT, _NO_INTERRUPT, _NO_NOTIFY
cdef int _FULL, _FRAMES, _BYTES, _ROOM, _TABLE, _ETHERNET, _UDP_L4, _MOST_PIECES, _MOST_ROOM
cdef unsigned long long _LAST_ADDRESS

cdef void _fence() noexcept

cdef class Ring:
    cdef readonly Memory memory
    cdef public int size, base, dropped, super_datagrams, header
    cdef public unsigned long long log_address
    cdef public bint event_idx, indirect, mergeable, log_used
    cdef int _used_index, _called, _seen, _pieces, _piece
    cdef unsigned int _offset
    cdef unsigned long long[::1] _piece_address
    cdef unsigned int[::1] _piece_size, _chains, _used
    cdef unsigned short[::1] _available, _used16
    cdef const unsigned char[::1] _descriptors
    cdef unsigned char[::1] _table, _scratch

    @cython.locals(new=cython.int, old=cython.int, event=cython.int)
    cpdef bint must_call(self) except -1
    cpdef bint listen(self) except -1
    @cython.locals(done=cython.int, head=cython.int, total=cython.longlong)
    cpdef Py_ssize_t gather(self, unsigned char[::1] out, Py_ssize_t at, lengths) except -1
    @cython.locals(n=cython.int, size=cython.uint)
    cdef int _collect(self, unsigned char[::1] out, Py_ssize_t at) except -1
    @cython.locals(
        need=cython.longlong, chains=cython.int, room=cython.longlong, place=cython.int, head=cython.int, n=cython.int,
        before=cython.longlong, upto=cython.longlong,
    )
    cpdef bint scatter(self, const unsigned char[::1] data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t vnet) except -1
    @cython.locals(n=cython.int)
    cdef int _spread(self, const unsigned char[::1] data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t vnet, int chains) except -1
    @cython.locals(room=cython.longlong, size=cython.longlong, address=cython.ulonglong)
    cdef int _put(self, const unsigned char[::1] data, Py_ssize_t at, Py_ssize_t length) except -1
    @cython.locals(seen=cython.int, ahead=cython.int)
    cdef bint _offered(self, int place) except -1
    @cython.locals(
        limit=cython.longlong, at=cython.longlong, steps=cython.longlong, total=cython.longlong, inside=cython.bint,
        address=cython.ulonglong, size=cython.uint, flags=cython.ushort, following=cython.ushort,
        table="const unsigned char[::1]",
    )
    cdef long long _walk(self, int head, bint write) except -1
    @cython.locals(slot=cython.int)
    cdef int _use(self, int head, long long written, int n) except -1
    cdef int _publish(self, int count) except -1
    cdef int _log(self, unsigned long long offset, unsigned long long length) except -1
    cdef int _get_available(self, Py_ssize_t index) except -1
    cdef int _set_used16(self, Py_ssize_t index, int value) except -1
