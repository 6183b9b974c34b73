"""CPU time of transports written for kombu: under kombu, and through kombulite's adapter, in turns in one run.

``python -m bench.adapted [mock] [sqlalchemy] [sqs] [kafka]`` prints the microseconds of CPU that a message takes under
both.
"""

from __future__ import annotations

import atexit
import importlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from kombulite.contrib.servers import START_TIMEOUT, free_port, wait_until

LIBRARIES = ("kombu", "kombulite")
ROUNDS = 5


def mock(library: Any) -> Callable[[int], None]:
    """Return what publishes over a transport of a few lines, which does nothing."""
    base = importlib.import_module(f"{library.__name__}.transport.base")

    class Channel(base.StdChannel):  # type: ignore[name-defined, misc]
        def __init__(self, connection: Any) -> None:
            self.connection, self.channel_id = connection, 1

        def prepare_message(self, body: Any, *args: Any) -> Any:
            return body

        def basic_publish(self, message: Any, exchange: str, routing_key: str, **kwargs: Any) -> None:
            """Do nothing."""

    class Link:
        connected = True

        def __init__(self, client: Any) -> None:
            self.client = client

    class Transport(base.Transport):  # type: ignore[name-defined, misc]
        def establish_connection(self) -> Any:
            return Link(self.client)

        def create_channel(self, connection: Any) -> Any:
            return Channel(connection)

        def close_connection(self, connection: Any) -> None:
            """Do nothing."""

    producer = library.Connection(transport=Transport).Producer(serializer="json")

    def publish(count: int) -> None:
        for number in range(count):
            producer.publish({"id": number, "name": "order"}, routing_key="orders")

    return publish


def round_trips(library: Any, url: str, **options: Any) -> Callable[[int], None]:
    """Return what publishes messages to one of kombu's transports, and consumes them."""
    connection = library.Connection(url, transport_options=options)
    queue = library.Queue(f"orders-{library.__name__}")
    producer = connection.Producer(serializer="json")
    got: list[Any] = []
    consumer = connection.Consumer([queue], callbacks=[lambda body, message: (got.append(body), message.ack())])
    consumer.consume()

    def publish_and_consume(count: int) -> None:
        for number in range(count):
            producer.publish({"id": number, "name": "order"}, routing_key=queue.name, declare=[queue])
        got.clear()
        while len(got) < count:
            connection.drain_events(timeout=30)

    return publish_and_consume


def sqlalchemy(library: Any) -> Callable[[int], None]:
    """Return what does so on kombu's SQLAlchemy transport, and a file of SQLite."""
    return round_trips(library, f"sqla+sqlite:///{tempfile.mkdtemp(prefix='bench-adapted-')}/db")


@cache
def _moto() -> str:
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    atexit.register(server.kill)
    wait_until(lambda: is_open(port), START_TIMEOUT, "moto does not answer")
    return f"sqs://key:secret@127.0.0.1:{port}/"


def is_open(port: int) -> bool:
    """Return whether a process listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def sqs(library: Any) -> Callable[[int], None]:
    """Return what does so on kombu's SQS transport, and moto's server, a process of its own."""
    options = {"region": "eu-west-1", "is_secure": False, "polling_interval": 0.01, "wait_time_seconds": 0}
    return round_trips(library, _moto(), **options)


@cache
def _mock_cluster() -> Any:
    return importlib.import_module("confluent_kafka").Producer({"bootstrap.servers": "x", "test.mock.num.brokers": 1})


def kafka(library: Any) -> Callable[[int], None]:
    """Return what does so on kombu's Kafka transport, and librdkafka's mock cluster, whose threads are ours."""
    broker = next(iter(_mock_cluster().list_topics(timeout=10).brokers.values()))
    return round_trips(library, f"confluentkafka://{broker.host}:{broker.port}/", wait_time_seconds=1)


CASES: dict[str, tuple[Callable[[Any], Callable[[int], None]], int]] = {
    "mock": (mock, 5000),
    "sqlalchemy": (sqlalchemy, 200),
    "sqs": (sqs, 100),
    "kafka": (kafka, 500),
}


def measure(name: str) -> dict[str, float]:
    """Return the least microseconds of CPU for a message, by library."""
    prepare, count = CASES[name]
    runs = {each: prepare(importlib.import_module(each)) for each in LIBRARIES}
    best = dict.fromkeys(LIBRARIES, float("inf"))
    for run in runs.values():
        run(count // 10)
    for _ in range(ROUNDS):
        for library, run in runs.items():
            before = time.process_time()
            run(count)
            best[library] = min(best[library], (time.process_time() - before) / count * 1e6)
    return best


def main(names: list[str]) -> None:
    """Print the figures."""
    print(f"{'CPU per message, us':24}{'kombu':>10}{'kombulite':>12}{'ratio':>8}")
    for name in names or CASES:
        best = measure(name)
        print(f"{name:24}{best['kombu']:10.1f}{best['kombulite']:12.1f}{best['kombu'] / best['kombulite']:8.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
