"""Cancellation, deadlines and ends: nothing is lost, mixed up, or left running."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kombulite import Connection, Exchange, Queue, aio, exceptions
from tests.aio.conftest import run, soon

WAITS = 40  # more awaits than any operation has


class Cut:
    """Awaits something, and stops at its n-th suspension as a cancelled task does."""

    def __init__(self, operation, at):
        self.operation, self.at = operation, at
        self.was_cut = False

    def __await__(self):
        inner = self.operation.__await__()
        count = 0
        error = None
        while True:
            try:
                waited_for = inner.send(None) if error is None else inner.throw(error)
            except StopIteration as ended:
                return ended.value
            error = None
            if count == self.at:
                self.was_cut = True
                if asyncio.isfuture(waited_for):
                    waited_for._asyncio_future_blocking = False
                    waited_for.cancel()
                error = asyncio.CancelledError()
                count += 1
                continue
            count += 1
            try:
                yield waited_for
            except BaseException as raised:
                error = raised


async def cut(operation, at):
    """Cancel an operation at its n-th await; returns whether it came so far."""
    cutting = Cut(operation, at)
    try:
        await cutting
    except asyncio.CancelledError:
        if not cutting.was_cut:
            raise
    return cutting.was_cut


async def bodies_of(connection, queue, wanted):
    """Take what is in a queue, until all that is wanted has come."""
    found = []

    async def look():
        while (message := await connection.get(queue, no_ack=True)) is not None:
            found.append(message.payload)
        return wanted <= set(found)

    await soon(look)
    return found


async def holds(connection, queue, count):
    return (await connection.status(queue)).message_count == count


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_publish_may_be_cancelled_at_any_await(place, is_connected):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            for at in range(WAITS):
                if not is_connected:
                    await connection.close()
                was_cut = await cut(connection.producer().publish(at, queue.name), at)
                await connection.producer().publish(1000 + at, queue.name)
                if not was_cut:
                    break
            assert not was_cut
            await connection.flush()
            assert not connection.session.window.sent
            sure = {1000 + number for number in range(at + 1)} | {at}
            found = await bodies_of(connection, queue, sure)
            assert len(found) == len(set(found)), "one was sent twice"

    run(main)


def test_a_declaration_may_be_cancelled_at_any_await(place):
    async def main():
        async with place.connect() as connection:
            for at in range(WAITS):
                first, second = Queue(place.name(f"first{at}")), Queue(place.name(f"second{at}"))
                was_cut = await cut(connection.declare(first), at)
                # The next answer is the next question's.
                assert await connection.declare(second) == second.name
                assert (await connection.status(second)).queue == second.name
                if not was_cut:
                    break
            assert not was_cut

    run(main)


@pytest.mark.parametrize("verb", ["purge", "bind", "unbind", "delete", "status", "flush"])
def test_a_request_may_be_cancelled_at_any_await(place, verb):
    async def main():
        exchange, other = Exchange(place.name("e"), "direct"), Queue(place.name("other"))
        async with place.connect() as connection:
            await connection.declare(exchange)
            await connection.declare(other)
            for at in range(WAITS):
                queue = Queue(place.name(f"q{at}"))
                await connection.declare(queue)
                await connection.bind(queue, exchange, "kept")
                operations = {
                    "purge": lambda queue=queue: connection.purge(queue),
                    "bind": lambda queue=queue: connection.bind(queue, exchange, "key"),
                    "unbind": lambda queue=queue: connection.unbind(queue, exchange, "kept"),
                    "delete": lambda queue=queue: connection.delete(queue),
                    "status": lambda queue=queue: connection.status(queue),
                    "flush": connection.flush,
                }
                was_cut = await cut(operations[verb](), at)
                # The next answer is the next question's, and the connection goes on.
                assert (await connection.status(other)).queue == other.name
                await connection.producer().publish(at, other.name)
                message = await connection.get(other)
                assert message.payload == at
                await message.ack()
                if not was_cut:
                    break
            assert not was_cut

    run(main)


def test_publishing_many_may_be_cancelled_at_any_await(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            for at in range(WAITS):
                first, last = at * 100, at * 100 + 4
                was_cut = await cut(connection.producer().publish_many(range(first, last), queue.name), at)
                await connection.producer().publish(last, queue.name)
                found = await bodies_of(connection, queue, {last})
                several = [each for each in found if each != last]
                # All or none of one hand-over, in order, and each once.
                assert several in ([], [*range(first, last)])
                assert found[-1] == last
                if not was_cut:
                    assert several
                    break
            assert not was_cut
            assert not connection.session.window.sent

    run(main)


def test_a_call_may_be_cancelled_at_any_await(place):
    async def main():
        queue = Queue(place.name("rpc"))
        async with place.connect() as connection, place.connect() as server:
            await connection.declare(queue)
            stop = asyncio.Event()

            async def answer(message):
                await server.reply(message, message.payload * 2)

            serving = asyncio.create_task(server.serve(queue, answer, stop=stop))
            try:
                for at in range(WAITS):
                    was_cut = await cut(connection.call(at, queue.name, timeout=20), at)
                    reply = await connection.call(1000 + at, queue.name, timeout=20)
                    assert reply.payload == 2 * (1000 + at)
                    if not was_cut:
                        break
                assert not was_cut
            finally:
                stop.set()
                await serving

    run(main)


def test_a_get_may_be_cancelled_at_any_await(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            for at in range(WAITS):
                await connection.producer().publish(at, queue.name)
                found = []

                async def fetch(found=found):
                    found.append(await connection.get(queue, no_ack=False))

                was_cut = await cut(fetch(), at)
                if found:
                    assert found[0].payload == at
                    await found[0].ack()
                else:
                    assert await bodies_of(connection, queue, {at}) == [at]
                if not was_cut:
                    break
            assert not was_cut

    run(main)


def test_a_get_without_acks_may_be_cancelled_at_any_await(place):
    async def main():
        queue, other = Queue(place.name("q")), Queue(place.name("other"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.declare(other)
            for at in range(WAITS):
                await connection.producer().publish("held", other.name)
                held = await connection.get(other)
                await connection.producer().publish(at, queue.name)
                found = []

                async def fetch(found=found):
                    found.append((await connection.get(queue, no_ack=True)).payload)

                was_cut = await cut(fetch(), at)
                assert found or await bodies_of(connection, queue, {at}) == [at]
                await held.ack()  # no answer to what was cancelled settles it
                if not was_cut:
                    break
            assert not was_cut
            assert (await connection.status(other)).message_count == 0

    run(main)


@pytest.mark.parametrize("no_ack", [False, True])
def test_a_get_may_be_cancelled_in_the_turn_of_its_answer(place, no_ack):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            for turns in range(WAITS):
                await connection.producer().publish(turns, queue.name)
                getting = asyncio.create_task(connection.get(queue, no_ack))
                for _ in range(turns):
                    await asyncio.sleep(0)
                getting.cancel()
                try:
                    message = await getting
                except asyncio.CancelledError:
                    assert await bodies_of(connection, queue, {turns}) == [turns]
                else:
                    assert message.payload == turns
                    if not no_ack:
                        await message.ack()

    run(main)


def test_gets_without_acks_that_were_cancelled_are_claimed_in_their_order(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.get(queue, no_ack=True)  # the channel is open
            for number in range(5):
                await connection.producer().publish(number, queue.name)
            await soon(lambda: holds(connection, queue, 5))
            getting = [asyncio.create_task(connection.get(queue, no_ack=True)) for _ in range(3)]
            await asyncio.sleep(0)
            for each in reversed(getting):
                each.cancel()
            assert [type(each) for each in await asyncio.gather(*getting, return_exceptions=True)] == [
                asyncio.CancelledError
            ] * 3
            assert [(await connection.get(queue, no_ack=True)).payload for _ in range(5)] == list(range(5))
            assert await connection.get(queue, no_ack=True) is None

    run(main)


def test_consuming_may_be_cancelled_at_any_await(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            for at in range(WAITS):
                await connection.producer().publish(at, queue.name)
                asked, done = [], []

                async def consume(queue=queue, asked=asked, done=done):
                    async with connection.consume(queue) as messages:
                        message = await messages.next(10)
                        asked.append(message.payload)
                        await message.ack()
                        done.append(message.payload)

                was_cut = await cut(consume(), at)
                assert done in ([], [at])
                if not asked:
                    assert await bodies_of(connection, queue, {at}) == [at]
                elif not done:  # cancelled before the turn of the ack, or after it: once at the most
                    await connection.producer().publish(1000 + at, queue.name)
                    found = await bodies_of(connection, queue, {1000 + at})
                    assert found in ([1000 + at], [at, 1000 + at], [1000 + at, at])
                    queue = Queue(place.name(f"q{at}"))
                    await connection.declare(queue)
                if not was_cut:
                    break
            assert not was_cut
            assert not connection.session.restored

    run(main)


def test_a_cancelled_wait_leaves_the_message_to_another(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection, connection.consume(queue) as messages:
            waiting = [asyncio.create_task(messages.next(10)) for _ in range(2)]
            await asyncio.sleep(0.01)
            waiting[0].cancel()
            await connection.producer().publish("x", queue.name)
            message = await waiting[1]
            assert message.payload == "x"
            await message.ack()
            assert waiting[0].cancelled()

    run(main)


def test_a_cancelled_batch_keeps_what_had_come(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection, connection.consume(queue) as messages:
            await connection.producer().publish_many([1, 2], queue.name)
            batches = messages.batches(3, within=20)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(batches.__anext__(), 0.3)
            await connection.producer().publish(3, queue.name)
            batch = await batches.__anext__()
            assert batch.payloads == [1, 2, 3]
            await batch.ack()

    run(main)


def test_a_cancelled_handler_requeues(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish("x", queue.name)
            started = asyncio.Event()

            async def handle(message):
                started.set()
                await asyncio.sleep(60)

            server = asyncio.create_task(connection.serve(queue, handle))
            await started.wait()
            server.cancel()
            await asyncio.wait([server])
            assert server.cancelled()
            assert await bodies_of(connection, queue, {"x"}) == ["x"]

    run(main)


def test_handlers_that_outlive_the_grace_are_cancelled(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish("x", queue.name)
            stop = asyncio.Event()

            async def handle(message):
                stop.set()
                await asyncio.sleep(60)

            await connection.serve(queue, handle, stop=stop, grace=0.05)
            assert await bodies_of(connection, queue, {"x"}) == ["x"]

    run(main)


def test_ten_thousand_publishers_share_a_window(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            producer = connection.producer()
            await asyncio.gather(*(producer.publish(number, queue.name) for number in range(10_000)))
            assert (await connection.status(queue)).message_count == 10_000
            assert connection.counters.published == 10_000
            await connection.delete(queue)

    run(main, debug=False)  # in debug mode each future keeps the stack that it was made on


@pytest.mark.parametrize("place", ["memory", "memory-thread"], indirect=True)
def test_another_loop_or_thread_is_refused_at_once(place):
    async def main():
        async with place.connect() as connection:
            await connection.declare(Queue(place.name("q")))
            raised = []

            def elsewhere():
                async def publish():
                    await connection.producer().publish(1, "q")

                try:
                    asyncio.run(publish())
                except RuntimeError as error:
                    raised.append(error)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            await asyncio.to_thread(thread.join)
            assert len(raised) == 1

    run(main)


@pytest.mark.parametrize("place", ["memory", "memory-thread"], indirect=True)
def test_another_loop_of_the_same_thread_is_refused_at_once(place):
    connection, loop = place.connect(), asyncio.new_event_loop()
    loop.run_until_complete(connection.connect())

    async def publish():
        with pytest.raises(RuntimeError, match="another event loop"):
            await connection.producer().publish(1, "q")

    asyncio.run(publish())
    loop.run_until_complete(connection.close())
    loop.close()


def test_a_connection_may_be_used_in_one_loop_after_another(place):
    connection = place.connect()

    async def main():
        async with connection:
            await connection.producer().publish(1, place.name("q"))

    async def declared():
        async with connection:
            await connection.declare(Queue(place.name("q")))

    run(declared)
    run(main)


def test_errors_of_connecting_are_raised(place):
    async def main():
        with pytest.raises((exceptions.RecoverableConnectionError, OSError)):
            async with aio.connect("amqp://127.0.0.1:1//", connect_timeout=1):
                raise AssertionError("connected")

    run(main)


def test_the_next_url_is_tried(place):
    if place.kind != "amqp":
        pytest.skip("one kind is enough")

    async def main():
        async with aio.connect(["amqp://127.0.0.1:1//", place.url], connect_timeout=2) as connection:
            assert connection.connected

    run(main)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_both_facades_share_the_embedded_broker(place):
    async def main():
        name = place.name("q")
        with Connection("memory://") as sync:
            simple = sync.SimpleQueue(name)
            async with place.connect() as connection, connection.consume(name) as messages:
                await asyncio.to_thread(simple.put, {"a": 1})
                message = await messages.next(5)
                assert message.payload == {"a": 1}
                await message.ack()

    run(main)
