cimport cython

from lockstep.wire.frame cimport Frame, dissect_at
from lockstep.wire.view cimport View

cdef int _TCP, _FLAGS, _SYN, _ACK

@cython.locals(view=View, sizes=View, found=cython.longlong, start=cython.int, end=cython.int, index=cython.Py_ssize_t)
cpdef long long count(Frame f, buf, lengths, int vnet) except -1
@cython.locals(view=View, frames=cython.longlong, at=cython.Py_ssize_t, start=cython.int, end=cython.int, index=cython.Py_ssize_t)
cpdef long long keep(Frame f, const unsigned char[::1] buf, const unsigned int[::1] lengths, int vnet, long long allowed, unsigned char[::1] into, unsigned int[::1] kept) except -1
cdef bint _opens(Frame f, const unsigned char* buf, int start, int end) noexcept
