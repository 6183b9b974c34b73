"""The JSON envelope of brokers whose messages have no properties of their own (kombu's virtual transports).

Format: an object with ``body``, ``content-encoding``, ``content-type``, ``headers`` and ``properties``; the latter holds
the delivery tag, ``delivery_info`` (exchange and routing key) and, by default, says that the body is base64.
"""

import os

from base64 import b64decode
from binascii import Error as Base64Error
from binascii import b2a_base64

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize

from kombulite._core.buffer cimport Buffer, buffer_free, buffer_init, buffer_write
from kombulite._core.message cimport Delivery, Properties
from kombulite._core.serialization cimport JSON, write_str


# Properties under their own name on both sides; what else stands beside them goes to `extra`.
PLAIN_PROPERTIES = (
    "delivery_mode", "priority", "correlation_id", "reply_to", "expiration", "message_id", "timestamp", "type",
    "user_id", "app_id", "cluster_id",
)
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
    try:
        envelope = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedEnvelope(f"not JSON: {error!s:.200}") from error
    envelope = member_dict(envelope, "envelope")
    cdef dict properties = member_dict(envelope.get("properties"), "properties")
    cdef dict info = member_dict(properties.get("delivery_info"), "delivery_info")
    cdef dict values = {}
    cdef dict extra = {}
    headers = envelope.get("headers")
    if headers is not None:
        headers = member_dict(headers, "headers")
    for name, value in properties.items():
        if name in PLAIN_PROPERTIES:
            values[name] = value
        elif name not in WRITTEN_APART:
            extra[name] = value
    delivery = Delivery(
        member_str(info, "exchange"),
        member_str(info, "routing_key"),
        Properties(content_type=envelope.get("content-type"), content_encoding=envelope.get("content-encoding"),
                   headers=headers or None, extra=extra or None, **values),
        decode_body(envelope.get("body"), properties.get("body_encoding")),
    )
    delivery.delivery_tag = member_str(properties, "delivery_tag")
    delivery.redelivered = info.get("redelivered") is True or (headers is not None
                                                              and headers.get("redelivered") is True)
    return delivery


cdef dict member_dict(object value, str what):
    if type(value) is not dict:
        raise MalformedEnvelope(f"the {what} should be an object, not {type(value).__name__}")
    return value


cdef object member_str(dict parent, str name):
    value = parent.get(name)
    if not isinstance(value, str):
        raise MalformedEnvelope(f"{name} should be a string, not {type(value).__name__}")
    return value


cdef object decode_body(object body, object body_encoding):
    if body_encoding == "base64":
        if not isinstance(body, str):
            raise MalformedEnvelope(f"a base64 body should be a string, not {type(body).__name__}")
        try:
            return b64decode(body, validate=True)
        except (Base64Error, ValueError) as error:
            raise MalformedEnvelope(f"the body is not base64: {error}") from error
    if body_encoding is None or body_encoding == "utf-8":
        if not isinstance(body, (str, bytes)):
            raise MalformedEnvelope(f"the body should be text or bytes, not {type(body).__name__}")
        return body
    raise MalformedEnvelope(f"unknown body encoding {body_encoding!r:.80}")


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
