"""Work on a cluster while something happens to it, with a ledger of what was accepted and of what came.

    with Work(cluster, layout) as work:
        ...                         # kill, move, restart
        work.settle()
    assert not work.missing, work.summary

Producers and consumers are threads with a connection each. They go on after a connection was lost, as programs do.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kombulite import Connection, Queue
from kombulite.exceptions import ChannelError, MessageNacked, OperationalError
from tests.servers import RedisCluster

SETTLE_TIMEOUT = 60.0  # seconds


class Work:
    """Producers and consumers of some queues."""

    def __init__(
        self,
        cluster: RedisCluster,
        options: Mapping[str, Any],
        queues: int = 12,
        producers: int = 2,
        consumers: int = 2,
        timeout: float = 2,
    ) -> None:
        self._urls = [f"rediscluster://127.0.0.1:{node.port}/0" for node in cluster.nodes]
        self._options = dict(options)
        self._timeout = timeout  # of a publish, in seconds
        self._queues = [Queue(f"ledger{number}") for number in range(queues)]
        self.accepted: dict[tuple[int, int], tuple[float, float]] = {}  # and when its publish began and ended
        self.unsure: set[tuple[int, int]] = set()  # of which the publish raised
        self.received: Counter[tuple[int, int]] = Counter()
        self.received_at: list[float] = []
        self.errors: Counter[str] = Counter()
        self._is_over = threading.Event()  # for producers
        self._is_done = threading.Event()  # for consumers
        self._threads = [threading.Thread(target=self._produce, args=(place,)) for place in range(producers)]
        self._threads += [threading.Thread(target=self._consume) for _ in range(consumers)]
        self._producing = producers

    def _connect(self) -> Connection:
        return Connection(self._urls, transport_options=self._options)

    def _produce(self, place: int) -> None:
        number = 0
        with self._connect() as connection:
            producer = connection.Producer()
            while not self._is_over.is_set():
                message = (place, number)
                queue = self._queues[number % len(self._queues)]
                began_at = time.monotonic()
                try:
                    producer.publish(list(message), routing_key=queue.name, retry=False, timeout=self._timeout)
                except (*connection.connection_errors, ChannelError, MessageNacked) as error:
                    self.errors[f"publish: {type(error).__name__}: {str(error)[:60]}"] += 1
                    self.unsure.add(message)
                    time.sleep(0.02)
                else:
                    self.accepted[message] = began_at, time.monotonic()
                number += 1
                time.sleep(0.001)

    def _consume(self) -> None:
        with self._connect() as connection:
            while not self._is_done.is_set():
                try:
                    with connection.Consumer(self._queues, on_message=self._note, prefetch_count=20):
                        while not self._is_done.is_set():
                            connection.drain(0.5)
                except (*connection.connection_errors, ChannelError, OperationalError) as error:
                    self.errors[f"consume: {type(error).__name__}: {str(error)[:60]}"] += 1
                    time.sleep(0.02)

    def _note(self, message: Any) -> None:
        self.received[tuple(message.payload)] += 1
        self.received_at.append(time.monotonic())
        try:
            message.ack()
        except (OSError, ChannelError) as error:
            self.errors[f"ack: {type(error).__name__}: {str(error)[:60]}"] += 1

    def __enter__(self) -> Work:
        for thread in self._threads:
            thread.start()
        return self

    def run(self, messages: int) -> None:
        """Wait until so many more messages have come."""
        goal = len(self.received) + messages
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while len(self.received) < goal:
            assert time.monotonic() < deadline, f"only {goal - len(self.received)} missing of {messages}: {self.errors}"
            time.sleep(0.01)

    def end_producers(self) -> None:
        """Have no more published."""
        self._is_over.set()
        for thread in self._threads[: self._producing]:
            thread.join(SETTLE_TIMEOUT)
            assert not thread.is_alive(), "a producer hangs"

    def is_still(self, seconds: float) -> bool:
        """Whether all has come, or nothing has for so many seconds."""
        return not self.missing or time.monotonic() - self.received_at[-1] > seconds

    def settle(self) -> None:
        """End the producers, and wait until all that was accepted has come."""
        self.end_producers()
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while self.missing and time.monotonic() < deadline:
            time.sleep(0.02)

    @property
    def missing(self) -> set[tuple[int, int]]:
        return self.accepted.keys() - self.received.keys()

    @property
    def longest_gap(self) -> float:
        """The longest time without a message, in seconds."""
        return max((after - before for before, after in zip(self.received_at, self.received_at[1:])), default=0.0)

    def __exit__(self, *raised: object) -> None:
        self._is_over.set()
        self._is_done.set()
        for thread in self._threads:
            thread.join(SETTLE_TIMEOUT)
        assert not any(thread.is_alive() for thread in self._threads), "a consumer hangs"

    @property
    def summary(self) -> str:
        twice = sum(count - 1 for count in self.received.values())
        return (
            f"{len(self.accepted)} accepted, {len(self.unsure)} unsure, {len(self.missing)} lost, {twice} twice, "
            f"longest gap {self.longest_gap:.2f} s, {dict(self.errors)}"
        )
