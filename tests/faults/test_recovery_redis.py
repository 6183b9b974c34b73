"""On Redis too a lost connection comes back with its consumers."""

from __future__ import annotations

import os
from typing import Any

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions, uuid
from kombulite.recovery import State
from tests.conftest import started
from tests.faults.test_forks_and_heartbeats import in_child, needs_fork
from tests.servers import RedisServer


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> RedisServer:
    return started(request, lambda: RedisServer(appendonly="yes", appendfsync="always"))


@pytest.fixture
def connection(server: RedisServer) -> Any:
    with Connection(server.url) as connection:
        yield connection


def lose(connection: Connection) -> None:
    with pytest.raises(connection.connection_errors):
        for _ in range(50):
            try:
                connection.drain_events(timeout=1)
            except TimeoutError as error:
                if error.errno is not None or not connection.connected:
                    raise
    assert connection.state is State.LOST


def kill_all(server: RedisServer) -> None:
    with redis.Redis(port=server.port) as client:
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind)


def consume(connection: Connection, queues: Any, messages: list[Any]) -> Consumer:
    consumer = Consumer(connection.channel(), queues, on_message=messages.append)
    consumer.consume()
    return consumer


def wait(connection: Connection, messages: list[Any], count: int) -> list[Any]:
    while len(messages) < count:
        connection.drain_events(timeout=10)
    return [message.payload for message in messages]


def test_consumer_goes_on_after_its_connections_were_killed(server, connection):
    queue, messages = Queue(uuid()), []
    consume(connection, queue, messages)
    kill_all(server)
    lose(connection)
    with Connection(server.url) as other:
        Producer(other).publish("after", routing_key=queue.name)
    assert wait(connection, messages, 1) == ["after"]
    assert connection.state is State.OPEN
    messages[0].ack()


def test_fanout_consumer_hears_again(server, connection):
    exchange = Exchange(uuid(), "fanout")
    messages: list[Any] = []
    consume(connection, Queue(uuid(), exchange, auto_delete=True), messages)
    kill_all(server)
    lose(connection)
    connection.ensure_connection()
    with Connection(server.url) as other:
        producer = Producer(other, exchange)
        while not messages:
            producer.publish("heard")
            try:
                connection.drain_events(timeout=0.5)
            except TimeoutError:
                continue
    assert messages[0].payload == "heard"


def test_consumer_goes_on_after_a_restart_with_what_it_had_not_acknowledged(server, connection):
    queue, messages = Queue(uuid()), []
    consume(connection, queue, messages)
    Producer(connection).publish("before", routing_key=queue.name)
    wait(connection, messages, 1)
    server.kill()
    lose(connection)
    server.start()
    connection.ensure_connection(max_retries=5, interval_start=1)
    assert wait(connection, messages, 2) == ["before", "before"]
    assert messages[1].delivery_info["redelivered"]
    with pytest.raises((exceptions.ChannelError, exceptions.ConnectionError)):
        messages[0].ack()  # it is the second's now
    messages[1].ack()
    connection.release()
    with Connection(server.url) as other:
        assert queue(other).get() is None


@needs_fork
def test_forked_child_leaves_its_parents_connection_alone(server, connection):
    queue, messages = Queue(uuid()), []
    consumer = consume(connection, queue, messages)
    producer = Producer(connection)
    parents = connection.transport

    def child() -> None:
        assert connection.state is State.CLOSED
        with pytest.raises(exceptions.RecoverableConnectionError):
            consumer.channel.basic_ack("x")
        producer.publish(os.getpid(), routing_key=queue.name)
        connection.release()

    for _ in range(3):
        in_child(child)
    producer.publish("parent", routing_key=queue.name)
    payloads = wait(connection, messages, 4)
    assert "parent" in payloads
    assert connection.transport is parents


def test_a_batch_leaves_out_what_came_on_the_lost_connection(server, connection):
    queue, batches = Queue(uuid()), []
    channel = connection.channel()
    Consumer(channel, queue, on_batch=batches.append, batch_size=3, batch_timeout=60).consume()
    Producer(channel).publish_many([1, 2], routing_key=queue.name)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.3)
    kill_all(server)
    lose(connection)
    connection.ensure_connection()
    Producer(channel).publish(3, routing_key=queue.name)
    while not batches:
        connection.drain_events(timeout=10)
    assert batches[0].payloads == [1, 2, 3]
    batches[0].ack()
    channel.close()
    with redis.Redis(port=server.port) as client:
        assert client.llen(queue.name) == 0
        assert client.hlen("unacked") == 0
