"""Exchange types of virtual channels: which queues a message goes to."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from kombulite.utils.text import escape_regex

__all__ = ["DirectExchange", "ExchangeType", "FanoutExchange", "TopicExchange"]

Table = Iterable[tuple[str, Any, str]]


def copies(channel: Any, message: Any, queues: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Give each queue a message of its own.

    The store may keep the dict, and acknowledgements go by the delivery tag: copies that share one would settle each
    other.
    """
    for position, queue in enumerate(queues):
        if position and type(message) is dict and "properties" in message:  # else a test's stand-in
            properties = dict(message["properties"])
            properties["delivery_info"] = dict(properties.get("delivery_info") or {})
            properties["delivery_tag"] = channel._next_delivery_tag()
            yield queue, {**message, "headers": copy.copy(message.get("headers")), "properties": properties}
        else:
            yield queue, message


class ExchangeType:
    """Behaviour of a type of exchange, for one channel.

    Args:
        channel: The channel.
    """

    type: str | None = None

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def lookup(self, table: Table, exchange: str, routing_key: str, default: str | None) -> set[str]:
        """Return the queues of a table of (routing key, pattern, queue) that a message goes to.

        Args:
            table: Entries of (routing key, pattern, queue).
            exchange: Name of the exchange.
            routing_key: The routing key.
            default: The queue of dead letters; None: there is none.
        """
        raise NotImplementedError("subclass responsibility")

    def prepare_bind(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> tuple[str, Any, str]:
        """Return the entry of a binding in the exchange's table.

        Args:
            queue: Name of the queue.
            exchange: Name of the exchange.
            routing_key: The binding's key.
            arguments: Arguments of the binding.
        """
        return routing_key, None, queue

    def equivalent(
        self,
        prev: dict[str, Any],
        exchange: str,
        type: str,
        durable: bool,
        auto_delete: bool,
        arguments: Mapping[str, Any] | None,
    ) -> bool:
        """Return whether an exchange is declared again as it was.

        Args:
            prev: The declaration before.
            exchange: Name of the exchange.
            type: Name of the exchange's type.
            durable: Kept and compared; the store decides what survives.
            auto_delete: If True, it is deleted after its last use, where the transport does so.
            arguments: Arguments under the broker's names; None: none.
        """
        settings = (type, durable, auto_delete, arguments or {})
        return settings == (prev["type"], prev["durable"], prev["auto_delete"], prev["arguments"] or {})

    def _deliver(self, message: Any, queues: list[str], kwargs: dict[str, Any]) -> None:
        channel = self.channel
        if not queues:
            channel.count_unroutable()
        for queue, each in copies(channel, message, queues):
            channel._put(queue, each, **kwargs)


class DirectExchange(ExchangeType):
    """Sends to queues that are bound with the message's routing key."""

    type = "direct"

    def lookup(self, table: Table, exchange: str, routing_key: str, default: str | None) -> set[str]:
        """Return the queues that are bound with this very key.

        Args:
            table: Entries of (routing key, pattern, queue).
            exchange: Name of the exchange.
            routing_key: The routing key.
            default: The queue of dead letters; None: there is none.
        """
        return {queue for key, _, queue in table if key == routing_key}

    def deliver(self, message: Any, exchange: str, routing_key: str, **kwargs: Any) -> None:
        """Put a message into its queues.

        Args:
            message: The message, as ``prepare_message`` made it.
            exchange: Name of the exchange.
            routing_key: The routing key.
            **kwargs: Options of the store.
        """
        self._deliver(message, list(self.channel._lookup(exchange, routing_key)), kwargs)


class TopicExchange(ExchangeType):
    """Sends to queues whose pattern matches: words between dots, ``*`` for one word and ``#`` for any number."""

    type = "topic"

    wildcards: ClassVar[dict[str, str]] = {"*": r"[^\.]+", "#": r".*?"}
    _compiled: ClassVar[dict[str, re.Pattern[str]]] = {}

    def lookup(self, table: Table, exchange: str, routing_key: str, default: str | None) -> set[str]:
        """Return the queues whose pattern matches the key.

        Args:
            table: Entries of (routing key, pattern, queue).
            exchange: Name of the exchange.
            routing_key: The routing key.
            default: The queue of dead letters; None: there is none.
        """
        return {queue for _, pattern, queue in table if self._match(pattern, routing_key)}

    def deliver(self, message: Any, exchange: str, routing_key: str, **kwargs: Any) -> None:
        """Put a message into its queues; into the one of dead letters only if there is no other.

        Args:
            message: The message, as ``prepare_message`` made it.
            exchange: Name of the exchange.
            routing_key: The routing key.
            **kwargs: Options of the store.
        """
        found = [queue for queue in self.channel._lookup(exchange, routing_key) if queue]
        last_resort = self.channel.deadletter_queue
        self._deliver(message, [queue for queue in found if queue != last_resort] or found, kwargs)

    def prepare_bind(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> tuple[str, Any, str]:
        """Return the entry of a binding: its pattern is a regular expression.

        Args:
            queue: Name of the queue.
            exchange: Name of the exchange.
            routing_key: The binding's key.
            arguments: Arguments of the binding.
        """
        return routing_key, self.key_to_pattern(routing_key), queue

    def key_to_pattern(self, rkey: str) -> str:
        """Return the regular expression for a binding's key.

        Args:
            rkey: The binding's key.
        """
        words = escape_regex(rkey, ".#*").split(".")
        return "^" + r"\.".join(self.wildcards.get(word, word) for word in words) + "$"

    def _match(self, pattern: str, string: str) -> re.Match[str] | None:
        compiled = self._compiled.get(pattern)
        if compiled is None:
            compiled = self._compiled[pattern] = re.compile(pattern)
        return compiled.match(string)


class FanoutExchange(ExchangeType):
    """Sends to all queues, where the channel supports it."""

    type = "fanout"

    def lookup(self, table: Table, exchange: str, routing_key: str, default: str | None) -> set[str]:
        """Return all queues that are bound.

        Args:
            table: Entries of (routing key, pattern, queue).
            exchange: Name of the exchange.
            routing_key: The routing key.
            default: The queue of dead letters; None: there is none.
        """
        return {queue for _, _, queue in table}

    def deliver(self, message: Any, exchange: str, routing_key: str, **kwargs: Any) -> None:
        """Hand a message to the channel, or drop it where the channel has no fanout.

        Args:
            message: The message, as ``prepare_message`` made it.
            exchange: Name of the exchange.
            routing_key: The routing key.
            **kwargs: Options of the store.
        """
        if self.channel.supports_fanout:
            self.channel._put_fanout(exchange, message, routing_key, **kwargs)


STANDARD_EXCHANGE_TYPES: dict[str, Any] = {"direct": DirectExchange, "topic": TopicExchange, "fanout": FanoutExchange}
