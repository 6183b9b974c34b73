"""What other clients and newer brokers make of headers and bodies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kombulite import Connection, Queue
from kombulite.exceptions import ChannelError, PreconditionFailed


def test_bytes_that_are_no_text_come_back_as_bytes(connection: Connection, queue: Queue) -> None:
    headers = {"raw": b"\xff\x00", "text": b"text", "nested": {"raw": [b"\x80"]}}
    connection.Producer().publish("x", routing_key=queue.name, headers=headers)
    message = queue.get()
    assert message is not None
    assert message.headers == {"raw": b"\xff\x00", "text": "text", "nested": {"raw": [b"\x80"]}}


@pytest.mark.parametrize("confirms", [False, True])
def test_a_message_that_the_broker_finds_too_large_is_refused(
    connect: Callable[..., Connection], queue: Queue, confirms: bool
) -> None:
    connection = connect(transport_options={"confirm_publish": confirms})
    if connection.connect().server_properties["version"] < "4":
        pytest.skip("this RabbitMQ takes larger ones")
    producer = connection.Producer(connection.channel())
    with pytest.raises(PreconditionFailed, match="larger than configured max size"):
        for _ in range(2):  # without confirms the second one, at the latest
            producer.publish(b"x" * (17 << 20), routing_key=queue.name)
            producer.channel.queue_declare(queue.name, passive=True)
    assert connection.connected


def test_an_unknown_exchange_type_is_refused(connect: Callable[..., Connection], name: Callable[[str], str]) -> None:
    connection = connect()
    channel = connection.channel()
    with pytest.raises((ChannelError, *connection.connection_errors)) as caught:
        channel.exchange_declare(name("exchange"), "x-no-such-type")
    assert caught.value.code in (406, 503)  # type: ignore[attr-defined]
    assert connection.connected == (caught.value.code == 406)  # type: ignore[attr-defined]
