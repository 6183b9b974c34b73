"""Exceptions from signal handlers, at each place where the interpreter may run one."""

from __future__ import annotations

import logging
import signal
import threading
import time
from io import StringIO
from itertools import count

import pytest

from kombulite import Connection, Consumer, Exchange, Queue
from kombulite.brokers.memory.broker import broker_of
from kombulite.utils.locks import NOT_ACQUIRED, Condition, Lock
from kombulite.utils.logs import log
from tests.interrupts import Interrupted, Interrupts, in_another_thread
from tests.servers import Unavailable


@pytest.fixture(scope="module")
def interrupts(tmp_path_factory):
    try:
        return Interrupts(tmp_path_factory.mktemp("interrupts"))
    except Unavailable as error:
        pytest.skip(str(error))


def is_free(lock):
    return in_another_thread(lambda: lock.acquire(timeout=5) and lock.release() is None)


# --- locks --------------------------------------------------------------------------------------------------------


def test_with_leaves_no_lock_taken(interrupts):
    lock = Lock()

    def operation():
        with lock:
            len(())
            with lock:
                len(())
        len(())

    for _ in interrupts.at_each(operation):
        assert lock.depth() == 0
        assert is_free(lock)


def test_an_inner_with_gives_back_what_it_took_and_no_more(interrupts):
    lock = Lock()

    def operation():
        with lock:
            len(())

    with lock:
        for _ in interrupts.at_each(operation):
            assert lock.depth() == 1
    assert is_free(lock)


def test_a_call_leaves_no_lock_taken(interrupts):
    lock = Lock()

    def operation():
        assert lock.call(None, len, ()) == 0
        assert lock.call(0, lambda: lock.call(1.5, len, "ab")) == 2

    for _ in interrupts.at_each(operation):
        assert lock.depth() == 0
        assert is_free(lock)


def test_a_call_says_when_the_lock_was_not_to_be_had():
    lock = Lock()
    with lock:
        assert in_another_thread(lambda: lock.call(0, len, ())) is NOT_ACQUIRED
        assert in_another_thread(lambda: lock.call(0.01, len, ())) is NOT_ACQUIRED
        assert in_another_thread(lambda: lock.acquire(False)) is False
        assert in_another_thread(lambda: lock.acquire(timeout=0.01)) is False


def test_an_exception_of_the_call_comes_out_and_the_lock_is_free():
    lock = Lock()
    with pytest.raises(ZeroDivisionError):
        lock.call(None, divmod, 1, 0)
    assert is_free(lock)


def test_a_lock_is_released_by_its_owner_only():
    lock = Lock()
    with pytest.raises(RuntimeError, match="un-acquired"):
        lock.release()
    with lock, pytest.raises(AssertionError, match="failed"):
        in_another_thread(_quietly(lock.release))
    assert is_free(lock)


def _quietly(function):
    def call():
        threading.excepthook, hook = lambda _: None, threading.excepthook
        try:
            return function()
        finally:
            threading.Timer(0.2, setattr, (threading, "excepthook", hook)).start()

    return call


def test_an_interrupted_wait_leaves_nothing_behind(interrupts):
    lock = Lock()
    condition = Condition(lock)

    def operation():
        with lock:
            condition.wait(0)

    for _ in interrupts.at_each(operation):
        assert lock.depth() == 0
        assert is_free(lock)
        # A notification is for those that wait now, not for a place that an interrupted wait has left.
        is_waiting = threading.Event()

        def wait(is_waiting=is_waiting):
            with lock:
                is_waiting.set()
                return condition.wait(5)

        notified = []
        thread = threading.Thread(target=lambda wait=wait, notified=notified: notified.append(wait()))
        thread.start()
        is_waiting.wait(5)
        with lock:
            condition.notify()
        thread.join(20)
        assert notified == [True]


def test_a_condition_wants_its_lock():
    condition = Condition(Lock())
    for method in (condition.wait, condition.notify, condition.notify_all):
        with pytest.raises(RuntimeError, match="un-acquired"):
            method()


def test_notify_all_wakes_all():
    lock = Lock()
    condition = Condition(lock)
    ready, notified = threading.Semaphore(0), []

    def wait():
        with lock, lock:
            ready.release()
            notified.append((condition.wait(20), lock.depth()))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert ready.acquire(timeout=20)
    with lock:
        condition.notify_all()
    for thread in threads:
        thread.join(20)
    assert notified == [(True, 2)] * 3


# --- the memory broker --------------------------------------------------------------------------------------------


@pytest.fixture
def connection(request):
    with Connection(f"memory://localhost/{request.node.name}") as connection:
        yield connection


def ready_producer(connection):
    """A producer that has its channel: what the first publish does besides would end some runs early."""
    producer = connection.Producer()
    producer.publish("nothing", routing_key="warm-up")
    return producer


def messages_in(connection, name):
    """All messages of a queue, taken by another thread over another connection."""

    def take():
        found = []
        with Connection(connection.as_uri()) as other, other.channel() as channel:
            while (message := channel.basic_get(name, no_ack=True)) is not None:
                found.append(message.payload)
        return found

    return in_another_thread(take)


def lock_is_free(connection):
    return is_free(broker_of(connection.virtual_host).lock)


@pytest.mark.parametrize("queues", [1, 2])
def test_an_interrupted_publish_is_done_once_or_not_at_all(interrupts, connection, queues):
    exchange = Exchange("news", "fanout")
    names = [f"news-{number}" for number in range(queues)]
    for name in names:
        Queue(name, exchange).bind(connection.default_channel).declare()
    producer = ready_producer(connection)
    outcomes = set()
    for is_interrupted in interrupts.at_each(lambda: producer.publish("hello", exchange=exchange.name)):
        assert lock_is_free(connection)
        for name in names:
            found = messages_in(connection, name)
            assert found in (["hello"], []) if is_interrupted else found == ["hello"]
            outcomes.add((is_interrupted, len(found)))
    assert {(True, 0), (True, 1), (False, 1)} <= outcomes


def test_a_consumer_that_sleeps_is_woken_by_an_interrupted_publish(interrupts, connection):
    queue = Queue("orders").bind(connection.default_channel)
    queue.declare()
    producer = ready_producer(connection)
    broker = broker_of(connection.virtual_host)
    received, stop = [], threading.Event()

    def consume():
        with Connection(connection.as_uri()) as other, Consumer(other, [queue], callbacks=[take], no_ack=True):
            while not stop.is_set():
                other.drain_events()  # for ever: who is not woken is found out

    def take(body, message):
        received.append(body)
        arrived.set()

    arrived = threading.Event()
    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    numbers = count()
    for _ in interrupts.at_each(lambda: producer.publish(next(numbers), routing_key="orders")):
        with broker.lock:
            waiting = len(broker.queues["orders"].messages)
        if waiting:
            assert arrived.wait(20), "the consumer sleeps on, and there is a message for it"
        arrived.clear()
    stop.set()
    producer.publish("the last one", routing_key="orders")
    thread.join(20)
    assert not thread.is_alive()
    assert len(received) == len(set(received)), "delivered twice"


@pytest.mark.parametrize("outcome", ["ack", "reject", "requeue"])
def test_an_interrupted_settlement_is_done_or_can_be_seen_not_to_be(interrupts, connection, outcome):
    queue = Queue("orders").bind(connection.default_channel)
    queue.declare()
    producer = ready_producer(connection)

    channels = [connection.channel()]
    producer.publish("hello", routing_key="orders")

    def operation():
        message = channels[0].basic_get("orders")
        getattr(message, outcome)()

    for is_interrupted in interrupts.at_each(operation):
        assert lock_is_free(connection)
        while channels:
            channels.pop().close()
        found = messages_in(connection, "orders")
        if not is_interrupted:
            assert found == (["hello"] if outcome == "requeue" else [])
        assert len(found) <= 1
        channels.append(connection.channel())
        producer.publish("hello", routing_key="orders")


def test_an_interrupted_consumer_gives_back_what_it_had_when_it_closes(interrupts, connection):
    queue = Queue("orders").bind(connection.default_channel)
    queue.declare()
    producer = ready_producer(connection)
    seen = []
    other = Connection(connection.as_uri())
    channels = []

    def begin(number):
        channels.append(other.channel())
        take = [lambda body, message: (seen.append(body), message.ack())]
        Consumer(channels[0], [queue], callbacks=take).consume()
        producer.publish(number, routing_key="orders")

    begin(0)
    for number, is_interrupted in enumerate(interrupts.at_each(lambda: other.drain_events(timeout=1))):
        assert lock_is_free(connection)
        in_another_thread(channels.pop().close)
        found = messages_in(connection, "orders")
        # An acked message is gone, any other is back; the interrupt may have come behind the ack.
        assert found in ([], [number])
        if number not in seen:
            assert found == [number], "lost"
        if not is_interrupted:
            assert (seen[-1], found) == (number, [])
        begin(number + 1)
    other.close()


def test_logging_goes_on_after_an_interrupt(interrupts):
    stream = StringIO()
    handler, logger = logging.StreamHandler(stream), logging.getLogger("tests.interrupts")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        for is_interrupted in interrupts.at_each(lambda: log("tests.interrupts", "WARNING", "%s", "here")):
            in_another_thread(lambda: logging.getLogger("tests.another").warning("through") or True)
            in_another_thread(lambda: logger.warning("through") or True)
            assert is_interrupted or "here" in stream.getvalue()
    finally:
        logger.removeHandler(handler)


def test_a_handler_that_raises_ends_the_wait_for_a_lock(interrupts):
    lock = Lock()
    is_held, give = threading.Event(), threading.Event()

    def hold():
        with lock:
            is_held.set()
            give.wait(20)

    def interrupt(*_):
        raise Interrupted

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(20)
    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        started = time.monotonic()
        with pytest.raises(Interrupted), lock:
            pass
        assert time.monotonic() - started < 15
    finally:
        signal.signal(signal.SIGALRM, handler)
        give.set()
        thread.join(20)
    assert is_free(lock)
