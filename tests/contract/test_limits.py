"""Limits and their consequences: priorities, times to live, lengths, dead letters."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import pytest

from kombulite import Exchange, Producer, Queue, exceptions
from tests.contract.conftest import Inbox, arrive, soon, take


def make(broker, channel, base, **options):
    queue = Queue(broker.name(base), **options)(channel)
    queue.declare()
    return queue


def with_dead_letters(broker, channel, **options):
    """A queue, and the queue of its dead letters."""
    dead = make(broker, channel, "dead")
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name}
    arguments.update(options.pop("queue_arguments", {}))
    return make(broker, channel, "alive", queue_arguments=arguments, **options), dead


def bodies(queue):
    found = []
    while (message := queue.get(no_ack=True)) is not None:
        found.append(message.payload)
    return found


@pytest.mark.needs("priorities")
def test_highest_priority_first(broker, channel):
    queue = make(broker, channel, "priorities", max_priority=5)
    producer = Producer(channel)
    for body, priority in [("low", 1), ("none", 0), ("high", 5), ("too high", 9), ("middle", 3), ("high 2", 5)]:
        producer.publish(body, routing_key=queue.name, priority=priority)
    assert bodies(queue) == ["high", "too high", "high 2", "middle", "low", "none"]


@pytest.mark.needs("priorities")
def test_priority_is_ignored_by_a_queue_without(channel, queue):
    producer = Producer(channel)
    for priority in (0, 9, 5):
        producer.publish(priority, routing_key=queue.name, priority=priority)
    assert bodies(queue) == [0, 9, 5]


@pytest.mark.needs("priorities")
def test_requeued_message_keeps_its_place_among_its_priority(broker, channel):
    queue = make(broker, channel, "priorities", max_priority=5)
    producer = Producer(channel)
    for body, priority in [("a5", 5), ("b5", 5), ("c1", 1)]:
        producer.publish(body, routing_key=queue.name, priority=priority)
    queue.get().requeue()
    assert bodies(queue) == ["a5", "b5", "c1"]


@pytest.mark.needs("expiration")
def test_message_with_expiration_is_gone_after_it(channel, queue):
    Producer(channel).publish("short", routing_key=queue.name, expiration=0.1)
    arrive(queue)
    time.sleep(0.2)
    assert queue.get() is None


@pytest.mark.needs("expiration")
def test_header_of_the_application_does_not_keep_a_late_message(channel, queue):
    Producer(channel).publish("late", routing_key=queue.name, expiration=0.001, headers={"expires": "2030-01-01"})
    arrive(queue)
    time.sleep(0.05)
    assert queue.get() is None


def test_late_task_that_says_when_it_expired_reaches_the_receiver(channel, queue):
    if channel.connection.transport.driver_type == "amqp":
        pytest.skip("the broker drops it, with kombu too")
    headers = {"task": "add", "id": "7", "expires": "2026-01-01T00:00:00+00:00"}  # as Celery's tasks have them
    Producer(channel).publish("late", routing_key=queue.name, expiration=0.001, headers=headers)
    time.sleep(0.05)
    assert queue.get().payload == "late"


def test_message_with_expiration_is_there_before_it(channel, queue):
    Producer(channel).publish("long", routing_key=queue.name, expiration=60)
    assert queue.get().payload == "long"


@pytest.mark.needs("expiration", "expiry in place")
def test_time_to_live_of_a_queue(broker, channel):
    queue = make(broker, channel, "ttl", message_ttl=0.1)
    Producer(channel).publish("short", routing_key=queue.name)
    arrive(queue)
    time.sleep(0.2)
    assert soon(lambda: queue.queue_declare(passive=True).message_count, lambda count: count == 0) == 0


@pytest.mark.needs("expiration")
def test_bad_expiration_is_refused(channel, queue):
    message = channel.prepare_message(b"x", properties={"expiration": "soon"})
    with pytest.raises(exceptions.PreconditionFailed):
        channel.basic_publish(message, routing_key=queue.name)
    assert queue(channel.connection.channel()).get() is None


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"x-message-ttl": -1}, marks=pytest.mark.needs("expiration")),
        pytest.param({"x-max-length": "many"}, marks=pytest.mark.needs("lengths")),
        pytest.param({"x-overflow": "explode"}, marks=pytest.mark.needs("lengths")),
        pytest.param({"x-max-priority": 1000}, marks=pytest.mark.needs("priorities")),
    ],
)
def test_bad_queue_arguments_are_refused(broker, channel, arguments):
    with pytest.raises(exceptions.PreconditionFailed):
        make(broker, channel, "bad", queue_arguments=arguments)


@pytest.mark.needs("dead letters")
def test_expired_messages_become_dead_letters_while_a_consumer_waits_for_them(broker, connection, channel):
    alive, dead = with_dead_letters(broker, channel)
    inbox = Inbox(channel, dead)
    Producer(channel).publish({"delayed": 1}, routing_key=alive.name, expiration=0.2)
    assert inbox.wait(connection, 1, timeout=30) == [{"delayed": 1}]
    message = inbox.messages[0]
    (death,) = message.headers["x-death"]
    assert death["reason"] == "expired"
    assert death["queue"] == alive.name
    assert death["count"] == 1
    assert death["original-expiration"] == "200"
    assert message.headers["x-first-death-queue"] == alive.name
    assert "expiration" not in message.properties


@pytest.mark.needs("dead letters")
def test_rejected_messages_become_dead_letters(broker, channel):
    alive, dead = with_dead_letters(broker, channel)
    Producer(channel).publish("poison", routing_key=alive.name)
    alive.get().reject()
    message = soon(dead.get)
    assert message.payload == "poison"
    assert message.headers["x-death"][0]["reason"] == "rejected"


@pytest.mark.needs("dead letters")
def test_dead_letters_keep_their_routing_key_and_go_through_an_exchange(broker, channel):
    exchange = Exchange(broker.name("dlx"), "topic")
    dead = make(broker, channel, "dead", exchange=exchange, routing_key="orders.#")
    source = Exchange(broker.name("in"), "topic")
    alive = make(
        broker,
        channel,
        "alive",
        exchange=source,
        routing_key="orders.*",
        queue_arguments={"x-dead-letter-exchange": exchange.name},
    )
    Producer(channel, source).publish(1, routing_key="orders.new")
    alive.get().reject()
    message = soon(dead.get)
    assert message.delivery_info["routing_key"] == "orders.new"
    assert message.headers["x-death"][0]["routing-keys"] == ["orders.new"]
    assert message.headers["x-death"][0]["exchange"] == source.name


@pytest.mark.needs("lengths")
def test_full_queue_drops_its_head(broker, channel):
    alive, dead = with_dead_letters(broker, channel, max_length=3)
    Producer(channel).publish_many(range(5), routing_key=alive.name)
    assert bodies(alive) == [2, 3, 4]
    first = soon(dead.get)
    assert first.payload == 0
    assert first.headers["x-death"][0]["reason"] == "maxlen"


@pytest.mark.needs("lengths")
def test_limit_in_bytes(broker, channel):
    queue = make(broker, channel, "bytes", max_length_bytes=250)
    for i in range(5):
        Producer(channel).publish(bytes([i]) * 100, routing_key=queue.name)
    assert [body[0] for body in bodies(queue)] == [3, 4]


@pytest.mark.needs("lengths")
@pytest.mark.needs("nacks")
def test_full_queue_may_refuse(broker, channel):
    queue = make(broker, channel, "refuse", max_length=2, queue_arguments={"x-overflow": "reject-publish"})
    producer = Producer(channel)
    with pytest.raises(exceptions.BatchPublishError) as caught:
        producer.publish_many(range(5), routing_key=queue.name)
    assert [index for index, _ in caught.value.refused] == [2, 3, 4]
    assert caught.value.published == 2
    with pytest.raises(exceptions.MessageNacked):
        producer.publish(5, routing_key=queue.name)
    assert bodies(queue) == [0, 1]
    producer.publish(6, routing_key=queue.name)
    assert bodies(queue) == [6]


@pytest.mark.needs("lengths")
@pytest.mark.needs("nacks")
def test_batch_names_the_messages_that_were_refused(broker, channel):
    queue = make(broker, channel, "refuse", max_length=1, queue_arguments={"x-overflow": "reject-publish"})
    producer = Producer(channel)
    with pytest.raises(exceptions.BatchPublishError) as caught, producer.batch():
        for i in range(3):
            producer.publish(i, routing_key=queue.name)
    assert [index for index, _ in caught.value.refused] == [1, 2]


@pytest.mark.needs("dead letters")
def test_dead_letters_that_go_in_a_circle_end(broker, channel):
    name = broker.name("circle")
    queue = make(
        broker,
        channel,
        "circle",
        max_length=1,
        queue_arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name},
    )
    Producer(channel).publish_many(range(3000), routing_key=queue.name)
    assert len(bodies(queue)) == 1


@pytest.mark.parametrize("forged", ["bogus", 5, [{}], [{"queue": "q", "reason": 1, "count": "x"}], {"queue": "q"}])
@pytest.mark.needs("dead letters")
def test_forged_death_certificates_harm_nobody(broker, channel, forged):
    alive, dead = with_dead_letters(broker, channel)
    producer = Producer(channel)
    producer.publish("forged", routing_key=alive.name, headers={"x-death": forged})
    alive.get().reject()
    producer.publish("forged", routing_key=alive.name, headers={"x-death": forged}, expiration=0.05)
    producer.publish("good", routing_key=alive.name, expiration=0.05)
    arrive(alive)
    time.sleep(0.1)
    assert alive.get() is None
    letters = [soon(dead.get) for _ in range(3)]
    assert [letter.payload for letter in letters] == ["forged", "forged", "good"]
    assert letters[0].headers["x-death"][0]["count"] == 1


@pytest.mark.needs("dead letters")
@pytest.mark.parametrize(
    "arguments",
    [
        {"x-dead-letter-exchange": 5},
        {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": []},
        {"x-dead-letter-routing-key": "no exchange for it"},
    ],
)
@pytest.mark.needs("dead letters")
def test_bad_dead_letter_arguments_are_refused(broker, channel, arguments):
    with pytest.raises(exceptions.PreconditionFailed):
        make(broker, channel, "bad", queue_arguments=arguments)


@pytest.mark.needs("alternates")
def test_bad_alternate_exchange_is_refused(broker, channel):
    with pytest.raises(exceptions.PreconditionFailed):
        Exchange(broker.name("bad"), arguments={"alternate-exchange": [1]})(channel).declare()


@pytest.mark.needs("headers")
def test_binding_arguments_that_cannot_be_compared_are_refused(broker, channel, queue):
    exchange = Exchange(broker.name("headers"), "headers")(channel)
    exchange.declare()
    with pytest.raises((exceptions.PreconditionFailed, exceptions.EncodeError)):
        queue.bind_to(exchange, arguments={"a": {1, 2}})


@pytest.mark.needs("expiration")
def test_time_to_live_behind_a_message_without_one(channel, queue):
    producer = Producer(channel)
    producer.publish("stays", routing_key=queue.name)
    producer.publish("short", routing_key=queue.name, expiration=0.1)
    arrive(queue)
    queue.get().ack()
    time.sleep(0.2)
    assert queue.get() is None


@pytest.mark.needs("expiration")
def test_time_to_live_of_a_requeued_message(channel, queue):
    Producer(channel).publish("short", routing_key=queue.name, expiration=1)
    message = queue.get()
    queue.queue_declare(passive=True)
    message.requeue()
    time.sleep(1.2)
    assert queue.get() is None


@pytest.mark.needs("expiration")
def test_expired_messages_leave_room(broker, channel):
    queue = make(
        broker, channel, "room", message_ttl=0.1, max_length=1, queue_arguments={"x-overflow": "reject-publish"}
    )
    Producer(channel).publish(1, routing_key=queue.name)
    arrive(queue)
    time.sleep(0.2)

    def publish_and_get():
        Producer(channel).publish(2, routing_key=queue.name)
        return bodies(queue)  # it may have expired meanwhile

    assert soon(publish_and_get) == [2]


@pytest.mark.needs("queue expiry")
def test_queue_past_its_time_takes_nothing_and_may_be_declared_again(broker, connection, channel):
    exchange = Exchange(broker.name("expired"), "fanout")
    queue = make(broker, channel, "expired", exchange=exchange, expires=1)  # time enough for the binding
    time.sleep(1.1)
    returned = []
    producer = Producer(channel, exchange, on_return=lambda *args: returned.append(args))

    is_late = broker.kind.startswith("amqp")  # RabbitMQ deletes it by a timer

    def publish():
        producer.publish(1, mandatory=True)
        if not returned:
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.1 if is_late else 10)
        return returned

    assert soon(publish, timeout=20 if is_late else 0)
    queue.declare()
    time.sleep(1.1)
    assert queue.delete() == 0


@pytest.mark.needs("channel prefetch")
def test_consumer_without_credit_leaves_the_message_to_others(broker, connection, channel):
    """Also where both messages wait before the first is taken."""
    shared, own = make(broker, channel, "shared"), make(broker, channel, "own")
    greedy = Inbox(channel, [own, shared], ack=False, prefetch_count=1)
    other = connection.clone()
    patient = Inbox(other.channel(), shared)
    waiting = threading.Thread(target=lambda: patient.wait(other, 1, timeout=20))
    waiting.start()
    time.sleep(0.2)
    producer = Producer(broker.connect())
    with producer.batch():
        producer.publish("own", routing_key=own.name)
        producer.publish("shared", routing_key=shared.name)
    greedy.wait(connection, 1)
    waiting.join(20)
    other.release()
    assert sorted(greedy.bodies + patient.bodies) == ["own", "shared"]


@pytest.mark.needs("queue expiry")
def test_unused_queue_expires(broker, connection, channel):
    queue = make(broker, channel, "expires", expires=1)
    inbox = Inbox(channel, queue)
    time.sleep(1.2)
    assert queue.queue_declare(passive=True).consumer_count == 1
    inbox.consumer.cancel()

    def is_gone():
        time.sleep(1.2)  # to ask is to use it
        try:
            Queue(queue.name)(connection.channel()).queue_declare(passive=True)
        except exceptions.NotFound:
            return True
        return False

    assert soon(is_gone)


@pytest.mark.needs("channel prefetch")
def test_prefetch_limit_is_of_the_channel_and_may_change(connection, channel, queue):
    Producer(channel).publish_many(range(6), routing_key=queue.name)
    inbox = Inbox(channel, queue, ack=False, prefetch_count=2)
    inbox.wait(connection, 2)
    inbox.consumer.qos(prefetch_count=4)
    inbox.wait(connection, 4)
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.1)
    inbox.consumer.qos(prefetch_count=0)
    assert inbox.wait(connection, 6) == list(range(6))


@pytest.mark.needs("a thread of its own")
def test_what_one_consumer_may_not_take_another_gets(connection, channel, queue):
    greedy = Inbox(channel, queue, ack=False, prefetch_count=1)
    other_connection = connection.clone()
    patient = Inbox(other_connection.channel(), queue)
    Producer(channel).publish(1, routing_key=queue.name)
    greedy.wait(connection, 1)
    Producer(channel).publish(2, routing_key=queue.name)
    assert patient.wait(other_connection, 1) == [2]
    other_connection.release()


@pytest.mark.needs("places in the queue")
def test_messages_taken_in_any_order_go_back_to_their_places(channel, queue):
    Producer(channel).publish_many(range(6), routing_key=queue.name)
    taken = take(queue, 6)
    for index in (3, 0, 5, 1, 4, 2):
        taken[index].requeue()
    assert bodies(queue) == [0, 1, 2, 3, 4, 5]
