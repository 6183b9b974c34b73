"""On Redis too a lost connection comes back with its consumers."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions, uuid
from kombulite._client.lifecycle import State
from kombulite.asynchronous import Hub
from kombulite.mixins import ConsumerMixin
from tests.faults.scenarios import (
    check_retry,
    fork_while_another_thread_publishes,
    go_over_and_back,
    in_child,
    needs_fork,
)
from tests.servers import RedisServer, wait_until

pytestmark = pytest.mark.usefixtures("killed_is_lost")


@pytest.fixture
def server(own_redis: RedisServer) -> RedisServer:
    return own_redis


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
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.5)
    messages.clear()  # as long as the application has it, it is not delivered again
    assert wait(connection, messages, 1) == ["before"]
    assert messages[0].delivery_info["redelivered"]
    messages[0].ack()
    connection.release()
    with Connection(server.url) as other:
        assert queue(other).get() is None


def test_consumer_that_is_cancelled_while_the_connection_is_lost_does_not_come_back(server, connection):
    queue, messages = Queue(uuid()), []
    consumer = consume(connection, queue, messages)
    server.restart()
    lose(connection)
    consumer.cancel()
    Producer(connection).publish("after", routing_key=queue.name)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.2)
    assert messages == []
    assert queue(connection).get().payload == "after"


def test_server_that_falls_silent_is_suspect_before_it_is_lost(server):
    options = {"socket_timeout": 3, "health_check_interval": 0.2}
    with Connection(server.url, transport_options=options) as connection:
        consume(connection, Queue(uuid()), [])
        seen = [connection.state]

        def look() -> None:
            if connection.state is not seen[-1]:
                seen.append(connection.state)

        server.pause()
        try:
            while seen[-1] is not State.SUSPECT:
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.05)
                look()
            server.resume()
            while seen[-1] is not State.OPEN:
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.05)
                look()
            server.pause()
            lose(connection)
        finally:
            server.resume()
    assert seen == [State.OPEN, State.SUSPECT, State.OPEN]


def test_event_loop_notices_that_the_server_fell_silent(server):
    """There nobody waits inside the transport, as a worker of Celery does not: it would be deaf for ever."""
    hub = Hub()
    options = {"socket_timeout": 1.5, "health_check_interval": 0.2}
    with Connection(server.url, transport_options=options) as connection:
        messages = []
        consume(connection, Queue(uuid()), messages)
        connection.register_with_event_loop(hub)
        hub.call_repeatedly(0.05, lambda: None)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:  # one that answers is not lost
            hub.run_once()
        server.pause()
        try:
            deadline = time.monotonic() + 30
            with pytest.raises(connection.connection_errors):
                while time.monotonic() < deadline:
                    hub.run_once()
        finally:
            server.resume()
        hub.close()


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


# --- programs that consume for ever


class Worker(ConsumerMixin):
    def __init__(self, connection: Connection, queue: Queue, got: list[Any]) -> None:
        self.connection, self.queue, self.got = connection, queue, got

    def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:
        return [Consumer(self.queue, on_message=self.take)]

    def take(self, message: Any) -> None:
        self.got.append(message.payload)
        message.ack()


def flush_scripts(server: RedisServer, queue: Queue) -> None:
    with redis.Redis(port=server.port) as client:
        client.script_flush()


def delete_queue(server: RedisServer, queue: Queue) -> None:
    with Connection(server.url) as other:
        queue(other).delete()


def fill_memory(server: RedisServer, queue: Queue) -> None:
    """For a second nothing can be written."""
    with redis.Redis(port=server.port) as client, Connection(server.url) as other:
        client.config_set("maxmemory", 1)
        with pytest.raises(exceptions.MessageNacked):
            Producer(other).publish("refused", routing_key=queue.name)
        client.config_set("maxmemory", 0)


def restart(server: RedisServer, queue: Queue) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize(
    "fault", [lambda server, queue: kill_all(server), flush_scripts, delete_queue, fill_memory, restart]
)
def test_worker_goes_on(server, fault):
    queue, got = Queue(uuid()), []
    worker = Worker(Connection(server.url), queue, got)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        with Connection(server.url) as other:
            Producer(other).publish("before", routing_key=queue.name)
        wait_until(lambda: got == ["before"], 30, "the worker does not consume")
        fault(server, queue)
        with Connection(server.url) as other:
            Producer(other).publish("after", routing_key=queue.name)
        wait_until(lambda: got == ["before", "after"], 30, "the worker does not go on")
    finally:
        worker.should_stop = True
        thread.join(30)
    assert not thread.is_alive()


# --- several servers


def test_consumer_and_publisher_go_over_to_the_other_server_and_back(start_server):
    go_over_and_back([start_server(lambda: RedisServer(appendonly="yes")) for _ in range(2)], {})


# --- what a retry leaves behind


def test_retry_does_what_the_policy_says_and_leaves_no_trace(server):
    options = {"visibility_timeout": 60, "max_retries": 7}
    with Connection(server.url, transport_options=dict(options)) as connection:
        check_retry(connection, lambda: kill_all(server))
        assert connection.transport_options == options
        assert connection.transport.settings.options == options


# --- what is tried again, and what is not


def answering(answer: bytes | None) -> Any:
    """A port where somebody answers each connection with the same bytes, or not at all."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        open_: list[socket.socket] = []
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                open_.append(peer)
                if answer is not None:
                    peer.recv(1)
                    peer.sendall(answer)
        for peer in open_:
            peer.close()

    threading.Thread(target=serve, daemon=True).start()
    return listener


def test_refused_port_is_tried_again():
    told: list[Any] = []
    with Connection("redis://127.0.0.1:1") as connection, pytest.raises(exceptions.OperationalError):
        connection.ensure_connection(lambda error, interval: told.append(error), max_retries=2, interval_start=0)
    assert len(told) == 2


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x01AMQP"])
def test_somebody_who_does_not_speak_resp_is_not_tried_again(answer):
    told: list[Any] = []
    with answering(answer) as listener, Connection(f"redis://127.0.0.1:{listener.getsockname()[1]}") as connection:
        with pytest.raises(exceptions.FrameError):
            connection.ensure_connection(lambda error, interval: told.append(error), max_retries=2, interval_start=0)
        listener.shutdown(socket.SHUT_RDWR)
    assert told == []


def test_database_that_is_not_there_is_not_tried_again(server):
    told: list[Any] = []
    with Connection(f"redis://127.0.0.1:{server.port}/99") as connection, pytest.raises(exceptions.NotAllowed):
        connection.ensure_connection(lambda error, interval: told.append(error), max_retries=2, interval_start=0)
    assert told == []


def test_peer_that_says_nothing_is_tried_again_in_time():
    told: list[Any] = []
    with answering(None) as listener:
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        with Connection(url, connect_timeout=0.2) as connection, pytest.raises(exceptions.OperationalError):
            connection.ensure_connection(lambda error, interval: told.append(error), max_retries=2, interval_start=0)
        listener.shutdown(socket.SHUT_RDWR)
    assert len(told) == 2


@contextmanager
def silent_after_login(server: RedisServer) -> Any:
    """The port of somebody who passes a login on to the server, and nothing after it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError), listener.accept()[0] as ours:
                with socket.create_connection(("127.0.0.1", server.port)) as theirs:
                    while b"TRACKING" not in (asked := ours.recv(65536)) and asked:
                        theirs.sendall(asked)
                        ours.sendall(theirs.recv(65536))
                    ours.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)


def test_server_that_falls_silent_after_the_login_is_given_up_in_time(server):
    """What follows the login is part of connecting."""
    with silent_after_login(server) as port, Connection(f"redis://127.0.0.1:{port}", connect_timeout=0.5) as connection:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
        assert time.monotonic() - started < 20  # the deadline of a request is 30


# --- what ends in time


def test_release_of_a_connection_to_a_server_that_hangs(server, monkeypatch):
    monkeypatch.setattr("kombulite.brokers.redis.CLOSE_TIMEOUT", 0.3)
    queue, messages = Queue(uuid()), []
    connection = Connection(server.url)
    consume(connection, queue, messages)
    Producer(connection).publish("held", routing_key=queue.name)
    wait(connection, messages, 1)
    server.pause()
    try:
        started = time.monotonic()
        connection.release()
        assert time.monotonic() - started < 20  # the deadline of a request is 30
    finally:
        server.resume()
    with Connection(server.url) as other:  # it puts back what the first one held
        assert queue(other).get().payload == "held"


# --- threads and forks


def test_eight_threads_share_a_connection(server):
    queue, got = Queue(uuid()), []
    errors: list[BaseException] = []
    with Connection(server.url) as connection:
        queue(connection).declare()

        def guarded(work: Any, number: int) -> None:
            try:
                work(number)
            except BaseException as error:
                errors.append(error)
                raise

        def publish(number: int) -> None:
            producer = Producer(connection.channel())
            for i in range(100):
                producer.publish((number, i), routing_key=queue.name)
                queue(producer.channel).queue_declare(passive=True)

        def take(number: int) -> None:
            def on_message(message: Any) -> None:
                got.append(tuple(message.payload))
                message.ack()

            with Consumer(connection.channel(), queue, on_message=on_message, prefetch_count=10):
                while len(got) < 400 and not errors:
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.2)

        works = [publish] * 4 + [take] * 4
        threads = [threading.Thread(target=guarded, args=each) for each in zip(works, range(8), strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert queue(connection).get() is None
    assert errors == []
    assert sorted(got) == [(number, i) for number in range(4) for i in range(100)]


@needs_fork
def test_fork_while_another_thread_publishes(server):
    with Connection(server.url) as connection:
        fork_while_another_thread_publishes(connection)


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
        assert not any(client.hexists("unacked", message.delivery_tag) for message in batches[0])
