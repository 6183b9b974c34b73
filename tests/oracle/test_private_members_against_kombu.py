"""Private members that programs and tests of kombu's users read, set, patch and call: the same program, both libraries.

Each program returns what it has seen; a ``lib`` is kombu or kombulite.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from itertools import count
from unittest.mock import Mock, call

import kombu
import pytest

import kombulite


def of(lib, module):
    return importlib.import_module(f"{lib.__name__}.{module}")


def outcome(function, *args, **kwargs):
    """What a function returns, or the name of the error that it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__


def transport_of(lib, **attributes):
    """A transport of a few lines, whose channels note what is called."""
    base = of(lib, "transport.base")
    numbers = count(1)

    class Channel(base.StdChannel):
        def __init__(self, connection):
            self.connection, self.called, self.channel_id = connection, [], next(numbers)
            self.events = {"basic_return": set()}

        def __getattr__(self, name):
            if name.startswith("_") or name == "message_to_python":
                raise AttributeError(name)
            return lambda *args, **kwargs: self.called.append(name)

        def prepare_message(
            self, body, priority=None, content_type=None, content_encoding=None, headers=None, properties=None
        ):
            return body, content_type, content_encoding, headers, properties

        def basic_publish(self, message, exchange, routing_key, **kwargs):
            return message, exchange, routing_key

    class Link:
        connected = True

        def __init__(self, client):
            self.client = client

    class Transport(base.Transport):
        def establish_connection(self):
            return Link(self.client)

        def create_channel(self, connection):
            return Channel(connection)

        def close_connection(self, connection):
            connection.connected = False

    for name, value in attributes.items():
        setattr(Transport, name, value)
    return Transport


def connections_are_taken_apart(lib):
    connection = lib.Connection(transport=transport_of(lib))
    seen = [connection._connection, connection._transport, connection._closed]
    link = connection.connection
    seen += [connection._connection is link, connection._closed]
    connection._default_channel = Mock()
    connection._close()
    seen += [connection._connection, connection._transport, connection._closed, link.connected]
    connection._transport = stand_in = Mock()
    connection._connection = Mock()
    connection._closed = False
    seen += [connection.transport is stand_in, bool(connection.connected)]
    stand_in.verify_connection.return_value = False
    return [*seen, connection.connected]


def connections_call_what_was_patched(lib):
    connection = lib.Connection(transport=transport_of(lib))
    connection._establish_connection = Mock()
    seen = [connection.connection is connection._establish_connection.return_value]
    other = lib.Connection(transport=transport_of(lib))
    other._ensure_connection = Mock()
    other.connect()
    seen.append(other._ensure_connection.mock_calls)
    third = lib.Connection(transport=transport_of(lib))
    third._do_close_self, third._do_close_transport = Mock(), Mock()
    third.collect()
    return [*seen, third._do_close_self.called, third._do_close_transport.called]


def connections_tell_what_they_were_given(lib):
    options = {"max_retries": 1, "interval_start": 2, "connect_retries_timeout": 9}
    connection = lib.Connection("memory://", transport_options=options)
    clone = pickle.loads(pickle.dumps(lib.Connection("memory://", connect_timeout=7)))
    several = lib.Connection("memory://a;memory://b")
    several.maybe_switch_next()
    return [
        connection._extract_failover_opts(),
        dict(connection._info()) == dict(connection.info()),
        {"hostname", "userid", "transport"} <= set(connection._initial_params),
        (clone.connect_timeout, type(clone.connect_timeout)),
        (several._closed, several.hostname),
    ]


def connections_fail_over_after_the_errback(lib):
    def refuse(self):
        raise KeyError(self.client.hostname)

    errors = {"connection_errors": (KeyError,), "recoverable_connection_errors": (KeyError,)}
    transport = transport_of(lib, establish_connection=refuse, **errors)
    of(lib, "transport").TRANSPORT_ALIASES["refusing"] = lambda: transport
    seen = []

    def raising(error, interval):
        seen.append((str(error), connection.hostname))
        raise ZeroDivisionError

    of(lib, "transport").TRANSPORT_ALIASES["refusing"] = transport_path(transport)
    connection = lib.Connection("refusing://a;refusing://b")
    raised = outcome(connection.ensure_connection, errback=raising, max_retries=3)
    return raised, seen, connection.hostname


def transport_path(transport):
    """Give a class a path, as aliases have them. Returns it."""
    name = f"_{id(transport):x}"
    globals()[name] = transport
    return f"{__name__}:{name}"


def pools_have_a_queue(lib):
    pool = lib.Connection(transport=transport_of(lib)).Pool(2)
    seen = [type(pool._resource).__name__, pool._resource.qsize(), len(pool._dirty)]
    one, two = pool.acquire(), pool.acquire()
    seen += [one in pool._dirty, pool._resource.qsize(), outcome(pool.acquire)]
    seen.append(isinstance(one, lib.connection.PooledConnection))
    one.release()
    seen += [pool._resource.queue[-1] is one, pool.acquire() is one, two is not one]
    pool.limit = 4
    seen += [pool._resource.qsize(), [callable(each) for each in pool._resource.queue]]
    pool.force_close_all()
    return [*seen, pool._resource.qsize(), pool._closed]


def pools_are_filled_by_subclasses(lib):
    class Things(of(lib, "resource").Resource):
        def setup(self):
            for _ in range(self.limit):
                self._resource.put_nowait(of(lib, "utils.functional").lazy(self.new))

        def new(self):
            return Mock()

        def prepare(self, resource):
            return resource() if not isinstance(resource, Mock) else resource

    pool = Things(limit=2)
    thing = pool.acquire()
    seen = [isinstance(thing, Mock), pool._resource.qsize()]
    pool.release(thing)
    return [*seen, pool._resource.qsize(), pool._resource.queue[-1] is thing]


def producer_pools_make_producers_late(lib):
    connections = Mock()
    pool = of(lib, "pools").ProducerPool(connections, limit=3)
    seen = [pool._resource.qsize(), callable(pool.new()), connections.acquire.called]
    producer = Mock(_channel=None)
    seen += [pool.prepare(lambda: producer) is producer, producer.revive.mock_calls, connections.acquire.mock_calls]
    pool.Producer = Mock()
    pool.create_producer()
    return [len(seen), *seen[:4], pool.Producer.called, connections.acquire.call_args == call(block=True)]


def producers_are_taken_apart(lib):
    connection = lib.Connection(transport=transport_of(lib))
    producer = lib.Producer(connection)
    promise = of(lib, "utils.functional").ChannelPromise
    headers = {}
    seen = [isinstance(producer._channel, promise), producer.__connection__ is connection]
    seen += [producer.channel is connection.default_channel, producer._channel is producer.channel]
    seen += [producer._prepare({"a": 1}), producer._prepare("text"), producer._prepare(b"x", content_type="a/b")]
    seen += [producer._prepare({"a": 1}, "json", None, None, "zlib", headers)[1:], headers]
    seen += [
        producer._delivery_details(lib.Exchange("e", delivery_mode=1)),
        producer._delivery_details("x", "transient"),
    ]
    empty = lib.Producer(None)
    return [*seen, empty._channel, empty.channel, empty.connection]


def producers_use_a_replaced_ensure(lib):
    connection = lib.Connection(transport=transport_of(lib))
    producer = lib.Producer(connection)
    connection.ensure = Mock()
    producer.publish("x", routing_key="k", retry=True, retry_policy={"max_retries": 4})
    return (
        connection.ensure.call_args[0][0] is producer,
        connection.ensure.call_args[1],
        connection.ensure.return_value.called,
    )


def bodies_reach_channels_as(lib):
    producer = lib.Producer(lib.Connection(transport=transport_of(lib)))
    bodies = [
        ("text", {}),
        (b"bytes", {}),
        ({"a": 1}, {}),
        ([1], {"serializer": "yaml"}),
        ({"a": 1}, {"compression": "zlib"}),
    ]
    return [producer.publish(body, routing_key="k", **options)[0][:4] for body, options in bodies]


def consumers_are_taken_apart(lib):
    channel = lib.Connection(transport=transport_of(lib)).channel()
    consumer = lib.Consumer(channel, [lib.Queue("a"), lib.Queue("b")], tag_prefix="t")
    channel.basic_consume = Mock()
    seen = [consumer._add_tag(lib.Queue("z"), "mine"), dict(consumer._active_tags)]
    consumer._active_tags.clear()
    consumer.consume(no_ack=True)
    seen += [[each[1]["nowait"] for each in channel.basic_consume.call_args_list], consumer._active_queue_no_ack]
    consumer.cancel()
    tag = consumer._basic_consume(consumer.queues[0], consumer_tag="own", no_ack=False, nowait=False)
    asked = {name: value for name, value in channel.basic_consume.call_args[1].items() if name != "callback"}
    asked.pop("on_cancel")
    return [*seen, tag, asked, type(consumer._tags).__name__]


def messages_are_taken_apart(lib):
    body = {"body": '{"a": 1}', "content_type": "application/json", "content_encoding": "utf-8"}
    message = lib.Message(delivery_tag=1, properties={"correlation_id": "c"}, **body)
    seen = [message._decoded_cache, message.payload is message.decode(), message._decoded_cache]
    seen += [message._decode() is message.payload, repr(message).partition("details")[2]]
    message._state = "ACK"
    return [*seen, message.acknowledged]


def entities_are_taken_apart(lib):
    bindings = [lib.binding(lib.Exchange("e"), key) for key in "ba"]
    queue = lib.Queue("q", bindings=bindings)
    options = {"exchange": "e", "alias": "A", "no_declare": True, "no_ack": True, "max_priority": 7, "expires": 3}
    made = lib.Queue.from_dict("q", **options)
    bound = of(lib, "abstract").MaybeChannelBound()(Mock(channel_id=5))
    return [
        isinstance(queue.bindings, set),
        queue.bindings == set(bindings),
        queue.as_dict()["bindings"] == list(queue.bindings),
        copy.deepcopy(queue) == queue,
        sorted(made.as_dict(recurse=True).items(), key=str),
        repr(bound),
        lib.Exchange("e", delivery_mode="named").delivery_mode,
    ]


def hubs_are_taken_apart(lib):
    hub = of(lib, "asynchronous.hub").Hub()
    read, write = 1, 4
    hub.poller = poller = Mock()
    callback = Mock(__name__="callback")
    hub.add(5, callback, read, (1,))
    hub.add(6, callback, write)
    seen = [str(poller.mock_calls), hub._running]
    poller.unregister.side_effect = KeyError
    hub.remove(5)
    hub._discard(6)
    hub._unregister(6)
    seen += [dict(hub.readers), dict(hub.writers)]
    poller.register.side_effect = ValueError
    seen += [outcome(hub.add, 7, callback, read), dict(hub.readers)]
    poller.poll.side_effect = None
    poller.poll.return_value = [(99, read)]
    poller.register.side_effect = None
    loop = hub.create_loop()
    hub.readers[3] = (callback, (2,))
    next(loop)
    seen += [poller.unregister.call_args, hub.repr_active()]
    poller.poll.side_effect = ValueError
    seen.append(outcome(next, loop))
    hub.close()
    return seen


def transports_offer_their_verbs(lib):
    connection = lib.Connection("memory://")
    transport = connection.transport
    link = connection.connect()
    channel = transport.create_channel(link)
    seen = [transport.verify_connection(link), transport.supports_heartbeats, transport.supports_ev]
    seen += [transport.driver_version(), transport.can_parse_url, sorted(transport.default_connection_params)]
    seen += [transport.get_heartbeat_interval(link), transport.qos_semantics_matches_spec(link), channel.closed]
    transport.heartbeat_check(link, rate=2)
    connection.release()
    return seen


def virtual_channels_with_stores_of_mocks(lib):
    memory = of(lib, "transport.memory")
    connection = lib.Connection(transport=memory.Transport)
    channel = connection.channel()
    seen = [channel.queues is memory.Channel.queues, connection.transport.state is memory.Transport.global_state]
    channel._new_queue("of mocks")
    channel._put("of mocks", "m")
    seen += [channel._size("of mocks"), channel._queue_for("of mocks") is channel.queues["of mocks"]]
    channel._delete("of mocks")
    seen += [channel._has_queue("of mocks"), type(channel.queue_declare("of mocks")).__name__]
    channel._delete("of mocks")
    return seen


def pyamqp_takes_a_mock_for_a_connection(lib):
    class Amqp:
        def __init__(self, **options):
            self.options = options

        def connect(self):
            self.is_connected = True

    class Transport(of(lib, "transport.pyamqp").Transport):
        Connection = Amqp

    connection = lib.Connection(port=1234, transport=Transport, transport_options={"mine": 4})
    link = connection.connect()
    return link.options, link.is_connected, link.client is connection, connection.hostname


def tables_of_serializers(lib):
    serialization = of(lib, "serialization")
    registry = serialization.SerializerRegistry()
    seen = [outcome(registry.dumps, {}), registry._default_encode]
    registry.register("x", lambda value: f"E{value}", lambda data: f"D{data}", "a/x", "utf-8")
    seen += [registry._encoders["x"].content_type, list(registry._decoders), registry.dumps("q", "x")]
    registry._set_default_serializer("x")
    registry.disable("x")
    seen += [registry.dumps(3), registry._disabled_content_types, outcome(registry.loads, "z", "a/x", "utf-8")]
    registry.unregister("x")
    return [*seen, registry._encoders, registry._decoders, outcome(registry.unregister, "x")]


def helpers_are_imported(lib):
    """Functions of modules whose names say that they are private, which programs import."""
    common, serialization = of(lib, "common"), of(lib, "serialization")
    check = of(lib, "connection")._check_url_transport
    queue, channel = lib.Queue("jobs"), Mock()
    bound = common._ensure_channel_is_bound(queue, channel)
    seen = [bound.channel is channel, common._ensure_channel_is_bound(bound, None) is bound]
    lost = Mock(connection_errors=(KeyError,), channel_errors=(IndexError,))
    for error in (KeyError, IndexError, ValueError):
        try:
            with common._ignore_errors(lost):
                raise error(1)
        except ValueError as raised:
            seen.append(raised.args)
    for error in (KeyError, ZeroDivisionError, OSError):
        try:
            with serialization._reraise_errors(TypeError, (KeyError, OSError), (OSError,)):
                raise error("x")
        except Exception as raised:
            seen.append((type(raised).__name__, str(raised)))
    text = []
    for function, *arguments in ((common._ensure_channel_is_bound, queue, None), (check, "a.b"), (check, "a:b")):
        try:
            function(*arguments)
        except Exception as raised:
            text.append((type(raised).__name__, str(raised).replace("kombulite", "kombu")))
    missing = of(lib, "transport.base")._LeftBlank(Mock, "flow")
    return [*seen, text, check("amqp"), serialization._decode(b"a", "utf-8"), type(missing), str(missing)]


PROGRAMS = [
    each
    for name, each in list(vars().items())
    if getattr(each, "__module__", None) == __name__ and getattr(each, "__code__", None)
    if each.__code__.co_varnames[:1] == ("lib",) and name not in ("of", "transport_of")
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_private_members_do_the_same(program):
    assert repr(program(kombulite)) == repr(program(kombu))


def modules():
    names = (each.name.partition(".")[2] for each in pkgutil.walk_packages(kombu.__path__, "kombu."))
    own = [name for name in names if not name.startswith(("transport.", "asynchronous.")) or name in BASES]
    return [name for name in own if hasattr(of(kombu, name), "__all__")]


BASES = ("transport.base", "transport.virtual", "transport.virtual.base", "transport.memory", "asynchronous.hub")


@pytest.mark.parametrize("name", modules())
def test_a_star_import_brings_what_kombu_s_brings(name):
    theirs = of(kombu, name)
    ours = of(kombulite, name)
    assert set(theirs.__all__) - set(ours.__all__) - {"PooledConnection"} == set()
