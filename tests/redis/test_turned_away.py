"""Clients that a server turns away in the middle: it has no room for more, or their user is gone."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, aio, exceptions
from kombulite.message import Message
from tests.aio.conftest import run, soon
from tests.conftest import started
from tests.redis.conftest import drain
from tests.servers import RedisServer, wait_until

LOST = (exceptions.RecoverableConnectionError, OSError)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> RedisServer:
    return started(request, RedisServer)


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as client:
        yield client


# --- no room


@contextmanager
def full(raw: redis.Redis) -> Iterator[None]:
    """Let no more clients in than there are."""
    most = raw.config_get("maxclients")["maxclients"]
    raw.config_set("maxclients", len(raw.client_list()))
    try:
        yield
    finally:
        raw.config_set("maxclients", most)


def test_who_finds_no_room_tries_again_as_the_policy_says(server, raw):
    failures: list[Any] = []
    policy = {"interval_start": 0, "interval_step": 0, "errback": lambda error, interval: failures.append(str(error))}
    with Connection(server.url) as connection, full(raw):
        with pytest.raises(exceptions.OperationalError, match="max number of clients"):
            connection.ensure_connection(max_retries=2, **policy)
        assert len(failures) == 2
        with pytest.raises(exceptions.RecoverableConnectionError, match="max number of clients"):
            connection.clone().connect()

        async def main() -> None:
            async with aio.connect(server.url):
                pass

        with pytest.raises(exceptions.RecoverableConnectionError, match="max number of clients"):
            run(main)


def test_another_host_is_asked_where_there_is_no_room(server, raw, start_server, name):
    other = start_server(RedisServer)
    with full(raw), Connection(f"{server.url};{other.url}") as connection:
        connection.ensure_connection(max_retries=3, interval_start=0, interval_step=0)
        Producer(connection).publish(1, routing_key=name)
        with redis.Redis(port=other.port) as client:
            assert client.llen(name) == 1


def test_connection_that_finds_no_room_for_another_goes_on(server, raw, name):
    got: list[Any] = []
    queue = Queue(name)
    with Connection(server.url) as connection:
        producer = Producer(connection)
        producer.publish(1, routing_key=name)
        with full(raw):
            producer.publish(2, routing_key=name)
            message = queue(connection).get()
            assert message.payload == 1
            message.ack()
            consumer = Consumer(connection.channel(), queue, callbacks=[lambda body, _: got.append(body)], no_ack=True)
            with pytest.raises(exceptions.RecoverableConnectionError, match="max number of clients"):
                consumer.consume()  # it needs a connection that listens
            producer.publish(3, routing_key=name)
        consumer.consume()
        drain(connection, lambda: got == [2, 3])


# --- a user that is gone


class User:
    """A user of the server, that may be taken away."""

    def __init__(self, server: RedisServer, raw: redis.Redis, name: str) -> None:
        self._raw = raw
        self._name = name
        self.url = f"redis://{name}:pw@127.0.0.1:{server.port}/0"
        self.create()

    def create(self) -> None:
        self._raw.execute_command("ACL", "SETUSER", self._name, "reset", "on", ">pw", "+@all", "~*", "&*")

    def delete(self) -> None:
        """End its connections too, as the server does."""
        self._raw.execute_command("ACL", "DELUSER", self._name)
        self.wait_until_gone()

    def wait_until_gone(self) -> None:
        """Wait until no connection is left that was let in."""
        wait_until(lambda: all(each["user"] != self._name for each in self._raw.client_list()), 20, "it is connected")


@pytest.fixture
def user(server: RedisServer, raw: redis.Redis, name: str) -> User:
    raw.flushall()
    return User(server, raw, name)


OPERATIONS: dict[str, Callable[[Connection, str, Message], Any]] = {
    "publish": lambda connection, name, held: Producer(connection).publish("more", routing_key=name),
    "retry": lambda connection, name, held: Producer(connection).publish("more", routing_key=name, retry=True),
    "get": lambda connection, name, held: Queue(name)(connection).get(),
    "drain": lambda connection, name, held: connection.drain_events(timeout=20),
    "ensure": lambda connection, name, held: connection.ensure_connection(),
    "ack": lambda connection, name, held: held.ack(),
}


def check_refused(connection: Connection) -> None:
    """Consume until the user is refused: the loss is raised first."""
    deadline = monotonic() + 20
    with pytest.raises(exceptions.LoginRefused):
        while monotonic() < deadline:
            with suppress(*LOST):
                connection.drain_events(timeout=0.1)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_user_that_is_deleted_is_told_and_loses_nothing(user, raw, name, operation):
    got: list[Message] = []
    with Connection(user.url) as connection:
        Producer(connection).publish("first", routing_key=name)
        channel = connection.channel()
        Consumer(channel, Queue(name), on_message=got.append).consume()
        drain(connection, lambda: got)
        user.delete()
        # It may notice the end of the connection first, or send what has no answer.
        with suppress(exceptions.LoginRefused, *LOST):
            OPERATIONS[operation](connection, name, got[0])
        for _ in range(2):  # also when it has been told
            check_refused(connection)
        user.create()
        connection.ensure_connection()
        if not got[0].acknowledged:
            got[0].ack()
        Producer(connection).publish("last", routing_key=name)
        drain(connection, lambda: got[-1].payload == "last")
        for message in got[1:]:
            message.ack()
        wait_until(lambda: not raw.hlen("unacked"), 20, "a message is not settled")
        assert [message.payload for message in got].count("first") == 1


def test_event_loop_whose_user_is_deleted_is_told_and_loses_nothing(user, raw, name):
    async def main() -> None:
        async with aio.connect(user.url) as connection:
            producer = connection.producer()
            await producer.publish("first", name)
            async with connection.consume(Queue(name)) as messages:
                message = await messages.next(20)
                user.delete()
                with pytest.raises(exceptions.LoginRefused):
                    await messages.next(20)
                with pytest.raises(exceptions.LoginRefused):
                    await producer.publish("refused", name)
                user.create()
                await message.ack()

                async def is_published() -> bool:
                    try:
                        await producer.publish("last", name)
                    except exceptions.LoginRefused:  # by the consumer's attempt to connect: it began before that
                        return False
                    return True

                await soon(is_published)

            async def is_acknowledged() -> bool:
                return not raw.hlen("unacked")

            await soon(is_acknowledged)
            async with connection.consume(Queue(name)) as messages:
                last = await messages.next(20)
                assert last.payload == "last"
                await last.ack()

    run(main)


def test_changed_password_is_asked_for_with_the_next_connection(user, raw, name):
    with Connection(user.url) as connection:
        Producer(connection).publish("first", routing_key=name)
        message = Queue(name)(connection).get()
        raw.execute_command("ACL", "SETUSER", name, "resetpass", ">other")
        Producer(connection).publish("second", routing_key=name)  # it is let in already
        connection.collect()
        user.wait_until_gone()  # that of the thread that renews leases could send the ack: it is let in already
        message.ack()  # over the next connection
        with pytest.raises(exceptions.LoginRefused):
            connection.ensure_connection()
        assert raw.hlen("unacked") == 1
        connection.password = "other"
        connection.ensure_connection()
        wait_until(lambda: not raw.hlen("unacked"), 20, "the ack is lost")
        assert Queue(name)(connection).get(no_ack=True).payload == "second"


def test_a_policy_holds_for_the_first_connection_and_after_its_loss(start_server):
    """Its errback is called, and what ends it is one error, as with kombu."""
    server = start_server(RedisServer)
    policy = {"max_retries": 2, "interval_start": 0.01, "interval_step": 0, "interval_max": 0.01}
    for is_new in (False, True):
        told = []
        with Connection(f"redis://127.0.0.1:{server.port}") as connection:
            producer = Producer(connection, routing_key="q")
            if not is_new:
                producer.publish("taken")
                server.stop()
            told_by = {**policy, "errback": lambda error, interval, told=told: told.append(interval)}
            with pytest.raises(exceptions.OperationalError):
                producer.publish("lost", retry=True, retry_policy=told_by)
        assert len(told) >= policy["max_retries"]


def test_a_forgotten_connection_whose_server_is_gone_ends_without_a_word(start_server):
    server = start_server(RedisServer)
    connection = Connection(f"redis://127.0.0.1:{server.port}")
    Consumer(connection.channel(), Queue("q", Exchange("f", "fanout")), on_message=print).consume()
    server.stop()
    said = []
    sys.unraisablehook, hook = said.append, sys.unraisablehook
    try:
        del connection
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert not said
