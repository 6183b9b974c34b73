"""Messages on their way out: what a publisher gives, as a delivery."""

cimport cython

from kombulite._core.channel cimport BaseChannel, BaseSession, PublishStep
from kombulite._core.codecs cimport Codecs
from kombulite._core.message cimport Delivery, Properties
from kombulite._core.plain cimport copied

from kombulite._core.message import PROPERTY_NAMES


#: Properties that a publisher gives by name, beside those that it has arguments for.
KEYWORD_PROPERTIES = frozenset(PROPERTY_NAMES) - {"content_type", "content_encoding", "headers", "priority"}


def make_properties(content_type, content_encoding, headers, delivery_mode, priority, properties):
    """The properties of a message to publish, with a copy of its headers.

    ``properties``: others by name, a delivery mode among them; what AMQP does not know goes to ``extra``.
    """
    return _properties(content_type, content_encoding, headers, delivery_mode, priority, properties)


cdef Properties _properties(content_type, content_encoding, headers, delivery_mode, priority, properties):
    # One by one: as keywords of the constructor they take 8,700 instructions, not 5,000, with the headers of a task.
    cdef Properties made = Properties.__new__(Properties)
    cdef dict extra = None
    made.content_type = content_type
    made.content_encoding = content_encoding
    if headers:
        made.headers = copied(headers if type(headers) is dict else dict(headers))
    made.delivery_mode = delivery_mode
    made.priority = priority
    if not properties:
        return made
    for name, value in properties.items():
        if name == "correlation_id":
            made.correlation_id = value
        elif name == "reply_to":
            made.reply_to = value
        elif name == "expiration":
            made.expiration = value
        elif name == "delivery_mode":
            made.delivery_mode = value
        elif name == "message_id":
            made.message_id = value
        elif name == "timestamp":
            made.timestamp = value
        elif name == "type":
            made.type = value
        elif name == "user_id":
            made.user_id = value
        elif name == "app_id":
            made.app_id = value
        elif name == "cluster_id":
            made.cluster_id = value
        else:
            if extra is None:
                extra = {}
            extra[name] = value
    made.extra = extra
    return made


@cython.final
cdef class PlainMessages:
    """Makes messages that have no headers, and no properties but those that many others have too.

    They share their ``Properties``: transports encode these once, and tell by them what a message has in common with
    the one before. ``codecs`` encodes the bodies.
    """

    def __cinit__(self, Codecs codecs not None):
        self._codecs = codecs
        self._known = {}

    cpdef Delivery make(self, exchange, routing_key, body, serializer, delivery_mode, priority, bint as_value=False):
        """A message with a body to encode; ``as_value``: it may be a PlainValue.

        Raises EncodeError, SerializerNotInstalled.
        """
        cdef Delivery made = Delivery.__new__(Delivery)
        cdef tuple codec = self._codecs._encode_body(made, body, serializer, as_value)
        made.exchange = exchange
        made.routing_key = routing_key
        made.properties = self.properties(codec[0], codec[1], delivery_mode, priority)
        return made

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
        return <Properties?> found


@cython.final
cdef class ForeignPublish(PublishStep):
    """Publishing on a channel of a foreign transport, by the two calls that kombu makes.

    ``raw``: the channel; ``on_error(exception)`` is called before what they raise is raised; it may be None.
    """

    cdef object _raw
    cdef object _on_error

    def __init__(self, raw, on_error):
        self._raw = raw
        self._on_error = on_error

    cdef object send(self, object channel, Delivery delivery, bint mandatory, object timeout, object confirm_timeout):
        cdef Properties properties = delivery.properties
        cdef dict headers
        raw = self._raw  # held: `__init__` may be called again meanwhile
        body = delivery.sent_body()
        # A copy of the publisher's own: it may be sent again, and the channel may change what it is given.
        headers = {} if properties.headers is None else dict(properties.headers)
        # As kombu's serializers return it; a body that was text already goes as bytes there.
        if (
            type(body) is bytes and properties.content_encoding == "utf-8" and properties.content_type != "text/plain"
            and not (headers and "compression" in headers)
        ):
            try:
                body = (<bytes> body).decode("utf-8")
            except UnicodeDecodeError:
                pass  # it goes as it is
        try:
            message = raw.prepare_message(body, properties.priority, properties.content_type,
                                          properties.content_encoding, headers, other_properties(properties))
            return raw.basic_publish(
                message,
                exchange=delivery.exchange,
                routing_key=delivery.routing_key,
                mandatory=mandatory,
                immediate=False,
                timeout=timeout,
                confirm_timeout=confirm_timeout,
            )
        except Exception as error:
            if self._on_error is not None:
                self._on_error(error)
            raise


cdef dict other_properties(Properties properties):
    """The properties that are no arguments of ``prepare_message`` of their own, by name, in AMQP's order."""
    cdef dict found = {}
    if properties.delivery_mode is not None:
        found["delivery_mode"] = properties.delivery_mode
    if properties.correlation_id is not None:
        found["correlation_id"] = properties.correlation_id
    if properties.reply_to is not None:
        found["reply_to"] = properties.reply_to
    if properties.expiration is not None:
        found["expiration"] = properties.expiration
    if properties.message_id is not None:
        found["message_id"] = properties.message_id
    if properties.timestamp is not None:
        found["timestamp"] = properties.timestamp
    if properties.type is not None:
        found["type"] = properties.type
    if properties.user_id is not None:
        found["user_id"] = properties.user_id
    if properties.app_id is not None:
        found["app_id"] = properties.app_id
    if properties.cluster_id is not None:
        found["cluster_id"] = properties.cluster_id
    if properties.extra is not None:
        found.update(properties.extra)
    return found


#: What a policy of retries may say.
cdef frozenset POLICY_FIELDS = frozenset((
    "errback", "max_retries", "interval_start", "interval_step", "interval_max", "on_revive", "retry_errors"
))


cdef class BaseBatch:
    """Messages that wait to be sent together, those that wait longest first.

    ``is_plain``: nothing else has to be done when a message is added, so a producer adds it in one step.
    """

    cdef Py_ssize_t _max_size
    cdef bint _is_plain
    cdef list _deliveries
    cdef list _mandatory  # for each of them

    def __cinit__(self):
        self._deliveries, self._mandatory = [], []

    def __init__(self, Py_ssize_t max_size, bint is_plain=False):
        if max_size < 1:
            raise ValueError(f"max_size must be at least 1, got {max_size}")
        self._max_size = max_size
        self._is_plain = is_plain

    def __len__(self):
        return len(self._deliveries)

    @property
    def is_full(self):
        """Whether it is time to send."""
        return len(self._deliveries) >= self._max_size

    @property
    def is_mandatory(self):
        """Whether the first that waits is mandatory. Raises IndexError if none waits."""
        with cython.critical_section(self):
            return self._mandatory[0]

    def append(self, Delivery delivery not None, bint mandatory):
        """Put a message behind the others.

        Args:
            delivery: The message.
            mandatory: If True, it has to reach a queue.
        """
        self._put(delivery, mandatory)

    def first_alike(self):
        """Those that wait first and are all mandatory, or all not."""
        cdef Py_ssize_t count = 1
        with cython.critical_section(self):
            if not self._deliveries:
                return []
            first = self._mandatory[0]
            while count < len(self._mandatory) and self._mandatory[count] is first:
                count += 1
            return self._deliveries[:count]

    def drop_first(self, Py_ssize_t count):
        """Remove the first messages, which were sent.

        Args:
            count: How many.
        """
        cdef list _gone
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}")
        with cython.critical_section(self):
            _gone = self._deliveries[:count]  # none ends before both lists are without it
            del self._deliveries[:count]
            del self._mandatory[:count]

    cdef int _put(self, Delivery delivery, bint mandatory) except -1:
        with cython.critical_section(self):
            self._deliveries.append(delivery)
            self._mandatory.append(mandatory)
        return 0

    cdef bint _take(self, Delivery delivery, bint mandatory) except -1:
        """Put a message behind the others, if that is all there is to do: the batch is not full by it."""
        if not self._is_plain or len(self._deliveries) + 1 >= self._max_size:
            return False
        self._put(delivery, mandatory)
        return True


cdef enum:
    SURELY_SHORT = 63  # characters of a routing key that need no look at its length in UTF-8, which may be 255
    PERSISTENT = 2


cdef class BaseMaker:
    """Makes the messages that ``publish`` is asked for. The base of the producers of both facades.

    Subclasses have ``exchange``, ``routing_key``, ``serializer`` and ``compression``, the defaults.
    """

    def __init__(self, Codecs codecs not None):
        self._codecs = codecs
        self._plain = PlainMessages(codecs)

    # --- what the facade adds

    def _mode_of(self, mode):
        """The number of a delivery mode that has a name."""
        raise NotImplementedError

    def _check_key(self, routing_key):
        """Raise the error for a routing key that is too long."""
        raise NotImplementedError

    def _make_other(self, name, routing_key, body, mode, priority, content_type, content_encoding, serializer, headers,
                    compression, expiration, properties):
        """The message where its body is compressed or encoded already, or its properties have to be converted."""
        raise NotImplementedError

    # --- the hot path

    cdef bint takes_values(self) except -1:
        """Whether messages go to a broker in this process, which has no use for their text."""
        return False

    def _make(self, exchange, routing_key, body, delivery_mode, priority, content_type, content_encoding, serializer,
              headers, compression, expiration, properties):
        """The message that the arguments of ``publish`` ask for."""
        return self._made(self.exchange, exchange, self.routing_key if routing_key is None else routing_key, body,
                          delivery_mode, priority, content_type, content_encoding, serializer or self.serializer,
                          headers, compression or self.compression, expiration, None, None, properties)

    cdef Delivery _made(self, own_exchange, exchange, routing_key, body, mode, priority, content_type,
                        content_encoding, serializer, headers, compression, expiration, correlation_id, reply_to,
                        properties):
        """The message, with the producer's own exchange; all other defaults are filled in."""
        cdef tuple codec
        cdef Delivery made
        cdef Properties own_properties
        cdef Codecs codecs = self._codecs  # held, as `plain` is: `__init__` may be called again meanwhile
        cdef PlainMessages plain = self._plain
        if codecs is None:
            raise TypeError("a producer without codecs: it was made without its __init__")
        if exchange is None:
            exchange = own_exchange
        if isinstance(exchange, str):
            name = exchange
            if not mode:
                mode = own_exchange.delivery_mode
        else:
            name = exchange.name
            if not mode:
                mode = exchange.delivery_mode
        if not mode:
            mode = PERSISTENT
        elif isinstance(mode, str):
            mode = self._mode_of(mode)
        if len(routing_key) > SURELY_SHORT:
            self._check_key(routing_key)
        if reply_to is None and properties:
            reply_to = properties.get("reply_to")
        if compression or content_type or expiration is not None or reply_to is not None and type(reply_to) is not str:
            properties = dict(properties)
            if correlation_id is not None:
                properties["correlation_id"] = correlation_id
            if reply_to is not None:
                properties["reply_to"] = reply_to
            return <Delivery?> self._make_other(name, routing_key, body, mode, priority, content_type, content_encoding,
                                                serializer, headers, compression, expiration, properties)
        if correlation_id is reply_to is None and not headers and not properties:
            return plain.make(name, routing_key, body, serializer, mode, priority, self.takes_values())
        made = Delivery.__new__(Delivery)
        codec = codecs._encode_body(made, body, serializer, self.takes_values())
        made.exchange = name
        made.routing_key = routing_key
        own_properties = _properties(codec[0], codec[1], headers, mode, priority, properties)
        if correlation_id is not None:
            own_properties.correlation_id = correlation_id
        own_properties.reply_to = reply_to
        made.properties = own_properties
        return made


cdef class BaseProducer(BaseMaker):
    """The step from the arguments of ``publish`` to the broker. The base of the synchronous facade's producer."""

    cdef public object _facade  # the channel
    cdef public object _declared  # the connection's declarations that hold our exchange
    cdef public object _exchange  # of this exchange
    cdef public object _batch
    cdef public bint _in_steps  # whether a step of publishing is a program's, or the channel is a stand-in

    # --- what the facade adds

    def _publish_in_steps(self, body, routing_key, delivery_mode, mandatory, immediate, priority, content_type,
                          content_encoding, serializer, headers, compression, exchange, retry, retry_policy, declare,
                          expiration, timeout, confirm_timeout, properties):
        """Publish a message in steps that a program may see."""
        raise NotImplementedError

    def _publish_otherwise(self, delivery, mandatory, retry, retry_policy, declare, timeout, confirm_timeout, via):
        """Publish a message where there is more to do than to hand it to an open channel."""
        raise NotImplementedError

    def _publish_failed(self, channel, error):
        """Note an error of publishing, which is raised then."""
        raise NotImplementedError

    def _publish_again(self, error, transport, retry_policy, delivery, mandatory, timeout, confirm_timeout):
        """Try again after an error on a transport, as the policy says."""
        raise NotImplementedError

    # --- the hot path

    cdef bint takes_values(self) except -1:
        cdef PublishStep step
        if not isinstance(self._facade, BaseChannel):
            return False
        step = (<BaseChannel> self._facade)._publish_step
        return step is not None and step.takes_values

    def _publish_now(self, body, routing_key, delivery_mode, mandatory, immediate, priority, content_type,
                     content_encoding, serializer, headers, compression, exchange, retry, retry_policy, declare,
                     expiration, timeout, confirm_timeout, via, correlation_id, reply_to, properties):
        """Do what ``publish`` does, with all of its arguments."""
        cdef Delivery delivery
        cdef object transport
        if via is None and (self._in_steps or (retry and not self._insures_itself)):
            if correlation_id is not None:
                properties["correlation_id"] = correlation_id
            if reply_to is not None:
                properties["reply_to"] = reply_to
            return self._publish_in_steps(body, routing_key, delivery_mode, mandatory, immediate, priority,
                                          content_type, content_encoding, serializer, headers, compression, exchange,
                                          retry, retry_policy, declare, expiration, timeout, confirm_timeout,
                                          properties)
        own_exchange = self.exchange
        delivery = self._made(own_exchange, exchange, self.routing_key if routing_key is None else routing_key, body,
                              delivery_mode, priority, content_type, content_encoding, serializer or self.serializer,
                              headers, compression or self.compression, expiration, correlation_id, reply_to,
                              properties)
        batch = self._batch
        if (
            declare is None and via is None and isinstance(batch, BaseBatch) and self._is_ready(own_exchange)
            and (<BaseBatch> batch)._take(delivery, mandatory)
        ):
            return None  # nothing is asked of the broker: there is nothing to retry
        if (
            declare is not None or via is not None or batch is not None or not self._is_ready(own_exchange)
            or retry and retry_policy and not POLICY_FIELDS.issuperset(retry_policy)
        ):
            return self._publish_otherwise(delivery, mandatory, retry, retry_policy, declare, timeout, confirm_timeout,
                                           via)
        channel = self._facade
        # Most first tries succeed, and need none of what a second one does.
        transport = getattr(channel.connection, "_carrier", None) if retry else None
        try:
            return (<BaseChannel?> channel)._send(delivery, mandatory, timeout, confirm_timeout)
        except Exception as error:
            self._publish_failed(channel, error)
            if not retry:
                raise
            return self._publish_again(error, transport, retry_policy, delivery, mandatory, timeout, confirm_timeout)

    cdef bint _is_ready(self, exchange) except -1:
        """Whether the channel is open, and our exchange was declared on its connection."""
        cdef BaseChannel channel
        if self._declared is None or not isinstance(self._facade, BaseChannel):
            return False
        channel = <BaseChannel> self._facade
        return (
            (channel._is_open if channel.raw is None else channel._is_usable())
            and isinstance(channel.session, BaseSession)
            and (<BaseSession> channel.session).declared is self._declared and exchange is self._exchange
        )
