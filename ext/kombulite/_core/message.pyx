"""What travels: the properties of a message, and a message on its way from or to a broker; and how many did.

The module is longer than others: whoever makes a message sets the fields of its properties and counts it in one step.
"""

cimport cython
from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject

from kombulite._core.plain cimport PlainValue, copied
from kombulite._core.recursion cimport Py_LeaveRecursiveCall, enter_recursion

from codecs import lookup

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

# Character sets whose codecs take more than linear time: nobody's body is in them but an attacker's.
SLOW_CODECS = frozenset(["idna", "punycode"])


PROPERTY_NAMES = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)


def declaration_key(entity):
    """What tells one entity from another: its class's name and all the settings that its ``attrs`` name.

    Those of other entities among them count, and what dicts, lists, tuples and sets hold.
    """
    return key_of(entity, entity.attrs)


cdef tuple key_of(object entity, tuple attrs):
    cdef list values = [type(entity).__name__]
    for name, _ in attrs:
        values.append(frozen(getattr(entity, name)))
    return tuple(values)


cdef object frozen(object value):
    cdef type kind = type(value)
    if value is None or kind is str or kind is bool or kind is int or kind is float:
        return value
    enter_recursion(b" while comparing declarations")
    try:
        if isinstance(value, dict):
            return tuple(sorted([(str(name), frozen(item)) for name, item in value.items()], key=repr))
        if isinstance(value, (list, tuple, set)):
            return tuple([frozen(item) for item in value])
        attrs = getattr(kind, "attrs", None)
        return value if type(attrs) is not tuple else key_of(value, attrs)
    finally:
        Py_LeaveRecursiveCall()


@cython.final
cdef class Properties:
    """The basic properties of a message, in the order of the AMQP 0-9-1 content header (section 4.2.6.1).

    Fixed once made, and shared by all messages that have the same ones; nobody may change ``headers`` or ``extra``
    in place. A property that is not set is None. ``extra`` holds what is no AMQP property; brokers whose messages
    are JSON carry it, AMQP does not. For the core only: ``encoded``, the properties as they stand in AMQP's content
    header, once they were sent; ``from_header``, whether they came in one.
    """

    def __init__(self, content_type=None, content_encoding=None, headers=None, delivery_mode=None, priority=None,
                 correlation_id=None, reply_to=None, expiration=None, message_id=None, timestamp=None, type=None,
                 user_id=None, app_id=None, cluster_id=None, extra=None):
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.headers = headers
        self.delivery_mode = delivery_mode
        self.priority = priority
        self.correlation_id = correlation_id
        self.reply_to = reply_to
        self.expiration = expiration
        self.message_id = message_id
        self.timestamp = timestamp
        self.type = type
        self.user_id = user_id
        self.app_id = app_id
        self.cluster_id = cluster_id
        self.extra = extra

    cdef tuple _values(self):
        return (self.content_type, self.content_encoding, self.headers, self.delivery_mode, self.priority,
                self.correlation_id, self.reply_to, self.expiration, self.message_id, self.timestamp, self.type,
                self.user_id, self.app_id, self.cluster_id)

    def as_dict(self):
        """The properties that are set, by name; those in ``extra`` among them. The dict is the caller's own."""
        cdef dict found = {name: value for name, value in zip(PROPERTY_NAMES, self._values()) if value is not None}
        if self.extra:
            found.update(self.extra)
        return found

    def replace(self, **changes):
        """A copy with the given properties changed."""
        cdef dict values = dict(zip(PROPERTY_NAMES, self._values()), extra=self.extra)
        values.update(changes)
        return Properties(**values)

    def __reduce__(self):
        return Properties, self._values() + (self.extra,)

    def __eq__(self, other):
        if not isinstance(other, Properties):
            return NotImplemented
        return self.__reduce__()[1] == other.__reduce__()[1]

    __hash__ = None

    def __repr__(self):
        return f"Properties({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Delivery:
    """One message on its way, to a broker or from it.

    A publisher fills in ``exchange``, ``routing_key``, ``properties`` and ``body`` (bytes, or text where a
    transport hands over text). In the core it may be a PlainValue until somebody asks for it. The broker's side adds
    the rest:

    * ``channel``: number of the channel it goes to; ``consumer_tag``: the consumer, None for an answer to a get.
    * ``delivery_tag``: the tag that an ack names; ``redelivered``: it may have been delivered before.
    * ``delivery_count``: how often it was handed out before, and came back; 0 where the broker does not count.
    * ``message_count``: messages left in the queue, on an answer to a get.
    * ``expires_at`` (the transport's clock, seconds; 0 is never), ``position`` (place in its queue) and ``source`` (the
      MessageQueue it was taken from): for transports that keep queues themselves.
    * ``error``: why it cannot be understood, an exception; None for all others.

    Deliveries are not tracked by the garbage collector, which has no cycle to find in them and would else look at every
    message that waits: ``source`` must not lead back to a holder of the delivery.
    """

    def __init__(self, exchange, routing_key, Properties properties not None, body):
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.content = body

    @property
    def body(self):
        """The body as it is sent, or came."""
        return self.sent_body()

    cdef object sent_body(self):
        if type(self.content) is PlainValue:
            self.content = (<PlainValue> self.content).text()
        return self.content

    @property
    def body_size(self):
        """Bytes in the body as it is sent. Text counts as what it was encoded to."""
        return size_of(self)

    @property
    def stream_offset(self):
        """The offset in the stream that it came from (RabbitMQ); None for a message of a queue."""
        following = self.properties.following_offset
        return following - 1 if following else None

    def copy(self):
        """The same message with none of what a broker added, as it goes to another queue."""
        return Delivery(self.exchange, self.routing_key, self.properties, self.content)

    def __reduce__(self):
        return _restore, (self.exchange, self.routing_key, self.properties, self.sent_body(), self.consumer_tag,
                          self.delivery_tag, self.message_count, self.expires_at, self.position, self.channel,
                          self.redelivered, self.delivery_count)

    def __repr__(self):
        return (f"<Delivery {self.delivery_tag!r} exchange={self.exchange!r} routing_key={self.routing_key!r} "
                f"{len(self.sent_body())} in body>")


def _restore(exchange, routing_key, properties, body, consumer_tag, delivery_tag, message_count, expires_at,
             position, channel, redelivered, delivery_count=0):
    delivery = Delivery(exchange, routing_key, properties, body)
    delivery.consumer_tag = consumer_tag
    delivery.delivery_tag = delivery_tag
    delivery.message_count = message_count
    delivery.expires_at = expires_at
    delivery.position = position
    delivery.channel = channel
    delivery.redelivered = redelivered
    delivery.delivery_count = delivery_count
    return delivery


NOT_DECODED = object()


cdef class BaseMessage:
    """A delivery in the hands of its receiver. The base of the facade's ``Message``.

    Its fields can be set; ``headers``, ``properties``, ``delivery_info`` and ``errors`` are made of the delivery when
    they are first asked for, since most consumers never do. ``_decoded``: the decoded body, or NOT_DECODED;
    ``_own_loads``: the ``loads`` of a registry, which takes a PlainValue too, or None.
    """

    _own_loads = None

    def __cinit__(self):
        self._state = "RECEIVED"
        self._decoded = NOT_DECODED

    @classmethod
    def from_delivery(cls, Delivery delivery not None, channel):
        """Return the message of a delivery.

        Args:
            delivery: The delivery.
            channel: The channel that it came on.
        """
        return received(cls, delivery, channel)

    # --- what the facade adds

    def inflate(self, compression):
        """Decompress the body.

        Args:
            compression: Content type of the compression method.
        """
        raise NotImplementedError

    def note_error(self, error):
        """Note in ``errors`` why the message cannot be read.

        Args:
            error: The error.
        """
        raise NotImplementedError

    def expect_sections(self):
        """Have the body decoded as RabbitMQ 4 passes those of AMQP 1.0 clients on."""
        raise NotImplementedError

    def loads(self, body, content_type, content_encoding, accept):
        """Decode a body.

        Args:
            body: Text or bytes.
            content_type: Content type of the body.
            content_encoding: Encoding of the body.
            accept: Content types that may be decoded (None: all that are not disabled).
        """
        raise NotImplementedError

    def refuse(self, state):
        """Raise MessageStateError for a message that cannot change its state.

        Args:
            state: The state that was asked for.
        """
        raise NotImplementedError

    # --- content

    @property
    def body(self):
        """The body, bytes or text, decompressed."""
        return self.sent_body()

    @body.setter
    def body(self, body):
        self.content = body

    cdef object sent_body(self):
        if type(self.content) is PlainValue:
            self.content = (<PlainValue> self.content).text()
        return self.content

    cdef object load(self):
        """Decode the body."""
        loads = self.loads
        body = self.content if loads is self._own_loads else self.sent_body()  # a program's own gets what it knows
        return loads(body, self.content_type, self.content_encoding, self.accept)

    def decode(self):
        """Return the decoded body. It is decoded once.

        Raises:
            DecodeError: The body is broken.
            ContentDisallowed: Its content type is not accepted.
        """
        if self._decoded is NOT_DECODED:
            self._decoded = self._decode()
        return self._decoded

    def _decode(self):
        """Decode the body anew."""
        if self.loads is self._own_loads:
            return self.load()
        return self.loads(self.sent_body(), self.content_type, self.content_encoding, accept=self.accept)

    @property
    def payload(self):
        """The decoded body.

        Raises:
            DecodeError: The body cannot be decoded.
            ContentDisallowed: Its content type is not accepted.
        """
        return self.decode()

    def unpack(self, accept):
        """Return the decoded body, as a consumer decodes it, or raise the first of ``errors``.

        Args:
            accept: Content types that may be decoded (None: all that are not disabled).
        """
        self.accept = accept
        if self._errors:
            raise self._errors[0][1]
        if self._decoded is NOT_DECODED:
            self._decoded = self.load()
        return self._decoded

    def raise_errors(self):
        """Raise the first of ``errors``, if there is one."""
        if self._errors:
            raise self._errors[0][1]

    # --- what becomes of it

    @property
    def acknowledged(self):
        """True if the message was acknowledged, rejected or requeued."""
        return self._state != "RECEIVED"

    def ack(self, bint multiple=False):
        """Acknowledge the message: the broker deletes it.

        Args:
            multiple (bool): If True, all earlier messages of the channel too.

        Raises:
            MessageStateError: It was acknowledged, rejected or requeued before, or has no channel.
            RecoverableConnectionError: Its channel is closed, or its connection lost; the message is redelivered.
        """
        self._check("ACK")
        if not self.no_ack:
            if self._delivery is not None:
                self.channel.basic_ack(self.delivery_tag, multiple)
            elif self._needs_no_ack():
                return  # kombu leaves its state as it is
            else:
                self.channel.basic_ack(self.delivery_tag, multiple=multiple)  # as kombu calls the channels of others
                self._count_settled("ACK")
        self._state = "ACK"

    cdef int _count_settled(self, str state) except -1:
        """Count a message of a channel of others, if the facade has a part of it. Mocks would note a getattr."""
        own = None if self._delivery is not None else getattr(self.channel, "__dict__", None)
        facade = None if own is None else own.get("_kombulite_channel")
        if facade is not None:
            facade.count_settled(state)
        return 0

    cdef bint _needs_no_ack(self) except -1:
        """Whether a channel of others says that the consumer of the message acknowledges nothing."""
        tags = getattr(self.channel, "no_ack_consumers", None)
        if tags is None:
            return False
        details = self.delivery_info
        return "consumer_tag" in details and details["consumer_tag"] in tags  # what a mock has for tags holds none

    def reject(self, bint requeue=False):
        """Reject the message. A broker that counts failed deliveries counts this one.

        Args:
            requeue (bool): If True, it returns to its queue; else it goes to the dead letter exchange, if there is
                one.

        Raises:
            MessageStateError: It was acknowledged, rejected or requeued before, or has no channel.
            RecoverableConnectionError: Its channel is closed, or its connection lost; the message is redelivered.
        """
        self._check("REJECTED")
        if not self.no_ack:
            self.channel.basic_reject(self.delivery_tag, requeue=requeue)
            self._count_settled("REQUEUED" if requeue else "REJECTED")
        self._state = "REJECTED"

    def requeue(self, bint failed=True):
        """Return the message to its queue.

        Args:
            failed (bool): If True, the delivery counts as failed, where the broker makes that difference (quorum
                queues of RabbitMQ 4: ``delivery_limit``, delayed retry).

        Raises:
            MessageStateError: It was acknowledged, rejected or requeued before, or has no channel.
            RecoverableConnectionError: Its channel is closed, or its connection lost; the message is redelivered.
        """
        self._check("REQUEUED")
        if not self.no_ack:
            if failed:
                self.channel.basic_reject(self.delivery_tag, requeue=True)
            else:
                self.channel.basic_nack(self.delivery_tag)
            self._count_settled("REQUEUED")
        self._state = "REQUEUED"

    cdef int _check(self, str state) except -1:
        if self.channel is None or self._state != "RECEIVED":
            self.refuse(state)
        return 0

    @property
    def delivery(self):
        """The delivery as it came from the broker; None for a message made by hand."""
        return self._delivery

    @property
    def delivery_count(self):
        """Number of earlier deliveries, to any consumer, that came back: 0 for the first delivery.

        If the broker does not count (RabbitMQ's classic queues), it is 1 for every redelivered message.
        """
        cdef Delivery delivery = self._delivery
        if delivery is None or not delivery.redelivered:
            return 0
        count = delivery.delivery_count
        if delivery.properties.from_header and delivery.properties.headers is not None:
            # By RabbitMQ's quorum queues: all deliveries (since 4.3), or those before 4.3.
            counted = delivery.properties.headers.get("x-acquired-count")
            if not isinstance(counted, int):
                counted = delivery.properties.headers.get("x-delivery-count")
            if isinstance(counted, int):
                count = counted
        return max(count, 1)

    @property
    def stream_offset(self):
        """Offset in its stream (RabbitMQ); None for a message of a queue."""
        return None if self._delivery is None else self._delivery.stream_offset

    # --- made on demand

    @property
    def headers(self):
        """The headers, a dict of its own."""
        if self._headers is None:
            headers = None if self._delivery is None else self._delivery.properties.headers
            self._headers = {} if headers is None else copied(dict(headers))
        return self._headers

    @headers.setter
    def headers(self, headers):
        self._headers = headers

    @property
    def properties(self):
        """The properties that are set, a dict of its own; without headers, content type and encoding.

        On AMQP with these too, as kombu has it there: the headers are ``application_headers``.
        """
        cdef Properties found
        if self._properties is None:
            self._properties = {}
            if self._delivery is not None:
                found = self._delivery.properties
                self._properties = found.as_dict()
                self._properties.pop("headers", None)
                if found.from_header:
                    self._properties["application_headers"] = copied(dict(found.headers or {}))
                else:
                    self._properties.pop("content_type", None)
                    self._properties.pop("content_encoding", None)
        return self._properties

    @properties.setter
    def properties(self, properties):
        self._properties = properties

    @property
    def delivery_info(self):
        """Facts on the delivery: exchange, routing_key, delivery_tag, redelivered, consumer_tag or message_count."""
        cdef Delivery delivery = self._delivery
        if self._delivery_info is None:
            self._delivery_info = {}
            if delivery is not None:
                self._delivery_info = {
                    "delivery_tag": delivery.delivery_tag, "redelivered": delivery.redelivered,
                    "exchange": delivery.exchange, "routing_key": delivery.routing_key,
                }
                if delivery.consumer_tag is not None:
                    self._delivery_info["consumer_tag"] = delivery.consumer_tag
                else:
                    self._delivery_info["message_count"] = delivery.message_count
        return self._delivery_info

    @delivery_info.setter
    def delivery_info(self, delivery_info):
        self._delivery_info = delivery_info

    @property
    def errors(self):
        """Errors before decoding: a list of exc_info tuples."""
        if self._errors is None:
            self._errors = []
        return self._errors

    @errors.setter
    def errors(self, errors):
        self._errors = errors


cdef BaseMessage received(cls, Delivery delivery, channel):
    # Checked: a subclass's `__new__` may return what it likes.
    cdef BaseMessage self = <BaseMessage?> (<PyTypeObject*> cls).tp_new(<type> cls, <PyObject*> (), NULL)
    cdef Properties properties = delivery.properties
    if properties is None:
        raise TypeError("a Delivery without properties: it was made without its __init__")
    self._delivery = delivery
    self.channel = channel
    self.delivery_tag = delivery.delivery_tag
    self.content_type = properties.content_type
    self.content_encoding = properties.content_encoding
    self.content = delivery.content
    if delivery.error is not None:
        self.note_error(delivery.error)
    if properties.type is not None and properties.from_header and properties.type == "amqp-1.0":
        self.expect_sections()
    elif properties.headers is not None:
        compression = properties.headers.get("compression")
        if compression is not None:
            self.inflate(compression)
    return self


# --- counting -----------------------------------------------------------------------------------------------------


def encode_text(str text not None, encoding):
    """A body that is text as bytes, in its content encoding; in UTF-8 where that has no form for it.

    A peer may name any codec, and codecs raise what they like.
    """
    if encoding is not None and encoding != "utf-8":
        try:
            if lookup(encoding).name not in SLOW_CODECS:
                return text.encode(encoding)
        except MemoryError:
            raise
        except Exception:
            pass
    return text.encode("utf-8", "surrogatepass")


cdef Py_ssize_t size_of(Delivery delivery) except -1:
    """Bytes in the body as it travels. Text counts as what it was encoded to."""
    cdef Py_ssize_t size
    body = delivery.content
    if PyBytes_CheckExact(body):
        return PyBytes_GET_SIZE(body)
    if type(body) is PlainValue:
        return (<PlainValue> body).size
    if not isinstance(body, str):
        return len(body)
    encoding = delivery.properties.content_encoding
    if encoding is None or encoding == "utf-8":
        try:
            PyUnicode_AsUTF8AndSize(body, &size)
            return size
        except UnicodeError:  # lone surrogates
            pass
    return len(encode_text(str.__str__(body), encoding))


@cython.final
cdef class CounterBlock:
    """What went through a connection, in numbers. May be shared by threads: each method is one step."""

    def count_published(self, Delivery delivery not None, bint confirmed):
        """A message was handed to the broker; ``confirmed``: which said that it has it."""
        self._publish(delivery, confirmed)

    cdef int _publish(self, Delivery delivery, bint confirmed) except -1:
        cdef Py_ssize_t size = size_of(delivery)
        with cython.critical_section(self):
            self._published += 1
            self._confirmed += confirmed
            self._bytes_sent += size
        return 0

    def count_many(self, deliveries, bint confirmed, without=()):
        """Messages were handed to the broker, but for those whose index is in ``without``."""
        cdef unsigned long long number = 0, size = 0
        cdef Py_ssize_t index
        for index, delivery in enumerate(deliveries):
            if not without or index not in without:
                number += 1
                size += size_of(<Delivery?> delivery)
        with cython.critical_section(self):
            self._published += number
            self._bytes_sent += size
            if confirmed:
                self._confirmed += number

    def count_returned(self):
        """A mandatory message came back."""
        with cython.critical_section(self):
            self._returned += 1

    def count_consumed(self, Delivery delivery not None):
        """A message was handed to the application."""
        self._consume(delivery)

    cdef int _consume(self, Delivery delivery) except -1:
        cdef Py_ssize_t size = size_of(delivery)
        with cython.critical_section(self):
            self._consumed += 1
            self._redelivered += delivery.redelivered
            self._bytes_received += size
        return 0

    def count_acked(self, unsigned long long number=1):
        """Messages were acknowledged; several at once may count as one."""
        with cython.critical_section(self):
            self._acked += number

    cdef int _ack(self) except -1:
        with cython.critical_section(self):
            self._acked += 1
        return 0

    def count_rejected(self, unsigned long long number=1):
        """Messages were given up."""
        with cython.critical_section(self):
            self._rejected += number

    def count_requeued(self, unsigned long long number=1):
        """Messages were put back."""
        with cython.critical_section(self):
            self._requeued += number

    def count_reconnect(self):
        """A lost connection is back."""
        with cython.critical_section(self):
            self._reconnects += 1

    def values(self):
        """All numbers: published, confirmed, returned, consumed, redelivered, acked, rejected, requeued, reconnects,
        bytes sent, bytes received."""
        with cython.critical_section(self):
            return (self._published, self._confirmed, self._returned, self._consumed, self._redelivered, self._acked,
                    self._rejected, self._requeued, self._reconnects, self._bytes_sent, self._bytes_received)

    def clear(self):
        """Start from zero."""
        with cython.critical_section(self):
            self._published = self._confirmed = self._returned = self._consumed = self._redelivered = 0
            self._acked = self._rejected = self._requeued = self._reconnects = 0
            self._bytes_sent = self._bytes_received = 0
