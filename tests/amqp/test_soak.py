"""A broker that dies again and again under producers and consumers: what was confirmed arrives."""

from __future__ import annotations

import threading
import time

import pytest

from kombulite import Connection, Consumer, Producer, Queue
from tests.amqp.conftest import in_threads

POLICY = {"interval_start": 0.1, "interval_step": 0.1, "interval_max": 1, "max_retries": 500}
DEATHS = 4


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_confirmed_messages_outlive_a_broker_that_dies(own_broker, name):
    queue = Queue(name("ledger"))
    confirmed: set[tuple[int, int]] = set()
    received: set[tuple[int, int]] = set()
    over = threading.Event()

    def produce(producer_number):
        with Connection(own_broker.url, transport_options={"confirm_publish": True}, heartbeat=5) as connection:
            producer = Producer(connection)
            number = 0
            while not over.is_set():
                producer.publish(
                    [producer_number, number], routing_key=queue.name, declare=[queue], retry=True, retry_policy=POLICY
                )
                confirmed.add((producer_number, number))
                number += 1

    def take(message):
        received.add(tuple(message.payload))
        message.ack()

    def consume():
        deadline = time.monotonic() + 500
        while time.monotonic() < deadline and not (over.is_set() and received >= confirmed):
            with Connection(own_broker.url, heartbeat=5) as connection:
                try:
                    connection.ensure_connection(interval_start=0.1, interval_step=0.1, interval_max=1, timeout=60)
                    with Consumer(connection, queue, on_message=take, prefetch_count=50):
                        while not (over.is_set() and received >= confirmed):
                            try:
                                connection.drain_events(timeout=1)
                            except TimeoutError:
                                pass
                except connection.connection_errors:
                    pass

    def kill():
        try:
            for _ in range(DEATHS):
                time.sleep(2)
                own_broker.kill()
                own_broker.start()
            time.sleep(2)
        finally:
            over.set()

    in_threads(kill, consume, consume, *[lambda number=number: produce(number) for number in range(2)], timeout=550)
    assert len(confirmed) > 100
    assert received >= confirmed
