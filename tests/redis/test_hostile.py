"""Servers that answer with nonsense, and names and properties that somebody chose to do harm."""

from __future__ import annotations

import json
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue, aio, exceptions
from kombulite.brokers.redis.replies import ReplyQueue
from kombulite.brokers.redis.stream import READ_SIZE, Stream
from tests.aio.conftest import run
from tests.redis.conftest import drain
from tests.redis.test_looks import Idle

PASSWORD = "hunter2"  # and the user is not part of it


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[bytes], bytes]], int]]:
    """Starts a server that answers what it is sent with what a function makes of it; returns its port."""
    listeners: list[socket.socket] = []

    def talk(sock: socket.socket, answer: Callable[[bytes], bytes]) -> None:
        with sock, suppress(OSError):
            while data := sock.recv(65536):
                sock.sendall(answer(data))

    def listen(listener: socket.socket, answer: Callable[[bytes], bytes]) -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=talk, args=(sock, answer), daemon=True).start()

    def serve(answer: Callable[[bytes], bytes]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=listen, args=(listener, answer), daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    yield serve
    for listener in listeners:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def quoting(data: bytes) -> bytes:
    """An old Redis: it does not know HELLO, quotes its arguments, and refuses the password."""
    words = [word for word in data.split(b"\r\n") if word and word[:1] not in b"*$"]
    if words[0].upper() != b"HELLO":
        return b"-WRONGPASS invalid password\r\n"
    quoted = b", ".join(b"`%s`" % word for word in words[1:])
    return b"-ERR unknown command `HELLO`, with args beginning with: " + quoted + b"\r\n"


SENTINEL = {"master_name": "m", "sentinel_kwargs": {"protocol": 3, "username": "user", "password": PASSWORD}}


@pytest.mark.parametrize(("scheme", "options"), [("redis", {}), ("redis", {"protocol": 3}), ("sentinel", SENTINEL)])
def test_a_server_that_quotes_the_password_does_not_leak_it(serve, scheme, options):
    url = f"{scheme}://user:{PASSWORD}@127.0.0.1:{serve(quoting)}/"
    with Connection(url, transport_options=options) as connection:
        with pytest.raises((*connection.connection_errors, *connection.channel_errors)) as caught:
            connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=False)
    error: BaseException | None = caught.value
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    while error is not None:  # also what a traceback would not show
        assert PASSWORD not in repr(error)
        error = error.__cause__ or error.__context__


NONSENSE = [
    b"*1\r\n" * 1000,
    b"*-5\r\n",
    b"%1\r\n",
    b"$-7\r\n",
    b"(12\r\n",
    b"+OK\r\n",
    b"*3\r\n+a\r\n:1\r\n_\r\n",
    b"\x00\xff",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b">2\r\n+message\r\n:1\r\n",
    b">0\r\n",
    b">1\r\n$10\r\ninvalidate\r\n",
]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_instead_of_a_greeting(serve, nonsense):
    port = serve(lambda data: nonsense)
    with Connection(f"redis://127.0.0.1:{port}/", connect_timeout=0.2) as connection:
        with pytest.raises((exceptions.OperationalError, exceptions.ConnectionError, TimeoutError)):
            connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=True)
            connection.default_channel.queue_declare("q")


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_instead_of_an_answer(serve, nonsense):
    def answer(data: bytes) -> bytes:
        if b"HELLO" in data:
            return b"%2\r\n+server\r\n+redis\r\n+proto\r\n:3\r\n"
        return b"+OK\r\n" if data.startswith((b"*4\r\n$6\r\nCLIENT", b"*2\r\n$6\r\nSELECT")) else nonsense

    port = serve(answer)
    options = {"socket_timeout": 0.2}
    with Connection(f"redis://127.0.0.1:{port}/", connect_timeout=0.5, transport_options=options) as connection:
        with pytest.raises((*connection.connection_errors, *connection.channel_errors)):
            connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=False)
            channel = connection.channel()
            Queue("q", Exchange("e"), "k")(channel).declare()
            Producer(channel).publish(1, exchange="e", routing_key="k")
            Queue("q")(channel).get()
            raise exceptions.ConnectionError("all of it went well")


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("greets", [True, False])
def test_nonsense_on_an_event_loop(serve, nonsense, greets):
    def answer(data: bytes) -> bytes:
        if greets and b"HELLO" in data:
            return b"%2\r\n+server\r\n+redis\r\n+proto\r\n:3\r\n"
        setting = data.startswith((b"*4\r\n$6\r\nCLIENT", b"*2\r\n$6\r\nSELECT"))
        return b"+OK\r\n" if greets and setting else nonsense

    async def main():
        url, options = f"redis://127.0.0.1:{serve(answer)}/", {"socket_timeout": 0.2}
        connection = aio.connect(url, connect_timeout=0.5, transport_options=options)
        with pytest.raises((exceptions.ConnectionError, exceptions.ChannelError, exceptions.MessageNacked, OSError)):
            await connection.declare(Queue("q", Exchange("e"), "k"))
            await connection.producer(Exchange("e"), "k").publish(1)
            await connection.get("q")
            raise exceptions.ConnectionError("all of it went well")
        await connection.close()

    run(main)


@pytest.mark.parametrize(
    "push",
    [
        b">0\r\n",
        b">1\r\n+invalidate\r\n",
        b">2\r\n+invalidate\r\n:5\r\n",
        b">2\r\n+pmessage\r\n+x\r\n",
        b">4\r\n+pmessage\r\n+x\r\n+x\r\n:1\r\n",
    ],
)
def test_nonsense_on_a_connection_that_listens_ends_it(push):
    replies = ReplyQueue(3, Idle().receiver.on_push)
    replies.feed(push)
    with pytest.raises(exceptions.RecoverableConnectionError, match="makes no sense"):
        replies.take(0, [])


@pytest.mark.parametrize("answer", [b":1\r\n", b"*1\r\n:1\r\n", b"*2\r\n:9\r\n*0\r\n", b"*2\r\n:1\r\n:1\r\n", b"_\r\n"])
def test_nonsense_in_the_place_of_messages_ends_the_connection(answer):
    idle, replies = Idle(), ReplyQueue(3, print)
    idle.receiver.claim(idle.state)
    replies.expect(1, idle.wire.on_replies[0])
    replies.feed(answer)
    with pytest.raises(exceptions.RecoverableConnectionError, match="makes no sense"):
        replies.take(0, [])


def test_a_string_without_end_is_not_collected(serve, monkeypatch):
    monkeypatch.setattr("kombulite.brokers.redis.replies.MAX_UNREAD", 1 << 20)
    port = serve(lambda data: b"$2000000000\r\n" + bytes(2 << 20))
    ours = Stream(SimpleNamespace(_sock=socket.create_connection(("127.0.0.1", port))), 3, 10, print)
    with pytest.raises(exceptions.RecoverableConnectionError, match="too long"):
        ours.call("PING")
    assert not ours.is_open


NAMES = [
    "]] redis.call('FLUSHALL') --",
    "a\r\nFLUSHALL\r\n",
    "*",
    "[a-z]*",
    "{}",
    "a b\0c",
    "\u00e9\U0001f600",
    '"',
    "%s",
]


@pytest.mark.parametrize("suffix", NAMES)
def test_names_are_data(ours, client, name, suffix):
    """In keys, scripts and patterns."""
    client.set("precious", "1")
    connection = ours()
    channel = connection.channel()
    got, others = [], []

    def note(body, message):
        got.append(body)
        message.ack()

    queue = Queue(name + suffix, Exchange(f"{name}d{suffix}"), routing_key=suffix)
    other = Queue(
        f"{name}other", Exchange(f"{name}x"), routing_key="x", on_message=lambda message: others.append(message)
    )
    with Consumer(channel, [queue], callbacks=[note]), Consumer(channel, [other]):
        Producer(channel).publish("direct", exchange=queue.exchange.name, routing_key=suffix)
        Producer(channel).publish("by name", routing_key=queue.name)
        drain(connection, lambda: len(got) == 2)
    queue(channel).delete()
    assert client.get("precious") == b"1"
    assert others == []


def test_fanout_exchange_whose_name_is_a_pattern_hears_no_other(ours, name):
    connection = ours()
    channel = connection.channel()
    got = []
    spy = Queue(f"{name}.spy", Exchange("*", "fanout"))
    with Consumer(channel, spy, callbacks=[lambda body, message: got.append(body)], no_ack=True):
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        heard = Queue(f"{name}.heard", Exchange(f"{name}secret", "fanout"))
        heard(channel).declare()
        Producer(channel, Exchange(f"{name}secret", "fanout")).publish("secret")
        Producer(channel, Exchange("*", "fanout")).publish("for all")
        drain(connection, lambda: got)
    assert got == ["for all"]


ODD = [None, True, -1, 1e308, "", "x", [], {}, [[]], {"a": {}}]


@pytest.mark.parametrize(
    "property", ["priority", "expiration", "delivery_mode", "reply_to", "correlation_id", "timestamp", "x", "headers"]
)
def test_properties_of_any_type_stop_no_consumer(ours, client, name, property, caplog):
    connection = ours()
    channel = connection.channel()
    got = []

    def callback(body, message):
        got.append(body)
        message.ack()

    with caplog.at_level(logging.ERROR), Consumer(channel, Queue(name), callbacks=[callback]):
        for number, odd in enumerate(ODD):
            properties = {"delivery_tag": f"{name}{number}", "delivery_info": {"exchange": "", "routing_key": name}}
            headers = {} if property != "headers" else odd
            if property not in ("headers",):
                properties[property] = odd
            client.lpush(
                name,
                json.dumps(
                    {
                        "body": "1",
                        "content-type": "application/json",
                        "content-encoding": "utf-8",
                        "headers": headers,
                        "properties": properties,
                    }
                ),
            )
        Producer(channel).publish("last", routing_key=name)
        drain(connection, lambda: "last" in got)
    refused = client.llen(f"_kombulite.dead.{name}")
    assert len(got) + refused <= len(ODD) + 1
    assert client.llen(name) == 0
    assert not client.exists("unacked")


@pytest.mark.timeout(30)
def test_a_server_that_talks_without_end_keeps_nobody():
    ours, theirs = socket.socketpair()
    pushes: list[object] = []
    link = Stream(SimpleNamespace(_sock=ours), 3, 1, pushes.append)
    push = b">2\r\n+x\r\n$17\r\n" + b"y" * 17 + b"\r\n"
    assert READ_SIZE % len(push) == 0  # so that none is cut

    class Endless:
        def recv(self, size: int) -> bytes:
            return push * (size // len(push))

    link._sock = Endless()
    link._readable = SimpleNamespace(select=lambda timeout: [1])
    link.poll()
    assert pushes
    ours.close()
    theirs.close()
