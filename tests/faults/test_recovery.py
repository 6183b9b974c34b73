"""A lost connection comes back as it was, or says why not."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions, uuid
from kombulite._client.lifecycle import State
from kombulite._sync.channel import Channel
from kombulite.brokers.base import Outcome
from kombulite.mixins import ConsumerMixin
from tests.faults.scenarios import check_retry, go_over_and_back
from tests.servers import RabbitMQServer, close_connections, evaluate, keep_declarations, version, wait_until


@pytest.fixture
def server(own_rabbitmq: RabbitMQServer) -> RabbitMQServer:
    return own_rabbitmq


@pytest.fixture
def connection(server: RabbitMQServer) -> Iterator[Connection]:
    with Connection(server.url) as connection:
        yield connection


@pytest.fixture
def other(server: RabbitMQServer) -> Iterator[Connection]:
    """A connection that the faults do not touch, for it is made after them."""
    with Connection(server.url) as connection:
        yield connection


def close_all(server: RabbitMQServer) -> None:
    """What an operator does to us."""
    close_connections(server, "maintenance")


def lose(connection: Connection) -> exceptions.ConnectionError:
    """Wait for the loss to be noticed."""
    with pytest.raises(connection.connection_errors) as caught:
        for _ in range(50):
            try:
                connection.drain_events(timeout=1)
            except TimeoutError:
                continue
    assert connection.state is State.LOST
    return caught.value


class Inbox:
    def __init__(self, channel: Any, queues: Any, **options: Any) -> None:
        self.messages: list[Any] = []
        self.consumer = Consumer(channel, queues, on_message=self.messages.append, **options)
        self.consumer.consume()

    def wait(self, connection: Connection, count: int) -> list[Any]:
        while len(self.messages) < count:
            connection.drain_events(timeout=10)
        return [message.payload for message in self.messages]


def test_consumer_goes_on_after_the_operator_closed_the_connection(server, connection, other):
    queue = Queue(uuid())
    inbox = Inbox(connection.channel(), queue)
    close_all(server)
    error = lose(connection)
    assert isinstance(error, exceptions.ConnectionForced)
    Producer(other).publish("after", routing_key=queue.name)
    assert inbox.wait(connection, 1) == ["after"]
    assert connection.state is State.OPEN
    inbox.messages[0].ack()


def test_consumer_goes_on_after_a_restart_of_the_broker(server, connection):
    queue = Queue(uuid())
    inbox = Inbox(connection.channel(), queue)
    keep_declarations(server)
    with Connection(server.url, transport_options={"confirm_publish": True}) as confirming:
        Producer(confirming).publish("before", routing_key=queue.name)
    inbox.wait(connection, 1)
    server.kill()
    lose(connection)
    server.start()
    connection.ensure_connection(max_retries=5, interval_start=1)
    with Connection(server.url) as other:
        Producer(other).publish("after", routing_key=queue.name)
    assert inbox.wait(connection, 3) == ["before", "before", "after"]  # the first had no ack
    assert inbox.messages[1].delivery_info["redelivered"]


def test_what_goes_with_a_connection_is_declared_again(server, connection, other):
    channel = connection.channel()
    exchange = Exchange(uuid(), "topic", auto_delete=True)
    queues = [
        Queue(uuid(), exchange, routing_key="a.*", exclusive=True),
        Queue(uuid(), exchange, routing_key="b.*", auto_delete=True),
        Queue(uuid(), exchange, routing_key="c.*", durable=False),
    ]
    inbox = Inbox(channel, queues)
    close_all(server)
    lose(connection)
    connection.ensure_connection()
    producer = Producer(other, exchange, auto_declare=False)
    for key in ("a.1", "b.1", "c.1"):
        producer.publish(key, routing_key=key)
    assert sorted(inbox.wait(connection, 3)) == ["a.1", "b.1", "c.1"]


def test_queue_that_the_broker_named_gets_a_new_name_and_keeps_its_bindings(server, connection, other):
    channel = connection.channel()
    exchange = Exchange(uuid())
    inbox = Inbox(channel, Queue("", exchange, routing_key="k", exclusive=True))
    close_all(server)
    lose(connection)
    connection.ensure_connection()
    Producer(other, exchange).publish("found", routing_key="k")
    assert inbox.wait(connection, 1) == ["found"]


def test_what_was_deleted_is_not_declared_again(server, connection, other):
    channel = connection.channel()
    exchange = Exchange(uuid(), durable=False)(channel)
    exchange.declare()
    queue = Queue(uuid(), exchange, routing_key="k", durable=False)(channel)
    queue.declare()
    queue.delete()
    exchange.delete()
    close_all(server)
    lose(connection)
    connection.ensure_connection()
    with pytest.raises(exceptions.NotFound):
        queue(other.channel()).queue_declare(passive=True)
    with pytest.raises(exceptions.NotFound):
        Exchange(exchange.name, passive=True)(other.channel()).declare()


def test_prefetch_limit_comes_back(server, connection, other):
    queue = Queue(uuid())
    inbox = Inbox(connection.channel(), queue, prefetch_count=2)
    close_all(server)
    lose(connection)
    connection.ensure_connection()
    Producer(other).publish_many(range(5), routing_key=queue.name)
    inbox.wait(connection, 2)
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.5)
    assert len(inbox.messages) == 2


def test_confirms_that_a_channel_asked_for_are_in_force_again(server, connection):
    channel = connection.channel()
    channel.confirm_select()
    full = Queue(uuid(), max_length=1, queue_arguments={"x-overflow": "reject-publish"})(channel)
    full.declare()
    producer = Producer(channel, routing_key=full.name)
    for taken in (True, False):
        close_all(server)
        lose(connection)
        connection.ensure_connection()
        if taken:
            producer.publish("taken")
        else:
            with pytest.raises(exceptions.MessageNacked):
                producer.publish("refused")
    full.delete()


def test_ack_of_a_message_of_the_lost_connection_acknowledges_no_other(server, connection, other):
    queue = Queue(uuid())
    inbox = Inbox(connection.channel(), queue)
    producer = Producer(other)
    producer.publish_many(["one", "two"], routing_key=queue.name)
    inbox.wait(connection, 2)
    close_all(server)
    lose(connection)
    connection.ensure_connection()
    inbox.wait(connection, 4)
    old, new = inbox.messages[:2], inbox.messages[2:]
    assert {message.delivery_tag for message in old}.isdisjoint(message.delivery_tag for message in new)
    for message in old:
        with pytest.raises(exceptions.RecoverableConnectionError):
            message.ack()
    new[1].ack(multiple=True)
    connection.release()
    with Connection(server.url) as afterwards:
        assert queue(afterwards).get() is None


def test_connection_that_cannot_be_restored_says_so_each_time(server, connection, other):
    queue = Queue(uuid())
    inbox = Inbox(connection.channel(), queue)
    close_all(server)
    lose(connection)
    queue(other).delete()
    for _ in range(2):
        with pytest.raises(exceptions.NotFound):
            connection.drain_events(timeout=20)
        assert connection.state is State.LOST
    queue(other).declare()
    Producer(other).publish("again", routing_key=queue.name)
    assert inbox.wait(connection, 1) == ["again"]


def test_queue_that_goes_with_the_old_connection_while_the_new_one_is_restored(server, connection, other, monkeypatch):
    """RabbitMQ may notice the loss late: the queue is there to be declared, but not to be consumed from."""
    queue = Queue(uuid(), auto_delete=True)
    inbox = Inbox(connection.channel(), queue)
    resume = Channel.resume

    def resume_late(channel: Channel, renamed: Any) -> None:
        monkeypatch.undo()
        queue(other).delete()
        resume(channel, renamed)

    monkeypatch.setattr(Channel, "resume", resume_late)
    close_all(server)
    lose(connection)
    connection.ensure_connection(max_retries=1, interval_start=0)
    Producer(other).publish("after", routing_key=queue.name)
    assert inbox.wait(connection, 1) == ["after"]


def test_publisher_that_tries_again_takes_the_consumers_along(server, connection):
    queue = Queue(uuid())
    inbox = Inbox(connection.channel(), queue)
    producer = Producer(connection)
    close_all(server)
    policy = {"max_retries": 3, "interval_start": 0.1}
    for i in range(3):
        producer.publish(i, routing_key=queue.name, retry=True, retry_policy=policy, timeout=20)
    while len(inbox.messages) < 3:
        try:
            connection.drain_events(timeout=10)
        except connection.recoverable_connection_errors:
            continue
    assert {message.payload for message in inbox.messages} >= {1, 2}  # the first may have gone with the connection


def test_consumer_that_is_revived_consumes_once(server, connection, other):
    queue = Queue(uuid())
    inbox = Inbox(connection.channel(), queue)
    close_all(server)
    lose(connection)
    connection.ensure_connection()
    inbox.consumer.revive(connection.channel())
    Producer(other).publish(1, routing_key=queue.name)
    assert inbox.wait(connection, 1) == [1]
    assert queue(other).queue_declare(passive=True).consumer_count == 1


def test_connection_that_was_let_go_takes_nothing_along(server, connection, other):
    queue = Queue(uuid())
    Inbox(connection.channel(), queue)
    close_all(server)
    lose(connection)
    connection.collect()
    assert connection.state is State.CLOSED
    connection.ensure_connection()
    assert queue(other).queue_declare(passive=True).consumer_count == 0


def test_states_are_logged(server, connection, caplog):
    caplog.set_level(logging.INFO, "kombulite.connection")
    connection.channel()
    close_all(server)
    lose(connection)
    connection.ensure_connection()
    connection.release()
    assert [record.state for record in caplog.records if record.name == "kombulite.connection"] == [
        "connecting", "open", "lost", "connecting", "restoring", "open", "closed",
    ]  # fmt: skip
    assert "guest:**@" in caplog.text


def test_broker_that_falls_silent_is_suspect_before_it_is_lost(server, caplog):
    caplog.set_level(logging.INFO, "kombulite.connection")
    with Connection(server.url, heartbeat=2) as connection:
        Consumer(connection.channel(), Queue(uuid(), auto_delete=True), on_message=print).consume()

        def drain_until(state: State) -> None:
            deadline = time.monotonic() + 30
            while connection.state is not state:
                assert time.monotonic() < deadline
                try:
                    connection.drain_events(timeout=0.05)
                except TimeoutError:
                    continue
                except connection.recoverable_connection_errors:
                    return

        server.pause()
        try:
            drain_until(State.SUSPECT)
            server.resume()
            drain_until(State.OPEN)
            server.pause()
            drain_until(State.LOST)
        finally:
            server.resume()
    states = [record.state for record in caplog.records if record.name == "kombulite.connection"]
    assert states == ["connecting", "open", "suspect", "open", "suspect", "lost", "closed"]


def test_threads_that_publish_again_reconnect_once(server):
    """Each of them sees the loss; one of them mends it."""
    with Connection(server.url, transport_options={"confirm_publish": True}) as connection:
        queue = Queue(uuid())(connection)
        queue.declare()
        opened = []
        create = connection.create_transport
        connection.create_transport = lambda: (opened.append(1), create())[1]

        def publish() -> None:
            producer = Producer(connection)
            for i in range(100):
                policy = {"max_retries": 3, "interval_start": 0.1}
                producer.publish(i, routing_key=queue.name, retry=True, retry_policy=policy)

        threads = [threading.Thread(target=publish) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        close_all(server)
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert len(opened) <= 2
    with Connection(server.url) as other:
        assert queue(other).queue_declare(passive=True).message_count >= 400
        queue(other).delete()


def test_auto_delete_queues_that_are_gone_are_not_brought_back(server, connection, other):
    channel = connection.channel()
    names = []
    for _ in range(5):
        queue = Queue(uuid(), auto_delete=True)
        with Consumer(channel, queue, on_message=print):
            names.append(queue.name)
    close_all(server)
    lose(connection)
    connection.ensure_connection()
    for name in names:
        with pytest.raises(exceptions.NotFound):
            Queue(name)(other.channel()).queue_declare(passive=True)


def test_acks_of_a_channel_that_the_broker_closed_before_the_loss_are_refused(server, connection, other):
    queue = Queue(uuid())
    inbox = Inbox(connection.channel(), queue)
    Producer(other).publish_many(range(3), routing_key=queue.name)
    inbox.wait(connection, 3)
    channel = inbox.consumer.channel
    channel._transport.settle(channel.channel_id, inbox.messages[2].delivery_tag, Outcome.ACK)
    channel._transport.settle(channel.channel_id, inbox.messages[2].delivery_tag, Outcome.ACK)  # twice: 406
    connection.channel()  # the broker's answer comes after the channel was closed, and nobody has drained
    close_all(server)
    with pytest.raises(connection.connection_errors):
        for _ in range(100):
            connection.channel()
    connection.ensure_connection()
    for message in inbox.messages[:2]:
        with pytest.raises((exceptions.ConnectionError, exceptions.ChannelError)):
            message.ack()


def test_state_may_be_asked_by_any_thread():
    stop = threading.Event()
    errors: list[BaseException] = []
    with Connection("memory://") as connection:

        def ask() -> None:
            try:
                while not stop.is_set():
                    assert connection.state in State
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        for _ in range(2000):
            connection.connect()
            connection.release()
        stop.set()
        thread.join(30)
    assert errors == []


# --- programs that consume for ever


class Worker(ConsumerMixin):
    def __init__(self, connection: Connection, queue: Queue, work: Any) -> None:
        self.connection, self.queue, self.work = connection, queue, work
        self.ready = threading.Semaphore(0)

    def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:
        return [Consumer(self.queue, on_message=self.work, prefetch_count=10)]

    def on_consume_ready(self, *args: Any, **kwargs: Any) -> None:
        self.ready.release()


@contextmanager
def working(server: RabbitMQServer, queue: Queue, work: Any) -> Iterator[Worker]:
    """A worker in a thread, which has begun to consume."""
    worker = Worker(Connection(server.url), queue, work)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        assert worker.ready.acquire(timeout=30)
        yield worker
    finally:
        worker.should_stop = True
        thread.join(30)
    assert not thread.is_alive()


def delete_queue(server: RabbitMQServer, queue: Queue) -> None:
    with Connection(server.url) as other:
        queue(other).delete()


def restart(server: RabbitMQServer, queue: Queue) -> None:
    keep_declarations(server)
    server.kill()
    server.start()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda server, queue: close_all(server), id="operator"),
        pytest.param(delete_queue, id="queue deleted"),
        pytest.param(restart, id="restart", marks=pytest.mark.soak),
    ],
)
def test_worker_goes_on(server, fault):
    queue = Queue(uuid())
    got: list[Any] = []
    with working(server, queue, lambda message: (got.append(message.payload), message.ack())) as worker:
        fault(server, queue)
        assert worker.ready.acquire(timeout=60)
        with Connection(server.url) as other:
            Producer(other).publish("after", routing_key=queue.name)
        wait_until(lambda: got == ["after"], 30, "the worker does not consume")


@pytest.fixture
def impatient_queue(server):
    """A queue whose consumers may keep a message for a second; by default it is half an hour.

    RabbitMQ 3 closes the channel then. RabbitMQ 4 heeds an argument of quorum queues alone, and cancels the consumer.
    """
    if is_version_4(server):
        yield Queue(uuid(), queue_arguments={"x-queue-type": "quorum", "x-consumer-timeout": 1000})
        return
    names = "consumer_timeout", "channel_tick_interval"

    def configure(*milliseconds: int) -> None:
        calls = (
            f"application:set_env(rabbit, {name}, {value})" for name, value in zip(names, milliseconds, strict=True)
        )
        evaluate(server, f"{', '.join(calls)}.")

    configure(1000, 500)
    yield Queue(uuid())
    configure(1_800_000, 60_000)


def is_version_4(server: RabbitMQServer) -> bool:
    return int(version("rabbitmqctl").split(".")[0]) >= 4


def test_consumer_that_keeps_a_message_too_long_is_told_and_may_go_on(server, impatient_queue):
    queue = impatient_queue
    with Connection(server.url) as connection:
        Producer(connection).publish("slow", routing_key=queue.name, declare=[queue])
        inbox = Inbox(connection.channel(), queue)
        refused = exceptions.ConsumerCancelled if is_version_4(server) else exceptions.PreconditionFailed
        with pytest.raises(refused, match="cancelled" if is_version_4(server) else "acknowledgement"):
            while True:
                connection.drain_events(timeout=30)
        assert inbox.messages[0].payload == "slow"
        if not is_version_4(server):
            with pytest.raises(exceptions.RecoverableConnectionError):
                inbox.messages[0].ack()
        inbox.consumer.revive(connection.channel())
        inbox.consumer.consume()
        assert inbox.wait(connection, 2) == ["slow", "slow"]
        inbox.messages[1].ack()


def test_worker_goes_on_after_it_kept_a_message_too_long(server, impatient_queue):
    queue, got = impatient_queue, []

    def work(message: Any) -> None:
        got.append(message)
        if len(got) > 1:
            message.ack()

    with Connection(server.url) as other:
        Producer(other).publish("slow", routing_key=queue.name, declare=[queue])
        with working(server, queue, work):
            wait_until(lambda: len(got) > 1, 30, "the message does not come again")
    assert got[1].delivery_info["redelivered"]


# --- several brokers


@pytest.mark.soak
def test_consumer_and_publisher_go_over_to_the_other_broker_and_back(start_server):
    brokers = [start_server(RabbitMQServer) for _ in range(2)]
    go_over_and_back(brokers, {"confirm_publish": True})


# --- what a retry leaves behind


def test_retry_does_what_the_policy_says_and_leaves_no_trace(server):
    options = {"confirm_publish": True, "max_retries": 7, "read_timeout": 5.0}
    with Connection(server.url, transport_options=dict(options)) as connection:
        check_retry(connection, lambda: close_all(server))
        assert connection.transport_options == options
        assert connection.transport.settings.options == options


def test_consumer_knows_the_new_name_of_its_queue(server, connection, other):
    exchange = Exchange(uuid())
    inbox = Inbox(connection.channel(), Queue("", exchange, routing_key="k", exclusive=True))
    (before,) = [queue.name for queue in inbox.consumer.queues]
    close_all(server)
    lose(connection)
    connection.ensure_connection()
    (now,) = [queue.name for queue in inbox.consumer.queues]
    assert now != before
    assert inbox.consumer.consuming_from(now)
    assert not inbox.consumer.consuming_from(before)
    inbox.consumer.cancel_by_queue(now)
    assert inbox.consumer.queues == []
    Producer(other, exchange).publish("nobody", routing_key="k")
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.2)


def test_a_batch_leaves_out_what_came_on_the_lost_connection(server, connection, other):
    queue, batches = Queue(uuid()), []
    consumer = Consumer(connection.channel(), queue, on_batch=batches.append, batch_size=3, batch_timeout=60)
    consumer.consume()
    producer = Producer(connection)
    producer.publish_many([1, 2], routing_key=queue.name)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.5)
    close_all(server)
    lose(connection)
    Producer(other).publish(3, routing_key=queue.name)
    while not batches:
        connection.drain_events(timeout=10)
    assert sorted(batches[0].payloads) == [1, 2, 3]
    batches[0].ack()  # of the new connection's messages
    consumer.channel.queue_declare(queue.name, passive=True)  # now the broker has the ack
    close_all(server)
    lose(connection)
    with pytest.raises(exceptions.RecoverableConnectionError):
        consumer.channel.settle_many([message.delivery_tag for message in batches[0]], Outcome.ACK)
    connection.ensure_connection()
    with pytest.raises(exceptions.RecoverableConnectionError):
        consumer.channel.settle_many([message.delivery_tag for message in batches[0]], Outcome.ACK)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.3)
    assert len(batches) == 1
