"""How often a message was delivered, as quorum queues count it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from click.testing import CliRunner

from kombulite import Connection, Consumer, Queue, Quorum
from kombulite.cli import commands

QUORUM = {"x-queue-type": "quorum"}
TIMEOUT = 20.0  # seconds


@pytest.fixture
def declared(connection: Connection, name: Callable[[str], str]) -> Iterator[Callable[..., Queue]]:
    """Declares quorum queues, which are deleted after the test."""
    made: list[Queue] = []

    def declare(base: str, **arguments: Any) -> Queue:
        queue = Queue(name(base), queue_arguments={**QUORUM, **arguments})(connection.channel())
        queue.declare()
        made.append(queue)
        return queue

    yield declare
    for queue in made:
        with suppress(Exception):
            Queue(queue.name)(connection.channel()).delete()


def dead_queue(queue: Queue) -> Queue:
    return Queue(queue.name, queue_arguments=QUORUM)


def next_of(queue: Queue) -> Any:
    deadline = time.monotonic() + TIMEOUT
    while (message := queue.get()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return message


@pytest.mark.parametrize("failed", [True, False])
def test_all_deliveries_count_whether_they_failed_or_not(
    connection: Connection, declared: Callable[..., Queue], failed: bool
) -> None:
    queue = declared("queue")
    connection.Producer().publish("x", routing_key=queue.name)
    counts = []
    for _ in range(4):
        message = next_of(queue)
        counts.append(message.delivery_count)
        message.requeue(failed=failed)
    assert counts == [0, 1, 2, 3]


def test_a_dead_letter_is_counted_from_its_arrival(connection: Connection, declared: Callable[..., Queue]) -> None:
    last = declared("last")
    second = declared("second")
    first = declared("first", **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": second.name})
    connection.Producer().publish("x", routing_key=first.name)
    for _ in range(5):
        next_of(first).requeue()
    next_of(first).reject()
    tries = 0

    def fail(body: str, message: Any) -> None:
        nonlocal tries
        tries += 1
        message.requeue()

    with Consumer(
        connection, second, callbacks=[fail], max_deliveries=3, dead_letter=dead_queue(last), prefetch_count=1
    ):
        deadline = time.monotonic() + TIMEOUT
        while (buried := last.get()) is None:
            assert time.monotonic() < deadline
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.05)
    assert tries >= 2  # it was not buried at first sight
    assert buried.payload == "x"
    assert buried.headers["x-poison-deliveries"] >= 3


def test_dead_letters_do_not_copy_the_counts(connection: Connection, declared: Callable[..., Queue]) -> None:
    last, queue = declared("last"), declared("queue")
    connection.Producer().publish("x", routing_key=queue.name)
    options: dict[str, Any] = {"max_deliveries": 3, "dead_letter": dead_queue(last), "prefetch_count": 1}
    with Consumer(connection, queue, callbacks=[lambda body, message: message.requeue()], **options):
        deadline = time.monotonic() + TIMEOUT
        while (buried := last.get()) is None:
            assert time.monotonic() < deadline
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.05)
    assert buried.headers.get("x-delivery-count", 0) == 0  # which RabbitMQ 3 adds anew
    assert "x-acquired-count" not in buried.headers
    assert buried.delivery_count == 0
    assert buried.headers["x-poison-deliveries"] == 3


def test_what_consumers_gave_back_in_order_is_not_held_against_a_message(
    connect: Callable[..., Connection], declared: Callable[..., Queue], broker_version: tuple[int, ...]
) -> None:
    if broker_version < (4, 3):
        pytest.skip("this RabbitMQ does not count failures apart")
    last, queue = declared("last"), declared("queue")
    options: dict[str, Any] = {"max_deliveries": 3, "dead_letter": dead_queue(last)}
    connect().Producer().publish_many(range(10), routing_key=queue.name)
    for _ in range(5):  # consumers that end in order with all in their hands
        ending = connect()
        with Consumer(ending.channel(), queue, on_message=lambda message: None, prefetch_count=10, **options):
            ending.drain_events(timeout=TIMEOUT)
        ending.release()
    failures = 0

    def work(body: int, message: Any) -> None:
        nonlocal failures
        if body == 5:
            failures += 1
            message.requeue()
        else:
            done.add(body)
            message.ack()

    done: set[int] = set()
    working = connect()
    deadline = time.monotonic() + TIMEOUT
    with Consumer(working.channel(), queue, callbacks=[work], prefetch_count=1, **options):
        buried = None
        while buried is None or len(done) < 9:
            assert time.monotonic() < deadline, done
            with suppress(TimeoutError):
                working.drain_events(timeout=0.05)
            buried = buried or last.get()
    assert failures == 3
    assert buried.payload == 5


def test_a_limit_that_is_never_reached_is_logged(
    connection: Connection, declared: Callable[..., Queue], caplog: pytest.LogCaptureFixture
) -> None:
    queue, last = declared("queue", **{"x-delivery-limit": 4}), declared("last")
    with caplog.at_level(logging.WARNING, "kombulite.channel"):
        with Consumer(connection, queue, max_deliveries=4, dead_letter=last.name, on_message=lambda message: None):
            assert not caplog.records
        with Consumer(connection, queue, max_deliveries=5, dead_letter=last.name, on_message=lambda message: None):
            (record,) = caplog.records
    assert "delivery limit of 4" in record.getMessage()


def test_the_limit_of_a_kind_is_known(
    connection: Connection, declared: Callable[..., Queue], caplog: pytest.LogCaptureFixture
) -> None:
    name = declared("queue", **{"x-delivery-limit": 3}).name
    queue = Queue(name, kind=Quorum(delivery_limit=3))
    with (
        caplog.at_level(logging.WARNING, "kombulite.channel"),
        Consumer(connection, queue, max_deliveries=5, dead_letter="unused", on_message=lambda message: None),
    ):
        assert "delivery limit of 3" in caplog.records[0].getMessage()


def test_a_message_that_is_moved_leaves_its_counts_behind(
    connection: Connection, declared: Callable[..., Queue], amqp_url: str
) -> None:
    source, target = declared("source"), declared("target")
    connection.Producer().publish("x", routing_key=source.name, headers={"mine": 1})
    for failed in (True, False):
        next_of(source).requeue(failed=failed)
    line = ["move", "--broker", amqp_url, source.name, target.name, "--json"]
    deadline = time.monotonic() + TIMEOUT
    while json.loads(CliRunner().invoke(commands.kombulite, line).stdout) != {"moved": 1}:
        assert time.monotonic() < deadline
    message = next_of(target)
    assert message.delivery_count == 0
    assert message.headers["mine"] == 1
    assert "x-acquired-count" not in message.headers
    assert message.headers.get("x-delivery-count", 0) == 0  # which RabbitMQ 3 adds anew
    message.requeue()
    assert next_of(target).delivery_count == 1
