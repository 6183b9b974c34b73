"""Messages from clients of MQTT 5, as RabbitMQ 4 hands them to those of AMQP 0-9-1, and an answer to one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kombulite import Connection, Exchange, Queue
from tests.amqp import mqtt
from tests.conftest import missing
from tests.servers import RabbitMQServer, Unavailable, free_port, version

TIMEOUT = 20.0  # seconds
SENSORS = Queue("sensors", Exchange("amq.topic", "topic", no_declare=True), routing_key="sensors.#")


@pytest.fixture
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Connection, mqtt.Client]]:
    """A connection of ours, and a client of MQTT, to the same broker."""
    try:
        if int(version("rabbitmqctl").split(".")[0]) < 4:
            pytest.skip("RabbitMQ takes clients of MQTT 5 from version 3.13 on")
    except Unavailable as error:
        missing(request, str(error))
    port = free_port()
    with RabbitMQServer({"mqtt.listeners.tcp.1": f"127.0.0.1:{port}"}, plugins=("rabbitmq_mqtt",)) as server:
        client = mqtt.Client(port)
        with Connection(server.url) as connection:
            SENSORS(connection.channel()).declare()
            yield connection, client
        client.close()


def test_messages_of_mqtt_and_an_answer(both: tuple[Connection, mqtt.Client]) -> None:
    connection, client = both
    properties = [
        mqtt.content_type("application/json"),
        mqtt.response_topic("answers/1"),
        mqtt.correlation_data(b"call-1"),
        mqtt.user_property("unit", "C"),
        mqtt.user_property("unit", "F"),
    ]
    client.subscribe("answers/1")
    client.publish("sensors/kitchen/temperature", b"21.5", *properties)
    client.publish("sensors/cellar", b"\xff", mqtt.correlation_data(b"\xff\x00"))
    with connection.SimpleQueue(SENSORS) as queue:
        first, second = queue.get(timeout=TIMEOUT), queue.get(timeout=TIMEOUT)
        assert first.payload == 21.5
        assert first.delivery_info["routing_key"] == "sensors.kitchen.temperature"
        assert first.properties["correlation_id"] == "call-1"
        assert first.headers == {"unit": "C", "x-reply-to-topic": "answers.1"}
        assert (second.body, second.headers) == (b"\xff", {"x-correlation-id": b"\xff\x00"})
        connection.Producer().publish(
            "warm", exchange="amq.topic", routing_key=first.headers["x-reply-to-topic"], correlation_id="call-1"
        )
        topic, rest = client.receive()
        assert topic == "answers/1"
        assert rest.endswith(b"warm")
        assert mqtt.correlation_data(b"call-1") in rest
        first.ack()
        second.ack()
