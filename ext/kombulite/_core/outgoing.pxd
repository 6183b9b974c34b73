from kombulite._core.codecs cimport Codecs
from kombulite._core.message cimport Delivery, Properties


cdef class PlainMessages:
    cdef Codecs _codecs
    cdef dict _known
    cdef Properties _last

    cpdef Delivery make(self, exchange, routing_key, body, serializer, delivery_mode, priority, bint as_value=*)
    cpdef Properties properties(self, content_type, content_encoding, delivery_mode, priority)
    cdef Properties _look_up(self, content_type, content_encoding, delivery_mode, priority)


cdef class BaseMaker:
    cdef Codecs _codecs
    cdef readonly PlainMessages _plain

    cdef bint takes_values(self) except -1
    cdef Delivery _made(self, own_exchange, exchange, routing_key, body, mode, priority, content_type,
                        content_encoding, serializer, headers, compression, expiration, correlation_id, reply_to,
                        properties)
