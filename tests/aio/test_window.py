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


def test_publishers_that_wait_for_room_go_on_when_there_is_some(monkeypatch):
    async def main():
        number, waits = 8000, 0
        async with aio.connect(f"memory:///{uuid.uuid4().hex}") as connection:
            session, queue = connection.session, Queue("q")
            await connection.declare(queue)
            wait_for_turn = session._wait_for_turn

            async def count(*arguments):
                nonlocal waits
                waits += 1
                await wait_for_turn(*arguments)

            monkeypatch.setattr(session, "_wait_for_turn", count)
            producer = connection.producer()
            await producer.publish("before", queue.name)
            cancelled = [asyncio.create_task(producer.publish(0, queue.name)) for _ in range(number // 10)]
            publishing = [asyncio.create_task(producer.publish(each, queue.name)) for each in range(number)]
            await asyncio.sleep(0)
            for each in cancelled:
                each.cancel()
            assert await finish(publishing) == [None] * number
            assert waits < 3 * number  # 68,000 where all that wait go on for the room of some
            sent = sum(not each.cancelled() for each in cancelled)
            assert (await connection.status(queue)).message_count == 1 + number + sent

    run(main, debug=False)
