from kombulite._core.buffer cimport Buffer


cdef class JSON:
    cdef dict _encoders
    cdef dict _found
    cdef dict _decoders
    cdef list _keys
    cdef dict _immutable
    cdef bint keeps_standard_types

    cdef bint keeps(self, object value) except -1
    cdef int _learn_standard_types(self) except -1
    cpdef bytes dump_bytes(self, value)
    cpdef object loads(self, data)
    cdef int write(self, Buffer* out, object value) except -1
    cdef int _write_dict(self, Buffer* out, dict value) except -1
    cdef int _write_key(self, Buffer* out, object key) except -1
    cdef int _write_list(self, Buffer* out, list value) except -1
    cdef int _write_stand_in(self, Buffer* out, object value) except -1
    cdef int _write_typed(self, Buffer* out, object value, tuple encoder) except -1
    cdef object _encoder_of(self, object kind)


cdef int write_str(Buffer* out, object text) except -1
cdef int write_float(Buffer* out, double value) except -1
cdef Py_ssize_t size_of_str(object text) noexcept
