cimport cython
from libc.string cimport memcpy
from lockstep.wire.frame cimport Frame, dissect
from services.comparer.record cimport Reader

cdef int _TCP, _UDP, _ICMP, _ICMPV6, _OTHER_IP, _FRAGMENT, _SOURCE4, _SOURCE6, _WHOLE, _DIGEST
cdef unsigned long long _MASK32, _MASK64, _FACTOR

@cython.locals(kind=cython.int, words=cython.int, at=cython.int, h=cython.ulonglong)
cpdef int worker_of(Frame f, const unsigned char[::1] buf, unsigned long long workers, unsigned long long seed) except -1
cdef unsigned long long _mixed(unsigned long long h, unsigned long long word) noexcept
@cython.locals(kind=cython.int)
cdef int _of_record(Frame f, Reader reader, const unsigned char[::1] buf, int start, int end, int vnet, unsigned long long workers, unsigned long long seed) except -9
@cython.locals(index=cython.Py_ssize_t, start=cython.int, end=cython.int, one=cython.int, worker=cython.int)
cpdef int deal(Frame f, Reader reader, const unsigned char[::1] buf, const unsigned int[::1] lengths, int vnet, unsigned long long workers, unsigned long long seed, unsigned char[::1] dealt) except -9
@cython.locals(index=cython.Py_ssize_t, start=cython.Py_ssize_t, end=cython.Py_ssize_t, at=cython.longlong, size=cython.uint, worker=cython.int)
cpdef gather(const unsigned char[::1] buf, const unsigned int[::1] lengths, const unsigned char[::1] dealt, long long[::1] places, long long[::1] firsts, unsigned char[::1] into, unsigned int[::1] sorted_lengths)
@cython.locals(index=cython.Py_ssize_t, worker=cython.int)
cpdef measure(const unsigned int[::1] lengths, const unsigned char[::1] dealt, long long[::1] sizes, long long[::1] counts)
