"""The embedded transport, memory://."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import kombu
import pytest

import kombulite
from bench.duel import Side, duel
from bench.workloads import (
    SMALL,
    add_bindings,
    consuming,
    consuming_in_batches,
    open_place,
    publishing,
    publishing_in_batch,
    publishing_many,
    round_trips,
)

MESSAGES = 5000

#: Kinds of topic keys, of which none matches ``order.eu.created``.
TOPICS = ("order.eu.c{}.created", "order.*.c{}.created", "stock.{}.#", "*.us.c{}", "invoice.{}.paid")


def test_publish(benchmark: Any) -> None:
    sides = [publishing(open_place(library, "publish")) for library in (kombulite, kombu)]
    duel(benchmark, "memory publish, small dict, direct exchange", *sides, operations=MESSAGES, at_least=8)


def test_consume(benchmark: Any) -> None:
    sides = [consuming(open_place(library, "consume")) for library in (kombulite, kombu)]
    duel(benchmark, "memory consume + decode + ack, prefetch 1000", *sides, operations=MESSAGES, at_least=8)


@pytest.mark.parametrize("library", [kombulite, kombu], ids=["one by one", "kombu"])
def test_consume_in_batches(benchmark: Any, library: Any) -> None:
    sides = consuming_in_batches(open_place(kombulite, "batches")), consuming(open_place(library, "singles"))
    rival = "one by one" if library is kombulite else "kombu"
    duel(benchmark, "memory on_batch of 100, decode + ack", *sides, operations=MESSAGES, rival=rival)


def test_publish_topic(benchmark: Any) -> None:
    places = [open_place(library, "topic", "topic", "order.*.created") for library in (kombulite, kombu)]
    for place in places:
        add_bindings(place, [TOPICS[i % len(TOPICS)].format(i) for i in range(1000)])
    sides = [publishing(place, "order.eu.created") for place in places]
    duel(benchmark, "memory publish, topic exchange, 1,000 other bindings", *sides, at_least=100)
    assert all(place.queue.purge() for place in places)  # the messages did arrive


@pytest.mark.parametrize(
    ("work", "publish"),
    [("memory publish_many, beside publish", publishing_many), ("memory batch(), beside publish", publishing_in_batch)],
)
def test_publish_together(benchmark: Any, work: str, publish: Any) -> None:
    ours, theirs = open_place(kombulite, publish.__name__), open_place(kombu, publish.__name__)
    duel(benchmark, work, publish(ours), publishing(theirs), operations=MESSAGES)


def test_round_trip(benchmark: Any) -> None:
    sides = [round_trips(open_place(library, "trip")) for library in (kombulite, kombu)]
    duel(benchmark, "memory round trip: publish, get, decode, ack", *sides)


# --- from one thread to another


def between_threads(put: Callable[[Any], object], take: Callable[[int], object]) -> Side:
    """One thread puts n bodies, another takes them, each the same one."""

    def run(n: int) -> None:
        def produce() -> None:
            for _ in range(n):
                put(SMALL)

        thread = threading.Thread(target=produce)
        thread.start()
        take(n)
        thread.join()

    return Side(run)


def hand_overs() -> tuple[Side, Side]:
    """Through the memory broker, decoded and acknowledged; and through Python's queue, which hands over the object."""
    place, between = open_place(kombulite, "between"), queue.Queue[Any]()

    def take(n: int) -> None:
        for _ in range(n):
            between.get()

    sender = open_place(kombulite, "between").producer  # over a connection of its own
    return between_threads(sender.publish, consuming(place).run), between_threads(between.put, take)


def test_hand_over(benchmark: Any) -> None:
    duel(benchmark, "memory hand-over from one thread to another", *hand_overs(), operations=MESSAGES,
         rival="queue.Queue", at_least=2)  # fmt: skip


@pytest.mark.benchmark(timer=time.process_time)
def test_hand_over_cpu(benchmark: Any) -> None:
    duel(benchmark, "memory hand-over from one thread to another, CPU time", *hand_overs(), operations=MESSAGES,
         rival="queue.Queue", at_most=0.5, timer=time.process_time)  # fmt: skip
