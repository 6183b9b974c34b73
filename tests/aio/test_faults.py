"""Connections that are lost and come back, and brokers that fall silent, under tasks that publish and consume."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from kombulite import Exchange, Queue, aio, exceptions
from kombulite._client.lifecycle import State
from tests.aio.conftest import Place, run
from tests.proxy import Proxy

#: Messages, and how often both connections are cut meanwhile.
AMOUNTS = [(300, 5), pytest.param(20_000, 60, marks=pytest.mark.soak)]


@pytest.fixture(params=["amqp_url", "redis_url"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with Proxy(urlsplit(url).port or 0) as proxy:
        yield proxy


@pytest.mark.parametrize(("count", "cuts"), AMOUNTS)
@pytest.mark.parametrize("end", ["reset", "finish"])
def test_what_was_published_is_consumed_though_connections_are_cut(proxy, url, end, count, cuts):
    async def main():
        queue = Queue(Place("", "", {}).name("ledger"))
        confirmed, consumed = set(), set()
        everything = asyncio.Event()

        async def publish(producer, numbers):
            for number in numbers:
                policy = {"max_retries": 50, "interval_start": 0.05, "interval_max": 0.2}
                await producer.publish(number, queue.name, retry=True, retry_policy=policy)
                confirmed.add(number)
                await asyncio.sleep(0.001)

        async def handle(message):
            consumed.add(message.payload)
            if len(consumed) == count:
                everything.set()

        async with aio.connect(proxy.url(url)) as sender, aio.connect(proxy.url(url)) as receiver:
            await sender.declare(queue)
            producer = sender.producer()
            tasks = [asyncio.create_task(publish(producer, range(part, count, 5))) for part in range(5)]
            tasks.append(asyncio.create_task(receiver.serve(queue, handle, concurrency=5, stop=everything)))
            for cut in range(cuts):
                goal = (cut + 1) * count // (cuts + 1)
                while len(confirmed) < goal:
                    await asyncio.sleep(0.005)
                await asyncio.to_thread(getattr(proxy, end))
            await asyncio.gather(*tasks)
            assert confirmed == consumed == set(range(count))
            assert sender.counters.reconnects >= 1
            assert receiver.counters.reconnects >= 1
            await sender.delete(queue)

    run(main, timeout=100 if count == 300 else 600)


def test_a_silent_broker_ends_each_wait_by_its_deadline(proxy, url, monkeypatch):
    """Each verb that waits for the broker, all at once; the connection itself has all the time of the world."""
    for module in ("aio._session", "brokers.amqp.aio", "brokers.redis.aio"):
        monkeypatch.setattr(f"kombulite.{module}.CLOSE_TIMEOUT", 0.5)

    async def main():
        place, options = Place("", "", {}), {"read_timeout": 600, "write_timeout": 600}
        if url.startswith("redis"):
            options = {"socket_timeout": 600}
        queue, other, exchange = Queue(place.name("q")), Queue(place.name("other")), Exchange(place.name("e"), "direct")
        connection = await aio.connect(proxy.url(url), transport_options=options).connect()
        for each in (queue, other, exchange):
            await connection.declare(each)
        await connection.bind(queue, exchange, "bound")
        producer = connection.producer()
        await producer.publish_many(range(4), queue.name)
        messages, stopped = connection.consume(queue, prefetch=4), connection.consume(other)
        await messages.__aenter__()
        await stopped.__aenter__()
        received = [await messages.next(20) for _ in range(4)]
        request = aio.Message(b"", properties={"reply_to": other.name}, channel=received[0].channel)

        async def batch():
            async with producer.batch() as batch:
                await batch.publish(1, queue.name)

        await asyncio.to_thread(proxy.silence)
        connection.session.waits.timeout = 0.5
        work = {
            "declare": connection.declare(Queue(place.name("new"))),
            "maybe_declare": connection.maybe_declare(Queue(place.name("newer"))),
            "bind": connection.bind(queue, exchange, "key"),
            "unbind": connection.unbind(queue, exchange, "bound"),
            "delete a queue": connection.delete(other),
            "delete an exchange": connection.delete(exchange),
            "purge": connection.purge(queue),
            "status": connection.status(queue),
            "publish": producer.publish(1, queue.name),
            "publish, with retries": producer.publish(1, queue.name, retry=True, timeout=0.5),
            "publish_many": producer.publish_many([1, 2], queue.name),
            "batch": batch(),
            "get": connection.get(queue),
            "call": connection.call(1, queue.name),
            "reply": connection.reply(request, 1),
            "flush": connection.flush(),
            "consume": connection.consume(place.name("newest")).__aenter__(),
            "consume, declared": connection.consume(other, auto_declare=False).__aenter__(),
            "serve": connection.serve(other, asyncio.sleep, auto_declare=False),
            "stop": stopped.stop(),
            "next": messages.next(0.5),
            "ack": received[0].ack(),
            "ack, with all before": received[1].ack(multiple=True),
            "reject": received[2].reject(),
            "requeue": received[3].requeue(),
        }
        if url.startswith("amqp"):
            work["update_secret"] = connection.update_secret("secret")
        tasks = {name: asyncio.ensure_future(each) for name, each in work.items()}
        await asyncio.wait(tasks.values(), timeout=30)
        assert [name for name, task in tasks.items() if not task.done()] == []
        outcomes = {name: task.exception() or task.result() for name, task in tasks.items()}
        errors = (TimeoutError, exceptions.RecoverableConnectionError)
        done = {name for name, outcome in outcomes.items() if not isinstance(outcome, errors)}
        # RabbitMQ answers no settling, nor does an acknowledgement wait for Redis, or the end of a consumer that has
        # nothing. What was published before a flush may have ended a moment before it.
        free = {"ack, with all before", "reject", "requeue"} if url.startswith("amqp") else {"stop"}
        assert done - {"flush"} == {"next", "ack"} | free
        assert all(outcomes[name] is None for name in done)
        await messages.__aexit__(None, None, None)
        await stopped.__aexit__(None, None, None)
        await connection.close()
        assert connection.state is State.CLOSED
        assert not connection.session.window.sent
        proxy.deaf = True
        with pytest.raises(errors):
            await aio.connect(proxy.url(url), connect_timeout=0.5).connect()
        late = aio.connect(proxy.url(url), connect_timeout=600)
        late.session.waits.timeout = 0.5
        with pytest.raises(errors):
            async with late:
                raise AssertionError("connected")

    run(main)


def test_consumers_end_when_the_connection_is_closed_under_them(place):
    async def main():
        async with place.connect() as connection:
            messages = connection.consume(place.name("q"))
            async with messages:
                waiting = asyncio.create_task(messages.next())
                await asyncio.sleep(0.01)
                await connection.close()
                with pytest.raises(exceptions.RecoverableConnectionError):
                    await waiting

    run(main)
