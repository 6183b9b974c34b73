"""A pytest plugin: memory brokers, recorded messages, a clock that can be moved, private Redis and RabbitMQ servers.

Installing kombulite installs it (entry point ``pytest11``). It is beside the package because pytest imports it in every
run, also of projects with a single test that needs it: `kombulite` is imported by the first fixture that is used.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from kombulite import Connection
    from kombulite.contrib.recording import PublishedMessage
    from kombulite.contrib.servers import RabbitMQServer, RedisServer, Server

    S = TypeVar("S", bound=Server)

__all__ = [
    "Clock",
    "kombulite_clock",
    "kombulite_connection",
    "kombulite_published",
    "kombulite_rabbitmq",
    "kombulite_redis",
    "kombulite_url",
]

_MISSING = pytest.StashKey[set[str]]()


class Clock:
    """The time of the memory brokers."""

    def advance(self, seconds: float) -> None:
        """Let time pass without waiting: messages and queues that expire within that time are expired.

        Args:
            seconds: Seconds that the clock moves by, at least 0.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        from kombulite.brokers.memory import broker

        broker.advance(seconds)


@pytest.fixture
def kombulite_url() -> Iterator[str]:
    """Return the URL of a memory broker that only this test has."""
    from kombulite.brokers.memory import broker

    virtual_host = f"test-{uuid.uuid4().hex}"
    yield f"memory://localhost/{virtual_host}"
    broker.drop_broker(virtual_host)


@pytest.fixture
def kombulite_connection(kombulite_url: str) -> Iterator[Connection]:
    """Return a connection to the memory broker of this test; it is released at the end."""
    from kombulite import Connection

    with Connection(kombulite_url) as connection:
        yield connection


@pytest.fixture
def kombulite_clock() -> Clock:
    """Return the clock of the memory brokers: ``kombulite_clock.advance(3600)``."""
    return Clock()


@pytest.fixture
def kombulite_published() -> Iterator[list[PublishedMessage]]:
    """Return the messages that the test publishes on any connection, in order, without those that a broker refused."""
    from kombulite.connection import add_hook, remove_hook
    from kombulite.contrib.recording import RecordingHook

    hook = RecordingHook()
    add_hook(hook)
    yield hook.published
    remove_hook(hook)


@pytest.fixture(scope="session")
def kombulite_redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Return a Redis of this test run, started at its first use: ``Connection(kombulite_redis.url)``.

    Tests may pause, stop and restart it, and have to bring it back. Tests that need it are skipped if ``redis-server``
    is not installed, and the summary says so.
    """
    from kombulite.contrib.servers import RedisServer

    yield from _started(request, RedisServer)


@pytest.fixture(scope="session")
def kombulite_rabbitmq(request: pytest.FixtureRequest) -> Iterator[RabbitMQServer]:
    """Return a RabbitMQ of this test run, started at its first use: ``Connection(kombulite_rabbitmq.url)``.

    Tests may pause, stop and restart it, and have to bring it back. Tests that need it are skipped if
    ``rabbitmq-server`` is not installed, and the summary says so.
    """
    from kombulite.contrib.servers import RabbitMQServer

    yield from _started(request, RabbitMQServer)


def _started(request: pytest.FixtureRequest, make: Callable[[], S]) -> Iterator[S]:
    from kombulite.contrib.servers import Unavailable

    try:
        server = make()
    except Unavailable as error:
        request.config.stash.setdefault(_MISSING, set()).add(str(error))
        pytest.skip(str(error))
    try:
        server.start()
        yield server
    finally:
        server.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which programs were missing."""
    for reason in sorted(config.stash.get(_MISSING, ())):
        terminalreporter.write_line(f"kombulite: skipped the tests that need a server: {reason}", red=True, bold=True)
