"""Counters, hooks and what is built on them, where it takes no broker."""

from __future__ import annotations

import codecs
import gc
import os
import pickle
import sys
from weakref import WeakSet

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kombulite import Connection, Consumer, Queue, exceptions, uuid
from kombulite import connection as connections
from kombulite._client.counters import Counters
from kombulite._core import CounterBlock, Delivery, Properties
from kombulite.contrib.prometheus import CountersCollector, TimingHook
from kombulite.hooks import Hook


@pytest.fixture
def connection():
    with Connection(f"memory://observed/{uuid()}") as connection:
        yield connection


@pytest.fixture
def queue(connection):
    queue = Queue("q")(connection.default_channel)
    queue.declare()
    return queue


# --- counters


def test_text_counts_though_its_codec_raises_what_it_likes():
    def search(name):
        def fail(*arguments):
            raise RuntimeError("a codec of its own")

        return codecs.CodecInfo(fail, fail, name=name) if name == "kombulite_raising" else None

    codecs.register(search)
    try:
        tally = CounterBlock()
        tally.count_consumed(Delivery("", "", Properties(content_encoding="kombulite_raising"), "grüße"))
    finally:
        codecs.unregister(search)
    assert Counters(*tally.values()).bytes_received == 7


@pytest.mark.parametrize(
    ("body", "encoding", "size"),
    [
        (b"12345", "binary", 5),
        ("12345", "utf-8", 5),
        ("grüße", "utf-8", 7),
        ("grüße", None, 7),
        ("grüße", "latin-1", 5),
        ("grüße", "utf-16-le", 10),
        ("grüße", "no such charset", 7),
        ("grüße", "ascii", 7),
        ("grüße", "no\0charset", 7),
        ("grüße", "rot13", 7),
        ("grüße", "punycode", 7),  # takes more than linear time
        ("grüße", "IDNA", 7),
        ("\ud800", "utf-8", 3),
        (bytearray(b"123"), None, 3),
    ],
)
def test_text_counts_as_the_bytes_that_it_travelled_as(body, encoding, size):
    tally = CounterBlock()
    delivery = Delivery("", "", Properties(content_encoding=encoding), body)
    tally.count_published(delivery, False)
    tally.count_consumed(delivery)
    tally.count_many([delivery, delivery, delivery], True, {1})
    found = Counters(*tally.values())
    assert (found.published, found.confirmed, found.consumed) == (3, 2, 1)
    assert (found.bytes_sent, found.bytes_received) == (3 * size, size)


def test_each_number_has_its_name():
    tally = CounterBlock()
    tally.count_published(Delivery("", "", Properties(), b"four"), False)
    assert Counters(*tally.values()) == Counters(1, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0)
    tally.count_published(Delivery("", "", Properties(), b"four"), True)
    assert Counters(*tally.values()) == Counters(2, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0)
    for name, count in [
        ("returned", tally.count_returned),
        ("acked", tally.count_acked),
        ("rejected", tally.count_rejected),
        ("requeued", tally.count_requeued),
        ("reconnects", tally.count_reconnect),
    ]:
        tally.clear()
        count()
        assert Counters(*tally.values()) == Counters(*[0] * 11)._replace(**{name: 1})


def test_counters_go_on_when_the_connection_is_opened_again(connection, queue):
    connection.Producer().publish({}, routing_key="q")
    connection.release()
    connection.Producer().publish({}, routing_key="q")
    assert connection.counters.published == 2
    assert connection.counters.reconnects == 0  # nothing was lost


def test_a_connection_counts_for_itself(connection, queue):
    connection.Producer().publish({}, routing_key="q")
    assert connection.clone().counters == Counters(*[0] * 11)
    assert pickle.loads(pickle.dumps(connection)).counters.published == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_counts_from_zero(connection, queue):
    producer = connection.Producer()
    producer.publish({}, routing_key="q")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            before = connection.counters.published
            producer.publish({}, routing_key="q")
            os.write(write, f"{before} {connection.counters.published}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "0 1"
    os.waitpid(child, 0)
    assert connection.counters.published == 1


# --- hooks


class Recorder(Hook):
    def __init__(self, name="", log=None):
        self.name = name
        self.log = [] if log is None else log

    def installed(self, connection):
        self.log.append((self.name, "installed"))

    def publish(self, outgoing):
        self.log.append((self.name, "publish", dict(outgoing.headers)))
        outgoing.headers[self.name] = 1
        return super().publish(outgoing)

    def consume(self, message, queue):
        self.log.append((self.name, "consume", queue))
        return super().consume(message, queue)


def test_hooks_are_around_each_other_in_their_order(connection, queue):
    log = []
    for name in "ab":
        connection.add_hook(Recorder(name, log))
    connection.Producer().publish({}, routing_key="q")
    assert log[2:] == [("a", "publish", {}), ("b", "publish", {"a": 1})]
    message = queue.get()
    message.ack()
    assert message.headers == {"a": 1, "b": 1}


def test_a_hook_is_installed_once(connection):
    hook = Recorder()
    connection.add_hook(hook)
    connection.add_hook(hook)
    assert hook.log == [("", "installed")]
    connection.remove_hook(Recorder())
    assert list(connection.hooks) == [hook]
    connection.remove_hook(hook)
    assert connection.hooks is None


def test_where_no_hook_is_nothing_stands_in_between(connection):
    channel = connection.default_channel
    before = channel._transport
    assert before is connection.transport
    hook = Recorder()
    connection.add_hook(hook)
    assert channel._transport is not before
    connection.remove_hook(hook)
    assert channel._transport is before


def test_hook_is_installed_while_another_thread_makes_connections():
    made = []

    def trace(frame, event, argument):
        if event == "line" and frame.f_code is WeakSet.__iter__.__code__ and len(made) < 3:
            made.append(None)  # making one may look at them too
            made[-1] = Connection(f"memory://observed/{uuid()}")
        return trace

    hook, existing = Hook(), Connection(f"memory://observed/{uuid()}")
    sys.settrace(trace)
    try:
        connections.add_hook(hook)
    finally:
        sys.settrace(None)
        connections.remove_hook(hook)
    assert made
    assert existing.hooks is None


def test_a_hook_of_the_process_is_on_all_connections(connection, queue):
    hook = Recorder("all")
    connections.add_hook(hook)
    try:
        late = connection.clone()
        for each in (connection, late):
            each.Producer().publish({}, routing_key="q")
        assert [what for _, what, *_ in hook.log if what == "publish"] == ["publish"] * 2
        late.release()
    finally:
        connections.remove_hook(hook)
    assert connection.hooks is None
    assert late.hooks is None
    assert connection.clone().hooks is None


def test_clones_and_pools_have_the_hooks(connection, queue):
    hook = Recorder()
    connection.add_hook(hook)
    with connection.Pool(1).acquire(block=True) as other:
        other.Producer().publish({}, routing_key="q")
    assert ("", "publish", {}) in hook.log


def test_consumers_that_are_there_already_get_the_hook_and_lose_it(connection, queue):
    hook, got = Recorder(), []
    with Consumer(connection, [queue], on_message=got.append, no_ack=True):
        producer = connection.Producer(routing_key="q")
        for install in (connection.add_hook, connection.remove_hook):
            install(hook)
            producer.publish({})
            connection.drain_events(timeout=1)
    assert [each for each in hook.log if "consume" in each] == [("", "consume", "q")]
    assert len(got) == 2


def test_simple_queues_have_the_hooks(connection):
    hook = Recorder("a")
    connection.add_hook(hook)
    with connection.SimpleQueue("simple") as simple:
        simple.put({"id": 7})
        message = simple.get(timeout=1)
        message.ack()
    assert [what for _, what, *_ in hook.log] == ["installed", "publish", "consume"]
    assert message.headers == {"a": 1}


def test_what_a_listener_is_told_of_stands_as_published(connection):
    """A hook sees a mandatory message that came back as an error; the program has it in its listener."""
    seen, returned = [], []

    class Errors(Hook):
        def publish(self, outgoing):
            return self

        def __enter__(self):
            return self

        def __exit__(self, kind, error, traceback):
            seen.append(kind)

    connection.add_hook(Errors())
    producer = connection.Producer(on_return=lambda *args: returned.append(args))
    producer.publish({}, routing_key="nobody", mandatory=True)
    assert seen == [exceptions.MessageReturned]
    assert len(returned) == 1


# --- Prometheus


def scrape(registry):
    """What a scraper gets: numbers by name and labels."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_scrapes_the_counters_of_all_connections_also_of_those_gone():
    registry = CollectorRegistry()
    connection = Connection(f"memory://prom/{uuid()}")
    CountersCollector(registry)
    other = connection.clone()
    labels = f"prom/{connection.virtual_host.lstrip('/')}", "memory"
    for each in (connection, other):
        each.Producer().publish("four", routing_key="q")
    found = scrape(registry)
    assert found[("kombulite_published_total", *labels)] == 2
    assert found[("kombulite_bytes_sent_total", *labels)] == 8
    assert found[("kombulite_consumed_total", *labels)] == 0
    other.release()
    del other, each
    gc.collect()
    assert scrape(registry)[("kombulite_published_total", *labels)] == 2
    connection.Producer().publish("four", routing_key="q")
    assert scrape(registry)[("kombulite_published_total", *labels)] == 3
    connection.release()


def test_prometheus_tells_no_password():
    registry = CollectorRegistry()
    CountersCollector(registry)
    connection = Connection("amqp://user:hush@example.org:5673/shop")
    text = generate_latest(registry).decode()
    assert 'kombulite_published_total{broker="example.org:5673/shop",transport="amqp"} 0.0' in text
    assert "hush" not in text
    assert connection.counters.published == 0


def test_prometheus_times_publishing_and_callbacks_by_outcome(connection, queue):
    registry = CollectorRegistry()
    connection.add_hook(TimingHook(registry))
    producer = connection.Producer(routing_key="q")
    producer.publish({})
    producer.publish_many([{}, {}])
    with pytest.raises(exceptions.NotFound):
        connection.Producer(exchange="nowhere", auto_declare=False).publish({})
    outcomes = iter(["ack", "rejected", None])

    def callback(body, message):
        outcome = next(outcomes)
        if outcome is None:
            message.ack()
            raise ZeroDivisionError
        getattr(message, {"ack": "ack", "rejected": "reject"}[outcome])()

    with Consumer(connection, [queue], callbacks=[callback]):
        connection.drain_events(timeout=1)
        connection.drain_events(timeout=1)
        with pytest.raises(ZeroDivisionError):
            connection.drain_events(timeout=1)
    found = scrape(registry)
    for outcome in ("ack", "rejected", "ZeroDivisionError"):
        assert found["kombulite_consume_seconds_count", outcome, "memory"] == 1
    assert found["kombulite_publish_seconds_count", "ok", "memory"] == 2
    assert found["kombulite_publish_seconds_count", "NotFound", "memory"] == 1


def test_a_transport_that_cannot_be_loaded_is_counted_and_fails_when_it_connects():
    registry = CollectorRegistry()
    CountersCollector(registry)
    connection = Connection(transport="nowhere.to.be.found:Transport")
    assert 'transport="nowhere.to.be.found:Transport"' in generate_latest(registry).decode()
    with pytest.raises(ImportError):
        connection.connect()
