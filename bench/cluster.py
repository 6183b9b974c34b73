"""Redis Cluster beside a single server and beside redis-py's client for clusters, in one run.

    python -m bench.cluster [--messages 5000] [--rounds 5]

Starts three masters and a single server of its own. Each figure is the median of rounds that alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import redis
from redis.cluster import ClusterNode

from kombulite import Connection, Exchange, Queue
from tests.servers import RedisCluster, RedisServer

QUEUES = [f"bench{number}" for number in range(60)]
BODY = {"id": 7, "items": ["book", "pen"]}


def main() -> None:
    """Print the figures of the table in docs/redis-cluster.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with (
        RedisCluster() as cluster,
        RedisServer() as server,
        Connection(cluster.url) as own,
        Connection(server.url) as single,
        redis.RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", cluster.nodes[0].port)]) as theirs,
    ):
        figures = [
            ("publish one at a time", arguments.messages // 5, {
                "own layout": publish_one(own), "single server": publish_one(single),
                "RedisCluster": publish_one_as_kombu(theirs),
            }),
            ("publish_many over 60 queues", arguments.messages, {
                "own layout": publish_many(own), "single server": publish_many(single),
                "RedisCluster": pipeline(theirs),
            }),
            ("consume + ack over 60 queues, CPU", arguments.messages, {
                "own layout": consume(own), "single server": consume(single),
            }),
        ]  # fmt: skip
        for name, messages, works in figures:
            show(name, messages, works, arguments.rounds)


def show(name: str, messages: int, works: dict[str, Callable[[int], float]], rounds: int) -> None:
    """Print the seconds per message of each, and the ratios to the first."""
    taken: dict[str, list[float]] = {each: [] for each in works}
    for _ in range(rounds):
        for each, work in works.items():
            taken[each].append(work(messages) / messages)
    ours = statistics.median(taken["own layout"])
    for each, seconds in taken.items():
        median = statistics.median(seconds)
        print(f"{name:36} {each:16} {median * 1e6:8.2f} us  {median / ours:6.2f}x the own layout's")


def publish_one(connection: Connection) -> Callable[[int], float]:
    """Return what publishes through an exchange, one message after the other."""
    exchange = Exchange("bench", "direct")
    producer = connection.Producer(exchange=exchange)
    producer.publish(BODY, routing_key="key", declare=[Queue("bench", exchange, routing_key="key")])

    def work(messages: int) -> float:
        start = time.perf_counter()
        for _ in range(messages):
            producer.publish(BODY, routing_key="key")
        return time.perf_counter() - start

    return work


def publish_one_as_kombu(client: redis.RedisCluster) -> Callable[[int], float]:
    """Return what does as kombu would: SMEMBERS, then LPUSH."""
    client.sadd("_kombu.binding.bench", "key\x06\x16\x06\x16bench")
    envelope = json.dumps({"body": json.dumps(BODY), "properties": {"delivery_tag": "x"}})

    def work(messages: int) -> float:
        start = time.perf_counter()
        for _ in range(messages):
            for _ in client.smembers("_kombu.binding.bench"):
                client.lpush("theirs", envelope)
        return time.perf_counter() - start

    return work


def publish_many(connection: Connection) -> Callable[[int], float]:
    """Return what publishes a batch to queues in turn."""
    producer = connection.Producer()

    def work(messages: int) -> float:
        start = time.perf_counter()
        with producer.batch(max_size=1000):
            for number in range(messages):
                producer.publish(BODY, routing_key=QUEUES[number % len(QUEUES)])
        return time.perf_counter() - start

    return work


def pipeline(client: redis.RedisCluster) -> Callable[[int], float]:
    """Return what sends the same by a pipeline."""
    envelope = json.dumps({"body": json.dumps(BODY), "properties": {"delivery_tag": "x"}})

    def work(messages: int) -> float:
        start = time.perf_counter()
        for first in range(0, messages, 1000):
            pipe = client.pipeline()
            for number in range(first, min(first + 1000, messages)):
                pipe.lpush(f"their{number % len(QUEUES)}", envelope)
            pipe.execute()
        return time.perf_counter() - start

    return work


def consume(connection: Connection) -> Callable[[int], float]:
    """Return what consumes and acknowledges; it takes the processor's time."""
    publish = publish_many(connection)

    def work(messages: int) -> float:
        for queue in QUEUES:
            connection.default_channel.queue_purge(queue)
        publish(messages)
        left = [messages]

        def note(message: object) -> None:
            left[0] -= 1
            message.ack()  # type: ignore[attr-defined]

        with connection.channel() as channel:
            start = time.process_time()
            with connection.Consumer([Queue(name) for name in QUEUES], channel=channel, on_message=note) as consumer:
                consumer.qos(prefetch_count=200)
                while left[0]:
                    connection.drain_events(timeout=20)
            return time.process_time() - start

    return work


if __name__ == "__main__":
    main()
