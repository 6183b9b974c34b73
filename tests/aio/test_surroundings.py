"""The asynchronous facade in other surroundings: uvloop, OpenTelemetry, transports that others wrote for kombu."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kombulite import Exchange, Queue, aio
from kombulite.contrib.opentelemetry import OpenTelemetryHook
from tests.aio.conftest import KombuStyle, run


def test_it_runs_on_uvloop(place):
    uvloop = pytest.importorskip("uvloop")

    async def main():
        queue, handled = Queue(place.name("q")), []
        async with place.connect() as connection:
            await connection.declare(queue)
            producer = connection.producer()
            await asyncio.gather(*(producer.publish(n, queue.name) for n in range(200)))
            assert await producer.publish_many(range(200, 250), queue.name) == 50
            stop = asyncio.Event()

            async def handle(message):
                handled.append(message.payload)
                if len(handled) == 250:
                    stop.set()

            await asyncio.wait_for(connection.serve(queue, handle, concurrency=20, stop=stop), 30)
            assert await connection.get(queue) is None
        assert sorted(handled) == list(range(250))
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left
        return type(asyncio.get_running_loop()).__module__

    loop = uvloop.new_event_loop()
    try:
        assert loop.run_until_complete(main()).startswith("uvloop")
    finally:
        loop.close()


def test_spans_follow_a_message_through_the_loop(place):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            connection.add_hook(OpenTelemetryHook(tracer_provider=provider))
            await connection.declare(queue)
            await connection.producer().publish({"a": 1}, queue.name)
            async with connection.consume(queue) as messages:
                async with (await messages.next(timeout=20)).process() as message:
                    assert "traceparent" in message.headers

    run(main)
    published, processed = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time)[:2]
    assert published.kind.name == "PRODUCER"
    assert processed.kind.name == "CONSUMER"
    links = [link.context.span_id for link in processed.links]
    parents = [] if processed.parent is None else [processed.parent.span_id]
    assert published.context.span_id in links + parents


def test_every_argument_of_publish_travels(place):
    async def main():
        exchange = Exchange(place.name("e"), "topic")
        queue = Queue(place.name("q"), exchange, "key.#")
        async with place.connect() as connection:
            await connection.declare(queue)
            await connection.producer(exchange).publish(
                {"n": 1},
                "key.word",
                priority=3,
                serializer="json",
                headers={"color": "red"},
                compression="zlib",
                expiration=60,
                delivery_mode=2,
                correlation_id="c-1",
                reply_to=Queue("answers"),
                message_id="m-1",
                mandatory=True,
                declare=[queue],
                timeout=20,
                retry=True,
                retry_policy={"max_retries": 2},
            )
            first = await connection.get(queue, no_ack=True)
            raw = {"content_type": "text/x", "content_encoding": "binary"}
            await connection.producer(exchange).publish(b"raw", "key.two", **raw)
            second = await connection.get(queue, no_ack=True)
        assert first.payload == {"n": 1}
        assert first.headers["color"] == "red"
        names = ("priority", "correlation_id", "reply_to", "message_id")
        assert [first.properties.get(name) for name in names] == [3, "c-1", "answers", "m-1"]
        assert first.delivery_info["routing_key"] == "key.word"
        assert (second.body, second.content_type) == (b"raw", "text/x")

    run(main)


def test_a_batch_keeps_mandatory_apart_and_declares(place):
    async def main():
        queue = Queue(place.name("q"))
        async with place.connect() as connection:
            async with connection.producer().batch() as batch:
                await batch.publish(1, queue.name, declare=[queue])
                await batch.publish(2, queue.name, mandatory=True)
                await batch.publish(3, queue.name)
                assert len(batch) == 3
            found = [(await connection.get(queue, no_ack=True)).payload for _ in range(3)]
            assert found == [1, 2, 3]

    run(main)


def test_publish_many_takes_what_comes_in_time(place):
    async def main():
        queue = Queue(place.name("q"))

        async def bodies():
            for n in range(2500):
                yield n

        async with place.connect() as connection:
            await connection.declare(queue)
            assert await connection.producer().publish_many(bodies(), queue.name) == 2500
            assert (await connection.status(queue)).message_count == 2500
            assert await connection.purge(queue) == 2500

    run(main)


def test_the_arguments_of_a_consumer_reach_transports_of_others():
    given = []

    class Channel(KombuStyle.Channel):
        def basic_consume(self, *args, **kwargs):
            given.append(kwargs["arguments"])
            return super().basic_consume(*args, **kwargs)

    class Transport(KombuStyle):
        pass

    Transport.Channel = Channel

    async def main():
        queue = Queue("of others", consumer_arguments={"x-priority": 5})
        async with aio.connect(transport=Transport) as connection:
            async with connection.consume(queue):
                pass
            await connection.delete(queue)

    run(main)
    assert given == [{"x-priority": 5}]
