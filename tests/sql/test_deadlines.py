"""A server that hangs, a network that swallows: every call ends by its deadline, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event
from time import monotonic
from uuid import uuid4

import psycopg
import pytest

from kombulite import Connection, Consumer, Producer, Queue, exceptions
from kombulite._client.outgoing import CHUNK_BYTES
from tests.proxy import Proxy
from tests.servers import PostgreSQLServer
from tests.sql.conftest import LockedDatabase

SILENT = "the server did not answer in 0.5 s"


def options():
    """Tables of its own: what a test leaves claimed comes back to no other."""
    return {"table_prefix": f"d{uuid4().hex[:8]}_", "lease": 1}


def shorten(connection):
    """Give what the connection does from now on a short deadline, and its lease no renewal, which would meet it first.

    Not before: on a busy machine a table may take longer to make than that.
    """
    called = Event()
    connection.transport._session._maintainer._renew = lambda: called.set
    assert called.wait(20)  # so no renewal that began before is under way
    connection.transport._database._wire._timeout = 0.5


@contextmanager
def silent(connection, server, proxy) -> Iterator[None]:
    """The server stopped, or the network before it."""
    shorten(connection)
    if proxy is None:
        server.pause()
        yield
        server.resume()
    else:
        proxy.silence()
        yield


@pytest.fixture(scope="module")
def own_postgresql(request):
    """One server for all tests here: each has it go on at its end."""
    request.getfixturevalue("postgresql_url")  # skips where there is none
    with PostgreSQLServer(fsync="off") as server:
        yield server


@pytest.fixture(params=["server", "network"])
def hanging(request, own_postgresql):
    """A connection to a server, and what makes that hang."""
    with Proxy(own_postgresql.port) as proxy:
        url = proxy.url(own_postgresql.url)
        through = proxy if request.param == "network" else None
        try:
            with Connection(url, transport_options=options()) as connection:
                Queue("orders")(connection).declare()
                yield connection, lambda: silent(connection, own_postgresql, through)
        finally:
            own_postgresql.resume()


def bodies(connection):
    """All that is in the queue, also what a lost connection had claimed."""
    found = []
    deadline = monotonic() + 30
    with Consumer(connection, [Queue("orders")], callbacks=[lambda body, message: (found.append(body), message.ack())]):
        while any(status[1] or status[3] for status in connection.transport.list_queues(1)):
            assert monotonic() < deadline, f"not all comes back: {found}"
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
    return found


def test_publish(hanging):
    connection, hang = hanging
    producer = Producer(connection, routing_key="orders")
    producer.publish("accepted")
    with hang(), pytest.raises(exceptions.RecoverableConnectionError, match=SILENT):
        producer.publish("unknown")
    assert not connection.connected
    producer.publish("after", retry=True)
    assert [body for body in bodies(connection) if body != "unknown"] == ["accepted", "after"]


def test_publish_many(hanging):
    connection, hang = hanging
    producer = Producer(connection, routing_key="orders")
    producer.publish("accepted")
    with hang(), pytest.raises(exceptions.RecoverableConnectionError, match=SILENT):
        producer.publish_many([b"x" * 100_000] * 200)
    first, *others = bodies(connection)
    assert first == "accepted"
    assert len(others) in (0, (CHUNK_BYTES + 99_999) // 100_000), "not what one transaction has"


def test_drain_events(hanging):
    connection, hang = hanging
    Producer(connection, routing_key="orders").publish("accepted")
    with (
        Consumer(connection, [Queue("orders")], callbacks=[lambda body, message: None]),
        hang(),
        pytest.raises(exceptions.RecoverableConnectionError, match=SILENT),
    ):
        connection.drain_events(timeout=60)
    assert bodies(connection) == ["accepted"]


def test_ack(hanging):
    connection, hang = hanging
    Producer(connection, routing_key="orders").publish("accepted")
    message = Queue("orders")(connection).get()
    with hang(), pytest.raises(exceptions.RecoverableConnectionError, match=SILENT):
        message.ack()
    assert bodies(connection) in (["accepted"], [])


@pytest.mark.parametrize("verb", ["declare", "delete", "purge"])
def test_declarations(hanging, verb):
    connection, hang = hanging
    queue = Queue("orders")(connection)
    with hang(), pytest.raises(exceptions.RecoverableConnectionError, match=SILENT):
        getattr(queue, verb)()


def test_release(hanging):
    connection, hang = hanging
    Producer(connection, routing_key="orders").publish("accepted")
    Queue("orders")(connection).get()
    with hang():
        connection.release()
    assert not connection.connected


def test_statement_that_waits_for_a_lock_of_somebody_else(own_postgresql):
    with (
        Connection(own_postgresql.url, transport_options=options()) as connection,
        psycopg.connect(own_postgresql.conninfo) as other,
    ):
        producer = Producer(connection, routing_key="orders")
        producer.publish("accepted")
        shorten(connection)
        other.execute(f"LOCK TABLE {connection.transport_options['table_prefix']}messages")
        with pytest.raises(exceptions.RecoverableConnectionError, match=SILENT):
            producer.publish("unknown")
        other.rollback()
        assert "accepted" in bodies(connection)


def test_claim_waits_for_neither_disk_nor_standby_as_a_publish_does(own_postgresql):
    patient = {**options(), "lease": 600}
    with (
        psycopg.connect(own_postgresql.conninfo, autocommit=True) as admin,
        Connection(own_postgresql.url, transport_options=patient) as other,
        Connection(own_postgresql.url, transport_options=patient) as connection,
    ):
        queue = Queue("orders")(connection)
        queue.declare()
        producer = Producer(other, routing_key="orders")
        producer.publish("accepted")
        other.transport._database._wire._timeout = 0.5
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'none'")  # so commits that wait wait for ever
        admin.execute("SELECT pg_reload_conf()")
        deadline = monotonic() + 30
        try:
            with pytest.raises(exceptions.RecoverableConnectionError, match=SILENT):
                while monotonic() < deadline:
                    producer.publish("unknown")
            message = queue.get()
        finally:
            admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            admin.execute("SELECT pg_reload_conf()")
        assert message.payload == "accepted"
        session = connection.transport._session
        with session.use():
            assert session.database.value("SELECT current_setting('synchronous_commit')") == "on"
        message.ack()


def test_deadline_is_the_option(own_postgresql):
    with Connection(own_postgresql.url, transport_options={**options(), "socket_timeout": 50}) as connection:
        connection.connect()
        assert connection.transport._database._wire._timeout == 50


@pytest.mark.parametrize("value", [0, -1])
def test_timeout_that_cannot_be_is_named(value):
    with pytest.raises(ValueError, match=f"socket_timeout must be above 0 seconds, got {value}"):
        Connection("postgresql://127.0.0.1:1/x", transport_options={"socket_timeout": value}).connect()


def test_message_claimed_for_a_connection_that_was_ended_meanwhile_comes_back(database):
    """A hanging server may run a claim after the lease of its connection has ended."""
    connection = database.connect(lease=0.6)
    queue = Queue("orders")(connection)
    queue.declare()
    Producer(connection, routing_key="orders").publish("stranded")
    LockedDatabase(connection.transport).rows("UPDATE {p}messages SET owner = 123456")
    assert bodies(connection) == ["stranded"]
