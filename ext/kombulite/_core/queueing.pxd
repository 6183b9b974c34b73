cimport cython
from cpython.object cimport PyObject

from kombulite._core.message cimport Delivery, Properties


@cython.final
@cython.no_gc
cdef class _Place:
    cdef object exchange
    cdef object routing_key
    cdef Properties properties


cdef struct Slot:
    PyObject* place
    PyObject* content


@cython.final
@cython.no_gc
cdef class _Level:
    cdef Slot* slots
    cdef Py_ssize_t capacity  # a power of two, or 0
    cdef Py_ssize_t start
    cdef Py_ssize_t count
    cdef unsigned long long position  # of the message that was added last

    cdef Slot* at(self, Py_ssize_t index) noexcept
    cdef int grow(self) except -1
    cdef int add(self, object place, object content) except -1
    cdef int put_back(self, Delivery delivery) except -1
    cdef Delivery head(self)
    cdef Delivery take(self)
    cdef int clear(self) except -1


@cython.final
cdef class MessageQueue:
    cdef list _levels
    cdef _Level _level  # the only one, where there are no priorities
    cdef _Place _place  # of the last message
    cdef readonly Py_ssize_t size  # bytes in the bodies
    cdef readonly bint may_expire  # whether any message ever had a time to live

    cdef _Level _level_of(self, Delivery delivery)
    cdef _Place _place_of(self, Delivery delivery)
    cdef int _add(self, Delivery delivery, double expires_at) except -1
    cdef Delivery _pop(self)
    cdef list _pop_expired(self, double now)
