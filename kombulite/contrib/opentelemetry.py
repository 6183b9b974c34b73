"""Traces that go through the broker (extra ``opentelemetry``).

    connection.add_hook(OpenTelemetryHook())

Spans and their attributes follow the semantic conventions for messaging. The context of a trace travels in the
headers of messages, by default as W3C's ``traceparent``, ``tracestate`` and ``baggage``: plain strings, which any peer
can pass on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TracerProvider

from kombulite.connection import Connection
from kombulite.hooks import Hook, Outgoing
from kombulite.message import Message

__all__ = ["Headers", "OpenTelemetryHook"]

#: The convention's names of brokers, where they are not those of our transports.
SYSTEMS = {"amqp": "rabbitmq", "rediscluster": "redis"}
IN_PROCESS = frozenset(["memory", "filesystem"])  # they have no server


class Headers(Getter[Mapping[str, Any]]):
    """Getter of a propagator for a message's headers, whose values may be of any type."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        """Return a header in a list, or None if it is no text.

        Args:
            carrier: The headers.
            key: Name of the header.
        """
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        """Return the names of the headers.

        Args:
            carrier: The headers.
        """
        return list(carrier)


HEADERS = Headers()


class OpenTelemetryHook(Hook):
    """Hook that makes a span for each publish, each ``publish_many``, and each message that a consumer gets.

    Args:
        tracer_provider: Provider of tracers (None: the global one).
        propagator: Propagator of contexts (None: the global one).
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, propagator: TextMapPropagator | None = None
    ) -> None:
        self._tracer = trace.get_tracer("kombulite", tracer_provider=tracer_provider)
        self._propagator = propagator or propagate.get_global_textmap()

    @contextmanager
    def publish(self, outgoing: Outgoing) -> Iterator[None]:
        """Make a span that the message carries.

        Args:
            outgoing: The message.
        """
        attributes = {**_place_of(outgoing), "messaging.message.body.size": outgoing.size, **_identity_of(outgoing)}
        with self._span("send", SpanKind.PRODUCER, outgoing.connection, attributes):
            self._propagator.inject(outgoing.headers)
            yield

    @contextmanager
    def publish_many(self, outgoing: Sequence[Outgoing]) -> Iterator[None]:
        """Make one span for all messages, linked to the spans in which messages were put into a batch.

        Args:
            outgoing: The messages.
        """
        collected = {id(each): self._origin(each.headers) for each in outgoing if self._is_traced(each.headers)}
        place = _place_of(outgoing[0])
        attributes = {"messaging.batch.message_count": len(outgoing)}
        if all(_place_of(each) == place for each in outgoing):
            attributes.update(place)
        links = _links(*collected.values())
        with self._span("send", SpanKind.PRODUCER, outgoing[0].connection, attributes, links=links) as span:
            for each in outgoing:
                if id(each) not in collected:
                    self._propagator.inject(each.headers)
            yield
            errors = [each.error for each in outgoing if each.error is not None]
            if errors:
                span.set_status(StatusCode.ERROR, f"{len(errors)} of {len(outgoing)} messages were refused")
                span.set_attribute("error.type", _name_of(errors[0]))

    def collect(self, outgoing: Outgoing) -> None:
        """Let the message carry the span in which it is put into the batch.

        Args:
            outgoing: The message.
        """
        self._propagator.inject(outgoing.headers)

    @contextmanager
    def consume(self, message: Message, queue: str) -> Iterator[None]:
        """Make a span in the trace that the message carries.

        Args:
            message: The message.
            queue: Name of the queue.
        """
        origin = self._origin(message.headers)
        attributes = _description_of(message, queue)
        token = context.attach(origin)  # the baggage too
        try:
            with self._span("process", SpanKind.CONSUMER, message.channel.connection, attributes):
                yield
        finally:
            context.detach(token)

    def get(self, message: Message, queue: str) -> None:
        """Make a span in the caller's trace, linked to the span that the message carries.

        Args:
            message: The message.
            queue: Name of the queue.
        """
        origin = self._origin(message.headers)
        attributes = _description_of(message, queue)
        connection = message.channel.connection if message.channel is not None else None
        with self._span("receive", SpanKind.CLIENT, connection, attributes, links=_links(origin)):
            pass

    def _origin(self, headers: Mapping[str, Any]) -> context.Context:
        return self._propagator.extract(headers, getter=HEADERS)

    def _is_traced(self, headers: Mapping[str, Any]) -> bool:
        return any(field in headers for field in self._propagator.fields)

    @contextmanager
    def _span(
        self,
        operation: str,
        kind: SpanKind,
        connection: Connection | None,
        attributes: dict[str, Any],
        links: Sequence[Link] = (),
    ) -> Iterator[Span]:
        destination = attributes.get("messaging.destination.name")
        attributes["messaging.operation.name"] = attributes["messaging.operation.type"] = operation
        if connection is not None:
            attributes.update(_system_of(connection))
        name = operation if destination is None else f"{operation} {destination}"
        with self._tracer.start_as_current_span(name, kind=kind, attributes=attributes, links=links) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", _name_of(error))
                raise


def _name_of(error: BaseException) -> str:
    return type(error).__qualname__


def _links(*origins: context.Context) -> list[Link]:
    spans = [trace.get_current_span(origin).get_span_context() for origin in origins]
    return [Link(each) for each in {each.span_id: each for each in spans}.values() if each.is_valid]


def _system_of(connection: Connection) -> dict[str, Any]:
    kind = connection._transport_class.driver_type
    attributes: dict[str, Any] = {"messaging.system": SYSTEMS.get(kind, kind)}
    if kind not in IN_PROCESS:
        attributes["server.address"] = connection.hostname or "localhost"
        if connection.port:
            attributes["server.port"] = connection.port
    return attributes


def _destination(exchange: str, routing_key: str, queue: str = "") -> dict[str, Any]:
    name = ":".join(dict.fromkeys(part for part in (exchange, routing_key, queue) if part))
    attributes = {"messaging.destination.name": name or "amq.default"}
    if routing_key:
        attributes["messaging.rabbitmq.destination.routing_key"] = routing_key
    return attributes


def _place_of(outgoing: Outgoing) -> dict[str, Any]:
    return _destination(outgoing.exchange, outgoing.routing_key)


def _identity_of(outgoing: Outgoing) -> dict[str, Any]:
    properties = outgoing.properties
    return _ids(properties.get("message_id"), properties.get("correlation_id"))


def _ids(message_id: Any, correlation_id: Any) -> dict[str, Any]:
    found = {"messaging.message.id": message_id, "messaging.message.conversation_id": correlation_id}
    return {name: str(value) for name, value in found.items() if value}


def _description_of(message: Message, queue: str) -> dict[str, Any]:
    info, properties = message.delivery_info, message.properties
    place = _destination(info.get("exchange", ""), info.get("routing_key", ""), queue)
    return {**place, **_ids(properties.get("message_id"), properties.get("correlation_id"))}
