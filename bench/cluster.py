"""Redis Cluster beside a single server and beside redis-py's client for clusters, in one run.

    python -m bench.cluster [--messages 5000] [--rounds 5] [--moves 100] [--kills 3]

Starts its own servers: three masters, each with a replica, and a single one. Prints a row for each figure that is
asked of the cluster transport, with the mark and whether it is met. Throughput and processor time are ratios of the
same round, of which the median counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import redis
from redis.cluster import ClusterNode

from kombulite import Connection, Exchange, Queue
from kombulite.brokers.redis.cluster.keys import tag_of
from kombulite.brokers.redis.cluster.slots import slot_of
from tests.servers import RedisCluster, RedisServer, wait_until

QUEUES = [f"bench{number}" for number in range(60)]
STREAMED = [f"stream{number}" for number in range(4)]
BODY = {"id": 7, "items": ["book", "pen"]}
PATIENCE = 60.0  # seconds

Work = Callable[[int], float]  #: takes a number of messages, returns the seconds for them


class Row(NamedTuple):
    """A figure, and what it has to be. ``is_least``: whether it has to be the mark at least, or at most."""

    name: str
    found: float
    mark: float
    unit: str
    is_least: bool
    detail: str

    def __str__(self) -> str:
        is_met = self.found >= self.mark if self.is_least else self.found <= self.mark
        mark = f"{'>=' if self.is_least else '<='} {self.mark:g}{self.unit}"
        verdict = "met" if is_met else "MISSED"
        return f"{self.name:58} {self.found:8.2f}{self.unit:3} {mark:>12}  {verdict:7} {self.detail}"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--moves", type=int, default=100, help="of slots")
    parser.add_argument("--kills", type=int, default=3, help="of masters")
    arguments = parser.parse_args()
    with RedisCluster() as cluster, RedisServer() as server:
        for row in throughput(cluster, server, arguments.messages, arguments.rounds):
            print(row, flush=True)
        print(delay_of_moves(cluster, arguments.moves), flush=True)
    with RedisCluster(masters=3, replicas=3) as cluster:
        print(time_to_serve(cluster, arguments.kills), flush=True)


# --- throughput and processor time


def throughput(cluster: RedisCluster, server: RedisServer, messages: int, rounds: int) -> Iterator[Row]:
    """Yield the rows that compare what is done with as many messages."""
    node = ClusterNode("127.0.0.1", cluster.nodes[0].port)
    with (
        Connection(cluster.url) as own,
        Connection(server.url) as single,
        redis.RedisCluster(startup_nodes=[node]) as theirs,
    ):
        one = measured(
            messages // 5, rounds, own=publish_one(own), single=publish_one(single), rival=publish_one_as_kombu(theirs)
        )
        yield row("publish one at a time, rate to our single server's", one, "single", 0.85, True)
        yield row("publish one at a time, rate to RedisCluster's", one, "rival", 4, True)
        many = measured(messages, rounds, own=publish_many(own), single=publish_many(single), rival=pipeline(theirs))
        yield row("publish_many, 60 queues, rate to our single server's", many, "single", 0.7, True)
        yield row("publish_many, 60 queues, rate to a RedisCluster pipeline's", many, "rival", 10, True)
        cpu = measured(messages, rounds, own=consume(own), single=consume(single))
        yield row("consume + ack, 60 queues, CPU to our single server's", cpu, "single", 1.3, False)


def measured(messages: int, rounds: int, **works: Work) -> dict[str, list[float]]:
    """Return the microseconds per message of each, round by round, in turns. The first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in list(works.items())[:: 1 if number % 2 else -1]:
            seconds = work(messages)
            if number:
                taken[name].append(seconds / messages * 1e6)
    return taken


def row(name: str, taken: dict[str, list[float]], other: str, mark: float, is_least: bool) -> Row:
    """Return the median ratio to another: of rates if more is better, else of times."""
    pairs = list(zip(taken["own"], taken[other], strict=True))
    ratio = statistics.median(theirs / ours if is_least else ours / theirs for ours, theirs in pairs)
    ours, theirs = (statistics.median(taken[each]) for each in ("own", other))
    return Row(name, ratio, mark, "x", is_least, f"{ours:.2f} us, {theirs:.2f} us a message")


def publish_one(connection: Connection) -> Work:
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


def publish_one_as_kombu(client: redis.RedisCluster) -> Work:
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


def publish_many(connection: Connection) -> Work:
    """Return what publishes a batch to queues in turn."""
    producer = connection.Producer()

    def work(messages: int) -> float:
        start = time.perf_counter()
        with producer.batch(max_size=1000):
            for number in range(messages):
                producer.publish(BODY, routing_key=QUEUES[number % len(QUEUES)])
        return time.perf_counter() - start

    return work


def pipeline(client: redis.RedisCluster) -> Work:
    """Return what sends the same by a pipeline: like ours, it encodes each message."""

    def work(messages: int) -> float:
        start = time.perf_counter()
        for first in range(0, messages, 1000):
            pipe = client.pipeline()
            for number in range(first, min(first + 1000, messages)):
                envelope = json.dumps({"body": json.dumps(BODY), "properties": {"delivery_tag": "x"}})
                pipe.lpush(f"their{number % len(QUEUES)}", envelope)
            pipe.execute()
        return time.perf_counter() - start

    return work


def consume(connection: Connection) -> Work:
    """Return what consumes and acknowledges; it takes the processor's time."""
    publish = publish_many(connection)

    def work(messages: int) -> float:
        for queue in QUEUES:
            connection.default_channel.queue_purge(queue)
        publish(messages)
        left = [messages]

        def note(message: Any) -> None:
            left[0] -= 1
            message.ack()

        with connection.channel() as channel:
            start = time.process_time()
            with connection.Consumer([Queue(name) for name in QUEUES], channel=channel, on_message=note) as consumer:
                consumer.qos(prefetch_count=200)
                while left[0]:
                    connection.drain_events(timeout=20)
            return time.process_time() - start

    return work


# --- changes of the cluster


class Stream:
    """Messages that are published to some queues in turn, with their time, and what they took until they came."""

    def __init__(self, cluster: RedisCluster) -> None:
        self._urls = [node.url.replace("redis://", "rediscluster://") for node in cluster.nodes]
        self._is_over = threading.Event()
        #: For each message that came: its queue, when it was published, the seconds until it came.
        self.came: list[tuple[str, float, float]] = []
        self._threads = [threading.Thread(target=self._publish), threading.Thread(target=self._consume)]

    def _connect(self) -> Connection:
        return Connection(self._urls)

    def _publish(self) -> None:
        number = 0
        with self._connect() as connection:
            producer = connection.Producer()
            while not self._is_over.is_set():
                queue = STREAMED[number % len(STREAMED)]
                with contextlib.suppress(*connection.connection_errors):
                    producer.publish([queue, time.monotonic()], routing_key=queue, timeout=2)
                number += 1
                time.sleep(0.002)

    def _consume(self) -> None:
        with self._connect() as connection:
            while not self._is_over.is_set():
                with contextlib.suppress(*connection.connection_errors):
                    queues = [Queue(name) for name in STREAMED]
                    with connection.Consumer(queues, on_message=self._note, prefetch_count=50):
                        while not self._is_over.is_set():
                            connection.drain(0.2)
                time.sleep(0.01)

    def _note(self, message: Any) -> None:
        queue, at = message.payload
        self.came.append((queue, at, time.monotonic() - at))
        message.ack()

    def wait_for(self, queue: str, since: float) -> float:
        """Wait until a message has come that was published after a time; returns when."""
        found: list[float] = []

        def is_here() -> bool:
            found.extend(at + delay for name, at, delay in list(self.came[-500:]) if name == queue and at > since)
            return bool(found)

        wait_until(is_here, PATIENCE, "no message comes")
        return min(found)

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        for queue in STREAMED:
            self.wait_for(queue, 0.0)
        return self

    def __exit__(self, *raised: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def percentile(delays: list[float]) -> float:
    """Return the 99th percentile in milliseconds."""
    return sorted(delays)[int(len(delays) * 0.99)] * 1e3


def delay_of_moves(cluster: RedisCluster, moves: int) -> Row:
    """Move slots of queues in use, and compare the messages of the time meanwhile with those of a quiet time."""
    disturbed: list[float] = []
    with Stream(cluster) as stream:
        begun = time.monotonic()
        time.sleep(2)
        quiet = [delay for _, at, delay in list(stream.came) if at > begun]
        for number in range(moves):
            queue = STREAMED[number % len(STREAMED)]
            slot, begun = slot_of(tag_of(queue)), time.monotonic()
            place = cluster.masters.index(cluster.master_of(slot))
            cluster.move_slot(slot, cluster.masters[(place + 1) % len(cluster.masters)])
            over = time.monotonic()
            stream.wait_for(queue, over)
            disturbed += [delay for name, at, delay in list(stream.came) if name == queue and begun <= at <= over]
    late = percentile(disturbed) - percentile(quiet)
    detail = f"p99 {percentile(disturbed):.1f} ms of {len(disturbed)}, undisturbed {percentile(quiet):.1f} ms"
    return Row(f"delayed by a slot move, p99 of {moves} moves", late, 50, "ms", False, detail)


def time_to_serve(cluster: RedisCluster, kills: int) -> Row:
    """Kill masters, and take the time from when the cluster names the new one to the next message through it."""
    taken: list[float] = []
    with Stream(cluster) as stream:
        for number in range(kills):
            queue = STREAMED[number % len(STREAMED)]
            slot = slot_of(tag_of(queue))
            master = cluster.master_of(slot)
            asked = next(node for node in cluster.nodes if node is not master)
            master.kill()
            while master.port in cluster.serving(asked):
                time.sleep(0.005)
            reported = time.monotonic()
            taken.append(max(stream.wait_for(queue, reported) - reported, 0.0))
            master.start()
            cluster.wait_until_ok()
    detail = ", ".join(f"{seconds:.2f}" for seconds in taken)
    return Row(f"serves again after a master's death, the longest of {kills}", max(taken), 0.5, "s", False, detail)


if __name__ == "__main__":
    main()
