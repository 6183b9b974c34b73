"""Consumers in an event loop: what arrives wakes it, and when nothing does it sleeps."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from kombulite import Producer
from kombulite.asynchronous import Hub
from tests.contract.conftest import Inbox
from tests.contract.test_batches import Batches

FAR = 600  # seconds; a loop that nothing wakes sleeps for 10


@pytest.fixture
def hub(connection: Any) -> Any:
    """A loop that carries the connection. It has no other reason to turn."""
    if not connection.transport.implements.asynchronous:
        pytest.skip("an event loop has nothing to wait on")
    connection.connect()
    hub = Hub()
    hub.call_later(FAR, lambda: None)
    connection.transport.register_with_event_loop(connection, hub)
    yield hub
    connection.transport.unregister_from_event_loop(connection, hub)
    hub.close()


def turn_until(hub, wanted, timeout=20):
    """Turns that it took until something held."""
    deadline, turns = time.monotonic() + timeout, 0
    while not wanted():
        assert time.monotonic() < deadline
        hub.run_once()
        turns += 1
    return turns


def test_arriving_messages_wake_the_loop(broker, hub, connection, queue):
    inbox = Inbox(connection.channel(), queue)  # the loop knew the connection before it had a consumer
    producer = Producer(broker.connect().channel())
    for i in range(3):
        hub.call_later(0.05, partial(producer.publish, i, routing_key=queue.name))
        turn_until(hub, lambda: len(inbox.bodies) > i)  # noqa: B023 - called at once
    assert inbox.bodies == [0, 1, 2]


def test_more_messages_than_the_prefetch_count(broker, hub, connection, queue):
    channel = connection.channel()
    channel.basic_qos(prefetch_count=2)
    inbox = Inbox(channel, queue)
    Producer(broker.connect().channel()).publish_many(range(50), routing_key=queue.name)
    turn_until(hub, lambda: len(inbox.bodies) == 50)
    assert inbox.bodies == list(range(50))


def test_an_idle_loop_sleeps(broker, hub, connection, queue):
    inbox = Inbox(connection.channel(), queue)
    Producer(broker.connect().channel()).publish(1, routing_key=queue.name)
    turn_until(hub, lambda: inbox.bodies == [1])
    is_over = []
    hub.call_later(1, is_over.append, True)
    assert turn_until(hub, lambda: is_over) < 10


def test_a_batch_that_is_not_complete_wakes_the_loop(broker, hub, connection, queue):
    got = Batches(connection.channel(), queue, batch_timeout=1)
    Producer(broker.connect().channel()).publish_many(range(6), routing_key=queue.name)
    turn_until(hub, lambda: len(got.all) == 6)
    assert got.bodies == [[0, 1, 2, 3], [4, 5]]
