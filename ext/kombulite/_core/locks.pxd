cdef class BaseLock:
    cdef object _factory
    cdef object _take
    cdef object _give
    cdef object _ident
    cdef object _on_release
    cdef unsigned long long _owner
    cdef Py_ssize_t _depth

    cdef bint _acquire(self, timeout) except -1
    cdef int _release(self) except -1
    cdef Py_ssize_t _let_go(self) except -1
    cdef int _take_back(self, Py_ssize_t depth) except -1
