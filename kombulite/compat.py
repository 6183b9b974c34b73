"""The older classes of kombu's API, over the ones of today."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any

from kombulite import messaging
from kombulite._client.interfaces import Bindable
from kombulite.entity import Exchange, Queue
from kombulite.message import Message

__all__ = ["Consumer", "ConsumerSet", "Publisher", "entry_to_queue"]

#: A queue from plain settings.
entry_to_queue = Queue.from_dict


class Publisher(messaging.Producer):
    """A producer for one exchange, described by its settings.

    Args:
        connection: The connection.
        exchange: The exchange, or its name.
        routing_key: Routing key of messages that name none.
        exchange_type: Type of an exchange that is a name (None: ``direct``).
        durable: If True, that exchange survives a restart of the broker (None: True).
        auto_delete: If True, that exchange is deleted with its last binding (None: False).
        channel: The channel to publish on (None: the connection's default channel).
        **kwargs: Keywords of ``Producer``.
    """

    exchange: Any = ""
    exchange_type = "direct"
    routing_key = ""
    durable = True
    auto_delete = False
    _closed = False

    def __init__(
        self,
        connection: Any,
        exchange: Exchange | str | None = None,
        routing_key: str | None = None,
        exchange_type: str | None = None,
        durable: bool | None = None,
        auto_delete: bool | None = None,
        channel: Bindable | None = None,
        **kwargs: Any,
    ) -> None:
        exchange = exchange or self.exchange
        self.exchange_type = exchange_type or self.exchange_type
        self.durable = self.durable if durable is None else durable
        self.auto_delete = self.auto_delete if auto_delete is None else auto_delete
        if not isinstance(exchange, Exchange):
            exchange = Exchange(exchange, type=self.exchange_type, durable=self.durable, auto_delete=self.auto_delete)
        super().__init__(channel or connection, exchange, routing_key, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """Publish a message, and return what ``publish`` returns.

        Args:
            *args: Arguments of ``publish``.
            **kwargs: Keywords of ``publish``.
        """
        return self.publish(*args, **kwargs)

    def close(self) -> None:
        """Close the publisher; its channel stays open."""
        super().close()
        self._closed = True

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self.close()

    @property
    def backend(self) -> Any:
        """The channel."""
        return self.channel


class Consumer(messaging.Consumer):
    """A consumer of one queue, described by its settings, on a channel of its own.

    Args:
        connection: The connection.
        queue: Name of the queue.
        exchange: The exchange that the queue is bound to, or its name.
        routing_key: Routing key of the binding.
        exchange_type: Type of an exchange that is a name (None: ``direct``).
        durable: If True, queue and exchange survive a restart of the broker (None: True).
        exclusive: If True, only this connection may use the queue (None: False).
        auto_delete: If True, the queue is deleted with its last consumer (None: False).
        **kwargs: Keywords of ``kombulite.Consumer``.
    """

    queue = ""
    exchange: Any = ""
    routing_key = ""
    exchange_type = "direct"
    durable = True
    exclusive = False
    auto_delete = False
    _closed = False

    def __init__(
        self,
        connection: Any,
        queue: str | None = None,
        exchange: Exchange | str | None = None,
        routing_key: str | None = None,
        exchange_type: str | None = None,
        durable: bool | None = None,
        exclusive: bool | None = None,
        auto_delete: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.backend = connection.channel()
        self.durable = self.durable if durable is None else durable
        self.exclusive = self.exclusive if exclusive is None else exclusive
        self.auto_delete = self.auto_delete if auto_delete is None else auto_delete
        self.queue = queue or self.queue
        self.exchange = exchange or self.exchange
        self.exchange_type = exchange_type or self.exchange_type
        self.routing_key = routing_key or self.routing_key
        bound_to = self.exchange
        if not isinstance(bound_to, Exchange):
            bound_to = Exchange(bound_to, type=self.exchange_type, durable=self.durable, auto_delete=self.auto_delete)
        made = Queue(
            self.queue,
            exchange=bound_to,
            routing_key=self.routing_key,
            durable=self.durable,
            exclusive=self.exclusive,
            auto_delete=self.auto_delete,
        )
        super().__init__(self.backend, made, **kwargs)

    def revive(self, channel: Bindable | None) -> None:
        """Go on with another channel.

        Args:
            channel: The new channel.
        """
        self.backend = channel
        super().revive(channel)

    def close(self) -> None:
        """Stop consuming, and close the channel."""
        self.cancel()
        self.backend.close()
        self._closed = True

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator[Message | None]:
        return self.iterqueue(infinite=True)

    def fetch(self, no_ack: bool | None = None, enable_callbacks: bool = False) -> Message | None:
        """Return the next message that waits, or None.

        Args:
            no_ack: If True, the message counts as acknowledged when the broker sends it (None: the consumer's value).
            enable_callbacks: If True, the callbacks receive the message too.
        """
        message = self.queues[0].get(self.no_ack if no_ack is None else no_ack)
        if message is not None and enable_callbacks:
            self.receive(message.payload, message)
        found: Message | None = message
        return found

    def process_next(self) -> None:
        """Raise NotImplementedError: use ``fetch(enable_callbacks=True)``."""
        raise NotImplementedError("Use fetch(enable_callbacks=True)")

    def discard_all(self, filterfunc: Callable[..., Any] | None = None) -> int:
        """Remove the messages that wait. Return how many.

        Args:
            filterfunc: Must be None.

        Raises:
            NotImplementedError: ``filterfunc`` is given.
        """
        if filterfunc is not None:
            raise NotImplementedError("discard_all does not implement filters")
        return self.purge()

    def iterconsume(self, limit: int | None = None, no_ack: bool | None = None) -> Iterator[Any]:
        """Return a generator that waits for an event at each step, and yields what ``drain_events`` returned.

        Args:
            limit: Number of events (None: without end).
            no_ack: If True, messages count as acknowledged when the broker sends them (None: the consumer's value).
        """
        return _iterconsume(self.connection, self, no_ack, limit)

    def wait(self, limit: int | None = None) -> list[Any]:
        """Wait for events. Return what ``drain_events`` returned for each.

        Args:
            limit: Number of events (None: without end).
        """
        return list(self.iterconsume(limit))

    def iterqueue(self, limit: int | None = None, infinite: bool = False) -> Iterator[Message | None]:
        """Return a generator of messages that wait.

        Args:
            limit: Largest number of messages (None: without limit).
            infinite: If True, it yields None where no message waits; else it ends there.
        """
        for _ in range(limit) if limit else count():
            message = self.fetch()
            if message is None and not infinite:
                return
            yield message


class ConsumerSet(messaging.Consumer):
    """A consumer of several queues.

    Args:
        connection: The connection.
        from_dict: Settings of queues by name, as ``entry_to_queue`` takes them.
        consumers: Consumers whose queues are consumed too.
        channel: The channel to consume on (None: a new one).
        **kwargs: Keywords of ``kombulite.Consumer``.
    """

    def __init__(
        self,
        connection: Any,
        from_dict: Mapping[str, Mapping[str, Any]] | None = None,
        consumers: Iterable[messaging.Consumer] | None = None,
        channel: Bindable | None = None,
        **kwargs: Any,
    ) -> None:
        self._provided_channel = bool(channel)
        self.backend = channel or connection.channel()
        queues = [queue for consumer in consumers or () for queue in consumer.queues]
        queues += [Queue.from_dict(name, **settings) for name, settings in (from_dict or {}).items()]
        super().__init__(self.backend, queues, **kwargs)

    def iterconsume(self, limit: int | None = None, no_ack: bool = False) -> Iterator[Any]:
        """Return a generator that waits for an event at each step, and yields what ``drain_events`` returned.

        Args:
            limit: Number of events (None: without end).
            no_ack: If True, messages count as acknowledged when the broker sends them.
        """
        return _iterconsume(self.connection, self, no_ack, limit)

    def discard_all(self) -> int:
        """Remove the messages that wait. Return how many."""
        return self.purge()

    def add_consumer_from_dict(self, queue: str, **options: Any) -> Queue:
        """Add a queue from settings, and return it.

        Args:
            queue: Its name.
            **options: Its settings, as ``entry_to_queue`` takes them.
        """
        return self.add_queue(Queue.from_dict(queue, **options))

    def add_consumer(self, consumer: messaging.Consumer) -> None:
        """Add the queues of a consumer.

        Args:
            consumer: The consumer.
        """
        for queue in consumer.queues:
            self.add_queue(queue)

    def revive(self, channel: Bindable | None) -> None:
        """Go on with another channel.

        Args:
            channel: The new channel.
        """
        self.backend = channel
        super().revive(channel)

    def close(self) -> None:
        """Stop consuming, and close the channel if it is its own."""
        self.cancel()
        if not self._provided_channel:
            self.channel.close()


def _iterconsume(
    connection: Any, consumer: messaging.Consumer, no_ack: bool | None = False, limit: int | None = None
) -> Iterator[Any]:
    consumer.consume(no_ack=no_ack)
    for _ in range(limit) if limit else count():
        yield connection.drain_events()
