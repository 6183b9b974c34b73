"""Bodies of clients of AMQP 1.0, as RabbitMQ 4 hands them to those of AMQP 0-9-1."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone
from typing import Any, NamedTuple

import pytest

from kombulite import Connection, Queue, aio
from kombulite.exceptions import DecodeError
from tests.aio.conftest import run
from tests.amqp import amqp10

PROPERTIES = amqp10.described(0x73, *6 * [amqp10.NULL], amqp10.symbol("application/json"))


class Sent(NamedTuple):
    """The sections of a message, and the payload to be had; None: there is none."""

    sections: bytes
    payload: Any


VALUE, SEQUENCE, DATA = b"\x00\x53\x77", b"\x00\x53\x76", b"\x00\x53\x75"
SENT = [
    Sent(VALUE + b"\x40", None),
    Sent(VALUE + b"\x41", True),
    Sent(VALUE + b"\x54\xf9", -7),
    Sent(VALUE + b"\x80" + b"\xff" * 8, 2**64 - 1),
    Sent(VALUE + b"\x82\x40\x04" + bytes(6), 2.5),
    Sent(VALUE + b"\xa1\x06h\xc3\xa9llo", "héllo"),
    Sent(VALUE + b"\xa0\x02\x00\xff", b"\x00\xff"),
    Sent(VALUE + b"\xc0\x07\x03\x54\x01\xa1\x01a\x40", [1, "a", None]),
    Sent(VALUE + b"\xc1\x0a\x04\xa1\x01k\x45\xa1\x01n\x54\x02", {"k": [], "n": 2}),
    Sent(VALUE + b"\x83\x00\x00\x01\x8b\xcf\xe5\x68\x7b", datetime(2023, 11, 14, 22, 13, 20, 123000, timezone.utc)),
    Sent(VALUE + b"\x98" + bytes(15) + b"\x05", uuid.UUID(int=5)),
    Sent(SEQUENCE + b"\xc0\x03\x01\x54\x01" + SEQUENCE + b"\xc0\x03\x01\x54\x02", [1, 2]),
    Sent(PROPERTIES + DATA + b"\xa0\x06[1, 2]", [1, 2]),
    Sent(PROPERTIES + DATA + b"\xa0\x03[1," + DATA + b"\xa0\x03 2]", [1, 2]),
    Sent(PROPERTIES + VALUE + b"\xa1\x06[1, 2]", "[1, 2]"),  # its content type is about nothing
]
UNREADABLE = VALUE + b"\x74" + bytes(4)  # a decimal


@pytest.fixture
def sent(connection: Connection, queue: Queue, broker_version: tuple[int, ...]) -> Queue:
    """A queue with all of them, and one that has no value in Python among them."""
    if broker_version < (4,):
        pytest.skip("RabbitMQ takes clients of AMQP 1.0 from version 4 on")
    messages = [each.sections for each in SENT]
    amqp10.send(connection.port or 5672, queue.name, [*messages[:3], UNREADABLE, *messages[3:]])
    return queue


def test_values_come_as_those_of_python(connection: Connection, sent: Queue) -> None:
    payloads: list[Any] = []
    failed: list[Exception] = []

    def receive(body: Any, message: Any) -> None:
        payloads.append(body)
        message.ack()

    def note(message: Any, error: Exception) -> None:
        failed.append(error)
        message.ack()

    with connection.Consumer(sent, callbacks=[receive], on_decode_error=note, accept=["json"]):
        while len(payloads) < len(SENT):
            connection.drain_events(timeout=20)
    assert payloads == [each.payload for each in SENT]
    assert [type(error) for error in failed] == [DecodeError]


def test_values_come_as_those_of_python_on_an_event_loop(amqp_url: str, sent: Queue) -> None:
    async def main() -> list[Any]:
        payloads: list[Any] = []
        async with aio.connect(amqp_url) as connection, connection.consume(sent, prefetch=20) as messages:
            while len(payloads) < len(SENT) + 1:
                message = await messages.next(20)
                assert message is not None
                try:
                    payloads.append(message.payload)
                except DecodeError as error:
                    payloads.append(type(error))
                await message.ack()
        return payloads

    expected = [each.payload for each in SENT]
    assert run(main) == [*expected[:3], DecodeError, *expected[3:]]
