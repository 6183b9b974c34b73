"""Changes of which the server says nothing, and news of changes that are none."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue
from tests.redis.conftest import drain
from tests.servers import RedisServer

CHECKS = {"health_check_interval": 0.5}


@pytest.fixture
def server(start_server: Any) -> Any:
    return start_server(RedisServer)


def test_waiting_consumer_finds_what_comes_with_another_database(server, name):
    got: list[Any] = []
    with Connection(server.url, transport_options=CHECKS) as connection:
        with Connection(server.url.replace("/0", "/1")) as other:
            Producer(other).publish("moved", routing_key=name)
        with Consumer(connection.channel(), Queue(name), callbacks=[lambda body, _: got.append(body)], no_ack=True):
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.2)
            with redis.Redis(port=server.port) as client:
                client.swapdb(0, 1)
            drain(connection, lambda: got == ["moved"])
            with Connection(server.url) as other:  # it is heard of changes again
                Producer(other).publish("more", routing_key=name)
            drain(connection, lambda: got == ["moved", "more"])


def test_publisher_learns_bindings_that_come_with_another_database(server, name):
    exchange = Exchange(name)
    with Connection(server.url, transport_options=CHECKS) as connection:
        with Connection(server.url.replace("/0", "/1")) as other:
            Queue(f"{name}.new", exchange, "k")(other).declare()
        producer = Producer(connection, exchange, "k")
        producer.publish(1, declare=[Queue(f"{name}.old", exchange, "k")])
        with redis.Redis(port=server.port) as client:
            client.swapdb(0, 1)
            deadline = time.monotonic() + 10
            while not client.exists(f"{name}.new"):
                assert time.monotonic() < deadline
                producer.publish(2)


@pytest.mark.parametrize("keys", [10, 100])
def test_idle_consumer_does_not_listen_to_false_news(start_server, name, keys):
    """The server watches fewer lists than a consumer waits for: for each new one it forgets another, and says so."""
    server = start_server(lambda: RedisServer(tracking_table_max_keys=keys))
    got: list[Any] = []
    queues = [Queue(f"{name}.{number}") for number in range(50)]
    with Connection(server.url) as connection, redis.Redis(port=server.port) as client:

        def claims() -> int:
            return int(client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])

        with Consumer(connection.channel(), queues, callbacks=[lambda body, _: got.append(body)], no_ack=True):
            deadline = time.monotonic() + 30
            made = None
            while made is None or made > 5:
                assert time.monotonic() < deadline, f"{made} claims a second"
                before = claims()
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=1)
                made = claims() - before
            with Connection(server.url) as other:
                Producer(other).publish("heard", routing_key=queues[7].name)
            drain(connection, lambda: got == ["heard"])
            with Connection(server.url) as other:  # it listens again
                Producer(other).publish("again", routing_key=queues[31].name)
            drain(connection, lambda: got == ["heard", "again"])


def test_other_database_that_is_emptied_wakes_without_harm(server, name):
    got: list[Any] = []
    with Connection(server.url) as connection:
        queue = Queue(name, Exchange(name), "k")
        with Consumer(connection.channel(), queue, callbacks=[lambda body, _: got.append(body)], no_ack=True):
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.2)
            with redis.Redis(port=server.port, db=3) as client:
                client.set("x", 1)
                client.flushdb()
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.2)
            Producer(connection, Exchange(name), "k").publish("heard")
            drain(connection, lambda: got == ["heard"])
