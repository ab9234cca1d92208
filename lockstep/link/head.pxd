cimport cython

cdef long long _MAX_FRAME, _WITHOUT, _SHORT, _LONG

@cython.final
cdef class Head:
    cdef readonly bytes prefix
    cdef readonly long long epoch, number, total
    cdef readonly Py_ssize_t count, at
    cdef readonly int vnet
    cdef const unsigned char* _prefix
    cdef Py_ssize_t _size, _place

    cdef Py_ssize_t _write(self, unsigned char* out, long long epoch, long long number, int vnet,
                           const unsigned char* lengths, Py_ssize_t size) noexcept
    @cython.locals(place=cython.Py_ssize_t, index=cython.Py_ssize_t)
    cdef bint read(self, const unsigned char* header, Py_ssize_t size) noexcept
    @cython.locals(place=cython.Py_ssize_t)
    cdef bint _key(self, const unsigned char* header, Py_ssize_t size, int name) noexcept
    @cython.locals(place=cython.Py_ssize_t, kind=cython.int)
    cdef long long _number(self, const unsigned char* header, Py_ssize_t size) noexcept
    @cython.locals(place=cython.Py_ssize_t, index=cython.Py_ssize_t, value=cython.longlong)
    cdef long long _big_endian(self, const unsigned char* header, Py_ssize_t size, int width) noexcept
    @cython.locals(place=cython.Py_ssize_t, kind=cython.int, extent=cython.longlong, total=cython.longlong,
                   most=cython.longlong, length=cython.longlong)
    cdef bint _lengths(self, const unsigned char* header, Py_ssize_t size) noexcept
    @cython.locals(place=cython.Py_ssize_t, index=cython.Py_ssize_t)
    cdef Py_ssize_t write(self, unsigned char* out, long long epoch, long long number, int vnet,
                          const unsigned char* lengths, Py_ssize_t size) noexcept
    cdef Py_ssize_t _put(self, unsigned char* out, Py_ssize_t place, long long value) noexcept
    @cython.locals(index=cython.Py_ssize_t)
    cdef Py_ssize_t _put_big_endian(self, unsigned char* out, Py_ssize_t place, int kind, long long value, int width) noexcept
