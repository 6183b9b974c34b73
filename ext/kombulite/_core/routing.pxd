cimport cython

from kombulite._core.message cimport Delivery


@cython.final
cdef class RoutingTable:
    cdef dict _exchanges
    cdef dict _by_queue  # queue -> {identity: Binding}

    cdef object _node(self, object exchange)
    cdef object known_queue(self, Delivery message, dict queues)
    cdef tuple _route(self, object exchange, object routing_key, object headers)
    cdef tuple _spread(self, object start, str routing_key, object headers)
