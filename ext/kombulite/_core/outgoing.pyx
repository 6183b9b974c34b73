"""Messages on their way out: what a publisher gives, as a delivery."""

cimport cython

from kombulite._core.codecs cimport Codecs
from kombulite._core.message cimport Delivery, Properties


@cython.final
cdef class PlainMessages:
    """Makes messages that have no headers, and no properties but those that many others have too.

    They share their ``Properties``: transports encode these once, and tell by them what a message has in common with
    the one before. ``codecs`` encodes the bodies.
    """

    cdef Codecs _codecs
    cdef dict _known
    cdef Properties _last

    def __init__(self, Codecs codecs not None):
        self._codecs = codecs
        self._known = {}

    def make(self, exchange, routing_key, body, serializer, delivery_mode, priority):
        """A message with a body to encode. Raises EncodeError, SerializerNotInstalled."""
        cdef tuple encoded = self._codecs._encode(body, serializer)
        return Delivery(
            exchange, routing_key, self.properties(encoded[0], encoded[1], delivery_mode, priority), encoded[2]
        )

    cpdef Properties properties(self, content_type, content_encoding, delivery_mode, priority):
        """The properties that all such messages share."""
        cdef Properties found
        with cython.critical_section(self):
            found = self._last
            if (
                found is None or content_type is not found.content_type
                or content_encoding is not found.content_encoding
                or delivery_mode is not found.delivery_mode or priority is not found.priority
            ):
                found = self._look_up(content_type, content_encoding, delivery_mode, priority)
                self._last = found
        return found

    cdef Properties _look_up(self, content_type, content_encoding, delivery_mode, priority):
        key = content_type, content_encoding, delivery_mode, priority
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Properties(content_type, content_encoding, None, delivery_mode, priority)
        return <Properties> found
