cimport cython
from lockstep.batch cimport Batch
from lockstep.link.zmq cimport Receiver, Sender
from lockstep.poller cimport Poller
from lockstep.pressure cimport Pressure

@cython.final
cdef class Way:
    cdef readonly Sender sender
    cdef readonly object port, qemu, to

cdef class Shell:
    cdef public bint stopping
    cdef readonly dict _sources, _senders, _receivers, _unread
    cdef dict _cores, _ways, _wiring, _consumers, _producers, _ports, _servers
    cdef object _node, _view, _record, _path, _capture, _stack, _boot, _started, _events_allowed, _rejections_allowed
    cdef object _allowed, _recorder, _notify, _inner, _due
    cdef set _blocked
    cdef Poller _poller
    cdef Pressure _pressure

    cdef int _push(self, service, stream, item, double now) except -1
    cdef int _settle(self, double now) except -1
    @cython.locals(ways=dict, way=Way)
    cdef int _carry_out(self, service, outputs, double now) except -1
    cdef int _send(self, service, where, Sender sender, item, double now) except -1
    @cython.locals(now=cython.double)
    cpdef step(self, timeout=*)
