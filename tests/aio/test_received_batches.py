"""Batches of received messages where something fails meanwhile: nothing is settled twice, or for another message."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import nullcontext

import pytest

from kombulite import Queue, aio, exceptions
from tests.aio.conftest import run, soon

POISON = {"max_deliveries": 3, "dead_letter": "dead"}


def connect():
    return aio.connect(f"memory:///{uuid.uuid4().hex}")


async def publish_good_and_bad(connection):
    """Publish a message, and one that was delivered in vain. Returns their queues, in the order of delivery."""
    good, bad = Queue("good"), Queue("bad")
    for queue in (good, bad):
        await connection.declare(queue)
        await connection.producer().publish(queue.name, queue.name)
    for _ in range(3):
        await (await connection.get(bad)).requeue()
    await connection.declare(Queue("dead"))
    return [good, bad]


async def wait_for_the_dead_letter(connection, messages):
    """Iterate until the bad message is with the dead letters; no other message comes meanwhile."""
    waiting = asyncio.create_task(messages.next())

    async def is_there():
        return (await connection.status("dead")).message_count == 1

    await soon(is_there)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()


@pytest.mark.parametrize("no_ack", [False, True])
def test_a_batch_that_fails_is_handed_over_once(monkeypatch, no_ack):
    async def main():
        async with connect() as connection:
            queues = await publish_good_and_bad(connection)
            async with connection.consume(queues, no_ack=no_ack, **POISON) as messages:

                async def refuse(entity):
                    raise exceptions.AccessRefused("no permission to declare")

                with monkeypatch.context() as patch:
                    patch.setattr(connection, "declare", refuse)
                    with pytest.raises(exceptions.AccessRefused):
                        await messages.next_batch(2, within=20)
                consumed = connection.counters.consumed
                batch = await messages.next_batch(1, within=20)
                assert batch.payloads == ["good"]
                await batch.ack()
                await wait_for_the_dead_letter(connection, messages)
                assert connection.counters.consumed == consumed + 1
            assert (await connection.status("good")).message_count == 0

    run(main)


def test_a_batch_has_no_message_of_a_connection_that_was_lost_meanwhile(monkeypatch):
    async def main():
        async with connect() as connection:
            queues, session = await publish_good_and_bad(connection), connection.session
            async with connection.consume(queues, **POISON) as messages:

                async def refuse_after_a_loss(entity):
                    session._lost(session.transport, exceptions.RecoverableConnectionError("cut"))
                    await session.ensure(session.waits.deadline(None))
                    raise exceptions.AccessRefused("no permission to declare")

                with monkeypatch.context() as patch:
                    patch.setattr(connection, "declare", refuse_after_a_loss)
                    with pytest.raises(exceptions.AccessRefused):
                        await messages.next_batch(2, within=20)
                batch = await messages.next_batch(1, within=20)
                assert batch.payloads == ["good"]
                await batch.ack()
                await wait_for_the_dead_letter(connection, messages)
            assert (await connection.status("good")).message_count == 0

    run(main)


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (TimeoutError("the broker did not answer"), pytest.raises(TimeoutError)),
        (exceptions.RecoverableConnectionError("lost"), nullcontext()),
    ],
)
def test_iterating_ends_although_stopping_fails(monkeypatch, error, ends):
    async def main():
        async with connect() as connection, connection.consume("q") as messages:

            def refuse(*arguments):
                raise error

            monkeypatch.setattr(connection.session.transport, "cancel", refuse)
            waiting = asyncio.create_task(messages.next())
            await asyncio.sleep(0)  # it waits now
            with ends:
                await messages.stop()
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(waiting, 20)

    run(main)


def test_what_a_cancelled_batch_leaves_is_another_tasks():
    async def main():
        async with connect() as connection, connection.consume("q") as messages:
            batch = asyncio.create_task(messages.next_batch(10, within=60))
            await asyncio.sleep(0)  # it waits now
            single = asyncio.create_task(messages.next())
            await connection.producer().publish("x", "q")

            async def has_come():
                return len(messages._ready) == 1

            await soon(has_come)
            await asyncio.sleep(0)  # the batch has seen it, and waits for more
            batch.cancel()
            message = await asyncio.wait_for(single, 20)
            assert message.payload == "x"
            await message.ack()
            await asyncio.wait([batch])
            assert batch.cancelled()

    run(main)
