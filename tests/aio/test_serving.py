"""``serve``: what becomes of messages that wait for their turn, and servers that end by the same signal."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from kombulite import Queue, exceptions
from tests.aio.conftest import run, soon

TAKEN, PUBLISHED = 5, 8


async def bodies_in(connection, queue):
    """Fetch all messages of a queue."""
    found = []

    async def are_all_there():
        message = await connection.get(queue, no_ack=True)
        if message is not None:
            found.append(message.payload)
        return len(found) == PUBLISHED

    await soon(are_all_there)
    return found


async def publish_and_serve(connection, queue, handle, **options):
    """Serve messages that all have one key. The handler is called when as many are taken as may be."""
    await connection.declare(queue)
    await connection.producer().publish_many(range(PUBLISHED), queue.name)
    taken, are_taken = [], asyncio.Event()

    def key(message):
        taken.append(message)
        if len(taken) == TAKEN:
            are_taken.set()

    async def handle_later(message):
        await are_taken.wait()
        await handle(message)

    await connection.serve(queue, handle_later, key=key, prefetch=TAKEN, concurrency=2, **options)


async def serve_until_the_grace_is_over(connection, queue):
    stop = asyncio.Event()

    async def handle(message):
        stop.set()
        await asyncio.sleep(60)

    await publish_and_serve(connection, queue, handle, stop=stop, grace=0.05)


async def serve_until_cancelled(connection, queue):
    is_handling = asyncio.Event()

    async def handle(message):
        is_handling.set()
        await asyncio.sleep(60)

    server = asyncio.create_task(publish_and_serve(connection, queue, handle))
    await is_handling.wait()
    server.cancel()
    await asyncio.wait([server])
    assert server.cancelled()


@pytest.mark.parametrize("serve", [serve_until_the_grace_is_over, serve_until_cancelled])
def test_messages_of_a_key_go_back_in_their_order(place, serve):
    if place.kind == "kombu-style":
        pytest.skip("this transport puts what goes back behind the others")

    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await serve(connection, queue)
            assert await bodies_in(connection, queue) == list(range(PUBLISHED))

    run(main)


def test_what_waits_for_its_turn_goes_back_before_the_handlers_end(place):
    async def main():
        queue, stop = Queue(place.name("q")), asyncio.Event()
        async with place.connect() as connection:

            async def handle(message):
                stop.set()

                async def others_are_back():
                    return (await connection.status(queue)).message_count == PUBLISHED - 1

                await soon(others_are_back)

            await publish_and_serve(connection, queue, handle, stop=stop)
            assert connection.counters.acked == 1
            if place.kind == "kombu-style":
                return
            await connection.producer().publish(PUBLISHED, queue.name)
            assert await bodies_in(connection, queue) == list(range(1, PUBLISHED + 1))

    run(main)


def test_what_needs_no_ack_gets_its_turn_after_stop(place):
    async def main():
        queue, stop, handled = Queue(place.name("q")), asyncio.Event(), []
        async with place.connect() as connection:

            async def handle(message):
                handled.append(message.payload)
                stop.set()
                await asyncio.sleep(0)

            await publish_and_serve(connection, queue, handle, stop=stop, no_ack=True)
            left = (await connection.status(queue)).message_count
            assert handled == list(range(PUBLISHED - left))
            assert len(handled) >= TAKEN

    run(main)


def test_what_waits_for_its_turn_is_not_handled_when_its_connection_is_lost(memory):
    async def main():
        queue, stop, handled = Queue(memory.name("q")), asyncio.Event(), []
        async with memory.connect() as connection:
            session = connection.session

            async def handle(message):
                if not handled:
                    session._lost(session.transport, exceptions.RecoverableConnectionError("cut"))
                    await session.ensure(session.waits.deadline(None))
                handled.append((message.payload, message.delivery_info["redelivered"]))
                if len(handled) == PUBLISHED + 1:
                    stop.set()

            await publish_and_serve(connection, queue, handle, stop=stop)
            redelivered = [(number, number < TAKEN) for number in range(PUBLISHED)]
            assert handled == [(0, False), *redelivered]

    run(main)


@pytest.fixture
def handler():
    """Have a handler for the signal, which is there again when all servers have ended."""

    def handle(*args):
        """Survive a signal that no server takes."""

    before = signal.signal(signal.SIGUSR1, handle)
    yield handle
    assert signal.signal(signal.SIGUSR1, before) is handle


@pytest.mark.usefixtures("handler")
def test_one_signal_ends_all_servers(memory):
    async def main():
        names, begun, ended = [memory.name("a"), memory.name("b")], set(), []
        async with memory.connect() as connection:

            async def handle(message):
                begun.add(message.queue)
                if len(begun) == len(names):
                    os.kill(os.getpid(), signal.SIGUSR1)

            async def serve(name):
                await connection.declare(Queue(name))
                await connection.producer().publish("x", name)
                await connection.serve(name, handle, signals=[signal.SIGUSR1])
                ended.append(name)

            await asyncio.wait_for(asyncio.gather(*map(serve, names)), 20)
            assert sorted(ended) == sorted(names)

    run(main)


@pytest.mark.usefixtures("handler")
def test_a_server_that_ends_leaves_the_signal_to_the_others(memory):
    async def main():
        first, second = Queue(memory.name("a")), Queue(memory.name("b"))
        stop = asyncio.Event()
        async with memory.connect() as connection:

            async def end_the_first(message):
                stop.set()

            async def kill(message):
                os.kill(os.getpid(), signal.SIGUSR1)

            for queue in (first, second):
                await connection.declare(queue)
            options = {"signals": [signal.SIGUSR1]}
            one = asyncio.create_task(connection.serve(first, end_the_first, stop=stop, **options))
            two = asyncio.create_task(connection.serve(second, kill, **options))
            await connection.producer().publish("x", first.name)
            await one
            await connection.producer().publish("x", second.name)
            await asyncio.wait_for(two, 20)

    run(main)
