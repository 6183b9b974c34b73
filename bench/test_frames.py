"""The AMQP codec alone, beside py-amqp's: no broker, no socket."""

from __future__ import annotations

import struct
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import pytest
from amqp import basic_message, method_framing, serialization
from kombu.utils import json as kombu_json

from bench.duel import Side, calls, duel
from bench.workloads import SMALL
from kombulite._core import Delivery, FrameDecoder, FrameEncoder, Properties

FRAME_MAX = 131072
CHUNK = FRAME_MAX - 8
BODY = kombu_json.dumps(SMALL).encode()
SMALL_PROPERTIES = Properties("application/json", "utf-8", None, 2, 0)
DIFFERENT = 1000  # messages of which no two have the same headers


def celery_properties(i: int) -> Properties:
    """What Celery sends with a task: 20 headers, of which no message has the same."""
    name = f"{i:08x}-d236-4ff5-8b58-81008c869594"
    headers = {
        "lang": "py", "task": f"shop.tasks.order_{i}", "id": name, "shadow": None, "eta": None, "expires": None,
        "group": f"g{i}", "group_index": i, "retries": i % 3, "timelimit": [None, i], "root_id": name,
        "parent_id": f"p{i}", "argsrepr": f"({i},)", "kwargsrepr": f"{{'n': {i}}}", "origin": f"gen{i}@worker",
        "ignore_result": bool(i % 2), "replaced_task_nesting": i, "stamped_headers": None, "stamps": {"n": i},
        "span": f"{i:016x}",
    }  # fmt: skip
    return Properties(
        "application/json", "utf-8", headers, 2, 0, correlation_id=name, reply_to="answers", message_id=f"m{i}"
    )


class Writer:
    """py-amqp's writer of frames, and a transport that forgets what it wrote but for the last message."""

    def __init__(self) -> None:
        self.last: list[Any] = []
        connection = SimpleNamespace(frame_max=FRAME_MAX, bytes_sent=0)
        self._write_frame = method_framing.frame_writer(connection, SimpleNamespace(write=self._write))

    def _write(self, data: Any) -> None:
        self.last.append(data)

    def publish(self, body: bytes, properties: dict[str, Any]) -> None:
        """What its ``Channel.basic_publish`` does, without its checks of the connection."""
        self.last.clear()
        arguments = serialization.dumps("Bssbb", (0, "orders", "order.created", False, False))
        self._write_frame(1, 1, (60, 40), arguments, basic_message.Message(body, **properties))

    def written(self) -> bytes:
        return b"".join(map(bytes, self.last))


def amqp_names(properties: Properties) -> dict[str, Any]:
    """Properties under py-amqp's names; kombu sends empty headers too."""
    values = properties.as_dict()
    values["application_headers"] = values.pop("headers", {})
    return values


def outgoing(body: bytes, properties: Properties) -> Delivery:
    return Delivery("orders", "order.created", properties, body)


# --- to the wire --------------------------------------------------------------------------------------------------


def test_publish(benchmark: Any) -> None:
    """A small message to the same place as the last one; py-amqp's channel and kombu's producer not counted."""
    encoder, writer = FrameEncoder(), Writer()
    values = amqp_names(SMALL_PROPERTIES)
    writer.publish(BODY, values)
    assert encoder.publish(1, outgoing(BODY, SMALL_PROPERTIES)) == writer.written()
    duel(
        benchmark,
        "AMQP: encode a publish",
        calls(lambda: encoder.publish(1, Delivery("orders", "order.created", SMALL_PROPERTIES, BODY))),
        calls(writer.publish, BODY, values),
        at_least=15,
        rival="py-amqp",
    )


def test_publish_many(benchmark: Any) -> None:
    encoder, writer = FrameEncoder(), Writer()
    deliveries = [outgoing(BODY, SMALL_PROPERTIES)] * 100
    values = amqp_names(SMALL_PROPERTIES)

    def hundred() -> None:
        for _ in deliveries:
            writer.publish(BODY, values)

    duel(
        benchmark,
        "AMQP: encode 100 publishes together",
        calls(encoder.publish_many, 1, deliveries, 0, 1_000_000),
        calls(hundred),
        rival="py-amqp",
    )


def test_publish_with_headers(benchmark: Any) -> None:
    """20 headers, all others than the last message's: properties are made anew each time, nothing is found encoded."""
    encoder, writer = FrameEncoder(), Writer()
    made = [celery_properties(i) for i in range(DIFFERENT)]
    writer.publish(BODY, amqp_names(made[0]))
    assert encoder.publish(1, outgoing(BODY, made[0])) == writer.written()
    fresh, values = cycle([properties.__reduce__()[1] for properties in made]), cycle(map(amqp_names, made))
    duel(
        benchmark,
        "AMQP: encode a publish with 20 headers, never the same",
        calls(lambda: encoder.publish(1, outgoing(BODY, Properties(*next(fresh))))),
        calls(lambda: writer.publish(BODY, next(values))),
        rival="py-amqp",
    )


def test_publish_large(benchmark: Any) -> None:
    encoder, writer, body = FrameEncoder(), Writer(), bytes(1_000_000)
    delivery, values = outgoing(body, SMALL_PROPERTIES), amqp_names(SMALL_PROPERTIES)
    writer.publish(body, values)
    assert encoder.publish(1, delivery) == writer.written()
    duel(
        benchmark,
        "AMQP: encode a body of 1 MB",
        calls(encoder.publish, 1, delivery),
        calls(writer.publish, body, values),
        rival="py-amqp",
    )


# --- from the wire ------------------------------------------------------------------------------------------------


def delivered(tag: int, body: bytes, properties: Properties) -> bytes:
    """basic.deliver and its content."""
    sent = FrameEncoder(FRAME_MAX).publish(1, outgoing(body, properties))
    arguments = serialization.dumps("sLbss", ("None1", tag, False, "orders", "order.created"))
    return FrameEncoder().method(1, 60, 60, arguments) + sent[8 + struct.unpack_from(">I", sent, 3)[0] :]


def split(data: bytes) -> list[tuple[int, int, bytes]]:
    """Frames as py-amqp's transport gives them to its handler."""
    frames, at = [], 0
    while at < len(data):
        kind, channel, size = struct.unpack_from(">BHI", data, at)
        frames.append((kind, channel, data[at + 7 : at + 7 + size]))
        at += size + 8
    return frames


def decoding(messages: list[bytes], copied: bool) -> tuple[Side, Side]:
    """Both sides. py-amqp's frames are split beforehand, ours are not.

    ``copied``: py-amqp takes the bytes out of where they came once, as we do; that counts where a body is long.
    """
    decoder = FrameDecoder(FRAME_MAX)
    decoder.open(1)
    stream, frames = b"".join(messages), split(b"".join(messages))
    made: list[tuple[Any, Any]] = []

    def take(channel: int, signature: tuple[int, int], payload: bytes, content: Any) -> None:
        arguments = serialization.loads("sLbss", payload, 4)[0]
        content.delivery_info = dict(
            zip(("consumer_tag", "delivery_tag", "redelivered", "exchange", "routing_key"), arguments, strict=True)
        )
        encoding = content.properties.get("content_encoding")
        if not made:
            made.append((content.delivery_info, content))
        content.body = content.body.decode(encoding) if encoding else content.body

    on_frame = method_framing.frame_handler(SimpleNamespace(bytes_recv=0), take)

    def ours(n: int) -> None:
        for _ in range(n):
            decoder.receive_data(stream)
            while decoder.next_event() is not None:
                pass

    def theirs(n: int) -> None:
        for _ in range(n):
            for kind, channel, payload in frames:
                on_frame((kind, channel, bytes(memoryview(payload)) if copied else payload))

    theirs(1)
    decoder.receive_data(messages[0])
    event: Any = decoder.next_event()
    info, content = made[0]
    assert event.properties.as_dict() == {
        {"application_headers": "headers"}.get(name, name): value
        for name, value in content.properties.items()
        if value != {}
    }
    assert (event.body, event.delivery_tag, event.exchange) == (content.body, info["delivery_tag"], info["exchange"])
    return Side(ours), Side(theirs)


@pytest.mark.parametrize(
    ("what", "messages", "at_least"),
    [
        ("100 deliveries", [delivered(i, BODY, SMALL_PROPERTIES) for i in range(100)], 10),
        (
            "100 deliveries with 20 headers, never the same",
            [delivered(i, BODY, celery_properties(i)) for i in range(100)],
            None,
        ),
        ("a body of 1 MB", [delivered(1, b"x" * 1_000_000, SMALL_PROPERTIES)], None),
    ],
    ids=["small", "headers", "large"],
)
def test_decode(benchmark: Any, what: str, messages: list[bytes], at_least: float | None) -> None:
    ours, theirs = decoding(messages, copied=at_least is None)
    duel(benchmark, f"AMQP: decode {what}", ours, theirs, at_least=at_least, rival="py-amqp")
