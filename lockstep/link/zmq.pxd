cimport cython
from lockstep.batch cimport Batch
from lockstep.link.head cimport Head
from lockstep.link.libzmq cimport Pull, Push
from lockstep.link.sequence cimport Sequence
from lockstep.link cimport zmtp

cdef class Sender:
    cdef readonly object stream, socket
    cdef long long _messages, _frames, _bytes, _cuts, _full, _dropped_frames
    cdef object _encode, _pending
    cdef long long _number, _pending_bytes
    cdef Push _push
    cdef zmtp.Push _direct

    cpdef bint send(self, item, epoch) except -1
    cpdef long long _take_number(self)
    cpdef bint flush(self) except -1
    cdef bint _send_waiting(self) except -1
    cdef bint _send(self, item, epoch, number) except -1
    cdef bint _send_batch(self, Batch batch, epoch, number) except -1

cdef class Receiver:
    cdef readonly object stream, socket
    cdef long long _messages, _frames, _bytes, _cuts
    cdef object _gaps, _lost_messages
    cdef dict _rejections
    cdef public object guest
    cdef readonly long long rejected
    cdef readonly object last_rejection
    cdef object _guest, _lock, _expected_boot, _expected_guest
    cdef Sequence _sequence
    cdef dict _sequences
    cdef Pull _pull
    cdef zmtp.Pull _direct

    cpdef list receive(self)
    cdef _count(self, item)
