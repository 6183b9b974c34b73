"""The JSON envelope of the virtual transports, and the delivery tags in it."""

import json
import os
import re
import tracemalloc
from base64 import b64decode, b64encode
from contextlib import suppress
from datetime import datetime, timezone
from decimal import Decimal
from threading import Barrier, Thread

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kombulite._core import (
    JSON,
    EnvelopeReader,
    EnvelopeTemplate,
    MalformedEnvelope,
    Properties,
    TagSequence,
    decode_envelope,
)

DEEP = 100_000

codec = JSON()

# redis-wire.md, section 4
CAPTURED_TOPIC = (
    '{"body": "eyJpZCI6IDcsICJhdCI6IHsiX190eXBlX18iOiAiZGF0ZXRpbWUiLCAiX192YWx1ZV9fIjogIjIwMjYtMDEtMDJUMDM6MDQ6MDUrMDA6'
    'MDAifX0=", "content-encoding": "utf-8", "content-type": "application/json", "headers": {"trace": "abc"}, '
    '"properties": {"reply_to": "rq", "correlation_id": "cid-1", "message_id": "m1", "mykey": "x", "delivery_mode": 2, '
    '"expiration": "1500", "delivery_info": {"exchange": "spec-orders", "routing_key": "order.new.eu"}, "priority": 5, '
    '"body_encoding": "base64", "delivery_tag": "c0d567d2-d236-4ff5-8b58-81008c869594"}}'
)
CAPTURED_REQUEUED = (
    '{"body": "eJwrzctMzk85vBIAEC4D7w==", "content-encoding": "utf-8", "content-type": "text/plain", "headers": '
    '{"compression": "application/x-gzip", "redelivered": true}, "properties": {"delivery_mode": 1, "delivery_info": '
    '{"exchange": "", "routing_key": "spec-raw", "redelivered": true}, "priority": 9, "body_encoding": "base64", '
    '"delivery_tag": "68f17a75-625a-4c41-8b84-2de5e669cbcf"}}'
)
PLAIN = (
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
)
APART = {*PLAIN, "delivery_info", "delivery_tag", "body_encoding"}


def envelope(**changes):
    parts = {
        "body": "Ym9keQ==",
        "content-encoding": "utf-8",
        "content-type": "text/plain",
        "headers": {},
        "properties": {
            "delivery_info": {"exchange": "e", "routing_key": "k"},
            "delivery_tag": "tag",
            "body_encoding": "base64",
        },
    }
    return {**parts, **changes}


def with_properties(**changes):
    return envelope(properties={**envelope()["properties"], **changes})


def without(parts, name):
    return {key: value for key, value in parts.items() if key != name}


def decoded(parts):
    return decode_envelope(codec, json.dumps(parts))


# --- reading


@pytest.mark.parametrize("as_input", [str, str.encode, lambda text: bytearray(text.encode())])
def test_captured_topic_publish(as_input):
    found = decode_envelope(codec, as_input(CAPTURED_TOPIC))
    assert (found.exchange, found.routing_key) == ("spec-orders", "order.new.eu")
    assert found.delivery_tag == "c0d567d2-d236-4ff5-8b58-81008c869594"
    assert found.redelivered is False
    assert codec.loads(found.body) == {"id": 7, "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)}
    assert found.properties == Properties(
        content_type="application/json",
        content_encoding="utf-8",
        headers={"trace": "abc"},
        delivery_mode=2,
        priority=5,
        correlation_id="cid-1",
        reply_to="rq",
        expiration="1500",
        message_id="m1",
        extra={"mykey": "x"},
    )


def test_captured_requeued_message():
    found = decode_envelope(codec, CAPTURED_REQUEUED)
    assert (found.exchange, found.routing_key) == ("", "spec-raw")
    assert found.delivery_tag == "68f17a75-625a-4c41-8b84-2de5e669cbcf"
    assert found.redelivered is True
    assert found.body.startswith(b"x\x9c")
    assert found.properties == Properties(
        content_type="text/plain",
        content_encoding="utf-8",
        headers={"compression": "application/x-gzip", "redelivered": True},
        delivery_mode=1,
        priority=9,
    )


@pytest.mark.parametrize(
    ("headers", "info", "redelivered"),
    [
        ({}, {}, False),
        ({"redelivered": True}, {}, True),
        ({}, {"redelivered": True}, True),
        ({"redelivered": 1}, {}, False),
    ],
)
def test_either_flag_says_redelivered(headers, info, redelivered):
    parts = with_properties(delivery_info={"exchange": "e", "routing_key": "k", **info})
    assert decoded({**parts, "headers": headers}).redelivered is redelivered


def test_what_may_be_missing():
    parts = envelope()
    for name in ("headers", "content-type", "content-encoding"):
        parts = without(parts, name)
    properties = decoded(parts).properties
    assert (properties.headers, properties.content_type, properties.content_encoding) == (None, None, None)


def test_unknown_properties_are_kept():
    extra = {"x-own": {"a": [1]}, "": None, "content_type": "odd"}
    assert decoded(with_properties(**extra)).properties.extra == extra
    assert decoded(envelope(unknown=1)).properties.extra is None


def test_header_values_are_typed():
    headers = {"at": {"__type__": "decimal", "__value__": "1.5"}}
    assert decoded(envelope(headers=headers)).properties.headers == {"at": Decimal("1.5")}


@pytest.mark.parametrize("encoding", [None, "utf-8"])
def test_body_that_is_not_encoded(encoding):
    assert decoded({**with_properties(body_encoding=encoding), "body": "é"}).body == "é"
    typed = {"__type__": "base64", "__value__": "/w=="}
    assert decoded({**with_properties(body_encoding=encoding), "body": typed}).body == b"\xff"


MALFORMED = {
    "nothing": "",
    "half": CAPTURED_TOPIC[:-1],
    "two": CAPTURED_TOPIC * 2,
    "text": "hello",
    "bytes": b"\xff\xfe",
    "utf-16": CAPTURED_TOPIC.encode("utf-16"),
    "list": "[]",
    "null": "null",
    "number": "7",
    "string": '"body"',
    "empty object": "{}",
    "typed value": '{"__type__": "bytes", "__value__": "x"}',
    "unknown marker": json.dumps(envelope(headers={"a": {"__type__": "nope", "__value__": 1}})),
    "bad typed value": json.dumps(envelope(headers={"a": {"__type__": "decimal", "__value__": "x"}})),
    "deep": "[" * DEEP,
    "deep objects": '{"a":' * DEEP,
    "deep headers": json.dumps(envelope(headers={"a": 0})).replace(": 0", ": " + "[" * DEEP + "]" * DEEP),
    "no properties": json.dumps(without(envelope(), "properties")),
    "no delivery info": json.dumps(envelope(properties=without(envelope()["properties"], "delivery_info"))),
    "no delivery tag": json.dumps(envelope(properties=without(envelope()["properties"], "delivery_tag"))),
    "no exchange": json.dumps(with_properties(delivery_info={"routing_key": "k"})),
    "no routing key": json.dumps(with_properties(delivery_info={"exchange": "e"})),
    "no body": json.dumps(without(envelope(), "body")),
    "bad base64": json.dumps(envelope(body="Ym9keQ")),
    "no base64": json.dumps(envelope(body="Ym9k eQ==")),
    "base64 with é": json.dumps(envelope(body="é")),
    "base64 that is bytes": json.dumps(envelope(body={"__type__": "bytes", "__value__": "Ym9keQ=="})),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_envelope(data):
    with pytest.raises(MalformedEnvelope):
        decode_envelope(codec, data)


WRONG = [None, True, 5, 1.5, "text", [], ["a"], {"a": 1}]


def of_wrong_kind(*right):
    return [value for value in WRONG if not isinstance(value, right)]


@pytest.mark.parametrize("value", of_wrong_kind(dict))
def test_properties_of_the_wrong_kind(value):
    with pytest.raises(MalformedEnvelope, match="properties"):
        decoded(envelope(properties=value))


@pytest.mark.parametrize("value", of_wrong_kind(dict))
def test_delivery_info_of_the_wrong_kind(value):
    with pytest.raises(MalformedEnvelope, match="delivery_info"):
        decoded(with_properties(delivery_info=value))


@pytest.mark.parametrize("value", of_wrong_kind(str))
def test_names_of_the_wrong_kind(value):
    for parts in (
        with_properties(delivery_tag=value),
        with_properties(delivery_info={"exchange": value, "routing_key": "k"}),
        with_properties(delivery_info={"exchange": "e", "routing_key": value}),
    ):
        with pytest.raises(MalformedEnvelope, match="should be a string"):
            decoded(parts)


@pytest.mark.parametrize("value", of_wrong_kind(dict, type(None)))
def test_headers_of_the_wrong_kind(value):
    with pytest.raises(MalformedEnvelope, match="headers"):
        decoded(envelope(headers=value))


@pytest.mark.parametrize("value", of_wrong_kind(str, type(None)))
@pytest.mark.parametrize("name", ["content-type", "content-encoding"])
def test_content_type_of_the_wrong_kind(name, value):
    with pytest.raises(MalformedEnvelope, match="content"):
        decoded(envelope(**{name: value}))


@pytest.mark.parametrize("encoding", ["base64", "utf-8", None])
@pytest.mark.parametrize("value", of_wrong_kind(str))
def test_body_of_the_wrong_kind(encoding, value):
    with pytest.raises(MalformedEnvelope, match="body"):
        decoded({**with_properties(body_encoding=encoding), "body": value})


@pytest.mark.parametrize("value", [*of_wrong_kind(type(None)), "rot13", "", "BASE64"])
def test_unknown_body_encoding(value):
    with pytest.raises(MalformedEnvelope, match="body encoding"):
        decoded(with_properties(body_encoding=value))


def test_nesting_near_the_limit_raises_nothing_else():
    places = [envelope(**{name: "HERE"}) for name in ("body", "headers", "content-type", "properties")]
    places += [with_properties(**{name: "HERE"}) for name in ("body_encoding", "delivery_tag", "delivery_info", "x")]
    for depth in range(0, 1100, 3):
        for innermost in ("0", '{"__type__": "?", "__value__": 1}'):
            nested = "[" * depth + innermost + "]" * depth
            for parts in places:
                with suppress(MalformedEnvelope):
                    decode_envelope(codec, json.dumps(parts).replace('"HERE"', nested))


@pytest.mark.parametrize(
    "text",
    [
        '{"body": "Zmlyc3Q=", "body": "bGFzdA=="}',
        '{"body": "Zmlyc3Q=", "body": "bGFzdA\\u003d\\u003d"}',
        '{"body": "Zmlyc3Q\\u003d", "body": "bGFzdA=="}',
        '{"body":"bGFzdA==" }',
        '{"b\\u006fdy": "bGFzdA=="}',
        '{"body": "bGFzdA==", "huge": 1234567890123456789012}',
    ],
)
def test_body_is_read_from_bytes_as_from_text(text):
    rest = json.dumps(without(envelope(), "body"))
    for whole in (text[:-1] + ", " + rest[1:], rest[:-1] + ", " + text[1:]):
        assert decode_envelope(codec, whole.encode()).body == decode_envelope(codec, whole).body == b"last"
        stored = whole.replace('"base64"', "null")
        assert decode_envelope(codec, stored.encode()).body == decode_envelope(codec, stored).body == "bGFzdA=="


def test_typed_value_in_the_place_of_an_envelope():
    """It means what it stands for, in bytes as in text."""
    text = json.dumps({"__type__": "dict", "__value__": [[name, value] for name, value in envelope().items()]})
    assert decode_envelope(codec, text).body == decode_envelope(codec, text.encode()).body == b"body"


def test_malformed_envelope_is_a_value_error():
    assert issubclass(MalformedEnvelope, ValueError)


def only_malformed(data):
    try:
        found = decode_envelope(codec, data)
    except MalformedEnvelope:
        return
    assert isinstance(found.exchange, str)
    assert isinstance(found.delivery_tag, str)
    assert isinstance(found.body, (str, bytes))


@settings(deadline=None, max_examples=300)
@given(st.binary() | st.text())
def test_random_data_raises_nothing_else(data):
    only_malformed(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | st.fixed_dictionaries(
            {"__type__": st.sampled_from(["bytes", "base64", "decimal", "uuid", "dict", "?"]), "__value__": inner}
        )
    ),
    max_leaves=6,
)
PLACES = [
    ("body",), ("headers",), ("content-type",), ("properties",), ("properties", "delivery_info"),
    ("properties", "delivery_info", "exchange"), ("properties", "delivery_tag"), ("properties", "body_encoding"),
    ("properties", "priority"), ("properties", "expiration"), ("headers", "compression"),
]  # fmt: skip


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(PLACES), json_values, st.sampled_from(["base64", "utf-8", None]))
def test_any_value_in_any_place_raises_nothing_else(place, value, encoding):
    parts = json.loads(json.dumps(with_properties(body_encoding=encoding)))
    parent = parts
    for name in place[:-1]:
        parent = parent[name]
    parent[place[-1]] = value
    only_malformed(json.dumps(parts))


@settings(deadline=None, max_examples=500)
@given(st.sampled_from([CAPTURED_TOPIC, CAPTURED_REQUEUED]), st.data())
def test_mutated_envelope_raises_nothing_else(text, data):
    mutated = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutated)))
        mutated[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    only_malformed(bytes(mutated))


# --- writing

full = Properties(
    content_type="application/json",
    content_encoding="utf-8",
    headers={"h": Decimal(1)},
    priority=3,
    reply_to="r",
    extra={"x-own": 1, "priority": 9, "delivery_tag": "no", "delivery_info": {}, "body_encoding": "no"},
)


def test_written_keys_are_those_of_kombu():
    data = EnvelopeTemplate(codec, "ex", "rk", full).encode(b"\x00body", "tag-1")
    assert isinstance(data, bytes)
    assert json.loads(data) == {
        "body": b64encode(b"\x00body").decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"h": {"__type__": "decimal", "__value__": "1"}},
        "properties": {
            "x-own": 1,
            "priority": 3,
            "reply_to": "r",
            "delivery_info": {"exchange": "ex", "routing_key": "rk"},
            "body_encoding": "base64",
            "delivery_tag": "tag-1",
        },
    }


def test_no_key_is_written_twice():
    data = EnvelopeTemplate(codec, "ex", "rk", full).encode(b"", "t")

    def unique(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    json.loads(data, object_pairs_hook=unique)


def test_absent_content_type_and_headers():
    found = json.loads(EnvelopeTemplate(codec, "", "q", Properties()).encode(b"", "t"))
    assert (found["content-type"], found["content-encoding"], found["headers"]) == (None, None, {})


def test_one_template_makes_many_envelopes():
    template = EnvelopeTemplate(codec, "ex", "rk", full)
    made = [decode_envelope(codec, template.encode(b"%d" % n, f"t{n}")) for n in range(3)]
    assert [(found.body, found.delivery_tag) for found in made] == [(b"0", "t0"), (b"1", "t1"), (b"2", "t2")]


def test_text_body_is_utf8():
    assert decode_envelope(codec, EnvelopeTemplate(codec, "", "q", full).encode("é", "t")).body == "é".encode()


@pytest.mark.parametrize("encoding", [None, "utf-8"])
@pytest.mark.parametrize("body", ["é\ud800", b"text", b"\xff\x00", "", b""])
def test_body_without_base64_keeps_its_type(encoding, body):
    data = EnvelopeTemplate(codec, "", "q", full, body_encoding=encoding).encode(body, "t")
    assert json.loads(data)["properties"].get("body_encoding") == encoding
    found = decode_envelope(codec, data).body
    assert (type(found), found) == (type(body), body)


@pytest.mark.parametrize("encoding", ["", "rot13", 5, b"base64"])
def test_template_of_unknown_body_encoding(encoding):
    with pytest.raises(ValueError, match="body encoding"):
        EnvelopeTemplate(codec, "", "q", full, body_encoding=encoding)


def test_template_of_what_json_lacks():
    with pytest.raises(TypeError):
        EnvelopeTemplate(codec, "", "q", Properties(headers={"h": object()}))


@pytest.mark.parametrize("body", [None, 5, object()])
def test_body_of_no_known_kind(body):
    with pytest.raises(TypeError):
        EnvelopeTemplate(codec, "", "q", full).encode(body, "t")


scalars = st.none() | st.booleans() | st.integers() | st.text() | st.decimals(allow_nan=False) | st.binary()
header_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=5
)
header_tables = st.dictionaries(st.text(), header_values, min_size=1, max_size=4)
properties = st.builds(
    Properties,
    content_type=st.none() | st.text(),
    content_encoding=st.none() | st.text(),
    headers=st.none() | header_tables,
    extra=st.none()
    | st.dictionaries(st.text().filter(lambda name: name not in APART), scalars, min_size=1, max_size=3),
    **dict.fromkeys(PLAIN, scalars),
)


@settings(deadline=None, max_examples=300)
@given(st.text(), st.text(), properties, st.binary(), st.text(), st.sampled_from(["base64", "utf-8", None]))
def test_round_trip(exchange, routing_key, properties, body, tag, encoding):
    data = EnvelopeTemplate(codec, exchange, routing_key, properties, body_encoding=encoding).encode(body, tag)
    found = decode_envelope(codec, data)
    assert (found.exchange, found.routing_key, found.delivery_tag) == (exchange, routing_key, tag)
    assert (type(found.body), found.body) == (bytes, body)
    assert found.properties == properties


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=5000))
def test_base64_of_any_length(body):
    found = json.loads(EnvelopeTemplate(codec, "", "q", full).encode(body, "t"))
    assert found["body"] == b64encode(body).decode()


BASE64 = re.compile("(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


@settings(deadline=None, max_examples=500)
@given(st.text(st.sampled_from("AZaz09+/QWxy==-_ \n\x00é"), max_size=14) | st.from_regex(BASE64, fullmatch=True))
@example("====")
@example("A===")
@example("QQ==QQ==")
@example("QR==")
@example("QQ=Q")
@example("QQQQ====")
def test_body_is_base64_and_nothing_else(body):
    if BASE64.fullmatch(body):
        assert decoded(envelope(body=body)).body == b64decode(body)
    else:
        with pytest.raises(MalformedEnvelope, match="base64"):
            decoded(envelope(body=body))


def test_every_character_in_every_place_of_base64():
    for place in range(8):
        for code in range(0x180):
            body = "QUJDRAA="[:place] + chr(code) + "QUJDRAA="[place + 1 :]
            try:
                found = decoded(envelope(body=body)).body
            except MalformedEnvelope:
                assert not BASE64.fullmatch(body)
            else:
                assert found == b64decode(body, validate=True)


# --- delivery tags


def test_tags_have_the_shape_of_a_uuid():
    tags = TagSequence()
    for tag in (tags.next(), tags.next()):
        assert isinstance(tag, str)
        assert [len(part) for part in tag.split("-")] == [8, 4, 4, 4, 12]
        assert set(tag) <= set("0123456789abcdef-")


def test_no_two_sequences_are_alike():
    assert len({TagSequence().next() for _ in range(1000)}) == 1000


def test_threads_share_a_sequence():
    tags, barrier = TagSequence(), Barrier(8)
    drawn = [[] for _ in range(8)]

    def draw(into):
        barrier.wait()
        into.extend(tags.next() for _ in range(20_000))

    threads = [Thread(target=draw, args=(into,)) for into in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tag for into in drawn for tag in into}) == 8 * 20_000


def in_child(run):
    """What ``run`` returns in a forked child: a list of text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, "\n".join(run()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        found = answers.read().split("\n")
    os.waitpid(child, 0)
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_children_draw_their_own_tags():
    tags = TagSequence()

    def draw():
        return [tags.next() for _ in range(100)]

    drawn = draw()
    drawn += in_child(draw)
    drawn += in_child(draw)
    drawn += in_child(lambda: [*draw(), *in_child(draw)])
    drawn += in_child(lambda: [*in_child(draw), *in_child(draw)])
    drawn += draw()
    assert len(set(drawn)) == len(drawn) == 800


# --- many from one place


TAG = "c0d567d2-d236-4ff5-8b58-81008c869594"


def written(body=b"one", tag=TAG, routing_key="q", encoding="base64", **properties):
    template = EnvelopeTemplate(codec, "", routing_key, Properties(**properties), body_encoding=encoding)
    return template.encode(body, tag)


def outcome(read, *arguments):
    """All that is in an envelope, or how it is refused."""
    try:
        found = read(*arguments)
    except MalformedEnvelope as error:
        return str(error)
    return (
        found.exchange, found.routing_key, found.properties, found.body, found.delivery_tag, found.redelivered,
        found.delivery_count,
    )  # fmt: skip


def test_what_neighbours_have_in_common_is_read_once():
    reader = EnvelopeReader(codec)
    headers = {"trace": "abc"}
    read = [
        reader.read("place", written(b"%d" % n, f"c0d567d2-d236-4ff5-8b58-81008c8695{n:02}", headers=headers))
        for n in range(10, 20)
    ]
    assert [each.body for each in read] == [b"%d" % n for n in range(10, 20)]
    assert [each.delivery_tag[-2:] for each in read] == [str(n) for n in range(10, 20)]
    assert all(each.properties is read[0].properties for each in read)
    assert read[0].properties.headers == headers
    assert len({id(each) for each in read}) == 10


WHOLE = written()
PLAIN = json.dumps(envelope()).encode()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (WHOLE, written(b"another, longer one")),
        (WHOLE, written(b"")),
        (WHOLE, written(tag="x")),
        (WHOLE, written(tag=TAG.upper())),
        (WHOLE, written(routing_key="p")),
        (WHOLE, written(priority=1)),
        (WHOLE, written(headers={"a": 1})),
        (WHOLE, written(encoding=None, body="b25l")),
        (WHOLE, WHOLE.replace(TAG.encode(), b'c0d567d2-d236-4ff5-8b58-81008c86"594')),
        (WHOLE, WHOLE.replace(TAG.encode(), b"c0d567d2-d236-4ff5-8b58-81008c86\\594")),
        (WHOLE, WHOLE.replace(TAG.encode(), b"c0d567d2-d236-4ff5-8b58-81008c8\\u0041")),
        (WHOLE, WHOLE.replace(TAG.encode(), b"c0d567d2-d236-4ff5-8b58-81008c86\x00594")),
        (WHOLE, WHOLE.replace(TAG.encode(), "c0d567d2-d236-4ff5-8b58-81008c869é5".encode())),
        (WHOLE, WHOLE.replace(TAG.encode(), b"c0d567d2-d236-4ff5-8b58-81008c869\xe9\xff5")),
        (WHOLE, WHOLE.replace(b'"b25l"', b'"b25"')),
        (WHOLE, WHOLE.replace(b'"b25l"', b'"b2-l"')),
        (WHOLE, WHOLE.replace(b'"b25l"', b'"b25s\\u005a\\u0051=="')),
        (WHOLE, WHOLE.replace(b'"b25l"', b'"b2\\"l"')),
        (WHOLE, WHOLE.replace(b'"b25l"', b"null")),
        (WHOLE, WHOLE[:-1]),
        (WHOLE, WHOLE + b"}"),
        (WHOLE, WHOLE + b" "),
        (WHOLE, WHOLE.decode()),
        (WHOLE, bytearray(WHOLE)),
        (WHOLE, b""),
        (WHOLE, b'{"body": "'),
        (WHOLE, b'{"body": "b25l"'),
        (WHOLE.replace(b'"b25l"', b'"b25s\\u005aQ=="'), WHOLE),
        (WHOLE.replace(b'{"body"', b'{ "body"'), WHOLE),
        # The body twice: the last one counts.
        (WHOLE[:-1] + b', "body": "dHdv"}', WHOLE[:-1].replace(b"b25l", b"c2l4") + b', "body": "dHdv"}'),
        # A text that is the tag's in another place.
        (written(headers={"tag": TAG}), written(headers={"tag": "T" * 36}, tag=TAG)),
        (written(headers={"delivery_tag": TAG}), written(headers={"delivery_tag": TAG}, tag="T" * 36)),
        (written(message_id="x", tag="x"), written(message_id="y", tag="x")),
        (written(message_id="x", tag="x"), written(message_id="x", tag="y")),
        # One that is written in another way.
        (
            PLAIN.replace(b'"tag"', b'"\\u0074ag"').replace(b'"headers": {', b'"headers": {"t": "tag", '),
            PLAIN.replace(b'"tag"', b'"\\u0074ag"').replace(b'"headers": {', b'"headers": {"t": "gat", '),
        ),
        (written(encoding=None, body="b25l"), written(encoding=None, body="dHdv")),
        (written(encoding="utf-8", body="b25l"), written(encoding="utf-8", body="dHdv")),
        (CAPTURED_TOPIC.encode(), CAPTURED_TOPIC.replace("c0d567d2", "c0d567d3").encode()),
        (CAPTURED_REQUEUED, CAPTURED_REQUEUED),
        (b"{}", b"{}"),
        (written(headers={"long": "x" * 5000}), written(b"two", headers={"long": "x" * 5000})),
    ],
)
def test_a_neighbour_is_read_as_it_would_be_alone(first, second):
    reader = EnvelopeReader(codec)
    for data in (first, second, first, second, second):
        assert outcome(reader.read, "place", data) == outcome(decode_envelope, codec, data)


def test_envelopes_of_other_places_are_no_neighbours():
    reader = EnvelopeReader(codec)
    places = {name: reader.read(name, written(routing_key=name)).properties for name in "ab"}
    for name, other in ("ab", "ba"):
        assert reader.read(name, written(routing_key=name)).properties is places[name]
        assert reader.read(name, written(routing_key=other)).routing_key == other


def test_neighbours_are_told_after_many_that_were_none():
    reader = EnvelopeReader(codec)
    for number in range(1000):
        assert reader.read("place", written(message_id=str(number))).properties.message_id == str(number)
    found = [reader.read("place", written()).properties for _ in range(100)]
    assert found[-1] is found[-2]


def test_what_is_known_of_places_is_bounded():
    reader = EnvelopeReader(codec)
    reader.read("first", WHOLE)
    tracemalloc.start()
    try:
        for number in range(3000):
            assert reader.read(f"place{number}", written(headers={"long": "x" * 3000})).body == b"one"
        assert tracemalloc.get_traced_memory()[0] < 12_000_000  # of 1,000 places: three thousand would be 18 MB
    finally:
        tracemalloc.stop()
    assert reader.read("first", WHOLE).body == b"one"


@pytest.mark.parametrize("codec_like", [None, object()])
def test_a_reader_wants_a_codec(codec_like):
    with pytest.raises(TypeError):
        EnvelopeReader(codec_like)


def test_a_place_is_hashable():
    with pytest.raises(TypeError):
        EnvelopeReader(codec).read([], WHOLE)
