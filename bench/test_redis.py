"""Redis, on a private server. Limits beside kombu: a raw socket, and redis-py's pipeline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import repeat
from types import ModuleType
from typing import Any

import kombu
import pytest
import redis

import kombulite
from bench.duel import ROUNDS, Side, duel
from bench.figure import Figure
from bench.workloads import (
    SMALL,
    Place,
    consuming,
    consuming_in_batches,
    publishing,
    publishing_in_batch,
    publishing_many,
    round_trips,
)
from tests.servers import RedisServer, Unavailable

MESSAGES = 2000
LIBRARIES = (kombulite, kombu)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    try:
        server = RedisServer()
    except Unavailable as error:
        pytest.skip(str(error))
    with server:
        yield server


def open_place(library: ModuleType, server: RedisServer, name: str, named: bool = True) -> Place:
    """A queue of that library's own, bound to an exchange or (not ``named``) reached by its name."""
    connection = library.Connection(server.url)
    channel = connection.channel()
    name = f"{name}.{library.__name__}"
    if named:
        exchange = library.Exchange(name)
        queue = library.Queue(name, exchange, "order.created")(channel)
        queue.declare()
        return Place(library, connection, queue, library.Producer(channel, exchange, "order.created"))
    queue = library.Queue(name)(channel)
    queue.declare()
    return Place(library, connection, queue, library.Producer(channel, routing_key=name))


def places(server: RedisServer, name: str, named: bool = True) -> tuple[Place, Place]:
    ours, theirs = (open_place(library, server, name, named) for library in LIBRARIES)
    return ours, theirs


def lpush(envelope: bytes) -> bytes:
    return b"*3\r\n$5\r\nLPUSH\r\n$3\r\nraw\r\n$%d\r\n%b\r\n" % (len(envelope), envelope)


def envelope_of(place: Place, server: RedisServer) -> bytes:
    """What a publish of that place writes."""
    place.producer.publish(SMALL)
    with redis.Redis(port=server.port) as client:
        envelope = client.lindex(place.queue.name, 0)
        assert isinstance(envelope, bytes)
        return envelope


def raw_round_trips(server: RedisServer, envelope: bytes) -> Side:
    """A bare LPUSH over a socket, and its reply; again and again."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    command, sendall, recv = lpush(envelope), connection.sendall, connection.recv

    def run(n: int) -> None:
        for _ in repeat(None, n):
            sendall(command)
            recv(4096)

    return Side(run, lambda n: clear(server))


def raw_pipeline(server: RedisServer, envelope: bytes) -> Side:
    """LPUSHes over a socket without waiting, a thousand at a time."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    command = lpush(envelope)

    def run(n: int) -> None:
        for start in range(0, n, 1000):
            count = min(1000, n - start)
            connection.sendall(command * count)
            left = count
            while left:
                left -= connection.recv(65536).count(b"\n")

    return Side(run, lambda n: clear(server))


def driver_pipeline(server: RedisServer, envelope: bytes) -> Side:
    """redis-py's pipeline, a thousand at a time."""
    client = redis.Redis(port=server.port)

    def run(n: int) -> None:
        for start in range(0, n, 1000):
            pipeline = client.pipeline(transaction=False)
            for _ in repeat(None, min(1000, n - start)):
                pipeline.lpush("raw", envelope)
            pipeline.execute()

    return Side(run, lambda n: clear(server))


def clear(server: RedisServer) -> None:
    with redis.Redis(port=server.port) as client:
        client.delete("raw")


# --- publishing


def test_publish(benchmark: Any, server: RedisServer) -> None:
    ours, theirs = places(server, "publish")
    duel(benchmark, "redis publish, direct exchange", publishing(ours), publishing(theirs), at_least=4)


def test_publish_beside_bare_lpush(benchmark: Any, server: RedisServer) -> None:
    ours = open_place(kombulite, server, "bare")
    raw = raw_round_trips(server, envelope_of(ours, server))
    duel(
        benchmark, "redis publish, beside a bare LPUSH", publishing(ours), raw,
        operations=MESSAGES, at_least=0.75, rival="raw socket",
    )  # fmt: skip


@pytest.mark.parametrize(("named", "at_least"), [(True, 40), (False, 4)], ids=["named", "default"])
def test_batch(benchmark: Any, server: RedisServer, named: bool, at_least: float) -> None:
    ours, theirs = places(server, "batch", named)
    work = f"redis batch() of 1,000, {'named' if named else 'default'} exchange"
    duel(
        benchmark, work, publishing_in_batch(ours), publishing_in_batch(theirs), operations=MESSAGES, at_least=at_least
    )


@pytest.mark.parametrize(
    ("limit", "rival", "at_least"), [(raw_pipeline, "raw socket", 0.5), (driver_pipeline, "redis-py", 2)]
)
def test_publish_many_beside_the_limits(
    benchmark: Any, server: RedisServer, limit: Any, rival: str, at_least: float
) -> None:
    ours = open_place(kombulite, server, limit.__name__)
    side = limit(server, envelope_of(ours, server))
    duel(
        benchmark, f"redis publish_many, beside {rival}'s pipeline", publishing_many(ours), side,
        operations=10 * MESSAGES, at_least=at_least, rival=rival,
    )  # fmt: skip


# --- consuming


def filled(side: Side, place: Place) -> Side:
    """The same with its queue filled in one go."""

    def prepare(n: int) -> None:
        place.queue.purge()
        fill(place, place.queue.name, n)

    return Side(side.run, prepare)


def fill(place: Place, name: str, n: int, priority: int = 0) -> None:
    producer = place.library.Producer(place.producer.channel, routing_key=name)
    with producer.batch():
        for _ in repeat(None, n):
            producer.publish(SMALL, priority=priority)


def test_consume(benchmark: Any, server: RedisServer) -> None:
    sides = [filled(consuming(place), place) for place in places(server, "consume")]
    duel(benchmark, "redis consume + decode + ack, prefetch 1000", *sides, operations=MESSAGES, at_least=30)


@pytest.mark.parametrize("library", LIBRARIES, ids=["one by one", "kombu"])
def test_consume_in_batches(benchmark: Any, server: RedisServer, library: ModuleType) -> None:
    ours, theirs = open_place(kombulite, server, "batches"), open_place(library, server, "singles")
    duel(
        benchmark, "redis on_batch of 100, decode + ack", filled(consuming_in_batches(ours), ours),
        filled(consuming(theirs), theirs), operations=MESSAGES, rival="one by one" if library is kombulite else "kombu",
    )  # fmt: skip


def test_consume_many_queues(benchmark: Any, server: RedisServer) -> None:
    """50 queues with messages of four priorities, beside one queue."""
    one = open_place(kombulite, server, "one")
    queues = [kombulite.Queue(f"many.{i}")(one.producer.channel) for i in range(50)]
    many = one._replace(queue=queues)

    def prepare(n: int) -> None:
        for i, queue in enumerate(queues):
            queue.purge()
            for priority in (0, 3, 6, 9):
                share = n // 200 + (i * 4 + priority // 3 < n % 200)
                fill(one, queue.name, share, priority)

    sides = Side(consuming(many).run, prepare), filled(consuming(one), one)
    duel(
        benchmark, "redis consume 50 queues x 4 priorities, beside one queue", *sides,
        operations=10_000, rounds=11, at_most=1.5, rival="one queue",
    )  # fmt: skip


def test_round_trip(benchmark: Any, server: RedisServer) -> None:
    ours, theirs = places(server, "trip")
    duel(benchmark, "redis publish, get, decode, ack", round_trips(ours), round_trips(theirs), at_least=4)


# --- idling


@pytest.mark.parametrize("consumers", [1, 100])
def test_idle_consumers(benchmark: Any, server: RedisServer, consumers: int) -> None:
    """How long a message waits for consumers that idle; what they ask meanwhile stands in the extra info."""
    place = open_place(kombulite, server, f"idle{consumers}")
    arrived: list[float] = []
    stop = threading.Event()
    ready = threading.Barrier(consumers + 1)

    def consume() -> None:
        def callback(body: Any, message: Any) -> None:
            arrived.append(time.perf_counter())
            message.ack()

        with (
            kombulite.Connection(server.url) as connection,
            kombulite.Consumer(connection.channel(), place.queue, callbacks=[callback], prefetch_count=1),
        ):
            ready.wait()
            while not stop.is_set():
                with suppress(TimeoutError):
                    connection.drain_events(timeout=5)

    threads = [threading.Thread(target=consume) for _ in range(consumers)]
    for thread in threads:
        thread.start()
    ready.wait()
    with redis.Redis(port=server.port) as client:
        time.sleep(2)
        before = client.info("stats")["total_commands_processed"]
        time.sleep(3)
        idle = (client.info("stats")["total_commands_processed"] - before - 1) / 3 / consumers
        waits: list[float] = []

        def publish() -> None:
            time.sleep(0.1)
            arrived.clear()
            start = time.perf_counter()
            place.producer.publish(SMALL)
            while not arrived:
                time.sleep(0.0002)
            waits.append(arrived[0] - start)

        before = client.info("stats")["total_commands_processed"]
        benchmark.pedantic(publish, rounds=ROUNDS)
        time.sleep(0.5)
        spent = (client.info("stats")["total_commands_processed"] - before - 1) / len(waits)
    stop.set()
    for thread in threads:
        thread.join()
    Figure(
        f"redis first message for {consumers} idle consumer{'s' * (consumers > 1)}, beside 5 ms",
        waits, [0.005] * len(waits), at_most=1 if consumers == 1 else None, rival="5 ms",
    ).store(benchmark)  # fmt: skip
    benchmark.extra_info["idle commands a second, each"] = idle
    benchmark.extra_info["commands for one message"] = spent
    assert idle < 1
