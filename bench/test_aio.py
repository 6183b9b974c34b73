"""kombulite.aio beside what programs on an event loop use: aio-pika, FastStream, redis.asyncio, asyncio.Queue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aio_pika
import pytest
import redis.asyncio
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.redis import RedisBroker

import kombulite
from bench.duel import Side, duel
from bench.workloads import SMALL
from kombulite import aio
from kombulite.utils.json_codec import codec
from tests.servers import RabbitMQServer, RedisServer, Server, Unavailable

TASKS = 500  # that publish at the same time
MESSAGES = 5000
ROUNDS = 11
PREFETCH = 1000


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def url_of(make: Callable[[], Server]) -> Iterator[str]:
    try:
        server = make()
    except Unavailable as error:
        pytest.skip(str(error))
    with server:
        yield server.url


@pytest.fixture(scope="module")
def amqp_url() -> Iterator[str]:
    yield from url_of(RabbitMQServer)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    yield from url_of(RedisServer)


def side(
    loop: asyncio.AbstractEventLoop,
    work: Callable[[int], Awaitable[object]],
    prepare: Callable[[int], Awaitable[object]] | None = None,
) -> Side:
    """A side whose work and preparation are coroutines."""

    def run(n: int) -> None:
        loop.run_until_complete(work(n))  # type: ignore[arg-type]

    def make_ready(n: int) -> None:
        if prepare is not None:
            loop.run_until_complete(prepare(n))  # type: ignore[arg-type]

    return Side(run, make_ready)


async def by_tasks(n: int, publish: Callable[[], Awaitable[object]]) -> None:
    """Publish n messages, from as many tasks as are meant to."""

    async def some(count: int) -> None:
        for _ in range(count):
            await publish()

    await asyncio.gather(*(some(n // TASKS) for _ in range(TASKS)))


async def take(connection: aio.Connection, queue: str, n: int) -> None:
    """Consume, decode and acknowledge n messages."""
    left = n
    async with connection.consume(queue, prefetch=PREFETCH, auto_declare=False) as messages:
        async for message in messages:
            assert message.payload == SMALL
            await message.ack()
            left -= 1
            if not left:
                return


async def through_a_queue(n: int) -> None:
    """Hand n messages over from one task to another as JSON of the standard library."""
    queue: asyncio.Queue[str] = asyncio.Queue(PREFETCH)

    async def produce() -> None:
        for _ in range(n):
            await queue.put(json.dumps(SMALL))

    async def consume() -> None:
        for _ in range(n):
            assert json.loads(await queue.get()) == SMALL

    await asyncio.gather(produce(), consume())


def test_memory_hand_over(benchmark: Any, loop: asyncio.AbstractEventLoop) -> None:
    connection = aio.connect("memory://aio")
    loop.run_until_complete(connection.declare(kombulite.Queue("bench")))
    producer = connection.producer(routing_key="bench")

    async def ours(n: int) -> None:
        async def produce() -> None:
            for _ in range(n):
                await producer.publish(SMALL)

        await asyncio.gather(produce(), take(connection, "bench", n))

    work = "memory, aio hand-over from one task to another"
    sides = side(loop, ours), side(loop, through_a_queue)
    duel(benchmark, work, *sides, operations=MESSAGES, rival="asyncio.Queue", at_least=5)
    loop.run_until_complete(connection.close())


def test_memory_hand_over_of_json_alone(benchmark: Any, loop: asyncio.AbstractEventLoop) -> None:
    """What the hand-over could reach if it took no time."""

    async def ours(n: int) -> None:
        for _ in range(n):
            assert codec.loads(codec.dumps(SMALL)) == SMALL

    work = "memory, aio: the JSON of a hand-over alone"
    sides = side(loop, ours), side(loop, through_a_queue)
    duel(benchmark, work, *sides, operations=MESSAGES, rival="asyncio.Queue")


def test_amqp_publish(benchmark: Any, loop: asyncio.AbstractEventLoop, amqp_url: str) -> None:
    async def start() -> tuple[Any, Any, Any]:
        connection = await aio.connect(amqp_url).connect()
        await connection.declare(kombulite.Queue("bench"))
        rival = await aio_pika.connect(amqp_url)
        channel = await rival.channel()
        return connection, rival, channel.default_exchange

    connection, rival, exchange = loop.run_until_complete(start())
    producer = connection.producer(routing_key="bench")

    async def empty(n: int) -> None:
        await connection.purge("bench")

    async def ours(n: int) -> None:
        await by_tasks(n, lambda: producer.publish(SMALL, delivery_mode=1))

    async def theirs(n: int) -> None:
        await by_tasks(
            n, lambda: exchange.publish(aio_pika.Message(json.dumps(SMALL).encode()), "bench", mandatory=False)
        )

    sides = side(loop, ours, empty), side(loop, theirs, empty)
    work = "RabbitMQ, aio publish with confirms, 500 tasks"
    duel(benchmark, work, *sides, operations=MESSAGES, rounds=ROUNDS, rival="aio-pika", at_least=8)
    loop.run_until_complete(connection.close())
    loop.run_until_complete(rival.close())


def test_amqp_consume(benchmark: Any, loop: asyncio.AbstractEventLoop, amqp_url: str) -> None:
    async def start() -> tuple[Any, Any, Any]:
        connection = await aio.connect(amqp_url).connect()
        await connection.declare(kombulite.Queue("bench"))
        rival = await aio_pika.connect(amqp_url)
        channel = await rival.channel()
        await channel.set_qos(PREFETCH)
        return connection, rival, await channel.get_queue("bench")

    connection, rival, queue = loop.run_until_complete(start())
    producer = connection.producer(routing_key="bench")

    async def fill(n: int) -> None:
        await connection.purge("bench")
        await producer.publish_many((SMALL for _ in range(n)), delivery_mode=1)

    async def theirs(n: int) -> None:
        left = n
        async with queue.iterator() as messages:
            async for message in messages:
                assert json.loads(message.body) == SMALL
                await message.ack()
                left -= 1
                if not left:
                    return

    sides = side(loop, lambda n: take(connection, "bench", n), fill), side(loop, theirs, fill)
    work = "RabbitMQ, aio consume + decode + ack, prefetch 1000"
    duel(benchmark, work, *sides, operations=MESSAGES, rounds=ROUNDS, rival="aio-pika", at_least=10)
    loop.run_until_complete(connection.close())
    loop.run_until_complete(rival.close())


def serve_duel(
    benchmark: Any,
    loop: asyncio.AbstractEventLoop,
    url: str,
    work: str,
    subscriber_of: Callable[[], tuple[Any, Any]],
    publish: Callable[[int], Awaitable[object]] | None = None,
) -> None:
    """Handle messages, each in 1 ms, beside FastStream; ``subscriber_of`` makes its broker, and a subscriber of that.

    Args:
        publish: Fills the queue of FastStream, where it is not ours.
    """
    connection = loop.run_until_complete(aio.connect(url).connect())
    loop.run_until_complete(connection.declare(kombulite.Queue("bench")))
    producer = connection.producer(routing_key="bench")
    made: list[tuple[Any, asyncio.Event]] = []

    async def fill(n: int) -> None:
        await connection.purge("bench")
        await producer.publish_many((SMALL for _ in range(n)), delivery_mode=1)

    async def ours(n: int) -> None:
        stop, left = asyncio.Event(), n

        async def handle(message: aio.Message) -> None:
            nonlocal left
            assert message.payload == SMALL
            await asyncio.sleep(0.001)
            left -= 1
            if not left:
                stop.set()

        await connection.serve("bench", handle, concurrency=PREFETCH, stop=stop, auto_declare=False)

    async def make(n: int) -> None:
        await (fill if publish is None else publish)(n)
        broker, subscriber = subscriber_of()
        done, left = asyncio.Event(), n

        @subscriber
        async def handle(message: dict[str, Any]) -> None:
            nonlocal left
            assert message == SMALL
            await asyncio.sleep(0.001)
            left -= 1
            if not left:
                done.set()

        await broker.connect()
        made.append((broker, done))

    async def theirs(n: int) -> None:
        broker, done = made.pop()
        await broker.start()
        await done.wait()
        await broker.stop()

    sides = side(loop, ours, fill), side(loop, theirs, make)
    duel(benchmark, work, *sides, operations=MESSAGES, rounds=ROUNDS, rival="FastStream", at_least=5)
    loop.run_until_complete(connection.close())


def test_amqp_serve(benchmark: Any, loop: asyncio.AbstractEventLoop, amqp_url: str) -> None:
    def subscriber_of() -> tuple[Any, Any]:
        broker = RabbitBroker(amqp_url, default_channel=Channel(prefetch_count=PREFETCH), logger=None)
        return broker, broker.subscriber(RabbitQueue("bench", declare=False), no_reply=True)

    work = "RabbitMQ, serve with handlers that await 1 ms, concurrency 1000"
    serve_duel(benchmark, loop, amqp_url, work, subscriber_of)


def test_redis_serve(benchmark: Any, loop: asyncio.AbstractEventLoop, redis_url: str) -> None:
    def subscriber_of() -> tuple[Any, Any]:
        broker = RedisBroker(redis_url, logger=None)
        return broker, broker.subscriber(list="rival", no_reply=True, max_workers=PREFETCH)

    async def publish(n: int) -> None:
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            await client.delete("rival")
            await client.rpush("rival", *[json.dumps(SMALL)] * n)

    work = "Redis, serve with handlers that await 1 ms, concurrency 1000"
    serve_duel(benchmark, loop, redis_url, work, subscriber_of, publish)


def test_redis_publish(benchmark: Any, loop: asyncio.AbstractEventLoop, redis_url: str) -> None:
    # Its default pool has 100 connections, and raises where more tasks want one at a time; this one has them wait.
    pool = redis.asyncio.BlockingConnectionPool.from_url(redis_url)
    connection, rival = aio.connect(redis_url), redis.asyncio.Redis.from_pool(pool)
    loop.run_until_complete(connection.declare(kombulite.Queue("bench")))
    producer = connection.producer(routing_key="bench")

    async def empty(n: int) -> None:
        await rival.delete("bench", "rival")

    async def ours(n: int) -> None:
        await by_tasks(n, lambda: producer.publish(SMALL))

    async def theirs(n: int) -> None:
        await by_tasks(n, lambda: rival.lpush("rival", json.dumps(SMALL)))

    sides = side(loop, ours, empty), side(loop, theirs, empty)
    work = "Redis, aio publish, 500 tasks"
    duel(benchmark, work, *sides, operations=MESSAGES, rounds=ROUNDS, rival="redis.asyncio LPUSH", at_least=3)
    loop.run_until_complete(connection.close())
    loop.run_until_complete(rival.aclose())


def test_redis_consume(benchmark: Any, loop: asyncio.AbstractEventLoop, redis_url: str) -> None:
    connection, rival = aio.connect(redis_url), redis.asyncio.Redis.from_url(redis_url)
    loop.run_until_complete(connection.declare(kombulite.Queue("bench")))
    producer = connection.producer(routing_key="bench")

    async def fill(n: int) -> None:
        await connection.purge("bench")
        await rival.delete("rival")
        await producer.publish_many(SMALL for _ in range(n))
        await rival.lpush("rival", *[json.dumps(SMALL)] * n)

    async def theirs(n: int) -> None:
        for _ in range(n):
            body = await rival.blmove("rival", "busy", 1, "RIGHT", "LEFT")
            assert json.loads(body) == SMALL
            await rival.lrem("busy", 1, body)

    sides = side(loop, lambda n: take(connection, "bench", n), fill), side(loop, theirs, fill)
    work = "Redis, aio consume + ack"
    duel(benchmark, work, *sides, operations=MESSAGES, rounds=ROUNDS, rival="redis.asyncio BLMOVE, LREM", at_least=5)
    loop.run_until_complete(connection.close())
    loop.run_until_complete(rival.aclose())
