"""A server that has forgotten what was declared: it lost its memory, was emptied, or is another one.

What a connection has declared is there again before it counts as connected, whichever way its application goes on.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, uuid
from kombulite.asynchronous import Hub
from kombulite.mixins import ConsumerMixin
from kombulite.pools import connections, producers
from tests.redis.conftest import drain
from tests.servers import RedisServer, wait_until

pytestmark = pytest.mark.usefixtures("killed_is_lost")

TYPES = ("direct", "topic", "fanout")
OPTIONS: dict[str, dict[str, Any]] = {
    "durable": {},
    "expiring": {"expires": 60},
    "auto-delete": {"auto_delete": True},
    "transient": {"durable": False},
    "exclusive": {"exclusive": True},
}


def queues_of_all_kinds() -> dict[str, Queue]:
    """A queue of each kind at an exchange of each type, by the routing key that reaches it."""
    found = {}
    for kind in TYPES:
        exchange = Exchange(uuid(), kind)
        for name, options in OPTIONS.items():
            key = f"{kind}.{name}"
            found[key] = Queue(uuid(), exchange, key, **options)
    return found


def lose(connection: Connection) -> None:
    """Drain until the loss has been raised."""
    with pytest.raises(connection.recoverable_connection_errors):
        while True:
            try:
                connection.drain_events(timeout=1)
            except TimeoutError:
                assert connection.connected


def kill_connections(server: RedisServer) -> None:
    with redis.Redis(port=server.port) as client:
        for kind in ("normal", "pubsub"):
            client.execute_command("CLIENT", "KILL", "TYPE", kind)


def empty(server: RedisServer) -> None:
    with redis.Redis(port=server.port) as client:
        client.flushall()
    kill_connections(server)


def restart_empty(server: RedisServer) -> None:
    server.kill()
    server.start()


def by_draining(connection: Connection, consumer: Consumer) -> None:
    drain(connection, lambda: connection.connected, step=0.1)


def by_ensuring(connection: Connection, consumer: Consumer) -> None:
    connection.ensure_connection(timeout=10)


def by_consuming_again(connection: Connection, consumer: Consumer) -> None:
    connection.ensure_connection(timeout=10)
    consumer.consume()


def by_reviving(connection: Connection, consumer: Consumer) -> None:
    consumer.revive(connection.default_channel)


def by_publishing(connection: Connection, consumer: Consumer) -> None:
    Producer(connection).publish("to nobody", routing_key="nobody", retry=True)


@pytest.fixture
def server(start_server: Any) -> RedisServer:
    return start_server(RedisServer)  # keeps nothing


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("go_on", [by_draining, by_ensuring, by_consuming_again, by_reviving, by_publishing])
@pytest.mark.parametrize("fault", [kill_connections, empty, restart_empty])
def test_consumers_of_all_kinds_get_what_is_published_after_the_loss(server, fault, go_on, protocol):
    queues, got = queues_of_all_kinds(), []
    with Connection(server.url, transport_options={"protocol": protocol}) as connection:
        channel = connection.channel()
        consumer = Consumer(channel, list(queues.values()), on_message=lambda message: got.append(message.payload))
        consumer.consume()
        fault(server)
        lose(connection)
        go_on(connection, consumer)
        assert connection.connected
        publish_to_each(server, queues)
        drain(connection, lambda: set(got) == set(queues), step=0.2)


def publish_to_each(server: RedisServer, queues: dict[str, Queue]) -> None:
    with Connection(server.url) as other:
        producer = Producer(other, serializer="json")
        for key, queue in queues.items():
            producer.publish(key, exchange=queue.exchange, routing_key=key)


def test_new_consumer_on_the_connection_that_came_back(server):
    queues, got = queues_of_all_kinds(), []
    with Connection(server.url) as connection:
        Consumer(connection.channel(), list(queues.values())).consume()
        empty(server)
        lose(connection)
        connection.ensure_connection(timeout=10)
        more = {f"{key}.more": Queue(uuid(), queue.exchange, f"{key}.more") for key, queue in queues.items()}
        Consumer(connection, list(more.values()), on_message=lambda message: got.append(message.payload)).consume()
        publish_to_each(server, more)
        drain(connection, lambda: set(got) == set(more), step=0.2)


def test_what_was_declared_without_a_consumer_is_routed_to_again(server):
    queues = queues_of_all_kinds()
    with Connection(server.url) as connection:
        channel = connection.channel()
        for queue in queues.values():
            queue(channel).declare()
        producer = Producer(channel)
        empty(server)
        for key, queue in queues.items():
            if not key.startswith("fanout"):
                publish = connection.ensure(producer, producer.publish, max_retries=3)
                publish(key, exchange=queue.exchange, routing_key=key)
                assert queue(connection).get(no_ack=True).payload == key


def test_program_with_the_mixin_consumes_again(server):
    queues, got = queues_of_all_kinds(), []

    class Program(ConsumerMixin):
        connection = Connection(server.url)

        def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:
            return [Consumer(list(queues.values()), on_message=lambda message: got.append(message.payload))]

        def on_consume_ready(self, *arguments: Any, **options: Any) -> None:
            ready.release()

    ready = threading.Semaphore(0)
    program = Program()
    thread = threading.Thread(target=program.run)
    thread.start()
    try:
        assert ready.acquire(timeout=20)
        restart_empty(server)
        assert ready.acquire(timeout=20)
        publish_to_each(server, queues)
        wait_until(lambda: set(got) == set(queues), 20, "it does not consume")
    finally:
        program.should_stop = True
        thread.join(20)


def test_pooled_connections_and_producers_declare_again(server):
    queue = Queue(uuid(), Exchange(uuid(), "topic"), "a.*")
    connection = Connection(server.url)
    pools = connections[connection], producers[connection]
    try:
        for fault in (lambda server: None, kill_connections, empty, restart_empty):
            fault(server)
            with pools[1].acquire() as producer:
                producer.publish("it", exchange=queue.exchange, routing_key="a.b", declare=[queue], retry=True)
            with pools[0].acquire() as pooled, Connection(server.url) as other:
                assert pooled.ensure_connection(timeout=10)
                assert queue(other).get(no_ack=True).payload == "it"
    finally:
        for pool in pools:
            pool.force_close_all()


def test_event_loop_consumes_again(server):
    queues, got = queues_of_all_kinds(), []
    hub = Hub()
    with Connection(server.url) as connection:
        Consumer(connection, list(queues.values()), on_message=lambda message: got.append(message.payload)).consume()
        connection.register_with_event_loop(hub)
        empty(server)
        hub.call_repeatedly(0.05, lambda: None)
        with pytest.raises(connection.recoverable_connection_errors):
            for _ in range(200):
                hub.run_once()
        connection.ensure_connection(timeout=10)
        publish_to_each(server, queues)
        for _ in range(400):
            if set(got) == set(queues):
                break
            hub.run_once()
        assert set(got) == set(queues)
    hub.close()


def test_other_server_that_shares_nothing_has_it_all(start_server):
    servers = [start_server(RedisServer) for _ in range(2)]
    queues, got = queues_of_all_kinds(), []
    with Connection([server.url for server in servers]) as connection:
        consumer = Consumer(connection, list(queues.values()), on_message=lambda message: got.append(message.payload))
        consumer.consume()
        for dead, alive in ((0, 1), (1, 0)):
            servers[dead].kill()
            lose(connection)
            connection.ensure_connection(timeout=20, interval_start=0.1)
            assert connection.port == servers[alive].port
            got.clear()
            publish_to_each(servers[alive], queues)
            drain(connection, lambda: set(got) == set(queues), step=0.2)
            servers[dead].start()


@pytest.mark.parametrize("command", ["flushdb", "flushall"])
def test_database_that_is_emptied_under_a_connection_has_it_all_again(server, command):
    """The server says so to clients with tracking, and nobody loses a connection."""
    queues, got = queues_of_all_kinds(), []
    with Connection(server.url) as connection, Connection(server.url) as publishing:
        Consumer(connection, list(queues.values()), on_message=lambda message: got.append(message.payload)).consume()
        own = Queue(uuid(), Exchange(uuid()), "own")(publishing)
        own.declare()
        with redis.Redis(port=server.port) as client:
            for _ in range(2):
                getattr(client, command)()
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.2)
                publish_to_each(server, queues)
                drain(connection, lambda: set(got) == set(queues), step=0.2)
                got.clear()
                Producer(publishing, own.exchange, "own").publish("mine")
                assert own.get(no_ack=True).payload == "mine"


def test_what_was_deleted_or_unbound_does_not_come_back(server):
    exchange = Exchange(uuid())
    deleted, unbound, kept = (Queue(uuid(), exchange, uuid()) for _ in range(3))
    gone = Exchange(uuid())
    with Connection(server.url) as connection, redis.Redis(port=server.port) as client:
        channel = connection.channel()
        for queue in (deleted, unbound, kept, Queue(uuid(), gone, "k")):
            queue(channel).declare()
        deleted(channel).delete()
        unbound(channel).queue_unbind()
        gone(channel).delete()
        empty(server)
        lose(connection)
        connection.ensure_connection(timeout=10)
        members = client.smembers(f"_kombu.binding.{exchange.name}")
        assert [member.decode().rpartition("\x16")[2] for member in members] == [kept.name]
        assert not client.exists(f"_kombu.binding.{gone.name}")
