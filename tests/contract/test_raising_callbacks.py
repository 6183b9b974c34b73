"""A callback of the application that raises leaves connections, channels, consumers and pools as they should be."""

from __future__ import annotations

from typing import Any

import pytest

from kombulite import Connection, Consumer, Producer, Queue, pools
from kombulite._client.lifecycle import State
from kombulite.hooks import Hook
from kombulite.mixins import ConsumerMixin
from tests.contract.conftest import Broker, Inbox, drain, soon, take
from tests.servers import free_port


class Raised(Exception):
    """What the callbacks raise."""


def fail(*args: object) -> None:
    raise Raised


@pytest.fixture
def dead_first(broker: Broker) -> Connection:
    """A connection whose first host refuses; the second is the broker."""
    if broker.url.partition("://")[0] not in ("redis", "amqp", "postgresql"):
        pytest.skip("has no host that refuses")
    scheme = broker.url.partition("://")[0]
    connection = Connection(f"{scheme}://127.0.0.1:{free_port()};{broker.url}")
    broker._connections.append(connection)
    return connection


def test_an_errback_that_raises_does_not_keep_the_connection_at_a_dead_host(dead_first: Connection) -> None:
    with pytest.raises(Raised):
        dead_first.ensure_connection(errback=fail, max_retries=3)
    dead_first.ensure_connection(errback=fail, max_retries=0)
    assert dead_first.connected


@pytest.mark.parametrize("callback", ["errback", "on_revive"])
def test_callbacks_of_ensure_that_raise_leave_a_connection_that_works(broker: Broker, callback: str) -> None:
    connection = broker.connect()
    producer = Producer(connection)
    queue = Queue(broker.name("ensured"))(connection.default_channel)
    queue.declare()
    lost = [connection.recoverable_connection_errors[0]("lost")]

    def publish() -> None:
        if lost:
            raise lost.pop()
        producer.publish("x", routing_key=queue.name)

    with pytest.raises(Raised):
        connection.ensure(producer, publish, **{callback: fail})()
    publish()
    assert take(queue(connection.default_channel), 1, no_ack=True)[0].payload == "x"
    assert connection.state is State.OPEN


def test_a_password_that_raises(broker: Broker) -> None:
    passwords = [None]

    def password() -> object:
        return passwords[0] or fail()

    if "@" in broker.url:
        pytest.skip("the URL has the password")
    connection = broker.connect(password=password)
    with pytest.raises(Raised):
        connection.connect()
    assert connection.state is State.CLOSED


def test_a_callback_that_raises_loses_no_message(broker: Broker, connection: Connection, queue: Queue) -> None:
    bodies, left = [], [Raised, Raised]

    def receive(body, message):
        bodies.append(body)
        message.ack()
        if left:
            raise left.pop()

    Producer(connection).publish_many(range(5), routing_key=queue.name)
    with Consumer(connection.channel(), [queue], callbacks=[receive]):
        for _ in range(2):
            with pytest.raises(Raised):
                drain(connection, lambda: False)
        drain(connection, lambda: len(bodies) == 5)
    assert sorted(bodies) == [0, 1, 2, 3, 4]


def test_listeners_of_returned_messages_that_raise(broker: Broker, connection: Connection) -> None:
    seen = []

    def note(error, exchange, routing_key, message):
        seen.append(routing_key)
        raise Raised

    channel = connection.channel()
    channel.return_listeners += [note, lambda *args: seen.append("second")]
    producer = Producer(channel)
    nowhere = broker.name("nowhere")
    if broker.kind in ("redis", "rediscluster", "filesystem", "example"):
        pytest.skip("any name is a queue")
    with pytest.raises(Raised):
        producer.publish_many(range(2), routing_key=nowhere, mandatory=True)
        drain(connection, lambda: len(seen) == 2)
    if broker.kind == "amqp":  # one at a time, as they come
        with pytest.raises(Raised):
            drain(connection, lambda: len(seen) == 4)
    assert seen == [nowhere, "second"] * 2


def test_a_consumer_is_cancelled_whatever_its_callback_raises(
    broker: Broker, connection: Connection, queue: Queue
) -> None:
    other = Queue(broker.name("other"))(queue.channel)
    other.declare()
    consumer = Consumer(connection.channel(), [queue, other], callbacks=[fail], no_ack=True)
    consumer.consume()
    for each in (queue, other):
        Producer(connection).publish("x", routing_key=each.name)
    with pytest.raises(Raised):
        drain(connection, lambda: False)
    try:
        consumer.cancel()
    except Raised:
        pass
    assert not consumer.consuming_from(queue)
    assert not consumer.consuming_from(other)
    inbox = Inbox(connection.channel(), [queue, other])
    Producer(connection).publish("y", routing_key=other.name)
    drain(connection, lambda: "y" in inbox.bodies)


def test_a_hook_that_raises_for_a_message_that_was_fetched_puts_it_back(connection: Connection, queue: Queue) -> None:
    class Failing(Hook):
        get = fail

    Producer(connection).publish("x", routing_key=queue.name)
    hook = Failing()
    connection.add_hook(hook)
    with pytest.raises(Raised):
        soon(queue.get)
    connection.remove_hook(hook)
    message = soon(queue.get)
    assert message.payload == "x"
    message.ack()


def test_pools_are_reset_whatever_closing_raises(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = broker.connect()
    pool = pools.connections[connection]
    first, second = pool.acquire(), pool.acquire()
    for each in (first, second):
        each.ensure_connection()
    monkeypatch.setattr(first, "collect", fail)
    pools.reset()  # such errors are nobody's, as with kombu
    assert not second.connected
    assert pools.connections[connection] is not pool
    monkeypatch.undo()
    first.collect()
    pools.reset()


def test_leaving_a_connection_by_an_error(broker: Broker) -> None:
    with pytest.raises(Raised), broker.connect() as connection:
        connection.ensure_connection()
        fail()
    assert connection.state is State.CLOSED


@pytest.mark.parametrize("callback", ["on_connection_revived", "on_consume_ready", "on_iteration", "on_consume_end"])
def test_a_program_with_the_mixin_ends_its_connection_whatever_a_callback_raises(callback: str) -> None:
    """And begins anew: what it had is there for the next run."""
    opened: list[Connection] = []
    got: list[Any] = []
    is_raising = True

    class Program(ConsumerMixin):
        connection = Connection("memory://")

        def create_connection(self) -> Connection:
            opened.append(super().create_connection())
            return opened[-1]

        def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:
            return [Consumer(Queue("raising", auto_delete=False), on_message=self.take)]

        def take(self, message: Any) -> None:
            got.append(message.payload)
            message.ack()
            self.should_stop = True

        def __init__(self) -> None:
            setattr(self, callback, maybe_fail)

    def maybe_fail(*arguments: Any, **options: Any) -> None:
        if is_raising:
            raise Raised

    with Connection("memory://") as other:
        Producer(other).publish("x", routing_key="raising", declare=[Queue("raising")])
        with pytest.raises(Raised):
            Program().run()
        assert not opened[0].connected
        is_raising = False
        if not got:
            Program().run()
        assert got == ["x"]
        Queue("raising")(other).delete()
