cimport cython
from libc.string cimport memcmp, memcpy

cdef unsigned int _MASK

cpdef bint equal(const unsigned char* a, Py_ssize_t i, const unsigned char* b, Py_ssize_t j, Py_ssize_t size) noexcept
@cython.locals(value=cython.ulonglong)
cpdef unsigned long long load64(const unsigned char* buf, Py_ssize_t at) noexcept
cpdef unsigned int number32(const unsigned char* buf, Py_ssize_t at) noexcept
cpdef unsigned int number16(const unsigned char* buf, Py_ssize_t at) noexcept
cpdef void set32(unsigned char* buf, Py_ssize_t at, unsigned int value) noexcept
cpdef void set16(unsigned char* buf, Py_ssize_t at, unsigned int value) noexcept
