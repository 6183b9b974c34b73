"""Processes come, end at any point and go: what they leave in the database is bounded."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

import kombu
import kombu.pidbox
import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, uuid
from kombulite.brokers.redis import deadlines
from kombulite.common import Broadcast, collect_replies
from kombulite.pidbox import Mailbox
from tests.redis.conftest import drain

NODES = {"kombulite": (Mailbox, Connection), "kombu": (kombu.pidbox.Mailbox, kombu.Connection)}


@pytest.fixture(params=NODES)
def node(request: pytest.FixtureRequest, redis_url: str, client: redis.Redis, name: str) -> Any:
    """A process that answers commands, of each library."""
    mailbox, connect = NODES[request.param]
    stop, listening, connection = threading.Event(), threading.Event(), connect(redis_url)
    node = mailbox(name, type="fanout")(connection).Node("node", channel=connection.channel())
    node.handlers["ping"] = lambda state: "pong"

    def serve() -> None:
        with node.listen():
            while not stop.is_set():
                try:
                    connection.drain_events(timeout=0.1)
                except TimeoutError:
                    listening.set()  # kombu subscribes with its first wait

    thread = threading.Thread(target=serve)
    thread.start()
    assert listening.wait(20)
    yield node
    stop.set()
    thread.join(20)
    connection.release()


def test_processes_that_ask_once_and_go_leave_nothing(redis_url, client, name, node):
    keys = None
    for _ in range(4):
        with Connection(redis_url) as connection:
            assert Mailbox(name, type="fanout")(connection).call(["node"], "ping", timeout=10) == [{"node": "pong"}]
        assert not client.exists(f"_kombu.binding.reply.{name}.pidbox")
        left = set(client.keys())
        keys = left if keys is None else keys
        assert left == keys


VICTIM = """
import os, signal, sys
from kombulite import Connection, Consumer, Exchange, Queue
from kombulite.common import Broadcast
from kombulite.pidbox import Mailbox

url, name, what = sys.argv[1:]
connection = Connection(url)
channel = connection.channel()
if what == "asks":
    mailbox = Mailbox(name, type="fanout", reply_queue_expires=0.5)(connection)
    mailbox.reply_queue(channel).declare()
elif what == "exclusive":
    Consumer(channel, Queue("", Exchange(name), "k", exclusive=True)).consume()
elif what == "named":
    Consumer(channel, Queue("", Exchange(name), "k", auto_delete=True)).consume()
elif what == "broadcast":
    Consumer(channel, Broadcast(name)).consume()
elif what == "expires":
    Consumer(channel, Queue(f"{name}.{os.getpid()}", Exchange(name), "k", auto_delete=True, expires=0.5)).consume()
elif what == "exchange":
    Exchange(f"{name}.{os.getpid()}", auto_delete=True)(channel).declare()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("what", ["asks", "exclusive", "named", "broadcast", "expires", "exchange"])
def test_what_killed_processes_leave_is_deleted_by_the_next(redis_url, ours, client, name, what):
    for _ in range(2):
        command = [sys.executable, "-c", textwrap.dedent(VICTIM), redis_url, name, what]
        assert subprocess.run(command, timeout=30, check=False).returncode == -signal.SIGKILL
    publisher = ours().channel()
    exchange = f"reply.{name}.pidbox" if what == "asks" else name
    if what in ("exclusive", "named", "expires"):
        Producer(publisher, Exchange(exchange)).publish("late", "k")
    assert client.zcard("_kombulite.deadlines") >= 2
    link = ours()
    link.connect()
    later = deadlines.Deadlines(
        link.transport._protocol.keys, lambda: link.transport._protocol.now() + deadlines.MIN_BINDING_LIFE
    )
    assert link.transport._stream.perform(later.sweep()) >= 2
    # The same again finds nothing; of all that was declared exchanges are left, which have names, and what has a TTL.
    assert link.transport._stream.perform(later.sweep()) == 0
    endless = {key for key in client.scan_iter() if client.pttl(key) < 0}
    assert endless <= {b"_kombulite.exchanges", b"_kombu.binding_deadlines"}
    assert {b"", name.encode(), exchange.encode()} >= set(client.hkeys("_kombulite.exchanges"))


def test_next_process_sweeps_of_its_own_accord(redis_url, ours, client, name):
    client.zadd("_kombulite.deadlines", {deadlines.Deadlines.queue(name): 1, "no entry": 1, "[1, 2]": 1})
    client.lpush(name, "late")
    connection = ours()
    with Consumer(connection.channel(), Queue(f"{name}.other")):
        drain(connection, lambda: not client.exists(name, "_kombulite.deadlines"), step=0.05)


def test_users_extend_what_they_use(ours, client, name):
    connection = ours()
    channel = connection.channel()
    exclusive = Queue(f"{name}.x", Exchange(name), "k", exclusive=True)(channel)
    exclusive.declare()
    with Consumer(channel, [Queue(name, Exchange(name), "k", expires=0.3, auto_delete=True), Broadcast(name + "b")]):
        drain(connection, lambda: client.zcard("_kombulite.deadlines") == 5, step=0.05)
        entry = deadlines.Deadlines.queue(name)
        before = client.zscore("_kombulite.deadlines", entry)
        drain(connection, lambda: client.zscore("_kombulite.deadlines", entry) > before, step=0.05)
    connection.release()
    assert not client.exists(f"_kombulite.queue.{name}.x")


def test_queue_that_is_declared_to_stay_is_not_swept(ours, client, name):
    first = Queue(name, Exchange(name), "k", auto_delete=True, expires=60)
    first(ours().channel()).declare()
    channel = ours().channel()
    queue = Queue(name, Exchange(name), "k")(channel)
    queue.declare()
    assert client.zcard("_kombulite.deadlines") == 0
    Producer(channel, Exchange(name)).publish("kept", "k")
    assert queue.get(no_ack=True).payload == "kept"


def test_queue_that_kombu_may_use_too_ends_by_its_rule(ours, client, name):
    """A durable queue that expires may have kombu's consumers, which say so for the whole exchange."""
    connection = ours()
    connection.connect()
    transport = connection.transport
    Queue(name, Exchange(name), "k", expires=60)(connection).declare()
    later = deadlines.Deadlines(
        transport._protocol.keys, lambda: transport._protocol.now() + deadlines.MIN_BINDING_LIFE / 1000
    )
    client.lpush(name, "brought after its end")
    client.zincrby("_kombu.binding_deadlines", deadlines.MIN_BINDING_LIFE, name)  # somebody uses the exchange
    assert transport._stream.perform(later.sweep()) == 1
    assert client.scard(f"_kombu.binding.{name}") == 1
    assert client.pttl(name) > 0
    assert transport._stream.perform(later.sweep()) == 0
    client.zadd("_kombulite.deadlines", {client.zrange("_kombulite.deadlines", 0, 0)[0]: 1})
    client.zadd("_kombu.binding_deadlines", {name: 1})
    assert transport._stream.perform(later.sweep()) == 1
    assert not client.exists(f"_kombu.binding.{name}", "_kombulite.deadlines")


def test_late_replies_are_gone_with_the_queue(ours, client, name):
    connection = ours()
    channel = connection.channel()
    queue = Queue(uuid(), Exchange(name), "k", auto_delete=True, expires=10)
    replies = collect_replies(connection, channel, queue, limit=1, timeout=10)
    queue(channel).declare()
    producer = Producer(ours().channel(), Exchange(name))
    producer.publish("in time", "k")
    assert list(replies) == ["in time"]
    producer.publish("late", "k")
    assert not client.exists(queue.name)
    client.lpush(queue.name, "under way when the queue was deleted")
    connection.connect()
    transport = connection.transport
    later = deadlines.Deadlines(transport._protocol.keys, lambda: transport._protocol.now() + deadlines.LATE_LIFE)
    transport._stream.perform(later.sweep())
    assert not client.exists(queue.name)
