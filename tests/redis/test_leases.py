"""Leases: renewed by the living, restored from the dead, kept apart from one another."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque

import kombu
import pytest

from kombulite import Consumer, Exchange, Producer, Queue
from kombulite.brokers.redis import handover
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.maintainer import LeaseMaintainer
from kombulite.brokers.redis.options import Options
from tests.redis.conftest import drain

QUICK = {"visibility_timeout": 1, "unacked_restore_interval": 0.2, "unacked_restore_throttle": 1}
SEP = "\x06\x16"


def consume(connection, name, count, step=0.2, ack=True, **options):
    got = []

    def callback(body, message):
        got.append(body)
        if ack:
            message.ack()

    with Consumer(connection.channel(), Queue(name), callbacks=[callback], **options):
        drain(connection, lambda: len(got) >= count, step=step)
    return got


def abandon(client, tag, envelope, exchange, routing_key, age=100):
    """Leave a lease as a consumer does that died."""
    value = envelope if isinstance(envelope, bytes) else json.dumps([envelope, exchange, routing_key])
    client.hset("unacked", tag, value)
    client.zadd("unacked_index", {tag: time.time() - age})


def envelope(n, **properties):
    return {
        "body": str(n), "content-encoding": "utf-8", "content-type": "application/json", "headers": {},
        "properties": {"delivery_tag": f"tag-{n}", "delivery_info": {"exchange": "", "routing_key": ""}, **properties},
    }  # fmt: skip


def test_long_task_is_not_delivered_twice(ours, client, name):
    Producer(ours().channel()).publish("task", routing_key=name)
    connection, other = ours(**QUICK), ours(**QUICK)
    others = []
    stop = threading.Event()

    def steal():
        with Consumer(other.channel(), Queue(name), callbacks=[lambda body, message: others.append(body)]):
            while not stop.is_set():
                try:
                    other.drain_events(timeout=0.1)
                except TimeoutError:
                    continue

    def callback(body, message):
        thief.start()
        time.sleep(3)
        message.ack()
        stop.set()

    thief = threading.Thread(target=steal)
    with Consumer(connection.channel(), Queue(name), callbacks=[callback]):
        drain(connection, stop.is_set)
    thief.join()
    assert others == []
    assert not client.exists("unacked", name)


def test_message_that_was_fetched_is_kept_as_long(ours, client, name):
    channel = ours(**QUICK).channel()
    Producer(channel).publish(1, routing_key=name)
    message = Queue(name)(channel).get()
    with Consumer(ours(**QUICK).channel(), Queue(f"{name}.other"), callbacks=[lambda body, message: None]):
        time.sleep(2.5)
        assert client.llen(name) == 0
    message.ack()


def test_oldest_come_back_first_to_the_front_of_their_own_queue(ours, client, name):
    for n in range(5):
        abandon(client, f"t{n}", envelope(n), "", name, age=100 - n)
    client.lpush(name, json.dumps(envelope(99)))
    got = consume(ours(**QUICK, unacked_restore_limit=2), name, 6, prefetch_count=1)
    assert sorted(got) == [0, 1, 2, 3, 4, 99]
    assert [n for n in got if n != 99] == [0, 1, 2, 3, 4]
    client.flushdb()
    for n in range(1500):  # more than one step of the sweep
        abandon(client, f"t{n}", envelope(n), "", name, age=5000 - n)
    assert consume(ours(**QUICK), name, 1500) == list(range(1500))


def test_lease_of_a_holder_with_a_longer_timeout_is_respected(ours, client, name):
    channel = ours(visibility_timeout=1000).channel()
    Producer(channel).publish("theirs", routing_key=name)
    assert Queue(name)(channel).get() is not None
    (tag,) = client.hkeys("unacked")
    client.zadd("unacked_index", {tag: time.time() - 500})
    connection = ours(**QUICK)
    with Consumer(connection.channel(), Queue(name), callbacks=[lambda body, message: pytest.fail("taken away")]):
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=1)
    client.zadd("unacked_index", {tag: time.time() - 1001})
    assert consume(connection, name, 1) == ["theirs"]


def test_mutex_of_a_peer_is_respected(ours, client, name):
    abandon(client, "t", envelope(1), "", name)
    start = time.monotonic()
    client.set("unacked_mutex", "a peer's token", px=1000)
    assert consume(ours(**QUICK), name, 1) == [1]
    assert time.monotonic() - start > 0.8
    assert not client.exists("unacked_mutex") or client.get("unacked_mutex") != b"a peer's token"


def test_late_ack_of_the_first_holder_leaves_the_second_holders_lease_alone(ours, client, name):
    first, second = ours().channel(), ours().channel()
    Producer(first).publish(1, routing_key=name)
    message = Queue(name)(first).get()
    (tag,) = client.hkeys("unacked")
    client.zadd("unacked_index", {tag: 0})
    client.hset("unacked", tag, client.hget("unacked", tag))
    connection = ours(**QUICK)
    with Consumer(connection.channel(), Queue(f"{name}.other"), callbacks=[lambda body, message: None]):
        drain(connection, lambda: client.llen(name), step=0.2)
    again = Queue(name)(second).get()
    assert again.delivery_info["redelivered"]
    message.ack()
    message.channel.connection.transport._stream.wait_for_replies()
    assert client.hlen("unacked") == 1
    again.requeue()
    assert client.llen(name) == 1


@pytest.mark.parametrize(
    "value", [b"garbage", b"[]", b"[1, 2, 3]", b'["text", "", "q"]', b'{"a": 1}', b"\xff", b"[" * 100_000]
)
def test_lease_that_is_none_stops_nobody(ours, client, name, value):
    abandon(client, "bad", value, "", "")
    abandon(client, "good", envelope(1), "", name)
    assert consume(ours(**QUICK), name, 1) == [1]
    assert not client.exists("unacked")
    assert sum(client.llen(key) for key in client.keys("_kombulite.dead.*")) == 1


def test_lease_of_kombu_that_leads_nowhere_is_kept(ours, client, name):
    abandon(client, "t", envelope(1), f"{name}.gone", "k")
    abandon(client, "good", envelope(2), "", name)
    assert consume(ours(**QUICK), name, 1) == [2]
    (dead,) = client.lrange("_kombulite.dead.k", 0, -1)
    assert json.loads(dead)["body"] == "1"


def test_lease_of_kombu_from_a_topic_exchange_that_we_did_not_declare(ours, theirs, client, name):
    kombu.Queue(name, kombu.Exchange(f"{name}.x", "topic"), "a.*")(theirs().channel()).declare()
    abandon(client, "t", envelope(1, priority=6), f"{name}.x", "a.b")
    assert consume(ours(**QUICK), name, 1) == [1]


def test_index_without_a_message_is_removed(ours, client, name):
    client.zadd("unacked_index", {"lonely": 1})
    abandon(client, "good", envelope(1), "", name)
    assert consume(ours(**QUICK), name, 1) == [1]
    assert not client.exists("unacked_index")


def test_closing_puts_everything_back_in_order(ours, client, name):
    publisher = ours().channel()
    Producer(publisher).publish_many(range(10), routing_key=name)
    connection = ours()
    consume(connection, name, 4, ack=False)
    connection.release()
    queue = Queue(name)(publisher)
    assert [queue.get(no_ack=True).payload for _ in range(10)] == list(range(10))
    assert not client.exists("unacked", "unacked_index")


def test_acks_may_be_done_without(ours, client, name):
    connection = ours(ack_emulation=False)
    channel = connection.channel()
    Producer(channel).publish_many(range(3), routing_key=name)
    messages = [Queue(name)(channel).get() for _ in range(3)]
    assert not client.exists("unacked")
    messages[0].ack()
    messages[1].requeue()
    channel.close()
    queue = Queue(name)(connection.channel())
    assert {queue.get(no_ack=True).payload for _ in range(2)} == {1, 2}


def test_order_among_queues_and_priorities(ours, name):
    connection = ours()
    producer = Producer(connection.channel())
    for priority in (9, 0):
        for queue in "ab":
            producer.publish_many([f"{queue}{priority}"] * 2, routing_key=f"{name}.{queue}", priority=priority)
    got = []
    queues = [Queue(f"{name}.{queue}") for queue in "ab"]
    with Consumer(connection.channel(), queues, callbacks=[lambda body, message: got.append(body)]):
        drain(connection, lambda: len(got) == 8)
    assert got == ["a0", "b0", "a0", "b0", "a9", "b9", "a9", "b9"]


def test_old_and_new_generation_of_clients(ours, client, name):
    """A client of kombu before 5.7 binds in one set only; an expiring queue that comes and goes takes nothing along."""
    old = f"{name}.old"
    client.sadd(f"_kombu.binding.{name}", f"k{SEP}{SEP}{old}")
    channel = ours().channel()
    queue = Queue(f"{name}.new", Exchange(name), "k", expires=60)(channel)
    queue.declare()
    producer = Producer(ours().channel(), Exchange(name), "k")
    producer.publish(1)
    queue.delete()
    client.zadd("_kombu.binding_deadlines", {name: 1})
    assert consume(ours(**QUICK), old, 1) == [1]
    producer.publish(2)
    assert consume(ours(), old, 1) == [2]


def test_two_connections_that_put_back_the_same_at_once_both_open(ours, client, name, monkeypatch):
    """Workers in threads connect at the same time when the server is back."""
    monkeypatch.setattr(LeaseMaintainer, "start", lambda self: None)  # it would put back, too
    lost, first, second = ours(), ours(), ours()
    Producer(lost).publish(1, routing_key=name)
    Queue(name)(lost.channel()).get()
    lost.collect()
    put_back = handover.put_back

    def put_back_meanwhile(*arguments):
        monkeypatch.setattr(handover, "put_back", put_back)
        second.connect()
        return put_back(*arguments)

    monkeypatch.setattr(handover, "put_back", put_back_meanwhile)
    first.connect()
    assert second.connected
    assert client.llen(name) == 1
    assert Queue(name)(first.channel()).get(no_ack=True).payload == 1


def test_forked_child_leaves_the_parents_connection_alone(ours, name):
    connection = ours()
    producer = Producer(connection.channel())
    producer.publish(1, routing_key=name)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            producer.publish(2, routing_key=name)
        except connection.connection_errors:
            connection.collect()
            Producer(connection).publish(3, routing_key=name)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    producer.publish(4, routing_key=name)
    queue = Queue(name)(connection.channel())
    assert [queue.get(no_ack=True).payload for _ in range(3)] == [1, 3, 4]


def test_count_of_deliveries_outlives_a_kombu_consumer(ours, theirs, name, client):
    """kombu does not count, and leaves the count as it is."""
    Producer(ours()).publish("x", routing_key=name)
    for _ in range(2):
        Queue(name)(ours()).get().requeue()
    kombu.Queue(name)(theirs()).get().requeue()
    message = Queue(name)(ours()).get()
    assert message.payload == "x"
    assert message.delivery_count == 2
    message.ack()


@pytest.mark.usefixtures("killed_is_lost")
def test_what_an_ending_consumer_had_ahead_comes_again_after_a_loss(ours, client, name):
    connection = ours()
    Producer(connection).publish_many(range(10), routing_key=name)
    got = []
    consumer = Consumer(connection.channel(), Queue(name), on_message=got.append, prefetch_count=10)
    consumer.consume()
    drain(connection, lambda: got)
    client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(connection.recoverable_connection_errors):
        consumer.cancel()
    assert client.hlen("unacked") == 10
    got.clear()
    connection.collect()
    queue = Queue(name)(connection.channel())
    assert [queue.get(no_ack=True).payload for _ in range(10)] == list(range(10))
    assert not client.exists("unacked", "unacked_index")


@pytest.mark.parametrize("place", ["_left", "_forgotten"])
def test_what_another_thread_takes_over_at_the_same_time_is_left_to_it(place):
    class Raced(deque):
        def __bool__(self):
            return True  # when it was looked at

    left = handover.Handover(Keys(Options.of({}), 0))
    setattr(left, place, Raced())
    assert list(left.bring_back()) == []
