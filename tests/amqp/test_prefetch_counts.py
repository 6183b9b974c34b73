"""A prefetch count that is changed for a running consumer: nothing is lost or repeated.

Nothing is out of order either, except on quorum queues.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from kombulite import Connection, Consumer, Queue, Quorum, Stream
from kombulite.brokers.amqp.limits import PrefetchLimit
from kombulite.exceptions import RecoverableConnectionError
from tests.amqp import peer as p

MESSAGES = 1000
TIMEOUT = 20.0  # seconds

KINDS = {
    "classic": {},
    "auto-delete": {"auto_delete": True},
    "priority": {"max_priority": 5},
    "quorum": {"kind": Quorum()},
}


@pytest.fixture(params=KINDS)
def queue(request: pytest.FixtureRequest, connection: Connection, name: Callable[[str], str]) -> Any:
    bound = Queue(name("prefetch"), **KINDS[request.param])(connection.channel())
    bound.declare()
    yield bound
    Queue(bound.name)(connection.channel()).delete()


def fill(connection: Connection, queue: Queue, count: int = MESSAGES) -> None:
    connection.Producer().publish_many(range(count), routing_key=queue.name)


def start(connection: Connection, *queues: Queue, prefetch_count: int) -> tuple[Consumer, list[Any]]:
    held: list[Any] = []
    consumer = Consumer(connection.channel(), queues, on_message=held.append, prefetch_count=prefetch_count)
    consumer.consume()
    return consumer, held


def drain_until(connection: Connection, held: list[Any], count: int) -> None:
    while len(held) < count:
        connection.drain_events(timeout=TIMEOUT)


def drain_all(connection: Connection, held: list[Any], count: int) -> None:
    """Drain until so many are held, and look whether the broker sends more than that."""
    drain_until(connection, held, count)
    connection.channel().close()  # whatever was on its way is here with the answer
    while connection.drain(0):
        pass


def test_raised(connection, queue):
    fill(connection, queue, 100)
    consumer, held = start(connection, queue, prefetch_count=8)
    drain_all(connection, held, 8)
    assert len(held) == 8
    for limit in range(9, 60):  # as a worker does that holds tasks for later
        consumer.qos(prefetch_count=limit)
        drain_until(connection, held, limit)
        assert len(held) <= limit + 8
    assert [message.payload for message in held] == list(range(len(held)))


def test_what_is_held_does_not_count_for_ever(connection, queue):
    fill(connection, queue, 100)
    consumer, held = start(connection, queue, prefetch_count=8)
    drain_until(connection, held, 8)
    consumer.qos(prefetch_count=16)
    drain_until(connection, held, 16)
    for message in held:
        message.ack()
    held.clear()
    drain_all(connection, held, 8)
    assert len(held) <= 16
    consumer.qos(prefetch_count=24)  # fewer are held than it had before
    drain_until(connection, held, 24)


def test_lowered(connection, queue):
    fill(connection, queue, 100)
    consumer, held = start(connection, queue, prefetch_count=40)
    drain_until(connection, held, 40)
    for message in held[:35]:
        message.ack()
    del held[:35]
    consumer.qos(prefetch_count=10)
    drain_all(connection, held, 40)  # the broker filled up before it was told
    for message in held:
        message.ack()
    held.clear()
    drain_all(connection, held, 5)
    assert len(held) <= 10


def test_changed_at_random(connection, queue, connect):
    publisher, chance = connect(), random.Random(15)
    consumer, held = start(connection, queue, prefetch_count=8)
    order: list[int] = []
    for number in range(0, MESSAGES, 100):
        publisher.Producer().publish_many(range(number, number + 100), routing_key=queue.name)
        while len(order) < number + 100:
            before = len(held)
            connection.drain_events(timeout=TIMEOUT)
            order += [message.payload for message in held[before:]]
            while len(held) > 6:
                held.pop(chance.randrange(len(held))).ack()
            if chance.random() < 0.2:
                consumer.qos(prefetch_count=chance.randrange(8, 60))
    if isinstance(queue.kind, Quorum):  # it sends each of two consumers its messages in one go
        order.sort()
    assert order == list(range(MESSAGES))


def test_two_queues_of_one_consumer(connection, name):
    queues = [Queue(name(f"prefetch{number}"), auto_delete=True)(connection.channel()) for number in range(2)]
    for queue in queues:
        queue.declare()
        fill(connection, queue, 30)
    consumer, held = start(connection, *queues, prefetch_count=4)
    drain_until(connection, held, 8)
    for limit in range(5, 20):
        consumer.qos(prefetch_count=limit)
        drain_until(connection, held, 2 * limit)
    for queue in queues:
        mine = [message.payload for message in held if message.delivery_info["routing_key"] == queue.name]
        assert mine == list(range(len(mine)))
        consumer.cancel_by_queue(queue)
    assert connection.channel().queue_declare(auto_delete=True).message_count == 0  # the channel is still of use


def test_survives_a_lost_connection(connection, queue):
    fill(connection, queue, 100)
    consumer, held = start(connection, queue, prefetch_count=8)
    drain_until(connection, held, 8)
    consumer.qos(prefetch_count=20)
    drain_until(connection, held, 20)
    connection.transport._protocol.stream.fail(RecoverableConnectionError("the test cut it"))
    held.clear()
    connection.ensure_connection()
    expected = 0 if queue.auto_delete else 20  # it went with its consumer
    drain_all(connection, held, expected)
    assert len(held) == expected
    assert [message.payload for message in held] == list(range(len(held)))


def test_left_alone_where_another_consumer_would_do_harm(connection, name):
    single = Queue(name("single"), kind=Quorum(single_active_consumer=True))
    stream = Queue(name("stream"), kind=Stream(offset="first"))
    for queue in (single, stream):
        consumer, held = start(connection, queue, prefetch_count=4)
        fill(connection, queue, 4)
        drain_until(connection, held, 4)
        tags = dict(consumer._active_tags)
        consumer.qos(prefetch_count=20)
        assert consumer._active_tags == tags
        consumer.cancel()
        queue(connection.channel()).delete()


def test_counts_of_successors():
    limit = PrefetchLimit(8, 0)
    assert limit.count_for(8, 8, 8, True) is None
    assert limit.count_for(16, 8, 8, True) == 8  # beside the 8 that it holds
    limit.succeed(8, 8)
    assert limit.count_for(16, 16, 16, True) is None
    assert limit.count_for(17, 16, 16, True) == 8  # what it had at first
    assert limit.count_for(100, 16, 16, True) == 84
    assert limit.count_for(16, 3, 16, True) == 13  # most of what it held is settled
    assert limit.count_for(4, 0, 16, True) == 4
    assert limit.count_for(5, 0, 16, True) is None  # it has about that
    assert limit.count_for(0, 16, 16, True) == 0
    assert limit.count_for(17, 16, 16, False) == 17  # whose messages they are is not known
    limit.succeed(0, 16)
    assert limit.count_for(0, 16, 16, True) is None
    assert limit.count_for(40, 0, 16, True) == 40


def test_one_that_the_broker_cancels_meanwhile(peer):
    def script(session):
        session.handshake()
        number = session.open_channel()
        tag = session.consume()
        qos, qos_ok = (60, 10), (60, 11)
        session.expect(qos)
        session.send(number, p.CANCEL, "sb", tag, True)
        session.send(number, qos_ok)
        assert session.expect(p.CANCEL).read("sb") == [tag, True]  # the answer to the broker's own
        session.consume()
        session.expect(p.CANCEL)
        session.send(number, p.CANCEL_OK, "s", tag)
        session.expect(qos)
        session.send(number, qos_ok)
        session.deliver(1, consumer_tag="new", channel=number)
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        transport = connection.connect()
        number = transport.open_channel()
        transport.consume(number, "q", "old", False, False, None)
        transport.replace_consumer(number, "old", "new", 5, "q", None)
        events = [transport.receive(TIMEOUT)[0] for _ in range(2)]
    assert [(type(event).__name__, event.consumer_tag) for event in events] == [
        ("Cancelled", "old"),
        ("Delivery", "new"),
    ]
