"""What type checkers infer from programs on the public API. Never run: ``make lint`` has mypy and pyright read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import assert_type

from kombulite import (
    Connection,
    Consumer,
    Exchange,
    Message,
    Producer,
    Queue,
    Quorum,
    Stream,
    aio,
    binding,
    connections,
    producers,
)
from kombulite.brokers.base import QueueInfo, QueueStatus
from kombulite.connection import Channel, Counters
from kombulite.contrib.stream_offsets import OffsetFile
from kombulite.mixins import ConsumerMixin
from kombulite.resource import Resource
from kombulite.simple import SimpleBuffer, SimpleQueue
from kombulite.utils.encoding import bytes_to_str, str_to_bytes


def connecting() -> None:
    connection = Connection("amqp://", connect_timeout=2.5, failover_strategy="shuffle")
    with connection as opened:
        assert_type(opened, Connection)
    assert_type(connection.clone(), Connection)
    assert_type(connection.as_uri(), str)
    assert_type(connection.connected, bool)
    assert_type(connection.ensure_connection(max_retries=3), Connection)
    assert_type(connection.counters, Counters)
    assert_type(connection.counters.published, int)
    assert_type(connection.connection_errors, tuple[type[BaseException], ...])
    assert_type(connection.get_heartbeat_interval(), float)

    def ping(host: str) -> int:
        return len(host)

    assert_type(connection.ensure(connection, ping, max_retries=1)("a"), int)


def declaring(connection: Connection) -> None:
    exchange = Exchange("orders", type="topic", durable=True)
    assert_type(exchange.binding("a.#"), binding)
    queue = Queue("invoices", exchange, routing_key="order.*", max_priority=9, kind=Quorum(delivery_limit=3))
    assert_type(queue(connection), Queue)
    assert_type(queue.bind(connection).declare(), str)
    assert_type(queue.purge(), int)
    assert_type(queue(connection).get(), Message | None)
    assert_type(connection.default_channel, Channel)
    assert_type(connection.channel(), Channel)
    assert_type(queue.message_ttl, float | None)
    assert_type(Queue("log", kind=Stream(offset="first")).durable, bool)


def publishing(connection: Connection) -> None:
    producer = connection.Producer(exchange="orders", serializer="json", auto_declare=False)
    assert_type(producer, Producer)
    assert_type(producer.publish_many([{"n": 1}], routing_key="a"), int)
    with producer.batch(max_size=100) as batch:
        assert_type(batch.flush(), None)
    assert_type(producer.maybe_declare(Queue("a")), bool)


def consuming(connection: Connection) -> None:
    def handle(body: Any, message: Message) -> None:
        assert_type(message.delivery_count, int)
        assert_type(message.stream_offset, int | None)
        assert_type(message.headers, dict[str, Any])
        assert_type(message.ack(), None)

    consumer = connection.Consumer(
        [Queue("a")], callbacks=[handle], prefetch_count=10, accept=["json"], offsets=OffsetFile("offsets.json")
    )
    assert_type(consumer, Consumer)
    assert_type(consumer.queues, list[Queue])
    assert_type(consumer.stream_offsets, dict[str, int])
    with consumer as started:
        assert_type(started, Consumer)


def simple(connection: Connection) -> None:
    assert_type(connection.SimpleQueue("jobs"), SimpleQueue)
    assert_type(connection.SimpleBuffer("jobs"), SimpleBuffer)
    assert_type(connection.SimpleQueue("jobs").get(timeout=1), Message)
    assert_type(connection.SimpleQueue("jobs").qsize(), int)


def pooled(connection: Connection) -> None:
    with connections[connection].acquire(block=True) as acquired:
        assert_type(acquired, Connection)
    with producers[connection].acquire(block=True, timeout=1) as producer:
        assert_type(producer, Producer)
    assert_type(connection.Pool(limit=2).acquire(), Connection)
    assert_type(Numbers(limit=2).acquire(), int)


class Numbers(Resource[int]):
    """A pool of what the program makes."""

    def new(self) -> int:
        return 1


class Untyped(Resource[Any]):
    """One of what has no type of its own."""


def encoded(text: str, data: bytes, either: str | int) -> None:
    assert_type(str_to_bytes(text), bytes)
    assert_type(bytes_to_str(data), str)
    assert_type(str_to_bytes(either), bytes | int)


def bound(connection: Connection, queue: Queue) -> None:
    assert_type(queue(connection), Queue)
    assert_type(queue(connection.channel()), Queue)
    assert_type(queue.maybe_bind(None), Queue)


class Worker(ConsumerMixin):
    def get_consumers(self, Consumer: Callable[..., Consumer], channel: Any) -> Sequence[Consumer]:
        return [Consumer(Queue("a"))]


async def asynchronous() -> None:
    async with aio.connect("redis://", connect_timeout=2) as connection:
        assert_type(connection, aio.Connection)
        assert_type(await connection.declare(Queue("a")), str)
        assert_type(await connection.status("a"), QueueInfo)
        assert_type(await connection.list_queues(), Sequence[QueueStatus])
        producer = connection.producer("orders")
        assert_type(producer, aio.Producer)
        assert_type(await producer.publish({"n": 1}, "a", headers={"h": 1}, expiration=5), None)
        assert_type(await producer.publish({"n": 1}, "a", eta=0.0), None)
        assert_type(await producer.publish_many(({"n": n} for n in range(9)), "a"), int)
        async with connection.consume("a", prefetch=100) as messages:
            assert_type(messages, aio.Messages)
            async for message in messages:
                assert_type(message, aio.Message)
                async with message.process(on_error="reject") as held:
                    assert_type(held, aio.Message)
            async for batch in messages.batches(10, within=0.5):
                assert_type(batch, aio.MessageBatch)
                assert_type(await batch.ack(), None)
            assert_type(await messages.next(timeout=1), aio.Message | None)
        assert_type(await connection.get("a"), aio.Message | None)
        assert_type(await connection.call({"n": 1}, "rpc", timeout=5), aio.Message)


async def refused(connection: Connection, loop_connection: aio.Connection) -> None:
    """Mistakes that type checkers find: an ``ignore`` that is not needed is an error too."""
    Connection("amqp://", connect_timeout="2")  # type: ignore[arg-type]
    connection.Producer(serialiser="json")  # type: ignore[call-arg]
    connection.Consumer(prefetch_count="10")  # type: ignore[arg-type]
    Queue("a").bind("amqp://")  # type: ignore[arg-type]
    Queue("a")(7)  # type: ignore[arg-type]
    connection.Consumer("a")  # type: ignore[arg-type]
    connection.Producer("orders")  # type: ignore[arg-type]
    Queue("a", kind=Quorum(delivery_limit="3"))  # type: ignore[arg-type]
    connection.Producer().publish({}, priority="high")  # type: ignore[arg-type]
    await loop_connection.producer().publish({}, expires=5)  # type: ignore[call-arg]
    loop_connection.consume("a", prefetch=None)  # type: ignore[arg-type]
