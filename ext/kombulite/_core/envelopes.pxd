from kombulite._core.message cimport Delivery
from kombulite._core.serialization cimport JSON


cdef class EnvelopeReader:
    cdef JSON _json
    cdef dict _known  # place -> what its envelopes have in common

    cdef Delivery _read(self, object place, object data)
