"""The experiments: what is varied, who takes part, and what they do."""

from __future__ import annotations

import os
from typing import Any

from bench.lab.distant import LATENCY
from bench.lab.running import Experiment
from bench.lab.task import Task

BOTH = ("kombulite", "kombu")
AMQP_CLIENTS = (*BOTH, "kombulite.aio", "py-amqp", "pika", "amqpstorm", "aio-pika", "FastStream", "C client")
REDIS_CLIENTS = (*BOTH, "kombulite.aio", "redis-py", "redis.asyncio", "FastStream")
CLIENTS = tuple(dict.fromkeys((*AMQP_CLIENTS, *REDIS_CLIENTS)))

# --- every client at small messages ---------------------------------------------------------------------------------

CONFIRMED = {"connection": {"confirm_publish": True}}
WORKLOADS: dict[str, dict[str, Any]] = {
    "memory: publish": {"transport": "memory", "work": "publish", "messages": 20_000},
    "memory: consume": {"transport": "memory", "work": "consume", "messages": 20_000},
    "Redis: publish": {"transport": "redis", "work": "publish", "messages": 2000},
    "Redis: batch of 1,000": {"transport": "redis", "work": "publish", "messages": 5000, "batch": 1000},
    "Redis: consume": {"transport": "redis", "work": "consume", "messages": 3000},
    "Redis: round trip": {"transport": "redis", "work": "round trip", "messages": 1000},
    "RabbitMQ: publish": {"transport": "amqp", "work": "publish", "messages": 10_000},
    "RabbitMQ: publish, confirmed": {"transport": "amqp", "work": "publish", "messages": 1000, **CONFIRMED},
    "RabbitMQ: consume": {"transport": "amqp", "work": "consume", "messages": 10_000},
}


def workload(value: str, rival: str) -> Task | None:
    what = WORKLOADS[value]
    if rival not in {"redis": REDIS_CLIENTS, "amqp": AMQP_CLIENTS}.get(what["transport"], BOTH):
        return None
    if rival == "C client" and "connection" in what:
        return None
    if rival not in (*BOTH, "redis-py") and what["work"] == "round trip":
        return None
    return Task(rival, **what)


# --- over a range ---------------------------------------------------------------------------------------------------

SIZES = (16, 256, 4096, 65_536, 1_048_576, 16_777_216)


def sized(transport: str, work: Any, most: int, **options: Any) -> Any:
    """Bodies of some size, sent as they are; at most 64 MB of them."""

    def task(size: int, rival: str) -> Task:
        return Task(rival, work, transport, min(most, 64 * 1024 * 1024 // size), size=size, **options)

    return task


def bound(transport: str, most: int) -> Any:
    """A topic exchange (on Redis a direct one) with so many bindings, of which the message fits one."""

    def task(bindings: int, rival: str) -> Task | None:
        # kombu looks at each binding for each message: fewer messages, or it takes minutes.
        messages = max(100, min(most, 2_000_000 // bindings)) if rival == "kombu" else most
        kind = "direct" if transport == "redis" else "topic"
        return Task(rival, "publish", transport, messages, bindings=bindings, kind=kind)

    return task


def spread(transport: str, messages: int, each: int) -> Any:
    """So many messages, but at least ``each`` in a queue; less for kombu and for many queues, or it takes minutes."""

    def task(queues: int, rival: str) -> Task | None:
        if queues > 1000:
            if rival == "kombu" and transport == "redis":
                return None  # it names every queue and priority in each command: 40,000 keys for a message
            return Task(rival, "consume", transport, 2 * queues, queues=queues)
        least = queues * each // (10 if rival == "kombu" else 1)
        return Task(rival, "consume", transport, max(messages, least), queues=queues)

    return task


def shared(transport: str, messages: int) -> Any:
    """So many consumers, each a process, share what waits in a queue; a tenth of it for kombu on Redis."""

    def task(consumers: int, rival: str) -> Task:
        total = messages // 10 if rival == "kombu" and transport == "redis" else messages
        return Task(rival, "consume", transport, max(20, total // consumers), prefetch=20)

    return task


def over_connections(transport: str, messages: int) -> Any:
    """So many connections of a process that publishes on them in turn."""
    return lambda connections, rival: Task(rival, "publish", transport, messages, connections=connections)


def simulated(transport: str) -> Any:
    """So many producers, each a thread with a connection and ten queues of its own; one consumer takes it all."""

    def task(producers: int, rival: str) -> Task:
        work, each = "publish from many, consume", 20 if producers >= 100 else 200
        return Task(rival, work, transport, each * producers, queues=10 * producers, connections=producers)

    return task


def offered(transport: str, seconds: float) -> Any:
    return lambda rate, rival: Task(rival, "publish at a rate", transport, int(rate * seconds), rate=rate, prefetch=100)


# --- kombulite alone: what a setting costs ----------------------------------------------------------------------------

AMQP_SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "persistent": {"publishing": {"delivery_mode": 2}},
    "confirmed, one at a time": {"connection": {"confirm_publish": True}, "messages": 1000},
    "confirmed, persistent, one at a time": {
        "connection": {"confirm_publish": True},
        "publishing": {"delivery_mode": 2},
        "messages": 500,
    },
    "confirmed, in batches of 1,000": {"connection": {"confirm_publish": True}, "batch": 1000},
    "confirmed, persistent, in batches of 1,000": {
        "connection": {"confirm_publish": True},
        "publishing": {"delivery_mode": 2},
        "batch": 1000,
    },
    "heartbeat of 2 s": {"heartbeat": 2},
    "mandatory": {"publishing": {"mandatory": True}},
}
SERIALIZERS = ("json", "pickle", "msgpack", "yaml")
COMPRESSIONS = ("none", "lz4", "zstd", "brotli", "zlib", "bzip2", "lzma")


def setting(value: str, rival: str) -> Task:
    return Task(rival, **{"work": "publish", "transport": "amqp", "messages": 10_000, **AMQP_SETTINGS[value]})


def serialized(work: Any) -> Any:
    def task(value: str, rival: str) -> Task:
        messages = 200 if value == "yaml" else 5000
        return Task(rival, work, "memory", messages, size=2200, text=True, publishing={"serializer": value})

    return task


def compressed(value: str, rival: str) -> Task:
    publishing = {} if value == "none" else {"compression": value}
    return Task(rival, "publish", "amqp", 500, size=32_000, text=True, publishing=publishing)


def batched(transport: str, messages: int, **options: Any) -> Any:
    return lambda size, rival: Task(rival, "publish", transport, messages, batch=size, **options)


def prefetching(transport: str, messages: int) -> Any:
    return lambda count, rival: Task(rival, "consume", transport, messages if count > 1 else 1000, prefetch=count)


# --- the lists --------------------------------------------------------------------------------------------------------


def experiments(full: bool, settings: bool) -> list[Experiment]:
    """The experiments, with all values and rounds or with few, and what settings cost, if that is asked for."""
    rounds = 3 if full else 2
    few = 2 if full else 1
    alone = ("kombulite",)
    powers = (1, 10, 100, 1000, 10_000, 100_000) if full else (1, 100, 10_000)
    queues = (1, 10, 100, 1000, 10_000) if full else (1, 10, 100)
    sizes = SIZES if full else (16, 4096, 65_536, 1_048_576)
    consumers = (1, 2, 4, 8, 16, 32, 64) if full else (1, 4)
    connections = (1, 4, 16, 64, 256) if full else (1, 16)
    many = (1, 10, 100, 1000) if full else (1, 100)
    cores = os.cpu_count() or 1
    producers = (1, 2, 3, 4, 6, 8) if full else (1, 2, 4, 8)
    others = (*BOTH, "pika", "aio-pika") if full else (*BOTH, "pika")
    every = [
        Experiment(
            "workloads", "Small messages, every client", "work", "bars",
            tuple(WORKLOADS), CLIENTS, workload, rounds,
        ),
        Experiment(
            "sizes-memory", "memory: publish", "body, bytes", "lines",
            sizes, BOTH, sized("memory", "publish", 5000), rounds,
        ),
        Experiment(
            "sizes-amqp-publish", "RabbitMQ: publish", "body, bytes", "lines",
            sizes, others, sized("amqp", "publish", 3000), rounds,
        ),
        Experiment(
            "sizes-amqp-consume", "RabbitMQ: consume + ack", "body, bytes", "lines",
            sizes, others, sized("amqp", "consume", 3000), rounds,
        ),
        Experiment(
            "sizes-redis", "Redis: round trip", "body, bytes", "lines",
            sizes, BOTH, sized("redis", "round trip", 500), rounds,
        ),
        Experiment(
            "bindings-memory", "memory: publish to a topic exchange", "bindings", "lines",
            powers, BOTH, bound("memory", 5000), rounds,
        ),
        Experiment(
            "bindings-redis", "Redis: publish to a direct exchange", "bindings", "lines",
            powers[:-1] if full else powers[:2], BOTH, bound("redis", 1000), rounds,
        ),
        Experiment(
            "queues-memory", "memory: consume + ack from many queues", "queues", "lines",
            queues, BOTH, spread("memory", 10_000, each=100), few,
        ),
        Experiment(
            "queues-redis", "Redis: consume + ack from many queues", "queues", "lines",
            queues, BOTH, spread("redis", 2000, each=50), few,
        ),
        Experiment(
            "queues-amqp", "RabbitMQ: consume + ack from many queues", "queues", "lines",
            queues, BOTH, spread("amqp", 5000, each=100), few,
        ),
        Experiment(
            "producers-amqp", "RabbitMQ: processes that publish", "processes", "cores",
            producers, BOTH, lambda n, rival: Task(rival, "publish", "amqp", 10_000 if rival == "kombulite" else 3000),
            3 if full else 1, processes=int,
        ),
        Experiment(
            "producers-redis", "Redis: processes that publish", "processes", "cores",
            producers, BOTH, lambda n, rival: Task(rival, "publish", "redis", 2000 if rival == "kombulite" else 1000),
            3 if full else 1, processes=int,
        ),
        Experiment(
            "connections-amqp", f"RabbitMQ: connections of each of {cores} processes that publish", "connections",
            "lines", connections, BOTH, over_connections("amqp", 4000), few, processes=lambda n: cores,
        ),
        Experiment(
            "connections-redis", f"Redis: connections of each of {cores} processes that publish", "connections",
            "lines", connections, BOTH, over_connections("redis", 1000), few, processes=lambda n: cores,
        ),
        Experiment(
            "consumers-amqp", "RabbitMQ: processes that consume from one queue", "processes", "cores",
            consumers, BOTH, shared("amqp", 12_800), few, processes=int,
        ),
        Experiment(
            "consumers-redis", "Redis: processes that consume from one queue", "processes", "cores",
            consumers, BOTH, shared("redis", 12_800), few, processes=int,
        ),
        Experiment(
            "many-memory", "memory: producers with ten queues each, and one consumer", "producers", "lines",
            many, BOTH, simulated("memory"), few,
        ),
        Experiment(
            "many-distant", f"a broker {1e6 * LATENCY:g} µs away: producers with ten queues each, and one consumer",
            "producers", "lines", many, BOTH, simulated("distant"), few,
        ),
        Experiment(
            "latency-amqp", "RabbitMQ: from when a message is due until its callback", "messages a second", "latency",
            (100, 1000, 3000, 6000, 12_000) if full else (100, 1000, 6000), BOTH,
            offered("amqp", 5 if full else 2), 3 if full else 1,
        ),
        Experiment(
            "latency-redis", "Redis: from when a message is due until its callback", "messages a second", "latency",
            (100, 500, 1000, 2000, 4000) if full else (100, 500, 2000), BOTH,
            offered("redis", 5 if full else 2), 3 if full else 1,
        ),
    ]  # fmt: skip
    of_settings = [
        Experiment(
            "settings-amqp", "RabbitMQ: kinds of publish", "setting", "bars",
            tuple(AMQP_SETTINGS), alone, setting, rounds,
        ),
        Experiment(
            "batch-redis", "Redis: batch()", "messages in a batch", "lines",
            (1, 10, 100, 1000), alone, batched("redis", 3000), rounds,
        ),
        Experiment(
            "batch-amqp", "RabbitMQ: batch() with confirms, persistent", "messages in a batch", "lines",
            (1, 10, 100, 1000), alone,
            batched("amqp", 2000, connection={"confirm_publish": True}, publishing={"delivery_mode": 2}), rounds,
        ),
        Experiment(
            "prefetch-amqp", "RabbitMQ: consume + ack", "prefetch_count", "lines",
            (1, 10, 100, 1000), BOTH, prefetching("amqp", 5000), rounds,
        ),
        Experiment(
            "prefetch-redis", "Redis: consume + ack", "prefetch_count", "lines",
            (1, 10, 100, 1000), BOTH, prefetching("redis", 2000), rounds,
        ),
        Experiment(
            "serializers-publish", "memory: publish, 2 kB document", "serializer", "bars",
            SERIALIZERS, BOTH, serialized("publish"), rounds,
        ),
        Experiment(
            "serializers-consume", "memory: consume + ack, 2 kB document", "serializer", "bars",
            SERIALIZERS, BOTH, serialized("consume"), rounds,
        ),
        Experiment(
            "compression", "RabbitMQ: publish, 32 kB document", "compression", "bars",
            COMPRESSIONS, alone, compressed, rounds,
        ),
    ]  # fmt: skip
    return [*every, *of_settings] if settings else every
