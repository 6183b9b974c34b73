"""Sending messages: one at a time, in batches, in streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from kombulite import exceptions, serialization
from kombulite._client.lifecycle import State
from kombulite._client.retry import RetryPolicy
from kombulite._core import Delivery, PlainMessages, make_properties
from kombulite.abstract import is_connection
from kombulite.channel import SURELY_SHORT, Channel, check_short
from kombulite.compression import compress
from kombulite.entity import DELIVERY_MODES, PERSISTENT_DELIVERY_MODE, Exchange, Queue, is_declared
from kombulite.message import Message
from kombulite.transport.adapter import facade_channel

if TYPE_CHECKING:
    from kombulite.connection import Connection
    from kombulite.hooks import Hooks

#: Messages that ``publish_many`` prepares before it hands them over.
CHUNK, CHUNK_BYTES = 1000, 4 << 20
#: Messages that may be refused before it gives up.
MOST_REFUSED = 10_000

encode = serialization.registry.encode


class Batch:
    """Messages that wait to be sent together. Made by ``Producer.batch()``. ``is_full``: it is time to send."""

    def __init__(self, producer: Producer, max_size: int) -> None:
        if max_size < 1:
            raise ValueError(f"a batch holds one message or more, not {max_size}")
        self._producer = producer
        self._max_size = max_size
        self.is_full = False
        self._waiting: list[tuple[Delivery, bool]] = []
        self._refused: list[tuple[int, Exception]] = []  # of those that were sent since the last report
        self._sent = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, delivery: Delivery, mandatory: bool) -> None:
        """Add a message.

        A full batch, which could not be sent when it was time, is sent first. While that fails it does not grow: the
        error is raised, and the message is not added.
        """
        try:
            if self.is_full:
                self.flush()
        finally:
            if not self.is_full:
                self._waiting.append((delivery, mandatory))
                self.is_full = len(self._waiting) >= self._max_size

    def flush(self) -> None:
        """Send what waits. Raises BatchPublishError, which names the messages that were refused.

        An error of the connection is raised as it is. Those that were being sent go on waiting, though the broker may
        have some of them, and what was refused before them is told with the next flush.
        """
        while self._waiting:
            mandatory = self._waiting[0][1]
            alike = [delivery for delivery, _ in next(groupby(self._waiting, itemgetter(1)))[1]]
            self._refused += [(self._sent + i, error) for i, error in self._producer.send_many(alike, mandatory)]
            self._sent += len(alike)
            del self._waiting[: len(alike)]
            self.is_full = len(self._waiting) >= self._max_size
        refused, total = self._refused, self._sent
        self._refused, self._sent = [], 0
        _raise_refused(refused, total)


class ObservedBatch(Batch):
    """A batch that tells the hooks of its connection what is put into it."""

    def __init__(self, producer: Producer, max_size: int, hooks: Hooks) -> None:
        super().__init__(producer, max_size)
        self._hooks = hooks

    def add(self, delivery: Delivery, mandatory: bool) -> None:
        """Add a message, with the headers that the hooks add."""
        super().add(self._hooks.collect(delivery, mandatory), mandatory)


def _raise_refused(refused: list[tuple[int, Exception]], total: int) -> None:
    if refused:
        index, error = refused[0]
        raise exceptions.BatchPublishError(
            f"{len(refused)} of {total} messages were refused, number {index} first: {error}",
            refused=refused,
            published=total - len(refused),
        )


def _as_it_is(body: Any, content_encoding: str | None) -> tuple[str, bytes]:
    """The content encoding and the bytes of a body that no serializer has to touch."""
    if isinstance(body, str):
        content_encoding = content_encoding or "utf-8"
        try:
            return content_encoding, body.encode(content_encoding)
        except (LookupError, UnicodeError) as error:
            raise exceptions.EncodeError(f"cannot encode the body as {content_encoding}: {error}") from error
    if isinstance(body, (bytes, bytearray, memoryview)):
        return content_encoding or "binary", bytes(body)
    raise exceptions.EncodeError(f"a body travels as text or bytes, not as {type(body).__name__}")


def _milliseconds(seconds: Any) -> str:
    """An expiration as it travels (AMQP 0-9-1: a short string; RabbitMQ: milliseconds)."""
    try:
        milliseconds = int(float(seconds) * 1000)
    except (TypeError, ValueError, OverflowError):
        milliseconds = -1
    if milliseconds < 0:
        raise ValueError(f"an expiration is a number of seconds from 0 on, not {seconds!r:.80}")
    return str(milliseconds)


def _as_they_travel(properties: Mapping[str, Any], expiration: Any) -> dict[str, Any]:
    """The properties that ``publish`` was given, as text where it takes something else."""
    sent = dict(properties)
    if expiration is not None:
        sent["expiration"] = _milliseconds(expiration)
    if isinstance(sent.get("reply_to"), Queue):
        sent["reply_to"] = sent["reply_to"].name
    return sent


class Producer:
    """Sends messages.

    ``channel``: a channel or a connection (whose channel is opened at first use); ``exchange`` (an Exchange or its
    name), ``routing_key``, ``serializer``, ``compression``: defaults for ``publish``; ``auto_declare``: declare the
    exchange at first use; ``on_return(exception, exchange, routing_key, message)``: gets the mandatory messages that
    no queue took.
    """

    exchange: Any = None
    routing_key = ""
    serializer: str | None = None
    compression: str | None = None
    auto_declare = True
    on_return: Callable[[Exception, str, str, Message], Any] | None = None

    def __init__(
        self,
        channel: Any,
        exchange: Exchange | str | None = None,
        routing_key: str | None = None,
        serializer: str | None = None,
        auto_declare: bool | None = None,
        compression: str | None = None,
        on_return: Callable[[Exception, str, str, Message], Any] | None = None,
    ) -> None:
        self._channel: Channel | None = None
        self.__connection__: Connection | None = None
        self._declared: Any = None  # the connection's declarations that hold ours
        self._exchange: Exchange | None = None  # of this exchange
        self._batch: Batch | None = None
        self._plain = PlainMessages(serialization.registry)
        exchange = self.exchange if exchange is None else exchange
        if exchange is None or isinstance(exchange, str):
            exchange = Exchange(exchange or "")
        self.exchange = exchange
        self.routing_key = routing_key or self.routing_key
        self.serializer = serializer or self.serializer
        self.compression = compression or self.compression
        self.on_return = on_return or self.on_return
        if auto_declare is not None:
            self.auto_declare = auto_declare
        if channel is not None:
            self.revive(channel)

    # --- the channel

    @property
    def channel(self) -> Any:
        """The channel. One that comes from a connection is opened now if it was not yet, or is not any more."""
        return self._open_channel().public

    @channel.setter
    def channel(self, channel: Any) -> None:
        self._channel = None if channel is None else facade_channel(channel)

    def _open_channel(self) -> Channel:
        channel = self._channel
        if channel is not None and channel.connection.state is State.LOST:
            # That was raised already, to whoever noticed it. Now it comes back, with its channels; one try.
            channel.connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
        if channel is None or (self.__connection__ is not None and not channel.is_open):
            if self.__connection__ is None:
                raise exceptions.NotBoundError("the producer has no channel and no connection")
            self._channel = None
            if channel is not None and channel.publish_failed:
                # What was published since may be lost: each producer on that channel is told, once.
                assert channel.failure is not None
                raise channel.failure
            channel = facade_channel(self.__connection__.default_channel)
            self._attach(channel)
        return channel

    @property
    def connection(self) -> Any:
        """The connection, if there is one yet."""
        return self.__connection__ or (self._channel.connection.client if self._channel is not None else None)

    @property
    def supports_batch_publish(self) -> bool:
        """Whether the transport sends the messages of a batch together."""
        connection = self.connection
        implements = None if connection is None else getattr(connection.transport, "implements", None)
        return bool(getattr(implements, "batch_publish", False))

    def revive(self, channel: Any) -> None:
        """Go on with another channel, or a connection's, after the old one was lost."""
        if channel is None or is_connection(channel):
            self.__connection__ = channel
            self._channel = None
        else:
            self._attach(facade_channel(channel))

    def _attach(self, channel: Channel) -> None:
        self._channel = channel
        public = channel.public
        if not (self.exchange.is_bound and self.exchange.channel is public):
            self.exchange = self.exchange(public)
        self._declared = None
        if self.on_return is not None and self.on_return not in channel.return_listeners:
            channel.listen_for_returned(self.on_return)  # once, however many producers have it

    # --- declaring

    def declare(self) -> None:
        """Declare the exchange. Publishing does it, unless ``auto_declare`` is off."""
        if self.exchange.name:
            self.exchange.declare(channel=self.channel)

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> bool:
        """Declare an entity, unless the connection remembers that it was."""
        if not entity:
            return False
        channel = self._open_channel()
        return channel.connection.maybe_declare(entity, channel.public, retry, **retry_policy)

    # --- publishing

    def publish(
        self,
        body: Any,
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
        via: Any = None,
        **properties: Any,
    ) -> Any:
        """Publish a message. Returns what a transport of others returns; None for kombulite's own.

        ``body`` is serialised (``serializer``), or sent as it is when ``content_type`` says what it is; then compressed
        (``compression``). ``exchange``: an Exchange or a name, ``""`` for the default exchange. ``mandatory``: give it
        back if no queue takes it (``on_return``). ``declare``: entities to declare first. ``expiration``, ``timeout``
        for the broker to take it and ``confirm_timeout`` for it to say so, in seconds. ``retry``: reconnect and try
        again as ``retry_policy`` says (errback, max_retries, interval_start, interval_step, interval_max, on_revive,
        retry_errors). ``via``: a transaction of the caller's on the database that is the broker (SQL brokers only): a
        connection of psycopg or sqlite3, a session or connection of SQLAlchemy, a connection of Django; the message
        exists if that commits, and not before. Other keywords are message properties (``correlation_id``, ``reply_to``,
        …; ``reply_to`` may be a Queue).

        Raises EncodeError, SerializerNotInstalled, NotFound, MessageNacked, PreconditionFailed; with ``retry``
        OperationalError for a connection that cannot be had.
        """
        delivery = self._make(
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
            result = self._insured(retry_policy, self._publish, delivery, mandatory, declare, timeout, confirm_timeout)
        else:
            result = self._publish(delivery, mandatory, declare, timeout, confirm_timeout)
        if batch is not None and batch.is_full:
            if retry:
                self._insured(retry_policy, batch.flush)
            else:
                batch.flush()
        return result

    def _insured(self, retry_policy: Mapping[str, Any] | None, fun: Callable[..., Any], *args: Any) -> Any:
        """Call, and call again as the policy says."""
        connection = self.__connection__ or (self._channel.connection if self._channel is not None else None)
        if connection is None:
            raise exceptions.NotBoundError("the producer has no channel and no connection")
        policy = RetryPolicy(**retry_policy) if retry_policy else RetryPolicy()
        return connection.call_insured(self, policy, fun, *args)

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
        """Publish many bodies to one place, with the arguments of ``publish``. Returns how many were taken.

        ``bodies`` may be endless: they are handed over a thousand, or some megabytes, at a time. Raises
        BatchPublishError, whose ``refused`` names those that were not taken by their index. Those after one that the
        broker refused are still sent; one that cannot be encoded ends it, and so do ten thousand that were refused.
        """
        if self._batch is not None:
            self._batch.flush()  # what was published before comes before
        self._declare_all(declare)
        refused: list[tuple[int, Exception]] = []
        total = 0
        messages = (
            self._make(
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
            for body in bodies
        )
        broken: exceptions.EncodeError | None = None
        while broken is None:
            chunk: list[Delivery] = []
            size, is_over = 0, False
            try:
                for message in messages:
                    chunk.append(message)
                    size += len(message.body)
                    if len(chunk) == CHUNK or size >= CHUNK_BYTES:
                        break
                else:
                    is_over = True
            except exceptions.EncodeError as error:
                broken = error
            if chunk:
                refused += [(total + i, error) for i, error in self.send_many(chunk, mandatory, timeout)]
                total += len(chunk)
            if broken is not None:
                refused.append((total, broken))
                total += 1
            elif is_over or len(refused) >= MOST_REFUSED:
                break
        _raise_refused(refused, total)
        return total

    @contextmanager
    def batch(self, max_size: int = 1000) -> Iterator[Batch]:
        """Collect what is published inside, and send it together: at ``max_size`` messages, on ``flush()``, at the end.

        An exception inside discards what was not sent yet. Within another batch it adds to that one. Raises
        BatchPublishError.
        """
        if self._batch is not None:
            yield self._batch
            return
        hooks = None if self.connection is None else self.connection.hooks
        batch = self._batch = Batch(self, max_size) if hooks is None else ObservedBatch(self, max_size, hooks)
        try:
            yield batch
        finally:
            self._batch = None
        batch.flush()

    def _make(
        self,
        exchange: Exchange | str | None,
        routing_key: str | None,
        body: Any,
        delivery_mode: int | str | None,
        priority: int | None,
        content_type: str | None,
        content_encoding: str | None,
        serializer: str | None,
        headers: Mapping[str, Any] | None,
        compression: str | None,
        expiration: float | None,
        properties: Mapping[str, Any],
    ) -> Delivery:
        """The message that the arguments of ``publish`` ask for."""
        exchange = self.exchange if exchange is None else exchange
        if isinstance(exchange, str):
            name, mode = exchange, delivery_mode or self.exchange.delivery_mode
        else:
            name, mode = exchange.name, delivery_mode or exchange.delivery_mode
        if not mode:
            mode = PERSISTENT_DELIVERY_MODE
        elif isinstance(mode, str):
            mode = DELIVERY_MODES[mode]
        if routing_key is None:
            routing_key = self.routing_key
        if len(routing_key) > SURELY_SHORT:
            check_short(routing_key, "routing key")
        compression = compression or self.compression
        is_plain = not (compression or headers or properties or expiration is not None)
        if not content_type:
            if is_plain:
                return self._plain.make(name, routing_key, body, serializer or self.serializer, mode, priority)
            content_type, content_encoding, body = encode(body, serializer or self.serializer)
        else:
            content_encoding, body = _as_it_is(body, content_encoding)
        if is_plain:
            shared = self._plain.properties(content_type, content_encoding, mode, priority)
            return Delivery(name, routing_key, shared, body)
        if compression:
            headers = dict(headers or {})
            body, headers["compression"] = compress(body, compression)
        if expiration is not None or isinstance(properties.get("reply_to"), Queue):
            properties = _as_they_travel(properties, expiration)
        own = make_properties(content_type, content_encoding, headers, mode, priority, properties)
        return Delivery(name, routing_key, own, body)

    def _publish(
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
        except exceptions.ChannelError:
            self._leave_closed(channel)
            raise
        except Exception:
            self._declared = None  # the next publish looks whether the connection is lost
            raise

    def send_many(
        self, deliveries: list[Delivery], mandatory: bool, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        """Publish what is prepared already; returns those refused, as (index, exception)."""
        channel = self._open_channel()
        try:
            return channel.publish_many(deliveries, mandatory, timeout)
        finally:
            self._leave_closed(channel)

    def _leave_closed(self, channel: Channel) -> None:
        """Do not ask a channel again what it failed with: that is being told now."""
        if not channel.is_open and self.__connection__ is not None:
            self._channel = None

    def _ready_channel(self, declare: Iterable[Any] | None) -> Channel | None:
        """The channel, if it is open, and our exchange and all these entities were declared."""
        channel = self._channel
        if channel is None or not channel.is_open:
            return None
        declared = channel.connection.declared_entities
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
        if self.exchange.can_cache_declaration:
            # Until the connection forgets its declarations there is nothing to look up.
            self._declared = self._open_channel().connection.declared_entities
            self._exchange = self.exchange

    # --- lifetime

    def release(self) -> None:
        """Nothing; a producer of a pool goes back to it."""

    close = discard = release

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        if exc_type is None:
            self.release()
        else:
            self.discard()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            None,
            self.exchange,
            self.routing_key,
            self.serializer,
            self.auto_declare,
            self.compression,
        )

    def __repr__(self) -> str:
        channel = None if self._channel is None else self._channel.public
        return f"<{type(self).__name__}: {channel or self.__connection__!r}>"
