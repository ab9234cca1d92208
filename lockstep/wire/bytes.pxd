from libc.string cimport memcmp

cdef bint equal(const unsigned char[::1] a, Py_ssize_t i, const unsigned char[::1] b, Py_ssize_t j, Py_ssize_t size) noexcept
