"""Bodies that stay in this process, of which no text is made: a receiver can't tell."""

from __future__ import annotations

import asyncio
import gc
import json as standard_json
import math
import pickle
import subprocess
import sys
from collections import OrderedDict, namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import count
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kombulite import Connection, Consumer, Exchange, Message, Producer, Queue, aio
from kombulite._core import JSON, Codecs, Delivery, MessageQueue, PlainValue, Properties, plain_value
from kombulite.exceptions import EncodeError
from kombulite.serialization import registry
from kombulite.utils import json as facade

codec = JSON()

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.binary(max_size=10)
    | st.datetimes(timezones=st.sampled_from([None, timezone.utc, timezone(timedelta(hours=1))]))
    | st.dates()
    | st.times()
    | st.decimals()
    | st.uuids()
)
names = st.text(st.characters(codec=None), max_size=8) | st.sampled_from(["__type__", "__value__"]) | st.integers()
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(names, inner, max_size=4),
    max_leaves=25,
)


def parts(value):
    """A value with the types of all its parts, in which two that are alike are equal."""
    if isinstance(value, dict):
        return dict, [(parts(name), parts(item)) for name, item in value.items()]
    if isinstance(value, list):
        return list, [parts(item) for item in value]
    if isinstance(value, datetime):
        return datetime, value.isoformat(), value.tzinfo, value.fold
    return type(value), repr(value)


@settings(max_examples=1500)
@given(values)
def test_a_plain_value_is_what_its_text_would_give(value):
    plain = plain_value(value, codec)
    if plain is None:
        return
    text = codec.dump_bytes(value)
    assert plain.text() == text
    assert plain.size == len(text)
    assert parts(plain.build()) == parts(codec.loads(text))


KEPT = {
    "text": "a\"b\\c\n\x7f\u00e9\U0001f600",
    "numbers": [0, -1, 9, 10, 2**63 - 1, -(2**63), 0.1, -0.0, 1e16, 5e-324, 129.95],
    "": [True, False, None, [], {}, [[]], {"a": {}}],
    "pair": {"__type__": 1, "other": 2},
    "three": {"__type__": 1, "__value__": 2, "more": 3},
    "typed": [datetime(2026, 1, 2, 3, 4, 5, 6), datetime(2026, 1, 2, tzinfo=timezone.utc), date(2026, 1, 2),
              b"abc", b"\xff"],
}  # fmt: skip


def test_what_is_kept():
    plain = plain_value(KEPT, codec)
    assert plain is not None
    assert parts(plain.build()) == parts(codec.loads(codec.dumps(KEPT)))
    assert plain.has_types
    assert not plain_value({"id": 1}, codec).has_types
    assert plain_value((1, (2,)), codec).build() == [1, [2]]


class Name(str):
    __slots__ = ()


class Number(int):
    __slots__ = ()


class Day(date):
    pass


Point = namedtuple("Point", "x y")

LOOP: list[object] = []
LOOP.append(LOOP)

DEEP: list[object] = []
for _ in range(40):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [
        "text",
        b"bytes",
        1,
        None,
        [Name("text")],
        [Number(1)],
        {Name("name"): 1},
        {1: 2},
        {None: 1},
        OrderedDict(a=1),
        Point(1, 2),
        [2**63],
        [-(2**63) - 1],
        [math.inf],
        [math.nan],
        ["\ud83d\ude00"],
        {"\udc00": 1},
        {"__type__": "date", "__value__": "2026-01-02"},
        [{"__value__": 1, "__type__": 2}],
        [UUID(int=1)],
        [Decimal("1.50")],
        [time(3, 4)],
        [Day(2026, 1, 2)],
        [datetime(2026, 1, 2, fold=1)],
        [datetime(2026, 1, 2, tzinfo=timezone(timedelta(0), "Z"))],
        [{1, 2}],
        [NotImplemented],
        list(range(251)),
        [[0] * 125, [0] * 125],
        LOOP,
        DEEP,
    ],
    ids=lambda value: f"{value!r:.40}",
)
def test_what_is_not_kept(value):
    assert plain_value(value, codec) is None


@pytest.mark.parametrize("codec", [None, 1, dict])
def test_what_is_no_codec(codec):
    with pytest.raises(TypeError):
        plain_value({}, codec)


def test_one_that_was_not_made_holds_nothing():
    assert PlainValue().build() is None
    with pytest.raises(TypeError):
        PlainValue().text()
    with pytest.raises(TypeError):
        pickle.dumps(PlainValue())


def test_a_type_of_ones_own_is_the_codecs():
    own = JSON()
    own.register(Name, "name", str, Name)
    assert plain_value([date(2026, 1, 2)], own) is not None
    own.register(date, "date", lambda value: value.year, lambda year: date(year, 1, 1))
    assert plain_value([date(2026, 1, 2)], own) is None
    assert plain_value([1], own) is not None
    seen = JSON()
    seen.tables()
    assert plain_value([b""], seen) is None


def test_a_receivers_codec_may_read_a_type_differently():
    own = JSON()
    own.register(date, "date", lambda value: value.year, lambda text: text)
    codecs = Codecs()
    codecs.decoders["application/json"] = own.loads
    codecs.use_json(own, own.dumps, codecs.decoders["application/json"])
    plain = plain_value([date(2026, 1, 2)], codec)
    assert codecs.loads(plain, "application/json", "utf-8") == ["2026-01-02"]
    assert codecs.loads(plain_value([1], codec), "application/json", "utf-8") == [1]


class Always(type):
    """The type of types that are equal to all others."""

    __hash__ = type.__hash__

    def __eq__(cls, other):
        return True


class Alike(metaclass=Always):
    def __json__(self):
        return "stands in"


def test_types_are_those_of_c():
    assert plain_value([Alike()], codec) is None
    program = """if True:
        import datetime
        from unittest import mock
        at = datetime.datetime(2026, 1, 2, 3)
        class Fake(datetime.datetime):
            pass
        from kombulite._core import JSON, plain_value
        codec = JSON()
        with mock.patch("datetime.datetime", Fake):
            assert plain_value([Fake(2026, 1, 2)], codec) is None
        kept = plain_value([at], JSON())
        with mock.patch("datetime.datetime", type("Plain", (datetime.datetime,), {})):
            assert b"03:00" in kept.text(), kept.text()
    """
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nobody_shares_what_can_change():
    inner = [1]
    value = {"a": inner, "b": {"c": inner}}
    plain = plain_value(value, codec)
    inner.append(2)
    value["d"] = 1
    first = plain.build()
    first["a"].append(3)
    first["b"]["c"] = None
    assert plain.build() == {"a": [1], "b": {"c": [1]}}


def test_what_a_program_makes_of_its_copy_is_collected():
    plain = plain_value({"a": {"b": 1}, "c": [1]}, codec)
    gc.collect()
    gc.disable()
    try:
        for _ in range(1000):
            copy = plain.build()
            copy["self"] = copy["a"]["up"] = copy
            copy["c"].append(copy)
        del copy
        assert gc.collect() >= 3000
    finally:
        gc.enable()


def test_what_waits_is_nothing_for_the_collector():
    kept = [plain_value({"a": {"b": [1]}, "c": [[1]]}, codec) for _ in range(1000)]
    before = len(gc.get_objects())
    more = [plain_value({"a": {"b": [1]}, "c": [[1]]}, codec) for _ in range(1000)]
    assert len(gc.get_objects()) - before < 100
    assert len(kept) == len(more)


# --- through the embedded broker


@pytest.fixture
def connection():
    with Connection("memory://plain-values") as connection:
        yield connection


@pytest.fixture
def queue(connection):
    queue = Queue("plain", Exchange("plain", "fanout"), "")(connection.channel())
    queue.declare()
    yield queue
    queue.delete()


BODY = {"text": "a text that is nobody else's", "items": [1, {"x": 1.5}]}


def send(queue, body=BODY, **options):
    Producer(queue.channel, queue.exchange, serializer="json").publish(body, **options)


def is_shared(payload):
    """Whether it was handed over without its text."""
    return payload["text"] is BODY["text"]


def test_it_is_handed_over_and_has_a_text_for_who_asks(queue):
    send(queue)
    message = queue.get()
    assert is_shared(message.payload)
    assert message.payload == BODY
    assert message.payload is not BODY
    assert message.body == facade.dumps(BODY).encode()
    assert standard_json.loads(message.body)["items"] == [1, {"x": 1.5}]
    assert message.decode() == BODY
    assert message.delivery.body == message.body
    message.ack()


def test_whoever_asks_for_the_text_first_gets_the_same(queue):
    send(queue)
    message = queue.get(no_ack=True)
    assert message.body == facade.dumps(BODY).encode()
    assert message.payload == BODY
    copy = pickle.loads(pickle.dumps(message))
    assert copy.payload == BODY


def test_what_came_back_is_as_it_was(queue):
    send(queue)
    message = queue.get()
    message.payload["items"].append("changed")
    del message.payload["text"]
    message.requeue()
    again = queue.get()
    assert again.payload == BODY
    assert again.delivery_count == 1
    again.ack()


def test_each_queue_has_its_own(connection, queue):
    other = Queue("plain-too", queue.exchange, "")(connection.channel())
    other.declare()
    send(queue)
    first, second = queue.get(no_ack=True).payload, other.get(no_ack=True).payload
    first["items"].clear()
    assert second == BODY
    other.delete()


def test_its_bytes_count_as_those_of_the_text_do(connection, queue):
    size = len(facade.dumps(BODY))
    send(queue)
    queue.get(no_ack=True)
    assert connection.counters.bytes_sent == connection.counters.bytes_received == size


def test_a_limit_in_bytes_counts_it(connection):
    size = len(facade.dumps(BODY))
    bounded = Queue("plain-bounded", Exchange("plain-bounded", "fanout"), "", max_length_bytes=3 * size)
    bound = bounded(connection.channel())
    bound.declare()
    for number in range(5):
        send(bound, BODY | {"n": number})
    assert bound.queue_declare(passive=True).message_count == 2  # each has a few bytes more
    bound.delete()


def test_the_backlog_of_a_queue_waits_as_text(queue):
    producer = Producer(queue.channel, queue.exchange, serializer="json")
    for _ in range(5003):
        producer.publish(BODY)
    shared = []
    while (message := queue.get(no_ack=True)) is not None:
        assert message.payload == BODY
        shared.append(is_shared(message.payload))
    assert shared == [True] * 5000 + [False] * 3
    for _ in range(100):  # it is tried again now and then whether there is room
        producer.publish(BODY)
    shared = [is_shared(queue.get(no_ack=True).payload) for _ in range(100)]
    assert shared == sorted(shared)
    assert shared.count(True) > 30


def test_a_text_is_made_once_for_all_queues(connection, queue):
    others = [Queue(f"plain-{number}", queue.exchange, "")(connection.channel()) for number in range(3)]
    for other in others:
        other.declare()
    for _ in range(5001):
        send(queue)
    for other in (queue, *others):
        for _ in range(5000):
            other.get(no_ack=True)
    texts = [other.get(no_ack=True).body for other in (queue, *others)]
    assert all(text is texts[0] for text in texts)
    for other in others:
        other.delete()


def test_what_comes_back_to_a_long_queue_waits_as_text(connection, queue):
    with connection.clone() as leaver:
        taken = queue(leaver.channel())
        for _ in range(3):
            send(queue)
        while (message := taken.get()) is not None:
            assert message.delivery_tag
        for _ in range(5000):
            send(queue)
    shared = [is_shared(queue.get(no_ack=True).payload) for _ in range(5003)]
    assert shared == [False] * 3 + [True] * 5000


OTHER_WAYS = {"expiration": 100}, {"compression": "zlib"}, {"serializer": "yaml"}, {"serializer": "pickle"}


@pytest.mark.parametrize("options", OTHER_WAYS)
def test_other_ways_make_a_text(queue, options):
    send(queue, **options)
    message = queue.get(no_ack=True, accept=["json", "yaml", "pickle"])
    assert message.payload == BODY
    assert not is_shared(message.payload)


def test_a_program_that_decodes_itself_gets_the_text(connection, queue):
    seen = []

    class Own(Message):
        @staticmethod
        def loads(body, content_type, content_encoding, accept=None):
            seen.append(body)
            return "mine"

    send(queue)
    assert Own.from_delivery(queue.get(no_ack=True).delivery, None).payload == "mine"
    assert seen == [facade.dumps(BODY).encode()]


def test_a_decoder_of_ones_own_gets_the_text(queue):
    send(queue)
    before = registry.decoders["application/json"]
    registry.decoders["application/json"] = lambda data: (type(data), len(data))
    try:
        assert queue.get(no_ack=True).payload == (bytes, len(facade.dumps(BODY)))
    finally:
        registry.decoders["application/json"] = before


def test_a_program_that_decodes_itself_is_called_as_before(queue):
    class Own(Message):
        @staticmethod
        def loads(body, kind, encoding, accepted):
            return body, accepted

    send(queue)
    assert Own.from_delivery(queue.get(no_ack=True).delivery, None).unpack(None) == (facade.dumps(BODY).encode(), None)


def test_what_cannot_be_encoded_is_refused_as_before(queue):
    producer = Producer(queue.channel, queue.exchange, serializer="json")
    for body in ({"a": object()}, {"a": LOOP}, {(1, 2): 3}):
        with pytest.raises(EncodeError):
            producer.publish(body)
    assert queue.get() is None


def test_many_at_once(queue):
    producer = Producer(queue.channel, queue.exchange, serializer="json")
    producer.publish_many([BODY, [1], "text", BODY])
    with producer.batch():
        producer.publish(BODY)
    got = [queue.get(no_ack=True).payload for _ in range(5)]
    assert got == [BODY, [1], "text", BODY, BODY]
    assert is_shared(got[0])
    assert is_shared(got[4])


def test_what_is_not_accepted_is_not_built(connection, queue):
    send(queue)
    refused = []
    consumer = Consumer(queue.channel, [queue], accept=["yaml"], on_decode_error=lambda m, error: refused.append(error))
    with consumer:
        connection.drain_events(timeout=5)
    assert "application/json" in str(refused[0])


def test_on_an_event_loop():
    async def hand_over():
        async with aio.connect("memory://plain-values-aio") as connection:
            producer = connection.producer(routing_key="loop", serializer="json")
            async with connection.consume(Queue("loop"), prefetch=10) as messages:
                await producer.publish(BODY)  # the first declares, and makes a text
                await producer.publish(BODY)
                first, second = [await anext(messages) for _ in range(2)]
                assert first.payload == second.payload == BODY
                assert is_shared(second.payload)
                assert second.body == facade.dumps(BODY).encode()
                await first.ack()
                await second.ack()

    asyncio.run(hand_over())


def test_names_whose_hash_changes_end_the_copy_of_headers(queue):
    class Name(str):
        __slots__ = ()
        numbers = count()

        def __hash__(self):
            return next(self.numbers)

        def __eq__(self, other):
            return self is other

    with pytest.raises(RuntimeError, match="changed size"):
        send(queue, headers={Name("a"): {}, Name("b"): {}})


def test_a_text_counts_as_its_bytes(queue):
    waiting = MessageQueue()
    waiting.add(Delivery("", "q", Properties("text/plain", "utf-8"), "\u00e9" * 100))
    assert waiting.size == 200
    taken = waiting.pop()
    assert waiting.size == 0
    waiting.put_back(taken)
    assert waiting.size == 200
