"""The contract suite: the same cases on every transport. A transport joins by a line in BROKERS.

What a broker cannot do at all stands in its ``lacks``; a case that needs it says so: ``@pytest.mark.needs("headers")``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kombulite import Connection, Consumer, Queue
from kombulite.message import Message


class Kind(NamedTuple):
    """A transport under test: its URL, or the fixture of it; what its broker cannot do; how it is connected to.

    ``transport_options`` may be the name of a fixture too.
    """

    url: str
    lacks: frozenset[str] = frozenset()
    transport_options: Mapping[str, Any] | str = {}
    transport: str | None = None
    like: str | None = None  # the kind of broker that it is, where that is not its name


#: What a transport over a store leaves out.
VIRTUAL = frozenset(
    [
        "headers",
        "exchange bindings",
        "alternates",
        "priorities",
        "expiration",
        "lengths",
        "dead letters",
        "queue expiry",
    ]
)

#: kombu's keys in Redis hold messages and bindings, and no more.
REDIS_LACKS = (VIRTUAL - {"expiration", "queue expiry"}) | {
    "auto-delete",
    "exclusive queues",
    "expiry in place",
    "places in the queue",
    "queue registry",
    "stored fanout",
}

#: Messages stay in the process as they are: nothing writes their headers.
MEMORY_LACKS = frozenset(["written headers"])

#: Asynchronous transports receive in a loop of their own, not in the thread that drains.
EAGER = frozenset(["a thread of its own"])
BLOCKING = "tests.contract.blocking"

BROKERS = {
    "memory": Kind("memory://", MEMORY_LACKS),
    "redis": Kind("redis_url", REDIS_LACKS),
    "filesystem": Kind("filesystem://", VIRTUAL, "folders"),
    "example": Kind("localhost", VIRTUAL, "database", "docs.examples.sqlite_transport:Transport"),
    "sqlite": Kind("sqlite_url"),
    "postgresql": Kind("postgresql_url"),
    "amqp": Kind("amqp_url", frozenset(["nacks", "flow", "channel prefetch"])),
    "amqp-aio": Kind(
        "amqp_url",
        frozenset(["nacks", "flow", "channel prefetch"]) | EAGER,
        transport=f"{BLOCKING}:AMQPTransport",
        like="amqp",
    ),
    "memory-aio": Kind("localhost", MEMORY_LACKS | EAGER, transport=f"{BLOCKING}:MemoryTransport", like="memory"),
    "memory-thread": Kind(
        "localhost", MEMORY_LACKS | EAGER, transport=f"{BLOCKING}:ThreadedMemoryTransport", like="memory"
    ),
    "rediscluster": Kind("cluster_url", REDIS_LACKS),
    "rediscluster-tagged": Kind("cluster_url", REDIS_LACKS, {"hash_tag": "{shop}"}, like="rediscluster"),
    "redis-aio": Kind("redis_url", REDIS_LACKS | EAGER, transport=f"{BLOCKING}:RedisTransport", like="redis"),
    "redis-thread": Kind(
        "redis_url", REDIS_LACKS | EAGER, transport=f"{BLOCKING}:ThreadedRedisTransport", like="redis"
    ),
    "sqlite-thread": Kind("sqlite_url", EAGER, transport=f"{BLOCKING}:SQLiteTransport", like="sqlite"),
    "postgresql-thread": Kind("postgresql_url", EAGER, transport=f"{BLOCKING}:PostgreSQLTransport", like="postgresql"),
    "amqp-confirms": Kind("amqp_url", frozenset(["flow", "channel prefetch"]), {"confirm_publish": True}),
}


class Broker:
    """A broker under test: connections to it, and names that nobody else uses."""

    def __init__(self, name: str, url: str, transport_options: Mapping[str, Any], transport: str | None = None) -> None:
        self.kind = name
        self.transport = transport
        self.url = url
        self.transport_options = transport_options
        self._connections: list[Connection] = []
        self._suffix = uuid.uuid4().hex[:12]

    def connect(self, **options: Any) -> Connection:
        options["transport_options"] = {**self.transport_options, **options.get("transport_options", {})}
        if self.transport is not None:
            options["transport"] = self.transport
        # RabbitMQ that ends the 2,047 channels of another connection on a busy machine took over 5 seconds to answer.
        connection = Connection(self.url, **{"connect_timeout": 20, **options})
        self._connections.append(connection)
        return connection

    def name(self, base: str) -> str:
        return f"{base}.{self._suffix}"

    def close(self) -> None:
        for connection in self._connections:
            connection.release()


#: Transports that a thread runs for a loop, beside memory's, take long: they are soaked. So are clusters: what is in
#: one slot is as in a single server, and tests/redis/test_cluster.py has what is not.
SOAKED = ("redis-thread", "sqlite-thread", "postgresql-thread", "rediscluster", "rediscluster-tagged")


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.soak] if kind in SOAKED else []) for kind in BROKERS])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    kind = BROKERS[request.param]
    for mark in request.node.iter_markers("needs"):
        if missing := kind.lacks.intersection(mark.args):
            pytest.skip(f"{request.param} has no {', '.join(sorted(missing))}")
    url = kind.url if "://" in kind.url or kind.url == "localhost" else request.getfixturevalue(kind.url)
    options = kind.transport_options
    options = request.getfixturevalue(options) if isinstance(options, str) else options
    broker = Broker(kind.like or request.param, url, options, kind.transport)
    yield broker
    broker.close()


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Any]:
    """The options of a filesystem transport that talks to itself."""
    data = tmp_path / "data"
    data.mkdir()
    return {
        "data_folder_in": str(data),
        "data_folder_out": str(data),
        "control_folder": str(tmp_path / "control"),
        "fsync": False,
    }


@pytest.fixture
def database(tmp_path: Path) -> dict[str, Any]:
    """The options of the transport that docs/writing-a-transport.md walks through."""
    return {"database": str(tmp_path / "messages.db")}


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/messages.db"


@pytest.fixture
def connection(broker: Broker) -> Connection:
    return broker.connect()


@pytest.fixture
def channel(connection: Connection) -> Any:
    return connection.channel()


@pytest.fixture
def queue(broker: Broker, channel: Any) -> Queue:
    """A queue, declared and bound to the default exchange only."""
    queue = Queue(broker.name("queue"))(channel)
    queue.declare()
    return queue


def drain(connection: Connection, wanted: Callable[[], bool], timeout: float = 20) -> None:
    """Drain events until something holds."""
    while not wanted():
        connection.drain_events(timeout=timeout)


def soon(look: Callable[[], Any], wanted: Callable[[Any], object] = bool, timeout: float = 20) -> Any:
    """What ``look()`` gives as soon as it is what is wanted: some brokers do things a little later."""
    deadline = time.monotonic() + timeout
    while not wanted(found := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def arrive(queue: Queue) -> None:
    """Wait until what was published on a queue's channel is in the queue: a time to live begins then."""
    queue.queue_declare(passive=True)


def take(queue: Queue, count: int, **options: Any) -> list[Message]:
    """Get messages from a queue, within the time that brokers need to put them there."""
    messages = [soon(lambda: queue.get(**options)) for _ in range(count)]
    assert None not in messages
    return messages


class Inbox:
    """A consumer that keeps what it gets."""

    def __init__(self, channel: Any, queues: Any, ack: bool = True, **options: Any) -> None:
        self.messages: list[Message] = []
        self.bodies: list[Any] = []
        self._ack = ack
        self.consumer = Consumer(channel, queues, callbacks=[self._receive], **options)
        self.consumer.consume()

    def _receive(self, body: Any, message: Message) -> None:
        self.bodies.append(body)
        self.messages.append(message)
        if self._ack:
            message.ack()

    def wait(self, connection: Connection, count: int, timeout: float = 20) -> list[Any]:
        drain(connection, lambda: len(self.bodies) >= count, timeout)
        return self.bodies
