"""kombulite and genuine kombu 5.7 on one database, in both directions."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import kombu
import pytest

import kombulite
from tests.redis.conftest import drain

BODIES = [{"id": 7, "list": [1, None, "ü"]}, "text \U0001f600", b"\x00\xff", 12.5]

pytestmark = pytest.mark.parametrize("direction", ["kombu to kombulite", "kombulite to kombu"])


@pytest.fixture
def peers(direction, ours, theirs):
    """(library, connect) of the sender and of the receiver."""
    sides = [(kombu, theirs), (kombulite, ours)]
    return sides if direction == "kombu to kombulite" else sides[::-1]


def receive(library, connection, queues, count, ack=True, prefetch_count=0, **options):
    messages = []

    def callback(body, message):
        messages.append((body, message))
        if ack:
            message.ack()

    consumer = library.Consumer(connection.channel(), queues, callbacks=[callback], **options)
    consumer.qos(prefetch_count=prefetch_count)
    with consumer:
        drain(connection, lambda: len(messages) >= count)
    return messages


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
def test_serializers(peers, name, client, serializer):
    (sender, send), (receiver, get) = peers
    bodies = BODIES if serializer != "json" else [BODIES[0], BODIES[1], BODIES[3]]
    queue = sender.Queue(name, sender.Exchange(name), routing_key="k")
    with sender.Producer(send().channel(), sender.Exchange(name), "k", serializer=serializer) as producer:
        for body in bodies:
            producer.publish(body, declare=[queue])
    queue = receiver.Queue(name, receiver.Exchange(name), routing_key="k")
    got = receive(receiver, get(), queue, len(bodies), accept=[serializer])
    assert [body for body, _ in got] == bodies
    drain_acks(client)


def drain_acks(client):
    """Acks are not waited for; they arrive."""
    deadline = time.monotonic() + 5
    while client.exists("unacked", "unacked_index"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_compressions(peers, name, compression):
    (sender, send), (receiver, get) = peers
    body = {"text": "x" * 3000}
    sender.Producer(send().channel()).publish(body, routing_key=name, compression=compression)
    assert [body for body, _ in receive(receiver, get(), receiver.Queue(name), 1)] == [body]


@pytest.mark.parametrize("body_encoding", ["utf-8", None])
def test_bodies_that_are_not_base64(peers, name, body_encoding):
    (sender, send), (receiver, get) = peers
    producer = sender.Producer(send(body_encoding=body_encoding).channel())
    producer.publish({"a": "ü"}, routing_key=name)
    producer.publish("text", routing_key=name)
    got = receive(receiver, get(body_encoding=body_encoding), receiver.Queue(name), 2)
    assert [body for body, _ in got] == [{"a": "ü"}, "text"]


def test_properties_and_headers(peers, name):
    (sender, send), (receiver, get) = peers
    sender.Producer(send().channel()).publish(
        1, routing_key=name, headers={"h": {"x": [1]}}, correlation_id="c", reply_to="r", priority=4, mine="m",
        delivery_mode=1, expiration=60,
    )  # fmt: skip
    ((_, message),) = receive(receiver, get(), receiver.Queue(name), 1)
    assert message.headers == {"h": {"x": [1]}}
    wanted = {"correlation_id": "c", "reply_to": "r", "priority": 4, "mine": "m", "delivery_mode": 1}
    assert {key: message.properties.get(key) for key in wanted} == wanted
    assert message.properties["expiration"] == "60000"
    assert (message.delivery_info["exchange"], message.delivery_info["routing_key"]) == ("", name)


def test_priorities_lowest_number_first(peers, name):
    (sender, send), (receiver, get) = peers
    producer = sender.Producer(send().channel())
    priorities = [9, 0, 5, 3, 7, None, 255, -3, 1]
    for priority in priorities:
        producer.publish(priority, routing_key=name, priority=priority)
    got = [body for body, _ in receive(receiver, get(), receiver.Queue(name), len(priorities))]
    assert got == [0, None, -3, 1, 5, 3, 7, 9, 255]


@pytest.mark.parametrize(
    ("kind", "binding", "reached"),
    [("direct", "a.b", ["a.b"]), ("topic", "a.*", ["a.b", "a.c"]), ("topic", "#", ["a.b", "a.c", "x-y"]),
     ("topic", "x-y", ["x-y"])],
)  # fmt: skip
def test_bindings_of_the_receiver_route_the_sender(peers, name, kind, binding, reached):
    (sender, send), (receiver, get) = peers
    connection = get()
    receiver.Queue(name, receiver.Exchange(name, kind), binding)(connection.channel()).declare()
    producer = sender.Producer(send().channel(), sender.Exchange(name, kind))
    for key in ("a.b", "a.c", "x-y"):
        producer.publish(key, routing_key=key)
    queue = receiver.Queue(name, receiver.Exchange(name, kind), binding)
    assert [body for body, _ in receive(receiver, connection, queue, len(reached))] == reached


@pytest.mark.parametrize(("binding", "keys"), [("", [""]), ("k.*", ["k.1"])])
def test_fanout(peers, name, binding, keys):
    (sender, send), (receiver, get) = peers
    connection = get()
    got = []
    queue = receiver.Queue(name, receiver.Exchange(name, "fanout"), binding, auto_delete=True)
    with receiver.Consumer(connection.channel(), queue, callbacks=[lambda body, message: got.append(body)]):
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.1)  # kombu subscribes when it first drains
        producer = sender.Producer(send().channel(), sender.Exchange(name, "fanout"))
        for key in keys:
            producer.publish({"key": key}, routing_key=key)
        drain(connection, lambda: len(got) == len(keys))
    assert got == [{"key": key} for key in keys]


def test_requeued_by_one_taken_by_the_other(peers, name, client):
    (sender, send), (receiver, get) = peers
    channel = send().channel()
    sender.Producer(channel).publish({"n": 1}, routing_key=name, priority=3)
    queue = sender.Queue(name)(channel)
    queue.declare()
    queue.get().requeue()
    assert client.llen(f"{name}\x06\x163") == 1
    ((body, message),) = receive(receiver, get(), receiver.Queue(name), 1)
    assert body == {"n": 1}
    assert message.delivery_info["redelivered"]
    drain_acks(client)


@pytest.mark.parametrize("kind", ["direct", "topic"])
def test_dead_consumer_of_one_is_taken_over_by_the_other(peers, name, client, kind):
    """The sender's library holds three messages and is gone; the receiver's puts them back after the timeout."""
    (sender, send), (receiver, get) = peers
    options = {"visibility_timeout": 1, "unacked_restore_interval": 0.2, "unacked_restore_throttle": 1}
    connection = send(**options)
    channel = connection.channel()
    exchange = sender.Exchange(name, kind)
    queue = sender.Queue(name, exchange, "a.b")(channel)
    queue.declare()
    producer = sender.Producer(channel, exchange)
    for i in range(3):
        producer.publish(i, routing_key="a.b")
    for _ in range(3):
        assert queue.get() is not None
    assert client.hlen("unacked") == 3
    for value in client.hvals("unacked"):
        assert len(json.loads(value)) == 3
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    forget(sender, connection)

    got = []

    def callback(body, message):
        got.append((body, message.delivery_info.get("redelivered")))
        message.ack()

    connection = get(**options)
    # The receiver declares another exchange type than it needs to know.
    with receiver.Consumer(connection.channel(), receiver.Queue(name), callbacks=[callback]):
        drain(connection, lambda: len(got) == 3, step=0.2)
    if receiver is kombu:  # which may hand the first it puts back to a BRPOP that already waits
        got.sort()
    assert got == [(0, True), (1, True), (2, True)]
    drain_acks(client)


def forget(library, connection):
    """Let a connection end as with its process: nothing is put back."""
    if library is kombulite:
        transport = connection.transport
        transport._channels.clear()
        connection.collect()
    else:
        for channel in list(connection._connection.channels):
            channel.qos._delivered.clear()
            channel.qos.restore_at_shutdown = False
        connection.collect()
