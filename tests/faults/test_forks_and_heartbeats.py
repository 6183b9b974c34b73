"""A forked child leaves its parent's connection alone; heartbeats go on while nobody reads."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from kombulite import Connection, Consumer, Producer, Queue, exceptions, uuid
from kombulite._client.lifecycle import State
from tests.faults.scenarios import fork_while_another_thread_publishes, in_child, needs_fork


@needs_fork
def test_child_connects_anew_and_the_parent_goes_on(amqp_url):
    with Connection(amqp_url) as connection:
        queue = Queue(uuid())
        got: list[Any] = []
        consumer = Consumer(connection, queue, on_message=lambda message: (got.append(message.payload), message.ack()))
        consumer.consume()
        producer = Producer(connection)
        parents = connection.transport

        def child() -> None:
            assert connection.state is State.CLOSED
            assert not parents.connected
            with pytest.raises(exceptions.RecoverableConnectionError):
                consumer.channel.basic_ack(1)
            producer.publish("child", routing_key=queue.name)
            assert connection.transport is not parents
            connection.release()

        for _ in range(3):
            pid_status = in_child(child)
            assert pid_status is None
        producer.publish("parent", routing_key=queue.name)
        while len(got) < 4:
            connection.drain_events(timeout=10)
        assert sorted(got) == ["child"] * 3 + ["parent"]
        assert connection.transport is parents
        # The child's connections did not take the consumer along.
        assert queue(connection).queue_declare(passive=True).consumer_count == 1
        queue(connection).delete()


@needs_fork
def test_fork_while_another_thread_publishes(amqp_url):
    with Connection(amqp_url, transport_options={"confirm_publish": True}) as connection:
        fork_while_another_thread_publishes(connection)


@pytest.mark.parametrize("threaded", [True, False])
def test_heartbeats_go_on_while_a_callback_runs(amqp_url, threaded):
    options = {"heartbeat_thread": threaded}
    with Connection(amqp_url, heartbeat=1, transport_options=options) as connection:
        queue = Queue(uuid(), auto_delete=True)
        done = []

        def work(message: Any) -> None:
            time.sleep(5)
            message.ack()
            done.append(message)

        Consumer(connection, queue, on_message=work).consume()
        assert connection.get_heartbeat_interval() == 1
        Producer(connection).publish("slow", routing_key=queue.name)
        if threaded:
            connection.drain_events(timeout=10)
            queue(connection).queue_declare(passive=True)  # the connection is well
            assert done
        else:
            with pytest.raises(connection.connection_errors):  # the broker gave us up
                connection.drain_events(timeout=10)
                queue(connection).queue_declare(passive=True)


def test_heartbeat_thread_ends_with_the_connections(amqp_url):
    def beating() -> bool:
        return any(thread.name == "kombulite-heartbeats" for thread in threading.enumerate())

    with Connection(amqp_url, heartbeat=1) as connection:
        connection.connect()
        assert beating()
    deadline = time.monotonic() + 10
    while beating() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not beating()
