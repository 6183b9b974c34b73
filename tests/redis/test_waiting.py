"""Waiting for messages with what a protocol and a user's rights allow: the server wakes us, or we look now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, uuid
from kombulite.asynchronous import Hub
from tests.redis.conftest import drain
from tests.servers import RedisServer

#: As kombu's documentation recommends, to spare the server; nobody waits for that.
PATIENT = {"polling_interval": 600, "health_check_interval": 0}


@pytest.fixture(params=[2, 3])
def waiting(request: pytest.FixtureRequest, redis_url: str, client: redis.Redis) -> Iterator[Connection]:
    """A connection that no look now and then, and no health check, brings a message."""
    with Connection(redis_url, transport_options={**PATIENT, "protocol": request.param}) as connection:
        connection.connect()
        yield connection


@pytest.fixture(autouse=True)
def no_looks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "waiting" in request.fixturenames:
        monkeypatch.setattr("kombulite.brokers.redis.receiver.POLLING_INTERVAL", 600)


def put(publish: Any, connection: Connection, got: list[Any]) -> None:
    """Publish to a consumer that waits already; it gets the message, or the test ends after 10 seconds."""
    timer = threading.Timer(0.1, publish)
    timer.start()
    try:
        drain(connection, lambda: got, step=10)
    finally:
        timer.join()


@pytest.mark.parametrize("priority", [0, 5, 9])
@pytest.mark.parametrize("library", ["ours", "theirs"])
def test_server_wakes_an_idle_consumer_of_many_queues(waiting, request, name, library, priority):
    publisher = request.getfixturevalue(library)().channel()
    producer = (Producer if library == "ours" else kombu.Producer)(publisher, serializer="json")
    queues, got = [Queue(f"{name}.{i}") for i in range(20)], []
    with Consumer(waiting, queues, callbacks=[lambda body, message: (got.append(body), message.ack())]):
        for queue in (queues[0], queues[19], queues[0]):
            put(lambda: producer.publish("it", routing_key=queue.name, priority=priority), waiting, got)  # noqa: B023
            assert got.pop() == "it"
    assert len(waiting.transport._streams) <= 3


def test_event_loop_is_woken(waiting, ours, name):
    hub, got = Hub(), []
    producer = Producer(ours().channel())
    with Consumer(waiting, Queue(name), on_message=lambda message: got.append(message.ack())):
        waiting.register_with_event_loop(hub)
        hub.call_later(600, lambda: None)
        for count in range(1, 4):
            timer = threading.Timer(0.1, producer.publish, [count], {"routing_key": name})
            timer.start()
            deadline = time.monotonic() + 20
            while len(got) < count and time.monotonic() < deadline:
                hub.run_once()
            timer.join()
            assert len(got) == count
    hub.close()


def test_fanout_and_lists_wake_the_same_consumer(waiting, ours, name):
    got: list[Any] = []
    fanout = Queue(f"{name}.f", Exchange(f"{name}.f", "fanout"))
    producer = Producer(ours().channel(), serializer="json")
    with Consumer(waiting, [fanout, Queue(name)], callbacks=[lambda body, message: (got.append(body), message.ack())]):
        put(lambda: producer.publish("list", routing_key=name), waiting, got)
        assert got.pop() == "list"
        put(lambda: producer.publish("fanout", exchange=fanout.exchange), waiting, got)
        assert got.pop() == "fanout"


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
def test_waiting_again_after_a_loss(waiting, ours, client, name, kind):
    got: list[Any] = []
    with Consumer(waiting, Queue(name), callbacks=[lambda body, message: (got.append(body), message.ack())]):
        with pytest.raises(TimeoutError):
            waiting.drain_events(timeout=0.1)
        client.execute_command("CLIENT", "KILL", "TYPE", kind)
        try:
            while True:
                waiting.drain_events(timeout=0.5)
        except TimeoutError:  # with RESP3 there is none of the kind
            assert waiting.connected
        except waiting.recoverable_connection_errors:
            waiting.ensure_connection(timeout=10)
        producer = Producer(ours().channel())
        put(lambda: producer.publish("it", routing_key=name), waiting, got)


@pytest.mark.parametrize("rules", [["-client"], ["-client|tracking"], ["resetchannels"]])
def test_without_the_right_to_be_told_there_are_looks_and_a_warning(start_server, ours, name, rules, caplog):
    """At least once a second, whatever kombu's documentation says of ``polling_interval``."""
    server = start_server(RedisServer)
    user = uuid()
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", user, "on", ">pw", "+@all", "~*", "&*", *rules)
    options = {**PATIENT, "protocol": 2}
    got: list[Any] = []
    with Connection(f"redis://{user}:pw@127.0.0.1:{server.port}", transport_options=options) as connection:
        with Consumer(connection, Queue(name), callbacks=[lambda body, message: (got.append(body), message.ack())]):
            with Connection(server.url) as other:
                producer = Producer(other)
                put(lambda: producer.publish("it", routing_key=name), connection, got)
    assert got == ["it"]
    assert "does not tell" in caplog.text
