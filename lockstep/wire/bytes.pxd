cimport cython
from libc.string cimport memcmp, memcpy

cpdef bint equal(const unsigned char* a, Py_ssize_t i, const unsigned char* b, Py_ssize_t j, Py_ssize_t size) noexcept
@cython.locals(value=cython.ulonglong)
cpdef unsigned long long load64(const unsigned char* buf, Py_ssize_t at) noexcept
