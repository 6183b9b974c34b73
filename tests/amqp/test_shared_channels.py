"""Threads that share a channel of RabbitMQ, with confirms: against a scripted peer."""

from __future__ import annotations

import threading

import pytest

from kombulite import Producer, exceptions
from kombulite._core import Delivery, Properties
from kombulite.brokers.base import MessageIgnored
from tests.amqp.conftest import in_threads
from tests.amqp.peer import (
    CHANNEL_CLOSE,
    CHANNEL_CLOSE_OK,
    CHANNEL_OPEN,
    CHANNEL_OPEN_OK,
    DECLARE,
    FLOW,
    FLOW_OK,
    PATIENCE,
    PUBLISH,
    SELECT,
    SELECT_OK,
)

CONFIRMS = {"confirm_publish": True}


def test_what_is_not_mandatory_does_not_come_back(peer):
    """Of two messages that are the same it is the mandatory one."""
    first_sent = threading.Event()

    def script(session):
        session.handshake()
        session.open_channel(confirms=True)
        session.expect(PUBLISH)
        first_sent.set()
        session.give_back_as_sent(session.expect(PUBLISH), "q")
        session.ack(2, multiple=True)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        channel = connection.channel()

        def publish_mandatory():
            assert first_sent.wait(PATIENCE)
            with pytest.raises(exceptions.MessageReturned):
                Producer(channel).publish("same", routing_key="q", mandatory=True)

        in_threads(lambda: Producer(channel).publish("same", routing_key="q"), publish_mandatory)


def test_a_message_that_goes_out_while_confirms_are_asked_for(peer):
    """The broker counts it, so it is counted here."""
    asked = threading.Event()

    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(SELECT)
        asked.set()
        assert session.expect(PUBLISH).body == b"other"
        session.send(1, SELECT_OK)
        assert session.expect(PUBLISH).body == b"own"
        session.ack(1)
        session.nack(2)
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        channel = connection.channel()

        def publish():
            assert asked.wait(PATIENCE)
            Producer(channel).publish(b"other", routing_key="q", serializer="raw")

        def ask():
            channel.confirm_select()
            with pytest.raises(exceptions.MessageNacked):
                Producer(channel).publish(b"own", routing_key="q", serializer="raw")

        in_threads(publish, ask)


@pytest.mark.parametrize("count", [1, 3])
def test_messages_whose_turn_comes_after_confirms_were_asked_for(peer, count):
    """They were published without, and wait for none; the broker counts them."""

    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(SELECT)
        session.send(1, SELECT_OK)
        for _ in range(count):
            session.expect(PUBLISH)
        session.expect(FLOW)
        session.send(1, FLOW_OK, "b", True)
        session.expect(PUBLISH)
        session.ack(count, multiple=True)
        session.nack(count + 1)
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        channel = connection.channel()
        stream = connection.transport._protocol.stream
        send = stream.send

        def send_after_select(*arguments, **options):
            stream.send = send
            channel.confirm_select()
            send(*arguments, **options)

        stream.send = send_after_select
        Producer(channel).publish_many([b"x"] * count, routing_key="q", serializer="raw")
        with pytest.raises(exceptions.MessageNacked):
            Producer(channel).publish(b"y", routing_key="q", serializer="raw")


def test_confirms_that_are_asked_for_twice_at_a_time(peer):
    """The broker goes on counting."""

    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(SELECT)
        session.send(1, SELECT_OK)
        session.expect(PUBLISH)
        session.ack(1)
        session.expect(SELECT)
        session.send(1, SELECT_OK)
        session.expect(PUBLISH)
        session.ack(1)
        session.nack(2)
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        channel = connection.channel()
        protocol = connection.transport._protocol
        encode = protocol.encode

        def encode_after_another(*arguments):
            protocol.encode = encode
            channel.confirm_select()
            Producer(channel).publish(b"x", routing_key="q", serializer="raw")
            return encode(*arguments)

        protocol.encode = encode_after_another
        channel.confirm_select()
        with pytest.raises(exceptions.MessageNacked):
            Producer(channel).publish(b"y", routing_key="q", serializer="raw")


def test_a_channel_takes_no_message_on_a_new_connection_before_it_has_confirms(peer):
    asked, tried = threading.Event(), threading.Event()

    def first(session):
        session.handshake()
        session.open_channel(confirms=True)

    def second(session):
        session.handshake()
        session.send(session.expect(CHANNEL_OPEN).channel, CHANNEL_OPEN_OK, "S", "")
        session.expect(SELECT)
        asked.set()
        assert tried.wait(PATIENCE)
        session.send(1, SELECT_OK)
        session.expect(PUBLISH)
        session.nack(1)
        session.farewell()

    peer.play(first, second)
    with peer.connection() as connection:
        channel = connection.channel()
        channel.confirm_select()
        with pytest.raises((exceptions.RecoverableConnectionError, OSError)):
            connection.drain_events(timeout=PATIENCE)

        def publish_early():
            assert asked.wait(PATIENCE)
            with pytest.raises(exceptions.RecoverableConnectionError):
                Producer(channel).publish(b"early", routing_key="q", serializer="raw", timeout=5)
            tried.set()

        in_threads(connection.ensure_connection, publish_early)
        with pytest.raises(exceptions.MessageNacked):
            Producer(channel).publish(b"late", routing_key="q", serializer="raw")


def test_a_connection_that_is_lost_as_confirms_are_asked_for_comes_back_with_them(peer):
    def first(session):
        session.handshake()
        session.open_channel()
        session.expect(SELECT)

    def second(session):
        session.handshake()
        session.open_channel(confirms=True)
        session.farewell()

    peer.play(first, second)
    with peer.connection() as connection:
        channel = connection.channel()
        with pytest.raises((exceptions.RecoverableConnectionError, OSError)):
            channel.confirm_select()
        connection.ensure_connection()


# Without confirms the error of a publish is told to the next one: nobody else has it.
@pytest.mark.parametrize(("cause", "confirms"), [("publish", True), ("declare", True), ("declare", False)])
def test_a_message_that_comes_when_the_fault_of_another_has_closed_the_channel(peer, cause, confirms):
    """What that fault was is told to whose it is, and not yet when the message comes."""

    def script(session):
        session.handshake()
        session.open_channel(confirms)
        signature = PUBLISH if cause == "publish" else DECLARE
        session.expect(signature)
        session.close_channel(404, "NOT_FOUND - no exchange 'missing' in vhost '/'", signature)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options={"confirm_publish": confirms}) as connection:
        channel = connection.channel()
        protocol = connection.transport._protocol
        mark_reported = protocol.mark_reported

        def publish_before(state):
            protocol.mark_reported = mark_reported
            with pytest.raises(exceptions.ChannelError) as caught:
                connection.transport.publish(1, Delivery("", "q", Properties(), b"innocent"))
            told.append(caught.type)
            mark_reported(state)

        told = []
        protocol.mark_reported = publish_before
        with pytest.raises(exceptions.NotFound):
            if cause == "publish":
                Producer(channel).publish("x", exchange="missing")
            else:
                channel.queue_declare("missing", passive=True)
    assert told == [MessageIgnored]


def test_a_channel_that_another_thread_closes_confirms_nothing_any_more(peer):
    sent = threading.Event()

    def script(session):
        session.handshake()
        session.open_channel(confirms=True)
        session.expect(PUBLISH)
        sent.set()
        session.expect(CHANNEL_CLOSE)
        session.send(1, CHANNEL_CLOSE_OK)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        channel = connection.channel()

        def publish():
            with pytest.raises(exceptions.RecoverableConnectionError, match="may have the message"):
                Producer(channel).publish("x", routing_key="q", confirm_timeout=PATIENCE)

        def close():
            assert sent.wait(PATIENCE)
            channel.close()

        in_threads(publish, close)


def test_a_message_without_confirms_whose_channel_is_closed_for_a_request(peer):
    """The broker may have it: it is no fault of the message."""

    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(PUBLISH)
        session.expect(FLOW)
        session.close_channel(406, "PRECONDITION_FAILED - unknown delivery tag 9", (60, 80))
        session.farewell()

    peer.play(script)
    with (
        peer.connection() as connection,
        pytest.raises(exceptions.RecoverableChannelError, match="may have the message"),
    ):
        Producer(connection.channel()).publish("x", routing_key="q")
