"""A Redis of our own, and both libraries on it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
import redis

import kombulite
from tests.servers import RedisCluster, version

Connect = Callable[..., Any]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """What the server says when it is asked directly."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield client


@pytest.fixture
def ours(redis_url: str, client: redis.Redis) -> Iterator[Connect]:
    """Makes connections of kombulite."""
    yield from _connections(redis_url, kombulite.Connection)


@pytest.fixture
def theirs(redis_url: str, client: redis.Redis) -> Iterator[Connect]:
    """Makes connections of kombu."""
    yield from _connections(redis_url, kombu.Connection)


def _connections(default_url: str, library: Any) -> Iterator[Connect]:
    opened: list[Any] = []

    def connect(url: str | None = None, **options: Any) -> Any:
        connection = library(url or default_url, transport_options=options.pop("transport_options", options))
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        connection.release()


@pytest.fixture
def cluster(redis_cluster: RedisCluster) -> RedisCluster:
    """A Redis Cluster with nothing in it."""
    for node in redis_cluster.masters:
        node.ask("FLUSHALL")
    return redis_cluster


@pytest.fixture(params=[False, True], ids=["key by key", "at once"])
def at_once(request: pytest.FixtureRequest) -> bool:
    """How a slot moves: one key after the other, as everywhere, or as the servers do it themselves."""
    if request.param:
        request.getfixturevalue("valkey_9")
    return bool(request.param)


@pytest.fixture
def valkey_9() -> None:
    """The servers can in a cluster what only Valkey can, from 9 on: several databases, slots that move at once."""
    if int(version("redis-server").partition(".")[0]) < 9:
        pytest.skip("Valkey 9 can do this in a cluster, these servers cannot")


@pytest.fixture
def name() -> str:
    return f"t{uuid.uuid4().hex[:10]}"


def drain(connection: Any, wanted: Callable[[], Any], timeout: float = 20, step: float = 1) -> None:
    """Drain events until something holds; fails after ``timeout`` seconds."""
    import time

    deadline = time.monotonic() + timeout
    while not wanted():
        assert time.monotonic() < deadline, "it did not happen in time"
        try:
            connection.drain_events(timeout=step)
        except TimeoutError:
            pass
