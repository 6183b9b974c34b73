"""Messages that the application has when its connection is lost: they stay with it, and any connection settles them."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from hiredis import ReplyError

from kombulite import Connection, Consumer, Producer, Queue, aio, exceptions
from kombulite._core import Delivery, Lease, Properties
from kombulite.brokers.base import Outcome
from kombulite.brokers.redis.claims import RedisChannel
from kombulite.brokers.redis.handover import Abandoned, Handover
from kombulite.brokers.redis.keys import Keys
from kombulite.brokers.redis.options import ROUND_ROBIN, Options, OrderStrategy
from kombulite.brokers.redis.plans import Exchange
from kombulite.brokers.redis.replies import ReplyQueue
from kombulite.message import Message
from tests.aio.conftest import run, soon
from tests.proxy import Cut, Direction, Proxy
from tests.redis.conftest import drain
from tests.servers import wait_until

pytestmark = pytest.mark.usefixtures("killed_is_lost")

LOST = (exceptions.RecoverableConnectionError, OSError)


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with Proxy(urlsplit(redis_url).port or 0) as made:
        yield made


@pytest.fixture
def through(proxy: Proxy, redis_url: str, client: Any) -> Iterator[Callable[..., Connection]]:
    """Make connections that lead through the proxy."""
    made: list[Connection] = []

    def connect(**options: Any) -> Connection:
        options = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1, **options}
        connection = Connection(f"redis://127.0.0.1:{proxy.port}/0", transport_options=options)
        made.append(connection)
        return connection

    yield connect
    for connection in made:
        connection.release()


def lose(connection: Connection, proxy: Proxy) -> None:
    """Cut all connections, and have this one notice and come back."""
    proxy.reset()
    with pytest.raises(LOST):
        while True:
            connection.drain_events(timeout=0.1)
    connection.ensure_connection()


def held(connection: Connection, queue: Queue, got: list[Message]) -> Consumer:
    consumer = Consumer(connection.channel(), queue, callbacks=[lambda body, message: got.append(message)])
    consumer.consume()
    return consumer


def is_settled(client: Any, queue: Queue) -> None:
    wait_until(lambda: not client.hlen("unacked") and not client.zcard("unacked_index"), 20, "it is leased still")
    assert client.llen(queue.name) == 0


@pytest.mark.parametrize("fate", ["ack", "reject", "requeue"])
def test_is_settled_after_the_connection_came_back(through, proxy, client, name, fate):
    connection, queue, got = through(), Queue(name), []
    held(connection, queue, got)
    Producer(connection).publish("x", routing_key=name)
    drain(connection, lambda: got)
    lose(connection, proxy)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=1)  # it does not come again
    getattr(got[0], fate)()
    if fate == "requeue":
        drain(connection, lambda: len(got) == 2)
        assert got[1].delivery_info["redelivered"]
        got[1].ack()
    is_settled(client, queue)
    with pytest.raises(exceptions.RecoverableConnectionError):
        got[0].channel.basic_ack(got[0].delivery_tag)


def test_is_settled_while_there_is_no_connection(through, proxy, client, name):
    connection, queue, got = through(), Queue(name), []
    held(connection, queue, got)
    Producer(connection).publish("x", routing_key=name)
    drain(connection, lambda: got)
    proxy.reset()
    with pytest.raises(LOST):
        while True:
            connection.drain_events(timeout=0.1)
    got[0].ack()
    assert client.hlen("unacked") == 1
    connection.ensure_connection()
    is_settled(client, queue)


def test_is_settled_over_another_connection_when_its_own_is_given_up(through, proxy, client, name):
    """As Celery's worker does: it closes what was lost, and begins anew, while a task of a process of its pool runs."""
    connection, queue, got = through(), Queue(name), []
    held(connection, queue, got)
    Producer(connection).publish("x", routing_key=name)
    drain(connection, lambda: got)
    proxy.reset()
    with pytest.raises(LOST):
        while True:
            connection.drain_events(timeout=0.1)
    connection.release()
    second, again = through(), []
    with held(second, queue, again):
        with pytest.raises(TimeoutError):
            second.drain_events(timeout=1)
        got.pop().ack()
        is_settled(client, queue)
    assert not again


def lose_alone(connection: Connection, client: Any) -> None:
    """Cut the connections of that name, and give it up."""
    for each in client.client_list():
        if each["name"] == "lossy":
            client.client_kill_filter(_id=each["id"])
    with pytest.raises(LOST):
        while True:
            connection.drain_events(timeout=0.1)
    connection.release()


def test_is_settled_where_the_others_of_the_process_only_publish(through, client, name):
    """One of them looks after what is held; the next one does when that is closed."""
    consuming, publishing, queue, got = through(client_name="lossy"), [through(), through()], Queue(name), []
    held(consuming, queue, got)
    for number, connection in enumerate(publishing):
        Producer(connection).publish(number, routing_key=name)
    drain(consuming, lambda: len(got) == 2)
    lose_alone(consuming, client)
    while got:
        got.pop(0).ack()
        wait_until(lambda: client.hlen("unacked") == len(got), 20, "it is leased still")
        attending = [each for each in publishing if each.transport._protocol.attends]
        assert len(attending) == 1
        attending[0].release()
        publishing = [each for each in publishing if each is not attending[0]]
    assert client.llen(name) == 0


def test_is_settled_where_others_publish_on_an_event_loop(through, proxy, client, name):
    consuming, queue, got = through(client_name="lossy"), Queue(name), []
    held(consuming, queue, got)

    async def main() -> None:
        async with aio.connect(f"redis://127.0.0.1:{proxy.port}/0") as connection:
            await connection.producer("").publish("x", name)
            await asyncio.to_thread(drain, consuming, lambda: got)
            await asyncio.to_thread(lose_alone, consuming, client)
            got.pop().ack()
            await asyncio.to_thread(is_settled, client, queue)

    run(main)


def test_comes_again_when_the_application_has_forgotten_it(through, proxy, client, name):
    connection, queue, got = through(), Queue(name), []
    held(connection, queue, got)
    Producer(connection).publish("x", routing_key=name)
    drain(connection, lambda: got)
    lose(connection, proxy)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.5)
    got.clear()
    gc.collect()
    drain(connection, lambda: got, 20)
    assert got[0].delivery_info["redelivered"]
    got[0].ack()
    is_settled(client, queue)


def test_what_a_callback_left_that_raised_comes_again_at_once(through, proxy, client, name):
    connection, bodies = through(), []

    def work(body: Any, message: Message) -> None:
        bodies.append(body)
        if len(bodies) == 1:
            proxy.reset()
            Producer(connection).publish("other", routing_key=f"{name}.other")
        message.ack()

    gc.collect()
    gc.disable()  # it goes with the exception, and need not be found by a collection
    try:
        with Consumer(connection.channel(), Queue(name), callbacks=[work]):
            Producer(connection).publish("x", routing_key=name)
            for _ in range(2):  # of the publish, and of the wait for messages
                with suppress(*LOST):
                    drain(connection, lambda: False)
            drain(connection, lambda: len(bodies) == 2, 20)
    finally:
        gc.enable()
    assert bodies == ["x", "x"]


def test_its_lease_is_renewed(through, proxy, client, name):
    connection, queue, got = through(visibility_timeout=1), Queue(name), []
    held(connection, queue, got)
    Producer(connection).publish("x", routing_key=name)
    drain(connection, lambda: got)
    lose(connection, proxy)
    before = client.zscore("unacked_index", got[0].delivery_tag)
    while client.zscore("unacked_index", got[0].delivery_tag) < before + 1.5:  # longer than the lease is
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.2)
    got[0].ack()
    is_settled(client, queue)


def test_multiple_settles_what_came_before_it_on_its_channel(through, proxy, client, name):
    connection, queue, got, others = through(), Queue(name), [], []
    held(connection, queue, got)
    held(connection, Queue(f"{name}.other"), others)
    for number in range(3):
        Producer(connection).publish(number, routing_key=name)
    Producer(connection).publish("x", routing_key=f"{name}.other")
    drain(connection, lambda: len(got) == 3 and others)
    lose(connection, proxy)
    got[1].ack(multiple=True)
    tags = {got[2].delivery_tag.encode(), others[0].delivery_tag.encode()}
    wait_until(lambda: set(client.hkeys("unacked")) == tags, 20, "not those were settled")
    got[2].ack()
    others[0].ack()
    is_settled(client, queue)


@pytest.mark.parametrize("fate", ["ack", "recover", "while it is lost"])
def test_multiple_settles_what_came_before_the_losses_too(through, proxy, client, name, fate):
    connection, queue, got, others = through(), Queue(name), [], []
    consumer = held(connection, queue, got)
    held(connection, Queue(f"{name}.other"), others)
    Producer(connection).publish("x", routing_key=f"{name}.other")
    drain(connection, lambda: others)
    for number in range(3):
        Producer(connection).publish(number, routing_key=name)
        drain(connection, lambda: len(got) == number + 1)  # noqa: B023
        if number < 2:
            lose(connection, proxy)
    assert client.hlen("unacked") == 4
    if fate == "recover":
        consumer.recover(requeue=True)
        drain(connection, lambda: sorted(message.payload for message in got[3:]) == [0, 1, 2])
        got[-1].ack(multiple=True)
    elif fate == "ack":
        got[2].ack(multiple=True)
    else:
        connection.collect()
        got[2].ack(multiple=True)
        connection.ensure_connection()
    wait_until(lambda: client.hkeys("unacked") == [others[0].delivery_tag.encode()], 20, "not those were settled")
    others[0].ack()
    is_settled(client, queue)


def test_goes_back_when_the_last_connection_is_closed(through, proxy, client, name):
    connection, queue, got = through(), Queue(name), []
    held(connection, queue, got)
    Producer(connection).publish("x", routing_key=name)
    drain(connection, lambda: got)
    lose(connection, proxy)
    connection.release()
    assert (client.llen(name), client.hlen("unacked")) == (1, 0)


def test_a_thread_works_on(through, proxy, client, name):
    connection, done, cut = through(), threading.Event(), threading.Event()
    runs: list[Any] = []

    def work(message: Message) -> None:
        cut.wait(20)
        message.ack()
        done.set()

    def on_message(body: Any, message: Message) -> None:
        runs.append(body)
        threading.Thread(target=work, args=[message]).start()

    with Consumer(connection.channel(), Queue(name), callbacks=[on_message]):
        Producer(connection).publish("x", routing_key=name)
        drain(connection, lambda: runs)
        lose(connection, proxy)
        cut.set()
        assert done.wait(20)
        is_settled(client, Queue(name))
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.5)
    assert runs == ["x"]


def test_a_forked_child_puts_nothing_back(through, proxy, client, name):
    connection, queue, got = through(), Queue(name), []
    held(connection, queue, got)
    Producer(connection).publish("x", routing_key=name)
    drain(connection, lambda: got)
    lose(connection, proxy)

    def child() -> None:
        got.clear()
        gc.collect()
        with connection.clone() as own:
            own.default_channel.basic_get(f"{name}.other")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert (client.llen(name), client.hlen("unacked")) == (0, 1)
    got[0].ack()
    is_settled(client, queue)


def test_a_task_works_on(through, proxy, redis_url, client, name):
    async def program() -> None:
        async with aio.connect(f"redis://127.0.0.1:{proxy.port}/0") as connection:
            await connection.declare(Queue(name))
            await connection.producer().publish("x", name)

            async def is_back() -> bool:
                return connection.counters.reconnects == 1

            async def is_acknowledged() -> bool:
                return not client.hlen("unacked")

            async with connection.consume(Queue(name)) as messages:
                message = await messages.next(20)
                assert message is not None
                proxy.reset()
                await soon(is_back)
                assert await messages.next(0.5) is None
                await message.ack()
                await soon(is_acknowledged)
                assert await messages.next(0.2) is None

    run(program)


def test_multiple_on_an_event_loop_settles_what_came_before_the_loss_too(proxy, client, name):
    async def program() -> None:
        async with aio.connect(f"redis://127.0.0.1:{proxy.port}/0") as connection:
            producer = connection.producer()
            async with connection.consume(Queue(name)) as messages, connection.consume(Queue(f"{name}.x")) as others:
                await producer.publish("x", f"{name}.x")
                kept = [await others.next(20)]
                for number in range(2):
                    await producer.publish(number, name)
                    kept.append(await messages.next(20))
                    if number == 0:
                        proxy.reset()

                        async def is_back() -> bool:
                            return connection.counters.reconnects == 1

                        await soon(is_back)
                await kept[2].ack(multiple=True)

                async def are_acknowledged() -> bool:
                    return client.hkeys("unacked") == [kept[0].delivery_tag.encode()]

                await soon(are_acknowledged)
                await kept[0].ack()

    run(program)
    is_settled(client, Queue(name))


def test_what_get_was_fetching_comes_back_at_once(through, proxy, client, name):
    connection = through(socket_timeout=1)
    channel = connection.channel()
    Producer(channel).publish("x", routing_key=f"{name}.other")
    channel.basic_get(f"{name}.other").ack()  # the server has the script, and has said that the user may
    Producer(channel).publish("x", routing_key=name)
    proxy.cut = Cut(Direction.REPLY, 0, b"EVALSHA")
    with pytest.raises(LOST):
        channel.basic_get(name)
    proxy.cut = None
    wait_until(lambda: client.hlen("unacked") == 1, 20, "it was not taken")
    message = connection.default_channel.basic_get(name)
    assert message is not None
    message.ack()
    is_settled(client, Queue(name))


def test_a_tag_that_comes_twice_is_settled_once(redis_url, client, name):
    async def program() -> None:
        async with aio.connect(redis_url) as connection:
            await connection.declare(Queue(name))
            await connection.producer().publish("x", name)
            async with connection.consume(Queue(name)) as messages:
                message = await messages.next(20)
                assert message is not None
                await message.channel.settle_many([message.delivery_tag] * 2, Outcome.ACK)
                assert not client.hlen("unacked")

    run(program)


def test_what_a_batch_had_gathered_comes_again_at_once_in_its_order(through, proxy, client, name):
    connection, batches = through(), []
    channel = connection.channel()
    Consumer(channel, Queue(name), on_batch=batches.append, batch_size=4, batch_timeout=600).consume()
    Producer(channel).publish_many([1, 2, 3], routing_key=name)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.3)
    lose(connection, proxy)
    assert client.llen(name) == 3
    Producer(channel).publish(4, routing_key=name)
    drain(connection, lambda: batches, 20)
    assert batches[0].payloads == [1, 2, 3, 4]
    batches[0].ack()
    is_settled(client, Queue(name))


def test_a_forked_child_settles_nothing(through, proxy, client, name):
    connection, queue, got = through(), Queue(name), []
    held(connection, queue, got)
    Producer(connection).publish("x", routing_key=name)
    drain(connection, lambda: got)
    proxy.reset()
    with pytest.raises(LOST):
        while True:
            connection.drain_events(timeout=0.1)

    def child() -> None:
        with pytest.raises(exceptions.RecoverableConnectionError):
            got[0].ack()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    got[0].ack()
    connection.ensure_connection()
    is_settled(client, queue)


def test_what_is_held_keeps_nothing_else_of_its_channel():
    left = Handover(Keys(Options.of({}), 0))
    state, lease = RedisChannel(1, OrderStrategy(ROUND_ROBIN), True), Lease("tag", "queue", "queue", b"{}")
    delivery = Delivery("", "queue", Properties(), b"")
    lease.delivery = weakref.ref(delivery)
    state.outstanding["tag"] = lease
    left.abandon(left, [state], [], are_noted=True, holds=True)
    gone = weakref.ref(state)
    del state
    gc.collect()
    assert left.held_tags == ["tag"]
    assert gone() is None


def test_an_ack_that_is_left_keeps_nothing_of_its_connection():
    left = Handover(Keys(Options.of({}), 0))
    stream = ReplyQueue(3, print)
    left.abandon(left, [], [(stream.take, b"ack", 2)], are_noted=True, holds=False)  # it goes to what is the stream's
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert next(left.bring_back()) == Exchange([b"ack"], 2)
    assert gone() is None


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        ("LOADING Redis is loading the dataset in memory", exceptions.RecoverableConnectionError),
        ("NOPERM this user has no permissions", exceptions.AccessRefused),  # another's connection may
    ],
)
def test_acks_that_a_server_cannot_take_yet_are_sent_later(refusal, error):
    left = Handover(Keys(Options.of({}), 0))
    left._left.append(Abandoned(settled=[(b"ack", 2)]))
    plan = left.bring_back()
    assert next(plan).commands == [b"ack"]
    with pytest.raises(error):
        plan.send([ReplyError(refusal)] * 2)
    assert next(left.bring_back()).commands == [b"ack"]
