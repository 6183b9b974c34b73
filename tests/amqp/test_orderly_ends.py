"""What nobody failed at goes back without being counted as a failed delivery; what failed is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from kombulite import Connection, Consumer, Queue, Quorum, aio, exceptions
from kombulite.brokers.amqp import methods
from kombulite.brokers.base import Outcome
from kombulite.mixins import ConsumerMixin
from kombulite.simple import SimpleQueue
from tests.aio.conftest import run
from tests.amqp import peer as p
from tests.amqp.conftest import in_threads

ROUNDS = 25  # more than RabbitMQ 4's delivery limit of 20
MESSAGES = 10
TIMEOUT = 20.0  # seconds

QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture
def quorum(name: Callable[[str], str], channel: Any, connection: Connection) -> Any:
    queue = Queue(name("quorum"), queue_arguments=QUORUM)(channel)
    queue.declare()
    connection.Producer().publish_many(range(MESSAGES), routing_key=queue.name)
    yield queue
    with suppress(Exception):
        Queue(queue.name)(connection.channel()).delete()


def ready(connection: Connection, queue: Queue, count: int = MESSAGES) -> None:
    """Wait until so many messages wait in a queue."""
    deadline = time.monotonic() + TIMEOUT
    channel = connection.channel()
    while (info := channel.queue_declare(queue.name, passive=True)).message_count != count:
        assert time.monotonic() < deadline, f"{info.message_count} messages instead of {count}"
        time.sleep(0.02)
    channel.close()


def failures(connection: Connection, queue: Queue) -> dict[int, int]:
    """How often each message was given back as failed, by its body; takes all of them."""
    channel = connection.channel()
    found = {}
    while (message := queue(channel).get()) is not None:
        found[message.payload] = message.headers.get("x-delivery-count", 0)
        message.ack()
    channel.close()
    return found


def counts_failures(connection: Connection) -> bool:
    return bool(connection.connection.server_properties["version"] >= "4")


def start(connection: Connection, channel: Any, queue: Queue, **options: Any) -> tuple[Consumer, list[Any]]:
    seen: list[Any] = []
    consumer = Consumer(channel, queue, on_message=seen.append, prefetch_count=MESSAGES, **options)
    consumer.consume()
    connection.drain_events(timeout=TIMEOUT)  # the others have come, or are in flight
    return consumer, seen


def cancel(connect: Callable[..., Connection], queue: Queue) -> None:
    with connect() as connection:
        consumer, seen = start(connection, connection.channel(), queue)
        consumer.cancel()
        for message in seen:
            message.requeue(failed=False)
        ready(connection, queue)


def close_channel(connect: Callable[..., Connection], queue: Queue) -> None:
    with connect() as connection:
        channel = connection.channel()
        start(connection, channel, queue)
        channel.close()
        ready(connection, queue)


def release(connect: Callable[..., Connection], queue: Queue) -> None:
    connection = connect()
    start(connection, connection.channel(), queue)
    connection.release()


def leave_the_context(connect: Callable[..., Connection], queue: Queue) -> None:
    with connect() as connection, Consumer(connection, queue, on_message=lambda message: None, prefetch_count=5):
        connection.drain_events(timeout=TIMEOUT)


def close_a_simple_queue(connect: Callable[..., Connection], queue: Queue) -> None:
    with connect() as connection:
        simple = SimpleQueue(connection, queue)
        simple.get(timeout=TIMEOUT).requeue(failed=False)
        simple.close()
        ready(connection, queue)


def stop_gathering(connect: Callable[..., Connection], queue: Queue) -> None:
    with connect() as connection:
        batches: list[Any] = []
        consumer = Consumer(connection, queue, on_batch=batches.append, batch_size=2 * MESSAGES, batch_timeout=60)
        with consumer, suppress(TimeoutError):
            connection.drain_events(timeout=0.02)
        assert not batches
        ready(connection, queue)


def recover(connect: Callable[..., Connection], queue: Queue) -> None:
    with connect() as connection:
        consumer, _ = start(connection, connection.channel(), queue)
        consumer.recover(requeue=True)
        consumer.cancel()


def settle_a_batch(connect: Callable[..., Connection], queue: Queue) -> None:
    with connect() as connection:
        batches: list[Any] = []
        consumer = Consumer(connection, queue, on_batch=batches.append, batch_size=3, prefetch_count=3)
        consumer.consume()
        while not batches:
            connection.drain_events(timeout=TIMEOUT)
        consumer.cancel()
        for batch in batches:
            batch.requeue(failed=False)


def get_and_release(connect: Callable[..., Connection], queue: Queue) -> None:
    connection = connect()
    unsettled = [queue(connection.channel()).get() for _ in range(3)]
    assert None not in unsettled
    connection.release()


def stop_a_mixin(connect: Callable[..., Connection], queue: Queue) -> None:
    class Worker(ConsumerMixin):
        def __init__(self) -> None:
            self.connection = connect()

        def get_consumers(self, consumer_class: Any, channel: Any) -> list[Consumer]:
            return [consumer_class(queue, on_message=self.take, prefetch_count=MESSAGES)]

        def take(self, message: Any) -> None:
            self.should_stop = True

    worker = Worker()
    worker.run(timeout=TIMEOUT)
    worker.connection.release()


ENDS = [
    cancel,
    close_channel,
    release,
    leave_the_context,
    close_a_simple_queue,
    stop_gathering,
    recover,
    settle_a_batch,
]


@pytest.mark.parametrize("end", ENDS)
def test_an_orderly_end_is_no_failed_delivery(
    connection: Connection, connect: Callable[..., Connection], quorum: Queue, end: Callable[..., None]
) -> None:
    for _ in range(ROUNDS):
        end(connect, quorum)
        ready(connection, quorum)
    found = failures(connection, quorum)
    assert sorted(found) == list(range(MESSAGES))
    if counts_failures(connection):
        assert set(found.values()) == {0}


async def leave_while_messages_come(connection: aio.Connection, queue: Queue) -> None:
    async with connection.consume(queue, prefetch=MESSAGES) as messages:
        await messages.next(timeout=TIMEOUT)


async def stop_messages(connection: aio.Connection, queue: Queue) -> None:
    async with connection.consume(queue, prefetch=MESSAGES) as messages:
        message = await messages.next(timeout=TIMEOUT)
        assert message is not None
        await messages.stop()
        await message.requeue(failed=False)


async def close_under_a_consumer(connection: aio.Connection, queue: Queue) -> None:
    messages = connection.consume(queue, prefetch=MESSAGES)
    await messages.__aenter__()
    await messages.next(timeout=TIMEOUT)
    await connection.close()


async def stop_a_server(connection: aio.Connection, queue: Queue) -> None:
    stop, begun = asyncio.Event(), asyncio.Event()

    async def wait_for_the_end(message: aio.Message) -> None:
        begun.set()
        await asyncio.sleep(TIMEOUT)

    serving = connection.serve(
        queue, wait_for_the_end, concurrency=2, prefetch=MESSAGES, stop=stop, grace=0.01, signals=()
    )
    task = asyncio.create_task(serving)
    await asyncio.wait_for(begun.wait(), TIMEOUT)
    stop.set()
    await task


async def cancel_a_handler(connection: aio.Connection, queue: Queue) -> None:
    begun = asyncio.Event()

    async def handle() -> None:
        async with connection.consume(queue, prefetch=MESSAGES) as messages:
            async for message in messages:
                async with message.process():
                    begun.set()
                    await asyncio.sleep(TIMEOUT)

    task = asyncio.create_task(handle())
    await asyncio.wait_for(begun.wait(), TIMEOUT)
    task.cancel()
    await asyncio.wait([task])


async def get_and_close(connection: aio.Connection, queue: Queue) -> None:
    assert await connection.get(queue) is not None


def on_a_loop(end: Callable[[aio.Connection, Queue], Any]) -> Callable[..., None]:
    def end_on_a_loop(connect: Callable[..., Connection], queue: Queue) -> None:
        async def main() -> None:
            async with aio.connect(connect().as_uri(include_password=True)) as connection:
                await end(connection, Queue(queue.name, no_declare=True))

        run(main)

    end_on_a_loop.__name__ = end.__name__
    return end_on_a_loop


ENDS_ON_A_LOOP = map(
    on_a_loop,
    [
        leave_while_messages_come,
        stop_messages,
        close_under_a_consumer,
        stop_a_server,
        cancel_a_handler,
        get_and_close,
    ],
)


@pytest.mark.parametrize("end", [*ENDS, get_and_release, stop_a_mixin, *ENDS_ON_A_LOOP])
def test_an_orderly_end_delays_nothing(
    connection: Connection,
    connect: Callable[..., Connection],
    name: Callable[[str], str],
    end: Callable[..., None],
    broker_version: tuple[int, ...],
) -> None:
    """With delayed retry, whose delay is longer than the test waits."""
    if broker_version < (4, 3):
        pytest.skip("this RabbitMQ delays none")
    queue = Queue(name("delayed"), kind=Quorum(retry_delay=(600, 600)))(connection.channel())
    queue.declare()
    connection.Producer().publish_many(range(MESSAGES), routing_key=queue.name)
    ready(connection, queue)
    for _ in range(2):
        end(connect, queue)
        ready(connection, queue)
    found = failures(connection, queue)
    assert sorted(found) == list(range(MESSAGES))
    assert set(found.values()) == {0}
    queue.delete()


def test_the_message_whose_callback_raised_counts_as_failed_and_the_others_do_not(
    connection: Connection, connect: Callable[..., Connection], quorum: Queue
) -> None:
    def fail_at_three(body: int, message: Any) -> None:
        if body == 3:
            raise LookupError("no such order")

    with connect() as other:
        consumer = Consumer(other.channel(), quorum, callbacks=[fail_at_three], prefetch_count=MESSAGES)
        consumer.consume()
        with pytest.raises(LookupError):
            while True:
                other.drain_events(timeout=TIMEOUT)
    ready(connection, quorum)
    found = failures(connection, quorum)
    assert sorted(found) == list(range(MESSAGES))
    if counts_failures(connection):
        assert [body for body, count in found.items() if count] == [3]


def test_a_batch_that_failed_counts_as_failed(
    connection: Connection, connect: Callable[..., Connection], quorum: Queue
) -> None:
    def fail(batch: Any) -> None:
        batch[0].ack()
        raise LookupError("no such order")

    with connect() as other:
        consumer = Consumer(other.channel(), quorum, on_batch=fail, batch_size=3, prefetch_count=6)
        consumer.consume()
        with pytest.raises(LookupError):
            while True:
                other.drain_events(timeout=TIMEOUT)
    ready(connection, quorum, MESSAGES - 1)
    found = failures(connection, quorum)
    assert sorted(found) == list(range(1, MESSAGES))
    if counts_failures(connection):
        assert [body for body, count in found.items() if count] == [1, 2]


@pytest.mark.parametrize("failed", [True, False])
def test_one_message_and_a_batch_are_requeued_alike(
    connection: Connection, connect: Callable[..., Connection], quorum: Queue, failed: bool
) -> None:
    with connect() as other:
        batches: list[Any] = []
        consumer = Consumer(other, quorum, on_batch=batches.append, batch_size=MESSAGES)
        with consumer:
            while not batches:
                other.drain_events(timeout=TIMEOUT)
        (batch,) = batches
        batch.pop().requeue(failed=failed)
        batch.requeue(failed=failed)
        ready(connection, quorum)
    found = failures(connection, quorum)
    if counts_failures(connection):
        assert set(found.values()) == {int(failed)}


# --- beside other threads


# Of a thread that was in the transport before the channel was closed.
SETTLES: dict[str, Callable[[Any, int, list[int]], object]] = {
    "ack": lambda transport, number, tags: transport.settle(number, tags[0], Outcome.ACK),
    "ack of all before": lambda transport, number, tags: transport.settle(number, tags[-1], Outcome.ACK, True),
    "requeue": lambda transport, number, tags: transport.settle(number, tags[0], Outcome.REQUEUE),
    "return": lambda transport, number, tags: transport.settle(number, tags[0], Outcome.RETURN),
    "reject": lambda transport, number, tags: transport.settle(number, tags[0], Outcome.REJECT),
    "many": lambda transport, number, tags: transport.settle_many(number, tags[1:], Outcome.ACK),
}


def between(connection: Connection, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[Exception]:
    """Have another thread act when a channel has given its deliveries back, before it is closed; return its errors."""
    protocol = connection.transport._protocol
    give_back, errors = protocol.give_back, []

    def act_and_note() -> None:
        try:
            act()
        except Exception as error:
            errors.append(error)

    def give_back_and_act(channel: Any, timeout: float | None = None) -> None:
        give_back(channel, timeout)
        in_threads(act_and_note)

    monkeypatch.setattr(protocol, "give_back", give_back_and_act)
    return errors


@pytest.mark.parametrize("settle", SETTLES.values(), ids=SETTLES)
def test_nothing_is_settled_once_all_went_back(
    connection: Connection,
    connect: Callable[..., Connection],
    quorum: Queue,
    settle: Callable[[Any, int, list[int]], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would be an unknown delivery tag, for which the broker closes the channel."""
    with connect() as other:
        channel = other.channel()
        _, seen = start(other, channel, quorum)
        while len(seen) < MESSAGES:
            other.drain_events(timeout=TIMEOUT)
        tags = [message.delivery_tag for message in seen]
        errors = between(other, monkeypatch, lambda: settle(other.transport, channel.channel_id, tags))
        channel.close()
        assert [type(error) for error in errors] == [exceptions.RecoverableConnectionError]
        ready(connection, quorum)
    found = failures(connection, quorum)
    assert sorted(found) == list(range(MESSAGES))
    if counts_failures(connection):
        assert not any(found.values())


@pytest.mark.parametrize("outcome", ["ack", "requeue"])
def test_a_failed_message_that_another_thread_settles_is_not_rejected_too(
    connection: Connection, connect: Callable[..., Connection], quorum: Queue, outcome: str
) -> None:
    with connect() as other:
        channel = other.channel()
        _, seen = start(other, channel, quorum)
        seen[0].channel.note_failure(seen[0])
        state = other.transport._protocol.channels[channel.channel_id]
        add = state.settled.add

        class Slow:
            """Is given back before the thread that settles has noted what it sent."""

            def add(self, *settled: Any) -> None:
                in_threads(lambda: other.transport._protocol.give_back(state))
                add(*settled)

            def __getattr__(self, name: str) -> Any:
                return getattr(settled, name)

        settled, state.settled = state.settled, Slow()
        getattr(seen[0], outcome)()
        state.settled = settled
        channel.queue_declare(quorum.name, passive=True)  # it is still open
        channel.close()
        ready(connection, quorum, MESSAGES - (outcome == "ack"))


@pytest.mark.parametrize("end", ["channel", "connection"])
def test_a_channel_that_the_broker_closes_while_it_is_closed_ends_quietly(
    connection: Connection,
    connect: Callable[..., Connection],
    quorum: Queue,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = connect()
    channel = other.channel()
    start(other, channel, quorum)
    protocol = other.transport._protocol
    state = protocol.channels[channel.channel_id]
    end_consumers = protocol.end_consumers

    def closed_by_the_broker(ended: Any, timeout: float | None = None) -> Any:
        if ended is state:
            monkeypatch.setattr(protocol, "end_consumers", end_consumers)
            protocol.stream.send(protocol.stream.encoder.ack(state.number, 999, False))  # an unknown delivery tag
            assert protocol.stream.wait(lambda: state.error is not None, time.monotonic() + TIMEOUT)
        return "c" if ended is state else end_consumers(ended, timeout)

    requested: list[Any] = []
    request = protocol.request

    def note_request(channel: Any, method: Any, *arguments: Any, **options: Any) -> Any:
        requested.append(method)
        return request(channel, method, *arguments, **options)

    monkeypatch.setattr(protocol, "end_consumers", closed_by_the_broker)
    monkeypatch.setattr(protocol, "request", note_request)
    if end == "channel":
        channel.close()
        assert other.connected
        other.channel().queue_declare(quorum.name, passive=True)
    other.release()
    assert requested[-1] is methods.CONNECTION_CLOSE  # and it was not given up before
    ready(connection, quorum)


# --- on the wire


def frames_of(peer: p.Peer, use: Callable[[Connection], Any], no_ack: bool = False, deliveries: int = 3) -> list[Any]:
    """What a client sends to a broker that delivers three messages, from the consumer's start to its goodbye."""
    sent: list[Any] = []

    def script(session: p.Session) -> None:
        session.handshake()
        session.open_channel()
        tag = session.consume()
        for number in range(1, deliveries + 1):
            session.deliver(number, b"%d" % number, tag)
        while True:
            method = session.method()
            if method.signature == p.CLOSE:
                session.send(0, p.CLOSE_OK)
                return
            if method.signature == p.CANCEL:
                session.send(1, p.CANCEL_OK, "s", tag)
            elif method.signature == p.CHANNEL_CLOSE:
                session.send(1, p.CHANNEL_CLOSE_OK)
            sent.append(method)

    peer.play(script)
    connection = peer.connection()
    received: list[Any] = []
    connection.channel().basic_consume("q", no_ack=no_ack, callback=received.append)
    while len(received) < deliveries:
        connection.drain_events(timeout=p.PATIENCE)
    use(connection, *received) if received else use(connection)
    connection.release()
    peer.close()
    return sent


NACK_ALL = p.Method(1, p.NACK, b"\0" * 8 + b"\x03")
REJECT = (60, 90)


def test_what_is_left_goes_back_with_one_nack_after_the_consumers_end(peer: p.Peer) -> None:
    cancel, nack = frames_of(peer, lambda connection, first, *others: first.ack())[1:]
    assert cancel.signature == p.CANCEL
    assert nack == NACK_ALL


def test_what_failed_is_rejected_before(peer: p.Peer) -> None:
    sent = frames_of(peer, lambda connection, first, *others: first.channel.note_failure(first))
    assert [method.signature for method in sent] == [p.CANCEL, REJECT, p.NACK]
    assert sent[1].read("Lb") == [1, True]


def test_where_all_is_settled_nothing_is_given_back(peer: p.Peer) -> None:
    sent = frames_of(peer, lambda connection, *messages: messages[-1].ack(multiple=True))
    assert [method.signature for method in sent] == [p.ACK, p.CANCEL]


def test_nothing_is_given_back_for_a_consumer_without_acks(peer: p.Peer) -> None:
    assert frames_of(peer, lambda connection, *messages: None, no_ack=True) == []
