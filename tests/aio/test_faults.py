"""Connections that are lost and come back, and brokers that fall silent, under tasks that publish and consume."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import monotonic
from urllib.parse import urlsplit

import pytest

from kombulite import Queue, aio, exceptions
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


def test_a_silent_broker_ends_each_wait_by_its_deadline(proxy, url):
    async def main():
        name = Place("", "", {}).name("silent")
        options = {"read_timeout": 1, "write_timeout": 1, "socket_timeout": 1}
        if url.startswith("amqp"):
            del options["socket_timeout"]
        else:
            options = {"socket_timeout": 1}
        connection = aio.connect(proxy.url(url), transport_options=options)
        await connection.connect()
        await connection.declare(Queue(name))
        await asyncio.to_thread(proxy.silence)
        errors = (TimeoutError, exceptions.RecoverableConnectionError)
        start = monotonic()
        with pytest.raises(errors):
            await connection.producer().publish(1, name, timeout=0.3)
        with pytest.raises(errors):
            await connection.get(name, timeout=0.3)
        with pytest.raises(errors):
            await connection.call(1, name, timeout=0.3)
        assert monotonic() - start < 30
        await connection.close()
        assert connection.state is State.CLOSED

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
