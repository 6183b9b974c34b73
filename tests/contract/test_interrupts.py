"""Exceptions from signal handlers amid publishing and receiving: others get through, nothing is lost or doubled."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest

from kombulite import Consumer, Queue
from tests.contract.conftest import soon
from tests.interrupts import Interrupts, in_another_thread
from tests.servers import Unavailable

# Python swallows what a handler raises while a finalizer runs, here that of redis-py's parser, and reports it so.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function _HiredisParser:pytest.PytestUnraisableExceptionWarning"
)

#: From one instruction to the next that is interrupted: where each run asks a broker, not all are.
STEP = 7


@pytest.fixture(scope="module")
def interrupts(tmp_path_factory):
    try:
        return Interrupts(tmp_path_factory.mktemp("interrupts"))
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def queue(broker):
    with broker.connect() as connection:
        queue = Queue(broker.name("orders"), durable=True)
        queue(connection).declare()
    yield queue
    with broker.connect() as connection:
        queue(connection).delete()


def all_of(broker, queue, wanted):
    """What is in a queue, taken by another connection; what is wanted may be on its way still."""
    found = []
    with broker.connect() as connection, connection.channel() as channel:

        def look():
            while (message := channel.basic_get(queue.name, no_ack=True)) is not None:
                found.append(message.payload)
            return wanted <= set(found)

        soon(look)
    return found


# A file that was being opened when the handler raised is closed by its finalizer, which warns (since CPython 3.14).
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.needs("a thread of its own")
def test_others_publish_after_an_interrupted_publish(broker, queue, interrupts):
    connection = broker.connect()
    producer = connection.Producer()
    producer.publish("warm-up", routing_key=queue.name, retry=True)
    numbers = count()

    def publish_another(number):
        with connection.channel() as channel:
            connection.Producer(channel).publish(f"after {number}", routing_key=queue.name, retry=True)
        return True

    done = []
    for is_interrupted in interrupts.at_each(
        lambda: producer.publish(next(numbers), routing_key=queue.name, retry=True), STEP
    ):
        number = next(numbers)
        in_another_thread(lambda number=number: publish_another(number))
        done += [number - 1] * (not is_interrupted)
        done.append(f"after {number}")
    found = Counter(all_of(broker, queue, set(done)))
    assert not set(done) - set(found), "lost"
    assert not [body for body, times in found.items() if times > 1], "doubled"


@pytest.mark.needs("a thread of its own")
def test_others_receive_after_an_interrupted_receive(broker, queue, interrupts):
    if broker.kind not in ("memory", "redis", "amqp", "amqp-confirms"):
        pytest.skip("what a store in Python has claimed is known when its claim returns, and not before")
    connection = broker.connect()
    producer = broker.connect().Producer()
    seen = []

    def take(body, message):
        seen.append(body)
        message.ack()

    published = 1
    producer.publish(0, routing_key=queue.name)
    channel = connection.channel()
    channel.basic_qos(0, 1, False)
    with Consumer(channel, [queue], callbacks=[take], accept=["json"]):
        for _ in interrupts.at_each(lambda: _drain(connection), STEP):
            in_another_thread(lambda: _drain(connection) or True)
            producer.publish(published, routing_key=queue.name, retry=True)
            published += 1
    connection.release()
    with broker.connect() as connection, Consumer(connection, [queue], callbacks=[take]):
        soon(lambda: not _drain(connection, 0.1) and set(seen) == set(range(published)))
    assert set(seen) == set(range(published)), "lost"


def _drain(connection, timeout=0.02):
    """Receive a message; returns whether there may be more."""
    try:
        connection.drain_events(timeout=timeout)
    except TimeoutError:
        return False
    except connection.connection_errors:
        return True  # what an interrupt ends in the middle of a command is said once
    return True
