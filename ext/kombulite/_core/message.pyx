"""What travels: the properties of a message, and a message on its way from or to a broker."""

cimport cython


PROPERTY_NAMES = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)


@cython.final
cdef class Properties:
    """The basic properties of a message, in the order of the AMQP 0-9-1 content header (section 4.2.6.1).

    Fixed once made, and shared by all messages that have the same ones; nobody may change ``headers`` or ``extra``
    in place. A property that is not set is None. ``extra`` holds what is no AMQP property; brokers whose messages
    are JSON carry it, AMQP does not.
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
    transport hands over text). The broker's side adds the rest:

    * ``channel``: number of the channel it goes to; ``consumer_tag``: the consumer, None for an answer to a get.
    * ``delivery_tag``: what an ack names; ``redelivered``: somebody may have seen it before.
    * ``message_count``: messages left in the queue, on an answer to a get.
    * ``expires_at`` (the transport's clock, seconds; 0 is never) and ``position`` (place in its queue): for
      transports that keep queues themselves.
    """

    def __init__(self, exchange, routing_key, Properties properties not None, body):
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.body = body

    def copy(self):
        """The same message with none of what a broker added, as it goes to another queue."""
        return Delivery(self.exchange, self.routing_key, self.properties, self.body)

    def __reduce__(self):
        return _restore, (self.exchange, self.routing_key, self.properties, self.body, self.consumer_tag,
                          self.delivery_tag, self.message_count, self.expires_at, self.position, self.channel,
                          self.redelivered)

    def __repr__(self):
        return (f"<Delivery {self.delivery_tag!r} exchange={self.exchange!r} routing_key={self.routing_key!r} "
                f"{len(self.body)} in body>")


def _restore(exchange, routing_key, properties, body, consumer_tag, delivery_tag, message_count, expires_at,
             position, channel, redelivered):
    delivery = Delivery(exchange, routing_key, properties, body)
    delivery.consumer_tag = consumer_tag
    delivery.delivery_tag = delivery_tag
    delivery.message_count = message_count
    delivery.expires_at = expires_at
    delivery.position = position
    delivery.channel = channel
    delivery.redelivered = redelivered
    return delivery
