"""What the tests of the AMQP transport share: connections to the session's RabbitMQ, names, and a scripted peer."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from kombulite import Connection, Queue
from tests.amqp.peer import Peer
from tests.servers import RabbitMQServer, Unavailable

JOIN_TIMEOUT = 60.0  # seconds until a thread counts as hanging


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def name() -> Callable[[str], str]:
    """Names that no other test uses."""
    suffix = uuid.uuid4().hex[:12]
    return lambda base: f"{base}.{suffix}"


@pytest.fixture
def connect(amqp_url: str) -> Iterator[Callable[..., Connection]]:
    """Makes connections to the session's broker, which are closed after the test."""
    made: list[Connection] = []

    def connect(url: str = amqp_url, **options: Any) -> Connection:
        made.append(Connection(url, **options))
        return made[-1]

    yield connect
    for connection in made:
        connection.release()


@pytest.fixture
def connection(connect: Callable[..., Connection]) -> Connection:
    return connect()


@pytest.fixture
def broker_version(connection: Connection) -> tuple[int, ...]:
    """The version of the session's RabbitMQ, such as (4, 3, 6)."""
    return tuple(int(part) for part in connection.connect().server_properties["version"].split("."))


@pytest.fixture
def confirming(connect: Callable[..., Connection]) -> Connection:
    """A connection with publisher confirms."""
    return connect(transport_options={"confirm_publish": True})


@pytest.fixture
def channel(connection: Connection) -> Any:
    return connection.channel()


@pytest.fixture
def queue(name: Callable[[str], str], channel: Any) -> Iterator[Queue]:
    """A queue, declared and bound to the default exchange only."""
    queue = Queue(name("queue"))(channel)
    queue.declare()
    yield queue
    with suppress(Exception):
        queue.delete()


@pytest.fixture(scope="module")
def own_broker(request: pytest.FixtureRequest) -> Iterator[RabbitMQServer]:
    """A RabbitMQ of the module's own, which it may block, pause and restart."""
    try:
        server = RabbitMQServer()
    except Unavailable:
        request.getfixturevalue("amqp_url")  # skips, and says so
        raise
    try:
        server.start()
        yield server
    finally:
        server.close()


def in_threads(*functions: Callable[[], Any], timeout: float = JOIN_TIMEOUT) -> None:
    """Run functions in threads; the first error in any of them is raised here, and one that hangs is an error."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
