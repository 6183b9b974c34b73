"""A service that spreads keys over shards itself: one endpoint, and nothing said of nodes. What works is said here."""

from __future__ import annotations

import socket
import socketserver
import threading
from contextlib import suppress

import hiredis
import pytest
import redis

from kombulite import Connection, Exchange, Queue
from kombulite._core import pack_command
from kombulite.brokers.redis.cluster.slots import SLOTS, slot_of
from kombulite.exceptions import NotAllowed
from tests.conftest import started
from tests.redis.conftest import drain
from tests.redis.test_cluster import OWN, TAGGED, receive
from tests.servers import RedisServer

LAYOUTS = pytest.mark.parametrize(
    "layout", [pytest.param(OWN, id="own"), pytest.param(TAGGED, id="tagged", marks=pytest.mark.soak)]
)
KEY_PLACES = {b"EVAL": 3, b"EVALSHA": 3, b"SCAN": 2}
#: What such a service does not have.
LACKS = frozenset([b"SSUBSCRIBE", b"SUBSCRIBE", b"PSUBSCRIBE", b"WAIT"])


class Endpoint(socketserver.ThreadingTCPServer):
    """Passes each command on to the shard that has its key, and waits for the reply."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, shards, says_slots=True):
        super().__init__(("127.0.0.1", 0), Client)
        self.shards = shards
        self.says_slots = says_slots
        self.port = self.server_address[1]
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.shutdown()
        self.server_close()
        self.thread.join(20)


class Client(socketserver.BaseRequestHandler):
    """One connection of a client, and those to the shards."""

    def handle(self):
        with suppress(OSError):
            self.work()

    def work(self):
        shards = [(socket.create_connection(("127.0.0.1", shard.port)), Raw()) for shard in self.server.shards]
        commands, waiting = hiredis.Reader(), []
        try:
            while data := self.request.recv(65536):
                commands.feed(data)
                while (command := commands.gets()) is not False:
                    waiting.append(command)
                    name = command[0].upper()
                    if name == b"MULTI" or (waiting[0][0].upper() == b"MULTI" and name != b"EXEC"):
                        continue  # until it is known where it goes
                    self.request.sendall(b"".join(self.replies(waiting, shards)))
                    waiting.clear()
        finally:
            for shard, _ in shards:
                shard.close()

    def replies(self, commands, shards):
        name, *arguments = commands[0]
        name = name.upper()
        if name == b"CLUSTER":
            if not self.server.says_slots:
                return [b"-ERR unknown command 'CLUSTER'\r\n"]
            return [b"*1\r\n*3\r\n:0\r\n:%d\r\n*2\r\n$0\r\n\r\n:%d\r\n" % (SLOTS - 1, self.server.port)]
        if name in LACKS or (name == b"CLIENT" and arguments[0].upper() in (b"TRACKING", b"CACHING")):
            return [b"-ERR unknown command '%s'\r\n" % name]
        if name in (b"EVAL", b"EVALSHA") and int(arguments[1]) == 0:
            return [b"-ERR Script attempted to access keys that were not declared\r\n"]
        keyed = commands[1] if name == b"MULTI" else commands[0]
        place = KEY_PLACES.get(keyed[0].upper(), 1)
        key = keyed[place] if len(keyed) > place else b""
        shard, reader = shards[slot_of(key) * len(shards) // SLOTS]
        shard.sendall(b"".join(pack_command(command) for command in commands))
        found = [reader.reply(shard) for _ in commands]
        if name == b"HELLO":
            found = [found[0].replace(b"$10\r\nstandalone", b"$7\r\ncluster")]
            for other, its in shards[1:]:
                other.sendall(pack_command(commands[0]))
                its.reply(other)
        return found


class Raw:
    """Cuts what a shard sends into replies, which go on as they are."""

    def __init__(self):
        self.data = b""

    def reply(self, shard):
        while (end := self.end_of(0)) is None:
            more = shard.recv(65536)
            if not more:
                raise ConnectionResetError("the shard has closed the connection")
            self.data += more
        found, self.data = self.data[:end], self.data[end:]
        return found

    def end_of(self, at):
        line_end = self.data.find(b"\r\n", at)
        if line_end < 0:
            return None
        kind, rest, at = self.data[at : at + 1], self.data[at + 1 : line_end], line_end + 2
        if kind == b"$" and int(rest) >= 0:
            return at + int(rest) + 2 if len(self.data) >= at + int(rest) + 2 else None
        for _ in range(int(rest) * (2 if kind == b"%" else 1) if kind in (b"*", b"%", b"~") else 0):
            at = self.end_of(at)
            if at is None:
                return None
        return at


@pytest.fixture(scope="module")
def shards(request):
    return [started(request, RedisServer) for _ in range(2)]


@pytest.fixture
def endpoint(shards):
    for shard in shards:
        with redis.Redis(port=shard.port) as client:
            client.flushall()
    with Endpoint(shards) as endpoint:
        yield endpoint


def sizes(shards):
    found = []
    for shard in shards:
        with redis.Redis(port=shard.port) as client:
            found.append(client.dbsize())
    return found


@LAYOUTS
def test_queues_work_behind_an_endpoint_that_spreads_keys_itself(endpoint, shards, layout):
    """It tells of no changes and has no scripts for several slots: queues are looked at, each by itself."""
    exchange = Exchange("spread", "topic")
    queues = [Queue(f"spread{number}", exchange, routing_key=f"{number}.#", max_priority=9) for number in range(8)]
    with Connection(f"rediscluster://127.0.0.1:{endpoint.port}", transport_options=layout) as connection:
        producer = connection.Producer(exchange=exchange)
        producer.publish(-1, routing_key="0.x", declare=queues)
        producer.publish_many(range(40), routing_key="1.x")
        for number in range(8):
            producer.publish(100 + number, routing_key=f"{number}.x", priority=3)
        assert (min(sizes(shards)) > 0) == (layout == OWN)
        assert sorted(receive(connection, queues, 49)) == [-1, *range(40), *range(100, 108)]
        received = []
        with connection.Consumer(queues, on_message=received.append):
            connection.drain(0.01)
            with Connection(f"rediscluster://127.0.0.1:{endpoint.port}", transport_options=layout) as other:
                other.Producer(exchange=exchange).publish("woken", routing_key="5.x", declare=[exchange])
            drain(connection, lambda: received)
        received[0].requeue()
        channel = connection.channel()
        message = channel.basic_get("spread5")
        assert message.payload == "woken"
        message.reject()
        assert channel.basic_get("spread5") is None


def test_an_endpoint_that_says_nothing_of_slots_is_refused(shards):
    with Endpoint(shards, says_slots=False) as endpoint:
        with Connection(f"rediscluster://127.0.0.1:{endpoint.port}") as connection:
            with pytest.raises(NotAllowed, match="CLUSTER"):
                connection.connect()
