"""What a database cannot do, and what its operator has set: a typed error for each, and the work goes on after it."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from contextlib import contextmanager
from threading import Thread
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from kombulite import Connection, Consumer, Producer, Queue, exceptions
from tests.conftest import started
from tests.servers import PostgreSQLServer, wait_until
from tests.sql.conftest import LockedDatabase


def consume(connection, number):
    """Take so many messages of the queue ``orders``; returns their bodies."""
    found = []
    with Consumer(connection, [Queue("orders")], callbacks=[lambda body, message: (found.append(body), message.ack())]):
        while len(found) < number:
            connection.drain_events(timeout=20)
    return found


def fill(connection):
    """Publish until an error is raised; returns how many were accepted, and the error."""
    producer, accepted = Producer(connection, routing_key="orders"), 0
    while True:
        try:
            producer.publish(f"{accepted} {'x' * 2000}")
        except exceptions.AMQPError as error:
            return accepted, error
        accepted += 1


@pytest.fixture
def as_role(postgresql_url):
    """Connects as a user for whom the operator has set something."""
    roles, connections = [], []

    def connect(*settings):
        role = f"r{uuid4().hex[:10]}"
        roles.append(role)
        with psycopg.connect(postgresql_url, autocommit=True) as admin:
            admin.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
            for setting in settings:
                admin.execute(f"ALTER ROLE {role} SET {setting}")
        url = postgresql_url.replace("kombulite@", f"{role}@")
        connections.append(Connection(url, transport_options={"table_prefix": f"{role}_", "lease": 1}))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.release()
    with psycopg.connect(postgresql_url, autocommit=True) as admin:
        for role in roles:
            admin.execute(f"DROP OWNED BY {role}")
            admin.execute(f"DROP ROLE {role}")


# --- the file


@pytest.mark.parametrize("first_page", [0, 2], ids=["the header", "the tables"])
def test_corrupted_file_is_an_internal_error_and_closes_it(tmp_path, first_page):
    path = tmp_path / "m.db"
    with Connection(f"sqlite:///{path}") as connection:
        Queue("orders")(connection).declare()
        Producer(connection, routing_key="orders").publish_many(["x" * 500] * 100)
    content = path.read_bytes()
    page = 4096 * first_page
    path.write_bytes(content[:page] + b"\xaa" * (len(content) - page))
    connection = Connection(f"sqlite:///{path}")
    for _ in range(2):
        with pytest.raises(exceptions.InternalError, match=r"not a database|malformed"):
            Producer(connection, routing_key="orders").publish(1)
        assert not connection.connected
    assert not isinstance(exceptions.InternalError(), connection.recoverable_connection_errors)
    connection.release()


def test_file_that_is_corrupted_under_a_connection_is_closed(tmp_path):
    path = tmp_path / "m.db"
    with Connection(f"sqlite:///{path}") as connection:
        Queue("orders")(connection).declare()
        Producer(connection, routing_key="orders").publish_many(["x" * 500] * 100)
        other = sqlite3.connect(path)
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        other.close()
        content = path.read_bytes()
        path.write_bytes(content[:4096] + b"\xaa" * (len(content) - 4096))
        connection.transport._database._connection.execute("PRAGMA cache_size = 0")
        with pytest.raises(exceptions.InternalError):
            for _ in range(100):
                Queue("orders")(connection).get(no_ack=True)
        assert not connection.connected


def test_file_that_may_not_grow_is_a_resource_error(tmp_path):
    with Connection(f"sqlite:///{tmp_path}/m.db") as connection:
        Queue("orders")(connection).declare()
        connection.transport._database._connection.execute("PRAGMA max_page_count = 40")
        accepted, error = fill(connection)
        assert isinstance(error, exceptions.ResourceError)
        assert accepted > 5
        assert [body.split()[0] for body in consume(connection, accepted)] == [str(each) for each in range(accepted)]
        Producer(connection, routing_key="orders").publish("after")
        assert Queue("orders")(connection).get(no_ack=True).payload == "after"


# --- the disk


@contextmanager
def small_disk(folder, owner=None):
    """A file system of a few megabytes in memory; only root may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted")
    if owner is not None:
        shutil.chown(folder, owner)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=30m", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def check_full_disk(connection, enlarge):
    accepted, error = fill(connection)
    assert isinstance(error, exceptions.ResourceError)
    assert accepted > 100
    enlarge()
    Producer(connection, routing_key="orders").publish("after", retry=True)
    bodies = consume(connection, accepted + 1)
    assert [body.split()[0] for body in bodies] == [*(str(each) for each in range(accepted)), "after"]


def test_full_disk_of_sqlite(tmp_path):
    with small_disk(tmp_path / "disk") as enlarge, Connection(f"sqlite:///{tmp_path}/disk/m.db") as connection:
        Queue("orders")(connection).declare()
        check_full_disk(connection, enlarge)


@pytest.mark.soak
def test_full_disk_of_postgresql(request):
    server = started(request, PostgreSQLServer)
    folder = server.folder / "small"
    with small_disk(folder, server.owner.name) as enlarge:
        with psycopg.connect(server.conninfo, autocommit=True) as admin:
            admin.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
            admin.execute("ALTER DATABASE postgres SET default_tablespace = small")
        with Connection(server.url) as connection:
            Queue("orders")(connection).declare()
            check_full_disk(connection, enlarge)
        server.stop()


# --- the operator's settings


@pytest.mark.parametrize("setting", ["statement_timeout", "lock_timeout"])
def test_timeout_of_the_operator_is_recoverable(postgresql_url, as_role, setting):
    connection = as_role(f"{setting} = '200ms'")
    producer = Producer(connection, routing_key="orders")
    producer.publish("before")
    with psycopg.connect(postgresql_url) as other:
        other.execute(f"LOCK TABLE {connection.transport_options['table_prefix']}messages")
        with pytest.raises(exceptions.RecoverableChannelError, match="timeout"):
            producer.publish("refused")
    producer.publish("after")
    assert consume(connection, 2) == ["before", "after"]


def test_transaction_timeout_of_the_operator_ends_the_connection_and_is_recoverable(postgresql_url):
    """The server ends the session then, and not the statement alone."""
    options = {"table_prefix": f"x{uuid4().hex[:8]}_", "lease": 600}
    with (
        Connection(postgresql_url, transport_options=options) as connection,
        psycopg.connect(postgresql_url) as other,
    ):
        if other.info.server_version < 170000:
            pytest.skip("transaction_timeout came with PostgreSQL 17")
        producer = Producer(connection, routing_key="orders")
        producer.publish("before")
        LockedDatabase(connection.transport).rows("SELECT set_config('transaction_timeout', '200ms', false)")
        other.execute(f"LOCK TABLE {options['table_prefix']}messages")
        with pytest.raises(exceptions.RecoverableConnectionError, match="transaction timeout"):
            producer.publish("refused")
        assert not connection.connected
        other.rollback()
        producer.publish("after", retry=True)
        assert consume(connection, 2) == ["before", "after"]


def test_session_that_the_operator_ends_amid_a_transaction_is_a_lost_connection(postgresql_url):
    options = {"table_prefix": f"x{uuid4().hex[:8]}_", "lease": 600}
    with (
        Connection(postgresql_url, transport_options=options) as connection,
        psycopg.connect(postgresql_url, autocommit=True) as admin,
    ):
        producer = Producer(connection, routing_key="orders")
        producer.publish("before")
        session, is_there = connection.transport._session, "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        backend = session.database._wire.backend
        LockedDatabase(connection.transport).rows(
            "SELECT set_config('idle_in_transaction_session_timeout', '50ms', false)"
        )
        with pytest.raises(exceptions.RecoverableConnectionError), session.transaction():
            wait_until(lambda: not admin.execute(is_there, [backend]).fetchone(), 30, "the session is not ended")
            session.database.rows("DELETE FROM {p}messages")
        assert not connection.connected
        producer.publish("after", retry=True)
        assert consume(connection, 2) == ["before", "after"]


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
def test_isolation_that_the_operator_has_set_makes_no_statement_fail(as_role, level):
    connection = as_role(f"default_transaction_isolation = '{level}'")
    others = [Connection(connection.as_uri(), transport_options=connection.transport_options) for _ in range(3)]
    Queue("orders")(connection).declare()
    errors, found = [], []

    def work(mine):
        try:
            Producer(mine, routing_key="orders").publish_many(range(30))
            found.extend(consume(mine, 30))
        except exceptions.AMQPError as error:
            errors.append(error)
        finally:
            mine.release()

    threads = [Thread(target=work, args=[other]) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert sorted(found) == sorted([*range(30)] * 3)
    session = connection.transport._session
    with session.transaction():
        assert session.database.value("SELECT current_setting('transaction_isolation')") == "read committed"


def test_user_who_may_only_read_is_sent_to_another_server(postgresql_url, as_role):
    reader = as_role("default_transaction_read_only = on")
    with pytest.raises(exceptions.OperationalError, match="read-only") as caught:
        reader.ensure_connection(max_retries=1, interval_start=0)
    assert isinstance(caught.value.__cause__, exceptions.RecoverableConnectionError)
    options = reader.transport_options
    with Connection([reader.as_uri(), postgresql_url], transport_options=options) as connection:
        Producer(connection, routing_key="orders").publish(1, retry=True)
        assert consume(connection, 1) == [1]


def test_operator_who_ends_idle_sessions_does_not_end_a_waiting_consumer(as_role):
    connection, found = as_role("idle_session_timeout = '50ms'"), []
    with Consumer(connection, [Queue("orders")], on_message=found.append):
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.5)
        assert connection.transport._session._maintainer.is_listening
        Producer(connection, routing_key="orders").publish(1)
        connection.drain_events(timeout=20)
    assert [message.payload for message in found] == [1]


def test_role_without_privileges_is_refused(postgresql_url):
    role = f"r{uuid4().hex[:10]}"
    with (
        Connection(postgresql_url, transport_options={"table_prefix": f"{role}_"}) as owner,
        psycopg.connect(postgresql_url, autocommit=True) as admin,
    ):
        owner.connect()
        admin.execute(f"CREATE ROLE {role} LOGIN")
        connection = Connection(
            postgresql_url.replace("kombulite@", f"{role}@"), transport_options=owner.transport_options
        )
        with pytest.raises(exceptions.AccessRefused, match="permission denied for table"):
            connection.connect()
        admin.execute(f"DROP ROLE {role}")


def test_tables_that_are_emptied_are_named(database):
    connection = database.connect()
    Queue("orders")(connection).declare()
    LockedDatabase(connection.transport).rows("DELETE FROM {p}meta")
    with pytest.raises(exceptions.InternalError, match=f"the table {database.prefix}meta is empty"):
        Producer(connection, routing_key="orders").publish(1)
    assert not connection.connected


def test_tables_that_are_missing_are_named(database):
    connection = database.connect(create_tables=False)
    with pytest.raises(exceptions.OperationalError, match=f"there are no tables {database.prefix}"):
        connection.connect()


# --- several servers


def test_first_host_of_a_list_is_away(postgresql_url):
    parts = urlsplit(postgresql_url)
    options = {
        "table_prefix": f"h{uuid4().hex[:8]}_",
        "connect_args": {
            "host": f"127.0.0.1,{parts.hostname}",
            "port": f"1,{parts.port}",
            "target_session_attrs": "read-write",
        },
    }
    with Connection(postgresql_url, transport_options=options) as connection:
        Producer(connection, routing_key="orders").publish(1)
        assert consume(connection, 1) == [1]


def test_parameters_of_libpq_in_the_url(postgresql_url):
    url = f"{postgresql_url}?sslmode=prefer&application_name=shop&target_session_attrs=read-write"
    name = "SELECT current_setting('application_name')"
    with Connection(url) as connection:
        connection.connect()
        assert LockedDatabase(connection.transport).value(name) == "shop"
        with connection.clone() as other:
            other.connect()
            assert LockedDatabase(other.transport).value(name) == "shop"
    with Connection(url, transport_options={"connect_args": {"application_name": "mine"}}) as connection:
        connection.connect()
        assert LockedDatabase(connection.transport).value(name) == "mine"
    with pytest.raises(KeyError, match=r"Did you mean postgresql\?"):
        Connection(postgresql_url.replace("postgresql:", "postgres:"))


class Standby(PostgreSQLServer):
    """A server that follows another, until it is promoted."""

    def __init__(self, primary):
        self._primary = primary
        super().__init__()

    def create(self):
        source = f"host=127.0.0.1 port={self._primary.port} user=kombulite"
        self.run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-c", "fast")

    def promote(self):
        self.run("pg_ctl", "promote", "-D", str(self.data))


@pytest.mark.soak
@pytest.mark.parametrize("attributes", ["read-write", None], ids=["target_session_attrs", "two URLs"])
def test_failover_to_a_standby(request, attributes):
    primary = started(request, PostgreSQLServer)
    standby = started(request, lambda: Standby(primary))
    with psycopg.connect(primary.conninfo, autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        admin.execute("SELECT pg_reload_conf()")
        state = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        wait_until(lambda: admin.execute(state).fetchone() == (1,), 30, "the standby does not follow")
    servers = [standby, primary]
    if attributes is None:
        url, more = [server.url for server in servers], {}
    else:
        ports = ",".join(str(server.port) for server in servers)
        host = {"host": "127.0.0.1,127.0.0.1", "port": ports, "target_session_attrs": attributes}
        url, more = primary.url, {"connect_args": host}
    policy = {"max_retries": 100, "interval_start": 0.1, "interval_step": 0, "interval_max": 0.1}
    with Connection(url, transport_options={"lease": 1, **more}) as connection:
        producer = Producer(connection, routing_key="orders")
        producer.publish(0, declare=[Queue("orders")], retry=True, retry_policy=policy)
        producer.publish_many(range(1, 100))
        message = Queue("orders")(connection).get()
        primary.kill()
        standby.promote()
        producer.publish(100, retry=True, retry_policy=policy)
        assert message.payload == 0
        assert sorted(consume(connection, 101)) == list(range(101))


@pytest.mark.parametrize("name", ["", "/:memory:"])
def test_url_that_names_no_file_is_refused(name):
    with pytest.raises(ValueError, match="must name a file"):
        Connection(f"sqlite://{name}").connect()


def test_file_that_can_have_no_log_is_an_error_at_once(tmp_path, monkeypatch):
    """As on file systems without shared memory: SQLite keeps its mode then, without an error."""
    connect = sqlite3.connect

    class Connected(sqlite3.Connection):
        def execute(self, statement, *values):
            return super().execute("SELECT 'delete'" if "journal_mode" in statement else statement, *values)

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Connected, **options))
    with pytest.raises(
        exceptions.OperationalError, match="cannot have a write-ahead log, its journal_mode is 'delete'"
    ):
        Connection(f"sqlite:///{tmp_path}/x.db").connect()
