"""Transports written for kombu's interface run under the facade: mocks, and subclasses of the virtual transport."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from queue import Empty
from types import SimpleNamespace

import pytest

import kombulite
from kombulite import Connection, Consumer, Exchange, Producer, Queue
from kombulite.asynchronous import Hub
from kombulite.brokers import resolve_transport
from kombulite.hooks import Hook
from kombulite.transport import TRANSPORT_ALIASES, base, get_transport_cls, virtual
from kombulite.transport import memory as memory_module
from kombulite.transport.adapter import SLOW_CHECK


class MockChannel(base.StdChannel):
    """What a test of a program would write."""

    def __init__(self, connection):
        self.connection, self.channel_id = connection, 1
        self.calls, self.waiting, self.callbacks = [], deque(), {}

    def __getattr__(self, name):
        if name.startswith(("queue_", "exchange_", "basic_")):
            return lambda *args, **kwargs: self.calls.append((name, args, kwargs))
        raise AttributeError(name)

    def queue_declare(self, queue, **kwargs):
        return queue, 0, 0

    def prepare_message(self, body, *args):
        return SimpleNamespace(body=body, args=args)

    def basic_publish(self, message, exchange, routing_key, **kwargs):
        self.calls.append(
            ("basic_publish", (message.body,), {"exchange": exchange, "routing_key": routing_key, **kwargs})
        )
        self.waiting.append(message)
        return "published"

    def basic_consume(self, queue, callback, **kwargs):
        self.callbacks[queue] = callback

    def close(self):
        self.closed = True


class MockTransport(base.Transport):
    """Ten lines, without the two that are lines of style."""

    def establish_connection(self):
        return SimpleNamespace(client=self.client, connected=True, channels=[])

    def create_channel(self, connection):
        connection.channels.append(MockChannel(connection))
        return connection.channels[-1]

    def drain_events(self, connection, **kwargs):
        for channel in connection.channels:
            if channel.waiting and channel.callbacks:
                message = channel.waiting.popleft()
                body = message.body
                next(iter(channel.callbacks.values()))(
                    base.Message(body, 1, "application/json", "utf-8", channel=channel)
                )
                return "event"
        if "timeout" in kwargs:
            raise TimeoutError
        return "nothing"

    def close_connection(self, connection):
        connection.connected = False


def test_a_mock_transport_works_with_simple_queues_producers_and_consumers():
    with Connection(transport=MockTransport) as connection:
        assert connection.connect().connected
        assert isinstance(connection.transport, MockTransport)
        channel = connection.channel()
        assert isinstance(channel, MockChannel)
        assert channel.connection is connection.connection
        assert Producer(channel, Exchange("e")).publish({"a": 1}, routing_key="k") == "published"
        name, (body,), kwargs = channel.calls[-1]
        assert (name, body) == ("basic_publish", '{"a": 1}')
        assert set(kwargs) == {"exchange", "routing_key", "mandatory", "immediate", "timeout", "confirm_timeout"}
        assert "exchange_declare" in [call[0] for call in channel.calls]
        assert kwargs["exchange"] == "e"
        got = []
        with Consumer(channel, [Queue("q")], callbacks=[lambda body, message: got.append(body)]) as consumer:
            assert consumer.channel is channel
            assert connection.drain_events(timeout=1) == "event"
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0)
        assert got == [{"a": 1}]
        assert connection.drain_events() == "nothing"
        queue = connection.SimpleQueue("simple")
        queue.put([1, 2])
        assert queue.get(timeout=1).payload == [1, 2]


def test_one_check_that_takes_long_by_chance_does_not_vouch_for_the_connection():
    answers = [True, False]

    class Stalled(MockTransport):
        def verify_connection(self, connection):
            time.sleep(2 * SLOW_CHECK)
            return answers.pop(0)

    with Connection(transport=Stalled) as connection:
        assert connection.connect().connected
        assert connection.connected
        assert not connection.connected


class StoreChannel(virtual.Channel):
    """A store in the process, under the queue verbs."""

    stores = defaultdict(deque)
    unreachable = False

    def _check(self):
        if type(self).unreachable:
            raise ConnectionResetError("the store is gone")

    def _put(self, queue, message, **kwargs):
        self._check()
        self.stores[queue].append(message)

    def _get(self, queue, timeout=None):
        self._check()
        if not self.stores[queue]:
            raise Empty
        return self.stores[queue].popleft()

    def _size(self, queue):
        return len(self.stores[queue])

    def _purge(self, queue):
        size = len(self.stores[queue])
        self.stores[queue].clear()
        return size


class StoreTransport(virtual.Transport):
    Channel = StoreChannel
    polling_interval = 0.01
    driver_type = "store"
    connection_errors = (*virtual.Transport.connection_errors, OSError)
    recoverable_connection_errors = connection_errors


@pytest.fixture
def connection(monkeypatch):
    monkeypatch.setitem(TRANSPORT_ALIASES, "teststore", StoreTransport)
    StoreChannel.stores.clear()
    with Connection("teststore://") as connection:
        yield connection
    StoreChannel.unreachable = False


@pytest.fixture
def queue():
    return Queue("q", Exchange("e", "topic"), routing_key="a.#")


def test_a_store_under_all_of_the_facade(connection, queue):
    producer = connection.Producer(exchange=queue.exchange)
    for n in range(3):
        producer.publish({"n": n}, routing_key="a.b", declare=[queue])
    with producer.batch():
        for n in range(3, 6):
            producer.publish({"n": n}, routing_key="a.b")
        assert len(StoreChannel.stores["q"]) == 3
    assert producer.publish_many([{"n": 6}, {"n": 7}], routing_key="a.b") == 2
    batches = []
    with connection.Consumer(queue, on_batch=batches.append, batch_size=5, prefetch_count=5):
        connection.drain_events(timeout=5)
        assert [message.payload["n"] for message in batches[0]] == list(range(5))
        batches[0].ack()
    assert not batches[1:]
    got = []
    with connection.Consumer(queue, callbacks=[lambda body, message: (got.append(body["n"]), message.ack())]):
        while len(got) < 3:
            connection.drain_events(timeout=5)
    assert got == [5, 6, 7]
    with connection.Pool(2).acquire() as pooled, pooled.ChannelPool(1).acquire() as channel:
        kombulite.Producer(channel).publish("x", routing_key="q")
    simple = connection.SimpleQueue("q")
    assert simple.get(timeout=20).payload == "x"
    assert connection.counters.published == 8
    assert connection.counters.consumed >= 8
    assert connection.counters.acked == 8


def test_what_becomes_of_messages_is_counted(connection, queue):
    producer = connection.Producer()
    for number in range(4):
        producer.publish(number, routing_key="q", declare=[queue])
    settle = [
        lambda message: message.ack(),
        lambda message: message.reject(),
        lambda message: message.reject(requeue=True),
        lambda message: message.requeue(),
    ]
    bound, counters = queue(connection), connection.counters
    for each in settle:
        each(bound.get())
    before, counters = counters, connection.counters
    assert counters.acked - before.acked == 1
    assert counters.rejected - before.rejected == 1
    assert counters.requeued - before.requeued == 2


def test_hooks_are_around_publishing_and_consuming(connection, queue):
    seen = []

    class Watch(Hook):
        def publish(self, outgoing):
            outgoing.headers["x"] = "y"
            seen.append(("publish", outgoing.routing_key))
            return super().publish(outgoing)

        def consume(self, message, queue):
            seen.append(("consume", queue, message.headers["x"]))
            return super().consume(message, queue)

    connection.add_hook(Watch())
    connection.Producer(exchange=queue.exchange).publish(1, routing_key="a.b", declare=[queue])
    with connection.Consumer(queue, callbacks=[lambda body, message: message.ack()]):
        connection.drain_events(timeout=5)
    assert seen == [("publish", "a.b"), ("consume", "q", "y")]


def test_consumers_come_back_after_a_loss_with_what_was_not_acknowledged(connection, queue):
    got = []
    producer = connection.Producer(exchange=queue.exchange)
    with connection.Consumer(queue, callbacks=[lambda body, message: got.append((body, message))]):
        producer.publish("first", routing_key="a.b", declare=[queue])
        connection.drain_events(timeout=5)
        StoreChannel.unreachable = True
        with pytest.raises(ConnectionResetError):
            connection.drain_events(timeout=5)
        assert not connection.connected
        StoreChannel.unreachable = False
        producer.publish("second", routing_key="a.b", retry=True, retry_policy={"max_retries": 3, "interval_start": 0})
        while len(got) < 2:
            connection.drain_events(timeout=5)
    assert [body for body, _ in got][:2] in (["first", "second"], ["first", "first"])


def test_failover_takes_the_next_url_of_another_transport(monkeypatch, queue):
    class Broken(StoreTransport):
        def establish_connection(self):
            raise ConnectionRefusedError("nobody is there")

    monkeypatch.setitem(TRANSPORT_ALIASES, "testbroken", Broken)
    monkeypatch.setitem(TRANSPORT_ALIASES, "teststore", StoreTransport)
    with Connection("testbroken://;teststore://") as connection:
        connection.ensure_connection(max_retries=3)
        assert type(connection.transport) is StoreTransport


def test_an_url_with_a_plus_among_the_alternates_is_understood():
    connection = Connection("memory://;sqla+sqlite:///x.sqlite")
    connection.switch("sqla+sqlite:///x.sqlite")
    assert (connection.transport_cls, connection.hostname) == ("sqla", "sqlite:///x.sqlite")


def test_poison_messages_go_to_the_dead_letters(connection, queue):
    connection.Producer(exchange=queue.exchange).publish("bad", routing_key="a.b", declare=[queue])
    seen = []

    def fail(body, message):
        seen.append(message.delivery_count)
        message.requeue()

    with connection.Consumer(queue, callbacks=[fail], max_deliveries=3, dead_letter="dead"):
        while not StoreChannel.stores["dead"]:
            connection.drain_events(timeout=5)
    assert seen == [0, 1, 2]
    message = Queue("dead")(connection.default_channel).get()
    assert message.payload == "bad"
    assert message.headers["x-poison-queue"] == "q"


def test_waiting_for_ever_without_a_consumer_is_an_error(connection):
    connection.connect()
    with pytest.raises(kombulite.exceptions.OperationalError, match="no consumer"):
        connection.drain_events()


def test_an_empty_of_a_callback_reaches_the_program(connection, queue):
    def fail(body, message):
        raise Empty("of the callback")

    connection.Producer(exchange=queue.exchange).publish(1, routing_key="a.b", declare=[queue])
    with connection.Consumer(queue, callbacks=[fail]):
        with pytest.raises(Empty, match="of the callback"):
            connection.drain_events(timeout=5)


def test_two_consumers_of_one_queue_share_its_messages(connection, queue):
    got = defaultdict(list)
    consumers = [
        connection.Consumer(
            queue, channel=connection.channel(), no_ack=True, callbacks=[lambda body, message, i=i: got[i].append(body)]
        )
        for i in range(2)
    ]
    producer = connection.Producer(exchange=queue.exchange)
    for consumer in consumers:
        consumer.consume()
    for n in range(4):
        producer.publish(n, routing_key="a.b")
    for _ in range(4):
        connection.drain_events(timeout=5)
    assert sorted(got[0] + got[1]) == [0, 1, 2, 3]
    assert len(got[0]) == len(got[1]) == 2
    consumers[0].cancel()
    producer.publish(9, routing_key="a.b")
    connection.drain_events(timeout=5)
    assert got[1][-1] == 9


def test_unacknowledged_messages_go_back_in_order_to_their_own_queue(connection):
    exchange = Exchange("fan", "direct")
    queues = [Queue(name, exchange, routing_key="k") for name in ("one", "two")]
    for bound in queues:
        bound(connection.default_channel).declare()
    producer = connection.Producer(exchange=exchange)
    for n in range(3):
        producer.publish(n, routing_key="k")
    channel = connection.channel()
    for _ in range(3):
        assert queues[0](channel).get() is not None
    channel.close()
    read = queues[0](connection.channel())
    messages = [read.get(no_ack=True) for _ in range(3)]
    assert [message.payload for message in messages] == [0, 1, 2]
    assert all(message.delivery_info["redelivered"] for message in messages)
    assert len(StoreChannel.stores["two"]) == 3


def test_copies_on_one_channel_are_settled_each_by_itself(connection):
    channel = connection.channel()
    for name in ("one", "two"):
        Queue(name, Exchange("fan"), routing_key="k")(channel).declare()
    Producer(channel, Exchange("fan")).publish("x", routing_key="k")
    first, second = channel.basic_get("one"), channel.basic_get("two")
    first.ack()
    channel.close()
    assert not StoreChannel.stores["one"]
    assert len(StoreChannel.stores["two"]) == 1
    assert first.delivery_tag != second.delivery_tag


def test_binding_to_an_unknown_exchange_fails_and_works_once_it_is_declared(connection):
    channel = connection.channel()
    channel.queue_declare("q")
    with pytest.raises(kombulite.exceptions.NotFound):
        channel.queue_bind("q", "later", "k")
    channel.exchange_declare("later", "direct")
    channel.queue_bind("q", "later", "k")
    Producer(channel).publish(1, exchange="later", routing_key="k")
    assert len(StoreChannel.stores["q"]) == 1


def test_a_deleted_queue_gets_no_more_messages_and_an_unbound_one_is_deleted(connection, queue):
    channel = connection.channel()
    queue(channel).declare()
    channel.queue_delete("q")
    Producer(channel, queue.exchange).publish(1, routing_key="a.b")
    assert not StoreChannel.stores["q"]
    assert connection.transport.unroutable == 1
    Producer(channel).publish(1, routing_key="alone")
    channel.queue_delete("alone")
    assert not StoreChannel.stores["alone"]


def test_mandatory_messages_that_find_no_queue_come_back(connection):
    returned = []
    exchange = Exchange("nothing")
    producer = connection.Producer(exchange=exchange, on_return=lambda *facts: returned.append(facts[1:3]))
    producer.publish(1, routing_key="k", mandatory=True)
    assert returned == [("nothing", "k")]
    with pytest.raises(kombulite.exceptions.MessageReturned):
        connection.Producer(connection.channel(), exchange).publish(1, routing_key="k", mandatory=True)


def test_an_envelope_that_cannot_be_read_reaches_the_consumer_as_an_error(connection, queue):
    queue(connection.default_channel).declare()
    StoreChannel.stores["q"].append({"body": "x", "properties": {"body_encoding": "nix", "delivery_info": {}}})
    failed = []
    with connection.Consumer(queue, on_decode_error=lambda message, error: (failed.append(error), message.reject())):
        connection.drain_events(timeout=5)
    assert isinstance(failed[0], kombulite.exceptions.DecodeError)


def test_a_closed_channel_says_so(connection):
    channel = connection.channel()
    channel.close()
    for verb in (lambda: channel.queue_declare("q"), lambda: channel.basic_get("q"), lambda: channel.queue_purge("q")):
        with pytest.raises(kombulite.exceptions.RecoverableConnectionError):
            verb()


def test_a_channel_that_is_dropped_gives_its_messages_back(connection, queue):
    import gc

    other = Connection("teststore://")
    other.Producer(exchange=queue.exchange).publish(1, routing_key="a.b", declare=[queue])
    assert queue(other.channel()).get() is not None
    assert not StoreChannel.stores["q"]
    del other
    gc.collect()
    assert len(StoreChannel.stores["q"]) == 1


def test_classes_of_the_memory_transport_are_not_replaced():
    class Mine(memory_module.Transport):
        pass

    for cls in (Mine, memory_module.Transport):
        with Connection(transport=cls) as connection:
            assert type(connection.transport) is cls
            channel = connection.default_channel
            channel._new_queue("mine")
            channel._put("mine", channel.prepare_message("x"))
            assert channel._size("mine") == 1
            assert channel._purge("mine") == 1
    with Connection(transport="memory") as connection:
        assert connection.transport.driver_type == "memory"
        assert type(connection.channel()) is kombulite._sync.channel.Channel


def test_an_event_loop_drains_what_its_transport_registers():
    class Evented(MockTransport):
        implements = base.Transport.implements.extend(asynchronous=True)
        registered = []

        def register_with_event_loop(self, connection, loop):
            self.registered.append((connection, loop))

    with Connection(transport=Evented) as connection:
        hub = Hub()
        connection.register_with_event_loop(hub)
        assert connection.is_evented
        assert Evented.registered == [(connection.connection, hub)]


@pytest.mark.parametrize("name", ["amqp", "pyamqp", "memory", "filesystem", "redis", "sqla", "pgmq"])
def test_a_connection_names_the_class_that_programs_know_and_runs_ours(name):
    connection = Connection(f"{name}://" if name != "sqla" else "sqla+sqlite://")
    known = get_transport_cls(name)
    assert connection.get_transport_cls() is known
    native = vars(known).get("native")
    assert not native or f"{type(connection.transport).__module__}:Transport" == native


def test_a_subclass_of_connection_chooses_a_class_by_that_of_its_url(monkeypatch):
    class Mine(StoreTransport):
        pass

    class Choosing(Connection):
        def get_transport_cls(self):
            return Mine if super().get_transport_cls() is StoreTransport else super().get_transport_cls()

    monkeypatch.setitem(TRANSPORT_ALIASES, "chosenstore", StoreTransport)
    with Choosing("chosenstore://") as connection:
        assert type(connection.connect().client.transport) is Mine
        assert connection.connection_errors == Mine.connection_errors
    with Choosing("memory://") as connection:
        assert connection.connect().connected
        assert type(connection.transport) is resolve_transport("memory")


def test_an_ack_of_another_thread_wakes_a_transport_that_had_no_credit(connection, queue, monkeypatch):
    waits = threading.Event()
    woken = []

    class Noted(threading.Event):
        def wait(self, timeout=None):
            waits.set()
            woken.append(super().wait(timeout))

    monkeypatch.setattr(StoreTransport, "polling_interval", 20)
    got = []
    producer = connection.Producer(exchange=queue.exchange)
    with connection.Consumer(queue, callbacks=[lambda body, message: got.append(message)], prefetch_count=1):
        connection.transport._settled = Noted()
        for number in range(2):
            producer.publish(number, routing_key="a.b", declare=[queue])
        connection.drain_events(timeout=5)
        acknowledging = threading.Thread(target=lambda: waits.wait(20) and got[0].ack())
        acknowledging.start()
        connection.drain_events(timeout=20)
        acknowledging.join(20)
        assert [message.payload for message in got] == [0, 1]
        assert woken == [True]
        got[1].ack()
