"""A queue that is far below its length limit is not counted for each publish, and keeps to its limit."""

from __future__ import annotations

import pytest

from kombulite import Consumer, Producer, Queue, exceptions
from kombulite.brokers.sql import lengths
from kombulite.brokers.sql.messages import COUNTED, MEASURED

LIMIT = 20
NEAR = int(LIMIT * lengths.NEAR_LIMIT)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few messages suffice to know a bound."""
    monkeypatch.setattr(lengths, "MIN_COUNT", 2)


def declare(connection, **arguments):
    queue = Queue("orders", queue_arguments={"x-max-length": LIMIT, **arguments})(connection)
    queue.declare()
    return queue


def counts(connection, monkeypatch):
    """Return a list that grows by each look at how much waits in a queue."""
    counted = []
    rows = connection.transport._database.rows

    def note(statement, *values):
        counted.extend(["count"] * (statement in (COUNTED, MEASURED)))
        return rows(statement, *values)

    monkeypatch.setattr(connection.transport._database, "rows", note)
    return counted


def waiting(queue):
    return [message.payload for message in iter(lambda: queue.get(no_ack=True), None)]


@pytest.mark.parametrize("arguments", [{}, {"x-max-priority": 5}], ids=["plain", "priorities"])
@pytest.mark.parametrize("overflow", ["drop-head", "reject-publish"])
def test_queue_below_its_limit_is_not_counted_for_each_publish(database, monkeypatch, arguments, overflow):
    connection = database.connect()
    queue = declare(connection, **arguments, **{"x-overflow": overflow})
    producer = Producer(connection, routing_key="orders")
    counted = counts(connection, monkeypatch)
    producer.publish(0)
    producer.publish(1)  # from here on it is known how many there may be
    counted.clear()
    for number in range(2, NEAR):
        producer.publish(number, priority=number % 3)
    assert not counted
    for number in range(NEAR, LIMIT):
        producer.publish(number)
    assert len(counted) >= LIMIT - NEAR if overflow == "reject-publish" else not counted
    assert sorted(waiting(queue)) == list(range(LIMIT))


@pytest.mark.parametrize("arguments", [{}, {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}])
def test_full_queue_that_drops_is_counted_now_and_then(database, monkeypatch, arguments):
    monkeypatch.setattr(lengths, "OVER_LIMIT", 1.5)
    connection, total = database.connect(), 5 * LIMIT
    queue, producer = declare(connection, **arguments), Producer(connection, routing_key="orders")
    dead = Queue("dead")(connection)
    dead.declare()
    counted = counts(connection, monkeypatch)
    for number in range(total):
        producer.publish(number)
        assert queue.queue_declare(passive=True).message_count <= 1.5 * LIMIT
    assert 5 < len(counted) < total / 5
    counted.clear()
    connection.transport._session._renew()
    assert counted
    assert waiting(queue) == list(range(total - LIMIT, total))
    assert waiting(dead) == (list(range(total - LIMIT)) if arguments else [])


def test_publishers_in_turns_keep_to_the_limit(database):
    first, second = database.connect(), database.connect()
    queue = declare(first)
    producers = [Producer(connection, routing_key="orders") for connection in (first, second)]
    for number in range(3 * LIMIT):
        producers[number % 2].publish(number)
    assert waiting(queue) == list(range(2 * LIMIT, 3 * LIMIT))


def test_publisher_learns_of_room_by_counting_again(database, monkeypatch):
    connection = database.connect()
    queue, producer = declare(connection), Producer(connection, routing_key="orders")
    counted = counts(connection, monkeypatch)
    for number in range(5 * LIMIT):
        producer.publish(number)
        if number >= 2:
            queue.get(no_ack=True)
    assert 3 <= len(counted) < 10
    assert len(waiting(queue)) == 2


def test_queue_that_refuses_takes_as_many_as_its_limit_says(database):
    first, second = database.connect(), database.connect()
    queue = declare(first, **{"x-overflow": "reject-publish"})
    producers = [Producer(connection, routing_key="orders") for connection in (first, second)]
    refused = []
    for number in range(LIMIT + 5):
        try:
            producers[number % 2].publish(number)
        except exceptions.MessageNacked:
            refused.append(number)
    assert refused == list(range(LIMIT, LIMIT + 5))
    assert waiting(queue) == list(range(LIMIT))


def test_messages_that_come_back_to_their_queue_count(database):
    consumer, publisher = database.connect(), database.connect()
    queue, producer = declare(publisher), Producer(publisher, routing_key="orders")
    producer.publish_many(range(15))
    got = []
    with Consumer(consumer, [Queue("orders")], on_message=got.append, prefetch_count=12, auto_declare=False):
        while len(got) < 12:
            consumer.drain_events(timeout=20)
        producer = Producer(database.connect(), routing_key="orders")  # which knows nothing
        producer.publish_many([15, 16])  # it is counted while most of them are out
        for message in got:
            message.requeue()
    for number in range(17, 26):
        producer.publish(number)
    assert waiting(queue) == list(range(6, 26))


def test_delayed_messages_count_when_they_are_due(database):
    publisher = database.connect()
    queue, producer = declare(publisher), Producer(publisher, routing_key="orders")
    for number in range(10):
        producer.publish(number, eta=1)  # long ago: the next look releases it
    rows = publisher.transport._database.rows
    rows(f"UPDATE {database.prefix}messages SET due = 1e15")
    producer = Producer(database.connect(), routing_key="orders")  # which knows nothing
    producer.publish_many(range(10, 13))
    rows(f"UPDATE {database.prefix}messages SET due = 1 WHERE due IS NOT NULL")
    for number in range(13, 23):
        producer.publish(number)
    assert waiting(queue) == list(range(3, 23))


@pytest.mark.parametrize("arguments", [{"x-max-length-bytes": 1000}, {}], ids=["bytes", "many are claimed"])
def test_queue_is_counted_where_nothing_bounds_it(database, monkeypatch, arguments):
    monkeypatch.setattr(lengths, "MAX_OTHERS", 1000 if arguments else 1)
    connection = database.connect()
    queue, producer = declare(connection, **arguments), Producer(connection, routing_key="orders")
    producer.publish(0)
    claimed = queue.get()
    producer.publish_many(range(1, 3))
    counted = counts(connection, monkeypatch)
    for number in range(3, 8):
        producer.publish(number)
    assert len(counted) == 5
    claimed.ack()


def test_nothing_is_known_of_another_server(database):
    connection = database.connect()
    declare(connection)
    producer = Producer(connection, routing_key="orders")
    producer.publish_many(range(3))
    bounds = connection.transport._messages.lengths._bounds
    assert bounds
    connection.transport.collect()
    assert not bounds
