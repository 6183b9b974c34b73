"""Sending messages: one at a time, in batches, in streams.

The class is wider than others: kombu's users find all of this on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from types import MappingProxyType
from typing import Any, TypedDict, cast

from kombulite import exceptions
from kombulite._client.interfaces import Bindable, BlockingConnection
from kombulite._client.lifecycle import State
from kombulite._client.outgoing import Chunk, MessageMaker
from kombulite._client.retry import RetryPolicy
from kombulite._core import BaseProducer, Delivery
from kombulite._sync.batches import Batch, BatchContext, ChunkSender, HookedBatch, SessionBatch
from kombulite._sync.channel import Channel
from kombulite._sync.steps import Step, prepare, publish_in_steps, publish_prepared, replaced_name
from kombulite.abstract import is_connection
from kombulite.entity import Exchange, is_declared
from kombulite.message import Message
from kombulite.transport.adapter import AdaptedChannel, facade_channel
from kombulite.utils.functional import ChannelPromise

#: Types of ``bodies`` whose iteration runs no code of the application: it may go on while the broker stores messages.
#: Code that waits for these messages, or for long, would keep those back that have to be sent again.
PLAIN_ITERABLES = frozenset([list, tuple, range, repeat])


class PromisedChannel:
    """Stands for the connection of a producer that has only the promise of a channel."""

    def __init__(self, promise: ChannelPromise) -> None:
        self.promise = promise

    @property
    def default_channel(self) -> Any:
        """The channel, made when it is first asked for."""
        return self.promise()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.promise().connection.client, name)


class ProducerArguments(TypedDict, total=False):
    """Keywords of ``Producer`` behind ``channel``, for those who pass them on."""

    exchange: Exchange | str | None
    routing_key: str | None
    serializer: str | None
    auto_declare: bool | None
    compression: str | None
    on_return: Callable[[Exception, str, str, Message], Any] | None


class Producer(MessageMaker, BaseProducer):
    """Producer: publishes messages.

    Args:
        channel: A channel, or a connection whose default channel is opened at first use.
        exchange: Default exchange of ``publish``, or its name.
        routing_key: Default routing key.
        serializer: Default serializer (default: ``"json"``).
        auto_declare: If True (default), the exchange is declared at first use.
        compression: Default compression method.
        on_return: Called with (exception, exchange, routing_key, message) for each mandatory message that no queue
            took.

    Example:
        ```py
        producer = connection.Producer(exchange="orders", serializer="json")
        producer.publish({"order": 1}, routing_key="order.paid", retry=True)
        ```
    """

    auto_declare = True
    on_return: Callable[[Exception, str, str, Message], Any] | None = None

    _replaced: Mapping[str, Any] = MappingProxyType({})  # steps that a program has set on this producer
    _channel_promise: Any = None  # kombu's producers have it, and use it no more
    __connection__: BlockingConnection | None = None

    def __init__(
        self,
        channel: Bindable | None,
        exchange: Exchange | str | None = None,
        routing_key: str | None = None,
        serializer: str | None = None,
        auto_declare: bool | None = None,
        compression: str | None = None,
        on_return: Callable[[Exception, str, str, Message], Any] | None = None,
    ) -> None:
        self.__connection__ = None
        super().__init__(exchange, routing_key, serializer, compression)
        self.on_return = on_return or self.on_return
        if auto_declare is not None:
            self.auto_declare = auto_declare
        self._in_steps = self._must_step()
        if channel is not None:
            self.revive(channel)

    # --- the channel

    @property
    def channel(self) -> Any:
        """The channel, or None. A channel that comes from a connection is opened if it is not open."""
        if self._facade is None and self.__connection__ is None:
            return None
        return self._open_channel().public

    @channel.setter
    def channel(self, channel: Any) -> None:
        if isinstance(channel, ChannelPromise):
            self.__connection__, self._facade = PromisedChannel(channel), None
        else:
            self._facade = None if channel is None else facade_channel(channel)
            self._in_steps = self._must_step()

    @property
    def _channel(self) -> Any:
        """The channel, a promise of it if it comes from a connection and is not opened yet, or None."""
        if self._facade is not None:
            return self._facade.public
        if isinstance(self.__connection__, PromisedChannel):
            return self.__connection__.promise
        return None if self.__connection__ is None else ChannelPromise(self._get_channel)

    @_channel.setter
    def _channel(self, channel: Any) -> None:
        self.channel = channel

    def _get_channel(self) -> Any:
        return self.channel

    def _set_channel(self, channel: Any) -> None:
        self.channel = channel

    def _open_channel(self) -> Channel:
        """Return the facade's part of the channel, opened now if it is not, or is not any more."""
        channel: Channel | None = self._facade
        if channel is not None and channel.connection.state is State.LOST:
            # That was raised already, to whoever noticed it. Now it comes back, with its channels; one try.
            channel.connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
        if channel is None or (self.__connection__ is not None and not channel.is_open):
            if self.__connection__ is None:
                raise exceptions.NotBoundError("the producer has no channel and no connection")
            self._facade = None
            if channel is not None and channel.publish_failed:
                # What was published since may be lost: each producer on that channel is told, once.
                assert channel.failure is not None
                raise channel.failure
            channel = facade_channel(self.__connection__.default_channel)
            self._attach(channel)
        return channel

    @property
    def connection(self) -> Any:
        """The connection, or None if there is none yet."""
        if self.__connection__ is not None or self._facade is None:
            return self.__connection__
        try:
            return self._facade.connection.client
        except AttributeError:  # of a stand-in for a channel
            return None

    @property
    def supports_batch_publish(self) -> bool:
        """True if the transport sends the messages of a batch together."""
        transport = getattr(self.connection, "transport", None)
        owner = transport if self._facade is None else self._facade.public
        is_able = getattr(getattr(transport, "implements", None), "batch_publish", False)
        return bool(is_able and getattr(owner, "supports_batch_publish", is_able))

    def revive(self, channel: Bindable | None) -> None:
        """Continue on another channel after the old one was lost.

        Args:
            channel: A channel, or a connection for its default channel.
        """
        if channel is None or is_connection(channel):
            self.__connection__ = cast("BlockingConnection | None", channel)
            self._facade = None
        elif isinstance(channel, ChannelPromise):
            self.channel = channel
        else:
            self._attach(facade_channel(channel))

    def _note_replaced(self) -> None:
        """Note that a program has replaced a step, or no longer does."""
        self._in_steps = self._must_step()

    def _must_step(self) -> bool:
        """Return whether publishing goes through steps that a program may see."""
        if self._replaced or any(getattr(type(self), name) is not step for name, step in STEPS.items()):
            return True
        return isinstance(self._facade, AdaptedChannel) and self._facade.is_borrowed

    def _attach(self, channel: Channel) -> None:
        self._facade = channel
        self._in_steps = self._must_step()
        public = channel.public
        if not (self.exchange.is_bound and self.exchange.channel is public):
            self.exchange = self.exchange(public)
        self._declared = None
        if self.on_return is not None and self.on_return not in channel.return_listeners:
            channel.listen_for_returned(self.on_return)  # once, however many producers have it

    # --- declaring

    def declare(self) -> None:
        """Declare the exchange. Publishing does this unless ``auto_declare`` is False."""
        if not self.exchange.name:
            return
        if self.exchange.is_bound:
            self.exchange.declare()
        else:
            self.exchange.declare(channel=self.channel)

    @Step  # type: ignore[arg-type]  # kombu's `self` is no positional-only parameter
    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> bool:
        """Declare an entity, unless the connection has declared it already.

        Args:
            entity: Exchange or queue.
            retry: If True, reconnect and try again after a failure.
            **retry_policy: Keywords of ``Connection.ensure``.

        Returns:
            True if it was declared now.
        """
        if not entity:
            return False
        replaced = replaced_name("maybe_declare")
        if replaced is not None:
            return replaced(entity, self.channel, retry, **retry_policy)  # type: ignore[no-any-return]
        channel = self._open_channel()
        return bool(channel.connection.maybe_declare(entity, channel.public, retry, **retry_policy))

    # --- publishing

    def publish(
        self,
        body: object,
        routing_key: str | None = None,
        delivery_mode: int | str | None = None,
        mandatory: bool = False,
        immediate: bool = False,
        priority: int | None = 0,
        content_type: str | None = None,
        content_encoding: str | None = None,
        serializer: str | None = None,
        headers: Mapping[str, Any] | None = None,
        compression: str | None = None,
        exchange: Exchange | str | None = None,
        retry: bool = False,
        retry_policy: Mapping[str, Any] | None = None,
        declare: Iterable[Any] | None = None,
        expiration: float | None = None,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
        via: object = None,
        correlation_id: str | None = None,
        reply_to: Any = None,
        **properties: Any,
    ) -> Any:
        """Publish a message.

        A body is serialized, unless ``content_type`` says that it is already; then it is compressed.

        Args:
            body: The body: what the serializer can encode, or text or bytes with a ``content_type``.
            routing_key: Routing key (default: the producer's).
            delivery_mode: 1 or ``"transient"``, 2 or ``"persistent"`` (default: the exchange's, else persistent).
            mandatory: If True, the broker returns the message to ``on_return`` if no queue takes it.
            immediate: Ignored, as current brokers do.
            priority: Priority, 0 to the ``max_priority`` of the queue; the highest is delivered first, on Redis the
                lowest.
            content_type: Content type of a body that is serialized already.
            content_encoding: Encoding of a body that is serialized already, such as ``"utf-8"``.
            serializer: Name of a serializer (default: the producer's, else ``"json"``).
            headers: Headers by name.
            compression: Name or content type of a compression method (default: none).
            exchange: An exchange or its name; ``""`` is the default exchange (default: the producer's).
            retry: If True, reconnect and try again after a failure.
            retry_policy: Keywords of ``Connection.ensure``: max_retries, interval_start, interval_step,
                interval_max, errback, on_revive, retry_errors.
            declare: Entities to declare first.
            expiration: Seconds after which a message that still waits in a queue expires.
            timeout: Seconds for the broker to take the message.
            confirm_timeout: Seconds for the broker to confirm it.
            via: A transaction of the caller's on the database that is the broker (SQL brokers only): a connection
                of psycopg or sqlite3, a session or connection of SQLAlchemy, a connection of Django. The message
                exists if that transaction commits, and not before.
            correlation_id: Identifier that a reply repeats.
            reply_to: The queue for replies, or its name.
            **properties: Other message properties, such as ``message_id``.

        Returns:
            None; on foreign transports what their channel returns.

        Raises:
            EncodeError: The body cannot be serialized.
            SerializerNotInstalled: The serializer is unknown.
            NotFound: The exchange does not exist.
            MessageNacked: The broker refused the message.
            PreconditionFailed: The broker refused a property of the message.
            OperationalError: With ``retry``: the attempts are used up.
        """
        return self._publish_now(
            body,
            routing_key,
            delivery_mode,
            mandatory,
            immediate,
            priority,
            content_type,
            content_encoding,
            serializer,
            headers,
            compression,
            exchange,
            retry,
            retry_policy,
            declare,
            expiration,
            timeout,
            confirm_timeout,
            via,
            correlation_id,
            reply_to,
            properties,
        )

    _publish_in_steps = publish_in_steps

    def _publish_otherwise(
        self,
        delivery: Delivery,
        mandatory: bool,
        retry: bool,
        retry_policy: Mapping[str, Any] | None,
        declare: Iterable[Any] | None,
        timeout: float | None,
        confirm_timeout: float | None,
        via: Any,
    ) -> Any:
        if declare is not None:
            declare = tuple(declare)
        if via is not None:
            self._ready_channel(declare)
            self.channel.publish_via(via, delivery, mandatory)
            return None
        batch = self._batch
        if batch is not None and not batch.is_full and self._ready_channel(declare) is not None:
            batch.add(delivery, mandatory)  # nothing is asked of the broker: there is nothing to retry
            result = None
        elif retry:
            result = self._insured(retry_policy, self._send, delivery, mandatory, declare, timeout, confirm_timeout)
        else:
            result = self._send(delivery, mandatory, declare, timeout, confirm_timeout)
        if batch is not None and batch.is_full:
            if retry:
                self._insured(retry_policy, batch.flush)
            else:
                batch.flush()
        return result

    @property
    def _owner(self) -> Any:
        """The connection that publishing is tried again on."""
        return self.__connection__ or (self._facade.connection if self._facade is not None else None)

    @property
    def _insures_itself(self) -> bool:
        """Whether nothing has replaced the connection's ``ensure``."""
        owner = self.__connection__ or (None if self._facade is None else self._facade.connection)
        return owner is None or getattr(owner, "ensures_itself", None) is True

    def _insured(self, retry_policy: Mapping[str, Any] | None, fun: Callable[..., Any], *args: Any) -> Any:
        """Call, and call again as the policy says."""
        connection = self._owner
        if connection is None:
            raise exceptions.NotBoundError("the producer has no channel and no connection")
        if not self._insures_itself:
            return connection.ensure(self, fun, **(retry_policy or {}))(*args)
        if self._facade is None:  # the policy holds for connecting too
            connection.connect_as(retry_policy or {})
        policy = RetryPolicy(**retry_policy) if retry_policy else RetryPolicy()
        return connection.call_insured(self, policy, fun, *args)

    def _publish_again(
        self,
        error: Exception,
        transport: Any,
        retry_policy: Mapping[str, Any] | None,
        delivery: Delivery,
        mandatory: bool,
        timeout: float | None,
        confirm_timeout: float | None,
    ) -> Any:
        policy = RetryPolicy(**(retry_policy or {}))
        return self._owner.call_again(
            self, policy, error, transport, self._send, delivery, mandatory, None, timeout, confirm_timeout
        )

    # Steps of publishing, which kombu's users override and replace.
    _publish = Step(publish_prepared)
    _prepare = Step(prepare)
    _delivery_details = Step(MessageMaker._delivery_details)

    def publish_many(
        self,
        bodies: Iterable[Any],
        routing_key: str | None = None,
        delivery_mode: int | str | None = None,
        mandatory: bool = False,
        priority: int | None = 0,
        content_type: str | None = None,
        content_encoding: str | None = None,
        serializer: str | None = None,
        headers: Mapping[str, Any] | None = None,
        compression: str | None = None,
        exchange: Exchange | str | None = None,
        declare: Iterable[Any] | None = None,
        expiration: float | None = None,
        timeout: float | None = None,
        **properties: Any,
    ) -> int:
        """Publish many bodies to one place. Return the number of messages that the broker took.

        ``bodies`` may be endless: they are sent a thousand, or some megabytes, at a time. Messages after a refused one
        are still sent. A body that cannot be encoded ends the call, and so do ten thousand refused messages. If
        ``bodies`` is a list or a tuple, the next are encoded while PostgreSQL stores those before them.

        Args:
            bodies: The bodies.
            routing_key: Routing key (default: the producer's).
            delivery_mode: 1 or ``"transient"``, 2 or ``"persistent"`` (default: the exchange's, else persistent).
            mandatory: If True, the broker returns the message if no queue takes it.
            priority: Priority, 0 to the ``max_priority`` of the queue; the highest is delivered first.
            content_type: Content type of a body that is serialized already.
            content_encoding: Encoding of a body that is serialized already, such as ``"utf-8"``.
            serializer: Name of a serializer (default: the producer's, else ``"json"``).
            headers: Headers by name.
            compression: Name or content type of a compression method (default: none).
            exchange: An exchange or its name (default: the producer's).
            declare: Entities to declare first.
            expiration: Seconds after which a message that still waits in a queue expires.
            timeout: Seconds for each of the parts that are sent together.
            **properties: Message properties.

        Raises:
            BatchPublishError: Some messages were refused; ``refused`` names them by their index.
        """
        if self._batch is not None:
            self._batch.flush()  # what was published before comes before
        self._declare_all(declare)

        def make(body: Any) -> Delivery:
            return self._make(
                exchange,
                routing_key,
                body,
                delivery_mode,
                priority,
                content_type,
                content_encoding,
                serializer,
                headers,
                compression,
                expiration,
                properties,
            )

        chunk = Chunk()
        overlaps = type(bodies) in PLAIN_ITERABLES
        with ChunkSender(self, chunk, mandatory, timeout) as sender:
            for body in bodies:
                if chunk.add(make, body):
                    sender.send(overlaps)
                    if chunk.is_over:
                        break
            sender.send()
        chunk.raise_refused()
        return chunk.total

    def batch(self, max_size: int = 1000) -> BatchContext:
        """Collect the messages that are published inside the block, and send them together.

        They are sent at ``max_size`` messages, on ``flush()``, and at the end of the block. An exception inside the
        block discards the messages that were not sent yet. A batch inside a batch adds to the outer one.

        Args:
            max_size: Messages to send together.

        Raises:
            BatchPublishError: Some messages were refused; ``refused`` names them by their index.
            ValueError: ``max_size`` is no integer from 1 on.

        Example:
            ```py
            with producer.batch() as batch:
                for order in orders:
                    producer.publish(order, routing_key="orders")
            ```
        """
        return BatchContext(self, max_size)

    def _enter_batch(self, max_size: int) -> tuple[Any, bool]:
        """Return the batch in course and whether it is begun now."""
        if self._batch is not None:
            return self._batch, False
        hooks = None if self.connection is None else self.connection.hooks
        if isinstance(self._facade, AdaptedChannel) and self._in_steps:
            self._batch = SessionBatch(max_size)
        elif hooks is None:
            self._batch = Batch(self.send_many, max_size)
        else:
            self._batch = HookedBatch(self.send_many, max_size, hooks)
        return self._batch, True

    def _leave_batch(self) -> None:
        """Collect no more."""
        self._batch = None

    def _send(
        self,
        delivery: Delivery,
        mandatory: bool,
        declare: Iterable[Any] | None,
        timeout: float | None,
        confirm_timeout: float | None,
    ) -> Any:
        channel = self._ready_channel(declare)
        if channel is None:
            self._declare_all(declare)
            channel = self._open_channel()
        if self._batch is not None:
            self._batch.add(delivery, mandatory)
            return None
        try:
            return channel.publish(delivery, mandatory, timeout, confirm_timeout)
        except Exception as error:
            self._publish_failed(channel, error)
            raise

    def _publish_failed(self, channel: Channel, error: Exception) -> None:
        if isinstance(error, exceptions.ChannelError):
            self._leave_closed(channel)
        else:
            self._declared = None  # the next publish looks whether the connection is lost

    def send_many(
        self, deliveries: list[Delivery], mandatory: bool, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        """Publish messages that are encoded already. Return those refused, as (index, exception).

        Args:
            deliveries: The messages.
            mandatory: If True, the broker returns the message if no queue takes it.
            timeout: Seconds for all of them.
        """
        channel = self._open_channel()
        try:
            return channel.publish_many(deliveries, mandatory, timeout)
        finally:
            self._leave_closed(channel)

    def begin_many(
        self, deliveries: list[Delivery], mandatory: bool, timeout: float | None = None
    ) -> Callable[[], list[tuple[int, Exception]]] | None:
        """Begin what ``send_many`` does. Return what waits for its end; None where ``send_many`` is as good.

        Args:
            deliveries: The messages.
            mandatory: If True, the broker returns the message if no queue takes it.
            timeout: Seconds for all of them.
        """
        channel = self._open_channel()
        try:
            wait = channel.begin_publish_many(deliveries, mandatory, timeout)
        finally:
            self._leave_closed(channel)
        if wait is None:
            return None

        def finish() -> list[tuple[int, Exception]]:
            try:
                return wait()
            finally:
                self._leave_closed(channel)

        return finish

    def _leave_closed(self, channel: Channel) -> None:
        """Do not ask a channel again what it failed with: that is being told now."""
        if not channel.is_open and self.__connection__ is not None:
            self._facade = None

    def _ready_channel(self, declare: Iterable[Any] | None) -> Channel | None:
        """Return the channel, if it is open, and our exchange and all these entities were declared."""
        channel: Channel | None = self._facade
        if channel is None or not channel.is_open:
            return None
        declared = channel.session.declared
        if self._declared is not declared or self._exchange is not self.exchange:
            return None
        if declare:
            for entity in declare:
                if entity and not is_declared(entity, declared):
                    return None
        return channel

    def _declare_all(self, declare: Iterable[Any] | None) -> None:
        if self.auto_declare and self.exchange.name:
            self.maybe_declare(self.exchange)
        for entity in declare or ():
            self.maybe_declare(entity)
        if self.exchange.can_cache_declaration or not self.auto_declare:
            # Until the connection forgets its declarations there is nothing to look up.
            self._declared = self._open_channel().session.declared
            self._exchange = self.exchange

    # --- lifetime

    def release(self) -> None:
        """Do nothing; a producer of a pool returns to its pool."""

    close = discard = release

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        if exc_type is not None and "discard" in self.__dict__:  # a pool has set it
            self.discard()
            return
        pool = None if exc_type is None else getattr(self.__connection__, "_pool", None)
        if pool is not None:
            pool.replace(self.__connection__)
        self.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.__reduce_args__()

    def __reduce_args__(self) -> tuple[Any, ...]:
        return None, self.exchange, self.routing_key, self.serializer, self.auto_declare, self.compression

    def __repr__(self) -> str:
        channel = None if self._facade is None else self._facade.public
        return f"<Producer: {channel or self.__connection__!r}>"


#: The steps of publishing. A subclass may override one; a program may replace it on a producer or, as tracers do, on
#: the class.
STEPS = {name: getattr(Producer, name) for name in ("_publish", "_prepare", "_delivery_details", "maybe_declare")}
