"""The core's hot paths and the two that every message takes, each as work that can be counted.

``python -m bench.hot_paths NAME...`` is the program that ``bench.instructions`` runs under callgrind: it does each path
once for warmth, then ``REPEATS`` and twice ``REPEATS`` times; before and after each it calls ``os.getppid``, on which
callgrind writes down what it counted.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from itertools import cycle, repeat
from math import inf
from time import monotonic
from types import SimpleNamespace

import kombulite
from bench.adapted import mock
from kombulite import Connection, Consumer, Exchange, Producer, Queue, aio
from kombulite._core import (
    JSON,
    Delivery,
    EnvelopeReader,
    EnvelopeTemplate,
    FrameDecoder,
    FrameEncoder,
    FramePublish,
    FrameWriter,
    ListPush,
    PriorityNaming,
    Properties,
    RoutingTable,
    TagSequence,
    decode_envelope,
    pack_command,
)
from kombulite.utils import json
from kombulite.utils.locks import Lock

REPEATS = 100

VALUE = {"id": 184467, "type": "order.created", "amount": 129.95, "currency": "EUR", "items": [3, None, True, "\u00e9"]}
TEXT = json.dumps(VALUE)
PROPERTIES = Properties("application/json", "utf-8", {"trace": "abc", "retries": 3}, 2, 0, correlation_id="c-20817")
ID = "c0d567d2-d236-4ff5-8b58-81008c869594"
HEADERS = {
    "lang": "py",
    "task": "shop.tasks.add",
    "id": ID,
    "eta": None,
    "retries": 0,
    "timelimit": [None, None],
    "root_id": ID,
    "parent_id": None,
    "argsrepr": "(2, 2)",
    "kwargsrepr": "{}",
    "origin": "gen1@host",
    "ignore_result": False,
    "stamps": {},
}
PLACE = ("orders", "order.eu.created")

Work = Callable[[int], None]  # does something so many times


def repeated(call: Callable[[], object]) -> Work:
    def work(times: int) -> None:
        for _ in repeat(None, times):
            call()

    return work


def dumps() -> Work:
    return repeated(lambda: json.dumps(VALUE))


def loads() -> Work:
    return repeated(lambda: json.loads(TEXT))


def envelope_encode() -> Work:
    template = EnvelopeTemplate(JSON(), *PLACE, PROPERTIES)
    return repeated(lambda: template.encode(TEXT, "c0d567d2-d236-4ff5-8b58-81008c869594"))


def envelope_decode() -> Work:
    codec = JSON()
    data = EnvelopeTemplate(codec, *PLACE, PROPERTIES).encode(TEXT, "c0d567d2-d236-4ff5-8b58-81008c869594")
    return repeated(lambda: decode_envelope(codec, data))


def envelope_read() -> Work:
    """Like the one before it from that place."""
    reader = EnvelopeReader(JSON())
    data = EnvelopeTemplate(JSON(), *PLACE, PROPERTIES).encode(TEXT, "c0d567d2-d236-4ff5-8b58-81008c869594")
    return repeated(lambda: reader.read("orders", data))


def redis_push() -> Work:
    """From a message to the command that puts it into a list."""
    push, template, tags = ListPush("orders"), EnvelopeTemplate(JSON(), *PLACE, PROPERTIES), TagSequence()
    delivery = Delivery(*PLACE, PROPERTIES, TEXT.encode())
    return repeated(lambda: push.pack(template, tags, (delivery,)))


def redis_ack() -> Work:
    """From a tag to the command that strikes a lease."""
    tag = "kl3600.000-0f3d2b1c9a8e7d6c5b4a-10000000001"
    return repeated(lambda: pack_command(("ZREM", "unacked_index", tag)))


def frame_encode() -> Work:
    encoder, delivery = FrameEncoder(), Delivery(*PLACE, PROPERTIES, TEXT.encode())
    return repeated(lambda: encoder.publish(1, delivery))


def frame_publish() -> Work:
    """Through the step of AMQP's transport, to a socket that takes all."""
    stream = SimpleNamespace(failure=None, answers=(), held=None, corked=False, heartbeat=SimpleNamespace(writes=0))
    writer = FrameWriter(lambda data, flags: len(data), None, (BlockingIOError,))
    transport, protocol = SimpleNamespace(look_at=inf), SimpleNamespace(blocked=None)
    channel, delivery = SimpleNamespace(closing=False, confirms=None), Delivery(*PLACE, PROPERTIES, TEXT.encode())
    parts = transport, protocol, channel, stream, Lock(), FrameEncoder(), writer, {delivery.exchange}
    step = FramePublish(not_reached, monotonic, *parts)
    return repeated(lambda: step.publish(1, delivery))


def not_reached(*arguments: object) -> None:
    raise AssertionError(arguments)


def frame_decode() -> Work:
    sent = FrameEncoder().publish(1, Delivery(*PLACE, PROPERTIES, TEXT.encode()))
    content = sent[8 + int.from_bytes(sent[3:7], "big") :]  # behind the method, which is another in this direction
    names = b"".join(bytes([len(text)]) + text.encode() for text in PLACE)
    deliver = b"\x00\x3c\x00\x3c\x02ct" + (1).to_bytes(8, "big") + b"\x00" + names
    stream = b"\x01\x00\x01" + len(deliver).to_bytes(4, "big") + deliver + b"\xce" + content
    decoder = FrameDecoder()
    decoder.open(1)

    def receive() -> None:
        decoder.receive_data(stream)
        assert decoder.next_event() is not None

    return repeated(receive)


def route_direct() -> Work:
    table = RoutingTable()
    table.declare("orders", "direct")
    for number in range(100):
        table.bind("orders", f"q{number}", f"key.{number}")
    return repeated(lambda: table.route("orders", "key.42"))


def route_topic() -> Work:
    """By keys that come too seldom to be remembered."""
    table = RoutingTable()
    table.declare("orders", "topic")
    for number, pattern in enumerate(("order.*.created", "order.#", "stock.*", "*.us.*", "invoice.#.paid") * 20):
        table.bind("orders", f"q{number}", f"{pattern}.x{number}" if number % 5 else pattern)
    keys = cycle([f"order.{number}.created" for number in range(2000)])
    return repeated(lambda: table.route("orders", next(keys)))


def priority_key() -> Work:
    naming = PriorityNaming()
    return repeated(lambda: naming.key("orders", 7))


def memory() -> tuple[Producer, Queue]:
    exchange = Exchange("orders", "direct")
    queue = Queue("orders", exchange, "order")
    channel = Connection("memory://counted").channel()
    producer = Producer(channel, exchange, "order", serializer="json")
    bound = queue(channel)
    bound.declare()
    bound.purge()  # of what another path has left: a round trip would count that
    return producer, bound


def memory_publish() -> Work:
    producer, _ = memory()
    return repeated(lambda: producer.publish(VALUE))


def memory_publish_task() -> Work:
    """With what Celery and remote calls send: headers, ``correlation_id``, ``reply_to``."""
    producer, _ = memory()
    return repeated(lambda: producer.publish(VALUE, headers=HEADERS, correlation_id=ID, reply_to="replies"))


def foreign_publish() -> Work:
    """Through the adapter, to a transport of a few lines that was written for kombu and does nothing."""
    return mock(kombulite)


def memory_round_trip() -> Work:
    """Publish, consume, acknowledge."""
    producer, queue = memory()
    got = 0

    def callback(body: object, message: object) -> None:
        nonlocal got
        got += 1
        message.ack()  # type: ignore[attr-defined]

    consumer = Consumer(queue.channel, [queue], callbacks=[callback])
    consumer.qos(prefetch_count=1000)
    consumer.consume()
    connection = queue.channel.connection

    def work(times: int) -> None:
        nonlocal got
        got = 0
        for _ in repeat(None, times):
            producer.publish(VALUE)
        while got < times:
            connection.client.drain_events(timeout=10)

    return work


def aio_round_trip() -> Work:
    """Publish, consume, decode, acknowledge on an event loop."""
    connection = aio.connect("memory://counted-aio")
    queue = Queue("orders")
    producer = connection.producer(routing_key="orders")

    async def produce(times: int) -> None:
        for _ in repeat(None, times):
            await producer.publish(VALUE)

    async def consume(times: int) -> None:
        async with connection.consume(queue, prefetch=1000) as messages:
            async for message in messages:
                assert message.payload is not None
                await message.ack()
                times -= 1
                if not times:
                    return

    async def hand_over(times: int) -> None:
        async with connection:
            await asyncio.gather(produce(times), consume(times))

    def work(times: int) -> None:
        asyncio.run(hand_over(times))

    return work


PATHS: dict[str, Callable[[], Work]] = {
    made.__name__: made
    for made in (
        dumps,
        loads,
        envelope_encode,
        envelope_decode,
        envelope_read,
        redis_push,
        redis_ack,
        frame_encode,
        frame_publish,
        frame_decode,
        route_direct,
        route_topic,
        priority_key,
        memory_publish,
        memory_publish_task,
        foreign_publish,
        memory_round_trip,
        aio_round_trip,
    )
}


def main(names: list[str]) -> None:
    for name in names:
        work = PATHS[name]()
        work(REPEATS)
        gc.collect()
        gc.disable()  # it would come now and then
        for times in (REPEATS, 2 * REPEATS):
            os.getppid()
            work(times)
            os.getppid()
        gc.enable()


if __name__ == "__main__":
    main(sys.argv[1:])
