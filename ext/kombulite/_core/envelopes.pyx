"""Envelopes that come one after the other: what neighbours have in common is read once."""

from kombulite._core.envelope import MalformedEnvelope, decode_envelope

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.string cimport memchr, memcmp

from kombulite._core.envelope cimport decode_base64
from kombulite._core.message cimport Delivery, Properties
from kombulite._core.serialization cimport JSON


cdef extern from "Python.h":
    object PyUnicode_DecodeASCII(const char* text, Py_ssize_t size, const char* errors)


cdef Py_ssize_t MOST_PLACES = 1000  # of which an ``EnvelopeReader`` knows what their envelopes have in common
cdef Py_ssize_t MOST_ALIKE = 4096  # bytes of that
cdef const char* BODY = b'{"body": "'  # how an envelope begins
cdef enum:
    BODY_AT = 10  # bytes of that


@cython.final
cdef class EnvelopeReader:
    """Reads envelopes that come from several places, such as queues. Those from one place are often alike.

    An envelope that differs from an earlier one in nothing but its body and its delivery tag is decoded as far as these
    go; all else is known. What is known is bounded.
    """

    def __cinit__(self, JSON json not None):
        self._json = json
        self._known = {}

    def read(self, place, data):
        """What ``decode_envelope`` returns, and raises. ``place``: where the envelope comes from, hashable."""
        return self._read(place, data)

    cdef Delivery _read(self, object place, object data):
        cdef Alike alike
        cdef Delivery delivery
        if not PyBytes_CheckExact(data):
            return decode_envelope(self._json, data)
        alike = self._known.get(place)
        if alike is not None and (delivery := alike.read(<bytes> data)) is not None:
            return delivery
        delivery = decode_envelope(self._json, data)
        if alike is None:
            if len(self._known) >= MOST_PLACES:
                self._known.clear()
            self._known[place] = made_of(<bytes> data, delivery, 0)
        elif alike.missed():
            self._known[place] = made_of(<bytes> data, delivery, alike._missed)
        return delivery


@cython.final
cdef class Alike:
    """What the envelopes from one place have in common, and what that means.

    It begins behind the body and goes on behind the delivery tag. There is no backslash in it, so that each string is
    written as it is; the tag is written there once, and the name of the body nowhere.
    """

    cdef bytes _head  # from behind the body to the tag; None where nothing is known
    cdef bytes _tail
    cdef Py_ssize_t _tag_size
    cdef object _exchange
    cdef object _routing_key
    cdef Properties _properties
    cdef bint _redelivered
    cdef unsigned int _delivery_count
    cdef unsigned int _missed  # envelopes in a row that were not like the one before

    cdef int learn(self, bytes data, Delivery delivery) except -1:
        """Take an envelope as the one that others are like, and the message that is in it."""
        cdef bytes rest, tag = b'"%b"' % delivery.delivery_tag.encode("utf-8", "surrogatepass")
        cdef Py_ssize_t end = data.find(b'"', BODY_AT), at
        if end < 0 or len(data) - end > MOST_ALIKE or not data.startswith(BODY):
            return 0
        rest = data[end:]
        at = rest.find(tag)
        if (
            at < 0 or rest.find(tag, at + 1) >= 0 or b"\\" in rest or b'"body"' in rest
            or not self._is_body(data, end, delivery.content)
        ):
            return 0
        self._tail = rest[at + len(tag) - 1:]
        self._tag_size = len(tag) - 2
        self._exchange = delivery.exchange
        self._routing_key = delivery.routing_key
        self._properties = delivery.properties
        self._redelivered = delivery.redelivered
        self._delivery_count = delivery.delivery_count
        self._head = rest[:at + 1]
        return 0

    cdef bint _is_body(self, bytes data, Py_ssize_t end, object body) except -1:
        """Whether a body is the base64 between the opening and ``end``."""
        try:
            return body == decode_base64(<const unsigned char*> PyBytes_AS_STRING(data) + BODY_AT, end - BODY_AT)
        except MalformedEnvelope:
            return False

    cdef bint missed(self) noexcept:
        """Note an envelope that was not like this one. Whether to take it as the one that others are like."""
        self._missed += 1
        return self._missed < 4 or self._missed % 64 == 0

    cdef Delivery read(self, bytes data):
        """The message in an envelope, if it is one of those that are alike."""
        cdef Delivery delivery
        cdef const char* start = PyBytes_AS_STRING(data)
        cdef const char* end = start + PyBytes_GET_SIZE(data)
        cdef const char* at
        cdef Py_ssize_t place
        if self._head is None or end - start <= BODY_AT or memcmp(start, BODY, BODY_AT) != 0:
            return None
        at = <const char*> memchr(start + BODY_AT, b'"', end - start - BODY_AT)
        if (
            at == NULL
            or end - at != PyBytes_GET_SIZE(self._head) + self._tag_size + PyBytes_GET_SIZE(self._tail)
            or memcmp(at, PyBytes_AS_STRING(self._head), PyBytes_GET_SIZE(self._head)) != 0
        ):
            return None
        body = at
        at += PyBytes_GET_SIZE(self._head)
        if memcmp(at + self._tag_size, PyBytes_AS_STRING(self._tail), PyBytes_GET_SIZE(self._tail)) != 0:
            return None
        for place in range(self._tag_size):
            if not 0x20 <= at[place] <= 0x7E or at[place] == b'"' or at[place] == b"\\":
                return None
        delivery = Delivery.__new__(Delivery)
        try:
            delivery.content = decode_base64(<const unsigned char*> start + BODY_AT, body - start - BODY_AT)
        except MalformedEnvelope:
            return None
        delivery.exchange = self._exchange
        delivery.routing_key = self._routing_key
        delivery.properties = self._properties
        delivery.delivery_tag = PyUnicode_DecodeASCII(at, self._tag_size, NULL)
        delivery.redelivered = self._redelivered
        delivery.delivery_count = self._delivery_count
        self._missed = 0
        return delivery


cdef Alike made_of(bytes data, Delivery delivery, unsigned int missed):
    """What others may have in common with an envelope, in which a message is."""
    cdef Alike alike = Alike.__new__(Alike)
    alike._missed = missed
    alike.learn(data, delivery)
    return alike
