"""Nothing of a connection, pool or event loop outlives it, and a second one in the process works as the first did."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from kombulite import Connection, Consumer, Producer, Queue, aio, pools
from kombulite.asynchronous import Hub, get_event_loop, set_event_loop
from tests.contract.conftest import Broker, Inbox, drain, soon


class Holdings(NamedTuple):
    """What a process holds."""

    descriptors: int
    threads: Counter[str]  # by their names
    at_exit: int  # what is called when it ends
    global_objects: Counter[str]  # in the tables of our modules, by their names

    def is_within(self, before: Holdings) -> bool:
        return all(mine <= its for mine, its in zip(self, before, strict=True))


def held() -> Holdings:
    gc.collect()
    modules = [each for each in list(sys.modules.items()) if each[0].partition(".")[0] == "kombulite"]
    # Not the interpreter's own tables: a warning of what another test left adds to __warningregistry__.
    tables = {
        f"{module}.{name}": value
        for module, found in modules
        for name, value in list(vars(found).items())
        if not name.startswith("__")
    }
    return Holdings(
        len(os.listdir("/proc/self/fd")),
        Counter(thread.name for thread in threading.enumerate()),
        atexit._ncallbacks() + len(weakref.finalize._registry),  # type: ignore[attr-defined]
        Counter({name: len(table) for name, table in tables.items() if isinstance(table, (dict, list, set))}),
    )


def exchange_messages(broker: Broker, connection: Connection) -> None:
    channel = connection.channel()
    queue = Queue(broker.name("second"))(channel)
    queue.declare()
    inbox = Inbox(channel, [queue])
    Producer(connection).publish("x", routing_key=queue.name)
    assert inbox.wait(connection, 1) == ["x"]


@pytest.fixture
def evented(broker: Broker) -> None:
    if not broker.connect().is_evented:
        pytest.skip("an event loop has nothing to wait on")


EVENTED = pytest.mark.usefixtures("evented")
NEEDS_PROC = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="/proc tells what a process holds")


@pytest.fixture(autouse=True)
def no_loop() -> Any:
    yield
    set_event_loop(None)


async def exchange_messages_on_a_loop(broker: Broker) -> None:
    queue = Queue(broker.name("loop"))
    options = dict(broker.transport_options)
    async with aio.connect(broker.url, transport_options=options, transport=broker.transport) as connection:
        for _ in range(2):
            async with connection.consume(queue) as messages:
                await connection.producer("").publish("x", queue.name)
                async with (await messages.next(timeout=20)).process():
                    pass
            await connection.close()


def check_second_use(use: Callable[[], object]) -> None:
    """Use something several times: only what the first one makes for all may stay."""
    others = held().threads  # the test runner's, and what earlier tests have left
    use()
    before = soon(held, lambda found: found.threads <= others)
    for _ in range(3):
        use()
    # Fewer are no fault: what tests before this one had left is closed at any time. A thread lets go as it ends.
    now = soon(held, lambda found: found.is_within(before))
    assert now.descriptors <= before.descriptors
    assert now.threads <= before.threads
    assert now.at_exit <= before.at_exit
    assert not now.global_objects - before.global_objects


@NEEDS_PROC
def test_a_closed_connection_holds_nothing(broker: Broker) -> None:
    def use() -> None:
        connection = broker.connect(heartbeat=10)
        for _ in range(2):
            exchange_messages(broker, connection)
            connection.release()

    check_second_use(use)


@NEEDS_PROC
def test_a_closed_connection_of_an_event_loop_holds_nothing(broker: Broker) -> None:
    if isinstance(broker.transport, str) and "blocking" in broker.transport:
        pytest.skip("it has a loop of its own")
    check_second_use(lambda: asyncio.run(exchange_messages_on_a_loop(broker)))


def test_an_event_loop_that_is_closed_is_nobodys(broker: Broker) -> None:
    connection = broker.connect()
    connection.ensure_connection()
    for _ in range(2):
        hub = set_event_loop(Hub())
        assert hub is not None
        connection.register_with_event_loop(hub)
        other = Hub()
        other.close()
        assert get_event_loop() is hub  # the other was not the process's
        hub.close()
        assert get_event_loop() is None
        assert not hub.readers
        assert not hub.on_tick


@EVENTED
def test_a_second_event_loop_has_the_events_of_a_connection(broker: Broker) -> None:
    connection = broker.connect()
    queue = Queue(broker.name("loops"))(connection.default_channel)
    queue.declare()
    inbox = Inbox(connection.default_channel, [queue])
    for turn in range(2):
        hub = Hub()
        connection.register_with_event_loop(hub)
        Producer(broker.connect()).publish(turn, routing_key=queue.name)
        while len(inbox.bodies) <= turn:
            hub.run_once()
        hub.close()
    first, second = Hub(), Hub()
    connection.register_with_event_loop(first)
    connection.register_with_event_loop(second)  # without a word to the first
    assert not first.on_tick
    second.close()
    assert inbox.bodies == [0, 1]


@EVENTED
def test_a_connection_that_comes_back_after_its_loop_was_closed(broker: Broker) -> None:
    connection, hub = broker.connect(), Hub()
    connection.register_with_event_loop(hub)
    connection._suspend("lost, as far as it knows")
    connection.ensure_connection()
    assert hub.on_tick
    hub.close()
    connection._suspend("lost again")
    connection.ensure_connection()
    assert not hub.on_tick
    assert not hub.readers


def test_pools_that_were_reset_are_made_anew(broker: Broker) -> None:
    connection = broker.connect()
    queue = Queue(broker.name("pools"))(connection.default_channel)
    queue.declare()
    inbox = Inbox(connection.default_channel, [queue])
    for turn in range(2):
        with pools.producers[connection].acquire(block=True) as producer:
            producer.publish(turn, routing_key=queue.name)
        pool = pools.connections[connection]
        pools.reset()
        with pytest.raises(RuntimeError):
            pool.acquire()
    drain(connection, lambda: len(inbox.bodies) == 2)
    assert inbox.bodies == [0, 1]


def test_consumers_of_a_connection_that_was_closed_start_again_on_the_next(broker: Broker) -> None:
    connection = broker.connect()
    queue = Queue(broker.name("again"))
    consumer = Consumer(connection, [queue], callbacks=[lambda body, message: message.ack()])
    for _ in range(2):
        consumer.consume()
        Producer(connection).publish("x", routing_key=queue.name)
        connection.drain_events(timeout=20)
        connection.release()
        consumer.revive(connection.default_channel)
        consumer.cancel()
