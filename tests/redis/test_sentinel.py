"""A master that is replaced: as planned, because it hangs, because it died. It is left as soon as Sentinel knows."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from json import loads
from time import monotonic
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest
import redis

from kombulite import Connection, Consumer, Producer, Queue, aio, exceptions
from kombulite.brokers.redis.sentinels import ABORTED, PROMOTED, SWITCHED, MasterWatch, Sentinels
from tests.aio.conftest import run, soon
from tests.redis.conftest import drain
from tests.redis.test_connecting import Sentinel
from tests.servers import RedisServer, Unavailable, program, wait_until

#: So long that a test which waits for it fails by its own time limit.
OPTIONS = {"master_name": "it", "socket_timeout": 600, "health_check_interval": 0}


class Cluster(NamedTuple):
    """A master, its replica and what watches them."""

    master: RedisServer
    replica: RedisServer
    sentinels: list[Sentinel]

    @property
    def url(self) -> str:
        return ";".join(f"sentinel://127.0.0.1:{sentinel.port}/0" for sentinel in self.sentinels)

    def fail_over(self) -> None:
        """As an operator does."""
        with redis.Redis(port=self.sentinels[0].port) as client:
            client.execute_command("SENTINEL FAILOVER", "it")

    def role(self, server: RedisServer) -> str:
        with redis.Redis(port=server.port) as client:
            return str(client.info("replication")["role"])


@pytest.fixture
def cluster(start_server: Callable[..., Any]) -> Cluster:
    master = start_server(lambda: RedisServer(repl_diskless_sync_delay=0))
    replica = start_server(lambda: RedisServer(replicaof=f"127.0.0.1 {master.port}"))
    with redis.Redis(port=replica.port) as second:
        wait_until(lambda: second.info("replication")["master_link_status"] == "up", 15, "no replication")
    sentinels = [start_server(lambda: Sentinel(master)) for _ in range(3)]  # most of them choose who acts
    for sentinel in sentinels:
        with redis.Redis(port=sentinel.port) as client:
            wait_until(lambda: client.sentinel_slaves("it"), 15, "a sentinel sees no replica")
            # One that knows no other elects itself: two promote the replica then, and each ends its connections.
            wait_until(lambda: client.sentinel_master("it")["num-other-sentinels"] == 2, 15, "a sentinel is alone")
    return Cluster(master, replica, sentinels)


def port_of(connection: Connection) -> int:
    """Where a connection leads."""
    return int(connection.transport._streams[0].address[1])


#: A patient program's: a sentinel whose clock was held up names the old master for a while.
POLICY = {"max_retries": 50, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2}


def publish_until(producer: Producer, queue: str, done: Callable[[], bool]) -> None:
    """Publish, and try again as a patient program does, until something holds."""
    deadline = monotonic() + 60  # sentinels may not agree at once
    while not done():
        assert monotonic() < deadline, "it did not happen in time"
        producer.publish("x", routing_key=queue, retry=True, retry_policy=POLICY)


def test_old_master_is_left_while_it_still_acknowledges(cluster, name):
    got: list[Any] = []
    with Connection(cluster.url, transport_options=OPTIONS) as connection, connection.clone() as consuming:
        producer = Producer(connection)
        producer.publish("first", routing_key=name)
        with Consumer(consuming.channel(), Queue(f"{name}.c"), callbacks=[lambda body, message: got.append(body)]):
            with pytest.raises(TimeoutError):
                consuming.drain_events(timeout=0.2)
            cluster.fail_over()
            publish_until(producer, name, lambda: port_of(connection) == cluster.replica.port)
            producer.publish("heard", routing_key=f"{name}.c")
            while not got:
                try:
                    drain(consuming, lambda: got)
                except consuming.recoverable_connection_errors:
                    consuming.ensure_connection(**POLICY)
        assert port_of(consuming) == cluster.replica.port
        assert cluster.role(cluster.master) == "master"  # as far as it knows
        with redis.Redis(port=cluster.master.port) as old, redis.Redis(port=cluster.replica.port) as new:
            before, here = old.llen(name), new.llen(name)
            producer.publish("more", routing_key=name)
            assert old.llen(name) == before
            assert new.llen(name) == here + 1


def test_an_event_loop_follows_the_master(cluster, name):
    async def main():
        policy = {"max_retries": 100, "interval_start": 0.1, "interval_step": 0, "interval_max": 0.1}
        async with aio.connect(cluster.url, transport_options=OPTIONS) as connection:
            async with connection.consume(f"{name}.c") as messages:
                await connection.producer().publish("first", name)
                await asyncio.to_thread(cluster.fail_over)

                async def is_at_the_new_one():
                    await connection.producer().publish("x", name, retry=True, retry_policy=policy)
                    stream = getattr(connection.session.transport, "_stream", None)
                    return stream is not None and stream.address[1] == cluster.replica.port

                await soon(is_at_the_new_one, 60)
                await connection.producer().publish("heard", f"{name}.c", retry=True, retry_policy=policy)
                message = await messages.next(30)
                assert message.payload == "heard"
                await message.ack()

    run(main, timeout=120)


def test_master_that_hangs_is_left_in_the_middle_of_a_command(cluster, name):
    got: list[Any] = []
    with Connection(cluster.url, transport_options=OPTIONS) as connection, connection.clone() as consuming:
        producer = Producer(connection)
        producer.publish("first", routing_key=name)
        consumer = Consumer(consuming.channel(), Queue(f"{name}.c"), callbacks=[lambda body, message: got.append(body)])
        consumer.consume()
        with pytest.raises(TimeoutError):
            consuming.drain_events(timeout=0.2)
        cluster.master.pause()
        try:
            publish_until(producer, name, lambda: port_of(connection) == cluster.replica.port)
            producer.publish("heard", routing_key=f"{name}.c")
            while not got:
                try:
                    drain(consuming, lambda: got)
                except consuming.recoverable_connection_errors:
                    consuming.ensure_connection(**POLICY)
        finally:
            cluster.master.resume()


def test_first_try_to_connect_waits_for_the_new_master(cluster, name):
    with Connection(cluster.url, transport_options=OPTIONS, connect_timeout=20) as connection:
        Producer(connection).publish("kept", routing_key=name)
        with redis.Redis(port=cluster.replica.port) as client:
            wait_until(lambda: client.llen(name), 10, "no replication")
        cluster.master.kill()
        connection.collect()
        connection.ensure_connection(max_retries=0)
        assert port_of(connection) == cluster.replica.port
        assert Queue(name)(connection.default_channel).get().payload == "kept"


def test_news_come_from_whichever_sentinel_is_left(cluster, name):
    with Connection(cluster.url, transport_options=OPTIONS) as connection:
        producer = Producer(connection)
        producer.publish("first", routing_key=name)
        cluster.sentinels[0].kill()
        cluster.master.pause()
        try:
            publish_until(producer, name, lambda: port_of(connection) == cluster.replica.port)
        finally:
            cluster.master.resume()


def test_threads_end_with_the_last_connection(cluster, name):
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "kombulite-sentinel"]

    wait_until(lambda: not threads(), 10, "threads are left of other tests")
    with Connection(cluster.url, transport_options=OPTIONS) as connection, connection.clone() as second:
        connection.connect()
        second.connect()
        assert len(threads()) == len(cluster.sentinels)  # for both
    wait_until(lambda: not threads(), 10, "threads are left")
    with Connection(cluster.url, transport_options=OPTIONS) as connection:
        connection.connect()
        assert len(threads()) == len(cluster.sentinels)
    wait_until(lambda: not threads(), 10, "threads are left")


def test_hung_master_that_is_not_replaced_is_waited_for_no_longer_than_allowed(start_server, name):
    master = start_server(RedisServer)
    sentinel = start_server(lambda: Sentinel(master, 600_000))
    options = {**OPTIONS, "socket_timeout": 0.5}
    url, got = f"sentinel://127.0.0.1:{sentinel.port}/0", []
    with Connection(url, transport_options=options, connect_timeout=0.5) as connection, connection.clone() as consuming:
        producer = Producer(connection)
        producer.publish("first", routing_key=name)
        with Consumer(
            consuming.channel(), Queue(name), on_message=lambda message: (got.append(message), message.ack())
        ):
            drain(consuming, lambda: got)
            master.pause()
            try:
                with pytest.raises(connection.recoverable_connection_errors):
                    producer.publish("unanswered", routing_key=name)
                with pytest.raises(exceptions.OperationalError):
                    connection.ensure_connection(max_retries=1, interval_start=0)
            finally:
                master.resume()
            publish_until(producer, name, lambda: len(got) > 1 or consume_once(consuming))


def consume_once(connection: Connection) -> bool:
    """Drain one event, if there is one; a loss is what a worker goes on after."""
    with suppress(TimeoutError, *connection.recoverable_connection_errors):
        connection.drain_events(timeout=0.05)
    return False


def has_coordinated_failover() -> bool:
    """Whether Sentinel lets the old master hand over: ``SENTINEL FAILOVER name COORDINATED`` (Valkey 9)."""
    try:
        path = program(RedisServer.program)
    except Unavailable:
        return False
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    return "valkey" in shown.lower()


@pytest.mark.skipif(not has_coordinated_failover(), reason="only Valkey 9 fails over so")
def test_coordinated_failover_loses_nothing_that_was_acknowledged(cluster, name):
    with Connection(cluster.url, transport_options=OPTIONS) as connection:
        producer, published = Producer(connection), 0
        producer.publish(-1, routing_key=name)
        with redis.Redis(port=cluster.sentinels[0].port) as client:
            client.execute_command("SENTINEL", "FAILOVER", "it", "COORDINATED")
        deadline = monotonic() + 60
        while port_of(connection) != cluster.replica.port:
            assert monotonic() < deadline, "there is no new master"
            producer.publish(published, routing_key=name, retry=True, retry_policy=POLICY)
            published += 1
        with redis.Redis(port=cluster.replica.port) as client:
            kept = [loads(envelope) for envelope in client.lrange(name, 0, -1)]
        found = {int(loads(b64decode(envelope["body"]))) for envelope in kept}
        assert found == set(range(-1, published))


# --- what sentinels say

TELLER = ("s", 1)
OLD, NEW, OTHER = ("10.0.0.1", 6379), ("10.0.0.2", 6379), ("10.0.0.3", 6379)
PROMOTION = "slave 10.0.0.2:6379 10.0.0.2 6379 @ it 10.0.0.1 6379"
SWITCH = "it 10.0.0.1 6379 10.0.0.2 6379"


class FakeLink:
    """A connection to a server."""

    is_open = True

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.reasons: list[str] = []

    def leave(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> MasterWatch:
    monkeypatch.setattr("kombulite.brokers.redis.sentinels.Thread", lambda **_: SimpleNamespace(start=lambda: None))
    return MasterWatch(Sentinels([("s", 1)], "it", 0, 1, {}))


@pytest.mark.parametrize(
    ("news", "is_left"),
    [
        ([(SWITCHED, SWITCH)], True),
        ([(PROMOTED, PROMOTION)], True),
        ([(PROMOTED, PROMOTION), (SWITCHED, SWITCH)], True),
        ([(SWITCHED, SWITCH.replace("it", "another"))], False),
        ([(PROMOTED, PROMOTION.replace("@ it", "@ another"))], False),
        ([(SWITCHED, "it"), (SWITCHED, ""), (PROMOTED, "x" * 1000), (PROMOTED, "a b c d e it f g")], False),
    ],
)
def test_news_of_our_master_end_the_connections_to_the_old_one(watch, news, is_left):
    links = [FakeLink(address) for address in (OLD, OLD, NEW, OTHER)]
    for link in links:
        watch.add(link)
    for channel, data in news:
        watch._on_news(channel, data.split(" "), TELLER)
    assert [bool(link.reasons) for link in links] == [is_left, is_left, False, False]
    assert watch.correct(OLD) == (NEW if is_left else OLD)  # where a sentinel has not heard of it
    assert watch.correct(OTHER) == OTHER


def test_sentinel_that_is_only_asked_names_the_new_master(watch, monkeypatch):
    """Its news may be lost, or not be allowed to its user."""
    link, answers = FakeLink(OLD), iter([OLD, OLD, NEW])
    watch.add(link)
    client = MagicMock()
    client.__enter__.return_value = client
    client.sentinel_get_master_addr_by_name.side_effect = lambda name: next(answers)
    client.pubsub().__enter__().get_message.return_value = None
    monkeypatch.setattr(watch._sentinels, "client", lambda address, **options: client)
    monkeypatch.setattr("kombulite.brokers.redis.sentinels.ASK_INTERVAL", 0)
    with pytest.raises(StopIteration):
        watch._listen(("s", 1))
    assert link.reasons == [f"the master is at {NEW[0]}:{NEW[1]} now"]


def test_connection_to_the_old_master_that_was_being_opened_is_left(watch):
    watch._on_news(SWITCHED, SWITCH.split(" "), TELLER)
    links = [FakeLink(address) for address in (OLD, NEW, OTHER)]
    for link in links:
        watch.add(link)
    assert [bool(link.reasons) for link in links] == [True, False, False]


def test_a_sentinel_whose_answers_make_no_sense_is_listened_to_again(watch, monkeypatch):
    link, tries = FakeLink(OLD), []

    def listen(address: tuple[str, int]) -> None:
        tries.append(address)
        link.is_open = len(tries) < 3
        raise ValueError("invalid literal for int()")

    watch.add(link)
    monkeypatch.setattr(watch, "_listen", listen)
    monkeypatch.setattr("kombulite.brokers.redis.sentinels.ASK_INTERVAL", 0)
    watch._run(("s", 1))
    assert len(tries) == 3
    assert not watch._running


def test_failover_that_is_broken_off_leaves_the_master_what_it_is(watch):
    watch._on_news(PROMOTED, PROMOTION.split(" "), TELLER)
    watch._on_news(ABORTED.replace("*", "slave-timeout"), ["master", "it", *map(str, OLD)], TELLER)
    assert watch.correct(OLD) == OLD
    watch._on_news(SWITCHED, SWITCH.split(" "), TELLER)
    watch._on_news(ABORTED.replace("*", "slave-timeout"), ["master", "it", *map(str, NEW)], TELLER)
    assert watch.correct(OLD) == NEW


@pytest.mark.parametrize(
    ("reason", "master", "teller"),
    [
        ("not-elected", "it", ("another", 1)),  # it would have led, and another one does
        ("slave-timeout", "another", TELLER),
    ],
)
def test_failover_goes_on_when_another_one_is_broken_off(watch, reason, master, teller):
    watch._on_news(PROMOTED, PROMOTION.split(" "), TELLER)
    watch._on_news(ABORTED.replace("*", reason), ["master", master, *map(str, OLD)], teller)
    watch._on_news(ABORTED.replace("*", reason), [""], TELLER)
    assert watch.correct(OLD) == NEW
