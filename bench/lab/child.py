"""A client's process: it gets ready, says so, does its work when it is told to, and says what that took.

``python -m bench.lab.child TASK``, the task as JSON. Standard output: ``ready``, then a JSON object.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice, repeat
from threading import Thread
from typing import Any

from bench import amqp_rivals
from bench.lab import distant, loops
from bench.lab.task import EXCHANGE, KEY, Task
from bench.results import percentiles
from bench.workloads import Place, round_trips

LIBRARIES = ("kombulite", "kombu")

#: Does the work; returns what it found out besides its time, if anything.
Run = Callable[[], dict[str, Any] | None]


# --- kombulite and kombu, from the same source ----------------------------------------------------------------------


def open_place(task: Task) -> Place:
    """The exchange, the queues, and as many bindings of queues that nothing reaches as the task says."""
    library = importlib.import_module(task.client)
    connection = connect(library, task)
    channel = connection.channel()
    exchange = library.Exchange(EXCHANGE, task.kind, delivery_mode="transient")
    queues = [library.Queue(name, exchange, KEY if not i else name)(channel) for i, name in enumerate(task.names)]
    for queue in queues:
        queue.declare()
    if task.transport == "memory":
        other = library.Queue("other", exchange, "other")(channel)
        other.declare()
        for i in range(task.bindings - 1):
            other.bind_to(exchange, f"order.c{i}.*")
    producer = library.Producer(channel, exchange, KEY)
    return Place(library, connection, queues, producer)


def connect(library: Any, task: Task) -> Any:
    """A connection to the broker of a task, or to the model of one."""
    options = {"transport_options": task.connection, "heartbeat": task.heartbeat}
    if task.transport == "distant":
        return library.Connection(transport=distant.transport_of(library), **options)
    return library.Connection(task.url, **options)


@contextmanager
def library(task: Task) -> Iterator[Run]:
    place = open_place(task)
    if task.transport == "memory" and task.work == "consume":
        fill(place, task)
    yield WORKS[task.work](place, task)
    place.connection.close()  # waits until the broker has done what came before


def fill(place: Place, task: Task) -> None:
    """Have the messages wait in the queues."""
    publish = place.library.Producer(place.producer.channel).publish  # to the default exchange
    body, options = task.body, how(task)
    for name in islice(cycle(task.names), task.messages):
        publish(body, routing_key=name, **options)


def how(task: Task) -> dict[str, Any]:
    """Keywords of each publish: bytes go as they are."""
    if isinstance(task.body, bytes):
        return {"content_type": "application/data", "content_encoding": "binary", **task.publishing}
    return task.publishing


def publishing(place: Place, task: Task) -> Run:
    publish, body, options, n = place.producer.publish, task.body, how(task), task.messages

    def run() -> None:
        for _ in repeat(None, n):
            publish(body, **options)

    def run_in_batch() -> None:
        with place.producer.batch(task.batch):
            run()

    if task.connections > 1:
        return publishing_in_turn(place, task)
    return run_in_batch if task.batch and hasattr(place.producer, "batch") else run


def publishing_in_turn(place: Place, task: Task) -> Run:
    """Publish on one connection after the other."""
    others, first = [connect(place.library, task) for _ in range(task.connections - 1)], place.producer
    more = [place.library.Producer(each.channel(), first.exchange, first.routing_key) for each in others]
    body, options = task.body, how(task)

    def run() -> None:
        for producer in islice(cycle([first, *more]), task.messages):
            producer.publish(body, **options)
        for connection in others:
            connection.close()  # waits until the broker has done what came before

    return run


def publishing_from_many(place: Place, task: Task) -> Run:
    """Publish from as many threads as there are connections, each to queues of its own; then consume it all."""
    channels = [connect(place.library, task).channel() for _ in range(task.connections)]
    producers = [place.library.Producer(channel) for channel in channels]  # to the default exchange
    body, options, names, consume = task.body, how(task), task.names, consuming(place, task)

    def work(number: int) -> None:
        publish, own = producers[number].publish, names[number :: task.connections]
        for name in islice(cycle(own), task.messages // task.connections):
            publish(body, routing_key=name, **options)

    def run() -> None:
        threads = [Thread(target=work, args=(number,)) for number in range(task.connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        consume()

    return run


def consuming(place: Place, task: Task) -> Run:
    """Consume what waits. Subscribing is done when the clock starts, but where that is when messages start to come."""
    left = task.messages

    def callback(body: Any, message: Any) -> None:
        nonlocal left
        if not task.no_ack:
            message.ack()
        left -= 1

    options = {"prefetch_count": task.prefetch, "no_ack": task.no_ack, "accept": ACCEPTED}
    consumer = place.library.Consumer(place.producer.channel, place.queue, callbacks=[callback], **options)
    if task.transport != "amqp":
        consumer.consume()

    def run() -> None:
        consumer.consume()  # again is nothing
        drain_events = place.connection.drain_events
        while left:
            drain_events(timeout=20)

    return run


ACCEPTED = ("json", "pickle", "yaml", "msgpack", "application/data")


def trips(place: Place, task: Task) -> Run:
    run = round_trips(place._replace(queue=place.queue[0])).run
    return lambda: run(task.messages)


def publishing_at_a_rate(place: Place, task: Task) -> Run:
    """Publish each message when it is due, or as soon as possible after; it carries the time when it was due."""
    publish, n, step = place.producer.publish, task.messages, 1 / task.rate
    publish({"due": 0.0})  # connects and declares

    def run() -> None:
        start = time.monotonic() + 0.05
        give_up = start + 2 * n * step
        for i in range(n):
            due, now = start + i * step, time.monotonic()
            if now < due:
                time.sleep(due - now)
            elif now > give_up:
                break
            publish({"due": due})
        publish({"due": -1.0})

    return run


def noting_latencies(place: Place, task: Task) -> Run:
    """Consume until the last message, or until the time is over; the first tenth is for warming up."""
    latencies: list[float] = []
    going = True

    def callback(body: Any, message: Any) -> None:
        nonlocal going
        now = time.monotonic()
        message.ack()
        due = body["due"]
        if due > 0:
            latencies.append(now - due)
        elif due < 0:
            going = False

    def run() -> dict[str, Any]:
        give_up = time.monotonic() + 3 * task.messages / task.rate + 3
        drain_events = place.connection.drain_events
        with place.library.Consumer(
            place.producer.channel, place.queue, callbacks=[callback], prefetch_count=task.prefetch
        ):
            print("consuming", flush=True)
            while going and time.monotonic() < give_up:
                try:
                    drain_events(timeout=1)
                except TimeoutError:
                    continue
        counted = latencies[len(latencies) // 10 :]
        return {"latencies": percentiles(counted), "received": len(latencies)}

    return run


WORKS: dict[str, Callable[[Place, Task], Run]] = {
    "publish": publishing,
    "consume": consuming,
    "round trip": trips,
    "publish at a rate": publishing_at_a_rate,
    "consume and note latencies": noting_latencies,
    "publish from many, consume": publishing_from_many,
}


# --- others ---------------------------------------------------------------------------------------------------------


@contextmanager
def amqp_client(task: Task) -> Iterator[Run]:
    name = task.client.replace("-", "_")
    if task.work == "publish":
        confirmed = bool(task.connection.get("confirm_publish"))
        opened = getattr(amqp_rivals, f"{name}_publishing")(task.url, task.body, confirmed)
    else:
        opened = getattr(amqp_rivals, f"{name}_consuming")(task.url, task.names[0], task.body)
    with opened as side:
        yield lambda: side.run(task.messages)


@contextmanager
def redis_py(task: Task) -> Iterator[Run]:
    """redis-py alone: what is taken waits in another list, and is struck there as an ack. In a batch, its pipeline.

    In a round trip nothing is kept: what is popped is gone.
    """
    import redis

    client = redis.Redis.from_url(task.url)
    encode, decode = amqp_rivals.encoder_of(task.body), amqp_rivals.decoder_of(task.body)
    name, body, n = task.names[0], task.body, task.messages

    def publish() -> None:
        for _ in repeat(None, n):
            client.lpush(name, encode(body))

    def publish_in_batch() -> None:
        for start in range(0, n, task.batch):
            pipeline = client.pipeline(transaction=False)
            for _ in range(min(task.batch, n - start)):
                pipeline.lpush(name, encode(body))
            pipeline.execute()

    def round_trip() -> None:
        for _ in repeat(None, n):
            client.lpush(name, encode(body))
            decode(client.rpop(name))

    def consume() -> None:
        for _ in repeat(None, n):
            taken = client.blmove(name, f"{name}.busy", 1, "RIGHT", "LEFT")
            decode(taken)
            client.lrem(f"{name}.busy", 1, taken)

    publish_some = publish_in_batch if task.batch else publish
    yield {"publish": publish_some, "consume": consume, "round trip": round_trip}[task.work]
    client.close()


def open_client(task: Task) -> Any:
    """The client that a task names, ready for its work."""
    if task.client in LIBRARIES:
        return library(task)
    if task.client in loops.CLIENTS:
        return loops.on_a_loop(task)
    return redis_py(task) if task.client == "redis-py" else amqp_client(task)


def main() -> None:
    """Do what the command line says."""
    task = Task.from_json(sys.argv[1])
    with open_client(task) as run:
        gc.collect()
        print("ready", flush=True)
        sys.stdin.readline()
        cpu = time.process_time()
        found = run() or {}
    found["cpu"] = time.process_time() - cpu
    print(json.dumps(found), flush=True)
    sys.stdin.readline()  # the parent looks at this process before it ends


if __name__ == "__main__":
    main()
