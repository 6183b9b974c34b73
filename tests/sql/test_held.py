"""Messages that the application has when its connection is lost: the next connection of the process takes them over."""

from __future__ import annotations

import gc
import uuid
from contextlib import suppress
from typing import Any

import pytest

from kombulite import Connection, Consumer, Producer, Queue, exceptions
from kombulite.message import Message
from tests.servers import wait_until

LEASE = {"lease": 3}


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


def received(connection: Connection, name: str) -> list[Message]:
    """Receive a message, and lose the connection."""
    got: list[Message] = []
    Consumer(connection.channel(), Queue(name), on_message=got.append).consume()
    Producer(connection).publish("x", routing_key=name)
    drain(connection, got, 1)
    connection.abandon(connection.transport, "lost")
    return got


@pytest.mark.parametrize("fate", ["ack", "reject", "requeue"])
def test_is_settled_after_the_connection_came_back(url, name, fate):
    with Connection(url, transport_options=LEASE) as connection:
        got = received(connection, name)
        connection.ensure_connection()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=4)  # longer than the lease of the connection that is lost
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
    with Connection(url, transport_options=LEASE) as connection:
        got = received(connection, name)
        got[0].ack()
    with Connection(url) as other:
        queue = Queue(name)(other.channel())
        assert queue.get() is None
        other.release()
        assert queue(other.channel()).get() is None


def test_comes_again_when_the_application_has_forgotten_it(url, name):
    with Connection(url, transport_options=LEASE) as connection:
        got = received(connection, name)
        connection.ensure_connection()
        got.clear()
        gc.collect()
        drain(connection, got, 1)
        assert got[0].delivery_info["redelivered"]
        got[0].ack()


def test_goes_back_when_the_connection_that_took_it_over_is_closed(url, name):
    with Connection(url, transport_options=LEASE) as connection:
        got = received(connection, name)
        connection.ensure_connection()
    with Connection(url) as other:
        again = Queue(name)(other.channel()).get()
        assert again is not None
        assert again.payload == got[0].payload
        again.ack()


def test_what_the_application_has_forgotten_before_comes_again_at_once(url, name):
    with Connection(url, transport_options={"lease": 600}) as connection:
        received(connection, name).clear()
        message = Queue(name)(connection.channel()).get()
        assert message is not None
        assert message.delivery_info["redelivered"]
        message.ack()
