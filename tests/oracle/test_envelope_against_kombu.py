"""Envelopes that kombu reads of ours, and we of kombu's."""

import json
from datetime import date
from decimal import Decimal

import kombu
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.utils import json as their_json

from kombulite import serialization
from kombulite._core import JSON, EnvelopeTemplate, Properties, TagSequence, decode_envelope
from kombulite.utils.json import dumps

codec = JSON()

PLAIN = ["correlation_id", "reply_to", "message_id", "app_id", "type", "user_id", "expiration"]
BODIES = [
    {"id": 7, "at": date(2026, 1, 2)},
    [1, "é", None, b"\xff"],
    "text é",
    b"\x00\xff raw",
    b"",
    0,
    {"deep": [{"price": Decimal("1.50")}]},
]


@pytest.fixture(scope="module")
def connection():
    with kombu.Connection("memory://") as connection:
        yield connection


@pytest.fixture(scope="module")
def channel(connection):
    with connection.channel() as channel:
        yield channel


scalars = st.integers() | st.text() | st.booleans()
headers = st.dictionaries(st.text(max_size=8), scalars | st.decimals(allow_nan=False) | st.dates(), max_size=4).filter(
    lambda headers: headers.keys() != {"__type__", "__value__"} and "compression" not in headers
)


@pytest.mark.parametrize("body_encoding", ["base64", None])
@pytest.mark.parametrize("body", BODIES)
def test_kombu_decodes_our_bodies(channel, body, body_encoding):
    content_type, content_encoding, payload = serialization.dumps(body)
    properties = Properties(content_type=content_type, content_encoding=content_encoding)
    template = EnvelopeTemplate(codec, "", "q", properties, body_encoding=body_encoding)
    message = channel.message_to_python(their_json.loads(template.encode(payload, "t")))
    assert message.decode() == body
    assert type(message.decode()) is type(body)


@settings(deadline=None, max_examples=150)
@given(
    exchange=st.text(),
    routing_key=st.text(),
    headers=headers,
    named=st.dictionaries(st.sampled_from(PLAIN), st.text()),
    numbers=st.fixed_dictionaries({"priority": st.integers(0, 9), "delivery_mode": st.integers(1, 2)}),
    extra=st.dictionaries(st.sampled_from(["x-own", "mykey", ""]), scalars),
    body=st.binary(),
)
def test_kombu_reads_our_envelope(channel, exchange, routing_key, headers, named, numbers, extra, body):
    properties = Properties("application/data", "binary", headers, **named, **numbers, extra=extra)
    tag = TagSequence().next()
    data = EnvelopeTemplate(codec, exchange, routing_key, properties).encode(body, tag)
    message = channel.message_to_python(their_json.loads(data))
    assert message.decode() == body
    assert message.headers == headers
    assert (message.content_type, message.content_encoding) == ("application/data", "binary")
    assert message.delivery_tag == tag
    assert message.delivery_info == {"exchange": exchange, "routing_key": routing_key}
    for name, value in {**named, **numbers, **extra}.items():
        assert message.properties[name] == value


def published(channel, queue, body, **options):
    """The envelope, as text, that kombu makes of a publish."""
    channel.queue_declare(queue)
    kombu.Producer(channel).publish(body, routing_key=queue, **options)
    return their_json.dumps(channel._get(queue))


@pytest.mark.parametrize("body", BODIES)
def test_we_decode_bodies_of_kombu(channel, body):
    found = decode_envelope(codec, published(channel, "bodies", body))
    properties = found.properties
    assert serialization.loads(found.body, properties.content_type, properties.content_encoding) == body


@settings(deadline=None, max_examples=150)
@given(
    headers=headers,
    named=st.dictionaries(st.sampled_from(PLAIN[:-1]), st.text()),
    priority=st.integers(0, 9),
    delivery_mode=st.sampled_from([1, 2]),
    extra=st.dictionaries(st.sampled_from(["mykey", "other"]), scalars),
    expiration=st.none() | st.integers(1, 10**6),
    body=st.text(min_size=1) | st.binary(min_size=1) | st.lists(st.integers()),
)
def test_we_read_an_envelope_of_kombu(channel, headers, named, priority, delivery_mode, extra, expiration, body):
    options = {**named, **extra, "priority": priority, "delivery_mode": delivery_mode, "expiration": expiration}
    text = published(channel, "whole", body, headers=headers, **options)
    found = decode_envelope(codec, text)
    theirs = channel.message_to_python(json.loads(text, object_hook=their_json.object_hook))
    assert (found.exchange, found.routing_key) == ("", "whole")
    assert found.delivery_tag == theirs.delivery_tag
    assert found.body == theirs.body
    assert found.properties.headers == (headers or None)
    assert (found.properties.content_type, found.properties.content_encoding) == (
        theirs.content_type,
        theirs.content_encoding,
    )
    assert found.properties.extra == (extra or None)
    expected = {**named, "priority": priority, "delivery_mode": delivery_mode}
    if expiration is not None:
        expected["expiration"] = str(expiration * 1000)
    for name, value in expected.items():
        assert getattr(found.properties, name) == value


def test_we_read_what_kombu_leaves_unencoded():
    with kombu.Connection("memory://") as connection, connection.channel() as channel:
        channel.body_encoding = None
        for body in ("text é", b"\xff", {"a": 1}):
            found = decode_envelope(codec, published(channel, "bare", body))
            properties = found.properties
            assert serialization.loads(found.body, properties.content_type, properties.content_encoding) == body


def test_what_kombu_restored_counts_as_redelivered(channel):
    payload = json.loads(published(channel, "restored", "x"))
    payload["headers"]["redelivered"] = True
    payload["properties"]["delivery_info"]["redelivered"] = True
    assert decode_envelope(codec, dumps(payload)).redelivered
