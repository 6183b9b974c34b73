"""What a server or a process does seldom, and must not cost a message."""

from __future__ import annotations

import threading
import time
import tracemalloc
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, binding, exceptions, uuid
from kombulite.asynchronous import Hub
from kombulite.brokers.redis.claims import Claim
from kombulite.brokers.redis.publisher import Publisher
from kombulite.brokers.redis.scripts import CLAIM
from tests.conftest import started
from tests.faults.test_forks_and_heartbeats import in_child, needs_fork
from tests.servers import RedisServer


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> RedisServer:
    return started(request, RedisServer)


@pytest.fixture
def client(server: RedisServer) -> Any:
    with redis.Redis(port=server.port) as client:
        yield client


def drain(connection: Connection, wanted: Any, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not wanted() and time.monotonic() < deadline:
        try:
            connection.drain_events(timeout=0.5)
        except TimeoutError:
            continue
    assert wanted()


@needs_fork
def test_fork_while_another_thread_drains(server):
    with Connection(server.url) as connection:
        queue = Queue(uuid())
        got: list[Any] = []
        Consumer(connection.channel(), queue, on_message=got.append).consume()
        thread = threading.Thread(target=lambda: drain(connection, lambda: got))
        thread.start()
        time.sleep(0.3)  # it sleeps in drain_events now, and holds what it takes for that

        def child() -> None:
            Producer(connection).publish("from the child", routing_key=queue.name)
            connection.release()

        in_child(child)
        thread.join(30)
        assert not thread.is_alive()
        assert got[0].payload == "from the child"


def test_more_queues_than_a_claim_asks(server, client):
    """All are served, and heard when they get something later."""
    prefix, got = uuid(), []
    names = [f"{prefix}.{i}" for i in range(250)]
    with Connection(server.url) as connection, Connection(server.url) as publishing:
        producer = Producer(publishing)
        for name in (*names, *names[::-1]):
            producer.publish(name, routing_key=name)

        def callback(body: Any, message: Any) -> None:
            got.append(body)
            message.ack()

        consumer = Consumer(connection, [Queue(name) for name in names], callbacks=[callback], prefetch_count=1000)
        consumer.consume()
        drain(connection, lambda: len(got) == 500)
        assert sorted(got) == sorted(2 * names)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.5)
        for name in (names[249], names[0], names[120]):
            producer.publish(name, routing_key=name, priority=9)
            drain(connection, lambda: len(got) > 500)
            assert got.pop() == name
    assert not client.exists("unacked")


def test_consumer_that_ends_while_messages_are_asked_for(server, client, monkeypatch):
    """What is claimed for it comes before its end, and goes back."""
    ending, other = uuid(), uuid()
    post, threads = Claim.post, []

    def post_amid_an_end(self: Claim, *arguments: Any) -> None:
        if not threads:
            threads.append(threading.Thread(target=consumer.cancel_by_queue, args=(ending,)))
            threads[0].start()
            threads[0].join(0.3)
        post(self, *arguments)

    client.script_load(CLAIM.source)
    with Connection(server.url) as connection:
        Producer(connection).publish("for whom?", routing_key=ending)
        got: list[Any] = []
        consumer = Consumer(connection.channel(), [Queue(ending), Queue(other)], on_message=got.append)
        consumer.consume()
        monkeypatch.setattr(Claim, "post", post_amid_an_end)
        with suppress(TimeoutError):
            connection.drain_events(timeout=1)
        threads[0].join(10)
        assert not threads[0].is_alive()
        assert len(got) + client.llen(ending) == 1


def test_what_a_batch_brought_to_a_new_binding_did_not_come_back(server, monkeypatch):
    exchange, name = Exchange(uuid(), "topic"), uuid()
    with Connection(server.url) as connection, Connection(server.url) as binding_it:
        channel = connection.channel()
        exchange(channel).declare()
        Queue(uuid(), exchange, "elsewhere")(channel).declare()
        send = Publisher._send

        def bind_and_send(self: Publisher, *arguments: Any) -> Any:
            Queue(name, exchange, "here")(binding_it.default_channel).declare()
            return send(self, *arguments)

        monkeypatch.setattr(Publisher, "_send", bind_and_send)
        producer, returned = Producer(channel, exchange), []
        # Whether the change is heard in time or not, none is both in a queue and returned.
        try:
            with producer.batch():
                producer.publish("for nobody yet", "here", mandatory=True)
                producer.publish("for somebody", "elsewhere", mandatory=True)
        except exceptions.BatchPublishError as error:
            returned = error.refused
        assert Queue(name)(channel).queue_declare(passive=True).message_count == 1 - len(returned)


def test_server_forgets_scripts_while_a_callback_publishes(server, client):
    with Connection(server.url) as connection:
        queue, other = Queue(uuid()), Queue(uuid())
        producer = Producer(connection)
        producer.publish_many(range(300), routing_key=queue.name)
        got: list[Any] = []

        def work(message: Any) -> None:
            client.script_flush()
            producer.publish(message.payload, routing_key=other.name)
            got.append(message.payload)
            message.ack()

        consumer = Consumer(connection.channel(), queue, on_message=work, prefetch_count=10)
        consumer.consume()
        drain(connection, lambda: len(got) >= 300)
        assert sorted(got) == list(range(300))
        assert other(connection).purge() == 300


def test_read_only_replica_is_no_empty_queue(server, request):
    master = started(request, RedisServer)
    replica = started(request, RedisServer)
    with Connection(replica.url) as connection, redis.Redis(port=replica.port) as admin:
        queue = Queue(uuid())(connection)
        queue.declare()
        admin.replicaof("127.0.0.1", master.port)
        with Connection(master.url) as other:
            Producer(other).publish(1, routing_key=queue.name)
        deadline = time.monotonic() + 20
        while not admin.llen(queue.name) and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises((*connection.connection_errors, *connection.channel_errors)):
            connection.ensure_connection()
            queue.get()
        admin.replicaof("NO", "ONE")


def test_lease_of_a_year_is_respected(server):
    queue = Queue(uuid())
    holder = Connection(server.url, transport_options={"visibility_timeout": 31_540_000})
    Producer(holder).publish("long", routing_key=queue.name)
    assert queue(holder).get().payload == "long"
    options = {"visibility_timeout": 1, "unacked_restore_interval": 0.1, "unacked_restore_throttle": 1}
    with Connection(server.url, transport_options=options) as other:
        got: list[Any] = []
        Consumer(other.channel(), queue, on_message=got.append).consume()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            try:
                other.drain_events(timeout=0.5)
            except TimeoutError:
                continue
        assert got == []
    holder.release()


def test_deleted_queue_takes_along_what_its_consumer_had_ahead(server, client):
    with Connection(server.url) as connection:
        queue = Queue(uuid())
        got: list[Any] = []
        channel = connection.channel()
        Consumer(channel, queue, on_message=lambda message: (got.append(message), message.ack())).consume()
        Producer(connection).publish_many(range(20), routing_key=queue.name)
        drain(connection, lambda: got)
        assert queue(channel).delete() == 20 - len(got)
        channel.close()
    assert client.llen(queue.name) == 0


def test_full_memory_refuses_a_batch_to_several_queues(server, client):
    with Connection(server.url) as connection:
        exchange = Exchange(uuid())
        queues = [Queue(uuid(), [binding(exchange, "k")])(connection) for _ in range(2)]
        for queue in queues:
            queue.declare()
        producer = Producer(connection, exchange)
        producer.publish(0, routing_key="k")
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(exceptions.BatchPublishError) as caught:
                producer.publish_many(range(3), routing_key="k")
        finally:
            client.config_set("maxmemory", 0)
        assert [(index, type(error).__bases__[0]) for index, error in caught.value.refused] == [
            (index, exceptions.MessageNacked) for index in range(3)
        ]


def test_a_batch_names_those_that_were_refused_among_others(server, client, name):
    client.set(f"{name}.wrong", "no list")
    with Connection(server.url) as connection:
        producer = Producer(connection.channel())
        with pytest.raises(exceptions.BatchPublishError) as caught, producer.batch():
            for i in range(6):
                producer.publish(i, routing_key=name)
                if i % 3 == 1:
                    producer.publish(i, routing_key=f"{name}.wrong")
        queue = Queue(name)(connection)
        assert [queue.get(no_ack=True).payload for _ in range(6)] == list(range(6))
    assert [index for index, _ in caught.value.refused] == [2, 6]


def test_a_batch_of_large_messages_is_encoded_as_it_is_sent(server, client, name):
    body = bytes(1 << 20)
    with Connection(server.url) as connection:
        exchange = Exchange(name)
        for key in ("one", "two", "two"):
            Queue(uuid(), [binding(exchange, key)])(connection).declare()
        producer = Producer(connection.channel(), exchange)
        producer.publish("first", routing_key="one")
        tracemalloc.start()
        with producer.batch():
            for i in range(20):
                producer.publish(body, routing_key=("one", "two")[i % 2], content_type="application/data")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 5 * len(body)


def test_user_without_rights_to_our_own_keys(server, client):
    client.execute_command(
        "ACL", "SETUSER", "kombu", "on", ">secret", "+@all", "~_kombu.*", "~unacked*", "~edge*", "&*"
    )
    with Connection(server.url.replace("redis://", "redis://kombu:secret@")) as connection:
        queue = Queue(f"edge-{uuid()}", expires=60)(connection)
        queue.declare()
        producer = Producer(connection)
        producer.publish(1, routing_key=queue.name)
        producer.publish_many([2, 3], routing_key=queue.name)
        assert queue.get(no_ack=True).payload == 1
        assert queue.delete() == 2


def test_event_loop_looks_as_often_as_is_said_where_the_server_tells_of_nothing(server, client, name, monkeypatch):
    hub, waits = Hub(), []
    poll = hub.poller.poll
    monkeypatch.setattr(hub.poller, "poll", lambda timeout: waits.append(timeout) or poll(timeout))
    hub.call_later(600, lambda: None)  # it has no other reason to turn, but every two seconds
    client.execute_command("ACL", "SETUSER", "deaf", "on", ">pw", "+@all", "-client", "-blmove", "~*", "&*")
    publishing = Connection(server.url)
    publisher = Producer(publishing)
    url = server.url.replace("redis://", "redis://deaf:pw@")
    connection = Connection(url, transport_options={"polling_interval": 0.05})
    got: list[Any] = []
    with Consumer(connection.channel(), Queue(name), on_message=got.append, no_ack=True):
        connection.register_with_event_loop(hub)
        hub.call_soon(lambda: None)
        while not 0 < (waits or [0])[-1] <= 0.05:  # it learns that the server refuses to wait, and how often to look
            hub.run_once()
        waits.clear()
        for i in range(5):
            hub.call_later(0.01, partial(publisher.publish, i, routing_key=name))
            while len(got) <= i:
                hub.run_once()
        assert max(waits) <= 0.05
        assert len(hub.timer) <= 3  # ours, the next look, and the look that was planned before it learnt
    connection.release()
    publishing.release()
    hub.close()
