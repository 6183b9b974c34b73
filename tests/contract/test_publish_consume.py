"""What goes in comes out: bodies, properties, acknowledgements, order."""

from __future__ import annotations

import datetime
import decimal
import os
import signal
import socket
import threading
import time
import uuid
from contextlib import suppress

import pytest

from kombulite import Consumer, Exchange, Producer, Queue, exceptions
from tests.contract.conftest import Inbox, drain, soon, take


def test_media_example(broker, connection):
    media = Exchange(broker.name("media"), "direct", durable=True)
    video = Queue(broker.name("video"), exchange=media, routing_key="video")
    producer = connection.Producer(serializer="json")
    body = {"name": "/tmp/lolcat1.avi", "size": 1301013}
    producer.publish(body, exchange=media, routing_key="video", declare=[video])
    got = []

    def process(body, message):
        got.append(body)
        message.ack()

    with connection.Consumer(video, callbacks=[process]):
        connection.drain_events(timeout=20)
    assert got == [{"name": "/tmp/lolcat1.avi", "size": 1301013}]


@pytest.mark.parametrize(
    "body",
    [
        {"id": 7, "nested": {"list": [1, 2.5, None, True, "text"]}},
        [],
        "plain text with ü and \U0001f600",
        b"raw \x00\xff bytes",
        12345678901234567890123,
        None,
        {"at": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)},
        {"price": decimal.Decimal("1.50"), "id": uuid.UUID(int=5), "day": datetime.date(2026, 1, 2), "raw": b"\xff"},
    ],
)
def test_bodies_arrive_as_they_were(channel, queue, body):
    Producer(channel).publish(body, routing_key=queue.name)
    message = queue.get(no_ack=True)
    assert message is not None
    assert message.payload == body


def test_properties_arrive(channel, queue):
    reply_queue = Queue("answers")
    Producer(channel).publish(
        {"a": 1},
        routing_key=queue.name,
        headers={"h": [1, "x"], "deep": {"y": None}},
        correlation_id="c-1",
        reply_to=reply_queue,
        message_id="m-1",
        timestamp=1767323045,
        type="greeting",
        app_id="app",
        priority=3,
        delivery_mode="transient",
        expiration=60,
    )
    message = queue.get(no_ack=True)
    assert message.headers == {"h": [1, "x"], "deep": {"y": None}}
    assert message.properties["correlation_id"] == "c-1"
    assert message.properties["reply_to"] == "answers"
    assert message.properties["message_id"] == "m-1"
    assert message.properties["timestamp"] == 1767323045
    assert message.properties["type"] == "greeting"
    assert message.properties["app_id"] == "app"
    assert message.properties["priority"] == 3
    assert message.properties["delivery_mode"] == 1
    assert message.properties["expiration"] == "60000"
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")


def test_delivery_info_says_how_it_came(broker, connection, channel):
    exchange = Exchange(broker.name("info"), "topic")
    queue = Queue(broker.name("info"), exchange, routing_key="a.#")(channel)
    queue.declare()
    producer = Producer(channel, exchange)
    producer.publish(1, routing_key="a.b")
    producer.publish(2, routing_key="a.c")
    first = queue.get()
    assert first.delivery_info["exchange"] == exchange.name
    assert first.delivery_info["routing_key"] == "a.b"
    assert not first.delivery_info["redelivered"]
    assert first.delivery_info["message_count"] == 1
    inbox = Inbox(channel, queue, tag_prefix="tag-")
    inbox.wait(connection, 1)
    assert inbox.messages[0].delivery_info["consumer_tag"].startswith("tag-")


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_compressed_bodies(channel, queue, compression):
    headers = {"mine": 1}
    Producer(channel, compression=compression).publish({"text": "x" * 5000}, routing_key=queue.name, headers=headers)
    message = queue.get(no_ack=True)
    assert message.payload == {"text": "x" * 5000}
    assert message.headers["mine"] == 1
    assert headers == {"mine": 1}


def test_content_type_of_ones_own(channel, queue):
    producer = Producer(channel)
    producer.publish("grüße", routing_key=queue.name, content_type="text/x-mine", content_encoding="latin-1")
    producer.publish(b"\x00\x01", routing_key=queue.name, content_type="application/x-mine")
    text, raw = take(queue, 2, no_ack=True)
    assert (text.content_type, text.payload) == ("text/x-mine", "grüße")
    assert (raw.content_encoding, raw.payload) == ("binary", b"\x00\x01")


def test_order_is_kept(connection, channel, queue):
    producer = Producer(channel)
    for i in range(200):
        producer.publish(i, routing_key=queue.name)
    inbox = Inbox(channel, queue)
    assert inbox.wait(connection, 200) == list(range(200))


def test_get_of_an_empty_queue_is_none(queue):
    assert queue.get() is None


def test_what_is_not_acknowledged_comes_back_when_the_channel_closes(connection, channel, queue):
    Producer(channel).publish_many(range(5), routing_key=queue.name)
    other = connection.channel()
    taken = take(queue(other), 3)
    taken[1].ack()
    other.close()
    back = take(queue, 4)
    assert [message.payload for message in back] == [0, 2, 3, 4]
    assert [message.delivery_info["redelivered"] for message in back] == [True, True, False, False]


def test_what_is_not_acknowledged_comes_back_when_the_connection_closes(broker, queue, channel):
    Producer(channel).publish_many(range(3), routing_key=queue.name)
    other = broker.connect()
    take(queue(other), 3)
    other.release()
    assert [message.payload for message in take(queue, 3)] == [0, 1, 2]


def test_requeued_message_comes_first_and_is_marked(queue, channel):
    Producer(channel).publish_many(["first", "second"], routing_key=queue.name)
    first = queue.get()
    first.requeue()
    again = queue.get()
    assert again.payload == "first"
    assert again.delivery_info["redelivered"]
    assert not first.delivery_info["redelivered"]
    again.ack()
    assert queue.get().payload == "second"


def test_rejected_message_is_gone(queue, channel):
    Producer(channel).publish("bad", routing_key=queue.name)
    queue.get().reject()
    assert queue.get() is None
    queue.channel.close()
    assert Queue(queue.name)(channel.connection).get() is None


def test_ack_multiple(connection, channel, queue):
    Producer(channel).publish_many(range(5), routing_key=queue.name)
    other = connection.channel()
    taken = take(queue(other), 4)
    taken[2].ack(multiple=True)
    other.close()
    assert [message.payload for message in take(queue, 2)] == [3, 4]


def test_settling_twice_is_refused(queue, channel):
    Producer(channel).publish_many(range(3), routing_key=queue.name)
    acked, rejected, requeued = take(queue, 3)
    acked.ack()
    rejected.reject()
    requeued.requeue()
    for message in (acked, rejected, requeued):
        assert message.acknowledged
        for settle in (message.ack, message.reject, message.requeue):
            with pytest.raises(exceptions.MessageStateError):
                settle()


def test_unknown_delivery_tag_is_refused(queue):
    with pytest.raises(exceptions.PreconditionFailed):
        queue.channel.basic_ack(4711)


def test_no_ack_consumer(connection, channel, queue):
    Producer(channel).publish_many(range(3), routing_key=queue.name)
    inbox = Inbox(channel, queue, ack=False, no_ack=True)
    assert inbox.wait(connection, 3) == [0, 1, 2]
    inbox.messages[0].ack()  # nothing waits for it, and nothing happens
    channel.close()
    assert Queue(queue.name)(connection).get() is None


def test_prefetch_bounds_what_is_outstanding(connection, channel, queue):
    Producer(channel).publish_many(range(10), routing_key=queue.name)
    inbox = Inbox(channel, queue, ack=False, prefetch_count=3)
    inbox.wait(connection, 3)
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.2)
    assert inbox.bodies == [0, 1, 2]
    inbox.messages[0].ack()
    inbox.wait(connection, 4)
    assert inbox.bodies == [0, 1, 2, 3]


def test_cancelled_consumer_gets_nothing_more(connection, channel, queue):
    producer = Producer(channel)
    inbox = Inbox(channel, queue)
    producer.publish(1, routing_key=queue.name)
    inbox.wait(connection, 1)
    inbox.consumer.cancel()
    producer.publish(2, routing_key=queue.name)
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.2)
    assert inbox.bodies == [1]
    assert queue.get().payload == 2


@pytest.mark.parametrize("end", ["collect", "release"])
def test_consumer_that_went_with_its_connection_may_be_cancelled(connection, channel, queue, end):
    """As with kombu: Celery cancels its consumers after it has dropped the connection."""
    inbox = Inbox(channel, queue)
    getattr(connection, end)()
    inbox.consumer.cancel()
    inbox.consumer.cancel()


def test_consumers_of_one_queue_on_one_connection_share_it(connection, channel, queue):
    Producer(channel).publish_many(range(10), routing_key=queue.name)
    first = Inbox(channel, queue, prefetch_count=1)
    second = Inbox(connection.channel(), queue, prefetch_count=1)
    drain(connection, lambda: len(first.bodies) + len(second.bodies) == 10)
    assert sorted(first.bodies + second.bodies) == list(range(10))
    assert first.bodies
    assert second.bodies
    first.consumer.cancel()
    Producer(channel).publish(10, routing_key=queue.name)
    second.wait(connection, len(second.bodies) + 1)
    assert second.bodies[-1] == 10


def test_one_consumer_of_several_queues(broker, connection, channel):
    queues = [Queue(broker.name(f"several{i}")) for i in range(3)]
    inbox = Inbox(channel, queues)
    producer = Producer(channel)
    for i in range(9):
        producer.publish(i, routing_key=queues[i % 3].name)
    assert sorted(inbox.wait(connection, 9)) == list(range(9))


def test_on_message_gets_it_undecoded(connection, channel, queue):
    got = []
    Producer(channel).publish({"a": 1}, routing_key=queue.name)
    with Consumer(channel, queue, on_message=got.append):
        drain(connection, lambda: got)
    assert got[0].body in (b'{"a": 1}', '{"a": 1}')  # text on AMQP, as with kombu
    assert got[0].payload == {"a": 1}


def test_consumer_without_callbacks_raises_and_loses_nothing(connection, channel, queue):
    Producer(channel).publish(1, routing_key=queue.name)
    other = connection.channel()
    with Consumer(other, queue):
        with pytest.raises(NotImplementedError):
            connection.drain_events(timeout=20)
    other.close()
    assert queue.get().payload == 1


def test_disallowed_content_is_refused_and_kept(connection, channel, queue):
    Producer(channel, serializer="pickle").publish({"a": 1}, routing_key=queue.name)
    other = connection.channel()
    with Consumer(other, queue, callbacks=[lambda body, message: None]):
        with pytest.raises(exceptions.ContentDisallowed):
            connection.drain_events(timeout=20)
    other.close()
    inbox = Inbox(channel, queue, accept=["pickle"])
    assert inbox.wait(connection, 1) == [{"a": 1}]


def test_on_decode_error_gets_what_cannot_be_decoded(connection, channel, queue):
    errors = []

    def on_decode_error(message, error):
        errors.append(error)
        message.ack()

    producer = Producer(channel)
    producer.publish("{broken", routing_key=queue.name, content_type="application/json")
    compressed = {"compression": "gzip"}
    producer.publish(b"garbage", routing_key=queue.name, content_type="application/json", headers=compressed)
    producer.publish({"fine": True}, routing_key=queue.name)
    got = []
    with Consumer(channel, queue, callbacks=[lambda body, message: got.append(body)], on_decode_error=on_decode_error):
        drain(connection, lambda: got)
    assert got == [{"fine": True}]
    assert [type(error) for error in errors] == [exceptions.DecodeError, exceptions.InflateError]


def test_waiting_ends_in_time(connection, channel, queue):
    Inbox(channel, queue)
    start = time.monotonic()
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.3)
    assert time.monotonic() - start >= 0.3


def test_waiting_consumer_is_woken(broker, connection, channel, queue):
    inbox = Inbox(channel, queue)
    publisher = broker.connect()
    timer = threading.Timer(0.2, lambda: Producer(publisher).publish("wake up", routing_key=queue.name))
    timer.start()
    assert inbox.wait(connection, 1, timeout=30) == ["wake up"]
    timer.join()


def test_callback_may_publish_and_consume(connection, channel, queue, broker):
    answers = Queue(broker.name("answers"))(channel)
    answers.declare()
    producer = Producer(channel)

    def answer(body, message):
        producer.publish(body + 1, routing_key=answers.name)
        message.ack()

    inbox = Inbox(channel, answers)
    with Consumer(channel, queue, callbacks=[answer]):
        producer.publish(1, routing_key=queue.name)
        assert inbox.wait(connection, 1) == [2]


def test_error_in_a_callback_surfaces_and_the_message_is_kept(connection, channel, queue):
    def fail(body, message):
        raise KeyError("application error")

    Producer(channel).publish(1, routing_key=queue.name)
    other = connection.channel()
    with Consumer(other, queue, callbacks=[fail]), pytest.raises(KeyError):
        connection.drain_events(timeout=20)
    other.close()
    assert queue.get().payload == 1


def test_recover_delivers_again(connection, channel, queue):
    Producer(channel).publish_many(range(3), routing_key=queue.name)
    inbox = Inbox(channel, queue, ack=False)
    inbox.wait(connection, 3)
    inbox.consumer.recover(requeue=True)
    assert inbox.wait(connection, 6) == [0, 1, 2, 0, 1, 2]
    assert [message.delivery_info["redelivered"] for message in inbox.messages] == [False] * 3 + [True] * 3


def test_recover_takes_back_what_was_sent_ahead(broker, connection, channel, queue):
    Producer(channel).publish_many(range(20), routing_key=queue.name)
    inbox = Inbox(channel, queue)
    inbox.wait(connection, 1)
    inbox.consumer.recover(requeue=True)  # with others at hand
    inbox.wait(connection, 20)
    assert sorted(inbox.bodies) == list(range(20))
    assert soon(lambda: queue.queue_declare(passive=True).message_count, lambda count: count == 0) == 0
    channel.close()
    with broker.connect() as other:
        assert queue(other.channel()).get() is None


def test_a_message_that_went_back_by_recover_cannot_be_settled(connection, channel, queue):
    Producer(channel).publish(1, routing_key=queue.name)
    inbox = Inbox(channel, queue, ack=False)
    inbox.wait(connection, 1)
    inbox.consumer.recover(requeue=True)
    with pytest.raises(exceptions.PreconditionFailed):
        inbox.messages[0].ack()
    inbox.wait(connection, 2)
    inbox.messages[1].ack()
    assert queue.get() is None


def test_recover_takes_back_what_a_batch_has_gathered(connection, channel, queue):
    Producer(channel).publish_many(range(5), routing_key=queue.name)
    batches = []
    consumer = Consumer(channel, queue, on_batch=batches.append, batch_size=6, batch_timeout=0.5)
    with consumer:
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.1)
        consumer.recover(requeue=True)
        while sum(map(len, batches)) < 5:
            connection.drain_events(timeout=20)
    for batch in batches:
        batch.ack()
    assert sorted(body for batch in batches for body in batch.payloads) == list(range(5))
    assert queue.get() is None


def test_batch_is_sent_together(channel, queue):
    producer = Producer(channel)
    with producer.batch() as batch:
        for i in range(5):
            producer.publish(i, routing_key=queue.name)
        assert len(batch) == 5
        assert queue.get() is None
    assert [message.payload for message in take(queue, 5)] == [0, 1, 2, 3, 4]


def test_full_batch_is_sent_at_once_and_flush_sends_the_rest(channel, queue):
    producer = Producer(channel)
    with producer.batch(max_size=2) as batch:
        for i in range(3):
            producer.publish(i, routing_key=queue.name)
        assert soon(lambda: queue.queue_declare(passive=True).message_count, lambda count: count == 2) == 2
        with producer.batch() as inner:
            assert inner is batch
        batch.flush()
        assert soon(lambda: queue.queue_declare(passive=True).message_count, lambda count: count == 3) == 3


def test_batch_that_fails_discards_what_was_not_sent(channel, queue):
    producer = Producer(channel)
    with pytest.raises(ZeroDivisionError), producer.batch():
        producer.publish(1, routing_key=queue.name)
        raise ZeroDivisionError
    assert queue.get() is None
    producer.publish(2, routing_key=queue.name)
    assert queue.get().payload == 2


def test_publish_many_from_a_generator(channel, queue):
    assert Producer(channel).publish_many((i for i in range(2500)), routing_key=queue.name) == 2500
    assert queue.purge() == 2500


def test_body_that_cannot_be_encoded_is_refused(channel, queue):
    producer = Producer(channel)
    for body in ({1, 2}, {"deep": object()}, {(1, 2): 3}):
        with pytest.raises(exceptions.EncodeError):
            producer.publish(body, routing_key=queue.name)
    with pytest.raises(exceptions.EncodeError):
        producer.publish({"a": 1}, routing_key=queue.name, content_type="application/x-mine")
    with pytest.raises(exceptions.SerializerNotInstalled):
        producer.publish({"a": 1}, routing_key=queue.name, serializer="no-such")
    with pytest.raises(KeyError):
        producer.publish({"a": 1}, routing_key=queue.name, compression="no-such")
    assert queue.get() is None


def test_body_of_no_bytes_is_refused_and_nothing_is_queued(channel, queue):
    producer = Producer(channel)
    with pytest.raises(exceptions.EncodeError):
        producer.publish(5, routing_key=queue.name, serializer="raw")
    with pytest.raises(exceptions.EncodeError):
        channel.prepare_message(5)
    for expiration in (-1, float("nan"), float("inf"), "soon"):
        with pytest.raises(ValueError, match="expiration"):
            producer.publish(1, routing_key=queue.name, expiration=expiration)
    assert queue.queue_declare(passive=True).message_count == 0


def test_publish_many_says_how_far_it_came(channel, queue):
    bodies = [*range(1200), object(), "never"]
    with pytest.raises(exceptions.BatchPublishError) as caught:
        Producer(channel).publish_many(bodies, routing_key=queue.name)
    assert [index for index, _ in caught.value.refused] == [1200]
    assert isinstance(caught.value.refused[0][1], exceptions.EncodeError)
    assert caught.value.published == 1200 == queue.purge()


def test_publish_many_comes_after_what_a_batch_collected(channel, queue):
    producer = Producer(channel)
    with producer.batch():
        producer.publish(0, routing_key=queue.name)
        producer.publish_many([1, 2], routing_key=queue.name)
        producer.publish(3, routing_key=queue.name)
    assert [message.payload for message in take(queue, 4)] == [0, 1, 2, 3]


def test_batch_refuses_a_bad_key_and_keeps_the_others(channel, queue):
    producer = Producer(channel)
    with producer.batch():
        producer.publish(1, routing_key=queue.name)
        with pytest.raises(exceptions.PreconditionFailed):
            producer.publish(2, routing_key="k" * 300)
        producer.publish(3, routing_key=queue.name)
    assert [message.payload for message in take(queue, 2)] == [1, 3]


def test_get_checks_what_it_may_accept_first(channel, queue):
    Producer(channel).publish(1, routing_key=queue.name)
    with pytest.raises(exceptions.SerializerNotInstalled):
        queue.get(no_ack=True, accept=["no-such"])
    assert queue.get(no_ack=True, accept="json").payload == 1


def test_headers_are_the_messages_own_to_the_depth(channel, queue):
    headers = {"deep": {"list": [1]}}
    Producer(channel).publish(1, routing_key=queue.name, headers=headers)
    headers["deep"]["list"].append("later")
    message = queue.get()
    message.headers["deep"]["list"].append("mine")
    message.requeue()
    assert queue.get().headers == {"deep": {"list": [1]}}


def test_another_exchange_set_later_is_declared_too(broker, channel):
    producer = Producer(channel, Exchange(broker.name("first")))
    producer.publish(1, routing_key="k")
    producer.exchange = Exchange(broker.name("second"))
    producer.publish(1, routing_key="k")


def test_what_was_deleted_is_declared_again(broker, channel):
    queue = Queue(broker.name("again"), Exchange(broker.name("again")), routing_key="k")
    producer = Producer(channel, queue.exchange)
    producer.publish(1, routing_key="k", declare=[queue])
    queue(channel).delete()
    queue.exchange(channel).delete()
    producer.publish(2, routing_key="k", declare=[queue])
    assert queue(channel).get().payload == 2


def test_queue_that_the_broker_names_knows_its_name(channel):
    queue = Queue("", exclusive=True)
    Producer(channel).maybe_declare(queue)
    assert queue.name


def test_consumer_that_the_broker_cancelled_may_start_again(connection, channel, queue):
    inbox = Inbox(channel, queue)
    Queue(queue.name)(connection.channel()).delete()
    with pytest.raises(exceptions.ConsumerCancelled):
        connection.drain_events(timeout=20)
    assert not inbox.consumer.consuming_from(queue)
    queue.declare()
    inbox.consumer.consume()
    Producer(channel).publish(1, routing_key=queue.name)
    assert inbox.wait(connection, 1) == [1]


@pytest.mark.needs("flow")
def test_pause_and_go_on_without_acknowledgements(connection, channel, queue):
    Inbox(channel, queue, ack=False, prefetch_count=1)
    free = Inbox(channel, queue, ack=False, no_ack=True)
    free.consumer.flow(False)
    Producer(channel).publish_many(range(3), routing_key=queue.name)
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.1)
    free.consumer.flow(True)
    free.wait(connection, 2)


def test_unknown_delivery_tag_is_refused_with_multiple_too(queue):
    with pytest.raises(exceptions.PreconditionFailed):
        queue.channel.basic_ack(4711, multiple=True)


def test_longest_routing_key(broker, channel):
    exchange = Exchange(broker.name("keys"))
    longest = "k" * 255
    queue = Queue(broker.name("keys"), exchange, routing_key=longest)(channel)
    queue.declare()
    producer = Producer(channel, exchange)
    producer.publish(1, routing_key=longest)
    assert queue.get().payload == 1
    for key in ("k" * 256, "ü" * 128):
        with pytest.raises(exceptions.PreconditionFailed):
            producer.publish(1, routing_key=key)
        with pytest.raises(exceptions.PreconditionFailed):
            queue.bind_to(exchange, key)
        with pytest.raises(exceptions.PreconditionFailed), producer.batch():
            producer.publish(1, routing_key=key)


def test_returned_message_comes_to_on_return(broker, connection, channel):
    returned = []
    exchange = Exchange(broker.name("nowhere"))
    producer = Producer(channel, exchange, on_return=lambda *args: returned.append(args))
    producer.publish({"lost": True}, routing_key="nobody", mandatory=True)
    drain(connection, lambda: returned)
    error, name, key, message = returned[0]
    assert isinstance(error, exceptions.ChannelError)
    assert error.reply_code == 312
    assert (name, key, message.payload) == (exchange.name, "nobody", {"lost": True})


def test_returned_message_without_listener_raises(broker, connection, channel):
    producer = Producer(channel, Exchange(broker.name("nowhere")))
    with pytest.raises(exceptions.ChannelError) as caught:
        producer.publish(1, routing_key="nobody", mandatory=True)
        connection.drain_events(timeout=20)
    assert caught.value.reply_code == 312


def test_publish_to_an_unknown_exchange_is_an_error(broker, connection, channel):
    with pytest.raises(exceptions.NotFound):
        Producer(channel).publish(1, exchange=broker.name("no-such-exchange"), routing_key="x")
        connection.drain_events(timeout=20)


@pytest.mark.needs("flow")
def test_flow_pauses_deliveries(connection, channel, queue):
    inbox = Inbox(channel, queue)
    inbox.consumer.flow(False)
    Producer(channel).publish(1, routing_key=queue.name)
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.2)
    inbox.consumer.flow(True)
    assert inbox.wait(connection, 1) == [1]


@pytest.mark.parametrize("what", ["connection", "channel", "consumer"])
def test_signal_handler_may_close_what_the_thread_waits_for(broker, connection, what):
    channel = connection.channel()
    consumer = Consumer(channel, Queue(broker.name("q")), callbacks=[lambda body, message: None])
    consumer.consume()
    close = {"connection": connection.release, "channel": channel.close, "consumer": consumer.cancel}[what]
    closed = []

    def handle(number, frame):
        close()
        closed.append(what)

    before = signal.signal(signal.SIGUSR1, handle)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises((TimeoutError, *connection.recoverable_connection_errors)):
            connection.drain_events(timeout=1)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert closed == [what]
    connection.release()
