"""Confirms that come out of order, late, together, or not at all: against a scripted peer."""

from __future__ import annotations

import gc
import sys
import threading

import pytest

from kombulite import Producer, exceptions
from kombulite._core import Delivery, Properties
from kombulite.brokers.amqp.confirms import Confirms, Unconfirmed
from tests.amqp.peer import CHANNEL_CLOSE_OK, CLOSE_OK, PUBLISH

CONFIRMS = {"confirm_publish": True}


def publishes(session, count):
    return [session.expect(PUBLISH).body for _ in range(count)]


def open_confirming(session):
    session.handshake()
    session.open_channel(confirms=True)


def refused_by(peer, script, bodies, **options):
    """What ``publish_many`` says of the bodies, while the peer answers them with a script."""

    def play(session):
        open_confirming(session)
        publishes(session, len(bodies))
        script(session)
        session.farewell()

    peer.play(play)
    with peer.connection(transport_options=CONFIRMS) as connection:
        producer = Producer(connection)
        try:
            producer.publish_many(bodies, routing_key="q", serializer="raw", **options)
        except exceptions.BatchPublishError as error:
            return [(index, type(reason)) for index, reason in error.refused]
        return []


def test_one_by_one(peer):
    assert refused_by(peer, lambda session: [session.ack(tag) for tag in (1, 2, 3)], [b"a", b"b", b"c"]) == []


def test_out_of_order(peer):
    def script(session):
        for tag in (5, 1, 4):
            session.ack(tag)
        session.nack(2)
        session.ack(3)

    assert refused_by(peer, script, [b"%d" % i for i in range(5)]) == [(1, exceptions.MessageNacked)]


def test_many_at_once(peer):
    def script(session):
        session.ack(2)
        session.ack(4, multiple=True)
        session.nack(6, multiple=True)
        session.ack(7)

    refused = refused_by(peer, script, [b"%d" % i for i in range(7)])
    assert refused == [(4, exceptions.MessageNacked), (5, exceptions.MessageNacked)]


def test_nack_of_all_spares_what_was_taken(peer):
    def script(session):
        session.ack(2)
        session.nack(3, multiple=True)

    refused = refused_by(peer, script, [b"a", b"b", b"c"])
    assert [index for index, _ in refused] == [0, 2]


@pytest.mark.parametrize("accepted", [True, False])
def test_tag_zero_stands_for_all(peer, accepted):
    def script(session):
        (session.ack if accepted else session.nack)(0, multiple=True)

    assert len(refused_by(peer, script, [b"a", b"b", b"c"])) == (0 if accepted else 3)


def test_a_tag_that_nobody_waits_for_is_nobodys(peer):
    def script(session):
        session.ack(99)
        session.nack(0)  # without `multiple` it names no message
        session.ack(3, multiple=True)
        session.nack(2)  # confirmed already

    assert refused_by(peer, script, [b"a", b"b", b"c"]) == []


def test_returned_messages_are_named(peer):
    def script(session):
        session.ack(1)
        session.give_back(b"b", "q")
        session.ack(2)
        session.ack(3)
        session.give_back(b"d", "q")
        session.ack(4)

    refused = refused_by(peer, script, [b"a", b"b", b"c", b"d"], mandatory=True)
    assert refused == [(1, exceptions.MessageReturned), (3, exceptions.MessageReturned)]


def test_returned_messages_that_are_alike(peer):
    """Each return comes before its own confirm: of what is alike the first counts that is not confirmed."""

    def script(session):
        session.ack(1)
        session.give_back(b"same", "q")
        session.ack(2)
        session.give_back(b"same", "q")
        session.ack(3)
        session.ack(4)

    refused = refused_by(peer, script, [b"same"] * 4, mandatory=True)
    assert refused == [(1, exceptions.MessageReturned), (2, exceptions.MessageReturned)]


def test_a_batch_names_what_was_refused(peer):
    def script(session):
        open_confirming(session)
        publishes(session, 3)
        session.nack(2)
        session.ack(3, multiple=True)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        producer = Producer(connection)
        with pytest.raises(exceptions.BatchPublishError) as caught, producer.batch():
            for body in "abc":
                producer.publish(body, routing_key="q")
        assert [index for index, _ in caught.value.refused] == [1]
        assert caught.value.published == 2


def test_late_confirm_is_not_taken_for_the_next_message(peer):
    def script(session):
        open_confirming(session)
        publishes(session, 2)
        session.ack(1)
        session.nack(2)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        producer = Producer(connection)
        with pytest.raises(TimeoutError):
            producer.publish("late", routing_key="q", confirm_timeout=0.1)
        with pytest.raises(exceptions.MessageNacked):
            producer.publish("refused", routing_key="q")


def test_a_message_that_cannot_be_encoded_is_not_counted(peer):
    def script(session):
        open_confirming(session)
        publishes(session, 1)
        session.ack(1)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        producer = Producer(connection)
        with pytest.raises(exceptions.EncodeError):
            producer.publish("bad", routing_key="q", headers={"set": {1, 2}})
        producer.publish("good", routing_key="q", confirm_timeout=10)


def test_a_closed_channel_refuses_what_was_not_confirmed(peer):
    def script(session):
        open_confirming(session)
        publishes(session, 4)
        session.ack(2)
        session.close_channel(404, "NOT_FOUND - no exchange 'x'")
        session.expect(CHANNEL_CLOSE_OK)
        session.open_channel(confirms=True)
        publishes(session, 1)
        session.ack(1, channel=2)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        producer = Producer(connection)
        with pytest.raises(exceptions.BatchPublishError) as caught:
            producer.publish_many([b"a", b"b", b"c", b"d"], routing_key="q", serializer="raw")
        assert [(index, type(error)) for index, error in caught.value.refused] == [
            (0, exceptions.NotFound),
            (2, exceptions.NotFound),
            (3, exceptions.NotFound),
        ]
        producer.publish("told once, goes on with a new channel", routing_key="q")


def test_a_channel_closed_between_two_parts_of_a_batch(peer):
    """What was sent and what was not are both named; the channel's end is no news afterwards."""
    body = b"x" * 19_000  # some megabytes in all, for publish_many does not send more at a time

    def script(session):
        open_confirming(session)
        publishes(session, 1)
        session.ack(1)
        session.close_channel(404, "NOT_FOUND - no exchange 'x'")
        while (method := session.method()).signature == PUBLISH:
            pass
        assert method.signature == CHANNEL_CLOSE_OK
        session.open_channel(confirms=True)
        publishes(session, 1)
        session.ack(1, channel=2)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        producer = Producer(connection)
        with pytest.raises(exceptions.BatchPublishError) as caught:
            producer.publish_many([body] * 200, routing_key="q", serializer="raw")
        assert [index for index, _ in caught.value.refused] == list(range(1, 200))
        assert all(type(error) is exceptions.NotFound for _, error in caught.value.refused)
        producer.publish("goes on", routing_key="q")


def test_single_publish_raises_what_the_channel_was_closed_for(peer):
    def script(session):
        open_confirming(session)
        publishes(session, 1)
        session.close_channel(403, "ACCESS_REFUSED - no")
        session.expect(CHANNEL_CLOSE_OK)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        producer = Producer(connection)
        with pytest.raises(exceptions.AccessRefused):
            producer.publish("x", routing_key="q")
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)


def test_connection_closed_with_messages_unconfirmed(peer):
    def script(session):
        open_confirming(session)
        publishes(session, 3)
        session.ack(1)
        session.close(320, "CONNECTION_FORCED - going down")
        session.expect(CLOSE_OK)

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        with pytest.raises(exceptions.ConnectionForced):
            Producer(connection).publish_many([b"a", b"b", b"c"], routing_key="q", serializer="raw")
        assert not connection.connected


def test_connection_cut_with_messages_unconfirmed(peer):
    def script(session):
        open_confirming(session)
        publishes(session, 1)
        session.sock.close()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        with pytest.raises((exceptions.RecoverableConnectionError, OSError)):
            Producer(connection).publish("x", routing_key="q")


def test_retry_publishes_again_on_a_new_connection(peer):
    def cut(session):
        open_confirming(session)
        publishes(session, 1)

    def take(session):
        open_confirming(session)
        assert publishes(session, 1) == [b"x"]
        session.ack(1)
        session.farewell()

    peer.play(cut, take)
    with peer.connection(transport_options=CONFIRMS) as connection:
        Producer(connection).publish("x", routing_key="q", serializer="raw", retry=True)


def test_refused_messages_are_tried_again_on_the_same_connection(peer):
    def script(session):
        open_confirming(session)
        publishes(session, 1)
        session.nack(1)
        publishes(session, 1)
        session.ack(2)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        policy = {"interval_start": 0, "interval_step": 0, "max_retries": 3}
        Producer(connection).publish("x", routing_key="q", retry=True, retry_policy=policy)


def test_what_a_slow_peer_did_not_read_is_not_counted(peer):
    """A publish that never reached the stream must not shift the numbers of those after it."""
    big = b"x" * 8_000_000

    def script(session):
        open_confirming(session)
        session.sock.settimeout(None)
        read_on.wait(30)
        assert publishes(session, 1) == [big]
        session.ack(1)
        assert publishes(session, 1) == [b"last"]
        session.ack(2)
        session.farewell()

    read_on = threading.Event()
    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        producer = Producer(connection)
        for body in (big, b"never sent"):
            with pytest.raises(exceptions.RecoverableConnectionError):
                producer.publish(body, routing_key="q", serializer="raw", timeout=0.2)
        read_on.set()
        producer.publish(b"last", routing_key="q", serializer="raw", timeout=30)


@pytest.mark.parametrize("many", [False, True])
def test_a_broker_that_never_confirms_costs_no_memory_for_what_timed_out(peer, many):
    """A quorum queue without a majority is such a one, maybe for hours, while programs try again and again."""

    def script(session):
        open_confirming(session)
        publishes(session, 1)
        assert publishes(session, 1) == [b"last"]
        session.ack(1)
        session.ack(2)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        producer = Producer(connection)
        body = bytes(100_000)
        before = sys.getrefcount(body)
        if many:
            with pytest.raises(exceptions.BatchPublishError):
                producer.publish_many([body], routing_key="q", serializer="raw", timeout=0.2)
        else:
            with pytest.raises(TimeoutError):
                producer.publish(body, routing_key="q", serializer="raw", confirm_timeout=0.2)
        gc.collect()  # the errors, and what their frames keep
        assert sys.getrefcount(body) <= before
        producer.publish(b"last", routing_key="q", serializer="raw", confirm_timeout=30)


def test_properties_tell_which_of_two_messages_came_back(peer):
    def script(session):
        open_confirming(session)
        session.expect(PUBLISH)
        session.give_back_as_sent(session.expect(PUBLISH), "q")
        session.ack(2)
        session.ack(1)
        session.farewell()

    peer.play(script)
    with peer.connection(transport_options=CONFIRMS) as connection:
        producer = Producer(connection)
        with pytest.raises(exceptions.BatchPublishError) as caught, producer.batch():
            for number in range(2):
                producer.publish("alike", routing_key="q", headers={"number": number}, mandatory=True)
        assert [(index, type(error)) for index, error in caught.value.refused] == [(1, exceptions.MessageReturned)]


def test_a_confirm_of_many_does_not_look_at_what_was_confirmed_one_by_one():
    """The numbers that it would look at are more than a test has time for, as after months of single confirms."""
    confirms = Confirms()
    confirms.skip(1 << 60)
    first, second = (Unconfirmed(Delivery("", "", Properties(), b""), False) for _ in range(2))
    confirms.add_one(first)
    assert confirms.take((1 << 60) + 1, False) == [first]
    confirms.add_one(second)
    assert confirms.take(0, True) == [second]
