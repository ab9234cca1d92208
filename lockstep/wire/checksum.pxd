cimport cython

cpdef ones_sum(data, initial=*)
cpdef checksum(data, initial=*)
@cython.locals(total=cython.longlong)
cpdef int moved16(long long field, long long old, long long new) noexcept
@cython.locals(total=cython.longlong)
cpdef int moved32(long long field, long long old, long long new, bint odd=*) noexcept
