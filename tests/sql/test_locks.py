"""Row locks of PostgreSQL: connections wait for each other in one order, and count a queue while they hold it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions
from kombulite._core import Delivery, make_properties
from tests.sql.conftest import LockedDatabase

LIMITED = {"x-max-length": 10, "x-overflow": "reject-publish"}


@pytest.fixture
def options():
    return {"table_prefix": f"k{uuid4().hex[:10]}_", "lease": 600}


@pytest.fixture
def first(postgresql_url, options):
    with Connection(postgresql_url, transport_options=options) as connection:
        connection.connect()
        yield connection


@pytest.fixture
def second(postgresql_url, options, first):
    with Connection(postgresql_url, transport_options=options) as connection:
        connection.connect()
        yield connection


@pytest.fixture
def meanwhile(postgresql_url, second):
    """Return what runs a call of the second connection in a thread until it is done, or waits for a lock."""
    backend = LockedDatabase(second.transport).value("SELECT pg_backend_pid()")
    waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
    with psycopg.connect(postgresql_url, autocommit=True) as admin, ThreadPoolExecutor(1) as thread:

        def run(call, *arguments, **keywords):
            running = thread.submit(call, *arguments, **keywords)
            deadline = time.monotonic() + 20
            while not running.done() and admin.execute(waits, [backend]).fetchone() != (True,):
                assert time.monotonic() < deadline, "it neither ends nor waits"
                time.sleep(0.005)
            return running

        yield run


@pytest.fixture
def when_locked(first, monkeypatch):
    """Return what has a function called when the first connection has locked a queue, before it looks for room."""

    def call(function):
        messages = first.transport._messages
        look = messages._check_room

        def check_room(queues, delivery):
            monkeypatch.setattr(messages, "_check_room", look)
            function()
            look(queues, delivery)

        monkeypatch.setattr(messages, "_check_room", check_room)

    return call


def batch(connection, *names, **properties):
    """Publish a message into each of the queues, as one batch."""
    deliveries = [Delivery("", name, make_properties(None, None, None, 2, 0, properties), b"x") for name in names]
    return connection.transport.publish_many(connection.default_channel.channel_id, deliveries)


def size(connection, name):
    return Queue(name)(connection).queue_declare(passive=True).message_count


def test_batches_lock_their_queues_in_one_order(first, second, meanwhile, when_locked):
    for name in "ab":
        Queue(name, queue_arguments=LIMITED)(first).declare()
    batch(second, "a")  # it has seen them
    running = []
    when_locked(lambda: running.append(meanwhile(batch, second, "b", "a")))
    assert batch(first, "a", "b") == []
    assert running[0].result(20) == []
    assert [size(first, name) for name in "ab"] == [3, 2]


def test_message_that_is_due_is_left_to_the_connection_that_releases_it(first, second, meanwhile, when_locked):
    for name, arguments in (("q", LIMITED), ("later", None)):
        Queue(name, queue_arguments=arguments)(first).declare()
    batch(second, "q")
    running = []

    def release_and_publish():
        Producer(second).publish(1, routing_key="later", eta=1)
        running.append(meanwhile(batch, second, "q"))

    when_locked(release_and_publish)
    assert batch(first, "q", "q") == []
    assert running[0].result(20) == []
    assert [size(first, name) for name in ("q", "later")] == [4, 1]


def test_released_messages_are_locked_without_a_wait_for_another_release(first, second, meanwhile):
    Queue("later")(first).declare()
    Producer(first).publish(1, routing_key="later", eta=1)
    with first.transport._session.transaction():
        assert first.transport._session.pass_time()
        running = meanwhile(second.transport.list_queues, second.default_channel.channel_id)
        assert running.done(), "it waits for rows of the other"
        running.result(20)
    assert size(second, "later") == 1


def test_queue_is_declared_before_others_are_locked(first, second, meanwhile, when_locked):
    Queue("q", queue_arguments=LIMITED)(first).declare()
    batch(second, "q")
    running = []
    when_locked(lambda: running.append(meanwhile(Queue("q")(second).delete)))
    assert batch(first, "q", "new") == []
    running[0].result(20)
    assert size(first, "new") == 1
    with pytest.raises(exceptions.NotFound):
        size(first, "q")


def test_queue_that_goes_with_its_consumer_and_is_deleted_at_once(first, second, meanwhile, monkeypatch):
    queue = Queue("q", auto_delete=True)
    topology, running = first.transport._topology, []
    with Consumer(first, [queue]):
        remove = topology.remove_consumer

        def remove_and_delete(*consumer):
            remove(*consumer)
            running.append(meanwhile(Queue("q")(second).delete))

        monkeypatch.setattr(topology, "remove_consumer", remove_and_delete)
    running[0].result(20)
    with pytest.raises(exceptions.NotFound):
        size(first, "q")


def test_queue_of_a_lost_connection_goes_while_another_is_deleted(
    first, second, meanwhile, monkeypatch, postgresql_url, options
):
    queue = Queue("q")(first)
    queue.declare()
    Producer(first).publish(1, routing_key="q")
    with Connection(postgresql_url, transport_options=options) as lost:
        Queue("own", exclusive=True)(lost).declare()
        assert Queue("q")(lost).get() is not None
        LockedDatabase(first.transport).rows(
            "UPDATE {p}connections SET alive_until = 0 WHERE id = ?", lost.transport._topology.connection
        )
        messages, running = first.transport._messages, []
        give_back = messages.return_from_the_dead

        def give_back_and_delete():
            returned = give_back()
            running.append(meanwhile(Queue("q")(second).delete))
            return returned

        monkeypatch.setattr(messages, "return_from_the_dead", give_back_and_delete)
        first.transport._session._renew()
        running[0].result(20)
        names = first.transport.list_queues(first.default_channel.channel_id)
        assert names == []


def test_two_renewals_at_once_keep_the_limit(first, second, meanwhile, monkeypatch, postgresql_url):
    """What an application's own transactions published is dropped by renewals: each by one of them."""
    queue = Queue("short", max_length=3)(first)
    queue.declare()
    second.transport._session._renew()  # it has seen the queue
    with psycopg.connect(postgresql_url, autocommit=True) as application:
        for number in range(5):
            Producer(first).publish(number, routing_key="short", via=application)
    messages, running = first.transport._messages, []
    drop_excess = messages.drop_excess

    def drop_and_hold(queues):
        drop_excess(queues)
        if not running:
            running.append(meanwhile(second.transport._session._renew))

    monkeypatch.setattr(messages, "drop_excess", drop_and_hold)
    first.transport._session._renew()
    running[0].result(20)
    assert [queue.get(no_ack=True).payload for _ in range(3)] == [2, 3, 4]
    assert queue.get() is None


def test_dead_letters_are_counted_with_what_others_publish_at_once(first, second, meanwhile):
    dead = Queue("dead", Exchange("dead", "fanout"), max_length=1)(first)
    dead.declare()
    source = Queue("q", queue_arguments={"x-dead-letter-exchange": "dead"})(second)
    source.declare()
    Producer(second).publish("rejected", routing_key="q")
    message = source.get()
    with first.transport._session.transaction():
        Producer(first).publish("published", routing_key="dead")
        running = meanwhile(message.reject)
    running.result(20)
    assert dead.get(no_ack=True).payload in ("published", "rejected")
    assert dead.get() is None


def test_dead_letters_lock_no_queue_behind_another(first, second, meanwhile, monkeypatch):
    """A queue that drops its oldest has its dead letters in one that the other connection locks before it."""
    Queue("dead", Exchange("dead", "fanout"), max_length=1)(first).declare()
    Queue("q", max_length=1, queue_arguments={"x-dead-letter-exchange": "dead"})(first).declare()
    batch(second, "q", "dead")
    messages, running = first.transport._messages, []
    drop_excess = messages.drop_excess

    def drop_meanwhile(queues):
        if not running:
            running.append(meanwhile(batch, second, "dead", "q"))
        drop_excess(queues)

    monkeypatch.setattr(messages, "drop_excess", drop_meanwhile)
    assert batch(first, "q") == []
    assert running[0].result(20) == []
    assert [size(first, name) for name in ("dead", "q")] == [1, 1]


def test_dead_letters_that_could_not_be_counted_are_dropped_later(database, monkeypatch):
    connection = database.connect()
    dead = Queue("dead", Exchange("dead", "fanout"), max_length=1)(connection)
    dead.declare()
    source = Queue("q", queue_arguments={"x-dead-letter-exchange": "dead"})(connection)
    source.declare()
    Producer(connection).publish_many([1, 2], routing_key="q")
    source.get().reject()

    def refuse(queues):
        raise exceptions.RecoverableChannelError("deadlock detected")

    with monkeypatch.context() as patch:
        patch.setattr(connection.transport._messages, "lock_limited", refuse)
        source.get().reject()
    assert size(connection, "dead") == 2
    connection.transport._session._renew()
    assert dead.get(no_ack=True).payload == 2
    assert dead.get() is None


@pytest.mark.timeout(60)
def test_rejected_messages_that_go_in_a_circle_hold_no_call_up(database):
    connection = database.connect()
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"}
    queue = Queue("q", max_length=1, queue_arguments=arguments)(connection)
    queue.declare()
    messages = []
    for number in range(2):
        Producer(connection).publish(number, routing_key="q")
        messages.append(queue.get())
    for message in messages:
        message.reject()
    connection.transport._session._renew()
    assert size(connection, "q") >= 1
