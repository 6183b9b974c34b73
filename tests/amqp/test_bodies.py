"""Bodies of every size, with and without confirms, one by one and many at once."""

from __future__ import annotations

import os

import pytest

from kombulite import Consumer, Producer

FRAME_MAX = 131072  # what RabbitMQ proposes
FULL = FRAME_MAX - 8  # octets of a body that fit into a frame
SIZES = [0, 1, 2, *(times * FULL + by for times in (1, 2) for by in (-1, 0, 1, 8)), FRAME_MAX, 3 * FULL + 5]
PATTERN = os.urandom(4096)


def body_of(size):
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


@pytest.fixture(params=[False, True], ids=["unconfirmed", "confirmed"])
def producing(request, connect):
    return connect(transport_options={"confirm_publish": request.param})


def one_by_one(producer, bodies, **options):
    for body in bodies:
        producer.publish(body, **options)


def many(producer, bodies, **options):
    assert producer.publish_many(bodies, **options) == len(bodies)


def batch(producer, bodies, **options):
    with producer.batch():
        one_by_one(producer, bodies, **options)


@pytest.mark.parametrize("send", [one_by_one, many, batch])
def test_sizes_around_the_frame(producing, connection, queue, send):
    bodies = [body_of(size) for size in SIZES]
    send(Producer(producing), bodies, routing_key=queue.name, serializer="raw")
    received = []
    with Consumer(connection, queue, on_message=lambda message: (received.append(message.body), message.ack())):
        while len(received) < len(bodies):
            connection.drain_events(timeout=30)
    assert received == bodies


@pytest.mark.parametrize("factor", [1, 2])
def test_small_frames(connect, name, broker_version, factor):
    """The smallest that the broker agrees to, and twice that."""
    frame_max = factor * (8192 if broker_version >= (4,) else 4096)
    connection = connect(transport_options={"frame_max": frame_max})
    channel = connection.channel()
    queue = channel.queue_declare(name("small"), exclusive=True).queue
    for size in (frame_max - 9, frame_max - 8, frame_max - 7, 10 * frame_max):
        Producer(channel).publish(body_of(size), routing_key=queue, serializer="raw")
        message = channel.basic_get(queue, no_ack=True)
        assert message.body == body_of(size)


@pytest.mark.parametrize("send", [one_by_one, many, batch])
def test_large_body(producing, connection, queue, send, broker_version):
    """Of 64 MiB, or the 16 MiB that are the most for RabbitMQ 4 by default."""
    body = body_of((16 if broker_version >= (4,) else 64) * 1024 * 1024)
    send(Producer(producing), [body], routing_key=queue.name, serializer="raw")
    received = []
    with Consumer(connection, queue, no_ack=True, on_message=lambda message: received.append(message.body)):
        while not received:
            connection.drain_events(timeout=60)
    assert received[0] == body


def test_more_messages_than_the_window(confirming, channel, queue):
    producer = Producer(confirming)
    with producer.batch(max_size=20_000):
        for number in range(10_000):
            producer.publish(b"%d" % number, routing_key=queue.name, serializer="raw", delivery_mode=1)
    assert queue.queue_declare(passive=True).message_count == 10_000
    for number in range(100):
        assert queue.get(no_ack=True).body == b"%d" % number
