"""The native connection on an event loop: what it writes, what it hears, what it leaves."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import time
import tracemalloc
from itertools import takewhile
from typing import Any

import pytest
import redis
import uvloop

import kombulite
from kombulite import Exchange, Producer, Queue, aio, exceptions
from kombulite.brokers.base import Outcome
from kombulite.brokers.redis.aio import AsyncTransport
from kombulite.brokers.redis.aio.connector import AsyncConnector
from kombulite.brokers.redis.aio.stream import HIGH_WATER, AsyncStream
from kombulite.brokers.redis.plans import call
from tests.aio.conftest import run, soon
from tests.servers import RedisServer, wait_until

SEP = "\x06\x16"


def transport_of(connection: aio.Connection) -> AsyncTransport:
    found = connection.session.transport
    assert isinstance(found, AsyncTransport)
    return found


def calls(client: redis.Redis, command: str) -> int:
    """How often the server was sent a command."""
    return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def bodies(connection: aio.Connection, queue: str) -> list[Any]:
    found = []
    while (message := await connection.get(queue, no_ack=True)) is not None:
        found.append(message.payload)
    return found


# --- what is written


def test_what_tasks_publish_in_one_turn_of_the_loop_leaves_in_one_write(redis_url, client, name, monkeypatch):
    writes = []
    write = AsyncStream._write

    def counted(self):
        writes.append(self)
        write(self)

    async def main():
        async with aio.connect(redis_url) as connection:
            producer = connection.producer(routing_key=name)
            await producer.publish("first")
            monkeypatch.setattr(AsyncStream, "_write", counted)
            await asyncio.gather(*(producer.publish(number) for number in range(200)))
            assert len(writes) == 1
            assert sorted((await bodies(connection, name))[1:]) == list(range(200))

    run(main)


def test_consuming_many_queues_takes_no_round_trip_for_each(redis_url, client, name, monkeypatch):
    writes = []
    write = AsyncStream._write

    def counted(self):
        writes.append(self)
        write(self)

    async def main():
        queues = [f"{name}.{number}" for number in range(300)]
        async with aio.connect(redis_url) as connection:
            monkeypatch.setattr(AsyncStream, "_write", counted)
            async with connection.consume(queues, auto_declare=False) as messages:
                assert len(writes) < 50
                await connection.producer().publish("last", queues[-1])
                message = await messages.next(20)
                assert (message.payload, message.queue) == ("last", queues[-1])
                await message.ack()

    run(main)


def test_acks_of_one_turn_of_the_loop_are_one_command(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            await connection.producer().publish_many(range(50), name)
            async with connection.consume(name) as messages:
                taken = [await messages.next(20) for _ in range(50)]
                with client.monitor() as monitor:
                    for message in taken:
                        await message.ack()

                    async def are_settled():
                        return not client.exists("unacked", "unacked_index")

                    await soon(are_settled, 20)
                    client.echo("settled")
                    seen = list(takewhile(lambda each: "ECHO" not in each["command"], monitor.listen()))
                # A claim has one too, in its script.
                assert [each["client_type"] for each in seen if each["command"].startswith("HDEL")].count("tcp") == 1

    run(main)


def test_each_task_gets_the_reply_to_its_own_publish(redis_url, client, name):
    client.set(f"{name}.bad", "no list")

    async def main():
        async with aio.connect(redis_url) as connection:
            producer = connection.producer()
            names = [f"{name}.{'bad' if number % 3 == 0 else 'good'}" for number in range(300)]
            results = await asyncio.gather(
                *(producer.publish(number, where) for number, where in enumerate(names)), return_exceptions=True
            )
            refused = [isinstance(result, exceptions.PreconditionFailed) for result in results]
            assert refused == [where.endswith("bad") for where in names]
            assert all(result is None for result, is_refused in zip(results, refused, strict=True) if not is_refused)
            assert len(await bodies(connection, f"{name}.good")) == 200

    run(main)


def test_large_messages_fit_through_a_small_socket(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            producer = connection.producer(routing_key=name)
            large = [chr(97 + number) * 3_000_000 for number in range(8)]
            await asyncio.gather(*(producer.publish(body) for body in large))
            async with connection.consume(name, prefetch=3) as messages:
                got = []
                while len(got) < len(large):
                    message = await messages.next(30)
                    got.append(message.payload)
                    await message.ack()
            assert sorted(got) == large

    run(main, debug=False)


def test_publishers_wait_while_the_server_reads_nothing(start_server, name):
    server = start_server(RedisServer)

    async def main():
        async with aio.connect(server.url) as connection:
            producer = connection.producer(routing_key=name)
            await producer.publish("x")
            stream = transport_of(connection)._stream
            server.pause()
            try:
                tasks = [asyncio.create_task(producer.publish("y" * 300_000)) for _ in range(200)]

                async def is_full():
                    return stream._awaits_room

                await soon(is_full, 20)
                for _ in range(100):
                    await asyncio.sleep(0)
                assert stream._outgoing.size < 2 * HIGH_WATER
            finally:
                server.resume()
            await asyncio.gather(*tasks)
            assert (await connection.status(name)).message_count == 201

    run(main, debug=False)


def test_ten_thousand_tasks_publish_in_flat_memory(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            producer = connection.producer(routing_key=name)

            async def publish_all():
                await asyncio.gather(*(producer.publish(number) for number in range(10_000)))
                await connection.purge(name)
                gc.collect()
                return tracemalloc.get_traced_memory()[0]

            tracemalloc.start()
            try:
                await publish_all()
                first, last = await publish_all(), await publish_all()
            finally:
                tracemalloc.stop()
            assert last - first < 100_000

    run(main, timeout=110, debug=False)  # traced memory makes it slow


# --- what is heard


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_fanout_message_is_not_missed_by_who_consumes_already(redis_url, client, name, protocol):
    async def main():
        async with aio.connect(redis_url, transport_options={"protocol": protocol}) as connection:
            for number in range(20):
                exchange = Exchange(f"{name}.{number}", "fanout")
                queue = Queue(f"{name}.{number}", exchange, auto_delete=True)
                async with connection.consume(queue) as messages:
                    await connection.producer(exchange).publish(number)
                    message = await messages.next(20)
                    assert message.payload == number
                    await message.ack()

    run(main)


@pytest.mark.parametrize("protocol", [2, 3])
def test_an_idle_consumer_is_woken(redis_url, client, name, protocol, monkeypatch):
    monkeypatch.setattr("kombulite.brokers.redis.receiver.POLLING_INTERVAL", 600)

    async def main():
        async with aio.connect(redis_url, transport_options={"protocol": protocol}) as connection:
            async with connection.consume([name, f"{name}.2"]) as messages:
                for number in range(20):
                    await connection.producer().publish(number, (name, f"{name}.2")[number % 2], priority=number % 10)
                    message = await messages.next(20)
                    assert message.payload == number
                    await message.ack()

    run(main)


def test_a_binding_that_another_client_makes_counts_for_the_next_publish(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            exchange = Exchange(name)
            await connection.declare(Queue(f"{name}.0", exchange, "k"))
            producer = connection.producer(exchange, "k")
            await producer.publish(0)
            for number in range(1, 20):
                client.sadd(f"_kombu.binding.{name}", f"k{SEP}{SEP}{name}.{number}")
                await producer.publish(number)
            assert [client.llen(f"{name}.{number}") for number in range(20)] == list(range(20, 0, -1))

    run(main)


def test_a_database_that_was_emptied_is_told_of_the_bindings_again(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            exchange = Exchange(name, "topic")
            await connection.declare(Queue(name, exchange, "a.*"))
            producer = connection.producer(exchange, "a.b")
            await producer.publish(1)
            client.flushdb()

            async def is_bound():
                await producer.publish(2)
                return client.llen(name)

            await soon(is_bound, 20)

    run(main)


def test_priorities_are_served_in_their_order(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            for priority in (9, 0, 6, 3):
                await connection.producer().publish(priority, name, priority=priority)
            async with connection.consume(name) as messages:
                got = [(await messages.next(20)).payload for _ in range(4)]
            assert got == [0, 3, 6, 9]

    run(main)


def test_what_a_consumer_had_ahead_goes_back_in_order(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            await connection.producer().publish_many(range(20), name)
            async with connection.consume(name) as messages:
                message = await messages.next(20)
                await messages.stop()
                await message.ack()
            assert await bodies(connection, name) == list(range(1, 20))

    run(main)


def test_expired_and_malformed_messages_do_not_reach_a_consumer(redis_url, client, name):
    client.lpush(name, "garbage")

    async def main():
        async with aio.connect(redis_url) as connection:
            await connection.producer().publish("late", name, expiration=0)
            await connection.producer().publish("good", name)
            async with connection.consume(name) as messages:
                message = await messages.next(20)
                assert message.payload == "good"
                await message.ack()
        assert client.lrange(f"_kombulite.dead.{name}", 0, -1) == [b"garbage"]
        assert not client.exists(name, "unacked", "unacked_index")

    run(main)


# --- leases


def test_leases_are_renewed_while_a_task_works(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url, transport_options={"visibility_timeout": 1}) as connection:
            await connection.producer().publish("long", name)
            async with connection.consume(name) as messages:
                message = await messages.next(20)
                first = client.zscore("unacked_index", message.delivery_tag)

                async def is_renewed():
                    return client.zscore("unacked_index", message.delivery_tag) >= first + 2

                await soon(is_renewed, 20)
                assert not messages._ready  # it came once
                await message.ack()

    run(main)


def test_what_a_killed_consumer_had_is_taken_over(redis_url, client, name):
    with kombulite.Connection(redis_url) as connection:
        Producer(connection).publish("orphan", routing_key=name)
    envelope = client.rpop(name).decode()
    client.hset("unacked", "a-tag-of-kombu", json.dumps([json.loads(envelope), "", name]))
    client.zadd("unacked_index", {"a-tag-of-kombu": time.time() - 100})

    async def main():
        async with aio.connect(redis_url, transport_options={"visibility_timeout": 1}) as connection:
            async with connection.consume(name) as messages:
                message = await messages.next(20)
                assert message.payload == "orphan"
                assert message.delivery_info["redelivered"]
                await message.ack()

    run(main)


def test_a_queue_that_expires_is_kept_by_its_consumer(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            queue = Queue(name, Exchange(name), name, expires=0.5)
            async with connection.consume(queue) as messages:
                before = calls(client, "pexpire")

                async def is_kept():
                    return calls(client, "pexpire") >= before + 20

                await soon(is_kept, 20)
                await connection.producer(Exchange(name), name).publish("x")
                assert (await messages.next(20)).payload == "x"

    run(main)


def test_a_server_without_memory_refuses_publishes_and_lets_consumers_drain(start_server, name):
    server = start_server(RedisServer)

    async def main():
        with redis.Redis(port=server.port) as client:
            async with aio.connect(server.url) as connection:
                await connection.producer().publish_many(range(10), name)
                client.config_set("maxmemory", 1)
                with pytest.raises(exceptions.MessageNacked):
                    await connection.producer().publish("too much", name)
                async with connection.consume(name) as messages:
                    for number in range(10):
                        message = await messages.next(20)
                        assert message.payload == number
                        await message.ack()

    run(main)


# --- the end


def test_nothing_is_left_when_a_connection_was_closed(redis_url, client, name):
    async def main():
        gc.collect()  # what other tests have left
        before = len(os.listdir("/proc/self/fd"))
        threads = set(threading.enumerate())
        async with aio.connect(redis_url, transport_options={"client_name": name}) as connection:
            async with connection.consume(name):
                assert len([each for each in client.client_list() if each["name"] == name]) == 2
        assert len(os.listdir("/proc/self/fd")) <= before

        async def are_gone():
            ours = set(threading.enumerate()) - threads
            return not ours and not [each for each in client.client_list() if each["name"] == name]

        await soon(are_gone, 20)
        assert not client.exists("unacked", "unacked_index")

    run(main)


def test_connecting_that_is_cancelled_leaves_no_connection(redis_url, client, name, monkeypatch):
    going, gone = threading.Event(), threading.Event()
    connect = AsyncConnector._connect

    def connect_late(self, opened):
        assert going.wait(20)
        connect(self, opened)
        gone.set()

    monkeypatch.setattr(AsyncConnector, "_connect", connect_late)

    async def main():
        connection = aio.connect(redis_url, transport_options={"client_name": name})
        connecting = asyncio.create_task(connection.connect())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        connecting.cancel()
        closing = asyncio.create_task(connection.close())
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await closing
        going.set()
        await asyncio.to_thread(gone.wait, 20)

        async def are_gone():
            return not [each for each in client.client_list() if each["name"] == name]

        await soon(are_gone, 20)

    run(main)


def test_an_ack_that_was_not_sent_yet_is_sent_over_the_next_connection(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            await connection.producer().publish_many([1, 2], name)
            async with connection.consume(name, prefetch=2) as messages:
                first, second = await messages.next(20), await messages.next(20)
                await first.ack()
                stream = transport_of(connection)._stream
                stream._lose(ConnectionResetError("in the same turn of the loop"))
                assert second.payload == 2
                del second  # what the application still has stays with it
                again = await messages.next(20)
                assert again.payload == 2
                assert again.delivery_info["redelivered"]
                await again.ack()
            assert await bodies(connection, name) == []

    run(main)


def test_an_ack_that_the_server_refuses_for_the_moment_is_made_again(start_server, name):
    server = start_server(RedisServer)

    async def work() -> None:
        async with aio.connect(server.url) as connection:
            await connection.declare(Queue(name))
            await connection.producer().publish("x", name)
            message = await connection.get(name)
            client.config_set("min-replicas-to-write", 1)
            await message.ack()
            with pytest.raises(exceptions.MessageNacked, match="NOREPLICAS"):
                await connection.get(name)
            client.config_set("min-replicas-to-write", 0)
            await soon(is_made)
            assert await connection.get(name) is None

    async def is_made() -> bool:
        return not client.exists("unacked", "unacked_index")

    with redis.Redis(port=server.port) as client:
        run(work)


def test_a_consumer_that_starts_while_its_channel_closes_takes_no_messages(redis_url, client, name):
    queues = [f"{name}.0", f"{name}.1"]

    async def main():
        async with aio.connect(redis_url) as connection:
            for queue in queues:
                await connection.producer().publish_many(range(10), queue)
            transport = transport_of(connection)
            channel = await transport.open_channel()
            await transport.consume(channel, queues[0], "first", False, False, None)

            async def has_messages():
                return transport._channels[channel].outstanding

            await soon(has_messages, 20)
            starting = transport.consume(channel, queues[1], "second", False, False, None)
            closing = transport.close_channel(channel)
            with pytest.raises(exceptions.RecoverableConnectionError, match="closed"):
                await starting
            await closing
            for queue in queues:
                assert await bodies(connection, queue) == list(range(10))
            assert not client.exists("unacked", "unacked_index")

    run(main)


def test_what_is_put_back_as_the_connection_is_lost_comes_again_over_the_next(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            await connection.producer().publish(1, name)
            async with connection.consume(name) as messages:
                message = await messages.next(20)
                transport = transport_of(connection)
                requeued = transport.settle(message.channel.number, message.delivery_tag, Outcome.REQUEUE)
                transport._stream._lose(ConnectionResetError("in the same turn of the loop"))
                with pytest.raises(exceptions.RecoverableConnectionError):
                    await requeued
                del message
                again = await messages.next(20)
                assert again.payload == 1
                await again.ack()

    run(main)


def test_closing_does_not_wait_for_a_silent_server_that_has_all_the_time(start_server, name):
    server = start_server(RedisServer)

    async def main():
        async with aio.connect(server.url, transport_options={"socket_timeout": None}) as connection:
            async with connection.consume(name):
                transport = transport_of(connection)
                server.pause()
                try:
                    unanswered = transport._perform(call("PING"))
                    with pytest.raises(exceptions.RecoverableConnectionError):
                        await asyncio.wait_for(transport.close(), 20)
                    with pytest.raises(exceptions.RecoverableConnectionError):
                        await unanswered
                finally:
                    server.resume()

    run(main)


def test_a_forked_child_opens_a_connection_of_its_own(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            await connection.producer().publish("parent", name)
            child = os.fork()
            if child == 0:
                os._exit(_publish_in_a_child(connection, name))
            status = await asyncio.to_thread(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status[1]) == 0
            await connection.producer().publish("parent again", name)
            assert sorted(await bodies(connection, name)) == ["child", "parent", "parent again"]

    run(main)


def _publish_in_a_child(connection: aio.Connection, name: str) -> int:
    asyncio.events._set_running_loop(None)

    async def publish():
        async with connection:
            await connection.producer().publish("child", name)

    try:
        asyncio.run(publish())
    except BaseException:
        return 1
    return 0


def test_a_lost_connection_of_the_maintainer_is_replaced(redis_url, client, ours, name):
    """The thread of the synchronous transport goes on with its chores when its connection was lost."""
    connection = ours(visibility_timeout=1, client_name=name)
    Producer(connection).publish(1, routing_key=name)
    message = Queue(name)(connection.channel()).get()
    tag = message.delivery_tag
    first = client.zscore("unacked_index", tag)
    wait_until(lambda: client.zscore("unacked_index", tag) > first, 20, "the lease is not renewed")
    command = connection.transport._streams[0]
    own = "{}:{}".format(*command._sock.getsockname())
    for each in client.client_list():
        if each["name"] == name and each["addr"] != own:
            client.client_kill_filter(_id=each["id"])
    second = client.zscore("unacked_index", tag)
    wait_until(lambda: client.zscore("unacked_index", tag) > second + 1, 20, "the lease is not renewed any more")
    message.ack()


# --- another loop


def test_uvloop(redis_url, client, name):
    async def main():
        async with aio.connect(redis_url) as connection:
            producer = connection.producer(routing_key=name)
            bodies = [{"n": number, "text": "x" * 1000} for number in range(1000)]
            await asyncio.gather(*(producer.publish(body, declare=[Queue(name)]) for body in bodies))
            got = []
            async with connection.consume(name, prefetch=100) as messages:
                while len(got) < len(bodies):
                    message = await messages.next(20)
                    got.append(message.payload)
                    await message.ack()
            assert sorted(each["n"] for each in got) == list(range(1000))

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(main(), 60))
    finally:
        loop.close()
    assert client.zcard("unacked_index") == 0
