"""The embedded broker under threads, forks and interruptions: nothing is lost, nobody sleeps on."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter

import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue, exceptions
from kombulite._core import Delivery, Properties
from kombulite.brokers.base import Cancelled, Outcome, QueueSpec, Settings
from kombulite.brokers.memory import Transport
from kombulite.brokers.memory.broker import broker_of


@pytest.fixture
def queue_name():
    name = f"memory-{os.urandom(6).hex()}"
    yield name
    with Connection("memory://") as connection:
        connection.channel().queue_delete(name)


def in_threads(*functions):
    """Run functions in threads; the first error in any of them is raised here."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def test_many_producers_and_consumers_lose_and_duplicate_nothing(queue_name):
    per_producer, producers, consumers = 2000, 4, 4
    total = per_producer * producers
    received = Counter()
    lock = threading.Lock()

    def produce(number):
        def run():
            with Connection("memory://") as connection:
                producer = Producer(connection)
                for i in range(per_producer):
                    producer.publish(number * per_producer + i, routing_key=queue_name)

        return run

    def consume():
        def callback(body, message):
            with lock:
                received[body] += 1
            message.ack()

        with Connection("memory://") as connection:
            with Consumer(connection, Queue(queue_name), callbacks=[callback], prefetch_count=10):
                while sum(received.values()) < total:
                    try:
                        connection.drain_events(timeout=0.5)
                    except TimeoutError:
                        pass

    in_threads(*(produce(number) for number in range(producers)), *([consume] * consumers))
    assert received == Counter(range(total))


def test_one_connection_is_shared_by_threads(queue_name):
    received = []
    with Connection("memory://") as connection:
        Queue(queue_name)(connection).declare()

        def work(number):
            def run():
                channel = connection.channel()
                producer = Producer(channel)
                for i in range(300):
                    producer.publish((number, i), routing_key=queue_name)
                for _ in range(300):
                    message = Queue(queue_name)(channel).get()
                    received.append(tuple(message.payload))
                    message.ack()
                channel.close()

            return run

        in_threads(*(work(number) for number in range(8)))
    assert Counter(received) == Counter((number, i) for number in range(8) for i in range(300))


def test_two_threads_drain_one_connection(queue_name):
    received = []
    with Connection("memory://") as connection:
        consumer = Consumer(connection, Queue(queue_name), callbacks=[lambda body, message: received.append(body)])
        consumer.consume(no_ack=True)

        def drain():
            while len(received) < 500:
                try:
                    connection.drain_events(timeout=0.2)
                except TimeoutError:
                    pass

        def produce():
            with Connection("memory://") as other:
                producer = Producer(other)
                for i in range(500):
                    producer.publish(i, routing_key=queue_name)

        in_threads(drain, drain, produce)
    assert sorted(received) == list(range(500))


@pytest.mark.parametrize("sleepers", [1, 20])
def test_each_message_wakes_a_sleeper(queue_name, sleepers):
    """Nobody polls: each of many waiting consumers takes one message and is busy from then on."""
    got = []
    ready = threading.Semaphore(0)

    def take(body, message):
        got.append(body)
        message.ack()

    def wait_for_one():
        with Connection("memory://") as connection:
            with Consumer(connection, Queue(queue_name), callbacks=[take]):
                ready.release()
                connection.drain_events(timeout=30)

    def feed():
        for _ in range(sleepers):
            ready.acquire(timeout=30)
        with Connection("memory://") as connection:
            producer = Producer(connection)
            for i in range(sleepers):
                producer.publish(i, routing_key=queue_name)

    start = time.monotonic()
    in_threads(*([wait_for_one] * sleepers), feed)
    assert sorted(got) == list(range(sleepers))
    assert time.monotonic() - start < 25  # they did not sleep until their time was up


def test_idle_consumers_use_no_processor_time(queue_name):
    def idle():
        with Connection("memory://") as connection:
            with Consumer(connection, [Queue(f"{queue_name}-{i}", auto_delete=True) for i in range(20)]):
                used = time.thread_time()
                with pytest.raises(socket.timeout):
                    connection.drain_events(timeout=1)
                assert time.thread_time() - used < 0.1

    in_threads(idle)


def test_closing_from_another_thread_ends_a_wait(queue_name):
    connection = Connection("memory://")
    Consumer(connection, Queue(queue_name), callbacks=[print]).consume()

    def wait():
        with pytest.raises(exceptions.RecoverableConnectionError):
            connection.drain_events(timeout=30)

    timer = threading.Timer(0.2, connection.transport.close)
    timer.start()
    in_threads(wait)
    timer.join()


def test_interrupted_consumer_leaves_the_message_to_others(queue_name):
    """A wait that a signal ends just as it is woken does not take the message along."""

    def interrupt(signum, frame):
        raise InterruptedError

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Connection("memory://") as impatient, Connection("memory://") as patient:
            first = Consumer(impatient, Queue(queue_name), callbacks=[print])
            first.consume()
            got = []
            Consumer(patient, Queue(queue_name), callbacks=[lambda body, message: got.append(body)]).consume()

            def wait():
                patient.drain_events(timeout=30)

            thread = threading.Thread(target=wait)
            thread.start()
            with pytest.raises(InterruptedError):
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                impatient.drain_events(timeout=30)
            Producer(impatient).publish("for you", routing_key=queue_name)
            thread.join(20)
            assert not thread.is_alive()
            assert got == ["for you"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


FORKING = """
import os, signal, threading
from kombulite import Connection, Producer, Queue

stop, started = threading.Event(), threading.Event()

def publish_all_the_time():
    with Connection("memory://") as connection:
        producer = Producer(connection)
        while not stop.is_set():
            producer.publish("noise", routing_key="noise")
            started.set()

thread = threading.Thread(target=publish_all_the_time)
thread.start()
started.wait(10)  # past the import of the transport: Python leaves import locks held in a child
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)  # a child that finds a lock held for ever ends by it
        with Connection("memory://") as connection:
            Producer(connection).publish("child", routing_key="child")
            os._exit(0 if Queue("child")(connection).get().payload == "child" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set()
thread.join()
with Connection("memory://") as connection:
    assert Queue("child").bind(connection).channel.queue_delete("child") == 0, "the parent has a child's message"
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_has_a_broker_that_works():
    """In a process of its own: what traces this one (coverage) has locks that a fork may break."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_declaring_is_optional_for_the_default_exchange(queue_name):
    with Connection("memory://") as connection:
        Producer(connection).publish("kept", routing_key=queue_name)
        assert Queue(queue_name)(connection).get().payload == "kept"


def test_what_finds_no_queue_is_counted(queue_name):
    with Connection("memory://") as connection:
        exchange = Exchange(queue_name)
        for _ in range(3):
            Producer(connection, exchange).publish(1, routing_key="nobody")
        assert connection.transport.unroutable == 3
        exchange(connection).delete()


def test_events_of_the_transport_itself(queue_name):
    transport = Transport(Settings())
    transport.connect()
    channel = transport.open_channel()
    transport.declare_queue(channel, QueueSpec(queue_name), passive=False)
    tag = transport.consume(channel, queue_name, "", no_ack=False, exclusive=False, arguments=None)
    properties = Properties(content_type="text/plain")
    transport.publish(channel, Delivery("", queue_name, properties, b"one"))
    with pytest.raises(exceptions.MessageReturned) as caught:
        transport.publish(channel, Delivery("", "no-such-queue", properties, b"two"), mandatory=True)
    assert caught.value.reply_code == 312
    delivery = transport.receive(0)[0]
    assert (delivery.channel, delivery.consumer_tag, delivery.delivery_tag, delivery.body) == (channel, tag, 1, b"one")
    transport.settle(channel, delivery.delivery_tag, Outcome.ACK)
    transport.delete_queue(channel, queue_name, if_unused=False, if_empty=False)
    assert transport.receive(0) == (Cancelled(channel, tag),)
    assert transport.receive(0) == ()
    transport.close()
    transport.close()
    with pytest.raises(exceptions.RecoverableConnectionError):
        transport.publish(channel, Delivery("", queue_name, properties, b""))
    with pytest.raises(exceptions.RecoverableConnectionError):
        transport.open_channel()


def test_many_outstanding_messages_go_back_quickly_and_in_order(queue_name):
    with Connection("memory://") as keeper:
        Producer(keeper).publish_many(range(20000), routing_key=queue_name)
        with Connection("memory://") as other:
            queue = Queue(queue_name)(other)
            for _ in range(20000):
                queue.get()
        queue = Queue(queue_name)(keeper)
        assert [queue.get(no_ack=True).payload for _ in range(20000)] == list(range(20000))


def test_dropped_connections_leave_nothing_behind(queue_name):
    """Neither channels nor what they had outstanding keep a connection's transport alive."""
    with Connection("memory://") as keeper:
        Producer(keeper).publish_many(range(10), routing_key=queue_name)
        transports = []
        for close in (True, False):
            connection = Connection("memory://")
            transports.append(weakref.ref(connection.connect()))
            Consumer(connection, Queue(queue_name), callbacks=[print]).consume()
            Queue(queue_name)(connection).get()
            if close:
                connection.release()
            del connection
        gc.collect()
        assert [transport() for transport in transports] == [None, None]
        assert Queue(queue_name)(keeper).queue_declare(passive=True) == (queue_name, 10, 0)


def test_ending_the_last_consumer_ends_a_wait_without_timeout(queue_name):
    with Connection("memory://") as connection:
        consumer = Consumer(connection, Queue(queue_name), callbacks=[print])
        consumer.consume()

        def wait():
            with pytest.raises(exceptions.OperationalError):
                connection.drain_events()

        timer = threading.Timer(0.2, consumer.cancel)
        timer.start()
        in_threads(wait)
        timer.join()


def test_endless_timeouts_are_no_error(queue_name):
    with Connection("memory://") as connection:
        got = []
        consumer = Consumer(connection, Queue(queue_name), callbacks=[lambda body, message: got.append(body)])
        consumer.consume(no_ack=True)
        timer = threading.Timer(0.1, lambda: Producer(connection).publish(1, routing_key=queue_name))
        timer.start()
        connection.drain_events(timeout=1e12)
        timer.join()
        assert got == [1]


def test_message_for_one_thread_wakes_it_while_another_is_busy(queue_name):
    """A consumer that the busy thread found without work is there for the one that sleeps."""
    busy, got = threading.Event(), []

    def work(body, message):
        got.append(body)
        if body == "long":
            assert busy.wait(20)

    with Connection("memory://") as connection, Connection("memory://") as publisher:
        first, second = Queue(f"{queue_name}-1", auto_delete=True), Queue(f"{queue_name}-2", auto_delete=True)
        Consumer(connection, [first, second], callbacks=[work]).consume(no_ack=True)
        producer = Producer(publisher)
        producer.publish("long", routing_key=second.name)
        threads = [threading.Thread(target=connection.drain_events, kwargs={"timeout": 20}) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        producer.publish("short", routing_key=first.name)
        deadline = time.monotonic() + 15
        while "short" not in got and time.monotonic() < deadline:
            time.sleep(0.01)
        assert got == ["long", "short"]
        busy.set()
        for thread in threads:
            thread.join(20)


def test_publish_waits_for_a_thread_that_changes_the_broker(queue_name):
    with Connection("memory://") as connection:
        producer = Producer(connection, routing_key=queue_name)
        producer.publish("first", declare=[Queue(queue_name)])
        producer.publish("second")  # its queue is known: from here on the lock is not taken where it is free
        published = threading.Event()
        broker = broker_of("/")
        with broker.lock:
            thread = threading.Thread(target=lambda: (producer.publish("third"), published.set()))
            thread.start()
            assert not published.wait(0.1)
            assert len(broker.queues[queue_name].messages) == 2
        assert published.wait(20)
        thread.join(20)
        assert len(broker.queues[queue_name].messages) == 3


def test_priority_of_a_type_of_its_own_is_compared_under_the_lock(queue_name):
    depths = []

    class Priority(int):
        def __le__(self, other):
            depths.append(broker_of("/").lock.depth())
            return int(self) <= other

    with Connection("memory://") as connection:
        queue = Queue(queue_name, max_priority=5)(connection)
        queue.declare()
        producer = Producer(connection, routing_key=queue_name)
        producer.publish("low")
        producer.publish("high", priority=Priority(3))
        assert set(depths) == {1}
        assert [queue.get(no_ack=True).payload for _ in range(2)] == ["high", "low"]


def test_publish_to_a_queue_that_was_known_and_is_gone(queue_name):
    with Connection("memory://") as connection:
        channel = connection.channel()
        queue = Queue(queue_name, Exchange(queue_name, "topic"), "k")(channel)
        queue.declare()
        producer = Producer(channel, queue.exchange, "k")
        for _ in range(2):
            producer.publish("kept")
        queue.delete()
        producer.publish("nowhere")
        queue.declare()
        producer.publish("here")
        assert queue.get().payload == "here"
        assert queue.get() is None
        channel.exchange_delete(queue_name)
        with pytest.raises(exceptions.NotFound):
            Producer(channel, queue_name, "k", auto_declare=False).publish("nowhere")


def test_closed_connection_takes_no_publish(queue_name):
    connection = Connection("memory://")
    channel = connection.channel()
    producer = Producer(channel, routing_key=queue_name)
    producer.publish("first")
    connection.release()
    with pytest.raises(exceptions.RecoverableConnectionError):
        producer.publish("second")
    with Connection("memory://") as other:
        assert other.channel().queue_declare(queue_name, passive=True).message_count == 1


def test_interrupted_publish_does_not_lock_other_threads_out(request):
    class Interrupted(Exception):
        pass

    def interrupt(number, frame):
        if frame.f_code is Producer.publish.__code__:
            raise Interrupted

    connection = Connection("memory://interrupted")
    producer = Producer(connection, routing_key="q", serializer="json")
    producer.publish("first", declare=[Queue("q")])
    before = signal.signal(signal.SIGALRM, interrupt)
    request.addfinalizer(lambda: signal.signal(signal.SIGALRM, before))
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    try:
        count = 0
        while count < 100:
            try:
                producer.publish("more")
            except Interrupted:
                count += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    done = threading.Event()
    threading.Thread(target=lambda: (producer.publish("other"), done.set()), daemon=True).start()
    assert done.wait(10)
