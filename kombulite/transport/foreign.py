"""Transports written for kombu's interface, with the verbs of kombulite's own: a thread runs them for an event loop.

The class is wider than others: the verbs of a broker are as many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import count
from typing import Any, ClassVar

from kombulite._client.dead_letters import delivery_of
from kombulite._core import Delivery, is_channel_open
from kombulite.brokers.base import ExchangeSpec, Outcome, QueueInfo, QueueSpec, Settings, Transport
from kombulite.connection import Connection, error_classes
from kombulite.exceptions import ChannelError, error_for_code
from kombulite.transport.adapter import ChannelVerbs


class ForeignTransport(Transport):
    """A connection of a transport of others. Made by ``foreign_transport``."""

    original: ClassVar[Any]  #: the class that was written for kombu
    confirms = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._connection = Connection(
            settings.hostname,
            settings.userid,
            settings.password,
            settings.virtual_host,
            settings.port,
            ssl=settings.ssl,
            transport=self.original,
            connect_timeout=settings.connect_timeout,
            transport_options=settings.options,
            login_method=settings.login_method,
            heartbeat=settings.heartbeat,
        )
        self._numbers = count(1)
        self._channels: dict[int, ChannelVerbs] = {}
        self._events: deque[Delivery] = deque()

    # --- the connection

    def connect(self) -> None:
        """Open the connection."""
        self._connection.connect()

    def close(self) -> None:
        """Close the connection and its channels."""
        self._channels.clear()
        self._connection.release()

    def collect(self) -> None:
        """Drop the connection."""
        self._channels.clear()
        self._connection.collect()

    @property
    def connected(self) -> bool:
        """Whether the connection is open, as far as the transport knows."""
        return self._connection.connected

    def receive(self, timeout: float | None) -> Sequence[Delivery]:
        """Return the next messages; none if none came in time."""
        if not self._events:
            transport = self._connection.transport
            with suppress(TimeoutError):
                transport.drain_events(self._connection.connection, timeout=timeout)
        found = tuple(self._events)
        self._events.clear()
        return found

    # --- channels

    def open_channel(self, tag_offset: int = 0) -> int:
        """Open a channel."""
        number = next(self._numbers)
        self._channels[number] = ChannelVerbs(self._connection.channel())
        return number

    def close_channel(self, channel: int) -> None:
        """Close a channel."""
        verbs = self._channels.pop(channel, None)
        if verbs is not None:
            self._events = deque(each for each in self._events if each.channel != channel)
            verbs.close_channel(channel)

    def channel_is_open(self, channel: int) -> bool:
        """Return whether a channel is open still."""
        verbs = self._channels.get(channel)
        return verbs is not None and is_channel_open(verbs.raw)

    def qos(self, channel: int, prefetch_size: int, prefetch_count: int, apply_global: bool) -> None:
        """Bound the messages that are delivered and not settled."""
        self._channels[channel].qos(channel, prefetch_size, prefetch_count, apply_global)

    def flow(self, channel: int, active: bool) -> None:
        """Pause deliveries, or let them go on."""
        self._channels[channel].raw.flow(active)

    def confirm(self, channel: int) -> None:
        """Have publishes confirmed, where the channel can do that."""
        self._channels[channel].confirm(channel)

    # --- exchanges, queues, bindings

    def declare_exchange(self, channel: int, spec: ExchangeSpec, passive: bool) -> None:
        """Create an exchange, or assert it."""
        with _named_errors():
            self._channels[channel].raw.exchange_declare(
                exchange=spec.name,
                type=spec.type,
                durable=spec.durable,
                auto_delete=spec.auto_delete,
                arguments=spec.arguments,
                passive=passive,
            )

    def delete_exchange(self, channel: int, name: str, if_unused: bool) -> None:
        """Delete an exchange."""
        self._channels[channel].raw.exchange_delete(name, if_unused)

    def declare_queue(self, channel: int, spec: QueueSpec, passive: bool) -> QueueInfo:
        """Create a queue, or assert it."""
        with _named_errors():
            found = self._channels[channel].raw.queue_declare(
                queue=spec.name,
                passive=passive,
                durable=spec.durable,
                exclusive=spec.exclusive,
                auto_delete=spec.auto_delete,
                arguments=spec.arguments,
            )
        return QueueInfo(*found)

    def delete_queue(self, channel: int, name: str, if_unused: bool, if_empty: bool) -> int:
        """Delete a queue; returns the messages gone with it, if the transport says how many."""
        return int(self._channels[channel].raw.queue_delete(name, if_unused, if_empty) or 0)

    def purge(self, channel: int, queue: str) -> int:
        """Remove the messages that wait; returns how many."""
        return int(self._channels[channel].raw.queue_purge(queue) or 0)

    def bind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        """Bind a queue, or an exchange, to an exchange."""
        raw = self._channels[channel].raw
        if to_exchange:
            raw.exchange_bind(destination, source, routing_key, arguments=arguments)
        else:
            raw.queue_bind(destination, source, routing_key, arguments=arguments)

    def unbind(
        self,
        channel: int,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool = False,
    ) -> None:
        """Take a binding away."""
        raw = self._channels[channel].raw
        if to_exchange:
            raw.exchange_unbind(destination, source, routing_key, arguments=arguments)
        else:
            raw.queue_unbind(destination, source, routing_key, arguments=arguments)

    # --- publishing

    def publish(
        self,
        channel: int,
        delivery: Delivery,
        mandatory: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Hand a message to the broker."""
        self._channels[channel].publish(channel, delivery, mandatory, timeout, confirm_timeout)

    def publish_many(
        self, channel: int, deliveries: Sequence[Delivery], mandatory: bool = False, timeout: float | None = None
    ) -> list[tuple[int, Exception]]:
        """Publish some messages; returns those refused, as (index, exception)."""
        return self._channels[channel].publish_many(channel, deliveries, mandatory, timeout)

    # --- consuming

    def consume(
        self,
        channel: int,
        queue: str,
        consumer_tag: str,
        no_ack: bool,
        exclusive: bool,
        arguments: Mapping[str, Any] | None,
    ) -> str:
        """Start a consumer; returns its tag."""
        arrive = partial(self._arrive, channel, consumer_tag)
        self._channels[channel].raw.basic_consume(
            queue, no_ack, callback=arrive, consumer_tag=consumer_tag, arguments=arguments
        )
        return consumer_tag

    def _arrive(self, channel: int, consumer_tag: str, message: Any) -> None:
        verbs = self._channels.get(channel)
        if verbs is not None:
            self._events.append(_delivery(verbs.raw, message, channel, consumer_tag))

    def cancel(self, channel: int, consumer_tag: str) -> None:
        """End a consumer."""
        self._channels[channel].raw.basic_cancel(consumer_tag)

    def get(self, channel: int, queue: str, no_ack: bool) -> Delivery | None:
        """Take the next message of a queue."""
        raw = self._channels[channel].raw
        message = raw.basic_get(queue, no_ack=no_ack)
        return None if message is None else _delivery(raw, message, channel, None)

    def settle(self, channel: int, delivery_tag: Any, outcome: Outcome, multiple: bool = False) -> None:
        """Say what becomes of a delivery."""
        self._channels[channel].settle(channel, delivery_tag, outcome, multiple)

    def settle_many(self, channel: int, delivery_tags: Sequence[Any], outcome: Outcome) -> None:
        """Say what becomes of some deliveries."""
        self._channels[channel].settle_many(channel, delivery_tags, outcome)

    def recover(self, channel: int) -> None:
        """Put all that is outstanding back into its queues."""
        self._channels[channel].raw.basic_recover(requeue=True)


def _delivery(raw: Any, message: Any, channel: int, consumer_tag: str | None) -> Delivery:
    """Return a message of others as one of kombulite's."""
    convert = getattr(raw, "message_to_python", None)
    if convert is not None:
        message = convert(message)
    delivery = delivery_of(message).copy()
    delivery.channel, delivery.consumer_tag, delivery.delivery_tag = channel, consumer_tag, message.delivery_tag
    deliveries = getattr(message, "delivery_count", 0)
    delivery.delivery_count = deliveries if isinstance(deliveries, int) else 0
    delivery.redelivered = delivery.delivery_count > 0 or bool(message.delivery_info.get("redelivered"))
    return delivery


@contextmanager
def _named_errors() -> Iterator[None]:
    """Raise NotFound and its like where a transport raises a ChannelError with the code."""
    try:
        yield
    except ChannelError as error:
        code = str(error.reply_code)  # kombu's own have text
        if type(error) is not ChannelError or not code.isdigit():
            raise
        text, method = error.reply_text or "", (error.method_sig or (0, 0), error.method_name)
        raise error_for_code(int(code), text, *method, ChannelError) from error


@cache
def foreign_transport(cls: Any) -> type[Transport]:
    """Return the class of connections of a transport of others, with that one's error classes."""
    names = ("connection_errors", "channel_errors", "recoverable_connection_errors", "recoverable_channel_errors")
    return type(
        f"Foreign{cls.__name__}",
        (ForeignTransport,),
        {
            "original": cls,
            "driver_type": getattr(cls, "driver_type", "N/A"),
            "driver_name": getattr(cls, "driver_name", "N/A"),
            **{name: error_classes(cls, name) for name in names},
        },
    )
