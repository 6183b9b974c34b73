"""What a message costs PostgreSQL while dead rows are not vacuumed: counted in entries of indexes, not in time."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest

from kombulite import Connection, Consumer, Producer, Queue
from kombulite.brokers.base import QueueSpec
from kombulite.brokers.limits import Limits
from kombulite.brokers.sql.marks import START, Marks
from kombulite.brokers.sql.topology import QueueRecord
from tests.sql.conftest import LockedDatabase

BATCH = 500
BATCHES = 12


@pytest.fixture
def connection(postgresql_url):
    """A connection whose messages are never vacuumed."""
    with Connection(postgresql_url, transport_options={"table_prefix": f"g{uuid4().hex[:8]}_"}) as connection:
        Queue("orders")(connection).declare()
        with connection.transport._session.use():
            LockedDatabase(connection.transport).rows("ALTER TABLE {p}messages SET (autovacuum_enabled = off)")
        yield connection


@contextmanager
def old_snapshot(url):
    """A transaction of another client that keeps every row version from being removed."""
    with psycopg.connect(url) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT 1 FROM pg_class")
        yield


def entries_read(connection):
    """Return how many entries of the indexes of the messages were read so far, by index."""
    session = connection.transport._session
    table = connection.transport_options["table_prefix"] + "messages"
    with session.use():
        rows = session.database.rows
        rows("SELECT pg_stat_force_next_flush()")
        read = rows("SELECT indexrelname::text, idx_tup_read FROM pg_stat_user_indexes WHERE relname = ?", table)
    return Counter({name.removeprefix(f"{table}_"): count for name, count in read})


def costs(connection):
    """Publish and consume batches of messages; returns the index entries that were read for each, by index."""
    producer, found, left = Producer(connection, routing_key="orders"), [], 0

    def take(message):
        nonlocal left
        left -= 1
        message.ack()

    with Consumer(connection, [Queue("orders")], on_message=take, prefetch_count=100):
        for _ in range(BATCHES):
            producer.publish_many(range(BATCH))
            before, left = entries_read(connection), BATCH
            while left:
                connection.drain_events(timeout=20)
            connection.transport._session.flush()
            found.append(entries_read(connection) - before)
    return found


def test_acks_cost_the_same_before_a_vacuum_and_long_after_it(connection):
    for read in costs(connection):
        assert read["owned"] <= BATCH


@pytest.mark.parametrize("fate", ["ack", "reject", "requeue"])
def test_claimed_messages_that_were_moved_in_the_file_are_settled(postgresql_url, connection, fate):
    queue = Queue("orders")(connection)
    Producer(connection, routing_key="orders").publish_many(range(BATCH))
    queue.get(no_ack=True)
    moved = [queue.get() for _ in range(3)]
    with psycopg.connect(postgresql_url, autocommit=True) as admin:
        admin.execute(f"VACUUM FULL {connection.transport_options['table_prefix']}messages")
    for message in moved:
        getattr(message, fate)()
    connection.transport._session.flush()
    status = connection.transport.list_queues(connection.default_channel.channel_id)[0]
    assert (status.message_count, status.unacked) == (BATCH - (1 if fate == "requeue" else 4), 0)
    if fate == "requeue":
        assert [queue.get(no_ack=True).payload for _ in range(3)] == [1, 2, 3]


def test_claims_cost_the_same_while_a_long_transaction_holds_vacuum_back(postgresql_url, connection, monkeypatch):
    monkeypatch.setattr("kombulite.brokers.sql.marks.LOOKS_BETWEEN", 1e6)
    monkeypatch.setattr("kombulite.brokers.sql.marks.MAX_PAUSE", 1e6)
    with old_snapshot(postgresql_url):
        for read in costs(connection):
            assert read.total() <= 6 * BATCH


def test_message_that_comes_back_is_found_while_later_ones_are_claimed(postgresql_url, connection, monkeypatch):
    queue = Queue("orders")(connection)
    with Connection(postgresql_url, transport_options=connection.transport_options) as other:
        Producer(connection, routing_key="orders").publish_many(range(4))
        first = Queue("orders")(other).get()
        monkeypatch.setattr("kombulite.brokers.sql.marks.LOOKS_BETWEEN", 1e6)
        monkeypatch.setattr("kombulite.brokers.sql.marks.MAX_PAUSE", 1e6)
        assert queue.get(no_ack=True).payload == 1
        first.requeue()
        assert [queue.get(no_ack=True).payload for _ in range(3)] == [2, 3, 0]
        assert queue.get() is None


def test_message_that_comes_back_is_next_where_looks_are_due(postgresql_url, connection, monkeypatch):
    queue = Queue("orders")(connection)
    monkeypatch.setattr("kombulite.brokers.sql.marks.LOOKS_BETWEEN", 0)
    with Connection(postgresql_url, transport_options=connection.transport_options) as other:
        Producer(connection, routing_key="orders").publish_many(range(4))
        first = Queue("orders")(other).get()
        assert queue.get(no_ack=True).payload == 1
        first.requeue()
        assert [queue.get(no_ack=True).payload for _ in range(3)] == [0, 2, 3]


def test_look_that_took_long_does_not_put_off_the_next_for_long(monkeypatch):
    now = 0.0
    monkeypatch.setattr("kombulite.brokers.sql.marks.monotonic", lambda: now)
    marks, queue, starts = Marks(), QueueRecord(1, QueueSpec("orders"), Limits.of(QueueSpec("orders")), None), []

    def look(*start):
        nonlocal now
        starts.append(start)
        now += 25 if len(starts) == 1 else 0
        return [(len(starts), 0)]

    for seconds in (0, 29, 2):
        now += seconds
        marks.claim(queue, look)
    assert starts == [START, (0, 1), START]
