"""Connections that are cut after every byte of a handshake, a publish, a delivery and its ack."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, repeat
from random import randint
from typing import Any

import pytest

from kombulite import Connection, Consumer, Producer, Queue, uuid
from tests.proxy import Cut, Direction

AT_ONCE = {"max_retries": 3, "interval_start": 0, "interval_max": 0}
MOST = 5000  # more bytes than any of these takes


@pytest.fixture
def queue(url: str) -> Iterator[Any]:
    """A queue, on a connection that nothing happens to."""
    with Connection(url) as connection:
        queue = Queue(uuid())(connection)
        queue.declare()
        yield queue
        queue.delete()


@pytest.fixture(params=[pytest.param(1, id="every byte", marks=pytest.mark.soak), pytest.param(60, id="some bytes")])
def lengths(request: pytest.FixtureRequest) -> Iterator[int]:
    """After how many bytes to cut; not more than so many are passed over."""
    return accumulate(randint(1, step) for step in repeat(request.param))


directions = pytest.mark.parametrize("direction", Direction, ids=lambda direction: direction.value)


@directions
def test_handshake(proxy, connect, lengths, direction):
    for length in lengths:
        proxy.cuts = iter([Cut(direction, length)])
        connection = connect()
        errors: list[Exception] = []
        connection.ensure_connection(lambda error, interval: errors.append(error), **AT_ONCE)  # noqa: B023
        connection.release()
        if not errors:
            break
        assert length < MOST
    assert length > 50


@directions
def test_publish(proxy, connect, queue, lengths, direction):
    producer = Producer(connect())
    producer.publish(0, routing_key=queue.name)
    published = [0]
    for length in lengths:
        errors: list[Exception] = []

        def cut_no_more(error: Exception, interval: float) -> None:
            errors.append(error)  # noqa: B023
            proxy.cut = None

        proxy.cut = Cut(direction, length)
        producer.publish(
            length, routing_key=queue.name, retry=True, retry_policy={**AT_ONCE, "errback": cut_no_more}, timeout=10
        )
        published.append(length)
        if not errors:
            break
        assert length < MOST
    arrived = [message.payload for message in iter(lambda: queue.get(no_ack=True), None)]
    assert set(arrived) == set(published)


@directions
def test_delivery_and_ack(proxy, connect, queue, lengths, direction):
    connection = connect()
    producer = Producer(queue.channel)
    got: list[Any] = []

    def take(message: Any) -> None:
        got.append(message.payload)
        message.ack()

    def drain() -> bool:
        """Whether the connection was in order."""
        try:
            connection.drain_events(timeout=0.02)
        except connection.recoverable_connection_errors as error:
            if connection.connected and isinstance(error, TimeoutError):
                return True
            proxy.cut = None
            return False
        return True

    Consumer(connection, Queue(queue.name), on_message=take, auto_declare=False, prefetch_count=1).consume()
    for length in lengths:
        proxy.cut = Cut(direction, length)
        producer.publish(length, routing_key=queue.name)
        whole = True
        while length not in got:
            whole = drain() and whole
        whole = drain() and whole  # an ack that was cut is noticed here
        proxy.cut = None
        if whole:
            break
        assert length < MOST
    while not drain() or queue.queue_declare(passive=True).message_count:  # what was not acknowledged comes again
        continue
    connection.release()
    left = [message.payload for message in iter(lambda: queue.get(no_ack=True), None)]
    assert set(left) <= {length}  # its ack may have come too late
