"""Declaring an exchange or a queue: the verbs that it takes, one after the other, whoever has them performed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kombulite import exceptions
from kombulite._client.outgoing import check_short
from kombulite._client.queue_kind import QueueKind, with_kind
from kombulite._client.topology import Binding, Step
from kombulite.brokers.base import ExchangeSpec, QueueSpec, Transport
from kombulite.entity import INTERNAL_EXCHANGE_PREFIX, Exchange, Queue

QUEUE_ARGUMENTS: dict[str, tuple[str, Callable[[Any], int]]] = {
    "expires": ("x-expires", lambda seconds: int(seconds * 1000)),
    "message_ttl": ("x-message-ttl", lambda seconds: int(seconds * 1000)),
    "max_length": ("x-max-length", int),
    "max_length_bytes": ("x-max-length-bytes", int),
    "max_priority": ("x-max-priority", int),
}


def queue_arguments(arguments: Mapping[str, Any] | None, kind: QueueKind | None = None, **given: Any) -> dict[str, Any]:
    """Return AMQP's arguments for the keywords of ``Queue`` (``expires`` in seconds, …), over those given."""
    prepared = {**(kind.queue_arguments() if kind is not None else {}), **(arguments or {})}
    for keyword, value in given.items():
        if value is not None:
            name, convert = QUEUE_ARGUMENTS[keyword]
            prepared[name] = convert(value)
    return prepared


def require_kind(kind: QueueKind, transport: Transport | type[Transport]) -> None:
    """Raise AMQPNotImplementedError for a kind of queue that the broker does not have."""
    refusal = kind.refusal()
    if refusal is not None and not transport.capabilities.queue_kinds:
        raise exceptions.AMQPNotImplementedError(
            f"kind={refusal} needs RabbitMQ: the {transport.driver_type} transport has no such queues"
        )


def consumer_arguments(queue: Queue) -> Mapping[str, Any] | None:
    """Return a queue's arguments for its consumers."""
    arguments = queue.consumer_arguments
    return arguments if queue.kind is None else with_kind(arguments, queue.kind.consumer_arguments())


def queue_spec(queue: Queue) -> QueueSpec:
    """Return a queue as it is declared."""
    limits = {keyword: getattr(queue, keyword) for keyword in QUEUE_ARGUMENTS}
    arguments = queue_arguments(queue.queue_arguments, queue.kind, **limits)
    check_short(queue.name, "queue name")
    return QueueSpec(queue.name, queue.durable, queue.exclusive, queue.auto_delete, arguments or None)


def declaring(entity: Exchange | Queue) -> Iterator[Step]:
    """Declare an entity, as its ``declare`` does. Sets the name that a broker chooses."""
    if entity.no_declare:
        return
    if isinstance(entity, Exchange):
        yield from _declaring_exchange(entity)
        return
    if entity.exchange is not None:
        yield from _declaring_exchange(entity.exchange)
    step = Step("declare_queue", queue_spec(entity), False)
    yield step
    entity.name = entity.name or step.answer.queue
    if entity.on_declared is not None:
        entity.on_declared(*step.answer)
    if entity.exchange is not None and entity.exchange.name:
        yield binding_step(entity.exchange, entity, entity.routing_key, entity.binding_arguments)
    for each in entity.bindings:
        if each.exchange is not None:
            yield from _declaring_exchange(each.exchange)
            yield binding_step(each.exchange, entity, each.routing_key, each.arguments)


def _declaring_exchange(exchange: Exchange) -> Iterator[Step]:
    name = exchange.name
    if name and not exchange.no_declare and not name.startswith(INTERNAL_EXCHANGE_PREFIX):
        check_short(name, "exchange name")
        spec = ExchangeSpec(name, exchange.type, exchange.durable, exchange.auto_delete, exchange.arguments or None)
        yield Step("declare_exchange", spec, exchange.passive)


def binding_step(
    source: Exchange | str, destination: Exchange | Queue, routing_key: str, arguments: Mapping[str, Any] | None
) -> Step:
    """Bind a queue or an exchange to an exchange."""
    check_short(routing_key, "routing key")
    name = source if isinstance(source, str) else source.name
    return Step("bind", *Binding(name, destination.name, routing_key, arguments, isinstance(destination, Exchange)))
