"""A connection that is lost goes on counting, and what happens to it is in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest

from kombulite import Connection, Consumer, Producer, Queue, exceptions, uuid
from tests.conftest import started
from tests.servers import RabbitMQServer, add_user, close_connections, set_memory_limit

SECRET = "hush-hush"


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> RabbitMQServer:
    server = started(request, RabbitMQServer)
    add_user(server, "observer", SECRET, (".*", ".*", ".*"))
    return server


@pytest.fixture
def connection(server: RabbitMQServer) -> Iterator[Connection]:
    url = server.url.replace("guest:guest", f"observer:{SECRET}")
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        yield connection


@pytest.fixture
def log(caplog):
    """What was logged, and at the end: no record has the password, in whatever it holds."""
    caplog.set_level(logging.DEBUG, "kombulite")
    yield caplog
    for record in caplog.get_records("call"):
        assert SECRET not in repr(vars(record))
        assert SECRET not in record.getMessage()


def until(look, timeout=10):
    deadline = time.monotonic() + timeout
    while not look() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert look()


def test_counters_go_on_after_a_loss_and_count_it(server, connection, log):
    queue = Queue(f"counted-{uuid()}", durable=True)(connection.default_channel)
    queue.declare()
    producer = Producer(connection, routing_key=queue.name)
    got = []
    with Consumer(connection, [queue], on_message=got.append):
        producer.publish({})
        while not got:
            connection.drain_events(timeout=20)
        close_connections(server, "maintenance")
        with pytest.raises(connection.connection_errors):
            while True:
                connection.drain_events(timeout=20)
        lost = connection.counters
        assert (lost.published, lost.consumed, lost.reconnects) == (1, 1, 0)
        while len(got) < 2:
            connection.drain_events(timeout=20)  # the same message, on the restored connection
        producer.publish({})
        got[1].ack()
    found = connection.counters
    assert (found.published, found.confirmed, found.acked, found.reconnects) == (2, 2, 1, 1)
    assert found.consumed == found.redelivered + 1 or found.consumed == found.redelivered + 2
    assert found.redelivered == 1
    queue.delete()
    states = [(record.before, record.state) for record in log.records if record.name == "kombulite.connection"]
    assert states[-4:] == [
        ("open", "lost"), ("lost", "connecting"), ("connecting", "restoring"), ("restoring", "open"),
    ]  # fmt: skip
    (lost_record,) = [record for record in log.records if getattr(record, "state", "") == "lost"]
    assert lost_record.levelno == logging.WARNING
    assert isinstance(lost_record.reason, exceptions.ConnectionForced)


def test_each_vain_attempt_is_in_the_log(server, log):
    connection = Connection(server.url.replace("guest:guest", f"observer:{SECRET}x"))
    with pytest.raises(exceptions.AccessRefused):
        connection.connect()
    (attempt, failure) = log.records
    assert (attempt.before, attempt.state) == ("closed", "connecting")
    assert (failure.before, failure.state) == ("connecting", "closed")
    assert isinstance(failure.reason, exceptions.AccessRefused)
    assert failure.connection == connection.as_uri()


def test_a_channel_that_the_broker_closes_is_in_the_log(connection, log):
    channel = connection.channel()
    with pytest.raises(exceptions.NotFound):
        channel.queue_declare("nowhere", passive=True)
    (record,) = [record for record in log.records if record.name == "kombulite.channel"]
    assert record.levelno == logging.INFO  # whoever asked for it knows
    assert record.connection == connection.as_uri()
    assert record.channel == channel.channel_id
    assert isinstance(record.reason, exceptions.NotFound)


def test_a_cancelled_consumer_is_in_the_log(connection, log):
    queue = Queue(f"cancelled-{uuid()}", durable=True)(connection.default_channel)
    queue.declare()
    with Connection(connection.as_uri(include_password=True)) as other:
        with pytest.raises(exceptions.ConsumerCancelled):
            with Consumer(connection, [queue], callbacks=[print]):
                other.default_channel.queue_delete(queue.name)
                connection.drain_events(timeout=20)
    (record,) = [record for record in log.records if record.name == "kombulite.channel"]
    assert record.levelno == logging.WARNING
    assert record.queue == queue.name
    assert record.consumer_tag in record.getMessage()


def test_a_blocked_broker_is_in_the_log(server, connection, log):
    queue = Queue(f"blocked-{uuid()}", durable=True)(connection.default_channel)
    queue.declare()
    producer = Producer(connection, routing_key=queue.name)
    set_memory_limit(server, 0.000001)
    try:
        with pytest.raises((exceptions.Blocked, TimeoutError)):
            for _ in range(100):
                producer.publish({}, timeout=1)
    finally:
        set_memory_limit(server, 0.6)

    def states():
        try:
            connection.drain_events(timeout=0.1)
        except (TimeoutError, exceptions.OperationalError):
            pass
        return [record.state for record in log.records if record.name == "kombulite.amqp" and hasattr(record, "state")]

    until(lambda: states() == ["blocked", "unblocked"])
    (blocked,) = [record for record in log.records if getattr(record, "state", "") == "blocked"]
    assert blocked.levelno == logging.WARNING
    assert blocked.connection == connection.as_uri()
    assert blocked.reason
    queue.delete()
