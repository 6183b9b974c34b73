"""Genuine kombu, pika and this library on the same queues, in both directions."""

from __future__ import annotations

import datetime
import decimal
import struct
import time

import kombu
import pika
import pytest
from pika.exceptions import UnroutableError

from kombulite import Exchange, Producer, Queue, exceptions

BODIES = {
    "json": {"id": 7, "nested": {"list": [1, 2.5, None, True, "ü \U0001f600"]}},
    "yaml": {"id": 7, "text": "ü", "list": [1, 2.5, None]},
    "msgpack": {"id": 7, "text": "ü", "raw": b"\xff"},
    "pickle": {"id": 7, "tuple": (1, 2), "when": datetime.datetime(2026, 1, 2)},
    "raw": b"raw \x00\xff bytes",
}
ACCEPT = ["json", "yaml", "msgpack", "pickle", "application/data"]
COMPRESSIONS = ["gzip", "bzip2", "lzma", "brotli"]
PROPERTIES = {
    "correlation_id": "correlation",
    "reply_to": "answers",
    "message_id": "message",
    "timestamp": 1767323045,
    "type": "greeting",
    "user_id": "guest",
    "app_id": "app",
    "cluster_id": "cluster",
}


@pytest.fixture
def genuine(amqp_url):
    with kombu.Connection(amqp_url) as connection:
        yield connection


@pytest.fixture
def genuine_queue(genuine, queue):
    return kombu.Queue(queue.name, no_declare=True)(genuine.default_channel)


@pytest.fixture
def pika_channel(amqp_url):
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url.rstrip("/") + "/%2F"))
    yield connection.channel()
    connection.close()


def fetch(get, timeout=30):
    """A message that may be on its way still."""
    deadline = time.monotonic() + timeout
    while (message := get()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return message


# --- kombu


@pytest.mark.parametrize("serializer", BODIES)
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_bodies_to_kombu(channel, queue, genuine_queue, serializer, compression):
    Producer(channel).publish(
        BODIES[serializer], routing_key=queue.name, serializer=serializer, compression=compression
    )
    message = fetch(lambda: genuine_queue.get(accept=ACCEPT))
    assert message.payload == BODIES[serializer]
    message.ack()


@pytest.mark.parametrize("serializer", BODIES)
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_bodies_from_kombu(genuine, queue, serializer, compression):
    kombu.Producer(genuine).publish(
        BODIES[serializer], routing_key=queue.name, serializer=serializer, compression=compression
    )
    message = fetch(lambda: queue.get(accept=ACCEPT))
    assert message.payload == BODIES[serializer]
    message.ack()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressions_both_ways(genuine, channel, queue, genuine_queue, compression):
    body = "compressed " * 100
    Producer(channel).publish(body, routing_key=queue.name, compression=compression)
    message = fetch(lambda: genuine_queue.get(no_ack=True))
    assert message.payload == body
    ours = message.headers["compression"]
    kombu.Producer(genuine).publish(body, routing_key=queue.name, compression=compression)
    message = fetch(lambda: queue.get(no_ack=True))
    assert message.payload == body
    assert message.headers["compression"] == ours


@pytest.mark.parametrize("body", ["", "text ü", b"", b"\xff\x00binary"])
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-own"])
def test_raw_bodies_both_ways(genuine, channel, queue, genuine_queue, body, content_type):
    Producer(channel).publish(body, routing_key=queue.name, content_type=content_type)
    ours = fetch(lambda: genuine_queue.get(no_ack=True))
    kombu.Producer(genuine).publish(body, routing_key=queue.name, content_type=content_type)
    theirs = fetch(lambda: queue.get(no_ack=True))
    kombu.Producer(genuine).publish(body, routing_key=queue.name, content_type=content_type)
    reference = fetch(lambda: genuine_queue.get(no_ack=True))
    for message in (ours, theirs):
        assert message.body == reference.body or not (message.body or reference.body)  # kombu gives bytes for ""
        assert message.content_type == reference.content_type == content_type
        assert message.content_encoding == reference.content_encoding


@pytest.mark.parametrize("delivery_mode", [1, 2, "transient", "persistent", None])
@pytest.mark.parametrize("priority", [0, 9, None])
def test_all_properties_both_ways(genuine, channel, queue, genuine_queue, delivery_mode, priority):
    options = {
        "routing_key": queue.name,
        "headers": {"h": 1},
        "delivery_mode": delivery_mode,
        "priority": priority,
        "expiration": 60.5,
        **PROPERTIES,
    }
    Producer(channel).publish({"a": 1}, **options)
    ours = fetch(lambda: genuine_queue.get(no_ack=True))
    kombu.Producer(genuine).publish({"a": 1}, **options)
    theirs = fetch(lambda: queue.get(no_ack=True))
    kombu.Producer(genuine).publish({"a": 1}, **options)
    reference = fetch(lambda: genuine_queue.get(no_ack=True))
    assert ours.properties == reference.properties
    assert theirs.properties == reference.properties
    assert theirs.headers == reference.headers == {"h": 1}
    assert reference.properties["expiration"] == "60500"
    for key, value in theirs.delivery_info.items():
        assert key == "delivery_tag" or reference.delivery_info[key] == value


HEADERS = {
    "true": True,
    "int": -5,
    "int32": 2147483647,
    "int64": 2**40,
    "negative": -(2**63),
    "float": 1.5,
    "decimal": decimal.Decimal("12.34"),
    "text": "ü",
    "bytes": b"\xff\xfe",
    "when": datetime.datetime(2026, 1, 2, 3, 4, 5),
    "table": {"deep": {"er": [1, "x", None]}},
    "list": [1, True, "x", [2, [3]], {"a": None}],
    "none": None,
    "empty": {},
    "nothing": [],
}


def test_headers_both_ways(genuine, channel, queue, genuine_queue):
    Producer(channel).publish(1, routing_key=queue.name, headers=HEADERS)
    ours = fetch(lambda: genuine_queue.get(no_ack=True)).headers
    kombu.Producer(genuine).publish(1, routing_key=queue.name, headers=HEADERS)
    theirs = fetch(lambda: queue.get(no_ack=True)).headers
    kombu.Producer(genuine).publish(1, routing_key=queue.name, headers=HEADERS)
    reference = fetch(lambda: genuine_queue.get(no_ack=True)).headers
    assert ours == reference
    assert theirs == reference == HEADERS
    assert {name: type(value) for name, value in theirs.items()} == {
        name: type(value) for name, value in reference.items()
    }


# Every tag of RabbitMQ's tables, as it comes out of the broker.
TABLE = [
    ("t", b"t\x01", True),
    ("b", b"b\xfe", -2),
    ("B", b"B\xfe", 254),
    ("s", b"s\xff\xfe", -2),
    ("u", b"u\xff\xfe", 65534),
    ("I", b"I\xff\xff\xff\xfe", -2),
    ("i", b"i\xff\xff\xff\xfe", 4294967294),
    ("l", b"l" + struct.pack(">q", -(2**40)), -(2**40)),
    ("L", b"L" + struct.pack(">q", -(2**40)), -(2**40)),
    ("f", b"f" + struct.pack(">f", 1.5), 1.5),
    ("d", b"d" + struct.pack(">d", 0.1), 0.1),
    ("D", b"D\x02" + struct.pack(">i", -1234), decimal.Decimal("-12.34")),
    ("S", b"S\x00\x00\x00\x02\xc3\xbc", "ü"),
    ("S binary", b"S\x00\x00\x00\x01\xff", b"\xff"),
    ("x", b"x\x00\x00\x00\x02ab", b"ab"),
    ("T", b"T" + struct.pack(">Q", 1767323045), datetime.datetime(2026, 1, 2, 3, 4, 5)),
    ("F", b"F\x00\x00\x00\x04\x01at\x01", {"a": True}),
    ("A", b"A\x00\x00\x00\x04t\x00b\x01", [False, 1]),
    ("V", b"V", None),
]


@pytest.mark.parametrize(("raw", "value"), [case[1:] for case in TABLE], ids=[case[0] for case in TABLE])
def test_every_table_type_through_the_broker(pika_channel, queue, monkeypatch, raw, value):
    """pika's own encoder knows few types, so it is given the bytes."""

    def encode_table(pieces, table):
        data = b"\x01k" + raw
        pieces += [struct.pack(">I", len(data)), data]
        return 4 + len(data)

    monkeypatch.setattr("pika.data.encode_table", encode_table)
    pika_channel.basic_publish("", queue.name, b"x", pika.BasicProperties(headers={"k": 1}))
    headers = fetch(lambda: queue.get(no_ack=True)).headers
    assert headers == {"k": value}
    assert type(headers["k"]) is type(value)


def test_acks_and_requeues_between_kombu_and_us(genuine, channel, queue, genuine_queue):
    Producer(channel).publish("wanders", routing_key=queue.name)
    first = fetch(lambda: genuine_queue.get())
    assert not first.delivery_info["redelivered"]
    first.requeue()
    second = fetch(lambda: queue.get())
    assert second.delivery_info["redelivered"] is True
    second.reject(requeue=True)
    third = fetch(lambda: genuine_queue.get())
    assert third.delivery_info["redelivered"]
    third.ack()
    genuine.close()
    time.sleep(0.05)
    assert queue.get() is None


def test_mandatory_returns_of_both(genuine, connection, name):
    returned = []
    producer = Producer(connection, on_return=lambda *args: returned.append(args))
    producer.publish({"a": 1}, routing_key=name("nowhere"), mandatory=True, headers={"h": 1})
    while not returned:
        connection.drain_events(timeout=30)
    theirs = []
    channel = genuine.channel()
    their_producer = kombu.Producer(channel, on_return=lambda *args: theirs.append(args))
    their_producer.publish({"a": 1}, routing_key=name("nowhere"), mandatory=True, headers={"h": 1})
    while not theirs:
        genuine.drain_events(timeout=30)
    (ours,), (reference,) = returned, theirs
    assert ours[1:3] == reference[1:3]
    assert ours[0].reply_code == reference[0].reply_code == 312
    assert ours[0].reply_text == reference[0].reply_text
    assert ours[3].payload == {"a": 1}
    assert ours[3].headers == {"h": 1}


def test_declarations_of_one_are_those_of_the_other(genuine, channel, name):
    settings = {
        "durable": True,
        "expires": 60,
        "message_ttl": 2.5,
        "max_length": 100,
        "max_length_bytes": 10000,
        "max_priority": 5,
    }
    exchange = Exchange(name("ex"), "topic")
    Queue(name("q"), exchange, "a.#", **settings)(channel).declare()
    theirs = kombu.Queue(name("q"), kombu.Exchange(name("ex"), "topic"), "a.#", **settings)
    theirs(genuine.default_channel).declare()  # or it would be PRECONDITION_FAILED
    with pytest.raises(exceptions.NotEquivalentError):
        Queue(name("q"), max_length=99)(channel).declare()


# --- pika


def test_properties_to_pika(channel, queue, pika_channel):
    Producer(channel).publish(
        "text ü",
        routing_key=queue.name,
        content_type="text/plain",
        headers={"h": [1, "x"], "t": {"a": True}},
        delivery_mode=1,
        priority=3,
        expiration=60,
        **PROPERTIES,
    )
    method, properties, body = fetch(lambda: got(pika_channel, queue.name))
    assert body.decode() == "text ü"
    assert properties.headers == {"h": [1, "x"], "t": {"a": True}}
    assert (properties.content_type, properties.content_encoding) == ("text/plain", "utf-8")
    assert (properties.delivery_mode, properties.priority, properties.expiration) == (1, 3, "60000")
    for key, value in PROPERTIES.items():
        assert getattr(properties, key) == value
    pika_channel.basic_ack(method.delivery_tag)


def got(pika_channel, queue):
    answer = pika_channel.basic_get(queue)
    return None if answer[0] is None else answer


def test_properties_from_pika(queue, pika_channel):
    properties = pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        headers={"h": [1, "x"], "when": datetime.datetime(2026, 1, 2), "n": None},
        delivery_mode=2,
        priority=3,
        expiration="60000",
        **PROPERTIES,
    )
    pika_channel.basic_publish("", queue.name, b'{"a": 1}', properties)
    message = fetch(queue.get)
    assert message.payload == {"a": 1}
    assert message.headers == {"h": [1, "x"], "when": datetime.datetime(2026, 1, 2), "n": None}
    for key, value in {**PROPERTIES, "delivery_mode": 2, "priority": 3, "expiration": "60000"}.items():
        assert message.properties[key] == value
    message.ack()


def test_message_without_properties_from_pika(queue, pika_channel):
    pika_channel.basic_publish("", queue.name, b"\xff plain")
    message = fetch(queue.get)
    assert message.body == b"\xff plain"
    assert message.content_type is None
    assert message.headers == {}
    message.ack()


def test_acks_and_requeues_between_pika_and_us(channel, queue, pika_channel):
    Producer(channel).publish("wanders", routing_key=queue.name)
    method, _, _ = fetch(lambda: got(pika_channel, queue.name))
    assert not method.redelivered
    pika_channel.basic_nack(method.delivery_tag, requeue=True)
    message = fetch(queue.get)
    assert message.delivery_info["redelivered"] is True
    message.requeue()
    method, _, _ = fetch(lambda: got(pika_channel, queue.name))
    assert method.redelivered
    pika_channel.basic_ack(method.delivery_tag)
    assert queue.queue_declare(passive=True).message_count == 0


def test_mandatory_is_refused_as_pika_is(pika_channel, confirming, name):
    pika_channel.confirm_delivery()
    with pytest.raises(UnroutableError):
        pika_channel.basic_publish("", name("nowhere"), b"x", mandatory=True)
    with pytest.raises(exceptions.MessageReturned) as caught:
        Producer(confirming).publish(b"x", routing_key=name("nowhere"), mandatory=True)
    assert caught.value.reply_code == 312


def test_large_bodies_both_ways_with_pika(channel, queue, pika_channel):
    body = bytes(range(256)) * 2000
    Producer(channel).publish(body, routing_key=queue.name, serializer="raw")
    _, _, received = fetch(lambda: got(pika_channel, queue.name))
    assert received == body
    pika_channel.basic_publish("", queue.name, body)
    assert fetch(queue.get).body == body
