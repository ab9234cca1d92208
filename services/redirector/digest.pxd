cimport cython
from libc.string cimport memcpy
from lockstep.batch cimport Batch
from lockstep.wire.bytes cimport number16, set16
from lockstep.wire.frame cimport Frame, dissect_at
from lockstep.wire.view cimport View

cdef extern from *:
    """
    static inline PyObject *lockstep_lent(const unsigned char *data, Py_ssize_t at, Py_ssize_t size)
    {
        return PyMemoryView_FromMemory((char *)data + at, size, PyBUF_READ);
    }
    """
    object lent "lockstep_lent"(const unsigned char* data, Py_ssize_t at, Py_ssize_t size)

cdef int _WHOLE, _DIGEST, _KEY, _HASH_BYTES, _HEAD_BYTES, _SHORTEST, _LONGEST_SEGMENT, _CHUNK
cdef int _GSO_SIZE, _TCP, _FLAGS, _NEVER_CUT, _TOTAL_LENGTH, _PAYLOAD_LENGTH, _IPV6_HEADER

@cython.final
cdef class Digester:
    cdef readonly bytes secret
    cdef readonly object hashed
    cdef bytes _key
    cdef Frame _frame
    cdef bytearray _records
    cdef View _into

    cdef _make_room(self, Py_ssize_t size)
    cpdef Batch records(self, Batch batch)
    @cython.locals(f=Frame, data="const unsigned char*", into="unsigned char*", vnet=cython.int, at=cython.Py_ssize_t,
                   before=cython.Py_ssize_t, start=cython.int, end=cython.int, index=cython.Py_ssize_t, chunk=cython.int)
    cdef Py_ssize_t _write(self, Batch batch, View frames, View lengths, View written) except -1
    @cython.locals(f=Frame, size=cython.int, length=cython.int, chunk=cython.int)
    cdef int _chunk(self, const unsigned char* data, int start, int vnet) noexcept
    @cython.locals(low=cython.int, high=cython.int, made=bytes)
    cdef Py_ssize_t _hash(self, const unsigned char* data, int chunk, Py_ssize_t at) except -1

cdef part(const unsigned char* data, Py_ssize_t at, Py_ssize_t size)
cdef void copy(unsigned char* into, Py_ssize_t at, const unsigned char* data, Py_ssize_t start, Py_ssize_t size) noexcept
