"""A broker that is full, paused, restarted, or closes connections: each call ends in time, and nothing is lost."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kombulite import Connection, Consumer, Producer, Queue, exceptions
from tests.amqp.conftest import in_threads
from tests.servers import close_connections, keep_declarations, set_memory_limit, wait_until

HASTE = {"read_timeout": 2, "write_timeout": 2}
LARGE = b"x" * 15_000_000  # more than the kernel buffers for a paused broker; RabbitMQ 4 refuses more than 16 MiB
PATIENT = {"interval_start": 0.2, "interval_step": 0.2, "max_retries": 100}


@pytest.fixture
def connect(own_broker):
    made = []

    def connect(**options):
        made.append(Connection(own_broker.url, **options))
        return made[-1]

    yield connect
    for connection in made:
        connection.release()


@pytest.fixture
def queue(own_broker, name):
    with Connection(own_broker.url) as connection:
        queue = Queue(name("queue"))(connection.default_channel)
        queue.declare()
        yield queue


@pytest.fixture
def alarm(own_broker):
    """Raise and clear the broker's memory alarm."""

    def alarm(on):
        set_memory_limit(own_broker, 0.000001 if on else 0.4)

    yield alarm
    alarm(False)


@pytest.fixture
def pause(own_broker):
    yield own_broker.pause
    own_broker.resume()


def blocked(producer, queue):
    """Publish until the broker says that it takes nothing."""
    with pytest.raises(exceptions.Blocked, match="memory"):
        for _ in range(1000):
            producer.publish("x", routing_key=queue.name, timeout=0.5)
            time.sleep(0.02)


def ready(queue):
    return queue.queue_declare(passive=True).message_count


# --- a full broker


@pytest.mark.parametrize("confirms", [False, True], ids=["unconfirmed", "confirmed"])
def test_publish_to_a_full_broker(connect, queue, name, alarm, confirms):
    seen = []
    connection = connect(
        transport_options={
            "confirm_publish": confirms,
            "on_blocked": lambda reason: seen.append("blocked"),
            "on_unblocked": lambda: seen.append("unblocked"),
            "read_timeout": 2,
            "write_timeout": 500,
        }
    )
    received = []
    consumer = Consumer(connection.channel(), Queue(queue.name, no_declare=True), no_ack=True)
    consumer.on_message = received.append
    consumer.consume()
    producer = Producer(connection)
    producer.publish("before", routing_key=queue.name)
    other = connect(transport_options={"read_timeout": 1})
    asked = other.channel()
    alarm(True)
    blocked(producer, queue)
    with pytest.raises(exceptions.Blocked):
        producer.publish_many(range(3), routing_key=queue.name, timeout=0.1)
    if confirms:
        with pytest.raises(exceptions.Blocked):
            producer.publish("x", routing_key=queue.name, confirm_timeout=0.1)
    assert received == []  # no consumer runs while publishing
    assert seen == ["blocked"]
    for _ in range(3):
        connection.drain_events(timeout=10)  # a blocked connection still consumes
        if received:
            break
    assert received[0].payload == "before"
    # Requests on a blocked connection are not read either: they end by their deadline.
    blocked(Producer(other), queue)
    with pytest.raises(exceptions.RecoverableConnectionError, match="does not take messages"):
        asked.queue_declare(name("never"))
    cleared = threading.Timer(0.5, lambda: alarm(False))
    cleared.start()
    producer.publish("after", routing_key=queue.name, timeout=60)
    cleared.join()
    assert seen == ["blocked", "unblocked"]
    while received[-1].payload != "after":
        connection.drain_events(timeout=30)


def test_first_publish_of_a_connection_to_a_full_broker(connect, queue, alarm):
    """It waits for the broker's word on the exchange, which does not come."""
    connection = connect()
    connection.default_channel  # noqa: B018 - opens
    alarm(True)
    producer = Producer(connection)
    started = time.monotonic()
    blocked(producer, queue)
    assert time.monotonic() - started < 25  # the timeout of a request is 30
    alarm(False)
    producer.publish("x", routing_key=queue.name, timeout=60)


# --- a paused broker


def test_request_to_a_paused_broker(connect, name, pause):
    channel = connect(transport_options=HASTE).channel()
    pause()
    with pytest.raises(exceptions.RecoverableConnectionError, match="did not answer"):
        channel.queue_declare(name("never"))


def test_confirm_of_a_paused_broker(connect, queue, pause, own_broker):
    producer = Producer(connect(transport_options={"confirm_publish": True}))
    producer.publish("x", routing_key=queue.name)
    pause()
    with pytest.raises(TimeoutError):
        producer.publish("x", routing_key=queue.name, confirm_timeout=0.2)
    with pytest.raises(TimeoutError):
        producer.publish("x", routing_key=queue.name, timeout=0.2)
    with pytest.raises(exceptions.BatchPublishError) as caught:
        producer.publish_many(["x"] * 3, routing_key=queue.name, timeout=0.2)
    assert [(index, type(error)) for index, error in caught.value.refused] == [(i, TimeoutError) for i in range(3)]
    own_broker.resume()
    producer.publish("x", routing_key=queue.name)
    assert ready(queue) == 7


def test_write_to_a_paused_broker(connect, queue, pause, own_broker):
    connection = connect()
    producer = Producer(connection)
    producer.publish("x", routing_key=queue.name)
    pause()
    with pytest.raises(exceptions.RecoverableConnectionError, match="timed out"):
        producer.publish(LARGE, routing_key=queue.name, timeout=0.3)
    own_broker.resume()
    producer.publish("whole", routing_key=queue.name)  # after the rest of the large one
    wait_until(lambda: ready(queue) == 3, 30, "messages are missing")


def test_broker_that_does_not_read_for_a_while_is_waited_for(connect, queue, pause, own_broker):
    """The kernel would give it up after a second, if it were left to py-amqp's settings."""
    producer = Producer(connect())
    producer.publish("x", routing_key=queue.name)
    pause()
    resume = threading.Timer(4, own_broker.resume)
    resume.start()
    producer.publish(LARGE, routing_key=queue.name, timeout=60)
    resume.join()
    wait_until(lambda: ready(queue) == 2, 30, "messages are missing")


def test_drain_of_a_paused_broker(connect, queue, pause):
    connection = connect()
    Consumer(connection, queue, on_message=lambda message: None).consume()
    pause()
    for timeout in (0, 0.01, 0.2):
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=timeout)


def test_drain_while_another_thread_cannot_write(connect, queue, pause, own_broker):
    connection = connect(heartbeat=2)
    consumer = Consumer(connection.channel(), queue, on_message=lambda message: None)
    consumer.consume()
    channel = connection.channel()
    writing, drained = threading.Event(), threading.Event()
    pause()

    def write():
        writing.set()
        with pytest.raises((exceptions.ConnectionError, OSError)):
            Producer(channel).publish(LARGE, routing_key=queue.name, timeout=8)
        assert drained.is_set(), "it waited for the writer"

    def drain():
        writing.wait(10)
        time.sleep(0.2)
        try:
            connection.drain_events(timeout=1.5)  # a heartbeat is due within it
        except TimeoutError:
            pass
        drained.set()

    in_threads(write, drain)


def test_close_of_a_paused_broker(connect, pause, monkeypatch):
    monkeypatch.setattr("kombulite.brokers.amqp.CLOSE_TIMEOUT", 0.3)
    connection = connect(transport_options=HASTE)
    connection.connect()
    pause()
    connection.release()
    assert not connection.connected


def test_connecting_to_a_paused_broker(connect, pause):
    pause()
    connection = connect(connect_timeout=0.3)
    with pytest.raises(TimeoutError):
        connection.ensure_connection(max_retries=0, timeout=1, reraise_as_library_errors=False)


# --- the operator


def test_connection_closed_by_the_operator(connect, own_broker, queue):
    connection = connect()
    consumer = Consumer(connection, queue, on_message=lambda message: message.ack())
    consumer.consume()
    close_connections(own_broker, "maintenance")
    with pytest.raises(exceptions.ConnectionForced, match="maintenance") as caught:
        connection.drain_events(timeout=30)
    assert caught.value.reply_code == 320
    assert isinstance(caught.value, connection.recoverable_connection_errors)
    assert not connection.connected
    bodies = []
    consumer.on_message = lambda message: bodies.append(message.payload)
    consumer.revive(connection.default_channel)
    Producer(connection).publish("again", routing_key=queue.name)
    connection.drain_events(timeout=30)
    assert bodies == ["again"]
    consumer.cancel()


def test_publisher_whose_connection_was_closed_goes_on(connect, own_broker, queue):
    connection = connect(transport_options={"confirm_publish": True})
    producer = Producer(connection)
    producer.publish(0, routing_key=queue.name)
    close_connections(own_broker, "maintenance")
    errors = []
    policy = {**PATIENT, "errback": lambda error, interval: errors.append(error)}
    producer.publish(1, routing_key=queue.name, retry=True, retry_policy=policy)
    assert errors
    with connect().channel() as channel:
        assert channel.queue_declare(queue.name, passive=True).message_count == 2


def test_killed_broker_is_noticed_and_a_failover_found(connect, own_broker, queue):
    """Another address of the same broker stands for a second one."""
    with Connection(f"amqp://127.0.0.1:1//;{own_broker.url}", connect_timeout=5) as connection:
        Producer(connection).publish("x", routing_key=queue.name)
        assert connection.port == own_broker.port
    assert ready(queue) == 1


@pytest.mark.timeout(240)
def test_broker_restarted(own_broker, name):
    """Confirmed messages outlive it, and producers and consumers go on."""
    with Connection(own_broker.url, transport_options={"confirm_publish": True}, heartbeat=10) as connection:
        queue = Queue(name("durable"))
        queue(connection).declare()
        keep_declarations(own_broker)
        producer = Producer(connection)
        for number in range(20):
            producer.publish(number, routing_key=queue.name)
        received = set()

        def take(message):
            received.add(message.payload)
            message.ack()

        own_broker.kill()
        with ThreadPoolExecutor(1) as restarting:
            restarted = restarting.submit(own_broker.start)
            for number in range(20, 40):
                policy = {"interval_start": 0.2, "interval_step": 0.1, "interval_max": 1, "max_retries": 200}
                producer.publish(number, routing_key=queue.name, retry=True, retry_policy=policy, mandatory=True)
            restarted.result()
        with Consumer(connection, queue, on_message=take):
            while len(received) < 40:
                try:
                    connection.drain_events(timeout=30)
                except TimeoutError:
                    state = own_broker.control(
                        "list_queues", "name", "messages_ready", "messages_unacknowledged", "consumers"
                    )
                    pytest.fail(f"missing: {sorted(set(range(40)) - received)}; the broker has\n{state}")
        assert received == set(range(40))
