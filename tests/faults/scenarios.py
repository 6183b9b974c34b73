"""What has to hold on every broker alike."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from kombulite import Connection, Consumer, Producer, Queue, exceptions, uuid
from tests.servers import RabbitMQServer, Server, keep_declarations

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")


def in_child(work: Any) -> None:
    """Run ``work()`` in a forked child; it must not raise."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 30
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.02)


def go_over_and_back(brokers: Sequence[Server], options: Mapping[str, Any]) -> None:
    """A consumer and a publisher with two brokers, of which now one is there, then the other. Both have the queue."""
    queue, got = Queue(uuid()), []

    def take(message: Any) -> None:
        got.append(message.payload)
        message.ack()

    urls = [broker.url for broker in brokers]
    for broker in brokers:
        with Connection(broker.url) as connection:
            queue(connection).declare()
        if isinstance(broker, RabbitMQServer):
            keep_declarations(broker)
    policy = {"max_retries": 20, "interval_start": 0.1, "interval_max": 0.5}
    with Connection(urls, transport_options=options) as consuming, Connection(urls, transport_options=options) as other:
        Consumer(consuming.channel(), queue, on_message=take).consume()
        producer = Producer(other)
        for number, (alive, dead) in enumerate([(0, 1), (1, 0), (0, 1)]):
            if number:
                brokers[dead].kill()
            producer.publish(number, routing_key=queue.name, retry=True, retry_policy=policy, timeout=10)
            assert other.port == brokers[alive].port
            deadline = time.monotonic() + 60
            while number not in got:
                assert time.monotonic() < deadline
                try:
                    consuming.drain_events(timeout=1)
                except TimeoutError:
                    continue
                except consuming.recoverable_connection_errors:
                    consuming.ensure_connection(max_retries=20, interval_start=0.1, interval_max=0.5)
            assert consuming.port == brokers[alive].port
            if number:
                brokers[dead].start()
    assert set(got) == {0, 1, 2}  # one whose ack went with its broker comes twice


def check_retry(connection: Connection, lose: Callable[[], None]) -> None:
    """``publish(retry=True)`` tries as often as the policy says, tells of it, and revives; then it gives up."""
    queue = Queue(uuid())
    producer = Producer(connection)
    producer.publish("first", routing_key=queue.name, declare=[queue])
    told: list[Any] = []
    revived: list[Any] = []
    policy = {"max_retries": 3, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    policy |= {"errback": lambda error, interval: told.append(interval), "on_revive": revived.append}
    lose()
    producer.publish("again", routing_key=queue.name, retry=True, retry_policy=policy)
    assert len(told) == len(revived) == 1
    assert queue(connection).queue_declare(passive=True).message_count == 2
    told.clear()

    calls = []

    def fail() -> None:
        calls.append(1)
        raise exceptions.RecoverableConnectionError("lost")

    with pytest.raises(exceptions.OperationalError):
        connection.ensure(producer, fail, **policy)()
    assert len(calls) == 4
    assert len(told) == 3
    with pytest.raises(exceptions.AccessRefused):
        connection.ensure(producer, _refuse, **policy)()
    assert len(told) == 3
    queue(connection).delete()


def _refuse() -> None:
    raise exceptions.AccessRefused("not for you")


def fork_while_another_thread_publishes(connection: Connection) -> None:
    """Ten children publish on their own connections while a thread of the parent does: all arrives, once."""
    queue = Queue(uuid())(connection)
    queue.declare()
    stop = threading.Event()
    published = [0]

    def publish() -> None:
        producer = Producer(connection)
        while not stop.is_set():
            producer.publish("x" * 1000, routing_key=queue.name)
            published[0] += 1

    def child() -> None:
        Producer(connection).publish("child", routing_key=queue.name)
        connection.release()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        for _ in range(10):
            in_child(child)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert queue.purge() == published[0] + 10
    queue.delete()
