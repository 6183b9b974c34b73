"""Small programs over kombu's API, each a few lines that others have written somewhere: both libraries see the same.

Longer than other modules because each program is a case of its own.
"""

from __future__ import annotations

import copy
import pickle
import socket
from collections import deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from io import BytesIO, StringIO
from itertools import islice
from queue import Empty
from unittest.mock import MagicMock, Mock, patch
from uuid import UUID

from tests.oracle.side_by_side import of, outcome, side_by_side

# --- connections and pools


def settings_of_connections(lib):
    urls = [
        ("memory://", {}),
        ("amqp://u:p%40@h:1//v", {"transport_options": {"a": 1}}),
        ("redis://:secret@h:2/3", {"connect_timeout": 7}),
        ("amqp://h?heartbeat=10&ssl_check_hostname=false", {}),
        ("pyamqp://h", {"login_method": "EXTERNAL", "heartbeat": 3}),
    ]
    names = ("hostname", "userid", "password", "virtual_host", "port", "insist", "connect_timeout", "transport")
    names += ("transport_options", "login_method", "uri_prefix", "heartbeat", "failover_strategy", "alternates")
    infos = [lib.Connection(url, **options).info() for url, options in urls]
    return [[info[name] for name in names] for info in infos], [list(info) for info in infos[:1]]


def texts_of_connections(lib):
    made = [lib.Connection(url) for url in ("memory://", "amqp://u:p@h:5//v", "amqp://u:p@h:5/%2Fv", "redis://h/1")]
    seen = [(each.as_uri(), each.as_uri(include_password=True), each.as_uri(mask="!")) for each in made]
    return seen, [repr(each).split(" at ")[0] for each in made], made[1].host


def copies_of_connections(lib):
    first = lib.Connection("memory://host", transport_options={"a": 1}, connect_timeout=9, heartbeat=4)
    others = [first.clone(), copy.copy(first), pickle.loads(pickle.dumps(first)), first.clone(connect_timeout=3)]
    seen = [(each.connect_timeout, each.heartbeat, each.transport_options, each.transport_cls) for each in others]
    return seen, first.__eqhash__() == others[0].__eqhash__(), hash(first.__eqhash__()) == hash(others[1].__eqhash__())


def failover_by_hand(lib):
    def last_first(urls):
        urls = list(urls)[::-1]
        while True:
            yield from urls

    connection = lib.Connection(["memory://a", "memory://b", "memory://c"], failover_strategy=last_first)
    seen = [connection.hostname, [connection.completes_cycle(number) for number in range(4)]]
    for _ in range(4):
        connection.maybe_switch_next()
        seen.append(connection.hostname)
    listed = lib.Connection("memory://a;memory://b", alternates=["memory://z"])
    return [*seen, listed.alt, listed.hostname, callable(connection.failover_strategy), lib.Connection("memory://").alt]


def failover_strategies(lib):
    module = of(lib, "connection")
    chosen = next(module.failover_strategies["shuffle"]("abc"))
    return sorted(module.failover_strategies), list(islice(module.roundrobin_failover("ab"), 5)), chosen in "abc"


def hands_of_ensure(lib):
    class Failing(Exception):
        pass

    base = of(lib, "transport.base")

    class Transport(base.Transport):
        recoverable_connection_errors = connection_errors = (Failing,)
        recoverable_channel_errors = channel_errors = (KeyError,)

        def establish_connection(self):
            return Mock(client=self.client)

        def create_channel(self, connection):
            return Mock(name="channel", connection=connection)

        def close_connection(self, connection):
            pass

    connection = lib.Connection(transport=Transport)
    seen, revived, errback = [], Mock(), Mock()
    for errors in ([], [Failing("a")], [KeyError("k"), Failing("b")], [ValueError("v")], [Failing("c")] * 3):
        fun = Mock(side_effect=[*errors, "done"], __name__="fun", __doc__="d", __module__="m")
        ensured = connection.ensure(
            revived, fun, errback=errback, max_retries=2, interval_start=0, interval_step=0, interval_max=0
        )
        seen.append((outcome(ensured, 1, a=2), fun.call_count, fun.call_args, ensured.__name__))
    return seen, revived.revive.call_count, [repr(each[0][0]) for each in errback.call_args_list]


def ensured_errors(lib):
    connection = lib.Connection("memory://")
    seen = []
    for policy in ({}, {"max_retries": 2}, {"max_retries": 0}):
        fun = Mock(side_effect=[ValueError("v")] * 2 + ["done"], __name__="fun")
        ensured = connection.ensure(Mock(), fun, retry_errors=(ValueError,), **policy)
        seen.append((outcome(ensured), fun.call_count))
    return seen


def functions_that_are_tried_again(lib):
    connection = lib.Connection("memory://")
    fun = Mock(side_effect=lambda *args, channel, **kwargs: (args, kwargs, channel is connection.default_channel))
    fun.__name__ = "fun"
    result, channel = connection.autoretry(fun)(1, a=2)
    given = connection.channel()
    _, second = connection.autoretry(fun, given)(3)
    return result, channel is connection.default_channel, second is given, fun.call_count


def errors_by_a_transport_class(lib):
    base = of(lib, "transport.base")

    class Transport(base.Transport):
        connection_errors, channel_errors = (KeyError,), (IndexError,)

    connection = lib.Connection(transport=Transport)
    return [
        connection.connection_errors,
        connection.channel_errors,
        connection.recoverable_connection_errors,
        connection.recoverable_channel_errors,
        (connection.supports_heartbeats, connection.is_evented),
        [connection.supports_exchange_type(each) for each in ("direct", "x")],
        connection.get_transport_cls() is Transport,
    ]


def heartbeats_of_a_transport(lib):
    base = of(lib, "transport.base")
    link = Mock()

    class Transport(base.Transport):
        implements = base.Transport.implements.extend(heartbeats=True)

        def establish_connection(self):
            return link

        def heartbeat_check(self, connection, rate=2):
            return connection is link, rate

        def get_heartbeat_interval(self, connection):
            return 17

        def close_connection(self, connection):
            pass

    connection = lib.Connection(transport=Transport)
    connection.connect()
    seen = [connection.heartbeat_check(), connection.heartbeat_check(rate=5), connection.get_heartbeat_interval()]
    return [*seen, connection.supports_heartbeats, connection.qos_semantics_matches_spec]


def pools_of_connections(lib):
    pool = lib.Connection("memory://").Pool(2)
    first, second = pool.acquire(), pool.acquire()
    seen = [first is second, len(pool._dirty), len(pool._resource.queue), outcome(pool.acquire)]
    first.release()
    third = pool.acquire()
    seen += [third is first, pool.limit]
    pool.replace(third)
    fourth = pool.acquire()
    seen += [fourth is third, len(pool._dirty)]
    pool.force_close_all()
    return [*seen, outcome(pool.acquire), len(pool._dirty)]


def pools_in_contexts(lib):
    pool = lib.Connection("memory://").Pool(1)
    with pool.acquire() as first:
        seen = [type(first).__name__, isinstance(first, lib.Connection)]
    with pool.acquire_channel() as (connection, channel):
        seen += [connection is first, channel is connection.default_channel]
    try:
        with pool.acquire() as failing:
            raise KeyError
    except KeyError:
        seen += [bool(failing.connected), len(pool._dirty)]
    return seen


def pools_that_grow_and_shrink(lib):
    pool = lib.Connection("memory://").Pool(3)
    pool.resize(5)
    seen = [pool.limit, len(pool._resource.queue)]
    pool.limit = 2
    seen += [pool.limit, len(pool._resource.queue)]
    used = [pool.acquire(), pool.acquire()]
    seen.append(outcome(pool.resize, 1))
    pool.resize(1, ignore_errors=True)
    seen.append(pool.limit)
    for each in used:
        each.release()
    pool.resize(4, reset=True)
    return [*seen, pool.limit, len(pool._dirty)]


def pools_of_channels(lib):
    connection = lib.Connection("memory://")
    pool = connection.ChannelPool(2)
    first, second = pool.acquire(), pool.acquire()
    seen = [first is second, outcome(pool.acquire), first.connection is not None]
    second.release()
    return [*seen, pool.acquire() is second]


def groups_of_pools(lib):
    pools = of(lib, "pools")
    first, same, other = (lib.Connection(f"memory://{name}") for name in ("group", "group", "other"))
    seen = [pools.connections[first] is pools.connections[same], pools.connections[first] is pools.connections[other]]
    with pools.producers[first].acquire(block=True) as producer:
        seen += [type(producer).__name__, producer.connection is not None]
    before = pools.get_limit()
    seen += [before, pools.set_limit(before + 1), pools.connections[first].limit]
    pools.set_limit(before)
    own = pools.register_group(pools.Connections(limit=4))
    seen.append(own[first].limit)
    pools.reset()
    del pools._groups[-1]  # by its place: empty groups are equal
    return [*seen, len(own), len(pools.connections)]


def resources_of_anything(lib):
    class Numbers(of(lib, "resource").Resource):
        made = 0

        def setup(self):
            for _ in range(self.limit or 0):
                self._resource.put_nowait(self.new())

        def new(self):
            type(self).made += 1
            return Mock(number=self.made)

        def release_resource(self, resource):
            resource.released = True

    pool = Numbers(limit=2)
    one = pool.acquire()
    one.release()
    seen = [one.released is True, Numbers.made, pool.acquire() is one, pool.limit, pool.close_after_fork]
    pool.replace(one)
    return [*seen, one.close.called, pool.preload, len(pool._dirty)]


# --- entities


def texts_of_entities(lib):
    exchange = lib.Exchange("e", "topic")
    channel = Mock(channel_id=3)
    return [
        repr(each)
        for each in (
            exchange,
            exchange(channel),
            lib.Exchange(""),
            lib.Exchange("it's"),
            lib.Queue("q", exchange, "k"),
            lib.Queue("q", exchange, "k")(channel),
            lib.Queue("a\nb"),
            lib.Queue("q", [lib.binding(exchange, "a.*")]),
            lib.binding(exchange, "k"),
            str(exchange),
            lib.Queue("q"),
        )
    ]


def entities_that_are_equal(lib):
    def made():
        return lib.Exchange("e", "direct"), lib.Queue("q", lib.Exchange("e"), "k", max_length=3)

    (one, first), (two, second) = made(), made()
    others = [lib.Exchange("e", "topic"), lib.Exchange("e", durable=False), lib.Queue("q"), "e", None]
    seen = [one == two, first == second, hash(one) == hash(two), hash(first) == hash(second), one != two]
    return seen + [(one == each, first == each) for each in others] + [copy.copy(first) == first, len({one, two})]


def queues_of_settings(lib):
    queue = lib.Queue.from_dict(
        "q",
        exchange="e",
        exchange_type="topic",
        binding_key="k",
        durable=False,
        queue_auto_delete=True,
        max_priority=4,
        queue_arguments={"x": 1},
        message_ttl=2,
        no_ack=True,
        delivery_mode=1,
    )
    plain = of(lib, "compat").entry_to_queue("p", exchange="x")
    names = (
        "name",
        "routing_key",
        "durable",
        "auto_delete",
        "max_priority",
        "queue_arguments",
        "message_ttl",
        "no_ack",
    )
    seen = [[getattr(each, name) for name in names] for each in (queue, plain)]
    facts = [
        (each.exchange.name, each.exchange.type, each.exchange.durable, each.exchange.auto_delete)
        for each in (queue, plain)
    ]
    return seen, facts, queue.exchange.delivery_mode


def entities_as_dicts(lib):
    queue = lib.Queue("q", lib.Exchange("e", arguments={"a": 1}), "k", expires=3, bindings=None, alias="a")
    plain, nested = queue.as_dict(), queue.as_dict(recurse=True)
    again = pickle.loads(pickle.dumps(queue))
    return sorted(plain), nested["exchange"], {k: v for k, v in nested.items() if k != "exchange"}, again == queue


def declarations_that_are_remembered(lib):
    return [
        entity.can_cache_declaration
        for entity in (
            lib.Exchange("e"),
            lib.Exchange("e", auto_delete=True),
            lib.Queue("q"),
            lib.Queue("q", auto_delete=True),
            lib.Queue("q", exclusive=True),
            lib.Queue("q", queue_arguments={"x-expires": 1}),
            lib.Queue("q", queue_arguments={"x": 1}),
        )
    ]


def exchanges_without_a_declaration(lib):
    channel = MagicMock()
    for exchange in (
        lib.Exchange("e", no_declare=True),
        lib.Exchange("amq.direct"),
        lib.Exchange(""),
        lib.Exchange("p", passive=True),
        lib.Exchange("e", durable=False, auto_delete=True, arguments={"a": 1}),
    ):
        exchange(channel).declare(nowait=True)
    lib.Queue("never", no_declare=True)(channel).declare()
    return channel.exchange_declare.mock_calls, channel.queue_declare.called


def bindings_by_hand(lib):
    channel, exchange = MagicMock(), lib.Exchange("e", "topic")
    binding = exchange.binding("k", arguments={"a": 1}, unbind_arguments={"b": 2})
    queue = lib.Queue("q")(channel)
    binding.declare(channel)
    binding.bind(queue)
    binding.unbind(queue)
    return channel.mock_calls, (binding.routing_key, binding.arguments, binding.exchange is exchange), str(binding)


def objects_of_attributes(lib):
    abstract = of(lib, "abstract")

    class Thing(abstract.Object):
        attrs = (("number", int), ("text", None), ("more", list))
        text = "default"

    one = Thing(number="3", other=1)
    bound = type("Bound", (abstract.MaybeChannelBound,), {"attrs": (("name", None),)})(name="n")
    channel = Mock(channel_id=9)
    seen = [one.number, one.text, one.more, one.as_dict(), copy.copy(one).number]
    return [*seen, repr(bound), repr(bound(channel)), bound.is_bound, bound(channel).is_bound, bound(None).is_bound]


# --- messages, producers, consumers


def texts_of_messages(lib):
    made = [
        lib.Message("body", delivery_tag=1),
        lib.Message(b"12345", content_type="a/b", properties={"correlation_id": "c", "type": "t", "x": 1}),
        lib.Message(None, delivery_info={"exchange": "e", "routing_key": "k", "x": 1}, channel=Mock()),
    ]
    return [repr(each) for each in made], [each.acknowledged for each in made]


def messages_that_are_logged(lib):
    logger, channel = Mock(), Mock(no_ack_consumers=None)
    seen = []
    for verb, error in (("ack", KeyError("k")), ("reject", KeyError("k")), ("ack", BrokenPipeError("b"))):
        message = lib.Message("b", delivery_tag=3, channel=channel)
        channel.basic_ack.side_effect = channel.basic_reject.side_effect = error
        seen.append(outcome(getattr(message, f"{verb}_log_error"), logger, (KeyError,)))
        seen.append(message._state)
    seen.append(outcome(lib.Message("b", channel=channel).ack_log_error, logger, ()))
    return seen, [each.args for each in logger.critical.call_args_list]


def messages_with_compressed_bodies(lib):
    compress = of(lib, "compression").compress
    seen = []
    for method in ("zlib", "bzip2", "gzip", "application/x-gzip"):
        body, kind = compress('{"a": 1}', method)
        message = lib.Message(
            body, content_type="application/json", content_encoding="utf-8", headers={"compression": kind}
        )
        seen.append((kind, message.payload, message.errors))
    broken = lib.Message(b"no", headers={"compression": "application/x-gzip"})
    return seen, len(broken.errors), broken.body, outcome(broken._reraise_error, callback := Mock()), callback.called


def producers_of_many_kinds(lib):
    def sent(**options):
        channel = MagicMock()
        channel.connection.client.declared_entities = set()
        lib.Producer(channel, **options).publish({"a": 1}, priority=3)
        return channel.prepare_message.call_args, channel.basic_publish.call_args[1]

    return [
        sent(),
        sent(exchange=lib.Exchange("e", delivery_mode=1), routing_key="k"),
        sent(serializer="yaml"),
        sent(compression="zlib")[1],
        sent(exchange=lib.Exchange("e"), auto_declare=False),
    ]


def producers_as_text(lib):
    class Own(lib.Producer):
        pass

    channel = Mock()
    channel.__repr__ = lambda self: "<the channel>"
    return repr(lib.Producer(channel)), repr(Own(channel)), repr(lib.Producer(None))


def reply_queues_by_entity(lib):
    channel = MagicMock()
    channel.connection.client.declared_entities = set()
    producer = lib.Producer(channel)
    producer.publish("x", "k", reply_to=lib.Queue("replies"), correlation_id="c", expiration=1.5)
    producer.publish("x", "k", reply_to="named", headers={"h": [1]}, app_id="a", user_id=None)
    return [(each[0][4], sorted(each[0][5].items())) for each in channel.prepare_message.call_args_list]


def consumers_of_two_queues(lib):
    channel = MagicMock()
    channel.connection.client.declared_entities = set()
    consumer = lib.Consumer(channel, [lib.Queue("a"), lib.Queue("b")], no_ack=True, prefetch_count=7, tag_prefix="t")
    consumer.consume()
    seen = [consumer.consuming_from("a"), consumer.consuming_from(lib.Queue("c")), [q.name for q in consumer.queues]]
    given = [
        {n: v for n, v in each[1].items() if n not in ("callback", "on_cancel")}
        for each in channel.basic_consume.call_args_list
    ]
    tags = [each.pop("consumer_tag")[0] for each in given]
    consumer.cancel_by_queue("a")
    consumer.add_queue(lib.Queue("c"))
    consumer.consume()
    consumer.flow(False)
    consumer.recover(requeue=True)
    consumer.purge()
    consumer.cancel()
    calls = [each[0] for each in channel.method_calls if each[0].startswith(("basic", "flow", "queue_purge"))]
    return seen, given, tags, calls, channel.basic_qos.call_args, consumer._active_tags


def callbacks_of_consumers(lib):
    seen = []
    channel = Mock(message_to_python=None)
    consumer = lib.Consumer(channel, callbacks=[lambda body, message: seen.append(body)], auto_declare=False)
    consumer.register_callback(lambda body, message: seen.append(message.content_type))
    consumer.receive("body", lib.Message("b", content_type="a/b"))
    consumer._receive_callback(lib.Message('{"a": 1}', content_type="application/json", content_encoding="utf-8"))
    taken = lib.Consumer(channel, on_message=seen.append, auto_declare=False)
    taken._receive_callback("no message" and lib.Message("raw"))
    failing = lib.Consumer(channel, accept=["json"], on_decode_error=lambda m, e: seen.append(repr(e)))
    failing._receive_callback(lib.Message("x", content_type="application/x-python-serialize"))
    strict = lib.Consumer(channel, accept=["json"])
    seen.append(outcome(strict._receive_callback, lib.Message("x", content_type="application/x-yaml")))
    seen[3] = type(seen[3]).__name__ if not isinstance(seen[3], str) else seen[3]
    return [each if isinstance(each, (str, dict)) else type(each).__name__ for each in seen]


def consumers_as_text(lib):
    class Own(lib.Consumer):
        pass

    return repr(lib.Consumer(None)), repr(Own(None, [lib.Queue("q")])), lib.Consumer(None).accept


# --- helpers around them


def loops_over_a_mock(lib):
    common = of(lib, "common")
    connection = Mock()
    connection.drain_events.side_effect = [1, socket.timeout, 3, socket.timeout]
    loop = common.eventloop(connection, limit=None, timeout=2, ignore_timeouts=True)
    seen = [next(loop), next(loop)]
    strict = common.eventloop(Mock(drain_events=Mock(side_effect=socket.timeout)), limit=1, timeout=1)
    return [*seen, outcome(list, strict), connection.drain_events.call_args]


def replies_over_memory(lib):
    common = of(lib, "common")
    connection = lib.Connection("memory://replies")
    channel = connection.default_channel
    queue = lib.Queue(f"replies-{id(connection)}", lib.Exchange("replies"), "r")(channel)
    queue.declare()
    request = Mock(content_type="application/json", content_encoding="utf-8")
    request.properties = {"reply_to": "r", "correlation_id": "c"}
    for number in range(3):
        common.send_reply(lib.Exchange("replies"), request, {"n": number}, lib.Producer(channel))
    unread = list(common.collect_replies(connection, channel, queue, limit=2, timeout=1))
    taken = [
        (body, m.properties["correlation_id"])
        for body, m in common.itermessages(connection, channel, queue, limit=1, timeout=1)
    ]
    return unread, taken


def drained_consumers_over_memory(lib):
    common = of(lib, "common")
    with lib.Connection("memory://drained") as connection:
        queue = lib.Queue(f"drained-{id(connection)}")
        for number in range(3):
            connection.Producer().publish(number, routing_key=queue.name, declare=[queue])
        extra = []
        consumer = connection.Consumer(queue, no_ack=True)
        drained = common.drain_consumer(
            consumer, limit=3, timeout=1, callbacks=[lambda body, message: extra.append(body)]
        )
        return [body for body, _ in drained], extra


def insured_over_memory(lib):
    common = of(lib, "common")
    pool = lib.Connection("memory://").Pool(1)
    fun = Mock(side_effect=lambda *a, connection, channel, **k: (a, k, channel is connection.default_channel))
    fun.__name__ = "fun"
    seen = [common.insured(pool, fun, (1,), {"b": 2}, max_retries=1)]
    return [*seen, len(pool._dirty), fun.call_count]


def simple_queues_over_memory(lib):
    with lib.Connection("memory://simple") as connection:
        queue = connection.SimpleQueue(f"simple-{id(connection)}", serializer="json", compression="zlib")
        for number in range(3):
            queue.put({"n": number}, headers={"h": number})
        seen = [queue.qsize(), len(queue), bool(queue)]
        first = queue.get(block=True, timeout=3)
        seen += [first.payload, first.headers["h"], first.content_type]
        first.ack()
        seen += [queue.get_nowait().payload, queue.clear() >= 0, outcome(queue.get, block=False)]
        queue.close()
        buffer = connection.SimpleBuffer(f"buffer-{id(connection)}")
        facts = (buffer.no_ack, buffer.queue.durable, buffer.queue.exclusive, buffer.queue.exchange.delivery_mode)
        buffer.close()
        return [*seen, facts]


def simple_queues_of_entities(lib):
    channel = MagicMock()
    channel.connection.client.declared_entities = set()
    simple = of(lib, "simple")
    own = simple.SimpleQueue(channel, lib.Queue("q", lib.Exchange("e", "topic"), "k"))
    named = simple.SimpleQueue(
        channel, "n", no_ack=True, queue_opts={"max_length": 3}, queue_args={"x": 1}, exchange_opts={"type": "fanout"}
    )
    queue = named.queue
    own.put("x", routing_key="r")
    own.get_nowait() if channel.basic_get.return_value else None
    return [
        (own.queue.name, own.queue.exchange.name, own.producer.routing_key, own.no_ack),
        (queue.name, queue.exchange.type, queue.max_length, queue.queue_arguments, named.no_ack, queue.routing_key),
        channel.basic_publish.call_args[1]["routing_key"],
        type(own.buffer) is deque,
    ]


def legacy_consumers(lib):
    compat = of(lib, "compat")
    connection = MagicMock()
    consumer = compat.Consumer(
        connection, queue="q", exchange="e", routing_key="k", exchange_type="topic", durable=False
    )
    queue = consumer.queues[0]
    seen = [
        consumer.queue,
        consumer.exchange,
        queue.routing_key,
        queue.exchange.type,
        queue.durable,
        consumer.auto_delete,
    ]
    consumer.channel.connection.client.drain_events.side_effect = iter(range(9))
    seen += [list(consumer.iterconsume(limit=2)), consumer.wait(limit=2)]
    consumer.close()
    return [*seen, consumer._closed, consumer.backend.close.called, outcome(consumer.discard_all, len)]


def legacy_publishers(lib):
    compat = of(lib, "compat")
    channel = MagicMock()
    channel.connection.client.declared_entities = set()
    publisher = compat.Publisher(channel, exchange="e", routing_key="k", exchange_type="fanout", auto_delete=True)
    sent = publisher.send("x") is channel.basic_publish.return_value
    facts = (publisher.exchange.name, publisher.exchange.type, publisher.exchange.auto_delete, publisher.routing_key)
    with publisher as entered:
        same = entered is publisher
    return (
        sent,
        facts,
        same,
        publisher._closed,
        publisher.backend is channel,
        channel.basic_publish.call_args[1]["routing_key"],
    )


def legacy_sets_of_consumers(lib):
    compat = of(lib, "compat")
    connection = MagicMock()
    made = compat.ConsumerSet(connection, from_dict={"a": {"exchange": "e", "routing_key": "k"}, "b": {}})
    other = compat.ConsumerSet(connection, consumers=[made], channel=channel if (channel := MagicMock()) else None)
    other.add_consumer_from_dict("c", exchange="x")
    other.add_consumer(lib.Consumer(None, [lib.Queue("d")]))
    seen = [sorted(q.name for q in each.queues) for each in (made, other)]
    made.close()
    other.close()
    other.revive(replaced := MagicMock())
    return [*seen, made.backend.close.called, channel.close.called, other.backend is replaced, made._provided_channel]


def workers_of_a_mixin(lib):
    mixins = of(lib, "mixins")
    seen = []

    class Worker(mixins.ConsumerMixin):
        def __init__(self, connection):
            self.connection = connection

        def get_consumers(self, Consumer, channel):
            return [Consumer([lib.Queue(name)], callbacks=[self.handle], accept=["json"])]

        def handle(self, body, message):
            seen.append(body)
            message.ack()
            self.should_stop = body == 2

        def on_consume_ready(self, connection, channel, consumers, **kwargs):
            seen.append(("ready", len(consumers), kwargs))

        def on_consume_end(self, connection, channel):
            seen.append("end")

        def on_iteration(self):
            seen.append("turn")

        def on_connection_revived(self):
            seen.append("revived")

    with lib.Connection("memory://mixin") as connection:
        name = f"mixin-{id(connection)}"
        for number in range(3):
            connection.Producer().publish(number, routing_key=name, declare=[lib.Queue(name)])
        Worker(connection).run(extra=1)
    return seen


def producers_of_a_mixin(lib):
    class Worker(of(lib, "mixins").ConsumerProducerMixin):
        connection = lib.Connection("memory://mixin")

    worker = Worker()
    producer = worker.producer
    link = worker.producer_connection
    seen = [type(producer).__name__, producer.connection is link, link is worker.connection, bool(link.connected)]
    worker.on_consume_end(None, None)
    return [*seen, worker._producer_connection, bool(link.connected), worker.restart_limit.capacity]


def mailboxes_over_memory(lib):
    pidbox = of(lib, "pidbox")
    with lib.Connection("memory://mailbox") as connection:
        box = pidbox.Mailbox(f"box{id(connection)}", type="fanout")(connection)
        node = box.Node("host", state={"n": 1}, channel=connection.channel())

        @node.handler
        def add(state, by=0):
            state["n"] += by
            return state["n"]

        consumer = node.listen()
        box.cast(["host"], "add", {"by": 2})
        connection.drain_events(timeout=2)
        box.abcast("add", {"by": 3})
        connection.drain_events(timeout=2)
        box.cast(["other"], "add", {"by": 100})
        connection.drain_events(timeout=2)
        seen = [node.dispatch("add", {"by": 4}), node.dispatch("nothing")]
        consumer.cancel()
        return node.state, seen, sorted(node.handlers)


def queues_of_mailboxes(lib):
    pidbox = of(lib, "pidbox")
    box = pidbox.Mailbox("box", queue_expires=5, queue_ttl=6, reply_queue_ttl=7)
    queue, replies = box.get_queue("host"), box.get_reply_queue()
    names = ("durable", "exclusive", "auto_delete", "expires", "message_ttl")
    seen = [[getattr(each, name) for name in names] for each in (queue, replies)]
    exchanges = [
        (each.name, each.type, each.durable, each.delivery_mode) for each in (box.exchange, box.reply_exchange)
    ]
    other = box(Mock())
    return queue.name, seen, exchanges, replies.routing_key == box.oid, other.connection is not None, box.accept


# --- clocks, matchers, serializers, compression


def clocks_that_are_sorted(lib):
    clocks = of(lib, "clocks")
    clock = clocks.LamportClock(3)
    seen = [clock.forward(), clock.adjust(10), clock.adjust(2), str(clock), repr(clock), clock.value]
    events = [clocks.timetuple(1, 5.0, "b", "x"), clocks.timetuple(1, 4.0, "a"), clocks.timetuple(None, 1.0, "c")]
    seen += [sorted(events)[0].id, events[0] > events[1], events[0] <= events[1], events[0].clock, events[1].obj]
    return [*seen, repr(events[0]), pickle.loads(pickle.dumps(events[0])), clock.sort_heap([(1, "b"), (2, "a")])]


def matchers_of_text_and_bytes(lib):
    matcher = of(lib, "matcher")
    seen = [
        bool(matcher.match(*each))
        for each in [
            ("host.a", "host.*"),
            (b"host.a", "host.*"),
            ("host.a", b"host.*"),
            ("other", "host.*"),
            ("host", "h.st", "pcre"),
            (b"host", b"^x", "pcre"),
        ]
    ]
    registry = matcher.MatcherRegistry()
    registry.register("own", lambda data, pattern, extra=None: (data, pattern, extra))
    seen.append(registry.match("d", b"p", "own", {"extra": 1}))
    registry.unregister("own")
    return [*seen, outcome(registry.match, "a", "b", "own"), registry._matchers]


def serializers_that_are_registered(lib):
    serialization = of(lib, "serialization")
    registry = serialization.SerializerRegistry()
    registry.register("up", str.upper, str.lower, "a/up")
    registry.register("out", repr, None, "a/out", "us-ascii")
    registry.register("in", None, len, "a/in")
    seen = [registry.dumps("x", "up"), registry.dumps(3, "out"), outcome(registry.dumps, 3, "in")]
    seen += [
        registry.loads("X", "a/up", "utf-8"),
        registry.loads("XX", "a/in", "utf-8"),
        registry.loads("1", "a/out", None),
    ]
    registry.disable("up")
    seen += [outcome(registry.loads, "X", "a/up", "utf-8"), registry.loads("X", "a/up", "utf-8", force=True)]
    seen.append(registry.loads("X", "a/up", "utf-8", accept={"a/up"}))
    registry.enable("a/up")
    return [*seen, registry.loads("X", "a/up", "utf-8"), registry.type_to_name, registry.name_to_type]


def bodies_that_are_plain(lib):
    registry = of(lib, "serialization").registry
    seen = [registry.dumps(each) for each in ("ü", b"\xff", {"a": 1}, None, 3, [1], "")]
    seen += [registry.dumps(each, "raw") for each in ("ü", b"\xff")]
    pairs = [
        ("text/plain", "utf-8"),
        ("application/data", "binary"),
        (None, None),
        ("a/b", "latin-1"),
        ("a/b", "BINARY"),
    ]
    return (
        seen,
        [registry.loads(b"\xc3\xbc", *each) for each in pairs],
        registry.loads(b"", "application/json", "utf-8"),
    )


def accepted_content(lib):
    accept = of(lib, "serialization").prepare_accept_content
    return [
        accept(None),
        accept([]),
        accept(["json", "a/b"]),
        accept({"pickle"}),
        accept(["n"], {"n": "a/n"}),
        accept(("yaml", "msgpack")),
    ]


def insecure_serializers(lib):
    serialization = of(lib, "serialization")
    registry, before = serialization.registry, set(serialization.registry._disabled_content_types)
    try:
        serialization.enable_insecure_serializers()
        seen = [sorted(registry._disabled_content_types)]
        serialization.disable_insecure_serializers(["json", "yaml"])
        seen.append(sorted(registry._disabled_content_types))
        serialization.enable_insecure_serializers(["pickle", "nothing", "a/b"])
        seen.append(sorted(registry._disabled_content_types))
        serialization.disable_insecure_serializers(None)
        seen += ["application/json" in registry._disabled_content_types]
        seen.append(outcome(serialization.disable_insecure_serializers, ["nothing"]))
    finally:
        registry._disabled_content_types.clear()
        registry._disabled_content_types.update(before)
    return seen


def typed_json(lib):
    json = of(lib, "utils.json")
    zone = timezone(timedelta(hours=2))
    values = [
        datetime(2024, 1, 2, 3, 4, 5, 6),
        datetime(2024, 1, 2, tzinfo=zone),
        date(2024, 1, 2),
        time(1, 2, 3, 4),
        Decimal("1.10"),
        UUID(int=5),
        b"text",
        b"\xff\x00",
        {"nested": [date(2024, 1, 2), {"d": Decimal(1)}]},
        (1, 2),
        float("inf"),
        {1: 2, None: 3, False: 4},
        "\u2028ü\x00",
    ]
    return [json.dumps(each) for each in values], [json.loads(json.dumps(each)) for each in values]


def methods_of_compression(lib):
    compression = of(lib, "compression")
    known = ("application/x-gzip", "application/x-bz2", "application/x-lzma")
    seen = [each in compression.encoders() for each in known]
    compression.register(lambda body: body[::-1], lambda body: body[::-1], "a/reversed", aliases=["reversed"])
    try:
        body, kind = compression.compress("text", "reversed")
        encoder, also = compression.get_encoder("a/reversed")
        decoder = compression.get_decoder("reversed")
        return [*seen, body, kind, also, encoder(b"ab"), compression.decompress(body, kind), decoder(b"ab")]
    finally:
        for table, name in (("_encoders", kind), ("_decoders", kind), ("_aliases", "reversed")):
            del getattr(compression, table)[name]


# --- utilities


def dictionaries(lib):
    collections = of(lib, "utils.collections")

    class Key:
        def __init__(self, value):
            self.value = value

        def __eqhash__(self):
            return collections.HashedSeq(self.value, "x")

    found = collections.EqualityDict()
    found[Key(1)] = "one"
    found["plain"] = 2
    seq = collections.HashedSeq(1, 2)
    seen = [
        found[Key(1)],
        found["plain"],
        len(found),
        collections.eqhash(3) == hash(3),
        seq,
        hash(seq) == seq.hashvalue,
    ]
    del found[Key(1)]
    return [*seen, len(found), seq == [1, 2], hash(seq) == hash((1, 2))]


def least_recently_used(lib):
    cache = of(lib, "utils.functional").LRUCache(limit=2)
    cache["a"], cache["b"] = 1, 2
    cache["a"]
    cache["c"] = 3
    seen = [list(cache), list(cache.keys()), list(cache.values()), list(cache.items()), "b" in cache, len(cache)]
    cache.update(d=4, e=5)
    cache["n"] = "1"
    seen += [
        list(cache),
        cache.incr("n", 4),
        cache["n"],
        cache.popitem(last=False),
        list(pickle.loads(pickle.dumps(cache))),
    ]
    return [*seen, cache.get("nothing", 7), cache.pop("n"), cache.limit]


def lists_that_may_be(lib):
    functional = of(lib, "utils.functional")
    values = [None, 1, "a", [1], (1,), {1: 2}, {1}, iter([1]), b"b"]
    seen = [functional.is_list(each) for each in values], [functional.maybe_list(each) for each in values[:7]]
    return (
        *seen,
        functional.dictfilter({"a": 1, "b": None}, c=None, e=2),
        functional.dictfilter(a=None),
        functional.maybe_list("a", scalars=None),
    )


def urls_taken_apart(lib):
    url = of(lib, "utils.url")
    given = [
        "amqp://u:p%40x@host:5/v%2Fh?a=1&ssl_cert_reqs=required&ssl_ca_certs=%2Fx",
        "redis://:p@h/0",
        "sqla+sqlite:///x.db",
        "memory://",
        "amqp://[::1]:5//",
        "SQS://key:sec%2Fret@",
        "http://u@h/p?b=2&c=",
    ]
    return [url.parse_url(each) for each in given], [url.url_to_parts(each) for each in given]


def urls_put_together(lib):
    url = of(lib, "utils.url")
    parts = [
        ("amqp", "h", 5, "u", "p@", "v"),
        ("amqp", None, None, None, None, None),
        ("amqp", "h", None, None, "p", "/v"),
        ("x", "h", None, "u", None, "a b"),
        ("x", "h", None, None, None, "%2Fv"),
    ]
    seen = [url.as_url(*each) for each in parts] + [url.as_url(*each, sanitize=True) for each in parts]
    shown = [url.sanitize_url("amqp://u:p@h:5/v"), url.maybe_sanitize_url("plain"), url.maybe_sanitize_url(3)]
    return seen, shown, url.safequote("a/b@c"), url.as_url("a", "h", password="p", sanitize=True, mask=None)


def versions(lib):
    text = of(lib, "utils.text")
    seen = [
        tuple(text.version_string_as_tuple(each))
        for each in ("3", "3.2", "3.2.1", "3.2.1rc1", "3.3.1.a3.40", "3.0.0a1-4")
    ]
    near = [text.fmatch_best(*each) for each in (("redis", ["rediss", "amqp"]), ("zzz", ["a"]), ("", []))]
    return (
        seen,
        near,
        list(text.fmatch_iter("abc", ["abx", "xyz", "abc"])),
        [text.escape_regex(e, ".") for e in ("a.b*", "\0ü")],
    )


def text_and_bytes(lib):
    encoding = of(lib, "utils.encoding")

    class Broken:
        def __repr__(self):
            raise ValueError("no repr")

        __str__ = lambda self: "shown"  # noqa: E731

    names = ("str_to_bytes", "bytes_to_str", "ensure_bytes", "from_utf8", "default_encode", "safe_str", "safe_repr")
    values = ["ü", b"\xc3\xbc", b"\xff", 3, None, ["ü"]]
    return [[getattr(encoding, name)(each) for each in values] for name in names], encoding.safe_repr(Broken())


def files_and_descriptors(lib):
    compat = of(lib, "utils.compat")
    values = [3, None, BytesIO(), StringIO(), Mock(fileno=lambda: 8), object()]
    seen = [(outcome(compat.fileno, each), compat.maybe_fileno(each)) for each in values]
    managers = [MagicMock() for _ in range(2)]
    managers[0].__exit__.return_value = True
    with compat.nested(*managers) as entered:
        raise KeyError
    return (
        seen,
        [each is m.__enter__.return_value for each, m in zip(entered, managers, strict=True)],
        managers[1].__exit__.called,
    )


def coroutines(lib):
    @of(lib, "utils.compat").coro
    def adding():
        total = 0
        while True:
            total += yield total

    sums = adding()
    return [sums.send(each) for each in (1, 2, 3)], of(lib, "utils.compat").detect_environment()


def dumps_of_state(lib):
    div = of(lib, "utils.div")
    opened, stderr = BytesIO(), StringIO()
    opened.close = lambda: None
    path = div.emergency_dump_state([1, {"a": 2}], open_file=lambda path, mode: opened, stderr=stderr)
    opened.seek(0)
    text = StringIO()
    text.close = lambda: None
    div.emergency_dump_state(
        {"x": 1}, open_file=lambda *a: text, dump=Mock(side_effect=TypeError("no")), stderr=StringIO()
    )
    return pickle.load(opened), path in stderr.getvalue(), text.getvalue()


def symbols(lib):
    symbol = of(lib, "utils.imports").symbol_by_name
    return [
        symbol("os.path:join").__name__,
        symbol("os.path.join").__name__,
        symbol("short", {"short": "collections:deque"}) is deque,
        symbol(deque) is deque,
        symbol("nothing.at.all", default="default"),
        symbol("os").__name__,
        outcome(symbol, "os:nothing"),
        outcome(symbol, "nothing.at.all"),
        symbol("x", imp=lambda name, package=None: (name, package), package="p"),
    ]


def token_buckets(lib):
    limits = of(lib, "utils.limits")
    with patch.object(limits, "monotonic") as now:
        now.return_value = 100.0
        bucket = limits.TokenBucket(2, capacity=3)
        seen = [
            bucket.can_consume(2),
            bucket.can_consume(2),
            bucket.expected_time(2),
            bucket.fill_rate,
            bucket.capacity,
        ]
        now.return_value = 100.5
        seen += [bucket.can_consume(2), bucket.expected_time(), bucket.timestamp]
    bucket.add("a")
    bucket.add("b")
    seen += [bucket.pop(), list(bucket.contents)]
    bucket.clear_pending()
    return [*seen, len(bucket.contents)]


def cached_values(lib):
    cached = of(lib, "utils.objects").cached_property
    noted = []

    class Thing:
        @cached
        def value(self):
            noted.append("made")
            return 1

        @value.setter
        def value(self, new):
            noted.append(("set", new))
            return new * 2

        @value.deleter
        def value(self, old):
            noted.append(("deleted", old))

    thing = Thing()
    seen = [thing.value, thing.value]
    thing.value = 4
    seen.append(thing.value)
    del thing.value
    seen.append(thing.value)
    return seen, noted, isinstance(Thing.value, cached), vars(thing)


def turns_of_resources(lib):
    scheduling = of(lib, "utils.scheduling")

    def get(resource, callback, **kwargs):
        if not resource:
            raise Empty
        callback(resource)
        return resource.pop(), kwargs

    resources, seen = [[1, 2], [], [3]], []
    cycle = scheduling.FairCycle(get, resources, Empty)
    taken = [outcome(cycle.get, lambda r: seen.append(len(r)), timeout=1) for _ in range(4)]
    ring = scheduling.round_robin_cycle([1, 2, 3])
    orders = [ring.rotate(1), ring.consume(2), ring.rotate(9), list(ring.items)]
    ring.update("ab")
    by_name = [scheduling.cycle_by_name(name).__name__ for name in ("round_robin", "priority", "sorted")]
    return taken, seen, repr(cycle), orders, ring.items, scheduling.sorted_cycle([3, 1, 2]).consume(2), by_name


def identifiers(lib):
    uuid, common = of(lib, "utils.uuid").uuid, of(lib, "common")
    made = uuid()
    return (
        len(made),
        UUID(made).version,
        uuid(lambda: 5),
        common.oid_from(common) == common.oid_from(common, threads=False),
        of(lib, "utils.time").maybe_s_to_ms(1.5),
        of(lib, "utils.time").maybe_s_to_ms(None),
    )


test_both_do_the_same = side_by_side(globals())
