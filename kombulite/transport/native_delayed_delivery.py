"""Messages that a broker delays by itself: queues whose messages expire after 1, 2, 4, … seconds, one behind another.

The delay's binary digits lead the routing key: the queue of a level holds those messages that have a 1 in its place.
Celery names the exchanges and queues, so that all its workers find them.
"""

from __future__ import annotations

from typing import Any

from kombulite.entity import Exchange, Queue, binding
from kombulite.log import get_logger

__all__ = [
    "bind_queue_to_native_delayed_delivery_exchange",
    "calculate_routing_key",
    "declare_native_delayed_delivery_exchanges_and_queues",
    "level_name",
]

MAX_NUMBER_OF_BITS_TO_USE = 28
MAX_LEVEL = MAX_NUMBER_OF_BITS_TO_USE - 1
CELERY_DELAYED_DELIVERY_EXCHANGE = "celery_delayed_delivery"

logger = get_logger(__name__)


def level_name(level: int, prefix: str | None = None) -> str:
    """Return the name of a level's exchange and queue, in which messages wait ``2 ** level`` seconds.

    Args:
        level: Number of the level, from 0.
        prefix: Text before kombu's name, with ``_`` behind it; None: none.

    Raises:
        ValueError: ``level`` is negative.
    """
    if level < 0:
        raise ValueError("level must be a non-negative number")
    return _prefixed(f"celery_delayed_{level}", prefix)


def _celery_delayed_delivery_exchange(prefix: str | None = None) -> str:
    """Return the name of the exchange that messages leave the levels for."""
    return _prefixed(CELERY_DELAYED_DELIVERY_EXCHANGE, prefix)


def declare_native_delayed_delivery_exchanges_and_queues(
    connection: Any, queue_type: str, prefix: str | None = None
) -> None:
    """Declare the exchanges and queues of all levels.

    Args:
        connection: The ``Connection``.
        queue_type: ``classic`` or ``quorum``.
        prefix: Text before kombu's names, with ``_`` behind it; None: none.

    Raises:
        ValueError: ``queue_type`` is neither.
    """
    if queue_type not in ("classic", "quorum"):
        raise ValueError("queue_type must be either classic or quorum")
    channel = connection.channel()
    last = _celery_delayed_delivery_exchange(prefix)
    for level in range(MAX_LEVEL, -1, -1):
        name = level_name(level, prefix)
        arguments = {
            "x-queue-type": queue_type,
            "x-overflow": "reject-publish",
            "x-message-ttl": 2**level * 1000,
            "x-dead-letter-exchange": level_name(level - 1, prefix) if level else last,
        }
        if queue_type == "quorum":
            arguments["x-dead-letter-strategy"] = "at-least-once"
        waiting = binding(Exchange(name, "topic"), _pattern(level, "1"))
        Queue(name, bindings=[waiting], queue_arguments=arguments)(channel).declare()
    for level in range(MAX_LEVEL, -1, -1):
        following = Exchange(level_name(level - 1, prefix) if level else last, "topic")(channel)
        following.declare()
        following.bind_to(level_name(level, prefix), routing_key=_pattern(level, "0"))


def bind_queue_to_native_delayed_delivery_exchange(connection: Any, queue: Queue, prefix: str | None = None) -> None:
    """Bind a queue's exchanges so that delayed messages reach the queue.

    Direct exchanges cannot be bound: each is skipped with a warning.

    Args:
        connection: The ``Connection``.
        queue: The queue, with its exchange or bindings.
        prefix: Text before kombu's names, with ``_`` behind it; None: none.
    """
    channel = connection.channel()
    bound = queue(channel)
    for each in bound.bindings or [binding(bound.exchange, bound.routing_key)]:
        exchange = each.exchange
        assert isinstance(exchange, Exchange)
        if exchange.type == "direct":
            logger.warning(
                "Exchange %s of queue %s is a direct one: it cannot have delayed messages", exchange.name, queue.name
            )
            continue
        key = each.routing_key if each.routing_key.startswith("#") else f"#.{each.routing_key}"
        exchange(channel).bind_to(_celery_delayed_delivery_exchange(prefix), routing_key=key)
        bound.bind_to(exchange, routing_key=key)


def calculate_routing_key(countdown: int, routing_key: str) -> str:
    """Return the routing key for a delay, which replaces that of an earlier one.

    Args:
        countdown: The delay in seconds, from 0 to 2 ** 28 - 1. kombu refuses 0, which is what Celery makes of less than
            a second; a retry so soon would then fail.
        routing_key: The message's routing key.

    Raises:
        ValueError: The delay is out of range, or the routing key is empty.
    """
    if not 0 <= countdown < 2**MAX_NUMBER_OF_BITS_TO_USE:
        raise ValueError(f"countdown must be at least 0 and below {2**MAX_NUMBER_OF_BITS_TO_USE}, got {countdown}")
    if not routing_key:
        raise ValueError("routing_key must be non-empty")
    words = routing_key.split(".")
    if len(words) > MAX_NUMBER_OF_BITS_TO_USE and all(word in ("0", "1") for word in words[:MAX_NUMBER_OF_BITS_TO_USE]):
        routing_key = ".".join(words[MAX_NUMBER_OF_BITS_TO_USE:])
    return ".".join([*f"{int(countdown):0{MAX_NUMBER_OF_BITS_TO_USE}b}", routing_key])


def _prefixed(name: str, prefix: str | None) -> str:
    return f"{prefix}_{name}" if prefix else name


def _pattern(level: int, digit: str) -> str:
    """Return the binding key of all routing keys with a given digit in a level's position."""
    return "*." * (MAX_LEVEL - level) + f"{digit}.#"
