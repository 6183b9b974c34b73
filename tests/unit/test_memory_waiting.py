"""Connections to the embedded broker that wait: what has to wake them, in a thread and on an event loop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from uuid import uuid4

import pytest

from kombulite import exceptions
from kombulite._core import Delivery, Properties
from kombulite.brokers.base import Outcome, QueueSpec, Settings
from kombulite.brokers.memory import Transport, broker
from kombulite.brokers.memory.aio import AsyncTransport

TO_LATE = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "late"}
SOON = 50  # milliseconds


def until(condition):
    deadline = threading.Event()
    for _ in range(2000):
        if condition():
            return
        deadline.wait(0.01)
    raise AssertionError("it does not come about")


@contextmanager
def thread_that_waits(settings, prepare):
    transport, events = Transport(settings), SimpleQueue()
    transport.connect()
    prepare(transport)

    def wait():
        with suppress(exceptions.RecoverableConnectionError):  # closed below
            for event in transport.receive(60):
                events.put(event)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        until(lambda: transport.waiting)
        yield transport, events
    finally:
        transport.close()
        thread.join(20)


@contextmanager
def loop_that_waits(settings, prepare):
    connections, events = [], SimpleQueue()

    async def main():
        transport = AsyncTransport(settings, events.put, events.put)
        await transport.connect()
        prepare(transport.sync)
        stop = asyncio.Event()
        connections.append((transport.sync, asyncio.get_running_loop(), stop))
        await stop.wait()
        await transport.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    until(lambda: connections)
    transport, loop, stop = connections[0]
    try:
        until(lambda: transport.waiting)
        yield transport, events
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)


@pytest.fixture(params=[thread_that_waits, loop_that_waits], ids=["thread", "loop"])
def waiting(request):
    return request.param


@pytest.fixture
def settings():
    virtual_host = f"waiting-{uuid4().hex}"
    yield Settings(virtual_host=virtual_host)
    broker.drop_broker(virtual_host)


@pytest.fixture
def other(settings):
    """Another connection to the broker, with channel 1."""
    transport = Transport(settings)
    transport.connect()
    transport.open_channel()
    yield transport
    transport.close()


def publish(transport, queue, milliseconds=None):
    expiration = None if milliseconds is None else str(milliseconds)
    transport.publish(1, Delivery("", queue, Properties(expiration=expiration), b"x"))


# --- credit


def consume_with_a_prefetch_of_one(transport):
    transport.open_channel()
    for name in ("q", "fetched"):
        transport.declare_queue(1, QueueSpec(name), False)
    transport.qos(1, 0, 1, False)
    transport.consume(1, "q", "c", False, False, None)


@pytest.mark.parametrize(
    "settle",
    [
        lambda transport, tag: transport.fast_ack(1).acknowledge(tag) or transport.settle(1, tag, Outcome.ACK),
        lambda transport, tag: transport.settle(1, tag, Outcome.ACK, multiple=True),
        lambda transport, tag: transport.settle(1, tag, Outcome.REQUEUE),
        lambda transport, tag: transport.settle_many(1, [tag], Outcome.ACK),
    ],
    ids=["ack", "multiple", "requeue", "many"],
)
def test_credit_of_a_message_that_was_fetched_wakes_an_idle_consumer(waiting, settings, other, settle):
    with waiting(settings, consume_with_a_prefetch_of_one) as (transport, events):
        publish(other, "fetched")
        fetched = transport.get(1, "fetched", no_ack=False)
        publish(other, "q")  # finds the consumer without credit
        assert events.empty()
        settle(transport, fetched.delivery_tag)
        assert events.get(timeout=20).routing_key == "q"


def test_message_that_a_consumer_has_no_credit_for_goes_to_another(waiting, settings, other):
    other.declare_queue(1, QueueSpec("q"), False)
    with waiting(settings, consume_with_a_prefetch_of_one) as (transport, events):
        publish(other, "fetched")
        transport.get(1, "fetched", no_ack=False)
        second = transport.open_channel()
        transport.consume(second, "q", "c", False, False, None)
        publish(other, "q")
        assert events.get(timeout=20).channel == second


# --- time


def consume_dead_letters(transport):
    transport.open_channel()
    transport.declare_queue(1, QueueSpec("late"), False)
    transport.declare_queue(1, QueueSpec("waiting", arguments=TO_LATE), False)
    transport.declare_queue(1, QueueSpec("unused", arguments={**TO_LATE, "x-expires": 3_600_000}), False)
    transport.consume(1, "late", "c", True, False, None)


def test_message_that_expires_before_all_others_wakes_in_time(waiting, settings, other):
    with waiting(settings, consume_dead_letters) as (_, events):
        for queue, milliseconds in (("unused", 1_800_000), ("waiting", SOON)):
            publish(other, queue, milliseconds)
        assert events.get(timeout=20).routing_key == "late"


def test_message_in_a_queue_that_itself_expires_wakes_in_time(waiting, settings, other):
    with waiting(settings, consume_dead_letters) as (_, events):
        publish(other, "unused", SOON)
        assert events.get(timeout=20).routing_key == "late"


@pytest.mark.parametrize("take", ["get", "consume"])
def test_message_that_comes_to_the_head_of_its_queue_wakes_in_time(waiting, settings, other, take):
    with waiting(settings, consume_dead_letters) as (_, events):
        publish(other, "waiting")  # it does not expire, and keeps what is behind it
        publish(other, "waiting", SOON)
        if take == "get":
            assert other.get(1, "waiting", no_ack=True) is not None
        else:
            other.qos(1, 0, 1, False)
            other.consume(1, "waiting", "c", False, False, None)
            assert other.receive(20)
        assert events.get(timeout=20).routing_key == "late"


def test_message_that_is_put_back_wakes_in_time(waiting, settings, other):
    other.declare_queue(1, QueueSpec("waiting", arguments=TO_LATE), False)
    other.declare_queue(1, QueueSpec("late"), False)
    taken = None
    while taken is None:  # not if it has expired already
        publish(other, "waiting", 500)
        taken = other.get(1, "waiting", no_ack=False)
    other.purge(1, "late")
    with waiting(settings, consume_dead_letters) as (_, events):
        other.settle(1, taken.delivery_tag, Outcome.REQUEUE)
        assert events.get(timeout=20).routing_key == "late"


def test_clock_that_is_moved_brings_the_next_expiry_closer(waiting, settings, other):
    with waiting(settings, consume_dead_letters) as (_, events):
        publish(other, "waiting", 3_600_000 + SOON)
        broker.advance(3600)
        assert events.get(timeout=20).routing_key == "late"
