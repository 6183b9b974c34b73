"""Clients on an event loop, each as its users would write it: kombulite.aio, FastStream, redis.asyncio.

They publish one message after the other, and await each; aio-pika is with the other clients of RabbitMQ.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from itertools import repeat
from typing import Any

from bench.lab.task import EXCHANGE, KEY, Task

Work = Callable[[], Coroutine[Any, Any, None]]


@contextmanager
def on_a_loop(task: Task) -> Iterator[Callable[[], None]]:
    """The client that a task names, ready for its work, with a loop of its own."""
    loop = asyncio.new_event_loop()
    opened = CLIENTS[task.client](task)
    work = loop.run_until_complete(opened.__aenter__())
    yield lambda: loop.run_until_complete(work())
    loop.run_until_complete(opened.__aexit__(None, None, None))
    loop.close()


@asynccontextmanager
async def ours(task: Task) -> AsyncIterator[Work]:
    import kombulite
    from kombulite import aio

    exchange = kombulite.Exchange(EXCHANGE, task.kind, delivery_mode="transient")
    async with aio.connect(task.url) as connection:
        producer = connection.producer(exchange, KEY, confirm=bool(task.connection))

        async def publish() -> None:
            for _ in repeat(None, task.messages):
                await producer.publish(task.body)

        async def publish_in_batches() -> None:
            for _ in range(0, task.messages, task.batch):
                await producer.publish_many(repeat(task.body, task.batch))

        async def consume() -> None:
            left = task.messages
            async with connection.consume(task.names[0], prefetch=task.prefetch, auto_declare=False) as messages:
                async for message in messages:
                    assert message.payload == task.body
                    await message.ack()
                    left -= 1
                    if not left:
                        return

        yield consume if task.work == "consume" else publish_in_batches if task.batch else publish


@asynccontextmanager
async def faststream(task: Task) -> AsyncIterator[Work]:
    """FastStream. On Redis it consumes a list, and what is taken from it is gone; there is no ack."""
    done, left = asyncio.Event(), task.messages
    if task.transport == "amqp":
        from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitQueue

        channel = Channel(prefetch_count=task.prefetch, publisher_confirms=bool(task.connection))
        broker: Any = RabbitBroker(task.url, default_channel=channel, logger=None)
        subscriber = broker.subscriber(RabbitQueue(task.names[0], declare=False), no_reply=True)
        where: dict[str, Any] = {"exchange": RabbitExchange(EXCHANGE, declare=False), "routing_key": KEY}
    else:
        from faststream.redis import RedisBroker

        broker = RedisBroker(task.url, logger=None)
        subscriber = broker.subscriber(list=task.names[0], no_reply=True)
        where = {"list": task.names[0]}

    async def handle(message: dict[str, Any]) -> None:
        nonlocal left
        assert message == task.body
        left -= 1
        if not left:
            done.set()

    async def publish() -> None:
        for _ in repeat(None, task.messages):
            await broker.publish(task.body, **where)

    async def publish_in_batches() -> None:
        for _ in range(0, task.messages, task.batch):
            await broker.publish_batch(*repeat(task.body, task.batch), **where)

    async def consume() -> None:
        subscriber(handle)
        await broker.start()
        await done.wait()

    await broker.connect()
    yield consume if task.work == "consume" else publish_in_batches if task.batch else publish
    await broker.stop()


@asynccontextmanager
async def redis_asyncio(task: Task) -> AsyncIterator[Work]:
    """redis.asyncio. What is taken waits in another list, and is struck there as an ack."""
    import redis.asyncio

    name = task.names[0]
    async with redis.asyncio.Redis.from_url(task.url) as client:

        async def publish() -> None:
            for _ in repeat(None, task.messages):
                await client.lpush(name, json.dumps(task.body))

        async def publish_in_batches() -> None:
            for _ in range(0, task.messages, task.batch):
                pipeline = client.pipeline(transaction=False)
                for _ in repeat(None, task.batch):
                    pipeline.lpush(name, json.dumps(task.body))
                await pipeline.execute()

        async def consume() -> None:
            for _ in repeat(None, task.messages):
                body = await client.blmove(name, f"{name}.busy", 1, "RIGHT", "LEFT")
                assert json.loads(body) == task.body
                await client.lrem(f"{name}.busy", 1, body)

        await client.ping()
        yield consume if task.work == "consume" else publish_in_batches if task.batch else publish


CLIENTS: dict[str, Callable[[Task], AbstractAsyncContextManager[Work]]] = {
    "kombulite.aio": ours,
    "FastStream": faststream,
    "redis.asyncio": redis_asyncio,
}
