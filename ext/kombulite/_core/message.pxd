cimport cython

from kombulite._core.plain cimport PlainValue


cdef class Properties:
    cdef readonly object content_type
    cdef readonly object content_encoding
    cdef readonly object headers
    cdef readonly object delivery_mode
    cdef readonly object priority
    cdef readonly object correlation_id
    cdef readonly object reply_to
    cdef readonly object expiration
    cdef readonly object message_id
    cdef readonly object timestamp
    cdef readonly object type
    cdef readonly object user_id
    cdef readonly object app_id
    cdef readonly object cluster_id
    cdef readonly object extra
    cdef bytes encoded
    cdef bint from_header
    cdef unsigned long long following_offset  # in the stream that the message came from; 0 for none

    cdef tuple _values(self)


cdef class Delivery:
    cdef object __weakref__  # tells whether the application still has the message
    cdef readonly object exchange
    cdef readonly object routing_key
    cdef readonly Properties properties
    cdef object content  # the body as it was given, or a PlainValue
    cdef public object consumer_tag
    cdef public object delivery_tag
    cdef public object message_count
    cdef public object source
    cdef public object error
    cdef public double expires_at
    cdef public unsigned long long position
    cdef public unsigned int channel
    cdef public unsigned int delivery_count
    cdef public bint redelivered
    cdef Py_ssize_t size  # bytes in the body, as a MessageQueue counts them

    cdef object sent_body(self)


cdef class BaseMessage:
    cdef public object channel
    cdef public object delivery_tag
    cdef public object content_type
    cdef public object content_encoding
    cdef object content  # the body, or a PlainValue
    cdef public object accept
    cdef public bint no_ack
    cdef public str _state
    cdef public object _decoded
    cdef Delivery _delivery
    cdef object _headers
    cdef object _properties
    cdef object _delivery_info
    cdef object _errors

    cdef object sent_body(self)
    cdef object load(self)
    cdef int _check(self, str state) except -1
    cdef bint _needs_no_ack(self) except -1
    cdef int _count_settled(self, str state) except -1


cdef BaseMessage received(cls, Delivery delivery, channel)
cdef Py_ssize_t size_of(Delivery delivery) except -1


@cython.final
cdef class CounterBlock:
    cdef unsigned long long _published
    cdef unsigned long long _confirmed
    cdef unsigned long long _returned
    cdef unsigned long long _consumed
    cdef unsigned long long _redelivered
    cdef unsigned long long _acked
    cdef unsigned long long _rejected
    cdef unsigned long long _requeued
    cdef unsigned long long _reconnects
    cdef unsigned long long _bytes_sent
    cdef unsigned long long _bytes_received

    cdef int _publish(self, Delivery delivery, bint confirmed) except -1
    cdef int _consume(self, Delivery delivery) except -1
    cdef int _ack(self) except -1
