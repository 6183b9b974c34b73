"""The compiled core, without a broker."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import kombu
import pytest
from kombu.utils import json as kombu_json

import kombulite
from bench.duel import Side, calls, duel
from bench.workloads import NESTED, SMALL
from kombulite._core import (
    JSON,
    EnvelopeTemplate,
    PriorityNaming,
    Properties,
    RoutingTable,
    TagSequence,
    decode_envelope,
)
from kombulite.utils import json

# --- serialization ------------------------------------------------------------------------------------------------

DOCUMENTS = [("small dict", SMALL, 8, 6), ("2.3 kB document", NESTED, 8, 3)]


@pytest.mark.parametrize(("what", "value", "at_least"), [(name, value, mark) for name, value, mark, _ in DOCUMENTS])
def test_dumps(benchmark: Any, what: str, value: Any, at_least: float) -> None:
    assert kombu_json.loads(json.dumps(value)) == value
    duel(benchmark, f"dumps, {what}", calls(json.dumps, value), calls(kombu_json.dumps, value), at_least=at_least)


@pytest.mark.parametrize(("what", "value", "at_least"), [(name, value, mark) for name, value, _, mark in DOCUMENTS])
def test_loads(benchmark: Any, what: str, value: Any, at_least: float) -> None:
    text = kombu_json.dumps(value)
    assert json.loads(text) == value
    duel(benchmark, f"loads, {what}", calls(json.loads, text), calls(kombu_json.loads, text), at_least=at_least)


# --- the envelope of brokers without message properties -----------------------------------------------------------

BODY = kombu_json.dumps(SMALL)
PROPERTIES = Properties("application/json", "utf-8", None, 2, 0)


@pytest.fixture(scope="module")
def channel() -> Any:
    """A channel of kombu's virtual transport, which writes the same envelope."""
    return kombu.Connection("memory://").channel()


def kombu_envelope(channel: Any) -> str:
    message = channel.prepare_message(
        BODY, 0, content_type="application/json", content_encoding="utf-8", properties={"delivery_mode": 2}
    )
    channel._inplace_augment_message(message, "orders", "order.created")
    return kombu_json.dumps(message)


def kombu_parts(channel: Any, envelope: bytes) -> tuple[Any, Any]:
    payload = kombu_json.loads(envelope)
    return payload, channel.decode_body(payload["body"], payload["properties"]["body_encoding"])


def test_envelope_encode(benchmark: Any, channel: Any) -> None:
    """From a serialised body to the envelope under a new delivery tag; ours keeps a template of the place."""
    template, tags = EnvelopeTemplate(JSON(), "orders", "order.created", PROPERTIES), TagSequence()
    ours, theirs = (kombu_json.loads(text) for text in (template.encode(BODY, tags.next()), kombu_envelope(channel)))
    ours["properties"]["delivery_tag"] = theirs["properties"]["delivery_tag"]
    assert ours == theirs
    duel(
        benchmark,
        "envelope encode",
        calls(lambda: template.encode(BODY, tags.next())),
        calls(kombu_envelope, channel),
        at_least=8,
    )


def test_envelope_encode_once(benchmark: Any, channel: Any) -> None:
    json, tags = JSON(), TagSequence()
    duel(
        benchmark,
        "envelope encode, a template for each message",
        calls(lambda: EnvelopeTemplate(json, "orders", "order.created", PROPERTIES).encode(BODY, tags.next())),
        calls(kombu_envelope, channel),
    )


def test_envelope_decode(benchmark: Any, channel: Any) -> None:
    """To its parts and the serialised body: kombu's without the Message that it goes on to make."""
    envelope = kombu_envelope(channel).encode()
    assert decode_envelope(JSON(), envelope).body == kombu_parts(channel, envelope)[1] == BODY.encode()
    duel(
        benchmark,
        "envelope decode",
        calls(decode_envelope, JSON(), envelope),
        calls(kombu_parts, channel, envelope),
        at_least=5,
    )


def test_envelope_to_message(benchmark: Any, channel: Any) -> None:
    envelope, json = kombu_envelope(channel).encode(), JSON()
    ours = kombulite.Connection("memory://").channel()
    duel(
        benchmark,
        "envelope decode to a Message",
        calls(lambda: kombulite.Message.from_delivery(decode_envelope(json, envelope), ours)),
        calls(lambda: channel.Message(kombu_json.loads(envelope), channel=channel)),
    )


# --- routing ------------------------------------------------------------------------------------------------------

TOPICS = ("order.eu.c{}.created", "order.*.c{}.paid", "order.eu.c{}.#", "stock.*.c{}.*")


def topic_table(size: int) -> RoutingTable:
    table = RoutingTable()
    table.declare("topic", "topic")
    for i in range(size):
        table.bind("topic", f"q{i}", TOPICS[i % len(TOPICS)].format(i // len(TOPICS)))
    return table


def lookups(table: RoutingTable) -> Side:
    """Look up keys that match something, a thousand in turn, spread over the table."""
    groups = len(table.bindings("topic")) // len(TOPICS)
    words = [i * 7919 % groups for i in range(500)]
    keys = cycle([key.format(word) for word in words for key in ("order.eu.c{}.created", "order.us.c{}.paid")])
    assert table.route("topic", f"order.eu.c{words[1]}.created")
    route, following = table.route, keys.__next__

    def run(n: int) -> None:
        for _ in range(n):
            route("topic", following())

    return Side(run)


def test_topic_growth(benchmark: Any) -> None:
    duel(
        benchmark,
        "topic lookup among 100,000 bindings, beside 1,000",
        lookups(topic_table(100_000)),
        lookups(topic_table(1_000)),
        at_most=2,
        rival="1,000 bindings",
    )


@pytest.mark.parametrize(("kind", "size"), [("direct", 100), ("fanout", 10)])
def test_route(benchmark: Any, channel: Any, kind: str, size: int) -> None:
    table = RoutingTable()
    table.declare(kind, kind)
    channel.exchange_declare(kind, kind)
    for i in range(size):
        table.bind(kind, f"q{i}", f"key{i}")
        channel.queue_bind(f"q{i}", kind, f"key{i}")
    assert set(table.route(kind, "key7")) == set(channel._lookup(kind, "key7"))
    ours, theirs = calls(table.route, kind, "key7"), calls(channel._lookup, kind, "key7")
    duel(benchmark, f"{kind} route, {size} bindings", ours, theirs)


def test_headers_route(benchmark: Any) -> None:
    """kombu's virtual transports have no headers exchange."""
    table = RoutingTable()
    table.declare("headers", "headers")
    for i in range(100):
        table.bind("headers", f"q{i}", arguments={"x-match": "all", "region": "eu", "customer": f"c{i}"})
    headers = {"region": "eu", "customer": "c7", "trace": "0af7651916cd43dd"}
    assert table.route("headers", "", headers) == ("q7",)
    duel(benchmark, "headers route, 100 bindings", calls(table.route, "headers", "", headers), None)


# --- names and tags -----------------------------------------------------------------------------------------------


def test_tags(benchmark: Any) -> None:
    duel(benchmark, "delivery tag, beside uuid()", calls(TagSequence().next), calls(kombu.uuid))


def test_priority_key(benchmark: Any) -> None:
    try:
        from kombu.transport import redis
    except (ImportError, AttributeError):
        pytest.skip("kombu's names for priorities are in its Redis transport, which needs redis-py")
    channel = redis.Channel.__new__(redis.Channel)  # names keys without a connection
    naming = PriorityNaming()
    assert naming.key("orders", 5) == channel._q_for_pri("orders", 5)
    duel(
        benchmark, "key of a queue and priority", calls(naming.key, "orders", 5), calls(channel._q_for_pri, "orders", 5)
    )
