"""Time without service after a leader's death, beside pika: ``python -m tests.cluster --kills 20``.

A publisher of each library, with confirms and a failover list, sends to a quorum queue of its own; one node leads all
queues, and all are connected to it. The node is killed with SIGKILL. The longest time between two confirmed
messages from then on is the time without service.

Streams are left out: what was published when the leader died may get no answer at all, and pika waits for it for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, pairwise

import pika

from kombulite import Connection, Producer, Queue, Quorum, aio
from tests.cluster.cluster import SIZE, Cluster, Node
from tests.servers import version, wait_until

HEARTBEAT = 2  # seconds
PAUSE = 0.005  # seconds between messages
CALM = 3.0  # seconds of service after which it counts as restored
PATIENCE = 60.0  # seconds until service has to be restored
POLICY = {"max_retries": 100, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}

#: Publishes over the URLs, the first one first, and calls the function after each confirm, until the event is set.
Publish = Callable[[list[str], str, Callable[[], None], threading.Event], None]


def with_kombulite(urls: list[str], queue: str, confirmed: Callable[[], None], stopped: threading.Event) -> None:
    options = {"confirm_publish": True}
    with Connection(urls, heartbeat=HEARTBEAT, transport_options=options) as connection:
        producer = Producer(connection)
        while not stopped.wait(PAUSE):
            producer.publish("x", routing_key=queue, retry=True, retry_policy=POLICY, timeout=10, confirm_timeout=10)
            confirmed()


def with_pika(urls: list[str], queue: str, confirmed: Callable[[], None], stopped: threading.Event) -> None:
    for url in cycle(urls):
        try:
            parameters = pika.URLParameters(f"{url.removesuffix('//')}/%2F?heartbeat={HEARTBEAT}&socket_timeout=5")
            connection = pika.BlockingConnection(parameters)
            channel = connection.channel()
            channel.confirm_delivery()
            while not stopped.wait(PAUSE):
                channel.basic_publish("", queue, b"x")
                confirmed()
            connection.close()
        except (pika.exceptions.AMQPError, OSError):
            stopped.wait(0.1)
        if stopped.is_set():
            return


def with_aio(urls: list[str], queue: str, confirmed: Callable[[], None], stopped: threading.Event) -> None:
    async def publish() -> None:
        async with aio.connect(urls, heartbeat=HEARTBEAT) as connection:
            producer = connection.producer()
            while not stopped.is_set():
                await producer.publish("x", queue, retry=True, retry_policy=POLICY, timeout=10)
                confirmed()
                await asyncio.sleep(PAUSE)

    asyncio.run(publish())


RIVAL = "pika"
LIBRARIES: dict[str, Publish] = {RIVAL: with_pika, "kombulite": with_kombulite, "kombulite.aio": with_aio}


class Publisher:
    """A thread that publishes and writes down when each message was confirmed."""

    def __init__(self, publish: Publish, urls: list[str], queue: str) -> None:
        self.times: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=publish, args=(urls, queue, lambda: self.times.append(time.monotonic()), self._stopped), daemon=True
        )
        self._thread.start()
        wait_until(lambda: self.times, PATIENCE, "nothing is published")

    def is_served(self, since: float) -> bool:
        """Return whether messages are confirmed again, and have been for a while."""
        after = [at for at in self.times if at > since]
        return bool(after) and time.monotonic() - after[0] > CALM

    def outage(self, since: float) -> float:
        """Return the longest time between two confirms from a moment on, in seconds."""
        times = [since, *(at for at in self.times if at > since)]
        return max(later - earlier for earlier, later in pairwise(times))

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        self._thread.join(PATIENCE)


@contextmanager
def publishers(leader: Node, nodes: list[Node], number: int) -> Iterator[dict[str, Publisher]]:
    """Yield a publisher of each library, connected to the node that leads its queue."""
    urls = [leader.url, *(node.url for node in nodes if node is not leader)]
    queues = {library: f"outage-{library}-{number}" for library in LIBRARIES}
    with Connection(leader.url) as connection:
        for name in queues.values():
            Queue(name, kind=Quorum())(connection.channel()).declare()  # led by the node that it is declared at
    running = {library: Publisher(publish, urls, queues[library]) for library, publish in LIBRARIES.items()}
    try:
        yield running
    finally:
        for publisher in running.values():
            publisher.stop()


def outages(cluster: Cluster, kills: int) -> dict[str, list[float]]:
    """Kill the leader so many times; returns each library's times without service in seconds."""
    found: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    for number in range(kills):
        leader = cluster.nodes[number % SIZE]
        with publishers(leader, cluster.nodes, number) as running:
            time.sleep(0.5)
            killed = time.monotonic()
            leader.kill()
            for library, publisher in running.items():
                wait_until(lambda: publisher.is_served(killed), PATIENCE, f"{library} is not served again")  # noqa: B023
                found[library].append(publisher.outage(killed))
        leader.start()
        wait_until(lambda: cluster.running() == SIZE, PATIENCE, "the node does not come back")
    return found


def rows_of(found: dict[str, list[float]]) -> Iterator[str]:
    """Yield a row of the table for each library. The ratio is the median of those to the rival at the same kill."""
    for library, times in found.items():
        ratios = [ours / theirs for ours, theirs in zip(times, found[RIVAL], strict=True)]
        ratio = "" if library == RIVAL else f"{statistics.median(ratios):.2f}"
        median = statistics.median(times)
        yield f"| {library} | {len(times)} | {median:.2f} s | {max(times):.2f} s | {ratio} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    with Cluster() as cluster:
        found = outages(cluster, options.kills)
    print(f"RabbitMQ {version('rabbitmqctl')}, pika {pika.__version__}\n")
    print(f"| library | kills | without service, p50 | max | / {RIVAL} |\n|---|---|---|---|---|")
    print("\n".join(rows_of(found)))


if __name__ == "__main__":
    main()
