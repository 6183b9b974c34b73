"""RabbitMQ on an event loop, against a scripted peer: what travels together, what waits, and what ends when."""

from __future__ import annotations

import asyncio
import threading

import pytest
import uvloop
from amqp.serialization import dumps

from kombulite import Queue, aio, exceptions
from kombulite._client.lifecycle import State
from kombulite.brokers.amqp import aio as amqp_aio
from kombulite.brokers.base import QueueSpec
from tests.aio.conftest import run, soon
from tests.amqp import peer as p


def dial(peer, **options):
    return aio.connect(f"amqp://127.0.0.1:{peer.port}//", **options)


def answer(session, signature, reply, format="", *values):
    """Answer the next method, which has to be of a kind. Returns it."""
    method = session.expect(signature)
    session.send(method.channel, reply, format, *values)
    return method


def writes_of(connection):
    """Note each system call by which the connection writes."""
    transport = connection.session.transport._stream._transport
    sizes = []
    connection.session.transport._stream._transport = Spy(transport, sizes)
    return sizes


class Spy:
    def __init__(self, transport, sizes):
        self._transport, self._sizes = transport, sizes

    def write(self, data):
        self._sizes.append(len(data))
        self._transport.write(data)

    def __getattr__(self, name):
        return getattr(self._transport, name)


# --- what travels together


def test_publishes_of_one_turn_are_written_at_once(amqp_url, name):
    async def main():
        queue = Queue(name("q"), exclusive=True, durable=False)
        async with aio.connect(amqp_url) as connection:
            await connection.declare(queue)
            producer = connection.producer(routing_key=queue.name)
            await producer.publish("first")
            sizes = writes_of(connection)
            await asyncio.gather(*(producer.publish(number) for number in range(500)))
            assert len(sizes) == 1
            assert (await connection.status(queue)).message_count == 501

    run(main)


def test_acknowledgements_of_one_turn_are_one_frame(peer):
    def script(session):
        session.handshake()
        number = session.open_channel()
        answer(session, (60, 10), (60, 11))
        tag = session.consume()
        for delivery in range(1, 11):
            session.deliver(delivery, consumer_tag=tag, channel=number)
        seen.append(session.expect(p.ACK).read("Lb"))
        session.deliver(11, consumer_tag=tag, channel=number)
        session.deliver(12, consumer_tag=tag, channel=number)
        seen.append(session.expect(p.ACK).read("Lb"))
        seen.append(session.expect((60, 90)).read("Lb"))
        session.farewell()

    async def main():
        async with dial(peer) as connection, connection.consume("q", auto_declare=False) as messages:
            for message in [await messages.next(20) for _ in range(10)]:
                await message.ack()
            first, second = [await messages.next(20) for _ in range(2)]
            await second.ack()
            await first.reject()

    seen = []
    peer.play(script)
    run(main)
    # The second of the two alone: the first one is still out.
    assert seen == [[10, True], [12, False], [11, False]]


def test_confirms_are_credited_to_their_messages(peer):
    def script(session):
        session.handshake()
        number = session.open_channel(confirms=True)
        for _ in range(6):
            session.expect(p.PUBLISH)
        session.give_back(b"3", "q", channel=number)
        session.nack(2, channel=number)
        session.ack(6, multiple=True, channel=number)
        session.farewell()

    async def main():
        async with dial(peer) as connection:
            producer = connection.producer(routing_key="q", serializer="raw")
            bodies = [b"%d" % number for number in range(6)]
            got = await asyncio.gather(
                *(producer.publish(body, mandatory=True) for body in bodies), return_exceptions=True
            )
            kinds = [type(each) for each in got]
            nothing = type(None)
            nacked, returned = exceptions.MessageNacked, exceptions.MessageReturned
            assert kinds == [nothing, nacked, nothing, returned, nothing, nothing]
            assert not connection.session.window.sent

    peer.play(script)
    run(main)


def gone(name):
    """What RabbitMQ says of a publish to an exchange that is not there."""
    return 404, f"NOT_FOUND - no exchange '{name}' in vhost '/'", p.PUBLISH


def test_a_refused_message_is_the_matter_of_its_own_task(peer):
    """Of those before it the broker may have some; it has none of those behind, which are published again."""
    again = []

    def script(session):
        session.handshake()
        number = session.open_channel(confirms=True)
        for _ in range(5):
            session.expect(p.PUBLISH)
        session.ack(1, channel=number)
        session.close_channel(*gone("gone"), channel=number)
        session.expect(p.CHANNEL_CLOSE_OK)
        number = session.open_channel(confirms=True)
        again.extend(session.expect(p.PUBLISH).body for _ in range(2))
        session.ack(2, multiple=True, channel=number)
        session.farewell()

    async def main():
        async with dial(peer) as connection:
            connection.session.exchanges.add("gone")  # it was there a while ago
            producer, bad = connection.producer(serializer="raw"), connection.producer("gone", serializer="raw")
            sent = [(producer, b"0"), (producer, b"1"), (bad, b"2"), (producer, b"3"), (producer, b"4")]
            got = await asyncio.gather(*(each.publish(body, "q") for each, body in sent), return_exceptions=True)
            nothing, lost = type(None), exceptions.RecoverableChannelError
            assert [type(each) for each in got] == [nothing, lost, exceptions.NotFound, nothing, nothing]
            assert "the broker may have the message" in str(got[1])
            assert "gone" not in connection.session.exchanges

    peer.play(script)
    run(main)
    assert again == [b"3", b"4"]


def test_no_message_before_one_that_may_be_the_refused_one_is_published_twice(peer):
    """The exchange may have been deleted before the second message to it: the broker may have what is between them."""
    again = []

    def script(session):
        session.handshake()
        number = session.open_channel(confirms=True)
        for _ in range(4):
            session.expect(p.PUBLISH)
        session.close_channel(*gone("e"), channel=number)
        session.expect(p.CHANNEL_CLOSE_OK)
        number = session.open_channel(confirms=True)
        again.append(session.expect(p.PUBLISH).body)
        session.ack(1, channel=number)
        session.farewell()

    async def main():
        async with dial(peer) as connection:
            connection.session.exchanges.add("e")
            producer = connection.producer(serializer="raw")
            sent = [
                producer.publish(b"%d" % number, "q", exchange=name) for number, name in enumerate(["e", "", "e", ""])
            ]
            got = await asyncio.gather(*sent, return_exceptions=True)
            missing, lost = exceptions.NotFound, exceptions.RecoverableChannelError
            assert [type(each) for each in got] == [missing, lost, missing, type(None)]

    peer.play(script)
    run(main)
    assert again == [b"3"]


def test_a_refused_topic_is_the_matter_of_its_own_message(peer):
    def script(session):
        session.handshake()
        number = session.open_channel(confirms=True)
        for _ in range(3):
            session.expect(p.PUBLISH)
        reason = "ACCESS_REFUSED - access to topic 'b' in exchange 'e' in vhost '/' refused for user 'guest'"
        session.close_channel(403, reason, channel=number)
        session.expect(p.CHANNEL_CLOSE_OK)
        number = session.open_channel(confirms=True)
        session.expect(p.PUBLISH)
        session.ack(1, channel=number)
        session.farewell()

    async def main():
        async with dial(peer) as connection:
            connection.session.exchanges.add("e")
            producer = connection.producer("e", serializer="raw")
            got = await asyncio.gather(*(producer.publish(b"x", key) for key in "abc"), return_exceptions=True)
            lost = exceptions.RecoverableChannelError
            assert [type(each) for each in got] == [lost, exceptions.AccessRefused, type(None)]

    peer.play(script)
    run(main)


def test_many_messages_behind_a_refused_one_are_published_again(amqp_url, name):
    async def main():
        queue = Queue(name("q"))
        async with aio.connect(amqp_url) as connection:
            await connection.declare(queue)
            connection.session.exchanges.add("gone")  # it was there a while ago
            bad, good = connection.producer("gone"), connection.producer()
            refused = asyncio.create_task(bad.publish("bad", queue.name))
            many = asyncio.create_task(good.publish_many(range(2500), queue.name))
            with pytest.raises(exceptions.NotFound):
                await refused
            assert await many == 2500
            assert (await connection.status(queue)).message_count == 2500
            await connection.delete(queue)

    run(main)


def test_a_call_whose_channel_is_closed_as_its_request_is_confirmed(peer, monkeypatch):
    monkeypatch.setitem(p.SERVER_PROPERTIES["capabilities"], "direct_reply_to", True)

    def script(session):
        session.handshake()
        number = session.open_channel(confirms=True)
        session.consume()
        session.expect(p.PUBLISH)
        confirm = session.encoder.method(number, *p.ACK, bytes(dumps("Lb", (1, False))))
        values = (406, "PRECONDITION_FAILED - for a reason", 0, 0)
        session.sock.sendall(confirm + session.encoder.method(number, *p.CHANNEL_CLOSE, bytes(dumps("BsBB", values))))
        session.farewell()

    async def main():
        async with dial(peer) as connection:
            with pytest.raises(exceptions.RecoverableConnectionError, match="no more replies come"):
                await connection.call(1, "q", timeout=20)

    peer.play(script)
    run(main)


def test_messages_without_confirms_that_are_lost_are_logged(peer, caplog):
    def script(session):
        session.handshake()
        number = session.open_channel()
        session.expect(p.PUBLISH)
        session.verify()
        session.expect(p.PUBLISH)
        session.close_channel(406, "PRECONDITION_FAILED - too large", channel=number)
        session.expect(p.CHANNEL_CLOSE_OK)
        session.open_channel()
        session.expect(p.PUBLISH)
        session.farewell()

    async def main():
        async with dial(peer) as connection:
            producer = connection.producer(routing_key="q", confirm=False)
            await producer.publish(1)
            await producer.publish(2)

            async def logged():
                return "published without confirms are lost" in caplog.text

            await soon(logged, 20)
            await producer.publish(3)

    peer.play(script)
    run(main)


@pytest.mark.parametrize("confirm", [True, False])
def test_what_cannot_be_sent_of_many_hides_nothing_of_the_others(amqp_url, name, confirm):
    async def main():
        async with aio.connect(amqp_url) as connection:
            producer = connection.producer(routing_key=name("missing"), confirm=confirm)
            await producer.publish("x")  # without confirms, the first to an exchange is looked after
            with pytest.raises(exceptions.BatchPublishError) as caught:
                async with producer.batch() as batch:
                    for value in (2**70, 0, 2**70):  # the largest number of a header has 64 bits
                        await batch.publish("x", mandatory=True, headers={"value": value})
            assert {index for index, _ in caught.value.refused} == {0, 1, 2}  # the second came back

    run(main)


def test_a_message_that_comes_before_all_consumers_are_back_is_handed_over(peer):
    def first(session):
        session.handshake()
        session.open_channel()
        answer(session, (60, 10), (60, 11))
        session.consume()
        session.consume()
        consuming.wait(20)

    def second(session):
        session.handshake()
        number = session.open_channel()
        answer(session, (60, 10), (60, 11))
        session.deliver(1, b"early", session.consume(), number)
        other = session.expect(p.CONSUME)
        received.wait(30)
        session.send(number, p.CONSUME_OK, "s", other.read("Bss")[2])
        session.farewell()

    async def main():
        async with dial(peer) as connection, connection.consume(["a", "b"], auto_declare=False) as messages:
            consuming.set()
            message = await messages.next(20)
            received.set()
            assert message is not None
            assert message.body == b"early"

    consuming, received = threading.Event(), threading.Event()
    peer.play(first, second)
    run(main)


def test_a_consumer_that_ends_while_it_is_restored_does_not_end_the_connection(peer):
    def first(session):
        session.handshake()
        session.open_channel()
        answer(session, (60, 10), (60, 11))
        session.consume()
        consuming.wait(20)

    def second(session):
        session.handshake()
        session.open_channel()
        answer(session, (60, 10), (60, 11))
        method = session.expect(p.CONSUME)
        asked.set()
        ending.wait(20)
        session.send(method.channel, p.CONSUME_OK, "s", method.read("Bss")[2])
        session.farewell()

    async def main():
        async with dial(peer) as connection:
            messages = await connection.consume("q", auto_declare=False).__aenter__()
            consuming.set()
            assert await asyncio.to_thread(asked.wait, 20)
            end = asyncio.create_task(messages.__aexit__(None, None, None))
            await asyncio.sleep(0)
            ending.set()
            await end
            assert (await connection.status("q")).message_count == 0

    consuming, asked, ending = threading.Event(), threading.Event(), threading.Event()
    peer.play(first, second)
    run(main)


# --- answers, and those that do not come


def test_an_answer_belongs_to_its_question_though_the_task_was_cancelled(peer):
    def script(session):
        session.handshake()
        number = session.open_channel()
        for count in (7, 8):
            name = session.expect(p.DECLARE).read("Bs")[1]
            asked.set()
            if count == 7:
                both.wait(30)
            session.send(number, p.DECLARE_OK, "sll", name, count, 0)
        session.farewell()

    async def main():
        async with dial(peer) as connection:
            first = asyncio.create_task(connection.status("a"))
            await asyncio.to_thread(asked.wait, 30)
            first.cancel()
            await asyncio.wait([first])
            assert first.cancelled()
            second = asyncio.create_task(connection.status("b"))
            await asyncio.sleep(0)
            both.set()
            assert (await second).message_count == 8

    asked, both = threading.Event(), threading.Event()
    peer.play(script)
    run(main)


def test_a_request_without_an_answer_ends_the_connection(peer):
    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(p.DECLARE)
        session.silence()

    async def main():
        connection = dial(peer, transport_options={"read_timeout": 0.3})
        await connection.connect()
        session = connection.session
        with pytest.raises(exceptions.RecoverableConnectionError, match=r"Queue\.declare: the broker did not answer"):
            await session.ask("declare_queue", QueueSpec("q"), True, deadline=session.waits.deadline(20))
        assert connection.state is State.LOST
        await connection.close()

    peer.play(script)
    run(main)


def test_the_reason_of_a_broker_that_closes_is_known(peer):
    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(p.DECLARE)
        session.close(320, "CONNECTION_FORCED - going down")
        session.expect(p.CLOSE_OK)

    async def main():
        connection = dial(peer)
        await connection.connect()
        with pytest.raises(exceptions.ConnectionForced, match="going down"):
            await connection.status("q")
        await connection.close()

    peer.play(script)
    run(main)


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x01\x00\x00\xff\xff\xff\xff"])
def test_garbage_is_a_typed_error(peer, garbage):
    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(p.DECLARE)
        session.sock.sendall(garbage)
        session.silence()

    async def main():
        connection = dial(peer)
        await connection.connect()
        with pytest.raises(exceptions.FrameError):
            await connection.status("q")
        assert not connection.connected
        await connection.close()

    peer.play(script)
    run(main)


def test_a_consumer_that_ends_while_its_connection_is_closed(peer):
    def script(session):
        session.handshake()
        number = session.open_channel()
        answer(session, (60, 10), (60, 11))
        tag = session.consume()
        session.deliver(1, consumer_tag=tag, channel=number)
        session.expect(p.CANCEL)
        ending.set()
        session.expect(p.CANCEL)  # of the close
        for _ in range(2):
            session.send(number, p.CANCEL_OK, "s", tag)
        seen.append(session.expect(p.NACK).read("Lb"))
        answer(session, p.CHANNEL_CLOSE, p.CHANNEL_CLOSE_OK)
        answer(session, p.CLOSE, p.CLOSE_OK)
        closed.set()

    async def main():
        async def consume():
            async with connection.consume("q", auto_declare=False) as messages:
                await messages.next(20)

        async with dial(peer) as connection:
            task = asyncio.create_task(consume())
            await asyncio.to_thread(ending.wait, 20)
        await asyncio.wait([task])
        assert task.exception() is None

    ending, closed, seen = threading.Event(), threading.Event(), []
    peer.play(script)
    run(main)
    assert closed.wait(20)
    assert seen == [[0, True]]


# --- heartbeats, and brokers that take no messages


def test_a_silent_broker_is_suspected_and_then_given_up(peer):
    def script(session):
        session.handshake(heartbeat=1)
        session.silence()

    async def main():
        connection = dial(peer, heartbeat=1)
        await connection.connect()
        seen = []

        async def lost():
            seen.append(connection.state)
            return connection.state is State.LOST

        await soon(lost, 20)
        assert State.SUSPECT in seen
        await connection.close()

    peer.play(script)
    run(main)


def test_heartbeats_run_on_the_loop(peer):
    def script(session):
        session.handshake(heartbeat=1)
        while session.heartbeats < 3:
            kind, _, _ = session.frame()
            session.heartbeats += kind == 8
            session.beat()
        reached.append(session.heartbeats)
        session.farewell()

    async def main():
        async with dial(peer, heartbeat=1) as connection:

            async def beaten():
                return bool(reached)

            await soon(beaten, 20)
            assert connection.state is State.OPEN

    reached = []
    peer.play(script)
    run(main)


def test_publishers_wait_while_the_broker_is_blocked(peer):
    def script(session):
        session.handshake()
        number = session.open_channel(confirms=True)
        session.expect(p.PUBLISH)
        session.send(0, p.BLOCKED, "s", "low on memory")
        session.ack(1, channel=number)
        # Nothing more is published before this, which the test asks for.
        answer(session, p.CHANNEL_OPEN, p.CHANNEL_OPEN_OK, "S", "")
        answer(session, p.DECLARE, p.DECLARE_OK, "sll", "q", 0, 0)
        session.send(0, p.UNBLOCKED)
        session.expect(p.PUBLISH)
        session.ack(2, channel=number)
        session.farewell()

    async def main():
        blocked, unblocked = [], []
        options = {"on_blocked": blocked.append, "on_unblocked": lambda: unblocked.append(True)}
        async with dial(peer, transport_options=options) as connection:
            producer = connection.producer(routing_key="q")
            await producer.publish(1)
            assert blocked == ["low on memory"]
            with pytest.raises(exceptions.Blocked, match="low on memory"):
                await producer.publish("in vain", timeout=0.2)
            waiting = asyncio.create_task(producer.publish(2))
            await connection.status("q")
            await waiting
            assert unblocked == [True]

    peer.play(script)
    run(main)


def test_publishers_wait_for_a_broker_that_does_not_read(peer, monkeypatch):
    monkeypatch.setattr(amqp_aio, "CLOSE_TIMEOUT", 0.2)

    def script(session):
        session.handshake()
        session.open_channel()
        session.expect(p.PUBLISH)
        session.verify()
        done.wait(30)
        session.silence()

    async def main():
        connection = dial(peer)
        await connection.connect()
        producer = connection.producer(routing_key="q", confirm=False, serializer="raw")
        body = b"x" * 100_000
        await producer.publish(body)
        with pytest.raises((TimeoutError, exceptions.RecoverableConnectionError)):
            for _ in range(1000):
                await producer.publish(body, timeout=0.3)
        stream = connection.session.transport._stream
        assert stream._transport.get_write_buffer_size() + stream._size < 10_000_000
        done.set()
        await connection.close()

    done = threading.Event()
    peer.play(script)
    run(main)


def test_nothing_is_kept_of_what_was_published(amqp_url, name):
    async def main():
        queue = Queue(name("q"), exclusive=True, durable=False)
        async with aio.connect(amqp_url) as connection:
            await connection.declare(queue)
            producer = connection.producer(routing_key=queue.name)
            await asyncio.gather(*(producer.publish(number) for number in range(10_000)))
            transport = connection.session.transport
            assert not connection.session.window.sent
            assert all(not len(each.confirms or ()) for each in transport._protocol.channels.values())
            assert transport._stream._out == []

    run(main, debug=False)


# --- logins


@pytest.mark.parametrize(
    ("url", "error"),
    [("guest:wrong@127.0.0.1:{}//", exceptions.AccessRefused), ("127.0.0.1:{}/missing", exceptions.NotAllowed)],
)
def test_refused_logins(amqp_url, url, error):
    async def main():
        port = amqp_url.rstrip("/").rpartition(":")[2]
        with pytest.raises(error):
            await aio.connect(f"amqp://{url.format(port)}").connect()

    run(main)


@pytest.mark.parametrize("end", ["silence", "hang up"])
def test_a_broker_that_does_not_answer_what_was_proposed(peer, end):
    def script(session):
        session.start()
        session.send(0, p.TUNE, "BlB", 10, 131072, 0)
        session.expect(p.TUNE_OK)
        session.expect(p.OPEN)
        session.silence() if end == "silence" else session.sock.close()

    async def main():
        connection = dial(peer, connect_timeout=1, transport_options={"frame_max": 9000})
        kind = TimeoutError if end == "silence" else exceptions.RecoverableConnectionError
        with pytest.raises(kind, match="after frame_max=9000, channel_max=10 was proposed"):
            await connection.connect()

    peer.play(script)
    run(main)


def test_what_comes_behind_the_login_is_not_lost(peer):
    def script(session):
        session.start()
        session.send(0, p.TUNE, "BlB", 10, 131072, 0)
        session.expect(p.TUNE_OK)
        session.expect(p.OPEN)
        frames = session.encoder.method(0, *p.OPEN_OK, bytes(dumps("s", [""])))
        session.sock.sendall(frames + session.encoder.method(0, *p.BLOCKED, bytes(dumps("s", ["disk"]))))
        session.farewell()

    async def main():
        async with dial(peer, transport_options={"on_blocked": blocked.append}):

            async def heard():
                return bool(blocked)

            await soon(heard, 20)

    blocked = []
    peer.play(script)
    run(main)
    assert blocked == ["disk"]


def test_a_broker_that_closes_behind_the_login(peer):
    def script(session):
        session.start()
        session.send(0, p.TUNE, "BlB", 10, 131072, 0)
        session.expect(p.TUNE_OK)
        session.expect(p.OPEN)
        close = bytes(dumps("BsBB", [320, "CONNECTION_FORCED - going down", 0, 0]))
        frames = session.encoder.method(0, *p.OPEN_OK, bytes(dumps("s", [""])))
        session.sock.sendall(frames + session.encoder.method(0, *p.CLOSE, close))
        session.silence()

    async def main():
        with pytest.raises(exceptions.RecoverableConnectionError):
            async with dial(peer) as connection:
                await connection.status("q")

    peer.play(script)
    run(main)


# --- another loop


def test_uvloop(amqp_url, name):
    async def main():
        queue = Queue(name("q"), exclusive=True, durable=False)
        async with aio.connect(amqp_url) as connection:
            await connection.declare(queue)
            producer = connection.producer(routing_key=queue.name)
            bodies = [{"n": number, "text": "x" * 1000} for number in range(1000)]
            await asyncio.gather(*(producer.publish(body) for body in bodies))
            got = []
            async with connection.consume(queue, prefetch=100, auto_declare=False) as messages:
                async for message in messages:
                    got.append(message.payload)
                    await message.ack()
                    if len(got) == len(bodies):
                        break
            assert sorted(each["n"] for each in got) == list(range(1000))

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(main(), 60))
    finally:
        loop.close()
