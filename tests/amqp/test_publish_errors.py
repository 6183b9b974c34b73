"""What the broker refuses is reported to whoever published it, and to nobody else; a closed channel stays closed."""

from __future__ import annotations

import threading
import time

import pytest

from kombulite import Consumer, Exchange, Producer, Queue, exceptions
from kombulite._core import Delivery
from kombulite.brokers.amqp import protocol
from tests.amqp.conftest import in_threads


@pytest.fixture
def full_queue(name, channel):
    """A queue that takes two messages and refuses more."""
    queue = Queue(name("full"), max_length=2, queue_arguments={"x-overflow": "reject-publish"})(channel)
    queue.declare()
    yield queue
    queue.delete()


def vanishing(connection, name):
    """An exchange that was published to, and is gone now; and its producer."""
    exchange = Exchange(name, "fanout")
    producer = Producer(connection, exchange)
    producer.publish("taken")
    with connection.clone() as other:
        other.default_channel.exchange_delete(name)
    return producer


def until_raised(publish, timeout=30):
    """Call it until it raises; the broker's word may take a moment."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        publish()
        time.sleep(0.02)
    raise AssertionError("no error")


# --- without confirms


def test_missing_exchange_is_an_error_of_that_very_publish(connection, name):
    producer = Producer(connection)
    for _ in range(3):
        with pytest.raises(exceptions.NotFound) as caught:
            producer.publish("x", exchange=name("missing"), routing_key="q")
        assert caught.value.method_sig == (60, 40)
    producer.publish("x", routing_key=name("nowhere"))
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)


def test_many_messages_to_a_missing_exchange(connection, name):
    producer = Producer(connection)
    for _ in range(2):
        with pytest.raises(exceptions.NotFound):
            producer.publish_many(range(5), exchange=name("missing"), routing_key="q")
    with pytest.raises(exceptions.NotFound), producer.batch():
        producer.publish("x", exchange=name("missing"))
    producer.publish("x", routing_key=name("nowhere"))


def test_exchange_deleted_later(connection, name):
    """The error comes out of the same producer's next publishes, and only there."""
    producer = vanishing(connection, name("gone"))
    other = Producer(connection)
    other.publish("x", routing_key=name("nowhere"))
    with connection.channel() as innocent:
        producer._declared, producer.auto_declare = None, False
        with pytest.raises(exceptions.NotFound):
            until_raised(lambda: (producer.publish("lost"), innocent.queue_declare(name("innocent"), exclusive=True)))
        # The other producer on that channel may have lost something too: it is told, once.
        with pytest.raises(exceptions.NotFound):
            other.publish("x", routing_key=name("nowhere"))
        other.publish("x", routing_key=name("nowhere"))
        assert innocent.is_open
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)


def test_consumer_on_the_closed_channel_is_told_by_drain_events(connection, name, queue):
    channel = connection.channel()
    exchange = Exchange(name("gone"), "fanout")
    producer = Producer(channel, exchange)
    producer.publish("taken")
    consumer = Consumer(channel, Queue(queue.name, no_declare=True), on_message=lambda message: None)
    consumer.consume()
    with connection.clone() as other:
        other.default_channel.exchange_delete(exchange.name)
    producer.publish("lost")
    with pytest.raises(exceptions.NotFound):
        connection.drain_events(timeout=30)
    assert not channel.is_open
    with pytest.raises(exceptions.RecoverableConnectionError):
        channel.queue_declare(name("half-alive"))
    assert connection.connected
    bodies = []
    consumer.on_message = lambda message: bodies.append(message.payload)
    consumer.revive(connection.channel())
    Producer(connection).publish("revived", routing_key=queue.name)
    connection.drain_events(timeout=30)
    assert bodies == ["revived"]


@pytest.mark.parametrize("revived", [False, True])
def test_consumer_is_told_though_the_producer_was_first(connection, name, queue, revived):
    """Unless it has another channel already."""
    channel = connection.channel()
    consumer = Consumer(channel, Queue(queue.name, no_declare=True), on_message=lambda message: None)
    consumer.consume()
    with pytest.raises(exceptions.NotFound):
        Producer(channel).publish("x", exchange=name("missing"))
    if revived:
        consumer.revive(connection.channel())
        connection.drain_events(timeout=30)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
    else:
        with pytest.raises(exceptions.NotFound):
            connection.drain_events(timeout=30)


def test_thread_that_drains_is_told_at_once(connection, name, queue):
    channel = connection.channel()
    Consumer(channel, Queue(queue.name, no_declare=True), on_message=lambda message: None).consume()
    draining = threading.Event()

    def drain():
        draining.set()
        with pytest.raises(exceptions.NotFound):
            connection.drain_events(timeout=None)

    def fail():
        draining.wait(10)
        time.sleep(0.2)
        with pytest.raises(exceptions.NotFound):
            channel.queue_declare(name("missing"), passive=True)

    in_threads(drain, fail)


def test_failed_publishes_leave_nothing_behind(connection, name):
    """A process that only publishes never drains."""
    producer = Producer(connection)
    for _ in range(150):
        with pytest.raises(exceptions.NotFound):
            producer.publish("x", exchange=name("missing"))
    assert not connection.transport._protocol.events
    assert not connection.transport._protocol._failed


def test_threads_that_publish_while_their_channel_is_closed(connection, name):
    """They get the channel's error, and the connection lives on: nothing is sent on a closed channel."""
    for _ in range(5):
        channel = connection.channel()
        channel.exchange_declare(name("gone"), "fanout", durable=False)
        producers = [Producer(channel, Exchange(name("gone"), "fanout", no_declare=True)) for _ in range(4)]

        def publish(producer):
            with pytest.raises((exceptions.NotFound, exceptions.RecoverableConnectionError)):
                until_raised(lambda: [producer.publish("x") for _ in range(50)])

        def delete():
            time.sleep(0.05)
            connection.default_channel.exchange_delete(name("gone"))

        in_threads(*[lambda producer=producer: publish(producer) for producer in producers], delete)
        assert connection.connected
        connection.default_channel.queue_declare(name("alive"), exclusive=True)


def test_error_of_a_request_names_it(channel, name):
    with pytest.raises(exceptions.NotFound, match=r"^Queue\.declare: \(404\) NOT_FOUND - ") as caught:
        channel.queue_declare(name("missing"), passive=True)
    assert caught.value.reply_code == caught.value.code == 404
    assert caught.value.method_name == "Queue.declare"
    assert not channel.is_open
    for verb in (lambda: channel.queue_declare("x"), lambda: channel.basic_ack(1), lambda: channel.basic_qos(0, 1)):
        with pytest.raises(exceptions.RecoverableConnectionError, match="closed"):
            verb()


def test_unroutable_message_comes_back_to_its_listener(connection, name):
    returned = []
    producer = Producer(connection, on_return=lambda error, exchange, key, message: returned.append((key, message)))
    producer.publish("lost", routing_key=name("nowhere"), mandatory=True)
    if not returned:
        connection.drain_events(timeout=30)
    ((key, message),) = returned
    assert key == name("nowhere")
    assert message.payload == "lost"
    producer.on_return = None
    producer = Producer(connection.channel())
    with pytest.raises(exceptions.MessageReturned) as caught:
        producer.publish("lost", routing_key=name("nowhere"), mandatory=True)
        connection.drain_events(timeout=30)
    assert caught.value.reply_code == 312


def test_process_that_only_publishes_gets_what_comes_back(connection, name):
    returned = []
    producer = Producer(connection, on_return=lambda error, exchange, key, message: returned.append(message.payload))
    for number in range(300):
        producer.publish(number, routing_key=name("nowhere"), mandatory=True)
    deadline = time.monotonic() + 30
    while len(returned) < 300 and time.monotonic() < deadline:
        time.sleep(0.02)
        producer.publish("more", routing_key=name("nowhere"), mandatory=True)
    assert returned[:300] == list(range(300))


def test_returned_messages_do_not_pile_up_without_end(connection, name, monkeypatch, caplog):
    monkeypatch.setattr(protocol, "MAX_WAITING_EVENTS", 20)
    channel = connection.channel()
    message = channel.prepare_message("lost", content_type="text/plain", content_encoding="utf-8")
    for number in range(50):
        channel._transport.publish(
            channel.channel_id, Delivery("", f"{name('nowhere')}.{number}", message.properties, b""), mandatory=True
        )
    channel.queue_declare(name("answer"), auto_delete=True, exclusive=True)  # what came back is here before the answer
    keys = [
        event.delivery.routing_key.rpartition(".")[2] for event in channel._transport.take_returned(channel.channel_id)
    ]
    assert keys == [str(number) for number in range(30, 50)]
    assert caplog.text.count("returned messages are dropped") == 1


# --- with confirms


@pytest.mark.parametrize("count", [5, 3000])
def test_refused_messages_of_publish_many(confirming, full_queue, count):
    with pytest.raises(exceptions.BatchPublishError) as caught:
        Producer(confirming).publish_many(range(count), routing_key=full_queue.name)
    assert [index for index, _ in caught.value.refused] == list(range(2, count))
    assert all(type(error) is exceptions.MessageNacked for _, error in caught.value.refused)
    assert caught.value.published == 2


def test_refused_messages_of_a_batch(confirming, full_queue, queue):
    producer = Producer(confirming)
    with pytest.raises(exceptions.BatchPublishError) as caught, producer.batch():
        for number in range(10):
            producer.publish(number, routing_key=(queue if number % 2 else full_queue).name)
    assert [index for index, _ in caught.value.refused] == [4, 6, 8]
    assert queue.queue_declare(passive=True).message_count == 5


def test_returned_messages_of_a_batch(confirming, queue, name):
    producer = Producer(confirming)
    with pytest.raises(exceptions.BatchPublishError) as caught, producer.batch():
        for number in range(20):
            lost = number % 3 == 0
            key = name("nowhere") if lost else queue.name
            producer.publish("same", routing_key=key, mandatory=True)
    assert [index for index, _ in caught.value.refused] == list(range(0, 20, 3))
    assert all(type(error) is exceptions.MessageReturned for _, error in caught.value.refused)
    assert queue.queue_declare(passive=True).message_count == 13


def test_the_message_that_closes_the_channel_of_a_batch_is_named(confirming, name, queue):
    producer = Producer(confirming)
    with pytest.raises(exceptions.BatchPublishError) as caught, producer.batch():
        for number in range(7):
            producer.publish(number, exchange=name("missing") if number == 3 else "", routing_key=queue.name)
    refused = dict(caught.value.refused)
    assert isinstance(refused.pop(3), exceptions.NotFound)
    assert refused.keys() >= {4, 5, 6}  # of those before it the broker may have confirmed some
    assert all(isinstance(error, exceptions.RecoverableChannelError) for error in refused.values())
    for number in refused:
        producer.publish(number, routing_key=queue.name)
    bodies = {message.payload for message in iter(lambda: queue.get(no_ack=True), None)}
    assert bodies == {0, 1, 2, 4, 5, 6}


def test_confirmed_publish_to_a_missing_exchange(confirming, name, queue):
    producer = Producer(confirming)
    with pytest.raises(exceptions.NotFound):
        producer.publish("x", exchange=name("missing"))
    with pytest.raises(exceptions.BatchPublishError) as caught:
        producer.publish_many(range(2500), exchange=name("missing"))
    assert [index for index, _ in caught.value.refused] == list(range(2500))
    producer.publish("x", routing_key=queue.name)
    assert queue.get().payload == "x"


@pytest.mark.parametrize("cause", ["publish", "declare"])
def test_a_thread_whose_fault_closes_the_channel_fails_alone(confirming, name, queue, cause):
    """It shares the channel of the others, which the broker closes each time."""
    innocent = Producer(confirming)

    def publish():
        for number in range(200):
            innocent.publish(number, routing_key=queue.name, retry=True)

    def publish_to_what_is_missing():
        with pytest.raises(exceptions.NotFound):
            Producer(confirming).publish("x", exchange=name("missing"))

    def declare_what_is_missing():
        with pytest.raises((exceptions.NotFound, exceptions.RecoverableConnectionError)):
            confirming.default_channel.queue_declare(name("missing"), passive=True)

    def fail():
        for _ in range(30):
            publish_to_what_is_missing() if cause == "publish" else declare_what_is_missing()

    in_threads(publish, publish, fail)
    bodies = [message.payload for message in iter(lambda: queue.get(no_ack=True), None)]
    assert {*bodies} == {*range(200)}
    assert len(bodies) >= 400  # one whose confirm was on its way may be there twice


def test_one_connection_many_confirming_threads(confirming, channel, queue):
    producers = [Producer(confirming.channel()) for _ in range(2)]
    producers += [Producer(confirming) for _ in range(4)]

    def publish(producer):
        for number in range(100):
            producer.publish(number, routing_key=queue.name, delivery_mode=1)
        producer.publish_many(range(400), routing_key=queue.name, delivery_mode=1)

    in_threads(*[lambda producer=producer: publish(producer) for producer in producers])
    assert queue.queue_declare(passive=True).message_count == 3000
