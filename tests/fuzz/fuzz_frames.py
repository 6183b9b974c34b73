"""Fuzzing the frame decoder: nothing but a ProtocolError may come out of it, and no slicing may change its events.

``python -m tests.fuzz.fuzz_frames [--seconds N] [--seed N]`` mutates known streams; with atheris installed,
``python -m tests.fuzz.fuzz_frames --atheris [libFuzzer options]`` is guided by coverage.

An input starts with an octet. If it is odd, what follows is a script (type octet, channel octet, size short, payload,
and so on) that is made into whole frames, so that mutations get beyond the framing; otherwise it is the stream itself.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kombulite._core import (
    HEARTBEAT_FRAME,
    Delivery,
    FrameDecoder,
    FrameEncoder,
    NotEncodable,
    Properties,
    ProtocolError,
    ReturnReceived,
)
from tests.fuzz.engine import Target

FRAME_MAX = 4096
CHANNELS = (1, 2)
RAW, SCRIPT = b"\x00", b"\x01"

encoder = FrameEncoder(2**31 - 1)  # numbers take more room than those who sent them may have given them


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def stream_of(data: bytes) -> bytes:
    """The stream that an input stands for."""
    if not data or not data[0] & 1:
        return data[1:]
    frames, at = [], 1
    while at + 4 <= len(data):
        kind, channel, size = struct.unpack_from(">BBH", data, at)
        payload = data[at + 4 : at + 4 + size]
        frames.append(frame(kind, channel, payload))
        at += 4 + size
    return b"".join(frames)


def receive(decoder: FrameDecoder, data: bytes) -> None:
    decoder.receive_data(data)


def fill(decoder: FrameDecoder, data: bytes) -> None:
    """Take bytes as a transport does, read into the decoder."""
    with memoryview(decoder) as room:  # type: ignore[arg-type]
        assert len(room) <= 1_000_000
        room[: len(data)] = data
    decoder.received(len(data))


def decode(slices: Iterable[bytes], put: Callable[[FrameDecoder, bytes], None]) -> tuple[list[Any], str | None]:
    """The events, and the error at the end if there is one."""
    decoder, events = FrameDecoder(FRAME_MAX), []
    for channel in CHANNELS:
        decoder.open(channel)
    try:
        for part in slices:
            put(decoder, part)
            while (event := decoder.next_event()) is not None:
                events.append(event)
    except ProtocolError as error:
        return events, f"{type(error).__name__}: {error}"
    return events, None


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def told(event: Any) -> str:
    """All that an event says. As text, in which what is no number equals itself."""
    if isinstance(event, ReturnReceived):
        return f"{event!r} {told(event.delivery)}"
    if not isinstance(event, Delivery):
        return f"{event!r} {getattr(event, 'arguments', None)!r}"
    return repr((event.channel, event.consumer_tag, event.delivery_tag, event.redelivered, event.exchange,
                 event.routing_key, event.message_count, event.properties, event.body, event.error))  # fmt: skip


def fuzz_one(data: bytes) -> None:
    """Decode ``data``; raises whatever is a defect."""
    stream = stream_of(data)
    events, error = decode([stream], receive)
    expected = [told(event) for event in events], error
    step = 1 + len(data) % 11
    for put in (receive, fill):
        again, error = decode(cut(stream, step), put)
        assert ([told(event) for event in again], error) == expected
    deliveries = [event.delivery if isinstance(event, ReturnReceived) else event for event in events]
    deliveries = [event for event in deliveries if isinstance(event, Delivery)]
    assert sum(len(delivery.body) for delivery in deliveries) <= len(stream)
    for delivery in deliveries:
        check(delivery)


def check(delivery: Delivery) -> None:
    """What a caller may rely on without looking; and it can be sent on, and comes back as it was."""
    assert isinstance(delivery.exchange, str)
    assert isinstance(delivery.routing_key, str)
    assert isinstance(delivery.body, (str, bytes))
    assert isinstance(delivery.properties, Properties)
    assert isinstance(delivery.error, (ProtocolError, type(None)))
    if delivery.error is not None or isinstance(delivery.body, str):
        return
    decoder = FrameDecoder(2**31 - 1)
    decoder.open(1)
    try:
        sent = encoder.publish(1, delivery)
    except NotEncodable as error:
        if "more than 64 bits" in str(error):  # a time beyond Python's, which is a number then
            return
        raise
    head = 8 + struct.unpack_from(">I", sent, 3)[0]
    place = sent[13 : head - 2]  # exchange and routing key, as in basic.deliver
    decoder.receive_data(frame(1, 1, b"\x00\x3c\x00\x3c\x00" + bytes(9) + place) + sent[head:])
    again = decoder.next_event()
    assert isinstance(again, Delivery)
    assert encoder.publish(1, again) == sent


def script(stream: bytes) -> bytes:
    """The input that stands for a stream."""
    parts, at = [SCRIPT], 0
    while at < len(stream):
        kind, channel, size = struct.unpack_from(">BHI", stream, at)
        parts.append(struct.pack(">BBH", kind, channel, size) + stream[at + 7 : at + 7 + size])
        at += size + 8
    return b"".join(parts)


HEADERS = {"s": "é", "n": [1, -(2**40), True, None, 1.5, b"\xff"], "t": {"deep": {"er": {}}}, "compression": "gzip"}
DELIVER = frame(1, 1, bytes.fromhex("003c003c 02") + b"ct" + bytes(7) + b"\x07\x00\x02ex\x02rk")
GET_OK = frame(1, 2, bytes.fromhex("003c0047") + bytes(7) + b"\x08\x01\x00\x01q" + bytes(4))
RETURN = frame(1, 1, bytes.fromhex("003c0032 0138 08") + b"NO_ROUTE\x02ex\x02rk")


def content(channel: int, properties: Properties, *bodies: bytes) -> bytes:
    """Content header and body frames, the bodies where they were cut."""
    sent = encoder.publish(channel, Delivery("", "", properties, b"".join(bodies)))
    header = sent[8 + struct.unpack_from(">I", sent, 3)[0] :]
    header = header[: 8 + struct.unpack_from(">I", header, 3)[0]]
    return header + b"".join(frame(3, channel, body) for body in bodies)


def streams() -> list[bytes]:
    """Streams of every kind of event, none with an error."""
    full = Properties("a", "utf-8", HEADERS, 2, 9, "c", "r", "2500", "m", 1767323045, "t", "u", "app", "cl")
    latin, plain = Properties(content_encoding="latin-1"), Properties()
    methods = [
        frame(1, 0, bytes.fromhex("000a0032 0140 00")),
        frame(1, 1, bytes.fromhex("003c0050") + bytes(7) + b"\x05\x01"),
        frame(1, 2, bytes.fromhex("003c0078") + bytes(7) + b"\x05\x00"),
        frame(1, 1, bytes.fromhex("003c0048 00")),
    ]
    return [
        DELIVER + content(1, full, b"body"),
        DELIVER + content(1, latin, b"\xe9", b"", b"text") + HEARTBEAT_FRAME + DELIVER + content(1, latin, b"x"),
        GET_OK + content(2, plain),
        GET_OK + DELIVER + content(2, full, b"1", b"2") + content(1, plain, b"abc", b"def"),
        RETURN + content(1, full, b"back") + b"".join(methods),
        DELIVER + frame(2, 1, bytes.fromhex("003c0000") + bytes(8) + b"\x80\x00\x05ab"),
    ]


def seeds() -> list[bytes]:
    return [made for stream in streams() for made in (RAW + stream, script(stream))]


SCRAPS = [
    b"\xce", b"\x00", b"\xff", b"\x01", b"\x7f", b"\x80", b"\xff\xff", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff",
    bytes(4), bytes(8), b"\x00\x00\x10\x00", b"\x00\x3c", b"\x00\x3c\x00\x3c", b"\x00\x00\x00\x00\x20\x00\x00\x00",
    b"\xff\xff\xff\xfc", b"\x01k", b"\x05utf-8", b"\x04idna", b"\x06utf-16", b"\x05utf-7", b"\x0eunicode_escape",
    *(b"\x01k" + bytes([tag]) for tag in b"tbBsuUIilLfdDSxTFAV?"),
    b"\x01kD\xff\x80\x00\x00\x00", b"\x01kT" + b"\xff" * 8, b"\x01kd\x7f\xf8" + bytes(6), b"\x01kx\x00\x00\x00\x01a",
    b"A\x00\x00\x00\x05" * 70, b"F\x00\x00\x00\x07\x01k" * 70, HEARTBEAT_FRAME, DELIVER, GET_OK, RETURN,
    frame(3, 1, b""), frame(3, 1, b"x"), frame(2, 1, bytes.fromhex("003c0000") + bytes(8) + b"\x00\x00"),
]  # fmt: skip

target = Target("frames", fuzz_one, seeds(), SCRAPS)

if __name__ == "__main__":
    target.main(__doc__)
