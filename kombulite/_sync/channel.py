"""A channel: the verbs of AMQP over a transport.

Longer than other modules: the verbs are as many as AMQP has, each a few lines, and kombu's users find them here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from time import time
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from kombulite import exceptions
from kombulite._client.batching import BatchCollector
from kombulite._client.declarations import queue_arguments, require_kind
from kombulite._client.outgoing import as_it_is, check_short
from kombulite._client.queue_kind import QueueKind
from kombulite._client.session import ChannelSession
from kombulite._client.streams import StreamPositions
from kombulite._client.topology import Binding
from kombulite._core import BaseChannel, BaseSubscription, CounterBlock, Delivery, make_properties
from kombulite.brokers.base import (
    Cancelled,
    ChannelClosed,
    Event,
    ExchangeSpec,
    HeldDeliveries,
    Outcome,
    QueueInfo,
    QueueSpec,
    Returned,
    Transport,
)
from kombulite.message import Message
from kombulite.utils.logs import log
from kombulite.utils.uuid import uuid

if TYPE_CHECKING:
    from kombulite._client.hooks import Hooks

T = TypeVar("T")

BASIC_PUBLISH = (60, 40)  # AMQP's class and method id
MAX_GONE = 1000  # consumers that have ended and whose late messages are known

# Inside the class the name is that of its attribute.
ReceivedMessage = Message
MessageCallback = Callable[[Message], Any]


class Subscription(BaseSubscription):
    """Consumer of a channel, as the application sees it. ``run`` is its callback, with the hooks around it."""

    __slots__ = ("arguments", "callback", "exclusive", "on_cancel", "on_renamed", "queue", "started")

    def __init__(
        self,
        cls: type[Message],
        channel: Channel,
        tally: CounterBlock,
        queue: str,
        no_ack: bool,
        callback: MessageCallback | None,
        on_cancel: Callable[[str], Any] | None,
        exclusive: bool,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        self.callback = callback or _ignore
        super().__init__(cls, channel, tally, no_ack, self.callback)
        self.on_renamed: Callable[[str, str], Any] | None = None
        self.on_cancel = on_cancel
        self.queue = queue
        self.exclusive = exclusive
        self.arguments = arguments
        self.started = time()


def _nothing() -> None:
    """For a timer that only makes the event loop turn."""


def _ignore(message: Message) -> None:
    """Return the callback of a consumer that has none."""


class ClosedTransport:
    """Transport of a closed channel: every call raises the reason, except to settle deliveries that are held."""

    def __init__(self, reason: str, held: HeldDeliveries | None) -> None:
        self._reason = reason
        self._held = held

    def __getattr__(self, name: str) -> NoReturn:
        raise exceptions.RecoverableConnectionError(self._reason)

    def publish(self, *args: Any) -> NoReturn:
        """Raise the reason. This and the next are methods, because channels keep them.

        Args:
            *args: Ignored.
        """
        raise exceptions.RecoverableConnectionError(self._reason)

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        """Settle what the application still has, where another connection can."""
        self._settle(channel, [delivery_tag], outcome, multiple)

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        """Settle some of that."""
        self._settle(channel, delivery_tags, outcome, False)

    def _settle(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome, multiple: bool) -> None:
        if self._held is None or not self._held.settle(channel, delivery_tags, outcome, multiple):
            raise exceptions.RecoverableConnectionError(self._reason)


class ChannelQoS:
    """Prefetch count of a channel, and the function that a program sets in the place of ``can_consume``.

    On Redis a function that is assigned to ``can_consume`` is called before each message that is taken.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.may_take: Callable[[], Any] | None = None

    @property
    def prefetch_count(self) -> int:
        """Largest number of messages in flight; 0 for no limit."""
        return self._channel.prefetch_limit

    @prefetch_count.setter
    def prefetch_count(self, count: int) -> None:
        self._channel.basic_qos(0, count, False)

    @property
    def can_consume(self) -> Callable[[], Any]:
        """The function that says if another message may be taken. A program may replace it."""
        return self.may_take or self._always

    @can_consume.setter
    def can_consume(self, may_take: Callable[[], Any]) -> None:
        self.may_take = may_take
        self._channel.apply_gate()

    def _always(self) -> bool:
        return True  # the broker keeps to the prefetch count by itself


class Channel(BaseChannel):
    """Channel: one conversation with the broker, with AMQP's verbs. Returned by ``Connection.channel()``.

    Args:
        connection: The connection.
        transport: The transport.
        channel_id: Number of the channel on its connection.
    """

    #: What received messages are made of; may be replaced by a subclass of it.
    Message = Message

    #: Which consumers acknowledge nothing is known by each message.
    no_ack_consumers: Any = None

    _qos: ChannelQoS | None = None

    _transport: Transport
    _bare_transport: Transport  # without hooks around it

    def __init__(self, connection: Any, transport: Transport, channel_id: int) -> None:
        self.session: ChannelSession = connection.session
        super().__init__(channel_id, self.session.tally, Outcome.ACK)
        self.connection = connection  #: for programs: the channel itself talks to its session
        self.is_open = True
        #: What the broker closed the channel for.
        self.failure: exceptions.ChannelError | None = None
        #: Called with (exception, exchange, routing_key, message) for each returned message.
        self.return_listeners: list[Callable[[Exception, str, str, ReceivedMessage], Any]] = []
        self._hooks = self.session.hooks
        self._join(transport)
        self._limits: dict[bool, tuple[int, int]] = {}  # by a_global: prefetch size and count
        self._confirms = False  # whether it was asked for on this channel
        self._collectors: set[BatchCollector] = set()
        #: How often it was opened again or recovered: what came before is not to be settled any more.
        self.generation = 0
        self._highest_tag = 0
        self._held: HeldDeliveries | None = None
        #: Tags of the consumers without acks that have ended last.
        self._gone: deque[str] = deque(maxlen=MAX_GONE)
        #: Tags of consumers that the broker ended with the channel, and that do not know it yet.
        self.unreported: set[str] = set()

    @property
    def public(self) -> Any:
        """The object that programs see as the channel."""
        return self

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
        """Create an exchange, or assert that it exists.

        Args:
            exchange: Name.
            type: ``"direct"``, ``"topic"``, ``"fanout"``, ``"headers"`` or a plugin's type.
            passive: If True, only assert that it exists; nothing is created or changed.
            durable: If True, it survives a restart of the broker.
            auto_delete: If True, it is deleted with its last binding.
            nowait: Ignored: the broker's answer is waited for, and its error raised.
            arguments: The broker's own arguments, by name.

        Raises:
            NotFound: The queue or exchange does not exist.
            NotEquivalentError: It exists with other settings.
        """
        check_short(exchange, "exchange name")
        spec = ExchangeSpec(exchange, type, durable, auto_delete, arguments or None)
        self._ask(self._transport.declare_exchange, spec, passive)
        if not passive:
            self.session.topology.declared_exchange(spec)

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange with its bindings.

        Args:
            exchange: Name.
            if_unused: Delete only if nothing is bound to it.
            nowait: Ignored: the broker's answer is waited for, and its error raised.

        Raises:
            PreconditionFailed: It is in use.
        """
        self._ask(self._transport.delete_exchange, exchange, if_unused)
        self.session.topology.deleted_exchange(exchange)
        self.session.forget_declarations()

    def exchange_bind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Bind one exchange to another, whose messages it then receives.

        Args:
            destination: Name of the exchange that receives.
            source: Name of the exchange that sends.
            routing_key: Routing key.
            nowait: Ignored: the broker's answer is waited for, and its error raised.
            arguments: Arguments of the binding.

        Raises:
            NotFound: The queue or exchange does not exist.
        """
        check_short(routing_key, "routing key")
        self._bind(Binding(source, destination, routing_key, arguments, True))

    def exchange_unbind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Remove a binding between exchanges.

        Args:
            destination: Name of the exchange that receives.
            source: Name of the exchange that sends.
            routing_key: Routing key.
            nowait: Ignored: the broker's answer is waited for, and its error raised.
            arguments: Arguments of the binding.
        """
        self._unbind(Binding(source, destination, routing_key, arguments, True))

    # --- queues

    def prepare_queue_arguments(
        self, arguments: Mapping[str, Any] | None, kind: QueueKind | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return AMQP's arguments for the keywords of ``Queue``, added to given ones.

        Args:
            arguments: Arguments under the broker's names; these win.
            kind: ``Quorum(...)``, ``Stream(...)`` or None.
            **kwargs: ``expires`` and ``message_ttl`` in seconds, ``max_length``, ``max_length_bytes``,
                ``max_priority``.

        Raises:
            AMQPNotImplementedError: The broker has no queues of that kind.
        """
        if kind is not None:
            require_kind(kind, self._bare_transport)
        return queue_arguments(arguments, kind, **kwargs)

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
        """Create a queue, or assert that it exists.

        Args:
            queue: Name; for ``""`` the broker chooses one.
            passive: If True, only assert that it exists; nothing is created or changed.
            durable: If True, it survives a restart of the broker.
            exclusive: If True, only this connection may use it, and it is deleted with the connection.
            auto_delete: If True, it is deleted with its last consumer.
            nowait: If True, the result is None for a queue with a name; the broker's answer is waited for all the same.
            arguments: The broker's own arguments, by name.

        Returns:
            (queue, message_count, consumer_count), or None with ``nowait``.

        Raises:
            NotFound: The queue or exchange does not exist.
            NotEquivalentError: It exists with other settings.
            ResourceLocked: It is an exclusive queue of another connection.
        """
        check_short(queue, "queue name")
        spec = QueueSpec(queue, durable, exclusive, auto_delete, arguments or None)
        info = self._ask(self._transport.declare_queue, spec, passive)
        if not passive:
            self.session.topology.declared_queue(spec, info.queue)
        return None if nowait and queue else info

    def queue_bind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Bind a queue to an exchange.

        Args:
            queue: Name of the queue.
            exchange: Name of the exchange.
            routing_key: Routing key.
            nowait: Ignored: the broker's answer is waited for, and its error raised.
            arguments: Arguments of the binding.

        Raises:
            NotFound: The queue or exchange does not exist.
            PreconditionFailed: The condition does not hold, or the request contradicts the state of the entity.
        """
        check_short(routing_key, "routing key")
        self._bind(Binding(exchange, queue, routing_key, arguments, False))

    def queue_unbind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        nowait: bool = False,
    ) -> None:
        """Remove a binding of a queue.

        Args:
            queue: Name of the queue.
            exchange: Name of the exchange.
            routing_key: Routing key.
            arguments: Arguments of the binding.
            nowait: Ignored: the broker's answer is waited for, and its error raised.
        """
        self._unbind(Binding(exchange, queue, routing_key, arguments, False))

    def _bind(self, binding: Binding) -> None:
        self._ask(self._transport.bind, *binding)
        self.session.topology.bound(binding)

    def _unbind(self, binding: Binding) -> None:
        self._ask(self._transport.unbind, *binding)
        self.session.topology.unbound(binding)

    def queue_purge(self, queue: str, nowait: bool = False) -> int:
        """Remove the waiting messages of a queue. Return their number.

        Args:
            queue: Name of the queue.
            nowait: Ignored: the broker's answer is waited for, and its error raised.
        """
        return self._ask(self._transport.purge, queue)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, nowait: bool = False) -> int:
        """Delete a queue. Return the number of messages that were deleted with it.

        Args:
            queue: Name of the queue.
            if_unused: Delete only if it has no consumer.
            if_empty: Delete only if no message waits in it.
            nowait: Ignored: the broker's answer is waited for, and its error raised.

        Raises:
            PreconditionFailed: It is in use, or not empty.
        """
        deleted = self._ask(self._transport.delete_queue, queue, if_unused, if_empty)
        self.session.topology.deleted_queue(queue)
        self.session.forget_declarations()
        return deleted

    # --- publishing

    def prepare_message(
        self,
        body: object,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
    ) -> Delivery:
        """Return a message for ``basic_publish``.

        Args:
            body: The body, text or bytes.
            priority: Priority, 0 to the ``max_priority`` of the queue; the highest is delivered first.
            content_type: Content type of the body.
            content_encoding: Encoding of the body.
            headers: Headers by name.
            properties: Other properties, by name.
        """
        if type(body) is not bytes:
            _, body = as_it_is(body, content_encoding)
        made = make_properties(content_type, content_encoding, headers, None, priority, properties or {})
        return Delivery("", "", made, body)

    def basic_publish(
        self,
        message: Delivery,
        exchange: str = "",
        routing_key: str | None = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Publish a message that ``prepare_message`` returned.

        Args:
            message: The message.
            exchange: Name of the exchange; ``""`` is the default exchange.
            routing_key: Routing key; None: an empty one.
            mandatory: If True, the broker returns the message if no queue takes it.
            immediate: Ignored, as current brokers do.
            timeout: Seconds for the broker to take the message.
            confirm_timeout: Seconds for the broker to confirm it.

        Raises:
            NotFound: The exchange does not exist.
            MessageNacked: The broker refused the message.
        """
        routing_key = routing_key or ""
        check_short(routing_key, "routing key")
        delivery = Delivery(exchange, routing_key, message.properties, message.body)
        self.publish(delivery, mandatory, timeout, confirm_timeout)

    def confirm_select(self) -> None:
        """Make each publish on this channel wait for the broker's confirm.

        It has no effect where all publishes do: with ``confirm_publish``, and on all brokers except AMQP's.
        """
        self._confirms = True  # first: should the connection be lost meanwhile, another thread may restore the channel
        self._ask(self._transport.confirm)

    def publish_raised(self, error: Exception, delivery: Delivery) -> None:
        """Raise an error of publishing, except for a returned message with a listener.

        Args:
            error: The error.
            delivery: The message.
        """
        if isinstance(error, exceptions.MessageReturned):
            self._tally.count_published(delivery, self._transport.confirms)
            self._on_returned(error, delivery)
            return
        if isinstance(error, exceptions.ChannelError):
            self._notice(error)
        try:
            raise error
        finally:
            del error  # a cycle with this frame would keep what the callers' frames hold, a message for example

    def listen_for_returned(self, listener: Callable[[Exception, str, str, ReceivedMessage], Any]) -> None:
        """Call a listener for each message that the broker returns.

        Args:
            listener: Called with (exception, exchange, routing_key, message).
        """
        self.return_listeners.append(listener)

    def tell_returned(self) -> None:
        """Call the listeners for the messages that the broker has returned."""
        with ExitStack() as stack:  # if a listener raises, it gets the others all the same
            for event in reversed(self._transport.take_returned(self.channel_id)):
                stack.callback(self.dispatch, event)

    def publish_via(self, via: Any, delivery: Delivery, mandatory: bool = False) -> None:
        """Publish within a transaction of the caller's.

        Args:
            via: The caller's connection or session.
            delivery: The message.
            mandatory: If True, the broker returns the message if no queue takes it.

        Raises:
            AMQPNotImplementedError: The broker is no database.
        """
        unfinished = self._ask(self._transport.prepare_via, via, delivery, mandatory)()
        if unfinished is not None:
            unfinished.close()
            raise TypeError(
                f"via must not be asynchronous here, got {type(via).__name__}: await a kombulite.aio publish"
            )
        self._tally.count_published(delivery, True)

    def publish_many(
        self, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        """Publish messages in order. Return those that were refused, as (index, exception).

        Returned messages are passed to the listeners; without a listener they count as refused.

        Args:
            deliveries: The messages, whose routing keys are short strings.
            mandatory: If True, the broker returns the message if no queue takes it.
            timeout: Seconds for all of them.
        """
        if not deliveries:
            return []
        transport = self._transport  # a channel that the broker closes loses its own
        refused = self._ask(transport.publish_many, deliveries, mandatory, timeout)
        return self._published(deliveries, refused, transport.confirms)

    def begin_publish_many(
        self, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> Callable[[], list[tuple[int, Exception]]] | None:
        """Send messages, and let the broker store them while the program does something else.

        Return a function that waits until they are stored, and returns what ``publish_many`` does: call it soon, for
        some may have to be sent again. Return None, with nothing sent, where ``publish_many`` is as good.

        Args:
            deliveries: The messages, at least one, whose routing keys are short strings.
            mandatory: If True, the broker returns the message if no queue takes it.
            timeout: Seconds for all of them.
        """
        transport = self._transport
        wait = self._ask(transport.begin_publish_many, deliveries, mandatory, timeout)
        if wait is None:
            return None
        return lambda: self._published(deliveries, self._ask(lambda _: wait()), transport.confirms)

    def _published(
        self, deliveries: Sequence[Delivery], refused: list[tuple[int, Exception]], confirms: bool
    ) -> list[tuple[int, Exception]]:
        """Count messages, and report those that were returned; returns the others that were refused."""
        closing = [error for _, error in refused if isinstance(error, exceptions.ChannelError)]
        if closing:
            self._notice(closing[-1])
        returned = [(index, error) for index, error in refused if isinstance(error, exceptions.MessageReturned)]
        others = [each for each in refused if not isinstance(each[1], exceptions.MessageReturned)]
        self._tally.count_many(deliveries, confirms, {index for index, _ in others})
        if not self.return_listeners:
            for _ in returned:
                self._tally.count_returned()
            return refused
        with ExitStack() as stack:
            for index, error in reversed(returned):
                stack.callback(self._on_returned, error, deliveries[index])
        return others

    # --- consuming

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, a_global: bool = False) -> None:
        """Limit the messages in flight: delivered and not acknowledged.

        Args:
            prefetch_size: Bytes in flight; RabbitMQ requires 0.
            prefetch_count: Largest number of messages; 0 for no limit.
            a_global: If True, the limit is for all consumers of the channel together.
        """
        prefetch_size, prefetch_count = prefetch_size or 0, prefetch_count or 0  # kombu's users pass None for no bound
        self._ask(self._transport.qos, prefetch_size, prefetch_count, a_global)
        self._limits[a_global] = prefetch_size, prefetch_count

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
        """Start a consumer, and return its tag.

        Args:
            queue: Name of the queue.
            no_ack: If True, a message counts as acknowledged when the broker sends it.
            callback: Called with each message, in ``drain_events``.
            consumer_tag: Tag of the consumer; one is chosen for ``""``.
            nowait: Ignored: the broker's answer is waited for, and its error raised.
            exclusive: If True, no other consumer may have the queue.
            arguments: The broker's own arguments, by name.
            on_cancel: Called with the consumer tag if the broker ends the consumer.

        Raises:
            NotFound: The queue or exchange does not exist.
            AccessRefused: Another consumer has the queue exclusively.
        """
        consumer_tag = consumer_tag or f"ctag-{uuid()}"
        if consumer_tag in self._subscriptions:
            raise exceptions.NotAllowed(f"consumer tag '{consumer_tag}' is in use")
        if self.positions is not None:
            arguments = self.positions.starting(queue, arguments)
        # Before the broker knows: another thread may drain the first message.
        subscription = Subscription(
            self.Message, self, self._tally, queue, no_ack, callback, on_cancel, exclusive, arguments
        )
        self._observe(subscription)
        self._subscriptions[consumer_tag] = subscription
        try:
            self._ask(self._transport.consume, queue, consumer_tag, no_ack, exclusive, arguments)
        except BaseException:
            self._subscriptions.pop(consumer_tag, None)
            raise
        return consumer_tag

    def resize_consumer(self, consumer_tag: str, successor: str, prefetch_count: int, apply_global: bool) -> bool:
        """Apply a prefetch count that was just set to a running consumer.

        Args:
            consumer_tag: Tag of the running consumer.
            successor: Tag of the consumer that may have to replace it.
            prefetch_count: The prefetch count.
            apply_global: If True, the limit is for all consumers of the channel together.

        Returns:
            True if the successor has replaced the consumer.
        """
        transport, subscription = self._transport, self._subscriptions.get(consumer_tag)
        if subscription is None:
            return False
        count = self._ask(transport.successor_count, consumer_tag, prefetch_count, apply_global)
        if count is None:
            return False
        self._subscriptions[successor] = subscription  # before the broker knows, as in `basic_consume`
        try:
            self._ask(
                transport.replace_consumer, consumer_tag, successor, count, subscription.queue, subscription.arguments
            )
        except BaseException:
            self._subscriptions.pop(successor, None)
            raise
        self._subscriptions.pop(consumer_tag, None)
        return True

    def basic_cancel(self, consumer_tag: str) -> None:
        """Cancel a consumer. If its connection is lost, it is not restored.

        Messages that need no acknowledgement and have arrived already are passed to it first, because no other consumer
        gets them.

        Args:
            consumer_tag: Tag of the consumer.
        """
        try:
            rest = self._ask(self._transport.cancel, consumer_tag) if self.is_open else None
        except Exception:  # it is not to come back with the next connection
            self._end(consumer_tag)
            raise
        with ExitStack() as stack:  # if a callback raises, the others have their turn all the same
            stack.callback(self._end, consumer_tag)
            for delivery in reversed(rest or ()):
                stack.callback(self.dispatch, delivery)

    def _end(self, consumer_tag: str) -> Subscription | None:
        """Forget a consumer."""
        subscription: Subscription | None = self._subscriptions.pop(consumer_tag, None)
        if subscription is not None:
            if subscription.no_ack:
                self._gone.append(consumer_tag)
            self.session.forget_consumer(subscription.queue)
        return subscription

    def consumes_from(self, queue: str) -> bool:
        """Return True if the channel has a consumer of a queue.

        Args:
            queue: Name of the queue.
        """
        return any(each.queue == queue for each in list(self._subscriptions.values()))

    def basic_get(self, queue: str, no_ack: bool = False) -> ReceivedMessage | None:
        """Return the next message of a queue, or None.

        Args:
            queue: Name of the queue.
            no_ack: If True, a message counts as acknowledged when the broker sends it.

        Raises:
            NotFound: The queue or exchange does not exist.
        """
        delivery = self._ask(self._transport.get, queue, no_ack)
        if delivery is None:
            return None
        message = self.Message.from_delivery(delivery, self)
        message.no_ack = no_ack
        self._tally.count_consumed(delivery)
        if self._hooks is not None:
            try:
                self._hooks.get(message, queue)
            except BaseException:
                if not no_ack:  # the application never sees the message
                    message.requeue()
                raise
        return message

    def basic_reject(self, delivery_tag: object, requeue: bool = False) -> None:
        """Reject a delivery.

        Args:
            delivery_tag: Number of the delivery.
            requeue: If True, the message goes back to its queue; else to the dead letter exchange of the queue, if
                it has one.
        """
        self._ask(self._transport.settle, delivery_tag, Outcome.REQUEUE if requeue else Outcome.REJECT)
        if requeue:
            self._tally.count_requeued()
        else:
            self._note_rejected(delivery_tag)

    def basic_nack(self, delivery_tag: object, multiple: bool = False, requeue: bool = True) -> None:
        """Return a delivery to its queue without counting it as failed. Without ``requeue`` it is rejected.

        Args:
            delivery_tag: Number of the delivery.
            multiple: If True, this applies to all earlier deliveries too.
            requeue: If True, the message goes back to its queue; else to the dead letter exchange of the queue, if
                it has one.
        """
        self._ask(self._transport.settle, delivery_tag, self._return if requeue else Outcome.REJECT, multiple)
        if requeue:
            self._tally.count_requeued()
        else:
            self._note_rejected(delivery_tag, multiple)

    def _note_rejected(self, delivery_tag: Any, multiple: bool = False) -> None:
        if self.positions is not None:
            self.positions.settle((delivery_tag,), multiple)
        self._tally.count_rejected()

    def basic_recover(self, requeue: bool = False) -> None:
        """Return all messages that are not acknowledged to their queues.

        Args:
            requeue: Ignored: they return in any case.
        """
        self._ask(self._transport.recover)
        self.generation += 1  # the batches have messages that went back

    def flow(self, active: bool = True) -> None:
        """Pause or resume deliveries.

        Args:
            active: False pauses, True resumes.
        """
        self._ask(self._transport.flow, active)

    def settle_many(self, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        """Settle some deliveries, and no others.

        Args:
            delivery_tags: Numbers of the deliveries; one may come twice.
            outcome: The outcome of all of them.

        Raises:
            PreconditionFailed: A tag is not outstanding.
        """
        if not delivery_tags:
            return
        delivery_tags = list(dict.fromkeys(delivery_tags))
        if self.positions is not None:
            self.positions.settle(delivery_tags)
        self._ask(self._transport.settle_many, delivery_tags, self._return if outcome is Outcome.RETURN else outcome)
        self.session.count(outcome, len(delivery_tags))

    @property
    def _return(self) -> Outcome:
        return Outcome.RETURN if self._bare_transport.counts_failures else Outcome.REQUEUE

    @property
    def stream_positions(self) -> StreamPositions:
        """Positions of the channel's consumers in streams."""
        if self.positions is None:
            self.positions = StreamPositions()
        positions: StreamPositions = self.positions
        return positions

    def note_offset(self, delivery: Delivery, no_ack: bool) -> None:
        """Note that a message of a stream is passed to the application.

        Args:
            delivery: The message.
            no_ack: If True, it counts as acknowledged.
        """
        tag, offset = delivery.consumer_tag, delivery.stream_offset
        if tag is not None and offset is not None:
            self.stream_positions.receive(tag, delivery.delivery_tag, offset, no_ack, delivery.redelivered)

    def check_delivery_limit(self, queue: str, arguments: Mapping[str, Any] | None, max_deliveries: int) -> None:
        """Warn if a consumer's limit is never reached, because the broker drops messages before.

        Args:
            queue: Name of the queue.
            arguments: Arguments of the queue.
            max_deliveries: The consumer's limit.
        """
        limit = self._bare_transport.delivery_limit(arguments or {})
        if limit is not None and max_deliveries > limit:
            text = (
                f"queue {queue} has a delivery limit of {limit}: "
                f"the broker drops messages before max_deliveries={max_deliveries} is reached"
            )
            self._log("WARNING", text, queue=queue, delivery_limit=limit, max_deliveries=max_deliveries)

    def note_failure(self, message: ReceivedMessage) -> None:
        """Note that a callback raised: an unsettled message returns to its queue as a failed delivery.

        Args:
            message: The message.
        """
        if self.is_open and not message.no_ack and not message.acknowledged:
            self._transport.note_failure(self.channel_id, message.delivery_tag)

    def ack_raised(self, error: Exception) -> None:
        """Record an error of an acknowledgement.

        Args:
            error: The error.
        """
        if isinstance(error, exceptions.ChannelError):
            self._notice(error)

    def _ask(self, verb: Callable[..., T], *arguments: Any) -> T:
        """Have the transport do something on this channel."""
        try:
            return verb(self.channel_id, *arguments)
        except exceptions.ChannelError as error:
            self._notice(error)
            raise

    def _notice(self, error: exceptions.ChannelError) -> None:
        """After an error: has the broker closed the channel for it, or for the fault of another message?"""
        if self.is_open and not self._transport.channel_is_open(self.channel_id):
            cause = error.__cause__
            self._closed_by_broker(cause if isinstance(cause, exceptions.ChannelError) else error)

    @property
    def is_lost(self) -> bool:
        """True if the channel is closed, or its connection is lost, as far as is known."""
        return not self.is_open or not self._bare_transport.connected

    @property
    def publish_failed(self) -> bool:
        """True if the broker closed the channel because of a publish."""
        return self.failure is not None and self.failure.method_sig == BASIC_PUBLISH

    def _closed_by_broker(self, error: exceptions.ChannelError) -> None:
        consumers = set(self._subscriptions)
        # Others are raised for those that they concern; one of a publish may come when nobody publishes.
        level = "ERROR" if error.method_sig == BASIC_PUBLISH else "INFO"
        self._log(level, f"the broker closed channel {self.channel_id}: {error}", reason=error)
        self.failure = error
        self.detach()
        self.session.remove(self)
        if consumers:
            self.unreported = consumers
            self.session.report_closed(self)

    def disown(self, consumer_tags: Iterable[str]) -> None:
        """Do not report to these consumers that the broker closed the channel, because they have another.

        Args:
            consumer_tags: Tags of the consumers.
        """
        self.unreported.difference_update(consumer_tags)

    # --- events

    def after_reply_message_received(self, queue: str) -> None:
        """Delete a queue of replies that were collected, if the broker does not delete it itself.

        Args:
            queue: Name of the queue.
        """
        if self.is_open and not self._bare_transport.capabilities.deletes_unused:
            with suppress(*self._bare_transport.connection_errors):  # it ends by its deadline, then
                self.queue_delete(queue)

    def handle(self, event: Event) -> bool:
        """Process an event that is not a message for a consumer. Return False: it is not kept.

        Args:
            event: The event.
        """
        if isinstance(event, Delivery):
            # On its way when the consumer was cancelled. Where another thread closes the channel it goes back too.
            # Those of a consumer without acks were acknowledged when they were sent, and a stream takes none back.
            if event.consumer_tag not in self._gone and event.stream_offset is None:
                with suppress(exceptions.RecoverableConnectionError):
                    self._transport.settle(self.channel_id, event.delivery_tag, self._return)
        elif isinstance(event, Returned):
            error = exceptions.MessageReturned(event.reply_text, (60, 50), "Basic.return", event.reply_code)
            self._on_returned(error, event.delivery)
        elif isinstance(event, Cancelled):
            self._on_cancelled(event)
        else:
            self._on_closed(event)
        return False

    # --- batches

    @property
    def prefetch_limit(self) -> int:
        """Largest number of messages of a consumer in flight; 0 for no limit."""
        return min((count for _, count in self._limits.values() if count), default=0)

    @property
    def collectors(self) -> Iterable[BatchCollector]:
        """Collectors of the batches of its consumers."""
        return tuple(self._collectors)

    def add_collector(self, collector: BatchCollector) -> None:
        """Pass a consumer's batches on when their time is over, while the channel is open.

        Args:
            collector: Collector of the consumer.
        """
        self._collectors.add(collector)
        self.session.watch_collectors()

    def remove_collector(self, collector: BatchCollector) -> None:
        """Remove a collector.

        Args:
            collector: Collector of the consumer.
        """
        self._collectors.discard(collector)
        self.session.watch_collectors()

    def turn_loop_in(self, seconds: float) -> None:
        """Make the event loop, if there is one, look for work again in time.

        Args:
            seconds: Seconds, at the latest.
        """
        loop = self._event_loop
        if loop is not None:
            loop.call_later(seconds, _nothing)

    @property
    def _event_loop(self) -> Any:
        return self._bare_transport.event_loop if self.is_open else None

    def _on_returned(self, error: exceptions.MessageReturned, delivery: Delivery) -> None:
        self._tally.count_returned()
        if not self.return_listeners:
            raise error
        with ExitStack() as stack:
            for listener in reversed(self.return_listeners):
                message = self.Message.from_delivery(delivery, self)
                stack.callback(listener, error, delivery.exchange, delivery.routing_key, message)

    def _on_cancelled(self, event: Cancelled) -> None:
        subscription = self._end(event.consumer_tag)
        if subscription is None:
            return
        text = f"the broker cancelled consumer {event.consumer_tag} of queue {subscription.queue}"
        self._log("WARNING", text, consumer_tag=event.consumer_tag, queue=subscription.queue)
        if subscription.on_cancel is None:
            raise exceptions.ConsumerCancelled(f"the broker cancelled consumer {event.consumer_tag}")
        subscription.on_cancel(event.consumer_tag)

    def _on_closed(self, event: ChannelClosed) -> None:
        self._closed_by_broker(event.error)
        if self.unreported or not self.publish_failed:
            self.unreported.clear()
            raise event.error
        # An error of a publish is for the producer, which gets it when it publishes again.

    def _log(self, level: str, text: str, **facts: object) -> None:
        facts = {"connection": self.session.name(), "channel": self.channel_id, **facts}
        log("kombulite.channel", level, "%s", text, extra=facts)

    # --- lifetime

    def close(self) -> None:
        """Cancel the consumers, and close the channel. It may be repeated.

        Unacknowledged messages return to their queues.
        """
        was_open = self.is_open
        if was_open or self.session.channels.get(self.channel_id) is self:  # else it would come back after a loss
            transport = self._transport
            queues = {each.queue for each in self._subscriptions.values()}
            self.detach()
            self.session.remove(self)
            if was_open:
                transport.close_channel(self.channel_id)
            for queue in queues:
                self.session.forget_consumer(queue)

    release = discard = close  # a pool sets its own on the channels that are out

    def detach(self) -> None:
        """Close the channel without a message to the broker, because the connection is lost."""
        self._part("channel already closed")
        self._subscriptions.clear()

    def _part(self, reason: str) -> None:
        if self.is_open:
            self._held = self._bare_transport.held
        self.is_open = False
        stand_in = ClosedTransport(reason, self._held)
        self._transport = self._bare_transport = stand_in  # type: ignore[assignment]
        self.use(stand_in.publish, stand_in.settle, None, False)

    # --- hooks

    def observe(self, hooks: Hooks | None) -> None:
        """Install hooks around publishing and consuming.

        Args:
            hooks: The hooks of the connection.
        """
        self._hooks = hooks
        if self.is_open:
            self._join(self._bare_transport)
        for subscription in list(self._subscriptions.values()):
            self._observe(subscription)

    def _observe(self, subscription: Subscription) -> None:
        callback, hooks = subscription.callback, self._hooks
        subscription.run = callback if hooks is None else hooks.around(callback, subscription)

    # --- names of kombu's channels that programs use

    @property
    def closed(self) -> bool:
        """True if the channel is closed."""
        return not self.is_open

    @property
    def qos(self) -> Any:
        """Prefetch count of the channel, as kombu's programs read it."""
        if self._qos is None:
            self._qos = ChannelQoS(self)
        return self._qos

    def apply_gate(self) -> None:
        """Make the transport call the function that a program has set in the place of ``qos.can_consume``."""
        if self._qos is not None and self._qos.may_take is not None:
            self._transport.gate(self.channel_id, self._qos.may_take)

    def Consumer(self, queues: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a consumer on this channel.

        Args:
            queues: A queue, or several.
            *args: Arguments of ``Consumer`` after ``queues``.
            **kwargs: Keywords of ``Consumer``.
        """
        return self.connection.Consumer(queues, self, *args, **kwargs)

    def Producer(self, *args: Any, **kwargs: Any) -> Any:
        """Return a producer on this channel.

        Args:
            *args: Arguments of ``Producer`` after ``channel``.
            **kwargs: Keywords of ``Producer``.
        """
        return self.connection.Producer(self, *args, **kwargs)

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        if self._size(queue) is None:
            self.queue_declare(queue, durable=False)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self._size(queue) is not None

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self.queue_delete(queue)

    def _size(self, queue: str) -> int | None:
        with suppress(exceptions.NotFound):
            info = self.queue_declare(queue, passive=True)
            return 0 if info is None else info.message_count
        return None

    def _put(self, queue: str, message: Delivery, **kwargs: Any) -> None:
        self.basic_publish(message, routing_key=queue)

    def _get(self, queue: str, timeout: float | None = None) -> ReceivedMessage:
        message = self.basic_get(queue, no_ack=True)
        if message is None:
            from queue import Empty  # few call this, and the module costs as much as this one

            raise Empty
        return message

    def _purge(self, queue: str) -> int:
        return self.queue_purge(queue)

    # --- a lost connection

    def suspend(self, reason: object) -> None:
        """Keep what another connection needs to restore the channel, because the connection is lost.

        Args:
            reason: The error, or None.
        """
        if self.is_open:
            self._highest_tag = self._transport.highest_tag(self.channel_id)
            self._part("the connection is lost" if reason is None else f"the connection is lost: {reason}")
            for collector in self.collectors:
                collector.lose()

    def reopen(self, transport: Transport) -> None:
        """Open the channel on a new connection. Delivery tags of the old connection are invalid there.

        Args:
            transport: The new transport.
        """
        before, self.channel_id = self.channel_id, transport.open_channel(self._highest_tag)
        if self._confirms:  # before other threads publish on it
            transport.confirm(self.channel_id)
        if self._held is not None:
            transport.inherit(self.channel_id, self._held, before)
        self._join(transport)
        self.generation += 1
        self.is_open = True

    def _join(self, transport: Transport) -> None:
        self._bare_transport = transport
        self._transport = transport if self._hooks is None else self._hooks.observe(transport)
        publish = None if self._hooks is not None else transport.fast_publish(self.channel_id)
        acknowledge = transport.fast_ack(self.channel_id)
        self.use(publish or self._transport.publish, transport.settle, acknowledge, transport.confirms)

    def resume(self, renamed: Mapping[str, str]) -> None:
        """Set the limits, and start the consumers again.

        Args:
            renamed: New names of queues that the broker names, by old name.
        """
        for a_global, (size, count) in list(self._limits.items()):
            self._transport.qos(self.channel_id, size, count, a_global)
        self.apply_gate()
        for tag, each in list(self._subscriptions.items()):
            if tag not in self._subscriptions:  # another thread has cancelled it meanwhile
                continue
            if each.queue in renamed:
                before, each.queue = each.queue, renamed[each.queue]
                if each.on_renamed is not None:
                    each.on_renamed(before, each.queue)
            arguments = each.arguments
            if "x-stream-offset" in (arguments or ()) or self.positions is not None:
                arguments = self.stream_positions.resuming(tag, arguments, each.started)
            self._transport.consume(self.channel_id, each.queue, tag, each.no_ack, each.exclusive, arguments)

    def tell_renames(self, consumer_tag: str, on_renamed: Callable[[str, str], Any]) -> None:
        """Call a function if the broker gives a consumer's queue another name.

        Args:
            consumer_tag: Tag of the consumer.
            on_renamed: Called with (before, now).
        """
        self._subscriptions[consumer_tag].on_renamed = on_renamed

    def receiver(self, consumer: Any, consumer_tag: str, queue: str, no_ack: bool, receive: MessageCallback) -> Any:
        """Return the callback of a ``Consumer``'s queue for ``basic_consume``.

        Args:
            consumer: The consumer.
            consumer_tag: Tag of the queue's consumer.
            queue: Name of the queue.
            no_ack: If True, a message counts as acknowledged when the broker sends it.
            receive: Called with each message.
        """
        return receive

    def forget(self, consumer_tag: str) -> None:
        """Remove a ``Consumer``'s queue that ``basic_cancel`` has cancelled.

        Args:
            consumer_tag: Tag of the queue's consumer.
        """

    def is_consuming(self, consumer_tag: str) -> bool:
        """Return True if the channel has a consumer with a tag.

        Args:
            consumer_tag: The tag.
        """
        return self.is_open and consumer_tag in self._subscriptions

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is None:
            self.release()
        else:
            self.discard()
