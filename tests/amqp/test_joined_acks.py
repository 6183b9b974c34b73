"""Acks of deliveries that came together leave as one frame, in time, and before all that is sent after them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kombulite import Connection, Consumer, Queue
from kombulite.brokers.amqp import heartbeat_thread
from tests.amqp import peer as p

TIMEOUT = 20.0  # seconds
MESSAGES = 5


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let acks wait for those that follow, however slow this machine is."""
    monkeypatch.setattr(heartbeat_thread, "FLUSH_DELAY", 600.0)


def deliver(session: p.Session, tag: str, channel: int = 1, count: int = MESSAGES) -> None:
    """Send some messages at once."""
    sent: list[bytes] = []
    together = p.Session.__new__(p.Session)
    together.encoder = session.encoder
    together.sock = type("Collector", (), {"sendall": sent.append})()  # type: ignore[assignment]
    for number in range(1, count + 1):
        together.deliver(number, b"x", tag, channel)
    session.sock.sendall(b"".join(sent))


def read_ack(session: p.Session) -> tuple[int, bool]:
    tag, multiple = session.expect(p.ACK).read("Lb")
    return tag, multiple


def consume(connection: Connection, callback: Callable[[Any], Any], count: int = MESSAGES) -> Consumer:
    """Consume until so many messages were handled."""
    handled: list[Any] = []

    def handle(message: Any) -> None:
        handled.append(message)
        callback(message)

    consumer = Consumer(connection.channel(), Queue("q", no_declare=True), on_message=handle, auto_declare=False)
    consumer.consume()
    while len(handled) < count:
        connection.drain_events(timeout=TIMEOUT)
    return consumer


def serving(peer: p.Peer, acks: list[tuple[int, bool]], number: int) -> None:
    """Deliver messages, and note as many acks as there have to be."""

    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        deliver(session, session.consume())
        acks.extend(read_ack(session) for _ in range(number))
        session.farewell()

    peer.play(script)


@pytest.mark.usefixtures("patient")
def test_acks_of_messages_that_came_together_are_one(peer: p.Peer) -> None:
    acks: list[tuple[int, bool]] = []
    serving(peer, acks, 1)
    with peer.connection() as connection:
        consume(connection, lambda message: message.ack())
    peer.close()
    assert acks == [(MESSAGES, True)]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("order", "acks"),
    [
        ([5, 4, 3, 2, 1], [(5, False), (4, False), (3, False), (2, False), (1, False)]),
        ([2, 3, 4, 5, 1], [(2, False), (3, False), (4, False), (5, False), (1, False)]),
        ([1, 2, 4, 5, 3], [(1, False), (2, False), (4, False), (5, False), (3, False)]),  # and nothing follows here
    ],
)
def test_acks_in_another_order_are_frames_of_their_own(
    peer: p.Peer, order: list[int], acks: list[tuple[int, bool]]
) -> None:
    found: list[tuple[int, bool]] = []
    serving(peer, found, MESSAGES)
    messages: list[Any] = []
    with peer.connection() as connection:
        consume(connection, messages.append)
        for number in order:
            messages[number - 1].ack()
    peer.close()
    assert found == acks


@pytest.mark.usefixtures("patient")
def test_no_ack_covers_a_message_that_is_kept(peer: p.Peer) -> None:
    acks: list[tuple[int, bool]] = []
    serving(peer, acks, 3)
    with peer.connection() as connection:
        consume(connection, lambda message: message.delivery_tag == 3 or message.ack())
    peer.close()
    assert acks == [(2, True), (4, False), (5, False)]


@pytest.mark.usefixtures("patient")
def test_acks_leave_before_what_is_sent_after_them(peer: p.Peer) -> None:
    seen: list[Any] = []

    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        deliver(session, session.consume())
        seen.append(read_ack(session))
        method = session.method()
        seen.append((method.signature, method.arguments[:8]))
        session.farewell()

    def handle(message: Any) -> None:
        if message.delivery_tag == 3:
            message.reject()
        elif message.delivery_tag < 3:
            message.ack()

    peer.play(script)
    with peer.connection() as connection:
        consume(connection, handle)
    peer.close()
    assert seen == [(2, True), ((60, 90), (3).to_bytes(8, "big"))]


def test_an_ack_does_not_wait_for_a_callback_that_takes_long(peer: p.Peer) -> None:
    came = threading.Event()

    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        deliver(session, session.consume())
        while read_ack(session)[0] < 2:
            pass
        came.set()
        while read_ack(session)[0] < MESSAGES:
            pass
        session.farewell()

    def handle(message: Any) -> None:
        if message.delivery_tag == 3:
            assert came.wait(TIMEOUT)
        message.ack()

    peer.play(script)
    with peer.connection() as connection:
        consume(connection, handle)
    peer.close()


def test_an_ack_leaves_though_the_program_does_not_drain_any_more(peer: p.Peer) -> None:
    came = threading.Event()

    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        deliver(session, session.consume())
        while read_ack(session)[0] < 2:
            pass
        came.set()
        session.farewell()

    peer.play(script)
    connection = peer.connection()
    consume(connection, lambda message: message.ack(), 2)
    assert came.wait(TIMEOUT)
    connection.release()
    peer.close()


def test_without_the_thread_each_ack_leaves_at_once(peer: p.Peer) -> None:
    acks: list[tuple[int, bool]] = []
    serving(peer, acks, MESSAGES)
    with peer.connection(transport_options={"heartbeat_thread": False}) as connection:
        consume(connection, lambda message: message.ack())
    peer.close()
    assert acks == [(number, False) for number in range(1, MESSAGES + 1)]


@pytest.mark.parametrize("end", ["", "connection.collect()", "del connection, consumer; import gc; gc.collect()"])
def test_acks_leave_before_a_program_ends_that_closes_nothing(peer: p.Peer, end: str) -> None:
    acks: list[tuple[int, bool]] = []

    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        deliver(session, session.consume())
        while not acks or acks[-1][0] < 2:
            acks.append(read_ack(session))
        session.silence()

    peer.play(script)
    program = f"""
from kombulite import Connection, Consumer, Queue
connection = Connection("amqp://127.0.0.1:{peer.port}//")
consumer = Consumer(connection.channel(), Queue("q", no_declare=True), on_message=lambda m: m.ack(), auto_declare=False)
consumer.consume()
connection.drain_events(timeout={TIMEOUT})
connection.drain_events(timeout={TIMEOUT})
{end}
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=TIMEOUT)
    peer.close()
    assert acks[-1][0] == 2


def test_a_lost_connection_refuses_acks(peer: p.Peer) -> None:
    gone = threading.Event()

    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        deliver(session, session.consume())
        session.sock.close()
        gone.set()

    peer.play(script)
    connection = peer.connection()
    messages: list[Any] = []
    consume(connection, messages.append, 2)
    assert gone.wait(TIMEOUT)
    transport = connection.transport
    transport._protocol.stream.fail(ConnectionResetError("cut"))
    for message in messages:
        with pytest.raises(connection.recoverable_connection_errors):
            message.ack()
    peer.close()
