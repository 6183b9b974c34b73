from kombulite._core.message cimport Delivery
from kombulite._core.serialization cimport JSON


cdef class Codecs:
    cdef readonly dict encoders
    cdef readonly dict decoders
    cdef readonly set disabled
    cdef public tuple default
    cdef JSON _json
    cdef object _json_dumps
    cdef object _json_loads

    cdef tuple _encode(self, data, serializer)
    cdef tuple _encode_body(self, Delivery made, data, serializer, bint as_value)
    cdef tuple _dumps(self, data, serializer)
    cdef object _loads(self, data, content_type, content_encoding, accept, bint force)
