"""One connection, many threads: nothing is lost or doubled, and nobody hangs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress

import pytest

from kombulite import Consumer, Producer, Queue, exceptions
from tests.amqp.conftest import in_threads

DEADLINE = 100.0


@pytest.mark.parametrize("confirms", [False, True], ids=["unconfirmed", "confirmed"])
def test_publishers_consumers_and_declarers_share_a_connection(connect, name, confirms):
    connection = connect(transport_options={"confirm_publish": confirms})
    queues = [Queue(name(f"shared{number}"), durable=False, exclusive=True) for number in range(2)]
    setup = connection.channel()
    for queue in queues:
        queue(setup).declare()
    each, publishers = 1000, 8
    ledger: Counter[object] = Counter()
    lock = threading.Lock()
    done = threading.Event()

    def publish(publisher):
        producer = Producer(connection.channel() if publisher % 2 else connection)
        for number in range(0, each, 10):
            producer.publish([publisher, number], routing_key=queues[number % 2].name)
            bodies = [[publisher, n] for n in range(number + 1, number + 10)]
            producer.publish_many(bodies, routing_key=queues[publisher % 2].name)

    def take(message):
        with lock:
            ledger[tuple(message.payload)] += 1
            if len(ledger) >= each * publishers:
                done.set()
        message.ack()

    def drain():
        deadline = time.monotonic() + DEADLINE
        while not done.is_set() and time.monotonic() < deadline:
            try:
                connection.drain_events(timeout=0.5)
            except TimeoutError:
                pass

    def declare(declarer):
        channel = connection.channel()
        number = 0
        while not done.is_set() and number < 300:
            number += 1
            channel.queue_declare(name(f"declared{declarer}"), durable=False, exclusive=True)
            channel.exchange_declare(name("ex"), "topic", durable=False)
            channel.queue_bind(name(f"declared{declarer}"), name("ex"), f"key{number % 5}")

    consumers = [
        Consumer(connection.channel(), queue, on_message=take, prefetch_count=20) for queue in queues for _ in range(2)
    ]
    for consumer in consumers:
        consumer.consume()
    in_threads(
        *[lambda number=number: publish(number) for number in range(publishers)],
        *[drain] * 4,
        *[lambda number=number: declare(number) for number in range(2)],
        timeout=DEADLINE,
    )
    expected = {(publisher, number) for publisher in range(publishers) for number in range(each)}
    assert set(ledger) == expected
    assert set(ledger.values()) == {1}
    assert connection.connected


def test_order_is_kept_while_another_thread_publishes(connection, queue):
    """The publisher reads too; the one that drains gets all in the broker's order."""
    count = 3000
    Producer(connection).publish_many(range(count), routing_key=queue.name)
    got: list[int] = []
    done = threading.Event()
    consumer = Consumer(
        connection.channel(),
        Queue(queue.name, no_declare=True),
        no_ack=True,
        on_message=lambda message: got.append(message.payload),
    )

    def drain():
        consumer.consume()
        while len(got) < count:
            connection.drain_events(timeout=30)
        done.set()

    def ask():
        channel = connection.channel()
        while not done.is_set():
            channel.queue_declare(queue.name, passive=True)

    in_threads(drain, ask)
    assert got == list(range(count))


def test_waiting_for_a_reply_while_another_thread_drains(connection, queue):
    """The thread that drains without a timeout reads the replies of the other."""
    bodies: list[object] = []
    consumer = Consumer(
        connection.channel(),
        Queue(queue.name, no_declare=True),
        no_ack=True,
        callbacks=[lambda body, message: bodies.append(body)],
    )
    consumer.consume()

    def drain():
        while "end" not in bodies:
            connection.drain_events(timeout=None)

    def ask():
        channel = connection.channel()
        for _ in range(500):
            channel.queue_declare(queue.name, passive=True)
        Producer(channel).publish("end", routing_key=queue.name)

    in_threads(drain, ask, ask)


def test_role_of_the_reader_passes_on(connection, queue):
    """Whoever reads gives up in time, and those that wait go on without it."""
    channel = connection.channel()
    got = threading.Event()
    Consumer(channel, Queue(queue.name, no_declare=True), no_ack=True, on_message=lambda message: got.set()).consume()

    def impatient():
        for _ in range(20):
            try:
                connection.drain_events(timeout=0.02)
            except TimeoutError:
                pass

    def patient():
        while not got.is_set():
            try:
                connection.drain_events(timeout=20)
            except TimeoutError:
                break
        assert got.is_set()

    def publish():
        time.sleep(1)
        with connection.clone() as other:
            Producer(other).publish("x", routing_key=queue.name)
        assert got.wait(30)
        # Both may be in drain_events still.
        with connection.clone() as other:
            Producer(other).publish_many(["x"] * 4, routing_key=queue.name)

    in_threads(impatient, patient, publish)


def test_consumers_come_and_go_while_others_drain(connection, queue):
    stop = threading.Event()

    def put_back(message):
        with suppress(exceptions.RecoverableConnectionError):  # its channel is closed meanwhile
            message.requeue()

    def churn():
        try:
            for _ in range(50):
                channel = connection.channel()
                with Consumer(channel, Queue(queue.name, no_declare=True), on_message=put_back):
                    pass
                channel.close()
        finally:
            stop.set()

    def drain():
        while not stop.is_set():
            try:
                connection.drain_events(timeout=0.1)
            except TimeoutError:
                pass

    Producer(connection).publish_many(range(20), routing_key=queue.name)
    in_threads(churn, drain, drain)
    deadline = time.monotonic() + 30
    while queue.queue_declare(passive=True).message_count < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert queue.purge() == 20
