cimport cython
from lockstep.wire.view cimport View

cdef unsigned int _ENTRY, _RING_MASK, _MASK
cdef unsigned int _E_BATCH, _E_INDEX, _E_START, _E_L4, _E_SIZE, _E_NEXT, _E_PREVIOUS, _E_RECORD
cdef unsigned int _LEAVES, _GONE
cdef long long _LARGE

@cython.final
cdef class Kept:
    cdef public object batch, view
    cdef public double at
    cdef public long long number, first, count, left, fresh, low, low_start, high, first_entry, entries
    cdef tuple _views
    cdef const unsigned char* data
    cdef const unsigned int* lengths
    cdef unsigned char* marks

    @cython.locals(data=View, lengths=View, marks=View)
    cpdef _see(self, batch)
    cpdef void leave(self, long long index, long long start) noexcept
    cpdef void gone(self, long long index) noexcept
    @cython.locals(index=cython.longlong, end=cython.longlong, start=cython.longlong, run=cython.longlong,
                   run_start=cython.longlong, whole=cython.bint)
    cpdef bint gather(self, builder) except -1
    @cython.locals(index=cython.longlong, end=cython.longlong)
    cpdef part(self)

@cython.final
cdef class Side:
    cdef public list batches
    cdef public long long bytes, done, entry
    cdef long long _first
    cdef object _memory
    cdef unsigned int* ring

    cdef void _see(self, unsigned int[::1] ring) except *
    @cython.locals(kept=Kept)
    cpdef Kept take(self, batch, long long first, double at)
    @cython.locals(ring="unsigned int*", at=cython.uint)
    cdef unsigned int add(self, Kept kept, unsigned int index, unsigned int start, unsigned int l4, unsigned int size,
                          unsigned int record) noexcept
    cdef unsigned int at(self, unsigned int number) noexcept
    @cython.locals(kept=Kept)
    cdef Kept holder(self, unsigned int at)
    @cython.locals(at=cython.uint, index=cython.longlong, there=cython.bint)
    cdef Kept recent(self, unsigned int number, unsigned int record)
    @cython.locals(oldest=Kept, used=cython.longlong)
    cpdef bint has_room(self, long long frames, long long most_bytes) except -1
    cpdef drop_oldest(self)
    @cython.locals(count=cython.longlong, dropped=cython.longlong, size=cython.longlong)
    cpdef let_go(self, long long most_bytes, long long most_batches)
    @cython.locals(kept=Kept)
    cpdef long first_left(self, long long index) except -1
    @cython.locals(kept=Kept)
    cdef _drop(self, long long count)
    @cython.locals(kept=Kept)
    cpdef list waiting(self)
    @cython.locals(kept=Kept, index=cython.longlong)
    cpdef oldest(self)
