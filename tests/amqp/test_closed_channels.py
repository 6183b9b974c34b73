"""A channel that the broker closes while it sends messages to it: the connection and its other channels go on."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from kombulite import Connection, Consumer, Queue
from kombulite.exceptions import ChannelError, NotFound, UnexpectedFrame
from tests.amqp import peer as p

MESSAGES = 1000
ROUNDS = 10
TIMEOUT = 20.0  # seconds until a message that was to come counts as lost


def fill(connection: Connection, queue: Queue) -> None:
    connection.Producer().publish_many(range(MESSAGES), routing_key=queue.name)


def declare_what_is_not_there(channel: Any, name: str) -> None:
    with suppress(NotFound):
        channel.queue_declare(name, passive=True)


def publish_to_what_is_not_there(channel: Any, name: str) -> None:
    with suppress(ChannelError):
        channel.basic_publish(channel.prepare_message(b""), name, "")


def get_from_what_is_not_there(channel: Any, name: str) -> None:
    with suppress(NotFound):
        channel.basic_get(name)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("fail", [declare_what_is_not_there, publish_to_what_is_not_there, get_from_what_is_not_there])
def test_other_channels_go_on_when_one_is_closed_amid_deliveries(
    connect: Callable[..., Connection], name: Callable[[str], str], kind: str, fail: Callable[[Any, str], None]
) -> None:
    connection = connect()
    arguments = {"x-queue-type": kind}
    busy, other = (Queue(name(each), queue_arguments=arguments)(connection.channel()) for each in ("busy", "other"))
    for queue in (busy, other):
        queue.declare()
        fill(connection, queue)
    seen: set[int] = set()

    def acknowledge(body: int, message: Any) -> None:
        seen.add(body)
        message.ack()

    with Consumer(connection.channel(), other, callbacks=[acknowledge], prefetch_count=10):
        for _ in range(ROUNDS):
            consume_and_fail(connection, busy, lambda channel: fail(channel, name("nothing")))
        while len(seen) < MESSAGES:
            drain(connection)
    assert connection.counters.reconnects == 0
    for queue in (busy, other):
        queue.delete()


def drain(connection: Connection) -> None:
    with suppress(ChannelError):  # the consumers of a closed channel have to know
        connection.drain_events(timeout=TIMEOUT)


def consume_and_fail(connection: Connection, queue: Queue, fail: Callable[[Any], None]) -> None:
    """Have the broker close a channel to which it sends: each ack makes room for another message."""
    channel = connection.channel()
    left = 25

    def receive(message: Any) -> None:
        nonlocal left
        message.ack()
        left -= 1
        if not left:
            fail(channel)

    Consumer(channel, queue, on_message=receive, prefetch_count=50).consume()
    while left > 0:
        drain(connection)


def late_frames(session: p.Session) -> None:
    """All that a broker may have sent for a channel before it knew that both sides had closed it."""
    session.deliver(1, body=b"on its way")
    session.message(1, (60, 71), "Lbssl", (2, False, "", "q", 0), b"an answer to get")
    session.give_back(b"returned", "nowhere")
    session.ack(1)
    session.send(1, p.DECLARE_OK, "sll", "q", 0, 0)
    session.send(1, p.FLOW, "b", False)
    session.send(1, p.CANCEL, "sb", "c", True)
    session.close_channel(404, "NOT_FOUND again")


def test_whatever_comes_for_a_closed_channel_is_discarded(peer: p.Peer) -> None:
    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        session.expect(p.DECLARE)
        session.close_channel(404, "NOT_FOUND", p.DECLARE)
        late_frames(session)
        session.expect(p.CHANNEL_CLOSE_OK)
        late_frames(session)
        session.open_channel()
        late_frames(session)
        method = session.expect(p.DECLARE)  # and no word on channel 1 before it
        assert method.channel == 2
        session.send(2, p.DECLARE_OK, "sll", "there", 0, 0)
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        channel = connection.channel()
        with pytest.raises(NotFound):
            channel.queue_declare("nothing", passive=True)
        info = connection.channel().queue_declare("there", passive=True)
        assert info is not None
        assert info.queue == "there"
        assert connection.connected


def test_a_number_that_is_used_again_gets_nothing_of_its_predecessor(peer: p.Peer) -> None:
    def script(session: p.Session) -> None:
        session.handshake(channel_max=1)
        session.open_channel()
        session.expect(p.DECLARE)
        session.close_channel(404, "NOT_FOUND", p.DECLARE)
        session.expect(p.CHANNEL_CLOSE_OK)
        session.expect(p.CHANNEL_OPEN)
        late_frames(session)
        session.send(1, p.CHANNEL_OPEN_OK, "S", "")
        tag = session.consume()
        session.deliver(1, b"its own", tag)
        assert session.expect(p.ACK).read("Lb") == [1, False]
        session.farewell()

    peer.play(script)
    received: list[bytes] = []

    def receive(message: Any) -> None:
        received.append(message.body)
        message.ack()

    with peer.connection() as connection:
        with pytest.raises(NotFound):
            connection.channel().queue_declare("nothing", passive=True)
        connection.channel().basic_consume("q", callback=receive)
        connection.drain_events(timeout=p.PATIENCE)
        assert received == [b"its own"]


def test_a_method_within_a_message_ends_the_connection(peer: p.Peer) -> None:
    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        session.expect(p.DECLARE)
        session.send(1, p.DELIVER, "sLbss", "c", 1, False, "", "q")
        session.close_channel(404, "NOT_FOUND", p.DECLARE)
        session.farewell()

    peer.play(script)
    with peer.connection() as connection, pytest.raises(UnexpectedFrame):
        # Nothing may come within a message: that is no matter of the channel's.
        connection.channel().queue_declare("nothing", passive=True)


def test_a_message_for_a_channel_that_was_never_open_ends_the_connection(peer: p.Peer) -> None:
    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        session.expect(p.DECLARE)
        session.sock.sendall(struct.pack(">BHLHH", 1, 7, 15, 60, 60) + b"\x01c" + b"\0" * 9 + b"\xce")
        session.silence()

    peer.play(script)
    connection = peer.connection()
    with pytest.raises(UnexpectedFrame):
        connection.channel().queue_declare("nothing", passive=True)
    connection.collect()


def test_a_flow_that_comes_while_we_close_its_channel_is_not_answered(peer: p.Peer) -> None:
    """Nothing may be sent on a channel behind its channel.close; the broker would end the connection."""
    last: list[tuple[int, int]] = []

    def script(session: p.Session) -> None:
        session.handshake()
        number = session.open_channel()
        session.expect(p.CHANNEL_CLOSE)
        session.send(number, p.FLOW, "b", True)
        session.send(number, p.CHANNEL_CLOSE_OK)
        last.append(session.method().signature)
        session.send(0, p.CLOSE_OK)

    peer.play(script)
    with peer.connection() as connection:
        connection.channel().close()
    assert last == [p.CLOSE]
