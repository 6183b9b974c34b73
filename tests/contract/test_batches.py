"""Consumers that get their messages many at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from kombulite import Consumer, Exchange, Producer, Queue, binding, exceptions
from kombulite._client.batching import MessageBatch
from kombulite.brokers.base import Outcome
from tests.contract.conftest import Broker, Inbox, drain, soon


class Batches:
    """A consumer that keeps the batches it gets."""

    def __init__(self, channel: Any, queues: Any, ack: bool = True, **options: Any) -> None:
        self.batches: list[MessageBatch] = []
        self._ack = ack
        options = {"batch_size": 4, "batch_timeout": 60, **options}  # a slow machine splits no batch
        self.consumer = Consumer(channel, queues, on_batch=self._receive, **options)
        self.consumer.consume()

    def _receive(self, messages: MessageBatch) -> None:
        self.batches.append(messages)
        if self._ack:
            messages.ack()

    @property
    def bodies(self) -> list[list[Any]]:
        return [batch.payloads for batch in self.batches]

    @property
    def all(self) -> list[Any]:
        return [body for batch in self.bodies for body in batch]


def publish(channel: Any, queue: Queue, bodies: Sequence[Any]) -> None:
    Producer(channel, routing_key=queue.name).publish_many(bodies)


def left_in(broker: Broker, queue: Queue, count: int) -> list[Any]:
    """What another connection finds in a queue, within the time that brokers need to put things back."""
    fresh = queue(broker.connect().channel())
    bodies: list[Any] = []

    def look() -> list[Any]:
        while (message := fresh.get(no_ack=True)) is not None:
            bodies.append(message.payload)
        return bodies

    return soon(look, lambda found: len(found) >= count, timeout=5 if count else 0.05)


def test_a_tag_that_comes_twice_is_settled_once(broker, connection, channel, queue):
    publish(channel, queue, [1])
    inbox = Inbox(channel, queue, ack=False)
    drain(connection, lambda: inbox.messages)
    (message,) = inbox.messages
    inbox.consumer.cancel()
    channel.settle_many([message.delivery_tag, message.delivery_tag], Outcome.REQUEUE)
    assert left_in(broker, queue, 1) == [1]


def test_full_batches_and_the_rest_in_time(broker, connection, channel, queue):
    publish(channel, queue, range(10))
    got = Batches(channel, queue, batch_timeout=1)
    drain(connection, lambda: len(got.all) == 10)
    assert got.bodies == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert connection.counters.acked == 10
    channel.close()
    assert left_in(broker, queue, 0) == []


def test_one_drain_is_one_batch(connection, channel, queue):
    publish(channel, queue, range(8))
    got = Batches(channel, queue)
    connection.drain_events(timeout=20)
    assert got.bodies == [[0, 1, 2, 3]]


def test_a_batch_outlives_the_timeout_of_a_drain(connection, channel, queue):
    publish(channel, queue, [1])
    got = Batches(channel, queue, batch_timeout=1)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.05)
    assert got.bodies == []
    connection.drain_events(timeout=20)
    assert got.bodies == [[1]]


def test_without_a_timeout_what_is_there_is_a_batch(connection, channel, queue):
    publish(channel, queue, range(3))
    got = Batches(channel, queue, batch_timeout=0)
    connection.drain_events(timeout=20)
    assert got.all == list(range(len(got.all)))
    drain(connection, lambda: len(got.all) == 3)


def test_an_ack_of_a_batch_is_for_its_messages_only(broker, connection, channel, queue):
    """Others on the channel are not acknowledged with it, whether they came before, between or after."""
    other = Queue(broker.name("other"))(channel)
    other.declare()
    publish(channel, other, ["before"])
    held = Inbox(channel, other, ack=False)
    held.wait(connection, 1)
    got = Batches(channel, queue, batch_size=2)
    publish(channel, queue, [1])
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.01)
    publish(channel, other, ["between"])
    held.wait(connection, 2)
    publish(channel, queue, [2])
    drain(connection, lambda: len(got.all) == 2)
    publish(channel, queue, [3, 4])
    drain(connection, lambda: len(got.all) == 4)
    channel.close()
    assert left_in(broker, other, 2) == ["before", "between"]
    assert left_in(broker, queue, 0) == []


def test_messages_of_a_batch_can_be_settled_one_by_one(broker, connection, channel, queue):
    publish(channel, queue, range(12))
    got = Batches(channel, queue, ack=False)
    drain(connection, lambda: len(got.batches) == 3)
    first, second, third = got.batches
    first[1].reject()
    second[3].ack()
    first.ack()
    third.ack()
    second.ack()
    second.ack()  # nothing is left to be acknowledged
    with pytest.raises(exceptions.MessageStateError):
        first[0].ack()
    channel.close()
    assert left_in(broker, queue, 0) == []


def test_batches_are_put_back_or_given_up(broker, connection, channel, queue):
    publish(channel, queue, range(4))
    got = Batches(channel, queue, ack=False)
    drain(connection, lambda: len(got.batches) == 1)
    got.batches[0].requeue()
    drain(connection, lambda: len(got.all) == 8)
    again = [message for batch in got.batches[1:] for message in batch]
    assert sorted(message.payload for message in again) == [0, 1, 2, 3]
    assert all(message.delivery_info["redelivered"] for message in again)
    for batch in got.batches[1:]:
        batch.reject()
    channel.close()
    assert left_in(broker, queue, 0) == []


def test_a_callback_that_raises_leaves_its_batch_outstanding(broker, connection, channel, queue):
    publish(channel, queue, range(6))
    seen = []

    def fail(messages):
        seen.append(messages.payloads)
        if len(seen) == 1:
            raise ZeroDivisionError
        messages.ack()

    with Consumer(channel, queue, on_batch=fail, batch_size=4, batch_timeout=1):
        with pytest.raises(ZeroDivisionError):
            drain(connection, lambda: False)
        drain(connection, lambda: len(seen) == 2)
    assert seen == [[0, 1, 2, 3], [4, 5]]
    channel.close()
    assert left_in(broker, queue, 4) == [0, 1, 2, 3]


def test_what_cannot_be_decoded_is_in_no_batch(connection, channel, queue):
    producer = Producer(channel, routing_key=queue.name)
    producer.publish(1)
    producer.publish("{", content_type="application/json", content_encoding="utf-8")
    producer.publish(2)
    failed = []

    def on_decode_error(message, error):
        failed.append(error)
        message.reject()

    got = Batches(channel, queue, on_decode_error=on_decode_error, batch_size=2)
    drain(connection, lambda: len(got.all) == 2)
    assert got.bodies == [[1, 2]]
    assert [type(error) for error in failed] == [exceptions.DecodeError]


def test_what_cannot_be_decoded_is_raised(connection, channel, queue):
    producer = Producer(channel, routing_key=queue.name)
    producer.publish(1)
    producer.publish("{", content_type="application/json", content_encoding="utf-8")
    got = Batches(channel, queue, batch_timeout=0.05)
    with pytest.raises(exceptions.DecodeError):
        drain(connection, lambda: False)
    drain(connection, lambda: got.bodies == [[1]])


def test_a_batch_is_no_larger_than_the_prefetch_count(connection, channel, queue):
    publish(channel, queue, range(6))
    got = Batches(channel, queue, prefetch_count=3)
    drain(connection, lambda: len(got.all) == 6)
    assert got.bodies == [[0, 1, 2], [3, 4, 5]]


def test_a_batch_is_of_all_queues(broker, connection, channel, queue):
    other = Queue(broker.name("other"))(channel)
    other.declare()
    publish(channel, queue, [1, 2])
    publish(channel, other, [3, 4])
    got = Batches(channel, [queue, other])
    drain(connection, lambda: got.batches)
    assert sorted(got.all) == [1, 2, 3, 4]
    assert len(got.batches) == 1


def test_other_consumers_of_the_connection_are_served(broker, connection, channel, queue):
    other = Queue(broker.name("other"))(channel)
    other.declare()
    publish(channel, queue, [1])
    got = Batches(channel, queue)
    inbox = Inbox(connection.channel(), other)
    publish(channel, other, ["x"])
    assert inbox.wait(connection, 1) == ["x"]
    assert got.batches == []


def test_a_batch_that_is_due_goes_even_where_others_are_busy(broker, connection, channel, queue):
    other = Queue(broker.name("other"))(channel)
    other.declare()
    producer = Producer(channel, routing_key=other.name)
    publish(channel, queue, [1])
    got = Batches(channel, queue, batch_timeout=0.05)
    inbox = Inbox(channel, other)

    def one_more():
        producer.publish("x")  # there is always another
        return got.batches

    drain(connection, one_more)
    assert got.bodies == [[1]]
    assert inbox.bodies


def gather(connection: Any, got: Batches) -> None:
    """Let a batch begin that does not become complete."""
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.05)
    assert got.batches == []


def test_cancelling_puts_back_what_was_gathered(broker, connection, channel, queue):
    publish(channel, queue, range(3))
    got = Batches(channel, queue)
    gather(connection, got)
    got.consumer.cancel()
    assert left_in(broker, queue, 3) == [0, 1, 2]
    assert got.batches == []


def test_cancelling_one_queue_keeps_what_came_of_the_others(broker, connection, channel, queue):
    other = Queue(broker.name("other"))(channel)
    other.declare()
    publish(channel, queue, [1])
    publish(channel, other, [2])
    got = Batches(channel, [queue, other])
    gather(connection, got)
    got.consumer.cancel_by_queue(queue)
    assert left_in(broker, queue, 1) == [1]
    publish(channel, other, [3, 4, 5])
    drain(connection, lambda: got.batches)
    assert got.bodies == [[2, 3, 4, 5]]


def test_closing_the_channel_puts_back_what_was_gathered(broker, connection, channel, queue):
    publish(channel, queue, range(3))
    got = Batches(channel, queue, batch_timeout=1)
    gather(connection, got)
    channel.close()
    time.sleep(1)  # now the batch would be due
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0)
    assert left_in(broker, queue, 3) == [0, 1, 2]
    assert got.batches == []


def test_reviving_on_another_channel_puts_back_what_was_gathered(broker, connection, channel, queue):
    publish(channel, queue, range(3))
    got = Batches(channel, queue)
    gather(connection, got)
    got.consumer.revive(connection.channel())
    publish(channel, queue, [3])
    drain(connection, lambda: got.batches)
    assert sorted(got.all) == [0, 1, 2, 3]
    channel.close()
    got.consumer.channel.close()
    assert left_in(broker, queue, 0) == []


def test_without_acks_what_was_gathered_is_handed_over_at_the_end(broker, connection, channel, queue):
    publish(channel, queue, range(3))
    got = Batches(channel, queue, no_ack=True)
    gather(connection, got)
    got.consumer.cancel()
    assert got.bodies == [[0, 1, 2]]
    channel.close()
    assert left_in(broker, queue, 0) == []


def test_threads_share_a_consumer(broker, connection, channel, queue):
    count = 150
    publish(channel, queue, range(count))
    got = Batches(channel, queue, batch_size=7, batch_timeout=0.05, prefetch_count=50)
    failures: list[BaseException] = []

    def work():
        try:
            while len(got.all) < count:
                try:
                    connection.drain_events(timeout=0.1)
                except TimeoutError:
                    continue
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert sorted(got.all) == list(range(count))
    assert max(map(len, got.batches)) <= 7
    channel.close()
    assert left_in(broker, queue, 0) == []


def test_one_kind_of_callback_only(channel, queue):
    with pytest.raises(ValueError, match="on_batch"):
        Consumer(channel, queue, on_batch=print, callbacks=[print])
    with pytest.raises(ValueError, match="on_batch"):
        Consumer(channel, queue, on_batch=print, on_message=print)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_timeout": -1}, {"batch_timeout": float("nan")}])
def test_batches_that_cannot_be(channel, queue, options):
    with pytest.raises(ValueError, match="a batch"):
        Consumer(channel, queue, on_batch=print, **options)


# --- batches of a producer


def test_a_batch_keeps_the_order_of_each_queue(broker, channel, connection):
    """Messages of one queue that come by several ways, taking turns with those that another queue gets as well."""
    exchange = Exchange(broker.name("turns"), "direct")
    both = Queue(broker.name("both"), [binding(exchange, "odd"), binding(exchange, "even")])(channel)
    even = Queue(broker.name("even"), exchange, "even")(channel)
    both.declare()
    even.declare()
    producer = Producer(channel, exchange)
    with producer.batch():
        for number in range(100):
            producer.publish(number, routing_key="odd" if number % 2 else "even")
        for number in range(100, 104):
            producer.publish(number, routing_key="odd")
    inbox, other = Inbox(channel, both), Inbox(channel, even)
    assert inbox.wait(connection, 104) == list(range(104))
    assert other.wait(connection, 50) == list(range(0, 100, 2))


def test_a_batch_keeps_the_order_of_what_all_get(broker, channel, connection):
    exchange = Exchange(broker.name("all"), "fanout")
    queue = Queue(broker.name("one"), exchange, auto_delete=True)
    inbox = Inbox(channel, queue)
    producer = Producer(channel, exchange)
    while not inbox.bodies:  # some brokers have the binding a moment later
        producer.publish(-1)
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.05)
    with producer.batch():
        for number in range(100):
            producer.publish(number, routing_key="ab"[number % 2])
    drain(connection, lambda: 99 in inbox.bodies)
    assert [body for body in inbox.bodies if body >= 0] == list(range(100))
