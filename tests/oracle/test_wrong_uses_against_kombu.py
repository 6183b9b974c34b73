"""What wrong uses of the API raise: class, text and arguments are those that kombu's users know.

Programs match texts (``pytest.raises(match=...)``), log ``repr(error)`` and send ``error.args`` over the wire.
"""

from __future__ import annotations

from unittest.mock import Mock

import amqp.exceptions
import kombu
import pytest

import kombulite
from kombulite import exceptions
from tests.oracle.side_by_side import ADDRESS, of


def unbound(lib):
    queue, exchange = lib.Queue("q", lib.Exchange("e"), "k"), lib.Exchange("e")
    return {
        "declare a queue": lambda: queue.declare(),
        "declare a queue alone": lambda: queue.queue_declare(),
        "bind a queue": lambda: queue.queue_bind(),
        "bind a queue to": lambda: queue.bind_to("e", "k"),
        "unbind a queue": lambda: queue.queue_unbind(),
        "unbind a queue from": lambda: queue.unbind_from(exchange, "k"),
        "get": lambda: queue.get(),
        "consume": lambda: queue.consume("tag", print),
        "cancel": lambda: queue.cancel("tag"),
        "purge": lambda: queue.purge(),
        "delete a queue": lambda: queue.delete(),
        "declare an exchange": lambda: exchange.declare(),
        "delete an exchange": lambda: exchange.delete(),
        "bind an exchange": lambda: exchange.bind_to("other"),
        "unbind an exchange": lambda: exchange.unbind_from("other"),
        "publish to an exchange": lambda: exchange.publish("text"),
        "make a message": lambda: exchange.Message("text"),
        "read the channel": lambda: queue.channel,
        "declare via common": lambda: of(lib, "common").maybe_declare(queue, None),
        "declare via common again": lambda: of(lib, "common").maybe_declare(queue, None, retry=True),
    }


def settled(lib):
    def message(first=None, **options):
        made = lib.Message("body", delivery_tag=1, channel=Mock(no_ack_consumers=None), **options)
        if first is not None:
            getattr(made, first)()
        return made

    verbs = ("ack", "reject", "requeue")
    uses = {f"{second} after {first}": getattr(message(first), second) for first in verbs for second in verbs}
    uses |= {f"{verb} without a channel": getattr(lib.Message("body"), verb) for verb in verbs}
    return uses


def serialized(lib):
    serialization, compression = of(lib, "serialization"), of(lib, "compression")
    registry = serialization.registry
    pickled = "application/x-python-serialize"
    return {
        "untrusted": lambda: registry.loads(b"x", pickled, "binary", accept={"application/json"}),
        "disabled": lambda: registry.loads(b"x", pickled, "binary"),
        "unknown and untrusted": lambda: registry.loads(b"x", "a/b", "binary", accept=set()),
        "unknown serializer": lambda: registry.dumps({}, "nothing"),
        "unregistered": lambda: registry.unregister("nothing"),
        "enabled": lambda: registry.enable("nothing"),
        "disabled by name": lambda: registry.disable("nothing"),
        "default": lambda: registry._set_default_serializer("nothing"),
        "accepted": lambda: serialization.prepare_accept_content(["json", "nothing"]),
        "accepted by a table": lambda: serialization.prepare_accept_content(["nothing"], {"a": "a/b"}),
        "a consumer that accepts it": lambda: lib.Consumer(None, accept=["nothing"]),
        "no JSON": lambda: registry.dumps({"a": object()}, "json"),
        "surrogates": lambda: registry.dumps("\ud800"),
        "raw surrogates": lambda: registry.dumps("\ud800", "raw"),
        "broken JSON": lambda: registry.loads(b'{"a": ', "application/json", "utf-8"),
        "broken text": lambda: registry.loads(b"\xff\xfe", "text/plain", "utf-8"),
        "unknown encoding": lambda: registry.loads(b"abc", "text/plain", "nothing"),
        "broken pickle": lambda: registry.loads(b"no", pickled, "binary", accept={pickled}),
        "broken msgpack": lambda: registry.loads(b"\xc1", "application/x-msgpack", "binary", force=True),
        "unknown compression": lambda: compression.compress(b"x", "nothing"),
        "unknown decompression": lambda: compression.decompress(b"x", "nothing"),
        "unknown encoder": lambda: compression.get_encoder("nothing"),
        "a message that is not accepted": lambda: lib.Message(b"x", content_type=pickled, accept={"a/b"}).payload,
        "wrapped": lambda: _wrapped(serialization),
    }


def _wrapped(serialization):
    with serialization._reraise_errors(ValueError):
        raise KeyError("key")


def pooled(lib):
    pools, resource = of(lib, "pools"), of(lib, "resource")
    connection = lib.Connection("memory://")

    def exceeded(pool):
        pool.acquire()
        pool.acquire()

    def closed(pool):
        pool.force_close_all()
        pool.acquire()

    def shrunk(pool):
        used = [pool.acquire(), pool.acquire()]
        try:
            pool.resize(1)
        finally:
            assert used

    return {
        "connections exceeded": lambda: exceeded(connection.Pool(1)),
        "channels exceeded": lambda: exceeded(connection.ChannelPool(1)),
        "closed": lambda: closed(connection.Pool(1)),
        "shrunk": lambda: shrunk(connection.Pool(3)),
        "a bool for a limit": lambda: connection.Pool(True),
        "a bool for a new limit": lambda: connection.Pool(2).resize(False),
        "a bool for all limits": lambda: pools.set_limit(True),
        "a resource without setup": lambda: resource.Resource(1),
        "a group that makes nothing": lambda: pools.PoolGroup().create(1, 2),
        "a group that is asked": lambda: pools.PoolGroup(limit=3)[connection],
    }


def mailed(lib):
    pidbox = of(lib, "pidbox")
    box = pidbox.Mailbox("box", connection=Mock())
    return {
        "exclusive and durable": lambda: pidbox.Mailbox("box", queue_exclusive=True, queue_durable=True),
        "a destination that is text": lambda: box._broadcast("f", destination="host"),
        "patterns that are none": lambda: box._broadcast("f", pattern=1, matcher=2),
        "an unknown command": lambda: box.Node("host").handle("nothing"),
        "an unknown matcher": lambda: of(lib, "matcher").match("a", "b", matcher="nothing"),
        "a matcher that is not there": lambda: of(lib, "matcher").unregister("nothing"),
        "a default that is not there": lambda: of(lib, "matcher").registry._set_default_matcher("nothing"),
        "no consumers": lambda: of(lib, "mixins").ConsumerMixin().get_consumers(None, None),
        "no callbacks": lambda: lib.Consumer(None).receive("body", None),
        "process_next": lambda: of(lib, "compat").Consumer(Mock(), "q", "e").process_next(),
        "filters": lambda: of(lib, "compat").Consumer(Mock(), "q", "e").discard_all(len),
        "an empty queue": lambda: lib.Connection("memory://wrong").SimpleQueue("empty-one").get_nowait(),
        "nothing in time": lambda: lib.Connection("memory://wrong").SimpleQueue("empty-two").get(timeout=0.01),
    }


def helped(lib):
    imports, limits = of(lib, "utils.imports"), of(lib, "utils.limits")
    compat, scheduling, functional = of(lib, "utils.compat"), of(lib, "utils.scheduling"), of(lib, "utils.functional")
    base, delayed = of(lib, "transport.base"), of(lib, "transport.native_delayed_delivery")
    transport = base.Transport(Mock())
    verbs = {
        name: lambda name=name: getattr(transport, name)(None)
        for name in ("close_connection", "create_channel", "close_channel", "drain_events", "as_uri")
    }
    return verbs | {
        "establish_connection": lambda: transport.establish_connection(),
        "bindings of a channel": lambda: base.StdChannel().get_bindings(),
        "bindings of a manager": lambda: base.Management(transport).get_bindings(),
        "an unknown capability": lambda: transport.implements.nothing,
        "an unknown queue argument": lambda: base.to_rabbitmq_queue_arguments({}, nothing=1),
        "a module that is not there": lambda: imports.symbol_by_name("kombu_nothing:name"),
        "a name that is not there": lambda: imports.symbol_by_name("os:kombu_nothing"),
        "a path that cannot be": lambda: imports.symbol_by_name("os", imp=_refuse),
        "no descriptor": lambda: compat.fileno(None),
        "no file": lambda: compat.fileno(object()),
        "nothing that waits": lambda: limits.TokenBucket(1).pop(),
        "no resources": lambda: scheduling.FairCycle(lambda *a: 1, [], KeyError).get(print),
        "resources that have nothing": lambda: scheduling.FairCycle(_refuse, [1, 2], ValueError).get(print),
        "an unknown order": lambda: scheduling.cycle_by_name("nothing"),
        "a key that is not cached": lambda: functional.LRUCache(3)["nothing"],
        "no cached number": lambda: functional.LRUCache(3).incr("nothing"),
        "no function": lambda: functional.accepts_argument(3, "x"),
        "no version": lambda: of(lib, "utils.text").version_string_as_tuple("nothing"),
        "an unknown delivery mode": lambda: lib.Exchange("e", delivery_mode="nothing").Message("x"),
        "a delivery mode": lambda: of(lib, "entity").maybe_delivery_mode("nothing"),
        "an unknown transport": lambda: of(lib, "transport").resolve_transport("nothing-like-it"),
        "a similar transport": lambda: of(lib, "transport").resolve_transport("memry"),
        "a path in a URL": lambda: lib.Connection("os.path://host"),
        "a level below zero": lambda: delayed.level_name(-1),
        "a routing key that is empty": lambda: delayed.calculate_routing_key(3, ""),
        "an HTTP error": lambda: _raise(of(lib, "exceptions").HttpError(599, "text", None)),
        "all tries": lambda: functional.retry_over_time(_refuse, ValueError, max_retries=0),
        "a mode for TLS": lambda: of(lib, "utils.url").parse_ssl_cert_reqs("nothing"),
    }


def _refuse(*args, **kwargs):
    raise ValueError("refused")


def _raise(error):
    raise error


def virtual(lib):
    module = of(lib, "transport.virtual")
    channel = lib.Connection(transport=f"{lib.__name__}.transport.virtual.Transport").channel()
    channel.exchange_declare("e", "direct")
    full = Mock(_used_channel_ids=[1, 2], channel_max=2, channels=[1, 2])
    return {
        "flow": lambda: channel.flow(),
        "recover": lambda: channel.basic_recover(),
        "bind exchanges": lambda: channel.exchange_bind("a", "b"),
        "unbind exchanges": lambda: channel.exchange_unbind("a", "b"),
        "get": lambda: channel._get("q"),
        "put": lambda: channel._put("q", "m"),
        "purge": lambda: channel.queue_purge("q"),
        "an unknown exchange": lambda: channel.exchange_declare("nothing", passive=True),
        "an exchange declared otherwise": lambda: channel.exchange_declare("e", "topic"),
        "an unknown tag": lambda: channel.basic_reject("nothing", requeue=True),
        "an unknown table": lambda: channel.get_table("nothing"),
        "nothing to drain": lambda: channel.drain_events(),
        "a message for no queue": lambda: channel.connection._deliver("message", None),
        "a message for nobody": lambda: channel.connection.on_message_ready(channel, "message", "q"),
        "no channel numbers": lambda: module.Channel._get_free_channel_id(Mock(connection=full)),
        "an exchange type": lambda: of(lib, "transport.virtual.exchange").ExchangeType(channel).lookup([], "e", "k", 1),
        "a lost channel": lambda: of(lib, "common").maybe_declare(lib.Queue("q")(channel), Mock(connection=None)),
    }


def raised(use):
    try:
        result = use()
    except Exception as error:
        return error
    return result


def shown(error):
    texts = [repr(error), str(error), repr(getattr(error, "args", None))]
    names = [cls.__name__ for cls in type(error).__mro__]
    return [ADDRESS.sub("0x", each).replace("kombulite", "kombu") for each in texts], names


GROUPS = [unbound, settled, serialized, pooled, mailed, helped, virtual]


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in GROUPS for name in group(kombu)],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_errors_have_kombu_s_class_text_and_arguments(group, name):
    theirs, ours = (shown(raised(group(lib)[name])) for lib in (kombu, kombulite))
    assert ours[0] == theirs[0]
    assert set(theirs[1]) <= set(ours[1])


@pytest.mark.parametrize("name", [name for name in amqp.exceptions.__all__ if hasattr(exceptions, name)])
def test_errors_of_amqp_are_shown_as_py_amqp_shows_them(name):
    theirs, ours = getattr(amqp.exceptions, name), getattr(exceptions, name)
    if not issubclass(ours, exceptions.AMQPError):
        return
    for given in [
        (),
        ("text",),
        ("text", (50, 10)),
        ("text", (50, 10), "Channel.x"),
        ("text", (99, 9)),
        (None, (60, 72)),
    ]:
        for code in (None, 404):
            one, other = theirs(*given, reply_code=code), ours(*given, reply_code=code)
            assert (str(other), repr(other), other.args, other.method, other.reply_code, other.method_name) == (
                str(one),
                repr(one),
                one.args,
                one.method,
                one.reply_code,
                one.method_name,
            )


def test_methods_have_the_names_that_py_amqp_gives_them():
    names = {number: name for number, name in amqp.exceptions.METHOD_NAME_MAP.items() if isinstance(number, tuple)}
    assert names == exceptions.METHOD_NAMES
