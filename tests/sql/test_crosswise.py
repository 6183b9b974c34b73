"""Two calls at once, stopped between any two statements of the first: neither waits for the other for ever.

PostgreSQL ends a circle of waits with an error for one of the two, so it is enough that neither raises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count, permutations
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue
from tests.sql.conftest import LockedDatabase


class Scene:
    """A queue with a message in each of its states, used by two connections and one that was lost."""

    def __init__(self, url: str, options: dict[str, Any], stack: ExitStack) -> None:
        self.name = f"q{uuid4().hex[:8]}"
        self._stack = stack
        self._url, self._options = url, options
        self.first, self.second = self.connect(), self.connect()
        self.arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{self.name}.dead"}
        Queue(f"{self.name}.dead", max_length=1)(self.first).declare()
        Queue(f"{self.name}.bound", Exchange(f"{self.name}.shop", auto_delete=True))(self.first).declare()
        self.queue(self.first).declare()
        producer = Producer(self.first, routing_key=self.name)
        producer.publish_many(range(6))
        self.messages = [self.queue(each).get() for each in (self.first, self.second)]
        self.lost = self.connect()
        self.consume(self.lost)
        Queue(f"{self.name}.own", exclusive=True, max_length=1)(self.lost).declare()
        self.held = self.queue(self.lost).get()
        self.lost.transport._session._maintainer.stop()

    def connect(self) -> Connection:
        connection = self._stack.enter_context(Connection(self._url, transport_options=self._options))
        connection.connect()
        return connection

    def make_due(self) -> None:
        """Have a message of the queue due since 1970: the next call releases it."""
        last = "SELECT max(id) FROM {p}messages WHERE owner IS NULL AND routing_key = ?"
        LockedDatabase(self.second.transport).rows(
            "UPDATE {p}messages SET due = 1 WHERE id = (" + last + ")", self.name
        )

    def queue(self, connection: Connection) -> Queue:
        return Queue(self.name, max_length=5, queue_arguments=self.arguments)(connection)

    def consume(self, connection: Connection) -> Consumer:
        consumer = Consumer(connection, [self.queue(connection)], on_message=lambda message: None, auto_declare=False)
        consumer.consume()
        return consumer


# --- what each of the two may do: a function that prepares a call, and returns it


def declare(scene, connection):
    return Queue(f"{scene.name}.{uuid4().hex}")(connection).declare


def declare_again(scene, connection):
    return scene.queue(connection).declare


def delete(scene, connection):
    return scene.queue(connection).delete


def delete_dead(scene, connection):
    return Queue(f"{scene.name}.dead")(connection).delete


def delete_bound(scene, connection):
    return Queue(f"{scene.name}.bound")(connection).delete


def purge(scene, connection):
    return scene.queue(connection).purge


def publish(scene, connection):
    return lambda: Producer(connection).publish_many(range(2), routing_key=scene.name)


def publish_to_new(scene, connection):
    producer = Producer(connection, auto_declare=False)
    return lambda: producer.publish(1, routing_key=f"{scene.name}.{uuid4().hex}")


def reject(scene, connection):
    return scene.messages[connection is scene.second].reject


def requeue(scene, connection):
    return scene.messages[connection is scene.second].requeue


def end_consumer(scene, connection):
    consumer = scene.consume(connection)
    transport = connection.transport
    transport.take(scene.name, 2)  # one is given, one is claimed ahead
    return consumer.cancel


def end_auto_delete(scene, connection):
    queue = Queue(f"{scene.name}.auto", auto_delete=True)
    Producer(connection, routing_key=queue.name).publish_many(range(3), declare=[queue])
    consumer = Consumer(connection, [queue], on_message=lambda message: None)
    consumer.consume()
    connection.transport.take(queue.name, 2)
    return consumer.cancel


def renew(scene, connection):
    LockedDatabase(connection.transport).rows(
        "UPDATE {p}connections SET alive_until = 0 WHERE id = ?", scene.lost.transport._topology.connection
    )
    return connection.transport._session._renew


def renew_after_the_clock_was_put_back(scene, connection):
    LockedDatabase(connection.transport).rows("UPDATE {p}connections SET alive_until = alive_until + 3600")
    return connection.transport._session._renew


def release(scene, connection):
    Queue(f"{scene.name}.{uuid4().hex}", exclusive=True)(connection).declare()
    return connection.release


def expire(scene, connection):
    expiring = Queue(f"{scene.name}.{uuid4().hex}", expires=0.001)(connection)
    expiring.declare()
    return lambda: connection.transport.list_queues(connection.default_channel.channel_id)


CALLS = [
    declare, declare_again, delete, delete_dead, delete_bound, purge, publish, publish_to_new, reject, requeue,
    end_consumer, end_auto_delete, renew, renew_after_the_clock_was_put_back, release, expire,
]  # fmt: skip
#: Those that waited for each other once.
ALWAYS = [(declare, delete), (end_consumer, delete)]
PAIRS = [
    pytest.param(*pair, marks=() if pair in ALWAYS else pytest.mark.soak)
    for pair in [*permutations(CALLS, 2), *((call, call) for call in CALLS)]
]


@pytest.fixture(scope="module")
def admin(postgresql_url) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgresql_url, autocommit=True) as admin:
        yield admin


@pytest.fixture(scope="module")
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    name = f"x{uuid4().hex[:10]}_"
    settings = "-c deadlock_timeout=20ms -c synchronous_commit=off"
    return {"table_prefix": name, "lease": 600, "connect_args": {"application_name": name, "options": settings}}


def before_statement(database: Any, number: int, function: Callable[[], None]) -> None:
    """Call a function before a statement of a connection, counted from 0."""
    numbers = count()

    def hooked(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if next(numbers) == number:
                function()
            return method(*arguments)

        return call

    database.fetch, database._command = hooked(database.fetch), hooked(database._command)


def run_until_blocked(
    thread: ThreadPoolExecutor,
    admin: psycopg.Connection[Any],
    name: str,
    call: Callable[[], Any],
    started: list[Future[Any]],
) -> None:
    """Start a call in a thread; return when it is done, or waits for a lock."""
    running = thread.submit(call)
    started.append(running)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    deadline = time.monotonic() + 20
    while not running.done() and not admin.execute(waiting, [name]).fetchall():
        assert time.monotonic() < deadline, "it neither ends nor waits"
        time.sleep(0.002)


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda call: call.__name__)
@pytest.mark.timeout(300)
def test_two_calls_do_not_wait_for_each_other(postgresql_url, admin, thread, options, one, other):
    for step in count():
        with ExitStack() as stack:
            scene = Scene(postgresql_url, options, stack)
            mine, theirs = one(scene, scene.first), other(scene, scene.second)
            scene.make_due()
            running: list[Future[Any]] = []
            meet = partial(run_until_blocked, thread, admin, options["table_prefix"], theirs, running)
            before_statement(scene.first.transport._database, step, meet)
            mine()
            for each in running:
                each.result(20)
        if not running:
            assert step, "the first call has no statement"
            return
