"""A channel: the verbs of AMQP over a transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from kombulite import exceptions
from kombulite._core import Delivery, Properties, copy_tree
from kombulite.message import Message
from kombulite.transport.base import (
    Cancelled,
    Event,
    ExchangeSpec,
    Outcome,
    QueueInfo,
    QueueSpec,
    Returned,
    Transport,
)

if TYPE_CHECKING:
    from kombulite.connection import Connection

#: Properties that ``publish`` takes as keywords beside its own arguments.
KEYWORD_PROPERTIES = frozenset(
    [
        "delivery_mode",
        "correlation_id",
        "reply_to",
        "expiration",
        "message_id",
        "timestamp",
        "type",
        "user_id",
        "app_id",
        "cluster_id",
    ]
)
ACK = Outcome.ACK  # as a global: looking the member up costs as much as the call
LONGEST_SHORT_STRING = 255  # bytes, AMQP 0-9-1 section 4.2.5.3

QUEUE_ARGUMENTS: dict[str, tuple[str, Callable[[Any], int]]] = {
    "expires": ("x-expires", lambda seconds: int(seconds * 1000)),
    "message_ttl": ("x-message-ttl", lambda seconds: int(seconds * 1000)),
    "max_length": ("x-max-length", int),
    "max_length_bytes": ("x-max-length-bytes", int),
    "max_priority": ("x-max-priority", int),
}


# Inside the class the name is that of its attribute.
ReceivedMessage = Message
MessageCallback = Callable[[Message], Any]


class Subscription:
    """A consumer of this channel, as the application sees it."""

    __slots__ = ("callback", "make_message", "no_ack", "on_cancel")

    def __init__(
        self,
        make_message: Callable[[Delivery, Channel], Message],
        callback: MessageCallback | None,
        no_ack: bool,
        on_cancel: Callable[[str], Any] | None,
    ) -> None:
        self.make_message = make_message
        self.callback = callback
        self.no_ack = no_ack
        self.on_cancel = on_cancel


class Closed:
    """Stands for the transport of a closed channel: whatever is asked of it fails."""

    def __getattr__(self, name: str) -> NoReturn:
        raise exceptions.RecoverableConnectionError("channel already closed")


class Channel:
    """One conversation with the broker. Made by ``Connection.channel()``."""

    #: What received messages are made of; may be replaced by a subclass of it.
    Message = Message

    def __init__(self, connection: Connection, transport: Transport, channel_id: int) -> None:
        self.connection = connection
        self.channel_id = channel_id
        self.is_open = True
        #: Called with (exception, exchange, routing_key, message) for each returned message.
        self.return_listeners: list[Callable[[Exception, str, str, ReceivedMessage], Any]] = []
        self._transport = transport
        self._settle = transport.settle
        self._subscriptions: dict[str, Subscription] = {}

    # --- exchanges

    def exchange_declare(
        self,
        exchange: str,
        type: str = "direct",
        passive: bool = False,
        durable: bool = True,
        auto_delete: bool = False,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Create an exchange, or with ``passive`` assert it. Raises NotFound, NotEquivalentError."""
        check_short(exchange, "exchange name")
        spec = ExchangeSpec(exchange, type, durable, auto_delete, arguments or None)
        self._transport.declare_exchange(self.channel_id, spec, passive)

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange with its bindings. Raises PreconditionFailed."""
        self._transport.delete_exchange(self.channel_id, exchange, if_unused)
        self.connection.forget_declarations()

    def exchange_bind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Let messages of exchange ``source`` come to exchange ``destination``. Raises NotFound."""
        check_short(routing_key, "routing key")
        self._transport.bind(self.channel_id, source, destination, routing_key, arguments, to_exchange=True)

    def exchange_unbind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Take a binding between exchanges away."""
        self._transport.unbind(self.channel_id, source, destination, routing_key, arguments, to_exchange=True)

    # --- queues

    def prepare_queue_arguments(self, arguments: Mapping[str, Any] | None, **kwargs: Any) -> dict[str, Any]:
        """AMQP's arguments for the keywords of ``Queue`` (``expires`` in seconds, …), over those given."""
        prepared = dict(arguments or {})
        for keyword, value in kwargs.items():
            if value is not None:
                name, convert = QUEUE_ARGUMENTS[keyword]
                prepared[name] = convert(value)
        return prepared

    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> QueueInfo | None:
        """Create a queue, or with ``passive`` assert it: (queue, message_count, consumer_count).

        Raises NotFound, NotEquivalentError, ResourceLocked.
        """
        check_short(queue, "queue name")
        spec = QueueSpec(queue, durable, exclusive, auto_delete, arguments or None)
        info = self._transport.declare_queue(self.channel_id, spec, passive)
        return None if nowait and queue else info

    def queue_bind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Bind a queue to an exchange. Raises NotFound, PreconditionFailed."""
        check_short(routing_key, "routing key")
        self._transport.bind(self.channel_id, exchange, queue, routing_key, arguments)

    def queue_unbind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Take a binding away."""
        self._transport.unbind(self.channel_id, exchange, queue, routing_key, arguments)

    def queue_purge(self, queue: str, nowait: bool = False) -> int:
        """Remove the messages that wait; returns how many."""
        return self._transport.purge(self.channel_id, queue)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, nowait: bool = False) -> int:
        """Delete a queue; returns the messages gone with it. Raises PreconditionFailed."""
        deleted = self._transport.delete_queue(self.channel_id, queue, if_unused, if_empty)
        self.connection.forget_declarations()
        return deleted

    # --- publishing

    def prepare_message(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
    ) -> Delivery:
        """A message for ``basic_publish``."""
        if isinstance(body, str):
            body = body.encode(content_encoding or "utf-8")
        elif not isinstance(body, bytes):
            raise exceptions.EncodeError(f"a body is text or bytes, not {type(body).__name__}")
        return Delivery(
            "", "", make_properties(content_type, content_encoding, headers, priority, properties or {}), body
        )

    def basic_publish(
        self,
        message: Delivery,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Publish what ``prepare_message`` made. ``immediate`` is ignored, as brokers do."""
        self.publish(Delivery(exchange, routing_key, message.properties, message.body), mandatory, timeout)

    def publish(self, delivery: Delivery, mandatory: bool = False, timeout: float | None = None) -> None:
        """Hand a message to the broker. Raises NotFound, MessageNacked, PreconditionFailed (routing key too long)."""
        if len(delivery.routing_key) > SURELY_SHORT:
            check_short(delivery.routing_key, "routing key")
        self._transport.publish(self.channel_id, delivery, mandatory, timeout)

    def publish_many(
        self, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        """Publish in order; returns those refused, as (index, exception)."""
        for delivery in deliveries:
            check_short(delivery.routing_key, "routing key")
        return self._transport.publish_many(self.channel_id, deliveries, mandatory, timeout)

    # --- consuming

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, a_global: bool = False) -> None:
        """Bound the messages that are delivered and not acknowledged (0: no bound)."""
        self._transport.qos(self.channel_id, prefetch_size, prefetch_count, a_global)

    def basic_consume(
        self,
        queue: str,
        no_ack: bool = False,
        callback: MessageCallback | None = None,
        consumer_tag: str = "",
        nowait: bool = False,
        exclusive: bool = False,
        arguments: Mapping[str, Any] | None = None,
        on_cancel: Callable[[str], Any] | None = None,
    ) -> str:
        """Start a consumer: ``callback(message)`` runs in ``drain_events``. Returns its tag."""
        consumer_tag = self._transport.consume(self.channel_id, queue, consumer_tag, no_ack, exclusive, arguments)
        self._subscriptions[consumer_tag] = Subscription(self.Message.from_delivery, callback, no_ack, on_cancel)
        return consumer_tag

    def basic_cancel(self, consumer_tag: str) -> None:
        """End a consumer."""
        self._transport.cancel(self.channel_id, consumer_tag)
        self._subscriptions.pop(consumer_tag, None)

    def basic_get(self, queue: str, no_ack: bool = False) -> ReceivedMessage | None:
        """The next message of a queue, or None."""
        delivery = self._transport.get(self.channel_id, queue, no_ack)
        if delivery is None:
            return None
        message = self.Message.from_delivery(delivery, self)
        message.no_ack = no_ack
        return message

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Acknowledge a delivery, and with ``multiple`` all before it. Raises PreconditionFailed."""
        self._settle(self.channel_id, delivery_tag, ACK, multiple)

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Give a delivery up, or put it back into its queue."""
        self._transport.settle(self.channel_id, delivery_tag, Outcome.REQUEUE if requeue else Outcome.REJECT)

    def basic_recover(self, requeue: bool = False) -> None:
        """Put all that is not acknowledged back into its queues."""
        self._transport.recover(self.channel_id)

    def flow(self, active: bool = True) -> None:
        """Pause deliveries, or let them go on."""
        self._transport.flow(self.channel_id, active)

    def after_reply_message_received(self, queue: str) -> None:
        """Called when the replies in a queue were collected: nothing to do, brokers delete such queues themselves."""

    def dispatch(self, event: Event) -> None:
        """Run the callback that an event of this channel is for."""
        if type(event) is Delivery:
            try:
                subscription = self._subscriptions[event.consumer_tag]
            except KeyError:
                # It was on its way when the consumer was cancelled.
                self._transport.settle(self.channel_id, event.delivery_tag, Outcome.REQUEUE)
                return
            message = subscription.make_message(event, self)
            if subscription.no_ack:
                message.no_ack = True
            if subscription.callback is not None:
                subscription.callback(message)
        elif isinstance(event, Returned):
            self._on_returned(event)
        else:
            self._on_cancelled(event)

    def _on_returned(self, event: Returned) -> None:
        error = exceptions.MessageReturned(event.reply_text, (60, 50), "Basic.return", event.reply_code)
        if not self.return_listeners:
            raise error
        delivery = event.delivery
        for listener in list(self.return_listeners):
            listener(error, delivery.exchange, delivery.routing_key, self.Message.from_delivery(delivery, self))

    def _on_cancelled(self, event: Cancelled) -> None:
        subscription = self._subscriptions.pop(event.consumer_tag, None)
        if subscription is None:
            return
        if subscription.on_cancel is None:
            raise exceptions.ConsumerCancelled(f"the broker cancelled consumer {event.consumer_tag}")
        subscription.on_cancel(event.consumer_tag)

    # --- lifetime

    def close(self) -> None:
        """End the consumers; messages not acknowledged go back to their queues. May be repeated."""
        if self.is_open:
            transport = self._transport
            self.detach()
            self.connection.forget_channel(self)
            transport.close_channel(self.channel_id)

    release = discard = close  # a pool sets its own on the channels that are out

    def detach(self) -> None:
        """Be closed, without a word to the broker: the connection is gone."""
        self.is_open = False
        self._subscriptions.clear()
        self._transport = Closed()  # type: ignore[assignment]
        self._settle = self._transport_is_closed  # type: ignore[assignment]

    def _transport_is_closed(self, *args: Any) -> NoReturn:
        raise exceptions.RecoverableConnectionError("channel already closed")

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is None:
            self.release()
        else:
            self.discard()


# Names of at most this many characters need no look at their length in UTF-8.
SURELY_SHORT = LONGEST_SHORT_STRING // 4


def check_short(text: str, what: str) -> None:
    """AMQP sends names and keys as short strings; no transport takes longer ones."""
    if len(text) > SURELY_SHORT:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > LONGEST_SHORT_STRING:
            raise exceptions.PreconditionFailed(f"a {what} has at most {LONGEST_SHORT_STRING} bytes, not {size}")


def make_properties(
    content_type: str | None,
    content_encoding: str | None,
    headers: Mapping[str, Any] | None,
    priority: int | None,
    properties: Mapping[str, Any],
) -> Properties:
    """The properties of a message to publish; what AMQP does not know goes to ``extra``."""
    known = {name: value for name, value in properties.items() if name in KEYWORD_PROPERTIES}
    extra = {name: value for name, value in properties.items() if name not in KEYWORD_PROPERTIES}
    return Properties(
        content_type=content_type,
        content_encoding=content_encoding,
        headers=copy_tree(dict(headers)) if headers else None,
        priority=priority,
        extra=extra or None,
        **known,
    )
