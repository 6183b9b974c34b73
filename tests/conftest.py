"""Brokers for the tests: started when the first test asks for them, shared by all that do not stop or pause them."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import kombulite.serialization
from tests.servers import PostgreSQLServer, RabbitMQServer, RedisCluster, RedisServer, Server, Unavailable, free_port

MISSING = pytest.StashKey[set[str]]()

# Folders in the order of how long a file of theirs takes, and long files of the others: what begins last would keep one
# process busy, and the others idle.
_LONGEST_FIRST = {
    name: rank
    for rank, name in enumerate(
        ("unit/test_site.py", "faults", "celery", "cluster", "amqp", "redis", "sql", "contract", "aio",
         "unit/test_docs.py", "unit/test_web.py", "bench", "transports")
    )
}  # fmt: skip

# How long making an example takes says nothing of the code: under sanitizers, on a machine with other work, it is long.
settings.register_profile("patient", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MISSING] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _rank(item.path))


def _rank(path: Path) -> int:
    names = f"{path.parent.name}/{path.name}", path.parent.name
    return min(_LONGEST_FIRST.get(name, len(_LONGEST_FIRST)) for name in names)


def pytest_collection_finish() -> None:
    # If a test collects garbage, Python would look through all that the test modules have imported: half a second
    # each time with all files collected, and that stays to the end anyway.
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for reason in sorted(config.stash[MISSING]):
        terminalreporter.write_line(f"!!! SKIPPED all tests that need it: {reason}", red=True, bold=True)


def missing(request: pytest.FixtureRequest, reason: str, *, by_hand: bool = False) -> None:
    """Skip for want of a program, and say so at the end; where all have to be there it is a failure.

    ``by_hand``: no set-up of the tests installs it, so it may be missing anywhere.
    """
    request.config.stash[MISSING].add(reason)
    if os.environ.get("CI") == "true" and not by_hand:
        pytest.fail(reason)
    pytest.skip(reason)


def _tables(library: str) -> list[Any]:
    """What a process's programs may change in a library: its registries, by the names of both libraries."""
    serialization, compression, json, pools = (
        importlib.import_module(f"{library}.{name}") for name in ("serialization", "compression", "utils.json", "pools")
    )
    registry, private = serialization.registry, "_" * (library == "kombu")
    return [
        registry.type_to_name,
        registry.name_to_type,
        getattr(registry, f"{private}encoders"),
        registry._decoders,
        getattr(registry, "_disabled_content_types" if private else "disabled"),
        *(getattr(compression, name) for name in ("_aliases", "_encoders", "_decoders")),
        json._encoders,
        json._decoders,
        pools._limit,
        pools._groups,
    ]


@pytest.fixture
def tables_stay() -> Iterator[None]:
    """Put back what a test changes in the registries of both libraries, which other tests see too."""
    tables = [*_tables("kombu"), *_tables("kombulite")]
    kept = [list(table.items()) if isinstance(table, Mapping) else list(table) for table in tables]
    default = kombulite.serialization.registry.default
    yield
    for table, before in zip(tables, kept, strict=True):
        if isinstance(table, Mapping):
            for key in table.keys() - dict(before).keys():
                del table[key]
            table.update(before)
        else:
            table.clear()
            (table.extend if isinstance(table, list) else table.update)(before)
    kombulite.serialization.registry.default = default


def started(request: pytest.FixtureRequest, make: Callable[[], Server | RedisCluster]) -> Any:
    """A broker that ends with the scope of the fixture that asks."""
    try:
        server = make()
    except Unavailable as error:
        missing(request, str(error))
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    request.addfinalizer(server.close)
    return server


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """The URL of a Redis."""
    return os.environ.get("KOMBULITE_TEST_REDIS") or started(request, RedisServer).url


@pytest.fixture
def killed_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a connection that Redis closes count as lost: one that was not used for a second is opened anew instead.

    A busy machine may stop a test for a second between its last command and the end that it makes.
    """
    monkeypatch.setattr("kombulite.brokers.redis.stream.IDLE", 600)


@pytest.fixture(scope="session")
def redis_cluster(request: pytest.FixtureRequest) -> RedisCluster:
    """A Redis Cluster of three masters."""
    cluster: RedisCluster = started(request, RedisCluster)
    return cluster


@pytest.fixture(scope="session")
def cluster_url(redis_cluster: RedisCluster) -> str:
    """The URL of a Redis Cluster of three masters."""
    return redis_cluster.url


@pytest.fixture(scope="session")
def amqp_url(request: pytest.FixtureRequest) -> str:
    """The URL of a RabbitMQ."""
    return os.environ.get("KOMBULITE_TEST_AMQP") or started(request, RabbitMQServer).url


@pytest.fixture
def start_server(request: pytest.FixtureRequest) -> Callable[[Callable[[], Server]], Server]:
    """Starts a broker for one test alone, which may kill or pause it: ``start_server(RedisServer)``."""
    return lambda make: started(request, make)


@pytest.fixture(scope="session")
def moto() -> Iterator[tuple[str, int]]:
    """The host and port of moto's server, which plays SQS and SNS."""
    server = pytest.importorskip("moto.moto_server.threaded_moto_server")
    moto = server.ThreadedMotoServer(port=free_port(), verbose=False)
    moto.start()
    yield moto.get_host_and_port()
    moto.stop()


@pytest.fixture(scope="session")
def postgresql_url(request: pytest.FixtureRequest) -> str:
    """The URL of a PostgreSQL."""
    url: str = started(request, lambda: PostgreSQLServer(fsync="off")).url
    return url
