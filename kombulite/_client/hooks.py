"""Hooks, and what they are put around. The public names are in ``kombulite.hooks``.

While no hook is installed this module is not imported, and nothing on the way of a message asks for it. With the first
one the channels get a ``HookedTransport`` in the place of their own, and the consumers' callbacks one around them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from kombulite._client.interfaces import Consuming
from kombulite._core import Delivery
from kombulite.brokers.base import Transport
from kombulite.message import Message

Around = AbstractContextManager[Any]


class Outgoing:
    """A message that is about to be published.

    ``connection``; ``exchange``; ``routing_key``; ``size``: bytes in the body as it travels; ``headers``: a dict of its
    own, sent as it is when the hook's part before the publishing ends; ``mandatory``; ``error``: why it was not taken,
    where many are sent together (None if it was, or that is not known yet).
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
        """Bytes in the body as it travels."""
        return len(self._delivery.body)

    @property
    def properties(self) -> dict[str, Any]:
        """The properties that are set, by name; a copy."""
        return self._delivery.properties.as_dict()

    def delivery(self) -> Delivery:
        """What is published: with the headers as they are now."""
        sent = self._delivery
        if self.headers == (sent.properties.headers or {}):
            return sent
        properties = sent.properties.replace(headers=dict(self.headers))
        return Delivery(sent.exchange, sent.routing_key, properties, sent.body)


class Hook:
    """What is called when messages are published and consumed. Override what you want to see.

    Those that return a context manager are around what they tell of: an error is raised inside it, which it has to let
    pass. What a hook itself raises goes to the program. A hook may be called by several threads at once.
    """

    def installed(self, connection: Any) -> None:
        """It was installed on a connection."""

    def publish(self, outgoing: Outgoing) -> Around:
        """Around the publishing of one message; ``retry`` comes here for each try. Headers may be added on entering."""
        return nullcontext()

    def publish_many(self, outgoing: Sequence[Outgoing]) -> Around:
        """Around the sending of messages by ``publish_many``, a thousand at a time, or at the end of a ``batch()``: at
        least one.

        Headers may be added on entering. Those that were refused have an ``error`` on leaving.
        """
        return nullcontext()

    def collect(self, outgoing: Outgoing) -> None:
        """A message was published within a ``batch()``, or a transaction (``via``), and will be sent later.

        Headers may be added.
        """

    def consume(self, message: Message, queue: str) -> Around:
        """Around a consumer's callback, and decoding. On leaving ``message.state`` tells what became of the message."""
        return nullcontext()

    def get(self, message: Message, queue: str) -> None:
        """A message was fetched by ``basic_get``, as by ``Queue.get`` and ``SimpleQueue.get(block=False)``."""


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
    ) -> None:
        """As ``Transport.publish``."""
        outgoing = Outgoing(self._connection, delivery, mandatory)
        with self._hook.publish(outgoing):
            self._transport.publish(channel, outgoing.delivery(), mandatory, timeout, confirm_timeout)

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


class Hooks:
    """The hooks of one connection, the first outermost: what its channels, consumers and batches go through."""

    def __init__(self, connection: Any, hooks: tuple[Hook, ...]) -> None:
        self._connection = connection
        self._hooks = hooks

    def __iter__(self) -> Iterator[Hook]:
        return iter(self._hooks)

    def observe(self, transport: Any) -> Any:
        """What stands in the place of a transport."""
        for hook in reversed(self._hooks):
            transport = HookedTransport(hook, self._connection, transport)
        return transport

    def around(self, callback: Callable[[Message], Any], subscription: Consuming) -> Callable[[Message], Any]:
        """What stands in the place of a consumer's callback."""
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
        """A message goes into a batch; returns it with the headers that were added."""
        for hook in self._hooks:
            outgoing = Outgoing(self._connection, delivery, mandatory)
            hook.collect(outgoing)
            delivery = outgoing.delivery()
        return delivery

    def get(self, message: Message, queue: str) -> None:
        """A message was fetched."""
        for hook in self._hooks:
            hook.get(message, queue)


def _around(hook: Hook, callback: Callable[[Message], Any], subscription: Consuming) -> Callable[[Message], Any]:
    def consume(message: Message) -> Any:
        with hook.consume(message, subscription.queue):  # whose name may change with the connection
            return callback(message)

    return consume
