"""Hooks, and what they are put around. The public names are in ``kombulite.hooks``.

While no hook is installed this module is not imported, and nothing on the way of a message asks for it. With the first
one the channels get a ``HookedTransport`` in the place of their own, and the consumers' callbacks one around them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from kombulite._client.interfaces import Connection, Consuming
from kombulite._core import Delivery
from kombulite.brokers.base import Transport
from kombulite.message import Message

Around = AbstractContextManager[Any]


class Outgoing:
    """Message that is about to be published.

    Attributes:
        connection: The connection.
        exchange: Name of the exchange, ``""`` for the default one.
        routing_key: The routing key.
        size: Bytes of the body as it is sent.
        headers: A dict of its own, sent as it is when the hook's code before the publish ends.
        mandatory: True if the message returns if no queue takes it.
        error: If many messages are sent together, the reason why this one was refused (None: it was not, or it is
            not known yet).
    """

    __slots__ = ("_delivery", "connection", "error", "headers", "mandatory")

    def __init__(self, connection: Any, delivery: Delivery, mandatory: bool) -> None:
        self.connection = connection
        self.mandatory = mandatory
        self.headers: dict[str, Any] = dict(delivery.properties.headers or {})
        self.error: Exception | None = None
        self._delivery = delivery

    @property
    def exchange(self) -> str:
        """Name of the exchange, ``""`` for the default one."""
        return self._delivery.exchange

    @property
    def routing_key(self) -> str:
        """The routing key."""
        return self._delivery.routing_key

    @property
    def size(self) -> int:
        """Bytes of the body as it is sent."""
        return self._delivery.body_size

    @property
    def properties(self) -> dict[str, Any]:
        """A copy of the properties that are set, by name."""
        return self._delivery.properties.as_dict()

    def delivery(self) -> Delivery:
        """Return the message to publish, with the headers as they are now."""
        sent = self._delivery
        if self.headers == (sent.properties.headers or {}):
            return sent
        properties = sent.properties.replace(headers=dict(self.headers))
        return Delivery(sent.exchange, sent.routing_key, properties, sent.body)


class Hook:
    """Hook: code that runs when messages are published and consumed. Override the methods you need.

    Methods that return a context manager run around the event: an error is raised inside it and must pass. An error of
    the hook itself goes to the program. Hooks nest; the first one added is outermost. Several threads may call a hook
    at once.
    """

    def installed(self, connection: Connection) -> None:
        """React to the installation on a connection.

        Args:
            connection: The connection.
        """

    def publish(self, outgoing: Outgoing) -> Around:
        """Run around the publishing of one message; with ``retry`` around each attempt. It may add headers on entering.

        Args:
            outgoing: The message.
        """
        return nullcontext()

    def publish_many(self, outgoing: Sequence[Outgoing]) -> Around:
        """Run around the sending of messages: by ``publish_many`` a thousand at a time, or at the end of a ``batch()``.

        It may add headers on entering. On leaving, refused messages have an ``error``.

        Args:
            outgoing: The messages, at least one.
        """
        return nullcontext()

    def collect(self, outgoing: Outgoing) -> None:
        """React to a message that is published inside a ``batch()`` or a transaction (``via``), and sent later.

        It may add headers.

        Args:
            outgoing: The message.
        """

    def consume(self, message: Message, queue: str) -> Around:
        """Run around a consumer's callback, and decoding. On leaving, ``message.state`` is what became of the message.

        Args:
            message: The message.
            queue: Name of the queue.
        """
        return nullcontext()

    def get(self, message: Message, queue: str) -> None:
        """React to a message that was fetched, as by ``Queue.get`` and ``SimpleQueue.get(block=False)``.

        Args:
            message: The message.
            queue: Name of the queue.
        """


class HookedTransport:
    """A transport with a hook around publishing. All else is the transport's."""

    def __init__(self, hook: Hook, connection: Any, transport: Transport) -> None:
        self._hook = hook
        self._connection = connection
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> Any:
        """As ``Transport.publish``."""
        outgoing = Outgoing(self._connection, delivery, mandatory)
        with self._hook.publish(outgoing):
            return self._transport.publish(channel, outgoing.delivery(), mandatory, timeout, confirm_timeout)

    def prepare_via(
        self, channel: int, via: Any, delivery: Delivery, mandatory: bool = False
    ) -> Callable[[], Coroutine[Any, Any, None] | None]:
        """As ``Transport.prepare_via``: the message is sent later, if at all."""
        outgoing = Outgoing(self._connection, delivery, mandatory)
        self._hook.collect(outgoing)
        return self._transport.prepare_via(channel, via, outgoing.delivery(), mandatory)

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        """As ``Transport.publish_many``."""
        many = [Outgoing(self._connection, delivery, mandatory) for delivery in deliveries]
        with self._hook.publish_many(many):
            refused = self._transport.publish_many(channel, [each.delivery() for each in many], mandatory, timeout)
            for index, error in refused:
                many[index].error = error
        return refused

    def begin_publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> None:
        """Begin nothing: the hook runs around the whole of ``publish_many``."""


class Hooks:
    """Hooks of one connection, the first one outermost."""

    def __init__(self, connection: Any, hooks: tuple[Hook, ...]) -> None:
        self._connection = connection
        self._hooks = hooks

    def __iter__(self) -> Iterator[Hook]:
        return iter(self._hooks)

    def observe(self, transport: Any) -> Any:
        """Return the transport with the hooks around it.

        Args:
            transport: The transport.
        """
        for hook in reversed(self._hooks):
            transport = HookedTransport(hook, self._connection, transport)
        return transport

    def around(self, callback: Callable[[Message], Any], subscription: Consuming) -> Callable[[Message], Any]:
        """Return a consumer's callback with the hooks around it.

        Args:
            callback: The callback.
            subscription: The consumer.
        """
        for hook in reversed(self._hooks):
            callback = _around(hook, callback, subscription)
        return callback

    def publishing(self, delivery: Delivery, mandatory: bool) -> Iterator[tuple[Outgoing, Around]]:
        """Give what is around the publishing of a message, the outermost first; each sees what those before added."""
        for hook in self._hooks:
            outgoing = Outgoing(self._connection, delivery, mandatory)
            yield outgoing, hook.publish(outgoing)
            delivery = outgoing.delivery()

    def publishing_many(
        self, deliveries: Sequence[Delivery], mandatory: bool
    ) -> Iterator[tuple[list[Outgoing], Around]]:
        """Give what is around the sending of messages, in the same way."""
        for hook in self._hooks:
            many = [Outgoing(self._connection, delivery, mandatory) for delivery in deliveries]
            yield many, hook.publish_many(many)
            deliveries = [outgoing.delivery() for outgoing in many]

    def collect(self, delivery: Delivery, mandatory: bool) -> Delivery:
        """Pass a message of a batch to the hooks, and return it with the headers that they added.

        Args:
            delivery: The message.
            mandatory: If True, the broker returns the message if no queue takes it.
        """
        for hook in self._hooks:
            outgoing = Outgoing(self._connection, delivery, mandatory)
            hook.collect(outgoing)
            delivery = outgoing.delivery()
        return delivery

    def get(self, message: Message, queue: str) -> None:
        """Pass a fetched message to the hooks.

        Args:
            message: The message.
            queue: Name of the queue.
        """
        for hook in self._hooks:
            hook.get(message, queue)


def _around(hook: Hook, callback: Callable[[Message], Any], subscription: Consuming) -> Callable[[Message], Any]:
    def consume(message: Message) -> Any:
        with hook.consume(message, subscription.queue):  # whose name may change with the connection
            return callback(message)

    return consume
