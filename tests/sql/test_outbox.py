"""Publishing within a transaction of the caller's: the message exists if that commits."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager, nullcontext, suppress
from threading import Event
from uuid import uuid4

import aiosqlite
import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from kombulite import Connection, Consumer, Exchange, Producer, Queue, aio, exceptions, hooks
from tests.sql.conftest import sqlalchemy_url


@pytest.fixture
def orders(database):
    """A connection with a queue bound to an exchange, and a producer to that."""
    connection = database.connect()
    shop = Exchange("shop", "topic")
    queue = Queue("orders", shop, routing_key="order.*")(connection)
    queue.declare()
    return queue, Producer(connection, shop, routing_key="order.new", auto_declare=False)


def driver(database):
    if database.url.startswith("sqlite"):
        return sqlite3.connect(database.url.removeprefix("sqlite://"))
    return psycopg.connect(database.url)


@contextmanager
def committed(database):
    """A connection of the driver, whose transaction commits at the end; sqlite3 alone would leave it open."""
    with closing(driver(database)) as connection, connection:
        yield connection


def session(database):
    return Session(sqlalchemy.create_engine(sqlalchemy_url(database), poolclass=sqlalchemy.NullPool))


def connection_of_sqlalchemy(database):
    return sqlalchemy.create_engine(sqlalchemy_url(database), poolclass=sqlalchemy.NullPool).connect()


@pytest.mark.parametrize("open_transaction", [driver, session, connection_of_sqlalchemy])
def test_message_exists_if_the_transaction_commits(database, orders, open_transaction):
    queue, producer = orders
    for commits in (False, True):
        transaction = open_transaction(database)
        producer.publish({"id": commits}, via=transaction, headers={"a": 1})
        assert queue.get() is None
        if commits:
            transaction.commit()
        else:
            transaction.rollback()
        transaction.close()
    message = queue.get()
    assert (message.payload, message.headers["a"]) == ({"id": True}, 1)
    message.ack()
    assert queue.get() is None


def test_commit_wakes_the_consumer(database, orders):
    _, producer = orders
    receiver = database.connect()
    got = []
    with (
        Consumer(receiver, [Queue("orders", no_declare=True)], on_message=got.append, auto_declare=False),
        committed(database) as transaction,
    ):
        producer.publish(1, via=transaction)
        with pytest.raises(TimeoutError):
            receiver.drain_events(timeout=0.1)
        looks = []
        claim = receiver.transport._claims.claim
        receiver.transport._claims.claim = lambda *args: (looks.append(1), claim(*args))[1]
        transaction.commit()
        receiver.drain_events(timeout=30)
        assert [message.payload for message in got] == [1]
        assert len(looks) <= 3, "it polled"


@pytest.mark.parametrize("is_notified", [True, False], ids=["woken", "looking"])
def test_consumer_that_started_after_the_publish_is_in_time_for_the_commit(postgresql_url, monkeypatch, is_notified):
    if is_notified:
        monkeypatch.setattr("kombulite.brokers.sql.transport.START_TIME", 0)
    options = {"table_prefix": f"late_{uuid4().hex[:8]}_"}
    with (
        Connection(postgresql_url, transport_options=options) as sender,
        Connection(postgresql_url, transport_options=options) as receiver,
        psycopg.connect(postgresql_url) as transaction,
        ThreadPoolExecutor(1) as thread,
    ):
        Queue("orders")(sender).declare()
        if is_notified:
            Producer(sender).publish(1, routing_key="orders", via=transaction)
        else:  # as a publish does that has not seen the consumer
            into = (
                f"INSERT INTO {options['table_prefix']}messages (queue, rank, exchange, routing_key, properties, body)"
            )
            transaction.execute(f"{into} VALUES (1, 0, '', 'orders', '{{}}', '1')")
        got, is_waiting = [], Event()
        with Consumer(receiver, [Queue("orders")], on_message=got.append):
            transport = receiver.transport
            transport._database.look_interval = 3600
            wait = transport._wait_for_news
            monkeypatch.setattr(transport, "_wait_for_news", lambda seconds: (is_waiting.set(), wait(seconds)))
            consuming = thread.submit(receiver.drain_events, timeout=30)
            assert is_waiting.wait(20)
            transaction.commit()
            consuming.result(30)
        assert len(got) == 1


def test_what_the_transaction_cannot_do_is_told(database, orders):
    _, producer = orders
    with pytest.raises(TypeError, match="via must be a connection of"):
        producer.publish(1, via=object())
    with committed(database) as transaction:
        with pytest.raises(exceptions.NotFound, match="declare it before the transaction"):
            producer.publish(1, exchange=Exchange(""), routing_key="nowhere", via=transaction)
        with pytest.raises(exceptions.MessageReturned):
            producer.publish(1, routing_key="other", mandatory=True, via=transaction)


@pytest.mark.parametrize("open_transaction", [committed, session])
def test_message_goes_to_each_queue_that_is_bound(database, orders, open_transaction):
    queue, producer = orders
    second = Queue("audit", Exchange("shop", "topic"), routing_key="#")(queue.channel)
    second.declare()
    with open_transaction(database) as transaction:
        producer.publish("both", via=transaction, expiration=60, priority=3, eta=0)
        transaction.commit()
    assert [each.get(no_ack=True).payload for each in (queue, second)] == ["both", "both"]


def test_length_limits_hold_for_what_others_commit(database):
    connection = database.connect(lease=0.6)
    dropping = Queue("dropping", max_length=2)(connection)
    refusing = Queue("refusing", max_length=1, queue_arguments={"x-overflow": "reject-publish"})(connection)
    dropping.declare()
    refusing.declare()
    producer = Producer(connection)
    with committed(database) as transaction:
        for number in range(4):
            producer.publish(number, routing_key="dropping", via=transaction)
        producer.publish(1, routing_key="refusing", via=transaction)
    with committed(database) as transaction, pytest.raises(exceptions.MessageNacked, match="queue 'refusing' is full"):
        producer.publish(2, routing_key="refusing", via=transaction)
    deadline = time.monotonic() + 20
    while dropping.queue_declare(passive=True).message_count > 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [dropping.get(no_ack=True).payload for _ in range(2)] == [2, 3]


def test_hooks_see_what_is_published(database):
    connection = database.connect()
    Queue("orders")(connection).declare()
    seen = []

    class Hook(hooks.Hook):
        def collect(self, outgoing):
            seen.append(outgoing.routing_key)
            outgoing.headers["trace"] = "t"

    connection.add_hook(Hook())
    with committed(database) as transaction:
        Producer(connection).publish(1, routing_key="orders", via=transaction)
    assert seen == ["orders"]
    assert Queue("orders")(connection).get(no_ack=True).headers["trace"] == "t"


def test_asynchronous_transaction_needs_the_asynchronous_facade(database, orders):
    class AsyncConnection:
        __module__ = "aiosqlite" if database.url.startswith("sqlite") else "psycopg"

        async def execute(self, text, values):
            raise AssertionError("it is not run")

    with pytest.raises(TypeError, match="via must not be asynchronous here"):
        orders[1].publish(1, via=AsyncConnection())


# --- on an event loop


@asynccontextmanager
async def async_driver(database):
    if database.url.startswith("sqlite"):
        async with aiosqlite.connect(database.url.removeprefix("sqlite://")) as connection:
            yield connection, connection.commit, connection.rollback
    else:
        async with await psycopg.AsyncConnection.connect(database.url) as connection:
            yield connection, connection.commit, connection.rollback


@asynccontextmanager
async def async_session(database):
    name = "aiosqlite" if database.url.startswith("sqlite") else "psycopg"
    engine = create_async_engine(sqlalchemy_url(database, name))
    async with AsyncSession(engine) as session:
        yield session, session.commit, session.rollback
    await engine.dispose()


@asynccontextmanager
async def session_over_asyncpg(database):
    if database.url.startswith("sqlite"):
        pytest.skip("asyncpg is for PostgreSQL")
    engine = create_async_engine(sqlalchemy_url(database, "asyncpg"))
    async with AsyncSession(engine) as session:
        yield session, session.commit, session.rollback
    await engine.dispose()


@asynccontextmanager
async def connection_of_asyncpg(database):
    if database.url.startswith("sqlite"):
        pytest.skip("asyncpg is for PostgreSQL")
    connection = await asyncpg.connect(database.url)
    transaction = connection.transaction()
    await transaction.start()

    async def end(done):
        nonlocal transaction
        await done()
        transaction = connection.transaction()
        await transaction.start()

    yield connection, lambda: end(transaction.commit), lambda: end(transaction.rollback)
    await connection.close()


@pytest.mark.parametrize("open_transaction", [async_driver, async_session, session_over_asyncpg, connection_of_asyncpg])
def test_message_exists_if_the_transaction_on_the_loop_commits(database, orders, open_transaction):
    queue, _ = orders

    async def work():
        options = {"table_prefix": database.prefix}
        async with aio.connect(database.url, transport_options=options) as connection:
            producer = connection.producer(Exchange("shop", "topic"))
            async with open_transaction(database) as (transaction, commit, roll_back):
                await producer.publish("never", "order.new", via=transaction)
                await roll_back()
                await producer.publish("kept", "order.new", via=transaction, headers={"a": 1}, expiration=60)
                assert queue.get() is None
                await commit()

    asyncio.run(work())
    message = queue.get()
    assert (message.payload, message.headers["a"]) == ("kept", 1)
    message.ack()
    assert queue.get() is None


def test_a_transaction_that_waits_for_another_ends_the_publish_by_its_deadline(database, orders):
    if not database.url.startswith("sqlite"):
        pytest.skip("there two that insert do not wait for each other")

    async def work():
        options = {"table_prefix": database.prefix}
        async with aio.connect(database.url, transport_options=options) as connection:
            producer = connection.producer(Exchange("shop", "topic"))
            await producer.publish("first", "order.new")
            async with async_driver(database) as (transaction, _, roll_back):
                with closing(driver(database)) as writer:
                    writer.execute("BEGIN IMMEDIATE")
                    with pytest.raises(TimeoutError, match="publish: it did not end in time"):
                        await producer.publish("never", "order.new", via=transaction, timeout=0.3)
                    writer.rollback()
                await roll_back()

    asyncio.run(work())
    message = orders[0].get()
    assert message.payload == "first"
    message.ack()
    assert orders[0].get() is None


# --- Django


def test_message_exists_if_the_transaction_of_django_commits(database, orders, django_connection):
    queue, producer = orders
    for commits in (False, True):
        with suppress(ZeroDivisionError), atomic(django_connection):
            producer.publish({"id": commits}, via=django_connection)
            assert queue.get() is None
            1 / commits
    assert queue.get(no_ack=True).payload == {"id": True}
    assert queue.get() is None


@contextmanager
def atomic(connection):
    connection.set_autocommit(False)
    try:
        yield
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        connection.set_autocommit(True)


@pytest.mark.parametrize("kind", ["driver", "SQLAlchemy", "Django"])
def test_transaction_on_another_database_is_refused(tmp_path, postgresql_url, kind):
    with Connection(postgresql_url) as connection:
        Queue("orders")(connection).declare()
        engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.NullPool)
        vias = {
            "driver": lambda: closing(sqlite3.connect(":memory:")),
            "SQLAlchemy": lambda: Session(engine),
            "Django": lambda: nullcontext(type("Wrapper", (), {"__module__": "django.db", "vendor": "sqlite"})()),
        }
        with vias[kind]() as via, pytest.raises(TypeError, match="via must be"):
            Producer(connection).publish(1, routing_key="orders", via=via)


def test_other_brokers_say_that_they_have_no_transactions():
    with pytest.raises(exceptions.AMQPNotImplementedError, match="memory transport cannot publish via a transaction"):
        Connection("memory://").Producer().publish(1, routing_key="q", via=object())


def test_message_for_a_queue_that_was_deleted_before_the_commit_is_not_kept(postgresql_url):
    options = {"table_prefix": "orphan_"}
    with psycopg.connect(postgresql_url) as via:
        with Connection(postgresql_url, transport_options=options) as connection:
            for name in ("orders", "archive"):
                Queue(name)(connection).declare()
                Producer(connection).publish(1, routing_key=name, via=via)
            Queue("orders")(connection).delete()
        via.commit()
        with Connection(postgresql_url, transport_options=options) as connection:
            assert Queue("archive")(connection).get(no_ack=True).payload == 1
        assert via.execute("SELECT count(*) FROM orphan_messages").fetchall() == [(0,)]


def test_wrapped_connection_of_a_pool_publishes(postgresql_url):
    """A pool wraps connections: no method of the wrapper looks like a coroutine function before Python 3.12."""

    async def work():
        async with aio.connect(postgresql_url) as connection, asyncpg.create_pool(postgresql_url) as pool:
            await connection.declare(Queue("pooled"))
            async with pool.acquire() as via, via.transaction():
                await connection.producer().publish("kept", "pooled", via=via)
        with Connection(postgresql_url) as connection, Connection(postgresql_url) as other:
            assert Queue("pooled")(connection).get(no_ack=True).payload == "kept"
            async with asyncpg.create_pool(postgresql_url) as pool, pool.acquire() as via:
                with pytest.raises(TypeError, match="via must not be asynchronous here"):
                    Producer(other).publish(1, routing_key="pooled", via=via)
            assert Queue("pooled")(connection).get() is None

    asyncio.run(work())


@pytest.mark.parametrize("is_cursor", [False, True], ids=["connection", "cursor"])
def test_cursors_that_take_the_placeholders_of_the_server_publish(postgresql_url, is_cursor):
    with (
        Connection(postgresql_url) as connection,
        psycopg.connect(postgresql_url, cursor_factory=psycopg.RawCursor) as transaction,
    ):
        queue = Queue(f"raw-{is_cursor}")(connection)
        queue.declare()
        via = transaction.cursor() if is_cursor else transaction
        Producer(connection).publish("100 %", routing_key=queue.name, via=via)
        transaction.commit()
        assert queue.get(no_ack=True).payload == "100 %"


def test_cursors_on_an_event_loop_that_take_the_placeholders_of_the_server_publish(postgresql_url):
    async def work():
        connecting = psycopg.AsyncConnection.connect(postgresql_url, cursor_factory=psycopg.AsyncRawCursor)
        async with aio.connect(postgresql_url) as connection, await connecting as via:
            await connection.declare(Queue("raw"))
            await connection.producer().publish("kept", "raw", via=via)

    asyncio.run(work())
    with Connection(postgresql_url) as connection:
        assert Queue("raw")(connection).get(no_ack=True).payload == "kept"


def test_search_path_of_the_transaction_does_not_matter(postgresql_url):
    """As with a schema for each tenant, one of which has tables of the same names."""
    prefix = f"p{uuid4().hex[:8]}_"
    with (
        Connection(postgresql_url, transport_options={"table_prefix": prefix}) as connection,
        psycopg.connect(postgresql_url) as via,
    ):
        queue = Queue("orders")(connection)
        queue.declare()
        producer = Producer(connection, routing_key="orders")
        via.execute(f'CREATE SCHEMA "{prefix}10%% off"')
        via.execute(f'SET search_path TO "{prefix}10%% off"')
        producer.publish("no tables", via=via)
        via.execute(f"CREATE TABLE {prefix}messages (LIKE public.{prefix}messages INCLUDING ALL)")
        producer.publish("tables of the same name", via=via)
        via.commit()
        assert [queue.get(no_ack=True).payload for _ in range(2)] == ["no tables", "tables of the same name"]
