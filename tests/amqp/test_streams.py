"""Streams: consumers that leave them, and that come back."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kombulite import Connection, Consumer, Exchange, Queue, Stream
from kombulite.contrib.stream_offsets import OffsetFile, OffsetQueue
from kombulite.exceptions import ResourceLocked
from kombulite.mixins import ConsumerMixin

MESSAGES = 50
TIMEOUT = 20.0  # seconds


@pytest.fixture
def stream(name: Callable[[str], str], channel: Any, confirming: Connection) -> Iterator[Queue]:
    """A stream with the numbers from 0 on, each at its own offset."""
    stream = Queue(name("stream"), queue_arguments={"x-queue-type": "stream"})
    stream(channel).declare()
    add(confirming, stream, 0)
    yield stream
    with suppress(Exception):
        stream(confirming.channel()).delete()


def add(connection: Connection, stream: Queue, first: int) -> None:
    connection.Producer().publish_many(range(first, first + MESSAGES), routing_key=stream.name)


def consumer_of(channel: Any, stream: Queue, offset: Any, receive: Callable[[Any], Any], **options: Any) -> Consumer:
    arguments = {} if offset is None else {"x-stream-offset": offset}
    queue = Queue(stream.name, queue_arguments=stream.queue_arguments, consumer_arguments=arguments)
    return Consumer(channel, queue, on_message=receive, **{"prefetch_count": 20, **options})


def test_the_offset_can_be_read_on_the_message(connection: Connection, stream: Queue) -> None:
    offsets: list[int | None] = []

    def receive(message: Any) -> None:
        offsets.append(message.stream_offset)
        message.ack()

    with consumer_of(connection.channel(), stream, "first", receive):
        while len(offsets) < MESSAGES:
            connection.drain_events(timeout=TIMEOUT)
    assert offsets == list(range(MESSAGES))


def test_headers_that_a_stream_loses(
    confirming: Connection, name: Callable[[str], str], broker_version: tuple[int, ...]
) -> None:
    stream = Queue(name("stream"), kind=Stream(offset="first"))
    stream(confirming.channel()).declare()
    headers = {"list": [1], "dict": {"a": 1}, "x-dict": {"a": 1}, "bytes": b"\xff", "none": None, "number": 2**40}
    confirming.Producer().publish("x", routing_key=stream.name, headers=headers, reply_to="r" * 248)
    received: list[Any] = []
    with Consumer(confirming, stream, on_message=received.append, prefetch_count=1):
        confirming.drain_events(timeout=TIMEOUT)
    (message,) = received
    lost = {"list", "dict"} if broker_version >= (4,) else {"list", "dict", "x-dict"}
    assert message.headers == {
        "x-stream-offset": 0,
        **{key: value for key, value in headers.items() if key not in lost},
    }
    assert message.properties.get("reply_to") == (None if broker_version >= (4,) else "r" * 248)
    stream(confirming.channel()).delete()


@pytest.mark.parametrize("end", ["cancel", "close the channel", "release"])
def test_leaving_a_stream_early_ends_nothing_else(
    connection: Connection, connect: Callable[..., Connection], stream: Queue, end: str
) -> None:
    other = connect()
    channel = other.channel()
    consumer = consumer_of(channel, stream, "first", lambda message: None)
    consumer.consume()
    other.drain_events(timeout=TIMEOUT)  # the others have come, or are in flight
    if end == "cancel":
        consumer.cancel()
    if end != "release":
        channel.close()
        assert other.channel().queue_declare(stream.name, passive=True) is not None  # the connection is open still
    other.release()


@pytest.mark.parametrize("end", ["cancel", "close the channel"])
def test_a_channel_with_a_stream_and_a_queue(
    connection: Connection, name: Callable[[str], str], stream: Queue, end: str
) -> None:
    queue = Queue(name("queue"))(connection.channel())
    queue.declare()
    connection.Producer().publish_many(range(MESSAGES), routing_key=queue.name)
    channel = connection.channel()
    consumer = consumer_of(channel, stream, "first", lambda message: None)
    consumer.add_queue(queue)
    consumer.consume()
    connection.drain_events(timeout=TIMEOUT)
    if end == "cancel":
        consumer.cancel()
    channel.close()
    assert connection.counters.reconnects == 0
    seen: set[int] = set()

    def receive(message: Any) -> None:
        seen.add(message.payload)
        message.ack()

    with Consumer(connection.channel(), queue, on_message=receive):
        while len(seen) < MESSAGES:
            connection.drain_events(timeout=TIMEOUT)
    queue.delete()


# --- coming back


def cut(connection: Connection) -> None:
    """End the TCP connection, as a network does."""
    connection.transport._opened().stream._shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]


class Reader:
    """A consumer that notes what it gets, and acknowledges it, or some of it."""

    def __init__(self, acknowledges: Callable[[int], bool] = lambda body: True) -> None:
        self.bodies: list[int] = []
        self._acknowledges = acknowledges

    def __call__(self, message: Any) -> None:
        self.bodies.append(message.payload)
        if self._acknowledges(message.payload):
            message.ack()

    def wait(self, connection: Connection, last: int) -> None:
        """Drain until this body has come; a lost connection comes back, as the documentation's loop has it."""
        deadline = time.monotonic() + TIMEOUT
        while not self.bodies or self.bodies[-1] != last:
            assert time.monotonic() < deadline, self.bodies
            with suppress(TimeoutError, *connection.recoverable_connection_errors):
                connection.drain_events(timeout=0.5)


@pytest.mark.parametrize("offset", ["first", 0, 10, "next", None])
def test_a_consumer_that_comes_back_goes_on_behind_what_it_acknowledged(
    confirming: Connection, connect: Callable[..., Connection], stream: Queue, offset: Any
) -> None:
    connection, reader = connect(), Reader()
    consumer_of(connection.channel(), stream, offset, reader).consume()
    first = {"first": 0, 0: 0, 10: 10}.get(offset, MESSAGES)
    if first == MESSAGES:
        add(confirming, stream, MESSAGES)
    reader.wait(connection, MESSAGES - 1 if first < MESSAGES else 2 * MESSAGES - 1)
    for round in (2, 3):
        cut(connection)
        add(confirming, stream, round * MESSAGES)  # while it is away
        reader.wait(connection, (round + 1) * MESSAGES - 1)
    before = range(MESSAGES, 2 * MESSAGES) if first == MESSAGES else range(first, MESSAGES)
    assert reader.bodies == [*before, *range(2 * MESSAGES, 4 * MESSAGES)]


def test_what_was_not_acknowledged_comes_again(
    confirming: Connection, connect: Callable[..., Connection], stream: Queue
) -> None:
    connection, reader = connect(), Reader(lambda body: body != MESSAGES - 5)
    consumer_of(connection.channel(), stream, "first", reader).consume()
    reader.wait(connection, MESSAGES - 1)
    cut(connection)
    add(confirming, stream, MESSAGES)
    reader.wait(connection, 2 * MESSAGES - 1)
    assert reader.bodies == [*range(MESSAGES), *range(MESSAGES - 5, 2 * MESSAGES)]


def test_one_that_has_had_nothing_yet_gets_what_comes_meanwhile(
    confirming: Connection, connect: Callable[..., Connection], stream: Queue
) -> None:
    connection, reader = connect(), Reader()
    consumer_of(connection.channel(), stream, "next", reader).consume()
    cut(connection)
    add(confirming, stream, MESSAGES)
    reader.wait(connection, 2 * MESSAGES - 1)
    assert reader.bodies[-MESSAGES:] == list(range(MESSAGES, 2 * MESSAGES))


def test_revive_goes_on_where_the_consumer_was(
    confirming: Connection, connect: Callable[..., Connection], stream: Queue
) -> None:
    connection, reader = connect(), Reader()
    consumer = consumer_of(connection.channel(), stream, "first", reader)
    consumer.consume()
    reader.wait(connection, MESSAGES - 1)
    assert consumer.stream_offsets == {stream.name: MESSAGES}
    add(confirming, stream, MESSAGES)
    consumer.revive(connect().channel())
    reader.wait(consumer.channel.connection, 2 * MESSAGES - 1)
    assert reader.bodies == list(range(2 * MESSAGES))


def test_a_consumer_mixin_goes_on_where_it_was(
    confirming: Connection, connect: Callable[..., Connection], stream: Queue
) -> None:
    reader = Reader()

    class Program(ConsumerMixin):
        connection = connect()

        def get_consumers(self, Consumer: Any, channel: Any) -> Any:
            return [consumer_of(channel, stream, "first", self.receive)]

        def receive(self, message: Any) -> None:
            reader(message)
            if reader.bodies[-1] == MESSAGES - 1:
                add(confirming, stream, MESSAGES)
                cut(message.channel.connection)
            self.should_stop = reader.bodies[-1] == 2 * MESSAGES - 1

    Program().run()
    assert reader.bodies[:MESSAGES] == list(range(MESSAGES))
    assert sorted(set(reader.bodies)) == list(range(2 * MESSAGES))  # one whose ack was cut off comes again


@pytest.mark.parametrize("kind", ["file", "queue"])
def test_offsets_are_kept_for_the_next_program(
    confirming: Connection, connect: Callable[..., Connection], stream: Queue, tmp_path: Path, kind: str
) -> None:
    place = f"{stream.name}.offsets"

    def store() -> Any:
        return OffsetFile(tmp_path / "offsets") if kind == "file" else OffsetQueue(connect(), place)

    reader = Reader()
    for round in (1, 2, 3):
        connection = connect()
        with consumer_of(connection.channel(), stream, "first", reader, offsets=store()):
            reader.wait(connection, round * MESSAGES - 1)
        connection.release()
        add(confirming, stream, round * MESSAGES)
    assert reader.bodies == list(range(3 * MESSAGES))
    assert store().load() == {stream.name: 3 * MESSAGES}
    confirming.channel().queue_delete(place)


@pytest.mark.parametrize("text", ["[]", '{"s": -1}', '{"s": "1"}', "no JSON"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "offsets"
    path.write_text(text)
    with pytest.raises(ValueError):
        OffsetFile(path).load()


# --- super streams: a program reads the partitions that it has locked, each by an exclusive queue

PARTITIONS = 3


@pytest.fixture
def super_stream(name: Callable[[str], str], channel: Any) -> Iterator[Exchange]:
    """An exchange and its partitions, as RabbitMQ's own clients lay them out."""
    exchange = Exchange(name("invoices"), "direct", arguments={"x-super-stream": True})
    partitions = [
        Queue(
            f"{exchange.name}-{number}",
            exchange,
            routing_key=str(number),
            binding_arguments={"x-stream-partition-order": number},
            kind=Stream(),
        )
        for number in range(PARTITIONS)
    ]
    for each in partitions:
        each(channel).declare()
    yield exchange
    for each in partitions:
        channel.queue_delete(each.name)
        channel.queue_delete(f"{each.name}.offsets")
    exchange(channel).delete()


def publish_to(exchange: Exchange, confirming: Connection, first: int) -> None:
    """Publish numbers, each to the partition that is its rest."""
    for number in range(first, first + MESSAGES):
        confirming.Producer(exchange=exchange).publish(number, routing_key=str(number % PARTITIONS))


class PartitionReader:
    """A program that reads those partitions of a super stream that no other one reads."""

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        self.connection = connection
        self.bodies: dict[str, list[int]] = {}
        self.consumers: list[Consumer] = []
        self._names = [f"{exchange.name}-{number}" for number in range(PARTITIONS)]

    def try_lock(self, name: str) -> bool:
        """Become the one reader of a partition, for as long as the connection lives."""
        try:
            Queue(f"{name}.reader", exclusive=True)(self.connection.channel()).declare()
        except ResourceLocked:
            return False
        return True

    def start(self) -> list[str]:
        """Consume the partitions that are free; returns their names."""
        free = [name for name in self._names if name not in self.bodies and self.try_lock(name)]
        for name in free:
            bodies = self.bodies[name] = []
            stream = Queue(name, no_declare=True, kind=Stream(offset="first"))
            consumer = Consumer(
                self.connection.channel(),
                stream,
                on_message=lambda message, bodies=bodies: (bodies.append(message.payload), message.ack()),
                prefetch_count=10,
                offsets=OffsetQueue(self.connection, f"{name}.offsets"),
            )
            consumer.consume()
            self.consumers.append(consumer)
        return free

    def end(self) -> None:
        """Cancel the consumers, which saves the offsets, and unlock."""
        for consumer in self.consumers:
            consumer.cancel()
        self.connection.release()

    def wait(self, number: int) -> None:
        """Drain until so many messages have come."""
        deadline = time.monotonic() + TIMEOUT
        while sum(map(len, self.bodies.values())) < number:
            assert time.monotonic() < deadline, self.bodies
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=0.5)


def test_one_program_reads_a_partition_and_the_next_goes_on_where_it_was(
    super_stream: Exchange, confirming: Connection, connect: Callable[..., Connection]
) -> None:
    publish_to(super_stream, confirming, 0)
    first, second = (PartitionReader(connect(), super_stream) for _ in range(2))
    assert len(first.start()) == PARTITIONS
    assert second.start() == []
    first.wait(MESSAGES)
    first.end()
    publish_to(super_stream, confirming, MESSAGES)
    assert len(second.start()) == PARTITIONS
    second.wait(MESSAGES)
    for reader, start in ((first, 0), (second, MESSAGES)):
        for number, name in enumerate(sorted(reader.bodies)):
            expected = [each for each in range(start, start + MESSAGES) if each % PARTITIONS == number]
            assert reader.bodies[name] == expected


def test_a_program_that_lost_its_lock_reads_no_more_when_it_comes_back(
    super_stream: Exchange, confirming: Connection, connect: Callable[..., Connection]
) -> None:
    first, second = (PartitionReader(connect(), super_stream) for _ in range(2))
    first.start()
    cut(first.connection)
    deadline = time.monotonic() + TIMEOUT
    while len(second.bodies) < PARTITIONS:  # the broker unlocks one after the other
        assert time.monotonic() < deadline
        second.start()
    publish_to(super_stream, confirming, 0)
    error = ""
    while "RESOURCE_LOCKED" not in error:  # the first one is that the connection is lost
        assert time.monotonic() < deadline
        with pytest.raises(first.connection.recoverable_connection_errors) as caught:
            first.connection.drain_events(timeout=TIMEOUT)
        error = str(caught.value)
    second.wait(MESSAGES)
    assert not any(first.bodies.values())
