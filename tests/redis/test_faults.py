"""What fails: processes, connections, servers. Nothing is lost, nothing hangs, errors say what it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions
from kombulite.brokers.redis.scripts import CLAIM
from tests.proxy import Cut, Direction, Proxy
from tests.redis.conftest import drain
from tests.servers import RedisServer, wait_until

pytestmark = pytest.mark.usefixtures("killed_is_lost")

QUICK = {"visibility_timeout": 1, "unacked_restore_interval": 0.2, "unacked_restore_throttle": 1}

# --- processes that are killed

VICTIM = """
import os, signal, sys
from kombulite import Connection, Consumer, Queue
from kombulite.brokers.redis.claims import ClaimQueue
from kombulite.brokers.redis.receiver import Receiver

url, name, step = sys.argv[1:]

def die_after(owner, method):
    original = getattr(owner, method)
    def dying(*args, **options):
        original(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, method, dying)

if step == "claim sent":
    die_after(ClaimQueue, "claim")
elif step == "claim answered":
    die_after(ClaimQueue, "claimed")
elif step == "handed over":
    die_after(Receiver, "hand_over")

def callback(body, message):
    if step == "acked":
        message.ack()
    os.kill(os.getpid(), signal.SIGKILL)

connection = Connection(url, transport_options={"visibility_timeout": 1})
with Consumer(connection.channel(), Queue(name), callbacks=[callback], prefetch_count=5):
    while True:
        connection.drain_events(timeout=10)
"""


@pytest.mark.parametrize("step", ["claim sent", "claim answered", "handed over", "in the callback", "acked"])
def test_consumer_killed_at_any_step_loses_nothing(redis_url, ours, client, name, step):
    channel = ours().channel()
    Producer(channel).publish_many(range(8), routing_key=name)
    victim = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(VICTIM), redis_url, name, step], timeout=30, check=False
    )
    assert victim.returncode == -signal.SIGKILL
    got = []

    def callback(body, message):
        got.append(body)
        message.ack()

    expected = list(range(1, 8)) if step == "acked" else list(range(8))
    connection = ours(**QUICK)
    with Consumer(connection.channel(), Queue(name), callbacks=[callback], prefetch_count=1):
        drain(connection, lambda: len(set(got)) == len(expected), step=0.2)
    assert sorted(got) == expected


def test_message_that_kills_its_consumers_ends_in_the_dead_letters(redis_url, ours, client, name):
    Producer(ours().channel()).publish("poison", routing_key=name)
    for _ in range(2):
        victim = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(VICTIM), redis_url, name, "in the callback"], timeout=30, check=False
        )
        assert victim.returncode == -signal.SIGKILL
    connection = ours(**QUICK)
    got = []
    rule = {"max_deliveries": 2, "dead_letter": f"{name}.dead"}
    with Consumer(connection.channel(), Queue(name), on_message=got.append, **rule):
        drain(connection, lambda: client.llen(f"{name}.dead"), step=0.2)
    assert Queue(f"{name}.dead")(ours()).get().headers["x-poison-deliveries"] == 2
    assert got == []
    assert not client.exists(name)


# --- connections that are cut


@pytest.fixture
def proxy(redis_url):
    with Proxy(urlsplit(redis_url).port or 6379) as proxy:
        yield proxy


@pytest.mark.soak
@pytest.mark.parametrize("direction", Direction, ids=lambda direction: direction.value)
def test_connection_cut_at_every_byte_of_a_claim(proxy, redis_url, client, ours, name, direction):
    client.script_load(CLAIM.source)
    publisher = Producer(ours().channel())
    connection = ours(proxy.url(redis_url))
    got = []

    def consume(count):
        def callback(body, message):
            got.append(body)
            message.ack()

        with Consumer(connection.channel(), Queue(name), callbacks=[callback], auto_declare=False):
            drain(connection, lambda: len(got) >= count and set(got) == {"a", "b"} and not client.llen(name))

    for cut in range(1, 4000):
        publisher.publish_many(["a", "b"], routing_key=name)
        proxy.cut = Cut(direction, cut, CLAIM.sha.encode())
        try:
            consume(2)
        except connection.connection_errors:
            beyond = bool(got)  # the claim came through, an ack did not
            proxy.cut = None
            connection.collect()
            consume(2)
            assert beyond or got == ["a", "b"]
            if beyond:
                break
            got.clear()
    assert cut > 200
    assert set(got) == {"a", "b"}
    assert client.llen(name) == 0


def test_connection_killed_by_the_server_is_noticed_and_replaced(ours, client, name):
    connection = ours()
    channel = connection.channel()
    Producer(channel).publish_many(range(3), routing_key=name)
    got = []
    consumer = Consumer(channel, Queue(name), callbacks=[lambda body, message: got.append((body, message))])
    consumer.consume()
    drain(connection, lambda: len(got) == 3)
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(connection.recoverable_connection_errors):
        connection.drain_events(timeout=20)
    # What the application still has stays with it; what it has forgotten comes back with the new connection.
    got[:] = [(body, None) for body, _ in got]
    consumer.revive(connection.default_channel)
    consumer.consume()
    drain(connection, lambda: len(got) == 6)
    assert [body for body, _ in got] == [0, 1, 2, 0, 1, 2]
    assert all(message.delivery_info["redelivered"] for _, message in got[3:])


def test_first_consumer_after_a_loss_that_a_publish_noticed_is_told_of_the_loss(ours, client, name):
    connection = ours()
    channel = connection.channel()
    Producer(channel).publish("before", routing_key=name, declare=[Queue(name)], serializer="json")
    client.execute_command("CLIENT", "KILL", "TYPE", "normal")
    with pytest.raises(connection.recoverable_connection_errors):
        Producer(channel).publish("lost", routing_key=name, serializer="json")
    got = []
    consumer = Consumer(channel, Queue(name), callbacks=[lambda body, _: got.append(body)], auto_declare=False)
    with pytest.raises(connection.recoverable_connection_errors):
        consumer.consume()
    connection.ensure_connection(timeout=20)
    consumer.consume()
    drain(connection, lambda: got == ["before"])


@pytest.mark.parametrize("on_channel", [False, True])
def test_loss_is_raised_once_to_a_producer_that_does_not_retry(ours, client, name, on_channel):
    connection = ours()
    producer = Producer(connection.channel() if on_channel else connection, serializer="json")
    producer.publish("before", routing_key=name, declare=[Queue(name)])
    client.execute_command("CLIENT", "KILL", "TYPE", "normal")
    with pytest.raises(connection.recoverable_connection_errors):
        producer.publish("lost", routing_key=name)
    producer.publish("after", routing_key=name)
    assert client.llen(name) == 2
    connection.release()
    if on_channel:  # who let the connection go gets it back by asking the connection
        with pytest.raises(connection.recoverable_connection_errors):
            producer.publish("late", routing_key=name)


def test_publish_is_retried_over_a_new_connection(ours, client, name):
    connection = ours()
    producer = Producer(connection, Exchange(name), "k")
    queue = Queue(name, Exchange(name), "k")
    producer.publish(1, declare=[queue])
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    producer.publish(2, declare=[queue], retry=True, retry_policy={"max_retries": 3, "interval_start": 0})
    assert client.llen(name) == 2


# --- servers


def test_scripts_that_the_server_forgot_are_taught_again(ours, client, name):
    connection = ours()
    channel = connection.channel()
    queue = Queue(name)(channel)
    queue.declare()
    got = []
    for i in range(3):
        Producer(channel).publish(i, routing_key=name)
        client.script_flush()
        message = queue.get()
        assert message.payload == i
        client.script_flush()
        message.requeue()
        client.script_flush()
        with Consumer(channel, queue, callbacks=[lambda body, message: (got.append(body), message.ack())]):
            drain(connection, lambda: len(got) > i)  # noqa: B023
    assert got == [0, 1, 2]


def test_server_without_memory_refuses_publishes_and_lets_consumers_drain(start_server, name):
    server = start_server(RedisServer)
    with Connection(server.url) as connection, redis.Redis(port=server.port) as client:
        channel = connection.channel()
        producer = Producer(channel)
        producer.publish_many(range(3), routing_key=name)
        client.config_set("maxmemory", 1)
        with pytest.raises(exceptions.MessageNacked, match="OOM"):
            producer.publish(3, routing_key=name)
        with pytest.raises(exceptions.BatchPublishError), producer.batch():
            producer.publish(4, routing_key=name)
        got = []
        with Consumer(channel, Queue(name), callbacks=[lambda body, message: (got.append(body), message.ack())]):
            drain(connection, lambda: len(got) == 3)
        assert got == [0, 1, 2]
        client.config_set("maxmemory", 0)
        assert client.dbsize() == 0 or client.exists("unacked") == 0


def test_read_only_replica_says_so(start_server, name):
    master = start_server(RedisServer)
    replica = start_server(RedisServer)
    with Connection(replica.url) as connection, redis.Redis(port=replica.port) as client:
        client.replicaof("127.0.0.1", master.port)
        producer = Producer(connection.channel())
        with pytest.raises(exceptions.RecoverableConnectionError, match="READONLY"):
            producer.publish(1, routing_key=name)
        with pytest.raises(exceptions.RecoverableConnectionError, match="READONLY"):
            Queue(name)(connection.channel()).get()  # which runs a script


def test_refused_ack_is_noticed_by_the_channel(start_server, name):
    server = start_server(RedisServer)
    with Connection(server.url) as connection, redis.Redis(port=server.port) as client:
        channel = connection.channel()
        queue = Queue(name)(channel)
        Producer(channel).publish(1, routing_key=name)
        message = queue.get()
        client.replicaof("127.0.0.1", 1)
        message.ack()
        with pytest.raises(exceptions.RecoverableConnectionError, match="READONLY"):
            for _ in range(50):
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.1)


def test_server_that_hangs_ends_every_call_in_time(start_server, name):
    server = start_server(RedisServer)
    connection = Connection(server.url, transport_options={"socket_timeout": 1})
    channel = connection.channel()
    producer = Producer(channel)
    producer.publish(1, routing_key=name)
    consumer = Consumer(channel, Queue(name), callbacks=[lambda body, message: message.ack()])
    consumer.consume()
    drain(connection, lambda: True)
    server.pause()
    try:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.2)
        with pytest.raises(TimeoutError):
            producer.publish(2, routing_key=name)
        assert not connection.connected
        with pytest.raises((TimeoutError, exceptions.ConnectionError)):
            producer.publish(3, routing_key=name)
        assert time.monotonic() - start < 20  # not for ever
    finally:
        server.resume()
    connection.release()


def test_signal_handler_that_publishes_does_not_break_the_command_it_interrupts(start_server, name):
    server = start_server(RedisServer)
    connection = Connection(server.url)
    producer = Producer(connection, routing_key=name, serializer="json")
    producer.publish("first", declare=[Queue(name)])
    refused = []

    def handle(number, frame):
        with pytest.raises(connection.recoverable_connection_errors) as caught:
            producer.publish("from the handler")
        refused.append(str(caught.value))

    def interrupt():
        try:
            wait_until(lambda: connection.transport._stream._converses, 20, "the command does not begin")
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda: refused, 20, "the handler does not end")
        finally:
            server.resume()

    before = signal.signal(signal.SIGUSR1, handle)
    interrupting = threading.Thread(target=interrupt)
    server.pause()
    try:
        interrupting.start()
        producer.publish("interrupted")
    finally:
        interrupting.join()
        signal.signal(signal.SIGUSR1, before)
    assert len(refused) == 1
    assert "interrupted" in refused[0]
    producer.publish("last")
    assert Queue(name)(connection.channel()).queue_declare(passive=True).message_count == 3
    connection.release()


def test_wrong_password_is_not_tried_again(start_server):
    server = start_server(lambda: RedisServer(requirepass="secret"))
    with pytest.raises(exceptions.NotAllowed) as caught, Connection(f"redis://:wrong@127.0.0.1:{server.port}") as it:
        it.ensure_connection(reraise_as_library_errors=False)
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
    with Connection(f"redis://:secret@127.0.0.1:{server.port}") as connection:
        connection.connect()


def test_key_of_another_type_harms_no_other_queue(ours, client, name):
    client.set(f"{name}.bad", "a string")
    connection = ours()
    channel = connection.channel()
    Producer(channel).publish(1, routing_key=f"{name}.good")
    got = []
    queues = [Queue(f"{name}.bad"), Queue(f"{name}.good")]
    with Consumer(channel, queues, auto_declare=False, callbacks=[lambda body, message: got.append(body)]):
        drain(connection, lambda: got)
    with pytest.raises(exceptions.PreconditionFailed, match="WRONGTYPE"):
        Producer(channel).publish(2, routing_key=f"{name}.bad")


def test_lease_key_of_another_type_loses_nothing(ours, client, name):
    connection = ours()
    channel = connection.channel()
    Producer(channel).publish(1, routing_key=name)
    client.set("unacked", "a string")
    try:
        with pytest.raises(exceptions.PreconditionFailed):
            Queue(name)(channel).get()
    finally:
        client.delete("unacked")  # which is all queues'
    assert client.llen(name) == 1
