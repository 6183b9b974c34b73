"""Connections that nobody uses: servers and proxies close them, and nobody notices."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, aio, pools
from kombulite.asynchronous import Hub
from tests.aio.conftest import run, soon
from tests.proxy import Proxy
from tests.redis.conftest import drain
from tests.servers import RedisServer, wait_until

#: Nothing is asked of the server before it closes a connection.
UNASKED = {"health_check_interval": 0}


@pytest.fixture
def server(start_server: Callable[..., Any]) -> RedisServer:
    """One that closes idle connections after a second, or two: it looks now and then."""
    server: RedisServer = start_server(lambda: RedisServer(timeout=1))
    return server


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def clients(server: RedisServer) -> set[str]:
    """The connections that the server has, except the one that asks."""
    with redis.Redis(port=server.port) as client:
        return {each["addr"] for each in client.client_list() if each["cmd"] != "client|list"}


def let_close(server: RedisServer) -> None:
    """Wait until the server has closed all connections."""
    wait_until(lambda: not clients(server), 30, "the server keeps idle connections")


def let_idle(server: RedisServer) -> None:
    """Wait until the server has closed a connection that was idle all that time."""
    with socket.create_connection(("127.0.0.1", server.port)) as idle:
        idle.settimeout(30)
        assert idle.recv(1) == b""


def delivered(connection: Connection, queue: Queue, got: list[Any]) -> None:
    """Publish over another connection, and see it come."""
    before = len(got)
    with Connection(connection.as_uri(include_password=True)) as other:
        Producer(other).publish("more", routing_key=queue.name)
    drain(connection, lambda: len(got) > before)


def test_publishers_and_getters_do_not_notice(server, name):
    with Connection(server.url, transport_options=UNASKED) as connection, connection.clone() as second:
        bound = Queue(name, Exchange(name), "k")
        producer = Producer(connection, Exchange(name), "k")
        producer.publish(1, declare=[bound])
        simple = second.SimpleQueue(f"{name}.simple")
        simple.put(1)
        pool = pools.ProducerPool(connection.Pool(limit=1), limit=1)
        with pool.acquire() as pooled:
            pooled.publish(1, routing_key=name)
        let_close(server)
        producer.publish(2)
        let_close(server)
        with producer.batch():
            producer.publish(3)
        let_close(server)
        simple.put(2)
        with pool.acquire() as pooled:
            pooled.publish(4, routing_key=name)
        let_close(server)
        queue = bound(connection.default_channel)
        assert [queue.get().payload for _ in range(5)] == [1, 1, 2, 3, 4]
        let_close(server)
        assert [simple.get(timeout=20).payload for _ in range(2)] == [1, 2]
        assert connection.counters.reconnects == 0
        pool.force_close_all()


def test_idle_consumer_goes_on(server, name):
    with Connection(server.url, transport_options=UNASKED) as connection:
        got: list[Any] = []
        queue = Queue(name)
        with Consumer(connection.channel(), queue, callbacks=[lambda body, message: got.append(body)]):
            before = clients(server)
            deadline = time.monotonic() + 30
            while before & clients(server):
                assert time.monotonic() < deadline
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.2)
            delivered(connection, queue, got)
        assert connection.counters.reconnects == 0


@pytest.mark.parametrize("protocol", [2, 3])
def test_idle_subscriber_goes_on(redis_url, client, name, protocol):
    """Redis does not close those, but proxies do."""
    with Proxy(port_of(redis_url)) as proxy:
        options = {**UNASKED, "protocol": protocol, "polling_interval": 5}
        with Connection(proxy.url(redis_url), transport_options=options) as connection:
            got: list[Any] = []
            exchange = Exchange(name, "fanout")
            queue = Queue(name, exchange, auto_delete=True)
            with Consumer(connection.channel(), queue, callbacks=[lambda body, message: got.append(body)]):
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.2)
                for link in connection.transport._streams:
                    link.used_at -= 10
                proxy.finish()
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.5)
                with Connection(redis_url) as other:
                    Producer(other, exchange).publish("heard")
                drain(connection, lambda: got == ["heard"])
            assert connection.counters.reconnects == 0


def test_consumer_in_an_event_loop_goes_on(server, name):
    hub = Hub()
    with Connection(server.url, transport_options=UNASKED) as connection:
        got: list[Any] = []
        consumer = Consumer(connection.channel(), Queue(name), callbacks=[lambda body, message: got.append(body)])
        consumer.consume()
        connection.register_with_event_loop(hub)
        hub.call_repeatedly(0.05, lambda: None)
        before = clients(server)
        deadline = time.monotonic() + 30
        while before & clients(server):
            assert time.monotonic() < deadline
            hub.run_once()
        with Connection(server.url) as other:
            Producer(other).publish("more", routing_key=name)
        while not got:
            assert time.monotonic() < deadline
            hub.run_once()
        assert connection.counters.reconnects == 0
        hub.close()


def test_task_that_takes_longer_than_the_server_waits_is_done_once(server, name):
    with Connection(server.url, transport_options=UNASKED) as connection:
        got: list[Any] = []

        def work(body: Any, message: Any) -> None:
            got.append(body)
            if len(got) == 1:
                before = clients(server)
                wait_until(lambda: not before & clients(server), 30, "the server keeps idle connections")
            message.ack()

        Producer(connection).publish_many(["long", "short"], routing_key=name)
        with Consumer(connection.channel(), Queue(name), callbacks=[work], prefetch_count=1):
            drain(connection, lambda: len(got) == 2)
            delivered(connection, Queue(name), got)
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.2)
        assert got == ["long", "short", "more"]
    with redis.Redis(port=server.port) as client:
        assert client.keys("*") in ([], [f"_kombulite.queue.{name}".encode()])


def test_connections_are_kept_open_while_a_callback_runs(server, name):
    with Connection(server.url, transport_options={"health_check_interval": 0.3}) as connection:
        seen: list[Any] = []

        def work(body: Any, message: Any) -> None:
            if not seen:
                let_idle(server)
            seen.append(clients(server))
            message.ack()

        Producer(connection).publish(1, routing_key=name)
        with Consumer(connection.channel(), Queue(name), callbacks=[work]):
            ours = {"{}:{}".format(*link._sock.getsockname()) for link in connection.transport._streams}
            assert len(ours) == 2  # for commands, and for news
            drain(connection, lambda: seen)
            assert ours <= seen[0]
            delivered(connection, Queue(name), seen)


def test_server_that_closes_sooner_than_it_is_asked_is_asked_sooner(server, name):
    with Connection(server.url, transport_options={"health_check_interval": 25}) as connection:
        got: list[Any] = []
        with Consumer(connection.channel(), Queue(name), callbacks=[lambda body, message: got.append(body)]):
            link, listener = connection.transport._streams
            deadline = time.monotonic() + 30
            while link.ping_interval >= 2 or listener.ping_interval >= 2:
                assert time.monotonic() < deadline, "it was not asked sooner"
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.1)


def test_server_that_forgot_all_meanwhile_is_told_again(start_server, name):
    server = start_server(RedisServer)
    with Connection(server.url, transport_options=UNASKED) as connection:
        producer = Producer(connection, Exchange(name), "k")
        queue = Queue(name, Exchange(name), "k")
        producer.publish(1, declare=[queue])
        server.kill()
        server.start()
        (link,) = connection.transport._streams
        link.used_at -= 10
        producer.publish(2, declare=[queue])
        assert queue(connection.default_channel).get().payload == 2
        assert connection.counters.reconnects == 0


def test_server_that_is_away_when_it_is_needed_is_lost(start_server, name):
    server = start_server(RedisServer)
    with Connection(server.url, transport_options=UNASKED, connect_timeout=1) as connection:
        producer = Producer(connection)
        producer.publish(1, routing_key=name)
        server.kill()
        (link,) = connection.transport._streams
        link.used_at -= 10
        with pytest.raises(connection.recoverable_connection_errors, match="cannot be reached anew"):
            producer.publish(2, routing_key=name)
        server.start()
        producer.publish(3, routing_key=name)
        assert Queue(name)(connection.default_channel).get().payload == 3
        assert connection.counters.reconnects == 1


def test_acks_for_a_server_that_is_away_are_made_when_it_is_back(start_server, name):
    server = start_server(lambda: RedisServer(appendonly="yes", appendfsync="always"))
    with Connection(server.url, transport_options=UNASKED, connect_timeout=1) as connection:
        producer = Producer(connection)
        producer.publish(1, routing_key=name)
        message = Queue(name)(connection.default_channel).get()
        server.signal(signal.SIGSTOP)
        message.ack()
        (link,) = connection.transport._streams
        server.kill()
        link.used_at -= 10
        with pytest.raises(connection.recoverable_connection_errors, match="cannot be reached anew"):
            producer.publish(2, routing_key=name)
        server.start()
        producer.publish(3, routing_key=name)
        with redis.Redis(port=server.port) as client:
            assert client.hgetall("unacked") == {}
            assert client.llen(name) == 1


def test_proxy_that_forgets_an_idle_connection_is_found_out_by_a_ping(redis_url, client, name, monkeypatch):
    """It passes nothing on, and says nothing."""
    monkeypatch.setattr("kombulite.brokers.redis.stream.PING_TIMEOUT", 0.5)
    with Proxy(port_of(redis_url)) as proxy:
        options = {"health_check_interval": 5}
        with Connection(proxy.url(redis_url), transport_options=options) as connection:
            producer = Producer(connection)
            producer.publish(1, routing_key=name)
            proxy.silence()
            (link,) = connection.transport._streams
            link.used_at -= 6
            producer.publish(2, routing_key=name)
            assert client.llen(name) == 2
            assert connection.counters.reconnects == 0


def test_ack_without_an_answer_is_said_again_over_the_next_connection(redis_url, client, name):
    with Proxy(port_of(redis_url)) as proxy:
        with Connection(proxy.url(redis_url)) as connection:
            Producer(connection).publish_many(range(2), routing_key=name)
            queue = Queue(name)(connection)
            first, second = queue.get(), queue.get()
            proxy.silence()
            first.ack()
            proxy.reset()
            with pytest.raises(connection.connection_errors):
                Producer(connection).publish(2, routing_key=name)
            connection.ensure_connection()
            assert client.hkeys("unacked") == [second.delivery_tag.encode()]
            second.ack()
            wait_until(lambda: not client.hlen("unacked"), 20, "the second is leased still")
            assert client.llen(name) == 0


# --- while a connection is opened anew


class SlowOpening:
    """A connector whose connections are opened anew when they may be."""

    def __init__(self, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_begun, self.may_go = threading.Event(), threading.Event()
        self._reopen = connection.transport._connector.reopen
        monkeypatch.setattr(connection.transport._connector, "reopen", self.reopen)

    def reopen(self, stream: Any) -> None:
        self.has_begun.set()
        assert self.may_go.wait(60)
        self._reopen(stream)


def test_other_threads_wait_while_a_connection_is_opened_anew(server, client, name, monkeypatch):
    with Connection(server.url, transport_options=UNASKED) as connection:
        producer = Producer(connection)
        producer.publish(1, routing_key=name)
        opening = SlowOpening(connection, monkeypatch)
        let_close(server)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(producer.publish, 2, routing_key=name)
            try:
                assert opening.has_begun.wait(30)
                assert connection.connected
                with pytest.raises(connection.recoverable_connection_errors, match="another thread uses"):
                    producer.publish("too late", routing_key=name, timeout=0.01, retry=False)
            finally:
                opening.may_go.set()
            first.result(30)
        producer.publish(3, routing_key=name)
        simple = connection.SimpleQueue(name, no_ack=True)
        assert [simple.get(timeout=20).payload for _ in range(3)] == [1, 2, 3]
        assert connection.counters.reconnects == 0


def test_connection_that_is_closed_while_it_is_opened_anew_stays_closed(server, name, monkeypatch):
    connection = Connection(server.url, transport_options=UNASKED)
    Producer(connection).publish(1, routing_key=name)
    opening = SlowOpening(connection, monkeypatch)
    stream = connection.transport._stream
    let_close(server)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(stream.call, "PING")
        try:
            assert opening.has_begun.wait(30)
            connection.transport.collect()
        finally:
            opening.may_go.set()
        with pytest.raises(connection.recoverable_connection_errors, match="already closed"):
            first.result(30)
    assert not stream.is_open
    assert stream._sock.fileno() == -1
    connection.collect()


def test_command_of_a_signal_handler_is_refused_while_a_connection_is_opened_anew(server, name, monkeypatch):
    with Connection(server.url, transport_options=UNASKED) as connection:
        producer = Producer(connection)
        producer.publish(1, routing_key=name)
        stream, connector = connection.transport._stream, connection.transport._connector
        reopen, refusals = connector.reopen, []

        def interrupted(stream: Any) -> None:
            with pytest.raises(connection.recoverable_connection_errors, match="interrupted") as refusal:
                stream.call("PING")  # as the handler of a signal would, in this thread
            refusals.append(refusal)
            reopen(stream)

        monkeypatch.setattr(connector, "reopen", interrupted)
        let_close(server)
        producer.publish(2, routing_key=name)
        assert len(refusals) == 1
        assert stream.call("LLEN", name) == 2
        assert connection.counters.reconnects == 0


# --- on an event loop


def test_publishers_and_getters_on_an_event_loop_do_not_notice(server, name):
    async def main():
        async with aio.connect(server.url, transport_options=UNASKED) as connection:
            await connection.producer().publish(1, name)
            await asyncio.to_thread(let_close, server)
            await connection.producer().publish(2, name)
            await asyncio.to_thread(let_close, server)
            got = [(await connection.get(name, no_ack=True)).payload for _ in range(2)]
            assert got == [1, 2]

    run(main, timeout=100)


def test_idle_consumer_on_an_event_loop_goes_on(server, name):
    async def main():
        async with aio.connect(server.url, transport_options=UNASKED) as connection:
            async with connection.consume(name) as messages:
                for number in range(2):
                    await asyncio.to_thread(let_idle, server)
                    with Connection(server.url) as other:
                        Producer(other).publish(number, routing_key=name)
                    message = await messages.next(20)
                    assert message.payload == number
                    await message.ack()

    run(main, timeout=100)


def test_a_loop_asks_sooner_where_the_server_closes_sooner(server, name):
    async def main():
        async with aio.connect(server.url) as connection:
            async with connection.consume(name) as messages:

                async def is_lost():
                    return connection.counters.reconnects

                await soon(is_lost, 30)
                with redis.Redis(port=server.port) as client:

                    def pings():
                        return client.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"]

                    async def is_kept():
                        """Whether six questions kept one connection: a busy machine may have asked too late before."""
                        nonlocal before
                        reconnects, asked = connection.counters.reconnects, pings()
                        if reconnects != before[0]:
                            before = reconnects, asked
                        return asked >= before[1] + 6

                    before = connection.counters.reconnects, pings()
                    await soon(is_kept, 60)
                await connection.producer().publish("x", name)
                message = await messages.next(20)
                await message.ack()

    run(main, timeout=100)


def held_by_connections(connect: Callable[..., Any], count: int = 5) -> int:
    """Return the bytes that Python has allocated for idle connections."""
    kept = [connect().channel(), connect().channel()]
    gc.collect()
    tracemalloc.start()
    try:
        kept += [connect().channel() for _ in range(count)]
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_an_idle_connection_has_less_memory_than_kombus(ours, theirs):
    assert held_by_connections(ours) < 0.75 * held_by_connections(theirs)
