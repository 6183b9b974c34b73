"""The JSON envelope of brokers whose messages have no properties of their own (kombu's virtual transports).

Format: an object with ``body``, ``content-encoding``, ``content-type``, ``headers`` and ``properties``; the latter
holds the delivery tag, ``delivery_info`` (exchange and routing key) and, by default, says that the body is base64.
"""

import os

from kombulite._core.reader import Irregular

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

from kombulite._core.buffer cimport Buffer, buffer_free, buffer_init, buffer_write
from kombulite._core.message cimport Delivery, Properties
from kombulite._core.reader cimport Span, read_object_but
from kombulite._core.serialization cimport JSON, write_str


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    object PyUnicode_DecodeASCII(const char* text, Py_ssize_t size, const char* errors)
    const Py_ssize_t PY_SSIZE_T_MAX


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

    def __cinit__(self, JSON json not None, exchange, routing_key, Properties properties not None,
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

    def encode(self, body, delivery_tag, bytes stamp not None=b""):
        """The envelope (bytes) around ``body`` (bytes or text) under ``delivery_tag`` (str).

        ``stamp``: further members of the properties as they are written, each with ``, `` before it.
        """
        cdef bytes payload = self.payload(body)
        cdef bytes ending = b"%b%b}}" % (self._json.dump_bytes(delivery_tag), stamp)
        cdef bytes envelope = PyBytes_FromStringAndSize(NULL, self.opening_size(payload) + PyBytes_GET_SIZE(ending))
        put_bytes(self.put_opening(PyBytes_AS_STRING(envelope), payload), ending)
        return envelope

    cdef bytes payload(self, object body):
        """What is written of a body: bytes that become base64, or JSON."""
        if not self._base64:
            return self._json.dump_bytes(body)
        if PyBytes_CheckExact(body):
            return <bytes> body
        return (<str> body).encode("utf-8") if isinstance(body, str) else bytes(memoryview(body))

    cdef Py_ssize_t opening_size(self, bytes payload) except -1:
        """Bytes that ``put_opening`` writes."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
        if size > PY_SSIZE_T_MAX // 4:
            raise MemoryError("the encoded message is too large")
        return 9 + (base64_size(size) + 2 if self._base64 else size) + PyBytes_GET_SIZE(self._middle)

    cdef char* put_opening(self, char* at, bytes payload) noexcept:
        """Write an envelope up to its delivery tag, the body straight into its place. Returns where that ends."""
        memcpy(at, b'{"body": ', 9)
        at += 9
        if self._base64:
            at[0] = b'"'
            at = put_base64(at + 1, <const unsigned char*> PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
            at[0] = b'"'
            at += 1
        else:
            at = put_bytes(at, payload)
        return put_bytes(at, self._middle)


def decode_envelope(JSON json not None, data):
    """The message in an envelope, as a ``Delivery``; ``data`` is its bytes or text.

    Keys that are unknown stay in ``properties.extra`` (those beside ``body`` are dropped). Raises
    ``MalformedEnvelope`` for anything that is not an envelope.
    """
    cdef Delivery delivery = Delivery.__new__(Delivery)
    cdef Properties found = Properties.__new__(Properties)
    cdef dict envelope, properties, info
    cdef Span apart
    try:
        envelope = read_envelope(json, data, &apart)
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
    body_encoding = properties.pop("body_encoding", None)
    if apart.start != NULL and body_encoding == "base64":
        body = decode_base64(apart.start, apart.size)
    else:
        body = envelope.get("body") if apart.start == NULL else ascii_text(&apart)
        body = decode_body(body, body_encoding)
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
    delivery.content = body
    delivery.delivery_tag = delivery_tag
    delivery.redelivered = info.get("redelivered") is True or (
        headers is not None and headers.get("redelivered") is True
    )
    count = info.get("delivery_count")
    if count.__class__ is int and 0 <= count <= MOST_COUNTED:
        delivery.delivery_count = count
    return delivery


cdef dict read_envelope(JSON json, object data, Span* body):
    """The parts of an envelope; a body that is plain text stays where it is, in ``data``."""
    if PyBytes_CheckExact(data):
        try:
            return read_object_but("body", body, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), json._keys, json)
        except Irregular:
            pass
    body.start = NULL
    return as_dict(json.loads(data), "envelope")


cdef inline str ascii_text(Span* span):
    return PyUnicode_DecodeASCII(<const char*> span.start, span.size, NULL)


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
    cdef Py_ssize_t size
    cdef const char* text
    if body_encoding == "base64":
        if not as_str(body, "body").isascii():
            raise MalformedEnvelope("the body is not base64: it has characters beyond ASCII")
        text = PyUnicode_AsUTF8AndSize(body, &size)
        return decode_base64(<const unsigned char*> text, size)
    if body_encoding is None or body_encoding == "utf-8":
        if not isinstance(body, (str, bytes)):
            raise MalformedEnvelope(f"the body should be text or bytes, not {type(body).__name__}")
        return body
    raise MalformedEnvelope(f"unknown body encoding {body_encoding!r:.80}")


# --- base64 -----------------------------------------------------------------------------------------------------

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
    static const char kombulite_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    """
    const signed char* kombulite_sextets
    const char* kombulite_digits


cdef inline Py_ssize_t base64_size(Py_ssize_t size) noexcept nogil:
    return (size + 2) // 3 * 4


cdef char* put_base64(char* at, const unsigned char* data, Py_ssize_t size) noexcept nogil:
    """Write base64, which the standard library would do into an object of its own. Returns where it ends."""
    cdef const char* digits = kombulite_digits
    cdef Py_ssize_t _
    cdef unsigned int word
    for _ in range(size // 3):
        word = data[0] << 16 | data[1] << 8 | data[2]
        at[0] = digits[word >> 18]
        at[1] = digits[word >> 12 & 63]
        at[2] = digits[word >> 6 & 63]
        at[3] = digits[word & 63]
        data += 3
        at += 4
    size %= 3
    if size:
        word = data[0] << 16 | (data[1] << 8 if size == 2 else 0)
        at[0] = digits[word >> 18]
        at[1] = digits[word >> 12 & 63]
        at[2] = digits[word >> 6 & 63] if size == 2 else b"="
        at[3] = b"="
        at += 4
    return at


cdef inline int sextet(unsigned char char) noexcept nogil:
    """The value of a base64 digit, -1 for anything else."""
    return kombulite_sextets[char] - 1


cdef bytes decode_base64(const unsigned char* at, Py_ssize_t size):
    """Decode base64 and nothing but base64; the standard library's strict way takes three times as long."""
    cdef unsigned char* out
    cdef Py_ssize_t groups, _
    cdef int a, b, c, d, padding = 0
    cdef bytes decoded
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

    def __cinit__(self):
        self._seed()

    cdef int _seed(self) except -1:
        random = os.urandom(10).hex()
        self._prefix = f"{random[:8]}-{random[8:12]}-{random[12:16]}-{random[16:]}-".encode("ascii")
        self._count = 0
        self._forks = forks
        return 0

    cdef int take(self, TagRange* tags, unsigned long long count) except -1:
        """New delivery tags, so many of them, for ``put_tag``."""
        with cython.critical_section(self):
            if self._forks != forks:
                self._seed()
            put_bytes(tags.prefix, self._prefix)
            tags.next = self._count
            self._count += count
        return 0

    def next(self):
        """A new delivery tag (str, 36 characters)."""
        cdef TagRange tags
        cdef char[TAG_SIZE] text
        self.take(&tags, 1)
        put_tag(text, &tags)
        return PyUnicode_DecodeASCII(text, TAG_SIZE, NULL)


cdef char* put_tag(char* at, TagRange* tags) noexcept:
    """Write the next of these tags. Returns where it ends."""
    cdef const char* digits = b"0123456789abcdef"
    cdef int place
    memcpy(at, tags.prefix, PREFIX_SIZE)
    at += PREFIX_SIZE
    for place in range(TAG_SIZE - PREFIX_SIZE):
        at[place] = digits[tags.next >> 4 * (TAG_SIZE - PREFIX_SIZE - 1 - place) & 15]
    tags.next += 1
    return at + TAG_SIZE - PREFIX_SIZE
