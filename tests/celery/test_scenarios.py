"""A worker and a producer of Celery, both on the same library: what Celery promises, on each broker and pool.

With the broker in memory the two are threads of one process.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.celery.fleet import LIBRARIES, Client, Fleet

SCENARIOS = [
    node.name
    for node in ast.parse(Path(__file__).with_name("scenarios.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
]

#: Remote control and events are broadcast.
NEEDS_FANOUT = {"broadcast", "events", "nothing_mixes", "remote_control", "revoke", "routes", "terminate"}
#: What Celery cannot do there, and what genuine kombu cannot.
LACKS = {
    "memory-kombu": {"topic_exchange"},  # `#` stands for no word too, but not there
    "redis-kombu": {"topic_exchange", "broadcast"},  # neither `#` for no word, nor fanout with a key
    # Without a descriptor to wait on, Celery's children share billiard's locks: one that is killed may keep one.
    "postgresql-kombulite": {"terminate", "time_limits", "worker_lost"},
    "sqlite-kombulite": {"terminate", "time_limits", "worker_lost"},
    "sqla": {*NEEDS_FANOUT, "topic_exchange", "time_limits", "worker_lost"},
    "sqs": {*NEEDS_FANOUT, "topic_exchange", "worker_lost"},  # the last: no word of a redelivery
    "rpc": {"results_are_forgotten", "terminate"},  # a state can be seen once only
    "solo": {"terminate", "time_limits", "worker_lost"},
    "threads": {"terminate", "time_limits", "worker_lost"},
    "gevent": {"terminate", "time_limits", "worker_lost"},
    "eventlet": {"terminate", "time_limits", "worker_lost"},
}
#: Those of `make test`; the others are soaked.
SHORT = {
    ("memory", "solo", "kombulite"),
    ("redis", "prefork", "kombulite"),
    ("amqp", "prefork", "kombulite"),
    ("postgresql", "solo", "kombulite"),
}

FLEETS = [
    pytest.param(
        (broker, pool, library),
        id=f"{broker}-{pool}-{library}",
        marks=() if (broker, pool, library) in SHORT else pytest.mark.soak,
    )
    for broker in (
        "memory",
        "redis",
        "redis-rpc",
        "cluster",
        "cluster-tagged",
        "amqp",
        "amqp-rpc",
        "sqlite",
        "postgresql",
        "sqla",
        "sqs",
    )
    for pool in ("prefork", "solo", "threads", "gevent", "eventlet")
    for library in LIBRARIES
    if not (broker == "memory" and pool not in ("solo", "threads"))  # where all is in one process
    if not (broker.startswith("cluster") and (library == "kombu" or pool not in ("prefork", "solo")))
    if not (broker in ("sqla", "sqs") and pool not in ("prefork", "solo"))
    if not (broker in ("sqlite", "postgresql") and (library == "kombu" or pool in ("gevent", "eventlet")))
]


@pytest.fixture(scope="module", params=FLEETS)
def client(request: pytest.FixtureRequest, make_fleet: Callable[..., Fleet]) -> Iterator[tuple[Any, Client, Fleet]]:
    broker, pool, library = request.param
    if pool in ("gevent", "eventlet"):
        pytest.importorskip(pool)
    fleet = make_fleet(broker)
    if broker != "memory":
        fleet.worker(library, pool, "-E")
    yield request.param, fleet.client(library, pool=pool), fleet
    fleet.close()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(client, scenario):
    (broker, pool, library), producer, fleet = client
    server, _, backend = broker.partition("-")
    if any(scenario in LACKS.get(kind, ()) for kind in (server, backend, pool, f"{server}-{library}")):
        pytest.skip("not with Celery")
    trouble = producer.run(scenario)
    assert trouble is None, f"{trouble}\n{fleet.logs()}"
