"""What common, mixins, pidbox, simple and the helpers do where kombu does harm, and where things fail."""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import time

import pytest

from kombulite import Connection, Consumer, Exchange, Producer, Queue, compat, exceptions, pidbox
from kombulite.asynchronous.semaphore import LaxBoundedSemaphore
from kombulite.clocks import LamportClock
from kombulite.common import QoS, collect_replies, insured, maybe_declare
from kombulite.log import Log, LogMixin, setup_logging
from kombulite.mixins import ConsumerMixin
from kombulite.pidbox import Mailbox, Node
from kombulite.simple import SimpleQueue
from kombulite.transport import native_delayed_delivery as delayed
from kombulite.utils import compat as environments
from kombulite.utils.collections import EqualityDict
from kombulite.utils.functional import lazy, memoize
from kombulite.utils.objects import cached_property


@pytest.fixture
def connection(request):
    with Connection(f"memory://localhost/{request.node.name}") as connection:
        yield connection


# --- common


def test_insured_reconnects(connection):
    pool = connection.Pool(1)
    revived, calls = [], []

    def work(connection, channel):
        calls.append(channel)
        if len(calls) == 1:
            raise ConnectionResetError("gone")
        return channel.is_open

    assert insured(pool, work, (), {}, errback=lambda error, interval: None, on_revive=revived.append)
    assert len(calls) == 2
    assert revived == [calls[1]]
    with pytest.raises(ValueError, match="application"):
        insured(pool, lambda **kwargs: exec("raise ValueError('application')"), (), {})
    assert pool._out == 0


def test_declaring_needs_a_channel_that_is_open(connection):
    exchange = Exchange("e")
    assert maybe_declare(exchange, connection)
    channel = connection.channel()
    channel.close()
    with pytest.raises(exceptions.RecoverableConnectionError):
        maybe_declare(Exchange("other"), channel)
    assert maybe_declare(Exchange("retried"), connection.channel(), retry=True, max_retries=1)


def test_collected_replies_are_acknowledged(connection):
    channel = connection.channel()
    queue = Queue("replies")(channel)
    queue.declare()
    Producer(channel).publish_many(range(2), routing_key="replies")
    assert list(collect_replies(connection, channel, queue, limit=2, timeout=1, no_ack=False)) == [0, 1]
    channel.close()
    assert Queue("replies")(connection).get() is None


def test_prefetch_count_beyond_what_amqp_can_say_is_no_bound(caplog):
    sent = []
    QoS(lambda prefetch_count: sent.append(prefetch_count), 70_000).update()
    assert sent == [0]
    assert "exceeds" in caplog.text


# --- mixins


class Worker(ConsumerMixin):
    def __init__(self, connection, wanted):
        self.connection = connection
        self.wanted = wanted
        self.bodies = []
        self.failures = 0

    def get_consumers(self, Consumer, channel):
        return [Consumer([Queue("q")], callbacks=[self.on_body], accept=["json"])]

    def on_body(self, body, message):
        if self.failures:
            self.failures -= 1
            raise ConnectionResetError("gone")
        self.bodies.append(body)
        message.ack()
        self.should_stop = len(self.bodies) == self.wanted


def test_worker_goes_on_after_the_connection_is_lost(connection):
    connection.Producer().publish_many([{"n": i} for i in range(3)], routing_key="q")
    worker = Worker(connection, 3)
    worker.failures = 1
    worker.restart_limit.fill_rate = 1000
    worker.run()
    assert worker.bodies == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_worker_that_is_stopped_ends(connection):
    worker = Worker(connection, None)
    threading.Timer(0.1, lambda: setattr(worker, "should_stop", True)).start()
    list(worker.consume(safety_interval=0.05))
    with pytest.raises(TimeoutError):
        list(Worker(connection, None).consume(timeout=0.1))


def test_worker_acknowledges_what_it_cannot_decode(connection, caplog):
    producer = connection.Producer()
    producer.publish("{", routing_key="q", content_type="application/json")
    producer.publish({"fine": 1}, routing_key="q")
    worker = Worker(connection, 1)
    worker.run()
    assert worker.bodies == [{"fine": 1}]
    assert "Can't decode message body" in caplog.text
    assert Queue("q")(connection).get() is None


def test_worker_says_that_it_cannot_connect(caplog):
    worker = Worker(Connection("memory://"), 1)
    worker.on_connection_error(OSError("refused"), 2)
    assert "trying again in 2 seconds" in caplog.text
    with pytest.raises(NotImplementedError):
        ConsumerMixin().get_consumers(None, None)


# --- pidbox


def test_call_ends_though_nobody_answers(connection):
    mailbox = Mailbox("ns", type="fanout")(connection)
    mailbox.call_timeout = 0.1
    assert mailbox.call(["nobody"], "ping") == []


def test_call_waits_from_one_answer_to_the_next(connection):
    mailbox = Mailbox("ns", type="fanout")(connection)
    node = mailbox.Node("a", channel=connection.channel())
    node.handlers["ping"] = lambda state: "pong"
    consumer = node.listen()
    with Connection(connection.as_uri()) as other:
        caller = Mailbox("ns", type="fanout")(other)
        answers = []

        def call():
            answers.extend(caller.call(["a", "gone"], "ping", timeout=2))

        calling = threading.Thread(target=call)
        calling.start()
        connection.drain_events(timeout=10)
        calling.join(30)
    assert answers == [{"a": "pong"}]
    consumer.cancel()


def test_answers_to_others_are_kept_for_them(connection):
    mailbox = Mailbox("ns")(connection)
    maybe_declare(mailbox.reply_queue, connection)
    mailbox._publish_reply({"x": 1}, mailbox.reply_exchange.name, mailbox.oid, "another")
    mailbox._publish_reply({"x": 2}, mailbox.reply_exchange.name, mailbox.oid, "mine")
    assert mailbox._collect("mine", limit=1, timeout=5) == [{"x": 2}]
    maybe_declare(mailbox.reply_queue, connection)
    assert mailbox._collect("another", limit=1, timeout=5) == [{"x": 1}]


def test_answers_that_are_there_are_read_though_no_time_is_left(connection):
    mailbox = Mailbox("ns")(connection)
    maybe_declare(mailbox.reply_queue, connection)
    for number in range(3):
        mailbox._publish_reply({"x": number}, mailbox.reply_exchange.name, mailbox.oid, "mine")
    assert mailbox._collect("mine", timeout=0) == [{"x": 0}, {"x": 1}, {"x": 2}]


def test_producer_pool_may_be_late_and_taken_away(connection):
    pool = connection.Pool(1)
    from kombulite.pools import ProducerPool

    mailbox = Mailbox("ns", producer_pool=lazy(lambda: ProducerPool(pool, limit=1)))(connection)
    first = mailbox.producer_pool
    mailbox.abcast("ping")
    assert first._out == 0
    del mailbox.producer_pool
    assert mailbox.producer_pool is not first


def test_threads_have_reply_queues_of_their_own(connection):
    mailbox = Mailbox("ns")
    oids = [mailbox.oid]
    thread = threading.Thread(target=lambda: oids.append(mailbox.oid))
    thread.start()
    thread.join()
    assert len(set(oids)) == 2
    assert mailbox(connection).oid == mailbox.oid


def test_second_node_of_one_name_is_warned_of(connection):
    mailbox = Mailbox("ns", queue_exclusive=False)(connection)
    first = mailbox.Node("h", channel=connection.channel())
    first.listen()
    with pytest.warns(UserWarning, match="already using this process mailbox"):
        mailbox.Node("h", channel=connection.channel()).listen()


def test_node_survives_what_it_cannot_decode(connection, caplog):
    mailbox = Mailbox("ns")(connection)
    node = mailbox.Node("h", channel=connection.channel())
    node.listen()
    Producer(connection).publish("{", exchange="ns.pidbox", content_type="application/json")
    connection.drain_events(timeout=5)
    assert "Cannot decode" in caplog.text
    assert isinstance(node, Node)


# --- simple queues


def test_simple_queue_does_not_give_what_was_lost_with_its_connection():
    with Connection("memory://simple-lost") as connection:
        queue = connection.SimpleQueue("jobs")
        for body in range(3):
            queue.put(body)
        queue.get(timeout=5).ack()
        connection.drain_events(timeout=5)  # for other consumers, say
        connection.abandon(connection.transport, "lost")
        for body in (1, 2):
            message = queue.get(timeout=5)
            assert message.payload == body
            message.ack()
        assert queue.qsize() == 0
        connection.abandon(connection.transport, "lost")
        queue.put(4)
        connection.drain_events(timeout=5)
        connection.abandon(connection.transport, "lost")
        connection.ensure_connection()
        queue.close()
        assert queue.qsize() == 1


def test_get_nowait_finds_what_the_consumer_was_sent(connection):
    queue = SimpleQueue(connection, "q")
    for i in range(3):
        queue.put(i)
    assert queue.get(timeout=5).payload == 0
    assert [queue.get_nowait().payload for _ in range(2)] == [1, 2]
    queue.close()


def test_content_that_is_not_accepted(connection):
    queue = connection.SimpleQueue("q", serializer="pickle")
    queue.put({"a": 1})
    with pytest.raises(exceptions.ContentDisallowed):
        queue.get(timeout=5).payload  # noqa: B018
    assert bool(queue)


# --- delayed delivery


def test_delayed_messages_arrive_after_their_time(connection):
    delayed.declare_native_delayed_delivery_exchanges_and_queues(connection, "classic")
    queue = Queue("q", Exchange("e", "topic"), routing_key="key.x")
    queue(connection).declare()
    delayed.bind_queue_to_native_delayed_delivery_exchange(connection, queue)
    start = time.monotonic()
    for countdown in (2, 1, 0):
        key = delayed.calculate_routing_key(countdown, "key.x")
        Producer(connection).publish(countdown, exchange="celery_delayed_27", routing_key=key)
    got = []
    with Consumer(connection, queue, callbacks=[lambda body, message: got.append(body) or message.ack()]):
        while len(got) < 3:
            connection.drain_events(timeout=30)
    assert got == [0, 1, 2]
    assert time.monotonic() - start >= 2


def test_delay_that_is_too_long_or_negative_is_refused():
    assert delayed.calculate_routing_key(2**28 - 1, "k") == "1." * 28 + "k"
    for countdown in (2**28, -1):
        with pytest.raises(ValueError, match=f"below .* got {countdown}"):
            delayed.calculate_routing_key(countdown, "k")


# --- small things


def test_first_of_equal_clocks_is_the_one_with_the_lowest_id():
    clock = LamportClock()
    assert clock.sort_heap([(1, "b"), (1, "a"), (2, "0")]) == (1, "a")
    assert clock.sort_heap([(1, "b"), (1, "a")]) == (1, "a")
    assert clock.sort_heap([(5, "z")]) == (5, "z")
    with pytest.raises(IndexError):
        clock.sort_heap([])


def test_semaphore_that_grows_lets_in_as_many_as_it_grew():
    semaphore, got = LaxBoundedSemaphore(1), []
    for i in range(3):
        semaphore.acquire(got.append, i)
    semaphore.grow(1)
    assert got == [0, 1]
    assert semaphore.value == 0
    assert "waiting:1" in repr(semaphore)


def test_legacy_consumer_takes_no_more_than_its_limit(connection):
    publisher = compat.Publisher(connection, exchange="e", routing_key="k")
    consumer = compat.Consumer(connection, queue="q", exchange="e", routing_key="k")
    for i in range(3):
        publisher.send(i)
    assert [message.payload for message in consumer.iterqueue(limit=1)] == [0]
    assert consumer.fetch().payload == 1
    assert next(iter(consumer)).payload == 2
    with consumer:
        pass
    assert not consumer.backend.is_open


def test_missing_key_of_an_equality_dict():
    grouped = EqualityDict()
    with pytest.raises(KeyError):
        grouped["x"]
    grouped["x"] = 1
    del grouped["x"]
    assert not grouped


def test_cached_property_is_worked_out_once_whatever_threads_do():
    calls = []

    class Slow:
        @cached_property
        def value(self):
            calls.append(1)
            time.sleep(0.05)
            return len(calls)

    slow = Slow()
    threads = [threading.Thread(target=lambda: slow.value) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (slow.value, len(calls)) == (1, 1)
    del slow.value
    assert slow.value == 2
    assert isinstance(Slow.value, cached_property)


def test_memoized_function_that_raises_is_called_again():
    calls = []

    @memoize()
    def fail():
        calls.append(1)
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):
            fail()
    assert len(calls) == 2


def test_lazy_value_may_be_pickled():
    assert pickle.loads(pickle.dumps(lazy(int, "7")))() == 7


def test_logging_is_set_up_once(tmp_path):
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        setup_logging("INFO", str(tmp_path / "log"))
        root.info("written")
        setup_logging("DEBUG")
        assert len(root.handlers) == 1
        root.handlers[0].close()
        assert "written" in (tmp_path / "log").read_text()
        root.handlers.clear()
        setup_logging()
        assert root.level == logging.ERROR
    finally:
        root.handlers[:], root.level = handlers, level


def test_errors_are_logged_with_their_traceback_if_there_is_one(caplog):
    Log("own").error("plain")
    try:
        raise KeyError("x")
    except KeyError:
        Log("own").critical("failed")

    class Own(LogMixin):
        pass

    Own().warn("class")
    assert [bool(record.exc_info) for record in caplog.records] == [False, True, False]
    assert caplog.records[2].name == "Own"


def test_what_fails_in_a_forked_child_keeps_nothing_else_away(caplog, monkeypatch):
    class Owner:
        def fail(self):
            raise ValueError("no")

    first, second, called = Owner(), Owner(), []
    monkeypatch.setattr(environments, "_after_fork", {})
    environments.register_after_fork(first, Owner.fail)
    environments.register_after_fork(second, called.append)
    environments._begin_child()
    assert called == [second]
    assert "ignored in a forked child: ValueError('no')" in caplog.text


def test_environment_of_green_threads_is_seen(monkeypatch):
    import socket
    import types

    assert environments._detect_environment() == "default"
    patcher = types.SimpleNamespace(is_monkey_patched=lambda module: module is socket)
    monkeypatch.setitem(sys.modules, "eventlet", types.ModuleType("eventlet"))
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)
    assert environments._detect_environment() == "eventlet"
    monkeypatch.delitem(sys.modules, "eventlet.patcher")
    monkeypatch.setitem(sys.modules, "gevent", types.ModuleType("gevent"))
    monkeypatch.setitem(sys.modules, "gevent.socket", types.SimpleNamespace(socket=socket.socket))
    assert environments._detect_environment() == "gevent"


def test_what_is_called_is_logged_on_demand():
    program = """
import logging, sys
logging.basicConfig(level="DEBUG", stream=sys.stdout, format="%(name)s %(message)s")
from kombulite import Connection, Queue
with Connection("memory://user:secret@localhost/") as connection:
    connection.Producer().publish({"a": 1}, routing_key="q")
    connection.Producer().publish({"a": 2}, routing_key="q")
    assert connection.default_channel.basic_get("q").payload == {"a": 1}
    with connection.Consumer(Queue("q"), callbacks=[lambda body, message: message.ack()]):
        connection.drain_events(timeout=5)
    connection.default_channel.close()
"""
    for names, expected in [
        (["KOMBU_LOG_DEBUG"], {"kombu.connection", "kombu.channel"}),
        (["KOMBU_LOG_CHANNEL"], {"kombu.channel"}),
        (["KOMBU_LOG_CONNECTION"], {"kombu.connection"}),
        ([], set()),
    ]:
        result = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **dict.fromkeys(names, "1")},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        names_seen = {line.split()[0] for line in result.stdout.splitlines()}
        assert names_seen - {"kombulite.connection"} == expected  # that one tells of states, in any case
        assert ("[Kombu channel:1] close()" in result.stderr) == (
            names == ["KOMBU_LOG_DEBUG"]
        )  # shown without a handler
        assert not re.search("detach|use\\(|unregister|fast_ack", result.stdout)  # nothing of the inside
        assert "secret" not in result.stdout


def test_pools_tell_what_they_do_on_demand():
    program = """
import logging, sys
logging.basicConfig(level="DEBUG", stream=sys.stdout)
from kombulite import Connection
pool = Connection("memory://").Pool(1)
with pool.acquire():
    pass
"""
    environment = {**os.environ, "KOMBU_DEBUG_POOL": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "acquired <Connection" in result.stdout
    assert "released <Connection" in result.stdout


def test_manager_says_that_it_cannot_list_bindings():
    with pytest.raises(NotImplementedError):
        Connection("memory://").manager.get_bindings()


def test_replies_that_nobody_claims_are_bounded(monkeypatch):
    monkeypatch.setattr(pidbox, "MAX_UNCLAIMED", 3)
    with Connection("memory://unclaimed") as connection:
        mailbox = pidbox.Mailbox("unclaimed")(connection)
        maybe_declare(mailbox.reply_queue(connection.default_channel), connection.default_channel)
        producer = connection.Producer(exchange=mailbox.reply_exchange, routing_key=mailbox.oid)
        for ticket in ["a", ["no", "hash"], "b", "c", "d", "e", "ours"]:
            producer.publish({ticket[0]: 1}, headers={"ticket": ticket})
        assert mailbox._collect("ours", limit=1, timeout=5) == [{"o": 1}]
        assert {ticket: list(replies) for ticket, replies in mailbox.unclaimed.items()} == {
            "c": [{"c": 1}],
            "d": [{"d": 1}],
            "e": [{"e": 1}],
        }
