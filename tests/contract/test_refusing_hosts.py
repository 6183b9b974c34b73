"""A refusal is final only after all hosts have refused: wrong passwords, missing databases and virtual hosts."""

from __future__ import annotations

import asyncio

import pytest

from kombulite import Connection, Consumer, Producer, Queue, aio, exceptions
from tests.contract.conftest import Broker
from tests.servers import free_port

SECRET = "s3cret"
REFUSED = (exceptions.NotAllowed, exceptions.AccessRefused)


@pytest.fixture(params=["password", "database"])
def refused(request: pytest.FixtureRequest, broker: Broker) -> str:
    """A URL of the broker that it refuses."""
    scheme, _, rest = broker.url.partition("://")
    if scheme not in ("redis", "amqp"):
        pytest.skip("refuses nobody")
    place = rest.rpartition("@")[2].partition("/")[0]
    if request.param == "password":
        user = "guest" if scheme == "amqp" else "stranger"
        return f"{scheme}://{user}:{SECRET}@{place}/{'' if scheme == 'amqp' else '0'}"
    return f"{scheme}://{'guest:guest@' if scheme == 'amqp' else ''}{place}/{'missing' if scheme == 'amqp' else '9999'}"


def connection_to(broker: Broker, *urls: str) -> Connection:
    connection = Connection(list(urls), transport_options=broker.transport_options)
    broker._connections.append(connection)
    return connection


def test_the_next_host_is_asked(broker: Broker, refused: str) -> None:
    connection = connection_to(broker, refused, broker.url)
    errors: list[Exception] = []
    connection.ensure_connection(lambda error, interval: errors.append(error), max_retries=3)
    assert connection.connected
    assert isinstance(errors[0], REFUSED)
    assert connection_to(broker, refused, refused, broker.url).channel().is_open


def test_all_have_refused(broker: Broker, refused: str) -> None:
    other = refused.replace("127.0.0.1", "localhost")
    connection = connection_to(broker, refused, other)
    with pytest.raises(REFUSED) as caught:
        connection.ensure_connection(reraise_as_library_errors=False)  # without a limit, it would try for ever
    text = str(caught.value)
    assert "127.0.0.1" in text
    assert "localhost" in text
    assert SECRET not in text


def test_hosts_that_differ_in_their_passwords_are_told_apart(broker: Broker, refused: str) -> None:
    other = refused.replace(SECRET, "0ther")
    if other == refused:
        pytest.skip("has no password")
    connection = connection_to(broker, refused, other)
    with pytest.raises(REFUSED):
        connection.ensure_connection(reraise_as_library_errors=False)


def test_a_host_beside_its_alternates_is_one_more(broker: Broker, refused: str) -> None:
    other = refused.replace("127.0.0.1", "localhost")
    connection = Connection(refused, alternates=[broker.url, other], transport_options=broker.transport_options)
    broker._connections.append(connection)
    connection.ensure_connection(max_retries=3, interval_start=0)
    assert connection.connected


def test_a_host_that_is_down_may_come_back(broker: Broker, refused: str) -> None:
    scheme = broker.url.partition("://")[0]
    connection = connection_to(broker, refused, f"{scheme}://127.0.0.1:{free_port()}")
    errors: list[Exception] = []
    with pytest.raises(exceptions.OperationalError) as caught:
        connection.ensure_connection(lambda error, interval: errors.append(error), max_retries=3, interval_start=0)
    assert isinstance(caught.value.__cause__, connection.recoverable_connection_errors)
    assert [isinstance(error, REFUSED) for error in errors] == [True, False, True]


def test_a_waiting_consumer_moves_on(broker: Broker, refused: str) -> None:
    connection = connection_to(broker, broker.url, refused, broker.url)
    bodies = []
    queue = Queue(broker.name("moves"))
    with Consumer(connection, [queue], callbacks=[lambda body, message: bodies.append(body)], no_ack=True):
        connection.abandon(connection.transport, "lost")
        Producer(broker.connect()).publish("x", routing_key=queue.name)
        for _ in range(3):
            try:
                connection.drain_events(timeout=20)
            except REFUSED:
                continue
            break
    assert bodies == ["x"]


# --- on an event loop


async def first_queue(urls: list[str], name: str) -> str:
    async with aio.connect(urls) as connection:
        await connection.declare(Queue(name, auto_delete=True))
        return connection.as_uri()


def test_the_next_host_is_asked_on_an_event_loop(broker: Broker, refused: str) -> None:
    uri = asyncio.run(first_queue([refused, broker.url], broker.name("next")))
    assert uri == Connection(broker.url).as_uri()


def test_all_have_refused_on_an_event_loop(broker: Broker, refused: str) -> None:
    other = refused.replace("127.0.0.1", "localhost")
    with pytest.raises(REFUSED) as caught:
        asyncio.run(first_queue([refused, other], broker.name("none")))
    text = str(caught.value)
    assert "127.0.0.1" in text
    assert "localhost" in text
    assert SECRET not in text
