"""Brokers that these tests may kill, and a proxy before those that they may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from kombulite import Connection
from tests.conftest import started
from tests.faults.stage import BROKERS
from tests.proxy import Proxy
from tests.servers import RabbitMQServer, RedisServer, Server


@pytest.fixture(scope="package")
def mortal_rabbitmq(request: pytest.FixtureRequest) -> RabbitMQServer:
    return started(request, BROKERS["RabbitMQ"])


@pytest.fixture(scope="package")
def mortal_redis(request: pytest.FixtureRequest) -> RedisServer:
    return started(request, BROKERS["Redis"])


@pytest.fixture
def own_rabbitmq(mortal_rabbitmq: RabbitMQServer) -> Iterator[RabbitMQServer]:
    """One that may be killed and paused."""
    yield mortal_rabbitmq
    revive(mortal_rabbitmq)


@pytest.fixture
def own_redis(mortal_redis: RedisServer) -> Iterator[RedisServer]:
    """One that may be killed and paused; it keeps what it has confirmed."""
    yield mortal_redis
    revive(mortal_redis)


def revive(server: Server) -> None:
    """A test that failed may have left it dead, or paused."""
    server.resume()
    if server.process is None:
        server.start()


@pytest.fixture(params=["amqp_url", "redis_url"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a broker: once for each kind."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    """A proxy before it."""
    with Proxy(urlsplit(url).port or 0) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: Proxy, url: str) -> Iterator[Callable[..., Connection]]:
    """Makes connections through the proxy, with confirms."""
    made = []

    def connect(**options: Any) -> Connection:
        made.append(Connection(proxy.url(url), transport_options={"confirm_publish": "amqp" in url}, **options))
        return made[-1]

    yield connect
    proxy.cut = None
    for connection in made:
        connection.release()
