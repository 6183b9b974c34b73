"""Queues that are used like those of the standard library."""

from __future__ import annotations

import socket  # noqa: F401 - programs replace it here, as in kombu's module
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any, ClassVar

from kombulite import entity, messaging
from kombulite._client.batching import return_unseen
from kombulite._client.interfaces import Bindable
from kombulite._sync.channel import Channel
from kombulite.abstract import maybe_channel
from kombulite.message import Message
from kombulite.messaging import Consumer, Producer, Queue

__all__ = ["SimpleBuffer", "SimpleQueue"]


class SimpleBase:
    """Producer and consumer of one queue. It is always true, however many messages wait.

    Args:
        channel: A channel, or a connection for its default channel.
        producer: The producer.
        consumer: The consumer.
        no_ack: If True, a message counts as acknowledged when the broker sends it.
    """

    Empty = Empty
    no_ack = False
    _consuming = False

    def __init__(self, channel: Bindable | None, producer: Producer, consumer: Consumer, no_ack: bool = False) -> None:
        self.channel = maybe_channel(channel)
        self.producer = producer
        self.consumer = consumer
        self.no_ack = no_ack
        self.queue = consumer.queues[0]
        self.buffer: deque[Message] = deque()
        self._generation = 0  # which of the channel's connections the messages came on
        if type(self)._receive is SimpleBase._receive and isinstance(consumer, Consumer):
            consumer.on_message = self._keep  # what is not taken need not be decoded
        else:
            consumer.register_callback(self._receive)

    def get(self, block: bool = True, timeout: float | None = None) -> Message:
        """Return the next message.

        Args:
            block: If True, wait for a message.
            timeout: Seconds to wait (None: no limit).

        Raises:
            queue.Empty: There is no message, or none came in time.
        """
        if not block:
            return self.get_nowait()
        self._consume()
        self._drop_lost()
        deadline = None if timeout is None else monotonic() + timeout
        while not self.buffer:
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                raise self.Empty
            try:
                self.channel.connection.client.drain_events(timeout=left)
            except TimeoutError:
                raise self.Empty from None
        return self.buffer.popleft()

    def get_nowait(self) -> Message:
        """Return the next message that is there.

        Raises:
            queue.Empty: There is none.
        """
        self._drop_lost()
        if self._consuming and not self.buffer:
            with suppress(TimeoutError):  # the broker may have sent some already
                self.channel.connection.client.drain_events(timeout=0)
        if self.buffer:
            return self.buffer.popleft()
        message: Message | None = self.queue.get(no_ack=self.no_ack, accept=self.consumer.accept)  # type: ignore[arg-type]
        if message is None:
            raise self.Empty
        return message

    def put(
        self,
        message: object,
        serializer: str | None = None,
        headers: dict[str, Any] | None = None,
        compression: str | None = None,
        routing_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Publish a message.

        Args:
            message: The body.
            serializer: Name of a serializer (default: the producer's, else ``"json"``).
            headers: Headers by name.
            compression: Name or content type of a compression method (default: none).
            routing_key: Routing key.
            **kwargs: Keywords of ``Producer.publish``.
        """
        self.producer.publish(
            message,
            serializer=serializer,
            routing_key=routing_key,
            headers=headers,
            compression=compression,
            **kwargs,
        )

    def clear(self) -> int:
        """Remove the waiting messages. Return their number."""
        return self.consumer.purge()

    def qsize(self) -> int:
        """Return the number of waiting messages."""
        info = self.queue.queue_declare(passive=True)
        return 0 if info is None else info[1]

    def close(self) -> None:
        """Stop consuming. Messages that arrived and were not taken return to the queue, unless ``no_ack``."""
        self.consumer.cancel()
        self._consuming = False
        self._drop_lost()
        if not self.no_ack:
            unseen = list(self.buffer)
            self.buffer.clear()
            return_unseen(unseen)

    def _receive(self, message_data: Any, message: Message) -> None:
        """Keep a message for ``get``."""
        self._keep(message)

    def _keep(self, message: Message) -> None:
        self._drop_lost()
        self.buffer.append(message)

    def _drop_lost(self) -> None:
        """Drop messages of a lost connection or channel: those that need an acknowledgement are redelivered."""
        channel = self.channel
        if isinstance(channel, Channel) and (channel.generation != self._generation or not channel.is_open):
            self._generation = channel.generation
            if not self.no_ack:
                self.buffer.clear()

    def _consume(self) -> None:
        if not self._consuming:
            self.consumer.consume(no_ack=self.no_ack)
            self._consuming = True

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.qsize()

    def __bool__(self) -> bool:
        return True


class SimpleQueue(SimpleBase):
    """Durable queue whose messages have to be acknowledged.

    Args:
        channel: A channel, or a connection for its default channel.
        name: Name of queue, exchange and routing key, or a ``Queue``.
        no_ack: If True, a message counts as acknowledged when the broker sends it.
        queue_opts: Keywords of ``Queue``, over those of the class.
        queue_args: Arguments of the queue under the broker's names, over those of the class.
        exchange_opts: Keywords of ``Exchange``, over those of the class.
        serializer: Serializer of ``put``.
        compression: Compression method of ``put``.
        accept: Serializer names or content types that may be decoded (None: all that are not disabled).

    Example:
        ```py
        with connection.SimpleQueue("jobs") as queue:
            queue.put({"job": 1})
            message = queue.get(timeout=5)
            message.ack()
        ```
    """

    no_ack = False
    queue_opts: ClassVar[dict[str, Any]] = {}
    queue_args: ClassVar[dict[str, Any]] = {}
    exchange_opts: ClassVar[dict[str, Any]] = {"type": "direct"}

    def __init__(
        self,
        channel: Bindable | None,
        name: str | Queue,
        no_ack: bool | None = None,
        queue_opts: dict[str, Any] | None = None,
        queue_args: dict[str, Any] | None = None,
        exchange_opts: dict[str, Any] | None = None,
        serializer: str | None = None,
        compression: str | None = None,
        accept: Iterable[str] | None = None,
    ) -> None:
        if isinstance(name, Queue):
            queue = name
        else:
            queue = entity.Queue(
                name,
                entity.Exchange(name, **{**self.exchange_opts, **(exchange_opts or {})}),
                name,
                queue_arguments={**self.queue_args, **(queue_args or {})},
                **{**self.queue_opts, **(queue_opts or {})},
            )
        no_ack = self.no_ack if no_ack is None else no_ack
        channel = maybe_channel(channel)
        consumer = messaging.Consumer(channel, queue, accept=accept)
        producer = messaging.Producer(
            channel, queue.exchange, serializer=serializer, routing_key=queue.routing_key, compression=compression
        )
        super().__init__(channel, producer, consumer, no_ack)


class SimpleBuffer(SimpleQueue):
    """Queue that is deleted with its connection, whose messages count as acknowledged when they are sent."""

    no_ack = True
    queue_opts: ClassVar[dict[str, Any]] = {"durable": False, "auto_delete": True, "exclusive": True}
    exchange_opts: ClassVar[dict[str, Any]] = {"durable": False, "delivery_mode": "transient", "auto_delete": True}
