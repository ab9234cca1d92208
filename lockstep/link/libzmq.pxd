cimport cython
from lockstep.link.head cimport Head
from lockstep.link.sequence cimport Sequence

cdef extern from *:
    """
    #include <errno.h>
    #include <stddef.h>
    #include <stdint.h>

    /* `zmq_msg_t` of zmq.h: 64 bytes, aligned as a pointer is. */
    typedef struct { void *aligned[64 / sizeof(void *)]; } lockstep_part;

    static struct {
        int (*error)(void);
        int (*send)(void *, const void *, size_t, int);
        int (*init)(lockstep_part *);
        int (*receive)(lockstep_part *, void *, int);
        int (*more)(const lockstep_part *);
        void *(*data)(lockstep_part *);
        int (*close)(lockstep_part *);
    } lockstep_zmq;

    static inline void lockstep_found(uintptr_t error, uintptr_t send, uintptr_t init, uintptr_t receive, uintptr_t more,
                                      uintptr_t data, uintptr_t close)
    {
        lockstep_zmq.error = (int (*)(void))error;
        lockstep_zmq.send = (int (*)(void *, const void *, size_t, int))send;
        lockstep_zmq.init = (int (*)(lockstep_part *))init;
        lockstep_zmq.receive = (int (*)(lockstep_part *, void *, int))receive;
        lockstep_zmq.more = (int (*)(const lockstep_part *))more;
        lockstep_zmq.data = (void *(*)(lockstep_part *))data;
        lockstep_zmq.close = (int (*)(lockstep_part *))close;
    }

    /* The bytes of the next part that waits, or an error number, negative. */
    static inline int lockstep_receive(void *socket, lockstep_part *part)
    {
        int size;
        lockstep_zmq.init(part);
        do {
            size = lockstep_zmq.receive(part, socket, 1 /* ZMQ_DONTWAIT */);
        } while (size < 0 && lockstep_zmq.error() == EINTR);
        if (size < 0) {
            size = -lockstep_zmq.error();
            lockstep_zmq.close(part);
        }
        return size;
    }

    static inline int lockstep_send(void *socket, const void *data, size_t size, int flags)
    {
        int sent;
        do {
            sent = lockstep_zmq.send(socket, data, size, flags);
        } while (sent < 0 && lockstep_zmq.error() == EINTR);
        return sent < 0 ? -lockstep_zmq.error() : sent;
    }

    static inline int lockstep_more(lockstep_part *part) { return lockstep_zmq.more(part); }
    static inline const unsigned char *lockstep_data(lockstep_part *part) { return lockstep_zmq.data(part); }
    static inline void lockstep_close(lockstep_part *part) { lockstep_zmq.close(part); }
    """
    ctypedef struct lockstep_part:
        pass
    void found "lockstep_found"(size_t error, size_t send, size_t init, size_t receive, size_t more, size_t data,
                                size_t close) noexcept
    int receive "lockstep_receive"(void *socket, lockstep_part *part) noexcept
    int send_part "lockstep_send"(void *socket, const void *data, size_t size, int flags) noexcept
    bint more_of "lockstep_more"(lockstep_part *part) noexcept
    const unsigned char *data_of "lockstep_data"(lockstep_part *part) noexcept
    void close_part "lockstep_close"(lockstep_part *part) noexcept

cdef int _AGAIN, _DONTWAIT, _SNDMORE
cdef long long _MAX_PART

@cython.final
cdef class Pull:
    cdef public Head head
    cdef public Sequence sequence
    cdef public bint more
    cdef readonly long long most
    cdef void *_socket
    cdef lockstep_part _first, _second

    @cython.locals(size=cython.int, length=cython.int, header="const unsigned char *")
    cpdef object take(self)
    @cython.locals(head=Head)
    cdef bint _expects(self, const unsigned char *header, Py_ssize_t size) noexcept
    @cython.locals(head=Head, frames=bytes, rest=bytes, fits=cython.bint)
    cdef object _batch(self, const unsigned char *header, Py_ssize_t size, Py_ssize_t length)

@cython.final
cdef class Push:
    cdef void *_socket
    cdef Head _head
    cdef Py_ssize_t _room
    cdef bytearray _buffer
    cdef unsigned char *_out

    @cython.locals(count=cython.Py_ssize_t, size=cython.Py_ssize_t, lengths="const unsigned int[::1]",
                   frames="const unsigned char[::1]")
    cpdef bint send(self, batch, long long epoch, long long number, bint whole) except -1
    cdef bint _part(self, const void *data, size_t size, int flags) except -1
