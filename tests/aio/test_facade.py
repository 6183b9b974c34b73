"""What goes in comes out: publishing, consuming, fetching, calling, serving."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from prometheus_client import CollectorRegistry

from kombulite import Connection, Exchange, Queue, aio, exceptions
from kombulite._client.lifecycle import State
from kombulite.contrib.prometheus import CountersCollector
from kombulite.hooks import Hook
from tests.aio.conftest import run, soon


async def count(connection, queue, wanted):
    """Wait until that many messages wait in a queue."""

    async def there():
        return (await connection.status(queue)).message_count == wanted

    await soon(there)


def test_declare_publish_consume_and_ack(place):
    async def main():
        shop = Exchange(place.name("shop"), "topic")
        orders = Queue(place.name("orders"), shop, routing_key="order.#")
        got = []
        async with place.connect() as connection:
            await connection.declare(orders)
            producer = connection.producer(shop)
            for number in range(3):
                await producer.publish({"id": number}, "order.new")
            async with connection.consume(orders, prefetch=100) as messages:
                async for message in messages:
                    async with message.process():
                        got.append(message.payload["id"])
                    if len(got) == 3:
                        break
            assert (await connection.status(orders)).message_count == 0
            await connection.delete(orders)
            counters = connection.counters
        assert got == [0, 1, 2]
        assert (counters.published, counters.consumed, counters.acked) == (3, 3, 3)

    run(main)


def test_producer_with_the_name_of_an_exchange_declares_nothing(place):
    async def main():
        shop = Exchange(place.name("shop"), "topic")
        orders = Queue(place.name("orders"), shop, routing_key="order.#")
        async with place.connect() as connection:
            await connection.producer(shop.name).publish({"id": 1}, "order.new", declare=[orders])
            message = await connection.get(orders)
            assert message.payload == {"id": 1}
            await message.ack()
            with pytest.raises(exceptions.NotFound):
                await connection.producer(place.name("missing")).publish({"id": 2}, "order.new")
            await connection.delete(orders)

    run(main)


def test_a_request_that_is_refused_spares_those_of_other_tasks(place):
    async def main():
        async with place.connect() as connection:
            queues = [Queue(place.name(f"q{number}")) for number in range(5)]
            missing = place.name("missing")
            got = await asyncio.gather(
                connection.status(missing), *map(connection.declare, queues), return_exceptions=True
            )
            assert isinstance(got[0], exceptions.NotFound)
            assert got[1:] == [queue.name for queue in queues]
            got = await asyncio.gather(connection.get(missing), *map(connection.get, queues), return_exceptions=True)
            assert got[1:] == [None] * 5
            for queue in queues:
                await connection.delete(queue)

    run(main)


def test_many_tasks_share_a_connection(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            producer = connection.producer()
            await asyncio.gather(*(producer.publish(number, queue.name) for number in range(500)))
            got = []
            async with connection.consume(queue, prefetch=50) as messages:

                async def work():
                    async for message in messages:
                        got.append(message.payload)
                        await message.ack()
                        if len(got) == 500:
                            await messages.stop()

                await asyncio.gather(*(work() for _ in range(4)))
            assert sorted(got) == list(range(500))
            assert await connection.purge(queue) == 0

    run(main)


def test_what_is_not_settled_goes_back(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish_many(range(5), queue.name)
            async with connection.consume(queue) as messages:
                first = await messages.next()
                second = await messages.next()
                await second.ack()
            with pytest.raises(exceptions.RecoverableConnectionError):
                await first.ack()
            await count(connection, queue, 4)

    run(main)


@pytest.mark.parametrize("on_error", ["requeue", "reject", "keep"])
def test_an_error_in_process_does_what_is_asked(place, on_error):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish(1, queue.name)
            async with connection.consume(queue) as messages:
                message = await messages.next()
                with pytest.raises(KeyError):
                    async with message.process(on_error):
                        raise KeyError
                assert message.acknowledged == (on_error != "keep")
                again = await messages.next(timeout=20 if on_error == "requeue" else 0.2)
                assert (again is not None) == (on_error == "requeue")
                if again is not None:
                    assert again.delivery_info["redelivered"]
                    await again.ack()

    run(main)


def test_settling_twice_is_refused(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish(1, queue.name)
            message = await connection.get(queue)
            await message.ack()
            for settle in (message.ack, message.reject, message.requeue):
                with pytest.raises(exceptions.MessageStateError):
                    await settle()
            assert await connection.get(queue) is None

    run(main)


def test_batches_are_full_or_due(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)

            async def numbers():
                for number in range(10):
                    yield number

            assert await connection.producer().publish_many(numbers(), queue.name) == 10
            got = []
            async with connection.consume(queue) as messages:
                async for batch in messages.batches(4, within=1):
                    got.append(batch.payloads)
                    await batch.ack()
                    if sum(map(len, got)) == 10:
                        break
            assert got == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
            assert connection.counters.acked == 10
            await count(connection, queue, 0)

    run(main)


def test_a_batch_of_a_producer_is_sent_together(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            async with connection.producer(routing_key=queue.name).batch(max_size=3) as batch:
                for number in range(4):
                    await batch.publish(number)
                assert len(batch) == 1
                await count(connection, queue, 3)
            async with connection.consume(queue) as messages:
                assert [(await messages.next(5)).payload for _ in range(4)] == [0, 1, 2, 3]
            with pytest.raises(exceptions.BatchPublishError) as caught:
                await connection.producer().publish_many([1, object(), 3], queue.name)
            assert [index for index, _ in caught.value.refused] == [1]

    run(main)


def test_without_acks_no_more_than_the_prefetch_count_is_out(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish_many(range(20), queue.name)
            async with connection.consume(queue, prefetch=5, no_ack=True) as messages:
                assert [(await messages.next(5)).payload for _ in range(3)] == [0, 1, 2]
            await count(connection, queue, 17)

    run(main)


def test_mandatory_messages_come_back_as_errors(place):
    async def main():
        async with place.connect() as connection:
            exchange = Exchange(place.name("nowhere"))
            with pytest.raises(exceptions.MessageReturned):
                await connection.producer(exchange).publish(1, "nobody", mandatory=True)
            await connection.producer(exchange).publish(1, "nobody")

    run(main)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
@pytest.mark.parametrize("verb", ["publish", "publish_many"])
def test_a_publisher_does_not_have_the_loop_to_itself(place, verb):
    async def main():
        async with place.connect() as connection:
            publish, others = getattr(connection.producer(), verb), asyncio.Event()
            await publish("x", "nowhere")  # all that waits only once
            asyncio.get_running_loop().call_soon(others.set)
            for _ in range(5000):
                if others.is_set():
                    return
                await publish("x", "nowhere")
            raise AssertionError("nothing else had its turn")

    run(main)


def test_an_unknown_exchange_harms_no_other_task(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            good, bad = connection.producer(), connection.producer(place.name("missing"), auto_declare=False)
            outcomes = await asyncio.gather(
                *(good.publish(number, queue.name) for number in range(20)),
                bad.publish(1, "x"),
                *(good.publish(number, queue.name) for number in range(20)),
                return_exceptions=True,
            )
            assert [type(each) for each in outcomes if each is not None] == [exceptions.NotFound]
            await count(connection, queue, 40)

    run(main)


def test_a_call_gets_its_own_reply(place):
    async def main():
        requests = Queue(place.name("requests"))
        async with place.connect() as connection:
            await connection.declare(requests)

            async def double(message):
                await connection.reply(message, message.payload * 2)

            stop = asyncio.Event()
            server = asyncio.create_task(connection.serve(requests, double, concurrency=5, stop=stop))
            calls = [connection.call(number, requests.name, timeout=20) for number in range(20)]
            replies = await asyncio.gather(*calls)
            assert [reply.payload for reply in replies] == [2 * number for number in range(20)]
            stop.set()
            await server

    run(main)


def test_serve_bounds_concurrency_and_ends_cleanly(place):
    async def main():
        queue = Queue(place.name("q"))
        running, most, done = 0, 0, []
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish_many(range(30), queue.name)
            stop, all_at_work = asyncio.Event(), asyncio.Event()

            async def handle(message):
                nonlocal running, most
                running += 1
                most = max(most, running)
                if running == 4:
                    all_at_work.set()
                await all_at_work.wait()
                await asyncio.sleep(0.001)
                running -= 1
                done.append(message.payload)
                if len(done) == 20:
                    stop.set()

            await connection.serve(queue, handle, concurrency=4, stop=stop)
            assert running == 0
            assert most == 4
            await count(connection, queue, 30 - len(done))

    run(main)


def test_serve_keeps_the_order_of_a_key(place):
    async def main():
        queue = Queue(place.name("q"))
        seen = {key: [] for key in range(3)}
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish_many([[n % 3, n] for n in range(30)], queue.name)
            stop = asyncio.Event()

            async def handle(message):
                key, number = message.payload
                await asyncio.sleep(0.003 if number % 2 else 0)
                seen[key].append(number)
                if sum(map(len, seen.values())) == 30:
                    stop.set()

            await connection.serve(queue, handle, concurrency=8, key=lambda message: message.payload[0], stop=stop)
            assert seen == {key: list(range(key, 30, 3)) for key in range(3)}
            assert connection.counters.acked == 30

    run(main)


def test_serve_goes_on_after_an_error(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish_many(range(4), queue.name)
            stop, seen = asyncio.Event(), []

            async def handle(message):
                seen.append(message.payload)
                if len(seen) == 4:
                    stop.set()
                raise KeyError(message.payload)

            await connection.serve(queue, handle, concurrency=1, on_error="reject", stop=stop)
            assert seen == [0, 1, 2, 3]
            assert connection.counters.rejected == 4

    run(main)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_serve_ends_on_a_signal_and_puts_the_handler_back(place):
    before = signal.getsignal(signal.SIGUSR1)

    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish(1, queue.name)

            async def handle(message):
                os.kill(os.getpid(), signal.SIGUSR1)
                await asyncio.sleep(0.01)

            await connection.serve(queue, handle, signals=[signal.SIGUSR1])
            assert connection.counters.acked == 1

    run(main)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_poison_messages_go_to_the_dead_letters(place):
    async def main():
        arguments = {"x-queue-type": "quorum"} if place.kind == "amqp" else None
        queue, dead = Queue(place.name("q"), queue_arguments=arguments), Queue(place.name("dead"))
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer().publish({"n": 1}, queue.name)
            counts = []
            async with connection.consume(queue, max_deliveries=3, dead_letter=dead) as messages:
                for _ in range(3):
                    message = await messages.next(10)
                    counts.append(message.delivery_count)
                    await message.requeue()
                letters = []

                async def is_buried():
                    assert await messages.next(0.5) is None
                    letters.append(await connection.get(dead))
                    return letters[-1] is not None

                await soon(is_buried)
            assert counts == [0, 1, 2]
            assert letters[-1].headers["x-poison-queue"] == queue.name
            await letters[-1].ack()
            await connection.delete(queue)

    run(main)


class Witness(Hook):
    """Writes down what it sees, and marks what is published."""

    def __init__(self):
        self.seen = []

    def publish(self, outgoing):
        outgoing.headers["mark"] = "hook"
        self.seen.append(("publish", outgoing.routing_key))
        return super().publish(outgoing)

    def publish_many(self, outgoing):
        self.seen.append(("publish_many", len(outgoing)))
        return super().publish_many(outgoing)

    def consume(self, message, queue):
        self.seen.append(("consume", queue))
        return super().consume(message, queue)

    def get(self, message, queue):
        self.seen.append(("get", queue))


def test_hooks_are_around_publishing_and_processing(place):
    async def main():
        queue, witness = Queue(place.name("q")), Witness()
        async with place.connect() as connection:
            connection.add_hook(witness)
            await connection.declare(queue)
            producer = connection.producer()
            await producer.publish(1, queue.name)
            await producer.publish_many([2], queue.name)
            async with connection.consume(queue, prefetch=1) as messages:
                message = await messages.next(5)
                assert message.headers == {"mark": "hook"}
                async with message.process():
                    pass

            async def fetched():
                message = await connection.get(queue, no_ack=True)
                return message is not None

            await soon(fetched)
        name = queue.name
        assert witness.seen == [("publish", name), ("publish_many", 1), ("consume", name), ("get", name)]

    run(main)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_synchronous_connection_gives_its_settings(place):
    given = Connection("memory://", transport_options={"read_timeout": 7})
    hook = Witness()
    given.add_hook(hook)

    async def main():
        async with aio.Connection.of(given) as connection:
            assert connection.as_uri() == given.as_uri()
            assert connection.session.waits.timeout == 7
            assert list(connection.hooks) == [hook]
            name = place.name("shared")
            with given.SimpleQueue(name) as queue:
                await connection.producer().publish({"a": 1}, name)
                message = queue.get(timeout=5)
                assert message.payload == {"a": 1}
                message.ack()

    run(main)
    given.release()


def test_a_connection_of_a_synchronous_one_is_of_the_class_that_was_asked():
    class Shop(aio.Connection):
        pass

    given = Connection("memory://", transport_options={"read_timeout": 7})
    connection = Shop.of(given)
    assert type(connection) is Shop
    assert connection.as_uri() == given.as_uri()
    assert connection.session.waits.timeout == 7


@pytest.mark.parametrize("place", ["memory"], indirect=True)
@pytest.mark.parametrize("arguments", [{}, {"priority": 1}], ids=["none", "some"])
def test_a_producers_class_may_make_its_messages(place, arguments):
    class Signing(aio.Producer):
        def make(self, body, routing_key=None, **arguments):
            return super().make({**body, "signed": True}, routing_key, **arguments)

    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            await connection.declare(queue)
            producer = Signing(connection, None, queue.name, None, None, True, True)
            await producer.publish({"id": 1}, **arguments)
            await producer.publish_many([{"id": 2}], **arguments)
            async with producer.batch() as batch:
                await batch.publish({"id": 3}, **arguments)
            messages = [await connection.get(queue) for _ in range(3)]
            assert [message.payload for message in messages] == [{"id": n, "signed": True} for n in (1, 2, 3)]

    run(main)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_producers_class_and_its_objects_may_have_defaults_of_their_own(place):
    class Terse(aio.Producer):
        serializer = "yaml"

    async def main():
        first, second = Queue(place.name("first")), Queue(place.name("second"))
        async with place.connect() as connection:
            await connection.declare(first)
            await connection.declare(second)
            producer = Terse(connection, None, first.name, None, None, True, True)
            await producer.publish({"id": 1})
            producer = connection.producer(routing_key=second.name)
            producer.routing_key, producer.serializer = first.name, "yaml"
            await producer.publish({"id": 2})
            for number in (1, 2):
                message = await connection.get(first, accept=["yaml"])
                assert (message.content_type, message.payload) == ("application/x-yaml", {"id": number})
            assert await connection.get(second) is None

    run(main)


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_prometheus_counts_it_too(place):
    registry = CollectorRegistry()
    CountersCollector(registry)

    async def main():
        name = place.name("q")
        async with place.connect(virtual_host=name) as connection:
            await connection.declare(Queue(name))
            await connection.producer().publish(1, name)
        samples = [sample for metric in registry.collect() for sample in metric.samples]
        (published,) = [
            each for each in samples if each.name == "kombulite_published_total" and name in str(each.labels)
        ]
        assert published.value == 1

    run(main)


def test_states_are_told(place):
    async def main():
        connection = place.connect()
        seen = []

        async def watch():
            async for state in connection.states():
                seen.append(state)
                if len(seen) == 4:
                    break

        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0)
        async with connection:
            await asyncio.sleep(0)
        await asyncio.wait_for(watcher, 10)
        assert seen == [State.CLOSED, State.CONNECTING, State.OPEN, State.CLOSED]

    run(main)
