"""Queues that are used like those of the standard library."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any, ClassVar

from kombulite._client.batching import return_unseen
from kombulite._sync.consumer import Consumer
from kombulite._sync.producer import Producer
from kombulite.abstract import maybe_channel
from kombulite.entity import Exchange, Queue
from kombulite.message import Message

__all__ = ["SimpleBuffer", "SimpleQueue"]


class SimpleBase:
    """A producer and a consumer of one queue. It is always true, however many messages there are."""

    Empty = Empty
    no_ack = False

    def __init__(self, channel: Any, producer: Producer, consumer: Consumer, no_ack: bool = False) -> None:
        self.channel = maybe_channel(channel)
        self.producer = producer
        self.consumer = consumer
        self.no_ack = no_ack
        self.queue = consumer.queues[0]
        self.buffer: deque[Message] = deque()
        self._consuming = False
        consumer.on_message = self.buffer.append

    def get(self, block: bool = True, timeout: float | None = None) -> Message:
        """The next message. With ``block`` wait for it, ``timeout`` seconds at most (None: until there is one).

        Raises ``queue.Empty``.
        """
        if not block:
            return self.get_nowait()
        self._consume()
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
        """The next message that is there. Raises ``queue.Empty``."""
        if self._consuming and not self.buffer:
            with suppress(TimeoutError):  # the broker may have sent some already
                self.channel.connection.client.drain_events(timeout=0)
        if self.buffer:
            return self.buffer.popleft()
        message: Message | None = self.queue.get(self.no_ack, self.consumer.accept)  # type: ignore[arg-type]
        if message is None:
            raise self.Empty
        return message

    def put(
        self,
        message: Any,
        serializer: str | None = None,
        headers: dict[str, Any] | None = None,
        compression: str | None = None,
        routing_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Publish a message; the arguments are those of ``Producer.publish``."""
        self.producer.publish(
            message,
            serializer=serializer,
            routing_key=routing_key,
            headers=headers,
            compression=compression,
            **kwargs,
        )

    def clear(self) -> int:
        """Remove the messages that wait in the queue. Returns how many."""
        return self.consumer.purge()

    def qsize(self) -> int:
        """How many messages wait in the queue."""
        info = self.queue.queue_declare(passive=True)
        return 0 if info is None else info[1]

    def close(self) -> None:
        """End the consumer. The messages that it got and that were not taken go back, but for those without acks."""
        self.consumer.cancel()
        self._consuming = False
        if not self.no_ack:
            unseen = list(self.buffer)
            self.buffer.clear()
            return_unseen(unseen)

    def _receive(self, message_data: Any, message: Message) -> None:
        """Keep a message for ``get``."""
        self.buffer.append(message)

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
    """A durable queue whose messages have to be acknowledged.

    ``channel``: a channel or connection; ``name``: of queue, exchange and routing key, or a Queue;
    ``queue_opts``, ``queue_args`` (arguments), ``exchange_opts``: over those of the class; ``serializer``,
    ``compression`` for what is put, ``accept`` for what is got.
    """

    no_ack = False
    queue_opts: ClassVar[dict[str, Any]] = {}
    queue_args: ClassVar[dict[str, Any]] = {}
    exchange_opts: ClassVar[dict[str, Any]] = {"type": "direct"}

    def __init__(
        self,
        channel: Any,
        name: str | Queue,
        no_ack: bool | None = None,
        queue_opts: dict[str, Any] | None = None,
        queue_args: dict[str, Any] | None = None,
        exchange_opts: dict[str, Any] | None = None,
        serializer: str | None = None,
        compression: str | None = None,
        accept: Any = None,
    ) -> None:
        if isinstance(name, Queue):
            queue = name
        else:
            queue = Queue(
                name,
                Exchange(name, **{**self.exchange_opts, **(exchange_opts or {})}),
                name,
                queue_arguments={**self.queue_args, **(queue_args or {})},
                **{**self.queue_opts, **(queue_opts or {})},
            )
        no_ack = self.no_ack if no_ack is None else no_ack
        channel = maybe_channel(channel)
        consumer = Consumer(channel, queue, accept=accept)
        producer = Producer(channel, queue.exchange, queue.routing_key, serializer, compression=compression)
        super().__init__(channel, producer, consumer, no_ack)


class SimpleBuffer(SimpleQueue):
    """A queue that goes with its user, whose messages count as acknowledged when they are sent."""

    no_ack = True
    queue_opts: ClassVar[dict[str, Any]] = {"durable": False, "auto_delete": True, "exclusive": True}
    exchange_opts: ClassVar[dict[str, Any]] = {"durable": False, "delivery_mode": "transient", "auto_delete": True}
