"""Limits of a queue by its arguments, and what becomes of the messages that they drop, by RabbitMQ's rules.

Used by every broker that is one itself: memory, SQL.
"""

from __future__ import annotations

from time import time
from typing import Any, NamedTuple

from kombulite import exceptions
from kombulite._core import Delivery
from kombulite.brokers.base import ExchangeSpec, QueueSpec

#: Of a time to live: what a time in seconds since 1970 can be added to.
MAX_MILLISECONDS = (1 << 63) - 1


class Limits(NamedTuple):
    """What a queue's arguments ask for; times in seconds."""

    message_ttl: float | None
    expires: float | None
    max_length: int | None
    max_length_bytes: int | None
    max_priority: int
    reject_publish: bool
    dead_letter_exchange: str | None
    dead_letter_routing_key: str | None

    @classmethod
    def of(cls, spec: QueueSpec) -> Limits:
        """Read and check the arguments of a queue. Raises PreconditionFailed."""
        arguments = spec.arguments or {}

        def number(name: str, least: int = 0, most: int | None = None) -> Any:
            value = arguments.get(name)
            if value is None:
                return None
            if isinstance(value, bool) or not isinstance(value, int) or value < least or (most and value > most):
                raise exceptions.PreconditionFailed(f"invalid arg '{name}' for queue '{spec.name}': {value!r}")
            return value

        def name(name: str) -> Any:
            value = arguments.get(name)
            if value is not None and not isinstance(value, str):
                raise exceptions.PreconditionFailed(f"invalid arg '{name}' for queue '{spec.name}': {value!r}")
            return value

        if name("x-dead-letter-routing-key") is not None and name("x-dead-letter-exchange") is None:
            raise exceptions.PreconditionFailed(f"queue '{spec.name}' has a dead letter key, and no exchange for it")
        overflow = arguments.get("x-overflow", "drop-head")
        if overflow not in ("drop-head", "reject-publish", "reject-publish-dlx"):
            raise exceptions.PreconditionFailed(f"invalid arg 'x-overflow' for queue '{spec.name}': {overflow!r}")
        message_ttl = number("x-message-ttl", most=MAX_MILLISECONDS)
        expires = number("x-expires", least=1, most=MAX_MILLISECONDS)
        return cls(
            message_ttl=None if message_ttl is None else message_ttl / 1000,
            expires=None if expires is None else expires / 1000,
            max_length=number("x-max-length"),
            max_length_bytes=number("x-max-length-bytes"),
            max_priority=number("x-max-priority", most=255) or 0,
            reject_publish=overflow != "drop-head",
            dead_letter_exchange=name("x-dead-letter-exchange"),
            dead_letter_routing_key=name("x-dead-letter-routing-key"),
        )


def reports_expiry(delivery: Delivery) -> bool:
    """Return whether a message is a task of Celery's that expires, by its headers: the worker wants it though late.

    It marks such a task as revoked: a client that waits for its result would wait for ever if the message vanished.
    """
    headers = delivery.properties.headers or {}
    return bool(headers.get("expires")) and "task" in headers and "id" in headers


def expiration_of(delivery: Delivery) -> float | None:
    """Seconds that a message may wait; None for no bound. Raises PreconditionFailed where its property is no number."""
    if reports_expiry(delivery):
        return None
    try:
        milliseconds = int(str(delivery.properties.expiration))
    except (TypeError, ValueError):
        milliseconds = -1
    if not 0 <= milliseconds <= MAX_MILLISECONDS:
        raise exceptions.PreconditionFailed(f"invalid expiration {delivery.properties.expiration!r:.80}")
    return milliseconds / 1000


def dead_letter(queue: str, limits: Limits, delivery: Delivery, reason: str) -> Delivery | None:
    """Return the message as it goes to the queue's dead letter exchange, or None where it went in a circle.

    Header ``x-death`` as RabbitMQ writes it: a table for each (queue, reason), the newest first.
    """
    headers = dict(delivery.properties.headers or {})
    deaths = [dict(death) for death in _as_list(headers.get("x-death")) if _is_death(death)]
    was_here = any(death["queue"] == queue for death in deaths)
    if was_here and reason != "rejected" and not any(death["reason"] == "rejected" for death in deaths):
        return None
    death: dict[str, Any] = {
        "count": 0,
        "reason": reason,
        "queue": queue,
        "time": int(time()),
        "exchange": delivery.exchange,
        "routing-keys": [delivery.routing_key],
    }
    if reason == "expired" and delivery.properties.expiration is not None:
        death["original-expiration"] = delivery.properties.expiration
    for known in deaths:
        if known["queue"] == queue and known["reason"] == reason:
            deaths.remove(known)
            death = known
            break
    death["count"] += 1
    headers["x-death"] = [death, *deaths]
    headers.setdefault("x-first-death-exchange", delivery.exchange)
    headers.setdefault("x-first-death-queue", queue)
    headers.setdefault("x-first-death-reason", reason)
    return Delivery(
        limits.dead_letter_exchange or "",
        delivery.routing_key if limits.dead_letter_routing_key is None else limits.dead_letter_routing_key,
        delivery.properties.replace(headers=headers, expiration=None),
        delivery.body,
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_death(value: Any) -> bool:
    """Whether a publisher's header is what a broker would have written; anybody can send anything."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("queue"), str)
        and isinstance(value.get("reason"), str)
        and isinstance(value.get("count"), int)
    )


def describe(spec: ExchangeSpec | QueueSpec) -> dict[str, Any]:
    """Return settings as text for an error message."""
    return {name: value for name, value in spec._asdict().items() if name != "name"}
