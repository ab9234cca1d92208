cimport cython
from lockstep.batch cimport Batch
from lockstep.link.head cimport Head
from lockstep.link.sequence cimport Sequence

cdef extern from *:
    """
    #include <errno.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/uio.h>

    /* How many bytes came; 0 at the end of the stream, -1 if none wait. */
    static inline Py_ssize_t lockstep_receive_into(int fd, unsigned char *out, Py_ssize_t size)
    {
        Py_ssize_t got;
        do {
            got = recv(fd, out, (size_t)size, MSG_DONTWAIT);
        } while (got < 0 && errno == EINTR);
        return got >= 0 ? got : errno == EAGAIN ? -1 : 0;
    }

    /* How many bytes of both were sent; -1 if the connection has ended. */
    static inline Py_ssize_t lockstep_send_both(int fd, const unsigned char *first, Py_ssize_t size,
                                                const unsigned char *second, Py_ssize_t length)
    {
        struct iovec parts[2];
        struct msghdr message;
        Py_ssize_t sent;
        memset(&message, 0, sizeof message);
        parts[0].iov_base = (void *)first;
        parts[0].iov_len = (size_t)size;
        parts[1].iov_base = (void *)second;
        parts[1].iov_len = (size_t)length;
        message.msg_iov = parts;
        message.msg_iovlen = length ? 2 : 1;
        do {
            sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        } while (sent < 0 && errno == EINTR);
        return sent >= 0 ? sent : errno == EAGAIN ? 0 : -1;
    }

    /* What stands in front of a ZMTP frame: how long it is. */
    static inline int lockstep_append_front(unsigned char *out, Py_ssize_t size, int flags)
    {
        int n;
        if (size < 256) {
            out[0] = (unsigned char)flags;
            out[1] = (unsigned char)size;
            return 2;
        }
        out[0] = (unsigned char)(flags | 2);
        for (n = 0; n < 8; n++)
            out[1 + n] = (unsigned char)((unsigned long long)size >> (56 - 8 * n));
        return 9;
    }

    /* The same, so that it ends at `place`. */
    static inline int lockstep_put_front(unsigned char *out, Py_ssize_t place, Py_ssize_t size, int flags)
    {
        return lockstep_append_front(out + place - (size < 256 ? 2 : 9), size, flags);
    }
    """
    Py_ssize_t receive_into "lockstep_receive_into"(int fd, unsigned char *out, Py_ssize_t size) noexcept
    Py_ssize_t send_both "lockstep_send_both"(int fd, const unsigned char *first, Py_ssize_t size,
                                              const unsigned char *second, Py_ssize_t length) noexcept
    int append_front "lockstep_append_front"(unsigned char *out, Py_ssize_t size, int flags) noexcept
    int put_front "lockstep_put_front"(unsigned char *out, Py_ssize_t place, Py_ssize_t size, int flags) noexcept

cdef int _MORE, _LONG, _COMMAND
cdef long long _MAX_PART
cdef Py_ssize_t _ROOM, _LARGE, _MOST_FRONT, _TURN

cdef class Spare:
    cdef list _kept

@cython.final
cdef class Incoming:
    cdef readonly object socket
    cdef readonly int descriptor
    cdef public bint drained, due
    cdef readonly object why
    cdef Spare _spare
    cdef object _handshake
    cdef bytearray _in, _body
    cdef Py_ssize_t _start, _end, _size, _filled
    cdef list _parts
    cdef bint _more

    cpdef list take(self)
    @cython.locals(wanted=cython.Py_ssize_t, got=cython.Py_ssize_t, rest=cython.Py_ssize_t)
    cdef bint _read(self) except -1
    @cython.locals(data="unsigned char *", at=cython.Py_ssize_t, have=cython.Py_ssize_t, size=cython.Py_ssize_t,
                   fore=cython.Py_ssize_t, most=cython.Py_ssize_t, flags=cython.int, index=cython.int, more=cython.bint, parts=list)
    cdef list _message(self)

@cython.locals(place="unsigned char *")
cdef Py_ssize_t _receive(int descriptor, bytearray buffer, Py_ssize_t at, Py_ssize_t size) except? -2

@cython.final
cdef class Pull:
    cdef public Head head
    cdef public Sequence sequence
    cdef readonly long long refused
    cdef readonly object why
    cdef object _path, _epoll, _listener
    cdef Spare _spare
    cdef dict _peers
    cdef Incoming _only
    cdef object _due
    cdef Py_ssize_t _taken
    cdef readonly bint closed

    @cython.locals(peer=Incoming, parts=list, due=object, only=Incoming, guessed=cython.bint)
    cpdef object take(self)
    @cython.locals(peer=Incoming)
    cdef object _look(self)
    cdef object _owe(self, Incoming peer)
    @cython.locals(head=Head, header=bytes)
    cdef object _expected(self, list parts)

@cython.final
cdef class Push:
    cdef object _path, _waiting, _socket, _handshake, _said, _pause, _epoll, _timer
    cdef long long _hwm
    cdef Head _head
    cdef Py_ssize_t _room, _sent
    cdef bytearray _buffer
    cdef int _descriptor
    cdef readonly bint closed

    @cython.locals(count=cython.Py_ssize_t, size=cython.Py_ssize_t, begin=cython.Py_ssize_t, end=cython.Py_ssize_t,
                   length=cython.Py_ssize_t, sent=cython.Py_ssize_t, lengths="const unsigned int[::1]",
                   frames="const unsigned char[::1]", out="unsigned char *")
    cpdef bint send(self, Batch batch, long long epoch, long long number) except -1
