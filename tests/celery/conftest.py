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
    "amqp-rpc": "rpc://",
}


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('broker')}/messages.db"


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
        backend = BROKERS[kind].format(url[url.find(":") :])
        folder: Path = tmp_path_factory.mktemp("fleet")
        fleets.append(Fleet(folder, url, notes if backend == "redis_url" else backend, notes, queues))
        if kind == "cluster-tagged":
            fleets[-1].environment["SHOP_OPTIONS"] = json.dumps({"hash_tag": "{shop}"})
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
