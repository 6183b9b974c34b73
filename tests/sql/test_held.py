"""Messages that the application has when its connection is lost: the next connection of the process takes them over."""

from __future__ import annotations

import gc
import uuid
from contextlib import suppress
from threading import Thread
from typing import Any

import psycopg
import pytest

from kombulite import Connection, Consumer, Producer, Queue, aio, exceptions
from kombulite.brokers.base import Outcome
from kombulite.brokers.sql.messages import Messages
from kombulite.message import Message
from tests.aio.conftest import run, soon
from tests.servers import wait_until
from tests.sql.conftest import LockedDatabase

PATIENT = {"lease": 600}  # so nothing comes again because time has passed


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    return f"sqlite:///{tmp_path}/db" if request.param == "sqlite" else request.getfixturevalue("postgresql_url")


@pytest.fixture
def name() -> str:
    return f"held.{uuid.uuid4().hex[:10]}"


def drain(connection: Connection, got: list[Message], count: int) -> None:
    def has_come() -> bool:
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.2)
        return len(got) >= count

    wait_until(has_come, 30, "it does not come")


def check_nothing_comes(connection: Connection) -> None:
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)  # it looks once, however short that is


def receive(connection: Connection, name: str) -> list[Message]:
    """Receive a message."""
    got: list[Message] = []
    Consumer(connection.channel(), Queue(name), on_message=got.append).consume()
    Producer(connection).publish("x", routing_key=name)
    drain(connection, got, 1)
    return got


def lose(connection: Connection) -> int:
    """Lose the connection; returns its number in the database."""
    number: int = connection.transport._session.topology.connection
    connection.abandon(connection.transport, "lost")
    return number


def received(connection: Connection, name: str) -> list[Message]:
    """Receive a message, and lose the connection."""
    got = receive(connection, name)
    lose(connection)
    return got


def end_lease(connection: Connection, number: int) -> None:
    """Let the lease of another connection run out."""
    session = connection.transport._session
    with session.transaction():
        session.database.rows("UPDATE {p}connections SET alive_until = 0 WHERE id = ?", number)
        session._sweep()


@pytest.mark.parametrize("fate", ["ack", "reject", "requeue"])
def test_is_settled_after_the_connection_came_back(url, name, fate):
    with Connection(url, transport_options=PATIENT) as connection:
        got = receive(connection, name)
        lost = lose(connection)
        connection.ensure_connection()
        end_lease(connection, lost)
        check_nothing_comes(connection)
        getattr(got[0], fate)()
        if fate == "requeue":
            drain(connection, got, 2)
            assert got[1].delivery_info["redelivered"]
            got[1].ack()
        with pytest.raises(exceptions.RecoverableConnectionError):
            got[0].channel.basic_ack(got[0].delivery_tag)
    with Connection(url) as other:
        assert Queue(name)(other.channel()).get() is None


def test_is_settled_by_another_connection_when_its_own_is_given_up(url, name):
    with Connection(url, transport_options=PATIENT) as connection:
        got = received(connection, name)
        got[0].ack()
    with Connection(url) as other:
        queue = Queue(name)(other.channel())
        assert queue.get() is None
        other.release()
        assert queue(other.channel()).get() is None


@pytest.mark.parametrize("fate", ["ack", "recover"])
def test_multiple_settles_what_came_before_the_loss_too(url, name, fate):
    with Connection(url, transport_options=PATIENT) as connection:
        others = receive(connection, f"{name}.other")
        got = received(connection, name)
        connection.ensure_connection()
        Producer(connection).publish("y", routing_key=name)
        drain(connection, got, 2)
        if fate == "recover":
            got[1].channel.basic_recover(requeue=True)
            drain(connection, got, 4)
            assert sorted(message.payload for message in got[2:]) == ["x", "y"]
        got[-1].ack(multiple=True)
        for message in got:
            with pytest.raises(exceptions.AMQPError):
                message.channel.basic_ack(message.delivery_tag)
        with Connection(url) as other:
            assert Queue(name)(other.channel()).get() is None
            others[0].ack()


def test_is_settled_together_with_what_came_later(url, name):
    with Connection(url, transport_options=PATIENT) as connection:
        got = received(connection, name)
        connection.ensure_connection()
        Producer(connection).publish("y", routing_key=name)
        drain(connection, got, 2)
        channel = got[0].channel
        with pytest.raises(exceptions.AMQPError):
            channel.settle_many([*(each.delivery_tag for each in got), 999_999], Outcome.ACK)
        channel.settle_many([each.delivery_tag for each in got], Outcome.ACK)
        for message in got:
            with pytest.raises(exceptions.AMQPError):
                channel.basic_ack(message.delivery_tag)
    with Connection(url) as other:
        assert Queue(name)(other.channel()).get() is None


@pytest.mark.parametrize("is_settled_before", [False, True])
def test_stays_with_its_holder_when_the_connection_that_took_it_over_ends(url, name, is_settled_before):
    with Connection(url, transport_options=PATIENT) as last:
        last.ensure_connection()
        with Connection(url, transport_options=PATIENT) as connection:
            got = received(connection, name)
            with Connection(url, transport_options=PATIENT) as taking:
                taking.ensure_connection()
                if is_settled_before:
                    got[0].ack()
            queue = Queue(name)(last.channel())
            assert queue.get() is None  # it does not come again while the application has it
            if not is_settled_before:
                connection.ensure_connection()
                got[0].ack()
            last.transport._session._renew()
            assert queue.get() is None
        del got
        assert queue.get() is None


def test_what_came_later_is_settled_though_what_came_before_the_loss_cannot_be_yet(url, name, monkeypatch):
    options = {**PATIENT, "table_prefix": f"h{uuid.uuid4().hex[:8]}_"}
    with Connection(url, transport_options=options) as connection:
        got = received(connection, name)
        connection.ensure_connection()
        Producer(connection).publish("y", routing_key=name)
        drain(connection, got, 2)
        with monkeypatch.context() as patch:
            patch.setattr(connection.transport._session, "settle_held", refused)
            with pytest.raises(exceptions.RecoverableChannelError):
                got[1].ack(multiple=True)
        connection.transport._session._renew()
        with connection.transport._session.use():  # or a notification finds the statement, and takes it for interrupted
            assert LockedDatabase(connection.transport).value("SELECT count(*) FROM {p}messages") == 0


def refused(*_: Any) -> None:
    raise exceptions.RecoverableChannelError("canceling statement due to statement timeout")


@pytest.mark.parametrize("losses", [1, 2])
def test_is_settled_on_an_event_loop_by_the_channel_that_it_came_on(postgresql_url, name, losses):
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"

    async def program() -> None:
        options = {**PATIENT, "table_prefix": f"h{uuid.uuid4().hex[:8]}_"}
        with psycopg.connect(postgresql_url, autocommit=True) as admin:
            async with aio.connect(postgresql_url, transport_options=options) as connection:
                kept = []
                async with connection.consume(Queue(name)) as messages:
                    for number in range(1, losses + 1):
                        await connection.producer().publish(number, name)
                        kept.append(await messages.next(20))
                        admin.execute(f"{end} AND pid <> pg_backend_pid()")

                        async def is_back(number: int = number) -> bool:
                            return connection.counters.reconnects == number

                        await soon(is_back, 20)
                    for message in kept:
                        await message.ack()

                    async def are_gone() -> bool:
                        found = admin.execute(f"SELECT count(*) FROM {options['table_prefix']}messages").fetchone()
                        return found == (0,)

                    await soon(are_gone, 20)

    run(program)


def test_is_settled_another_time_when_the_database_was_busy(url, name, monkeypatch):
    def refuse(*_: Any) -> None:
        raise exceptions.RecoverableChannelError("deadlock detected")

    with Connection(url, transport_options=PATIENT) as connection:
        got = received(connection, name)
        connection.ensure_connection()
        with monkeypatch.context() as patch:
            patch.setattr(connection.transport._session.messages, "delete", refuse)
            with pytest.raises(exceptions.RecoverableChannelError):
                got[0].ack()
        check_nothing_comes(connection)
    with Connection(url) as other:
        assert Queue(name)(other.channel()).get() is None


def test_comes_again_when_the_application_has_forgotten_it(url, name):
    with Connection(url, transport_options=PATIENT) as connection:
        got = received(connection, name)
        connection.ensure_connection()
        got.clear()
        gc.collect()
        drain(connection, got, 1)
        assert got[0].delivery_info["redelivered"]
        got[0].ack()


def test_goes_back_when_the_connection_that_took_it_over_is_closed(url, name):
    with Connection(url, transport_options=PATIENT) as connection:
        got = received(connection, name)
        connection.ensure_connection()
    with Connection(url) as other:
        again = Queue(name)(other.channel()).get()
        assert again is not None
        assert again.payload == got[0].payload
        again.ack()


def test_what_the_application_has_forgotten_before_comes_again_at_once(url, name):
    with Connection(url, transport_options=PATIENT) as connection:
        received(connection, name).clear()
        message = Queue(name)(connection.channel()).get()
        assert message is not None
        assert message.delivery_info["redelivered"]
        message.ack()


def test_what_is_forgotten_is_kept_by_nothing(url, name):
    with Connection(url, transport_options=PATIENT) as connection:
        got = receive(connection, name)
        for turn in range(1, 4):
            lose(connection)
            got.clear()
            gc.collect()
            drain(connection, got, 1)
            assert got[0].delivery_count == turn
        transport = connection.transport
        assert not any(transport._held.channels.values())
        assert not transport._session.left.held
        got[0].ack()


# --- several connections


def test_is_settled_after_the_connection_that_took_it_over_was_lost_at_its_close(url, name, monkeypatch):
    with Connection(url, transport_options=PATIENT) as last:
        last.ensure_connection()
        with Connection(url, transport_options=PATIENT) as connection:
            got = received(connection, name)
            with Connection(url, transport_options=PATIENT) as taking:
                taking.ensure_connection()
                session = taking.transport._session

                def lose(*_: Any) -> None:
                    session.database.close()
                    raise exceptions.RecoverableConnectionError("the server closed the connection")

                monkeypatch.setattr(session.messages, "give", lose)
            connection.ensure_connection()
            got[0].ack()
            check_nothing_comes(connection)
        left = "SELECT count(*) FROM {p}messages WHERE queue = (SELECT id FROM {p}queues WHERE name = ?)"
        assert LockedDatabase(last.transport).value(left, name) == 0


def test_is_given_to_no_connection_that_has_ended_meanwhile(postgresql_url, name, monkeypatch):
    with Connection(postgresql_url, transport_options=PATIENT) as last:
        last.ensure_connection()
        with Connection(postgresql_url, transport_options=PATIENT) as connection:
            got = received(connection, name)
            with Connection(postgresql_url, transport_options=PATIENT) as taking:
                taking.ensure_connection()
                messages = taking.transport._session.messages
                give = messages.give
                monkeypatch.setattr(messages, "give", lambda *given: (last.release(), give(*given))[1])
            with pytest.raises(exceptions.RecoverableConnectionError):
                got[0].ack()
            message = Queue(name)(connection.channel()).get()
            assert message.delivery_info["redelivered"]
            message.ack()


def test_connections_that_come_back_at_the_same_time(postgresql_url, monkeypatch):
    take_over = Messages.take_over

    def meanwhile(*arguments):
        monkeypatch.setattr(Messages, "take_over", take_over)
        second.ensure_connection()
        return take_over(*arguments)

    options = {**PATIENT, "table_prefix": f"h{uuid.uuid4().hex[:8]}_"}
    with (
        Connection(postgresql_url, transport_options=options) as first,
        Connection(postgresql_url, transport_options=options) as second,
    ):
        got = received(first, "first") + received(second, "second")
        monkeypatch.setattr(Messages, "take_over", meanwhile)
        first.ensure_connection()
        for message in got:
            message.ack()
        check_nothing_comes(first)
        check_nothing_comes(second)
    with Connection(postgresql_url, transport_options=options) as other:
        for queue in ("first", "second"):
            assert Queue(queue)(other.channel()).get() is None


def test_lease_that_another_connection_ends_is_not_waited_for(postgresql_url):
    options = {"table_prefix": f"h{uuid.uuid4().hex[:8]}_", "socket_timeout": 20}
    table = f"{options['table_prefix']}connections"
    with (
        Connection(postgresql_url, transport_options=options) as first,
        Connection(postgresql_url, transport_options=options) as second,
        psycopg.connect(postgresql_url) as other,
    ):
        first.connect()
        other.execute(f"INSERT INTO {table} (alive_until, lease) VALUES (0, 1)")
        other.commit()
        other.execute(f"DELETE FROM {table} WHERE alive_until = 0")
        second.connect()
        other.rollback()


def test_lease_that_another_connection_is_ending_comes_before_its_messages(postgresql_url):
    options = {**PATIENT, "table_prefix": f"h{uuid.uuid4().hex[:8]}_"}
    with (
        Connection(postgresql_url, transport_options=options) as connection,
        psycopg.connect(postgresql_url) as other,
        psycopg.connect(postgresql_url, autocommit=True) as admin,
    ):
        got = receive(connection, "orders")
        lost = lose(connection)
        other.execute(f"DELETE FROM {options['table_prefix']}connections WHERE id = {lost}")
        blocked = f"SELECT 1 FROM pg_stat_activity WHERE {other.info.backend_pid} = ANY(pg_blocking_pids(pid))"
        thread = Thread(target=connection.ensure_connection)
        thread.start()
        wait_until(lambda: admin.execute(blocked).fetchone(), 20, "it does not wait")
        other.execute(f"UPDATE {options['table_prefix']}messages SET owner = NULL WHERE owner = {lost}")
        other.commit()
        thread.join(20)
        drain(connection, got, 2)
        got[1].ack()


def test_connections_to_other_tables_are_left_alone(postgresql_url, name):
    def connect(schema: str) -> Connection:
        place = {"connect_args": {"options": f"-c search_path={schema}"}}
        return Connection(postgresql_url, transport_options={**PATIENT, **place})

    schemas = [f"s{uuid.uuid4().hex[:8]}" for _ in range(2)]
    with psycopg.connect(postgresql_url, autocommit=True) as admin:
        for schema in schemas:
            admin.execute(f"CREATE SCHEMA {schema}")
    with connect(schemas[0]) as lost, connect(schemas[1]) as connection, connect(schemas[1]) as other:
        got = receive(connection, name)
        received(lost, name)
        other.connect()
        got[0].ack()
    with connect(schemas[1]) as other:
        assert Queue(name)(other.channel()).get() is None
