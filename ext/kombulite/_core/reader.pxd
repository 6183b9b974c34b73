cdef enum:
    KEPT_KEYS = 512


cdef struct Span:
    const unsigned char* start
    Py_ssize_t size


cdef object read_json(const char* text, Py_ssize_t size, list keys, object codec)
cdef dict read_object_but(str name, Span* apart, const char* text, Py_ssize_t size, list keys, object codec)
