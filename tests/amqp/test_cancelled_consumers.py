"""Consumers that the broker cancels: their queue is deleted, or a message was held for longer than it allows."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from kombulite import Connection, Consumer, Queue
from kombulite.exceptions import ConsumerCancelled
from tests.amqp import peer as p

MESSAGES = 10
TIMEOUT = 20.0  # seconds
CONSUMER_TIMEOUT = 200  # milliseconds


@pytest.fixture
def timed(name: Callable[[str], str], connection: Connection) -> Any:
    """A quorum queue that lets a consumer hold a message for a short time."""
    if connection.connect().server_properties["version"] < "4.3":
        pytest.skip("this RabbitMQ closes the channel instead")
    queue = Queue(name("timed"), queue_arguments={"x-queue-type": "quorum"})
    queue.consumer_arguments = {"x-consumer-timeout": CONSUMER_TIMEOUT}
    bound = queue(connection.channel())
    bound.declare()
    connection.Producer().publish_many(range(MESSAGES), routing_key=queue.name)
    yield queue
    with suppress(Exception):
        queue(connection.channel()).delete()


def drain_until(connection: Connection, done: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not done():
        assert time.monotonic() < deadline
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.1)


@pytest.mark.parametrize("prefetch", [1, 3, 50])
@pytest.mark.parametrize("go_on", ["consume", "revive"])
def test_a_late_ack_after_the_consumer_timeout_loses_nothing(
    connection: Connection, timed: Queue, prefetch: int, go_on: str
) -> None:
    channel = connection.channel()
    held: list[Any] = []
    consumer = Consumer(channel, timed, on_message=held.append, prefetch_count=prefetch)
    consumer.consume()
    with pytest.raises(ConsumerCancelled):
        drain_until(connection, lambda: False)
    assert held
    for message in held:
        message.ack()  # too late: it has gone back
    with suppress(TimeoutError):
        while True:  # what comes for the ended consumer now
            connection.drain_events(timeout=1)
    assert channel.is_open
    seen: set[int] = set()

    def receive(message: Any) -> None:
        seen.add(message.payload)
        message.ack()

    consumer.on_message = receive
    consumer.consume() if go_on == "consume" else consumer.revive(connection.channel())
    drain_until(connection, lambda: len(seen | {message.payload for message in held}) == MESSAGES)
    consumer.cancel()
    assert connection.counters.reconnects == 0


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_consumer_whose_queue_was_deleted_settles_what_it_holds_and_goes_on(
    connection: Connection, name: Callable[[str], str], kind: str
) -> None:
    queue = Queue(name("queue"), queue_arguments={"x-queue-type": kind})
    channel = connection.channel()
    held: list[Any] = []
    consumer = Consumer(channel, queue, on_message=held.append, prefetch_count=MESSAGES)
    consumer.consume()
    connection.Producer().publish_many(range(MESSAGES), routing_key=queue.name)
    drain_until(connection, lambda: len(held) == MESSAGES)
    connection.channel().queue_delete(queue.name)
    with pytest.raises(ConsumerCancelled):
        drain_until(connection, lambda: False)
    for message in held:
        message.ack()
    held.clear()
    consumer.revive(channel)  # declares the queue again
    connection.Producer().publish("again", routing_key=queue.name)
    drain_until(connection, lambda: held)
    assert [message.payload for message in held] == ["again"]
    assert connection.counters.reconnects == 0
    channel.queue_delete(queue.name)


@pytest.mark.parametrize(
    ("capable", "nowait", "answer"), [(True, True, "ok"), (False, False, "ok"), (False, True, "cancel")]
)
def test_the_brokers_cancel_is_answered_before_a_late_ack(
    peer: p.Peer, monkeypatch: pytest.MonkeyPatch, capable: bool, nowait: bool, answer: str
) -> None:
    able = {**p.SERVER_PROPERTIES["capabilities"], "accept_consumer_cancel_ok": capable}  # type: ignore[dict-item]
    monkeypatch.setitem(p.SERVER_PROPERTIES, "capabilities", able)
    tags: list[str] = []

    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        tags.append(session.consume())
        session.deliver(1, consumer_tag=tags[0])
        session.send(1, p.CANCEL, "sb", tags[0], nowait)
        session.deliver(2, consumer_tag=tags[0])
        if answer == "ok":
            assert session.expect(p.CANCEL_OK).read("s") == tags
        else:
            assert session.expect(p.CANCEL).read("sb") == [*tags, True]
        assert session.expect(p.ACK).read("Lb") == [1, False]
        assert session.expect(p.NACK).read("Lbb") == [2, False, True]  # it is for nobody
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        received: list[Any] = []
        connection.channel().basic_consume("q", callback=received.append)
        with pytest.raises(ConsumerCancelled):
            drain_until(connection, lambda: False)
        received[0].ack()
        connection.drain_events(timeout=p.PATIENCE)
        assert len(received) == 1


@pytest.mark.parametrize("no_ack", [False, True])
def test_a_consumer_that_the_broker_has_cancelled_is_cancelled_before_that_is_known(peer: p.Peer, no_ack: bool) -> None:
    """What waits for it goes back unseen, as at any other cancellation; only what cannot go back is handed over."""

    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        tag = session.consume()
        session.deliver(1, consumer_tag=tag)
        session.send(1, p.CANCEL, "sb", tag, True)
        assert session.expect(p.DECLARE)
        session.send(1, p.DECLARE_OK, "sll", "other", 0, 0)  # the client reads all before it
        assert session.expect(p.CANCEL).read("sb") == [tag, True]
        assert session.expect(p.CANCEL).read("sb") == [tag, False]
        session.send(1, p.CANCEL_OK, "s", tag)
        if not no_ack:
            assert session.expect(p.NACK).read("Lbb") == [1, True, True]
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        received: list[Any] = []
        channel = connection.channel()
        tag = channel.basic_consume("q", callback=received.append, no_ack=no_ack)
        channel.queue_declare("other", passive=True)
        channel.basic_cancel(tag)
        assert len(received) == no_ack
        with suppress(TimeoutError, ConsumerCancelled):
            connection.drain_events(timeout=0)
