"""A hook that keeps what is published, for tests and for debugging."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from kombulite import compression, serialization
from kombulite._client.hooks import Around
from kombulite.hooks import Hook, Outgoing

__all__ = ["PublishedMessage", "RecordingHook"]


class PublishedMessage(NamedTuple):
    """A message that the broker took.

    Attributes:
        exchange: Name of the exchange, ``""`` for the default one.
        routing_key: The routing key.
        body: The body, decompressed and decoded; as it was sent if it cannot be.
        headers: The headers.
        properties: The AMQP properties that are set, by name.
    """

    exchange: str
    routing_key: str
    body: Any
    headers: dict[str, Any]
    properties: dict[str, Any]


class RecordingHook(Hook):
    """Records published messages: ``connection.add_hook(RecordingHook())``.

    It decodes every content type, pickle too: for processes that publish what they trust.

    Attributes:
        published: The messages, in order; those that the broker refused are left out.
    """

    def __init__(self) -> None:
        self.published: list[PublishedMessage] = []

    def publish(self, outgoing: Outgoing) -> Around:
        """Record one message after it was published.

        Args:
            outgoing: The message.
        """
        return self.publish_many([outgoing])

    @contextmanager
    def publish_many(self, outgoing: Sequence[Outgoing]) -> Iterator[None]:
        """Record messages after they were published.

        Args:
            outgoing: The messages.
        """
        yield
        self.published += [_published(each) for each in outgoing if each.error is None]


def _published(outgoing: Outgoing) -> PublishedMessage:
    properties, sent = outgoing.properties, outgoing.delivery().body
    try:
        body = _decoded(sent, outgoing.headers.get("compression"), properties)
    except Exception:  # whatever a serializer raises: the broker has the message, and its publisher must know
        body = sent
    return PublishedMessage(outgoing.exchange, outgoing.routing_key, body, dict(outgoing.headers), properties)


def _decoded(body: Any, compressed_by: str | None, properties: Mapping[str, Any]) -> Any:
    if compressed_by is not None:
        body = compression.decompress(body, compressed_by)
    content_type = properties.get("content_type")
    return serialization.loads(body, content_type, properties.get("content_encoding"), accept=[content_type])
