"""The window of messages that are under way: whoever waits for room in it gets its turn."""

from __future__ import annotations

import asyncio
import uuid

from kombulite import Connection, Exchange, Queue, aio, exceptions
from tests.aio.conftest import ThreadedMemory, run

MESSAGES = 10


async def finish(publishing):
    """Wait for the publishes. Returns what they raised; none may take as long as its deadline."""
    done, left = await asyncio.wait(publishing, timeout=20)
    for each in left:
        each.cancel()
    assert not left, f"{len(left)} wait for a turn, with nothing under way"
    return [each.exception() for each in done]


def test_messages_that_are_refused_give_their_turns_on():
    async def main():
        async with aio.connect("localhost", transport=ThreadedMemory, virtual_host=uuid.uuid4().hex) as connection:
            exchange = Exchange("gone", "fanout")
            producer = connection.producer(exchange)
            await producer.publish("before")
            connection.session.window.size = 2
            with Connection("memory://", virtual_host=connection.virtual_host) as other:
                exchange(other.default_channel).delete()
            publishing = [asyncio.create_task(producer.publish(number)) for number in range(MESSAGES)]
            raised = await finish(publishing)
            assert [type(each) for each in raised] == [exceptions.NotFound] * MESSAGES

    run(main)


def test_messages_without_an_answer_give_their_turns_on():
    async def main():
        async with aio.connect(f"memory:///{uuid.uuid4().hex}") as connection:
            session, queue = connection.session, Queue("q")
            await connection.declare(queue)
            producer = connection.producer()
            await producer.publish("before", queue.name)
            session.window.size = 1
            answer = asyncio.get_running_loop().create_future()
            under_way = session.window.wait_for_answer(answer, session.waits.deadline(None), "publish")
            other = asyncio.create_task(under_way)
            await asyncio.sleep(0)
            publishing = [asyncio.create_task(producer.publish(number, queue.name)) for number in range(MESSAGES)]
            await asyncio.sleep(0)
            answer.set_result(None)
            assert await finish([other, *publishing]) == [None] * (MESSAGES + 1)
            assert (await connection.status(queue)).message_count == 1 + MESSAGES

    run(main)


def test_a_forked_child_waits_for_nothing_of_its_parents():
    async def main():
        async with aio.connect(f"memory:///{uuid.uuid4().hex}") as connection:
            session = connection.session
            answer = asyncio.get_running_loop().create_future()
            under_way = session.window.wait_for_answer(answer, session.waits.deadline(None), "publish")
            parents = asyncio.create_task(under_way)
            await asyncio.sleep(0)
            connection.after_fork()
            assert await finish([asyncio.create_task(connection.flush())]) == [None]
            parents.cancel()
            await asyncio.wait([parents])
            assert parents.cancelled()

    run(main)
