"""Waiting for messages with what a protocol and a user's rights allow: the server wakes us, or we look now and then."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import kombu
import pytest
import redis

from kombulite import Connection, Consumer, Exchange, Producer, Queue, aio, exceptions, uuid
from kombulite._core import EnvelopeReader, LeasedMessages
from kombulite.asynchronous import Hub
from kombulite.brokers.redis.blocking import MAX_WAITING, ListWaits
from kombulite.brokers.redis.options import Options
from kombulite.brokers.redis.pace import PATIENCE, Pace
from kombulite.brokers.redis.stream import Stream
from kombulite.brokers.redis.waiter import Waiter
from kombulite.utils.json_codec import codec
from tests.aio.conftest import run
from tests.redis.conftest import drain
from tests.redis.test_aio import transport_of
from tests.servers import RedisServer

#: As kombu's documentation recommends, to spare the server; nobody waits for that.
PATIENT = {"polling_interval": 600, "health_check_interval": 0}


@pytest.fixture(params=[2, 3])
def waiting(request: pytest.FixtureRequest, redis_url: str, client: redis.Redis) -> Iterator[Connection]:
    """A connection that no look now and then, and no health check, brings a message."""
    with Connection(redis_url, transport_options={**PATIENT, "protocol": request.param}) as connection:
        connection.connect()
        yield connection


@pytest.fixture(autouse=True)
def no_looks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "waiting" in request.fixturenames:
        monkeypatch.setattr("kombulite.brokers.redis.receiver.POLLING_INTERVAL", 600)


def put(publish: Any, connection: Connection, got: list[Any]) -> None:
    """Publish to a consumer that waits already; it gets the message, or the test ends after 10 seconds."""
    timer = threading.Timer(0.1, publish)
    timer.start()
    try:
        drain(connection, lambda: got, step=10)
    finally:
        timer.join()


@pytest.mark.parametrize("priority", [0, 5, 9])
@pytest.mark.parametrize("library", ["ours", "theirs"])
def test_server_wakes_an_idle_consumer_of_many_queues(waiting, request, name, library, priority):
    publisher = request.getfixturevalue(library)().channel()
    producer = (Producer if library == "ours" else kombu.Producer)(publisher, serializer="json")
    queues, got = [Queue(f"{name}.{i}") for i in range(20)], []
    with Consumer(waiting, queues, callbacks=[lambda body, message: (got.append(body), message.ack())]):
        for queue in (queues[0], queues[19], queues[0]):
            put(lambda: producer.publish("it", routing_key=queue.name, priority=priority), waiting, got)  # noqa: B023
            assert got.pop() == "it"
    assert len(waiting.transport._streams) <= 3


def test_event_loop_is_woken(waiting, ours, name):
    hub, got = Hub(), []
    producer = Producer(ours().channel())
    with Consumer(waiting, Queue(name), on_message=lambda message: got.append(message.ack())):
        waiting.register_with_event_loop(hub)
        hub.call_later(600, lambda: None)
        for count in range(1, 4):
            timer = threading.Timer(0.1, producer.publish, [count], {"routing_key": name})
            timer.start()
            deadline = time.monotonic() + 20
            while len(got) < count and time.monotonic() < deadline:
                hub.run_once()
            timer.join()
            assert len(got) == count
    hub.close()


def test_fanout_and_lists_wake_the_same_consumer(waiting, ours, name):
    got: list[Any] = []
    fanout = Queue(f"{name}.f", Exchange(f"{name}.f", "fanout"))
    producer = Producer(ours().channel(), serializer="json")
    with Consumer(waiting, [fanout, Queue(name)], callbacks=[lambda body, message: (got.append(body), message.ack())]):
        put(lambda: producer.publish("list", routing_key=name), waiting, got)
        assert got.pop() == "list"
        put(lambda: producer.publish("fanout", exchange=fanout.exchange), waiting, got)
        assert got.pop() == "fanout"


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
def test_waiting_again_after_a_loss(waiting, ours, client, name, kind):
    got: list[Any] = []
    with Consumer(waiting, Queue(name), callbacks=[lambda body, message: (got.append(body), message.ack())]):
        with pytest.raises(TimeoutError):
            waiting.drain_events(timeout=0.1)
        client.execute_command("CLIENT", "KILL", "TYPE", kind)
        try:
            while True:
                waiting.drain_events(timeout=0.5)
        except TimeoutError:  # with RESP3 there is none of the kind
            assert waiting.connected
        except waiting.recoverable_connection_errors:
            waiting.ensure_connection(timeout=10)
        producer = Producer(ours().channel())
        put(lambda: producer.publish("it", routing_key=name), waiting, got)


NOT_TOLD = [["-client"], ["-client|tracking"], ["resetchannels"]]


@pytest.fixture
def restricted(start_server: Any) -> Any:
    """Return a function that makes URLs of users with these rules."""
    server = start_server(RedisServer)

    def url(*rules: str) -> str:
        user = uuid()
        with redis.Redis(port=server.port) as admin:
            admin.execute_command("ACL", "SETUSER", user, "on", ">pw", "+@all", "~*", "&*", *rules)
        return f"redis://{user}:pw@127.0.0.1:{server.port}"

    return url


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("rules", NOT_TOLD)
def test_without_the_right_to_be_told_it_waits_in_the_server(restricted, name, rules, protocol, monkeypatch, caplog):
    """It takes no look, and no message is moved by that: not even in a list that expires."""
    monkeypatch.setattr("kombulite.brokers.redis.receiver.POLLING_INTERVAL", 600)
    got: list[Any] = []
    with Connection(restricted(*rules), transport_options={**PATIENT, "protocol": protocol}) as connection:
        queues = [Queue(name), Queue(f"{name}.expires", expires=600)]
        receive = lambda body, message: (got.append(body), message.ack())  # noqa: E731
        with Consumer(connection, queues, callbacks=[receive]), Connection(restricted()) as other:
            producer = Producer(other)
            for number, (queue, priority) in enumerate([(0, 0), (0, 9), (1, 5), (0, 0), (1, 0)]):
                publish = partial(producer.publish, number, queues[queue].name, priority=priority)
                put(publish, connection, got)
                assert got == [number]
                got.clear()
    assert "does not report changes" not in caplog.text


def test_a_wait_in_the_server_takes_nothing(restricted, name):
    """Its connection ends as the message comes, and that stays where it is; so does the end of the list's life."""
    with Connection(restricted("-client"), transport_options=PATIENT) as connection:
        consumer = Consumer(connection.channel(), Queue(name, expires=600), on_message=lambda message: None)
        consumer.consume()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        with redis.Redis.from_url(restricted()) as client:
            waiting = [each for each in client.client_list() if each["cmd"] == "blmove" and "b" in each["flags"]]
            assert len(waiting) == 4  # one for each priority
            with client.pipeline() as pipeline:
                pipeline.lpush(name, "first", "second").pexpire(name, 600_000).execute()
            connection.collect()
            assert client.lrange(name, 0, -1) == [b"second", b"first"]
            assert client.pttl(name) > 0
            assert not client.hlen("unacked")


def test_more_lists_than_connections_may_wait_are_looked_at(restricted, name):
    got: list[Any] = []
    queues = [Queue(f"{name}.{number}") for number in range(10)]
    with Connection(restricted("-client"), transport_options=PATIENT) as connection:
        receive = lambda body, message: (got.append(body), message.ack())  # noqa: E731
        with Consumer(connection, queues, callbacks=[receive]), Connection(restricted()) as other:
            for queue in queues:
                put(partial(Producer(other).publish, "it", queue.name, priority=9), connection, got)
                got.clear()


@pytest.mark.parametrize("rules", NOT_TOLD)
def test_without_the_right_to_wait_either_there_are_looks_and_a_warning(restricted, name, rules, caplog):
    """At least once a second, whatever kombu's documentation says of ``polling_interval``."""
    options = {**PATIENT, "protocol": 2}
    got: list[Any] = []
    with Connection(restricted(*rules, "-blmove"), transport_options=options) as connection:
        with Consumer(connection, Queue(name), callbacks=[lambda body, message: (got.append(body), message.ack())]):
            with Connection(restricted()) as other:
                producer = Producer(other)
                put(lambda: producer.publish("it", routing_key=name), connection, got)
    assert got == ["it"]
    assert caplog.text.count("does not report changes") == 1


@pytest.fixture
def full(restricted: Any) -> Iterator[Callable[[int], object]]:
    """Return a function that lets the server take so many connections more than it has."""
    with redis.Redis.from_url(restricted()) as admin:

        def allow(count: int) -> object:
            return admin.config_set("maxclients", admin.info("clients")["connected_clients"] + count)

        yield allow


def test_without_a_connection_for_waiting_there_are_looks_and_a_warning(restricted, full, name, caplog):
    got: list[Any] = []
    with Connection(restricted("-client"), transport_options=PATIENT) as connection:
        channel = connection.channel()
        full(1)  # that which listens
        with Consumer(channel, Queue(name), callbacks=[lambda body, message: (got.append(body), message.ack())]):
            full(100)
            with Connection(restricted()) as other:
                put(lambda: Producer(other).publish("it", routing_key=name), connection, got)
    assert got == ["it"]
    assert caplog.text.count("does not report changes") == 1


def test_without_a_connection_for_waiting_on_an_event_loop(restricted, full, name, caplog):
    async def main() -> Any:
        async with aio.connect(restricted("-client"), transport_options=PATIENT) as connection:
            await connection.declare(Queue(name))
            full(1)
            async with connection.consume(Queue(name)) as messages:
                full(100)
                with Connection(restricted()) as other:
                    Producer(other).publish("it", routing_key=name)
                return (await messages.next(timeout=20)).payload

    assert asyncio.run(main()) == "it"
    assert caplog.text.count("does not report changes") == 1


def test_many_consumers_that_begin_at_once_share_the_connections_that_wait(restricted, name):
    url = restricted("-client")

    async def main():
        async with aio.connect(url) as connection:
            queues = [f"{name}.{number}" for number in range(30)]
            async with connection.consume(queues, auto_declare=False):
                with redis.Redis.from_url(restricted()) as client:
                    users = [each["user"] for each in client.client_list()]
                assert users.count(urlsplit(url).username) <= 2 + MAX_WAITING

    asyncio.run(main())


class Waits:
    """A connection of which a test answers what is sent."""

    def __init__(self):
        self.posted = []

    def post(self, data, replies, on_reply, may_repeat):
        self.posted.append((data, on_reply))

    def answer(self, reply):
        self.posted.pop()[1](reply)

    def waits_for(self, key):
        return f"\r\n{key}\r\n".encode() in self.posted[-1][0]


def test_what_another_thread_reads_wakes_the_one_that_waits(waiting, ours, name, monkeypatch):
    Producer(ours().channel()).publish("it", routing_key=name)
    got: list[Any] = []
    with Consumer(waiting, [Queue(name)], callbacks=[lambda body, message: (got.append(body), message.ack())]):
        transport: Any = waiting.transport
        waiter = transport._waiter
        select, woken = waiter._awaited.select, []

        def read_elsewhere(seconds: float | None) -> Any:
            if woken or not transport._stream.is_waiting:
                return select(seconds)
            thread = threading.Thread(target=transport._stream.wait_for_replies)
            thread.start()
            thread.join()
            found = select(0)
            woken.append(any(key.fileobj is waiter._waker_out for key, _ in found))
            return found

        monkeypatch.setattr(waiter._awaited, "select", read_elsewhere)
        drain(waiting, lambda: got, step=0.1)
    assert woken == [True]


def test_who_closes_the_connection_does_not_wait_for_who_was_about_to_sleep(monkeypatch):
    sock, server = socket.socketpair()
    stream = Stream(SimpleNamespace(_sock=sock), 3, 20, print)
    receiver: Any = SimpleNamespace(events=deque(), has_something=lambda: False, has_ready=lambda: False)
    receiver.messages = LeasedMessages(EnvelopeReader(codec), stream.lock)
    router: Any = SimpleNamespace(catch_up=lambda: iter(()))
    waiter = Waiter(stream, receiver, router, {})
    next_event, wake, may_sleep = waiter._next_event, waiter.wake, threading.Event()

    def wake_too_early() -> None:
        wake()
        may_sleep.set()

    def close() -> None:
        stream.drop()
        waiter.close()

    closing = threading.Thread(target=close)

    def look_and_be_closed(has_polled: bool) -> Any:
        event = next_event(has_polled)
        closing.start()
        assert may_sleep.wait(20)
        return event

    slept: list[float | None] = []
    monkeypatch.setattr(waiter._awaited, "select", lambda seconds: slept.append(seconds) or [])
    monkeypatch.setattr(waiter, "wake", wake_too_early)
    monkeypatch.setattr(waiter, "_next_event", look_and_be_closed)
    with server, pytest.raises(exceptions.RecoverableConnectionError):
        waiter.receive(600)
    closing.join(20)
    assert not closing.is_alive()
    assert not slept


def test_there_is_no_wait_for_a_queue_that_is_not_consumed_any_more():
    consumed, stream = {"old"}, Waits()
    waits = ListWaits(Options(), 1.0, lambda: consumed, print)
    waits.add(stream)
    waits.want("old", 0, "old")
    assert waits.cover(1)
    assert stream.waits_for("old")
    consumed = {"new"}
    waits.want("new", 3, "new")
    assert not waits.cover(1)
    for _ in range(2):
        stream.answer(None)
        assert waits.cover(1)
        assert stream.waits_for("new")


class Slow(Pace):
    """The pace of a stream that does not end."""

    is_streaming = True

    def rest(self, now: float) -> float:
        return max(self._looked_at + 0.02 - now, 0.0)


def test_messages_of_a_stream_come_after_its_pauses(ours, name):
    connection, got = ours(polling_interval=600, health_check_interval=0), []
    producer = Producer(ours())
    with Consumer(connection.channel(), Queue(name), callbacks=[lambda body, _: got.append(body)], no_ack=True):
        connection.transport._protocol.receiver.pace = Slow()
        for number in range(20):
            producer.publish(number, routing_key=name)
            drain(connection, lambda: len(got) == number + 1)  # noqa: B023


def test_messages_of_a_stream_come_to_a_hub_after_its_pauses(ours, name):
    hub, connection, got = Hub(), ours(**PATIENT), []
    producer = Producer(ours())
    with Consumer(connection.channel(), Queue(name), callbacks=[lambda body, _: got.append(body)], no_ack=True):
        connection.transport._protocol.receiver.pace = Slow()
        connection.register_with_event_loop(hub)
        for number in range(20):
            producer.publish(number, routing_key=name)
            deadline = time.monotonic() + 20
            while len(got) <= number:
                assert time.monotonic() < deadline, "it does not come"
                hub.run_once()
    hub.close()


def test_claim_that_follows_after_a_pause_is_not_kept_back_by_another_channel(ours, name):
    """Others are mostly faster where that channel consumes."""
    connection, got = ours(polling_interval=600, health_check_interval=0), []
    producer = Producer(ours())
    with Consumer(connection.channel(), Queue(name), callbacks=[lambda body, _: got.append(body)], no_ack=True):
        receiver = connection.transport._protocol.receiver
        receiver.pace = Slow()
        for number in range(5):
            producer.publish(number, routing_key=name)
            drain(connection, lambda: len(got) == number + 1)  # noqa: B023
            receiver.pace._lost = PATIENCE + 1


@pytest.mark.parametrize("besides", ["nothing", "a fanout", "another queue"])
def test_who_is_slower_than_others_rests_before_it_reads_of_a_queue_that_they_share(ours, name, monkeypatch, besides):
    """What is told of a fanout is for this consumer alone, and that of another queue may be: it is read first."""
    connection, got, is_unread = ours(**PATIENT), [], []
    queues = [Queue(name)]
    if besides == "a fanout":
        queues.append(Queue(f"{name}.f", Exchange(f"{name}.f", "fanout"), auto_delete=True))
    elif besides == "another queue":
        queues.append(Queue(f"{name}.2"))
    with Consumer(connection.channel(), queues, callbacks=[lambda body, _: got.append(body)], no_ack=True):
        receiver, waiter = connection.transport._protocol.receiver, connection.transport._waiter

        def is_idle() -> bool:
            return name.encode() in receiver._watched and not waiter._is_awaiting_replies()

        drain(connection, is_idle)
        rest = "kombulite.brokers.redis.waiter.sleep"
        monkeypatch.setattr(rest, lambda _: is_unread.append(name.encode() in receiver._watched))
        for _ in range(PATIENCE + 5):
            receiver.pace.claimed(0, time.monotonic())
        put(partial(Producer(ours()).publish, "x", routing_key=name), connection, got)
    assert is_unread == [besides == "nothing"]


def test_who_is_slower_than_others_rests_no_longer_than_it_may_wait(ours, name, monkeypatch):
    """The news comes at the end of the time that there was to wait."""
    connection, rests, waits = ours(**PATIENT), [], []
    with Consumer(connection.channel(), Queue(name), callbacks=[lambda body, _: None], no_ack=True):
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        receiver, waiter = connection.transport._protocol.receiver, connection.transport._waiter
        monkeypatch.setattr(
            "kombulite.brokers.redis.waiter.sleep", lambda pause: rests.append(pause) or time.sleep(0.05)
        )
        monkeypatch.setattr(receiver, "pause", lambda: 60.0)
        monkeypatch.setattr(receiver, "has_something", lambda: bool(waits))

        def wake_late(seconds: float) -> list[Any]:
            waits.append(seconds)
            time.sleep(0.1)
            return []

        monkeypatch.setattr(waiter._awaited, "select", wake_late)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=1)
    assert rests
    assert all(0 < rest <= 0.9 for rest in rests)


def test_messages_of_a_stream_come_to_an_event_loop_after_its_pauses(redis_url, client, name):
    async def main() -> None:
        async with aio.connect(redis_url, transport_options=PATIENT) as connection:
            async with connection.consume(name, prefetch=5) as messages:
                transport_of(connection)._protocol.receiver.pace = Slow()
                for number in range(20):
                    await connection.producer().publish(number, name)
                    message = await messages.next(20)
                    assert message.payload == number
                    await message.ack()

    run(main)


def test_nothing_is_kept_of_queues_that_are_not_consumed_any_more(ours, name):
    connection = ours()
    channel = connection.channel()
    queue = Queue(f"{name}.kept", Exchange(f"{name}.fanout", "fanout"))
    with Consumer(channel, queue, on_message=print):
        receiver = connection.transport._protocol.receiver
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        before = len(receiver._watched), len(receiver.subscriptions._seen)
        assert before == (4, 1)
        for number in range(3):
            reply = Queue(f"{name}.{number}", queue.exchange, auto_delete=True)
            with Consumer(channel, reply, on_message=print):
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.1)
                assert len(receiver._watched) > before[0]
            reply(channel).delete()
        assert (len(receiver._watched), len(receiver.subscriptions._seen)) == before
