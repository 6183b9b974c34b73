"""The commands on both databases, and the relay from them to another broker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import closing
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.operations import Operations
from click.testing import CliRunner
from django.db import migrations

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions
from kombulite.brokers.sql import schema_statements
from kombulite.cli.commands import kombulite
from kombulite.cli.messages import peek
from tests.servers import RabbitMQServer
from tests.sql.conftest import LockedDatabase, sqlalchemy_url
from tests.sql.test_outbox import driver


@pytest.fixture
def run(database):
    """Run a command on the database: what it prints, and its status."""

    def run(command, *arguments, **more):
        options = ["--broker", database.url, "-o", f"table_prefix={database.prefix}"]
        return CliRunner().invoke(kombulite, [*command.split(), *options, *arguments], **more)

    return run


def test_queues_publish_tail_move_and_purge(run, database):
    assert run("publish", "-q", "orders", "--declare", "1", "2", "3").output == "3 published\n"
    assert json.loads(run("queues", "--json").output) == [
        {"queue": "orders", "message_count": 3, "consumer_count": 0, "unacked": 0}
    ]
    assert run("tail", "orders", "-n", "1").output == "orders\t1\n"
    moved = run("move", "orders", "archive", "--declare", "-n", "1", "--to-transport-option", "lease=30")
    assert (moved.output, moved.exit_code) == ("1 moved from orders to archive\n", 0)
    assert run("purge", "-y", "orders", "archive").output == "1 removed from orders\n1 removed from archive\n"
    assert [status["message_count"] for status in json.loads(run("queues", "--json").output)] == [0, 0]


def test_messages_that_are_looked_at_stay_as_they_were(database):
    connection = database.connect()
    queue = Queue("orders")
    Producer(connection).publish_many(range(3), routing_key="orders", declare=[queue])
    for _ in range(2):
        seen = peek(queue, connection, 2)
        assert [(message["body"], message["redelivered"]) for message in seen] == [(0, False), (1, False)]
    found = [queue(connection).get() for _ in range(3)]
    assert [(message.payload, message.delivery_count) for message in found] == [(0, 0), (1, 0), (2, 0)]


def test_top_shows_the_queues(run, database):
    run("publish", "-q", "orders", "--declare", "1", "2")
    options = ["-o", f"table_prefix={database.prefix}", "-n", "1"]
    shown = CliRunner().invoke(kombulite, ["top", *options, database.url])
    assert shown.exit_code == 0, shown.output
    assert "orders" in shown.output


def test_run_moves_a_stream(database):
    done = CliRunner().invoke(
        kombulite, ["run", "--broker", database.url, "--messages", "200", "--consumers", "1", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["consumed"] == 200


def test_tables_are_created_once(run, database):
    with pytest.raises(exceptions.OperationalError):
        database.connect(create_tables=False).connect()
    for _ in range(2):
        assert run("sql init").exit_code == 0
    database.connect(create_tables=False).connect()


@pytest.fixture
def of_version_2(database):
    """Statements that make tables those of version 2, with messages in them."""
    connection, kind = database.connect(), database.url.partition(":")[0]
    Producer(connection, routing_key="orders").publish_many(range(3), declare=[Queue("orders")])
    queue = Queue("orders")(connection)
    assert queue.get(no_ack=True).payload == 0
    messages, rows = f"{database.prefix}messages", LockedDatabase(connection.transport).rows
    if kind == "postgresql":
        rows(f"ALTER TABLE {messages} ADD PRIMARY KEY (id), REPLICA IDENTITY DEFAULT")
    rows("UPDATE {p}meta SET version = 2")
    connection.release()
    return kind


def test_tables_of_version_2_are_upgraded(run, database, of_version_2):
    with pytest.raises(exceptions.OperationalError, match="end what uses them, then run 'kombulite sql init'"):
        database.connect().connect()
    for _ in range(2):
        done = run("sql init")
        assert done.exit_code == 0, done.output
    connection = database.connect()
    queue, rows = Queue("orders")(connection), LockedDatabase(connection.transport).rows
    assert [queue.get(no_ack=True).payload for _ in range(2)] == [1, 2]
    Producer(connection, routing_key="orders").publish(3)
    assert queue.get(no_ack=True).payload == 3
    if of_version_2 == "postgresql":
        keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'p' AND conrelid = to_regclass(?)"
        assert rows(keys, f"{database.prefix}messages") == [(0,)]


def test_upgrade_is_printed_for_migrations(run, database, of_version_2):
    statements = json.loads(run("sql print", "--since", "2", "--json").output)
    with closing(driver(database)) as other:
        for statement in statements:
            other.execute(statement)
        other.commit()
    assert Queue("orders")(database.connect()).get(no_ack=True).payload == 1
    assert run("sql print", "--since", "1").exit_code == 2


def test_all_tables_may_be_replicated(postgresql_url):
    """A publication refuses updates of tables without a key, unless it may send whole rows."""
    prefix = f"r{uuid4().hex[:8]}_"
    with (
        Connection(postgresql_url, transport_options={"table_prefix": prefix}) as connection,
        psycopg.connect(postgresql_url, autocommit=True) as admin,
    ):
        connection.connect()
        found = admin.execute("SELECT tablename FROM pg_tables WHERE starts_with(tablename, %s)", [prefix]).fetchall()
        tables = [name for (name,) in found]
        assert len(tables) == 7
        admin.execute(f"CREATE PUBLICATION {prefix}all FOR TABLE {', '.join(tables)}")
        queue = Queue("orders", Exchange("shop", "fanout"), expires=60)(connection)
        queue.declare()
        Producer(connection, routing_key="orders").publish(1)
        queue.get().ack()
        assert queue.get() is None
        Consumer(connection, queue, on_message=lambda message: None).consume()
        connection.transport._session._renew()
        queue.delete()
        admin.execute(f"DROP PUBLICATION {prefix}all")


def test_tables_are_printed_for_migrations(run, database):
    printed = run("sql print", "--json").output
    kind = database.url.partition(":")[0]
    assert json.loads(printed) == schema_statements(kind, database.prefix)


def test_tables_are_created_by_a_migration_of_alembic(database):
    engine = sqlalchemy.create_engine(sqlalchemy_url(database), poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        for statement in schema_statements(engine.dialect.name, database.prefix):
            operations.execute(statement)
    database.connect(create_tables=False).connect()


def test_tables_are_created_by_a_migration_of_django(database, django_connection):
    operation = migrations.RunSQL(schema_statements(django_connection.vendor, database.prefix))
    with django_connection.schema_editor(atomic=False) as editor:
        operation.database_forwards("app", editor, None, None)
    database.connect(create_tables=False).connect()


@pytest.mark.parametrize("option", ["table_prefix=a;b", "schema=a?b"])
def test_names_that_cannot_be_are_refused(option):
    refused = CliRunner().invoke(kombulite, ["sql", "print", "-b", "postgresql://", "-o", option])
    assert refused.exit_code == 2
    assert "must consist of" in refused.output


def test_other_brokers_have_no_tables():
    refused = CliRunner().invoke(kombulite, ["sql", "print", "-b", "memory://"])
    assert (refused.exit_code, "must be sqlite:// or postgresql://" in refused.output) == (2, True)


# --- relay


@pytest.fixture
def target(amqp_url):
    """A queue at RabbitMQ, bound to an exchange."""
    with Connection(amqp_url) as connection:
        name = f"relay.{uuid4().hex}"
        queue = Queue(name, Exchange(name, "topic"), routing_key="order.*")(connection)
        queue.declare()
        yield queue
        queue.delete()
        queue.exchange.delete()


@pytest.fixture
def relay(database, target, amqp_url):
    """The arguments of a relay from the queue ``orders`` to the exchange of the target."""
    own = ["-o", f"table_prefix={database.prefix}", "-o", "lease=1"]
    return ["relay", database.url, amqp_url, "orders", *own]


def published(database, target, count):
    """Messages on the database, to an exchange of the target's name."""
    connection = database.connect()
    exchange = Exchange(target.name, "topic")
    Queue("orders", exchange, routing_key="#")(connection).declare()
    producer = Producer(connection, exchange)
    producer.publish_many(range(count), "order.new", headers={"a": 1}, correlation_id="c", message_id="m")
    return producer


def taken(target):
    found = []
    while (message := target.get(no_ack=True)) is not None:
        found.append(message)
    return found


def test_relay_moves_what_is_committed_and_nothing_else(database, target, relay):
    published(database, target, 250)
    done = CliRunner().invoke(kombulite, [*relay, "--timeout", "2"])
    assert (done.output, done.exit_code) == ("250 relayed\n", 0)
    messages = taken(target)
    assert [message.payload for message in messages] == list(range(250))
    assert (messages[0].headers["a"], messages[0].properties["correlation_id"]) == (1, "c")
    assert messages[0].properties["message_id"] == "m"
    assert Queue("orders")(database.connect()).get() is None


def test_message_that_the_target_has_no_queue_for_stays(database, target, relay):
    producer = published(database, target, 2)
    producer.publish("stays", "other.key")
    done = CliRunner().invoke(kombulite, [*relay, "--timeout", "5"])
    assert done.exit_code == 1
    assert "does not take a message with the routing key 'other.key'" in done.output
    assert [message.payload for message in taken(target)] == [0, 1]
    assert Queue("orders")(database.connect()).get(no_ack=True).payload == "stays"


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_relay_is_killed_and_nothing_is_lost(database, target, relay, kills):
    producer = published(database, target, 300 * kills)
    counted = 0
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-m", "kombulite", *relay])
        deadline = time.monotonic() + 30
        while target.queue_declare(passive=True).message_count < counted + 150 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.wait(20)
        counted = target.queue_declare(passive=True).message_count
    producer.publish("last", "order.new")
    subprocess.run([sys.executable, "-m", "kombulite", *relay, "--timeout", "5"], check=True, timeout=120)
    bodies = [message.payload for message in taken(target)]
    assert {*bodies} == {*range(300 * kills), "last"}
    assert len(bodies) - 300 * kills - 1 <= 100 * kills


def test_relay_ends_in_good_order_at_sigterm(database, target, relay):
    published(database, target, 150)
    process = subprocess.Popen([sys.executable, "-m", "kombulite", *relay], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while target.queue_declare(passive=True).message_count < 150 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "150 relayed\n"
    assert process.returncode == 0
    assert len(taken(target)) == 150


def test_relay_goes_on_when_the_target_was_away(database, start_server, tmp_path):
    server = start_server(RabbitMQServer)
    with Connection(server.url) as connection:
        Queue("orders", durable=True)(connection).declare()
    connection = database.connect()
    Queue("orders")(connection).declare()
    producer = Producer(connection, routing_key="orders")
    relay = ["relay", database.url, server.url, "orders", "-o", f"table_prefix={database.prefix}"]
    process = subprocess.Popen([sys.executable, "-m", "kombulite", *relay], stderr=subprocess.PIPE, text=True)
    bodies = set()
    try:
        producer.publish_many(range(100))
        with Connection(server.url) as target:
            wait_for(Queue("orders")(target), 100)
        server.restart()
        producer.publish_many(range(100, 200))
        with Connection(server.url) as target:
            queue, deadline = Queue("orders")(target), time.monotonic() + 60
            while len(bodies) < 200 and time.monotonic() < deadline:  # what was not confirmed yet comes twice
                bodies.update(message.payload for message in taken(queue))
                time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert "connecting again" in process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert bodies == {*range(200)}


def wait_for(queue, count):
    deadline = time.monotonic() + 60
    while queue.queue_declare(passive=True).message_count < count:
        assert time.monotonic() < deadline, "the messages do not come"
        time.sleep(0.02)
