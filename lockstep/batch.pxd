cimport cython

cdef class Batch:
    cdef public object data, lengths
    cdef public int vnet
    cdef public long long epoch

cdef class BatchBuilder:
    cdef list _batches
    cdef object _data, _lengths
    cdef object _vnet
