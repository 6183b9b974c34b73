"""Requests and their replies: by direct reply-to where there is one, over a queue of the caller's elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from kombulite import Queue, aio, exceptions
from tests.aio.conftest import Place, run, soon
from tests.proxy import Proxy

DIRECT = "amq.rabbitmq.reply-to."


@asynccontextmanager
async def answering(place: Place, queue: Queue, answer: Callable[[aio.Connection, aio.Message], Awaitable[object]]):
    """Have a connection of its own handle what comes to a queue."""
    async with place.connect() as connection:
        await connection.declare(queue)
        stop = asyncio.Event()

        async def handle(message):
            await answer(connection, message)

        serving = asyncio.create_task(connection.serve(queue, handle, concurrency=5, stop=stop))
        try:
            yield connection
        finally:
            stop.set()
            await serving


def test_replies_come_without_a_queue_where_the_broker_can_do_that(place):
    async def main():
        requests, addresses = Queue(place.name("requests")), []

        async def answer(connection, message):
            addresses.append(message.properties["reply_to"])
            await connection.reply(message, message.payload + 1)

        async with answering(place, requests, answer), place.connect() as caller:
            replies = await asyncio.gather(*(caller.call(number, requests.name, timeout=20) for number in range(50)))
            assert [reply.payload for reply in replies] == list(range(1, 51))
            assert caller.counters.consumed == 50
            assert {address.startswith(DIRECT) for address in addresses} == {place.kind == "amqp"}
            assert len(set(addresses)) == 1

    run(main)


def test_a_request_that_no_queue_takes_is_refused(place):
    async def main():
        async with place.connect() as connection:
            with pytest.raises(exceptions.MessageReturned):
                await connection.call(1, place.name("nobody"), timeout=20)
            with pytest.raises(exceptions.NotFound):
                await connection.call(1, "key", exchange=place.name("exchange"), timeout=20)

    if place.kind in ("redis", "cluster", "filesystem", "kombu-style"):
        pytest.skip("there each name is that of a queue")
    run(main)


def test_a_call_without_a_reply_ends_in_time_and_a_late_reply_goes_nowhere(place):
    async def main():
        requests, received, is_late = Queue(place.name("requests")), asyncio.Event(), asyncio.Event()

        async def answer(connection, message):
            if message.payload == "late":
                received.set()
                await is_late.wait()
            await connection.reply(message, message.payload.upper())

        async with answering(place, requests, answer), place.connect() as caller:
            await caller.call("first", requests.name, timeout=20)  # all that takes time only once
            with pytest.raises(TimeoutError):
                await caller.call("late", requests.name, timeout=0.3)
            await asyncio.wait_for(received.wait(), 20)
            is_late.set()
            assert (await caller.call("next", requests.name, timeout=20)).payload == "NEXT"
            assert not caller._caller._waiting

    run(main)


def test_one_correlation_id_is_of_one_call_at_a_time(place):
    async def main():
        requests, is_answered = Queue(place.name("requests")), asyncio.Event()

        async def answer(connection, message):
            await is_answered.wait()
            await connection.reply(message, "done")

        async with answering(place, requests, answer), place.connect() as caller:
            first = asyncio.create_task(caller.call(1, requests.name, correlation_id="mine", timeout=20))
            await soon(lambda: asyncio.sleep(0, "mine" in caller._caller._waiting))
            with pytest.raises(ValueError, match="'mine'"):
                await caller.call(2, requests.name, correlation_id="mine", timeout=20)
            is_answered.set()
            assert (await first).payload == "done"

    run(main)


@pytest.mark.parametrize("place", ["amqp"], indirect=True)
def test_a_call_behind_one_that_is_refused_gets_its_reply(place):
    async def main():
        requests = Queue(place.name("requests"))

        async def answer(connection, message):
            await connection.reply(message, message.payload + 1)

        async with answering(place, requests, answer), place.connect() as caller:
            await caller.call(0, requests.name, timeout=20)
            caller.session.exchanges.add("gone")  # it was there a while ago
            refused, good = (
                caller.call(1, "key", exchange="gone", timeout=20),
                caller.call(2, requests.name, timeout=20),
            )
            error, reply = await asyncio.gather(refused, good, return_exceptions=True)
            assert isinstance(error, exceptions.NotFound)
            assert reply.payload == 3

    run(main)


@pytest.mark.parametrize("place", ["memory", "amqp"], indirect=True)
def test_a_mandatory_reply_to_a_caller_that_is_gone_is_returned(place):
    async def main():
        requests, kept = Queue(place.name("requests")), []
        async with place.connect() as server:
            await server.declare(requests)
            async with place.connect() as caller:
                calling = asyncio.create_task(caller.call("x", requests.name, timeout=20))
                async with server.consume(requests) as messages:
                    message = await messages.next(20)
                    await message.ack()
                    kept.append(message)
                await server.reply(message, "y", mandatory=True)
                assert (await calling).payload == "y"

            async def is_returned():
                try:
                    await server.reply(kept[0], "z", mandatory=True)
                except exceptions.MessageReturned:
                    return True
                return False

            await soon(is_returned)  # a broker may take a moment to see that the caller has gone

    run(main)


@pytest.fixture(params=["amqp_url", "redis_url"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("retry", [False, True])
def test_a_connection_that_is_lost_under_a_call(url, retry):
    """A reply to a channel is lost with it, and that is raised at once; one to a queue comes over the next connection.

    With ``retry`` a request that was not taken yet is published again; one that was, as here, is not.
    """
    is_direct = url.startswith("amqp")

    async def main():
        place = Place("", url, {})
        requests, is_lost, received = Queue(place.name("requests")), asyncio.Event(), asyncio.Event()

        async def answer(connection, message):
            if message.payload == "during":
                received.set()
                await is_lost.wait()
            await connection.reply(message, message.payload)

        with Proxy(urlsplit(url).port or 0) as proxy:
            async with answering(place, requests, answer), aio.connect(proxy.url(url)) as caller:
                calling = asyncio.create_task(caller.call("during", requests.name, timeout=50, retry=retry))
                await asyncio.wait_for(received.wait(), 20)
                await soon(lambda: asyncio.sleep(0, not caller.session.window.sent))  # the request is confirmed
                await asyncio.to_thread(proxy.reset)
                if is_direct:
                    with pytest.raises(exceptions.RecoverableConnectionError, match="no more replies come"):
                        await calling
                is_lost.set()
                if not is_direct:
                    assert (await calling).payload == "during"
                policy = {"max_retries": 20, "interval_start": 0.05, "interval_max": 0.2}
                after = await caller.call("after", requests.name, timeout=50, retry=True, retry_policy=policy)
                assert after.payload == "after"

    run(main)
