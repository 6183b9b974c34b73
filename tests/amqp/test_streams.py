"""Streams: consumers that leave them, and that come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from kombulite import Connection, Consumer, Queue

MESSAGES = 50
TIMEOUT = 20.0  # seconds


@pytest.fixture
def stream(name: Callable[[str], str], channel: Any, confirming: Connection) -> Iterator[Queue]:
    """A stream with the numbers from 0 on, each at its own offset."""
    stream = Queue(name("stream"), queue_arguments={"x-queue-type": "stream"})
    stream(channel).declare()
    add(confirming, stream, 0)
    yield stream
    with suppress(Exception):
        stream(confirming.channel()).delete()


def add(connection: Connection, stream: Queue, first: int) -> None:
    connection.Producer().publish_many(range(first, first + MESSAGES), routing_key=stream.name)


def consumer_of(channel: Any, stream: Queue, offset: Any, receive: Callable[[Any], Any], **options: Any) -> Consumer:
    arguments = {} if offset is None else {"x-stream-offset": offset}
    queue = Queue(stream.name, queue_arguments=stream.queue_arguments, consumer_arguments=arguments)
    return Consumer(channel, queue, on_message=receive, **{"prefetch_count": 20, **options})


def test_the_offset_can_be_read_on_the_message(connection: Connection, stream: Queue) -> None:
    offsets: list[int | None] = []

    def receive(message: Any) -> None:
        offsets.append(message.stream_offset)
        message.ack()

    with consumer_of(connection.channel(), stream, "first", receive):
        while len(offsets) < MESSAGES:
            connection.drain_events(timeout=TIMEOUT)
    assert offsets == list(range(MESSAGES))


@pytest.mark.parametrize("end", ["cancel", "close the channel", "release"])
def test_leaving_a_stream_early_ends_nothing_else(
    connection: Connection, connect: Callable[..., Connection], stream: Queue, end: str
) -> None:
    other = connect()
    channel = other.channel()
    consumer = consumer_of(channel, stream, "first", lambda message: None)
    consumer.consume()
    other.drain_events(timeout=TIMEOUT)  # the others have come, or are in flight
    if end == "cancel":
        consumer.cancel()
    if end != "release":
        channel.close()
        assert other.channel().queue_declare(stream.name, passive=True) is not None  # the connection is open still
    other.release()


@pytest.mark.parametrize("end", ["cancel", "close the channel"])
def test_a_channel_with_a_stream_and_a_queue(
    connection: Connection, name: Callable[[str], str], stream: Queue, end: str
) -> None:
    queue = Queue(name("queue"))(connection.channel())
    queue.declare()
    connection.Producer().publish_many(range(MESSAGES), routing_key=queue.name)
    channel = connection.channel()
    consumer = consumer_of(channel, stream, "first", lambda message: None)
    consumer.add_queue(queue)
    consumer.consume()
    connection.drain_events(timeout=TIMEOUT)
    if end == "cancel":
        consumer.cancel()
    channel.close()
    assert connection.counters.reconnects == 0
    seen: set[int] = set()

    def receive(message: Any) -> None:
        seen.add(message.payload)
        message.ack()

    with Consumer(connection.channel(), queue, on_message=receive):
        while len(seen) < MESSAGES:
            connection.drain_events(timeout=TIMEOUT)
    queue.delete()
