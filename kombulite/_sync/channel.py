"""A channel: the verbs of AMQP over a transport.

Longer than other modules: the verbs are as many as AMQP has, each a few lines, and kombu's users find them here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from kombulite import exceptions
from kombulite._client.batching import BatchCollector
from kombulite._client.declarations import queue_arguments, require_kind
from kombulite._client.outgoing import check_short
from kombulite._client.queue_kinds import QueueKind
from kombulite._client.session import ChannelSession
from kombulite._client.streams import StreamPositions, now
from kombulite._client.topology import Binding
from kombulite._core import BaseChannel, BaseSubscription, CounterBlock, Delivery, make_properties
from kombulite.brokers.base import (
    Cancelled,
    ChannelClosed,
    Event,
    ExchangeSpec,
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

# Inside the class the name is that of its attribute.
ReceivedMessage = Message
MessageCallback = Callable[[Message], Any]


class Subscription(BaseSubscription):
    """A consumer of this channel, as the application sees it. ``run``: its callback, with the hooks around it."""

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
        self.started = now()


def _nothing() -> None:
    """For a timer that only makes the event loop turn."""


def _ignore(message: Message) -> None:
    """The callback of a consumer that has none."""


class ClosedTransport:
    """Stands for the transport of a channel that has none: whatever is asked of it fails, for the reason given."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> NoReturn:
        raise exceptions.RecoverableConnectionError(self._reason)

    def publish(self, *args: Any) -> NoReturn:
        """This and the next are methods, since channels keep them."""
        raise exceptions.RecoverableConnectionError(self._reason)

    settle = publish


class ChannelQoS:
    """The prefetch count of a channel, as programs ask for it, and what they put in the place of ``can_consume``.

    On Redis a function that is assigned to ``can_consume`` is asked before each message that is taken.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.may_take: Callable[[], Any] | None = None

    @property
    def prefetch_count(self) -> int:
        """How many messages may be delivered and not acknowledged; 0 for no bound."""
        return self._channel.prefetch_limit

    @prefetch_count.setter
    def prefetch_count(self, count: int) -> None:
        self._channel.basic_qos(0, count, False)

    @property
    def can_consume(self) -> Callable[[], Any]:
        """Return what says whether another message may be taken. It may be replaced."""
        return self.may_take or self._always

    @can_consume.setter
    def can_consume(self, may_take: Callable[[], Any]) -> None:
        self.may_take = may_take
        self._channel.apply_gate()

    def _always(self) -> bool:
        return True  # the broker keeps to the prefetch count by itself


class Channel(BaseChannel):
    """One conversation with the broker. Made by ``Connection.channel()``."""

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
        self._gone: set[str] = set()  # tags of consumers without acks that have ended
        #: Tags of consumers that the broker ended with the channel, and that do not know it yet.
        self.unreported: set[str] = set()

    @property
    def public(self) -> Any:
        """What programs see as the channel."""
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
        """Create an exchange, or with ``passive`` assert it. Raises NotFound, NotEquivalentError."""
        check_short(exchange, "exchange name")
        spec = ExchangeSpec(exchange, type, durable, auto_delete, arguments or None)
        self._ask(self._transport.declare_exchange, spec, passive)
        if not passive:
            self.session.topology.declared_exchange(spec)

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange with its bindings. Raises PreconditionFailed."""
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
        """Let messages of exchange ``source`` come to exchange ``destination``. Raises NotFound."""
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
        """Take a binding between exchanges away."""
        self._unbind(Binding(source, destination, routing_key, arguments, True))

    # --- queues

    def prepare_queue_arguments(
        self, arguments: Mapping[str, Any] | None, kind: QueueKind | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return AMQP's arguments for the keywords of ``Queue`` (``expires`` in seconds, …), over those given.

        Raises AMQPNotImplementedError for a kind of queue that the broker does not have.
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
        """Create a queue, or with ``passive`` assert it: (queue, message_count, consumer_count).

        Raises NotFound, NotEquivalentError, ResourceLocked.
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
        """Bind a queue to an exchange. Raises NotFound, PreconditionFailed."""
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
        """Take a binding away."""
        self._unbind(Binding(exchange, queue, routing_key, arguments, False))

    def _bind(self, binding: Binding) -> None:
        self._ask(self._transport.bind, *binding)
        self.session.topology.bound(binding)

    def _unbind(self, binding: Binding) -> None:
        self._ask(self._transport.unbind, *binding)
        self.session.topology.unbound(binding)

    def queue_purge(self, queue: str, nowait: bool = False) -> int:
        """Remove the messages that wait; returns how many."""
        return self._ask(self._transport.purge, queue)

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, nowait: bool = False) -> int:
        """Delete a queue; returns the messages gone with it. Raises PreconditionFailed."""
        deleted = self._ask(self._transport.delete_queue, queue, if_unused, if_empty)
        self.session.topology.deleted_queue(queue)
        self.session.forget_declarations()
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
        made = make_properties(content_type, content_encoding, headers, None, priority, properties or {})
        return Delivery("", "", made, body)

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
        check_short(routing_key, "routing key")
        delivery = Delivery(exchange, routing_key, message.properties, message.body)
        self.publish(delivery, mandatory, timeout, confirm_timeout)

    def confirm_select(self) -> None:
        """From now on each publish on this channel waits until the broker has the message, and says so.

        Nothing where all publishes do: with ``confirm_publish``, and on all brokers but those of AMQP.
        """
        self._ask(self._transport.confirm)
        self._confirms = True

    def publish_raised(self, error: Exception, delivery: Delivery) -> None:
        """Deal with an error of publishing: raise it, but for a message that came back to somebody who listens."""
        if isinstance(error, exceptions.MessageReturned):
            self._tally.count_published(delivery, self._transport.confirms)
            self._on_returned(error, delivery)
            return
        if isinstance(error, exceptions.ChannelError):
            self._notice(error)
        raise error

    def listen_for_returned(self, listener: Callable[[Exception, str, str, ReceivedMessage], Any]) -> None:
        """Call a listener for each message that comes back."""
        self.return_listeners.append(listener)

    def tell_returned(self) -> None:
        """Pass on what has come back."""
        with ExitStack() as stack:  # if a listener raises, it gets the others all the same
            for event in reversed(self._transport.take_returned(self.channel_id)):
                stack.callback(self.dispatch, event)

    def publish_via(self, via: Any, delivery: Delivery, mandatory: bool = False) -> None:
        """Publish within a transaction of the caller's. Raises AMQPNotImplementedError where the broker has none."""
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
        """Publish in order; returns those refused, as (index, exception). Their routing keys are short strings.

        Those that came back go to the listeners; without any they count as refused.
        """
        if not deliveries:
            return []
        transport = self._transport
        refused = self._ask(transport.publish_many, deliveries, mandatory, timeout)
        if refused and isinstance(refused[-1][1], exceptions.ChannelError):
            self._notice(refused[-1][1])
        returned = [(index, error) for index, error in refused if isinstance(error, exceptions.MessageReturned)]
        others = [each for each in refused if not isinstance(each[1], exceptions.MessageReturned)]
        self._tally.count_many(deliveries, transport.confirms, {index for index, _ in others})
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
        """Bound the messages that are delivered and not acknowledged (0: no bound)."""
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
        """Start a consumer: ``callback(message)`` runs in ``drain_events``. Returns its tag."""
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
        """Let a prefetch count that was just set hold for a running consumer too.

        Returns whether that took another consumer, which has the tag ``successor``.
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
        """End a consumer. One that has gone with the channel, or whose connection is lost, does not come back.

        Messages that need no ack and have come already are handed to it first: nobody else gets them.
        """
        rest = self._ask(self._transport.cancel, consumer_tag) if self.is_open else None
        with ExitStack() as stack:  # if a callback raises, the others have their turn all the same
            stack.callback(self._end, consumer_tag)
            for delivery in reversed(rest or ()):
                stack.callback(self.dispatch, delivery)

    def _end(self, consumer_tag: str) -> Subscription | None:
        """Forget a consumer."""
        subscription: Subscription | None = self._subscriptions.pop(consumer_tag, None)
        if subscription is not None:
            if subscription.no_ack:
                self._gone.add(consumer_tag)
            self.session.forget_consumer(subscription.queue)
        return subscription

    def consumes_from(self, queue: str) -> bool:
        """Whether there is a consumer of that queue."""
        return any(each.queue == queue for each in list(self._subscriptions.values()))

    def basic_get(self, queue: str, no_ack: bool = False) -> ReceivedMessage | None:
        """The next message of a queue, or None."""
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

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Give a delivery up, or put it back into its queue."""
        self._ask(self._transport.settle, delivery_tag, Outcome.REQUEUE if requeue else Outcome.REJECT)
        if requeue:
            self._tally.count_requeued()
        else:
            self._note_rejected(delivery_tag)

    def basic_nack(self, delivery_tag: Any, multiple: bool = False, requeue: bool = True) -> None:
        """Put a delivery, and with ``multiple`` all before it, back into its queue, without counting it as failed.

        Without ``requeue`` it is rejected.
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
        """Put all that is not acknowledged back into its queues."""
        self._ask(self._transport.recover)
        self.generation += 1  # the batches have messages that went back

    def flow(self, active: bool = True) -> None:
        """Pause deliveries, or let them go on."""
        self._ask(self._transport.flow, active)

    def settle_many(self, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        """Say what becomes of deliveries, and of no others; a tag may come twice. Raises PreconditionFailed."""
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
        """Where its consumers are in streams."""
        if self.positions is None:
            self.positions = StreamPositions()
        positions: StreamPositions = self.positions
        return positions

    def note_offset(self, delivery: Delivery, no_ack: bool) -> None:
        """Note that a message of a stream is handed over."""
        tag, offset = delivery.consumer_tag, delivery.stream_offset
        if tag is not None and offset is not None:
            self.stream_positions.receive(tag, delivery.delivery_tag, offset, no_ack, delivery.redelivered)

    def check_delivery_limit(self, queue: str, arguments: Mapping[str, Any] | None, max_deliveries: int) -> None:
        """Warn of a consumer's limit that is never reached, because the broker drops messages before."""
        limit = self._bare_transport.delivery_limit(arguments or {})
        if limit is not None and max_deliveries > limit:
            text = (
                f"queue {queue} has a delivery limit of {limit}: "
                f"the broker drops messages before max_deliveries={max_deliveries} is reached"
            )
            self._log("WARNING", text, queue=queue, delivery_limit=limit, max_deliveries=max_deliveries)

    def note_failure(self, message: ReceivedMessage) -> None:
        """Note that the callback of a message raised: if it is not settled, it goes back as a failed delivery."""
        if self.is_open and not message.no_ack and not message.acknowledged:
            self._transport.note_failure(self.channel_id, message.delivery_tag)

    def ack_raised(self, error: Exception) -> None:
        """Called when an acknowledgement failed."""
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
        """After an error: has the broker closed the channel for it?"""
        if self.is_open and not self._transport.channel_is_open(self.channel_id):
            self._closed_by_broker(error)

    @property
    def publish_failed(self) -> bool:
        """Whether the broker closed the channel for something that was published."""
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
        """These consumers need not be told that the broker closed the channel: they have another."""
        self.unreported.difference_update(consumer_tags)

    # --- events

    def after_reply_message_received(self, queue: str) -> None:
        """Called when the replies in a queue were collected: delete it, if the broker does not do that itself."""
        if self.is_open and not self._bare_transport.capabilities.deletes_unused:
            with suppress(*self._bare_transport.connection_errors):  # it ends by its deadline, then
                self.queue_delete(queue)

    def handle(self, event: Event) -> bool:
        """Deal with an event that is not a message for one of the consumers. Returns False: it is not kept."""
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
        """How many messages of a consumer may be out at a time; 0 for no bound."""
        return min((count for _, count in self._limits.values() if count), default=0)

    @property
    def collectors(self) -> Iterable[BatchCollector]:
        """What its consumers collect for batches."""
        return tuple(self._collectors)

    def add_collector(self, collector: BatchCollector) -> None:
        """Have a consumer's batches handed over when their time is over, as long as the channel is open."""
        self._collectors.add(collector)
        self.session.watch_collectors()

    def remove_collector(self, collector: BatchCollector) -> None:
        """Have it forgotten."""
        self._collectors.discard(collector)
        self.session.watch_collectors()

    def turn_loop_in(self, seconds: float) -> None:
        """If there is an event loop, have it look for something to do after so many seconds at the latest."""
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
        """End the consumers; messages not acknowledged go back to their queues. May be repeated."""
        if self.is_open:
            transport = self._transport
            queues = {each.queue for each in self._subscriptions.values()}
            self.detach()
            self.session.remove(self)
            transport.close_channel(self.channel_id)
            for queue in queues:
                self.session.forget_consumer(queue)

    release = discard = close  # a pool sets its own on the channels that are out

    def detach(self) -> None:
        """Be closed, without a word to the broker: the connection is gone."""
        self._part(ClosedTransport("channel already closed"))
        self._subscriptions.clear()

    def _part(self, stand_in: ClosedTransport) -> None:
        self.is_open = False
        self._transport = self._bare_transport = stand_in  # type: ignore[assignment]
        self.use(stand_in.publish, stand_in.settle, None, False)

    # --- hooks

    def observe(self, hooks: Hooks | None) -> None:
        """Have these hooks around what is published and consumed from now on."""
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
        """Whether it is closed."""
        return not self.is_open

    @property
    def qos(self) -> Any:
        """The prefetch count, and whether another message may be taken."""
        if self._qos is None:
            self._qos = ChannelQoS(self)
        return self._qos

    def apply_gate(self) -> None:
        """Have the broker's client ask what was put in the place of ``qos.can_consume``, if anything."""
        if self._qos is not None and self._qos.may_take is not None:
            self._transport.gate(self.channel_id, self._qos.may_take)

    def Consumer(self, queues: Any = None, *args: Any, **kwargs: Any) -> Any:
        """A consumer on this channel."""
        return self.connection.Consumer(queues, self, *args, **kwargs)

    def Producer(self, *args: Any, **kwargs: Any) -> Any:
        """A producer on this channel."""
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
        """The connection is lost: keep what is needed to go on with another."""
        if self.is_open:
            self._highest_tag = self._transport.highest_tag(self.channel_id)
            self._part(
                ClosedTransport("the connection is lost" if reason is None else f"the connection is lost: {reason}")
            )

    def reopen(self, transport: Transport) -> None:
        """Be opened on a new connection. The tags of the old one's deliveries mean nothing there."""
        self.channel_id = transport.open_channel(self._highest_tag)
        self._join(transport)
        self.generation += 1
        self.is_open = True

    def _join(self, transport: Transport) -> None:
        self._bare_transport = transport
        self._transport = transport if self._hooks is None else self._hooks.observe(transport)
        acknowledge = transport.fast_ack(self.channel_id)
        self.use(self._transport.publish, transport.settle, acknowledge, transport.confirms)

    def resume(self, renamed: Mapping[str, str]) -> None:
        """Set the limits and start the consumers again. ``renamed``: queues that have another name now."""
        if self._confirms:
            self._transport.confirm(self.channel_id)
        for a_global, (size, count) in self._limits.items():
            self._transport.qos(self.channel_id, size, count, a_global)
        self.apply_gate()
        for tag, each in self._subscriptions.items():
            if each.queue in renamed:
                before, each.queue = each.queue, renamed[each.queue]
                if each.on_renamed is not None:
                    each.on_renamed(before, each.queue)
            arguments = each.arguments
            if "x-stream-offset" in (arguments or ()) or self.positions is not None:
                arguments = self.stream_positions.resuming(tag, arguments, each.started)
            self._transport.consume(self.channel_id, each.queue, tag, each.no_ack, each.exclusive, arguments)

    def tell_renames(self, consumer_tag: str, on_renamed: Callable[[str, str], Any]) -> None:
        """Call ``on_renamed(before, now)`` when a consumer's queue, which the broker named, has another name."""
        self._subscriptions[consumer_tag].on_renamed = on_renamed

    def receiver(self, consumer: Any, consumer_tag: str, queue: str, no_ack: bool, receive: MessageCallback) -> Any:
        """Return the callback of a ``Consumer``'s queue for ``basic_consume``."""
        return receive

    def forget(self, consumer_tag: str) -> None:
        """Forget a ``Consumer``'s queue that was cancelled: ``basic_cancel`` has done it."""

    def is_consuming(self, consumer_tag: str) -> bool:
        """Whether there is a consumer of that tag."""
        return self.is_open and consumer_tag in self._subscriptions

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is None:
            self.release()
        else:
            self.discard()
