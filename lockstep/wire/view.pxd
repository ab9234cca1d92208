cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

cdef extern from *:
    """
    #define lockstep_pointer(held) ((unsigned char *)(held)->buf)
    #define lockstep_words(held) ((unsigned int *)(held)->buf)
    """
    unsigned char* pointer "lockstep_pointer"(Py_buffer* held) noexcept
    unsigned int* words "lockstep_words"(Py_buffer* held) noexcept

@cython.final
cdef class View:
    cdef Py_buffer _held
    cdef unsigned char* data
    cdef unsigned int* words
