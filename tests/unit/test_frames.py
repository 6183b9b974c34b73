"""AMQP frames: what is sent, byte for byte; what comes in, however it is sliced; and what is refused."""

import codecs
import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kombulite._core import (
    HEARTBEAT_FRAME,
    LARGE_BODY,
    ConfirmReceived,
    Delivery,
    FrameDecoder,
    FrameEncoder,
    MalformedFrame,
    MalformedValue,
    MethodReceived,
    NotEncodable,
    Properties,
    ProtocolError,
    ReturnReceived,
    UnexpectedFrame,
    encode_table,
)

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_MAX = 4096
CHUNK = FRAME_MAX - 8
LARGEST_BODY = 512 * 1024 * 1024
LARGEST_TAG = 2**52

FULL = Properties(
    content_type="application/json",
    content_encoding="binary",
    headers={"trace": "abc", "n": 5, "deep": {"a": [1, None]}},
    delivery_mode=2,
    priority=9,
    correlation_id="c-1",
    reply_to="answers",
    expiration="2500",
    message_id="m-1",
    timestamp=1767323045,
    type="order",
    user_id="guest",
    app_id="shop",
    cluster_id="c",
)


def frame(kind, channel, payload):
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def short(text):
    data = text.encode()
    return bytes([len(data)]) + data


def method(channel, class_id, method_id, arguments=b""):
    return frame(METHOD, channel, struct.pack(">HH", class_id, method_id) + arguments)


def deliver(channel=1, tag=7, consumer="ct", exchange="ex", key="rk", redelivered=0):
    arguments = short(consumer) + struct.pack(">QB", tag, redelivered) + short(exchange) + short(key)
    return method(channel, 60, 60, arguments)


def get_ok(channel=1, tag=8, exchange="ex", key="rk", count=3):
    return method(channel, 60, 71, struct.pack(">QB", tag, 1) + short(exchange) + short(key) + struct.pack(">I", count))


def returned(channel=1, code=312, text="NO_ROUTE", exchange="ex", key="rk"):
    return method(channel, 60, 50, struct.pack(">H", code) + short(text) + short(exchange) + short(key))


def header(size, properties=b"\x00\x00", channel=1, class_id=60):
    return frame(HEADER, channel, struct.pack(">HHQ", class_id, 0, size) + properties)


def body(data, channel=1):
    return frame(BODY, channel, data)


def typed(content_type=None, content_encoding=None, headers=None):
    """Properties as they stand in a content header."""
    flags, values = 0, b""
    for flag, value in ((0x8000, content_type), (0x4000, content_encoding)):
        if value is not None:
            flags |= flag
            values += value if isinstance(value, bytes) else short(value)
    if headers is not None:
        flags |= 0x2000
        values += encode_table(headers)
    return struct.pack(">H", flags) + values


def message(data, properties=b"\x00\x00", channel=1, **names):
    return deliver(channel, **names) + header(len(data), properties, channel) + (body(data, channel) if data else b"")


def decoder(*channels, frame_max=FRAME_MAX):
    made = FrameDecoder(frame_max)
    for channel in channels or (1,):
        made.open(channel)
    return made


def drain(made):
    return list(iter(made.next_event, None))


def events(data, *channels, frame_max=FRAME_MAX):
    made = decoder(*channels, frame_max=frame_max)
    made.receive_data(data)
    return drain(made)


def only(data, *channels):
    (event,) = events(data, *channels)
    return event


def told(event):
    """All that an event says, to be compared."""
    if isinstance(event, Delivery):
        error = None if event.error is None else str(event.error)
        return (event.channel, event.consumer_tag, event.delivery_tag, event.redelivered, event.exchange,
                event.routing_key, event.message_count, event.properties.as_dict(), event.body, error)  # fmt: skip
    if isinstance(event, ReturnReceived):
        return (event.channel, event.reply_code, event.reply_text, told(event.delivery))
    if isinstance(event, ConfirmReceived):
        return (event.channel, event.delivery_tag, event.multiple, event.accepted)
    return (event.channel, event.signature, event.arguments)


def outgoing(data=b"body", properties=FULL, exchange="ex", key="rk"):
    return Delivery(exchange, key, properties, data)


def split(data):
    """The frames in a stream: (type, channel, payload)."""
    found = []
    while data:
        kind, channel, size = struct.unpack_from(">BHI", data)
        assert data[7 + size] == 0xCE
        found.append((kind, channel, data[7 : 7 + size]))
        data = data[8 + size :]
    return found


def publish_method(exchange, key, bits=0):
    return struct.pack(">HHH", 60, 40, 0) + short(exchange) + short(key) + bytes([bits])


# --- writing


def test_publish_byte_for_byte():
    properties = Properties("application/json", "utf-8", {}, 2, 3, "c", "r", "2500")
    data = FrameEncoder().publish(1, outgoing(b'{"a": 1}', properties, "spec-ex", "a.b"))
    assert data == (
        bytes.fromhex("01 0001 00000013 003c0028 0000 07") + b"spec-ex" + bytes.fromhex("03") + b"a.b"
        + bytes.fromhex("00 ce 02 0001 00000034 003c 0000 0000000000000008 ff00 10") + b"application/json"
        + bytes.fromhex("05") + b"utf-8" + bytes.fromhex("00000000 02 03 01") + b"c\x01r\x042500"
        + bytes.fromhex("ce 03 0001 00000008") + b'{"a": 1}\xce'
    )  # fmt: skip


def test_all_properties_there_and_back():
    kind, channel, payload = split(FrameEncoder().publish(1, outgoing()))[1]
    assert (kind, channel) == (HEADER, 1)
    assert payload[12:14] == b"\xff\xfc"
    found = only(deliver() + frame(HEADER, 1, payload) + body(b"body"))
    assert found.properties == FULL
    assert found.body == b"body"


@pytest.mark.parametrize("name", FULL.as_dict())
def test_each_property_alone(name):
    alone = Properties(**{name: getattr(FULL, name)})
    payload = split(FrameEncoder().publish(1, outgoing(b"", alone)))[1][2]
    assert only(deliver() + frame(HEADER, 1, payload)).properties == alone


def test_headers_are_always_sent():
    for properties in (Properties(), Properties(headers={})):
        assert split(FrameEncoder().publish(1, outgoing(b"", properties)))[1][2][12:] == b"\x20\x00\x00\x00\x00\x00"


def test_what_amqp_has_no_property_for_is_not_sent():
    encoder = FrameEncoder()
    assert encoder.publish(1, outgoing(properties=Properties(extra={"x": 1}))) == encoder.publish(
        1, outgoing(properties=Properties())
    )


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 5 * CHUNK + 100]
)
@pytest.mark.parametrize("many", [False, True])
def test_bodies_are_split(size, many):
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    encoder = FrameEncoder(FRAME_MAX)
    frames = encoder.publish_many(1, [outgoing(data)], 0, 1)[0] if many else encoder.publish(1, outgoing(data))
    found = split(frames)
    assert [kind for kind, *_ in found] == [METHOD, HEADER] + [BODY] * -(-size // CHUNK)
    assert all(len(payload) <= CHUNK for *_, payload in found)
    assert all(len(payload) == CHUNK for *_, payload in found[2:-1])
    assert b"".join(payload for *_, payload in found[2:]) == data
    assert struct.unpack_from(">HHQ", found[1][2]) == (60, 0, size)
    assert {channel for _, channel, _ in found} == {1}


def test_nothing_leaks_from_the_last_publish():
    other = FULL.replace(priority=1)
    places = [(channel, mandatory, exchange, key, properties, data)
              for channel in (1, 0xffff) for mandatory in (False, True) for exchange in ("", "ex")
              for key in ("k", "key") for properties in (FULL, other) for data in (b"", b"a", b"b" * 5000)]  # fmt: skip
    encoder = FrameEncoder(FRAME_MAX)
    for step in (1, 5, 7, 11, 31):  # prime to their number: every one follows on others
        for place in range(len(places)):
            channel, mandatory, exchange, key, properties, data = places[place * step % len(places)]
            sent = outgoing(data, properties, exchange, key)
            frames = encoder.publish(channel, sent, mandatory)
            assert frames == FrameEncoder(FRAME_MAX).publish(channel, sent, mandatory)
            found = split(frames)
            assert {number for _, number, _ in found} == {channel}
            assert found[0][2] == publish_method(exchange, key, mandatory)


def test_equal_names_that_are_other_objects():
    encoder = FrameEncoder()
    names = ["".join(["r", "k"]) for _ in range(2)]
    first, second = (encoder.publish(1, outgoing(key=name)) for name in names)
    assert first == second


def test_a_failed_publish_leaves_no_trace():
    encoder = FrameEncoder()
    expected = encoder.publish(1, outgoing())
    for broken in (
        outgoing(exchange="x" * 256),
        outgoing(properties=Properties(priority=256)),
        outgoing("text"),
        outgoing(key=None),
    ):
        with pytest.raises(NotEncodable):
            encoder.publish(2, broken)
        assert encoder.publish_many(2, [outgoing(), broken], 0, 1_000_000)[1] == 1
        with pytest.raises(NotEncodable):
            encoder.publish_many(2, [outgoing(), broken], 1, 1_000_000)
        assert encoder.publish(1, outgoing()) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"content_type": "x" * 256},
        {"content_type": "é" * 128},
        {"content_encoding": 5},
        {"headers": {"k": object()}},
        {"headers": {"k": "x" * FRAME_MAX}},
        {"headers": [("k", 1)]},
        {"headers": "text"},
        {"delivery_mode": -1},
        {"delivery_mode": "2"},
        {"priority": 256},
        {"priority": 1.5},
        {"correlation_id": 5},
        {"expiration": 2500},
        {"timestamp": -1},
        {"timestamp": 2**64},
        {"timestamp": "now"},
        {"user_id": "\ud800"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_properties_that_amqp_has_no_form_for(changes):
    with pytest.raises(NotEncodable):
        FrameEncoder(FRAME_MAX).publish(1, outgoing(properties=FULL.replace(**changes)))


@pytest.mark.parametrize("data", ["text", None, bytearray(b"x"), memoryview(b"x"), 5])
def test_a_body_is_bytes(data):
    with pytest.raises(NotEncodable, match="a body travels as bytes"):
        FrameEncoder().publish(1, outgoing(data))


def test_the_largest_header_frame():
    def sent(size):
        return FrameEncoder(FRAME_MAX).publish(1, outgoing(b"", Properties(headers={"k": "x" * size})))

    fits = CHUNK - len(split(sent(0))[1][2])
    assert len(split(sent(fits))[1][2]) == CHUNK
    with pytest.raises(NotEncodable, match="do not fit into a frame"):
        sent(fits + 1)


def test_frame_max_of_the_encoder_can_change():
    encoder = FrameEncoder()
    assert encoder.frame_max == 131072
    large = Delivery("ex", "rk", Properties(headers={"k": "x" * FRAME_MAX}), b"y" * 10_000)
    assert len(split(encoder.publish(1, large))) == 3
    encoder.frame_max = FRAME_MAX
    with pytest.raises(NotEncodable, match="do not fit"):
        encoder.publish(1, large)
    assert len(split(encoder.publish(1, outgoing(b"y" * 10_000)))) == 5


@pytest.mark.parametrize("kind", [FrameEncoder, FrameDecoder])
def test_frame_max_has_limits(kind):
    for frame_max in (4095, 0, -1, 2**31):
        with pytest.raises(ValueError, match="a frame may have"):
            kind(frame_max)
        made = kind()
        with pytest.raises(ValueError, match="a frame may have"):
            made.frame_max = frame_max
        assert made.frame_max == 131072
    assert kind(2**31 - 1).frame_max == 2**31 - 1


def test_publish_many_is_publish_again_and_again():
    deliveries = [outgoing(b"x" * size, key=key) for size in (0, 1, 100, 5000) for key in ("a", "b")]
    encoder = FrameEncoder(FRAME_MAX)
    alone = [encoder.publish(3, delivery, True) for delivery in deliveries]
    assert encoder.publish_many(3, deliveries, 0, 1_000_000, True) == (b"".join(alone), len(deliveries))
    assert encoder.publish_many(3, deliveries, 5, 1_000_000, True) == (b"".join(alone[5:]), len(deliveries))
    for size_hint in (0, 1, len(alone[0]), len(alone[0]) + 1, 1000, -1):
        sent, index = [], 0
        while index < len(deliveries):
            data, following = encoder.publish_many(3, deliveries, index, size_hint, True)
            assert following > index
            assert data == b"".join(alone[index:following])
            assert following == index + 1 or len(b"".join(alone[index : following - 1])) < size_hint
            assert following == len(deliveries) or len(data) >= size_hint
            sent.append(data)
            index = following
        assert b"".join(sent) == b"".join(alone)


def test_publish_many_outside_the_list():
    encoder = FrameEncoder()
    assert encoder.publish_many(1, [], 0, 100) == (b"", 0)
    assert encoder.publish_many(1, [outgoing()], 1, 100) == (b"", 1)
    for start in (-1, -1_000_000):
        with pytest.raises(IndexError):
            encoder.publish_many(1, [outgoing()], start, 100)
    for wrong in (None, "text", object()):
        with pytest.raises(TypeError):
            encoder.publish_many(1, [wrong], 0, 100)


def test_settling():
    encoder = FrameEncoder()
    tag = 0x0102030405060708
    for verb, number in ((encoder.ack, 80), (encoder.reject, 90), (encoder.nack, 120)):
        for flag in (False, True):
            assert verb(0xFFFF, tag, flag) == method(0xFFFF, 60, number, struct.pack(">QB", tag, flag))
    assert encoder.nack(1, tag, False, True) == method(1, 60, 120, struct.pack(">QB", tag, 2))
    assert encoder.nack(1, 2**64 - 1, multiple=True, requeue=True) == method(1, 60, 120, b"\xff" * 8 + b"\x03")
    assert encoder.ack(1, 1, multiple=5) == encoder.ack(1, 1, multiple=True)


def test_get():
    encoder = FrameEncoder()
    assert encoder.get(1, "queue") == method(1, 60, 70, b"\0\0\x05queue\x00")
    assert encoder.get(1, "é", no_ack=True) == method(1, 60, 70, b"\0\0\x02\xc3\xa9\x01")
    for name in ("q" * 256, None, 5):
        with pytest.raises(NotEncodable):
            encoder.get(1, name)


def test_method():
    encoder = FrameEncoder(FRAME_MAX)
    assert encoder.method(0, 10, 51, b"") == method(0, 10, 51)
    assert encoder.method(7, 50, 10, b"arguments") == method(7, 50, 10, b"arguments")
    assert len(encoder.method(1, 50, 10, bytes(CHUNK - 4))) == FRAME_MAX
    with pytest.raises(NotEncodable, match="does not fit"):
        encoder.method(1, 50, 10, bytes(CHUNK - 3))
    with pytest.raises(TypeError):
        encoder.method(1, 50, 10, None)


@pytest.mark.parametrize("channel", [-1, 0x10000, 0x10001, 2**32 + 1])
def test_a_number_beyond_16_bits_is_no_channel(channel):
    encoder, made = FrameEncoder(), FrameDecoder()
    for call in (
        lambda: encoder.publish(channel, outgoing()),
        lambda: encoder.publish_many(channel, [outgoing()], 0, 1),
        lambda: encoder.ack(channel, 1),
        lambda: encoder.reject(channel, 1),
        lambda: encoder.nack(channel, 1),
        lambda: encoder.get(channel, "q"),
        lambda: encoder.method(channel, 10, 10, b""),
        lambda: made.open(channel),
        lambda: made.close(channel),
        lambda: made.last_tag(channel),
    ):
        with pytest.raises(OverflowError):
            call()


@pytest.mark.parametrize("tag", [-1, 2**64])
def test_a_number_beyond_64_bits_is_no_tag(tag):
    with pytest.raises(OverflowError):
        FrameEncoder().ack(1, tag)


def test_heartbeat():
    assert frame(HEARTBEAT, 0, b"") == HEARTBEAT_FRAME


# --- events


def test_deliver():
    found = only(deliver(redelivered=1) + header(4, typed("text/plain", "binary", {"h": 1})) + body(b"body"))
    assert told(found) == (
        1, "ct", 7, True, "ex", "rk", None,
        {"content_type": "text/plain", "content_encoding": "binary", "headers": {"h": 1}}, b"body", None,
    )  # fmt: skip


def test_get_ok():
    found = only(get_ok() + header(0))
    assert told(found) == (1, None, 8, True, "ex", "rk", 3, {}, b"", None)


def test_return():
    found = only(returned() + header(2) + body(b"ab"))
    assert (found.channel, found.reply_code, found.reply_text) == (1, 312, "NO_ROUTE")
    assert told(found.delivery) == (1, None, None, False, "ex", "rk", None, {}, b"ab", None)
    assert repr(found) == "<ReturnReceived 312 'NO_ROUTE' on channel 1>"


@pytest.mark.parametrize("number", [80, 120])
@pytest.mark.parametrize("multiple", [0, 1])
def test_confirms(number, multiple):
    found = only(method(0xFFFF, 60, number, struct.pack(">QB", 2**64 - 1, multiple)))
    assert isinstance(found, ConfirmReceived)
    assert told(found) == (0xFFFF, 2**64 - 1, bool(multiple), number == 80)
    assert repr(found).startswith(f"<ConfirmReceived {'ack' if number == 80 else 'nack'} 18446744073709551615")


def test_methods():
    data = method(0, 10, 50, b"\x01\x40") + method(9, 60, 72, b"\x00") + method(9, 60, 30, short("ct") + b"\x00")
    data += method(1, 50, 11)
    found = events(data)
    assert all(isinstance(event, MethodReceived) for event in found)
    assert [told(event) for event in found] == [
        (0, (10, 50), b"\x01\x40"), (9, (60, 72), b"\x00"), (9, (60, 30), b"\x02ct\x00"), (1, (50, 11), b""),
    ]  # fmt: skip
    assert repr(found[0]) == "<MethodReceived (10, 50) on channel 0, 2 bytes>"


def test_heartbeats_are_no_events():
    assert events(HEARTBEAT_FRAME * 3) == []
    between = deliver() + HEARTBEAT_FRAME + header(2) + HEARTBEAT_FRAME + body(b"a") + HEARTBEAT_FRAME + body(b"b")
    assert only(between + HEARTBEAT_FRAME).body == b"ab"


def test_last_tag():
    made = decoder(1, 2)
    assert (made.last_tag(1), made.last_tag(2), made.last_tag(3)) == (0, 0, 0)
    made.receive_data(message(b"", tag=5) + message(b"", tag=LARGEST_TAG, channel=2) + returned() + header(0))
    drain(made)
    assert (made.last_tag(1), made.last_tag(2)) == (5, LARGEST_TAG)
    made.receive_data(get_ok(tag=6) + header(0))
    drain(made)
    assert made.last_tag(1) == 6
    made.receive_data(message(b"", tag=4))  # a broker that counts backwards
    assert made.next_event().delivery_tag == 4
    assert made.last_tag(1) == 6
    made.open(1)  # again, after an error
    assert made.last_tag(1) == 0


@pytest.mark.parametrize("above", [0, 1, 2**64 - LARGEST_TAG - 1])
def test_tags_are_added_to_those_of_lost_connections(above):
    made = FrameDecoder()
    made.open(1, above)
    made.receive_data(message(b"", tag=1) + message(b"", tag=LARGEST_TAG))
    assert [event.delivery_tag for event in drain(made)] == [above + 1, above + LARGEST_TAG]
    assert made.last_tag(1) == above + LARGEST_TAG


@pytest.mark.parametrize(("above", "tag"), [(0, LARGEST_TAG + 1), (0, 2**64 - 1), (6, 2**64 - 4), (2**64 - 1, 1)])
@pytest.mark.parametrize("make", [deliver, get_ok])
def test_a_tag_that_is_no_count_of_deliveries_is_refused(make, above, tag):
    """Added to those of lost connections it would begin at 0 again: the tag of another message."""
    made = FrameDecoder()
    made.open(1, above)
    made.receive_data(make(tag=tag) + header(0))
    with pytest.raises(MalformedValue, match=f"delivery tag {tag}"):
        made.next_event()
    assert made.last_tag(1) == above


def test_neighbours_share_what_is_the_same():
    first, second, third, fourth = events(
        message(b"1", typed("a", headers={"h": 1})) + message(b"2", typed("a", headers={"h": 1}))
        + message(b"3", typed("a", headers={"h": 2}), key="other", consumer="c2", exchange="e")
        + message(b"4", typed("a", headers={"h": 1}))
    )  # fmt: skip
    assert first.properties is second.properties
    assert first.exchange is second.exchange
    assert first.consumer_tag is second.consumer_tag
    assert [event.properties.headers["h"] for event in (first, second, third, fourth)] == [1, 1, 2, 1]
    assert [event.routing_key for event in (first, second, third, fourth)] == ["rk", "rk", "other", "rk"]
    assert [event.exchange for event in (first, second, third, fourth)] == ["ex", "ex", "e", "ex"]
    assert [event.consumer_tag for event in (first, second, third, fourth)] == ["ct", "ct", "c2", "ct"]


def test_exchange_and_key_are_told_apart():
    found = events(message(b"", exchange="ab", key="c") + message(b"", exchange="a", key="bc") + message(b"", key=""))
    assert [(event.exchange, event.routing_key) for event in found] == [("ab", "c"), ("a", "bc"), ("ex", "")]


def test_names_that_are_no_utf8_can_be_sent_back():
    found = only(method(1, 60, 60, b"\x01\xff" + bytes(9) + b"\x01\xfe\x02\xfd\xfc") + header(0))
    again = split(FrameEncoder().publish(1, Delivery(found.exchange, found.routing_key, Properties(), b"")))
    assert again[0][2] == b"\x00\x3c\x00\x28\x00\x00\x01\xfe\x02\xfd\xfc\x00"


STREAM = b"".join([
    message(b"first", typed("text/plain", "utf-8")),
    HEARTBEAT_FRAME,
    deliver(2, tag=1), header(10, typed(headers={"a": [1]}), channel=2), body(b"01234", channel=2),
    get_ok(), header(3),  # in between, on another channel
    body(b"56789", channel=2), body(b"a"), body(b"bc"),
    returned(), header(0),
    method(1, 60, 80, struct.pack(">QB", 9, 1)),
    method(0, 10, 61),
    message(b"\xff", typed("a", b"\x05utf-8")),
    message(b"z" * 300, b"\x80\x00\x05ab", tag=11),  # properties that end too early
    message(b"", typed("a", "utf-8")),
])  # fmt: skip
EXPECTED = [told(event) for event in events(STREAM, 1, 2)]


def test_interleaved_channels():
    assert [event[:3] for event in EXPECTED] == [
        (1, "ct", 7), (2, "ct", 1), (1, None, 8), (1, 312, "NO_ROUTE"), (1, 9, True), (0, (10, 61), b""),
        (1, "ct", 7), (1, "ct", 11), (1, "ct", 7),
    ]  # fmt: skip
    assert [event[8] for event in EXPECTED if len(event) == 10] == [
        "first", b"0123456789", b"abc", b"\xff", b"z" * 300, "",
    ]  # fmt: skip


def by_receiving(made, data):
    made.receive_data(data)


def by_buffer(made, data):
    with memoryview(made) as room:
        assert not room.readonly
        assert len(room) >= len(data)
        room[: len(data)] = data
    made.received(len(data))


@pytest.mark.parametrize("put", [by_receiving, by_buffer])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 8, 50, 1000])
def test_slices_of_any_size(put, step):
    made, found = decoder(1, 2), []
    for start in range(0, len(STREAM), step):
        put(made, STREAM[start : start + step])
        found += drain(made)
    assert [told(event) for event in found] == EXPECTED


@pytest.mark.parametrize("put", [by_receiving, by_buffer])
def test_every_cut(put):
    for cut in range(len(STREAM) + 1):
        made, found = decoder(1, 2), []
        for part in (STREAM[:cut], STREAM[cut:]):
            put(made, part)
            found += drain(made)
        assert [told(event) for event in found] == EXPECTED


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.integers(0, 3))))
def test_any_slices_by_either_way_with_any_number_of_events_between(steps):
    made, found, at = decoder(1, 2), [], 0
    for size, buffered, takes in [*steps, (len(STREAM), False, 0)]:
        (by_buffer if buffered else by_receiving)(made, STREAM[at : at + size])
        at += size
        found += filter(None, (made.next_event() for _ in range(takes)))
    assert [told(event) for event in found + drain(made)] == EXPECTED


# --- bodies


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 100_000])
def test_bodies_are_put_together(size):
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    parts = b"".join(body(data[at : at + CHUNK]) for at in range(0, size, CHUNK))
    assert only(deliver() + header(size) + parts).body == data
    single = b"".join(body(data[at : at + 1]) for at in range(min(size, 500)))
    assert only(deliver() + header(min(size, 500)) + single).body == data[:500]


@pytest.mark.parametrize("parts", [[b"", b"body"], [b"b", b"", b"ody"], [b"", b"", b"bod", b"", b"y"]])
def test_empty_body_frames_change_nothing(parts):
    assert only(deliver() + header(4) + b"".join(map(body, parts))).body == b"body"


@pytest.mark.parametrize(
    ("encoding", "data", "found"),
    [
        ("utf-8", "é".encode(), "é"),
        ("UTF-8", "é".encode(), "é"),
        ("utf8", "é".encode(), "é"),
        ("latin-1", b"\xe9", "é"),
        ("us-ascii", b"e", "e"),
        ("utf-16", "é".encode("utf-16"), "é"),
        ("utf-8", b"", ""),
        ("utf-8", b"\xff", b"\xff"),
        ("us-ascii", b"\xff", b"\xff"),
        ("binary", b"text", b"text"),
        ("ascii-8bit", b"text", b"text"),
        ("", b"text", b"text"),
        ("nonsense", b"text", b"text"),
        ("a\x00b", b"text", b"text"),
        (b"\x01\xff", b"text", b"text"),
        ("hex", b"6162", b"6162"),
        ("zip", b"text", b"text"),
        ("idna", b"xn--9ca", b"xn--9ca"),
        ("IDNA", b"xn--9ca", b"xn--9ca"),
        ("-idna ", b"xn--9ca", b"xn--9ca"),
        ("punycode", b"9ca", b"9ca"),
        ("undefined", b"text", b"text"),
    ],
)
def test_text(encoding, data, found):
    event = only(message(data, typed(None, encoding)))
    assert (type(event.body), event.body) == (type(found), found)
    assert event.error is None


def test_text_in_several_frames():
    data = ("é" * 3000).encode()
    frames = deliver() + header(len(data), typed(None, "utf-8")) + body(data[:4001]) + body(data[4001:])
    assert only(frames, 1).body == "é" * 3000


def test_compressed_text_stays_bytes():
    for headers, found in (({"compression": "application/x-gzip"}, b"text"), ({"other": 1}, "text"), ({}, "text")):
        assert only(message(b"text", typed("text/plain", "utf-8", headers))).body == found


@pytest.mark.parametrize("error", [RuntimeError, DeprecationWarning, KeyError])
def test_a_codec_that_breaks(error):
    def decode(data, errors="strict"):
        raise error("broken")

    def find(name):
        return codecs.CodecInfo(lambda text: b"", decode, name=name) if name == "brokencodec" else None

    codecs.register(find)
    try:
        assert only(message(b"text", typed(None, "brokencodec"))).body == b"text"
    finally:
        codecs.unregister(find)


def test_an_interrupt_does_not_leave_the_decoder_out_of_step():
    def decode(data, errors="strict"):
        raise KeyboardInterrupt

    def find(name):
        return codecs.CodecInfo(lambda text: b"", decode, name=name) if name == "interruptedcodec" else None

    made = decoder()
    made.receive_data(message(b"text", typed(None, "interruptedcodec")) * 2)
    codecs.register(find)
    try:
        with pytest.raises(KeyboardInterrupt):
            made.next_event()
    finally:
        codecs.unregister(find)
    with pytest.raises(UnexpectedFrame, match="interrupted"):
        made.next_event()


# --- properties that cannot be read


@pytest.mark.parametrize(
    "properties",
    [
        b"",
        b"\x80",
        b"\x80\x00",
        b"\x80\x00\x05ab",
        b"\x20\x00\xff\xff\xff\xff",
        b"\x20\x00\x00\x00\x00\x02\x01k",
        b"\x20\x00\x00\x00\x00\x03\x01k?",
        b"\x10\x00",
        b"\x00\x40\x00\x00\x00",
        b"\x00\x01",
        b"\x00\x02",
        b"\x00\x00\x00",
        b"\x10\x00\x01\x02",
    ],
)
def test_malformed_properties_are_the_messages_own_fault(properties):
    made = decoder()
    made.receive_data(message(b"bad", properties, tag=1) + message(b"good", typed("a"), tag=2))
    bad, good = drain(made)
    assert isinstance(bad.error, MalformedValue)
    assert str(bad.error).startswith("malformed properties: ")
    assert (bad.delivery_tag, bad.body, bad.properties) == (1, b"bad", Properties())
    assert (good.error, good.body, good.properties.content_type) == (None, b"good", "a")
    made.receive_data(message(b"bad", properties, tag=3))
    assert made.next_event().error is not None


def test_malformed_properties_come_between_two_that_are_the_same():
    found = events(message(b"", typed("a")) + message(b"", b"\x80\x00\x05ab") + message(b"", typed("a")))
    assert [event.properties.content_type for event in found] == ["a", None, "a"]
    assert [event.error is None for event in found] == [True, False, True]


def test_malformed_properties_of_a_returned_message():
    found = only(returned() + header(0, b"\x00\x01"))
    assert isinstance(found.delivery.error, MalformedValue)


# --- what is refused

BAD = {
    "unknown type": (frame(4, 1, b""), MalformedFrame, "unknown type 4"),
    "type 0": (frame(0, 1, b""), MalformedFrame, "unknown type 0"),
    "protocol header": (b"AMQP\x00\x00\x09\x01", MalformedFrame, "unknown type 65"),
    "another protocol": (b"HTTP/1.1 400 Bad Request", MalformedFrame, "unknown type 72"),
    "wrong end": (method(1, 10, 10)[:-1] + b"\xcd", MalformedFrame, "ends with 0xcd"),
    "wrong end of heartbeat": (HEARTBEAT_FRAME[:-1] + b"\x00", MalformedFrame, "ends with 0x00"),
    "too large": (struct.pack(">BHI", METHOD, 1, CHUNK + 1), MalformedFrame, f"{CHUNK + 1} bytes"),
    "far too large": (struct.pack(">BHI", METHOD, 1, 2**32 - 1), MalformedFrame, "4294967295 bytes"),
    "heartbeat with payload": (frame(HEARTBEAT, 0, b"x"), MalformedFrame, "heartbeat"),
    "heartbeat with channel": (frame(HEARTBEAT, 1, b""), MalformedFrame, "heartbeat"),
    "body too long": (deliver() + header(2) + body(b"abc"), MalformedFrame, "more than the 2 bytes"),
    "body too long later": (deliver() + header(2) + body(b"a") + body(b"bc"), MalformedFrame, "more than the 2"),
    "header without method": (header(0), UnexpectedFrame, "header"),
    "body without method": (body(b"a"), UnexpectedFrame, "body"),
    "body without header": (deliver() + body(b"a"), UnexpectedFrame, "body"),
    "empty body without header": (deliver() + body(b""), UnexpectedFrame, "body"),
    "two headers": (deliver() + header(1) + header(1), UnexpectedFrame, "header"),
    "method before header": (deliver() + method(1, 10, 10), UnexpectedFrame, "within a message"),
    "method before body": (deliver() + header(1) + deliver(), UnexpectedFrame, "within a message"),
    "method within body": (
        deliver() + header(2) + body(b"a") + method(1, 60, 80, bytes(9)), UnexpectedFrame, "within a message"
    ),
    "body after the end": (message(b"ab") + body(b"c"), UnexpectedFrame, "body"),
    "header class": (deliver() + header(0, class_id=50), MalformedValue, "another class"),
    "short header": (deliver() + frame(HEADER, 1, bytes.fromhex("003c0000") + bytes(7)), MalformedValue, "announced"),
    "empty header": (deliver() + frame(HEADER, 1, b""), MalformedValue, "announced"),
    "deliver on a channel that is not open": (deliver(5), UnexpectedFrame, "channel 5, which is not open"),
    "deliver on channel 0": (deliver(0), UnexpectedFrame, "channel 0, which is not open"),
    "get-ok on a channel that is not open": (get_ok(5), UnexpectedFrame, "channel 5, which is not open"),
    "return on a channel that is not open": (returned(5), UnexpectedFrame, "channel 5, which is not open"),
    "header on a channel that is not open": (header(0, channel=5), UnexpectedFrame, "channel 5"),
    "body on a channel that is not open": (body(b"", channel=5), UnexpectedFrame, "channel 5"),
    "body too large": (deliver() + header(LARGEST_BODY + 1), MalformedValue, f"{LARGEST_BODY} are allowed"),
    "body far too large": (deliver() + header(2**64 - 1), MalformedValue, f"{LARGEST_BODY} are allowed"),
}  # fmt: skip
TRUNCATED = {
    "method": b"\x00\x3c\x00",
    "deliver": deliver()[7:-1],
    "get-ok": get_ok()[7:-1],
    "return": returned()[7:-1],
    "ack": method(1, 60, 80, bytes(9))[7:-1],
    "nack": method(1, 60, 120, bytes(9))[7:-1],
}


@pytest.mark.parametrize(("data", "kind", "why"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("step", [1, 1_000_000])
def test_refused(data, kind, why, step):
    made = decoder()
    with pytest.raises(ProtocolError, match=why) as caught:
        for at in range(0, len(data), step):
            made.receive_data(data[at : at + step])
            drain(made)
    assert type(caught.value) is kind
    assert kind.reply_code in {501, 502, 505}
    made.receive_data(message(b"innocent"))
    for _ in range(3):  # there is no way back
        with pytest.raises(kind, match=why):
            made.next_event()


@pytest.mark.parametrize("payload", TRUNCATED.values(), ids=TRUNCATED)
def test_truncated_arguments(payload):
    for cut in range(4 if len(payload) > 4 else 0, len(payload)):
        with pytest.raises(MalformedValue, match=r"malformed frame: .* announced"):
            events(frame(METHOD, 1, payload[:cut]))


def test_events_before_the_error_are_given():
    made = decoder()
    made.receive_data(message(b"good") + frame(4, 0, b""))
    assert made.next_event().body == b"good"
    with pytest.raises(MalformedFrame):
        made.next_event()


def test_messages_for_a_closed_channel_are_discarded_until_it_is_opened_again():
    made = decoder(1, 2)
    made.close(1)
    made.receive_data(message(b"late") + message(b"x", channel=2) + deliver() + header(10))
    assert made.next_event().body == b"x"
    assert made.next_event() is None
    assert [made.is_closed(channel) for channel in (1, 2, 3)] == [True, False, False]
    made.receive_data(body(b"0123456789"))
    assert made.next_event() is None
    made.open(1)
    made.receive_data(message(b"whole"))
    assert made.next_event().body == b"whole"


def test_a_channel_that_was_never_open_takes_no_messages():
    made = decoder(1)
    made.close(9)
    made.receive_data(message(b"x", channel=9))
    with pytest.raises(UnexpectedFrame, match="not open"):
        made.next_event()


def test_a_channel_opened_anew_forgets_half_a_message():
    made = decoder()
    made.receive_data(deliver() + header(10) + body(b"half"))
    assert made.next_event() is None
    made.close(1)
    made.open(1)
    made.receive_data(message(b"whole"))
    assert made.next_event().body == b"whole"


def test_frame_max_of_the_decoder_can_change():
    made = decoder()
    assert made.frame_max == FRAME_MAX
    made.frame_max = 131072
    made.receive_data(method(1, 10, 10, bytes(100_000)))
    assert len(made.next_event().arguments) == 100_000
    made.frame_max = FRAME_MAX
    made.receive_data(struct.pack(">BHI", METHOD, 1, CHUNK + 1))
    with pytest.raises(MalformedFrame):
        made.next_event()


# --- the buffer


def test_received_more_than_was_offered():
    made = decoder()
    with memoryview(made) as room:
        offered = len(room)
    for size in (-1, offered + 1, sys.maxsize, -sys.maxsize - 1):
        with pytest.raises(ValueError, match="were not offered"):
            made.received(size)


def test_a_buffer_in_use_is_not_moved():
    made = decoder(frame_max=10_000_000)
    with memoryview(made) as room:
        with pytest.raises(BufferError):
            made.receive_data(bytes(len(room) + 1))
        data = message(b"body")
        room[: len(data)] = data
        made.received(len(data))
        assert made.next_event().body == b"body"
        assert made.next_event() is None
        room[0] = 1  # still there
    made.receive_data(message(b"x" * 1_000_000))
    assert made.next_event().body == b"x" * 1_000_000


def test_a_buffer_outlives_its_decoder():
    room = memoryview(decoder())
    room[:] = bytes(len(room))
    assert room[-1] == 0


def test_anything_with_a_buffer_is_received():
    made = decoder()
    data = message(b"body")
    made.receive_data(bytearray(data[:20]))
    made.receive_data(memoryview(data)[20:])
    made.receive_data(b"")
    assert made.next_event().body == b"body"
    for wrong in (None, "text", 5, [1]):
        with pytest.raises(TypeError):
            made.receive_data(wrong)
    with pytest.raises(BufferError):
        made.receive_data(memoryview(data)[::2])


def test_a_long_frame_comes_through_the_buffer():
    made, data, at = decoder(frame_max=20_000_000), message(bytes(range(256)) * 40_000), 0
    while at < len(data):
        with memoryview(made) as room:
            size = min(len(room), 65536, len(data) - at)
            room[:size] = data[at : at + size]
        made.received(size)
        at += size
        event = made.next_event()
    assert event.body == bytes(range(256)) * 40_000


def test_what_is_held_does_not_grow_with_what_came():
    made, data, largest = decoder(), message(b"x" * 3000), 0
    for _ in range(2000):
        by_buffer(made, data[:1700])
        drain(made)
        by_buffer(made, data[1700:])
        assert len(drain(made)) == 1
        with memoryview(made) as room:
            largest = max(largest, len(room))
    assert largest <= 600_000


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="/proc tells how much memory is really used")
@pytest.mark.skipif("PYTHONMALLOC" in os.environ or sys.flags.dev_mode, reason="such allocators touch what they give")
def test_a_body_is_not_paid_for_before_it_comes():
    made = decoder(*range(1, 9))
    before = resident()
    for channel in range(1, 9):
        made.receive_data(deliver(channel) + header(LARGEST_BODY, channel=channel) + body(b"x", channel))
        assert made.next_event() is None
    assert resident() - before < 32 * 1024 * 1024


@pytest.mark.parametrize("frame_max", [4096, 131072])
@pytest.mark.parametrize("size", [LARGE_BODY - 1, LARGE_BODY, 131064, 131065, 300_000])
def test_a_large_body_in_buffers_is_its_own_memory(frame_max, size):
    encoder, gathering = FrameEncoder(frame_max), FrameEncoder(frame_max)
    gathering.gathers = True
    message = outgoing((bytes(range(250)) * (size // 250 + 1))[:size])
    expected = encoder.publish(1, message, True)
    got = gathering.publish(1, message, True)
    if size < LARGE_BODY:
        assert got == expected
        return
    assert b"".join(got) == expected
    assert all(buffer.obj is message.body for buffer in got[1::2])
    small = outgoing()
    assert gathering.publish_many(1, [small, message, small], 0, 1_000_000, True) == (
        encoder.publish(1, small, True),
        1,
    )
    assert gathering.publish_many(1, [small, message, small], 1, 1, True) == (got, 2)
