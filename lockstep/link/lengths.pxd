cimport cython

@cython.locals(count=cython.Py_ssize_t, index=cython.Py_ssize_t, total=cython.ulonglong, smallest=cython.uint,
               largest=cython.uint, length=cython.uint)
cpdef tuple extent(const unsigned int[::1] lengths)
