cimport cython
from lockstep.flow.records cimport Records
from lockstep.wire.bytes cimport equal, number32
from lockstep.wire.frame cimport Frame, dissect, dissect_at
from services.comparer.record cimport Reader
from services.comparer.side cimport Kept, Side

cdef unsigned int _FIELDS, _FLAGS
cdef unsigned int _CAREFUL, _P_SEEN, _S_SEEN, _ACKED_SET, _LEFT_SET, _SCALED, _EDGE_SET, _TOLD_SET, _SHIFT_AT
cdef unsigned int _TOUCHED, _P_SEQ, _S_SEQ, _ACKED, _LEFT_ACK, _P_HEAD, _P_TAIL, _S_HEAD, _S_TAIL, _P_USED, _S_USED
cdef unsigned int _FRONT, _EDGE, _TOLD, _PLACE, _PLACE_HIGH
cdef unsigned int _E_INDEX, _E_START, _E_L4, _E_SIZE, _E_NEXT, _E_PREVIOUS, _E_RECORD
cdef int _TCP, _CHATTER
cdef unsigned int _SEQ, _ACK_NUMBER, _FLAGS_AT, _WINDOW, _ACK, _ORDINARY
cdef long long _MANY, _AHEAD
cdef unsigned int _MASK, _HALF
cdef unsigned int _PROVEN
cdef int _MOST_ENTRIES, _WHOLE, _DIGEST, _KEY, _HASH_BYTES, _MALFORMED, _NO_FRAME

@cython.final
cdef class Lane:
    cdef public object core
    cdef public Records records
    cdef public long long capacity, count, room, waiting
    cdef public bint ask
    cdef unsigned int* fields
    cdef Frame _frame, _held_frame
    cdef unsigned long long _ahead[32]
    cdef double _now
    cdef Side _primary, _secondary
    cdef list _touched
    cdef object _builder
    cdef long long _swept, _brought_bytes, _most_bytes
    cdef dict _brought
    cdef bint _digests
    cdef object _hasher
    cdef bytes _secret
    cdef public long long chunks, matched, keys
    cdef Reader _reader
    cdef int _chunk

    cpdef primary(self, batch, double now, long long number)
    @cython.locals(f=Frame, data="const unsigned char*", fields="unsigned int*", side=Side, seconds=cython.uint,
                   end=cython.int, start=cython.int, index=cython.int, kind=cython.int, l4=cython.int, record=cython.longlong,
                   at=cython.longlong, size=cython.uint, seq=cython.uint, entry=cython.uint, last=cython.uint)
    cdef _take_primary(self, Kept kept, int vnet)
    cpdef secondary(self, batch, double now)
    @cython.locals(f=Frame, data="const unsigned char*", fields="unsigned int*", seconds=cython.uint, end=cython.int,
                   start=cython.int, index=cython.int, kind=cython.int, l4=cython.int,
                   record=cython.longlong, at=cython.longlong, size=cython.uint, seq=cython.uint)
    cdef _take_secondary(self, Kept kept, int vnet)
    @cython.locals(fields="unsigned int*", side=Side, at=cython.longlong, entry=cython.uint)
    cdef unsigned int _queue_secondary(self, Kept kept, unsigned int index, unsigned int start, unsigned int l4,
                                       unsigned int size, long long record) noexcept
    cdef _careful_secondary(self, Kept kept, long long start, long long end)
    @cython.locals(f=Frame, data="const unsigned char*", reader=Reader, kind=cython.int)
    cdef int _open_record(self, Kept kept, int start, int end, int vnet) except -1
    @cython.locals(kept=Kept)
    cdef bint _take_key(self, bytes secret) except -1
    @cython.locals(hashes=cython.uint, part=cython.int, entry=cython.uint)
    cdef void _queue_chunks(self, Kept kept, unsigned int index, unsigned int start, unsigned int l4, int size,
                            long long record) noexcept
    @cython.locals(ring="unsigned int*", size=cython.uint, at=cython.uint, made=bytes)
    cdef bint _has_hash(self, long long record, Kept kept, unsigned int payload, unsigned int rest, Kept other,
                        unsigned int s) except -1
    @cython.locals(fields="unsigned int*", ring="unsigned int*", number=cython.uint, skipped=cython.uint, entry=cython.uint)
    cdef bytearray _gathered(self, long long record, unsigned int size)
    @cython.locals(count=cython.longlong, index=cython.longlong, start=cython.longlong, kind=cython.int)
    cdef void _look_ahead(self, Kept kept, int vnet, long long first, long long end) noexcept
    @cython.locals(record=cython.longlong)
    cdef long long _open(self, Frame f, const unsigned char* data) noexcept
    @cython.locals(fields="unsigned int*", ack=cython.uint, edge=cython.uint)
    cdef void _hear(self, long long at, const unsigned char* data, int l4) noexcept
    @cython.locals(shift=cython.uint, window=cython.uint, edge=cython.uint)
    cdef unsigned int _edge(self, long long at, const unsigned char* data, int l4) noexcept
    @cython.locals(fields="unsigned int*", p_ring="unsigned int*", s_ring="unsigned int*", at=cython.longlong, p=cython.uint,
                   s=cython.uint, kept=Kept, other=Kept, data="const unsigned char*", l4=cython.uint, size=cython.uint,
                   payload=cython.uint, other_l4=cython.uint, other_size=cython.uint, other_payload=cython.uint,
                   part=cython.uint, ack=cython.uint, low=cython.uint, hashed=cython.uint)
    cdef _match(self, long long record)
    @cython.locals(fields="unsigned int*", edge=cython.uint)
    cdef bint _as_it_is(self, long long at, const unsigned char* data, int l4) noexcept
    cpdef leave(self, Kept kept, long long index, long long start)
    cdef _careful_primary(self, Kept kept, long long index, long long start, long long end)
    @cython.locals(kept=Kept)
    cpdef list leaving(self)
    @cython.locals(index=cython.longlong)
    cdef _make_room(self, Side side, long long frames, unsigned int head)
    @cython.locals(kept=Kept, side=Side, budget=cython.long)
    cpdef tick(self, double now, double heard)
    cdef double _patience(self) except -1
    @cython.locals(ring="unsigned int*", fields="unsigned int*", number=cython.longlong, record=cython.longlong,
                   before=cython.longlong, gone=cython.longlong)
    cdef long _promote_waiting(self, Side side, Kept kept, unsigned int head, long long most=*) except? -1
    @cython.locals(kept=Kept, side=Side)
    cpdef promote_waiting(self, double now)
    @cython.locals(at=cython.longlong, field=cython.uint)
    cpdef promote(self, long long record, bint late=*)
    @cython.locals(fields="unsigned int*", at=cython.longlong, flags=cython.uint, head=cython.uint, high=cython.ulonglong)
    cdef _flow_of(self, long long record)
    @cython.locals(ring="unsigned int*", l4=cython.uint, payload=cython.uint)
    cdef _payload(self, Kept kept, unsigned int entry)
    @cython.locals(fields="unsigned int*", ring="unsigned int*", at=cython.longlong, following=cython.uint, number=cython.uint,
                   size=cython.longlong, entry=cython.uint, seq=cython.uint, kept=Kept)
    cdef bytes _history(self, long long record)
    @cython.locals(fields="unsigned int*", ring="unsigned int*", at=cython.longlong, number=cython.uint, entry=cython.uint,
                   kept=Kept, start=cython.longlong, index=cython.longlong)
    cdef list _said(self, long long record)
    @cython.locals(fields="unsigned int*", ring="unsigned int*", at=cython.longlong, number=cython.uint, entry=cython.uint,
                   kept=Kept, start=cython.longlong, index=cython.longlong, f=Frame)
    cdef list _held(self, long long record)
    @cython.locals(fields="unsigned int*", at=cython.longlong, flags=cython.uint, record=cython.longlong)
    cpdef bint demote(self, flow) except -1
    @cython.locals(record=cython.longlong)
    cpdef bint claim(self, bytes key) except -1
    @cython.locals(record=cython.longlong)
    cpdef forget(self, bytes key)
    cpdef bint knows(self, bytes key) except -1
    @cython.locals(record=cython.longlong)
    cdef Py_ssize_t _in_the_lane(self, bytes key) except -1
    @cython.locals(record=cython.longlong)
    cpdef promote_key(self, bytes key, double now)
    @cython.locals(record=cython.longlong, at=cython.longlong, flags=cython.uint)
    cpdef committed(self)
    @cython.locals(record=cython.longlong, flags=cython.uint)
    cpdef clear(self)
    cdef _forget(self, long long record)
    @cython.locals(highest=cython.longlong, at=cython.longlong, flags=cython.uint)
    cpdef sweep(self, double now, double idle)

cdef bint after(unsigned int a, unsigned int b) noexcept
