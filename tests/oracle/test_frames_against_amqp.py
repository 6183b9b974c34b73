"""Frames and field tables beside py-amqp and pamqp, byte for byte, both ways.

Differences, each of them meant:

* Integers of more than 32 bits have the tag ``l``, where py-amqp writes ``L``. RabbitMQ and both libraries read both as
  signed.
* pamqp writes the shortest integer that fits, floats with 32 bits, and tables sorted by name: it agrees on values, not
  on bytes. It takes a timestamp after the year 2106 for milliseconds, which RabbitMQ does not.
* Decimals keep their places (1.50), which py-amqp's division drops, and positive exponents are written out.
* A timestamp beyond the year 9999 is a number of seconds, where both libraries raise.
* A body's frames are one piece, where py-amqp makes several writes of a large one; the bytes are the same.
"""

import struct
from datetime import datetime, timezone
from decimal import Decimal
from types import SimpleNamespace

import pytest
from amqp import basic_message, method_framing, serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from kombulite._core import (
    HEARTBEAT_FRAME,
    ConfirmReceived,
    Delivery,
    FrameDecoder,
    FrameEncoder,
    Properties,
    decode_table,
    encode_table,
)
from kombulite._core import ReturnReceived as Returned

commands, decode, encode, pamqp_frame = (
    pytest.importorskip(f"pamqp.{module}", reason="pamqp 4 needs Python 3.11")
    for module in ("commands", "decode", "encode", "frame")
)

FRAME_MAX = 4096
CHUNK = FRAME_MAX - 8

names = st.text(max_size=12)
moments = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31, 23, 59)).map(lambda at: at.replace(microsecond=0))
decimals = st.builds(
    lambda unscaled, scale: Decimal((unscaled < 0, tuple(map(int, str(abs(unscaled)))), -scale)),
    st.integers(1, 2**31 - 1) | st.integers(-(2**31), -1),
    st.integers(0, 255),
)
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**31) + 1, 2**31 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | moments
    | decimals
)


def tables_of(scalars):
    values = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
        max_leaves=10,
    )
    return st.dictionaries(names, values, max_size=6)


tables = tables_of(plain)
short = st.none() | st.text(max_size=20)
octet = st.none() | st.integers(0, 255)
properties = st.builds(
    Properties,
    content_type=short,
    content_encoding=short,
    headers=tables,
    delivery_mode=octet,
    priority=octet,
    correlation_id=short,
    reply_to=short,
    expiration=short,
    message_id=short,
    timestamp=st.none() | st.integers(0, 2**64 - 1),
    type=short,
    user_id=short,
    app_id=short,
    cluster_id=short,
)
key = st.text(max_size=30)
body = st.binary(max_size=50) | st.builds(
    lambda size, data: (data * size)[:size], st.integers(0, 3 * CHUNK), st.binary(min_size=1, max_size=9)
)
channel_number = st.integers(1, 0xFFFF)


# --- tables


@settings(deadline=None, max_examples=150)
@given(tables)
def test_tables_are_py_amqps(table):
    theirs = serialization.dumps("F", [table])
    assert encode_table(table) == theirs
    assert decode_table(theirs) == serialization.loads("F", theirs, 0)[0][0] == table


@settings(deadline=None, max_examples=70)
@given(st.integers(2**31, 2**63 - 1) | st.integers(-(2**63), -(2**31)))
def test_wide_integers_have_the_other_tag(number):
    ours, theirs = encode_table({"k": number}), serialization.dumps("F", [{"k": number}])
    assert (ours[6:7], theirs[6:7]) == (b"l", b"L")
    assert ours.replace(b"kl", b"kL", 1) == theirs
    for data in (ours, theirs):
        assert decode_table(data) == serialization.loads("F", data, 0)[0][0] == {"k": number}
        assert decode.field_table(data) == (len(data), {"k": number})


def as_pamqp(value):
    """A value as pamqp takes it and gives it back."""
    if isinstance(value, dict):
        return {name: as_pamqp(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_pamqp(item) for item in value]
    if isinstance(value, datetime):
        return value.replace(tzinfo=timezone.utc)
    if isinstance(value, (bytes, bytearray)):
        return bytearray(value)
    return value


moments32 = moments.filter(lambda at: at.year < 2100)
floats32 = st.floats(allow_nan=False, width=32)
pamqp_tables = tables_of(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | floats32 | st.text(max_size=12) | moments32
)


@settings(deadline=None, max_examples=150)
@given(pamqp_tables)
def test_pamqp_agrees_on_values(table):
    ours, theirs = encode_table(table), encode.field_table(as_pamqp(table))
    assert decode.field_table(ours) == (len(ours), as_pamqp(table))
    assert decode_table(theirs) == table


@settings(deadline=None, max_examples=70)
@given(st.lists(st.booleans() | st.text(max_size=9) | moments | st.none(), max_size=5))
def test_pamqp_writes_the_same_bytes_of_what_has_one_form(values):
    assert encode_table({"k": values}) == encode.field_table({"k": as_pamqp(values)})


@settings(deadline=None, max_examples=70)
@given(st.binary(max_size=20))
def test_byte_arrays_of_pamqp(data):
    theirs = encode.field_table({"k": bytearray(data)})
    assert decode_table(theirs) == serialization.loads("F", theirs, 0)[0][0] == {"k": data}


SIZES = {"t": 1, "b": 1, "B": 1, "s": 2, "u": 2, "U": 2, "I": 4, "i": 4, "l": 8, "L": 8, "d": 8, "f": 4, "V": 0, "D": 5}


@settings(deadline=None, max_examples=500)
@given(st.data())
def test_any_bits_of_fixed_size_are_read_alike(data):
    tag, size = data.draw(st.sampled_from(list(SIZES.items())))
    bits = data.draw(st.binary(min_size=size, max_size=size))
    table = struct.pack(">I", 3 + size) + b"\x01k" + tag.encode() + bits
    ours = decode_table(table)["k"]
    theirs = [serialization.loads("F", table, 0)[0][0]["k"]]
    if tag not in "UD":  # pamqp has no U, and reads scales of decimals differently
        theirs.append(decode.field_table(table)[1]["k"])
    for other in theirs:
        assert type(ours) is type(other)
        assert ours == other or (ours != ours and other != other)


def test_decimals_keep_their_places():
    data = encode_table({"k": Decimal("1.50")})
    assert data == serialization.dumps("F", [{"k": Decimal("1.50")}])
    assert str(decode_table(data)["k"]) == "1.50"
    assert serialization.loads("F", data, 0)[0][0]["k"] == Decimal("1.5")


# --- what is sent


class Wire:
    """Where py-amqp writes to."""

    def __init__(self):
        self.written = b""
        connection = SimpleNamespace(frame_max=FRAME_MAX, bytes_sent=0)
        self.write_frame = method_framing.frame_writer(connection, self)

    def write(self, data):
        self.written += bytes(data)


def amqp_properties(found):
    """Our properties under py-amqp's names."""
    values = found.as_dict()
    if "headers" in values:
        values["application_headers"] = values.pop("headers")
    return values


def amqp_publish(channel, delivery, mandatory):
    wire = Wire()
    arguments = serialization.dumps("Bssbb", (0, delivery.exchange, delivery.routing_key, mandatory, False))
    content = basic_message.Message(delivery.body, **amqp_properties(delivery.properties))
    wire.write_frame(1, channel, (60, 40), arguments, content)
    return wire.written


def chunks(data):
    return (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))


def pamqp_publish(channel, delivery, mandatory):
    values = delivery.properties.as_dict()
    values["message_type"] = values.pop("type", None)
    if values.get("timestamp") is not None:
        values["timestamp"] = datetime.fromtimestamp(values["timestamp"], timezone.utc)
    values["headers"] = as_pamqp(values["headers"])
    return b"".join(
        pamqp_frame.marshal(part, channel)
        for part in (
            commands.Basic.Publish(0, delivery.exchange, delivery.routing_key, mandatory),
            pamqp_frame.header.ContentHeader(0, len(delivery.body), commands.Basic.Properties(**values)),
            *(
                pamqp_frame.body.ContentBody(delivery.body[at : at + CHUNK])
                for at in range(0, len(delivery.body), CHUNK)
            ),
        )
    )


@settings(deadline=None, max_examples=70)
@given(st.lists(st.tuples(channel_number, key, key, properties, body, st.booleans()), min_size=1, max_size=4))
def test_publish_is_py_amqps(messages):
    encoder = FrameEncoder(FRAME_MAX)
    for channel, exchange, routing_key, found, data, mandatory in messages:
        delivery = Delivery(exchange, routing_key, found, data)
        theirs = amqp_publish(channel, delivery, mandatory)
        assert encoder.publish(channel, delivery, mandatory) == theirs
        assert encoder.publish_many(channel, [delivery], 0, 1, mandatory) == (theirs, 1)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 60, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_publish_of_each_size_is_that_of_both(size):
    delivery = Delivery("ex", "rk", Properties("text/plain", "binary", {"k": ["a", None]}, 2, 0), b"x" * size)
    ours = FrameEncoder(FRAME_MAX).publish(9, delivery)
    assert ours == amqp_publish(9, delivery, False) == pamqp_publish(9, delivery, False)


same_in_both = st.builds(
    Properties,
    content_type=short.filter(lambda text: text != ""),
    headers=st.dictionaries(names, st.text(max_size=5) | st.booleans(), min_size=1, max_size=4).map(
        lambda table: dict(sorted(table.items()))
    ),
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.none() | st.integers(1, 31),
    correlation_id=short.filter(lambda text: text != ""),
    timestamp=st.none() | st.integers(1, 2**32 - 1),
    type=short.filter(lambda text: text != ""),
)


@settings(deadline=None, max_examples=150)
@given(channel_number, same_in_both, body, st.booleans())
def test_publish_is_pamqps(channel, found, data, mandatory):
    delivery = Delivery("orders", "order.new", found, data)
    assert FrameEncoder(FRAME_MAX).publish(channel, delivery, mandatory) == pamqp_publish(channel, delivery, mandatory)


@settings(deadline=None, max_examples=70)
@given(channel_number, st.integers(0, 2**63 - 1), st.booleans(), st.booleans(), key)
def test_settling_and_get_are_those_of_both(channel, tag, one, two, queue):
    encoder = FrameEncoder()
    for ours, theirs, number, arguments in (
        (encoder.ack(channel, tag, one), commands.Basic.Ack(tag, one), 80, ("Lb", (tag, one))),
        (encoder.reject(channel, tag, one), commands.Basic.Reject(tag, one), 90, ("Lb", (tag, one))),
        (encoder.nack(channel, tag, one, two), commands.Basic.Nack(tag, one, two), 120, ("Lbb", (tag, one, two))),
        (encoder.get(channel, queue, one), None, 70, ("Bsb", (0, queue, one))),
    ):
        wire = Wire()
        wire.write_frame(1, channel, (60, number), serialization.dumps(*arguments), None)
        assert ours == wire.written == encoder.method(channel, 60, number, serialization.dumps(*arguments))
        if theirs is not None:
            assert ours == pamqp_frame.marshal(theirs, channel)


def test_heartbeat_is_that_of_both():
    wire = Wire()
    wire.write_frame(8, 0, None, None, None)
    assert wire.written == pamqp_frame.heartbeat.Heartbeat().marshal() == HEARTBEAT_FRAME


# --- what comes in


def split(data):
    while data:
        kind, channel, size = struct.unpack_from(">BHI", data)
        yield kind, channel, data[7 : 7 + size]
        data = data[8 + size :]


FORMATS = {(60, 60): "sLbss", (60, 71): "Lbssl", (60, 50): "Bsss", (60, 80): "Lb", (60, 120): "Lb"}


def amqp_events(data):
    """What py-amqp makes of a stream: (channel, method, arguments, properties, body)."""
    found = []

    def take(channel, signature, payload, content):
        arguments = serialization.loads(FORMATS[signature], payload, 4)[0]
        parts = (None, None) if content is None else (content.properties, bytes(content.body or b""))
        found.append((channel, signature, arguments, *parts))

    on_frame = method_framing.frame_handler(SimpleNamespace(bytes_recv=0), take)
    for frame in split(data):
        on_frame(frame)
    return found


def our_events(data, channels):
    decoder = FrameDecoder(FRAME_MAX)
    for channel in channels:
        decoder.open(channel)
    decoder.receive_data(data)
    return [as_theirs(event) for event in iter(decoder.next_event, None)]


def as_theirs(event):
    if isinstance(event, ConfirmReceived):
        return event.channel, (60, 80 if event.accepted else 120), [event.delivery_tag, event.multiple], None, None
    delivery = event.delivery if isinstance(event, Returned) else event
    assert delivery.error is None
    place = [delivery.exchange, delivery.routing_key]
    if isinstance(event, Returned):
        signature, arguments = (60, 50), [event.reply_code, event.reply_text, *place]
    elif delivery.consumer_tag is None:
        signature = (60, 71)
        arguments = [delivery.delivery_tag, delivery.redelivered, *place, delivery.message_count]
    else:
        signature, arguments = (60, 60), [delivery.consumer_tag, delivery.delivery_tag, delivery.redelivered, *place]
    return event.channel, signature, arguments, amqp_properties(delivery.properties), delivery.body


tag = st.integers(0, 2**64 - 1)
delivery_tag = st.integers(0, 2**52)  # no broker counts further, and we refuse it
methods = st.one_of(
    st.tuples(st.just((60, 60)), st.tuples(key, delivery_tag, st.booleans(), key, key)),
    st.tuples(st.just((60, 71)), st.tuples(delivery_tag, st.booleans(), key, key, st.integers(0, 2**32 - 1))),
    st.tuples(st.just((60, 50)), st.tuples(st.integers(0, 0xFFFF), key, key, key)),
    st.tuples(st.sampled_from([(60, 80), (60, 120)]), st.tuples(tag, st.booleans())),
)
# Bodies stay bytes here: py-amqp makes text of them later, in its channel.
of_bytes = properties.map(lambda found: found.replace(content_encoding=None))
all_tables = tables_of(plain | st.integers(-(2**63), 2**63 - 1))


@settings(deadline=None, max_examples=70)
@given(st.lists(st.tuples(st.integers(1, 3), methods, of_bytes, all_tables, body), max_size=5))
def test_events_are_py_amqps(messages):
    wire = Wire()
    for channel, (signature, arguments), found, headers, data in messages:
        content = None
        if signature not in {(60, 80), (60, 120)}:
            content = basic_message.Message(data, **amqp_properties(found.replace(headers=headers)))
        wire.write_frame(1, channel, signature, serialization.dumps(FORMATS[signature], arguments), content)
    theirs = amqp_events(wire.written)
    for event in theirs:
        if event[3] is not None and not event[3].get("application_headers"):
            event[3].pop("application_headers", None)  # no headers and empty ones are one to us
    assert our_events(wire.written, range(1, 4)) == theirs


@settings(deadline=None, max_examples=70)
@given(of_bytes, key, key)
def test_both_read_what_we_publish(found, exchange, routing_key):
    """Publishing and delivery differ in the method alone."""
    sent = FrameEncoder(FRAME_MAX).publish(1, Delivery(exchange, routing_key, found, b"body"))
    (_, _, publish), (_, _, header), _ = split(sent)
    content = basic_message.Message(frame_method=(60, 60), frame_args=b"")
    content.inbound_header(header)
    assert content.properties == amqp_properties(found)
    assert serialization.loads("Bssbb", publish, 4)[0] == [0, exchange, routing_key, False, False]
    size, channel, theirs = pamqp_frame.unmarshal(sent)
    assert (size, channel) == (len(publish) + 8, 1)
    assert (theirs.exchange, theirs.routing_key, theirs.mandatory) == (exchange, routing_key, False)
