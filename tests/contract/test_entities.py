"""Exchanges, queues and bindings: declared, bound, routed by, deleted."""

from __future__ import annotations

import socket
from decimal import Decimal

import pytest

from kombulite import Exchange, Producer, Queue, binding, exceptions
from tests.contract.conftest import Inbox, drain, take


def bodies(queue):
    found = []
    while (message := queue.get(no_ack=True)) is not None:
        found.append(message.payload)
    return found


def declared(channel, *queues):
    bound = [queue(channel) for queue in queues]
    for queue in bound:
        queue.declare()
    return bound


def test_direct_exchange_compares_keys(broker, channel):
    exchange = Exchange(broker.name("direct"))
    one, both = declared(
        channel,
        Queue(broker.name("one"), exchange, routing_key="a"),
        Queue(broker.name("both"), [binding(exchange, "a"), binding(exchange, "b")]),
    )
    producer = Producer(channel, exchange)
    for key in "abc":
        producer.publish(key, routing_key=key)
    assert bodies(one) == ["a"]
    assert bodies(both) == ["a", "b"]


@pytest.mark.needs("stored fanout")
def test_fanout_exchange_ignores_keys(broker, channel):
    exchange = Exchange(broker.name("fanout"), "fanout")
    queues = declared(channel, *(Queue(broker.name(f"fan{i}"), exchange, routing_key=f"k{i}") for i in range(3)))
    Producer(channel, exchange).publish("to all", routing_key="whatever")
    assert [bodies(queue) for queue in queues] == [["to all"]] * 3


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("order.*.eu", ["order.new.eu"], ["order.eu", "order.new.old.eu", "order.new.us"]),
        ("order.#", ["order", "order.new", "order.new.eu"], ["orders", "new.order"]),
        ("#.eu", ["eu", "order.eu", "a.b.eu"], ["eu.a", "euu"]),
        ("a.#.b", ["a.b", "a.x.b", "a.x.y.b"], ["a", "b", "a.bb"]),
        ("#", ["", "a", "a.b"], []),
        ("*", ["a"], ["a.b"]),
    ],
)
def test_topic_exchange_matches_words(broker, channel, pattern, matching, others):
    exchange = Exchange(broker.name("topic"), "topic")
    (queue,) = declared(channel, Queue(broker.name("topic"), exchange, routing_key=pattern))
    producer = Producer(channel, exchange)
    for key in matching + others:
        producer.publish({"key": key}, routing_key=key)
    assert [body["key"] for body in bodies(queue)] == matching


@pytest.mark.needs("headers")
def test_headers_exchange_matches_headers(broker, channel):
    exchange = Exchange(broker.name("headers"), "headers")
    all_of, any_of = declared(
        channel,
        Queue(broker.name("all"), exchange, binding_arguments={"x-match": "all", "kind": "pdf", "pages": 3}),
        Queue(broker.name("any"), exchange, binding_arguments={"x-match": "any", "kind": "pdf", "pages": 3}),
    )
    producer = Producer(channel, exchange)
    producer.publish("both", headers={"kind": "pdf", "pages": 3, "more": 1})
    producer.publish("one", headers={"kind": "pdf", "pages": 4})
    producer.publish("none", headers={"kind": "txt"})
    producer.publish("no headers")
    assert bodies(all_of) == ["both"]
    assert bodies(any_of) == ["both", "one"]


@pytest.mark.needs("headers")
def test_headers_exchange_compares_types_too(broker, channel):
    exchange = Exchange(broker.name("typed"), "headers")
    wanted = {"integer": 1, "boolean": True, "text": "1", "list": [1]}
    queues = declared(
        channel, *(Queue(broker.name(name), exchange, binding_arguments={"k": k}) for name, k in wanted.items())
    )
    producer = Producer(channel, exchange)
    for value in (1, True, "1", b"1", [1], [True], Decimal(1), [Decimal(1)], "none"):
        producer.publish(repr(value), headers={"k": value})
    assert [bodies(queue) for queue in queues] == [["1"], ["True"], ["'1'", "b'1'"], ["[1]"]]


def test_message_comes_once_to_a_queue_with_several_matching_bindings(broker, channel):
    exchange = Exchange(broker.name("once"), "topic")
    (queue,) = declared(channel, Queue(broker.name("once"), [binding(exchange, "a.*"), binding(exchange, "#")]))
    Producer(channel, exchange).publish(1, routing_key="a.b")
    assert bodies(queue) == [1]


@pytest.mark.needs("stored fanout")
def test_each_queue_has_its_own_copy(broker, channel):
    exchange = Exchange(broker.name("copies"), "fanout")
    one, two = declared(channel, Queue(broker.name("one"), exchange), Queue(broker.name("two"), exchange))
    Producer(channel, exchange).publish(1)
    first = one.get()
    first.requeue()
    second = two.get()
    assert not second.delivery_info["redelivered"]
    second.ack()
    assert one.get().delivery_info["redelivered"]
    assert two.get() is None


def test_default_exchange_leads_to_the_queue_of_that_name(channel, queue, broker):
    other = Exchange(broker.name("other"))
    Producer(channel, other).publish("by name", exchange="", routing_key=queue.name)
    assert bodies(queue) == ["by name"]


@pytest.mark.needs("exchange bindings")
def test_exchange_to_exchange_binding(broker, channel):
    source = Exchange(broker.name("source"), "topic")(channel)
    target = Exchange(broker.name("target"), "fanout")(channel)
    source.declare()
    (queue,) = declared(channel, Queue(broker.name("end"), target))
    target.bind_to(source, routing_key="a.#")
    producer = Producer(channel, source)
    producer.publish("through", routing_key="a.b")
    producer.publish("not", routing_key="b")
    assert bodies(queue) == ["through"]
    target.unbind_from(source, routing_key="a.#")
    producer.publish("no more", routing_key="a.b")
    assert bodies(queue) == []


@pytest.mark.needs("alternates")
def test_alternate_exchange_takes_what_nobody_wants(broker, channel):
    alternate = Exchange(broker.name("alternate"), "fanout")
    exchange = Exchange(broker.name("main"), arguments={"alternate-exchange": alternate.name})
    rest, wanted = declared(
        channel, Queue(broker.name("rest"), alternate), Queue(broker.name("wanted"), exchange, routing_key="k")
    )
    producer = Producer(channel, exchange)
    producer.publish("wanted", routing_key="k")
    producer.publish("unwanted", routing_key="x", mandatory=True)
    assert bodies(wanted) == ["wanted"]
    assert bodies(rest) == ["unwanted"]
    with pytest.raises(socket.timeout):
        channel.connection.drain_events(timeout=0.1)


def test_unbound_queue_gets_nothing_more(broker, channel):
    exchange = Exchange(broker.name("unbind"))
    (queue,) = declared(channel, Queue(broker.name("unbind"), exchange, routing_key="k"))
    producer = Producer(channel, exchange)
    producer.publish(1, routing_key="k")
    queue.queue_unbind()
    producer.publish(2, routing_key="k")
    assert bodies(queue) == [1]


def test_binding_to_an_undeclared_exchange_is_an_error(broker, channel, queue):
    with pytest.raises(exceptions.NotFound):
        queue.bind_to(broker.name("no-such-exchange"), "k")


def test_declaring_again_the_same_is_fine(broker, channel):
    exchange = Exchange(broker.name("again"), "topic")
    queue = Queue(broker.name("again"), exchange, routing_key="a", max_priority=5)
    declared(channel, queue)
    declared(channel.connection.channel(), queue)


def test_declaring_differently_is_refused(broker, connection, queue):
    exchange = Exchange(broker.name("other"))(connection)
    exchange.declare()
    with pytest.raises(exceptions.PreconditionFailed):
        Exchange(exchange.name, "topic")(connection.channel()).declare()
    with pytest.raises(exceptions.PreconditionFailed):
        Queue(queue.name, durable=False)(connection.channel()).declare()
    with pytest.raises(exceptions.PreconditionFailed):
        Queue(queue.name, max_priority=3)(connection.channel()).declare()


def test_unknown_exchange_type_is_refused(broker, channel):
    # RabbitMQ 3 closes the connection, RabbitMQ 4 the channel.
    with pytest.raises((exceptions.ConnectionError, exceptions.PreconditionFailed), match="no-such-type"):
        Exchange(broker.name("odd"), "no-such-type")(channel).declare()


def test_passive_declare_asserts(broker, connection, queue):
    Producer(queue.channel).publish(1, routing_key=queue.name)
    assert queue.queue_declare(passive=True) == (queue.name, 1, 0)
    with pytest.raises(exceptions.NotFound):
        Queue(broker.name("no-such-queue"))(connection.channel()).queue_declare(passive=True)
    with pytest.raises(exceptions.NotFound):
        Exchange(broker.name("no-such-exchange"), passive=True)(connection.channel()).declare()


def test_passive_declare_of_an_empty_queue_succeeds(queue):
    assert queue.queue_declare(passive=True) == (queue.name, 0, 0)


def test_broker_names_a_queue_without_name(channel):
    one, two = Queue("")(channel), Queue("", exclusive=True)(channel)
    assert one.declare() == one.name != two.declare() == two.name
    Producer(channel).publish(1, routing_key=one.name)
    assert bodies(one) == [1]
    one.delete()


def test_on_declared_is_called(broker, channel):
    calls = []
    queue = Queue(broker.name("declared"), on_declared=lambda *args: calls.append(args))(channel)
    queue.declare()
    assert calls == [(queue.name, 0, 0)]


def test_purge_counts(channel, queue):
    Producer(channel).publish_many(range(7), routing_key=queue.name)
    taken = take(queue, 2)
    assert queue.purge() == 5
    assert queue.purge() == 0
    taken[0].requeue()
    assert bodies(queue) == [0]


def test_delete_counts_and_takes_bindings_along(broker, channel):
    exchange = Exchange(broker.name("delete"))
    (queue,) = declared(channel, Queue(broker.name("delete"), exchange, routing_key="k"))
    producer = Producer(channel, exchange)
    producer.publish(1, routing_key="k")
    assert queue.delete() == 1
    (queue,) = declared(channel, Queue(queue.name))
    producer.publish(2, routing_key="k")
    assert bodies(queue) == []


def test_delete_if_empty_and_if_unused(connection, channel, queue):
    Producer(channel).publish(1, routing_key=queue.name)
    with pytest.raises(exceptions.PreconditionFailed):
        queue(connection.channel()).delete(if_empty=True)
    queue.purge()
    inbox = Inbox(channel, queue)
    with pytest.raises(exceptions.PreconditionFailed):
        queue(connection.channel()).delete(if_unused=True)
    inbox.consumer.cancel()
    queue.delete(if_unused=True, if_empty=True)


def test_deleted_exchange_leaves_its_queues(broker, channel):
    exchange = Exchange(broker.name("gone"))(channel)
    (queue,) = declared(channel, Queue(broker.name("stays"), exchange, routing_key="k"))
    Producer(channel, exchange).publish(1, routing_key="k")
    exchange.delete()
    assert bodies(queue) == [1]
    with pytest.raises(exceptions.NotFound):
        Exchange(exchange.name)(channel.connection.channel()).declare(passive=True)


def test_exchange_delete_if_unused(broker, channel):
    exchange = Exchange(broker.name("used"))(channel)
    declared(channel, Queue(broker.name("used"), exchange, routing_key="k"))
    with pytest.raises(exceptions.PreconditionFailed):
        exchange(channel.connection.channel()).delete(if_unused=True)


@pytest.mark.needs("exclusive queues")
def test_exclusive_queue_is_its_connections_own(broker, connection):
    queue = Queue(broker.name("exclusive"), exclusive=True)(connection)
    queue.declare()
    other = broker.connect()
    with pytest.raises(exceptions.ResourceLocked):
        Queue(queue.name)(other.channel()).queue_declare(passive=True)
    with pytest.raises(exceptions.ResourceLocked):
        Queue(queue.name)(other.channel()).get()
    connection.release()
    with pytest.raises(exceptions.NotFound):
        Queue(queue.name)(other.channel()).queue_declare(passive=True)


@pytest.mark.needs("auto-delete")
def test_auto_delete_queue_goes_with_its_last_consumer(broker, connection, channel):
    queue = Queue(broker.name("auto"), auto_delete=True)
    first, second = Inbox(channel, queue), Inbox(channel, queue)
    first.consumer.cancel()
    assert Queue(queue.name)(channel).queue_declare(passive=True).consumer_count == 1
    second.consumer.cancel()
    with pytest.raises(exceptions.NotFound):
        Queue(queue.name)(connection.channel()).queue_declare(passive=True)


@pytest.mark.needs("auto-delete")
def test_auto_delete_exchange_goes_with_its_last_binding(broker, connection, channel):
    exchange = Exchange(broker.name("auto"), auto_delete=True)
    one, two = declared(
        channel,
        Queue(broker.name("one"), exchange, routing_key="k"),
        Queue(broker.name("two"), exchange, routing_key="k"),
    )
    one.delete()
    Exchange(exchange.name)(connection.channel()).declare(passive=True)
    two.queue_unbind()
    with pytest.raises(exceptions.NotFound):
        Exchange(exchange.name)(connection.channel()).declare(passive=True)


@pytest.mark.needs("auto-delete")
def test_auto_delete_exchange_stays_until_a_binding_is_gone(broker, channel):
    exchange = Exchange(broker.name("auto"), auto_delete=True)(channel)
    exchange.declare()
    (queue,) = declared(channel, Queue(broker.name("one")))
    queue.unbind_from(exchange, routing_key="never bound")
    exchange.declare(passive=True)
    exchange.delete()


def test_consumer_of_a_deleted_queue_is_told(connection, channel, queue):
    cancelled = []
    tag = queue.consume("watched", callback=lambda message: None, on_cancel=cancelled.append)
    Queue(queue.name)(connection.channel()).delete()
    drain(connection, lambda: cancelled)
    assert cancelled == [tag]


def test_consumer_of_a_deleted_queue_raises_where_nobody_asked(connection, channel, queue):
    Inbox(channel, queue)
    Queue(queue.name)(connection.channel()).delete()
    with pytest.raises(exceptions.ConsumerCancelled):
        connection.drain_events(timeout=20)


@pytest.mark.needs("queue registry")
def test_consuming_an_unknown_queue_is_an_error(broker, channel):
    with pytest.raises(exceptions.NotFound):
        channel.basic_consume(broker.name("no-such-queue"), callback=lambda message: None)


def test_exclusive_consumer_is_alone(connection, channel, queue):
    channel.basic_consume(queue.name, callback=lambda message: None, exclusive=True)
    with pytest.raises(exceptions.AccessRefused):
        connection.channel().basic_consume(queue.name, callback=lambda message: None)


def test_predeclared_exchanges_are_there(broker, channel):
    topic, key = Exchange("amq.topic", "topic"), broker.name("k")
    (queue,) = declared(channel, Queue(broker.name("predeclared"), topic, routing_key=key))
    Producer(channel, topic).publish(1, routing_key=key)
    assert bodies(queue) == [1]
