"""Fleets of Celery on private brokers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.celery.fleet import Fleet

#: broker -> result backend; ``redis_url`` stands for that fixture's, ``{}`` for where a SQL broker is.
BROKERS = {
    "memory": "cache+memory://",
    "redis": "redis_url",
    "redis-rpc": "rpc://",
    "cluster": "redis_url",
    "cluster-tagged": "redis_url",
    "amqp": "redis_url",
    "postgresql": "db+postgresql+psycopg{}",
    "sqlite": "db+sqlite{}",
    "sqla": "db+postgresql+psycopg{}",
    "sqs": "redis_url",
    "amqp-rpc": "rpc://",
}

#: broker -> transport options.
OPTIONS = {
    "cluster-tagged": {"hash_tag": "{shop}"},
    "sqs": {"region": "eu-west-1", "is_secure": False, "polling_interval": 0.05, "wait_time_seconds": 1},
}


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('broker')}/messages.db"


@pytest.fixture(scope="module")
def sqla_url(postgresql_url: str) -> str:
    return postgresql_url.replace("postgresql:", "sqla+postgresql+psycopg:")


@pytest.fixture(scope="module")
def sqs_url(moto: tuple[str, int]) -> str:
    pytest.importorskip("pycurl")  # kombu's workers speak to SQS by it
    host, port = moto
    return f"sqs://key:secret@{host}:{port}/"


@pytest.fixture(scope="module")
def make_fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Fleet]]:
    """Makes fleets by kind: ``make_fleet("amqp")``."""
    fleets: list[Fleet] = []

    def make(kind: str, broker: str | None = None, queues: str = "classic") -> Fleet:
        notes = request.getfixturevalue("redis_url")
        server = kind.partition("-")[0]
        url = broker or ("memory://" if server == "memory" else request.getfixturevalue(f"{server}_url"))
        backend = BROKERS[kind].format(url[url.rfind("://") :])
        folder: Path = tmp_path_factory.mktemp("fleet")
        fleets.append(Fleet(folder, url, notes if backend == "redis_url" else backend, notes, queues))
        if kind in OPTIONS:
            fleets[-1].environment["SHOP_OPTIONS"] = json.dumps(OPTIONS[kind])
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def fleet(request: pytest.FixtureRequest, make_fleet: Callable[..., Fleet]) -> Iterator[Any]:
    """A fleet for one test, on the broker that is its parameter."""
    fleet = make_fleet(request.param)
    yield fleet
    fleet.close()
