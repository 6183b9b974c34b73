"""A proxy before the session's brokers, and connections through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from kombulite import Connection
from tests.proxy import Proxy


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
