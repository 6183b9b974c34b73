cdef class Codecs:
    cdef readonly dict encoders
    cdef readonly dict decoders
    cdef readonly set disabled
    cdef public tuple default

    cdef tuple _encode(self, data, serializer)
    cdef tuple _dumps(self, data, serializer)
