"""Producers, consumers, messages and entities, where they do not depend on a broker."""

from __future__ import annotations

import copy
import logging
import pickle
import sys
import weakref

import pytest

from kombulite import Connection, Consumer, Exchange, Message, Producer, Queue, binding, exceptions
from kombulite._core import Delivery, Properties
from kombulite.entity import maybe_delivery_mode
from kombulite.hooks import Hook


@pytest.fixture
def connection():
    with Connection("memory://") as connection:
        yield connection


@pytest.fixture
def queue(connection):
    queue = Queue("messaging", exclusive=True)(connection)
    queue.declare()
    return queue


class FakeChannel:
    def __init__(self, error=None):
        self.calls = []
        self.error = error

    def basic_ack(self, delivery_tag, multiple=False):
        self.calls.append(("ack", delivery_tag, multiple))
        if self.error:
            raise self.error

    def basic_reject(self, delivery_tag, requeue=False):
        self.calls.append(("reject", delivery_tag, requeue))
        if self.error:
            raise self.error


# --- messages


declare_all = Producer._declare_all


def test_message_made_by_hand():
    channel = FakeChannel()
    message = Message(
        body='{"a": 1}', delivery_tag=7, content_type="application/json", content_encoding="utf-8", channel=channel
    )
    assert message.payload == {"a": 1}
    assert (message.headers, message.properties, message.delivery_info, message.errors) == ({}, {}, {}, [])
    message.ack(multiple=True)
    assert channel.calls == [("ack", 7, True)]


def test_message_without_channel_cannot_be_settled():
    with pytest.raises(exceptions.MessageStateError):
        Message(body=b"x").ack()


def test_failed_ack_may_be_repeated():
    channel = FakeChannel(OSError("gone"))
    message = Message(delivery_tag=1, channel=channel)
    with pytest.raises(OSError, match="gone"):
        message.ack()
    assert not message.acknowledged
    channel.error = None
    message.ack()
    assert message.acknowledged


def test_falsy_bodies_are_decoded_once(connection, queue):
    Producer(connection).publish([], routing_key=queue.name)
    message = queue.get(no_ack=True)
    assert message.payload == []
    assert message.payload is message.payload


def test_decompression_errors_are_kept_until_delivery():
    message = Message(body=b"garbage", headers={"compression": "application/x-gzip"})
    assert len(message.errors) == 1
    with pytest.raises(exceptions.InflateError):
        message.raise_errors()
    unknown = Message(body=b"x", headers={"compression": "no-such"})
    with pytest.raises(KeyError):
        unknown.raise_errors()


def test_ack_log_error_logs_the_listed_errors_only(caplog):
    logger = logging.getLogger("kombulite.test")
    Message(delivery_tag=1, channel=FakeChannel(OSError("gone"))).ack_log_error(logger, (OSError,))
    Message(delivery_tag=1, channel=FakeChannel(OSError("gone"))).reject_log_error(logger, (OSError,), requeue=True)
    assert [record.levelname for record in caplog.records] == ["CRITICAL", "CRITICAL"]
    with pytest.raises(BrokenPipeError):
        Message(delivery_tag=1, channel=FakeChannel(BrokenPipeError())).ack_log_error(logger, (OSError,))
    with pytest.raises(ValueError, match="other"):
        Message(delivery_tag=1, channel=FakeChannel(ValueError("other"))).ack_log_error(logger, (OSError,))


def test_messages_take_attributes_copies_pickles_and_subclasses(connection, queue):
    class Mine(Message):
        note = "class"

    channel = connection.channel()
    channel.Message = Mine
    Producer(channel).publish({"a": 1}, routing_key=queue.name, headers={"h": 1}, correlation_id="c")
    message = Queue(queue.name)(channel).get()
    assert isinstance(message, Mine)
    message.note = "instance"
    message.headers["more"] = 2
    message.body = b'{"a": 2}'
    for other in (copy.copy(message), pickle.loads(pickle.dumps(message.__reduce__()[1][1:]))):
        assert other
    again = Message(*[])
    assert (again.body, again.payload) == (None, None)
    assert message.payload == {"a": 2}
    assert message.headers == {"h": 1, "more": 2}
    assert message.properties["correlation_id"] == "c"
    copied = copy.copy(message)
    assert (copied.headers, copied.body, copied.delivery_tag) == (message.headers, message.body, message.delivery_tag)
    assert copied.channel is None


def test_pickled_message_keeps_all_but_the_channel(connection, queue):
    Producer(connection).publish({"a": 1}, routing_key=queue.name, headers={"h": 1})
    message = queue.get()
    other = pickle.loads(pickle.dumps(message))
    assert other.payload == {"a": 1}
    assert other.headers == {"h": 1}
    assert other.delivery_info == message.delivery_info
    with pytest.raises(exceptions.MessageStateError):
        other.ack()


def test_headers_of_two_copies_are_apart(connection):
    exchange = Exchange("messaging.apart", "fanout", auto_delete=True)
    queues = [Queue(f"messaging.apart.{i}", exchange, exclusive=True)(connection) for i in range(2)]
    for queue in queues:
        queue.declare()
    headers = {"h": 1}
    Producer(connection, exchange).publish(1, headers=headers)
    headers["h"] = "changed after publishing"
    first, second = (queue.get() for queue in queues)
    first.headers["h"] = "changed by one receiver"
    assert second.headers == {"h": 1}


def test_repr_says_what_it_is(connection, queue):
    Producer(connection).publish("secret body", routing_key=queue.name)
    text = repr(queue.get())
    assert "RECEIVED" in text
    assert "secret body" not in text


# --- producers


def test_producer_needs_a_channel():
    with pytest.raises(exceptions.NotBoundError):
        Producer(None).publish(1)


def test_producer_takes_names_for_exchanges(connection):
    producer = Producer(connection, "messaging.name", auto_declare=True)
    producer.publish(1, routing_key="nobody")
    assert producer.exchange == Exchange("messaging.name")
    Exchange("messaging.name")(connection).delete()


def test_empty_exchange_name_means_the_default_exchange(connection, queue):
    producer = Producer(connection, Exchange("messaging.default", auto_delete=True))
    producer.publish(1, exchange="", routing_key=queue.name)
    producer.publish(2, exchange=Exchange(""), routing_key=queue.name)
    assert [queue.get().payload, queue.get().payload] == [1, 2]


def test_declare_takes_any_iterable_and_leaves_it_alone(connection):
    queue = Queue("messaging.declare", Exchange("messaging.declare", auto_delete=True), "k", exclusive=True)
    entities = [queue]
    producer = Producer(connection, queue.exchange)
    producer.publish(1, routing_key="k", declare=entities)
    producer.publish(2, routing_key="k", declare=(queue,))
    producer.publish(3, routing_key="k", declare=iter([queue]))
    assert entities == [queue]
    assert [queue(connection).get().payload for _ in range(3)] == [1, 2, 3]


def test_auto_declare_can_be_off(connection):
    producer = Producer(connection, Exchange("messaging.undeclared"), auto_declare=False)
    with pytest.raises(exceptions.NotFound):
        producer.publish(1, routing_key="k")


def test_an_auto_delete_exchange_that_is_not_declared_costs_no_second_look(connection, monkeypatch):
    """It is declared for each message, since it may be gone; but not where that is left to others."""
    queue = Queue("messaging.gone", Exchange("messaging.gone", auto_delete=True), "k", auto_delete=True)
    queue(connection).declare()
    looks = []
    monkeypatch.setattr(Producer, "_declare_all", lambda *arguments: looks.append(1) or declare_all(*arguments))
    producer = Producer(connection, queue.exchange, auto_declare=False)
    for _ in range(3):
        producer.publish(1, routing_key="k")
    assert len(looks) == 1
    declaring = Producer(connection, queue.exchange)
    for _ in range(3):
        declaring.publish(1, routing_key="k")
    assert len(looks) == 4
    assert [queue(connection).get().payload for _ in range(6)] == [1] * 6


def test_delivery_mode_comes_from_argument_or_exchange(connection, queue):
    producer = Producer(connection, Exchange("", delivery_mode="transient"))
    producer.publish(1, routing_key=queue.name)
    producer.publish(1, routing_key=queue.name, delivery_mode=2)
    producer.publish(1, routing_key=queue.name, exchange=Exchange("", delivery_mode="persistent"))
    producer.publish(1, routing_key=queue.name, exchange="")
    Producer(connection).publish(1, routing_key=queue.name)
    assert [queue.get().properties["delivery_mode"] for _ in range(5)] == [1, 2, 2, 1, 2]


@pytest.mark.parametrize(("value", "mode"), [(None, 2), ("transient", 1), ("persistent", 2), (1, 1), (2, 2)])
def test_delivery_modes(value, mode):
    assert maybe_delivery_mode(value) == mode


def test_unknown_delivery_mode(connection, queue):
    with pytest.raises(KeyError):
        Producer(connection).publish(1, routing_key=queue.name, delivery_mode="forever")


def test_default_routing_key_serializer_and_compression(connection, queue):
    producer = Producer(connection, routing_key=queue.name, serializer="yaml", compression="zlib")
    producer.publish({"a": 1})
    message = queue.get(accept=["yaml"])
    assert message.content_type == "application/x-yaml"
    assert message.headers == {"compression": "application/x-gzip"}
    assert message.payload == {"a": 1}


def test_unknown_properties_travel_too(connection, queue):
    Producer(connection).publish(1, routing_key=queue.name, mykey="mine", priority=None)
    properties = queue.get().properties
    assert properties["mykey"] == "mine"
    assert "priority" not in properties


@pytest.mark.parametrize("more", [{}, {"compression": "zlib"}, {"expiration": 60}, {"content_type": "text/plain"}])
def test_named_properties_travel_whatever_else_is_asked_for(connection, queue, more):
    producer = Producer(connection, routing_key=queue.name)
    for reply_to in ("replies", Queue("replies")):
        body = "body" if more else {"a": 1}
        producer.publish(body, correlation_id="c-1", reply_to=reply_to, headers={"h": [1]}, message_id="m-1", **more)
        message = queue.get()
        found = {name: message.properties[name] for name in ("correlation_id", "reply_to", "message_id")}
        assert found == {"correlation_id": "c-1", "reply_to": "replies", "message_id": "m-1"}
        assert message.headers["h"] == [1]
        assert message.payload == body
    producer.publish("body", correlation_id=None, reply_to=None)
    assert {"correlation_id", "reply_to"}.isdisjoint(queue.get().properties)


def test_defaults_of_a_producer_may_be_changed_and_are_those_of_its_class(connection, queue):
    class Yielding(Producer):
        serializer = "pickle"
        routing_key = queue.name

    producer = Yielding(connection)
    for _ in range(2):
        producer.publish([1])
        assert queue.get().content_type == "application/x-python-serialize"
    producer.serializer, producer.compression = "json", "zlib"
    producer.publish([1])
    message = queue.get()
    assert (message.content_type, message.headers) == ("application/json", {"compression": "application/x-gzip"})
    producer.compression, producer.exchange = None, Exchange("other.exchange")
    producer.publish([1])
    assert queue.get() is None
    assert connection.default_channel.exchange_declare("other.exchange", passive=True) is None  # it was declared
    connection.default_channel.exchange_delete("other.exchange")


def test_revived_producer_goes_on(connection, queue):
    producer = Producer(connection.channel())
    producer.channel.close()
    with pytest.raises(exceptions.RecoverableConnectionError):
        producer.publish(1, routing_key=queue.name)
    producer.revive(connection.channel())
    producer.publish(2, routing_key=queue.name)
    producer.revive(connection)
    producer.publish(3, routing_key=queue.name)
    assert [queue.get().payload, queue.get().payload] == [2, 3]


def test_producer_of_a_connection(connection, queue):
    with connection.Producer(routing_key=queue.name) as producer:
        producer.publish(1)
    assert producer.connection is connection
    assert queue.get().payload == 1


def test_pickled_producer_has_its_settings():
    producer = Producer(None, Exchange("e"), "key", serializer="yaml", compression="zlib", auto_declare=False)
    other = pickle.loads(pickle.dumps(producer))
    assert (other.exchange, other.routing_key, other.serializer, other.compression, other.auto_declare) == (
        Exchange("e"),
        "key",
        "yaml",
        "zlib",
        False,
    )


@pytest.mark.parametrize("size", [0, -1])
def test_batch_of_nothing_is_refused(connection, size):
    with (
        pytest.raises(ValueError, match="max_size must be a positive integer, got"),
        Producer(connection).batch(max_size=size),
    ):
        pass


def test_batch_keeps_mandatory_apart(connection, queue):
    returned = []
    producer = Producer(connection, on_return=lambda error, exchange, key, message: returned.append(message.payload))
    with producer.batch():
        producer.publish(1, routing_key=queue.name)
        producer.publish(2, routing_key="messaging.no-such-queue", mandatory=True)
        producer.publish(3, routing_key=queue.name)
    assert returned == [2]
    assert [queue.get().payload, queue.get().payload] == [1, 3]


# --- consumers


def test_accept_may_be_one_name(connection, queue):
    assert Consumer(connection, queue, accept="json").accept == {"application/json"}


def test_unknown_accept_is_refused(connection, queue):
    with pytest.raises(exceptions.SerializerNotInstalled):
        Consumer(connection, queue, accept=["no-such"])


def test_consume_starts_each_queue_once(connection, queue):
    consumer = Consumer(connection, queue, callbacks=[print])
    consumer.consume()
    consumer.consume()
    assert queue.queue_declare(passive=True).consumer_count == 1
    other = consumer.add_queue(Queue("messaging.second", exclusive=True))
    assert not consumer.consuming_from(other)
    consumer.consume()
    assert consumer.consuming_from("messaging.second")
    consumer.cancel()
    assert not consumer.consuming_from(queue)


def test_queue_level_no_ack_applies(connection):
    queue = Queue("messaging.no-ack", no_ack=True, exclusive=True)
    got = []
    Producer(connection).publish(1, routing_key=queue.name, declare=[queue])
    with Consumer(connection, queue, callbacks=[lambda body, message: got.append(message)]):
        connection.drain_events(timeout=1)
        assert got[0].no_ack
        got[0].reject(requeue=True)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.05)


def test_callbacks_run_in_order_and_can_be_added(connection, queue):
    calls = []
    consumer = Consumer(connection, queue, callbacks=[lambda body, message: calls.append("first")], no_ack=True)
    consumer.register_callback(lambda body, message: calls.append("second"))
    Producer(connection).publish(1, routing_key=queue.name)
    with consumer:
        connection.drain_events(timeout=1)
    assert calls == ["first", "second"]


def test_subclass_may_receive(connection, queue):
    got = []

    class Mine(Consumer):
        def receive(self, body, message):
            got.append(body)

    Producer(connection).publish(1, routing_key=queue.name)
    with Mine(connection, queue, no_ack=True):
        connection.drain_events(timeout=1)
    assert got == [1]


def test_on_message_set_later_is_used(connection, queue):
    got = []
    consumer = Consumer(connection, queue, no_ack=True)
    consumer.on_message = got.append
    Producer(connection).publish(1, routing_key=queue.name)
    with consumer:
        connection.drain_events(timeout=1)
    assert got[0].payload == 1


def test_a_subclass_has_fields_in_its_own_way(connection):
    got = []
    queue = Queue("messaging.fields")
    bound = queue(connection.channel())
    bound.declare()

    class Mine(Consumer):
        callbacks = [lambda body, message: got.append(("class", body))]

    class Whole(Consumer):
        def on_message(self, message):
            got.append(("method", message.payload))

    class Choosy(Consumer):
        @property
        def accept(self):
            return {"application/x-yaml"}

        @accept.setter
        def accept(self, value):
            pass

    refused = []
    for cls, options in ((Mine, {}), (Whole, {}), (Choosy, {"on_decode_error": lambda *args: refused.append(args)})):
        Producer(connection).publish({"a": 1}, routing_key=queue.name)
        with cls(connection, queue, no_ack=True, **options) as consumer:
            connection.drain_events(timeout=1)
            if cls is Mine:
                consumer.callbacks = [lambda body, message: got.append(("set", body))]
                Producer(connection).publish({"a": 2}, routing_key=queue.name)
                connection.drain_events(timeout=1)
    assert got == [("class", {"a": 1}), ("set", {"a": 2}), ("method", {"a": 1})]
    assert "application/json" in str(refused[0][1])
    bound.delete()


def test_fields_of_a_subclass_are_asked_when_they_are_needed(connection):
    got = []
    queue = Queue("messaging.late", auto_delete=False)(connection.channel())
    queue.declare()

    class Unready(Consumer):
        def __init__(self):
            pass

        def on_message(self, message):
            got.append(message.payload)

    class Broken(Consumer):
        on_message = property(lambda self: self.what_is_not_there, lambda self, value: None)

    Producer(connection).publish("first", routing_key=queue.name)
    message = queue.get(no_ack=True)
    Unready()._receive(message)
    assert got == ["first"]
    with pytest.raises(AttributeError, match="what_is_not_there"):
        Broken(connection)
    broken = Broken.__new__(Broken)
    broken.on_decode_error = lambda message, error: got.append(error)
    with pytest.raises(AttributeError, match="what_is_not_there"):
        broken._receive(message)
    assert got == ["first"]
    queue.delete()


def test_revived_consumer_resumes_what_it_consumed(connection, queue):
    got = []
    consumer = Consumer(
        connection.channel(), queue, callbacks=[lambda body, message: got.append(body)], no_ack=True, prefetch_count=3
    )
    idle = consumer.add_queue(Queue("messaging.idle", exclusive=True))
    consumer.consume()
    consumer.cancel_by_queue(idle.name)
    consumer.channel.close()
    consumer.revive(connection.channel())
    Producer(connection).publish(1, routing_key=queue.name)
    connection.drain_events(timeout=1)
    assert got == [1]
    assert not consumer.consuming_from(idle)


def test_leaving_with_a_connection_error_does_not_cancel(connection, queue):
    consumer = Consumer(connection, queue, callbacks=[print])
    with pytest.raises(OSError, match="lost"), consumer:
        raise OSError("lost")
    assert consumer.consuming_from(queue)


def test_purge_of_a_consumer_sums(connection):
    queues = [Queue(f"messaging.purge.{i}", exclusive=True) for i in range(2)]
    consumer = Consumer(connection, queues)
    for queue in queues:
        Producer(connection).publish_many(range(3), routing_key=queue.name)
    assert consumer.purge() == 6


# --- entities


def test_binding_makes_a_copy(connection):
    queue = Queue("messaging.copy", Exchange("messaging.copy"), routing_key="k")
    bound = queue(connection)
    assert bound is not queue
    assert bound.is_bound
    assert bound.exchange.is_bound
    assert not queue.is_bound
    assert not queue.exchange.is_bound
    assert bound == queue
    with pytest.raises(exceptions.NotBoundError):
        queue.declare()


def test_maybe_bind_binds_in_place_once(connection):
    exchange = Exchange("messaging.maybe")
    channel = connection.channel()
    assert exchange.maybe_bind(channel) is exchange
    exchange.maybe_bind(connection.channel())
    assert exchange.channel is channel
    other = connection.channel()
    exchange.revive(other)
    assert exchange.channel is other


def test_bound_entity_is_pickled_unbound(connection):
    queue = Queue("messaging.pickle", Exchange("e", "topic"), routing_key="k", max_length=5)(connection)
    other = pickle.loads(pickle.dumps(queue))
    assert not other.is_bound
    assert other.as_dict(recurse=True) == queue.as_dict(recurse=True)


def test_subclasses_of_entities_are_copied_as_such(connection):
    class Mine(Queue):
        can_cache_declaration = False

    queue = Mine("messaging.mine")
    assert type(queue(connection)) is Mine
    assert type(copy.copy(queue)) is Mine


@pytest.mark.parametrize("exchange", [Exchange(""), Exchange("amq.topic", "topic"), Exchange("no", no_declare=True)])
def test_exchanges_that_are_never_declared(connection, exchange):
    exchange(connection).declare()
    if exchange.name == "no":
        with pytest.raises(exceptions.NotFound):
            exchange(connection).channel.exchange_declare("no", passive=True)


def test_queue_with_no_declare_is_left_alone(connection):
    assert Queue("messaging.no-declare", no_declare=True)(connection).declare() == "messaging.no-declare"
    with pytest.raises(exceptions.NotFound):
        Queue("messaging.no-declare")(connection).queue_declare(passive=True)


def test_queue_keywords_become_arguments(connection):
    arguments = connection.channel().prepare_queue_arguments(
        {"x-max-length": 1, "x-mine": True}, expires=60, message_ttl=2.5, max_length=100, max_length_bytes=None
    )
    assert arguments == {"x-expires": 60000, "x-message-ttl": 2500, "x-max-length": 100, "x-mine": True}


def test_exchange_publish_and_message(connection, queue):
    exchange = Exchange("messaging.raw", auto_delete=True)(connection)
    exchange.declare()
    queue.bind_to(exchange, "k")
    message = exchange.Message("text", delivery_mode="transient", content_type="text/plain", content_encoding="utf-8")
    exchange.publish(message, routing_key="k")
    got = queue.get()
    assert (got.body, got.payload, got.properties["delivery_mode"]) == (b"text", "text", 1)


def test_binding_equality_and_hash():
    one, same, other = (binding(Exchange("e"), key) for key in ("k", "k", "x"))
    assert one == same
    assert one != other
    assert len({one, same, other}) == 2


def test_amqp_errors_say_what_and_where():
    error = exceptions.NotFound("NOT_FOUND - no queue 'x'", (50, 10), "Queue.declare")
    assert str(error) == "Queue.declare: (404) NOT_FOUND - no queue 'x'"
    assert (error.code, error.reply_code, error.reply_text) == (404, 404, "NOT_FOUND - no queue 'x'")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.method_sig) == (str(error), (50, 10))


def test_an_entity_that_was_declared_is_recognized_without_a_call_for_its_bindings(connection):
    queue, producer, called = Queue("messaging.recognized"), Producer(connection), []
    for _ in range(2):
        producer.publish(1, routing_key=queue.name, declare=[queue])
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        producer.publish(1, routing_key=queue.name, declare=[queue])
    finally:
        sys.setprofile(None)
    assert "is_declared" in called
    assert "__iter__" not in called


def test_a_message_of_a_batch_that_was_read_before_the_loss_is_not_dropped(connection, queue):
    batches = []
    with Consumer(connection, queue, on_batch=batches.append, batch_size=2, no_ack=True) as consumer:
        channel = consumer.channel
        (consumer_tag,) = consumer._active_tags.values()
        delivery = Delivery("", queue.name, Properties(content_type="application/json", content_encoding="utf-8"), b"7")
        delivery.channel, delivery.consumer_tag, delivery.delivery_tag = channel.channel_id, consumer_tag, 1
        channel.suspend("it was cut")
        connection.session.dispatch([delivery])
        connection.session.lose_connection("it was cut")
        producer = connection.Producer()
        connection.abandon(connection._carrier, "it was cut")
        producer.publish(8, routing_key=queue.name, declare=[queue])
        connection.drain_events(timeout=20)
    assert [each for batch in batches for each in batch.payloads] == [7, 8]


class Wrapping(Producer):
    """A producer with steps of its own, as kombu's users write it."""

    def _prepare(self, body, *args, **kwargs):
        return super()._prepare({"wrapped": body}, *args, **kwargs)

    def _publish(self, body, priority, content_type, content_encoding, headers, properties, *args, **kwargs):
        headers["step"] = "own"
        return super()._publish(body, priority, content_type, content_encoding, headers, properties, *args, **kwargs)


class Tagging(Hook):
    def publish(self, outgoing):
        outgoing.headers["hook"] = "around"
        return super().publish(outgoing)

    def collect(self, outgoing):
        outgoing.headers["hook"] = "collected"


def test_overridden_steps_of_a_producer_are_taken(connection, queue):
    connection.add_hook(Tagging())
    producer = Wrapping(connection, compression="zlib")
    producer.publish(1, routing_key=queue.name, retry=True)
    with producer.batch() as batch:
        producer.publish(2, routing_key=queue.name, expiration=60)
        assert len(batch) == 1
    producer.publish_many([3], routing_key=queue.name)  # as kombu has it not, it has no steps
    got = [queue.get(no_ack=True) for _ in range(3)]
    assert [message.payload for message in got] == [{"wrapped": 1}, {"wrapped": 2}, 3]
    assert [message.headers.get("step") for message in got] == ["own", "own", None]
    assert [message.headers["hook"] for message in got[:2]] == ["around", "collected"]


def test_a_step_that_is_set_and_deleted_again(connection, queue):
    producer = Producer(connection)
    producer._publish = lambda *args: args[0]
    assert producer.publish({"a": 1}, routing_key=queue.name) == '{"a": 1}'
    del producer._publish
    with pytest.raises(AttributeError):
        del producer._publish
    producer.publish({"a": 2}, routing_key=queue.name)
    assert queue.get(no_ack=True).payload == {"a": 2}


def test_a_channel_keeps_nothing_of_consumers_that_come_and_go(connection):
    """One for each call by a program that waits for replies without acks."""

    class Tag(str):  # of which there may be weak references
        pass

    channel = connection.channel()
    queue = Queue("coming and going")(channel)
    queue.declare()
    alive = weakref.WeakSet()
    for number in range(3000):
        tag = Tag(number)
        alive.add(tag)
        channel.basic_consume(queue.name, consumer_tag=tag, no_ack=True, callback=print)
        channel.basic_cancel(tag)
    assert len(alive) <= 1001
