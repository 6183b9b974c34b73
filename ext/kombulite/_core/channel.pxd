from kombulite._core.message cimport BaseMessage, CounterBlock, Delivery


cdef class PublishStep:
    cdef bint takes_values

    cdef object send(self, object channel, Delivery delivery, bint mandatory, object timeout, object confirm_timeout)


cdef class AckStep:
    cdef bint acknowledge_tag(self, object delivery_tag) except -1


cdef class BaseChannel:
    cdef public object channel_id
    cdef object _publish
    cdef PublishStep _publish_step  # instead of `_publish`, where the transport has one
    cdef object _settle
    cdef AckStep _ack_step
    cdef bint _confirmed
    cdef object _acknowledged
    cdef public object raw  # the channel of a foreign transport that it stands for, or None
    cdef bint _is_open
    cdef public object session
    cdef public object positions  # of its consumers in streams, once there are any
    cdef readonly CounterBlock _tally
    cdef readonly dict _subscriptions  # by consumer tag

    cdef object _send(self, Delivery delivery, bint mandatory, object timeout, object confirm_timeout)
    cdef bint _is_usable(self) except -1
    cdef bint _dispatch(self, object event) except -1


cdef class BaseSession:
    cdef public dict channels
    cdef public object poll_ready
    cdef public object declared

    cdef bint _dispatch_from(self, object poll_ready) except -1
    cdef bint _dispatch(self, object event) except -1
