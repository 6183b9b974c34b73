"""Publishing from a generator takes no more memory for many messages than for few."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kombulite import Producer, exceptions
from kombulite._client.outgoing import CHUNK, CHUNK_BYTES, MAX_REFUSED
from kombulite.brokers.base import Outcome
from kombulite.contrib.opentelemetry import OpenTelemetryHook
from kombulite.contrib.prometheus import TimingHook

KINDS = ["memory", "redis", "amqp", "amqp-confirms"]


def peak_of(channel: Any, queue: Any, count: int) -> int:
    """Bytes that are held at most while so many messages are published, and taken out of the queue now and then."""

    def bodies() -> Iterator[dict[str, Any]]:
        for number in range(count):
            if number % 1000 == 0:
                queue.purge()
            yield {"number": number, "text": "x" * 50}

    tracemalloc.start()
    try:
        assert Producer(channel, routing_key=queue.name).publish_many(bodies()) == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("broker", KINDS, indirect=True)
def test_memory_does_not_grow_with_the_number(channel, queue):
    peak_of(channel, queue, 2 * CHUNK)
    few = peak_of(channel, queue, 3 * CHUNK)
    many = peak_of(channel, queue, 12 * CHUNK)
    assert many < 1.5 * few


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("broker", KINDS, indirect=True)
def test_memory_does_not_grow_with_ten_million(channel, queue):
    few = peak_of(channel, queue, 10 * CHUNK)
    assert peak_of(channel, queue, 10_000_000) < 1.5 * few


@pytest.mark.parametrize("broker", KINDS, indirect=True)
def test_large_bodies_are_not_collected_by_the_thousand(broker, channel, queue):
    body = 1 << 20

    def bodies() -> Iterator[bytes]:
        for number in range(4 * CHUNK_BYTES // body):
            if number % (CHUNK_BYTES // body) == 0:
                queue.purge()
            yield bytes(body)

    tracemalloc.start()
    try:
        Producer(channel, routing_key=queue.name).publish_many(
            bodies(), content_type="application/data", content_encoding="binary"
        )
        # On Redis they travel in base64, in a command that is built of them and sent in one piece.
        times = 6 if broker.kind == "redis" else 3
        assert tracemalloc.get_traced_memory()[1] < times * CHUNK_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("broker", ["memory"], indirect=True)
def test_refused_messages_are_held_up_to_a_number(channel, queue, monkeypatch):
    producer = Producer(channel, routing_key=queue.name)
    sent = 0

    def refuse(deliveries: list[Any], *options: Any) -> list[tuple[int, Exception]]:
        nonlocal sent
        sent += len(deliveries)
        return [(index, exceptions.MessageNacked("full")) for index in range(len(deliveries))]

    monkeypatch.setattr(producer, "send_many", refuse)
    with pytest.raises(exceptions.BatchPublishError) as caught:
        producer.publish_many(iter(int, 1))  # endless
    assert MAX_REFUSED <= len(caught.value.refused) == sent < MAX_REFUSED + CHUNK


def test_none_is_none(channel, queue):
    """Neither the transport nor a hook, which may look at the first message, is asked."""
    channel.connection.add_hook(TimingHook(CollectorRegistry()))
    channel.connection.add_hook(OpenTelemetryHook())
    producer = Producer(channel, routing_key=queue.name)
    assert channel.publish_many([]) == []
    assert producer.publish_many([]) == 0
    with producer.batch() as batch:
        batch.flush()
    channel.settle_many([], Outcome.ACK)
    assert queue.get() is None
    assert channel.connection.counters.published == 0
