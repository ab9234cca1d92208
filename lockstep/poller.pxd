cimport cython

cdef extern from *:
    """
    #include <errno.h>
    #include <sys/epoll.h>

    #define LOCKSTEP_EVENTS 32

    typedef struct { struct epoll_event event[LOCKSTEP_EVENTS]; } lockstep_events;

    /* How many are ready; 0 as well if a signal came, whose handler has then run. -1: an exception is set. */
    static inline int lockstep_wait(int fd, lockstep_events *events, int milliseconds)
    {
        int count;
        if (milliseconds) {
            Py_BEGIN_ALLOW_THREADS
            count = epoll_wait(fd, events->event, LOCKSTEP_EVENTS, milliseconds);
            Py_END_ALLOW_THREADS
        } else {
            count = epoll_wait(fd, events->event, LOCKSTEP_EVENTS, 0);
        }
        if (count < 0 && errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        /* Nothing else here looks for signals: no bytecode runs. */
        if (PyErr_CheckSignals())
            return -1;
        return count < 0 ? 0 : count;
    }

    static inline int lockstep_descriptor(lockstep_events *events, int n)
    {
        return events->event[n].data.fd;
    }
    """
    ctypedef struct lockstep_events:
        pass
    int wait_for "lockstep_wait"(int fd, lockstep_events *events, int milliseconds) except -1
    int descriptor "lockstep_descriptor"(lockstep_events *events, int n) noexcept

cdef class Poller:
    cdef object _epoll
    cdef int _fd
    cdef lockstep_events _events
    cdef dict _acts
    cdef set _again, _resting

    @cython.locals(again=set, ready=list)
    cpdef list wait(self, timeout)
    @cython.locals(count=cython.int, n=cython.int)
    cdef list _ready(self, timeout)
    cpdef act(self, fd, double now)
