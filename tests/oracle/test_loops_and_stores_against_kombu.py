"""Small programs over kombu's event loop, HTTP parts, virtual channels and Redis classes: both see the same.

Longer than other modules because each program is a case of its own.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from datetime import datetime, timezone
from io import BytesIO
from queue import Empty
from unittest.mock import MagicMock, Mock, call, patch

from tests.oracle.side_by_side import of, outcome, side_by_side

# --- the event loop


def hubs_with_pipes(lib):
    module = of(lib, "asynchronous.hub")
    hub, seen = module.Hub(), []
    reading, writing = os.pipe()
    try:
        hub.add_reader(reading, lambda *args: seen.append((os.read(reading, 10), args)), 1, 2)
        hub.call_soon(os.write, writing, b"x")
        loop = hub.create_loop()
        while not seen:
            next(loop)
        facts = [reading in hub.readers, bool(hub.writers), repr(hub.readers[reading][1])]
        hub.remove_reader(reading)
        facts.append(reading in hub.readers)
        hub.add_writer(writing, seen.append, "writable")
        while len(seen) < 2:
            next(loop)
        hub.remove_writer(writing)
        return seen, facts, bool(hub.writers)
    finally:
        hub.close()
        os.close(reading)
        os.close(writing)


def hubs_that_are_stopped(lib):
    module = of(lib, "asynchronous.hub")
    hub = module.Hub()
    seen = []
    hub.on_tick.add(lambda: seen.append("tick"))
    hub.on_close.add(lambda given: seen.append(given is hub))
    hub.call_soon(hub.stop)
    hub.run_forever()
    hub.close()
    return seen[-1], "tick" in seen, module.Stop.__mro__[1].__name__


def delayed_calls_of_hubs(lib):
    hub = of(lib, "asynchronous.hub").Hub(timer=Mock())
    timer = hub.timer
    later, repeated, at = hub.call_later(3, print, 1), hub.call_repeatedly(4, print, 2), hub.call_at(5, print, 3)
    same = [
        later is timer.call_after.return_value,
        repeated is timer.call_repeatedly.return_value,
        at is timer.call_at.return_value,
    ]
    return same, timer.mock_calls


def loops_of_the_process(lib):
    module = of(lib, "asynchronous")
    before = module.get_event_loop()
    hub = module.Hub()
    seen = [module.set_event_loop(hub) is hub, module.get_event_loop() is hub]
    module.set_event_loop(before)
    return [*seen, module.get_event_loop() is before, module.READ, module.WRITE, module.ERR]


def hubs_as_text(lib):
    debug = of(lib, "asynchronous.debug")
    hub = Mock(readers={3: (print, ()), 5: (len, (1, 2))}, writers={4: print}, consolidate=set())
    seen = [debug.repr_flag(flag) for flag in (0, 1, 4, 5, 0x1F)]
    seen += [
        debug.repr_readers(hub),
        debug.repr_writers(hub),
        debug.repr_active(hub),
        debug.repr_events(hub, [(3, 1), (9, 4)]),
    ]
    seen += [debug.callback_for(hub, 3, 1)[0] is print, debug.callback_for(hub, 7, 1, "default")]
    return [*seen, outcome(debug.callback_for, hub, 7, 1)]


def timers_by_hand(lib):
    module = of(lib, "asynchronous.timer")
    timer, called = module.Timer(), []
    with patch.object(module, "monotonic", return_value=100.0):
        late = timer.call_after(10, called.append, (1,))
        timer.call_after(5, called.append, (2,), priority=3)
        seen = [len(timer), [round(each[0]) for each in timer.queue], [each.entry.args for each in timer.queue]]
        late.cancel()
        seen += [late.canceled, late.cancelled]
        delay, entry = next(iter(timer))
        seen += [delay is not None, entry]
    with patch.object(module, "monotonic", return_value=106.0):
        for _, entry in timer:
            if entry is None:
                break
            timer.apply_entry(entry)
    timer.clear()
    return seen, called, len(timer)


def entries_of_timers(lib):
    module = of(lib, "asynchronous.timer")
    one, two = module.Entry(print, (1,), {"a": 2}), module.Entry(print)
    seen = [
        one.args,
        one.kwargs,
        one.canceled,
        one.tref is None or True,
        one == one,
        one == two,
        hash(one) == hash(one),
    ]
    one.cancel()
    return [*seen, one.canceled, one.cancelled, isinstance(repr(two), str)]


def repeated_calls(lib):
    module = of(lib, "asynchronous.timer")
    timer = module.Timer()
    fun = Mock(__name__="fun")
    entry = timer.call_repeatedly(3600, fun, (1,), {"a": 2})
    seen = [len(timer.queue)]
    entry()
    seen += [fun.mock_calls, len(timer.queue)]
    timer.cancel(entry)
    entry()
    timer.stop()
    return [*seen, fun.call_count, entry.cancelled, len(timer.queue)]


def times_of_timers(lib):
    to_timestamp = of(lib, "asynchronous.timer").to_timestamp
    aware = datetime(2024, 1, 1, tzinfo=timezone.utc)
    seen = [
        to_timestamp(17.5),
        round(to_timestamp(aware, time=lambda: 0) - to_timestamp(datetime(2024, 1, 1), time=lambda: 0)),
    ]
    return seen, of(lib, "asynchronous.timer").EPOCH.year, of(lib, "asynchronous.timer").DEFAULT_MAX_INTERVAL == 2


def semaphores(lib):
    module = of(lib, "asynchronous.semaphore")
    semaphore, got = module.LaxBoundedSemaphore(2), []
    seen = [semaphore.acquire(got.append, number) for number in range(4)]
    seen += [semaphore.value, list(got), len(semaphore._waiting)]
    semaphore.release()
    seen += [list(got), semaphore.value]
    semaphore.shrink(1)
    seen += [semaphore.initial_value, semaphore.value]
    semaphore.clear()
    with module.DummyLock() as lock:
        seen.append(type(lock).__name__ if lock is not None else None)
    return [*seen, semaphore.value, repr(semaphore).split(" ")[0][:22]]


def http_requests(lib):
    http = of(lib, "asynchronous.http.base")
    request = http.Request("http://x", method="POST", headers={"a": "b"}, body="text", connect_timeout=3)
    response = http.Response(request, 200, http.Headers(a=1), BytesIO(b"body"), "http://y")
    failed = http.Response(request, 404)
    seen = [
        request.method,
        request.headers,
        request.body,
        request.follow_redirects,
        request.connect_timeout,
        repr(request),
    ]
    seen += [response.content, response.body, response.status_code, response.status, response.effective_url]
    seen += [response.error, response.raise_for_error(), failed.status, failed.effective_url, failed.body]
    return [*seen, str(failed.error), outcome(failed.raise_for_error), http.normalize_header("content-type")]


def http_clients(lib):
    http = of(lib, "asynchronous.http.base")
    hub = of(lib, "asynchronous.hub").Hub()
    client, headers = http.BaseClient(hub), http.Headers()
    for line in ("HTTP/1.1 200 OK", b"content-type: a/b", " folded", "X: 1", ""):
        client.on_header(headers, line)
    seen = [headers, headers.complete, outcome(client.perform, "http://x"), client._on_hub_close in hub.on_close]
    client.add_request = Mock()
    client.perform(["http://a", http.Request("http://b")], method="PUT")
    seen += [(each[0][0].url, each[0][0].method) for each in client.add_request.call_args_list]
    client.close = Mock()
    hub.close()
    return [*seen, client.close.called, len(hub.on_close)]


# --- virtual channels


def a_store(library, **attributes):
    """A channel over lists."""
    virtual = of(library, "transport.virtual")

    class Channel(virtual.Channel):
        lists = {}

        def _put(self, queue, message, **kwargs):
            self.lists.setdefault(queue, []).append(message)

        def _get(self, queue, timeout=None):
            if not self.lists.get(queue):
                raise Empty
            return self.lists[queue].pop(0)

        def _size(self, queue):
            return len(self.lists.get(queue, ()))

        def _purge(self, queue):
            return len(self.lists.pop(queue, ()))

    for name, value in attributes.items():
        setattr(Channel, name, value)
    transport = type("Transport", (virtual.Transport,), {"Channel": Channel, "polling_interval": 0.001})
    return library.Connection(transport=transport)


def envelopes(lib):
    channel = a_store(lib).channel()
    message = channel.prepare_message("body", 3, "a/b", "utf-8", {"h": 1}, {"x": 1})
    channel.basic_publish(message, "", "q")
    stored = channel._get("q")
    properties = dict(stored["properties"])
    tag = properties.pop("delivery_tag")
    again = channel.message_to_python(stored)
    return (
        stored["body"],
        properties,
        len(tag),
        stored["headers"],
        again.body,
        again.delivery_tag == tag,
        channel.message_to_python(again) is again,
    )


def tables_of_exchanges(lib):
    channel = a_store(lib).channel()
    channel.exchange_declare("t", "topic", durable=True, arguments={"a": 1})
    channel.exchange_declare("d")
    for queue, exchange, key in (("q", "t", "a.*"), ("r", "t", "#"), ("q", "d", "k")):
        channel.queue_declare(queue)
        channel.queue_bind(queue, exchange, key)
    seen = [
        channel.get_table("t"),
        sorted(channel.list_bindings()),
        sorted(channel.get_exchanges()),
        channel.state.exchanges["t"]["type"],
    ]
    seen += [sorted(channel._lookup("t", key)) for key in ("a.b", "a.b.c", "x")]
    seen += [
        sorted(channel._lookup("d", "k")),
        list(channel._lookup("", "direct")),
        list(channel._lookup("d", "nothing")),
    ]
    channel.queue_unbind("q", "t", "a.*")
    seen += [channel.get_table("t"), channel.typeof("t").type, channel.typeof("unknown").type]
    return seen


def states_of_brokers(lib):
    module = of(lib, "transport.virtual")
    state = module.BrokerState()
    state.binding_declare("q", "e", "k", {"a": 1})
    state.binding_declare("q", "e", "l", None)
    seen = [state.has_binding("q", "e", "k"), sorted(state.queue_bindings("q")), len(state.bindings)]
    state.binding_delete("q", "e", "k")
    state.binding_delete("q", "e", "k")
    seen += [list(state.queue_bindings("q")), dict(state.queue_index)]
    state.queue_bindings_delete("q")
    state.queue_bindings_delete("q")
    seen.append(len(state.bindings))
    state.clear()
    return [*seen, module.binding_key_t("q", "e", "k")._asdict(), module.queue_binding_t._fields]


def qualities_of_service(lib):
    module = of(lib, "transport.virtual")
    channel = a_store(lib).channel()
    channel._restore = Mock()
    qos = module.QoS(channel, prefetch_count=2)
    qos._on_collect.cancel()
    seen = [qos.can_consume(), qos.can_consume_max_estimate(), module.QoS(channel).can_consume_max_estimate()]
    for tag in "abc":
        qos.append(f"m{tag}", tag)
    seen += [qos.can_consume(), qos.can_consume_max_estimate(), qos.get("a"), isinstance(qos._delivered, OrderedDict)]
    qos.ack("a")
    seen += [len(qos._dirty), qos.can_consume()]
    qos.reject("b", requeue=True)
    qos.reject("c")
    seen += [channel._restore.mock_calls, qos.can_consume(), qos.restore_unacked(), len(qos._delivered)]
    return [*seen, qos.restore_at_shutdown, qos.restore_visible()]


def restored_once(lib):
    module = of(lib, "transport.virtual")
    channel = a_store(lib).channel()
    channel._restore = Mock(side_effect=[None, KeyError("no")])
    qos = module.QoS(channel)
    qos.append(Mock(serializable=lambda: {"a": 1}), "a")
    qos.append(Mock(serializable=lambda: {"b": 1}), "b")
    stderr = Mock()
    with patch.object(of(lib, "transport.virtual.base"), "emergency_dump_state") as dump:
        qos.restore_unacked_once(stderr=stderr)
        qos.restore_unacked_once(stderr=stderr)
    return (
        len(dump.mock_calls),
        dump.call_args[1] == {"stderr": stderr},
        qos._delivered.restored,
        channel._restore.call_count,
    )


def priorities_of_messages(lib):
    channel = a_store(lib).channel()
    given = [{"properties": {"priority": each}} for each in (None, 3, "4", -5, 50, "x")] + [{"properties": {}}, {}]
    seen = [channel._get_message_priority(each) for each in given]
    return seen, [channel._get_message_priority(each, reverse=True) for each in given]


def dead_letters_by_option(lib):
    connection = a_store(lib)
    connection.transport_options["deadletter_queue"] = "dead"
    channel = connection.channel()
    module = of(lib, "transport.virtual")
    channel.exchange_declare("e", "direct")
    with patch.object(of(lib, "transport.virtual.base").warnings, "warn") as warn:
        found = channel._lookup("e", "nothing")
    warning = warn.call_args[0][0]
    return channel.deadletter_queue, list(found), type(warning) is module.UndeliverableWarning, str(warning)


def bodies_by_codec(lib):
    channel = a_store(lib).channel()
    codec = of(lib, "transport.virtual").Base64()
    seen = [channel.encode_body("ü", "base64"), channel.decode_body("w7w=", "base64"), channel.encode_body("a", None)]
    return [*seen, channel.encode_body("a", "UTF-8"), codec.encode("a"), codec.decode("YQ=="), channel.body_encoding]


def channels_that_are_closed(lib):
    connection = a_store(lib)
    channel = connection.channel()
    number = channel.channel_id
    channel.basic_consume("q", False, Mock(), "tag")
    seen = [list(channel._consumers), channel._active_queues, channel._tag_to_queue]
    with channel as entered:
        seen.append(entered is channel)
    transport = connection.transport
    return [*seen, channel.closed, list(channel._consumers), channel.connection, number in transport._used_channel_ids]


def drained_stores(lib):
    connection = a_store(lib)
    channel, got = connection.channel(), []
    for number in range(3):
        channel.basic_publish(channel.prepare_message(str(number)), "", "drained")
    channel.basic_qos(0, 2, False)
    channel.basic_consume("drained", False, lambda message: got.append(message.body), "tag")
    for _ in range(2):
        connection.drain_events(timeout=2)
    seen = [list(got), channel.qos.can_consume(), outcome(connection.drain_events, timeout=0.01)]
    channel.basic_ack(next(iter(channel.qos._delivered)))
    connection.drain_events(timeout=2)
    channel.basic_cancel("tag")
    return [*seen, got, channel._size("drained"), channel.basic_get("drained")]


def transports_of_virtual_channels(lib):
    connection = a_store(lib)
    transport = connection.transport
    link = transport.establish_connection()
    seen = [
        link is transport,
        len(transport._avail_channels),
        transport.default_connection_params,
        transport.polling_interval,
    ]
    channel = transport.create_channel(link)
    seen += [len(transport.channels), channel.connection is transport, transport.verify_connection(link)]
    transport.close_channel(channel)
    return [*seen, channel.connection, len(transport.channels), transport.driver_type, sorted(transport.implements)]


def exchange_types(lib):
    module = of(lib, "transport.virtual.exchange")
    channel = Mock(deadletter_queue=None, supports_fanout=True)
    channel._lookup.return_value = ["a", "b"]
    seen = []
    for cls in (module.DirectExchange, module.TopicExchange, module.FanoutExchange):
        kind = cls(channel)
        kind.deliver({"properties": {"delivery_info": {}}}, "e", "k", x=1)
        seen += [
            kind.type,
            kind.prepare_bind("q", "e", "a.*", None),
            [each[0][0] for each in channel._put.call_args_list],
        ]
        channel._put.reset_mock()
    topic = module.TopicExchange(channel)
    patterns = [topic.key_to_pattern(key) for key in ("a.*", "#", "a.#.b", "x-y")]
    same = module.ExchangeType(channel).equivalent(
        {"type": "d", "durable": 1, "auto_delete": 0, "arguments": None}, "e", "d", 1, 0, {}
    )
    return seen, patterns, same, channel._put_fanout.call_args[0][0], sorted(module.STANDARD_EXCHANGE_TYPES)


def memory_channels(lib):
    memory = of(lib, "transport.memory")
    channel = lib.Connection(transport=memory.Transport).channel()
    name = f"memory-{id(channel)}"
    seen = [channel._has_queue(name), channel._size(name + "x")]
    channel._new_queue(name)
    channel._put(name, {"a": 1})
    seen += [channel._has_queue(name), channel._size(name), channel._get(name), outcome(channel._get, name)]
    channel._put(name, 1)
    seen += [
        channel._purge(name),
        channel._queue_for(name) is channel.queues[name],
        channel.do_restore,
        channel.supports_fanout,
    ]
    channel._delete(name)
    return [*seen, name in channel.queues, channel.after_reply_message_received(name), memory.Transport.driver_name]


def arguments_for_rabbitmq(lib):
    base = of(lib, "transport.base")
    convert = base.to_rabbitmq_queue_arguments
    given = {"x-other": 1}
    seen = [convert(given, expires=1.5, message_ttl=0.5, max_length="3", max_length_bytes=4, max_priority=None)]
    seen += [convert(given) is given, convert({}, max_priority="7"), sorted(base.RABBITMQ_QUEUE_ARGUMENTS)]
    able = base.Transport.implements.extend(heartbeats=True, own=1)
    return [*seen, able.heartbeats, able["own"], able.asynchronous, sorted(able.exchange_type), able.batch_publish]


def readers_of_transports(lib):
    base = of(lib, "transport.base")
    transport, link, loop = base.Transport(Mock()), Mock(connected=True), Mock()
    link.drain_events.side_effect = [None, OSError(), TimeoutError()]
    read = transport._make_reader(link)
    read(loop)
    seen = [loop.call_soon.call_args[0][1] is loop, outcome(read, loop), outcome(read, loop)]
    link.connected = False
    seen.append(outcome(read, loop))
    transport._make_reader = Mock()
    transport.on_readable(link, loop)
    transport.on_readable(link, loop)
    made = transport._make_reader
    return [
        *seen,
        made.call_count,
        made.return_value.mock_calls == [call(loop)] * 2,
        transport.manager is transport.manager,
    ]


# --- Redis


def a_redis(library, **members):
    """A connection to subclasses of kombu's Redis classes, with a client that answers nothing."""
    redis = of(library, "transport.redis")
    client = MagicMock(name="client")
    client.pipeline.return_value.__enter__.return_value = client
    client.connection_pool.make_connection.return_value = Mock()

    class Channel(redis.Channel):
        def _create_client(self, asynchronous=False):
            return client

        def _get_pool(self, asynchronous=False):
            return Mock()

        def _get_response_error(self):
            return KeyError

    for name, value in members.items():
        setattr(Channel, name, value)

    class Transport(redis.Transport):
        connection_errors, channel_errors = (KeyError,), (IndexError,)

        def _get_errors(self):
            return (KeyError,), (IndexError,)

    Transport.Channel = Channel
    return library.Connection(transport=Transport), client


def redis_channels_of_subclasses(lib):
    connection, client = a_redis(lib)
    channel = connection.default_channel
    client.llen.return_value = client
    client.execute.return_value = [3, 0, 1, 0]
    seen = [
        type(channel).__name__,
        channel.client is client,
        channel._size("q"),
        channel._q_for_pri("q", 3),
        channel.priority(5),
    ]
    seen += [
        channel.key_prefix if hasattr(channel, "key_prefix") else None,
        channel.sep,
        channel.ack_emulation,
        channel.unacked_key,
    ]
    channel._put("q", {"properties": {"priority": 4}, "body": "b"})
    seen += [client.lpush.call_args[0][0], client.lpush.call_args[0][1]]
    return seen, connection.connection_errors, connection.channel_errors


def redis_parameters(lib):
    redis = of(lib, "transport.redis")
    seen = []
    for url, options in (
        ("redis://:pw@h:7/3", {"socket_timeout": 5, "max_connections": 4, "client_name": "c"}),
        ("redis+socket:///tmp/s?virtual_host=2", {}),
        ("rediss://h?ssl_cert_reqs=none", {}),
    ):
        with patch.object(redis.Channel, "_create_client"), patch.object(redis.Channel, "_get_pool"):
            connection = lib.Connection(url, transport_options=options)
            channel = connection.default_channel
            found = channel._connparams()
        found.pop("connection_class", None)
        seen.append({name: found[name] for name in sorted(found) if name not in ("ssl", "ssl_cert_reqs", "retry")})
    return seen


def redis_tables(lib):
    connection, client = a_redis(lib)
    channel = connection.default_channel
    client.smembers.return_value = {channel.sep.join(["k", "", "q"]).encode()}
    client.exists.return_value = client
    client.execute.return_value = [0, 1, 0, 0]
    channel.exchange_declare("e", "direct")
    seen = [channel.get_table("e"), sorted(channel._lookup("e", "k"))]
    channel.queue_bind("q", "e", "k")
    seen += [client.sadd.call_args[0], channel._has_queue("q")]
    return seen


def redis_qualities_of_service(lib):
    redis = of(lib, "transport.redis")
    connection, client = a_redis(lib)
    qos = redis.QoS(connection.default_channel)
    qos._on_collect.cancel() if hasattr(qos, "_on_collect") else None
    message = Mock(delivery_info={"exchange": "e", "routing_key": "k"}, _raw={"a": 1})
    qos.append(message, "tag")
    qos.ack("tag")
    return (
        qos.unacked_key,
        qos.visibility_timeout,
        client.hset.call_args and client.hset.call_args[0][:2],
        redis.PRIORITY_STEPS,
    )


def redis_pollers(lib):
    redis = of(lib, "transport.redis")
    poller = redis.MultiChannelPoller()
    poller.poller = Mock()
    channel = Mock()
    poller.add(channel)
    seen = [channel in poller._channels]
    connection = Mock()
    connection.client.connection._sock = Mock(fileno=lambda: 7)
    poller._register(channel, connection.client, "BRPOP")
    seen += [len(poller._fd_to_chan), len(poller._chan_to_sock)]
    poller.discard(channel)
    return [*seen, channel in poller._channels, poller.eventflags]


test_both_do_the_same = side_by_side(globals())
