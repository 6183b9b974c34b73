"""Replies without a queue, and what tells whether their requester is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from kombulite import Connection, Queue
from kombulite.exceptions import MessageReturned, NotFound

REPLIES = "amq.rabbitmq.reply-to"
TIMEOUT = 20.0  # seconds


def is_there(connection: Connection, reply_to: str) -> bool:
    """Ask with a passive declaration, as docs/amqp.md says."""
    with suppress(NotFound), connection.channel() as channel:
        channel.queue_declare(reply_to, passive=True)
        return True
    return False


def test_a_reply_to_a_requester_that_is_gone(
    connect: Callable[..., Connection], confirming: Connection, queue: Queue, broker_version: tuple[int, ...]
) -> None:
    requester, replies = connect(), list[Any]()
    channel = requester.channel()
    channel.basic_consume(REPLIES, no_ack=True, callback=replies.append)
    request = channel.prepare_message("ping", properties={"reply_to": REPLIES})
    channel.basic_publish(request, routing_key=queue.name)
    deadline = time.monotonic() + TIMEOUT
    while (received := queue.get(no_ack=True)) is None:
        assert time.monotonic() < deadline
    reply_to = received.properties["reply_to"]
    producer = confirming.Producer()

    producer.publish("pong", routing_key=reply_to)
    while not replies:
        requester.drain_events(timeout=TIMEOUT)
    assert replies[0].payload == "pong"
    assert is_there(confirming, reply_to)

    requester.release()
    while is_there(confirming, reply_to):
        assert time.monotonic() < deadline
    if broker_version >= (4,):
        producer.publish("pong", routing_key=reply_to, mandatory=True)  # confirmed, though nobody gets it
    else:
        with pytest.raises(MessageReturned):
            producer.publish("pong", routing_key=reply_to, mandatory=True)
