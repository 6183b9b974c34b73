"""Mocks in the place of channels, connections, entities and methods: the same program sees the same calls in both.

Each program returns what it has seen; a ``lib`` is kombu or kombulite. These are the calls that unit tests of programs
written for kombu look at.
"""

from __future__ import annotations

import importlib
import socket
from collections import defaultdict, deque
from datetime import datetime
from unittest.mock import ANY, MagicMock, Mock, call, patch

import kombu
import pytest

import kombulite
import kombulite.hooks


def of(lib, module):
    return importlib.import_module(f"{lib.__name__}.{module}")


def outcome(function, *args, **kwargs):
    """What a function returns, or the name of the error that it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__


def a_channel(**attributes):
    channel = MagicMock(name="channel", **attributes)
    channel.connection.client.declared_entities = set()
    channel.prepare_queue_arguments.side_effect = lambda arguments, **kwargs: arguments
    channel.queue_declare.return_value = ("q", 0, 0)
    return channel


def a_connection(lib):
    """A connection whose transport and channels are mocks."""
    base = of(lib, "transport.base")

    class Transport(base.Transport):
        def establish_connection(self):
            return Mock(client=self.client, connected=True)

        def create_channel(self, connection):
            return a_channel(connection=connection)

        def close_connection(self, connection):
            connection.closed = True

    return lib.Connection(transport=Transport)


def called(mock, *names):
    return [(name, args, kwargs) for name, args, kwargs in mock.mock_calls if name in names]


# --- producers


def publishing_on_a_mock(lib):
    producer = lib.Producer(a_connection(lib))
    producer.channel = channel = a_channel()
    producer.publish("x", exchange=lib.Exchange("e"), delivery_mode="transient", headers={"h": 1}, correlation_id="c")
    producer.publish({"a": 1}, "key", expiration=10, timeout=1, confirm_timeout=2, mandatory=True, immediate=True)
    producer.publish("x", reply_to=lib.Queue("replies"), declare=[lib.Queue("q")])
    sent = channel.basic_publish.call_args[0][0] is channel.prepare_message.return_value
    order = [name for name, _, _ in channel.mock_calls if name in ("prepare_message", "queue_declare", "basic_publish")]
    made = [args for _, args, _ in called(channel, "prepare_message")]
    return made, [kwargs for _, _, kwargs in called(channel, "basic_publish")], order, sent


def results_of_publishing(lib):
    connection = a_connection(lib)
    if lib is kombulite:
        connection.add_hook(kombulite.hooks.Hook())  # which hides nothing
    channel = connection.default_channel
    channel.basic_publish.return_value = "result"
    return connection.Producer().publish("x", "key")


def publishing_in_steps(lib):
    connection = a_connection(lib)
    producer = connection.Producer()
    producer._publish = Mock()
    same = producer.publish({"a": 1}, "key", exchange="e", headers={"h": 1}) is producer._publish.return_value
    other = connection.Producer()
    other._prepare = Mock(return_value=("body", "a/b", "binary"))
    other.publish({"a": 1}, "key")
    details = connection.Producer()
    details._delivery_details = Mock(return_value=("elsewhere", 1))
    details.publish("x")
    where = details.channel.basic_publish.call_args[1]["exchange"]
    return same, producer._publish.mock_calls, other._prepare.mock_calls, other.channel.prepare_message.call_args, where


def subclasses_that_override_a_step(lib):
    class Counting(lib.Producer):
        def _publish(self, body, priority, content_type, content_encoding, headers, properties, *args, **kwargs):
            headers["number"] = 1
            return super()._publish(
                body, priority, content_type, content_encoding, headers, properties, *args, **kwargs
            )

        def _prepare(self, body, *args, **kwargs):
            return super()._prepare([body], *args, **kwargs)

    producer = Counting(a_connection(lib))
    producer.publish("x", "key", compression="zlib")
    (_, args, _) = called(producer.channel, "prepare_message")[0]
    return args[1:], args[4]["number"]


def tracing_by_replaced_methods_of_classes(lib):
    seen = []
    publish, receive = lib.Producer._publish, lib.Consumer.receive

    def traced_publish(producer, body, *args, **kwargs):
        seen.append(("publish", body, args[3], args[5]))
        args[3]["trace"] = "t"
        return publish(producer, body, *args, **kwargs)

    def traced_receive(consumer, body, message):
        seen.append(("receive", body, message.headers["trace"]))
        return receive(consumer, body, message)

    with (
        patch.object(lib.Producer, "_publish", traced_publish),
        patch.object(lib.Consumer, "receive", traced_receive),
        lib.Connection("memory://tracing") as connection,
    ):
        queue = lib.Queue("traced", lib.Exchange("traced"), "key")
        producer = connection.Producer(exchange=queue.exchange, serializer="json")
        for number in range(2):
            producer.publish(number, "key", declare=[queue])
        with connection.Consumer([queue], callbacks=[lambda body, message: message.ack()]):
            for _ in range(2):
                connection.drain_events(timeout=20)
    return seen


def publishing_again(lib):
    producer = lib.Producer(Mock())
    ensure = producer.connection.ensure = Mock()
    producer.publish("x", exchange="e", retry=True)
    producer.publish("x", exchange="e", retry=True, retry_policy={"max_retries": 2})
    return (
        [args[0] is producer for _, args, _ in called(ensure, "")],
        ensure.return_value.call_args,
        [kwargs for _, _, kwargs in called(ensure, "")],
    )


def declaring_before_publishing(lib):
    producer = a_connection(lib).Producer()
    producer.maybe_declare = Mock()
    exchange, queue = lib.Exchange("e"), lib.Queue("q")
    producer._publish("x", 0, "", "", {}, {}, "key", 0, 0, exchange, declare=[exchange])
    policy = {"max_retries": 3}
    producer._publish("x", 0, "", "", {}, {}, "key", 0, 0, "", declare=[queue], retry=True, retry_policy=policy)
    producer.publish("x", declare=[queue])
    return producer.maybe_declare.mock_calls, producer.channel.basic_publish.call_args_list[0][1][
        "exchange"
    ] is exchange


def promised_channels(lib):
    channel = Mock(events=defaultdict(Mock))
    promise = of(lib, "messaging").ChannelPromise(lambda: channel)
    producer = lib.Producer(promise, on_return="listener")
    before = list(channel.events)
    return before, producer.channel is channel, channel.events["basic_return"].add.mock_calls


def producers_in_contexts(lib):
    seen = []
    for error in (None, KeyError):
        producer = a_connection(lib).Producer()
        producer.release = Mock()
        producer.__connection__ = pooled = Mock(spec=of(lib, "connection").PooledConnection)
        pooled._pool = Mock()
        try:
            with producer as entered:
                seen.append(entered is producer)
                if error is not None:
                    raise error
        except KeyError:
            seen.append("raised")
        seen += [producer.release.mock_calls, len(pooled._pool.replace.mock_calls)]
    producer = a_connection(lib).Producer()
    producer.__connection__ = None
    producer._channel = object()
    return [*seen, producer.connection, producer.__reduce_args__()[0]]


def batches_of_channels(lib):
    channel = Mock(supports_batch_publish=True)
    channel.connection.client.declared_entities = set()
    channel.connection.client.transport.implements.batch_publish = True
    session = channel.create_publish_batch.return_value
    session.channel = channel
    producer = lib.Producer(channel)
    seen = [producer.supports_batch_publish, producer.batch(3).max_size, producer.batch(3).active]
    with producer.batch(7):
        producer.publish("x", "a")
        producer.publish("x", "b")
    with pytest.raises(KeyError), producer.batch(7):
        producer.publish("x", "a")
        raise KeyError
    context = producer.batch()
    seen += [outcome(producer.batch, size) for size in (0, -1, True, 1.5, None)] + [outcome(context.flush)]
    with context:
        pass
    calls = [name for name, _, _ in session.mock_calls if name in ("publish", "flush", "discard", "close")]
    return (
        seen,
        called(channel, "create_publish_batch"),
        calls,
        channel.basic_publish.called,
        outcome(context.__enter__),
    )


# --- consumers


def consuming_on_a_mock(lib):
    channel = a_channel()
    consumer = lib.Consumer(channel, [lib.Queue("q", lib.Exchange("e"), "k")], callbacks=(callbacks := []))
    queue = Mock(no_ack=None)
    queue.name = "stand-in"
    consumer._basic_consume(queue, "tag", True, False)
    (_, args, kwargs) = queue.mock_calls[0]
    message = Mock(errors=["e"])
    reraised = consumer._receive_callback(message) is message._reraise_error.return_value
    return consumer.callbacks is callbacks, args[1] == consumer._receive_callback, kwargs, reraised


def consumers_without_a_channel(lib):
    consumer = lib.Consumer(None, [lib.Queue("q")])
    seen = [list(consumer._queues), consumer.connection, consumer.channel]
    failing = lib.Consumer(a_channel(), [lib.Queue("q")])
    failing.channel.connection.client.connection_errors = (OSError,)
    failing.cancel = Mock(side_effect=ValueError)
    with failing:
        pass
    failing.channel.connection = None
    failing.__exit__(None, None, None)
    return [*seen, failing.cancel.call_count]


def acknowledging_nothing(lib):
    channel = Mock(no_ack_consumers={"tag"})
    message = lib.Message("x", delivery_tag=1, channel=channel, delivery_info={"consumer_tag": "tag"})
    message.ack()
    return message._state, channel.mock_calls


# --- connections


def connections_log(lib):
    connection = a_connection(lib)
    connection._logger = True
    with patch.object(of(lib, "connection"), "logger", create=True) as logger:
        connection._debug("text %s", 1, exc_info=1)
    connection._debug = Mock()
    connection.connect()
    connection.channel()
    connection._close()
    return (
        logger.debug.call_args[0][1:],
        logger.debug.call_args[1],
        [args[0] for _, args, _ in called(connection._debug, "")],
    )


def connections_are_closed(lib):
    connection = a_connection(lib)
    connection.connect()
    default = connection._default_channel = Mock()
    connection._transport = transport = Mock(connection_errors=())
    link = connection._connection
    connection._close()
    seen = [default.close.called, transport.close_connection.mock_calls == [call(link)], connection.connection]
    broken = a_connection(lib)
    broken._transport = Mock(spec=["client", "close_connection"])
    broken._connection = Mock()
    broken._do_close_self, broken._do_close_transport = Mock(side_effect=socket.timeout), Mock()
    broken.collect()
    return [*seen, broken._do_close_self.called, broken._do_close_transport.called]


def connections_switch(lib):
    connection = lib.Connection("memory://a;memory://b;memory://c")
    connection.switch = Mock()
    for _ in range(3):
        connection.maybe_switch_next()
    other = a_connection(lib)
    other.switch("memory://there")
    shuffling = lib.Connection("memory://a;memory://b", failover_strategy="shuffle")
    return [
        connection.switch.mock_calls,
        (other.transport_cls, other.hostname, other._closed),
        (callable(shuffling.failover_strategy), shuffling._failover_strategy, shuffling.info()["failover_strategy"]),
        sorted(connection._initial_params),
    ]


def connections_ensure(lib):
    connection = a_connection(lib)

    def function(value, channel=None):
        return value, channel

    ensured = connection.autoretry(function, "channel")
    seen = [ensured.__name__, ensured.__module__, ensured(1)]
    connection._ensure_connection = Mock()
    connection._default_channel = "default"
    seen += [connection.autoretry(function, max_retries=3)(2), connection._ensure_connection.mock_calls]
    other = a_connection(lib)
    other.ensure = Mock()
    other.autoretry(function, "channel", max_retries=3)
    first, second = other.ensure.call_args[0]
    third = a_connection(lib)
    third._connection_factory = Mock()
    third.ensure_connection()
    return [*seen, first is second, first.__name__, other.ensure.call_args[1], third._connection_factory.called]


def connections_make(lib):
    connection = a_connection(lib)
    seen = []
    for name in ("Producer", "Consumer"):
        with patch(f"{lib.__name__}.messaging.{name}") as made:
            getattr(connection, name)("first", a=1)
            seen.append(
                made.mock_calls if name == "Producer" else [(args[1:], kwargs) for _, args, kwargs in made.mock_calls]
            )
    transport = connection.transport
    transport.implements = Mock(heartbeats="h", asynchronous="a")
    link = connection.connect()
    transport.qos_semantics_matches_spec = Mock()
    return [
        *seen,
        (connection.supports_heartbeats, connection.is_evented, connection.manager is transport.manager),
        connection.qos_semantics_matches_spec is transport.qos_semantics_matches_spec.return_value,
        transport.qos_semantics_matches_spec.mock_calls == [call(link)],
        of(lib, "connection").is_connection(Mock(spec=lib.Connection)),
    ]


def pools_of_connections(lib):
    pool = a_connection(lib).Pool(1)
    free, used, back = Mock(), Mock(), Mock()
    made = pool.prepare(free)
    pool.close_resource(used)
    pool.release_resource(back)
    limits = of(lib, "pools")._limit
    return [made is free.return_value, free.mock_calls, used.mock_calls, back.mock_calls, limits]


# --- helpers


def declaring_stand_ins(lib):
    common = of(lib, "common")
    channel = a_channel()
    entity = MagicMock(can_cache_declaration=True, is_bound=True, channel=channel)
    seen = [
        common.maybe_declare(entity, channel),
        common.maybe_declare(entity, channel),
        entity.declare.mock_calls == [ANY],
    ]
    known = lib.Queue("known")
    channel.connection.client.declared_entities.add(hash(known))
    seen += [common.maybe_declare(known.bind(channel), channel), common.declaration_cached("x", channel)]
    channel.connection.client.declared_entities.add("x")
    return [*seen, common.declaration_cached("x", channel)]


def draining(lib):
    common = of(lib, "common")
    connection = Mock()
    connection.Consumer.return_value = consumer = MagicMock()
    consumer.channel.connection.client.drain_events.side_effect = socket.timeout
    nothing = list(common.itermessages(connection, "channel", "queue", limit=2, timeout=1, no_ack=True))
    with patch.object(common, "drain_consumer") as drained:
        common.itermessages(connection, "channel", "queue", limit=3, timeout=4, callbacks=[1])
    return nothing, connection.Consumer.mock_calls[0], drained.call_args[1]


def insured_calls(lib):
    pool, revived = MagicMock(), Mock()
    connection = pool.acquire.return_value.__enter__.return_value
    connection.autoretry.return_value = Mock(return_value=("result", "channel"))
    result = of(lib, "common").insured(pool, "function", (1,), {"a": 2}, on_revive=revived, max_retries=1)
    options = connection.autoretry.call_args[1]
    options["on_revive"]("new")
    called_with = connection.autoretry.return_value.call_args == call(1, a=2, connection=connection)
    return result, pool.acquire.call_args, sorted(options), revived.mock_calls, called_with


def simple_queues_on_mocks(lib):
    simple = of(lib, "simple")

    class Own(simple.SimpleQueue):
        def _receive(self, message_data, message):
            self.buffer.append(("own", message_data))

    queue = Own(a_connection(lib), "q")
    queue.consumer.receive("body", Mock())
    base = simple.SimpleBase(Mock(), Mock(), Mock(queues=["q"]))
    queue.queue = Mock()
    queue.queue.get.return_value = "message"
    got = queue.get_nowait() if not queue.buffer else None
    queue.buffer = deque()
    got = queue.get(block=False)
    return got, queue.queue.get.mock_calls, len(called(base.consumer, "register_callback"))


def mailboxes_on_mocks(lib):
    pidbox = of(lib, "pidbox")
    mailbox = pidbox.Mailbox("box", connection=Mock())
    mailbox._broadcast = Mock()
    mailbox.call(["a"], "command", timeout=3)
    mailbox.cast(["a"], "command")
    mailbox.abcast("command", {"k": 1})
    mailbox.multi_call("command", limit=2)
    node = mailbox.Node("host", handlers={"f": lambda state, **kwargs: kwargs})
    node.reply, node.adjust_clock = Mock(), Mock()
    node.dispatch("f", {"a": 1}, reply_to={"exchange": "e", "routing_key": "k"}, ticket="t")
    node.handle_message({"method": "f"}, Mock(headers={"clock": 7}))
    other = pidbox.Mailbox("box", connection=Mock())
    other._publish, other._collect = Mock(), Mock()
    other._broadcast("command", {"a": 1}, destination=["a", "b"], reply=True, timeout=4, channel="channel")
    with patch.object(pidbox, "error") as error, patch.object(pidbox, "debug") as debug:
        node.on_decode_error(Mock(), KeyError("x"))
        node.dispatch("f")
    return [
        mailbox._broadcast.mock_calls,
        node.reply.mock_calls,
        node.adjust_clock.mock_calls,
        other._collect.call_args[1],
        (error.call_args[0][0], str(debug.call_args)),
        outcome(other._broadcast, "x", pattern=1, matcher=2),
    ]


def mixins_on_mocks(lib):
    mixins = of(lib, "mixins")

    class Worker(mixins.ConsumerMixin):
        connection = Mock(connection_errors=(KeyError,), channel_errors=(ValueError,))

    worker = Worker()
    message = Mock(body="body", content_type="a/b", content_encoding="utf-8")
    with patch.object(mixins, "warn") as warn, patch.object(mixins, "error") as error:
        worker.on_connection_error(OSError("x"), 3)
        worker.on_decode_error(message, OSError("x"))
    with patch.object(mixins, "ignore_errors") as ignored:
        worker.maybe_conn_error("function")
    worker.consumer_context = MagicMock()
    connection = Mock()
    worker.consumer_context.return_value.__enter__.return_value = connection, Mock(), []
    connection.drain_events.side_effect = socket.timeout
    timed_out = outcome(list, worker.consume(limit=20, timeout=9, safety_interval=2))
    return [
        str(warn.call_args[0]),
        error.call_args[0][2:],
        message.ack.called,
        ignored.call_args[0][1:],
        timed_out,
        connection.heartbeat_check.call_count,
    ]


def timers_and_hubs(lib):
    timer, hub = of(lib, "asynchronous.timer"), of(lib, "asynchronous.hub")
    calls = timer.Timer(on_error=Mock())
    entry = calls.call_repeatedly(5, function := Mock(__name__="function"), (1,), {"a": 2})
    entry()
    error = KeyError("x")
    calls.apply_entry(timer.Entry(Mock(side_effect=error)))
    with patch.object(timer, "to_timestamp", side_effect=OverflowError):
        lost = calls.enter_at(timer.Entry(function), eta=datetime.now())
    scheduling = timer.Timer()
    scheduling.enter_at = Mock()
    scheduling.enter_after(3, entry, priority=2, time=lambda: 10)
    loop = hub.Hub()
    loop._ready.add(due := Mock())
    promise = loop.call_soon(function, 1)
    kept = (due in loop._ready, promise in loop._ready, len(loop._ready))
    loop.close()
    return [
        (entry.fun.__name__, entry.args, entry.kwargs, function.mock_calls[0]),
        (calls.on_error.call_args_list[0] == call(error), calls.on_error.call_count, lost),
        (kept, due.mock_calls, len(loop._ready), hub.Hub.on_close),
        (timer.Entry(function).args, scheduling.enter_at.call_args[0][1:]),
    ]


def sleeping_is_counted(lib):
    functional = of(lib, "utils.functional")
    with patch.object(functional, "sleep") as sleep:
        function = Mock(side_effect=[KeyError, KeyError, "done"])
        result = functional.retry_over_time(function, KeyError, interval_start=3, interval_step=0)
    return result, sum(args[0] for _, args, _ in called(sleep, ""))


PROGRAMS = [
    each
    for name, each in list(vars().items())
    if getattr(each, "__module__", None) == __name__ and getattr(each, "__code__", None)
    if each.__code__.co_varnames[:1] == ("lib",) and name not in ("of", "a_connection")
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_stand_ins_see_the_same(program):
    seen = program(kombulite)
    expected = program(kombu)
    assert seen == expected or repr(seen) == repr(expected)
