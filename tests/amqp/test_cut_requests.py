"""A connection that breaks between a request and its answer: a typed error, and the next connection answers it."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from kombulite import Connection, Exchange, Producer, Queue, aio, exceptions
from tests.aio.conftest import run
from tests.amqp import peer as p

CONFIRMS = {"confirm_publish": True}
POLICY = {"max_retries": 5, "interval_start": 0, "interval_step": 0}


class Answer(NamedTuple):
    """What answers a method."""

    signature: tuple[int, int]
    format: str = ""
    values: tuple[Any, ...] = ()


ANSWERS = {
    p.CLOSE: Answer(p.CLOSE_OK),
    p.CHANNEL_OPEN: Answer(p.CHANNEL_OPEN_OK, "S", ("",)),
    p.CHANNEL_CLOSE: Answer(p.CHANNEL_CLOSE_OK),
    p.FLOW: Answer(p.FLOW_OK, "b", (True,)),
    p.SELECT: Answer(p.SELECT_OK),
    p.DECLARE: Answer(p.DECLARE_OK, "sll", ("q", 0, 0)),
    p.CONSUME: Answer(p.CONSUME_OK, "s", ("c",)),
    p.CANCEL: Answer(p.CANCEL_OK, "s", ("c",)),
    p.GET: Answer((60, 72), "s", ("",)),
    (10, 70): Answer((10, 71)),  # update-secret
    (40, 10): Answer((40, 11)),  # exchange.declare
    (40, 20): Answer((40, 21)),  # .delete
    (40, 30): Answer((40, 31)),  # .bind
    (40, 40): Answer((40, 51)),  # .unbind
    (50, 20): Answer((50, 21)),  # queue.bind
    (50, 50): Answer((50, 51)),  # .unbind
    (50, 30): Answer((50, 31), "l", (0,)),  # .purge
    (50, 40): Answer((50, 41), "l", (0,)),  # .delete
    (60, 10): Answer((60, 11)),  # basic.qos
    (60, 110): Answer((60, 111)),  # .recover
}


def serve(session: p.Session, until: tuple[int, int] | None = None) -> None:
    """Answer what the client asks until it leaves, or until it asks for that, which gets no answer."""
    confirming, published = set[int](), Counter[int]()
    with suppress(p.Gone, OSError):
        while True:
            method = session.method()
            if method.signature == until:
                return
            if method.signature == p.SELECT:
                confirming.add(method.channel)
            if method.signature == p.PUBLISH:
                published[method.channel] += 1
                if method.channel in confirming:
                    session.ack(published[method.channel], channel=method.channel)
            elif method.signature in ANSWERS:
                answer = ANSWERS[method.signature]
                session.send(method.channel, answer.signature, answer.format, *answer.values)
            if method.signature == p.CLOSE:
                return


def reset(sock: socket.socket) -> None:
    """Close a connection by a reset, which also drops what was written and not read yet."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def cut_at(signature: tuple[int, int], cut: Callable[[socket.socket], object]) -> Callable[[p.Session], None]:
    """Return a script of a broker whose connection breaks when it is asked for something."""

    def script(session: p.Session) -> None:
        session.handshake()
        serve(session, signature)
        cut(session.sock)

    return script


def serve_all(session: p.Session) -> None:
    session.handshake()
    serve(session)


class Verb(NamedTuple):
    """What a program calls, and the method that it sends."""

    call: Callable[[Connection, Any], object]
    signature: tuple[int, int]


VERBS = {
    "exchange.declare": Verb(lambda _, channel: channel.exchange_declare("e", "direct"), (40, 10)),
    "exchange.delete": Verb(lambda _, channel: channel.exchange_delete("e"), (40, 20)),
    "exchange.bind": Verb(lambda _, channel: channel.exchange_bind("e", "f", "k"), (40, 30)),
    "exchange.unbind": Verb(lambda _, channel: channel.exchange_unbind("e", "f", "k"), (40, 40)),
    "queue.declare": Verb(lambda _, channel: channel.queue_declare("q"), p.DECLARE),
    "queue.bind": Verb(lambda _, channel: channel.queue_bind("q", "e", "k"), (50, 20)),
    "queue.unbind": Verb(lambda _, channel: channel.queue_unbind("q", "e", "k"), (50, 50)),
    "queue.purge": Verb(lambda _, channel: channel.queue_purge("q"), (50, 30)),
    "queue.delete": Verb(lambda _, channel: channel.queue_delete("q"), (50, 40)),
    "basic.qos": Verb(lambda _, channel: channel.basic_qos(0, 10, False), (60, 10)),
    "basic.consume": Verb(lambda _, channel: channel.basic_consume("q", consumer_tag="c"), p.CONSUME),
    "basic.get": Verb(lambda _, channel: channel.basic_get("q"), p.GET),
    "basic.recover": Verb(lambda _, channel: channel.basic_recover(True), (60, 110)),
    "channel.flow": Verb(lambda _, channel: channel.flow(True), p.FLOW),
    "confirm.select": Verb(lambda _, channel: channel.confirm_select(), p.SELECT),
    "channel.open": Verb(lambda connection, _: connection.channel(), p.CHANNEL_OPEN),
    "publish to a new exchange": Verb(lambda _, channel: Producer(channel, Exchange("e")).publish("x"), p.FLOW),
    "update-secret": Verb(lambda connection, _: connection.update_secret("new"), (10, 70)),
}


@pytest.mark.parametrize("cut", [reset, socket.socket.close], ids=["reset", "end"])
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_each_request(peer: p.Peer, verb: Verb, cut: Callable[[socket.socket], object]) -> None:
    peer.play(cut_at(verb.signature, cut), serve_all)
    with peer.connection() as connection:
        channel = None if verb.signature == p.CHANNEL_OPEN else connection.channel()
        with pytest.raises(connection.recoverable_connection_errors):
            verb.call(connection, channel)
        connection.ensure_connection(**POLICY)
        verb.call(connection, channel)


@pytest.mark.parametrize("cut", [reset, socket.socket.close], ids=["reset", "end"])
def test_the_end_of_a_consumer(peer: p.Peer, cut: Callable[[socket.socket], object]) -> None:
    """The consumer does not come back with the next connection, on which nothing may ask for it."""

    def script(session: p.Session) -> None:
        session.handshake()
        asked.append(session.expect(p.CHANNEL_OPEN).signature)
        session.send(1, p.CHANNEL_OPEN_OK, "S", "")
        asked.append(session.expect(p.DECLARE).signature)
        session.send(1, p.DECLARE_OK, "sll", "q", 0, 0)
        serve(session)

    asked: list[Any] = []
    peer.play(cut_at(p.CANCEL, cut), script)
    with peer.connection() as connection:
        channel = connection.channel()
        channel.basic_consume("q", consumer_tag="c")
        with pytest.raises(connection.recoverable_connection_errors):
            channel.basic_cancel("c")
        connection.ensure_connection(**POLICY)
        channel.queue_declare("q")
    assert asked == [p.CHANNEL_OPEN, p.DECLARE]


@pytest.mark.parametrize("close", [lambda channel, _: channel.close(), lambda _, connection: connection.release()])
@pytest.mark.parametrize("cut", [reset, socket.socket.close], ids=["reset", "end"])
def test_the_end_of_a_channel_or_of_a_connection(peer: p.Peer, cut: Callable[[socket.socket], object], close) -> None:
    """What is not there any more need not be closed."""

    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        assert session.method().signature in (p.CHANNEL_CLOSE, p.CLOSE)
        cut(session.sock)

    peer.play(script)
    connection = peer.connection()
    channel = connection.channel()
    with suppress(*connection.recoverable_connection_errors):
        close(channel, connection)
    assert not channel.is_open
    connection.release()


@pytest.mark.parametrize("cut", [reset, socket.socket.close], ids=["reset", "end"])
def test_a_confirm(peer: p.Peer, cut: Callable[[socket.socket], object]) -> None:
    """The publish that waited for it is published again, and is confirmed there."""
    peer.play(cut_at(p.PUBLISH, cut), serve_all)
    with peer.connection(transport_options=CONFIRMS) as connection:
        Producer(connection).publish("x", routing_key="q", retry=True, retry_policy=POLICY)
        assert connection.connected


AIO_VERBS = {
    "declare": ((lambda connection: connection.declare(Queue("q"))), p.DECLARE),
    "publish": ((lambda connection: connection.producer().publish("x", "q")), p.PUBLISH),
    "select": ((lambda connection: connection.producer().publish("x", "q")), p.SELECT),
    "get": ((lambda connection: connection.get(Queue("q"))), p.GET),
    "update-secret": ((lambda connection: connection.update_secret("new")), (10, 70)),
}


@pytest.mark.parametrize("cut", [reset, socket.socket.close], ids=["reset", "end"])
@pytest.mark.parametrize(("call", "signature"), AIO_VERBS.values(), ids=AIO_VERBS)
def test_each_call_on_an_event_loop(
    peer: p.Peer, call: Any, signature: tuple[int, int], cut: Callable[[socket.socket], object]
) -> None:
    """It raises a typed error, or is made again where that does no harm; the next one works."""

    async def main() -> None:
        async with aio.connect(f"amqp://127.0.0.1:{peer.port}//") as connection:
            with suppress(exceptions.RecoverableConnectionError):
                await call(connection)
            await call(connection)

    peer.play(cut_at(signature, cut), serve_all)
    run(main)
