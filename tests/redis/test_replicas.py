"""Publishes that wait for replicas (``wait_replicas``), at one server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from hiredis import ReplyError

from kombulite import Connection, Queue, aio, exceptions
from kombulite.brokers.redis.plans import check_replicas
from tests.aio.conftest import run
from tests.servers import RedisServer, wait_until


class Replicated:
    """A master and its replica, each with a client of its own."""

    def __init__(self, start_server: Callable[..., Any]) -> None:
        self.master: RedisServer = start_server(lambda: RedisServer(repl_diskless_sync_delay=0))
        self.replica: RedisServer = start_server(lambda: RedisServer(replicaof=f"127.0.0.1 {self.master.port}"))
        self.clients = [redis.Redis(port=server.port) for server in (self.master, self.replica)]
        wait_until(lambda: self.clients[0].wait(1, 1000) == 1, 60, "the replica does not follow")

    def counts(self, queue: str) -> list[int]:
        """Messages in a queue, at the master and at the replica."""
        return [client.llen(queue) for client in self.clients]

    def waits(self) -> int:
        """How often the master was asked to wait for replicas."""
        found = self.clients[0].info("commandstats").get("cmdstat_wait", {"calls": 0})
        return int(found["calls"])


@pytest.fixture
def replicated(start_server: Callable[..., Any]) -> Iterator[Replicated]:
    found = Replicated(start_server)
    yield found
    for client in found.clients:
        client.close()


def publish_in_thread(url: str, queue: str, options: dict[str, Any]) -> None:
    """Publish one message, and 10."""
    with Connection(url, transport_options=options) as connection:
        producer = connection.Producer(routing_key=queue)
        producer.publish("one")
        producer.publish_many(range(10))


def publish_in_tasks(url: str, queue: str, options: dict[str, Any]) -> None:
    """Publish one message, and 10."""

    async def main() -> None:
        async with aio.connect(url, transport_options=options) as connection:
            producer = connection.producer(routing_key=queue)
            await producer.publish("one")
            await producer.publish_many(range(10))

    run(main)


PUBLISH = pytest.mark.parametrize("publish", [publish_in_thread, publish_in_tasks])


@PUBLISH
def test_a_replica_has_what_was_published(replicated, name, publish):
    before = replicated.waits()
    for number in range(1, 21):
        publish(replicated.master.url, name, {"wait_replicas": 1})
        assert replicated.counts(name) == [11 * number] * 2
    assert replicated.waits() - before == 40


@PUBLISH
def test_without_the_option_replicas_are_not_waited_for(replicated, name, publish):
    before = replicated.waits()
    publish(replicated.master.url, name, {})
    assert replicated.waits() == before


@PUBLISH
def test_a_replica_that_is_silent_is_told_by_an_error(replicated, name, publish):
    replicated.replica.pause()
    try:
        with pytest.raises(exceptions.MessageNacked, match="0 replicas of the server have the message, 1 are to"):
            publish(replicated.master.url, name, {"wait_replicas": 1, "socket_timeout": 1})
    finally:
        replicated.replica.resume()
    assert replicated.clients[0].llen(name) == 1  # the master has it, and nobody said that it was safe


def test_replicas_are_waited_for_half_of_the_time_for_the_confirm(replicated, name):
    replicated.replica.pause()
    try:
        with Connection(replicated.master.url, transport_options={"wait_replicas": 1}) as connection:
            producer = connection.Producer(routing_key=name)
            with pytest.raises(exceptions.MessageNacked):
                producer.publish("one", confirm_timeout=1)  # the server's own limit is 30 s: longer than the test's
            with pytest.raises(exceptions.MessageNacked):
                producer.publish_many(["two"], timeout=1)
    finally:
        replicated.replica.resume()


@pytest.mark.parametrize("publish", ["publish", "publish_many"])
def test_a_connection_that_was_opened_anew_vouches_for_nothing_that_was_sent_before(
    replicated, name, publish, monkeypatch
):
    """A process that stood still may find that. The new one may lead to another master, which lacks the message."""
    with Connection(replicated.master.url, transport_options={"wait_replicas": 1}) as connection:
        producer = connection.Producer(routing_key=name)
        producer.publish("before")
        stream = connection.transport._stream
        wait_for_replicas = stream.wait_for_replicas

        def be_idle() -> None:
            replicated.clients[0].client_kill_filter(_type="normal", skipme=True)
            stream.used_at -= 60

        def stand_still(count: int, timeout: float | None) -> None:
            be_idle()
            wait_for_replicas(count, timeout)

        monkeypatch.setattr(stream, "wait_for_replicas", stand_still)
        with pytest.raises(exceptions.RecoverableConnectionError, match="opened anew"):
            getattr(producer, publish)(["one"])
        monkeypatch.undo()
        be_idle()
        producer.publish("after")  # over a connection that was opened anew before it
        assert replicated.counts(name)[1] == 3


def test_tasks_wait_for_replicas_together(replicated, name):
    async def main() -> None:
        async with aio.connect(replicated.master.url, transport_options={"wait_replicas": 1}) as connection:
            producer = connection.producer(routing_key=name)
            await asyncio.gather(*(producer.publish(number) for number in range(200)))

    run(main)
    assert replicated.counts(name) == [200, 200]


def test_a_message_that_an_exchange_routes_is_waited_for(replicated, name):
    with Connection(replicated.master.url, transport_options={"wait_replicas": 1}) as connection:
        queues = [Queue(f"{name}.{number}", name, routing_key="key") for number in range(2)]
        before = replicated.waits()
        connection.Producer(exchange=name).publish("one", routing_key="key", declare=queues)
        assert replicated.waits() == before + 1
        assert [replicated.counts(queue.name) for queue in queues] == [[1, 1]] * 2
        with pytest.raises(exceptions.MessageReturned):
            connection.Producer(exchange=name).publish("none", routing_key="other", mandatory=True)


def test_a_master_that_has_become_a_replica_may_be_tried_again(replicated):
    with pytest.raises(redis.ResponseError) as refusal:
        replicated.clients[1].wait(1, 1)
    with pytest.raises(exceptions.RecoverableConnectionError, match="has become a replica"):
        check_replicas(hiredis_error(refusal.value), 1, "the server")


def hiredis_error(error: redis.ResponseError) -> Any:
    """The reply that an error of redis-py stands for; it leaves its code ``ERR`` out."""
    text = str(error)
    return ReplyError(text if text.startswith("ERR ") else f"ERR {text}")


@pytest.mark.parametrize("value", [-1, 1.5, True, "one"])
def test_only_numbers_of_replicas_are_taken(redis_url, value):
    with pytest.raises(ValueError, match="wait_replicas is a number of replicas"):
        Connection(redis_url, transport_options={"wait_replicas": value}).connect()
