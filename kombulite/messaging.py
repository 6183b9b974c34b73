"""Sending and receiving messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from kombulite import exceptions, serialization
from kombulite._core import Delivery, Properties
from kombulite.abstract import maybe_channel
from kombulite.channel import Channel, make_properties
from kombulite.compression import compress
from kombulite.entity import Exchange, Queue, maybe_delivery_mode
from kombulite.message import Message
from kombulite.serialization import prepare_accept_content
from kombulite.utils.functional import maybe_list

if TYPE_CHECKING:
    from kombulite.connection import Connection

__all__ = ["Batch", "Consumer", "Exchange", "Message", "Producer", "Queue"]

RETRY_POLICY_KEYS = frozenset(
    [
        "errback",
        "max_retries",
        "interval_start",
        "interval_step",
        "interval_max",
        "on_revive",
        "retry_errors",
    ]
)

#: Messages that ``publish_many`` prepares before it hands them over.
CHUNK = 1000


class Batch:
    """Messages that wait to be sent together. Made by ``Producer.batch()``."""

    def __init__(self, producer: Producer, max_size: int) -> None:
        if max_size < 1:
            raise ValueError(f"a batch holds one message or more, not {max_size}")
        self._producer = producer
        self._max_size = max_size
        self._waiting: list[tuple[Delivery, bool]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, delivery: Delivery, mandatory: bool) -> None:
        """Add a message; a full batch is sent. Raises BatchPublishError."""
        self._waiting.append((delivery, mandatory))
        if len(self._waiting) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Send what waits. Raises BatchPublishError, which names the messages that were refused."""
        waiting, self._waiting = self._waiting, []
        refused: list[tuple[int, Exception]] = []
        start = 0
        while start < len(waiting):
            mandatory = waiting[start][1]
            end = start + 1
            while end < len(waiting) and waiting[end][1] == mandatory:
                end += 1
            deliveries = [delivery for delivery, _ in waiting[start:end]]
            refused += [(start + i, error) for i, error in self._producer.channel.publish_many(deliveries, mandatory)]
            start = end
        _raise_refused(refused, len(waiting))


def _raise_refused(refused: list[tuple[int, Exception]], total: int) -> None:
    if refused:
        index, error = refused[0]
        raise exceptions.BatchPublishError(
            f"{len(refused)} of {total} messages were refused, number {index} first: {error}",
            refused=refused,
            published=total - len(refused),
        )


class Producer:
    """Sends messages.

    ``channel``: a channel or a connection (whose channel is opened at first use); ``exchange`` (an Exchange or its
    name), ``routing_key``, ``serializer``, ``compression``: defaults for ``publish``; ``auto_declare``: declare the
    exchange at first use; ``on_return(exception, exchange, routing_key, message)``: gets the mandatory messages that
    no queue took.
    """

    exchange: Exchange
    routing_key = ""
    serializer: str | None = None
    compression: str | None = None
    auto_declare = True
    on_return: Callable[[Exception, str, str, Message], Any] | None = None
    supports_batch_publish = True

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
        self._declared: Any = None  # the connection's declarations that hold our exchange's
        self._batch: Batch | None = None
        self._plain: dict[Any, Properties] = {}
        if exchange is None or isinstance(exchange, str):
            exchange = Exchange(exchange or "")
        self.exchange = exchange
        self.routing_key = routing_key or self.routing_key
        self.serializer = serializer or self.serializer
        self.compression = compression or self.compression
        self.on_return = on_return or self.on_return
        if auto_declare is not None:
            self.auto_declare = auto_declare
        if isinstance(channel, Channel):
            self.revive(channel)
        elif channel is not None:
            self.__connection__ = channel

    # --- the channel

    @property
    def channel(self) -> Channel:
        """The channel, opened now if it was not yet."""
        if self._channel is None:
            if self.__connection__ is None:
                raise exceptions.NotBoundError("the producer has no channel and no connection")
            self._attach(self.__connection__.default_channel)
        assert self._channel is not None
        return self._channel

    @channel.setter
    def channel(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def connection(self) -> Connection | None:
        """The connection, if there is one yet."""
        return self.__connection__ or (self._channel.connection if self._channel is not None else None)

    def revive(self, channel: Any) -> None:
        """Go on with another channel, or a connection's, after the old one was lost."""
        if isinstance(channel, Channel):
            self._attach(channel)
        else:
            self.__connection__ = channel
            self._channel = None

    def _attach(self, channel: Channel) -> None:
        self._channel = channel
        self.exchange = self.exchange(channel)
        self._declared = None
        if self.on_return is not None and self._on_return not in channel.return_listeners:
            channel.return_listeners.append(self._on_return)

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: Message) -> None:
        if self.on_return is not None:
            self.on_return(error, exchange, routing_key, message)

    # --- declaring

    def declare(self) -> None:
        """Declare the exchange. Publishing does it, unless ``auto_declare`` is off."""
        if self.exchange.name:
            self.exchange.declare(channel=self.channel)

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> bool:
        """Declare an entity, unless the connection remembers that it was."""
        if not entity:
            return False
        channel = self.channel
        return channel.connection.maybe_declare(entity, channel, retry, **retry_policy)

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
        **properties: Any,
    ) -> None:
        """Publish a message.

        ``body`` is serialised (``serializer``), or sent as it is when ``content_type`` says what it is; then compressed
        (``compression``). ``exchange``: an Exchange or a name, ``""`` for the default exchange. ``mandatory``: give it
        back if no queue takes it (``on_return``). ``declare``: entities to declare first. ``expiration`` and ``timeout``
        (for the broker to take it) in seconds. ``retry``: reconnect and try again as ``retry_policy`` says (errback,
        max_retries, interval_start, interval_step, interval_max, on_revive, retry_errors). Other keywords are message
        properties (``correlation_id``, ``reply_to``, …; ``reply_to`` may be a Queue).

        Raises EncodeError, SerializerNotInstalled, NotFound, MessageNacked, PreconditionFailed; with ``retry``
        OperationalError for a connection that cannot be had.
        """
        name, mode = self._resolve(exchange, delivery_mode)
        body, sent = self._prepare(
            body, mode, priority, content_type, content_encoding, serializer, headers, compression, expiration, properties
        )
        if routing_key is None:
            routing_key = self.routing_key
        if retry:
            self._publish_with_retry(
                partial(self._publish, name, routing_key, sent, body, mandatory, declare, timeout), retry_policy
            )
        else:
            self._publish(name, routing_key, sent, body, mandatory, declare, timeout)

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

        ``bodies`` may be endless: they are handed over a thousand at a time. Raises BatchPublishError, whose
        ``refused`` names those that were not taken by their index; those after them are still sent.
        """
        name, mode = self._resolve(exchange, delivery_mode)
        if routing_key is None:
            routing_key = self.routing_key
        channel = self.channel
        self._declare_all(declare)
        refused: list[tuple[int, Exception]] = []
        total = 0
        rest = iter(bodies)
        while chunk := [
            Delivery(name, routing_key, sent, payload)
            for payload, sent in (
                self._prepare(
                    body,
                    mode,
                    priority,
                    content_type,
                    content_encoding,
                    serializer,
                    headers,
                    compression,
                    expiration,
                    properties,
                )
                for body in islice(rest, CHUNK)
            )
        ]:
            refused += [(total + i, error) for i, error in channel.publish_many(chunk, mandatory, timeout)]
            total += len(chunk)
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
        batch = self._batch = Batch(self, max_size)
        try:
            yield batch
        finally:
            self._batch = None
        batch.flush()

    def _resolve(self, exchange: Exchange | str | None, delivery_mode: int | str | None) -> tuple[str, int]:
        """The name of the exchange and the delivery mode to publish with."""
        if exchange is None:
            exchange = self.exchange
        if isinstance(exchange, str):
            name, mode = exchange, delivery_mode or self.exchange.delivery_mode
        else:
            name, mode = exchange.name, delivery_mode or exchange.delivery_mode
        return name, mode if mode.__class__ is int else maybe_delivery_mode(mode)

    def _prepare(
        self,
        body: Any,
        delivery_mode: int,
        priority: int | None,
        content_type: str | None,
        content_encoding: str | None,
        serializer: str | None,
        headers: Mapping[str, Any] | None,
        compression: str | None,
        expiration: float | None,
        properties: Mapping[str, Any],
    ) -> tuple[Any, Properties]:
        """The body as it travels, and its properties."""
        if content_type is None or content_type == "":
            content_type, content_encoding, body = serialization.dumps(body, serializer or self.serializer)
            if isinstance(body, str):
                body = body.encode("utf-8")
        elif isinstance(body, str):
            content_encoding = content_encoding or "utf-8"
            try:
                body = body.encode(content_encoding)
            except (LookupError, UnicodeError) as error:
                raise exceptions.EncodeError(f"cannot encode the body as {content_encoding}: {error}") from error
        else:
            content_encoding = content_encoding or "binary"
            if isinstance(body, (bytearray, memoryview)):
                body = bytes(body)
            elif not isinstance(body, bytes):
                raise exceptions.EncodeError(
                    f"a body with a content type of its own is text or bytes, not {type(body).__name__}"
                )
        compression = compression or self.compression
        if not (compression or headers or properties or expiration is not None):
            # Nothing but what many messages share: they share the object too.
            key = content_type, content_encoding, delivery_mode, priority
            shared = self._plain.get(key)
            if shared is None:
                shared = self._plain[key] = Properties(
                    content_type, content_encoding, None, delivery_mode, priority
                )
            return body, shared
        headers = dict(headers) if headers else {}
        if compression:
            body, headers["compression"] = compress(body, compression)
        properties = dict(properties, delivery_mode=delivery_mode)
        if expiration is not None:
            properties["expiration"] = str(int(float(expiration) * 1000))
        reply_to = properties.get("reply_to")
        if isinstance(reply_to, Queue):
            properties["reply_to"] = reply_to.name
        return body, make_properties(content_type, content_encoding, headers, priority, properties)

    def _publish(
        self,
        exchange: str,
        routing_key: str,
        properties: Properties,
        body: Any,
        mandatory: bool,
        declare: Iterable[Any] | None,
        timeout: float | None,
    ) -> None:
        channel = self._channel or self.channel
        if declare is not None or self._declared is not channel.connection.declared_entities:
            self._declare_all(declare)
        delivery = Delivery(exchange, routing_key, properties, body)
        if self._batch is not None:
            self._batch.add(delivery, mandatory)
        else:
            channel.publish(delivery, mandatory, timeout)

    def _declare_all(self, declare: Iterable[Any] | None) -> None:
        if self.auto_declare and self.exchange.name:
            self.maybe_declare(self.exchange)
        for entity in declare or ():
            self.maybe_declare(entity)
        if self.exchange.can_cache_declaration:
            # Until the connection forgets its declarations there is nothing to look up.
            self._declared = self.channel.connection.declared_entities

    def _publish_with_retry(self, publish: Callable[[], None], retry_policy: Mapping[str, Any] | None) -> None:
        policy = {name: value for name, value in (retry_policy or {}).items() if name in RETRY_POLICY_KEYS}
        connection = self.connection
        assert connection is not None or self.channel  # raises where there is neither
        assert connection is not None
        connection.ensure(self, publish, **policy)()

    # --- lifetime

    def release(self) -> None:
        """Nothing; a producer of a pool goes back to it."""

    close = release

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self.release()

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
        return f"<{type(self).__name__}: {self._channel or self.__connection__!r}>"


_tags = count(1)


class Consumer:
    """Receives messages.

    ``channel``: a channel or connection; ``queues``: one or several; ``callbacks``: called with (body, message), or
    ``on_message`` with the message alone, not decoded; ``accept``: serializers or content types that may be decoded;
    ``on_decode_error(message, exception)``: called instead of raising; ``prefetch_count``: messages delivered and not
    acknowledged at a time; ``no_ack``: they count as acknowledged when sent; ``tag_prefix``: starts the consumer tags.
    """

    ContentDisallowed = exceptions.ContentDisallowed

    no_ack: bool | None = None
    auto_declare = True
    callbacks: list[Callable[[Any, Message], Any]]
    on_message: Callable[[Message], Any] | None = None
    on_decode_error: Callable[[Message, Exception], Any] | None = None
    accept: set[str | None] | None = None
    prefetch_count: int | None = None

    def __init__(
        self,
        channel: Any,
        queues: Any = None,
        no_ack: bool | None = None,
        auto_declare: bool | None = None,
        callbacks: Iterable[Callable[[Any, Message], Any]] | None = None,
        on_decode_error: Callable[[Message, Exception], Any] | None = None,
        on_message: Callable[[Message], Any] | None = None,
        accept: Iterable[str] | None = None,
        prefetch_count: int | None = None,
        tag_prefix: str | None = None,
    ) -> None:
        self.channel: Channel = channel
        self._queues: dict[str, Queue] = {}
        self._unnamed = maybe_list(queues) or []
        self._active_tags: dict[str, str] = {}
        self._no_ack_of: dict[str, bool | None] = {}
        self.no_ack = self.no_ack if no_ack is None else no_ack
        self.auto_declare = self.auto_declare if auto_declare is None else auto_declare
        self.callbacks = list(callbacks or getattr(type(self), "callbacks", ()))
        self.on_message = on_message or self.on_message
        self.on_decode_error = on_decode_error or self.on_decode_error
        self.accept = prepare_accept_content([accept] if isinstance(accept, str) else accept)
        self.prefetch_count = prefetch_count
        self.tag_prefix = tag_prefix or ""
        if channel is not None:
            self.revive(channel)

    # --- queues

    @property
    def queues(self) -> list[Queue]:
        """The queues it consumes from, or will."""
        return [*self._queues.values(), *self._unnamed]

    @queues.setter
    def queues(self, queues: Any) -> None:
        self._queues = {queue.name: queue for queue in maybe_list(queues) or []}

    def add_queue(self, queue: Queue) -> Queue:
        """Add a queue (declared if ``auto_declare``); ``consume`` starts it."""
        queue = queue(self.channel)
        if self.auto_declare:
            queue.declare()
        self._queues[queue.name] = queue
        return queue

    def consuming_from(self, queue: Queue | str) -> bool:
        """Whether a queue, or one of that name, is consumed now."""
        return (queue.name if isinstance(queue, Queue) else queue) in self._active_tags

    def declare(self) -> None:
        """Declare the queues, with their exchanges and bindings."""
        for queue in self._queues.values():
            queue.declare()

    def purge(self) -> int:
        """Remove the messages that wait in all queues; returns how many."""
        return sum(queue.purge() for queue in self._queues.values())

    # --- lifetime

    def revive(self, channel: Any) -> None:
        """Go on with another channel after the old one was lost: declare, set the prefetch count, consume again."""
        self.channel = maybe_channel(channel)
        resumed = {name: self._no_ack_of.get(name) for name in self._active_tags}
        self._active_tags.clear()
        queues = [*self._queues.values(), *self._unnamed]
        self._queues, self._unnamed = {}, []
        for queue in queues:
            queue = queue(self.channel)
            if self.auto_declare:
                queue.declare()  # now the broker has named those without a name
            self._queues[queue.name] = queue
        if self.prefetch_count is not None:
            self.qos(prefetch_count=self.prefetch_count)
        for name, no_ack in resumed.items():
            if name in self._queues:
                self._consume(self._queues[name], no_ack)

    def consume(self, no_ack: bool | None = None) -> None:
        """Start consuming from all queues where that is not so already."""
        no_ack = self.no_ack if no_ack is None else no_ack
        for queue in list(self._queues.values()):
            if queue.name not in self._active_tags:
                self._consume(queue, no_ack)

    def _consume(self, queue: Queue, no_ack: bool | None) -> None:
        tag = f"{self.tag_prefix}{next(_tags)}"
        self._no_ack_of[queue.name] = no_ack
        self._active_tags[queue.name] = queue.consume(tag, self._receive, no_ack=no_ack)

    def cancel(self) -> None:
        """Stop consuming. Messages delivered stay to be acknowledged."""
        for name in list(self._active_tags):
            self.channel.basic_cancel(self._active_tags.pop(name))

    close = cancel

    def cancel_by_queue(self, queue: Queue | str) -> None:
        """Stop consuming from one queue, and forget it."""
        name = queue.name if isinstance(queue, Queue) else queue
        self._queues.pop(name, None)
        tag = self._active_tags.pop(name, None)
        if tag is not None:
            self.channel.basic_cancel(tag)

    def __enter__(self) -> Consumer:
        self.consume()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc_val: Any, exc_tb: Any) -> None:
        if exc_type is not None and issubclass(exc_type, self.channel.connection.connection_errors):
            return  # the consumers went with the connection
        self.cancel()

    # --- limits

    def qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Bound the messages that are delivered and not acknowledged (0: no bound)."""
        self.channel.basic_qos(prefetch_size, prefetch_count, apply_global)

    def flow(self, active: bool) -> None:
        """Pause deliveries, or let them go on."""
        self.channel.flow(active)

    def recover(self, requeue: bool = False) -> None:
        """Have all that is not acknowledged delivered again."""
        self.channel.basic_recover(requeue=requeue)

    # --- messages

    def register_callback(self, callback: Callable[[Any, Message], Any]) -> None:
        """Add a callback, called with (body, message)."""
        self.callbacks.append(callback)

    def receive(self, body: Any, message: Message) -> None:
        """Hand a decoded message to the callbacks. Raises NotImplementedError where there are none."""
        if not self.callbacks:
            raise NotImplementedError("Consumer does not have any callbacks")
        for callback in self.callbacks:
            callback(body, message)

    def _receive(self, message: Message) -> None:
        on_message = self.on_message
        try:
            if on_message is None:
                body = message.unpack(self.accept)
            else:
                message.accept = self.accept
                message.raise_errors()
        except Exception as error:
            if self.on_decode_error is None:
                raise
            self.on_decode_error(message, error)
            return
        if on_message is None:
            self.receive(body, message)
        else:
            on_message(message)

    @property
    def connection(self) -> Connection | None:
        """The connection of its channel."""
        return self.channel.connection if self.channel is not None else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.queues}>"
