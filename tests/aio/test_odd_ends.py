"""Messages without a channel, connections in forked children, consumers that end: each ends as it says."""

from __future__ import annotations

import asyncio
import logging
import pickle
import signal

import pytest

from kombulite import Queue, exceptions
from kombulite.aio._messages import Message, MessageBatch
from tests.aio.conftest import run, soon

SETTLING = [
    lambda message: message.ack(),
    lambda message: message.ack(multiple=True),
    lambda message: message.reject(),
    lambda message: message.requeue(),
]


@pytest.mark.parametrize("settle", SETTLING, ids=["ack", "ack-multiple", "reject", "requeue"])
def test_a_message_without_a_channel_says_so(settle):
    async def main():
        message = pickle.loads(pickle.dumps(Message(b"{}", delivery_tag=1)))
        with pytest.raises(exceptions.MessageStateError, match="does not have a receiving channel"):
            await settle(message)
        assert message.state == "RECEIVED"
        with pytest.raises(exceptions.MessageStateError, match="have no channel"):
            await MessageBatch([message]).ack()
        assert message.state == "RECEIVED"

    run(main)


def test_process_of_a_message_without_a_channel_says_so():
    async def main():
        with pytest.raises(exceptions.MessageStateError, match="does not have a receiving channel"):
            async with Message(b"{}", delivery_tag=1).process():
                pytest.fail("the block ran")

    run(main)


def test_errors_of_settling_are_logged_where_that_is_asked_for(memory, caplog):
    async def main():
        logger = logging.getLogger("tests.aio")
        async with memory.connect() as connection:
            producer = connection.producer(routing_key=memory.name("q"))
            async with connection.consume(memory.name("q")) as messages:
                for settle in ("ack_log_error", "reject_log_error"):
                    await producer.publish({})
                    message = await messages.next()
                    await getattr(message, settle)(logger, (exceptions.MessageStateError,))
                    assert message.acknowledged
                    await getattr(message, settle)(logger, (exceptions.MessageStateError,))
            assert (connection.counters.acked, connection.counters.rejected) == (1, 1)

    run(main)
    assert [record.getMessage().split(" ")[0] for record in caplog.records if record.name == "tests.aio"] == [
        "Couldn't",
        "Couldn't",
    ]


def test_what_came_before_a_fork_is_not_settled_by_the_child(memory):
    async def main():
        async with memory.connect() as connection:
            queue = memory.name("q")
            await connection.producer().publish({}, queue)
            message = await connection.get(queue)
            parent = connection.session.transport
            connection.after_fork()  # as in the child
            with pytest.raises(exceptions.RecoverableConnectionError):
                await message.ack()
            parent.abort()

    run(main)


def test_a_child_has_replies_come_to_a_queue_of_its_own(memory):
    async def main():
        async with memory.connect() as connection, memory.connect() as server:
            queue = memory.name("requests")

            async def call():
                async with server.consume(queue) as requests:
                    calling = asyncio.ensure_future(connection.call("ping", queue, timeout=5))
                    request = await requests.next(5)
                    await request.ack()
                    await server.reply(request, "pong")
                    return request.properties["reply_to"], (await calling).payload

            address, answer = await call()
            assert answer == "pong"
            parent, tasks = connection.session.transport, list(connection.session.waits._tasks.values())
            connection.after_fork()
            other, answer = await call()
            assert answer == "pong"
            assert other != address
            for task in tasks:  # a child has no such task
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            parent.abort()

    run(main)


def test_a_signal_that_cannot_be_caught_leaves_the_others_as_they_were(memory):
    async def main():
        before = signal.getsignal(signal.SIGUSR1)
        async with memory.connect() as connection:
            with pytest.raises((RuntimeError, OSError, ValueError)):
                await connection.serve(memory.name("q"), print, signals=[signal.SIGUSR1, signal.SIGKILL])
        assert signal.getsignal(signal.SIGUSR1) is before

    run(main)


def test_what_comes_as_a_consumer_ends_goes_back(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish_many(range(3), queue.name)
            messages = connection.consume(queue, prefetch=1)
            async with messages:
                await (await messages.next(20)).ack()  # the next one is on its way
            with pytest.raises(StopAsyncIteration):
                await messages.next(1)

            async def are_back():
                return (await connection.status(queue)).message_count == 2

            await soon(are_back)
            async with messages:
                assert {(await messages.next(20)).payload} < {1, 2}

    run(main)


def test_messages_are_of_one_block_at_a_time(memory):
    async def main():
        async with memory.connect() as connection:
            messages = connection.consume(memory.name("q"))
            async with messages:
                with pytest.raises(RuntimeError, match="goes on"):
                    await messages.__aenter__()
                assert await messages.next(0.01) is None
            async with messages:
                assert await messages.next(0.01) is None

    run(main)
