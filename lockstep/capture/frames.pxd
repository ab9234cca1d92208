cimport cython
from lockstep.wire.view cimport View

cdef extern from *:
    """
    #include <errno.h>
    #include <unistd.h>

    /* Both keep the GIL: the descriptor doesn't block, and giving it up would cost more than the call. */
    static inline long lockstep_read(int fd, unsigned char *at, size_t room)
    {
        ssize_t got;
        do got = read(fd, at, room); while (got < 0 && errno == EINTR);
        return got < 0 ? -errno : got;
    }

    static inline long lockstep_write(int fd, const unsigned char *at, size_t size)
    {
        ssize_t gone;
        do gone = write(fd, at, size); while (gone < 0 && errno == EINTR);
        return gone < 0 ? -errno : gone;
    }
    """
    long lockstep_read(int fd, unsigned char *at, size_t room) noexcept
    long lockstep_write(int fd, const unsigned char *at, size_t size) noexcept

cdef int _EAGAIN

@cython.final
cdef class Frames:
    cdef public bytearray buffer
    cdef public object lengths
    cdef public long size, taken
    cdef int _fd
    cdef long _most_bytes, _most_frames, _slot, _shortest
    cdef View _buffer, _lengths

    @cython.locals(count=cython.long, got=cython.long)
    cpdef long read(self) except? -1
    @cython.locals(view=View, sizes=View, taken=cython.long, index=cython.long, start=cython.long, end=cython.long, gone=cython.long)
    cpdef long write(self, data, lengths) except -1
    cdef long _read_one(self) except? -1
    cdef long _write_one(self, View view, long start, long end) except? -1
