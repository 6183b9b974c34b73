from kombulite._core.serialization cimport JSON


cdef object copied(object value)


cdef class PlainValue:
    cdef object _value
    cdef JSON _json  # that would have written it
    cdef bint _is_flat
    cdef readonly Py_ssize_t size
    cdef readonly bint has_types

    cpdef object build(self)
    cpdef bytes text(self)


cpdef PlainValue plain_value(object value, JSON json)
