"""Large bodies are copied as seldom as can be."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from kombulite import Producer

SIZE = 8 << 20  # bytes

#: Bodies' worth of memory that Python objects take at most: when publishing, beside the body itself; when consuming,
#: with the body that is handed over. AMQP: the body. Redis, where base64 is a third larger: the command
#: that the body is encoded into; what hiredis hands over, and the body that is decoded from it.
COPIES = {"memory": (0, 0), "amqp": (0, 1), "redis": (1.34, 2.34)}
MARGIN = 0.1


def held(work: Callable[[], Any]) -> float:
    """Bodies' worth of memory that something takes at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / SIZE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("broker", COPIES, indirect=True)
def test_copies_of_a_large_body(broker, connection, channel, queue):
    producer, body = Producer(channel, routing_key=queue.name), bytes(SIZE)
    got = []

    def publish() -> None:
        producer.publish(body, content_type="application/data", content_encoding="binary")

    def consume() -> None:
        connection.drain_events(timeout=10)

    for last in (False, True):  # buffers grow with the first one
        outgoing = held(publish)
        if not last:
            consumer = connection.Consumer(queue, on_message=got.append, channel=channel)
            consumer.consume()
        incoming = held(consume)
        got.pop().ack()
    most_outgoing, most_incoming = COPIES[broker.kind]
    assert outgoing < most_outgoing + MARGIN
    assert incoming < most_incoming + MARGIN
