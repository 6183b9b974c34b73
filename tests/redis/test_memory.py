"""A server whose memory is full refuses what needs more. Whatever frees memory, or keeps what is there, passes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, aio, exceptions
from tests.aio.conftest import run
from tests.redis.conftest import drain
from tests.redis.test_faults import QUICK
from tests.servers import RedisServer, wait_until

pytestmark = pytest.mark.usefixtures("killed_is_lost")


@pytest.fixture
def server(start_server: Callable[..., Any]) -> RedisServer:
    server: RedisServer = start_server(RedisServer)
    return server


@pytest.fixture
def full(server: RedisServer, name: str) -> Iterator[Callable[[], redis.Redis]]:
    """Fills the memory of the server, and says what it has when it is asked directly."""
    with redis.Redis(port=server.port) as client:

        def fill() -> redis.Redis:
            client.config_set("maxmemory", 1)
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                client.set(f"{name}.more", 1)
            return client

        yield fill


def take(got: list[Any]) -> Callable[[Any, Any], None]:
    def callback(body: Any, message: Any) -> None:
        got.append(body)
        if not message.no_ack:
            message.ack()

    return callback


def test_leases_of_a_live_consumer_are_renewed(server, full, name):
    options = {**QUICK, "visibility_timeout": 1.5}
    with Connection(server.url, transport_options=options) as connection, connection.clone() as second:
        Producer(connection).publish(1, routing_key=name)
        got: list[Any] = []
        consumer = Consumer(connection.channel(), Queue(name), on_message=got.append)
        consumer.consume()
        drain(connection, lambda: got)
        client = full()
        ((tag, taken_at),) = client.zrange("unacked_index", 0, -1, withscores=True)
        with Consumer(second.channel(), Queue(name), on_message=got.append):
            deadline = time.monotonic() + 15
            while client.zscore("unacked_index", tag) < taken_at + 2 * options["visibility_timeout"]:
                assert time.monotonic() < deadline, "the lease is not renewed"
                with pytest.raises(TimeoutError):
                    second.drain_events(timeout=0.2)
            client.config_set("maxmemory", 0)
            with pytest.raises(TimeoutError):
                second.drain_events(timeout=0.5)
        got[0].ack()
        assert len(got) == 1


def test_messages_of_the_dead_come_back(server, full, name):
    with redis.Redis(port=server.port) as client:
        envelope = {"body": "1", "content-type": "application/json", "content-encoding": "utf-8"}
        envelope["properties"] = {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": name}}
        client.hset("unacked", "t", json.dumps([envelope, "", name]))
        client.zadd("unacked_index", {"t": 1})
    got: list[Any] = []
    client = full()
    with Connection(server.url, transport_options=QUICK) as connection:
        with Consumer(connection.channel(), Queue(name), callbacks=[take(got)]):
            drain(connection, lambda: got, step=0.2)
    assert got == [1]
    wait_until(lambda: not client.exists("unacked", "unacked_mutex"), 5, "something is left")


@pytest.mark.parametrize("end", ["cancel", "close", "release"])
def test_consumer_without_acks_that_ends_puts_back_what_it_had_taken_ahead(server, full, name, end):
    got: list[Any] = []
    with Connection(server.url) as connection:
        Producer(connection).publish_many(range(10), routing_key=name)
        client = full()
        consumer = Consumer(connection.channel(), Queue(name), callbacks=[take(got)], no_ack=True)
        consumer.consume()
        drain(connection, lambda: got)
        assert client.llen(name) == 0
        {"cancel": consumer.cancel, "close": consumer.channel.close, "release": connection.release}[end]()
        assert client.llen(name) + len(got) == 10


def test_lost_connection_puts_back_what_a_consumer_without_acks_had_taken_ahead(server, full, name):
    got: list[Any] = []
    with Connection(server.url) as connection:
        Producer(connection).publish_many(range(10), routing_key=name)
        consumer = Consumer(connection.channel(), Queue(name), callbacks=[take(got)], no_ack=True)
        consumer.consume()
        drain(connection, lambda: got)
        client = full()
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with pytest.raises(connection.recoverable_connection_errors):
            for _ in range(20):  # some are at hand
                connection.drain_events(timeout=20)
        drain(connection, lambda: len(got) == 10)
    assert sorted(got) == list(range(10))


@pytest.mark.parametrize("no_ack", [False, True])
def test_element_that_is_no_message_is_kept(server, full, name, no_ack):
    got: list[Any] = []
    with Connection(server.url) as connection, redis.Redis(port=server.port) as client:
        client.lpush(name, "garbage")
        Producer(connection).publish("good", routing_key=name)
        full()
        with Consumer(connection.channel(), Queue(name), callbacks=[take(got)], no_ack=no_ack):
            drain(connection, lambda: got)
        assert client.lrange(f"_kombulite.dead.{name}", 0, -1) == [b"garbage"]


def test_requeued_message_is_kept(server, full, name):
    with Connection(server.url) as connection:
        Producer(connection).publish(1, routing_key=name)
        message = Queue(name)(connection).get()
        client = full()
        message.requeue()
        assert client.llen(name) == 1
        assert Queue(name)(connection).get(no_ack=True).payload == 1


@pytest.mark.parametrize("expires", [None, 60])
def test_consumer_that_starts_only_now_frees_memory(server, full, name, expires):
    queue = Queue(name, Exchange(name, "topic"), "k.#", expires=expires)
    got: list[Any] = []
    with Connection(server.url) as connection:
        Producer(connection, Exchange(name, "topic"), "k.1").publish_many(range(3), declare=[queue])
        client = full()
        client.delete(f"_kombu.binding_permanent.{name}", "_kombu.binding_deadlines")
        with connection.clone() as second:
            with Consumer(second.channel(), queue, callbacks=[take(got)]):
                drain(second, lambda: len(got) == 3)
            with pytest.raises(exceptions.MessageNacked):
                Producer(second, Exchange(name, "topic"), "k.1").publish(4)
    assert client.exists("_kombu.binding_deadlines" if expires else f"_kombu.binding_permanent.{name}")


def test_purging_and_deleting_free_memory(server, full, name):
    with Connection(server.url) as connection:
        queue = Queue(name, Exchange(name), "k")(connection.default_channel)
        queue.declare()
        producer = Producer(connection, Exchange(name), "k")
        producer.publish_many(range(3))
        client = full()
        assert queue.purge() == 3
        queue.delete()
        queue.exchange.delete()
        wait_until(lambda: not client.keys("*"), 20, "something is left")


def test_all_that_ends_frees_memory(server, full, name):
    """Acks, rejects, unbinding, exclusive queues, a queue of a process that was killed."""
    with Connection(server.url) as connection, redis.Redis(port=server.port) as client:
        queue = Queue(name, Exchange(name), "k")(connection)
        queue.declare()
        Producer(connection).publish_many(range(2), routing_key=name)
        messages = [queue.get(), queue.get()]
        Queue(f"{name}.own", Exchange(f"{name}.own"), "k", exclusive=True)(connection).declare()
        client.lpush(f"{name}.left", "late")
        client.zadd("_kombulite.deadlines", {json.dumps(["queue", f"{name}.left"]): 1})
        full()
        messages[0].ack()
        messages[1].reject()
        queue.unbind_from(name, "k")
        with Connection(server.url) as other, Consumer(other.channel(), Queue(name), callbacks=[take([])]):
            wait_until(lambda: not client.exists(f"{name}.left", "unacked"), 10, "something is left")
        connection.release()
        assert not client.exists(f"_kombu.binding.{name}", f"_kombulite.queue.{name}.own", f"_kombu.binding.{name}.own")


def test_message_that_is_forgotten_after_a_loss_comes_back(server, full, name):
    with Connection(server.url) as connection:
        Producer(connection).publish(1, routing_key=name)
        got: list[Any] = []
        Consumer(connection.channel(), Queue(name), on_message=got.append).consume()
        drain(connection, lambda: got)
        client = full()
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with pytest.raises(connection.recoverable_connection_errors):
            connection.drain_events(timeout=20)
        got.clear()
        drain(connection, lambda: got)
        assert got[0].payload == 1


def test_deleting_without_scripts_frees_memory(server, full, name):
    with redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "plain", "on", ">pw", "+@all", "-eval", "-evalsha", "~*", "&*")
    with Connection(f"redis://plain:pw@127.0.0.1:{server.port}/0") as connection:
        queue = Queue(name, Exchange(name), "k")(connection)
        queue.declare()
        Producer(connection).publish_many(range(3), routing_key=name)
        client = full()
        assert queue.delete() == 3
        assert not client.exists(name, f"_kombu.binding.{name}")


@pytest.mark.parametrize("no_ack", [False, True])
def test_an_event_loop_frees_memory(server, full, name, no_ack):
    async def main() -> None:
        async with aio.connect(server.url) as connection:
            await connection.producer().publish_many(range(10), name)
            client = full()
            async with connection.consume(name, no_ack=no_ack) as messages:
                message = await messages.next(10)
                if not no_ack:
                    await message.ack()
            assert client.llen(name) == 9
            assert not client.exists("unacked", "unacked_index")
            assert await connection.purge(name) == 9

    run(main)
