"""Bindings and queues that others change, routing that keeps up with them, fanout, expiry, dead letters."""

from __future__ import annotations

import logging
import threading
import time

import kombu
import pytest

from kombulite import Consumer, Exchange, Producer, Queue, exceptions
from tests.redis.conftest import drain

SEP = "\x06\x16"


def bodies(queue):
    found = []
    while (message := queue.get(no_ack=True)) is not None:
        found.append(message.payload)
    return found


# --- routing


@pytest.mark.parametrize("kind", ["direct", "topic"])
def test_publisher_follows_what_a_kombu_peer_binds_and_unbinds(ours, theirs, client, name, kind):
    """The very next publish knows: the server tells of changes before it answers."""
    producer = Producer(ours().channel(), Exchange(name, kind), "k")
    channel = theirs().channel()
    for round_ in range(20):
        producer.publish(round_)
        queue = kombu.Queue(f"{name}.{round_}", kombu.Exchange(name, kind), "k")(channel)
        queue.declare()
        producer.publish({"round": round_})
        assert client.llen(queue.name) == 1
        queue.delete()
        producer.publish(round_)
        assert client.llen(queue.name) == 0


def test_publish_under_way_reaches_a_queue_bound_meanwhile(ours, client, name):
    """A binding that the server makes between our look at the table and our publish."""
    first, second = f"{name}.1", f"{name}.2"
    producer = Producer(ours().channel(), Exchange(name), "k")
    producer.publish(1, declare=[Queue(first, Exchange(name), "k")])
    publisher = producer.channel._transport._protocol.publisher
    destination_of = publisher.single

    def bind_after_looking(delivery):
        destination = destination_of(delivery)
        publisher.single = destination_of
        client.sadd(f"_kombu.binding.{name}", f"k{SEP}{SEP}{second}")
        return destination

    publisher.single = bind_after_looking
    producer.publish(2)
    assert (client.llen(first), client.llen(second)) == (2, 1)


def test_without_client_tracking_a_table_is_read_again_after_a_second(ours, theirs, client, name):
    connection = ours(protocol=2)
    producer = Producer(connection.channel(), Exchange(name), "k")
    producer.publish(1)
    kombu.Queue(name, kombu.Exchange(name), "k")(theirs().channel()).declare()
    deadline = time.monotonic() + 10
    while not client.llen(name):
        assert time.monotonic() < deadline
        producer.publish(2)
        time.sleep(0.05)


def test_members_of_unknown_format_are_passed_over(ours, client, name):
    channel = ours().channel()
    queue = Queue(name, Exchange(name), "k")(channel)
    queue.declare()
    client.sadd(f"_kombu.binding.{name}", "nonsense", b"\xff\xfe", f"a{SEP}b{SEP}c{SEP}d")
    Producer(channel, Exchange(name), "k").publish(1)
    assert bodies(queue) == [1]


def test_type_of_an_exchange_declared_elsewhere(ours, theirs, client, name):
    Queue(f"{name}.t", Exchange(f"{name}.t", "topic"), "a.#")(ours().channel()).declare()
    kombu.Queue(f"{name}.k", kombu.Exchange(f"{name}.k", "topic"), "a.*")(theirs().channel()).declare()
    producer = Producer(ours().channel())
    for suffix in "tk":
        producer.publish(1, exchange=f"{name}.{suffix}", routing_key="a.b")
        assert client.llen(f"{name}.{suffix}") == 1


def test_each_copy_has_its_own_tag_and_all_come_together(ours, client, name):
    channel = ours().channel()
    exchange = Exchange(name)
    queues = [Queue(f"{name}.{i}", exchange, "k")(channel) for i in range(3)]
    for queue in queues:
        queue.declare()
    Producer(channel, exchange, "k").publish(1)
    envelopes = {client.lindex(queue.name, 0) for queue in queues}
    assert len(envelopes) == 3


def test_unroutable_messages_are_counted_and_may_go_to_a_dead_letter_queue(ours, client, name):
    connection = ours()
    producer = Producer(connection.channel(), Exchange(name, "topic"), "nobody")
    producer.publish(1)
    assert connection.transport.unroutable == 1
    producer = Producer(ours(deadletter_queue=f"{name}.dead").channel(), Exchange(name, "topic"), "nobody")
    producer.publish(2)
    with producer.batch():
        producer.publish(3)
    assert client.llen(f"{name}.dead") == 2


# --- queues


def test_delete_and_unbind_what_kombu_bound(ours, theirs, client, name):
    bound = kombu.Queue(name, kombu.Exchange(name), "k")
    producer = kombu.Producer(theirs().channel(), kombu.Exchange(name), "k")
    producer.publish(1, declare=[bound])
    channel = ours().channel()
    queue = Queue(name, Exchange(name), "k")(channel)
    assert queue.queue_declare(passive=True).message_count == 1
    queue.exchange.declare()
    queue.queue_unbind()
    producer.publish(2)
    assert bodies(queue) == [1]
    bound(theirs().channel()).declare()  # another connection: this one believes it to be bound
    producer.publish(3, priority=6)
    assert queue.delete() == 1
    assert not client.exists(f"_kombu.binding.{name}", f"_kombu.binding_permanent.{name}")
    producer.publish(4)
    assert client.keys(f"{name}*") == []


def test_empty_queue_that_somebody_declared_is_known(ours, theirs, name):
    Queue(f"{name}.a")(ours().channel()).declare()
    kombu.Queue(f"{name}.b", kombu.Exchange(name), "k")(theirs().channel()).declare()
    channel = ours().channel()
    for suffix in "ab":
        assert Queue(f"{name}.{suffix}")(channel).queue_declare(passive=True).message_count == 0
    with pytest.raises(exceptions.NotFound):
        Queue(f"{name}.c")(channel).queue_declare(passive=True)


def test_sizes_and_purge_count_all_priorities(ours, name):
    channel = ours().channel()
    producer = Producer(channel)
    for priority in range(10):
        producer.publish(priority, routing_key=name, priority=priority)
    queue = Queue(name)(channel)
    assert queue.queue_declare(passive=True).message_count == 10
    assert queue.purge() == 10


def test_queue_that_expires_is_kept_by_its_consumer(ours, client, name):
    connection = ours()
    channel = connection.channel()
    queue = Queue(name, expires=1.5)
    busy = threading.Event()

    def callback(body, message):
        message.ack()
        time.sleep(2)  # longer than the queue would live
        busy.set()

    with Consumer(channel, queue, callbacks=[callback], prefetch_count=1):
        Producer(channel).publish_many([1, 2], routing_key=name)
        assert client.pttl(name) > 0
        drain(connection, busy.is_set)
        assert client.llen(name) == 1
    time.sleep(1.8)
    assert client.llen(name) == 0


def test_what_keeps_an_expiring_queue_keeps_its_connection(ours, client, name):
    """Else each of Celery's workers, which have such queues, would open another every three seconds."""
    connection = ours(client_name=name)

    def clients():
        return {each["id"] for each in client.client_list() if each["name"] == name}

    def renewals():
        return client.info("commandstats").get("cmdstat_pexpire", {"calls": 0})["calls"]

    with Consumer(connection.channel(), Queue(name, expires=0.3)):
        drain(connection, lambda: len(clients()) == 3, step=0.05)  # it publishes, it listens, it keeps
        before, renewed = clients(), renewals()
        drain(connection, lambda: renewals() >= renewed + 30, step=0.05)
        assert clients() == before


def test_bindings_of_expiring_queues_have_a_deadline(ours, client, name):
    Queue(name, Exchange(name), "k", expires=60)(ours().channel()).declare()
    assert client.zscore("_kombu.binding_deadlines", name) > time.time() * 1000 + 3_500_000
    assert client.smembers(f"_kombu.binding.{name}") == {f"k{SEP}{SEP}{name}".encode()}
    assert not client.exists(f"_kombu.binding_permanent.{name}")


# --- expiry


def test_expired_messages_are_dropped_by_the_consumer(ours, client, name):
    connection = ours()
    channel = connection.channel()
    Queue(f"{name}.ttl", message_ttl=0.1)(channel).declare()
    producer = Producer(channel)
    producer.publish("too late", routing_key=name, expiration=0.1)
    producer.publish("in time", routing_key=name, expiration=60)
    producer.publish("too late", routing_key=f"{name}.ttl")
    time.sleep(0.2)
    got = []
    queues = [Queue(name), Queue(f"{name}.ttl", message_ttl=0.1)]
    with Consumer(channel, queues, callbacks=[lambda body, message: (got.append(body), message.ack())]):
        drain(connection, lambda: got)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
    assert got == ["in time"]
    assert not client.exists("unacked")


def test_what_says_in_a_header_when_it_expires_reaches_its_receiver(ours, name):
    """As a late task of Celery's does, which its worker reports as revoked."""
    connection = ours()
    channel = connection.channel()
    Queue(name)(channel).declare()
    Producer(channel).publish(
        "late", routing_key=name, expiration=0.01, headers={"task": "t", "id": "1", "expires": "2020-01-01T00:00:00"}
    )
    time.sleep(0.05)
    got = []
    with Consumer(channel, [Queue(name)], callbacks=[lambda body, message: (got.append(body), message.ack())]):
        drain(connection, lambda: got)
    assert got == ["late"]


# --- elements that are no messages


@pytest.mark.parametrize(
    "element", [b"garbage", b"{broken}", b"\xff\x00", b"{}", b"[]", b'{"body": 5, "properties": {"delivery_tag": "x"}}']
)
@pytest.mark.parametrize("no_ack", [False, True])
def test_element_that_is_no_message_goes_to_the_dead_letters(ours, client, name, element, no_ack, caplog):
    connection = ours()
    channel = connection.channel()
    client.lpush(name, element)
    Producer(channel).publish("good", routing_key=name)
    got = []

    def callback(body, message):
        got.append(body)
        message.ack()

    with caplog.at_level(logging.ERROR), Consumer(channel, Queue(name), callbacks=[callback], no_ack=no_ack):
        drain(connection, lambda: got)
    assert got == ["good"]
    assert client.lrange(f"_kombulite.dead.{name}", 0, -1) == [element]
    assert "no message" in caplog.text


# --- fanout


def fanout(connection, exchange, *names, **options):
    """Consumers of fanout queues on one channel: the channel, and what each gets."""
    channel = connection.channel()
    got = {}
    for each in names:
        queue = Queue(each, Exchange(exchange, "fanout"), **options)
        messages = got[each] = []
        Consumer(channel, queue, callbacks=[lambda body, message, to=messages: to.append((body, message))]).consume()
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)
    return channel, got


@pytest.mark.parametrize("exchange", ["plain", "with[glob]*?", "with/slash", "with.dots"])
def test_fanout_reaches_all_queues_whatever_the_key_and_the_name(ours, name, exchange):
    connection = ours()
    exchange = f"{name}{exchange}"
    _, got = fanout(connection, exchange, f"{name}.a", f"{name}.b")
    _, other = fanout(connection, f"{name}with", f"{name}.c")
    producer = Producer(ours().channel(), Exchange(exchange, "fanout"))
    producer.publish(1)
    producer.publish(2, routing_key="slash")
    drain(connection, lambda: all(len(messages) == 2 for messages in got.values()))
    assert [[body for body, _ in messages] for messages in got.values()] == [[1, 2], [1, 2]]
    assert other == {f"{name}.c": []}


def test_fanout_consumer_added_later_is_subscribed_and_prefetch_holds(ours, client, name):
    connection = ours()
    fanout(connection, f"{name}.first", f"{name}.first")
    channel, got = fanout(connection, name, name)
    channel.basic_qos(prefetch_count=2)
    Producer(ours().channel(), Exchange(name, "fanout")).publish_many(range(5))
    messages = got[name]
    drain(connection, lambda: len(messages) == 2)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.2)
    messages[0][1].requeue()
    drain(connection, lambda: len(messages) == 3)
    assert messages[2][0] == 0
    assert messages[2][1].delivery_info["redelivered"]
    for _, message in messages[1:]:
        message.ack()
    drain(connection, lambda: len(messages) == 5)
    assert not client.exists("unacked", name)


def test_queue_bound_to_a_fanout_and_a_direct_exchange_gets_both(ours, name):
    connection = ours()
    channel, got = fanout(connection, f"{name}.f", name)
    direct = Exchange(f"{name}.d")
    direct(channel).declare()
    Queue(name)(channel).bind_to(direct, "k")
    publisher = ours().channel()
    Producer(publisher, Exchange(f"{name}.f", "fanout")).publish("fanout")
    Producer(publisher, direct, "k").publish("direct")
    drain(connection, lambda: len(got[name]) == 2)
    assert {body for body, _ in got[name]} == {"fanout", "direct"}


def test_fanout_that_nobody_hears_is_unroutable(ours, name):
    connection = ours()
    Producer(connection.channel(), Exchange(name, "fanout")).publish(1)
    assert connection.transport.unroutable == 1


def test_auto_delete_queue_of_a_fanout_leaves_no_binding(ours, client, name):
    channel, _ = fanout(ours(), name, name, auto_delete=True)
    assert client.exists(f"_kombu.binding.{name}")
    channel.close()
    assert not client.exists(f"_kombu.binding.{name}")
