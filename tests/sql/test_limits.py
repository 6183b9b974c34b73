"""Limits of queues on PostgreSQL, whatever plan its planner chooses."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from uuid import uuid4

import psycopg
import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions

#: Settings that lead the planner to one join or another. In the last a sub-select runs again for each row.
PLANS = {
    "hash": "enable_nestloop enable_mergejoin",
    "merge": "enable_hashjoin enable_nestloop",
    "loop": "enable_hashjoin enable_mergejoin",
    "again and again": "enable_hashjoin enable_hashagg enable_material enable_sort",
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_full_queue_drops_its_excess_and_no_more(postgresql_url, plan):
    settings = " ".join(f"-c {name}=off" for name in PLANS[plan].split())
    options = {"table_prefix": f"p{uuid4().hex[:10]}_", "connect_args": {"options": settings}}
    with Connection(postgresql_url, transport_options=options) as connection:
        queue = Queue("short", max_length=3)(connection.default_channel)
        queue.declare()
        Producer(connection).publish_many(range(5), routing_key="short")
        assert [queue.get(no_ack=True).payload for _ in range(3)] == [2, 3, 4]
        assert queue.get() is None


@pytest.mark.parametrize("limit", [{"max_length": 3}, {"max_length_bytes": 3}], ids=["messages", "bytes"])
def test_a_full_queue_is_counted_once_for_a_publish(database, monkeypatch, limit):
    """To count it reads all that waits in it."""
    connection, counted = database.connect(), []
    queue = Queue("short", **limit)(connection)
    queue.declare()
    producer = Producer(connection, routing_key="short")
    producer.publish_many(range(3))
    rows = connection.transport._database.rows

    def note(statement, *values):
        counted.extend(["count"] * ("count(*)" in statement))
        return rows(statement, *values)

    with monkeypatch.context() as patch:
        patch.setattr(connection.transport._database, "rows", note)
        producer.publish(3)
        producer.publish_many(range(4, 6))
    assert len(counted) == 2
    assert [queue.get(no_ack=True).payload for _ in range(3)] == [3, 4, 5]
    assert queue.get() is None


@pytest.mark.parametrize("is_batch", [False, True], ids=["one", "batch"])
@pytest.mark.parametrize("overflow", ["reject-publish", "drop-head"])
def test_publishers_at_the_same_time_keep_to_the_limit(postgresql_url, overflow, is_batch):
    options = {"table_prefix": f"p{uuid4().hex[:10]}_"}
    with (
        Connection(postgresql_url, transport_options=options) as first,
        Connection(postgresql_url, transport_options=options) as second,
        psycopg.connect(postgresql_url, autocommit=True) as admin,
        ThreadPoolExecutor(1) as thread,
    ):
        queue = Queue("short", queue_arguments={"x-max-length": 1, "x-overflow": overflow})(first)
        queue.declare()
        producer = Producer(second, routing_key="short")
        producer.publish("it is connected")
        queue.purge()
        backend = second.transport._database.value("SELECT pg_backend_pid()")
        with first.transport._session.transaction():
            Producer(first, routing_key="short").publish(1)
            publishing = thread.submit(producer.publish_many, [2]) if is_batch else thread.submit(producer.publish, 2)
            waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
            deadline = time.monotonic() + 20
            while admin.execute(waits, [backend]).fetchone() != (True,):
                assert time.monotonic() < deadline, "it does not wait for the other"
                time.sleep(0.01)
        if overflow == "drop-head":
            publishing.result(20)
        else:
            with pytest.raises((exceptions.MessageNacked, exceptions.BatchPublishError)):
                publishing.result(20)
        assert queue.get(no_ack=True).payload == (2 if overflow == "drop-head" else 1)
        assert queue.get() is None


@pytest.mark.parametrize("is_batch", [False, True], ids=["one", "batch"])
def test_consumer_that_waits_gets_a_dead_letter_of_a_queue_without_consumers(database, monkeypatch, is_batch):
    receiver, sender = database.connect(), database.connect()
    dead = Queue("dead", Exchange("dead", "fanout"))
    Queue("orders", queue_arguments={"x-dead-letter-exchange": "dead"})(sender).declare()
    got, is_waiting = [], Event()
    with Consumer(receiver, [dead], on_message=got.append), ThreadPoolExecutor(1) as thread:
        transport = receiver.transport
        transport._started_at, transport._database.look_interval = 0, 3600
        wait = transport._wait_for_news
        monkeypatch.setattr(transport, "_wait_for_news", lambda seconds: (is_waiting.set(), wait(seconds)))
        consuming = thread.submit(receiver.drain_events, timeout=30)
        assert is_waiting.wait(20)
        producer = Producer(sender, routing_key="orders")
        producer.publish_many([1], expiration=0.1) if is_batch else producer.publish(1, expiration=0.1)
        consuming.result(30)
        assert [message.payload for message in got] == [1]


@pytest.mark.parametrize("is_batch", [False, True], ids=["one", "batch"])
def test_message_that_expires_and_is_no_dead_letter_then_wakes_nobody(postgresql_url, is_batch):
    """A notification takes a lock of the whole cluster."""
    options = {"table_prefix": f"p{uuid4().hex[:10]}_"}
    with (
        Connection(postgresql_url, transport_options=options) as connection,
        psycopg.connect(postgresql_url, autocommit=True) as listener,
    ):
        Queue("results")(connection).declare()
        producer, channel = Producer(connection, routing_key="results"), connection.transport._database.channel
        listener.execute(f'LISTEN "{channel}"')
        producer.publish_many([1], expiration=60) if is_batch else producer.publish(1, expiration=60)
        listener.execute("SELECT pg_notify(%s, 'ours')", [channel])
        assert [each.payload for each in listener.notifies(timeout=20, stop_after=1)] == ["ours"]
