"""Kinds of queues: their options, what is refused, and what the broker gets."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from kombulite import Connection, Queue, Quorum, Stream, exceptions

ROOT = Path(__file__).parents[2]
MOMENT = datetime(2026, 1, 2, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Quorum(), {}),
        (Quorum(delivery_limit=-1), {"x-delivery-limit": -1}),
        (Quorum(consumer_timeout=1.5), {"x-consumer-timeout": 1500}),
        (
            Quorum(retry_delay=(1, 60.5)),
            {"x-delayed-retry-type": "failed", "x-delayed-retry-min": 1000, "x-delayed-retry-max": 60500},
        ),
        (
            Quorum(retry_delay=(1, 2), retry_for="all"),
            {"x-delayed-retry-type": "all", "x-delayed-retry-min": 1000, "x-delayed-retry-max": 2000},
        ),
        (Quorum(single_active_consumer=True), {"x-single-active-consumer": True}),
        (Stream(), {}),
        (
            Stream(max_age=3600, segment_bytes=1000, filter_bytes=16),
            {"x-max-age": "3600s", "x-stream-max-segment-size-bytes": 1000, "x-stream-filter-size-bytes": 16},
        ),
    ],
)
def test_arguments_of_a_declaration(kind, arguments):
    assert kind.queue_arguments() == {"x-queue-type": type(kind).__name__.lower(), **arguments}


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Quorum(delivery_limit=3), {}),
        (Stream(), {}),
        (Stream(offset="first"), {"x-stream-offset": "first"}),
        (Stream(offset=0), {"x-stream-offset": 0}),
        (Stream(offset=MOMENT), {"x-stream-offset": MOMENT}),
        (Stream(offset=timedelta(hours=1)), {"x-stream-offset": "3600s"}),
        (Stream(filters=("a", "b")), {"x-stream-filter": ["a", "b"]}),
        (
            Stream(filters=("a",), match_unfiltered=True),
            {"x-stream-filter": ["a"], "x-stream-match-unfiltered": True},
        ),
    ],
)
def test_arguments_of_a_consumer(kind, arguments):
    assert kind.consumer_arguments() == arguments


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Quorum, {"delivery_limit": -2}, r"delivery_limit must be an integer of at least -1, got -2"),
        (Quorum, {"delivery_limit": True}, r"delivery_limit .* got True"),
        (Quorum, {"consumer_timeout": 0}, r"consumer_timeout must be at least 0.001 seconds, got 0"),
        (Quorum, {"retry_delay": 5}, r"retry_delay .* got 5"),
        (Quorum, {"retry_delay": (5, 1)}, r"retry_delay .* got \(5, 1\)"),
        (Quorum, {"retry_delay": (0, 1)}, r"retry_delay .* got \(0, 1\)"),
        (Quorum, {"retry_delay": (1, 2), "retry_for": "lost"}, r"retry_for .* got 'lost'"),
        (Quorum, {"retry_for": "all"}, r"retry_for must be left out without retry_delay"),
        (Stream, {"offset": "middle"}, r"offset .* got 'middle'"),
        (Stream, {"offset": -1}, r"offset .* got -1"),
        (Stream, {"offset": [1]}, r"offset .* got \[1\]"),
        (Stream, {"offset": timedelta(0)}, r"offset must be at least a second back"),
        (Stream, {"filters": "a"}, r"filters .* got 'a'"),
        (Stream, {"match_unfiltered": True}, r"match_unfiltered must be False without filters"),
        (Stream, {"max_age": 0}, r"max_age .* got 0"),
        (Stream, {"segment_bytes": 3_000_000_001}, r"segment_bytes .* got 3000000001"),
        (Stream, {"filter_bytes": 15}, r"filter_bytes .* got 15"),
        (Stream, {"filter_bytes": 256}, r"filter_bytes .* got 256"),
    ],
)
def test_option_that_makes_no_sense(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Quorum(), {"durable": False}, "durable must be True"),
        (Quorum(), {"exclusive": True}, "exclusive must be False"),
        (Quorum(), {"auto_delete": True}, "auto_delete must be False"),
        (Quorum(), {"max_priority": 5}, "max_priority must be None for a queue of kind Quorum, got 5"),
        (Quorum(), {"queue_arguments": {"x-queue-type": "stream"}}, "must be 'quorum' or left out, got 'stream'"),
        (Stream(), {"durable": False}, "durable must be True"),
        (Stream(), {"expires": 60}, "expires must be None"),
        (Stream(), {"message_ttl": 60}, "message_ttl must be None"),
        (Stream(), {"max_length": 60}, "max_length must be None"),
        (Stream(), {"no_ack": True}, "no_ack must be False"),
    ],
)
def test_queue_that_cannot_be_of_its_kind(kind, options, message):
    with pytest.raises(ValueError, match=message):
        Queue("q", kind=kind, **options)


@pytest.mark.parametrize("clone", [copy.copy, lambda queue: pickle.loads(pickle.dumps(queue))])
def test_copies_have_the_kind(clone):
    queue = Queue("q", kind=Quorum(delivery_limit=3))
    assert clone(queue).kind == queue.kind
    assert clone(queue) == queue
    assert queue != Queue("q", kind=Quorum(delivery_limit=4))
    assert Queue.from_dict("q", kind=queue.kind, durable=True).kind == queue.kind


def test_other_brokers_take_what_a_classic_queue_does_as_well():
    with Connection("memory://") as connection:
        queue = Queue("quorum", kind=Quorum())(connection.channel())
        queue.declare()
        assert queue.queue_declare(passive=True).message_count == 0


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Quorum(delivery_limit=3), r"Quorum\(delivery_limit=3\)"),
        (Quorum(single_active_consumer=True), r"Quorum\(single_active_consumer=True\)"),
        (Stream(), "Stream"),
    ],
)
def test_other_brokers_refuse_what_they_cannot_do(kind, named):
    with Connection("memory://") as connection:
        with pytest.raises(exceptions.AMQPNotImplementedError, match=f"kind={named} needs RabbitMQ: the memory"):
            Queue("refused", kind=kind)(connection.channel()).declare()


def test_arguments_given_by_hand_go_over_those_of_the_kind(monkeypatch):
    with Connection("memory://") as connection:
        channel = connection.channel()
        arguments = channel.prepare_queue_arguments({"x-queue-type": "quorum", "x-more": 1}, kind=Quorum(), expires=2)
        assert arguments == {"x-queue-type": "quorum", "x-more": 1, "x-expires": 2000}


def test_are_imported_when_they_are_used():
    program = """
import sys
from kombulite import Connection, Consumer, Exchange, Producer, Queue
print(*sorted({"dataclasses", "difflib"} & set(sys.modules)))
import kombulite
print(kombulite.Stream.__module__, kombulite.Quorum(delivery_limit=3))
"""
    # Without ``site``: an editable install has it import much that a library would have to import itself.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    imported, used = done.stdout.splitlines()
    assert imported == ""
    assert used.startswith("kombulite Quorum(delivery_limit=3")
