"""``publish``, ``ack`` and ``__anext__``, whose first step is compiled: coroutines like all others."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections import deque
from contextlib import asynccontextmanager
from unittest import mock

import pytest

from kombulite import Queue, _core, aio, exceptions
from kombulite._core import ConsumerRing, FastPath, pass_on
from kombulite.brokers.waits import WaitQueue
from tests.aio.conftest import run


@asynccontextmanager
async def consuming(place, *bodies):
    """A connection whose consumer has these messages at hand."""
    queue = Queue(place.name("q"))
    async with place.connect() as connection:
        await connection.declare(queue)
        producer = connection.producer(routing_key=queue.name)
        for body in bodies:
            await producer.publish(body)
        async with connection.consume(queue) as messages:
            while len(messages._ready) < len(bodies):
                await asyncio.sleep(0)
            yield connection, producer, messages


def test_nothing_is_done_before_it_is_awaited_and_python_warns_if_it_never_is(memory):
    async def main():
        async with consuming(memory, 1) as (connection, producer, messages):
            with pytest.warns(RuntimeWarning, match=r"coroutine 'Producer.publish' was never awaited"):
                producer.publish(2)
            with pytest.warns(RuntimeWarning, match=r"coroutine 'Messages.__anext__' was never awaited"):
                messages.__anext__()
            message = await messages.__anext__()
            with pytest.warns(RuntimeWarning, match=r"coroutine 'Message.ack' was never awaited"):
                message.ack()
            assert (message.payload, message.acknowledged) == (1, False)
            assert await messages.next(timeout=0) is None
            assert (connection.counters.published, connection.counters.acked) == (1, 0)

    run(main)


def test_an_error_of_making_a_message_is_raised_when_it_is_awaited(memory):
    async def main():
        async with consuming(memory) as (_, producer, _):
            made = producer.publish(object())
            with pytest.raises(exceptions.EncodeError):
                await made
            failed = asyncio.create_task(producer.publish({}, 7))
            with pytest.raises(TypeError):
                await failed

    run(main)


def test_a_coroutine_is_awaited_once(memory):
    async def main():
        async with consuming(memory, 1) as (_, producer, messages):
            for make in (lambda: producer.publish(2), messages.__anext__, (await messages.__anext__()).ack):
                made = make()
                await made
                with pytest.raises(RuntimeError, match="already awaited"):
                    await made

    run(main)


def test_a_coroutine_may_be_a_task_and_time_out(memory):
    async def main():
        async with consuming(memory) as (_, producer, messages):
            waiting = asyncio.create_task(messages.__anext__())
            assert "Messages.__anext__" in repr(waiting)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(messages.__anext__(), 0.01)
            await asyncio.create_task(producer.publish((1, 2)))
            message = await waiting
            assert message.payload == [1, 2]
            await asyncio.gather(message.ack(), producer.publish(3))
            assert (await messages.__anext__()).payload == 3

    run(main)


def test_a_coroutine_that_is_closed_or_cancelled_before_its_first_step_does_nothing(memory):
    async def main():
        async with consuming(memory, 1) as (connection, producer, messages):
            made = producer.publish(2)
            made.close()
            with pytest.raises(RuntimeError, match="already awaited"):
                await made
            taking = asyncio.create_task(messages.__anext__())
            taking.cancel()
            await asyncio.wait([taking])
            assert taking.cancelled()
            for error in ((ValueError("a"),), (ValueError, "a"), (ValueError, ValueError("a"), None)):
                with pytest.raises(ValueError, match=r"^a$"):
                    producer.publish(3).throw(*error)
            assert (await messages.__anext__()).payload == 1
            assert connection.counters.published == 1

    run(main)


def test_each_step_can_be_driven_by_hand(memory):
    async def main():
        async with consuming(memory, "first") as (_, producer, messages):  # its channel is open then
            assert (await messages.__anext__()).payload == "first"
            taking = messages.__anext__()
            waited_for = taking.send(None)
            assert asyncio.isfuture(waited_for)
            sending = producer.publish("x")
            with pytest.raises(StopIteration) as ended:
                sending.send(None)
            assert ended.value.value is None
            await asyncio.sleep(0)
            assert waited_for.done()
            waited_for._asyncio_future_blocking = False
            with pytest.raises(StopIteration) as ended:
                taking.send(None)
            assert ended.value.value.payload == "x"

    run(main)


def test_mocks_and_frameworks_see_coroutine_functions(memory):
    connection = memory.connect()
    producer = connection.producer()
    made = producer.publish(1)
    assert asyncio.iscoroutine(made)
    assert inspect.isawaitable(made)
    made.close()
    assert isinstance(mock.Mock(aio.Message).ack, mock.AsyncMock)
    assert isinstance(mock.Mock(aio.Producer).publish, mock.AsyncMock)


def test_what_a_coroutine_returns_is_its_awaiters_whatever_it_is(memory):
    class Answer:
        def __init__(self, value):
            self.value = value

        async def next(self):
            return self.value

    async def main():
        for value in (None, (1, 2), ValueError("a value"), StopIteration(3)):
            waiting = _core.BaseMessages.__anext__(mock_messages(value))
            assert await waiting is value
            with pytest.raises(StopIteration) as ended:
                _core.BaseMessages.__anext__(mock_messages(value)).send(None)
            assert ended.value.value is value

    def mock_messages(value):
        class Source(_core.BaseMessages):
            next = Answer(value).next

        return Source(_core.BaseAsyncMessage, _core.CounterBlock(), WaitQueue(), None, False, True)

    run(main)


def test_several_loops_over_the_same_messages_get_each_message_once(memory):
    async def main():
        async with consuming(memory, *range(10)) as (_, _, messages):
            seen = []

            async def take(count):
                async for message in messages:
                    seen.append(message.payload)
                    await message.ack()
                    count -= 1
                    if not count:
                        return
                    await asyncio.sleep(0)

            await asyncio.gather(take(3), take(7))
            assert sorted(seen) == list(range(10))

    run(main)


def test_events_pass_from_any_callable_to_any_callable(memory):
    """A compiled method of another name, or a static one, which has no owner, is called as any other."""
    path = FastPath(ConsumerRing(), [], [], lambda: None)
    got = []
    assert pass_on(path.next, got.append, 3) == 0
    assert pass_on(path.__sizeof__, got.append, 3) == 3
    assert got == [path.__sizeof__()] * 3
    with pytest.raises(TypeError):
        pass_on(str.maketrans, got.append, 1)
    with pytest.raises(TypeError):
        pass_on(path.__sizeof__, str.maketrans, 1)


def test_a_queue_of_deliveries_keeps_their_order_however_it_grows():
    properties = _core.Properties()
    deliveries = [_core.Delivery("", str(number), properties, b"") for number in range(100)]
    queue, model = _core.DeliveryQueue(), deque()
    for step in range(300):
        if step % 7 == 3 and model:
            assert queue.pop() is model.pop()
        elif step % 5 == 2:
            queue.appendleft(deliveries[step % 100])
            model.appendleft(deliveries[step % 100])
        else:
            queue.append(deliveries[step % 100])
            model.append(deliveries[step % 100])
        assert len(queue) == len(model)
    while model:
        assert queue.pop() is model.pop()
    with pytest.raises(IndexError):
        queue.pop()
    counts = [sys.getrefcount(deliveries[0])]
    queue.append(deliveries[0])
    counts.append(sys.getrefcount(deliveries[0]))
    queue.clear()
    counts.append(sys.getrefcount(deliveries[0]))
    another = _core.DeliveryQueue()
    another.append(deliveries[0])
    del another
    counts.append(sys.getrefcount(deliveries[0]))
    first = counts[0]
    assert (len(queue), counts) == (0, [first, first + 1, first, first])


def test_a_message_at_hand_is_for_the_connections_own_loop_only(memory):
    async def main():
        async with consuming(memory, 1) as (_, _, messages):
            raised = []

            def elsewhere():
                try:
                    asyncio.run(take())
                except BaseException as error:
                    raised.append(error)

            async def take():
                await messages.__anext__()

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            (error,) = raised
            assert isinstance(error, RuntimeError)
            assert "another event loop" in str(error)
            assert (await messages.__anext__()).payload == 1

    run(main)
