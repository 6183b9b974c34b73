"""Changes of which the server says nothing, and news of changes that are none."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import kombu
import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, aio, exceptions
from tests.aio.conftest import run, soon
from tests.conftest import started
from tests.redis.conftest import drain
from tests.servers import RedisServer, wait_until

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


def publish_when_bound(url: str, exchange: str, seconds: float = 20) -> None:
    """Publish as a process does that declares nothing, as soon as a queue is bound."""
    with Connection(url) as connection:
        deadline = time.monotonic() + seconds
        while True:
            try:
                Producer(connection, Exchange(exchange), "k", auto_declare=False).publish("heard", mandatory=True)
                return
            except (exceptions.NotFound, exceptions.MessageReturned):
                assert time.monotonic() < deadline, "it is not bound again"
                time.sleep(0.05)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("change", ["swap", "empty"])
def test_what_the_new_database_lacks_is_declared_again(server, name, change, protocol):
    options = {**CHECKS, "protocol": protocol}
    got: list[Any] = []
    with Connection(server.url, transport_options=options) as connection, redis.Redis(port=server.port) as client:
        queues = [Queue(name, Exchange(name), "k"), Queue(f"{name}.2", Exchange(f"{name}.2"), "k")]
        with Consumer(connection.channel(), queues, callbacks=[lambda body, _: got.append(body)], no_ack=True):
            drain(connection, lambda: client.hexists("_kombulite.exchanges", ""), step=0.1)
            for number in range(2):
                client.swapdb(0, 1) if change == "swap" else client.flushdb()
                publisher = threading.Thread(target=publish_when_bound, args=(server.url, name))
                publisher.start()
                drain(connection, lambda: len(got) == number + 1, timeout=20)  # noqa: B023
                publisher.join(20)


def test_an_event_loop_declares_again_what_the_new_database_lacks(server, name):
    async def main() -> None:
        async with aio.connect(server.url, transport_options=CHECKS) as connection:
            async with connection.consume(Queue(name, Exchange(name), "k")) as messages:
                with redis.Redis(port=server.port) as client:

                    async def is_marked() -> bool:
                        return bool(client.hexists("_kombulite.exchanges", ""))

                    await soon(is_marked)
                    assert await messages.next(0.1) is None
                    client.swapdb(0, 1)
                    publishing = asyncio.create_task(asyncio.to_thread(publish_when_bound, server.url, name))
                    message = await messages.next(20)
                    assert message.payload == "heard"
                    await message.ack()
                    await publishing

    run(main)


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


# --- changes by commands that are no publish, and no bind


def restore(client: redis.Redis, source: str, target: str) -> None:
    client.restore(target, 0, client.dump(source), replace=True)


def copy(client: redis.Redis, source: str, target: str) -> None:
    client.copy(source, target, replace=True)


def rename(client: redis.Redis, source: str, target: str) -> None:
    client.rename(source, target)


def move(client: redis.Redis, source: str, target: str) -> None:
    """Bring it from another database."""
    client.delete(target)
    client.copy(source, target, destination_db=5, replace=True)
    with redis.Redis(port=client.connection_pool.connection_kwargs["port"], db=5) as other:
        other.move(target, 0)


CHANGES = [restore, copy, rename, move]


@pytest.fixture(scope="module")
def shared_server(request: pytest.FixtureRequest) -> Any:
    return started(request, RedisServer)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_waiting_consumer_gets_messages_however_they_come(shared_server, name, change, protocol):
    got: list[Any] = []
    with Connection(shared_server.url, transport_options={"protocol": protocol}) as connection:
        Producer(connection).publish("it", routing_key=f"{name}.other")
        with Consumer(connection.channel(), Queue(name), callbacks=[lambda body, _: got.append(body)], no_ack=True):
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.1)
            with redis.Redis(port=shared_server.port) as client:
                change(client, f"{name}.other", name)
            drain(connection, lambda: got == ["it"])


def expire(client: redis.Redis, source: str, target: str) -> None:
    client.pexpire(target, 1)
    wait_until(lambda: not client.exists(target), 10, "it does not expire")


def evict(client: redis.Redis, source: str, target: str) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", 1)
    wait_until(lambda: not client.exists(target), 10, "it is not evicted")
    client.config_set("maxmemory", 0)


def flush(client: redis.Redis, source: str, target: str) -> None:
    client.flushdb()


@pytest.mark.parametrize("change", [*CHANGES, expire, evict, flush])
def test_cached_bindings_are_those_of_the_server(shared_server, name, change):
    """The next message goes where the bindings of the server say, without a pause."""
    with Connection(shared_server.url) as connection, Connection(shared_server.url) as other:
        for each in (name, f"{name}.other"):
            Queue(each, Exchange(each), "k")(other).declare()
        producer = Producer(connection, exchange=name, routing_key="k")
        producer.publish(1)
        with redis.Redis(port=shared_server.port) as client:
            change(client, f"_kombu.binding.{name}.other", f"_kombu.binding.{name}")
            is_elsewhere = change in CHANGES
            if is_elsewhere:
                producer.publish(2, mandatory=True)
            else:
                with pytest.raises((exceptions.NotFound, exceptions.MessageReturned)):
                    producer.publish(2, mandatory=True)
            assert client.llen(f"{name}.other") == int(is_elsewhere)


def test_binding_that_a_process_of_kombu_deletes_is_forgotten(shared_server, name):
    with Connection(shared_server.url) as connection, kombu.Connection(shared_server.url) as theirs:
        bound = kombu.Queue(name, kombu.Exchange(name), "k")(theirs)
        bound.declare()
        producer = Producer(connection, exchange=name, routing_key="k")
        producer.publish(1)
        bound.delete()
        with pytest.raises((exceptions.NotFound, exceptions.MessageReturned)):
            producer.publish(2, mandatory=True)
        with redis.Redis(port=shared_server.port) as client:
            assert not client.exists(name)


@pytest.mark.parametrize("change", [evict, flush])
def test_consumer_whose_database_is_evicted_or_emptied_goes_on(shared_server, name, change):
    got: list[Any] = []
    with Connection(shared_server.url) as connection, redis.Redis(port=shared_server.port) as client:
        queue = Queue(name, Exchange(name), "k")
        with Consumer(connection.channel(), queue, callbacks=[lambda body, _: got.append(body)], no_ack=True):
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.1)
            change(client, "", f"_kombu.binding.{name}")
            with Connection(shared_server.url) as other:
                Producer(other).publish("heard", routing_key=name)
            drain(connection, lambda: got == ["heard"])
