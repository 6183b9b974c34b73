"""Tables, settings, errors and delays of the SQL brokers."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from threading import Thread

import psycopg
import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions
from tests.sql.conftest import LockedDatabase


def test_messages_are_readable_with_plain_sql(tmp_path):
    path = tmp_path / "messages.db"
    with Connection(f"sqlite:///{path}") as connection:
        Producer(connection).publish(
            {"id": 7}, routing_key="orders", declare=[Queue("orders")], headers={"a": 1}, correlation_id="c"
        )
        with closing(sqlite3.connect(path)) as reader:
            rows = reader.execute(
                "SELECT q.name, m.body, json_extract(m.properties, '$.correlation_id'),"
                " json_extract(m.properties, '$.headers.a')"
                " FROM kombulite_messages m JOIN kombulite_queues q ON q.id = m.queue"
            ).fetchall()
    assert rows == [("orders", b'{"id": 7}', "c", 1)]


def test_tables_of_another_version_are_refused(database):
    connection = database.connect()
    connection.connect()
    LockedDatabase(connection.transport).rows("UPDATE {p}meta SET version = 99")
    with pytest.raises(exceptions.OperationalError, match="are of version 99, this kombulite needs version 3"):
        database.connect().connect()


@pytest.mark.parametrize("count", [1, 3])
def test_batch_goes_where_another_connection_has_bound_meanwhile(database, count):
    first, second = database.connect(), database.connect()
    shop = Exchange("shop", "fanout")
    Queue("old", shop)(first).declare()
    producer = Producer(first, shop, auto_declare=False)
    producer.publish_many(range(count))  # it knows where they go
    Queue("new", shop)(second).declare()
    producer.publish_many(range(count, 2 * count))
    Queue("old")(second).delete()
    Queue("old", shop)(second).declare()  # another one of that name
    producer.publish_many(range(2 * count, 3 * count))
    for name, expected in (("old", range(2 * count, 3 * count)), ("new", range(count, 3 * count))):
        queue = Queue(name, no_declare=True)(second)
        assert [queue.get(no_ack=True).payload for _ in expected] == [*expected]
        assert queue.get() is None


def test_what_was_published_is_there_after_all_connections_are_gone(database):
    first = database.connect()
    Producer(first).publish(1, routing_key="kept", declare=[Queue("kept")])
    first.release()
    assert Queue("kept")(database.connect()).get().payload == 1


@pytest.mark.parametrize("form", ["seconds", "text", "datetime"])
def test_message_with_an_eta_is_delivered_then_and_in_its_place(database, form):
    connection = database.connect()
    queue = Queue("later")(connection)
    queue.declare()
    at = datetime.now(timezone.utc) + timedelta(seconds=0.7)
    eta = {"seconds": at.timestamp(), "text": at.isoformat(), "datetime": at}[form]
    producer = Producer(connection, routing_key="later")
    producer.publish("late", eta=eta)
    producer.publish("early")
    assert queue.queue_declare(passive=True).message_count == 1
    got = []
    with Consumer(connection, [queue], callbacks=[lambda body, message: (got.append(body), message.ack())]):
        while len(got) < 2:
            connection.drain_events(timeout=10)
            assert got != ["late"]
    assert got == ["early", "late"]
    assert datetime.now(timezone.utc) >= at


def test_eta_that_is_none_is_refused_by_name(database):
    producer = Producer(database.connect(), routing_key="q")
    with pytest.raises(exceptions.PreconditionFailed, match="invalid eta 'soon'"):
        producer.publish(1, eta="soon")
    with pytest.raises(exceptions.PreconditionFailed, match="invalid eta 1000"):
        producer.publish(1, eta=10**400)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"table_prefix": "a; DROP TABLE b"}, "table_prefix must consist of ASCII letters"),
        ({"table_prefix": "1_"}, "table_prefix must .* begin with no digit, got '1_'"),
        ({"table_prefix": "a" * 46}, "table_prefix must have at most 45 characters, got 46"),
        ({"table_prefx": "a_"}, "unknown transport option 'table_prefx'; did you mean .table_prefix."),
        ({"lease": "long"}, "lease must be a number, got 'long'"),
        ({"lease": -1}, "lease must be above 0 seconds, and finite, got -1"),
        ({"lease": float("inf")}, "lease must be above 0 seconds, and finite, got inf"),
        ({"lease": float("nan")}, "lease must be above 0 seconds, and finite, got nan"),
        ({"synchronous": "maybe"}, "synchronous must be one of OFF, NORMAL, FULL, EXTRA, got 'MAYBE'"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        Connection(f"sqlite:///{tmp_path}/m.db", transport_options=options).connect()


@pytest.mark.parametrize(("options", "level"), [({}, 2), ({"synchronous": "NORMAL"}, 1)])
def test_a_commit_on_sqlite_waits_for_the_disk(tmp_path, options, level):
    with Connection(f"sqlite:///{tmp_path}/m.db", transport_options=options) as connection:
        connection.connect()
        rows = connection.transport._database._connection.execute("PRAGMA synchronous")
        assert rows.fetchone() == (level,)  # 2: FULL


def test_url_without_a_file_is_refused():
    with pytest.raises(ValueError, match="must name a file"):
        Connection("sqlite://").connect()


def test_file_that_cannot_be_opened_is_a_connection_error(tmp_path):
    connection = Connection(f"sqlite:///{tmp_path}/missing/m.db")
    with pytest.raises(exceptions.RecoverableConnectionError, match="cannot open"):
        connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)


def test_server_that_is_not_there_and_password_that_is_not_shown(postgresql_url):
    url = "postgresql://kombulite:sesame@127.0.0.1:1/postgres"
    with pytest.raises(exceptions.OperationalError) as caught:
        Connection(url).ensure_connection(max_retries=0)
    assert "sesame" not in str(caught.value)
    assert caught.value.__cause__ is not None
    assert "sesame" not in str(caught.value.__cause__)


def test_server_that_has_become_read_only_is_left_for_another(postgresql_url):
    with Connection(postgresql_url, transport_options={"table_prefix": "ro_"}) as connection:
        Queue("q")(connection).declare()
        LockedDatabase(connection.transport).rows("SET default_transaction_read_only = on")
        with pytest.raises(exceptions.RecoverableConnectionError, match="read-only"):
            Producer(connection).publish(1, routing_key="q")
        Producer(connection).publish(2, routing_key="q", retry=True)  # over a new connection, which may write
        assert Queue("q")(connection).get(no_ack=True).payload == 2


def test_busy_file_is_a_recoverable_error(tmp_path, monkeypatch):
    monkeypatch.setattr("kombulite.brokers.sql.sqlite.BUSY_TIMEOUT", 0.05)
    path = tmp_path / "m.db"
    with Connection(f"sqlite:///{path}") as connection:
        Queue("q")(connection).declare()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(exceptions.RecoverableChannelError, match="database is locked"):
            Producer(connection).publish(1, routing_key="q")
        other.execute("ROLLBACK")
        other.close()
        Producer(connection).publish(2, routing_key="q")
        assert Queue("q")(connection).get().payload == 2


def test_acks_that_meet_a_busy_file_are_kept_and_made_good(tmp_path, monkeypatch):
    monkeypatch.setattr("kombulite.brokers.sql.sqlite.BUSY_TIMEOUT", 0.05)
    path = tmp_path / "m.db"
    with Connection(f"sqlite:///{path}") as connection:
        queue = Queue("q")(connection)
        queue.declare()
        Producer(connection).publish(1, routing_key="q")
        message = queue.get()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(exceptions.RecoverableChannelError):
            message.ack()
        other.execute("ROLLBACK")
        other.close()
    with Connection(f"sqlite:///{path}") as connection:
        assert Queue("q")(connection).get() is None


def test_notification_wakes_a_consumer_of_another_connection(database):
    receiver, sender = database.connect(), database.connect()
    got = []
    with Consumer(receiver, [Queue("q")], callbacks=[lambda body, message: (got.append(body), message.ack())]):
        with pytest.raises(TimeoutError):
            receiver.drain_events(timeout=0.05)
        looks = []
        claim = receiver.transport._claims.claim
        receiver.transport._claims.claim = lambda *args: (looks.append(1), claim(*args))[1]
        Producer(sender).publish(1, routing_key="q")
        receiver.drain_events(timeout=30)
        assert got == [1]
        assert len(looks) <= 3, "it polled"


class Waiting:
    """A condition that calls a function before the first wait for it.

    ``is_late``: a wait says that its time was over, as it does when it was just before it was notified.
    """

    def __init__(self, condition, function, is_late):
        self._condition, self._function, self._is_late = condition, function, is_late
        self.results = []

    def wait(self, seconds=None):
        function, self._function = self._function, lambda: None
        function()
        self.results.append(self._condition.wait(seconds))
        return self.results[-1] and not self._is_late

    def notify_all(self):
        self._condition.notify_all()


@pytest.mark.parametrize("is_batch", [False, True], ids=["single", "batch"])
@pytest.mark.parametrize("is_late", [False, True], ids=["in time", "late"])
def test_publish_wakes_another_thread_that_waits_on_the_same_connection(database, is_batch, is_late):
    connection = database.connect()
    producer = Producer(connection.channel(), routing_key="q")
    got = []
    with Consumer(connection, [Queue("q")], callbacks=[lambda body, message: (got.append(body), message.ack())]):
        transport = connection.transport
        transport._database.look_interval = 3600
        transport._database.next_look = lambda: 3600
        thread = Thread(target=lambda: producer.publish_many([1]) if is_batch else producer.publish(1))
        waiting = transport._wake = Waiting(transport._wake, thread.start, is_late)
        connection.drain_events(timeout=20)
        thread.join(20)
    assert got == [1]
    assert all(waiting.results), "it was not woken"


def test_listener_that_is_lost_is_replaced_by_polling(postgresql_url, monkeypatch):
    monkeypatch.setattr("kombulite.brokers.sql.postgresql.LOOK_INTERVAL", 0.1)
    with (
        Connection(postgresql_url, transport_options={"table_prefix": "ll_"}) as receiver,
        Connection(postgresql_url, transport_options={"table_prefix": "ll_"}) as sender,
    ):
        got = []
        with Consumer(receiver, [Queue("q")], callbacks=[lambda body, message: (got.append(body), message.ack())]):
            with psycopg.connect(postgresql_url, autocommit=True) as admin:
                admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN \"ll_%'")
            Producer(sender).publish(1, routing_key="q")
            receiver.drain_events(timeout=30)
        assert got == [1]


def test_forked_child_leaves_the_connection_to_its_parent(database):
    connection = database.connect()
    queue = Queue("q")(connection)
    queue.declare()
    Producer(connection).publish(1, routing_key="q")
    message = queue.get()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Producer(connection).publish(2, routing_key="q")  # over a connection of its own
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    message.ack()
    assert queue.get(no_ack=True).payload == 2
    assert queue.get() is None


def test_get_after_an_interruption_that_no_wait_noticed_finds_the_message(database):
    """A loop interrupts a wait of its thread for what it asks, and may come just before it or behind."""
    connection = database.connect()
    queue = Queue("orders")(connection)
    queue.declare()
    Producer(connection, routing_key="orders").publish(1)
    connection.transport.interrupt()
    assert queue.get(no_ack=True).payload == 1


def test_text_without_utf8_is_refused_and_the_connection_goes_on(database):
    connection = database.connect()
    queue = Queue("orders", Exchange("shop", "fanout"))(connection)
    queue.declare()
    producer = Producer(connection, queue.exchange)
    producer.publish("taken")
    message = queue.get()
    with pytest.raises(exceptions.BatchPublishError, match="2 of 2 messages were refused"):
        producer.publish_many(["never"] * 2, routing_key="\ud800")
    message.ack()
    producer.publish_many(["kept"])
    assert queue.get(no_ack=True).payload == "kept"
    assert queue.get() is None


def test_text_that_the_server_cannot_store_is_refused_and_the_connection_goes_on(postgresql_url):
    with Connection(postgresql_url, transport_options={"table_prefix": "nul_"}) as connection:
        queue = Queue("orders")(connection)
        queue.declare()
        producer = Producer(connection)
        with pytest.raises(exceptions.PreconditionFailed, match=r"stores no text with NUL: 'or.x00ders'"):
            producer.publish(1, routing_key="or\0ders")
        with pytest.raises(exceptions.BatchPublishError, match="1 of 1"):
            producer.publish_many([1], routing_key="or\0ders")
        with pytest.raises(exceptions.PreconditionFailed):
            Queue("or\0ders")(connection).declare()
        with pytest.raises(exceptions.PreconditionFailed):
            Exchange("sh\0p")(connection).declare()
        with pytest.raises(exceptions.PreconditionFailed):
            queue.bind_to(Exchange("amq.topic"), routing_key="\0")
        producer.publish(2, routing_key="orders", headers={"a\0": "b\0"}, correlation_id="c\0")
        message = queue.get(no_ack=True)
        assert (message.headers, message.properties["correlation_id"]) == ({"a\0": "b\0"}, "c\0")


@pytest.mark.parametrize("name", ["order", "my-shop", "Shop", "a b", "a.b", "1", "x" * 63])
def test_schema_has_any_name(postgresql_url, name):
    with (
        Connection(postgresql_url, transport_options={"schema": name}) as receiver,
        Connection(postgresql_url, transport_options={"schema": name}) as sender,
        psycopg.connect(postgresql_url, autocommit=True) as admin,
    ):
        got = []
        with Consumer(receiver, [Queue("q")], callbacks=[lambda body, message: (got.append(body), message.ack())]):
            Producer(sender).publish(1, routing_key="q", via=admin)
            receiver.drain_events(timeout=30)
        assert got == [1]
        found = admin.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'kombulite_messages'").fetchall()
        assert (name,) in found


@pytest.mark.parametrize("name", ['a"b', "a'b", "a?b", "a$$b", "{now}", "x" * 64, "a\0"])
def test_schema_that_cannot_be_is_named(postgresql_url, name):
    with pytest.raises(ValueError, match="schema must"):
        Connection(postgresql_url, transport_options={"schema": name}).connect()


def test_message_that_is_too_large_for_its_queue_is_refused(database):
    connection = database.connect()
    queue = Queue("small", queue_arguments={"x-max-length-bytes": 3, "x-overflow": "reject-publish"})(connection)
    queue.declare()
    producer = Producer(connection, routing_key="small", serializer="raw")
    with pytest.raises(exceptions.MessageNacked):
        producer.publish(b"four")
    producer.publish(b"two")
    assert queue.get(no_ack=True).body == b"two"


def test_transaction_whose_statement_failed_is_not_taken_for_committed(postgresql_url):
    with Connection(postgresql_url, transport_options={"table_prefix": "half_"}) as connection:
        Queue("orders")(connection).declare()
        session = connection.transport._session
        with pytest.raises(exceptions.ChannelError, match="was rolled back"), session.transaction():
            session.database.notify(())
            with suppress(exceptions.ChannelError):
                session.database.rows("SELECT 1 / 0")
        Producer(connection).publish(1, routing_key="orders")
        assert Queue("orders")(connection).get(no_ack=True).payload == 1


def test_rejection_that_fails_gives_the_message_back(database, monkeypatch):
    connection = database.connect()
    queue = Queue("orders")(connection)
    Producer(connection).publish(1, routing_key="orders", declare=[queue])
    with monkeypatch.context() as patch:
        patch.setattr(connection.transport._messages, "bury", fail)
        with pytest.raises(exceptions.RecoverableChannelError):
            queue.get().reject()
    assert queue.get(no_ack=True).payload == 1


def test_end_of_a_consumer_that_fails_gives_back_what_it_has_not_seen(database, monkeypatch):
    connection = database.connect()
    queue = Queue("orders")(connection)
    queue.declare()
    Producer(connection, routing_key="orders").publish_many(range(3))
    consumer = Consumer(connection, [queue], on_message=lambda message: message.ack(), prefetch_count=3)
    consumer.consume()
    connection.drain_events(timeout=20)
    with monkeypatch.context() as patch:
        patch.setattr(connection.transport._messages, "put_back", fail)
        with pytest.raises(exceptions.RecoverableChannelError):
            consumer.cancel()
    assert [queue.get(no_ack=True).payload for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("are_alike", [True, False])
def test_batch_that_fails_leaves_whole_thousands(database, are_alike):
    connection = database.connect()
    queue = Queue("orders")(connection)
    queue.declare()
    rows, producer = LockedDatabase(connection.transport).rows, Producer(connection, routing_key="orders")
    if connection.transport._database.is_postgresql:
        rows("ALTER TABLE {p}messages ADD CHECK (body <> '1500')")
    else:
        raised = "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        rows("CREATE TRIGGER refusing BEFORE INSERT ON {p}messages WHEN NEW.body = CAST('1500' AS BLOB) " + raised)
    with pytest.raises(exceptions.ChannelError):
        if are_alike:
            producer.publish_many(range(2500))
        else:
            with producer.batch():
                for number in range(2500):
                    producer.publish(number, headers={"number": number})
    assert queue.queue_declare(passive=True).message_count == 1000
    producer.publish("it goes on")
    assert queue.queue_declare(passive=True).message_count == 1001


@pytest.fixture
def in_parts(monkeypatch):
    """Three messages are deleted at once at most."""
    for module in ("topology", "transport"):
        monkeypatch.setattr(f"kombulite.brokers.sql.{module}.DELETED_AT_ONCE", 3)


@pytest.mark.parametrize("count", [0, 2, 3, 10])
@pytest.mark.parametrize("verb", ["purge", "delete"])
def test_many_messages_are_deleted_in_parts(database, in_parts, monkeypatch, verb, count):
    connection = database.connect()
    parts = []
    queue = Queue("orders")(connection)
    queue.declare()
    Producer(connection, routing_key="orders").publish_many(range(count))
    purge = connection.transport._messages.purge
    monkeypatch.setattr(
        connection.transport._messages, "purge", lambda *arguments: parts.append(purge(*arguments)) or parts[-1]
    )
    assert getattr(queue, verb)() == count
    assert max(parts, default=0) <= 3
    assert sum(parts) == (count if verb == "purge" else max(count - 3, 0))  # a deletion takes the first with the queue
    assert LockedDatabase(connection.transport).value("SELECT count(*) FROM {p}messages") == 0


def test_a_queue_that_others_fill_as_fast_as_it_is_deleted_goes(database, in_parts, monkeypatch):
    connection, other = database.connect(), database.connect()
    queue = Queue("orders", Exchange("shop"), "order")(connection)
    queue.declare()
    producer = Producer(other, exchange="shop", routing_key="order")
    producer.publish_many(range(10))
    parts = []
    purge = connection.transport._messages.purge

    def purge_beside_a_publisher(*arguments):
        producer.publish_many(range(5))
        parts.append(purge(*arguments))
        assert len(parts) < 10, "it does not end"
        return parts[-1]

    monkeypatch.setattr(connection.transport._messages, "purge", purge_beside_a_publisher)
    assert queue.delete() == 10
    assert parts == [3, 3, 1]
    assert LockedDatabase(connection.transport).value("SELECT count(*) FROM {p}messages") == 0
    with pytest.raises(exceptions.NotFound):
        Queue("orders")(other.channel()).queue_declare(passive=True)


def test_what_the_deletion_of_a_queue_leaves_when_it_fails_goes_later(database, in_parts, monkeypatch):
    connection = database.connect()
    queue = Queue("orders")(connection)
    Producer(connection, routing_key="orders").publish_many(range(10), declare=[queue])
    with monkeypatch.context() as patch:
        patch.setattr(connection.transport._messages, "purge", fail)
        with pytest.raises(exceptions.RecoverableChannelError):
            queue.delete()
    connection.transport.collect()  # as if its process was killed: another has to do it
    queue = Queue("orders")(database.connect())
    queue.declare()
    assert queue.get() is None
    transport = queue.channel.connection.transport
    for left in (4, 1, 0):
        assert LockedDatabase(transport).value("SELECT count(*) FROM {p}messages") == left
        transport._session._renew()


def test_a_queue_whose_deletion_was_rolled_back_keeps_its_messages(database, monkeypatch):
    connection = database.connect()
    queue = Queue("orders")(connection)
    Producer(connection, routing_key="orders").publish_many(range(3), declare=[queue])
    other = Queue("orders")(database.connect())
    taken = other.get()
    transport = connection.transport
    with monkeypatch.context() as patch:
        patch.setattr(transport._topology, "_drop_unused", fail)
        with pytest.raises(exceptions.RecoverableChannelError):
            queue.delete()
    transport._session._renew()
    assert LockedDatabase(transport).value("SELECT count(*) FROM {p}messages") == 3
    taken.ack()
    assert [other.get(no_ack=True).payload for _ in range(2)] == [1, 2]


def test_many_messages_of_a_queue_that_expires_are_deleted_in_time(database, in_parts):
    connection = database.connect()
    queue = Queue("orders", expires=60)(connection)
    queue.declare()
    Producer(connection, routing_key="orders").publish_many(range(10))
    transport = connection.transport
    LockedDatabase(transport).rows("UPDATE {p}queues SET expires = 1")
    assert transport.list_queues(connection.default_channel.channel_id) == []
    for left in (7, 4, 1, 0):
        assert LockedDatabase(transport).value("SELECT count(*) FROM {p}messages") == left
        transport._session._renew()
    assert transport._topology.deleted == []


def fail(*arguments, **keywords):
    """Stand for a statement that the operator's timeout ends."""
    raise exceptions.RecoverableChannelError("canceling statement due to statement timeout")


def test_a_lease_of_a_year_is_renewed_and_its_connection_woken(database):
    """It is longer than the system waits at once."""
    connection = database.connect(lease=365 * 86400)
    queue = Queue("orders")(connection)
    got = []
    with Consumer(connection, [queue], callbacks=[lambda body, message: (got.append(body), message.ack())]):
        Producer(connection).publish(1, routing_key="orders")
        connection.drain_events(timeout=30)
    assert got == [1]
    maintainer = connection.transport._session._maintainer
    assert maintainer._thread.is_alive()
