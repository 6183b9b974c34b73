"""Messages that come back again and again go to the dead letters, on every broker that counts."""

from __future__ import annotations

import logging
import time

import pytest

from kombulite import Consumer, Exchange, Producer, Queue, exceptions
from tests.contract.conftest import drain, soon

QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture
def counted(broker, channel):
    """A queue whose broker counts deliveries."""
    arguments = QUORUM if broker.kind.startswith("amqp") else None
    queue = Queue(broker.name("counted"), queue_arguments=arguments)(channel)
    queue.declare()
    yield queue
    queue(broker.connect()).delete()


@pytest.fixture
def dead(broker, channel):
    queue = Queue(broker.name("dead"))(channel)
    yield queue
    queue(broker.connect()).delete()


def test_deliveries_are_counted(connection, channel, counted):
    Producer(channel).publish("x", routing_key=counted.name)
    counts = []

    def refuse(message):
        counts.append(message.delivery_count)
        (message.requeue if len(counts) < 4 else message.ack)()

    with Consumer(channel, counted, on_message=refuse):
        drain(connection, lambda: len(counts) == 4, 30)
    assert counts == [0, 1, 2, 3]


def test_a_channel_that_closes_counts_too(connection, broker, counted):
    Producer(connection).publish("x", routing_key=counted.name)
    counts = []
    for _ in range(3):
        channel = connection.channel()
        message = soon(counted(channel).get, timeout=30)
        counts.append(message.delivery_count)
        channel.close()
    assert counts == [0, 1, 2]


def test_a_message_that_comes_back_too_often_goes_to_the_dead_letters(connection, channel, counted, dead, caplog):
    producer = Producer(channel)
    headers = {"tenant": "a"}
    producer.publish({"n": 1}, routing_key=counted.name, headers=headers, compression="zlib", correlation_id="c")
    producer.publish({"n": 2}, routing_key=counted.name)
    seen, done = [], []

    def work(body, message):
        if body["n"] == 2:
            done.append(body)
            message.ack()
        else:
            seen.append(message.delivery_count)
            message.requeue()

    consumer = Consumer(channel, counted, callbacks=[work], max_deliveries=3, dead_letter=dead, prefetch_count=1)
    caplog.set_level(logging.ERROR, "kombulite.consumer")
    with consumer:
        drain(connection, lambda: "kombulite.consumer" in [record.name for record in caplog.records] and done, 30)
    assert seen == [0, 1, 2]
    message = soon(dead.get)
    assert message.payload == {"n": 1}
    assert message.properties["correlation_id"] == "c"
    assert message.headers["tenant"] == "a"
    assert {name: value for name, value in message.headers.items() if name.startswith("x-poison-")} == {
        "x-poison-reason": "max-deliveries",
        "x-poison-deliveries": 3,
        "x-poison-queue": counted.name,
        "x-poison-exchange": "",
        "x-poison-routing-key": counted.name,
    }
    assert message.delivery_count == 0
    message.ack()
    assert counted.get() is None
    (record,) = [record for record in caplog.records if record.name == "kombulite.consumer"]
    assert (record.queue, record.dead_letter, record.deliveries) == (counted.name, dead.name, 3)


def test_dead_letters_may_go_through_an_exchange(broker, connection, channel, counted, dead):
    exchange = Exchange(broker.name("graves"), "topic")
    Queue(dead.name, exchange, routing_key="#")(channel).declare()
    Producer(channel).publish("x", routing_key=counted.name)
    soon(counted.get, timeout=30).requeue()
    with Consumer(channel, counted, on_message=lambda message: None, max_deliveries=1, dead_letter=exchange):
        assert soon(lambda: _fetch(connection, dead), timeout=30).delivery_info["routing_key"] == counted.name


def test_a_dead_letter_that_nobody_takes_keeps_the_message(broker, connection, channel, counted):
    exchange = Exchange(broker.name("nowhere"))
    Producer(channel).publish("x", routing_key=counted.name)
    soon(counted.get, timeout=30).requeue()
    consumer = Consumer(channel, counted, on_message=lambda message: None, max_deliveries=1, dead_letter=exchange)
    consumer.consume()
    with pytest.raises(exceptions.MessageReturned):
        drain(connection, lambda: False, 30)
    channel.close()
    assert soon(counted(connection).get, timeout=30).payload == "x"


def test_a_message_that_cannot_be_decoded_is_buried_as_it_came(connection, channel, counted, dead):
    Producer(channel).publish(b"{", content_type="application/json", content_encoding="utf-8", routing_key=counted.name)
    consumer = Consumer(
        channel,
        counted,
        callbacks=[lambda body, message: None],
        on_decode_error=lambda message, error: message.requeue(),
        max_deliveries=2,
        dead_letter=dead.name,
    )
    dead.declare()
    with consumer:
        message = soon(lambda: _fetch(connection, dead), timeout=30)
    assert message.delivery.body in ("{", b"{")
    assert message.content_type == "application/json"


@pytest.mark.parametrize(
    "options", [{"max_deliveries": 3}, {"dead_letter": "dead"}, {"max_deliveries": 0, "dead_letter": "dead"}]
)
def test_half_a_rule_is_refused(channel, queue, options):
    with pytest.raises(ValueError, match="deliver"):
        Consumer(channel, queue, **options)


def _fetch(connection, queue):
    try:
        connection.drain_events(timeout=0.1)
    except TimeoutError:
        pass
    return queue.get()


# --- a queue that is deleted under its consumer


def test_plain_loop_goes_on_after_its_queue_was_deleted(broker, connection, channel, queue):
    """The loop of docs/reliability.md."""
    got = []
    consumer = Consumer(channel, queue, on_message=lambda message: (got.append(message.payload), message.ack()))
    consumer.consume()
    other = broker.connect()
    queue(other).delete()
    deadline = time.monotonic() + 30
    while not got and time.monotonic() < deadline:
        Producer(other).publish("after", routing_key=queue.name)  # lost as long as there is no queue
        try:
            connection.drain_events(timeout=0.1)
        except TimeoutError:
            continue
        except connection.recoverable_connection_errors:
            connection.ensure_connection()
            consumer.declare()
            consumer.consume()
    assert got[0] == "after"
