"""Queue types, arguments and routing of RabbitMQ."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import datetime, timedelta

import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue, Quorum, Stream, aio, exceptions
from kombulite.transport import native_delayed_delivery as delayed
from tests.contract.conftest import Inbox, soon

QUORUM = {"x-queue-type": "quorum"}
STREAM = {"x-queue-type": "stream"}


def make(channel, queue_name, **options):
    queue = Queue(queue_name, **options)(channel)
    queue.declare()
    return queue


@pytest.fixture
def typed(name, connection):
    """Makes durable queues, which are deleted after the test."""
    made = []

    def typed(base, **options):
        made.append(make(connection.channel(), name(base), **options))
        return made[-1]

    yield typed
    for queue in made:
        connection.channel().queue_delete(queue.name)


def receive_all(connection, inboxes):
    """Receive until nothing more comes; returns the bodies of all."""
    with pytest.raises(TimeoutError):
        while True:
            connection.drain_events(timeout=2 if any(inbox.bodies for inbox in inboxes) else 30)
    return [body for inbox in inboxes for body in inbox.bodies]


# --- arguments


def test_keywords_travel_as_arguments(typed, connect):
    """The broker compares them, so another declaration shows what they were."""
    queue = typed("arguments", expires=60, message_ttl=2.5, max_length=100, max_length_bytes=10000, max_priority=5)
    arguments = {
        "x-expires": 60000,
        "x-message-ttl": 2500,
        "x-max-length": 100,
        "x-max-length-bytes": 10000,
        "x-max-priority": 5,
    }
    channel = connect().channel()
    channel.queue_declare(queue.name, arguments=arguments)
    with pytest.raises(exceptions.NotEquivalentError):
        channel.queue_declare(queue.name, arguments={**arguments, "x-expires": 60001})


def test_server_names_queues(connection, channel):
    queue = Queue("", exclusive=True)(channel)
    queue.declare()
    assert queue.name.startswith("amq.gen-")
    Producer(channel).publish("x", routing_key=queue.name)
    assert queue.get().payload == "x"
    unnamed = Queue("", exclusive=True)
    with Consumer(connection, unnamed, on_message=lambda message: None) as consumer:
        assert consumer.queues[0].name.startswith("amq.gen-")


def test_exclusive_queue_of_another_connection(name, channel, connect):
    make(channel, name("exclusive"), exclusive=True)
    with pytest.raises(exceptions.ResourceLocked):
        connect().channel().queue_declare(name("exclusive"), exclusive=True)


def test_unused_queue_expires(name, channel, connection):
    make(channel, name("expires"), expires=0.2)

    def gone():
        time.sleep(0.5)  # asking counts as use
        with connection.channel() as looking:
            try:
                looking.queue_declare(name("expires"), passive=True)
            except exceptions.NotFound:
                return True
        return False

    assert soon(gone, timeout=30)


def test_arguments_that_the_broker_does_not_know(name, channel):
    with pytest.raises(exceptions.PreconditionFailed):
        make(channel, name("bad"), queue_arguments={"x-queue-type": "imaginary"})


# --- quorum queues


def test_quorum_queue(typed, connection):
    queue = typed("quorum", queue_arguments=QUORUM)
    Producer(connection).publish_many(range(10), routing_key=queue.name)
    inbox = Inbox(connection.channel(), queue, prefetch_count=3)
    assert inbox.wait(connection, 10, timeout=30) == list(range(10))
    inbox.consumer.cancel()


def test_quorum_queue_counts_deliveries(typed, connection):
    queue = typed("quorum", queue_arguments=QUORUM)
    Producer(connection).publish("x", routing_key=queue.name)
    soon(queue.get, timeout=30).requeue()
    message = soon(queue.get, timeout=30)
    assert message.delivery_info["redelivered"]
    assert message.headers["x-delivery-count"] == 1
    message.ack()


def test_prefetch_of_a_quorum_queue_is_for_each_consumer(typed, connection):
    queue = typed("quorum", queue_arguments=QUORUM)
    channel = connection.channel()
    inboxes = [Inbox(channel, queue, ack=False, prefetch_count=2) for _ in range(2)]
    Producer(connection).publish_many(range(10), routing_key=queue.name)
    receive_all(connection, inboxes)
    assert [len(inbox.bodies) for inbox in inboxes] == [2, 2]


def test_prefetch_of_the_channel_with_a_quorum_queue(typed, connect, broker_version):
    """RabbitMQ 3 refuses it; RabbitMQ 4 takes it for each consumer."""
    queue = typed("quorum", queue_arguments=QUORUM)
    connection = connect()
    if broker_version >= (4,):
        channel = connection.channel()
        channel.basic_qos(0, 2, a_global=True)
        inboxes = [Inbox(channel, queue, ack=False) for _ in range(2)]
        Producer(connection).publish_many(range(10), routing_key=queue.name)
        assert sorted(receive_all(connection, inboxes)) == list(range(4))
        assert [len(inbox.bodies) for inbox in inboxes] == [2, 2]
        return
    consumer = Consumer(connection, Queue(queue.name, no_declare=True), on_message=lambda message: None)
    consumer.qos(prefetch_count=1, apply_global=True)
    with pytest.raises(exceptions.AMQPNotImplementedError, match="does not support global qos") as caught:
        consumer.consume()
    assert caught.value.reply_code == 540
    assert not connection.connected


def test_delivery_limit_of_a_quorum_queue(typed, connection):
    queue = typed("limited", kind=Quorum(delivery_limit=1))
    Producer(connection).publish("x", routing_key=queue.name)
    for _ in range(2):
        channel = connection.channel()
        message = soon(Queue(queue.name)(channel).get, timeout=30)
        assert message.payload == "x"
        message.reject(requeue=True)
    Producer(connection).publish("next", routing_key=queue.name)
    assert soon(queue.get, timeout=30).payload == "next"  # the broker has dropped the other one


def test_options_of_a_quorum_queue_reach_the_broker(typed, connect):
    """The broker compares them, so another declaration shows what they were."""
    kind = Quorum(delivery_limit=7, consumer_timeout=60, retry_delay=(1, 5), retry_for="returned")
    queue = typed("options", kind=kind)
    make(connect().channel(), queue.name, kind=kind)
    for other in (Quorum(delivery_limit=8), Quorum(delivery_limit=7, single_active_consumer=True)):
        with pytest.raises(exceptions.NotEquivalentError):
            make(connect().channel(), queue.name, kind=other)


def test_rejected_message_is_delayed(typed, connection, broker_version):
    """A message that nobody rejected overtakes it. RabbitMQ 3 ignores the option, and keeps the order."""
    queue = typed("delayed", kind=Quorum(retry_delay=(2, 4)))
    producer = Producer(connection)
    producer.publish("rejected", routing_key=queue.name)
    soon(queue.get, timeout=30).reject(requeue=True)
    if broker_version < (4, 3):  # the next one comes over another channel, which may be served before this
        declare = connection.default_channel.queue_declare
        soon(lambda: declare(queue.name, passive=True).message_count == 1, timeout=30)
    producer.publish("other", routing_key=queue.name)
    bodies = [soon(lambda: queue.get(no_ack=True), timeout=30).payload for _ in range(2)]
    assert bodies == (["other", "rejected"] if broker_version >= (4, 3) else ["rejected", "other"])


@pytest.mark.parametrize(
    ("retry_for", "expected"),
    [("failed", ["returned", "other", "failed"]), ("returned", ["failed", "other", "returned"])],
)
def test_messages_are_delayed_that_failed_or_that_were_returned(typed, connection, broker_version, retry_for, expected):
    if broker_version < (4, 3):
        pytest.skip("this RabbitMQ delays none")
    queue = typed("delayed", kind=Quorum(retry_delay=(2, 4), retry_for=retry_for))
    producer = Producer(queue.channel)  # one channel: what comes over two may be served in another order
    producer.publish_many(["failed", "returned"], routing_key=queue.name)
    failed, returned = (soon(queue.get, timeout=30) for _ in range(2))
    failed.requeue()
    returned.requeue(failed=False)
    producer.publish("other", routing_key=queue.name)
    assert [soon(lambda: queue.get(no_ack=True), timeout=30).payload for _ in range(3)] == expected


def test_single_active_consumer(typed, connection):
    queue = typed("single", kind=Quorum(single_active_consumer=True))
    first, second = (Inbox(connection.channel(), queue) for _ in range(2))
    Producer(connection).publish_many(range(5), routing_key=queue.name)
    assert first.wait(connection, 5, timeout=30) == list(range(5))
    assert second.bodies == []
    first.consumer.cancel()
    Producer(connection).publish("after", routing_key=queue.name)
    assert second.wait(connection, 1, timeout=30) == ["after"]


class Holder:
    """A consumer that holds two messages when it ends in good order, in a thread of its own."""

    def __init__(self, url, queue, ends):
        self.url, self.queue, self.ends = url, queue, ends
        self.is_holding, self.may_end = threading.Event(), threading.Event()
        self.got = []

    def run(self):
        with Connection(self.url) as connection:
            channel, got = connection.channel(), []
            Consumer(channel, self.queue, on_message=got.append, prefetch_count=3).consume()
            while len(got) < 3:
                connection.drain_events(timeout=30)
            got[0].ack()
            self._hold(got)
            if self.ends == "channel":
                channel.close()

    def _hold(self, got):
        self.got = [message.payload for message in got]
        self.is_holding.set()
        assert self.may_end.wait(60)


class AsyncHolder(Holder):
    """One on an event loop."""

    def run(self):
        asyncio.run(self._main())

    async def _main(self):
        async with aio.connect(self.url) as connection, connection.consume(self.queue, prefetch=3) as messages:
            got = [await messages.next(30) for _ in range(3)]
            await got[0].ack()
            await asyncio.to_thread(self._hold, got)
            if self.ends == "connection":
                await connection.close()


@pytest.mark.parametrize("ends", ["connection", "channel"])
@pytest.mark.parametrize("holder_class", [Holder, AsyncHolder])
@pytest.mark.parametrize("arguments", [{}, QUORUM], ids=["classic", "quorum"])
def test_the_successor_of_a_single_active_consumer_gets_all_in_order(typed, connect, arguments, holder_class, ends):
    """Were the consumer to end before its messages are back, the next would be active and get others first."""
    queue = typed("single", queue_arguments={**arguments, "x-single-active-consumer": True})
    connection, got = connect(), []
    Producer(connection).publish_many(range(40), routing_key=queue.name)

    def take(message):
        got.append(message.payload)
        message.ack()

    entity = Queue(queue.name, queue_arguments=queue.queue_arguments)
    holder = holder_class(connection.as_uri(include_password=True), entity, ends)
    thread = threading.Thread(target=holder.run)
    thread.start()
    assert holder.is_holding.wait(60)
    Consumer(connection.channel(), entity, on_message=take, prefetch_count=3).consume()
    holder.may_end.set()
    while len(got) < 39:
        connection.drain_events(timeout=30)
    thread.join()
    assert holder.got == [0, 1, 2]
    assert got == list(range(1, 40))


# --- streams


@pytest.mark.parametrize(
    ("offset", "expected"),
    [("first", range(20)), (15, range(15, 20)), (timedelta(hours=1), range(20)), (datetime(2026, 1, 1), range(20))],
)
def test_offset_of_a_stream(typed, connection, offset, expected):
    queue = typed("offsets", kind=Stream())
    Producer(connection).publish_many(range(20), routing_key=queue.name)
    reader = Queue(queue.name, no_declare=True, kind=Stream(offset=offset))
    inbox = Inbox(connection.channel(), reader, prefetch_count=50)
    assert inbox.wait(connection, len(expected), timeout=30) == list(expected)


def test_filter_of_a_stream(typed, connection, broker_version):
    """RabbitMQ leaves out chunks in which no message has the value; 3.10 has no filters, and ignores them."""
    queue = typed("filtered", kind=Stream(filter_bytes=16, max_age=3600, segment_bytes=1_000_000))
    with Connection(
        connection.as_uri(include_password=True), transport_options={"confirm_publish": True}
    ) as confirming:
        producer = Producer(confirming)
        for value in ("a", "b", "a"):  # each is confirmed before the next, so each has a chunk of its own
            producer.publish(value, routing_key=queue.name, headers={"x-stream-filter-value": value})
    reader = Queue(queue.name, no_declare=True, kind=Stream(offset="first", filters=("b",)))
    inbox = Inbox(connection.channel(), reader, prefetch_count=50)
    expected = ["b"] if broker_version >= (3, 13) else ["a", "b", "a"]
    assert inbox.wait(connection, len(expected), timeout=30) == expected


def test_super_stream_partition_by_partition(typed, connection, name):
    """Published to its exchange with the partition as routing key, as RabbitMQ's own clients lay it out."""
    exchange = Exchange(name("super"), "direct", arguments={"x-super-stream": True})
    partitions = [
        typed(
            f"super-{number}",
            exchange=exchange,
            routing_key=str(number),
            binding_arguments={"x-stream-partition-order": number},
            kind=Stream(offset="first"),
        )
        for number in range(3)
    ]
    producer = Producer(connection, exchange)
    for number in range(12):
        producer.publish(number, routing_key=str(number % 3))
    inboxes = [Inbox(connection.channel(), queue, prefetch_count=5) for queue in partitions]
    for number, inbox in enumerate(inboxes):
        assert inbox.wait(connection, 4, timeout=30) == list(range(number, 12, 3))
    exchange(connection.channel()).delete()


def test_stream_from_its_first_message(typed, connection):
    queue = typed("stream", queue_arguments=STREAM)
    Producer(connection).publish_many(range(20), routing_key=queue.name)
    for _ in range(2):  # reading takes nothing away
        reader = Queue(queue.name, no_declare=True, consumer_arguments={"x-stream-offset": "first"})
        inbox = Inbox(connection.channel(), reader, prefetch_count=5)
        assert inbox.wait(connection, 20, timeout=30) == list(range(20))
        assert [message.headers["x-stream-offset"] for message in inbox.messages] == list(range(20))
        inbox.consumer.cancel()


def test_stream_from_an_offset(typed, connection):
    queue = typed("stream", queue_arguments=STREAM)
    Producer(connection).publish_many(range(20), routing_key=queue.name)
    # Where offset 0 is available the others are too.
    first = Queue(queue.name, no_declare=True, consumer_arguments={"x-stream-offset": "first"})
    inbox = Inbox(connection.channel(), first, prefetch_count=50)
    inbox.wait(connection, 20, timeout=30)
    inbox.consumer.cancel()
    reader = Queue(queue.name, no_declare=True, consumer_arguments={"x-stream-offset": 15})
    assert Inbox(connection.channel(), reader, prefetch_count=50).wait(connection, 5, timeout=30) == list(range(15, 20))


def test_stream_needs_a_prefetch_count(typed, connect):
    queue = typed("stream", queue_arguments=STREAM)
    with pytest.raises(exceptions.PreconditionFailed, match="prefetch"):
        Inbox(connect().channel(), Queue(queue.name, no_declare=True))


# --- routing


def test_exchange_to_exchange(name, channel):
    source = Exchange(name("source"), "topic", durable=False, auto_delete=True)(channel)
    target = Exchange(name("target"), "fanout", durable=False, auto_delete=True)(channel)
    source.declare()
    target.declare()
    queue = make(channel, name("queue"), exchange=target, durable=False, exclusive=True)
    target.bind_to(source, routing_key="a.*")
    producer = Producer(channel, source)
    producer.publish("through", routing_key="a.b")
    assert soon(queue.get, timeout=30).payload == "through"
    target.unbind_from(source, routing_key="a.*")
    # The source went with its last binding.
    with pytest.raises(exceptions.NotFound):
        channel.exchange_declare(source.name, passive=True)


@pytest.mark.parametrize(("match", "taken"), [("all", [True, False, False]), ("any", [True, True, False])])
def test_headers_exchange(name, channel, match, taken):
    exchange = Exchange(name("headers"), "headers", durable=False, auto_delete=True)
    queue = make(
        channel,
        name("queue"),
        exchange=exchange,
        binding_arguments={"x-match": match, "a": 1, "b": "x"},
        exclusive=True,
    )
    producer = Producer(channel, exchange)
    for number, headers in enumerate([{"a": 1, "b": "x"}, {"a": 1}, {"a": 2}]):
        producer.publish(number, headers=headers)
    expected = [number for number, wanted in enumerate(taken) if wanted]
    assert [queue.get(no_ack=True).payload for _ in expected] == expected
    assert queue.get() is None


def test_alternate_exchange(name, channel):
    alternate = Exchange(name("alternate"), "fanout", durable=False, auto_delete=True)
    queue = make(channel, name("unrouted"), exchange=alternate, exclusive=True)
    exchange = Exchange(name("direct"), durable=False, arguments={"alternate-exchange": alternate.name})(channel)
    exchange.declare()
    Producer(channel, exchange).publish("unrouted", routing_key="nobody", mandatory=True)
    assert soon(queue.get, timeout=30).payload == "unrouted"
    exchange.delete()


def test_dead_letters(name, channel):
    dead = make(channel, name("dead"), exclusive=True)
    alive = make(
        channel,
        name("alive"),
        exclusive=True,
        queue_arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name},
    )
    Producer(channel).publish("poison", routing_key=alive.name, headers={"own": 1})
    alive.get().reject()
    message = soon(dead.get, timeout=30)
    (death,) = message.headers["x-death"]
    assert (death["count"], death["reason"], death["queue"], death["exchange"]) == (1, "rejected", alive.name, "")
    assert death["routing-keys"] == [alive.name]
    assert abs(death["time"].timestamp() - time.time()) < 86400 * 2
    assert message.headers["own"] == 1


# --- consumers that the broker ends


def test_consumer_of_a_deleted_queue_is_told(name, connection):
    queue = make(connection.channel(), name("doomed"))
    consumer = Consumer(connection.channel(), queue, on_message=lambda message: None)
    consumer.consume()
    connection.channel().queue_delete(queue.name)
    with pytest.raises(exceptions.ConsumerCancelled):
        connection.drain_events(timeout=30)
    assert not consumer.consuming_from(queue)


def test_consumer_that_is_refused_is_told_at_once_and_nobody_else(name, connection, queue):
    """Else a loop that serves other consumers got the same error, and started them all again."""
    got = []
    Consumer(connection.channel(), queue, on_message=lambda message: got.append(message.payload)).consume()
    channel = connection.channel()
    with pytest.raises(exceptions.NotFound):
        channel.basic_consume(name("missing"), callback=lambda message: None)
    assert not channel.is_open
    Producer(connection).publish("x", routing_key=queue.name)
    while not got:
        connection.drain_events(timeout=30)
    assert got == ["x"]


def test_refused_consumer_leaves_others_of_its_channel_to_be_told(name, connection, channel, queue):
    Consumer(channel, queue, on_message=lambda message: None).consume()
    with pytest.raises(exceptions.NotFound):
        channel.basic_consume(name("missing"), callback=lambda message: None)
    with pytest.raises(exceptions.NotFound):
        connection.drain_events(timeout=30)


def test_cancelled_consumer_without_acks_gets_what_was_under_way(name, connection):
    """The broker has forgotten it when it is sent; as with kombu, all that has come before the cancel's answer."""
    queue = make(connection.channel(), name("unacked"), exclusive=True)
    Producer(connection).publish_many(range(100), routing_key=queue.name)
    channel = connection.channel()
    got = []

    def take(message):
        got.append(message.payload)
        if len(got) in (1, 50):
            raise LookupError(got[-1])

    tag = channel.basic_consume(queue.name, no_ack=True, callback=take)
    with pytest.raises(LookupError):
        connection.drain_events(timeout=30)
    soon(lambda: queue.queue_declare(passive=True).message_count == 0, timeout=30)
    with pytest.raises(LookupError):
        channel.basic_cancel(tag)
    assert got == list(range(100))
    assert not channel.consumes_from(queue.name)


def test_on_cancel_is_called(name, connection):
    queue = make(connection.channel(), name("doomed"))
    channel = connection.channel()
    cancelled = []
    tag = channel.basic_consume(queue.name, callback=lambda message: None, on_cancel=cancelled.append)
    connection.channel().queue_delete(queue.name)
    connection.drain_events(timeout=30)
    assert cancelled == [tag]
    assert channel.is_open


def test_unknown_delivery_tags_do_not_close_the_channel(channel, queue):
    Producer(channel).publish("x", routing_key=queue.name)
    message = soon(queue.get, timeout=30)
    with pytest.raises(exceptions.PreconditionFailed):
        channel.basic_ack(message.delivery_tag + 1)
    assert channel.is_open
    message.ack()


def test_flow(channel):
    channel.flow(True)
    with pytest.raises(exceptions.AMQPNotImplementedError):
        channel.flow(False)
    assert channel.queue_declare("", exclusive=True).queue


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_delayed_messages_arrive_after_their_time(name, connection, typed, kind):
    prefix = name("late")
    delayed.declare_native_delayed_delivery_exchanges_and_queues(connection, kind, prefix)
    queue = typed("delayed", exchange=Exchange(name("topics"), "topic"), routing_key="key.x")
    delayed.bind_queue_to_native_delayed_delivery_exchange(connection, queue, prefix)
    channel = connection.channel()
    start = time.monotonic()
    for countdown in (2, 1, 0):
        key = delayed.calculate_routing_key(countdown, "key.x")
        Producer(channel).publish(countdown, exchange=delayed.level_name(27, prefix), routing_key=key)
    assert Inbox(channel, queue).wait(connection, 3, timeout=30) == [0, 1, 2]
    assert time.monotonic() - start >= 2
    for level in range(28):
        channel.queue_delete(delayed.level_name(level, prefix))
        channel.exchange_delete(delayed.level_name(level, prefix))
