cimport cython
from cpython.object cimport PyObject

from kombulite._core.channel cimport AckStep
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
    cdef bint _takes_values(self) except -1
    cdef int _add(self, Delivery delivery, double expires_at) except -1
    cdef Delivery _pop(self)
    cdef list _pop_expired(self, double now)


@cython.final
cdef class UnackedDeliveries(AckStep):
    cdef dict _outstanding
    cdef readonly list stalled
    cdef readonly unsigned long long highest_tag
    cdef bint _closed
    cdef public Py_ssize_t prefetch_count
    cdef public bint active

    cpdef bint has_credit(self)
    cdef int _hand_over(self, Delivery delivery, MessageQueue source, unsigned int channel, consumer_tag,
                        bint no_ack) except -1


cdef class ConsumerSlot:
    cdef readonly MessageQueue messages
    cdef readonly UnackedDeliveries ledger
    cdef readonly object tag
    cdef readonly unsigned int channel_number
    cdef readonly bint no_ack
    cdef readonly bint listed  # whether a rota holds it


@cython.final
cdef class ConsumerRing:
    cdef list _ready
    cdef Py_ssize_t _turn  # index of whose turn it is
    cdef list _emptied
    cdef list _stalled
    cdef list _expired
    cdef readonly list left  # not empty where ``take_left`` has something to tell; always the same list

    cdef int _forget_left(self) except -1
    cdef int _unlist(self, ConsumerSlot claimant) except -1
    cdef Delivery _next(self, double now)
    cdef int _stall(self, UnackedDeliveries ledger) except -1
    cdef Delivery _claim(self, ConsumerSlot claimant, double now)


@cython.final
cdef class FastPath:
    cdef ConsumerRing _rota
    cdef object _notices
    cdef object _expiring
    cdef object _tidy

    cdef Delivery _next(self)
