"""A peer that breaks the protocol: at every step a typed error, no hang, no crash. And one that is slow or silent."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

import pytest

from kombulite import Connection, Consumer, Producer, Queue, aio, exceptions
from tests.aio.conftest import run
from tests.amqp import peer as p
from tests.amqp.conftest import in_threads

GARBAGE = {
    "text": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "another version": b"AMQP\x00\x01\x00\x00",
    "zeros": b"\x00" * 64,
    "wrong frame end": b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0a\xcd",
    "unknown frame": b"\x07\x00\x00\x00\x00\x00\x00\xce",
    "huge frame": b"\x01\x00\x00\xff\xff\xff\xff",
    "short method": b"\x01\x00\x00\x00\x00\x00\x01\x0a\xce",
    "unknown method": b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x03\xe7\xce",
    "content on an unopened channel": b"\x02\x00\x07\x00\x00\x00\x0e" + struct.pack(">HHQH", 60, 0, 0, 0) + b"\xce",
    "body out of sequence": b"\x03\x00\x01\x00\x00\x00\x01x\xce",
    "truncated start": b"\x01\x00\x00\x00\x00\x00\x06\x00\x0a\x00\x0a\x00\x09\xce",
    "truncated close": b"\x01\x00\x00\x00\x00\x00\x07\x00\x0a\x00\x32\x01\x40\xff\xce",
}
TYPED = (exceptions.ConnectionError, OSError)


@pytest.fixture(params=GARBAGE)
def garbage(request):
    return GARBAGE[request.param]


def refuse(peer, script):
    """Connect to a peer that plays a script; returns the error."""
    peer.play(script)
    connection = peer.connection(connect_timeout=10)
    with pytest.raises(TYPED) as caught:
        connection.ensure_connection(max_retries=0, timeout=10, reraise_as_library_errors=False)
    connection.release()
    return caught.value


def test_instead_of_the_greeting(peer, garbage):
    def script(session):
        session.read(8)
        session.sock.sendall(garbage)
        session.sock.close()

    refuse(peer, script)


def test_instead_of_the_tuning(peer, garbage):
    def script(session):
        session.start()
        session.sock.sendall(garbage)
        session.sock.close()

    refuse(peer, script)


def test_instead_of_opening(peer, garbage):
    def script(session):
        session.start()
        session.send(0, p.TUNE, "BlB", 10, 8192, 0)
        session.expect(p.TUNE_OK)
        session.expect(p.OPEN)
        session.sock.sendall(garbage)
        session.sock.close()

    refuse(peer, script)


def test_instead_of_an_answer(peer, garbage):
    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(p.DECLARE)
        session.sock.sendall(garbage)
        session.silence()

    peer.play(script)
    with peer.connection(transport_options={"read_timeout": 5}) as connection:
        with pytest.raises(exceptions.ConnectionError):
            Queue("q")(connection.channel()).declare()
        assert not connection.connected


def test_among_the_deliveries(peer, garbage):
    def script(session):
        session.handshake()
        session.open_channel()
        tag = session.consume()
        session.deliver(1, consumer_tag=tag)
        session.sock.sendall(garbage)
        session.silence()

    peer.play(script)
    with peer.connection(transport_options={"read_timeout": 5}) as connection:
        bodies = []
        queue = Queue("q", no_declare=True)
        with pytest.raises(TYPED):
            with Consumer(connection.channel(), queue, on_message=lambda message: bodies.append(message.body)):
                for _ in range(3):
                    connection.drain_events(timeout=5)
        assert bodies == [b"x"]
        assert not connection.connected


@pytest.mark.parametrize(
    "unasked",
    [
        pytest.param(lambda session: session.send(1, p.DECLARE_OK, "sll", "q", 0, 0), id="declare-ok"),
        pytest.param(lambda session: session.send(1, p.FLOW_OK, "b", True), id="flow-ok"),
        pytest.param(lambda session: session.send(1, p.CHANNEL_OPEN_OK, "S", ""), id="open-ok"),
        pytest.param(lambda session: session.send(7, p.DECLARE_OK, "sll", "q", 0, 0), id="unopened channel"),
        pytest.param(lambda session: session.send(0, p.CLOSE_OK), id="close-ok"),
        pytest.param(lambda session: session.close_channel(404, "no", channel=7), id="close of an unopened channel"),
        pytest.param(lambda session: session.close_channel(404, "no", channel=0), id="close of channel 0"),
    ],
)
def test_replies_that_nobody_asked_for(peer, unasked):
    """They end the connection; who uses the channel before there is another is told why."""

    def script(session):
        session.handshake()
        session.open_channel()
        unasked(session)
        session.silence()

    peer.play(script)
    with peer.connection() as connection:
        channel = connection.channel()
        with pytest.raises(exceptions.UnexpectedFrame):
            connection.drain_events(timeout=10)
        assert not connection.connected
        with pytest.raises(exceptions.RecoverableConnectionError, match="the connection is lost: "):
            channel.queue_declare("q")


def test_confirm_on_a_channel_without_is_ignored(peer):
    def script(session):
        session.handshake()
        session.open_channel()
        session.ack(1)
        session.ack(1, channel=9)
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        connection.channel().queue_declare("q")


def test_both_sides_close_a_channel_at_the_same_time(peer):
    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(p.CHANNEL_CLOSE)
        session.close_channel(404, "NOT_FOUND")
        session.expect(p.CHANNEL_CLOSE_OK)
        session.send(1, p.CHANNEL_CLOSE_OK)
        session.open_channel()
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        connection.channel().close()
        connection.channel().queue_declare("q")
        assert connection.connected


def test_a_channel_closed_with_a_code_that_is_for_connections(peer):
    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(p.DECLARE)
        session.close_channel(541, "INTERNAL_ERROR", signature=p.DECLARE)
        session.expect(p.CHANNEL_CLOSE_OK)
        session.open_channel()
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        with pytest.raises(exceptions.ChannelError, match="INTERNAL_ERROR") as caught:
            connection.channel().queue_declare("q")
        assert caught.value.reply_code == 541
        connection.channel().queue_declare("q")


def test_frames_that_are_too_small(peer):
    def script(session):
        session.start()
        session.send(0, p.TUNE, "BlB", 10, 100, 0)
        session.silence()

    assert isinstance(refuse(peer, script), exceptions.FrameSyntaxError)


@pytest.mark.parametrize("start", [("ooFSS", 0, 9, {"capabilities": 5}, "PLAIN", "en_US"), ("ooFSS", 0, 9, {}, "", "")])
def test_a_greeting_that_makes_no_sense(peer, start):
    def script(session):
        session.read(8)
        session.send(0, p.START, *start)
        session.silence()

    refuse(peer, script)


def test_a_peer_that_says_nothing(peer):
    peer.play(p.Session.silence)
    connection = peer.connection(connect_timeout=0.5)
    with pytest.raises(TimeoutError):
        connection.ensure_connection(max_retries=0, timeout=1, reraise_as_library_errors=False)
    connection.release()


def test_a_peer_that_drips(peer):
    """Each byte is in time, all together are not: ``connect_timeout`` is for all."""
    over = threading.Event()

    def script(session):
        frame = session.encoder.method(0, *p.START, b"\x00" * 4000)
        for i in range(len(frame)):
            if over.wait(0.05):
                break
            session.sock.sendall(frame[i : i + 1])

    peer.play(script)
    connection = peer.connection(connect_timeout=0.5)
    started = time.monotonic()
    with pytest.raises(TYPED):
        connection.ensure_connection(max_retries=0, timeout=1, reraise_as_library_errors=False)
    over.set()
    assert time.monotonic() - started < 60  # the whole frame takes 200 s
    connection.release()


@pytest.fixture
def dripping_tls():
    """A peer that begins a TLS record of 16 KiB, and goes on with a byte now and then."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        sock, _ = listener.accept()
        with sock, suppress(OSError):
            sock.sendall(b"\x16\x03\x03\x3f\xff")
            while not over.wait(0.05):
                sock.sendall(b"\0")

    thread = threading.Thread(target=drip)
    thread.start()
    yield f"amqps://127.0.0.1:{listener.getsockname()[1]}//"
    over.set()
    thread.join(30)
    listener.close()


def test_a_tls_handshake_that_drips_ends_in_time(dripping_tls):
    """A timeout for each read would let it go on for 800 s."""
    with Connection(dripping_tls, connect_timeout=0.5) as connection:
        with pytest.raises(TYPED, match="timed out"):
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)


def test_a_tls_handshake_that_drips_ends_in_time_on_an_event_loop(dripping_tls):
    async def main():
        with pytest.raises(TYPED, match="in time"):
            await aio.connect(dripping_tls, connect_timeout=0.5).connect()

    run(main)


def test_a_silent_peer_ends_each_request_by_its_deadline(peer):
    def script(session):
        session.handshake()
        session.open_channel()
        session.silence()

    peer.play(script)
    with peer.connection(transport_options={"read_timeout": 1}) as connection:
        channel = connection.channel()
        with pytest.raises(exceptions.RecoverableConnectionError, match=r"did not answer in 1 s"):
            channel.queue_declare("q")
        assert not connection.connected


def test_heartbeats_are_sent_while_draining(peer):
    enough = threading.Event()

    def script(session):
        session.handshake(heartbeat=1)
        assert session.tuned[2] == 1
        session.open_channel()
        session.consume()
        while session.heartbeats < 2:
            session.beat()
            kind, _, _ = session.frame()
            session.heartbeats += kind == 8
        enough.set()
        session.deliver(1, consumer_tag="never")
        session.farewell()

    peer.play(script)
    with peer.connection(heartbeat=1) as connection:
        with Consumer(connection.channel(), Queue("q", no_declare=True), no_ack=True, on_message=lambda message: None):
            connection.drain_events(timeout=30)
        assert enough.is_set()


def test_heartbeats_are_sent_while_deliveries_come_without_a_pause(peer):
    def script(session):
        session.handshake(heartbeat=1)
        session.open_channel()
        tag = session.consume()
        seen = threading.Event()

        def listen():
            kind, _, _ = session.frame()
            assert kind == 8
            seen.set()

        listener = threading.Thread(target=listen)
        listener.start()
        number = 0
        while not seen.is_set() and number < 1_000_000:
            number += 1
            session.deliver(number, consumer_tag=tag)
            time.sleep(0.001)
        listener.join(10)
        session.deliver(number + 1, b"end", consumer_tag=tag)
        session.farewell()

    peer.play(script)
    with peer.connection(heartbeat=1) as connection:
        bodies = []
        queue = Queue("q", no_declare=True)
        with Consumer(connection.channel(), queue, no_ack=True, on_message=lambda message: bodies.append(message.body)):
            while bodies[-1:] != [b"end"]:
                connection.drain_events(timeout=10)


def test_missed_heartbeats_end_the_connection(peer):
    def script(session):
        session.handshake(heartbeat=1)
        session.open_channel()
        session.consume()
        session.silence()

    peer.play(script)
    with peer.connection(heartbeat=1) as connection:
        consumer = Consumer(connection.channel(), Queue("q", no_declare=True), on_message=lambda message: None)
        consumer.consume()
        with pytest.raises(exceptions.ConnectionForced, match="heartbeats missed"):
            connection.drain_events(timeout=60)
        assert not connection.connected


def test_heartbeat_check_finds_missed_heartbeats(peer):
    def script(session):
        session.handshake(heartbeat=1)
        session.silence()

    peer.play(script)
    with peer.connection(heartbeat=1) as connection:
        connection.connect()
        deadline = time.monotonic() + 60
        with pytest.raises(exceptions.ConnectionForced):
            while time.monotonic() < deadline:
                connection.heartbeat_check()
                time.sleep(0.1)


def test_no_heartbeats_where_one_side_wants_none(peer):
    def script(session):
        session.handshake(heartbeat=60)
        session.farewell()

    peer.play(script)
    with peer.connection(heartbeat=0) as connection:
        transport = connection.connect()
        assert transport.heartbeat_check() is None


def test_a_delivery_in_pieces(peer):
    """A wait that ends within a frame keeps what it has of it."""
    go_on = threading.Event()

    def script(session):
        session.handshake()
        session.open_channel()
        tag = session.consume()
        frames = session.encoder.method(1, *p.DELIVER, bytes(p.dumps("sLbss", (tag, 1, False, "", "q"))))
        session.sock.sendall(frames[:9])
        assert go_on.wait(30)
        session.sock.sendall(frames[9:])
        header = struct.pack(">HHQH", 60, 0, 1, 0)
        session.sock.sendall(b"\x02\x00\x01" + struct.pack(">L", len(header)) + header + b"\xce")
        session.sock.sendall(b"\x03\x00\x01\x00\x00\x00\x01x\xce")
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        bodies = []
        with Consumer(
            connection.channel(),
            Queue("q", no_declare=True),
            no_ack=True,
            on_message=lambda message: bodies.append(message.body),
        ):
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.1)
            go_on.set()
            connection.drain_events(timeout=30)
        assert bodies == [b"x"]


def test_a_thread_that_drains_learns_that_another_dropped_the_connection(peer):
    def script(session):
        session.handshake()
        session.open_channel()
        session.consume()
        waiting.set()
        session.silence()

    waiting = threading.Event()
    peer.play(script)
    connection = peer.connection()
    Consumer(connection.channel(), Queue("q", no_declare=True), on_message=lambda message: None).consume()

    def drain():
        with pytest.raises(exceptions.RecoverableConnectionError):
            connection.drain_events(timeout=None)

    def drop():
        waiting.wait(10)
        time.sleep(0.3)
        connection.collect()

    in_threads(drain, drop)


def test_publish_in_time_to_a_peer_that_does_not_answer(peer):
    """The first publish to an exchange waits for the broker's word; ``timeout`` bounds that too."""

    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(p.PUBLISH)
        session.expect(p.FLOW)
        session.expect(p.PUBLISH)
        assert session.expect(p.FLOW).channel == 1
        session.send(1, p.FLOW_OK, "b", True)
        session.send(1, p.FLOW_OK, "b", True)
        session.expect(p.PUBLISH)
        session.farewell()

    peer.play(script)
    with peer.connection() as connection:
        producer = Producer(connection)
        with pytest.raises(exceptions.RecoverableConnectionError):
            producer.publish("x", routing_key="q", timeout=0.2)
        producer.publish("y", routing_key="q", timeout=30)
        producer.publish("z", routing_key="q")
