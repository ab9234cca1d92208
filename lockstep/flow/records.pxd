cimport cython
from lockstep.wire.bytes cimport load64
from lockstep.wire.frame cimport Frame

cdef extern from *:
    """
    #define lockstep_prefetch(address) __builtin_prefetch(address)
    """
    void lockstep_prefetch(const void* address) noexcept

cdef int _LINE, _FIELDS, _WORDS, _CHAIN, _MOST_TAGS, _SOURCE4, _SOURCE6
cdef unsigned long long _MASK32, _MASK64

@cython.final
cdef class Records:
    cdef public long long capacity, used
    cdef long long _made, _free
    cdef unsigned long long _shift, _seed, _first, _second, _third, _k0, _k1, _k2, _k3, _k4, _bucket
    cdef object _memory, _bucket_memory
    cdef unsigned int* fields
    cdef unsigned long long* words
    cdef unsigned int* _heads

    cdef void _see(self, unsigned int[::1] fields, unsigned long long[::1] words, unsigned int[::1] heads) except *
    cdef long long find(self, Frame f, const unsigned char* buf) noexcept
    cdef unsigned long long approach(self, Frame f, const unsigned char* buf) noexcept
    @cython.locals(at=cython.longlong)
    cdef void come_near(self, unsigned long long bucket) noexcept
    cdef long long claim(self, Frame f, const unsigned char* buf) noexcept
    cpdef Py_ssize_t find_key(self, bytes key) except -1
    cpdef Py_ssize_t claim_key(self, bytes key) except -1
    @cython.locals(at=cython.longlong, following=cython.longlong, field=cython.int)
    cpdef void forget(self, long long record)
    cpdef long long highest(self) noexcept
    @cython.locals(at=cython.longlong, record=cython.longlong)
    cdef long long _found(self) noexcept
    @cython.locals(at=cython.longlong, record=cython.longlong)
    cdef long long _made_one(self) noexcept
    @cython.locals(at=cython.int, l4=cython.int, ports=cython.ulonglong, ids=cython.ulonglong, version=cython.ulonglong, tags=cython.ulonglong)
    cdef void _read(self, Frame f, const unsigned char* buf) noexcept
    cdef void _parse(self, bytes key) except *
    @cython.locals(h=cython.ulonglong)
    cdef void _hash(self) noexcept
