"""The JSON envelope of brokers whose messages have no properties of their own (kombu's virtual transports).

Format: an object with ``body``, ``content-encoding``, ``content-type``, ``headers`` and ``properties``; the latter
holds the delivery tag, ``delivery_info`` (exchange and routing key) and, by default, says that the body is base64.
"""

import os

from binascii import b2a_base64

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from kombulite._core.buffer cimport Buffer, buffer_free, buffer_init, buffer_write
from kombulite._core.message cimport Delivery, Properties
from kombulite._core.serialization cimport JSON, write_str


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


# Properties under their own name on both sides; what else stands beside them goes to `extra`.
PLAIN_PROPERTIES = (
    "delivery_mode", "priority", "correlation_id", "reply_to", "expiration", "message_id", "timestamp", "type",
    "user_id", "app_id", "cluster_id",
)
MOST_COUNTED = 1 << 31
WRITTEN_APART = frozenset(PLAIN_PROPERTIES) | {"delivery_info", "delivery_tag", "body_encoding"}


class MalformedEnvelope(ValueError):
    """Bytes that are no envelope: not JSON, or a part is missing or of the wrong kind."""


cdef int write_member(Buffer* out, JSON json, str name, object value) except -1:
    write_str(out, name)
    buffer_write(out, b": ", 2)
    return json.write(out, value)


@cython.final
cdef class EnvelopeTemplate:
    """An envelope with all but the body and the delivery tag filled in, for messages to one place.

    ``body_encoding``: ``"base64"``, or None to store the body as it is.
    """

    cdef JSON _json
    cdef bytes _middle
    cdef bint _base64

    def __init__(self, JSON json not None, exchange, routing_key, Properties properties not None,
                 body_encoding="base64"):
        cdef Buffer out
        if body_encoding is not None and body_encoding not in ("base64", "utf-8"):
            raise ValueError(f"unknown body encoding {body_encoding!r}")
        self._json = json
        self._base64 = body_encoding == "base64"
        buffer_init(&out)
        try:
            buffer_write(&out, b", ", 2)
            write_member(&out, json, "content-encoding", properties.content_encoding)
            buffer_write(&out, b", ", 2)
            write_member(&out, json, "content-type", properties.content_type)
            buffer_write(&out, b", ", 2)
            write_member(&out, json, "headers", {} if properties.headers is None else properties.headers)
            buffer_write(&out, b', "properties": {', 17)
            if properties.extra:
                for name, value in properties.extra.items():
                    if name not in WRITTEN_APART:
                        write_member(&out, json, str(name), value)
                        buffer_write(&out, b", ", 2)
            for name in PLAIN_PROPERTIES:
                value = getattr(properties, name)
                if value is not None:
                    write_member(&out, json, name, value)
                    buffer_write(&out, b", ", 2)
            write_member(&out, json, "delivery_info", {"exchange": exchange, "routing_key": routing_key})
            buffer_write(&out, b", ", 2)
            if body_encoding is not None:
                write_member(&out, json, "body_encoding", body_encoding)
                buffer_write(&out, b", ", 2)
            buffer_write(&out, b'"delivery_tag": ', 16)
            self._middle = PyBytes_FromStringAndSize(out.data, out.size)
        finally:
            buffer_free(&out)

    def encode(self, body, delivery_tag):
        """The envelope (bytes) around ``body`` (bytes or text) under ``delivery_tag`` (str)."""
        cdef Buffer out
        cdef bytes encoded
        buffer_init(&out)
        try:
            buffer_write(&out, b'{"body": ', 9)
            if self._base64:
                encoded = b2a_base64(body.encode("utf-8") if isinstance(body, str) else body, newline=False)
                buffer_write(&out, b'"', 1)
                buffer_write(&out, <const char*> encoded, len(encoded))
                buffer_write(&out, b'"', 1)
            else:
                self._json.write(&out, body)
            buffer_write(&out, <const char*> self._middle, len(self._middle))
            self._json.write(&out, delivery_tag)
            buffer_write(&out, b"}}", 2)
            return PyBytes_FromStringAndSize(out.data, out.size)
        finally:
            buffer_free(&out)


def decode_envelope(JSON json not None, data):
    """The message in an envelope, as a ``Delivery``; ``data`` is its bytes or text.

    Keys that are unknown stay in ``properties.extra`` (those beside ``body`` are dropped). Raises
    ``MalformedEnvelope`` for anything that is not an envelope.
    """
    cdef Delivery delivery = Delivery.__new__(Delivery)
    cdef Properties found = Properties.__new__(Properties)
    cdef dict envelope, properties, info
    try:
        envelope = as_dict(json.loads(data), "envelope")
    except MalformedEnvelope:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedEnvelope(f"not JSON: {error!s:.200}") from error
    properties = as_dict(envelope.get("properties"), "properties")
    info = as_dict(properties.pop("delivery_info", None), "delivery_info")
    headers = envelope.get("headers")
    if headers is not None:
        headers = as_dict(headers, "headers") or None
    found.content_type = as_optional_str(envelope.get("content-type"), "content-type")
    found.content_encoding = as_optional_str(envelope.get("content-encoding"), "content-encoding")
    found.headers = headers
    found.delivery_mode = properties.pop("delivery_mode", None)
    found.priority = properties.pop("priority", None)
    delivery_tag = as_str(properties.pop("delivery_tag", None), "delivery_tag")
    body = decode_body(envelope.get("body"), properties.pop("body_encoding", None))
    if properties:  # most messages have no others
        found.correlation_id = properties.pop("correlation_id", None)
        found.reply_to = properties.pop("reply_to", None)
        found.expiration = properties.pop("expiration", None)
        found.message_id = properties.pop("message_id", None)
        found.timestamp = properties.pop("timestamp", None)
        found.type = properties.pop("type", None)
        found.user_id = properties.pop("user_id", None)
        found.app_id = properties.pop("app_id", None)
        found.cluster_id = properties.pop("cluster_id", None)
        found.extra = properties or None
    delivery.exchange = as_str(info.get("exchange"), "exchange")
    delivery.routing_key = as_str(info.get("routing_key"), "routing_key")
    delivery.properties = found
    delivery.body = body
    delivery.delivery_tag = delivery_tag
    delivery.redelivered = info.get("redelivered") is True or (
        headers is not None and headers.get("redelivered") is True
    )
    count = info.get("delivery_count")
    if count.__class__ is int and 0 <= count <= MOST_COUNTED:
        delivery.delivery_count = count
    return delivery


cdef dict as_dict(object value, str what):
    if type(value) is not dict:
        raise MalformedEnvelope(f"the {what} should be an object, not {type(value).__name__}")
    return <dict> value


cdef object as_str(object value, str what):
    if type(value) is not str:
        raise MalformedEnvelope(f"the {what} should be a string, not {type(value).__name__}")
    return value


cdef object as_optional_str(object value, str what):
    return None if value is None else as_str(value, what)


cdef object decode_body(object body, object body_encoding):
    if body_encoding == "base64":
        return decode_base64(as_str(body, "body"))
    if body_encoding is None or body_encoding == "utf-8":
        if not isinstance(body, (str, bytes)):
            raise MalformedEnvelope(f"the body should be text or bytes, not {type(body).__name__}")
        return body
    raise MalformedEnvelope(f"unknown body encoding {body_encoding!r:.80}")


cdef extern from *:
    """
    /* The value of each base64 digit (RFC 4648, section 4) plus one; 0 for all else. */
    static const signed char kombulite_sextets[256] = {
        ['A'] = 1, ['B'] = 2, ['C'] = 3, ['D'] = 4, ['E'] = 5, ['F'] = 6, ['G'] = 7, ['H'] = 8,
        ['I'] = 9, ['J'] = 10, ['K'] = 11, ['L'] = 12, ['M'] = 13, ['N'] = 14, ['O'] = 15, ['P'] = 16,
        ['Q'] = 17, ['R'] = 18, ['S'] = 19, ['T'] = 20, ['U'] = 21, ['V'] = 22, ['W'] = 23, ['X'] = 24,
        ['Y'] = 25, ['Z'] = 26, ['a'] = 27, ['b'] = 28, ['c'] = 29, ['d'] = 30, ['e'] = 31, ['f'] = 32,
        ['g'] = 33, ['h'] = 34, ['i'] = 35, ['j'] = 36, ['k'] = 37, ['l'] = 38, ['m'] = 39, ['n'] = 40,
        ['o'] = 41, ['p'] = 42, ['q'] = 43, ['r'] = 44, ['s'] = 45, ['t'] = 46, ['u'] = 47, ['v'] = 48,
        ['w'] = 49, ['x'] = 50, ['y'] = 51, ['z'] = 52, ['0'] = 53, ['1'] = 54, ['2'] = 55, ['3'] = 56,
        ['4'] = 57, ['5'] = 58, ['6'] = 59, ['7'] = 60, ['8'] = 61, ['9'] = 62, ['+'] = 63, ['/'] = 64
    };
    """
    const signed char* kombulite_sextets


cdef inline int sextet(unsigned char char) noexcept nogil:
    """The value of a base64 digit, -1 for anything else."""
    return kombulite_sextets[char] - 1


cdef bytes decode_base64(str text):
    """Decode base64 and nothing but base64; the standard library's strict way takes three times as long."""
    cdef Py_ssize_t size
    cdef const unsigned char* at
    cdef unsigned char* out
    cdef Py_ssize_t groups, _
    cdef int a, b, c, d, padding = 0
    cdef bytes decoded
    if not text.isascii():
        raise MalformedEnvelope("the body is not base64: it has characters beyond ASCII")
    at = <const unsigned char*> PyUnicode_AsUTF8AndSize(text, &size)
    if size % 4:
        raise MalformedEnvelope("the body is not base64: its length is no multiple of four")
    if size and at[size - 1] == b"=":
        padding = 2 if at[size - 2] == b"=" else 1
    groups = size // 4
    decoded = PyBytes_FromStringAndSize(NULL, groups * 3 - padding)
    out = <unsigned char*> PyBytes_AS_STRING(decoded)
    for _ in range(groups if padding == 0 else groups - 1):
        a, b, c, d = sextet(at[0]), sextet(at[1]), sextet(at[2]), sextet(at[3])
        if (a | b | c | d) < 0:
            raise MalformedEnvelope("the body is not base64: it has other characters")
        out[0] = <unsigned char> (a << 2 | b >> 4)
        out[1] = <unsigned char> ((b & 15) << 4 | c >> 2)
        out[2] = <unsigned char> ((c & 3) << 6 | d)
        at += 4
        out += 3
    if padding:
        a, b = sextet(at[0]), sextet(at[1])
        c = sextet(at[2]) if padding == 1 else 0
        if (a | b | c) < 0:
            raise MalformedEnvelope("the body is not base64: it has other characters")
        out[0] = <unsigned char> (a << 2 | b >> 4)
        if padding == 1:
            out[1] = <unsigned char> ((b & 15) << 4 | c >> 2)
    return decoded


# --- delivery tags ----------------------------------------------------------------------------------------------

# Counts forks: the child's sequences must not go on where the parent's do. Written only in a new child.
forks = 0


def _count_fork():
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


@cython.final
cdef class TagSequence:
    """Delivery tags that nobody else gives out: 80 random bits of this sequence, then a counter, shaped like a UUID.

    Safe to call from many threads. A forked child draws new random bits, so its tags and the parent's differ.
    """

    cdef str _prefix
    cdef unsigned long long _count
    cdef int _forks

    def __init__(self):
        self._seed()

    cdef int _seed(self) except -1:
        random = os.urandom(10).hex()
        self._prefix = f"{random[:8]}-{random[8:12]}-{random[12:16]}-{random[16:]}-"
        self._count = 0
        self._forks = forks
        return 0

    def next(self):
        """A new delivery tag (str, 36 characters)."""
        cdef unsigned long long count
        with cython.critical_section(self):
            if self._forks != forks:
                self._seed()
            count = self._count
            self._count = count + 1
            return f"{self._prefix}{count:012x}"
