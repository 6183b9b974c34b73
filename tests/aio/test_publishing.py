"""Publishing: arguments of the synchronous ``publish`` that need a meaning of their own on a loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kombulite import Exchange, Queue, aio, exceptions
from tests.aio.conftest import ThreadedMemory, run


async def publish(producer, name):
    await producer.publish(1, name, mandatory=True)


async def publish_many(producer, name):
    await producer.publish_many([1], name, mandatory=True)


async def batch(producer, name):
    async with producer.batch() as batch:
        await batch.publish(1, name, mandatory=True)


@pytest.mark.parametrize("send", [publish, publish_many, batch])
def test_a_mandatory_message_comes_back_also_without_confirms(place, send):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            producer = connection.producer(Exchange(place.name("e"), "topic"), confirm=False)
            with pytest.raises((exceptions.MessageReturned, exceptions.BatchPublishError)):
                await send(producer, "nobody")
            await connection.bind(queue, producer.exchange, "somebody")
            await send(producer, "somebody")
            await producer.publish(2, "somebody")
            await producer.publish(3, "nobody")
            await connection.flush()

    run(main)


def test_arguments_that_say_nothing_travel_nowhere(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            producer = connection.producer()
            await producer.publish(1, queue.name, immediate=True, confirm_timeout=20, declare=None, retry_policy=None)
            await producer.publish_many([2], queue.name, declare=None)
            for number in (1, 2):
                message = await connection.get(queue, no_ack=True)
                assert message.payload == number
                assert not message.properties.keys() & {"immediate", "confirm_timeout", "declare", "retry_policy"}

    run(main)


@pytest.mark.parametrize("arguments", [{"confirm_timeout": 0.02}, {"timeout": 0.01, "confirm_timeout": 0.01}])
def test_a_confirm_that_takes_too_long_is_not_waited_for(arguments):
    is_over = threading.Event()

    class Silent(ThreadedMemory):
        def publish(self, *args, **kwargs):
            is_over.wait(60)
            return super().publish(*args, **kwargs)

    async def main():
        async with aio.connect("localhost", transport=Silent) as connection:
            await connection.declare(Queue("slowly"))
            publishing = asyncio.ensure_future(connection.producer().publish(1, "slowly", **arguments))
            done, _ = await asyncio.wait([publishing], timeout=20)
            is_over.set()
            assert done
            with pytest.raises(TimeoutError):
                publishing.result()
            await connection.delete(Queue("slowly"))

    run(main)


def test_on_revive_is_called_with_the_connection(memory, monkeypatch):
    async def main():
        queue, revived, failures = Queue(memory.name("q")), [], []
        async with memory.connect() as connection:
            session, maybe_declare = connection.session, connection.maybe_declare
            await connection.declare(queue)
            lost = exceptions.RecoverableConnectionError("cut")

            async def lose_it_once(entity):
                if not failures:
                    failures.append(lost)
                    session._lost(session.transport, lost)
                    raise lost
                return await maybe_declare(entity)

            def revive(given):
                revived.append((given, given.connected))

            monkeypatch.setattr(connection, "maybe_declare", lose_it_once)
            policy = {"on_revive": revive, "max_retries": 3}
            await connection.producer().publish(1, queue.name, declare=[queue], retry=True, retry_policy=policy)
            assert failures == [lost]
            assert revived == [(connection, True)]
            assert (await connection.get(queue, no_ack=True)).payload == 1

    run(main)
