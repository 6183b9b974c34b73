cimport cython

from kombulite._core.message cimport Delivery


@cython.final
cdef class MessageQueue:
    cdef list _levels
    cdef object _level  # the only one, where there are no priorities; and its methods, looked up once
    cdef object _append
    cdef object _popleft
    cdef unsigned long long _position
    cdef readonly Py_ssize_t size  # bytes in the bodies
    cdef readonly bint may_expire  # whether any message ever had a time to live

    cdef object _level_of(self, Delivery delivery)
    cdef int _add(self, Delivery delivery, double expires_at) except -1
    cdef Delivery _pop(self)
    cdef list _pop_expired(self, double now)
