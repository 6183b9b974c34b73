"""CPU time of transports written for kombu: under kombu, and through kombulite's adapter, in turns in one run.

``python -m bench.adapted`` prints, for each transport, the microseconds of CPU that a message takes under both.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

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


def sqlalchemy(library: Any) -> Callable[[int], None]:
    """Return what publishes to, and consumes from, kombu's SQLAlchemy transport on a file of SQLite."""
    file = tempfile.mkdtemp(prefix="bench-adapted-")
    connection = library.Connection(f"sqla+sqlite:///{file}/db")
    queue = library.Queue("orders")
    producer = connection.Producer(serializer="json")

    def publish_and_consume(count: int) -> None:
        for number in range(count):
            producer.publish({"id": number, "name": "order"}, routing_key="orders", declare=[queue])
        got: list[Any] = []
        with connection.Consumer([queue], callbacks=[lambda body, message: (got.append(body), message.ack())]):
            while len(got) < count:
                connection.drain_events(timeout=30)

    return publish_and_consume


CASES: dict[str, tuple[Callable[[Any], Callable[[int], None]], int]] = {
    "mock": (mock, 5000),
    "sqlalchemy": (sqlalchemy, 200),
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
