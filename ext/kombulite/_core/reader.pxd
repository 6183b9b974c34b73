cdef enum:
    KEPT_KEYS = 512


cdef object read_json(const char* text, Py_ssize_t size, list keys, object codec)
