"""Many messages that expire, or become due, at once: what one pass over them takes is bounded."""

from __future__ import annotations

import time
import tracemalloc
from contextlib import closing, suppress

import psycopg
import pytest

from kombulite import Connection, Exchange, Producer, Queue, exceptions
from kombulite.brokers.sql import messages
from tests.sql.conftest import LockedDatabase
from tests.sql.test_outbox import driver

BODY = b"x" * 100_000


@pytest.fixture
def expired(database):
    """A connection with 400 messages of 100 kB that have expired, and the queue of their dead letters."""
    connection = database.connect()
    dead = Queue("dead", Exchange("dlx", "fanout"))(connection)
    dead.declare()
    arguments = {"x-dead-letter-exchange": "dlx"}
    Queue("orders", queue_arguments=arguments)(connection).declare()
    Producer(connection).publish_many([BODY] * 400, routing_key="orders", expiration=3600)
    with closing(driver(database)) as other:
        other.execute(f"UPDATE {database.prefix}messages SET expires = 1")
        other.commit()
    return connection, dead


def test_messages_that_expired_become_dead_letters_part_by_part(expired):
    connection, dead = expired
    connection.transport  # noqa: B018 - it is there before memory is measured
    tracemalloc.start()
    try:
        for _ in range(4):
            Queue("orders", no_declare=True)(connection).get()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000, f"{peak:,} bytes"
    assert dead.queue_declare(passive=True).message_count == 400
    assert dead.purge() == 400


def test_messages_without_dead_letters_expire_part_by_part(database, monkeypatch):
    monkeypatch.setattr(messages, "DELETED_AT_ONCE", 3, raising=False)
    connection = database.connect()
    queue = Queue("orders")(connection)
    queue.declare()
    Producer(connection).publish_many(range(8), routing_key="orders", expiration=0)
    Producer(connection).publish("kept", routing_key="orders")
    left = []
    for _ in range(4):
        assert queue.get(no_ack=True) is None or not left.append("kept")
        left.append(LockedDatabase(connection.transport).value("SELECT count(*) FROM {p}messages"))
    assert left == ["kept", 5, 2, 0, 0]


def test_messages_are_released_part_by_part(database, monkeypatch):
    monkeypatch.setattr(messages, "RELEASED_AT_ONCE", 3, raising=False)
    connection = database.connect()
    queue = Queue("orders")(connection)
    queue.declare()
    soon = time.time() + 1
    for number in range(8):
        Producer(connection).publish(number, routing_key="orders", eta=soon + (8 - number) / 1000)
    while time.time() < soon + 0.1:
        assert connection.transport._messages.seconds_to_next() is not None
        time.sleep(0.01)
    waiting = [queue.queue_declare(passive=True).message_count for _ in range(4)]
    assert waiting == [3, 6, 8, 8]
    assert [queue.get(no_ack=True).payload for _ in range(8)] == list(range(8)), "in their places"


def test_messages_that_wait_for_their_time_are_not_looked_at_for_others(postgresql_url):
    options = {"table_prefix": "waiting_"}
    with (
        Connection(postgresql_url, transport_options=options) as connection,
        psycopg.connect(postgresql_url, autocommit=True) as admin,
    ):
        queue = Queue("orders")(connection)
        queue.declare()
        for due in ("9e9 + random()", "NULL"):
            admin.execute(
                "INSERT INTO waiting_messages (queue, rank, due, expires, exchange, routing_key, properties, body)"
                f" SELECT 1, 0, {due}, 9e9 + random(), '', 'orders', '{{}}', '1' FROM generate_series(1, 20000)"
            )
        admin.execute("ANALYZE waiting_messages")
        Producer(connection).publish("due", routing_key="orders", eta=-1)
        Producer(connection).publish("expired", routing_key="orders", expiration=0)
        session = connection.transport._session
        with session.transaction():
            assert session.pass_time()
            looks = "SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname ="
            looks += " 'waiting_messages'"
            ((by_scan, by_index),) = LockedDatabase(connection.transport).rows(looks)
        assert (by_scan, by_index < 20) == (0, True), f"{by_scan} and {by_index} rows"
        assert admin.execute("SELECT count(*) FROM waiting_messages WHERE expires IS NULL").fetchone() == (1,)
        assert admin.execute("SELECT count(*) FROM waiting_messages").fetchone() == (40_001,)


def test_a_statement_timeout_does_not_keep_a_backlog_for_ever(postgresql_url):
    """The operator's limit ends a statement over all of them; that over a part of them is in time."""
    options = {"table_prefix": "backlog_"}
    with (
        Connection(postgresql_url, transport_options=options) as connection,
        psycopg.connect(postgresql_url, autocommit=True) as admin,
    ):
        queue = Queue("orders")(connection)
        queue.declare()
        admin.execute(
            "INSERT INTO backlog_messages (queue, rank, due, exchange, routing_key, properties, body)"
            " SELECT 1, 0, 1, '', 'orders', '{}', '1' FROM generate_series(1, 300000)"
        )
        LockedDatabase(connection.transport).rows("SET statement_timeout = 500")
        for _ in range(100):  # where the machine is busy, a part may take longer, and all of them take longer still
            with suppress(exceptions.RecoverableChannelError):
                assert queue.get(no_ack=True) is not None
                break
        else:
            pytest.fail("no part is in time")
