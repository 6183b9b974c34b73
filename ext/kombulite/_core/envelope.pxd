from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcpy

from kombulite._core.serialization cimport JSON

cdef enum:
    TAG_SIZE = 36
    PREFIX_SIZE = 24  # of a tag: what all of a sequence have in common


cdef struct TagRange:
    char[PREFIX_SIZE] prefix
    unsigned long long next


cdef class EnvelopeTemplate:
    cdef JSON _json
    cdef bytes _middle
    cdef bint _base64

    cdef bytes payload(self, object body)
    cdef Py_ssize_t opening_size(self, bytes payload) except -1
    cdef char* put_opening(self, char* at, bytes payload) noexcept


cdef class TagSequence:
    cdef bytes _prefix
    cdef unsigned long long _count
    cdef int _forks

    cdef int _seed(self) except -1
    cdef int take(self, TagRange* tags, unsigned long long count) except -1


cdef bytes decode_base64(const unsigned char* at, Py_ssize_t size)


cdef char* put_tag(char* at, TagRange* tags) noexcept


cdef inline char* put_bytes(char* at, bytes data) noexcept:
    """Write bytes to a place that has room for them. Returns where they end."""
    memcpy(at, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return at + PyBytes_GET_SIZE(data)
